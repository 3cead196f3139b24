"""``clip-lora``: low-rank adapters in the attention of CLIP's image tower."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from peft import PeftModel

from ..models.backbones import DualModel
from ..models.low_rank import Alpha, Dropout, Rank, add_low_rank
from ..models.soft_prompts import adapter_folder, make_trainable, save_adapter
from ..models.text_tower import check_text
from ..models.training import Recipe
from .clip import FEW_SHOT, PUBLISHED_RECIPE, Preset
from .clip_finetune import ClipFinetune

TARGETS = ("q_proj", "v_proj")


@dataclass
class ClipLora(ClipFinetune):
    """LoRA (Hu et al., 2021) on the image tower's query and value projections: the comparison that the paper lacks.

    It is trained through pixels like fine-tuning, against frozen texts; the published presets are fine-tuning's at a
    rate that fits so few numbers. With rank 8 these are 786,432 in ViT-L/14. A run holds a plain peft adapter.

    Args, besides `ClipDetector`'s:
        rank, alpha, dropout: LoRA's.
    """

    name: ClassVar[str] = "clip-lora"
    presets: ClassVar = {
        "demo": Preset(Recipe(lr=2e-3, epochs=1, batch_size=8)),
        "paper": Preset(replace(PUBLISHED_RECIPE, epochs=1, warmup_epochs=0), True),
        "few-shot": FEW_SHOT,
    }
    rank: Rank = 8
    alpha: Alpha = 32
    dropout: Dropout = 0.1

    @property
    def n_trainable(self) -> int:
        """Numbers in the low-rank matrices: rank times in- and output, for each target of each block."""
        backbone = self._frozen(dtype="float32")
        check_text(backbone)
        return backbone.n_blocks * len(TARGETS) * self.rank * 2 * backbone.width

    def _trainable(self, model: DualModel) -> DualModel:
        if not isinstance(model.vision_model, PeftModel):
            model.vision_model = add_low_rank(
                model.vision_model, TARGETS, self.rank, self.alpha, self.dropout
            )
        return make_trainable(model)

    def _save(self, folder: Path) -> None:
        save_adapter(self.tuned_.model.vision_model, folder / "adapter")

    def _read(self, folder: Path) -> DualModel:
        model = copy.deepcopy(self._frozen(dtype="float32").model)
        at = str(adapter_folder(folder / "adapter"))
        model.vision_model = PeftModel.from_pretrained(model.vision_model, at)
        return model
