"""What parameters of laws and kernels must satisfy, checked once when they are built.

Each check looks at detached values, so that gradients never see it, and costs one Cholesky factorisation or one
sum at most.  The messages name the parameter, show the offending number and say what is accepted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.lin import Lin


@dataclass(frozen=True)
class Space:
    """What a state is: ``kind`` "real" (vectors of ``size`` coordinates), "states" (``size`` of them) or "count".

    ``size`` None: any.
    """

    kind: str
    size: int | None = None

    def fits(self, other: Space) -> bool:
        """Whether a state of this space may enter a kernel on the other."""
        return self.kind == other.kind and (self.size is None or other.size is None or self.size == other.size)

    def __str__(self) -> str:
        size = "" if self.size is None else f"{self.size} "
        return {"real": f"{size}real coordinates", "states": f"{size}states"}.get(self.kind, f"{size}{self.kind}")


def real_tensor(value: Any, name: str) -> Tensor:
    """``value`` as a floating-point tensor: numbers and integers become float64, tensors keep their precision."""
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(f"{name} is a number, an array or a tensor; got {type(value).__name__}") from error
    return tensor if tensor.is_floating_point() else tensor.double()


def as_map(value: Any, name: str) -> Lin:
    """A linear map: a `Lin` as it is, a number times the identity, or a matrix ``(..., m, n)``."""
    if isinstance(value, Lin):
        return value
    tensor = real_tensor(value, name)
    if tensor.ndim == 1:
        raise InputError(
            f"{name} has shape {tuple(tensor.shape)}; a number, a matrix (..., m, n) or a Lin is accepted"
            " (torch.diag(v) for a diagonal matrix, Lin.scalar(v) for one number a batch element)"
        )
    return Lin.of(tensor)


def as_covariance(value: Any, name: str = "covariance") -> Lin:
    """A covariance as a `Lin`; what is not yet one is checked to be symmetric positive semi-definite."""
    if isinstance(value, Lin):
        return value  # built by the library, often on a hot path, from parts that were checked before
    lin = as_map(value, name)
    check_covariance(lin.value if lin.kind == "dense" else lin.value[..., None, None], name)
    return lin


def check_covariance(matrix: Tensor, name: str = "covariance", tol: float = 1e-8) -> None:
    """Raise unless ``matrix (..., d, d)`` is symmetric positive semi-definite within ``tol`` of its largest entry."""
    value = matrix.detach().double()
    if value.ndim < 2 or value.shape[-1] != value.shape[-2]:
        raise InputError(f"{name} has shape {tuple(value.shape)}; a square matrix (..., d, d) is accepted")
    if value.numel() == 0:
        return
    if not bool(torch.isfinite(value).all()):
        raise InputError(f"{name} has entries that are not finite; a covariance is a finite matrix")
    scale = float(value.abs().max())
    gap = float((value - value.mT).abs().max())
    if gap > max(tol, _precision(matrix)) * scale:
        raise InputError(f"{name} is not symmetric: entries differ by {gap:.3g} from their mirror images")
    jitter = max(tol, _precision(matrix)) * scale
    eye = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
    if scale > 0 and bool((torch.linalg.cholesky_ex(value + jitter * eye).info > 0).any()):
        smallest = float(torch.linalg.eigvalsh((value + value.mT) / 2).min())
        raise InputError(
            f"{name} is not positive semi-definite: its smallest eigenvalue is {smallest:.4g};"
            " a covariance has none below zero"
        )


def check_stochastic(P: Tensor, name: str = "transition matrix", tol: float = 1e-6) -> None:
    """Raise unless the rows of ``P (..., S, S')`` are probabilities, to what is left of single precision."""
    value = P.detach().double()
    worst = float((value.sum(-1) - 1).abs().max())
    if not worst <= max(tol, _precision(P)) or float(value.min()) < 0:  # `not <=` catches NaN
        row = int((value.sum(-1) - 1).abs().flatten().argmax()) % value.shape[-2] if math.isfinite(worst) else 0
        raise InputError(
            f"rows of a {name} are probabilities that sum to 1; off by {worst:.2e} (row {row}),"
            f" smallest entry {float(value.min()):.3g}"
        )


def check_rates(Q: Tensor, name: str = "rates", tol: float = 1e-8) -> None:
    """Raise unless ``Q (..., S, S)`` is a generator: off-diagonals at least zero, rows that sum to zero."""
    value = Q.detach().double()
    if value.ndim < 2 or value.shape[-1] != value.shape[-2]:
        raise InputError(f"{name} have shape {tuple(value.shape)}; a square matrix (..., S, S) is accepted")
    if not bool(torch.isfinite(value).all()):
        raise InputError(f"{name} have entries that are not finite")
    off = value - torch.diag_embed(value.diagonal(dim1=-2, dim2=-1))
    if float(off.min()) < 0:
        i, j = divmod(int(off.flatten(0, -3).amin(0).argmin()) if off.ndim > 2 else int(off.argmin()), off.shape[-1])
        raise InputError(
            f"{name} have a negative entry {float(off.min()):.4g} off the diagonal, from state {i} to state {j};"
            " rates of jumps are at least zero"
        )
    scale = max(float(value.abs().max()), 1e-300)
    worst = float(value.sum(-1).abs().max())
    if worst > max(tol, _precision(Q)) * scale:
        raise InputError(
            f"rows of {name} sum to zero (the diagonal is minus the sum of the others); off by {worst:.3g}"
        )


def _precision(value: Tensor) -> float:
    """Rounding to allow for in a value of its dtype."""
    return 32 * float(torch.finfo(value.dtype).eps) if value.is_floating_point() else 0.0
