"""`StateSpace`: a hidden Markov process and the law of what is seen of it; and the model laid out on data.

    x_0 ~ prior          x_k | x_{k-1} ~ transition          y_k | x_k ~ observation

The model is the law only; how it is conditioned is the method's business.  `Problem` lays a model on the times of
data: *nodes* are the distinct times of each series (and ``t0``, and for a transition that is one step of unit length
the steps between), observations sit at nodes, and every route reads kernels and log-likelihoods from there.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from retrodict.core.errors import InputError, InputTypeError, require
from retrodict.core.lin import Lin
from retrodict.inference.emissions import Emission, as_emission, matrix, normal_moments
from retrodict.inference.transitions import Transition, as_transition
from retrodict.kernels import Categorical, Gaussian
from retrodict.kernels.precise import Precise

_FOREIGN = {"numpy", "pandas", "xarray", "matplotlib"}
_LIBRARIES = {"torch", "scipy", "sklearn", "retrodict", "math"}


class StateSpace:
    """A state-space model: laws only.

    Args:
        prior: of the state at ``t0``: a `Gaussian`, a `Categorical` (finite states), a torch.distributions object,
            or a function or module without arguments that returns one of these.
        transition: a `Kernel` (one step of unit length), anything with ``.kernel(s, t)`` (a process, a linear SDE), a
            callable ``(s, t) -> Kernel``, a list of kernels (one between consecutive times), or a callable
            ``x -> torch.distributions`` (one step of unit length).
        observation: a `Kernel`, a callable ``x -> torch.distributions`` or ``(x, y) -> log density``.  None: the
            data say how they were made, ``Observed(y, operator=, noise=)``.
        t0: where the prior sits; by default at the first observation of each series.

    States that callables get have any leading axes: ``x (..., d)``, or integers ``(...)`` for finite states.  A torch
    Normal, Independent Normal or MultivariateNormal is known to be Gaussian, a Categorical to be finite.

    >>> import torch
    >>> from torch.distributions import Normal
    >>> model = StateSpace(Normal(torch.zeros(1), 1.0), lambda x: Normal(0.9 * x, 0.5), lambda x: Normal(x, 1.0))
    >>> model
    StateSpace(1 real coordinate, non-linear Gaussian transition, Gaussian observation)
    """

    def __init__(self, prior: Any, transition: Any, observation: Any = None, t0: float | None = None) -> None:
        self.given = (prior, transition, observation)
        self.prior, self.kind, self.size = as_prior(prior)
        self.t0 = None if t0 is None else float(t0)
        self.transition: Transition = as_transition(transition, self.probe)
        self.emission: Emission | None = None if observation is None else as_emission(observation, self.probe)

    @property
    def probe(self) -> Tensor:
        """States that tell what callables return: the prior's mean ``(1, d)``, or all finite states ``(K,)``."""
        if self.kind == "finite":
            return torch.arange(self.size)
        if isinstance(self.prior, Gaussian):
            return self.prior.mean.detach()[:1].double()
        return self.prior.sample().detach().reshape(1, -1).double()

    def parameters(self) -> Iterator[Tensor]:
        """Every tensor inside the laws that a gradient can reach: of modules, kernels, distributions and closures."""
        yield from leaves(self.given)

    def __repr__(self) -> str:
        if self.kind == "finite":
            space = f"{self.size} states"
        else:
            space = f"{self.size} real coordinate{'s' if self.size > 1 else ''}"
        law = "no" if self.emission is None else type(self.emission).__name__.removesuffix("Emission")
        if self.emission is not None and self.emission.gaussian and law == "Law":
            law = "Gaussian"
        return f"StateSpace({space}, {self.transition.describe()} transition, {law} observation)"


def as_prior(prior: Any) -> tuple[Any, str, int]:
    """``(law, "real" or "finite", dimension or number of states)``; laws get a leading batch axis ``(1|S, ...)``."""
    prior = prior() if callable(prior) else prior
    if isinstance(prior, Categorical):
        log_p = torch.log_softmax(prior.log_p.double(), -1)
        log_p = log_p if log_p.ndim > 1 else log_p[None]
        return Categorical(log_p), "finite", log_p.shape[-1]
    if isinstance(prior, torch.distributions.Categorical):
        return as_prior(Categorical(prior.logits))
    if isinstance(prior, Distribution):
        shape = prior.batch_shape + prior.event_shape
        require(
            len(shape) <= 1, f"the prior is the law of one state, a vector; its draws have the shape {tuple(shape)}"
        )
        normal = normal_moments(prior, 0 if len(shape) == 0 or not prior.batch_shape else len(shape) - 1)
        if normal is None:
            return prior, "real", int(shape[0]) if shape else 1
        prior = Gaussian(normal[0].reshape(1, -1), Lin.dense(normal[1].reshape(1, *normal[1].shape[-2:])))
    if not isinstance(prior, Gaussian):
        raise InputTypeError(
            "prior is a kernels.Gaussian, a kernels.Categorical, a torch.distributions object or a function or module "
            f"without arguments that returns one, got {type(prior).__name__} (kernels.Categorical.of(p) for "
            "probabilities, kernels.Gaussian(mean, covariance) for moments)"
        )
    mean = prior.mean.double()
    mean = mean if mean.ndim > 1 else mean.reshape(1, -1)
    require(bool(torch.isfinite(mean).all()), "the prior's mean has entries that are not finite; NaN is for y alone")
    require(mean.ndim == 2, f"the prior's mean has the shape {tuple(mean.shape)}; states are vectors: (d,) or (S, d)")
    cov = matrix(prior.cov, mean.shape[-1])
    if cov.shape[-1] != mean.shape[-1]:
        raise InputError(f"the prior's mean has {mean.shape[-1]} coordinates and its covariance {cov.shape[-1]}")
    return Gaussian(mean, Lin.dense(cov if cov.ndim == 3 else cov[None])), "real", mean.shape[-1]


def leaves(value: Any) -> Iterator[Tensor]:
    """Tensors inside a value that ask for gradients, each once: through modules, kernels, lists and closures."""
    yield from (leaf for _, leaf in named_leaves(value))


def named_leaves(
    value: Any, path: tuple[str, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """`leaves` with the names of the attributes, variables and keys that lead to each."""
    seen = set() if seen is None else seen
    if value is None or id(value) in seen or isinstance(value, (str, bytes, int, float, type)):
        return
    if isinstance(value, Tensor) and value._base is not None:
        yield from named_leaves(value._base, path, seen)  # distributions keep expanded views of their parameters
        return
    seen.add(id(value))
    if type(value).__module__.split(".")[0] in _FOREIGN:
        return
    if isinstance(value, Tensor):
        if value.requires_grad and value.is_leaf:
            yield path, value
        return
    for name, part in _parts(value).items():
        yield from named_leaves(part, (*path, name), seen)


def _parts(value: Any) -> dict[str, Any]:
    """What a value is made of, by name."""
    value = value.f if isinstance(value, Precise) else value
    if isinstance(value, torch.nn.Module):
        return dict(value.named_parameters())
    if isinstance(value, (list, tuple, set)):
        return {str(i): part for i, part in enumerate(value)}
    if isinstance(value, dict):
        return {str(key): part for key, part in value.items()}
    if inspect.ismethod(value):
        return {"self": value.__self__, "function": value.__func__}
    if inspect.isfunction(value):
        inside = inspect.getclosurevars(value)
        return {**{k: v for k, v in inside.globals.items() if not inspect.ismodule(v)}, **inside.nonlocals}
    if inspect.ismodule(value) or inspect.isbuiltin(value):
        return {}
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return dict(getattr(value, "__dict__", {}))
