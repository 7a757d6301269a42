"""A noise source that enumerates instead of drawing, and a finite model that draws from it.

Every random choice of a run takes the next digit of the series' number in a mixed radix, and the series' probability
is multiplied by that of the choice.  A batch of as many series as there are outcomes then goes through the real
engine once, and expectations are finite sums: exact to rounding, at any N that is small enough.
"""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor

from retrodict.core.noise import Noise
from retrodict.particles import FeynmanKac


class Outcomes(Noise):
    """All outcomes of a run at once: ``batch`` series, of which series i takes the choices spelled by i."""

    def __init__(self, batch: int) -> None:
        self.batch, self.dtype, self.device = batch, torch.float64, torch.device("cpu")
        self.left = torch.arange(batch)
        self.used = 1
        self.log_p = torch.zeros(batch, dtype=torch.float64)

    def stream(self, name: str) -> Outcomes:
        return self

    def uniform(self, shape=()) -> Tensor:
        """Not numbers but names: `choose` reads from them which series asks."""
        return torch.arange(self.batch).double().view(-1, *[1] * len(shape)).expand(self.batch, *shape)

    def digits(self, radix: int, count: int) -> Tensor:
        """``(batch, count)`` digits."""
        out = torch.empty(self.batch, count, dtype=torch.int64)
        for i in range(count):
            out[:, i] = self.left % radix
            self.left = self.left // radix
        self.used *= radix**count
        return out

    def outcome(self, p: Tensor, count: int) -> Tensor:
        """``count`` independent choices with probabilities p a series."""
        digits = self.digits(len(p), count)
        self.log_p += torch.log(p)[digits].sum(1)
        return digits

    def choose(self, weights: Tensor, uniforms: Tensor) -> Tensor:
        """Stands in for `resampling.pick`; series that do not ask spend their digits without effect."""
        asking = uniforms.reshape(len(uniforms), -1)[:, 0].long()
        radix, count = weights.shape[-1], uniforms[0].numel()
        digits = self.digits(radix, count)
        found = digits[asking].view(uniforms.shape)
        p = weights.double() / weights.double().sum(-1, keepdim=True)
        p = p.expand(*uniforms.shape[:-1], radix).gather(-1, found)
        factor = torch.full((self.batch,), -count * math.log(radix), dtype=torch.float64)
        factor[asking] = torch.log(p).reshape(len(uniforms), -1).sum(1)
        self.log_p += factor
        return found

    @property
    def p(self) -> Tensor:
        """The probability of every series; sums to one."""
        assert self.used <= self.batch and self.batch % self.used == 0, (self.used, self.batch)
        return torch.exp(self.log_p) * self.used / self.batch


@pytest.fixture
def enumerate_picks(monkeypatch):
    """Route every categorical draw of the room through the given `Outcomes`."""

    def route(noise: Outcomes) -> Outcomes:
        for module in ("engine", "resampling", "backward", "conditional"):
            monkeypatch.setattr(sys.modules[f"retrodict.particles.{module}"], "pick", noise.choose)
        return noise

    return route


class TwoStates(FeynmanKac):
    """A chain on {0, 1} with potentials, its own proposals and perhaps first-stage weights, all asymmetric.

    ``guided`` proposes from q instead of P.
    """

    def __init__(self, n: int, series: int, *, guided: bool = False, look_ahead: bool = False) -> None:
        self.n, self.series = n, series
        d = torch.float64
        self.mu = torch.tensor([0.7, 0.3], dtype=d)
        self.P = torch.tensor([[0.9, 0.1], [0.35, 0.65]], dtype=d)
        self.g = torch.tensor([[0.8, 0.3], [0.15, 1.1], [0.9, 0.05], [0.4, 1.3]], dtype=d)[: n + 1]
        self.q0 = torch.tensor([0.4, 0.6], dtype=d) if guided else self.mu
        self.q = torch.tensor([[0.55, 0.45], [0.2, 0.8]], dtype=d) if guided else self.P
        self.eta = torch.tensor([[0.5, 1.2], [1.7, 0.6], [0.8, 1.1]], dtype=d) if look_ahead else None

    def start(self, particles, noise):
        assert isinstance(noise, Outcomes)
        x = noise.outcome(self.q0, particles)
        return x, self.log_start(x)

    def draw(self, moves, particles, noise):
        assert isinstance(noise, Outcomes)
        low, high = sorted(self.q[:, 0].tolist())  # a uniform falls below, between or above the two rows' steps
        cells = torch.tensor([low, high - low, 1 - high], dtype=torch.float64)
        middles = torch.tensor([low / 2, (low + high) / 2, (1 + high) / 2], dtype=torch.float64)
        for _ in range(moves):
            yield middles[noise.outcome(cells, particles)]

    def move(self, k, x, z):
        y = (z >= self.q[x, 0]).long()
        return y, self.log_move(k, x, y)

    def look_ahead(self, k, x):
        return None if self.eta is None else torch.log(self.eta[k, x])

    def log_transition(self, k, x, y):
        return torch.log(self.P[x, y])

    def log_start(self, x):
        return torch.log(self.mu[x] / self.q0[x] * self.g[0, x])

    def log_move(self, k, x, y):
        return torch.log(self.P[x, y] / self.q[x, y] * self.g[k, y])

    def paths(self) -> tuple[Tensor, Tensor]:
        """All paths ``(2^(n+1), n+1)`` and their unnormalised smoothing probabilities."""
        index = torch.arange(2 ** (self.n + 1))
        paths = torch.stack([(index >> k) & 1 for k in range(self.n + 1)], 1)
        mass = self.mu[paths[:, 0]] * self.g[0, paths[:, 0]]
        for k in range(1, self.n + 1):
            mass = mass * self.P[paths[:, k - 1], paths[:, k]] * self.g[k, paths[:, k]]
        return paths, mass
