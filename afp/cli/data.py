"""Commands about the machine and the images: doctor, demo, manifest, audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .echo import echo, print_table
from .screen import print_findings, print_frame


def doctor() -> None:
    """Check versions, memory, device, weights and data: a line each, OK or FAIL with the mend."""
    from .doctor import check_machine

    if not print_findings(check_machine()):
        raise typer.Exit(1)


def demo() -> None:
    """Build the demo benchmark and the embedded weights into data/ (or $AFP_DATA), once."""
    from ..data.manifest import read_manifest
    from ..demo import benchmark

    path = benchmark.build_benchmark()
    frame = read_manifest(path)
    rows = []
    for (label, kind, generator), part in frame.groupby(["label", "kind", "generator"], sort=True):
        if kind in benchmark.WILD:
            continue
        rows.append((generator, kind, "fake" if label else "real", len(part), part["source"].nunique()))
    for kind, part in frame[frame["kind"].isin(benchmark.WILD)].groupby("kind"):
        generators = f"wild: {part['generator'].nunique()} generators"
        rows.append((generators, kind, "fake", len(part), part["source"].nunique()))
    print_table(("generator", "kind", "label", "images", "sources"), rows)
    echo(f"{len(frame)} images: {path}")


def manifest(
    folder: Annotated[Path | None, typer.Argument(help="Folder with real/ and fake/<generator>/.")] = None,
    real_dir: Annotated[
        list[Path] | None, typer.Option("--real-dir", "--real_dir", help="Folder of real images.")
    ] = None,
    fake_dir: Annotated[
        list[Path] | None, typer.Option("--fake-dir", "--fake_dir", help="Folder of one generator's images.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Manifest to write, .csv or .parquet.")] = Path("manifest.csv"),
    split: Annotated[
        bool, typer.Option("--split", help="Split 60/20/20 by source; else all is test.")
    ] = False,
    held_out: Annotated[
        list[str] | None, typer.Option(help="Generator kept out of training and validation (repeatable).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Changes which source goes where.")] = 0,
) -> None:
    """Make a manifest from folders. Files of one name derive from one source and share a split."""
    from ..data.layouts import from_folders
    from ..data.manifest import write_manifest
    from ..errors import DataError
    from ..files import MANIFEST, check_output

    check_output(out, MANIFEST)
    real, fake = list(real_dir or []), {f.resolve().name: f for f in fake_dir or []}
    if len(fake) < len(fake_dir or []):
        raise DataError(
            f"--fake-dir: {len(fake_dir)} folders of {len(fake)} names ({', '.join(fake)}); a folder's name is the "
            "generator's, so each must differ"
        )
    if folder:
        real += [folder / "real"]
        generators = sorted(p for p in (folder / "fake").glob("*") if p.is_dir())
        fake |= {p.name: p for p in generators} or {"fake": folder / "fake"}
    if not real or not fake:
        raise DataError("give a folder with real/ and fake/<generator>/, or both --real-dir and --fake-dir")
    frame = from_folders(real, fake, split, seed)
    if unknown := set(held_out or []) - set(fake):
        raise DataError(f"--held-out: no generator {sorted(unknown)[0]!r}, expected {', '.join(fake)}")
    away = frame["generator"].isin(held_out or []) & (frame["split"] != "test")
    frame.loc[away, "split"] = "none"
    write_manifest(frame, out)
    counts = frame.groupby(["generator", "split"]).size().unstack(fill_value=0)
    echo(counts.to_string())
    echo(f"{len(frame)} images: {out}")


def audit(
    path: Annotated[Path, typer.Argument(metavar="MANIFEST", help="Manifest to check.")],
) -> None:
    """Check a manifest: leaks, duplicates, unreadable files, and shortcuts. Exit 1 if a check fails."""
    from ..data.manifest import read_manifest
    from ..results.metrics import Estimate
    from ..studies.shortcuts import audit as run_audit

    findings, table, aucs = run_audit(read_manifest(path))
    ok = print_findings(findings)
    if not table.empty:
        print_frame(table.reset_index(names="files"))
        lines = [(name, f"{Estimate(*row):.3f}") for name, row in aucs.iterrows()]
        print_table(("told apart by", "AUC, 95 % interval by source"), lines)
    if not ok:
        raise typer.Exit(1)
