"""Finite-state kernels against the enumeration of every path."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.kernels import Categorical, Chain, Factor, Finite, Flip, Gaussian, LinearGaussian, Point, Table

S, LENGTH = 3, 4


def law(seed: int, *shape: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=g, dtype=torch.float64).softmax(-1)


@pytest.fixture
def model():
    """A prior, transitions and observations at times 0 and 2 .. LENGTH, as tables."""
    prior = law(0, S)
    P = [law(1 + n, S, S) for n in range(LENGTH)]
    P[1][0, 2] = 0  # a forbidden transition
    P[1] = P[1] / P[1].sum(-1, keepdim=True)
    g = {n: law(20 + n, S) for n in (0, 2, 3, 4)}
    links = []
    for n in range(LENGTH + 1):
        if n:
            links.append(Finite.of(P[n - 1]))
        if n in g:
            links.append(Factor(Table(g[n].log().unsqueeze(0))))
    return prior, P, g, Chain(*links)


def enumerate_paths(model):
    """``{path: p(path) g(path)}`` over all S^(LENGTH + 1) paths."""
    prior, P, g, _ = model
    table = {}
    for path in itertools.product(range(S), repeat=LENGTH + 1):
        p = float(prior[path[0]])
        for n in range(LENGTH):
            p *= float(P[n][path[n], path[n + 1]])
        for n, values in g.items():
            p *= float(values[path[n]])
        table[path] = p
    return table


def test_evidence_and_smoothing_by_enumeration(model):
    paths, chain = enumerate_paths(model), model[3]
    evidence = sum(paths.values())
    residual, message = chain.pull()
    start, log_evidence = Categorical(model[0].log().unsqueeze(0)).fuse(message)
    assert abs(float(log_evidence.exp()) - evidence) < 1e-15
    laws = [start] + [law for law, link in zip(residual.laws(start), chain.links) if isinstance(link, Finite)]
    for n, marginal in enumerate(laws):
        for s in range(S):
            expected = sum(p for path, p in paths.items() if path[n] == s) / evidence
            assert abs(float(marginal.log_p[0, s].exp()) - expected) < 1e-14


def test_filtering_by_enumeration(model):
    paths = enumerate_paths(model)
    last = model[3].push(Categorical(model[0].log().unsqueeze(0)))
    for s in range(S):
        expected = sum(p for path, p in paths.items() if path[-1] == s) / sum(paths.values())
        assert abs(float(last.log_p[0, s].exp()) - expected) < 1e-14


def test_guided_paths_follow_the_posterior(model):
    """Chi-square over all paths that can occur (false-alarm rate 1e-4); their log weights vanish."""
    paths, chain = enumerate_paths(model), model[3]
    residual, message = chain.pull()
    n = 4000
    noise = KeyedNoise(0, n, dtype=torch.float64)
    start, _ = Categorical(model[0].log().unsqueeze(0)).fuse(message)
    x = noise.categorical(start.log_p.expand(n, S))
    states, log_weight = [x], torch.zeros(n, dtype=torch.float64)
    for link, guided in zip(chain.links, residual.links):
        x, step = link.guide(guided, x, link.draw(noise, ()))
        log_weight = log_weight + step
        if isinstance(link, Finite):
            states.append(x)
    assert bool((log_weight == 0).all())
    code = sum(s * S**k for k, s in enumerate(reversed(states)))
    counts = torch.bincount(code, minlength=S ** (LENGTH + 1)).double()
    expected = torch.tensor(list(paths.values()), dtype=torch.float64)
    expected = n * expected / expected.sum()
    assert bool((counts[expected == 0] == 0).all())
    order = expected.argsort()
    rare = order[expected[order].cumsum(0) < 10]  # pooled, so that the chi-square law holds
    common = order[len(rare) :]
    observed = torch.cat([counts[rare].sum().reshape(1), counts[common]])
    wanted = torch.cat([expected[rare].sum().reshape(1), expected[common]])
    assert stats.chisquare(observed.numpy(), wanted.numpy()).pvalue > 1e-4


def test_invert_is_bayes_rule_and_obeys_the_lens_law(model):
    prior, P = model[0], model[1]
    start = Categorical(prior.log())
    whole = (P[0] @ P[1] @ P[2]).double()
    joint = prior[:, None] * whole
    expected = (joint / joint.sum(0)).T
    chain = (Finite.of(P[0]) >> Finite.of(P[1]) >> Finite.of(P[2])).invert(start)
    composed = torch.eye(S, dtype=torch.float64)
    for k in chain.links:
        composed = composed @ k.log_p.exp()
    assert torch.allclose(composed, expected, atol=1e-14)
    assert torch.allclose(Finite.of(whole).invert(start).log_p.exp(), expected, atol=1e-14)


def test_a_state_that_cannot_occur_inverts_to_a_law():
    kernel = Finite.of(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    back = kernel.invert(Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64).log())).log_p.exp()
    assert torch.allclose(back.sum(-1), torch.ones(2, dtype=torch.float64))
    assert torch.allclose(back[0], torch.tensor([0.3, 0.7], dtype=torch.float64))


def test_steps_and_densities_of_a_table():
    P = law(7, S, S)
    kernel, n = Finite.of(P), 6000
    x = torch.arange(n) % S
    y = kernel.sample(x, KeyedNoise(1, n))
    for s in range(S):
        counts = torch.bincount(y[x == s], minlength=S)
        assert stats.chisquare(counts.numpy(), (n / S * P[s]).numpy()).pvalue > 1e-4
    assert torch.allclose(kernel.log_prob(x, y, event=0), P[x, y].log())
    pairs = torch.stack([x, y], 1)
    assert torch.allclose(kernel.log_prob(pairs, pairs), P[x, x].log() + P[y, y].log())  # coordinates add


def test_a_flip_equals_its_table():
    K = 4
    u, other = torch.tensor([[0.25, 1.0], [0.5, 0.0]], dtype=torch.float64), torch.tensor([[3, 1], [0, 2]])
    flip = Flip(u, other, K)
    eye = torch.eye(K, dtype=torch.float64)
    table = Finite((u[..., None, None] * eye + (1 - u)[..., None, None] * eye[other].unsqueeze(-2)).log())
    p = law(3, 2, 2, K).log()
    assert torch.allclose(flip.push(Categorical(p)).log_p.exp(), table.push(Categorical(p)).log_p.exp(), atol=1e-15)
    for x in itertools.product(range(K), repeat=2):
        for y in itertools.product(range(K), repeat=2):
            a, b = (torch.tensor([v, v]) for v in (x, y))
            assert torch.allclose(flip.log_prob(a, b).exp(), table.log_prob(a, b).exp(), atol=1e-15)
    x = torch.tensor([[1, 2], [3, 3]])
    z = torch.tensor([[0.2, 0.999], [0.6, 0.0]], dtype=torch.float64)
    assert flip.step(x, z).tolist() == [[1, 2], [0, 2]]
    # beliefs need not list a state that only the flip can reach
    short = flip.push(Categorical(law(4, 2, 2, K - 1).log()))
    assert short.log_p.shape == (2, 2, K)
    assert torch.allclose(short.log_p.exp().sum(-1), torch.ones(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("likely", [None, 0, 1], ids=str)
def test_a_draw_from_a_flipped_law_needs_no_table(likely):
    """Three coordinates, one of which is known: the draws have the law that ``log_p`` writes out (chi-squared, false
    alarm 1e-4 each), whatever value is looked up first."""
    K, n = 4, 6000
    p = torch.tensor([[0.1, 0.6, 0.3], [1.0, 0.0, 0.0], [0.2, 0.2, 0.6]], dtype=torch.float64)
    u, other = torch.tensor([0.7, 0.4, 1.0], dtype=torch.float64), torch.tensor([3, 3, 1])
    flip = Flip(u, other, K, None if likely is None else torch.full((3,), likely))
    law = flip.push(Categorical(p.log().expand(n, 3, 3)))
    drawn = law.sample(KeyedNoise(0, n))
    for i in range(3):
        expected = law.log_p[0, i].exp()
        counts, seen = torch.bincount(drawn[:, i], minlength=K).double(), expected > 0
        assert float(counts[~seen].sum()) == 0
        assert stats.chisquare(counts[seen], n * expected[seen]).pvalue > 1e-4


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="sum to 1"):
        Finite.of(torch.tensor([[0.5, 0.6], [0.5, 0.5]]))
    with pytest.raises(InputError, match="sum to 1"):
        Finite.of(torch.tensor([[1.5, -0.5], [0.5, 0.5]]))
    kernel = Finite.of(law(0, S, S))
    point = Point(torch.zeros(1, 2))
    for call in (kernel.push, kernel.invert):
        with pytest.raises(InputTypeError, match="Gaussian"):
            call(point)
    assert isinstance(point, Gaussian)
    with pytest.raises(InputTypeError, match="LinearGaussian cannot push Categorical"):
        LinearGaussian(1.0, 0.0, 1.0).push(Categorical(torch.zeros(1, 2)))
