"""Models assembled from kernels, and what is inferred of them from data: filters, smoothers, bridges, parameters.

`posterior` has the table of methods; every route of this room registers itself there when it is imported.
"""

import retrodict.inference.exact
import retrodict.inference.extended
import retrodict.inference.particle_posterior  # noqa: F401  (they register their methods)
from retrodict.inference.guided import GuidedPosterior
from retrodict.inference.jumps import JumpPaths, JumpProcess, ReactionNetwork
from retrodict.inference.models import StateSpace
from retrodict.inference.observed import Observed
from retrodict.inference.posterior import Conditioned, Method, condition_model, methods, register
from retrodict.inference.problem import Problem
from retrodict.inference.results import Marginals, Paths
from retrodict.inference.sde import SDE
from retrodict.inference.tree import Tree

__all__ = [
    "SDE",
    "Conditioned",
    "GuidedPosterior",
    "JumpPaths",
    "JumpProcess",
    "Marginals",
    "Method",
    "Observed",
    "Paths",
    "Problem",
    "ReactionNetwork",
    "StateSpace",
    "Tree",
    "condition_model",
    "methods",
    "register",
]
