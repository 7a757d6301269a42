"""Parameters that a configuration leaves open, through `rd.fit_parameters`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import retrodict as rd
from retrodict.app.infer.fields import Free
from retrodict.app.infer.models import Built, build
from retrodict.core.errors import InputError, require

OWN = ("model", "data", "start", "priors", "supports", "likelihood", "conditioning", "progress")  # not from a file


@dataclass(frozen=True)
class Summary:
    """One number that was fitted.

    Attributes:
        value: the estimate or posterior mean; spread: its standard error or posterior deviation, NaN where unknown.
        low, high: 90% interval of the draws; by the spread where there are none.
    """

    name: str
    value: float
    spread: float
    low: float
    high: float
    r_hat: float | None = None
    ess: float | None = None


def fit_model(
    spec: Any, built: Built, free: Mapping[str, Free], data: rd.Observed, given: Any, words: Mapping[str, Any]
) -> tuple[Built, Any]:
    """The model at fitted parameters, and what `rd.fit_parameters` returned.

    Args:
        spec: the section ``model``; built, free: what `build` made of it.
        given: the section ``fit``: the method (by default "pmmh" where every parameter has a prior, else "gradient";
            "em" fits all laws of a model whose parameters have closed forms) and its options.
        words: ``likelihood``, ``conditioning`` and ``seed``.
    """
    options = dict(given)
    method = str(options.pop("method", "pmmh" if all(p.prior is not None for p in free.values()) else "gradient"))
    for name in OWN:
        require(name not in options, f"fit has no {name!r}; guesses and priors stand in the model, the rest in infer")
    call: dict[str, Any] = {**words, "progress": False, **options}
    if method == "em":
        if free:
            raise InputError(f"method 'em' fits every law of the model; write numbers for {', '.join(free)}")
        fit = rd.fit_parameters(built.model, data, "em", **call)
        return replace(built, model=fit.model, emission=replace(built.emission, moments=_moments(fit.model))), fit
    require(bool(free), "fit is given and the model has no open parameter; write {guess: ...} in place of a number")
    columns, t0 = 1 if data.categories else data.y.shape[-1], float(data.times[0, 0])
    fit = rd.fit_parameters(
        lambda **values: build(spec, columns, t0, values)[0].model,
        data,
        method,
        start={name: p.guess for name, p in free.items()},
        priors={name: p.prior for name, p in free.items() if p.prior is not None},
        supports={name: "positive" for name, p in free.items() if p.positive and p.prior is None},
        **call,
    )
    values = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in fit.parameters.items()}
    return build(spec, columns, t0, values)[0], fit


def _moments(model: Any) -> Any:
    """The moments of a model's own Gaussian law of observation, or None."""
    if not model.emission.gaussian:
        return None

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, cov = model.emission.moments(x)
        return mean.detach(), cov.diagonal(dim1=-2, dim2=-1).sqrt().detach().expand(mean.shape)

    return moments


def summaries(fit: Any) -> list[Summary]:
    """Every number of the parameters of a fit, by name and place."""
    found = []
    for name, value in fit.parameters.items():
        entries = torch.as_tensor(value, dtype=torch.float64)
        errors = None if fit.standard_errors is None else torch.as_tensor(fit.standard_errors[name])
        for at in np.ndindex(*entries.shape):
            spread = float("nan") if errors is None else float(errors[at])
            label, middle = name + "".join(f"[{i}]" for i in at), float(entries[at])
            low, high = middle - 1.645 * spread, middle + 1.645 * spread
            if fit.draws is None:
                found.append(Summary(label, middle, spread, low, high))
                continue
            draws = fit.draws[name][(..., *at)]
            low, high = (float(torch.quantile(draws.double(), q)) for q in (0.05, 0.95))
            mixing = (float(torch.as_tensor(v[name])[at]) for v in (fit.r_hat, fit.ess))
            found.append(Summary(label, middle, spread, low, high, *mixing))
    return found
