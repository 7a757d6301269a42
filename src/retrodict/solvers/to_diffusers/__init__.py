"""A plan as a diffusers scheduler: ``pipe.scheduler = plan.to_diffusers()``.

`stepper` speaks diffusers' interface, `run` holds the state of one pass through a pipeline's loop, and `times` turns
what a pipeline asks for into a grid.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from retrodict.core.errors import optional_import
from retrodict.solvers.plan import Plan
from retrodict.solvers.to_diffusers.stepper import PlanStepper

__all__ = ["PlanStepper", "scheduler_class", "to_diffusers"]


def to_diffusers(plan: Plan, like: Any = None, **options: Any) -> Any:
    """The scheduler object of a plan; see `Plan.to_diffusers`."""
    return scheduler_class()(plan, like, **options)


@lru_cache(maxsize=1)
def scheduler_class() -> type:
    """`PlanStepper` as a class of diffusers, made when it is first needed, since diffusers is an extra."""
    diffusers: Any = optional_import("diffusers", "diffusers")
    bases = (PlanStepper, diffusers.SchedulerMixin, diffusers.ConfigMixin)
    doc = "A plan as a diffusers scheduler; made by `Plan.to_diffusers`."
    return type("PlanScheduler", bases, {"__module__": __name__, "__doc__": doc})


def __getattr__(name: str) -> Any:
    # a saved pipeline names this class by module and name, and diffusers looks for its base class in the same place
    if name == "PlanScheduler":
        return scheduler_class()
    if name == "SchedulerMixin":
        return scheduler_class().__mro__[2]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
