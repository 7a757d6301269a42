"""Bad parameters are refused where they are given, by name, with the number that is wrong."""

from __future__ import annotations

import math

import pytest
import torch

from retrodict.core.errors import InputError, InputTypeError
from retrodict.kernels import (
    Categorical,
    Chain,
    Conditional,
    Deterministic,
    Factor,
    Finite,
    Gaussian,
    LinearGaussian,
    Point,
    Quadratic,
    Table,
    fuse,
)
from retrodict.kernels.checks import check_covariance, check_rates


def eye(n: int) -> torch.Tensor:
    return torch.eye(n, dtype=torch.float64)


def test_a_covariance_that_is_none_is_named_with_its_smallest_eigenvalue():
    bad = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    with pytest.raises(InputError, match="Q is not positive semi-definite: its smallest eigenvalue is -1"):
        LinearGaussian(eye(2), 0.0, bad)
    with pytest.raises(InputError, match="covariance is not positive semi-definite: its smallest eigenvalue is -1"):
        Gaussian(torch.zeros(2), bad)
    with pytest.raises(InputError, match="smallest eigenvalue is -1"):
        check_covariance(torch.stack([eye(2), bad]))  # one of a batch
    with pytest.raises(InputError, match=r"covariance is not positive semi-definite: its smallest eigenvalue is -0.5"):
        Gaussian(0.0, -0.5)
    with pytest.raises(InputError, match=r"not symmetric: entries differ by 0.5"):
        check_covariance(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(InputError, match="square matrix"):
        check_covariance(torch.zeros(2, 3))
    with pytest.raises(InputError, match="not finite"):
        check_covariance(torch.tensor([[math.nan]]))
    for singular in (torch.zeros(2, 2), torch.ones(3, 3), torch.diag(torch.tensor([1.0, 0.0]))):
        check_covariance(singular)
    v = torch.randn(50, 4, 1, generator=torch.Generator().manual_seed(0))
    check_covariance(v @ v.mT)  # rank one in single precision: rounding is no fault


def test_rows_that_are_no_law_are_refused():
    with pytest.raises(InputError, match=r"sum to 1; off by 1.00e-01 \(row 1\)"):
        Finite.of(torch.tensor([[0.5, 0.5], [0.5, 0.6]], dtype=torch.float64))
    with pytest.raises(InputError, match=r"smallest entry -0.5"):
        Finite.of(torch.tensor([[1.5, -0.5], [0.5, 0.5]], dtype=torch.float64))
    with pytest.raises(InputError, match="off by nan"):
        Finite.of(torch.tensor([[math.nan, 0.5], [0.5, 0.5]]))
    with pytest.raises(InputError, match="law over states"):
        Categorical.of(torch.tensor([0.5, 0.6]))
    Finite.of(torch.rand(40, 40, generator=torch.Generator().manual_seed(0)).softmax(-1))  # single precision


def test_rates_that_are_none_are_refused():
    with pytest.raises(InputError, match=r"negative entry -0.2 off the diagonal, from state 1 to state 0"):
        check_rates(torch.tensor([[-1.0, 1.0], [-0.2, 0.2]]))
    with pytest.raises(InputError, match="from state 0 to state 1"):
        check_rates(torch.tensor([[[-1.0, 1.0], [0.2, -0.2]], [[1.0, -1.0], [0.2, -0.2]]]))
    with pytest.raises(InputError, match="sum to zero"):
        check_rates(torch.tensor([[-1.0, 2.0], [0.2, -0.2]]))
    with pytest.raises(InputError, match="square"):
        check_rates(torch.zeros(2, 3))
    check_rates(torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))


def test_kernels_that_do_not_chain_say_which_meet():
    three, two = LinearGaussian(eye(3), 0.0, eye(3)), LinearGaussian(eye(2), 0.0, eye(2))
    down = LinearGaussian(torch.zeros(2, 3), 0.0, eye(2))
    table = Finite.of(torch.full((3, 3), 1 / 3))
    with pytest.raises(InputError, match=r"link 1 \(LinearGaussian\) leaves 3 real coordinates, and link 2"):
        Chain(three, three, two)
    with pytest.raises(InputError, match=r"leaves 3 real coordinates, and link 1 \(Finite\) takes 3 states"):
        three >> table
    seen = Factor(Quadratic.flat(torch.zeros(1, 2)))
    with pytest.raises(InputError, match=r"link 0 \(LinearGaussian\) leaves 3 .* link 1 \(Factor\) takes 2"):
        three >> seen
    with pytest.raises(InputError, match="leaves 2 states, and link 1"):
        Finite.of(torch.full((3, 2), 0.5)) >> table
    assert len((three >> down >> seen >> two).links) == 4
    with pytest.raises(InputError, match="y has 2 coordinates; its noise covariance Q is 3 x 3"):
        LinearGaussian(torch.zeros(2, 3), 0.0, eye(3))
    with pytest.raises(InputError, match="y has 2 coordinates and the offset b 3"):
        LinearGaussian(torch.zeros(2, 3), torch.zeros(3), eye(2))
    with pytest.raises(InputError, match="mean has 3 coordinates"):
        Gaussian(torch.zeros(3), eye(2))


def test_laws_and_kernels_from_plain_numbers_keep_double_precision():
    law = Gaussian([0.1, 0.2], 0.1)
    assert law.mean.shape == (1, 2) and law.mean.dtype == torch.float64
    assert law.covariance.tolist() == [[[0.1, 0.0], [0.0, 0.1]]]
    assert Gaussian(0.3, 2).mean.tolist() == [[0.3]]
    kernel = LinearGaussian(0.9, 0.1, 0.3)
    assert float(kernel.A.value) == 0.9 and float(kernel.Q.value) == 0.3
    x = torch.ones(1, 2, dtype=torch.float64)
    assert kernel.mean(x).tolist() == [[1.0, 1.0]]
    with pytest.raises(InputError, match=r"torch.diag"):
        LinearGaussian(torch.ones(2), 0.0, 1.0)
    with pytest.raises(InputTypeError, match="A is a number, an array or a tensor; got str"):
        LinearGaussian("one", 0.0, 1.0)  # type: ignore[arg-type]


def test_what_has_no_closed_form_says_so():
    with pytest.raises(InputTypeError, match=r"Factor\(potential, surrogate\)"):
        Factor(lambda x: x.sum(-1)).pull(None)
    with pytest.raises(InputTypeError, match="Quadratic and Table"):
        fuse(Quadratic.flat(torch.zeros(1, 2)), Table(torch.zeros(1, 2)))
    with pytest.raises(InputError, match="one of the two"):
        Conditional()
    with pytest.raises(InputTypeError, match="got str"):
        Deterministic("no")  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match=r"torch.distributions object; got Tensor"):
        Conditional(lambda x: x).log_prob(torch.zeros(1), torch.zeros(1))  # type: ignore[arg-type,return-value]
    with pytest.raises(InputError, match="no density"):
        Conditional(sample_fn=lambda x: x).log_prob(torch.zeros(1), torch.zeros(1))
    with pytest.raises(InputTypeError, match="no closed composition"):
        Chain(Factor(Table(torch.zeros(1, 2))), Finite.of(torch.full((2, 2), 0.5))).collapse()
    with pytest.raises(InputError, match="no covariance matrix"):
        _ = Point(torch.zeros(1, 2, 2)).covariance
