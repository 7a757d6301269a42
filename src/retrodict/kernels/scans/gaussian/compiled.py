"""The passes of `loop` as compiled loops: small matrices by hand, one series a call, series on threads.

Covariances do not depend on the data, so each pass is split in two: a matrix pass, done once if the series share
their matrices, and a vector pass a series.  With ``V = (I + QH)^-1 Q``, ``E = (I + QH)^-1 A`` and ``u = F - H b``:

    guided mean  E x + b + V u        pulled  H' = E'HA,  F' = E'u,
    pulled constant  c - logdet(I + QH)/2 + F.y - y.Hy/2 - (y - b).(F - H y)/2  at  y = b + V u  (see `algebra`)

Where A, Q and H are the same at every step the matrices settle: from the step on at which they repeat to rounding the
matrix passes copy.  Takes singular P0, Q and H, as everything here.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from retrodict.kernels.scans.gaussian.algebra import Message, Step
from retrodict.kernels.scans.gaussian.chain import GaussianChain
from retrodict.kernels.scans.native import array, compiled, each

KERNELS = (
    "eliminate",
    "root",
    "same",
    "settled",
    "backward_matrices",
    "backward_vectors",
    "forward_matrices",
    "forward_vectors",
    "push_matrices",
    "push_vectors",
    "step_roots",
)


# -- kernels: one series each; arrays shared in time have a leading axis of one -------------------------------


def eliminate(M, R):  # type: ignore[no-untyped-def]
    """``R <- M^-1 R`` by elimination with partial pivoting, destroying M; returns log |det M|."""
    d, width = R.shape
    logdet = 0.0
    for j in range(d):
        p = j
        for i in range(j + 1, d):
            if abs(M[i, j]) > abs(M[p, j]):
                p = i
        if p != j:
            for l in range(j, d):
                M[j, l], M[p, l] = M[p, l], M[j, l]
            for l in range(width):
                R[j, l], R[p, l] = R[p, l], R[j, l]
        logdet += math.log(abs(M[j, j]))
        inverse = 1.0 / M[j, j]
        for i in range(j + 1, d):
            f = M[i, j] * inverse
            if f != 0.0:
                for l in range(j + 1, d):
                    M[i, l] -= f * M[j, l]
                for l in range(width):
                    R[i, l] -= f * R[j, l]
    for j in range(d - 1, -1, -1):
        inverse = 1.0 / M[j, j]
        for l in range(width):
            R[j, l] *= inverse
        for i in range(j):
            f = M[i, j]
            if f != 0.0:
                for l in range(width):
                    R[i, l] -= f * R[j, l]
    return logdet


def root(C, S):  # type: ignore[no-untyped-def]
    """Lower-triangular ``S S' = C`` for positive semi-definite C; a pivot that is only rounding gives a zero column."""
    d = C.shape[0]
    for j in range(d):
        for i in range(d):
            S[i, j] = 0.0
        pivot = C[j, j]
        for l in range(j):
            pivot -= S[j, l] * S[j, l]
        if pivot > 8.9e-16 * d * C[j, j]:
            S[j, j] = math.sqrt(pivot)
            for i in range(j + 1, d):
                x = C[i, j]
                for l in range(j):
                    x -= S[i, l] * S[j, l]
                S[i, j] = x / S[j, j]


def same(C, D):  # type: ignore[no-untyped-def]
    """Whether two matrices are equal in every bit."""
    for i in range(C.shape[0]):
        for j in range(C.shape[1]):
            if C[i, j] != D[i, j]:
                return False
    return True


def settled(C, D):  # type: ignore[no-untyped-def]
    """Whether two positive semi-definite matrices are equal to rounding, in the units of their own diagonals."""
    for i in range(C.shape[0]):
        for j in range(i + 1):
            x = C[i, j] - D[i, j]
            if x * x > 7.9e-31 * C[i, i] * C[j, j]:  # (4 machine epsilons)^2
                return False
    return True


def backward_matrices(A, Q, H, fused, E, V, logdet):  # type: ignore[no-untyped-def]
    """Fused H of every node; E, V and logdet of every guided step."""
    n, d = E.shape[0], E.shape[1]
    M, R = np.empty((d, d)), np.empty((d, 2 * d))
    last = H.shape[0] - 1
    for i in range(d):
        for j in range(d):
            fused[n, i, j] = H[last, i, j]
    for k in range(n, 0, -1):
        Ak, Qk = A[min(k - 1, A.shape[0] - 1)], Q[min(k - 1, Q.shape[0] - 1)]
        h, g, e, v = fused[k], H[min(k - 1, last)], E[k - 1], V[k - 1]
        for i in range(d):
            for j in range(d):
                x = 1.0 if i == j else 0.0
                for l in range(d):
                    x += Qk[i, l] * h[l, j]
                M[i, j] = x
                R[i, j] = Ak[i, j]
                R[i, d + j] = Qk[i, j]
        logdet[k - 1] = eliminate(M, R)
        for i in range(d):
            for j in range(d):
                e[i, j] = R[i, j]
                v[i, j] = 0.5 * (R[i, d + j] + R[j, d + i])
        for i in range(d):
            for j in range(d):
                x = 0.0
                for l in range(d):
                    x += h[i, l] * Ak[l, j]
                M[i, j] = x
        for i in range(d):
            for j in range(i + 1):
                x, y = 0.0, 0.0
                for l in range(d):
                    x += e[l, i] * M[l, j]
                    y += e[l, j] * M[l, i]
                fused[k - 1, i, j] = g[i, j] + 0.5 * (x + y)
                fused[k - 1, j, i] = g[j, i] + 0.5 * (x + y)
        if A.shape[0] == 1 and Q.shape[0] == 1 and last == 0 and settled(fused[k - 1], h):
            for i in range(k - 1):
                fused[i] = fused[k - 1]
                E[i] = e
                V[i] = v
                logdet[i] = logdet[k - 1]
            break


def backward_vectors(b, F, c, H, E, V, logdet, fused_F, fused_c, g):  # type: ignore[no-untyped-def]
    """Fused F and c of every node; offsets g of every guided step.  H is the fused one; indices instead of views, which
    numba counts references of.
    """
    n, d = E.shape[0], E.shape[1]
    u, last = np.empty(d), b.shape[0] - 1
    fused_c[n] = c[n]
    for i in range(d):
        fused_F[n, i] = F[n, i]
    for k in range(n, 0, -1):
        s = min(k - 1, last)
        for i in range(d):
            x = fused_F[k, i]
            for j in range(d):
                x -= H[k, i, j] * b[s, j]
            u[i] = x
        for i in range(d):
            x = b[s, i]
            for j in range(d):
                x += V[k - 1, i, j] * u[j]
            g[k - 1, i] = x
        total = c[k - 1] + fused_c[k] - 0.5 * logdet[k - 1]
        for i in range(d):
            r = fused_F[k, i]
            for j in range(d):
                r -= H[k, i, j] * g[k - 1, j]
            total += 0.5 * ((fused_F[k, i] + r) * g[k - 1, i] - (g[k - 1, i] - b[s, i]) * r)
        fused_c[k - 1] = total
        for j in range(d):
            x = F[k - 1, j]
            for i in range(d):
                x += E[k - 1, i, j] * u[i]
            fused_F[k - 1, j] = x


def forward_matrices(P0, A, Q, H, cov, logdet):  # type: ignore[no-untyped-def]
    """Filtered covariances and logdet(I + P H) with the predicted P, of every node."""
    nodes, d = cov.shape[0], cov.shape[1]
    P, M, R = P0.copy(), np.empty((d, d)), np.empty((d, d))
    for k in range(nodes):
        h = H[min(k, H.shape[0] - 1)]
        if k:
            Ak, Qk = A[min(k - 1, A.shape[0] - 1)], Q[min(k - 1, Q.shape[0] - 1)]
            for i in range(d):
                for j in range(d):
                    x = 0.0
                    for l in range(d):
                        x += Ak[i, l] * cov[k - 1, l, j]
                    M[i, j] = x
            for i in range(d):
                for j in range(i + 1):
                    x = 0.0
                    for l in range(d):
                        x += M[i, l] * Ak[j, l]
                    P[i, j] = x + Qk[i, j]
                    P[j, i] = x + Qk[j, i]
        for i in range(d):
            for j in range(d):
                x = 1.0 if i == j else 0.0
                for l in range(d):
                    x += P[i, l] * h[l, j]
                M[i, j] = x
                R[i, j] = P[i, j]
        logdet[k] = eliminate(M, R)
        for i in range(d):
            for j in range(d):
                cov[k, i, j] = 0.5 * (R[i, j] + R[j, i])
        constant = A.shape[0] == 1 and Q.shape[0] == 1 and H.shape[0] == 1
        if k > 1 and constant and settled(cov[k], cov[k - 1]):
            for i in range(k + 1, nodes):
                cov[i] = cov[k]
                logdet[i] = logdet[k]
            break


def forward_vectors(m0, A, b, H, F, c, cov, logdet, mean, total):  # type: ignore[no-untyped-def]
    """Filtered means, and the log evidence in ``total[0]``."""
    nodes, d = mean.shape
    m, u = m0.copy(), np.empty(d)
    lasts = A.shape[0] - 1, b.shape[0] - 1, H.shape[0] - 1
    log_evidence = 0.0
    for k in range(nodes):
        a, s, h = min(k - 1, lasts[0]), min(k - 1, lasts[1]), min(k, lasts[2])
        if k:
            for i in range(d):
                x = b[s, i]
                for j in range(d):
                    x += A[a, i, j] * mean[k - 1, j]
                m[i] = x
        for i in range(d):
            x = F[k, i]
            for j in range(d):
                x -= H[h, i, j] * m[j]
            u[i] = x
        for i in range(d):
            x = m[i]
            for j in range(d):
                x += cov[k, i, j] * u[j]
            mean[k, i] = x
        log_evidence += c[k] - 0.5 * logdet[k]
        for i in range(d):
            r = F[k, i]
            for j in range(d):
                r -= H[h, i, j] * mean[k, j]
            log_evidence += 0.5 * ((F[k, i] + r) * mean[k, i] - (mean[k, i] - m[i]) * r)
    total[0] = log_evidence


def push_matrices(P, E, V, cov):  # type: ignore[no-untyped-def]
    """Covariances of nodes from P at node 0: ``cov_{k+1} = E cov_k E' + V``."""
    n, d = E.shape[0], E.shape[1]
    lag = np.empty((d, d))
    for i in range(d):
        for j in range(d):
            cov[0, i, j] = P[i, j]
    for k in range(n):
        e = E[k]
        # E and V that were copied are equal in every bit
        if k > 1 and same(E[k], E[k - 1]) and same(V[k], V[k - 1]) and settled(cov[k], cov[k - 1]):
            cov[k + 1] = cov[k]
            continue
        for i in range(d):
            for j in range(d):
                x = 0.0
                for l in range(d):
                    x += e[i, l] * cov[k, l, j]
                lag[i, j] = x
        for i in range(d):
            for j in range(i + 1):
                x = V[k, i, j]
                for l in range(d):
                    x += lag[i, l] * e[j, l]
                cov[k + 1, i, j] = x
                cov[k + 1, j, i] = x


def push_vectors(E, g, path):  # type: ignore[no-untyped-def]
    """``path_k = E_k path_{k-1} + g_k`` from ``path_0``."""
    n, d = E.shape[0], E.shape[1]
    for k in range(n):
        for i in range(d):
            x = g[k, i]
            for j in range(d):
                x += E[k, i, j] * path[k, j]
            path[k + 1, i] = x


def step_roots(V, S):  # type: ignore[no-untyped-def]
    """`root` of every matrix."""
    for k in range(V.shape[0]):
        if k and same(V[k], V[k - 1]):
            S[k] = S[k - 1]
        else:
            root(V[k], S[k])


# -- the passes of `loop` and `parallel` --------------------------------------------------------------------------


def _lead(*arrays: np.ndarray) -> int:
    return max(x.shape[0] for x in arrays)


def messages(chain: GaussianChain) -> Message:
    """Fused messages: ``h_k`` is the potential at node k and everything after it; H as ``(S|1, n+1, d, d)``."""
    return guided(chain)[0]


def guided(chain: GaussianChain) -> tuple[Message, Step]:
    """Fused messages and guided steps."""
    return chain.once("guided", lambda: _guided(chain))


def _guided(chain: GaussianChain) -> tuple[Message, Step]:
    compiled(globals(), KERNELS)
    A, b, Q, H, F, c = (array(x) for x in chain.tensors[2:])
    S, n, d, lead = chain.series, chain.n, chain.d, _lead(A, Q, H)
    fused, E, V, logdet = (
        np.empty((lead, n + 1, d, d)),
        np.empty((lead, n, d, d)),
        np.empty((lead, n, d, d)),
        np.empty((lead, n)),
    )
    each(backward_matrices, lead, A, Q, H, fused, E, V, logdet)
    fused_F, fused_c, g = np.empty((S, n + 1, d)), np.empty((S, n + 1)), np.empty((S, n, d))
    each(backward_vectors, S, b, F, c, fused, E, V, logdet, fused_F, fused_c, g)
    h = torch.from_numpy(fused), torch.from_numpy(fused_F), torch.from_numpy(fused_c)
    return h, (torch.from_numpy(E), torch.from_numpy(g), torch.from_numpy(V))


def filter(chain: GaussianChain) -> tuple[Tensor, Tensor, Tensor]:
    """Filtered means, covariances, and the log evidence."""
    compiled(globals(), KERNELS)
    m0, P0, A, b, Q, H, F, c = (array(x) for x in chain.tensors)
    S, nodes, d, lead = chain.series, chain.n + 1, chain.d, _lead(P0, A, Q, H)
    cov, logdet = np.empty((lead, nodes, d, d)), np.empty((lead, nodes))
    each(forward_matrices, lead, P0, A, Q, H, cov, logdet)
    mean, total = np.empty((S, nodes, d)), np.empty((S, 1))
    each(forward_vectors, S, m0, A, b, H, F, c, cov, logdet, mean, total)
    return torch.from_numpy(mean), torch.from_numpy(cov).expand(S, -1, -1, -1), torch.from_numpy(total[:, 0])


def push(m: Tensor, P: Tensor, steps: Step) -> tuple[Tensor, Tensor]:
    """Means and covariances of all nodes from the law at node 0 and the steps ``(S|1, n, ...)``."""
    compiled(globals(), KERNELS)
    E, V = array(steps[0]), array(steps[2])
    start = array(P)
    lead, (n, d) = _lead(start, E), E.shape[1:3]
    cov = np.empty((lead, n + 1, d, d))
    each(push_matrices, lead, start, E, V, cov)
    return follow(m, steps[0], steps[1]), torch.from_numpy(cov)


def follow(x: Tensor, E: Tensor, g: Tensor) -> Tensor:
    """All nodes ``(..., S, n+1, d)`` of ``x_k = E_k x_{k-1} + g_k`` from ``x (..., S, d)`` and ``g (..., S, n, d)``."""
    compiled(globals(), KERNELS)
    *lead, series, n, d = g.shape
    draws = math.prod(lead)
    path = np.empty((draws, series, n + 1, d))
    path[:, :, 0] = x.detach().reshape(draws, series, d).numpy()
    offsets = array(g).reshape(draws, series, n, d)
    maps = array(E)
    for i in range(draws):
        each(push_vectors, series, maps, offsets[i], path[i])
    return torch.from_numpy(path).reshape(*lead, series, n + 1, d)


def roots(chain: GaussianChain, h: Message, steps: Step) -> Tensor:
    """Factors of the covariances of the guided steps."""
    compiled(globals(), KERNELS)
    V = array(steps[2])
    S = np.empty_like(V)
    each(step_roots, len(V), V, S)
    return torch.from_numpy(S)
