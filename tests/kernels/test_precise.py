"""Functions written for another precision than the states': called in theirs, answered in the caller's."""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.inference import Observed, StateSpace
from retrodict.kernels import Gaussian, NonLinearGaussian
from retrodict.kernels.precise import Precise, precise


def test_networks_are_called_in_their_own_precision():
    single, double = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).double()
    for net in (single, double):
        f = precise(lambda x, t, net=net: net(x) * t)
        for dtype in (torch.float32, torch.float64):
            x, t = torch.ones(3, 2, dtype=dtype), torch.tensor(2.0, dtype=dtype)
            out = f(x, t)
            assert out.dtype == dtype
            assert torch.allclose(out, 2 * net(x.to(net.weight.dtype)).to(dtype), rtol=0, atol=1e-6)
    assert precise(f) is f and precise(3.0) == 3.0


def test_other_errors_pass_and_integers_are_left_alone():
    table = torch.arange(3.0)
    assert precise(lambda x: table[x])(torch.tensor([2, 0])).tolist() == [2.0, 0.0]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        precise(torch.nn.Linear(3, 2))(torch.ones(1, 2, dtype=torch.float32))


def test_gradients_reach_the_parameters_of_a_network_inside():
    net = torch.nn.Linear(1, 1)
    kernel = NonLinearGaussian(net, 0.1)
    assert {id(p) for p in kernel.parameters()} == {id(p) for p in net.parameters()}
    model = StateSpace(Gaussian(0.0, 1.0), kernel, NonLinearGaussian(lambda x: x, 0.5))
    assert {id(p) for p in model.parameters()} == {id(p) for p in net.parameters()}
    rd.condition(model, Observed([0.3, 0.1]), method="extended").log_evidence.sum().backward()
    assert float(net.weight.grad.abs()) > 0
    assert isinstance(kernel.mean, Precise)


def test_a_number_is_a_variance_in_double_precision():
    kernel = NonLinearGaussian(lambda x: x, 0.1)
    S = kernel.root_at(torch.zeros(1, 1, dtype=torch.float64))
    assert abs(float((S @ S.mT)[0, 0, 0]) - 0.1) < 1e-16
    with pytest.raises(ValueError, match="smallest eigenvalue is -1"):
        NonLinearGaussian(lambda x: x, torch.diag(torch.tensor([1.0, -1.0])))
