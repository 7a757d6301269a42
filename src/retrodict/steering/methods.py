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
any other measurement                 the isotropic C as drift and weight: one derivative of the denoiser an evaluation
a goal of another kind                as it is
====================================  ================================================================================

The second line was measured on a trained network and on a kernel density of digits, half the image seen: without drift
the weights degenerate once the noise is small (evidences of two runs 23 nats apart, against .4 with it), and the exact
C by few products and without its determinant leaves one particle.
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
from retrodict.steering import plans
from retrodict.steering.measurement import Measurement
from retrodict.steering.potential import Potential
from retrodict.steering.spread import known_spread
from retrodict.steering.steered import Steered

#: Steps with all of the noise: they have densities, and forget what a stiff potential did to the state.
ANCESTRAL = Choice("ddim", grid="logsnr", eta=1.0)
#: "auto" forms C from derivatives of the denoiser for measurements of at most this many numbers.
FEW = 16


@dataclass(frozen=True)
class Row:
    """What a method makes of a measurement: the potential, the plan it prefers, and in words what was done."""

    goal: Measurement
    preferred: Choice = ANCESTRAL
    words: str = ""


#: ``(denoiser, measurement, **options) -> Row``
methods: Registry[Callable[..., Row]] = Registry("method")


def steer(denoiser: Denoiser, goals: Any, method: str = "auto", **options: Any) -> Steered:
    """A denoiser conditioned on one goal or several.

    Args:
        goals: a `Potential` or a sequence of them; their log values add up.
        method: a name of `methods`; options: the method's own.

    Raises:
        InputError: an unknown method or option, a method for measurements on other goals, a goal that does not meet
            the denoiser.
        InputTypeError: a goal that is no potential.
    """
    goals = list(goals) if isinstance(goals, Sequence) else [goals]
    if not goals:
        raise InputError("no goals: give a Potential or a list of them")
    for goal in goals:
        if not isinstance(goal, Potential):
            raise InputTypeError(
                "evidence about a denoiser is a Potential (a Measurement, a Reward, ...), a list of them, or "
                f"Guidance(scale); got {type(goal).__name__}"
            )
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
    return Row(goal.using("isotropic"), words="isotropic covariance, as drift and weight")


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
def dps(
    denoiser: Denoiser, goal: Measurement, official: bool = False, zeta: Any = 1.0, clip: float | None = 1.0
) -> Row:
    """Diffusion posterior sampling (Chung et al. 2023): C = 0 inside M.

    Args:
        official: the published step, ``x - zeta grad_x |y - A D|`` after an ancestral step, instead of the gradient of
            the likelihood.
        zeta: its size (published: .3 to 1), a number or one for each element.
        clip: of the likelihood's gradient: largest shift of the mean, in root-mean-square units of the data; without
            a bound it explodes where the noise of the measurement is small.
    """
    if official:
        return Row(goal.using("norm"), _own(plans.DPS, zeta=zeta), "published step size")
    return Row(goal.using("none", clip=clip), words="no covariance")


@methods.register("blind-dps")
def blind_dps(denoiser: Denoiser, goal: Measurement, zeta: Any = 0.3, schedule: str = "constant") -> Row:
    """BlindDPS (Chung et al. 2023b): DPS on several variables at once, of which the operator is one.

    The denoiser is a `Joint` of the variables' denoisers, the operator a function of the joint state.

    Args:
        zeta: step size, a number or one for each element; schedule: "constant", or "alpha" as in the published code.
    """
    return Row(goal.using("norm"), _own(plans.DPS, zeta=zeta, schedule=schedule), "published step size")


@methods.register("stsl")
def stsl(
    denoiser: Denoiser,
    goal: Measurement,
    gamma: float = 1.0,
    inner: int = 5,
    rate: float = 0.2,
    probes: int = 1,
    clip: float | None = 1.0,
) -> Row:
    """Second-order Tweedie sampling (Rout et al. 2024), as the Jensen bound that its surrogate approximates.

    Args:
        gamma: weight of the trace ``tr(A C A^T)``; 1 is the bound, 0 is DPS.
        inner: gradient steps at each level; rate: their size, in units of the smaller of sigma^2 and the noise's
            variance, above which they overshoot.
        probes: of the trace, for large measurements; clip: as for "dps".
    """
    row = goal.using("jensen", gamma=gamma, probes=probes, clip=clip)
    limit = (row.noise or row.lowest) / known_spread(denoiser)[0].unit
    return Row(row, _own(plans.STSL, inner=inner, rate=rate, limit=limit), "Jensen's bound")


@methods.register("diffpir")
def diffpir(denoiser: Denoiser, goal: Measurement, strength: float = 1.0, zeta: float = 0.3) -> Row:
    """DiffPIR (Zhu et al. 2023): ``D_y = argmin |y - A x|^2/noise^2 + strength alpha^2/sigma^2 |x - D|^2``.

    Args:
        strength: lambda; published 7 to 15 with images, 1 is the posterior mean of a flat prior.
        zeta: share of the noise drawn anew at each step.
    """
    row = goal.using("isotropic", gain="same", width="noise", strength=strength)
    return Row(row, _own(plans.DIFFPIR, zeta=zeta), "isotropic covariance, no derivative")


@methods.register("ddnm")
def ddnm(denoiser: Denoiser, goal: Measurement, eta: float = 0.85, tempered: bool = False) -> Row:
    """Null-space model (Wang et al. 2023): ``D + A^+ (y - A D)``, so that samples meet y exactly.

    Args:
        eta: of the DDIM steps; tempered: scale the correction by min(1, rho/noise), for noisy measurements (DDNM+).
    """
    row = goal.using("isotropic", gain="same", hard=True, tempered=tempered)
    return Row(row, Choice("ddim", eta=eta, weighted=False), "pseudo-inverse, no derivative")


@methods.register("ddrm")
def ddrm(denoiser: Denoiser, goal: Measurement, eta: float = 0.85, eta_b: float = 1.0) -> Row:
    """Restoration in singular directions (Kawar et al. 2022)."""
    row = goal.using("isotropic", gain="same", hard=True)
    return Row(row, _own(plans.DDRM, eta_share=eta, eta_b=eta_b), "singular directions")


@methods.register("replacement")
def replacement(denoiser: Denoiser, goal: Measurement) -> Row:
    """Measured coordinates are overwritten at each level (Song et al. 2021, appendix I.2)."""
    return Row(goal.using("isotropic", gain="none"), _own(plans.REPLACEMENT), "replacement")


@methods.register("repaint")
def repaint(denoiser: Denoiser, goal: Measurement, rounds: int = 5, jump: int = 1) -> Row:
    """Replacement with jumps back (Lugmayr et al. 2022): each stretch of ``jump`` levels is run ``rounds`` times."""
    row = goal.using("isotropic", gain="none")
    return Row(row, _own(plans.REPLACEMENT, rounds=rounds, jump=jump), "replacement with jumps back")


@methods.register("daps")
def daps(
    denoiser: Denoiser,
    goal: Measurement,
    covariance: str = "scaled",
    ode: int = 5,
    move: str = "auto",
    moves: int = 100,
    rate: float = 0.5,
    noise: float | None = None,
) -> Row:
    """Decoupled annealing (Zhang et al. 2025): at each level x0 is drawn given y and noised to the next.

    Args:
        covariance: C of ``p(x0 | x_t)``: "isotropic" (rho^2, published), "scaled" (v rho^2/(v + rho^2)) or "exact" (the
            denoiser's own, for oracles; with ``ode=1``).
        ode: evaluations of the ODE that finds the centre; published 5 to 10.
        move: "exact" for linear operators, "langevin", "hmc" or "metropolis"; "auto" is "exact" or "langevin".
        moves, rate: of a chain: how many, and their size relative to what the curvature admits.
        noise: standard deviation that the draw takes y to have; None is the measurement's (published code: .007).
    """
    known = {"isotropic": {"width": "noise"}, "scaled": {"width": "posterior"}, "exact": None}
    if covariance not in known:
        raise InputError(f"covariance is one of {', '.join(known)}; got {covariance!r}.{near(covariance, known)}")
    options = known[covariance]
    row = goal.using("exact", gain="none") if options is None else goal.using("isotropic", gain="none", **options)
    if noise is not None:
        row = row.with_noise(noise)
    if move == "auto":
        move = "exact" if goal.operator.linear else "langevin"
    words = {"ode": 1 if options is None else ode, "move": move, "moves": moves, "rate": rate}
    return Row(row, _own(plans.DAPS, **words), f"{covariance} covariance, {move} draws")


def _own(solver: Any, **options: Any) -> Choice:
    """A plan of its own, whose moves are not those of the reverse process, so that it has no weights."""
    return Choice(solver, eta=None, options=options, weighted=False)
