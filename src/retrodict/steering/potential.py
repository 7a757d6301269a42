"""A potential on the reverse path: what every way of steering is made of.

A goal is a log potential ``l(x0)`` on clean states: a log-likelihood, a reward, a class probability.  Along the path it
becomes ``log h_t(x)``, an approximation of ``log E[exp l(x0) | x_t = x]``, and it acts in two ways, on their own or
together:

    as drift     D_h = D + (sigma^2/alpha) grad log h_t(x): a denoiser again, which every plan runs unchanged
    as weight    log w += log h_s(x_s) - log h_t(x_t) + log p(x_s | x_t) - log K(x_s | x_t),    h_0 = exp l

With the weights the answer is right for any h_t at t > 0 and any drift (in the limit of many particles); the quality of
h only changes the variance of the weights.  Without them it is as good as h is.  Potentials add up.

All that a potential sees is in the user's units: states through the inverse of the denoiser's scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.data.scaling import shrink, stretch
from retrodict.kernels import Belief, Categorical
from retrodict.processes import GaussianPath, Process

if TYPE_CHECKING:
    from retrodict.denoisers import Denoiser

#: Share of signal, alpha/sigma, below which a state says nothing of the clean end.
PURE_NOISE = 0.01
#: Backward passes made as one; each has the memory of one.
TOGETHER = 16


class Node:
    """A state under evaluation, and what a potential may ask about it.

    Args:
        x: ``(batch, *shape)`` in the model's units, part of a graph where a potential wants derivatives.
        t: time, a number or ``(batch,)``; belief: the unsteered belief there; scale: of the denoiser.

    Attributes:
        mean: the posterior mean D in the user's units ``(batch, *shape)``, with the graph that leads to x.
        law: for discrete states the marginal law of each coordinate.
        alpha, sigma: of the path at t, numbers (or ``(batch, 1, ...)``); None for discrete states.
    """

    def __init__(self, x: Tensor, t: float | Tensor, belief: Belief, process: Process, scale: Any) -> None:
        self.x, self.t, self.belief, self.process, self._scale = x, t, belief, process, scale
        self.law: Categorical | None = belief.law
        self.alpha, self.sigma = _coefficients(process, t, x)
        self.mean = belief.mean if scale is None or belief.law is not None else scale.inverse(belief.mean)

    @property
    def batch(self) -> int:
        """Number of states."""
        return len(self.x)

    def user(self, x0: Tensor) -> Tensor:
        """Clean states from the model's units to the user's."""
        return x0 if self._scale is None else self._scale.inverse(x0)

    def stretch(self, v: Tensor) -> Tensor:
        """A difference of states from the model's units to the user's."""
        return stretch(self._scale, v)

    def shrink(self, v: Tensor) -> Tensor:
        """A difference of states from the user's units to the model's."""
        return shrink(self._scale, v)

    def covariance_times(self, v: Tensor, differentiable: bool = False) -> Tensor:
        """``C v`` with C = Cov(x0 | x_t), in the user's units ``(batch, *shape)``.

        From the belief's own covariance where it has one; else ``C = (sigma^2/alpha) dD/dx``, one backward pass.
        ``differentiable`` keeps the graph of the product itself.
        """
        if self._own is not None:
            shape = v.shape
            return self.stretch(self._own.mv(self.stretch(v).flatten(1).to(self._own.value)).reshape(shape)).to(v)
        self._needs_graph()
        (product,) = torch.autograd.grad(
            self.belief.mean, self.x, self.stretch(v).to(self.x), retain_graph=True, create_graph=differentiable
        )
        return self.stretch(product * self._gain)

    def covariance_times_each(self, rows: Tensor) -> Tensor:
        """``C v`` for several v, ``rows (m, batch or 1, *shape) -> (m, batch, *shape)``: one batched backward pass."""
        rows = rows.expand(-1, self.batch, *rows.shape[2:])
        if self._own is not None:
            return torch.stack([self.covariance_times(v) for v in rows])
        self._needs_graph()
        products = pulled(self.belief.mean, self.x, self.stretch(rows).to(self.x))
        return self.stretch(products * self._gain)

    def drift_of(self, log_h: Tensor) -> Tensor:
        """The shift of the mean that belongs to a potential ``log_h (batch,)`` with a graph that leads to x.

        It is ``(sigma^2/alpha) d log_h/dx``, in the user's units ``(batch, *shape)``.
        """
        self._needs_graph()
        if not log_h.requires_grad:
            return torch.zeros_like(self.mean)
        (gradient,) = torch.autograd.grad(log_h.sum(), self.x, retain_graph=True)
        return self.stretch(gradient * self._gain)

    @property
    def _gain(self) -> Any:
        """sigma^2/alpha, bounded where a state is all noise: there it would multiply a network's error alone."""
        least = PURE_NOISE * self.sigma
        alpha = self.alpha.clamp_min(least) if isinstance(self.alpha, Tensor) else max(self.alpha, least)
        return self.sigma**2 / alpha

    def _needs_graph(self) -> None:
        if not self.x.requires_grad:
            raise InputError("a derivative of the denoiser is needed here: the potential has to declare graph = True")

    @cached_property
    def _own(self) -> Lin | None:
        """The belief's own covariance, in the model's units on flattened states."""
        return None if self.belief.cov is None else self.belief.covariance()

    def covariance(self) -> Lin:
        """The whole of C as a dense map on flattened states, in the user's units; oracles have it."""
        cov = self.belief.covariance() if self._own is None else self._own
        if self._scale is None or self._scale.is_identity:
            return cov
        s = self._scale.scale.to(self.x).expand(self.x.shape[1:]).flatten()
        units = Lin.diagonal(s)
        return units @ cov @ units


def _coefficients(process: Process, t: float | Tensor, x: Tensor) -> tuple[Any, Any]:
    if not isinstance(process, GaussianPath):
        return None, None
    if isinstance(t, Tensor) and t.ndim:
        shape = (-1, *(1,) * (x.ndim - 1))
        return process.alpha(t).to(x).reshape(shape), process.sigma(t).to(x).reshape(shape)
    return max(float(process.alpha(float(t))), 1e-12), float(process.sigma(float(t)))


def pulled(out: Tensor, at: Tensor, rows: Tensor) -> Tensor:
    """``rows[i] d out/d at`` for each row of ``rows (m, *out.shape)``, the graph kept: ``(m, *at.shape)``.

    `TOGETHER` rows go through one batched backward pass; through a function that does not allow that, one by one.
    """
    try:
        parts = [
            torch.autograd.grad(out, at, part, retain_graph=True, is_grads_batched=True)[0]
            for part in rows.split(TOGETHER)
        ]
        return torch.cat(parts)
    except RuntimeError:  # an operation that cannot be batched, or not enough memory for all at once
        return torch.stack([torch.autograd.grad(out, at, row, retain_graph=True)[0] for row in rows])


@dataclass
class Tilt:
    """What a potential answers at a node.

    Attributes:
        log_h: ``(batch,)`` float64.
        shift: of the posterior mean, ``C grad`` of log h, ``(batch, *shape)`` in the user's units; None for no drift.
    """

    log_h: Tensor
    shift: Tensor | None = None


class Potential:
    """A goal; subclasses give `likelihood` and `at`.

    Attributes:
        graph: whether `at` takes derivatives of the denoiser.
        drift: whether it moves the mean; if not it only weighs.
    """

    graph: bool = False
    drift: bool = True

    def likelihood(self, x0: Tensor) -> Tensor:
        """``l(x0)`` of clean states in the user's units, ``(batch,)``."""
        raise NotImplementedError

    def at(self, node: Node) -> Tilt:
        """``log h_t`` at a node, and what it does to the belief."""
        raise NotImplementedError

    def check(self, shape: tuple[int, ...] | None, process: Process) -> None:
        """Raise unless the potential applies to states of this shape on this process."""

    def bind(self, denoiser: Denoiser) -> Potential:
        """The potential as it is used with a denoiser, which knows the units and the spread of its data."""
        return self

    def join(self, other: Potential) -> Potential | None:
        """One potential for two goals, where that is better than their sum; None where it is not."""
        return None
