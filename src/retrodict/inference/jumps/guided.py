"""``method="guided"`` of a jump process: exact draws of a simpler process, weighted to be of the true one.

An auxiliary generator Q~, positive wherever the true Q is, is conditioned on the data exactly; its paths pay the
ratio of the laws of the two paths,

    log w = sum over jumps log Q(x, y) / Q~(x, y)  +  integral of (Q(x, x) - Q~(x, x)) dt  along the path,

and ``Z~ E[w] = Z`` for every Q~.  No bound on the rates and no time step is needed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.inference.jumps.exact import JumpPosterior
from retrodict.inference.jumps.paths import JumpPaths
from retrodict.inference.jumps.process import JumpProcess
from retrodict.inference.observed import Observed
from retrodict.inference.posterior import Conditioned, register
from retrodict.inference.results import Marginals, Paths
from retrodict.kernels.jump import as_generator
from retrodict.particles import ParticlesDied, ess, log_mean_exp


def path_ratio(model: JumpProcess, rates: Tensor, other: Tensor, paths: JumpPaths) -> Tensor:
    """log of the law of each path under ``rates`` over that under ``other``, ``(n, S)``; both ``(pieces, K, K)``."""
    begin, end = paths.stays()
    x, y = paths.states[..., :-1], paths.states[..., 1:]
    piece = torch.searchsorted(model.breaks, paths.times.contiguous(), right=True)
    total = torch.zeros(paths.times.shape[:2], dtype=torch.float64)
    for i in range(rates.shape[0]):
        stay = model.time_in(i, begin, end)
        exits = (rates[i] - other[i]).diagonal()
        here = torch.isfinite(paths.times) & (piece == i)
        jumps = torch.where(here, torch.log(rates[i][x, y]) - torch.log(other[i][x, y]), 0.0)
        total = total + (exits[paths.states] * stay).sum(-1) + jumps.sum(-1)
    return total


class GuidedJumps(Conditioned):
    """Weighted paths of a jump process given data.

    Attributes:
        log_evidence, log_evidence_se, ess: ``(S,)``; the exponential of the first is unbiased.
    """

    def __init__(self, model: JumpProcess, data: Observed, auxiliary: Tensor, particles: int, seed: int) -> None:
        super().__init__(model, data)
        require(particles > 1, f"particles is at least 2, got {particles}")
        self.auxiliary = model.with_rates(auxiliary)
        true, other = model.rates.detach(), self.auxiliary.rates
        closed = (true > 0) & (other <= 0)
        if bool(closed.any()):
            _, x, y = closed.nonzero()[0].tolist()
            raise InputError(
                f"the auxiliary rates cannot make the jump from state {x} to state {y}, which the process can; give it"
                " a rate above zero there"
            )
        self.guide = JumpPosterior(self.auxiliary, data)
        self.particles, self.seed = particles, seed
        self.route = f"{particles} paths of an auxiliary process, weighted"

    def trajectories(self, n: int, seed: int = 0) -> JumpPaths:
        """``n`` weighted paths in continuous time; the log of their mean weight estimates the log evidence."""
        paths = self.guide.trajectories(n, seed)
        log_w = path_ratio(self.model, self.model.rates, self.auxiliary.rates, paths)
        return replace(paths, log_weights=log_w + self.guide.log_evidence)

    @cached_property
    def _paths(self) -> JumpPaths:
        paths = self.trajectories(self.particles, self.seed)
        dead = torch.isinf(paths.log_weights).all(0)
        if bool(dead.any()):
            JumpPosterior(self.model, self.data).log_evidence  # noqa: B018 -- names an impossible observation
            raise ParticlesDied(
                f"all {self.particles} paths of series {int(dead.nonzero()[0])} make jumps that the process cannot; "
                "use more particles, or an auxiliary that is closer to the process",
                self.guide.problem.n,
                int(dead.nonzero()[0]),
            )
        return paths

    @property
    def log_evidence(self) -> Tensor:
        return log_mean_exp(self._paths.log_weights.T)

    @property
    def log_evidence_se(self) -> Tensor:  # type: ignore[override]
        """Standard error of the log evidence by the delta method, ``(S,)``."""
        return (1 / self.ess - 1 / self.particles).clamp_min(0).sqrt()

    @property
    def ess(self) -> Tensor:  # type: ignore[override]
        return ess(self._paths.log_weights.T)

    def smooth(self) -> Marginals:
        """Weighted shares of the states at the observations."""
        weights = torch.softmax(self._paths.log_weights, 0)
        x = self._at_observations(self._paths)
        p = torch.einsum("ns,nsmk->smk", weights, torch.nn.functional.one_hot(x.clamp_min(0), self.model.size).double())
        p = p.masked_fill(~self.data.real.unsqueeze(-1), math.nan)
        common = {"exact": False, "axis": self.data.axis, "single": self.data.single}
        return Marginals(self.data.times, probabilities=p, log_evidence=self.log_evidence, **common)

    def sample(self, n: int, seed: int = 0) -> Paths:
        paths = self.trajectories(n, seed)
        x = self._at_observations(paths)
        return Paths(x, paths.log_weights, self.data.times, None, self.data.axis, self.data.single)

    def _at_observations(self, paths: JumpPaths) -> Tensor:
        times = self.data.times.nan_to_num(0.0)
        index = torch.searchsorted(paths.times.contiguous(), times.expand(len(paths), -1, -1).contiguous(), right=True)
        return torch.where(self.data.real, paths.states.gather(-1, index), -1)


@register("guided", JumpProcess)
def guided(
    model: JumpProcess, data: Observed, auxiliary: Any = None, start: Any = None, particles: int = 1000, seed: int = 0
) -> Conditioned:
    """``auxiliary``: rates ``(K, K)`` of the process whose exact posterior is drawn and weighted."""
    if auxiliary is None:
        raise InputError("method='guided' of a JumpProcess takes auxiliary=, rates (K, K) of a simpler process")
    rates = as_generator(auxiliary)
    rates = rates.expand(len(model.breaks) + 1, -1, -1) if rates.ndim == 2 else rates
    return GuidedJumps(model if start is None else model.started(start), data, rates, particles, seed)
