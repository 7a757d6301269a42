"""What `sample` returns: draws, their weights, and the story of how they came about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retrodict.core.noise import KeyedNoise
from retrodict.particles import ess, resample_indices
from retrodict.solvers import Plan


@dataclass
class Trajectory:
    """Where a run has been.

    Attributes:
        times: of every evaluation, and of the end ``(nfe + 1,)``.
        x: states ``(nfe + 1, n, *shape)``; mean: what was believed of the clean end there, same shape (for tokens
            the most probable token).
    """

    times: list[float]
    x: Tensor
    mean: Tensor


@dataclass
class Samples:
    """Samples from `sample`.

    Attributes:
        x: ``(n, *shape)`` in the user's units.
        log_weights: ``(n,)`` float64, zero where samples are not weighted.
        log_evidence: ``(populations,)``, log of the normalising constant, where it was estimated.
        ess: effective sample size of each population at the end.
        correction: "exact" (the plan samples the model's own law), "weighted" (steered, and the weights repair
            the bias) or "none" (steered, unweighted: pretty, and biased).
        nfe: denoiser evaluations per sample; passes: network passes per sample, two an evaluation under guidance.
        rounds: network calls that had to wait for each other; fewer than nfe where the run was parallel.
        plan: the plan that ran; method: of a conditioned denoiser, how its goals steered, in words.
    """

    x: Tensor
    plan: Plan
    nfe: int
    passes: int
    correction: str = "exact"
    log_weights: Tensor = field(default_factory=lambda: torch.zeros(0))
    log_evidence: Tensor | None = None
    ess: Tensor | None = None
    ess_trace: Tensor | None = None
    trajectory: Trajectory | None = None
    rounds: int = 0
    method: str = ""

    def __post_init__(self) -> None:
        self.rounds = self.rounds or self.nfe
        if len(self.log_weights) != len(self.x):
            self.log_weights = torch.zeros(len(self.x), dtype=torch.float64, device=self.x.device)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def weights(self) -> Tensor:
        """Normalised weights ``(n,)``: each population has the same share."""
        groups = 1 if self.ess is None else len(self.ess)
        return (torch.softmax(self.log_weights.view(groups, -1), -1) / groups).flatten()

    def mean(self, f: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """The weighted mean of ``f(x)``; f maps ``(n, *shape)`` to ``(n, ...)``."""
        values = f(self.x)
        values = values if values.is_floating_point() else values.double()
        weights = self.weights.to(values.dtype)
        return torch.tensordot(weights, values, dims=1)

    def draws(self, m: int, seed: int = 0) -> Tensor:
        """m equally weighted draws, by systematic resampling of the weights."""
        noise = KeyedNoise(seed, [0], dtype=torch.float64).stream("draws")
        repeats = -(-m // len(self))
        log_w = self.weights.log().unsqueeze(0)
        picks = torch.cat([resample_indices("systematic", log_w, noise)[0] for _ in range(repeats)])
        order = torch.randperm(len(picks), generator=torch.Generator().manual_seed(seed)).to(picks.device)
        return self.x[picks[order[:m]]]

    def __repr__(self) -> str:
        shape = "x".join(str(s) for s in self.x.shape[1:])
        parts = [f"{len(self)} of shape {shape}", f"{self.nfe} evaluations", f"correction={self.correction!r}"]
        if self.method:
            parts.append(f"method={self.method!r}")
        if self.correction == "weighted" and self.ess is not None:
            size = len(self) // len(self.ess)
            parts.append(f"ess {float(ess(self.log_weights.view(-1, size)).mean()):.0f} of {size}")
        return f"Samples({', '.join(parts)})"
