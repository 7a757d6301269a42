"""`StateSpace` and `Problem`: what a user may write, and how it lies on the times of data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Gamma, Independent, MultivariateNormal, Normal, Poisson

from retrodict import VP
from retrodict.core.errors import InputError, InputTypeError
from retrodict.inference import Observed, StateSpace
from retrodict.inference.problem import Problem
from retrodict.kernels import Categorical, EulerStep, Finite, Gaussian, Kernel, LinearGaussian

NAN = float("nan")
PRIOR = Gaussian(torch.zeros(2), torch.eye(2))
WALK = LinearGaussian(torch.eye(2), 0.0, 0.1 * torch.eye(2))
CHAIN = Finite.of(torch.tensor([[0.9, 0.1], [0.2, 0.8]]))


def problem(transition: object, times: object = None, y: object = None, **options: object) -> Problem:
    model = StateSpace(PRIOR, transition, lambda x: Normal(x, 1.0), **options)  # type: ignore[arg-type]
    return Problem(model, Observed(torch.zeros(3, 2) if y is None else y, times=times))


# --- nodes ------------------------------------------------------------------------------------------------------


def test_a_kernel_is_a_step_of_unit_length() -> None:
    p = problem(WALK, [0.0, 2.0, 2.0])
    assert p.times.tolist() == [[0.0, 1.0, 2.0]] and p.at.tolist() == [[0, 2, 2]]
    assert p.slots.tolist() == [[[0, -1], [-1, -1], [1, 2]]]
    with pytest.raises(InputError, match="not a whole number of steps apart"):
        problem(WALK, [0.0, 1.0, 1.5])


def test_a_kernel_of_two_times_has_a_node_at_every_distinct_time() -> None:
    p = problem(lambda s, t: LinearGaussian(1.0, 0.0, t - s), [0.5, 0.5, 3.0], t0=0.0)
    assert p.times.tolist() == [[0.0, 0.5, 3.0]] and p.at.tolist() == [[1, 1, 2]]
    assert p.arrays()[2][0, :, 0, 0].tolist() == [0.5, 2.5]
    with pytest.raises(InputError, match="t0 = 1 lies after the first observation of series 0"):
        problem(WALK, t0=1.0)


def test_series_of_unequal_length_are_padded_with_steps_that_exist() -> None:
    y = [torch.zeros(1, 2), torch.zeros(3, 2)]
    p = problem(VP(), [[0.5], [0.1, 0.2, 1.0]], y)
    assert p.real.tolist() == [[True, False, False], [True, True, True]]
    assert p.start[0].tolist() == [0.1, 0.1] and p.end[0].tolist() == [0.2, 0.2]
    assert p.at.tolist() == [[0, -1, -1], [0, 1, 2]]
    assert bool(torch.isfinite(p.arrays()[0]).all())


def test_slots_of_long_data_are_those_of_short() -> None:
    times = np.sort(np.random.default_rng(0).integers(0, 900, 3000)).astype(float)
    p = problem(lambda s, t: LinearGaussian(1.0, 0.0, t - s), times, torch.zeros(3000, 2))
    for k in (0, 17, p.n):
        assert sorted(j for j in p.slots[0, k].tolist() if j >= 0) == (p.at[0] == k).nonzero()[:, 0].tolist()


# --- kernels ----------------------------------------------------------------------------------------------------


def test_a_callable_of_times_is_asked_in_a_batch_or_pair_by_pair_with_one_answer() -> None:
    B = torch.tensor([[-0.5, 1.0], [0.0, -0.2]], dtype=torch.float64)

    def pairwise(s: Tensor, t: Tensor) -> Kernel:
        return LinearGaussian(torch.linalg.matrix_exp(B * (t - s)), 0.0, (t - s) * torch.eye(2, dtype=torch.float64))

    def batched(s: Tensor, t: Tensor) -> Kernel:
        gap = torch.as_tensor(t - s)[..., None, None]
        return LinearGaussian(torch.linalg.matrix_exp(B * gap), 0.0, gap * torch.eye(2, dtype=torch.float64))

    y = torch.zeros(2, 3, 2)
    shared = [0.0, 0.5, 2.0]  # two steps of two coordinates: B * (t - s) would broadcast, wrongly
    for times in (shared, [shared, [0.0, 1.0, 1.5]]):
        for a, b in zip(problem(pairwise, times, y).arrays(), problem(batched, times, y).arrays()):
            assert torch.allclose(*torch.broadcast_tensors(a, b), atol=1e-14)
        A = problem(pairwise, times, y).arrays()[0]
        assert torch.allclose(A[0, 1], torch.linalg.matrix_exp(B * 1.5))
    assert torch.allclose(A[1, 1], torch.linalg.matrix_exp(B * 0.5))


def test_series_may_have_kernels_of_their_own() -> None:
    own = LinearGaussian(torch.stack([torch.eye(2), 2 * torch.eye(2)]), 0.0, torch.eye(2))
    A, _, Q = problem(own, y=torch.zeros(2, 4, 2)).arrays()
    assert A.shape == (2, 1, 2, 2) and Q.shape == (1, 1, 2, 2)
    with pytest.raises(InputError, match="of 2 series and y has 1"):
        problem(own).arrays()


def test_listed_kernels_are_one_a_step() -> None:
    kernels = [WALK, LinearGaussian(2 * torch.eye(2), torch.ones(2), torch.eye(2))]
    p = problem(kernels, times=[0.0, 0.7, 5.0])
    assert p.arrays()[0][0, :, 0, 0].tolist() == [1.0, 2.0] and p.arrays()[1][0, :, 0].tolist() == [0.0, 1.0]
    with pytest.raises(InputError, match="lists 2 kernels and the data have 3 steps"):
        problem(kernels, y=torch.zeros(4, 2)).arrays()


@pytest.mark.parametrize(
    "transition",
    [
        LinearGaussian(0.9, 0.1, 0.25),
        lambda x: Normal(0.9 * x + 0.1, 0.5),
        lambda x: MultivariateNormal(0.9 * x + 0.1, 0.25 * torch.eye(2)),
        lambda x, s, t: Independent(Normal(0.9 * x + 0.1, 0.5 * (t - s)), 1),
        [LinearGaussian(0.9, 0.1, 0.25)] * 2,
    ],
)
def test_one_law_written_five_ways_steps_alike(transition: object) -> None:
    p = problem(transition, y=torch.zeros(4, 3, 2))
    x, z = torch.randn(4, 5, 2, dtype=torch.float64), torch.randn(4, 5, 2, dtype=torch.float64)
    y = p.kernel(2).step(x, z)
    assert torch.allclose(y, 0.9 * x + 0.1 + 0.5 * z)
    truth = Normal(0.9 * x + 0.1, 0.5).log_prob(y).sum(-1)
    assert torch.allclose(p.kernel(2).log_prob(x, y, event=1), truth)
    pairs = p.kernel(2).log_prob(x[:, :, None], y[:, None], event=1)
    assert pairs.shape == (4, 5, 5) and torch.allclose(pairs.diagonal(dim1=1, dim2=2), truth)


def test_series_at_times_of_their_own_get_kernels_of_their_own() -> None:
    p = problem(
        lambda x, s, t: Normal(x * torch.exp(-(t - s)), (t - s).sqrt()),
        [[0.0, 0.5], [0.0, 2.0], [0.0, 0.5]],
        torch.zeros(3, 2, 2),
    )
    x, z = torch.randn(3, 4, 2, dtype=torch.float64), torch.randn(3, 4, 2, dtype=torch.float64)
    gap = torch.tensor([0.5, 2.0, 0.5]).double()[:, None, None]
    assert torch.allclose(p.kernel(1).step(x, z), x * torch.exp(-gap) + gap.sqrt() * z)


# --- observations -----------------------------------------------------------------------------------------------


R = torch.tensor([[1.0, 0.6], [0.6, 2.0]])


@pytest.mark.parametrize(
    ("observation", "law"),
    [
        (LinearGaussian(torch.eye(2), 0.5, R), lambda x: MultivariateNormal(x + 0.5, R.double())),
        (lambda x: MultivariateNormal(x + 0.5, R.double()), lambda x: MultivariateNormal(x + 0.5, R.double())),
        (lambda x: Normal(x**2, 0.5), lambda x: Independent(Normal(x**2, 0.5), 1)),
        (lambda x: Gamma(1 + x**2, 1.0), lambda x: Independent(Gamma(1 + x**2, 1.0), 1)),
    ],
)
def test_a_missing_coordinate_is_dropped(observation: object, law: object) -> None:
    y = torch.tensor([[0.7, 1.1], [0.7, NAN], [NAN, NAN], [NAN, 0.4]], dtype=torch.float64)
    p = Problem(StateSpace(PRIOR, WALK, observation), Observed(y))
    x = torch.randn(1, 6, 2, dtype=torch.float64)
    truth = law(x)  # type: ignore[operator]
    assert torch.allclose(p.log_likelihood(0, x), truth.log_prob(y[0]))
    assert bool((p.log_likelihood(2, x) == 0).all())
    if isinstance(truth, MultivariateNormal):
        first = Normal(truth.mean[..., 0], truth.covariance_matrix[0, 0, 0, 0].sqrt())
    else:
        first = type(truth.base_dist)(*(getattr(truth.base_dist, a)[..., 0] for a in truth.base_dist.arg_constraints))
    assert torch.allclose(p.log_likelihood(1, x), first.log_prob(y[1, 0]), atol=1e-12)


def test_densities_counts_and_scalars() -> None:
    x = torch.randn(1, 6, 2, dtype=torch.float64)
    y = torch.tensor([[1.0, 2.0], [NAN, NAN]])
    p = Problem(StateSpace(PRIOR, WALK, lambda x, y: -((x - y) ** 2).sum(-1)), Observed(y))
    assert torch.allclose(p.log_likelihood(0, x), -((x - y[0]) ** 2).sum(-1)) and p.log_likelihood(1, x).tolist() == [
        [0.0] * 6
    ]
    counts = Problem(StateSpace(PRIOR, WALK, lambda x: Poisson(x[..., 0].exp())), Observed(np.array([3, -1])))
    assert torch.allclose(counts.log_likelihood(0, x), Poisson(x[..., 0].exp()).log_prob(torch.tensor(3.0)))
    assert bool((counts.log_likelihood(1, x) == 0).all())
    table = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
    prior = Categorical.of(torch.tensor([0.5, 0.5]))
    for observation in (Finite.of(table), lambda x: TorchCategorical(table[x])):
        p = Problem(StateSpace(prior, CHAIN, observation), Observed(np.array([0, 2, -1])))
        states = torch.tensor([[0, 1]])
        assert torch.allclose(p.log_likelihood(1, states).exp(), torch.tensor([[0.1, 0.5]]).double())
        assert p.log_likelihood(2, states).tolist() == [[0.0, 0.0]]


def test_observations_at_one_time_multiply() -> None:
    p = problem(lambda s, t: WALK, [0.0, 0.0, 1.0], torch.tensor([[1.0, NAN], [2.0, 3.0], [0.0, 0.0]]))
    x = torch.randn(1, 5, 2, dtype=torch.float64)
    one = lambda y, c: Normal(x[..., c], 1.0).log_prob(torch.tensor(y))  # noqa: E731
    assert torch.allclose(p.log_likelihood(0, x), one(1.0, 0) + one(2.0, 0) + one(3.0, 1))


# --- parameters -------------------------------------------------------------------------------------------------


def test_parameters_are_found_wherever_they_are() -> None:
    net, scale = torch.nn.Linear(2, 2), torch.nn.Parameter(torch.tensor(1.0))
    A, m = torch.nn.Parameter(torch.eye(2)), torch.nn.Parameter(torch.zeros(2))
    model = StateSpace(Normal(m, 1.0), LinearGaussian(A, 0.0, 1.0), lambda x: Normal(net(x.float()), scale.exp()))
    found = list(model.parameters())
    assert {id(p) for p in found} == {id(p) for p in (*net.parameters(), scale, A, m)} and len(found) == 5


GLOBAL_NET = torch.nn.Linear(1, 1)


def helper(x: Tensor) -> Tensor:
    return GLOBAL_NET(x)


def test_parameters_of_globals_methods_and_drifts_are_found_too() -> None:
    scale = torch.nn.Parameter(torch.tensor(0.3))

    class Law:
        def __init__(self) -> None:
            self.net = torch.nn.Linear(1, 1)

        def observe(self, x: Tensor) -> Normal:
            return Normal(self.net(x.float()), 1.0)

    law = Law()
    euler = EulerStep(lambda x, t: helper(x.float()), lambda x, t: scale, 0.0, 0.1)
    found = StateSpace(Gaussian(0.0, 1.0), euler, law.observe).parameters()
    assert {id(p) for p in found} == {id(p) for p in (*GLOBAL_NET.parameters(), *law.net.parameters(), scale)}


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.0, WALK), InputTypeError, "prior is a kernels.Gaussian"),
        ((PRIOR, 3.0), InputTypeError, "transition is a Kernel"),
        ((PRIOR, lambda x: x), InputTypeError, "transition.x. returned Tensor"),
        ((PRIOR, lambda x: Normal(torch.zeros(1, 3), 1.0)), InputError, "3 coordinates for a state of 2"),
        ((PRIOR, LinearGaussian(torch.eye(3), 0.0, torch.eye(3))), InputError, "A is 3x3 and the prior has 2"),
        ((PRIOR, CHAIN), InputError, "prior is of real states and the transition Finite is not"),
        (
            (PRIOR, WALK, LinearGaussian(torch.ones(1, 3), 0.0, 1.0)),
            InputError,
            "takes 3 coordinates and the prior has 2",
        ),
        ((PRIOR, WALK, lambda x: x), InputTypeError, "observation.x. returned Tensor"),
        ((PRIOR, WALK, "normal"), InputTypeError, "observation is a Kernel"),
        ((Categorical.of(torch.ones(3) / 3), CHAIN), InputError, "transition is 2x2 and the prior has 3 states"),
        ((Normal(torch.zeros(2, 2), 1.0), WALK), InputError, "draws have the shape .2, 2."),
    ],
)
def test_laws_that_do_not_fit_are_named(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        StateSpace(*arguments)


def test_data_that_do_not_fit_are_named() -> None:
    y = torch.zeros(3, 2)
    model = StateSpace(PRIOR, WALK, lambda x: Normal(x, 1.0))
    with pytest.raises(InputError, match="give one of them"):
        Problem(model, Observed(y, noise=1.0))
    with pytest.raises(InputError, match="nothing says how y depends on the state"):
        Problem(StateSpace(PRIOR, WALK), Observed(y))
    with pytest.raises(InputError, match=r"operator is .2, 2.; y has 1 coordinates and the state 2"):
        Problem(StateSpace(PRIOR, WALK), Observed(y[:, 0], noise=1.0))
    mixed = Problem(StateSpace(PRIOR, WALK, lambda x, y: (x * y).sum(-1)), Observed(torch.tensor([[1.0, NAN]])))
    with pytest.raises(InputError, match="some coordinates of an observation are missing"):
        mixed.log_likelihood(0, torch.zeros(1, 3, 2))
    with pytest.raises(InputError, match="category 5; the observation law has 2"):
        Problem(StateSpace(Categorical.of(torch.ones(2) / 2), CHAIN, CHAIN), Observed(np.array([0, 5]))).log_likelihood(
            1, torch.zeros(1, 3, dtype=torch.long)
        )
