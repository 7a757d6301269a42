"""The generic scan against a plain loop, for products that do not commute."""

from __future__ import annotations

import pytest
import torch

from retrodict.kernels.scans import affine, prefix, suffix

LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 100)
F64 = torch.float64


def product(first, second):
    """Matrix product of the first parts; the second parts ride along (an affine map)."""
    (A, a), (B, b) = first, second
    return A @ B, a @ B + b


def elements(n: int, dim: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    A = torch.randn(n, 2, 2, generator=generator, dtype=F64) / 2
    a = torch.randn(n, 1, 2, generator=generator, dtype=F64)
    return (A, a) if dim == 0 else (A[None], a[None])


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("n", LENGTHS)
def test_scan_equals_loop(n: int, dim: int) -> None:
    e = elements(n, dim)
    flat = [x if dim == 0 else x[0] for x in e]
    forward, backward = [(flat[0][0], flat[1][0])], [(flat[0][-1], flat[1][-1])]
    for k in range(1, n):
        forward.append(product(forward[-1], (flat[0][k], flat[1][k])))
        backward.append(product((flat[0][n - 1 - k], flat[1][n - 1 - k]), backward[-1]))
    for got, want in ((prefix(product, e, dim), forward), (suffix(product, e, dim), backward[::-1])):
        for x, y in zip(got, zip(*want)):
            assert torch.allclose(x if dim == 0 else x[0], torch.stack(y), rtol=1e-12, atol=1e-12)


def test_scan_makes_few_calls() -> None:
    """About 2 log2(n) calls and 2n products: that is what it is for."""
    calls, products = 0, 0

    def counting(first, second):
        nonlocal calls, products
        calls, products = calls + 1, products + len(first[0])
        return (first[0] + second[0],)

    out = prefix(counting, (torch.ones(1000, dtype=F64),), 0)[0]
    assert torch.equal(out, torch.arange(1, 1001, dtype=F64))
    assert calls <= 20 and products <= 2000


def test_scan_is_differentiable() -> None:
    A, a = (x.requires_grad_() for x in elements(5, 0))
    assert torch.autograd.gradcheck(lambda *e: prefix(product, e, 0), (A, a))
    assert torch.autograd.gradcheck(lambda *e: suffix(product, e, 0), (A, a))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("shared", [True, False])
def test_affine_recursion(shared: bool, lead: tuple[int, ...]) -> None:
    """x_k = E_k x_{k-1} + g_k, one set of maps for any number of right-hand sides."""
    normal = lambda *s: torch.randn(*s, generator=torch.Generator().manual_seed(len(s)), dtype=F64)  # noqa: E731
    S, n, d = 2, 9, 3
    E, g, x = normal(1 if shared else S, n, d, d) / 2, normal(*lead, S, n, d), normal(*lead, S, d)
    got = affine(E, g, x)
    assert got.shape == g.shape
    for k in range(n):
        x = (E[:, k] @ x.unsqueeze(-1)).squeeze(-1) + g[..., k, :]
        assert torch.allclose(got[..., k, :], x, rtol=1e-12, atol=1e-12)
