"""Bounds of discrete processes: with the exact posterior they are the entropy of the data, at every weight."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from processes.discrete_cases import CASES, law, states, transition
from retrodict.core.errors import InputError
from retrodict.denoisers import CountDenoiser, TokenDenoiser
from retrodict.exact import Atoms
from retrodict.kernels import Categorical
from retrodict.objectives import ChainRegression, TokenRegression, make_objective
from retrodict.objectives.times import LogOdds, Survival, TimeLaw
from retrodict.objectives.tokens import (
    belief_of,
    bound_rate,
    divergence,
    log_posterior,
    plain_error,
    reveal_rate,
    step_divergence,
    terminal,
)
from retrodict.processes import VP, Blackout, Masked, TokenBridge, Uniform

NODES, GAUSS = np.polynomial.legendre.leggauss(120)


def one(process):
    """A law of one coordinate, every value an atom."""
    return Atoms(torch.arange(process.vocabulary)[:, None], law(process))


def entropy(p: torch.Tensor) -> float:
    return float(-torch.xlogy(p, p).sum())


def mismatch(process) -> float:
    """KL of the marginal at t = 1 to the prior, by which the bound exceeds the entropy."""
    p = law(process) @ transition(process, 1.0)
    prior = process.prior_log_p()
    return float(torch.where(p > 0, p * (p.clamp_min(1e-300).log() - prior.clamp_min(-1e4)), 0.0).sum())


def integral(process, given=None, span=25.0) -> float:
    """The bound without its terminal part, by Gauss-Legendre in the log odds and a sum over all states."""
    denoiser, times, x = one(process).denoiser(process), LogOdds(span=span), states(process)
    total = 0.0
    for z, g in zip((NODES + 1) / 2, GAUSS / 2):
        t = float(times.quantile(torch.tensor(z, dtype=torch.float64), process))
        q = transition(process, t)
        believed = belief_of(denoiser, x, t, None, {})
        if given is not None:
            believed = given(believed)
        for v in range(process.vocabulary):
            seen = q[v] > 0
            part = Categorical(believed.log_p[seen]) if isinstance(believed, Categorical) else believed[seen]
            rate = bound_rate(process, part, torch.full_like(x[seen], v), x[seen], t)
            weight = g / float(times.density(torch.tensor(t, dtype=torch.float64), process))
            total += weight * float(law(process)[v] * (q[v][seen] @ rate))
    return total


def last(process) -> float:
    return float(law(process) @ terminal(process, torch.arange(process.vocabulary)[:, None]))


@pytest.mark.parametrize("name", CASES)
def test_the_bound_of_the_exact_posterior_is_the_entropy(name):
    process = CASES[name]
    assert abs(integral(process) + last(process) - entropy(law(process)) - mismatch(process)) < 2e-6


def test_the_weights_of_blackout():
    """A mean is enough; the weight p of the paper, in place of p/(1-p), falls far short of the entropy."""
    process = CASES["blackout"]
    values = torch.arange(process.levels, dtype=torch.float64)
    from_mean = integral(process, given=lambda law: law.log_p.exp() @ values)
    assert abs(from_mean - integral(process)) < 1e-10
    published = 0.0
    times, x, denoiser = LogOdds(span=25.0), states(process), one(process).denoiser(process)
    for z, g in zip((NODES + 1) / 2, GAUSS / 2):
        t = float(times.quantile(torch.tensor(z, dtype=torch.float64), process))
        q, believed = transition(process, t), belief_of(denoiser, x, t, None, {})
        for v in range(process.vocabulary):
            seen = q[v] > 0
            rate = bound_rate(process, Categorical(believed.log_p[seen]), torch.full_like(x[seen], v), x[seen], t)
            weight = g / float(times.density(torch.tensor(t, dtype=torch.float64), process)) * float(process.hide(t))
            published += weight * float(law(process)[v] * (q[v][seen] @ rate))
    assert published + last(process) < 0.6 * entropy(law(process))


@pytest.mark.parametrize("process", [Masked(4, "cosine"), TokenBridge(4)], ids=repr)
def test_the_closed_form_of_masks_is_the_general_formula(process):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(4, (50, 3), generator=generator)
    x1 = torch.randint(4, (50, 3), generator=generator) if len(process.ends) == 2 else None
    t = torch.rand(50, generator=generator, dtype=torch.float64)
    x_t = process.corrupt(x0, t, torch.rand(50, 3, generator=generator, dtype=torch.float64), x1)
    log_p = torch.log_softmax(torch.randn(50, 3, 4, generator=generator, dtype=torch.float64), -1)
    general = bound_rate(process, Categorical(log_p), x0, x_t, t, x1)
    assert torch.allclose(reveal_rate(process, t) * divergence(process, log_p, x0, x_t, x1), general, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_chain_of_steps_has_the_same_entropy(name):
    """P02's general form: sum of KL over 1, 3 and 12 steps plus the terminal part, exactly, for any law."""
    process = CASES[name]
    denoiser, x = one(process).denoiser(process), states(process)
    for T in (1, 3, 12):
        total = last(process)
        levels = np.linspace(0, 1, T + 1)
        for s, t in pairwise(levels):
            q, believed = transition(process, t), belief_of(denoiser, x, float(t), None, {})
            for v in range(process.vocabulary):
                seen = q[v] > 0
                part = Categorical(believed.log_p[seen])
                kl = step_divergence(process, part, torch.full_like(x[seen], v), x[seen], float(t), float(s))[:, 0]
                total += float(law(process)[v] * (q[v][seen] @ kl))
        assert abs(total - entropy(law(process)) - mismatch(process)) < 1e-9


@pytest.mark.parametrize("kind", ["tokens", "vlb"])
@pytest.mark.parametrize("process", [Uniform(3), CASES["birth-death"], CASES["blackout"], TokenBridge(3)], ids=repr)
def test_the_objectives_themselves(process, kind):
    """As they train, on two dependent coordinates, the exact posterior as denoiser: within four standard errors."""
    data = torch.tensor([[0, 1], [0, 2], [2, 2]])
    x1 = torch.zeros(3, 2).long() if len(process.ends) == 2 else None
    counts = torch.tensor([500, 300, 200])
    exact = Atoms(data, [0.5, 0.3, 0.2], x1=x1)
    batch = {"x0": data.repeat_interleave(counts, 0)}
    if x1 is not None:
        batch["x1"] = torch.zeros(1000, 2).long()
    objective = make_objective(kind, process, **({"steps": 40} if kind == "vlb" else {}))
    generator = torch.Generator().manual_seed(0)
    denoiser = exact.denoiser(process)
    losses = torch.stack([objective(denoiser, batch, generator)["loss"] for _ in range(40)]) * 2
    error = float(losses.std() / 40**0.5)
    end = float((exact.weights * terminal(process, data)).sum())
    target = exact.entropy() - end
    if isinstance(process, Blackout):  # the prior is not the marginal at t = 1
        target += float(exact.weights @ marginal_gap(process, data, exact.weights))
    if kind == "vlb":  # decoding in parallel costs about 1/steps
        assert -4 * error < float(losses.mean()) - target < 0.12
    else:
        assert error < 0.05 and abs(float(losses.mean()) - target) < 4 * error


def marginal_gap(process, data, weights):
    """log p_1(x) - log prior(x) on average over x_1 given each datum, by enumeration of two coordinates."""
    q = transition(process, 1.0)
    joint = torch.einsum("nx,ny->nxy", q[data[:, 0]], q[data[:, 1]])
    p = torch.einsum("n,nxy->xy", weights, joint)
    prior = process.prior_log_p()
    return (joint * (p.clamp_min(1e-300).log() - prior[:, None] - prior[None, :])).sum((1, 2))


class Logits(torch.nn.Module):
    """Free logits for each position, with or without a time."""

    def __init__(self, L, V, has_time=True):
        super().__init__()
        self.table, self.has_time = torch.nn.Parameter(torch.randn(L, V)), has_time

    def forward(self, x, t):
        return self.table.expand(len(x), *self.table.shape)


def test_the_score_entropy_has_the_gradients_of_the_bound():
    process = Uniform(4)
    torch.manual_seed(0)
    net = Logits(3, 4)
    denoiser, x0 = TokenDenoiser(net, process), torch.randint(4, (256, 3))
    grads, values = [], []
    for name in ("tokens", "score-entropy"):
        loss = make_objective(name, process)(denoiser, {"x0": x0}, torch.Generator().manual_seed(0))["loss"]
        (grad,) = torch.autograd.grad(loss, net.table)
        grads.append(grad)
        values.append(float(loss))
    assert torch.allclose(grads[0], grads[1], atol=1e-5) and abs(values[0] - values[1]) > 0.1
    assert float(grads[0].abs().max()) > 1e-3


def test_counts_learn_their_mean():
    """Poisson regression: the minimiser is the posterior mean, found by 150 steps on one free number."""
    process = Blackout(9)

    class Bias(torch.nn.Module):
        has_time = False

        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t):
            return self.bias.expand(x.shape)

    for weighting in ("elbo", "uniform"):
        net = Bias()
        denoiser = CountDenoiser(net, process)
        objective = TokenRegression(process, weighting, times=TimeLaw(0.999, 1.0))  # nothing is alive: E[x0 | 0] = 3
        optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
        x0 = torch.tensor([[2], [4]]).repeat(64, 1)
        generator = torch.Generator().manual_seed(0)
        for _ in range(150):
            optimiser.zero_grad()
            objective(denoiser, {"x0": x0}, generator)["loss"].backward()
            optimiser.step()
        assert abs(float(denoiser(torch.zeros(1, 1).long(), 1.0)) - 3.0) < 0.02


def test_plain_cross_entropy_and_the_law_of_times():
    x0 = torch.tensor([[0, 1], [2, 2]])
    log_p = torch.log_softmax(torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0)), -1)
    plain = plain_error(Uniform(3), Categorical(log_p), x0, x0, None)
    assert torch.allclose(plain, -log_p.gather(-1, x0[..., None])[..., 0].mean(1))
    for process in (Uniform(3), Blackout(4), Masked(3, "cosine")):
        for times in (LogOdds(), Survival(), Survival(0.2, 0.7)):
            t = times.quantile(torch.linspace(0.001, 0.999, 4001, dtype=torch.float64), process)
            density = times.density(t, process)
            mass = float((density[1:] + density[:-1]) @ t.diff() / 2)
            assert abs(mass - 0.998) < 1e-3
    assert isinstance(make_objective("auto", Blackout(4)).times, Survival)
    assert make_objective("poisson", Blackout(4)).weighting.integral
    chain = ChainRegression(Blackout(4), steps=5)
    levels = chain.levels()
    assert levels[0] == 0 and levels[-1] == 1 and bool((levels.diff() > 0).all()) and len(levels) == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenRegression(VP()), "masks and token bridges, jumps and counts, got VP"),
        (lambda: ChainRegression(Uniform(3), steps=0), "at least 1"),
        (lambda: LogOdds(span=0.0), "span of the log odds"),
        (lambda: LogOdds().quantile(torch.tensor(0.5), VP()), "use times='stratified'"),
        (lambda: Survival().quantile(torch.tensor(0.5), VP()), "use times='stratified'"),
        (
            lambda: make_objective("auto", Blackout(4))(
                one(Blackout(4)).denoiser(Blackout(4)), {"x0": torch.zeros(2, 1)}, torch.Generator()
            ),
            "counts are integers, got torch.float32",
        ),
        (
            lambda: log_posterior(
                CountDenoiser(Logits(1, 1), Blackout(4)), torch.zeros(1, 1, 1).long(), torch.tensor([0.5]), None, {}
            ),
            "mean alone",
        ),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
