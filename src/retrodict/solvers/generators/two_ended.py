"""Solvers in time for paths with two unknown ends, and of the velocity on any path.

On ``x_t = A x0 + B x1 + S z`` the probability-flow velocity is b = A' D + B' D1 + S' Z, with D, D1 the two posterior
means and ``Z = (x - A D - B D1)/S``.  All three vary slowly, so each is interpolated and integrated against its own
exact kernel:

    x_t = x_s + sum_j [ int ell_j dA  D_j  +  int ell_j dB  D1_j  +  int ell_j dS  Z_j ]

in the clock phi = arcsin sqrt(t), in which the noise sqrt(t (1 - t)) of interpolants is smooth at both ends.  With one
node this is "ddim"; a constant pair of ends is integrated exactly at any order.  Where S = 0, as at the source of an
interpolant, Z is unknown: the first step draws it anew.  On a path with one end the same names are the velocity of the
linear path, in its own time.

The SDE of the same marginals with any noise level eps(t) >= 0 (Albergo et al. 2023, eq. (2.34)) has the exact
first-order row ``x_t = A D + B D1 + S (r Z + sqrt(1 - r^2) z)`` with ``r = exp(-int eps/S^2 dt)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from retrodict.core.errors import require
from retrodict.solvers.builder import Builder
from retrodict.solvers.generators.first_order import ddim
from retrodict.solvers.generators.multistep import multistep
from retrodict.solvers.generators.runge_kutta import runge_kutta
from retrodict.solvers.registry import alias, solver
from retrodict.solvers.weights import GAUSS_NODES, GAUSS_WEIGHTS, lagrange


@solver("flow-euler", order=1, grid="flow", ends=2)
def flow_euler(b: Builder) -> int:
    """Euler along the flow with both ends and the noise frozen over a step: first order, exact for constant ends.  On a
    rectified flow it is Euler's method."""
    return ddim(b)


@solver("flow-heun", order=2, grid="flow", ends=2)
def flow_heun(b: Builder) -> int:
    """Heun's method for the flow: two evaluations a step, one where the noise vanishes at either end of the step."""
    if len(b.process.ends) == 1:
        return runge_kutta(b, "heun2", "flow")
    x, clock = 0, _Clock(b)
    for i in range(b.n):
        k = b.eval(x, i)
        guess = b.frozen(x, k, i, i + 1)
        x = guess if not _inside(b, [i, i + 1]) else _row(b, clock, x, i, {i: k, i + 1: b.eval(guess, i + 1)})
    return x


@solver("flow-ab", order=lambda options: float(options["order"]), grid="flow", ends=2)
def flow_ab(b: Builder, order: int = 2, final: Any = "auto") -> int:
    """Adams-Bashforth for the flow: one evaluation a step; ``final`` concerns paths with one end, see 'adams'.

    With two ends the order is 1 or 2: the first step is of first order there, which more nodes would not mend.
    """
    if len(b.process.ends) == 1:
        return multistep(b, order, "flow", None, final)
    require(order in (1, 2), f"on a path with two ends the order is 1 or 2, got {order!r}")
    x, ks, clock = 0, {}, _Clock(b)
    for i in range(b.n):
        k = b.eval(x, i)
        if not _inside(b, [i]):
            x = b.frozen(x, k, i, i + 1)
            continue
        ks = dict(list(({i: k} | ks).items())[:order])
        x = _row(b, clock, x, i, ks)
    return x


alias("flow-ab2", "flow-ab", order=2)


@solver("flow-sde", order=1, eta="always", grid="flow", claims=("constant", "variance", "order"), ends=2)
def flow_sde(b: Builder, epsilon: float | Sequence[float] = 0.5) -> int:
    """The SDE of the flow with noise level eps(t), exact for constant ends.

    ``epsilon`` is a number, a function of time, or its values on an even grid of [0, 1]; it is in units of x^2 per
    unit of t.  It is multiplied by eta^2; eps = 0 is the flow itself.
    """
    table = np.atleast_1d(np.asarray(epsilon, dtype=np.float64))
    worst = float(table[np.argmin(np.where(np.isfinite(table), table, -np.inf))])
    require(np.isfinite(worst) and worst >= 0, f"epsilon is a noise level, finite and not negative; got {worst}")
    keep = np.exp(-(b.eta**2) * _churn(b, table))
    x = 0
    for i in range(b.n):
        x = b.frozen(x, b.eval(x, i), i, i + 1, float(keep[i]))
    return x


def _churn(b: Builder, table: np.ndarray) -> np.ndarray:
    """int eps/S^2 dt over each step; infinite where S = 0 at an end of it."""
    clock = _Clock(b)
    level = np.interp(clock.t, np.linspace(0, 1, len(table)), table) if len(table) > 1 else table[0]
    sigma = b.path.sigma(torch.from_numpy(clock.t)).numpy()
    total = (GAUSS_WEIGHTS * np.abs(clock.dt) * level / sigma**2).sum(-1)
    ends = np.minimum(b.levels.sigma[: b.n], b.levels.sigma[1 : b.n + 1])
    return np.where(ends > 0, total, np.inf)


def _inside(b: Builder, levels: list[int]) -> bool:
    """Whether there is noise at all of the levels, so that Z is known there."""
    return bool((b.levels.sigma[levels] > 0).all())


class _Clock:
    """phi = arcsin sqrt(t) at the quadrature points of every step of the grid: arrays ``(steps, points)``.

    Attributes:
        nodes: phi at the levels; phi, t: at the points; dt: the change of t per unit of quadrature weight.
    """

    def __init__(self, b: Builder) -> None:
        self.nodes = np.arcsin(np.sqrt(b.levels.t))
        width = np.diff(self.nodes)[:, None]
        self.phi = self.nodes[:-1, None] + width * GAUSS_NODES
        self.t, self.dt = np.sin(self.phi) ** 2, width * np.sin(2 * self.phi)
        self.path = b.path

    @cached_property
    def rates(self) -> np.ndarray:
        """``(A', B', S')`` at the points, ``(3, steps, points)``."""
        return np.stack([r.numpy() for r in self.path.rates(torch.from_numpy(self.t))])


def _row(b: Builder, clock: _Clock, x: int, i: int, ks: dict[int, int]) -> int:
    """The row of step i that interpolates D, D1 and Z of evaluations ``{level: k}``."""
    basis = lagrange(clock.nodes[None, list(ks)], clock.phi[None, i])[0] * GAUSS_WEIGHTS * clock.dt[i]
    wA, wB, wS = clock.rates[:, i] @ basis.T
    xs, ds, d1 = {x: 1.0}, {}, {}
    for (level, k), a, e, z in zip(ks.items(), wA, wB, wS):
        share = z / b.levels.sigma[level]
        register = b.input_of(k)
        xs[register] = xs.get(register, 0.0) + share
        ds[k] = a - share * b.levels.alpha[level]
        d1[k] = e - share * b.betas[level]
    return b.row(i + 1, xs, ds, d1=d1)
