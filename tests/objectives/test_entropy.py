"""The likelihood-weighted loss of the exact posterior is the entropy of the data: every weight, with no training."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import retrodict as rd
from retrodict.exact import Atoms
from retrodict.objectives import Regression, make_objective
from retrodict.objectives.times import UniformLogSNR
from retrodict.objectives.tokens import divergence, log_posterior, reveal_rate
from retrodict.objectives.weightings import ELBO, Level
from retrodict.processes import Masked, TokenBridge

PATHS = {
    "vp-linear": rd.VP(),
    "vp-cosine": rd.VP("cosine"),
    "sub-vp": rd.SubVP(),
    "ve": rd.VE(0.002, 200.0),
    "edm": rd.EDM(sigma_max=400.0),
    "rectified-flow": rd.RectifiedFlow(),
}
LAW = Atoms(torch.tensor([[-1.0], [0.4], [1.5]], dtype=torch.float64), [0.5, 0.3, 0.2])


@pytest.mark.parametrize("name", PATHS)
def test_gaussian_paths_by_quadrature(name):
    """Gauss-Legendre in the log-SNR, a fine sum over z, all atoms; 1.02965 nats."""
    path = PATHS[name]
    law = UniformLogSNR(span=6.0)
    low, high = law.range(path)
    nodes, gauss = np.polynomial.legendre.leggauss(60)
    lam = torch.from_numpy((high - low) / 2 * nodes + (high + low) / 2)
    t = path.time_at(lam)
    share = torch.from_numpy(gauss / 2)  # of the law of times, which is uniform in lambda
    weight = ELBO()(Level(path, t)) / law.density(t, path)
    z = torch.linspace(-9, 9, 361, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    total = 0.0
    for x0, w in zip(LAW.data[:, 0], LAW.weights):
        x_t = path.alpha(t)[:, None] * x0 + path.sigma(t)[:, None] * z
        times = t[:, None].expand_as(x_t).reshape(-1)
        D = LAW.denoiser(path)(x_t.reshape(-1, 1), times).reshape(x_t.shape)
        error = ((D - x0) ** 2 * density).sum(1)
        total += float(w * (share * weight * error).sum())
    # what lies beyond lambda = -6 is at most e^-12 Var / 2, and VP's linear path ends at lambda = -5
    truncation = 0.5 * math.exp(2 * low) * float(LAW.weights @ LAW.data[:, 0] ** 2)
    assert abs(total - LAW.entropy()) < truncation + 2e-6


@pytest.mark.parametrize("name", ["vp-linear", "rectified-flow"])
def test_gaussian_paths_by_the_objective_itself(name):
    """Regression as it trains, with the exact posterior as denoiser: within four standard errors."""
    path = PATHS[name]
    objective, denoiser = make_objective("likelihood", path), LAW.denoiser(path)
    generator = torch.Generator().manual_seed(0)
    x = LAW.data.repeat_interleave(torch.tensor([50, 30, 20]), 0).repeat(100, 1)  # the law in exact proportions
    losses = torch.stack([objective(denoiser, {"x": x}, generator)["loss"] for _ in range(25)])
    error = float(losses.std() / 5)
    assert error < 0.03
    assert abs(float(losses.mean()) - LAW.entropy()) < 4 * error


def test_the_value_does_not_depend_on_the_law_of_times():
    """An integral over time is divided by the density of the times at which it is sampled."""
    path, x = rd.RectifiedFlow(), LAW.data.repeat_interleave(torch.tensor([50, 30, 20]), 0).repeat(40, 1)
    values = {}
    for times in ("log-snr", "logit-normal", "edm", "importance"):
        objective = Regression(path, "elbo", times)
        generator = torch.Generator().manual_seed(1)
        losses = torch.stack([objective(LAW.denoiser(path), {"x": x}, generator)["loss"] for _ in range(25)])
        values[times] = (float(losses.mean()), float(losses.std() / 5))
    for times, (mean, error) in values.items():
        assert error < 0.05, times
        assert abs(mean - LAW.entropy()) < 4 * error, times


def hidden_states(x0, other):
    """``(x_t, number of hidden positions)`` of every pattern of hiding, for one pair of sequences."""
    for pattern in itertools.product([False, True], repeat=len(x0)):
        hidden = torch.tensor(pattern)
        yield torch.where(hidden, other, x0), int(hidden.sum())


def token_bound(process, law):
    """The bound by Gauss-Legendre in t^(1/3) and enumeration of x_t, a total over positions."""
    nodes, gauss = np.polynomial.legendre.leggauss(60)
    denoiser, total = law.denoiser(process), 0.0
    length = law.data.shape[1]
    for row, (x0, w) in enumerate(zip(law.data, law.weights)):
        x1 = None if law.x1 is None else law.x1[row : row + 1]
        other = process.other(x0.unsqueeze(0), x1)[0]
        for u, g in zip((nodes + 1) / 2, gauss / 2):
            t = torch.tensor([u**3], dtype=torch.float64)  # the integrand has a t log t at t = 0
            keep = float(process.keep(t))
            for x_t, hidden in hidden_states(x0, other):
                x_t = x_t.unsqueeze(0)
                log_p = log_posterior(denoiser, x_t, t, x1, {})
                cost = divergence(process, log_p, x0.unsqueeze(0), x_t, x1) * length
                share = keep ** (length - hidden) * (1 - keep) ** hidden
                total += float(w * g * 3 * u**2 * share * reveal_rate(process, t) * cost)
    return total


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_masks(schedule):
    law = Atoms(torch.tensor([[0, 1], [0, 2], [3, 3]]), [0.5, 0.3, 0.2])
    assert abs(token_bound(Masked(4, schedule), law) - law.entropy()) < 1e-9


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_token_bridges(schedule):
    """H(x0 | x1), with targets that equal the source at some positions: those are not marked as revealed."""
    x1 = torch.tensor([[0, 1], [0, 1], [0, 1], [2, 2]])
    x0 = torch.tensor([[0, 1], [0, 2], [2, 1], [1, 2]])
    law = Atoms(x0, [0.4, 0.2, 0.2, 0.2], x1=x1)
    given = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    entropy = 0.8 * float(-(given * given.log()).sum())
    assert abs(token_bound(TokenBridge(3, schedule), law) - entropy) < 1e-7


@pytest.mark.parametrize("process", [Masked(4), TokenBridge(4, "cosine")], ids=repr)
def test_tokens_by_the_objective_itself(process):
    x0 = torch.tensor([[0, 1], [0, 2], [3, 3]])
    x1 = None if isinstance(process, Masked) else torch.zeros(3, 2, dtype=torch.long)
    law = Atoms(x0, [0.5, 0.3, 0.2], x1=x1)
    counts = torch.tensor([500, 300, 200])
    batch = {"x0": x0.repeat_interleave(counts, 0)}
    if x1 is not None:
        batch["x1"] = torch.zeros(1000, 2, dtype=torch.long)
    generator = torch.Generator().manual_seed(0)
    objective, denoiser = make_objective("auto", process), law.denoiser(process)
    losses = torch.stack([objective(denoiser, batch, generator)["loss"] for _ in range(25)]) * 2
    error = float(losses.std() / 5)
    assert error < 0.02
    assert abs(float(losses.mean()) - law.entropy()) < 4 * error
