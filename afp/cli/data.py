"""Commands about the machine and the images: doctor, demo, manifest, audit, attack."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from ..files import LEFT_OUT, MANIFEST, check_output, printable, written_whole
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
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOLDER | TABLE | SHARD...]", help="A tree, a table of paths, or .tar/.parquet."
        ),
    ] = None,
    real: Annotated[
        list[str] | None,
        typer.Option("--real", "--real-dir", "--real_dir", help="[NAME=]folder (or list) of real images."),
    ] = None,
    fake: Annotated[
        list[str] | None,
        typer.Option("--fake", "--fake-dir", "--fake_dir", help="[NAME=]folder (or list) of one generator."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Manifest to write, .csv or .parquet.")] = Path("manifest.csv"),
    layout: Annotated[
        str,
        typer.Option(help="auto; sets: the first folder names the generator; categories: no folder does."),
    ] = "auto",
    path_column: Annotated[str, typer.Option(help="Of a table: the paths.")] = "",
    label_column: Annotated[str, typer.Option(help="Of a table or shard: the labels.")] = "",
    real_value: Annotated[str, typer.Option(help="Of a table or shard: the label that means real.")] = "",
    source_rule: Annotated[
        str,
        typer.Option(help="stem, folder, column:NAME, or a regular expression whose groups are the parents."),
    ] = "",
    split: Annotated[
        bool,
        typer.Option(
            "--split", help="Split 60/20/20 by source; else the data set's own split, or all is test."
        ),
    ] = False,
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            help="Generator kept out of training and validation, with the reals of its set (repeatable)."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Changes which source goes where.")] = 0,
    drop_unreadable: Annotated[
        bool, typer.Option("--drop-unreadable", help="Decode every image; leave out what cannot be.")
    ] = False,
    left_out: Annotated[Path | None, typer.Option(help="CSV to write: every file left out, and why.")] = None,
) -> None:
    """Make a manifest of images as they come. Images of one source (photograph, video) share a split."""
    from ..data import layouts
    from ..data.manifest import write_manifest
    from ..errors import DataError

    check_output(out, MANIFEST, inputs or [])
    if left_out:
        check_output(left_out, LEFT_OUT, inputs or [])
    if layout not in layouts.LAYOUTS:
        raise DataError(f"--layout: {layout!r}, expected {' | '.join(layouts.LAYOUTS)}")
    if bool(inputs) == bool(real or fake):
        raise DataError("give a folder, a table or shards; or both --real DIR and --fake NAME=DIR")
    tables = list(inputs or [])
    if len(tables) == 1 and tables[0].is_dir():
        tables = layouts.find_shards(tables[0])
    if tables:
        listing = layouts.read_tables(tables, path_column, label_column, real_value)
    elif inputs:
        listing = layouts.read_tree(inputs[0], layout)
    else:
        listing = layouts.read_places(_named(real or [], "real"), _named(fake or [], ""))
    frame, notes = layouts.make_manifest(listing, source_rule, split, seed, drop_unreadable)
    generators = sorted(set(frame.loc[frame["label"] == 1, "generator"]))
    both = frame["label"].nunique() == 2
    if both and (unknown := set(held_out or []) - set(generators)):
        raise DataError(f"--held-out: no generator {sorted(unknown)[0]!r}, expected {', '.join(generators)}")
    fake, away = frame["label"] == 1, frame["generator"].isin(held_out or [])
    sets = set(frame.loc[fake & away, "set"]) - set(frame.loc[fake & ~away, "set"]) - {""}
    away |= frame["set"].isin(sets)  # a set's reals go with its fakes, as the papers train on one set alone
    frame.loc[away & (frame["split"] != "test"), "split"] = "none"
    _print_listing(frame, listing.left_out, notes)
    if left_out:
        with written_whole(left_out) as partial:
            pd.DataFrame(listing.left_out, columns=["file", "group", "reason"]).to_csv(partial, index=False)
        echo(f"left out: {left_out}")
    if not both:
        found = f"all {len(frame)} images are {'fake' if generators else 'real'}; both are needed"
        if outside := [file for file, _, reason in listing.left_out if reason == layouts.NO_WORD]:
            found += f"; {len(outside)} others have no class word in their path, such as {outside[0]}"
            found += ": name the folders by --real DIR and --fake NAME=DIR"
        raise DataError(found)
    write_manifest(frame, out)
    echo(f"{len(frame)} images: {out}")


def _named(texts: list[str], default: str) -> list[tuple[str, Path]]:
    """``NAME=DIR`` or ``DIR``, whose name is the default or the folder's.

    A text is ``DIR`` where it has no "=", where it is there, or where what stands before its first "=" is a path.
    """
    from ..errors import DataError

    pairs, bare = [], []
    for text in texts:
        name, equals, place = text.partition("=")
        is_path = Path(name).name != name and not Path(place).exists()  # no "org/model=DIR"
        if not equals or Path(text).exists() or is_path:
            name, place = default or Path(text).resolve().name, text
            bare += [] if default else [name]
        elif not name:
            raise DataError(f"{text!r}: expected NAME=DIR, or a folder")
        if printable(name) != name:
            raise DataError(f"{text!r}: the generator's name is not UTF-8 or has control characters")
        pairs.append((name, Path(place)))
    if len(bare) > len(set(bare)):
        raise DataError(f"{', '.join(texts)}: folders of one name; give each generator's by NAME=DIR")
    return pairs


def _print_listing(frame: pd.DataFrame, left_out: list, notes: list[str]) -> None:
    """What was understood: classes, generators, sets, with counts; then what was left out."""
    echo(f"{len(frame)} images of {frame['source'].nunique()} sources")
    for label, name in ((0, "real"), (1, "fake")):
        part = frame[frame["label"] == label]
        echo(f"  {name}: {len(part)}")
        for (generator, group), images in part.groupby(["generator", "set"]):
            counts = ", ".join(f"{n} {split}" for split, n in images["split"].value_counts().items())
            title = f"{generator} (set {group})" if group else generator
            echo(f"    {title}: {len(images)} images, {images['source'].nunique()} sources ({counts})")
    for group, rows in pd.DataFrame(left_out, columns=["file", "group", "reason"]).groupby("group"):
        reasons = rows["reason"].str.partition(":")[0].value_counts()
        parts = ", ".join(f"{n} {reason}" for reason, n in reasons.items())
        echo(f"not taken, {group or 'of the tables'}: {parts}, such as {rows['file'].iloc[0]}")
    for note in notes:
        echo(note, fg="yellow")


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
    from ..errors import DataError
    from ..studies.attack_sets import make_attack_set, read_record
    from ..studies.attacks import Settings

    try:
        budget = float(Fraction(epsilon))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise DataError(f"--epsilon: {epsilon!r}, expected a number such as 8/255 or 0.03") from None
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
