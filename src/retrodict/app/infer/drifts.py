"""Drifts of diffusions by name, and the laws of what is seen of a state.

A drift family reads its parameters from a section and returns a `Drift`; `linear` and `ou` are linear, so that their
transitions are exact.  A law of observation reads its own and returns an `Emission` with what the report needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal, Poisson

from retrodict.app.infer.fields import Fields
from retrodict.core.errors import require
from retrodict.core.registry import Registry
from retrodict.kernels import Finite, LinearGaussian


@dataclass(frozen=True)
class Drift:
    """The drift of a diffusion in ``d`` coordinates; ``linear`` is ``(B, beta)`` of ``B x + beta`` where it is so."""

    d: int
    f: Callable[[Tensor, Any], Tensor]
    linear: tuple[Tensor, Tensor] | None = None


drifts: Registry[Callable[[Fields], Drift]] = Registry("drift")


def _linear(B: Tensor, beta: Tensor) -> Drift:
    return Drift(len(beta), lambda x, t: x @ B.mT + beta, (B, beta))


@drifts.register("linear")
def linear(section: Fields) -> Drift:
    """``matrix x + offset``."""
    B = section.tensor("matrix", axes=(2,))
    beta = section.tensor("offset", [0.0] * len(B), axes=(1,))
    require(
        B.shape == (len(beta), len(beta)),
        f"{section.where}.matrix is of shape {tuple(B.shape)}; it is square, as long as the offset, {len(beta)}",
    )
    return _linear(B, beta)


@drifts.register("ou")
def ou(section: Fields) -> Drift:
    """Ornstein-Uhlenbeck: ``rate (mean - x)``."""
    rate, mean = section.tensor("rate", 1.0, positive=True), section.tensor("mean", 0.0)
    return _linear(-rate.reshape(1, 1), (rate * mean).reshape(1))


@drifts.register("double-well")
def double_well(section: Fields) -> Drift:
    """``rate x (1 - x^2 / well^2)``: two stable states, at ``-well`` and ``well``."""
    rate, well = section.tensor("rate", 1.0, positive=True), section.tensor("well", 1.0, positive=True)
    return Drift(1, lambda x, t: rate * x * (1 - (x / well).square()))


@drifts.register("lotka-volterra")
def lotka_volterra(section: Fields) -> Drift:
    """Predators and prey in logarithms: ``(a - b exp(x2), c exp(x1) - e)``, a the growth of prey, b and c what a
    meeting costs and gives, e the deaths of predators."""
    growth, cost = section.tensor("growth", 1.0), section.tensor("cost", 1.0)
    gain, death = section.tensor("gain", 1.0), section.tensor("death", 1.0)

    def f(x: Tensor, t: Any) -> Tensor:
        prey, predators = x.exp().unbind(-1)
        return torch.stack((growth - cost * predators, gain * prey - death), -1)

    return Drift(2, f)


@drifts.register("fitzhugh-nagumo")
def fitzhugh_nagumo(section: Fields) -> Drift:
    """A neuron's voltage v and recovery w: ``((v - v^3/3 - w + current) / scale, scale (v + a - b w))``.  The slow
    coordinate drives the fast one, so that seeing v tells of w."""
    current, scale = section.tensor("current", 0.5), section.tensor("scale", 0.3, positive=True)
    a, b = section.tensor("a", 0.7), section.tensor("b", 0.8)

    def f(x: Tensor, t: Any) -> Tensor:
        v, w = x.unbind(-1)
        return torch.stack(((v - v**3 / 3 - w + current) / scale, scale * (v + a - b * w)), -1)

    return Drift(2, f)


# --- what is seen -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Emission:
    """A law of observation.

    Attributes:
        law: as `StateSpace` takes it.
        moments: ``x -> (mean (..., m), standard deviation (..., m))`` of real observations; None for categories.
        categories: whether observations are whole numbers 0, 1, 2, ...
    """

    law: Any
    moments: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    categories: bool = False


real_laws: Registry[Callable[[Fields, int, int], Emission]] = Registry("observation law of real states")
finite_laws: Registry[Callable[[Fields, int, int], Emission]] = Registry("observation law of finite states")


@real_laws.register("normal")
def normal(section: Fields, d: int, m: int) -> Emission:
    """``y = operator x + noise``; without an operator the columns see the first coordinates."""
    L = operator(section, d, m)
    noise = section.tensor("noise", positive=True, axes=(0, 1))
    require(noise.ndim == 0 or len(noise) == m, f"{section.where}.noise has {noise.numel()} numbers for {m} columns")
    spread = noise.expand(m)
    return Emission(
        LinearGaussian(L, torch.zeros(m, dtype=torch.float64), torch.diag_embed(spread**2)),
        lambda x: (x @ L.mT, spread.expand(*x.shape[:-1], m)),
    )


@real_laws.register("volatility")
def volatility(section: Fields, d: int, m: int) -> Emission:
    """Returns whose log variance is the first coordinate: ``y ~ N(0, exp(x))``."""
    require(m == 1, f"{section.where}: volatility is of one column, and data.observed has {m}")

    def spread(x: Tensor) -> Tensor:
        return (0.5 * x[..., :1]).exp()

    return Emission(
        lambda x: Independent(Normal(torch.zeros_like(x[..., :1]), spread(x)), 1),
        lambda x: (torch.zeros_like(x[..., :1]), spread(x)),
    )


@real_laws.register("poisson")
def poisson(section: Fields, d: int, m: int) -> Emission:
    """Counts: ``y ~ Poisson(exp(operator x + offset))``."""
    L, offset = operator(section, d, m), section.tensor("offset", [0.0] * m, axes=(1,))

    def rate(x: Tensor) -> Tensor:
        return (x @ L.mT + offset).exp()

    return Emission(lambda x: Independent(Poisson(rate(x)), 1), lambda x: (rate(x), rate(x).sqrt()))


def operator(section: Fields, d: int, m: int) -> Tensor:
    """``(m, d)``; by default the first coordinates."""
    L = section.tensor("operator", torch.eye(m, d).tolist(), axes=(1, 2))
    L = L[None] if L.ndim == 1 else L
    require(
        L.shape == (m, d),
        f"{section.where}.operator is of shape {tuple(L.shape)}; data.observed has {m} columns and the state "
        f"{d} coordinates: ({m}, {d})",
    )
    return L


@finite_laws.register("normal")
def normal_of_states(section: Fields, K: int, m: int) -> Emission:
    """A mean and a standard deviation for each state (lists of K, or K rows of one number a column)."""
    mean, spread = _by_state(section, "mean", K, m), _by_state(section, "std", K, m, positive=True)
    return Emission(lambda x: Independent(Normal(mean[x], spread[x]), 1), lambda x: (mean[x], spread[x]))


@finite_laws.register("poisson")
def poisson_of_states(section: Fields, K: int, m: int) -> Emission:
    """A rate of counts for each state."""
    rate = _by_state(section, "rate", K, m, positive=True)
    return Emission(lambda x: Independent(Poisson(rate[x]), 1), lambda x: (rate[x], rate[x].sqrt()))


@finite_laws.register("table")
def table_of_states(section: Fields, K: int, m: int) -> Emission:
    """Probabilities of categories 0, 1, 2, ...: one row for each state."""
    require(m == 1, f"{section.where}: a table is of one column of categories, and data.observed has {m}")
    rows = section.tensor("rows", axes=(2,))
    require(len(rows) == K, f"{section.where}.rows has {len(rows)} rows for {K} states")
    return Emission(Finite.of(rows), categories=True)


def _by_state(section: Fields, name: str, K: int, m: int, positive: bool = False) -> Tensor:
    """``(K, m)``."""
    value = section.tensor(name, positive=positive, axes=(1, 2))
    value = value[:, None] if value.ndim == 1 else value
    require(
        value.shape == (K, m),
        f"{section.where}.{name} is of shape {tuple(value.shape)}; there are {K} states and {m} columns: ({K}, {m})",
    )
    return value
