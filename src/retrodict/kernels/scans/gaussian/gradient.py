"""The log evidence with its gradient from the smoother, as one autograd function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrodict.kernels.scans.gaussian import parallel, passes
from retrodict.kernels.scans.gaussian.chain import GaussianChain
from retrodict.kernels.scans.gaussian.routes import Route


def with_gradient(route: Route, chain: GaussianChain) -> Tensor:
    """Log evidence ``(S,)`` by ``route``; gradients by Fisher's identity, of first and higher order."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in chain.tensors):
        return _Evidence.apply(route, *chain.tensors)  # type: ignore[return-value]
    return route.evidence(chain)


class _Evidence(torch.autograd.Function):
    """Forward keeps the derivatives beside the value: they are by-products of one smoother."""

    @staticmethod
    def forward(ctx: Any, route: Route, *tensors: Tensor) -> Tensor:
        log_evidence, derivatives = route.score(GaussianChain(*tensors))
        ctx.save_for_backward(*tensors)
        ctx.derivatives = derivatives
        return log_evidence

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outputs
        tensors = ctx.saved_tensors
        derivatives = ctx.derivatives
        if torch.is_grad_enabled():  # a derivative of the gradient is wanted: the smoother again, traced
            derivatives = passes.score(parallel, GaussianChain(*tensors))[1]
        return None, *(_times(grad, d, x) for d, x in zip(derivatives, tensors))


def _times(grad: Tensor, derivative: Tensor, x: Tensor) -> Tensor:
    """``grad (S,)`` times the derivative, summed over the axes that x shares."""
    return (grad.reshape(-1, *(1,) * (derivative.ndim - 1)) * derivative).sum_to_size(x.shape)
