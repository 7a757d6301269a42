"""Finite chains, every route, against enumeration of all paths."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.kernels.scans import finite
from retrodict.kernels.scans.finite import FiniteChain

LENGTHS = (0, 1, 2, 3, 5, 6)
K = 3
F64 = torch.float64


def chain(
    n: int, seed: int = 0, S: int = 2, zeros: bool = False, shared: bool = False, wide: float = 1.0, states: int = K
) -> FiniteChain:
    """A random chain; ``zeros``: states only ever go up; ``wide``: standard deviation of the log potentials."""
    generator = torch.Generator().manual_seed(seed)
    P = torch.rand(1 if shared else S, 1 if shared else n, states, states, generator=generator, dtype=F64) + 0.05
    P = P.triu() if zeros else P
    p0 = torch.rand(S, states, generator=generator, dtype=F64)
    log_g = wide * torch.randn(S, n + 1, states, generator=generator, dtype=F64)
    log_g[:, n // 2] = 0  # nothing seen
    return FiniteChain(p0 / p0.sum(-1, keepdim=True), P / P.sum(-1, keepdim=True), log_g)


def enumerate_paths(c: FiniteChain, i: int) -> tuple[Tensor, Tensor]:
    """All paths of series i ``(paths, n+1)`` and their log joint probabilities."""
    paths = torch.tensor(list(itertools.product(range(c.states), repeat=c.n + 1)))
    log_p = c.p0.expand(c.series, -1)[i, paths[:, 0]].log() + c.log_g[i, 0, paths[:, 0]]
    P = c.P.expand(c.series, -1, -1, -1)[i]
    for k in range(1, c.n + 1):
        step = P[min(k - 1, len(P) - 1)]
        log_p = log_p + step[paths[:, k - 1], paths[:, k]].log() + c.log_g[i, k, paths[:, k]]
    return paths, log_p


def marginals(paths: Tensor, log_p: Tensor, states: int) -> Tensor:
    one_hot = torch.nn.functional.one_hot(paths, states).to(F64)
    return torch.einsum("p,pks->ks", torch.softmax(log_p, 0), one_hot)


def close(a: Tensor, b: Tensor, tol: float = 1e-11) -> bool:
    return torch.allclose(a, b, rtol=tol, atol=tol)


@pytest.fixture(params=list(finite.ROUTES))
def route(request: pytest.FixtureRequest) -> str:
    return request.param


def able(c: FiniteChain, route: str, verb: str) -> None:
    reason = finite.ROUTES[route].refuses(c, verb)
    if reason:
        pytest.skip(reason)


CASES = [(False, False, 1.0), (True, False, 1.0), (False, True, 1.0), (True, True, 300.0), (False, False, 2000.0)]


@pytest.mark.parametrize(("zeros", "shared", "wide"), CASES)
@pytest.mark.parametrize("n", LENGTHS)
def test_everything_equals_enumeration(route: str, n: int, zeros: bool, shared: bool, wide: float) -> None:
    c = chain(n, n, zeros=zeros, shared=shared, wide=wide)
    able(c, route, "smooth")
    each, total = finite.smooth(c, route, "each"), finite.smooth(c, route, "sum")
    assert each.pairs is not None and total.pairs is not None and each.pairs.shape == (2, n, K, K)
    assert wide > 1 or each.route == route
    filtered, best, h = finite.filter(c, route), finite.viterbi(c, route), finite.messages(c, route)
    for i in range(2):
        paths, log_p = enumerate_paths(c, i)
        log_evidence = torch.logsumexp(log_p, 0)
        assert close(finite.evidence(c, route)[i], log_evidence)
        assert close(each.log_evidence[i], log_evidence) and close(filtered.log_evidence[i], log_evidence)
        assert close(each.probabilities[i], marginals(paths, log_p, K))
        assert close(total.pairs[i], each.pairs[i].sum(0))
        for k in range(n):
            code = marginals(paths[:, k : k + 1] * K + paths[:, k + 1 : k + 2], log_p, K * K)
            assert close(each.pairs[i, k], code.reshape(K, K))
        assert bool((best[0][i] == paths[log_p.argmax()]).all()) and close(best[1][i], log_p.max())
        assert close(torch.logsumexp(h[i, 0] + c.p0.expand(2, -1)[i].log(), 0), log_evidence)
        if n > 1:
            past = FiniteChain(c.p0, c.P[:, : n - 1] if c.P.shape[1] > 1 else c.P, c.log_g[:, :n])
            paths, log_p = enumerate_paths(past, i)
            assert close(filtered.probabilities[i, n - 1], marginals(paths, log_p, K)[-1])


@pytest.mark.parametrize("n", [1, 4])
def test_messages_are_expectations_of_the_future(route: str, n: int) -> None:
    """exp h_k(x) = E[product of potentials at k..n | x_k = x], for every node, constants included."""
    c = chain(n, 40 + n, zeros=True)
    able(c, route, "messages")
    h = finite.messages(c, route)
    for k in range(n + 1):
        for state in range(K):
            start = torch.nn.functional.one_hot(torch.tensor([state]), K).to(F64)
            later = FiniteChain(start.expand(2, -1), c.P[:, k:], c.log_g[:, k:])
            for i in range(2):
                assert close(h[i, k, state], torch.logsumexp(enumerate_paths(later, i)[1], 0))


def test_draws_follow_the_conditional_laws(route: str) -> None:
    """A grid of uniforms visits every path in proportion to its probability, up to the grid's resolution."""
    c = chain(1, 5, S=1)
    able(c, route, "draw")
    m = 400
    grid = (torch.arange(m, dtype=F64) + 0.5) / m
    u = torch.cartesian_prod(grid, grid).unsqueeze(1)
    x = finite.draw(c, len(u), u, route)
    paths, log_p = enumerate_paths(c, 0)
    share = torch.stack([(x[:, 0] == path).all(-1).to(F64).mean() for path in paths])
    assert float((share - torch.softmax(log_p, 0)).abs().max()) < 2 / m


@pytest.mark.parametrize("wide", [1.0, 2000.0])
def test_routes_turn_equal_uniforms_into_equal_paths(route: str, wide: float) -> None:
    c = chain(40, 6, zeros=True, wide=wide)
    able(c, route, "draw")
    u = torch.rand(7, 2, 41, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert bool((finite.draw(c, 7, u, route) == finite.draw(c, 7, u, "log")).all())
    slots = finite.draw(c, 2, KeyedNoise(1, [4, 2]), route)
    assert bool((slots == finite.draw(c, 5, 1, route)[[4, 2]]).all())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n", [0, 4])
def test_gradient_of_the_evidence(route: str, n: int, shared: bool) -> None:
    c = chain(n, 7, shared=shared)
    able(c, route, "evidence")
    leaves = [x.clone().requires_grad_() for x in c.tensors]
    f = lambda *x: finite.evidence(FiniteChain(*x), route)  # noqa: E731
    assert torch.autograd.gradcheck(f, leaves)
    assert n or torch.autograd.gradgradcheck(f, leaves)


def test_a_long_chain_keeps_its_digits(route: str) -> None:
    """2,000 steps of potentials around e^-400: log evidence by the route and by logs, to 1e-12 relative."""
    c = chain(2000, 8, states=4, shared=True)
    c = FiniteChain(c.p0, c.P, c.log_g * 3 - 400)
    able(c, route, "smooth")
    s, by_logs = finite.smooth(c, route), finite.smooth(c, "log")
    assert s.route == route
    assert close(s.log_evidence, by_logs.log_evidence, 1e-12) and close(s.probabilities, by_logs.probabilities)


def test_what_underflows_goes_to_the_log_recursion(route: str) -> None:
    """State 0 loses e^-2000 against state 1 and is proved right later: probabilities alone would have lost it."""
    P = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=F64)[None, None]
    log_g = torch.zeros(1, 40, 3, dtype=F64)
    log_g[0, 10] = torch.tensor([-2000.0, 0.0, -2000.0])
    log_g[0, 20] = torch.tensor([0.0, -3000.0, -3000.0])
    c = FiniteChain(torch.tensor([[0.4, 0.4, 0.2]], dtype=F64), P, log_g)
    able(c, route, "smooth")
    for k in range(21):  # up to node 20 the only path that counts stays in state 0
        assert close(finite.smooth(c, route).probabilities[0, k, 0], torch.ones((), dtype=F64))
    assert close(finite.evidence(c, route), torch.tensor([math.log(0.4) + 20 * math.log(0.5) - 2000.0], dtype=F64))


def test_an_impossible_observation_is_named(route: str) -> None:
    c = chain(30, 9, S=3, zeros=True)
    log_g = c.log_g.clone()
    log_g[1, 11], log_g[1, 17] = -torch.inf, -torch.inf
    log_g[1, 11, 2], log_g[1, 17, 1] = 0.0, 0.0  # up to state 2, then back: never
    c = FiniteChain(c.p0, c.P, log_g)
    able(c, route, "smooth")
    for f in (finite.filter, finite.smooth, finite.evidence, finite.viterbi, lambda *a: finite.draw(a[0], 2, 0, a[1])):
        with pytest.raises(InputError, match="series 1: what was observed at time index 17 has probability zero"):
            f(c, route)


def test_bad_input_says_what_is_wrong() -> None:
    c = chain(4, 0)
    with pytest.raises(InputError, match=r"FiniteChain\.P has shape \(2, 3, 3, 3\); \(2\|1, 4\|1, 3, 3\)"):
        FiniteChain(c.p0, c.P[:, 1:], c.log_g)
    with pytest.raises(InputError, match=r"FiniteChain\.p0 has 2 axes"):
        FiniteChain(c.p0[0], c.P, c.log_g)
    with pytest.raises(InputTypeError, match=r"FiniteChain\.P is a tensor"):
        FiniteChain(c.p0, [[1.0]], c.log_g)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pairs is None, 'each' or 'sum'"):
        finite.smooth(c, pairs="all")
    with pytest.raises(InputError, match="log evidence is NaN"):
        finite.smooth(FiniteChain(c.p0, c.P, c.log_g * torch.nan))


def test_parameters_that_want_gradients_may_be_used_without(route: str) -> None:
    c = chain(5, 14)
    leaves = FiniteChain(*(x.clone().requires_grad_() for x in c.tensors))
    able(c, route, "smooth")
    with torch.no_grad():
        found = finite.smooth(leaves, route, "sum").probabilities, finite.smooth(c, route).probabilities
        torch.testing.assert_close(*found, rtol=1e-13, atol=0.0)
        assert torch.equal(finite.draw(leaves, 2, 0, route), finite.draw(c, 2, 0, route))
        assert torch.equal(finite.viterbi(leaves, route)[0], finite.viterbi(c, route)[0])
    assert torch.equal(finite.draw(leaves, 2, 0, route), finite.draw(c, 2, 0, route))
