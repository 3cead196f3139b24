"""Leaks between splits: names that hide one are refused with the rule to use, and the audit looks at the pixels."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import save
from PIL import Image

from afp.data.audit import describe_files, find_leaks, find_lookalikes
from afp.data.images import open_image
from afp.data.manifest import read_manifest
from afp.data.splits import connect_sources, fold_of, use_fold


def videos(demo_manifest, n=28, frames=8, name="vid{0:03}/frame_{1:04}.png") -> None:
    """Shifted crops of untouched photographs, half of them named a face swap: nothing is fake."""
    for v, file in enumerate(sorted((demo_manifest.parent / "images" / "photos").iterdir())[:n]):
        photo = open_image(file)
        photo = photo.resize((512, 512 * photo.height // photo.width))
        for k in range(frames):
            folder = "set/fake/faceswap" if v % 2 else "set/real"
            target = Path(folder, name.format(v, k))
            target.parent.mkdir(parents=True, exist_ok=True)
            photo.crop((20 + 6 * k, 10 + 3 * k, 276 + 6 * k, 266 + 3 * k)).resize((128, 128)).save(target)


@pytest.mark.parametrize(
    "name", ["vid{0:03}/frame_{1:04}.png", "{0:03}/{1:04}.png", "vid{0:03}_frame{1:04}.png"]
)
def test_frames_of_videos_are_refused_without_a_rule_and_kept_together_with_it(afp, demo_manifest, name):
    videos(demo_manifest, 9, 3, name)
    code, printed = afp("manifest", "set", "--split")
    assert code == 2 and "frames of videos" in printed and not Path("manifest.csv").exists()
    rule = printed.split("give --source-rule ")[1].split(", or another")[0].strip("'")
    assert afp("manifest", "set", "--split", "--source-rule", rule)[0] == 0
    frame = read_manifest("manifest.csv")
    assert frame["source"].nunique() == 9 and (frame.groupby("source")["split"].nunique() == 1).all()
    assert find_lookalikes(describe_files(frame, progress=False)).detail.startswith("27 compared, none")


def test_a_wrong_rule_for_videos_is_found_by_their_pixels(afp, demo_manifest):
    videos(demo_manifest, 20, 5)
    assert afp("manifest", "set", "--split", "--source-rule", "([a-z0-9]+/frame.*)")[0] == 0
    code, printed = afp("audit", "manifest.csv")
    assert code == 1 and "OK   source leaks" in printed
    found = int(printed.split("FAIL pictures: ")[1].split(" of 100")[0])
    assert found > 90 and "look like one of another split or fold, such as set/" in printed


CASES = {
    "a prefix": (
        [f"real/{n}.jpg" for n in "abcdef"] + [f"fake/lama/lama_{n}.png" for n in "abcdef"],
        "'lama_a' beside 'a'",
        6,
    ),
    "a prefix and several suffixes": (
        [f"real/{n}.jpg" for n in "abcdef"]
        + [f"fake/x/{name}.png" for n in "abcdef" for name in (f"x-{n}", f"{n}_1", f"{n} mask")],
        "18 fakes are named after real images",
        6,
    ),
    "a suffix": (
        [f"real/{n}.jpg" for n in "abcdef"] + [f"fake/lama/{n}_lama.png" for n in "abcdef"],
        "'a_lama' beside 'a'",
        6,
    ),
    "several suffixes": (
        [f"real/dog-{n}.jpg" for n in "abcdef"]
        + [f"fake/x/dog-{n}_{s}.png" for n in "abcdef" for s in ("1", "mask")],
        "12 fakes are named after real images",
        6,
    ),
    "swaps": (
        [f"real/{n:03}.png" for n in range(12)] + [f"fake/swap/{n:03}_{n + 3:03}.png" for n in range(9)],
        "9 fakes look like swaps of two, such as '000_003'",
        3,
    ),
    "flat frames": (
        [f"real/vid{n}_{k:03}.png" for n in range(4) for k in range(4)]
        + [f"fake/swap/vid{n}_{k:03}.png" for n in range(4, 8) for k in range(4)],
        "16 look like numbered frames of 4 videos, such as 'vid0_000'",
        8,
    ),
    "one name": (
        [f"real/{n:03}/image.png" for n in range(9)] + [f"fake/sd2/{n:03}/image.png" for n in range(9)],
        "one name in 9 folders",
        9,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_names_of_derivatives_are_refused_with_the_rule_to_use(afp, case):
    files, named, sources = CASES[case]
    for i, file in enumerate(files):
        save(f"set/{file}", i, fake="/fake/" in f"/{file}")
    code, printed = afp("manifest", "set", "--split")
    assert code == 2 and named in printed
    rule = printed.split("give --source-rule ")[1].split(", or another")[0].strip("'")
    code, printed = afp("manifest", "set", "--source-rule", rule)
    assert code == 0 and f"images of {sources} sources" in printed, printed
    assert afp("manifest", "set", "--source-rule", "stem")[0] == 0
    if case == "one name":
        code, printed = afp("manifest", "set", "--split", "--source-rule", "stem")
        assert code == 2 and "1 sources cannot be split in three" in printed


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("(", "expected stem, folder, column:NAME or a regular expression"),
        ("dog", "no group in it"),
        ("x(.)", "6 names do not fit, such as 'a'"),
        ("column:photo", "no such column"),
    ],
)
def test_a_rule_that_is_none_is_refused(afp, rule, named):
    for n in "abc":
        save(f"real/{n}.png", ord(n))
        save(f"fake/{n}.png", ord(n), fake=True)
    code, printed = afp("manifest", ".", "--source-rule", rule)
    assert code == 2 and named in printed


def test_a_column_names_the_source(afp):
    lines = ["path,label,photo", *(f"{i}.png,{('real', 'fake')[i % 2]},p{i // 4}" for i in range(24))]
    for i in range(24):
        save(f"{i}.png", i, fake=i % 2 == 1)
    Path("t.csv").write_text("\n".join(lines))
    code, printed = afp("manifest", "t.csv", "--source-rule", "column:photo", "--split")
    assert code == 0 and "24 images of 6 sources" in printed
    assert (
        "6 sources are few: dealt evenly" in printed or read_manifest("manifest.csv")["fold"].nunique() == 5
    )


def test_a_rule_of_a_column_that_is_none_names_the_tables_own(afp):
    Path("t.csv").write_text("path,label,photo,folder\na.png,real,p,x\nb.png,fake,p,y")
    save("a.png", 1)
    save("b.png", 2)
    for column in ("foo", "folder", "set"):
        code, printed = afp("manifest", "t.csv", "--source-rule", f"column:{column}")
        assert code == 2 and "no such column, expected one of photo, generator\n" in printed


@pytest.mark.parametrize("rule", ["", "stem", "folder", "(.*)/"])
def test_one_name_in_two_spellings_is_one_source(afp, rule):
    for i, name in enumerate(["Café", "naïve", "Über", "élan"]):
        for k, form in enumerate(("NFC", "NFD")):
            written = unicodedata.normalize(form, f"{name}/{name}")
            save(f"{('real', 'fake/sd')[k]}/{written}.png", 10 * k + i, fake=k > 0)
    save("real/IMG_a/IMG_a.JPG", 100)
    save(f"fake/sd/{'img_a/img_a' if rule in ('', 'stem') else 'IMG_a/x'}.png", 101, fake=True)
    code, printed = afp("manifest", ".", *(["--source-rule", rule] if rule else []))
    assert code == 0 and "10 images of 5 sources" in printed, printed
    assert set(read_manifest("manifest.csv")["source"]) == {"Café", "naïve", "Über", "élan", "IMG_a"}


def test_sources_are_connected_through_others_and_through_bytes():
    parents = [["a"], ["b"], ["c", "a"], ["d"], ["e"], ["f"]]
    assert connect_sources(parents, ["1", "", "", "1", "2", "2"]) == ["a", "b", "a", "a", "e", "e"]


def test_another_image_moves_none_and_leaving_some_out_neither(afp):
    for i in range(40):
        save(f"real/{i}.png", i)
        save(f"fake/sd2/{i}.png", i, fake=True)
    assert afp("manifest", ".", "--split", "--out", "m.csv")[0] == 0
    before = read_manifest("m.csv").set_index("path")
    assert before["fold"].eq(before["source"].str.rpartition("/")[2].map(fold_of)).all()
    for i in range(40, 45):
        save(f"real/{i}.png", i)
        save(f"fake/lama/{i}.png", i, fake=True)
    assert afp("manifest", ".", "--split", "--out", "m.csv")[0] == 0
    after = read_manifest("m.csv").set_index("path").loc[before.index]
    assert after[["split", "fold", "source"]].equals(before[["split", "fold", "source"]])
    whole = read_manifest("m.csv")
    few = use_fold(whole[whole["generator"] != "lama"], 1)
    assert few["split"].equals(use_fold(whole, 1).loc[few.index, "split"])


def test_what_is_saved_scaled_or_edited_anew_is_the_same_picture(demo_frame, tmp_path):
    real = demo_frame[demo_frame["generator"] == "real"].groupby("source").head(1).reset_index(drop=True)
    for i, file in enumerate(real["file"]):
        image = open_image(file)
        darker = Image.fromarray((np.asarray(image) * 0.7).astype(np.uint8))
        (image.resize((150, 150)), darker)[i % 2].save(tmp_path / f"{i}.jpg", quality=60)
    files = [str(tmp_path / f"{i}.jpg") for i in range(len(real))]
    other = real.assign(file=files, path=files, source="x" + real["source"], sha256="", split="train")
    both = describe_files(pd.concat([real.assign(split="test"), other]), progress=False).assign(error="")
    finding = find_lookalikes(both)
    assert not finding.ok and finding.detail.startswith(f"{2 * len(real)} of {2 * len(real)} look like")
    assert all(f.ok for f in find_leaks(both[: len(real)]))


def test_numbers_of_two_data_sets_are_no_common_photographs(afp):
    """Both have 0.png ...; a fake made of the first one's photographs belongs to them, under any folder name."""
    for i in range(40):
        for k, name in enumerate(("one", "two")):
            save(f"{name}/real/{i}.png", i + 1000 * k)
            save(f"{name}/fake/sd/{i}.png", i + 1000 * k + 500, fake=True)
    for name in ("one", "two"):
        assert afp("manifest", name, "--split", "--out", f"{name}.csv")[0] == 0
    assert afp("fit", "-d", "spectrum", "-m", "one.csv", "--out", "run")[0] == 0
    code, printed = afp("score", "two.csv", "--run", "run", "--out", "two-scores.csv")
    assert code == 0 and "had a part in the fit" not in printed
    for i in range(40):
        save(f"one/fake/new/{i}.png", i + 700, fake=True)
    Path("one").rename("renamed")
    assert afp("manifest", "renamed", "--out", "again.csv")[0] == 0
    code, printed = afp("score", "again.csv", "--run", "run", "--out", "again-scores.csv")
    assert code == 0 and "by the name of their source alone" not in printed
    scores, trained = pd.read_csv("again-scores.csv"), read_manifest("one.csv").query("split != 'test'")
    fresh = scores[scores["generator"] == "new"]
    names = fresh["path"].str.extract(r"(\d+)\.png")[0]
    assert set(names[fresh["role"].notna()]) == set(trained["source"].str.removeprefix("one/"))


def test_numbers_of_two_sets_of_one_tree_are_no_common_photographs_but_names_are(afp):
    for k, name in enumerate(("biggan", "progan")):
        for i in range(6):
            for source in (f"{i}", f"cat {'abcdef'[i]}"):
                seed = 100 * k + i + 50 * ("cat" in source)
                save(f"set/{name}/0_real/{source}.png", seed)
                save(f"set/{name}/1_fake/{source}.png", seed + 500, fake=True)
    code, printed = afp("manifest", "set")
    assert code == 0 and "48 images of 18 sources" in printed, printed
