"""Choices of C and of the gain G in the Gaussian data potential (`retrodict.steering.measurement`).

===========  ==========================================  ====================================================
name         C inside M = A C A^T + R                    source
===========  ==========================================  ====================================================
exact        Cov(x0 | x_t)                               Rozet et al. 2024 (MMPS)
isotropic    r^2 I, r^2 = v rho^2/(v + rho^2)            Song et al. 2023 (PiGDM); with rho^2/lambda Zhu et al. 2023
                                                         (DiffPIR); with no noise Wang et al. 2023 (DDNM)
row-sums     M is the diagonal of row sums of A C A^T    Boys et al. 2023 (TMPD)
none         0                                           Chung et al. 2023 (DPS)
jensen       0, and -tr(A C A^T)/(2 R) in log h          Rout et al. 2024 (STSL), as the lower bound that it is
norm         0, and no R: a step along the gradient of   Chung et al. 2023 (DPS), the published step size
             |e|
===========  ==========================================  ====================================================

with rho = sigma/alpha and v the variance of the data.  The gain is "posterior", Cov(x0 | x_t), which makes the shift
the gradient of log h (M held constant); "same", the C inside M, which needs no derivative of the denoiser; or "none":
the potential does not move the state and only weighs.  With a linear operator and ``p(x0 | x_t)`` Gaussian, "exact" is
exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, near
from retrodict.core.registry import Registry
from retrodict.kernels.laws import event_sum
from retrodict.kernels.roots import covariance_root
from retrodict.steering.krylov import gmres
from retrodict.steering.potential import Node, Tilt

if TYPE_CHECKING:
    from retrodict.steering.measurement import Measurement

GAINS = ("posterior", "same", "none")
#: Up to this many numbers M is formed, one product with C for each; above it is solved by products.
DENSE = 64


class Covariance:
    """One way to fill M and the gain.

    Args:
        gain: "posterior", "same" or "none" (module docstring).
        clip: largest norm of the shift, in root-mean-square units of the data per coordinate; None leaves it.
        iterations: products with M at most, where M is too large to be formed.
    """

    #: Whether the C inside M is the denoiser's own.
    inside = False

    def __init__(self, gain: str = "posterior", clip: float | None = None, iterations: int = 10) -> None:
        if gain not in GAINS:
            raise InputError(f"gain is one of {', '.join(GAINS)}; got {gain!r}.{near(gain, GAINS)}")
        if clip is not None and clip <= 0:
            raise InputError(f"clip is a positive number of data units, got {clip}")
        self.gain, self.clip, self.iterations = gain, clip, iterations

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def derivative(self, closed: bool) -> bool:
        """Whether a derivative of the denoiser is needed; ``closed``: beliefs carry a covariance of their own."""
        return not closed and (self.inside or self.gain == "posterior")

    def tilt(self, goal: Measurement, node: Node) -> Tilt:
        """The potential at a node, without constants."""
        e = goal.residual(node.mean).detach()
        solved, log_det = self.solve(goal, node, e)
        log_h = -0.5 * (event_sum(e.double() * solved.double()) + log_det)
        if self.gain == "none":
            return Tilt(log_h)
        v = goal.pull_back(node.mean, solved)
        shift = node.covariance_times(v) if self.gain == "posterior" else self.times(goal, node, v)
        return Tilt(log_h, self._clipped(goal, shift))

    def _clipped(self, goal: Measurement, shift: Tensor) -> Tensor:
        if self.clip is None:
            return shift
        limit = self.clip * goal.spread.unit * (goal.spread.variance * shift[0].numel()) ** 0.5
        norm = shift.flatten(1).norm(dim=1).reshape(-1, *(1,) * (shift.ndim - 1))
        return shift * (limit / norm.clamp_min(1e-30)).clamp_max(1)

    def times(self, goal: Measurement, node: Node, v: Tensor) -> Tensor:
        """``C v`` with the C inside M."""
        return node.covariance_times(v)

    def times_each(self, goal: Measurement, node: Node, rows: Tensor) -> Tensor:
        """``C v`` for several v, ``(m, batch or 1, *shape) -> (m, batch or 1, *shape)``."""
        return node.covariance_times_each(rows)

    def spread(self, goal: Measurement, node: Node, z: Tensor) -> Tensor:
        """``S z`` with ``S S^T = C``, of the C inside M."""
        raise InputError(f"{type(self).__name__} has no root of its C to draw with; use 'isotropic', or an oracle")

    def solve(self, goal: Measurement, node: Node, e: Tensor) -> tuple[Tensor, Tensor]:
        """``M^-1 e`` and ``log det M`` (0 where M is not formed: any h keeps the weights right)."""
        if goal.size > DENSE:
            product = lambda v: goal.push(node.mean, self.times(goal, node, goal.pull_back(node.mean, v)))  # noqa: E731
            x = gmres(lambda v: product(v.to(e)).double() + goal.variance * v, e, self.iterations)
            return x.to(e), torch.zeros(len(e), dtype=torch.float64, device=e.device)
        rows = goal.rows(node.mean)
        seen = self.times_each(goal, node, rows).detach().double().flatten(2)
        M = torch.einsum("ibd,jbd->bij", rows.double().flatten(2).expand_as(seen), seen)
        values, vectors = torch.linalg.eigh((M + M.mT) / 2)
        values = values.clamp_min(0) + goal.variance
        turned = (vectors.mT @ e.double().unsqueeze(2)) / values.unsqueeze(2)
        return (vectors @ turned).squeeze(2).to(e), values.log().sum(1).expand(len(e))


covariances: Registry[type[Covariance]] = Registry("covariance")


@covariances.register("exact")
class Exact(Covariance):
    """The denoiser's own covariance."""

    inside = True

    def spread(self, goal: Measurement, node: Node, z: Tensor) -> Tensor:
        if node.belief.cov is None:
            return super().spread(goal, node, z)
        root = covariance_root(node.covariance().to(torch.float64))
        return root.mv(z.flatten(1).double()).reshape(z.shape).to(z)


@covariances.register("isotropic")
class Isotropic(Covariance):
    """``r^2 I`` in the model's units.

    Args:
        width: "posterior", r^2 = v rho^2/(v + rho^2), or "noise", r^2 = rho^2/strength.
        variance: v, in the user's units squared; None is what the denoiser knows of its data, 1 in the model's units
            where it knows nothing.
        strength: lambda of DiffPIR.
        hard: leave out the noise of the measurement, so that ``A D_y = y`` (DDNM).
        tempered: scale the shift by min(1, rho/noise) (DDNM+, for noisy measurements).
    """

    def __init__(
        self,
        gain: str = "posterior",
        clip: float | None = None,
        iterations: int = 10,
        width: str = "posterior",
        variance: float | None = None,
        strength: float = 1.0,
        hard: bool = False,
        tempered: bool = False,
    ) -> None:
        super().__init__(gain, clip, iterations)
        if width not in ("posterior", "noise"):
            raise InputError(f"width is 'posterior' or 'noise', got {width!r}")
        if strength <= 0 or (variance is not None and variance <= 0):
            raise InputError(f"strength and variance are positive, got {strength} and {variance}")
        self.width, self.variance, self.strength = width, variance, strength
        self.hard, self.tempered = hard, tempered

    def squared(self, goal: Measurement, rho: Any) -> Any:
        """r^2 at rho = sigma/alpha, in the model's units."""
        if self.width == "noise":
            return rho**2 / self.strength
        known = goal.spread.variance if self.hard else goal.spread.each
        v: Any = known if self.variance is None else self.variance / goal.spread.unit**2
        return v * rho**2 / (v + rho**2)

    def times(self, goal: Measurement, node: Node, v: Tensor) -> Tensor:
        rho = node.sigma / node.alpha
        return (goal.spread.stretch(goal.spread.stretch(v)) * self.squared(goal, rho)).to(v)

    def times_each(self, goal: Measurement, node: Node, rows: Tensor) -> Tensor:
        return self.times(goal, node, rows)

    def spread(self, goal: Measurement, node: Node, z: Tensor) -> Tensor:
        return (goal.spread.stretch(z) * self.squared(goal, node.sigma / node.alpha) ** 0.5).to(z)

    def tilt(self, goal: Measurement, node: Node) -> Tilt:
        tilt = super().tilt(goal, node)
        if self.tempered and tilt.shift is not None and goal.noise > 0:
            share = goal.spread.unit * node.sigma / node.alpha / goal.noise
            tilt.shift = tilt.shift * (share.clamp_max(1) if isinstance(share, Tensor) else min(share, 1.0))
        return tilt

    def solve(self, goal: Measurement, node: Node, e: Tensor) -> tuple[Tensor, Tensor]:
        r2 = self.squared(goal, node.sigma / node.alpha)
        varies = isinstance(r2, Tensor) and r2.shape[-1:].numel() > 1  # over coordinates
        spectrum = None if varies else goal.spectrum
        if spectrum is None:
            return super().solve(goal, node, e)
        values, vectors = (None if part is None else part.to(e.device) for part in spectrum)
        assert values is not None
        r2 = r2.reshape(-1, 1).double() if isinstance(r2, Tensor) else r2
        M = r2 * values + (0.0 if self.hard else goal.variance)
        inverse = 1 / M
        if self.hard:
            inverse = torch.where(values > 1e-10 * values.max(), inverse, torch.zeros_like(inverse))
        turned = e.double() if vectors is None else e.double() @ vectors
        solved = turned * inverse
        solved = solved if vectors is None else solved @ vectors.T
        return solved.to(e), M.clamp_min(1e-300).log().sum(-1).expand(len(e))


@covariances.register("row-sums")
class RowSums(Covariance):
    """The diagonal of row sums of ``A C A^T``: one product."""

    inside = True

    def solve(self, goal: Measurement, node: Node, e: Tensor) -> tuple[Tensor, Tensor]:
        ones = goal.pull_back(node.mean, torch.ones_like(e))
        M = goal.push(node.mean, node.covariance_times(ones)).double().clamp_min(0) + goal.variance
        return (e.double() / M).to(e), M.log().sum(1)


@covariances.register("none")
class Nothing(Covariance):
    """No C inside M: the likelihood at the posterior mean."""

    def times(self, goal: Measurement, node: Node, v: Tensor) -> Tensor:
        return torch.zeros_like(v)

    def solve(self, goal: Measurement, node: Node, e: Tensor) -> tuple[Tensor, Tensor]:
        log_det = goal.size * torch.tensor(goal.variance, dtype=torch.float64).log()
        return e / goal.variance, log_det.expand(len(e)).to(e.device)


@covariances.register("norm")
class Norm(Nothing):
    """``grad_x |e|`` as the shift, in place of the gradient of log h; plans scale it by the published step size."""

    def tilt(self, goal: Measurement, node: Node) -> Tilt:
        e = goal.residual(node.mean).detach()
        solved, log_det = self.solve(goal, node, e)
        log_h = -0.5 * (event_sum(e.double() * solved.double()) + log_det)
        unit = e / e.norm(dim=1, keepdim=True).clamp_min(1e-30) / goal.spread.unit
        shift = node.covariance_times(goal.pull_back(node.mean, unit)) * (node.alpha / node.sigma**2)
        return Tilt(log_h, self._clipped(goal, shift))


@covariances.register("jensen")
class Jensen(Nothing):
    """The lower bound ``log h >= l(D) - gamma tr(A C A^T)/(2 R)`` and its gradient, which differentiates C.

    Args:
        gamma: weight of the trace; 1 is the bound.
        probes: random signs per state that estimate the trace where the measurement has more than `DENSE` numbers.
    """

    inside = True

    def __init__(self, gain: str = "posterior", clip: float | None = None, gamma: float = 1.0, probes: int = 1) -> None:
        super().__init__(gain, clip)
        self.gamma, self.probes = gamma, probes

    def derivative(self, closed: bool) -> bool:
        return True

    def tilt(self, goal: Measurement, node: Node) -> Tilt:
        e = goal.residual(node.mean)
        _, log_det = self.solve(goal, node, e.detach())
        log_h = -0.5 * ((e.double() ** 2).sum(1) + self.gamma * self.trace(goal, node, e)) / goal.variance
        shift = None if self.gain == "none" else self._clipped(goal, node.drift_of(log_h))
        return Tilt(log_h.detach() - 0.5 * log_det, shift)

    def trace(self, goal: Measurement, node: Node, e: Tensor) -> Tensor:
        """``tr(A C A^T)``, ``(batch,)`` float64, with a graph."""
        if goal.size <= DENSE:
            probes = torch.eye(goal.size, dtype=e.dtype, device=e.device)
        else:
            signs = torch.Generator().manual_seed(0)  # the same probes at every state: a fixed potential
            probes = torch.randint(0, 2, (self.probes, goal.size), generator=signs).to(e) * 2 - 1
            probes = probes / self.probes**0.5
        total = torch.zeros(len(e), dtype=torch.float64, device=e.device)
        for probe in probes:
            v = probe.expand(len(e), -1)
            seen = goal.push(node.mean, node.covariance_times(goal.pull_back(node.mean, v), differentiable=True))
            total = total + (seen.double() * v).sum(1)
        return total
