from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import from_folders, picture, smoothed

from afp.cli.doctor import check_machine
from afp.data.audit import describe_files, find_leaks
from afp.data.images import sha256
from afp.data.manifest import from_files
from afp.data.splits import use_fold
from afp.studies.shortcuts import audit, pooled_auc


def failed(findings) -> dict[str, str]:
    return {f.check: f.detail for f in findings if not f.ok}


@pytest.fixture
def clean(small_frame) -> pd.DataFrame:
    return small_frame.copy()


def test_a_clean_manifest_passes(clean):
    findings, table, aucs = audit(clean, progress=False)
    assert not failed(findings)
    assert {
        "files",
        "source leaks",
        "sha256 leaks",
        "pictures",
        "labels agree",
        "names agree",
        "duplicates",
        "shortcut",
    } == {f.check for f in findings}
    assert table.loc["formats"].tolist() == ["PNG 100%"] * 2
    assert aucs.loc["metadata", "low"] <= 0.5 <= aucs.loc["metadata", "high"]
    assert aucs.loc["spectrum", "value"] > 0.9  # the fakes are smooth: no leak, but the audit says so


def test_a_manifests_own_columns_neither_stop_nor_fool_the_audit(clean):
    own = clean.assign(format="BMP", error="none that matters", width=1, note="seen")
    assert audit(own, progress=False)[1].equals(audit(clean, progress=False)[1])


def test_the_demo_passes_in_every_fold(demo_frame):
    first = demo_frame[demo_frame["path"].str.endswith("_0.png")]
    findings, _, aucs = audit(first, progress=False)
    assert not failed(findings)
    assert aucs.loc["metadata", "low"] <= 0.5 <= aucs.loc["metadata", "high"]
    for k in range(5):
        assert not failed(find_leaks(use_fold(demo_frame, k)))


def test_a_source_in_two_splits_is_found(clean):
    source = clean["source"].iloc[0]
    rows = clean.index[clean["source"] == source]
    clean.loc[rows[:2], "split"] = ["train", "test"]
    assert failed(find_leaks(clean)) == {"source leaks": f"1 in two splits, such as {source}"}


def test_a_copy_in_another_split_is_found_whatever_its_name(clean):
    train, test = (clean[(clean["split"] == s) & (clean["label"] == 0)].index[0] for s in ("train", "test"))
    clean.loc[test, "sha256"] = clean.loc[train, "sha256"]
    found = failed(find_leaks(clean))
    assert set(found) == {"sha256 leaks", "duplicates"}
    assert (
        clean.loc[train, "sha256"] in found["sha256 leaks"] and clean.loc[test, "path"] in found["duplicates"]
    )


def test_an_image_under_both_labels_is_found(clean):
    rows = clean.index[clean["source"] == clean["source"].iloc[0]]
    clean.loc[rows, "sha256"] = clean.loc[rows[0], "sha256"]
    found = failed(find_leaks(clean))
    assert set(found) == {"labels agree", "duplicates"}
    assert any(clean.loc[r, "path"] in found["labels agree"] for r in rows)


def test_an_unused_row_leaks_nothing(clean):
    row = clean.index[clean["split"] == "none"][0]
    clean.loc[row, "source"] = clean.loc[clean["split"] == "test", "source"].iloc[0]
    assert not failed(find_leaks(clean))


def test_unreadable_changed_and_missing_files_are_found(clean, tmp_path):
    picture(0).save(tmp_path / "changed.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    new = {
        0: ("changed.png", "0" * 64),
        1: ("broken.png", sha256(tmp_path / "broken.png")),
        2: ("gone.png", ""),
    }
    for i, (name, digest) in new.items():
        clean.loc[i, ["file", "sha256"]] = [str(tmp_path / name), digest]
    described = describe_files(clean, progress=False)
    assert [bool(e) for e in described["error"]] == [i in new for i in clean.index]
    for i, (name, _) in new.items():
        assert name in described["error"][i]
    findings, table, _ = audit(clean, progress=False)
    assert failed(findings)["files"].startswith(f"3 of {len(clean)}, such as")
    assert int(table.loc["images"].sum()) == len(clean) - 3


@pytest.mark.parametrize("shortcut", ["format", "size", "quality"])
def test_a_shortcut_is_found(tmp_path, shortcut):
    for i in range(12):
        for label, folder in enumerate(("real", "fake")):
            image, name, options = picture(100 * label + i), f"{i}.png", {}
            if shortcut == "format":
                name = f"{i}.{('jpg', 'png')[label]}"
            elif shortcut == "size":
                image = image.crop((0, 0, 60 + 4 * label, 64))
            else:
                name, options = f"{i}.jpg", {"quality": (75, 95)[label]}
            (tmp_path / folder).mkdir(exist_ok=True)
            image.save(tmp_path / folder / name, **options)
    frame = from_folders(tmp_path / "real", {"g": tmp_path / "fake"})
    findings, _, aucs = audit(frame, progress=False)
    assert "above chance" in failed(findings)["shortcut"]
    assert aucs.loc["metadata", "value"] > 0.99


@pytest.mark.parametrize("n_real", [0, 1, 2, 4])
@pytest.mark.parametrize("n_fake", [0, 1, 2, 4])
def test_few_images_are_audited_without_a_crash(tmp_path, n_real, n_fake):
    for i in range(n_real):
        picture(i).save(tmp_path / f"r{i}.png")
    for i in range(n_fake):
        smoothed(picture(50 + i)).save(tmp_path / f"f{i}.png")
    frame = from_files(sorted(tmp_path.iterdir()))
    label = [int(Path(f).name.startswith("f")) for f in frame["file"]]
    source = [Path(f).stem for f in frame["file"]]
    frame = frame.assign(label=label, generator="g", kind="", split="test", source=source, fold=0)
    findings, _, _ = audit(frame, progress=False)
    assert set(failed(findings)) == (set() if n_real and n_fake else {"both labels"})


def test_the_pooled_auc_is_of_all_fakes_against_all_real():
    labels, scores = pd.Series([0, 0, 1, 1]), pd.Series([0.1, 0.6, 0.5, 0.9])
    found = pooled_auc(labels, scores, pd.Series(list("abab")), n_boot=50)
    assert found.value == 0.75 and found.low <= 0.75 <= found.high
    assert not np.isnan([found.low, found.high]).any()


def test_doctor_says_what_is_missing_and_how_to_mend_it(tmp_path, monkeypatch, demo_manifest):
    assert not failed(
        f for f in check_machine() if f.check in ("python", "device", "weights", "demo data", "folder")
    )
    monkeypatch.setenv("AFP_DATA", str(tmp_path / "not" / "there"))
    found = failed(check_machine())
    assert "`afp demo`" in found["demo data"] and str(tmp_path) in found["demo data"]
