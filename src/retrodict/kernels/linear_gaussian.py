"""The linear-Gaussian kernel ``y = A x + b + N(0, Q)``: Kalman filtering and diffusion noising are one class.

Pulling a quadratic message, with ``M = (I + H Q)^-1`` and ``u = F - H b``:

    H' = A' M H A        F' = A' M u        c' = c - logdet(I + H Q)/2 + F.b - b.Hb/2 + u.Q M u/2

and the guided kernel is again linear-Gaussian, with ``G = (I + Q H)^-1``: ``y ~ N(G (A x + b + Q F), G Q)``.
Neither Q nor H is ever inverted: both may be singular.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retrodict.core.lin import Lin
from retrodict.core.noise import Noise
from retrodict.kernels.kernel import Kernel
from retrodict.kernels.laws import Gaussian, Quadratic, _eye_like, event_size, event_sum


@dataclass(frozen=True)
class LinearGaussian(Kernel):
    """``y ~ N(A x + b, Q)``.

    Args:
        A, Q: `Lin` maps (numbers and matrices are accepted); Q is a covariance, perhaps singular or zero.
        b: offset ``(batch, *event)`` or a number.
    """

    A: Lin
    b: Tensor | float
    Q: Lin

    def __post_init__(self) -> None:
        object.__setattr__(self, "A", Lin.of(self.A))
        object.__setattr__(self, "Q", Lin.of(self.Q))

    def mean(self, x: Tensor) -> Tensor:
        """``A x + b``."""
        return self.A.to(x.dtype).mv(x) + self._offset(x)

    def _offset(self, x: Tensor) -> Tensor | float:
        return self.b.to(x.dtype) if isinstance(self.b, Tensor) else self.b

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        return noise.normal(shape)

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        return self.mean(x) + self.Q.sqrt().to(x.dtype).mv(z.to(x.dtype))

    def log_prob(self, x: Tensor, y: Tensor, event: int | None = None) -> Tensor:
        return Gaussian(self.mean(x), self.Q).log_prob(y, event)

    def push(self, law: Gaussian) -> Gaussian:
        if not isinstance(law, Gaussian):
            return super().push(law)
        spread = self.A @ law.cov.to(self.A.value.dtype) @ self.A.T
        return Gaussian(self.mean(law.mean), (spread + self.Q).symmetric())

    def pull(self, h: Quadratic) -> tuple[Kernel, Quadratic]:
        if not isinstance(h, Quadratic):
            return super().pull(h)
        A, Q, H = self.A, self.Q, h.H
        b = self.b if isinstance(self.b, Tensor) else torch.full_like(h.F, float(self.b))
        inner = H @ Q + _eye_like(H, Q)  # I + H Q
        u = h.F - H.mv(b)
        Mu = inner.solve(u)
        c = h.c - 0.5 * inner.logdet(event_size(h.F)) + event_sum(h.F * b) - 0.5 * event_sum(b * H.mv(b))
        c = c + 0.5 * event_sum(u * Q.mv(Mu))
        message = Quadratic((A.T @ inner.inv() @ H @ A).symmetric(), A.T.mv(Mu), c)
        G = (Q @ H + _eye_like(Q, H)).inv()
        return LinearGaussian(G @ A, G.mv(b + Q.mv(h.F)), (G @ Q).symmetric()), message

    def invert(self, law: Gaussian) -> Kernel:
        """x given y when x ~ N(m, V): gain ``K = V A' (A V A' + Q)^-1`` (a singular sum raises, as it must)."""
        if not isinstance(law, Gaussian):
            return super().invert(law)
        V = law.cov.to(self.A.value.dtype)
        cross = V @ self.A.T
        gain = cross @ (self.A @ cross + self.Q).inv()
        offset = law.mean - gain.mv(self.mean(law.mean))
        return LinearGaussian(gain, offset, (V - gain @ cross.T).symmetric())
