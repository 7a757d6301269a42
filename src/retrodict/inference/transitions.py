"""The hidden step however the user wrote it: one kernel for every unit of time, a kernel of two times, or a list.

A route asks for the *arrays* of all steps at once where the family is closed (linear-Gaussian, finite), or for the
kernel of one step acting on ``x (series, particles, ...)`` where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from retrodict.core.errors import InputError, InputTypeError, require
from retrodict.inference.emissions import arity, asked, check_moments, matrix, normal_moments, vector
from retrodict.kernels import Categorical, Chain, Finite, Kernel, LinearGaussian
from retrodict.kernels.checks import check_covariance, check_stochastic
from retrodict.kernels.conditional import Conditional
from retrodict.kernels.euler import NonLinearGaussian
from retrodict.kernels.precise import precise

Arrays = tuple[Tensor, ...]
_OWN = (2, 1, 2)  # axes of one step's A, b and Q; a finite step has the first alone
_WORDS = {"linear": "linear-Gaussian", "finite": "finite", "gaussian": "non-linear Gaussian", "general": "general"}


class Transition:
    """The law of a step from time s to time t."""

    #: whether one kernel is one step of unit length
    unit: bool = False
    #: the callable ``x -> torch.distributions`` behind the kernels, where there is one
    law: Callable[..., Distribution] | None = None

    def kernel(self, k: int, s: Tensor, t: Tensor) -> Kernel:
        """The kernel of step ``k = 1..n`` between times s and t, numbers or ``(B,)``."""
        raise NotImplementedError

    def family(self, s: Tensor, t: Tensor) -> str:
        """ "linear", "finite", "gaussian" or "general"; s and t are the times of one step."""
        return family_of(self.kernel(1, s, t))

    def arrays(self, s: Tensor, t: Tensor, size: int) -> Arrays:
        """The arrays of all steps between ``s (S, n)`` and ``t (S, n)``, each with leading axes ``(S|1, n|1)``."""
        raise NotImplementedError

    def describe(self) -> str:
        """A word for a person."""
        return "timed"


@dataclass(frozen=True)
class Homogeneous(Transition):
    """One kernel for every step of unit length; made anew for each use, so that trained parameters are current."""

    make: Callable[[], Kernel]
    law: Callable[..., Distribution] | None = None
    unit = True

    def kernel(self, k: int, s: Tensor, t: Tensor) -> Kernel:
        return self.make()

    def arrays(self, s: Tensor, t: Tensor, size: int) -> Arrays:
        out = []
        for value, axes in zip(kernel_arrays(self.make(), size), _OWN):
            lead = value.ndim - axes  # (): shared; (S,): one a series; (S, n): as it is
            value = value[None, None] if lead == 0 else value[:, None] if lead == 1 else value
            require(value.shape[0] in (1, len(s)), f"the transition is of {value.shape[0]} series and y has {len(s)}")
            require(value.shape[1] in (1, s.shape[1]), f"the transition has {value.shape[1]} steps, not {s.shape[1]}")
            out.append(value)
        return tuple(out)

    def describe(self) -> str:
        return _WORDS[family_of(self.make())]


@dataclass(frozen=True)
class Listed(Transition):
    """A kernel for each step: between consecutive distinct times."""

    kernels: Sequence[Kernel]

    def kernel(self, k: int, s: Tensor, t: Tensor) -> Kernel:
        return self.kernels[k - 1]

    def arrays(self, s: Tensor, t: Tensor, size: int) -> Arrays:
        n = s.shape[1]
        require(
            len(self.kernels) == n,
            f"the transition lists {len(self.kernels)} kernels and the data have {n} steps between distinct times",
        )
        rows = [kernel_arrays(kernel, size) for kernel in self.kernels]
        return tuple(_stack(column, own) for column, own in zip(zip(*rows), _OWN))

    def describe(self) -> str:
        return f"listed {_WORDS[family_of(self.kernels[0])]}" if self.kernels else "empty"


@dataclass(frozen=True)
class Timed(Transition):
    """A kernel of two times; called once with all of them where it is element-wise in time, else pair by pair."""

    f: Callable[[Any, Any], Any]

    def kernel(self, k: int, s: Tensor, t: Tensor) -> Kernel:
        return _checked(self.f(s, t))

    def arrays(self, s: Tensor, t: Tensor, size: int) -> Arrays:
        shared = bool((s == s[:1]).all()) and bool((t == t[:1]).all())
        s, t = (s[:1], t[:1]) if shared else (s, t)
        pairs, where = torch.stack([s, t], -1).reshape(-1, 2).unique(dim=0, return_inverse=True)
        values = self._batched(pairs, size) or self._one_by_one(pairs, size)
        return tuple(v[where.reshape(s.shape)] if len(pairs) > 1 else v[None] for v in values)

    def _batched(self, pairs: Tensor, size: int) -> Arrays | None:
        """One call with times ``(U,)``; None where that fails, or differs from calls with single times."""
        count = len(pairs)
        if count == 1:
            return None
        try:
            values = kernel_arrays(_checked(self.f(pairs[:, 0], pairs[:, 1])), size)
        except (TypeError, ValueError, RuntimeError):  # written for one time at a time
            return None
        if any((v.ndim > o and v.shape[0] not in (1, count)) or v.ndim > o + 1 for v, o in zip(values, _OWN)):
            return None
        values = tuple(
            (v if v.ndim > o else v[None]).expand(count, *v.shape[v.ndim - o :]) for v, o in zip(values, _OWN)
        )
        for row in (0, count - 1):
            alone = self._one_by_one(pairs[row : row + 1], size)
            if not all(a.shape[1:] == v.shape[1:] and torch.allclose(a[0], v[row]) for a, v in zip(alone, values)):
                return None
        return values

    def _one_by_one(self, pairs: Tensor, size: int) -> Arrays:
        rows = [kernel_arrays(_checked(self.f(s, t)), size) for s, t in pairs]
        rows = [tuple(v.reshape(v.shape[v.ndim - o :]) for v, o in zip(row, _OWN)) for row in rows]
        return tuple(torch.stack(column) for column in zip(*rows))


# --- what the user may write ------------------------------------------------------------------------------------


def as_transition(given: Any, probe: Tensor) -> Transition:
    """The transition of a kernel, of anything with ``.kernel(s, t)``, of a list of kernels or of a callable.

    Args:
        probe: states that tell what a callable of the state returns, ``(1, d)`` or all finite states ``(K,)``.
    """
    if isinstance(given, Transition):
        return given
    if isinstance(given, Kernel):
        kernel = given.collapse() if isinstance(given, Chain) else given
        _check_start(kernel, probe)
        return Homogeneous(lambda: kernel, getattr(kernel, "law", None))
    if hasattr(given, "kernel"):
        return Timed(given.kernel)
    if isinstance(given, (list, tuple)):
        return Listed([_checked(kernel) for kernel in given])
    if not callable(given):
        raise InputTypeError(
            f"transition is a Kernel, an object with .kernel(s, t), a list of kernels, or a callable (s, t) -> Kernel "
            f"or x -> torch.distributions; got {type(given).__name__} (a matrix is kernels.Finite.of(P) for "
            "finite states, kernels.LinearGaussian(A, b, Q) for real ones)"
        )
    f: Any = precise(given)  # a callable of any signature
    count = arity(given)
    if count == 2:
        return Timed(given)
    if count == 3:
        return Timed(lambda s, t: law_kernel(lambda x: f(x, s, t), probe))
    law_kernel(f, probe)  # raises now rather than in the middle of a run
    return Homogeneous(lambda: law_kernel(f, probe), f)


def law_kernel(f: Callable[[Tensor], Distribution], probe: Tensor) -> Kernel:
    """The kernel of ``x -> torch.distributions``: normal laws are Gaussian kernels, categorical ones finite."""
    law = asked(f, probe, "transition(x)")
    if not isinstance(law, Distribution):
        raise InputTypeError(
            f"transition(x) returned {type(law).__name__}; return a torch.distributions object (a callable of two "
            "times (s, t) returns a Kernel)"
        )
    if isinstance(law, torch.distributions.Categorical):
        K = len(probe)
        require(
            not probe.is_floating_point() and law.logits.shape == (K, K),
            f"transition(x) returned a Categorical with logits {tuple(law.logits.shape)} for the {K} states",
        )
        return Finite(torch.log_softmax(law.logits.double(), -1))
    moments = normal_moments(law, 1) if probe.is_floating_point() else None
    if moments is None:
        return Conditional(law=f)
    require(
        moments[0].shape[-1] == probe.shape[-1],
        f"transition(x) returned a law of {moments[0].shape[-1]} coordinates for a state of {probe.shape[-1]}",
    )

    def root(x: Tensor) -> Tensor:
        at = f(x)
        if isinstance(at, torch.distributions.MultivariateNormal):
            return at.scale_tril.to(x.dtype)
        return _moments(at, x)[1].diagonal(dim1=-2, dim2=-1).sqrt().diag_embed().to(x.dtype)

    return NonLinearGaussian(lambda x: _moments(f(x), x)[0].to(x.dtype), root=root)


def _moments(law: Distribution, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a normal law at states ``x (..., d)``."""
    moments = normal_moments(law, x.ndim - 1)
    assert moments is not None  # the probe said so
    return moments


def family_of(kernel: Kernel) -> str:
    """The family that decides which routes apply."""
    if isinstance(kernel, LinearGaussian):
        return "linear"
    if isinstance(kernel, NonLinearGaussian):
        return "gaussian"
    return "finite" if hasattr(kernel, "log_p") or hasattr(kernel, "classes") else "general"


def kernel_arrays(kernel: Kernel, size: int) -> Arrays:
    """``(A, b, Q)`` of a linear-Gaussian kernel of ``size`` coordinates, ``(P,)`` of a finite one; float64."""
    if isinstance(kernel, LinearGaussian):
        A, Q = matrix(kernel.A, size), matrix(kernel.Q, size)
        for name, value in (("A", A), ("Q", Q)):
            if value.shape[-2:] != (size, size):
                raise InputError(
                    f"the transition's {name} is {value.shape[-2]}x{value.shape[-1]} and the prior has {size} "
                    "coordinates; they must chain"
                )
            require(bool(torch.isfinite(value).all()), f"the transition's {name} has entries that are not finite")
        b = vector(kernel.b, size)
        require(bool(torch.isfinite(b).all()), "the transition's b has entries that are not finite")
        return A, b, Q
    log_p = getattr(kernel, "log_p", None)
    if log_p is not None:
        table = log_p.double().exp()
    else:  # O(K) kernels: push every state
        table = kernel.push(Categorical(torch.eye(size, dtype=torch.float64).log())).log_p.exp()
    if table.shape[-2:] != (size, size):
        raise InputError(f"the transition is {table.shape[-2]}x{table.shape[-1]} and the prior has {size} states")
    return (table,)


def _stack(values: Sequence[Tensor], own: int) -> Tensor:
    """Steps along axis 1: ``(S|1, n, ...)``."""
    rows = [v if v.ndim > own else v[None] for v in values]
    lead = max(len(v) for v in rows)
    return torch.stack([v.expand(lead, *v.shape[1:]) for v in rows], 1)


def _checked(kernel: Any) -> Kernel:
    if not isinstance(kernel, Kernel):
        raise InputTypeError(f"a transition is made of kernels, got {type(kernel).__name__}")
    return kernel.collapse() if isinstance(kernel, Chain) else kernel


def _check_start(kernel: Kernel, probe: Tensor) -> None:
    """Whether a kernel and the prior are about the same states, and whether it is a kernel at all."""
    finite = family_of(kernel) == "finite"
    if finite == probe.is_floating_point() and family_of(kernel) in ("finite", "linear"):
        raise InputError(
            f"the prior is of {'real' if finite else 'finite'} states and the transition {type(kernel).__name__} is not"
        )
    if isinstance(kernel, LinearGaussian):
        check_covariance(kernel_arrays(kernel, probe.shape[-1])[2], "the transition's Q")
    elif finite:
        kernel_arrays(kernel, probe.shape[-1])
        table = getattr(kernel, "log_p", None)
        if table is not None:
            check_stochastic(table.exp())
    elif isinstance(kernel, NonLinearGaussian) and probe.is_floating_point():
        check_moments(kernel, probe, "transition", probe.shape[-1])
