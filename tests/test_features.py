from __future__ import annotations

import errno
import math
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import picture, write_tower
from torch.utils.data import DataLoader

from afp.data import preprocess
from afp.data.loader import ImageDataset, inputs
from afp.data.manifest import from_files
from afp.data.preprocess import Normalisation
from afp.errors import ImageError, UnreadableImages
from afp.models import backbones, features
from afp.models.backbones import load_backbone
from afp.models.feature_store import ENTRY, FeatureStore
from afp.models.features import extract, open_features


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


def images_in(cache: Path) -> list[bytes]:
    """Hashes of the images whose features are stored, of all stores."""
    return [image for file in cache.rglob("*.index") for image in np.fromfile(file, ENTRY)["image"].tolist()]


@pytest.mark.parametrize("output", ["embedding", "cls", "cls:1", "tokens:2"])
def test_cached_features_are_those_computed(frame, backbone, cache, passes, output):
    first = extract(frame, backbone, output, progress=False)
    assert len(passes) == 5 and sorted(images_in(cache)) == sorted(map(bytes.fromhex, frame["sha256"]))
    again = extract(frame, backbone, output, progress=False)
    assert len(passes) == 5 and first.dtype == again.dtype == np.float32
    assert np.array_equal(first, again)
    images = preprocess.prepare_all(frame, Normalisation())
    name, _, block = output.partition(":")
    direct = backbone.extract(backbone.preprocess(images), (name if name == "cls" else output,))
    direct = next(iter(direct.values())).numpy()
    direct = direct[:, int(block)] if name == "cls" and block else direct
    np.testing.assert_allclose(first, direct, rtol=2e-3, atol=2e-3)


def test_all_class_tokens_and_the_embedding_come_from_one_pass(frame, backbone, passes):
    whole = extract(frame, backbone, "cls", progress=False)
    extract(frame, backbone, "embedding", progress=False)
    assert np.array_equal(extract(frame, backbone, "cls:1", progress=False), whole[:, 1])
    assert np.array_equal(open_features(frame, backbone, "cls").block(1), whole[:, 1])
    assert len(passes) == 5


def test_only_what_was_asked_for_is_kept(frame, backbone, cache, passes):
    """And what one store lacks is taken from the other."""
    for output in ("embedding", "cls:1", "tokens:1"):
        numbers = math.prod(features.feature_shape(backbone, output))
        before = sum(file.stat().st_size for file in cache.rglob("*.rows"))
        extract(frame[:12], backbone, output, progress=False)
        assert sum(file.stat().st_size for file in cache.rglob("*.rows")) == before + 12 * 2 * numbers
    extract(frame[8:], backbone, "cls", progress=False)
    before = len(passes)
    whole = extract(frame, backbone, "embedding", progress=False)
    assert len(passes) == before and np.array_equal(whole[:12], extract(frame[:12], backbone, "embedding"))


def test_nothing_is_kept_that_should_not_be(frame, backbone, cache, passes, monkeypatch, caplog):
    with features.without_storing():
        whole = extract(frame, backbone, "embedding", progress=False)
        assert not images_in(cache)
    assert np.array_equal(extract(frame, backbone, "embedding", progress=False), whole)
    plain = Normalisation(), "none"
    assert features.fits(frame, backbone, "tokens:1", *plain)
    monkeypatch.setattr(features, "RESERVE", 10**18)
    assert not features.fits(frame, backbone, "tokens:1", *plain)
    assert "features of 20 images would take 0.0 GB" in caplog.text
    assert features.fits(frame, backbone, "embedding", *plain)  # they are there already


def test_a_store_whose_writer_died_between_its_two_files_goes_on(frame, backbone, cache, monkeypatch):
    opened = os.open

    def full(path, flags, *mode):
        if flags & os.O_CREAT and str(path).endswith(".rows"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, flags, *mode)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "open", full)
        extract(frame, backbone, "embedding", progress=False)
    assert extract(frame, backbone, "embedding", progress=False).shape == (20, backbone.embedding_dim)


def test_a_cache_of_another_version_is_dropped_aloud(frame, backbone, cache, caplog):
    old = cache / "features" / "0123456789abcdef" / "ab"
    old.mkdir(parents=True)
    (old / "abcd.safetensors").write_bytes(b"anything")
    extract(frame, backbone, "embedding", progress=False)
    assert not (cache / "features").exists() and "features: a cache of an earlier version" in caplog.text


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
    assert len(images_in(cache)) == 2 and np.array_equal(values[0], values[2])


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


def truncate(rows: Path, index: Path, other: Path) -> None:
    rows.write_bytes(rows.read_bytes()[:-10])


def empty(rows: Path, index: Path, other: Path) -> None:
    rows.write_bytes(b"")


def garbage(rows: Path, index: Path, other: Path) -> None:
    rows.write_bytes(b"not numbers" * 1000)


def foreign(rows: Path, index: Path, other: Path) -> None:
    """Rows and index of another tower."""
    rows.write_bytes(other.with_suffix(".rows").read_bytes())
    index.write_bytes(other.read_bytes())


def flipped(rows: Path, index: Path, other: Path) -> None:
    content = bytearray(rows.read_bytes())
    content[-9] ^= 64
    rows.write_bytes(content)


def flipped_name(rows: Path, index: Path, other: Path) -> None:
    content = bytearray(index.read_bytes())
    content[5] ^= 1
    index.write_bytes(content)


def cut(rows: Path, index: Path, other: Path) -> None:
    """A writer was killed within an entry."""
    index.write_bytes(index.read_bytes()[:-7])


def lost(rows: Path, index: Path, other: Path) -> None:
    rows.unlink()


@pytest.mark.parametrize(
    ("damage", "n", "again"),
    [
        (truncate, 1, 1),
        (empty, 20, 5),
        (garbage, 20, 5),
        (foreign, 20, 5),
        (flipped, 1, 1),
        (flipped_name, 0, 1),
        (cut, 0, 1),
        (lost, 0, 5),
    ],
)
def test_a_damaged_store_is_found_and_mended(
    frame, backbone, cache, passes, tmp_path, damage, n, again, caplog
):
    """n rows are damaged, and the tower runs again; an image whose entry is lost counts as never there."""
    whole = extract(frame, backbone, "embedding", progress=False)
    (index,) = cache.rglob("*.index")
    other = load_backbone(write_tower(tmp_path / "other", seed=1), dtype="float32")
    extract(frame, other, "embedding", progress=False)
    (foreign_index,) = set(cache.rglob("*.index")) - {index}
    damage(index.with_suffix(".rows"), index, foreign_index)
    features._store.cache_clear()  # as in another process
    for _ in range(2):
        assert np.array_equal(extract(frame, backbone, "embedding", progress=False), whole)
    told = [record.message for record in caplog.records if "damaged" in record.message]
    assert told == ([f"{n} cached features are damaged and are computed anew: {index.parent}"] if n else [])
    assert len(passes) == 10 + again  # mended once


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
    assert len(list(cache.rglob("*.index"))) == len(seen)
    # two spellings of one setting are one
    extract(frame, backbone, "embedding", perturbation="blur:1.0", progress=False)
    assert len(list(cache.rglob("*.index"))) == len(seen)


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
    assert len(images_in(cache)) == 17


def test_rows_without_a_hash_are_extracted_and_not_cached(frame, backbone, cache):
    whole = extract(frame, backbone, "embedding", progress=False)
    assert np.array_equal(extract(frame.assign(sha256=""), backbone, "embedding", progress=False), whole)
    assert len(images_in(cache)) == 20


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


def test_writers_at_once_have_files_of_their_own(cache):
    digests = ["a" * 64, "b" * 64, "c" * 64]
    first, second = FeatureStore(cache / "key", 3), FeatureStore(cache / "key", 3)
    with first, second:
        for store, digest in ((first, digests[0]), (second, digests[1]), (first, digests[2])):
            store.append(digest, np.full(3, ord(digest[0]), np.float16))
    with FeatureStore(cache / "key", 3) as third:  # goes on where the first one ended
        third.append("d" * 64, np.zeros(3, np.float16))
    assert sorted(file.name for file in cache.rglob("*.rows")) == ["0.rows", "1.rows"]
    reader = FeatureStore(cache / "key", 3)
    places, damaged = reader.find([*digests, "e" * 64])
    assert damaged == 0 and places[:3, 0].tolist() == [0, 1, 0] and places[3, 0] < 0
    assert [reader.read(*place)[0] for place in places[:3]] == [ord("a"), ord("b"), ord("c")]


def test_requests_that_make_no_sense_are_refused(frame, backbone):
    with pytest.raises(ValueError, match="feature output 'pooled'"):
        extract(frame, backbone, "pooled")
    with pytest.raises(ValueError, match="wobble"):
        extract(frame, backbone, "cls", perturbation="wobble:3")
    with pytest.raises(ValueError, match="no row"):
        extract(frame[:0], backbone, "cls", progress=False)
