"""What a pipeline asks for, as the times of a plan: a number of steps, timesteps, sigmas, a shift, a start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from retrodict.core.errors import InputError
from retrodict.denoisers.diffusers.convention import Convention, Flow
from retrodict.processes import GaussianPath
from retrodict.solvers.grids import Times, as_grid, make_levels
from retrodict.solvers.plan import Plan


def own_times(plan: Plan, steps: int) -> tuple[float, ...]:
    """The times of a plan at another number of steps.

    Raises:
        InputError: a plan that was not generated, or was generated on times of its own.
    """
    if steps < 1:
        raise InputError(f"num_inference_steps is an integer of at least 1, got {steps}")
    if steps == plan.steps:
        return plan.times
    grid = as_grid(plan.meta["grid"]) if plan.meta.get("generated") else None
    if grid is None or isinstance(grid, Times):
        kind = "of free coefficients" if grid is None else "on times of its own"
        raise InputError(
            f"a plan {kind} has one length, {plan.steps} steps, and {steps} were asked for; run the pipeline with "
            f"num_inference_steps={plan.steps}, or make the plan with a named grid"
        )
    # a discrete grid never starts at t = 1 itself, and is generated as if it did
    start = 1.0 if hasattr(grid, "levels") else plan.times[0]
    return tuple(make_levels(grid, plan.process, steps, start, plan.meta.get("end")).t.tolist())


def times_of_timesteps(plan: Plan, convention: Convention, timesteps: Any) -> tuple[float, ...]:
    """Times of a network's clock, down to the plan's end."""
    return ended(plan, convention.time_of(torch.as_tensor(np.asarray(timesteps))).tolist())


def times_of_sigmas(plan: Plan, convention: Convention, sigmas: Any) -> tuple[float, ...]:
    """Times of noise levels, sigma on flow paths and sigma/alpha elsewhere, down to the plan's end."""
    levels = np.asarray(sigmas, dtype=np.float64)
    if isinstance(convention, Flow):
        return ended(plan, levels.tolist())
    path: GaussianPath = plan.process  # type: ignore[assignment]
    return ended(plan, path.time_at(-torch.from_numpy(levels[levels > 0]).log()).tolist())


def ended(plan: Plan, times: Sequence[float]) -> tuple[float, ...]:
    """``times`` down to the plan's end, which the list may name or leave out."""
    end = plan.times[-1]
    return (*(t for t in times if t > end), end)


def is_default(convention: Convention, sigmas: Any) -> bool:
    """Whether sigmas are those that flow pipelines pass when the user gave none."""
    n = len(sigmas)
    return isinstance(convention, Flow) and bool(np.allclose(np.asarray(sigmas), np.linspace(1, 1 / n, n), atol=1e-6))


def lambda_shift(convention: Convention, mu: float) -> float:
    """The shift of lambda: mu, or log(mu) where the configuration counts shifts linearly."""
    return math.log(mu) if convention.config.get("time_shift_type", "exponential") == "linear" else float(mu)


def shifted(path: GaussianPath, times: Sequence[float], shift: float) -> tuple[float, ...]:
    """Times with log-SNR lowered by ``shift``, lambda' = lambda - shift, and the same end.

    On the straight path this is sigma' = m sigma / (1 + (m - 1) sigma) with m = e^shift (Esser et al. 2024, eq. (23)).
    """
    moved = path.time_at(path.log_snr(torch.tensor(times[:-1], dtype=torch.float64)) - shift).tolist()
    moved = [1.0 if t == 1 else m for t, m in zip(times[:-1], moved)]
    if any(a <= b for a, b in zip(moved, [*moved[1:], times[-1]])):
        raise InputError(
            f"a shift of {shift:g} in log-SNR leaves the range of {type(path).__name__}; mu is meant for flow models"
        )
    return (*moved, times[-1])


def evaluations_of_first_step(plan: Plan) -> int:
    """How many evaluations the first step makes: what is gone when the plan begins one step later."""
    if plan.nfe <= plan.steps or plan.steps == 1 or not plan.meta.get("generated"):
        return -(-plan.nfe // plan.steps)
    return plan.nfe - plan.between(plan.times[1], plan.meta.get("end")).nfe
