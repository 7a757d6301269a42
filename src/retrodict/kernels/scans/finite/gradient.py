"""The log evidence with its gradient from the smoother, as one autograd function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrodict.kernels.scans.finite import loop
from retrodict.kernels.scans.finite.chain import FiniteChain
from retrodict.kernels.scans.finite.passes import Logs, Route, Scaled, Underflow, needs_gradient


def with_gradient(route: Route, chain: FiniteChain) -> Tensor:
    """Log evidence ``(S,)`` by ``route``; gradients by Fisher's identity, of first and higher order."""
    if needs_gradient(chain):
        return _Evidence.apply(route, *chain.tensors)  # type: ignore[return-value]
    return route.evidence(chain)


class _Evidence(torch.autograd.Function):
    """Forward keeps the derivatives beside the value: they are by-products of one smoother."""

    @staticmethod
    def forward(ctx: Any, route: Route, *tensors: Tensor) -> Tensor:
        log_evidence, derivatives = route.score(FiniteChain(*tensors))
        ctx.save_for_backward(*tensors)
        ctx.derivatives = derivatives
        return log_evidence

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outputs
        tensors = ctx.saved_tensors
        derivatives = ctx.derivatives
        if torch.is_grad_enabled():  # a derivative of the gradient is wanted: the smoother again, traced
            derivatives = _traced(FiniteChain(*tensors))
        return None, *(_times(grad, d, x) for d, x in zip(derivatives, tensors))


def _traced(chain: FiniteChain) -> tuple[Tensor, ...]:
    try:
        return Scaled("loop", loop).score(chain)[1]
    except Underflow:
        return Logs("log").score(chain)[1]


def _times(grad: Tensor, derivative: Tensor, x: Tensor) -> Tensor:
    """``grad (S,)`` times the derivative, summed over the axes that x shares."""
    return (grad.reshape(-1, *(1,) * (derivative.ndim - 1)) * derivative).sum_to_size(x.shape)
