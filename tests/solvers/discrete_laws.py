"""The exact law of a discrete plan's samples: every state of a small space is pushed through every row.

Coordinates move independently given the state, so the transition of a reverse step from one state is the product of
its coordinates' laws; nothing is sampled.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from retrodict.denoisers import Denoiser, sharpened
from retrodict.processes import Discrete
from retrodict.solvers.plan import Call, Eval, Plan


def all_states(classes: int, length: int) -> Tensor:
    """Every state, ``(classes^length, length)``."""
    return torch.tensor(list(itertools.product(range(classes), repeat=length)))


def product(p: Tensor) -> Tensor:
    """Joint laws ``(batch, classes^length)`` of independent coordinates ``(batch, length, classes)``."""
    joint = p[:, 0]
    for l in range(1, p.shape[1]):
        joint = (joint.unsqueeze(-1) * p[:, l].unsqueeze(-2)).flatten(1)
    return joint


def padded(p: Tensor, classes: int) -> Tensor:
    """A law over clean values as one over all values."""
    return torch.nn.functional.pad(p, (0, classes - p.shape[-1]))


def law_of(plan: Plan, denoiser: Denoiser, start: Tensor, x1: Tensor | None = None) -> Tensor:
    """Law of the result over `all_states`, for plans of reverse steps; ``start`` is a law over the same states."""
    process = denoiser.process
    assert isinstance(process, Discrete) and denoiser.shape is not None
    states = all_states(process.classes, denoiser.shape[0])
    other = None if x1 is None else x1.expand_as(states)
    law = start.double()
    t = 1.0
    for code in plan.code:
        if isinstance(code, Eval):
            t = code.t
            continue
        assert isinstance(code, Call) and code.name == "reverse-step" and code.options["belief_as"] == "auto"
        law = law @ transition(denoiser, states, t, code, other)
    return law


def transition(denoiser: Denoiser, states: Tensor, t: float, code: Call, x1: Tensor | None) -> Tensor:
    """One reverse step as a matrix over `all_states`; rows of states that cannot occur are left as they are."""
    process: Any = denoiser.process
    known = {} if x1 is None else {"x1": x1}
    words = {k: v for k, v in code.options.items() if k in ("temperature", "top_p")}
    belief = sharpened(denoiser.belief(states, t, **known), **words)
    moved = process.bridge(states, code.t, code.s, code.options["eta"], x1).push(belief.law).log_p.exp()
    return product(moved)


def start_of(process: Discrete, length: int, x1: Tensor | None = None) -> Tensor:
    """Law of the state at t = 1 over `all_states`."""
    if x1 is not None:
        states = all_states(process.classes, length)
        return (states == x1).all(1).double()
    return product(process.prior_log_p().exp().expand(1, length, -1))[0]


def tv(p: Tensor, q: Tensor) -> float:
    """Total variation distance."""
    return float((p - q).abs().sum() / 2)


def on_states(data: Tensor, weights: Tensor, classes: int) -> Tensor:
    """A law of data as one over `all_states`."""
    law = torch.zeros(classes ** data.shape[1], dtype=torch.float64)
    place = (data * classes ** torch.arange(data.shape[1] - 1, -1, -1)).sum(1)
    return law.index_add(0, place, weights.double())
