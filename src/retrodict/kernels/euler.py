"""Non-linear Gaussian kernels and the Euler step of a diffusion, guided exactly by any quadratic message.

The kernel ``y ~ N(m(x), Q(x))`` has no closed pull, but against one message ``h`` everything is closed at a given x.
With ``Q = S S'``, ``u = F - H m``, the small Cholesky factor ``L L' = I + S' H S`` and ``v = L^-1 S' u``:

    log (kappa h)(x) = log h(m) + v.v/2 - log det L            y = m + S L^-T (v + z)

`Doob` is that pair of lines.  It inverts neither H nor Q, so both may be singular: Q of a hypoelliptic diffusion has
the rank of its noise.  The message one step earlier comes from an auxiliary linear kernel ``kappa~`` of the user's
choice, and the weight ``w(x) = (kappa h)(x) / (kappa~ h)(x)`` keeps every estimate unbiased whatever that choice is
(backward filtering forward guiding: van der Meulen and Schauer 2020).  The second form of the weight draws from the
auxiliary itself and pays the Radon-Nikodym ratio ``kappa(x, y) / kappa~(x, y)``.

An exactly observed end ``E y = e`` has no finite message; `Pin` conditions the same draw on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.core.noise import Noise
from retrodict.kernels.checks import as_covariance
from retrodict.kernels.kernel import Kernel
from retrodict.kernels.laws import Quadratic
from retrodict.kernels.linear_gaussian import LinearGaussian
from retrodict.kernels.precise import precise

_LOG_2PI = math.log(2 * math.pi)


def mv(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix (..., n|1, a, b)`` on ``x (..., n, b)``; a matrix shared by the n points costs one product."""
    if matrix.shape[-1] == 1 and matrix.shape[-2] == 1:
        return matrix[..., 0] * x
    if matrix.shape[-3] == 1:
        return x @ matrix.squeeze(-3).mT
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products over the last axis."""
    return (a * b)[..., 0] if a.shape[-1] == 1 else torch.linalg.vecdot(a, b)


@dataclass(frozen=True)
class Pin:
    """Rows that the next state must meet exactly, ``E y = e``: E ``(..., p, d)`` of full row rank, e ``(..., p)``."""

    E: Tensor
    e: Tensor


class Doob:
    """The h-transform of a Gaussian step with root ``S`` under a message ``(H, F, c)`` and, perhaps, a `Pin`.

    Args:
        H, F, c: ``(..., n|1, d, d)``, ``(..., n|1, d)``, ``(..., n|1)``.
        S: ``(..., n|1, d, r)``; where its n-axis is 1, the factorisation is shared by all the points.
        pin: exact rows, with axes as H and F.
    """

    def __init__(self, H: Tensor, F: Tensor, c: Tensor, S: Tensor, pin: Pin | None = None) -> None:
        self.H, self.F, self.pin = H, F, pin
        if S.shape[-1] == 1 and S.shape[-2] == 1:  # one dimension: numbers, not factorisations
            K = 1 + S * H * S
            self.W = S * K.rsqrt()
            self.R = self.W
            log_det = 0.5 * K[..., 0, 0].log()
        else:
            K = torch.eye(S.shape[-1], dtype=S.dtype, device=S.device) + S.mT @ (H @ S)
            self.W, log_det = whiten(K, S.mT)
            self.R = self.W.mT
        self.c = c - log_det
        if pin is not None:
            self._meet(pin)

    def _meet(self, pin: Pin) -> None:
        """Prepare the projection of the innovations onto ``E y = e``: ``E R z = e - E (m + R v)``."""
        self.D = pin.E @ self.R
        gram = self.D @ self.D.mT
        root, info = torch.linalg.cholesky_ex(gram)
        scale = (self.R @ self.R.mT).diagonal(dim1=-2, dim2=-1).amax(-1)
        least = root.diagonal(dim1=-2, dim2=-1).square().amin(-1)
        if bool((info != 0).any()) or bool((least <= 1e-13 * scale).any()):
            raise InputError(
                "an exactly observed coordinate has no noise in the step that reaches it, so the step cannot be "
                "bent to meet it; give the observation a small noise"
            )
        self.root = root
        rows = self.D.shape[-2]
        self.pin_c = -root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * rows * _LOG_2PI
        self.back = torch.cholesky_solve(self.D, root).mT  # D' (D D')^-1

    def __call__(self, m: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """``(y, log (kappa h)(x))`` for means ``m (..., n, d)`` and innovations ``z (..., n, r)``."""
        u = self.F - mv(self.H, m)
        v = mv(self.W, u)
        log_kh = self.c + 0.5 * (dot(self.F + u, m) + dot(v, v))
        if self.pin is None:
            return m + mv(self.R, v + z), log_kh
        centre = m + mv(self.R, v)
        gap = self.pin.e - mv(self.pin.E, centre)
        white = torch.linalg.solve_triangular(self.root, gap.unsqueeze(-1), upper=False).squeeze(-1)
        y = centre + mv(self.R, z + mv(self.back, gap - mv(self.D, z)))
        return y, log_kh + self.pin_c - 0.5 * dot(white, white)


def whiten(K: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """``L^-1 B`` and ``log det L`` for ``K = L L' (..., r, r)`` and ``B (..., r, d)``.

    Up to three rows are written out: a factorisation of each of a thousand 2 x 2 matrices costs many times more.
    """
    r = K.shape[-1]
    if r > 3:
        factor = torch.linalg.cholesky(K)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return torch.linalg.solve_triangular(factor, B, upper=False), log_det
    L: list[list[Tensor]] = []
    rows: list[Tensor] = []
    for i in range(r):
        line: list[Tensor] = []
        for j in range(i + 1):
            rest = K[..., i, j]
            for k in range(j):
                rest = rest - line[k] * (L[j][k] if j < i else line[k])
            line.append(rest.sqrt() if i == j else rest / L[j][j])
        L.append(line)
        row = B[..., i, :]
        for j in range(i):
            row = row - line[j].unsqueeze(-1) * rows[j]
        rows.append(row / line[i].unsqueeze(-1))
    return torch.stack(rows, -2), torch.stack([line[-1] for line in L]).log().sum(0)


def normal_log_prob(residual: Tensor, S: Tensor) -> Tensor:
    """log N(residual; 0, S S') for an invertible square root ``S (..., n|1, d, d)``; residual ``(..., n, d)``."""
    d = residual.shape[-1]
    if S.shape[-1] != d:
        raise InputError(f"a density needs noise in every coordinate; the noise has {S.shape[-1]} of {d} dimensions")
    if d == 1:
        scale = S[..., 0]
        return -0.5 * ((residual / scale).square() + _LOG_2PI)[..., 0] - scale.abs().log()[..., 0]
    white = mv(torch.linalg.inv(S), residual)
    return -0.5 * (dot(white, white) + d * _LOG_2PI) - torch.linalg.slogdet(S).logabsdet


def dispersion(g: Any, x: Tensor) -> Tensor:
    """The dispersion matrix ``(..., n|1, d, r)`` of what a diffusion coefficient returned at ``x (..., n, d)``.

    A number is a multiple of the identity, ``(d,)`` and anything with the axes of x a diagonal, ``(d, r)`` a matrix,
    and one axis more than x a matrix at each state; x has three axes or more, so these cannot be confused.  Axes
    that do not depend on the state stay of size 1.
    """
    d = x.shape[-1]
    g = torch.as_tensor(g, dtype=x.dtype, device=x.device)
    if g.ndim <= 1 or g.ndim == x.ndim:
        matrix = torch.diag_embed(g.expand(*g.shape[:-1], d)) if not g.ndim or g.shape[-1] in (1, d) else None
    else:
        matrix = g if g.ndim in (2, x.ndim + 1) else None
    if matrix is None or matrix.shape[-2] != d:
        raise InputError(
            f"diffusion(x, t) returned shape {tuple(g.shape)} at states {tuple(x.shape)}; accepted are a number, a "
            f"diagonal ({d},) or (..., {d}), a matrix ({d}, r) or (..., {d}, r)"
        )
    return matrix.reshape((1,) * (x.ndim + 1 - matrix.ndim) + matrix.shape)


def jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """``(f(x), df/dx (..., d, d))`` of a function that acts on each point of ``x (..., d)`` by itself."""
    value, pull = torch.func.vjp(f, x)[:2]
    rows = []
    for i in range(value.shape[-1]):
        seed = torch.zeros_like(value)
        seed[..., i] = 1
        rows.append(pull(seed)[0])
    return value, torch.stack(rows, -2)


@dataclass(frozen=True)
class NonLinearGaussian(Kernel):
    """``y ~ N(mean(x), covariance(x))``, guided by any quadratic message.

    Args:
        mean: ``x (batch, d) -> (batch, d)``.
        covariance: ``x -> (batch, d, d)``, or a matrix, a number or a `Lin`; it may be singular.  Give it or ``root``.
        root: ``x -> (batch|1, d, r)``, a matrix S with covariance ``S S'``; r innovations drive a step.
        aux: the auxiliary `LinearGaussian` that pulls messages in this kernel's stead; see `linearised`.
        weight: "doob" draws from the exact h-transform of this kernel, "path" from that of the auxiliary.
    """

    mean: Callable[[Tensor], Tensor]
    covariance: Any = None
    root: Callable[[Tensor], Tensor] | None = None
    aux: LinearGaussian | None = None
    weight: str = "doob"

    def __post_init__(self) -> None:
        if (self.covariance is None) == (self.root is None):
            raise InputError("a non-linear Gaussian kernel takes either covariance or root")
        if self.weight not in ("doob", "path"):
            raise InputError(f"weight is 'doob' or 'path', got {self.weight!r}")
        for name in ("mean", "root"):
            object.__setattr__(self, name, precise(getattr(self, name)))
        given: Any = self.covariance
        made = precise(given) if callable(given) and not isinstance(given, Lin) else given
        object.__setattr__(self, "covariance", made if made is None or callable(made) else as_covariance(made))

    def root_at(self, x: Tensor) -> Tensor:
        """S ``(batch|1, d, r)`` with covariance ``S S'`` at ``x (batch, d)``."""
        if self.root is not None:
            return self.root(x)
        given: Any = self.covariance
        Q: Any = given if isinstance(given, Lin) else given(x)
        S = dense(Lin.of(Q).to(x.dtype).sqrt(), x.shape[-1])
        return S if S.ndim == 3 else S.unsqueeze(0)

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        probe = torch.zeros((1, *shape), dtype=torch.float64, device=noise.device)
        return noise.normal((self.root_at(probe).shape[-1],))

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        return self.mean(x) + _each(self.root_at(x), z.to(x.dtype))

    def log_prob(self, x: Tensor, y: Tensor, event: int | None = None) -> Tensor:
        """log density of y given x, both ``(..., d)`` (leading axes broadcast)."""
        x, y = torch.broadcast_tensors(x.double(), y.double())
        flat = x.reshape(-1, x.shape[-1])
        residual = y.reshape(flat.shape) - self.mean(flat)
        return normal_log_prob(residual.unsqueeze(-2), self.root_at(flat).unsqueeze(-3)).reshape(x.shape[:-1])

    def linearised(self, at: Tensor) -> NonLinearGaussian:
        """This kernel with the auxiliary ``N(m(at) + J (x - at), Q(at))``, J the Jacobian of the mean at ``at``."""
        value, J = jacobian(self.mean, at)
        S = self.root_at(at)
        aux = LinearGaussian(Lin.dense(J), value - _each(J, at), Lin.dense(S @ S.mT))
        return NonLinearGaussian(self.mean, self.covariance, self.root, aux, self.weight)

    def pull(self, h: Quadratic) -> tuple[GuidedGaussian, Quadratic]:
        """The message of the *auxiliary* kernel; its error is paid in the weight of `guide`."""
        if not isinstance(h, Quadratic):
            return super().pull(h)  # type: ignore[return-value]
        if self.aux is None:
            raise InputError(
                "a non-linear kernel pulls messages through an auxiliary linear one; give aux=LinearGaussian(...), "
                "or take kernel.linearised(at) at a state near the path"
            )
        linear, earlier = self.aux.pull(h)
        return GuidedGaussian(self, h, earlier, linear), earlier

    def guide(self, residual: Kernel, x: Tensor, z: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(residual, GuidedGaussian):
            return super().guide(residual, x, z)
        return residual.move(x, z)


@dataclass(frozen=True)
class GuidedGaussian(Kernel):
    """What a pull leaves of a non-linear Gaussian kernel: the kernel, both messages, and the guided auxiliary."""

    kernel: NonLinearGaussian
    h: Quadratic
    earlier: Quadratic
    linear: Kernel

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        return self.kernel.draw(noise, shape)

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        return self.move(x, z)[0]

    def move(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """``(y, log weight (batch,))`` of one guided step."""
        state = x.double()
        m, S = self.kernel.mean(state), self.kernel.root_at(state)
        if self.kernel.weight == "path":
            y = self.linear.step(state, z)
            assert self.kernel.aux is not None  # pull made sure of it
            truth = normal_log_prob((y - m).unsqueeze(-2), S.unsqueeze(-3))[..., 0]
            return y.to(x.dtype), truth - self.kernel.aux.log_prob(state, y)
        d = x.shape[-1]
        H = dense(self.h.H.to(torch.float64), d)
        H = H if H.ndim == 3 else H.unsqueeze(0)
        bent = Doob(H.unsqueeze(-3), self.h.F.double().unsqueeze(-2), self.h.c.double().unsqueeze(-1), S.unsqueeze(-3))
        y, log_kh = bent(m.unsqueeze(-2), z.double().unsqueeze(-2))
        return y.squeeze(-2).to(x.dtype), log_kh.squeeze(-1) - self.earlier(state)


def EulerStep(
    drift: Callable[[Tensor, Any], Tensor],
    diffusion: Any,
    t: float | Tensor,
    dt: float | Tensor,
    aux: LinearGaussian | None = None,
    weight: str = "doob",
) -> NonLinearGaussian:
    """One Euler-Maruyama step ``y ~ N(x + drift dt, g g' dt)`` as a kernel.

    Args:
        drift: ``(x (batch, 1, d), t) -> (batch, 1, d)``; written for any leading axes, as everywhere.
        diffusion: the dispersion g: a number, ``(d,)``, ``(d, r)``, or ``(x, t) ->`` one of
            these or ``(batch, 1, d[, r])``.
        t, dt: the time at the start of the step and its length.
        aux, weight: as for `NonLinearGaussian`.
    """
    if float(dt) <= 0:
        raise InputError(f"dt is a positive length of time, got {float(dt):g}")

    # an axis of one particle: (batch, d) diagonals and (d, r) matrices cannot be confused
    def root(x: Tensor) -> Tensor:
        points = x.unsqueeze(-2)
        g = diffusion(points, t) if callable(diffusion) else diffusion
        return dispersion(g, points).squeeze(-3) * dt**0.5

    def mean(x: Tensor) -> Tensor:
        return x + drift(x.unsqueeze(-2), t).squeeze(-2) * dt

    return NonLinearGaussian(mean, root=root, aux=aux, weight=weight)


def dense(lin: Lin, size: int) -> Tensor:
    """The matrix ``(..., size, size)`` of a `Lin`."""
    return (Lin.dense(torch.zeros(size, size, dtype=lin.value.dtype, device=lin.value.device)) + lin).value


def _each(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix (batch|1, a, b)`` on ``x (batch, b)``."""
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)
