"""Linear maps of every kind against the dense matrices that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin

D, BATCH = 6, 4
KINDS = ["scalar", "diagonal", "spectral", "dense"]


def make(kind: str, seed: int, batched: bool) -> Lin:
    """A positive definite map of the kind on vectors of length D."""
    g = torch.Generator().manual_seed(seed)
    lead = (BATCH,) if batched else ()
    if kind == "dense":
        root = torch.randn(*lead, D, D, generator=g, dtype=torch.float64)
        return Lin.dense(root @ root.mT + 0.5 * torch.eye(D, dtype=torch.float64))
    shape = lead if kind == "scalar" else (*lead, D)
    value = torch.rand(shape, generator=g, dtype=torch.float64) + 0.2
    if kind == "spectral":  # an even transfer function, so that real maps to real
        return Lin.spectral((value + value[..., (-torch.arange(D)) % D]) / 2)
    return Lin(value, kind, 0 if kind == "scalar" else 1)


def dense(a: Lin) -> Tensor:
    """The matrices ``(BATCH, D, D)`` of a map, from its action on the basis."""
    columns = [a.mv(e.expand(BATCH, D)) for e in torch.eye(D, dtype=torch.float64)]
    return torch.stack(columns, -1)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_one_map(kind, batched):
    a = make(kind, 0, batched)
    A = dense(a)
    x = torch.randn(BATCH, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    assert close(a(x), (A @ x.unsqueeze(-1)).squeeze(-1))
    assert close(dense(a.inv()), torch.linalg.inv(A))
    assert close(a.solve(x), torch.linalg.solve(A, x))
    assert close(dense(a.sqrt()) @ dense(a.sqrt()), A)
    assert close(dense(a.sqrt()), dense(a.sqrt()).mT)
    assert close(dense(a.T), A.mT)
    assert close(dense(-a), -A)
    assert close(dense(a.scale(2.5)), 2.5 * A)
    assert close(dense(a.symmetric()), (A + A.mT) / 2)
    assert close(a.logdet(D).expand(BATCH), torch.logdet(A))
    assert close(a.trace(D).expand(BATCH), A.diagonal(dim1=-2, dim2=-1).sum(-1))
    assert a.to(torch.float32).mv(x.float()).dtype == torch.float32


@pytest.mark.parametrize("batches", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kinds", [(a, b) for a in KINDS for b in KINDS])
def test_two_maps(kinds, batches):
    a, b = make(kinds[0], 1, batches[0]), make(kinds[1], 2, batches[1])
    if "spectral" in kinds and set(kinds) & {"diagonal", "dense"}:
        for combine in (lambda: a + b, lambda: a @ b):
            with pytest.raises(InputError, match=r"do(es)? not combine"):
                combine()
        return
    assert close(dense(a + b), dense(a) + dense(b))
    assert close(dense(a - b), dense(a) - dense(b))
    assert close(dense(a @ b), dense(a) @ dense(b))


def test_numbers_and_matrices_become_maps():
    x = torch.ones(2, 3, dtype=torch.float64)
    assert Lin.of(2.0).mv(x).equal(2 * x)
    assert Lin.of(torch.eye(3, dtype=torch.float64) * 3).mv(x).equal(3 * x)
    kept = Lin.scalar(1.0)
    assert Lin.of(kept) is kept


def test_maps_act_on_images():
    """A scalar a sample, one number a pixel, and a blur by its transfer function, on (batch, C, H, W)."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 4, generator=g, dtype=torch.float64)
    per_sample = torch.tensor([2.0, -1.0], dtype=torch.float64)
    assert Lin.scalar(per_sample).mv(x).equal(per_sample[:, None, None, None] * x)
    mask = torch.rand(4, 4, generator=g, dtype=torch.float64)
    assert Lin.diagonal(mask, event=2).mv(x).equal(mask * x)
    both = Lin.scalar(per_sample) @ Lin.diagonal(mask, event=2)
    assert close(both.mv(x), per_sample[:, None, None, None] * mask * x)
    # the transfer function of the circular mean over a row of neighbours
    k = torch.fft.fftfreq(4, dtype=torch.float64) * 2 * torch.pi
    blur = Lin.spectral(((1 + 2 * torch.cos(k)) / 3).expand(4, 4), event=2)
    assert close(blur.mv(x), (x + x.roll(1, -1) + x.roll(-1, -1)) / 3)
    size = 3 * 4 * 4  # the determinant counts every channel
    assert close(Lin.diagonal(mask, event=2).logdet(size), 3 * mask.log().sum())
    assert close(Lin.diagonal(mask, event=2).trace(size), 3 * mask.sum())


def test_rectangular_maps():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((2, 5), (5, 3)))
    x = torch.randn(4, 3, generator=g, dtype=torch.float64)
    assert close(Lin.dense(b).T.mv(x @ b.T), x @ b.T @ b)
    assert close((Lin.dense(a) @ Lin.dense(b)).T.value, (a @ b).T)
    assert close((Lin.dense(a) @ Lin.dense(b)).mv(x), x @ b.T @ a.T)
    with pytest.raises(InputError, match=r"maps do not chain: \(2, 5\) after \(2, 5\)"):
        Lin.dense(a) @ Lin.dense(a)
    with pytest.raises(InputError, match="give a matrix"):
        Lin.scalar(1.0) + Lin.dense(a)


def test_the_root_of_a_singular_map():
    v = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    rank_one = Lin.dense(torch.outer(v, v))
    root = rank_one.sqrt().value
    assert close(root @ root, rank_one.value)
