"""Inner moves: Markov chains on a log density, for the levels at which a sampler lingers.

All chains of a batch move together, each on its own noise.  With pi = exp(f), s = grad f and a step size e,

==========  ==========================================================================  ==========================
langevin    ``x += e s(x) + sqrt(2 e) z``; with momentum m a damped velocity            biased by O(e), no rejection
metropolis  ``x + e z``, accepted with probability ``min(1, pi(x')/pi(x))``              needs no gradient
hmc         leapfrog of ``f(x) - |p|^2/2`` with fresh p, accepted by the energy it lost  exact
mala        Langevin's proposal, accepted: hmc of one leap of length ``sqrt(2 e)``       exact
==========  ==========================================================================  ==========================

"Exact" means that pi is left as it is at any step size (Metropolis et al. 1953; Duane et al. 1987; Roberts and Tweedie
1996).  A step may differ for each chain and each element, which is a diagonal preconditioner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.noise import Noise
from retrodict.kernels.laws import event_sum

#: ``x (batch, *shape) -> (batch,)``, unnormalised.
LogDensity = Callable[[Tensor], Tensor]
#: ``x -> grad f(x)``, of the shape of x.
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Moved:
    """Where chains went: states ``(batch, *shape)`` and the share of moves that each accepted ``(batch,)``."""

    x: Tensor
    accepted: Tensor


def score_of(log_density: LogDensity) -> Score:
    """The gradient of a log density by automatic differentiation."""

    def score(x: Tensor) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(_values(log_density, at).sum(), at)
        return slope

    return score


def langevin(
    log_density: LogDensity | None,
    x: Tensor,
    step: Any,
    n: int,
    noise: Noise,
    *,
    score: Score | None = None,
    momentum: float = 0.0,
) -> Tensor:
    """Unadjusted Langevin: n moves of size ``step``.

    Args:
        log_density: f; not needed where ``score`` is given.
        step: e, positive: a number, ``(batch,)``, or what broadcasts against x.
        score: grad f, instead of automatic differentiation.
        momentum: m in [0, 1): ``v = m v + sqrt(e) s + sqrt(2 (1 - m)) z, x += sqrt(e) v`` from ``v = z``, damped
            Hamiltonian moves without rejection; 0 is plain Langevin.

    Returns:
        states ``(batch, *shape)``; their law is off by O(step).
    """
    size = _step(step, n, x)
    require(0 <= momentum < 1, f"momentum is in [0, 1), got {momentum}")
    slope = _score(log_density, score)
    velocity = _normal(noise, x) if momentum > 0 else torch.zeros_like(x)
    for _ in range(n):
        z = _normal(noise, x)
        velocity = momentum * velocity + size.sqrt() * slope(x) + (2 * (1 - momentum)) ** 0.5 * z
        x = x + size.sqrt() * velocity
    return x


def metropolis(log_density: LogDensity, x: Tensor, step: Any, n: int, noise: Noise) -> Moved:
    """Random-walk Metropolis: n proposals of standard deviation ``step``; f is a black box."""
    size = _step(step, n, x)
    now, accepted = _values(log_density, x), _counter(x)
    for _ in range(n):
        proposal = x + size * _normal(noise, x)
        there = _values(log_density, proposal)
        take = _take(there - now, noise)
        x, now = _where(take, proposal, x), torch.where(take, there, now)
        accepted = accepted + take
    return Moved(x, accepted / max(n, 1))


def hmc(
    log_density: LogDensity, x: Tensor, step: Any, n: int, noise: Noise, *, leaps: int = 10, score: Score | None = None
) -> Moved:
    """Hamiltonian Monte Carlo: n trajectories of ``leaps`` leapfrog steps of length ``step``, each accepted or not."""
    size = _step(step, n, x)
    require(isinstance(leaps, int) and leaps >= 1, f"leaps is an integer of at least 1, got {leaps!r}")
    slope = _score(log_density, score)
    now, accepted = _values(log_density, x), _counter(x)
    for _ in range(n):
        p = _normal(noise, x)
        proposal, q = leapfrog(slope, x, p, size, leaps)
        there = _values(log_density, proposal)
        gain = there - now + 0.5 * event_sum(p.double() ** 2 - q.double() ** 2)
        take = _take(gain, noise)
        x, now = _where(take, proposal, x), torch.where(take, there, now)
        accepted = accepted + take
    return Moved(x, accepted / max(n, 1))


def mala(log_density: LogDensity, x: Tensor, step: Any, n: int, noise: Noise, *, score: Score | None = None) -> Moved:
    """Metropolis-adjusted Langevin: n proposals ``x + e s + sqrt(2 e) z``."""
    return hmc(log_density, x, (2 * _step(step, n, x)).sqrt(), n, noise, leaps=1, score=score)


def leapfrog(score: Score, x: Tensor, p: Tensor, step: Tensor | float, leaps: int) -> tuple[Tensor, Tensor]:
    """``(x, p)`` after ``leaps`` leapfrog steps: volume-preserving, and its own inverse under ``p -> -p``."""
    p = p + 0.5 * step * score(x)
    for i in range(leaps):
        x = x + step * p
        p = p + (step if i < leaps - 1 else 0.5 * step) * score(x)
    return x, p


# -- helpers --------------------------------------------------------------------------------------------------


def _step(step: Any, n: int, x: Tensor) -> Tensor:
    """The step against x, checked."""
    require(isinstance(n, int) and n >= 0, f"n is a number of moves, an integer of at least 0; got {n!r}")
    size = torch.as_tensor(step, dtype=x.dtype, device=x.device)
    if size.ndim == 1 and len(size) == len(x):
        size = size.reshape(-1, *(1,) * (x.ndim - 1))
    if not bool((torch.isfinite(size) & (size > 0)).all()):
        raise InputError(f"a step is positive and finite, got {step!r}")
    return size


def _score(log_density: LogDensity | None, score: Score | None) -> Score:
    if score is not None:
        return score
    if log_density is None:
        raise InputError("give a log density or its score")
    return score_of(log_density)


def _values(log_density: LogDensity, x: Tensor) -> Tensor:
    out = log_density(x)
    if out.shape != (len(x),):
        raise InputError(f"a log density of {len(x)} chains has shape ({len(x)},), got {tuple(out.shape)}")
    return out.double()


def _take(gain: Tensor, noise: Noise) -> Tensor:
    """Which proposals are accepted; one whose gain is NaN is not."""
    return noise.uniform(()).to(gain.device).log() < gain


def _where(take: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(take.reshape(-1, *(1,) * (a.ndim - 1)), a, b)


def _normal(noise: Noise, x: Tensor) -> Tensor:
    return noise.normal(tuple(x.shape[1:])).to(x)


def _counter(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.float64, device=x.device)
