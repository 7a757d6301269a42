"""Gradients through a plan: of a loss of its result in its start, its conditions and the denoiser's weights.

A plan is rows and evaluations, so its gradient is the same program walked from the end.  With l_r = dL/dX_r and
m_k = dL/dD_k,

    X_dst = sum a_r X_r + sum b_k D_k      l_r += a_r l_dst,     m_k += b_k l_dst
    D_k   = D(X_x, t_k; c)                 l_x += (dD/dx)^T m_k,     dL/dc += (dD/dc)^T m_k

An evaluation is made again when the walk meets it, and its graph is dropped at once: what has to be kept of a run are
states.  Which ones is found by looking: a state that a row can be solved for, from what the walk holds by then, needs
no keeping.  Of a BDIA plan (Zhang, Lewis and Kleijn 2024) two remain for any number of steps; of most plans all do,
and those are numbers of the size of the data, not activations.  The gradient is that of the plan itself, to rounding.

The continuous adjoint (`retrodict.solvers.continuous`), which keeps one state of any plan, is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from retrodict.core.errors import InputError, require
from retrodict.core.noise import Noise
from retrodict.solvers.inversion import solved_for
from retrodict.solvers.passes import eliminate, last_uses
from retrodict.solvers.plan import Eval, Instruction, Plan, Row
from retrodict.solvers.runtime import NoiseRows

#: ``(x, t, **condition) -> posterior mean``.
Mean = Callable[..., Tensor]
_SMALL = 1e-6  # a coefficient that a row is not solved for
_STEADY = 100.0  # growth of rounding errors up to which a plan counts as reversible


@dataclass(frozen=True)
class Walk:
    """A plan's instructions and how to come back through them.

    Attributes:
        code: the plan's instructions; out: the register of its result.
        back: from the end: a plan's `Row` or `Eval` to take the gradient of, or ``(row,)`` to compute a state again.
        kept: registers that a run keeps.
        growth: bound on the growth of rounding errors in the states that are computed again.
    """

    code: tuple[Instruction, ...]
    out: int
    back: tuple[Any, ...]
    kept: tuple[int, ...]
    growth: float

    @property
    def reversible(self) -> bool:
        """Whether no more than a pair of states is kept."""
        return len(self.kept) <= 2


def walk(plan: Plan, solve: bool) -> Walk:
    """How to come back through a plan, solving rows for older states if ``solve``, or keeping every evaluated one.

    Raises:
        InputError: rows that depend on data, two unknown ends, or several starts.
    """
    require(not plan.opaque, "a plan with rows that depend on data has no gradient here; choose another solver")
    require(not plan.two_ended, "gradients through a plan need a path with one unknown end")
    require(not plan.paired, "this plan starts from a pair of states: gradients need a plan with one start")
    code = eliminate(plan).code
    back = _Back(code, plan.out, solve)
    for c in reversed(code):
        back.take(c)
    return Walk(code, plan.out, tuple(back.steps), tuple(back.kept), back.growth)


class _Back:
    """The walk back, instruction by instruction."""

    def __init__(self, code: tuple[Instruction, ...], out: int, solve: bool) -> None:
        self.steps: list[Any] = []
        self.kept: list[int] = []
        self.growth = 1.0
        self._solve, self._known, self._at_hand = solve, {out} if solve else set(), set()
        self._passed: list[Row] = []
        self._out = out
        self._time = {c.dst: c.t for c in code if isinstance(c, Row)}

    def take(self, c: Instruction) -> None:
        self.steps.append(c)
        if isinstance(c, Row):
            self._passed.append(c)
            return
        assert isinstance(c, Eval)
        if c.x not in self._known:
            self._known.add(c.x)
            self.kept.append(c.x)
        self._at_hand.add(c.k)
        while self._solve and any(self._use(row) for row in self._passed):
            pass

    def _use(self, row: Row) -> bool:
        """Compute a state that the row gives, forward or solved; whether there was one."""
        if row.z or any(k not in self._at_hand for k in row.d):
            return False
        unknown = [r for r in row.x if r not in self._known]
        if row.dst not in self._known and not unknown:
            made = row
        elif row.dst in self._known and len(unknown) == 1 and abs(row.x[unknown[0]]) > _SMALL:
            (u,) = unknown
            made = solved_for(row, u, self._time.get(u, 1.0))
            self.growth *= max(1.0, 1 / abs(row.x[u]))
            if row.dst == self._out and self._out not in self.kept:
                self.kept.append(self._out)
        else:
            return False
        self.steps.append((made,))
        self._known.add(made.dst)
        return True


def choose(plan: Plan, mode: str) -> Walk:
    """The walk of a mode: "reversible", "recompute", or "auto", the first where the plan allows it."""
    if mode != "recompute":
        found = walk(plan, solve=True)
        if found.reversible and (mode == "reversible" or found.growth <= _STEADY):
            return found
        if mode == "reversible":
            raise InputError(
                f"plan {plan.meta.get('solver', 'of free coefficients')!r} is not reversible: {len(found.kept)} of its "
                "states cannot be solved for; 'bdia' is, and mode='recompute' takes any plan"
            )
    return walk(plan, solve=False)


# -- running --------------------------------------------------------------------------------------------------


def through(
    found: Walk,
    mean: Mean,
    x: Tensor,
    noise: Noise,
    condition: Mapping[str, Any],
    parameters: Sequence[Tensor],
    temperature: float = 1.0,
) -> Tensor:
    """Run a plan from x, as a function that autograd can go back through.

    Args:
        mean: the denoiser; parameters: those of its weights that want gradients.
        condition: its conditions; real tensors that require gradients get them.
        noise: of the plan's fresh normals, which are constants to the gradient.
    """
    wanted = {k: v for k, v in condition.items() if isinstance(v, Tensor) and v.requires_grad}
    rest = {k: v for k, v in condition.items() if k not in wanted}
    job = _Job(found, mean, rest, tuple(wanted), noise, temperature)
    out: Any = _Through.apply(job, x, *wanted.values(), *parameters)
    return out


@dataclass(frozen=True)
class _Job:
    """What stays the same between a run and the walk back."""

    walk: Walk
    mean: Mean
    condition: Mapping[str, Any]
    names: tuple[str, ...]
    noise: Noise
    temperature: float

    def forward(self, x: Tensor, values: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The result, and the kept states."""
        condition = {**self.condition, **dict(zip(self.names, values))}
        code, kept = self.walk.code, set(self.walk.kept)
        count = sum(len(c.z) for c in code if isinstance(c, Row))
        rows = NoiseRows(self.noise.stream("rows"), count, tuple(x.shape[1:]), self.temperature**0.5)
        X, D = {0: x}, {}
        for c, dead in zip(code, last_uses(code, self.walk.out, self.walk.kept)):
            if isinstance(c, Eval):
                D[c.k] = self.mean(X[c.x], c.t, **condition)
            elif isinstance(c, Row):
                X[c.dst] = _combine([(X[r], a) for r, a in c.x.items()] + [(D[k], b) for k, b in c.d.items()])
                for m, a in c.z.items():
                    X[c.dst] = X[c.dst] + a * rows[m]
            for name in dead:
                (X if name[0] == "x" else D).pop(int(name[1:]), None)
        return X[self.walk.out], [X[r] for r in self.walk.kept if r in kept]

    def backward(
        self, grad: Tensor, states: Sequence[Tensor], values: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """Gradients in the start, and in values and parameters."""
        X = dict(zip(self.walk.kept, states))
        D: dict[int, Tensor] = {}
        held = _Sums(f"x{self.walk.out}", grad)
        leaves = [v.detach().requires_grad_() for v in values]
        inputs = [*leaves, *parameters]
        sums: list[Tensor | None] = [None] * len(inputs)
        uses = _last_reads(self.walk.back)
        for i, c in enumerate(self.walk.back):
            if isinstance(c, tuple):
                (row,) = c
                X[row.dst] = _combine([(X[r], a) for r, a in row.x.items()] + [(D[k], b) for k, b in row.d.items()])
            elif isinstance(c, Row):
                cotangent = held.take(f"x{c.dst}")
                if cotangent is not None:
                    held.add_all(c, cotangent)
            else:
                D[c.k] = self._vjp(X[c.x], c, held, leaves, inputs, sums)
            for name in uses.get(i, ()):
                (X if name[0] == "x" else D).pop(int(name[1:]), None)
        in_start = held.take("x0")
        return None if in_start is None else in_start.to(grad), sums

    def _vjp(
        self,
        x: Tensor,
        c: Eval,
        held: _Sums,
        leaves: Sequence[Tensor],
        inputs: Sequence[Tensor],
        sums: list[Tensor | None],
    ) -> Tensor:
        """Evaluate again, with gradients; what they add goes into the sums."""
        cotangent = held.take(f"d{c.k}")
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            mean = self.mean(x, c.t, **self.condition, **dict(zip(self.names, leaves)))
        if cotangent is not None and mean.requires_grad:
            in_x, *rest = torch.autograd.grad(mean, [x, *inputs], cotangent.to(mean), allow_unused=True)
            if in_x is not None:
                held.add(f"x{c.x}", in_x.double())
            for j, part in enumerate(rest):
                if part is not None:
                    sums[j] = part if sums[j] is None else sums[j] + part  # type: ignore[operator]
        return mean.detach()


class _Sums:
    """Cotangents by name, added up in float64: the large terms of a leapfrog cancel."""

    def __init__(self, name: str, value: Tensor) -> None:
        self._of = {name: value.double()}

    def take(self, name: str) -> Tensor | None:
        """What came together for a name, in float64, and forget it."""
        return self._of.pop(name, None)

    def add(self, name: str, value: Tensor) -> None:
        self._of[name] = self._of[name] + value if name in self._of else value

    def add_all(self, row: Row, cotangent: Tensor) -> None:
        """What a row hands on to its states and evaluations."""
        for r, a in row.x.items():
            self.add(f"x{r}", a * cotangent)
        for k, b in row.d.items():
            self.add(f"d{k}", b * cotangent)


class _Through(torch.autograd.Function):
    """A plan as one operation of autograd."""

    @staticmethod
    def forward(ctx: Any, job: _Job, x: Tensor, *tensors: Tensor) -> Tensor:
        count = len(job.names)
        out, states = job.forward(x, tensors[:count])
        ctx.job, ctx.parameters = job, tensors[count:]
        ctx.versions = [p._version for p in ctx.parameters]
        ctx.save_for_backward(*states, *tensors[:count])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # type: ignore[override]  # the decorator hides names
        job, parameters = ctx.job, ctx.parameters
        if [p._version for p in parameters] != ctx.versions:
            raise InputError("the denoiser's weights changed between the run and its gradient: take the gradient first")
        kept = len(job.walk.kept)
        states, values = ctx.saved_tensors[:kept], ctx.saved_tensors[kept:]
        wanted = [p for p, needed in zip(parameters, ctx.needs_input_grad[2 + len(values) :]) if needed]
        in_x, sums = job.backward(grads[0], states, values, wanted)
        of_weights = iter(sums[len(values) :])
        return (
            None,
            in_x,
            *sums[: len(values)],
            *(next(of_weights) if needed else None for needed in ctx.needs_input_grad[2 + len(values) :]),
        )


def _combine(terms: list[tuple[Tensor, float]]) -> Tensor:
    (first, a), *rest = terms
    out = torch.mul(first, a)
    for value, b in rest:
        out.add_(value, alpha=b)
    return out


def _last_reads(steps: tuple[Any, ...]) -> dict[int, list[str]]:
    """After which step of the walk back each value is read no more."""
    last: dict[str, int] = {}
    for i, c in enumerate(steps):
        if isinstance(c, tuple):
            reads = [*c[0].reads(), c[0].writes()]
        else:
            reads = [f"x{c.x}", c.writes()] if isinstance(c, Eval) else []
        last |= {name: i for name in reads}
    dead: dict[int, list[str]] = {}
    for name, i in last.items():
        dead.setdefault(i, []).append(name)
    return dead
