"""A plan in fewer rounds: all evaluations of a window at once, corrected until they agree.

With the recursion ``s_{k+1} = F_k(s_k)`` of a plan (`parallel_steps`) and a guess of all its states, a sweep evaluates
the denoiser at every guess in one batch and solves the linearised recursion by a scan:

    r_{k+1} = F_k(s_k) - s_{k+1}                    residuals of the guess
    d_{k+1} = J_k d_k + r_{k+1},   d_0 = 0          corrections, by `kernels.scans.affine`
    s_{k+1} <- F_k(s_k) + J_k d_k

Whatever J is, the sequential trajectory is the only fixed point, and after k sweeps the first k states are it.  What
J is says how fast the rest follows:

====================  =========================================================================================
jacobi                J = 0: each state from its predecessor's old value (Song et al. 2021, algorithm 1)
gauss-seidel          blocks side by side, new values inside a block (the same, "Jacobi-GS")
picard                the noise prediction is kept as it was; in y = x/alpha the update is a sum (Shih et al. 2023)
exponential-picard    the data prediction is kept: J is the plan's own linear part
quasi-newton          dD/dx by its diagonal, from how D moved with x since the last sweep; no further evaluations
====================  =========================================================================================

Fixed noise is part of F, so stochastic plans run as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, near
from retrodict.core.noise import Noise
from retrodict.kernels.scans.scan import affine
from retrodict.solvers.general import Run
from retrodict.solvers.parallel_steps import Steps, as_tensors, recursion
from retrodict.solvers.plan import Plan
from retrodict.solvers.runtime import NoiseRows

METHODS = ("jacobi", "gauss-seidel", "picard", "exponential-picard", "quasi-newton")

#: Beyond this the diagonal of dD/dy is cut, and below zero: D(y) of an exact posterior is increasing, and its slope
#: exceeds one only between modes.
_STEEPEST = 1.0
_SMALLEST_ALPHA = 1e-2  # where the path has hardly any signal, dividing by it says nothing


@dataclass(frozen=True)
class Parallel:
    """How to run a plan in parallel.

    Attributes:
        method: a name of `METHODS`; "quasi-newton" needs the fewest rounds.
        tolerance: a state is accepted, and everything before it, once no element of its correction exceeds this; in
            the model's units.  Zero runs on until nothing changes, which is after as many sweeps as evaluations.
        window: how many evaluations of a sample are in one batch; None takes all that are left.
        block: of "gauss-seidel", how many evaluations a block makes in sequence.
    """

    method: str = "quasi-newton"
    tolerance: float = 1e-4
    window: int | None = None
    block: int = 4

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(
                f"unknown method {self.method!r}; known: {', '.join(METHODS)}.{near(self.method, METHODS)}"
            )
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise InputError(f"tolerance is a finite number, at least 0; got {self.tolerance}")
        for name, value in (("window", self.window), ("block", self.block)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(f"{name} is an integer of at least 1, got {value}")


@dataclass
class ParallelRun(Run):
    """A run whose ``calls`` are the evaluations that a sample took part in; ``rounds``: batched calls of the denoiser,
    one after the other; ``corrections``: the largest correction of each sweep."""

    rounds: int = 0
    corrections: list[float] = field(default_factory=list)


def run(
    plan: Plan,
    denoiser: Any,
    x: Tensor,
    noise: Noise,
    condition: Mapping[str, Any],
    how: Parallel = Parallel(),
    *,
    per_sample: Collection[str] = (),
    on_round: Callable[[], None] | None = None,
) -> ParallelRun:
    """Run a plan in parallel from x ``(batch, *shape)``.

    Args:
        noise: as `runtime.run` takes it; the stream "rows" is drawn in the same order, so that the noise is the same.
        condition: what the denoiser is told; the values named in ``per_sample`` have one entry a sample.

    Returns:
        `ParallelRun`, whose x is the sequential result within the tolerance.

    Raises:
        InputError: the plan has rows or times that depend on data.
    """
    steps = recursion(plan)
    scale = denoiser.temperature**0.5
    rows = NoiseRows(noise.stream("rows"), plan.noises, tuple(x.shape[1:]), scale)
    ask = _Asking(denoiser, steps, x, condition, per_sample, on_round)
    return _Iteration(steps, ask, x, steps.fresh(rows, x), how).solve()


class _Asking:
    """The denoiser at many nodes in one batch; counts."""

    def __init__(
        self,
        denoiser: Any,
        steps: Steps,
        x: Tensor,
        condition: Mapping[str, Any],
        per_sample: Collection[str],
        on_round: Callable[[], None] | None,
    ) -> None:
        self.denoiser, self.ends, self.shape = denoiser, steps.outputs.shape[2], x.shape
        self.times = torch.from_numpy(steps.times).to(x.device)
        self.shared = {k: v for k, v in condition.items() if k not in per_sample}
        self.each = {k: v for k, v in condition.items() if k in per_sample}
        self.on_round, self.rounds, self.evaluations = on_round, 0, 0

    def __call__(self, u: Tensor, nodes: Tensor) -> Tensor:
        """Outputs ``(batch, numel, nodes, ends)`` at states ``u (batch, numel, nodes)``."""
        batch, numel, h = u.shape
        flat = u.permute(2, 0, 1).reshape(h * batch, *self.shape[1:])
        t = self.times[nodes].repeat_interleave(batch)
        condition = {k: v.repeat(h, *(1,) * (v.ndim - 1)) for k, v in self.each.items()} | self.shared
        if self.ends == 1:
            means = [self.denoiser(flat, t, **condition)]
        else:
            belief = self.denoiser.belief(flat, t, **condition)
            means = [belief.mean, belief.x1]
        self.rounds += 1
        self.evaluations += h
        if self.on_round is not None:
            self.on_round()
        return torch.stack([m.reshape(h, batch, numel).permute(1, 2, 0) for m in means], -1)


class _Iteration:
    """Guesses of all states, ``s (batch, numel, n + 1, R)``, and the sweeps that correct them."""

    def __init__(self, steps: Steps, ask: _Asking, x: Tensor, w: Tensor | None, how: Parallel) -> None:
        self.steps, self.ask, self.how, self.w, self.shape = steps, ask, how, w, x.shape
        self.A, self.outputs = as_tensors(steps, x)
        self.read = torch.from_numpy(steps.read).to(x.device)
        self.entry = torch.nn.functional.one_hot(self.read, steps.size).to(x)
        self.alpha = torch.from_numpy(steps.alpha).to(x).clamp_min(_SMALLEST_ALPHA).unsqueeze(-1)
        self.s = x.new_zeros(len(x), x[0].numel(), steps.n + 1, steps.size)
        self.s[:, :, 0] = x.reshape(len(x), -1, 1) * torch.from_numpy(steps.first).to(x)
        if w is not None:
            self.s[:, :, 0] += w[:, :, 0]
        self.before: tuple[int, Tensor, Tensor] | None = None

    def solve(self) -> ParallelRun:
        n, done, corrections = self.steps.n, 0, []
        self._guess()
        while done < n:
            stop = n if self.how.window is None else min(n, done + self.how.window)
            change = self._sweep(done, stop).abs().amax((0, 1, 3))
            corrections.append(float(change.max()))
            # the first state of the window is exact, so its successor now is; NaN is no small correction
            settled = int((change <= self.how.tolerance).long().cumprod(0).sum())
            done += max(1, settled)
        x = self.s[:, :, n, self.steps.out].reshape(self.shape)
        return ParallelRun(x, calls=self.ask.evaluations, rounds=self.ask.rounds, corrections=corrections)

    def _guess(self) -> None:
        """All states as if the denoiser's first answer were its last."""
        nodes = torch.zeros(1, dtype=torch.long)
        D = self.ask(self._read(0, 1), nodes)[:, :, 0]
        for k in range(self.steps.n):
            self.s[:, :, k + 1] = self._step(self.s[:, :, k : k + 1], D.unsqueeze(2), k, k + 1)[:, :, 0]

    def _read(self, start: int, stop: int) -> Tensor:
        """The evaluated entries of states start..stop-1, ``(batch, numel, stop - start)``."""
        return (self.s[:, :, start:stop] * self.entry[start:stop]).sum(-1)

    def _step(self, s: Tensor, D: Tensor, start: int, stop: int) -> Tensor:
        """``F_k`` for k in start..stop-1, given the outputs."""
        new = torch.einsum("kij,bmkj->bmki", self.A[start:stop], s)
        new = new + torch.einsum("kie,bmke->bmki", self.outputs[start:stop], D)
        return new if self.w is None else new + self.w[:, :, start + 1 : stop + 1]

    def _sweep(self, start: int, stop: int) -> Tensor:
        """Correct states start+1..stop; returns the corrections."""
        if self.how.method == "gauss-seidel":
            return self._blocks(start, stop)
        u = self._read(start, stop)
        D = self.ask(u, torch.arange(start, stop))
        old = self.s[:, :, start + 1 : stop + 1]
        F = self._step(self.s[:, :, start:stop], D, start, stop)
        if self.how.method == "jacobi":
            new, change = F, F - old
        else:
            J = self._slopes(start, stop, u, D)
            change = _scan(J, F - old)
            shifted = torch.cat([torch.zeros_like(change[:, :, :1]), change[:, :, :-1]], 2)
            new = F + (J @ shifted.unsqueeze(-1)).squeeze(-1)
            # a guess that the linearisation threw out of bounds stays where it was; the exact first one never does
            new[:, :, 1:] = torch.where(torch.isfinite(new[:, :, 1:]), new[:, :, 1:], old[:, :, 1:])
        self.s[:, :, start + 1 : stop + 1] = new
        return change

    def _slopes(self, start: int, stop: int, u: Tensor, D: Tensor) -> Tensor:
        """``J_k = A_k + b_k (dD/du) e_k``, ``(batch, numel, k, R, R)``; ``(1, 1, k, R, R)`` if elements share it."""
        gain = self._gain(start, stop, u, D)
        through = torch.einsum("kie,bmke,kj->bmkij", self.outputs[start:stop], gain, self.entry[start:stop])
        return self.A[start:stop] + through

    def _gain(self, start: int, stop: int, u: Tensor, D: Tensor) -> Tensor:
        """The assumed diagonal of dD/du, ``(1|batch, 1|numel, k, ends)``."""
        alpha = self.alpha[start:stop]
        flat = torch.zeros_like(D[:1, :1])
        if self.how.method == "exponential-picard":
            return flat
        if self.how.method == "picard":  # D = (x - sigma eps)/alpha with eps kept
            flat[..., 0] = 1 / alpha[:, 0]
            return flat
        before, self.before = self.before, (start, u, D)
        if before is None:
            return flat
        last, u0, D0 = before
        shared = slice(start - last, min(start - last + stop - start, u0.shape[2]))
        moved = (u[:, :, : u0[:, :, shared].shape[2]] - u0[:, :, shared]).unsqueeze(-1)
        turned = D[:, :, : moved.shape[2]] - D0[:, :, shared]
        tiny = torch.finfo(u.dtype).eps ** 2
        secant = (turned * moved / (moved.square() + tiny)) * alpha[: moved.shape[2]]
        gain = torch.zeros_like(D)
        gain[:, :, : moved.shape[2]] = torch.nan_to_num(secant).clamp(0, _STEEPEST) / alpha[: moved.shape[2]]
        return gain

    def _blocks(self, start: int, stop: int) -> Tensor:
        """Blocks of evaluations side by side, each in sequence from the old value at its beginning."""
        old = self.s[:, :, start + 1 : stop + 1].clone()
        block = min(self.how.block, stop - start)
        heads = torch.arange(start, stop, block)
        state = self.s[:, :, heads]
        for j in range(block):
            nodes = heads[heads + j < stop] + j
            state = state[:, :, : len(nodes)]
            D = self.ask((state * self.entry[nodes]).sum(-1), nodes)
            state = torch.einsum("kij,bmkj->bmki", self.A[nodes], state)
            state = state + torch.einsum("kie,bmke->bmki", self.outputs[nodes], D)
            if self.w is not None:
                state = state + self.w[:, :, nodes + 1]
            self.s[:, :, nodes + 1] = state
        change = self.s[:, :, start + 1 : stop + 1] - old
        change[:, :, :block] = 0.0  # the first block began at an exact state: all of it now is
        return change


def _scan(J: Tensor, r: Tensor) -> Tensor:
    """``d_{k+1} = J_k d_k + r_{k+1}`` from zero, for every element; maps that all elements share are scanned once."""
    batch, numel, n, size = r.shape
    if J.shape[:2] == (1, 1):
        return affine(J[0], r.unsqueeze(2), r.new_zeros(1, size)).squeeze(2)
    flat = affine(J.reshape(-1, n, size, size), r.reshape(-1, n, size), r.new_zeros(batch * numel, size))
    return flat.reshape(batch, numel, n, size)
