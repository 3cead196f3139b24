"""Low-rank adapters (LoRA, Hu et al., 2021) in a tower's attention, by peft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from ..errors import ModelError

# Of a config's fields.
Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


def add_low_rank(
    tower: PreTrainedModel, targets: Sequence[str], rank: int, alpha: int, dropout: float
) -> PeftModel:
    """The tower with an adapter in each of its layers of these names; nothing else is trainable.

    Args:
        tower: changed in place.
        targets: how the layers' names end, such as ``q_proj``.
        rank, alpha, dropout: LoRA's.
    Raises:
        ModelError: a rank over the smallest side of such a layer, which can change all of it.
    """
    layers = (m for n, m in tower.named_modules() if n.rpartition(".")[2] in targets)
    # Not the weight's shape, which is another one in 4 bits.
    sides = [min(m.in_features, m.out_features) for m in layers if isinstance(m, nn.Linear)]
    if sides and rank > min(sides):
        raise ModelError(f"rank is {rank}, expected at most {min(sides)}, the width of {targets[0]}")
    return get_peft_model(
        tower, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
    )
