"""Multistep solvers: exponential Adams-Bashforth in any prediction type and coordinate, and its correctors.

One generator, `exponential_adams`, carries DDIM's descendants.  At step i it interpolates the predictions of the
last p nodes; with a corrector it first redoes the previous step with the newest prediction included:

==========================================  ==========================================
kind data, tau lambda                       DPM-Solver++ multistep with exact weights
kind noise, tau lambda                      DPM-Solver multistep, DEIS "log rho"
kind noise, tau rho                         DEIS rho-AB, LMS
kind noise, tau t                           DEIS t-AB
kind flow, tau flow                         velocity Adams-Bashforth on the linear path
kind velocity, tau angle                    the same on the angle
corrector                                   UniPC with exact weights
eta > 0                                     the SDE form, kappa = 1 + eta^2
==========================================  ==========================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from retrodict.core.errors import require
from retrodict.solvers.build import Builder, solver


def history(b: Builder, i: int, order: int, kind: str, drop: int) -> int:
    """How many nodes step i may use: the start-up ramp, the drop at the end, and levels that cannot be used."""
    m = min(order, i + 1, max(1, b.n - i) if drop else order)
    first_usable = 0
    while first_usable < i and not usable(b, first_usable, kind):
        first_usable += 1
    m = min(m, i - first_usable + 1)
    return max(m, 1)


def usable(b: Builder, level: int, kind: str) -> bool:
    """Whether a level can be a node of a polynomial: not at alpha = 0, except in coordinates finite there."""
    return b.finite(level) or kind in ("flow", "velocity")


def drops(b: Builder, final: Any, tau: str) -> bool:
    """Whether the order falls to one at the end ("auto": if the last step in lambda is long, or ends at sigma = 0
    in a coordinate that is infinite there)."""
    if final in (True, False):
        return bool(final)
    lam = b.levels.lam[: b.n + 1]
    if not np.isfinite(lam[-1]):
        return tau not in ("flow", "angle", "rho", "t")
    inner = np.diff(lam[np.isfinite(lam)])
    return bool(len(inner) and inner[-1] > 2 * inner.mean())


def adams_order(options: Mapping[str, Any]) -> float:
    """Declared order: the number of nodes, and one more with a corrector."""
    return float(options["order"]) + (1.0 if options.get("corrector") else 0.0)


@solver("adams", order=adams_order, eta="share", claims=("constant", "variance", "order"))
def exponential_adams(
    b: Builder, order: int = 2, kind: str = "data", tau: str | None = None, corrector: bool = False, final: Any = "auto"
) -> int:
    """Exponential Adams-Bashforth(-Moulton) in a prediction type and an interpolation coordinate.

    Args:
        order: nodes of the predictor, 1 to 6.
        kind: "data", "noise", "flow" or "velocity".
        tau: "lambda", "rho", "flow", "angle" or "t"; None is the kind's own.
        corrector: redo each step with the next node's prediction (no extra evaluations; order + 1).
        final: True lowers the order to one over the last steps, False keeps it, "auto" decides from the grid.
    """
    require(isinstance(order, int) and 1 <= order <= 6, f"order is an integer from 1 to 6, got {order!r}")
    require(b.eta == 0 or kind in ("data", "noise"), f"eta > 0 needs kind 'data' or 'noise', got {kind!r}")
    require(b.eta == 0 or not corrector, "a corrector needs eta = 0: it would reuse the noise of its step")
    tau = tau or {"data": "lambda", "noise": "lambda", "flow": "flow", "velocity": "angle"}[kind]
    kappa = 1 + b.eta**2
    drop = drops(b, final, tau)
    sizes = [step_size(b, i, order, kind, tau, drop) for i in range(b.n)]
    predictor = batched_weights(b, [(i, i + 1, list(range(i, i - m, -1))) for i, m in enumerate(sizes)], kind, tau, kappa)
    corrections = {}
    if corrector:
        rows = [(i - 1, i, list(range(i, i - 1 - sizes[i - 1], -1))) for i in range(1, b.n) if correctable(b, i, kind, tau)]
        corrections = {r[1]: w for r, w in zip(rows, batched_weights(b, rows, kind, tau, kappa))}
    noise = b.noise_std(np.arange(b.n), np.arange(1, b.n + 1), kind, kappa) if b.eta > 0 else np.zeros(b.n)
    x, carried, ks = 0, 0, []
    for i in range(b.n):
        ks.append(b.eval(x, i))
        if i in corrections:
            a, w = corrections[i]
            carried = b.row(i, {carried: a}, predictions={ks[i - j]: w[j] for j in range(len(w))}, kind=kind)
        a, w = predictor[i]
        x = b.row(i + 1, {carried: a}, predictions={ks[i - j]: w[j] for j in range(len(w))}, kind=kind, z=noise[i])
        if i + 1 not in corrections:  # else the correction starts from the state before this row
            carried = x
    return x


def step_size(b: Builder, i: int, order: int, kind: str, tau: str, drop: bool) -> int:
    """Nodes of step i, with every exceptional case at the ends of time."""
    to_clean = b.levels.sigma[i + 1] == 0
    if to_clean and tau == "lambda":
        return 1
    if not usable(b, i, kind):
        return 1
    return history(b, i, order, kind, drop)


def correctable(b: Builder, i: int, kind: str, tau: str) -> bool:
    """Whether the step into level i can be redone with the prediction at i."""
    return usable(b, i - 1, kind) and usable(b, i, kind)


def batched_weights(
    b: Builder, rows: list[tuple[int, int, list[int]]], kind: str, tau: str, kappa: float
) -> list[tuple[float, np.ndarray]]:
    """``(a, w)`` for rows ``(source, target, nodes)``, grouped by the number of nodes into vectorised calls."""
    results: list[Any] = [None] * len(rows)
    for m in {len(nodes) for _, _, nodes in rows}:
        index = [j for j, row in enumerate(rows) if len(row[2]) == m]
        a, w = b.weights([rows[j][0] for j in index], [rows[j][1] for j in index], [rows[j][2] for j in index], kind, tau, kappa)
        for position, j in enumerate(index):
            results[j] = (float(a[position]), w[position])
    return results
