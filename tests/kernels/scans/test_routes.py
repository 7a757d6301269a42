"""Which route "auto" takes, and that a compiled route needs its extra and shares work as it says."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from kernels.scans import dense
from kernels.scans.test_finite import chain as finite_chain
from retrodict.core.errors import InputError
from retrodict.kernels.scans import native
from retrodict.kernels.scans.finite import ROUTES as FINITE
from retrodict.kernels.scans.finite import FiniteChain, smooth, viterbi
from retrodict.kernels.scans.finite import choose as finite_choose
from retrodict.kernels.scans.gaussian import ROUTES, GaussianChain, candidates, evidence, filter, observe


@pytest.fixture(params=[True, False], ids=["with numba", "without"])
def extra(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The table as if the extra were there or were not."""
    monkeypatch.setattr(native, "installed", lambda: request.param)
    return request.param


def names(c: GaussianChain, verb: str) -> list[str]:
    return [route.name for route in candidates(c, verb)]


def test_gaussian_table(extra: bool) -> None:
    first = ["numba"] * extra
    short, long = dense.chain(5, singular=False), dense.chain(50, singular=False)
    assert names(short, "smooth") == [*first, "cholesky", "loop"]
    assert names(long, "draw") == [*first, "cholesky", "scan"]
    assert names(long, "filter") == names(long, "messages") == [*first, "scan"]
    large = dense.chain(20, d=33, S=1, singular=False)
    assert names(large, "evidence") == ["cholesky", "loop"]
    traced = GaussianChain(*(x.requires_grad_() for x in dense.chain(50).tensors))
    assert names(traced, "smooth") == ["scan"]
    assert names(traced, "evidence") == [*first, "cholesky", "scan"]
    with torch.no_grad():
        assert names(traced, "smooth") == [*first, "cholesky", "scan"]


def test_singular_chains_pass_on_to_the_next_route(extra: bool) -> None:
    from retrodict.kernels.scans.gaussian import smooth

    if extra:
        pytest.importorskip("numba")
    assert smooth(dense.chain(20)).route == ("numba" if extra else "scan")


def test_finite_table(extra: bool) -> None:
    few, many = finite_chain(5), finite_chain(5000, S=1, shared=True)
    for verb in ("filter", "smooth", "evidence", "viterbi", "draw", "messages"):
        assert finite_choose(few, verb).name == ("numba" if extra else "numpy")
    assert finite_choose(many, "smooth").name == ("numba" if extra else "blocks")
    assert finite_choose(many, "viterbi").name == ("numba" if extra else "numpy")
    traced = FiniteChain(*(x.requires_grad_() for x in finite_chain(70).tensors))
    assert finite_choose(traced, "smooth").name == "blocks"
    assert finite_choose(traced, "evidence").name == ("numba" if extra else "numpy")
    assert finite_choose(FiniteChain(*(x.requires_grad_() for x in few.tensors)), "filter").name == "loop"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "installed", lambda: False)
    with pytest.raises(InputError, match=r"numba is not installed; pip install 'retrodict\[fast\]'"):
        evidence(dense.chain(3), "numba")
    with pytest.raises(InputError, match=r"numba is not installed; pip install 'retrodict\[fast\]'"):
        viterbi(finite_chain(3), "numba")


@pytest.mark.parametrize("threads", [1, 2])
def test_series_are_spread_over_the_threads_of_torch(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's own thread takes a share; nobody goes on before as many have met as torch may use."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    seen, barrier = set(), threading.Barrier(threads)
    out = np.zeros((7, 1))

    def kernel(shared: np.ndarray, own: np.ndarray, out: np.ndarray) -> None:
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            barrier.wait(5)
        out[0] = shared[0] * own[0]

    native.each(kernel, 7, np.array([[2.0]]), np.arange(7.0)[:, None], out)
    assert out[:, 0].tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert len(seen) == threads and threading.get_ident() in seen


def test_many_threads_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    c, k = dense.chain(30, S=5), finite_chain(30, S=5)
    one, other = filter(c, "numba"), smooth(k, "numba")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(filter(c, "numba").mean, one.mean)
    assert torch.equal(smooth(k, "numba").probabilities, other.probabilities)


def test_kernels_are_plain_functions() -> None:
    """Uncompiled, the kernels are the same functions: the compiler adds speed and nothing else."""
    from retrodict.kernels.scans.gaussian import loops

    M = np.array([[0.0, 2.0], [1.0, 3.0]])
    R = np.eye(2)
    eliminate = getattr(loops.eliminate, "py_func", loops.eliminate)
    logdet = eliminate(M.copy(), R)
    assert np.allclose(R, np.linalg.inv(M)) and np.isclose(logdet, np.log(2.0))
    C, S = np.outer([1.0, 2.0, 0.0], [1.0, 2.0, 0.0]), np.empty((3, 3))
    getattr(loops.root, "py_func", loops.root)(C, S)
    assert np.allclose(S @ S.T, C) and np.allclose(S, np.tril(S))


def test_route_names_are_registered() -> None:
    assert set(ROUTES) == {"loop", "scan", "cholesky", "numba"}
    assert set(FINITE) == {"loop", "numpy", "blocks", "scan", "numba", "log"}


@pytest.mark.parametrize("nearly", [0.0, 1e-9])
@pytest.mark.parametrize("route", ["numba", "cholesky"])
def test_settled_matrices_are_copied_without_loss(nearly: float, route: str) -> None:
    """400 equal steps, or steps that differ in the ninth digit and are therefore never copied: the loop's numbers."""
    if route == "numba":
        pytest.importorskip("numba")
    from retrodict.kernels.scans.gaussian import messages
    from retrodict.kernels.scans.gaussian import smooth as smooth_gaussian

    c = dense.chain(400, 3, singular=False, shared=True)
    H = c.H[:, :1] * torch.linspace(1 - nearly, 1, 401, dtype=torch.float64)[None, :, None, None]
    c = GaussianChain(c.m0, c.P0, c.A, c.b, c.Q, H if nearly else c.H[:, :1], c.F, c.c)
    compared = [(smooth_gaussian(c, route), smooth_gaussian(c, "loop"))]
    if route == "numba":
        compared.append((filter(c, route), filter(c, "loop")))  # type: ignore[arg-type]
        for x, y in zip(messages(c, route), messages(c, "loop")):
            assert torch.allclose(x, y, rtol=1e-11, atol=1e-11)
    for a, b in compared:
        assert torch.allclose(a.mean, b.mean, rtol=1e-11, atol=1e-11)
        assert torch.allclose(a.cov, b.cov, rtol=1e-11, atol=1e-13)
        assert torch.allclose(a.log_evidence, b.log_evidence, rtol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_observations_are_potentials(shared: bool) -> None:
    """The potential at a point is the Gaussian density there, whichever way it is computed."""
    normal = dense.normals(3)
    S, N, m, d = 2, 5, 2, 3
    lead = (1, 1) if shared else (S, N)
    u, L, C, x = normal(S, N, m), normal(*lead, m, d), normal(*lead, m, m), normal(S, N, d)
    R = C @ C.mT + 0.1 * torch.eye(m, dtype=torch.float64)
    H, F, c = observe(u, L, R)
    found = c + (F * x).sum(-1) - 0.5 * (x * (H @ x.unsqueeze(-1)).squeeze(-1)).sum(-1)
    known = torch.distributions.MultivariateNormal((L @ x.unsqueeze(-1)).squeeze(-1), R).log_prob(u)
    assert torch.allclose(found, known, rtol=1e-12)
    traced = observe(u.requires_grad_(), L, R)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip((H, F, c), traced))
