"""The probability-flow ODE in coordinates without a stiff part, and its adjoint (Pan et al. 2024, "AdjointDPM").

With z = x/alpha and rho = sigma/alpha the flow is an integral of the noise estimate,

    dz/drho = eps(alpha z, t(rho)) = (z - D)/rho,

and a loss of its end has the gradients l = dL/dz and g = dL/dtheta that solve, from the end upward,

    dl/drho = -(d eps/dz)^T l,        dg/drho = -(d eps/dtheta)^T l.

z is integrated again beside them, so that one state is kept whatever the number of steps.  Neither the result nor the
gradient is that of a plan: both converge to those of the flow, with the order of the integrator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint_adjoint

from retrodict.core.errors import InputError, near, require
from retrodict.processes import GaussianPath
from retrodict.solvers.weights import Levels

INTEGRATORS = ("euler", "midpoint", "rk4")


def flow(
    mean: Callable[..., Tensor],
    path: GaussianPath,
    levels: Levels,
    x: Tensor,
    condition: Mapping[str, Any],
    parameters: Sequence[Tensor],
    integrator: str = "midpoint",
) -> Tensor:
    """The state at the last of ``levels``, from x at the first, with the continuous adjoint as its gradient.

    Args:
        mean: ``(x, t, **condition) -> posterior mean``; parameters: its weights that want gradients.
        levels: nodes of the integrator, alpha and sigma above 0 at all of them.
        integrator: "euler" (first order), "midpoint" (second) or "rk4" (fourth).
    """
    if integrator not in INTEGRATORS:
        raise InputError(
            f"integrator is one of {', '.join(INTEGRATORS)}; got {integrator!r}.{near(integrator, INTEGRATORS)}"
        )
    require(bool((levels.alpha > 0).all()), "the flow in x/alpha starts below the level without signal: lower start")
    require(bool((levels.sigma > 0).all()), "the flow in sigma/alpha ends above sigma = 0: give an end such as 1e-3")
    nodes = torch.from_numpy(levels.sigma / levels.alpha)

    def rate(rho: Tensor, z: Tensor) -> Tensor:
        t = path.time_at(-math.log(float(rho.detach())))
        return (z - mean(float(path.alpha(t)) * z, float(t), **condition)) / rho.to(z.dtype)

    def grid(_: Any, __: Any, t: Tensor) -> Tensor:
        # the integrator turns the sign of a clock that falls, and the way back is its reverse
        signed = nodes.to(t) * torch.sign(t[0])
        return signed if signed[0] == t[0] else signed.flip(0)

    wanted = [v for v in condition.values() if isinstance(v, Tensor) and v.requires_grad]
    ends = torch.stack([nodes[0], nodes[-1]])
    z: Any = odeint_adjoint(
        rate,
        x / float(levels.alpha[0]),
        ends,
        method=integrator,
        options={"grid_constructor": grid},
        adjoint_options={"grid_constructor": grid},
        adjoint_params=(*wanted, *parameters),
    )
    return z[-1] * float(levels.alpha[-1])
