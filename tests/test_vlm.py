from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from demo_vlm import llm_tokenizer, qformer_tokenizer
from models import VLM_SMALL, small_config, small_vlm
from peft import PeftModel
from PIL import Image
from transformers import (
    BlipImageProcessorPil,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    LlamaConfig,
)

from afp.data.manifest import from_files
from afp.detectors.vlm_lora import VlmLora
from afp.detectors.vlm_prompt import VlmPrompt, place_pseudo_words
from afp.detectors.vlm_zero_shot import VlmZeroShot
from afp.errors import ModelError
from afp.models import soft_prompts
from afp.models.instructblip import load_vlm

DETECTORS = {cls.name: cls for cls in (VlmZeroShot, VlmPrompt, VlmLora)}


@pytest.fixture(scope="module", params=["llama", "t5"])
def folder(request, tmp_path_factory):
    """A small InstructBLIP, saved as the ones on the hub are: image tower, both tokenizers, image
    processor."""
    return small_vlm(tmp_path_factory.mktemp(request.param), small_config(request.param))


@pytest.fixture(scope="module")
def frame(tmp_path_factory) -> pd.DataFrame:
    where, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(12):
        noise = rng.integers(0, 255, (40, 40, 3)) if i % 2 else np.full((40, 40, 3), 20 * i)
        Image.fromarray(noise.astype(np.uint8)).save(where / f"{i:02}.png")
    found = from_files(sorted(where.iterdir()))
    return found.assign(label=[i % 2 for i in range(12)], generator=["real", "noise"] * 6)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AFP_DATA", str(tmp_path))


def fitted(name: str, folder: str, frame: pd.DataFrame, **config):
    config = {"epochs": 2, "batch_size": 4} | config
    return DETECTORS[name](backbone=folder, dtype="float32", **config).fit(frame, frame, progress=False)


def tokens_of(vlm, frame) -> torch.Tensor:
    images = [Image.open(f).convert("RGB") for f in frame["file"]]
    return vlm.tower.extract(vlm.tower.preprocess(images), ("tokens",))["tokens"].clone()


# --- 1. What is trained, at the real dimensions ---


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory):
    """InstructBLIP-Vicuna-7B's dimensions with our small tokenizers: no weights are needed to count."""
    config = InstructBlipConfig(
        vision_config={},
        qformer_config={"vocab_size": 30523, "encoder_hidden_size": 1408},
        text_config=LlamaConfig(
            vocab_size=32001,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
        ).to_dict(),
        num_query_tokens=32,
        image_token_index=4,
    )
    where = tmp_path_factory.mktemp("vicuna")
    config.save_pretrained(where)
    llm_tokenizer().save_pretrained(where)
    qformer_tokenizer().save_pretrained(where / "qformer_tokenizer")
    BlipImageProcessorPil().save_pretrained(where)
    return str(where)


@pytest.mark.parametrize(
    "name, config, expected",
    [
        ("vlm-prompt", {}, 4864),
        ("vlm-prompt", {"towers": "qformer"}, 768),
        ("vlm-prompt", {"towers": "llm"}, 4096),
        ("vlm-prompt", {"n_vectors": 4}, 4 * 4864),
        ("vlm-lora", {}, 4_194_304),
        ("vlm-lora", {"tower": "qformer"}, 8 * ((12 * 2 + 6) * (768 + 768) + 6 * (1408 + 768))),
        ("vlm-zero-shot", {}, 0),
    ],
)
def test_trainable_numbers_of_the_real_model(vicuna, name, config, expected):
    detector = DETECTORS[name](backbone=vicuna, preset="antifakeprompt", **config)
    detector.vlm_ = load_vlm(vicuna, device="meta")
    assert detector.n_trainable == expected
    assert sum(p.numel() for p in detector.vlm_.model.parameters() if p.requires_grad) == expected
    everything = [*detector.vlm_.model.parameters(), *detector.vlm_.tower.model.parameters()]
    assert 7.9e9 < sum(p.numel() for p in everything) < 7.93e9


# --- 2., 3., 6. What training changes, and what it leaves ---


@pytest.mark.parametrize("towers", ["both", "qformer", "llm"])
def test_same_logits_from_plain_transformers(folder, frame, towers):
    detector = fitted("vlm-prompt", folder, frame, n_vectors=2, towers=towers, lr=0.5)
    plain = load_vlm(folder, dtype="float32")
    for tower, prompt in detector.adapters_.items():
        words, model = (
            (plain.qformer_tokenizer, plain.model.qformer)
            if tower == "qformer"
            else (plain.tokenizer, plain.model.language_model)
        )
        ids = soft_prompts.add_words(words, ["[*1]", "[*2]"])
        if model.get_input_embeddings().num_embeddings <= max(ids):
            model.resize_token_embeddings(max(ids) + 1)
        with torch.no_grad():
            model.get_input_embeddings().weight[ids] = soft_prompts.vectors(prompt)
    texts, tokens = detector.texts(), tokens_of(plain, frame)
    encoded = plain.encode([texts["llm"]] * 12, qformer_questions=[texts["qformer"]] * 12)
    expected = detector.vlm_.logits(tokens, detector._encode().take(torch.zeros(12, dtype=torch.long)))
    assert torch.allclose(plain.logits(tokens, encoded), expected, atol=1e-5)
    assert expected.std(0).max() > 1e-3  # the images differ, so the comparison says something


def test_nothing_but_two_rows_changes(folder, frame):
    before = load_vlm(folder, dtype="float32").model.state_dict()
    detector = fitted("vlm-prompt", folder, frame, lr=0.5)
    after = detector.vlm_.model.state_dict()
    seen = set()
    for key, value in after.items():
        name = key.replace(".base_layer", "")
        if name in before:
            assert torch.equal(value[: len(before[name])], before[name]), key
            seen.add(name)
        else:
            assert "trainable_tokens" in key
    assert seen == set(before)
    trained = [tuple(p.shape) for p in detector.vlm_.model.parameters() if p.requires_grad]
    assert trained == [(1, 16), (1, 16)]
    fresh = VlmPrompt(backbone=folder, dtype="float32")
    for tower, prompt in detector.adapters_.items():
        assert not torch.equal(soft_prompts.vectors(prompt), soft_prompts.vectors(fresh.adapters_[tower]))


@pytest.mark.parametrize(
    "name, config", [("vlm-prompt", {"n_vectors": 2}), ("vlm-lora", {}), ("vlm-lora", {"tower": "qformer"})]
)
def test_adapters_load_with_plain_peft(folder, frame, tmp_path, name, config):
    detector = fitted(name, folder, frame, lr=0.1, **config)
    detector.save(tmp_path / "run")
    model = InstructBlipForConditionalGeneration.from_pretrained(folder).eval()
    ours = detector.vlm_
    for tower, adapter in (("qformer", "adapter-qformer"), ("language_model", "adapter-llm")):
        if name == "vlm-lora":
            adapter = f"adapter-{detector.tower}"
            if (tower == "qformer") != (detector.tower == "qformer"):
                continue
        base = getattr(model, tower)
        rows = len(ours.qformer_tokenizer if tower == "qformer" else ours.tokenizer)
        if base.get_input_embeddings().num_embeddings < rows:
            base.resize_token_embeddings(rows)
        PeftModel.from_pretrained(base, tmp_path / "run" / adapter)
    pixels = ours.tower.preprocess([Image.open(f).convert("RGB") for f in frame["file"]])
    inputs = vars(detector._encode().take(torch.zeros(12, dtype=torch.long)))
    inputs = {k: v for k, v in inputs.items() if k not in ("positions", "labels")}
    logits = model(pixel_values=pixels, **inputs).logits
    place = -1 if inputs["decoder_input_ids"] is None else 0
    ids = [ours.answer_id(a) for a in ("yes", "no")]
    found = logits[:, place][:, ids].softmax(1)[:, 1]
    rows = detector._encode().take(torch.zeros(12, dtype=torch.long))
    expected = ours.logits(tokens_of(ours, frame), rows)[:, 0, ids].softmax(1)[:, 1]
    assert torch.allclose(found, expected, atol=1e-5)
    again = type(detector).load(tmp_path / "run")
    assert np.allclose(again.score(frame), detector.score(frame), atol=1e-6)
    assert again.n_trainable == detector.n_trainable


# --- 4. Where the pseudo-word stands, and what must not matter ---


@pytest.mark.parametrize(
    "position, expected",
    [
        ("postfix", "Is this photo real [*]?"),
        ("prefix", "[*] Is this photo real?"),
        ("replace", "Is this photo [*]?"),
    ],
)
def test_templates(position, expected):
    assert place_pseudo_words("Is this photo real?", position, ["[*]"]) == expected
    two = place_pseudo_words("Is this photo real?", position, ["[*1]", "[*2]"])
    assert two == expected.replace("[*]", "[*1] [*2]")
    assert place_pseudo_words("Is [*] here?", position, ["[*]"]) == "Is [*] here?"


def test_scores_do_not_depend_on_padding_order_or_batch(folder, frame):
    vlm = load_vlm(folder, dtype="float32")
    tokens, question = tokens_of(vlm, frame), "is this photo real?"
    alone = vlm.logits(tokens, vlm.encode([question] * 12))
    longer = "is this photo real and not blurred and not noisy and not dark?"
    padded = vlm.encode([question] * 12 + [longer])
    assert padded.qformer_attention_mask[0].sum() < padded.qformer_attention_mask[12].sum()
    assert torch.allclose(vlm.logits(tokens, padded.take(torch.arange(12))), alone, atol=1e-5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(vlm.logits(tokens[order], vlm.encode([question] * 12)), alone[order], atol=1e-5)
    one = torch.cat([vlm.logits(t[None], vlm.encode([question])) for t in tokens])
    assert torch.allclose(one, alone, atol=1e-5)
    losses = vlm.losses(tokens[:2], vlm.encode([question] * 2, ["yes", "not blurred"]))
    each = [
        vlm.losses(tokens[i : i + 1], vlm.encode([question], [a]))
        for i, a in enumerate(["yes", "not blurred"])
    ]
    assert torch.allclose(losses, torch.cat(each), atol=1e-5)


def test_tokens_read_from_pixels_give_the_same_scores(folder, frame):
    cached = fitted("vlm-prompt", folder, frame, lr=0.1)
    uncached = fitted("vlm-prompt", folder, frame, lr=0.1, cache_tokens=False)
    assert np.allclose(cached.score(frame), uncached.score(frame), atol=1e-3)  # the cache holds float16


def test_queries_are_what_the_q_former_gives_while_an_image_is_scored(folder, frame):
    tuned = fitted("vlm-prompt", folder, frame, lr=0.5)
    plain = fitted("vlm-zero-shot", folder, frame)
    found = {}
    for detector in (plain, tuned):
        seen = []
        hook = detector.vlm_.model.qformer.register_forward_hook(
            lambda _m, _i, out, to=seen: to.append(out[0])
        )
        detector.score(frame)
        hook.remove()
        found[detector.name] = detector.queries(frame)
        assert found[detector.name].shape == (12, 3, 16) and found[detector.name].dtype == np.float32
        assert np.allclose(found[detector.name], torch.cat(seen)[:, :3], atol=1e-5)
    assert np.abs(found["vlm-prompt"] - found["vlm-zero-shot"]).max() > 1e-3  # the pseudo-word is read


def test_queries_do_not_depend_on_the_batch(folder, frame):
    plain = VlmZeroShot(backbone=folder, dtype="float32")  # nothing is trained, so it needs no fit
    whole = plain.queries(pd.concat([frame] * 3, ignore_index=True))  # 36 images, more than a batch
    np.testing.assert_array_equal(whole[12:24], whole[:12])
    for i in (0, 7):
        np.testing.assert_array_equal(plain.queries(frame.iloc[[i]])[0], whole[i])
    uncached = VlmZeroShot(backbone=folder, dtype="float32", cache_tokens=False)
    assert np.allclose(uncached.queries(frame), whole[:12], atol=1e-2)  # the cache holds float16
    assert np.abs(plain.queries(frame, "blur:2") - whole[:12]).max() > 1e-3


def test_queries_of_an_untrained_word_are_refused(folder, frame):
    with pytest.raises(ModelError, match="vlm-prompt is not fitted"):
        VlmPrompt(backbone=folder, dtype="float32").queries(frame)
    with pytest.raises(ValueError, match="perturbation"):
        VlmZeroShot(backbone=folder, dtype="float32").queries(frame, "jpge:3")


# --- What is refused ---


@pytest.mark.parametrize(
    "config, message",
    [
        ({"question": "Real or fake"}, "no place for a postfix"),
        ({"question": "Is this photo fake?", "position": "replace"}, "exactly one word 'real'"),
        ({"position": "infix"}, "position is 'infix'"),
        ({"towers": "vision"}, "towers is 'vision'"),
        ({"n_vectors": 0}, "at least 1"),
        ({"answers": ("yes", "yes")}, "expected two words"),
        ({"answers": "no"}, "answers is 'no', expected a list of 2 words"),
        ({"answer_scoring": "guess"}, "answer_scoring is 'guess'"),
        ({"preset": "paper"}, "preset is 'paper'"),
        ({"lr": -1.0}, "lr is -1.0"),
    ],
)
def test_wrong_configs_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        VlmPrompt(**config)


def test_wrong_models_are_named(folder, tmp_path):
    LlamaConfig(**VLM_SMALL).save_pretrained(tmp_path / "llama")
    with pytest.raises(ModelError, match="a llama model, expected instructblip"):
        load_vlm(str(tmp_path / "llama"))
    with pytest.raises(ModelError, match=r"cannot load .*nowhere"):
        load_vlm(str(tmp_path / "nowhere"))


def test_damaged_weights_name_the_backbone(tmp_path):
    where = Path(small_vlm(tmp_path))
    weights = where / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=f"backbone {where}: cannot load"):
        load_vlm(str(where), device="cpu")


def test_code_in_a_backbones_folder_never_runs(tmp_path, monkeypatch):
    """Not even where transformers would ask, and the answer is yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    config = {"model_type": "stranger", "auto_map": {"AutoConfig": "harm.StrangerConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (tmp_path / "harm.py").write_text(f"{code}\n\n\nclass StrangerConfig:\n    pass\n")
    with pytest.raises(ModelError, match=f"cannot load {tmp_path}"):
        load_vlm(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_revision_is_taken_from_the_hubs_cache_and_recorded(tmp_path, monkeypatch):
    """Two commits of one repository, as the hub's client stores them; `main` is the first."""
    folder, repository = small_vlm(tmp_path / "made"), tmp_path / "models--someone--small"
    for commit, side in (("a" * 40, 0), ("b" * 40, 1)):
        snapshot = shutil.copytree(folder, repository / "snapshots" / commit)
        config = json.loads((snapshot / "config.json").read_text())
        (snapshot / "config.json").write_text(json.dumps(config | {"initializer_range": side + 0.5}))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = {"backbone": "someone/small", "dtype": "float32"}
    for revision, expected in ((None, 0.5), ("b" * 40, 1.5)):
        detector = VlmZeroShot(**config, revision=revision)
        assert detector.vlm_.model.config.initializer_range == expected
        assert detector.config()["revision"] == revision


def test_an_adapter_of_another_width_is_refused(folder, frame, tmp_path):
    fitted("vlm-prompt", folder, frame).save(tmp_path / "run")
    wide = small_config()
    wide.qformer_config.hidden_size = 32
    other = small_vlm(tmp_path / "wide", wide)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["config"]["backbone"], config["weights"] = other, ""
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (tmp_path / "run" / "checksums.json").unlink()
    with pytest.raises(ValueError, match="width 32"):
        VlmPrompt.load(tmp_path / "run")
