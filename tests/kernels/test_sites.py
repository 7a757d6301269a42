"""Interacting sites: expectations of weights by enumeration of every path of two coupled sites."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.kernels import Chain, Factor, Finite, InteractingSites, Table
from retrodict.kernels.kernel import Pulled

STATES = torch.tensor(list(itertools.product(range(2), repeat=2)))


def coupled(x: Tensor) -> Tensor:
    """Each site tends to its own last state and to that of its neighbour."""
    pull = 1.2 * (2 * x - 1) + 0.9 * (2 * x.flip(-1) - 1) + torch.tensor([0.3, -0.2])
    return torch.log_softmax(torch.stack([torch.zeros_like(pull), pull], -1).double(), -1)


def truth() -> Tensor:
    """The joint table ``(4, 4)``."""
    log_p = coupled(STATES)
    return torch.stack([log_p.gather(-1, y.expand(4, 2).unsqueeze(-1)).squeeze(-1).sum(1).exp() for y in STATES], 1)


def potentials(n: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.randn(1, 2, 2, generator=g, dtype=torch.float64) for _ in range(n)]


AUX = {
    "frozen": lambda: InteractingSites.frozen_at(coupled, torch.tensor([1, 0]), 2),
    "wrong": lambda: InteractingSites(coupled, Finite.of(torch.tensor([[0.6, 0.4], [0.5, 0.5]]))),
}


@pytest.mark.parametrize("aux", ["frozen", "wrong"])
def test_the_expected_weight_is_the_evidence(aux):
    """Five steps: the sum over all guided paths of probability times weight, exactly, from every start."""
    kernel, g = AUX[aux](), potentials(5)
    links = [link for v in g for link in (kernel, Factor(Table(v)))]
    residual, h = Chain(*links).pull()
    expected = torch.ones(4, dtype=torch.float64)
    estimate = torch.ones(4, dtype=torch.float64)
    P = truth()
    for v, guided in zip(reversed(g), reversed(residual.links[::2])):
        seen = torch.stack([v[0, 0, y[0]] + v[0, 1, y[1]] for y in STATES]).exp()
        expected = P @ (seen * expected)
        assert isinstance(guided, Pulled)
        joint = coupled(STATES) + guided.later.log_h
        law = torch.log_softmax(joint, -1)
        moves = torch.stack([law.gather(-1, y.expand(4, 2).unsqueeze(-1)).squeeze(-1).sum(1) for y in STATES], 1).exp()
        _, log_weight = kernel.guide(guided, STATES, torch.full((4, 2), 0.5, dtype=torch.float64))
        estimate = log_weight.exp() * (moves @ estimate)
    assert torch.allclose(estimate * h(STATES).exp(), expected, rtol=1e-13)


def test_guided_draws_follow_the_tilted_law():
    """Chi-square over the four joint states (false-alarm rate 1e-4)."""
    kernel, n = AUX["frozen"](), 4000
    h = Table(potentials(1)[0])
    x = torch.tensor([[0, 1]]).expand(n, 2)
    noise = KeyedNoise(0, n)
    y, _ = kernel.guide(kernel.pull(h)[0], x, kernel.draw(noise, (2,)))
    tilted = truth()[1] * h(STATES).exp()
    counts = torch.bincount(2 * y[:, 0] + y[:, 1], minlength=4)
    assert stats.chisquare(counts.numpy(), (n * tilted / tilted.sum()).numpy()).pvalue > 1e-4
    free = torch.bincount(2 * (s := kernel.sample(x, noise))[:, 0] + s[:, 1], minlength=4)
    assert stats.chisquare(free.numpy(), (n * truth()[1]).numpy()).pvalue > 1e-4
    assert torch.allclose(kernel.log_prob(x[:4], STATES).exp(), truth()[1])


def test_sites_that_do_not_interact_have_no_weight():
    tables = torch.tensor([[[0.8, 0.2], [0.3, 0.7]], [[0.5, 0.5], [0.1, 0.9]]], dtype=torch.float64).log()
    kernel = InteractingSites(lambda x: tables[torch.arange(2), x], Finite(tables))
    residual, _ = kernel.pull(Table(potentials(1)[0]))
    _, log_weight = kernel.guide(residual, STATES, torch.full((4, 2), 0.5, dtype=torch.float64))
    assert float(log_weight.abs().max()) < 1e-14
    frozen = InteractingSites.frozen_at(kernel.conditional, torch.tensor([0, 1]), 2)
    assert torch.allclose(frozen.aux.log_p, tables)


def test_wrong_input_is_refused():
    with pytest.raises(InputTypeError, match="a Finite kernel, got Table"):
        InteractingSites(coupled, Table(torch.zeros(1, 2)))  # type: ignore[arg-type]
    kernel = InteractingSites(lambda x: x.double(), AUX["wrong"]().aux)
    with pytest.raises(InputError, match=r"returned shape \(4, 2\) at states \(4, 2\)"):
        kernel.step(STATES, torch.zeros(4, 2))
