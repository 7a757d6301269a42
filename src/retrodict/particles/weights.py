"""Log-weights and resampling, batched over populations: tensors are ``(populations, size)``.

A population approximates a law by weighted particles.  When the effective sample size ``1 / sum w^2`` falls below a
share of the size, particles are redrawn in proportion to their weights, and the log of the mean weight goes into
the evidence.

With *candidates* a sample keeps K proposals to itself: at every step one of them is drawn in proportion to its weight,
and all K go on from there.  That is a population of K with a scheme of its own, `CHOICE`: unbiased like the others, as
each particle is expected K w children, and without the interaction of samples that a large population has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.particles.resampling import Scheme, pick, resamplers


def _one(weights: Tensor, uniforms: Tensor, children: int) -> Tensor:
    """All children from one parent, cumulated."""
    slots = torch.arange(weights.shape[-1], device=weights.device)
    return children * (slots >= pick(weights, uniforms[..., :1])).long()


#: The scheme of candidates.  It is none of `resamplers`: a large population that kept one parent would be no filter.
CHOICE = Scheme(_one, lambda parents, children: 1, lambda share: share * (share.sum(-1, keepdim=True) - share))


@dataclass(frozen=True)
class Population:
    """How particles are grouped and resampled.

    Attributes:
        size: particles a population; None makes all samples one population.
        resample: "systematic", "stratified", "residual", "ssp", or "multinomial".
        threshold: resample when the effective sample size is below this share of the size (0: never, 1: always).
        candidates: K private proposals of every sample, of which one is kept at each step with probability in
            proportion to its weight: soft-value decoding (Li et al. 2024, algorithm 1, "SVDD").  It fixes the rest.
            Its law tends to the right one as K grows; at any K it is that of one choice among K at each step.
    """

    size: int | None = None
    resample: str | Scheme = "systematic"
    threshold: float = 0.5
    candidates: int | None = None

    def __post_init__(self) -> None:
        if self.candidates is not None:
            if self.candidates < 2 or (self.size, self.resample, self.threshold) != (None, "systematic", 0.5):
                raise InputError(f"candidates={self.candidates} are at least 2, and leave out the other arguments")
            for name, value in (("size", self.candidates), ("resample", CHOICE), ("threshold", 1.0)):
                object.__setattr__(self, name, value)
        if self.size is not None and self.size < 2:
            raise InputError(f"a population has at least 2 particles, got {self.size}")
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold is a share between 0 and 1, got {self.threshold}")
        if isinstance(self.resample, str):
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


def resample_indices(scheme: str | Scheme, log_w: Tensor, noise: Noise) -> Tensor:
    """Ancestors ``(G, K)`` for log-weights ``(G, K)``; ``noise`` has one slot a population."""
    size = log_w.shape[-1]
    chosen = resamplers[scheme] if isinstance(scheme, str) else scheme
    uniforms = noise.uniform((chosen.width(size, size),)).to(log_w.device)
    return chosen(normalise(log_w), uniforms)
