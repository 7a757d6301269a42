"""Operators that are not linear: lost phases, blur behind a response curve, clipping.

All are differentiable almost everywhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from retrodict.core.errors import InputError
from retrodict.steering.operators.convolutions import Convolution, gaussian_blur
from retrodict.steering.operators.operator import Operator, image_axes

_LEAST = 1e-4  # of the range: below it the root of a response curve is too steep to be followed


class PhaseMagnitude(Operator):
    """``|F pad(x)|`` with the orthonormal Fourier transform; made by `phase_retrieval`."""

    def __init__(self, oversample: float) -> None:
        if not (math.isfinite(oversample) and oversample >= 0):
            raise InputError(f"oversample is a number of at least 0, got {oversample}")
        self.oversample = oversample

    def __call__(self, x: Tensor) -> Tensor:
        H, W = image_axes(x, "phase retrieval")
        p, q = (int(self.oversample / 8 * n) for n in (H, W))
        return torch.fft.fft2(functional.pad(x, (q, q, p, p)), norm="ortho").abs()


class Affine(Operator):
    """``scale x + shift``; made by `affine`."""

    def __init__(self, scale: float, shift: float) -> None:
        self.scale, self.shift = scale, shift

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


class ResponseBlur(Operator):
    """``g(k * g^-1(x))`` with the response curve ``g(u) = u^(1/gamma)``; made by `nonlinear_blur`."""

    def __init__(self, blur: Convolution, gamma: float, low: float, high: float) -> None:
        self.blur, self.gamma, self.low, self.high = blur, gamma, *_range(low, high)
        if not (math.isfinite(gamma) and gamma > 0):
            raise InputError(f"gamma is above 0, got {gamma}")

    def __call__(self, x: Tensor) -> Tensor:
        u = ((x - self.low) / (self.high - self.low)).clamp_min(_LEAST)
        light = self.blur(u**self.gamma).clamp_min(_LEAST**self.gamma)
        return self.low + (self.high - self.low) * light ** (1 / self.gamma)


class Clip(Operator):
    """``clip(scale x, low, high)``; made by `clip`."""

    def __init__(self, scale: float, low: float, high: float) -> None:
        self.scale, self.low, self.high = scale, *_range(low, high)

    def __call__(self, x: Tensor) -> Tensor:
        return (self.scale * x).clamp(self.low, self.high)


def phase_retrieval(oversample: float = 2.0) -> PhaseMagnitude:
    """Magnitudes of the Fourier transform; the phases are lost.

    An image and its rotation by 180 degrees have the same magnitudes, so a restoration is right up to that.  Images
    that are not positive, say in [-1, 1], are made so first: ``affine(.5, .5) | phase_retrieval()``.

    Args:
        oversample: each side is padded with ``oversample / 8`` of its length (Zhang et al. 2024, DAPS).
    """
    return PhaseMagnitude(oversample)


def affine(scale: float = 1.0, shift: float = 0.0) -> Affine:
    """``scale x + shift``: a change of units before another operator."""
    if not (math.isfinite(scale) and math.isfinite(shift) and scale != 0):
        raise InputError(f"scale and shift are finite and scale is not 0, got {scale} and {shift}")
    return Affine(scale, shift)


def nonlinear_blur(
    kernel: int = 5, sigma: float | None = None, gamma: float = 2.2, low: float = 0.0, high: float = 1.0
) -> ResponseBlur:
    """A blur of light, seen through a camera's response curve: pixels are a power of light, and light is blurred.

    Args:
        kernel, sigma: as in `gaussian_blur`; gamma: exponent of the curve; low, high: black and white.
    """
    return ResponseBlur(gaussian_blur(kernel, sigma), gamma, low, high)


def clip(scale: float = 2.0, low: float = -1.0, high: float = 1.0) -> Clip:
    """``clip(scale x, low, high)``: an exposure too long, from which high dynamic range is restored."""
    return Clip(scale, low, high)


def _range(low: float, high: float) -> tuple[float, float]:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"low is below high, got {low} and {high}")
    return low, high
