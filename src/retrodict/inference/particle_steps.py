"""How the particles of a state-space model move: steps by family of the transition, on a whole batch of particles.

Arrays of all steps where the transition is linear or finite; mean and root where it is a non-linear Gaussian kernel;
location and scale where the user's callable returns independent normals, which is the fast way through torch's laws;
and torch's own random functions, seeded for each series, for whatever else can be sampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.core.noise import Noise
from retrodict.inference.particle_programs import Program, program
from retrodict.inference.problem import Grouped, Problem
from retrodict.kernels.conditional import Conditional
from retrodict.kernels.euler import NonLinearGaussian, mv, normal_log_prob
from retrodict.particles.resampling import pick

_LOG_2PI = math.log(2 * math.pi)


class Step:
    """The transitions of a problem, on ``x (S, P, d)`` or integers ``(S, P)``."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def prepare(self, x: Tensor) -> None:
        """Get ready for a run on states of this shape."""

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
        self._program: Program | None = None

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

    def prepare(self, x: Tensor) -> None:
        made = program(self._move, x, torch.zeros_like(x))
        self._program = made if made is not None and made.shape == x.shape else None

    def _move(self, x: Tensor, z: Tensor) -> Tensor | None:
        normal = self._normal(x)
        return None if normal is None else normal[0] + normal[1] * z

    def step(self, k: int, x: Tensor, z: Any) -> Tensor:
        if self._program is not None and self._program.fits(x, z):
            return self._program(x, z)
        normal = self._normal(x)
        return super().step(k, x, z) if normal is None else normal[0] + normal[1] * z

    def log_prob(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        normal = self._normal(x)
        return super().log_prob(k, x, y) if normal is None else log_normal(y - normal[0], normal[1])

    def _normal(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Location and scale where the transition is a callable that returns independent normals."""
        law = self.problem.model.transition.law
        normal = normal_at(law, x) if law is not None else None
        return normal if normal is not None and normal[0].shape == x.shape else None

    def moments(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        normal = self._normal(x)
        if normal is not None:
            return normal[0], normal[1].expand_as(x).diag_embed()
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
                out[s] = kernel.step(x[s], (seed_of(z[s]), None)).to(out.dtype)
        return out

    def log_prob(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        return self.problem.kernel(k).log_prob(x, y).double()


def normal_at(f: Any, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Location and scale ``(..., m)`` where ``f(x)`` is made of independent normals at states x; else None.

    The law is built without torch's validation, which costs more than a particle step; parameters that are out of
    range give NaN weights, and these raise.
    """
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        law = f(x)
    finally:
        Distribution.set_default_validate_args(before)
    law = law.base_dist if isinstance(law, Independent) else law
    lead = x.shape[:-1] if x.is_floating_point() else x.shape
    if not isinstance(law, Normal) or law.loc.shape[: len(lead)] != lead:
        return None
    loc, scale = law.loc.double(), law.scale.double()
    return (loc, scale) if loc.ndim > len(lead) else (loc.unsqueeze(-1), scale.unsqueeze(-1))


def log_normal(residual: Tensor, scale: Tensor) -> Tensor:
    """log density of independent normals, summed over the last axis."""
    white = residual / scale
    each = torch.addcmul(torch.log(scale), white, white, value=0.5)
    total = each.squeeze(-1) if each.shape[-1] == 1 else each.sum(-1)
    return -0.5 * each.shape[-1] * _LOG_2PI - total


def steps_of(problem: Problem) -> Step:
    """The transitions of a problem by their family."""
    if problem.family in ("linear", "finite"):
        return LinearStep(problem) if problem.family == "linear" else FiniteStep(problem)
    return KernelStep(problem) if problem.family == "gaussian" else GeneralStep(problem)


def seed_of(uniform: Tensor) -> int:
    """A seed of torch's generator from a uniform number."""
    return int(float(uniform) * 2**53)


def seeded(uniforms: Tensor, sample: Any) -> list[Tensor]:
    """``sample()`` once for each series, each from its own seed; torch's generator is left as it was."""
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for u in uniforms:
            torch.manual_seed(seed_of(u))
            drawn.append(sample())
    return drawn
