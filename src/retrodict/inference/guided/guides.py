"""Forward guiding: stretches of steps bent by messages, with the log-weight that keeps the answer right.

A guide maps ``(x, z)`` to the states after each step and the log-weight of the stretch, deterministically: equal
innovations give equal paths.  Four of them stand behind ``weight=``:

==============  =====================================================  ===============================================
guide           step                                                   log-weight of a step
==============  =====================================================  ===============================================
`Doob`          the h-transform of the true step                       log (kappa h)(x) - log (kappa~ h)(x)
`Path`          the h-transform of the auxiliary step                  log kappa(x, y) - log kappa~(x, y)
`Continuous`    dX = (b + a r) dt + s dW,  r = F - H X                 G dt,  G = (b - b~).r + tr((a - a~)(r r' - H))/2
`Free`          the true step (a bootstrap filter)                     0
==============  =====================================================  ===============================================

The sign before H is minus, for the Hessian of log h is -H (van der Meulen and Schauer 2020 have the integrand G; the
other sign, found in some code, is wrong wherever a differs from a~).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retrodict.inference.guided.fused import Coefficients, usable, walk
from retrodict.inference.guided.messages import Bent, Messages, absorb, bend, quadratic
from retrodict.inference.guided.steps import EulerGrid, Steps
from retrodict.kernels.euler import Doob as DoobStep
from retrodict.kernels.euler import dot, mv, normal_log_prob
from retrodict.kernels.scans.gaussian.algebra import Step, root, sym


class Guide:
    """A way to run steps ``first .. last - 1`` forward.

    Args:
        steps: the true transitions; auxiliary: ``A, b, Q (S, n, ...)``; messages: of the auxiliary.
    """

    def __init__(self, steps: Steps, auxiliary: Step, messages: Messages) -> None:
        self.steps, self.auxiliary, self.messages = steps, auxiliary, messages
        self.coefficients: list[Coefficients] | None = None  # of steps that `fused` can make

    def run(self, first: int, x: Tensor, z: Tensor, whole: bool = True) -> tuple[Tensor, Tensor]:
        """From states ``x (S, N, d)`` at node ``first`` through ``m = len(z)`` steps.

        Args:
            z: innovations ``(m, S, N, r)``, of any precision.
            whole: whether all states are asked for, or the last one will do (which a guide may ignore).

        Returns:
            the states after each step ``(m|1, S, N, d)`` and the log-weight ``(S, N)`` of the stretch.
        """
        raise NotImplementedError

    def _loss(self, first: int, before: Tensor) -> Tensor:
        """The sum of ``log h'_k(x_k)`` over the states ``(m, S, N, d)`` at the starts of steps."""
        H, F, c = self.messages.pulled
        span = slice(first, first + before.shape[0])
        return total(H[:, span].movedim(1, 0), F[:, span].movedim(1, 0), before) + c[:, span].sum(1).unsqueeze(-1)


def total(H: Tensor, F: Tensor, x: Tensor) -> Tensor:
    """The sum over k of ``F_k.x_k - x_k.H_k x_k/2``: ``H (m, S, d, d), F (m, S, d), x (m, S, N, d)`` to ``(S, N)``."""
    if x.shape[-1] > 1:
        return quadratic(H.unsqueeze(-3), F.unsqueeze(-2), x).sum((0, -1))
    x = x[..., 0]
    linear = torch.einsum("ks,ksn->sn", F[..., 0], x)
    return linear.sub(torch.einsum("ks,ksn->sn", H[..., 0, 0].expand(x.shape[:2]), x * x), alpha=0.5)


class Free(Guide):
    """The true steps, unguided: what the bootstrap filter proposes."""

    def __init__(self, steps: Steps, auxiliary: Step, messages: Messages) -> None:
        super().__init__(steps, auxiliary, messages)
        S = steps.shared_root
        if S is not None and steps.series == steps.d == steps.r == 1:
            self.coefficients = [(1.0, 0.0, s, 0.0, 0.0, 0.0, 0.0) for s in S.flatten().tolist()]

    def run(self, first: int, x: Tensor, z: Tensor, whole: bool = True) -> tuple[Tensor, Tensor]:
        log_w = torch.zeros(x.shape[:2], dtype=x.dtype, device=x.device)
        if self.coefficients is not None and usable(x, z):
            states = walk(self.steps, first, x, z, self.coefficients[first : first + len(z)], None, whole)
            if states is not None:
                return states, log_w
        z, states = z.to(x.dtype), []
        shared = self.steps.shared_root
        pushes = mv(shared[first : first + len(z)], z).unbind() if shared is not None else None
        for i in range(len(z)):
            k = first + i
            push = pushes[i] if pushes is not None else mv(self.steps.root(k, x), z[i])
            x = self.steps.mean(k, x) + push
            if whole:
                states.append(x)
        return torch.stack(states) if whole else x.unsqueeze(0), log_w


class Doob(Guide):
    """The exact h-transform of the true step: unbiased for any step size and any auxiliary."""

    def __init__(self, steps: Steps, auxiliary: Step, messages: Messages) -> None:
        super().__init__(steps, auxiliary, messages)
        self.bent = None if steps.shared_root is None else bend(steps.shared_root, messages)
        self.numbers = None if self.bent is None else _numbers(self.bent, messages)
        if self.numbers is not None:
            n = self.numbers
            rows = zip(n.slope, n.shift, n.spread, n.before, n.after)
            self.coefficients = [(a, b, c, *before, *after) for a, b, c, before, after in rows]

    def run(self, first: int, x: Tensor, z: Tensor, whole: bool = True) -> tuple[Tensor, Tensor]:
        if self.numbers is not None and self.coefficients is not None and usable(x, z):
            span = slice(first, first + len(z))
            log_w = torch.full(x.shape[:2], sum(self.numbers.constant[span]), dtype=x.dtype)
            states = walk(self.steps, first, x, z, self.coefficients[span], log_w, whole)
            if states is not None:
                return states, log_w
        z = z.to(x.dtype)
        if self.numbers is not None and not (torch.is_grad_enabled() and x.requires_grad):
            return self._scalar(self.numbers, first, x, z, whole)
        return self._by_step(first, x, z) if self.bent is None else self._affine(first, x, z)

    def _scalar(self, numbers: Numbers, first: int, x: Tensor, z: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
        """One dimension and one series: coefficients are numbers, squares are completed, two operations a weight."""
        assert self.bent is not None
        span = slice(first, first + len(z))
        rows = torch.addcmul(self.bent.g[span].unsqueeze(-2), z, self.bent.R[span]).unbind()
        log_w = torch.full_like(x, sum(numbers.constant[span]))
        states = []
        for i, row in enumerate(rows):
            k = first + i
            centre, half = numbers.before[k]
            gap = x - centre
            log_w.addcmul_(gap, gap, value=half)  # - log h'
            m = self.steps.mean(k, x)
            centre, half = numbers.after[k]
            gap = m - centre
            log_w.addcmul_(gap, gap, value=half)  # + log kappa h
            x = torch.add(row, m, alpha=numbers.slope[k])
            if whole:
                states.append(x)
        return torch.stack(states) if whole else x.unsqueeze(0), log_w[..., 0]

    def _affine(self, first: int, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Roots that do not depend on the state: a step is one affine map, and the weights wait till after the loop."""
        assert self.bent is not None
        span = slice(first, first + len(z))
        R, g = self.bent.R[span].unsqueeze(-3), self.bent.g[span].unsqueeze(-2)
        # the noise of all steps at once
        rows = (torch.addcmul(g, z, R[..., 0]) if R.shape[-1] == R.shape[-2] == 1 else mv(R, z) + g).unbind()
        before, means = [x], []
        for i, row in enumerate(rows):
            m = self.steps.mean(first + i, x)
            x = row + mv(self.bent.G[first + i].unsqueeze(-3), m)
            means.append(m)
            before.append(x)
        path = torch.stack(before)
        log_kh = total(self.bent.P[span], self.bent.B[span], torch.stack(means)) + self.bent.C[span].sum(0).unsqueeze(
            -1
        )
        return path[1:], log_kh - self._loss(first, path[:-1])

    def _by_step(self, first: int, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        before, log_kh = [x], torch.zeros((), dtype=x.dtype, device=x.device)
        for i in range(len(z)):
            k = first + i
            step = DoobStep(*self.messages.at(k + 1), self.steps.root(k, x), self.messages.pins.get(k + 1))
            x, gain = step(self.steps.mean(k, x), z[i])
            log_kh = log_kh + gain
            before.append(x)
        path = torch.stack(before)
        return path[1:], log_kh - self._loss(first, path[:-1])


class Numbers(NamedTuple):
    """Steps of one dimension and one series as Python numbers: ``log kh = const - P (m - B/P)^2 / 2``, and h' alike."""

    slope: list[float]
    shift: list[float]
    spread: list[float]
    before: list[tuple[float, float]]  # F'/H', and H'/2: the loss
    after: list[tuple[float, float]]  # B/P, and -P/2: the gain
    constant: list[float]


def _numbers(bent: Bent, messages: Messages) -> Numbers | None:
    """The numbers where they serve: one dimension, one series, no gradient, and messages that say something."""
    H, F, c = messages.pulled
    graph = any(part.requires_grad for part in (*bent, H, F, c))
    if bent.G.shape[1] != 1 or bent.G.shape[-1] != 1 or bent.R.shape[-1] != 1 or graph:
        return None
    P, B, H, F = (part.flatten() for part in (bent.P, bent.B, H, F))
    if not P.numel() or bool((P < 1e-9).any() or (H < 1e-9).any()):
        return None
    centre, mean = F / H, B / P
    constant = bent.C.flatten() + B * mean / 2 - c.flatten() - F * centre / 2
    before, after = (list(zip(a.tolist(), b.tolist())) for a, b in ((centre, H / 2), (mean, -P / 2)))
    slope, shift, spread = (part.flatten().tolist() for part in (bent.G, bent.g, bent.R))
    return Numbers(slope, shift, spread, before, after, constant.tolist())


class Path(Guide):
    """Draws of the guided auxiliary, weighted by the ratio of the true and the auxiliary kernel."""

    def __init__(self, steps: Steps, auxiliary: Step, messages: Messages) -> None:
        super().__init__(steps, auxiliary, messages)
        H, F, c = messages.fused
        self.affine, _ = absorb(auxiliary, (H[:, 1:], F[:, 1:], c[:, 1:]))
        self.roots = [root(sym(Q)) for Q in self.affine[2].unbind(1)]
        self.spread = [root(sym(Q)) for Q in auxiliary[2].unbind(1)]

    def run(self, first: int, x: Tensor, z: Tensor, whole: bool = True) -> tuple[Tensor, Tensor]:
        states, log_w, z = [], torch.zeros((), dtype=x.dtype, device=x.device), z.to(x.dtype)
        for i in range(len(z)):
            k = first + i
            A, b, _ = (part[:, k] for part in self.affine)
            y = mv(A.unsqueeze(-3), x) + b.unsqueeze(-2) + mv(self.roots[k].unsqueeze(-3), z[i])
            A, b, _ = (part[:, k] for part in self.auxiliary)
            guess = mv(A.unsqueeze(-3), x) + b.unsqueeze(-2)
            still = (self.spread[k].diagonal(dim1=-2, dim2=-1) == 0).all(-1, keepdim=True)
            truth = normal_log_prob(y - self.steps.mean(k, x), self.steps.root(k, x))
            ratio = truth - normal_log_prob(y - guess, self.spread[k].unsqueeze(-3))
            log_w = log_w + torch.where(still, torch.zeros_like(ratio), ratio)
            x = y
            states.append(x)
        return torch.stack(states), log_w


class Continuous(Guide):
    """The guided diffusion by Euler steps, weighted by the integral of G: biased of the order of a step.

    Messages must come from the exact transitions of the auxiliary.  The step into an exactly met node is drawn from
    its conditional law, and pays nothing.
    """

    def run(self, first: int, x: Tensor, z: Tensor, whole: bool = True) -> tuple[Tensor, Tensor]:
        steps, states, z = self.steps, [], z.to(x.dtype)
        assert isinstance(steps, EulerGrid)
        log_w = torch.zeros(x.shape[:2], dtype=x.dtype, device=x.device)
        for i in range(len(z)):
            k = first + i
            m, S = steps.mean(k, x), steps.root(k, x)
            pin = self.messages.pins.get(k + 1)
            if pin is not None:
                x = DoobStep(*self.messages.at(k + 1), S, pin)(m, z[i])[0]
            else:
                H, F, _ = self.messages.before(k)
                r = F - mv(H, x)
                A, b, Q_aux = (part[:, k] for part in self.auxiliary)  # I + B dt, beta dt, a~ dt
                Q = S @ S.mT
                excess = Q - Q_aux.unsqueeze(-3)
                drift = m - mv(A.unsqueeze(-3), x) - b.unsqueeze(-2)
                log_w = log_w + dot(drift, r) + 0.5 * (dot(r, mv(excess, r)) - (excess * H).sum((-2, -1)))
                x = m + mv(Q, r) + mv(S, z[i])
            states.append(x)
        return torch.stack(states), log_w
