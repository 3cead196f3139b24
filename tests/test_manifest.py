from __future__ import annotations

import os
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import from_folders, picture, write_folders
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afp.data.manifest import COLUMNS, from_files, read_manifest, write_manifest
from afp.data.splits import fold_of, held_in_generators, thin, use_fold
from afp.errors import DataError

TRAINED = ["train", "validation"]


def table(**columns) -> pd.DataFrame:
    base = {c: ["a", "b"] for c in COLUMNS} | {"label": [0, 1], "split": ["train", "test"], "fold": [0, 4]}
    return pd.DataFrame(base | columns)


@pytest.mark.parametrize("name", ["m.csv", "m.parquet", "M.PARQUET"])
def test_a_manifest_comes_back_as_it_was_written(tmp_path, small_frame, name):
    extra = small_frame.assign(mask="x.png")
    back = read_manifest(write_manifest(extra, tmp_path / "deeper" / name))
    assert [os.path.samefile(a, b) for a, b in zip(back["file"], extra["file"], strict=True)]
    same = [c for c in extra.columns if c not in ("path", "file")]
    pd.testing.assert_frame_equal(back[same], extra[same], check_dtype=False)
    assert not any(os.path.isabs(p) for p in back["path"])
    head = (tmp_path / "deeper" / name).read_bytes()[:4]
    assert (head == b"PAR1") == name.lower().endswith(".parquet")


def test_an_image_is_the_same_in_two_manifests(tmp_path):
    paths = [["x/a.png", "x/s.tar::b/c.png"], ["../x/a.png", "./../x/s.tar::b/c.png"]]
    for folder, path in zip((tmp_path, tmp_path / "deep"), paths, strict=True):
        folder.mkdir(exist_ok=True)
        table(path=path, sha256=["AB", "cd"]).to_csv(folder / "m.csv", index=False)
    frames = [read_manifest(folder / "m.csv") for folder in (tmp_path, tmp_path / "deep")]
    assert frames[0]["file"].equals(frames[1]["file"])
    assert frames[0]["file"].tolist() == [str(tmp_path / path) for path in paths[0]]
    assert frames[0]["sha256"].tolist() == ["ab", "cd"]
    assert from_files([tmp_path / "deep" / ".." / "x" / "a.png"])["file"][0] == frames[0]["file"][0]


def test_a_manifest_in_a_linked_folder_finds_its_images(tmp_path):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "other" / "disk").mkdir(parents=True)
    (tmp_path / "data").symlink_to("other/disk")
    frame = table(file=[str(tmp_path / "a.png"), str(tmp_path / "b.png")])
    assert os.path.isfile(read_manifest(write_manifest(frame, tmp_path / "data" / "m.csv"))["file"][0])


def test_what_stands_above_a_linked_folder_is_above_the_folder_itself(tmp_path):
    for i, folder in enumerate(("store/images", "store/sets", "home")):
        (tmp_path / folder).mkdir(parents=True)
        picture(i).save(tmp_path / folder / "a.png")
    (tmp_path / "home" / "sets").symlink_to("../store/sets")
    table(path=["../images/a.png", "../images/b.png"]).to_csv(
        tmp_path / "store" / "sets" / "m.csv", index=False
    )
    found = read_manifest(tmp_path / "home" / "sets" / "m.csv")["file"][0]
    assert os.path.samefile(found, tmp_path / "store" / "images" / "a.png")
    (tmp_path / "store" / "a.png").write_bytes(b"another")
    two = from_files([tmp_path / "home" / "sets" / ".." / "a.png", tmp_path / "home" / "a.png"])
    assert two["file"].nunique() == 2 and two["sha256"].nunique() == 2


def test_a_manifest_moves_with_its_images(tmp_path, small_manifest):
    moved = shutil.copytree(small_manifest.parent, tmp_path / "moved")
    frame = read_manifest(moved / small_manifest.name)
    assert all(f.startswith(str(moved)) and os.path.isfile(f) for f in frame["file"])


def test_names_that_look_like_missing_values_stay_names(tmp_path):
    frame = table(generator=["real", "None"], source=["NA", "007"], path=["null", "nan"])
    frame.to_csv(tmp_path / "m.csv", index=False)
    back = read_manifest(tmp_path / "m.csv")
    assert back[["generator", "source", "path"]].equals(frame[["generator", "source", "path"]].astype(str))


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"label": [0, 2]}, "row 3: label is '2'"),
        ({"label": ["real", "fake"]}, "row 2: label is 'real'"),
        ({"label": [0, None]}, "row 3: label"),
        ({"split": ["train", "dev"]}, "row 3: split is 'dev'"),
        ({"path": ["a", "a"]}, "row 3: path is 'a', expected a file, each once"),
        ({"path": ["a", "x/.././a"]}, "row 3: path is 'x/.././a', expected a file, each once"),
        ({"fold": [0, 5]}, "row 3: fold is '5', expected 0 to 4"),
        ({"source": ["a", "a"]}, "row 3: fold is '4', .* the same for all images of a source"),
        ({"generator": ["a", ""]}, "row 3: generator is '', expected a name"),
        ({"path": ["a", ""]}, "row 3: path is ''"),
    ],
)
def test_a_bad_row_is_named(tmp_path, columns, named):
    table(**columns).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(DataError, match=named) as error:
        read_manifest(tmp_path / "m.csv")
    assert "m.csv" in str(error.value)


def test_a_manifest_without_a_row_is_refused(tmp_path):
    table()[:0].to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(DataError, match=r"m\.csv: no row"):
        read_manifest(tmp_path / "m.csv")


def test_missing_columns_are_named(tmp_path):
    table().drop(columns=["sha256", "source"]).to_csv(tmp_path / "m.csv", index=False)
    with pytest.raises(DataError, match="columns missing: source, sha256"):
        read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b'"a,b\n1', b"\xff\xfe\xfd,\n"])
@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_garbage_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_manifest(tmp_path / name)


def test_a_missing_manifest_is_named_and_the_demo_has_a_hint(tmp_path):
    with pytest.raises(DataError, match=r"no such manifest$"):
        read_manifest(tmp_path / "m.csv")
    with pytest.raises(DataError, match=r"no such manifest; .*`afp demo`"):
        read_manifest(tmp_path / "demo" / "manifest.csv")
    with pytest.raises(DataError, match="not a readable"):
        read_manifest(tmp_path)


def test_null_and_numeric_cells_of_parquet_are_read_or_named(tmp_path):
    table(path=[1, 2], sha256=[None, "x"], kind=[None, "y"], set=[None, None]).to_parquet(
        tmp_path / "m.parquet"
    )
    frame = read_manifest(tmp_path / "m.parquet")
    assert frame["path"].tolist() == ["1", "2"] and frame["sha256"].tolist() == ["", "x"]
    assert frame["file"][0] == str(tmp_path / "1") and frame["set"].tolist() == ["", ""]
    table(generator=["a", None]).to_parquet(tmp_path / "m.parquet")
    with pytest.raises(DataError, match="row 3: generator is"):
        read_manifest(tmp_path / "m.parquet")


def test_a_manifest_without_folds_gets_them_from_its_sources(tmp_path):
    table().drop(columns=["fold", "set"]).to_csv(tmp_path / "m.csv", index=False)
    frame = read_manifest(tmp_path / "m.csv")
    assert frame["fold"].tolist() == [fold_of("a"), fold_of("b")] and frame["set"].tolist() == ["", ""]


CELLS = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.floats(), st.text(max_size=6), st.binary(max_size=6),
    st.sampled_from(["train", "test", "none", "0", "1", "a"]),
)  # fmt: skip


@settings(max_examples=100, deadline=2000, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_whatever_is_in_a_table_it_is_a_manifest_or_a_data_error(tmp_path, data):
    names = data.draw(
        st.lists(st.sampled_from([*COLUMNS, "x", ""]), unique=True, max_size=10) | st.just(COLUMNS)
    )
    n = data.draw(st.integers(0, 4))
    frame = pd.DataFrame(
        {name: data.draw(st.lists(CELLS, min_size=n, max_size=n)) for name in names}, dtype=object
    )
    file = tmp_path / data.draw(st.sampled_from(["m.csv", "m.parquet"]))
    try:
        frame.to_csv(file, index=False) if file.suffix == ".csv" else frame.to_parquet(file)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):  # cells that Parquet cannot mix
        frame.map(str).to_csv(file.with_suffix(".csv"), index=False, errors="replace")
        file = file.with_suffix(".csv")
    whole = file.read_bytes()
    place = data.draw(st.integers(0, len(whole)))
    file.write_bytes(whole[:place] + data.draw(st.binary(max_size=3)) + whole[place:])
    try:
        back = read_manifest(file)
    except DataError as error:
        assert file.name in str(error)
    else:
        assert (
            set(back["label"]) <= {0, 1}
            and set(back["fold"]) <= set(range(5))
            and (back["generator"] != "").all()
        )


def test_identical_files_share_a_split_whatever_their_names(tmp_path):
    folder = write_folders(tmp_path, n=20)
    for i in range(12):  # a chain of copies: all of them one source
        shutil.copy(folder / "real" / f"{i:02}.png", folder / "fake" / "half" / f"{i + 1:02}.png")
    frame = from_folders(folder / "real", {"half": folder / "fake" / "half"}, split=True)
    assert frame["source"].nunique() == 8
    assert (frame.groupby("sha256")["split"].nunique() == 1).all()
    assert (frame.groupby("source")["split"].nunique() == 1).all()
    other = from_folders(folder / "real", {"half": folder / "fake" / "half"}, split=True, seed=1)
    assert (other["split"] != frame["split"]).any()


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="nothing: no image"):
        from_folders(tmp_path / "nothing", {})


def test_loose_files_have_a_hash_where_they_can_be_read(tmp_path):
    picture(0).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    frame = from_files([tmp_path / n for n in ("a.png", "pipe.png", "loop.png", "none.png")])
    assert [len(h) for h in frame["sha256"]] == [64, 0, 0, 0]


def test_a_file_without_permission_has_no_hash(tmp_path, monkeypatch):
    picture(0).save(tmp_path / "locked.png")
    real_open = os.open

    def refuse(name, *args, **kwargs):
        if str(name).endswith("locked.png"):
            raise PermissionError(13, "Permission denied")
        return real_open(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)  # root may read everything
    assert from_files([tmp_path / "locked.png"])["sha256"].tolist() == [""]


@pytest.mark.parametrize("which", ["demo_frame", "small_frame"])
def test_folds_test_every_photo_once_and_train_on_held_in_generators_alone(which, request):
    frame = request.getfixturevalue(which)
    held_in = held_in_generators(frame)
    tested = []
    for k in range(5):
        fold = use_fold(frame, k)
        used = fold[fold["split"] != "none"]
        assert (used.groupby("source")["split"].nunique() == 1).all()
        assert (used.groupby("sha256")["split"].nunique() == 1).all()
        trained = fold[fold["split"].isin(TRAINED)]
        assert set(trained.loc[trained["label"] == 1, "generator"]) == set(held_in)
        assert held_in_generators(fold) == held_in
        for split in [*TRAINED, "test"]:
            assert set(fold.loc[fold["split"] == split, "label"]) == {0, 1}
        tested.append(fold["split"] == "test")
    assert (np.sum(tested, axis=0) == 1).all()


def test_folds_do_not_depend_on_the_rows_order(demo_frame):
    shuffled = demo_frame.sample(frac=1, random_state=3)
    assert use_fold(shuffled, 2)["split"].sort_index().equals(use_fold(demo_frame, 2)["split"])


def test_impossible_folds_are_refused(small_frame):
    for fold in (-1, 5):
        with pytest.raises(DataError, match=f"fold: {fold}, expected 0 to 4"):
            use_fold(small_frame, fold)
    few = small_frame[small_frame["source"].isin(small_frame["source"].unique()[:3])]
    with pytest.raises(DataError, match="3 sources of real images cannot make 5 folds"):
        use_fold(few, 0)


def test_a_thinned_manifest_holds_whole_sources_and_always_the_same(demo_frame):
    few = thin(demo_frame, 100)
    assert 50 < len(few) <= 100
    assert len(few) == demo_frame["source"].isin(few["source"]).sum()
    assert set(thin(demo_frame.sample(frac=1, random_state=0), 100)["path"]) == set(few["path"])
    assert thin(demo_frame, len(demo_frame)).equals(demo_frame)
    assert thin(demo_frame, 1)["source"].nunique() == 1
    with pytest.raises(DataError, match="most: 0 images"):
        thin(demo_frame, 0)


def test_a_name_that_is_not_utf_8_has_a_path_that_can_be_written_but_no_place_in_a_manifest(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    picture(0).save(name)
    frame = from_files([name])
    assert frame["path"][0].encode() and frame["file"][0] == name and frame["sha256"][0]
    with pytest.raises(DataError, match="no image in it"):
        from_folders(tmp_path, {})
