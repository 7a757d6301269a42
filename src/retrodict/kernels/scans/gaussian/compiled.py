"""The passes of `loop` as compiled loops: small matrices by hand, one series a call, series on threads.

Covariances do not depend on the data, so each pass is split in two: a matrix pass, done once if the series share
their matrices, and a vector pass a series (`loops`).  With ``V = (I + QH)^-1 Q``, ``E = (I + QH)^-1 A`` and
``u = F - H b``:

    guided mean  E x + b + V u        pulled  H' = E'HA,  F' = E'u,
    pulled constant  c - logdet(I + QH)/2 + F.y - y.Hy/2 - (y - b).(F - H y)/2  at  y = b + V u  (see `algebra`)

The prior is a step from nowhere, step 0, with E = 0: absorbing it gives the law of node 0 and the log evidence.
Where A, Q and H are the same at every step the matrices settle: from the step on at which they repeat to rounding the
matrix passes copy.  Takes singular P0, Q and H, as everything here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from retrodict.kernels.scans.gaussian import loops
from retrodict.kernels.scans.gaussian.algebra import Message
from retrodict.kernels.scans.gaussian.chain import GaussianChain
from retrodict.kernels.scans.gaussian.passes import derivatives
from retrodict.kernels.scans.native import array, compiled, each

_UNROLLED = 4  # states up to this size get loops of their own


class Backward(NamedTuple):
    """What one backward pass leaves: fused messages of the nodes, guided steps (0: the prior), log evidence.

    H, E, V have leading axes ``(S|1, n+1)``; F, c, g ``(S, n+1)``.
    """

    H: np.ndarray
    F: np.ndarray
    c: np.ndarray
    E: np.ndarray
    g: np.ndarray
    V: np.ndarray
    log_evidence: np.ndarray


def _ready(d: int) -> list[tuple[int, ...]]:
    """Compile; the ``dims`` of states of this size, in a list of one."""
    compiled(loops.__dict__, loops.KERNELS)
    return [(0,) * d if d <= _UNROLLED else ()]


def _lead(*arrays: np.ndarray) -> int:
    return max(x.shape[0] for x in arrays)


def _backward(chain: GaussianChain) -> Backward:
    return chain.once("backward", lambda: _sweep(chain))


def _sweep(chain: GaussianChain) -> Backward:
    dims = _ready(chain.d)
    m0, P0, A, b, Q, H, F, c = (array(x) for x in chain.tensors)
    S, nodes, d, lead = chain.series, chain.n + 1, chain.d, _lead(P0, A, Q, H)
    fused, E, V = np.empty((lead, nodes, d, d)), np.empty((lead, nodes, d, d)), np.empty((lead, nodes, d, d))
    logdet = np.empty((lead, nodes))
    each(loops.backward_matrices, lead, P0, A, Q, H, fused, E, V, logdet)
    fused_F, fused_c, g, total = (
        np.empty((S, nodes, d)),
        np.empty((S, nodes)),
        np.empty((S, nodes, d)),
        np.empty((S, 1)),
    )
    each(loops.backward_vectors, S, dims, m0, b, F, c, fused, E, V, logdet, fused_F, fused_c, g, total)
    return Backward(fused, fused_F, fused_c, E, g, V, total[:, 0])


def messages(chain: GaussianChain) -> Message:
    """Fused messages: ``h_k`` is the potential at node k and everything after it; H as ``(S|1, n+1, d, d)``."""
    H, F, c = (torch.from_numpy(part.copy()) for part in _backward(chain)[:3])
    return H, F, c


def filter(chain: GaussianChain) -> tuple[Tensor, Tensor, Tensor]:
    """Filtered means, covariances, and the log evidence."""
    mean, cov, log_evidence = _forward(chain, True)
    return torch.from_numpy(mean), torch.from_numpy(cov).expand(chain.series, -1, -1, -1), log_evidence


def evidence(chain: GaussianChain) -> Tensor:
    """The log evidence alone."""
    return _forward(chain, False)[2]


def _forward(chain: GaussianChain, means: bool) -> tuple[np.ndarray, np.ndarray, Tensor]:
    dims = _ready(chain.d)
    m0, P0, A, b, Q, H, F, c = (array(x) for x in chain.tensors)
    S, nodes, d, lead = chain.series, chain.n + 1, chain.d, _lead(P0, A, Q, H)
    cov, logdet = np.empty((lead, nodes, d, d)), np.empty((lead, nodes))
    each(loops.forward_matrices, lead, P0, A, Q, H, cov, logdet)
    mean, total = np.empty((S, nodes if means else 0, d)), np.empty((S, 1))
    each(loops.forward_vectors, S, dims, m0, A, b, H, F, c, cov, logdet, mean, total)
    return mean, cov, torch.from_numpy(total[:, 0])


def means(chain: GaussianChain) -> tuple[Tensor, Tensor]:
    """Means and log evidence, without the covariances that the data do not enter."""
    found = _backward(chain)
    path = np.empty_like(found.g)
    each(loops.push_vectors, chain.series, _ready(chain.d), found.E, found.g, path)
    return torch.from_numpy(path), torch.from_numpy(found.log_evidence.copy())


def smooth(chain: GaussianChain, cross: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Means, covariances, log evidence, and the covariances of neighbours if ``cross``."""
    mean, cov, log_evidence, neighbours = _smooth(chain, cross)
    full = [None if x is None else x.expand(chain.series, -1, -1, -1) for x in (cov, neighbours)]
    return mean, full[0], log_evidence, full[1]  # type: ignore[return-value]


def _smooth(chain: GaussianChain, cross: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    mean, log_evidence = means(chain)
    found = _backward(chain)
    covs = np.empty_like(found.V)
    each(loops.push_matrices, len(covs), found.E, found.V, covs)
    cov = torch.from_numpy(covs)
    return mean, cov, log_evidence, torch.from_numpy(found.E[:, 1:]) @ cov[:, :-1] if cross else None


def draw(chain: GaussianChain, z: Tensor) -> Tensor:
    """Posterior paths ``(draws, S, n+1, d)`` from standard normals of the same shape."""
    found, dims = _backward(chain), _ready(chain.d)
    roots = np.empty_like(found.V)
    each(loops.step_roots, len(roots), found.V, roots)
    path = z.detach().numpy().copy()
    each(loops.push_draw, len(path) * chain.series, dims, found.E, found.g, roots, path.reshape(-1, *path.shape[2:]))
    return torch.from_numpy(path)


def score(chain: GaussianChain) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Log evidence and its derivatives by ``(m0, P0, A, b, Q, H, F, c)``, all with leading axis S."""
    mean, cov, log_evidence, cross = _smooth(chain, True)
    assert cross is not None
    found = _backward(chain)
    return log_evidence, derivatives(chain, torch.from_numpy(found.H), torch.from_numpy(found.F), mean, cov, cross)
