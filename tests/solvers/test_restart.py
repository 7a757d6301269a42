"""Restart: what a round contracts, what it costs, and what that is worth when the denoiser is wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.exact import GaussianMixture
from retrodict.solvers import general
from retrodict.solvers.plan import Eval, Plan, Row
from solvers.solver_cases import ONE_ENDED

EDM: Any = ONE_ENDED["edm"]
VP: Any = ONE_ENDED["vp-linear"]
WORDS: dict[str, Any] = {"steps": 18, "grid": "karras", "end": 0.0}


def _propagate(plan: Plan, mean: float, variance: float, bias: Any) -> tuple[float, float]:
    """Exact mean and variance of a plan's output on Gaussian data from the exact start, with the denoiser off by
    ``bias(rho)``: every state is affine in independent normals."""
    start = (float(plan.process.alpha(plan.times[0])), float(plan.process.sigma(plan.times[0])))  # type: ignore[attr-defined]
    basis = np.eye(2 + plan.noises)
    states = {0: start[0] * mean * basis[0] + math.hypot(start[0] * math.sqrt(variance), start[1]) * basis[1]}
    d = {}
    for c in plan.code:
        if isinstance(c, Eval):
            gain = c.alpha * variance / (c.alpha**2 * variance + c.sigma**2)
            offset = mean - gain * c.alpha * mean + bias(c.sigma / c.alpha)
            d[c.k] = gain * states[c.x] + offset * basis[0]
        elif isinstance(c, Row):
            states[c.dst] = sum((a * states[r] for r, a in c.x.items()), np.zeros(len(basis)))
            states[c.dst] = states[c.dst] + sum((w * d[k] for k, w in c.d.items()), np.zeros(len(basis)))
            states[c.dst] = states[c.dst] + sum((z * basis[2 + m] for m, z in c.z.items()), np.zeros(len(basis)))
    out = states[plan.out]
    return float(out[0]), float((out[1:] ** 2).sum())


def test_no_rounds_is_the_main_plan():
    for solver in ("heun", "unipc", "ddim"):
        main = rd.plan(solver, VP, steps=9, grid="logsnr")
        assert rd.plan("restart", VP, steps=9, grid="logsnr", inner=solver, intervals=((0.1, 1.0, 0, 4),)).equivalent(
            main
        )


def test_evaluations_are_those_of_the_formula():
    """2 N - 1 + sum 2 K (M - 1) with Heun; K rounds of M levels."""
    plan = rd.plan("restart", EDM, steps=18, intervals=((0.3, 2.0, 4, 3), (0.06, 0.3, 2, 5)))
    assert plan.nfe == 2 * 18 - 1 + 2 * 4 * 2 + 2 * 2 * 4
    assert plan.noises == 6


@pytest.mark.parametrize(("levels", "measured"), [(8, 0.11873), (32, 0.11617)])
def test_a_round_contracts_errors_of_the_mean(levels, measured):
    """From .3 up to 5 on data of variance .25: the factor of an independent implementation, near the exact .11604."""
    grid = EDM.time_at(np.log([1 / 80.0, 1 / 5.0, 1 / 0.3])).tolist()
    words: dict[str, Any] = {"grid": grid, "start": grid[0], "end": grid[-1]}
    once, never = (rd.plan("restart", EDM, intervals=((0.3, 5.0, k, levels),), **words) for k in (1, 0))

    def miss(plan: Plan) -> float:
        biased, clean = (_propagate(plan, 0.0, 0.25, b)[0] for b in (lambda rho: float(rho > 5.5), lambda rho: 0.0))
        return biased - clean

    factor = miss(once) / miss(never)
    assert factor == pytest.approx(measured, abs=2e-5)
    exact = math.sqrt((0.25 + 0.3**2) / (0.25 + 5.0**2))
    assert factor == pytest.approx(exact, rel=0.03)


def test_variance_goes_to_its_fixed_point_geometrically():
    """With a denoiser for the wrong variance v' a round is the affine map V -> q V + r, whose fixed point is known."""
    true, wrong, bottom, top = 0.25, 0.36, 0.3, 2.0
    grid = EDM.time_at(np.log([1 / 80.0, 1 / top, 1 / bottom])).tolist()
    words: dict[str, Any] = {"grid": grid, "start": grid[0], "end": grid[-1]}
    found = []
    for rounds in range(5):
        plan = rd.plan("restart", EDM, intervals=((bottom, top, rounds, 48),), **words)
        found.append(_propagate(plan, 0.0, wrong, lambda rho: 0.0)[1])
    q = (wrong + bottom**2) / (wrong + top**2)  # of the exact flow; the noise brings top^2 - bottom^2 more
    limit = q * (top**2 - bottom**2) / (1 - q)
    gaps = [v - limit for v in found]
    assert gaps[4] == pytest.approx(q**4 * gaps[0], abs=0.01 * abs(gaps[0]))
    assert limit == pytest.approx(wrong + bottom**2, rel=1e-12) and true < wrong


def test_beats_ode_and_sde_where_the_denoiser_is_wrong_at_high_noise():
    """Denoiser off by .3 above sigma = 2, Gaussian data, exact moments: the error of the mean at equal evaluations."""
    bias = lambda rho: 0.3 if rho > 2.5 else 0.0  # noqa: E731
    restart = rd.plan("restart", EDM, steps=18, intervals=((0.3, 2.0, 4, 3),))
    heun = rd.plan("heun", EDM, steps=26)
    churn = rd.plan("edm", EDM, steps=26, s_churn=40.0)
    assert restart.nfe == heun.nfe == churn.nfe == 51
    misses = [abs(_propagate(plan, 0.7, 0.25, bias)[0] - 0.7) for plan in (restart, heun, churn)]
    assert misses[0] < 0.05 * misses[1] and misses[0] < 0.5 * misses[2]


class Biased(Denoiser):
    """Off by .6 above sigma = 2.5."""

    def __init__(self, law: GaussianMixture) -> None:
        super().__init__(EDM, (2,))
        self.inner = law.denoiser(EDM)

    def forward(self, x: Tensor, t: Any, **condition: Any) -> Tensor:
        return self.inner(x, t) + 0.6 * float(EDM.sigma(t) > 2.5)


def test_beats_ode_and_sde_on_a_mixture_with_a_wrong_denoiser():
    """Energy distance of 1,500 samples to 4,000 of the law at 67 evaluations, three modes that touch: the floor is
    about .001, Heun is at .02 to .05 and DDPM at .01 whatever the seed."""
    law = GaussianMixture([0.3, 0.4, 0.3], [[0.8, 0.5], [-0.9, 0.2], [0.3, -0.9]], [0.16, 0.25, 0.2])
    real = law.sample(4000, seed=9)
    noise = lambda: KeyedNoise(0, 1500, dtype=torch.float64)  # noqa: E731
    start = 80 * noise().stream("start").normal((2,))
    plans = [
        rd.plan("restart", EDM, steps=18, intervals=((0.3, 2.0, 4, 5),)),
        rd.plan("heun", EDM, steps=34),
        rd.plan("ddpm", EDM, steps=67, grid="karras"),
    ]
    assert [plan.nfe for plan in plans] == [67, 67, 67]
    found = []
    for plan in plans:
        with torch.no_grad():
            x = general.run(plan, Biased(law), start, noise(), {}).x
        inside = [torch.cdist(v, v).sum() / (len(v) * (len(v) - 1)) for v in (x, real)]
        found.append(float(2 * torch.cdist(x, real).mean() - sum(inside)))
    assert found[0] < 0.25 * found[1] and found[0] < 0.5 * found[2]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"intervals": ((0.3, 2.0, 1),)}, "interval is"),
        ({"intervals": ((2.0, 0.3, 1, 3),)}, "bottom < top"),
        ({"intervals": ((0.3, 2.0, 1, 1),)}, "levels >= 2"),
        ({"inner": "ddpm"}, "deterministic"),
        ({"inner": "restart"}, "deterministic"),
        ({"s_noise": 0.0}, "s_noise"),
    ],
)
def test_options_that_cannot_be(options, match):
    with pytest.raises(InputError, match=match):
        rd.plan("restart", EDM, steps=6, **options)
