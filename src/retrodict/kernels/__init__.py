"""Markov kernels, the laws they push and the messages they pull. Knows nothing of networks."""

from retrodict.kernels.euler import EulerStep, NonLinearGaussian
from retrodict.kernels.finite import Finite, Flip
from retrodict.kernels.kernel import Chain, Factor, Kernel
from retrodict.kernels.laws import Belief, Categorical, Gaussian, Point, Quadratic, Table
from retrodict.kernels.linear_gaussian import LinearGaussian

__all__ = [
    "Belief",
    "Categorical",
    "Chain",
    "EulerStep",
    "Factor",
    "Finite",
    "Flip",
    "Gaussian",
    "Kernel",
    "LinearGaussian",
    "NonLinearGaussian",
    "Point",
    "Quadratic",
    "Table",
]
