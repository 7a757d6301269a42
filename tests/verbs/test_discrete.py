"""The everyday lines on tokens, pairs and counts: fit, sample, save, steer."""

from __future__ import annotations

import itertools

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.denoisers import CountDenoiser, Denoiser, Step, TokenDenoiser
from retrodict.diagnostics.likelihood import elbo
from retrodict.exact import Atoms
from retrodict.kernels import Belief
from solvers.discrete_laws import all_states, law_of, start_of

QUIET = {"progress": False}
SMALL = {"hidden": 16, "depth": 1, "heads": 2}
WORDS = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 0, 0]])


def _train(process, data, x1=None, steps=150, **words):
    options = {"batch_size": 64, "lr": 1e-2, "network_options": SMALL, **QUIET} | words
    return rd.fit(process, data, x1=x1, steps=steps, network="transformer", **options)


@pytest.fixture(scope="module")
def words():
    """Three words of four letters, by a masked transformer that knows no time."""
    torch.manual_seed(0)
    return _train(rd.Masked(vocabulary=4), WORDS.repeat(40, 1))


def test_the_three_lines(words):
    """As the guide has them: text with remasking, and pairs by a bridge."""
    text = rd.sample(words, 64, steps=16, options={"remask": rd.Remask("cap", 0.02)}, seed=0, **QUIET)
    known = {tuple(w.tolist()) for w in WORDS}
    assert sum(tuple(x.tolist()) in known for x in text.x) > 30  # of 256 words chance would find .75
    alone = rd.sample(words, 1, steps=64, **QUIET)
    assert alone.passes < 16 and alone.plan.nfe == 64 and words.timeless
    target = torch.randint(0, 5, (120, 3), generator=torch.Generator().manual_seed(0))
    source = (target + 1) % 5
    pairs = _train(rd.TokenBridge(vocabulary=5), target, x1=source, steps=250)
    assert not pairs.timeless
    back = rd.sample(pairs, 40, x1=source[:40], steps=20, **QUIET)
    assert float((back.x == target[:40]).double().mean()) > 0.8  # by chance .2


@pytest.mark.parametrize(
    "process", [rd.Uniform(4), rd.FiniteJump([[-1.0, 1, 0, 0], [1, -2, 1, 0], [0, 1, -2, 1], [0, 0, 1, -1]])]
)
def test_jump_processes_train_through_the_same_verbs(process):
    denoiser = _train(process, WORDS.repeat(40, 1), steps=200)
    x = rd.sample(denoiser, 64, steps=24, seed=0, **QUIET).x
    known = {tuple(w.tolist()) for w in WORDS}
    assert sum(tuple(v.tolist()) in known for v in x) > 25


def test_masked_networks_are_told_the_time_on_request_alone():
    """Without it answers are kept; with it every step asks."""
    size = {"hidden": 16, "depth": 1, "heads": 2}
    runs = {}
    for time in (None, True):
        options = size | ({} if time is None else {"time": True})
        denoiser = rd.fit(rd.Masked(4), WORDS, steps=2, batch_size=3, network_options=options, **QUIET)
        assert denoiser.timeless is (time is None)
        runs[time] = rd.sample(denoiser, 1, steps=40, seed=0, **QUIET)
    assert runs[True].passes == 40 and runs[None].passes <= 5  # four tokens, at most four changes and the start


def test_counts_of_images_and_of_sequences(tmp_path):
    """A real network for images learns a mean, a token network a law; both are saved and loaded."""
    digits = rd.load_data("digits").x[:64]
    small = {"network_options": {"channels": [8, 8]}, "batch_size": 16, **QUIET}
    image = rd.fit(rd.Blackout(levels=17), digits, steps=3, **small)
    assert isinstance(image, CountDenoiser)
    out = rd.sample(image, 2, steps=5, **QUIET).x
    assert out.shape == (2, 1, 8, 8) and out.dtype == torch.int64 and 0 <= int(out.min()) and int(out.max()) <= 16
    counts = digits.flatten(1).long()[:, :8]
    law = _train(rd.Blackout(levels=17), counts, steps=3)
    assert isinstance(law, TokenDenoiser)
    assert rd.sample(law, 2, steps=5, **QUIET).x.shape == (2, 8)
    for denoiser in (image, law):
        again = rd.load(rd.save(denoiser, tmp_path / type(denoiser).__name__))
        x = torch.zeros(2, *denoiser.shape, dtype=torch.long)
        assert type(again) is type(denoiser) and torch.equal(again(x, 0.5), denoiser(x, 0.5))
    assert bool(elbo(image, digits[:2].long(), samples=4).log_prob.isfinite().all())


def test_guidance_multiplies_class_posteriors():
    """w = 2 on labels: p(x|label)^2 / p(x), coordinate by coordinate; `guidance=` carries no weights."""
    data = Atoms(torch.tensor([[0], [1], [0], [1]]), [0.4, 0.1, 0.2, 0.3], labels=[0, 0, 1, 1])
    denoiser = data.denoiser(rd.Masked(2))
    x = torch.tensor([[2]])
    guided = rd.Guided(denoiser, 2.0)
    p, q = torch.tensor([0.8, 0.2]).double(), torch.tensor([0.6, 0.4]).double()
    expected = p**2 / q / (p**2 / q).sum()
    assert torch.allclose(guided(x, 0.5, label=0)[0, 0], expected, atol=1e-9) and guided.weighted
    run = rd.sample(denoiser, 2000, guidance=2.0, label=0, steps=4, **QUIET)
    share = float((run.x == 0).double().mean())
    assert abs(share - float(expected[0])) < 4.5 * (0.06 / 2000) ** 0.5 * 1.2  # false alarm below 1e-4
    shown = guided(torch.tensor([[1]]), 0.5, label=0)
    assert torch.allclose(shown, torch.tensor([[[0.0, 1.0]]]).double(), atol=1e-20)


class Rewarded(Denoiser):
    """A black-box reward on a discrete denoiser: log h_t = log E[e^r | marginals], no gradient (a soft value)."""

    weighted = True

    def __init__(self, denoiser, reward):
        super().__init__(denoiser.process, denoiser.shape)
        self.denoiser, self.reward = denoiser, reward
        values = range(denoiser.process.vocabulary)
        self.ends = torch.tensor(list(itertools.product(values, repeat=denoiser.shape[0])))

    def belief(self, x, t, **condition):
        belief = self.denoiser.belief(x, t, **condition)
        p = belief.law.log_p.exp()
        joint = torch.ones(len(x), len(self.ends), dtype=torch.float64)
        for l in range(x.shape[1]):
            joint = joint * p[:, l][:, self.ends[:, l]]
        return Belief(belief.mean, law=belief.law, log_h=(joint @ self.reward(self.ends).exp()).log())

    def start_weight(self, belief):
        return belief.log_h

    def increment(self, step: Step):
        return step.now.log_h - step.prev.log_h

    def final(self, step: Step):
        return self.reward(step.x) - step.prev.log_h


@pytest.mark.parametrize("process", [rd.Masked(3), rd.Uniform(3), rd.Blackout(3)], ids=repr)
def test_a_black_box_reward_by_a_weighted_population(process):
    """The reweighted base chain, by enumeration of what the base really samples: q(x) e^r(x) / Z, within 4 errors."""
    data = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 2]])
    base = Atoms(data, [0.35, 0.1, 0.1, 0.15, 0.3]).denoiser(process)
    reward = lambda x: 1.5 * (x[:, 0] == 1).double() - 0.8 * (x[:, 1] == 2).double()  # noqa: E731
    words = {"steps": 8, "grid": "uniform"}
    law = law_of(rd.plan("step", process, **words), base, start_of(process, 2))
    states = all_states(process.classes, 2)
    clean = (states < 3).all(1)
    target = torch.where(clean, law * reward(states).exp(), 0.0)
    Z = float(target.sum())
    runs = [rd.sample(Rewarded(base, reward), 400, seed=s, **words, **QUIET) for s in range(8)]
    evidence = torch.stack([r.log_evidence.exp() for r in runs]).flatten()
    assert abs(float(evidence.mean()) - Z) < 4.5 * float(evidence.std()) / 8**0.5
    hits = torch.tensor([float(r.mean(lambda x: (x[:, :1] == 1).double())) for r in runs])
    exact = float(target[states[:, 0] == 1].sum()) / Z
    assert abs(float(hits.mean()) - exact) < 4.5 * float(hits.std()) / 8**0.5 + 0.005
    unweighted = rd.sample(base, 2000, seed=0, **words, **QUIET)
    assert float((unweighted.x[:, 0] == 1).double().mean()) < exact - 0.1
    assert runs[0].correction == "weighted"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rd.fit(rd.Masked(4), torch.tensor([[0, 1], [2, 7]]), steps=2), r"token 7 at \(1, 1\) of the data"),
        (lambda: rd.fit(rd.Uniform(4), torch.tensor([[0, 1], [-1, 2]]), steps=2), r"-1"),
        (lambda: rd.fit(rd.Blackout(4), torch.tensor([[0.0, 1.5], [2.0, 1.0]]), steps=2), r"1.5 at \(0, 1\)"),
        (lambda: rd.fit(rd.Blackout(4), torch.tensor([[0.0, 1.0], [-2.0, 1.0]]), steps=2), r"count -2 at \(1, 0\)"),
        (lambda: rd.fit(rd.Blackout(4), torch.tensor([[0, 1], [5, 1]]), steps=2), r"count 5 at \(1, 0\)"),
        (lambda: rd.fit(rd.TokenBridge(4), WORDS, x1=WORDS[:, :3], steps=2), r"one shape; got \(4,\) and \(3,\): pad"),
        (lambda: rd.fit(rd.TokenBridge(4), WORDS, x1=WORDS + 1, steps=2), r"token 4 at \(0, 3\) of x1"),
        (lambda: rd.fit(rd.TokenBridge(4), WORDS, x1=WORDS[:2], pairing="paired", steps=2), "one length; got 3 and 2"),
        (lambda: rd.fit(rd.TokenBridge(4), WORDS, steps=2), "needs x1="),
        (lambda: rd.fit(rd.Masked(4), torch.randn(8, 2), steps=2), "has tokens as states"),
        (lambda: rd.fit(rd.VP(), WORDS, steps=2), "has real states and the data are tokens"),
        (
            lambda: rd.sample(Atoms(WORDS, x1=WORDS).denoiser(rd.TokenBridge(4)), 3, x1=WORDS + 1, **QUIET),
            r"token 4 at \(0, 3\) of x1",
        ),
        (
            lambda: rd.sample(Atoms(WORDS).denoiser(rd.Masked(4)), 3, init=WORDS + 2, **QUIET),
            r"token 5 at \(0, 3\) of init",
        ),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
