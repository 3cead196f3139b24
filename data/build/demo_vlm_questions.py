"""Questions about the pretraining pictures, and their answers, drawn so that `yes` is right half of the
time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from demo_vlm_changes import ALIKE, CHANGES
from demo_vlm_data import COLORS, MEASURED

CHANGE_WORDS = [c for c in CHANGES if c != "nothing"]
MEASURED_WORDS = [word for pair in MEASURED.values() for word in pair]
OTHER_WORDS = [
    "is",
    "this",
    "photo",
    "real",
    "not",
    "and",
    "or",
    "what",
    "was",
    "done",
    "to",
    "color",
    "which",
]
ANSWER_WORDS = ["yes", "no", "nothing"]
PUNCTUATION = ["?", ".", ",", "[", "]", "*"]
WORDS = OTHER_WORDS + ANSWER_WORDS + CHANGE_WORDS + MEASURED_WORDS + list(COLORS) + PUNCTUATION
# Kinds of questions and how often each is asked; `SIMPLE` is the first lesson.
SIMPLE = {"single": 0.6, "change": 0.25, "color": 0.1, "real": 0.05}
ALL = {
    "single": 0.25,
    "change": 0.15,
    "color": 0.05,
    "real": 0.05,
    "not": 0.1,
    "and": 0.05,
    "or": 0.05,
    "real and": 0.25,
    "prefix": 0.05,
}


def truths(table: pd.DataFrame, quantiles: pd.DataFrame) -> pd.DataFrame:
    """What is true of each picture: one column a word, 1 yes, 0 no, NaN cannot be told.

    `table` has `kind`, `change` and the columns of `measure`; `quantiles` holds the third and two-third
    quantile (rows) of each measured property (columns): what lies between them is neither.
    """
    found = {"real": (table["kind"] == "photo").astype(float)}
    for word in CHANGE_WORDS:
        alike = set().union(*(group for group in ALIKE if word in group)) - {word}
        found[word] = (table["change"] == word).astype(float).mask(table["change"].isin(alike))
    for name, (high, low) in MEASURED.items():
        is_high = table[name] > quantiles[name].iloc[1]
        between = ~is_high & (table[name] >= quantiles[name].iloc[0])
        found[high], found[low] = is_high.astype(float).mask(between), (~is_high).astype(float).mask(between)
    return pd.DataFrame(found)


class Questions:
    """Draws (picture, question, answer) triples over the pictures of one table."""

    def __init__(self, table: pd.DataFrame, quantiles: pd.DataFrame):
        self.change, self.color = table["change"].to_numpy(), table["color"].to_numpy()
        facts = truths(table, quantiles)
        self.words = list(facts)
        self.facts = facts.to_numpy()
        self.rows = {
            (w, t): np.flatnonzero(facts[w] == t) for w in self.words for t in (0, 1) if (facts[w] == t).any()
        }
        self.askable = [w for w in self.words if (w, 0) in self.rows and (w, 1) in self.rows and w != "real"]

    def draw(self, kind: str, rng: np.random.Generator) -> tuple[int, str, str]:
        """One question of this kind: (row of the picture, question, answer)."""
        if kind == "change":
            row = int(rng.integers(len(self.change)))
            return row, "what was done to this photo?", self.change[row]
        if kind == "color":
            row = int(rng.integers(len(self.color)))
            return row, "which color is this photo?", self.color[row]
        word, wanted = str(rng.choice(self.askable)), int(rng.integers(2))
        if kind == "real":
            return self._answer(int(rng.choice(self.rows["real", wanted])), "is this photo real?", wanted)
        row = int(rng.choice(self.rows[word, wanted]))
        if kind == "single":
            return self._answer(row, f"is this photo {word}?", wanted)
        if kind == "not":
            return self._answer(row, f"is this photo not {word}?", not wanted)
        if kind in ("real and", "prefix"):
            text = f"is this photo real {word}?" if kind == "real and" else f"{word} is this photo real?"
            return self._answer(row, text, wanted and self.facts[row, self.words.index("real")] == 1)
        other = self._other(row, word, rng)
        second = self.facts[row, self.words.index(other)] == 1
        truth = (wanted and second) if kind == "and" else (wanted or second)
        return self._answer(row, f"is this photo {word} {kind} {other}?", truth)

    def _other(self, row: int, word: str, rng: np.random.Generator) -> str:
        """Another word whose truth is known for the picture, true or false with the same chance."""
        for truth in rng.permutation([0, 1]):
            known = [self.words[i] for i in np.flatnonzero(self.facts[row] == truth) if self.words[i] != word]
            if known:
                break
        return str(rng.choice(known))

    @staticmethod
    def _answer(row: int, text: str, truth) -> tuple[int, str, str]:
        return row, text, "yes" if truth else "no"

    def batch(self, seeds: Sequence[int], mix: dict[str, float]) -> tuple[list[int], list[str], list[str]]:
        """One triple a seed, kinds drawn from `mix`, as three lists."""
        drawn = []
        for seed in seeds:
            rng = np.random.default_rng(int(seed))
            drawn.append(self.draw(str(rng.choice(list(mix), p=list(mix.values()))), rng))
        rows, texts, answers = zip(*drawn, strict=True)
        return list(rows), list(texts), list(answers)
