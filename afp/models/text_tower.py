"""The text side of a CLIP-like backbone, as trainable methods need it: what they train is theirs to change."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ModelError
from .backbones import Backbone

CLASSES = ("real", "fake")  # class words, in the order of the labels


class TextSide(nn.Module):
    """A text tower (which peft may wrap), its projection D -> P and its tokenizer. Never in training mode: dropout
    in a frozen tower would only blur what is trained in front of it."""

    tower: Any
    projection: nn.Linear

    def __init__(
        self, tower: PreTrainedModel, projection: nn.Linear, tokenizer: PreTrainedTokenizerBase | None
    ):
        super().__init__()
        self.tower, self.projection = tower, projection
        self.tokenizer: Any = tokenizer
        pool_at_end(tower, tokenizer)
        self.eval()

    @classmethod
    def copy_of(cls, backbone: Backbone) -> TextSide:
        """A frozen copy in float32, so that what is trained on it leaves the shared backbone alone.

        Raises:
            ModelError: the backbone is an image tower alone.
        """
        check_text(backbone)
        tower, projection = backbone.model.text_model, backbone.model.text_projection
        tower, projection = copy.deepcopy(tower).float(), copy.deepcopy(projection).float()
        return cls(tower, projection, copy.deepcopy(backbone.tokenizer))

    def train(self, mode: bool = True) -> TextSide:
        return super().train(False)

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Normalised text embeddings (n, P), with gradients where the tower has any.

        Raises:
            ModelError: a text is longer than the tower reads.
        """
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.projection.weight.device)
        length, limit = tokens.input_ids.shape[1], self.tower.config.max_position_embeddings
        if length > limit:
            raise ModelError(f"{max(texts, key=len)[:50]!r}…: {length} tokens, expected at most {limit}")
        output = self.tower(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return normalize(self.projection(output.pooler_output), dim=-1)


def check_text(backbone: Backbone) -> None:
    """Raises ModelError if the backbone has no text tower."""
    if backbone.tokenizer is None or not hasattr(backbone.model, "text_model"):
        raise ModelError(
            f"backbone {backbone.name}: no text tower, expected a CLIP model or a vision-text dual encoder"
        )


def pool_at_end(tower: Any, tokenizer: Any) -> None:
    """Make a CLIP text tower take its output at the end token.

    OpenAI's configs name a wrong end token (2), for which transformers pools at the largest id. A pseudo-word's id
    is larger than the end token's: the text would be read off at the pseudo-word.
    """
    if hasattr(tower, "eos_token_id"):
        tower.eos_token_id = tokenizer.eos_token_id
