"""Backward filtering: messages through the auxiliary steps, and the steps bent by them.

`sweep` runs one backward pass through auxiliary linear-Gaussian steps ``(A, b, Q)``; it returns the fused message
``h_k`` of every node (what is seen at k and after) and the pulled one ``h'_k`` (what is seen after k).  Where a node is
seen exactly, ``E x_k = e`` has no finite message; the step into it is then pulled in the covariance form

    log h'(x) = ... + log N(e; E (A* x + b*), E Q* E'),      (A*, b*, Q*) the step guided by the rest of the message,

which is finite as soon as the step has noise along the rows of E.  Everything before is in the information form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.kernels.euler import Pin
from retrodict.kernels.scans import gaussian
from retrodict.kernels.scans.gaussian.algebra import Message, Step, element, fuse, mv, sym

_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Messages:
    """Messages at all nodes of a chain of n steps.

    Attributes:
        fused: ``(H (S, n+1, d, d), F (S, n+1, d), c (S, n+1))``, potentials of the node included.
        pulled: the same for nodes 0..n-1 without them.
        pins: what nodes must meet exactly, by node: E ``(S, 1, p, d)``, e ``(S, 1, p)``.
    """

    fused: Message
    pulled: Message
    pins: dict[int, Pin]

    def at(self, k: int) -> Message:
        """The fused message at node k, with an axis of particles."""
        H, F, c = self.fused
        return H[:, k, None], F[:, k, None], c[:, k, None]

    def before(self, k: int) -> Message:
        """The pulled message at node k, with an axis of particles."""
        H, F, c = self.pulled
        return H[:, k, None], F[:, k, None], c[:, k, None]


def absorb(step: Step, h: Message) -> tuple[Step, Message]:
    """The step conditioned on the message at its end, and the message pulled to its start."""
    A, b, Q, eta, J, l = element(step, h)
    return (A, b, Q), (J, eta, l)


def sweep(steps: Step, potentials: Message, pins: dict[int, Pin]) -> Messages:
    """One backward pass.

    Args:
        steps: auxiliary ``A, b, Q`` as ``(S, n, ...)``; potentials: ``H, F, c`` at the nodes, ``(S, n+1, ...)``.
        pins: exact rows by node.
    """
    n = steps[0].shape[1]
    if not n:
        return Messages(potentials, _slice(potentials, 0, 0), pins)
    fused: list[Message] = []
    pulled: list[Message] = []
    end = n
    after = _node(potentials, n)
    fused.append(_slice_of(after))
    while end > 0:
        start = max((k for k in pins if 0 < k < end), default=0)
        inner = _slice(potentials, start, end + 1)
        if end in pins:  # the last step of this stretch in covariance form; the rest starts from its message
            last = pin_pull(_node_step(steps, end - 1), after, pins[end])
            early = _stretch(
                _steps(steps, start, end - 1), _with_last(_slice(inner, 0, -1), fuse(_node(inner, -2), last))
            )
            before = _joined(_pull_all(_steps(steps, start, end - 1), early), _slice_of(last))
        else:
            whole = _stretch(_steps(steps, start, end), _with_last(inner, after))
            early = _slice(whole, 0, -1)
            before = _pull_all(_steps(steps, start, end), whole)
        fused.insert(0, early)
        pulled.insert(0, before)
        after, end = _node(early, 0), start
    return Messages(_joined(*fused), _joined(*pulled), pins)


def sweep_stretches(steps: Step, potentials: Message, pins: dict[int, Pin], bounds: list[int]) -> Messages:
    """Messages that look ahead no further than the next node of ``bounds`` (0 and n included): what a filter needs.

    At a bound the message is the node's own potential, so that the particles there follow the filtering law.
    """
    fused, pulled = [], []
    for first, last in pairwise(bounds):
        inner = _slice(potentials, first, last + 1)
        own = {k - first: pin for k, pin in pins.items() if first < k <= last}
        part = sweep(_steps(steps, first, last), inner, own)
        fused.append(_joined(_slice(inner, 0, 1), _slice(part.fused, 1, last - first)))
        nothing = tuple(torch.zeros_like(v) for v in _slice(part.pulled, 0, 1))
        pulled.append(_joined(nothing, _slice(part.pulled, 1, last - first)))  # type: ignore[arg-type]
    fused.append(_slice(potentials, bounds[-1], bounds[-1] + 1))
    return Messages(_joined(*fused), _joined(*pulled) if pulled else _slice(potentials, 0, 0), pins)


def pin_pull(step: Step, h: Message, pin: Pin) -> Message:
    """The message one step before a node with message h ``(S, ...)`` whose rows ``E y = e`` are met exactly."""
    E, e = pin.E[:, 0], pin.e[:, 0]
    (A, b, Q), pulled = absorb(step, h)
    M = sym(E @ Q @ E.mT)
    root, info = torch.linalg.cholesky_ex(M)
    if bool((info != 0).any()):
        raise InputError(
            "the auxiliary process has no noise along an exactly observed coordinate in the step that reaches it; "
            "give the observation a small noise"
        )
    L, gap = E @ A, e - mv(E, b)
    white_L = torch.linalg.solve_triangular(root, L, upper=False)
    white = torch.linalg.solve_triangular(root, gap.unsqueeze(-1), upper=False)
    c = (
        -0.5 * white.square().sum((-2, -1))
        - root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        - 0.5 * e.shape[-1] * _LOG_2PI
    )
    return fuse(pulled, (white_L.mT @ white_L, (white_L.mT @ white).squeeze(-1), c))


class Bent(NamedTuple):
    """Steps ``N(m, S S')`` of a given root under messages: ``y = G m + g + R z``, ``log kh = C + B.m - m.P m/2``.

    Leading axes ``(n, S)``; P, B, C are the message pulled to the mean m.
    """

    G: Tensor
    g: Tensor
    R: Tensor
    P: Tensor
    B: Tensor
    C: Tensor


def bend(S: Tensor, messages: Messages) -> Bent:
    """All steps of constant roots ``S (n, S|1, 1, d, r)`` under the messages at their ends (and their pins)."""
    H, F, c = messages.fused
    n, series, d = F.shape[1] - 1, F.shape[0], F.shape[2]
    h = (H[:, 1:].expand(series, n, d, d), F[:, 1:], c[:, 1:])
    S = S[:, :, 0].movedim(0, 1).expand(series, n, -1, -1)
    eye = torch.eye(d, dtype=S.dtype, device=S.device).expand(series, n, d, d)
    step = (eye, torch.zeros_like(h[1]), S @ S.mT)
    (G, g, _), (P, B, C) = absorb(step, h)
    inner = torch.linalg.cholesky(sym(S.mT @ h[0] @ S) + torch.eye(S.shape[-1], dtype=S.dtype, device=S.device))
    R = torch.linalg.solve_triangular(inner, S.mT, upper=False).mT
    parts = [part.movedim(1, 0) for part in (G, g, R, P, B, C)]
    if messages.pins:
        parts = [list(part.unbind()) for part in parts]
        for node, pin in messages.pins.items():
            k = node - 1
            pulled = pin_pull(_node_step(step, k), _node(messages.fused, node), pin)
            for column, value in zip(parts, (*_pinned(parts[0][k], parts[1][k], parts[2][k], pin), *pulled)):
                column[k] = value
        parts = [torch.stack(part) for part in parts]
    return Bent(*parts)


def _pinned(G: Tensor, g: Tensor, R: Tensor, pin: Pin) -> Step:
    """The affine map ``y = G m + g + R z`` conditioned on ``E y = e``: z is projected, by ``z + D^+ (E y - e)``."""
    E, e = pin.E[:, 0], pin.e[:, 0]
    D = E @ R
    back = R @ torch.linalg.solve(D @ D.mT, D).mT  # R D' (D D')^-1
    keep = torch.eye(R.shape[-2], dtype=R.dtype, device=R.device) - back @ E
    return keep @ G, mv(keep, g) + mv(back, e), keep @ R


def evaluate(h: Message, x: Tensor) -> Tensor:
    """``log h(x)`` for ``H (..., d, d), F (..., d), c (...)`` shared by the points ``x (..., N, d)``: ``(..., N)``."""
    H, F, c = (part.unsqueeze(axis) for part, axis in zip(h, (-3, -2, -1)))
    return c + quadratic(H, F, x).sum(-1)


def quadratic(H: Tensor, F: Tensor, x: Tensor) -> Tensor:
    """The summands of ``F.x - x.Hx/2`` for ``H (..., 1, d, d), F (..., 1, d)`` and ``x (..., N, d)``."""
    half = x * (H[..., 0] * 0.5) if x.shape[-1] == 1 else x @ (H.squeeze(-3).mT * 0.5)
    return (F - half) * x


# --- pieces of messages ---------------------------------------------------------------------------------------


def _stretch(steps: Step, potentials: Message) -> Message:
    """Fused messages of a chain without pins."""
    H, F, c = potentials
    if F.shape[1] == 1:
        return potentials
    start = torch.zeros_like(F[:1, 0])
    chain = gaussian.GaussianChain(start, torch.zeros_like(H[:1, 0]), *steps, H, F, c)
    H, F, c = gaussian.messages(chain)
    return H.expand(F.shape[0], -1, -1, -1), F, c


def _pull_all(steps: Step, fused: Message) -> Message:
    """Messages pulled to the nodes before each step, all steps at once."""
    return absorb(steps, tuple(part[:, 1:] for part in fused))[1]  # type: ignore[arg-type]


def _slice(h: Message, start: int, end: int) -> Message:
    return h[0][:, start:end], h[1][:, start:end], h[2][:, start:end]


def _steps(steps: Step, start: int, end: int) -> Step:
    return steps[0][:, start:end], steps[1][:, start:end], steps[2][:, start:end]


def _node(h: Message, k: int) -> Message:
    return h[0][:, k], h[1][:, k], h[2][:, k]


def _node_step(steps: Step, k: int) -> Step:
    return steps[0][:, k], steps[1][:, k], steps[2][:, k]


def _slice_of(h: Message) -> Message:
    """A single node with its axis of nodes."""
    return h[0].unsqueeze(1), h[1].unsqueeze(1), h[2].unsqueeze(1)


def _with_last(h: Message, last: Message) -> Message:
    """The potentials h with those of the last node replaced."""
    return _joined(_slice(h, 0, -1), _slice_of(last))


def _joined(*parts: Message) -> Message:
    """Messages of consecutive nodes, joined."""
    H, F, c = (torch.cat([part[i] for part in parts], 1) for i in range(3))
    return H, F, c
