"""``solver="auto"``: a documented, deterministic choice, made without evaluating the network.

The table says what and when; the first line whose conditions hold is taken.

================================================  =============================================================
where                                             what
================================================  =============================================================
tokens, counts, paths with matrix coefficients    the process' own reverse step, on the process' own grid
a population that carries weights                 first-order steps with all of the noise (eta = 1), since
                                                  weights need densities
a path with two ends                              second-order Adams-Bashforth of the flow
a guidance scale above 3, fewer than 15           velocity on the angle, shifted by .7, and no corrector, which
evaluations                                       overshoots there
everything else, second order with a corrector    at most 7 evaluations: flow velocity, times shifted by .5
in the angle, on the linear path's times          8 to 14: velocity on the angle, times shifted by .5
                                                  15 and more: velocity on the angle, times shifted by .3
================================================  =============================================================

The last lines were found by search over prediction type, coordinate, order, corrector and grid, on fourteen mixtures
and paths and on a trained image network, at 5 to 30 evaluations.  The velocity on the angle vanishes for standard
normal data, so for data of unit scale little is left to interpolate, and it is finite at both ends of time.  More
orders win on mixtures, whose posterior means are smooth, and lose on trained networks, which are rough near the data:
there more evaluations want more of them near the data, which is what the shift does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from retrodict.processes import GaussianPath, Process


@dataclass(frozen=True)
class Choice:
    """A solver with its grid, stochasticity and options; a grid of None is the solver's own."""

    solver: str
    grid: Any = None
    eta: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """What the table is read with."""

    process: Process
    budget: int | None
    guidance: float
    population: bool

    @property
    def plain(self) -> bool:
        """Whether rows exist for the process: a Gaussian path with scalar coefficients."""
        return isinstance(self.process, GaussianPath) and self.process.scalar

    @property
    def two_ended(self) -> bool:
        """Whether the path has a second end."""
        return len(self.process.ends) == 2


#: Above this scale, and below this number of evaluations, the corrector is left out.
STRONG_GUIDANCE, FEW = 3.0, 15

#: Up to FEWEST evaluations the flow velocity is the better one, from MANY on more of them belong near the data.
FEWEST, MANY = 7, 15


def _angle(kind: str, shift: float, corrector: bool = True) -> Choice:
    """Second order in the angle on the linear path's times, shifted."""
    options = {"order": 2, "kind": kind, "tau": "angle"} | ({"corrector": True} if corrector else {})
    return Choice("adams", grid={"name": "flow", "shift": shift}, options=options)


#: ``(condition, choice)`` in order of precedence.
TABLE: tuple[tuple[Callable[[Case], bool], Choice], ...] = (
    (lambda case: not case.plain, Choice("step")),
    (lambda case: case.population and case.two_ended, Choice("ddim", eta=1.0)),
    (lambda case: case.population, Choice("ddim", grid="logsnr", eta=1.0)),
    (lambda case: case.two_ended, Choice("flow-ab")),
    (
        lambda case: abs(case.guidance) > STRONG_GUIDANCE and (case.budget or FEW) < FEW,
        _angle("velocity", 0.7, corrector=False),
    ),
    (lambda case: (case.budget or MANY) <= FEWEST, _angle("flow", 0.5)),
    (lambda case: (case.budget or MANY) < MANY, _angle("velocity", 0.5)),
    (lambda case: True, _angle("velocity", 0.3)),
)


def choose(process: Process, budget: int | None, *, guidance: float = 1.0, population: bool = False) -> Choice:
    """The plan that ``solver="auto"`` makes.

    Args:
        budget: evaluations (or steps) per sample; guidance: classifier-free scale; population: whether samples
            carry weights, which need a stochastic plan.
    """
    case = Case(process, budget, guidance, population)
    return next(choice for condition, choice in TABLE if condition(case))
