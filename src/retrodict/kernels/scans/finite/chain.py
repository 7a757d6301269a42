"""The finite-state chain with potentials, and what its inference returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError


@dataclass(frozen=True)
class FiniteChain:
    """``x_0 ~ p0``, ``x_k ~ P_k[x_{k-1}, :]``, and a potential ``log_g[k, x_k]`` at every node k = 0..n.

    Args:
        p0: ``(S|1, K)`` probabilities; P: ``(S|1, n|1, K, K)`` with rows that sum to one; log_g: ``(S, n+1, K)``, zeros
            mean that nothing was seen and -inf that a state is ruled out.  An axis of length one is shared.
            Everything is converted to float64.
    """

    p0: Tensor
    P: Tensor
    log_g: Tensor

    def __post_init__(self) -> None:
        for name, axes in (("p0", 2), ("P", 4), ("log_g", 3)):
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                raise InputTypeError(f"FiniteChain.{name} is a tensor, got {type(value).__name__}")
            if value.ndim != axes:
                raise InputError(f"FiniteChain.{name} has {axes} axes, got shape {tuple(value.shape)}")
            if value.dtype != torch.float64:
                object.__setattr__(self, name, value.to(torch.float64))
        S, n, K = self.series, self.n, self.states
        p0, P = tuple(self.p0.shape), tuple(self.P.shape)
        if p0 not in ((S, K), (1, K)):
            raise InputError(f"FiniteChain.p0 has shape {p0}; ({S}|1, {K}) goes with log_g {tuple(self.log_g.shape)}")
        if P[0] not in (S, 1) or P[1] not in (n, 1) or P[2:] != (K, K):
            want = f"({S}|1, {n}|1, {K}, {K})"
            raise InputError(f"FiniteChain.P has shape {P}; {want} goes with log_g {tuple(self.log_g.shape)}")

    @property
    def series(self) -> int:
        """Number of series, S."""
        return self.log_g.shape[0]

    @property
    def n(self) -> int:
        """Number of steps; there are n + 1 nodes."""
        return self.log_g.shape[1] - 1

    @property
    def states(self) -> int:
        """Number of states, K."""
        return self.log_g.shape[2]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """``(p0, P, log_g)``."""
        return self.p0, self.P, self.log_g

    def step(self, k: int) -> Tensor:
        """The transition from node k-1 to node k, ``(S|1, K, K)``."""
        return self.P[:, min(k - 1, self.P.shape[1] - 1)]

    def scaled(self) -> tuple[Tensor, Tensor]:
        """Potentials ``(S, n+1, K)`` divided by their largest value at each node, and its log ``(S, n+1)``."""
        top = self.log_g.detach().amax(-1)
        # a node that rules out every state keeps its zeros; whoever meets them names it
        top = torch.where(top.isinf(), torch.zeros_like(top), top)
        below = self.log_g - top.unsqueeze(-1)
        return below.exp() if below.requires_grad else below.exp_(), top


@dataclass(frozen=True)
class Filtered:
    """``probabilities (S, n+1, K)`` of ``x_k`` given the potentials at 0..k; ``log_evidence (S,)``; ``route`` run."""

    probabilities: Tensor
    log_evidence: Tensor
    route: str


@dataclass(frozen=True)
class Smoothed:
    """``probabilities (S, n+1, K)`` of ``x_k`` given all potentials; ``log_evidence (S,)``; ``route`` run.

    ``pairs``, on request: ``P(x_k = i, x_{k+1} = j)`` at index k, ``(S, n, K, K)``, or their sum over k, ``(S, K, K)``.
    """

    probabilities: Tensor
    log_evidence: Tensor
    route: str
    pairs: Tensor | None = None
