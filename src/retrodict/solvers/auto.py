"""``solver="auto"``: a documented, deterministic choice, made without evaluating the network.

The table says what and when; the first line whose conditions hold is taken.

================================================  =============================================================
where                                             what
================================================  =============================================================
tokens, counts, paths with matrix coefficients    the process' own reverse step
a population that carries weights                 first-order steps with all of the noise (eta = 1), since
                                                  weights need densities
a path with two ends                              second-order Adams-Bashforth of the flow
a guidance scale of 3 or more, fewer than 15      data prediction in log-SNR, shifted by 1: order 1 below 1.5
evaluations and than 2.5 times the scale,         evaluations for each unit of the scale, then order 2
pictures of 16 by 16 and more
a guidance scale of 3 or more, fewer than 15      velocity on the angle, order 2, shifted by .7, and no corrector,
evaluations                                       which overshoots there
everything else: flow velocity, with a corrector  at most 6 evaluations: order 2, times shifted by .7
in the angle, on the linear path's times          7 to 9: order 2, shifted by .6
                                                  10 to 14: order 3, shifted by .5
                                                  15 and more: order 3, shifted by .4
the same under guidance                           at most 8: order 2, .85; 9 to 14: order 3, .7; then order 3, .5
================================================  =============================================================

The last lines were found by search over prediction type, coordinate, order, corrector and grid, on fourteen mixtures
and paths and on trained image networks, at 5 to 30 evaluations.  The angle's rates vanish or stay finite at both ends
of time.  More evaluations want more of them near the data, where networks are rough; that is what the shift does.
Guidance sharpens the choice between modes, which is made at high noise, and asks for more of them there: a run whose
start lies near the border of two modes ends in the wrong one otherwise, and such runs dominate the error.

Their shifts are those of points and of pictures of 8 by 8.  In a picture of more pixels neighbours average the noise
away: what is decided at sigma on 8 by 8 is decided at ``sigma sqrt(H W / 64)``, and shifts grow by that factor (the
resolution shift of Esser et al. 2024, equation 23).  Measured on exact laws and a trained network, it is right from 8
by 8 to 64 by 64, and stops there.  Latents, told by their channels, were made smaller already: theirs is
``sqrt(H W / 256)``, which gives the shifts that pipelines of 64 by 64 and 128 by 128 latents ship, and is not measured.

Strong guidance makes a large picture of few evaluations overshoot in the first steps, where second-order steps in the
angle extrapolate and those in log-SNR, for which the start lies infinitely far away, do not.  Error over that of the
angle, 5 evaluations at scales 3 and 7.5: .60 and .33 on a network of 32 by 32, .88 and .45 on the exact law of the same
pictures; 12 evaluations at 7.5: .79 and 1.16.  On 8 by 8 the angle is better everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from retrodict.processes import GaussianPath, Process


@dataclass(frozen=True)
class Choice:
    """A solver with its grid, stochasticity and options; a grid of None is the solver's own.

    Attributes:
        solver: a name, or a `Solver` that is in no registry, which a conditioned denoiser brings.
        weighted: whether a population may run it with weights.
    """

    solver: Any
    grid: Any = None
    eta: float | None = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    weighted: bool = True


@dataclass(frozen=True)
class Case:
    """What the table is read with."""

    process: Process
    budget: int | None
    guidance: float
    population: bool
    resolution: float = 1.0

    @property
    def strong(self) -> bool:
        """Whether guidance is strong for so few evaluations that correctors overshoot."""
        return abs(self.guidance) >= STRONG_GUIDANCE and (self.budget or FEW) < FEW

    def overshoots(self, most: float) -> bool:
        """Whether a large picture has fewer than ``most`` evaluations for each unit of the guidance scale."""
        return self.resolution >= LARGE and (self.budget or FEW) < most * abs(self.guidance)

    @property
    def plain(self) -> bool:
        """Whether rows exist for the process: a Gaussian path with scalar coefficients."""
        return isinstance(self.process, GaussianPath) and self.process.scalar

    @property
    def guided(self) -> bool:
        """Whether classifier-free guidance is on."""
        return self.guidance != 1.0

    @property
    def two_ended(self) -> bool:
        """Whether the path has a second end."""
        return len(self.process.ends) == 2


#: From this scale on, and below this number of evaluations, the corrector is left out.
STRONG_GUIDANCE, FEW = 3.0, 15

#: Pictures whose `resolution` is at least this are large.
LARGE = 2.0

#: ``(most evaluations, order, shift of the times)`` of the everyday choice, plain and under guidance.
PLAIN = ((6, 2, 0.7), (9, 2, 0.6), (14, 3, 0.5), (None, 3, 0.4))
GUIDED = ((8, 2, 0.85), (14, 3, 0.7), (None, 3, 0.5))


def _steps(kind: str, order: int, shift: float, **options: Any) -> Choice:
    """Multistep on the linear path's times, shifted; without ``tau`` in the prediction type's own coordinate."""
    return Choice("adams", grid={"name": "flow", "shift": shift}, options={"order": order, "kind": kind, **options})


def _everyday(guided: bool, most: int | None) -> Callable[[Case], bool]:
    return lambda case: case.guided == guided and (most is None or (case.budget or most + 1) <= most)


#: ``(condition, choice)`` in order of precedence.
TABLE: tuple[tuple[Callable[[Case], bool], Choice], ...] = (
    (lambda case: not case.plain, Choice("step")),
    (lambda case: case.population and case.two_ended, Choice("ddim", eta=1.0)),
    (lambda case: case.population, Choice("ddim", grid="logsnr", eta=1.0)),
    (lambda case: case.two_ended, Choice("flow-ab")),
    (lambda case: case.strong and case.overshoots(1.5), _steps("data", 1, 1.0)),
    (lambda case: case.strong and case.overshoots(2.5), _steps("data", 2, 1.0)),
    (lambda case: case.strong, _steps("velocity", 2, 0.7, tau="angle")),
    *(
        (_everyday(guided, most), _steps("flow", order, shift, tau="angle", corrector=True))
        for guided, lines in ((False, PLAIN), (True, GUIDED))
        for most, order, shift in lines
    ),
)


#: Pixels of the pictures and of the latents that the table's shifts are for, and how much larger a shift may become.
PIXELS, LATENTS, MOST = 64, 256, 8.0


def resolution(shape: Sequence[int] | None) -> float:
    """How many times larger the shift of times is for states of this shape: 1 for all but pictures ``(c, h, w)``."""
    if shape is None or len(shape) != 3:
        return 1.0
    base = PIXELS if shape[0] in (1, 3) else LATENTS
    return min(max(math.sqrt(shape[1] * shape[2] / base), 1.0), MOST)


def choose(
    process: Process,
    budget: int | None,
    *,
    guidance: float = 1.0,
    population: bool = False,
    shape: Sequence[int] | None = None,
) -> Choice:
    """The plan that ``solver="auto"`` makes.

    Args:
        budget: evaluations (or steps) per sample; guidance: classifier-free scale; population: whether samples
            carry weights, which need a stochastic plan; shape: of one state, where it is known.
    """
    case = Case(process, budget, guidance, population, resolution(shape))
    choice = next(choice for condition, choice in TABLE if condition(case))
    if not isinstance(choice.grid, dict):
        return choice
    return replace(choice, grid={**choice.grid, "shift": choice.grid["shift"] * case.resolution})
