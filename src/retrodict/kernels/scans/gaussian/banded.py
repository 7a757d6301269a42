"""One banded Cholesky factorisation of the posterior precision, by LAPACK: the fastest route for invertible P0 and Q.

The precision of (x_0, ..., x_n) given the potentials is block tridiagonal,

    D_k = Q_k^-1 + A_{k+1}' Q_{k+1}^-1 A_{k+1} + H_k      (P0^-1 at k = 0; no middle term at k = n)
    O_k = -Q_{k+1}^-1 A_{k+1}                             (row k+1, column k)

Its factor has diagonal blocks L_k and subdiagonal blocks B_k.  Means are one solve, draws are mean + L^-T z, the
log evidence is the log joint density at the mean minus logdet(L), and the covariances of nodes and of neighbours
follow from the recursion of Takahashi (1973), which here is an affine scan: with ``U_k = B_k L_k^-1``

    Cov_k = L_k^-T L_k^-1 + U_k' Cov_{k+1} U_k,      Cov_{k+1,k} = -Cov_{k+1} U_k.

Where A, Q and H are the same at every step the factor's blocks settle: a short chain is factored, and the blocks at
which it repeats to rounding are copied (its last node ends the long chain too).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.linalg import get_lapack_funcs
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.kernels.scans.gaussian.algebra import outer, outer_over_time, second_moments, sym
from retrodict.kernels.scans.gaussian.chain import GaussianChain
from retrodict.kernels.scans.scan import Element, suffix

_pbtrf, _pbtrs, _tbtrs = get_lapack_funcs(("pbtrf", "pbtrs", "tbtrs"), dtype=np.float64)
# A pivot below this share of its diagonal entry has lost nine digits, of sixteen.
_PIVOT = 1e-9
# Estimated condition numbers above this may cost more than seven digits.
_CONDITION = 1e7
# Nodes of the short chains that are tried, and the share of a block by which settled ones may differ.
_SHORT = (32, 128, 512)
_SETTLED = 4 * np.finfo(np.float64).eps
_MIXED = 2 * (np.arange(1009) * 0.6180339887498949 % 1)


class IllConditioned(InputError):
    """P0, Q or the precision cannot be inverted to the accuracy that the other routes have."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"route 'cholesky' needs well-conditioned P0, Q and posterior precision, and {what} is (nearly) singular; "
            "every other route takes this chain, and route='auto' finds one"
        )


@dataclass(frozen=True)
class Posterior:
    """The factored precision of a chain; ``factors`` has one entry a series, or one for all.

    NumPy throughout: its operations on arrays of this size cost a fraction of torch's.
    """

    chain: GaussianChain
    P0_inv: np.ndarray
    Q_inv: np.ndarray
    QA: np.ndarray  # Q^-1 A
    logdet: np.ndarray  # of the prior precision's inverse and of the precision: (S|1,)
    factors: list[np.ndarray]

    def solve(self, x: np.ndarray, task: str) -> np.ndarray:
        """``precision^-1 x`` ("both") or ``L^-T x`` ("half") for ``x (..., S, n+1, d)``."""
        shape = x.shape
        columns = x.reshape(-1, *shape[-3:])
        out = np.empty(columns.shape)
        shared = len(self.factors) == 1
        for i, factor in enumerate(self.factors):
            part = columns if shared else columns[:, i]
            right = part.reshape(-1, shape[-2] * shape[-1]).T
            if task == "both":
                solved, info = _pbtrs(factor, right, lower=1)
            else:
                solved, info = _tbtrs(factor, right, uplo="L", trans="T")
            assert info == 0
            if shared:
                return np.ascontiguousarray(solved.T).reshape(shape)
            out[:, i] = solved.T.reshape(part.shape)
        return out.reshape(shape)

    def mean(self) -> np.ndarray:
        """Posterior means ``(S, n+1, d)``; not to be written to."""
        return self.chain.once("banded mean", self._mean)

    def _mean(self) -> np.ndarray:
        m0, b = (x.detach().numpy() for x in (self.chain.m0, self.chain.b))
        right = self.chain.F.detach().numpy().copy()
        right[:, 0] += (self.P0_inv @ m0[..., None])[..., 0]
        if self.chain.n and b.any():
            right[:, 1:] += _mv(self.Q_inv, b)
            right[:, :-1] -= _mv(self.QA.swapaxes(-1, -2), b)
        return self.solve(right, "both")

    def residuals(self, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """``(e, r_0, w, r)``: x_0 - m0 and the disturbances at the mean, and the same times P0^-1 and Q^-1."""
        m0, A, b = (x.detach().numpy() for x in (self.chain.m0, self.chain.A, self.chain.b))
        e = mean[:, 0] - m0
        w = mean[:, 1:] - _mv(A, mean[:, :-1])
        w -= b
        return e, (self.P0_inv @ e[..., None])[..., 0], w, _mv(self.Q_inv, w)

    def log_evidence(self, mean: np.ndarray, residuals: tuple[np.ndarray, ...]) -> Tensor:
        """Log joint density at the posterior mean, minus that of the posterior there."""
        e, r0, w, r = residuals
        H, F, c = (x.detach().numpy() for x in (self.chain.H, self.chain.F, self.chain.c))
        gap = _mv(H, mean)
        gap *= -0.5
        gap += F
        total = c.sum(1) + _inner(mean, gap) - 0.5 * (_inner(w, r) + _inner(e, r0) + self.logdet)
        return torch.from_numpy(total)

    def covariances(self) -> tuple[Tensor, Tensor]:
        """Covariances of nodes ``(S|1, n+1, d, d)`` and of neighbours ``(S|1, n, d, d)``."""
        n, d = self.chain.n, self.chain.d
        blocks = torch.stack([_blocks(factor, n, d) for factor in self.factors])  # L_k over B_k, transposed
        eye = torch.eye(d, dtype=torch.float64)
        inverse = torch.linalg.solve_triangular(blocks[..., :d], eye, upper=True).mT  # L_k^-1
        V = inverse.mT @ inverse
        if not n:
            return V, V[:, :0]
        U = blocks[:, :-1, :, d:].mT @ inverse[:, :-1]
        last = torch.cat((U, torch.zeros_like(V[:, :1])), 1)
        cov = sym(suffix(_selected, (last, V))[1])
        return cov, -cov[:, 1:] @ U


def _selected(first: Element, second: Element) -> Element:
    """``X -> V + U'XU`` after another such map."""
    (U1, V1), (U2, V2) = first, second
    return U2 @ U1, V1 + U1.mT @ V2 @ U1


def factor(chain: GaussianChain) -> Posterior:
    """Factor the precision; raises `IllConditioned` if P0, Q or the precision is too close to singular."""
    return chain.once("banded", lambda: _factor(chain))


def _factor(chain: GaussianChain) -> Posterior:
    n = chain.n
    P0, A, Q, H = (x.detach().numpy() for x in (chain.P0, chain.A, chain.Q, chain.H))
    P0_inv, P0_logdet = _inverse(P0, "P0")
    Q_inv, Q_logdet = _inverse(Q, "Q")
    QA = Q_inv @ A
    lead = max(x.shape[0] for x in (P0_inv, QA, H))
    first, last, middle = P0_inv[:, None] + H[:, :1], None, None
    constant = n > 0 and Q.shape[1] == A.shape[1] == H.shape[1] == 1
    if n:
        AQA = A.swapaxes(-1, -2) @ QA
        first, last = first + AQA[:, :1], Q_inv[:, -1:] + H[:, -1:]
        middle = _steps(Q_inv, 0, n - 1) + _steps(AQA, 1, n) + _steps(H, 1, n)
    factors, logdets = [], []
    for i in range(lead):
        own = [None if x is None else x[i if x.shape[0] > 1 else 0] for x in (first, middle, last, QA)]
        band, pivots = _triangle(n, chain.d, constant, own)
        factors.append(band)
        logdets.append(2 * pivots)
    steps = Q_logdet.sum(1) * (n if Q_logdet.shape[1] == 1 else 1)
    return Posterior(chain, P0_inv, Q_inv, QA, P0_logdet + steps + np.array(logdets), factors)


def _triangle(n: int, d: int, constant: bool, blocks: list[np.ndarray | None]) -> tuple[np.ndarray, float]:
    """The factor's band, ``(2 d, (n + 1) d)`` in LAPACK's order, and the sum of the logs of its pivots."""
    for nodes in _SHORT if constant else ():
        if n <= 2 * nodes:
            break
        band = _checked(nodes, d, blocks)
        rows = band.T.reshape(nodes + 1, d, 2 * d)
        scale = np.abs(rows[-2]).max()
        if np.abs(rows[-2] - rows[-3]).max() <= _SETTLED * scale:
            whole = np.empty((n + 1, d, 2 * d))
            whole[:nodes], whole[nodes:-1], whole[-1] = rows[:-1], rows[-2], rows[-1]
            logs = np.log(rows[:, :, 0])
            return whole.reshape(-1, 2 * d).T, float(logs.sum() + (n - nodes) * logs[-2].sum())
    band = _checked(n, d, blocks)
    return band, float(np.log(band[0]).sum())


def _checked(n: int, d: int, blocks: list[np.ndarray | None]) -> np.ndarray:
    band = _band(n, d, *blocks)
    diagonal = band[:, 0].copy()
    band, info = _pbtrf(band.T, lower=1, overwrite_ab=1)
    if info or _condition(band, diagonal) > _CONDITION:
        raise IllConditioned("the precision")
    return band


@lru_cache(4)
def _mixed(size: int) -> np.ndarray:
    return np.resize(_MIXED, size)


def _condition(band: np.ndarray, diagonal: np.ndarray) -> float:
    """A lower estimate of the condition number of the precision, scaled to a diagonal of ones.

    One solve with a right-hand side that has smooth and rough parts: near-singular directions are one or the other.
    """
    scale = np.sqrt(diagonal)
    solved, _ = _pbtrs(band, scale * _mixed(len(scale)), lower=1)
    return float(np.abs(scale * solved).max())


def _steps(x: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Entries start..stop-1 along time; an axis of one is shared."""
    return x if x.shape[1] == 1 else x[:, start:stop]


def _band(n: int, d: int, *blocks: np.ndarray | None) -> np.ndarray:
    """LAPACK's band of a precision, ``((n + 1) d, 2 d)``: entry o of row j is the matrix's entry (j + o, j).

    ``blocks``: the diagonal blocks of the first node, of those between (an axis of one is shared) and of the last,
    and the negative subdiagonal blocks.
    """
    first, middle, last, QA = blocks
    band = np.zeros((n + 1, d, 2 * d))
    for j in range(d):
        for diagonal, nodes in ((middle, slice(1, n)), (last, slice(n, n + 1)), (first, slice(0, 1))):
            if diagonal is not None:
                band[nodes, j, : d - j] = diagonal[:, j:, j]
        if n and QA is not None:
            band[:-1, j, d - j : 2 * d - j] = -QA[:, :, j]
    return band.reshape((n + 1) * d, 2 * d)


def _blocks(band: np.ndarray, n: int, d: int) -> Tensor:
    """Blocks of a factor from its band: ``(n+1, d, 2d)``, transposed diagonal and subdiagonal blocks."""
    W = np.zeros((n + 1, d, 3 * d))
    s0, s1, s2 = W.strides
    view = np.lib.stride_tricks.as_strided(W, (n + 1, d, 2 * d), (s0, s1 + s2, s2))
    view[...] = band.T.reshape(n + 1, d, 2 * d)
    return torch.from_numpy(W)[..., : 2 * d]


def _inverse(C: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inverse and log determinant of covariances."""
    root, info = torch.linalg.cholesky_ex(torch.from_numpy(C))
    pivots = root.numpy().diagonal(axis1=-2, axis2=-1)
    if info.any() or (pivots**2 < _PIVOT * C.diagonal(axis1=-2, axis2=-1)).any():
        raise IllConditioned(name)
    return torch.cholesky_inverse(root).numpy(), 2 * np.log(pivots).sum(-1)


def _mv(A: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Maps ``(S|1, n|1, d, d)`` times vectors ``(S, n, d)``; one map for all is one matrix product."""
    if A.shape[:2] == (1, 1):
        return (x.reshape(-1, x.shape[-1]) @ A[0, 0].T).reshape(x.shape)
    return np.matmul(A, x[..., None])[..., 0]


def _inner(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Inner products over all axes but the first."""
    if len(x) == 1:
        return np.array([np.vdot(x, y)])
    return np.einsum("ij,ij->i", x.reshape(len(x), -1), y.reshape(len(y), -1))


def score(chain: GaussianChain) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Log evidence and its derivatives by ``(m0, P0, A, b, Q, H, F, c)``, by Fisher's identity.

    With disturbances ``w_k = x_k - A x_{k-1} - b`` and ``r_k = Q^-1 w_k`` at the mean: d/db = r,
    d/dA = r x_{k-1}' + Q^-1 (Cov(x_k, x_{k-1}) - A Cov(x_{k-1})), d/dQ = (rr' + Q^-1 Cov(w) Q^-1 - Q^-1)/2.
    """
    found = factor(chain)
    at = found.mean()
    residuals = found.residuals(at)
    cov, cross = found.covariances()
    mean, r0, r, P0_inv, Q_inv = map(
        torch.from_numpy, (at.copy(), residuals[1], residuals[3], found.P0_inv, found.Q_inv)
    )
    A = chain.A.detach()
    # what the series and the steps share is summed over the steps first: the matrix products are then few
    shared = chain.n > 1 and chain.A.shape[1] == chain.Q.shape[1] == 1
    here, before, lag = cov[:, 1:], cov[:, :-1], cross
    if shared:
        here, before, lag = (x.sum(1, keepdim=True) for x in (here, before, lag))
    gap = lag - A @ before  # Cov(w_k, x_{k-1})
    spread = here - lag @ A.mT - A @ gap.mT
    by_A = outer_over_time(r, mean[:, :-1], shared) + Q_inv @ gap
    steps = chain.n if shared else 1
    by_Q = (outer_over_time(r, r, shared) + Q_inv @ spread @ Q_inv - steps * Q_inv) / 2
    by_P0 = (outer(r0, r0) + P0_inv @ cov[:, 0] @ P0_inv - P0_inv) / 2
    by_H = second_moments(chain.H, mean, cov) / -2
    derivatives = (r0, by_P0, by_A, r, by_Q, by_H, mean, torch.ones_like(chain.c))
    return found.log_evidence(at, residuals), derivatives
