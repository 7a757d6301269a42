"""Weighted particles: log-weights, effective sample size, resampling. Mechanics only; formulas live elsewhere."""

from retrodict.particles.weights import Population, ess, log_mean_exp, normalise, resample_indices, resamplers

__all__ = ["Population", "ess", "log_mean_exp", "normalise", "resample_indices", "resamplers"]
