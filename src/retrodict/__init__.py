"""retrodict: describe a stochastic process forward; run it backward."""

from retrodict import exact
from retrodict.denoisers import Anneal, Denoiser, Guided, Product, Thresholded
from retrodict.particles import Population
from retrodict.processes import DDPM, EDM, VE, VP, GaussianPath, Masked, RectifiedFlow, SubVP, TokenBridge
from retrodict.solvers import Plan, plan
from retrodict.verbs import Guidance, Samples, condition, sample

__version__ = "0.1.0.dev0"

__all__ = [
    "DDPM", "EDM", "VE", "VP", "Anneal", "Denoiser", "GaussianPath", "Guidance", "Guided", "Masked", "Plan", "Population", "Product",
    "RectifiedFlow", "Samples", "SubVP", "Thresholded", "TokenBridge", "condition", "exact", "plan", "sample",
]
