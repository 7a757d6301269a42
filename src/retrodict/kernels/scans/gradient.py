"""The log evidence with its gradient from the smoother, as one autograd function for chains of either kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Chain(Protocol):
    """Made from its tensors, first axis the series."""

    @property
    def tensors(self) -> tuple[Tensor, ...]: ...


class Route(Protocol):
    """A way to the evidence, and to the evidence with its derivatives by the chain's tensors."""

    def evidence(self, chain: Any) -> Tensor: ...

    def score(self, chain: Any) -> tuple[Tensor, tuple[Tensor, ...]]: ...


def with_gradient(route: Route, chain: Chain, traced: Callable[[Any], tuple[Tensor, ...]]) -> Tensor:
    """Log evidence ``(S,)`` by ``route``; gradients by Fisher's identity, of first and higher order.

    Args:
        traced: the derivatives as autograd can follow them, for the derivative of a gradient.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in chain.tensors):
        return _Evidence.apply(route, type(chain), traced, *chain.tensors)  # type: ignore[return-value]
    return route.evidence(chain)


class _Evidence(torch.autograd.Function):
    """Forward keeps the derivatives beside the value: they are by-products of one smoother."""

    @staticmethod
    def forward(ctx: Any, route: Route, make: Any, traced: Any, *tensors: Tensor) -> Tensor:
        log_evidence, derivatives = route.score(make(*tensors))
        ctx.save_for_backward(*tensors)
        ctx.derivatives, ctx.again = derivatives, lambda *parts: traced(make(*parts))
        return log_evidence

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outputs
        tensors = ctx.saved_tensors
        derivatives = ctx.derivatives
        if torch.is_grad_enabled():  # a derivative of the gradient is wanted: the smoother again, traced
            derivatives = ctx.again(*tensors)
        return None, None, None, *(_times(grad, d, x) for d, x in zip(derivatives, tensors))


def _times(grad: Tensor, derivative: Tensor, x: Tensor) -> Tensor:
    """``grad (S,)`` times the derivative, summed over the axes that x shares."""
    return (grad.reshape(-1, *(1,) * (derivative.ndim - 1)) * derivative).sum_to_size(x.shape)
