"""One contract for every registered detector."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import picture, save
from models import small_dual, small_vlm
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from afp import detectors
from afp.data.manifest import from_files
from afp.data.preprocess import IDENTITY, Normalisation
from afp.detectors import NAMES
from afp.errors import ModelError, UnreadableImages

# What makes a detector small and quick; the frozen demo tower serves the others from cached features.
QUICK = {
    "linear-probe": {"block": "6", "c": [0.1]},
    "clip-prompt": {"epochs": 10, "n_context": 4},
    "clip-adapter": {"epochs": 10},
    "clip-adaptprompt": {"backbone": "small-clip", "epochs": 2, "n_context": 4},
    "clip-finetune": {"backbone": "small-clip", "epochs": 3, "lr": 1e-3},
    "clip-lora": {"backbone": "small-clip", "epochs": 3},
    "vlm-zero-shot": {"backbone": "small-vlm"},
    "vlm-prompt": {"backbone": "small-vlm", "epochs": 2},
    "vlm-lora": {"backbone": "small-vlm", "epochs": 2},
}
# Their small towers of random weights see no difference between these images; their own tests show that they learn.
SMALL = {name for name, config in QUICK.items() if str(config.get("backbone")).startswith("small")}
UNTRAINED = {"clip-zero-shot", "vlm-zero-shot"}
WRONG = {  # a value that is wrong in itself, and the field that the error must name
    "linear-probe": [{"block": "last"}, {"c": []}, {"c": [-1.0]}, {"c": 0}, {"c": ["a"]}, {"seed": True}],
    "metadata": [{"with_bytes": "yes"}, {"with_bytes": 1}],
    "clip-prompt": [
        {"preset": "huge"},
        {"n_context": 0},
        {"epochs": 2.5},
        {"lr": float("nan")},
        {"backbone": 7.5j},
    ],
    "clip-adapter": [{"ratio": 2.0}, {"ratio": "half"}],
    "clip-zero-shot": [
        {"words": ["real"]},
        {"words": ["real", "fake", "real"]},
        {"templates": "a photo of {}"},
    ],
    "clip-finetune": [{"lr": -1.0}, {"lr": "abc"}],
    "vlm-prompt": [{"position": "middle"}, {"answers": "no"}],
    "clip-adaptprompt": [{"ratio": 2.0}, {"drop_blocks": -1}],
    "clip-lora": [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}],
    "vlm-lora": [{"tower": "vision"}],
    "vlm-zero-shot": [{"answers": ["yes"]}],
    "spectrum": [{"normalisation": {"size": 1}}, {"normalisation": {"sides": 224}}],
}


@pytest.fixture(scope="session")
def configs(tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("backbones")
    small = {"small-clip": small_dual(folder / "clip"), "small-vlm": small_vlm(folder / "vlm")}
    return {
        name: {k: small.get(v, v) if k == "backbone" else v for k, v in QUICK.get(name, {}).items()}
        for name in NAMES
    }


@pytest.fixture(scope="session")
def sets(demo_frame) -> dict[str, pd.DataFrame]:
    """A tile of a few photographs, with its control and the held-in network's version."""
    kept = demo_frame["generator"].isin(["real", "real-resampled", "x4plus-anime"])
    frame = demo_frame[kept & demo_frame["path"].str.endswith("_0.png")]
    sources = frame["source"].unique()
    parts = {"train": sources[:5], "validation": sources[5:7], "test": sources[7:10]}
    return {k: frame[frame["source"].isin(s)].assign(split=k) for k, s in parts.items()}


@pytest.fixture(scope="session")
def fit(configs, sets):
    """Fits a detector once, as it is or on swapped labels."""
    done: dict = {}

    def fitted(name: str, swapped: bool = False):
        if (name, swapped) not in done:
            train, validation = (
                f.assign(label=1 - f["label"]) if swapped else f for f in (sets["train"], sets["validation"])
            )
            done[name, swapped] = detectors.create(name, **configs[name]).fit(
                train, validation, progress=False
            )
        return done[name, swapped]

    return fitted


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_probabilities_in_the_rows_order(name, fit, sets):
    detector, test = fit(name), sets["test"]
    scores = detector.score(test)
    assert scores.dtype == np.float64 and scores.shape == (len(test),)
    assert ((scores >= 0) & (scores <= 1)).all()
    order = np.random.default_rng(0).permutation(len(test))
    assert np.array_equal(detector.score(test.iloc[order]), scores[order])
    assert np.array_equal(detector.score(test.iloc[3:6]), scores[3:6])
    assert detector.score(test.iloc[:0]).shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_scores_need_neither_labels_nor_anything_else_of_a_manifest(name, fit, sets):
    test = sets["test"]
    assert np.array_equal(fit(name).score(from_files(test["file"])), fit(name).score(test))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_detector_gives_the_same_scores(name, fit, sets, tmp_path):
    detector = fit(name)
    detector.save(tmp_path / "run")
    back = detectors.load(tmp_path / "run")
    assert type(back) is type(detector) and back.config() == detector.config()
    assert (back.threshold_, back.generators_) == (detector.threshold_, ["x4plus-anime"])
    assert back.n_trainable == detector.n_trainable
    assert np.array_equal(back.score(sets["test"]), detector.score(sets["test"]))
    names = {f.name for f in (tmp_path / "run").rglob("*") if f.is_file()}
    assert not [n for n in names if n.endswith((".pkl", ".pickle", ".joblib", ".bin", ".pt", ".pth"))]
    back.save(tmp_path / "again")
    assert np.array_equal(detectors.load(tmp_path / "again").score(sets["test"]), back.score(sets["test"]))


@pytest.mark.parametrize("name", [n for n in NAMES if detectors.detector_class(n).trains_on])
def test_a_training_starts_from_a_runs_weights(name, fit, configs, sets, tmp_path):
    run = fit(name).save(tmp_path / "run")
    scores = []
    for start in (run, None):  # at a rate that changes nothing
        config = configs[name] | {"lr": 1e-12, "epochs": 1}
        detector = detectors.create(name, **config)
        detector.fit(sets["train"], sets["validation"], progress=False, start=start)
        scores.append(detector.score(sets["test"]))
    given = fit(name).score(sets["test"])
    assert np.allclose(scores[0], given, atol=1e-7) and np.abs(scores[1] - given).max() > 1e-6
    on = detectors.create(name, **configs[name])
    on.fit(sets["train"], sets["validation"], progress=False, start=run)
    assert np.abs(on.score(sets["test"]) - given).max() > 1e-6


@pytest.mark.parametrize("name", [n for n in NAMES if "backbone" in detectors.create(n).config()])
def test_a_run_refuses_other_weights_where_its_backbones_were(name, configs, afp, small_manifest):
    """Not the same ones in more files, or elsewhere."""
    source = configs["vlm-prompt" if name.startswith("vlm") else "clip-lora"]["backbone"]
    shutil.copytree(source, "backbone")
    fit = ["fit", "-d", name, "-m", small_manifest, "--backbone", "backbone"]
    few = [f"--set={key}=1" for key in ("epochs", "block") if key in detectors.create(name).config()][-1:]
    assert afp(*fit, *few, "--out", "run").code == 0
    shards, weights = (
        [Path(f"backbone/{i}.safetensors") for i in (0, 1)],
        load_file("backbone/model.safetensors"),
    )
    names = sorted(weights)
    for i, file in enumerate(shards):
        save_file({key: weights[key] for key in names[i::2]}, file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: shards[i % 2].name for i, key in enumerate(names)}}
    Path("backbone/model.safetensors").unlink()
    Path("backbone/model.safetensors.index.json").write_text(json.dumps(index))
    score = ["score", small_manifest, "--run", "run", "--no-cache", "--out"]
    assert afp(*score, "same.csv").code == 0
    weights[names[0]] = weights[names[0]] + 1
    save_file(weights, "backbone/model.safetensors", {"format": "pt"})
    again = [*fit, *few, "--init-from", "run"] if detectors.detector_class(name).trains_on else []
    for command in ([*score, "other.csv"], again):
        if command:
            status, shown = afp(*command)
            assert status == 2 and "backbone holds other weights (hash" in shown


def test_a_run_has_met_what_the_run_met_that_it_started_from(configs, afp, small_manifest):
    for i in range(8):
        save(f"own/real/{i}.png", 100 + i)
        save(f"own/fake/{i}.png", 200 + i, fake=True)
    assert afp("manifest", "own", "--split", "--out", "own.csv").code == 0
    fit = [
        "fit",
        "-d",
        "clip-prompt",
        "--backbone",
        configs["clip-lora"]["backbone"],
        "--set",
        "epochs=1",
        "-m",
    ]
    assert afp(*fit, small_manifest, "--out", "first").code == 0
    assert afp(*fit, "own.csv", "--out", "second", "--init-from", "first").code == 0
    for run in ("first", "second"):
        assert afp("score", small_manifest, "--run", run, "--out", f"{run}.csv").code == 0
    first, second = (pd.read_csv(f"{run}.csv", keep_default_na=False) for run in ("first", "second"))
    assert (first["role"] != "").any() and second["role"].equals(first["role"])
    assert second["seen"].equals(first["seen"]) and first["seen"].any()


def test_a_run_that_no_training_can_start_from_is_refused(fit, configs, sets, tmp_path):
    run, parts = fit("clip-prompt").save(tmp_path / "run"), (sets["train"], sets["validation"])
    for name, config, message in (
        ("spectrum", {}, "spectrum is not trained by steps"),
        ("clip-adapter", configs["clip-adapter"], "holds a clip-prompt, expected clip-adapter"),
        ("clip-prompt", configs["clip-prompt"] | {"n_context": 8}, "its n_context is 4, expected 8"),
    ):
        with pytest.raises(ModelError, match=message):
            detectors.create(name, **config).fit(*parts, progress=False, start=run)


@pytest.mark.parametrize("name", NAMES)
def test_a_refitted_detector_forgets_what_it_learned(name, fit, configs, sets):
    detector = detectors.create(name, **configs[name])
    swapped = [sets[s].assign(label=1 - sets[s]["label"]) for s in ("train", "validation")]
    detector.fit(*swapped, progress=False).fit(sets["train"], sets["validation"], progress=False)
    assert np.array_equal(detector.score(sets["test"]), fit(name).score(sets["test"]))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in UNTRAINED | SMALL])
def test_swapped_labels_swap_the_scores(name, fit, sets):
    train = sets["train"]
    scores, swapped = (fit(name, s).score(train) for s in (False, True))
    if name == "metadata":  # sees no difference between the demo's files
        assert np.allclose(scores, 0.5) and np.allclose(swapped, 0.5)
        return
    assert roc_auc_score(train["label"], scores) > 0.6
    assert roc_auc_score(train["label"], swapped) < 0.4
    assert np.abs(scores + swapped - 1).mean() < 0.25


@pytest.mark.parametrize("name", NAMES)
def test_perturbed_images_have_other_scores(name, fit, sets):
    test = sets["test"].iloc[:4]
    plain, blurred = fit(name).score(test), fit(name).score(test, "blur:2")
    assert np.array_equal(plain, blurred) == (name == "metadata")  # it sees files, and they stay
    with pytest.raises(ValueError, match="wobble"):
        fit(name).score(test, "wobble:1")


@pytest.mark.parametrize("name", NAMES)
def test_unreadable_images_are_named_all_at_once(name, fit, sets, tmp_path):
    bad = [str(tmp_path / n) for n in ("a.png", "b.jpg")]
    for file in bad:
        Path(file).write_bytes(b"no image")
    with pytest.raises(UnreadableImages) as error:
        fit(name).score(pd.concat([from_files(bad), sets["test"].iloc[:2]], ignore_index=True))
    assert sorted(error.value.errors) == bad


def test_unreadable_images_are_named_where_pixels_are_read_anew(configs, sets, tmp_path):
    bad = [str(tmp_path / n) for n in ("a.png", "b.png")]
    for file in bad:
        Path(file).write_bytes(b"no image")
    frame = pd.concat([from_files([bad[0]]), *[sets["test"]] * 4, from_files([bad[1]])], ignore_index=True)
    detector = detectors.create("vlm-zero-shot", **configs["vlm-zero-shot"], cache_tokens=False)
    detector.fit(sets["train"], sets["validation"], progress=False)
    with pytest.raises(UnreadableImages) as error:
        detector.score(frame)  # two batches
    assert sorted(error.value.errors) == bad


@pytest.mark.parametrize("name", ["linear-probe", "spectrum", "vlm-prompt", "clip-finetune"])
def test_unreadable_images_of_both_sets_are_named_before_a_fit(name, configs, sets, tmp_path):
    bad, parts = [str(tmp_path / n) for n in ("a.png", "b.jpg")], []
    for file, split in zip(bad, ("train", "validation"), strict=True):
        Path(file).write_bytes(b"no image")
        row = from_files([file]).assign(label=1, generator="broken")
        parts.append(pd.concat([sets[split].groupby("label").head(1), row], ignore_index=True))
    with pytest.raises(UnreadableImages) as error:
        detectors.create(name, **configs[name]).fit(*parts, progress=False)
    assert sorted(error.value.errors) == bad


@pytest.mark.parametrize("name", NAMES)
def test_one_class_is_not_enough(name, configs, sets):
    detector = detectors.create(name, **configs[name])
    both = {s: sets[s] for s in ("train", "validation")}
    for part in both:
        for label in (0, 1):
            alone = both | {part: sets[part][sets[part]["label"] == label]}
            with pytest.raises(ModelError, match=rf"{part}: labels \[{label}\] in \d+ images"):
                detector.fit(*alone.values(), progress=False)
    with pytest.raises(ModelError, match="not fitted"):
        detector.score(sets["test"])


@pytest.mark.parametrize("name", NAMES)
def test_an_unfitted_detector_neither_scores_nor_saves(name, configs, sets, tmp_path):
    detector = detectors.create(name, **configs[name])
    assert not [a for a in vars(detector) if a.endswith("_")]
    with pytest.raises(ModelError, match=f"{name} is not fitted"):
        detector.score(sets["test"])
    with pytest.raises(ModelError, match=f"{name} is not fitted"):
        detector.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_config_field_is_named(name):
    with pytest.raises(ModelError, match=f"{name}: unknown config field 'colour'"):
        detectors.create(name, colour="red")
    with pytest.raises(ModelError, match=f"{name}: normalisation is 'large'"):
        detectors.create(name, normalisation="large")


@pytest.mark.parametrize(("name", "config"), [(n, c) for n in NAMES for c in WRONG.get(n, [])])
def test_a_wrong_value_is_named(name, config):
    with pytest.raises(ValueError, match=rf"(?i)\b{next(iter(config))}( is| are|\.| \d)"):
        detectors.create(name, **config)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_json_and_makes_the_same_detector(name, configs):
    detector = detectors.create(name, **configs[name], normalisation=Normalisation(size=128))
    config = json.loads(json.dumps(detector.config()))
    assert config["normalisation"]["size"] == 128
    assert detectors.create(name, **config) == detector
    assert detectors.create(name, normalisation="none").normalisation == IDENTITY


@pytest.mark.parametrize("name", NAMES)
def test_a_run_without_its_learned_state_is_refused_by_name(name, fit, tmp_path):
    fit(name).save(tmp_path / "run")
    records = ("config.json", "images.csv", "history.csv")
    learned = [f for f in (tmp_path / "run").rglob("*") if f.is_file() and f.name not in records]
    if [f.name for f in learned] == ["checksums.json"]:
        assert name == "vlm-zero-shot"  # has nothing but its question
        return
    for file in learned:
        file.unlink()
    with pytest.raises(ModelError, match="is missing; fit the run again"):
        detectors.load(tmp_path / "run")


def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path, fit):
    with pytest.raises(ModelError, match=r"nowhere: no run here .*`afp fit`"):
        detectors.load(tmp_path / "nowhere")
    for content in (
        "{",
        "[]",
        "{}",
        '{"detector": "oracle", "config": {}, "threshold": 0, "generators": []}',
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ModelError, match=r"config|oracle"):
            detectors.load(tmp_path)
    fit("metadata").save(tmp_path / "run")
    with pytest.raises(ModelError, match="holds a metadata, expected spectrum"):
        detectors.detector_class("spectrum").load(tmp_path / "run")


def test_metadata_finds_a_format_shortcut(tmp_path):
    rows = []
    for i in range(24):
        fake = i % 2
        file = tmp_path / f"{i}.{('jpg', 'png')[fake]}"
        picture(i).save(file)
        rows.append(str(file))
    frame = from_files(rows).assign(label=[i % 2 for i in range(24)], generator=["real", "g"] * 12)
    detector = detectors.create("metadata").fit(frame[:12], frame[12:18], progress=False)
    assert roc_auc_score(frame["label"][18:], detector.score(frame[18:])) == 1


def test_metadata_has_as_many_columns_for_sizes_as_it_may(tmp_path, monkeypatch):
    monkeypatch.setattr("afp.detectors.baselines.MOST_VALUES", 5)
    for i in range(40):
        picture(i, 20 + i).save(tmp_path / f"{i}.png")
    frame = from_files(sorted(tmp_path.iterdir()))
    frame = frame.assign(label=[i % 2 for i in range(40)], generator=["real", "x"] * 20, source=frame["path"])
    detector = detectors.create("metadata").fit(frame, frame, progress=False)
    texts = [column for column in detector.columns_ if "=" in column]
    assert len(texts) == 5 and detector.n_trainable == len(detector.columns_) + 1
    assert np.isfinite(detector.score(frame)).all()


def test_the_registry_imports_a_detector_when_it_is_asked_for():
    code = (
        "import sys; from afp import detectors; "
        "modules = [f'afp.detectors.{p.partition(\".\")[0]}' for p in detectors._CLASSES.values()]; "
        "print([m for m in modules if m in sys.modules]); "
        "detectors.create('metadata'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, torch = done.stdout.split("\n")[:2]
    assert loaded == "[]" and torch == "False"
