"""Whole chains at once: associative scans, and exact inference in Gaussian and finite chains.

`scan` is the generic scan; `gaussian` and `finite` filter, smooth, draw, pull messages and give the evidence of a
chain with potentials at its nodes, each by several routes that agree (a loop, a scan, a banded Cholesky
factorisation, compiled loops), batched over series and differentiable.
"""

from retrodict.kernels.scans import finite, gaussian
from retrodict.kernels.scans.finite import FiniteChain
from retrodict.kernels.scans.gaussian import GaussianChain
from retrodict.kernels.scans.scan import affine, prefix, suffix

__all__ = ["FiniteChain", "GaussianChain", "affine", "finite", "gaussian", "prefix", "suffix"]
