"""The command that makes test sets of attacked photographs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

from .echo import echo


def attack(
    kind: Annotated[str, typer.Argument(help="pgd | fgsm | poison | patch | blended")],
    manifest: Annotated[
        Path, typer.Option("--manifest", "-m", help="Manifest whose photographs are attacked.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for images, manifest.csv and attack.json.")],
    epsilon: Annotated[
        str, typer.Option(help="Largest change of a colour value, such as 8/255 or 0.03.")
    ] = "8/255",
    steps: Annotated[int, typer.Option(help="Steps of pgd and poison.")] = 10,
    size: Annotated[int, typer.Option(help="Side of the patch, in pixels.")] = 16,
    per_source: Annotated[int, typer.Option(help="Images of each source to attack.")] = 1,
    backbone: Annotated[
        str, typer.Option(help="The victim's: demo-clip, a hub name or a folder.")
    ] = "demo-clip",
    dtype: Annotated[str, typer.Option(help="The victim's: float32, or bfloat16 for speed.")] = "float32",
    seed: Annotated[int, typer.Option(help="Random start, blended pattern.")] = 0,
) -> None:
    """Attack a manifest's photographs: images and a manifest; the attacked ones are fakes of kind 'attack'."""
    from ..data.manifest import read_manifest
    from ..errors import AfpError
    from ..studies.attack_sets import make_attack_set, read_record
    from ..studies.attacks import Settings

    try:
        budget = float(Fraction(epsilon))
    except (ValueError, ZeroDivisionError):
        raise AfpError(f"--epsilon: {epsilon!r}, expected a number such as 8/255 or 0.03") from None
    settings = Settings(kind, budget, steps, size, seed)
    frame = make_attack_set(
        read_manifest(manifest), out, settings, per_source=per_source, backbone=backbone, dtype=dtype
    )
    record = read_record(out)
    success = record["success_rate"]
    echo(f"victim: {record['victim'] or 'none, a trigger works on a model that was trained on it'}")
    if success is not None:
        echo(f"success: {success:.0%} of {record['n']} stored images")
    echo(f"largest change: {record['largest_change']} of 255 grey levels")
    echo(f"{len(frame)} images: {out / 'manifest.csv'}")
