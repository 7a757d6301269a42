"""``backprop``: samples that a loss can be taken back through, to their noise, their conditions and the weights.

    x = torch.randn(8, 1, 8, 8, requires_grad=True)
    rd.backprop(denoiser, x, nfe=20, label=3).square().sum().backward()     # x.grad, and those of the weights

The mechanism is `retrodict.solvers.adjoint`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, NonFiniteError, near, require
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser, Guided
from retrodict.processes import GaussianPath
from retrodict.solvers import Plan, adjoint, continuous
from retrodict.solvers import plan as make_plan
from retrodict.solvers.grids import levels_at
from retrodict.solvers.plan import as_plan
from retrodict.solvers.weights import Levels
from retrodict.steering import Steered
from retrodict.verbs.conditions import over_samples
from retrodict.verbs.sample import check_denoiser, evaluating

MODES = ("auto", "reversible", "recompute", "continuous")


def backprop(
    denoiser: Denoiser,
    x: Tensor,
    *,
    solver: str = "bdia",
    steps: int | None = None,
    nfe: int | None = None,
    plan: Plan | str | Path | None = None,
    grid: Any = None,
    eta: float | None = None,
    start: float = 1.0,
    end: float | None = None,
    options: dict[str, Any] | None = None,
    guidance: float = 1.0,
    mode: str = "auto",
    integrator: str = "midpoint",
    seed: int = 0,
    **condition: Any,
) -> Tensor:
    """Run a plan from given states, so that gradients of the result cost little memory.

    A gradient reaches x, the conditions that are real tensors, and the denoiser's weights, where each requires one;
    ``denoiser.requires_grad_(False)`` leaves the weights out.

    Args:
        x: states at the plan's start ``(n, *shape)``, in the model's units.
        solver, steps, nfe, grid, eta, start, end, options: what `retrodict.plan` takes; "bdia" with 20 evaluations by
            default.  Fresh noise of a stochastic plan is a constant, keyed by ``seed``.
        plan: a `Plan` or a file of one, instead of those; of several that `tune` wrote ``nfe`` picks one.
        guidance, condition: as for `sample`.
        mode: "reversible" keeps two states for any number of steps, of plans that can be run backward exactly (BDIA
            with gamma = 1); "recompute" keeps a state an evaluation, of any plan; both give the plan's own gradient to
            rounding, for one more evaluation and a backward pass each.  "auto" is the first where it can be.
            "continuous" integrates the flow and its adjoint over the plan's times instead: one state, and a gradient
            that is right in the limit of many steps.
        integrator: of "continuous": "euler", "midpoint" or "rk4".  From a level without signal it takes one DDIM step.

    Returns:
        Samples ``(n, *shape)`` in the user's units, once differentiable.

    Raises:
        InputError: "reversible" for another plan; a plan whose rows depend on data; a denoiser steered by potentials.
        NonFiniteError: a run that overflowed.
    """
    check_denoiser(denoiser, 1)
    if isinstance(denoiser, Steered):
        raise InputError("the pull of potentials has no gradient here: take the potential into the loss instead")
    if mode not in MODES:
        raise InputError(f"mode is one of {', '.join(MODES)}; got {mode!r}.{near(mode, MODES)}")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise InputTypeError("x is a real tensor (n, *shape), the state at the plan's start in the model's units")
    shape = denoiser.shape
    require(
        x.ndim > 1 and (shape is None or tuple(x.shape[1:]) == tuple(shape)),
        f"x has shape {tuple(x.shape)}; states of this denoiser are (n, {', '.join(map(str, shape or ('...',)))})",
    )
    denoiser.check_condition(condition)
    condition = {k: over_samples(denoiser, k, v, len(x), "backprop") for k, v in condition.items()}
    words = {"steps": steps, "nfe": nfe, "grid": grid, "eta": eta, "start": start, "end": end}
    made = _plan(denoiser, plan, solver, words, options or {}, mode)
    model = denoiser if guidance == 1.0 else Guided(denoiser, guidance)
    out = _run(model, made, x.to(denoiser.device, denoiser.dtype), condition, mode, integrator, seed)
    if not bool(torch.isfinite(out.detach()).all()):
        raise NonFiniteError("the result is not finite: take more steps or another solver")
    return out if denoiser.scale is None else denoiser.scale.inverse(out)


def _plan(
    denoiser: Denoiser, plan: Any, solver: str, words: dict[str, Any], options: dict[str, Any], mode: str
) -> Plan:
    """The given plan, or one made from the words; the flow of "continuous" ends above sigma = 0."""
    if plan is not None:
        given = words | {"solver": solver, "options": options}
        return as_plan(plan, denoiser.process, given, solver="bdia", start=1.0)
    if words["steps"] is None and words["nfe"] is None and (words["grid"] is None or isinstance(words["grid"], str)):
        words["nfe"] = 20
    if mode == "continuous" and words["end"] is None:
        words["end"] = float(getattr(denoiser.process, "t_min", 1e-3))
    return make_plan(solver, denoiser.process, **words, **options)


def _run(
    denoiser: Denoiser, plan: Plan, x: Tensor, condition: dict[str, Any], mode: str, integrator: str, seed: int
) -> Tensor:
    def mean(x: Tensor, t: float, **condition: Any) -> Tensor:
        with evaluating(denoiser):
            return denoiser(x, t, **condition)

    parameters = [p for p in denoiser.parameters() if p.requires_grad]
    noise = KeyedNoise(seed, len(x), dtype=x.dtype, device=x.device)

    def exact(plan: Plan, mode: str) -> Tensor:
        return adjoint.through(adjoint.choose(plan, mode), mean, x, noise, condition, parameters, denoiser.temperature)

    if mode != "continuous":
        return exact(plan, mode)
    path = denoiser.process
    if not isinstance(path, GaussianPath) or not path.scalar or len(path.ends) != 1:
        raise InputError(f"the flow needs a Gaussian path with one end and scalar coefficients, got {path!r}")
    levels = levels_at(path, np.array(plan.times), clean=plan.meta.get("end") is None)
    if levels.alpha[0] == 0 and len(levels) > 2:  # x/alpha does not exist there: DDIM to the next level
        x = exact(make_plan("ddim", path, grid=plan.times[:2], end=plan.times[1]), "recompute")
        levels = Levels(*(v[1:] for v in (levels.t, levels.alpha, levels.sigma, levels.lam)))
    return continuous.flow(mean, path, levels, x, condition, parameters, integrator)
