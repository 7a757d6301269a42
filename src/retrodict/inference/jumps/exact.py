"""A jump process given data, exactly: laws at any time, paths in continuous time, expected jumps and dwell times.

With the generator's entries taken as free, the derivative of the log evidence is (Hobolth and Jensen 2005; here the
integrals are what differentiating the chain of exponentials computes)

    d log Z / d Q(x, y) = E[integral of 1{X_t = x} h(t, y) / h(t, x) dt | data],

so that ``E[jumps x -> y | data] = Q(x, y) d log Z / d Q(x, y)`` and ``E[time in x | data] = d log Z / d Q(x, x)``.
Their ratio is the closed M-step of expectation maximisation, ``Q(x, y) <- E[jumps x -> y] / E[time in x]``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.inference.finite import FinitePosterior
from retrodict.inference.jumps.paths import JumpPaths, Recorder, guided_interval
from retrodict.inference.jumps.process import JumpProcess
from retrodict.inference.observed import Observed
from retrodict.inference.posterior import Conditioned, register
from retrodict.inference.results import Marginals
from retrodict.kernels import rates_of
from retrodict.kernels.jump import pick_by_weight, transition_matrix
from retrodict.kernels.scans import FiniteChain, finite


@dataclass(frozen=True)
class Expected:
    """Sufficient statistics of the hidden path given data, from ``t0`` to the last observation of each series.

    Attributes:
        jumps: ``(S, pieces, K, K)``, expected jumps from state to state in each piece of the rates; diagonal zero.
        dwell: ``(S, pieces, K)``, expected time in each state.
        start: ``(S, K)``, probabilities of the first state.
        log_evidence: ``(S,)``.
    """

    jumps: Tensor
    dwell: Tensor
    start: Tensor
    log_evidence: Tensor

    def rates(self) -> Tensor:
        """The rates that maximise the expected log-likelihood of the whole batch, ``(pieces, K, K)``."""
        return rates_of(self.jumps.sum(0) / self.dwell.sum(0).clamp_min(1e-300).unsqueeze(-1))


class JumpPosterior(FinitePosterior):
    """A jump process conditioned on data: everything by sums over states."""

    model: JumpProcess

    def smooth(self, times: Any = None) -> Marginals:
        """The law of the state given all data, at the observations or at ``times`` ``(m,)`` between t0 and the last."""
        if times is None:
            return super().smooth()
        wanted = torch.as_tensor(self.data.axis.numbers(times), dtype=torch.float64)
        self._inside(wanted)
        more = _with_blanks(self.data, wanted)
        whole = FinitePosterior.smooth(JumpPosterior(self.model, more, self._route))
        assert whole.probabilities is not None
        place = torch.searchsorted(
            more.times.nan_to_num(torch.inf).contiguous(), wanted.expand(len(more), -1).contiguous()
        )
        p = whole.probabilities[torch.arange(len(more)).unsqueeze(-1), place]
        common = {"log_evidence": self.log_evidence, "axis": self.data.axis, "single": self.data.single}
        return Marginals(wanted.expand(len(more), -1), probabilities=p, **common)

    def trajectories(self, n: int, seed: int = 0) -> JumpPaths:
        """``n`` independent paths in continuous time given all data, from t0 to the last observation."""
        return trajectories(self.model, self, self.model.rates.detach(), n, seed)

    def expected(self) -> Expected:
        """Expected jumps and dwell times: the E-step for the rates."""
        problem, S = self.problem, self.problem.S
        rates = self.model.rates.detach().expand(S, 1, -1, -1, -1).clone().requires_grad_()
        P = self.model.transition_at(rates, problem.start, problem.end)
        # a padded step carries no time: it is repeated from a real one and must not count
        P = torch.where(problem.real[:, 1:, None, None], P, torch.eye(problem.size, dtype=P.dtype))
        log_z = finite.evidence(FiniteChain(self.chain.p0, P, self.chain.log_g), self._route)
        (slope,) = torch.autograd.grad(log_z.sum(), rates) if problem.n else (torch.zeros_like(rates),)
        slope, value = slope.squeeze(1), rates.detach().squeeze(1)
        dwell = slope.diagonal(dim1=-2, dim2=-1)
        jumps = value * slope
        jumps = jumps - torch.diag_embed(jumps.diagonal(dim1=-2, dim2=-1))
        start = finite.smooth(self.chain, self._route).probabilities[:, 0]
        return Expected(jumps, dwell, start.detach(), log_z.detach())

    def _inside(self, times: Tensor) -> None:
        first = self.problem.times[:, 0].max()
        last = self.data.times[torch.arange(len(self.data)), self.data.lengths - 1].min()
        if bool(((times < first) | (times > last)).any()):
            raise InputError(
                f"smooth(times) takes times between {float(first):g} and {float(last):g}, the span of the data; got"
                f" {times.tolist()} (forecast goes beyond)"
            )


def trajectories(model: JumpProcess, guide: FinitePosterior, rates: Tensor, n: int, seed: int) -> JumpPaths:
    """``n`` paths of the process with ``rates (pieces, K, K)``, guided by the messages of its exact posterior."""
    problem = guide.problem
    log_h = finite.messages(guide.chain).detach()
    first = guide.chain.p0.detach() * (log_h[:, 0] - log_h[:, 0].amax(-1, keepdim=True)).exp()
    # a series at a time, from its own generator: in a batch its paths are those that it has alone
    alone = []
    for s, generator in enumerate(KeyedNoise(seed, problem.S, name="trajectories").generators):
        u = torch.rand(1, n, generator=generator, dtype=torch.float64)
        start = pick_by_weight(first[s].expand(1, n, -1), u)
        record, times = Recorder(start), problem.times[s : s + 1]
        for k in range(1, int(problem.real[s].sum())):
            _run_pieces(model, rates, log_h[s : s + 1, k], times[:, k - 1], times[:, k], record, generator)
        alone.append(record.paths(start, torch.zeros(1, n, dtype=torch.float64), times[:, 0], times[:, -1]))
    return JumpPaths.beside(alone)


def _run_pieces(
    model: JumpProcess, rates: Tensor, log_h: Tensor, begin: Tensor, end: Tensor, record: Recorder, g: torch.Generator
) -> None:
    """One interval, cut where the rates change; messages at the cuts come from the pieces after them."""
    cuts = [torch.maximum(torch.minimum(b, end), begin) for b in model.breaks]
    edges, messages = [begin, *cuts, end], [log_h]
    for i in range(rates.shape[0] - 1, 0, -1):
        dt = edges[i + 1] - edges[i]
        top = messages[0].amax(-1, keepdim=True)
        h = transition_matrix(rates[i], dt) @ (messages[0] - top).exp().unsqueeze(-1)
        messages.insert(0, h.squeeze(-1).log() + top)
    for i in range(rates.shape[0]):
        guided_interval(rates[i], messages[i], edges[i], edges[i + 1], record, g)


def _with_blanks(data: Observed, times: Tensor) -> Observed:
    """The data with nothing seen at more times."""
    more = copy.copy(data)
    more.layouts = {}
    extra = times.expand(len(data), -1)
    joined = torch.cat([data.times, extra], 1)
    # padding sorts last; blanks before observations of the same time: nothing depends on that order
    order = torch.where(joined.isnan(), torch.inf, joined).argsort(dim=1, stable=True)
    blank = torch.full((*extra.shape, *data.y.shape[2:]), -1 if data.categories else torch.nan, dtype=data.y.dtype)
    y = torch.cat([data.y, blank], 1)
    more.times = joined.gather(1, order)
    more.y = y.gather(1, order.reshape(*order.shape, *(1,) * (y.ndim - 2)).expand(y.shape))
    more.lengths = data.lengths + extra.shape[1]
    return more


@register("exact", JumpProcess, auto=0)
def exact(model: JumpProcess, data: Observed, start: Any = None, route: str = "auto") -> Conditioned:
    """Sums over states between and at observations; ``start`` is a known state at t0."""
    return JumpPosterior(model if start is None else model.started(start), data, route)
