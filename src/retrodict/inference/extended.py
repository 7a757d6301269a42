"""``method="extended"`` and ``"unscented"``: Kalman filtering of linear stand-ins, chosen along the filter's own path.

The forward pass replaces each step by a linear one at the filtered law and each observation by a linear one at the
predicted law (`linearise`).  What results is a linear-Gaussian chain on these data, whose filter is the extended (or
unscented) Kalman filter and whose smoother is the corresponding smoother: everything else is `GaussianPosterior`.
With ``iterations`` the stand-ins are chosen again at the smoothed laws: Gauss-Newton on the path for "extended" (Bell
1994), posterior linearisation for "unscented" (Garcia-Fernandez, Svensson and Sarkka 2017).  On linear models every
variant is the Kalman filter.

Laws of observation that are not Gaussian given the state enter by their second-order expansion (Laplace).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.inference.emissions import LinearEmission
from retrodict.inference.gaussian import GaussianPosterior
from retrodict.inference.linearise import Line, Rule, rules, taylor_potential, unscented
from retrodict.inference.models import StateSpace
from retrodict.inference.observed import Observed
from retrodict.inference.posterior import Conditioned, register
from retrodict.inference.problem import Grouped, Problem
from retrodict.kernels import Gaussian, LinearGaussian
from retrodict.kernels.scans import GaussianChain

Law = tuple[Tensor, Tensor]


@dataclass
class Pass:
    """One forward pass: a linear stand-in for every step and observation, each at a law of its own.

    Attributes:
        problem, rule: what is linearised, and how.
        at: laws at the nodes ``(S, n+1, d), (S, n+1, d, d)`` to linearise at; None: the filter's own.
    """

    problem: Problem
    rule: Rule
    at: Law | None = None

    def run(self) -> tuple[tuple[Tensor, Tensor, Tensor], LinearEmission | tuple[Tensor, Tensor, Tensor]]:
        """``(A, b, Q)`` of the steps ``(S, n, ...)``, and a linear emission for each observation or potentials."""
        problem = self.problem
        law: Gaussian = problem.prior
        S, d = problem.S, problem.size
        now = law.mean.double().expand(S, d), law.cov.value.double().expand(S, d, d)
        steps, seen = [], []
        for k in range(problem.n + 1):
            if k:
                steps.append(self._step(k, now))
                now = _push(now, steps[-1])
            found, now = self._observe(k, now)
            seen.append(found)
        A, b, Q = (torch.stack(v, 1) for v in zip(*steps)) if steps else problem.arrays()
        columns = [torch.stack(v, 1) for v in zip(*seen)]
        if not problem.emission.gaussian:
            return (A, b, Q), (columns[0], columns[1], columns[2])
        return (A, b, Q), self._by_observation(columns)

    def _place(self, k: int, now: Law) -> Law:
        return now if self.at is None else (self.at[0][:, k], self.at[1][:, k])

    def _step(self, k: int, now: Law) -> Line:
        kernel = self.problem.kernel(k)
        S = len(now[0])
        if isinstance(kernel, LinearGaussian):
            return tuple(v[:, 0].expand(S, *v.shape[2:]) for v in (kernel.A.value, kernel.b, kernel.Q.value))  # type: ignore
        assert isinstance(kernel, Grouped)
        place = self._place(k - 1, now)
        line = self.rule(kernel.moments, *place)
        if not all(bool(torch.isfinite(part).all()) for part in line):
            raise InputError(
                f"the step to time {float(self.problem.times[0, k]):g} has no finite mean, slope or covariance at the "
                f"state {place[0].tolist()[0]}, where it is linearised; use method='bootstrap', or a law that has one"
            )
        return line

    def _observe(self, k: int, now: Law) -> tuple[Line, Law]:
        """Stand-ins for what is seen at node k, and the law after it."""
        problem = self.problem
        place = self._place(k, now)
        if not problem.emission.gaussian:
            if not problem.observed(k):
                S, d = now[0].shape
                return (now[1].new_zeros(S, d, d), now[0].new_zeros(S, d), now[0].new_zeros(S)), now
            H, F, c = taylor_potential(lambda x: problem.log_likelihood(k, x), place[0].unsqueeze(1))
            potential = H[:, 0], F[:, 0], c[:, 0]
            return potential, _tilt(now, potential)
        lines, after = [], now
        y, seen = problem.data.y, problem.data.seen
        series = torch.arange(problem.S)
        for slot in problem.slots[:, k].unbind(-1):
            line = self._line(slot, place)
            lines.append(line)
            here = seen[series, slot] & (slot >= 0)[:, None]
            if bool(here.any()):
                value = torch.where(here, y[series, slot], 0.0)
                after = _update(after, line, value, here, float(problem.times[0, k]))
        L, c, R = (torch.stack(v, 1) for v in zip(*lines))
        return (L, c, R), after

    def _line(self, slot: Tensor, place: Law) -> Line:
        emission = self.problem.emission
        S = place[0].shape[0]
        if isinstance(emission, LinearEmission):
            own = emission.at((torch.arange(S), slot.clamp_min(0)))
            return tuple(v.expand(S, *v.shape[-o:]) for v, o in ((own.L, 2), (own.b, 1), (own.R, 2)))  # type: ignore

        def moments(x: Tensor) -> Law:
            found = emission.moments(x)
            assert found is not None  # the emission is Gaussian
            return found

        return self.rule(moments, *place)

    def _by_observation(self, columns: list[Tensor]) -> LinearEmission:
        """From ``(S, n+1, r, ...)`` at nodes to ``(S, N, ...)`` at observations."""
        slots = self.problem.slots
        where = torch.zeros_like(self.problem.at)
        s, k, r = (slots >= 0).nonzero(as_tuple=True)
        where[s, slots[s, k, r]] = k * slots.shape[2] + r
        series = torch.arange(len(where))[:, None]
        L, c, R = (v.flatten(1, 2)[series, where] for v in columns)
        return LinearEmission(L, c, R)


def _push(now: Law, line: Line) -> Law:
    A, b, Q = line
    return (A @ now[0].unsqueeze(-1)).squeeze(-1) + b, A @ now[1] @ A.mT + Q


def _tilt(now: Law, potential: Line) -> Law:
    """Bayes under ``(H, F, c)``; neither H nor the covariance is inverted."""
    H, F, _ = potential
    gain = torch.linalg.inv(torch.eye(H.shape[-1], dtype=H.dtype) + now[1] @ H)
    cov = gain @ now[1]
    return (gain @ (now[0] + (now[1] @ F.unsqueeze(-1)).squeeze(-1)).unsqueeze(-1)).squeeze(-1), (cov + cov.mT) / 2


def _update(now: Law, line: Line, y: Tensor, seen: Tensor, time: float) -> Law:
    """Kalman's update in covariance form, the coordinates that were not seen left out."""
    (m, V), (L, c, R) = now, line
    keep = seen.to(torch.float64)
    L = L * keep.unsqueeze(-1)
    S = L @ V @ L.mT + R * keep.unsqueeze(-1) * keep.unsqueeze(-2) + torch.diag_embed(1 - keep)
    root, info = torch.linalg.cholesky_ex(S)
    if bool((info != 0).any()):
        raise InputError(f"the observation at time {time:g} has no noise in some direction; give it some")
    K = torch.cholesky_solve(L @ V, root).mT
    error = torch.where(seen, y - c, 0.0) - (L @ m.unsqueeze(-1)).squeeze(-1)
    cov = V - K @ S @ K.mT
    return m + (K @ error.unsqueeze(-1)).squeeze(-1), (cov + cov.mT) / 2


def linearised_posterior(
    model: StateSpace, data: Any, rule: Rule, words: str, iterations: int = 0, route: str = "auto"
) -> GaussianPosterior:
    """The posterior of a model's linear stand-in; ``iterations`` times chosen again at the smoothed laws."""
    require(iterations >= 0, f"iterations is 0 or more, got {iterations}")
    problem = Problem(model, data)
    at: Law | None = None
    while True:
        steps, seen = Pass(problem, rule, at).run()
        post = GaussianPosterior(
            problem,
            steps,
            seen if isinstance(seen, LinearEmission) else _chain(problem, steps, seen),
            lambda m, d: linearised_posterior(m, d, rule, words, 0, route),
            route,
            words,
        )
        post.exact = problem.family == "linear" and isinstance(problem.emission, LinearEmission)
        if iterations == 0:
            return post
        iterations -= 1
        at = post.smoothed_nodes()


def _chain(problem: Problem, steps: tuple[Tensor, Tensor, Tensor], potentials: Line) -> GaussianChain:
    law: Gaussian = problem.prior
    return GaussianChain(law.mean.double(), law.cov.value.double(), *steps, *potentials)


def not_gaussian(model: StateSpace, data: Observed) -> str | None:
    """Why a model cannot be linearised, or None."""
    if model.kind == "finite":
        return "the states are finite"
    problem = Problem(model, data)
    if not isinstance(problem.prior, Gaussian):
        return f"the prior is {type(problem.prior).__name__}, not Gaussian"
    if problem.family not in ("linear", "gaussian"):
        return "the transition is not Gaussian given the state"
    return None


@register("extended", StateSpace, why_not=not_gaussian)
def extended(model: StateSpace, data: Observed, iterations: int = 0, route: str = "auto") -> Conditioned:
    """Extended Kalman filter and smoother; ``iterations`` of Gauss-Newton on the path after it."""
    words = "extended Kalman filter and smoother" + (f", {iterations} Gauss-Newton iterations" if iterations else "")
    return linearised_posterior(model, data, rules["extended"], words, iterations, route)


@register("unscented", StateSpace, why_not=not_gaussian)
def sigma(
    model: StateSpace, data: Observed, iterations: int = 0, kappa: float | None = None, route: str = "auto"
) -> Conditioned:
    """Unscented Kalman filter and smoother with ``kappa`` (0: cubature); ``iterations`` of posterior linearisation."""
    words = "unscented Kalman filter and smoother" + (f", {iterations} iterations" if iterations else "")
    return linearised_posterior(model, data, unscented(kappa), words, iterations, route)
