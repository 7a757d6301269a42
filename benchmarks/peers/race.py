"""Many samplers on one problem at one budget: heats on a few starts, then the finalists on all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from peers.problem import Problem


class Runner(Protocol):
    """`problem.Peer` or `ours.Ours`."""

    @property
    def name(self) -> str: ...

    def run(self, problem: Problem, passes: int) -> Tensor | None: ...


@dataclass(frozen=True, eq=False)
class Finish:
    """A finalist: its errors on all starts ``(n,)`` and the passes it used."""

    runner: Runner
    errors: Tensor
    passes: int

    @property
    def rms(self) -> float:
        """Root mean square distance to the reference."""
        return rms(self.errors)


def rms(errors: Tensor) -> float:
    return float(errors.square().mean().sqrt())


def run(runner: Runner, problem: Problem, passes: int) -> Finish | None:
    """One sampler at a budget; None where it cannot run or its result is not finite.

    Raises:
        AssertionError: it used more network passes than it was given.
    """
    problem.passes = 0
    try:
        x = runner.run(problem, passes)
    except (ValueError, AssertionError, IndexError, ZeroDivisionError):  # flags that a library refuses together
        return None
    if x is None or not bool(torch.isfinite(x).all()):
        return None
    assert problem.passes <= passes, f"{runner.name} made {problem.passes} network passes of {passes}"
    return Finish(runner, problem.errors(x), problem.passes)


def race(
    runners: Sequence[Runner], problem: Problem, passes: int, heats: Sequence[tuple[int, int]] = ()
) -> tuple[list[Finish], dict[str, float]]:
    """``(finalists, best first; error of every runner in its last heat)``.

    Args:
        heats: ``(starts, survivors)`` of each heat before the final on all starts; the first of every library
            survives too.
    """
    errors: dict[str, float] = {}
    left = list(runners)
    for starts, survivors in (*heats, (len(problem.noise), len(left))):
        heat = [f for r in left if (f := run(r, problem.first(starts), passes)) is not None]
        heat.sort(key=lambda f: f.rms)
        errors |= {f.runner.name: f.rms for f in heat}
        kept = firsts(heat)
        left = [f.runner for i, f in enumerate(heat) if i < survivors or f in kept]
    return heat, errors


def firsts(heat: Sequence[Finish]) -> list[Finish]:
    """The best of each library, in the order of the heat."""
    best: dict[str, Finish] = {}
    for finish in heat:
        best.setdefault(getattr(finish.runner, "library", "retrodict"), finish)
    return list(best.values())


def ratio_interval(ours: Finish, theirs: Sequence[Finish], resamples: int = 4000, seed: int = 0) -> tuple[float, float]:
    """95% interval of our error over the best of theirs, by a bootstrap that resamples starts for all alike.

    The best of theirs is chosen anew in each resample, so that its luck in being chosen does not count for us.
    """
    n = len(ours.errors)
    pick = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))
    best = torch.full((resamples,), math.inf, dtype=torch.float64)
    for finish in theirs:
        best = torch.minimum(best, finish.errors.square()[pick].mean(1).sqrt())
    ratios = (ours.errors.square()[pick].mean(1).sqrt() / best).numpy()
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)
