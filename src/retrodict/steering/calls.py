"""Rows of steering plans that depend on data: what a published method does beside a solver's own step.

==========  ====================================================================================================
push        the state moves along the shift of the mean: ``x + a (D_y - D)``
renoise     a draw of x0 given what was measured, noised to the next level (DAPS)
replace     measured coordinates are set to the measurement, noised to the level (score-SDE, RePaint, DDRM's start)
ddrm        one step in the singular directions of the operator (DDRM)
==========  ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.denoisers import Denoiser
from retrodict.kernels import Belief
from retrodict.kernels.laws import event_sum
from retrodict.solvers.general import calls
from retrodict.solvers.plan import Call
from retrodict.steering import moves
from retrodict.steering.measurement import Measurement
from retrodict.steering.potential import Node

MOVES = ("exact", "langevin", "hmc", "metropolis")


@calls.register("push")
def push(
    denoiser: Denoiser, x: Tensor, belief: Belief, call: Call, noise: Noise, condition: Mapping[str, Any]
) -> Tensor:
    """``x + factor (D_y - D)``, factor a number or one for each element."""
    factor = torch.as_tensor(call.options["factor"], dtype=torch.float64).to(x)
    return x + factor * (belief.mean - belief.unsteered).to(x)


@calls.register("renoise")
def renoise(
    denoiser: Denoiser, x: Tensor, belief: Belief, call: Call, noise: Noise, condition: Mapping[str, Any]
) -> Tensor:
    """``alpha_s x0 + sigma_s z``, x0 a draw of ``N(D, C)`` given y.

    The law of x_s is exact if that of x0 is, whatever the levels: nothing has to mix (Zhang et al. 2025, prop. 1).  A
    denoiser without goals draws x0 from its own belief.
    """
    source = noise.stream("renoise")
    path: Any = denoiser.process
    if hasattr(denoiser, "potentials"):
        goal, node = the_measurement(denoiser), Node(x, call.t, belief, path, denoiser.scale)
        if call.options["move"] == "exact":
            x0 = goal.draw(node, source)
        else:
            x0 = _chain(goal, node, source, call)
        x0 = x0 if denoiser.scale is None else denoiser.scale(x0)
    elif belief.draw is not None:
        x0 = belief.draw(source)
    else:
        raise InputError("this denoiser draws nothing of its belief: condition it, or use an oracle")
    z = source.normal(tuple(x.shape[1:])).to(x)
    end = call.options["end"]
    return x0.to(x) if end else float(path.alpha(call.s)) * x0.to(x) + float(path.sigma(call.s)) * z


def _chain(goal: Measurement, node: Node, noise: Noise, call: Call) -> Tensor:
    """A Markov chain on ``N(D, r^2) exp l``, from D, in the user's units."""
    width = goal.how.spread(goal, node, torch.ones_like(node.mean))

    def log_density(x0: Tensor) -> Tensor:
        return goal.likelihood(x0) - 0.5 * event_sum(((x0 - node.mean) / width).double() ** 2)

    curvature = 1 / width**2 + _curvature(goal, node, noise) / goal.variance
    how, n, rate = call.options["move"], call.options["moves"], call.options["rate"]
    if how == "langevin":
        return moves.langevin(log_density, node.mean, rate / curvature, n, noise)
    if how == "hmc":
        leaps = 5
        step = rate / curvature.sqrt()
        return moves.hmc(log_density, node.mean, step, max(1, n // leaps), noise, leaps=leaps).x
    return moves.metropolis(log_density, node.mean, rate / curvature.sqrt(), n, noise).x


def _curvature(goal: Measurement, node: Node, noise: Noise, rounds: int = 4) -> Tensor:
    """The largest eigenvalue of ``A^T A`` at D, by power iteration, ``(batch, 1, ...)``."""
    v = noise.stream("power").normal(tuple(node.mean.shape[1:])).to(node.mean)
    size = torch.ones(len(v), 1, device=v.device)
    for _ in range(rounds):
        v = v / v.flatten(1).norm(dim=1).clamp_min(1e-30).reshape(-1, *(1,) * (v.ndim - 1))
        v = goal.pull_back(node.mean, goal.push(node.mean, v))
        size = v.flatten(1).norm(dim=1)
    return size.reshape(-1, *(1,) * (v.ndim - 1))


@calls.register("replace")
def replace(
    denoiser: Denoiser,
    x: Tensor,
    belief: Belief | None,
    call: Call,
    noise: Noise,
    condition: Mapping[str, Any],
) -> Tensor:
    """Measured coordinates become ``alpha c + sqrt(sigma^2 - alpha^2 std^2) z`` at the level s (Song et al. 2021,
    appendix I.2, with the noise of the measurement taken out of what is added)."""
    seen = the_measurement(denoiser).coordinates
    path: Any = denoiser.process
    alpha, sigma = (1.0, 0.0) if call.options.get("end") else (float(path.alpha(call.s)), float(path.sigma(call.s)))
    c = seen.inwards(x.double())
    fresh = (sigma**2 - (alpha * seen.std) ** 2).clamp_min(0).sqrt()
    there = alpha * seen.y + fresh * noise.stream("replace").normal((c.shape[1],)).to(c)
    there = torch.where(torch.isfinite(seen.std), there, c)
    return (x.double() + seen.outwards(there - c)).to(x)


@calls.register("ddrm")
def ddrm(
    denoiser: Denoiser, x: Tensor, belief: Belief, call: Call, noise: Noise, condition: Mapping[str, Any]
) -> Tensor:
    """One step of Kawar et al. (2022, eqs. (7), (8)), in units of x/alpha: with theta what is believed, c what was
    measured with std s, b the level arrived at and a the one left,

    ==================  ================================================================
    nothing measured    theta + sqrt(1 - eta^2) b (x - theta)/a + eta b z
    b < s               theta + sqrt(1 - eta^2) b (c - theta)/s + eta b z
    b >= s              (1 - eta_b) theta + eta_b c + sqrt(b^2 - (eta_b s)^2) z
    ==================  ================================================================
    """
    seen = the_measurement(denoiser).coordinates
    path: Any = denoiser.process
    eta, eta_b, end = (call.options[name] for name in ("eta", "eta_b", "end"))
    alpha, sigma = float(path.alpha(call.t)), float(path.sigma(call.t))
    to, b = (1.0, 0.0) if end else (float(path.alpha(call.s)), float(path.sigma(call.s)) / float(path.alpha(call.s)))
    D, z = belief.unsteered.double(), noise.stream("ddrm").normal(tuple(x.shape[1:])).to(x).double()
    keep = (1 - eta**2) ** 0.5
    free = D + keep * b * (x.double() - alpha * D) / sigma + eta * b * z
    theta, fresh = seen.inwards(D), seen.inwards(z)
    known = torch.isfinite(seen.std)
    std = torch.where(known, seen.std, 0.0)
    blurred = theta + keep * b * (seen.y - theta) / std.clamp_min(1e-300) + eta * b * fresh
    spread = (b**2 - (eta_b * std) ** 2).clamp_min(0).sqrt()
    sharp = (1 - eta_b) * theta + eta_b * seen.y + spread * fresh
    there = torch.where(b < std, blurred, sharp)
    there = torch.where(known, there, seen.inwards(free))
    return (to * (free + seen.outwards(there - seen.inwards(free)))).to(x)


def the_measurement(denoiser: Any) -> Measurement:
    """The one measurement of a conditioned denoiser."""
    goals = [p for p in getattr(denoiser, "potentials", []) if isinstance(p, Measurement)]
    if len(goals) != 1 or len(goals) != len(denoiser.potentials):
        raise InputError("this plan takes a denoiser conditioned on one measurement, or on several with noise")
    return goals[0]
