"""Bridge consistency: ``bridge(x_t, t, s, eta)`` maps the law of x_t given the ends to the law of x_s given them.

This is what makes every reverse step of a process a step between its own one-time laws, for every eta: DDPM and
DDIM, unmasking and remasking.  Gaussian bridges are affine in (x0, x_t), so their moments are exact; bridges of
discrete states are summed over all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.diagnostics.certificate.finding import Finding, deviation
from retrodict.kernels import LinearGaussian
from retrodict.processes import Discrete, GaussianPath, Process
from retrodict.processes.discrete import one_hot_law

PAIRS = ((1.0, 0.7), (0.9, 0.4), (0.5, 0.1), (0.3, 0.0))
ETAS = (0.0, 0.3, 1.0)


def bridge_consistency(
    process: Process,
    pairs: tuple[tuple[float, float], ...] = PAIRS,
    etas: tuple[float, ...] = ETAS,
    shape: tuple[int, ...] = (3,),
    tol: float = 1e-9,
) -> Finding:
    """Largest deviation of the pushed law from the process' own, over times and eta.

    Args:
        pairs: times ``(t, s)`` with s < t; shape: event shape of real states.
    """
    if isinstance(process, Discrete):
        errors = [_discrete(process, t, s, eta) for t, s in pairs for eta in etas]
    elif isinstance(process, GaussianPath):
        errors = [_gaussian(process, t, s, eta, shape) for t, s in pairs for eta in etas]
    else:
        raise InputError(f"no exact bridge test is known for {type(process).__name__}: sample it instead")
    return deviation("bridge consistency", max(errors), tol, f"{len(pairs)} pairs of times, {len(etas)} values of eta")


def _gaussian(path: GaussianPath, t: float, s: float, eta: float, shape: tuple[int, ...]) -> float:
    """Mean and covariance of ``K x_t + G x0 + c + N(0, Q)`` with x_t from the law of the path, against the law at s."""
    size = int(torch.Size(shape).numel())
    x0, x1 = (torch.linspace(a, b, size, dtype=torch.float64).reshape(1, *shape) for a, b in ((-1.0, 2.0), (0.5, -1.5)))
    second = {"x1": x1} if len(path.ends) == 2 else {}
    at_t, at_s = (path.kernel(0.0, time, **second) for time in (t, s))
    probes = torch.cat([torch.zeros(1, size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)]).reshape(
        -1, *shape
    )
    many = {"x1": x1.expand(len(probes), *shape)} if second else {}
    bridge: LinearGaussian = path.bridge(probes, t, s, eta, **many)
    moved = bridge.mean(x0.expand(len(probes), *shape)).reshape(len(probes), -1)
    K = (moved[1:] - moved[:1]).T
    mean = moved[0] + K @ at_t.mean(x0).flatten()
    covariance = K @ _dense(at_t, shape) @ K.T + _dense(bridge, shape)
    gap = (mean - at_s.mean(x0).flatten()).abs().max()
    return float(torch.maximum(gap, (covariance - _dense(at_s, shape)).abs().max()))


def _dense(kernel: LinearGaussian, shape: tuple[int, ...]) -> Tensor:
    """The covariance of a kernel as a matrix on the flattened event."""
    size = int(torch.Size(shape).numel())
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    return kernel.Q.to(torch.float64).mv(basis).reshape(size, size).T


def _discrete(process: Discrete, t: float, s: float, eta: float) -> float:
    """Sum over x_t of kappa_t(x_t given the ends) times the bridge's law of x_s, for all pairs of ends."""
    K, worst = process.classes, 0.0
    for x0 in range(process.vocabulary):
        for x1 in range(process.vocabulary) if len(process.ends) == 2 else [None]:
            x_t = torch.arange(K)[:, None]
            clean = torch.full((K, 1), x0)
            other = None if x1 is None else torch.full((K, 1), x1)
            weight = process.log_likelihood(x_t, t, other)[:, 0, x0].exp()
            pushed = (
                process.bridge(x_t, t, s, eta, other).push(one_hot_law(clean, process.vocabulary)).log_p.exp()[:, 0]
            )
            seen = weight > 0  # states that cannot occur have no bridge
            total = (weight[seen, None] * pushed[seen]).sum(0)
            exact = process.log_likelihood(x_t, s, other)[:, 0, x0].exp()
            forward = process.kernel(0.0, s, x1=other).log_prob(clean, x_t).exp()
            gap = torch.maximum((total - exact).abs().max(), (forward - exact).abs().max())
            worst = max(worst, float(gap))
    return worst
