"""The verbs on texts, counts of images, graphs and embeddings: learned, drawn, saved with what the tokens stand for."""

from __future__ import annotations

import itertools

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.data import graphs, text
from retrodict.denoisers import EmbeddedDenoiser, TokenDenoiser
from retrodict.kernels import Belief
from retrodict.kernels.laws import Categorical

QUIET = {"progress": False}
SMALL = {"hidden": 16, "depth": 1, "heads": 2}


def test_a_text_is_learned_saved_and_written_again(tmp_path):
    data = text("abcdabcd" * 30, length=4)
    options = {"network_options": SMALL, "batch_size": 32, "lr": 1e-2}
    denoiser = rd.fit(rd.Masked(data.levels), data, steps=120, out=tmp_path / "run", **options, **QUIET)
    again = rd.load(tmp_path / "run")
    copy = rd.load(rd.save(again, tmp_path / "copy"))
    x = rd.sample(copy, 20, steps=8, **QUIET).x
    words = copy.decode(x)
    assert words == data.decode(x) and words.count("abcd") >= 15  # of 256 words chance would find .08
    assert again.codec == denoiser.codec == data.codec
    with pytest.raises(InputError, match="no meaning"):
        rd.exact.Atoms(data.x).denoiser(rd.Masked(4)).decode(x)


@pytest.mark.parametrize("process", [rd.Masked(5), rd.Blackout(5), rd.Uniform(5)], ids=repr)
def test_images_of_whole_numbers_learn_a_law(process, tmp_path):
    """Two images, told apart by every pixel, so that any mixture of them is an error."""
    images = torch.tensor([[0, 1, 2, 3], [4, 3, 1, 0]]).reshape(2, 1, 2, 2).repeat(32, 1, 1, 1)
    small = {"network_options": {"channels": [16], "dropout": 0.0}, "batch_size": 32, "lr": 1e-2}
    denoiser = rd.fit(process, images, steps=150, predicts="law", **small, **QUIET)
    assert isinstance(denoiser, TokenDenoiser) and denoiser.network.name == "count-unet"
    assert denoiser.timeless == isinstance(process, rd.Masked)
    x = rd.sample(denoiser, 40, steps=32, seed=1, **QUIET).x
    assert x.shape == (40, 1, 2, 2)
    hits = [bool((v == images[0]).all() or (v == images[1]).all()) for v in x]
    assert sum(hits) > 25  # of 625 images chance would find .13
    again = rd.load(rd.save(denoiser, tmp_path))
    t = torch.full((2,), 0.5)
    assert torch.equal(again(images[:2], t), denoiser(images[:2], t))


def test_graphs_are_learned_by_the_network_of_their_codec():
    """Paths of three nodes, in all their numberings: an edge set of exactly two, whichever two."""
    paths = torch.stack([torch.ones(3, 3).long() - torch.eye(3).long() for _ in range(3)])
    for k in range(3):
        i, j = [n for n in range(3) if n != k]
        paths[k, i, j] = paths[k, j, i] = 0
    data = graphs(paths.repeat(20, 1, 1))
    denoiser = rd.fit(
        rd.Masked(data.levels), data, steps=300, lr=1e-2, batch_size=32,
        network_options={"hidden": 16, "pairs": 8, "depth": 2, "heads": 2}, **QUIET,
    )  # fmt: skip
    assert denoiser.network.name == "graph-transformer"
    nodes, edges = denoiser.decode(rd.sample(denoiser, 60, steps=16, seed=0, **QUIET).x)
    assert bool((nodes == 0).all())
    two = edges.flatten(1).sum(1) == 4
    assert int(two.sum()) > 50  # by the marginals alone 4 in 9
    p = denoiser(torch.full((1, 6), data.levels), 0.9)[0]
    assert torch.allclose(p[3:, 2], p[3, 2].expand(3), atol=1e-6)  # equal nodes: all pairs alike
    assert 0.45 < float(p[3, 2]) < 0.85  # the truth is 2/3


def test_embedded_tokens_are_learned_by_the_same_verb(tmp_path):
    words = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 0, 0]]).repeat(30, 1)
    table = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    denoiser = rd.fit(
        rd.VP("cosine"), words, embeddings=table, steps=250, lr=1e-2, batch_size=64, network_options=SMALL, **QUIET
    )
    assert isinstance(denoiser, EmbeddedDenoiser) and denoiser.shape == (4, 2)
    run = rd.sample(denoiser, 60, solver="step", steps=20, eta=1.0, options={"belief_as": "sample"}, seed=0, **QUIET)
    known = {tuple(w.tolist()) for w in words[:3]}
    assert run.x.dtype == torch.int64 and sum(tuple(v.tolist()) in known for v in run.x) > 30  # chance: .7
    again = rd.load(rd.save(denoiser, tmp_path))
    y = torch.randn(2, 4, 2)
    assert torch.equal(again(y, 0.5), denoiser(y, 0.5)) and torch.equal(again.scale.embeddings, table)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: rd.fit(rd.VP(), w, embeddings=torch.randn(3, 2)), r"\(3, 2\); needed: .* tokens up to 3"),
        (lambda w: rd.fit(rd.Masked(4), w, embeddings=torch.randn(4, 2)), "not on Masked"),
        (lambda w: rd.fit(rd.VP(), torch.randn(8, 2), embeddings=torch.randn(4, 2)), "for tokens, and the data are"),
        (lambda w: rd.fit(rd.VP(), w), "give embeddings="),
        (lambda w: rd.fit(rd.VP(), w, embeddings=[[1.0], [float("nan")], [0.0], [2.0]]), "embeddings are finite"),
        (lambda w: rd.fit(rd.Masked(4), w, predicts="mean"), "a mean is learned of images"),
        (lambda w: rd.fit(rd.Masked(4), w, predicts="edm"), "'law' or 'mean'; got 'edm'"),
        (lambda w: rd.fit(rd.Masked(3), w.view(-1, 1, 2, 2)), r"token 3 at \(0, 0, 1, 1\)"),
        (lambda w: rd.FiniteJump([[-1.0, 1.0], [2.0, -1.0]]), r"row|sum"),
        (lambda w: rd.FiniteJump([[1.0, -1.0], [1.0, -1.0]]), r"negative|sign|rates"),
        (lambda w: rd.FiniteJump([[-1.0, 1.0, 0.0], [1.0, -1.0, 0.0]]), r"square|shape"),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make(torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]))


# -- tokens with geometry ----------------------------------------------------------------------------------------


class Ring(rd.Denoiser):
    """The exact posterior of two tokens on a ring of 8, coordinate by coordinate, under factorised noise ``q_t``."""

    def __init__(self, process, law, table):
        super().__init__(process, (2,))
        self.law, self.table = law, table

    def belief(self, x, t, **condition):
        q = self.table(float(t))  # (clean, noisy)
        joint = self.law * q[:, x[:, 0]].T[:, :, None] * q[:, x[:, 1]].T[:, None, :]
        joint = joint / joint.sum((1, 2), keepdim=True)
        log_p = torch.stack([joint.sum(2), joint.sum(1)], 1).log()
        return Belief(log_p.exp(), law=Categorical(log_p))


def ring_errors(table, times, law):
    """Total variation of the renoising chain: draw both tokens from their marginals, noise them to the next time."""
    pairs = torch.cartesian_prod(torch.arange(8), torch.arange(8))
    now = torch.full((64,), 1 / 64).double()
    denoiser = Ring(rd.Uniform(8), law, table)
    for t, s in itertools.pairwise(times):
        p = denoiser.belief(pairs, t).law.log_p.exp()
        q = torch.eye(8).double() if s == 0 else table(s)
        step = (p[:, 0] @ q)[:, :, None] * (p[:, 1] @ q)[:, None, :]
        now = now @ step.flatten(1)
    return float((now - law.flatten()).abs().sum() / 2)


def test_noise_that_knows_the_ring_needs_half_the_steps():
    """P ~ exp(cos(2 pi a/8) - d(a,b)^2/1.28): wrapped-Gaussian noise of width .3 (4/.3)^t against uniform noise, both
    renoised at each step; enumerated, with the published calibration .134/.071/.045 and .200/.132/.100."""
    k = torch.arange(8).double()
    gap = (k[:, None] - k[None, :]).abs()
    gap = torch.minimum(gap, 8 - gap)
    law = torch.exp(torch.cos(2 * torch.pi * k / 8)[:, None] - gap**2 / 1.28)
    law = law / law.sum()
    turns = torch.arange(-3, 4).double() * 8

    def near(t):
        width = 0.3 * (4 / 0.3) ** t
        q = torch.exp(-(((k[:, None] - k[None, :])[..., None] + turns) ** 2) / (2 * width**2)).sum(-1)
        return q / q.sum(1, keepdim=True)

    def uniform(t):
        return (1 - t) * torch.eye(8).double() + t / 8

    error = {
        (name, steps): ring_errors(table, torch.linspace(1, 0, steps + 1).tolist(), law)
        for name, table in (("near", near), ("uniform", uniform))
        for steps in (4, 8, 16)
    }
    for steps, a, b in ((4, 0.134, 0.200), (8, 0.071, 0.132), (16, 0.045, 0.100)):
        assert error["near", steps] == pytest.approx(a, abs=0.02), error
        assert error["uniform", steps] == pytest.approx(b, abs=0.02), error
    assert error["near", 4] < 1.05 * error["uniform", 8] and error["near", 8] < error["uniform", 16]
