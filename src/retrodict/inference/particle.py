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
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.core.noise import Noise
from retrodict.inference.problem import Grouped, Problem
from retrodict.kernels import Categorical, Gaussian
from retrodict.kernels.conditional import Conditional
from retrodict.kernels.euler import Doob, NonLinearGaussian, dense, dot, mv, normal_log_prob
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
        ends = (problem.real.sum(1) - 1).tolist()
        self.lengths = None if min(ends) == max(ends) else ends
        self.finite = problem.model.kind == "finite"
        self.steps: Step = _steps(problem)

    # -- the model ----------------------------------------------------------------------------------------------

    def log_g(self, k: int, x: Tensor) -> Tensor:
        """log likelihood of what was seen at node k, ``(S, P)``."""
        if not self.problem.observed(k):
            return torch.zeros(x.shape[:2], dtype=torch.float64, device=x.device)
        return self.problem.log_likelihood(k, x).expand(x.shape[:2])  # a density may leave the state out

    def start(self, particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        x = self._prior_draw(particles, noise)
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
        drawn = _seeded(noise.uniform(()), lambda: prior.sample((particles,)).double().reshape(particles, -1))
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
        bend = self._bend(k, mean, root)
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
        bend = self._bend(k, mean, root)
        still = torch.zeros(*mean.shape[:-1], 1, root.shape[-1], dtype=torch.float64, device=mean.device)
        return bend.doob(mean.unsqueeze(-2), still)[1].squeeze(-1) + self.log_g(k, y) - bend(y)

    def _bend(self, k: int, mean: Tensor, root: Tensor) -> _Bend:
        at = mean
        for _ in range(self.iterations):
            bent = _Bend(*self._expand(k, at), root)
            still = torch.zeros(*mean.shape[:-1], 1, root.shape[-1], dtype=torch.float64, device=mean.device)
            at = bent.doob(mean.unsqueeze(-2), still)[0].squeeze(-2)
        return _Bend(*self._expand(k, at), root)

    def _expand(self, k: int, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(H, F, c)`` of the second-order expansion of log g_k at ``at (S, P, d)``, with H made semi-definite."""
        with torch.enable_grad():
            x = at.detach().requires_grad_()
            value = self.log_g(k, x)
            if not value.requires_grad:  # nothing seen after all, or a likelihood that is flat
                return torch.zeros(*x.shape, x.shape[-1], dtype=x.dtype), torch.zeros_like(x), value
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
            rows = [
                torch.autograd.grad(gradient[..., i].sum(), x, retain_graph=True)[0]
                if gradient.requires_grad
                else torch.zeros_like(x)
                for i in range(x.shape[-1])
            ]
        H = -torch.stack(rows, -2)
        H = 0.5 * (H + H.mT)
        if H.shape[-1] == 1:
            H = H.clamp_min(0)
        else:
            values, vectors = torch.linalg.eigh(H)
            H = vectors @ (values.clamp_min(0).unsqueeze(-1) * vectors.mT)
        g, v = gradient.detach(), value.detach()
        Hx = (H @ at.unsqueeze(-1)).squeeze(-1)
        return H, g + Hx, v - dot(g, at) - 0.5 * dot(at, Hx)


class _Bend:
    """A quadratic message at each particle, and the step bent by it."""

    def __init__(self, H: Tensor, F: Tensor, c: Tensor, root: Tensor) -> None:
        self.H, self.F, self.c = H, F, c
        self.doob = Doob(H.unsqueeze(-3), F.unsqueeze(-2), c.unsqueeze(-1), root.unsqueeze(-3))

    def __call__(self, y: Tensor) -> Tensor:
        return self.c + dot(self.F, y) - 0.5 * dot(y, (self.H @ y.unsqueeze(-1)).squeeze(-1))


# --- how states move, by family -----------------------------------------------------------------------------------


class Step:
    """The transitions of a problem, on ``x (S, P, d)`` or integers ``(S, P)``."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def draw(self, moves: int, particles: int, noise: Noise) -> Iterable[Any]:
        raise NotImplementedError

    def step(self, k: int, x: Tensor, z: Any) -> Tensor:
        raise NotImplementedError

    def log_prob(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        """log density, with the axes of x and y before the state's broadcast; series come first."""
        raise NotImplementedError

    def bound(self, k: int) -> Tensor | None:
        """An upper bound of the log density, ``(S|1,)``, where it does not depend on the state."""
        return None

    def moments(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``(S, P, d)`` and root of the covariance ``(S, P|1, d, r)``."""
        raise InputError("guided and auxiliary particles need a Gaussian transition; use method='bootstrap'")

    def mean(self, k: int, x: Tensor) -> Tensor:
        return self.moments(k, x)[0]


class GaussianStep(Step):
    """Gaussian steps: linear ones from arrays, others from their mean and root."""

    def draw(self, moves: int, particles: int, noise: Noise) -> Iterable[Any]:
        return noise.normal((moves, particles, self.rank)).double().unbind(1)

    def step(self, k: int, x: Tensor, z: Any) -> Tensor:
        mean, root = self.moments(k, x)
        return mean + mv(root, z)

    def log_prob(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        lead, d = x.shape[1:-1], x.shape[-1]
        mean, root = self.moments(k, x.reshape(x.shape[0], -1, d))
        if root.shape[-1] < d or not bool((torch.linalg.det(root).abs() > 0).all()):
            raise InputError(
                f"the transition has no noise in some of {d} dimensions and so no density; backward sampling needs "
                "one: use smoother='tree'"
            )
        mean = mean.reshape(mean.shape[0], *lead, d)
        root = root.reshape(root.shape[0], *(lead if root.shape[1] > 1 else [1] * len(lead)), d, d)
        return normal_log_prob((y - mean).unsqueeze(-2), root.unsqueeze(-3)).squeeze(-1)

    def bound(self, k: int) -> Tensor | None:
        d = self.problem.size
        x = torch.zeros(self.problem.S, 1, d, dtype=torch.float64)
        root = self.constant_root(k, x)
        if root is None or root.shape[-1] < d or not bool((torch.linalg.det(root).abs() > 0).all()):
            return None
        return -torch.linalg.slogdet(root).logabsdet.reshape(-1) - 0.5 * d * _LOG_2PI

    @property
    def rank(self) -> int:
        raise NotImplementedError

    def constant_root(self, k: int, x: Tensor) -> Tensor | None:
        """The root where it does not depend on the state, ``(S|1, 1, d, r)``."""
        raise NotImplementedError


class LinearStep(GaussianStep):
    """``A x + b + N(0, Q)`` with arrays of all steps."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.A, self.b, Q = (v.detach() for v in problem.arrays())
        self.root = Lin.dense(Q).sqrt().value

    @property
    def rank(self) -> int:
        return self.root.shape[-1]

    def moments(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        A, b, root = (v[:, 0 if v.shape[1] == 1 else k - 1].unsqueeze(1) for v in (self.A, self.b, self.root))
        return mv(A, x) + b, root

    def constant_root(self, k: int, x: Tensor) -> Tensor | None:
        return self.root[:, 0 if self.root.shape[1] == 1 else k - 1].unsqueeze(1)


class KernelStep(GaussianStep):
    """Non-linear Gaussian kernels, made once where one serves every step."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._kernels: dict[int, list[tuple[Any, NonLinearGaussian]]] = {}

    def kernels(self, k: int) -> list[tuple[Any, NonLinearGaussian]]:
        key = 0 if self.problem.model.transition.unit else k
        if key not in self._kernels:
            if len(self._kernels) > 4:
                self._kernels.clear()
            kernel = self.problem.kernel(k)
            assert isinstance(kernel, Grouped)
            self._kernels[key] = kernel.parts  # type: ignore[assignment]
        return self._kernels[key]

    @cached_property
    def rank(self) -> int:  # type: ignore[override]
        probe = torch.zeros(1, self.problem.size, dtype=torch.float64)
        return self.kernels(1)[0][1].root_at(probe).shape[-1]

    def moments(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = self.kernels(k)
        if len(parts) == 1:
            return _moments(parts[0][1], x)
        mean = torch.empty_like(x)
        root = torch.empty(*x.shape, self.rank, dtype=torch.float64, device=x.device)
        for index, kernel in parts:
            mean[index], root[index] = _moments(kernel, x[index])
        return mean, root

    def constant_root(self, k: int, x: Tensor) -> Tensor | None:
        two = x.repeat(1, 2, 1)  # of two states the root has one row where it does not depend on them
        parts = self.kernels(k)
        if any(kernel.root_at(two.flatten(0, 1)).shape[0] > 1 for _, kernel in parts):
            return None
        return self.moments(k, x)[1][:, :1]


def _moments(kernel: NonLinearGaussian, x: Tensor) -> tuple[Tensor, Tensor]:
    flat = x.reshape(-1, x.shape[-1])
    root = kernel.root_at(flat).double()
    root = root.unsqueeze(0) if root.shape[0] == 1 else root.reshape(*x.shape, root.shape[-1])
    return kernel.mean(flat).double().reshape(x.shape), root


class FiniteStep(Step):
    """Finite states: rows of a table."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        (self.P,) = (v.detach() for v in problem.arrays())

    def table(self, k: int) -> Tensor:
        """``(S|1, K, K)``."""
        return self.P[:, 0 if self.P.shape[1] == 1 else k - 1]

    def draw(self, moves: int, particles: int, noise: Noise) -> Iterable[Any]:
        return noise.uniform((moves, particles)).unbind(1)

    def step(self, k: int, x: Tensor, z: Any) -> Tensor:
        return pick(self._rows(k, x), z.unsqueeze(-1)).squeeze(-1)

    def _rows(self, k: int, x: Tensor) -> Tensor:
        table = self.table(k)
        series = torch.arange(len(x), device=x.device).view(-1, *[1] * (x.ndim - 1)) if len(table) > 1 else 0
        return table[series, x]

    def log_prob(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        return (
            self._rows(k, x).log().gather(-1, y.unsqueeze(-1)).squeeze(-1)
            if x.shape == y.shape
            else self._wide(k, x, y)
        )

    def _wide(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        x, y = torch.broadcast_tensors(x, y)
        table = self.table(k)
        series = torch.arange(len(x), device=x.device).view(-1, *[1] * (x.ndim - 1)) if len(table) > 1 else 0
        return table[series, x, y].log()


class GeneralStep(Step):
    """Kernels that can be sampled and evaluated only; torch's own random functions, seeded for each series."""

    def draw(self, moves: int, particles: int, noise: Noise) -> Iterable[Any]:
        return noise.uniform((moves,)).unbind(1)

    def step(self, k: int, x: Tensor, z: Any) -> Tensor:
        parts = self.problem.kernel(k).parts  # type: ignore[attr-defined]
        out = torch.empty_like(x)
        for index, kernel in parts:
            assert isinstance(kernel, Conditional)
            for s in torch.arange(len(x))[index].tolist():
                out[s] = kernel.step(x[s], (_seed(z[s]), None)).to(out.dtype)
        return out

    def log_prob(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        return self.problem.kernel(k).log_prob(x, y).double()


def _steps(problem: Problem) -> Step:
    if problem.family in ("linear", "finite"):
        return LinearStep(problem) if problem.family == "linear" else FiniteStep(problem)
    return KernelStep(problem) if problem.family == "gaussian" else GeneralStep(problem)


def _seed(uniform: Tensor) -> int:
    return int(float(uniform) * 2**53)


def _seeded(uniforms: Tensor, sample: Any) -> list[Tensor]:
    """``sample()`` once for each series, each from its own seed; torch's generator is left as it was."""
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for u in uniforms:
            torch.manual_seed(_seed(u))
            drawn.append(sample())
    return drawn
