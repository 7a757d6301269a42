"""Missing coordinates and unequal lengths, in every method that is registered, for every type of model.

Three laws, each a comparison of two runs with equal seeds, so that weighted methods too must agree to rounding:

* a coordinate that is never seen equals a law of observation without it;
* data of which nothing was seen have log evidence zero;
* a batch of series of unequal length equals its series one by one (each in the first slot, which has its seed).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

import retrodict as rd
from retrodict.inference import JumpProcess, Observed, ReactionNetwork, StateSpace, Tree, methods
from retrodict.inference.posterior import serving
from retrodict.kernels import Categorical, Finite, Gaussian, LinearGaussian

NAN = float("nan")
EYE = torch.eye(2, dtype=torch.float64)
R = torch.tensor([[0.5, 0.2], [0.2, 0.6]], dtype=torch.float64)
Y = torch.tensor([[0.5, -0.4], [1.3, 0.7], [-0.2, 1.1], [0.4, -0.9]], dtype=torch.float64)
STEP = torch.tensor([[0.9, 0.2], [-0.1, 0.8]], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, 0.0], [0.5, 1.0], [2.0, -1.0]], dtype=torch.float64)
RATES = torch.tensor([[-1.0, 0.7, 0.3], [0.4, -0.9, 0.5], [0.2, 0.6, -0.8]], dtype=torch.float64)


@dataclass
class Case:
    """A model under a law of observation of two coordinates, and under that of the first alone.

    Attributes:
        model: number of coordinates -> model; data: ``(y, number of coordinates) -> Observed``.
        ragged: whether its series have lengths; options: of method name -> keywords.
    """

    model: Callable[[int], Any]
    data: Callable[..., Observed]
    y: Tensor = field(default_factory=lambda: Y)
    ragged: bool = True
    options: dict[str, dict] = field(default_factory=dict)


def plain(y: Any, width: int) -> Observed:
    return Observed(y)


def brought(y: Any, width: int) -> Observed:
    """Data that bring ``y = x + noise``, at times of their own."""
    rows = y if isinstance(y, list) else [y]
    times = [0.4 * torch.arange(1, len(row) + 1) for row in rows]
    single = not isinstance(y, list)
    return Observed(y, times[0] if single else times, operator=EYE[:width], covariance=R[:width, :width])


def linear(width: int) -> StateSpace:
    seen = LinearGaussian(EYE[:width], 0.0, R[:width, :width])
    return StateSpace(Gaussian(torch.zeros(2).double(), EYE), LinearGaussian(STEP, 0.1, 0.3 * EYE), seen)


def bent(width: int) -> StateSpace:
    """Nothing about it is linear."""
    seen = lambda x: Independent(Normal(x[..., :width] ** 2 / 2 + x[..., :width], 0.7), 1)  # noqa: E731
    return StateSpace(Normal(torch.zeros(2).double(), 1.0), lambda x: Normal(torch.sin(x), 0.5), seen)


def states(width: int) -> StateSpace:
    seen = lambda x: Independent(Normal(MEANS[x][..., :width], 0.8), 1)  # noqa: E731
    return StateSpace(Categorical.of(torch.ones(3) / 3), Finite.of(torch.linalg.matrix_exp(RATES)), seen)


def jumps(width: int) -> JumpProcess:
    return JumpProcess(RATES, observation=lambda x: Independent(Normal(MEANS[x][..., :width], 0.8), 1))


def network(width: int) -> ReactionNetwork:
    consumed, produced = [[1, 0], [1, 1], [0, 1]], [[2, 0], [0, 2], [0, 0]]
    return ReactionNetwork.mass_action(consumed, produced, [0.6, 0.04, 0.5], [5, 3])


def real_tree(width: int) -> Tree:
    edges = [("root", "a", 1.0), ("root", "b", 0.5), ("a", "c", 0.5), ("a", "d", 0.7), ("b", "e", 1.0)]
    return Tree(edges, rd.SDE(lambda x, t: -torch.tanh(x), 0.7), prior=Gaussian(torch.zeros(2).double(), EYE))


def finite_tree(width: int) -> Tree:
    edges = [("root", "a", 1.0), ("root", "b", 0.5), ("a", "c", 0.5), ("a", "d", 0.7), ("b", "e", 1.0)]
    seen = lambda x: Independent(Normal(MEANS[x][..., :width], 0.8), 1)  # noqa: E731
    return Tree(edges, jumps(2), prior=Categorical.of(torch.ones(3) / 3), observation=seen)


def on_leaves(y: Any, width: int) -> Observed:
    return Observed(y, operator=EYE[:width], covariance=R[:width, :width])


CASES = {
    "linear": Case(linear, plain),
    "bent": Case(bent, plain),
    "finite": Case(states, plain),
    "sde": Case(
        lambda width: rd.SDE(lambda x, t: x - x**3, 0.6, prior=Gaussian(torch.zeros(2).double(), 0.2)), brought
    ),
    "jumps": Case(jumps, plain, options={"guided": {"auxiliary": torch.ones(3, 3) - 3 * torch.eye(3)}}),
    "network": Case(network, brought, 5 + Y.round(), options={"exact": {"upper": 25}}),
    "tree": Case(real_tree, on_leaves, Y[:3], ragged=False, options={"guided": {"steps": 8}}),
    "finite-tree": Case(finite_tree, plain, Y[:3], ragged=False),
}


def applies(case: Case, name: str) -> bool:
    method = serving(type(case.model(2)))[name]
    return method.why_not(case.model(2), case.data(case.y, 2)) is None


PAIRS = [(key, name) for key, case in CASES.items() for name in serving(type(case.model(2))) if applies(case, name)]


def condition(key: str, name: str, y: Any, width: int = 2, **more: Any) -> Any:
    case = CASES[key]
    accepted = serving(type(case.model(2)))[name].options()
    small = {"particles": 12, "sweeps": 6, "burn_in": 2} | ({} if "tree" in key else {"steps": 8})
    options = {k: v for k, v in small.items() if k in accepted} | case.options.get(name, {}) | more
    return rd.condition(case.model(width), case.data(y, width), method=name, **options)


def law(post: Any) -> Tensor:
    found = post.smooth()
    return found.mean if found.probabilities is None else found.probabilities


def test_every_registered_method_is_here() -> None:
    here = {(type(CASES[key].model(2)).__mro__, name) for key, name in PAIRS}
    for name, table in methods.items():
        for kind in table:
            assert any(kind in mro and name == used for mro, used in here), (name, kind)


@pytest.mark.parametrize(("key", "name"), PAIRS)
def test_a_coordinate_never_seen_is_no_coordinate(key: str, name: str) -> None:
    y = CASES[key].y.clone()
    y[:, 1] = NAN
    with_it, without = condition(key, name, y), condition(key, name, y[:, :1], 1)
    assert torch.allclose(with_it.log_evidence, without.log_evidence, rtol=0, atol=1e-10)
    assert torch.allclose(law(with_it), law(without), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("key", "name"), PAIRS)
def test_nothing_seen_weighs_nothing(key: str, name: str) -> None:
    more = {"auxiliary": RATES} if (key, name) == ("jumps", "guided") else {}  # another's paths weigh more or less
    post = condition(key, name, torch.full_like(CASES[key].y, NAN), **more)
    assert float(post.log_evidence.abs()) < (1e-9 if key == "network" else 1e-12)


@pytest.mark.parametrize(("key", "name"), [pair for pair in PAIRS if CASES[pair[0]].ragged])
def test_a_ragged_batch_equals_its_series(key: str, name: str) -> None:
    y = CASES[key].y.clone()
    y[1, 0] = NAN
    rows = [y, y[:1], y[1:4] + (1.0 if key == "network" else 0.3)]
    for turn in range(3):
        batch = condition(key, name, rows[turn:] + rows[:turn])
        alone = condition(key, name, rows[turn])
        n = len(rows[turn])
        assert torch.allclose(batch.log_evidence[:1], alone.log_evidence, rtol=0, atol=1e-9)
        assert torch.allclose(law(batch)[:1, :n], law(alone), rtol=0, atol=1e-7)
        assert bool(law(batch)[0, n:].isnan().all())


@pytest.mark.parametrize(("key", "name"), [pair for pair in PAIRS if not CASES[pair[0]].ragged])
def test_a_batch_of_trees_equals_them_one_by_one(key: str, name: str) -> None:
    y = CASES[key].y
    rows = [y, y + 0.3]
    for turn in range(2):
        batch = condition(key, name, torch.stack(rows[turn:] + rows[:turn]))
        alone = condition(key, name, rows[turn])
        assert torch.allclose(batch.log_evidence[:1], alone.log_evidence, rtol=0, atol=1e-9)
        assert torch.allclose(law(batch)[:1], law(alone), rtol=0, atol=1e-7)
