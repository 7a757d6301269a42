"""State-space models as Feynman-Kac models: what the rooms of particles runs when a `StateSpace` meets data.

    bootstrap:   x_k ~ transition,                                   weight g_k(x_k)
    auxiliary:   the same, particles chosen by g_{k+1} at their predicted mean (Pitt and Shephard 1999)
    guided:      x_k ~ transition(x_{k-1}, .) ghat_k / (transition ghat_k)(x_{k-1}),
                 weight (transition ghat_k)(x_{k-1}) g_k(x_k) / ghat_k(x_k)

where ghat_k is the second-order expansion of log g_k about the predicted mean of each particle, moved once to where
the guided step leads: the locally optimal proposal by linearisation (Doucet, Godsill and Andrieu 2000).  For a linear
Gaussian observation ghat = g.  Weights make up for every difference, so that the evidence stays unbiased.

Missing coordinates leave the likelihood in `Problem.log_likelihood`, and so contribute exactly nothing.  A series
that has ended stands still, with weight one, while longer ones go on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from retrodict.core.noise import Noise
from retrodict.inference.emissions import LawEmission
from retrodict.inference.linearise import taylor_potential
from retrodict.inference.particle_programs import Program, program
from retrodict.inference.particle_steps import Step, log_normal, normal_at, seeded, steps_of
from retrodict.inference.problem import Problem
from retrodict.kernels import Categorical, Gaussian
from retrodict.kernels.euler import Doob, dense, dot, mv
from retrodict.particles import FeynmanKac
from retrodict.particles.resampling import pick

_LOG_2PI = math.log(2 * math.pi)


class Bootstrap(FeynmanKac):
    """Particles move by the transition and pay the likelihood.

    States are ``(S, P, d)`` float64, or integers ``(S, P)`` for finite models.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.series, self.n = problem.S, problem.n
        self.lengths = problem.ends
        self.finite = problem.model.kind == "finite"
        self.steps: Step = steps_of(problem)
        self._plain = _plain_observations(problem)
        self._program: Program | None = None

    # -- the model ----------------------------------------------------------------------------------------------

    def log_g(self, k: int, x: Tensor) -> Tensor:
        """log likelihood of what was seen at node k, ``(S, P)``."""
        y = None if self._plain is None else self._plain[k]
        if y is not None:
            if self._program is not None and self._program.fits(x, y):
                return self._program(x, y)
            found = self._log_normal(x, y)
            if found is not None:
                return found
        elif not self.problem.observed(k):
            return torch.zeros(x.shape[:2], dtype=torch.float64, device=x.device)
        return self.problem.log_likelihood(k, x).expand(x.shape[:2])  # a density may leave the state out

    def _log_normal(self, x: Tensor, y: Tensor) -> Tensor | None:
        """log likelihood of one real vector a series, where the law makes independent normals of it."""
        normal = normal_at(self.problem.emission.f, x)  # type: ignore[attr-defined]
        if normal is None or normal[0].shape[-1] != y.shape[-1]:
            return None
        return log_normal(y - normal[0], normal[1])

    def prepare(self, x: Tensor) -> None:
        """Turn the laws into programs for states of this shape, as they are now: parameters may change between runs."""
        self.steps.prepare(x)
        self._program = None
        y = next((y for y in self._plain or [] if y is not None), None)
        if y is not None and x.is_floating_point():
            made = program(self._log_normal, x, y)
            self._program = made if made is not None and made.shape == x.shape[:2] else None

    def start(self, particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        x = self._prior_draw(particles, noise)
        self.prepare(x)
        return x, self.log_g(0, x)

    def draw(self, moves: int, particles: int, noise: Noise) -> Iterable[Any]:
        return self.steps.draw(moves, particles, noise)

    def move(self, k: int, x: Tensor, z: Any) -> tuple[Tensor, Tensor]:
        y = self.steps.step(k, x, z)
        return self.still(k, x, y, self.log_g(k, y))

    def still(self, k: int, x: Tensor, y: Tensor, log_w: Tensor) -> tuple[Tensor, Tensor]:
        """Keep series that have ended where they are."""
        running = self.running(k)
        if running is None:
            return y, log_w
        column = running.to(y.device).unsqueeze(1)
        return torch.where(column.reshape(-1, *[1] * (y.ndim - 1)), y, x), torch.where(column, log_w, 0.0)

    def log_transition(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        return self.steps.log_prob(k, x, y)

    def log_transition_bound(self, k: int) -> Tensor | None:
        bound = self.steps.bound(k)
        return None if bound is None else bound.expand(self.series)

    def log_start(self, x: Tensor) -> Tensor:
        return self.log_g(0, x.unsqueeze(1)).squeeze(1)

    def log_move(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        return self.still(k, x.unsqueeze(1), y.unsqueeze(1), self.log_g(k, y.unsqueeze(1)))[1].squeeze(1)

    # -- the prior ----------------------------------------------------------------------------------------------

    def _prior_draw(self, particles: int, noise: Noise) -> Tensor:
        prior = self.problem.prior
        if isinstance(prior, Categorical):
            p = prior.log_p.exp().expand(self.series, -1)
            return pick(p, noise.uniform((particles,)))
        if isinstance(prior, Gaussian):
            mean, root = self.prior_root()
            return mean.unsqueeze(1) + mv(root.unsqueeze(1), noise.normal((particles, root.shape[-1])).double())
        drawn = seeded(noise.uniform(()), lambda: prior.sample((particles,)).double().reshape(particles, -1))
        return torch.stack(drawn)

    def prior_root(self) -> tuple[Tensor, Tensor]:
        """Mean ``(S, d)`` of a Gaussian prior and root ``(S, d, r)`` of its covariance."""
        prior = self.problem.prior
        d = prior.mean.shape[-1]
        root = dense(prior.cov.to(torch.float64).sqrt(), d)
        return prior.mean.double().expand(self.series, d), root.expand(self.series, d, root.shape[-1])


class Auxiliary(Bootstrap):
    """The bootstrap filter with first-stage weights: the next likelihood at each particle's predicted mean."""

    def look_ahead(self, k: int, x: Tensor) -> Tensor | None:
        if not self.problem.observed(k + 1):
            return None
        return self.log_g(k + 1, self.steps.mean(k + 1, x))


class Guided(Bootstrap):
    """Particles move by the transition bent towards the next observation."""

    def __init__(self, problem: Problem, iterations: int = 1) -> None:
        super().__init__(problem)
        self.iterations = iterations

    def start(self, particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        mean, root = self.prior_root()
        z = noise.normal((particles, root.shape[-1]))
        return self.bent(0, mean.unsqueeze(1), root.unsqueeze(1), z)

    def move(self, k: int, x: Tensor, z: Any) -> tuple[Tensor, Tensor]:
        if not self.problem.observed(k):
            return super().move(k, x, z)
        mean, root = self.steps.moments(k, x)
        return self.still(k, x, *self.bent(k, mean, root, z))

    def bent(self, k: int, mean: Tensor, root: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Draws ``(S, P, d)`` from N(mean, root root') bent by the expansion at node k, and the log-weight

        ``log of the integral of ghat`` + log g - log ghat.  Mean ``(S, P|1, d)``, root ``(S, P|1, d, r)``, innovations
        ``z (S, P, r)``.
        """
        bend = self.bend(k, mean, root)
        y, log_kh = bend.doob(mean.unsqueeze(-2), z.double().unsqueeze(-2))
        y = y.squeeze(-2)
        return y, log_kh.squeeze(-1) + self.log_g(k, y) - bend(y)

    def log_start(self, x: Tensor) -> Tensor:
        mean, root = self.prior_root()
        return self._weight(0, mean.unsqueeze(1), root.unsqueeze(1), x.unsqueeze(1)).squeeze(1)

    def log_move(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        if not self.problem.observed(k):
            return super().log_move(k, x, y)
        mean, root = self.steps.moments(k, x.unsqueeze(1))
        return self.still(k, x.unsqueeze(1), y.unsqueeze(1), self._weight(k, mean, root, y.unsqueeze(1)))[1].squeeze(1)

    def _weight(self, k: int, mean: Tensor, root: Tensor, y: Tensor) -> Tensor:
        bend = self.bend(k, mean, root)
        still = torch.zeros(*mean.shape[:-1], 1, root.shape[-1], dtype=torch.float64, device=mean.device)
        return bend.doob(mean.unsqueeze(-2), still)[1].squeeze(-1) + self.log_g(k, y) - bend(y)

    def bend(self, k: int, mean: Tensor, root: Tensor) -> _Bend:
        at = mean
        for _ in range(self.iterations):
            bent = _Bend(*self._expand(k, at), root)
            still = torch.zeros(*mean.shape[:-1], 1, root.shape[-1], dtype=torch.float64, device=mean.device)
            at = bent.doob(mean.unsqueeze(-2), still)[0].squeeze(-2)
        return _Bend(*self._expand(k, at), root)

    def _expand(self, k: int, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(H, F, c)`` of the second-order expansion of log g_k at ``at (S, P, d)``, with H made semi-definite."""
        return taylor_potential(lambda x: self.log_g(k, x), at.detach())


class _Bend:
    """A quadratic message at each particle, and the step bent by it."""

    def __init__(self, H: Tensor, F: Tensor, c: Tensor, root: Tensor) -> None:
        self.H, self.F, self.c = H, F, c
        self.doob = Doob(H.unsqueeze(-3), F.unsqueeze(-2), c.unsqueeze(-1), root.unsqueeze(-3))

    def __call__(self, y: Tensor) -> Tensor:
        return self.c + dot(self.F, y) - 0.5 * dot(y, (self.H @ y.unsqueeze(-1)).squeeze(-1))


def _plain_observations(problem: Problem) -> list[Tensor | None] | None:
    """For each node the observation ``(S, 1, m)`` where every series sees one whole real vector there; else None."""
    if not isinstance(problem.emission, LawEmission) or problem.data.categories or problem.slots.shape[-1] > 1:
        return None
    slots, (y, seen) = problem.slots[..., 0], problem.filled
    series = torch.arange(problem.S).unsqueeze(1)
    at, whole = y[series, slots], ((slots >= 0) & seen[series, slots].all(-1)).all(0).tolist()
    return [one if full else None for one, full in zip(at.split(1, 1), whole)]
