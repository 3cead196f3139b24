"""``clip-prompt``: CoOp. The words around the class word are trained, everything else is frozen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pandas as pd
from pydantic import Field

from ..errors import ModelError
from ..models import soft_prompts
from ..models.soft_prompts import adapter_folder, save_adapter
from ..models.text_tower import CLASSES, TextSide, check_text
from ..models.training import Recipe
from .clip import PUBLISHED, SOURCES, ClipDetector, Preset, Texts


@dataclass
class ClipPrompt(ClipDetector):
    """M pseudo-words in front of the frozen text tower (Zhou et al., CoOp, 2022; CLIPping the Deception, 2024).

    Args, besides `ClipDetector`'s:
        n_context: M, the number of pseudo-words.
        class_position: where ``real`` or ``fake`` stands: ``front`` of the pseudo-words (the paper's), in their
            ``middle``, or at the ``end``. A full stop ends the text.
        per_class: a context of its own for each class, 2 M pseudo-words.
        init: ``random``, N(0, .02), or words whose mean embedding the rows start from.
    """

    name: ClassVar[str] = "clip-prompt"
    trains_on: ClassVar[bool] = True
    presets: ClassVar = {
        "demo": Preset(Recipe(lr=3e-3, epochs=30, batch_size=72)),
        **PUBLISHED,
    }
    sources: ClassVar = SOURCES | {
        "n_context": "README: N_CTX 16",
        "class_position": "README: CLASS_TOKEN_POSITION front",
        "per_class": "README: CSC False",
        "init": "CoOp: N(0, .02)",
    }
    n_context: Annotated[int, Field(ge=1, le=512)] = 16
    class_position: Literal["front", "middle", "end"] = "front"
    per_class: bool = False
    init: str = "random"

    def words(self) -> list[str]:
        """The pseudo-words: M, or the real class's M and then the fake class's."""
        return soft_prompts.pseudo_words(self.n_context * (2 if self.per_class else 1))

    def texts(self) -> list[str]:
        """The text of each class, in the order of the labels."""
        words, m = self.words(), self.n_context
        contexts = (words[:m], words[m:]) if self.per_class else (words, words)
        return [
            place_class_word(word, context, self.class_position)
            for word, context in zip(CLASSES, contexts, strict=True)
        ]

    @property
    def n_trainable(self) -> int:
        """M (or 2 M) times the width of the text tower, and the adapter's, if there is one."""
        check_text(self.backbone_)
        return (
            super().n_trainable
            + len(self.words()) * self.backbone_.model.text_model.get_input_embeddings().embedding_dim
        )

    def attach(self) -> TextSide:
        """A copy of the backbone's text side whose pseudo-words, fresh, are all that requires a gradient."""
        side = TextSide.copy_of(self.backbone_)
        options: dict[str, Any] = {"init": self.init, "seed": self.recipe().seed}
        side.tower = soft_prompts.attach(side.tower, side.tokenizer, self.words(), **options)
        side.projection.requires_grad_(False)
        return side

    def nearest_words(self, n: int = 5) -> pd.DataFrame:
        """Vocabulary words closest to the learned rows: see `afp.models.soft_prompts.nearest_words`."""
        return soft_prompts.nearest_words(self.side_.tower, self.side_.tokenizer, n)

    def _text_module(self) -> Texts:
        self.side_ = self.attach()
        if start := getattr(self, "start_", None):
            rows = soft_prompts.read_vectors(adapter_folder(start / "adapter"))
            soft_prompts.set_vectors(self.side_.tower, rows)
        return Texts(self.side_, self.texts(), trained=True)

    def _save(self, folder: Path) -> None:
        super()._save(folder)
        save_adapter(self.side_.tower, folder / "adapter")

    def _load(self, folder: Path) -> None:
        super()._load(folder)
        side = TextSide.copy_of(self.backbone_)
        at = adapter_folder(folder / "adapter")
        try:
            side.tower = soft_prompts.load(side.tower, side.tokenizer, self.words(), at)
        except ModelError as error:
            raise ModelError(f"{self.name}: {error}") from error
        self.side_ = side.to(self.backbone_.device)


def place_class_word(word: str, context: list[str], position: str) -> str:
    """A class word and its context as one text, in CoOp's three orders."""
    at = {"front": 0, "middle": len(context) // 2, "end": len(context)}[position]
    return " ".join([*context[:at], word, *context[at:]]) + "."
