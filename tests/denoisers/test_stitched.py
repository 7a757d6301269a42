"""Stitched denoisers: who is asked, what is exact, what a cheap model at high noise costs."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.denoisers import Stitched, excess_divergence, stitchings
from retrodict.exact import GaussianMixture
from retrodict.solvers.inversion import run

EDM: Any = rd.EDM(0.002, 40.0)
VP: Any = rd.VP()
LAW = GaussianMixture([0.3, 0.4, 0.3], [[1.6, 1.0], [-1.8, 0.3], [0.6, -1.7]], [0.04, 0.09, 0.06])
MATCHED = GaussianMixture([1.0], LAW.mean[None], LAW.covariance[None])
X = 40 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _out(denoiser: Any, solver: str = "ddim", steps: int = 40) -> torch.Tensor:
    with torch.no_grad():
        return run(rd.plan(solver, EDM, steps=steps, grid="karras", end=0.0), denoiser, X, {})[0]


@pytest.mark.parametrize("solver", ["ddim", "unipc", "heun"])
def test_one_model_alone_is_itself(solver):
    small, big = MATCHED.denoiser(EDM), LAW.denoiser(EDM)
    assert torch.equal(_out(Stitched([small, big], [0.0]), solver, 8), _out(small, solver, 8))
    assert torch.equal(_out(Stitched([small, big], [1.000001]), solver, 8), _out(big, solver, 8))


def test_a_gaussian_is_as_good_at_high_noise():
    """The moment-matched Gaussian for the first steps: free above three standard deviations of the data, and worse
    the longer it is in charge."""
    big = LAW.denoiser(EDM)
    fine = _out(big, "unipc", 300)
    errors = []
    for sigma in (20.0, 4.0, 2.0, 1.0):
        stitched = Stitched([MATCHED.denoiser(EDM), big], [float(EDM.time_at(-np.log(sigma)))])
        errors.append(float((_out(stitched) - fine).square().mean().sqrt()))
    alone = float((_out(big) - fine).square().mean().sqrt())
    assert errors[0] < 1.02 * alone and errors[1] < 1.3 * alone
    assert errors[0] < errors[1] < errors[2] < errors[3] and errors[3] > 2 * alone


def test_three_models_and_times_of_their_own():
    models = [LAW.denoiser(EDM), MATCHED.denoiser(EDM), LAW.denoiser(EDM)]
    stitched = Stitched(models, [0.6, 0.3])
    assert [stitched.in_charge(t) for t in (1.0, 0.6, 0.5, 0.3, 0.1)] == [0, 0, 1, 1, 2]
    t = torch.tensor([0.9, 0.5, 0.2, 0.4]).double()
    x = X[:4]
    apart = torch.cat([stitched(x[i : i + 1], float(t[i])) for i in range(4)])
    assert torch.equal(stitched(x, t), apart)


def test_another_path_is_asked_at_the_same_log_snr():
    """The exact denoisers of two paths are one function of x/alpha and of sigma/alpha."""
    stitched = Stitched([LAW.denoiser(EDM), LAW.denoiser(VP)], [0.2])
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for t in (0.7, 0.5, 0.3):
        assert torch.allclose(stitched(x, t), LAW.denoiser(VP)(x, t), rtol=1e-9, atol=1e-10)


def test_priced_by_losses_the_bound_holds():
    """In one dimension: DDPM steps with the Gaussian in charge above t = .5; the divergence of the result from the
    exact denoiser's own is below the price, both by quadrature."""
    law = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.05, 0.05])
    small = GaussianMixture([1.0], law.mean[None], law.covariance[None]).denoiser(VP)
    times = np.linspace(0.9, 0.2, 15)
    data = law.sample(4000, seed=1)
    price = float(excess_divergence(small, law.denoiser(VP), data, times.tolist()).sum())
    grid = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    laws = []
    for denoiser in (small, law.denoiser(VP)):
        p = law.marginal(VP, 0.9).log_prob(grid[:, None]).exp()
        for t, s in pairwise(times):
            plan = rd.plan("ddpm", VP, grid=[t, s], start=float(t), end=float(s))
            form = plan.normal_form()
            with torch.no_grad():
                mean = form.start_weight * grid + form.data_weights[0] * denoiser(grid[:, None], float(t))[:, 0]
            std = float(form.noise_weights[0])
            kernel = torch.exp(-0.5 * ((grid[None] - mean[:, None]) / std) ** 2) / (std * (2 * np.pi) ** 0.5)
            p = (p[:, None] * kernel).sum(0) * float(grid[1] - grid[0])
        laws.append(p)
    q, p = laws
    divergence = float((p * (p.clamp_min(1e-300) / q.clamp_min(1e-300)).log()).sum() * (grid[1] - grid[0]))
    assert 1e-3 < divergence < price


NARROW = GaussianMixture([0.5, 0.5], LAW.means[:2], [0.2, 0.2])
TIMES = EDM.time_at(-torch.tensor([40.0, 12.0, 4.0, 2.0, 1.0, 0.5, 0.2]).log()).tolist()


def test_every_efficient_stitching_and_no_other():
    """Three models over six intervals: the frontier of all 729 assignments, by enumeration."""
    models, costs = [MATCHED.denoiser(EDM), NARROW.denoiser(EDM), LAW.denoiser(EDM)], [1.0, 3.0, 10.0]
    data = LAW.sample(2000, seed=1)
    prices = torch.stack([excess_divergence(m, models[-1], data, TIMES) for m in models])
    ways = [
        (sum(costs[k] for k in who), float(sum(prices[k, i] for i, k in enumerate(who))))
        for who in product(range(3), repeat=6)
    ]
    best = {c: min(n for cost, n in ways if cost == c) for c in {cost for cost, _ in ways}}
    expected = [(c, best[c]) for c in sorted(best) if all(best[o] > best[c] for o in best if o < c)]
    found = stitchings(models, costs, data, TIMES)
    assert [s.cost for s in found] == [c for c, _ in expected]
    assert [s.nats for s in found] == pytest.approx([n for _, n in expected], abs=1e-12)
    assert found[0].who == (0,) * 6 and found[-1].nats == 0.0
    for s in found:
        asked = [s.who[i] for i in range(6)]
        for i, t in enumerate(TIMES[:-1]):
            assert torch.equal(s.denoiser(X[:4], t), models[asked[i]](X[:4], t))
        assert torch.equal(s.denoiser(X[:4], TIMES[-1]), models[-1](X[:4], TIMES[-1]))


def test_a_gaussian_takes_a_third_of_the_steps_for_nothing():
    """The Gaussian that matches two moments costs a hundredth: within 5e-5 nats it takes at least a third of 40 steps,
    and the error to the fine solution is at most 1.1 times that of the exact denoiser alone; within .02 nats it takes
    more than half of them."""
    big = LAW.denoiser(EDM)
    times = rd.plan("ddim", EDM, steps=40, grid="karras", end=0.0).times[:-1]
    found = stitchings([MATCHED.denoiser(EDM), big], [0.01, 1.0], LAW.sample(4000, seed=1), times)
    chosen, bold = (next(s for s in found if s.nats <= nats) for nats in (5e-5, 0.02))
    assert chosen.who.count(0) >= 14 and bold.who.count(0) > 20 and bold.cost < chosen.cost < 27
    fine = _out(big, "unipc", 300)
    errors = [float((_out(d) - fine).square().mean().sqrt()) for d in (chosen.denoiser, big)]
    assert errors[0] < 1.1 * errors[1]
    # a cheaper model that is better is asked everywhere
    better = stitchings([LAW.denoiser(EDM), MATCHED.denoiser(EDM)], [0.5, 1.0], LAW.sample(4000, seed=1), TIMES)
    assert set(better[0].who) == {0} and len(better) == 1


@pytest.mark.parametrize(
    ("costs", "times", "match"),
    [
        ([1.0], TIMES, "costs"),
        ([1.0, -1.0], TIMES, "costs"),
        ([1.0, 2.0], TIMES[::-1], "decrease"),
        ([1.0, 2.0], None, "sigma = 0"),
    ],
)
def test_words_of_stitchings(costs, times, match):
    process = EDM if times is not None else VP
    with pytest.raises(InputError, match=match):
        stitchings([LAW.denoiser(process)] * 2, costs, LAW.sample(8, seed=0), times or [0.9, 0.0])


def test_only_denoisers_are_stitched():
    with pytest.raises(InputTypeError, match="denoisers"):
        Stitched([LAW.denoiser(EDM), "model"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("count", "until", "match"), [(1, [], "at least two"), (2, [0.5, 0.2], "bounds"), (3, [0.2, 0.5], "decreases")]
)
def test_arguments_are_checked(count, until, match):
    with pytest.raises(InputError, match=match):
        Stitched([LAW.denoiser(EDM)] * count, until)
