"""The protocol of operators, batch first: ``A(x)``, and for linear ones ``A.adjoint(y)`` and more where it exists."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError


class Operator:
    """A map from states ``(batch, *shape)`` to measurements ``(batch, *output)``.

    Attributes:
        linear: whether it is linear; then `adjoint` exists.
    """

    linear: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def __or__(self, other: Any) -> Operator:
        """``A | B``: first A, then B."""
        return Composed(self, as_operator(other))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the measurement of a state of the given shape."""
        return tuple(self(torch.zeros(1, *shape)).shape[1:])


class Linear(Operator):
    """A linear operator; `adjoint` defaults to the transpose that autograd finds."""

    linear = True

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """``A^T y`` for ``y (batch, *output)``, of the given shape of states."""
        with torch.enable_grad():
            x = torch.zeros(len(y), *shape, dtype=y.dtype, device=y.device, requires_grad=True)
            (out,) = torch.autograd.grad(self(x), x, y)
        return out

    def matrix(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
        """The matrix on flattened states, ``(m, d)``; for small problems."""
        d = math.prod(shape)
        return self(torch.eye(d, dtype=dtype).reshape(d, *shape)).reshape(d, -1).T.contiguous()


class NonLinear(Operator):
    """A differentiable or black-box callable."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


class Matrix(Linear):
    """``y = M x`` on flattened states; M ``(m, d)``."""

    def __init__(self, value: Any) -> None:
        self.value = torch.as_tensor(value)
        if self.value.ndim != 2:
            raise InputError(f"a matrix operator has two axes (m, d), got shape {tuple(self.value.shape)}")

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if flat.shape[1] != self.value.shape[1]:
            raise InputError(
                f"an operator of shape {tuple(self.value.shape)} does not meet states of shape {tuple(x.shape[1:])}"
            )
        return flat @ self.value.to(flat).T

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        return (y @ self.value.to(y)).reshape(len(y), *shape)


class Composed(Linear):
    """One operator after another."""

    def __init__(self, first: Operator, second: Operator) -> None:
        self.first, self.second = first, second
        self.linear = first.linear and second.linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Adapted(Linear):
    """A physics of `deepinv`: ``A``, and ``A_adjoint`` where it is linear."""

    def __init__(self, physics: Any) -> None:
        self.physics, self.linear = physics, hasattr(physics, "A_adjoint")

    def __call__(self, x: Tensor) -> Tensor:
        return self.physics.A(x)

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.physics.A_adjoint(y)


def as_operator(value: Any) -> Operator:
    """An `Operator` from one, from a matrix, a physics of `deepinv`, or a callable (taken to be non-linear)."""
    if isinstance(value, Operator):
        return value
    if hasattr(value, "A") and callable(value.A):
        return Adapted(value)
    if callable(value):
        return NonLinear(value)
    try:
        return Matrix(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(
            f"an operator is one of rd.operators, a matrix, a deepinv physics or a callable; got {type(value).__name__}"
        ) from error
