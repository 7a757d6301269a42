"""Paths of jump processes in continuous time: drawn under a message, without a time step and without a bound.

Between two times the process with generator Q is a discrete chain ``R = I + Q / lam`` run at the events of a Poisson
process of rate lam.  Under a message h at the end of an interval of length tau the number of events, their times and
the states follow in closed form, with ``v_j = R^j h`` (non-negative, no inverse, no search):

    P(j events | x)  proportional to  Poisson(j; lam tau) v_j(x)        times: uniform order statistics
    P(x -> y at an event with j-1 to come)  =  R(x, y) v_{j-1}(y) / v_j(x).

The path that remains when events without a change are dropped is one of Doob's h-transform
``Q^h(x, y) = Q(x, y) h(t, y) / h(t, x)``, also where h forbids states and those rates blow up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.kernels.jump import pick_by_weight

_EVENTS = 24.0  # mean number of events that one block of an interval may have


@dataclass(frozen=True)
class JumpPaths:
    """Weighted paths that are constant between jumps.

    Attributes:
        times: ``(n, S, J)`` of jumps, increasing, padded with infinity.
        states: ``(n, S, J + 1)``, the start and the state after each jump; the last one is repeated as padding.
        log_weights: ``(n, S)``; equal where the draws are exact.
        begin, end: ``(S,)``, where the paths start and stop.
    """

    times: Tensor
    states: Tensor
    log_weights: Tensor
    begin: Tensor
    end: Tensor

    @staticmethod
    def beside(alone: list[JumpPaths]) -> JumpPaths:
        """As many paths of each series ``(n, 1, J_s)``, side by side."""
        most = max(paths.times.shape[-1] for paths in alone)
        times, states = [], []
        for paths in alone:
            short = most - paths.times.shape[-1]
            times.append(torch.nn.functional.pad(paths.times, (0, short), value=torch.inf))
            states.append(torch.cat([paths.states, paths.states[..., -1:].expand(-1, -1, short)], -1))
        rest = ("log_weights", "begin", "end")
        return JumpPaths(
            torch.cat(times, 1), torch.cat(states, 1), *(torch.cat([getattr(p, k) for p in alone], -1) for k in rest)
        )

    def __len__(self) -> int:
        return self.times.shape[0]

    @property
    def counts(self) -> Tensor:
        """Jumps of each path, ``(n, S)``."""
        return torch.isfinite(self.times).sum(-1)

    def at(self, t: float | Tensor) -> Tensor:
        """States at times ``t``, a number or ``(m,)``: ``(n, S)`` or ``(n, S, m)``; at a jump the new state."""
        t = torch.as_tensor(t, dtype=torch.float64)
        low, high = float(self.begin.min()), float(self.end.max())
        inside = bool((t >= low).all()) and bool((t <= high).all())
        require(inside, f"the paths run from {low:g} to {high:g}; got the time {t.tolist()}")
        index = torch.searchsorted(
            self.times.contiguous(), t.expand(*self.times.shape[:2], t.numel()).contiguous(), right=True
        )
        found = self.states.gather(-1, index)
        return found if t.ndim else found.squeeze(-1)

    def stays(self) -> tuple[Tensor, Tensor]:
        """Begin and end of the stay in every state, each ``(n, S, J + 1)``; padding has length zero."""
        edge = torch.minimum(self.times, self.end.unsqueeze(-1))
        first = self.begin.expand(len(self), -1).unsqueeze(-1)
        last = self.end.expand(len(self), -1).unsqueeze(-1)
        return torch.cat([first, edge], -1), torch.cat([edge, last], -1)

    def dwell(self, states: int) -> Tensor:
        """Time spent in each of ``states`` states, ``(n, S, states)``."""
        begin, end = self.stays()
        total = torch.zeros(*self.times.shape[:2], states, dtype=torch.float64)
        return total.scatter_add(-1, self.states, end - begin)

    def jumps(self, states: int) -> Tensor:
        """Number of jumps from each state to each other, ``(n, S, states, states)``."""
        code = self.states[..., :-1] * states + self.states[..., 1:]
        real = torch.isfinite(self.times).double()
        total = torch.zeros(*self.times.shape[:2], states * states, dtype=torch.float64)
        return total.scatter_add(-1, code, real).unflatten(-1, (states, states))


class Recorder:
    """Jumps as they come, in any number, for ``(S, N)`` paths side by side; made into `JumpPaths` at the end."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._count = torch.zeros(x.shape, dtype=torch.int64)
        self._times: list[Tensor] = []
        self._states: list[Tensor] = []

    def jump(self, y: Tensor, t: Tensor, real: Tensor) -> None:
        """Paths where ``real`` go to state y at time t."""
        real = real & (y != self.x)
        self.x = torch.where(real, y, self.x)
        while len(self._times) <= int(self._count.max()):
            self._times.append(torch.full(self.x.shape, torch.inf, dtype=torch.float64))
            self._states.append(torch.zeros(self.x.shape, dtype=torch.int64))
        s, i = real.nonzero(as_tuple=True)
        at = self._count[s, i]
        for k in at.unique().tolist():
            here = at == k
            self._times[k][s[here], i[here]] = t[s[here], i[here]]
            self._states[k][s[here], i[here]] = y[s[here], i[here]]
        self._count += real

    def paths(self, start: Tensor, log_weights: Tensor, begin: Tensor, end: Tensor) -> JumpPaths:
        """The record, draws first."""
        J = int(self._count.max())
        empty = torch.zeros((*start.shape, 0), dtype=torch.float64)
        times = torch.stack(self._times[:J], -1) if J else empty
        states = torch.stack([start, *self._states[:J]], -1)
        last = torch.minimum(torch.arange(J + 1).expand(*start.shape, J + 1), self._count.unsqueeze(-1))
        return JumpPaths(times.movedim(1, 0), states.gather(-1, last).movedim(1, 0), log_weights.T, begin, end)


def guided_interval(
    rates: Tensor, log_h: Tensor, begin: Tensor, end: Tensor, record: Recorder, generator: torch.Generator
) -> None:
    """Run all paths of ``record`` from ``begin (S,)`` to ``end (S,)`` under the message ``log_h (S, K)`` at the end.

    Args:
        rates: one generator ``(K, K)``.
    """
    lam = float(rates.diagonal().abs().max()) * 1.001
    tau = end - begin
    blocks = max(1, math.ceil(lam * float(tau.max()) / _EVENTS))
    if lam * float(tau.max()) <= 0:
        return
    mean = lam * tau / blocks
    R = torch.eye(rates.shape[-1], dtype=torch.float64) + rates / lam
    top = log_h.amax(-1, keepdim=True)
    if bool(torch.isinf(top).any()):
        raise InputError("a message that is zero in every state cannot guide a path")
    poisson = _poisson(mean)  # (S, J+1)
    messages, h = [], (log_h - top).exp()
    for _ in range(blocks):  # backward over the blocks: powers of R on the message at each block's end
        powers = [h]
        for _ in range(poisson.shape[-1] - 1):
            powers.append(powers[-1] @ R.mT)
        messages.append(torch.stack(powers, 1))  # (S, J+1, K)
        h = (poisson.unsqueeze(-1) * messages[-1]).sum(1)
        h = h / h.amax(-1, keepdim=True)
    for b, v in enumerate(reversed(messages)):
        _block(R, v, poisson, begin + b * tau / blocks, tau / blocks, record, generator)


def _poisson(mean: Tensor) -> Tensor:
    """Probabilities of 0..J events for means ``(S,)``, J far enough out that what is left is below 1e-16."""
    J = math.ceil(float(mean.max()) + 12 * math.sqrt(float(mean.max())) + 30)
    k = torch.arange(J + 1, dtype=torch.float64)
    return torch.exp(torch.xlogy(k, mean.unsqueeze(-1)) - mean.unsqueeze(-1) - torch.lgamma(k + 1))


def _block(
    R: Tensor, v: Tensor, poisson: Tensor, begin: Tensor, tau: Tensor, record: Recorder, generator: torch.Generator
) -> None:
    S, N = record.x.shape
    series = torch.arange(S).unsqueeze(-1)
    J = v.shape[1] - 1
    share = v[series, :, record.x] * poisson.unsqueeze(1)  # (S, N, J+1)
    left = pick_by_weight(share, torch.rand(S, N, generator=generator, dtype=torch.float64))
    most = int(left.max())
    if most == 0:
        return
    u = torch.rand(S, N, most, generator=generator, dtype=torch.float64)
    u = torch.where(torch.arange(most) < left.unsqueeze(-1), u, torch.inf).sort(-1).values
    times = begin[:, None, None] + tau[:, None, None] * u
    for i in range(most):
        real = left > 0
        to_come = (left - 1).clamp_min(0)
        weights = R[record.x] * v[series, to_come.clamp(max=J)]
        y = pick_by_weight(weights, torch.rand(S, N, generator=generator, dtype=torch.float64))
        record.jump(y, times[..., i], real)
        left = to_come
