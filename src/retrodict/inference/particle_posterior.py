"""A `StateSpace` conditioned on data by weighted particles: filters, smoothers, and what to call them.

==============  =================================================================================================
method          what it does
==============  =================================================================================================
``bootstrap``   particles follow the transition; smoothing by backward simulation where it has a density
``guided``      particles are bent towards each observation
``auxiliary``   particles are chosen by the next observation
``ffbs``        smoothing by the backward weights of all particles, O(N^2) a step (FFBSm)
``paris``       additive functionals in constant memory, by parents drawn on the way (`expect`)
``pgibbs``      particle Gibbs: a chain of paths that is right for any number of particles
``two-filter``  smoothing by a forward and a backward filter
==============  =================================================================================================

The last four take ``proposal="bootstrap"``, ``"guided"`` or ``"auxiliary"``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, RetrodictError
from retrodict.core.noise import KeyedNoise
from retrodict.core.registry import Registry
from retrodict.inference.forecasts import by_particles
from retrodict.inference.models import StateSpace
from retrodict.inference.observed import Observed
from retrodict.inference.particle import Auxiliary, Bootstrap, Guided
from retrodict.inference.particle_two_filter import two_filter
from retrodict.inference.posterior import Conditioned, register
from retrodict.inference.problem import Problem
from retrodict.inference.results import Marginals, Paths
from retrodict.kernels import Gaussian
from retrodict.particles import (
    Additive,
    Chain,
    Genealogy,
    History,
    Node,
    ParticlesDied,
    Run,
    moments,
    particle_gibbs,
    sample_paths,
    smc,
    smoothing_weights,
)
from retrodict.particles.resampling import pick
from retrodict.particles.variance import EvidenceVariance

#: How particles are proposed: ``Problem -> FeynmanKac``.
proposals: Registry[Callable[[Problem], Bootstrap]] = Registry("proposal")
proposals.add("bootstrap", value=Bootstrap)
proposals.add("guided", value=Guided)
proposals.add("auxiliary", value=Auxiliary)

_SMOOTHERS = ("backward", "marginal", "paris", "tree", "gibbs", "two-filter")
_WORDS = {
    "backward": "backward simulation",
    "marginal": "backward weights",
    "paris": "PaRIS and backward simulation",
    "tree": "genealogy",
    "gibbs": "particle Gibbs",
    "two-filter": "two filters",
}


class Laws:
    """An observer that keeps each node's law: ``(mean, covariance)``, or probabilities of finite states."""

    def __init__(self, states: int | None) -> None:
        self.states = states
        self.kept: list[tuple[Tensor, ...]] = []

    def __call__(self, node: Node) -> None:
        self.kept.append(law(node.x, node.weights, self.states))

    def stacked(self) -> tuple[Tensor, ...]:
        return tuple(torch.stack(values, 1) for values in zip(*self.kept))


def law(x: Tensor, weights: Tensor, states: int | None) -> tuple[Tensor, ...]:
    """Mean and covariance of weighted particles ``(S, P, d)``, or probabilities ``(S, K)`` of finite ones."""
    if states is None:
        return moments(x, weights)
    return (torch.zeros(len(x), states, dtype=torch.float64).scatter_add_(1, x, weights),)


class ParticlePosterior(Conditioned):
    """A state-space model conditioned by N particles a series.

    Runs are functions of the seed and of the series' own number and data: a batch equals its series one by one.

    Attributes:
        log_evidence_se: standard error of ``log_evidence``, from the families of the particles.
        ess: the smallest effective sample size over the nodes, ``(S,)``.
        run: the forward run, with the effective sample size at every node.
    """

    exact = False

    def __init__(
        self,
        model: StateSpace,
        data: Observed,
        particles: int,
        seed: int,
        resample: str,
        threshold: float,
        proposal: str,
        smoother: str,
        rejection: bool | None = None,
        sweeps: int = 200,
        burn_in: int = 20,
        index: int | list[int] | None = None,
    ) -> None:
        super().__init__(model, data)
        if smoother not in ("auto", *_SMOOTHERS):
            raise InputError(f"smoother is one of auto, {', '.join(_SMOOTHERS)}; got {smoother!r}")
        self.problem = Problem(model, data)
        self.fk = proposals[proposal](self.problem)
        self.states = self.problem.size if model.kind == "finite" else None
        self.particles, self.seed, self.proposal, self.rejection = particles, seed, proposal, rejection
        self.resampling, self.threshold, self._smoother = resample, threshold, smoother
        self.sweeps, self.burn_in = sweeps, burn_in
        self.index = self.problem.S if index is None else index
        self.run: Run = self._smc([])

    @cached_property
    def smoother(self) -> str:
        """How paths are smoothed: as asked for, or backward where the transition has a density."""
        if self._smoother != "auto":
            return self._smoother
        return "tree" if no_density(self.model, self.data) else "backward"

    @property
    def route(self) -> str:  # type: ignore[override]
        """How it was computed, in words."""
        way = f"{self.particles} {self.proposal} particles, {self.resampling} resampling below {self.threshold:g}"
        return f"{way}, smoothing by {_WORDS[self.smoother]}"

    def _noise(self, name: str) -> KeyedNoise:
        # normals in single precision cost half as much; states are float64, uniforms always are
        return KeyedNoise(self.seed, self.index).stream(name)

    def _smc(self, observers: list) -> Run:
        try:
            return smc(
                self.fk,
                self.particles,
                self._noise("filter"),
                resample=self.resampling,
                threshold=self.threshold,
                observers=observers,
            )
        except ParticlesDied as dead:
            when = float(self.problem.times[dead.series, dead.node])
            raise ParticlesDied(f"at time {when:g}: {dead}", dead.node, dead.series) from None

    # -- answers ------------------------------------------------------------------------------------------------

    @property
    def log_evidence(self) -> Tensor:  # type: ignore[override]
        return self.run.log_evidence

    @property
    def log_evidence_se(self) -> Tensor:  # type: ignore[override]
        """Standard error of ``log_evidence``, ``(S,)``."""
        return self._watched[1].variance.sqrt()

    @property
    def ess(self) -> Tensor:  # type: ignore[override]
        """The smallest effective sample size over the nodes, ``(S,)``."""
        return self.run.ess.min(1).values

    def filter(self) -> Marginals:
        """Weighted moments of the particles at each observation."""
        return self._marginals(self._watched[0].stacked())

    def smooth(self) -> Marginals:
        """By the smoother of the method (see the table of this module)."""
        if self.smoother == "two-filter" and self.fk.lengths is not None:
            return self._one_by_one()
        if self.smoother in ("marginal", "two-filter"):
            pairs = zip(*self._smoothed_particles)
            kept = [law(x, w, self.states) for x, w in pairs]
            return self._marginals(tuple(torch.stack(values, 1) for values in zip(*kept)))
        paths = self._smoothed_paths(self.sweeps if self.smoother == "gibbs" else self.particles)
        P = paths.shape[1]
        weights = torch.full((len(paths), P), 1 / P, dtype=torch.float64)
        kept = [law(x, weights, self.states) for x in paths.unbind(2)]
        return self._marginals(tuple(torch.stack(values, 1) for values in zip(*kept)))

    def _one_by_one(self) -> Marginals:
        """Two filters meet at nodes of one chain: series of unequal length take turns."""
        laws = []
        for s in range(self.problem.S):
            alone = ParticlePosterior(
                self.model,
                self.data.series(s),
                self.particles,
                self.seed,
                self.resampling,
                self.threshold,
                self.proposal,
                self.smoother,
                index=[s],
            )
            found = alone.smooth()
            laws.append((found.mean, found.covariance))
        mean, cov = (torch.nn.utils.rnn.pad_sequence([v[i][0] for v in laws], True, float("nan")) for i in (0, 1))
        return replace(self._marginals(self._watched[0].stacked()), mean=mean, covariance=cov)

    def forecast(self, times: Any, of: str = "state") -> Marginals:
        """The last particles, pushed forward by the transition."""
        cloud = self.run.x, self.run.log_w
        return by_particles(self.model, self.data, Bootstrap, cloud, times, of, self._noise("forecast"))

    def sample(self, n: int, seed: int = 0) -> Paths:
        """``n`` smoothed paths of equal weight; by backward simulation where the method has no paths of its own."""
        paths = self._smoothed_paths(n, seed)
        x = self.problem.at_observations(paths.transpose(1, 2)).transpose(1, 2).transpose(0, 1)
        log_weights = torch.zeros(x.shape[:2], dtype=torch.float64)
        return Paths(x, log_weights, self.data.times, None, self.data.axis, self.data.single)

    def expect(
        self,
        term: Callable[[int, Tensor, Tensor], Tensor],
        start: Callable[[Tensor], Tensor] | None = None,
        draws: int = 2,
    ) -> Tensor:
        """Smoothed expectation ``(S, p)`` of ``start(x_0) + sum_k term(k, x_{k-1}, x_k)``, over nodes k.

        ``term`` acts on states with any leading axes that broadcast and returns ``(..., p)``.  PaRIS with ``draws``
        parents: O(N) memory however long the series; with ``method="pgibbs"`` the Parisian sampler's roll-out
        estimate, from all particles of all sweeps.
        """
        if self.smoother == "gibbs":
            return self._gibbs(term, start, draws).estimate
        functional = Additive(self.fk, term, start, noise=self._noise("paris"), draws=draws, rejection=self.rejection)
        self._smc([functional])
        return functional.estimate

    @cached_property
    def _watched(self) -> tuple[Laws, EvidenceVariance]:
        """Moments and the evidence's variance: by one more run, observed; who asks for neither pays for neither."""
        found = Laws(self.states), EvidenceVariance(self.resampling)
        self._smc(list(found))
        return found

    # -- smoothing ----------------------------------------------------------------------------------------------

    @cached_property
    def _history(self) -> History:
        history = History()
        self._smc([history])
        return history

    @cached_property
    def _smoothed_particles(self) -> tuple[list[Tensor], list[Tensor]]:
        """States and smoothed weights at every node."""
        if self.smoother == "marginal":
            return self._history.x, smoothing_weights(self.fk, self._history)
        guide = Guided(self.problem)
        return two_filter(guide, self._history, self._noise("behind"), self.resampling, self.threshold)

    def _smoothed_paths(self, n: int, seed: int = 0) -> Tensor:
        """``(S, n, nodes, ...)``."""
        draw = self._noise("paths").stream(str(seed))
        if self.smoother == "gibbs":
            chain = self._chain.paths.transpose(0, 1)
            index = (torch.arange(n) * (chain.shape[1] / n)).long() if n < chain.shape[1] else torch.arange(n)
            return chain[:, index % chain.shape[1]]
        if self.smoother == "tree":
            return self._ancestry.trace(pick(self.run.log_w.exp(), draw.uniform((n,))))
        return sample_paths(self.fk, self._history, n, draw, rejection=self.rejection)

    @cached_property
    def _ancestry(self) -> Genealogy:
        tree = Genealogy()
        self._smc([tree])
        return tree

    @cached_property
    def _chain(self) -> Chain:
        return self._gibbs(None, None, 2)

    def _gibbs(self, term: Callable | None, start: Callable | None, draws: int) -> Chain:
        return particle_gibbs(
            self.fk,
            self.particles,
            self.sweeps,
            self._noise("gibbs"),
            burn_in=self.burn_in,
            select="backward" if term is None else "parisian",
            threshold=self.threshold,
            term=term,
            start=start,
            draws=draws,
        )

    def _marginals(self, values: tuple[Tensor, ...]) -> Marginals:
        at = [self.problem.at_observations(v) for v in values]
        real = self.states is None
        return Marginals(
            self.data.times,
            mean=at[0] if real else None,
            covariance=at[1] if real else None,
            probabilities=None if real else at[0],
            log_evidence=self.log_evidence,
            exact=False,
            axis=self.data.axis,
            single=self.data.single,
        )


# --- the methods --------------------------------------------------------------------------------------------------


def no_guide(model: StateSpace, data: Observed) -> str | None:
    """Why particles cannot be guided or chosen ahead, or None."""
    if model.kind == "finite":
        return "the states are finite"
    problem = Problem(model, data)
    if problem.family not in ("linear", "gaussian"):
        return f"the transition is {problem.family}, not Gaussian"
    return None if isinstance(problem.prior, Gaussian) else f"the prior is {type(problem.prior).__name__}, not Gaussian"


def no_density(model: StateSpace, data: Observed) -> str | None:
    """Why backward sampling does not apply, or None."""
    problem = Problem(model, data)
    if not problem.n:
        return None
    fk = Bootstrap(problem)
    try:
        x = fk._prior_draw(2, KeyedNoise(0, problem.S, dtype=torch.float64))
        value = fk.log_transition(1, x, x)
    except RetrodictError as error:
        return str(error)
    return None if not bool(value.isnan().any()) else "the transition's density is NaN at draws from the prior"


def _filtering(proposal: str, words: str) -> Callable[..., Conditioned]:
    """The builder of a particle filter with this proposal, smoothed as the model allows."""

    def build(
        model: StateSpace,
        data: Observed,
        particles: int = 1000,
        seed: int = 0,
        resample: str = "systematic",
        threshold: float = 0.5,
        smoother: str = "auto",
        rejection: bool | None = None,
    ) -> Conditioned:
        return ParticlePosterior(model, data, particles, seed, resample, threshold, proposal, smoother, rejection)

    build.__doc__ = words
    return build


#: the bootstrap particle filter (Gordon, Salmond and Smith 1993)
bootstrap = register("bootstrap", StateSpace, auto=20)(_filtering("bootstrap", "The bootstrap particle filter."))
#: the locally optimal proposal by linearisation (Doucet, Godsill and Andrieu 2000)
guided = register("guided", StateSpace, why_not=no_guide, auto=10)(_filtering("guided", "Guided particles."))
#: the auxiliary particle filter (Pitt and Shephard 1999)
auxiliary = register("auxiliary", StateSpace, why_not=no_guide)(_filtering("auxiliary", "The auxiliary filter."))


@register("ffbs", StateSpace, why_not=no_density)
def ffbs(
    model: StateSpace,
    data: Observed,
    particles: int = 1000,
    seed: int = 0,
    resample: str = "systematic",
    threshold: float = 0.5,
    proposal: str = "bootstrap",
) -> Conditioned:
    """Forward filtering, backward smoothing with all pairs of particles."""
    return ParticlePosterior(model, data, particles, seed, resample, threshold, proposal, "marginal")


@register("paris", StateSpace, why_not=no_density)
def paris(
    model: StateSpace,
    data: Observed,
    particles: int = 1000,
    seed: int = 0,
    resample: str = "systematic",
    threshold: float = 0.5,
    proposal: str = "bootstrap",
    rejection: bool | None = None,
) -> Conditioned:
    """PaRIS (Olsson and Westerborn 2017): additive functionals by `expect`; paths by backward simulation."""
    return ParticlePosterior(model, data, particles, seed, resample, threshold, proposal, "paris", rejection)


@register("pgibbs", StateSpace, why_not=no_density)
def pgibbs(
    model: StateSpace,
    data: Observed,
    particles: int = 100,
    seed: int = 0,
    threshold: float = 0.5,
    proposal: str = "bootstrap",
    sweeps: int = 200,
    burn_in: int = 20,
) -> Conditioned:
    """Particle Gibbs with backward sampling; `expect` runs the Parisian sampler."""
    return ParticlePosterior(
        model, data, particles, seed, "multinomial", threshold, proposal, "gibbs", None, sweeps, burn_in
    )


@register("two-filter", StateSpace, why_not=lambda model, data: no_guide(model, data) or no_density(model, data))
def both_ways(
    model: StateSpace,
    data: Observed,
    particles: int = 1000,
    seed: int = 0,
    resample: str = "systematic",
    threshold: float = 0.5,
    proposal: str = "guided",
) -> Conditioned:
    """A forward and a backward filter that meet at every node (Briers, Doucet and Maskell 2010)."""
    return ParticlePosterior(model, data, particles, seed, resample, threshold, proposal, "two-filter")
