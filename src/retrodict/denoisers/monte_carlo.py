"""A denoiser from an unnormalised density: reverse diffusion Monte Carlo (Huang et al. 2024).

For p0 proportional to exp(f) and x_t = alpha x0 + sigma z the posterior of x0 given x_t is

    q(x0 | x) ~ exp(f(x0)) N(x0; x/alpha, (sigma/alpha)^2)

so that draws of the Gaussian weighted by exp(f) give its mean, D = sum w_i x_i.  With gradients of f a second estimate
comes from the same draws, the target score identity ``alpha score = E_q[grad f(x0)]``; it is good where the first is
poor, near the data, and both are averaged, each coordinate by inverse variance.  No training.

The weights are biased by O(1/draws) and collapse in high dimensions, which `MonteCarlo.effective` shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers.denoiser import Denoiser, batch_time
from retrodict.processes import GaussianPath, Process


class MonteCarlo(Denoiser):
    """The denoiser of exp(log_density) by self-normalised importance sampling (module docstring).

    Args:
        log_density: ``x (n, *shape) -> (n,)``, unnormalised.
        process: a scalar Gaussian path with one end; start plans where alpha > 0, at a moderate noise level.
        shape: of one sample; draws: Gaussian draws for each state.
        gradient: whether to use the gradient of ``log_density`` as well (by autograd).
        seed: of the draws; every evaluation draws anew, the same for every state of a batch.

    Attributes:
        effective: effective number of draws of each state at the last evaluation ``(batch,)``.
    """

    def __init__(
        self,
        log_density: Callable[[Tensor], Tensor],
        process: Process,
        shape: tuple[int, ...],
        draws: int = 256,
        gradient: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(process, shape)
        if not isinstance(process, GaussianPath) or not process.scalar or len(process.ends) == 2:
            raise InputError("densities are sampled along a scalar Gaussian path with one end")
        require(draws >= 2, f"draws is at least 2, got {draws}")
        self.log_density, self.draws, self.gradient, self.seed = log_density, int(draws), gradient, seed
        self.effective = torch.zeros(0)

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        return self._mean(x, batch_time(t, x), self.seed)

    @torch.no_grad()
    def start(self, n: int, t: float, steps: int = 100, step: float = 0.25, seed: int = 0) -> Tensor:
        """States at time t ``(n, *shape)`` to start plans from, by Langevin dynamics under the estimated score.

        Args:
            t: moderate: where alpha is small the posteriors are as hard as the density itself, where it is near one the
                modes no longer mix.
            steps: of the chain, from draws of the noise alone; step: their size relative to sigma^2, in (0, 1].
        """
        require(n >= 1 and steps >= 1, f"n and steps are at least 1, got {n} and {steps}")
        require(0 < step <= 1, f"0 < step <= 1 is needed, got {step}")
        require(0 <= t <= 1, f"t is a time in [0, 1], got {t}")
        path: Any = self.process
        alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
        require(alpha > 0 and sigma > 0, f"at t = {t} there is {'no signal' if sigma > 0 else 'no noise'}")
        noise = KeyedNoise(seed, n, dtype=self.dtype, device=self.device)
        x = sigma * noise.normal(self.shape or ())
        time = batch_time(t, x)
        for i in range(steps):
            score = (alpha * self._mean(x, time, self.seed + i + 1) - x) / sigma**2
            x = x + step * sigma**2 * score + sigma * (2 * step) ** 0.5 * noise.normal(self.shape or ())
        return x

    def _mean(self, x: Tensor, time: Tensor, seed: int) -> Tensor:
        """The combined estimate from the draws of a seed."""
        path: Any = self.process
        view = (1, -1, *(1,) * (x.ndim - 1))
        alpha, sigma = (c(time).to(x.dtype).reshape(view) for c in (path.alpha, path.sigma))
        key = round(float(time[0]) * 1e9) + seed * 1_000_003
        z = KeyedNoise(key, self.draws, dtype=x.dtype, device=x.device).normal(tuple(x.shape[1:])).unsqueeze(1)
        draws = (x + sigma * z) / alpha  # (draws, batch, *shape)
        log_w, slope = self._density(draws)
        w = torch.softmax(log_w.double(), 0).to(x.dtype)
        self.effective = 1 / w.double().square().sum(0)
        w = w.reshape(*w.shape, *(1,) * (x.ndim - 1))
        mean = (w * draws).sum(0)
        if slope is None:
            return mean
        # the target score identity in units of x0: D = (x + sigma^2 score)/alpha
        other_draws = x / alpha[0] + sigma**2 / alpha**2 * slope
        other = (w * other_draws).sum(0)
        spread = [(w**2 * (v - m) ** 2).sum(0) for v, m in ((draws, mean), (other_draws, other))]
        share = spread[1] / (spread[0] + spread[1]).clamp_min(torch.finfo(x.dtype).tiny)
        return torch.lerp(other, mean, share)

    def _density(self, draws: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log density of the draws ``(draws, batch)``, and its gradient."""
        flat = draws.flatten(0, 1).detach()
        if not self.gradient:
            return self._log_density(flat).view(draws.shape[:2]), None
        with torch.enable_grad():
            flat = flat.requires_grad_()
            log_p = self._log_density(flat)
            (slope,) = torch.autograd.grad(log_p.sum(), flat)
        return log_p.detach().view(draws.shape[:2]), slope.view(draws.shape)

    def _log_density(self, flat: Tensor) -> Tensor:
        log_p = self.log_density(flat)
        if log_p.shape != flat.shape[:1]:
            raise InputError(
                f"log_density returns one number a sample, ({len(flat)},), of x {tuple(flat.shape)}; got "
                f"{tuple(log_p.shape)}"
            )
        return log_p
