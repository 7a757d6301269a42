"""Markov kernels, the laws they push and the messages they pull. Knows nothing of networks."""

from retrodict.kernels.conditional import Conditional, Deterministic
from retrodict.kernels.euler import EulerStep, NonLinearGaussian
from retrodict.kernels.finite import Finite, Flip
from retrodict.kernels.gaussian_process import GaussianProcess
from retrodict.kernels.increments import CountMessage, Events, GammaIncrement, GammaMessage, Towards
from retrodict.kernels.jump import Jump, rates_of
from retrodict.kernels.kernel import Chain, Factor, Identity, Kernel, Pulled, fuse
from retrodict.kernels.laws import Belief, Categorical, Gaussian, Law, Point, Quadratic, Table
from retrodict.kernels.linear_gaussian import LinearGaussian
from retrodict.kernels.linear_sde import LinearSDE
from retrodict.kernels.parallel import Laws, Messages, Parallel
from retrodict.kernels.sites import InteractingSites

__all__ = [
    "Belief",
    "Categorical",
    "Chain",
    "Conditional",
    "CountMessage",
    "Deterministic",
    "EulerStep",
    "Events",
    "Factor",
    "Finite",
    "Flip",
    "GammaIncrement",
    "GammaMessage",
    "Gaussian",
    "GaussianProcess",
    "Identity",
    "InteractingSites",
    "Jump",
    "Kernel",
    "Law",
    "Laws",
    "LinearGaussian",
    "LinearSDE",
    "Messages",
    "NonLinearGaussian",
    "Parallel",
    "Point",
    "Pulled",
    "Quadratic",
    "Table",
    "Towards",
    "fuse",
    "rates_of",
]
