"""Ways to condition on a measurement, by name: each is a choice of C and gain, and of a plan.

A row says how a `Measurement` becomes a potential and which plan it prefers.  Potentials that are no measurements are
left as they are.  Every row runs in a population, and then its weights make the answer right; the published methods
have none, and `sample` with ``population=False`` is what they are.

====================================  ================================================================================
goal                                  what "auto" does
====================================  ================================================================================
a measurement, and beliefs with a     the exact C as drift and weight
covariance of their own, or at most
16 numbers
any other measurement                 the isotropic C as weight alone, without drift
a goal of another kind                as it is
====================================  ================================================================================
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from retrodict.core.errors import InputError, InputTypeError, near
from retrodict.core.registry import Registry
from retrodict.denoisers import Denoiser
from retrodict.solvers.auto import Choice
from retrodict.steering.measurement import Measurement
from retrodict.steering.potential import Potential
from retrodict.steering.spread import known_spread
from retrodict.steering.steered import Steered

#: "auto" forms C from derivatives of the denoiser for measurements of at most this many numbers.
FEW = 16


@dataclass(frozen=True)
class Row:
    """What a method makes of a measurement: the potential, the plan it prefers, and in words what was done."""

    goal: Measurement
    preferred: Choice | None = None
    words: str = ""


#: ``(denoiser, measurement, **options) -> Row``
methods: Registry[Callable[..., Row]] = Registry("method")


def steer(denoiser: Denoiser, goals: Any, method: str = "auto", **options: Any) -> Steered:
    """A denoiser conditioned on one goal or several.

    Args:
        goals: a `Potential` or a sequence of them; their log values add up.
        method: a name of `methods`; options: the method's own.

    Raises:
        InputError: an unknown method or option, a method for measurements on other goals, a goal that does not meet the
            denoiser.
    """
    goals = list(goals) if isinstance(goals, Sequence) else [goals]
    if not goals:
        raise InputError("no goals: give a Potential or a list of them")
    for goal in goals:
        if not isinstance(goal, Potential):
            raise InputTypeError(f"a goal is a Potential (a Measurement, a Reward, ...), got {type(goal).__name__}")
    make = methods[method]
    known = {name: None for name in list(inspect.signature(make).parameters)[2:]}
    for name in options:
        if name not in known:
            raise InputError(
                f"unknown option {name!r} of method {method!r}; known: {', '.join(known) or 'none'}.{near(name, known)}"
            )
    measured = [goal for goal in goals if isinstance(goal, Measurement)]
    if not measured and (method != "auto" or options):
        raise InputError(f"method {method!r} is for measurements, and none of the goals is one; leave it out")
    for goal in measured:
        goal.check(denoiser.shape, denoiser.process)
    rows = {id(goal): make(denoiser, goal, **options) for goal in measured}
    potentials = [rows[id(goal)].goal if id(goal) in rows else goal for goal in goals]
    first = next(iter(rows.values()), None)
    words = method if first is None or not first.words else f"{method}: {first.words}"
    return Steered(denoiser, potentials, preferred=first and first.preferred, method=words)


@methods.register("auto")
def auto(denoiser: Denoiser, goal: Measurement) -> Row:
    """What measures best where it can be afforded (module docstring)."""
    if known_spread(denoiser)[1] or goal.size <= FEW:
        return Row(goal.using("exact"), words="exact covariance, as drift and weight")
    return Row(goal.using("isotropic", gain="none"), words="isotropic covariance, as weight alone")


@methods.register("mmps")
def mmps(denoiser: Denoiser, goal: Measurement, iterations: int = 10, clip: float | None = None) -> Row:
    """Moment-matching posterior sampling (Rozet et al. 2024): the denoiser's own C; exact on Gaussian priors.

    Args:
        iterations: of GMRES, where M is too large to be formed; published: 1 to 3.
    """
    return Row(goal.using("exact", iterations=iterations, clip=clip), words="exact covariance")


@methods.register("pigdm")
def pigdm(
    denoiser: Denoiser, goal: Measurement, variance: float | None = None, gradient: bool = True, iterations: int = 30
) -> Row:
    """Pseudoinverse guidance (Song et al. 2023): C = r^2 I inside M, r^2 = v rho^2/(v + rho^2).

    Args:
        variance: v, in the user's units squared; None is what the denoiser knows of its data, or 1 in the model's.
        gradient: whether it moves the state; without, it only weighs, and needs no derivative of the denoiser.
    """
    gain = "posterior" if gradient else "none"
    return Row(
        goal.using("isotropic", variance=variance, gain=gain, iterations=iterations), words="isotropic covariance"
    )


@methods.register("tmpd")
def tmpd(denoiser: Denoiser, goal: Measurement) -> Row:
    """Tweedie moment projection (Boys et al. 2023): M is the diagonal of the row sums of A C A^T."""
    return Row(goal.using("row-sums"), words="row sums of the exact covariance")


@methods.register("dps")
def dps(denoiser: Denoiser, goal: Measurement, clip: float | None = 1.0) -> Row:
    """Diffusion posterior sampling (Chung et al. 2023) with the likelihood itself: C = 0 inside M.

    Args:
        clip: largest shift of the mean, in root-mean-square units of the data; without a bound it explodes where the
            noise of the measurement is small.
    """
    return Row(goal.using("none", clip=clip), words="no covariance")
