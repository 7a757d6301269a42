"""Linear maps of one size: scalar, diagonal, spectral or dense, behind one small algebra.

A noising kernel of images multiplies by one number, a function-space process by one number a frequency, a
state-space model by a matrix.  `Lin` lets one kernel class serve all three: ``+ @ .T .inv .sqrt .logdet .mv``
cost what the structure costs.

Axes: the leading axes of ``value`` are batch axes and align with the leading axes of what the map acts on.

========  ======================================  =================================================
kind      value                                   acts on (batch, *event)
========  ======================================  =================================================
scalar    (*batch)                                every element
diagonal  (*batch, *event)                        element-wise; ``event`` is the number of event axes
spectral  (*batch, *event)                        element-wise after an orthonormal FFT over the event
                                                  axes (real and even, so that real maps to real)
dense     (*batch, m, n)                          the last axis
========  ======================================  =================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from retrodict.core.errors import InputError

_ORDER = {"scalar": 0, "diagonal": 1, "spectral": 1, "dense": 2}


@dataclass(frozen=True)
class Lin:
    """A linear map; build it with `scalar`, `diagonal`, `spectral` or `dense`."""

    value: Tensor
    kind: str = "scalar"
    event: int = 0

    @staticmethod
    def scalar(value: float | Tensor) -> Lin:
        """``x -> value x``; a tensor ``(batch,)`` scales each batch element by its own number."""
        return Lin(torch.as_tensor(value), "scalar", 0)

    @staticmethod
    def diagonal(value: Tensor, event: int = 1) -> Lin:
        """``x -> value * x`` over the last ``event`` axes."""
        return Lin(torch.as_tensor(value), "diagonal", event)

    @staticmethod
    def spectral(value: Tensor, event: int = 1) -> Lin:
        """Circular convolution with the real, even transfer function ``value`` over the last ``event`` axes."""
        return Lin(torch.as_tensor(value), "spectral", event)

    @staticmethod
    def dense(value: Tensor) -> Lin:
        """``x -> value x`` on the last axis."""
        return Lin(torch.as_tensor(value), "dense", 1)

    @staticmethod
    def of(value: float | Tensor | Lin) -> Lin:
        """A `Lin` from a number, a matrix (two or more axes) or a `Lin`."""
        if isinstance(value, Lin):
            return value
        value = torch.as_tensor(value)
        return Lin.dense(value) if value.ndim >= 2 else Lin.scalar(value)

    # -- action ---------------------------------------------------------------------------------------------

    def mv(self, x: Tensor) -> Tensor:
        """Apply the map to ``x (batch, *event)``."""
        if self.kind == "scalar":
            return self._leading(x.ndim) * x
        if self.kind == "diagonal":
            return self._aligned(x.ndim) * x
        if self.kind == "spectral":
            axes = tuple(range(-self.event, 0))
            spectrum = torch.fft.fftn(x, dim=axes, norm="ortho")
            return torch.fft.ifftn(self._aligned(x.ndim) * spectrum, dim=axes, norm="ortho").real
        return (self.value @ x.unsqueeze(-1)).squeeze(-1)

    __call__ = mv

    def _leading(self, ndim: int) -> Tensor:
        """The scalar's batch axes against the leading axes of something with ``ndim`` axes."""
        return self.value.reshape(self.value.shape + (1,) * max(0, ndim - self.value.ndim))

    def _aligned(self, ndim: int) -> Tensor:
        """Batch axes to the front, event axes to the back, ones between."""
        batch = self.value.ndim - self.event
        shape = self.value.shape
        return self.value.reshape(shape[:batch] + (1,) * max(0, ndim - self.value.ndim) + shape[batch:])

    # -- algebra --------------------------------------------------------------------------------------------

    def __add__(self, other: float | Lin) -> Lin:
        a, b = _promote(self, Lin.of(other))
        return Lin(a.value + b.value, a.kind, a.event)

    def __sub__(self, other: float | Lin) -> Lin:
        return self + (-Lin.of(other))

    def __neg__(self) -> Lin:
        return Lin(-self.value, self.kind, self.event)

    def __matmul__(self, other: Lin) -> Lin:
        if {self.kind, other.kind} == {"scalar", "dense"}:  # the matrix need not be square
            low, high = (self, other) if self.kind == "scalar" else (other, self)
            return Lin(low.value[..., None, None] * high.value, "dense", 1)
        a, b = _promote(self, other)
        if a.kind == "dense":
            if a.value.shape[-1] != b.value.shape[-2]:
                raise InputError(f"maps do not chain: {tuple(a.value.shape)} after {tuple(b.value.shape)}")
            return Lin(a.value @ b.value, "dense", 1)
        return Lin(a.value * b.value, a.kind, a.event)

    def scale(self, factor: float) -> Lin:
        """``factor`` times the map."""
        return Lin(self.value * factor, self.kind, self.event)

    @property
    def T(self) -> Lin:
        return Lin(self.value.mT, "dense", 1) if self.kind == "dense" else self

    def inv(self) -> Lin:
        """The inverse; a singular map gives infinities, as the arithmetic has it."""
        return Lin(torch.linalg.inv(self.value) if self.kind == "dense" else 1 / self.value, self.kind, self.event)

    def sqrt(self) -> Lin:
        """The symmetric square root of a positive semi-definite map (negative rounding is clamped to zero)."""
        if self.kind != "dense":
            return Lin(self.value.clamp_min(0).sqrt(), self.kind, self.event)
        values, vectors = torch.linalg.eigh(self.symmetric().value)
        return Lin((vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT, "dense", 1)

    def symmetric(self) -> Lin:
        """The symmetric part; rounding otherwise breaks symmetry over a long chain."""
        return Lin((self.value + self.value.mT) / 2, "dense", 1) if self.kind == "dense" else self

    def logdet(self, size: int) -> Tensor:
        """log |det| on an event of ``size`` elements, one a batch element."""
        if self.kind == "scalar":
            return self.value.abs().log() * size
        if self.kind == "dense":
            return torch.linalg.slogdet(self.value).logabsdet
        copies = size // math.prod(self.value.shape[self.value.ndim - self.event :])
        return self.value.abs().log().flatten(self.value.ndim - self.event).sum(-1) * copies

    def solve(self, x: Tensor) -> Tensor:
        """``inverse(x)`` without forming the inverse."""
        if self.kind == "dense":
            return torch.linalg.solve(self.value, x.unsqueeze(-1)).squeeze(-1)
        return self.inv().mv(x)

    def trace(self, size: int) -> Tensor:
        """The trace on an event of ``size`` elements."""
        if self.kind == "scalar":
            return self.value * size
        if self.kind == "dense":
            return self.value.diagonal(dim1=-2, dim2=-1).sum(-1)
        copies = size // math.prod(self.value.shape[self.value.ndim - self.event :])
        return self.value.flatten(self.value.ndim - self.event).sum(-1) * copies

    def to(self, *args: object, **kwargs: object) -> Lin:
        return Lin(self.value.to(*args, **kwargs), self.kind, self.event)  # type: ignore[arg-type]


def _promote(a: Lin, b: Lin) -> tuple[Lin, Lin]:
    """Both maps in the richer of the two structures."""
    if a.kind == b.kind:
        event = max(a.event, b.event)
        return _expand(a, event), _expand(b, event)
    if _ORDER[a.kind] == _ORDER[b.kind]:
        raise InputError(f"a {a.kind} and a {b.kind} map do not combine; write both as dense maps")
    low, high = (a, b) if _ORDER[a.kind] < _ORDER[b.kind] else (b, a)
    low = _lift(low, high)
    return (low, high) if _ORDER[a.kind] < _ORDER[b.kind] else (high, low)


def _expand(a: Lin, event: int) -> Lin:
    return (
        a if a.event == event or a.kind == "dense" else Lin(a._aligned(a.value.ndim - a.event + event), a.kind, event)
    )


def _lift(low: Lin, high: Lin) -> Lin:
    if high.kind != "dense":  # a scalar beside a diagonal or spectral map
        return Lin(low.value.reshape(low.value.shape + (1,) * high.event), high.kind, high.event)
    if low.kind == "spectral":
        raise InputError("a spectral map does not combine with a dense one; write both in one basis")
    rows, columns = high.value.shape[-2:]
    if low.kind == "diagonal":
        return Lin(torch.diag_embed(low.value), "dense", 1)
    if rows != columns:
        raise InputError(f"a scalar map and a {rows}x{columns} matrix do not combine; give a matrix")
    eye = torch.eye(rows, dtype=high.value.dtype, device=high.value.device)
    return Lin(low.value[..., None, None] * eye, "dense", 1)
