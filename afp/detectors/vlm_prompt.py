"""`vlm-prompt`: AntifakePrompt. A pseudo-word in the question is all that is trained."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pandas as pd
from peft import PeftModel
from pydantic import Field

from ..errors import ModelError
from ..models import soft_prompts
from .vlm import TOWERS, VlmDetector


@dataclass
class VlmPrompt(VlmDetector):
    """A pseudo-word `[*]` in the question to a frozen InstructBLIP (Chang et al., AntifakePrompt, section 3).

    Its rows in the Q-Former's and the language model's embeddings are trained, k x (D_Q + D_L) numbers:
    4,864 for InstructBLIP-Vicuna-7B and k = 1.

    Args, besides `VlmDetector`'s:
        position: `postfix`, `Is this photo real [*]?`; `prefix`, `[*] Is this photo real?`; `replace`,
            `Is this photo [*]?`. A question that holds `[*]` already is taken as it is.
        n_vectors: k; more than one make a pseudo-word of k tokens.
        towers: `both`, `qformer` or `llm`; the other tower reads the question without the pseudo-word.
        init: `random`, N(0, .02), or words of both vocabularies that the rows start from.
    """

    name: ClassVar[str] = "vlm-prompt"
    trains_on: ClassVar[bool] = True
    position: Literal["postfix", "prefix", "replace"] = "postfix"
    n_vectors: Annotated[int, Field(ge=1, le=512)] = 1
    towers: Literal["both", "qformer", "llm"] = "both"
    init: str = "random"

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.texts()
        except ModelError as error:
            raise ModelError(f"vlm-prompt: {error}") from error

    @property
    def trained_towers(self) -> tuple[str, ...]:
        """Those whose row of the pseudo-word is trained."""
        return TOWERS if self.towers == "both" else (self.towers,)

    def texts(self) -> dict[str, str]:
        """What each tower is asked; only those that are trained read the pseudo-word."""
        text = place_pseudo_words(self.question, self.position, self._words())
        return {tower: text if tower in self.trained_towers else without_words(text) for tower in TOWERS}

    def nearest_words(self, n: int = 5) -> pd.DataFrame:
        """Vocabulary words closest to the learned rows; see `afp.models.soft_prompts.nearest_words`, plus
        `tower`."""
        tables = [
            soft_prompts.nearest_words(prompt, self._tower(tower)[1], n).assign(tower=tower)
            for tower, prompt in self.adapters_.items()
        ]
        return pd.concat(tables, ignore_index=True)

    def _words(self) -> list[str]:
        return soft_prompts.pseudo_words(self.n_vectors)

    def _attach(self, tower: str) -> PeftModel:
        model, tokenizer = self._tower(tower)
        return soft_prompts.attach(model, tokenizer, self._words(), init=self.init, seed=self.recipe().seed)

    def _restore(self, tower: str, folder: Path) -> PeftModel:
        return soft_prompts.load(*self._tower(tower), self._words(), folder)


def place_pseudo_words(question: str, position: str, words: list[str]) -> str:
    """The question with the pseudo-words in their place.

    Raises `ModelError` if there is none: `postfix` needs a question mark at the end, `replace` exactly
    one word `real`.
    """
    word = " ".join(words)
    if "[*]" in question:
        return question.replace("[*]", word, 1)
    if position == "prefix":
        return f"{word} {question}"
    if position == "postfix":
        if not question.endswith("?"):
            raise ModelError(f"question {question!r} has no place for a postfix [*]: it must end with '?'")
        return f"{question[:-1].rstrip()} {word}?"
    if len(re.findall(r"\breal\b", question)) != 1:
        raise ModelError(f"question {question!r} has no place to replace: expected exactly one word 'real'")
    return re.sub(r"\breal\b", lambda _: word, question)


def without_words(text: str) -> str:
    """The text without its pseudo-words."""
    return re.sub(r"\s+(?=\?)|^\s+", "", re.sub(r"\s*\[\*\d*\]", "", text))
