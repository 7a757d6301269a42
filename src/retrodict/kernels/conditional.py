"""Kernels without a closed family: whatever can be sampled and evaluated, and deterministic maps.

A `Conditional` carries an *auxiliary* kernel of a closed family, which the backward pass pulls in its place.  The
guided step draws from the auxiliary's h-transform and pays for the difference,

    ``log weight = log k(x, y) - log k~(x, y)``,

so that estimates stay unbiased for every auxiliary that can reach what k reaches.  Without one the message stops
here: the step is unguided and pays the message in full.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.lin import Lin
from retrodict.core.noise import Noise
from retrodict.kernels.euler import NonLinearGaussian
from retrodict.kernels.kernel import Kernel, Pulled, draw_seed
from retrodict.kernels.laws import event_sum
from retrodict.kernels.linear_gaussian import LinearGaussian


def Deterministic(f: Callable[[Tensor], Tensor] | Tensor | Lin, aux: LinearGaussian | None = None) -> Kernel:
    """``y = f(x)`` as a kernel without noise.

    Args:
        f: a matrix ``(..., m, n)`` or `Lin`, which gives a linear-Gaussian kernel with Q = 0; or a function, which
            gives a non-linear Gaussian kernel whose messages go through ``aux`` (see its ``linearised``).
    """
    zero = Lin.scalar(torch.zeros((), dtype=torch.float64))
    if isinstance(f, (Tensor, Lin)):
        return LinearGaussian(f, 0.0, zero)
    if not callable(f):
        raise InputTypeError(f"a deterministic map is a function, a matrix or a Lin; got {type(f).__name__}")
    return NonLinearGaussian(f, zero, aux=aux)


@dataclass(frozen=True)
class Conditional(Kernel):
    """A kernel that can be sampled and evaluated, and nothing more.

    Args:
        law: callable from x ``(batch, ...)`` to a `torch.distributions.Distribution` over a batch of y.
        sample_fn, log_prob_fn: instead of ``law``: ``sample_fn(x) -> y`` (by torch's random functions, which are
            seeded around the call and left as they were) and ``log_prob_fn(x, y) -> (batch,)``.
        aux: the kernel of a closed family that is pulled instead, with a density.

    The innovations are one integer, the seed of the whole batch's draw, beside those of the auxiliary.
    """

    law: Callable[[Any], torch.distributions.Distribution] | None = None
    sample_fn: Callable[[Any], Any] | None = None
    log_prob_fn: Callable[[Any, Any], Tensor] | None = None
    aux: Kernel | None = None

    def __post_init__(self) -> None:
        if (self.law is None) == (self.sample_fn is None):
            raise InputError("a Conditional takes law=, or sample_fn= with log_prob_fn=: one of the two")

    def draw(self, noise: Noise, shape: Any) -> tuple[int, Any]:
        return draw_seed(noise), None if self.aux is None else self.aux.draw(noise, shape)

    def step(self, x: Any, z: tuple[int, Any]) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(z[0])
            if self.sample_fn is not None:
                return self.sample_fn(x)
            law = self._at(x)
            return law.rsample() if law.has_rsample else law.sample()

    def _at(self, x: Any) -> torch.distributions.Distribution:
        law = self.law(x) if self.law is not None else None
        if not isinstance(law, torch.distributions.Distribution):
            raise InputTypeError(f"law(x) returns a torch.distributions object; got {type(law).__name__}")
        return law

    def log_prob(self, x: Any, y: Any, event: int | None = None) -> Tensor:
        """log density of y given x; a scalar distribution's density is summed over the ``event`` axes of y."""
        if self.log_prob_fn is not None:
            return self.log_prob_fn(x, y)
        if self.law is None:
            raise InputError("this kernel has no density: give log_prob_fn=(x, y) -> (batch,)")
        law = self._at(x)
        own = len(law.event_shape)
        axes = y.ndim - 1 if event is None else event
        return event_sum(law.log_prob(y), axes - own)

    def pull(self, h: Any) -> tuple[Kernel, Any]:
        if self.aux is None:
            return _Unguided(self, h), None
        guided, earlier = self.aux.pull(h)
        return Pulled(guided, h, earlier), earlier

    def guide(self, residual: Any, x: Any, z: tuple[int, Any]) -> tuple[Any, Tensor]:
        if self.aux is None:
            y = self.step(x, z)
            return y, residual.later(y)
        y = residual.step(x, z[1])
        return y, self.log_prob(x, y) - self.aux.log_prob(x, y)


@dataclass(frozen=True)
class _Unguided(Kernel):
    """What a kernel without an auxiliary keeps of a pull: itself, and the message that its draws must pay."""

    kernel: Kernel
    later: Any

    def draw(self, noise: Noise, shape: Any) -> Any:
        return self.kernel.draw(noise, shape)

    def step(self, x: Any, z: Any) -> Any:
        return self.kernel.step(x, z)
