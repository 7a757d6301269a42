"""The demonstration's section on inference: predators that nobody saw.

The diffusion of Lotka and Volterra in logarithms, of which the prey alone is seen, with noise, at intervals:

    d log prey = (1 - exp(log predators)) dt + .2 dW        d log predators = (exp(log prey) - 1) dt + .2 dW'

Replicates are simulated with the same Euler steps that inference takes, so that their truth is known and the bands
can be counted: a 90% band covers the truth nine times in ten, for the coordinate that is seen and for the other one.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

import retrodict as rd
from retrodict.app.report import Code, LineChart, Section, Series, Text
from retrodict.kernels import Gaussian, LinearGaussian

REPLICATES, TIMES, STEPS, PARTICLES = 32, 36, 10, 400
APART, NOISE, LEVEL = 0.25, 0.2, 0.9
NAMES = ("log prey, seen with noise", "log predators, never seen")


def model() -> rd.SDE:
    """Predators and prey; the prey is seen with noise."""

    def drift(x: Tensor, t: Any) -> Tensor:
        prey, predators = x.exp().unbind(-1)
        return torch.stack((1 - predators, prey - 1), -1)

    one = torch.eye(2, dtype=torch.float64)
    seen = LinearGaussian(one[:1], torch.zeros(1, dtype=torch.float64), NOISE**2 * one[:1, :1])
    start = Gaussian(torch.tensor([[0.0, 0.5]], dtype=torch.float64), 0.09 * one[None])
    return rd.SDE(drift, [0.2, 0.2], start, observation=seen)


def measure(seed: int = 0) -> dict[str, Any]:
    """Smooth all replicates; the first one in full, and how often bands cover the truth."""
    begun = time.perf_counter()
    sde, times = model(), APART * torch.arange(1, TIMES + 1, dtype=torch.float64)
    truth = sde.sample(REPLICATES, times, steps=STEPS, seed=seed).x[:, 0]
    noise = torch.randn(REPLICATES, TIMES, 1, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    y = truth[..., :1] + NOISE * noise
    y[:, 16:22] = float("nan")  # nobody looked
    post = rd.condition(sde, rd.Observed(y, times=times), steps=STEPS, particles=PARTICLES, rounds=3, seed=seed)
    laws = post.smooth()
    low, high = laws.interval(LEVEL)
    inside = ((truth > low) & (truth < high)).double().mean(1)  # (replicates, 2)
    assert laws.mean is not None and post.ess is not None and post.log_evidence_se is not None
    first = {"truth": truth[0], "mean": laws.mean[0], "low": low[0], "high": high[0], "y": y[0, :, 0]}
    return {
        "seconds": time.perf_counter() - begun,
        "times": times.tolist(),
        "first": {name: [_or_none(v) for v in value.flatten().tolist()] for name, value in first.items()},
        "coverage": inside.mean(0).tolist(),
        "coverage_se": (inside.std(0) / math.sqrt(REPLICATES)).tolist(),
        "ess": [float(v) for v in post.ess.quantile(torch.tensor([0.0, 0.5], dtype=torch.float64))],
        "log_evidence": float(post.log_evidence[0]),
        "log_evidence_se": float(post.log_evidence_se[0]),
    }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def section(found: dict[str, Any]) -> Section:
    """Truth, bands, coverage, effective sample size and evidence."""
    covered = [
        f"{share:.1%} (95% interval {share - 1.96 * se:.1%} to {share + 1.96 * se:.1%})"
        for share, se in zip(found["coverage"], found["coverage_se"])
    ]
    text = Text(
        f"Over {REPLICATES} replicates of {TIMES} times, the {LEVEL:.0%} bands cover {covered[0]} of the seen states "
        f"and {covered[1]} of those never seen; the intervals count replicates, not times. The {PARTICLES} weighted "
        f"paths of a replicate are worth {found['ess'][1]:.0f} independent ones in the median, {found['ess'][0]:.0f} "
        f"at worst. The log evidence of the one shown is {found['log_evidence']:.2f} ± "
        f"{1.96 * found['log_evidence_se']:.2f}. Smoothing all of them took {found['seconds']:.1f} s."
    )
    charts = [_chart(found, j) for j in (0, 1)]
    lead = "A diffusion of predators and prey, of which only the prey is counted, with a gap: the path behind the data."
    return Section("Hidden paths", [*charts, text, Code(_REPRODUCE)], lead=lead)


def _chart(found: dict[str, Any], j: int) -> LineChart:
    t, first = found["times"], found["first"]
    pick = {name: [float("nan") if v is None else v for v in values] for name, values in first.items()}
    mean, low, high, truth = (pick[name][j::2] for name in ("mean", "low", "high", "truth"))
    lines = [Series(f"smoothed, {LEVEL:.0%} band", t, mean, low, high), Series("truth", t, truth)]
    lines += [] if j else [Series("seen", t, pick["y"], points=True)]
    return LineChart(NAMES[j], "time", NAMES[j].partition(",")[0], lines)


_REPRODUCE = """\
import retrodict as rd
from retrodict.app import hidden

post = rd.condition(hidden.model(), rd.Observed(y, times=times), steps=10, particles=400, rounds=3)
post.smooth().mean, post.smooth().interval(.9), post.ess, post.log_evidence
"""
