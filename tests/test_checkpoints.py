from __future__ import annotations

import json

import pytest
import torch
from test_vlm import frame, own_cache, save, small_config  # noqa: F401
from typer.testing import CliRunner

from afp.cli import app
from afp.detectors.released import export_checkpoint, import_checkpoint
from afp.detectors.vlm_prompt import VlmPrompt
from afp.errors import ModelError
from afp.models.checkpoints import KEYS, read_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("llama"), small_config())


def written(file, **changes):
    """A file in the released layout, 16 wide as the small model is."""
    state = {key: torch.full((1, 16), 0.1 * (i + 1)) for i, key in enumerate(KEYS.values())}
    torch.save({"model": {k: v for k, v in (state | changes).items() if v is not None}}, file)
    return file


def test_an_imported_file_scores_and_comes_out_as_it_went_in(tmp_path, folder, frame):  # noqa: F811
    file = written(tmp_path / "released.pth")
    run = import_checkpoint(file, tmp_path / "run", backbone=folder)
    detector = VlmPrompt.load(run)
    scores = detector.score(frame)
    assert scores.shape == (12,) and scores.std() > 0
    assert detector.n_trainable == 32 and detector.threshold_ == 0.5
    back = read_checkpoint(export_checkpoint(run, tmp_path / "back.pth"))
    assert all(torch.equal(back[tower], row) for tower, row in read_checkpoint(file).items())


def test_the_command_makes_a_run_that_scores_and_writes_it_back(tmp_path, folder, frame):  # noqa: F811
    file, run, back = written(tmp_path / "released.pth"), tmp_path / "run", tmp_path / "back.pth"
    command = ["import-checkpoint", str(file), "--out", str(run), "--backbone", str(folder)]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert CliRunner().invoke(app, ["import-checkpoint", str(back), "--export", str(run)]).exit_code == 0
    read, again = read_checkpoint(file), read_checkpoint(back)
    assert read.keys() == again.keys() and all(torch.equal(read[k], again[k]) for k in read)
    table = str(tmp_path / "s.csv")
    scored = CliRunner().invoke(app, ["score", frame["file"].iloc[0], "--run", str(run), "--out", table])
    assert scored.exit_code == 0 and "1 scored" in scored.output
    with pytest.raises(ModelError, match="holds a run"):
        import_checkpoint(file, run, backbone=folder)
    for wrong in (["--threshold", "2"], ["--export", str(run)], ["--position", "middle"]):
        arguments = [
            "import-checkpoint",
            str(file),
            "--out",
            str(tmp_path / "x"),
            "--backbone",
            str(folder),
            *wrong,
        ]
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, ValueError) and not (tmp_path / "x").exists()


def test_one_tower_alone(tmp_path, folder):
    file = written(tmp_path / "llm.pth", **{KEYS["qformer"]: None})
    config = json.loads(
        (import_checkpoint(file, tmp_path / "run", backbone=folder) / "config.json").read_text()
    )
    assert config["config"]["towers"] == "llm" and config["n_trainable"] == 16


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {KEYS["llm"]: torch.full((1, 16), float("nan"))},
            "train_embed_tokens.weight holds values that are not finite",
        ),
        ({KEYS["llm"]: torch.zeros(16)}, r"train_embed_tokens.weight is \(16,\)"),
        ({KEYS["llm"]: torch.zeros(2, 16)}, "different numbers of vectors"),
        (
            {KEYS["llm"]: torch.zeros(1, 32)},
            r"train_embed_tokens.weight has shape \(1, 32\), .* needs \(1, 16\)",
        ),
        ({"llm_proj.weight": torch.zeros(1)}, "'llm_proj.weight' is unknown"),
        ({key: None for key in KEYS.values()}, "none of the keys"),
    ],
)
def test_wrong_files_are_named(tmp_path, folder, changes, message):
    with pytest.raises(ModelError, match=message):
        import_checkpoint(written(tmp_path / "a.pth", **changes), tmp_path / "run", backbone=folder)
    assert not (tmp_path / "run").exists()


def test_files_that_are_no_checkpoints(tmp_path):
    class Harm:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'harmed')!r}, 'w')",))

    torch.save({"model": Harm()}, tmp_path / "harm.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in (
        ("harm", "tensors alone"),
        ("text", "tensors alone"),
        ("list", "'model' is missing"),
        ("gone", "no such file"),
    ):
        with pytest.raises(ModelError, match=message) as error:
            read_checkpoint(tmp_path / f"{name}.pth")
        assert "weights_only" not in str(error.value)  # torch would advise to switch the check off
    assert not (tmp_path / "harmed").exists()
