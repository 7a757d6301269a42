"""Running a plan the other way: from the data it made back to the start it came from.

Exactly, where the rows allow it.  A row is solved for its oldest state,

    X_dst = a X_u + (terms that are known)      ->      X_u = (X_dst - terms)/a,

if a is not zero and every other state and evaluation in it is already known.  `inverse` looks for that structure from
the result backward; BDIA has it once the last two states are known, and so has every leapfrog.  Adams methods do not:
D_{i-1} stands in the row that would give x_{i-1}.

For those `fixed_point` corrects the target: with F the plan and E any encoder with ``F(E(z)) = z + O(h)``,

    z <- z + (x - F(E(z)))                      until F(E(z)) = x,

which contracts since F E is near the identity in data space, whatever the plan is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.noise import KeyedNoise
from retrodict.processes import GaussianPath
from retrodict.solvers import general
from retrodict.solvers.builder import Builder
from retrodict.solvers.generators.runge_kutta import TABLEAUX, rk_step
from retrodict.solvers.grids import levels_at
from retrodict.solvers.plan import Eval, Instruction, Plan, Row
from retrodict.solvers.weights import Levels


@dataclass
class Inversion:
    """Where samples come from: what `retrodict.invert` returns, and `sample(init=...)` takes.

    Attributes:
        states: ``(n, m, *shape)``, m = 2 for a pair of successive states, in float64, 1 for a start alone; in the
            model's units.
        plan: regenerates from all m states.
        errors: relative L2 errors of regenerated states, root mean square over the samples: "carried" from these
            states, "start alone" from the first of a pair, "ddim" of DDIM's encoding on the same times.
        residual: ``(n,)`` relative error of each sample, where it was measured.
    """

    states: Tensor
    plan: Plan
    errors: dict[str, float] = field(default_factory=dict)
    residual: Tensor | None = None

    @property
    def start(self) -> Tensor:
        """The state at the plan's start ``(n, *shape)``."""
        return self.states[:, 0]

    @property
    def init(self) -> Tensor:
        """What the plan starts from: `start`, or the pair."""
        return self.states if len(self.plan.starts) > 1 else self.start

    def __len__(self) -> int:
        return len(self.states)

    def save(self, path: str | Path) -> None:
        """Write states and plan to one safetensors file."""
        path = Path(path)
        require(path.suffix == ".safetensors", f"the file's name ends in .safetensors, got {path.name!r}")
        tensors = {"states": self.states.detach().cpu().contiguous()}
        if self.residual is not None:
            tensors["residual"] = self.residual.detach().cpu().contiguous()
        save_file(tensors, path, {"plan": json.dumps(self.plan.to_dict()), "errors": json.dumps(self.errors)})

    @staticmethod
    def load(path: str | Path, process: Any = None) -> Inversion:
        """Read a file of `save`; ``process`` is needed where it was made from code."""
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} is not a readable safetensors file: {error}") from error
        require("plan" in told and "states" in tensors, f"{path} holds no inversion; files of Inversion.save do")
        plan = Plan.from_dict(json.loads(told["plan"]), process)
        return Inversion(tensors["states"], plan, json.loads(told["errors"]), tensors.get("residual"))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {value:.1e}" for name, value in self.errors.items())
        kind = "pairs of states" if self.states.shape[1] == 2 else "starts"
        return f"Inversion({len(self)} {kind} of {self.plan!r}{'; errors: ' + shown if shown else ''})"


# -- exact inverses -------------------------------------------------------------------------------------------


def inverse(plan: Plan) -> tuple[Plan, Plan]:
    """``(encoder, generator)``: the plan's exact inverse, and the plan itself started from what the inverse returns.

    The encoder takes the state at the plan's end.  Where a second state is needed, the one before the end, it is made
    by one DDIM step upward; the generator, started from the pair that the encoder returns, comes back to both.

    Raises:
        InputError: fresh noise, rows that depend on data, an end at sigma = 0, or rows that cannot be solved.
    """
    _check(plan)
    solver = _solved(plan)
    pair = solver.pair()
    meta = {"solver": plan.meta.get("solver"), "inverse": True, "end": plan.times[0], "generated": False}
    times = plan.times[::-1]
    encoder = Plan(tuple(solver.code), 0, times, plan.process, meta, (plan.out,), pair)
    return encoder, _started_from(plan, (0, *pair))


def _solved(plan: Plan) -> _Solver:
    """The instructions that lead from the result to the start, with one more state given where one is needed: the
    newest that will do, among those evaluated over the last two steps."""
    evaluated = [c for c in reversed(plan.code) if isinstance(c, Eval)]
    recent = [c for c in evaluated if c.t <= plan.times[-min(3, len(plan.times))]]
    for given in [None, *recent]:
        solver = _Solver(plan)
        if given is not None:
            solver.give(given)
        solver.spread()
        if 0 in solver.known:
            return solver
    raise InputError(
        f"plan {plan.meta.get('solver', 'of free coefficients')!r} has no exact inverse: its rows read evaluations at "
        "states that are not known when they are solved; 'bdia' has one, and method='fixed-point' inverts any"
    )


def solved_for(row: Row, u: int, t: float) -> Row:
    """A row without noise, solved for one of its states, which stands at time t."""
    a = row.x[u]
    x = {row.dst: 1 / a} | {r: -c / a for r, c in row.x.items() if r != u}
    return Row(u, x, {k: -c / a for k, c in row.d.items()}, t=t)


class _Solver:
    """What is known of a plan's registers, from the result backward, and the instructions that made it so."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.code = plan, []
        self.known, self.evaluated = {plan.out}, set()
        self.rows = [c for c in plan.code if isinstance(c, Row)]
        self.evals = {c.k: c for c in plan.code if isinstance(c, Eval)}
        self.level = {0: plan.times[0]} | {c.dst: c.t for c in self.rows}

    def spread(self) -> None:
        """Everything that follows from what is known."""
        moved = True
        while moved and 0 not in self.known:
            moved = any(self._use(row) for row in reversed(self.rows))

    def _use(self, row: Row) -> bool:
        """Compute a row forward, or solve it for its one unknown state."""
        if any(self.evals[k].x not in self.known for k in row.d):
            return False
        unknown = [r for r in row.x if r not in self.known]
        if row.dst not in self.known and not unknown:
            made = row
        elif row.dst in self.known and len(unknown) == 1:
            made = solved_for(row, unknown[0], self.level[unknown[0]])
        else:
            return False
        for k in row.d:
            self._evaluate(k)
        self.code.append(made)
        self.known.add(made.dst)
        return True

    def _evaluate(self, k: int) -> None:
        if k not in self.evaluated:
            self.evaluated.add(k)
            self.code.append(self.evals[k])

    def give(self, node: Eval) -> None:
        """Make the state of an evaluation by DDIM upward from the plan's end."""
        end, path = self.plan.times[-1], self.plan.process
        alpha, sigma = (float(c(end)) for c in (path.alpha, path.sigma))  # type: ignore[attr-defined]
        ratio, k = node.sigma / sigma, 1 + max(self.evals)
        self.code.append(Eval(k, self.plan.out, end, alpha, sigma))
        self.code.append(Row(node.x, {self.plan.out: ratio}, {k: node.alpha - alpha * ratio}, t=node.t))
        self.known.add(node.x)

    def pair(self) -> tuple[int, ...]:
        """The state after the start: regenerating it from the start would not return what was solved for."""
        first = next((c.x for c in self.plan.code if isinstance(c, Eval) and c.x != 0 and c.x in self.known), None)
        return () if first is None else (first,)


def _started_from(plan: Plan, starts: tuple[int, ...]) -> Plan:
    """The plan with some registers given instead of computed; instructions that nothing reads are left out."""
    if len(starts) == 1:
        return plan
    kept: list[Instruction] = []
    read = {f"x{plan.out}"}
    for c in reversed(plan.code):
        if c.writes() in read and c.writes() not in {f"x{r}" for r in starts}:
            kept.append(c)
            read.update(c.reads())
    return replace(plan, code=tuple(kept[::-1]), starts=starts, meta={**plan.meta, "generated": False})


def _check(plan: Plan) -> None:
    require(not plan.opaque, "rows that depend on data cannot be inverted")
    require(not plan.noises, "a plan with fresh noise has no inverse: use eta=0")
    require(not plan.paired, "this plan starts from a pair of states already")
    require(
        isinstance(plan.process, GaussianPath) and plan.process.scalar and len(plan.process.ends) == 1,
        "inversion needs a scalar Gaussian path with one unknown end",
    )
    sigma = float(plan.process.sigma(plan.times[-1])) if plan.meta.get("end") is not None else 0.0  # type: ignore[attr-defined]
    require(sigma > 0, "the step to sigma = 0 cannot be inverted: give the plan an end above it, such as end=1e-3")


# -- encoders and the fixed point -----------------------------------------------------------------------------


def encoder(plan: Plan, method: str = "heun") -> Plan:
    """A plan up the same times, from the end of ``plan`` to its start: "ddim" (one evaluation a step, what is called
    DDIM inversion) or "heun" (two).  It inverts ``plan`` up to both their errors."""
    _check(plan)
    times = np.array(plan.times)
    down = levels_at(plan.process, times, clean=False)
    b = Builder(plan.process, Levels(*(getattr(down, n)[::-1].copy() for n in ("t", "alpha", "sigma", "lam"))))
    x = 0
    for i in range(b.n):
        if method == "ddim":
            x = b.frozen(x, b.eval(x, i), i, i + 1)
        else:
            x, _ = rk_step(b, x, i, i + 1, TABLEAUX["heun2"], "flow", [])
    meta = {"solver": f"{method} encoder", "inverse": True, "end": plan.times[0], "generated": False}
    return Plan(tuple(b.code), x, plan.times[::-1], plan.process, meta)


def fixed_point(
    plan: Plan, denoiser: Any, x: Tensor, condition: Mapping[str, Any], iterations: int = 50, tol: float | None = None
) -> tuple[Tensor, Tensor]:
    """``(start, residual)``: the start that ``plan`` maps to x, and the relative error of each sample.

    Samples keep their best iterate; ``tol`` None is ten roundings of the dtype.
    """
    encode = encoder(plan)
    tol = 10 * torch.finfo(x.dtype).eps if tol is None else tol
    z, best, residual = x, x, torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    for _ in range(iterations):
        start = run(encode, denoiser, z, condition)[0]
        miss = x - run(plan, denoiser, start, condition)[0]
        error = relative(miss, x)
        better = error < residual
        best = torch.where(better.view(-1, *(1,) * (x.ndim - 1)), start, best)
        residual = torch.where(better, error, residual)
        if bool((residual <= tol).all()):
            break
        z = z + miss
    return best, residual


def run(plan: Plan, denoiser: Any, x: Tensor, condition: Mapping[str, Any]) -> list[Tensor]:
    """The result of a deterministic plan, and the registers that it also returns."""
    done = general.run(plan, denoiser, x, KeyedNoise(0, len(x), dtype=x.dtype, device=x.device), condition)
    return [done.x, *done.also]


def relative(miss: Tensor, x: Tensor) -> Tensor:
    """L2 norm of ``miss`` relative to that of x, each sample ``(batch,)`` in float64."""
    return miss.double().flatten(1).norm(dim=1) / x.double().flatten(1).norm(dim=1).clamp_min(1e-300)
