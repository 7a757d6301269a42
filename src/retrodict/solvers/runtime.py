"""The fast runtime: a plan compiled to a straight-line Python function.

One torch call a term, with the coefficient as ``alpha=``; the first term multiplies, the rest add in place; values
are dropped after their last use.  There is no data-dependent control flow and no read from the device, so the
function traces as a whole under ``torch.compile``.  Noise comes as an indexable: `NoiseRows` draws it in blocks.
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
from retrodict.solvers.plan import Call, Eval, Plan, Row

_BLOCK_BYTES = 64 << 20
_compiled: weakref.WeakKeyDictionary[Plan, Callable[..., Tensor]] = weakref.WeakKeyDictionary()


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
    """``run(f, x, z)`` for a plan without data-dependent rows; cached on the plan.

    ``f(x, t)`` returns the posterior mean (and the second end where the plan uses it); ``z[m]`` the m-th noise.
    """
    function = _compiled.get(plan)
    if function is None:
        namespace: dict[str, Any] = {"mul": torch.mul}
        exec(compile(source(plan), f"<plan {plan.meta.get('solver', '')}>", "exec"), namespace)  # our own text
        function = namespace["run"]
        _compiled[plan] = function
    return function


def source(plan: Plan) -> str:
    """The straight-line program of a plan, as Python text.  It contains numbers and register names only."""
    if plan.opaque:
        raise InputError("this plan has data-dependent rows; it runs on the general runtime")
    short = eliminate(plan)
    lines = ["def run(f, x0, z):"]
    for instruction, dead in zip(short.code, last_uses(short.code, short.out)):
        lines += _lines(instruction, plan.two_ended)
        names = [f"{name.replace('d', 'e')}" for name in dead if name[0] == "d"] if plan.two_ended else []
        if dead:
            lines.append(f"del {', '.join(dead + names)}")
    return "\n    ".join([*lines, f"return x{short.out}"]) + "\n"


def _lines(instruction: Any, two_ended: bool) -> list[str]:
    if isinstance(instruction, Eval):
        left = f"d{instruction.k}, e{instruction.k}" if two_ended else f"d{instruction.k}"
        return [f"{left} = f(x{instruction.x}, {instruction.t!r})"]
    row: Row = instruction
    terms = [(f"x{r}", a) for r, a in row.x.items()] + [(f"d{k}", b) for k, b in row.d.items()]
    terms += [(f"e{k}", b) for k, b in row.d1.items()] + [(f"z[{m}]", c) for m, c in row.z.items()]
    name = f"x{row.dst}"
    if not terms:
        return [f"{name} = mul(x0, 0.0)"]
    (first, a), rest = terms[0], terms[1:]
    if not rest and a == 1.0:
        return [f"{name} = {first}"]
    return [f"{name} = mul({first}, {float(a)!r})", *(f"{name}.add_({v}, alpha={float(c)!r})" for v, c in rest)]


def run(
    plan: Plan,
    denoiser: Any,
    x: Tensor,
    noise: Noise,
    condition: Mapping[str, Any],
    on_eval: Callable[[], None] | None = None,
) -> Tensor:
    """Run a plan on the fast path; noise comes from the stream "rows"."""

    def f(state: Tensor, t: float) -> Any:
        if on_eval is not None:
            on_eval()
        if plan.two_ended:
            belief = denoiser.belief(state, t, **condition)
            return belief.mean, belief.x1
        return denoiser(state, t, **condition)

    rows = NoiseRows(noise.stream("rows"), plan.noises, tuple(x.shape[1:]), denoiser.temperature**0.5)
    return compiled(plan)(f, x, rows)


def is_fast(plan: Plan) -> bool:
    """Whether the fast runtime can run a plan."""
    return not any(isinstance(c, Call) for c in plan.code)
