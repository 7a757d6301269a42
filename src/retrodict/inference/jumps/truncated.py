"""``method="exact"`` of a reaction network: sums over all states of a box of counts (finite state projection).

The chain is cut to counts ``0..upper``; jumps out of the box end in a state from which nothing is seen.  What the sum
misses is bounded by the probability of having left the box, which is computed beside it (Munsky and Khammash 2006):
the evidence is a lower bound, short by at most ``lost`` of itself for likelihoods that are largest inside.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.inference.jumps.reactions import ReactionNetwork
from retrodict.inference.observed import Observed
from retrodict.inference.posterior import Conditioned, register
from retrodict.inference.problem import Problem
from retrodict.inference.results import Marginals
from retrodict.kernels import Gaussian
from retrodict.kernels.jump import uniformised

_MOST_STATES = 2_000_000


def box(upper: Any, d: int) -> Tensor:
    """All states ``(K, d)`` with counts ``0..upper``."""
    top = torch.as_tensor(upper).reshape(-1).expand(d).long()
    count = int((top + 1).prod())
    if bool((top < 1).any()) or count > _MOST_STATES:
        raise InputError(
            f"upper bounds of counts are 1 or more and at most {_MOST_STATES:,} states; got {top.tolist()}"
        )
    axes = [torch.arange(int(n) + 1, dtype=torch.float64) for n in top]
    return torch.cartesian_prod(*axes).reshape(count, d)


def sparse_rates(network: ReactionNetwork, states: Tensor) -> Tensor:
    """The generator on the states of a box and, last, the outside: sparse CSR ``(K+1, K+1)``."""
    K, top = len(states), states[-1]
    a = network.hazards(states)
    stride = torch.tensor([int((top[i + 1 :] + 1).prod()) for i in range(len(top))], dtype=torch.float64)
    rows, columns, values = [], [], []
    for r, change in enumerate(network.changes):
        target, active = states + change, (a[:, r] > 0).nonzero()[:, 0]
        if bool((target[active] < 0).any()):
            bad = active[(target[active] < 0).any(-1)][0]
            raise InputError(
                f"reaction {r} has a hazard above zero at {states[bad].tolist()} and makes a count negative"
            )
        inside = (target <= top).all(-1)
        rows.append(active)
        columns.append(torch.where(inside, (target * stride).sum(-1).long(), K)[active])
        values.append(a[active, r])
    row, column, value = torch.cat(rows), torch.cat(columns), torch.cat(values)
    exits = torch.zeros(K + 1, dtype=torch.float64).index_add(0, row, value)
    every = torch.arange(K + 1)
    index = torch.stack([torch.cat([row, every]), torch.cat([column, every])])
    matrix = torch.sparse_coo_tensor(index, torch.cat([value, -exits]), (K + 1, K + 1), check_invariants=False)
    return matrix.coalesce().to_sparse_csr()


class BoxPosterior(Conditioned):
    """A reaction network given data, summed over a box of counts.

    Attributes:
        log_evidence: ``(S,)``, of the box.
        lost: ``(S,)``, the probability of having left the box by the last observation, before anything was seen.
    """

    def __init__(self, model: ReactionNetwork, data: Observed, upper: Any) -> None:
        super().__init__(model, data)
        self.problem = Problem(model, data)
        self.states = box(upper, model.size)
        self.rates = sparse_rates(model, self.states)
        self.route = f"sums over {len(self.states)} states, uniformisation"
        self.exact = bool((self.lost < 1e-9).all())

    @cached_property
    def _start(self) -> Tensor:
        """``(K+1, S)``."""
        prior, S = self.problem.prior, self.problem.S
        if isinstance(prior, Gaussian):
            same = (self.states.unsqueeze(1) == prior.mean.expand(S, -1)).all(-1).double()
        else:
            log_p = prior.log_prob(self.states)
            same = (log_p.sum(-1) if log_p.ndim > 1 else log_p).exp().unsqueeze(-1).expand(-1, S)
        if bool((same.sum(0) <= 0).any()):
            raise InputError(f"the prior's counts lie outside of the box 0..{self.states[-1].tolist()}")
        return torch.cat([same, (1 - same.sum(0, keepdim=True)).clamp_min(0)])

    def _carry(self, p: Tensor, k: int, transpose: bool) -> Tensor:
        """Columns ``(K+1, S)`` over step k; series with equal times go together."""
        dt = torch.where(self.problem.real[:, k], self.problem.end[:, k - 1] - self.problem.start[:, k - 1], 0.0)
        out = p.clone()
        for length in dt.unique().tolist():
            here = dt == length
            out[:, here] = uniformised(self.rates, length, p[:, here].contiguous(), transpose)
        return out

    def _likelihood(self, k: int) -> tuple[Tensor, Tensor]:
        """``g / top (K+1, S)`` and ``log top (S,)`` at node k; nothing is seen from outside."""
        log_g = self.problem.log_likelihood(k, self.states.expand(self.problem.S, -1, -1)).T
        top = log_g.amax(0)
        if bool(torch.isinf(top).any()):
            raise InputError(f"an observation at node {k} has probability zero in every state of the box")
        return torch.cat([(log_g - top).exp(), torch.zeros(1, self.problem.S, dtype=torch.float64)]), top

    @cached_property
    def _forward(self) -> tuple[list[Tensor], Tensor]:
        p, log_z, laws = self._start, torch.zeros(self.problem.S, dtype=torch.float64), []
        for k in range(self.problem.n + 1):
            p = self._carry(p, k, transpose=True) if k else p
            if self.problem.observed(k):
                g, top = self._likelihood(k)
                p, log_z = p * g, log_z + top
                total = p.sum(0)
                if bool((total <= 0).any()):
                    s = int((total <= 0).nonzero()[0])
                    t = float(self.problem.times[s, k])
                    raise InputError(f"the observation of series {s} at time {t:g} has probability zero in the box")
                p, log_z = p / total, log_z + total.log()
            laws.append(p)
        return laws, log_z

    @cached_property
    def lost(self) -> Tensor:
        p = self._start
        for k in range(1, self.problem.n + 1):
            p = self._carry(p, k, transpose=True)
        return p[-1]

    @property
    def log_evidence(self) -> Tensor:
        return self._forward[1]

    def filter(self) -> Marginals:
        """Means and covariances given what was seen so far."""
        return self._marginals(self._forward[0])

    def smooth(self) -> Marginals:
        """Means and covariances given all data: forward laws times backward messages."""
        laws, _ = self._forward
        h, smoothed = torch.ones_like(laws[0]), [laws[-1]]
        for k in range(self.problem.n, 0, -1):
            if self.problem.observed(k):
                h = h * self._likelihood(k)[0]
            h = self._carry(h, k, transpose=False)
            h = h / h.amax(0)
            joint = laws[k - 1] * h
            smoothed.append(joint / joint.sum(0))
        return self._marginals(smoothed[::-1])

    def _marginals(self, laws: list[Tensor]) -> Marginals:
        p = torch.stack(laws).movedim(-1, 0)[..., :-1]  # (S, nodes, K)
        p = p / p.sum(-1, keepdim=True)
        mean = p @ self.states
        second = torch.einsum("snk,ki,kj->snij", p, self.states, self.states)
        mean, cov = (self.problem.at_observations(v) for v in (mean, second - mean.unsqueeze(-1) * mean.unsqueeze(-2)))
        common = {"exact": self.exact, "axis": self.data.axis, "single": self.data.single}
        return Marginals(self.data.times, mean, cov, log_evidence=self.log_evidence, **common)


@register("exact", ReactionNetwork)
def exact(model: ReactionNetwork, data: Observed, upper: Any = None) -> Conditioned:
    """``upper``: the largest count of each species, a number or ``(d,)``; ``lost`` tells what leaves the box."""
    if upper is None:
        raise InputError("method='exact' of a ReactionNetwork takes upper=, the largest count of each species")
    return BoxPosterior(model, data, upper)
