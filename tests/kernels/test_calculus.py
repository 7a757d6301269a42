"""Composition: side by side, fusion at branches, surrogates, kernels without a closed family, and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.lin import Lin
from retrodict.core.noise import GeneratorNoise, KeyedNoise
from retrodict.kernels import (
    Categorical,
    Chain,
    Conditional,
    Deterministic,
    Factor,
    Finite,
    Gaussian,
    Kernel,
    Laws,
    LinearGaussian,
    Messages,
    NonLinearGaussian,
    Parallel,
    Quadratic,
    Table,
    fuse,
)
from retrodict.kernels.roots import semidefinite_cholesky


def rng(seed: int):
    g = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)


def spread(normal, d: int, rank: int | None = None) -> Tensor:
    root = normal(d, d if rank is None else rank)
    return root @ root.mT / d


def leg(normal, d: int, length: int = 3) -> tuple[Gaussian, Chain]:
    """A prior and a chain with observations of d coordinates at every second step and at the start."""
    links: list[Kernel] = []
    for n in range(length + 1):
        if n:
            links.append(LinearGaussian(0.7 * normal(d, d), normal(d), spread(normal, d, 1 + n % d)))
        if n % 2 == 0:
            links.append(Factor(Quadratic.observe(normal(1, 1), Lin.dense(normal(1, d)), Lin.scalar(0.5))))
    return Gaussian(normal(d), spread(normal, d)), Chain(*links)


def table_leg(normal, states: int, length: int = 3) -> tuple[Categorical, Chain]:
    links: list[Kernel] = []
    for _ in range(length):
        links.append(Finite.of(normal(states, states).softmax(-1)))
        links.append(Factor(Table(normal(1, states))))
    return Categorical.of(normal(states).softmax(-1)), Chain(*links)


def evidence(prior, chain: Kernel) -> Tensor:
    return prior.fuse(chain.pull(None)[1])[1]


def test_independent_legs_side_by_side():
    """Evidence adds, and marginals are those of the legs alone: a vector leg beside a finite one."""
    normal = rng(0)
    (p1, c1), (p2, c2) = leg(normal, 2), table_leg(normal, 3)
    both, prior = c1 | c2, p1 | p2
    assert isinstance(both, Parallel) and isinstance(prior, Laws)
    residual, h = both.pull(None)
    post, log_evidence = prior.fuse(h)
    assert torch.allclose(log_evidence, evidence(p1, c1) + evidence(p2, c2), rtol=0, atol=1e-12)
    ends = residual.push(post)
    alone = [r.push(p.fuse(m)[0]) for p, (r, m) in ((p1, c1.pull()), (p2, c2.pull()))]
    assert torch.allclose(ends.parts[0].mean, alone[0].mean) and torch.allclose(ends.parts[1].log_p, alone[1].log_p)
    noise = KeyedNoise(0, 5, dtype=torch.float64)
    x = post.sample(noise)
    y, log_weight = both.guide(residual, x, both.draw(noise, ((2,), ())))
    assert y[0].shape == (5, 2) and y[1].shape == (5,) and bool((log_weight == 0).all())
    inverse = (Parallel(c1.links[1], c2.links[0])).invert(prior)  # Bayes leg by leg
    assert torch.allclose(inverse.legs[1].log_p, c2.links[0].invert(p2).log_p)


def test_linear_gaussian_legs_are_one_kernel():
    """Block-diagonal parameters: the evidence of independent legs adds, and one observation may see both."""
    normal = rng(1)
    a, b = LinearGaussian(normal(2, 2), normal(2), spread(normal, 2)), LinearGaussian(normal(1, 1), 0.3, 0.2)
    both, prior = a | b, Gaussian(normal(2), spread(normal, 2)) | Gaussian(normal(1), 0.4)
    assert isinstance(both, LinearGaussian) and isinstance(prior, Gaussian) and prior.mean.shape == (1, 3)
    E, y, R = normal(1, 3), normal(1, 1), 0.3
    h = Quadratic.observe(y, Lin.dense(E), Lin.scalar(torch.tensor(R, dtype=torch.float64)))
    A, Q = both.A.value, both.Q.value
    mean = A @ prior.mean[0] + both.b
    variance = float(E @ (A @ prior.covariance[0] @ A.mT + Q) @ E.mT) + R
    expected = stats.norm(float(E[0] @ mean), math.sqrt(variance)).logpdf(float(y))
    assert abs(float(evidence(prior, both >> Factor(h))) - expected) < 1e-12
    assert torch.equal(A[:2, :2], a.A.value) and bool((A[:2, 2] == 0).all()) and float(A[2, 2]) == float(b.A.value)


def test_grouping_side_by_side_does_not_matter():
    normal = rng(2)
    g = [LinearGaussian(normal(1, 1), 0.0, 1.0) for _ in range(3)]
    f = Finite.of(normal(2, 2).softmax(-1))
    for parts in ([g[0], g[1], g[2]], [g[0], g[1], f], [f, g[0], g[1]], [g[0], f, g[1]], [f, f, g[0]]):
        left, right = (parts[0] | parts[1]) | parts[2], parts[0] | (parts[1] | parts[2])
        sizes = [[(type(leg).__name__, str(leg.codomain)) for leg in getattr(k, "legs", (k,))] for k in (left, right)]
        assert sizes[0] == sizes[1]
    with pytest.raises(InputError, match="need known sizes"):
        _ = g[0] | LinearGaussian(1.0, 0.0, 1.0)
    with pytest.raises(InputError, match="a tuple of as many parts, got Tensor"):
        (f | g[0]).step(torch.zeros(3), (None, None))
    with pytest.raises(InputTypeError, match="Parallel cannot pull Table"):
        (f | g[0]).pull(Table(torch.zeros(1, 2)))


def test_messages_that_meet_at_a_branch_multiply():
    """A root with two noisy children: the dense Gaussian of both observations."""
    normal = rng(3)
    prior = Gaussian(normal(2), spread(normal, 2))
    A, Q, y = normal(2, 1, 2), [0.3, 0.6], normal(2, 1)
    pulled = []
    for i in range(2):
        h = Quadratic.observe(y[i : i + 1], Lin.scalar(1.0), Lin.scalar(torch.tensor(0.1, dtype=torch.float64)))
        pulled.append(LinearGaussian(A[i], 0.0, Q[i]).pull(h)[1])
    E = A[:, 0]
    cov = E @ prior.covariance[0] @ E.mT + torch.diag(torch.tensor(Q, dtype=torch.float64) + 0.1)
    expected = stats.multivariate_normal((E @ prior.mean[0]).numpy(), cov.numpy()).logpdf(y[:, 0].numpy())
    assert abs(float(prior.fuse(fuse(None, *pulled))[1]) - expected) < 1e-12
    assert fuse(None) is None
    both = Messages((pulled[0], None)).fuse(Messages((None, pulled[1])))
    x = normal(3, 2)
    assert torch.allclose(both((x, x)), pulled[0](x) + pulled[1](x))


def test_a_surrogate_stands_for_a_potential_without_changing_the_evidence():
    """Poisson counts of exp(x): a crude Gaussian surrogate in the message, the ratio in the weight.

    Against quadrature, within 4 standard errors (false-alarm rate 6e-5)."""
    m, v, count = 0.3, 0.5, 3
    kernel, n = LinearGaussian(0.8, 0.1, 0.4), 40_000

    def log_g(x: Tensor) -> Tensor:
        return torch.distributions.Poisson(x[:, 0].exp()).log_prob(torch.tensor(float(count)))

    surrogate = Quadratic.observe(torch.full((1, 1), math.log(3.0)).double(), Lin.scalar(1.0), Lin.scalar(0.5))
    chain = kernel >> Factor(log_g, surrogate)
    residual, h = chain.pull()
    noise = GeneratorNoise(torch.Generator().manual_seed(0), n, dtype=torch.float64)
    post, log_z = Gaussian(m, v).fuse(h)
    _, log_weight = chain.guide(residual, post.sample(noise), chain.draw(noise, (1,)))
    w = (log_weight + log_z).exp()
    end = stats.norm(0.8 * m + 0.1, math.sqrt(0.64 * v + 0.4))
    exact = integrate.quad(lambda x: end.pdf(x) * stats.poisson(math.exp(x)).pmf(count), -8, 8)[0]
    assert abs(float(w.mean()) - exact) < 4 * float(w.std()) / math.sqrt(n)
    with pytest.raises(InputTypeError, match="no closed Bayes update"):
        chain.push(Gaussian(m, v))


def conditionals(aux: Kernel | None) -> dict[str, Kernel]:
    """A heavy-tailed step, as a distribution and as user's functions."""

    def law(x: Tensor) -> torch.distributions.Distribution:
        return torch.distributions.StudentT(5.0, torch.sin(x), 0.5)

    def sample(x: Tensor) -> Tensor:
        return law(x).sample()

    return {
        "law": Conditional(law, aux=aux),
        "functions": Conditional(
            sample_fn=sample, log_prob_fn=lambda x, y: law(x).log_prob(y).flatten(1).sum(1), aux=aux
        ),
    }


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("how", ["law", "functions"])
def test_a_kernel_that_can_only_be_sampled_and_evaluated(guided, how):
    """The evidence of a noisy observation after one step, against quadrature within 4 standard errors.

    The auxiliary is Gaussian: its tails are lighter than Student's, and the message's are lighter still."""
    aux = LinearGaussian(0.8, 0.0, 0.6) if guided else None
    kernel, n = conditionals(aux)[how], 40_000
    y, R, x0 = 0.4, 0.2, 0.7
    h = Quadratic.observe(torch.tensor([[y]]).double(), Lin.scalar(1.0), Lin.scalar(torch.tensor(R).double()))
    chain = Chain(kernel, Factor(h))
    residual, message = chain.pull()
    noise = GeneratorNoise(torch.Generator().manual_seed(1), n, dtype=torch.float64)
    x = torch.full((n, 1), x0, dtype=torch.float64)
    before = torch.random.get_rng_state()
    z = chain.draw(noise, (1,))
    states, log_weight = chain.guide(residual, x, z)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(chain.guide(residual, x, z)[0], states)  # a function of the innovations
    w = (log_weight + (message(x) if guided else 0.0)).exp()
    t = stats.t(5, math.sin(x0), 0.5)
    exact = integrate.quad(lambda s: t.pdf(s) * stats.norm(s, math.sqrt(R)).pdf(y), -9, 9)[0]
    assert abs(float(w.mean()) - exact) < 4 * float(w.std()) / math.sqrt(n)
    assert guided is (message is not None)


def test_deterministic_maps():
    """A matrix is linear-Gaussian without noise; a function is guided through its linearisation, exactly."""
    normal = rng(4)
    E, x = normal(1, 3), normal(2, 3)
    linear = Deterministic(E)
    assert isinstance(linear, LinearGaussian) and torch.allclose(linear.step(x, torch.ones(2, 1)), x @ E.mT)

    def f(x: Tensor) -> Tensor:
        return x.sin() + 0.1 * x

    bent = Deterministic(f)
    assert isinstance(bent, NonLinearGaussian)
    bent = bent.linearised(normal(1, 3))
    h = Quadratic.observe(normal(1, 1), Lin.dense(normal(1, 3)), Lin.scalar(torch.tensor(0.3).double()))
    residual, earlier = bent.pull(h)
    y, log_weight = bent.guide(residual, x, bent.draw(KeyedNoise(0, 2, dtype=torch.float64), (3,)))
    assert torch.allclose(y, f(x)) and torch.allclose(log_weight + earlier(x), h(f(x)), atol=1e-12)


def test_chains_collapse_where_the_family_is_closed():
    normal = rng(5)
    kernels = [LinearGaussian(normal(2, 2), normal(2), spread(normal, 2, 1)) for _ in range(3)]
    h = Quadratic.observe(normal(1, 1), Lin.dense(normal(1, 2)), Lin.scalar(0.5))
    chain, x = Chain(*kernels), normal(4, 2)
    assert torch.allclose(chain.collapse().pull(h)[1](x), chain.pull(h)[1](x), atol=1e-12)
    tables = [Finite.of(normal(3, 3).softmax(-1)) for _ in range(3)]
    whole = Chain(*tables).collapse()
    assert torch.allclose(whole.log_p.exp(), tables[0].log_p.exp() @ tables[1].log_p.exp() @ tables[2].log_p.exp())


@pytest.mark.parametrize("structure", ["full", "rank one", "zero block", "zero"])
def test_roots_of_singular_covariances(structure):
    normal = rng(6)
    v = normal(4, 3, 1)
    Q = {
        "full": spread(normal, 3).expand(4, 3, 3),
        "rank one": v @ v.mT,
        "zero block": torch.block_diag(torch.zeros(1, 1), torch.tensor([[2.0, 0.5], [0.5, 1.0]]))
        .double()
        .expand(4, 3, 3),
        "zero": torch.zeros(4, 3, 3, dtype=torch.float64),
    }[structure]
    S = semidefinite_cholesky(Q)
    assert torch.allclose(S @ S.mT, Q, atol=1e-12) and torch.equal(S, S.tril())
    mixed = torch.cat([Q, torch.eye(3, dtype=torch.float64).expand(1, 3, 3)])
    S = semidefinite_cholesky(mixed)
    assert torch.allclose(S @ S.mT, mixed, atol=1e-12)


def test_gradients_through_every_verb():
    """gradcheck of evidence, guided states, weights and densities with respect to every parameter.

    The last link's noise is singular by structure (its first coordinate has none)."""
    normal = rng(7)
    prior = (normal(2), normal(2, 2))
    y = normal(2, 1, 1)
    z = [normal(1, 2) for _ in range(2)]

    def run(A, b, L, R, m, V, s):
        start = Gaussian(m, V @ V.mT)
        noisy = LinearGaussian(A, b, L @ L.mT)
        rough = LinearGaussian(A.mT, 0.0, torch.diag(torch.stack([torch.zeros_like(s), s * s])))
        see = [
            Factor(Quadratic.observe(v, Lin.dense(torch.ones(1, 2, dtype=torch.float64)), Lin.scalar(R * R))) for v in y
        ]
        chain = Chain(noisy, see[0], rough, see[1])
        residual, h = chain.pull()
        post, log_evidence = start.fuse(h)
        x, _ = chain.guide(residual, post.mean, [z[0], None, z[1], None])
        last = residual.push(post)
        return log_evidence, x, last.mean, last.covariance, noisy.log_prob(post.mean, x), chain.push(start).mean

    inputs = (normal(2, 2), normal(2), normal(2, 2), torch.tensor(0.7).double(), *prior, torch.tensor(0.4).double())
    assert torch.autograd.gradcheck(run, tuple(v.requires_grad_() for v in inputs))


def test_gradients_through_finite_kernels():
    normal = rng(8)
    forbidden = torch.tensor([[0.0, -torch.inf, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)

    def run(logits, start, emission):
        kernel = Finite(torch.log_softmax(logits + forbidden, -1))
        chain = Chain(*[k for v in emission for k in (kernel, Factor(Table(v[None])))])
        residual, h = chain.pull()
        post, log_evidence = Categorical(torch.log_softmax(start, -1)[None]).fuse(h)
        return log_evidence, residual.push(post).log_p.exp()

    assert torch.autograd.gradcheck(run, tuple(v.requires_grad_() for v in (normal(3, 3), normal(3), normal(4, 3))))


def test_a_dead_state_does_not_poison_the_others():
    """State 0 cannot lead to what was seen: its guided row is some law, and marginals stay numbers."""
    kernel = Finite.of(torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64))
    seen = Factor(Table(torch.tensor([[-torch.inf, 0.0]], dtype=torch.float64)))
    chain = kernel >> seen
    residual, h = chain.pull()
    post, log_evidence = Categorical.of(torch.tensor([0.25, 0.75], dtype=torch.float64)).fuse(h)
    assert abs(float(log_evidence.exp()) - 0.375) < 1e-15
    assert residual.push(post).log_p.exp().tolist() == [[0.0, 1.0]]


def test_kernels_know_their_parameters():
    A = torch.eye(2, dtype=torch.float64, requires_grad=True)
    net = torch.nn.Linear(2, 2)
    chain = LinearGaussian(A, 0.0, 1.0) >> NonLinearGaussian(net, 1.0, aux=LinearGaussian(A, 0.0, 1.0))
    assert {id(p) for p in chain.parameters()} == {id(A), *map(id, net.parameters())}
    assert len(list(chain.parameters())) == 3


def test_draws_of_a_kernel_that_changes_the_number_of_coordinates():
    down = LinearGaussian(torch.ones(1, 3, dtype=torch.float64), 0.0, 0.5) >> LinearGaussian(2.0, 1.0, 0.1)
    y = down.sample(torch.zeros(6, 3, dtype=torch.float64), KeyedNoise(0, 6, dtype=torch.float64))
    assert y.shape == (6, 1) and len(y.unique()) == 6
