"""One pass of a plan through a pipeline's loop: its registers, and how far it has come.

The pipeline evaluates, the plan moves: `Run.enter` takes the state that the network saw, `Run.advance` takes the mean
it answered with, executes the rows up to the next evaluation and returns that evaluation's state.  The state is kept
in float32 at least, however low the network's precision is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.denoisers import Denoiser
from retrodict.kernels import Belief
from retrodict.solvers.general import calls
from retrodict.solvers.passes import last_uses
from retrodict.solvers.plan import Call, Eval, Plan, Row


class Run:
    """A plan under way.

    Args:
        first: index of its first evaluation in the list of timesteps.

    Attributes:
        done: evaluations that are over.
    """

    def __init__(self, plan: Plan, first: int) -> None:
        self.plan, self.first, self.done = plan, first, 0
        self._dead = last_uses(plan.code, plan.out)
        self._at = 0
        self._x: dict[int, Tensor] = {}
        self._means: dict[int, Tensor] = {}
        self._shown: tuple[Tensor, int] | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is left to evaluate."""
        return self._at >= len(self.plan.code)

    @property
    def node(self) -> Eval:
        """The evaluation that the pipeline is at."""
        if self.over:
            raise InputError("the run is over; call set_timesteps to begin another")
        return self.plan.code[self._at]  # type: ignore[return-value]

    def enter(self, sample: Tensor) -> Tensor:
        """The state at `node`: ours in full precision, or the pipeline's if it changed what it was shown."""
        register, shown = self.node.x, self._shown
        known = self._x.get(register)
        if known is not None and known.shape != sample.shape:
            raise InputError(f"the state had shape {tuple(known.shape)} and now has {tuple(sample.shape)}")
        unchanged = shown is not None and shown[0] is sample and shown[1] == sample._version
        if known is None or not unchanged:
            self._x[register] = sample.to(torch.promote_types(sample.dtype, torch.float32))
        return self._x[register]

    def advance(self, mean: Tensor, denoiser: Denoiser, noise: Noise, dtype: torch.dtype) -> Tensor:
        """Take the mean of `node` and return the next state to be shown, in ``dtype``."""
        self._means[self.node.k] = mean
        self._forget()
        while not self.over and not isinstance(self.plan.code[self._at], Eval):
            self._do(self.plan.code[self._at], denoiser, noise)
            self._forget()
        self.done += 1
        out = self._x[self.plan.out if self.over else self.node.x].to(dtype)
        self._shown = (out, out._version)
        return out

    def _do(self, instruction: Any, denoiser: Denoiser, noise: Noise) -> None:
        if isinstance(instruction, Call):
            belief, x = Belief(self._means[instruction.k]), self._x[instruction.x]
            self._x[instruction.dst] = calls[instruction.name](denoiser, x, belief, instruction, noise, {})
            return
        row: Row = instruction
        like = next(iter([*self._means.values(), *self._x.values()]))
        terms = [(self._x[r], a) for r, a in row.x.items()] + [(self._means[k], b) for k, b in row.d.items()]
        terms += [(noise.normal(tuple(like.shape[1:])).to(like.dtype), c) for c in row.z.values()]
        out = torch.mul(*terms[0]) if terms else torch.zeros_like(like)
        for value, coefficient in terms[1:]:
            out.add_(value, alpha=coefficient)
        self._x[row.dst] = out

    def _forget(self) -> None:
        for name in self._dead[self._at]:
            (self._x if name[0] == "x" else self._means).pop(int(name[1:]), None)
        self._at += 1


class PipelineNoise(Noise):
    """Noise as diffusers draws it: the whole batch from one generator, or each sample from its own, in its dtype."""

    def __init__(self, generator: Any, like: Tensor, dtype: torch.dtype) -> None:
        self.generator, self.batch, self.dtype, self.device = generator, like.shape[0], dtype, like.device

    def normals(self, rows: int, shape: Sequence[int]) -> list[Tensor]:
        from diffusers.utils.torch_utils import randn_tensor

        size = (self.batch, *shape)
        return [randn_tensor(size, generator=self.generator, device=self.device, dtype=self.dtype) for _ in range(rows)]

    def stream(self, name: str) -> Noise:
        return self
