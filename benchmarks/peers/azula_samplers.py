"""azula's samplers on azula's own schedules.

azula's denoisers do not depend on the schedule's scale, so each schedule is a grid: uniform in its time, from the
problem's noisiest level to its smallest.  Its samplers stop at that level, without a last denoising.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from peers.problem import Peer, Problem

_STEP_PASSES = {"HeunSampler": 2}


def azula_peers(problem: Problem) -> list[Peer]:
    """Every deterministic sampler on every schedule.

    Raises:
        ImportError: azula is not installed.
    """
    import azula.noise
    import azula.sample  # noqa: F401

    samplers: list[tuple[str, dict[str, Any]]] = [("EulerSampler", {}), ("HeunSampler", {})]
    for name in ("zABSampler", "vABSampler", "zEABSampler", "xEABSampler", "REABSampler"):
        samplers += [(name, {"order": order}) for order in (2, 3, 4)]
    schedules: list[tuple[str, dict[str, Any]]] = [("process", {})]
    schedules += [
        (name, {"sigma_min": low})
        for name in ("VPSchedule", "CosineSchedule", "RectifiedSchedule", "DecaySchedule")
        for low in (1e-3, 1e-2)
    ]
    return [
        Peer(
            "azula",
            sampler,
            {"schedule": schedule, **words, **options},
            partial(_run, sampler, options, schedule, words),
        )
        for sampler, options in samplers
        for schedule, words in schedules
    ]


def _run(
    sampler: str, options: dict[str, Any], schedule: str, words: dict[str, Any], problem: Problem, passes: int
) -> Tensor | None:
    import azula.sample
    from azula.denoise import Denoiser, DiracPosterior

    levels, stop = _schedule(schedule, words, problem)

    class Mean(Denoiser):
        """The problem as azula sees it."""

        def __init__(self) -> None:
            super().__init__()
            self.schedule = levels

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
            alpha, sigma = levels(t)
            return DiracPosterior(problem.mean(x_t, float(alpha), float(sigma)))

    steps = passes // _STEP_PASSES.get(sampler, 1)
    if steps < 1:
        return None
    made = getattr(azula.sample, sampler)(
        Mean(), start=1.0, stop=stop, steps=steps, silent=True, dtype=torch.float64, **options
    )
    start, end = (levels(torch.tensor(t, dtype=torch.float64)) for t in (1.0, stop))
    return made(problem.noise * start[1]) / end[0]


def _schedule(name: str, words: dict[str, Any], problem: Problem) -> tuple[Any, float]:
    """``(time -> (alpha, sigma), where to stop)``; azula's own begin at the problem's level, 1/1000 if it has none."""
    if name == "process":
        path = problem.path
        return (lambda t: (path.alpha(t), path.sigma(t))), max(path.t_min, 1e-3)
    import azula.noise

    lowest = 1 / problem.rho_max if math.isfinite(problem.rho_max) else 1e-3
    return getattr(azula.noise, name)(alpha_min=lowest, **words), 0.0
