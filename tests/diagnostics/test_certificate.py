"""The certificate's measurements can fail: each is shown a plan or a process with one thing wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.noise import GeneratorNoise
from retrodict.diagnostics import certificate
from retrodict.exact import GaussianMixture
from retrodict.kernels import LinearGaussian
from retrodict.solvers.plan import Row

VP = rd.VP()
LAW = GaussianMixture([0.4, 0.6], [[1.0, -0.5], [-1.0, 0.3]], [0.2, 0.5])


def _tampered(plan: rd.Plan, number: int, **change) -> rd.Plan:
    """The plan with one row's coefficients multiplied: ``d=1.01`` scales its denoiser outputs."""
    rows = [i for i, c in enumerate(plan.code) if isinstance(c, Row)]
    code = list(plan.code)
    row = code[rows[number]]
    code[rows[number]] = replace(row, **{k: {j: v * f for j, v in getattr(row, k).items()} for k, f in change.items()})
    return plan.with_code(code)


def test_a_finding_reads_well():
    finding = certificate.constant_identity(rd.plan("ddim", VP, steps=4, end=0.05))
    assert finding and finding.ok and str(finding).startswith("ok") and finding.expected == 0
    broken = certificate.constant_identity(_tampered(rd.plan("ddim", VP, steps=4, end=0.05), 1, d=1.01))
    assert not broken and str(broken).startswith("FAIL") and broken.value > 1e-4


@pytest.mark.parametrize("name", ["ddim", "unipc", "heun", "dpm-solver++", "deis"])
def test_constant_identity_sees_a_coefficient_off_by_a_thousandth(name):
    plan = rd.plan(name, VP, steps=5, end=0.05)
    assert certificate.constant_identity(plan)
    assert certificate.constant_identity(_tampered(plan, 1, d=1.001)).value > 1e-6
    assert certificate.constant_identity(_tampered(plan, 1, x=1.001)).value > 1e-6


def test_variance_identity_sees_too_much_noise():
    plan = rd.plan("ddim", VP, steps=5, eta=1.0, end=0.1)
    assert certificate.variance_identity(plan)
    assert certificate.variance_identity(_tampered(plan, 4, z=1.01)).value > 1e-3
    with pytest.raises(InputError, match="an end above it"):
        certificate.variance_identity(rd.plan("ddim", VP, steps=5, eta=1.0))


def test_moments_against_sampling():
    """Exact propagation and 40,000 samples of the same plan: mean and variance within five standard errors."""
    n = 40_000
    law = GaussianMixture([1.0], [[0.7]], [0.25])
    for name in ("ddpm", "sde-dpm-solver++", "euler-maruyama"):
        plan = rd.plan(name, VP, steps=6, end=0.05)
        found = certificate.moments(plan, 0.7, 0.25)
        noise = GeneratorNoise(torch.Generator().manual_seed(3), n, dtype=torch.float64)
        x = (0.7 + 0.5 * noise.normal((1,))) * float(VP.alpha(1.0)) + noise.normal((1,)) * float(VP.sigma(1.0))
        out = certificate.execute(plan, law.denoiser(VP), x, noise)
        assert abs(float(out.mean()) - found.mean) < 5 * (found.variance / n) ** 0.5
        assert abs(float(out.var()) / found.variance - 1) < 5 * (2 / n) ** 0.5


def test_moments_of_the_exact_law_have_no_error():
    """One step of the SDE's exact Gaussian solution: on data of variance zero every exponential plan is exact."""
    found = certificate.moments(rd.plan("ddim", VP, steps=3, eta=1.0, end=0.1), mean=0.3, variance=1e-14)
    assert found.mean_error < 1e-14 and found.variance_error < 1e-12


def test_unroll_sees_a_normal_form_of_another_plan():
    denoiser, x = LAW.denoiser(VP), torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plan = rd.plan("unipc", VP, steps=6, end=0.05)
    assert certificate.unroll(plan, denoiser, x)

    class Lying(rd.Plan):
        def normal_form(self):
            return _tampered(plan, 3, d=1.01).normal_form()

    lying = Lying(plan.code, plan.out, plan.times, plan.process, plan.meta)
    assert not certificate.unroll(lying, denoiser, x)


def test_evaluations_are_counted_on_the_denoiser():
    denoiser, x = LAW.denoiser(VP), torch.zeros(2, 2, dtype=torch.float64)
    plan = rd.plan("heun", VP, steps=4)
    assert certificate.evaluations(plan, denoiser, x).value == 7

    class Boastful(rd.Plan):
        nfe = 4

    assert not certificate.evaluations(Boastful(plan.code, plan.out, plan.times, plan.process, plan.meta), denoiser, x)


def test_reproducibility_sees_a_denoiser_that_mixes_the_batch():
    plan = rd.plan("ddim", VP, steps=4, eta=0.5)
    assert certificate.reproducibility(plan, LAW.denoiser(VP), (2,))

    class Mixing(rd.Denoiser):
        def forward(self, x, t, **condition):
            return x - x.mean(0)

    assert not certificate.reproducibility(plan, Mixing(VP, (2,)), (2,))


def test_polynomial_exactness_sees_the_published_third_order():
    """Half of the second difference is no quadratic."""
    words = {"steps": 6, "end": 0.02, "order": 3}
    assert certificate.polynomial_exactness(rd.plan("dpm-solver++", VP, **words), 2)
    official = certificate.polynomial_exactness(rd.plan("dpm-solver++", VP, weights="official", **words), 2)
    assert not official and official.value > 1e-4


def test_orders_of_samplers_that_are_functions():
    """Any sampler can be measured: here Euler's method on y' = y."""

    def euler(n: int) -> torch.Tensor:
        return torch.full((1, 1), (1 + 1 / n) ** n, dtype=torch.float64)

    found = certificate.convergence_order(euler, torch.full((1, 1), np.e, dtype=torch.float64), expected=1.0)
    assert found and len(found.details) == 3
    assert not certificate.convergence_order(euler, torch.full((1, 1), np.e, dtype=torch.float64), expected=2.0)


def test_orders_see_one_wrong_row():
    """A third-order method with one row off by a hundredth is of first order."""
    denoiser = LAW.denoiser(VP)
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = certificate.flow_map(denoiser, x, 1.0, 1e-2)
    make = lambda n: rd.plan("dpm-solver++", VP, steps=n, end=1e-2, order=3)  # noqa: E731
    steps = (40, 80, 160)
    assert certificate.convergence_order(make, exact, denoiser=denoiser, x=x, steps=steps).value > 2.5
    broken = lambda n: _tampered(make(n), n // 2, d=1.01)  # noqa: E731
    assert certificate.convergence_order(broken, exact, denoiser=denoiser, x=x, steps=steps).value < 1.6


def test_flow_map_of_a_gaussian_is_its_closed_form():
    """x_t - m_t = sqrt(v_t/v_s) (x_s - m_s) for one Gaussian."""
    law = GaussianMixture([1.0], [[0.7, -0.2]], [0.3])
    x = torch.tensor([[0.5, 1.0], [-2.0, 0.1]], dtype=torch.float64)
    start, end = (law.marginal(VP, t) for t in (0.9, 0.05))
    exact = end.mean + (end.covariance[0, 0] / start.covariance[0, 0]).sqrt() * (x - start.mean)
    assert float((certificate.flow_map(law.denoiser(VP), x, 0.9, 0.05) - exact).abs().max()) < 1e-8


class _Wrong(rd.VP):
    """A bridge whose noise is a tenth too large."""

    def bridge(self, x_t, t, s, eta, x1=None):
        right = super().bridge(x_t, t, s, eta, x1)
        return LinearGaussian(right.A, right.b, right.Q.scale(1.1))


class _Forgetful(rd.Masked):
    """Reveals tokens too early."""

    def bridge(self, x_t, t, s, eta, x1=None):
        right = super().bridge(x_t, t, s, eta, x1)
        return replace(right, u=right.u**0.9)


def test_bridge_consistency_sees_wrong_bridges():
    assert certificate.bridge_consistency(VP) and certificate.bridge_consistency(rd.Masked(3))
    assert not certificate.bridge_consistency(_Wrong())
    assert not certificate.bridge_consistency(_Forgetful(3))


def test_measurements_refuse_what_they_cannot_measure():
    with pytest.raises(InputError, match="scalar Gaussian path"):
        certificate.constant_identity(rd.plan("step", rd.Masked(3), steps=3))
    with pytest.raises(InputError, match="no closed moments"):
        certificate.moments(rd.plan("step", VP, steps=3))
    with pytest.raises(TypeError, match="needs denoiser="):
        certificate.convergence_order(lambda n: rd.plan("ddim", VP, steps=n), torch.zeros(1, 1))
