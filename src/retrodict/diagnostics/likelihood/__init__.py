"""How probable data are under a model: by its probability flow, by bounds, and in bits.

* `log_likelihood`: the change of variables along the probability-flow ODE of a Gaussian path;
* `elbo`: the evidence bound, in continuous time or of a discrete chain, for real states and for tokens;
* `interpolant_log_likelihood`, `interpolant_kl_bound`: for paths between two data sets, at any noise level;
* `bits_per_dim`, `dequantise`: the units of images.
"""

from retrodict.diagnostics.likelihood.bits import bits_per_dim, dequantise
from retrodict.diagnostics.likelihood.bound import Bound, elbo
from retrodict.diagnostics.likelihood.flow import Likelihood, log_likelihood
from retrodict.diagnostics.likelihood.interpolant import (
    KLBound,
    interpolant_kl_bound,
    interpolant_log_likelihood,
)

__all__ = [
    "Bound",
    "KLBound",
    "Likelihood",
    "bits_per_dim",
    "dequantise",
    "elbo",
    "interpolant_kl_bound",
    "interpolant_log_likelihood",
    "log_likelihood",
]
