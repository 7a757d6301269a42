"""The distances against closed forms: right between known laws, nothing at null.

Seeds are fixed.  Bounds on means of repeated estimates are four standard errors: a false alarm in
1 of 16,000.
"""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
from scipy import stats

from diagnostics.distances.laws import digits, normal
from retrodict.core.errors import InputError, InputTypeError
from retrodict.diagnostics import distances as D
from retrodict.diagnostics.distances.gaussian import bures, frechet_value
from retrodict.diagnostics.distances.kernels import KERNELS, indicators, permuted, u_statistics

QUICK = {"permutations": 1, "resamples": 2}


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values)))


def test_bures_equals_the_formula_of_commuting_and_the_reference_of_other_covariances():
    s, t = (
        torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64),
        torch.tensor([4.0, 4.0, 1.0], dtype=torch.float64),
    )
    assert bures(s.diag(), t.diag()).item() == pytest.approx(((s.sqrt() - t.sqrt()) ** 2).sum().item())
    a, b = (normal(8, 5, seed).T @ normal(8, 5, seed) for seed in (1, 2))
    m = torch.zeros(5, dtype=torch.float64)
    reference = float(ot.gaussian.bures_wasserstein_distance(m, m, a, b)) ** 2
    assert bures(a, b).item() == pytest.approx(reference, rel=1e-8)


def test_frechet_of_exact_moments_is_the_formula():
    """Points +-sqrt(d) e_i have mean 0 and a diagonal covariance, so nothing is random."""
    points = torch.cat([torch.eye(3), -torch.eye(3)]).double() * torch.tensor([1.0, 2.0, 3.0])
    moved = points * 2.0 + torch.tensor([1.0, 0.0, -2.0])
    expected = 5.0 + torch.cov(points.T).trace().item()  # |m|^2 + sum (2 s - s)^2
    assert frechet_value(points, moved, False) == pytest.approx(expected)
    assert D.frechet(points, moved, False, **QUICK).value == pytest.approx(expected)


def test_frechet_bias_has_the_closed_form_of_isotropic_gaussians():
    """l = 1 in d dimensions: (1/m + 1/n)/2 (2 d + (d^2 + d) / 2)."""
    for d, m, n in ((1, 10, 10), (5, 100, 300)):
        expected = (1 / m + 1 / n) / 2 * (2 * d + (d * d + d) / 2)
        assert D.frechet_bias(torch.eye(d, dtype=torch.float64), m, n).item() == pytest.approx(expected)
    assert D.frechet_bias(torch.zeros(3, 3, dtype=torch.float64), 10, 10).item() == 0.0


@pytest.mark.parametrize(("m", "n"), [(400, 400), (300, 900)])
def test_corrected_frechet_is_centred_at_null_and_right_elsewhere(m, n):
    """The correction is of first order in 1/n: what it leaves at null is within a tenth of what it removes."""
    d = 8
    null = [frechet_value(normal(m, d, s), normal(n, d, s + 1000), True) for s in range(60)]
    mean, error = mean_and_error(null)
    removed = D.frechet_bias(torch.eye(d, dtype=torch.float64), m, n).item()
    assert abs(mean) < 0.1 * removed and error < 0.05 * removed
    far = [frechet_value(normal(m, d, s), normal(n, d, s + 1000, 0.3, 1.2), True) for s in range(40)]
    mean, error = mean_and_error(far)
    assert abs(mean - d * (0.3**2 + 0.2**2)) < 4 * error + 0.05 * removed


def gaussian_distance(shift: float, scale: float) -> float:
    """E|a - b| for a ~ N(0, 1), b ~ N(shift, scale^2) on the line: a folded normal."""
    s = math.hypot(1.0, scale)
    return s * math.sqrt(2 / math.pi) * math.exp(-(shift**2) / (2 * s * s)) + shift * math.erf(shift / s / math.sqrt(2))


def test_energy_distance_is_unbiased_for_its_closed_form():
    truth = 2 * gaussian_distance(0.5, 1.0) - 2 * gaussian_distance(0.0, 1.0)
    for shift, expected in ((0.0, 0.0), (0.5, truth)):
        values = [D.energy_distance(normal(60, 1, s), normal(80, 1, s + 500, shift), **QUICK).value for s in range(150)]
        mean, error = mean_and_error(values)
        assert abs(mean - expected) < 4 * error


def test_energy_distance_is_twice_the_statistic_that_scipy_knows_without_its_diagonal():
    """scipy's V-statistic keeps the zero terms i = j; for m = n that is known exactly."""
    x, y = normal(50, 1, 1), normal(50, 1, 2, 0.4)
    v = stats.energy_distance(x.flatten().numpy(), y.flatten().numpy()) ** 2
    within = torch.pdist(x).mean().item() + torch.pdist(y).mean().item()
    assert D.energy_distance(x, y, **QUICK).value == pytest.approx(v - within / 50)


@pytest.mark.parametrize("name", ["mmd", "kid"])
def test_kernel_distances_are_the_double_sum_and_unbiased_at_null(name):
    x, y = normal(30, 3, 1), normal(20, 3, 2, 0.5)
    pool = torch.cat([x, y])
    if name == "mmd":
        median = torch.pdist(pool).median()
        square = torch.cdist(pool, pool) ** 2
        k = sum(torch.exp(-square / (2 * (w * median) ** 2)) for w in (0.25, 0.5, 1.0, 2.0)) / 4
    else:
        z = (pool - pool.mean(0)) / pool.std(0)
        k = (z @ z.T / 3 + 1) ** 3
    k = k - k.diag().diag()
    expected = k[:30, :30].sum() / (30 * 29) + k[30:, 30:].sum() / (20 * 19) - 2 * k[:30, 30:].mean()
    assert getattr(D, name)(x, y, **QUICK).value == pytest.approx(expected.item(), rel=1e-9)
    values = [getattr(D, name)(normal(40, 3, s), normal(40, 3, s + 999), **QUICK).value for s in range(150)]
    mean, error = mean_and_error(values)
    assert abs(mean) < 4 * error


def test_chunks_change_nothing_and_several_kernels_share_one_pass():
    x, y = normal(70, 3, 1), normal(50, 3, 2)
    whole = D.kernel_distances(x, y, ("energy", "mmd", "kid"))
    parts = D.kernel_distances(x, y, ("energy", "mmd", "kid"), chunk=13)
    for a, b, alone in zip(whole, parts, (D.energy_distance(x, y), D.mmd(x, y), D.kid(x, y))):
        assert a.value == pytest.approx(b.value, rel=1e-10) and a.p_value == b.p_value == alone.p_value
        for other in (b, alone):
            assert (a.low, a.high) == pytest.approx((other.low, other.high))


def test_permuted_and_halved_columns_are_the_statistic_of_the_data_they_mark():
    pool = normal(50, 3, 1)
    marks = indicators(50, permuted(30, 20, 4, seed=2))
    assert marks.sum(0).tolist() == [30.0] * 4
    statistics = u_statistics(pool, marks, 1.0 - marks, [KERNELS["energy"][0]], seed=0, chunk=7)[0]
    for column, statistic in zip(marks.T.bool(), statistics):
        alone = D.energy_distance(pool[column], pool[~column], **QUICK).value
        assert statistic.item() == pytest.approx(alone, rel=1e-9)


def test_wasserstein_of_a_shifted_set_is_the_length_of_the_shift():
    for d in (1, 3):
        x = normal(60, d, 1)
        shift = torch.arange(1.0, d + 1, dtype=torch.float64)
        for p in (1.0, 2.0, 3.0):
            value = D.wasserstein(x, x[torch.randperm(60)] + shift, p, resamples=2).value
            assert value == pytest.approx(shift.norm().item(), rel=1e-9)


def test_wasserstein_on_the_line_equals_the_linear_program_at_unequal_sizes():
    x, y = normal(30, 1, 1), normal(41, 1, 2, 1.0, 2.0)
    for p in (1.0, 2.0):
        reference = ot.emd2([], [], torch.cdist(x, y).pow(p).numpy()) ** (1 / p)
        assert D.wasserstein(x, y, p, resamples=2).value == pytest.approx(float(reference), rel=1e-9)


@pytest.mark.parametrize("n", [50, 70])
def test_sliced_wasserstein_equals_the_reference_on_the_same_directions(n):
    x, y = normal(50, 4, 1), normal(n, 4, 2, 0.5)
    g = torch.Generator().manual_seed(0)
    directions = torch.randn(4, 128, dtype=torch.float64, generator=g)
    directions /= directions.norm(dim=0)
    for p in (1, 2):
        reference = ot.sliced_wasserstein_distance(x, y, projections=directions, p=p)
        assert D.sliced_wasserstein(x, y, p, **QUICK).value == pytest.approx(float(reference), rel=1e-9)


def test_precision_recall_density_coverage_by_hand():
    """Real 0, 1, 2 and 10, 11, 12; fake on the first three only, and one far off; radii to the first neighbour."""
    real = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])[:, None]
    fake = torch.tensor([0.1, 1.1, 2.1, 50.0])[:, None]
    found = D.prdc(real, fake, k=1, resamples=2)
    # balls of radius 1 around the real: 0.1 is in those of 0 and 1, 1.1 of 1 and 2, 2.1 of 2 alone
    assert found["precision"].value == 3 / 4
    assert found["density"].value == (2 + 2 + 1) / 4
    assert found["coverage"].value == 3 / 6
    # fake radii are 1, 1, 1 and 47.9, whose ball, from 2.1 on, holds 10, 11 and 12
    assert found["recall"].value == 6 / 6


def test_a_sample_equals_itself():
    x = normal(60, 3, 1)
    found = D.prdc(x, x.clone())
    assert [found[name].value for name in ("precision", "recall", "coverage")] == [1.0, 1.0, 1.0]
    assert D.frechet(x, x.clone(), False, **QUICK).value == pytest.approx(0.0, abs=1e-9)
    assert D.wasserstein(x, x.clone(), resamples=2).value == pytest.approx(0.0, abs=1e-6)
    assert D.sliced_wasserstein(x, x.clone(), **QUICK).value == 0.0


def test_class_histogram_is_total_variation_with_the_chi_square_test():
    real, fake = torch.arange(400) % 4, torch.arange(400) % 2
    found = D.class_histogram(real, fake)
    assert found.value == 0.5 and found.p_value is not None and found.p_value < 1e-20
    even = D.class_histogram(real, real.flip(0))
    assert even.value == 0.0 and even.p_value == pytest.approx(1.0)
    assert D.class_histogram(np.zeros(9, int), np.zeros(9, int)).p_value == 1.0


def test_intervals_cover_the_truth():
    """90 intervals of nominal 95%: at least 78 cover, or the rule is too narrow (false alarm 1 in 1,000)."""
    truth = {
        "frechet": 4 * 0.3**2,
        "energy": 2 * gaussian_distance(0.3, 1.0) - 2 * gaussian_distance(0.0, 1.0),
    }
    covered = dict.fromkeys(truth, 0)
    for s in range(90):
        x, y = normal(200, 4, s), normal(200, 4, s + 700, 0.3)
        measures = {
            "frechet": D.frechet(x, y, permutations=0, resamples=20),
            "energy": D.energy_distance(x[:, :1], y[:, :1], permutations=1, resamples=20),
        }
        for name, m in measures.items():
            covered[name] += m.low <= truth[name] <= m.high
    assert min(covered.values()) >= 78


def test_wilson_interval_is_that_of_the_reference():
    for k, n in ((0, 10), (7, 10), (298, 300)):
        reference = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert D.wilson(k, n) == pytest.approx((reference.low, reference.high), abs=1e-4)


def test_bad_samples_are_refused_before_any_work():
    x = normal(30, 3, 1)
    broken = x.clone()
    broken[3, 1] = torch.nan
    checks = [
        D.energy_distance,
        D.mmd,
        D.kid,
        D.frechet,
        D.wasserstein,
        D.sliced_wasserstein,
        D.prdc,
        D.c2st,
        D.quality,
    ]
    for check in checks:
        with pytest.raises(InputError, match="fake has 1 samples with NaN"):
            check(x, broken)
        with pytest.raises(InputError, match="same shape"):
            check(x, x[:, :2])
        with pytest.raises(InputError, match="at least"):
            check(x[:1], x)
        with pytest.raises(InputTypeError, match="list"):
            check(x.tolist(), x)
        assert check(x.numpy(), x.float().reshape(30, 3, 1)) is not None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: D.kernel_distances(x, x, ("enrgy",)), "Did you mean 'energy'"),
        (lambda x: D.c2st(x, x, classifiers=["logistik"]), "Did you mean 'logistic'"),
        (lambda x: D.wasserstein(x, x, 0.5), "1 or more"),
        (lambda x: D.sliced_wasserstein(x, x, projections=0), "projections=0"),
        (lambda x: D.prdc(x, x, k=0), "k=0"),
        (lambda x: D.prdc(x, x, k=20), "at least 42"),
        (lambda x: D.class_histogram(torch.tensor([0, 5]), torch.tensor([0, 1]), classes=3), "outside 0..2"),
        (lambda x: D.wasserstein(x.repeat(200, 1), x), "sliced_wasserstein"),
        (lambda x: D.quality(x, x, labels=torch.zeros(30)), "features="),
        (lambda x: D.quality(x, x)["frechets"], "Did you mean 'frechet'"),
        (lambda x: D.quality(x, x).excess("frechet"), "no floor"),
        (lambda x: D.floor(x, x, n=31), "1 to 30"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(normal(30, 3, 1))


def test_labels_must_be_integers():
    with pytest.raises(InputTypeError, match="integer labels"):
        D.class_histogram(torch.rand(9), torch.rand(9))


def test_published_values_of_the_cheap_distances():
    """Null and alternative at n = 2000, one run each, within about three of the published standard errors."""
    x, y, z = digits(2000, 1), digits(2000, 2), digits(2000, 3, altered=True)
    raw = [D.frechet(x, other, False, **QUICK).value for other in (y, z)]
    assert raw == pytest.approx([0.046, 0.112], abs=0.012)
    sliced = [D.sliced_wasserstein(x, other, **QUICK).value for other in (y, z)]
    assert sliced == pytest.approx([0.0148, 0.0263], abs=0.004)
    energy, mixture = (D.kernel_distances(x, other, **QUICK) for other in (y, z))
    assert [energy[0].value, mixture[0].value] == pytest.approx([0.0002, 0.0041], abs=0.0025)
    found = [[m.value for m in D.prdc(x, other, resamples=2).values()] for other in (y, z)]
    assert found[0] == pytest.approx([0.96, 0.97, 0.98, 0.96], abs=0.05)
    assert found[1] == pytest.approx([0.82, 0.99, 0.42, 0.81], abs=0.05)
