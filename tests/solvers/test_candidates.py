"""Soft-value decoding: K private candidates a step, against the law of one choice among K, enumerated or by quadrature.

``p_K(y | x) = sum over y_1..y_K of prod q(y_i | x) sum_i [y_i = y] e^v(y_i) / sum_j e^v(y_j)``.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser, Step
from retrodict.exact import Atoms
from retrodict.kernels import Belief
from retrodict.particles.weights import CHOICE
from retrodict.solvers import general
from retrodict.solvers.plan import Call, Eval, Row
from solvers.discrete_laws import all_states, start_of, transition, tv

QUIET = {"progress": False}


class Valued(Denoiser):
    """A denoiser with a black-box reward of the clean state that it predicts: log h = r(most likely x0), r at the end.

    Nothing but ``log_h``, `start_weight`, `increment` and `final` is asked of it.
    """

    weighted = True

    def __init__(self, denoiser, reward):
        super().__init__(denoiser.process, denoiser.shape)
        self.denoiser, self.reward = denoiser, reward

    def value(self, belief):
        return self.reward(belief.mean if belief.law is None else belief.law.log_p.argmax(-1))

    def belief(self, x, t, **condition):
        b = self.denoiser.belief(x, t, **condition)
        return Belief(b.mean, law=b.law, log_h=self.value(b))

    def forward(self, x, t, **condition):
        return self.belief(x, t, **condition).mean

    def start_weight(self, belief):
        return belief.log_h

    def increment(self, step: Step):
        return step.now.log_h - step.prev.log_h

    def final(self, step: Step):
        return self.reward(step.x) - step.prev.log_h


def best_of(q, v, k):
    """``p_K`` for every row of a transition matrix ``q (states, states)`` and values ``v (states,)``."""
    out = torch.zeros_like(q)
    w = v.exp()
    for combo in itertools.product(range(q.shape[1]), repeat=k):
        chance = q[:, list(combo)].prod(1)
        total = sum(w[i] for i in combo)
        for i in combo:
            out[:, i] += chance * w[i] / total
    return out


def choice_law(plan, denoiser, start, k):
    """The law of soft-value decoding over `all_states`; ``denoiser`` is a `Valued`."""
    states = all_states(denoiser.process.classes, 2)
    law, t, move = start.double().expand(1, -1), 1.0, start
    for code in plan.code:
        if isinstance(code, Eval):
            t = code.t
            v = denoiser.belief(states, t).log_h
            law = best_of(law, v, k) if code.k == 0 else law @ best_of(move, v, k)
        else:
            assert isinstance(code, Call)
            move = transition(denoiser.denoiser, states, t, code, None)
    clean = (states < denoiser.process.vocabulary).all(1)
    v = torch.where(clean, denoiser.reward(states), -100.0)
    return (law @ best_of(move, v, k))[0]


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("process", [rd.Masked(2), rd.Uniform(2), rd.Blackout(3)], ids=repr)
def test_the_law_of_discrete_candidates_by_enumeration(process, k):
    """5,000 draws of 2 coordinates: 9 cells at most, every cell within 4.8 errors (false alarm below 1e-4 a case)."""
    data = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    base = Atoms(data, [0.4, 0.1, 0.2, 0.3]).denoiser(process)
    reward = lambda x: 1.2 * (x[:, 0] == 1).double() - 0.9 * (x[:, 1] == 1).double()  # noqa: E731
    denoiser = Valued(base, reward)
    words = {"steps": 3, "grid": "uniform"}
    plan = rd.plan("step", process, **words)
    law = choice_law(plan, denoiser, start_of(process, 2), k)
    n = 5_000
    run = rd.sample(denoiser, n, population=rd.Population(candidates=k), seed=3, **words, **QUIET)
    assert run.x.shape == (n, 2)
    place = run.x @ torch.tensor([process.classes, 1])
    found = torch.bincount(place, minlength=process.classes**2).double() / n
    assert float(law.sum()) == pytest.approx(1, abs=1e-9)
    error = (law * (1 - law) / n).sqrt().clamp_min(1e-4)
    assert bool(((found - law).abs() < 4.8 * error).all()), (found, law)
    unsteered = choice_law(plan, Valued(base, lambda x: 0.0 * x[:, 0].double()), start_of(process, 2), k)
    assert tv(found, unsteered) > 0.05


def test_more_candidates_come_nearer_to_what_a_population_targets():
    """Enumerated: with soft values exact in the sense of the chain the tilted law is met as K grows."""
    data = torch.tensor([[0, 0], [1, 1]])
    base = Atoms(data, [0.7, 0.3]).denoiser(rd.Masked(2))
    reward = lambda x: 1.5 * (x[:, 0] == 1).double()  # noqa: E731
    plan = rd.plan("step", base.process, steps=1, grid="uniform")
    laws = [choice_law(plan, Valued(base, reward), start_of(base.process, 2), k) for k in (2, 3, 4)]
    states = all_states(3, 2)
    once = transition(base, states, 1.0, next(c for c in plan.code if isinstance(c, Call)), None)[-1]
    target = once * torch.where((states < 2).all(1), reward(states).exp(), 0.0)
    far = [tv(law, target / target.sum()) for law in laws]
    assert far[0] > far[1] > far[2]
    assert far[2] < 0.6 * tv(once, target / target.sum())


def test_the_law_of_continuous_candidates_by_quadrature():
    """A Gaussian datum, a linear reward of the predicted mean, three ancestral steps, K = 2: the mean and variance of
    8,000 draws within 4.5 errors of quadrature on a grid of 400 points."""
    process = rd.VP("cosine")
    base = rd.exact.GaussianMixture([1.0], [[0.5]], [0.8]).denoiser(process)
    reward = lambda x: 1.5 * x[:, 0].double()  # noqa: E731
    denoiser = Valued(base, reward)
    plan = rd.plan("ddim", process, grid=[1.0, 0.75, 0.45, 0.0], eta=1.0)
    y = torch.linspace(-7, 7, 400, dtype=torch.float64)[:, None]
    dy = float(y[1] - y[0])

    def chosen(density, v):
        """2 q_i sum_j q_j e_i/(e_i + e_j), the law of one of two."""
        share = torch.sigmoid(v[:, None] - v[None, :])  # e_i/(e_i + e_j)
        return 2 * density * (density @ share.T) * dy

    law = torch.exp(-(y[:, 0] ** 2) / 2) / math.sqrt(2 * math.pi)
    states, rows = None, {}
    for code in plan.code:
        if isinstance(code, Eval):
            mean, v = base(y, code.t)[:, 0], reward(base(y, code.t))
            law = chosen(law[None], v)[0] if states is None else law @ chosen(rows["next"], v) * dy
            states = mean
        else:
            assert isinstance(code, Row) and len(code.x) <= 1
            centre = sum(code.x.values()) * y[:, 0] + sum(code.d.values()) * states
            if not code.z:
                continue  # the last row is the mean itself
            (c,) = code.z.values()
            rows["next"] = torch.exp(-((y[None, :, 0] - centre[:, None]) ** 2) / (2 * c * c)) / (
                abs(c) * math.sqrt(2 * math.pi)
            )
    n = 8_000
    x = rd.sample(denoiser, n, plan=plan, population=rd.Population(candidates=2), seed=1, **QUIET).x[:, 0].double()
    total = float(law.sum() * dy)
    mean = float((law * centre).sum() * dy)
    var = float((law * (centre - mean) ** 2).sum() * dy)
    assert total == pytest.approx(1, abs=1e-5)
    assert abs(float(x.mean()) - mean) < 4.5 * (var / n) ** 0.5 + 1e-4
    assert abs(float(x.var()) - var) < 4.5 * var * (2.5 / n) ** 0.5
    plain = rd.sample(base, n, plan=plan, seed=1, **QUIET).x
    assert float(plain.mean()) < mean - 0.1


def test_one_parent_for_all():
    """Exactly: everything from one parent, chosen by its weight; unbiased counts."""
    weights = torch.tensor([[0.5, 0.2, 0.3]]).expand(1000, 3)
    u = (torch.arange(1000, dtype=torch.float64)[:, None] + 0.5) / 1000
    counts = CHOICE.counts(weights, u, 3)
    assert bool(((counts == 3).sum(1) == 1).all()) and counts.sum(0).tolist() == [1500, 600, 900]


def test_one_is_kept_where_all_are_worth_the_same():
    """Equal weights are no reason to keep several: the candidates of a sample have one ancestor after every choice."""
    base = Atoms(torch.tensor([[0, 1], [1, 0]])).denoiser(rd.Uniform(2))
    plan = rd.plan("step", base.process, steps=3)
    noise = KeyedNoise(0, range(300), dtype=torch.float64)
    start = base.prior((2,), noise.stream("prior"))
    equal = Valued(base, lambda x: 0.0 * x[:, 0].double())
    run = general.run(plan, equal, start, noise, {}, population=rd.Population(candidates=3))
    assert run.ancestors is not None
    families = run.ancestors.view(-1, 3)
    assert bool((families == families[:, :1]).all())
    assert torch.bincount(families[:, 0] % 3).min() > 15  # each is as likely: 33 of 100, false alarm below 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda: rd.Population(candidates=1),
        lambda: rd.Population(candidates=4, size=8),
        lambda: rd.Population(candidates=4, resample="ssp"),
    ],
)
def test_bad_candidates_are_refused(make):
    with pytest.raises(InputError, match="at least 2, and leave out"):
        make()
