"""What a conditioned model says of one series: laws, bands, draws, residuals and the numbers of the summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.app.infer.models import Built
from retrodict.core.errors import InputError
from retrodict.inference import Conditioned, GuidedPosterior, Marginals, Paths

LEVEL = 0.9  # of every band


@dataclass(frozen=True)
class Results:
    """Results of one series of ``seen`` times, and perhaps more times of a forecast.

    Attributes:
        post: the conditioned model.
        laws: smoothed, at the times of the data and of the forecast; fine: at the nodes between too, where known.
        table: ``laws`` as a DataFrame: means, deviations and bands, or probabilities and the mode.
        draws: smoothed paths.
        residuals: ``(N, m)`` in standard deviations; residual_kind says of what.
        ess: effective sample size along the run ``(times, sizes)``, or None where nothing is weighted.
        metrics: the numbers of ``metrics.json``.
    """

    post: Conditioned
    built: Built
    seen: int
    laws: Marginals
    fine: Marginals
    table: Any
    draws: Paths
    residuals: np.ndarray | None
    residual_kind: str
    ess: tuple[np.ndarray, np.ndarray] | None
    metrics: dict[str, Any]


def compute(post: Conditioned, built: Built, draws: int, seed: int, seen: int) -> Results:
    """Ask a conditioned model everything that the folder holds."""
    laws = post.smooth()
    fine = post.smooth(grid=True) if isinstance(post, GuidedPosterior) else laws
    residuals, kind = _residuals(post, built, laws, seen)
    return Results(
        post, built, seen, laws, fine, _table(laws, built, seen), post.sample(draws, seed=seed), residuals, kind,
        _ess(post), _metrics(post, residuals, kind),
    )  # fmt: skip


def _table(laws: Marginals, built: Built, seen: int) -> Any:
    """A DataFrame with a column ``forecast`` that tells the times beyond the data."""
    table = laws.to_pandas()
    if built.finite:
        table.columns = [f"p {name}" for name in built.names]
        table["mode"] = [built.names[int(k)] for k in laws.mode[0]]
    else:
        low, high = laws.interval(LEVEL)
        table.columns = [f"{what} {name}" for what in ("mean", "std") for name in built.names]
        for j, name in enumerate(built.names):
            table[f"low {name}"], table[f"high {name}"] = low[0, :, j].numpy(), high[0, :, j].numpy()
        table = table[[f"{what} {name}" for name in built.names for what in ("mean", "std", "low", "high")]].copy()
    table["forecast"] = [int(k >= seen) for k in range(len(table))]
    return table


def _residuals(post: Conditioned, built: Built, laws: Marginals, seen: int) -> tuple[np.ndarray | None, str]:
    """One-step-ahead errors where the route has them, else what the smoothed law leaves of the data."""
    try:
        return post.residuals()[0, :seen].detach().numpy(), "one step ahead"
    except InputError:
        pass
    if built.emission.moments is None:
        return None, ""
    mean, spread = _seen_mean(built, laws)
    return ((post.data.y[0] - mean) / spread)[:seen].detach().numpy(), "smoothed"


def _seen_mean(built: Built, laws: Marginals) -> tuple[Tensor, Tensor]:
    """Mean of the observation at the smoothed state (for finite states: over their law), and its deviation."""
    assert built.emission.moments is not None
    if laws.probabilities is None:
        assert laws.mean is not None
        return built.emission.moments(laws.mean[0])
    p = laws.probabilities[0]
    mean, spread = built.emission.moments(torch.arange(p.shape[-1]))
    second = p @ (mean.square() + spread.square())
    return p @ mean, (second - (p @ mean).square()).sqrt()


def _ess(post: Conditioned) -> tuple[np.ndarray, np.ndarray] | None:
    """Effective sample size at the nodes of a particle run."""
    run = getattr(post, "run", None)
    if run is None:
        return None
    sizes = run.ess[0].detach().numpy()
    return np.arange(len(sizes), dtype=float), sizes


def _metrics(post: Conditioned, residuals: np.ndarray | None, kind: str) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "method": post.method,
        "route": post.route,
        "exact": post.exact,
        "log_evidence": float(post.log_evidence[0]),
        "log_evidence_se": None if post.log_evidence_se is None else float(post.log_evidence_se[0]),
        "ess": None if post.ess is None else float(post.ess[0]),
    }
    if residuals is not None:
        inside = residuals[np.isfinite(residuals)]
        numbers["residuals"] = {
            "kind": kind,
            "mean": float(inside.mean()),
            "std": float(inside.std()),
            "n": inside.size,
        }
    return numbers
