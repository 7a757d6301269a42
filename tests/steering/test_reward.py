"""Rewards: against quadrature, conjugate Gaussians and enumeration; soft values drawn and regressed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError, NonFiniteError
from retrodict.data.scaling import Scale
from retrodict.exact import Atoms, GaussianMixture
from retrodict.steering import Node, Reward, fit_value
from solvers.discrete_laws import all_states, law_of, start_of, tv
from solvers.test_candidates import choice_law

QUIET = {"progress": False}
LAW = GaussianMixture([0.5, 0.3, 0.2], [[-2.0], [0.5], [2.0]], [0.3, 0.3, 0.3])
PATH = rd.VE(0.01, 15.0)
WORDS = {"solver": "ddim", "eta": 1.0, "grid": "karras", "steps": 60, **QUIET}
STRENGTH = 2.0
EDGES = torch.linspace(-7, 7, 71, dtype=torch.float64)


def wavy(x):
    return 1.5 * torch.sin(2 * x[:, 0]) + 0.5 * x[:, 0]


def tilted() -> tuple[torch.Tensor, torch.Tensor]:
    """Grid and density of the law times exp(strength * reward)."""
    x = torch.linspace(-7, 7, 14_001, dtype=torch.float64)[:, None]
    p = (LAW.log_prob(x) + STRENGTH * wavy(x)).exp()
    return x[:, 0], p / p.sum()


def binned(x: torch.Tensor, w: torch.Tensor | None = None) -> torch.Tensor:
    place = torch.bucketize(x.double(), EDGES[1:-1])
    w = torch.full_like(x.double(), 1 / len(x)) if w is None else w
    return torch.zeros(70, dtype=torch.float64).index_add_(0, place, w)


def exact_bins() -> torch.Tensor:
    return binned(*tilted())


def test_the_tilted_law_of_a_black_box_reward():
    """2 runs of 3,000 weighted particles: E r = 1.627 and deviation 1.103 by quadrature, TV over 70 bins.

    The sampling floor of 6,000 draws is .022; without weights the mean reward of the base sampler is .21.
    """
    goal = rd.condition(LAW.denoiser(PATH), rd.Reward(wavy, STRENGTH))
    x, p = tilted()
    exact = float((p * wavy(x[:, None])).sum())
    assert exact == pytest.approx(1.627, abs=1e-3)
    runs = [rd.sample(goal, 3000, seed=s, **WORDS) for s in (0, 1)]
    assert runs[0].correction == "weighted"
    law = sum(binned(r.x[:, 0], torch.softmax(r.log_weights, 0)) for r in runs) / 2
    assert tv(law, exact_bins()) < 0.08
    assert sum(float(r.mean(wavy)) for r in runs) / 2 == pytest.approx(exact, abs=0.1)
    log_z = math.log(float((LAW.log_prob(x[:, None]) + STRENGTH * wavy(x[:, None])).exp().sum() * 1e-3))
    assert float(runs[0].log_evidence) == pytest.approx(log_z, abs=0.15)


def test_a_population_beats_private_candidates_on_the_same_value_calls():
    """FK with 4,000 particles against 2,000 samples of 2 candidates, posterior-mean values: TV at most 0.6 times."""
    goal = rd.condition(LAW.denoiser(PATH), rd.Reward(wavy, STRENGTH, value="mean"))
    far = []
    for seed in (0, 1):
        together = rd.sample(goal, 4000, seed=seed, **WORDS)
        alone = rd.sample(goal, 2000, seed=seed, population=rd.Population(candidates=2), **WORDS)
        assert alone.x.shape == (2000, 1)
        far.append((tv(binned(together.x[:, 0], torch.softmax(together.log_weights, 0)), exact_bins()),
                    tv(binned(alone.x[:, 0]), exact_bins())))  # fmt: skip
    assert sum(a for a, _ in far) < 0.6 * sum(b for _, b in far), far
    assert all(b > 0.1 for _, b in far)


class ExactValue(torch.nn.Module):
    """log E[exp l | x_t] of the wavy reward: x0 given x_t and its component is Gaussian, 24 nodes each."""

    def __init__(self, strength=STRENGTH, path=PATH, of=torch.exp):
        super().__init__()
        z, w = np.polynomial.hermite_e.hermegauss(24)
        self.z, self.w = torch.from_numpy(z), torch.from_numpy(w / w.sum())
        self.strength, self.path, self.of = strength, path, of

    def forward(self, x, t):
        alpha, sigma = (c(t)[:, None] for c in (self.path.alpha, self.path.sigma))
        total = alpha**2 * 0.3 + sigma**2
        m, x = LAW.means[:, 0], x.double()
        share = torch.softmax(LAW.weights.log() - 0.5 * (x - alpha * m) ** 2 / total, 1)
        mean, root = m + 0.3 * alpha * (x - alpha * m) / total, (0.3 * sigma**2 / total).sqrt()
        nodes = mean[:, :, None] + root[:, :, None] * self.z
        l = self.strength * wavy(nodes.reshape(-1, 1)).view(nodes.shape)
        out = (share * (self.of(l) * self.w).sum(-1)).sum(1)
        return out.log() if self.of is torch.exp else out


def test_soft_value_decoding_converges_with_exact_values():
    """600 samples each; more candidates are nearer, and 20 are within .18 of the tilted law (floor .07)."""
    goal = rd.condition(LAW.denoiser(PATH), rd.Reward(wavy, STRENGTH, value=ExactValue()))
    draw = lambda k: rd.sample(goal, 600, population=rd.Population(candidates=k), seed=2, **WORDS)  # noqa: E731
    far = [tv(binned(draw(k).x[:, 0]), exact_bins()) for k in (2, 5, 20)]
    assert far[0] > 1.5 * far[1] > 1.5 * far[2] and far[2] < 0.18, far


def test_a_linear_reward_of_a_gaussian_moves_by_the_covariance_exactly():
    """N(m, V) under exp(b.x) is N(m + V b, V): the drift alone gets there, and the weights have nothing left to say.

    8,000 samples: moments within 4.5 errors; the variance of the log-weights falls with the square of the step.
    """
    V = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
    law = GaussianMixture([1.0], [[0.3, -0.2]], V[None])
    b = torch.tensor([0.8, -0.5], dtype=torch.float64)
    goal = rd.condition(law.denoiser(rd.VP()), rd.Reward(lambda x: x @ b, gradient=True, value="mean"))
    words = {"solver": "ddim", "eta": 1.0, "grid": "logsnr", **QUIET}
    bent = rd.sample(goal, 8000, steps=200, population=False, **words).x
    expected = torch.tensor([0.3, -0.2]).double() + V @ b
    assert bool(((bent.mean(0) - expected).abs() < 4.5 * (V.diagonal() / 8000).sqrt() + 0.01).all())
    quiet = rd.Population(threshold=0.0)
    spread = [rd.sample(goal, 500, steps=n, population=quiet, **words).log_weights.var() for n in (40, 160)]
    assert float(spread[1]) < 0.3 * float(spread[0]) < 0.3 * 0.05
    blind = rd.condition(law.denoiser(rd.VP()), rd.Reward(lambda x: x @ b, value="mean"))
    assert float(rd.sample(blind, 500, steps=160, population=quiet, **words).log_weights.var()) > 0.3


@pytest.mark.parametrize("gradient", [False, True])
def test_drawn_values_are_the_mean_of_exponentials(gradient):
    """E over seeds of h is E[exp l | x_t] by quadrature, within 4.5 errors; one draw of K = 1 is l of a draw."""
    denoiser, exact = LAW.denoiser(PATH), ExactValue()
    x = torch.tensor([[-1.0], [0.4], [1.8]], dtype=torch.float64)
    t = float(PATH.time(torch.tensor(1.3))) if hasattr(PATH, "time") else 0.55
    values = []
    for seed in range(225):
        goal = Reward(wavy, STRENGTH, gradient, "draws", 16, seed=seed).bind(denoiser)
        seen = x.clone().requires_grad_(gradient)
        with torch.enable_grad():
            node = Node(seen, t, denoiser.belief(seen, t), PATH, None)
            tilt = goal.at(node)
        values.append(tilt.log_h.detach().exp())
        assert (tilt.shift is not None) == gradient
    h = torch.stack(values)
    truth = exact(x, torch.full((3,), t, dtype=torch.float64)).exp()
    assert bool(((h.mean(0) - truth).abs() < 4.5 * h.std(0) / 15).all())
    plug = Reward(wavy, STRENGTH, value="mean").at(Node(x, t, denoiser.belief(x, t), PATH, None)).log_h
    assert float((plug - truth.log()).abs().max()) > 0.1


def test_a_drawn_value_does_not_depend_on_the_batch():
    denoiser = LAW.denoiser(PATH)
    x = LAW.sample(6, seed=0)
    goal = Reward(wavy, value="draws").bind(denoiser)
    value = lambda x: goal.at(Node(x, 0.4, denoiser.belief(x, 0.4), PATH, None)).log_h  # noqa: E731
    assert torch.allclose(value(x)[2:4], value(x[2:4]), atol=1e-12)


BITS = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 2]])


def bits(x):
    return 1.5 * (x[:, 0] == 1).double() - 0.8 * (x[:, 1] == 2).double()


@pytest.mark.parametrize("value", ["mean", "draws"])
@pytest.mark.parametrize("process", [rd.Masked(3), rd.Uniform(3), rd.Blackout(3)], ids=repr)
def test_a_black_box_reward_of_discrete_states_by_enumeration(process, value):
    """What the base plan really samples, times exp l: every state within 4.5 errors, 4 runs of 1,500."""
    base = Atoms(BITS, [0.35, 0.1, 0.1, 0.15, 0.3]).denoiser(process)
    words = {"steps": 8, "grid": "uniform"}
    law = law_of(rd.plan("step", process, **words), base, start_of(process, 2))
    states = all_states(process.classes, 2)
    clean = (states < process.vocabulary).all(1)
    target = torch.where(clean, law * bits(states).exp(), 0.0)
    z = float(target.sum())
    goal = rd.condition(base, rd.Reward(bits, value=value, draws=4))
    runs = [rd.sample(goal, 1500, seed=s, **words, **QUIET) for s in range(4)]
    found = []
    for run in runs:
        place = run.x @ torch.tensor([process.classes, 1])
        cells = torch.zeros(len(states), dtype=torch.float64)
        found.append(cells.index_add_(0, place, torch.softmax(run.log_weights, 0)))
    mean = torch.stack(found).mean(0)
    error = (target / z * (1 - target / z) / 2000).sqrt().clamp_min(1e-3)  # 6,000 weighted draws are worth a third
    assert bool(((mean - target / z).abs() < 4.5 * error).all()), (mean, target / z)
    assert tv(law, target / z) > 0.15
    assert sum(float(r.log_evidence.exp()) for r in runs) / 4 == pytest.approx(z, rel=0.08)


@pytest.mark.parametrize("process", [rd.Masked(2), rd.Uniform(2)], ids=repr)
def test_private_candidates_of_a_reward_have_their_enumerated_law(process):
    """5,000 draws, 3 candidates, likeliest values: each cell within 4.8 errors of the law of one choice among three."""
    base = Atoms(BITS[:4], [0.4, 0.1, 0.2, 0.3]).denoiser(process)
    reward = lambda x: 1.2 * (x[:, 0] == 1).double() - 0.9 * (x[:, 1] == 1).double()  # noqa: E731
    goal = rd.condition(base, rd.Reward(reward, value="mean"))
    goal.reward = goal.likelihood
    words = {"steps": 3, "grid": "uniform"}
    law = choice_law(rd.plan("step", process, **words), goal, start_of(process, 2), 3)
    x = rd.sample(goal, 5000, population=rd.Population(candidates=3), seed=3, **words, **QUIET).x
    found = torch.bincount(x @ torch.tensor([process.classes, 1]), minlength=process.classes**2).double() / 5000
    error = (law * (1 - law) / 5000).sqrt().clamp_min(1e-4)
    assert bool(((found - law).abs() < 4.8 * error).all()), (found, law)


def test_a_reward_sees_the_users_units():
    """A denoiser with a scale: value and drift are those of the composed reward on the model's units."""
    plain, scaled = LAW.denoiser(PATH), LAW.denoiser(PATH)
    scaled.scale = Scale(3.0, 2.0)
    x = LAW.sample(5, seed=1)
    inside = rd.condition(plain, rd.Reward(lambda z: wavy(2 * z + 3), gradient=True)).belief(x, 0.4)
    outside = rd.condition(scaled, rd.Reward(wavy, gradient=True)).belief(x, 0.4)
    assert torch.allclose(inside.log_h, outside.log_h) and torch.allclose(inside.mean, outside.mean)
    assert float((inside.mean - inside.base).abs().max()) > 0.01
    run = rd.sample(rd.condition(scaled, rd.Reward(wavy)), 50, nfe=6, **QUIET)
    assert run.correction == "weighted"


def test_what_is_forbidden_never_comes_out():
    """A reward of minus infinity on half the line: all weight is on the other half; the evidence is its share
    within 4.5 errors of 1,500 draws."""
    half = lambda x: torch.where(x[:, 0] > 0, 0.0, -math.inf)  # noqa: E731
    run = rd.sample(rd.condition(LAW.denoiser(PATH), rd.Reward(half, value="draws")), 3000, **WORDS)
    w = torch.softmax(run.log_weights, 0)
    assert float(w[run.x[:, 0] <= 0].sum()) == 0
    x = torch.linspace(0, 8, 80_001, dtype=torch.float64)[:, None]
    share = float(LAW.log_prob(x).exp().sum() * 1e-4)
    assert float(run.log_evidence.exp()) == pytest.approx(share, abs=4.5 * (0.25 / 1500) ** 0.5)


@pytest.mark.parametrize("loss", ["exponential", "squared"])
def test_a_regressed_value(loss):
    """Against quadrature at four levels: the exponential loss finds log E exp l, the squared one E l, below it."""
    denoiser = LAW.denoiser(rd.VP("cosine"))
    path, reward = denoiser.process, Reward(wavy, 0.7)
    data = LAW.sample(4000, seed=5).float()
    fitted = fit_value(denoiser, reward, data, loss=loss, steps=700, lr=5e-3, batch_size=256)
    with torch.no_grad():
        x0 = LAW.sample(400, seed=6)
        gap = []
        for t in (0.15, 0.4, 0.6, 0.85):
            z = torch.randn(400, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            x, time = path.corrupt(x0, t, z), torch.full((400,), t, dtype=torch.float64)
            soft = ExactValue(0.7, path)(x, time)
            exact = soft if loss == "exponential" else ExactValue(0.7, path, of=lambda l: l)(x, time)
            assert bool((exact <= soft + 1e-9).all())
            node = Node(x, t, denoiser.belief(x, t), path, None)
            gap.append(float((fitted.at(node).log_h - exact).square().mean().sqrt()))
    assert max(gap) < 0.15, gap  # the values' own spread is .5 to 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: rd.Reward(wavy, -1.0), "at least 0"),
        (lambda: rd.Reward(wavy, math.nan), "at least 0"),
        (lambda: rd.Reward(wavy, value="median"), "'draws' or a network"),
        (lambda: rd.Reward(wavy, draws=0), "at least 1"),
        (lambda: rd.condition(Atoms(BITS).denoiser(rd.Masked(3)), rd.Reward(bits, gradient=True)), "leave it out"),
        (lambda: fit_value(LAW.denoiser(PATH), rd.Reward(wavy), torch.zeros(3, 2), steps=1), r"\(3, 2\)"),
        (lambda: fit_value(LAW.denoiser(PATH), rd.Reward(wavy), torch.zeros(3, 1), loss="mse", steps=1), "'squared'"),
    ],
)
def test_bad_rewards_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    "fn, error, message",
    [
        (lambda x: x, InputError, r"shape \(8,\), one number each; got \(8, 1\)"),
        (lambda x: x.sum(), InputError, r"got \(\)"),
        (lambda x: torch.full((len(x),), math.nan), NonFiniteError, "nan .first in sample 0"),
        (lambda x: torch.full((len(x),), math.inf), NonFiniteError, "inf"),
        (lambda x: 1.0, InputTypeError, "returns a tensor"),
    ],
)
def test_bad_answers_of_a_reward_are_named(fn, error, message):
    with pytest.raises(error, match=message):
        rd.sample(rd.condition(LAW.denoiser(PATH), rd.Reward(fn)), 8, nfe=4, **QUIET)


def test_a_black_box_without_a_population_is_refused_and_a_detached_one_has_no_gradient():
    goal = rd.condition(LAW.denoiser(PATH), rd.Reward(wavy))
    with pytest.raises(InputError, match="only weigh"):
        rd.sample(goal, 8, nfe=4, population=False, **QUIET)
    torn = rd.Reward(lambda x: torch.from_numpy(x.detach().numpy()[:, 0] ** 2), gradient=True)
    with pytest.raises(InputError, match="no gradient"):
        rd.sample(rd.condition(LAW.denoiser(PATH), torn), 8, nfe=4, **QUIET)
    with pytest.raises(InputTypeError, match="a function of clean states"):
        rd.Reward(3.0)  # type: ignore[arg-type]
