"""What can be known of a sampler without trusting it: identities, moments, orders, bridges.

`certify` puts a sampler, ours or anyone's, through the measurements of `blackbox`, which see only what it does to a
denoiser.  The functions below read the same off the rows of a plan, and a test holds the two to each other.

Each function measures one thing against a closed form or an enumeration and returns a `Finding`: the value, what it
should be, whether it is, and a line of text.  The tests of the solver registry call these same functions.

=========================  =========================================================================================
`constant_identity`        a constant denoiser is integrated exactly
`variance_identity`        the noise of a stochastic plan keeps the marginal variance under a constant denoiser
`moments`                  exact mean and variance of a plan's output on Gaussian data, without sampling
`unroll`                   the plan's normal form, fed with the run's own evaluations, gives the run's output
`polynomial_exactness`     a prediction that is a polynomial in the plan's coordinate is integrated exactly
`evaluations`              the denoiser calls that a run really makes
`reproducibility`          the same slots give the same samples, whatever the batch
`bridge_consistency`       the bridge maps a process' one-time laws to each other, for every eta
`convergence_order`        errors against an independent solution fall with this power of the number of steps
`weak_order`               so do errors of the output variance on Gaussian data
=========================  =========================================================================================
"""

from retrodict.diagnostics.certificate.bridges import bridge_consistency
from retrodict.diagnostics.certificate.certify import Certificate, certify
from retrodict.diagnostics.certificate.finding import Finding
from retrodict.diagnostics.certificate.identities import (
    Moments,
    constant_identity,
    moments,
    polynomial_exactness,
    variance_identity,
)
from retrodict.diagnostics.certificate.orders import convergence_order, flow_map, slope, weak_order
from retrodict.diagnostics.certificate.runs import evaluations, execute, reproducibility, unroll
from retrodict.diagnostics.certificate.samplers import (
    AzulaSampler,
    FunctionSampler,
    PlanSampler,
    Sampler,
    as_sampler,
)

__all__ = [
    "AzulaSampler",
    "Certificate",
    "Finding",
    "FunctionSampler",
    "Moments",
    "PlanSampler",
    "Sampler",
    "as_sampler",
    "bridge_consistency",
    "certify",
    "constant_identity",
    "convergence_order",
    "evaluations",
    "execute",
    "flow_map",
    "moments",
    "polynomial_exactness",
    "reproducibility",
    "slope",
    "unroll",
    "variance_identity",
    "weak_order",
]
