"""Detectors by name. A class is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import ModelError
from ..paths import whole_backbone
from .base import Detector, check_known, read_config

_CLASSES = {
    "clip-zero-shot": "clip_zero_shot.ClipZeroShot",
    "clip-prompt": "clip_prompt.ClipPrompt",
    "clip-adapter": "clip_adapter.ClipAdapter",
    "clip-adaptprompt": "clip_adaptprompt.ClipAdaptPrompt",
    "clip-lora": "clip_lora.ClipLora",
    "clip-finetune": "clip_finetune.ClipFinetune",
    "linear-probe": "linear_probe.LinearProbe",
    "metadata": "baselines.Metadata",
    "spectrum": "baselines.Spectrum",
    "vlm-zero-shot": "vlm_zero_shot.VlmZeroShot",
    "vlm-prompt": "vlm_prompt.VlmPrompt",
    "vlm-lora": "vlm_lora.VlmLora",
}
NAMES = tuple(_CLASSES)


def detector_class(name: str) -> type[Detector]:
    """The class of a registered detector. Raises ModelError naming the known ones."""
    if name not in _CLASSES:
        raise ModelError(f"detector: {name!r}, expected one of {', '.join(NAMES)}")
    module, _, attribute = _CLASSES[name].partition(".")
    return getattr(import_module(f".{module}", __package__), attribute)


def create(name: str, **config: Any) -> Detector:
    """A new, unfitted detector. Raises ModelError for an unknown name or config field, and for a wrong value."""
    cls = detector_class(name)
    check_known(cls, config)
    if isinstance(backbone := config.get("backbone"), str):
        config["backbone"] = whole_backbone(backbone)
    return cls(**config)


def load(folder: str | Path) -> Detector:
    """The fitted detector in a run folder."""
    return detector_class(read_config(folder)["detector"]).load(folder)
