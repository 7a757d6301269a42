"""DPM-Solver-v3 (Zheng et al. 2023): exponential rows in the parameterisation that a model's statistics choose.

With l, s, b of `retrodict.solvers.statistics`, L, S their integrals in lambda, and S(s..u) the integral over [s, u],

    y_t = e^{-L(s..t)} y_s - sum_j w_j g_j - c             g_j = e^{-S(s..j)} f_j - beta(j),   f_j = (1 - l_j) y_j - D_j
    w_j = int_s^t e^{-L(u..t) + S(s..u)} ell_j(u) du       beta(u) = int_s^u e^{-S(s..r)} b(r) dr
    c   = int_s^t e^{-L(u..t) + S(s..u)} beta(u) du

and ell_j the Lagrange basis in lambda through the nodes j.  The corrector redoes a step with the target among its
nodes, as many as the predictor had.  Integrals are quadratures of splines: steps need not meet the points of the
statistics, to which the official code snaps them.

"Pseudo" rows keep the divided differences g[j_0 .. j_i] of Newton's form and drop its nodes, taking (u - j_0)^i in
place of (u - j_0) .. (u - j_{i-1}): less is extrapolated, and from three nodes on the order is two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from retrodict.core.errors import require
from retrodict.solvers.builder import Builder
from retrodict.solvers.generators.multistep import drops, singular, step_size
from retrodict.solvers.registry import solver
from retrodict.solvers.statistics import Statistics, as_statistics
from retrodict.solvers.weights import GAUSS_NODES, GAUSS_WEIGHTS, lagrange


def _order(options: Mapping[str, Any]) -> float:
    """That of the interpolation; a pseudo corrector ends on two, a pseudo predictor is one behind its corrector."""
    if options["corrector"] == "pseudo":
        return 2.0
    return float(min(options["order"], 2 + bool(options["corrector"])) if options["pseudo"] else options["order"])


@solver("dpm-solver-v3", order=_order)
def dpm_solver_v3(
    b: Builder,
    order: int = 2,
    statistics: Any = None,
    corrector: bool | str = True,
    pseudo: bool = False,
    final: Any = "auto",
) -> int:
    """DPM-Solver-v3 (Zheng et al. 2023).

    Args:
        order: nodes of the predictor, 1 to 6; 3 unconditionally and 2 under guidance as published.
        statistics: `Statistics`, a file of them, the folder of a model that has one, or None for data prediction.
        corrector: redo each step with the newest prediction; no evaluations.  True takes as many nodes as the
            predictor, "pseudo" one more and pseudo rows (the official code's advice beyond 6 evaluations).
        pseudo: predict by pseudo rows (the official code's setting up to 5 evaluations).
        final: lower the order at the end (True, False, "auto").

    Statistics with a drift b, or element by element, give rows with constants, which run on the general runtime.
    """
    require(isinstance(order, int) and 1 <= order <= 6, f"order is an integer from 1 to 6, got {order!r}")
    require(corrector in (True, False, "pseudo"), f"corrector is True, False or 'pseudo', got {corrector!r}")
    model = _Model(b, as_statistics(statistics))
    drop = drops(b, final, "lambda")
    x, carried, size, ks = 0, 0, 1, {}
    for i in range(b.n):
        ks[i] = b.eval(x, i)
        count = size + (corrector == "pseudo")
        known = i > 0 and b.finite(i - 1) and b.finite(i) and not singular(b, i - 1, "data", "lambda")
        if corrector and count > 1 and known:
            nodes = [i - 1, i, *(j for j in range(i - 2, i - count, -1) if b.finite(j))]
            carried = model.row(carried, i - 1, i, nodes, ks, corrector == "pseudo")
        else:
            carried = x
        size = step_size(b, i, order, "data", "lambda", drop)
        if singular(b, i, "data", "lambda") or not b.finite(i):
            x = b.frozen(carried, ks[i], i, i + 1)
        else:
            x = model.row(carried, i, i + 1, list(range(i, i - size, -1)), ks, pseudo)
    return x


class _Model:
    """The rows of a solver with given statistics."""

    def __init__(self, b: Builder, statistics: Statistics | None) -> None:
        self.b = b
        lam = np.linspace(-1.0, 1.0, 4)
        self.known = statistics or Statistics(lam, np.ones(4), np.zeros(4), np.zeros(4))
        self.l, self.s, self.drift = self.known.curves()
        self.L, self.S = self.l.antiderivative(), self.s.antiderivative()

    def at(self, curve: CubicSpline, lam: Any) -> np.ndarray:
        """A statistic; beyond the measured range that of its end."""
        return curve(np.clip(lam, self.known.lam[0], self.known.lam[-1]))

    def between(self, integral: CubicSpline, rate: CubicSpline, lam: Any, to: Any) -> np.ndarray:
        """The integral of a statistic over [lam, to]."""
        return self._total(integral, rate, to) - self._total(integral, rate, lam)

    def _total(self, integral: CubicSpline, rate: CubicSpline, lam: Any) -> np.ndarray:
        lam = np.asarray(lam, dtype=np.float64)
        inside = np.clip(lam, self.known.lam[0], self.known.lam[-1])
        beyond = (lam - inside).reshape(lam.shape + (1,) * (rate(inside).ndim - lam.ndim))
        return integral(inside) + beyond * rate(inside)

    def row(self, x: int, source: int, target: int, nodes: list[int], ks: dict[int, int], pseudo: bool = False) -> int:
        """The step from ``source`` (in register x) to ``target`` through evaluations at ``nodes``, the source first."""
        lam, alpha = self.b.levels.lam, self.b.levels.alpha
        s, t = lam[source], lam[target]
        u = s + (t - s) * GAUSS_NODES
        decay = self.between(self.L, self.l, u, t)
        growth = self.between(self.S, self.s, s, u)
        kernel = np.exp(growth - decay) * _along(GAUSS_WEIGHTS, growth) * (t - s)
        basis = _pseudo(lam[nodes], u) if pseudo else lagrange(lam[nodes][None], u[None])[0]
        w = np.einsum("q...,jq->j...", kernel, basis)
        constant = -(kernel * self._beta(s, u)).sum(0)
        on_x: dict[int, Any] = {x: alpha[target] / alpha[source] * np.exp(-self.between(self.L, self.l, s, t))}
        on_d: dict[int, Any] = {}
        for j, level in enumerate(nodes):
            scale = w[j] * np.exp(-self.between(self.S, self.s, s, lam[level]))
            register, k = self.b.input_of(ks[level]), ks[level]
            state = alpha[target] * scale * (1 - self.at(self.l, lam[level])) / alpha[level]
            on_x[register] = on_x.get(register, 0.0) - state
            on_d[k] = alpha[target] * scale
            constant = constant + w[j] * self._beta(s, np.array([lam[level]]))[0]
        return self._emit(target, on_x, on_d, alpha[target] * constant)

    def _beta(self, s: float, u: np.ndarray) -> np.ndarray:
        """beta at several points, an inner quadrature each."""
        r = s + (u[:, None] - s) * GAUSS_NODES
        value = np.exp(-self.between(self.S, self.s, s, r)) * self.at(self.drift, r)
        return np.einsum("uq...,q,u->u...", value, GAUSS_WEIGHTS, u - s)

    def _emit(self, target: int, on_x: dict[int, Any], on_d: dict[int, Any], constant: np.ndarray) -> int:
        """A linear row where all is numbers and there is no constant, else a row of the general runtime."""
        if not self.known.elementwise and float(constant) == 0.0:
            xs = {r: float(a) for r, a in on_x.items() if abs(float(a)) > 1e-15}
            return self.b.row(target, xs, {k: float(a) for k, a in on_d.items()})
        return self.b.affine(target, on_x, on_d, constant)


def _pseudo(nodes: np.ndarray, u: np.ndarray) -> np.ndarray:
    """What a value at each node contributes at u, ``(nodes, points)``: divided differences times powers of u - base."""
    basis = np.zeros((len(nodes), len(u)))
    for i in range(len(nodes)):
        for j in range(i + 1):
            basis[j] += (u - nodes[0]) ** i / np.prod(nodes[j] - np.delete(nodes[: i + 1], j))
    return basis


def _along(vector: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A vector over the first axis of an array."""
    return vector.reshape(-1, *(1,) * (like.ndim - 1))
