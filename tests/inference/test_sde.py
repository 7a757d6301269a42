"""Plain simulation of diffusions: moments, shapes of dispersions, seeds."""

from __future__ import annotations

import math

import pytest
import torch

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.lin import Lin
from retrodict.inference.sde import SDE
from retrodict.kernels import Gaussian

F64 = torch.float64


def test_moments_of_a_linear_diffusion() -> None:
    """Mean and covariance of the Euler chain at two times; 4.5 s.e., 10 comparisons: false alarm 7e-5."""
    B = torch.tensor([[-1.0, 0.8], [-0.5, -0.3]], dtype=F64)
    S = torch.tensor([[0.5, 0.2], [0.0, 0.4]], dtype=F64)
    n = 20_000
    x = SDE(lambda x, t: x @ B.mT, S).sample(n, times=[0.3, 1.0], steps=20, start=[1.0, -0.5]).x[:, 0]
    m, P = torch.tensor([1.0, -0.5], dtype=F64), torch.zeros(2, 2, dtype=F64)
    for j, gap in enumerate((0.3, 0.7)):
        A = torch.eye(2, dtype=F64) + B * gap / 20
        for _ in range(20):
            m, P = A @ m, A @ P @ A.mT + S @ S.mT * gap / 20
        assert ((x[:, j].mean(0) - m).abs() < 4.5 * (P.diagonal() / n).sqrt()).all()
        bar = (P**2 + P.diagonal()[:, None] * P.diagonal()) / n
        assert ((torch.cov(x[:, j].T) - P).abs() < 4.5 * bar.sqrt()).all()


@pytest.mark.parametrize("callable_", [False, True])
def test_every_way_to_write_one_dispersion(callable_: bool) -> None:
    """A number, a diagonal and a matrix of one meaning drive the same paths from the same seed."""
    forms = [0.5, torch.full((2,), 0.5, dtype=F64), 0.5 * torch.eye(2, dtype=F64)]
    if callable_:
        forms += [lambda x: 0.5 + 0 * x, lambda x: torch.diag_embed(0.5 + 0 * x)]
        forms = [(lambda x, t, g=g: g(x) if callable(g) else g) for g in forms]
    paths = [
        SDE(lambda x, t: -x * t, g).sample(5, times=[0.5, 1.0], steps=3, start=[1.0, 2.0], seed=4).x for g in forms
    ]
    for other in paths[1:]:
        torch.testing.assert_close(other, paths[0])


def test_noise_narrower_than_the_state() -> None:
    model = SDE(lambda x, t: torch.stack((x[..., 1], 0 * x[..., 0]), -1), torch.tensor([[0.0], [1.0]], dtype=F64))
    x = model.sample(4, times=[0.1, 0.2], steps=1, start=[0.0, 0.0]).x[:, 0]
    assert (x[:, 0, 0] == 0).all() and (x[:, 1, 0] != 0).all()
    torch.testing.assert_close(x[:, 1, 0], 0.1 * x[:, 0, 1])


def test_starts_and_seeds() -> None:
    prior = Gaussian(torch.tensor([[2.0]], dtype=F64), Lin.dense(torch.tensor([[[0.25]]], dtype=F64)))
    for law in (prior, torch.distributions.Normal(torch.tensor([2.0]), 0.5), torch.distributions.Uniform(1.0, 3.0)):
        x = SDE(lambda x, t: 0 * x, 1e-9, prior=law).sample(4000, times=[1.0], steps=1).x
        sd = 0.5 if law is not None and not isinstance(law, torch.distributions.Uniform) else 1 / math.sqrt(3)
        assert abs(float(x.mean()) - 2) < 4 * sd / math.sqrt(4000)
        assert abs(float(x.std()) - sd) < 4 * sd / math.sqrt(2 * 4000)
    model = SDE(lambda x, t: -x, 0.3)
    first = model.sample(3, times=[1.0], start=[0.0], seed=1).x
    assert torch.equal(first, model.sample(3, times=[1.0], start=[0.0], seed=1).x)
    assert not torch.equal(first, model.sample(3, times=[1.0], start=[0.0], seed=2).x)
    assert model.sample(3, times=[1.0], start=torch.zeros(3, 1), dtype=torch.float32).x.dtype == torch.float32


def test_parameters_are_found() -> None:
    net = torch.nn.Linear(1, 1)
    scale = torch.nn.Parameter(torch.tensor(0.5))
    assert {id(p) for p in SDE(lambda x, t: net(x), lambda x, t: scale).parameters()} == {
        id(p) for p in (*net.parameters(), scale)
    }


def test_bad_input_says_what_to_do() -> None:
    model = SDE(lambda x, t: -x, 0.3)
    with pytest.raises(InputTypeError, match="drift is a function"):
        SDE(3.0, 1.0)
    with pytest.raises(InputError, match="start=x0"):
        model.sample(3, times=[1.0])
    with pytest.raises(InputError, match="increase"):
        model.sample(3, times=[1.0, 0.5], start=[0.0])
    with pytest.raises(InputError, match="at least 1"):
        model.sample(0, times=[1.0], start=[0.0])
    with pytest.raises(InputError, match=r"\(3, d\)"):
        model.sample(3, times=[1.0], start=torch.zeros(2, 1))
    with pytest.raises(InputError, match="not finite"):
        SDE(lambda x, t: x**3, 0.1).sample(2, times=[10.0], steps=20, start=[50.0])
    with pytest.raises(InputError, match="accepted are"):
        SDE(lambda x, t: -x, torch.ones(3)).sample(2, times=[1.0], start=[0.0, 0.0])
