"""The data-dependent rows of discrete plans: reverse steps, leaps, events, and remasking by confidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.denoisers import Denoiser, sharpened
from retrodict.kernels import Belief, Flip
from retrodict.kernels.laws import event_sum
from retrodict.processes import Blackout, Discrete, TokenBridge
from retrodict.processes.counts import draw_poisson
from retrodict.processes.discrete import leading
from retrodict.solvers.general import calls, densities
from retrodict.solvers.plan import Call

_BISECTIONS = 44  # of the log of the forgotten share: to 1e-12 of its range


def _belief(belief: Belief, call: Call) -> Belief:
    """The belief as the row's options sharpen it."""
    return sharpened(belief, call.options.get("temperature", 1.0), call.options.get("top_p", 1.0))


@calls.register("reverse-step")
def reverse_step(
    denoiser: Denoiser, x: Tensor, belief: Belief, call: Call, noise: Noise, condition: Mapping[str, Any], *more: Tensor
) -> Tensor:
    """`Process.reverse_step`: the bridge pushes the belief; from a clock of its own for each sample if there is one."""
    belief = _belief(belief, call)
    how = call.options["belief_as"]
    if how == "auto":
        how = "mean" if belief.law is None else "marginal"
    t = more[0] if more else call.t
    return denoiser.process.reverse_step(
        x, t, call.s, belief, call.options["eta"], noise.stream("rows"), condition.get("x1"), how
    ).to(x.dtype)


@calls.register("tau-leap")
def tau_leap(
    denoiser: Denoiser, x: Tensor, belief: Belief, call: Call, noise: Noise, condition: Mapping[str, Any]
) -> Tensor:
    """Backward rates at t, frozen until s: Poisson births of counts, at most one jump of other values."""
    process, belief = denoiser.process, _belief(belief, call)
    assert isinstance(process, Discrete)
    jumps = process.jumps(_known(belief), x, call.t, condition.get("x1"))
    size = call.t - call.s
    u = noise.stream("rows").uniform((2, *x.shape[1:])).unbind(1)
    if isinstance(process, Blackout):
        top = process.levels - 1
        return (x + draw_poisson(jumps.rate[..., 0] * size, top, u[0])).clamp(max=top)
    total = jumps.rate.sum(-1)
    pick = _pick(jumps.rate, u[1])
    landed = jumps.to.gather(-1, pick.unsqueeze(-1)).squeeze(-1)
    return torch.where(u[0] < -torch.expm1(-total * size), landed, x)


@densities.register("reverse-step")
def step_density(
    denoiser: Denoiser, x: Tensor, call: Call, moved: Tensor, condition: Mapping[str, Any]
) -> Callable[[Belief], Tensor] | None:
    """Of a step that is a reversal: no fresh draws, and a law that is pushed."""
    if call.options["eta"] != 0 or call.options["belief_as"] not in ("auto", "marginal"):
        return None

    def density(belief: Belief) -> Tensor:
        kernel: Any = denoiser.process.bridge(x, call.t, call.s, 0.0, condition.get("x1"))
        return kernel.push(_law(_belief(belief, call), "reverse-step")).log_prob(moved)

    return density


@densities.register("tau-leap")
def leap_density(
    denoiser: Denoiser, x: Tensor, call: Call, moved: Tensor, condition: Mapping[str, Any]
) -> Callable[[Belief], Tensor] | None:
    """At most one jump of each coordinate at frozen rates."""
    process = denoiser.process
    assert isinstance(process, Discrete)
    if isinstance(process, Blackout):
        return None

    def density(belief: Belief) -> Tensor:
        jumps = process.jumps(_known(_belief(belief, call)), x, call.t, condition.get("x1"))
        total = jumps.rate.sum(-1)
        there = (jumps.rate * (jumps.to == moved.unsqueeze(-1))).sum(-1)
        leave = torch.log(-torch.expm1(-total * (call.t - call.s))) + (there / total).log()
        return event_sum(torch.where(moved == x, -total * (call.t - call.s), leave))

    return density


@calls.register("event-time")
def event_time(
    denoiser: Denoiser, x: Tensor, belief: Belief, call: Call, noise: Noise, condition: Mapping[str, Any], *more: Tensor
) -> Tensor:
    """When each sample next jumps, ``(batch,)`` float64; ``floor`` where it does not before that time.

    The chance that no coordinate jumps from t back to s falls with s; the event is where it meets a uniform.
    """
    process, x1, law = denoiser.process, condition.get("x1"), _law(_belief(belief, call), "event-time")
    assert isinstance(process, Discrete)
    t = _clock(more, call, x)
    floor = _floor(process, t, call)
    log_u = noise.stream("times").uniform(()).to(x.device).log()
    high, low = process.hide(t).log(), process.hide(floor).log()

    def stay(log_hide: Tensor) -> Tensor:
        return process.log_stay(law, x, t, process.time_at(log_hide.exp()), x1).flatten(1).sum(1)

    none = (stay(low) > log_u) | (t <= floor)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        earlier = stay(middle) > log_u  # no event yet: it lies further back
        low, high = torch.where(earlier, low, middle), torch.where(earlier, middle, high)
    return torch.where(none, floor, process.time_at(high.exp()).maximum(floor).minimum(t))


@calls.register("event")
def event(
    denoiser: Denoiser, x: Tensor, belief: Belief, call: Call, noise: Noise, condition: Mapping[str, Any], *more: Tensor
) -> Tensor:
    """The jump itself: a coordinate and its new value in proportion to their rates at the time of the event."""
    process, x1, law = denoiser.process, condition.get("x1"), _law(_belief(belief, call), "event")
    assert isinstance(process, Discrete)
    at, t = more[0], _clock(more[1:], call, x)
    there, _ = process.at_time(law, x, t, at, x1)
    jumps = process.jumps(there, x, at, x1)
    rate = jumps.rate.flatten(1)
    m = jumps.rate.shape[-1]
    pick = _pick(rate, noise.stream("rows").uniform(()).to(x.device))
    target = jumps.to.flatten(1).gather(1, pick.unsqueeze(1))
    moved = x.flatten(1).scatter(1, (pick // m).unsqueeze(1), target).reshape(x.shape)
    jumped = (at > _floor(process, t, call)) & (rate.sum(1) > 0)
    return torch.where(leading(jumped, x.ndim), moved, x)


@calls.register("confident-step")
def confident_step(
    denoiser: Denoiser, x: Tensor, belief: Belief, call: Call, noise: Noise, condition: Mapping[str, Any], *more: Tensor
) -> Tensor:
    """Unmasking without remasking, and shown positions forgotten by ``sigma_max softmax(-psi)``.

    Hidden positions have no part in the softmax; where everything is hidden nothing is forgotten.
    """
    process, x1, belief = denoiser.process, condition.get("x1"), _belief(belief, call)
    assert isinstance(process, TokenBridge)
    most, _ = process.exchange(call.t, call.s, 1.0)
    _, revive = process.exchange(call.t, call.s, 0.0)
    hidden = process.hidden(x, x1)
    psi = more[0] if more else torch.zeros_like(x, dtype=torch.float64)
    share = torch.softmax((-psi).masked_fill(hidden, -torch.inf).flatten(1), 1).nan_to_num().reshape(x.shape)
    stay = 1 - call.options["amount"] * share * most.to(x.device)
    kernel = Flip(torch.where(hidden, revive.to(x.device), stay), process.other(x, x1), process.classes)
    how = "marginal" if call.options["belief_as"] == "auto" else call.options["belief_as"]
    law: Any = belief.as_(how, noise.stream("belief"))
    return kernel.push(law).sample(noise.stream("rows"))


@calls.register("confidence")
def confidence(
    denoiser: Denoiser, x: Tensor, belief: Belief, call: Call, noise: Noise, condition: Mapping[str, Any], *more: Tensor
) -> Tensor:
    """The probability with which each shown position was last revealed ``(batch, *shape)``; 0 at hidden ones."""
    process, x1 = denoiser.process, condition.get("x1")
    assert isinstance(process, TokenBridge)
    moved, known = more[0], more[1:]
    p = _law(_belief(belief, call), "confidence").log_p.exp()
    now = p.gather(-1, moved.clamp(max=p.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
    revealed = process.hidden(x, x1) & ~process.hidden(moved, x1)
    before = known[0] if known else torch.ones_like(now)
    return torch.where(process.hidden(moved, x1), 0.0, torch.where(revealed, now, before))


def _clock(more: tuple[Tensor, ...], call: Call, x: Tensor) -> Tensor:
    """The time of each sample, ``(batch,)`` float64."""
    return more[0] if more else torch.full((len(x),), call.t, dtype=torch.float64, device=x.device)


def _floor(process: Discrete, t: Tensor, call: Call) -> Tensor:
    """How far back this evaluation serves, ``(batch,)``."""
    floor = torch.full_like(t, call.options["floor"])
    if "horizon" not in call.options:
        return floor
    odds = torch.logit(process.hide(t)) - call.options["horizon"]
    return process.time_at(torch.sigmoid(odds)).maximum(floor)


def _known(belief: Belief) -> Any:
    """The law over values, or the mean where that is all there is."""
    return belief.mean if belief.law is None else belief.law


def _law(belief: Belief, name: str) -> Any:
    if belief.law is None:
        raise InputError(f"the row {name!r} needs a law over values; this denoiser gives a mean alone: use 'step'")
    return belief.law


def _pick(weights: Tensor, u: Tensor) -> Tensor:
    """An index in proportion to weights ``(..., m)`` that need not be normalised, by one uniform each."""
    cumulative = weights.cumsum(-1)
    return (u.unsqueeze(-1) * cumulative[..., -1:] >= cumulative[..., :-1]).sum(-1)
