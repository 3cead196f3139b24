"""Commands about detectors: fit, calibrate, score, evaluate, test."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from ..detectors import NAMES
from ..errors import DataError, UnreadableImages
from ..files import LOG, METRICS, PAGE, SCORES, check_folder, check_output
from ..models import processes
from ..paths import demo_manifest
from .echo import echo
from .screen import print_answers, print_frame, print_metrics, setting

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # torch's names are taken as well
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no features on the disk.")]
RunOption = Annotated[Path | None, typer.Option(help="Run folder; default: the demo's linear probe.")]


def fit(
    context: typer.Context,
    detector: Annotated[str, typer.Option("--detector", "-d", help=" | ".join(NAMES))] = "linear-probe",
    manifest: Annotated[
        Path | None, typer.Option("--manifest", "-m", help="CSV or Parquet manifest; default: the demo's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/<detector>-<hash>.")] = None,
    fold: Annotated[
        str | None, typer.Option(help="Fold 0 to 4 for the test split, or 'all' to score every image once.")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="Generator left out of training.")] = None,
    held_in: Annotated[
        list[str] | None,
        typer.Option(help="Generator to train on, instead of the manifest's (repeatable)."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="demo-clip, an alias, a hub name or a folder.")] = None,
    target_fpr: Annotated[
        float | None,
        typer.Option(
            help="Largest share of validation's real images that the threshold may call fake. [default: 0.05]"
        ),
    ] = None,
    balanced: Annotated[
        bool,
        typer.Option("--balanced", help="Threshold of the best balanced accuracy; default with --fold all."),
    ] = False,
    preset: Annotated[str | None, typer.Option(help="Recipe: demo, or the published one's name.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of the image tower: fp32, bf16, fp16, or int8 (demo-clip on a CPU). "
            "[default: bf16 on a GPU that has it, else fp32]"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Config field of the detector, as name=value (repeatable)."),
    ] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Run of the same detector whose weights the training starts from.")
    ] = None,
    log_with: Annotated[
        str | None,
        typer.Option(help="Tracker that is told each step of a training: tensorboard, wandb, mlflow ..."),
    ] = None,
    no_cache: NoCache = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Fit nothing: print every setting, its source, where ours differs."),
    ] = False,
) -> None:
    """Train a detector. Validation picks its hyperparameters and its threshold."""
    from ..data.manifest import read_manifest
    from ..data.splits import hold_in
    from ..detectors import create
    from ..detectors.base import read_config
    from ..detectors.operating_point import TARGET_FPR, OperatingPoint
    from ..results import runs
    from ..results.scores import read_scores

    dtype = PRECISIONS.get(precision or "", precision)
    given = {"backbone": backbone, "preset": preset, "dtype": dtype}
    config = dict(setting(text) for text in settings or []) | {k: v for k, v in given.items() if v}
    if explain:
        recipe = getattr(create(detector, **config), "explain_recipe", None)
        if recipe is None:
            raise DataError(f"--explain: {detector} has no published recipe")
        print_frame(recipe(), title=f"{detector}, preset {config.get('preset', 'demo')}")
        return
    if log_with:
        from ..models.training import logged_with

        context.with_resource(logged_with(log_with))
    if fold not in (None, "all") and not fold.isdecimal():
        raise DataError(f"--fold: {fold!r}, expected 0 to 4 or all")
    if balanced and target_fpr is not None:
        raise DataError("give either --target-fpr or --balanced")
    if target_fpr is None and not balanced and fold != "all":
        target_fpr = TARGET_FPR
    frame = read_manifest(manifest or demo_manifest())
    if held_in:
        frame = hold_in(frame, held_in)
    options: dict = {"config": config, "without": without or [], "target_fpr": target_fpr, "start": init_from}
    _keep_features(not no_cache, context)
    try:
        if fold == "all":
            folder = runs.cross_fit(detector, frame, out, **options)
        else:
            folder = runs.fit_run(detector, frame, out, fold=None if fold is None else int(fold), **options)
    except UnreadableImages as error:
        hint = "`afp manifest ... --drop-unreadable` leaves such files out and says what each class loses"
        raise DataError(f"{error}\n{hint}") from error
    if processes.rank():
        return
    if fold == "all":
        echo(f"scores: {folder / 'scores.csv'}")
        print_metrics(read_scores(folder / "scores.csv"), folder / "metrics.json")
    content = read_config(folder)
    echo(f"{detector}: {content['n_trainable']:,} trained numbers")
    echo(str(OperatingPoint(**content["operating_point"])))
    echo(f"run: {folder}")


def calibrate(
    run: Annotated[Path, typer.Argument(help="Run folder, changed in place.")],
    reals: Annotated[
        list[Path], typer.Option(help="Folder of your own photographs, or images (repeatable).")
    ],
    target_fpr: Annotated[float, typer.Option(help="Share of them that may be called fake.")] = 0.05,
) -> None:
    """Move a run's threshold to your own photographs. Scores stay as they are; `afp score` uses it from then on."""
    from ..data.images import count_reasons
    from ..detectors.base import read_config
    from ..results import runs
    from ..results.scores import read_scores

    before, (frame, skipped) = read_config(run)["threshold"], _frame(reals)
    fake = frame.reindex(columns=["label"])["label"] == 1
    if fake.any():
        echo(f"{fake.sum()} fakes of the manifest are left out: photographs alone calibrate", fg="yellow")
        frame = frame[~fake]
    point = runs.calibrate(run, frame, target_fpr)
    called = int((read_scores(run / "calibration.csv")["score"] >= before).sum())
    echo(f"before: threshold {before:.4g}, which calls {called} of these {point.n_real} real images fake")
    echo(f"now: {point}")
    if left := len(frame) - point.n_real:
        echo(f"{left} of {len(frame)} photographs are left out: unreadable, or the run was fitted on them")
    for line in (count_reasons(skipped), f"run: {run}"):
        echo(line)


def score(
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="Images, folders (recursive) or manifests.")],
    run: RunOption = None,
    out: Annotated[Path, typer.Option(help="Scores table; an interrupted one is continued.")] = Path(
        "scores.csv"
    ),
    perturbation: Annotated[
        str, typer.Option(help="Such as jpeg:75, blur:1 or rescale:0.5+jpeg:75.")
    ] = "none",
    threshold: Annotated[
        list[str] | None,
        typer.Option(help="P(fake) to call fake from, instead of the run's; or GENERATOR=P (repeatable)."),
    ] = None,
    target_fpr: Annotated[
        float | None, typer.Option(help="Threshold by the share of the run's known real images called fake.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Page with thumbnails, explanations and relevance maps to write.")
    ] = None,
    maps: Annotated[
        int, typer.Option(min=0, help="Highest scores that get a relevance map on the page; 0 for none.")
    ] = 30,
    explain: Annotated[
        Path | None,
        typer.Option(help="Folder for a relevance map of each image: red for fake, blue for real."),
    ] = None,
    no_cache: NoCache = False,
) -> None:
    """Score images with a run: P(fake), a row each. Exit 1 if any could not be read."""
    from .. import detectors
    from ..data import preprocess
    from ..data.images import count_reasons
    from ..detectors.base import read_config
    from ..results import verdict
    from ..results.scores import count_known_by_name, place_of, score_to_csv

    perturbation = preprocess.check_perturbation(perturbation)
    if target_fpr is not None and any("=" not in text for text in threshold or []):
        raise DataError("give either --threshold or --target-fpr; thresholds per generator go with both")
    if processes.count() > 1 and (html or explain):
        raise DataError("--html and --explain are made by one process; add them once the scores are there")
    thresholds = _thresholds(threshold or [])
    check_output(out, SCORES, paths)
    _keep_features(not no_cache, context)
    if html:
        check_output(html, PAGE, [*paths, out])
    folder = _run(run)
    if explain:
        from ..figures.overlays import MADE_BY, write_overlays
        from ..studies.gradients import check_differentiable

        check_folder(explain, MADE_BY, paths)
        check_differentiable(read_config(folder)["detector"])  # refused before any work
    standing = verdict.Standing.of(folder)
    if target_fpr is not None:
        thresholds = {"": standing.threshold_at(target_fpr)} | thresholds
    frame, skipped = _frame(paths)
    if unknown := set(thresholds) - {"", *frame.get("generator", [])}:
        known = sorted(set(frame.get("generator", [])))
        expected = f"one of {', '.join(known)}" if known else "a manifest, which names generators"
        raise DataError(f"--threshold: no image by {sorted(unknown)[0]!r}, expected {expected}")
    table = score_to_csv(folder, frame, out, perturbation=perturbation, thresholds=thresholds)
    failed, good = table[table["error"] != ""], table[table["error"] == ""]
    if processes.rank():
        raise typer.Exit(1 if len(failed) else 0)
    if len(table) <= 20:
        print_answers(good, frame, standing)
    if len(good):
        echo("\n".join(standing.about(good["threshold"].iloc[0])))
    for message in failed["error"].head(20):
        echo(f"error  {message}", fg="red", err=True)
    called = int((good["verdict"] == "fake").sum())
    counts = f"{len(good)} scored ({called} called fake), {len(failed)} failed, {count_reasons(skipped)}"
    echo(f"{counts}: {out}")
    if met := int((table["role"] != "").sum()):
        echo(f"{met} of them, or their photographs, had a part in the fit; `afp evaluate` leaves them out")
        if by_name := count_known_by_name(folder, table):
            echo(
                f"{by_name} of these are known by the name of their source alone; if they are other photographs of "
                "that name, rename it in the manifest's column source"
            )
    if html:
        from ..figures.report import write_html

        echo(f"report: {write_html(table, frame, folder, html, maps)}")
    if explain:
        shown = frame[frame["file"].map(place_of).isin(good["place"])]
        overlays = write_overlays(detectors.load(folder), shown, explain, perturbation)
        echo(f"overlays: {len(overlays)} in {explain}")
    if len(failed):
        raise typer.Exit(1)


def evaluate(
    tables: Annotated[list[Path], typer.Argument(metavar="SCORES...", help="Scores tables (CSV).")],
    out: Annotated[Path | None, typer.Option(help="All metrics as .csv or .json.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """Metrics with 95 % intervals, per generator, mean and minimum over the held-out ones.

    Of any detector's scores: a CSV with path, label (1 is fake) and score (P(fake)), and what else there is. Images
    that the run has met are left out; where it does not know, those of other splits than test.
    """
    from ..results.scores import held_out_rows, read_scores

    if out:
        check_output(out, METRICS, tables)
    parts = _apart({file: read_scores(file) for file in tables})
    for file, part in parts.items():
        if part["label"].isna().all():
            reason = "no image in it has a label" if len(part) else "it has no row"
            raise DataError(f"{file}: {reason}; score a manifest (`afp manifest`), not plain files")
    table = pd.concat(parts.values(), ignore_index=True)
    if unknown := int(table["label"].isna().sum()):
        echo(f"{unknown} of {len(table)} rows are left out (no label)", fg="yellow", err=True)
        table = table[table["label"].notna()]
    kept = held_out_rows(table)
    if len(kept) < len(table):
        away = table.drop(index=kept.index)
        why = away["role"].where(away["role"] != "", "split " + away["split"]).value_counts()
        counts = ", ".join(f"{n} {name}" for name, n in why.items())
        if kept.empty:
            raise DataError(
                f"no row to evaluate ({counts}): only images that a detector never met tell its worth"
            )
        echo(f"{len(away)} of {len(table)} rows are left out ({counts})", fg="yellow", err=True)
        if (away["role"] == "").all():
            mend = "score a manifest without --split to test a run on all images that it never met"
            echo(mend, fg="yellow", err=True)
    several = kept.groupby("detector")["run"].transform("nunique") > 1
    kept = kept.assign(detector=kept["detector"].mask(several, kept["run"]))
    print_metrics(kept, out, markdown)


def test(
    img_path: Annotated[Path | None, typer.Option("--img_path", "--img-path", help="One image.")] = None,
    real_dir: Annotated[
        Path | None, typer.Option("--real_dir", "--real-dir", help="Folder of real images.")
    ] = None,
    fake_dir: Annotated[
        Path | None, typer.Option("--fake_dir", "--fake-dir", help="Folder of fakes.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="Text file to append the result to.")] = None,
    run: RunOption = None,
) -> None:
    """AntifakePrompt's own command line: a verdict for one image, or accuracy and confusion over two folders."""
    from .. import detectors
    from ..data.layouts import make_manifest, read_places
    from ..data.manifest import from_files
    from ..results.scores import score_frame

    if bool(img_path) == bool(real_dir or fake_dir):
        raise DataError("give either --img_path, or --real_dir and/or --fake_dir")
    if log:
        check_output(log, LOG, [p for p in (img_path, real_dir, fake_dir) if p])
    folder = _run(run)
    detector = detectors.load(folder)
    if img_path:
        frame = from_files([img_path])
    else:
        places = [("real", real_dir)] if real_dir else [], [("fake", fake_dir)] if fake_dir else []
        listing = read_places(*places)
        frame, notes = make_manifest(listing, "stem")
        if listing.left_out:
            notes.append(f"{len(listing.left_out)} files are no images")
        for note in notes:
            echo(note, fg="yellow", err=True)
    table = score_frame(detector, frame, run=folder.name)
    failed, good = table[table["error"] != ""], table[table["error"] == ""]
    fake = good["verdict"] == "fake"
    lines = [f"run: {folder}"]
    if img_path:
        lines += [f"{row.path}: {row.verdict}, P(fake) {row.score:.3f}" for row in good.itertuples()]
    else:
        right = fake == good["label"].astype(bool)
        accuracy = f"{right.mean():.2%} of {len(good)}" if len(good) else "n/a, no image could be read"
        lines.append(f"overall accuracy: {accuracy}")
        for label, name in ((0, "real"), (1, "fake")):
            part = good["label"] == label
            if part.any():
                called = int(fake[part].sum())
                lines.append(f"{name} accuracy: {right[part].mean():.2%}")
                lines.append(f"  {name}: {int(part.sum()) - called} called real, {called} called fake")
    lines += [f"error: {message}" for message in failed["error"]]
    echo("\n".join(lines))
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n")
    if len(failed):
        raise typer.Exit(1)


def _apart(parts: dict[Path, pd.DataFrame]) -> dict[Path, pd.DataFrame]:
    """Tables in which another run, or another detector, has the same name: there its file goes before it."""
    names = Counter(name for part in parts.values() for name in part["run"].unique() if "@" not in name)
    for file, part in parts.items():
        twice = part["run"].map(names).fillna(0) > 1
        for column in ("run", "detector"):
            part[column] = part[column].mask(twice, f"{file}: " + part[column])
    return parts


def _keep_features(keep: bool, context: typer.Context) -> None:
    """Whether this command keeps the features that it extracts."""
    if not keep:
        from ..models.features import without_storing

        context.with_resource(without_storing())


def _thresholds(texts: list[str]) -> dict[str, float]:
    """Generator -> threshold, under "" for all that are not named."""
    found = {}
    for text in texts:
        generator, _, value = text.rpartition("=")
        try:
            found[generator] = float(value)
        except ValueError:
            found[generator] = float("nan")
        if not 0 <= found[generator] <= 1:
            raise DataError(f"--threshold: {text!r}, expected a number from 0 to 1, or GENERATOR=number")
    return found


def _run(run: Path | None) -> Path:
    from ..demo.tower import build_tower
    from ..results.runs import default_run

    if run is None:
        build_tower()
        run = default_run()
        echo(f"run: {run}", fg="bright_black", err=True)
    return run


def _frame(paths: list[Path]) -> tuple[pd.DataFrame, dict[str, str]]:
    from ..data.images import list_images
    from ..data.manifest import from_files, read_manifest

    tables = [p for p in paths if p.suffix.lower() in (".csv", ".parquet") and not p.is_dir()]
    files, skipped = list_images([p for p in paths if p not in tables], progress=True)
    frames = [read_manifest(p) for p in tables] + (
        [from_files(files, progress=True)] if files or not tables else []
    )
    frame = pd.concat(frames, ignore_index=True)
    return frame.drop_duplicates("file", ignore_index=True), skipped
