"""The samplers of the k-diffusion family, written from their published updates in ``y = x/alpha``, ``s = sigma/alpha``.

With the denoised ``D(y, s)``, the slope ``d = (y - D)/s`` and ``t = -log s``:

==========  =======================================================  =========================================
euler       y + (s' - s) d                                           Karras et al. 2022, algorithm 1 without lines 6-8
heun        the mean of both slopes                                  the same, algorithm 1
dpm_2       the slope at the geometric mean of s and s'              DPM-Solver-2, Lu et al. 2022
lms         Adams-Bashforth in s, order 4                            Liu et al. 2022 on uneven steps
ipndm       Adams-Bashforth weights of equal steps on d              Liu et al. 2022; Zhang and Chen 2023
dpmpp_2s    (s'/s) y - expm1(-h) D at t + h/2                        DPM-Solver++(2S)
dpmpp_2m    the same with D extrapolated from two steps              DPM-Solver++(2M)
==========  =======================================================  =========================================

The grids are those that the family's interfaces offer; the last level is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from scipy.stats import beta as beta_law
from torch import Tensor

from peers.problem import Peer, Problem

Denoised = Callable[[Tensor, float], Tensor]


# -- samplers: a denoiser, a state and levels in, a state out -------------------------------------------------------


def euler(f: Denoised, y: Tensor, levels: np.ndarray) -> Tensor:
    for s, t in pairwise(levels):
        y = y + (t - s) * (y - f(y, s)) / s
    return y


def heun(f: Denoised, y: Tensor, levels: np.ndarray) -> Tensor:
    for s, t in pairwise(levels):
        d = (y - f(y, s)) / s
        ahead = y + (t - s) * d
        y = ahead if t == 0 else y + (t - s) * (d + (ahead - f(ahead, t)) / t) / 2
    return y


def dpm_2(f: Denoised, y: Tensor, levels: np.ndarray) -> Tensor:
    for s, t in pairwise(levels):
        d = (y - f(y, s)) / s
        if t == 0:
            return y - s * d
        m = math.sqrt(s * t)
        half = y + (m - s) * d
        y = y + (t - s) * (half - f(half, m)) / m
    return y


def lms(f: Denoised, y: Tensor, levels: np.ndarray, order: int = 4) -> Tensor:
    slopes: list[Tensor] = []
    for i, (s, t) in enumerate(pairwise(levels)):
        slopes = [(y - f(y, s)) / s, *slopes][:order]
        nodes = levels[i::-1][: len(slopes)]
        y = y + sum(w * d for w, d in zip(_adams(nodes, s, t), slopes))
    return y


def _adams(nodes: np.ndarray, s: float, t: float) -> Iterator[float]:
    """Integrals over [s, t] of the Lagrange basis polynomials of the nodes."""
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        integral = np.polyint(np.atleast_1d(np.poly(others)) / np.prod(node - others))
        yield float(np.polyval(integral, t) - np.polyval(integral, s))


_EQUAL_STEPS = {1: [1.0], 2: [1.5, -0.5], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}


def ipndm(f: Denoised, y: Tensor, levels: np.ndarray, order: int = 4) -> Tensor:
    slopes: list[Tensor] = []
    for s, t in pairwise(levels):
        slopes = [(y - f(y, s)) / s, *slopes][:order]
        y = y + (t - s) * sum(w * d for w, d in zip(_EQUAL_STEPS[len(slopes)], slopes))
    return y


def dpmpp_2s(f: Denoised, y: Tensor, levels: np.ndarray) -> Tensor:
    for s, t in pairwise(levels):
        D = f(y, s)
        if t == 0:
            return D
        m = math.sqrt(s * t)
        half = m / s * y + (1 - m / s) * D
        y = t / s * y + (1 - t / s) * f(half, m)
    return y


def dpmpp_2m(f: Denoised, y: Tensor, levels: np.ndarray) -> Tensor:
    old, before = None, math.nan
    for s, t in pairwise(levels):
        D = f(y, s)
        if t == 0:
            return D
        ahead = D
        if old is not None:
            r = math.log(before / s) / math.log(s / t)
            ahead = (1 + 1 / (2 * r)) * D - old / (2 * r)
        y = t / s * y + (1 - t / s) * ahead
        old, before = D, s
    return y


#: name -> (sampler, passes of a step); the last step of the two-pass samplers takes one
SAMPLERS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "euler": (euler, 1),
    "heun": (heun, 2),
    "dpm_2": (dpm_2, 2),
    "lms": (lms, 1),
    "ipndm": (ipndm, 1),
    "dpmpp_2s": (dpmpp_2s, 2),
    "dpmpp_2m": (dpmpp_2m, 1),
}


# -- grids: positive levels in falling order ------------------------------------------------------------------------


def karras(problem: Problem, n: int, low: float, high: float, rho: float = 7.0) -> np.ndarray:
    return np.linspace(high ** (1 / rho), low ** (1 / rho), n) ** rho


def exponential(problem: Problem, n: int, low: float, high: float) -> np.ndarray:
    return np.geomspace(high, low, n)


def polyexponential(problem: Problem, n: int, low: float, high: float, rho: float = 0.7) -> np.ndarray:
    return np.exp(np.linspace(1, 0, n) ** rho * math.log(high / low) + math.log(low))


def linear(problem: Problem, n: int, low: float, high: float) -> np.ndarray:
    """Uniform in the model's time."""
    ends = [float(problem.path.time_at(-math.log(s))) for s in (high, low)]
    return _at(problem, np.linspace(*ends, n))


def sgm_uniform(problem: Problem, n: int, low: float, high: float) -> np.ndarray:
    """Uniform in the model's time, without the last level before zero."""
    return linear(problem, n + 1, low, high)[:-1]


def beta(problem: Problem, n: int, low: float, high: float, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """Quantiles of a beta law in the model's time (Lee et al. 2024)."""
    ends = [float(problem.path.time_at(-math.log(s))) for s in (low, high)]
    share = beta_law.ppf(1 - np.linspace(0, 1, n, endpoint=False), a, b)
    return _at(problem, ends[0] + (ends[1] - ends[0]) * share)


def _at(problem: Problem, times: np.ndarray) -> np.ndarray:
    return np.exp(-problem.path.log_snr(torch.from_numpy(times)).numpy())


GRIDS: dict[str, Callable[..., np.ndarray]] = {
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "linear": linear,
    "sgm_uniform": sgm_uniform,
    "beta": beta,
}


# -- peers ----------------------------------------------------------------------------------------------------------


def sigma_peers(problem: Problem) -> list[Peer]:
    """Every sampler on every grid; the smallest level is the path's own, EDM's, latent diffusion's, or larger."""
    peers = []
    for sampler in SAMPLERS:
        for grid in GRIDS:
            free = grid in ("karras", "exponential", "polyexponential")
            for low in ("path", 0.002, 0.0292, 0.1) if free else ("path",):
                for high in ("path",) if math.isfinite(problem.rho_max) else (80.0,):
                    flags = {"grid": grid, "sigma_min": low, "sigma_max": high}
                    peers.append(Peer("k-diffusion", sampler, flags, partial(_run, sampler, grid, low, high)))
    return peers


def _run(sampler: str, grid: str, low: float | str, high: float | str, problem: Problem, passes: int) -> Tensor:
    function, cost = SAMPLERS[sampler]
    n = (passes + 1) // 2 if cost == 2 else passes
    bottom = problem.rho_min if low == "path" else float(low)
    top = problem.rho_max if high == "path" else float(high)
    levels = GRIDS[grid](problem, n, bottom, top)
    if n == 1:
        levels = levels[:1]
    return function(lambda y, s: problem.mean(y, 1.0, s), problem.noise * levels[0], np.append(levels, 0.0))
