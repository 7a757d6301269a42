"""The likelihood of a model as a function of its parameters, and its derivatives.

``log p(y | theta)`` is the sum over series of ``condition(model(theta), data).log_evidence``: exact where the model
is linear-Gaussian or finite.  Elsewhere there are two ways:

* an unbiased estimate by particles, a function of a seed (for Metropolis-Hastings);
* a smooth one, for gradients: N guided paths driven by *fixed* normals, ``log mean_i exp(log_w_i(theta))``, an
  importance-sampling estimate that is differentiable in theta (maximum simulated likelihood).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.inference.guided import GuidedPosterior
from retrodict.inference.observed import Observed
from retrodict.inference.parameters.space import Space
from retrodict.inference.posterior import Conditioned, condition_model, serving


@dataclass(frozen=True)
class Likelihood:
    """How a model is conditioned on the data.

    Attributes:
        method: a word of `condition`; "auto": exact where there is a closed form, else the best particles.
        particles: how many, where the method has them.
        options: further ones of `condition`.
    """

    data: Observed
    method: str = "auto"
    particles: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def condition(self, model: Any, seed: int = 0) -> Conditioned:
        """The model conditioned on the data."""
        options = {"seed": seed, **self.options}
        chosen = serving(type(model)).get(self.method)
        if self.method == "auto" or (chosen is not None and "particles" in chosen.options()):
            options["particles"] = self.particles
        return condition_model(model, self.data, self.method, options)

    def value(self, model: Any, seed: int = 0) -> Tensor:
        """log likelihood of all series, exact or the log of an unbiased estimate."""
        return self.condition(model, seed).log_evidence.sum()

    def smooth(self, model: Any, seed: int = 0) -> Tensor:
        """log likelihood of all series with a graph to the parameters; see the module."""
        post = self._smooth_method(model).condition(model, seed)
        if not isinstance(post, GuidedPosterior):
            return post.log_evidence.sum()
        z = post.guided.innovations(post.particles, KeyedNoise(seed, len(self.data), dtype=torch.float64))
        log_w = post.guided.path(z)[1]
        return (torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])).sum()

    def _smooth_method(self, model: Any) -> Likelihood:
        """This likelihood by a method that carries a graph."""
        if self.method != "auto":
            return self
        table = serving(type(model))
        for name in ("exact", "bffg", "guided"):
            if name in table and (name != "guided" or "bffg" not in table):
                if table[name].why_not(model, self.data) is None:
                    return Likelihood(self.data, name, self.particles, self.options)
        raise InputError(
            f"no likelihood of this {type(model).__name__} has a gradient; use method='score-climbing' (Fisher's "
            "identity) or 'pmmh', or condition by a differentiable approximation: likelihood='extended'"
        )


def derivatives(space: Space, f: Callable[[Any], Tensor], free: Tensor, second: bool = False) -> tuple[Tensor, ...]:
    """``f(model(free))`` with its gradient ``(p,)``, and with ``second`` its Hessian ``(p, p)``."""
    free = free.detach().requires_grad_()
    value = traced(space, f, free, second)
    if not value.requires_grad:
        raise InputError("the likelihood does not depend on the parameters; does the model use them as tensors?")
    (gradient,) = torch.autograd.grad(value, free, create_graph=second)
    return (value.detach(), gradient.detach(), *([hessian(gradient, [free])] if second else []))


def traced(space: Space, f: Callable[[Any], Tensor], free: Tensor, second: bool = False) -> Tensor:
    """``f(model(free))`` with a graph to ``free``.

    The tensors of a built model are leaves: what is returned then is the polynomial about them that has the value, the
    gradient and, with ``second``, the Hessian of f.
    """
    if space.leaves is None:
        return f(space.model(free))
    values = space.values(free)
    leaves = space.place(values)
    value = f(space.build(values))
    slopes = torch.autograd.grad(value, leaves, create_graph=second, allow_unused=True) if value.requires_grad else ()
    for name, slope in zip(space.names, slopes):
        if slope is None:
            raise InputError(f"the likelihood does not depend on {name!r}; take it out of the model's laws")
    gradient = _flat(slopes)
    here = _flat(values.values())
    shift = here - here.detach()
    total = value.detach() + shift @ gradient.detach()
    return total + 0.5 * shift @ hessian(gradient, leaves) @ shift if second else total


def hessian(gradient: Tensor, inputs: list[Tensor]) -> Tensor:
    """Symmetric second derivatives ``(p, p)`` from a gradient ``(p,)`` that has a graph."""
    rows = []
    for g in gradient:
        row = torch.autograd.grad(g, inputs, retain_graph=True, allow_unused=True) if g.requires_grad else inputs
        rows.append(_flat(torch.zeros_like(x) if r is None or not g.requires_grad else r for r, x in zip(row, inputs)))
    H = torch.stack(rows).detach()
    return 0.5 * (H + H.mT)


def _flat(parts: Any) -> Tensor:
    return torch.cat([part.double().reshape(-1) for part in parts])
