"""Blackout: counts that die out one by one, and the births that bring them back (Santos et al. 2023).

Each of the ``x0`` units of a count survives to t with probability ``keep(t) = e^(-rate t)``, so ``x_t`` is
Binomial(x0, keep).  A unit is a mask in reverse: given that it is dead at t it was alive at s with probability
``(keep_s - keep_t)/(1 - keep_t)``, so

    x_s | x_t, x0 = x_t + Binomial(x0 - x_t, (keep_s - keep_t)/(1 - keep_t)),

and the free stochasticity lets survivors at t be born again, as in remasking.  Births happen at the rate
``(E[x0 | x_t] - x_t) hide'/hide``: a mean is all that the backward process needs, a law over values makes any step
exact in one dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputTypeError, require
from retrodict.core.noise import Noise
from retrodict.kernels import Categorical, Gaussian, Kernel
from retrodict.kernels.laws import event_sum
from retrodict.processes.discrete import Discrete, Jumps, leading, one_hot_law
from retrodict.processes.process import processes

_LOG_ODDS = 15.0  # beyond these nothing, or everything, has died
BIRTHS = ("poisson", "binomial")


@processes.register("blackout")
class Blackout(Discrete):
    """Pure death of counts 0..levels-1: at t = 1 everything is black.

    Args:
        levels: number of values, 17 for counts 0 to 16.
        births: how a step from a mean alone draws: "poisson" (clipped at the largest count) or "binomial" (of the
            mean, randomly rounded to a whole number); a law over values needs neither.
        schedule, rate: of the surviving share; see `Discrete`.  The default is e^(-15 t).
        mean: mean count, for the law of the few units that are alive at t = 1; None is (levels - 1)/2.

    Source: Santos, Fox, Lubbers and Lin (2023), eqs. (17) to (21), in the clock e^(-15 t).
    """

    state = "count"
    grid = "survival"  # half the error of the published even log odds, see the tests

    def __init__(
        self,
        levels: int = 17,
        births: str = "poisson",
        schedule: str | Sequence[float] = "exponential",
        rate: float = 15.0,
        mean: float | None = None,
    ) -> None:
        require(births in BIRTHS, f"births is one of {', '.join(BIRTHS)}; got {births!r}")
        super().__init__(levels, schedule, rate)
        self.births = births
        self.mean = (levels - 1) / 2 if mean is None else float(mean)
        require(0 < self.mean <= levels - 1, f"mean is a count between 0 and {levels - 1}, got {mean}")

    @property
    def levels(self) -> int:
        """Number of values of a count."""
        return self.vocabulary

    def corrupt(self, x0: Tensor, t: float | Tensor, noise: Noise | Tensor, x1: Tensor | None = None) -> Tensor:
        u = noise if isinstance(noise, Tensor) else noise.uniform(x0.shape[1:])
        return draw_binomial(x0, leading(self.keep(t).to(u.device), x0.ndim), u)

    def kernel(self, s: float | Tensor, t: float | Tensor, x1: Tensor | None = None) -> CountStep:
        keep = self.keep(t) / self.keep(s)
        return CountStep(None, torch.ones_like(keep), keep, self.levels, self.births)

    def bridge(
        self, x_t: Tensor, t: float | Tensor, s: float | Tensor, eta: float, x1: Tensor | None = None
    ) -> CountStep:
        forget, revive = (v.to(x_t.device) for v in self.exchange(t, s, eta))
        return CountStep(x_t, 1 - forget, revive, self.levels, self.births)

    def log_likelihood(self, x_t: Tensor, t: float | Tensor, x1: Tensor | None = None) -> Tensor:
        values = torch.arange(self.levels, device=x_t.device)
        keep, hide = (leading(v.to(x_t.device), x_t.ndim).unsqueeze(-1) for v in (self.keep(t), self.hide(t)))
        return log_binomial(x_t.unsqueeze(-1), values, keep, hide)

    def possible(self, x_t: Tensor, x1: Tensor | None = None) -> Tensor:
        return torch.arange(self.levels, device=x_t.device) >= x_t.unsqueeze(-1)

    def jumps(self, law: Categorical | Tensor, x_t: Tensor, t: float | Tensor, x1: Tensor | None = None) -> Jumps:
        """One more unit, at the rate (mean - x_t) hide'/hide."""
        missing = (mean_count(law) - x_t).clamp_min(0)
        rate = leading(self.revival(t).to(x_t.device), x_t.ndim) * missing
        return Jumps(rate.unsqueeze(-1), (x_t + 1).clamp(max=self.levels - 1).unsqueeze(-1))

    def exit(self, x_t: Tensor, t: float | Tensor, s: float | Tensor, x1: Tensor | None = None) -> Tensor:
        return x_t * leading(self.passed(s, t).to(x_t.device), x_t.ndim)

    def prior_log_p(self) -> Tensor:
        """Poisson with the mean that is left at t = 1, cut at the largest count: no count is impossible, so that
        bounds are finite."""
        alive = torch.tensor(self.mean, dtype=torch.float64) * self.keep(1.0).clamp_min(1e-30)
        return torch.log_softmax(log_poisson(torch.arange(self.levels), alive), -1)

    def prior(self, shape: tuple[int, ...], noise: Noise, x1: Tensor | None = None) -> Tensor:
        alive = self.mean * self.keep(1.0).to(noise.device)
        return draw_poisson(alive.expand(noise.batch, *shape), self.levels - 1, noise.uniform(shape))

    def network_time(self, t: Tensor) -> Tensor:
        """The log odds of death, a quarter of them."""
        return torch.logit(self.hide(t)).clamp(-_LOG_ODDS, _LOG_ODDS) / 4

    def heads(self) -> list[tuple[str, str, int]]:
        return [("data", "poisson", 1)]

    def config(self) -> dict[str, Any]:
        options = {"levels": self.levels, "births": self.births, "schedule": self.schedule}
        return {"name": "blackout", **options, "rate": self.rate, "mean": self.mean}


@dataclass(frozen=True)
class CountStep(Kernel):
    """From x0 to ``Binomial(n, stay) + Binomial(x0 - n, born)``, n the count at t; n = None is 0.

    Args:
        n: ``(batch, *shape)`` counts, or None.
        stay, born: probabilities, numbers or ``(batch,)``.
        levels: number of values; births: how a step from a mean draws, see `Blackout`.
    """

    n: Tensor | None
    stay: Tensor
    born: Tensor
    levels: int
    births: str = "poisson"

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        return noise.uniform((2, *shape))

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        n = torch.zeros_like(x) if self.n is None else self.n
        born, stay = leading(self.born, x.ndim), leading(self.stay, x.ndim)
        return draw_binomial(n, stay, z[:, 0]) + draw_binomial((x - n).clamp_min(0), born, z[:, 1])

    def push(self, law: Any) -> CountLaw:
        """The law of x_s when x0 follows a `Categorical`, or is known by its mean (a point mass at it)."""
        if not isinstance(law, (Categorical, Gaussian)):
            raise InputTypeError(f"a step of counts pushes a law over values or a mean, got {type(law).__name__}")
        like = law.mean if isinstance(law, Gaussian) else law.log_p[..., 0]
        n = torch.zeros(like.shape, dtype=torch.long, device=like.device) if self.n is None else self.n
        born, stay = leading(self.born.to(n.device), n.ndim), leading(self.stay.to(n.device), n.ndim)
        if isinstance(law, Gaussian):
            missing = (mean_count(law.mean) - n).clamp_min(0)
            return CountLaw(n, stay, self.levels, missing=missing, born=born, births=self.births)
        counts = torch.arange(self.levels, device=n.device)
        deaths = _shifted(law.log_p.exp(), n)  # p(x0 = n + m) over m
        table = _binomial_table(self.levels, born)  # (.., m, k): Binomial(k; m, born)
        p = (deaths.unsqueeze(-2) @ table).squeeze(-2)
        total = p.sum(-1, keepdim=True)
        none = (counts == 0).to(p)  # a belief below the count at hand: nothing is born
        return CountLaw(n, stay, self.levels, births_p=torch.where(total > 0, p / total.clamp_min(1e-300), none))

    def log_prob(self, x: Tensor, y: Tensor, event: int | None = None) -> Tensor:
        x, y = torch.broadcast_tensors(x, y)
        if self.n is None:
            keep = leading(self.born.to(y.device), y.ndim)
            return event_sum(log_binomial(y, x, keep, 1 - keep), event)
        law = self.push(one_hot_law(x, self.levels))
        return event_sum(law.log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1), event)


@dataclass(frozen=True)
class CountLaw:
    """The law of survivors plus births, ``(batch, *shape)``; births by a table or from a mean number of dead units.

    Attributes:
        n, stay: survivors are Binomial(n, stay).
        births_p: probabilities of 0, 1, ... births ``(batch, *shape, levels)``; or
        missing, born, births: mean number of dead units, each born again with probability ``born``, drawn as
            ``births`` says.
    """

    n: Tensor
    stay: Tensor
    levels: int
    births_p: Tensor | None = None
    missing: Tensor | None = None
    born: Tensor | None = None
    births: str = "poisson"

    def sample(self, noise: Noise) -> Tensor:
        shape = tuple(self.n.shape[1:])
        alive = self.n if bool((self.stay == 1).all()) else draw_binomial(self.n, self.stay, noise.uniform(shape))
        u = noise.uniform(shape)
        if self.births_p is not None:
            return alive + (u.unsqueeze(-1) >= self.births_p.cumsum(-1)[..., :-1]).sum(-1)
        assert self.missing is not None and self.born is not None
        if self.births == "poisson":
            new = draw_poisson(self.missing * self.born, self.levels - 1, u)
        else:
            whole = (self.missing + noise.uniform(shape)).floor().long()
            new = draw_binomial(whole, self.born, u)
        return (alive + new).clamp(max=self.levels - 1)

    @property
    def log_p(self) -> Tensor:
        """``(batch, *shape, levels)``; sums over survivors and births."""
        counts = torch.arange(self.levels, device=self.n.device)
        if self.births_p is not None:
            births = self.births_p
        else:
            births = self._births_of_mean(counts)
        p = torch.zeros_like(births)
        for alive in range(int(self.n.max()) + 1):
            stay = log_binomial(torch.full_like(self.n, alive), self.n, self.stay, 1 - self.stay).exp()
            moved = births.roll(alive, -1)
            moved = torch.where(counts < alive, 0.0, moved)
            over = births[..., self.levels - alive :].sum(-1) if alive else torch.zeros_like(stay)
            moved = moved + over.unsqueeze(-1) * (counts == self.levels - 1)  # clipped at the largest count
            p = p + stay.unsqueeze(-1) * moved
        return p.log()

    def _births_of_mean(self, counts: Tensor) -> Tensor:
        assert self.missing is not None and self.born is not None
        if self.births == "poisson":
            p = log_poisson(counts, (self.missing * self.born).unsqueeze(-1)).exp()
            return p + (1 - p.sum(-1, keepdim=True)).clamp_min(0) * (counts == self.levels - 1)
        low, share = self.missing.floor(), self.missing - self.missing.floor()
        mixed = torch.zeros((*self.n.shape, self.levels), dtype=torch.float64, device=self.n.device)
        for whole, weight in ((low, 1 - share), (low + 1, share)):
            born = self.born.expand(self.n.shape).unsqueeze(-1)
            mixed = mixed + weight.unsqueeze(-1) * log_binomial(counts, whole.unsqueeze(-1), born, 1 - born).exp()
        return mixed


def mean_count(law: Categorical | Tensor) -> Tensor:
    """Mean of counts ``(batch, *shape)`` float64, from a law over values or the mean itself."""
    if isinstance(law, Tensor):
        return law.double()
    values = torch.arange(law.log_p.shape[-1], dtype=torch.float64, device=law.log_p.device)
    return law.log_p.double().exp() @ values


def log_binomial(k: Tensor, n: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """log Binomial(k; n, p) with q = 1 - p given, so that both may be small; -inf outside 0..n."""
    k, n = k.double(), n.double()
    inside = (k >= 0) & (k <= n)
    safe = torch.where(inside, k, 0.0)
    rest = torch.where(inside, n - safe, 0.0)
    ways = torch.lgamma(rest + safe + 1) - torch.lgamma(safe + 1) - torch.lgamma(rest + 1)
    return torch.where(inside, ways + torch.xlogy(safe, p) + torch.xlogy(rest, q), -torch.inf)


def log_poisson(k: Tensor, mean: Tensor) -> Tensor:
    """log Poisson(k; mean)."""
    k = k.double()
    return torch.xlogy(k, mean) - mean - torch.lgamma(k + 1)


def draw_binomial(n: Tensor, p: Tensor, u: Tensor) -> Tensor:
    """Binomial(n, p) by inversion of one uniform each; one pass a value up to the largest n."""
    p = p.double().expand(n.shape)
    return _inverted(lambda k: log_binomial(torch.full_like(n, k), n, p, 1 - p).exp(), u, int(n.max())).minimum(n)


def draw_poisson(mean: Tensor, top: int, u: Tensor) -> Tensor:
    """Poisson(mean) by inversion of one uniform each, cut at ``top``."""
    return _inverted(lambda k: log_poisson(torch.tensor(k, device=mean.device), mean).exp(), u, top)


def _inverted(pmf: Callable[[int], Tensor], u: Tensor, top: int) -> Tensor:
    drawn = torch.zeros(u.shape, dtype=torch.long, device=u.device)
    cumulative = torch.zeros_like(u)
    for k in range(top):
        cumulative = cumulative + pmf(k)
        above = u >= cumulative
        if not bool(above.any()):
            break
        drawn += above
    return drawn


def _shifted(p: Tensor, n: Tensor) -> Tensor:
    """``p(n + m)`` over m = 0..levels-1, 0 beyond the largest value."""
    levels = p.shape[-1]
    at = n.unsqueeze(-1) + torch.arange(levels, device=p.device)
    return torch.where(at < levels, p.gather(-1, at.clamp(max=levels - 1)), 0.0)


def _binomial_table(levels: int, born: Tensor) -> Tensor:
    """Binomial(k; m, born) as ``(..., m, k)``."""
    counts = torch.arange(levels, device=born.device)
    born = born[..., None, None]
    return log_binomial(counts[None, :], counts[:, None], born, 1 - born).exp()
