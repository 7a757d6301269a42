"""A scalar linear-Gaussian model as a Feynman-Kac model, and its answers from one dense Gaussian."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retrodict.particles import FeynmanKac

LOG_2PI = math.log(2 * math.pi)


def log_normal(residual: Tensor, scale: float | Tensor) -> Tensor:
    scale = torch.as_tensor(scale, dtype=torch.float64)
    return -0.5 * ((residual / scale) ** 2 + LOG_2PI) - scale.log()


class Linear(FeynmanKac):
    """x_0 ~ N(0, s^2/(1-a^2)), x_k = a x_{k-1} + s e, y_k = x_k + r e; data ``y (S, n+1)``, NaN is missing.

    ``guided`` proposes from the exact one-step posterior.
    """

    def __init__(self, y: Tensor, a=0.9, s=0.6, r=1.0, *, guided=False, lengths=None, dtype=torch.float64) -> None:
        self.y, self.a, self.s, self.r, self.guided = y, a, s, r, guided
        self.series, self.n, self.lengths, self.dtype = len(y), y.shape[1] - 1, lengths, dtype
        self.s0 = s / math.sqrt(1 - a * a)

    def log_g(self, k: int, x: Tensor) -> Tensor:
        y = self.y[:, k].view(-1, *[1] * (x.ndim - 1))
        return torch.where(torch.isnan(y), 0.0, log_normal(y.nan_to_num() - x, self.r))

    def proposal(self, k: int, mean: Tensor, s: float) -> tuple[Tensor, float]:
        if not self.guided:
            return mean, s
        y = self.y[:, k].view(-1, *[1] * (mean.ndim - 1))
        gain = s * s / (s * s + self.r**2)
        return mean + gain * (y - mean), s * math.sqrt(1 - gain)

    def start(self, particles, noise):
        z = noise.normal((particles,)).to(self.dtype)
        mean, scale = self.proposal(0, torch.zeros_like(z), self.s0)
        x = mean + scale * z
        return x, self.log_start(x)

    def draw(self, moves, particles, noise):
        return noise.normal((moves, particles)).to(self.dtype).unbind(1)

    def move(self, k, x, z):
        mean, scale = self.proposal(k, self.a * x, self.s)
        y = mean + scale * z
        if self.lengths is not None:
            running = torch.tensor([k <= last for last in self.lengths]).unsqueeze(1)
            return torch.where(running, y, x), torch.where(running, self.log_move(k, x, y), 0.0)
        return y, self.log_move(k, x, y)

    def log_transition(self, k, x, y):
        return log_normal(y - self.a * x, self.s)

    def log_transition_bound(self, k):
        return torch.full((self.series,), -0.5 * LOG_2PI - math.log(self.s), dtype=torch.float64)

    def log_start(self, x):
        mean, scale = self.proposal(0, torch.zeros_like(x), self.s0)
        return log_normal(x, self.s0) + self.log_g(0, x) - log_normal(x - mean, scale)

    def log_move(self, k, x, y):
        mean, scale = self.proposal(k, self.a * x, self.s)
        return self.log_transition(k, x, y) + self.log_g(k, y) - log_normal(y - mean, scale)


def simulate(n: int, seed: int, a=0.9, s=0.6, r=1.0) -> Tensor:
    """Data ``(n+1,)`` of the model."""
    g = torch.Generator().manual_seed(seed)
    e = torch.randn(2, n + 1, generator=g, dtype=torch.float64)
    x = [s / math.sqrt(1 - a * a) * e[0, 0]]
    for k in range(n):
        x.append(a * x[-1] + s * e[0, k + 1])
    return torch.stack(x) + r * e[1]


def dense(y: Tensor, a, s, r) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior mean ``(n+1,)`` and covariance of the path, and the log evidence: differentiable in a, s, r."""
    a, s, r = (torch.as_tensor(v, dtype=torch.float64) for v in (a, s, r))
    n = len(y)
    lag = (torch.arange(n)[:, None] - torch.arange(n)[None]).abs()
    prior = s**2 / (1 - a**2) * a**lag
    seen = ~torch.isnan(y)
    joint = prior[seen][:, seen] + r**2 * torch.eye(int(seen.sum()), dtype=torch.float64)
    gain = torch.linalg.solve(joint, prior[seen]).T
    mean = gain @ y[seen]
    evidence = -0.5 * (y[seen] @ torch.linalg.solve(joint, y[seen]) + torch.logdet(joint) + int(seen.sum()) * LOG_2PI)
    return mean, prior - gain @ prior[seen], evidence
