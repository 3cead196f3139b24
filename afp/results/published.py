"""The papers' own results (`data/published/`), the averages behind them, and runs of one's own beside them.

Percentages throughout, as printed. A set of AntifakePrompt (arXiv 2310.17419) holds one class, and has the
accuracy on it; a set of CLIPping the Deception (arXiv 2402.12927) holds both, and has accuracy and AP.
What the papers claim, and whether their numbers and the demo's bear it out: `data/build/claims.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..detectors.base import read_config
from ..errors import DataError
from ..files import read_json
from ..paths import ROOT
from .metrics import CONTROLS, check_scores, compute
from .scores import held_out_rows, read_scores

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
SD2, SD2IP = "COCO vs SD2", "COCO vs SD2+SD2IP"
_PRINTED = {"AntifakePrompt": "qformer+llm", "InstructBLIP + LoRA": "lora-llm"}
_TEXTS = {"qformer+llm": "both texts", "qformer": "Q-Former's text", "llm": "language model's text"}
_LOGS = r"SD2_postfix|SD2_SD2IP_\d+k?_(postfix|prefix|replace)"
_LORA_LOG = "SD2_SD2IP_90k_loraOnLLM"


def antifakeprompt(version: int = 2) -> pd.DataFrame:
    """AntifakePrompt's results table, a row a method and test set.

    Args:
        version: of the paper; 2 has 7 methods on 16 sets, 3 has 18 models on 23 and no numbers of parameters.
    Returns:
        Columns method, training_set, n_params, test_set, kind, seen_in_training (0/1), accuracy (%),
        published_average (% of the method, as printed).
    """
    table = pd.read_csv(FOLDER / ("antifakeprompt.csv" if version == 2 else f"antifakeprompt_v{version}.csv"))
    if "weights" in table:  # version 3 has some rivals twice
        rival = (table["weights"] == "fine-tuned") & ~table["method"].str.match("InstructBLIP|AntifakePrompt")
        table["method"] += pd.Series(", fine-tuned", table.index).where(rival, "")
    printed = table[table["test_set"] == "average"].set_index("method")["accuracy"]
    table = table[table["test_set"] != "average"].reset_index(drop=True)
    table = table.assign(published_average=table["method"].map(printed))
    columns = ["method", "training_set", "n_params", "test_set", "kind", "seen_in_training", "accuracy"]
    return table.reindex(columns=[*columns, "published_average"]).astype({"seen_in_training": int})


def clipping() -> pd.DataFrame:
    """CLIPping the Deception's results: a row for each evaluation of a run on a test set.

    Columns: method, n_train_images (real + fake), n_context, shots_per_class_and_category, perturbation
    (as `afp.data.preprocess` writes it: none, jpeg:75, blur:2), test_set, kind, accuracy, f1, average_precision
    (%), run, source_file. A run stands twice where the authors evaluated it twice: see `one_copy`.
    """
    table = pd.read_csv(FOLDER / "clipping_the_deception.csv")
    words = table["perturbation"].str.replace("gaussian blur sigma", "blur").str.replace(" ", ":")
    order = table["kind"].map(_KINDS.index).sort_values(kind="stable").index
    return table.assign(perturbation=words).loc[order].reset_index(drop=True)


def ablations() -> pd.DataFrame:
    """Runs of AntifakePrompt's authors on the final test sets: their own logs, and the printed row (90k, postfix).

    Of each log the answers of the tuned model (with the pseudo-word, or with LoRA on the language model) and the
    last evaluation; no scratch logs, no earlier test images, no run that does not say what it was trained on.

    Returns:
        Columns log ("printed" for the paper's rows), training_set, n_real (photographs in training), position (of
        the pseudo-word), text (that has it), test_set, kind, accuracy (%).
    """
    logs, main = pd.read_csv(FOLDER / "antifakeprompt_ablations.csv"), antifakeprompt()
    kinds = main.drop_duplicates("test_set").set_index("test_set")["kind"]
    tuned = logs["log"].str.match(_LOGS) & logs["question"].eq("tuned") | logs["log"].str.match(_LORA_LOG)
    final = logs["test_set"].isin(kinds.index) & (logs["n_images"] == 3000) & (logs["subset"] != "uncommon")
    logs = logs[tuned & final & ~logs["note"].str.contains("earlier version", na=False)]
    logs = logs[logs["checkpoint"] == logs.groupby("log")["checkpoint"].transform("max")]
    last = logs.assign(day=logs["run_date"].str.split().str[-1]).sort_values("day", kind="stable")
    last = last.drop_duplicates(["log", "test_set"], keep="last").rename(columns={"n_training": "n_real"})
    printed = main[main["method"].isin(_PRINTED)].assign(log="printed", n_real=90_000, position="postfix")
    printed = printed.assign(training_set=SD2IP, trained=printed["method"].map(_PRINTED))
    found = pd.concat([printed, last], ignore_index=True)
    found = found.assign(kind=found["test_set"].map(kinds), text=found["trained"].replace(_TEXTS))
    return found[["log", "training_set", "n_real", "position", "text", "test_set", "kind", "accuracy"]]


def ablation_answers(runs: pd.DataFrame) -> pd.DataFrame:
    """What `ablations` answer on all 16 test sets: rows of question, variant, test_set, kind, accuracy, note ("").

    A question has one variable: where the word stands, which text has it (at the nearest sizes that were logged),
    whose fakes it was trained on, and what is printed of the LoRA run beside its log.
    """
    size = (runs["n_real"] / 1000).map("{:g}k".format)
    ninety = (runs["text"] == "both texts") & (runs["n_real"] == 90_000)
    one_text = (runs["text"] == "Q-Former's text") & runs["n_real"].isin([60_000, 120_000])
    printed = ninety & (runs["log"] == "printed")
    lora = runs["text"] == "lora-llm"
    questions = {
        "position of [*]": runs[ninety].assign(variant=runs["position"]),
        "which text has [*]": runs[printed | one_text].assign(variant=runs["text"] + ", " + size),
        "fakes in training": runs[printed | (runs["training_set"] == SD2)].assign(
            variant=runs["training_set"].str.removeprefix("COCO vs ")
        ),
        "LoRA's row": runs[lora].assign(variant=runs["log"].where(runs["log"] == "printed", "logged")),
    }
    found = pd.concat([rows.assign(question=question) for question, rows in questions.items()])
    found = found.drop_duplicates(["question", "variant", "test_set"]).assign(note="")
    return found[["question", "variant", "test_set", "kind", "accuracy", "note"]].reset_index(drop=True)


def ablation_sizes(runs: pd.DataFrame) -> pd.DataFrame:
    """DeeperForensics, the one set that was logged for every size, by the text that has the word (postfix)."""
    rows = runs[(runs["test_set"] == "DeeperForensics") & (runs["position"] == "postfix")]
    rows = rows[(rows["training_set"] == SD2IP) & rows["text"].isin(_TEXTS.values())]
    rows = rows.drop_duplicates(["text", "n_real"]).sort_values("n_real", kind="stable")
    return rows.assign(note="").reset_index(drop=True)


def one_copy(rows: pd.DataFrame, prefer: str) -> pd.DataFrame:
    """One row for each run, perturbation and test set: from the folder `prefer` where it has one.

    The authors' folders repeat each other, and the CSV keeps one of two identical rows. So a set missing from
    `prefer` is taken from the other folder.
    """
    first = rows["source_file"].str.startswith(f"{prefer}/")
    return pd.concat([rows[first], rows[~first]]).drop_duplicates(_KEY).sort_index(kind="stable")


def main_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The 7 methods x 25 sets of the main table; `rows` as of `clipping`."""
    plain = rows[(rows["perturbation"] == "none") & rows["run"].isin(_MAIN.values())]
    table = one_copy(plain, "results")
    table = table.sort_values("method", key=lambda column: column.map(list(_MAIN).index), kind="stable")
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


def fine_tuning(rows: pd.DataFrame) -> pd.DataFrame:
    """Fine-tuning on 200k images, on 16 a class and category (640), and its weights mixed with CLIP's own.

    The two mixtures (weight ensembles 03 and 04) were tested on 20 of the 25 sets.
    """
    full = main_table(rows).query("method == 'fine-tuning'").assign(method="200k images")
    few = rows[rows["shots_per_class_and_category"].notna()].assign(method="640 images")
    mixed = rows[rows["method"].str.startswith("weight ensemble")]
    return pd.concat([full, few, mixed], ignore_index=True)


def robustness(rows: pd.DataFrame) -> pd.DataFrame:
    """Prompt tuning and fine-tuning under JPEG and blur, over the sets that all conditions share.

    Clean and JPEG rows are the main table's runs. The blur rows come from a run of another name
    (`..._100k`) whose clean rows are not published.
    """
    best = rows["run"].isin([_MAIN["prompt tuning"], *[_MAIN["fine-tuning"] + end for end in ("", "_100k")]])
    table = one_copy(rows[best], "paper_results")
    n_conditions = len(table[["method", "perturbation"]].drop_duplicates())
    return table[table.groupby("test_set")["run"].transform("size") == n_conditions].reset_index(drop=True)


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

    That detector's are over the published sets, whatever own runs stand beside them.

    Columns: method, all, held-out (sets not trained on), fakes only, balanced (the mean of the real sets' mean
    and the fake sets' mean), note (as of `beside`).
    """
    published = table[table["note"] == ""] if "note" in table else table
    constant = published.drop_duplicates("test_set").assign(method=ALWAYS_FAKE, seen_in_training=0)
    constant["accuracy"] = 100.0 * (constant["kind"] != "real")
    rows = pd.concat([table, constant])
    real, held_out = rows["kind"] == "real", rows["seen_in_training"] == 0
    parts = {"all": rows, "held-out": rows[held_out], "fakes only": rows[~real], "real": rows[real]}
    means = {name: part.groupby("method", sort=False)["accuracy"].mean() for name, part in parts.items()}
    found = pd.DataFrame(means)
    found["balanced"] = (found.pop("real") + found["fakes only"]) / 2
    notes = rows.groupby("method", sort=False)["note"].first() if "note" in rows else ""
    return found.assign(note=notes).fillna({"note": ""}).reset_index()


def own_runs(folder: str | Path, tables: tuple[str, ...] = ("scores.csv",)) -> pd.DataFrame:
    """Every run in a folder (`<run>/config.json` and a scores table), measured as the papers measure; in %.

    A row a run, perturbation and set of test images. Real images have `accuracy_one_class` alone: how many are
    called real, at .5. Fakes also have `accuracy` and `average_precision` against all photographs, weighted so
    that both classes count the same. `method` is the detector's name, with the settings in which runs of it
    differ. `note` says what keeps a run from comparison with the papers: one answer to every image, "other data"
    unless every fake set and training generator bears a paper's name, a backbone that is not a paper's.

    Args:
        tables: the scores table is the first of these that a run holds. Notebook 06 writes `perturbed.csv`; that
            of a cross-fitted run holds fold 0 alone.
    Raises:
        DataError: no such folder, or nothing scored in it.
        ModelError: a config that cannot be read.
    """
    runs = sorted(path.parent for path in Path(folder).expanduser().glob("*/config.json"))
    scored = [next((run / table for table in tables if (run / table).is_file()), None) for run in runs]
    configs = {path: read_config(path.parent) for path in scored if path}
    if not configs:
        raise DataError(f"own runs: no scores in {folder}; expected <run>/{tables[-1]} and its config.json")
    names = _run_names(configs)
    return pd.concat([_measure(path, configs[path], names[path]) for path in configs], ignore_index=True)


def _run_names(configs: dict[Path, dict[str, Any]]) -> dict[Path, str]:
    """Detectors' names with the settings in which their runs differ; where those do not tell, with the hash."""
    names = {}
    for path, config in configs.items():
        peers = [other["config"] for other in configs.values() if other["detector"] == config["detector"]]
        own = {k: v for k, v in config["config"].items() if any(peer.get(k) != v for peer in peers)}
        names[path] = ", ".join([config["detector"], *(f"{k} {v}" for k, v in own.items())])
    counts = Counter(names.values())
    return {p: f"{name} {p.parent.name[-8:]}" if counts[name] > 1 else name for p, name in names.items()}


def beside(published: pd.DataFrame, own: pd.DataFrame | None) -> pd.DataFrame:
    """Published rows, then own ones under the papers' names of sets, with a column `note` ("" = published).

    Of own runs it takes what the table measures: accuracy on one class (AntifakePrompt), or accuracy and AP
    of fakes against photographs (CLIPping), under its perturbations. Where two sets of a run would bear one paper's
    name, both keep their own.
    """
    published = published.assign(note="")
    if own is None:
        return published
    own = own[own["perturbation"].isin(published.get("perturbation", ["none"]))]
    if "average_precision" in published:
        own = own.dropna(subset="average_precision")
    else:
        own = own.assign(accuracy=own["accuracy_one_class"])
    known = {_plain(name): name for name in published["test_set"].unique()}
    renamed = own.assign(test_set=[known.get(_plain(name), name) for name in own["test_set"]])
    twice = renamed.duplicated(["method", "perturbation", "test_set"], keep=False)
    own = renamed.assign(test_set=renamed["test_set"].mask(twice, own["test_set"]))
    columns = [column for column in own.columns if column in published]
    return pd.concat([published, own[columns]], ignore_index=True)


def _measure(scores: Path, config: dict[str, Any], name: str) -> pd.DataFrame:
    table, rows = check_scores(held_out_rows(read_scores(scores))), []
    table = table[~table["failed"]]
    if table.empty:
        raise DataError(f"{scores}: no scored test image")
    for perturbation, block in table.groupby("perturbation"):
        real = block[(block["label"] == 0) & (~block["generator"].isin(CONTROLS))]
        for (label, group), part in block.groupby(["label", "group"]):
            row = {"label": label, "kind": part["kind"].iloc[0], "test_set": group}
            row |= {"perturbation": perturbation, "seen_in_training": int(part["seen"].max()) if label else 0}
            row["accuracy_one_class"] = 100 * ((part["score"] >= 0.5) == label).mean()
            row |= {"accuracy": np.nan, "average_precision": np.nan}
            if label and len(real):
                both = pd.concat([part, real])
                weights = np.repeat([1 / len(part), 1 / len(real)], [len(part), len(real)])
                found = compute(both["label"], both["score"], weights=weights)
                row |= {"accuracy": 100 * found["accuracy"], "average_precision": 100 * found["ap"]}
            rows.append(row)
    backbone = config["config"].get("backbone", "none")
    about = {"method": name, "run": scores.parent.name, "backbone": backbone}
    about["n_params"] = config.get("n_trainable", np.nan)
    about["n_train_images"] = (read_json(scores.parent / "environment.json") or {}).get("n_train", np.nan)
    ordered = pd.DataFrame(rows).sort_values(["label", "kind"], kind="stable").drop(columns="label")
    return ordered.assign(**about, note=_note(ordered, config, table["score"] >= 0.5))


def _note(rows: pd.DataFrame, config: dict[str, Any], called_fake: pd.Series) -> str:
    """What keeps a run from comparison with the papers."""
    backbone = config["config"].get("backbone", "none")
    published = {_plain(name) for of in (antifakeprompt(), clipping()) for name in of["test_set"]}
    fakes = {_plain(name) for name in rows.loc[rows["kind"] != "real", "test_set"]}
    notes = []
    if called_fake.nunique() == 1:
        notes.append(ALWAYS_FAKE if called_fake.iloc[0] else "always “real”")
    if not ({_plain(name) for name in config["generators"]} <= PAPER_TRAINING and fakes <= published):
        notes.append("other data")
    if not any(paper in _plain(backbone) for paper in PAPER_BACKBONES):
        notes.append("no backbone" if backbone == "none" else f"other backbone ({Path(backbone).name})")
    return ", ".join(notes) or "own run"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
