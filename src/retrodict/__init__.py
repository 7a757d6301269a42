"""retrodict: describe a stochastic process forward; run it backward."""

from retrodict import exact
from retrodict.data import Data, load_data
from retrodict.denoisers import Anneal, Denoiser, Guided, Product, Thresholded
from retrodict.denoisers.diffusers import from_diffusers
from retrodict.particles import Population
from retrodict.processes import (
    DDPM,
    EDM,
    VE,
    VP,
    GaussianPath,
    Interpolant,
    Masked,
    RectifiedFlow,
    SubVP,
    TokenBridge,
)
from retrodict.solvers import Plan, plan
from retrodict.verbs import Guidance, Samples, condition, fit, load, sample, save

__version__ = "0.1.0.dev0"

__all__ = [
    "DDPM",
    "EDM",
    "VE",
    "VP",
    "Anneal",
    "Data",
    "Denoiser",
    "GaussianPath",
    "Guidance",
    "Guided",
    "Interpolant",
    "Masked",
    "Plan",
    "Population",
    "Product",
    "RectifiedFlow",
    "Samples",
    "SubVP",
    "Thresholded",
    "TokenBridge",
    "condition",
    "exact",
    "fit",
    "from_diffusers",
    "load",
    "load_data",
    "plan",
    "sample",
    "save",
]
