"""What the user may get wrong, in one place: every message names what was given, where, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal, Uniform

import retrodict as rd
from retrodict.core.errors import InputError, RetrodictError
from retrodict.core.lin import Lin
from retrodict.inference import JumpProcess, Observed, ReactionNetwork, StateSpace, Tree
from retrodict.inference.posterior import serving
from retrodict.kernels import Categorical, Finite, Gaussian, Jump, LinearGaussian, NonLinearGaussian
from retrodict.particles import ParticlesDied

NAN = float("nan")
EYE = torch.eye(2, dtype=torch.float64)
NOT_A_COVARIANCE = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)  # eigenvalues 3 and -1
STILL = Finite.of(torch.eye(2))
COIN = TorchCategorical(torch.tensor([0.5, 0.5]))
START = Gaussian(torch.zeros(2).double(), 1.0)
WALK = LinearGaussian(EYE, 0.0, EYE)
LINE = StateSpace(Gaussian(0.0, 1.0), LinearGaussian(1.0, 0.0, 1.0), LinearGaussian(1.0, 0.0, 1.0))
DECAY = rd.SDE(lambda x, t: -x, 0.5)


def chain(transition: Any, observation: Any = WALK) -> Any:
    return rd.condition(StateSpace(START, transition, observation), Observed(np.zeros((3, 2))))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: LinearGaussian(EYE, 0.0, NOT_A_COVARIANCE), "Q"),
        (lambda: Gaussian(torch.zeros(2), NOT_A_COVARIANCE), "covariance"),
        (lambda: Observed(np.zeros((3, 2)), covariance=NOT_A_COVARIANCE), "covariance"),
        (lambda: NonLinearGaussian(lambda x: x, NOT_A_COVARIANCE), "covariance"),
        (lambda: chain(NonLinearGaussian(lambda x: x, lambda x: NOT_A_COVARIANCE)), "the transition's covariance.x."),
        (lambda: chain(WALK, NonLinearGaussian(lambda x: x, lambda x: NOT_A_COVARIANCE)), "the observation's cov"),
        (lambda: chain(LinearGaussian(EYE, 0.0, Lin.dense(NOT_A_COVARIANCE))), "the transition's Q"),
        (lambda: chain(WALK, LinearGaussian(EYE, 0.0, Lin.dense(NOT_A_COVARIANCE))), "the observation kernel's Q"),
        (lambda: chain(lambda s, t: LinearGaussian(EYE, 0.0, NOT_A_COVARIANCE * (t - s))), "Q"),
    ],
)
def test_a_covariance_that_is_none_is_named_with_its_smallest_eigenvalue(make: Callable, name: str) -> None:
    with pytest.raises(InputError, match=f"{name}.*not positive semi-definite.*smallest eigenvalue is -1"):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Finite.of([[0.5, 0.6], [0.1, 0.9]]), "sum to 1; off by 1.00e-01 .row 0."),
        (lambda: Finite.of([[-0.1, 1.1], [0.1, 0.9]]), "smallest entry -0.1"),
        (lambda: StateSpace(COIN, Finite(torch.tensor([[0.5, 0.5], [0.2, 0.9]]).log())), "sum to 1.*row 1"),
        (lambda: StateSpace(COIN, STILL, Finite(torch.zeros(2, 2))), "rows of a observation table"),
        (lambda: Categorical.of(torch.tensor([0.5, 0.6])), "law over states"),
        (lambda: JumpProcess([[-1.0, 1.0], [-0.5, 0.5]]), "negative entry -0.5 off the diagonal, from state 1 to"),
        (lambda: JumpProcess([[-1.0, 2.0], [0.5, -0.5]]), "sum to zero .* off by 1"),
        (lambda: Jump(torch.tensor([[-1.0, 1.0], [-0.5, 0.5]]), 1.0), "negative entry -0.5"),
    ],
)
def test_rows_and_rates_that_are_none(make: Callable, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Observed([1.0, 2.0], times=[1.0, 0.0]), "times go back in series 0: 0 at position 1 follows 1"),
        (lambda: rd.condition(DECAY, Observed([1.0], times=[-1.0], noise=0.1), start=0.0), "t0 = 0 lies after"),
        (
            lambda: LinearGaussian(torch.ones(3, 2), 0.0, torch.eye(3)) >> WALK,
            "link 0 .* leaves 3 .* link 1 .* takes 2",
        ),
        (lambda: chain(LinearGaussian(torch.eye(3), 0.0, torch.eye(3))), "transition's A is 3x3 and the prior has 2"),
        (
            lambda: chain(LinearGaussian(torch.eye(3), torch.zeros(3), torch.eye(3))),
            "transition's A is 3x3 and the prior has 2",
        ),
        (lambda: chain(LinearGaussian(EYE, torch.zeros(3), EYE)), "y has 2 coordinates and the offset b 3"),
        (lambda: chain(lambda x: Normal(x @ torch.eye(3).double(), 1.0)), r"transition.x. failed .* \(1, 2\)"),
        (lambda: chain(lambda x: Normal(x * torch.ones(3), 1.0)), r"transition.x. failed .* \(1, 2\)"),
        (lambda: chain(WALK, lambda x: Normal(x @ torch.eye(3).double(), 1.0)), r"observation.x. failed .* \(1, 2\)"),
        (lambda: chain(NonLinearGaussian(lambda x: x @ torch.eye(3).double(), 0.1)), "transition's mean.x. failed"),
        (lambda: chain(WALK, LinearGaussian(torch.ones(1, 3), 0.0, 1.0)), "kernel takes 3 .* the prior has 2"),
        (lambda: chain(NonLinearGaussian(lambda x: x[..., :1], 0.1)), r"mean.x. returned the shape \(1, 1\)"),
        (
            lambda: rd.condition(
                rd.SDE(lambda x, t: torch.cat([x, x], -1), 1.0), Observed([1.0], noise=1.0), start=[0.0]
            ),
            r"drift.x, t. returned \(1, 2, 2\) at states \(1, 2, 1\)",
        ),
    ],
)
def test_times_and_shapes_that_do_not_chain(make: Callable, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


ONE = lambda x: Normal(x[..., :1], 1.0)  # noqa: E731


@pytest.mark.parametrize("method", sorted(serving(StateSpace)))
@pytest.mark.parametrize("written", ["law", "kernel", "data"])
def test_data_of_another_width_than_their_law(method: str, written: str) -> None:
    """Five coordinates against one: an error with both shapes, and no broadcasting, on every route."""
    seen = {"law": ONE, "kernel": LinearGaussian(torch.ones(1, 2), 0.0, 1.0), "data": None}[written]
    told = {"noise": 1.0} if written == "data" else {}
    width = "the state 2" if written == "data" else "observation law 1"
    with pytest.raises(InputError, match=f"y has 5 coordinates.* {width}"):
        rd.condition(StateSpace(START, WALK, seen), Observed(np.zeros((4, 5)), **told), method=method)


@pytest.mark.parametrize(
    "model",
    [
        rd.SDE(lambda x, t: -x, 0.5, prior=START, observation=ONE),
        JumpProcess([[-1.0, 1.0], [1.0, -1.0]], observation=lambda x: Normal(x.double(), 1.0)),
        ReactionNetwork([[1, 0]], lambda x: x[..., :1], [3.0, 1.0], observation=ONE),
        Tree([(0, i, 1.0) for i in (1, 2, 3, 4)], DECAY, prior=START, observation=ONE),
        Tree([(0, i) for i in (1, 2, 3, 4)], STILL, prior=COIN, observation=lambda x: Normal(x.double(), 1.0)),
    ],
    ids=["sde", "jumps", "network", "tree", "finite tree"],
)
def test_data_of_another_width_on_other_models(model: Any) -> None:
    needed = {("JumpProcess", "guided"): {"auxiliary": model.rates[0]} if isinstance(model, JumpProcess) else {}}
    needed["ReactionNetwork", "exact"] = {"upper": 9}
    for method in ("auto", *serving(type(model))):
        more = needed.get((type(model).__name__, method), {})
        with pytest.raises(InputError, match=r"y has 5 coordinates .its shape is .1, 4, 5.*observation law 1"):
            rd.condition(model, Observed(np.zeros((4, 5)), times=[1.0, 2.0, 3.0, 4.0]), method=method, **more)


CUT = StateSpace(Normal(torch.zeros(1), 1.0), lambda x: Normal(x, 1.0), lambda x: Uniform(x - 1, x + 1))
ONE_WAY = JumpProcess([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0], [0.0, 0.0, 0.0]])
ANY_WAY = [[-2.0, 1.0, 1.0], [0.5, -1.5, 1.0], [0.5, 0.5, -1.0]]
COUNTED = ReactionNetwork([[1]], lambda x: x, [3.0], lambda x, y: torch.where((x == y).all(-1), 0.0, -torch.inf))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda: rd.condition(StateSpace(COIN, STILL, STILL), Observed([0, 0, 1], times=[3, 4, 5])),
            "observation at time 5 .number 2. has probability zero given what came before",
        ),
        (lambda: rd.condition(ONE_WAY, Observed([2, 1], times=[1.0, 2.0])), "at time 2 .* has probability zero"),
        (
            lambda: rd.condition(ONE_WAY, Observed([2, 1], times=[1.0, 2.0]), method="guided", auxiliary=ANY_WAY),
            "at time 2 .* has probability zero",
        ),
        (
            lambda: rd.condition(COUNTED, Observed([5.0, 2.0], times=[1.0, 2.0]), method="exact", upper=9),
            "at time 2 has probability zero",
        ),
        (
            lambda: rd.condition(Tree([("r", "a"), ("r", "b")], STILL, prior=COIN), Observed({"a": 0, "b": 1})),
            "at and below the vertex 'r' .* has probability zero",
        ),
        (
            lambda: rd.condition(
                StateSpace(Gaussian(torch.zeros(1), 1.0), LinearGaussian(1.0, 0.0, 0.0)),
                Observed([0.0, 1.0], noise=0.0),
            ),
            "observation at time 1 of series 0 has no noise of its own",
        ),
    ],
)
def test_observations_of_probability_zero_say_at_which_time(run: Callable, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run().log_evidence  # noqa: B018


@pytest.mark.parametrize(
    "run",
    [
        lambda: rd.condition(CUT, Observed([0.0, 1.0, 50.0], times=[5, 6, 7]), method="bootstrap"),
        lambda: rd.condition(
            rd.SDE(lambda x, t: -x, 0.5, observation=lambda x: Uniform(x - 1, x + 1)),
            Observed([0.0, 1.0, 50.0], times=[5, 6, 7]),
            method="bootstrap",
            start=0.0,
        ),
        lambda: rd.condition(COUNTED, Observed([3.0, 4.0, 2.0], times=[0.001, 0.2, 7]), particles=3000),
    ],
    ids=["chain", "sde", "network"],
)
def test_dead_particles_say_when_where_they_were_and_what_to_try(run: Callable) -> None:
    with pytest.raises(ParticlesDied, match=r"at time 7: all .* last states of finite weight lay in \[.*\]. Use more"):
        run().log_evidence  # noqa: B018


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Observed([1.0, NAN], missing="error"), "y is missing in series 0 at time 1"),
        (lambda: Observed([1.0, 2.0], times=[0.0, NAN]), "not finite at position 1"),
        (lambda: Observed([1.0], operator=NAN), "operator has entries that are not finite"),
        (lambda: Observed([1.0], noise=NAN), "not NaN"),
        (lambda: StateSpace(Gaussian(NAN, 1.0), WALK), "prior's mean has entries that are not finite"),
        (lambda: Gaussian(0.0, NAN), "entries that are not finite"),
        (lambda: StateSpace(LINE.prior, LinearGaussian(NAN, 0.0, 1.0)), "transition's A has entries"),
        (lambda: StateSpace(LINE.prior, LinearGaussian(1.0, NAN, 1.0)), "transition's b has entries"),
        (lambda: StateSpace(LINE.prior, LINE.given[1], LinearGaussian(NAN, 0.0, 1.0)), "observation kernel's A has"),
        (lambda: StateSpace(LINE.prior, LINE.given[1], LinearGaussian(1.0, NAN, 1.0)), "observation kernel's b has"),
        (lambda: rd.condition(DECAY, Observed([1.0], noise=1.0), start=[NAN]), "start is one finite state"),
    ],
)
def test_nan_is_for_y_alone(make: Callable, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_linear_stand_in_must_be_finite() -> None:
    model = StateSpace(Gaussian(0.0, 1.0), NonLinearGaussian(lambda x: (x - 0.5).log(), 1.0), LINE.given[2])
    with pytest.raises(InputError, match=r"step to time 1 has no finite mean.*state \[0.0\]"):
        rd.condition(model, Observed([NAN, 2.0]), method="extended").log_evidence  # noqa: B018


@pytest.mark.parametrize(
    ("y", "at", "message"),
    [
        ({"a": 1.0, "c": 2.0}, None, "no vertex 'c'"),
        ({"a": 1.0}, ["a"], "name their vertices"),
        ({}, None, "empty mapping"),
        ({"a": 1.0, "b": [1.0, 2.0]}, None, r"got the shapes \{'a': \(\), 'b': \(2,\)\}"),
    ],
)
def test_named_leaves(y: dict, at: Any, message: str) -> None:
    tree = Tree([("r", "a", 1.0), ("r", "b", 1.0)], DECAY, prior=Gaussian(0.0, 1.0))
    with pytest.raises(InputError, match=message):
        rd.condition(tree, Observed(y, noise=0.1), at=at)
    with pytest.raises(RetrodictError, match="data of a Tree"):
        rd.condition(LINE, Observed({"a": 1.0}))


def test_leaves_by_name_are_rows_in_their_order() -> None:
    tree = Tree([("r", "a", 1.0), ("r", "b", 1.0), ("b", "c", 1.0)], DECAY, prior=Gaussian(0.0, 1.0))
    rows = rd.condition(tree, Observed([[0.3], [0.7]], noise=0.1), at=["c", "a"])
    named = rd.condition(tree, Observed({"c": 0.3, "a": [0.7][0]}, noise=0.1))
    batch = rd.condition(tree, Observed({"c": np.full((2, 1), 0.3), "a": np.full((2, 1), 0.7)}, noise=0.1))
    assert torch.equal(rows.log_evidence, named.log_evidence) and batch.log_evidence.shape == (2,)
    part = rd.condition(tree, Observed({"a": 0.7}, noise=0.1))  # c is not seen
    full = rd.condition(tree, Observed([[0.7], [NAN]], noise=0.1))
    assert torch.allclose(part.log_evidence, full.log_evidence, rtol=0, atol=1e-12)
