"""The command about weights that others released."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .echo import echo
from .screen import setting


def import_checkpoint(
    file: Annotated[
        Path,
        typer.Argument(
            help="AntifakePrompt's .pth, UniversalFakeDetect's fc_weights.pth, or CoOp's prompt learner."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Run folder to make from FILE.")] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="The other way: a vlm-prompt run to write into FILE, as AntifakePrompt does."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="What it was trained on: an alias, a hub name or a folder; by default the paper's."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Field of the run, as name=value (repeatable): position=prefix, statistics=lama."
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="P(fake) from which an image is called fake; the papers' is .5.")
    ] = 0.5,
) -> None:
    """Make a run of weights that others released, to score with like an own one; or, with --export, the reverse."""
    from ..detectors import released
    from ..errors import ModelError
    from ..files import CHECKPOINT, check_folder, check_output

    if export and not out:
        check_output(file, CHECKPOINT, [export])
        echo(f"checkpoint: {released.export_checkpoint(export, file)}")
        return
    if export or not out:
        raise ModelError("give either --out (FILE becomes a run) or --export (a run becomes FILE)")
    config = dict(setting(text) for text in settings or [])
    if own := sorted({"file", "out", "backbone", "threshold"} & set(config)):
        raise ModelError(
            f"--set {own[0]}: expected a field of the detector; --backbone, --threshold are options"
        )
    check_folder(out, "afp import-checkpoint", [file])
    folder, note = released.import_checkpoint(file, out, backbone, threshold, **config)
    echo(f"run: {folder}" + (f"\nnote: {note}" if note else ""))
