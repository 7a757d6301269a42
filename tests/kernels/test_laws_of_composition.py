"""Laws that hold of any composition: grouping, inversion, Gaussian processes, likelihoods of parameterised kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.core.noise import KeyedNoise
from retrodict.kernels import (
    Categorical,
    Chain,
    Conditional,
    Factor,
    Finite,
    Gaussian,
    GaussianProcess,
    Kernel,
    LinearGaussian,
    NonLinearGaussian,
    Quadratic,
    Table,
)


def rng(seed: int):
    g = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)


D = 2


def step(normal, rank: int, bent: bool) -> Kernel:
    """A transition with noise of a rank, linear or not."""
    A, b, root = 0.6 * normal(D, D), normal(D), normal(D, rank)
    linear = LinearGaussian(A, b, root @ root.mT if rank else torch.zeros(D, D).double())
    if not bent:
        return linear
    return NonLinearGaussian(
        lambda x: torch.tanh(x) @ A.mT + b, root @ root.mT + 0.1 * torch.eye(D).double(), aux=linear
    )


def see(normal) -> Factor:
    """One row of the state, so that H has rank one."""
    return Factor(Quadratic.observe(normal(1, 1), Lin.dense(normal(1, D)), Lin.scalar(torch.tensor(0.4).double())))


@pytest.mark.parametrize("bent", [False, True])
@pytest.mark.parametrize("length", [3, 5, 8])
def test_grouping_does_not_change_messages_nor_paths(length, bent):
    """Any bracketing of a chain: the same message, weights, and with the same innovations the same path.

    Ranks of the noise cycle through full, one and none; some steps are not observed, time 0 is."""
    normal = rng(length)
    links: list[Kernel] = [see(normal)]
    for n in range(length):
        links.append(step(normal, [2, 1, 0][n % 3], bent and n % 3 == 0))
        if n % 2 == 0:
            links.append(see(normal))
    flat = Chain(*links)
    noise = KeyedNoise(0, 4, dtype=torch.float64)
    x, z = normal(4, D), flat.draw(noise, (D,))
    residual, h = flat.pull()
    y, log_weight = flat.guide(residual, x, z)
    cut = len(links) // 2
    for first in (1, cut, len(links) - 1):
        nested = Chain(Chain(*links[:first]), Chain(*links[first:]))
        guided, other = nested.pull(None)
        assert torch.allclose(other(x), h(x), rtol=0, atol=1e-12)
        end, weight = nested.guide(guided, x, [z[:first], z[first:]])
        assert torch.allclose(end, y, rtol=0, atol=1e-12) and torch.allclose(weight, log_weight, rtol=0, atol=1e-12)
    assert bool((log_weight != 0).any()) is bent


def test_composing_true_kernels_first_changes_paths_but_not_the_evidence():
    """Integrating out the middle state is another sampler of the same law: messages agree."""
    normal = rng(20)
    a, b = (step(normal, 2, False) for _ in range(2))
    h = see(normal)
    x = normal(3, D)
    whole = Chain(Chain(a, b).collapse(), h)
    assert torch.allclose(whole.pull()[1](x), Chain(a, b, h).pull()[1](x), atol=1e-12)


@pytest.mark.parametrize("family", ["finite", "gaussian"])
def test_the_inverse_of_a_composite_is_the_composite_of_the_inverses(family):
    """For any starting law, in one shot or link by link; and the inverse depends on that law."""
    normal = rng(30)
    if family == "finite":
        kernels = [Finite.of(normal(m, n).softmax(-1)) for m, n in ((3, 4), (4, 2), (2, 5))]
        priors = [Categorical.of(normal(3).softmax(-1)) for _ in range(2)]
    else:
        sizes = ((3, 2), (2, 2), (2, 1))
        kernels = [LinearGaussian(normal(n, m), normal(n), torch.eye(n).double()) for m, n in sizes]
        roots = [normal(3, 1), normal(3, 3)]  # a singular prior, and one of full rank
        priors = [Gaussian(normal(3), root @ root.mT) for root in roots]
    chain = Chain(*kernels)
    seen = []
    for prior in priors:
        one_shot, chained = chain.collapse().invert(prior), chain.invert(prior).collapse()
        for name in ("log_p",) if family == "finite" else ("A", "Q", "b"):
            values = [getattr(k, name) for k in (one_shot, chained)]
            values = [v.value if isinstance(v, Lin) else v for v in values]
            assert torch.allclose(values[0], values[1].expand_as(values[0]), rtol=0, atol=1e-10)
        seen.append(values[0])
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)


def matern(length: float = 0.7, scale: float = 1.3):
    def covariance(x: Tensor, y: Tensor) -> Tensor:
        return scale**2 * torch.exp(-(x.unsqueeze(1) - y.unsqueeze(0)).abs().sum(-1) / length)

    return covariance


def test_regression_is_the_inversion_of_a_kernel():
    """A Gaussian process at some inputs, seen with noise at others: the textbook formulas, and SciPy's evidence."""
    normal = rng(40)

    def smooth(x: Tensor, y: Tensor) -> Tensor:
        return 1.5 * torch.exp(-0.5 * ((x.unsqueeze(1) - y.unsqueeze(0)) / 0.8).square().sum(-1))

    process = GaussianProcess(smooth, mean=lambda x: 0.3 * x.sum(-1))
    data, new, y, noise = normal(6, 2), normal(4, 2), normal(1, 6), 0.2
    seen = LinearGaussian(torch.eye(6).double(), 0.0, noise)
    everything = torch.cat([data, new])
    joint = process.law(everything)
    look = LinearGaussian(torch.eye(6, 10).double(), 0.0, noise)
    post = look.invert(joint).push(Gaussian(y, Lin.scalar(torch.zeros(()).double())))
    K, Ks, Kss = smooth(data, data), smooth(data, new), smooth(new, new)
    S = K + noise * torch.eye(6).double()
    mean = 0.3 * new.sum(-1) + Ks.T @ torch.linalg.solve(S, y[0] - 0.3 * data.sum(-1))
    cov = Kss - Ks.T @ torch.linalg.solve(S, Ks)
    assert torch.allclose(post.mean[0, 6:], mean, atol=1e-9)
    assert torch.allclose(post.covariance[0, 6:, 6:], cov, atol=1e-9)
    # the same by steps: condition the values at the data, then go from there to the new inputs
    at_data, log_evidence = process.law(data).fuse(Quadratic.observe(y, Lin.scalar(1.0), Lin.scalar(seen.Q.value)))
    there = process.kernel(data, new).push(at_data)
    assert torch.allclose(there.mean[0], mean, atol=1e-8) and torch.allclose(there.covariance[0], cov, atol=1e-8)
    expected = stats.multivariate_normal((0.3 * data.sum(-1)).numpy(), S.numpy()).logpdf(y[0].numpy())
    assert abs(float(log_evidence) - float(expected)) < 1e-9


def test_a_markov_process_prior_is_a_chain_of_kernels():
    """Matern-1/2 at ordered inputs: filtering along the chain equals the dense Gaussian, evidence and every mean."""
    normal = rng(50)
    x = torch.rand(30, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort(0).values
    process, y, noise = GaussianProcess(matern()), normal(30), torch.tensor(0.3).double()
    links: list[Kernel] = []
    for i in range(30):
        if i:
            links.append(process.kernel(x[i - 1 : i], x[i : i + 1]))
        links.append(Factor(Quadratic.observe(y[i].reshape(1, 1), Lin.scalar(1.0), Lin.scalar(noise))))
    residual, h = Chain(*links).pull()
    post, log_evidence = process.law(x[:1]).fuse(h)
    means = torch.stack([law.mean[0, 0] for law in residual.laws(post)[::2]])
    K = matern()(x, x)
    S = K + noise * torch.eye(30).double()
    assert torch.allclose(means, K @ torch.linalg.solve(S, y), atol=1e-9)
    expected = stats.multivariate_normal(np.zeros(30), S.numpy()).logpdf(y.numpy())
    assert abs(float(log_evidence) - float(expected)) < 1e-9


def test_a_process_says_what_it_cannot_do():
    process = GaussianProcess(matern())
    x = torch.tensor([[0.0], [0.0], [1.0]]).double()
    with pytest.raises(InputError, match="determine one another"):
        process.kernel(x, x[:1])
    with pytest.raises(InputError, match="is accepted"):
        GaussianProcess(lambda x, y: torch.ones(2)).law(x)
    with pytest.raises(InputError, match="not positive semi-definite"):
        GaussianProcess(lambda x, y: -torch.eye(3)).law(x)


def composite_log_likelihood(A1, b1, l1, A2, b2, l2, x: Tensor, z: Tensor) -> Tensor:
    """log of the integral of k1(x, dy) k2(y, z): the pull of a point through two kernels, ``(n,)``."""
    first = LinearGaussian(A1, b1, torch.diag(l1.exp()))
    second = LinearGaussian(A2, b2, torch.diag(l2.exp()))
    return Chain(first, second).collapse().log_prob(x, z)


def test_the_likelihood_of_a_composite_and_its_gradient():
    """As the evidence of a sharp message, by gradcheck, and by a direct integral over the middle state."""
    normal = rng(60)
    inputs = [normal(2, 2), normal(2), normal(2), normal(2, 2), normal(2), normal(2)]
    x, z = normal(3, 2), normal(3, 2)
    found = composite_log_likelihood(*inputs, x, z)
    A1, b1, l1, A2, b2, l2 = inputs
    # k2 as a message about the middle state, integrated against k1's law of it
    h = Quadratic.observe(z - b2, Lin.dense(A2), Lin.dense(torch.diag(l2.exp())))
    direct = LinearGaussian(A1, b1, torch.diag(l1.exp())).pull(h)[1](x)
    assert torch.allclose(found, direct, atol=1e-11)
    assert torch.autograd.gradcheck(
        lambda *v: composite_log_likelihood(*v, x, z).sum(), [v.requires_grad_() for v in inputs]
    )


def test_maximum_likelihood_of_a_composite_has_the_square_root_rate():
    """Second kernel unknown, first known: the root mean square error falls by half from n to 4n.

    The maximum is in closed form, by regression of z on E[y | x], whose normal equations are the vanishing gradient
    of the composite's log-likelihood (checked on one replicate).  400 replicates: the ratio's own error is 4%."""
    g = torch.Generator().manual_seed(70)
    a1, b1, q1, a2, b2, q2 = 0.8, 0.3, 0.5, -1.2, 0.4, 0.7

    def fit(n: int, replicates: int) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.randn(replicates, n, generator=g, dtype=torch.float64)
        y = a1 * x + b1 + q1**0.5 * torch.randn(x.shape, generator=g, dtype=torch.float64)
        z = a2 * y + b2 + q2**0.5 * torch.randn(x.shape, generator=g, dtype=torch.float64)
        m = a1 * x + b1
        centred = m - m.mean(1, keepdim=True)
        slope = (centred * z).sum(1) / centred.square().sum(1)
        offset = z.mean(1) - slope * m.mean(1)
        residual = (z - slope[:, None] * m - offset[:, None]).square().mean(1)
        return torch.stack([slope, offset, residual - slope**2 * q1], 1), x, z

    truth = torch.tensor([a2, b2, q2], dtype=torch.float64)
    rmse = [(fit(n, 400)[0] - truth).square().mean(0).sqrt() for n in (100, 400)]
    assert bool(((rmse[1] / rmse[0] > 0.4) & (rmse[1] / rmse[0] < 0.6)).all())
    best, x, z = fit(200, 1)
    parts = best[0].clone().requires_grad_()
    second = LinearGaussian(parts[0].reshape(1, 1), parts[1].reshape(1), parts[2].reshape(1, 1))
    first = LinearGaussian(torch.tensor([[a1]], dtype=torch.float64), b1, q1)
    Chain(first, second).collapse().log_prob(x[0].unsqueeze(-1), z[0].unsqueeze(-1)).sum().backward()
    assert parts.grad is not None and float(parts.grad.abs().max()) < 1e-9


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_a_wrong_auxiliary_is_unbiased_by_enumeration(length):
    """Finite chains guided by the messages of another chain: the sum over paths of probability times weight is Z."""
    normal = rng(80 + length)
    true, aux = ([normal(3, 3).softmax(-1) for _ in range(length)] for _ in range(2))
    g = [normal(3) for _ in range(length + 1)]

    def kernel(n: int) -> Conditional:
        return Conditional(lambda x: torch.distributions.Categorical(true[n][x]), aux=Finite.of(aux[n]))

    links: list[Kernel] = [Factor(Table(g[0][None]))]
    for n in range(length):
        links += [kernel(n), Factor(Table(g[n + 1][None]))]
    residual, h = Chain(*links).pull()
    x, y = torch.cartesian_prod(torch.arange(3), torch.arange(3)).unbind(-1)
    exact, expected = g[length].exp(), torch.ones(3).double()
    for n in reversed(range(length)):
        exact = g[n].exp() * (true[n] @ exact)
        link, guided = links[1 + 2 * n], residual.links[1 + 2 * n]
        assert isinstance(link, Conditional) and link.aux is not None
        moves = guided.log_prob(x, y, 0).exp()
        pays = (link.log_prob(x, y, 0) - link.aux.log_prob(x, y, 0)).exp()
        expected = (moves * pays).reshape(3, 3) @ expected
    assert torch.allclose(h.log_h[0].exp() * expected, exact, rtol=1e-13)
