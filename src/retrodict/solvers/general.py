"""The general runtime: any plan, with data-dependent rows, trajectories, populations and checks.

It walks the same code as the fast runtime and agrees with it to rounding.  Populations live here: at every
evaluation the denoiser books a log-weight for the move that led there, and when the weights of a population
degenerate its particles are redrawn.  Keys of noise belong to slots, never to ancestors, so siblings part.

The executor knows no weight formula: `Denoiser.increment` and `Denoiser.final` carry them all.

Plans that carry a pair of states, which are those of an inversion, combine and return their states in float64 whatever
the denoiser's dtype: a run and its inverse then ask the denoiser about the same states, rounded alike.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import NonFiniteError
from retrodict.core.noise import Noise
from retrodict.core.registry import Registry
from retrodict.denoisers import Denoiser, Step
from retrodict.kernels import Belief
from retrodict.kernels.laws import event_sum
from retrodict.particles import Population, ess, log_mean_exp
from retrodict.solvers.passes import last_uses
from retrodict.solvers.plan import Call, Eval, Plan, Row
from retrodict.solvers.runtime import NoiseRows

#: Data-dependent rows: ``(denoiser, x, belief, call, noise, condition, *more) -> x``, ``more`` the call's registers.
calls: Registry[Callable[..., Tensor]] = Registry("data-dependent row")

#: What gives the log-probability of where such a row went, under any belief: ``(denoiser, x, call, moved, condition) ->
#: (belief -> (batch,))``, or None where it has none.
densities: Registry[Callable[..., Callable[[Belief], Tensor] | None]] = Registry("density of a row")


@dataclass
class Run:
    """What a run returns: the result, for populations the weights and their story, and the denoiser calls made."""

    x: Tensor
    log_weights: Tensor | None = None
    log_evidence: Tensor | None = None
    ess: list[Tensor] = field(default_factory=list)
    ancestors: Tensor | None = None
    trajectory: list[tuple[float, Tensor, Tensor]] = field(default_factory=list)
    calls: int = 0
    also: list[Tensor] = field(default_factory=list)


def run(
    plan: Plan,
    denoiser: Denoiser,
    x: Tensor,
    noise: Noise,
    condition: Mapping[str, Any],
    *,
    population: Population | None = None,
    trajectory: bool = False,
    check: bool = True,
    on_eval: Callable[[], None] | None = None,
) -> Run:
    """Run a plan.

    Args:
        x: the start, ``(batch, *shape)``, or ``(batch, len(plan.starts), *shape)``; noise: keyed by slot.
        population: group slots into weighted populations; None carries no weights.
        trajectory: keep ``(t, x, mean)`` of every evaluation.
        check: raise `NonFiniteError` naming the step, the time and the tensor.
    """
    machine = _Machine(plan, denoiser, x, noise, condition, population)
    for instruction, dead in zip(plan.code, last_uses(plan.code, plan.out, plan.also)):
        if isinstance(instruction, Eval):
            machine.evaluate(instruction)
            if trajectory:
                belief = machine.beliefs[instruction.k]
                machine.result.trajectory.append((instruction.t, machine.x[instruction.x], belief.mean))
            if on_eval is not None:
                on_eval()
        elif isinstance(instruction, Row):
            machine.move(instruction)
        else:
            machine.call(instruction)
        if check:
            machine.check(instruction)
        machine.forget(dead)
    return machine.finish(trajectory)


class _Machine:
    def __init__(
        self,
        plan: Plan,
        denoiser: Denoiser,
        x: Tensor,
        noise: Noise,
        condition: Mapping[str, Any],
        population: Population | None,
    ) -> None:
        self.plan, self.denoiser, self.noise, self.condition = plan, denoiser, noise, dict(condition)
        states = (x,) if len(plan.starts) == 1 else x.unbind(1)
        x = states[0]
        self.dtype, self.row_dtype = x.dtype, x.dtype
        if plan.paired:
            self.dtype, self.row_dtype = denoiser.dtype, torch.float64
        self.x: dict[int, Tensor] = dict(zip(plan.starts, (state.to(self.row_dtype) for state in states)))
        self.beliefs: dict[int, Belief] = {}
        self.rows = NoiseRows(noise.stream("rows"), plan.noises, tuple(x.shape[1:]), denoiser.temperature**0.5)
        self.result = Run(x)
        self.population = population
        self.previous: tuple[Eval, Belief, Tensor] | None = None
        self.moves: list[Callable[[Belief], Tensor] | None] = []
        self.answered: tuple[Tensor, Belief] | None = None
        self.log_ratio = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        self.moved_with_noise = False
        if population is not None:
            self.size = population.size or len(x)
            self.groups = len(x) // self.size
            self.log_w = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            self.log_z = torch.zeros(self.groups, dtype=torch.float64, device=x.device)
            self.shared = noise.stream("resample").shared(self.groups)  # type: ignore[attr-defined]
            self.ancestors = torch.arange(len(x), device=x.device)

    # -- instructions ---------------------------------------------------------------------------------------

    def evaluate(self, node: Eval) -> None:
        belief = self.believe(node)
        self.beliefs[node.k] = belief
        if self.population is None:
            return
        if self.previous is None:
            self.log_w += self.denoiser.start_weight(belief)
        else:
            self.log_w += self.denoiser.increment(
                self._step(belief, node.t, _snr(node.alpha, node.sigma), self.x[node.x])
            )
        self.previous = (node, belief, self.x[node.x])
        self.log_ratio, self.moved_with_noise, self.moves = torch.zeros_like(self.log_ratio), False, []
        self.maybe_resample()

    def believe(self, node: Eval) -> Belief:
        """The denoiser's answer; where it knows no time and the state is the one it was last asked about, that answer
        again, which is bitwise what it would say."""
        x = self.x[node.x]
        if self.answered is not None and torch.equal(self.answered[0], x):
            return self.answered[1]
        t = node.t if node.clock is None else self.x[node.clock]
        belief = self.denoiser.belief(x.to(self.dtype), t, **self.condition)
        self.result.calls += 1
        self.answered = (x, belief) if self.denoiser.timeless else None
        return belief

    def move(self, row: Row) -> None:
        noisy = bool(row.z)
        steered = self.population is None or noisy
        terms: list[tuple[Any, float]] = [(self.x[r], a) for r, a in row.x.items()]
        # a weighted move without fresh noise has no density: it goes where the unsteered process goes
        terms += [(self.beliefs[k].mean if steered else self.beliefs[k].unsteered, b) for k, b in row.d.items()]
        terms += [(self.beliefs[k].x1, b) for k, b in row.d1.items()]
        z = None
        for m, c in row.z.items():
            z = self.rows[m]
            terms.append((z, c))
        out = torch.mul(terms[0][0].to(self.row_dtype), terms[0][1])
        for value, coefficient in terms[1:]:
            out.add_(value, alpha=coefficient)
        if self.population is not None and noisy:
            self.moved_with_noise = True
            self._book_ratio(row, z)
        self.x[row.dst] = out

    def _book_ratio(self, row: Row, z: Tensor | None) -> None:
        """log p - log K of a Gaussian row: with d = sum b_k (base_k - mean_k)/c it is z.d - d.d/2."""
        shifts = [(self.beliefs[k].base, self.beliefs[k].mean, b) for k, b in row.d.items()]
        if all(base is None for base, _, _ in shifts):
            return
        ((_, c),) = row.z.items()
        scale = c * self.denoiser.temperature**0.5
        d = sum(b * (base - mean).double() for base, mean, b in shifts if base is not None) / scale
        unit = z.double() / self.denoiser.temperature**0.5  # type: ignore[union-attr]
        self.log_ratio = self.log_ratio + event_sum(unit * d) - 0.5 * event_sum(d * d)

    def call(self, instruction: Call) -> None:
        belief = self.beliefs[instruction.k]
        function = calls[instruction.name]
        more, x = [self.x[r] for r in instruction.more], self.x[instruction.x]
        moved = function(self.denoiser, x, belief, instruction, self.noise, self.condition, *more)
        if self.population is not None:
            known = instruction.name in densities and not more
            density = densities[instruction.name] if known else None
            self.moves.append(density and density(self.denoiser, x, instruction, moved, self.condition))
        self.x[instruction.dst] = moved
        self.moved_with_noise = True

    def forget(self, names: list[str]) -> None:
        for name in names:
            (self.x if name[0] == "x" else self.beliefs).pop(int(name[1:]), None)  # type: ignore[attr-defined]

    # -- weights --------------------------------------------------------------------------------------------

    def _step(self, now: Belief | None, s: float, snr_s: float, x: Tensor) -> Step:
        assert self.previous is not None
        node, belief, x_prev = self.previous
        snr_t, log_move = _snr(node.alpha, node.sigma), _together(self.moves)
        noisy = self.moved_with_noise
        return Step(belief, now, node.t, s, snr_t, snr_s, self.log_ratio, noisy, x, x_prev, log_move)

    def maybe_resample(self) -> None:
        population = self.population
        assert population is not None
        log_w = self.log_w.view(self.groups, self.size)
        self._alive(log_w)
        effective = ess(log_w)
        self.result.ess.append(effective)
        poor = population.poor(log_w, effective, self.previous[0].t if self.previous else 1.0)
        if not bool(poor.any()):
            return
        picks, equal, taken = population.redraw(log_w, self.shared)
        identity = torch.arange(self.size, device=picks.device).expand_as(picks)
        picks = torch.where(poor.unsqueeze(1), picks, identity)
        self.log_z = self.log_z + torch.where(poor, taken, 0.0)
        self.log_w = torch.where(poor.unsqueeze(1), equal, log_w).flatten()
        self._permute((picks + self.size * torch.arange(self.groups, device=picks.device).unsqueeze(1)).flatten())

    def _permute(self, index: Tensor) -> None:
        self.x = {r: v[index] for r, v in self.x.items()}
        self.beliefs = {k: b.take(index) for k, b in self.beliefs.items()}
        self.ancestors, self.answered = self.ancestors[index], None
        if self.previous is not None:
            node, _, x = self.previous
            self.previous = (node, self.beliefs[node.k], x[index])

    def _alive(self, log_w: Tensor) -> None:
        best = log_w.max(-1).values
        if bool(torch.isnan(log_w).any()):
            raise NonFiniteError(f"a log-weight is NaN at t = {self.previous[0].t if self.previous else 1.0:g}")
        if bool(torch.isinf(best).any()):
            raise NonFiniteError(
                "all particles of a population have weight zero; use more particles or a softer potential"
            )

    # -- the end --------------------------------------------------------------------------------------------

    def check(self, instruction: Any) -> None:
        """Name the step, the time and the tensor of the first non-finite value."""
        if isinstance(instruction, Eval):
            tensor, what = self.beliefs[instruction.k].mean, f"the denoiser's output at evaluation {instruction.k}"
        else:
            tensor, what = (
                self.x[instruction.dst],
                f"the state after evaluation {len(self.beliefs) and max(self.beliefs)}",
            )
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor.flatten(1))).any(1).nonzero()[0])
            raise NonFiniteError(f"{what}, t = {instruction.t:g}, is not finite (first in sample {bad})")

    def finish(self, trajectory: bool) -> Run:
        out = self.x[self.plan.out]
        if trajectory:
            self.result.trajectory.append((self.plan.times[-1], out, out))
        if self.population is not None:
            snr_end = _end_snr(self.plan)
            self.log_w = self.log_w + self.denoiser.final(self._step(None, self.plan.times[-1], snr_end, out))
            log_w = self.log_w.view(self.groups, self.size)
            self._alive(log_w)
            self.result.ess.append(ess(log_w))
            self.result.log_weights = self.log_w
            self.result.log_evidence = self.log_z + log_mean_exp(log_w)
            self.result.ancestors = self.ancestors
            share = float(self.result.ess[-1].min()) / self.size
            if share < 0.05:
                warnings.warn(f"weights degenerate: effective sample size {share:.1%} of the population", stacklevel=3)
        # what an encoder returns is started from again; anything else is a result
        self.result.x, self.result.also = (
            out if self.plan.also else out.to(self.dtype),
            [self.x[r] for r in self.plan.also],
        )
        return self.result


def _together(moves: list[Callable[[Belief], Tensor] | None]) -> Callable[[Belief], Tensor] | None:
    """The log-probability of several moves; None if one of them has none."""
    known = [move for move in moves if move is not None]
    return (
        (lambda belief: torch.stack([move(belief) for move in known]).sum(0))
        if known and len(known) == len(moves)
        else None
    )


def _snr(alpha: float, sigma: float) -> float:
    return math.inf if sigma == 0 else (alpha / sigma) ** 2


def _end_snr(plan: Plan) -> float:
    """alpha^2/sigma^2 where the plan ends."""
    if plan.meta.get("end") is None:
        return math.inf
    t = plan.times[-1]
    return _snr(float(plan.process.alpha(t)), float(plan.process.sigma(t)))  # type: ignore[attr-defined]


@calls.register("langevin")
def _langevin(
    denoiser: Denoiser, x: Tensor, belief: Belief, call: Call, noise: Noise, condition: Mapping[str, Any]
) -> Tensor:
    """A Langevin step whose size follows the norms of noise and score (Song et al. 2021, algorithm 5)."""
    path: Any = denoiser.process
    alpha, sigma = float(path.alpha(call.t)), float(path.sigma(call.t))
    score = (alpha * belief.mean - x) / sigma**2
    z = noise.stream("rows").normal(tuple(x.shape[1:])).to(x)
    norms = [v.flatten(1).norm(dim=1) for v in (z, score)]
    if call.options["average"] == "batch":
        norms = [v.mean().expand_as(v) for v in norms]
    size = 2 * call.options["damping"] * (call.options["snr"] * norms[0] / norms[1]) ** 2
    size = size.reshape(-1, *(1,) * (x.ndim - 1)) * denoiser.temperature
    return x + size * score + (2 * size).sqrt() * z


@calls.register("affine")
def _affine(
    denoiser: Denoiser,
    x: Tensor,
    belief: Belief,
    call: Call,
    noise: Noise,
    condition: Mapping[str, Any],
    *more: Tensor,
) -> Tensor:
    """A combination of registers with coefficients for each element, and a constant."""
    values = [x, *more]
    out = torch.as_tensor(call.options["constant"], dtype=torch.float64).to(x).expand_as(x).clone()
    for coefficient, value in zip(call.options["coefficients"], values):
        out.addcmul_(value, torch.as_tensor(coefficient, dtype=torch.float64).to(x))
    return out
