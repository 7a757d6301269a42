"""A plan with free coefficients: its normal form, times and all, as a differentiable function of a vector.

Every deterministic plan of K evaluations is, over its start x_T and its outputs D_0 .. D_{K-1},

    x_k = a_k x_T + sum_{j<k} W_kj D_j,       D_k = D(x_k, t_k),       x_K the result.

Free are

    state    a_k and W_kj of the inner states: what the denoiser is shown
    time     t_k, what it is told, as gaps of the angle atan(sigma/alpha) on the way down, so that they stay in order
    result   the differences of weights of the last row

The last row keeps ``a_K = sigma_K / sigma_T`` and ``sum_j W_Kj = alpha_K - alpha_T a_K``: a constant denoiser is
integrated exactly whatever the parameters are.  The zero vector is the plan that it was made from; one that misses
this identity has the defect put on its last output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from retrodict.core.errors import InputError, require
from retrodict.processes import GaussianPath
from retrodict.solvers.plan import Eval, Instruction, Plan, Row

#: Share of the first angle; nearer to pure noise than that networks clip what they are told.
_NUDGE = 0.02

#: ``(x, t) -> posterior mean`` with conditions and guidance inside; t a number or a tensor without axes.
Mean = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Coefficients:
    """A plan in numbers, float64: ``a (K,)`` and ``weights (K, K)`` of states 1..K, lower triangular with the diagonal,
    and the times ``(K,)`` that the denoiser is told."""

    a: Tensor
    weights: Tensor
    times: Tensor


class Free:
    """The plans around one plan.

    Args:
        plan: deterministic, on a scalar Gaussian path with one end, its times falling.

    Attributes:
        names: what each parameter moves, "state", "time" or "result".

    Raises:
        InputError: a plan that has no normal form, draws noise, or runs upward in time.
    """

    def __init__(self, plan: Plan) -> None:
        _check(plan)
        form = plan.normal_form()
        self.plan, self.nfe = plan, form.nfe
        self.path: GaussianPath = plan.process  # type: ignore[assignment]
        K = self.nfe
        rows = torch.from_numpy(form.inputs[1:])
        self._a, self._inner = rows[:, 0], rows[:, 1 : 1 + K]
        self._told = torch.from_numpy(form.times.copy())
        self._start = self._angle(self._told[:1])
        end_alpha, end_sigma = self._end()
        self._stop = torch.atan2(end_sigma, end_alpha)
        self._gaps = -torch.cat([self._angle(self._told), self._stop]).diff()
        alpha_T, sigma_T = self._level(self._told[:1])
        self._last_a = end_sigma / sigma_T
        last = torch.from_numpy(form.output[1 : 1 + K].copy())
        last[-1] += float(end_alpha - alpha_T * self._last_a - last.sum())
        self._last = last
        self._sizes = [K - 1, K * (K - 1) // 2, K, K - 1]
        self.names = ["state"] * sum(self._sizes[:2]) + ["time"] * K + ["result"] * (K - 1)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(self.names)

    def zero(self) -> Tensor:
        """The parameters of the plan itself."""
        return torch.zeros(self.size, dtype=torch.float64)

    def nudged(self) -> Tensor:
        """Parameters to descend from: as the plan, but told a first time of which networks see the derivative."""
        p = self.zero()
        p[sum(self._sizes[:2])] = -_NUDGE
        return p

    def coefficients(self, p: Tensor) -> Coefficients:
        """Differentiable coefficients at parameters ``p (size,)``."""
        K = self.nfe
        a, inner, time, result = p.split(self._sizes)
        i, j = torch.tril_indices(K - 1, K - 1)
        moves = torch.zeros(K - 1, K, dtype=p.dtype).index_put((i, j), inner)
        differences = torch.cat([result, result.new_zeros(1)]) - torch.cat([result.new_zeros(1), result])
        weights = torch.cat([self._inner + moves, (self._last + differences)[None]])
        return Coefficients(torch.cat([self._a + a, self._last_a]), weights, self._times(time))

    def to_plan(self, p: Tensor, meta: dict[str, Any]) -> Plan:
        """The plan at parameters p, one row a state; ``meta`` are its facts."""
        c = self.coefficients(p.detach())
        told, end = c.times.tolist(), self.plan.times[-1]
        alpha, sigma = (v.tolist() for v in self._level(c.times))
        code: list[Instruction] = []
        for k, t in enumerate(told):
            code.append(Eval(k, k, t, alpha[k], sigma[k]))
            x = {0: float(c.a[k])} if float(c.a[k]) != 0 else {}
            d = {j: float(w) for j, w in enumerate(c.weights[k, : k + 1])}
            code.append(Row(k + 1, x, d, t=told[k + 1] if k + 1 < self.nfe else end))
        # the start of a run is the plan's, even where the denoiser is told an earlier time there
        times = [self.plan.times[0], *_falling(told[1:], self.plan.times[0]), end]
        facts = {"eta": 0.0, "end": self.plan.meta.get("end"), "order": None, "generated": False}
        return Plan(tuple(code), self.nfe, tuple(times), self.path, {**facts, **meta})

    # -- parts ------------------------------------------------------------------------------------------------

    def _times(self, p: Tensor) -> Tensor:
        """Times whose angles fall from the start by gaps in proportion to the plan's own times ``exp(p)``; the first
        may be told to be earlier than it is."""
        gaps = self._gaps * torch.cat([p[1:], p.new_zeros(1)]).exp()
        falls = gaps.cumsum(0)[:-1] / gaps.sum() * (self._start - self._stop)
        angles = torch.cat([torch.minimum(self._start * p[:1].exp(), self._start), self._start - falls])
        return self._time_at(angles)

    def _time_at(self, angle: Tensor) -> Tensor:
        """Times at angles: numbers by the path, derivatives by its rates; the plan's own where nothing moved."""
        at = angle.detach()
        found = self.path.time_at(-at.tan().log())
        found = torch.where((at - self._angle(self._told)).abs() < 1e-12, self._told, found)
        alpha, sigma = self._level(found)
        d_alpha, _, d_sigma = self.path.rates(found.clamp(max=1 - 1e-9))
        slope = (d_sigma * alpha - d_alpha * sigma) / (alpha**2 + sigma**2)
        return found + (angle - at) / slope.clamp_min(1e-6)

    def _end(self) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` of the result."""
        last = torch.tensor(self.plan.times[-1:], dtype=torch.float64)
        alpha, sigma = self._level(last)
        clean = self.plan.meta.get("end") is None and float(last) == 0
        return alpha, torch.zeros_like(sigma) if clean else sigma

    def _level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at times, with a signal that is rounding alone taken as none."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        return torch.where(alpha < 1e-12 * sigma, 0.0, alpha), sigma

    def _angle(self, t: Tensor) -> Tensor:
        return torch.atan2(self.path.sigma(t), self.path.alpha(t))


def run(mean: Mean, c: Coefficients, start: Tensor, *, save_memory: bool = False) -> Tensor:
    """The result of a plan from its start; differentiable in the coefficients.

    Args:
        save_memory: keep no activations of an evaluation but compute it again on the way back.
    """
    outputs: list[Tensor] = []
    x = start
    a, weights, again = c.a.to(start), c.weights.to(start), save_memory and torch.is_grad_enabled()
    for k, t in enumerate(c.times):
        outputs.append(checkpoint(mean, x, t, use_reentrant=False) if again else mean(x, t))  # type: ignore[arg-type]
        x = start * a[k]
        for weight, output in zip(weights[k], outputs):
            x = x + output * weight
    return x


def _falling(times: list[float], below: float) -> list[float]:
    """Times that fall, for people and for the pipelines' clocks."""
    falling = []
    for t in times:
        below = min(t, math.nextafter(below, 0.0))
        falling.append(below)
    return falling


def _check(plan: Plan) -> None:
    path = plan.process
    if not isinstance(path, GaussianPath) or not path.scalar or len(path.ends) != 1:
        raise InputError(f"free coefficients need a scalar Gaussian path with one end, got {type(path).__name__}")
    require(plan.noises == 0, f"free coefficients need a plan that draws no noise; this one draws {plan.noises}")
    if not plan.code or not isinstance(plan.code[0], Eval):
        raise InputError("free coefficients need a plan that evaluates its start first")
    times = plan.normal_form().times
    if not all(a > b for a, b in zip(times, [*times[1:], plan.times[-1] - 1e-9])):
        raise InputError("free coefficients need evaluations at falling times, such as a multistep solver's")
