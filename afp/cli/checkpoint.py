"""The command about AntifakePrompt's released files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .echo import echo


def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="AntifakePrompt's .pth file.")],
    out: Annotated[Path | None, typer.Option(help="Run folder to make from FILE.")] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="The other way: a vlm-prompt run to write into FILE, in the same layout."),
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="The InstructBLIP that it was trained on: an alias, a hub name or a folder.")
    ] = "instructblip-vicuna-7b",
    question: Annotated[str, typer.Option(help="What every image is asked.")] = "Is this photo real?",
    position: Annotated[str, typer.Option(help="Of the pseudo-word: postfix | prefix | replace")] = "postfix",
    threshold: Annotated[
        float, typer.Option(help="P(fake) from which an image is called fake; the paper's is .5.")
    ] = 0.5,
) -> None:
    """Make a run of a released pseudo-word, to score with like an own one; or, with --export, the reverse."""
    from ..detectors import released
    from ..errors import ModelError
    from ..files import CHECKPOINT, check_folder, check_output

    if (out is None) == (export is None):
        raise ModelError("give either --out (FILE becomes a run) or --export (a run becomes FILE)")
    if export:
        check_output(file, CHECKPOINT, [export])
        echo(f"checkpoint: {released.export_checkpoint(export, file)}")
        return
    config = {"question": question, "position": position}
    check_folder(out, "afp import-checkpoint", [file])
    folder = released.import_checkpoint(file, out, backbone, threshold, **config)
    echo(f"run: {folder}")
