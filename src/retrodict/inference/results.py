"""`Marginals` and `Paths`: what filters, smoothers and samplers return.

Both keep the batch of series in front and the labels of the user's times beside the numbers; `inference.io` turns
them into pandas, xarray and ArviZ objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.inference.axis import TimeAxis
from retrodict.particles import ess, resample_indices


@dataclass(frozen=True)
class Marginals:
    """Laws of the state (or of the observation) at every time.

    Attributes:
        times: ``(S, N)``, NaN where a shorter series has ended; so are the laws.
        mean: ``(S, N, d)``; None for finite states.
        covariance: ``(S, N, d, d)``; None for finite states.
        probabilities: ``(S, N, K)`` of finite states, else None.
        log_evidence: ``(S,)``; exact: whether only rounding is approximate.
        axis: how times read as labels; single: one series, given without a batch axis.
    """

    times: Tensor
    mean: Tensor | None = None
    covariance: Tensor | None = None
    probabilities: Tensor | None = None
    log_evidence: Tensor | None = None
    exact: bool = True
    axis: TimeAxis = field(default_factory=TimeAxis)
    single: bool = True
    what: str = "state"

    @property
    def std(self) -> Tensor:
        """Standard deviation of each coordinate, ``(S, N, d)``."""
        if self.covariance is None:
            raise InputError("finite states have probabilities and a mode, no standard deviation")
        return self.covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()

    @property
    def mode(self) -> Tensor:
        """The most probable state at each time, ``(S, N)`` with -1 as padding; the mean of a Gaussian law."""
        if self.probabilities is None:
            assert self.mean is not None
            return self.mean
        return torch.where(torch.isnan(self.times), -1, self.probabilities.nan_to_num().argmax(-1))

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Central Gaussian intervals ``(lower, upper)`` of probability ``level``, each ``(S, N, d)``."""
        if not 0 < level < 1:
            raise InputError(f"level is a probability between 0 and 1, got {level}")
        quantile = torch.special.ndtri(torch.tensor(0.5 + level / 2, dtype=torch.float64))
        spread = quantile * self.std
        assert self.mean is not None
        return self.mean - spread, self.mean + spread

    def to_pandas(self) -> Any:
        """A DataFrame indexed by time (series first where there is a batch): means and deviations, or probabilities."""
        from retrodict.inference import io

        return io.marginals_to_pandas(self)

    def to_xarray(self) -> Any:
        """A Dataset over (series, time, coordinate)."""
        from retrodict.inference import io

        return io.marginals_to_xarray(self)

    def plot(self, **options: Any) -> Any:
        """Means with bands, or probabilities over time; the Axes."""
        from retrodict.inference import plots

        return plots.marginals(self, **options)


@dataclass(frozen=True)
class Paths:
    """Weighted draws of hidden paths.

    Attributes:
        x: ``(n, S, N, d)``, or ``(n, S, N)`` integers; NaN (-1) where a shorter series has ended.
        log_weights: ``(n, S)``; equal where draws are exact.
        innovations: what drove each path, where the route has it: equal innovations give equal paths.
        times: ``(S, N)``.
    """

    x: Tensor
    log_weights: Tensor
    times: Tensor
    innovations: Any = None
    axis: TimeAxis = field(default_factory=TimeAxis)
    single: bool = True

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def ess(self) -> Tensor:
        """Effective number of draws, ``(S,)``."""
        return ess(self.log_weights.T)

    @property
    def weights(self) -> Tensor:
        """Weights ``(n, S)`` that sum to one over the draws."""
        return torch.softmax(self.log_weights, 0)

    def mean(self, f: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The weighted mean of ``f(x)`` over the draws; ``f`` keeps the first two axes; by default the path itself."""
        values = self.x if f is None else f(self.x)
        values = values if values.is_floating_point() else values.double()
        weights = self.weights.to(values.dtype)
        return (weights.reshape(*weights.shape, *(1,) * (values.ndim - 2)) * values).sum(0)

    def resample(self, seed: int = 0) -> Paths:
        """As many draws of equal weight, redrawn in proportion to the weights, each series by itself."""
        noise = KeyedNoise(seed, self.x.shape[1], name="resample")
        index = resample_indices("systematic", self.log_weights.T, noise).T  # (n, S)
        columns = torch.arange(self.x.shape[1])
        return replace(self, x=self.x[index, columns], log_weights=torch.zeros_like(self.log_weights), innovations=None)

    def to_xarray(self) -> Any:
        """A Dataset over (draw, series, time, coordinate) with the log-weights."""
        from retrodict.inference import io

        return io.paths_to_xarray(self)

    def to_arviz(self) -> Any:
        """ArviZ InferenceData (draws of unequal weight are resampled first)."""
        from retrodict.inference import io

        return io.to_arviz(self)

    def plot(self, **options: Any) -> Any:
        """Paths over time; the Axes."""
        from retrodict.inference import plots

        return plots.paths(self, **options)
