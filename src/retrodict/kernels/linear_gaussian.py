"""The linear-Gaussian kernel ``y = A x + b + N(0, Q)``: Kalman filtering and diffusion noising are one class.

Pulling a quadratic message, with ``M = (I + H Q)^-1`` and ``u = F - H b``:

    H' = A' M H A        F' = A' M u        c' = c - logdet(I + H Q)/2 + F.b - b.Hb/2 + u.Q M u/2

and the guided kernel is again linear-Gaussian, with ``G = (I + Q H)^-1``: ``y ~ N(G (A x + b + Q F), G Q)``.
Neither Q nor H is ever inverted: both may be singular.  Draws under a message factor a matrix that is never
singular: with ``Q = S S'``, ``G Q = S (I + S'HS)^-1 S'``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.core.noise import Noise
from retrodict.kernels.checks import Space, as_covariance, as_map
from retrodict.kernels.kernel import Kernel
from retrodict.kernels.laws import Gaussian, Quadratic, _eye_like, event_size, event_sum
from retrodict.kernels.roots import covariance_root


@dataclass(frozen=True, init=False)
class LinearGaussian(Kernel):
    """``y ~ N(A x + b, Q)``.

    Args:
        A, Q: numbers, matrices ``(..., d, d)`` or `Lin` maps; Q is a covariance, perhaps singular or zero.  What
            is not yet a `Lin` is checked (Q positive semi-definite, sizes that fit).
        b: offset ``(batch, *event)``, ``(d,)`` or a number.
        root: S with ``Q = S S'``, or a function that makes it when a draw needs it, where it is known already.
    """

    A: Lin
    b: Tensor | float
    Q: Lin
    root: Lin | Callable[[], Lin] | None = field(default=None, repr=False, compare=False)

    def __init__(
        self,
        A: Lin | Tensor | float,
        b: Tensor | float,
        Q: Lin | Tensor | float,
        root: Lin | Callable[[], Lin] | None = None,
    ) -> None:
        A, Q = as_map(A, "A"), as_covariance(Q, "Q")
        if A.kind == "dense":
            self._check_sizes(A.value, b, Q)
        for name, value in (("A", A), ("b", b), ("Q", Q), ("root", root)):
            object.__setattr__(self, name, value)

    @staticmethod
    def _check_sizes(A: Tensor, b: Tensor | float, Q: Lin) -> None:
        rows, columns = A.shape[-2:]
        if Q.kind == "dense" and Q.value.shape[-1] != rows:
            raise InputError(
                f"LinearGaussian: A is {rows} x {columns}, so that y has {rows} coordinates; its noise"
                f" covariance Q is {Q.value.shape[-2]} x {Q.value.shape[-1]}"
            )
        if isinstance(b, Tensor) and b.ndim and b.shape[-1] not in (1, rows):
            raise InputError(f"LinearGaussian: y has {rows} coordinates and the offset b {b.shape[-1]}")

    @property
    def domain(self) -> Space | None:
        return Space("real", self.A.value.shape[-1]) if self.A.kind == "dense" else self.codomain

    @property
    def codomain(self) -> Space | None:
        if self.A.kind == "dense":
            return Space("real", self.A.value.shape[-2])
        return Space("real", self.Q.value.shape[-1]) if self.Q.kind == "dense" else None

    def after(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], self.A.value.shape[-2]) if self.A.kind == "dense" else shape

    def mean(self, x: Tensor) -> Tensor:
        """``A x + b``."""
        return self.A.to(x.dtype).mv(x) + self._offset(x)

    def _offset(self, x: Tensor) -> Tensor | float:
        return self.b.to(x.dtype) if isinstance(self.b, Tensor) else self.b

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        return noise.normal(self.after(shape))

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        return self.mean(x) + self.factor().to(x.dtype).mv(z.to(x.dtype))

    def factor(self) -> Lin:
        """S with ``Q = S S'``; for matrices lower triangular or S times a triangle, differentiable also where Q is
        singular by structure."""
        root = self.root() if callable(self.root) and not isinstance(self.root, Lin) else self.root
        if root is None:
            root = covariance_root(self.Q)
        object.__setattr__(self, "root", root)
        return root

    def log_prob(self, x: Tensor, y: Tensor, event: int | None = None) -> Tensor:
        return Gaussian(self.mean(x), self.Q).log_prob(y, event)

    def push(self, law: Gaussian) -> Gaussian:
        if not isinstance(law, Gaussian):
            return super().push(law)
        A, Q = (part.to(_wider(part.value, law.cov.value)) for part in (self.A, self.Q))
        spread = A @ law.cov.to(A.value.dtype) @ A.T
        return Gaussian(self.mean(law.mean), (spread + Q).symmetric())

    def pull(self, h: Quadratic) -> tuple[Kernel, Quadratic]:
        if not isinstance(h, Quadratic):
            return super().pull(h)
        dtype = _wider(h.F, self.A.value)
        A, Q, H, F = self.A.to(dtype), self.Q.to(dtype), h.H.to(dtype), h.F.to(dtype)
        b = self.b.to(dtype) if isinstance(self.b, Tensor) else torch.full_like(F, float(self.b))
        b = b if b.ndim >= F.ndim else b.expand(F.shape)
        inner = H @ Q + _eye_like(H, Q)  # I + H Q
        u = F - H.mv(b)
        Mu = inner.solve(u)
        c = h.c - 0.5 * inner.logdet(event_size(F)) + event_sum(F * b) - 0.5 * event_sum(b * H.mv(b))
        c = c + 0.5 * event_sum(u * Q.mv(Mu))
        message = Quadratic((A.T @ inner.inv() @ H @ A).symmetric(), A.T.mv(Mu), c)
        G = (Q @ H + _eye_like(Q, H)).inv()
        spread = (G @ Q).symmetric()
        root = (lambda: _guided_root(self.factor().to(dtype), H)) if spread.kind == "dense" else None
        return LinearGaussian(G @ A, G.mv(b + Q.mv(F)), spread, root), message

    def invert(self, law: Gaussian) -> Kernel:
        """x given y when x ~ N(m, V): gain ``K = V A' (A V A' + Q)^-1`` (a singular sum raises, as it must)."""
        if not isinstance(law, Gaussian):
            return super().invert(law)
        V = law.cov.to(self.A.value.dtype)
        cross = V @ self.A.T
        gain = cross @ (self.A @ cross + self.Q).inv()
        offset = law.mean - gain.mv(self.mean(law.mean))
        return LinearGaussian(gain, offset, (V - gain @ cross.T).symmetric())

    def compose(self, later: LinearGaussian) -> LinearGaussian:
        """This kernel and then ``later``, as one."""
        b = self.b if isinstance(self.b, Tensor) else torch.as_tensor(self.b, dtype=self.A.value.dtype)
        if b.ndim == 0 and self.codomain is not None:
            b = b.expand(self.codomain.size or 1)
        Q = later.A @ self.Q @ later.A.T + later.Q
        return LinearGaussian(later.A @ self.A, later.mean(b), Q.symmetric())


def _guided_root(S: Lin, H: Lin) -> Lin:
    """``S L^-T`` with ``L L' = I + S'HS``: a root of ``(I + Q H)^-1 Q`` that needs no inverse of Q or H."""
    inner = (S.T @ H @ S).symmetric()
    eye = torch.eye(inner.value.shape[-1], dtype=inner.value.dtype, device=inner.value.device)
    L = torch.linalg.cholesky(inner.value + eye)
    return S @ Lin.dense(torch.linalg.solve_triangular(L, eye.expand_as(L), upper=False).mT)


def _wider(a: Tensor, b: Tensor) -> torch.dtype:
    return torch.promote_types(a.dtype, b.dtype)
