"""A plan as a recursion: everything that is alive between two evaluations is one state, and a step is one map.

Just before evaluation k let ``s_k`` hold the registers and earlier denoiser outputs that later rows still read.  Rows
are linear, so the next state is

    s_{k+1} = A_k s_k + b_k D_k(u_k) + e_k D1_k(u_k) + w_k        u_k = s_k[i_k], the evaluated register

with small matrices of plain numbers and ``w_k`` the noise and constants that the rows add.  A one-step method has a
state of one entry; a multistep method keeps its history, a Runge-Kutta method its stages.  `parallel` solves the
recursion for all k at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.solvers.passes import eliminate, last_uses
from retrodict.solvers.plan import Call, Eval, Instruction, Plan, Row

_ONE = -1  # where a fresh normal has its number: not drawn, but one


@dataclass(frozen=True)
class Steps:
    """The recursion of a plan of n evaluations, with states padded to R entries.

    Attributes:
        A: ``(n, R, R)``; outputs: ``(n, R, 1|2)``, the coefficients b (and e, where the plan uses the second end).
        read: ``(n,)``, which entry each evaluation reads; times, alpha: ``(n,)`` of the evaluations.
        first: ``(R,)``, s_0 as multiples of the start; noise: per step (the first is before evaluation 0) the
            coefficients ``{(entry, m): c}`` of fresh normals, and of a constant.
        out: the entry of ``s_n`` that holds the result.
    """

    A: np.ndarray
    outputs: np.ndarray
    read: np.ndarray
    times: np.ndarray
    alpha: np.ndarray
    first: np.ndarray
    noise: tuple[dict[tuple[int, int], float], ...]
    out: int

    @property
    def n(self) -> int:
        """Evaluations."""
        return len(self.times)

    @property
    def size(self) -> int:
        """Entries of a state."""
        return self.A.shape[1]

    def fresh(self, z: Any, like: Tensor) -> Tensor | None:
        """``w`` for all steps, ``(batch, numel, n + 1, R)``; None for a plan without noise.  ``z[m]`` in order."""
        if not any(self.noise):
            return None
        w = like.new_zeros(len(like), like[0].numel(), self.n + 1, self.size)
        drawn: dict[int, Tensor] = {}
        for m in sorted({m for row in self.noise for _, m in row}):
            drawn[m] = torch.ones_like(like).flatten(1) if m == _ONE else z[m].flatten(1).to(like)
        for k, row in enumerate(self.noise):
            for (entry, m), c in row.items():
                w[:, :, k, entry] += c * drawn[m]
        return w


def recursion(plan: Plan) -> Steps:
    """The recursion of a plan.

    Raises:
        InputError: rows or times that depend on data, which are no linear maps of the state.
    """
    plan = plan.with_code([_row_of(c) for c in plan.code])
    why = _obstacle(plan)
    if why:
        instead = "take a solver of linear rows, such as 'dpm-solver++', or 'ddim' with any eta, or "
        raise InputError(
            f"only plans of linear rows from one start run in parallel, and {why}: "
            f"{instead if plan.process.state == 'real' else ''}leave parallel= out"
        )
    walk = _Walk(eliminate(plan))
    size = max(len(m) for m in walk.maps)
    n, ends = len(walk.nodes), 2 if plan.two_ended else 1
    A, outputs = np.zeros((n, size, size)), np.zeros((n, size, ends))
    for k in range(n):
        linear, width = walk.maps[k + 1], len(walk.maps[k])
        A[k, : len(linear), :width] = linear[:, :width]
        outputs[k, : len(linear)] = linear[:, width : width + ends]
    first = np.zeros(size)
    first[: len(walk.maps[0])] = walk.maps[0][:, 0]
    times, alpha = (np.array([getattr(c, name) for c in walk.nodes]) for name in ("t", "alpha"))
    return Steps(A, outputs, np.array(walk.read), times, alpha, first, tuple(walk.noise), 0)


def _obstacle(plan: Plan) -> str:
    """Why a plan is no recursion of linear maps, or nothing."""
    if plan.paired:
        return "this one carries a pair of states"
    if any(isinstance(c, Eval) and c.clock is not None for c in plan.code):
        return "this one asks at times that depend on the data"
    called = next((c for c in plan.code if isinstance(c, Call)), None)
    if called is not None and called.name == "affine":
        return "this one has coefficients for each element (scalar statistics give it numbers)"
    return "" if called is None else f"rows of this one ({called.name!r}) depend on the data"


def _row_of(c: Instruction) -> Instruction:
    """An affine call of plain numbers as the row that it is."""
    if not isinstance(c, Call) or c.name != "affine":
        return c
    coefficients, constant = c.options["coefficients"], c.options["constant"]
    if any(isinstance(v, list) for v in [*coefficients, constant]):
        return c
    x: dict[int, float] = {}
    for register, a in zip((c.x, *c.more), coefficients):
        x[register] = x.get(register, 0.0) + a
    return Row(c.dst, x, z={_ONE: constant} if constant else {}, t=c.s)


class _Walk:
    """Follows a plan with every live value as a row of coefficients over (the state at the last evaluation, its
    outputs), and closes a step at each evaluation."""

    def __init__(self, plan: Plan) -> None:
        self.maps: list[np.ndarray] = []
        self.noise: list[dict[tuple[int, int], float]] = []
        self.nodes: list[Eval] = []
        self.read: list[int] = []
        self.live: dict[str, np.ndarray] = {"x0": np.ones(1)}
        self.drawn: dict[str, dict[int, float]] = {}
        for c, dead in zip(plan.code, last_uses(plan.code, plan.out)):
            if isinstance(c, Eval):
                self._evaluate(c, plan.two_ended)
            else:
                assert isinstance(c, Row)
                self._row(c)
            for name in dead:
                self.live.pop(name, None)
                if name[0] == "d":
                    self.live.pop(f"e{name[1:]}", None)
        self._close([f"x{plan.out}"])

    def _evaluate(self, c: Eval, two_ended: bool) -> None:
        names = list(self.live)
        self._close(names)
        self.nodes.append(c)
        self.read.append(names.index(f"x{c.x}"))
        ends = 2 if two_ended else 1
        basis = np.eye(len(names) + ends)
        self.live = dict(zip(names, basis))
        self.live |= dict(zip([f"d{c.k}", f"e{c.k}"], basis[len(names) :]))

    def _close(self, names: list[str]) -> None:
        self.maps.append(np.stack([self.live[name] for name in names]))
        self.noise.append({(i, m): c for i, name in enumerate(names) for m, c in self.drawn.get(name, {}).items()})
        self.drawn = {}

    def _row(self, row: Row) -> None:
        terms = [(f"x{r}", a) for r, a in row.x.items()] + [(f"d{k}", a) for k, a in row.d.items()]
        terms += [(f"e{k}", a) for k, a in row.d1.items()]
        total = np.zeros(len(next(iter(self.live.values()))))
        fresh = {m: float(c) for m, c in row.z.items()}
        for name, a in terms:
            total = total + float(a) * self.live[name]
            for m, c in self.drawn.get(name, {}).items():
                fresh[m] = fresh.get(m, 0.0) + float(a) * c
        self.live[f"x{row.dst}"] = total
        self.drawn[f"x{row.dst}"] = fresh


def as_tensors(steps: Steps, like: Tensor) -> tuple[Tensor, Tensor]:
    """``A`` and ``outputs`` in the dtype and on the device of a state."""
    return torch.from_numpy(steps.A).to(like), torch.from_numpy(steps.outputs).to(like)
