"""The chain over states and levels keeps its law; the argmax of the level does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.diagnostics.distances import sliced_wasserstein
from retrodict.exact import GaussianMixture
from retrodict.solvers import denoising_mcmc, finish, general
from solvers.solver_cases import Blurred, digits

VE: Any = rd.VE(0.05, 10.0)
LAW = GaussianMixture([0.25] * 4, [[2.0, 2.0], [-2.0, 2.0], [2.0, -2.0], [-2.0, -2.0]], [0.09] * 4)


def log_level(y: Tensor, sigma: Tensor) -> Tensor:
    """Log densities of the blurred mixture at every level."""
    square = (y[:, None] - LAW.means[None]).square().sum(-1)[:, :, None]  # (batch, 4, 1)
    variance = (0.09 + sigma**2)[None, None]
    return torch.logsumexp(-0.5 * square / variance - variance.log(), 1)


def _chain(choose: Any = log_level, steps: int = 400, chains: int = 400, **more: Any) -> Any:
    z = torch.randn(chains, 2, generator=torch.Generator().manual_seed(1)).double()
    x = VE.corrupt(LAW.sample(chains, seed=0), 0.5, z)
    words: dict[str, Any] = {"levels": 40, "range": (10.0, 0.05), "within": 0.09, "kappa": 0.1} | more
    return denoising_mcmc(LAW.denoiser(VE), choose, x, 0.5, blocks=steps // 10, skip=10, **words)


def _mass(walk: Any) -> list[float]:
    """Share of each fifth of the levels, after a quarter of the steps."""
    k = walk.levels[len(walk.levels) // 4 :]
    return [float(((k // 8) == fifth).double().mean()) for fifth in range(5)]


def test_levels_are_uniform_and_modes_have_their_weights():
    """120,000 correlated states: each fifth of log sigma within .02 of .2, each mode within .04 of a quarter."""
    walk = _chain()
    assert _mass(walk) == pytest.approx([0.2] * 5, abs=0.02)
    signs = (walk.x[len(walk.x) // 4 :] > 0).long()
    modes = (2 * signs[..., 0] + signs[..., 1]).flatten()
    assert torch.bincount(modes).double().div(len(modes)).tolist() == pytest.approx([0.25] * 4, abs=0.04)


def test_the_most_probable_level_is_another_chain():
    def greedy(y: Tensor, sigma: Tensor) -> Tensor:
        return 1e6 * log_level(y, sigma)

    assert max(abs(m - 0.2) for m in _mass(_chain(greedy, 200))) > 0.08


def test_accepted_or_rejected_long_steps_keep_the_law():
    """Ten times the step: within .012 of .2 with Metropolis' rule, off by more than .03 without it."""
    assert _mass(_chain(steps=300, kappa=1.0, metropolis=True)) == pytest.approx([0.2] * 5, abs=0.012)
    assert max(abs(m - 0.2) for m in _mass(_chain(steps=100, kappa=1.0))) > 0.03


@pytest.mark.slow
def test_long_chains_to_half_a_hundredth():
    """500 chains of 1,200 steps: each fifth of log sigma within .005 of .2 with Metropolis' rule at the full step, and
    within .01 without it at a tenth; each mode by a quarter within three standard errors, from the spread of chains
    (eight comparisons: a false alarm at one seed in fifty)."""
    for words, bound in (({"kappa": 1.0, "metropolis": True}, 0.005), ({"kappa": 0.1}, 0.01)):
        walk = _chain(steps=1200, chains=500, **words)
        assert _mass(walk) == pytest.approx([0.2] * 5, abs=bound)
        signs = (walk.x[len(walk.x) // 4 :] > 0).long()
        mode = 2 * signs[..., 0] + signs[..., 1]
        for k in range(4):
            share = (mode == k).double().mean(0)
            assert abs(float(share.mean()) - 0.25) <= 3 * float(share.std()) / 500**0.5


def _spread(process: Any, steps: int, **more: Any) -> tuple[float, list[float]]:
    """Mean squared distance of 2,000 samples to their mode, and the modes' shares."""
    words: dict[str, Any] = {"levels": 40, "range": (10.0, 0.05), "within": 0.09, "skip": 10, "blocks": 5}
    denoiser = LAW.denoiser(process)
    z = torch.randn(400, 2, generator=torch.Generator().manual_seed(2)).double()
    x = process.corrupt(LAW.sample(400, seed=0), 0.3, z)
    out = finish(denoiser, denoising_mcmc(denoiser, log_level, x, 0.3, **words, **more), steps=steps)
    square = (out[:, None] - LAW.means[None]).square().sum(-1)
    return float(square.amin(1).mean()), torch.bincount(square.argmin(1), minlength=4).double().div(2000).tolist()


@pytest.mark.parametrize(("process", "steps"), [(VE, 6), (rd.VP(), 24)], ids=["ve", "vp"])
def test_samples_of_short_plans_have_the_law(process, steps):
    """Squared distance to the mode .18, within a tenth and the plans' error; modes by a quarter each (seed fixed)."""
    spread, shares = _spread(process, steps)
    assert spread == pytest.approx(2 * 0.09, rel=0.12)
    assert shares == pytest.approx([0.25] * 4, abs=0.06)


def test_keeping_the_smallest_level_is_a_selection():
    assert _spread(VE, 6, keep="smallest")[0] > 1.2 * 2 * 0.09


@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_twelve_evaluations_on_digits(solver):
    """300 digits, each blurred by .15, exactly denoised: sliced Wasserstein distance of 2,400 samples to the law at
    twelve evaluations, six of the chain and six of a plan, against twelve from sigma = 50 by the same solver.  Chains
    start from those and forget for twelve steps, which a long chain spends once.  Bars on the distance itself and on
    what exceeds the floor, the distance of exact draws (measured: floor .026, DDIM .050 to .037, Heun .130 to .033;
    DPM-Solver++ is near the floor by itself)."""
    path: Any = rd.VE(0.05, 50.0)
    denoiser, n = Blurred(digits(300), path), 2400
    noise = KeyedNoise(5, n, dtype=torch.float64)
    away = lambda x: sliced_wasserstein(denoiser.sample(n, 1), x, resamples=2, permutations=0).value  # noqa: E731
    with torch.no_grad():
        plan = rd.plan(solver, path, nfe=12 if solver == "ddim" else 11)
        top = general.run(plan, denoiser, 50 * noise.normal((64,)), noise, {}).x
    x = top + 0.5 * noise.stream("again").normal((64,))
    words: dict[str, Any] = {"levels": 12, "range": (4.0, 0.2), "within": 0.15**2}
    t = float(path.time_at(-torch.tensor(0.5).double().log()))
    walk = denoising_mcmc(denoiser, denoiser.log_level, x, t, skip=18, **words)
    out = finish(denoiser, walk, solver=solver, steps=6 if solver == "ddim" else 3)
    floor = away(denoiser.sample(n, 2))
    assert away(out) <= 0.8 * away(top)
    assert away(out) - floor <= 0.5 * (away(top) - floor)


def test_words_that_cannot_be():
    x = LAW.sample(4)
    for words, match in [
        ({"kappa": 0.0}, "kappa"),
        ({"skip": 0}, "skip"),
        ({"keep": "least"}, "keep"),
        ({"range": (100.0, 1.0)}, "inside the path"),
    ]:
        with pytest.raises(InputError, match=match):
            denoising_mcmc(LAW.denoiser(VE), log_level, x, 0.5, **words)
    with pytest.raises(InputError, match="log_level returns"):
        denoising_mcmc(LAW.denoiser(VE), lambda y, s: torch.zeros(len(y)), x, 0.5)
    with pytest.raises(InputError, match="starts at a time"):
        denoising_mcmc(LAW.denoiser(VE), log_level, x, 2.0)
    with pytest.raises(InputError, match="groups"):
        finish(LAW.denoiser(VE), denoising_mcmc(LAW.denoiser(VE), log_level, x, 0.5), groups=0)
