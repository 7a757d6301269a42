"""Named parameters of a model, and the flat vector of free numbers that every method of this room works on.

A model with parameters comes in one of two forms:

* a function of named parameters that returns a model, ``lambda a, s: StateSpace(...)``, with ``start={"a": .5, ...}``;
* a built model whose laws hold tensors that require gradients (modules, kernels, closures); their names are those of
  the attributes or variables that hold them, and a fit leaves them at the estimate.

The free numbers of a parameter are ``biject_to(support)^-1`` of it, the support being its prior's, the one given in
``supports``, or the real line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints

from retrodict.core.errors import InputError, InputTypeError, near
from retrodict.inference.models import named_leaves
from retrodict.inference.posterior import known_models, serving

#: Words for supports; a pair ``(low, high)`` is an interval, and any `torch.distributions.constraints` object will do.
SUPPORTS: dict[str, Any] = {
    "real": constraints.real,
    "positive": constraints.positive,
    "unit": constraints.unit_interval,
    "simplex": constraints.simplex,
    "cholesky": constraints.lower_cholesky,
}


@dataclass(frozen=True)
class Parameter:
    """One named parameter: where it starts, what values it may take, and how it is made of free numbers."""

    name: str
    start: Tensor
    map: Any  # a `Transform`; its calls are typed as optional in torch
    prior: Distribution | None
    free_shape: torch.Size = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "free_shape", self.map.inv(self.start).shape)

    @property
    def size(self) -> int:
        """How many free numbers it has."""
        return self.free_shape.numel()


class Space:
    """Parameters as one vector ``free (p,)`` of float64, and the model that belongs to it.

    Attributes:
        parameters: in order; names: of them.
        start: ``(p,)``.
        build: values -> model.
        leaves: the tensors of a built model, by name; None for a function.
    """

    def __init__(
        self, parameters: list[Parameter], build: Callable[[dict[str, Any]], Any], leaves: dict[str, Tensor] | None
    ) -> None:
        self.parameters, self.build, self.leaves = parameters, build, leaves
        self.names = [p.name for p in parameters]
        self.start = self.free({p.name: p.start for p in parameters})

    @property
    def size(self) -> int:
        """Free numbers in all."""
        return len(self.start)

    @property
    def bayesian(self) -> bool:
        """Whether every parameter has a prior."""
        return all(p.prior is not None for p in self.parameters)

    def values(self, free: Tensor) -> dict[str, Tensor]:
        """Parameters of free numbers ``(..., p)``, each ``(..., *shape)``."""
        pieces = free.split([p.size for p in self.parameters], -1)
        return {
            p.name: p.map(piece.reshape((*free.shape[:-1], *p.free_shape))) for p, piece in zip(self.parameters, pieces)
        }

    def free(self, values: Mapping[str, Tensor]) -> Tensor:
        """The free numbers ``(p,)`` of parameters."""
        return torch.cat([p.map.inv(values[p.name]).reshape(-1) for p in self.parameters])

    def model(self, free: Tensor) -> Any:
        """The model at free numbers; of a built model its own tensors are set."""
        values = self.values(free)
        if self.leaves is not None:
            self.place(values)
        return self.build(values)

    def place(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Write values into the tensors of a built model; those tensors."""
        assert self.leaves is not None
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(values[name].reshape(leaf.shape))
        return list(self.leaves.values())

    def log_prior(self, free: Tensor, jacobian: bool = True) -> Tensor:
        """log prior density of the free numbers; without ``jacobian`` of the parameters themselves."""
        total = torch.zeros((), dtype=torch.float64)
        pieces = free.split([p.size for p in self.parameters])
        for p, piece in zip(self.parameters, pieces):
            raw = piece.reshape(p.free_shape)
            value = p.map(raw)
            if p.prior is not None:
                total = total + p.prior.log_prob(value).sum()
            if jacobian:
                total = total + p.map.log_abs_det_jacobian(raw, value).sum()
        return total

    def plain(self, free: Tensor) -> dict[str, Any]:
        """Parameters for a person: floats, or tensors without a graph."""
        return {name: plain(value) for name, value in self.values(free.detach()).items()}

    def split(self, values: Tensor) -> dict[str, Any]:
        """One number for each entry of the parameters ``(sum of their sizes,)``, by name and shape."""
        pieces = values.split([p.start.numel() for p in self.parameters])
        return {p.name: plain(piece.reshape(p.start.shape)) for p, piece in zip(self.parameters, pieces)}


def plain(value: Tensor) -> Any:
    """A float of a number, else the tensor."""
    return float(value) if value.ndim == 0 else value.detach().clone()


def make_space(
    model: Any,
    start: Mapping[str, Any] | None,
    priors: Mapping[str, Distribution] | None,
    supports: Mapping[str, Any] | None,
) -> Space:
    """The parameters of a model in either form; every name and value checked."""
    if serving(type(model)):
        return _of_model(model, start or {}, priors or {}, supports or {})
    if not callable(model) or isinstance(model, type):
        raise InputTypeError(
            f"model is a model ({known_models()}) or a function of parameters that returns one, got "
            f"{model.__name__ if isinstance(model, type) else type(model).__name__}"
        )
    return _of_function(model, start or {}, priors or {}, supports or {})


def _of_model(
    model: Any, start: Mapping[str, Any], priors: Mapping[str, Distribution], supports: Mapping[str, Any]
) -> Space:
    leaves = dict(_named(model))
    if not leaves:
        raise InputError(
            f"the {type(model).__name__} holds nothing to fit: no tensor in its laws requires a gradient. Give them "
            "modules or tensors with requires_grad=True, or give a function of parameters that returns a model, with "
            "start="
        )
    _known("start", start, leaves)
    _known("priors", priors, leaves)
    _known("supports", supports, leaves)
    parameters = []
    for name, leaf in leaves.items():
        value = leaf.detach() if name not in start else _value(name, start[name]).reshape(leaf.shape)
        parameters.append(_parameter(name, value.double().clone(), priors.get(name), supports.get(name)))
    return Space(parameters, lambda values: model, leaves)


def _named(model: Any) -> list[tuple[str, Tensor]]:
    """Leaves with the shortest ends of their paths that tell them apart."""
    found = [(tuple(_words(path)), leaf) for path, leaf in named_leaves(model)]
    named = []
    for i, (path, leaf) in enumerate(found):
        others = [other for j, (other, _) in enumerate(found) if j != i]
        length = next((n for n in range(1, len(path)) if all(o[-n:] != path[-n:] for o in others)), len(path))
        name = ".".join(path[-length:]) or "parameter"
        named.append((name if name not in dict(named) else f"{name}_{i}", leaf))
    return named


def _words(path: tuple[str, ...]) -> list[str]:
    """A path's words that mean something to a person."""
    words = [word.strip("_") for part in path for word in part.split(".")]
    kept = [w for w in words if not w.isdigit() and w not in ("given", "value", "self", "function", "")]
    return kept or words


def _of_function(
    f: Callable[..., Any], start: Mapping[str, Any], priors: Mapping[str, Distribution], supports: Mapping[str, Any]
) -> Space:
    arguments = inspect.signature(f).parameters
    anything = any(a.kind is a.VAR_KEYWORD for a in arguments.values())
    taken = {n: a for n, a in arguments.items() if a.kind not in (a.VAR_KEYWORD, a.VAR_POSITIONAL)}
    if not anything:
        _known("start", start, taken)
        _known("priors", priors, taken)
    names = [n for n in taken if n in start or n in priors] + [n for n in (*start, *priors) if n not in taken]
    names = list(dict.fromkeys(names))
    lacking = [n for n, a in taken.items() if n not in names and a.default is a.empty]
    if lacking or not names:
        raise InputError(
            f"the model is a function of {', '.join(taken) or 'nothing'}, and start= (or priors=) gives no value for "
            f"{', '.join(lacking) or 'any'}"
        )
    _known("supports", supports, names)
    parameters = []
    for name in names:
        value = _value(name, start[name]) if name in start else _from_prior(priors[name])
        parameters.append(_parameter(name, value, priors.get(name), supports.get(name)))
    return Space(parameters, lambda values: f(**values), None)


def _known(what: str, given: Mapping[str, Any], known: Any) -> None:
    for name in given:
        if name not in known:
            raise InputError(f"{what} names {name!r}; the parameters are: {', '.join(known)}.{near(name, known)}")


def _value(name: str, value: Any) -> Tensor:
    found = torch.as_tensor(value, dtype=torch.float64).detach().clone()
    if not bool(torch.isfinite(found).all()):
        raise InputError(f"start[{name!r}] = {found.tolist()} is not finite")
    return found


def _from_prior(prior: Distribution) -> Tensor:
    """The prior's mean where it has one inside its support, else the middle of the free numbers."""
    try:
        mean = prior.mean.double()
        if bool(torch.isfinite(mean).all()) and bool(torch.as_tensor(prior.support.check(mean)).all()):  # type: ignore[union-attr]
            return mean
    except NotImplementedError:
        pass
    return biject_to(prior.support)(torch.zeros(prior.batch_shape + prior.event_shape, dtype=torch.float64))


def _parameter(name: str, start: Tensor, prior: Any, support: Any) -> Parameter:
    if prior is not None and not isinstance(prior, Distribution):
        raise InputTypeError(f"priors[{name!r}] is a torch.distributions object, got {type(prior).__name__}")
    if prior is not None and support is not None:
        raise InputError(f"{name!r} has a prior, whose support it takes; leave it out of supports")
    region = prior.support if prior is not None else _support(name, support)
    inside = bool(torch.as_tensor(region.check(start)).all())  # type: ignore[union-attr]
    map = biject_to(region)
    if not inside or not bool(torch.isfinite(map.inv(start)).all()):
        whose = f"its prior {type(prior).__name__}" if prior is not None else "supports"
        raise InputError(
            f"start[{name!r}] = {start.tolist()} is not inside the support {region} of {whose}; start at a value "
            "inside it, not on its edge"
        )
    return Parameter(name, start, map, prior)


def _support(name: str, given: Any) -> Any:
    if given is None:
        return constraints.real
    if isinstance(given, str):
        if given not in SUPPORTS:
            raise InputError(
                f"supports[{name!r}] = {given!r}; words are: {', '.join(SUPPORTS)}, an interval is (low, high)."
                f"{near(given, SUPPORTS)}"
            )
        return SUPPORTS[given]
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return constraints.interval(float(given[0]), float(given[1]))
    if isinstance(given, constraints.Constraint):
        return given
    raise InputTypeError(f"supports[{name!r}] is a word, a pair (low, high) or a constraint, got {given!r}")
