"""Two-filter smoothing where an observation has two pre-images, of which an expansion sees one."""

from __future__ import annotations

import torch
from torch.distributions import Normal

import retrodict as rd

Y = (0.1, 0.5, 0.9, 1.4, 2.0, 2.2)


def _step(x):
    return Normal(x + 0.5 * torch.sin(2 * x), 0.5)


def _seen(x):
    return Normal(x**2 / 2, 0.3)


def _second_moments() -> torch.Tensor:
    """E[x_k^2 | y] by forward-backward on a grid of 601 points in [-6, 6]."""
    x = torch.linspace(-6, 6, 601, dtype=torch.float64)
    P = _step(x[:, None]).log_prob(x[None]).exp()
    g = [_seen(x).log_prob(torch.tensor(y, dtype=torch.float64)).exp() for y in Y]
    forward, ahead = [Normal(0.0, 1.0).log_prob(x).exp() * g[0]], [torch.ones_like(x)]
    for k in range(1, len(Y)):
        a = (forward[-1] @ P) * g[k]
        forward.append(a / a.sum())
    for k in range(len(Y) - 1, 0, -1):
        b = P @ (g[k] * ahead[0])
        ahead.insert(0, b / b.sum())
    laws = [a * b / (a * b).sum() for a, b in zip(forward, ahead)]
    return torch.stack([(law * x**2).sum() for law in laws])


def test_both_modes_are_found():
    """Second moments within 25% of quadrature (six seeds stayed within 10%); from one mode's expansion alone
    the last one came out at 24 instead of 4."""
    model = rd.StateSpace(Normal(0.0, 1.0), _step, _seen)
    law = rd.condition(model, rd.Observed(Y), method="two-filter", particles=800, seed=1).smooth()
    found = law.covariance[0, :, 0, 0] + law.mean[0, :, 0] ** 2
    assert ((found / _second_moments() - 1).abs() < 0.25).all()
