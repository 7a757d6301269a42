"""The protocol of operators, batch first: ``A(x)``, and for linear ones what their linearity gives.

    adjoint    A^T y                          by hand where it is short, else what autograd finds
    gram       the diagonal of A A^T          where A A^T is diagonal: masks, block means, orthonormal projections
    singular   A = U diag(s) V^T              fast where it is known (`Singular`), else dense, for small problems
    pinv       A^+ y                          from one of the two

States are ``(batch, *shape)`` and measurements ``(batch, *output)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.steering.operators.singular import Singular, dense_singular

#: Largest number of entries of a matrix that is written out to be decomposed: 64 million in float64 are half a GiB.
MOST_ENTRIES = 1 << 26


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
        """Shape of the measurement of a state of the given shape; raises where the two do not meet."""
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

    def gram(self, shape: tuple[int, ...]) -> Tensor | None:
        """The diagonal of ``A A^T``, ``(*output)`` float64, where that is a diagonal matrix; else None."""
        return None

    def singular(self, shape: tuple[int, ...]) -> Singular:
        """``A = U diag(s) V^T``; by a dense decomposition unless the operator knows better."""
        output = self.output_shape(shape)
        if math.prod(shape) * math.prod(output) > MOST_ENTRIES:
            raise InputError(
                f"{type(self).__name__} on states of shape {shape} has no fast singular form, and its matrix of "
                f"{math.prod(output)} x {math.prod(shape)} is too large to decompose"
            )
        return dense_singular(self.matrix(shape), shape, output)

    def pinv(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """``A^+ y``: of all states that fit y best, the shortest."""
        gram = self.gram(shape)
        if gram is None:
            return self.singular(shape).pinv(y)
        return self.adjoint(y / gram.to(y), shape)


class NonLinear(Operator):
    """A callable ``(batch, *shape) -> (batch, *output)``; differentiable where a method asks for derivatives."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)


class Function(Linear):
    """A callable that the user says is linear."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
        seen = self(x)
        if not torch.allclose(self(3 * x[:1] - x[1:]), 3 * seen[:1] - seen[1:], rtol=1e-3, atol=1e-3):
            raise InputError("linear=True, and f(3 a - b) is not 3 f(a) - f(b); leave out linear=")
        return tuple(seen.shape[1:])


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

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.second.output_shape(self.first.output_shape(shape))

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        first, second = self._parts()
        return first.adjoint(second.adjoint(y, first.output_shape(shape)), shape)

    def gram(self, shape: tuple[int, ...]) -> Tensor | None:
        """Where the first operator's is constant it factors out of ``B A A^T B^T``."""
        first, second = self._parts()
        one = first.gram(shape)
        two = second.gram(first.output_shape(shape))
        if one is None or two is None or not torch.allclose(one, one.flatten()[0]):
            return None
        return one.flatten()[0] * two

    def _parts(self) -> tuple[Linear, Linear]:
        if not (isinstance(self.first, Linear) and isinstance(self.second, Linear) and self.linear):
            raise InputError("this chain of operators is not linear, and has no adjoint")
        return self.first, self.second


class Adapted(Linear):
    """A physics of `deepinv`: ``A``, and where it is linear ``A_adjoint`` and ``A_dagger``."""

    def __init__(self, physics: Any) -> None:
        self.physics, self.linear = physics, hasattr(physics, "A_adjoint")

    def __call__(self, x: Tensor) -> Tensor:
        return self.physics.A(x)

    def adjoint(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        if not self.linear:
            raise InputError(f"{type(self.physics).__name__} is not linear, and has no adjoint")
        return self.physics.A_adjoint(y)

    def pinv(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        return self.physics.A_dagger(y) if hasattr(self.physics, "A_dagger") else super().pinv(y, shape)


def as_operator(value: Any) -> Operator:
    """An `Operator` from one, from a matrix, a physics of `deepinv`, or a callable (taken to be non-linear)."""
    if isinstance(value, Operator):
        return value
    if hasattr(value, "A") and callable(value.A):
        return Adapted(value)
    if callable(value):
        return NonLinear(value)  # type: ignore[arg-type]  # what it returns is seen when it is called
    try:
        return Matrix(value)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputTypeError(
            f"an operator is one of rd.operators, a matrix, a deepinv physics or a callable; got {type(value).__name__}"
        ) from error


def image_axes(x: Tensor, what: str) -> tuple[int, int]:
    """Height and width of images ``(batch, ..., H, W)``, or an error that names the shape."""
    if x.ndim < 3:
        raise InputError(
            f"{what} acts on images (..., height, width), got states of shape {tuple(x.shape[1:])}; "
            "rd.operators.reshape(1, height, width) | ... makes images of vectors"
        )
    return x.shape[-2], x.shape[-1]
