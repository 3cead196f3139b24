"""The one way to the terminal: names of files and generators cannot move its cursor, colour it or break a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import typer

from ..files import on_screen


def echo(text: object, fg: str | None = None, err: bool = False, nl: bool = True) -> None:
    """`typer.secho`, with control characters in the text shown as ``\\x1b``."""
    typer.secho(on_screen(text), fg=fg, err=err, nl=nl)


def print_table(columns: Iterable[object], rows: Iterable[Iterable[object]], title: str = "") -> None:
    """Print a table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(on_screen(title)) if title else None)
    for name in columns:
        table.add_column(Text(on_screen(name)))
    for row in rows:
        table.add_row(*(Text(on_screen(value)) for value in row))
    _print(table)


def print_tree(title: object, branches: Mapping[str, Iterable[object]]) -> None:
    """Print a tree of two levels.

    Args:
        title: the root's.
        branches: a branch's text -> its leaves.
    """
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(on_screen(title)))
    for name, leaves in branches.items():
        branch = tree.add(Text(on_screen(name)))
        for leaf in leaves:
            branch.add(Text(on_screen(leaf)))
    _print(tree)


def _print(content: Any) -> None:
    """As wide as the terminal, or 180 characters in a pipe or a log, which have no width."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=180)).print(content)
