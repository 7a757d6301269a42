"""What is measured of weighted samples against exact ones."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from posterior.problems import Problem

DIRECTIONS, PAIRS = 100, 50


def _spread(x: Tensor, weights: Tensor) -> Tensor:
    """Equally weighted samples, by systematic resampling from the middle of each share: nothing is drawn."""
    n = len(x)
    places = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return x[torch.searchsorted(weights.cumsum(0), places).clamp_max(n - 1)]


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    """Sliced 2-Wasserstein distance of two sets of equal size, over fixed directions."""
    directions = torch.randn(DIRECTIONS, x.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    a, b = ((v.double() @ directions.T).sort(0).values for v in (x, y))
    return float((a - b).square().mean().sqrt())


def floor(problem: Problem, n: int) -> float:
    """The same distance between two sets of exact samples: mean of 50 pairs."""
    pairs = [(problem.exact(n, 10_000 + 2 * i), problem.exact(n, 10_001 + 2 * i)) for i in range(PAIRS)]
    return statistics.mean(sliced_wasserstein(a, b) for a, b in pairs)


def measured(problem: Problem, x: Tensor, weights: Tensor, seed: int) -> dict[str, float]:
    """Errors of a weighted set: of the modes' weights, of the law, of the mean; the residual in units of the noise."""
    x, weights = x.double(), weights.double()
    residual = ((x @ problem.A.T - problem.y) / problem.noise).square().mean(1)
    mean = weights @ x
    return {
        "tv": float((weights @ problem.modes(x) - problem.weights).abs().sum() / 2),
        "sw2": sliced_wasserstein(_spread(x, weights), problem.exact(len(x), 50_000 + seed)),
        "residual": float((weights @ residual).sqrt()),
        "mean": float((mean - problem.mean).square().mean().sqrt()),
        "std": float((weights @ (x - mean).square()).mean().sqrt()),
    }
