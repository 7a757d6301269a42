"""How a denoiser is learned: one regression onto a conditional target, and its choices by name."""

from retrodict.objectives.couplings import Coupling, couplings
from retrodict.objectives.make import make_objective, objectives
from retrodict.objectives.regression import Regression
from retrodict.objectives.times import Importance, TimeLaw, time_laws
from retrodict.objectives.tokens import ChainRegression, EmbeddedRegression, TokenRegression
from retrodict.objectives.weightings import Weighting, weightings

__all__ = [
    "ChainRegression",
    "Coupling",
    "EmbeddedRegression",
    "Importance",
    "Regression",
    "TimeLaw",
    "TokenRegression",
    "Weighting",
    "couplings",
    "make_objective",
    "objectives",
    "time_laws",
    "weightings",
]
