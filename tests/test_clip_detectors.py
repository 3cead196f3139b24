from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from models import SMALL, VISION, clip_tokenizer, save_processor, small_clip, small_dual  # noqa: F401
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import (
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from afp import detectors
from afp.data.images import sha256
from afp.data.preprocess import prepare_all
from afp.detectors import clip
from afp.detectors.clip_prompt import ClipPrompt
from afp.errors import ModelError
from afp.models import backbones, features, soft_prompts
from afp.models.backbones import Backbone, load_backbone
from afp.models.text_tower import TextSide

NAMES = ("clip-zero-shot", "clip-prompt", "clip-adapter", "clip-adaptprompt", "clip-lora", "clip-finetune")
QUICK = {
    "clip-prompt": {"n_context": 4, "epochs": 2},
    "clip-adaptprompt": {"n_context": 4, "epochs": 2, "drop_blocks": 1},
    "clip-adapter": {"epochs": 2},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("backbones")
    return {"clip": small_clip(root / "clip"), "dual": small_dual(root / "dual")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(backbones, "best_dtype", lambda device: torch.float32)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Noise is fake, gradients are real: 12 training and 8 validation images."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    rows = []
    for i in range(20):
        label = i % 2
        ramp = np.add.outer(np.arange(40), np.arange(40)) * 3 + rng.integers(0, 20)
        pixels = rng.integers(0, 256, (40, 40, 3)) if label else np.stack([ramp] * 3, -1)
        file = root / f"{i}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(file)
        rows.append((str(file), str(file), label, ("real", "noise")[label], f"s{i}", sha256(file)))
    frame = pd.DataFrame(rows, columns=["path", "file", "label", "generator", "source", "sha256"])
    return frame[:12].assign(split="train"), frame[12:].assign(split="validation")


@torch.no_grad()
def by_hand(side: TextSide, word: str, context: torch.Tensor, position: str) -> torch.Tensor:
    """CoOp's way: start, context and class embeddings joined as vectors, the text tower run on them."""
    tower, tokenizer = side.tower.get_base_model(), side.tokenizer
    table = tower.get_input_embeddings()
    table = getattr(table, "base_layer", table)

    def rows(text: str) -> torch.Tensor:
        return table.weight[tokenizer(text, add_special_tokens=False).input_ids]

    ids = tokenizer("", add_special_tokens=True).input_ids
    first, last = table.weight[ids[:1]], table.weight[ids[-1:]]
    half = len(context) // 2
    middle = {
        "front": [rows(word), context],
        "middle": [context[:half], rows(word), context[half:]],
        "end": [context, rows(word)],
    }[position]
    embedded = torch.cat([first, *middle, rows("."), last])[None]
    if isinstance(tower, BertModel):
        pooled = tower(inputs_embeds=embedded).pooler_output
    else:
        hidden = tower.embeddings(inputs_embeds=embedded)
        n = hidden.shape[1]
        mask = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)[None, None]
        for layer in tower.encoder.layers:
            hidden = layer(hidden, attention_mask=mask)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        pooled = tower.final_layer_norm(hidden)[:, -1]
    return normalize(side.projection(pooled), dim=-1)[0]


@pytest.mark.parametrize("kind", ["clip", "dual"])
@pytest.mark.parametrize("position", ["front", "middle", "end"])
@pytest.mark.parametrize("per_class", [False, True])
def test_prompts_equal_those_assembled_by_hand(folders, kind, position, per_class):
    detector = ClipPrompt(backbone=folders[kind], n_context=4, class_position=position, per_class=per_class)
    side = detector.attach()
    rows = soft_prompts.vectors(side.tower)
    with torch.no_grad():
        rows.copy_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)))
        found = side.encode(detector.texts())
    contexts = (rows[:4], rows[4:]) if per_class else (rows, rows)
    for i, word in enumerate(("real", "fake")):
        assert torch.allclose(found[i], by_hand(side, word, contexts[i].detach(), position), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["clip", "dual"])
def test_a_folder_is_fitted_saved_and_loaded(folders, frames, tmp_path, name, kind):
    train, validation = frames
    backbone = load_backbone(folders[kind])
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    words = len(backbone.tokenizer)
    detector = detectors.create(name, backbone=folders[kind], **QUICK.get(name, {}))
    detector.fit(train, validation, progress=False)
    scores = detector.score(validation)
    assert scores.shape == (8,) and ((scores >= 0) & (scores <= 1)).all()
    detector.save(tmp_path / "run")
    again = detectors.load(tmp_path / "run")
    assert np.array_equal(again.score(validation), scores)
    assert again.n_trainable == detector.n_trainable
    after = backbone.model.state_dict()  # shared by every detector of the process
    assert all(torch.equal(after[k], v) for k, v in before.items()) and len(backbone.tokenizer) == words
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["backbone"] == folders[kind]


@pytest.mark.parametrize(
    ("name", "kind", "config"),
    [
        ("clip-prompt", "dual", {"per_class": True}),
        ("clip-adapter", "clip", {}),
        ("clip-adaptprompt", "clip", {"n_context": 4, "lr": 0.003}),
        ("clip-lora", "clip", {"lr": 0.01}),
    ],
)
def test_training_lowers_the_loss(folders, frames, name, kind, config):
    config = {"backbone": folders[kind], "epochs": 40, "lr": 0.05} | config
    detector = detectors.create(name, **config).fit(*frames, progress=False)
    losses = detector.history_.groupby("epoch")["loss"].mean()
    assert losses.iloc[-5:].mean() < losses.iloc[0]


def test_the_paper_s_probe_is_its_linear_layer(folders, frames, tmp_path, monkeypatch):
    """Weights N(0, .01) and bias 0, then plain SGD: another implementation ends at the same layer."""
    train, validation = frames
    monkeypatch.setattr(
        clip.ImageDataset, "set_epoch", lambda self, epoch: None
    )  # the same views in each epoch
    detector = detectors.create("linear-probe", backbone=folders["clip"], preset="paper")
    scores = detector.fit(train, validation, progress=False).score(validation)
    torch.manual_seed(17)
    layer = torch.nn.Linear(12, 2)
    torch.nn.init.normal_(layer.weight, std=0.01)
    weight, bias = layer.weight.detach().clone(), torch.zeros(2)
    views = torch.stack([image.image for image, _, _ in detector._pixels(train)])
    x = load_backbone(folders["clip"]).extract(views, ("embedding",))["embedding"].clone()
    y = torch.nn.functional.one_hot(torch.tensor(train["label"].to_numpy()), 2)
    for _ in range(2):  # 12 images are one batch of 16
        error = ((x @ weight.T + bias).softmax(1) - y) / len(x)
        weight, bias = weight - 3e-3 * error.T @ x, bias - 3e-3 * error.sum(0)
    seen = features.extract(
        validation,
        load_backbone(folders["clip"]),
        "embedding",
        normalisation=detector.normalisation,
        progress=False,
    )
    expected = (torch.from_numpy(seen) @ weight.T + bias).softmax(1)[:, 1]
    assert np.allclose(scores, expected, atol=1e-5) and detector.n_trainable == 2 * 12 + 2
    assert np.array_equal(detectors.load(detector.save(tmp_path)).score(validation), scores)


def test_prompt_adapters_load_with_plain_peft(folders, frames, tmp_path):
    detector = ClipPrompt(backbone=folders["clip"], n_context=4, epochs=1).fit(*frames, progress=False)
    detector.save(tmp_path)
    model, tokenizer = CLIPModel.from_pretrained(folders["clip"]), clip_tokenizer()
    soft_prompts.add_words(tokenizer, detector.words())
    model.text_model.resize_token_embeddings(len(tokenizer))
    model.text_model.eos_token_id = tokenizer.eos_token_id
    tower = PeftModel.from_pretrained(model.text_model, str(tmp_path / "adapter")).eval()
    tokens = tokenizer(detector.texts(), padding=True, return_tensors="pt")
    with torch.no_grad():
        found = normalize(model.text_projection(tower(**tokens).pooler_output), dim=-1)
    assert torch.allclose(found, detector.classifier_, atol=1e-6)


@pytest.fixture
def vit_l14(monkeypatch):
    """CLIP ViT-L/14's shapes without its weights."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    vision |= {"patch_size": 14, "projection_dim": 768}
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=768))
    device = torch.device("meta")
    backbone = Backbone("vit-l14", model, CLIPImageProcessorPil(), clip_tokenizer(), device, torch.float32)
    monkeypatch.setattr("afp.detectors.clip.load_backbone", lambda name, **_: backbone)
    return backbone


def test_counts_at_full_size(vit_l14):
    expected = {
        "clip-zero-shot": 0,
        "clip-prompt": 12_288,
        "clip-adapter": 589_824,
        "clip-adaptprompt": 614_400,
        "clip-lora": 786_432,
        "clip-finetune": 427_616_513,
    }
    assert {name: detectors.create(name).n_trainable for name in NAMES} == expected
    assert detectors.create("linear-probe", preset="paper").n_trainable == 1_538
    assert detectors.create("clip-prompt", per_class=True).n_trainable == 2 * 12_288
    attached = detectors.create("clip-prompt").attach()
    assert sum(p.numel() for p in attached.parameters() if p.requires_grad) == 12_288


COOP = [1e-5] * 3 + [2e-3] * 3
SGD = {"optimizer": "sgd", "batch_size": 16, "seed": 17, "momentum": 0.9, "weight_decay": 5e-4}


@pytest.mark.parametrize(
    ("name", "preset", "rates", "recipe"),
    [
        ("clip-prompt", "paper", COOP, SGD),
        ("clip-adapter", "paper", COOP, SGD),
        ("clip-finetune", "paper", [1e-5] * 3, SGD),
        ("clip-lora", "paper", [2e-3] * 3, SGD),
        ("clip-finetune", "few-shot", [1e-5] * 60, SGD),
        ("clip-adapter", "few-shot", [1e-5] * 60, SGD),
        ("linear-probe", "paper", [3e-3] * 6, SGD | {"momentum": 0.0, "weight_decay": 0.0}),
        (
            "clip-adaptprompt",
            "paper",
            [1e-5] * 3 + [1e-3 * (1 + np.cos(np.pi * e / 10)) for e in range(9) for _ in range(3)],
            SGD,
        ),
    ],
)
def test_the_published_presets(folders, frames, name, preset, rates, recipe):
    """The learning rate of every step, the last epoch, an unweighted loss and a fresh view of each image."""
    train, validation = frames
    few = {"n_context": 2} if "prompt" in name else {}
    detector = detectors.create(name, backbone=folders["clip"], preset=preset, batch_size=4, **few)
    found = vars(detectors.create(name, preset=preset).recipe())
    assert {k: found[k] for k in recipe} == recipe
    data = detector._pixels(train)
    first = data[0]
    data.set_epoch(1)
    second = data[0]
    assert first[2] == 1 and not torch.equal(first[0].image, second[0].image)
    data.set_epoch(0)
    assert torch.equal(data[0][0].image, first[0].image)
    history = detector.fit(train, validation, progress=False).history_
    assert history["lr"].tolist() == pytest.approx(rates) and history["validation"].isna().all()


def test_published_pixels_are_those_of_plain_pillow(tmp_path, frames):
    """Bicubic 224, centre crop, CLIP's statistics, of the file's own pixels."""
    from afp.data.manifest import from_files

    rng = np.random.default_rng(0)
    for i, size in enumerate([(300, 420), (500, 224), (100, 180)]):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    frame = from_files(sorted(tmp_path.glob("*.png")))
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    for name in (*NAMES, "linear-probe"):
        assert detectors.create(name, preset="paper").normalisation.codec == "none", name
        assert detectors.create(name).normalisation.key == "256-jpeg95", name
    images = prepare_all(frame, detectors.create("clip-adapter", preset="paper").normalisation)
    found = CLIPImageProcessorPil()(images=images, return_tensors="np")["pixel_values"]
    for file, pixels in zip(frame["file"], found, strict=True):
        image = Image.open(file)
        scale = 224 / min(image.size)
        image = image.resize([int(side * scale) for side in image.size], Image.Resampling.BICUBIC)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        plain = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float64) / 255
        assert np.abs(pixels - ((plain - mean) / std).transpose(2, 0, 1)).max() < 1e-5


def test_a_random_view_is_a_crop_of_plain_pillow():
    from afp.data.preprocess import random_view

    side = np.arange(256)
    image = Image.fromarray(np.stack([*np.meshgrid(side, side), np.full((256, 256), 9)], -1).astype(np.uint8))
    shares, mirrored = [], 0
    for seed in range(60):
        view = np.asarray(random_view(image, 32, seed)).astype(float)
        x, y = view[:, :, 0].mean(0), view[:, :, 1].mean(1)
        width, height = (abs(v[-1] - v[0]) * 32 / 31 for v in (x, y))
        shares.append(width * height / 256**2)
        mirrored += x[0] > x[-1]
        assert y[-1] > y[0] and 0.6 < width / height < 1.6
    assert 0.05 < min(shares) < 0.2 and 0.8 < max(shares) < 1.1 and 15 < mirrored < 45


def test_what_is_tuned_stays_in_float32(folders, frames, tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "best_dtype", lambda device: torch.bfloat16)
    detector = detectors.create("clip-finetune", backbone=folders["clip"], preset="paper").fit(
        *frames, progress=False
    )
    detector.save(tmp_path)
    start = load_backbone(folders["clip"], dtype="float32").model.state_dict()
    stored = load_file(tmp_path / "model" / "model.safetensors")
    changed = [k for k, v in stored.items() if not torch.equal(v, start[k])]
    assert len(changed) > 30 and {v.dtype for v in stored.values()} == {torch.float32}
    steps = torch.cat([(stored[k] - start[k]).flatten() for k in changed])
    kept = torch.cat([(stored[k].bfloat16().float() - start[k]).flatten() for k in changed])
    assert (kept - steps).norm() > 5 * steps.norm()  # what storing in bfloat16 would add
    assert detectors.load(tmp_path).backbone_.dtype == torch.float32


def test_lora_is_plain_peft_on_the_image_tower(folders, frames, tmp_path):
    detector = detectors.create("clip-lora", backbone=folders["clip"], epochs=3).fit(*frames, progress=False)
    detector.save(tmp_path)
    assert sum(v.numel() for v in load_file(tmp_path / "adapter/adapter_model.safetensors").values()) == 1024
    assert detector.n_trainable == 1024
    model = CLIPModel.from_pretrained(folders["clip"])
    tower = PeftModel.from_pretrained(model.vision_model, str(tmp_path / "adapter")).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = model.visual_projection(tower(pixel_values=pixels).pooler_output)
    tuned = detector.backbone_.extract(pixels, ("embedding",))["embedding"]
    frozen = load_backbone(folders["clip"]).extract(pixels, ("embedding",))["embedding"]
    assert torch.allclose(found, tuned, atol=1e-6) and not torch.allclose(frozen, tuned, atol=1e-4)


def test_adaptprompt_trains_both_behind_a_cut_tower(folders, frames):
    train, validation = frames
    detector = detectors.create(
        "clip-adaptprompt", backbone=folders["clip"], n_context=4, drop_blocks=1, epochs=3
    )
    assert detector.texts() == ["[*1] [*2] [*3] [*4] real", "[*5] [*6] [*7] [*8] fake"]
    rows = soft_prompts.vectors(detector.attach().tower).detach().clone()
    detector.fit(train, validation, progress=False)
    torch.manual_seed(detector.recipe().seed)
    before = detector._adapter().state_dict()
    assert not torch.equal(soft_prompts.vectors(detector.side_.tower), rows)
    assert all(not torch.equal(v, before[k]) for k, v in detector.adapter_.state_dict().items())
    whole = load_backbone(folders["clip"])
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        hidden = whole.extract(pixels, ("cls",))["cls"][:, 1]
        expected = whole.model.visual_projection(whole.model.vision_model.post_layernorm(hidden))
    found = detector.backbone_.extract(pixels, ("embedding", "cls"))
    assert torch.allclose(found["embedding"], expected, atol=1e-6) and found["cls"].shape == (2, 2, 16)
    assert whole.n_blocks == 2 and detector.backbone_.fingerprint != whole.fingerprint
    with pytest.raises(ModelError, match="cannot drop 2 of 2 blocks"):
        detectors.create("clip-adaptprompt", backbone=folders["clip"], drop_blocks=2).fit(train, validation)


@pytest.mark.parametrize("name", [*NAMES, "linear-probe"])
def test_a_recipe_is_explained(name):
    paper = detectors.create(name, backbone="clip-vit-l14", preset="paper").explain_recipe()
    assert (
        list(paper.columns) == ["setting", "value", "source", "differs"]
        and not paper["setting"].duplicated().any()
    )
    assert not paper["differs"].str.startswith("published:").any()
    ours = detectors.create(name).explain_recipe().set_index("setting")
    assert ours.loc["normalisation", "differs"] == "published: none"
    assert ours.loc["backbone", "value"] == "demo-clip" and ours.loc["augmentation", "value"] == "none"


def test_a_lora_adapter_is_written_the_same_each_time(folders, frames, tmp_path):
    """peft keeps the names of its layers in a set, whose order changes with each process."""
    detectors.create("clip-lora", backbone=folders["clip"], epochs=1).fit(*frames, progress=False).save(
        tmp_path
    )
    (config,) = tmp_path.rglob("adapter_config.json")
    targets = json.loads(config.read_text())["target_modules"]
    assert targets == sorted(targets) and len(targets) == 2


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("clip-prompt", {"class_position": "back"}, "class_position is 'back'"),
        ("clip-prompt", {"n_context": 0}, "n_context is 0"),
        ("clip-adapter", {"ratio": 0}, "ratio is 0"),
        ("clip-adapter", {"template": "a photo"}, "template is 'a photo'"),
        ("clip-zero-shot", {"templates": ["{} {}"]}, "templates"),
        ("clip-finetune", {"preset": "large"}, "preset is 'large'"),
        ("clip-adaptprompt", {"drop_blocks": -1}, "drop_blocks is -1"),
        ("clip-lora", {"dropout": 1}, "dropout is 1, expected a number of at least 0 and under 1"),
        ("linear-probe", {"preset": "sgd"}, "preset is 'sgd'"),
        ("linear-probe", {"preset": "paper", "block": "6"}, "block is '6'"),
    ],
)
def test_wrong_config_is_named(name, config, message):
    with pytest.raises(ModelError, match=message):
        detectors.create(name, **config)


def test_a_backbone_without_text_is_refused(tmp_path, frames):
    CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path / "tower")
    folder = save_processor(tmp_path / "tower")
    for name in NAMES:
        with pytest.raises(ModelError, match="no text tower"):
            detectors.create(name, backbone=folder).fit(*frames, progress=False)


def test_errors_of_text_and_loss(folders, frames):
    with pytest.raises(ModelError, match="expected at most 40"):
        detectors.create("clip-prompt", backbone=folders["clip"], n_context=64).fit(*frames, progress=False)
    with pytest.raises(ModelError, match="init is 'zebra'"):
        detectors.create("clip-prompt", backbone=folders["dual"], init="zebra").fit(*frames, progress=False)
    with pytest.raises(ModelError, match="loss is nan"):
        detectors.create("clip-adapter", backbone=folders["clip"], lr=1e9).fit(*frames, progress=False)
