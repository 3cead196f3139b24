"""The image side of an InstructBLIP, taken apart: the tower alone, and what stands in its place."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling


class GivenTokens(nn.Module):
    """Stands in for `vision_model`: what it is given as pixels are the image tokens, (b, t, D), already.

    With `mean` and `std`, (t, D), every channel of every token is standardised: the blocks of a tower
    differ in scale, and a few channels of each dwarf all others.
    """

    def __init__(self, mean: torch.Tensor | float = 0.0, std: torch.Tensor | float = 1.0):
        super().__init__()
        self.mean = nn.Buffer(torch.as_tensor(mean), persistent=False)
        self.std = nn.Buffer(torch.as_tensor(std), persistent=False)

    def forward(self, pixel_values: torch.Tensor, **_) -> BaseModelOutputWithPooling:
        tokens = ((pixel_values - self.mean) / self.std).to(pixel_values.dtype)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens[:, 0])


@dataclass(frozen=True)
class VisionTower:
    """InstructBLIP's own image tower, with the interface of `afp.backbones.Backbone` that features need."""

    name: str
    model: nn.Module
    image_processor: object

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.image_processor.to_json_string().encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(f"{key} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def preprocess(self, images: Sequence) -> torch.Tensor:
        """RGB images to (b, 3, h, w) float32 on the CPU."""
        return self.image_processor(images=list(images), return_tensors="pt")["pixel_values"]

    @torch.inference_mode()
    def extract(self, pixels: torch.Tensor, outputs: Sequence[str]) -> dict[str, torch.Tensor]:
        """The tower's normalised tokens, (b, t, D) float32 on the CPU, under the only output `tokens`."""
        for output in outputs:
            self.check_output(output)
        weight = next(self.model.parameters())
        tokens = self.model(pixel_values=pixels.to(weight.device, weight.dtype)).last_hidden_state
        return dict.fromkeys(outputs, tokens.float().cpu())

    def check_output(self, output: str) -> None:
        if output != "tokens":
            raise ValueError(f"feature output {output!r}: expected 'tokens'")
