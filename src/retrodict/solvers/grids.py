"""Grids: where in time a plan evaluates.

A grid is a small object that turns (path, number of steps, start, end) into decreasing times.  Grids that live in
lambda cannot reach sigma = 0; the last step then goes from the path's smallest time to the clean end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import torch

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.registry import Registry
from retrodict.processes import GaussianPath, Process
from retrodict.solvers.weights import Levels

grids: Registry[type[Grid]] = Registry("grid")

# Below this share of the noise a signal is lost in float64: such a level counts as alpha = 0, which the end of the
# cosine path is but for the rounding of cos(pi/2).
_NO_SIGNAL = 1e-12


@dataclass(frozen=True)
class Grid:
    """Base: a placement of n + 1 times.  ``reaches_zero`` says whether it can end at sigma = 0 itself."""

    reaches_zero = True
    name = "grid"

    def times(self, path: Any, n: int, start: float, end: float) -> np.ndarray:
        """``n + 1`` times from start to end."""
        raise NotImplementedError

    def config(self) -> Any:
        """A name, or a name with options."""
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = {k: v for k, v in options.items() if v != type(self).__dataclass_fields__[k].default}
        return {"name": self.name, **changed} if changed else self.name


G = TypeVar("G", bound=Grid)


def _named(name: str) -> Callable[[type[G]], type[G]]:
    def add(cls: type[G]) -> type[G]:
        cls.name = name
        grids.add(name, value=cls)
        return cls

    return add


@_named("uniform")
@dataclass(frozen=True)
class Uniform(Grid):
    """Uniform in t^(1/power); power 2 is "quadratic" (denser near the data)."""

    power: float = 1.0

    def times(self, path: Any, n: int, start: float, end: float) -> np.ndarray:
        times = np.linspace(start ** (1 / self.power), end ** (1 / self.power), n + 1) ** self.power
        times[0], times[-1] = start, end
        return times


@_named("quadratic")
@dataclass(frozen=True)
class Quadratic(Uniform):
    """t = u^2 with u uniform."""

    power: float = 2.0


@_named("arcsine")
@dataclass(frozen=True)
class ArcSine(Grid):
    """t = sin^2 of a uniform angle: dense at both ends, for paths whose noise vanishes at both."""

    def times(self, path: Any, n: int, start: float, end: float) -> np.ndarray:
        times = np.sin(np.linspace(np.arcsin(np.sqrt(start)), np.arcsin(np.sqrt(end)), n + 1)) ** 2
        times[0], times[-1] = start, end
        return times


@dataclass(frozen=True)
class _InLevel(Grid):
    """Uniform in a function of lambda."""

    def forward(self, lam: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def inverse(self, value: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def times(self, path: GaussianPath, n: int, start: float, end: float) -> np.ndarray:
        first, last = self.limits(path, start, end)
        with np.errstate(divide="ignore"):
            ends = self.forward(np.array([first, last]))
            lam = self.inverse(np.linspace(ends[0], ends[1], n + 1))
        times = path.time_at(torch.from_numpy(lam)).numpy().copy()
        times[0], times[-1] = start, end
        return times

    def limits(self, path: GaussianPath, start: float, end: float) -> tuple[float, float]:
        """lambda at both ends of the grid."""
        return float(path.log_snr(start)), float(path.log_snr(end))


@dataclass(frozen=True)
class _InFiniteLevel(_InLevel):
    reaches_zero = False

    def limits(self, path: GaussianPath, start: float, end: float) -> tuple[float, float]:
        return path.log_snr_range(start, end)


@_named("logsnr")
@dataclass(frozen=True)
class LogSNR(_InFiniteLevel):
    """Uniform in lambda (Lu et al. 2022)."""

    def forward(self, lam: np.ndarray) -> np.ndarray:
        return lam

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return value


grids.add("exponential", value=LogSNR)  # k-diffusion's name: geometric in sigma


@_named("karras")
@dataclass(frozen=True)
class Karras(_InFiniteLevel):
    """Uniform in (sigma/alpha)^(1/rho) (Karras et al. 2022, eq. (5))."""

    rho: float = 7.0

    def forward(self, lam: np.ndarray) -> np.ndarray:
        return np.exp(-lam / self.rho)

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return -self.rho * np.log(value)


@_named("flow")
@dataclass(frozen=True)
class Flow(_InLevel):
    """Uniform in the linear path's time u = sigma/(alpha + sigma), shifted: lambda' = lambda - log(shift).

    ``shift`` is the resolution shift of flow models, sigma' = m sigma/(1 + (m - 1) sigma) (Esser et al. 2024).
    """

    shift: float = 1.0

    def forward(self, lam: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(np.clip(lam + np.log(self.shift), -700, 700)))

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return np.log1p(-value) - np.log(value) - np.log(self.shift)


@_named("angle")
@dataclass(frozen=True)
class Angle(_InLevel):
    """Uniform in theta = atan(sigma/alpha): "cosine" spacing of the variance-preserving path."""

    def forward(self, lam: np.ndarray) -> np.ndarray:
        return np.arctan(np.exp(-lam))

    def inverse(self, value: np.ndarray) -> np.ndarray:
        return -np.log(np.tan(value))


grids.add("cosine", value=Angle)


@dataclass(frozen=True)
class _Discrete(Grid):
    """Timesteps of a table of N levels, level n at t = (n + 1)/N; the last step goes to the clean end."""

    levels: int = 0
    reaches_zero = False

    def indices(self, N: int, n: int) -> np.ndarray:
        raise NotImplementedError

    def times(self, path: Any, n: int, start: float, end: float) -> np.ndarray:
        N = self.levels or getattr(path, "levels", None) or 1000
        if start != 1.0:
            raise InputError("discrete grids start at t = 1; give times for another start")
        return (self.indices(N, n + 1) + 1) / N


@_named("leading")
@dataclass(frozen=True)
class Leading(_Discrete):
    """Steps 0, k, 2k, ... with k = N // n, plus ``offset`` (Ho et al. 2020; it never sees the last level)."""

    offset: int = 0

    def indices(self, N: int, n: int) -> np.ndarray:
        return (np.arange(n) * (N // n))[::-1] + self.offset


@_named("linspace")
@dataclass(frozen=True)
class Linspace(_Discrete):
    """n levels evenly from 0 to N - 1, rounded."""

    def indices(self, N: int, n: int) -> np.ndarray:
        return np.linspace(0, N - 1, n).round()[::-1]


@_named("trailing")
@dataclass(frozen=True)
class Trailing(_Discrete):
    """N, N - k, ... minus one, with k = N/n (Lin et al. 2024): always sees the last level."""

    def indices(self, N: int, n: int) -> np.ndarray:
        return np.round(np.arange(N, 0, -N / n))[:n] - 1


@_named("times")
@dataclass(frozen=True)
class Times(Grid):
    """The user's own decreasing times."""

    values: tuple[float, ...] = ()

    def times(self, path: Any, n: int, start: float, end: float) -> np.ndarray:
        return np.array(self.values)


def as_grid(grid: Any) -> Grid:
    """A `Grid` from a name, a dict with a name and options, a sequence of times, or a `Grid`."""
    if isinstance(grid, Grid):
        return grid
    if isinstance(grid, str):
        return grids[grid]()
    if isinstance(grid, dict):
        return grids[grid["name"]](
            **{k: tuple(v) if isinstance(v, list) else v for k, v in grid.items() if k != "name"}
        )
    if isinstance(grid, (Sequence, np.ndarray, torch.Tensor)):
        return Times(tuple(float(t) for t in grid))
    raise InputTypeError(f"a grid is a name, a Grid or a sequence of times, got {type(grid).__name__}")


def make_levels(grid: Any, path: Process, steps: int, start: float = 1.0, end: float | None = None) -> Levels:
    """The noise levels of a plan: ``steps`` intervals from ``start`` to ``end`` (None: the clean end, sigma = 0)."""
    grid = as_grid(grid)
    if isinstance(grid, Times):
        times = np.array(grid.values)
        return levels_at(path, times, clean=end is None and times[-1] == 0)
    if isinstance(grid, _Discrete) and end is not None:
        raise InputError(f"grid {grid.name!r} ends at the clean end, not at {end:g}; give times for another end")
    if not isinstance(path, GaussianPath) or not path.scalar:
        if isinstance(grid, _InLevel):
            raise InputError(f"grid {grid.name!r} needs a Gaussian path with scalar coefficients; use 'uniform'")
        return _plain_levels(grid.times(path, steps, start, 0.0 if end is None else end))
    if isinstance(grid, _InLevel) and is_interpolant(path):
        raise InputError(
            f"grid {grid.name!r} needs noise that grows with t; on a path without noise at t = 1 use 'arcsine'"
        )
    if end is not None:
        return levels_at(path, grid.times(path, steps, start, end), clean=False)
    if grid.reaches_zero and noiseless(path, 0.0):
        return levels_at(path, grid.times(path, steps, start, 0.0), clean=True)
    smallest = min(path.t_min, start / 2) if noiseless(path, 0.0) else 0.0
    inner = grid.times(path, steps - 1, start, smallest) if steps > 1 else np.array([start])
    return levels_at(path, np.append(inner, 0.0), clean=True)


def is_interpolant(path: Process) -> bool:
    """Whether a path has two ends and no noise at either, so that log-SNR is no clock."""
    return isinstance(path, GaussianPath) and path.scalar and len(path.ends) == 2 and noiseless(path, 1.0)


def noiseless(path: GaussianPath, t: float) -> bool:
    """Whether sigma(t) = 0, but for rounding."""
    return float(path.sigma(t)) < _NO_SIGNAL


def levels_at(path: Process, times: np.ndarray, clean: bool) -> Levels:
    """Levels at given times; ``clean`` makes the last one (alpha, sigma) = (alpha(0), 0)."""
    check_times(times, clean)
    if not isinstance(path, GaussianPath) or not path.scalar:
        return _plain_levels(times)
    alpha, sigma, lam = (v.copy() for v in path.schedule(times))
    blank = alpha < _NO_SIGNAL * sigma
    alpha[blank], lam[blank] = 0.0, -np.inf
    sigma[sigma < _NO_SIGNAL] = 0.0
    if clean:
        sigma[-1], lam[-1] = 0.0, np.inf
    return Levels(np.asarray(times, dtype=np.float64), alpha, sigma, lam)


def _plain_levels(times: np.ndarray) -> Levels:
    """Times only, for processes without a scalar schedule."""
    nan = np.full(len(times), np.nan)
    return Levels(np.asarray(times, dtype=np.float64), nan, nan, nan)


def check_times(times: np.ndarray, clean: bool = False) -> None:
    """Raise unless times are finite, in [0, 1], and decrease (the clean end may repeat t = 0)."""
    if len(times) < 2:
        raise InputError(f"a grid has at least two times, got {len(times)}")
    if not np.isfinite(times).all() or times.min() < 0 or times.max() > 1:
        raise InputError(f"times lie in [0, 1], t = 0 is data and t = 1 noise; got {times.min():g} to {times.max():g}")
    falls = np.diff(times) < 0
    if clean:
        falls[-1] |= times[-1] == times[-2] == 0
    if not falls.all():
        i = int(np.argmin(falls))
        raise InputError(f"times of a grid decrease; times {i} and {i + 1} are {times[i]:g} and {times[i + 1]:g}")
