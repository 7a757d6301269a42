"""Jump processes on finitely many values, each coordinate on its own: any generator, run by a clock.

``x_t`` follows the row of x0 in ``P_t = exp(theta(t) Q)``, with the clock ``theta(t) = -log keep(t) / gap`` chosen so
that the slowest mode of Q survives with probability keep(t).  `FiniteJump` takes any generator, as a table; `Uniform`
is the one that replaces a value by a uniform one, in O(values) instead of their square.  With two values and the
linear schedule it is the binomial chain of Sohl-Dickstein et al. (2015), whose level k of T sits at t = k/T.

The bridge is Bayes' rule over the two stretches 0 to s and s to t,

    q(x_s | x_t, x0 = v) = P_{s,t}[x_s, x_t] P_s[v, x_s] / P_t[v, x_t],

and its free stochasticity mixes in the share eta of a fresh draw from ``P_s[v, .]``, which has the same marginal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.kernels import Categorical, Finite, Kernel
from retrodict.kernels.laws import event_sum
from retrodict.processes.discrete import (
    Discrete,
    Jumps,
    check_eta,
    invert,
    leading,
    one_hot_law,
    require_categorical,
)
from retrodict.processes.gaussian import as_time
from retrodict.processes.process import processes

_LONG = 60.0  # relaxation times after which nothing of a start is left in float64
_CACHED = 4096  # transition matrices kept


class Jumping(Discrete):
    """A jump process by four functions of a coordinate; `FiniteJump` has them as tables, `Uniform` in closed form.

    ``w`` and the results have a trailing axis of values; times are numbers or ``(batch,)``.
    """

    def spread(self, w: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
        """``sum_v w(v) P_{s,t}[v, y]``."""
        raise NotImplementedError

    def column(self, x: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
        """``P_{s,t}[y, x]`` for every y."""
        raise NotImplementedError

    def inflow(self, x: Tensor) -> Tensor:
        """``Q[y, x]`` for every y other than x, 0 at x: rates per unit of the clock."""
        raise NotImplementedError

    def outflow(self, x: Tensor) -> Tensor:
        """``-Q[x, x]``."""
        raise NotImplementedError

    #: Units of the clock of Q in one unit of ``-log keep``.
    relaxation: float = 1.0

    def corrupt(self, x0: Tensor, t: float | Tensor, noise: Noise | Tensor, x1: Tensor | None = None) -> Tensor:
        u = noise if isinstance(noise, Tensor) else noise.uniform(x0.shape[1:])
        return invert(self.spread(_point(x0, self.classes), 0.0, t), u)

    def log_likelihood(self, x_t: Tensor, t: float | Tensor, x1: Tensor | None = None) -> Tensor:
        return self.column(x_t, 0.0, t).log()

    def bridge(
        self, x_t: Tensor, t: float | Tensor, s: float | Tensor, eta: float, x1: Tensor | None = None
    ) -> JumpBridge:
        check_eta(eta)
        return JumpBridge(self, x_t, t, s, eta)

    def jumps(self, law: Categorical | Tensor, x_t: Tensor, t: float | Tensor, x1: Tensor | None = None) -> Jumps:
        assert isinstance(law, Categorical)
        ratio = self.spread(_divided(law, self.column(x_t, 0.0, t)), 0.0, t)  # sum_v p(v) q_t(y|v) / q_t(x|v)
        speed = leading((self.hazard(t) * self.relaxation).to(x_t.device), x_t.ndim).unsqueeze(-1)
        rate = speed * self.inflow(x_t) * ratio
        return Jumps(rate, torch.arange(self.classes, device=x_t.device).expand_as(rate))

    def exit(self, x_t: Tensor, t: float | Tensor, s: float | Tensor, x1: Tensor | None = None) -> Tensor:
        passed = leading((self.passed(s, t) * self.relaxation).to(x_t.device), x_t.ndim)
        return self.outflow(x_t) * passed

    def prior(self, shape: tuple[int, ...], noise: Noise, x1: Tensor | None = None) -> Tensor:
        law = self.prior_log_p().to(noise.device).exp().expand(noise.batch, *shape, -1)
        return invert(law, noise.uniform(shape))


@dataclass(frozen=True)
class JumpBridge(Kernel):
    """From x0 to x_s given x_t: Bayes' rule, with the share eta of fresh draws (module docstring)."""

    process: Jumping
    x_t: Tensor
    t: float | Tensor
    s: float | Tensor
    eta: float

    def push(self, law: Categorical) -> Categorical:
        law = require_categorical(law, self)
        process, x_t = self.process, self.x_t
        weight = _divided(law, process.column(x_t, 0.0, self.t))
        p = process.column(x_t, self.s, self.t) * process.spread(weight, 0.0, self.s)
        total = p.sum(-1, keepdim=True)
        # a belief that rules out every value that can lead to x_t says nothing: any law will do
        p = torch.where(total > 0, p / total.clamp_min(1e-300), 1 / process.classes)
        if self.eta > 0:
            p = (1 - self.eta) * p + self.eta * process.spread(law.log_p.exp(), 0.0, self.s)
        return Categorical(p.log())

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        return noise.uniform(shape)

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        return invert(self.push(one_hot_law(x, self.process.classes)).log_p.exp(), z)

    def log_prob(self, x: Tensor, y: Tensor, event: int | None = None) -> Tensor:
        law = self.push(one_hot_law(x, self.process.classes))
        return law.log_prob(y, event)


@dataclass(frozen=True)
class Renewal(Kernel):
    """Keep x with probability ``u``, otherwise become a uniform value: O(values), where a table has their square."""

    u: Tensor
    classes: int

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        return noise.uniform(shape)

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        u = leading(self.u.to(z.device), z.ndim)
        fresh = ((z - u) / (1 - u).clamp_min(1e-300) * self.classes).long().clamp(0, self.classes - 1)
        return torch.where(z < u, x, fresh)

    def log_prob(self, x: Tensor, y: Tensor, event: int | None = None) -> Tensor:
        u = leading(self.u.to(y.device), max(x.ndim, y.ndim))
        return event_sum((u * (x == y) + (1 - u) / self.classes).log(), event)

    def push(self, law: Categorical) -> Categorical:
        p = require_categorical(law, self).log_p.exp()
        u = leading(self.u.to(p.device), p.ndim)
        return Categorical((u * p + (1 - u) / self.classes).log())


@processes.register("uniform")
class Uniform(Jumping):
    """A value is replaced by a uniform one; ``x_t = x0`` with probability ``keep + hide/vocabulary``.

    Args:
        vocabulary: number of values; states are integers 0..vocabulary-1.
        schedule, rate: of the share that was never replaced; see `Discrete`.

    Source: Austin et al. (2021, appendix A.2.1), in continuous time.
    """

    def __init__(self, vocabulary: int = 2, schedule: str | Sequence[float] = "linear", rate: float = 15.0) -> None:
        super().__init__(vocabulary, schedule, rate)

    def kernel(self, s: float | Tensor, t: float | Tensor, x1: Tensor | None = None) -> Renewal:
        return Renewal(self.keep(t) / self.keep(s), self.classes)

    def _shares(self, like: Tensor, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of no replacement from s to t and of some, against ``like``; the second accurate when small."""
        keep_s = self.keep(s)
        keep, hide = self.keep(t) / keep_s, (self.hide(t) - self.hide(s)) / keep_s
        return leading(keep.to(like.device), like.ndim), leading(hide.to(like.device), like.ndim)

    def spread(self, w: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
        keep, hide = self._shares(w, s, t)
        return keep * w + hide / self.classes * w.sum(-1, keepdim=True)

    def column(self, x: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
        keep, hide = self._shares(x, s, t)
        return keep.unsqueeze(-1) * _point(x, self.classes) + (hide / self.classes).unsqueeze(-1)

    def inflow(self, x: Tensor) -> Tensor:
        return (1 - _point(x, self.classes)) / self.classes

    def outflow(self, x: Tensor) -> Tensor:
        return torch.full(x.shape, 1 - 1 / self.classes, dtype=torch.float64, device=x.device)

    def prior_log_p(self) -> Tensor:
        return torch.full((self.classes,), -np.log(self.classes), dtype=torch.float64)

    def config(self) -> dict[str, Any]:
        options = {"vocabulary": self.vocabulary, "schedule": self.schedule, "rate": self.rate}
        return {"name": "uniform", **options}


@processes.register("finite-jump")
class FiniteJump(Jumping):
    """A jump process with any generator, its transition matrices exact.

    Args:
        rates: generator Q ``(S, S)``: ``Q[x, y] >= 0`` is the rate from x to y, rows sum to zero.  It must forget its
            start: one closed class of states.
        schedule, rate: of the slowest mode's survival; see `Discrete`.

    >>> import torch
    >>> Q = birth_death([1.0, 0.5], [2.0, 1.0])
    >>> bool((FiniteJump(Q).kernel(0, 0.5).log_p.exp().sum(-1) - 1).abs().max() < 1e-12)
    True
    """

    def __init__(self, rates: Any = None, schedule: str | Sequence[float] = "linear", rate: float = 15.0) -> None:
        Q = torch.as_tensor([[-1.0, 1.0], [1.0, -1.0]] if rates is None else rates, dtype=torch.float64).cpu()
        check_generator(Q)
        super().__init__(len(Q), schedule, rate)
        self.Q = Q
        gap, self._stationary = _relaxed(Q)
        self.relaxation = 1 / gap
        self._modes = _symmetric_modes(Q, self._stationary)
        self._tables: dict[tuple[float, float], Tensor] = {}

    def transition(self, s: float | Tensor, t: float | Tensor) -> Tensor:
        """``P_{s,t}``, ``(S, S)`` or ``(batch, S, S)``; kept for times that are numbers."""
        if isinstance(s, Tensor) or isinstance(t, Tensor):
            return self._exponential(self.passed(as_time(s), as_time(t)))
        key = (float(s), float(t))
        if key not in self._tables:
            if len(self._tables) >= _CACHED:
                self._tables.clear()
            self._tables[key] = self._exponential(self.passed(*key))
        return self._tables[key]

    def _exponential(self, passed: Tensor) -> Tensor:
        """``exp(passed / gap Q)``, infinite times included."""
        theta = self.relaxation * passed.clamp(max=_LONG).to("cpu")[..., None, None]
        if self._modes is None:
            table = torch.linalg.matrix_exp(theta * self.Q)
        else:
            values, left, right = self._modes
            table = left @ (torch.exp(theta * values[:, None]) * right)
        table = table.clamp_min(0)
        return (table / table.sum(-1, keepdim=True)).to(passed.device)

    def kernel(self, s: float | Tensor, t: float | Tensor, x1: Tensor | None = None) -> Finite:
        table = self.transition(s, t).log()
        return Finite(table if table.ndim == 2 else table.unsqueeze(1))  # states (batch, L)

    def spread(self, w: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
        table = self.transition(s, t).to(w.device)
        flat = w.reshape(len(w), -1, w.shape[-1])
        return (flat @ table).reshape(w.shape)

    def column(self, x: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
        columns = self.transition(s, t).to(x.device).mT
        if columns.ndim == 2:
            return columns[x]
        sample = torch.arange(len(x), device=x.device).unsqueeze(1)
        return columns[sample, x.reshape(len(x), -1)].reshape(*x.shape, -1)

    def inflow(self, x: Tensor) -> Tensor:
        return self.Q.clamp_min(0).mT.to(x.device)[x]

    def outflow(self, x: Tensor) -> Tensor:
        return -self.Q.diagonal().to(x.device)[x]

    def prior_log_p(self) -> Tensor:
        return self._stationary.log()

    def possible(self, x_t: Tensor, x1: Tensor | None = None) -> Tensor | None:
        reachable = torch.linalg.matrix_exp(self.Q * self.relaxation) > 1e-14
        return None if bool(reachable.all()) else reachable.mT.to(x_t.device)[x_t]

    def config(self) -> dict[str, Any]:
        return {"name": "finite-jump", "rates": self.Q.tolist(), "schedule": self.schedule, "rate": self.rate}


def birth_death(birth: Any, death: Any) -> Tensor:
    """Generator ``(S, S)`` of a birth-death process on 0..S-1.

    Args:
        birth: rates ``(S-1,)`` from n to n+1, n = 0..S-2; death: from n to n-1, n = 1..S-1.
    """
    up, down = (torch.as_tensor(v, dtype=torch.float64) for v in (birth, death))
    if up.ndim != 1 or up.shape != down.shape or len(up) == 0:
        raise InputError(
            f"births and deaths are S - 1 rates each, from n to n+1 and from n+1 to n; got {tuple(up.shape)} "
            f"and {tuple(down.shape)}"
        )
    Q = torch.diag(up, 1) + torch.diag(down, -1)
    return Q - torch.diag(Q.sum(1))


def check_generator(Q: Tensor) -> None:
    """Raise unless Q is a generator: square, rates not negative, rows that sum to zero."""
    if Q.ndim != 2 or Q.shape[0] != Q.shape[1] or len(Q) < 2:
        raise InputError(f"rates are a square matrix (S, S) with S at least 2, got {tuple(Q.shape)}")
    if not bool(torch.isfinite(Q).all()):
        raise InputError("rates are finite numbers; got NaN or infinity")
    off = Q - torch.diag(Q.diagonal())
    if bool((off < 0).any()):
        x, y = (int(i) for i in (off < 0).nonzero()[0])
        raise InputError(f"the rate from {x} to {y} is {float(Q[x, y]):g}; rates between two values are not negative")
    sums = Q.sum(1)
    worst = int(sums.abs().argmax())
    if float(sums[worst].abs()) > 1e-9 * max(1.0, float(Q.abs().max())):
        raise InputError(
            f"row {worst} of the rates sums to {float(sums[worst]):g} and not to 0: the diagonal is minus the sum "
            "of the other rates of its row (Q[x, y] is the rate from x to y)"
        )


def _relaxed(Q: Tensor) -> tuple[float, Tensor]:
    """``(spectral gap, stationary law)``; raises where the start is never forgotten."""
    values = np.linalg.eigvals(Q.numpy())
    size = max(1e-12, float(np.abs(values).max()))
    if int((np.abs(values) < 1e-10 * size).sum()) != 1:
        raise InputError(
            "this jump process never forgets its start: it has several classes of states that are not left (or no "
            "rates at all); add rates between them"
        )
    gap = float(np.sort(-values.real)[1])
    equations = np.vstack([Q.numpy().T, np.ones(len(Q))])
    law = np.linalg.lstsq(equations, np.append(np.zeros(len(Q)), 1.0), rcond=None)[0].clip(0)
    law[law < 1e-14] = 0.0
    return gap, torch.from_numpy(law / law.sum())


def _symmetric_modes(Q: Tensor, stationary: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """``(values, left, right)`` with ``Q = left diag(values) right``, for reversible Q; None for others.

    In detailed balance ``D^(1/2) Q D^(-1/2)`` is symmetric, D the stationary law, and its modes are orthogonal.
    """
    flux = stationary[:, None] * Q
    if float(stationary.min()) < 1e-8 or not torch.allclose(flux, flux.T, rtol=1e-10, atol=1e-14):
        return None
    root = stationary.sqrt()
    values, modes = torch.linalg.eigh(root[:, None] * Q / root)
    return values.clamp(max=0), modes / root[:, None], modes.T * root


def _point(x: Tensor, classes: int) -> Tensor:
    return torch.nn.functional.one_hot(x, classes).double()


def _divided(law: Categorical, likelihood: Tensor) -> Tensor:
    """p(v) / q_t(x|v), 0 where p is."""
    p = law.log_p.exp()
    return torch.where((p > 0) & (likelihood > 0), p / likelihood.clamp_min(1e-300), 0.0)
