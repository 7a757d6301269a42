"""Classifiers as potentials, and guidance with intervals, rescaling and negatives, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.data.scaling import Scale
from retrodict.exact import Atoms, GaussianMixture
from retrodict.steering import fit_classifier

QUIET = {"progress": False}
LAW = GaussianMixture([0.25, 0.25, 0.5], [[-2.0], [1.0], [3.0]], [0.3, 0.3, 1.0], labels=[0, 0, 1])
PATH = rd.VP("cosine")
WORDS = {"solver": "ddim", "eta": 1.0, "grid": "logsnr", **QUIET}


class Exact(torch.nn.Module):
    """log p_t(c | x_t) of the mixture."""

    def forward(self, x, t):
        alpha, sigma = (c(t)[:, None] for c in (PATH.alpha, PATH.sigma))
        v = alpha**2 * torch.tensor([0.3, 0.3, 1.0], dtype=torch.float64) + sigma**2
        log_r = LAW.weights.log() - 0.5 * (x.double() - alpha * LAW.means[:, 0]) ** 2 / v - 0.5 * v.log()
        return torch.stack([torch.logsumexp(log_r[:, :2], 1), log_r[:, 2]], 1)


def test_the_exact_classifier_gives_the_conditional_denoiser():
    """Bayes' rule: D + (sigma^2/alpha) grad log p(c | x) is E[x0 | x, c], to 1e-10."""
    x = 2 * LAW.sample(50, seed=0)
    denoiser = LAW.denoiser(PATH)
    for c in (0, 1):
        steered = rd.condition(denoiser, rd.Classifier(Exact(), c))
        for t in (0.1, 0.5, 0.9):
            assert torch.allclose(steered.belief(x, t).mean, denoiser.belief(x, t, label=c).mean, atol=1e-10)


def test_an_exact_potential_leaves_the_weights_nothing_to_say():
    """The variance of the log-weights falls with the step, from little to nothing; the class' share is the evidence."""
    goal = rd.condition(LAW.denoiser(PATH), rd.Classifier(Exact(), 0))
    quiet = rd.Population(threshold=0.0)
    runs = [rd.sample(goal, 1000, steps=n, population=quiet, seed=1, **WORDS) for n in (25, 75, 225)]
    spread = [float(r.log_weights.var()) for r in runs]
    assert spread[0] > 2 * spread[1] > 4 * spread[2] and spread[2] < 0.02, spread
    assert float(runs[2].log_evidence) == pytest.approx(math.log(0.5), abs=0.02)
    assert float((runs[2].x > 1.9).double().mean()) < 0.08  # P(x > 1.9 | c = 0) is .025


@pytest.mark.parametrize("value, error", [("mean", 0.12), ("draws", 0.05)])
def test_a_clean_classifier_is_right_with_weights(value, error):
    """4 runs of 1,500: P(x > -0.5 | c = 0) = .5 and the evidence .5.

    Asked about the mean, which lies between the classes, a classifier is sure and wrong, and many particles are lost.
    """
    clean = lambda x0: Exact()(x0, torch.zeros(len(x0), dtype=torch.float64))  # noqa: E731
    goal = rd.condition(LAW.denoiser(PATH), rd.Classifier(clean, 0, clean=True, value=value))
    runs = [rd.sample(goal, 1500, steps=80, seed=s, **WORDS) for s in range(4)]
    right = sum(float(r.mean(lambda x: (x[:, 0] > -0.5).double())) for r in runs) / 4
    assert abs(right - 0.5) < error and abs(sum(float(r.log_evidence.exp()) for r in runs) / 4 - 0.5) < error


def test_a_trained_classifier_of_noisy_states():
    """Against Bayes' rule: mean distance of probabilities below .03 at every level; it sees scaled states."""
    denoiser = LAW.denoiser(PATH)
    denoiser.scale = Scale(3.0, 2.0)
    x0, k = _labelled(4000)
    network = fit_classifier(denoiser, 2 * x0 + 3, k, steps=600, lr=5e-3, batch_size=256)
    z = torch.randn(1000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in (0.1, 0.5, 0.8):
            x, time = PATH.corrupt(x0[:1000], t, z), torch.full((1000,), t, dtype=torch.float64)
            gap = torch.softmax(network(x, time).double(), 1) - torch.softmax(Exact()(x, time), 1)
            assert float(gap.abs().mean()) < 0.03, t
    goal = rd.Classifier(network, 0).bind(denoiser)
    assert torch.allclose(
        goal.likelihood(2 * x0[:9] + 3), torch.log_softmax(network(x0[:9], torch.zeros(9).double()).double(), 1)[:, 0]
    )


def _labelled(n):
    g = torch.Generator().manual_seed(3)
    k = torch.multinomial(LAW.weights, n, replacement=True, generator=g)
    root = torch.tensor([0.3, 0.3, 1.0], dtype=torch.float64).sqrt()[k]
    x0 = LAW.means[k] + root[:, None] * torch.randn(n, 1, generator=g, dtype=torch.float64)
    return x0, (k == 2).long()


def test_a_classifier_of_noisy_tokens_weighs():
    """Two tokens, masks, p(c | what is shown) exactly: the weighted law is that of the class, 4 runs of 1,000."""
    data = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    p = torch.tensor([[0.3, 0.05], [0.1, 0.15], [0.05, 0.15], [0.05, 0.15]], dtype=torch.float64)

    def bayes(x, t):
        fits = ((x[:, None] == data) | (x[:, None] == 2)).all(-1).double()
        return (fits @ p).log()

    goal = rd.condition(Atoms(data, p.sum(1)).denoiser(rd.Masked(2)), rd.Classifier(bayes, 1))
    words = {"solver": "events", "steps": 3, **QUIET}
    found = torch.zeros(4, dtype=torch.float64)
    for s in range(4):
        run = rd.sample(goal, 1000, seed=s, **words)
        found.index_add_(0, 2 * run.x[:, 0] + run.x[:, 1], torch.softmax(run.log_weights, 0) / 4)
    assert float((found - p[:, 1] / 0.5).abs().max()) < 0.03


# -- guidance -------------------------------------------------------------------------------------------------

X = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None]


def test_plain_settings_change_nothing():
    denoiser = LAW.denoiser(PATH)
    plain = rd.Guided(denoiser, 3.0)
    for words in ({"interval": (0.0, math.inf)}, {"rescale": 0.0}, {"negative": {"label": 2}}):
        same = rd.Guided(denoiser, 3.0, **words)
        assert torch.equal(same(X, 0.4, label=0), plain(X, 0.4, label=0)), words
    assert torch.equal(rd.Guided(denoiser, 1.0)(X, 0.4, label=0), denoiser(X, 0.4, label=0))
    assert torch.equal(rd.Guided(denoiser, 0.0)(X, 0.4, label=0), denoiser(X, 0.4))


def test_an_interval_is_plain_outside_at_the_cost_of_one_pass():
    denoiser = LAW.denoiser(PATH)
    seen = []
    inner = denoiser.belief
    denoiser.belief = lambda x, t, **c: (seen.append(len(x)), inner(x, t, **c))[1]
    low, high = 0.3, 2.0
    guided = rd.Guided(denoiser, 3.0, interval=(low, high))
    t = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    level = PATH.sigma(t) / PATH.alpha(t)
    assert [bool(low < v <= high) for v in level] == [False, True, False]
    plain, full = denoiser(X[:3], t, label=0), rd.Guided(denoiser, 3.0)(X[:3], t, label=0)
    expected = torch.where((level > low)[:, None] & (level <= high)[:, None], full, plain)
    assert torch.allclose(guided(X[:3], t, label=0), expected) and not torch.allclose(full, plain)
    seen.clear()
    guided(X, 0.05, label=0)
    guided(X, 0.5, label=0)
    assert seen == [9, 18]


def test_rescaling_gives_the_spread_of_the_conditional_mean():
    law = GaussianMixture([0.5, 0.5], [[1.0, 0.0, 2.0], [-1.0, 3.0, 0.0]], [0.5, 0.5], labels=[0, 1])
    denoiser = law.denoiser(PATH)
    x = law.sample(7, seed=0)
    mean, plain = denoiser(x, 0.5, label=0), rd.Guided(denoiser, 4.0)(x, 0.5, label=0)
    full = rd.Guided(denoiser, 4.0, rescale=1.0)(x, 0.5, label=0)
    assert torch.allclose(full.std(1), mean.std(1)) and not torch.allclose(plain.std(1), mean.std(1))
    part = rd.Guided(denoiser, 4.0, rescale=0.7)(x, 0.5, label=0)
    assert torch.allclose(part, 0.7 * full + 0.3 * plain)


def test_a_negative_takes_the_place_of_the_null():
    denoiser = LAW.denoiser(PATH)
    guided = rd.condition(denoiser, rd.Guidance(2.5, negative={"label": 1}))
    expected = -1.5 * denoiser(X, 0.4, label=1) + 2.5 * denoiser(X, 0.4, label=0)
    assert torch.allclose(guided(X, 0.4, label=0), expected) and guided.weighted
    assert torch.allclose(guided.belief(X, 0.4, label=0).mean, expected)
    unlabelled = -1.5 * denoiser(X, 0.4, label=1) + 2.5 * denoiser(X, 0.4)
    assert torch.allclose(guided(X, 0.4), unlabelled)


def test_what_is_no_product_says_so():
    denoiser = GaussianMixture([0.5, 0.5], [[1.0, 0.0], [-1.0, 3.0]], [0.5, 0.5], labels=[0, 1]).denoiser(PATH)
    for words in ({"interval": (0.1, 2.0)}, {"rescale": 0.7}):
        goal = rd.condition(denoiser, rd.Guidance(2.0, **words))
        assert rd.sample(goal, 20, nfe=5, label=0, **QUIET).correction == "none"
    assert rd.sample(rd.condition(denoiser, rd.Guidance(2.0)), 20, nfe=5, label=0, **QUIET).correction == "weighted"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: rd.Guided(d, 2.0, interval=(2.0, 1.0)), "low < high"),
        (lambda d: rd.Guided(d, 2.0, rescale=1.5), "between 0 and 1"),
        (lambda d: rd.Guided(d, 2.0, negative={"lable": 1}), "Did you mean 'label'"),
        (lambda d: rd.Classifier(Exact(), -1), "from 0"),
        (lambda d: rd.Classifier(Exact(), 0, -2.0), "at least 0"),
        (lambda d: rd.condition(d, rd.Classifier(Exact(), 5)).belief(X, 0.5), "class 5 among them"),
        (lambda d: fit_classifier(d, torch.zeros(4, 1), torch.zeros(3), steps=1), r"\(4,\)"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make(LAW.denoiser(PATH))
    tokens = Atoms(torch.tensor([[0], [1]]), labels=[0, 1]).denoiser(rd.Masked(2))
    with pytest.raises(InputError, match="real states"):
        rd.Guided(tokens, 2.0, rescale=0.5)
