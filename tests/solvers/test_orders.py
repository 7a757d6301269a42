"""Orders of convergence, measured against scipy's DOP853 (pathwise) and against closed-form variances (weak).

The problem is written down: three components of standard deviation about .8, VP with linear betas, uniform log-SNR, t
from 1 to 1e-3, 64 starts; the order is the slope over the last two doublings, 80 to 320 steps.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import retrodict as rd
from retrodict.core.noise import KeyedNoise
from retrodict.diagnostics import certificate
from retrodict.exact import GaussianMixture
from solvers.solver_cases import M8, ONE_ENDED, interpolant, starts

PROCESS = ONE_ENDED["vp-linear"]
END = 1e-3

# (solver, options, order); the number is what an independent implementation measured, or else the theory's
PATHWISE: list[tuple[str, dict[str, Any], float]] = [
    ("ddim", {}, 1.00),
    ("euler", {}, 1.00),
    ("dpm-solver++", {"weights": "midpoint"}, 2.00),
    ("dpm-solver++", {}, 2.01),
    ("dpm-solver++", {"order": 3, "weights": "official"}, 2.01),
    ("dpm-solver++", {"order": 3}, 3.00),
    ("dpm-solver", {"weights": "midpoint"}, 2.00),
    ("dpm-solver", {"order": 3, "weights": "official"}, 2.01),
    ("dpm-solver", {"order": 2}, 1.99),
    ("dpm-solver", {"order": 3}, 3.06),
    ("deis", {"degree": 1, "variant": "rhoab"}, 1.97),
    ("deis", {"degree": 2, "variant": "rhoab"}, 2.92),
    ("lms", {}, 3.85),
    ("deis", {"degree": 1}, 1.98),
    ("deis", {"degree": 2}, 2.96),
    ("deis", {"degree": 3}, 3.89),
    ("adams", {"order": 3, "tau": "rho"}, 3.01),
    ("unipc", {"order": 1}, 2.00),
    ("unipc", {"order": 2, "variant": "bh1"}, 3.02),
    ("unipc", {"order": 2}, 2.99),
    ("unipc", {"order": 2, "variant": "exact"}, 3.00),
    ("unipc", {"order": 3}, 3.97),
    ("unipc", {"order": 3, "kind": "noise"}, 4.00),
    ("heun", {}, 2.01),
    ("edm", {"s_churn": 0.0}, 2.01),
    ("rho-rk", {"tableau": "midpoint"}, 2.01),
    ("rho-rk", {"tableau": "kutta3"}, 2.98),
    ("rho-rk", {"tableau": "heun3"}, 3.00),
    ("rho-rk", {"tableau": "ralston3"}, 3.00),
    ("rho-rk", {"tableau": "ssp3"}, 3.00),
    ("rho-rk", {"tableau": "rk4"}, 4.01),
    ("rho-rk", {"tableau": "bogacki-shampine", "kind": "velocity"}, 3.00),
    ("dpm-solver++-2s", {}, 1.99),
    ("dpm-solver++-3s", {}, 2.99),
    ("dpm-solver-2s", {}, 2.00),
    ("dpm-solver-3s", {}, 3.00),
    ("plms", {"order": 2}, 2.00),
    ("plms", {}, 2.00),
    ("plms", {"warmup": "runge-kutta"}, 2.00),
    ("flow-euler", {}, 1.00),
    ("flow-heun", {}, 2.00),
    ("flow-ab", {}, 2.00),
    ("flow-ab", {"order": 3}, 3.00),
    ("velocity-ab", {}, 2.00),
    ("adams", {"order": 2, "kind": "velocity", "corrector": True}, 3.00),
    ("adams", {"order": 2, "kind": "flow", "corrector": True}, 3.00),
    ("dpm-solver-v3", {"corrector": False}, 2.01),
    ("dpm-solver-v3", {"order": 3, "corrector": False}, 3.00),
    ("hb", {"order": 2}, 1.01),
    ("hb", {"order": 2, "kind": "data", "weights": "midpoint"}, 0.98),
    ("ghvb", {"order": 2}, 2.00),
    ("ghvb", {"order": 3, "beta": 0.5}, 1.97),
    ("ghvb", {}, 2.01),
    ("ghvb", {"order": 2, "weights": "exact"}, 1.98),
    ("ghvb", {"order": 3, "weights": "exact", "tau": "rho"}, 2.88),
    ("ghvb", {"weights": "exact"}, 4.08),
    ("bdia", {}, 2.00),
    ("bdia", {"gamma": 0.5}, 1.00),
    ("bdia", {"form": "edm"}, 2.00),
    ("bdia", {"gamma": 0.5, "transfer": "heun"}, 2.00),
]

WEAK: list[tuple[str, dict[str, Any], float]] = [
    ("ddpm", {}, 0.96),
    ("ddpm", {"variance": "large"}, 1.00),
    ("ddim", {"eta": 0.5}, 0.97),
    ("euler-ancestral", {}, 0.96),
    ("euler-maruyama", {}, 1.01),
    ("flow-sde", {"epsilon": 0.3}, 0.95),
    ("sde-dpm-solver++", {"order": 1}, 0.96),
    ("sde-dpm-solver++", {"weights": "midpoint"}, 1.99),
    ("sde-dpm-solver++", {}, 2.03),
    ("sde-dpm-solver++", {"order": 3}, 2.07),
    ("sde-dpm-solver++", {"order": 3, "eta": 0.7}, 2.10),
    ("dpm-solver-sde", {}, 2.00),
    ("edm", {}, 2.00),
]


@pytest.fixture(scope="module")
def exact():
    """The end points of the probability flow."""
    return certificate.flow_map(M8.denoiser(PROCESS), starts("vp-linear"), 1.0, END)


def _make(name: str, options: dict[str, Any]):
    return lambda n: rd.plan(name, PROCESS, steps=n, grid="logsnr", end=END, **options)


@pytest.mark.parametrize(("name", "options", "order"), PATHWISE, ids=lambda v: str(v))
def test_order_of_deterministic_solvers(exact, name, options, order):
    found = certificate.convergence_order(
        _make(name, options), exact, expected=order, denoiser=M8.denoiser(PROCESS), x=starts("vp-linear")
    )
    assert found, found
    assert abs(rd.plan(name, PROCESS, steps=4, **options).order - order) <= 0.16


def test_order_of_the_fourth_order_multistep(exact):
    """Its start-up rows leave it between 3.3 and 4."""
    found = certificate.convergence_order(
        _make("adams", {"order": 4}), exact, denoiser=M8.denoiser(PROCESS), x=starts("vp-linear")
    )
    assert 3.3 <= found.value <= 4.2, found


@pytest.mark.parametrize(("name", "options", "order"), WEAK, ids=lambda v: str(v))
def test_weak_order_of_stochastic_solvers(name, options, order):
    steps = (160, 320, 640) if name == "edm" else certificate.orders.STEPS
    found = certificate.weak_order(_make(name, options), expected=order, steps=steps)
    assert found, found
    assert abs(rd.plan(name, PROCESS, steps=4, **options).order - order) <= 0.16


def test_means_of_exponential_plans_are_exact():
    """The mean of Gaussian data is a fixed point of every row, so that only the variance converges."""
    for name, options in [
        ("ddpm", {}),
        ("sde-dpm-solver++", {"order": 3}),
        ("unipc", {}),
        ("heun", {}),
        ("flow-ab", {}),
    ]:
        assert certificate.moments(_make(name, options)(10)).mean_error < 1e-12


def test_velocity_is_exact_for_standard_normal_data():
    """Where the constant denoiser is not integrated exactly, the law that is is N(0, 1): one step suffices."""
    for options in ({"order": 1}, {"order": 3}):
        plan = rd.plan("velocity-ab", PROCESS, steps=1, end=0.01, **options)
        moments = certificate.moments(plan, mean=0.0, variance=1.0)
        assert moments.variance_error < 1e-12
    assert certificate.moments(rd.plan("ddim", PROCESS, steps=1, end=0.01), 0.0, 1.0).variance_error > 0.5


class TestInterpolant:
    """Two mixtures joined by a Brownian bridge, from t = .95 to .02 where both ends are unknown."""

    path = interpolant()
    other = GaussianMixture([0.5, 0.5], [[2.0, 1.0], [-1.0, -2.0]], [0.3, 0.5])

    def _problem(self):
        denoiser = M8.denoiser(self.path, x1=self.other)
        z = torch.randn(32, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        x = self.path.corrupt(M8.sample(32, seed=1), 0.95, z, self.other.sample(32, seed=2))
        return denoiser, x

    @pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("flow-euler", 1), ("flow-heun", 2), ("flow-ab", 2)])
    def test_pathwise(self, name, order):
        denoiser, x = self._problem()
        reference = certificate.flow_map(denoiser, x, 0.95, 0.02, rtol=1e-9)
        found = certificate.convergence_order(
            lambda n: rd.plan(name, self.path, steps=n, start=0.95, end=0.02),
            reference,
            expected=order,
            steps=(20, 40, 80),
            denoiser=denoiser,
            x=x,
        )
        assert found, found

    @pytest.mark.parametrize(
        ("name", "options", "order"), [("ddim", {}, 1), ("flow-heun", {}, 2), ("flow-ab", {}, 2), ("flow-sde", {}, 1)]
    )
    def test_in_law_from_the_source_itself(self, name, options, order):
        """From t = 1, where there is no noise and the first step draws it, to t = 0: variances by exact moments."""
        found = certificate.weak_order(lambda n: rd.plan(name, self.path, steps=n, **options), expected=order)
        assert found, found

    def test_transport_between_mixtures(self):
        """3,000 draws of one mixture are carried to the other: mean and covariance within four standard errors and the
        step error (seed fixed; a false alarm would come once in thousands of seeds)."""
        denoiser = M8.denoiser(self.path, x1=self.other)
        n = 3000
        noise = KeyedNoise(7, n, dtype=torch.float64)
        for name, options in [("flow-ab", {}), ("flow-sde", {"epsilon": lambda t: 0.5 * (1 - t)})]:
            plan = rd.plan(name, self.path, steps=30 if name == "flow-ab" else 120, **options)
            x = certificate.execute(plan, denoiser, self.other.sample(n, seed=5), noise)
            assert float((x.mean(0) - M8.mean).abs().max()) < 0.09
            assert float((torch.cov(x.T) - M8.covariance).abs().max()) < 0.13
