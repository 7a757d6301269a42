"""The oracle of linear-Gaussian models: the joint law of all states and observations of one series, written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class Dense:
    """``x_k = A x_{k-1} + b + N(0, Q)`` between distinct times, ``y = L x + c + N(0, R)`` at every time."""

    m0: Array
    P0: Array
    step: Callable[[float, float], tuple[Array, Array, Array]]
    L: Array
    c: Array
    R: Array

    def states(self, times: Array) -> tuple[Array, Array]:
        """Mean ``(N d,)`` and covariance of the states at times that do not go back."""
        d, N = len(self.m0), len(times)
        mean, cov = np.zeros((N, d)), np.zeros((N, d, N, d))
        mean[0], cov[0, :, 0] = self.m0, self.P0
        for k in range(1, N):
            gap = times[k] > times[k - 1]
            A, b, Q = self.step(times[k - 1], times[k]) if gap else (np.eye(d), np.zeros(d), np.zeros((d, d)))
            mean[k] = A @ mean[k - 1] + b
            for j in range(k):
                cov[k, :, j] = A @ cov[k - 1, :, j]
                cov[j, :, k] = cov[k, :, j].T
            cov[k, :, k] = A @ cov[k - 1, :, k - 1] @ A.T + Q
        return mean.reshape(-1), cov.reshape(N * d, N * d)

    def joint(self, times: Array) -> tuple[Array, Array, Array, Array, Array]:
        """``(mean x, cov x, mean y, cov y, cov (x, y))``."""
        N = len(times)
        mean, cov = self.states(times)
        L = np.kron(np.eye(N), self.L)
        return mean, cov, L @ mean + np.tile(self.c, N), L @ cov @ L.T + np.kron(np.eye(N), self.R), cov @ L.T

    def posterior(self, times: Array, y: Array, upto: float = np.inf) -> tuple[Array, Array, float]:
        """Means ``(N, d)``, covariances ``(N, d, d)`` and the log evidence given what was seen up to a time."""
        mx, Cx, my, Cy, Cxy = self.joint(times)
        seen = ~np.isnan(y).reshape(-1) & np.repeat(times <= upto, y.shape[1])
        gap = y.reshape(-1)[seen] - my[seen]
        gain = np.linalg.solve(Cy[np.ix_(seen, seen)], Cxy[:, seen].T).T
        mean, cov = mx + gain @ gap, Cx - gain @ Cxy[:, seen].T
        d, N = len(self.m0), len(times)
        blocks = np.stack([cov.reshape(N, d, N, d)[k, :, k] for k in range(N)])
        logdet = np.linalg.slogdet(2 * np.pi * Cy[np.ix_(seen, seen)])[1]
        evidence = -0.5 * (logdet + gap @ np.linalg.solve(Cy[np.ix_(seen, seen)], gap))
        return mean.reshape(N, d), blocks, float(evidence)

    def filtered(self, times: Array, y: Array) -> tuple[Array, Array]:
        """Means and covariances at every time given what was seen up to and at it."""
        found = [self.posterior(times, y, upto=t) for t in times]
        return np.stack([f[0][k] for k, f in enumerate(found)]), np.stack([f[1][k] for k, f in enumerate(found)])
