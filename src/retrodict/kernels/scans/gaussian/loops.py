"""The loops of `compiled`: each treats one series, on arrays whose leading axis of one is shared in time.

Plain functions on NumPy arrays, compiled by `native.compiled`.  ``dims`` is a tuple as long as the state is large, so
that the compiler knows the length of the inner loops (half the time for a state of four), or empty for large states.
"""

from __future__ import annotations

import math

import numpy as np

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
    "push_draw",
    "step_roots",
)


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


def backward_matrices(P0, A, Q, H, fused, E, V, logdet):  # type: ignore[no-untyped-def]
    """Fused H of every node; E, V and logdet of every guided step.  Step 0 is the prior: no A, and P0 for Q."""
    n, d = E.shape[0] - 1, E.shape[1]
    M, R = np.empty((d, d)), np.empty((d, 2 * d))
    last = H.shape[0] - 1
    for i in range(d):
        for j in range(d):
            fused[n, i, j] = H[last, i, j]
    k = n
    while k >= 0:
        Ak, Qk = A[min(max(k - 1, 0), A.shape[0] - 1)], Q[min(max(k - 1, 0), Q.shape[0] - 1)] if k else P0
        h, e, v = fused[k], E[k], V[k]
        for i in range(d):
            for j in range(d):
                x = 1.0 if i == j else 0.0
                for l in range(d):
                    x += Qk[i, l] * h[l, j]
                M[i, j] = x
                R[i, j] = Ak[i, j] if k else 0.0
                R[i, d + j] = Qk[i, j]
        logdet[k] = eliminate(M, R)
        for i in range(d):
            for j in range(d):
                e[i, j] = R[i, j]
                v[i, j] = 0.5 * (R[i, d + j] + R[j, d + i])
        if k == 0:
            break
        for i in range(d):
            for j in range(d):
                x = 0.0
                for l in range(d):
                    x += h[i, l] * Ak[l, j]
                M[i, j] = x
        g = H[min(k - 1, last)]
        for i in range(d):
            for j in range(i + 1):
                x, y = 0.0, 0.0
                for l in range(d):
                    x += e[l, i] * M[l, j]
                    y += e[l, j] * M[l, i]
                fused[k - 1, i, j] = g[i, j] + 0.5 * (x + y)
                fused[k - 1, j, i] = g[j, i] + 0.5 * (x + y)
        k -= 1
        if k and A.shape[0] == 1 and Q.shape[0] == 1 and last == 0 and settled(fused[k], h):
            for i in range(k):
                fused[i] = fused[k]
                E[i + 1] = e
                V[i + 1] = v
                logdet[i + 1] = logdet[k + 1]
            k = 0


def backward_vectors(dims, m0, b, F, c, H, E, V, logdet, fused_F, fused_c, g, total):  # type: ignore[no-untyped-def]
    """Fused F and c of every node, offsets g of every guided step, and the log evidence in ``total[0]``.

    H is the fused one; indices instead of views, which numba counts references of.
    """
    n, d = E.shape[0] - 1, len(dims) if len(dims) > 0 else E.shape[1]
    u, shift, last = np.empty(d), np.empty(d), b.shape[0] - 1
    fused_c[n] = c[n]
    for i in range(d):
        fused_F[n, i] = F[n, i]
    for k in range(n, -1, -1):
        still = True
        for i in range(d):
            shift[i] = b[min(k - 1, last), i] if k else m0[i]
            still = still and shift[i] == 0.0
            u[i] = fused_F[k, i]
        if not still:
            for i in range(d):
                for j in range(d):
                    u[i] -= H[k, i, j] * shift[j]
        for i in range(d):
            x = shift[i]
            for j in range(d):
                x += V[k, i, j] * u[j]
            g[k, i] = x
        more = fused_c[k] - 0.5 * logdet[k]
        for i in range(d):
            r = fused_F[k, i]
            for j in range(d):
                r -= H[k, i, j] * g[k, j]
            more += 0.5 * ((fused_F[k, i] + r) * g[k, i] - (g[k, i] - shift[i]) * r)
        if k == 0:
            total[0] = more
            break
        fused_c[k - 1] = c[k - 1] + more
        for j in range(d):
            x = F[k - 1, j]
            for i in range(d):
                x += E[k, i, j] * u[i]
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


def forward_vectors(dims, m0, A, b, H, F, c, cov, logdet, mean, total):  # type: ignore[no-untyped-def]
    """Filtered means, where ``mean`` has room for them, and the log evidence in ``total[0]``."""
    nodes, d = F.shape[0], len(dims) if len(dims) > 0 else F.shape[1]
    m, u, now = m0.copy(), np.empty(d), np.empty(d)
    lasts = A.shape[0] - 1, b.shape[0] - 1, H.shape[0] - 1
    log_evidence = 0.0
    for k in range(nodes):
        a, s, h = min(k - 1, lasts[0]), min(k - 1, lasts[1]), min(k, lasts[2])
        if k:
            for i in range(d):
                x = b[s, i]
                for j in range(d):
                    x += A[a, i, j] * now[j]
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
            now[i] = x
        log_evidence += c[k] - 0.5 * logdet[k]
        for i in range(d):
            r = F[k, i]
            for j in range(d):
                r -= H[h, i, j] * now[j]
            log_evidence += 0.5 * ((F[k, i] + r) * now[i] - (now[i] - m[i]) * r)
        if len(mean):
            for i in range(d):
                mean[k, i] = now[i]
    total[0] = log_evidence


def push_matrices(E, V, cov):  # type: ignore[no-untyped-def]
    """Covariances of nodes: ``cov_k = E_k cov_{k-1} E_k' + V_k`` from ``cov_0 = V_0``."""
    n, d = E.shape[0] - 1, E.shape[1]
    lag = np.empty((d, d))
    for i in range(d):
        for j in range(d):
            cov[0, i, j] = V[0, i, j]
    for k in range(1, n + 1):
        e = E[k]
        # E and V that were copied are equal in every bit
        if k > 2 and settled(cov[k - 1], cov[k - 2]) and same(E[k], E[k - 1]) and same(V[k], V[k - 1]):
            for i in range(d):
                for j in range(d):
                    cov[k, i, j] = cov[k - 1, i, j]
            continue
        for i in range(d):
            for j in range(d):
                x = 0.0
                for l in range(d):
                    x += e[i, l] * cov[k - 1, l, j]
                lag[i, j] = x
        for i in range(d):
            for j in range(i + 1):
                x = V[k, i, j]
                for l in range(d):
                    x += lag[i, l] * e[j, l]
                cov[k, i, j] = x
                cov[k, j, i] = x


def push_vectors(dims, E, g, path):  # type: ignore[no-untyped-def]
    """``path_k = E_k path_{k-1} + g_k`` from ``path_0 = g_0``."""
    n, d = E.shape[0] - 1, len(dims) if len(dims) > 0 else E.shape[1]
    for i in range(d):
        path[0, i] = g[0, i]
    for k in range(1, n + 1):
        for i in range(d):
            x = g[k, i]
            for j in range(d):
                x += E[k, i, j] * path[k - 1, j]
            path[k, i] = x


def push_draw(dims, E, g, S, path):  # type: ignore[no-untyped-def]
    """`push_vectors` with ``g_k + S_k z_k``: path holds the z and is written over; S is lower-triangular."""
    n, d = E.shape[0] - 1, len(dims) if len(dims) > 0 else E.shape[1]
    for k in range(n + 1):
        for i in range(d - 1, -1, -1):
            x = g[k, i]
            for j in range(i + 1):
                x += S[k, i, j] * path[k, j]
            path[k, i] = x
        if k:
            for i in range(d):
                for j in range(d):
                    path[k, i] += E[k, i, j] * path[k - 1, j]


def step_roots(V, S):  # type: ignore[no-untyped-def]
    """`root` of every matrix."""
    for k in range(V.shape[0]):
        if k and same(V[k], V[k - 1]):
            S[k] = S[k - 1]
        else:
            root(V[k], S[k])
