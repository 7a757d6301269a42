"""Denoisers in closed form, shown to a sampler as a black box, and a record of what it asked.

Whatever convention a sampler keeps its state in, ``x = alpha x0 + sigma z``, the pair ``y = x/alpha``,
``rho = sigma/alpha`` is the same for all, and so is the flow that they integrate,

    dy/dlambda = D(y, rho) - y        lambda = -log rho

A `Probe` answers with a closed-form ``D`` and writes down every ``(rho, y)``.  The state of the *last* evaluation is
what is compared with the exact flow: how a sampler then gets rid of the last noise is a question of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.overrides import TorchFunctionMode

from retrodict.denoisers.exact import GaussianMixture
from retrodict.processes import VE

#: ``(y, rho) -> posterior mean``.
Law = Callable[[Tensor, float], Tensor]

#: Three overlapping components in the plane: smooth, so that orders show at few steps.
SMOOTH = GaussianMixture(
    [0.2861, 0.4715, 0.2424],
    [[0.5884, -0.3353], [-0.4793, -1.8076], [1.5667, -0.9498]],
    [0.4963**2, 0.6136**2, 0.9542**2],
)
#: Four components on the line, two of them narrow: what budgets are judged on.
MODES = GaussianMixture([0.3, 0.2, 0.35, 0.15], [[-1.6], [-0.5], [0.7], [1.8]], [0.04, 0.01, 0.09, 0.0225])
MEAN, VARIANCE = 0.7, 0.25  # of the Gaussian


def mixture(law: GaussianMixture) -> Law:
    """The exact denoiser of a mixture."""
    path = VE(1e-6, 1e6)
    inner = law.denoiser(path)
    return lambda y, rho: inner(y, float(path.time_at(-math.log(rho)))) if math.isfinite(rho) else law.mean.expand_as(y)


def constant(value: float) -> Law:
    """D = value."""
    return lambda y, rho: torch.full_like(y, value)


def gaussian(y: Tensor, rho: float) -> Tensor:
    """The exact denoiser of N(`MEAN`, `VARIANCE`) in the first coordinate, its linear part alone in all others."""
    keep = VARIANCE / (VARIANCE + rho**2) if math.isfinite(rho) else 0.0
    D = keep * y if math.isfinite(rho) else torch.zeros_like(y)
    D[:, :1] += (1 - keep) * MEAN
    return D


@dataclass
class Probe:
    """What samplers call: ``(x, alpha, sigma) -> posterior mean``; ``rho`` and ``y`` of every call are kept."""

    law: Law
    rho: list[float] = field(default_factory=list)
    y: list[Tensor] = field(default_factory=list)

    def __call__(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        rho = sigma / alpha if alpha > 0 else math.inf
        y = x.double() / alpha if alpha > 0 else x.double()
        self.rho.append(rho)
        self.y.append(y)
        return self.law(y, rho)


class Flow:
    """The exact flow ``y(lambda)`` of a law from one state on, by an adaptive method of order 8 with dense output."""

    def __init__(self, law: Law, y: Tensor, rho: float, lowest: float, rtol: float = 1e-10) -> None:
        self.shape = y.shape

        def slope(lam: float, flat: np.ndarray) -> np.ndarray:
            state = torch.from_numpy(flat).reshape(self.shape)
            return (law(state, math.exp(-lam)) - state).numpy().ravel()

        span = (-math.log(rho), -math.log(lowest))
        self.solved = solve_ivp(
            slope, span, y.double().numpy().ravel(), method="DOP853", rtol=rtol, atol=rtol, dense_output=True
        )

    def __call__(self, rho: float) -> Tensor:
        return torch.from_numpy(self.solved.sol(-math.log(rho))).reshape(self.shape)


class Basis(TorchFunctionMode):
    """While active, the m-th draw of normals is the unit vector of coordinate ``first + m`` (or zero).

    Coordinates do not mix in a linear denoiser, so the coefficient of every noise of a sampler can be read off its
    result: variances without sampling.
    """

    active: ClassVar[Basis | None] = None

    def __init__(self, first: int | None) -> None:
        super().__init__()
        self.first, self.draws = first, 0

    def __enter__(self) -> Basis:
        Basis.active = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        Basis.active = None
        super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return self.unit(out) if func in (torch.randn, torch.randn_like, torch.normal, torch.Tensor.normal_) else out

    def unit(self, out: Tensor) -> Tensor:
        """The next draw, written into ``out``."""
        out.zero_()
        if self.first is not None:
            if self.first + self.draws >= out.shape[-1]:
                raise OverflowError("more draws of noise than coordinates")
            out[..., self.first + self.draws] = 1.0
        self.draws += 1
        return out
