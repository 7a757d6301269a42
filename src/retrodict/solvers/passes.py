"""Passes over a plan's code: normal form, elimination of registers that are never evaluated, liveness.

Elimination is what makes high-order plans cheap.  A predictor-corrector carries a corrected state that is never
shown to the network; solving the row that produced the next evaluated state for it turns two long rows into one
short one, with the same normal form.  Passes are for the fast runtime: the general one runs the plan as it stands,
since its noisy rows carry the densities of weighted populations.
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
    if plan.paired:
        raise InputError("a plan that carries a pair of states has no normal form over one start")
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
    """The same solver in fewer terms; a plan that cannot be shortened is returned as it is.

    Two rewritings, in float64: states that are never evaluated are kept as expressions in evaluated ones only, and a
    state is written out in a row where everything that it was made of stands already.
    """
    short = plan.with_code(_written_out(_without_unevaluated(plan)))
    before, after = (sum(c.terms for c in p.code if isinstance(c, Row)) for p in (plan, short))
    rows = [c for c in short.code if isinstance(c, Row)]
    largest = max((abs(v) for c in rows for v in [*c.x.values(), *c.d.values()]), default=0.0)
    return short if after < before and largest < 1e3 else plan


def _without_unevaluated(plan: Plan) -> list[Instruction]:
    """Each register that is never evaluated becomes its own row, or, once a later evaluated state was computed from it,
    that row solved for it.  Noisy rows are left alone: solving one would spread its noise."""
    evaluated = {c.x for c in plan.code if isinstance(c, Eval)} | {0, plan.out}
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
    return code


def _written_out(code: list[Instruction]) -> list[Instruction]:
    """Rows with a state replaced by its own row wherever that brings in no new term: the last row of a Runge-Kutta step
    then holds the source state and the evaluations only."""
    made: dict[int, Row] = {}
    short: list[Instruction] = []
    for c in code:
        if isinstance(c, Row):
            while (u := _redundant(c, made)) is not None:
                c = _substitute(c, {u: made[u]})
            made[c.dst] = c
        short.append(c)
    return short


def _redundant(row: Row, made: dict[int, Row]) -> int | None:
    """The newest state of a row that is a combination of the row's other terms."""
    for register in reversed(row.x):
        own = made.get(register)
        if own is not None and not own.z and own.x.keys() <= row.x.keys() and own.d.keys() <= row.d.keys():
            if own.d1.keys() <= row.d1.keys():
                return register
    return None


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


def last_uses(code: tuple[Instruction, ...], out: int, also: tuple[int, ...] = ()) -> list[list[str]]:
    """For each instruction the values that nobody reads after it; ``out`` and ``also`` are read at the end."""
    seen = {f"x{r}" for r in (out, *also)}
    uses: list[list[str]] = []
    for c in reversed(code):
        dead = [name for name in dict.fromkeys(c.reads()) if name not in seen]
        if c.writes() not in seen:  # a value that is never read
            dead.append(c.writes())
        seen.update(c.reads())
        uses.append(dead)
    return uses[::-1]
