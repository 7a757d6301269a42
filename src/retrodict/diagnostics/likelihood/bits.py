"""Bits per dimension: the units in which likelihoods of images are compared.

A grey level v in 0..L-1 is spread over its own bin, ``u = (v + U)/L`` with U uniform; then the probability of v
is at least the exponential of the mean log density of u times the width 1/L of a bin (Theis et al. 2016), and

    bits/dim = -log p(u) / (d log 2) - log2(width of a level, in the units of u).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require


def dequantise(levels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Grey levels 0..count-1 of any shape, each spread uniformly over its bin of [0, 1); in float32.

    The generator is on the device of the levels.
    """
    low, high = float(levels.min()), float(levels.max())
    if low < 0 or high > count - 1 or bool((levels != levels.round()).any()):
        raise InputError(f"{count} grey levels are the integers 0..{count - 1}; got values from {low:g} to {high:g}")
    u = torch.rand(levels.shape, generator=generator, device=levels.device, dtype=torch.float64)
    # in float32 a uniform close to 1 would round up into the next bin
    return ((levels.double() + u) / count).float().clamp(max=1 - 2**-24)


def bits_per_dim(log_prob: Tensor, dims: int, width: float = 1.0) -> Tensor:
    """Bits per dimension of a log density in nats.

    Args:
        log_prob: log densities ``(n,)``.
        dims: number of coordinates d of a datum.
        width: of one grey level in the units of the density: 1 where grey levels are one apart, 1/17 for 17
            levels on [0, 1), 2/255 for 256 levels scaled to [-1, 1].

    >>> round(float(bits_per_dim(torch.zeros(()), 64, width=1 / 17)), 3)  # the uniform density on the cube
    4.087
    """
    require(dims >= 1 and width > 0, f"dims is at least 1 and width positive, got {dims} and {width}")
    return -log_prob / (dims * math.log(2)) - math.log2(width)
