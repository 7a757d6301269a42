"""The law of an observation given the state, however the user wrote it, behind two questions.

* ``log_prob(x, y, seen)``: the log density of the *seen* coordinates of y; an unseen one contributes exactly zero.
* ``moments(x)``: mean and covariance of y, for laws that are Gaussian given the state (else None).

States have any leading axes, ``x (..., d)`` real or ``x (...)`` integers; y and seen broadcast against them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from retrodict.core.errors import InputError, InputTypeError, require
from retrodict.core.lin import Lin
from retrodict.inference.observed import Observed
from retrodict.kernels import Finite, Kernel, LinearGaussian
from retrodict.kernels.checks import check_covariance, check_stochastic
from retrodict.kernels.euler import NonLinearGaussian
from retrodict.kernels.precise import precise

_LOG_2PI = math.log(2 * math.pi)
_SINGULAR = "the covariance of the observation is singular, so that its density is not finite; give noise > 0"


class Emission:
    """The law of y given x."""

    #: whether ``y`` is categories (integers) by nature
    categories: bool = False
    #: whether `moments` tells the whole law
    gaussian: bool = False

    def log_prob(self, x: Tensor, y: Tensor, seen: Tensor | None = None) -> Tensor:
        """log density over the seen coordinates, with the leading axes of x and y broadcast.

        Args:
            x: ``(..., d)`` or integers ``(...)``.
            y: ``(..., m)`` or integers ``(...)``; any value in the support where not seen.
            seen: as y, True where observed; None: all of it.
        """
        raise NotImplementedError

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """``(mean (..., m), covariance (..., m, m))`` of a law that is Gaussian given x; else None."""
        return None

    def predicted(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Mean and covariance of y at states x as of `moments`, for laws of any family that know theirs."""
        return self.moments(x)

    def width(self, x: Tensor) -> int | None:
        """How many coordinates y has, as the law at states x tells; None where it does not."""
        moments = self.moments(x)
        return None if moments is None else moments[0].shape[-1]


@dataclass(frozen=True)
class LinearEmission(Emission):
    """``y = L x + b + N(0, R)``: ``L (m, d)``, ``b (m,)``, ``R (m, m)``, each perhaps with ``(S|1, N|1)`` in front."""

    L: Tensor
    b: Tensor
    R: Tensor
    gaussian: bool = True

    def log_prob(self, x: Tensor, y: Tensor, seen: Tensor | None = None) -> Tensor:
        mean, R = self.moments(x)
        return masked_normal(y - mean, R, seen)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (self.L @ x.double().unsqueeze(-1)).squeeze(-1) + self.b, self.R

    @property
    def varies(self) -> bool:
        """Whether it has axes of series or observations."""
        return (self.L.ndim, self.b.ndim, self.R.ndim) != (2, 1, 2)

    def at(self, index: tuple[Any, ...]) -> LinearEmission:
        """The emission of the observations ``index`` (series, number) where it varies with them."""
        if not self.varies:
            return self
        pick = lambda v, own: v if v.ndim == own else _pick(v, index)  # noqa: E731
        return LinearEmission(pick(self.L, 2), pick(self.b, 1), pick(self.R, 2))


def _pick(value: Tensor, index: tuple[Any, ...]) -> Tensor:
    """``value (S|1, N|1, ...)`` at (series, number); axes of size 1 serve every index."""
    return value[tuple(torch.zeros_like(i) if value.shape[axis] == 1 else i for axis, i in enumerate(index))]


@dataclass(frozen=True)
class GaussianEmission(Emission):
    """``y ~ N(mean(x), covariance(x))`` with any mean function."""

    mean: Callable[[Tensor], Tensor]
    covariance: Callable[[Tensor], Tensor]
    gaussian: bool = True

    def log_prob(self, x: Tensor, y: Tensor, seen: Tensor | None = None) -> Tensor:
        mean, R = self.moments(x)
        return masked_normal(y - mean, R, seen)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), self.covariance(x)


@dataclass(frozen=True)
class LawEmission(Emission):
    """``y ~ f(x)``, f returning a `torch.distributions` object over x's leading axes."""

    f: Callable[[Tensor], Distribution]
    gaussian: bool = False

    def log_prob(self, x: Tensor, y: Tensor, seen: Tensor | None = None) -> Tensor:
        law = self.f(x)
        if not y.is_floating_point():
            y, seen = y.double().unsqueeze(-1), _row(y, seen)
        if isinstance(law, MultivariateNormal):
            return masked_normal(y - law.mean, law.covariance_matrix.double(), seen)
        if isinstance(law, Independent):
            law = law.base_dist
        if law.event_shape:
            return _all_or_nothing(_log_prob(law, y), seen, type(law).__name__)
        if len(law.batch_shape) == len(_lead(x)):  # one number a state
            return _where(None if seen is None else seen[..., 0], _log_prob(law, y[..., 0]))
        return _where(seen, _log_prob(law, y)).sum(-1)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        return normal_moments(self.f(x), len(_lead(x))) if self.gaussian else None

    def predicted(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        law = self.f(x)
        normal = self.moments(x)
        if normal is not None or (len(law.event_shape) > 0 and not isinstance(law, Independent)):
            return normal
        try:
            mean, variance = law.mean.double(), law.variance.double()
        except NotImplementedError:
            return None
        if mean.ndim == len(_lead(x)):
            mean, variance = mean.unsqueeze(-1), variance.unsqueeze(-1)
        return mean, torch.diag_embed(variance)

    def width(self, x: Tensor) -> int | None:
        law = self.f(x)
        shape = law.batch_shape[len(_lead(x)) :] + law.event_shape
        return shape.numel() if len(shape) <= 1 else None


@dataclass(frozen=True)
class DensityEmission(Emission):
    """Any ``f(x, y) -> log density`` over the leading axes; a row of y is seen as a whole or not at all."""

    f: Callable[[Tensor, Tensor], Tensor]

    def log_prob(self, x: Tensor, y: Tensor, seen: Tensor | None = None) -> Tensor:
        return _all_or_nothing(self.f(x, y), _row(y, seen), "log density")


@dataclass(frozen=True)
class TableEmission(Emission):
    """Categories y of finite states x: ``log_p (K, M)``."""

    log_p: Tensor
    categories: bool = True

    def log_prob(self, x: Tensor, y: Tensor, seen: Tensor | None = None) -> Tensor:
        if y.is_floating_point():
            raise InputError("the observation law is over categories; give y as integers (-1 is missing)")
        top = int(y.max())
        require(top < self.log_p.shape[-1], f"y has the category {top}; the observation law has {self.log_p.shape[-1]}")
        # every state against every observation: whole rows are copied
        outer = x.ndim == 1 and y.ndim > 1 and y.shape[-1] == 1
        return _where(seen, self.log_p[x].T[y[..., 0]] if outer else self.log_p[x, y])


# --- what the user may write ------------------------------------------------------------------------------------


def as_emission(observation: Any, probe: Tensor) -> Emission:
    """The emission of a kernel, a callable ``x -> torch.distributions`` or a callable ``(x, y) -> log density``.

    Args:
        probe: one state with its leading axes, ``(1, d)`` or integers ``(K,)``, that tells what a callable returns.
    """
    if isinstance(observation, Emission):
        return observation
    if isinstance(observation, LinearGaussian):
        return _linear(observation, probe)
    if isinstance(observation, Finite):
        rows, states = observation.log_p.shape[-2], len(probe)
        require(
            not probe.is_floating_point() and rows == states and observation.log_p.ndim == 2,
            f"the observation table has {tuple(observation.log_p.shape)}; one row for each of {states} states",
        )
        check_stochastic(observation.log_p.exp(), "observation table")
        return TableEmission(observation.log_p.double())
    if isinstance(observation, Kernel):
        if isinstance(observation, NonLinearGaussian) and probe.is_floating_point():
            check_moments(observation, probe, "observation")
        return _of_kernel(observation)
    if not callable(observation):
        raise InputTypeError(
            f"observation is a Kernel, a callable x -> torch.distributions or (x, y) -> log density, "
            f"got {type(observation).__name__}"
        )
    f: Any = precise(observation)
    if arity(observation) >= 2:
        return DensityEmission(f)
    law = asked(f, probe, "observation(x)")
    if not isinstance(law, Distribution):
        raise InputTypeError(
            f"observation(x) returned {type(law).__name__}; return a torch.distributions object, or give a "
            "function (x, y) -> log density"
        )
    return LawEmission(f, gaussian=normal_moments(law, len(_lead(probe))) is not None)


def asked(f: Callable[[Tensor], Any], probe: Tensor, name: str) -> Any:
    """``f(probe)``; a function that fails at a state of the prior is told apart from one that fails later."""
    try:
        return f(probe)
    except (RuntimeError, IndexError) as error:
        raise InputError(
            f"{name} failed at a state of the prior, of shape {tuple(probe.shape)}: {error}; the prior and {name} "
            "must be about states of one size"
        ) from error


def check_moments(kernel: NonLinearGaussian, probe: Tensor, name: str, size: int | None = None) -> None:
    """Raise unless the mean and covariance of a kernel at the states ``probe (1, d)`` are those of ``size`` numbers."""
    mean = asked(kernel.mean, probe, f"the {name}'s mean(x)")
    count = probe.shape[-1] if size is None else size
    if mean.ndim != 2 or len(mean) != len(probe) or (size is not None and mean.shape[-1] != size):
        raise InputError(
            f"the {name}'s mean(x) returned the shape {tuple(mean.shape)} at states {tuple(probe.shape)}; it is "
            f"({len(probe)}, {count if size is not None else 'coordinates of y'})"
        )
    if kernel.covariance is None or isinstance(kernel.covariance, Lin):
        return
    check_covariance(torch.as_tensor(kernel.covariance(probe)), f"the {name}'s covariance(x)")


def law_seen(observation: Any, probe: Tensor, data: Observed) -> tuple[Emission, Observed]:
    """The law by which data were made, and the data as it speaks of them.

    Args:
        observation: of the model; None: the data bring ``y = operator x + noise``.
        probe: as for `as_emission`.

    Raises:
        InputError: no law, two laws, or a law of another number of coordinates than y has.
    """
    if data.names is not None:
        raise InputError("y is a mapping from vertices to values, which is data of a Tree; give an array of times")
    if observation is None:
        emission = _brought(probe, data)
    elif data.operator is not None or data.covariance is not None:
        raise InputError(
            "the model has a law of observation and the data bring operator or noise too; give one of them"
        )
    else:
        emission = as_emission(observation, probe)
    if data.categories and emission.gaussian:
        data = data.as_real()
    width, m = emission.width(probe), 1 if data.categories else data.y.shape[-1]
    if width is not None and width != m:
        raise InputError(
            f"y has {m} coordinates (its shape is {tuple(data.y.shape)}: series, times, coordinates) and the "
            f"observation law {width} (at one state of shape {tuple(probe.shape[1:])}); they must agree"
        )
    return emission, data


def _brought(probe: Tensor, data: Observed) -> Emission:
    """``y = operator x + noise``, as the data say."""
    if not probe.is_floating_point() or data.covariance is None:
        raise InputError(
            "nothing says how y depends on the state: give StateSpace(..., observation=...) or, for "
            "y = operator x + noise of real states, Observed(y, operator=..., noise=...)"
        )
    R, m, d = matrix(data.covariance, 1), data.y.shape[-1], probe.shape[-1]
    operator = data.operator
    if operator is not None and not isinstance(operator, Lin):
        return GaussianEmission(precise(operator), lambda x: R)
    L = torch.eye(d, dtype=torch.float64) if operator is None else matrix(operator, d)
    if tuple(L.shape) != (m, d):
        fix = " (give operator=, a matrix)" if operator is None else ""
        raise InputError(f"the operator is {tuple(L.shape)}; y has {m} coordinates and the state {d}: ({m}, {d}){fix}")
    return LinearEmission(L, torch.zeros(m, dtype=torch.float64), R)


def arity(f: Callable[..., Any]) -> int:
    """How many positional arguments a callable must be given."""
    import inspect

    if isinstance(f, torch.nn.Module):
        f = f.forward
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(f).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def normal_moments(law: Distribution, lead: int) -> tuple[Tensor, Tensor] | None:
    """``(mean (..., m), covariance (..., m, m))`` of a normal law with ``lead`` leading axes; None for other laws."""
    if isinstance(law, MultivariateNormal):
        return law.mean.double(), law.covariance_matrix.double()
    if isinstance(law, Independent):
        law = law.base_dist
    if not isinstance(law, Normal):
        return None
    mean, variance = law.mean.double(), law.variance.double()
    if mean.ndim == lead:
        mean, variance = mean.unsqueeze(-1), variance.unsqueeze(-1)
    return mean, torch.diag_embed(variance)


def masked_normal(residual: Tensor, R: Tensor, seen: Tensor | None = None) -> Tensor:
    """log N(residual; 0, R) over the seen coordinates: ``residual (..., m)``, ``R (..., m, m)``, ``seen (..., m)``."""
    m = residual.shape[-1]
    if m == 1:
        variance = R[..., 0, 0]
        if not bool((variance > 0).all()):
            raise InputError(_SINGULAR)
        log_p = -0.5 * (residual[..., 0].square() / variance + variance.log() + _LOG_2PI)
        return _where(None if seen is None else seen[..., 0], log_p)
    count: Tensor | int = m
    if seen is not None:
        keep = seen.to(residual.dtype)
        residual, count = torch.where(seen, residual, 0.0), keep.sum(-1)
        R = R * keep.unsqueeze(-1) * keep.unsqueeze(-2) + torch.diag_embed(1 - keep)
    root, info = torch.linalg.cholesky_ex(R)
    if bool((info != 0).any()):
        raise InputError(_SINGULAR)
    eye = torch.eye(m, dtype=root.dtype, device=root.device)
    whiten = torch.linalg.solve_triangular(root, eye, upper=False)  # small; then one product serves every state
    white = residual @ whiten.mT if whiten.ndim == 2 else (whiten @ residual.unsqueeze(-1)).squeeze(-1)
    logdet = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * white.square().sum(-1) - logdet - 0.5 * _LOG_2PI * count


def _log_prob(law: Distribution, y: Tensor) -> Tensor:
    """log density of y, minus infinity outside of the support, where torch's validation raises."""
    try:
        return law.log_prob(y)
    except ValueError:
        inside: Any = law.support.check(y)  # type: ignore[union-attr]
        validate, law._validate_args = law._validate_args, False
        try:
            return torch.where(inside, law.log_prob(y), -torch.inf)
        finally:
            law._validate_args = validate


def _linear(kernel: LinearGaussian, probe: Tensor) -> LinearEmission:
    if not probe.is_floating_point():
        raise InputError(
            "the states are finite and the observation kernel is linear-Gaussian; give x -> Normal(means[x], s)"
        )
    d = probe.shape[-1]
    L = matrix(kernel.A, d)
    if L.shape[-1] != d:
        raise InputError(
            f"the observation kernel takes {L.shape[-1]} coordinates and the prior has {d}; they must chain"
        )
    m = L.shape[-2]
    b, R = vector(kernel.b, m), matrix(kernel.Q, m)
    for name, value in (("A", L), ("b", b)):
        require(bool(torch.isfinite(value).all()), f"the observation kernel's {name} has entries that are not finite")
    check_covariance(R, "the observation kernel's Q")
    return LinearEmission(L, b, R)


def _of_kernel(kernel: Kernel) -> Emission:
    law = getattr(kernel, "law", None)
    if law is not None:
        return LawEmission(precise(law))
    mean, root_at = getattr(kernel, "mean", None), getattr(kernel, "root_at", None)
    if mean is not None and root_at is not None:

        def covariance(x: Tensor) -> Tensor:
            S = root_at(x.reshape(-1, x.shape[-1]))
            Q = S @ S.mT
            return Q[0] if Q.shape[0] == 1 else Q.reshape(*x.shape[:-1], *Q.shape[-2:])

        def centre(x: Tensor) -> Tensor:
            flat = mean(x.reshape(-1, x.shape[-1]))
            return flat.reshape(*x.shape[:-1], flat.shape[-1])

        return GaussianEmission(centre, covariance)
    return DensityEmission(lambda x, y: kernel.log_prob(x, y, event=1))


def matrix(lin: Any, size: int) -> Tensor:
    """A `Lin` as float64 matrices ``(..., m, n)``; multiples of the identity get ``size`` coordinates."""
    value = lin.value.double()
    if lin.kind == "dense":
        return value
    if lin.kind == "spectral":
        raise InputError("a spectral map has no small matrix; write the model's maps as matrices")
    if lin.kind == "scalar":
        return value[..., None, None] * torch.eye(size, dtype=torch.float64, device=value.device)
    return torch.diag_embed(_sized(value, size))


def vector(offset: Tensor | float, size: int) -> Tensor:
    """An offset as float64 ``(..., size)``."""
    value = torch.as_tensor(offset, dtype=torch.float64)
    return value.expand(size) if value.ndim == 0 else _sized(value, size)


def _sized(value: Tensor, size: int) -> Tensor:
    """A vector ``(..., size|1)`` with all its coordinates."""
    require(
        value.shape[-1] in (1, size),
        f"a kernel has a vector of {value.shape[-1]} coordinates where {size} are needed; they must chain",
    )
    return value.expand(*value.shape[:-1], size)


def _lead(x: Tensor) -> torch.Size:
    return x.shape[:-1] if x.is_floating_point() else x.shape


def _row(y: Tensor, seen: Tensor | None) -> Tensor | None:
    """``seen`` with an axis of coordinates, which integers lack."""
    return seen if seen is None or y.is_floating_point() else seen.unsqueeze(-1)


def _where(seen: Tensor | None, log_p: Tensor) -> Tensor:
    return log_p if seen is None else torch.where(seen, log_p, 0.0)


def _all_or_nothing(log_p: Tensor, seen: Tensor | None, what: str) -> Tensor:
    if seen is None:
        return log_p
    whole, some = seen.all(-1), seen.any(-1)
    if bool((whole != some).any()):
        raise InputError(
            f"some coordinates of an observation are missing, and a {what} cannot drop them; give all or none of a "
            "time's coordinates, or a law that factorises (Independent) or is normal"
        )
    return _where(whole, log_p)
