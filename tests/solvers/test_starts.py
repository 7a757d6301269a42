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
from retrodict.solvers.starts import squared_error
from solvers.solver_cases import ONE_ENDED, Blurred, digits

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


class Restorer(Blurred):
    """The exact posterior of digits, each blurred by .15, given their 4x4 means with noise .2."""

    def __init__(self, data: Tensor) -> None:
        super().__init__(data, rd.VP("cosine"), {"y": None})
        self.low = coarse(data)

    def evidence(self, **condition: Any) -> Tensor:
        return -0.5 * torch.cdist(condition["y"], self.low) ** 2 / 0.05


def coarse(x: Tensor) -> Tensor:
    """4x4 block means of 8x8 pictures."""
    return torch.nn.functional.avg_pool2d(x.view(-1, 1, 8, 8), 2).flatten(1)


def outlines(x: Tensor, target: Tensor) -> Tensor:
    """Differences of pixels and of the strength of edges: a distance that punishes blur."""
    a, b = (v.view(-1, 8, 8) for v in (x, target))
    strength = lambda v: torch.cat([v.diff(dim=1).flatten(1), v.diff(dim=2).flatten(1)], 1).abs()  # noqa: E731
    return (a - b).abs().flatten(1).mean(1) + (strength(a) - strength(b)).abs().mean(1)


@pytest.mark.parametrize("distance", [squared_error, outlines])
def test_super_resolution_of_digits(distance):
    """From 4x4 to 8x8 at six evaluations: on held-out pictures the start that was searched on others is in the best
    tenth of the random ones."""
    pictures = digits(1510)
    denoiser, plan = Restorer(pictures[:600]), rd.plan("dpm-solver++", rd.VP("cosine"), nfe=6)
    known, others = pictures[1300:1360], pictures[1450:1510]
    found = select_start(plan, denoiser, known, candidates=40, zero=False, distance=distance, y=coarse(known))
    held = select_start(
        plan, denoiser, others, candidates=found.candidates, zero=False, distance=distance, y=coarse(others)
    )
    losses = held.losses.mean(1)
    assert float((losses < losses[found.best]).double().mean()) <= 0.1
    assert float(losses[found.best]) < float(losses.median())


def test_modes_that_flip_break_the_agreement():
    y = torch.tensor([[-1.0], [1.0]]).double()
    found = select_start(PLAN, Flipping(), y.sign(), candidates=60, y=y)
    assert found.agreement < 0.5


def test_the_start_is_one_for_sample():
    found = select_start(PLAN, Posterior(), Y, candidates=4, y=Y)
    x = rd.sample(Posterior(), 6, plan=PLAN, init=found.x, y=Y, progress=False).x
    assert float((x.double() - Y).abs().max()) < 2e-2
    for targets, more, match in [
        (Y[:0], {}, "at least one"),
        (Y, {"candidates": torch.zeros(3, 5)}, "shape of targets"),
    ]:
        with pytest.raises(InputError, match=match):
            select_start(PLAN, Posterior(), targets, y=targets, **more)
    with pytest.raises(InputError, match="deterministic"):
        select_start(rd.plan("ddpm", VP, steps=3), Posterior(), Y, y=Y)
