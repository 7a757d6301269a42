"""`JumpProcess`: a continuous-time Markov process on finitely many states, and what is seen of it.

Its transition from time s to time t is ``exp(Q (t - s))``; with rates that change at known times, the product of the
pieces.  It is a `StateSpace` whose transition is that kernel, so that every method of state-space models serves it;
what continuous time adds (paths between observations, expected jumps and dwell times) is in `exact` and `guided`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.inference.models import StateSpace, as_prior
from retrodict.kernels import Categorical, Finite
from retrodict.kernels.checks import real_tensor
from retrodict.kernels.finite import safe_log
from retrodict.kernels.jump import as_generator, transition_matrix


class JumpProcess(StateSpace):
    """A jump process.

    Args:
        rates: the generator ``(K, K)``: off-diagonals are rates of jumps a unit of time, rows sum to zero
            (`kernels.rates_of` fills in the diagonal); or ``(pieces, K, K)`` with ``breaks``; or a function without
            arguments (a module) that returns one, so that trained parameters are current.
        prior: of the state at ``t0``: probabilities ``(K,)``, a `Categorical`, or a torch Categorical; by default all
            states are equally likely.
        observation: as of a `StateSpace`: an emission table (`Finite`), a callable ``x -> torch.distributions`` or
            ``(x, y) -> log density``; by default the state itself is seen, without error.
        t0: where the prior sits.
        breaks: ``(pieces - 1,)`` times at which the rates change, increasing.

    >>> process = JumpProcess([[-1.0, 1.0], [2.0, -2.0]])
    >>> process
    JumpProcess(2 states, Table observation)
    """

    def __init__(
        self,
        rates: Any,
        prior: Any = None,
        observation: Any = None,
        t0: float | None = 0.0,
        breaks: Sequence[float] | Tensor | None = None,
    ) -> None:
        self._rates: Any = rates if callable(rates) else as_generator(rates)
        self.breaks = torch.as_tensor([] if breaks is None else breaks, dtype=torch.float64)
        require(bool((self.breaks.diff() > 0).all()), f"breaks are increasing times, got {self.breaks.tolist()}")
        found = self.rates
        K = found.shape[-1]
        if found.shape[0] != len(self.breaks) + 1:
            raise InputError(
                f"rates are of {found.shape[0]} pieces and there are {len(self.breaks)} breaks between them; give one"
                " break fewer than pieces"
            )
        if prior is None:
            prior = torch.full((K,), 1.0 / K, dtype=torch.float64)
        if isinstance(prior, Tensor) or not hasattr(prior, "sample"):
            prior = Categorical.of(real_tensor(prior, "prior"))
        if as_prior(prior)[2] != K:
            raise InputError(f"the prior is of {as_prior(prior)[2]} states and the rates of {K}")
        if observation is None:
            observation = Finite.of(torch.eye(K, dtype=torch.float64))
        super().__init__(prior, self.kernel, observation, t0)

    @property
    def rates(self) -> Tensor:
        """The generators ``(pieces, K, K)``."""
        make: Any = self._rates
        value = make if isinstance(make, Tensor) else as_generator(make())
        return value if value.ndim == 3 else value.unsqueeze(0)

    def kernel(self, s: float | Tensor, t: float | Tensor) -> Finite:
        """The transition from s to t, each a number or ``(n,)``."""
        return Finite(safe_log(self.transition_at(self.rates, s, t)))

    def transition_at(self, rates: Tensor, s: float | Tensor, t: float | Tensor) -> Tensor:
        """``P (..., K, K)`` from s to t ``(...)`` under generators ``(..., pieces, K, K)``."""
        s, t = torch.as_tensor(s, dtype=torch.float64), torch.as_tensor(t, dtype=torch.float64)
        P: Tensor | None = None
        for i in range(rates.shape[-3]):
            piece = transition_matrix(rates[..., i, :, :], self.time_in(i, s, t))
            P = piece if P is None else P @ piece
        assert P is not None
        return P

    def time_in(self, piece: int, s: Tensor, t: Tensor) -> Tensor:
        """How much of the time from s to t lies in a piece of the rates."""
        first = self.breaks[piece - 1] if piece else -torch.inf
        last = self.breaks[piece] if piece < len(self.breaks) else torch.inf
        return (t.clamp(max=last) - s.clamp(min=first)).clamp_min(0)

    def with_rates(self, rates: Any) -> JumpProcess:
        """The same model with other rates."""
        prior, _, observation = self.given
        return JumpProcess(rates, prior, observation, self.t0, self.breaks)

    def started(self, start: int | Sequence[int] | Tensor) -> JumpProcess:
        """The same model with a known state at ``t0``, one number or one a series."""
        states = torch.as_tensor(start).reshape(-1)
        known = not states.is_floating_point() and bool(((states >= 0) & (states < self.size)).all())
        require(known, f"start is a state, an integer 0..{self.size - 1} (one a series), got {start}")
        other = copy.copy(self)
        one_hot = torch.nn.functional.one_hot(states, self.size).double()
        other.given = (Categorical(one_hot.log()), *self.given[1:])
        other.prior = other.given[0]
        return other

    def __repr__(self) -> str:
        law = "no" if self.emission is None else type(self.emission).__name__.removesuffix("Emission")
        pieces = f" and {len(self.breaks)} changes of rates" if len(self.breaks) else ""
        return f"JumpProcess({self.size} states{pieces}, {law} observation)"
