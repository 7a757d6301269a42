"""The chain over states and levels keeps its law; the argmax of the level does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.exact import GaussianMixture
from retrodict.solvers.denoising_mcmc import denoising_mcmc

VE: Any = rd.VE(0.05, 10.0)
LAW = GaussianMixture([0.25] * 4, [[2.0, 2.0], [-2.0, 2.0], [2.0, -2.0], [-2.0, -2.0]], [0.09] * 4)


def log_level(y: Tensor, sigma: Tensor) -> Tensor:
    """Log densities of the blurred mixture at every level."""
    square = (y[:, None] - LAW.means[None]).square().sum(-1)[:, :, None]  # (batch, 4, 1)
    variance = (0.09 + sigma**2)[None, None]
    return torch.logsumexp(-0.5 * square / variance - variance.log(), 1)


def _chain(choose: Any = log_level, steps: int = 400) -> Any:
    x = VE.corrupt(
        LAW.sample(400, seed=0), 0.5, torch.randn(400, 2, generator=torch.Generator().manual_seed(1)).double()
    )
    words: dict[str, Any] = {"levels": 40, "range": (10.0, 0.05), "within": 0.09, "kappa": 0.1}
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


def test_plans_go_on_from_there():
    """The states kept are noised data at their times: a plan from a time not below theirs makes samples."""
    walk = _chain(steps=40)
    start = float(walk.t[-1].max())
    at = walk.t[-1]
    x = walk.x[-1]
    more = (VE.sigma(start) ** 2 - VE.sigma(at) ** 2).clamp_min(0).sqrt()[:, None]
    x = x + more * torch.randn(400, 2, generator=torch.Generator().manual_seed(3)).double()
    out = rd.sample(LAW.denoiser(VE), 400, solver="heun", steps=6, start=start, init=x, progress=False).x.double()
    distance = (out[:, None] - LAW.means[None]).square().sum(-1).amin(1)
    assert float(distance.mean()) == pytest.approx(2 * 0.09, abs=0.06)


def test_words_that_cannot_be():
    x = LAW.sample(4)
    for words, match in [
        ({"kappa": 0.0}, "kappa"),
        ({"skip": 0}, "skip"),
        ({"range": (100.0, 1.0)}, "inside the path"),
    ]:
        with pytest.raises(InputError, match=match):
            denoising_mcmc(LAW.denoiser(VE), log_level, x, 0.5, **words)
