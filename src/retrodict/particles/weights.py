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
        active: times ``(low, high)`` between which particles are resampled; weights go on everywhere.
        partial: share of a population that is redrawn at once, the heaviest and the lightest; the rest keep their
            weights.  Less is lost to siblings, and more of the weights' spread stays.
    """

    size: int | None = None
    resample: str | Scheme = "systematic"
    threshold: float = 0.5
    candidates: int | None = None
    active: tuple[float, float] = (0.0, 1.0)
    partial: float = 1.0

    def __post_init__(self) -> None:
        if self.candidates is not None:
            others = (self.size, self.resample, self.threshold, self.active, self.partial)
            if self.candidates < 2 or others != (None, "systematic", 0.5, (0.0, 1.0), 1.0):
                raise InputError(f"candidates={self.candidates} are at least 2, and leave out the other arguments")
            for name, value in (("size", self.candidates), ("resample", CHOICE), ("threshold", 1.0)):
                object.__setattr__(self, name, value)
        if self.size is not None and self.size < 2:
            raise InputError(f"a population has at least 2 particles, got {self.size}")
        if not 0 <= self.threshold <= 1:
            raise InputError(f"threshold is a share between 0 and 1, got {self.threshold}")
        if len(self.active) != 2 or not 0 <= self.active[0] < self.active[1] <= 1:
            raise InputError(f"active is a window (low, high) of times in [0, 1], got {self.active}")
        if not 0 < self.partial <= 1:
            raise InputError(f"partial is a share above 0 and at most 1, got {self.partial}")
        if isinstance(self.resample, str):
            resamplers[self.resample]  # raises on an unknown name

    def poor(self, log_w: Tensor, effective: Tensor, t: float) -> Tensor:
        """Which populations ``(G,)`` are redrawn at time t, given their log-weights and effective sizes."""
        size = log_w.shape[-1]
        if not self.active[0] <= t <= self.active[1]:
            return torch.zeros_like(effective, dtype=torch.bool)
        # a threshold of 1 means always, equal weights too
        return (
            torch.ones_like(effective, dtype=torch.bool) if self.threshold == 1 else effective < self.threshold * size
        )

    def redraw(self, log_w: Tensor, noise: Noise) -> tuple[Tensor, Tensor, Tensor]:
        """``(parents (G, K), new log-weights (G, K), log evidence (G,) taken out of the weights)``.

        All particles: weights become one and their mean is taken out.  A part of them: those get the mean weight of
        the part, and nothing is taken out.
        """
        if self.partial == 1:
            return resample_indices(self.resample, log_w, noise), torch.zeros_like(log_w), log_mean_exp(log_w)
        size = log_w.shape[-1]
        chosen = max(2, round(self.partial * size))
        order = log_w.argsort(-1)
        part = torch.cat([order[:, : chosen // 2], order[:, size - (chosen - chosen // 2) :]], -1)
        inside = log_w.gather(-1, part)
        parents = part.gather(-1, resample_indices(self.resample, inside, noise))
        everyone = torch.arange(size, device=log_w.device).expand_as(log_w)
        picks = everyone.scatter(-1, part, parents)
        log_w = log_w.scatter(-1, part, log_mean_exp(inside).unsqueeze(-1).expand_as(inside))
        return picks, log_w, torch.zeros_like(log_w[:, 0])


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
