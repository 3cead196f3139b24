"""What happens to a detector when images are compressed, blurred or scaled: scores, losses, tables.

A detector can fail in two ways. Its *ranking* may be lost: fakes no longer score higher than photographs, which
the AUC shows. Or all scores may move together past the threshold: the ranking stays, the accuracy falls, and a
threshold chosen anew under the same perturbation mends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from ..data.preprocess import check_perturbation
from ..data.splits import N_FOLDS, use_fold
from ..detectors.operating_point import choose_threshold
from ..results.metrics import paired_difference
from ..results.runs import fold_folder
from ..results.scores import score_to_csv
from ..results.tables import TITLES, cells


def check_perturbations(specs: Sequence[str] | str) -> list[str]:
    """Perturbations (a list, or text separated by commas) in canonical form, ``none`` first, each once.

    Raises:
        ValueError: a bad one, by name (see `afp.data.preprocess.check_perturbation`).
    """
    parts = specs.split(",") if isinstance(specs, str) else specs
    return list(dict.fromkeys(["none", *(check_perturbation(part.strip()) for part in parts)]))


def score_folds(
    folder: str | Path, frame: pd.DataFrame, specs: Sequence[str], progress: bool = True
) -> pd.DataFrame:
    """Scores under each perturbation by a cross-fitted run: each image by the fold that never saw its photograph.

    The scores stay in ``perturbed.csv`` beside each fold's detector, so a second call takes seconds.

    Args:
        folder: a run of `afp.results.runs.cross_fit`, of any detector.
        frame: rows of the run's manifest (or some of them), with its splits.
        specs: perturbations, see `afp.data.preprocess`.
    Returns:
        A scores table with one more column, ``threshold_anew``: the threshold chosen on the same validation
        photographs under the same perturbation. ``threshold`` is the one chosen on clean images.
    Raises:
        ValueError: a bad perturbation, before any work. ModelError: no cross-fitted run there.
    """
    folder, specs = Path(folder), check_perturbations(specs)
    tables = []
    for k in tqdm(range(N_FOLDS), desc=f"{folder.name} folds", disable=not progress):
        detector = fold_folder(folder, k)
        part = use_fold(frame, k)
        part = part[part["split"].isin(["test", "validation"])]
        for spec in specs:
            out = detector / "perturbed.csv"
            table = score_to_csv(detector, part, out, perturbation=spec, progress=False)
            validation = table[(table["split"] == "validation") & table["score"].notna()]
            anew = choose_threshold(validation["label"], validation["score"])
            tables.append(table[table["split"] == "test"].assign(fold=k, threshold_anew=anew))
    return pd.concat(tables, ignore_index=True).assign(run=folder.name)


def losses(scores: pd.DataFrame, *, n_boot: int = 1000) -> pd.DataFrame:
    """What each perturbation costs, with 95 % intervals paired by image and photograph.

    Args:
        scores: tables of `score_folds`, one or several detectors, ``none`` among the perturbations.
    Returns:
        Rows of detector, perturbation, loss, value, low, high (positive: worse than clean); ``loss`` is
        "AUC", "accuracy, clean threshold" or "accuracy, new threshold" (at ``threshold_anew``, against the clean
        accuracy).
    """
    rows = []
    for detector, table in scores.groupby("detector", sort=False):
        clean = table[table["perturbation"] == "none"]
        for spec in [s for s in table["perturbation"].unique() if s != "none"]:
            changed = table[table["perturbation"] == spec].assign(perturbation="none")
            anew = changed.assign(threshold=changed["threshold_anew"])
            for loss, after, metric in (
                ("AUC", changed, "auc"),
                ("accuracy, clean threshold", changed, "accuracy_val"),
                ("accuracy, new threshold", anew, "accuracy_val"),
            ):
                found = paired_difference(clean, after, metric, kind="all", n_boot=n_boot)
                rows.append({"detector": detector, "perturbation": spec, "loss": loss, **vars(found)})
    return pd.DataFrame(rows)


def gains(before: pd.DataFrame, after: pd.DataFrame, *, n_boot: int = 1000) -> pd.DataFrame:
    """What a remedy changes under each perturbation: after - before, paired; AUC and accuracy.

    Returns:
        Rows of perturbation, metric, value, low, high (positive: the remedy helps).
    """
    rows = []
    for spec in before["perturbation"].unique():
        a, b = (table[table["perturbation"] == spec] for table in (after, before))
        for metric in ("auc", "accuracy_val"):
            found = paired_difference(a, b, metric, kind="all", n_boot=n_boot)
            rows.append({"perturbation": spec, "metric": metric, **vars(found)})
    return pd.DataFrame(rows)


def robustness_table(results: pd.DataFrame, metrics: Sequence[str] = ("auc", "accuracy_val")) -> pd.DataFrame:
    """A row a detector and metric, a column a perturbation: the mean over held-out generators, with intervals.

    Args:
        results: `afp.results.metrics.evaluate` of scores under several perturbations.
    Returns:
        Text columns, against photographs: detector, metric, clean, and one for each perturbation. Where held-out
        generators are of several kinds, each kind has its own rows, named in a column ``kind``.
    """
    rows = results[(results["group"] == "mean held-out") & results["metric"].isin(metrics)]
    rows = rows[rows["against"] == ("real" if (rows["against"] == "real").any() else "")]
    several = rows["kind"].nunique() > 2  # "all" is one of them
    rows = rows[(rows["kind"] != "all") == several]
    rows = rows.sort_values(["detector", "n_fake"], ascending=[True, False], kind="stable")
    specs = sorted(rows["perturbation"].unique(), key=perturbation_order)
    whose = ["detector", "kind"] if several else ["detector"]
    wide = rows.assign(cell=cells(rows)).pivot(
        index=[*whose, "metric"], columns="perturbation", values="cell"
    )
    order = [(*of, m) for of in rows[whose].drop_duplicates().itertuples(index=False) for m in metrics]
    wide = wide.reindex(index=order, columns=specs).fillna("").rename(columns=perturbation_title)
    return wide.rename_axis(columns=None).rename(index=TITLES, level="metric").reset_index()


def perturbation_title(spec: str) -> str:
    """A perturbation in words for a table or an axis: ``jpeg:50`` is "JPEG 50", ``none`` is "clean"."""
    words = "clean" if spec == "none" else spec.replace("jpeg", "JPEG").replace("webp", "WEBP")
    return words.replace(":", " ").replace("+", " + ")


def perturbation_level(spec: str) -> tuple[str, float]:
    """Family and strength of a single perturbation, as in ("jpeg", 50.0); a chain is a family of its own."""
    name, _, value = spec.partition(":")
    return (name, float(value)) if value and "+" not in spec else (spec, 0.0)


def perturbation_order(spec: str) -> tuple[int, str, float]:
    """Sorting key of perturbations: clean, JPEG, blur, others, chains; each from mild to hard."""
    family, value = perturbation_level(spec)
    places = {"none": 0, "jpeg": 1, "blur": 2}
    # A lower JPEG or WEBP quality, a smaller scale or crop is the harder case; of blur and noise the larger.
    return (
        places.get(family, 4 if "+" in spec else 3),
        family,
        value * (1 if family in ("blur", "noise") else -1),
    )
