"""One restoration: several independent populations of weighted particles, pooled.

The particles of a population share ancestors, so its spread alone is too small; the union of several has more of it.
Each has the same share of the pool.  Shares in proportion to their evidence would be right on average for any size, but
estimates of the evidence vary by far more than the populations differ, so that one of them would take all; how much
they vary is told instead (`Restored.populations`).  As the particles grow the two agree.  Measured on digits blurred by
an unknown kernel, populations of 32 to 48: evidences 2 to 10 nats apart, intervals of equal shares cover 85 to 92%, of
shares by evidence 64 to 75%.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import retrodict as rd
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.particles import ess

#: Between the seeds of populations.
APART = 1_000_003


@dataclass(frozen=True)
class Restored:
    """What is believed of one image.

    Attributes:
        x: particles ``(n, *shape)`` in the user's units, on the CPU; weights: ``(n,)`` float64, of sum 1.
        ess: effective sample size of each population at its end; populations: effective number of them, were they
            weighted by their evidence.  Far below their number it says that they need more particles.
        log_evidence: of the measurement; None without weights.
        correction: "weighted" or "none"; method: in words.
    """

    x: Tensor
    weights: Tensor
    ess: list[float]
    populations: float
    log_evidence: float | None
    correction: str
    method: str

    @property
    def mean(self) -> Tensor:
        """Posterior mean ``shape``."""
        return torch.tensordot(self.weights.to(self.x), self.x, dims=1)

    @property
    def spread(self) -> Tensor:
        """Posterior standard deviation of each pixel ``shape``."""
        return torch.tensordot(self.weights.to(self.x), (self.x - self.mean) ** 2, dims=1).sqrt()

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Central interval of each pixel by weighted quantiles, rounded outwards to values that occur."""
        values, order = self.x.flatten(1).sort(0)
        share = self.weights[order]
        below = share.cumsum(0) - 0.5 * share
        bounds = []
        for q, outwards in (((1 - level) / 2, 1), ((1 + level) / 2, 0)):
            at = ((below < q).sum(0) - outwards).clamp(0, len(values) - 1)
            bounds.append(values.gather(0, at[None])[0].reshape(self.x.shape[1:]))
        return bounds[0], bounds[1]

    def covers(self, truth: Tensor, level: float = 0.9) -> Tensor:
        """Where a known truth ``shape`` lies within the interval."""
        low, high = self.interval(level)
        return (low <= truth) & (truth <= high)

    def draws(self, n: int, seed: int = 0) -> Tensor:
        """n equally weighted draws ``(n, *shape)``."""
        noise = KeyedNoise(seed, n, dtype=torch.float64).stream("draws")
        return self.x[noise.categorical(self.weights.log().expand(n, -1))]


def restore(
    denoiser: Denoiser,
    y: Tensor,
    operator: Any,
    noise: float,
    *,
    method: str = "auto",
    populations: int = 4,
    particles: int = 64,
    steps: int = 40,
    seed: int = 0,
    **options: Any,
) -> Restored:
    """The posterior of a state given ``y (*output)`` or ``(1, *output)``; operator and noise are known.

    Args:
        method, options: as in `rd.condition`; populations, particles: how many, and how large; steps: of the plan.
    """
    steered = rd.condition(denoiser, rd.Measurement(y, operator, noise=noise), method=method, **options)
    runs = [
        rd.sample(steered, particles, steps=steps, seed=seed + APART * p, progress=False) for p in range(populations)
    ]
    correction = runs[0].correction
    evidence = torch.zeros(populations, dtype=torch.float64)
    if correction == "weighted":
        evidence = torch.stack([_evidence(run) for run in runs])
    return Restored(
        torch.cat([run.x for run in runs]).cpu(),
        torch.cat([run.weights.double().cpu() for run in runs]) / populations,
        [float(ess(run.log_weights)) for run in runs],
        float(ess(evidence)),
        float(torch.logsumexp(evidence, 0) - math.log(populations)) if correction == "weighted" else None,
        correction,
        steered.method,
    )


def _evidence(run: rd.Samples) -> Tensor:
    assert run.log_evidence is not None
    return run.log_evidence.double().squeeze().cpu()
