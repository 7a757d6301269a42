"""A reward on clean states as a potential: ``l(x0) = strength * fn(x0)``, black box or with gradient.

The target is ``p(x0) exp l(x0)``.  On the way ``log h_t(x) = log E[exp l(x0) | x_t = x]`` is approximated by one of

=========  =====================================  ===========================================================
value      log h_t(x)                             source
=========  =====================================  ===========================================================
"mean"     l(D(x, t)), D the posterior mean;      posterior-mean soft values (Li et al. 2024, "SVDD-PM");
           of tokens the likeliest of each        twisted samplers (Wu et al. 2023)
"draws"    log (1/K) sum_k exp l(x0^k), x0^k      Monte Carlo; from below, exact as K grows
           drawn from the belief at x
a network  its value at (x, t)                    regressed soft values ("SVDD-MC"): `retrodict.steering.fit_value`
"auto"     draws where the belief can be drawn    measured on a mixture: the spread of a population's mean reward
           from (tokens, oracles), else the mean  is a seventh of that with "mean"
=========  =====================================  ===========================================================

A population weighs by ``h_s/h_t`` and by exp l at the end, so that the answer is right for any of them; its variance is
not.  Private candidates of each sample (``Population(candidates=K)``) are soft-value decoding: right as K grows and h
becomes exact.  With a gradient the mean moves by ``C grad l``, C = Cov(x0 | x_t).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, NonFiniteError, require
from retrodict.core.lin import Lin
from retrodict.core.noise import KeyedNoise, Noise
from retrodict.kernels import Belief, Gaussian
from retrodict.particles import log_mean_exp
from retrodict.processes import GaussianPath, Process
from retrodict.steering.potential import Node, Potential, Tilt
from retrodict.steering.spread import Spread, known_spread

if TYPE_CHECKING:
    from retrodict.denoisers import Denoiser


class Reward(Potential):
    """A reward of clean states.

    Args:
        fn: ``x0 (batch, *shape) -> (batch,)`` in the user's units (integers for tokens and counts); ``-inf`` forbids.
        strength: factor on the reward, one over its temperature; at least 0.
        gradient: whether the reward moves the samples as well, by automatic differentiation of ``fn`` (real states).
        value: "auto", "mean", "draws" (module docstring), or a network ``(x_t, t) -> (batch,)`` that gives log h
            itself, of states in the model's units.
        draws: K; seed: of the draws, which are the same for every state of a batch and new at every evaluation.

    Raises:
        InputError: a negative strength; a reward of the wrong shape, both are named.
        NonFiniteError: a reward that is NaN or plus infinity, with the first sample that has it.
    """

    def __init__(
        self,
        fn: Callable[[Tensor], Tensor],
        strength: float = 1.0,
        gradient: bool = False,
        value: Any = "auto",
        draws: int = 8,
        *,
        seed: int = 0,
    ) -> None:
        if not callable(fn):
            raise InputTypeError(f"a reward is a function of clean states, got {type(fn).__name__}")
        good = isinstance(strength, (int, float)) and math.isfinite(strength) and strength >= 0
        require(good, f"strength is one over a temperature, at least 0; got {strength!r} (negate fn to make it small)")
        require(
            value in ("auto", "mean", "draws") if isinstance(value, str) else callable(value),
            f"value is 'auto', 'mean', 'draws' or a network (x, t) -> (batch,), got {value!r}",
        )
        require(isinstance(draws, int) and draws >= 1, f"draws is an integer of at least 1, got {draws!r}")
        self.fn, self.strength, self.draws, self.seed = fn, float(strength), draws, seed
        self.value: Any = value
        self.graph = self.drift = bool(gradient)
        self.spread = Spread()

    def check(self, shape: tuple[int, ...] | None, process: Process) -> None:
        if self.drift and not (isinstance(process, GaussianPath) and process.scalar and len(process.ends) == 1):
            raise InputError(
                "gradient=True moves real states on a scalar Gaussian path with one end, not those of "
                f"{type(process).__name__}; leave it out: the reward then weighs"
            )

    def bind(self, denoiser: Denoiser) -> Reward:
        out = copy.copy(self)
        if isinstance(denoiser.process, GaussianPath):
            out.spread = known_spread(denoiser)[0]
        return out

    def likelihood(self, x0: Tensor) -> Tensor:
        """``strength * fn(x0)``, ``(batch,)`` float64."""
        return self._l(x0.detach())

    def at(self, node: Node) -> Tilt:
        if not isinstance(self.value, str):
            log_h = self._regressed(node)
            return Tilt(log_h, node.drift_of(log_h) if self.drift else None)
        clean, share = self._clean(node)
        if not self.drift:
            return Tilt(self._soft(torch.stack([self._l(x) for x in clean])))
        clean = clean.requires_grad_(True)
        l = torch.stack([self._l(x) for x in clean])
        if not l.requires_grad:
            raise InputError("gradient=True, and the reward has no gradient (it is not made of torch operations on x0)")
        (slopes,) = torch.autograd.grad((torch.softmax(l, 0).detach() * l).sum() if share else l.sum(), clean)
        return Tilt(self._soft(l), node.covariance_times(slopes.sum(0)))

    # -- values -----------------------------------------------------------------------------------------------

    def _l(self, x0: Tensor) -> Tensor:
        out = self.fn(x0)
        if not isinstance(out, Tensor):
            raise InputTypeError(f"a reward returns a tensor ({len(x0)},), got {type(out).__name__}")
        if out.shape != (len(x0),):
            raise InputError(
                f"a reward of {len(x0)} states {tuple(x0.shape)} has shape ({len(x0)},), one number each; "
                f"got {tuple(out.shape)}"
            )
        bad = torch.isnan(out) | torch.isposinf(out)
        if bool(bad.any()):
            raise NonFiniteError(f"the reward is {float(out[bad][0])} (first in sample {int(bad.nonzero()[0])})")
        return self.strength * out.double() if self.strength else torch.zeros_like(out, dtype=torch.float64)

    @staticmethod
    def _soft(l: Tensor) -> Tensor:
        """log mean exp over the first axis; where all K guesses are forbidden x0 may not be: as one in 2 (K + 1) is."""
        value = log_mean_exp(l.T)
        return torch.where(torch.isneginf(value), -math.log(2 * (len(l) + 1)), value)

    def _regressed(self, node: Node) -> Tensor:
        t = torch.as_tensor(node.t, dtype=torch.float64, device=node.x.device)
        log_h = self.value(node.x, t.expand(node.batch) if t.ndim == 0 else t)
        if log_h.shape != (node.batch,):
            raise InputError(
                f"a value network of {node.batch} states returns ({node.batch},), got {tuple(log_h.shape)}"
            )
        return log_h.double()

    # -- clean states -----------------------------------------------------------------------------------------

    def _clean(self, node: Node) -> tuple[Tensor, bool]:
        """Guesses at x0 ``(K, batch, *shape)`` in the user's units, detached; whether there are several."""
        belief = node.belief
        known = belief.draw is not None or belief.law is not None or belief.cov is not None
        if self.value == "mean" or (self.value == "auto" and not known):
            return self._likeliest(node).unsqueeze(0), False
        noise = _Common(KeyedNoise(self.seed, 1, dtype=node.belief.mean.dtype, name=f"reward/{_key(node.t)}"), node)
        return torch.stack([node.user(self._drawn(node, noise)).detach() for _ in range(self.draws)]), True

    @staticmethod
    def _likeliest(node: Node) -> Tensor:
        if node.law is not None:
            return node.law.log_p.argmax(-1)
        mean = node.mean.detach()
        return mean if node.x.is_floating_point() else mean.round().to(node.x.dtype)

    def _drawn(self, node: Node, noise: Noise) -> Tensor:
        belief: Belief = node.belief
        if belief.draw is not None:
            return belief.draw(noise)
        if belief.law is not None:
            return belief.law.sample(noise)
        if not node.x.is_floating_point():
            raise InputError("value='draws' needs a law over counts, and this denoiser gives a mean alone: use 'mean'")
        mean = belief.mean.detach()
        if belief.cov is not None:
            return Gaussian(mean, belief.covariance()).sample(noise)
        # round, with the posterior variance that a Gaussian prior of the data's variance has
        rho2, v = (node.sigma / node.alpha) ** 2, self.spread.variance
        return Gaussian(mean, Lin.scalar(torch.as_tensor(v * rho2 / (v + rho2)).to(mean))).sample(noise)


class _Common(Noise):
    """The same draw for every state of a batch: log h is then one function of the state, whatever the batch."""

    def __init__(self, source: KeyedNoise, node: Node) -> None:
        self.source, self.batch, self.dtype, self.device = source, node.batch, source.dtype, node.x.device

    def normals(self, rows: int, shape: Sequence[int]) -> list[Tensor]:
        return [z.expand(self.batch, *shape).to(self.device) for z in self.source.normals(rows, shape)]

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        return self.source.uniform(shape).expand(self.batch, *shape).to(self.device)

    def stream(self, name: str) -> Noise:
        return self


def _key(t: float | Tensor) -> str:
    return f"{float(torch.as_tensor(t, dtype=torch.float64).flatten()[0]):.9f}"
