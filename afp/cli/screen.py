"""What commands share: tables on the screen, name=value pairs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

console = Console()
if not console.is_terminal:
    console = Console(width=150)  # a pipe or a log has no width of its own


def print_findings(findings: Iterable) -> bool:
    """Print `afp.audit.Finding`s, a line each; returns whether all are well."""
    ok = True
    for finding in findings:
        ok &= finding.ok
        typer.secho("OK  " if finding.ok else "FAIL", fg="green" if finding.ok else "red", nl=False)
        typer.echo(f" {finding.check}: {finding.detail}")
    return ok


def pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"{option}: {text!r}, expected name=value")
    return name, value


def print_metrics(table, out: Path | None) -> None:
    from .. import metrics
    from ..tables import held_out_table

    results = metrics.evaluate(table)
    for detector, part in results.groupby("detector"):
        print_frame(held_out_table(part), title=str(detector))
    failed = int((table["error"] != "").sum())
    if failed:
        typer.secho(f"{failed} of {len(table)} rows failed and are left out", fg="yellow", err=True)
    if out is None:
        return
    if out.suffix not in (".csv", ".json"):
        raise ValueError(f"--out: {out}, expected a name ending in .csv or .json")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".csv":
        results.to_csv(out, index=False)
    else:
        results.to_json(out, orient="records", indent=1)
    typer.echo(f"metrics: {out}")


def print_frame(frame, title: str | None = None) -> None:
    table = Table(*[str(c) for c in frame.columns], title=title)
    for row in frame.itertuples(index=False):
        table.add_row(*[str(v) for v in row])
    console.print(table)
