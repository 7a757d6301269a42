"""Tests of hypotheses hold their level and find what differs; the report gathers them and survives JSON."""

from __future__ import annotations

import json

import pytest
import torch
from scipy import stats

from diagnostics.distances.laws import digits, normal
from retrodict.diagnostics import distances as D


def p_values(repeats: int, n: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"energy": [], "mmd": [], "kid": [], "frechet": [], "sliced": []}
    for s in range(repeats):
        x, y = normal(n, 3, s), normal(n, 3, s + 5000)
        for m in D.kernel_distances(x, y, ("energy", "mmd", "kid"), permutations=99, resamples=2, seed=s):
            found[m.name].append(m.p_value or 0.0)
        found["frechet"].append(D.frechet(x, y, permutations=99, resamples=2, seed=s).p_value or 0.0)
        sliced = D.sliced_wasserstein(x, y, projections=16, permutations=99, resamples=2, seed=s)
        found["sliced"].append(sliced.p_value or 0.0)
    return found


def test_p_values_are_uniform_at_null():
    """Kolmogorov-Smirnov over 50 repeats at level 0.001 for each of five: a false alarm in 200 choices of seed."""
    for name, values in p_values(50, 60).items():
        assert stats.kstest(values, "uniform").pvalue > 0.001, name


def test_classifiers_do_not_see_a_difference_that_is_not_there():
    """p <= 0.05 in at most 5 of 20 (by Bonferroni conservative: a false alarm in over 300)."""
    p = [
        D.c2st(normal(80, 3, s), normal(80, 3, s + 900), seed=s, classifiers=["logistic", "neighbours"])
        for s in range(20)
    ]
    assert sum((m.p_value or 0.0) <= 0.05 for m in p) <= 5
    assert abs(sum(m.value for m in p) / 20 - 0.5) < 0.06


def test_the_best_of_a_panel_pays_for_the_choice():
    x, y = normal(100, 3, 1), normal(100, 3, 2, 0.35)
    for names in (["logistic"], ["logistic", "neighbours"]):
        m = D.c2st(x, y, classifiers=names)
        alone = stats.binomtest(round(100 * m.value), 100, 0.5, alternative="greater").pvalue
        assert m.p_value == pytest.approx(min(1.0, len(names) * alone)) and 1e-6 < m.p_value < 0.5


def test_the_altered_digits_are_found_by_at_least_four_of_seven_and_the_report_says_so():
    """n = 2000 against the two-sample floor: energy, MMD, Frechet, sliced, density, coverage, C2ST."""
    train, held_out, fake = digits(2000, 1), digits(2000, 2), digits(2000, 3, altered=True)
    least = D.floor(train, held_out)
    report = D.quality(held_out, fake, floor=least)
    tested = [
        name for name in ("energy", "mmd", "frechet", "sliced_wasserstein", "c2st") if report[name].p_value < 0.05
    ]
    apart = [name for name in ("density", "coverage") if report.excess(name).high < 0]
    assert len(tested) + len(apart) >= 4
    assert not [name for name, m in least.items() if m.p_value is not None and m.p_value < 0.001]
    lines = str(report).splitlines()
    assert len(lines) == 1 + len(report) and all(name in "".join(lines) for name in report)
    again = D.QualityReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report and again.floor == least


def test_features_and_labels_add_their_measures():
    class Sign:
        """The class is the sign of the first coordinate."""

        def features(self, x):
            return torch.as_tensor(x).flatten(1)[:, :2] * 2.0

        def predict(self, x):
            return (torch.as_tensor(x).flatten(1)[:, 0] > 0).long()

    real, fake = normal(60, 4, 1), normal(60, 4, 2)
    labels = Sign().predict(fake)
    labels[:6] = 1 - labels[:6]
    report = D.quality(real.reshape(60, 2, 2), fake.reshape(60, 2, 2), Sign(), labels)
    assert report["recognised"].value == 0.9
    assert report["frechet_features"].value == pytest.approx(D.frechet(real[:, :2] * 2, fake[:, :2] * 2).value)
    assert {"kid_features", "coverage_features", "class_histogram"} <= set(report)
    with pytest.raises(ValueError, match="accepted: one each"):
        D.quality(real, fake, Sign(), labels[:59])


def test_unequal_samples_are_compared_in_equal_blocks():
    """Coverage of 40 real by 400 fake would be near 1 whatever their quality; blocks of 40 keep it comparable."""
    real, fake = normal(40, 2, 1), normal(400, 2, 2)
    report = D.quality(real, fake)
    blocks = [D.prdc(real, fake[40 * b : 40 * b + 40])["coverage"].value for b in range(6)]
    assert report["coverage"].value == pytest.approx(sum(blocks) / 6)
    assert "6 blocks of 40" in report["coverage"].note and report["coverage"].n == (40, 40)
    assert D.prdc(real, fake)["coverage"].value > report["coverage"].value + 0.02
    assert "wasserstein" in report


def test_the_same_seed_gives_the_same_report_and_leaves_the_global_generator_alone():
    x, y = normal(40, 2, 1), normal(40, 2, 2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert D.quality(x, y, seed=3) == D.quality(x, y, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert D.quality(x, y, seed=3) != D.quality(x, y, seed=4)


@pytest.mark.slow
def test_p_values_are_uniform_at_null_for_more_samples():
    """As above with 200 repeats of 200 samples, level 0.001 each."""
    for name, values in p_values(200, 200).items():
        assert stats.kstest(values, "uniform").pvalue > 0.001, name


@pytest.mark.slow
@pytest.mark.parametrize(("n", "gap"), [(500, 3.0), (1000, 4.0), (2000, 8.0)])
def test_published_table_over_eight_repeats(n, gap):
    """Published: Frechet in pixels separates P and Q by 5, 11 and 12 standard errors of one run (+-30%)."""
    null = torch.tensor(
        [D.frechet(digits(n, s), digits(n, s + 50), permutations=0, resamples=2).value for s in range(8)]
    )
    alt = torch.tensor(
        [D.frechet(digits(n, s), digits(n, s + 50, True), permutations=0, resamples=2).value for s in range(8)]
    )
    assert abs(null.mean()) < 4 * null.std() / 8**0.5 + 2.0 / n
    assert (alt.mean() - null.mean()) / torch.maximum(null.std(), alt.std()) > gap
    assert abs(alt.mean() - 0.069) < 0.02
