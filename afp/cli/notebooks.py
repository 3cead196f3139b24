"""The commands about notebooks: run, gallery."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import AfpError
from .echo import echo
from .screen import pair, print_findings


def run(
    notebooks: Annotated[list[str] | None, typer.Argument(help="Notebooks, by path, name or number.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of notebooks/, in order.")] = False,
    parameters: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="Parameter: NAME VALUE (repeatable).")
    ] = None,
    params: Annotated[
        Path | None, typer.Option(help="YAML: notebook, and its parameters under it; -p goes before.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the executed notebooks; figures go into its figures/.")
    ] = Path("executed"),
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Write outputs into the notebook itself, figures into figures/."),
    ] = False,
    grid: Annotated[
        Path | None,
        typer.Option(
            help="YAML of `parameter: \\[values]`: run one notebook for every combination; resumes."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, help="Of a grid: how many run at once.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run nothing: say what is missing and what it would cost.")
    ] = False,
) -> None:
    """Execute notebooks headlessly with papermill. Stops at the first failing cell and shows its traceback."""
    from .. import workbook

    pairs = (pair("-p", text) for text in parameters or [])
    values = {name: workbook.from_shell(name, text) for name, text in pairs}
    given = workbook.read_parameters(params) if params else {}
    paths = workbook.find(notebooks or [], everything)
    if grid:
        if len(paths) != 1 or in_place or dry_run:
            raise AfpError("--grid: expected one notebook, without --in-place and --dry-run")
        settings = [given.get(paths[0].stem, {}) | values | setting for setting in workbook.read_grid(grid)]
        rows = workbook.execute_grid(paths[0], settings, out, jobs)
        failed = rows[rows["error"] != ""]
        for row in failed.itertuples():
            echo(f"error  {row.notebook}: {row.error}", fg="red", err=True)
        echo(f"{len(rows)} settings, {len(failed)} failed: {out / 'grid.csv'}")
        if len(failed):
            raise typer.Exit(1)
        return
    merged = {path.stem: given.get(path.stem, {}) | values for path in paths}
    if dry_run:
        from .dry_run import check_notebooks

        if not print_findings(check_notebooks(paths, merged)):
            raise typer.Exit(1)
        return
    for path in paths:
        workbook.execute(path, merged[path.stem], None if in_place else out)


def gallery(
    executed: Annotated[Path, typer.Argument(help="Folder of executed notebooks.")] = Path("executed"),
    out: Annotated[Path, typer.Option(help="Folder of the pages; an earlier gallery is replaced.")] = Path(
        "gallery"
    ),
) -> None:
    """Executed notebooks and figures as static pages that need no network."""
    from ..figures.gallery import build_gallery

    echo(f"gallery: {build_gallery(executed, out)}")
