"""Networks as beliefs about discrete states, the nucleus, and exact posteriors by enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch

from processes.discrete_cases import CASES, transition
from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import CountDenoiser, EmbeddedDenoiser, Sharpened, TokenDenoiser, sharpened
from retrodict.exact import Atoms
from retrodict.kernels import Belief, Categorical
from retrodict.processes import VP, Blackout, Discrete, Interpolant, Masked, TokenBridge, Uniform


class Says(torch.nn.Module):
    """A network that answers with a function of its input, and keeps what it was asked."""

    def __init__(self, answer, has_time=True):
        super().__init__()
        self.answer, self.has_time, self.asked = answer, has_time, []
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, t, **condition):
        self.asked.append((x, t))
        return self.answer(x, t)


LOGITS = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def test_impossible_values_get_no_probability():
    """Counts never fall below what is alive; under uniform noise everything is possible."""
    x = torch.tensor([[0, 2, 3], [1, 3, 0]])
    p = TokenDenoiser(Says(lambda x, t: LOGITS), Blackout(4)).belief(x, 0.3).law.log_p.exp()
    allowed = torch.arange(4) >= x.unsqueeze(-1)
    assert torch.equal(p > 0, allowed)
    expected = torch.softmax(LOGITS.double(), -1) * allowed
    assert torch.allclose(p, expected / expected.sum(-1, keepdim=True), atol=1e-12)
    p = TokenDenoiser(Says(lambda x, t: LOGITS), Uniform(4)).belief(x, 0.3).law.log_p
    assert torch.allclose(p, torch.log_softmax(LOGITS.double(), -1))


def test_a_posterior_of_hidden_tokens_alone_is_the_whole_one():
    """Bitwise what a softmax over all that is possible gives, for masks and for a source sequence."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, 4, generator=generator)
    x1 = torch.randint(4, (6, 5), generator=generator)
    for process, x in ((Masked(4), torch.randint(5, (6, 5), generator=generator)), (TokenBridge(4), x1 * (x1 > 1))):
        source = x1 if isinstance(process, TokenBridge) else None
        law, p = process.posterior(logits, x, source)
        whole, every = Discrete.posterior(process, logits, x, source)
        assert torch.equal(law.log_p, whole.log_p) and torch.equal(p, every)
        assert bool((law.log_p > -torch.inf).all(-1).any()) and bool((law.log_p == 0).any())


def test_a_network_without_time_makes_a_timeless_denoiser():
    net = Says(lambda x, t: LOGITS, has_time=False)
    denoiser = TokenDenoiser(net, Masked(4))
    denoiser.belief(torch.zeros(2, 3).long(), 0.3)
    assert net.asked[0][1] is None and denoiser.timeless and Sharpened(denoiser, 0.5).timeless
    assert not TokenDenoiser(Says(lambda x, t: LOGITS), Masked(4)).timeless
    assert not Atoms(torch.tensor([[0], [1]])).denoiser(Masked(2)).timeless


def test_mean_counts_are_what_is_alive_and_a_softplus():
    process = Blackout(17)
    F = torch.linspace(-2, 1, 6).reshape(2, 3)
    net = Says(lambda x, t: F)
    x, t = torch.tensor([[0, 2, 3], [16, 3, 0]]), 0.2
    belief = CountDenoiser(net, process).belief(x, t)
    expected = (x + 4 * torch.nn.functional.softplus(F)).clamp(max=16).double()
    assert torch.allclose(belief.mean, expected, atol=1e-6) and belief.law is None
    seen, clock = net.asked[0]
    centre = 8 * float(process.keep(t))
    assert torch.allclose(seen, (x - centre) / 4, atol=1e-6)
    assert torch.allclose(clock.double(), torch.logit(process.hide(t)).clamp(-15, 15).expand(2) / 4, atol=1e-6)


def test_embedded_tokens():
    table = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [1.0, 0.5]])
    logits = torch.tensor([[[0.0, 1.0, 2.0]]]).expand(4000, 1, 3)
    denoiser = EmbeddedDenoiser(Says(lambda x, t: logits), VP("cosine"), table, length=1)
    x = torch.zeros(4000, 1, 2)
    belief = denoiser.belief(x, 0.5)
    p = torch.softmax(logits[0, 0].double(), -1)
    assert torch.allclose(belief.mean[0, 0].double(), p @ table.double(), atol=1e-6)
    drawn = denoiser.scale.inverse(belief.draw(KeyedNoise(0, 4000)))
    share = torch.bincount(drawn.flatten(), minlength=3).double() / 4000
    assert bool(((share - p).abs() < 4.5 * (p * (1 - p) / 4000).sqrt()).all())  # false alarm below 1e-4
    assert denoiser.scale(torch.tensor([2])).equal(table[2:]) and denoiser.shape == (1, 2)


def test_temperature_and_nucleus():
    """In float64, renormalised; a known token stays known, and the class that crosses top_p is kept."""
    p = torch.tensor([[[0.5, 0.3, 0.15, 0.05], [0.0, 1.0, 0.0, 0.0]]], dtype=torch.float64)
    belief = Belief(p, law=Categorical(p.log()))
    cut = sharpened(belief, top_p=0.75).mean
    assert torch.allclose(cut[0, 0], torch.tensor([0.625, 0.375, 0, 0], dtype=torch.float64)) and cut[0, 1, 1] == 1
    assert torch.allclose(sharpened(belief, top_p=0.81).mean[0, 0, :3], p[0, 0, :3] / 0.95)
    cooled = sharpened(belief, temperature=0.5).mean
    assert torch.allclose(cooled[0, 0], p[0, 0] ** 2 / (p[0, 0] ** 2).sum()) and cooled[0, 1, 1] == 1
    assert sharpened(belief) is belief
    both = Sharpened(TokenDenoiser(Says(lambda x, t: LOGITS), Uniform(4)), 0.7, 0.6)
    x = torch.zeros(2, 3).long()
    expected = sharpened(TokenDenoiser(Says(lambda x, t: LOGITS), Uniform(4)).belief(x, 0.3), 0.7, 0.6).mean
    assert torch.equal(both(x, 0.3), expected) and both.belief(x, 0.3).law.log_p.dtype == torch.float64


@pytest.mark.parametrize("name", CASES)
def test_posteriors_of_atoms_by_enumeration(name):
    """p(atom | x_t) from the process' one-time laws, for every state of two coordinates."""
    process, t = CASES[name], 0.45
    top = process.vocabulary
    data = torch.tensor([[0, 1], [top - 1, 0], [1, 1]])
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = transition(process, t)
    for state in itertools.product(range(process.classes), repeat=2):
        likelihood = q[data[:, 0], state[0]] * q[data[:, 1], state[1]]
        if float(likelihood.max()) < 1e-9:
            continue  # far from every atom: the oracle is total there, not exact
        p = weights * likelihood / (weights * likelihood).sum()
        belief = Atoms(data, weights).denoiser(process).belief(torch.tensor([state]), t)
        expected = torch.zeros(2, top, dtype=torch.float64)
        for n in range(3):
            expected[torch.arange(2), data[n]] += p[n]
        assert torch.allclose(belief.law.log_p[0].exp(), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Atoms(torch.tensor([[0], [3]])).denoiser(Masked(3)), r"token 3 at \(1, 0\) of the data"),
        (lambda: Atoms(torch.tensor([[0], [3]])).denoiser(Blackout(3)), r"count 3 at \(1, 0\) of the data"),
        (lambda: sharpened(Belief(torch.zeros(1)), 0.5), "gives a mean alone"),
        (lambda: Sharpened(Atoms(torch.tensor([[0], [1]])).denoiser(Masked(2)), 0.0), "temperature is positive"),
        (lambda: Sharpened(Atoms(torch.tensor([[0], [1]])).denoiser(Masked(2)), 1.0, 0.0), "top_p is a probability"),
        (
            lambda: CountDenoiser(Says(lambda x, t: x[:, :1]), Blackout(3)).belief(torch.zeros(1, 2).long(), 0.3),
            "returned shape",
        ),
        (lambda: EmbeddedDenoiser(Says(None), Interpolant(), [[1.0]]), "scalar Gaussian path with one end"),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises((InputError, InputTypeError), match=message):
        make()
