from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import auc, roc_auc_score

from afp.figures import evaluation
from afp.figures.grid import image_grid
from afp.figures.style import save_figure, short
from afp.results.metrics import Estimate, compute, evaluate
from afp.results.tables import summary_table, to_markdown


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    kinds = {"real": "real", "real-resampled": "real", "gan": "GAN"}
    kinds |= {"up-2": "super-resolution", "up-4": "super-resolution", "flux": "text-to-image"}
    index = pd.MultiIndex.from_product([kinds, range(20)], names=["generator", "photo"])
    rows = index.to_frame(index=False).assign(perturbation="none", detector="probe", error="")
    rows["path"] = rows["generator"] + "/" + rows["photo"].astype(str) + ".png"
    rows = rows.assign(kind=rows["generator"].map(kinds), source=rows["photo"].astype(str))
    rows = rows.assign(label=(rows["kind"] != "real").astype(int), seen=(rows["kind"] == "GAN").astype(int))
    drawn = rng.normal(0.35 + 0.25 * rows["label"], 0.2).clip(0, 1).round(2)
    return rows.assign(threshold=0.4 + 0.1 * (rows["photo"] % 2), score=drawn)


@pytest.fixture(scope="module")
def results(scores) -> pd.DataFrame:
    return evaluate(scores, n_boot=30)


def test_save_writes_three_files_that_repeat_byte_for_byte(scores, tmp_path):
    folders = [tmp_path / "a" / "new", tmp_path / "b"]
    for folder in folders:
        fig, table = evaluation.roc_curves(scores)
        files = save_figure(fig, "roc", table, folder=folder)
    assert [file.name for file in files] == ["roc.png", "roc.svg", "roc.csv"]
    for file in files:
        assert file.read_bytes() == (folders[0] / file.name).read_bytes()
    assert Image.open(files[0]).width == pytest.approx(6.9 * 200, abs=2)
    pd.testing.assert_frame_equal(pd.read_csv(files[2]), table)


def test_save_uses_the_figures_folder(scores, tmp_path, monkeypatch):
    monkeypatch.setenv("AFP_FIGURES", str(tmp_path))
    files = save_figure(*(lambda fig, table: (fig, "cal", table))(*evaluation.calibration(scores)))
    assert {file.parent for file in files} == {tmp_path.resolve()}
    assert all(file.stat().st_size for file in files)


def test_roc_curves_have_scikit_learns_area(scores):
    _, table = evaluation.roc_curves(scores)
    assert table["against"].unique().tolist() == ["real", "real-resampled"]
    for (against, group), curve in table.groupby(["against", "group"]):
        rows = scores[scores["generator"].isin([against, group])]
        assert auc(curve["fpr"], curve["tpr"]) == pytest.approx(roc_auc_score(rows["label"], rows["score"]))


def test_held_out_bars_plot_the_results(results):
    fig, table = evaluation.held_out_bars(results)
    shown = table["group"].drop_duplicates().tolist()
    assert shown == ["gan", "up-2", "up-4", "flux", "mean held-out", "min held-out"]
    joined = table.merge(results, on=["group", "kind", "against", "metric"], suffixes=("", "_expected"))
    assert len(joined) == len(table) == 12 and (joined["value"] == joined["value_expected"]).all()
    drawn = {x for line in fig.axes[0].lines if len(line.get_xdata()) == 6 for x in line.get_xdata()}
    assert drawn == set(table["value"])
    assert "gan (held-in)" in [label.get_text() for label in fig.axes[0].get_yticklabels()]
    two = pd.concat([results, results.assign(perturbation="blur:1")])
    with pytest.raises(ValueError, match=r"perturbations \['none', 'blur:1'\], expected one"):
        evaluation.held_out_bars(two)


def test_arrows_lead_from_one_detector_to_another(results):
    both = pd.concat([results.assign(detector="zero-shot"), results.assign(detector="tuned")])
    both["value"] = both["value"].where(both["detector"] == "zero-shot", both["value"] / 2)
    fig, table = evaluation.change_arrows(both, "zero-shot", "tuned")
    assert len(table) == 2 * len(evaluation.held_out_bars(results)[1])
    arrows = [t for ax in fig.axes for t in ax.texts if t.arrow_patch]
    for arrow in arrows:
        assert arrow.xy[0] == arrow.get_position()[0] / 2 and arrow.xy[1] == arrow.get_position()[1]
    assert {t.get_position()[0] for t in arrows} == set(table.query("detector == 'zero-shot'")["value"])


def test_histograms_hold_every_image(scores):
    _, table = evaluation.score_histograms(scores)
    sums = table.groupby("group")["fraction"].sum()
    assert sums.to_numpy() == pytest.approx(1) and len(sums) == 6
    fake = scores[scores["generator"] == "up-4"]
    called = table.loc[table["group"] == "up-4", "called_fake"].unique()
    assert called == pytest.approx((fake["score"] >= fake["threshold"]).mean())


def test_calibration_table_gives_the_ece_of_the_title(scores):
    fig, table = evaluation.calibration(scores)
    n = table["n_real"] + table["n_fake"]
    ece = (n * (table["mean_score"] - table["fraction_fake"]).abs()).sum() / n.sum()
    assert n.sum() == len(scores)
    assert ece == pytest.approx(compute(scores["label"], scores["score"])["ece"])
    assert f"{ece:.3f}" in fig.axes[0].get_title()


def test_failed_images_are_left_out_of_every_figure(scores):
    broken = scores.assign(score=scores["score"].where(scores.index % 7 > 0))
    kept = broken[broken["score"].notna()]
    for draw in (evaluation.roc_curves, evaluation.score_histograms, evaluation.calibration):
        pd.testing.assert_frame_equal(draw(broken)[1], draw(kept)[1])


def test_two_detectors_are_refused_where_one_is_drawn(scores):
    both = pd.concat([scores, scores.assign(detector="other")])
    for draw in (evaluation.roc_curves, evaluation.score_histograms, evaluation.calibration):
        with pytest.raises(ValueError, match="other"):
            draw(both)
    with pytest.raises(ValueError, match="0 fake groups"):
        evaluation.roc_curves(scores[scores["label"] == 0])


def test_a_kind_keeps_its_colour(scores):
    without_gan = scores[scores["generator"] != "gan"]
    colours = [
        {line.get_label().split()[0]: line.get_color() for line in evaluation.roc_curves(df)[0].axes[0].lines}
        for df in (scores, without_gan)
    ]
    assert colours[1].items() <= colours[0].items() and len(set(colours[0].values())) == len(colours[0])


def test_image_grid_takes_files_and_images(tmp_path):
    image = Image.new("RGB", (300, 200), "red")
    image.save(tmp_path / "red.png")
    fig, table = image_grid([tmp_path / "red.png", image, image], ["a", "b\n0.5", "c"], columns=2)
    assert table["file"].tolist() == ["red.png", "", ""] and image.size == (300, 200)
    assert [ax.get_title() for ax in fig.axes] == ["a", "b\n0.5", "c", ""]
    with pytest.raises(ValueError, match="1 images and 2 titles"):
        image_grid([image], ["a", "b"])


def test_summary_table_reads_well_and_repeats_nothing(results):
    table = summary_table(results)
    assert table.columns.tolist() == ["group", "vs real", "vs real-resampled"]
    means = [
        f"{group}{kind}" for group in ("mean", "min") for kind in (" held-out", " held-out, super-resolution")
    ]
    assert table["group"].tolist() == ["gan (held-in)", "up-2", "up-4", "flux", "mean held-in", *means]
    row = results.query("group == 'flux' and against == 'real' and metric == 'auc'").iloc[0]
    assert table.loc[3, "vs real"] == f"{Estimate(*row[['value', 'low', 'high']]):.2f}"
    two = summary_table(pd.concat([results, results.assign(detector="other")]), ("auc", "eer"))
    assert two.shape == (11, 9) and "eer, other, vs real" in two.columns
    alone = summary_table(results, ("false_positive_rate",))
    assert alone.columns.tolist() == ["group", "false_positive_rate"]
    assert to_markdown(alone).startswith("| group | false_positive_rate |\n| --- | --- |\n| real |")
    named = to_markdown(alone.replace("real", "a|b\nc"))
    assert "| a\\|b c |" in named and named.count("\n") == len(alone) + 2
    with pytest.raises(ValueError, match="nonsense"):
        summary_table(results, ("nonsense",))


def test_a_name_of_any_length_leaves_room_for_the_figure():
    name = "lanczos-down-box-up-x2-median5-posterise-4bit"
    assert short(name, 16) == "lanczos-…se-4bit" and short("waifu2x-photo", 16) == "waifu2x-photo"
    fig, table = image_grid([Image.new("RGB", (8, 8))], [f"{name}\nP(fake) 0.50"], columns=6)
    shown, score = fig.axes[0].get_title().split("\n")
    assert len(shown) == 28 and score == "P(fake) 0.50" and table["title"][0].startswith(name)
