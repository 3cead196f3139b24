from __future__ import annotations

import numpy as np
import pytest
import torch
from models import clip_tokenizer, small_clip, small_vlm
from test_vlm import frame, own_cache  # noqa: F401
from typer.testing import CliRunner

from afp import detectors
from afp.cli import app
from afp.detectors.base import read_config
from afp.detectors.released import export_checkpoint, import_checkpoint
from afp.errors import ModelError
from afp.models import soft_prompts
from afp.models.checkpoints import KEYS, read_checkpoint, read_state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_vlm(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return small_clip(tmp_path_factory.mktemp("clip"), clip_tokenizer().eos_token_id)


def as_lavis_writes_it(file, **changes):
    """Trained rows, 16 wide as the small model is, all persistent buffers, and the state of the training."""
    state = {key: torch.full((1, 16), 0.1 * (i + 1)) for i, key in enumerate(KEYS.values())}
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
    for i in range(32):
        state[f"llm_model.model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.rand(64)
    state = {k: v for k, v in (state | changes).items() if v is not None}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).state_dict()
    content = {
        "model": state,
        "optimizer": optimizer,
        "config": {"run": {"seed": 42}},
        "scaler": {},
        "epoch": 9,
    }
    torch.save(content, file)
    return file


def run_command(*arguments):
    return CliRunner().invoke(app, ["import-checkpoint", *map(str, arguments)])


def test_a_released_file_becomes_a_run_that_scores_and_comes_out_as_it_went_in(tmp_path, folder, frame):  # noqa: F811
    file, run, back = as_lavis_writes_it(tmp_path / "a.pth"), tmp_path / "run", tmp_path / "back.pth"
    done = run_command(file, "--out", run, "--backbone", folder, "--set", "statistics=lama")
    assert done.exit_code == 0 and "33 other tensors are ignored: Qformer" in done.output
    config = read_config(run)
    assert config["config"]["normalisation"]["codec"] == "none" and config["threshold"] == 0.5
    assert config["config"]["statistics"] == "lama" and config["n_trainable"] == 32
    detector = detectors.load(run)
    assert tuple(detector.vlm_.tower.image_processor.image_mean) == (0.4722, 0.4490, 0.4117)
    scores = detector.score(frame)
    assert scores.shape == (12,) and scores.std() > 0
    assert run_command(back, "--export", run).exit_code == 0
    read, again = read_checkpoint(file)[0], read_checkpoint(back)
    assert all(torch.equal(again[0][tower], row) for tower, row in read.items()) and again[1] == []
    with pytest.raises(ModelError, match="exists, expected a new file"):
        export_checkpoint(run, file)
    table = str(tmp_path / "s.csv")
    scored = CliRunner().invoke(app, ["score", frame["file"].iloc[0], "--run", str(run), "--out", table])
    assert scored.exit_code == 0 and "1 scored" in scored.output
    with pytest.raises(ModelError, match="holds a run"):
        import_checkpoint(file, run, backbone=folder)
    other = tmp_path / "x"
    for wrong in (["--threshold", "2"], ["--export", run], ["--set", "position=middle"], ["--set", "x"]):
        result = run_command(file, "--out", other, "--backbone", folder, *wrong)
        assert isinstance(result.exception, ValueError) and not other.exists()


def test_one_tower_alone(tmp_path, folder):
    file = as_lavis_writes_it(tmp_path / "llm.pth", **{KEYS["qformer"]: None})
    run, _ = import_checkpoint(file, tmp_path / "run", backbone=folder)
    assert read_config(run)["config"]["towers"] == "llm" and read_config(run)["n_trainable"] == 16
    for wrong, message in (
        ({"towers": "qformer"}, "towers"),
        ({"n_vectors": 2}, "n_vectors 1, which is set to 2"),
    ):
        with pytest.raises(ModelError, match=f"holds rows for {message}"):
            import_checkpoint(file, tmp_path / "other", backbone=folder, **wrong)


HUGE = torch.zeros(1).as_strided((1, 3_500_000_000), (0, 0))  # 14 GB of float32 in 4 bytes of a file


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {KEYS["llm"]: torch.full((1, 16), float("nan"))},
            "embed_tokens.weight holds values that are not finite",
        ),
        ({KEYS["llm"]: torch.zeros(16)}, r"train_embed_tokens.weight is \(16,\)"),
        ({KEYS["llm"]: torch.zeros(2, 16)}, "different numbers of vectors"),
        ({KEYS["llm"]: torch.zeros(1, 32)}, r"tokens.weight has shape \(1, 32\), .* needs \(1, 16\)"),
        ({KEYS["llm"]: HUGE}, r"claims the shape \(1, 3500000000\), more than the file holds"),
        ({"visual_encoder.pos_embed": HUGE}, "visual_encoder.pos_embed claims the shape"),
        ({"x": torch.eye(2).to_sparse()}, "x is no dense tensor with its values"),
        ({key: None for key in KEYS.values()}, "none of the keys"),
    ],
)
def test_wrong_files_are_named(tmp_path, folder, changes, message):
    with pytest.raises(ModelError, match=message):
        import_checkpoint(
            as_lavis_writes_it(tmp_path / "a.pth", **changes), tmp_path / "run", backbone=folder
        )
    assert not (tmp_path / "run").exists()


def test_files_that_are_no_checkpoints(tmp_path):
    class Harm:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'harmed')!r}, 'w')",))

    torch.save({"model": Harm()}, tmp_path / "harm.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in (
        ("harm", r"Python objects \(builtins.exec\)"),
        ("text", "damaged, or of another kind"),
        ("list", "holds no tensors"),
        ("gone", "no such file"),
    ):
        with pytest.raises(ModelError, match=message) as error:
            read_state(tmp_path / f"{name}.pth")
        assert "weights_only" not in str(error.value)  # torch would advise to switch the check off
    assert not (tmp_path / "harmed").exists()


def test_no_bit_flipped_in_a_released_file_ends_in_a_traceback(tmp_path):
    file = tmp_path / "a.pth"
    torch.save({"weight": torch.arange(4.0)}, file)
    whole = file.read_bytes()
    for i in range(len(whole)):
        flipped = bytearray(whole)
        flipped[i] ^= 1 << i % 8
        file.write_bytes(flipped)
        try:
            assert read_state(file)["weight"].shape == (4,), i
        except ModelError as error:
            assert "a.pth" in str(error), i


def test_universal_fake_detects_layer_becomes_a_linear_probe(tmp_path, clip_folder, frame):  # noqa: F811
    layer = torch.nn.Linear(12, 1)
    torch.save(layer.state_dict(), tmp_path / "fc_weights.pth")
    done = run_command(tmp_path / "fc_weights.pth", "--out", tmp_path / "run", "--backbone", clip_folder)
    assert done.exit_code == 0 and "crop the central 224" in done.output
    detector = detectors.load(tmp_path / "run")
    found = np.asarray(detector._features(frame, "none", False))
    expected = layer(torch.from_numpy(found)).sigmoid()[:, 0].detach()
    assert torch.allclose(torch.from_numpy(detector.score(frame)).float(), expected, atol=1e-6)
    with pytest.raises(ModelError, match="unknown config field 'question'"):
        import_checkpoint(tmp_path / "fc_weights.pth", tmp_path / "x", clip_folder, question="Real?")
    for state, message in (
        (torch.nn.Linear(9, 1).state_dict(), r"weight has shape \(1, 9\), .* needs \(1, 12\)"),
        ({"weight": torch.zeros(1, 12), "bias": torch.zeros(3)}, r"bias has shape \(3,\), expected \(1,\)"),
        (
            {"weight": torch.zeros(1, 12).int(), "bias": torch.zeros(1)},
            r"weight is \(1, 12\) of int32, expected",
        ),
    ):
        torch.save(state, tmp_path / "other.pth")
        with pytest.raises(ModelError, match=message):
            import_checkpoint(tmp_path / "other.pth", tmp_path / "x", clip_folder)
    torch.save({"weight": layer.weight, "bias": layer.bias}, tmp_path / "parameters.pth")
    run, _ = import_checkpoint(tmp_path / "parameters.pth", tmp_path / "y", clip_folder)
    assert np.array_equal(detectors.load(run).score(frame), detector.score(frame))
    content = bytearray((tmp_path / "fc_weights.pth").read_bytes())
    content[content.index(layer.weight.detach().numpy().tobytes()) + 3] ^= 1
    (tmp_path / "flipped.pth").write_bytes(content)
    for name, message in (
        ("flipped.pth", "is not as it was written"),
        ("", "is a folder, expected a file in it"),
    ):
        with pytest.raises(ModelError, match=message):
            import_checkpoint(tmp_path / name, tmp_path / "x", clip_folder)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("shape", [(4, 16), (2, 4, 16)])
def test_coops_prompts_become_a_clip_prompt(tmp_path, clip_folder, frame, shape):  # noqa: F811
    context = torch.randn(shape)
    state = {
        "ctx": context.half(),
        "token_prefix": torch.zeros(2, 1, 16),
        "token_suffix": torch.zeros(2, 72, 16),
    }
    torch.save({"state_dict": state, "epoch": 2}, tmp_path / "model.pth.tar-2")
    run, note = import_checkpoint(tmp_path / "model.pth.tar-2", tmp_path / "run", clip_folder)
    detector = detectors.load(run)
    assert (
        detector.n_context == 4 and detector.per_class == (len(shape) == 3) and "where the class word" in note
    )
    rows = soft_prompts.vectors(detector.side_.tower)
    assert torch.equal(rows.detach(), context.half().float().reshape(-1, 16))
    assert detector.score(frame).std() > 0


def test_coops_other_files_are_refused_by_their_name(tmp_path, clip_folder):
    state = {"ctx": torch.zeros(4, 16), "token_prefix": torch.zeros(1000, 1, 16)}
    cocoop = {"ctx": torch.zeros(4, 16), "meta_net.linear1.weight": torch.zeros(2, 2)}
    torch.save({"state_dict": cocoop}, tmp_path / "cocoop.pth")
    with pytest.raises(ModelError, match=r"meta_net\.linear1\.weight beside CoOp's prompts"):
        import_checkpoint(tmp_path / "cocoop.pth", tmp_path / "x", clip_folder)
    torch.save({"state_dict": state}, tmp_path / "imagenet.pth")
    with pytest.raises(ModelError, match=r"CoOp's prompts of shape \(1000, 1, 16\), expected those of 2"):
        import_checkpoint(tmp_path / "imagenet.pth", tmp_path / "run", clip_folder)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)  # Dassl stores it whole
    torch.save({"state_dict": state, "scheduler": {"successor": scheduler}}, tmp_path / "dassl.pth")
    with pytest.raises(ModelError, match=r"CosineAnnealingLR.*Dassl and CoOp store their scheduler so"):
        import_checkpoint(tmp_path / "dassl.pth", tmp_path / "run", clip_folder)
