"""Increasing processes with a known bridge: Gamma increments and counts of events, guided to an observed end v.

Both start from the process with a constant rate, whose message about an exactly observed end is closed, and pay in
the log weight for the rate that depends on the state.

*Gamma*, ``y = x + Gamma(shape alpha, rate b(x))``, auxiliary rate b~; a message ``h(x) = gammapdf(v - x; A, b~)``:

    pull: A' = A + alpha        guide: y = x + Beta(alpha, A) (v - x)
    log w = alpha log(b(x) / b~) - (b(x) - b~) (y - x)

*Events* (a Poisson process, a pure birth process) of intensity ``lambda(x)``, auxiliary lambda~; a message
``h(x) = Poisson(v - x; lambda~ tau)``, tau the time left; the guided intensity is ``lambda(x) (v - x) / (lambda~
tau)``, its next event leaves ``tau exp(-E / k)`` with E ~ Exp(1) and ``k = lambda(x) (v - x) / lambda~``, and

    d log w = (lambda(x) - lambda~) [ (v - x) / lambda~ * (-d log tau) - (-d tau) ].

The distance that remains, not the position, is what the end pins: a Gamma state is carried as `Towards`, which keeps
both, so that no digits are lost as x approaches v; of time, tau is carried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.kernels.kernel import Kernel, draw_seed

Rate = Callable[[Tensor], Tensor] | float


class Towards(NamedTuple):
    """A state on its way to an end: the position ``x (batch,)`` and the distance ``left = v - x`` that remains."""

    x: Tensor
    left: Tensor


@dataclass(frozen=True)
class GammaMessage:
    """``h(x) = exp(c) gammapdf(v - x; shape, rate)``: what an exactly observed end v says of earlier states.

    Args:
        end: v, a number or ``(batch,)``.
        shape: A, the sum of the shapes of the increments up to the end; 0 is the end itself.
        rate: b~ of the auxiliary process.
    """

    end: float | Tensor
    rate: float
    shape: float = 0.0
    c: float | Tensor = 0.0

    def start(self, x: float | Tensor) -> Towards:
        """The state at position x."""
        x = torch.as_tensor(x, dtype=torch.float64)
        x = x.reshape(-1) if x.ndim == 0 else x
        left = self.end - x
        if bool((left <= 0).any()):
            raise InputError(f"an increasing process starts below its end: the distance left is {float(left.min()):g}")
        return Towards(x, left)

    def __call__(self, state: Towards | Tensor) -> Tensor:
        left = state.left if isinstance(state, Towards) else self.end - state
        if self.shape == 0:
            raise InputError("the message at the end itself is a point mass: pull it through the last increment")
        law = torch.distributions.Gamma(torch.tensor(self.shape, dtype=torch.float64), self.rate, validate_args=False)
        inside = left > 0
        return torch.where(inside, self.c + law.log_prob(torch.where(inside, left, 1.0)), -torch.inf)


@dataclass(frozen=True)
class GammaIncrement(Kernel):
    """``y = x + Gamma(shape, rate b(x))``; the pull is that of the constant rate of the message.

    Args:
        shape: alpha of the increment, above zero (proportional to its length of time for a Gamma process).
        rate: b, a number or a function of positions ``(batch,)``, above zero.

    The estimate of the density of the end is ``exp(message(start) + log weights)``, averaged over paths.
    """

    shape: float
    rate: Rate

    def __post_init__(self) -> None:
        if not self.shape > 0:
            raise InputError(f"the shape of a Gamma increment is above zero, got {self.shape:g}")

    def draw(self, noise: Noise, shape: Any) -> int:
        return draw_seed(noise)

    def step(self, x: Any, z: int) -> Any:
        position = x.x if isinstance(x, Towards) else x
        jump = _log_gamma_draw(self.shape, position, _generator(z)).exp() / _at(self.rate, position)
        return Towards(x.x + jump, x.left - jump) if isinstance(x, Towards) else x + jump

    def log_prob(self, x: Tensor, y: Tensor, event: int | None = None) -> Tensor:
        law = torch.distributions.Gamma(torch.tensor(self.shape, dtype=torch.float64), _at(self.rate, x))
        return law.log_prob(y - x)

    def pull(self, h: GammaMessage) -> tuple[Kernel, GammaMessage]:
        if not isinstance(h, GammaMessage):
            return super().pull(h)
        return _GammaBridge(self.shape, h), GammaMessage(h.end, h.rate, h.shape + self.shape, h.c)

    def guide(self, residual: Any, x: Towards, z: int) -> tuple[Towards, Tensor]:
        y = residual.step(x, z)
        b, aux = _at(self.rate, x.x), residual.later.rate
        if bool((b <= 0).any()):
            raise InputError(f"the rate of a Gamma increment is above zero; got {float(b.min()):g} on the path")
        return y, self.shape * torch.log(b / aux) - (b - aux) * (x.left - y.left)


@dataclass(frozen=True)
class _GammaBridge(Kernel):
    """``left <- left (1 - Beta(alpha, A))``; the last increment (A = 0) takes all that is left."""

    shape: float
    later: GammaMessage

    def draw(self, noise: Noise, shape: Any) -> int:
        return draw_seed(noise)

    def step(self, x: Towards, z: int) -> Towards:
        if self.later.shape == 0:
            return Towards(x.x + x.left, torch.zeros_like(x.left))
        generator = _generator(z)
        own = _log_gamma_draw(self.shape, x.left, generator)
        rest = _log_gamma_draw(self.later.shape, x.left, generator)
        left = x.left * torch.sigmoid(rest - own)
        return Towards(x.x + x.left * torch.sigmoid(own - rest), left)


@dataclass(frozen=True)
class CountMessage:
    """``h(x) = exp(c) Poisson(v - x; rate tau)``: what an exactly observed count v, a time tau later, says of x.

    Args:
        end: v, a number or ``(batch,)``; rate: lambda~ of the auxiliary process, above zero; tau: the time left.
    """

    end: float | Tensor
    rate: float
    tau: float = 0.0
    c: float | Tensor = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        gap = torch.as_tensor(self.end - x).double()
        mean = torch.tensor(self.rate * self.tau, dtype=torch.float64)
        inside = gap >= 0
        log_p = torch.xlogy(gap.clamp_min(0), mean) - mean - torch.lgamma(gap.clamp_min(0) + 1)
        return torch.where(inside, self.c + log_p, -torch.inf)


@dataclass(frozen=True)
class Events(Kernel):
    """Counts that go up by one with intensity ``rate(x)``, over a time ``dt``: Poisson and pure birth processes.

    Args:
        rate: lambda, a number or a function of counts ``(batch,)``, at least zero.
        dt: the time, above zero.

    A path that cannot reach the end (lambda is zero below it) has log weight minus infinity.
    """

    rate: Rate
    dt: float

    def __post_init__(self) -> None:
        if not self.dt > 0:
            raise InputError(f"dt is a length of time above zero, got {self.dt:g}")

    def draw(self, noise: Noise, shape: Any) -> int:
        return draw_seed(noise)

    def step(self, x: Tensor, z: int) -> Tensor:
        generator, x = _generator(z), x.clone()
        left = torch.full(x.shape, float(self.dt), dtype=torch.float64)
        while True:
            left = left - _exponential(left, generator) / _at(self.rate, x)
            going = left > 0
            if not bool(going.any()):
                return x
            x = x + going.to(x.dtype)

    def pull(self, h: CountMessage) -> tuple[Kernel, CountMessage]:
        if not isinstance(h, CountMessage):
            return super().pull(h)
        if not h.rate > 0:
            raise InputError(f"the auxiliary rate of a count message is above zero, got {h.rate:g}")
        return _EventBridge(self, h), CountMessage(h.end, h.rate, h.tau + self.dt, h.c)

    def guide(self, residual: Any, x: Tensor, z: int) -> tuple[Tensor, Tensor]:
        return residual.move(x, z)


@dataclass(frozen=True)
class _EventBridge(Kernel):
    """Events of the guided intensity, while the time left falls from ``later.tau + dt`` to ``later.tau``."""

    events: Events
    later: CountMessage

    def draw(self, noise: Noise, shape: Any) -> int:
        return draw_seed(noise)

    def step(self, x: Tensor, z: int) -> Tensor:
        return self.move(x, z)[0]

    def move(self, x: Tensor, z: int) -> tuple[Tensor, Tensor]:
        """``(y, log weight)``: every round moves each path to its next event, or to the end of the interval."""
        aux, stop, generator = self.later.rate, self.later.tau, _generator(z)
        tau = torch.full(x.shape, stop + self.events.dt, dtype=torch.float64)
        log_weight, x = torch.zeros_like(tau), x.clone()
        # started past the end: the message is zero there, and stays so
        log_weight = torch.where(self.later.end - x < 0, -torch.inf, log_weight)
        while bool((tau > stop).any()):
            rate, gap = _at(self.events.rate, x).double(), (self.later.end - x).double().clamp_min(0)
            going = tau > stop
            decay = -_exponential(tau, generator) * aux / torch.where(rate * gap > 0, rate * gap, 1.0)
            after = torch.where(rate * gap > 0, tau * decay.exp(), torch.full_like(tau, stop))
            event = going & (after > stop)
            after = torch.where(event, after, torch.full_like(tau, stop))
            # an exactly observed end (stop = 0) is reached with no gap left, or never
            stuck = going & ~event & (gap > 0) & (after == 0)
            shrink = torch.where(gap > 0, gap / aux * torch.log(tau / torch.where(after > 0, after, tau)), 0.0)
            paid = (rate - aux) * (shrink - (tau - after))
            log_weight = torch.where(stuck, -torch.inf, log_weight + torch.where(going, paid, 0.0))
            x, tau = x + event.to(x.dtype), torch.where(going, after, tau)
        return x, log_weight


def _at(rate: Rate, x: Tensor) -> Tensor:
    return rate(x) if callable(rate) else torch.full(x.shape, float(rate), dtype=torch.float64)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _exponential(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty_like(like).exponential_(generator=generator)


def _log_gamma_draw(shape: float, like: Tensor, generator: torch.Generator) -> Tensor:
    """log of a Gamma(shape, 1) draw for each element: ``log Gamma(shape + 1) + log(U) / shape`` never underflows."""
    # the squeeze method of Marsaglia and Tsang (2000) for a shape of at least one, on all that are not yet accepted
    d = shape + 1 - 1 / 3
    out, todo = torch.empty(like.shape, dtype=torch.float64), torch.ones(like.shape, dtype=torch.bool)
    while bool(todo.any()):
        z = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        v = (1 + z / (9 * d) ** 0.5) ** 3
        u = torch.rand(like.shape, generator=generator, dtype=torch.float64)
        good = todo & (v > 0)
        log_v = torch.where(good, v, 1.0).log()
        good &= u.log() < 0.5 * z * z + d - d * v + d * log_v
        out = torch.where(good, torch.as_tensor(d, dtype=torch.float64).log() + log_v, out)
        todo &= ~good
    return out - _exponential(out, generator) / shape
