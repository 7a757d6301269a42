"""Transitions with Gaussian steps, as guiding sees them: means, roots of covariances and their linearisation.

States are ``(series, particles, d)``.  Node k steps to node k + 1 by ``x' ~ N(m_k(x), S_k S_k')``, with S ``(series,
particles, d, r)`` and axes of size 1 where it depends on neither.  `EulerGrid` makes the steps of a diffusion,
`MarkovSteps` those of a discrete-time model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.kernels.euler import dense, dispersion, jacobian, mv
from retrodict.kernels.kernel import Kernel
from retrodict.kernels.linear_gaussian import LinearGaussian
from retrodict.kernels.scans.gaussian.algebra import root

_RIDGE = 1e-12  # of the variance, added to it before a regression


class Steps:
    """A sequence of non-linear Gaussian transitions between the nodes 0..n.

    Attributes:
        n: number of steps; d: dimension of the state; r: of the innovations of one step; series: S.
        shared_root: ``(n, S|1, 1, d, r)`` where the covariances do not depend on the state, else None.
    """

    n: int
    d: int
    r: int
    series: int
    shared_root: Tensor | None

    def mean(self, k: int, x: Tensor) -> Tensor:
        """m_k(x), ``(S, N, d)``."""
        raise NotImplementedError

    def split_mean(self, k: int, x: Tensor) -> tuple[float, float, Tensor]:
        """``(a, b, f)`` with ``m_k(x) = a x + b f``, for steps whose length all series share."""
        return 0.0, 1.0, self.mean(k, x)

    def root(self, k: int, x: Tensor) -> Tensor:
        """S_k(x), ``(S|1, N|1, d, r)``."""
        raise NotImplementedError

    def along(self, path: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means, their Jacobians and covariances at the nodes of a path ``(S, n + 1, d)``; each ``(S, n, ...)``."""
        if not self.n:
            return self._none(path)
        means, slopes, spreads = [], [], []
        for k in range(self.n):
            x = path[:, k : k + 1]
            m, J = jacobian(lambda x, k=k: self.mean(k, x), x)
            S = self.root(k, x).expand(x.shape[0], 1, -1, -1)
            means.append(m)
            slopes.append(J)
            spreads.append(S @ S.mT)
        return torch.cat(means, 1), torch.cat(slopes, 1), torch.cat(spreads, 1)

    def affine(self, path: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The linearised steps ``(A, b, Q)`` along a path: the extended auxiliary."""
        m, J, Q = self.along(path)
        return J, m - (J @ path[:, :-1].unsqueeze(-1)).squeeze(-1), Q

    def regressed(self, paths: Tensor, log_w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Steps ``(A, b, Q)`` regressed on weighted paths ``(n+1, S, P, d)``, ``(S, P)``: statistical linearisation.

        ``A = I + Cov(m - x, x) Cov(x)^-1`` and ``b = E m - A E x`` make the least squared error of the mean where the
        paths are (Garcia-Fernandez et al. 2015), and Q is the mean covariance there; no derivative is taken.
        """
        if not self.n:
            return self._none(paths[0])
        w = torch.softmax(log_w, -1)
        before = paths[:-1]
        means = torch.stack([self.mean(k, x) for k, x in enumerate(before)])
        centre, mean = (torch.einsum("sp,kspd->ksd", w, v) for v in (before, means))
        x = before - centre.unsqueeze(2)
        f = means - before - (mean - centre).unsqueeze(2)
        weighted = x * w[..., None]
        spread = weighted.mT @ x
        scale = spread.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        floor = (_RIDGE * scale + torch.finfo(x.dtype).tiny ** 0.5) * torch.eye(self.d, dtype=x.dtype, device=x.device)
        slope = torch.linalg.solve(spread + floor, weighted.mT @ f).mT
        A = torch.eye(self.d, dtype=x.dtype, device=x.device) + slope
        b = mean - (A @ centre.unsqueeze(-1)).squeeze(-1)
        if self.shared_root is not None:
            S = self.shared_root[:, :, 0].expand(-1, paths.shape[1], -1, -1)
            Q = S @ S.mT
        else:
            Q = torch.stack([self._mean_covariance(k, x, w) for k, x in enumerate(before)])
        return A.movedim(0, 1), b.movedim(0, 1), Q.movedim(0, 1)

    def _none(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The coefficients of no steps."""
        none = like.new_zeros(self.series, 0, self.d)
        return torch.diag_embed(none), none, torch.diag_embed(none)

    def _mean_covariance(self, k: int, x: Tensor, w: Tensor) -> Tensor:
        S = self.root(k, x)
        return torch.einsum("sp,spde->sde", w.expand(x.shape[:2]), (S @ S.mT).expand(*x.shape, self.d))


class EulerGrid(Steps):
    """Euler-Maruyama steps of ``dX = drift dt + diffusion dW`` on a grid.

    Args:
        drift, diffusion: functions of ``(x, t)``; the diffusion may be a number or a tensor.
        t: ``(S|1, n + 1)`` times of the nodes; steps of no length (padding) leave the state where it is.
    """

    def __init__(self, drift: Callable[[Tensor, Any], Tensor], diffusion: Any, t: Tensor, d: int, series: int) -> None:
        self.drift, self.diffusion, self.t, self.d, self.series = drift, diffusion, t, d, series
        self.n = t.shape[1] - 1
        self.dt = t.diff(dim=1)
        if t.shape[0] == 1:  # one grid for every series: times are numbers, and a step costs as little as it can
            self._times: tuple[Tensor, ...] = t[0].unbind()
            self._lengths: list[Any] = self.dt[0].tolist()
            self._scales: list[Any] = self.dt[0].sqrt().tolist()
        else:
            self._times = t[:, :, None, None].unbind(1)
            self._lengths = list(self.dt[:, :, None, None].unbind(1))
            self._scales = list(self.dt.sqrt()[:, :, None, None, None].unbind(1))
        self.shared_root = self._shared()
        x = torch.zeros(series, 2, d, dtype=t.dtype)
        found = drift(x, self._times[0]).shape
        if any(a not in (1, b) for a, b in zip(found[::-1], x.shape[::-1])) or len(found) > x.ndim:
            raise InputError(f"drift(x, t) returned {tuple(found)} at states {tuple(x.shape)}; one number a coordinate")
        probe = self._dispersion(0, x)
        self.r = probe.shape[-1]

    def mean(self, k: int, x: Tensor) -> Tensor:
        f, dt = self.drift(x, self._times[k]), self._lengths[k]
        return torch.add(x, f, alpha=dt) if isinstance(dt, float) else x + f * dt

    def split_mean(self, k: int, x: Tensor) -> tuple[float, float, Tensor]:
        return 1.0, self._lengths[k], self.drift(x, self._times[k])

    def root(self, k: int, x: Tensor) -> Tensor:
        if self.shared_root is not None:
            return self.shared_root[k]
        return self._dispersion(k, x) * self._scales[k]

    def along(self, path: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All nodes in one call where the drift takes times that broadcast, node by node where it does not."""
        x, t = path[:, :-1], self.t[:, :-1, None]
        try:
            f, J = jacobian(lambda x: self.drift(x, t), x)
            g = dispersion(self.diffusion(x, t) if callable(self.diffusion) else self.diffusion, x)
            g = g.expand(x.shape[0], self.n, -1, -1)
            k = self.n // 2  # a function that mixes the axes of t and x gives itself away at one node
            m, J_k, Q_k = (value[:, 0] for value in self._node(path, k))
            dt = self.dt[..., None]
            means, Q = x + f * dt, g @ g.mT * dt[..., None]
            slopes = torch.eye(self.d, dtype=x.dtype) + J * dt[..., None]
            if all(torch.allclose(a[:, k], b) for a, b in ((means, m), (slopes, J_k), (Q, Q_k))):
                return means, slopes, Q
        except (RuntimeError, ValueError, IndexError, TypeError):
            pass
        return super().along(path)

    def _node(self, path: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        x = path[:, k : k + 1]
        m, J = jacobian(lambda x: self.mean(k, x), x)
        S = self.root(k, x).expand(x.shape[0], 1, -1, -1)
        return m, J, S @ S.mT

    def _dispersion(self, k: int, x: Tensor) -> Tensor:
        g = self.diffusion(x, self._times[k]) if callable(self.diffusion) else self.diffusion
        S = dispersion(g, x)
        if S.shape[0] not in (1, x.shape[0]) or S.shape[1] not in (1, x.shape[1]):
            raise InputError(f"diffusion(x, t) returned {tuple(S.shape)} at states {tuple(x.shape)}")
        return S

    def _shared(self) -> Tensor | None:
        """Roots of all steps where the dispersion returns no axis of particles: it cannot depend on the state."""
        x = torch.zeros(self.series, 2, self.d, dtype=self.t.dtype)
        if not callable(self.diffusion):
            return dispersion(self.diffusion, x) * self.dt.sqrt().mT[:, :, None, None, None]
        if self._dispersion(0, x).shape[1] != 1:
            return None
        rows = [self._dispersion(k, x) * self._scales[k] for k in range(self.n)]
        return torch.stack(torch.broadcast_tensors(*rows))


class LinearSteps(Steps):
    """``x' ~ N(A_k x + b_k, Q_k)`` from arrays ``(S|1, n|1, ...)``: linear chains seen through other laws."""

    def __init__(self, arrays: tuple[Tensor, Tensor, Tensor], n: int, series: int) -> None:
        A, b, Q = arrays
        d = A.shape[-1]
        self.n, self.d, self.r, self.series = n, d, d, series
        self.A, self.b, self.Q = A.expand(series, n, d, d), b.expand(series, n, d), Q.expand(series, n, d, d)
        self.shared_root = root(Q).expand(series, n, d, d).movedim(1, 0).unsqueeze(2)

    def mean(self, k: int, x: Tensor) -> Tensor:
        return mv(self.A[:, k, None], x) + self.b[:, k, None]

    def root(self, k: int, x: Tensor) -> Tensor:
        assert self.shared_root is not None
        return self.shared_root[k]

    def along(self, path: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (self.A @ path[:, :-1].unsqueeze(-1)).squeeze(-1) + self.b, self.A, self.Q


class KernelSteps(Steps):
    """Steps given as kernels: non-linear Gaussian or linear-Gaussian ones, for groups of series.

    Args:
        parts: for each step, pairs of an index of series and the kernel of their flattened states.
        d: dimension of the state; series: S.
    """

    def __init__(self, parts: list[list[tuple[Any, Kernel]]], d: int, series: int) -> None:
        self.parts, self.d, self.series, self.n = parts, d, series, len(parts)
        kernels = [kernel for step in parts for _, kernel in step]
        self.linear = all(isinstance(kernel, LinearGaussian) for kernel in kernels)
        probe = torch.zeros(series, 2, d, dtype=torch.float64)
        self.r = self._roots(0, probe).shape[-1] if self.n else d
        # of linear kernels one root of each step serves all particles
        self.shared_root = (
            torch.stack([self._roots(k, probe) for k in range(self.n)]) if self.linear and self.n else None
        )

    def mean(self, k: int, x: Tensor) -> Tensor:
        return self._each(k, x, lambda kernel, flat: kernel.mean(flat))  # type: ignore[attr-defined]

    def root(self, k: int, x: Tensor) -> Tensor:
        return self._roots(k, x) if self.shared_root is None else self.shared_root[k]

    def along(self, path: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.linear:
            return super().along(path)
        eye = torch.eye(self.d, dtype=path.dtype).expand(self.series, self.d, self.d)
        offset = torch.stack([self.mean(k, torch.zeros_like(eye[:, :1]))[:, 0] for k in range(self.n)], 1)
        A = torch.stack([self.mean(k, eye).mT - offset[:, k, :, None] for k in range(self.n)], 1)
        assert self.shared_root is not None
        S = self.shared_root[:, :, 0].movedim(0, 1).expand(self.series, -1, -1, -1)
        return (A @ path[:, :-1].unsqueeze(-1)).squeeze(-1) + offset, A, S @ S.mT

    def _each(self, k: int, x: Tensor, f: Callable[[Any, Tensor], Tensor]) -> Tensor:
        parts = self.parts[k]
        if len(parts) == 1:
            return f(parts[0][1], x.flatten(0, 1)).unflatten(0, x.shape[:2])
        out = torch.empty_like(x)
        for index, kernel in parts:
            own = x[index]
            out = out.index_put((index,), f(kernel, own.flatten(0, 1)).unflatten(0, own.shape[:2]))
        return out

    def _roots(self, k: int, x: Tensor) -> Tensor:
        rows: list[Tensor | None] = [None] * self.series
        for index, kernel in self.parts[k]:
            numbers = range(self.series) if isinstance(index, slice) else index.tolist()
            own = x[index]
            if isinstance(kernel, LinearGaussian):
                S = dense(kernel.factor().to(x.dtype), self.d)
                S = S if S.ndim == 3 else S.unsqueeze(0)
                S = S.unsqueeze(1).expand(len(numbers), 1, -1, -1) if S.shape[0] == 1 else S.unsqueeze(1)
            else:
                S = kernel.root_at(own.flatten(0, 1))  # type: ignore[attr-defined]
                S = S.unsqueeze(0) if S.shape[0] == 1 else S.unflatten(0, own.shape[:2])
                S = S.expand(len(numbers), *S.shape[1:])
            for s, row in zip(numbers, S):
                rows[s] = row
        return torch.stack([row for row in rows if row is not None])
