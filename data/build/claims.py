"""What the two papers claim, recomputed from their own tables, and what the demo's scores say: docs/claims.md.

`python data/build/claims.py` writes the page.
"""

from __future__ import annotations

import re

import pandas as pd

from afp.files import write_text
from afp.paths import ROOT
from afp.results import published
from afp.results.metrics import paired_difference
from afp.results.scores import read_scores
from afp.results.tables import to_markdown

FILE = ROOT / "docs" / "claims.md"
METRICS = {"auc": "AUC", "ap": "AP", "accuracy_val": "accuracy at the validation threshold"}
PAGE = """# What the papers claim, and what their numbers and the demo say

Recomputed: from `data/published/*.csv`, in percent; *held-out* leaves out what a row was trained on.
The demo: differences on held-out generators, paired by image, with 95 % intervals over photographs, from
`data/results/*.csv.gz`. Its models are small stand-ins (`demo-vlm`, `demo-clip`): it says what a method does *here*.
An interval that holds zero decides nothing.

Made by `python data/build/claims.py`. Notebook 09 opens with the same table.

"""


def page() -> str:
    """The claims with the places where they are made (`data/published/claims.csv`), and what is recomputed."""
    table = pd.read_csv(published.FOLDER / "claims.csv", dtype=str, keep_default_na=False)
    numbers = recomputed_numbers()

    def fill(text: str) -> str:
        return re.sub(r"\{([^{}]*):([^:{}]*)\}", lambda found: format(numbers[found[1]], found[2]), text)

    shown = table[["claim", "where"]].assign(recomputed=table["recomputed"].map(fill))
    pairs = table[["first", "second", "metric"]].to_numpy()
    shown["the demo"] = [demo_difference(*pair) if pair[0] else "not tested" for pair in pairs]
    return PAGE + to_markdown(shown.assign(notebook=table["notebook"]))


def recomputed_numbers() -> dict[str, float]:
    """Every number behind the papers' claims, by a name in words; percent."""
    numbers: dict[str, float] = {}
    for version in (2, 3):
        table = published.antifakeprompt(version)
        means = published.headlines(table).drop(columns="note").set_index("method")
        for mean, method in (("same sets", "AntifakePrompt"), ("unseen by both", "AntifakePrompt + LaMa")):
            unseen = table[(table["method"] == method) & (table["seen_in_training"] == 0)]
            same = table[table["test_set"].isin(unseen["test_set"])]
            means[mean] = same.groupby("method")["accuracy"].mean()
        numbers |= {f"v{version} {mean}, {method}": x for (mean, method), x in means.unstack().items()}
    cells = published.ablation_answers(published.ablations())
    names = {("LoRA's row", way): "LoRA {}, " + way for way in ("printed", "logged")}
    names |= {("fakes in training", "SD2"): "SD2 alone, {}"}
    names |= {("fakes in training", "SD2+SD2IP"): "SD2 and inpainting, {}"}
    for question, variant, test_set, accuracy in cells[
        ["question", "variant", "test_set", "accuracy"]
    ].to_numpy():
        if (question, variant) in names:
            numbers[names[question, variant].format(test_set)] = accuracy
    rows = published.clipping()
    main = published.main_table(rows)
    sizes = published.training_size(rows)
    sizes = sizes.assign(where=(sizes["n_train_images"] // 1000).map("{:.0f}k".format))
    parts = [sizes, main[main["kind"] == "commercial"].assign(where="commercial", kind="")]
    jpeg = published.robustness(rows)
    parts += [main.assign(where="main"), jpeg.assign(where=jpeg["perturbation"])]
    together = pd.concat(parts, ignore_index=True)
    for metric, column in (("accuracy", "accuracy"), ("AP", "average_precision")):
        means = published.averages(together, ["method", "where"]).set_index(["method", "where"])[column]
        numbers |= {f"{metric}, {method}, {where}": x for (method, where), x in means.items()}
        over = means["prompt tuning", "main"] - means["UnivFD (Ojha 2023)", "main"]
        numbers[f"{metric}, prompt tuning over UnivFD"] = over
        lead = (means["linear probing"] - means["prompt tuning"]).dropna()
        numbers |= {f"{metric}, probing over prompt, {where}": x for where, x in lead.items()}
    return numbers


def demo_difference(first: str, second: str, metric: str) -> str:
    """`first` - `second` on the demo's held-out generators, in words, by kind of generator."""
    a, b = (read_scores(ROOT / "data" / "results" / f"{name}.csv.gz") for name in (first, second))
    kinds = a.loc[(a["label"] == 1) & (a["seen"] == 0), "kind"].value_counts().index
    parts = [f"{kind} {paired_difference(a, b, metric, kind=kind):+.2f}" for kind in kinds]
    return f"{first} - {second}, {METRICS[metric]}: {'; '.join(parts)}"


if __name__ == "__main__":
    print(f"{write_text(FILE, page())}")
