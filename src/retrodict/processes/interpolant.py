"""Stochastic interpolants: paths between two data sets, ``x_t = a(t) x0 + b(t) x1 + gamma(t) z``.

======================  =============================  =============================  ======================
kind                    a                              b                              ends
======================  =============================  =============================  ======================
linear                  1 - t                          t                              x0, x1
trigonometric           sqrt(1 - gamma^2) cos(pi t/2)  sqrt(1 - gamma^2) sin(pi t/2)  x0, x1
encoding-decoding       cos^2(pi t) for t < 1/2        cos^2(pi t) for t > 1/2        x0, x1, by pure noise
mirror                  1                              0                              x0 at both ends
one-sided               1 - t                          (noise: sigma = t)             x0, standard normal
======================  =============================  =============================  ======================

with gamma = scale times "brownian" sqrt(t (1 - t)), "quadratic" t (1 - t), "sin2" sin^2(pi t), or "zero".
The law of x1 is that of a second data set, paired or not; given one end's estimates the other quantities
follow (`velocity`, `score`, `ends`), so that any noise level of the sampler can be chosen after training.

Source: Albergo, Boffi and Vanden-Eijnden (2023), with their clock reversed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, near, require
from retrodict.core.noise import Noise
from retrodict.processes.gaussian import GaussianPath, as_time
from retrodict.processes.process import processes


@dataclass(frozen=True)
class Bump:
    """A noise profile of unit scale: gamma, gamma', and gamma gamma' in a form finite at both ends."""

    value: Callable[[Tensor], Tensor]
    rate: Callable[[Tensor], Tensor]
    product: Callable[[Tensor], Tensor]
    peak: float


BUMPS: dict[str, Bump] = {
    "brownian": Bump(
        lambda t: (t * (1 - t)).clamp_min(0).sqrt(),
        lambda t: (0.5 - t) * (t * (1 - t)).rsqrt(),
        lambda t: 0.5 - t,
        0.5,
    ),
    "quadratic": Bump(lambda t: t * (1 - t), lambda t: 1 - 2 * t, lambda t: t * (1 - t) * (1 - 2 * t), 0.25),
    "sin2": Bump(
        lambda t: _sin_pi(t) ** 2,
        lambda t: math.pi * torch.sin(2 * math.pi * t),
        lambda t: _sin_pi(t) ** 2 * math.pi * torch.sin(2 * math.pi * t),
        1.0,
    ),
    "zero": Bump(torch.zeros_like, torch.zeros_like, torch.zeros_like, 0.0),
}

KINDS = ("linear", "trigonometric", "encoding-decoding", "mirror", "one-sided")


@processes.register("interpolant")
class Interpolant(GaussianPath):
    """A stochastic interpolant (module docstring).

    Args:
        kind: of the coefficients of the ends.
        gamma: the noise profile; None is "sin2" for "encoding-decoding", whose middle is pure noise, and
            "brownian" otherwise.  A one-sided path takes none: its end is the noise.
        scale: factor on gamma.

    >>> path = Interpolant("linear", "brownian", scale=0.5)
    >>> tuple(round(float(c(0.5)), 3) for c in (path.alpha, path.beta, path.sigma))
    (0.5, 0.5, 0.25)
    """

    def __init__(self, kind: str = "linear", gamma: str | None = None, scale: float = 1.0) -> None:
        if kind not in KINDS:
            raise InputError(f"unknown interpolant {kind!r}; known: {', '.join(KINDS)}.{near(kind, KINDS)}")
        if gamma is not None and gamma not in BUMPS:
            raise InputError(f"unknown gamma {gamma!r}; known: {', '.join(BUMPS)}.{near(gamma, BUMPS)}")
        require(scale > 0, f"scale of gamma is positive, got {scale}; for no noise use gamma='zero'")
        require(kind != "one-sided" or gamma is None, "a one-sided interpolant has no gamma: its end is the noise")
        self.kind, self.gamma, self.scale = kind, gamma, float(scale)
        default = "sin2" if kind == "encoding-decoding" else "brownian"
        self._bump = BUMPS[default if gamma is None else gamma]
        if kind == "trigonometric":
            require(
                scale * self._bump.peak <= 1,
                f"a trigonometric interpolant needs gamma <= 1; scale {scale} exceeds it",
            )
        one_end = kind in ("mirror", "one-sided")
        super().__init__(self._a, self._s, None if one_end else self._b)
        self._x0_at_both_ends = kind == "mirror"

    # -- coefficients ---------------------------------------------------------------------------------------

    def _a(self, t: Tensor) -> Tensor:
        if self.kind in ("linear", "one-sided"):
            return 1 - t
        if self.kind == "mirror":
            return torch.ones_like(t)
        if self.kind == "trigonometric":
            return self._damping(t) * _cos_half_pi(t)
        return torch.where(t < 0.5, _sin_pi(0.5 - t) ** 2, 0.0)

    def _b(self, t: Tensor) -> Tensor:
        return t if self.kind == "linear" else self._a(1 - t)  # every profile is symmetric in time

    def _s(self, t: Tensor) -> Tensor:
        return t if self.kind == "one-sided" else self.scale * self._bump.value(t)

    def _damping(self, t: Tensor) -> Tensor:
        """sqrt(1 - gamma^2)."""
        return (1 - self._s(t) ** 2).clamp_min(0).sqrt()

    def rates(self, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = as_time(t)
        da = self._a_rate(t)
        if self.kind == "one-sided":
            return da, torch.zeros_like(t), torch.ones_like(t)
        db = torch.zeros_like(t) if self._beta is None else -self._a_rate(1 - t)
        return da, db, self.scale * self._bump.rate(t)

    def _a_rate(self, t: Tensor) -> Tensor:
        if self.kind in ("linear", "one-sided"):
            return -torch.ones_like(t)
        if self.kind == "mirror":
            return torch.zeros_like(t)
        if self.kind == "trigonometric":
            damping = self._damping(t)
            slope = torch.where(damping > 0, -self.noise_rate(t) / damping, 0.0)
            return slope * _cos_half_pi(t) - damping * (math.pi / 2) * torch.sin(math.pi / 2 * t)
        return torch.where(t < 0.5, -math.pi * torch.sin(2 * math.pi * t), 0.0)

    def noise_rate(self, t: float | Tensor) -> Tensor:
        t = as_time(t)
        return t if self.kind == "one-sided" else self.scale**2 * self._bump.product(t)

    # -- the process interface ------------------------------------------------------------------------------

    def prior(self, shape: tuple[int, ...], noise: Noise, x1: Tensor | None = None) -> Tensor:
        """``x1`` itself, for two ends; data again for a mirror path, which needs them as ``x1``."""
        if not self._x0_at_both_ends:
            return super().prior(shape, noise, x1)
        if x1 is None:
            raise InputError("a mirror interpolant starts from data: pass them as x1")
        return x1

    def config(self) -> dict[str, Any]:
        options = {"name": "interpolant", "kind": self.kind, "scale": self.scale}
        return options if self.gamma is None else options | {"gamma": self.gamma}


def _sin_pi(t: Tensor) -> Tensor:
    """sin(pi t) on [0, 1], exactly zero at both ends."""
    return torch.sin(math.pi * torch.minimum(t, 1 - t))


def _cos_half_pi(t: Tensor) -> Tensor:
    """cos(pi t / 2), exactly zero at t = 1."""
    return torch.sin(math.pi / 2 * (1 - t))
