from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from scipy.stats import binomtest
from sklearn import metrics as sk

from afp.detectors.operating_point import (
    choose_operating_point,
    choose_threshold,
    false_positive_rate,
    fewest_for,
    threshold_at_fpr,
)
from afp.errors import AfpError
from afp.results import metrics
from afp.results.metrics import METRICS, Estimate, check_scores, compute, evaluate, paired_difference
from afp.results.tables import held_out_table, summary_table


def table(n_sources=12, tiles=3, generators=("gan-a", "gan-b", "up"), seed=0, shift=1.0, **columns):
    """Real tiles, resampled tiles and fakes of the same photographs; scores are a noisy sigmoid with ties."""
    rng = np.random.default_rng(seed)
    rows = []
    for source in range(n_sources):
        of_source = rng.normal(0, 0.7)
        for generator in ("real", "real-resampled", *generators):
            for tile in range(tiles):
                fake = generator in generators
                logit = of_source + rng.normal() + shift * (fake - 0.5) * (1 + (generator == "up"))
                rows.append(
                    {
                        "path": f"{generator}/{source:02}-{tile}.png",
                        "label": int(fake),
                        "generator": generator,
                        "kind": "real" if not fake else "GAN" if "gan" in generator else "super-resolution",
                        "split": "test",
                        "source": f"photo{source:02}",
                        "perturbation": "none",
                        "detector": "probe",
                        "run": "probe-0",
                        "fold": source % 3,
                        "seen": int(generator == "gan-a"),
                        "threshold": 0.45 + 0.05 * (source % 3),
                        "score": round(1 / (1 + np.exp(-logit)), 2),
                        "error": "",
                    }
                )
    return pd.DataFrame(rows).assign(**columns)


def within_folds(rows: pd.DataFrame, metric) -> float:
    return np.mean([metric(part) for _, part in rows.groupby("fold")])


def auc(rows: pd.DataFrame) -> float:
    return sk.roc_auc_score(rows.label, rows.score)


def pick(results, group, metric="auc", kind=None, against="real") -> Estimate:
    rows = results[(results.group == group) & (results.metric == metric) & (results.against == against)]
    rows = rows if kind is None else rows[rows.kind == kind]
    assert len(rows) == 1
    return Estimate(*rows[["value", "low", "high"]].to_numpy()[0])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_scikit_learn(ties, weighted):
    rng = np.random.default_rng(1)
    for _ in range(10):
        y = rng.integers(0, 2, 80)
        p = np.clip(rng.normal(0.4 + 0.2 * y, 0.3), 0, 1)
        p = np.round(p, 1) if ties else p
        t = rng.uniform(0.2, 0.8, 80)
        w = rng.integers(0, 4, 80) if weighted else np.ones(80)
        got = {name: value[0] for name, value in compute(y, p, t, w[None]).items()}
        fpr, tpr, _ = sk.roc_curve(y, p, sample_weight=w, drop_intermediate=False)
        ece = 0.0
        for i in range(15):
            inside = (p >= i / 15) & ((p < (i + 1) / 15) | (i == 14))
            if w[inside].sum():
                gap = np.average(p[inside], weights=w[inside]) - np.average(y[inside], weights=w[inside])
                ece += w[inside].sum() / w.sum() * abs(gap)
        expected = {
            "accuracy": sk.accuracy_score(y, p >= 0.5, sample_weight=w),
            "accuracy_val": sk.accuracy_score(y, p >= t, sample_weight=w),
            "real_accuracy": sk.recall_score(y, p >= 0.5, pos_label=0, sample_weight=w),
            "real_accuracy_val": sk.recall_score(y, p >= t, pos_label=0, sample_weight=w),
            "fake_accuracy": sk.recall_score(y, p >= 0.5, sample_weight=w),
            "fake_accuracy_val": sk.recall_score(y, p >= t, sample_weight=w),
            "auc": sk.roc_auc_score(y, p, sample_weight=w),
            "ap": sk.average_precision_score(y, p, sample_weight=w),
            "eer": got["eer"] if ties else brentq(lambda x, f=fpr, r=tpr: 1 - x - interp1d(f, r)(x), 0, 1),
            "tpr_at_1_fpr": tpr[fpr <= 0.01].max(),
            "tpr_at_5_fpr": tpr[fpr <= 0.05].max(),
            "tpr_at_10_fpr": tpr[fpr <= 0.10].max(),
            "ece": ece,
            "nll": sk.log_loss(y, p, sample_weight=w),
        }
        assert tuple(expected) == METRICS
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, abs=1e-9), name


def test_eer_lies_on_the_roc_curve_also_across_ties():
    y, p = [0, 0, 0, 0, 1, 1, 1, 1], [0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9]
    assert compute(y, p)["eer"] == pytest.approx(0.375)  # on the tie's diagonal, (0, .25) to (.75, 1)
    assert compute([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])["eer"] == 0
    assert compute([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9])["eer"] == 1


def test_one_of_twenty_is_allowed_at_five_percent():
    y, p = [0] * 20 + [1] * 4, [0.8] + [0.1] * 19 + [0.9, 0.9, 0.8, 0.7]
    got = compute(y, p)
    assert (got["tpr_at_1_fpr"], got["tpr_at_5_fpr"]) == (0.5, 1.0)


def test_weights_equal_rows_repeated():
    df = check_scores(table())
    columns = [df[c].to_numpy() for c in ("label", "score", "threshold")]
    source = pd.factorize(df["source"])[0]
    weights = metrics._resample(source, df["label"].to_numpy() == 0, 20)[:, source]
    assert weights.shape == (21, len(df)) and (weights[0] == 1).all()
    assert (weights[1:].sum(1) == len(df)).all(), "equal sources: a replicate has as many rows as the data"
    together = compute(*columns, weights)
    for i, w in enumerate(weights.astype(int)):
        alone = compute(*(np.repeat(column, w) for column in columns))
        for name in METRICS:
            assert together[name][i] == pytest.approx(alone[name], abs=1e-12), name
        assert (pd.Series(w).groupby(df["source"]).nunique() == 1).all(), "a source comes whole"


def test_values_come_from_the_rows_of_each_fold():
    df = table()
    results = evaluate(df, n_boot=50)
    df = df.set_index("generator")
    aucs = {}
    for generator in ("gan-a", "gan-b", "up"):
        for against in ("real", "real-resampled"):
            aucs[generator, against] = within_folds(df.loc[[against, generator]], auc)
            found = pick(results, generator, against=against).value
            assert found == pytest.approx(aucs[generator, against])
    for against in ("real", "real-resampled"):
        b, up = aucs["gan-b", against], aucs["up", against]
        for group, kind, expected in (
            ("mean held-out", "all", (b + up) / 2),
            ("min held-out", "all", min(b, up)),
            ("mean held-out", "GAN", b),
            ("mean held-in", "all", aucs["gan-a", against]),
        ):
            assert pick(results, group, kind=kind, against=against).value == pytest.approx(expected)
    rate = pick(results, "real", "false_positive_rate_val", against="")
    expected = within_folds(df.loc["real"], lambda rows: (rows.score >= rows.threshold).mean())
    assert rate.value == pytest.approx(expected)
    assert rate.low < rate.value < rate.high
    worst = max(pick(results, g, "eer").value for g in ("gan-b", "up"))
    assert pick(results, "max held-out", "eer", "all").value == worst
    assert results.query("group == 'gan-a'").seen.eq(1).all()
    assert results.query("group == 'up'").seen.eq(0).all()
    assert results.query("group == 'mean held-out' and kind == 'all'").n_fake.eq(72).all()
    assert (results.low <= results.value + 1e-12).mean() > 0.95
    assert (results.high >= results.value - 1e-12).mean() > 0.95


def test_scores_of_different_models_are_no_common_scale():
    """Three folds rank perfectly, each on a scale of its own."""
    df = table()
    moved = df.assign(score=0.3 * df.fold + 0.1 * df.label + df.score / 100)
    assert auc(moved[moved.generator.isin(["real", "up"])]) < 0.9
    found = pick(evaluate(moved, n_boot=50), "up")
    assert (found.value, found.low, found.high) == (1, 1, 1)
    assert pick(evaluate(moved.assign(fold=0), n_boot=5), "up").value < 0.9
    in_one_fold = moved[(moved.label == 0) | (moved.fold == 1)]  # the other folds have no value
    assert pick(evaluate(in_one_fold, n_boot=50), "up").value == 1


def test_real_images_are_known_by_their_label():
    df = table().query("generator != 'real-resampled'")
    results = evaluate(df, n_boot=20)
    named = df.assign(generator=df.generator.replace("real", "coco"))
    renamed = evaluate(named, n_boot=20)
    fakes = renamed[renamed.kind != "real"]
    assert set(fakes.against) == {"real"} and set(fakes.reals) == {"coco"}
    same = [c for c in results if c != "reals"]
    pd.testing.assert_frame_equal(fakes[same], results.loc[results.kind != "real", same])
    two = named.assign(
        generator=named.generator.mask(named.path.str.endswith("-0.png") & (named.label == 0), "flickr")
    )
    pooled = evaluate(two, n_boot=20)
    assert set(pooled.reals[pooled.kind != "real"]) == {"coco + flickr"}
    assert pick(pooled, "up") == pick(results, "up")
    assert {"coco", "flickr"} <= set(pooled.group[pooled.kind == "real"])


def test_a_set_pairs_a_generator_with_its_own_real_images():
    df = table(fold=0).query("generator != 'real-resampled'")
    reals = df.generator == "real"
    first = df.generator.eq("up") | (reals & df.path.str.endswith("-0.png"))
    paired = df.assign(set=np.where(first, "a", "b"))
    results = evaluate(paired, n_boot=20)
    assert pick(results, "up").value == pytest.approx(auc(df[first]))
    assert pick(results, "gan-b").value == pytest.approx(auc(df[~first & (df.generator != "gan-a")]))
    assert set(results.reals[results.group == "up"]) == {"real of set a"}
    assert set(results.reals[results.group == "mean held-out"]) >= {"each generator's own"}
    lonely = evaluate(paired.assign(set=paired.set.where(~reals, "")), n_boot=5)
    assert set(lonely.reals) == {"real"}  # no real image in its set: all of them


def test_a_generator_with_its_own_threshold_judges_the_real_images_by_it():
    df = table(fold=0, threshold=0.5)
    own = df.assign(threshold=df.threshold.where(df.generator != "up", 0.8))
    rows = df[df.generator.isin(["real", "up"])]
    found = pick(evaluate(own, n_boot=2), "up", "accuracy_val")
    assert found.value == pytest.approx(((rows.score >= 0.8) == rows.label).mean())
    assert pick(evaluate(own, n_boot=2), "gan-b", "accuracy_val") == pick(
        evaluate(df, n_boot=2), "gan-b", "accuracy_val"
    )


def test_swapped_labels_are_met_with_a_question():
    df = table(shift=3.0)
    assert not metrics.questions(evaluate(df, n_boot=50))
    swapped = evaluate(df.assign(label=1 - df.label), n_boot=50)
    assert swapped.query("metric == 'auc' and group == 'real'").value.notna().all()
    *names, low = metrics.questions(swapped)
    assert [text.split("'")[1] for text in names] == ["real", "real-resampled"]
    assert "probe: AUC of real" in low and "labels swapped" in low
    few = df[(df.label == 1) | (df.index < df.index[df.label == 0][4])]
    assert "real images: only " in metrics.questions(evaluate(few, n_boot=50))[0]


def test_a_generator_whose_name_looks_like_a_mean_is_shown_like_any_other():
    plain = table(shift=-3)
    odd = plain.replace({"gan-b": "gan held-back", "up": "max pool"})
    found = [evaluate(df, n_boot=20) for df in (plain, odd)]
    single, named = (held_out_table(results)["generator"].tolist() for results in found)
    assert named == [{"gan-b": "gan held-back", "up": "max pool"}.get(name, name) for name in single]
    assert "max pool (held-in)" not in named and len(summary_table(found[0])) == len(summary_table(found[1]))
    assert [len(metrics.questions(results)) for results in found] == [1, 1]
    assert metrics.questions(found[1])[0].endswith(metrics.questions(found[0])[0].rpartition(", and of")[2])


def test_a_kind_with_one_held_out_generator_has_no_mean_of_its_own():
    shown = held_out_table(evaluate(table(), n_boot=20))
    assert shown["generator"].tolist()[:5] == ["gan-a", "gan-b", "up", "mean held-out", "min held-out"]
    assert set(shown.loc[shown["generator"].str.contains(" held-"), "kind"]) == {"all"}


def test_order_of_rows_changes_nothing():
    df = table()
    shuffled = df.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(evaluate(df, n_boot=50), evaluate(shuffled, n_boot=50))


def test_parts_of_replicates_change_nothing_but_memory(monkeypatch):
    df = table(n_sources=6)
    whole = evaluate(df, n_boot=30)
    monkeypatch.setattr(metrics, "_CHUNK", 7 * len(df))  # weights
    pd.testing.assert_frame_equal(whole, evaluate(df, n_boot=30))


def test_failed_rows_are_counted_and_left_out():
    df = table()
    broken = df.copy()
    broken["score"] = broken["score"].astype(object)
    broken.loc[[0, 20], "score"] = ["", np.nan]
    broken.loc[[0, 20], "error"] = "cannot be read"
    kept = df.drop(index=[0, 20])
    assert list(df.loc[[0, 20], "generator"]) == ["real", "real-resampled"]
    a, b = evaluate(broken.replace("", np.nan), n_boot=20), evaluate(kept, n_boot=20)
    pd.testing.assert_frame_equal(a.drop(columns="n_failed"), b.drop(columns="n_failed"))
    assert a[a.against == "real"].n_failed.eq(1).all() and b.n_failed.eq(0).all()
    assert a[(a.group == "mean held-out") & (a.against == "real")].n_real.eq(35).all()


def test_everything_failed_is_no_crash():
    results = evaluate(table(score=np.nan, error="cannot be read"), n_boot=5)
    assert results.value.isna().all() and (results.n_failed > 0).all()


def test_one_class_gives_nan_where_the_other_is_needed():
    fakes = evaluate(table().query("label == 1"), n_boot=20)
    assert fakes.against.eq("").all()
    assert np.isnan(pick(fakes, "up", "auc", against="").value)
    assert 0 < pick(fakes, "up", "fake_accuracy", against="").value <= 1
    reals = evaluate(table().query("generator == 'real'"), n_boot=20)
    assert set(reals.group) == {"real"} and set(reals.metric) == set(metrics.REAL_METRICS)
    assert evaluate(table().iloc[:0]).empty


@pytest.mark.parametrize(("label", "name"), [(0, "real"), (1, "fake")])
def test_a_table_of_one_class_is_shown_with_the_reason_for_what_it_lacks(afp, tmp_path, label, name):
    rows = [f"{i}.png,{label},0.{i}" for i in range(1, 9)]
    (tmp_path / "s.csv").write_text("\n".join(["path,label,score", *rows]))
    code, printed = afp("evaluate", "s.csv")
    assert code == 0 and f"s: all images are {name}; AUC and AP compare both classes, and are n/a" in printed
    assert "the table has no threshold; accuracy at one is n/a" in printed


def test_one_source_has_no_interval():
    results = evaluate(table(n_sources=1), n_boot=20)
    assert results.value.notna().any() and results.low.isna().all() and results.high.isna().all()


def test_rows_without_a_source_stand_alone():
    df = table(source=np.nan)
    a = evaluate(df, n_boot=20)
    pd.testing.assert_frame_equal(a, evaluate(df.assign(source=df.path), n_boot=20))


def test_copies_of_a_photograph_do_not_narrow_the_interval():
    one = table(n_sources=30, tiles=1, seed=5)
    many = pd.concat([one.assign(path=one.path + f"#{i}") for i in range(6)])
    alone, copied = pick(evaluate(one), "up"), pick(evaluate(many), "up")
    as_if_independent = pick(evaluate(many.assign(source=many.path)), "up")
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert copied.high - copied.low > 1.8 * (as_if_independent.high - as_if_independent.low)


def test_intervals_cover_the_truth():
    one = {"generators": ("gan-b",), "fold": 0}
    truth = pick(evaluate(table(n_sources=3000, tiles=1, seed=99, **one), n_boot=2), "gan-b").value
    inside = 0
    for seed in range(40):
        found = pick(evaluate(table(n_sources=40, tiles=2, seed=seed, **one), n_boot=200), "gan-b")
        inside += found.low <= truth <= found.high
    assert 34 <= inside <= 40


def test_a_photograph_drawn_twice_meets_its_own_fakes_once():
    """Image by image: to a copy of a fake, the other copies of its source are not there."""
    df = check_scores(table(n_sources=8, generators=("gan-a",), fold=0))
    df = df[df["generator"] != "real-resampled"]
    source = pd.factorize(df["source"], sort=True)[0]
    label, score = (df[c].to_numpy() for c in ("label", "score"))
    counts = metrics._resample(source, label == 0, 20).astype(int)
    _, values = metrics._replicates(df, 20)["gan-a", "GAN", "real"]
    for k, drawn in enumerate(counts):
        won = met = precision = 0.0
        for i in np.flatnonzero(label == 1):
            times = np.where(source == source[i], 1, drawn[source])
            wins = (score[i] > score) + (score[i] == score) / 2
            won += drawn[source[i]] * (times * wins)[label == 0].sum()
            met += drawn[source[i]] * times[label == 0].sum()
            found = times * (score >= score[i])
            precision += drawn[source[i]] * found[label == 1].sum() / found.sum()
        assert values["auc"][k] == pytest.approx(won / met, abs=1e-12)
        assert values["ap"][k] == pytest.approx(precision / drawn[source[label == 1]].sum(), abs=1e-12)


def test_an_interval_of_fakes_that_are_nearly_copies_holds_their_mean():
    found = []
    for seed in range(20):
        df = table(n_sources=60, tiles=2, generators=("gan-a",), seed=seed, fold=0)
        real = df[df["generator"] == "real"]["score"].to_numpy()
        near = np.random.default_rng(seed).normal(0.06, 0.02, len(real))
        df.loc[df["label"] == 1, "score"] = (real + near).clip(0, 1)
        found.append(pick(evaluate(df.assign(fold=df["source"].str[-1]), n_boot=200), "gan-a"))
    mean = np.mean([auc.value for auc in found])
    assert sum(auc.low <= mean <= auc.high for auc in found) >= 17


def test_few_images_of_many_generators_share_a_group():
    df = table()
    wild = pd.DataFrame(
        [
            {
                **df.iloc[0].to_dict(),
                "path": f"wild/{i}",
                "source": f"wild{i}",
                "generator": name,
                "label": 1,
                "kind": "text-to-image",
                "score": 0.3 + i / 20,
            }
            for i, name in enumerate(["sdxl", "flux", "flux", "dalle", *["sd3"] * 5])
        ]
    )
    results = evaluate(pd.concat([df, wild]), n_boot=20)
    groups = set(results.group)
    assert {"text-to-image", "sd3"} < groups and not {"sdxl", "flux", "dalle"} & groups
    assert results.query("group == 'text-to-image'").n_fake.eq(4).all()
    two = [pick(results, g).value for g in ("text-to-image", "sd3")]
    assert pick(results, "mean held-out", kind="text-to-image").value == pytest.approx(np.mean(two))
    assert pick(results, "mean held-out", kind="GAN").value == pytest.approx(pick(results, "gan-b").value)


def test_detectors_and_perturbations_stand_apart():
    df = table()
    other = table(seed=8, detector="other", path=df.path, source=df.source)
    jpeg = table(seed=9, perturbation="jpeg:75")
    results = evaluate(pd.concat([df, other, jpeg]), n_boot=20)
    for name, part in {("probe", "none"): df, ("other", "none"): other, ("probe", "jpeg:75"): jpeg}.items():
        rows = results[(results.detector == name[0]) & (results.perturbation == name[1])]
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), evaluate(part, n_boot=20))


def test_paired_difference():
    a, b = table(seed=1), table(seed=1, shift=2.0)
    for group in ("up", "mean held-out", "min held-out"):
        assert paired_difference(a, a.sample(frac=1, random_state=0), group=group) == Estimate(0, 0, 0)
    results = [evaluate(x, n_boot=2) for x in (a, b)]
    found = paired_difference(b, a, "auc", n_boot=300)
    expected = [pick(r, "mean held-out", kind="all").value for r in results]
    assert found.value == pytest.approx(expected[1] - expected[0])
    unpaired = [pick(evaluate(x, n_boot=300), "mean held-out", kind="all") for x in (a, b)]
    assert 0 < found.low < found.high and found.high - found.low < 0.8 * max(e.high - e.low for e in unpaired)
    assert paired_difference(a, b, n_boot=300).low == pytest.approx(-found.high)

    failed, failed_b = (x.assign(score=x.score.where(x.path != "up/00-0.png")) for x in (a, b))
    left_out = paired_difference(failed, failed_b, group="up")
    assert left_out == paired_difference(failed, b, group="up") == paired_difference(a, failed_b, group="up")
    assert left_out != paired_difference(a, b, group="up")
    seen = a.assign(seen=a.label)
    with pytest.raises(ValueError, match="mean held-out"):
        paired_difference(seen, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.iloc[1:], "1 rows are in one table only"),
        (lambda a: a.assign(path=a.path.str.replace("up/00-0", "up/elsewhere")), "2 rows .* such as .'up/"),
        (lambda a: pd.concat([a, a.assign(perturbation="blur:1")]), "scores_b: expected one detector"),
    ],
)
def test_paired_difference_refuses_other_images(change, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(table(), change(table()))
    with pytest.raises(ValueError, match="nonsense"):
        paired_difference(table(), table(), "nonsense")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.drop(columns=["score", "label"]), r"missing column\(s\) \['label', 'score'\]"),
        (lambda a: a.assign(label=a.label * 2), "label: 2.0 .* expected 0"),
        (lambda a: a.assign(label=np.nan), "label: nan"),
        (lambda a: a.assign(score=a.score + 0.5), "score: 1.* expected P"),
        (lambda a: a.assign(score="high"), "column 'score' must hold numbers"),
        (lambda a: a.assign(threshold=1.5), "threshold 1.5, expected 0 to 1"),
        (lambda a: pd.concat([a, a.iloc[[5]]]), "real-resampled/00-2.png.* more than once"),
    ],
)
def test_bad_tables_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        evaluate(change(table()))


def test_estimate_reads_well():
    e = Estimate(0.9534, 0.931, 0.9719)
    assert str(e) == "0.953\u00a0[0.931,\u00a00.972]" and f"{e:+.2f}" == "+0.95\u00a0[+0.93,\u00a0+0.97]"
    assert str(Estimate(np.nan, np.nan, np.nan)) == "n/a" and str(Estimate(0.5, np.nan, np.nan)) == "0.500"


def test_threshold_is_the_best_and_never_degenerate():
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]) == pytest.approx(0.4)
    assert choose_threshold([1, 1, 1], [0.1, 0.2, 0.6]) == choose_threshold([0, 1], [0.3, 0.3]) == 0.5
    assert choose_threshold([0, 1], [np.nextafter(1.0, 0), 1.0]) == 1.0
    assert choose_threshold([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.9]) == pytest.approx(0.6)  # the wider gap
    rng = np.random.default_rng(0)
    for _ in range(6):
        y = rng.permutation([0] * 20 + [1] * 7)
        p = np.round(np.clip(rng.normal(0.4 + 0.2 * y, 0.3), 0, 1), 2)
        t = choose_threshold(y, p)
        grid = [sk.balanced_accuracy_score(y, p >= x) for x in np.linspace(0.005, 0.995, 34)]
        assert sk.balanced_accuracy_score(y, p >= t) >= max(grid) - 1e-9
        assert 0 < (p >= t).sum() < len(p)


def test_a_threshold_spends_its_false_positive_rate_only_where_that_finds_more_fakes():
    apart = [0] * 40 + [1] * 10, [*np.linspace(0.01, 0.2, 40), *np.linspace(0.8, 0.9, 10)]
    point = choose_operating_point(*apart, range(50), target_fpr=0.05)
    assert point.threshold == pytest.approx(0.5) and point.rate == 0
    rng = np.random.default_rng(0)
    for target in (0.05, 0.1, 0.25):
        y = rng.permutation([0] * 60 + [1] * 30)
        p = np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1)
        point = choose_operating_point(y, p, range(90), target_fpr=target)
        gained = {
            t: (p[y == 1] >= t).mean() - (p[y == 0] >= t).mean()
            for t in (point.threshold, threshold_at_fpr(p[y == 0], target))
        }
        assert point.rate <= target and max(gained.values()) == gained[point.threshold]
    reals = choose_operating_point([0] * 40, apart[1][:40], range(40), target_fpr=0.05)
    assert reals.threshold == threshold_at_fpr(apart[1][:40], 0.05) and reals.rate == 0.05
    for scores in ([0.7] * 50, [*np.linspace(0.5, 0.9, 40), *[0.1] * 10]):  # no threshold divides the classes
        assert choose_operating_point(apart[0], scores, range(50), target_fpr=0.05).rate <= 0.05


def test_a_threshold_keeps_its_false_positive_rate_and_is_no_higher_than_it_must_be():
    rng = np.random.default_rng(0)
    for n in (20, 33, 60, 200):
        for decimals in (2, 6):  # with ties and without
            p = np.round(rng.beta(1, 4, n), decimals)
            for target in (0.05, 0.1):
                t = threshold_at_fpr(p, target)
                assert (p >= t).mean() <= target
                below = p[p < t].max()
                assert (p >= below).mean() > target
    assert fewest_for(0.05) == 20 and fewest_for(0.3) == 4
    with pytest.raises(AfpError, match=r"19 real images are too few .* expected 20"):
        threshold_at_fpr(np.linspace(0, 1, 19), 0.05)
    with pytest.raises(AfpError, match="target FPR: 5, expected a number between 0 and 1"):
        threshold_at_fpr(np.linspace(0, 1, 50), 5)


def test_a_false_positive_rate_has_the_interval_of_its_photographs():
    called = np.arange(40) < 3
    exact = binomtest(3, 40).proportion_ci()
    assert false_positive_rate(called, np.arange(40)) == pytest.approx((3 / 40, exact.low, exact.high))
    rate, low, high = false_positive_rate(called, np.arange(40) // 4)
    assert rate == 3 / 40 and low < exact.low and high > exact.high
    assert false_positive_rate(~called & called, np.arange(40))[2] > 0.05
