"""Searched starts against closed forms: how candidates rank under Gaussian and under two-moded posteriors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.denoisers import Denoiser
from retrodict.exact import GaussianMixture
from retrodict.solvers import select_start
from retrodict.solvers.inversion import run
from solvers.solver_cases import ONE_ENDED

VP: Any = ONE_ENDED["vp-linear"]
STD = torch.tensor([0.2, 0.5, 1.0, 0.1]).double()


class Posterior(Denoiser):
    """x0 given y is N(y, diag(STD^2))."""

    def __init__(self) -> None:
        super().__init__(VP, (4,), {"y": None})

    def forward(self, x: Tensor, t: Any, **condition: Any) -> Tensor:
        y = condition["y"]
        alpha, sigma = float(VP.alpha(t)), float(VP.sigma(t))
        return y + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * y)


class Flipping(Denoiser):
    """Two modes at -1 and 1 whose weights depend on the sign of y."""

    def __init__(self) -> None:
        super().__init__(VP, (1,), {"y": None})
        self.laws = [GaussianMixture([w, 1 - w], [[-1.0], [1.0]], [0.04, 0.04]).denoiser(VP) for w in (0.6, 0.4)]

    def forward(self, x: Tensor, t: Any, **condition: Any) -> Tensor:
        return torch.where(condition["y"] < 0, self.laws[0](x, t), self.laws[1](x, t))


PLAN = rd.plan("unipc", VP, steps=12, end=1e-3)
Y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_gaussian_posteriors_rank_starts_alike():
    """Expected losses |C^(1/2) x_T|^2 do not depend on y; zero gives the posterior mean and is best."""
    found = select_start(PLAN, Posterior(), Y, candidates=40, y=Y)
    assert found.agreement > 0.999
    assert found.best == 0 and float(found.losses[0].max()) < 1e-4
    predicted = (STD * found.candidates).square().mean(1)
    assert torch.allclose(found.losses.mean(1), predicted, rtol=0.1, atol=1e-4)


def test_more_candidates_never_hurt():
    drawn = torch.randn(64, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    best = []
    for k in (4, 16, 64):
        found = select_start(PLAN, Posterior(), Y, candidates=drawn[:k], zero=False, y=Y)
        best.append(float(found.losses.mean(1).min()))
    zero = float(select_start(PLAN, Posterior(), Y, candidates=1, y=Y).losses[0].mean())
    assert best[0] >= best[1] >= best[2] > zero and best[2] < best[0]


def test_it_carries_over_to_other_inputs():
    """Held-out error of the chosen start is among the best tenth of random ones."""
    found = select_start(PLAN, Posterior(), Y, candidates=64, zero=False, y=Y)
    others = torch.randn(5, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    losses = torch.stack(
        [
            (run(PLAN, Posterior(), s.expand(5, 4), {"y": others})[0] - others).square().mean()
            for s in torch.cat([found.x, found.candidates])
        ]
    )
    assert float((losses[1:] < losses[0]).double().mean()) <= 0.1


def test_modes_that_flip_break_the_agreement():
    y = torch.tensor([[-1.0], [1.0]]).double()
    found = select_start(PLAN, Flipping(), y.sign(), candidates=60, y=y)
    assert found.agreement < 0.5


def test_the_start_is_one_for_sample():
    found = select_start(PLAN, Posterior(), Y, candidates=4, y=Y)
    x = rd.sample(Posterior(), 6, plan=PLAN, init=found.x, y=Y, progress=False).x
    assert float((x.double() - Y).abs().max()) < 2e-2
    with pytest.raises(InputError, match="deterministic"):
        select_start(rd.plan("ddpm", VP, steps=3), Posterior(), Y, y=Y)
