"""``method="exact"``: the closed forms of state-space models, chosen by what the laws are."""

from __future__ import annotations

from retrodict.inference.emissions import LinearEmission
from retrodict.inference.finite import FinitePosterior
from retrodict.inference.gaussian import linear_posterior
from retrodict.inference.models import StateSpace
from retrodict.inference.observed import Observed
from retrodict.inference.posterior import Conditioned, register
from retrodict.inference.problem import Problem
from retrodict.kernels import Gaussian


def not_exact(model: StateSpace, data: Observed) -> str | None:
    """Why a model has no closed form, or None."""
    problem = Problem(model, data)
    if model.kind == "finite":
        return None if problem.family == "finite" else f"the states are finite and the transition is {problem.family}"
    if not isinstance(problem.prior, Gaussian):
        return f"the prior is {type(problem.prior).__name__}, not Gaussian"
    if problem.family != "linear":
        return (
            "the transition is not known to be linear-Gaussian (write it as kernels.LinearGaussian(A, b, Q) if it is)"
        )
    if not isinstance(problem.emission, LinearEmission):
        return (
            "the observation is not known to be linear-Gaussian (write it as kernels.LinearGaussian(L, c, R) if it is)"
        )
    return None


@register("exact", StateSpace, why_not=not_exact, auto=0)
def exact(model: StateSpace, data: Observed, route: str = "auto") -> Conditioned:
    """Kalman filter and smoother, or forward-backward; ``route`` names the algorithm of the chain."""
    return FinitePosterior(model, data, route) if model.kind == "finite" else linear_posterior(model, data, route)
