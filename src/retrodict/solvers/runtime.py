"""The fast runtime: a plan lowered to a flat program of tensor operations.

Registers become slots of a list, shared as soon as a value is dead; a row is one torch call a term with the
coefficient as ``alpha=``: the first term multiplies, the rest add in place.  The program is a tuple of plain numbers,
so there is no data-dependent control flow and no read from the device, and the loop over it traces as a whole under
``torch.compile``.  Noise comes as an indexable: `NoiseRows` draws it in blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.solvers.passes import eliminate, last_uses
from retrodict.solvers.plan import Call, Eval, Plan

_BLOCK_BYTES = 64 << 20
_programs: weakref.WeakKeyDictionary[Plan, Callable[..., Tensor]] = weakref.WeakKeyDictionary()

# One line of a program: (slot of the result, slot read first, its coefficient or the time of an evaluation,
# further (slot, coefficient) pairs or None for an evaluation, (noise, coefficient) pairs or the slot of the second end)
Line = tuple[int, int, float, Any, Any]


class NoiseRows:
    """The fresh normals of a plan, drawn some rows at a time and in order.

    The stream of a slot depends on the order of rows only, so the size of the blocks changes nothing.
    """

    def __init__(self, noise: Noise, rows: int, shape: tuple[int, ...], scale: float = 1.0) -> None:
        self.noise, self.rows, self.shape, self.scale = noise, rows, shape, scale
        size = 4 * noise.batch * max(1, int(torch.Size(shape).numel()))
        self.block = max(1, min(64, _BLOCK_BYTES // size))
        self._ready: list[Tensor] = []
        self._next = 0

    def __getitem__(self, m: int) -> Tensor:
        if m != self._next:
            raise InputError(f"noise rows are consumed in order: row {self._next} is next, row {m} was asked for")
        if not self._ready:
            self._ready = self.noise.normals(min(self.block, self.rows - m), self.shape)[::-1]
        self._next += 1
        z = self._ready.pop()
        return z if self.scale == 1.0 else z * self.scale


def compiled(plan: Plan) -> Callable[..., Tensor]:
    """``run(f, x, z)`` for a plan without data-dependent rows; kept with the plan.

    ``f(x, t)`` returns the posterior mean (and the second end where the plan uses it); ``z[m]`` the m-th noise.
    """
    function = _programs.get(plan)
    if function is None:
        function = _programs[plan] = _runner(*lower(plan))
    return function


def _runner(program: tuple[Line, ...], slots: int, out: int) -> Callable[..., Tensor]:
    mul = torch.mul

    def run(f: Callable[..., Any], x0: Tensor, z: Any) -> Tensor:
        r: list[Any] = [None] * slots
        r[0] = x0
        for dst, first, number, rest, extra in program:
            if rest is None:
                if extra is None:
                    r[dst] = f(r[first], number)
                else:
                    r[dst], r[extra] = f(r[first], number)
                continue
            value = mul(r[first], number)
            for slot, coefficient in rest:
                value.add_(r[slot], alpha=coefficient)
            for m, coefficient in extra:
                value.add_(z[m], alpha=coefficient)
            r[dst] = value
        return r[out]

    return run


def lower(plan: Plan) -> tuple[tuple[Line, ...], int, int]:
    """``(program, number of slots, slot of the result)`` of a plan, registers that are never evaluated eliminated."""
    if plan.opaque:
        raise InputError("this plan has data-dependent rows; it runs on the general runtime")
    if plan.paired:
        raise InputError("this plan carries a pair of states; it runs on the general runtime")
    short = eliminate(plan)
    slots = _Slots()
    program = [_line(c, dead, slots, plan.two_ended) for c, dead in zip(short.code, last_uses(short.code, short.out))]
    return tuple(program), slots.count, slots.of[f"x{short.out}"]


class _Slots:
    """Places of a list, handed out and taken back."""

    def __init__(self) -> None:
        self.of, self.free, self.count = {"x0": 0}, [], 1

    def take(self, name: str) -> int:
        if self.free:
            self.of[name] = self.free.pop()
        else:
            self.of[name], self.count = self.count, self.count + 1
        return self.of[name]

    def give(self, name: str) -> None:
        if name in self.of:
            self.free.append(self.of.pop(name))


def _line(c: Any, dead: list[str], slots: _Slots, two_ended: bool) -> Line:
    """One instruction with its operands as slots.  The result of a row may take the place of an operand that dies
    with it, since a row is computed before it is stored."""
    if isinstance(c, Eval):
        source = slots.of[f"x{c.x}"]
        second = slots.take(f"e{c.k}") if two_ended else None
        line: Line = (slots.take(f"d{c.k}"), source, c.t, None, second)
        _give(dead, slots)
        return line
    terms = [(slots.of[f"x{r}"], float(a)) for r, a in c.x.items()]
    terms += [(slots.of[f"d{k}"], float(a)) for k, a in c.d.items()]
    terms += [(slots.of[f"e{k}"], float(a)) for k, a in c.d1.items()]
    (first, number), *rest = terms or [(0, 0.0)]
    _give(dead, slots)
    dst = slots.take(f"x{c.dst}")
    return dst, first, number, tuple(rest), tuple((m, float(a)) for m, a in c.z.items())


def _give(names: list[str], slots: _Slots) -> None:
    for name in names:
        slots.give(name)
        if name[0] == "d":
            slots.give(f"e{name[1:]}")


def run(
    plan: Plan,
    denoiser: Any,
    x: Tensor,
    noise: Noise,
    condition: Mapping[str, Any],
    on_eval: Callable[[], None] | None = None,
) -> Tensor:
    """Run a plan on the fast path; noise comes from the stream "rows"."""
    two_ended = plan.two_ended

    def f(state: Tensor, t: float) -> Any:
        if on_eval is not None:
            on_eval()
        if two_ended:
            belief = denoiser.belief(state, t, **condition)
            return belief.mean, belief.x1
        return denoiser(state, t, **condition)

    rows = NoiseRows(noise.stream("rows"), plan.noises, tuple(x.shape[1:]), denoiser.temperature**0.5)
    return compiled(plan)(f, x, rows)


def is_fast(plan: Plan) -> bool:
    """Whether the fast runtime can run a plan."""
    return not plan.paired and not any(isinstance(c, Call) for c in plan.code)
