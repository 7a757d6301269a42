"""Fitting the ratios of compensation (DC-Solver, Zhao et al. 2024; the rows are those of the solver 'usf').

One number for each evaluation from the third on, so that few trajectories do.  The published search goes step by step
against the teacher's states; here all ratios are fitted together against its ends, by damped Gauss-Newton steps: a
ratio that repairs a state may spoil the end.  A ridge pulls them to one: early ratios matter little, and free to go
anywhere they would say nothing of other budgets to a `Cascade`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.denoisers import Denoiser
from retrodict.solvers.build import plan as make_plan
from retrodict.solvers.plan import Plan
from retrodict.solvers.tuning.descent import Found, Task, by_differences
from retrodict.solvers.tuning.trajectories import Trajectories

#: Trajectories that the published search takes, damped steps, the pull to one, and how far a ratio may go.
FEW, STEPS, RIDGE, LIMIT = 10, 8, 0.1, 1.0


def compensate(
    plan: Plan,
    denoiser: Denoiser,
    train: Trajectories,
    valid: Trajectories,
    *,
    trajectories: int = 4 * FEW,
    on_step: Callable[[], None] | None = None,
) -> tuple[list[float], Found]:
    """Ratios for a plan of the solver 'usf' (and its alias 'dc-solver'), with their errors; ones if nothing did better.

    Raises:
        InputError: another solver, or fewer than three evaluations.
    """
    require(
        plan.meta.get("solver") == "usf", f"compensation is an option of 'usf'; this is {plan.meta.get('solver')!r}"
    )
    require(plan.nfe >= 3, f"the third evaluation is the first that is compensated; this plan has {plan.nfe}")
    few = train.take(slice(0, trajectories))

    def ends(p: Tensor, some: Trajectories) -> Tensor:
        return some.run(denoiser, compensated(plan, (1 + LIMIT * torch.tanh(p / LIMIT)).tolist()))

    task = Task(ends, torch.zeros(plan.nfe - 2, dtype=torch.float64), few, valid)
    found = by_differences(task, task.judged(task.origin), STEPS, trajectories, on_step, RIDGE)
    return (1 + LIMIT * torch.tanh(found.p / LIMIT)).tolist(), found


def compensated(plan: Plan, ratios: object) -> Plan:
    """The same plan with other ratios, a list or a `Cascade`."""
    if plan.meta.get("solver") != "usf" or not plan.meta.get("generated"):
        raise InputError("compensation is an option of the solver 'usf'")
    options = {**plan.meta["options"], "ratios": ratios}
    end = plan.meta.get("end")
    return make_plan("usf", plan.process, grid=plan.times, end=end, **options)
