"""A denoiser under potentials: `Steered`, which every plan runs unchanged and which owns its weights.

At each evaluation the belief's mean moves by the potentials' drift, ``D_h = D + sum of shifts``, and the belief keeps
the mean without it, so that a run can price the move: with ``log_ratio`` = log of unsteered over steered transition,

    start      log h_1(x_1)
    move       log h_s(x_s) - log h_t(x_t) + log_ratio
    end        l(x_0) - log h_t(x_t) + log_ratio

(Wu et al. 2023, "twisted diffusion sampler", section 3; Del Moral 2004 for the general form).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import NonFiniteError
from retrodict.denoisers.denoiser import Denoiser, Step
from retrodict.kernels import Belief
from retrodict.solvers.auto import Choice
from retrodict.solvers.plan import Call, Plan
from retrodict.steering.potential import Node, Potential, Tilt

#: Rows of plans that look at the goals themselves (`retrodict.steering.calls`).
ROWS = ("push", "renoise", "replace", "ddrm")


class Steered(Denoiser):
    """A denoiser under one or several potentials.

    Args:
        denoiser: what is steered; if it is steered already its potentials are kept.
        potentials: their log values add up.
        drift: whether the potentials move the mean; if not they only weigh.
        preferred: the plan that ``solver="auto"`` makes; None for the table's.
        method: in words, how the goals became potentials.
    """

    weighted = True

    def __init__(
        self,
        denoiser: Denoiser,
        potentials: Sequence[Potential],
        drift: bool = True,
        *,
        preferred: Choice | None = None,
        method: str = "",
    ) -> None:
        before: list[Potential] = []
        if isinstance(denoiser, Steered):
            preferred, method = preferred or denoiser.preferred, method or denoiser.method
            denoiser, before, drift = denoiser.denoiser, denoiser.potentials, drift and denoiser.drift
        super().__init__(denoiser.process, denoiser.shape, denoiser.conditions)
        self.denoiser, self.drift, self.preferred, self.method = denoiser, drift, preferred, method
        self.scale, self.codec, self.temperature = denoiser.scale, denoiser.codec, denoiser.temperature
        for potential in potentials:
            potential.check(denoiser.shape, denoiser.process)
        self.potentials = [p.bind(denoiser) for p in _joined([*before, *potentials])]

    @property
    def needs_density(self) -> bool:
        """Whether weighted moves need fresh noise: they are bent, and the bend has to be priced."""
        return self.drift and any(p.drift for p in self.potentials)

    def acts_in(self, plan: Plan) -> bool:
        """Whether a run without weights heeds the goals: they bend the mean, or the plan has rows for them."""
        return self.needs_density or any(isinstance(c, Call) and c.name in ROWS for c in plan.code)

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        graph = any(p.graph for p in self.potentials)
        with torch.enable_grad() if graph else nullcontext():
            seen = x.detach().requires_grad_(True) if graph else x
            base = self.denoiser.belief(seen, t, **condition)
            node = Node(seen, t, base, self.process, self.scale)
            tilts = [p.at(node) for p in self.potentials]
        return self._tilted(node, tilts)

    def _tilted(self, node: Node, tilts: list[Tilt]) -> Belief:
        base = node.belief
        log_h = torch.stack([tilt.log_h.detach().double() for tilt in tilts]).sum(0)
        if bool(torch.isnan(log_h).any()):
            raise NonFiniteError(f"a potential is NaN at t = {float(torch.as_tensor(node.t).max()):g}")
        mean = base.mean.detach()
        out = replace(base, mean=mean, log_h=log_h, parts=[(w, _detached(part)) for w, part in base.parts])
        shifts = [tilt.shift for tilt in tilts if tilt.shift is not None]
        if self.drift and shifts:
            out.base, out.mean = base.unsteered.detach(), mean + sum(node.shrink(s.detach()).to(mean) for s in shifts)
        return out

    def likelihood(self, x: Tensor) -> Tensor:
        """Sum of the potentials' values at clean states in the model's units, ``(batch,)`` float64."""
        x0 = x if self.scale is None else self.scale.inverse(x)
        return torch.stack([p.likelihood(x0).double() for p in self.potentials]).sum(0)

    def start_weight(self, belief: Belief) -> Tensor:
        return self.denoiser.start_weight(belief) + _log_h(belief)

    def increment(self, step: Step) -> Tensor:
        assert step.now is not None
        return self.denoiser.increment(step) + _log_h(step.now) - _log_h(step.prev) + step.log_ratio

    def final(self, step: Step) -> Tensor:
        return self.denoiser.final(step) + self.likelihood(step.x) - _log_h(step.prev) + step.log_ratio


def _joined(potentials: list[Potential]) -> list[Potential]:
    """Goals that are better treated as one."""
    out: list[Potential] = []
    for potential in potentials:
        for i, other in enumerate(out):
            both = other.join(potential)
            if both is not None:
                out[i] = both
                break
        else:
            out.append(potential)
    return out


def _log_h(belief: Belief) -> Tensor:
    assert belief.log_h is not None
    return belief.log_h


def _detached(belief: Belief) -> Belief:
    return replace(belief, mean=belief.mean.detach())
