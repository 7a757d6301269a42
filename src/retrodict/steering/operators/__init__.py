"""Measurement operators: what was seen of a state, ``y = A(x) + noise``.

Anything is an operator: one of ours, a matrix, a callable, or a physics of `deepinv`; `as_operator` reads it.
"""

from retrodict.steering.operators.operator import Adapted, Linear, Matrix, NonLinear, Operator, as_operator

__all__ = ["Adapted", "Linear", "Matrix", "NonLinear", "Operator", "as_operator"]
