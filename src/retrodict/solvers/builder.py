"""The builder: what a row generator writes a plan with.

It numbers registers, evaluations and noises, converts predictions (noise, flow, velocity) to the state and the
denoiser output that a row holds, and fills in the coefficient of the second end of paths that have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from retrodict.processes import GaussianPath, Process
from retrodict.solvers.plan import Call, Eval, Instruction, Row
from retrodict.solvers.weights import INTERPOLATION, Levels, Rule, exact, noise_std, step_weights


class Builder:
    """Collects the rows of one plan.

    Attributes:
        levels: noise levels of the grid (and of the inner nodes that a generator adds).
        n: number of steps of the grid.
        eta: share of stochasticity that was asked for.
        code: the instructions so far.
    """

    def __init__(self, process: Process, levels: Levels, eta: float = 0.0) -> None:
        self.process, self.levels, self.eta = process, levels, eta
        self.n = len(levels) - 1
        self.code: list[Instruction] = []
        self._level_of: dict[int, int] = {0: 0}  # level of each state register
        self._node: dict[int, tuple[int, int]] = {}  # evaluation -> (state register, level)
        self._registers, self._noises = 1, 0
        self._outputs: dict[int, int] = {}  # registers that hold evaluations
        self._velocities: set[int] = set()  # registers that hold predictions rather than states
        self._cached: dict[str, Any] = {}  # arrays over the levels, until levels are added

    # -- emitting -------------------------------------------------------------------------------------------

    def eval(self, x: int, level: int, clock: int | None = None) -> int:
        """Evaluate the denoiser on register x at a level, or at the times in register ``clock``; returns the
        evaluation's index k."""
        k = len(self._node)
        L = self.levels
        self.code.append(Eval(k, x, float(L.t[level]), float(L.alpha[level]), float(L.sigma[level]), clock))
        self._node[k] = (x, level)
        return k

    def input_of(self, k: int) -> int:
        """The register that evaluation k was made at."""
        return self._node[k][0]

    def row(
        self,
        level: int,
        x: Mapping[int, float] | None = None,
        d: Mapping[int, float] | None = None,
        z: float = 0.0,
        predictions: Mapping[int, float] | None = None,
        kind: str = "data",
        d1: Mapping[int, float] | None = None,
        velocity: bool = False,
    ) -> int:
        """Emit a state at ``level``; returns its register.

        Args:
            x, d: coefficients of states and of denoiser outputs; z: of one fresh normal.
            predictions: coefficients of predictions ``kind``, converted to states and outputs.
            d1: coefficients of the second end; None works them out for a row that is linear in ``x - B x1``.
            velocity: whether the row is a combination of predictions, in which no end of the path is left.
        """
        xs, ds = dict(x or {}), dict(d or {})
        for k, w in (predictions or {}).items():
            self._add_prediction(kind, k, float(w), xs, ds)
        noise = {}
        if z > 0:
            noise, self._noises = {self._noises: float(z)}, self._noises + 1
        register, self._registers = self._registers, self._registers + 1
        if velocity:
            self._velocities.add(register)
        ends = self._second_end(0.0 if velocity else None, level, xs, ds) if d1 is None else _clean(d1)
        self.code.append(Row(register, _clean(xs), _clean(ds), ends, noise, float(self.levels.t[level])))
        self._level_of[register] = level
        return register

    def call(
        self, name: str, x: int, k: int, source: int, target: int, more: tuple[int, ...] = (), **options: Any
    ) -> int:
        """Emit a data-dependent row from level ``source`` to ``target``, which may read ``more`` registers."""
        register, self._registers = self._registers, self._registers + 1
        t, s = float(self.levels.t[source]), float(self.levels.t[target])
        self.code.append(Call(register, name, x, k, t, s, options, more))
        self._level_of[register] = target
        return register

    def affine(self, level: int, x: Mapping[int, Any], d: Mapping[int, Any], constant: Any) -> int:
        """Emit a state at ``level`` whose coefficients are arrays over a sample's elements, or which has a constant:
        a row of the general runtime."""
        for k in d:
            if k not in self._outputs:
                self._outputs[k] = self.row(self._node[k][1], d={k: 1.0}, velocity=True)
        registers = [*x, *(self._outputs[k] for k in d)]
        plain = [np.asarray(v, dtype=np.float64).tolist() for v in [*x.values(), *d.values(), constant]]
        source = self._level_of[registers[0]]
        words = {"coefficients": plain[:-1], "constant": plain[-1]}
        return self.call("affine", registers[0], max(d), source, level, tuple(registers[1:]), **words)

    def frozen(self, x: int, k: int, s: int, t: int, retention: float = 1.0) -> int:
        """The first-order row from level s to t: the clean end is held at D_k, and of the noise in the state the share
        ``retention`` is kept and the rest drawn anew.  It needs no log-SNR and is exact at both ends of time."""
        L = self.levels
        keep = retention if L.sigma[s] > 0 else 0.0
        ratio = keep * L.sigma[t] / L.sigma[s] if keep > 0 else 0.0
        fresh = L.sigma[t] * np.sqrt(max(0.0, 1 - keep**2))
        return self.row(t, {x: ratio}, {k: L.alpha[t] - ratio * L.alpha[s]}, z=fresh)

    def include(self, x: int, part: Builder, out: int, level: int) -> int:
        """Append what another builder wrote on the same process, started from register x; returns the register of its
        result ``out``, a state at ``level`` of this builder.  No history passes from one to the other."""
        state = lambda r: x if r == 0 else self._registers + r - 1  # noqa: E731
        evaluation, noise = len(self._node), self._noises
        for c in part.code:
            if isinstance(c, Eval):
                clock = None if c.clock is None else state(c.clock)
                self.code.append(replace(c, k=c.k + evaluation, x=state(c.x), clock=clock))
                self._node[c.k + evaluation] = (state(c.x), level)
            elif isinstance(c, Row):
                d, d1 = ({k + evaluation: v for k, v in terms.items()} for terms in (c.d, c.d1))
                xs, z = {state(r): v for r, v in c.x.items()}, {m + noise: v for m, v in c.z.items()}
                self.code.append(Row(state(c.dst), xs, d, d1, z, c.t))
            else:
                more = tuple(state(r) for r in c.more)
                moved = replace(c, dst=state(c.dst), x=state(c.x), k=c.k + evaluation, more=more)
                self.code.append(moved)
        result = state(out)
        self._registers, self._noises = self._registers + part._registers - 1, noise + part._noises
        self._level_of[result] = level
        return result

    def _add_prediction(self, kind: str, k: int, w: float, xs: dict[int, float], ds: dict[int, float]) -> None:
        """Add w times prediction ``kind`` of evaluation k, written in the state it was evaluated at and D_k."""
        if kind not in self._cached:
            self._cached[kind] = [p.tolist() for p in self.levels.prediction(kind)]
        x, level = self._node[k]
        p_x, p_d = self._cached[kind]
        if p_x[level] != 0:
            xs[x] = xs.get(x, 0.0) + w * p_x[level]
        ds[k] = ds.get(k, 0.0) + w * p_d[level]

    def _second_end(
        self, held: float | None, level: int, xs: Mapping[int, float], ds: Mapping[int, float]
    ) -> dict[int, float]:
        """Coefficient of the second end: rows are linear in x - B x1, so x1 enters with B_t - sum a_r B_r."""
        if len(self.process.ends) == 1 or not self._node:
            return {}
        beta = self.betas
        target = beta[level] if held is None else held
        shift = target - sum(a * beta[self._level_of[r]] for r, a in xs.items() if r not in self._velocities)
        return {max(ds, default=len(self._node) - 1): float(shift)} if shift != 0 else {}

    # -- the path over the levels ---------------------------------------------------------------------------

    @property
    def betas(self) -> np.ndarray:
        """The coefficient of the second end at every level."""
        if "beta" not in self._cached:
            self._cached["beta"] = self.path.beta(torch.from_numpy(self.levels.t)).numpy()
        return self._cached["beta"]

    @property
    def path(self) -> GaussianPath:
        """The process, as the Gaussian path that generators of rows need."""
        return self.process  # type: ignore[return-value]

    def rates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Time derivatives ``(alpha', beta', sigma')`` at every level, from the left at t = 1: paths that are given by
        their logarithms have none where alpha = 0."""
        inside = torch.from_numpy(self.levels.t).clamp(max=1 - 1e-9)
        return tuple(r.numpy() for r in self.path.rates(inside))  # type: ignore[return-value]

    def time_at(self, lam: np.ndarray) -> np.ndarray:
        """Times at given lambda."""
        return self.path.time_at(torch.from_numpy(np.ascontiguousarray(lam))).numpy()

    def add_levels(self, lam: np.ndarray) -> np.ndarray:
        """Add inner nodes at given lambda (an array of any shape); returns their level indices in that shape."""
        shape, lam = lam.shape, np.asarray(lam, dtype=np.float64).ravel()
        t = self.time_at(lam)
        alpha, sigma, _ = self.path.schedule(t)
        old, first = self.levels, len(self.levels)
        pairs = ((old.t, t), (old.alpha, alpha), (old.sigma, sigma), (old.lam, lam))
        self.levels = Levels(*(np.concatenate(pair) for pair in pairs))
        self._cached.clear()
        return np.arange(first, first + len(t)).reshape(shape)

    def finite(self, level: int) -> bool:
        """Whether lambda is finite at a level."""
        return bool(np.isfinite(self.levels.lam[level]))

    # -- weights --------------------------------------------------------------------------------------------

    def weights(
        self,
        rows: list[tuple[int, int, list[int]]],
        kind: str = "data",
        tau: str | None = None,
        kappa: float = 1.0,
        rule: Rule = exact,
    ) -> list[tuple[float, np.ndarray]]:
        """``(a, w)`` of `step_weights` for rows ``(source, target, nodes)``: one vectorised call a number of nodes."""
        results: list[Any] = [None] * len(rows)
        for m in {len(nodes) for _, _, nodes in rows}:
            index = [j for j, row in enumerate(rows) if len(row[2]) == m]
            s, t, nodes = (np.array([rows[j][column] for j in index]) for column in range(3))
            time_at = self.time_at if tau == "t" else None
            a, w = step_weights(self.levels, s, t, nodes, kind, tau or INTERPOLATION[kind], kappa, time_at, rule)
            for j, value, vector in zip(index, a.tolist(), w):
                results[j] = (value, vector)
        return results

    def noise_std(self, kind: str, kappa: float) -> np.ndarray:
        """Fresh noise of the SDE step from each level of the grid to the next, at stochasticity kappa."""
        steps = np.arange(self.n)
        return noise_std(self.levels, steps, steps + 1, kind, kappa)


def _clean(terms: Mapping[int, float]) -> dict[int, float]:
    return {k: float(v) for k, v in terms.items() if v != 0}
