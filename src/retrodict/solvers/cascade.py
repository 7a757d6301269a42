"""The cascade of polynomials that foretells compensation ratios (DC-Solver, Zhao et al. 2024, section 3.3).

Ratios are fitted at a few budgets and guidance scales; for others they come from 36 coefficients phi:

    r_i = sum_{k<4} c_k x^k,     c_k = sum_{j<3} q_kj w^{2-j},     q_kj = sum_{l<3} phi_kjl n^{2-l}

with x = i/steps for the i-th evaluation (from one; the first two are never compensated), n = steps/50 and
w = guidance/12.  For given steps and guidance r is linear in phi, so that phi is a least-squares solution; with fewer
fitted ratios than coefficients it is the one of least norm about r = 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retrodict.core.errors import InputError, require


@dataclass(frozen=True)
class Cascade:
    """Coefficients ``(4, 3, 3)``, and the guidance scale that ratios are wanted for."""

    coefficients: np.ndarray
    guidance: float = 1.0

    @staticmethod
    def fit(ratios: Mapping[tuple[int, float], Sequence[float]], decay: float = 1e-6) -> Cascade:
        """Least squares on ratios by ``(steps, guidance)``, each a list from the third evaluation on.

        Raises:
            InputError: nothing to fit, or a list of the wrong length.
        """
        rows, targets = [], []
        for (steps, guidance), values in ratios.items():
            require(
                len(values) == steps - 2,
                f"{steps} steps have {steps - 2} ratios, from the third evaluation on; got {len(values)}",
            )
            rows += [_features(i, steps, guidance) for i in range(3, steps + 1)]
            targets += [float(v) - 1 for v in values]
        if not rows:
            raise InputError("no ratios to fit: plans of three evaluations or more have some")
        X, y = np.array(rows), np.array(targets)
        scale = np.abs(X).max(0).clip(min=1e-12)
        X = X / scale
        solved = np.linalg.solve(X.T @ X + decay * len(X) * np.eye(36), X.T @ y) / scale
        solved[8] += 1.0  # the constant: k = 0, j = l = 2
        return Cascade(solved.reshape(4, 3, 3))

    def at(self, guidance: float) -> Cascade:
        """The same polynomials for another guidance scale."""
        return replace(self, guidance=float(guidance))

    def ratios(self, steps: int) -> list[float]:
        """Ratios of a plan of so many steps, from the third evaluation on."""
        phi = self.coefficients.ravel()
        return [float(_features(i, steps, self.guidance) @ phi) for i in range(3, steps + 1)]

    def config(self) -> dict[str, Any]:
        """Plain values, so that a plan made with them is data."""
        return {"coefficients": self.coefficients.tolist(), "guidance": self.guidance}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> Cascade:
        """Restore what `config` gave."""
        values = np.asarray(config.get("coefficients"), dtype=np.float64)
        require(values.shape == (4, 3, 3), f"a cascade has coefficients of shape (4, 3, 3), got {values.shape}")
        return Cascade(values, float(config.get("guidance", 1.0)))


def _features(i: int, steps: int, guidance: float) -> np.ndarray:
    """What the 36 coefficients are multiplied by."""
    x, n, w = i / steps, steps / 50, guidance / 12
    powers = lambda v, m: np.array([v ** (m - 1 - j) for j in range(m)])  # noqa: E731
    return np.einsum("k,j,l->kjl", powers(x, 4)[::-1], powers(w, 3), powers(n, 3)).ravel()
