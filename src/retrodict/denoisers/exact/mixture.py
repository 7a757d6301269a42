"""Gaussian mixtures under any Gaussian path: denoiser, density, posterior, all in closed form.

With ``x0 ~ sum_k w_k N(m_k, C_k)`` and ``x_t = alpha x0 + beta x1 + sigma z`` everything given x_t is again a
mixture: component k has evidence ``N(x_t; alpha m_k + beta m1_k, alpha^2 C_k + beta^2 C1_k + sigma^2)``, and the
ends given the component are Gaussian.  Covariances are kept by their eigendecomposition when there is one end, so
that a whole batch of times costs no factorisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.lin import Lin
from retrodict.core.noise import KeyedNoise, Noise
from retrodict.denoisers.denoiser import Denoiser, batch_time
from retrodict.kernels import Belief
from retrodict.processes import GaussianPath, Process


class GaussianMixture:
    """A mixture of Gaussians in d dimensions.

    Args:
        weights: ``(K,)``, positive; normalised here.
        means: ``(K, d)``.
        covariances: ``(K, d, d)`` matrices, ``(K, d)`` variances, or ``(K,)`` isotropic variances.
        labels: a class for each component, ``(K,)`` integers from 0; the denoiser then takes ``label=``.
    """

    def __init__(self, weights: Any, means: Any, covariances: Any, labels: Any = None) -> None:
        as_double = lambda v: torch.as_tensor(v, dtype=torch.float64)  # noqa: E731
        self.weights, self.means = as_double(weights), as_double(means)
        if self.means.ndim == 1:
            self.means = self.means.unsqueeze(-1)
        require(self.means.ndim == 2, f"means have shape (K, d), got {tuple(self.means.shape)}")
        K, d = self.means.shape
        require(self.weights.shape == (K,), f"{K} means need as many weights, got shape {tuple(self.weights.shape)}")
        require(bool((self.weights > 0).all()), "weights of a mixture are positive")
        self.weights = self.weights / self.weights.sum()
        self._decompose(as_double(covariances), K, d)
        self.labels = None if labels is None else torch.as_tensor(labels, dtype=torch.long)
        if self.labels is not None:
            require(self.labels.shape == (K,), f"{K} components need as many labels, got {tuple(self.labels.shape)}")

    def _decompose(self, cov: Tensor, K: int, d: int) -> None:
        """Eigenvalues ``(K, d)`` and eigenvectors ``(K, d, d)``, None where the axes are the coordinates."""
        self._vectors: Tensor | None = None
        if cov.shape == (K, d, d):
            values, self._vectors = torch.linalg.eigh((cov + cov.mT) / 2)
        elif cov.shape == (K, d):
            values = cov
        elif cov.shape == (K,):
            values = cov[:, None].expand(K, d)
        else:
            raise InputError(f"covariances have shape ({K}, {d}, {d}), ({K}, {d}) or ({K},), got {tuple(cov.shape)}")
        if float(values.min()) < -1e-10 * float(values.abs().max()):
            raise InputError(f"covariances are positive semi-definite; smallest eigenvalue {float(values.min()):.3g}")
        self._values = values.clamp_min(0)

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.means.shape[1]

    @property
    def covariances(self) -> Tensor:
        """Covariance matrices ``(K, d, d)``."""
        if self._vectors is None:
            return torch.diag_embed(self._values)
        return (self._vectors * self._values.unsqueeze(-2)) @ self._vectors.mT

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture ``(d,)``."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """Covariance of the mixture ``(d, d)``."""
        centred = self.means - self.mean
        return torch.einsum("k,kij->ij", self.weights, self.covariances + centred[:, :, None] * centred[:, None, :])

    def denoiser(self, process: Process, x1: GaussianMixture | None = None) -> MixtureDenoiser:
        """The exact denoiser of ``process``; on a path with two ends ``x1`` is the independent law of the other."""
        return MixtureDenoiser(self, process, x1)

    def component_log_prob(self, x: Tensor) -> Tensor:
        """log w_k + log N(x; m_k, C_k), ``(batch, K)``."""
        rotated = self._rotate(x.double().unsqueeze(1) - self.means)
        quadratic = (rotated**2 / self._values).sum(-1)
        return self.weights.log() - 0.5 * (quadratic + self._values.log().sum(-1) + self.dim * math.log(2 * math.pi))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats, ``x (batch, d) -> (batch,)``."""
        return torch.logsumexp(self.component_log_prob(x), -1)

    def sample(self, n: int, seed: int = 0, return_components: bool = False) -> Any:
        """n draws ``(n, d)`` in float64 (and their components)."""
        noise = KeyedNoise(seed, n, dtype=torch.float64)
        k = noise.categorical(self.weights.log().expand(n, -1))
        z = noise.normal((self.dim,)) * self._values[k].sqrt()
        x = self.means[k] + (z if self._vectors is None else (self._vectors[k] * z.unsqueeze(1)).sum(-1))
        return (x, k) if return_components else x

    def marginal(self, process: GaussianPath, t: float) -> GaussianMixture:
        """The law of x_t on a path with one end."""
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        eye = torch.eye(self.dim, dtype=torch.float64)
        cov = (
            self._values * alpha**2 + sigma**2
            if self._vectors is None
            else self.covariances * alpha**2 + sigma**2 * eye
        )
        return GaussianMixture(self.weights, alpha * self.means, cov, self.labels)

    def posterior(self, A: Any, y: Any, noise: float) -> GaussianMixture:
        """The law of x given ``y = A x + N(0, noise^2)``, again a mixture; A ``(m, d)``, y ``(m,)``."""
        A, y = torch.as_tensor(A, dtype=torch.float64), torch.as_tensor(y, dtype=torch.float64)
        require(A.ndim == 2 and A.shape[1] == self.dim, f"A has shape (m, {self.dim}), got {tuple(A.shape)}")
        require(y.shape == A.shape[:1], f"y has shape ({A.shape[0]},), got {tuple(y.shape)}")
        C = self.covariances
        S = A @ C @ A.mT + noise**2 * torch.eye(len(y), dtype=torch.float64)
        gain = C @ A.mT @ torch.linalg.inv(S)
        residual = y - self.means @ A.mT
        means = self.means + (gain @ residual.unsqueeze(-1)).squeeze(-1)
        evidence = -0.5 * ((residual * torch.linalg.solve(S, residual)).sum(-1) + torch.linalg.slogdet(S).logabsdet)
        weights = torch.softmax(self.weights.log() + evidence, 0).clamp_min(1e-300)
        return GaussianMixture(weights, means, C - gain @ A @ C, self.labels)

    def _rotate(self, x: Tensor) -> Tensor:
        """Into each component's eigenbasis: ``(batch, K, d)``.  Sums, not matrix products: those would make the
        last bit of a sample depend on the size of its batch."""
        if self._vectors is None:
            return x
        return (self._vectors.to(x).mT * x.unsqueeze(-2)).sum(-1)

    def _unrotate(self, x: Tensor) -> Tensor:
        if self._vectors is None:
            return x
        return (self._vectors.to(x) * x.unsqueeze(-2)).sum(-1)


class MixtureDenoiser(Denoiser):
    """The exact denoiser of a Gaussian mixture; made by `GaussianMixture.denoiser`."""

    def __init__(self, law: GaussianMixture, process: Process, other: GaussianMixture | None = None) -> None:
        if not isinstance(process, GaussianPath) or not process.scalar:
            raise InputError(f"a mixture's denoiser needs a scalar Gaussian path, got {type(process).__name__}")
        if (len(process.ends) == 2) != (other is not None):
            raise InputError("pass x1, the law of the other end, exactly for a path with two ends")
        classes = 0 if law.labels is None else int(law.labels.max()) + 1
        super().__init__(process, (law.dim,), {"label": classes} if classes else {})
        self.law = law if other is None else _pairs(law, other)
        self.register_buffer("_anchor", torch.zeros((), dtype=torch.float64), persistent=False)

    def belief(  # pyright: ignore[reportIncompatibleMethodOverride]: a condition that it lacks is an error
        self, x: Tensor, t: float | Tensor, label: Tensor | int | None = None
    ) -> Belief:
        y = x.double().flatten(1)
        log_r, D, scale = self._posterior(y, t, label)
        r = torch.softmax(log_r, -1)
        mean = (r.reshape(r.shape + (1,) * (D.ndim - 2)) * D).sum(1)
        shape = lambda v: v.reshape(x.shape).to(x.dtype)  # noqa: E731
        if isinstance(self.law, _PairLaw):
            return Belief(shape(mean[:, 0]), x1=shape(mean[:, 1]))
        draw = lambda noise: shape(self._draw(log_r, D, scale, noise))  # noqa: E731
        return Belief(shape(mean), cov=lambda: Lin.dense(self._covariance(r, D, mean, scale)), draw=draw)

    def _posterior(self, y: Tensor, t: float | Tensor, label: Tensor | int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Component log evidences ``(B, K)``, component means, and eigenvalues of component covariances."""
        path: GaussianPath = self.process  # type: ignore[assignment]
        t = batch_time(t, y)
        alpha, sigma = path.alpha(t)[:, None, None], path.sigma(t)[:, None, None]
        if isinstance(self.law, _PairLaw):
            return self.law.posterior(y, alpha, path.beta(t)[:, None, None], sigma)
        law = self.law
        values = law._values.to(y)
        variance = (alpha**2 * values + sigma**2).clamp_min(1e-300)
        residual = law._rotate(y.unsqueeze(1) - alpha * law.means.to(y))
        log_r = law.weights.to(y).log() - 0.5 * ((residual**2 / variance).sum(-1) + variance.log().sum(-1))
        D = law.means.to(y) + law._unrotate(alpha * values / variance * residual)
        return self._restrict(log_r, label), D, values * sigma**2 / variance

    def _restrict(self, log_r: Tensor, label: Tensor | int | None) -> Tensor:
        """Keep the components of the wanted class; the null label keeps all."""
        if label is None or self.law.labels is None:
            return log_r
        labels, null = self.law.labels.to(log_r.device), self.conditions["label"]
        label = torch.as_tensor(label, device=log_r.device).expand(log_r.shape[0])
        if bool(((label < 0) | (label > null)).any()):
            raise InputError(
                f"labels are 0..{null - 1}, or {null} for none; got {int(label.min())}..{int(label.max())}"
            )
        allowed = (labels[None, :] == label[:, None]) | (label[:, None] == null)
        return log_r.masked_fill(~allowed, -torch.inf)

    def _draw(self, log_r: Tensor, D: Tensor, scale: Tensor, noise: Noise) -> Tensor:
        k = noise.categorical(log_r)
        rows = torch.arange(len(k), device=k.device)
        z = noise.normal((self.law.dim,)).to(D) * scale.expand_as(D)[rows, k].sqrt()
        if self.law._vectors is not None:
            z = (self.law._vectors.to(D)[k] * z.unsqueeze(1)).sum(-1)
        return D[rows, k] + z

    def _covariance(self, r: Tensor, D: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        within = scale.expand_as(D)
        if self.law._vectors is None:
            inside = torch.diag_embed((r.unsqueeze(-1) * within).sum(1))
        else:
            V = self.law._vectors.to(D)
            inside = torch.einsum("bk,kid,bkd,kjd->bij", r, V, within, V)
        centred = D - mean.unsqueeze(1)
        return inside + torch.einsum("bk,bki,bkj->bij", r, centred, centred)


class _PairLaw:
    """Independent pairs of components of two mixtures, for paths with two ends."""

    def __init__(self, a: GaussianMixture, b: GaussianMixture) -> None:
        i, j = (
            index.flatten() for index in torch.meshgrid(*(torch.arange(len(m.weights)) for m in (a, b)), indexing="ij")
        )
        self.log_w = a.weights.log()[i] + b.weights.log()[j]
        self.m0, self.m1, self.C0, self.C1 = a.means[i], b.means[j], a.covariances[i], b.covariances[j]
        self.labels, self.dim = None if a.labels is None else a.labels[i], a.dim

    def posterior(self, y: Tensor, alpha: Tensor, beta: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log evidences ``(B, K)``, both ends' component means ``(B, K, 2, d)``."""
        m0, m1 = self.m0.to(y), self.m1.to(y)
        C0, C1 = self.C0.to(y), self.C1.to(y)
        a, b, s = (c.unsqueeze(-1) for c in (alpha, beta, sigma))
        total = a**2 * C0 + b**2 * C1 + s**2 * torch.eye(self.dim, dtype=y.dtype, device=y.device)
        residual = y.unsqueeze(1) - alpha * m0 - beta * m1
        solved = torch.linalg.solve(total, residual)
        log_r = self.log_w.to(y) - 0.5 * ((residual * solved).sum(-1) + torch.linalg.slogdet(total).logabsdet)
        ends = [m + c * (C @ solved.unsqueeze(-1)).squeeze(-1) for m, c, C in ((m0, alpha, C0), (m1, beta, C1))]
        return log_r, torch.stack(ends, 2), total


def _pairs(a: GaussianMixture, b: GaussianMixture) -> Any:
    if a.dim != b.dim:
        raise InputError(f"both ends have one dimension; got {a.dim} and {b.dim}")
    return _PairLaw(a, b)


def mixture_1d(parts: Sequence[tuple[float, float, float]], labels: Any = None) -> GaussianMixture:
    """A one-dimensional mixture from ``(weight, mean, variance)`` triples."""
    w, m, v = (torch.tensor(column, dtype=torch.float64) for column in zip(*parts))
    return GaussianMixture(w, m[:, None], v, labels)
