"""What all samplers solve: from shared starts to the end of the probability flow, counting network passes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from retrodict.processes import GaussianPath
from retrodict.solvers import Plan
from retrodict.solvers.runtime import compiled


class Problem:
    """A denoiser on a Gaussian path, starts at t = 1 and where the probability flow takes them.

    Args:
        path: the process of the denoiser.
        denoise: ``(x, t) -> posterior mean``, float64, x on the path at time t.
        noise: standard normal starts ``(n, ...)``, float64.
        reference: end points of the starts, or None until they are known.
    """

    def __init__(
        self,
        path: GaussianPath,
        denoise: Callable[[Tensor, float], Tensor],
        noise: Tensor,
        reference: Tensor | None = None,
    ) -> None:
        self.path, self.denoise, self.noise, self.reference = path, denoise, noise, reference
        self.passes = 0
        self._levels: dict[tuple[float, float], tuple[float, float]] = {}

    @functools.cached_property
    def rho_max(self) -> float:
        """sigma/alpha of the starts; infinite where the path ends without signal."""
        alpha, sigma = float(self.path.alpha(1.0)), float(self.path.sigma(1.0))
        return sigma / alpha if alpha > 1e-12 else math.inf

    @functools.cached_property
    def rho_min(self) -> float:
        """sigma/alpha at the path's smallest time."""
        return math.exp(-float(self.path.log_snr(max(self.path.t_min, 1e-3))))

    def mean(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """Posterior mean for ``x = alpha x0 + sigma z`` in any convention: one network pass.

        The state is rescaled to the path's level of the same sigma/alpha; beyond the path's noisiest level, to that.
        """
        t, size = self._level(float(alpha), float(sigma))
        return self.at(x * (size / math.hypot(alpha, sigma)), t)

    def at(self, x: Tensor, t: float) -> Tensor:
        """Posterior mean for a state on the path at time t: one network pass."""
        self.passes += 1
        return self.denoise(x, t)

    def _level(self, alpha: float, sigma: float) -> tuple[float, float]:
        """``(t, size of the path's state at t)`` of a level in any convention."""
        if (alpha, sigma) not in self._levels:
            self._levels[alpha, sigma] = self._find_level(alpha, sigma)
        return self._levels[alpha, sigma]

    def _find_level(self, alpha: float, sigma: float) -> tuple[float, float]:
        log_snr = math.log(alpha / sigma) if alpha > 0 else -math.inf
        t = 1.0 if alpha <= 0 or sigma / alpha >= self.rho_max else float(self.path.time_at(log_snr))
        return t, math.hypot(float(self.path.alpha(t)), float(self.path.sigma(t)))

    def run_plan(self, plan: Plan) -> Tensor:
        """The end points that one of our plans reaches."""
        return compiled(plan)(self.at, self.noise * float(self.path.sigma(1.0)), {})

    def errors(self, x: Tensor) -> Tensor:
        """Euclidean distance of each sample to its reference, ``(n,)``."""
        assert self.reference is not None
        return (x - self.reference).flatten(1).norm(dim=1)

    def first(self, n: int) -> Problem:
        """The same problem with the first n starts."""
        return Problem(self.path, self.denoise, self.noise[:n], None if self.reference is None else self.reference[:n])


@dataclass(frozen=True)
class Peer:
    """A sampler of another library with its grid and flags.

    ``run(problem, passes)`` returns the samples of at most so many network passes, None where it cannot.  ``tuned``
    marks settings that its library does not offer, kept apart from what counts as the peers' own.
    """

    library: str
    sampler: str
    flags: dict[str, Any]
    run: Callable[[Problem, int], Tensor | None] = field(compare=False, repr=False)
    tuned: bool = False

    @property
    def name(self) -> str:
        """Library, sampler and flags in one line."""
        flags = ", ".join(f"{k}={v}" for k, v in self.flags.items())
        return f"{self.library} {self.sampler}({flags})"
