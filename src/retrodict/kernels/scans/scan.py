"""All prefixes or suffixes of an associative product, in O(log n) batched calls.

``prefix`` turns ``e_0, e_1, e_2, ...`` into ``e_0, e_0 e_1, e_0 e_1 e_2, ...`` where the product is any associative
``combine``.  Pairs (0,1), (2,3), ... are combined in one call, the half-length sequence is solved by recursion, and
one more call fills the other half (Blelloch, "Prefix sums and their applications", 1990).  About 2n products in
2 log2(n) calls; any length, any device, differentiable.

An element is a tuple of tensors that all have the time axis at ``dim``.  `affine` is the ready-made scan of the
recursion ``x_k = E_k x_{k-1} + g_k`` on which samplers and parallel-in-time solvers stand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Element = tuple[Tensor, ...]
Combine = Callable[[Element, Element], Element]


def prefix(combine: Combine, elements: Element, dim: int = 1) -> Element:
    """``e_0, e_0 e_1, ..., e_0 ... e_{n-1}``.

    Args:
        combine: associative; ``combine(earlier, later)`` on elements of equal length along ``dim``.
        elements: tensors with time at axis ``dim`` (not negative), all of the same length n >= 1.
        dim: the time axis.

    Returns:
        Tensors of the same length.
    """
    n = elements[0].shape[dim]
    if n == 1:
        return elements
    even, odd = _every_second(elements, dim, 0), _every_second(elements, dim, 1)
    pairs = prefix(combine, combine(_cut(even, dim, 0, n // 2), odd), dim)
    if n == 2:
        rest = _cut(even, dim, 0, 0)
    else:
        rest = combine(_cut(pairs, dim, 0, (n - 1) // 2), _cut(even, dim, 1, (n + 1) // 2))
    first = _cut(even, dim, 0, 1)
    return tuple(_interleave(f, p, r, dim) for f, p, r in zip(first, pairs, rest))


def suffix(combine: Combine, elements: Element, dim: int = 1) -> Element:
    """``e_0 ... e_{n-1}, e_1 ... e_{n-1}, ..., e_{n-1}``; arguments as in `prefix`."""

    def reverse(e: Element) -> Element:
        return tuple(x.flip(dim) for x in e)

    return reverse(prefix(lambda later, earlier: combine(earlier, later), reverse(elements), dim))


def affine(E: Tensor, g: Tensor, x0: Tensor) -> Tensor:
    """Solve ``x_k = E_k x_{k-1} + g_k`` for k = 1..n by a scan.

    Args:
        E: maps ``(S|1, n, d, d)``.
        g: offsets ``(..., S, n, d)``; leading axes are further right-hand sides.
        x0: start ``(..., S, d)``.

    Returns:
        ``x_1 .. x_n``, ``(..., S, n, d)``.
    """
    lead, (series, n, d) = g.shape[:-3], g.shape[-3:]
    columns = g.reshape(-1, series, n, d).permute(1, 2, 3, 0)  # right-hand sides side by side: one matrix product
    start = x0.expand(*lead, series, d).reshape(-1, series, d).permute(1, 2, 0).unsqueeze(1)
    maps, offsets = prefix(_then, (E.expand(series, n, d, d), columns))
    return (maps @ start + offsets).permute(3, 0, 1, 2).reshape(*lead, series, n, d)


def _then(first: Element, second: Element) -> Element:
    (E1, g1), (E2, g2) = first, second
    return E2 @ E1, E2 @ g1 + g2


def _every_second(elements: Element, dim: int, start: int) -> Element:
    index = (slice(None),) * dim + (slice(start, None, 2),)
    return tuple(x[index] for x in elements)


def _cut(elements: Element, dim: int, start: int, stop: int) -> Element:
    return tuple(x.narrow(dim, start, stop - start) for x in elements)


def _interleave(first: Tensor, odd: Tensor, even: Tensor, dim: int) -> Tensor:
    """``first, odd_0, even_0, odd_1, even_1, ...``; the last ``odd`` may be without partner."""
    paired = even.shape[dim]
    woven = torch.stack((odd.narrow(dim, 0, paired), even), dim + 1).flatten(dim, dim + 1)
    return torch.cat((first, woven, odd.narrow(dim, paired, odd.shape[dim] - paired)), dim)
