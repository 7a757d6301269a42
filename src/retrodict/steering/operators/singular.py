"""Singular forms ``A = U diag(s) V^T`` by fast transforms, thin: k singular values, U and V with k orthonormal columns.

What lies outside of V is the null space; it needs no basis, being ``x - V V^T x``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Singular:
    """A linear operator by its singular values.

    Attributes:
        values: s, ``(k,)`` float64, at least 0.
        inwards: ``x (batch, *shape) -> V^T x (batch, k)``; outwards: ``c -> V c``.
        measured: ``y (batch, *output) -> U^T y (batch, k)``; measurement: ``c -> U c``.
    """

    values: Tensor
    inwards: Callable[[Tensor], Tensor]
    outwards: Callable[[Tensor], Tensor]
    measured: Callable[[Tensor], Tensor]
    measurement: Callable[[Tensor], Tensor]

    def pinv(self, y: Tensor, least: float = 1e-10) -> Tensor:
        """``A^+ y``; values below ``least`` of the largest count as zero."""
        s = self.values.to(y)
        inverse = torch.where(s > least * s.max(), 1 / s, 0.0)
        return self.outwards(inverse * self.measured(y))


def dense_singular(matrix: Tensor, shape: tuple[int, ...], output: tuple[int, ...]) -> Singular:
    """From a matrix ``(m, d)``; directions whose value is zero to rounding belong to the null space."""
    U, s, Vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    keep = s > s.max() * max(matrix.shape) * torch.finfo(s.dtype).eps
    U, s, Vt = U[:, keep], s[keep], Vt[keep]
    return Singular(
        s,
        inwards=lambda x: x.flatten(1) @ Vt.to(x).T,
        outwards=lambda c: (c @ Vt.to(c)).reshape(len(c), *shape),
        measured=lambda y: y.flatten(1) @ U.to(y),
        measurement=lambda c: (c @ U.to(c).T).reshape(len(c), *output),
    )


def hartley(x: Tensor) -> Tensor:
    """The Hartley transform over the last two axes: real, orthonormal, and its own inverse."""
    z = torch.fft.fft2(x, norm="ortho")
    return z.real - z.imag


def circular_singular(spectrum: Tensor, shape: tuple[int, ...]) -> Singular:
    """Of a circular convolution with the Fourier transform ``spectrum (H, W)`` of a real kernel.

    Its modulus is even, and so is diagonal in the Hartley transform; its phase is an orthogonal convolution P:
    ``A = (P H) diag |spectrum| H``.
    """
    modulus = spectrum.abs()
    phase = torch.where(modulus > 0, spectrum / modulus.clamp_min(1e-300), torch.ones_like(spectrum))
    channels = math.prod(shape[:-2])

    def turn(x: Tensor, by: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(x) * by.to(x.device)).real.to(x.dtype)

    unflat = lambda c: c.reshape(len(c), *shape)  # noqa: E731
    return Singular(
        modulus.double().flatten().repeat(channels),
        inwards=lambda x: hartley(x).flatten(1),
        outwards=lambda c: hartley(unflat(c)),
        measured=lambda y: hartley(turn(y, phase.conj())).flatten(1),
        measurement=lambda c: turn(hartley(unflat(c)), phase),
    )
