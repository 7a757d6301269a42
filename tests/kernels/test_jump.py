"""Jump kernels: against SciPy's matrix exponential, against each other, and through gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.kernels import Categorical, Factor, Finite, Jump, Point, Table, rates_of
from retrodict.kernels.jump import transition_matrix, uniformised


def rates(seed: int, states: int, scale: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return rates_of(scale * torch.rand(states, states, generator=g, dtype=torch.float64))


def ladder(states: int, up: float = 2.0, down: float = 1.0) -> Tensor:
    """A birth-death chain, sparse."""
    Q = torch.diag(torch.full((states - 1,), up), 1) + torch.diag(torch.full((states - 1,), down), -1)
    return rates_of(Q.double())


@pytest.mark.parametrize("dt", [0.0, 1e-6, 0.3, 7.0, 400.0])
def test_transitions_equal_the_matrix_exponential(dt):
    Q = rates(0, 5)
    expected = linalg.expm(Q.numpy() * dt)
    assert np.abs(transition_matrix(Q, dt).numpy() - expected).max() < 1e-13
    action = uniformised(Q.to_sparse_csr(), dt, torch.eye(5, dtype=torch.float64))
    assert np.abs(action.numpy() - expected).max() < 1e-12


def test_rare_transitions_keep_their_relative_precision():
    """Ten jumps in a millionth of a unit of time: (dt^10 / 10!) prod of rates, at relative precision 1e-5."""
    Q, dt = ladder(11), 1e-6
    expected = 2.0**10 * dt**10 / 3628800
    for P in (transition_matrix(Q, dt), uniformised(Q.to_sparse_csr(), dt, torch.eye(11, dtype=torch.float64))):
        assert bool((P > 0).all()) and abs(float(P[0, 10]) / expected - 1) < 1e-4


def test_a_batch_of_times_and_of_rates():
    Q = torch.stack([rates(1, 3), rates(2, 3)])
    dt = torch.tensor([[0.1], [2.0], [5.0]], dtype=torch.float64)
    P = transition_matrix(Q, dt)
    assert P.shape == (3, 2, 3, 3)
    for i in range(3):
        for j in range(2):
            assert np.abs(P[i, j].numpy() - linalg.expm(Q[j].numpy() * float(dt[i]))).max() < 1e-14


@pytest.mark.parametrize("verb", ["push", "pull", "log_prob", "smooth"])
def test_uniformisation_equals_the_exponential(verb):
    Q, dt, n = ladder(40), 3.0, 4
    g = torch.Generator().manual_seed(3)
    law = Categorical(torch.rand(n, 40, generator=g, dtype=torch.float64).log_softmax(-1))
    h = Table(5 * torch.randn(n, 40, generator=g, dtype=torch.float64) - 800)  # below the range of exp
    h.log_h[:, ::2] = -torch.inf
    dense, sparse = Jump(Q, dt), Jump(Q.to_sparse_csr(), dt)
    assert (dense.method, sparse.method) == ("expm", "uniformisation")
    x, y = torch.tensor([0, 5, 39, 7]), torch.tensor([1, 3, 2, 30])
    results = []
    for kernel in (dense, sparse):
        if verb == "push":
            results.append(kernel.push(law).log_p)
        elif verb == "pull":
            results.append(kernel.pull(h)[1].log_h)
        elif verb == "log_prob":
            results.append(kernel.log_prob(x, y, 0))
        else:
            guided, earlier = kernel.pull(h)
            results.append(guided.push(law.fuse(earlier)[0]).log_p.exp())
    assert torch.allclose(*results, rtol=1e-10, atol=1e-12)


def test_steps_and_guided_steps_follow_their_laws():
    """Chi-square of 4000 draws from one state (false-alarm rate 1e-4 each)."""
    Q, n = ladder(6), 4000
    h = Table(torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf, 2.0, 0.5]], dtype=torch.float64))
    x = torch.full((n,), 2)
    P = torch.from_numpy(linalg.expm(Q.numpy() * 0.7))[2]
    for kernel in (Jump(Q, 0.7), Jump(Q.to_sparse_csr(), 0.7)):
        noise = KeyedNoise(0, n)
        free = torch.bincount(kernel.sample(x, noise), minlength=6)
        assert stats.chisquare(free.numpy(), (n * P).numpy()).pvalue > 1e-4
        y, log_weight = kernel.guide(kernel.pull(h)[0], x, kernel.draw(noise, ()))
        expected = P * h.log_h[0].exp()
        seen, counts = expected > 0, torch.bincount(y, minlength=6)
        assert int(counts[~seen].sum()) == 0 and bool((log_weight == 0).all())
        expected = n * expected[seen] / expected.sum()
        assert stats.chisquare(counts[seen].numpy(), expected.numpy()).pvalue > 1e-4


def test_rates_that_change_in_time():
    Q, dt = [rates(4, 3), rates(5, 3, 4.0)], [0.5, 0.2]
    whole = Jump.piecewise(Q, dt).collapse()
    expected = linalg.expm(Q[0].numpy() * 0.5) @ linalg.expm(Q[1].numpy() * 0.2)
    assert isinstance(whole, Finite) and np.abs(whole.log_p.exp().numpy() - expected).max() < 1e-14
    with pytest.raises(InputError, match="one dt each; got 2 matrices and 1 times"):
        Jump.piecewise(Q, [0.5])


def test_gradients_pass_to_rates_and_times():
    """gradcheck of evidence and transitions; states that cannot be reached leave no NaN behind."""
    h = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64)
    one_way = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)

    def run(log_rates, dt):
        chain = Jump(rates_of(log_rates.exp() * one_way), dt) >> Factor(Table(h))
        residual, earlier = chain.pull()
        post, evidence = Categorical(torch.zeros(1, 3, dtype=torch.float64)).fuse(earlier)
        return evidence, residual.push(post).log_p.exp(), transition_matrix(rates_of(log_rates.exp()), 9 * dt)

    start = torch.randn(3, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    assert torch.autograd.gradcheck(run, (start.requires_grad_(), torch.tensor(0.7).double().requires_grad_()))


def test_inversion_is_bayes_rule():
    Q, dt = rates(7, 4), 0.6
    prior = Categorical.of(torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))
    joint = prior.log_p[0].exp()[:, None] * torch.from_numpy(linalg.expm(Q.numpy() * dt))
    back = Jump(Q, dt).invert(prior)
    assert torch.allclose(back.log_p.exp()[0], (joint / joint.sum(0)).T, atol=1e-14)


def test_wrong_input_is_refused():
    Q = rates(8, 3)
    with pytest.raises(InputError, match=r"negative entry -1 off the diagonal, from state 0 to state 1"):
        Jump(torch.tensor([[1.0, -1.0], [0.0, 0.0]]), 1.0)
    with pytest.raises(InputError, match=r"negative entry -1 off the diagonal, from state 0 to state 1"):
        Jump(torch.tensor([[1.0, -1.0], [0.0, 0.0]]).to_sparse_csr(), 1.0)
    with pytest.raises(InputError, match="sum to zero"):
        Jump(torch.tensor([[1.0, 1.0], [0.0, 0.0]]).to_sparse_csr(), 1.0)
    with pytest.raises(InputError, match="at least zero; got -1"):
        Jump(Q, -1)
    with pytest.raises(InputError, match="'expm' or 'uniformisation', got 'pade'"):
        Jump(Q, 1.0, "pade")
    with pytest.raises(InputError, match="takes dense rates"):
        Jump(Q.to_sparse_csr(), 1.0, "expm")
    with pytest.raises(InputError, match="one matrix of rates and one dt"):
        Jump(Q, torch.ones(2), "uniformisation")
    for kernel in (Jump(Q, 1.0), Jump(Q, 1.0, "uniformisation")):
        for call in (kernel.push, kernel.pull, kernel.invert):
            with pytest.raises(InputTypeError, match="Gaussian"):
                call(Point(torch.zeros(1, 2)))  # type: ignore[arg-type]
