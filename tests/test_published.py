"""The papers' averages, recomputed; own runs beside them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from afp.errors import DataError
from afp.figures import papers
from afp.results import published
from afp.results.metrics import evaluate
from afp.results.scores import SCORE_COLUMNS

ANTIFAKEPROMPT = {
    "Wang 2020": 22.08,
    "DE-FAKE": 59.22,
    "DIRE": 18.14,
    "InstructBLIP zero-shot": 42.09,
    "InstructBLIP + LoRA": 86.13,
    "AntifakePrompt": 91.59,
    "AntifakePrompt + LaMa": 92.60,
}
CLIPPING = {
    "prompt tuning": (89.45, 98.06),
    "adapter": (88.14, 96.33),
    "fine-tuning": (88.74, 96.29),
    "linear probing": (86.26, 95.22),
    "UnivFD (Ojha 2023)": (82.84, 93.05),
}


@pytest.fixture(scope="module")
def antifakeprompt() -> pd.DataFrame:
    return published.antifakeprompt()


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return published.clipping()


@pytest.fixture
def run_folder(tmp_path):
    """A folder with one run: two sets that bear a paper's name, one that does not, twice as many reals."""

    def make(name="linear-probe-0a1b2c3d", backbone="demo-clip", sets=("SD2", "sd-xl", "mine")):
        rng, records = np.random.default_rng(0), []
        for generator, n in (("real", 40), *((s, 20) for s in sets)):
            for i in range(n):
                fake = int(generator != "real")
                records.append(
                    {
                        "path": f"{generator}/{i}.png",
                        "label": fake,
                        "generator": generator,
                        "kind": "text-to-image" if fake else "real",
                        "split": "test",
                        "source": f"photo{i}",
                        "perturbation": "none",
                        "detector": "linear-probe",
                        "seen": int(generator == sets[0]),
                        "threshold": 0.5,
                        "score": np.clip(rng.normal(0.4 + 0.2 * fake, 0.2), 0, 1),
                    }
                )
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        pd.DataFrame(records).reindex(columns=SCORE_COLUMNS).to_csv(folder / "scores.csv", index=False)
        config = {
            "detector": "linear-probe",
            "config": {"backbone": backbone},
            "n_trainable": 769,
            "generators": [sets[0]],
        }
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "environment.json").write_text(json.dumps({"n_train": 80}))
        return folder.parent

    return make


def test_antifakeprompt_averages(antifakeprompt):
    found = published.averages(antifakeprompt).set_index("method")
    assert (found["n_sets"] == 16).all()
    assert found["accuracy"].to_dict() == pytest.approx(ANTIFAKEPROMPT, abs=0.01)
    printed = antifakeprompt.groupby("method")["published_average"].first()
    assert found["accuracy"].to_dict() == pytest.approx(printed.to_dict(), abs=0.01)


def test_clipping_averages_over_the_22_sets_that_are_not_commercial(rows):
    table = published.main_table(rows)
    assert table.groupby("method")["test_set"].nunique().eq(25).all() and len(table) == 7 * 25
    found = published.averages(table).set_index("method")
    assert (found["n_sets"] == 22).all()
    for method, (accuracy, ap) in CLIPPING.items():
        assert found.at[method, "accuracy"] == pytest.approx(accuracy, abs=0.01)
        assert found.at[method, "average_precision"] == pytest.approx(ap, abs=0.01)


def test_a_run_evaluated_twice_counts_once_and_from_the_folder_asked_for(rows):
    face = (rows["run"] == "clipadapter_100k_real_fake_04_best") & (rows["test_set"] == "faceswap")
    assert sorted(rows.loc[face, "accuracy"]) == [57.321, 70.161]
    for folder, accuracy in (("results", 57.321), ("trainingsetcomparison", 70.161)):
        assert published.one_copy(rows[face], folder)["accuracy"].item() == accuracy


def test_every_point_of_the_training_size_figure_rests_on_the_same_sets(rows):
    counts = published.training_size(rows).groupby(["method", "n_train_images"])["test_set"].nunique()
    assert counts.eq(25).all() and len(counts) == 4 * 5
    counts = published.robustness(rows).groupby(["method", "perturbation"])["test_set"].agg(frozenset)
    assert counts.nunique() == 1 and len(counts) == 3 + 5


def test_the_choice_of_mean_changes_the_headline(antifakeprompt):
    found = published.headlines(antifakeprompt).set_index("method")
    lama = found.loc["AntifakePrompt + LaMa", ["all", "held-out", "fakes only"]]
    assert list(lama) == pytest.approx([92.60, 95.01, 93.55], abs=0.01)
    assert list(found.loc[published.ALWAYS_FAKE])[:4] == [87.5, 87.5, 100, 50]
    assert found["all"].idxmax() != found["balanced"].idxmax()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("96.87", "196.87", "line 2: accuracy is 196.87"),
        ("96.87", "", "line 2: accuracy is nan"),
        (",Flickr,", ",MS COCO,", "is there twice"),
        ("test_set", "tset", "columns missing: test_set"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, old, new, message):
    text = (published.FOLDER / "antifakeprompt.csv").read_text()
    (tmp_path / "antifakeprompt.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        published.antifakeprompt(tmp_path)


def test_own_sets_count_both_classes_the_same(run_folder):
    folder = run_folder()
    own = published.own_runs(folder).set_index("test_set")
    table = pd.read_csv(next(folder.glob("*/scores.csv")))
    twice = table[table["label"] == 1].assign(path=lambda rows: "again/" + rows["path"])
    results = evaluate(pd.concat([table, twice]), n_boot=0)
    for metric, column in (
        ("accuracy", "accuracy"),
        ("ap", "average_precision"),
        ("fake_accuracy", "accuracy_one_class"),
    ):
        expected = results[results["metric"] == metric].set_index("group")["value"]
        for name in ("SD2", "sd-xl", "mine"):
            assert own.at[name, column] == pytest.approx(100 * expected[name])


def test_own_runs_stand_beside_and_are_marked(run_folder, antifakeprompt, rows):
    run_folder()
    own = published.own_runs(
        run_folder("linear-probe-ffff0000", "openai/clip-vit-large-patch14", ("SD2", "SDXL"))
    )
    both = published.beside(antifakeprompt, own)
    pd.testing.assert_frame_equal(both[: len(antifakeprompt)][antifakeprompt.columns], antifakeprompt)
    notes = both.drop_duplicates("method").set_index("method")["note"]
    assert notes["linear-probe 0a1b"] == "other data, other backbone (demo-clip)"
    assert notes["linear-probe ffff"] == "own run" and notes["AntifakePrompt"] == ""
    assert {"SDXL", "real", "mine"} <= set(both["test_set"]) and "sd-xl" not in set(both["test_set"])
    main = published.beside(published.main_table(rows), own)
    assert "sdxl" in set(main.loc[main["note"] != "", "test_set"]) and "real" not in set(main["test_set"])


def test_no_scores_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no scores in"):
        published.own_runs(tmp_path)


def test_perturbed_scores_stand_in_the_robustness_figure(run_folder, rows):
    folder = run_folder()
    run = next(folder.glob("*"))
    plain = pd.read_csv(run / "scores.csv")
    pd.concat([plain, plain.assign(perturbation="jpeg:75")]).to_csv(run / "perturbed.csv", index=False)
    (folder / "a table of several runs").mkdir()
    plain.to_csv(folder / "a table of several runs" / "scores.csv", index=False)
    own = published.own_runs(folder, ("perturbed.csv", "scores.csv"))
    both = published.beside(published.robustness(rows), own)
    assert set(both.loc[both["note"] != "", "perturbation"]) == {"none", "jpeg 75"}
    assert set(published.own_runs(folder)["perturbation"]) == {"none"}


def test_training_images_are_left_out(run_folder):
    folder = run_folder()
    path = next(folder.glob("*/scores.csv"))
    table = pd.read_csv(path)
    table.assign(split=np.where(table["generator"] == "mine", "train", "test")).to_csv(path, index=False)
    assert set(published.own_runs(folder)["test_set"]) == {"real", "SD2", "sd-xl"}


@pytest.mark.parametrize("with_own", [False, True])
def test_figures_carry_the_means_they_print(antifakeprompt, rows, run_folder, with_own):
    own = published.own_runs(run_folder()) if with_own else None
    table = published.beside(antifakeprompt, own)
    main = published.beside(published.main_table(rows), own)
    _, cells = papers.heat_map(table)
    means = cells[cells["test_set"] == "mean"].set_index("method")["percent"]
    assert means[list(ANTIFAKEPROMPT)].to_dict() == pytest.approx(ANTIFAKEPROMPT, abs=0.01)
    assert papers.parameters(table)[1].set_index("method")["accuracy"].to_dict() == means.to_dict()
    _, sizes = papers.mean_curves(published.beside(published.training_size(rows), own), "n_train_images")
    largest = sizes[sizes["n_train_images"] == 200_000].set_index("method")["accuracy"]
    assert largest.to_dict() == pytest.approx({m: CLIPPING[m][0] for m in largest.index}, abs=0.01)
    fig, points = papers.accuracy_against_ap(main)
    assert len(points) == len(main) and len(fig.axes) == 8
    fig, _ = papers.mean_and_worst({"AntifakePrompt": table, "CLIPping the Deception": main})
    labels = [text.get_text() for ax in fig.axes for text in ax.get_yticklabels()]
    assert ("own: linear-probe" in labels) == with_own
