"""A choice at every step (USF, Liu et al. 2024), and the compensation of stored outputs (DC-Solver, Zhao et al. 2024).

Step i of a multistep solver may choose its prediction type, its order, its weights, and whether the next evaluation
corrects it; the grid is a choice already.  All of them are rows of `multistep`, so any sequence of choices is a plan,
and `retrodict.solvers.tuning` searches among them.

Compensation replaces what is stored of an evaluation: once output D_i is there, later rows use

    D'_i = sum_j ell_j(r t_i + (1 - r) t_{i-1}) D'_j ,      j = i, i-1, i-2  (D'_i on the right is D_i),

with ell_j the Lagrange basis in t: the outputs of the last three evaluations, read a little earlier or later.  The
correction of the step that led to t_i has used D_i itself.  At r = 1 nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retrodict.core.errors import InputError, near, require
from retrodict.solvers.builder import Builder
from retrodict.solvers.cascade import Cascade
from retrodict.solvers.generators.multistep import VARIANTS, chosen, drops, singular, step_size, usable
from retrodict.solvers.registry import alias, solver
from retrodict.solvers.weights import COORDINATES, INTERPOLATION, KINDS, lagrange


def _order(options: Mapping[str, Any]) -> float:
    """The lowest of the steps' orders, one more where all are corrected; first with compensation, which moves an
    output by a share of a step."""
    ratios = options["ratios"]
    if isinstance(ratios, Mapping) or any(r != 1 for r in ratios):
        return 1.0
    return float(min(options["orders"])) + (1.0 if all(options["correctors"]) else 0.0)


@solver(
    "usf",
    order=_order,
    without={"constant": "with kind 'velocity' among the steps: under a constant denoiser it turns with the angle"},
)
def usf(
    b: Builder,
    orders: Sequence[int] = (2,),
    kinds: Sequence[str] = ("data",),
    correctors: Sequence[bool] = (True,),
    variants: Sequence[str] = ("exact",),
    taus: Sequence[str | None] = (None,),
    ratios: Any = (),
    final: Any = "auto",
) -> int:
    """A multistep solver with choices at every step (Liu et al. 2024); the last entry of a list holds for later steps.

    Args:
        orders: nodes of each step's predictor, 1 to 6.
        kinds: prediction types, "data", "noise", "flow" or "velocity".
        taus: coordinates in which they are interpolated, as 'adams'; None is the kind's own.
        correctors: whether the evaluation at the end of a step corrects it.
        variants: weights of rows with two nodes, "exact", "bh1" or "bh2" (as 'unipc').
        ratios: of compensation, from the third evaluation on (Zhao et al. 2024); a shorter list leaves later outputs
            as they are.  Or a `Cascade`, which knows them for any number of steps.
        final: lower the order at the end (True, False, "auto").
    """
    plan = _Choices(b, orders, kinds, correctors, variants, taus, final)
    given = _ratios(ratios, b.n)
    stored: list[dict[int, float]] = []
    ks: list[int] = []
    x = carried = 0
    for i in range(b.n):
        ks.append(b.eval(x, i))  # x is the predicted state; the recursion goes on from the corrected one
        stored.append({ks[i]: 1.0})
        correction = plan.row(i - 1, list(range(i, i - 1 - plan.sizes[i - 1], -1))) if plan.corrects(i) else None
        carried = _emit(b, i, carried, correction, ks, stored) if correction is not None else x
        if 2 <= i < 2 + len(given) and given[i - 2] != 1:
            stored[i] = _compensated(b, i, given[i - 2], stored)
        predictor = plan.row(i, list(range(i, i - plan.sizes[i], -1))) if plan.regular(i) else None
        if predictor is not None:
            x = _emit(b, i + 1, carried, predictor, ks, stored)
        else:
            (k,) = stored[i] if len(stored[i]) == 1 else (None,)
            x = b.frozen(carried, ks[i], i, i + 1) if k == ks[i] else _frozen(b, i, carried, stored[i])
    return x


alias("dc-solver", "usf", kinds=("data",))


class _Choices:
    """What step i uses, and its weights."""

    def __init__(
        self, b: Builder, orders: Any, kinds: Any, correctors: Any, variants: Any, taus: Any, final: Any
    ) -> None:
        for order in orders:
            require(isinstance(order, int) and 1 <= order <= 6, f"orders are integers from 1 to 6, got {order!r}")
        for kind in kinds:
            require(kind in KINDS, f"kinds are among {', '.join(KINDS)}; got {kind!r}.{near(str(kind), KINDS)}")
        for tau in taus:
            require(
                tau is None or tau in COORDINATES,
                f"taus are among {', '.join(COORDINATES)}; got {tau!r}.{near(str(tau), COORDINATES)}",
            )
        given = {"orders": orders, "kinds": kinds, "correctors": correctors, "variants": variants, "taus": taus}
        for name, values in given.items():
            require(len(values) > 0, f"{name} is a list of at least one entry")
        at = lambda values, i: values[min(i, len(values) - 1)]  # noqa: E731
        self.b = b
        self.kinds = [str(at(kinds, i)) for i in range(b.n)]
        self.rules = [chosen(VARIANTS, at(variants, i), "variants") for i in range(b.n)]
        self._redo = [bool(at(correctors, i)) for i in range(b.n)]
        self.taus = [at(taus, i) or INTERPOLATION[kind] for i, kind in enumerate(self.kinds)]
        drop = {tau: drops(b, final, tau) for tau in set(self.taus)}
        self.sizes = [
            step_size(b, i, int(at(orders, i)), self.kinds[i], tau, drop[tau]) for i, tau in enumerate(self.taus)
        ]

    def regular(self, i: int) -> bool:
        """Whether step i can be written in its kind."""
        return not singular(self.b, i, self.kinds[i], self.taus[i])

    def corrects(self, i: int) -> bool:
        """Whether evaluation i corrects the step that led to it."""
        if i == 0 or not self._redo[i - 1] or not self.regular(i - 1):
            return False
        return usable(self.b, i, self.taus[i - 1]) and usable(self.b, i - 1, self.taus[i - 1])

    def row(self, step: int, nodes: list[int]) -> tuple[int, float, list[tuple[int, float]], str]:
        """``(source, coefficient of the source, (node, weight of its prediction), kind)`` of a step."""
        kind = self.kinds[step]
        ((a, w),) = self.b.weights([(step, step + 1, nodes)], kind, self.taus[step], 1.0, self.rules[step])
        return step, a, list(zip(nodes, w.tolist())), kind


def _emit(b: Builder, level: int, x: int, row: Any, ks: list[int], stored: list[dict[int, float]]) -> int:
    """A row over predictions of stored outputs: P_j = p_x x_j + p_D D'_j."""
    _, a, terms, kind = row
    p_x, p_d = b.levels.prediction(kind)
    xs, ds = {x: a}, {}
    for j, w in terms:
        if p_x[j] != 0:
            register = b.input_of(ks[j])
            xs[register] = xs.get(register, 0.0) + w * float(p_x[j])
        for k, share in stored[j].items():
            ds[k] = ds.get(k, 0.0) + w * float(p_d[j]) * share
    return b.row(level, xs, ds)


def _frozen(b: Builder, i: int, x: int, output: dict[int, float]) -> int:
    """The first-order row with a compensated output."""
    L = b.levels
    ratio = float(L.sigma[i + 1] / L.sigma[i])
    factor = float(L.alpha[i + 1] - ratio * L.alpha[i])
    return b.row(i + 1, {x: ratio}, {k: factor * share for k, share in output.items()})


def _compensated(b: Builder, i: int, ratio: float, stored: list[dict[int, float]]) -> dict[int, float]:
    """D'_i over the evaluations."""
    t = b.levels.t
    at = ratio * t[i] + (1 - ratio) * t[i - 1]
    basis = lagrange(t[None, [i, i - 1, i - 2]], np.array([[at]]))[0, :, 0]
    made: dict[int, float] = {}
    for j, share in zip((i, i - 1, i - 2), basis.tolist()):
        for k, value in stored[j].items():
            made[k] = made.get(k, 0.0) + share * value
    return made


def _ratios(given: Any, steps: int) -> list[float]:
    if isinstance(given, Mapping):
        return Cascade.from_config(given).ratios(steps)
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputError(f"ratios is a list of numbers or a Cascade, got {given!r}")
    return [float(r) for r in given]
