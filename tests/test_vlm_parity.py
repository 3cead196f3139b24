"""AntifakePrompt to the letter: each row of docs/parity.md that needs no weights of 7 billion numbers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from demo_vlm import llm_tokenizer, qformer_tokenizer
from models import small_config, small_vlm
from PIL import Image
from test_vlm import fitted, folder, frame, own_cache, tokens_of  # noqa: F401
from transformers import InstructBlipForConditionalGeneration, LlamaTokenizer

from afp.detectors.vlm_prompt import VlmPrompt
from afp.detectors.vlm_zero_shot import VlmZeroShot
from afp.errors import ModelError
from afp.models import soft_prompts
from afp.models.instructblip import crop_square, load_vlm

PAPER = {"preset": "antifakeprompt", "dtype": "float32"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return small_vlm(tmp_path_factory.mktemp("llama"))


# --- Schedule and loss ---


def lavis_rates(epochs, steps, lr=1e-5, warmup_lr=1e-8, warmup_steps=0):
    """LAVIS's LinearWarmupCosineLRScheduler, called before each step with its epoch and its number in it."""
    for epoch in range(epochs):
        for step in range(steps):
            if epoch == 0:
                yield min(lr, warmup_lr + (lr - warmup_lr) * step / max(warmup_steps, 1))
            else:
                yield lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def test_the_learning_rate_of_every_step_is_laviss(llama, frame):  # noqa: F811
    detector = VlmPrompt(backbone=llama, **PAPER, batch_size=5).fit(frame, frame, progress=False)
    assert detector.history_["lr"].tolist() == pytest.approx(list(lavis_rates(10, 3)), rel=1e-12)
    recipe = VlmPrompt(preset="antifakeprompt").recipe()
    assert (recipe.optimizer, recipe.weight_decay, recipe.batch_size, recipe.seed) == ("adamw", 0.05, 6, 42)


def test_the_loss_is_the_mean_over_answers_and_end_tokens(llama, tmp_path):
    """Unweighted, although nine of twelve images are fake, and each token counts, although `not real` has two."""
    for i in range(12):  # the same in a mirror, and square: what is drawn in training changes nothing
        Image.new("RGB", (30, 30), (20 * i, 99, 255 - 20 * i)).save(tmp_path / f"{i:02}.png")
    files = sorted(map(str, tmp_path.glob("*.png")))
    rows = pd.DataFrame({"file": files, "sha256": "", "label": [0] * 3 + [1] * 9})
    config = {"backbone": llama, "answers": ("yes", "not real"), "answer_scoring": "rank", "batch_size": 12}
    detector = VlmPrompt(**PAPER, **config, epochs=1)
    named = rows.assign(generator=["real"] * 3 + ["noise"] * 9)
    detector.fit(named, named, progress=False)
    start = VlmPrompt(**PAPER, **config)  # the rows before the first step
    assert len(start.adapters_) == 2
    vlm, words, texts = start.vlm_, start.vlm_.tokenizer, []
    prompt, heard = (
        vlm.prompt_ids(start.texts()["llm"]),
        start._encode().take(torch.zeros(12, dtype=torch.long)),
    )
    for label in rows["label"]:
        answer = words(start.answers[label], add_special_tokens=False).input_ids
        texts.append([4] * 3 + prompt + answer + [words.eos_token_id] + [words.pad_token_id] * (1 - label))
    ids = torch.tensor(texts)
    logits = vlm.model(
        pixel_values=vlm.tower.extract(vlm.tower.preprocess([Image.open(f) for f in files]), ("tokens",))[
            "tokens"
        ],
        qformer_input_ids=heard.qformer_input_ids,
        qformer_attention_mask=heard.qformer_attention_mask,
        input_ids=ids,
        attention_mask=(ids != words.pad_token_id).long(),
    ).logits[..., : vlm.n_words]  # as in LAVIS, the pseudo-word is no answer
    ids[:, : 3 + len(prompt)] = -100
    ids[ids == words.pad_token_id] = -100
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert detector.history_["loss"][0] == pytest.approx(expected.item(), rel=1e-5)


# --- Pixels ---


def independent_pixels(file, size, mean, std):
    """Pillow and numpy alone: the short side resized (bicubic), the central square, mean and deviation."""
    image = Image.open(file).convert("RGB")
    w, h = image.size
    new = (size, size * h // w) if w <= h else (size * w // h, size)
    values = np.asarray(image.resize(new, Image.Resampling.BICUBIC), np.float32) / 255
    top, left = (round((n - size) / 2) for n in values.shape[:2])
    square = values[top : top + size, left : left + size]
    return ((square - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)


@pytest.mark.parametrize(
    "statistics, mean, std",
    [
        (None, (0.4730, 0.4499, 0.4129), (0.2780, 0.2713, 0.2872)),
        ("lama", (0.4722, 0.4490, 0.4117), (0.2772, 0.2708, 0.2867)),
    ],
)
def test_pixels_are_those_of_an_independent_pipeline(llama, tmp_path, statistics, mean, std):
    detector = VlmZeroShot(backbone=llama, **PAPER, statistics=statistics)
    for size in ((28, 28), (31, 47), (61, 40), (200, 57), (17, 40)):
        noise = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(noise).save(file := tmp_path / f"{size[0]}.png")
        one = pd.DataFrame({"file": [str(file)], "sha256": [""]})
        pixels = detector._images(one, "none", False)[0].image
        np.testing.assert_allclose(pixels, independent_pixels(file, 28, mean, std), atol=1e-6)
    plain = VlmZeroShot(backbone=llama, dtype="float32").vlm_.tower
    assert detector.vlm_.tower.fingerprint != plain.fingerprint


def test_training_sees_a_fresh_random_square_each_time(llama, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (28, 44, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    windows = [Image.fromarray(np.ascontiguousarray(noise[:, i : i + 28])) for i in range(17)]
    known = {w.tobytes(): (i, False) for i, w in enumerate(windows)}
    known |= {
        w.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes(): (i, True) for i, w in enumerate(windows)
    }
    drawn = [known[crop_square(image, 28, str(i)).tobytes()] for i in range(600)]
    assert {i for i, _ in drawn} == set(range(17)) and 0.4 < np.mean([flip for _, flip in drawn]) < 0.6
    image.save(tmp_path / "a.png")
    one = pd.DataFrame({"file": [str(tmp_path / "a.png")], "sha256": [""]})
    detector = VlmPrompt(backbone=llama, **PAPER, cache_tokens=True)  # even then: never cached in training
    images = detector._images(one, "none", False, training=True)
    seen = []
    for epoch in range(20):
        images.set_epoch(epoch)
        seen.append(images[0].image.numpy().tobytes())
    assert len(set(seen)) > 5 and images[0].image.numpy().tobytes() == seen[-1]


# --- Scores ---


def by_hand(where, rows, pixels, question, answers, dtype):
    """P(fake) by stock transformers, called part by part, the trained rows put among the embeddings by hand."""
    model = InstructBlipForConditionalGeneration.from_pretrained(where, dtype=torch.float32).eval()
    words, q_words = llm_tokenizer(), qformer_tokenizer()
    half = None
    if dtype == "mixed":  # LAVIS: linear layers of the image tower and the language model in float16, AMP
        half = torch.float16
        for module in (*model.vision_model.modules(), *model.language_model.modules()):
            if isinstance(module, torch.nn.Linear):
                module.half()
        model.language_model.model.norm.half()
        for layer in model.language_model.model.layers:
            layer.input_layernorm.half(), layer.post_attention_layernorm.half()
    else:
        model.to(getattr(torch, dtype))
    left, right = question.split("[*]")
    n = len(pixels)

    def amp(kind):
        return torch.autocast("cpu", kind or torch.bfloat16, enabled=half is not None and kind is not None)

    with torch.no_grad():
        with amp(half):
            seen = model.vision_model(pixels.to(model.vision_model.embeddings.patch_embedding.weight.dtype))[
                0
            ]
        table = model.qformer.embeddings.word_embeddings
        ids = [q_words.cls_token_id, *q_words(left, add_special_tokens=False).input_ids, len(table.weight)]
        ids += [*q_words(right, add_special_tokens=False).input_ids, q_words.sep_token_id]
        grown = torch.cat([table.weight, rows["qformer"].to(table.weight.dtype)])
        table.weight = torch.nn.Parameter(grown)
        heard = model.qformer(
            input_ids=torch.tensor([ids] * n),
            query_embeds=model.query_tokens.to(grown.dtype).expand(n, -1, -1),
            encoder_hidden_states=seen.float() if half else seen,
        )
        queries = model.language_projection(heard.last_hidden_state[:, :3])
        table = model.language_model.get_input_embeddings().weight
        first = [words.bos_token_id, *words(left, add_special_tokens=False).input_ids]
        last = words(right, add_special_tokens=False).input_ids
        asked = torch.cat([table[first], rows["llm"].to(table.dtype), table[last]]).expand(n, -1, -1)
        with amp(torch.bfloat16):
            logits = model.language_model(inputs_embeds=torch.cat([queries, asked], dim=1)).logits[:, -1]
        ids = [words.convert_tokens_to_ids(a) for a in answers]
        return logits[:, ids].float().softmax(1)[:, 1]


@pytest.mark.parametrize(
    "dtype, rounding", [("float32", 1e-6), ("bfloat16", 1e-2), ("float16", 2e-3), ("mixed", 1e-3)]
)
def test_scores_are_those_of_a_second_implementation(llama, frame, dtype, rounding):  # noqa: F811
    """`rounding` is what the order of operations costs. The image tower's tokens are compared too."""
    trained = fitted("vlm-prompt", llama, frame, lr=0.5)
    rows = {tower: soft_prompts.vectors(a).detach() for tower, a in trained.adapters_.items()}
    detector = VlmPrompt(backbone=llama, preset="antifakeprompt", dtype=dtype)
    for tower, adapter in detector.adapters_.items():
        soft_prompts.set_vectors(adapter, rows[tower])
    detector.threshold_ = 0.5
    images = [Image.open(f).convert("RGB") for f in frame["file"]]
    pixels = detector.vlm_.tower.preprocess(images)
    expected = by_hand(llama, rows, pixels, "Is this photo real [*]?", ("yes", "no"), dtype)
    assert expected.std() > 0.01  # the images differ, so the comparison says something
    np.testing.assert_allclose(detector.score(frame), expected, atol=rounding)
    exact = by_hand(llama, rows, pixels, "Is this photo real [*]?", ("yes", "no"), "float32")
    assert (expected - exact).abs().max() < {"float32": 1e-6, "bfloat16": 0.1}.get(dtype, 0.02)


def test_the_mix_trains_as_float32_does(llama, frame):  # noqa: F811
    config = {"preset": "antifakeprompt", "backbone": llama, "epochs": 2, "lr": 0.1}
    found = {d: VlmPrompt(**config, dtype=d).fit(frame, frame, progress=False) for d in ("float32", "mixed")}
    mixed = found["mixed"].vlm_
    assert mixed.model.qformer.dtype == mixed.model.language_projection.weight.dtype == torch.float32
    assert mixed.model.language_model.lm_head.weight.dtype == torch.float16
    losses = [d.history_["loss"].to_numpy() for d in found.values()]
    np.testing.assert_allclose(*losses, rtol=0.02)
    for tower in ("qformer", "llm"):
        rows = [soft_prompts.vectors(d.adapters_[tower]).detach() for d in found.values()]
        assert rows[1].dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(*rows).item() > 0.99


def test_every_dtype_works_where_it_may(tmp_path, frame):  # noqa: F811
    t5 = small_vlm(tmp_path / "t5", small_config("t5"))
    with pytest.raises(ModelError, match=r"the T5 of .* overflows"):
        load_vlm(t5, dtype="float16")
    with pytest.raises(ModelError, match="dtype is 'half'"):
        load_vlm(t5, dtype="half")
    detector = VlmPrompt(backbone=t5, dtype="mixed", epochs=1).fit(frame, frame, progress=False)
    assert detector.vlm_.mixed == torch.bfloat16 and detector.score(frame).std() > 0


# --- Ranking ---


def test_rank_is_one_forwards_logits_for_answers_of_one_token(folder, frame):  # noqa: F811
    config = {"backbone": folder, "dtype": "float32"}
    scores = [
        VlmZeroShot(**config, answer_scoring=how).fit(frame, frame, progress=False).score(frame)
        for how in ("logits", "rank")
    ]
    np.testing.assert_allclose(*scores, atol=1e-6)
    assert scores[0].std() > 0.01


def test_rank_adds_up_the_tokens_of_an_answer_and_no_end_token(llama, frame):  # noqa: F811
    answers = ("not painted", "painted")
    with pytest.raises(ModelError, match="'not painted' is not exactly one token"):
        VlmZeroShot(backbone=llama, dtype="float32", answers=answers).fit(frame, frame, progress=False)
    detector = VlmZeroShot(backbone=llama, dtype="float32", answers=answers, answer_scoring="rank")
    vlm = detector.vlm_
    tokens, ids = tokens_of(vlm, frame), [vlm.answer_id(w) for w in ("not", "painted")]
    steps = vlm.logits(tokens, vlm.encode(["Is this photo real?"] * 12, ["not painted"] * 12)).log_softmax(-1)
    expected = torch.stack([steps[:, 0, ids[0]] + steps[:, 1, ids[1]], steps[:, 0, ids[1]]], dim=1)
    assert torch.allclose(detector.logits(tokens), expected, atol=1e-5)


# --- Text ---


def llama_tokenizer(left_out="", **settings) -> LlamaTokenizer:
    """Llama's own class and ids for the pieces of the question; the other 31,900 pieces are stand-ins."""
    pieces = {"▁Is": 1317, "▁this": 445, "▁photo": 15373, "▁real": 1855, "▁?": 1577, "?": 29973, "▁": 29871}
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | pieces
    free = iter(sorted(set(range(32000)) - set(vocab.values())))
    merges = []
    for piece in set(pieces) - {left_out}:
        for i in range(2, len(piece) + 1):
            merges.append((piece[: i - 1], piece[i - 1]))
    for part in {part for piece in pieces for part in (*piece, *(piece[:i] for i in range(1, len(piece))))}:
        if part not in vocab:
            vocab[part] = next(free)
    vocab |= {f"<{i}>": i for i in free}
    return LlamaTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), pad_token="[PAD]", **settings)


@pytest.mark.parametrize("settings", [{"legacy": True}, {"legacy": False}, {"add_bos_token": True}])
def test_the_questions_ids_are_the_originals(tmp_path, settings):
    where = small_vlm(tmp_path)
    llama_tokenizer(**settings).save_pretrained(where)
    vlm = load_vlm(where, device="meta")
    (star,) = soft_prompts.add_words(vlm.tokenizer, ["[*]"])
    assert vlm.prompt_ids("Is this photo real [*]?") == [2, 1317, 445, 15373, 1855, star, 1577]
    assert vlm.prompt_ids("[*] Is this photo real?") == [2, star, 1317, 445, 15373, 1855, 29973]


def test_a_llama_tokenizer_with_other_ids_is_refused_at_load(tmp_path):
    where = small_vlm(tmp_path)
    llama_tokenizer(left_out="▁photo").save_pretrained(where)
    with pytest.raises(
        ModelError, match=r"reads 'Is this photo real \[\*\]\?' as .* expected \[2, 1317, 445, 15373"
    ):
        load_vlm(where, device="meta")


# --- What is printed ---


def test_the_recipe_is_explained_where_it_differs():
    table = VlmPrompt(preset="antifakeprompt", lr=1e-3, dtype="mixed").explain_recipe().set_index("setting")
    assert table.loc["lr", "value"] == "0.001" and table.loc["lr", "differs"] == "original: 1e-05"
    assert table.loc["epochs", "differs"] == "" and "max_epoch" in table.loc["epochs", "source"]
    assert table.loc["question", "value"] == "Is this photo real [*]?"
    demo = VlmPrompt().explain_recipe().set_index("setting")
    assert demo.loc["normalisation", "differs"] == "original: none" and (demo["source"] != "").all()
