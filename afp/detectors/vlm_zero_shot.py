"""`vlm-zero-shot`: the frozen model is asked as it is. Only the threshold is chosen, on validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd

from .vlm import VlmDetector


@dataclass
class VlmZeroShot(VlmDetector):
    """AntifakePrompt's starting point: InstructBLIP's own answer to `Is this photo real?`.

    Its arguments are `VlmDetector`'s; `threshold_` is the recalibrated baseline that no learning explains.
    """

    name: ClassVar[str] = "vlm-zero-shot"

    @property
    def n_trainable(self) -> int:
        """None."""
        return 0

    def _fit(self, train: pd.DataFrame, validation: pd.DataFrame, progress: bool) -> None:
        pass

    def _save(self, folder: Path) -> None:
        pass

    def _load(self, folder: Path) -> None:
        pass
