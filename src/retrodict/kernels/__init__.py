"""Markov kernels, the laws they push and the messages they pull. Knows nothing of networks."""

from retrodict.kernels.conditional import Conditional, Deterministic
from retrodict.kernels.euler import EulerStep, NonLinearGaussian
from retrodict.kernels.finite import Finite, Flip
from retrodict.kernels.kernel import Chain, Factor, Identity, Kernel, Pulled, fuse
from retrodict.kernels.laws import Belief, Categorical, Gaussian, Law, Point, Quadratic, Table
from retrodict.kernels.linear_gaussian import LinearGaussian
from retrodict.kernels.parallel import Laws, Messages, Parallel

__all__ = [
    "Belief",
    "Categorical",
    "Chain",
    "Conditional",
    "Deterministic",
    "EulerStep",
    "Factor",
    "Finite",
    "Flip",
    "Gaussian",
    "Identity",
    "Kernel",
    "Law",
    "Laws",
    "LinearGaussian",
    "Messages",
    "NonLinearGaussian",
    "Parallel",
    "Point",
    "Pulled",
    "Quadratic",
    "Table",
    "fuse",
]
