"""Gaussian paths: ``x_t = A_t x0 + B_t x1 + S_t z`` with z standard normal.

One class carries diffusion (B = 0: VP, VE, sub-VP, EDM, rectified flow), stochastic interpolants between two
data sets, and paths with structured noise; the coefficients are scalar, diagonal, spectral or dense `Lin` maps.
Scalar one-ended paths also have the half log-SNR ``lambda = log(alpha / sigma)`` and its inverse, the drift f and
the squared dispersion g^2 of ``dx = f x dt + g dW``:

    f = d log alpha / dt            g^2 = -2 sigma^2 d lambda / dt

Everything is computed in float64 from ``log_alpha`` and ``log_sigma``, so that both ends of time are accurate;
sigma = 0 at t = 0 and alpha = 0 at t = 1 are legal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, near
from retrodict.core.lin import Lin
from retrodict.core.noise import Noise
from retrodict.kernels import LinearGaussian
from retrodict.processes.process import Process

Coefficient = Callable[[Tensor], "Tensor | Lin"]

#: Regression targets of a Gaussian path; `GaussianPath.target` gives the formulas.
TARGETS = ("noise", "data", "velocity", "flow", "score", "x1")

# networks are told no more of lambda than training shows them often: e^-7 of signal or of noise is as good as none,
# and a clock that ran on to t = 1 would send the first evaluation of every run to a time never seen
_LOG_SNR_CLIP = 7.0
_SOLVER_LOG_SNR = -5.1  # where grids that are uniform in log-SNR begin if alpha(1) = 0


class GaussianPath(Process):
    """A Gaussian path from its coefficients.

    Args:
        alpha: ``t (batch,) or () in float64 -> tensor or Lin``, the coefficient of x0.
        sigma: the same for the noise.
        beta: the same for the second end x1; None for a path with one end.

    The named constructors (`VP`, `VE`, `EDM`, ...) are subclasses that give accurate logarithms.
    """

    def __init__(self, alpha: Coefficient, sigma: Coefficient, beta: Coefficient | None = None) -> None:
        self._alpha, self._sigma, self._beta = alpha, sigma, beta
        self.ends = ("x0",) if beta is None else ("x0", "x1")
        probe = self._coefficients(torch.tensor(0.5, dtype=torch.float64))
        self.scalar = all(c is None or c.kind == "scalar" for c in probe)

    # -- coefficients ---------------------------------------------------------------------------------------

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha at float64 times."""
        return self._scalar(self._alpha, t).log()

    def log_sigma(self, t: Tensor) -> Tensor:
        """log sigma at float64 times."""
        return self._scalar(self._sigma, t).log()

    def alpha(self, t: float | Tensor) -> Tensor:
        """The coefficient of x0, float64."""
        return self._scalar(self._alpha, as_time(t))

    def sigma(self, t: float | Tensor) -> Tensor:
        """The standard deviation of the noise, float64."""
        return self._scalar(self._sigma, as_time(t))

    def beta(self, t: float | Tensor) -> Tensor:
        """The coefficient of x1, float64; zero on a path with one end."""
        t = as_time(t)
        return torch.zeros_like(t) if self._beta is None else self._scalar(self._beta, t)

    def log_snr(self, t: float | Tensor) -> Tensor:
        """lambda = log(alpha / sigma), the half log signal-to-noise ratio, in nats."""
        t = as_time(t)
        return self.log_alpha(t) - self.log_sigma(t)

    def time_at(self, log_snr: float | Tensor) -> Tensor:
        """The t at which lambda takes a value (clamped to [0, 1]), by bisection to float64 precision."""
        target = torch.as_tensor(log_snr, dtype=torch.float64)
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(60):
            middle = (low + high) / 2
            noisier = self.log_snr(middle) < target
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return (low + high) / 2

    def drift(self, t: float | Tensor) -> Tensor:
        """f of ``dx = f x dt + g dW``."""
        return derivative(self.log_alpha, as_time(t))

    def dispersion2(self, t: float | Tensor) -> Tensor:
        """g^2 of ``dx = f x dt + g dW``."""
        t = as_time(t)
        return -2 * self.sigma(t) ** 2 * derivative(lambda u: self.log_alpha(u) - self.log_sigma(u), t)

    def rates(self, t: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Time derivatives ``(alpha', beta', sigma')``."""
        t = as_time(t)
        return tuple(derivative(c, t) for c in (self.alpha, self.beta, self.sigma))  # type: ignore[return-value]

    def noise_rate(self, t: float | Tensor) -> Tensor:
        """sigma sigma', half the rate of the noise's variance: finite where sigma' alone is not."""
        return derivative(lambda u: self.sigma(u) ** 2 / 2, as_time(t))

    def schedule(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``(alpha, sigma, lambda)`` as float64 arrays over a whole grid: what plans are built from."""
        t = torch.from_numpy(np.asarray(times, dtype=np.float64))
        return self.alpha(t).numpy(), self.sigma(t).numpy(), self.log_snr(t).numpy()

    def log_snr_range(self, start: float, end: float) -> tuple[float, float]:
        """Finite values of lambda between two times, for grids that live in lambda."""
        first = max(float(self.log_snr(start)), _SOLVER_LOG_SNR)
        last = float(self.log_snr(end))
        return first, min(last, float(self.log_snr(max(end, self.t_min))))

    #: The smallest time that grids in lambda visit before the step to the clean end.
    t_min: float = 1e-3

    def network_time(self, t: Tensor) -> Tensor:
        """lambda / 4, lambda clipped to [-7, 7]; t itself on a path with two ends."""
        if not self.scalar or len(self.ends) == 2:
            return t
        return self.log_snr(t).clamp(-_LOG_SNR_CLIP, _LOG_SNR_CLIP) / 4

    def _scalar(self, coefficient: Coefficient, t: Tensor) -> Tensor:
        value = coefficient(t)
        if isinstance(value, Lin):
            if value.kind != "scalar":
                raise InputError("this path has matrix coefficients; a scalar schedule was asked of it")
            value = value.value
        return torch.as_tensor(value, dtype=torch.float64, device=t.device).expand_as(t)

    def _coefficients(self, t: Tensor) -> tuple[Lin, Lin | None, Lin]:
        """``(A, B, S)`` as maps at float64 times."""
        return (
            self._map(self._alpha, t),
            None if self._beta is None else self._map(self._beta, t),
            self._map(self._sigma, t),
        )

    @staticmethod
    def _map(coefficient: Coefficient, t: Tensor) -> Lin:
        value = coefficient(t)
        if isinstance(value, Lin):
            return value
        return Lin.scalar(torch.as_tensor(value, dtype=torch.float64, device=t.device).expand_as(t))

    # -- the process interface ------------------------------------------------------------------------------

    def corrupt(self, x0: Tensor, t: float | Tensor, noise: Noise | Tensor, x1: Tensor | None = None) -> Tensor:
        """``A x0 + B x1 + S z``; ``noise`` is a source, or z itself."""
        z = noise if isinstance(noise, Tensor) else noise.normal(x0.shape[1:])
        A, B, S = self._at(t, x0)
        x_t = A.mv(x0) + S.mv(z.to(x0))
        return x_t if B is None else x_t + B.mv(self._second_end(x1))

    def target(self, kind: str, x0: Tensor, x_t: Tensor, t: float | Tensor, **known: Tensor) -> Tensor:
        """The regression target ``kind``; pass ``z`` where it is known, else it is solved for (needs S > 0).

        ========  =================================  ===========================================
        noise     z                                  epsilon-prediction
        data      x0                                 x-prediction
        velocity  alpha z - sigma x0                 v of Salimans and Ho (2022), eq. (11)
        flow      A' x0 + B' x1 + S' z               the conditional velocity dx_t/dt
        score     -z / sigma                         of the law of x_t given the ends
        x1        x1                                 the second end
        ========  =================================  ===========================================
        """
        if kind == "data":
            return x0
        if kind == "x1":
            return self._second_end(known.get("x1"))
        A, _, S = self._at(t, x0)
        z = known["z"] if "z" in known else S.solve(x_t - self._mean(x0, t, known.get("x1")))
        if kind == "noise":
            return z
        if kind == "velocity":
            return A.mv(z) - S.mv(x0)
        if kind == "score":
            return -S.solve(z)
        if kind == "flow":
            return self._conditional_velocity(x0, z, t, known.get("x1"))
        raise InputError(f"unknown target {kind!r}; known: {', '.join(TARGETS)}.{near(kind, TARGETS)}")

    def heads(self) -> list[tuple[str, str, int]]:
        both = [("data", "squared", 1), ("x1", "squared", 1)]
        return both[: len(self.ends)]

    def kernel(self, s: float | Tensor, t: float | Tensor, x1: Tensor | None = None) -> LinearGaussian:
        """x_s -> x_t as a linear-Gaussian kernel with float64 maps; from s = 0 it starts at the clean datum."""
        s, t = as_time(s), as_time(t)
        A_t, B_t, S_t = self._coefficients(t)
        offset: Tensor | float = 0.0
        if B_t is not None:
            self._only_from_data(s)
            offset = B_t.mv(self._second_end(x1).double())
        if bool((s == 0).all()):
            return LinearGaussian(A_t, offset, S_t @ S_t.T)
        if self.scalar:
            gain = (self.log_alpha(t) - self.log_alpha(s)).exp()
            spread = -(self.sigma(t) ** 2) * torch.expm1(2 * (self.log_snr(t) - self.log_snr(s)))
            return LinearGaussian(Lin.scalar(gain), 0.0, Lin.scalar(spread))
        A_s, _, S_s = self._coefficients(s)
        carry = A_t @ A_s.inv()
        return LinearGaussian(carry, 0.0, S_t @ S_t.T - carry @ S_s @ S_s.T @ carry.T)

    def bridge(
        self, x_t: Tensor, t: float | Tensor, s: float | Tensor, eta: float, x1: Tensor | None = None
    ) -> LinearGaussian:
        """``x_s = A_s x0 + B_s x1 + S_s (R zhat + sqrt(1 - R^2) xi)``, zhat the noise of x_t given the ends.

        ``eta = 0`` is DDIM's deterministic transfer, ``eta = 1`` the posterior of the forward chain (DDPM).
        Where S_t = 0, as at the source of an interpolant, zhat is unknown and fresh noise is drawn.
        """
        _check_eta(eta)
        s, t = as_time(s), as_time(t)
        A_t, B_t, S_t = self._coefficients(t)
        A_s, B_s, S_s = self._coefficients(s)
        R, rest = _retention(A_t, S_t, A_s, S_s, eta)
        carried = S_s @ R  # multiplies zhat
        zmap = carried @ _pseudo_inverse(S_t)
        offset = zmap.to(x_t.dtype).mv(x_t)
        if B_t is not None and B_s is not None:
            offset = offset + (B_s - zmap @ B_t).to(x_t.dtype).mv(self._second_end(x1))
        return LinearGaussian(A_s - zmap @ A_t, offset, S_s @ rest @ S_s.T)

    def prior(self, shape: tuple[int, ...], noise: Noise, x1: Tensor | None = None) -> Tensor:
        """N(0, S_1 S_1') for a path with one end; ``B_1 x1 + S_1 z`` for two."""
        z = noise.normal(shape)
        _, B, S = self._at(1.0, z)
        x = S.mv(z)
        return x if B is None else x + B.mv(self._second_end(x1).to(x))

    # -- parts ----------------------------------------------------------------------------------------------

    def _at(self, t: float | Tensor, like: Tensor) -> tuple[Lin, Lin | None, Lin]:
        """Coefficients in the dtype and on the device of ``like``."""
        A, B, S = self._coefficients(as_time(t, like.device))
        return A.to(like), None if B is None else B.to(like), S.to(like)

    def _mean(self, x0: Tensor, t: float | Tensor, x1: Tensor | None) -> Tensor:
        A, B, _ = self._at(t, x0)
        return A.mv(x0) if B is None else A.mv(x0) + B.mv(self._second_end(x1))

    def _conditional_velocity(self, x0: Tensor, z: Tensor, t: float | Tensor, x1: Tensor | None) -> Tensor:
        da, db, ds = (Lin.scalar(r).to(x0) for r in self.rates(as_time(t, x0.device)))
        velocity = da.mv(x0) + ds.mv(z)
        return velocity if len(self.ends) == 1 else velocity + db.mv(self._second_end(x1))

    def _second_end(self, x1: Tensor | None) -> Tensor:
        if x1 is None:
            raise InputError("this path has two ends; pass x1, the other end, of the same shape as x0")
        return x1

    def _only_from_data(self, s: Tensor) -> None:
        if bool((s != 0).any()):
            raise InputError(
                "a path with two ends fixes the laws at single times, not transitions between them: "
                "kernel(0, t, x1=...) exists, and bridge(x_t, t, s, eta, x1=...) steps backward"
            )


def as_time(t: float | Tensor, device: torch.device | str | None = None) -> Tensor:
    """A time as a float64 tensor."""
    return torch.as_tensor(t, dtype=torch.float64, device=device if device is not None else getattr(t, "device", None))


def _check_eta(eta: float) -> None:
    if not 0 <= eta <= 1:
        raise InputError(f"eta is the share of admissible noise, between 0 and 1; got {eta}")


def derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function / dt of a function that acts element by element."""
    with torch.inference_mode(False), torch.enable_grad():
        u = t.detach().clone().requires_grad_()
        value = function(u)
        return torch.autograd.grad(value.sum(), u)[0] if value.requires_grad else torch.zeros_like(t)


def _retention(A_t: Lin, S_t: Lin, A_s: Lin, S_s: Lin, eta: float) -> tuple[Lin, Lin]:
    """``(R, I - R R')``: how much of the old noise direction a step keeps.

    For a linear SDE the posterior keeps ``c = S_s' (A_t A_s^-1)' S_t^-T`` of it, and eta interpolates between
    c (eta = 1) and an orthogonal map (eta = 0) on the singular values: ``r^2 = 1 - eta^2 (1 - c^2)``.
    """
    if S_t.kind != "dense" and S_s.kind != "dense" and A_t.kind != "dense":
        c = S_s @ A_t @ _pseudo_inverse(S_t @ A_s)
        r2 = 1 - eta**2 * (1 - c.value.clamp(0, 1) ** 2)
        known = (S_t @ A_s).value != 0  # no old noise, or no path back to it: all of it is fresh
        r2 = torch.where(known, r2, torch.where((S_t.value == 0).expand_as(r2), 0.0, 1 - eta**2))
        return Lin(r2.clamp_min(0).sqrt(), c.kind, c.event), Lin(1 - r2, c.kind, c.event)
    carry = A_t @ A_s.inv()
    c = (S_s.T @ carry.T @ S_t.T.inv()).value
    U, values, Vh = torch.linalg.svd(c)
    r2 = 1 - eta**2 * (1 - values.clamp(0, 1) ** 2)
    R = (U * r2.clamp_min(0).sqrt().unsqueeze(-2)) @ Vh
    return Lin.dense(R), Lin.dense((U * (1 - r2).unsqueeze(-2)) @ U.mT)


def _pseudo_inverse(a: Lin) -> Lin:
    """The inverse, with zeros for the zeros of a scalar, diagonal or spectral map."""
    if a.kind == "dense":
        return a.inv()
    return Lin(torch.where(a.value == 0, 0.0, 1 / a.value), a.kind, a.event)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, accurate at both ends (Maechler 2012)."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def plain(value: Any) -> Any:
    """A configuration value as JSON has it."""
    return value.tolist() if isinstance(value, (Tensor, np.ndarray)) else value
