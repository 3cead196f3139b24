"""Lines and tables on the terminal: names in them cannot move its cursor, colour it or break a table."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from ..files import on_screen


def echo(text: object, fg: str | None = None, err: bool = False, nl: bool = True) -> None:
    """`typer.secho`, with control characters in the text shown as ``\\x1b``."""
    typer.secho(on_screen(text), fg=fg, err=err, nl=nl)


def print_table(columns: Iterable[object], rows: Iterable[Iterable[object]], title: str = "") -> None:
    """A table as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(on_screen(title)) if title else None)
    for name in columns:
        table.add_column(Text(on_screen(name)))
    for row in rows:
        table.add_row(*(Text(on_screen(value)) for value in row))
    console = Console()  # a pipe or a log has no width
    (console if console.is_terminal else Console(width=180)).print(table)
