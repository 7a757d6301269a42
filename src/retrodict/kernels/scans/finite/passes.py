"""Filter, smooth, pairs, gradient and draws from a forward and a backward recursion.

Two representations share the formulas.  `Scaled` works on probabilities divided by their sums: fast, and it knows when
it lost a state to underflow (`Underflow`).  `Logs` takes the sums of logs instead: any range, several times slower.
With filtered ``alpha``, backward ``beta`` and ``w = g beta``,

    P(x_k = i) = alpha_k[i] beta_k[i] / sum,    P(x_{k-1} = i, x_k = j) = alpha_{k-1}[i] P_k[i,j] w_k[j] / sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.kernels.scans import native
from retrodict.kernels.scans.finite import loop
from retrodict.kernels.scans.finite.chain import FiniteChain

_TINY = 1e-290  # a sum below this has lost digits of its terms


class Underflow(ArithmeticError):
    """A scaled recursion lost a state that may matter: the log recursion has to answer."""


class Recursion(Protocol):
    """A module with the two recursions on scaled probabilities, as in `loop`."""

    def forward(self, chain: FiniteChain) -> tuple[Tensor, Tensor]: ...

    def backward(self, chain: FiniteChain) -> tuple[Tensor, Tensor]: ...


class Paths(Protocol):
    """A module with the two walks along paths, as in `loop`."""

    def viterbi(self, chain: FiniteChain) -> tuple[Tensor, Tensor]: ...

    def draw(self, chain: FiniteChain, w: Tensor, u: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Route:
    """One way to do all of it."""

    name: str

    def refuses(self, chain: FiniteChain, verb: str) -> str | None:
        """Why this route cannot serve ``verb`` on the chain, or None."""
        return None

    def filter(self, chain: FiniteChain) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def evidence(self, chain: FiniteChain) -> Tensor:
        """The log evidence, without gradient."""
        return self.filter(chain)[1]

    def smooth(self, chain: FiniteChain, pairs: str | None) -> tuple[Tensor, Tensor, Tensor | None]:
        raise NotImplementedError

    def score(self, chain: FiniteChain) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Log evidence and its derivatives by ``(p0, P, log_g)``, the first axis being S."""
        raise NotImplementedError

    def messages(self, chain: FiniteChain) -> Tensor:
        raise NotImplementedError

    def draw(self, chain: FiniteChain, u: Tensor) -> Tensor:
        raise NotImplementedError

    def viterbi(self, chain: FiniteChain) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


@dataclass(frozen=True)
class Scaled(Route):
    """On scaled probabilities, from the two recursions of a module; ``paths`` has its Viterbi and draws."""

    recursion: Recursion
    paths: Paths = loop
    native: bool = False  # runs outside torch: on the CPU and without autograd

    def refuses(self, chain: FiniteChain, verb: str) -> str | None:
        if not self.native:
            return None
        if self.name == "numba" and not native.installed():
            return "numba is not installed; pip install 'retrodict[fast]'"
        if chain.log_g.device.type != "cpu":
            return "it runs on the CPU"
        if verb in ("filter", "smooth", "messages") and needs_gradient(chain):
            return "its gradients are those of the evidence only"
        return None

    def _forward(self, chain: FiniteChain) -> tuple[Tensor, Tensor]:
        alpha, total = self.recursion.forward(chain)
        _intact(alpha, total, chain.P, chain.log_g, ahead=True)
        return alpha, total

    def _backward(self, chain: FiniteChain) -> tuple[Tensor, Tensor]:
        beta, scale = self.recursion.backward(chain)
        _intact(beta, scale, chain.P, chain.log_g, ahead=False)
        return beta, scale

    def filter(self, chain: FiniteChain) -> tuple[Tensor, Tensor]:
        alpha, total = self._forward(chain)
        return alpha, total

    def evidence(self, chain: FiniteChain) -> Tensor:
        alone = getattr(self.recursion, "evidence", None)
        if alone is None or bool((chain.P == 0).any()):  # a lost state may matter: see `_intact`
            return super().evidence(chain)
        total = alone(chain)
        _possible(chain, total)
        return total

    def smooth(self, chain: FiniteChain, pairs: str | None) -> tuple[Tensor, Tensor, Tensor | None]:
        together = getattr(self.recursion, "smooth", None)
        if together is not None and pairs is None and not bool((chain.P == 0).any()):
            found, total, least = together(chain)
            _possible(chain, total)
            if not bool((least > _TINY).all()):
                raise Underflow
            return found, total, None
        alpha, total = self._forward(chain)
        beta, _ = self._backward(chain)
        joint = None
        if pairs is not None:
            before, w, _ = _neighbours(chain, alpha, beta)
            if pairs == "sum" and chain.P.shape[1] == 1:
                joint = chain.P[:, 0] * (before.mT @ w)
            else:
                joint = before.unsqueeze(-1) * chain.P * w.unsqueeze(-2)
                joint = joint.sum(1) if pairs == "sum" else joint
        return _normalised(alpha * beta), total, joint

    def score(self, chain: FiniteChain) -> tuple[Tensor, tuple[Tensor, ...]]:
        alpha, total = self._forward(chain)
        beta, _ = self._backward(chain)
        before, w, first = _neighbours(chain, alpha, beta)
        by_p0 = first / (chain.p0 * first).sum(-1, keepdim=True)
        if chain.P.shape[1] == 1:
            by_P = (before.mT @ w).unsqueeze(1)
        else:
            by_P = before.unsqueeze(-1) * w.unsqueeze(-2)
        return total, (by_p0, by_P, _normalised(alpha * beta))

    def messages(self, chain: FiniteChain) -> Tensor:
        beta, scale = self._backward(chain)
        return chain.log_g + beta.log() + scale.unsqueeze(-1)

    def draw(self, chain: FiniteChain, u: Tensor) -> Tensor:
        beta, scale = self._backward(chain)
        g, _ = chain.scaled()
        _possible(chain, torch.log((chain.p0 * g[:, 0] * beta[:, 0]).sum(-1)) + scale[:, 0])
        return self.paths.draw(chain, g * beta, u)

    def viterbi(self, chain: FiniteChain) -> tuple[Tensor, Tensor]:
        return self.paths.viterbi(chain)


def needs_gradient(chain: FiniteChain) -> bool:
    """Whether autograd has to see the computation."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in chain.tensors)


def _normalised(p: Tensor) -> Tensor:
    total = p.sum(-1, keepdim=True)
    if not bool((total > _TINY).all()):
        raise Underflow
    return p / total


def _neighbours(chain: FiniteChain, alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``alpha_{k-1}`` over the normaliser of the pair, ``w_k``, both for k = 1..n, and ``w_0``."""
    g, _ = chain.scaled()
    w = g * beta
    w0, w = w[:, 0], w[:, 1:]
    P = chain.P
    ahead = w @ P[:, 0].mT if P.shape[1] == 1 else (P @ w.unsqueeze(-1)).squeeze(-1)
    norm = (alpha[:, :-1] * ahead).sum(-1, keepdim=True)
    if not bool((norm > _TINY).all()):
        raise Underflow
    return alpha[:, :-1] / norm, w, w0


def _intact(p: Tensor, total: Tensor, P: Tensor, log_g: Tensor, ahead: bool) -> None:
    """Raise `Underflow` if probability was lost: a sum that vanished, or a zero where the chain has none.

    Where every transition is possible a state lost at one node is fed again by the others at the next, and what was
    lost is below rounding; so zeros are looked for only if P has zeros.
    """
    p, total, P, log_g = p.detach(), total.detach(), P.detach(), log_g.detach()
    if not bool(total.isfinite().all()):
        raise Underflow
    if p.shape[1] == 1 or not bool((P == 0).any()):
        return
    alive, open_, may = (p > 0).to(torch.float32), log_g > -torch.inf, (P > 0).to(torch.float32)
    if ahead:
        was = alive[:, :-1]
        reach = was @ may[:, 0] if P.shape[1] == 1 else (was.unsqueeze(-2) @ may).squeeze(-2)
        lost = (reach > 0) & open_[:, 1:] & (p[:, 1:] == 0)
    else:
        later = alive[:, 1:] * open_[:, 1:]
        reach = later @ may[:, 0].mT if P.shape[1] == 1 else (may @ later.unsqueeze(-1)).squeeze(-1)
        lost = (reach > 0) & (p[:, :-1] == 0)
    if bool(lost.any()):
        raise Underflow


def _possible(chain: FiniteChain, log_evidence: Tensor) -> None:
    if not bool(log_evidence.isfinite().all()):
        raise Underflow


@dataclass(frozen=True)
class Logs(Route):
    """On logs, with log-sum-exp at every step."""

    def _forward(self, chain: FiniteChain) -> tuple[Tensor, Tensor]:
        """Log filtered probabilities and the log evidence of the first nodes; names the first impossible node."""
        log_P = chain.P.log()
        a = chain.p0.log() + chain.log_g[:, 0]
        found, totals = [], []
        for k in range(chain.n + 1):
            if k:
                a = torch.logsumexp(a.unsqueeze(-1) + log_P[:, min(k - 1, log_P.shape[1] - 1)], -2) + chain.log_g[:, k]
            total = torch.logsumexp(a, -1)
            a = a - total.unsqueeze(-1)
            found.append(a)
            totals.append(total)
        cumulative = torch.stack(totals, 1).cumsum(1)
        impossible(cumulative)
        return torch.stack(found, 1), cumulative

    def _backward(self, chain: FiniteChain) -> tuple[Tensor, Tensor]:
        """``b (S, n+1, K)`` and ``scale (S, n+1)``: their sum is the log expectation of all potentials after node k."""
        log_P = chain.P.log()
        b = torch.zeros_like(chain.log_g[:, -1])
        found, scales = [b], [torch.zeros_like(b[:, 0])]
        for k in range(chain.n, 0, -1):
            b = torch.logsumexp(log_P[:, min(k - 1, log_P.shape[1] - 1)] + (b + chain.log_g[:, k]).unsqueeze(-2), -1)
            largest = b.detach().amax(-1)
            b = b - largest.unsqueeze(-1)
            found.append(b)
            scales.append(scales[-1] + largest)
        return torch.stack(found[::-1], 1), torch.stack(scales[::-1], 1)

    def filter(self, chain: FiniteChain) -> tuple[Tensor, Tensor]:
        alpha, total = self._forward(chain)
        return alpha.exp(), total[:, -1]

    def smooth(self, chain: FiniteChain, pairs: str | None) -> tuple[Tensor, Tensor, Tensor | None]:
        alpha, total = self._forward(chain)
        beta, _ = self._backward(chain)
        joint = None
        if pairs is not None:
            joint = self._weights(chain, alpha, beta, chain.P.log())
            joint = joint.sum(1) if pairs == "sum" else joint
        return torch.softmax(alpha + beta, -1), total[:, -1], joint

    def _weights(self, chain: FiniteChain, alpha: Tensor, beta: Tensor, times: Tensor | float) -> Tensor:
        """Posterior probability of a pair over its transition probability, times exp ``times``: ``(S, n, K, K)``."""
        outer = alpha[:, :-1].unsqueeze(-1) + (chain.log_g + beta)[:, 1:].unsqueeze(-2)
        return (outer + times - torch.logsumexp(outer + chain.P.log(), (-2, -1), keepdim=True)).exp()

    def score(self, chain: FiniteChain) -> tuple[Tensor, tuple[Tensor, ...]]:
        alpha, total = self._forward(chain)
        beta, _ = self._backward(chain)
        first = chain.log_g[:, 0] + beta[:, 0]
        by_p0 = (first - torch.logsumexp(first + chain.p0.log(), -1, keepdim=True)).exp()
        by_P = self._weights(chain, alpha, beta, 0.0)
        if chain.P.shape[1] == 1:
            by_P = by_P.sum(1, keepdim=True)
        return total[:, -1], (by_p0, by_P, torch.softmax(alpha + beta, -1))

    def messages(self, chain: FiniteChain) -> Tensor:
        beta, scale = self._backward(chain)
        return chain.log_g + beta + scale.unsqueeze(-1)

    def viterbi(self, chain: FiniteChain) -> tuple[Tensor, Tensor]:
        return loop.viterbi(chain)

    def draw(self, chain: FiniteChain, u: Tensor) -> Tensor:
        self._forward(chain)  # names an impossible node
        log_w = chain.log_g + self._backward(chain)[0]
        state = loop.invert(torch.softmax(chain.p0.log() + log_w[:, 0], -1), u[..., 0])
        path, log_P = [state], chain.P.log()
        series = torch.arange(chain.series, device=u.device)
        for k in range(1, chain.n + 1):
            step = log_P[:, min(k - 1, log_P.shape[1] - 1)]
            rows = step[series if step.shape[0] > 1 else 0, state] + log_w[:, k]
            state = loop.invert(torch.softmax(rows, -1), u[..., k])
            path.append(state)
        return torch.stack(path, -1)


def traced_score(chain: FiniteChain) -> tuple[Tensor, ...]:
    """The derivatives of the log evidence by ``(p0, P, log_g)``, as autograd can follow them."""
    try:
        return Scaled("loop", loop).score(chain)[1]
    except Underflow:
        return Logs("log").score(chain)[1]


def impossible(total: Tensor) -> None:
    """Raise `InputError` naming series and node if a log evidence of the first nodes, ``(S, n+1)``, is -inf."""
    dead = total.detach() == -torch.inf
    if bool(dead.any()):
        series, node = (int(i) for i in dead.nonzero()[0])
        raise InputError(
            f"series {series}: what was observed at time index {node} has probability zero given what came before; "
            "give the transition or the observation law a positive probability there, or mark the value as missing"
        )
    if bool(total.isnan().any()):
        raise InputError("the log evidence is NaN: p0, P or log_g holds NaN or +inf")
