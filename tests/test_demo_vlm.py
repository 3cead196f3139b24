from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from demo_text import fit
from demo_vlm import pretrain, pupil, untrained
from demo_vlm_changes import CHANGES, TILE
from demo_vlm_data import MEASURED, color, measure, picture, plan
from demo_vlm_questions import ALL, SIMPLE, WORDS, Questions, truths
from PIL import Image
from transformers import InstructBlipForConditionalGeneration

from afp.detectors.released import export_checkpoint, import_checkpoint
from afp.models import instructblip
from afp.models.checkpoints import KEYS, read_checkpoint
from afp.paths import DEMO_VLM


@pytest.fixture(scope="module")
def original() -> Image.Image:
    """Something with edges, shades and colours."""
    y, x = np.mgrid[:400, :500]
    waves = [127 + 80 * np.sin(x / p + y / 37) + 40 * (x // 40 % 2) for p in (5, 17, 41)]
    return Image.fromarray(np.stack(waves, axis=2).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def table(original) -> pd.DataFrame:
    rows = []
    for i, change, seed in plan(["photo", "drawing"], 150):
        image = picture(original, change, seed)
        rows.append(
            {"kind": ("photo", "drawing")[i], "change": change, "color": color(image)} | measure(image)
        )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def quantiles(table):
    return table[list(MEASURED)].quantile([1 / 3, 2 / 3])


def test_every_change_changes_and_repeats(original):
    plain = np.asarray(picture(original, "nothing", 3), float)
    for change in CHANGES:
        image = picture(original, change, 3)
        assert image.size == (TILE, TILE) and image == picture(original, change, 3)
        assert (np.abs(np.asarray(image, float) - plain).mean() > 0.3) == (change != "nothing"), change


def test_measures_are_finite_even_on_one_colour():
    for value in (0, 255):
        assert np.isfinite(list(measure(Image.new("RGB", (TILE, TILE), (value,) * 3)).values())).all()


def test_what_made_the_committed_weights_still_runs(table, quantiles):
    torch.manual_seed(0)
    tokens = torch.randn(len(table), 13, 768)
    vlm = pupil(0, tokens)
    before = vlm.model.query_tokens.clone()
    history = pretrain(vlm, tokens, Questions(table, quantiles), (2, 2), 0)
    assert history["lesson"].tolist() == [0, 0, 1, 1] and np.isfinite(history["loss"]).all()
    assert not torch.equal(vlm.model.query_tokens, before)

    captions = pd.DataFrame({"caption": ["a", "b", "c", "d"] * 256})
    texts, images = torch.eye(4, 384), torch.eye(4, 512).repeat(256, 1)
    similar = texts @ fit(images, captions, texts).weight.T @ images[:4].T
    assert similar.argmax(1).tolist() == [0, 1, 2, 3]


def test_no_word_says_whether_a_generator_made_it():
    given_away = {
        "fake",
        "generated",
        "synthetic",
        "ai",
        "natural",
        "untouched",
        "artificial",
        "gan",
        "network",
    }
    assert not given_away & set(WORDS) and len(WORDS) == len(set(WORDS))


def test_real_means_photograph_whatever_was_done_to_it(table, quantiles):
    facts = truths(table, quantiles)
    assert ((facts["real"] == 1) == (table["kind"] == "photo")).all()
    assert table.loc[facts["real"] == 1, "change"].nunique() > 10


def test_answers_are_true_and_balanced(table, quantiles):
    asked, facts = Questions(table, quantiles), truths(table, quantiles)
    for kind in ALL:
        drawn = [asked.draw(kind, np.random.default_rng(i)) for i in range(200)]
        assert all(w in WORDS for _, text, answer in drawn for w in [*text[:-1].split(), answer])
        if kind in ("change", "color"):
            assert all(answer == table[kind][row] for row, _, answer in drawn)
            continue
        yes = np.mean([answer == "yes" for _, _, answer in drawn])
        assert 0.2 < yes < 0.85, kind
        if kind == "single":
            for row, text, answer in drawn:
                assert facts[text[:-1].split()[-1]][row] == (answer == "yes")
    assert sum(ALL.values()) == pytest.approx(1) and sum(SIMPLE.values()) == pytest.approx(1)


def test_the_queries_differ_before_training():
    assert untrained(0).query_tokens.std(1).min() > 0


def test_the_committed_miniature_is_an_instructblip_that_answers(monkeypatch):
    _, info = InstructBlipForConditionalGeneration.from_pretrained(DEMO_VLM, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    monkeypatch.setattr(instructblip, "load_backbone", lambda name: None)
    loaded = instructblip.load_vlm("demo-vlm", device="cpu")
    mean, std = loaded.model.vision_model.mean, loaded.model.vision_model.std
    tokens = mean + std * torch.randn(4, *mean.shape, generator=torch.Generator().manual_seed(0))
    assert set(loaded.ask(tokens, "Is this photo real?")) <= {"yes", "no"}
    assert set(loaded.ask(tokens, "What was done to this photo?")) <= set(CHANGES)
    examined = pd.read_csv(DEMO_VLM / "vqa.csv").set_index("question")
    assert examined["right"]["change"] > 0.6 and examined["right"]["single"] > 0.65


def test_a_word_of_the_miniature_is_read_back_from_the_file_that_it_was_written_to(tmp_path):
    rows = {KEYS["qformer"]: torch.ones(1, 128), KEYS["llm"]: torch.zeros(1, 128)}
    torch.save({"model": rows}, tmp_path / "word.pth")
    run, _ = import_checkpoint(tmp_path / "word.pth", tmp_path / "run", backbone="demo-vlm", preset="demo")
    export_checkpoint(run, tmp_path / "again.pth")
    again = read_checkpoint(tmp_path / "again.pth")[0]
    assert torch.equal(again["qformer"], rows[KEYS["qformer"]]) and torch.equal(
        again["llm"], rows[KEYS["llm"]]
    )


def test_an_answer_ends_with_the_tokenizers_end_token_whatever_the_config_says(monkeypatch):
    monkeypatch.setattr(instructblip, "load_backbone", lambda name: None)
    loaded = instructblip.load_vlm("demo-vlm", device="cpu")
    mean, steps = loaded.model.vision_model.mean[None], []
    loaded.model.generation_config.eos_token_id = 1  # as on the hub, where the tokenizer's is 2
    loaded.model.language_model.register_forward_hook(lambda *_: steps.append(1))
    assert loaded.ask(mean, "Is this photo real?")[0] in ("yes", "no")
    assert len(steps) == 2  # the answer and its end, not ten tokens
