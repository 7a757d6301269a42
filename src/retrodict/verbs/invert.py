"""``invert``: from data back to the state that a sampler makes them of.

    found = rd.invert(denoiser, images, solver="bdia")
    rd.sample(denoiser, len(images), init=found).x          # the images

A plan whose rows can be solved for their oldest state is inverted exactly; any other deterministic plan by the fixed
point of `retrodict.solvers.inversion`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, near, require
from retrodict.denoisers import Denoiser, Guided
from retrodict.solvers import Plan
from retrodict.solvers import inversion as routes
from retrodict.solvers import plan as make_plan
from retrodict.solvers.inversion import Inversion, relative, run
from retrodict.solvers.plan import as_plan
from retrodict.verbs.conditions import over_samples
from retrodict.verbs.sample import check_denoiser, evaluating

METHODS = ("auto", "exact", "fixed-point", "encode")


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    x: Tensor,
    *,
    solver: str = "bdia",
    steps: int | None = None,
    nfe: int | None = None,
    plan: Plan | str | Path | None = None,
    grid: Any = None,
    end: float | None = None,
    options: dict[str, Any] | None = None,
    method: str = "auto",
    iterations: int = 50,
    check: bool = True,
    guidance: float = 1.0,
    **condition: Any,
) -> Inversion:
    """The states from which a deterministic plan makes x.

    Args:
        x: data ``(n, *shape)`` in the user's units, taken as the state at the plan's end; for rounding errors of 1e-12
            use a denoiser and data in float64.
        solver, steps, nfe, grid, options: what `retrodict.plan` takes; 20 evaluations by default.
        plan: a `Plan` or a file of one, instead of those and of end; of several that `tune` wrote ``nfe`` picks one.
        end: the time where the plan ends, above sigma = 0; None is the smallest that the process' grids visit.
        method: "exact" solves the plan's rows, "fixed-point" iterates, "encode" is DDIM run upward (an approximation of
            first order); "auto" is exact where the plan allows it, else the fixed point.
        iterations: of the fixed point, each of three plan lengths of evaluations at the most.
        check: measure what regenerating costs (`Inversion.errors`), by up to four more runs of a plan.
        guidance, condition: as for `sample`; regenerate with the same.

    Returns:
        `Inversion`, which ``sample(init=...)`` takes.

    Raises:
        InputError: a stochastic plan, one that ends at sigma = 0, or "exact" for rows that cannot be solved.
    """
    if not isinstance(x, Tensor):
        raise InputTypeError(f"x is a tensor of data (n, *shape), got {type(x).__name__}")
    check_denoiser(denoiser, len(x))
    require(iterations >= 1, f"iterations is at least 1, got {iterations}")
    denoiser.check_condition(condition)
    if method not in METHODS:
        raise InputError(f"method is one of {', '.join(METHODS)}; got {method!r}.{near(method, METHODS)}")
    require(
        denoiser.shape is None or tuple(x.shape[1:]) == tuple(denoiser.shape),
        f"x has shape {tuple(x.shape)}; samples of this denoiser are (n, {', '.join(map(str, denoiser.shape or ()))})",
    )
    words = {key: over_samples(denoiser, key, value, len(x), "invert") for key, value in condition.items()}
    if guidance != 1.0:
        denoiser = Guided(denoiser, guidance)
    plan = _plan(denoiser, plan, solver, steps, nfe, grid, end, options or {})
    with evaluating(denoiser):
        state = (x if denoiser.scale is None else denoiser.scale(x)).to(denoiser.device, denoiser.dtype)
        found = _invert(plan, denoiser, state, words, method, iterations)
        if check:
            found.errors = _errors(found, plan, denoiser, state, words)
    return found


def _plan(
    denoiser: Denoiser,
    plan: Any,
    solver: str,
    steps: int | None,
    nfe: int | None,
    grid: Any,
    end: float | None,
    options: dict[str, Any],
) -> Plan:
    """The given plan, or one made from the words that ends above sigma = 0."""
    if plan is not None:
        words = {"solver": solver, "steps": steps, "nfe": nfe, "grid": grid, "end": end, "options": options}
        return as_plan(plan, denoiser.process, words, solver="bdia")
    smallest = float(getattr(denoiser.process, "t_min", 1e-3))
    budget = {"steps": steps, "nfe": 20 if steps is None and nfe is None else nfe}
    return make_plan(solver, denoiser.process, **budget, grid=grid, end=smallest if end is None else end, **options)


def _invert(
    plan: Plan, denoiser: Denoiser, x: Tensor, condition: dict[str, Any], method: str, iterations: int
) -> Inversion:
    if method == "encode":
        return Inversion(run(routes.encoder(plan, "ddim"), denoiser, x, condition)[0].unsqueeze(1), plan)
    if method != "fixed-point":
        try:
            encoder, generator = routes.inverse(plan)
        except InputError:
            if method == "exact" or plan.noises or plan.opaque:
                raise
        else:
            return Inversion(torch.stack(run(encoder, denoiser, x, condition), 1), generator)
    start, residual = routes.fixed_point(plan, denoiser, x, condition, iterations)
    return Inversion(start.unsqueeze(1), plan, residual=residual)


def _errors(found: Inversion, plan: Plan, denoiser: Denoiser, x: Tensor, condition: dict[str, Any]) -> dict[str, float]:
    """Relative L2 errors of what is regenerated, from everything carried, from the start alone, and by DDIM."""
    ddim = make_plan("ddim", plan.process, grid=plan.times, end=plan.times[-1])
    encoded = run(routes.encoder(ddim, "ddim"), denoiser, x, condition)[0]
    made = {"carried": (found.plan, found.init), "start alone": (plan, found.start), "ddim": (ddim, encoded)}
    if found.plan is plan:
        del made["start alone"]
    rms = lambda miss: float(relative(miss, x).square().mean().sqrt())  # noqa: E731
    state = lambda p, start: start if p.paired else start.to(x.dtype)  # noqa: E731
    return {name: rms(run(p, denoiser, state(p, start), condition)[0] - x) for name, (p, start) in made.items()}
