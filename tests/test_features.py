from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_backbones import write_tower
from torch.utils.data import DataLoader

from afp.data import preprocess
from afp.data.loader import ImageDataset, inputs
from afp.data.manifest import from_files
from afp.data.preprocess import Normalisation
from afp.errors import ImageError, UnreadableImages
from afp.models import backbones, features
from afp.models.backbones import load_backbone
from afp.models.features import extract


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return load_backbone(write_tower(tmp_path_factory.mktemp("tower")), dtype="float32")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache; weights stay where they are."""
    monkeypatch.setattr(features, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def frame(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(20):
        picture(i).save(tmp_path / "images" / f"{i:02}.png")
    return from_files(sorted((tmp_path / "images").iterdir()))


@pytest.fixture
def passes(monkeypatch):
    """How often the tower ran."""
    count = []
    original = backbones.Backbone.extract
    monkeypatch.setattr(
        backbones.Backbone, "extract", lambda self, *args: count.append(1) or original(self, *args)
    )
    return count


def files_in(cache: Path) -> list[Path]:
    return sorted(f for f in cache.rglob("*") if f.is_file())


@pytest.mark.parametrize("output", ["embedding", "cls", "tokens:2"])
def test_cached_features_are_those_computed(frame, backbone, cache, passes, output):
    first = extract(frame, backbone, output, progress=False)
    assert len(passes) == 5 and len(files_in(cache)) == 20
    again = extract(frame, backbone, output, progress=False)
    assert len(passes) == 5 and first.dtype == again.dtype == np.float32
    assert np.array_equal(first, again)
    images = preprocess.prepare_all(frame, Normalisation())
    direct = backbone.extract(backbone.preprocess(images), (output,))[output].numpy()
    np.testing.assert_allclose(first, direct, rtol=2e-3, atol=2e-3)


def test_embedding_and_class_tokens_come_from_one_pass(frame, backbone, passes):
    extract(frame, backbone, "embedding", progress=False)
    extract(frame, backbone, "cls", progress=False)
    assert len(passes) == 5


@pytest.mark.parametrize("name", ["small", "demo-clip"])
def test_features_depend_on_neither_order_nor_batch(
    name, frame, backbone, monkeypatch, tmp_path, demo_manifest
):
    frame = frame if name == "small" else frame[:4]
    tower = backbone if name == "small" else load_backbone(name)
    whole = extract(frame, tower, "cls", progress=False)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(frame))[:3], rng.permutation(len(frame)), [1]]
    for trial, order in enumerate(orders[: 3 if name == "small" else 1]):  # the demo's tower takes seconds
        monkeypatch.setattr(features, "cache_dir", lambda trial=trial: tmp_path / str(trial))
        assert np.array_equal(extract(frame.iloc[order], tower, "cls", progress=False), whole[order])


def test_a_repeated_image_is_extracted_once(frame, backbone, cache, passes):
    twice = frame.iloc[[0, 1, 0, 0]]
    values = extract(twice, backbone, "embedding", progress=False)
    assert len(files_in(cache)) == 2 and np.array_equal(values[0], values[2])


def test_the_bytes_alone_decide_what_is_known(frame, backbone, cache, passes, tmp_path):
    whole = extract(frame[:1], backbone, "embedding", progress=False)
    copy = tmp_path / "another name.dat"
    copy.write_bytes(Path(frame["file"][0]).read_bytes())
    assert np.array_equal(extract(from_files([copy]), backbone, "embedding", progress=False), whole)
    assert len(passes) == 1


def test_bad_copies_are_named_each_in_its_own_words(backbone, cache, tmp_path):
    files = [tmp_path / name for name in ("a.jpg", "b.jpg", "c.png")]
    for file in files:
        file.write_bytes(b"no image")
    for _ in range(2):  # nor does a refusal leave anything behind that would pass
        with pytest.raises(UnreadableImages) as caught:
            extract(from_files(files), backbone, "embedding", progress=False)
        assert set(caught.value.errors) == {str(file) for file in files}
        assert all(name in message for name, message in caught.value.errors.items())


def stored(file: Path) -> tuple[dict, dict]:
    with safe_open(file, "numpy") as opened:
        return opened.metadata(), {k: opened.get_tensor(k).tolist() for k in opened.keys()}  # noqa: SIM118


def truncate(file: Path, other: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def empty(file: Path, other: Path) -> None:
    file.write_bytes(b"")


def garbage(file: Path, other: Path) -> None:
    file.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json and more of it")


def foreign(file: Path, other: Path) -> None:
    file.write_bytes(other.read_bytes())


def unlabelled(file: Path, other: Path) -> None:
    save_file(load_file(file), file)


def incomplete(file: Path, other: Path) -> None:
    save_file({"other": np.zeros((4, 24), np.float16)}, file, stored(file)[0])


def flipped(file: Path, other: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 64  # inside of an array
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, empty, garbage, foreign, unlabelled, incomplete, flipped])
def test_a_damaged_cache_is_found_and_rebuilt(frame, backbone, cache, damage, caplog):
    whole = extract(frame, backbone, "embedding", progress=False)
    damaged, other = files_in(cache)[:2]
    before = stored(damaged)
    damage(damaged, other)
    for output in ("cls", "embedding"):
        again = extract(frame, backbone, output, progress=False)
    assert np.array_equal(again, whole)
    assert f"1 cached features are damaged and are computed anew: {damaged}" in caplog.text
    assert stored(damaged) == before and len(files_in(cache)) == 20


def test_what_a_feature_depends_on_has_its_own_key(frame, backbone, cache, tmp_path):
    other = load_backbone(write_tower(tmp_path / "other", seed=1), dtype="float32")
    plain = extract(frame, backbone, "embedding", progress=False)
    variants = [
        (backbone, {"normalisation": Normalisation(quality=50)}),
        (backbone, {"normalisation": Normalisation(codec="png")}),
        (backbone, {"normalisation": Normalisation(size=128)}),
        (backbone, {"perturbation": "blur:1"}),
        (backbone, {"perturbation": "blur:2"}),
        (other, {}),
    ]
    seen = [plain]
    for tower, options in variants:
        values = extract(frame, tower, "embedding", progress=False, **options)
        assert all(not np.allclose(values, before, atol=1e-3) for before in seen), options
        seen.append(values)
    assert len(list((cache / "features").iterdir())) == len(seen)
    # two spellings of one setting are one
    extract(frame, backbone, "embedding", perturbation="blur:1.0", progress=False)
    assert len(list((cache / "features").iterdir())) == len(seen)


def test_a_changed_file_is_refused(frame, backbone):
    picture(99).save(frame["file"][3])
    with pytest.raises(UnreadableImages) as error:
        extract(frame, backbone, "embedding", progress=False)
    assert list(error.value.errors) == [frame["file"][3]]
    assert "changed" in error.value.errors[frame["file"][3]]


def test_every_bad_file_is_named_after_the_good_ones_are_cached(frame, backbone, cache):
    bad = [frame["file"][i] for i in (0, 7, 19)]
    for file in bad:
        Path(file).write_bytes(Path(file).read_bytes()[:100])
    fresh = from_files(frame["file"])
    with pytest.raises(UnreadableImages) as error:
        extract(fresh, backbone, "embedding", progress=False)
    assert sorted(error.value.errors) == bad
    assert all(file in message for file, message in error.value.errors.items())
    assert len(files_in(cache)) == 17


def test_rows_without_a_hash_are_extracted_and_not_cached(frame, backbone, cache):
    whole = extract(frame, backbone, "embedding", progress=False)
    before = files_in(cache)
    assert np.array_equal(extract(frame.assign(sha256=""), backbone, "embedding", progress=False), whole)
    assert files_in(cache) == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_loader_reads_the_images_in_any_number_of_processes(frame, backbone, num_workers):
    """Read once, normalised, perturbed, viewed, preprocessed; a bad file is a record and no exception."""
    Path(frame["file"][2]).write_bytes(b"no image")
    view = partial(preprocess.random_view, size=32)
    options = {"view": view, "seed": 5, "transform": backbone.preprocess}
    dataset = ImageDataset(frame[:5], Normalisation(size=64), "noise:4", **options)
    dataset.set_epoch(3)
    (batch,) = DataLoader(dataset, 5, num_workers=num_workers)
    assert batch.image.shape == (5, 3, 32, 32) and list(batch.file) == frame["file"][:5].tolist()
    assert [bool(error) for error in batch.error] == [False, False, True, False, False]
    image = preprocess.prepare(frame["file"][4], frame["sha256"][4], Normalisation(size=64), "noise:4")
    expected = backbone.preprocess([preprocess.random_view(image, 32, "5:3:4")])[0]
    assert (batch.image[4] == expected).all()
    with pytest.raises(UnreadableImages, match=r"02\.png"):
        inputs(batch)
    with pytest.raises(ImageError, match="changed"):
        preprocess.prepare(frame["file"][0], frame["sha256"][1], Normalisation())


def test_requests_that_make_no_sense_are_refused(frame, backbone):
    with pytest.raises(ValueError, match="feature output 'pooled'"):
        extract(frame, backbone, "pooled")
    with pytest.raises(ValueError, match="wobble"):
        extract(frame, backbone, "cls", perturbation="wobble:3")
    with pytest.raises(ValueError, match="no row"):
        extract(frame[:0], backbone, "cls", progress=False)
