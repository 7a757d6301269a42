"""A diffusion with a non-linear drift, run backward by restoring and degrading (Chen, Daras and Dimakis 2023).

    forward    dx = f(x, t) dt + g(t) dW
    restore    x' = x - l f + l g^2 S                        S = grad log p_t(x)
    degrade    x_{t-h} = x' + (l - h) f + g sqrt(l - h) zhat     zhat = (x - x' - l f)/(g sqrt(l))

zhat is the noise that points back at x: DDIM for any forward process.  The step is ``x - h f + c g^2 S`` with
``c = l - sqrt(l (l - h))``, and the probability flow has c = h/2: a fixed ratio l/h keeps c off h/2 and does not
converge.  Replacing sqrt(1 - h/l) by 1 - h/(2 l) gives c = h/2 for every l, which is the flow's Euler step; this is the
default.  With f = 0, g constant and l = t the original rule is DDIM.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.noise import Noise
from retrodict.kernels import Belief
from retrodict.processes.process import Process

Drift = Callable[[Tensor, float], Tensor]


class Nonlinear(Process):
    """A forward diffusion from code (module docstring); a denoiser of it returns the score S(x, t) in place of x0.

    Args:
        drift: f(x, time) of x ``(batch, *shape)``; dispersion: g(time), a positive number.
        horizon: the time T that t = 1 stands for; drift and dispersion are told times in [0, T].
        length: restoration length: None for the corrected rule, "whole" for l = time, a number r > 1 for l = r h.

    Sampled by the solver "step" from ``init=`` states at the plan's start: its law there has no closed form.
    """

    def __init__(
        self,
        drift: Drift,
        dispersion: Callable[[float], float],
        horizon: float = 1.0,
        length: float | str | None = None,
    ) -> None:
        require(horizon > 0, f"horizon is positive, got {horizon}")
        known = length is None or length == "whole" or (isinstance(length, (int, float)) and length >= 1)
        require(known, f"length is None, 'whole' or a ratio of at least 1, got {length!r}")
        self.drift, self.dispersion, self.horizon, self.length = drift, dispersion, float(horizon), length

    def prior(self, shape: tuple[int, ...], noise: Noise, x1: Tensor | None = None) -> Tensor:
        raise InputError("the law at t = 1 of a non-linear diffusion has no closed form: pass init=, states there")

    def corrupt(self, x0: Tensor, t: float | Tensor, noise: Noise | Tensor, x1: Tensor | None = None) -> Tensor:
        """x_t by 200 Euler-Maruyama steps, ``t`` one number for all."""
        require(not isinstance(noise, Tensor), "a path needs a source of noise, not one draw")
        steps, x = 200, x0
        h = float(t) * self.horizon / steps
        for i in range(steps):
            z = noise.normal(tuple(x0.shape[1:]))  # type: ignore[union-attr]
            x = x + h * self.drift(x, i * h) + self.dispersion(i * h) * math.sqrt(h) * z
        return x

    def reverse_step(
        self,
        x_t: Tensor,
        t: float | Tensor,
        s: float | Tensor,
        belief: Belief,
        eta: float,
        noise: Noise,
        x1: Tensor | None = None,
        belief_as: str = "mean",
    ) -> Tensor:
        """Restore by the length l and degrade again to s."""
        require(eta == 0, f"restoring and degrading is deterministic: eta is 0, got {eta}")
        time, h = float(t) * self.horizon, (float(t) - float(s)) * self.horizon
        f, g = self.drift(x_t, time), self.dispersion(time)
        ratio: Any = self.length
        l = time if self.length == "whole" else h * (4.0 if ratio is None else float(ratio))
        restored = x_t - l * f + l * g**2 * belief.mean
        back = (x_t - restored - l * f) / (g * math.sqrt(l))
        kept = math.sqrt(max(l - h, 0.0)) if self.length is not None else math.sqrt(l) * (1 - h / (2 * l))
        return restored + (l - h) * f + g * kept * back
