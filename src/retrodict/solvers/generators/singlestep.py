"""Singlestep DPM-Solver and DPM-Solver++ (Lu et al. 2022): blocks of one to three evaluations, no history.

Inside a step of length h in lambda the nodes sit at lambda_s + r h, with r = 1/2 for two evaluations and 1/3, 2/3 for
three.  All rows are the quadrature of `weights` with nodes at the source and the newest inner node:

    2S   X_1 from (s);  x_t from (s, 1)               3S   X_1 from (s);  X_2 from (s, 1);  x_t from (s, 2)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from retrodict.core.errors import InputError, require
from retrodict.solvers.builder import Builder
from retrodict.solvers.generators.multistep import RULES, chosen
from retrodict.solvers.registry import solver
from retrodict.solvers.weights import Rule, exact

_INNER = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


def official_orders(nfe: int, order: int) -> list[int]:
    """Orders of the blocks that spend ``nfe`` evaluations, as the official solver lays them out: full blocks, and
    what is left in falling order."""
    if order == 3:
        return {0: [3] * (nfe // 3 - 1) + [2, 1], 1: [3] * (nfe // 3) + [1], 2: [3] * (nfe // 3) + [2]}[nfe % 3]
    return [order] * (nfe // order) + [1] * (nfe % order)


def _budget(order: int) -> Any:
    def spend(nfe: int, options: Mapping[str, Any], clean: bool) -> tuple[int, dict[str, Any]]:
        if options["orders"] is not None:
            raise InputError("give orders with steps; with nfe they are derived")
        orders = official_orders(nfe, order)
        if clean and orders[-1] > 1:  # the step to sigma = 0 is of first order
            orders = [*orders[:-1], orders[-1] - 1, 1]
        if options["nodes"] == "grid":
            return nfe, {"orders": orders}
        return len(orders), {"orders": orders}

    return spend


def singlestep(b: Builder, order: int, kind: str, weights: str, nodes: str, orders: Sequence[int] | None) -> int:
    """Singlestep solver.

    Args:
        order: evaluations of a full block.
        kind: "data" (DPM-Solver++) or "noise" (DPM-Solver).
        weights: "midpoint" or "exact", of rows whose source is followed by one node and that are second order.
        nodes: "inner" puts nodes inside each step of the grid; "grid" takes the grid's own levels as nodes, so that
            a block spans several steps and every step costs one evaluation (as diffusers has it).
        orders: the order of each block; None makes all blocks full.
    """
    require(kind in ("data", "noise"), f"kind is 'data' or 'noise', got {kind!r}")
    require(nodes in ("inner", "grid"), f"nodes is 'inner' or 'grid', got {nodes!r}")
    blocks = _blocks(b, order, nodes, orders)
    weights_of = _weights(b, blocks, kind, chosen(RULES, weights, "weights"))
    x = 0
    for source, inner, target in blocks:
        x = _block(b, x, source, inner, target, kind, weights_of)
    return x


def _weights(b: Builder, blocks: list[tuple[int, list[int], int]], kind: str, rule: Rule) -> dict[tuple[int, int], Any]:
    """``(a, w)`` by source and target of all rows with two nodes: the source, and the node before the target.  The row
    that closes a block of three is exact as published."""
    wanted: dict[Rule, list[tuple[int, int, list[int]]]] = {rule: [], exact: []}
    for s, inner, t in blocks:
        levels = [*inner, t]
        for number, level in enumerate(levels[1:], 1):
            if b.finite(s) and b.finite(level):
                wanted[exact if number == 2 else rule].append((s, level, [s, levels[number - 1]]))
    found: dict[tuple[int, int], Any] = {}
    for which, rows in wanted.items():
        found |= dict(zip([row[:2] for row in rows], b.weights(rows, kind, "lambda", 1.0, which)))
    return found


def _blocks(b: Builder, order: int, nodes: str, orders: Sequence[int] | None) -> list[tuple[int, list[int], int]]:
    """``(source, inner levels, target)`` of each block."""
    if nodes == "grid":
        sizes = list(orders) if orders is not None else [order] * (b.n // order) + [1] * (b.n % order)
        require(sum(sizes) == b.n, f"blocks of orders {sizes} take {sum(sizes)} steps, the grid has {b.n}")
        ends = np.cumsum([0, *sizes]).tolist()
        return [(s, list(range(s + 1, t)), t) for s, t in pairwise(ends)]
    sizes = list(orders) if orders is not None else [order] * b.n
    require(len(sizes) == b.n, f"orders has one number a step: {b.n}, got {len(sizes)}")
    require(set(sizes) <= {1, 2, 3}, f"orders are 1, 2 or 3, got {sizes}")
    inner = [_inside(b, i, _INNER[size]) for i, size in enumerate(sizes)]
    added = iter(b.add_levels(np.array([lam for block in inner for lam in block])).tolist())
    return [(i, [next(added) for _ in block], i + 1) for i, block in enumerate(inner)]


def _inside(b: Builder, i: int, shares: Sequence[float]) -> list[float]:
    """lambda at shares of step i; from alpha = 0 at shares of the linear path's time; to sigma = 0 there are none."""
    if b.levels.sigma[i + 1] == 0:
        return []
    if b.finite(i):
        return [b.levels.lam[i] + r * (b.levels.lam[i + 1] - b.levels.lam[i]) for r in shares]
    u = [1 + r * (b.levels.coordinate("flow")[i + 1] - 1) for r in shares]
    return [float(np.log1p(-v) - np.log(v)) for v in u]


def _block(
    b: Builder, x: int, s: int, inner: list[int], t: int, kind: str, weights_of: dict[tuple[int, int], Any]
) -> int:
    """The rows of one block; at the ends of time, where lambda is infinite, a chain of first-order rows."""
    state, level, ks = x, s, [b.eval(x, s)]
    for target in [*inner, t]:
        if (s, target) in weights_of:
            a, w = weights_of[s, target]
            state = b.row(target, {x: a}, predictions={ks[0]: w[0], ks[-1]: w[1]}, kind=kind)
        else:
            state = b.frozen(state, ks[-1], level, target)
        if target != t:
            ks.append(b.eval(state, target))
        level = target
    return state


@solver("dpm-solver++-2s", order=2, budget=_budget(2))
def dpm_solver_plus_2s(
    b: Builder, weights: str = "midpoint", nodes: str = "inner", orders: Sequence[int] | None = None
) -> int:
    """DPM-Solver++(2S): data prediction; options as in `singlestep`."""
    return singlestep(b, 2, "data", weights, nodes, orders)


@solver("dpm-solver++-3s", order=3, budget=_budget(3))
def dpm_solver_plus_3s(
    b: Builder, weights: str = "exact", nodes: str = "inner", orders: Sequence[int] | None = None
) -> int:
    """DPM-Solver++(3S): data prediction; options as in `singlestep`."""
    return singlestep(b, 3, "data", weights, nodes, orders)


@solver("dpm-solver-2s", order=2, budget=_budget(2))
def dpm_solver_2s(
    b: Builder, weights: str = "midpoint", nodes: str = "inner", orders: Sequence[int] | None = None
) -> int:
    """DPM-Solver-2: noise prediction; options as in `singlestep`."""
    return singlestep(b, 2, "noise", weights, nodes, orders)


@solver("dpm-solver-3s", order=3, budget=_budget(3))
def dpm_solver_3s(b: Builder, weights: str = "exact", nodes: str = "inner", orders: Sequence[int] | None = None) -> int:
    """DPM-Solver-3: noise prediction; options as in `singlestep`."""
    return singlestep(b, 3, "noise", weights, nodes, orders)
