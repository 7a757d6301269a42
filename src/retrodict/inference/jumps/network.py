"""Particles for reaction networks: ``method="guided"`` bends the hazards toward the next observation.

Over the time tau that is left, reactions are treated as Gaussian with mean ``a tau`` and variance ``a tau``; given the
next observation ``y = L x + noise`` their expected rates are (Golightly and Wilkinson 2015, the conditioned hazard)

    a* = a + diag(a) V'L' (L V diag(a) V'L' tau + R)^-1 (y - L (x + V a tau)),      V the changes, as columns,

kept above a share of a.  Paths run at a*, constant from event to event, and pay the exact ratio of the two laws of
the path, so that the evidence is unbiased whatever a* is.  ``method="bootstrap"`` runs at a.

The number of events is random; each particle of each series owns a cell that draws are hashed from, so that a batch
equals its series one by one.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import require
from retrodict.core.noise import Cells, KeyedNoise, Noise
from retrodict.inference.deaths import dated
from retrodict.inference.emissions import LinearEmission
from retrodict.inference.forecasts import by_particles
from retrodict.inference.jumps.reactions import ReactionNetwork, run_events
from retrodict.inference.observed import Observed
from retrodict.inference.particle_steps import seeded
from retrodict.inference.posterior import Conditioned, register
from retrodict.inference.problem import Problem
from retrodict.inference.results import Marginals, Paths
from retrodict.kernels import Gaussian
from retrodict.particles import FeynmanKac, Genealogy, smc
from retrodict.particles.ancestry import Families, Moments

_LEAST = 0.1  # the guided rate is never below this share of the true one: at .02 weights had a heavier tail
_UNSEEN = 1e12  # the variance of a coordinate that was not seen: it bends nothing
_TINY = 1e-9
_REFRESH = 8  # rates are made anew at least so many times between observations


class NetworkParticles(FeynmanKac):
    """A reaction network on data, as what the particle engine runs; states are ``(S, N, d)``."""

    def __init__(self, problem: Problem, guided: bool) -> None:
        self.problem, self.guided = problem, guided
        self.network: ReactionNetwork = problem.model  # type: ignore[assignment]
        self.n, self.series, self.lengths = problem.n, problem.S, problem.ends

    def start(self, particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        prior, S, d = self.problem.prior, self.series, self.problem.size
        if isinstance(prior, Gaussian):
            x = prior.mean.unsqueeze(1).expand(S, particles, d).clone()
        else:
            drawn = seeded(noise.uniform(()), lambda: prior.sample((particles,)).double().reshape(particles, d))
            x = torch.stack(drawn)
        return x, self.problem.log_likelihood(0, x)

    def draw(self, moves: int, particles: int, noise: Noise) -> list[Cells]:
        return [Cells(noise.uniform(()), particles) for _ in range(moves)]

    def move(self, k: int, x: Tensor, z: Cells) -> tuple[Tensor, Tensor]:
        problem = self.problem
        tau = torch.where(problem.real[:, k], problem.end[:, k - 1] - problem.start[:, k - 1], 0.0)
        propose = self._conditioned(k) if self.guided and problem.observed(k) else None
        refresh = _REFRESH if propose is not None else 0
        x, log_ratio = run_events(self.network, x, tau[:, None].expand(x.shape[:2]), z, propose, refresh)
        return x, log_ratio + problem.log_likelihood(k, x)

    def _conditioned(self, k: int) -> Any:
        emission, (y, R) = self.problem.emission, self._next_observation(k)
        assert isinstance(emission, LinearEmission)  # `not_linear` made sure of it
        L, V = emission.L, emission.L @ self.network.changes.T  # (m, d), (m, R)
        pairs = (V.unsqueeze(0) * V.unsqueeze(1)).flatten(0, 1).T  # (R, m m): one product for all particles

        def propose(row: Tensor, x: Tensor, left: Tensor, a: Tensor) -> Tensor:
            counts = a * left.unsqueeze(-1)
            mean = (x + counts @ self.network.changes) @ L.T + emission.b
            spread = (counts @ pairs).unflatten(-1, (len(L), len(L))) + R[row]
            bent = a * (1 + _solve(spread, y[row] - mean) @ V)
            return torch.maximum(bent, _LEAST * a)

        return propose

    def _next_observation(self, k: int) -> tuple[Tensor, Tensor]:
        """``y (S, m)`` and ``R (S, m, m)`` of the first observation at node k; what was not seen is very noisy."""
        problem, series = self.problem, torch.arange(self.series)
        slot = problem.slots[:, k, 0]
        y, seen = problem.filled
        seen = seen[series, slot.clamp_min(0)] & (slot >= 0)[:, None]
        R: Tensor = problem.emission.R  # type: ignore[attr-defined]
        keep = seen.double()
        R = R * keep.unsqueeze(-1) * keep.unsqueeze(-2) + _UNSEEN * torch.diag_embed(1 - keep)
        return y[series, slot.clamp_min(0)], R


def _solve(matrix: Tensor, v: Tensor) -> Tensor:
    """``matrix^-1 v`` for ``(n, m, m)`` and ``(n, m)``; exact observations leave nothing to spread where no reaction
    can run, and a small diagonal keeps that solvable."""
    if matrix.shape[-1] == 1:
        return v / (matrix[..., 0] + _TINY)
    if matrix.shape[-1] == 2:  # by hand: a call for each particle would take most of the time
        (p, q), (_, r) = (row.unbind(-1) for row in matrix.unbind(-2))
        p, r = p + _TINY, r + _TINY
        return torch.stack([r * v[:, 0] - q * v[:, 1], p * v[:, 1] - q * v[:, 0]], -1) / (p * r - q * q).unsqueeze(-1)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    return torch.linalg.solve(matrix + _TINY * eye, v.unsqueeze(-1)).squeeze(-1)


class NetworkPosterior(Conditioned):
    """Weighted particles of a reaction network given data.

    Attributes:
        log_evidence: ``(S,)``, its exponential is unbiased; log_evidence_se by the weights of families.
        ess: effective number of families, ``(S,)``.
    """

    def __init__(
        self, model: ReactionNetwork, data: Observed, guided: bool, particles: int, seed: int, threshold: float
    ) -> None:
        super().__init__(model, data)
        require(particles > 1, f"particles is at least 2, got {particles}")
        self.problem = Problem(model, data)
        self.fk = NetworkParticles(self.problem, guided)
        self.particles, self.seed, self.threshold = particles, seed, threshold
        self.route = f"{particles} particles, events at {'conditioned' if guided else 'their own'} rates"

    @cached_property
    def _cloud(self) -> tuple[Any, Families, Moments, Genealogy]:
        return self._run(self.particles, self.seed)

    def _run(self, particles: int, seed: int) -> tuple[Any, Families, Moments, Genealogy]:
        families, moments, tree = Families(), Moments(), Genealogy()
        noise = KeyedNoise(seed, self.fk.series, name="network")
        with dated(self.problem.times):
            run = smc(self.fk, particles, noise, threshold=self.threshold, observers=[families, moments, tree])
        return run, families, moments, tree

    @property
    def log_evidence(self) -> Tensor:
        return self._cloud[0].log_evidence

    @property
    def log_evidence_se(self) -> Tensor:  # type: ignore[override]
        """Standard error of the log evidence by the weights of families (Chan and Lai 2013), ``(S,)``."""
        return (1 / self.ess - 1 / self.particles).clamp_min(0).sqrt()

    @property
    def ess(self) -> Tensor:  # type: ignore[override]
        run, families, _, _ = self._cloud
        return families.effective(run.log_w)

    def filter(self) -> Marginals:
        """Means and covariances given what was seen so far."""
        moments = self._cloud[2]
        return self._marginals(moments.mean, moments.cov)

    def smooth(self) -> Marginals:
        """Means and covariances given all data, along the ancestry of the last particles."""
        run, _, _, tree = self._cloud
        path = tree.trace(torch.arange(self.particles).expand(self.fk.series, -1))  # (S, N, n+1, d)
        w = torch.softmax(run.log_w, -1)
        mean = torch.einsum("sn,snkd->skd", w, path)
        centred = path - mean.unsqueeze(1)
        return self._marginals(mean, torch.einsum("sn,snkd,snke->skde", w, centred, centred))

    def forecast(self, times: Any, of: str = "state") -> Marginals:
        run = self._cloud[0]
        noise = KeyedNoise(self.seed, self.fk.series, name="forecast")
        make = partial(NetworkParticles, guided=False)
        return by_particles(self.model, self.data, make, (run.x, run.log_w), times, of, noise)

    def sample(self, n: int, seed: int = 0) -> Paths:
        """``n`` weighted paths at the observations; the log of their mean weight estimates the log evidence."""
        run, _, _, tree = self._run(n, seed)
        path = tree.trace(torch.arange(n).expand(self.fk.series, -1)).movedim(1, 0)
        x = torch.stack([self.problem.at_observations(one) for one in path])
        log_w = torch.log_softmax(run.log_w, -1) + run.log_evidence[:, None] + torch.tensor(float(n)).log()
        return Paths(x, log_w.T, self.data.times, None, self.data.axis, self.data.single)

    def _marginals(self, mean: Tensor, cov: Tensor) -> Marginals:
        mean, cov = self.problem.at_observations(mean), self.problem.at_observations(cov)
        common = {"exact": False, "axis": self.data.axis, "single": self.data.single}
        return Marginals(self.data.times, mean, cov, log_evidence=self.log_evidence, **common)


def not_linear(model: ReactionNetwork, data: Observed) -> str | None:
    """Why hazards cannot be bent toward the data, or None."""
    emission = Problem(model, data).emission
    if isinstance(emission, LinearEmission) and emission.L.ndim == 2 and emission.R.ndim == 2:
        return None
    return "guiding needs one y = L x + Gaussian noise (kernels.LinearGaussian, or Observed(operator=, noise=))"


@register("guided", ReactionNetwork, why_not=not_linear, auto=0)
def guided(
    model: ReactionNetwork, data: Observed, particles: int = 1000, seed: int = 0, threshold: float = 0.5
) -> Conditioned:
    """Particles at hazards bent toward the next observation."""
    return NetworkPosterior(model, data, True, particles, seed, threshold)


@register("bootstrap", ReactionNetwork, auto=1)
def bootstrap(
    model: ReactionNetwork, data: Observed, particles: int = 1000, seed: int = 0, threshold: float = 0.5
) -> Conditioned:
    """Particles at the process' own rates."""
    return NetworkPosterior(model, data, False, particles, seed, threshold)
