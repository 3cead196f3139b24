"""The text side of a CLIP-like backbone, as trainable methods need it: a float32 copy that is theirs to change."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import normalize
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..backbones import Backbone
from .base import DetectorError

CLASSES = ("real", "fake")


@dataclass
class TextSide:
    """A text tower, its projection (D -> P) and its tokenizer; ``tower`` may be wrapped by peft."""

    tower: PreTrainedModel
    projection: nn.Linear
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def copy_of(cls, backbone: Backbone) -> TextSide:
        """A copy in float32, so that what is trained on it leaves the shared backbone alone.

        Raises:
            DetectorError: the backbone is an image tower alone.
        """
        model, tokenizer = backbone.model, copy.deepcopy(backbone.tokenizer)
        if tokenizer is None or not hasattr(model, "text_model"):
            raise DetectorError(
                f"backbone {backbone.name}: has no text tower, expected a CLIP model or a vision-text dual encoder"
                " with its tokenizer"
            )
        tower = copy.deepcopy(model.text_model).float()
        pool_at_end(tower, tokenizer)
        return cls(tower, copy.deepcopy(model.text_projection).float(), tokenizer)

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Normalised text embeddings (n, P), with gradients where the tower has any.

        Raises:
            DetectorError: a text is longer than the tower reads.
        """
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.projection.weight.device)
        longest, limit = tokens.input_ids.shape[1], self.tower.config.max_position_embeddings
        if longest > limit:
            raise DetectorError(f"text of {longest} tokens, the tower reads {limit}: {max(texts, key=len)[:60]!r}…")
        output = self.tower(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return normalize(self.projection(output.pooler_output), dim=-1)


def pool_at_end(tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a CLIP text tower take its output at the end token.

    OpenAI's configs name a wrong end token (2), for which transformers pools at the largest id; a pseudo-word's id
    is larger than the end token's, and the text would be read at the pseudo-word.
    """
    if hasattr(tower, "eos_token_id"):
        tower.eos_token_id = tokenizer.eos_token_id
