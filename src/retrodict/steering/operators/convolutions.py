"""Blurs: every channel of an image convolved with one kernel.

With ``padding="circular"`` the image is a torus and the convolution a product of Fourier transforms, which is also its
singular form; with the other paddings the border is as a camera's, and the decomposition dense.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from scipy.signal.windows import gaussian
from torch import Tensor
from torch.nn import functional

from retrodict.core.errors import InputError, near
from retrodict.steering.operators.operator import Linear, image_axes
from retrodict.steering.operators.singular import Singular, circular_singular

#: What each padding is called by `torch.nn.functional.pad`.
PADDINGS = {"circular": "circular", "reflect": "reflect", "replicate": "replicate", "zeros": "constant", "valid": ""}


class Convolution(Linear):
    """A convolution over the last two axes; made by `convolve`, `gaussian_blur` and `motion_blur`.

    Args:
        kernel: ``(h, w)`` float64; its middle, ``(h // 2, w // 2)``, stays in place.
        padding: "circular", "reflect", "replicate", "zeros", or "valid", which keeps only pixels with all neighbours.
    """

    def __init__(self, kernel: Tensor, padding: str = "circular") -> None:
        if padding not in PADDINGS:
            raise InputError(f"padding is one of {', '.join(PADDINGS)}, got {padding!r}.{near(str(padding), PADDINGS)}")
        self.kernel, self.padding = kernel, padding

    def __call__(self, x: Tensor) -> Tensor:
        size = image_axes(x, "a blur")
        self._fits(size, tuple(x.shape[1:]))
        if self.padding == "circular":
            return self._filter(x, self.spectrum(size))
        h, w = self.kernel.shape
        images = x.reshape(-1, 1, *size)
        if self.padding != "valid":
            # conv2d correlates: the flipped kernel has its middle at (h - 1) - h // 2
            around = ((w - 1) - w // 2, w // 2, (h - 1) - h // 2, h // 2)
            images = functional.pad(images, around, mode=PADDINGS[self.padding])
        flipped = self.kernel.flip(0, 1).to(x)[None, None]
        out = functional.conv2d(images, flipped)
        return out.reshape(*x.shape[:-2], *out.shape[-2:])

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        if self.padding != "circular":
            return super().adjoint(y, shape)
        return self._filter(y, self.spectrum((shape[-2], shape[-1])).conj())

    def singular(self, shape: tuple[int, ...]) -> Singular:
        if self.padding != "circular":
            return super().singular(shape)
        return circular_singular(self.spectrum((shape[-2], shape[-1])), shape)

    def spectrum(self, size: tuple[int, int]) -> Tensor:
        """Fourier transform of the kernel on images of the given size, ``(H, W)`` complex."""
        h, w = self.kernel.shape
        placed = self.kernel.new_zeros(size)
        placed[:h, :w] = self.kernel
        return torch.fft.fft2(placed.roll((-(h // 2), -(w // 2)), (0, 1)))

    def _filter(self, x: Tensor, spectrum: Tensor) -> Tensor:
        half = spectrum[:, : x.shape[-1] // 2 + 1].to(x.device)
        half = half.to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)
        return torch.fft.irfft2(torch.fft.rfft2(x) * half, s=x.shape[-2:])

    def _fits(self, size: tuple[int, int], shape: tuple[int, ...]) -> None:
        h, w = self.kernel.shape
        reach = (h // 2, w // 2) if self.padding == "reflect" else (h - 1, w - 1)
        if reach[0] >= size[0] or reach[1] >= size[1]:
            raise InputError(
                f"a kernel of {h} x {w} pixels with padding {self.padding!r} is too large for images of shape {shape}"
            )


def convolve(kernel: Any, padding: str = "circular") -> Convolution:
    """A convolution with a given kernel ``(h, w)``, every channel by itself."""
    value = torch.as_tensor(kernel, dtype=torch.float64)
    if value.ndim != 2 or not bool(torch.isfinite(value).all()):
        raise InputError(f"a kernel is a finite matrix (h, w), got shape {tuple(value.shape)}")
    return Convolution(value, padding)


def gaussian_blur(kernel: int = 5, sigma: float | None = None, padding: str = "circular") -> Convolution:
    """A Gaussian blur.

    Args:
        kernel: its size in pixels, odd; sigma: standard deviation in pixels, a quarter of the kernel by default.
    """
    _odd(kernel)
    sigma = kernel / 4 if sigma is None else sigma
    if not (math.isfinite(sigma) and sigma > 0):
        raise InputError(f"sigma is a width in pixels above 0, got {sigma}")
    line = torch.from_numpy(gaussian(kernel, sigma))
    line = line / line.sum()
    return Convolution(torch.outer(line, line), padding)


def motion_blur(kernel: int = 5, angle: float = 0.0, padding: str = "circular") -> Convolution:
    """The blur of a straight motion.

    Args:
        kernel: length in pixels, odd; angle: in degrees, counter-clockwise from horizontal.
    """
    _odd(kernel)
    line = np.zeros((kernel, kernel))
    line[kernel // 2] = 1
    turned = ndimage.rotate(line, angle, reshape=False, order=1).clip(0)
    return Convolution(torch.from_numpy(turned / turned.sum()), padding)


def _odd(kernel: int) -> None:
    if isinstance(kernel, bool) or not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
        raise InputError(f"kernel is an odd number of pixels, got {kernel!r}")
