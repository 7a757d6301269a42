"""The Markov kernel: three verbs and an inverse.

======================  ============================================================================
``push(law)``           the law one step later
``pull(message)``       ``(guided kernel, message one step earlier)``: ``h'(x) = E[h(y) | x]``
``guide(k, x, z)``      ``(y, log weight)``: a draw under the message, a function of innovations z
``invert(law)``         the kernel backward in time, by Bayes' rule at what is believed of the start
======================  ============================================================================

The innovations ``z`` are an explicit argument: common random numbers and exact re-runs need nothing else.
For the exact families the residual of a pull is itself a kernel (the h-transform), so that beliefs can be
pushed through it: that is smoothing.  Kernels without a closed pull borrow one: an auxiliary kernel of a closed
family is pulled in their place, and the guided step pays the difference as its log weight (`Pulled`), so that

    ``E[exp(sum of log weights)] * h_0(x_0)  =  the evidence given x_0``       for every auxiliary.

``a >> b`` composes in sequence, ``a | b`` side by side (`parallel`), and `fuse` multiplies the messages that meet
at a branch.  Pulling a chain runs right to left, guiding and pushing run left to right, and the inverse of a
composite is the composite of the inverses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.lin import Lin
from retrodict.core.noise import Noise
from retrodict.kernels.checks import Space


class Kernel:
    """A Markov kernel from x to y."""

    #: whether a `Factor` is inside: then a pull may start from nothing (``h=None``)
    observes: bool = False

    @property
    def domain(self) -> Space | None:
        """What x is; None when any state will do."""
        return None

    @property
    def codomain(self) -> Space | None:
        """What y is; None when it is not known."""
        return None

    def after(self, shape: Any) -> Any:
        """The event shape of y for an x of event shape ``shape``."""
        return shape

    def draw(self, noise: Noise, shape: Any) -> Any:
        """The innovations of one step for states of ``shape`` (without the batch axis)."""
        raise NotImplementedError

    def step(self, x: Any, z: Any) -> Any:
        """``y`` as a deterministic function of ``x (batch, *event)`` and innovations ``z``."""
        raise NotImplementedError

    def sample(self, x: Any, noise: Noise) -> Any:
        """One draw of y for each x."""
        return self.step(x, self.draw(noise, event_shape(x)))

    def log_prob(self, x: Any, y: Any, event: int | None = None) -> Tensor:
        """log density of y given x over the last ``event`` axes; leading axes broadcast."""
        raise InputTypeError(f"{type(self).__name__} has no density: it can only be sampled")

    def push(self, law: Any) -> Any:
        """The law of y when x follows ``law``."""
        raise InputTypeError(f"{type(self).__name__} cannot push {type(law).__name__}")

    def pull(self, h: Any) -> tuple[Kernel, Any]:
        """``(guided, h')`` with ``h'(x) = E[h(y) | x]`` and guided(x, dy) proportional to kernel(x, dy) h(y)."""
        raise InputTypeError(f"{type(self).__name__} cannot pull {type(h).__name__}")

    def guide(self, residual: Kernel, x: Any, z: Any) -> tuple[Any, Tensor]:
        """A guided step and its log weight ``(batch,)``; zero weight variance for an exact residual."""
        return residual.step(x, z), no_weight(x)

    def invert(self, law: Any) -> Kernel:
        """The kernel from y back to x when x follows ``law`` (Bayes' rule)."""
        raise InputTypeError(f"{type(self).__name__} cannot be inverted at {type(law).__name__}")

    def parameters(self) -> Iterator[Tensor]:
        """Every tensor inside that a gradient can reach as a leaf: modules' parameters, and tensors that ask for it."""
        seen: set[int] = set()
        for tensor in _leaves(self):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor

    def __rshift__(self, other: Kernel) -> Chain:
        return Chain(*_links(self), *_links(other))

    def __or__(self, other: Kernel) -> Kernel:
        from retrodict.kernels.parallel import beside

        return beside(self, other)

    def __str__(self) -> str:
        return f"{type(self).__name__} ({self.domain or 'any state'} -> {self.codomain or 'the same'})"


def _links(kernel: Kernel) -> tuple[Kernel, ...]:
    return kernel.links if isinstance(kernel, Chain) else (kernel,)


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.nn.Module):
        yield from value.parameters()
    elif isinstance(value, Tensor):
        if value.requires_grad and value.is_leaf:
            yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, (Kernel, Lin)) or is_dataclass(value):
        inside = [getattr(value, f.name) for f in fields(value)] if is_dataclass(value) else vars(value).values()
        for part in inside:
            yield from _leaves(part)


def event_shape(x: Any) -> Any:
    """The shape of one state: without the batch axis; of each part for a state that is a tuple."""
    return tuple(event_shape(part) for part in x) if isinstance(x, tuple) else tuple(x.shape[1:])


def no_weight(x: Any) -> Tensor:
    """The log weight 0, one a batch element of x."""
    while isinstance(x, tuple):
        x = x[0]
    return torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)


def draw_seed(noise: Noise) -> int:
    """One integer for draws that have no fixed number of innovations: the seed of a generator of the whole batch."""
    return int(noise.uniform(())[0].item() * 2**53)


def fuse(*messages: Any) -> Any:
    """The product of messages about one state, as they meet at a branch; None stands for the constant message 1."""
    given = [h for h in messages if h is not None]
    if not given:
        return None
    product = given[0]
    for h in given[1:]:
        if type(h) is not type(product):
            raise InputTypeError(
                f"messages that meet are of one family; got {type(product).__name__} and {type(h).__name__}"
            )
        product = product.fuse(h)
    return product


@dataclass(frozen=True)
class Pulled(Kernel):
    """What a kernel without a closed pull keeps: its auxiliary's guided kernel and the messages on both sides.

    As a kernel it is the auxiliary's h-transform: pushing a belief through it smooths under the auxiliary.
    """

    guided: Kernel
    later: Any
    earlier: Any

    def draw(self, noise: Noise, shape: Any) -> Any:
        return self.guided.draw(noise, shape)

    def step(self, x: Any, z: Any) -> Any:
        return self.guided.step(x, z)

    def log_prob(self, x: Any, y: Any, event: int | None = None) -> Tensor:
        return self.guided.log_prob(x, y, event)

    def push(self, law: Any) -> Any:
        return self.guided.push(law)

    def after(self, shape: Any) -> Any:
        return self.guided.after(shape)


class Identity(Kernel):
    """y = x."""

    def draw(self, noise: Noise, shape: Any) -> None:
        return None

    def step(self, x: Any, z: Any = None) -> Any:
        return x

    def push(self, law: Any) -> Any:
        return law

    def pull(self, h: Any) -> tuple[Kernel, Any]:
        return self, h

    def invert(self, law: Any) -> Kernel:
        return self


@dataclass(frozen=True)
class Factor(Identity):
    """The identity kernel carrying a potential: an observation on an edge of a chain.

    Args:
        potential: a message, or any callable ``x -> log g(x)`` ``(batch,)``.
        surrogate: a message g~ of a closed family that stands for the potential in the backward pass.

    Pull fuses the potential (or its surrogate) into the message; with a surrogate the guided step pays ``log g -
    log g~``.  Push is Bayes' update (the evidence is `Chain.pull`'s business).
    """

    potential: Any
    surrogate: Any = None
    observes = True

    @property
    def _message(self) -> Any:
        message = self.potential if self.surrogate is None else self.surrogate
        if not hasattr(message, "fuse"):
            raise InputTypeError(
                f"a potential of type {type(message).__name__} has no closed family; give Factor(potential, surrogate)"
                " with a message (Quadratic, Table) that stands for it"
            )
        return message

    @property
    def domain(self) -> Space | None:
        return getattr(self.potential if self.surrogate is None else self.surrogate, "space", None)

    def push(self, law: Any) -> Any:
        if self.surrogate is not None:
            raise InputTypeError("a factor with a surrogate has no closed Bayes update; pull the chain, then guide")
        return law.fuse(self._message)[0]

    def pull(self, h: Any) -> tuple[Kernel, Any]:
        return Identity(), fuse(h, self._message)

    def guide(self, residual: Kernel, x: Any, z: Any) -> tuple[Any, Tensor]:
        if self.surrogate is None:
            return x, no_weight(x)
        return x, self.potential(x) - self.surrogate(x)


class Chain(Kernel):
    """Kernels in sequence.  A conditioned model is one chain: transitions and `Factor` observations."""

    def __init__(self, *links: Kernel) -> None:
        if not links:
            raise InputError("a chain needs at least one kernel")
        self.links = tuple(links)
        self.observes = any(link.observes for link in links)
        _check_meetings(self.links)

    @property
    def domain(self) -> Space | None:
        return next((link.domain for link in self.links if link.domain is not None), None)

    @property
    def codomain(self) -> Space | None:
        return next((link.codomain for link in reversed(self.links) if not isinstance(link, Identity)), None)

    def after(self, shape: Any) -> Any:
        for link in self.links:
            shape = link.after(shape)
        return shape

    def draw(self, noise: Noise, shape: Any) -> list[Any]:
        innovations = []
        for link in self.links:
            innovations.append(link.draw(noise, shape))
            shape = link.after(shape)
        return innovations

    def step(self, x: Any, z: list[Any]) -> Any:
        for link, innovation in zip(self.links, z):
            x = link.step(x, innovation)
        return x

    def path(self, x: Any, z: list[Any]) -> list[Any]:
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

        ``h=None`` starts from the constant message: links after the last `Factor` stay as they are.
        """
        residuals: list[Kernel] = []
        for link in reversed(self.links):
            if h is None and not link.observes:
                residuals.append(link)  # nothing has been observed after this link: guided = unguided
                continue
            residual, h = link.pull(h)
            residuals.append(residual)
        return Chain(*reversed(residuals)), h

    def guide(self, residual: Kernel, x: Any, z: list[Any]) -> tuple[Any, Tensor]:
        states, log_weight = self.guide_path(residual, x, z)
        return states[-1], log_weight

    def guide_path(self, residual: Kernel, x: Any, z: list[Any]) -> tuple[list[Any], Tensor]:
        """The guided state after every link, and the log weight of the whole path ``(batch,)``."""
        if not isinstance(residual, Chain) or len(residual.links) != len(self.links):
            raise InputTypeError("the residual of a chain is a chain of as many links: use what pull returned")
        log_weight, states = no_weight(x), []
        for link, guided, innovation in zip(self.links, residual.links, z):
            # a link that nothing was observed after is its own residual: there is no message to pay for
            x, paid = (link.step(x, innovation), 0.0) if guided is link else link.guide(guided, x, innovation)
            log_weight = log_weight + paid
            states.append(x)
        return states, log_weight

    def invert(self, law: Any) -> Chain:
        """The lens law: invert every link at the law that reaches it, and compose backward."""
        inverses = []
        for link in self.links:
            inverses.append(link.invert(law))
            law = link.push(law)
        return Chain(*reversed(inverses))

    def collapse(self) -> Kernel:
        """One kernel for the whole chain, where the family is closed under composition."""
        whole = self.links[0]
        for link in self.links[1:]:
            compose: Callable[[Kernel], Kernel] | None = getattr(whole, "compose", None)
            if compose is None or type(link) is not type(whole):
                raise InputTypeError(f"{type(whole).__name__} and {type(link).__name__} have no closed composition")
            whole = compose(link)
        return whole


def _check_meetings(links: tuple[Kernel, ...]) -> None:
    """Raise where the state that leaves one link cannot enter the next."""
    maker, space = None, None
    for position, link in enumerate(links):
        entry = link.domain
        if space is not None and entry is not None and not space.fits(entry):
            raise InputError(
                f"kernels do not chain: link {maker} ({type(links[maker or 0]).__name__}) leaves {space}, and link"
                f" {position} ({type(link).__name__}) takes {entry}"
            )
        if not isinstance(link, Identity):
            maker, space = position, link.codomain
        elif space is None and entry is not None:
            maker, space = position, entry
