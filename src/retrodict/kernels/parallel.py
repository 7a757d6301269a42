"""Side by side: ``a | b`` runs two kernels on two independent legs of one state.

Linear-Gaussian legs concatenate: their state is one vector, their kernel one linear-Gaussian kernel with
block-diagonal parameters, so that a single observation may see both legs (a trend beside a season).  Other legs
stay apart: the state is a tuple, laws and messages are tuples (`Laws`, `Messages`), and log weights add, because

    ``h(x, x') = h_1(x) h_2(x')``   is pulled to   ``(k_1 h_1)(x) (k_2 h_2)(x')``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.lin import Lin
from retrodict.core.noise import Noise
from retrodict.kernels.kernel import Kernel, fuse
from retrodict.kernels.laws import Gaussian, Law
from retrodict.kernels.linear_gaussian import LinearGaussian


@dataclass(frozen=True)
class Laws(Law):
    """Independent laws of the parts of a state that is a tuple."""

    parts: tuple[Any, ...]

    def sample(self, noise: Noise) -> tuple[Any, ...]:
        """One draw a batch element of every part."""
        return tuple(part.sample(noise) for part in self.parts)

    def log_prob(self, x: tuple[Any, ...], event: int | None = None) -> Tensor:
        """The log densities of the parts, added."""
        return _total(part.log_prob(value, event) for part, value in zip(self.parts, x))

    def fuse(self, h: Messages) -> tuple[Laws, Tensor]:
        """Bayes, part by part: the posterior, and the sum of the log evidences."""
        posts, evidence = [], []
        for part, message in zip(self.parts, h.parts):
            post, log_evidence = part.fuse(message) if message is not None else (part, torch.zeros(()))
            posts.append(post)
            evidence.append(log_evidence)
        return Laws(tuple(posts)), _total(evidence)


@dataclass(frozen=True)
class Messages:
    """The product of messages about the parts of a state that is a tuple; None is the constant message."""

    parts: tuple[Any, ...]

    def __call__(self, x: tuple[Any, ...]) -> Tensor:
        return _total(part(value) for part, value in zip(self.parts, x) if part is not None)

    def fuse(self, other: Messages) -> Messages:
        """Part by part."""
        return Messages(tuple(fuse(a, b) for a, b in zip(self.parts, other.parts)))


class Parallel(Kernel):
    """Kernels on independent legs of a state that is a tuple."""

    def __init__(self, *legs: Kernel) -> None:
        if len(legs) < 2:
            raise InputError("side by side takes two kernels or more")
        self.legs = tuple(legs)
        self.observes = any(leg.observes for leg in legs)

    def after(self, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(leg.after(part) for leg, part in zip(self.legs, shape))

    def draw(self, noise: Noise, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(leg.draw(noise, part) for leg, part in zip(self.legs, self._matched(shape)))

    def step(self, x: tuple[Any, ...], z: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(leg.step(part, innovation) for leg, part, innovation in zip(self.legs, self._matched(x), z))

    def log_prob(self, x: tuple[Any, ...], y: tuple[Any, ...], event: int | None = None) -> Tensor:
        return _total(leg.log_prob(a, b, event) for leg, a, b in zip(self.legs, self._matched(x), y))

    def push(self, law: Laws) -> Laws:
        if not isinstance(law, Laws):
            return super().push(law)
        return Laws(tuple(leg.push(part) for leg, part in zip(self.legs, self._matched(law.parts))))

    def pull(self, h: Messages | None) -> tuple[Kernel, Messages]:
        if h is not None and not isinstance(h, Messages):
            return super().pull(h)
        messages = (None,) * len(self.legs) if h is None else self._matched(h.parts)
        residuals, earlier = [], []
        for leg, message in zip(self.legs, messages):
            blind = message is None and not leg.observes
            residual, pulled = (leg, None) if blind else leg.pull(message)
            residuals.append(residual)
            earlier.append(pulled)
        return Parallel(*residuals), Messages(tuple(earlier))

    def guide(self, residual: Kernel, x: tuple[Any, ...], z: tuple[Any, ...]) -> tuple[Any, Tensor]:
        if not isinstance(residual, Parallel):
            raise InputTypeError("the residual of kernels side by side is what their pull returned")
        states, weights = [], []
        for leg, guided, part, innovation in zip(self.legs, residual.legs, x, z):
            if guided is leg:
                states.append(leg.step(part, innovation))
                continue
            state, log_weight = leg.guide(guided, part, innovation)
            states.append(state)
            weights.append(log_weight)
        return tuple(states), _total(weights)

    def invert(self, law: Laws) -> Parallel:
        if not isinstance(law, Laws):
            raise InputTypeError(f"kernels side by side are inverted at Laws, got {type(law).__name__}")
        return Parallel(*(leg.invert(part) for leg, part in zip(self.legs, self._matched(law.parts))))

    def _matched(self, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        if not isinstance(parts, tuple) or len(parts) != len(self.legs):
            got = f"{len(parts)} parts" if isinstance(parts, tuple) else type(parts).__name__
            raise InputError(f"{len(self.legs)} kernels side by side take a tuple of as many parts, got {got}")
        return parts


def beside(left: Kernel, right: Kernel) -> Kernel:
    """``left | right``: touching linear-Gaussian legs become one, so that grouping does not matter."""
    first = left.legs if isinstance(left, Parallel) else (left,)
    second = right.legs if isinstance(right, Parallel) else (right,)
    a, b = first[-1], second[0]
    if isinstance(a, LinearGaussian) and isinstance(b, LinearGaussian):
        legs = (*first[:-1], _concatenate(a, b), *second[1:])
        return legs[0] if len(legs) == 1 else Parallel(*legs)
    return Parallel(*first, *second)


def beside_laws(left: Any, right: Any) -> Law:
    """The law of independent states side by side: Gaussians concatenate, others stay apart."""
    first = left.parts if isinstance(left, Laws) else (left,)
    second = right.parts if isinstance(right, Laws) else (right,)
    a, b = first[-1], second[0]
    if isinstance(a, Gaussian) and isinstance(b, Gaussian):
        mean = _cat(a.mean, b.mean)
        joined = Gaussian(mean, Lin.dense(block_diagonal(a.covariance, b.covariance)))
        parts = (*first[:-1], joined, *second[1:])
        return parts[0] if len(parts) == 1 else Laws(parts)
    return Laws((*first, *second))


def block_diagonal(a: Tensor, b: Tensor) -> Tensor:
    """``[[a, 0], [0, b]]`` for ``a (..., m, n)`` and ``b (..., p, q)``; leading axes broadcast."""
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = a.expand(*lead, *a.shape[-2:]), b.expand(*lead, *b.shape[-2:])
    above = torch.cat([a, a.new_zeros(*lead, a.shape[-2], b.shape[-1])], -1)
    below = torch.cat([b.new_zeros(*lead, b.shape[-2], a.shape[-1]), b], -1)
    return torch.cat([above, below], -2)


def _concatenate(a: LinearGaussian, b: LinearGaussian) -> LinearGaussian:
    """One kernel on the concatenated vectors."""
    maps, offsets, spreads = [], [], []
    for leg in (a, b):
        size = leg.codomain or leg.domain
        if size is None or size.size is None:
            raise InputError(
                "side by side, linear-Gaussian kernels need known sizes; write A as a matrix, so that the number of"
                " coordinates is known"
            )
        rows, columns = size.size, (leg.domain or size).size or size.size
        maps.append(leg.A.value if leg.A.kind == "dense" else _square(leg.A, columns))
        spreads.append(leg.Q.value if leg.Q.kind == "dense" else _square(leg.Q, rows))
        offset = leg.b if isinstance(leg.b, Tensor) else torch.full((rows,), float(leg.b), dtype=maps[-1].dtype)
        offsets.append(offset.expand(*offset.shape[:-1], rows) if offset.ndim else offset.expand(rows))
    return LinearGaussian(Lin.dense(block_diagonal(*maps)), _cat(*offsets), Lin.dense(block_diagonal(*spreads)))


def _square(lin: Lin, size: int) -> Tensor:
    return (lin @ Lin.dense(torch.eye(size, dtype=lin.value.dtype, device=lin.value.device))).value


def _cat(a: Tensor, b: Tensor) -> Tensor:
    """Concatenate on the last axis; leading axes broadcast."""
    lead = torch.broadcast_shapes(a.shape[:-1], b.shape[:-1])
    return torch.cat([a.expand(*lead, a.shape[-1]), b.expand(*lead, b.shape[-1])], -1)


def _total(terms: Any) -> Tensor:
    terms = list(terms)
    total = terms[0] if terms else torch.zeros((), dtype=torch.float64)
    for term in terms[1:]:
        total = total + term
    return total
