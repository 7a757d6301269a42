"""Models by name: each kind reads its section of the configuration and returns laws that `rd.condition` takes.

Nothing in a file can run code: kinds, drifts, laws of observation and priors are words of registries, and everything
else is numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import retrodict as rd
from retrodict.app.infer.drifts import Drift, Emission, drifts, finite_laws, real_laws
from retrodict.app.infer.fields import Fields, Free, quote
from retrodict.core.errors import InputError, require
from retrodict.core.registry import Registry
from retrodict.kernels import Finite, Gaussian, LinearGaussian, LinearSDE


@dataclass(frozen=True)
class Built:
    """A model, and what the command needs to know of it.

    Attributes:
        names: of the coordinates of the state, or of the finite states.
        start: a known state, where the model has no prior.
    """

    model: Any
    emission: Emission
    names: tuple[str, ...]
    finite: bool = False


kinds: Registry[Callable[[Fields, int, float], Built]] = Registry("model kind")


def build(
    given: Any, columns: int, t0: float, values: Mapping[str, Tensor] | None = None
) -> tuple[Built, dict[str, Free]]:
    """The model of a section for data of so many ``columns`` that begin at ``t0``, and its free parameters.

    Args:
        values: of free parameters by name; by default their guesses.
    """
    fields = Fields(given, "model", values=values)
    made = fields.word("kind", kinds)(fields, columns, t0)
    fields.done()
    return made, fields.free


# --- parts that kinds share -------------------------------------------------------------------------------------


def _seen(fields: Fields, laws: Registry[Any], size: int, m: int) -> Emission:
    """The law of observation; ``noise: 0.3`` in place of the section is short for a normal law."""
    if laws is real_laws and "noise" in fields and "observation" not in fields:
        return real_laws["normal"](_Only(fields, "noise", "operator"), size, m)
    section = fields.sub("observation", short="law")
    emission = section.word("law", laws, "normal")(section, size, m)
    section.done()
    return emission


class _Only(Fields):
    """Some fields of a section, taken in its name."""

    def __init__(self, whole: Fields, *names: str) -> None:
        super().__init__({n: whole.given.get(n) for n in names}, whole.where, whole.free, whole.values, whole.prefix)
        whole.asked += names


def _start(fields: Fields, d: int, default: Any = ...) -> Gaussian:
    """The law of the first state: ``start: [numbers]`` is known, ``start: {mean:, std:}`` is Gaussian."""
    value = fields.take("start", default)
    if isinstance(value, Gaussian):
        return value
    zero = torch.zeros(d, dtype=torch.float64)
    if not isinstance(value, Mapping) or "guess" in value:
        mean, spread = fields.tensor("start", axes=(0, 1)), zero
    else:
        section = fields.sub("start")
        mean = section.tensor("mean", [0.0] * d, axes=(0, 1))
        spread = section.tensor("std", positive=True, axes=(0, 1))
        section.done()
    for name, part in (("mean", mean), ("std", spread)):
        require(
            part.ndim == 0 or len(part) == d,
            f"{fields.where}.start has a {name} of {part.numel()} numbers; the state has {d} coordinates",
        )
    return Gaussian(mean.expand(d)[None], torch.diag_embed(spread.expand(d) ** 2)[None])


def _names(fields: Fields, size: int) -> tuple[str, ...]:
    """The names of coordinates or of finite states."""
    names = fields.take("names", None)
    if names is None:
        return ("state",) if size == 1 else tuple(f"state {i}" for i in range(size))
    if not isinstance(names, list) or len({str(name) for name in names}) != size:
        raise InputError(f"{fields.where}.names is {quote(names)}; it has {size} different names")
    return tuple(str(name) for name in names)


def _square(fields: Fields, name: str, d: int, default: Any = ...) -> Tensor:
    value = fields.tensor(name, default, axes=(0, 1, 2))
    value = torch.diag_embed(value.expand(d)) if value.ndim < 2 else value
    require(value.shape == (d, d), f"{fields.where}.{name} is of shape {tuple(value.shape)}; accepted: ({d}, {d})")
    return value


# --- real states in steps ---------------------------------------------------------------------------------------


@kinds.register("local-level")
def local_level(fields: Fields, m: int, t0: float) -> Built:
    """A level that wanders by ``level`` (a standard deviation) in the square root of a unit of time."""
    level = fields.tensor("level", positive=True)

    def step(s: Any, t: Any) -> LinearGaussian:
        variance = level**2 * torch.as_tensor(t - s, dtype=torch.float64)
        one = torch.ones(*variance.shape, 1, 1, dtype=torch.float64)
        return LinearGaussian(one, torch.zeros(*variance.shape, 1, dtype=torch.float64), variance[..., None, None])

    emission = _seen(fields, real_laws, 1, m)
    return Built(rd.StateSpace(_start(fields, 1), step, emission.law), emission, ("level",))


@kinds.register("local-trend")
def local_trend(fields: Fields, m: int, t0: float) -> Built:
    """A level with a slope, each wandering: ``level`` and ``slope`` are standard deviations of a step of one."""
    spread = torch.stack((fields.tensor("level", positive=True), fields.tensor("slope", positive=True)))
    A = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    step = LinearGaussian(A, torch.zeros(2, dtype=torch.float64), torch.diag_embed(spread**2))
    emission = _seen(fields, real_laws, 2, m)
    return Built(rd.StateSpace(_start(fields, 2), step, emission.law), emission, ("level", "slope"))


@kinds.register("ar")
def autoregression(fields: Fields, m: int, t0: float) -> Built:
    """``x_k = mean + sum_i coefficients[i] (x_(k-1-i) - mean) + innovation``; starts in its stationary law."""
    phi = fields.tensor("coefficients", axes=(1,))
    mean, sigma = fields.tensor("mean", 0.0), fields.tensor("innovation", positive=True)
    p = len(phi)
    shift = torch.eye(p, dtype=torch.float64)[:-1]
    A = torch.cat((phi[None], shift))
    b = mean * (torch.eye(p, dtype=torch.float64) - A).sum(1)
    Q = torch.zeros(p, p, dtype=torch.float64)
    Q = Q.index_put((torch.tensor(0), torch.tensor(0)), sigma**2)
    stationary = None if "start" in fields else _stationary(A, Q, mean, fields.where)
    emission = _seen(fields, real_laws, p, m)
    names = ("state", *(f"state {i} back" for i in range(1, p)))
    return Built(rd.StateSpace(_start(fields, p, stationary), LinearGaussian(A, b, Q), emission.law), emission, names)


def _stationary(A: Tensor, Q: Tensor, mean: Tensor, where: str) -> Gaussian:
    """The law that the autoregression leaves as it is: ``P = A P A' + Q``."""
    largest = float(torch.linalg.eigvals(A.detach()).abs().max())
    require(
        largest < 1,
        f"{where}.coefficients do not settle (a root of size {largest:.3g}), so there is no stationary law to start "
        "in; give start: {mean: ..., std: ...}",
    )
    p = len(A)
    P = torch.linalg.solve(torch.eye(p * p, dtype=torch.float64) - torch.kron(A, A), Q.reshape(-1)).reshape(p, p)
    return Gaussian(mean.expand(p)[None], (P + P.mT)[None] / 2)


@kinds.register("linear-gaussian")
def linear_gaussian(fields: Fields, m: int, t0: float) -> Built:
    """``x_k = matrix x_(k-1) + offset + N(0, covariance)``."""
    A = fields.tensor("matrix", axes=(2,))
    d = len(A)
    A = _square(fields, "matrix", d)
    Q, b = _square(fields, "covariance", d), fields.tensor("offset", [0.0] * d, axes=(1,))
    emission = _seen(fields, real_laws, d, m)
    return Built(rd.StateSpace(_start(fields, d), LinearGaussian(A, b, Q), emission.law), emission, _names(fields, d))


@kinds.register("sde")
def diffusion(fields: Fields, m: int, t0: float) -> Built:
    """``dx = drift dt + diffusion dW``; exact where the drift is linear, in Euler steps elsewhere."""
    section = fields.sub("drift", short="family")
    drift: Drift = section.word("family", drifts)(section)
    section.done()
    d = drift.d
    spread = fields.tensor("diffusion", positive=False, axes=(0, 1, 2))
    require(
        spread.ndim == 0 or len(spread) == d,
        f"{fields.where}.diffusion has {len(spread) if spread.ndim else 1} rows; the drift has {d} coordinates",
    )
    emission = _seen(fields, real_laws, d, m)
    start = _start(fields, d)
    t0 = float(fields.tensor("t0", t0))
    if drift.linear is None:
        model: Any = rd.SDE(drift.f, spread, start, t0, emission.law)
    else:
        model = rd.StateSpace(start, LinearSDE(*drift.linear, spread, d), emission.law, t0)
    return Built(model, emission, _names(fields, d))


# --- finite states ----------------------------------------------------------------------------------------------


@kinds.register("hmm")
def hidden_markov(fields: Fields, m: int, t0: float) -> Built:
    """Finite states that jump at every step by the rows of ``transition``."""
    P = fields.tensor("transition", axes=(2,))
    K = len(P)
    require(P.shape == (K, K), f"{fields.where}.transition is of shape {tuple(P.shape)}; it is square")
    prior = _initial(fields, K)
    emission = _seen(fields, finite_laws, K, m)
    return Built(rd.StateSpace(prior, Finite.of(P), emission.law), emission, _names(fields, K), finite=True)


@kinds.register("jump")
def jump_process(fields: Fields, m: int, t0: float) -> Built:
    """Finite states that jump at any time: ``rates`` off the diagonal (the diagonal is filled in)."""
    rates = fields.tensor("rates", axes=(2,))
    K = len(rates)
    require(rates.shape == (K, K), f"{fields.where}.rates is of shape {tuple(rates.shape)}; it is square")
    off = rates * (1 - torch.eye(K, dtype=torch.float64))
    rates = off - torch.diag_embed(off.sum(1))
    prior = _initial(fields, K)
    seen = "observation" in fields
    emission = _seen(fields, finite_laws, K, m) if seen else Emission(None, categories=True)
    fields.asked += ["observation"]
    model = rd.JumpProcess(rates, prior, emission.law, float(fields.tensor("t0", t0)))
    return Built(model, emission, _names(fields, K), finite=True)


def _initial(fields: Fields, K: int) -> Any:
    p = fields.tensor("initial", [1.0 / K] * K, axes=(1,))
    require(
        len(p) == K and bool((p.detach() >= 0).all()) and abs(float(p.sum()) - 1) < 1e-6,
        f"{fields.where}.initial is {quote(fields.given.get('initial'))}; it has {K} probabilities that sum to one",
    )
    return torch.distributions.Categorical(probs=p)
