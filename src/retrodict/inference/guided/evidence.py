"""What is seen along a grid of nodes, as guiding needs it: quadratic surrogates, exact rows, and corrections.

A linear-Gaussian observation is its own surrogate.  Any other law g gets a quadratic one about a nominal state
(Gauss-Newton where it is Gaussian given the state, else Laplace with the Hessian clamped to be concave), and the
particles pay ``log g - log surrogate``, so that nothing but variance depends on the surrogate.  Rows of a linear
observation without noise are exact: they become `Pin` objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.inference.emissions import Emission, LinearEmission
from retrodict.kernels.euler import Pin, jacobian
from retrodict.kernels.laws import Quadratic
from retrodict.kernels.scans.gaussian.algebra import Message, dot, mv


@dataclass
class Evidence:
    """Observations at nodes of a grid.

    Args:
        nodes: node of each observation time j, shared by the series and not decreasing.
        count: number of nodes; d: of coordinates of the state.
        emission: the law; y ``(S, J, m)`` or integers ``(S, J)``; seen: as y.
    """

    nodes: list[int]
    count: int
    d: int
    emission: Emission
    y: Tensor
    seen: Tensor

    def __post_init__(self) -> None:
        self.linear = isinstance(self.emission, LinearEmission)
        self.pins: dict[int, Pin] = {}
        self._surrogate: Message | None = None
        if self.linear:
            self._split_exact()

    def _split_exact(self) -> None:
        """Rows without noise leave the emission and become pins."""
        emission: Any = self.emission
        L, b, R = emission.L, emission.b, emission.R
        if L.ndim != 2 or R.ndim != 2:
            return
        exact = R.diagonal() == 0
        if not bool(exact.any()):
            return
        S = self.y.shape[0]
        for j, node in enumerate(self.nodes):
            rows = self.seen[:, j] & exact
            if bool((rows != rows[:1]).any()):
                raise InputError(
                    f"coordinates without noise are missing in some series and seen in others at observation {j}; "
                    "condition the series one by one"
                )
            if bool(rows[0].any()):
                if node in self.pins or node == 0:
                    where = "at the start" if node == 0 else "twice at one time"
                    raise InputError(f"the state is seen without noise {where}; give start=, or a small noise")
                E, e = L[rows[0]], self.y[:, j, rows[0]] - b.expand(L.shape[0])[rows[0]]
                self.pins[node] = Pin(E.expand(S, 1, *E.shape), e.unsqueeze(1))
        keep = ~exact
        self.emission = LinearEmission(L[keep], b.expand(L.shape[0])[keep], R[keep][:, keep])
        self.y, self.seen = self.y[..., keep], self.seen[..., keep]

    def potentials(self, path: Tensor) -> tuple[Message, dict[int, Pin]]:
        """Surrogates at all nodes, ``H (S, n+1, d, d), F, c``, about a nominal path ``(S, n+1, d)``; and the pins."""
        S = self.y.shape[0]
        H, F, c = self._at_observations(path[:, self.nodes])
        self._surrogate = H, F, c
        index = torch.tensor(self.nodes)
        whole = (
            torch.zeros(S, self.count, self.d, self.d, dtype=torch.float64).index_add(1, index, H),
            torch.zeros(S, self.count, self.d, dtype=torch.float64).index_add(1, index, F),
            torch.zeros(S, self.count, dtype=torch.float64).index_add(1, index, c),
        )
        return whole, self.pins

    def correction(self, j: int, x: Tensor) -> Tensor | None:
        """``log g - log surrogate`` of observation j at states ``x (S, N, d)``; None where it is zero."""
        if self.linear:
            return None
        assert self._surrogate is not None
        H, F, c = (part[:, j, None] for part in self._surrogate)
        return self.log_prob(j, x) - (c + dot(F - mv(H, x) / 2, x))

    def log_prob(self, j: int, x: Tensor) -> Tensor:
        """``log g`` of observation j at states ``x (S, N, d)``: ``(S, N)``."""
        emission = self.emission
        if isinstance(emission, LinearEmission):
            S = x.shape[0]
            if not emission.L.shape[-2]:
                return torch.zeros(x.shape[:2], dtype=x.dtype, device=x.device)
            emission = emission.at((torch.arange(S)[:, None], torch.full((S, 1), j)))
        return emission.log_prob(x, self.y[:, j, None], self.seen[:, j, None])

    def _at_observations(self, x: Tensor) -> Message:
        """Surrogates of all observations about states ``x (S, J, d)``."""
        if isinstance(self.emission, LinearEmission):
            e = self.emission
            return self._observe(e.L, self.y - e.b, e.R)
        x = x.detach()
        moments = self.emission.moments(x) if self.emission.gaussian else None
        if moments is not None:
            mean, J = jacobian(lambda x: self.emission.moments(x)[0], x)  # type: ignore[index]
            return self._observe(J, self.y - mean + mv(J, x), moments[1])
        return self._laplace(x)

    def _observe(self, L: Tensor, y: Tensor, R: Tensor) -> Message:
        """``y = L x + N(0, R)`` as messages; what is not seen contributes nothing."""
        S, J, m = y.shape
        if not m:
            zero = torch.zeros(S, J, self.d, dtype=torch.float64)
            return torch.diag_embed(zero), zero, zero.sum(-1)
        y = torch.where(self.seen, y, torch.full_like(y, float("nan"))).reshape(S * J, m)
        L = L.expand(S, J, m, self.d).reshape(S * J, m, self.d)
        R = R.expand(S, J, m, m).reshape(S * J, m, m)
        h = Quadratic.observe(y, Lin.dense(L), Lin.dense(R))
        return h.H.value.reshape(S, J, self.d, self.d), h.F.reshape(S, J, self.d), h.c.reshape(S, J)

    def _laplace(self, x: Tensor) -> Message:
        """Second-order expansion of log g, with a Hessian clamped to be negative semi-definite."""

        def log_g(x: Tensor) -> Tensor:
            return self.emission.log_prob(x, self.y, self.seen)

        def slope(x: Tensor) -> Tensor:
            value, pull = torch.func.vjp(log_g, x)[:2]
            return pull(torch.ones_like(value))[0]

        value = log_g(x)
        grad, hessian = jacobian(slope, x)
        if not bool(torch.isfinite(grad).all() and torch.isfinite(hessian).all() and torch.isfinite(value).all()):
            raise InputError(
                "the observation law has no finite value or derivative at the nominal path, so guiding has no "
                "surrogate for it; use method='bootstrap'"
            )
        values, vectors = torch.linalg.eigh(-(hessian + hessian.mT) / 2)
        H = (vectors * values.clamp_min(0).unsqueeze(-2)) @ vectors.mT
        F = grad + mv(H, x)
        return H, F, value - dot(F, x) + 0.5 * dot(x, mv(H, x))
