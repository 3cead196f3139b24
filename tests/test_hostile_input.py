"""Scores tables, run configs and settings drawn at random: a command takes them, or says in a line what is wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from functools import partial

import pandas as pd
from conftest import picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afp import detectors
from afp.detectors.base import CHECKSUMS
from afp.errors import AfpError
from afp.results.scores import SCORE_COLUMNS, read_scores

bounded = partial(
    settings, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
CELLS = st.one_of(
    *(st.none(), st.booleans(), st.integers(-9, 9), st.integers(), st.floats(), st.text(max_size=6)),
    st.sampled_from(["real", "test", "none", "0", "1", ".5", "1e999", "[/x]", "=1", "-", "\x1b[2J"]),
)
JSON = st.recursive(
    st.one_of(CELLS, st.just("x" * 5000)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.sampled_from(["size", "codec", "rate"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@bounded(max_examples=60)
@given(data=st.data())
def test_whatever_is_in_a_scores_table_it_is_evaluated_or_refused(afp, tmp_path, data):
    """Half of them good tables with a few wrong cells, half of them anything."""
    n = data.draw(st.integers(0, 6))
    good = {"path": [f"{i}.png" for i in range(n)], "label": [i % 2 for i in range(n)], "score": [0.5] * n}
    names = data.draw(st.lists(st.sampled_from([*SCORE_COLUMNS, "x", ""]), unique=True, max_size=12))
    start = good if data.draw(st.booleans()) else {}
    drawn = {name: data.draw(st.lists(CELLS, min_size=n, max_size=n)) for name in names if name not in start}
    table = pd.DataFrame(start | drawn, dtype=object)
    for _ in range(data.draw(st.integers(0, 2)) if table.size else 0):
        row, column = (data.draw(st.integers(0, size - 1)) for size in table.shape)
        table.iat[row, column] = data.draw(CELLS)
    file = tmp_path / "s.csv"
    whole = table.to_csv(index=False).encode("utf-8", "replace")
    place = data.draw(st.integers(0, len(whole)))
    file.write_bytes(whole[:place] + data.draw(st.just(b"") | st.binary(max_size=3)) + whole[place:])
    try:
        assert set(SCORE_COLUMNS) <= set(read_scores(file))
    except AfpError as error:
        assert file.name in str(error)
    assert afp("evaluate", file).code in (0, 2)


@bounded(max_examples=60)
@given(data=st.data())
def test_whatever_is_in_a_runs_config_it_scores_or_is_refused(afp, run, tmp_path, data):
    folder = shutil.copytree(run, tmp_path / "r", dirs_exist_ok=True)
    (folder / CHECKSUMS).unlink()  # as of an older version: what it says is checked and no seal
    content = json.loads((run / "config.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        inner = data.draw(st.sampled_from([content, content["config"], content["operating_point"]]))
        inner = inner if isinstance(inner, dict) else content
        key = data.draw(st.sampled_from([*inner, "backbone", "x"]))
        inner[key] = data.draw(JSON)
        content = content | {k: {} for k in ("config", "operating_point") if not isinstance(content[k], dict)}
    whole = data.draw(st.one_of(st.just(content), st.just(content), JSON))
    (folder / "config.json").write_text(json.dumps(whole))
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "s.csv").unlink(missing_ok=True)
    scored = afp("score", tmp_path / "a.png", "--run", folder, "--out", tmp_path / "s.csv")
    assert scored.code in (0, 2)


@bounded(max_examples=150)
@given(data=st.data())
def test_whatever_a_setting_is_it_makes_a_detector_or_is_refused(data):
    name = data.draw(st.sampled_from(detectors.NAMES))
    known = [field.name for field in fields(detectors.detector_class(name))]
    keys = data.draw(st.lists(st.sampled_from(known), unique=True, min_size=1, max_size=2))
    config = {key: data.draw(JSON) for key in keys}
    try:
        made = detectors.create(name, **config)
    except AfpError as error:
        assert str(error)
    else:
        assert detectors.create(name, **made.config()) == made
