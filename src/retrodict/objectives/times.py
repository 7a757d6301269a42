"""At which times a denoiser is trained: laws on [0, 1], with their densities.

A batch of n times is ``t = G(u)`` with G the inverse distribution function of the law.  By default the
uniforms are stratified, ``u_i = (pi(i) + U_i)/n`` with a random permutation pi: each t has the same law as
without, and the part of the loss' variance that comes from t alone falls from 1/n to 1/n^3 where the loss
is smooth in t.

Most laws are part of the objective (a network trained on a log-normal law cares most for the middle).
`Importance` is not: it visits times where the loss varies most and divides by how often it does so.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.registry import Registry
from retrodict.processes import Discrete, GaussianPath, Process
from retrodict.processes.gaussian import derivative

_EDGE = 1e-9  # the ends of the unit interval, where logarithms of the time are infinite, are left out
_LOG_SNR_SPAN = 10.0  # beyond this half log-SNR one of data and noise has e^-20 of the other's variance


class TimeLaw:
    """The uniform law of training times, and the base of the others.

    Args:
        low, high: the interval of times.
        stratified: whether a batch spreads its times evenly.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0, stratified: bool = True) -> None:
        require(0 <= low < high <= 1, f"training times lie in 0 <= low < high <= 1, got {low} and {high}")
        self.low, self.high, self.stratified = float(low), float(high), bool(stratified)

    def sample(self, n: int, process: Process, generator: torch.Generator) -> Tensor:
        """n times in float64, on the device of the generator."""
        u = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
        if self.stratified:
            u = (torch.randperm(n, generator=generator, device=generator.device) + u) / n
        return self.quantile(u.clamp(_EDGE, 1 - _EDGE), process)

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        """The time below which a share u of the law lies."""
        return self.low + (self.high - self.low) * u

    def density(self, t: Tensor, process: Process) -> Tensor:
        """Density of the law at t, with respect to the length of [0, 1]."""
        return torch.full_like(t, 1 / (self.high - self.low))

    def correction(self, t: Tensor) -> Tensor | None:
        """Factor that makes a mean over these times a mean over the law that was asked for; None for 1."""
        return None

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Learn from the losses ``(n,)`` seen at times t."""

    def state_dict(self) -> dict[str, Any]:
        """What `update` has learned."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what another run learned."""


class LogitNormal(TimeLaw):
    """``logit t ~ N(mean, std^2)`` (Esser et al. 2024, eq. (19)): mostly the middle of a straight path."""

    def __init__(self, mean: float = 0.0, std: float = 1.0, stratified: bool = True) -> None:
        require(std > 0, f"std of a logit-normal law is positive, got {std}")
        super().__init__(stratified=stratified)
        self.mean, self.std = float(mean), float(std)

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))

    def density(self, t: Tensor, process: Process) -> Tensor:
        return _normal(torch.logit(t), self.mean, self.std) / (t * (1 - t))


class _LogSNRLaw(TimeLaw):
    """A law of the half log-SNR lambda, brought to t by the path."""

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        return _path(process).time_at(self.log_snr(u, process)).clamp(_EDGE, 1 - _EDGE)

    def density(self, t: Tensor, process: Process) -> Tensor:
        path = _path(process)
        return self.log_snr_density(path.log_snr(t), process) * log_snr_rate(path, t).abs()

    def log_snr(self, u: Tensor, process: Process) -> Tensor:
        raise NotImplementedError

    def log_snr_density(self, lam: Tensor, process: Process) -> Tensor:
        raise NotImplementedError


class NoiseLogNormal(_LogSNRLaw):
    """``log(sigma/alpha) ~ N(mean, std^2)`` (Karras et al. 2022, table 1)."""

    def __init__(self, mean: float = -1.2, std: float = 1.2, stratified: bool = True) -> None:
        require(std > 0, f"std of a log-normal law is positive, got {std}")
        super().__init__(stratified=stratified)
        self.mean, self.std = float(mean), float(std)

    def log_snr(self, u: Tensor, process: Process) -> Tensor:
        return -(self.mean + self.std * torch.special.ndtri(u))

    def log_snr_density(self, lam: Tensor, process: Process) -> Tensor:
        return _normal(-lam, self.mean, self.std)


class UniformLogSNR(_LogSNRLaw):
    """lambda uniform over what the path covers between ``low`` and ``high``, within [-10, 10] by default.

    The law for likelihoods: the ELBO is the mean squared noise error under the uniform measure of lambda.
    """

    def __init__(
        self, low: float = 0.0, high: float = 1.0, span: float = _LOG_SNR_SPAN, stratified: bool = True
    ) -> None:
        super().__init__(low, high, stratified)
        require(span > 0, f"span of the log-SNR is positive, got {span}")
        self.span = float(span)

    def range(self, process: Process) -> tuple[float, float]:
        """``(smallest, largest)`` lambda."""
        path = _path(process)
        return max(float(path.log_snr(self.high)), -self.span), min(float(path.log_snr(self.low)), self.span)

    def log_snr(self, u: Tensor, process: Process) -> Tensor:
        low, high = self.range(process)
        return high + u * (low - high)

    def log_snr_density(self, lam: Tensor, process: Process) -> Tensor:
        low, high = self.range(process)
        return torch.full_like(lam, 1 / (high - low))


class LogOdds(TimeLaw):
    """Log odds of having been forgotten uniform over what a discrete process covers, within [-span, span].

    The law for integrals of rates that grow like 1/t near the data.  What lies beyond the span is left out: of a
    bound, about e^-span of it.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0, span: float = 15.0, stratified: bool = True) -> None:
        super().__init__(low, high, stratified)
        require(span > 0, f"span of the log odds is positive, got {span}")
        self.span = float(span)

    def range(self, process: Process) -> tuple[float, float]:
        """``(smallest, largest)`` log odds."""
        process = _discrete(process)
        return (
            max(float(torch.logit(process.hide(self.low))), -self.span),
            min(float(torch.logit(process.hide(self.high))), self.span),
        )

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        low, high = self.range(process)
        return _discrete(process).time_at(torch.sigmoid(low + u * (high - low)))

    def density(self, t: Tensor, process: Process) -> Tensor:
        low, high = self.range(process)
        process = _discrete(process)
        return process.revival(t) / process.keep(t) / (high - low)


class Survival(TimeLaw):
    """``hide(t) = sin^2(a)`` with the angle a uniform: the arcsine law of the share that survives.

    A coin that shows whether a unit survived has Fisher information ``1/(hide keep)`` about its bias; in this angle it
    is constant, so times lie where units are being lost, and neither where all nor where none of them are.
    """

    def range(self, process: Process) -> tuple[Tensor, Tensor]:
        """``(smallest, largest)`` angle."""
        process = _discrete(process)
        low, high = (torch.atan2(process.hide(t).sqrt(), process.keep(t).sqrt()) for t in (self.low, self.high))
        return low, high

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        low, high = (end.to(u.device) for end in self.range(process))
        return _discrete(process).time_at(torch.sin(low + u * (high - low)) ** 2)

    def density(self, t: Tensor, process: Process) -> Tensor:
        low, high = (end.to(t.device) for end in self.range(process))
        process = _discrete(process)
        return process.revival(t) * (process.hide(t) / process.keep(t)).sqrt() / (2 * (high - low))


class Importance(TimeLaw):
    """Times where the loss is large: density proportional to the root mean square of the losses seen there.

    A running profile over equal bins of time; a share of the batch stays uniform so that no bin starves.
    The mean of the corrected losses is that of uniform times (Nichol and Dhariwal 2021, section
    3.3, on continuous time).

    Args:
        bins: resolution of the profile.
        decay: of the running mean of squared losses, per visit of a bin.
        share: of uniform times, in (0, 1].
    """

    def __init__(
        self,
        bins: int = 32,
        decay: float = 0.99,
        share: float = 0.1,
        low: float = 0.0,
        high: float = 1.0,
        stratified: bool = True,
    ) -> None:
        super().__init__(low, high, stratified)
        require(bins >= 1, f"bins={bins}; accepted: at least 1")
        require(0 <= decay < 1 and 0 < share <= 1, f"decay in [0, 1) and share in (0, 1], got {decay} and {share}")
        self.bins, self.decay, self.share = int(bins), float(decay), float(share)
        self.squares = torch.zeros(bins, dtype=torch.float64)
        self.mass = torch.zeros(bins, dtype=torch.float64)

    @property
    def probabilities(self) -> Tensor:
        """Probability of each bin ``(bins,)``; a bin not seen yet counts as an average one."""
        seen = self.mass > 0
        root = (self.squares / self.mass.clamp_min(1e-30)).sqrt()
        mean = (root * seen).sum() / seen.sum().clamp_min(1)
        root = torch.where(seen, root, mean) + 1e-30
        return self.share / self.bins + (1 - self.share) * root / root.sum()

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        edges = torch.nn.functional.pad(self._at(u).probabilities.cumsum(0), (1, 0))
        edges = edges / edges[-1]
        k = torch.searchsorted(edges, u, right=True).clamp(1, self.bins) - 1
        within = (u - edges[k]) / (edges[k + 1] - edges[k])
        return self.low + (self.high - self.low) * (k + within.clamp(0, 1)) / self.bins

    def density(self, t: Tensor, process: Process) -> Tensor:
        return self._at(t).probabilities[self._bin(t)] * self.bins / (self.high - self.low)

    def correction(self, t: Tensor) -> Tensor:
        return 1 / (self._at(t).probabilities[self._bin(t)] * self.bins)

    def update(self, t: Tensor, loss: Tensor) -> None:
        k = self._at(t)._bin(t)
        visits = torch.zeros_like(self.mass).index_add_(0, k, torch.ones_like(t))
        sums = torch.zeros_like(self.mass).index_add_(0, k, loss.detach().double() ** 2)
        fade = self.decay**visits
        self.squares = fade * self.squares + (1 - fade) * sums / visits.clamp_min(1)
        self.mass = fade * self.mass + (1 - fade)

    def state_dict(self) -> dict[str, Any]:
        return {"squares": self.squares.cpu(), "mass": self.mass.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["squares"].shape != self.squares.shape:
            raise InputError(f"the profile has {len(state['squares'])} bins; this law has {self.bins}")
        self.squares, self.mass = state["squares"].clone(), state["mass"].clone()

    def _bin(self, t: Tensor) -> Tensor:
        return ((t - self.low) / (self.high - self.low) * self.bins).long().clamp(0, self.bins - 1)

    def _at(self, like: Tensor) -> Importance:
        self.squares, self.mass = self.squares.to(like.device), self.mass.to(like.device)
        return self


#: Laws of training times by name.
time_laws: Registry[Any] = Registry("time law")
time_laws.add("stratified", value=TimeLaw)
time_laws.add("uniform", value=lambda **options: TimeLaw(stratified=False, **options))
time_laws.add("logit-normal", value=LogitNormal)
time_laws.add("edm", value=NoiseLogNormal)
time_laws.add("log-snr", value=UniformLogSNR)
time_laws.add("log-odds", value=LogOdds)
time_laws.add("survival", value=Survival)
time_laws.add("importance", value=Importance)


def log_snr_rate(path: GaussianPath, t: Tensor) -> Tensor:
    """d lambda / dt, negative, in float64."""
    return derivative(path.log_snr, t)


def _path(process: Process) -> GaussianPath:
    if not isinstance(process, GaussianPath) or not process.scalar or len(process.ends) == 2:
        raise InputError(
            f"this law of times is one of the log-SNR, which {type(process).__name__} has not; "
            "accepted: a scalar Gaussian path with one end; use times='stratified'"
        )
    return process


def _discrete(process: Process) -> Discrete:
    if not isinstance(process, Discrete):
        raise InputError(
            f"this law of times is one of what is forgotten, for discrete processes; got {type(process).__name__}: use "
            "times='stratified'"
        )
    return process


def _normal(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
