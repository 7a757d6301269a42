"""Continuous time on finitely many states: the kernel ``exp(Q dt)`` of a matrix of jump rates Q.

Both routes add non-negative terms only, so that every entry keeps its relative precision and no probability is
negative: with ``lam >= max |Q_xx|`` and ``R = I + Q / lam`` (a stochastic matrix),

    ``exp(Q t) = sum over k of Poisson(k; lam t) R^k``.

* "expm", for matrices: the sum over a short time, squared up (scaling and squaring).  The result is a `Finite`
  kernel, and gradients pass to the rates.
* "uniformisation" (Jensen 1953), for many states with sparse rates: the sum is applied to messages and laws, and
  no matrix of transitions is ever formed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.kernels.checks import Space, check_rates, real_tensor
from retrodict.kernels.finite import Finite, safe_log
from retrodict.kernels.kernel import Chain, Kernel
from retrodict.kernels.laws import Categorical, Table, event_sum

_TERMS = 20  # of exp on matrices of norm at most one: the rest is below 1/21! = 2e-20
_BLOCK = 256.0  # mean number of events that one uniformised sum may have: exp(-256) is still a normal number
_ROUNDING = 1e-17
_LEAST = 1e-200  # shares of the largest entry below this are not waited for


def rates_of(off_diagonal: Tensor) -> Tensor:
    """The generator with these jump rates ``(..., S, S)``: the diagonal, whatever it was, makes rows sum to zero."""
    off = off_diagonal - torch.diag_embed(off_diagonal.diagonal(dim1=-2, dim2=-1))
    return off - torch.diag_embed(off.sum(-1))


def as_generator(value: Any) -> Tensor:
    """Checked dense rates ``(..., S, S)`` in float64; rows of lower precision are made to sum to zero again."""
    rates = real_tensor(value, "rates")
    check_rates(rates)
    return rates if rates.dtype == torch.float64 else rates_of(rates.double())


def transition_matrix(rates: Tensor, dt: float | Tensor) -> Tensor:
    """``exp(rates dt)`` for generators ``(..., S, S)`` and times ``(...)`` of at least zero; differentiable in both."""
    dt = torch.as_tensor(dt, dtype=rates.dtype, device=rates.device)
    lam = rates.detach().diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    events = float((lam * dt.detach()).max()) if lam.numel() and dt.numel() else 0.0
    squarings = max(0, math.ceil(math.log2(events))) if events > 0 else 0
    short = (dt / 2**squarings)[..., None, None]
    eye = torch.eye(rates.shape[-1], dtype=rates.dtype, device=rates.device)
    R = (rates + lam[..., None, None] * eye) * short  # non-negative, rows sum to at most 1
    P = eye + R / _TERMS
    for k in range(_TERMS - 1, 0, -1):
        P = eye + R @ P / k
    P = P * torch.exp(-lam[..., None, None] * short)
    for _ in range(squarings):
        P = P @ P
    return P


def uniformised(rates: Tensor, dt: float, h: Tensor, transpose: bool = False) -> Tensor:
    """``exp(rates dt) h`` for columns ``h (S, n)`` of at least zero; rates dense or sparse CSR ``(S, S)``.

    Sparse rates carry no gradient.

    Args:
        transpose: apply the transpose, which carries laws forward.
    """
    lam = 1.001 * _exit_rates(rates).max().item()  # above every exit rate: R keeps a share of every state in place
    blocks = max(1, math.ceil(lam * dt / _BLOCK))
    mean = lam * dt / blocks
    if mean == 0:
        return h
    if rates.layout == torch.strided:
        return _poisson_sum(rates.mT if transpose else rates, h, lam, mean, blocks)
    matrix = _scipy(rates)
    out = _poisson_sum(matrix.T.tocsr() if transpose else matrix, h.detach().double().numpy(), lam, mean, blocks)
    return torch.from_numpy(out)


def _poisson_sum(matrix: Any, h: Any, lam: float, mean: float, blocks: int) -> Any:
    """``(sum over k of Poisson(k; mean) R^k)^blocks h`` for tensors, or for SciPy matrices and arrays."""
    for _ in range(blocks):
        weight = math.exp(-mean)
        term, total, k = h, weight * h, 0
        # until no entry changes any more, past the mode: new states are still being reached while one does
        while True:
            k += 1
            term = term + (matrix @ term) / lam
            weight *= mean / k
            gain = weight * term
            total = total + gain
            if k > mean and not bool((gain > _ROUNDING * total + _LEAST * total.max()).any()):
                break
        h = total
    return h


def _scipy(rates: Tensor) -> csr_matrix:
    """The same matrix for SciPy, whose products are several times faster on one core."""
    parts = (rates.values().detach().double().numpy(), rates.col_indices().numpy(), rates.crow_indices().numpy())
    return csr_matrix(parts, shape=tuple(rates.shape))


def _exit_rates(rates: Tensor) -> Tensor:
    """``|Q_xx|`` of dense or sparse rates."""
    if rates.layout == torch.strided:
        return rates.detach().diagonal().abs()
    coo = rates.detach().to_sparse_coo().coalesce()
    row, column = coo.indices()
    on = row == column
    return torch.zeros(rates.shape[0], dtype=rates.dtype).index_add(0, row[on], coo.values()[on].abs())


@dataclass(frozen=True, eq=False)
class Jump(Kernel):
    """The law of a jump process after a time ``dt``.

    Args:
        rates: the generator, dense ``(..., S, S)`` or sparse ``(S, S)``: off-diagonals are rates of jumps a unit of
            time, and rows sum to zero (`rates_of` fills in the diagonal).
        dt: the time, a number or ``(...)``, at least zero.
        method: "expm", "uniformisation", or "auto": expm up to 512 dense states.
    """

    rates: Any
    dt: float | Tensor
    method: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.rates, Tensor) and self.rates.layout != torch.strided:
            rates = self.rates.to_sparse_csr()
            _check_sparse(rates)
        else:
            rates = as_generator(self.rates)
        if bool((torch.as_tensor(self.dt) < 0).any()):
            raise InputError(f"dt is a length of time, at least zero; got {self.dt}")
        if self.method not in ("auto", "expm", "uniformisation"):
            raise InputError(f"method is 'auto', 'expm' or 'uniformisation', got {self.method!r}")
        sparse = rates.layout != torch.strided
        if self.method == "expm" and sparse:
            raise InputError("method='expm' takes dense rates; give rates.to_dense(), or method='uniformisation'")
        if self.method == "uniformisation" and (rates.ndim > 2 or torch.as_tensor(self.dt).ndim):
            raise InputError("method='uniformisation' takes one matrix of rates and one dt; use a kernel for each")
        if self.method == "auto":
            large = sparse or (rates.ndim == 2 and rates.shape[-1] > 512)
            object.__setattr__(self, "method", "uniformisation" if large else "expm")
        object.__setattr__(self, "rates", rates)

    @staticmethod
    def piecewise(rates: Sequence[Tensor] | Tensor, dt: Sequence[float] | Tensor) -> Chain:
        """Rates that change in time: constant at ``rates[i]`` for the time ``dt[i]``, one after another."""
        if len(rates) != len(dt):
            raise InputError(f"piecewise rates take one dt each; got {len(rates)} matrices and {len(dt)} times")
        return Chain(*(Jump(Q, float(step)) for Q, step in zip(rates, dt)))

    @property
    def domain(self) -> Space:
        return Space("states", self.rates.shape[-1])

    @property
    def codomain(self) -> Space:
        return self.domain

    @cached_property
    def finite(self) -> Finite:
        """The transition table."""
        if self.rates.layout != torch.strided:
            eye = torch.eye(self.rates.shape[0], dtype=self.rates.dtype)
            return Finite(uniformised(self.rates, float(self.dt), eye).log())
        return Finite(safe_log(transition_matrix(self.rates, self.dt)))

    @property
    def log_p(self) -> Tensor:
        """The log of the transition table, as of a `Finite` kernel."""
        return self.finite.log_p

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        return noise.uniform(shape)

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        return self.finite.step(x, z) if self.method == "expm" else pick_by_weight(self._rows(x), z)

    def log_prob(self, x: Tensor, y: Tensor, event: int | None = None) -> Tensor:
        if self.method == "expm":
            return self.finite.log_prob(x, y, event)
        x, y = torch.broadcast_tensors(x, y)
        return event_sum(self._rows(x).gather(-1, y.unsqueeze(-1)).squeeze(-1).log(), event)

    def push(self, law: Categorical) -> Categorical:
        if not isinstance(law, Categorical):
            return super().push(law)
        if self.method == "expm":
            return self.finite.push(law)
        p = law.log_p.exp().reshape(-1, law.log_p.shape[-1])
        pushed = uniformised(self.rates, float(self.dt), p.T.contiguous(), transpose=True).T
        return Categorical(pushed.reshape(law.log_p.shape).log())

    def pull(self, h: Table) -> tuple[Kernel, Table]:
        if not isinstance(h, Table):
            return super().pull(h)
        if self.method == "expm":
            return self.finite.pull(h)
        flat = h.log_h.reshape(-1, h.log_h.shape[-1])
        top = flat.amax(-1, keepdim=True).clamp_min(-1e300)  # a message that is zero everywhere stays so
        earlier = uniformised(self.rates, float(self.dt), (flat - top).exp().T.contiguous()).T.log() + top
        return _Guided(self, h), Table(earlier.reshape(h.log_h.shape))

    def invert(self, law: Categorical) -> Kernel:
        return self.finite.invert(law) if isinstance(law, Categorical) else super().invert(law)

    def compose(self, later: Jump) -> Finite:
        """This kernel and then ``later``, as one table."""
        return self.finite.compose(later.finite)

    def _rows(self, x: Tensor) -> Tensor:
        """The laws of y given each x, ``(*x.shape, S)``: one sum for each state that occurs."""
        states, place = torch.unique(x, return_inverse=True)
        start = torch.zeros(self.rates.shape[0], len(states), dtype=self.rates.dtype)
        start[states, torch.arange(len(states))] = 1.0
        return uniformised(self.rates, float(self.dt), start, transpose=True).T[place]


@dataclass(frozen=True, eq=False)
class _Guided(Kernel):
    """The h-transform of a uniformised kernel: rows ``P[x, y] h(y)``, formed for the states that occur."""

    jump: Jump
    h: Table

    def draw(self, noise: Noise, shape: tuple[int, ...]) -> Tensor:
        return noise.uniform(shape)

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        top = self.h.log_h.amax(-1, keepdim=True).clamp_min(-1e300)
        return pick_by_weight(self.jump._rows(x) * (self.h.log_h - top).exp(), z)

    def push(self, law: Categorical) -> Categorical:
        """The belief one step later, through ``h' -> h``: divide by the earlier message, push, multiply by h."""
        earlier = self.jump.pull(self.h)[1].log_h
        unseen = torch.where(torch.isinf(earlier), -torch.inf, law.log_p - earlier)
        top = unseen.amax(-1, keepdim=True)
        joint = self.jump.push(Categorical(unseen - top)).log_p + self.h.log_h
        return Categorical(joint - torch.logsumexp(joint, -1, keepdim=True))


def pick_by_weight(weights: Tensor, z: Tensor) -> Tensor:
    """The index at which the cumulative share of ``weights (..., S)`` passes ``z (...)``."""
    cumulative = weights.cumsum(-1)
    return (z.unsqueeze(-1) * cumulative[..., -1:] >= cumulative[..., :-1]).sum(-1)


def _check_sparse(rates: Tensor) -> None:
    """`check_rates` without a dense copy."""
    coo = rates.detach().to_sparse_coo().coalesce()
    (row, column), value = coo.indices(), coo.values()
    off = row != column
    if bool((value[off] < 0).any()):
        k = int(torch.where(off, value, torch.inf).argmin())
        raise InputError(
            f"rates have a negative entry {float(value[k]):.4g} off the diagonal, from state {int(row[k])} to state"
            f" {int(column[k])}; rates of jumps are at least zero"
        )
    total = torch.zeros(rates.shape[0], dtype=value.dtype).index_add(0, row, value).abs().max()
    if float(total) > 1e-8 * max(float(value.abs().max()), 1e-300):
        raise InputError(f"rows of rates sum to zero: the diagonal is minus the sum of the others; off by {total:.3g}")
