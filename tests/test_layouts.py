"""Data sets as they come: each layout goes from its tree to an evaluated table in three commands."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import picture, save, smoothed

from afp.data.images import describe_file, extension_caution, open_image, read_file, sha256
from afp.data.manifest import read_manifest
from afp.errors import ImageError
from afp.results import runs

N = 12


@pytest.fixture(scope="module")
def run_folder(small_frame, tmp_path_factory) -> Path:
    return runs.fit_run("spectrum", small_frame, tmp_path_factory.mktemp("run") / "spectrum", progress=False)


def encoded(seed: int, fake: bool) -> bytes:
    buffer = io.BytesIO()
    (smoothed(picture(seed)) if fake else picture(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def forensynths():
    for k, category in enumerate(["airplane", "bird", "cat"]):
        for i in range(N // 2):
            save(f"set/progan/{category}/0_real/{i:05}.png", 100 * k + i)
            save(f"set/progan/{category}/1_fake/{i:05}.png", 500 + 100 * k + i, fake=True)
    for i in range(N):
        save(f"set/biggan/0_real/{i:05}.png", 1000 + i)
        save(f"set/biggan/1_fake/{i:05}.png", 1100 + i, fake=True)
    return ["set"], {("biggan", "biggan"): N, ("progan", "progan"): 3 * N // 2}, {"test"}


def genimage():
    for split in ("train", "val"):
        for i in range(N):
            seed = i + (50 if split == "val" else 0)
            save(f"set/ADM/imagenet_ai_0508_adm/{split}/nature/n0144_{seed}.JPEG", seed, quality=95)
            save(f"set/ADM/imagenet_ai_0508_adm/{split}/ai/{i}_adm_{seed}.PNG", 200 + seed, fake=True)
    return ["set"], {("ADM", "ADM"): 2 * N}, {"train", "validation", "test"}


def cifake():
    for k, split in enumerate(("train", "test")):
        for i in range(N):
            save(f"set/{split}/REAL/{i:04} (2).jpg", 100 * k + i)
            save(f"set/{split}/FAKE/{i:04} (2).jpg", 500 + 100 * k + i, fake=True)
    return ["set"], {("fake", ""): 2 * N}, {"train", "validation", "test"}


def universal_fake_detect():
    for name, fake in (("real", False), ("fake", True)):
        files = [save(f"images/{name}/{i}.png", i + 100 * fake, fake) for i in range(N)]
        Path(f"{name}.pickle").write_bytes(pickle.dumps([str(f) for f in files]))
    return ["--real", "real.pickle", "--fake", "ldm_200=fake.pickle"], {("ldm_200", ""): N}, {"test"}


def diffusiondb():
    for i in range(N):
        save(f"coco/{i:012}.jpg", i)
        part = f"diffusiondb/part-{i % 2 + 1:06}"
        save(f"{part}/{i:08x}-aaaa.png", 100 + i, fake=True)
        Path(part, f"{Path(part).name}.json").write_text("{}")
    return ["--real", "coco", "--fake", "diffusiondb=diffusiondb"], {("diffusiondb", ""): N}, {"test"}


def papers_archive():
    for k, name in enumerate(["stylegan3", "dalle2"]):
        for i in range(N):
            save(f"set/{name}/images/val/n01440764/{i}.png", 100 * k + i)
            save(f"set/{name}/images/val/n01443537/{i}.png", 500 + 100 * k + i, fake=True)
    return ["set"], {(n, n): N for n in ("stylegan3", "dalle2")}, {"test"}


def kaggle():
    for i in range(2 * N):
        save(f"train_data/{i:03x}.jpg", i, fake=i % 2 == 1)
    lines = ["﻿id;file_name;label", *(f"{i};train_data/{i:03x}.jpg;{i % 2}" for i in range(2 * N))]
    Path("train.csv").write_text("\n".join(lines), encoding="utf-8")
    return ["train.csv", "--real-value", "0"], {("fake", ""): N}, {"test"}


def parquet():
    images = pa.array([{"bytes": encoded(i, i % 2 == 1), "path": f"{i}.png"} for i in range(2 * N)])
    features = {"label": {"names": ["real", "fake"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table({"image": images, "label": [i % 2 for i in range(2 * N)]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, "data.parquet", row_group_size=7)
    return ["data.parquet"], {("fake", ""): N}, {"test"}


def shards():
    Path("shards").mkdir()
    for shard in range(2):
        with tarfile.open(f"shards/{shard:05}.tar", "w") as tar:
            for i in range(N):
                content = {"png": encoded(100 * shard + i, i % 2 == 1), "cls": str(i % 2).encode()}
                for suffix, data in content.items():
                    info = tarfile.TarInfo(f"{shard}-{i:04}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return ["shards", "--real-value", "0"], {("fake", ""): N}, {"test"}


def sets_of_reals():
    for i in range(N):
        save(f"set/real/coco/{i}.png", i)
        save(f"set/real/lsun/{i}.png", 50 + i)
        save(f"set/fake/lsun/{i}.png", 100 + i, fake=True)
        save(f"set/fake/sd2/deeper/{i}.png", 200 + i, fake=True)
    save("set/Fake/loose.png", 99, fake=True)
    return ["set"], {("lsun", "lsun"): N, ("sd2", ""): N, ("fake", ""): 1}, {"test"}


LAYOUTS = [
    *(forensynths, genimage, cifake, universal_fake_detect, diffusiondb),
    *(papers_archive, kaggle, parquet, shards, sets_of_reals),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_data_set_goes_from_its_tree_to_an_evaluated_table_in_three_commands(afp, run_folder, layout):
    arguments, expected, splits = layout()
    code, printed = afp("manifest", *arguments, "--out", "m.csv")
    assert code == 0, printed
    frame = read_manifest("m.csv")
    fakes = frame[frame["label"] == 1]
    assert fakes.groupby(["generator", "set"]).size().to_dict() == expected
    assert set(frame["split"]) == splits and set(frame.loc[frame["label"] == 0, "generator"]) == {"real"}
    assert (frame.groupby("source")["fold"].nunique() == 1).all() and (frame["sha256"] != "").all()
    assert f"fake: {len(fakes)}" in printed and f"real: {len(frame) - len(fakes)}" in printed
    assert afp("score", "m.csv", "--run", run_folder)[0] == 0
    code, printed = afp("evaluate", "scores.csv", "--out", "metrics.csv")
    assert code == 0, printed
    assert set(pd.read_csv("metrics.csv")["group"]) >= {generator for generator, _ in expected}


def test_a_data_sets_own_split_is_kept_and_fits(afp):
    cifake()
    assert afp("manifest", "set", "--out", "m.csv")[0] == 0
    frame = read_manifest("m.csv")
    assert (frame["path"].str.contains("/test/") == (frame["split"] == "test")).all()
    assert (frame.groupby("source")["split"].nunique() == 1).all()
    assert afp("fit", "-d", "spectrum", "-m", "m.csv", "--out", "run")[0] == 0
    assert afp("manifest", "set", "--split", "--out", "n.csv")[0] == 0
    frame = read_manifest("n.csv")
    assert not (frame["path"].str.contains("/test/") == (frame["split"] == "test")).all()


def test_the_split_in_the_names_of_shards_is_kept(afp):
    """And rows of one number in two of them are two photographs, whatever their labels are."""
    for name, first in (("train", 0), ("test", 41)):
        labels = [(first + i) % 2 for i in range(20)]
        files = [save(f"{name}/{i}.png", first + i, fake=label == 1) for i, label in enumerate(labels)]
        rows = [
            {"image": {"bytes": f.read_bytes(), "path": f.name}, "label": label}
            for f, label in zip(files, labels, strict=True)
        ]
        Path("data").mkdir(exist_ok=True)
        pd.DataFrame(rows).to_parquet(f"data/{name}-00000-of-00001.parquet")
    code, printed = afp("manifest", "data", "--real-value", "0", "--out", "m.csv")
    assert code == 0, printed
    frame = read_manifest("m.csv")
    assert (frame["path"].str.contains("test-0") == (frame["split"] == "test")).all()
    assert set(frame["split"]) == {"train", "validation", "test"} and frame["source"].nunique() == 40


def test_shards_below_a_folder_with_colons_are_read(afp, monkeypatch):
    Path("a::b").mkdir()
    monkeypatch.chdir("a::b")
    assert afp("manifest", *shards()[0])[0] == 0
    assert (read_manifest("manifest.csv")["sha256"] != "").all()


def test_a_tree_that_cannot_be_listed_is_named(afp, unlistable):
    save("locked/real/0.png", 0)
    status, printed = afp("manifest", "locked")
    assert status == 2 and "locked: no image below a folder named real or fake" in printed


def test_a_data_set_without_a_test_split_and_without_validation_keeps_what_it_has(afp):
    for i in range(8):
        save(f"set/train/real/{i}.png", i)
        save(f"set/train/fake/{i}.png", i, fake=True)
    status, printed = afp("manifest", "set")
    assert status == 0 and "its validation images are the test" not in printed
    assert set(read_manifest("manifest.csv")["split"]) == {"train", "validation"}


def test_a_layout_is_named_where_the_guess_is_wrong(afp):
    for category in ("cat", "dog"):
        for i in range(6):
            save(f"progan/{category}/0_real/{i}.png", i + 10 * (category == "cat"))
            save(f"progan/{category}/1_fake/{i}.png", 100 + i + 10 * (category == "cat"), fake=True)
    assert "cat (set cat): 6" in afp("manifest", "progan")[1]
    assert "fake: 12 images" in afp("manifest", "progan", "--layout", "categories")[1]
    assert len(set(read_manifest("manifest.csv")["source"])) == 12
    code, printed = afp("manifest", "progan", "--layout", "lsun")
    assert code == 2 and "'lsun', expected auto | sets | categories" in printed


def test_folders_and_generators_by_name(afp):
    for i in range(6):
        save(f"coco/{i}.png", i)
        save(f"a/out/{i}.png", 100 + i, fake=True)
        save(f"b/out/{i}.png", 200 + i, fake=True)
    code, printed = afp("manifest", "--real", "coco", "--fake", "sd2=a/out", "--fake", "sd2=b/out", "--split")
    assert code == 0 and "sd2: 12 images, 6 sources" in printed
    for wrong, named in [
        (["--fake", "a/out", "--fake", "b/out"], "folders of one name"),
        (["--fake", "=a/out"], "expected NAME=DIR"),
        (["--fake", "nowhere"], "nowhere: not a folder"),
        ([], "all 6 images are real"),
    ]:
        code, printed = afp("manifest", "--real", "coco", *wrong)
        assert code == 2 and named in printed
    code, printed = afp("manifest", "coco")
    assert (
        code == 2
        and "no image below a folder named real or fake" in printed
        and "6 images elsewhere" in printed
    )
    save("set/camera/real/a.png", 1)
    save("set/sd2/b.png", 2)
    code, printed = afp("manifest", "set", "--left-out", "left.csv")
    assert code == 2 and "not taken, outside of the layout: 1 no class word in its path" in printed
    assert "all 1 images are real; both are needed; 1 others have no class word in their path" in printed
    assert "such as set/sd2/b.png: name the folders by --real DIR and --fake NAME=DIR" in printed
    assert pd.read_csv("left.csv")["file"].tolist() == ["set/sd2/b.png"]
    save("x/real/fake/a.png", 1)
    code, printed = afp("manifest", "x")
    assert code == 2 and "real/fake/a.png: names both classes" in printed


def test_every_file_is_accounted_for(afp):
    for i in range(6):
        save(f"set/real/{i}.png", i)
        save(f"set/fake/{i}.png", 100 + i, fake=True)
    save("set/fake/modern.avif", 300, fake=True)
    save("set/fake/old.jfif", 301, fake=True, format="JPEG")
    save("set/fake/bare", 302, fake=True, format="PNG")
    save("set/elsewhere.png", 303)
    save("set/real/line\nbreak.png", 304)
    Path("set/elsewhere.\x1b[31m").write_text("")
    for name in ("set/fake/notes.txt", "set/fake/part.json", "set/fake/b.json", "set/readme.md"):
        Path(name).write_text("BMW and others" if name.endswith("md") else "{}")
    for name in ("set/__MACOSX/real/a.png", "set/real/._a.png", "set/real/.ipynb_checkpoints/a.png"):
        save(name, 305)
    Path("set/fake/cut.png").write_bytes(encoded(1, True)[:-600])
    Path("set/real/empty.png").write_bytes(b"")
    code, printed = afp("manifest", "set", "--left-out", "left.csv")
    assert code == 0 and "real: 7" in printed and "fake: 10" in printed
    assert "not taken, fake: 2 .json, 1 .txt, such as set/fake/" in printed
    for reason in ("1 no class word in its path", "1 .md", "1 no extension"):
        assert reason in printed.split("outside of the layout: ")[1].split(", such as")[0]
    assert (
        "1 images cannot be used, such as unreadable: " in printed
        and "empty.png: empty file; --drop" in printed
    )
    assert "line\nbreak" not in printed and "\x1b[31m" not in printed
    left = pd.read_csv("left.csv")
    assert len(left) == 7 and set(left["reason"]) == {
        *(
            ".txt",
            ".json",
            ".md",
            "no extension",
            "no class word in its path",
            "name is not UTF-8 or has control characters",
        ),
    }
    code, printed = afp("manifest", "set", "--drop-unreadable")
    assert code == 0 and "unreadable: 10% of fake, 14% of real" in printed
    assert set(read_manifest("manifest.csv")["path"]) >= {"set/fake/bare", "set/fake/modern.avif"}
    assert "cut.png" not in Path("manifest.csv").read_text()
    assert afp("fit", "-d", "spectrum", "-m", "manifest.csv", "--out", "r")[0] == 2  # no split: all is test


def test_a_folder_that_cannot_be_listed_is_named_and_the_others_are_taken(afp, unlistable):
    for i in range(6):
        save(f"set/real/{i}.png", i)
        save(f"set/fake/{i}.png", 100 + i, fake=True)
    save("set/fake/locked/x.png", 9)
    code, printed = afp("manifest", "set")
    assert code == 0 and "not taken, fake: 1 cannot be listed" in printed and "set/fake/locked" in printed


TABLES = {
    "words": ("file\tclass", ["{0}.png\treal", "{1}.png\tFake"], [], {"fake"}),
    "generators": (
        "path,label",
        ["{0}.png,coco", "{1}.png,sd2", "{2}.png,lama"],
        ["--real-value", "coco"],
        {"sd2", "lama"},
    ),
    "own columns": (
        "image|y|generator|split",
        ["{0}.png|1|camera|train", "{1}.png|0|sd2|val", "{2}.png|0|sd2|test"],
        ["--real-value", "1"],
        {"sd2"},
    ),
    "asked": (
        "path,where,what",
        ["x,{0}.png,a", "x,{1}.png,b"],
        ["--path-column", "where", "--label-column", "what", "--real-value", "a"],
        {"fake"},
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_any_columns_and_separators(afp, name):
    header, lines, options, generators = TABLES[name]
    rows = []
    for i in range(6):
        for k, line in enumerate(lines):
            save(f"{k}-{i}.png", 10 * i + k, fake=k > 0)
            rows.append(line.replace(f"{{{k}}}", f"{k}-{i}"))
    Path("t.csv").write_text("\n".join([header, *rows]))
    code, printed = afp("manifest", "t.csv", *options)
    assert code == 0, printed
    frame = read_manifest("manifest.csv")
    assert set(frame.loc[frame["label"] == 1, "generator"]) == generators
    assert (frame["label"] == 0).sum() == 6 and frame.loc[frame["label"] == 0, "path"].str.startswith(
        "0-"
    ).all()


@pytest.mark.parametrize(
    ("content", "options", "named"),
    [
        ("path,label\na.png,0\nb.png,1", [], "holds 0, 1; which is real? Give --real-value"),
        (
            "path,label\na.png,0\nb.png,1",
            ["--real-value", "7"],
            "--real-value '7', expected one of ['0', '1']",
        ),
        (
            "path,file,label\na,b,real",
            [],
            "paths: which column? Give --path-column, one of path, file, label",
        ),
        ("path,label\na,real", ["--path-column", "x"], "which column?"),
        ("path,what\na.png,0", [], "1 images without a label; give --label-column"),
        ("path,label\na.png,\nb.png, ", ["--real-value", "0"], "column 'label': no image has a label"),
        ("", [], "not a readable table"),
        ("path,label,split\na.png,real,dev\nb.png,fake,train", [], "split: 'dev'"),
    ],
)
def test_a_table_that_could_mean_several_things_is_refused(afp, content, options, named):
    Path("t.csv").write_text(content)
    save("a.png", 1)
    save("b.png", 2)
    code, printed = afp("manifest", "t.csv", *options)
    assert code == 2 and named in " ".join(printed.split())


def tar_of(name: str, members: dict[str, bytes]) -> None:
    with tarfile.open(name, "w") as tar:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


LABELS = [0, 1, None, 0, 1, None, 0, 1]


def csv_with_blanks():
    files = [save(f"{i}.png", i) for i in range(8)]
    rows = [f"{f},{'' if y is None else y}" for f, y in zip(files, LABELS, strict=True)]
    Path("t.csv").write_text("\n".join(["path,label", *rows, ",1"]))
    return "t.csv", ["--real-value", "0"]


def parquet_of_paths_with_nulls():
    files = [str(save(f"{i}.png", i)) for i in range(8)]
    pq.write_table(pa.table({"path": files, "label": pa.array(LABELS, pa.int64())}), "t.parquet")
    return "t.parquet", ["--real-value", "0"]


def parquet_with_nulls():
    images = [{"bytes": encoded(i, False), "path": ""} for i in range(8)]
    pq.write_table(pa.table({"image": images, "label": pa.array(LABELS, pa.int64())}), "t.parquet")
    return "t.parquet", ["--real-value", "0"]


def class_label_of_minus_one():
    images = [{"bytes": encoded(i, False), "path": ""} for i in range(8)]
    features = {"label": {"names": ["real", "fake"], "_type": "ClassLabel"}}
    table = pa.table({"image": images, "label": [-1 if y is None else y for y in LABELS]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, "t.parquet")
    return "t.parquet", []


def shard_without_some_cls():
    labels = {f"{i}.cls": str(y).encode() for i, y in enumerate(LABELS) if y is not None}
    tar_of("t.tar", {f"{i}.png": encoded(i, False) for i in range(8)} | labels)
    return "t.tar", ["--real-value", "0"]


def shard_with_null_in_json():
    labels = {f"{i}.json": json.dumps({"label": y}).encode() for i, y in enumerate(LABELS)}
    tar_of("t.tar", {f"{i}.png": encoded(i, False) for i in range(8)} | labels)
    return "t.tar", ["--real-value", "0"]


@pytest.mark.parametrize(
    "make",
    [
        *(csv_with_blanks, parquet_of_paths_with_nulls, parquet_with_nulls),
        *(class_label_of_minus_one, shard_without_some_cls, shard_with_null_in_json),
    ],
    ids=lambda make: make.__name__,
)
def test_rows_without_a_label_are_left_out(afp, make):
    table, options = make()
    code, printed = afp("manifest", table, *options, "--left-out", "left.csv")
    assert code == 0 and "2 no label" in printed, printed
    frame, left = read_manifest("manifest.csv"), pd.read_csv("left.csv", keep_default_na=False)
    assert frame["label"].tolist() == [y for y in LABELS if y is not None]
    assert set(frame["generator"]) == {"real", "fake"}
    assert [file[-5:] for file in left.loc[left["reason"] == "no label", "file"]] in (
        ["2.png", "5.png"],
        ["et::2", "et::5"],
    )


@pytest.mark.parametrize(
    ("labels", "real"),
    [
        (["0", "0.0", "1", "1.0", "nan", "N/A"], "0"),
        (["real", "REAL", "fake", "Fake", "NULL", "none"], "Real"),
    ],
)
def test_a_label_is_one_however_it_is_written(afp, labels, real):
    files = [save(f"images/{i}.png", i) for i in range(6)]
    pd.DataFrame({"path": files, "label": labels}).to_csv("t.csv", index=False)
    code, printed = afp("manifest", "t.csv", "--real-value", real, "--out", "m.csv")
    frame = read_manifest("m.csv")
    assert code == 0 and "2 no label" in printed
    assert frame["label"].tolist() == [0, 0, 1, 1] and frame["generator"].nunique() <= 3


def test_an_image_without_a_split_beside_others_is_used_for_nothing(afp):
    files = [save(f"images/{i}.png", i) for i in range(8)]
    splits = ["train"] * 4 + ["test"] * 2 + [""] * 2
    pd.DataFrame({"path": files, "label": [0, 1] * 4, "split": splits}).to_csv("t.csv", index=False)
    code, printed = afp("manifest", "t.csv", "--real-value", "0", "--out", "m.csv")
    assert code == 0 and "2 images without a split" in printed
    assert read_manifest("m.csv")["split"].value_counts()["none"] == 2


def test_what_is_blank_in_a_table_is_as_if_there_were_no_such_column(afp):
    files = [str(save(f"{'abcdef'[i]}.png", i)) for i in range(6)]
    columns = {
        "label": ["coco", "sd2", "lama"] * 2,
        "generator": [None, None, "inpainted", " ", "", None],
        "kind": [None, "diffusion", "", "", "", ""],
        "source": [None, "", " ", None, "one", "one"],
    }
    pd.DataFrame({"path": files, **columns}).to_parquet("t.parquet")
    pd.DataFrame({"path": files, **columns}).to_csv("t.csv", index=False)
    for table in ("t.parquet", "t.csv"):
        code, printed = afp("manifest", table, "--real-value", "coco")
        assert code == 0, printed
        frame = read_manifest("manifest.csv")
        assert frame["generator"].tolist() == ["real", "sd2", "inpainted", "real", "sd2", "lama"]
        assert frame["kind"].tolist() == ["real", "diffusion", "unknown", "real", "unknown", "unknown"]
        assert frame["source"].tolist() == ["a", "b", "c", "d", "one", "one"]


def test_a_file_under_two_names_is_refused(afp):
    for i in range(3):
        save(f"ov/{i}.png", i)
        save(f"ov/sd/{i}.png", 100 + i, fake=True)
    Path("t.csv").write_text("path,label\nov/0.png,real\nov/sd/0.png,fake\nov/x/../sd/0.png,real")
    Path("g.csv").write_text("path,label,generator\nov/0.png,fake,a\nov/0.png,fake,b\nov/1.png,real,")
    for arguments, named in [
        (
            ["--real", "ov", "--fake", "sd=ov/sd"],
            "sd/0.png: is listed as real 'real' and as fake 'sd'; 3 files",
        ),
        (["t.csv"], "sd/0.png: is listed as fake 'fake' and as real 'real'. List"),
        (["g.csv"], "ov/0.png: is listed as fake 'a' and as fake 'b'. List"),
    ]:
        code, printed = afp("manifest", *arguments)
        assert code == 2 and named in printed, printed
    code, printed = afp("manifest", "--real", "ov/sd", "--real", "ov/sd", "--fake", "ov")
    assert code == 2 and "is listed as real 'real' and as fake 'ov'" in printed


def test_hidden_members_and_names_that_no_table_can_hold_are_not_taken(afp):
    real, fake = ({f"{name}/{i}.png": encoded(i, False) for i in range(3)} for name in ("./real", "fake"))
    hidden = ("real/._0.png", "__MACOSX/real/0.png", ".trash/fake/0.png", "real/.b/c/0.png", "real/._0.json")
    bad = b"fake/caf\xe9.png".decode("utf-8", "surrogateescape")
    Path("set").mkdir()
    tar_of("set/t.tar", real | fake | dict.fromkeys(hidden, b"x") | {bad: b"x", "fake/a\n.png": b"x"})
    Path("set/._t.tar").write_bytes(b"of macOS")
    code, printed = afp("manifest", "set")
    assert code == 0 and "not taken, of the tables: 2 name is not UTF-8 or has control characters" in printed
    assert set(read_manifest("manifest.csv")["path"]) == {
        f"set/t.tar::{n}/{i}.png" for n in ("real", "fake") for i in range(3)
    }


@pytest.mark.parametrize("image", ["struct", "binary"])
def test_the_images_of_a_parquet_file_are_not_its_first_bytes(afp, image):
    content = [encoded(i, False) for i in range(4)]
    held = [{"bytes": c, "path": ""} for c in content] if image == "struct" else content
    columns = {"hash": [b"x"] * 4, "Image": held, "thumb": [b"y"] * 4, "label": ["real", "fake"] * 2}
    if image == "struct":
        columns = {"mask": [{"bytes": b"z"}] * 4, **columns}
    pq.write_table(pa.table(columns), "t.parquet")
    code, printed = afp("manifest", "t.parquet", "--drop-unreadable")
    assert code == 0 and "4 images: manifest.csv" in printed, printed


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def test_hostile_lists_and_shards_are_refused_by_name(afp):
    save("coco/a.png", 1)
    Path("evil.pickle").write_bytes(pickle.dumps([Evil()]))
    Path("words.pickle").write_bytes(pickle.dumps({"a": 1}))
    Path("cut.tar").write_bytes(b"no tar" * 200)
    Path("cut.parquet").write_bytes(b"PAR1 and no more")
    for arguments, named in [
        (["--real", "coco", "--fake", "x=evil.pickle"], "evil.pickle: not a folder and not a readable list"),
        (["--real", "coco", "--fake", "x=words.pickle"], "holds something else than paths"),
        (["cut.tar"], "cut.tar: not a readable tar shard"),
        (["cut.parquet"], "cut.parquet: not a readable Parquet file"),
    ]:
        code, printed = afp("manifest", *arguments)
        assert code == 2 and named in printed, printed
    assert not Path("evil").exists()


def test_an_image_in_an_archive_is_read_like_any_other(afp):
    parquet()
    shards()
    for name in (f"data.parquet::{N + 3}", f"shards/00001.tar::1-{N - 1:04}.png"):
        content = encoded(N + 3, True) if "parquet" in name else encoded(100 + N - 1, True)
        assert read_file(name) == content and sha256(name) == hashlib.sha256(content).hexdigest()
        assert open_image(name).size == (64, 64) and describe_file(name)["format"] == "PNG"
        assert not extension_caution(name)
    for name in (
        "data.parquet::99",
        "data.parquet::-1",
        "data.parquet::x",
        "shards/00001.tar::x.png",
        "no.tar::a",
    ):
        with pytest.raises(ImageError, match=name):
            open_image(name)
