"""Restart: an ODE solver that goes back up and comes down again (Xu et al. 2023).

When the main grid reaches the bottom of an interval of noise levels, the state is noised up to its top by the forward
process and solved down to the bottom again, K times:

    x_up = (alpha_up/alpha) x + sqrt(sigma_up^2 - (alpha_up/alpha)^2 sigma^2) z,     then the plan from up to down

Whatever error the state had, each round contracts it: on Gaussian data of variance c an error of the mean falls by
``sqrt((c + rho^2)/(c + rho_up^2))``, rho = sigma/alpha, while the round itself adds the small error of a short solve.
The rounds are unrolled rows: time goes up by one noise row, and no history passes a jump.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from retrodict.core.errors import InputError, require
from retrodict.solvers.builder import Builder
from retrodict.solvers.registry import solver, solvers
from retrodict.solvers.weights import Levels

_ROUNDS = "a round takes its own number of steps, whatever the grid's"


@solver(
    "restart",
    order=None,
    grid="karras",
    claims=("constant", "variance"),
    without={"order": _ROUNDS, "variance": "with s_noise other than 1 more noise is added than the level asks for"},
)
def restart(
    b: Builder,
    intervals: Sequence[Sequence[float]] = ((0.06, 0.3, 2, 4),),
    inner: str = "heun",
    inner_options: dict[str, Any] | None = None,
    s_noise: float = 1.0,
) -> int:
    """Restart sampling (Xu et al. 2023, algorithm 1) around any deterministic solver.

    Args:
        intervals: ``(bottom, top, rounds, levels)`` in units of sigma/alpha: a round goes up to ``top`` and down over
            that many levels (one step fewer), spaced as ``karras``.  The bottom is moved to the nearest level of the
            grid; an interval with no level below its top, or whose top is beyond the path, is left out.
        inner, inner_options: the solver of the main grid and of the rounds.
        s_noise: factor on the noise that goes up; above 1 it makes up for networks that remove too much.

    Published settings: CIFAR-10 ((.06, .3, 2 to 20, 3),) on 18 steps; ImageNet-64 ((19.35, 40.79, 1, 4), (1.09, 1.92,
    1, 4), (.59, 1.09, 5, 4), (.3, .59, 5, 4), (.06, .3, 6, 6)) on 36.  The official code keeps one interval a level and
    drops others that snap to it, and adds no noise at its own default of s_noise; here all are run, with noise.
    """
    entry = solvers[inner]
    if entry.generate is restart or entry.eta == "always" or "bridge" in entry.claims or entry.discrete:
        raise InputError(f"restart runs a deterministic solver of Gaussian paths, got {inner!r}")
    require(s_noise > 0, f"s_noise is positive, got {s_noise}")
    words = entry.check_options(inner_options or {})
    jumps = _jumps(b, intervals)
    x, at = 0, 0
    for stop in sorted({*jumps, b.n}):
        if stop > at:
            x, at = _solve(b, x, np.arange(at, stop + 1), entry, words), stop
        for top, rounds, levels in jumps.get(stop, []):
            x = _rounds(b, x, stop, top, rounds, levels, s_noise, entry, words)
    return x


def _jumps(b: Builder, intervals: Sequence[Sequence[float]]) -> dict[int, list[tuple[float, int, int]]]:
    """``level -> [(top, rounds, levels)]``: bottoms moved to the nearest noisy level, in the order given."""
    with np.errstate(divide="ignore"):
        log_rho = np.where(b.levels.sigma[1:] > 0, -b.levels.lam[1:], np.inf)
    highest = -float(b.path.log_snr(1.0))
    jumps: dict[int, list[tuple[float, int, int]]] = {}
    for entry in intervals:
        require(len(entry) == 4, f"an interval is (bottom, top, rounds, levels), got {tuple(entry)}")
        bottom, top, rounds, levels = float(entry[0]), float(entry[1]), int(entry[2]), int(entry[3])
        require(0 < bottom < top, f"an interval has 0 < bottom < top, got {bottom} and {top}")
        require(rounds >= 0 and levels >= 2, f"rounds >= 0 and levels >= 2 are needed, got {rounds} and {levels}")
        nearest = int(np.argmin(np.abs(log_rho - math.log(bottom))))
        if rounds and log_rho[nearest] < math.log(top) <= highest:
            jumps.setdefault(nearest + 1, []).append((top, rounds, levels))
    return jumps


def _rounds(
    b: Builder, x: int, bottom: int, top: float, rounds: int, levels: int, s_noise: float, entry: Any, words: Any
) -> int:
    """Up to ``top`` and down again, several times."""
    lowest = math.exp(-b.levels.lam[bottom])
    rho = np.linspace(top ** (1 / 7), lowest ** (1 / 7), levels)[:-1] ** 7
    nodes = np.append(b.add_levels(-np.log(rho)), bottom)
    up, L = int(nodes[0]), b.levels
    carry = L.alpha[up] / L.alpha[bottom]
    noise = L.alpha[up] * s_noise * math.sqrt(top**2 - lowest**2)
    for _ in range(rounds):
        x = _solve(b, b.row(up, {x: carry}, z=noise), nodes, entry, words)
    return x


def _solve(b: Builder, x: int, nodes: np.ndarray, entry: Any, words: Any) -> int:
    """The solver over some levels, as a part of its own."""
    part = Builder(b.process, Levels(*(getattr(b.levels, name)[nodes] for name in ("t", "alpha", "sigma", "lam"))))
    return b.include(x, part, entry.generate(part, **words), int(nodes[-1]))
