"""Passes over a plan's code: normal form, elimination of registers that are never evaluated, liveness.

Elimination is what makes high-order plans cheap.  A predictor-corrector carries a corrected state that is never
shown to the network; solving the row that produced the next evaluated state for it turns two long rows into one
short one, with the same normal form.
"""

from __future__ import annotations

import numpy as np

from retrodict.core.errors import InputError
from retrodict.solvers.plan import Call, Eval, Instruction, NormalForm, Plan, Row


def normal_form(plan: Plan) -> NormalForm:
    """Unroll the rows; raises for plans with rows that depend on data."""
    if plan.opaque:
        names = sorted({c.name for c in plan.code if isinstance(c, Call)})
        raise InputError(f"a plan with data-dependent rows ({', '.join(names)}) has no normal form")
    nfe, noises = plan.nfe, sorted({m for c in plan.code if isinstance(c, Row) for m in c.z})
    column = {m: 1 + 2 * nfe + i for i, m in enumerate(noises)}
    size = 1 + 2 * nfe + len(noises)
    order = {c.k: i for i, c in enumerate(c for c in plan.code if isinstance(c, Eval))}
    states = {0: np.eye(1, size)[0]}
    inputs, times = np.zeros((nfe, size)), np.zeros(nfe)
    for c in plan.code:
        if isinstance(c, Eval):
            inputs[order[c.k]], times[order[c.k]] = states[c.x], c.t
        elif isinstance(c, Row):
            vector = sum((a * states[r] for r, a in c.x.items()), np.zeros(size))
            for k, b in c.d.items():
                vector[1 + order[k]] += b
            for k, b in c.d1.items():
                vector[1 + nfe + order[k]] += b
            for m, b in c.z.items():
                vector[column[m]] += b
            states[c.dst] = vector
    return NormalForm(inputs, states[plan.out], times, nfe)


def eliminate(plan: Plan) -> Plan:
    """Rewrite a plan without the states that are never evaluated, if that saves terms; else return it.

    Each such register is kept as an expression in evaluated ones: its own row, or, once a later evaluated state was
    computed from it, that row solved for it.  Noisy rows are left alone, since they carry the plan's densities.
    """
    evaluated = {c.x for c in plan.code if isinstance(c, Eval)} | {0, plan.out}
    evaluated |= {c.x for c in plan.code if isinstance(c, Call)} | {c.dst for c in plan.code if isinstance(c, Call)}
    evaluated |= {c.dst for c in plan.code if isinstance(c, Row) and c.z}
    alias: dict[int, Row] = {}
    code: list[Instruction] = []
    for c in plan.code:
        if not isinstance(c, Row):
            code.append(c)
            continue
        row = _substitute(c, alias)
        if c.dst in evaluated:
            code.append(row)
            for register in [r for r in c.x if r in alias]:
                solved = _solve(c, register, alias)
                if solved is not None:
                    alias[register] = solved
        else:
            alias[c.dst] = row
    before = sum(c.terms for c in plan.code if isinstance(c, Row))
    after = sum(c.terms for c in code if isinstance(c, Row))
    largest = max((abs(v) for c in code if isinstance(c, Row) for v in [*c.x.values(), *c.d.values()]), default=0.0)
    return plan.with_code(code) if after < before and largest < 1e3 else plan


def _substitute(row: Row, alias: dict[int, Row]) -> Row:
    """``row`` with aliased registers replaced by their expressions."""
    x: dict[int, float] = {}
    d, d1, z = dict(row.d), dict(row.d1), dict(row.z)
    for register, a in row.x.items():
        expression = alias.get(register)
        if expression is None:
            x[register] = x.get(register, 0.0) + a
            continue
        for target, source in ((x, expression.x), (d, expression.d), (d1, expression.d1)):
            for key, value in source.items():
                target[key] = target.get(key, 0.0) + a * value
    return Row(row.dst, _nonzero(x), _nonzero(d), _nonzero(d1), z, row.t)


def _solve(row: Row, register: int, alias: dict[int, Row]) -> Row | None:
    """The expression of ``register`` from the evaluated ``row.dst``; None if that is ill-conditioned or noisy."""
    factor = row.x[register]
    if row.z or abs(factor) < 1e-3:
        return None
    others = {r: a for r, a in row.x.items() if r != register}
    rest = _substitute(Row(row.dst, others, row.d, row.d1), alias)
    negate = lambda terms: {key: -value / factor for key, value in terms.items()}  # noqa: E731
    x = negate(rest.x)
    x[row.dst] = x.get(row.dst, 0.0) + 1 / factor
    return Row(register, x, negate(rest.d), negate(rest.d1), {}, row.t)


def _nonzero(terms: dict[int, float]) -> dict[int, float]:
    scale = max((abs(v) for v in terms.values()), default=0.0)
    return {k: v for k, v in terms.items() if abs(v) > 1e-14 * max(scale, 1.0)}


def last_uses(code: tuple[Instruction, ...], out: int) -> list[list[str]]:
    """For each instruction the values that nobody reads after it."""
    seen = {f"x{out}"}
    uses: list[list[str]] = []
    for c in reversed(code):
        dead = [name for name in dict.fromkeys(c.reads()) if name not in seen]
        if c.writes() not in seen:  # a value that is never read
            dead.append(c.writes())
        seen.update(c.reads())
        uses.append(dead)
    return uses[::-1]
