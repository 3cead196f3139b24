"""The papers' own results (`data/published/`), the averages behind them, and runs of one's own beside them.

Percentages throughout, as printed. A set of AntifakePrompt (arXiv 2310.17419) holds one class, and has the
accuracy on it; a set of CLIPping the Deception (arXiv 2402.12927) holds both, and has accuracy and AP.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import DataError
from ..paths import ROOT
from .metrics import check_scores, compute
from .scores import read_scores

FOLDER = ROOT / "data" / "published"
PAPER_BACKBONES = ("clipvitl14", "clipvitlargepatch14", "instructblipvicuna7b")
PAPER_TRAINING = frozenset({"progan", "sd2", "sd3", "sd2inpainting", "sd2ip", "lama"})
ALWAYS_FAKE = "always “fake”"
_MAIN = {
    "prompt tuning": "100000_16context_best_until_now",
    "adapter": "clipadapter_100k_real_fake_04_best",
    "fine-tuning": "finetuned_from_own_pc_1_epoch",
    "linear probing": "OursLinearProb",
    "UnivFD (Ojha 2023)": "OjhaCLIP",
    "Wang 2020 (0.1)": "WangResNet0.1",
    "Wang 2020 (0.5)": "WangResNet0.5",
}
_KEY = ["run", "perturbation", "test_set"]
_KINDS = ("GAN (training generator)", "GAN", "diffusion/transformer", "face manipulation", "commercial")


def antifakeprompt(folder: str | Path = FOLDER) -> pd.DataFrame:
    """AntifakePrompt's results table: 7 methods x 16 test sets, a row each.

    Columns: method, training_set, n_params, test_set, kind, seen_in_training (0/1), accuracy (%),
    published_average (% of the method, as printed). DataError: a column, a cell or a number is wrong.
    """
    table = _read(Path(folder) / "antifakeprompt.csv", ["method", "test_set"], ["accuracy"])
    printed = table[table["test_set"] == "average"].set_index("method")["accuracy"]
    table = table[table["test_set"] != "average"].drop(columns="source")
    table = table.assign(published_average=table["method"].map(printed))
    _check_full(table, "antifakeprompt.csv")
    return table.astype({"seen_in_training": int}).reset_index(drop=True)


def clipping(folder: str | Path = FOLDER) -> pd.DataFrame:
    """CLIPping the Deception's results: a row for each evaluation of a run on a test set.

    Columns: method, n_train_images (real + fake), n_context, shots_per_class_and_category, perturbation,
    test_set, kind, accuracy, f1, average_precision (%), run, source_file. A run stands twice where the
    authors evaluated it twice: see `one_copy`. DataError: as `antifakeprompt`.
    """
    numbers = ["accuracy", "f1", "average_precision"]
    table = _read(Path(folder) / "clipping_the_deception.csv", [*_KEY, "source_file"], numbers)
    if unknown := set(table["kind"]) - set(_KINDS):
        raise DataError(f"clipping_the_deception.csv: kind {min(unknown)!r}, expected one of {_KINDS}")
    return table.sort_values(
        "kind", key=lambda column: column.map(_KINDS.index), kind="stable", ignore_index=True
    )


def one_copy(rows: pd.DataFrame, prefer: str) -> pd.DataFrame:
    """One row for each run, perturbation and test set: from the folder `prefer` where it has one.

    The authors' folders repeat each other, and the CSV keeps one of two identical rows. So a set missing from
    `prefer` is taken from the other folder.
    """
    first = rows["source_file"].str.startswith(f"{prefer}/")
    kept = pd.concat([rows[first], rows[~first]]).drop_duplicates(_KEY)
    return kept.sort_index(kind="stable")


def main_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The 7 methods x 25 sets of the main table; `rows` as of `clipping`."""
    plain = rows[(rows["perturbation"] == "none") & rows["run"].isin(_MAIN.values())]
    table = one_copy(plain, "results")
    table = table.sort_values("method", key=lambda column: column.map(list(_MAIN).index), kind="stable")
    _check_full(table, "clipping_the_deception.csv, main table")
    return table.assign(seen_in_training=(table["test_set"] == "progan").astype(int)).reset_index(drop=True)


def training_size(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs on 20k to 80k images from `trainingsetcomparison/`, and the main table's 200k; four methods,
    16 context tokens."""
    ours = rows[rows["method"].isin(list(_MAIN)[:4]) & (rows["perturbation"] == "none")]
    ours = ours[ours["n_context"].isna() | (ours["n_context"] == 16)]
    smaller = one_copy(ours[ours["n_train_images"].between(1000, 199_999)], "trainingsetcomparison")
    return pd.concat([smaller, main_table(rows).query("n_train_images == 200000")], ignore_index=True)


def context_length(rows: pd.DataFrame) -> pd.DataFrame:
    """Prompt tuning with 4, 8 and 16 context tokens, on 24 sets."""
    file = "paper_results/coop_model_evaluations.json"
    return rows[rows["source_file"] == file].reset_index(drop=True)


def few_shot(rows: pd.DataFrame) -> pd.DataFrame:
    """Fine-tuning on 16 images a class and category (640), and on 200k."""
    few = rows[rows["shots_per_class_and_category"].notna()].assign(method="fine-tuning, 640 images")
    full = main_table(rows).query("method == 'fine-tuning'").assign(method="fine-tuning, 200k images")
    return pd.concat([few, full], ignore_index=True)


def robustness(rows: pd.DataFrame) -> pd.DataFrame:
    """Prompt tuning and fine-tuning under JPEG and blur, over the sets that all conditions share.

    Clean and JPEG rows are the main table's runs. The blur rows come from a run of another name
    (`..._100k`) whose clean rows are not published.
    """
    best = rows["run"].isin([_MAIN["prompt tuning"], *[_MAIN["fine-tuning"] + end for end in ("", "_100k")]])
    table = one_copy(rows[best], "paper_results")
    shared = set.intersection(
        *(set(part["test_set"]) for _, part in table.groupby(["method", "perturbation"]))
    )
    return table[table["test_set"].isin(shared)].reset_index(drop=True)


def averages(table: pd.DataFrame, by: str | list[str] = "method", commercial: bool = False) -> pd.DataFrame:
    """Mean of each percentage over the sets, and the worst set by accuracy, for each group.

    `commercial` keeps the three commercial generators, which CLIPping's averages leave out. Columns: `by`,
    n_sets, accuracy, average_precision (if there), worst, worst_set.
    """
    rows = table if commercial else table[table["kind"] != "commercial"]
    groups = rows.dropna(subset="accuracy").groupby(by, sort=False, dropna=False)
    found = groups.agg(n_sets=("test_set", "nunique"))
    names = [n for n in ("accuracy", "average_precision") if n in rows]
    worst = rows.loc[groups["accuracy"].idxmin()].set_index(found.index)
    found = found.join(groups[names].mean()).assign(worst=worst["accuracy"], worst_set=worst["test_set"])
    return found.reset_index()


def headlines(table: pd.DataFrame) -> pd.DataFrame:
    """Four means of the same row of AntifakePrompt's table, and of a detector that calls everything fake.

    Columns: method, all, held-out (sets not trained on), fakes only, balanced (the mean of the real sets' mean
    and the fake sets' mean), note (as of `beside`).
    """
    first = table[table["method"] == table["method"].iloc[0]]
    constant = first.assign(
        method=ALWAYS_FAKE, accuracy=100.0 * (first["kind"] != "real"), seen_in_training=0
    )
    found = []
    for method, rows in pd.concat([table, constant]).groupby("method", sort=False):
        real, accuracy = rows["kind"] == "real", rows["accuracy"]
        balanced = (accuracy[real].mean() + accuracy[~real].mean()) / 2
        found.append(
            {
                "method": method,
                "all": accuracy.mean(),
                "fakes only": accuracy[~real].mean(),
                "held-out": accuracy[rows["seen_in_training"] == 0].mean(),
                "balanced": balanced,
                "note": rows["note"].iloc[0] if "note" in rows else "",
            }
        )
    return pd.DataFrame(found)[["method", "all", "held-out", "fakes only", "balanced", "note"]]


def own_runs(folder: str | Path, tables: tuple[str, ...] = ("scores.csv",)) -> pd.DataFrame:
    """Every run in a folder (`<run>/config.json` and a scores table), measured as the papers measure; in %.

    The scores table is the first of `tables` that a run holds; notebook 06 writes `perturbed.csv` beside it.
    A row a run, perturbation and set of test images. Real images have `accuracy_one_class` alone: how many are
    called real, at .5. Fakes also have `accuracy` and `average_precision` against all photographs, weighted so
    that both classes count the same. `note` says what keeps a run from comparison with the papers: "other
    data" unless every fake set and training generator bears a paper's name, and a backbone that is not a
    paper's. DataError: no such folder, or nothing scored in it.
    """
    runs = sorted(path.parent for path in Path(folder).expanduser().glob("*/config.json"))
    scored = [next((run / table for table in tables if (run / table).is_file()), None) for run in runs]
    parts = [_measure(path) for path in scored if path]
    if not parts:
        raise DataError(f"own runs: no scores in {folder}; expected <run>/{tables[-1]} and its config.json")
    names = [part["method"].iloc[0] for part in parts]
    for part in parts:
        if names.count(name := part["method"].iloc[0]) > 1:
            part["method"] = f"{name} {part['run'].iloc[0].rsplit('-', 1)[-1][:4]}"
    return pd.concat(parts, ignore_index=True)


def beside(published: pd.DataFrame, own: pd.DataFrame | None) -> pd.DataFrame:
    """Published rows, then own ones under the papers' names of sets, with a column `note` ("" = published).

    Of own runs it takes what the table measures: accuracy on one class (AntifakePrompt), or accuracy and AP
    of fakes against photographs (CLIPping), under its perturbations.
    """
    published = published.assign(note="")
    if own is None:
        return published
    conditions = published.get("perturbation", ["none"])
    own = own[own["perturbation"].isin(conditions)]
    if "average_precision" in published:
        own = own.dropna(subset="average_precision")
    else:
        own = own.assign(accuracy=own["accuracy_one_class"])
    known = {_plain(name): name for name in published["test_set"].unique()}
    own = own.assign(test_set=[known.get(_plain(name), name) for name in own["test_set"]])
    columns = [column for column in own.columns if column in published]
    return pd.concat([published, own[columns]], ignore_index=True)


def _measure(scores: Path) -> pd.DataFrame:
    folder = scores.parent
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stamp = folder / "environment.json"
        fit = json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'config.json'}: not a readable run ({error})") from error
    table, rows = check_scores(read_scores(scores)), []
    table = table[~table["failed"] & ~table["split"].isin(["train", "validation"])]
    if table.empty:
        raise DataError(f"{scores}: no scored test image")
    for perturbation, block in table.groupby("perturbation"):
        real = block[(block["label"] == 0) & (block["generator"] != "real-resampled")]
        for (label, group), part in block.groupby(["label", "group"]):
            row = {
                "label": label,
                "kind": part["kind"].iloc[0],
                "perturbation": _perturbation(perturbation),
                "test_set": group,
                "seen_in_training": int(part["seen"].max()) if label else 0,
            }
            row["accuracy_one_class"] = 100 * ((part["score"] >= 0.5) == label).mean()
            if label and len(real):
                both = pd.concat([part, real])
                weights = np.repeat([1 / len(part), 1 / len(real)], [len(part), len(real)])
                found = compute(both["label"], both["score"], weights=weights)
                row |= {"accuracy": 100 * found["accuracy"], "average_precision": 100 * found["ap"]}
            rows.append(row)
    backbone = config["config"].get("backbone", "none")
    sets = {row["test_set"] for row in rows if row["kind"] != "real"}
    published = {_plain(name) for of in (antifakeprompt(), clipping()) for name in of["test_set"]}
    known = {_plain(name) for name in config["generators"]} <= PAPER_TRAINING
    known &= {_plain(name) for name in sets} <= published
    same = any(name in _plain(backbone) for name in PAPER_BACKBONES)
    other = "no backbone" if backbone == "none" else f"other backbone ({Path(backbone).name})"
    note = [text for text, differs in (("other data", not known), (other, not same)) if differs]
    about = {
        "method": config["detector"],
        "run": folder.name,
        "backbone": backbone,
        "n_params": config["n_trainable"],
        "n_train_images": fit.get("n_train", np.nan),
    }
    ordered = pd.DataFrame(rows).sort_values(["label", "kind"], kind="stable").drop(columns="label")
    return ordered.assign(**about, note=", ".join(note) or "own run")


def _perturbation(spec: str) -> str:
    """`jpeg:75` in the papers' words, `jpeg 75`."""
    return spec.replace("blur:", "gaussian blur sigma ").replace("jpeg:", "jpeg ")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _read(path: Path, key: list[str], percentages: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable table ({error})") from error
    needed = [*key, *percentages, "method", "test_set", "kind"]
    if missing := [column for column in needed if column not in table]:
        raise DataError(f"{path.name}: columns missing: {', '.join(missing)}")
    for column in percentages:
        values = pd.to_numeric(table[column], errors="coerce")
        if (bad := ~values.between(0, 100)).any():
            row = table.index[bad][0]
            raise DataError(
                f"{path.name}, line {row + 2}: {column} is {table.at[row, column]}, "
                "expected a percentage from 0 to 100"
            )
    if (twice := table.duplicated(key)).any():
        raise DataError(f"{path.name}: {table.loc[twice, key].iloc[0].to_dict()} is there twice")
    return table


def _check_full(table: pd.DataFrame, name: str) -> None:
    found = table.groupby("method")["test_set"].nunique()
    if (found != table["test_set"].nunique()).any():
        raise DataError(f"{name}: sets a method {found.to_dict()}, expected {table['test_set'].nunique()}")
