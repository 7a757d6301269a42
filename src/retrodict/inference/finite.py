"""Finite-state models as one `FiniteChain`: forward-backward, Viterbi, evidence, draws, forecasts.

Any law of observation will do: an observation enters as the log densities of what was seen under each state.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.inference.emissions import TableEmission
from retrodict.inference.forecasts import forecast_data
from retrodict.inference.models import StateSpace
from retrodict.inference.posterior import Conditioned
from retrodict.inference.problem import Problem
from retrodict.inference.results import Marginals, Paths
from retrodict.kernels import Categorical
from retrodict.kernels.scans import FiniteChain, finite

T = TypeVar("T")


def state_likelihoods(problem: Problem) -> Tensor:
    """``(S, n+1, K)``: log density of everything seen at each node under each state; zeros where nothing was."""
    y, seen = problem.filled
    states = torch.arange(problem.size)
    every = None if bool(seen.all()) else seen.unsqueeze(2)
    each = problem.emission.log_prob(states, y.unsqueeze(2), every).double()  # (S, N, K)
    each = each.expand(*y.shape[:2], problem.size)
    if bool(each.isnan().any()):
        s, k, x = (int(i) for i in each.isnan().nonzero()[0])
        raise InputError(
            f"the log density of the observation at time {float(problem.data.times[s, k]):g} of series {s} is NaN in "
            f"state {x}; the law of observation must give a number or -inf"
        )
    if problem.layout.plain and bool(problem.real.all()):
        return each
    nodes = each.new_zeros(problem.S, problem.n + 1, problem.size)
    where = problem.at.clamp_min(0).unsqueeze(-1).expand_as(each)
    return nodes.scatter_add(1, where, torch.where((problem.at >= 0).unsqueeze(-1), each, 0.0))


class FinitePosterior(Conditioned):
    """A finite chain conditioned on data: everything by sums."""

    exact = True

    def __init__(self, model: StateSpace, data: Any, route: str = "auto") -> None:
        super().__init__(model, data)
        self.problem = Problem(model, data)
        law: Categorical = self.problem.prior
        (P,) = self.problem.arrays()
        self.chain = FiniteChain(law.log_p.exp(), P, state_likelihoods(self.problem))
        self._route, self.route = route, "forward-backward recursion"
        if route != "auto":
            finite.ROUTES[route]  # raises on an unknown name

    @cached_property
    def log_evidence(self) -> Tensor:  # type: ignore[override]
        return self._ask(lambda: finite.evidence(self.chain, self._route))

    @cached_property
    def _filtered(self) -> Tensor:
        found = self._ask(lambda: finite.filter(self.chain, self._route))
        self._ran("filter", found.route)
        self._know(found.log_evidence, self.chain.tensors)
        return found.probabilities

    def filter(self) -> Marginals:
        """Forward recursion; observations at one time count together."""
        return self._marginals(self._filtered)

    def smooth(self) -> Marginals:
        """Forward-backward recursion."""
        found = self._ask(lambda: finite.smooth(self.chain, self._route))
        self._ran("smooth", found.route)
        self._know(found.log_evidence, self.chain.tensors)
        return self._marginals(found.probabilities)

    def viterbi(self) -> Paths:
        """The most probable hidden path, ``x (1, S, N)``; its log probability jointly with the data in log_weights."""
        path, log_prob = self._ask(lambda: finite.viterbi(self.chain, self._route))
        return self._paths(path[None], log_prob[None], None)

    def sample(self, n: int, seed: int = 0) -> Paths:
        """Independent draws of the whole path; ``innovations (n, S, n_nodes)`` are the uniforms that drove them."""
        u = KeyedNoise(seed, n, name="paths").uniform((self.problem.S, self.problem.n + 1))
        x = self._ask(lambda: finite.draw(self.chain, n, u, self._route))
        return self._paths(x, torch.zeros(n, self.problem.S, dtype=torch.float64), u)

    def forecast(self, times: Any, of: str = "state") -> Marginals:
        last = self.problem.real.sum(1) - 1
        law = Categorical(self._filtered[torch.arange(self.problem.S), last].log())
        model, data = forecast_data(self.model, self.data, law, times)
        ahead = FinitePosterior(model, data, self._route)
        p = ahead.problem.at_observations(ahead._filtered)[:, 1:]
        common = {"axis": data.axis, "single": data.single, "what": of}
        if of == "state":
            return Marginals(data.times[:, 1:], probabilities=p, **common)
        if isinstance(self.problem.emission, TableEmission):
            return Marginals(data.times[:, 1:], probabilities=p @ self.problem.emission.log_p.exp(), **common)
        moments = self.problem.emission.moments(torch.arange(self.problem.size))
        if moments is None:
            raise InputError("the law of observation has no known mean; forecast of='state'")
        means, covs = (v.double() for v in moments)
        mean = p @ means
        apart = means - mean.unsqueeze(-2)
        between = torch.einsum("snk,snki,snkj->snij", p, apart, apart)
        return Marginals(data.times[:, 1:], mean, torch.einsum("snk,kij->snij", p, covs) + between, **common)

    def _paths(self, x: Tensor, log_weights: Tensor, innovations: Any) -> Paths:
        x = self.problem.at_observations(x.permute(1, 2, 0)).permute(2, 0, 1)
        return Paths(x, log_weights, self.data.times, innovations, self.data.axis, self.data.single)

    def _marginals(self, probabilities: Tensor) -> Marginals:
        return Marginals(
            self.data.times,
            probabilities=self.problem.at_observations(probabilities),
            log_evidence=self.log_evidence,
            axis=self.data.axis,
            single=self.data.single,
        )

    def _ask(self, verb: Callable[[], T]) -> T:
        """The answer of the chain; if what was seen is impossible, the error names its time and not its node."""
        try:
            return verb()
        except InputError:
            self._name_impossible()
            raise

    def _name_impossible(self) -> None:
        """Raise for the first observation that no path can have made (possible states are followed as sets)."""
        chain, open_ = self.chain, self.chain.log_g.detach() > -torch.inf
        may = chain.P.detach() > 0
        alive = (chain.p0.detach() > 0) & open_[:, 0]
        for k in range(chain.n + 1):
            if k:
                step = may[:, 0 if may.shape[1] == 1 else k - 1].double()
                alive = ((alive.double().unsqueeze(-2) @ step).squeeze(-2) > 0) & open_[:, k]
            dead = ~alive.any(-1)
            if bool(dead.any()):
                s = int(dead.nonzero()[0])
                number = int((self.problem.at[s] == k).nonzero()[0])
                raise InputError(
                    f"series {s}: the observation at time {float(self.problem.times[s, k]):g} (number {number}) has "
                    "probability zero given what came before; give the transition or the law of observation a "
                    "positive probability there, or mark the value as missing"
                )
