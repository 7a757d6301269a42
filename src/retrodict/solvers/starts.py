"""Optimal boundary conditions: one start for all inputs, searched once (Ma et al. 2024).

A deterministic plan maps a start and a condition to a restoration, h(x_T, y).  Starts differ in quality, nearly the
same way for every y, so the best of many candidates on a few known pairs (y, z) restores other inputs better than a
random start does:

    x* = argmin over candidates of sum_i distance(h(x_T, y_i), z_i)

For squared error and a Gaussian conditional law the best start of all is known, x_T = 0, which gives the posterior
mean; it takes part as a candidate.  A search pays for distances that punish blur, and not where the posterior has modes
that different inputs weigh differently; `Start.agreement` tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputTypeError, require
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.solvers import general
from retrodict.solvers.plan import Plan


@dataclass(frozen=True)
class Start:
    """A searched start.

    Attributes:
        x: ``(1, *shape)``, for ``sample(init=...)``.
        losses: ``(candidates, pairs)`` float64; candidate 0 is x_T = 0 where it took part.
        candidates: ``(candidates, *shape)``.
    """

    x: Tensor
    losses: Tensor
    candidates: Tensor

    @property
    def best(self) -> int:
        """Index of the start that was chosen."""
        return int(self.losses.mean(1).argmin())

    @property
    def agreement(self) -> float:
        """Mean rank correlation of the candidates' losses between two inputs: 1 if their order does not depend on the
        input; below about a half one start for all is not worth much."""
        ranks = self.losses.argsort(0).argsort(0).double()
        ranks = (ranks - ranks.mean(0)) / ranks.std(0)
        pairs = ranks.shape[1]
        if pairs < 2:
            return 1.0
        correlation = ranks.T @ ranks / (len(ranks) - 1)
        return float((correlation.sum() - pairs) / (pairs * (pairs - 1)))


def squared_error(x: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample ``(batch,)``."""
    return (x - target).double().flatten(1).square().mean(1)


@torch.no_grad()
def select_start(
    plan: Plan,
    denoiser: Denoiser,
    targets: Tensor,
    *,
    candidates: int | Tensor = 64,
    distance: Callable[[Tensor, Tensor], Tensor] = squared_error,
    zero: bool = True,
    seed: int = 0,
    batch_size: int = 1024,
    **condition: Any,
) -> Start:
    """Search a start.

    Args:
        plan: deterministic; denoiser: conditional.
        targets: z ``(pairs, *shape)`` in the model's units; condition: y, tensors of length ``pairs`` or shared values.
        candidates: how many prior draws to try, or the starts themselves ``(candidates, *shape)``.
        distance: ``(x, target) -> (batch,)``; zero: whether x_T = 0 takes part.
    """
    if not isinstance(plan, Plan) or not isinstance(denoiser, Denoiser):
        raise InputTypeError(f"a Plan and a Denoiser are needed, got {type(plan).__name__}, {type(denoiser).__name__}")
    require(not plan.noises and not plan.opaque, "the search needs a deterministic plan: use eta=0")
    require(len(targets) >= 1, "the search needs at least one target")
    pairs, shape = len(targets), tuple(targets.shape[1:])
    if isinstance(candidates, int):
        require(candidates >= 1, f"candidates is at least 1, got {candidates}")
        drawn = KeyedNoise(seed, candidates, dtype=targets.dtype, device=targets.device).stream("prior")
        candidates = denoiser.prior(shape, drawn)
    require(
        tuple(candidates.shape[1:]) == shape,
        f"candidates have the shape of targets, (n, {', '.join(map(str, shape))}), got {tuple(candidates.shape)}",
    )
    starts = torch.cat([torch.zeros_like(candidates[:1]), candidates]) if zero else candidates
    losses = torch.empty(len(starts) * pairs, dtype=torch.float64)
    for index in torch.arange(len(starts) * pairs, device=targets.device).split(batch_size):
        which, pair = index // pairs, index % pairs
        own = {k: v[pair] if isinstance(v, Tensor) and v.ndim and len(v) == pairs else v for k, v in condition.items()}
        noise = KeyedNoise(0, len(index), dtype=targets.dtype, device=targets.device)
        x = general.run(plan, denoiser, starts[which], noise, own).x
        losses[index.cpu()] = distance(x, targets[pair]).double().cpu()
    losses = losses.view(len(starts), pairs)
    best = int(losses.mean(1).argmin())
    return Start(starts[best : best + 1], losses, starts)
