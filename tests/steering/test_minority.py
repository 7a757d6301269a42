"""Minority guidance: the score in closed form on a Gaussian, quantiles, and a rare mode that becomes common."""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.data.scaling import Scale
from retrodict.exact import Atoms, GaussianMixture
from retrodict.steering import fit_minority, minority_labels, minority_reward, minority_score

QUIET = {"progress": False}
PATH = rd.VP("cosine")
RARE = GaussianMixture([0.95, 0.05], [[-1.0, 0.0], [3.0, 1.0]], [0.3, 0.2])
WORDS = {"solver": "ddim", "eta": 1.0, "grid": "logsnr", "steps": 40, **QUIET}


def test_the_score_of_a_gaussian_in_closed_form():
    """|(I - aK) x0|^2 + s^2 tr K K', K = aV (a^2 V + s^2)^-1: within 4.5 errors of 4,000 draws."""
    V = torch.tensor([4.0, 0.25], dtype=torch.float64)
    denoiser = GaussianMixture([1.0], [[0.0, 0.0]], V[None]).denoiser(PATH)
    low, high = 0.0, 1.0
    for _ in range(60):
        t = (low + high) / 2
        low, high = (t, high) if float(PATH.alpha(t)) > 0.8 else (low, t)
    a, s = float(PATH.alpha(t)), float(PATH.sigma(t))
    K = a * V / (a**2 * V + s**2)
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    exact = (((1 - a * K) * x) ** 2).sum(1) + s**2 * (K**2).sum()
    found = torch.stack([2 * minority_score(denoiser, x, t, draws=400, seed=seed) for seed in range(10)])
    assert a == pytest.approx(0.8, abs=1e-6)
    assert exact.tolist() == pytest.approx([0.486, 0.546, 0.729, 0.965], abs=2e-3)
    assert bool(((found.mean(0) - exact).abs() < 4.5 * found.std(0) / 10**0.5 + 1e-3).all())


def test_the_score_sees_the_users_units():
    plain, scaled = RARE.denoiser(PATH), RARE.denoiser(PATH)
    scaled.scale = Scale(1.0, 2.0)
    x = RARE.sample(20, seed=0)
    assert torch.allclose(minority_score(plain, x), minority_score(scaled, 2 * x + 1), atol=1e-5)


def test_quantile_classes():
    score = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0, 6.0, 7.0, 8.0])
    labels = minority_labels(score, 4)
    assert torch.bincount(labels).tolist() == [2, 2, 2, 2]
    assert labels[score.argsort()].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_rare_mode_becomes_common():
    """A mode of 5%: at least five times as frequent under the top level's classifier, and still on the data."""
    denoiser = RARE.denoiser(PATH)
    data = RARE.sample(3000, seed=1)
    score = minority_score(denoiser, data)
    rare = data[:, 0] > 1.2
    assert float(score[rare].mean()) > 1.5 * float(score[~rare].mean())
    network = fit_minority(denoiser, data, 10, steps=500, lr=5e-3, batch_size=256)
    goal = rd.condition(denoiser, rd.Classifier(network, 9))
    run = rd.sample(goal, 1500, **WORDS)
    share = float(run.mean(lambda x: (x[:, 0] > 1.2).double()))
    among = float(rare[minority_labels(score) == 9].double().mean())
    assert share > 0.25 and abs(share - among) < 0.15, (share, among)  # the top decile's own share
    typical = float(torch.quantile(RARE.log_prob(data), 0.01))
    assert float(run.mean(lambda x: (RARE.log_prob(x.double()) > typical).double())) > 0.85


def test_the_reward_form_has_the_tilted_law():
    """Against 6,000 draws of the base plan weighted by exp(strength m): the mean score, 3 runs of 1,500."""
    denoiser = RARE.denoiser(PATH)
    m = minority_score(denoiser, rd.sample(denoiser, 6000, seed=9, **WORDS).x)
    tilted = float((torch.softmax(3.0 * m, 0) * m).sum())
    goal = rd.condition(denoiser, minority_reward(denoiser, 3.0))
    runs = [rd.sample(goal, 1500, seed=s, **WORDS) for s in range(3)]
    assert runs[0].correction == "weighted"
    found = sum(float(r.mean(lambda x: minority_score(denoiser, x))) for r in runs) / 3
    assert found == pytest.approx(tilted, rel=0.1) and found > 1.5 * float(m.mean())


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="real states"):
        minority_score(Atoms(torch.tensor([[0], [1]])).denoiser(rd.Masked(2)), torch.tensor([[0]]))
    with pytest.raises(InputError, match=r"\(0, 1\]"):
        minority_score(RARE.denoiser(PATH), torch.zeros(1, 2), 0.0)
    with pytest.raises(InputError, match="as many scores"):
        minority_labels(torch.zeros(3), 10)
