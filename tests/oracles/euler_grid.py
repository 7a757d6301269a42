"""One-dimensional Euler chains by quadrature on a grid: evidences and smoothing laws that nothing was tuned to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


@dataclass
class EulerQuadrature:
    """``x' ~ N(x + drift(x) dt, (sigma(x)^2 dt))`` from ``start``, with log-likelihoods at some nodes.

    Args:
        log_g: node -> log-likelihood as a function of the state.
        steps, T: number of Euler steps and the time they cover; low, high, points: of the grid.
    """

    drift: Function
    sigma: Function
    start: float
    log_g: dict[int, Function]
    steps: int = 50
    T: float = 1.0
    low: float = -4.0
    high: float = 4.0
    points: int = 1201

    def __post_init__(self) -> None:
        self.x = torch.linspace(self.low, self.high, self.points, dtype=torch.float64)
        self.dx = float(self.x[1] - self.x[0])
        dt = self.T / self.steps
        start = torch.tensor([self.start], dtype=torch.float64)
        first, kernel = (
            torch.distributions.Normal(x + self.drift(x) * dt, self.sigma(x) * dt**0.5) for x in (start, self.x)
        )
        self.density = first.log_prob(self.x).exp()
        self.kernel = torch.exp(-0.5 * ((self.x[None] - kernel.mean[:, None]) / kernel.stddev[:, None]) ** 2) / (
            kernel.stddev[:, None] * (2 * torch.pi) ** 0.5
        )
        self.kernel *= self.dx

    def _g(self, k: int) -> Tensor:
        return self.log_g[k](self.x).exp() if k in self.log_g else torch.ones_like(self.x)

    def evidence(self) -> float:
        p = self.density * self._g(1)
        for k in range(2, self.steps + 1):
            p = (p @ self.kernel) * self._g(k)
        return float(p.sum() * self.dx)

    def smoothed(self, node: int) -> tuple[float, float]:
        """Mean and variance of the state at a node (1 or later) given everything."""
        p = self.density * self._g(1)
        for k in range(2, node + 1):
            p = (p @ self.kernel) * self._g(k)
        after = torch.ones_like(self.x)
        for k in range(self.steps, node, -1):
            after = self.kernel @ (after * self._g(k))
        p = p * after
        p = p / p.sum()
        mean = (p * self.x).sum()
        return float(mean), float((p * (self.x - mean) ** 2).sum())


def normal(v: float, sd: float) -> Function:
    """log N(v; x, sd^2) as a function of x."""
    return lambda x: torch.distributions.Normal(x, sd).log_prob(torch.tensor(v, dtype=torch.float64))
