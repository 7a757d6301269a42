"""Weighted particles: resampling, sequential Monte Carlo and smoothing, on abstract Feynman-Kac models."""

from retrodict.particles.ancestry import Genealogy, History, Moments, moments
from retrodict.particles.backward import sample_paths, smoothing_weights
from retrodict.particles.conditional import Chain, Sweep, particle_gibbs, sweep
from retrodict.particles.engine import Node, ParticlesDied, Run, smc
from retrodict.particles.model import FeynmanKac
from retrodict.particles.paris import Additive
from retrodict.particles.resampling import Scheme, resamplers
from retrodict.particles.weights import Population, ess, log_mean_exp, normalise, resample_indices

__all__ = [
    "Additive",
    "Chain",
    "FeynmanKac",
    "Genealogy",
    "History",
    "Moments",
    "Node",
    "ParticlesDied",
    "Population",
    "Run",
    "Scheme",
    "Sweep",
    "ess",
    "log_mean_exp",
    "moments",
    "normalise",
    "particle_gibbs",
    "resample_indices",
    "resamplers",
    "sample_paths",
    "smc",
    "smoothing_weights",
    "sweep",
]
