"""Quantisation as in JPEG: the cosine transform of 8 x 8 blocks, rounded to multiples of a table.

    A(x) = D^T (Q round(D x / Q)),        D orthonormal

on levels from -128 to 127.  The measurement is the decoded image, so that ``A(A(x)) = A(x)``; rounding has no
derivative, and gradients pass straight through it (Bengio et al. 2013).
"""

from __future__ import annotations

import torch
from scipy.fft import dct
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.steering.operators.nonlinear import _range
from retrodict.steering.operators.operator import Operator, image_axes

BLOCK = 8
#: Luminance of ITU-T T.81, table K.1, and the scaling of its entries with quality of the Independent JPEG Group.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


class Quantise(Operator):
    """JPEG's loss without its coding; made by `quantise`.

    Attributes:
        table: Q, ``(8, 8)`` float64.
    """

    def __init__(self, quality: int, low: float, high: float) -> None:
        if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
            raise InputError(f"quality is a whole number from 1 to 100, got {quality!r}")
        self.low, self.high = _range(low, high)
        percent = 5000 // quality if quality < 50 else 200 - 2 * quality
        self.table = ((torch.tensor(LUMINANCE) * percent + 50) // 100).clamp(1, 255).double()
        self.cosines = torch.from_numpy(dct(torch.eye(BLOCK).double().numpy(), norm="ortho", axis=0))

    def __call__(self, x: Tensor) -> Tensor:
        H, W = image_axes(x, "quantisation")
        if H % BLOCK or W % BLOCK:
            raise InputError(
                f"quantisation needs sides that are multiples of {BLOCK}, got states of shape {tuple(x.shape[1:])}"
            )
        D, Q = self.cosines.to(x), self.table.to(x)
        levels = 255 * (x - self.low) / (self.high - self.low) - 128
        blocks = levels.reshape(-1, H // BLOCK, BLOCK, W // BLOCK, BLOCK).transpose(2, 3)
        coefficients = D @ blocks @ D.T / Q
        rounded = coefficients + (coefficients.round() - coefficients).detach()
        decoded = (D.T @ (Q * rounded) @ D).transpose(2, 3).reshape(x.shape)
        return self.low + (decoded + 128) * (self.high - self.low) / 255


def quantise(quality: int = 50, low: float = 0.0, high: float = 1.0) -> Quantise:
    """An image as JPEG keeps it, every channel as luminance.

    Args:
        quality: 1 to 100; low, high: black and white.
    """
    return Quantise(quality, low, high)
