"""Trees against dense Gaussians, enumeration, chains and bootstrap draws."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.inference.models import StateSpace
from retrodict.inference.observed import Observed
from retrodict.inference.posterior import condition_model
from retrodict.inference.sde import SDE
from retrodict.inference.tree import Tree
from retrodict.kernels import Categorical, Finite, Gaussian, LinearGaussian, LinearSDE, NonLinearGaussian
from retrodict.kernels.jump import Jump

F64 = torch.float64
STANDARD = Gaussian(torch.zeros(1, 1, dtype=F64), Lin.dense(torch.ones(1, 1, 1, dtype=F64)))


def linear(A: list[list[float]], b: float, Q: float) -> LinearGaussian:
    return LinearGaussian(torch.tensor(A, dtype=F64), torch.tensor([b], dtype=F64), torch.tensor([[Q]], dtype=F64))


SEVEN = [("r", "a", 0.4), ("r", "b", 0.7), ("a", "c", 0.5), ("a", "d", 0.3), ("b", "e", 0.6), ("b", "f", 0.2)]


def condition(model: Tree, data: Observed, **options):
    return condition_model(model, data, "auto", options)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def dense_gaussian(tree: Tree, prior: Gaussian, kernels: dict[int, LinearGaussian], d: int) -> tuple[Tensor, Tensor]:
    """Mean ``(V d,)`` and covariance of all vertices at once, from parent to child."""
    V = len(tree.vertices)
    mean, cov = torch.zeros(V, d, dtype=F64), torch.zeros(V, d, V, d, dtype=F64)
    mean[0], cov[0, :, 0] = prior.mean[0], prior.cov.value.reshape(d, d)
    for i in range(1, V):
        parents = tree.parents[i]
        A = kernels[i].A.value.reshape(d, len(parents), d)
        mean[i] = torch.einsum("apb,pb->a", A, mean[parents]) + kernels[i].b
        cross = torch.einsum("apb,pbvc->avc", A, cov[parents])
        cov[i], cov[:, :, i] = cross, cross.permute(1, 2, 0)
        cov[i, :, i] = torch.einsum("apb,pbqc,eqc->ae", A, cov[parents][:, :, parents], A) + kernels[i].Q.value.reshape(
            d, d
        )
    return mean.reshape(-1), cov.reshape(V * d, V * d)


def dense_posterior(
    mean: Tensor, cov: Tensor, rows: list[tuple[int, Tensor]], y: list[Tensor], R: Tensor, d: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Log evidence, posterior mean and covariance of everything; rows are (vertex, operator)."""
    L = torch.zeros(sum(len(op) for _, op in rows), len(mean), dtype=F64)
    at = 0
    for vertex, op in rows:
        L[at : at + len(op), vertex * d : (vertex + 1) * d] = op
        at += len(op)
    value = torch.cat(y)
    spread = L @ cov @ L.mT + R
    evidence = torch.distributions.MultivariateNormal(L @ mean, spread).log_prob(value)
    gain = torch.linalg.solve(spread, L @ cov).mT
    return evidence, mean + gain @ (value - L @ mean), cov - gain @ L @ cov


@pytest.mark.parametrize("noise", [0.3, 0.0])
def test_seven_vertices_of_an_ou_tree_equal_a_dense_gaussian(noise: float) -> None:
    """Exact transitions over branch lengths, a missing coordinate, an operator; with noise 0 the leaves are exact."""
    d = 2
    ou = LinearSDE(torch.tensor([[-0.8, 0.3], [0.1, -0.5]], dtype=F64), torch.tensor([0.2, -0.1], dtype=F64), 0.6)
    prior = Gaussian(random(0, 1, d), Lin.dense(torch.tensor([[[0.5, 0.1], [0.1, 0.4]]], dtype=F64)))
    tree = Tree(SEVEN, ou, prior)
    kernels = {i: tree.kernel(tree.parents[i][0], i) for i in range(1, 7)}
    mean, cov = dense_gaussian(tree, prior, kernels, d)
    op = torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=F64)
    y = random(1, 4, 2)
    if noise:
        y[1, 0] = float("nan")
    seen = ~torch.isnan(y)
    rows = [(tree.number[name], op[seen[j]]) for j, name in enumerate("cdef")]
    values = [y[j][seen[j]] for j in range(4)]
    R = noise**2 * torch.eye(int(seen.sum()), dtype=F64)
    evidence, post_mean, post_cov = dense_posterior(mean, cov, rows, values, R, d)
    found = condition(tree, Observed(y[None], operator=op, noise=noise))
    assert found.exact
    assert abs(float(found.log_evidence - evidence)) < 1e-9
    laws = found.smooth()
    torch.testing.assert_close(laws.mean.reshape(-1), post_mean, rtol=1e-9, atol=1e-9)
    blocks = post_cov.reshape(7, d, 7, d)
    for i in range(7):
        torch.testing.assert_close(laws.covariance[0, i], blocks[i, :, i], rtol=1e-8, atol=1e-9)
    assert laws.times[0].tolist() == pytest.approx([0, 0.4, 0.7, 0.9, 0.7, 1.3, 0.9])
    torch.testing.assert_close(found.of("e", laws)["mean"][0], post_mean.reshape(7, d)[tree.number["e"]])


def test_draws_of_an_exact_tree_have_its_covariance() -> None:
    """Covariance across branches of 20,000 draws, entry by entry at 5 standard errors (196 entries: 1e-4)."""
    d = 2
    tree = Tree(
        SEVEN,
        LinearSDE(-0.5 * torch.eye(2, dtype=F64), 0.0, 0.6),
        Gaussian(random(0, 1, d), Lin.dense(torch.eye(2, dtype=F64)[None])),
    )
    kernels = {i: tree.kernel(tree.parents[i][0], i) for i in range(1, 7)}
    mean, cov = dense_gaussian(tree, tree.prior, kernels, d)
    y = random(1, 4, 2)
    op = torch.eye(2, dtype=F64)
    _, m, P = dense_posterior(
        mean, cov, [(tree.number[n], op) for n in "cdef"], list(y), 0.09 * torch.eye(8, dtype=F64), d
    )
    paths = condition(tree, Observed(y[None], noise=0.3)).sample(20_000)
    flat = paths.x[:, 0].reshape(20_000, -1)
    v = P.diagonal()
    assert ((flat.mean(0) - m).abs() < 5 * (v / 20_000).sqrt()).all()
    assert ((torch.cov(flat.T) - P).abs() < 5 * ((P**2 + v[:, None] * v) / 20_000).sqrt()).all()
    assert float(paths.log_weights.std()) < 1e-9


def test_a_path_without_branches_is_a_chain_and_order_does_not_matter() -> None:
    step = LinearGaussian(
        torch.tensor([[0.8]], dtype=F64), torch.tensor([0.1], dtype=F64), torch.tensor([[0.3]], dtype=F64)
    )
    prior = STANDARD
    edges = [(0, 1), (1, 2), (2, 3)]
    y = torch.tensor([[[0.5], [-0.2]]], dtype=F64)
    posts = [condition(Tree(e, step, prior), Observed(y, noise=0.2), at=[1, 3]) for e in (edges, edges[::-1])]
    nan = float("nan")
    whole = Observed(torch.tensor([[nan], [0.5], [nan], [-0.2]], dtype=F64), noise=0.2)
    chain = condition_model(StateSpace(prior, step), whole, "exact")
    for post in posts:
        torch.testing.assert_close(post.log_evidence, chain.log_evidence, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(posts[0].smooth().mean, chain.smooth().mean, rtol=1e-9, atol=1e-9)


# --- non-linear edges -------------------------------------------------------------------------------------------


def bootstrap(tree_edges: list[tuple], drift, n: int, y: Tensor, sd: float, steps: int) -> tuple[float, float]:
    """Brute force: simulate the tree from the root and average the likelihood of the leaves."""
    g = torch.Generator().manual_seed(11)
    x = {"r": torch.full((n,), 0.3, dtype=F64)}
    for parent, child, length in tree_edges:
        state, dt = x[parent], length / steps
        for _ in range(steps):
            state = state + drift(state) * dt + 0.7 * math.sqrt(dt) * torch.randn(n, generator=g, dtype=F64)
        x[child] = state
    inner = {edge[0] for edge in tree_edges}
    leaves = [edge[1] for edge in tree_edges if edge[1] not in inner]
    w = sum(torch.distributions.Normal(x[leaf], sd).log_prob(v) for leaf, v in zip(leaves, y)).exp()
    return float(w.mean()), float(w.std() / math.sqrt(n))


def test_a_tree_with_tanh_drift_equals_a_bootstrap_of_a_hundred_times_the_draws() -> None:
    """Within 4 joint standard errors, and five times the effective share of draws."""
    model = Tree(SEVEN, SDE(lambda x, t: 3 * torch.tanh(2 * x) - x, 0.7))
    y = torch.tensor([1.5, 1.2, 1.8, 1.3], dtype=F64)
    truth, bar = bootstrap(SEVEN, lambda x: 3 * torch.tanh(2 * x) - x, 400_000, y, 0.3, 10)
    found = condition(model, Observed(y.reshape(1, 4, 1), noise=0.3), start=[0.3], steps=10, particles=4000)
    error = float(found.log_evidence.exp()) - truth
    own = float(found.log_evidence_se) * truth
    assert own < 0.05 * truth and bar < 0.05 * truth
    assert abs(error) < 4 * math.hypot(own, bar)
    assert float(found.ess) / 4000 > 5 * (truth / bar) ** 2 / 400_000


def test_nonlinear_kernels_and_counts_on_a_tree() -> None:
    """One non-linear kernel for all edges, Poisson leaves: evidence against 400,000 forward draws, 4 s.e."""
    step = NonLinearGaussian(lambda x: torch.sin(2 * x), covariance=torch.tensor([[0.2]], dtype=F64))
    edges = [("r", "a"), ("r", "b"), ("a", "c"), ("a", "d")]
    tree = Tree(edges, step, observation=lambda x: torch.distributions.Poisson(x.exp()))
    counts = torch.tensor([[[0.0], [2.0], [1.0]]], dtype=F64)
    g = torch.Generator().manual_seed(0)
    n = 400_000
    x = {"r": torch.full((n,), 0.4, dtype=F64)}
    for parent, child in edges:
        x[child] = torch.sin(2 * x[parent]) + math.sqrt(0.2) * torch.randn(n, generator=g, dtype=F64)
    w = sum(torch.distributions.Poisson(x[v].exp()).log_prob(c) for v, c in zip("bcd", counts[0, :, 0])).exp()
    found = condition(tree, Observed(counts), start=[0.4], particles=4000)
    bar = math.hypot(float(w.std()) / math.sqrt(n), float(found.log_evidence_se) * float(w.mean()))
    assert abs(float(found.log_evidence.exp() - w.mean())) < 4 * bar < 0.1 * float(w.mean())


# --- finite states ----------------------------------------------------------------------------------------------


def stochastic(seed: int, *shape: int) -> Finite:
    return Finite.of(torch.softmax(random(seed, *shape), -1))


def everything(tree: Tree, prior: Categorical, K: int) -> tuple[Tensor, Tensor]:
    """All joint states ``(K^V, V)`` and their log probabilities."""
    V = len(tree.vertices)
    x = torch.tensor(list(itertools.product(range(K), repeat=V)))
    total = prior.log_p[0, x[:, 0]]
    for i in range(1, V):
        total = total + tree.kernel(tree.parents[i][0], i).log_p[tuple(x[:, p] for p in (*tree.parents[i], i))]
    return x, total


def test_a_substitution_model_on_a_tree_equals_enumeration() -> None:
    """Jukes-Cantor over branch lengths, one leaf missing: evidence, marginals and draws."""
    K = 4
    rates = 0.5 * (torch.ones(K, K, dtype=F64) - K * torch.eye(K, dtype=F64))

    class JukesCantor:
        def kernel(self, s: float, t: float) -> Finite:
            return Jump(rates, t - s)

    prior = Categorical(torch.log_softmax(random(0, 1, K), -1))
    tree = Tree(SEVEN[:4] + SEVEN[4:5], JukesCantor(), prior)  # six vertices: c, d, e are leaves
    data = Observed(torch.tensor([[2, -1, 0]]))
    x, joint = everything(tree, prior, K)
    keep = (x[:, tree.number["c"]] == 2) & (x[:, tree.number["e"]] == 0)
    evidence = torch.logsumexp(joint[keep], 0)
    found = condition(tree, data)
    assert found.exact and abs(float(found.log_evidence - evidence)) < 1e-12
    w = torch.softmax(joint[keep], 0)
    marginals = (w[:, None, None] * torch.nn.functional.one_hot(x[keep], K)).sum(0)
    torch.testing.assert_close(found.smooth().probabilities[0], marginals, rtol=1e-10, atol=1e-12)
    # draws: the probability that `sample` gives to every joint state is the posterior
    law = found.log_law(x[:, None])[:, 0].exp()
    torch.testing.assert_close(law, torch.where(keep, (joint - evidence).exp(), 0.0), rtol=1e-9, atol=1e-12)
    drawn = found.sample(20_000).x[:, 0]
    shares = torch.nn.functional.one_hot(drawn, K).double().mean(0)
    assert ((shares - marginals).abs() < 5 * (marginals * (1 - marginals) / 20_000).clamp_min(0).sqrt() + 1e-12).all()


def test_the_diamond_is_exact_in_expectation() -> None:
    """x0 -> x1, x2 -> x3: the sum over all draws of probability times weight is the evidence, to 1e-12."""
    K = 3
    prior = Categorical(torch.log_softmax(random(0, 1, K), -1))
    kernels = {1: stochastic(1, K, K), 2: stochastic(2, K, K), 3: stochastic(3, K, K, K), 4: stochastic(4, K, K)}
    tree = Tree([(0, 1), (0, 2), (1, 3), (2, 3), (3, 4)], kernels, prior)
    x, joint = everything(tree, prior, K)
    found = condition(tree, Observed(torch.tensor([[1]])), particles=20_000)
    law, weight = found.log_law(x[:, None])[:, 0], found.log_weight(x[:, None])[:, 0]
    keep = x[:, 4] == 1
    assert abs(float(law.exp().sum()) - 1) < 1e-12
    assert abs(float((law + weight).exp().sum() - joint[keep].exp().sum())) < 1e-12
    torch.testing.assert_close((law + weight)[keep], joint[keep], rtol=1e-10, atol=1e-10)
    assert not found.exact
    assert abs(float(found.log_evidence.exp() / joint[keep].exp().sum()) - 1) < 4 * float(found.log_evidence_se)


def test_a_gaussian_diamond() -> None:
    """Two parents side by side: the evidence estimate within 4 s.e. of the dense Gaussian, and weighted means too."""
    d = 1
    one = linear([[0.7]], 0.0, 0.4)
    two = linear([[0.5, -0.6]], 0.1, 0.5)
    prior = STANDARD
    tree = Tree([(0, 1), (0, 2), (1, 3), (2, 3)], {1: one, 2: one, 3: two}, prior)
    mean, cov = dense_gaussian(tree, prior, {1: one, 2: one, 3: two}, d)
    y = torch.tensor([[[0.8]]], dtype=F64)
    evidence, m, _ = dense_posterior(
        mean, cov, [(3, torch.eye(1, dtype=F64))], [y[0, 0]], 0.04 * torch.eye(1, dtype=F64), d
    )
    found = condition(tree, Observed(y, noise=0.2), particles=20_000)
    assert abs(float(found.log_evidence - evidence)) < 4 * float(found.log_evidence_se)
    laws = found.smooth()
    bars = laws.std[0, :, 0] / float(found.ess) ** 0.5
    assert ((laws.mean[0, :, 0] - m).abs() < 4.5 * bars).all()


# --- structure and errors ---------------------------------------------------------------------------------------


def test_a_batch_of_series_equals_one_by_one() -> None:
    tree = Tree(
        SEVEN,
        LinearSDE(-0.5, 0.0, 0.6),
        STANDARD,
    )
    y = random(3, 3, 4, 1)
    both = condition(tree, Observed(y, noise=0.3))
    for s in range(3):
        alone = condition(tree, Observed(y[s : s + 1], noise=0.3))
        torch.testing.assert_close(alone.log_evidence, both.log_evidence[s : s + 1])
        torch.testing.assert_close(alone.smooth().mean, both.smooth().mean[s : s + 1])


def test_bad_input_says_what_to_do() -> None:
    step = LinearGaussian(0.8, 0.0, 0.3)
    prior = STANDARD
    data = Observed(torch.zeros(1, 1, 1, dtype=F64), noise=0.1)
    with pytest.raises(InputError, match="one root"):
        Tree([(0, 1), (2, 1)], step)
    with pytest.raises(InputError, match="circle"):
        Tree([(0, 1), (1, 2), (2, 3), (3, 1)], step)
    with pytest.raises(InputError, match="parent, child"):
        Tree([(0,)], step)
    with pytest.raises(InputError, match="at least 0"):
        Tree([(0, 1, -1.0)], step)
    with pytest.raises(InputError, match="start=x"):
        condition(Tree([(0, 1)], step), data)
    with pytest.raises(InputError, match="1 rows and there are 2 leaves"):
        condition(Tree([(0, 1), (0, 2)], step, prior), data)
    with pytest.raises(InputError, match="no vertex 'x'"):
        condition(Tree([(0, 1)], step, prior), data, at=["x"])
    with pytest.raises(InputError, match="no length"):
        condition(Tree([(0, 1)], LinearSDE(-1.0), prior), data)
    with pytest.raises(InputError, match="no kernel for the vertex"):
        condition(Tree([(0, 1)], {2: step}, prior), data)
    with pytest.raises(InputError, match="probability zero"):
        swap = Finite.of(torch.eye(2, dtype=F64))
        condition(
            Tree([(0, 1)], swap, Categorical(torch.tensor([[1.0, 0.0]], dtype=F64).log())),
            Observed(torch.tensor([[1]])),
        )
