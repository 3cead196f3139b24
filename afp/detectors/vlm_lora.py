"""`vlm-lora`: low-rank adapters in InstructBLIP's attention, the comparison in AntifakePrompt's tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import pandas as pd
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from ..errors import ModelError
from ..models.soft_prompts import adapter_folder, save_adapter
from ..models.training import Recipe
from .vlm import TOWERS, VlmDetector

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
    demo_recipe: ClassVar[Recipe] = Recipe(lr=2e-3, epochs=10, batch_size=72)
    tower: str = "llm"
    rank: int = 8
    alpha: int = 32
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tower not in TOWERS:
            raise ModelError(f"vlm-lora: tower is {self.tower!r}, expected one of {TOWERS}")
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ModelError(
                f"vlm-lora: rank {self.rank}, alpha {self.alpha}, dropout {self.dropout}; expected a rank of 1 or"
                " more, an alpha above 0, a dropout from 0 to below 1"
            )

    @cached_property
    def lora_(self) -> PeftModel:
        """The tower with its adapters, a no-op until trained."""
        base = self._base()
        kind = "t5" if base.config.model_type == "t5" else self.tower
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=TARGETS[kind]
        )
        torch.manual_seed(self.recipe().seed)
        return get_peft_model(base, config)

    @property
    def n_trainable(self) -> int:
        """Numbers in the low-rank matrices."""
        return sum(p.numel() for name, p in self.lora_.named_parameters() if ".lora_" in name)

    def _base(self):
        model = self.vlm_.model
        return model.qformer if self.tower == "qformer" else model.language_model

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        self._forget()
        assert self.lora_  # attached before training looks for what requires a gradient
        self._train(train, validation, progress)

    def _save(self, folder: Path) -> None:
        save_adapter(self.lora_, folder / "adapter")

    def _load(self, folder: Path) -> None:
        self._forget()
        self.lora_ = PeftModel.from_pretrained(self._base(), str(adapter_folder(folder / "adapter")))
