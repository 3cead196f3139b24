"""The papers' averages, recomputed; own runs beside them."""

from __future__ import annotations

import json

import claims
import numpy as np
import pandas as pd
import pytest

from afp import detectors
from afp.errors import DataError
from afp.figures import papers
from afp.figures.style import method_styles
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

    def make(name="linear-probe-0a1b2c3d", backbone="demo-clip", sets=("SD2", "sd-xl", "mine"), only=None):
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
                        "score": only or np.clip(rng.normal(0.4 + 0.2 * fake, 0.2), 0, 1),
                    }
                )
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        pd.DataFrame(records).reindex(columns=SCORE_COLUMNS).to_csv(folder / "scores.csv", index=False)
        config = {
            "detector": "linear-probe",
            "config": {"backbone": backbone},
            "n_trainable": 769,
            "threshold": 0.5,
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


def test_every_headline_of_the_papers_is_recomputed():
    numbers = claims.recomputed_numbers()
    assert numbers["v2 held-out, DE-FAKE"] == pytest.approx(54.6, abs=0.01)
    assert numbers["v2 held-out, AntifakePrompt"] == pytest.approx(91.31, abs=0.01)
    assert numbers["v3 held-out, LASTED, fine-tuned"] == pytest.approx(71.06, abs=0.01)
    assert numbers["v3 held-out, AntifakePrompt"] == pytest.approx(92.11, abs=0.01)
    assert numbers["v3 same sets, InstructBLIP zero-shot"] == pytest.approx(34.77, abs=0.01)
    assert [numbers[f"v2 {mean}, AntifakePrompt + LaMa"] for mean in ("all", "held-out", "fakes only")] == (
        pytest.approx([92.60, 95.37, 93.55], abs=0.01)
    )
    assert numbers["v2 balanced, AntifakePrompt + LaMa"] < numbers["v2 balanced, AntifakePrompt"]
    assert numbers[f"v2 all, {published.ALWAYS_FAKE}"] == 87.5
    assert numbers["accuracy, prompt tuning over UnivFD"] == pytest.approx(6.61, abs=0.01)
    assert numbers["AP, prompt tuning over UnivFD"] == pytest.approx(5.01, abs=0.01)
    leads = {
        place: numbers[f"accuracy, probing over prompt, {place}"] for place in ("20k", "40k", "60k", "80k")
    }
    assert [place for place, lead in leads.items() if lead > 0] == ["20k", "60k", "80k"]
    assert numbers["accuracy, probing over prompt, commercial"] > 10
    assert all(x < 0 for name, x in numbers.items() if name.startswith("AP, probing over prompt"))


def test_the_logs_say_what_sd2_inpainting_adds_and_contradict_one_printed_cell():
    runs = published.ablations()
    answers = published.ablation_answers(runs).set_index(["question", "variant", "test_set"])["accuracy"]
    attacks = ["Adversarial", "Backdoor", "Data poisoning"]
    fakes = answers["fakes in training"]
    assert fakes["SD2"][attacks].round().tolist() == [54, 44, 55]
    assert fakes["SD2+SD2IP"][attacks].round().tolist() == [97, 93, 92]
    printed, logged = (answers["LoRA's row"][variant] for variant in ("printed", "logged"))
    apart = printed[(printed - logged).abs() > 0.005]
    assert apart.to_dict() == {"DeeperForensics": 98.80} and logged["DeeperForensics"] == 87.80
    assert answers["position of [*]"].groupby("variant").size().eq(16).all()
    sizes = published.ablation_sizes(runs).set_index(["text", "n_real"])["accuracy"]["both texts"]
    assert sizes.to_dict() == {
        9e1: 24.20,
        9e2: 67.53,
        9e3: 91.93,
        3e4: 99.27,
        6e4: 95.13,
        9e4: 97.90,
        12e4: 94.63,
    }


def test_the_page_of_claims_is_that_of_the_code():
    assert claims.FILE.read_text(encoding="utf-8") == claims.page()


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
    assert notes["linear-probe, backbone demo-clip"] == "other data, other backbone (demo-clip)"
    assert notes["linear-probe, backbone openai/clip-vit-large-patch14"] == "own run"
    assert notes["AntifakePrompt"] == ""
    assert {"SDXL", "real", "mine"} <= set(both["test_set"]) and "sd-xl" not in set(both["test_set"])
    main = published.beside(published.main_table(rows), own)
    assert "sdxl" in set(main.loc[main["note"] != "", "test_set"]) and "real" not in set(main["test_set"])


def test_own_photographs_alone_leave_the_table_of_both_classes_as_published(run_folder, rows):
    folder, main = run_folder(sets=("SD2",)), published.main_table(rows)
    path = next(folder.glob("*/scores.csv"))
    pd.read_csv(path).query("label == 0").to_csv(path, index=False)
    beside = published.beside(main, published.own_runs(folder))
    pd.testing.assert_frame_equal(beside[main.columns], main, check_dtype=False)


def test_two_own_sets_of_one_papers_name_keep_their_own(run_folder, antifakeprompt):
    both = published.beside(antifakeprompt, published.own_runs(run_folder(sets=("SD2", "sd-2", "sd-xl"))))
    _, cells = papers.heat_map({"v2": both})
    own = cells[(cells["note"] != "") & (cells["test_set"] != "mean")]
    assert sorted(own["test_set"]) == ["SD2", "SDXL", "real", "sd-2"]


def test_calling_everything_fake_earns_the_same_whatever_own_runs_hold(run_folder, antifakeprompt):
    both = published.beside(antifakeprompt, published.own_runs(run_folder()))
    alone, beside = (
        published.headlines(table).set_index("method").loc[published.ALWAYS_FAKE].drop("note")
        for table in (antifakeprompt, both)
    )
    assert beside.tolist() == alone.tolist()


def test_runs_of_one_setting_bear_their_hash_and_a_constant_answer_is_marked(run_folder, antifakeprompt):
    run_folder("linear-probe-ffff0000", only=0.9)
    own = published.own_runs(run_folder())
    notes = own.drop_duplicates("method").set_index("method")["note"]
    assert list(notes.index) == ["linear-probe 0a1b2c3d", "linear-probe ffff0000"]
    assert [note.split(",")[0] for note in notes] == ["other data", published.ALWAYS_FAKE]
    fig, _ = papers.mean_and_worst({"AntifakePrompt": published.beside(antifakeprompt, own)})
    labels = [text.get_text() for text in fig.axes[0].get_yticklabels()]
    assert "own: linear-probe ffff0000 (always “fake”)" in labels


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
    assert set(both.loc[both["note"] != "", "perturbation"]) == {"none", "jpeg:75"}
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
    table, third = (published.beside(published.antifakeprompt(version), own) for version in (2, 3))
    main = published.beside(published.main_table(rows), own)
    fig, cells = papers.heat_map({"v2": table, "v3": third})
    means = cells[(cells["test_set"] == "mean") & (cells["paper"] == "v2")].set_index("method")["percent"]
    assert means[list(ANTIFAKEPROMPT)].to_dict() == pytest.approx(ANTIFAKEPROMPT, abs=0.01)
    shown = [text.get_text() for text in fig.axes[1].texts]
    assert f"{third['accuracy'].iloc[0]:.0f}" in shown  # numbers stay, however many columns there are
    assert papers.parameter_scatter(table)[1].set_index("method")["accuracy"].to_dict() == means.to_dict()
    _, sizes = papers.mean_curves(published.beside(published.training_size(rows), own), "n_train_images")
    largest = sizes[sizes["n_train_images"] == 200_000].set_index("method")["accuracy"]
    assert largest.to_dict() == pytest.approx({m: CLIPPING[m][0] for m in largest.index}, abs=0.01)
    fig, points = papers.accuracy_against_ap(main)
    assert len(points) == len(main) and len(fig.axes) == 8
    fig, _ = papers.mean_and_worst({"AntifakePrompt": table, "CLIPping the Deception": main})
    labels = [text.get_text() for ax in fig.axes for text in ax.get_yticklabels()]
    assert ("own: linear-probe" in labels) == with_own


def test_markers_stand_at_their_numbers_even_where_they_tie(antifakeprompt):
    fig, means = papers.parameter_scatter(published.beside(antifakeprompt, None))
    drawn = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in fig.axes[0].lines[1:]}
    assert drawn["AntifakePrompt + LaMa"][0] == drawn["AntifakePrompt"][0] == 4860
    assert [y for _, y in drawn.values()] == means["accuracy"].tolist()


def test_no_line_joins_jpeg_and_blur(rows):
    fig, _ = papers.mean_curves(published.beside(published.robustness(rows), None), "perturbation")
    assert {tuple(line.get_xdata()) for line in fig.axes[0].lines} == {(0, 1, 2), (3, 4)}


def test_a_method_has_one_look_in_the_whole_book():
    ours, theirs = (
        method_styles(["linear-probe", "clip-prompt"]),
        method_styles(["prompt tuning", "linear probing"]),
    )
    assert ours["linear-probe"] == theirs["linear probing"] and ours["clip-prompt"] == theirs["prompt tuning"]
    known = method_styles(detectors.NAMES)
    assert len({tuple(look.values()) for look in known.values()}) == len(known)
    two = method_styles(["linear-probe, PNG", "linear-probe, JPEG 95"]).values()
    assert len({look["color"] for look in two}) == 2 and len({look["marker"] for look in two}) == 1


def test_names_stand_at_the_ends_of_the_lines_of_both_sides():
    ours = pd.DataFrame(
        [("clip-prompt", f"{n}", n, 0.7 + n / 1000 + seed / 50) for n in (20, 100) for seed in range(3)],
        columns=["method", "size", "n_train", "accuracy"],
    )
    theirs = pd.DataFrame(
        {"method": "prompt tuning", "n_train_images": [20_000, 200_000], "accuracy": [88.0, 89]}
    )
    fig, table = papers.size_beside_paper(ours, theirs)
    assert [ax.texts[0].get_text() for ax in fig.axes] == ["clip-prompt", "prompt tuning"]
    assert table.set_index("origin").loc["ours", "accuracy"].tolist() == pytest.approx([74, 82])
