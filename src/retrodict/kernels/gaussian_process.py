"""A Gaussian process as kernels between finite sets of inputs: regression is the inversion of one of them.

The values at inputs ``b`` given the values at inputs ``a`` are linear-Gaussian,

    y_b = m_b + K_ba K_aa^-1 (x_a - m_a) + N(0, K_bb - K_ba K_aa^-1 K_ab),

so that a process prior is the law at some inputs, data are seen through the kernel from there, and prediction,
Kalman filtering and smoothing are the same verbs (Culbertson and Sturtz 2014).  Along ordered inputs a Markov
covariance (Matern-1/2) makes a chain of one-dimensional kernels of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.kernels.checks import check_covariance
from retrodict.kernels.laws import Gaussian
from retrodict.kernels.linear_gaussian import LinearGaussian


@dataclass(frozen=True)
class GaussianProcess:
    """A Gaussian law over functions.

    Args:
        covariance: ``(x (n, p), y (m, p)) -> (n, m)``.
        mean: ``x (n, p) -> (n,)``; by default zero.
    """

    covariance: Callable[[Tensor, Tensor], Tensor]
    mean: Callable[[Tensor], Tensor] | None = None

    def law(self, x: Tensor) -> Gaussian:
        """The law of the values at inputs ``x (n, p)``: a batch of one vector."""
        K = self._cov(x, x)
        check_covariance(K, "covariance(x, x)")
        return Gaussian(self._mean(x).unsqueeze(0), Lin.dense(K))

    def kernel(self, given: Tensor, wanted: Tensor) -> LinearGaussian:
        """The kernel from the values at ``given (n, p)`` to those at ``wanted (m, p)``.

        Raises:
            InputError: values at ``given`` that determine one another (repeated inputs).
        """
        K, across = self._cov(given, given), self._cov(given, wanted)
        root, info = torch.linalg.cholesky_ex(K)
        pivots = root.detach().diagonal().square()
        if bool(info > 0) or bool((pivots < 1e-12 * K.detach().diagonal()).any()):
            raise InputError(
                "the values at the given inputs determine one another (an input is repeated, or nearly); leave one out"
            )
        A = torch.cholesky_solve(across, root).mT
        Q = self._cov(wanted, wanted) - A @ across
        return LinearGaussian(Lin.dense(A), self._mean(wanted) - A @ self._mean(given), Lin.dense((Q + Q.mT) / 2))

    def _mean(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64) if self.mean is None else self.mean(x).double()

    def _cov(self, x: Tensor, y: Tensor) -> Tensor:
        K = self.covariance(x, y).double()
        if K.shape != (len(x), len(y)):
            raise InputError(f"covariance(x, y) returned shape {tuple(K.shape)}; ({len(x)}, {len(y)}) is accepted")
        return K
