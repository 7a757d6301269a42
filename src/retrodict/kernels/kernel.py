"""The Markov kernel: three verbs and an inverse.

======================  ============================================================================
``push(law)``           the law one step later
``pull(message)``       ``(guided kernel, message one step earlier)``: ``h'(x) = E[h(y) | x]``
``guide(k, x, z)``      ``(y, log weight)``: a draw under the message, a function of innovations z
``invert(law)``         the kernel backward in time, by Bayes' rule at what is believed of the start
======================  ============================================================================

The innovations ``z`` are an explicit argument: common random numbers and exact re-runs need nothing else.
For the exact families the residual of a pull is itself a kernel (the h-transform), so that beliefs can be
pushed through it: that is smoothing.  ``a >> b`` composes; pulling a chain runs right to left, guiding and
pushing run left to right, and the inverse of a composite is the composite of the inverses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import Noise


class Kernel:
    """A Markov kernel from x to y."""

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Any:
        """The innovations of one step for states of ``shape`` (without the batch axis)."""
        raise NotImplementedError

    def step(self, x: Tensor, z: Any) -> Tensor:
        """``y`` as a deterministic function of ``x (batch, *event)`` and innovations ``z``."""
        raise NotImplementedError

    def sample(self, x: Tensor, noise: Noise) -> Tensor:
        """One draw of y for each x."""
        return self.step(x, self.draw(noise, tuple(x.shape[1:])))

    def log_prob(self, x: Tensor, y: Tensor, event: int | None = None) -> Tensor:
        """log density of y given x over the last ``event`` axes; leading axes broadcast."""
        raise NotImplementedError

    def push(self, law: Any) -> Any:
        """The law of y when x follows ``law``."""
        raise InputTypeError(f"{type(self).__name__} cannot push {type(law).__name__}")

    def pull(self, h: Any) -> tuple[Kernel, Any]:
        """``(guided, h')`` with ``h'(x) = E[h(y) | x]`` and guided(x, dy) proportional to kernel(x, dy) h(y)."""
        raise InputTypeError(f"{type(self).__name__} cannot pull {type(h).__name__}")

    def guide(self, residual: Kernel, x: Tensor, z: Any) -> tuple[Tensor, Tensor]:
        """A guided step and its log weight ``(batch,)``; zero weight variance for an exact residual."""
        return residual.step(x, z), torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)

    def invert(self, law: Any) -> Kernel:
        """The kernel from y back to x when x follows ``law`` (Bayes' rule)."""
        raise InputTypeError(f"{type(self).__name__} cannot be inverted at {type(law).__name__}")

    def __rshift__(self, other: Kernel) -> Chain:
        return Chain(*_links(self), *_links(other))


def _links(kernel: Kernel) -> tuple[Kernel, ...]:
    return kernel.links if isinstance(kernel, Chain) else (kernel,)


@dataclass(frozen=True)
class Factor(Kernel):
    """The identity kernel carrying a potential: an observation on an edge of a chain.

    Pull fuses the potential into the message; push is Bayes' update (the evidence is `Chain.pull`'s business).
    """

    potential: Any

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> None:
        return None

    def step(self, x: Tensor, z: Any = None) -> Tensor:
        return x

    def push(self, law: Any) -> Any:
        return law.fuse(self.potential)[0]

    def pull(self, h: Any) -> tuple[Kernel, Any]:
        return Identity(), self.potential if h is None else h.fuse(self.potential)

    def invert(self, law: Any) -> Kernel:
        return Identity()


class Identity(Kernel):
    """y = x."""

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> None:
        return None

    def step(self, x: Tensor, z: Any = None) -> Tensor:
        return x

    def push(self, law: Any) -> Any:
        return law

    def pull(self, h: Any) -> tuple[Kernel, Any]:
        return self, h

    def invert(self, law: Any) -> Kernel:
        return self


class Chain(Kernel):
    """Kernels in sequence.  A conditioned model is one chain: transitions and `Factor` observations."""

    def __init__(self, *links: Kernel) -> None:
        if not links:
            raise InputError("a chain needs at least one kernel")
        self.links = tuple(links)

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> list[Any]:
        return [link.draw(noise, shape) for link in self.links]

    def step(self, x: Tensor, z: list[Any]) -> Tensor:
        for link, innovation in zip(self.links, z):
            x = link.step(x, innovation)
        return x

    def path(self, x: Tensor, z: list[Any]) -> list[Tensor]:
        """The state after every link."""
        states = []
        for link, innovation in zip(self.links, z):
            x = link.step(x, innovation)
            states.append(x)
        return states

    def push(self, law: Any) -> Any:
        return self.laws(law)[-1]

    def laws(self, law: Any) -> list[Any]:
        """The law after every link."""
        laws = []
        for link in self.links:
            law = link.push(law)
            laws.append(law)
        return laws

    def pull(self, h: Any = None) -> tuple[Chain, Any]:
        """Backward filtering: the chain of guided kernels, and the message at the start.

        ``h=None`` starts from the constant message; then the chain must end in a `Factor`.
        """
        residuals: list[Kernel] = []
        for link in reversed(self.links):
            if h is None and not isinstance(link, Factor):
                residuals.append(link)  # nothing has been observed after this link: guided = unguided
                continue
            residual, h = link.pull(h)
            residuals.append(residual)
        return Chain(*reversed(residuals)), h

    def guide(self, residual: Kernel, x: Tensor, z: list[Any]) -> tuple[Tensor, Tensor]:
        if not isinstance(residual, Chain):
            raise InputTypeError("the residual of a chain is a chain: use what pull returned")
        log_weight: Tensor = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        for link, guided, innovation in zip(self.links, residual.links, z):
            x, step_weight = link.guide(guided, x, innovation)
            log_weight = log_weight + step_weight
        return x, log_weight

    def invert(self, law: Any) -> Chain:
        """The lens law: invert every link at the law that reaches it, and compose backward."""
        inverses = []
        for link in self.links:
            inverses.append(link.invert(law))
            law = link.push(law)
        return Chain(*reversed(inverses))
