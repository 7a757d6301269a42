"""The linear-Gaussian chain with quadratic potentials, and what its inference returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.kernels.scans.gaussian.algebra import Message, Step, absorb

# name: (axes before the state axes, state axes)
_LAYOUT = {"m0": (1, 1), "P0": (1, 2), "A": (2, 2), "b": (2, 1), "Q": (2, 2), "H": (2, 2), "F": (2, 1), "c": (2, 0)}


@dataclass(frozen=True)
class GaussianChain:
    """``x_0 ~ N(m0, P0)``, ``x_k = A_k x_{k-1} + b_k + N(0, Q_k)``, and a potential at every node.

    The potential at node k = 0..n is ``log g_k(x) = c_k + F_k.x - x.H_k x/2``; zeros mean that nothing was seen.
    P0, Q and H are symmetric positive semi-definite and may be singular or zero.  Symmetry is assumed.

    Args:
        m0: ``(S|1, d)``; P0: ``(S|1, d, d)``; A, Q: ``(S|1, n|1, d, d)``; b: ``(S|1, n|1, d)``;
        H: ``(S|1, n+1|1, d, d)``; F: ``(S, n+1, d)``; c: ``(S, n+1)``; an axis of length one is shared.
            Everything is converted to float64.

    F says how many series (S) and how many steps (n) there are.
    """

    m0: Tensor
    P0: Tensor
    A: Tensor
    b: Tensor
    Q: Tensor
    H: Tensor
    F: Tensor
    c: Tensor

    def __post_init__(self) -> None:
        for name, (lead, state) in _LAYOUT.items():
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                raise InputTypeError(f"GaussianChain.{name} is a tensor, got {type(value).__name__}")
            if value.ndim != lead + state:
                raise InputError(f"GaussianChain.{name} has {lead + state} axes, got shape {tuple(value.shape)}")
            if value.dtype != torch.float64:
                object.__setattr__(self, name, value.to(torch.float64))
        series, nodes, d = self.F.shape
        for name, (lead, state) in _LAYOUT.items():
            length = nodes if name in ("H", "F", "c") else nodes - 1
            shape, own = getattr(self, name).shape, name in ("F", "c")
            if (
                shape[lead:] != (d, d)[:state]
                or (shape[0] != series and (own or shape[0] != 1))
                or (lead == 2 and shape[1] != length and (own or shape[1] != 1))
            ):
                axes = (str(series), str(length)) if own else (f"{series}|1", f"{length}|1")
                want = ", ".join((*axes[:lead], *[str(d)] * state))
                raise InputError(
                    f"GaussianChain.{name} has shape {tuple(shape)}; ({want}) goes with F {tuple(self.F.shape)}"
                )

    @property
    def series(self) -> int:
        """Number of series, S."""
        return self.F.shape[0]

    @property
    def n(self) -> int:
        """Number of steps; there are n + 1 nodes."""
        return self.F.shape[1] - 1

    @property
    def d(self) -> int:
        """Size of the state."""
        return self.F.shape[2]

    @property
    def own(self) -> int:
        """How many series have matrices of their own: S, or 1 if P0, A, Q and H are shared."""
        return max(x.shape[0] for x in (self.P0, self.A, self.Q, self.H))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """``(m0, P0, A, b, Q, H, F, c)``."""
        return self.m0, self.P0, self.A, self.b, self.Q, self.H, self.F, self.c

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """``make()``, kept while no tensor of the chain is changed in place: means, evidence and draws of one chain
        share the expensive half.  For what runs outside autograd.
        """
        kept = self.__dict__.setdefault("_kept", {})
        versions = [-1 if x.is_inference() else x._version for x in self.tensors]
        if name not in kept or kept[name][0] != versions:
            kept[name] = versions, make()
        return kept[name][1]

    def step(self, k: int) -> Step:
        """``(A, b, Q)`` of the step from node k-1 to node k, leading axis S or 1."""
        A, b, Q = (x[:, min(k - 1, x.shape[1] - 1)] for x in (self.A, self.b, self.Q))
        return A, b, Q

    def steps(self) -> Step:
        """``(A, b, Q)`` of all steps, ``(S|1, n, ...)``."""
        A, b, Q = (x.expand(-1, self.n, *x.shape[2:]) for x in (self.A, self.b, self.Q))
        return A, b, Q

    def potential(self, k: int) -> Message:
        """The potential at node k, leading axis S (of H: or 1)."""
        return self.H[:, min(k, self.H.shape[1] - 1)], self.F[:, k], self.c[:, k]

    def potentials(self) -> Message:
        """The potentials at all nodes, H as ``(S|1, n+1, d, d)``."""
        return self.H.expand(-1, self.n + 1, self.d, self.d), self.F, self.c


def guided_steps(chain: GaussianChain, h: Message) -> Step:
    """Every step conditioned on the fused message at its end, ``(S|1, n, ...)``."""
    return absorb(chain.steps(), (h[0][:, 1:], h[1][:, 1:], h[2][:, 1:]))[0]


@dataclass(frozen=True)
class Filtered:
    """Laws of ``x_k`` given the potentials at 0..k: mean ``(S, n+1, d)``, cov ``(S, n+1, d, d)``.

    ``log_evidence (S,)``; ``route`` names the algorithm that ran.
    """

    mean: Tensor
    cov: Tensor
    log_evidence: Tensor
    route: str


@dataclass(frozen=True)
class Smoothed:
    """Laws of ``x_k`` given all potentials: mean ``(S, n+1, d)``, cov ``(S, n+1, d, d)``.

    ``cross (S, n, d, d)``, on request, has ``Cov(x_{k+1}, x_k)`` at index k.  ``log_evidence (S,)``; ``route`` names
    the algorithm that ran.
    """

    mean: Tensor
    cov: Tensor
    log_evidence: Tensor
    route: str
    cross: Tensor | None = None
