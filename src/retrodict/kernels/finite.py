"""Kernels on finitely many states: a table of transition probabilities, and the O(K) flip of token bridges.

States are integers ``(batch, ...)``; laws `Categorical` and messages `Table` have a trailing state axis.  The
coordinates of a state are independent given the previous state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from retrodict.core.noise import Noise, inverted
from retrodict.kernels.checks import Space, check_stochastic, real_tensor
from retrodict.kernels.kernel import Kernel
from retrodict.kernels.laws import Categorical, Table, event_sum


@dataclass(frozen=True)
class Finite(Kernel):
    """Transition table ``log_p (..., S, S')``: row x holds the law of y given x."""

    log_p: Tensor

    @staticmethod
    def of(P: Tensor) -> Finite:
        """From a stochastic matrix ``(..., S, S')``; rows that do not sum to one raise."""
        P = real_tensor(P, "transition matrix")
        check_stochastic(P)
        P = P.double()  # rows that sum to one in single precision do not yet in double
        return Finite(safe_log(P / P.sum(-1, keepdim=True)))

    @property
    def domain(self) -> Space:
        return Space("states", self.log_p.shape[-2])

    @property
    def codomain(self) -> Space:
        return Space("states", self.log_p.shape[-1])

    def _rows(self, x: Tensor) -> Tensor:
        table = self.log_p.expand(*x.shape, *self.log_p.shape[-2:])
        index = x[..., None, None].expand(*x.shape, 1, self.log_p.shape[-1])
        return table.gather(-2, index).squeeze(-2)

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        return noise.uniform(shape)

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        cumulative = self._rows(x).exp().cumsum(-1)[..., :-1]
        return (z.unsqueeze(-1) >= cumulative).sum(-1)

    def log_prob(self, x: Tensor, y: Tensor, event: int | None = None) -> Tensor:
        x, y = torch.broadcast_tensors(x, y)
        return event_sum(self._rows(x).gather(-1, y.unsqueeze(-1)).squeeze(-1), event)

    def push(self, law: Categorical) -> Categorical:
        if not isinstance(law, Categorical):
            return super().push(law)
        return Categorical(torch.logsumexp(law.log_p.unsqueeze(-1) + self.log_p, dim=-2))

    def pull(self, h: Table) -> tuple[Kernel, Table]:
        if not isinstance(h, Table):
            return super().pull(h)
        joint = self.log_p + h.log_h.unsqueeze(-2)
        return Finite(normalised(joint)), Table(torch.logsumexp(joint, -1))

    def invert(self, law: Categorical) -> Kernel:
        if not isinstance(law, Categorical):
            return super().invert(law)
        return Finite(normalised((law.log_p.unsqueeze(-1) + self.log_p).transpose(-1, -2)))

    def compose(self, later: Finite) -> Finite:
        """This kernel and then ``later``, as one."""
        return Finite(torch.logsumexp(self.log_p.unsqueeze(-1) + later.log_p.unsqueeze(-3), -2))


def safe_log(P: Tensor) -> Tensor:
    """log P, minus infinity where P is zero, and there without a gradient (the plain log's is NaN)."""
    possible = P > 0
    return torch.where(possible, torch.where(possible, P, 1.0).log(), -torch.inf)


def normalised(joint: Tensor) -> Tensor:
    """Rows of log weights as rows of log probabilities.

    A row without any mass has no law: what was conditioned on cannot happen there.  Any law will do, and the
    uniform one keeps rows stochastic.
    """
    total = torch.logsumexp(joint, -1, keepdim=True)
    dead = torch.isinf(total)
    return torch.where(dead, -math.log(joint.shape[-1]), joint - torch.where(dead, 0.0, total))


@dataclass(frozen=True)
class Flip(Kernel):
    """Keep x with probability ``u``, otherwise become ``other``: the kernel of masks and token bridges.

    Args:
        u: probability of keeping, ``(batch, ...)`` or a number.
        other: the token taken otherwise, ``(batch, ...)`` integers.
        classes: size of the state space (mask included).
        likely: a value of which a law may be sure ``(batch, ...)``, looked up before anything is drawn.

    ``push`` costs O(classes) a coordinate, where a table would cost its square, and a draw from what it returns only
    where x is kept and not known.
    """

    u: Tensor
    other: Tensor
    classes: int
    likely: Tensor | None = None

    @property
    def codomain(self) -> Space:
        return Space("states", self.classes)

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        return noise.uniform(shape)

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.where(z < self.u, x, self.other.expand_as(x))

    def log_prob(self, x: Tensor, y: Tensor, event: int | None = None) -> Tensor:
        u = torch.as_tensor(self.u, dtype=torch.float64, device=y.device)
        p = u * (x == y) + (1 - u) * (y == self.other)
        return event_sum(p.log(), event)

    def push(self, law: Categorical) -> Categorical:
        return Flipped(self, law)


class Flipped(Categorical):
    """The law behind a `Flip`: its table is written out when it is asked for, and a draw needs none.

    Args:
        kernel: the flip; law: of the state before it, over ``classes`` values or fewer.
    """

    def __init__(self, kernel: Flip, law: Categorical) -> None:
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "before", law)

    kernel: Flip
    before: Categorical

    @cached_property
    def log_p(self) -> Tensor:  # type: ignore[override]
        """``(batch, ..., classes)`` float64."""
        kernel, p = self.kernel, self.before.log_p.double().exp()
        u = torch.as_tensor(kernel.u, dtype=torch.float64, device=p.device)
        u = u.unsqueeze(-1) if u.ndim else u
        if p.shape[-1] < kernel.classes:  # beliefs about clean tokens need not list the mask
            p = torch.nn.functional.pad(p, (0, kernel.classes - p.shape[-1]))
        other = torch.nn.functional.one_hot(kernel.other.expand(p.shape[:-1]), kernel.classes)
        return (u * p + (1 - u) * other).log()

    def sample(self, noise: Noise) -> Tensor:
        """Whether x is kept first, by one uniform; then x itself, by another, where it is kept and not known."""
        log_p, kernel = self.before.log_p, self.kernel
        shape = log_p.shape[:-1]
        kept, u = noise.uniform((2, *shape[1:])).to(log_p.device).expand(shape[0], 2, *shape[1:]).unbind(1)
        drawn = kept < kernel.u
        y = kernel.other.expand(shape).clone()
        if kernel.likely is not None:
            likely = kernel.likely.expand(shape)
            sure = drawn & (log_p.gather(-1, likely.unsqueeze(-1)).squeeze(-1) == 0)
            y, drawn = torch.where(sure, likely, y), drawn & ~sure
        y[drawn] = inverted(log_p[drawn], u[drawn])
        return y
