"""Adaptive steps, recorded: an embedded Runge-Kutta pair chooses the times, and the result is an ordinary plan.

A trial step of the pair gives the next state and an estimate of its error; the step is kept if the worst sample's
error is within ``atol + rtol |x|``, and the next length follows from the estimate.  What is kept is the list of times,
so that the plan of those times replays the run to rounding, can be saved, cut and shown, and costs on other starts
what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, NonFiniteError, require
from retrodict.processes import GaussianPath, Process
from retrodict.solvers.build import plan
from retrodict.solvers.builder import Builder
from retrodict.solvers.generators.runge_kutta import Tableau, inner_levels, rk_step, tableau_named
from retrodict.solvers.grids import is_interpolant, levels_at, noiseless
from retrodict.solvers.plan import Eval, Plan, Row
from retrodict.solvers.weights import NATURAL, Levels, lambda_of


@dataclass(frozen=True)
class Recorded:
    """What an adaptive run leaves.

    Attributes:
        plan: the accepted steps, replayable.
        x: the result ``(batch, *shape)``.
        evaluations: denoiser calls made, rejected steps included (the plan makes ``plan.nfe``).
        rejected: trial steps thrown away.
    """

    plan: Plan
    x: Tensor
    evaluations: int
    rejected: int


@torch.no_grad()
def adaptive(
    process: Process,
    denoiser: Any,
    x: Tensor,
    *,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    kind: str = "velocity",
    tableau: str = "bogacki-shampine",
    start: float = 1.0,
    end: float | None = None,
    max_evaluations: int = 10_000,
    **condition: Any,
) -> Recorded:
    """Solve the probability-flow ODE with error control, and record the plan.

    Args:
        process: a path with one unknown end; denoiser: what to run backward on it.
        x: the state at ``start``, ``(batch, *shape)``.
        rtol, atol: relative and absolute tolerance of a step, per element, root mean square over a sample.
        kind: whose natural coordinate is the clock: "velocity", "flow" or "noise".
        tableau: an embedded pair ("bogacki-shampine").
        end: None goes to sigma = 0; the last step there, from the path's smallest time, is not controlled.
        condition: of the denoiser.

    Raises:
        InputError: a tableau without an error estimate, tolerances that are not positive, too many evaluations.
    """
    if not isinstance(process, GaussianPath) or not process.scalar or is_interpolant(process):
        raise InputTypeError("adaptive steps need a scalar Gaussian path whose noise grows with t")
    pair = tableau_named(tableau)
    require(bool(pair.error), f"tableau {tableau!r} has no embedded error estimate; use 'bogacki-shampine'")
    require(rtol > 0 and atol > 0, f"tolerances are positive, got rtol={rtol}, atol={atol}")
    require(kind in ("velocity", "flow", "noise"), f"kind is 'velocity', 'flow' or 'noise', got {kind!r}")
    if kind == "noise" and not np.isfinite(float(process.log_snr(start))):
        raise InputError("the clock of kind 'noise' is infinite where alpha = 0; use kind 'velocity' or 'flow'")
    control = _Controller(process, denoiser, x, kind, pair, rtol, atol, max_evaluations, condition)
    last = end if end is not None else (min(process.t_min, start / 2) if noiseless(process, 0.0) else 0.0)
    control.go(start, last)
    if end is None:
        control.finish()
    replay = plan("rho-rk", process, grid=control.times, end=end, tableau=tableau, kind=kind)
    replay = replace(replay, meta={**replay.meta, "tolerance": {"rtol": rtol, "atol": atol}})
    return Recorded(replay, control.x, control.evaluations, control.rejected)


class _Controller:
    """The state of one adaptive run."""

    def __init__(
        self,
        process: GaussianPath,
        denoiser: Any,
        x: Tensor,
        kind: str,
        pair: Tableau,
        rtol: float,
        atol: float,
        limit: int,
        condition: Mapping[str, Any],
    ) -> None:
        self.process, self.denoiser, self.x, self.kind, self.pair = process, denoiser, x, kind, pair
        self.rtol, self.atol, self.limit, self.condition = rtol, atol, limit, condition
        self.times: list[float] = []
        self.first: Tensor | None = None  # the denoiser's output at the present state: the pair's last stage
        self.evaluations, self.rejected = 0, 0

    def go(self, start: float, end: float) -> None:
        """Controlled steps from start to end."""
        self.times = [start]
        clock, stop = (self._clock(t) for t in (start, end))
        width = (stop - clock) / 10
        while self.times[-1] > end:
            target = clock + width
            final = abs(target - stop) <= 1e-9 * abs(stop) or target <= stop
            t = end if final else self._time(target)
            x, error, last = self._trial(self.times[-1], t)
            ratio = float(self._norm(error, x).max())
            if not np.isfinite(ratio):
                raise NonFiniteError(f"the state after t = {self.times[-1]:g} is not finite")
            if ratio <= 1:
                self.x, self.first = x, last
                self.times.append(t)
                clock = self._clock(t)
            else:
                self.rejected += 1
            width *= min(5.0, max(0.2, 0.9 * max(ratio, 1e-10) ** (-1 / self.pair.order)))
            if self.evaluations > self.limit:
                raise InputError(
                    f"more than {self.limit} evaluations; the tolerance is too tight (reached t = {self.times[-1]:g})"
                )

    def finish(self) -> None:
        """The step to sigma = 0."""
        levels = levels_at(self.process, np.array([self.times[-1], 0.0]), clean=True)
        b = Builder(self.process, levels)
        out, _ = rk_step(b, 0, 0, 1, self.pair, self.kind, inner_levels(b, self.pair, self.kind, [(0, 1)]).get(0, []))
        self.x = self._run(b)[0][out]
        self.times.append(0.0)

    def _trial(self, s: float, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """``(state at t, its error, denoiser output there)`` of one step of the pair."""
        b = Builder(self.process, levels_at(self.process, np.array([s, t]), clean=False))
        inner = inner_levels(b, self.pair, self.kind, [(0, 1)]).get(0, [])
        out, ks = rk_step(b, 0, 0, 1, self.pair, self.kind, inner)
        ks.append(b.eval(out, 1))
        c, scale = b.levels.coordinate(NATURAL[self.kind]), b.levels.scale(self.kind)[1]
        shares = {k: scale * (c[1] - c[0]) * share for k, share in zip(ks, self.pair.error)}
        error = b.row(1, predictions=shares, kind=self.kind)
        x, d = self._run(b)
        return x[out], x[error], d[ks[-1]]

    def _run(self, b: Builder) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Execute a builder's rows; the first evaluation is the last one of the step before."""
        x, d = {0: self.x}, {}
        for c in b.code:
            if isinstance(c, Eval):
                if c.k == 0 and self.first is not None:
                    d[0] = self.first
                    continue
                d[c.k] = self.denoiser(x[c.x], c.t, **self.condition)
                self.evaluations += 1
                if c.k == 0:
                    self.first = d[0]
            elif isinstance(c, Row):
                terms = [(x[r], a) for r, a in c.x.items()] + [(d[k], w) for k, w in c.d.items()]
                x[c.dst] = sum((a * value for value, a in terms[1:]), terms[0][1] * terms[0][0])
        return x, d

    def _norm(self, error: Tensor, x: Tensor) -> Tensor:
        """Error over tolerance, root mean square of each sample."""
        tolerance = self.atol + self.rtol * torch.maximum(self.x.abs(), x.abs())
        return (error / tolerance).flatten(1).square().mean(1).sqrt()

    def _clock(self, t: float) -> float:
        levels = Levels(*(np.atleast_1d(v) for v in (t, *self.process.schedule(np.array([t])))))
        return float(levels.coordinate(NATURAL[self.kind])[0])

    def _time(self, clock: float) -> float:
        return float(self.process.time_at(float(lambda_of(self.kind, np.array(clock)))))
