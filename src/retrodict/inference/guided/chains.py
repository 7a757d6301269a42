"""State-space models guided by all of the future: the method "bffg" of a `StateSpace`.

Where the method "guided" looks at the next observation, this one filters backward through all of them: transitions
that are Gaussian given the state, linear or not, pull their messages through an auxiliary chain, and observations of
any law with a density enter by surrogates.  One sweep replaces most of the resampling.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from retrodict.inference.guided.evidence import Evidence
from retrodict.inference.guided.model import GuidedModel
from retrodict.inference.guided.posterior import GuidedPosterior, start_law
from retrodict.inference.guided.steps import KernelSteps, LinearSteps, Steps
from retrodict.inference.models import StateSpace
from retrodict.inference.observed import Observed
from retrodict.inference.posterior import register
from retrodict.inference.problem import Grouped, Problem


def no_lookahead(model: StateSpace, data: Observed) -> str | None:
    """Why a chain cannot be guided by all of its future, or None."""
    if model.kind == "finite":
        return "the states are finite, and 'exact' is exact"
    problem = Problem(model, data)
    if problem.family not in ("linear", "gaussian"):
        return f"the transition is {problem.family}, not Gaussian"
    if _nodes(problem) is None:
        return "the series are seen at different nodes; condition them one by one"
    return None


@register("bffg", StateSpace, why_not=no_lookahead)
def bffg(
    model: StateSpace,
    data: Observed,
    particles: int = 1000,
    seed: int = 0,
    weight: str = "doob",
    auxiliary: Any = "auto",
    rounds: int | None = None,
    resample: str = "systematic",
    threshold: float = 0.5,
) -> GuidedPosterior:
    """Backward filtering forward guiding of a chain.

    Args:
        weight: "doob" or "path"; auxiliary: "auto", "regress", "linearise", "brownian" or arrays ``(A, b, Q)``.
        particles, seed, resample, threshold: of the engine; rounds: of the auxiliary.
    """
    problem = Problem(model, data)
    law, d, tilt = start_law(problem.prior, problem.S)
    steps = _steps(problem, d)
    nodes = _nodes(problem)
    assert nodes is not None  # no_lookahead has seen to it
    y, seen = problem.filled
    ends = problem.ends

    def make(keep: bool = True, stretches_only: bool = False) -> GuidedModel:
        """The guided model, prepared."""
        evidence = Evidence(nodes, problem.n + 1, d, problem.emission, y, seen)
        return GuidedModel(
            steps, evidence, law, weight, auxiliary, rounds, tilt, stretches_only=stretches_only, keep=keep, ends=ends
        )

    return GuidedPosterior(model, data, make, problem.times, nodes, particles, seed, resample, threshold)


def _nodes(problem: Problem) -> list[int] | None:
    """The node of each observation where the series share it; shorter series may end early."""
    at: Tensor = problem.at
    longest = at[int((at >= 0).sum(1).argmax())]
    shared = ((at == longest) | (at < 0)).all()
    return longest.tolist() if bool(shared) else None


def _steps(problem: Problem, d: int) -> Steps:
    if problem.family == "linear":
        A, b, Q = problem.arrays()
        return LinearSteps((A.double(), b.double(), Q.double()), problem.n, problem.S)
    parts = []
    for k in range(1, problem.n + 1):
        kernel = problem.kernel(k)
        assert isinstance(kernel, Grouped)
        parts.append(kernel.parts)
    return KernelSteps(parts, d, problem.S)
