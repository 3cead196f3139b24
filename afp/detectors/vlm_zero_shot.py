"""`vlm-zero-shot`: the frozen model is asked as it is. Only the threshold is chosen, on validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .vlm import VlmDetector


@dataclass
class VlmZeroShot(VlmDetector):
    """AntifakePrompt's starting point: InstructBLIP's own answer to `Is this photo real?`.

    Its arguments are `VlmDetector`'s; `threshold_` is the recalibrated baseline that no learning explains.
    """

    name: ClassVar[str] = "vlm-zero-shot"
