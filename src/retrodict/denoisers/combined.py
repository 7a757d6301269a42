"""Denoisers made of denoisers: products, annealing, guidance, thresholding.

A product of experts ``q_1^w_1 ... q_m^w_m`` with total weight ``W = sum w_i > 0`` is sampled by any plan on

    D = sum_i w_i D_i / W,       variance of the prior and of fresh noise times 1/W,

with the log-weight (a Feynman-Kac corrector: Skreta et al. 2025, in a form free of the parameterisation)

    d log w = -1/2 d SNR [ sum_{i<j} w_i w_j |D_i - D_j|^2 / W + (1 - 1/W) sum_i w_i tr Cov_i(x0 | x_t) ].

Classifier-free guidance is the product of the unconditional denoiser to the power 1 - w and the conditional to
the power w; annealing is one expert with W = beta.  Of discrete states the class posteriors are multiplied, one
coordinate at a time; their weights are in `retrodict.denoisers.discrete_weights`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import discrete_weights
from retrodict.denoisers.denoiser import Denoiser, Step, batch_time
from retrodict.denoisers.wrapped import over_batch, repeat_null
from retrodict.kernels import Belief
from retrodict.kernels.laws import event_size, event_sum
from retrodict.processes import Discrete, GaussianPath, Process


class Bound(Denoiser):
    """A denoiser with some of its conditions fixed: ``Bound(d, label=None)`` is unconditional."""

    def __init__(self, denoiser: Denoiser, **fixed: Any) -> None:
        denoiser.check_condition(fixed)
        free = {k: v for k, v in denoiser.conditions.items() if k not in fixed}
        super().__init__(denoiser.process, denoiser.shape, free)
        self.denoiser, self.fixed, self.scale = denoiser, fixed, denoiser.scale
        self.temperature, self.weighted = denoiser.temperature, denoiser.weighted

    @property
    def timeless(self) -> bool:
        return self.denoiser.timeless

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        # conditions that only a sibling expert uses are not passed on
        return self.denoiser.belief(x, t, **{k: v for k, v in condition.items() if k in self.conditions}, **self.fixed)

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        return self.denoiser(x, t, **{k: v for k, v in condition.items() if k in self.conditions}, **self.fixed)

    def increment(self, step: Step) -> Tensor:
        return self.denoiser.increment(step)

    def final(self, step: Step) -> Tensor:
        return self.denoiser.final(step)


class Product(Denoiser):
    """The product of experts ``prod_i q_i^w_i`` (module docstring).

    Args:
        denoisers: experts on one process.
        weights: exponents w_i with a positive sum (default: all one).
    """

    weighted = True

    def __init__(self, denoisers: Sequence[Denoiser], weights: Sequence[float] | None = None) -> None:
        if not denoisers:
            raise InputError("a product needs at least one denoiser")
        first = denoisers[0]
        conditions: dict[str, Any] = {}
        for d in denoisers:
            conditions |= d.conditions
            if not same_process(d.process, first.process):
                raise InputError(f"experts share one process; got {first.process!r} and {d.process!r}")
        super().__init__(first.process, first.shape, conditions)
        self.experts: Any = torch.nn.ModuleList(denoisers)
        self.scale = first.scale
        self.weights = [1.0] * len(denoisers) if weights is None else [float(w) for w in weights]
        if len(self.weights) != len(denoisers):
            raise InputError(f"{len(denoisers)} denoisers need as many weights, got {len(self.weights)}")
        self.total = sum(self.weights)
        if self.total <= 0:
            raise InputError(f"the weights of a product sum to a positive number, got {self.total}")
        self.temperature = 1.0 if isinstance(first.process, Discrete) else 1.0 / self.total

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        believe = self._with_trace if self.total != 1 and isinstance(self.process, GaussianPath) else self._plainly
        parts = [(w, believe(d, x, t, **self._own(d, condition))) for w, d in zip(self.weights, self.experts)]
        if isinstance(self.process, Discrete):
            law, _ = discrete_weights.product_law(parts)
            return Belief(law.log_p.exp(), law=law, x1=parts[0][1].x1, parts=parts)
        mean: Any = sum(w * part.mean for w, part in parts)
        return Belief(mean / self.total, parts=parts)

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        if isinstance(self.process, Discrete):
            return self.belief(x, t, **condition).mean
        mean: Any = sum(w * d(x, t, **self._own(d, condition)) for w, d in zip(self.weights, self.experts))
        return mean / self.total

    @staticmethod
    def _own(denoiser: Denoiser, condition: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in condition.items() if k in denoiser.conditions or k == "x1"}

    @property
    def timeless(self) -> bool:
        return all(d.timeless for d in self.experts)

    def rate(self, belief: Belief) -> Tensor:
        """The bracket of the weight at one node, ``(batch,)`` float64: d log w = -1/2 d SNR times it."""
        parts = belief.parts
        rate = torch.zeros(belief.mean.shape[0], dtype=torch.float64, device=belief.mean.device)
        for i, (wi, a) in enumerate(parts):
            for wj, b in parts[i + 1 :]:
                rate = rate + wi * wj / self.total * event_sum((a.mean - b.mean).double() ** 2)
        if self.total != 1:
            for w, part in parts:
                rate = rate + (1 - 1 / self.total) * w * part.covariance().trace(event_size(part.mean)).double()
        return rate

    @staticmethod
    def _plainly(denoiser: Denoiser, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        return denoiser.belief(x, t, **condition)

    @staticmethod
    def _with_trace(denoiser: Denoiser, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        """A belief whose covariance has a known trace: its own, or that of ``(sigma^2/alpha) dD/dx`` by one probe.

        The probe's signs are the same for every state of a batch (Hutchinson 1989); the estimate is exact where the
        covariance is diagonal.
        """
        path: Any = denoiser.process
        with torch.enable_grad():
            seen = x.detach().requires_grad_(True)
            belief = denoiser.belief(seen, t, **condition)
            if belief.cov is not None:
                own = belief.covariance()
                return replace(belief, mean=belief.mean.detach(), cov=Lin(own.value.detach(), own.kind, own.event))
            key = round(float(torch.as_tensor(t).max()) * 1e9)
            u = KeyedNoise(key, 1, device=x.device).uniform(tuple(x.shape[1:]))
            probe = torch.where(u < 0.5, -1.0, 1.0).to(belief.mean).expand_as(belief.mean)
            (product,) = torch.autograd.grad(belief.mean, seen, probe)
        time = batch_time(t, x)
        trace = event_sum(product.double() * probe) * path.sigma(time) ** 2 / path.alpha(time).clamp_min(1e-12)
        return replace(belief, mean=belief.mean.detach(), cov=Lin.scalar(trace / event_size(x)))

    def start_weight(self, belief: Belief) -> Tensor:
        if isinstance(self.process, Discrete):
            return discrete_weights.start_weight(self.process, belief, self.total)
        return super().start_weight(belief)

    def increment(self, step: Step) -> Tensor:
        if isinstance(self.process, Discrete):
            return discrete_weights.increment(self.process, step, self.total)
        now = step.now
        assert now is not None
        if self.total == 1 and step.stochastic:  # exact for the ancestral kernel at any step size
            rate = self.rate(step.prev)
        else:
            rate = (self.rate(step.prev) + self.rate(now)) / 2
        return -0.5 * (step.snr_s - step.snr_t) * rate

    def final(self, step: Step) -> Tensor:
        if isinstance(self.process, Discrete):
            return discrete_weights.increment(self.process, step, self.total)
        if step.snr_s == float("inf"):  # at the clean end the experts agree: no weight
            return torch.zeros(step.x.shape[0], dtype=torch.float64, device=step.x.device)
        return -0.5 * (step.snr_s - step.snr_t) * self.rate(step.prev)


def same_process(a: Process, b: Process) -> bool:
    """Whether two processes are one: the same object, or equal configurations."""
    return a is b or (a.can_save and b.can_save and a.config() == b.config())


class Anneal(Product):
    """The law of a denoiser to the power ``beta``."""

    def __init__(self, denoiser: Denoiser, beta: float) -> None:
        super().__init__([denoiser], [beta])


class Guided(Product):
    """Classifier-free guidance: ``(1 - w)`` times the null-conditioned plus ``w`` times the conditioned denoiser.

    Args:
        scale: w; 1 is plainly conditional, 0 unconditional.
        interval: guide only where ``low < sigma/alpha <= high``, and be plainly conditional elsewhere, at the cost of
            one pass (Kynkaanniemi et al. 2024).
        rescale: share phi in [0, 1] to which the guided mean gets the standard deviation that the conditional one has
            over each sample (Lin et al. 2023, section 3.4); published: 0.7.
        negative: values of conditions to move away from, in place of the null ones.

    With an interval or a rescaling the law is no product any more: it carries no weights, and samples say
    ``correction == "none"``.  Source: Ho and Salimans (2022), eq. (6), with scale = 1 + their w.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        negative: dict[str, Any] | None = None,
    ) -> None:
        nulls = {name: null for name, null in denoiser.conditions.items() if null is not None}
        denoiser.check_condition(negative or {})
        against = nulls | (negative or {})
        if not against:
            raise InputError("guidance needs a denoiser with a condition that has a null value; this one has none")
        super().__init__([Bound(denoiser, **against), denoiser], [1 - scale, scale])
        self.guidance, self._nulls, self._against = float(scale), nulls, against
        self.interval, self.rescale = interval, float(rescale)
        self.conditions = denoiser.conditions
        if interval is not None and not (len(interval) == 2 and 0 <= interval[0] < interval[1]):
            raise InputError(f"an interval is (low, high) of sigma/alpha with 0 <= low < high, got {interval}")
        if not 0 <= rescale <= 1:
            raise InputError(f"rescale is a share between 0 and 1, got {rescale}")
        if (interval is not None or rescale > 0) and not isinstance(self.process, GaussianPath):
            raise InputError(f"intervals and rescaling are for real states, not those of {type(self.process).__name__}")
        self.heuristic = interval is not None or rescale > 0
        self.weighted = not self.heuristic

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        return Belief(self(x, t, **condition)) if self.heuristic else super().belief(x, t, **condition)

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        """Both passes as one doubled batch: the same numbers as two calls, in fewer operations."""
        if isinstance(self.process, Discrete):
            return self.belief(x, t, **condition).mean
        inside = self._inside(t)
        if not bool(inside.any()):
            return self.experts[1](x, t, **condition)
        doubled = {}
        for name, against in self._against.items():
            rows = repeat_null(against, len(x), x.device)
            rest = repeat_null(self._nulls[name], len(x), x.device) if name in self._nulls else rows
            value = over_batch(condition[name], len(x), x.device) if condition.get(name) is not None else rest
            doubled[name] = torch.cat([rows.to(value), value])
        rest = {
            k: torch.cat([v, v]) if isinstance(v, Tensor) and v.ndim and len(v) == len(x) else v
            for k, v in condition.items()
            if k not in doubled
        }
        t2 = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        away, mean = self.experts[1](torch.cat([x, x]), t2, **doubled, **rest).chunk(2)
        out = torch.lerp(away, mean, self.guidance)
        if self.rescale > 0:
            spread = [v.flatten(1).std(1, correction=0).reshape(-1, *(1,) * (x.ndim - 1)) for v in (mean, out)]
            out = torch.lerp(out, out * spread[0] / spread[1].clamp_min(1e-12), self.rescale)
        return out if bool(inside.all()) else torch.where(inside.reshape(-1, *(1,) * (x.ndim - 1)), out, mean)

    def _inside(self, t: float | Tensor) -> Tensor:
        """Where guidance acts."""
        if self.interval is None:
            return torch.ones(1, dtype=torch.bool)
        path: Any = self.process
        time = torch.as_tensor(t, dtype=torch.float64)
        level = path.sigma(time) / path.alpha(time)
        return (level > self.interval[0]) & (level <= self.interval[1])


class Thresholded(Denoiser):
    """Clip the posterior mean, so that every plan sees a consistent noise estimate.

    Args:
        low, high: static bounds; or ``quantile`` in (0, 1): dynamic thresholding (Saharia et al. 2022), which
            clips each sample at its own quantile of |x0| (at least 1) and divides by it.
    """

    def __init__(self, denoiser: Denoiser, low: float = -1.0, high: float = 1.0, quantile: float | None = None) -> None:
        super().__init__(denoiser.process, denoiser.shape, denoiser.conditions)
        if quantile is not None and not 0 < quantile < 1:
            raise InputError(f"a quantile is between 0 and 1, got {quantile}")
        if quantile is None and not low < high:
            raise InputError(f"bounds need low < high, got {low} and {high}")
        self.denoiser, self.low, self.high, self.quantile = denoiser, low, high, quantile
        self.temperature, self.weighted, self.scale = denoiser.temperature, denoiser.weighted, denoiser.scale

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        mean = self.denoiser(x, t, **condition)
        if self.quantile is None:
            return mean.clamp(self.low, self.high)
        bound = torch.quantile(mean.flatten(1).abs().float(), self.quantile, dim=1).clamp_min(1).to(mean.dtype)
        bound = bound.reshape(-1, *(1,) * (mean.ndim - 1))
        return mean.clamp(-bound, bound) / bound

    def increment(self, step: Step) -> Tensor:
        return self.denoiser.increment(step)

    def final(self, step: Step) -> Tensor:
        return self.denoiser.final(step)
