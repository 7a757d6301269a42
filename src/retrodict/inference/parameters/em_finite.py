"""EM of finite chains: expected counts (Baum and others 1970), and of jump processes: expected jumps over dwell times.

    prior    P(x_0 = i | y), averaged over series
    P(i, j)  expected moves i -> j  /  expected visits of i
    Q(i, j)  expected jumps i -> j  /  expected time in i         (Hobolth and Jensen 2005; see `jumps.exact`)

and a law of observation from the families below, by the mean of y (and its square) weighted with P(x_k = i | y).
States that are never visited keep what they had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Exponential, Independent, MultivariateNormal, Normal, Poisson

from retrodict.core.errors import InputError
from retrodict.inference.emissions import Emission, LawEmission, TableEmission
from retrodict.inference.finite import FinitePosterior
from retrodict.inference.jumps import JumpPosterior, JumpProcess
from retrodict.inference.models import StateSpace
from retrodict.inference.observed import Observed
from retrodict.inference.problem import Problem
from retrodict.kernels import Categorical, Finite, rates_of
from retrodict.kernels.finite import safe_log
from retrodict.kernels.scans import finite

#: family -> its parameter that is the mean of y (`Exponential`: its inverse).
_MEANS: dict[type, str] = {Poisson: "rate", Bernoulli: "probs", Exponential: "rate"}


class FiniteBlocks:
    """The blocks of a finite chain with one transition for all times.

    Attributes:
        values: name -> block: prior ``(K,)``, transition ``(K, K)``, and those of the law of observation.
    """

    dynamics = "transition"

    def __init__(self, model: StateSpace, data: Observed) -> None:
        self.model, self.data = model, data
        self.post = self._condition()
        if self.post.chain.p0.shape[0] > 1:
            raise InputError("method='em' takes one prior for all series")
        self.law = _law(self.post.problem)
        own = {"prior": self.post.chain.p0[0], self.dynamics: self._dynamics()}
        self.values: dict[str, Tensor] = {name: v.detach() for name, v in (own | self.law.values).items()}

    def _condition(self) -> FinitePosterior:
        return FinitePosterior(self.model, self.data)

    def _dynamics(self) -> Tensor:
        if self.post.chain.P.shape[:2] != (1, 1):
            raise InputError(
                "method='em' re-estimates one transition table that serves every step, and this one varies with the "
                "time or the series; a JumpProcess has rates, and method='gradient' fits anything"
            )
        return self.post.chain.P[0, 0]

    def step(self, free: list[str]) -> tuple[float, FiniteBlocks]:
        """The log likelihood here, and the blocks after one iteration."""
        weights, new, value = self._expect(free)
        problem = self.post.problem
        weights = problem.at_observations(weights).nan_to_num()
        new |= self.law.maximise(problem, weights, free)
        return value, self._with(new)

    def _expect(self, free: list[str]) -> tuple[Tensor, dict[str, Tensor], float]:
        """Smoothed probabilities at nodes, the re-estimated dynamics, and the log likelihood."""
        problem = self.post.problem
        padded = not bool(problem.real.all())
        found = finite.smooth(self.post.chain, pairs="each" if padded else "sum")
        assert found.pairs is not None
        pairs = found.pairs
        if padded:
            pairs = torch.where(problem.real[:, 1:, None, None], pairs, 0.0).sum(1)
        moves = pairs.sum(0)
        visits = moves.sum(-1, keepdim=True)
        P = torch.where(visits > 0, moves / visits.clamp_min(1e-300), self.values["transition"])
        new = {"prior": found.probabilities[:, 0].mean(0), "transition": P}
        return found.probabilities, self._kept(new, free), float(found.log_evidence.sum())

    def _kept(self, new: dict[str, Tensor], free: list[str]) -> dict[str, Tensor]:
        return dict(self.values) | {name: value for name, value in new.items() if name in free}

    def _with(self, values: dict[str, Tensor]) -> FiniteBlocks:
        prior = Categorical(safe_log(values["prior"])[None])
        transition = Finite(safe_log(values["transition"]))
        return FiniteBlocks(StateSpace(prior, transition, self.law.build(values), self.model.t0), self.data)


class JumpBlocks(FiniteBlocks):
    """The blocks of a jump process: prior, rates ``([pieces,] K, K)``, and those of the law of observation."""

    dynamics = "rates"
    model: JumpProcess
    post: JumpPosterior

    def _condition(self) -> FinitePosterior:
        return JumpPosterior(self.model, self.data)

    def _dynamics(self) -> Tensor:
        rates = self.model.rates
        return rates[0] if rates.shape[0] == 1 else rates

    def _expect(self, free: list[str]) -> tuple[Tensor, dict[str, Tensor], float]:
        expected = self.post.expected()
        visited = expected.dwell.sum(0) > 0
        rates = torch.where(visited.unsqueeze(-1), expected.rates(), self.model.rates.detach())
        new = {"prior": expected.start.mean(0), "rates": rates[0] if rates.shape[0] == 1 else rates}
        weights = finite.smooth(self.post.chain).probabilities
        return weights, self._kept(new, free), float(expected.log_evidence.sum())

    def _with(self, values: dict[str, Tensor]) -> JumpBlocks:
        rates = rates_of(values["rates"])
        given = Categorical(safe_log(values["prior"])[None]), self.law.build(values)
        return JumpBlocks(JumpProcess(rates, *given, self.model.t0, self.model.breaks), self.data)


# --- laws of observation ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Law:
    """A law of observation whose parameters are re-estimated; this one stays as it is."""

    given: Any
    values: dict[str, Tensor]

    def maximise(self, problem: Problem, weights: Tensor, free: list[str]) -> dict[str, Tensor]:
        """New values of the free blocks; ``weights (S, N, K)`` are zero at padding."""
        return {}

    def build(self, values: dict[str, Tensor]) -> Any:
        """What a `StateSpace` takes as observation."""
        return self.given


class TableLaw(Law):
    """Categories: a table of probabilities."""

    def maximise(self, problem: Problem, weights: Tensor, free: list[str]) -> dict[str, Tensor]:
        if "emission" not in free:
            return {}
        y, seen = problem.filled
        table = self.values["emission"]
        one_hot = torch.nn.functional.one_hot(y, table.shape[-1]).double() * seen.unsqueeze(-1)
        counts = torch.einsum("snk,snm->km", weights, one_hot)
        total = counts.sum(-1, keepdim=True)
        return {"emission": torch.where(total > 0, counts / total.clamp_min(1e-300), table)}

    def build(self, values: dict[str, Tensor]) -> Any:
        return Finite(safe_log(values["emission"]))


@dataclass(frozen=True)
class NumberLaw(Law):
    """Real numbers, one or several a time, from a family of torch.distributions."""

    family: type = Normal
    independent: bool = False

    def maximise(self, problem: Problem, weights: Tensor, free: list[str]) -> dict[str, Tensor]:
        y, seen = _numbers(problem)
        w = torch.einsum("snk,snm->snkm", weights, seen.double())
        count = w.sum((0, 1))
        average = lambda v: (w * v).sum((0, 1)) / count.clamp_min(1e-300)  # noqa: E731
        old = {name: v.reshape(len(v), -1) for name, v in self.values.items()}
        mean = average(y.unsqueeze(2))
        new = {}
        if self.family in _MEANS:
            new[_MEANS[self.family]] = 1 / mean.clamp_min(1e-300) if self.family is Exponential else mean
        else:
            new["mean"] = mean if "mean" in free else old["mean"]
            new["std"] = average((y.unsqueeze(2) - new["mean"]).square()).sqrt()
        return {
            name: torch.where(count > 0, value, old[name]).reshape(self.values[name].shape)
            for name, value in new.items()
            if name in free
        }

    def build(self, values: dict[str, Tensor]) -> Any:
        names = ("mean", "std") if self.family is Normal else (_MEANS[self.family],)
        parts = [values[name] for name in names]

        def law(x: Tensor) -> Distribution:
            found = self.family(*(part[x] for part in parts))
            return Independent(found, 1) if self.independent else found

        return law


class VectorLaw(Law):
    """Vectors from a normal law with a full covariance."""

    def maximise(self, problem: Problem, weights: Tensor, free: list[str]) -> dict[str, Tensor]:
        y, seen = _numbers(problem)
        whole = seen.all(-1)
        if bool((seen.any(-1) != whole).any()):
            raise InputError(
                "method='em' of a full covariance takes vectors that are seen as a whole or not at all; use "
                "Independent(Normal(...), 1), or fixed=('mean', 'covariance')"
            )
        w = weights * whole.unsqueeze(-1)
        count = w.sum((0, 1)).clamp_min(1e-300)
        mean = torch.einsum("snk,snm->km", w, y) / count.unsqueeze(-1)
        mean = mean if "mean" in free else self.values["mean"]
        apart = y.unsqueeze(2) - mean
        covariance = torch.einsum("snk,snka,snkb->kab", w, apart, apart) / count[:, None, None]
        return {name: value for name, value in (("mean", mean), ("covariance", covariance)) if name in free}

    def build(self, values: dict[str, Tensor]) -> Any:
        mean, covariance = values["mean"], values["covariance"]
        return lambda x: MultivariateNormal(mean[x], covariance[x])


def _numbers(problem: Problem) -> tuple[Tensor, Tensor]:
    """``(y, seen)`` as real ``(S, N, m)``."""
    y, seen = problem.filled
    return (y, seen) if y.is_floating_point() else (y.double().unsqueeze(-1), seen.unsqueeze(-1))


def _law(problem: Problem) -> Law:
    """The law of a problem with its current values; families without a closed form stay as they are."""
    given = problem.model.given[2]
    emission: Emission = problem.emission
    if isinstance(emission, TableEmission):
        return TableLaw(given, {"emission": emission.log_p.exp().detach()})
    if not isinstance(emission, LawEmission):
        return Law(given, {})
    law = emission.f(torch.arange(problem.size))
    if isinstance(law, MultivariateNormal):
        return VectorLaw(given, {"mean": law.mean.double().detach(), "covariance": law.covariance_matrix.detach()})
    base = law.base_dist if isinstance(law, Independent) else law
    if type(base) is Normal:
        values = {"mean": base.loc, "std": base.scale}
    elif type(base) in _MEANS:
        name = _MEANS[type(base)]
        values = {name: getattr(base, name)}
    else:
        return Law(given, {})
    values = {name: v.double().detach().clone() for name, v in values.items()}
    return NumberLaw(given, values, type(base), isinstance(law, Independent))
