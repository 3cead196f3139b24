"""`vlm-lora`: low-rank adapters in InstructBLIP's attention, the comparison in AntifakePrompt's tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from peft import PeftModel

from ..models.low_rank import Alpha, Dropout, Rank, add_low_rank
from ..models.training import Recipe
from .vlm import VlmDetector

TARGETS = {"qformer": ["query", "value"], "llm": ["q_proj", "v_proj"], "t5": ["q", "v"]}


@dataclass
class VlmLora(VlmDetector):
    """LoRA on the query and value projections of one tower; the question stays as it is.

    With rank 8 on the language model of InstructBLIP-Vicuna-7B these are 4,194,304 numbers (the paper prints
    419.43K).

    Args, besides `VlmDetector`'s:
        tower: `llm` (the language model) or `qformer`.
        rank, alpha, dropout: LoRA's; the paper's are 8, 32 and .1.
    """

    name: ClassVar[str] = "vlm-lora"
    trains_on: ClassVar[bool] = True
    demo_recipe: ClassVar[Recipe] = Recipe(lr=2e-3, epochs=10, batch_size=72)
    tower: Literal["qformer", "llm"] = "llm"
    rank: Rank = 8
    alpha: Alpha = 32
    dropout: Dropout = 0.1

    @property
    def trained_towers(self) -> tuple[str, ...]:
        """The one with the adapters."""
        return (self.tower,)

    def _attach(self, tower: str) -> PeftModel:
        base, _ = self._tower(tower)
        kind = "t5" if base.config.model_type == "t5" else tower
        torch.manual_seed(self.recipe().seed)
        return add_low_rank(base, TARGETS[kind], self.rank, self.alpha, self.dropout)

    def _restore(self, tower: str, folder: Path) -> PeftModel:
        return PeftModel.from_pretrained(self._tower(tower)[0], str(folder))
