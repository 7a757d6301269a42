"""Log-weights and resampling, batched over populations: tensors are ``(populations, size)``.

A population approximates a law by weighted particles.  When the effective sample size ``1 / sum w^2`` falls below a
share of the size, particles are redrawn in proportion to their weights, and the log of the mean weight goes into
the evidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.particles.resampling import resamplers


@dataclass(frozen=True)
class Population:
    """How particles are grouped and resampled.

    Attributes:
        size: particles a population; None makes all samples one population.
        resample: "systematic", "stratified", "residual", "ssp" or "multinomial".
        threshold: resample when the effective sample size is below this share of the size (0: never, 1: always).
    """

    size: int | None = None
    resample: str = "systematic"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 2:
            raise InputError(f"a population has at least 2 particles, got {self.size}")
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold is a share between 0 and 1, got {self.threshold}")
        resamplers[self.resample]  # raises on an unknown name


def normalise(log_w: Tensor) -> Tensor:
    """Weights that sum to one over the last axis."""
    return torch.softmax(log_w, dim=-1)


def ess(log_w: Tensor) -> Tensor:
    """Effective sample size ``1 / sum w^2`` over the last axis."""
    return torch.exp(2 * torch.logsumexp(log_w, -1) - torch.logsumexp(2 * log_w, -1))


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log of the mean weight over the last axis."""
    return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])


def resample_indices(scheme: str, log_w: Tensor, noise: Noise) -> Tensor:
    """Ancestors ``(G, K)`` for log-weights ``(G, K)``; ``noise`` has one slot a population."""
    size = log_w.shape[-1]
    uniforms = noise.uniform((resamplers[scheme].width(size, size),)).to(log_w.device)
    return resamplers[scheme](normalise(log_w), uniforms)
