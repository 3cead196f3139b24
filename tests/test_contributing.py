"""The worked examples of CONTRIBUTING.md run as they stand."""

from __future__ import annotations

import re

import nbformat
import numpy as np
from conftest import picture
from sklearn.metrics import roc_auc_score

from afp.data.manifest import read_manifest
from afp.detectors.base import Detector
from afp.paths import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def example(name: str) -> str:
    code = re.search(rf"<!-- test: {name} -->\n```python\n(.*?)```", TEXT, re.S)[1]
    assert len(code.splitlines()) <= 40
    return code


def test_the_detector_fits_scores_and_comes_back_from_its_folder(small_frame, tmp_path):
    names = {}
    exec(compile(example("detector"), "grain.py", "exec", dont_inherit=True), names)
    detector: Detector = names["Grain"]()
    train, validation, test = (
        small_frame[small_frame["split"] == s] for s in ("train", "validation", "test")
    )
    scores = detector.fit(train, validation, progress=False).score(test)
    assert roc_auc_score(train["label"], detector.score(train)) > 0.8
    detector.save(tmp_path)
    assert np.array_equal(type(detector).load(tmp_path).score(test), scores)
    assert detector.n_trainable == 4


def test_the_layout_becomes_a_manifest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(20):
        picture(i).save(tmp_path / "photos" / f"dog{i}.png")
    labels = [f"dog{i}.png,{i % 2}" for i in range(20)] + ["lost.png,1"]
    (tmp_path / "photos" / "labels.txt").write_text("\n".join(labels))
    exec(compile(example("layout"), "labelled.py", "exec", dont_inherit=True), {})
    assert capsys.readouterr().out.startswith("20 images, 1 left out")
    frame = read_manifest(tmp_path / "m.csv")
    assert frame["label"].tolist() == [i % 2 for i in range(20)]
    assert set(frame["split"]) == {"train", "validation", "test"}


def test_the_notebook_runs_with_a_parameter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(example("notebook"), "notebook.py", "exec", dont_inherit=True), {})
    executed = nbformat.read(tmp_path / "out" / "50_how_many.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0]["text"].strip() == "8"
