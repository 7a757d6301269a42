"""`ReactionNetwork`: counts of species that jump by fixed changes at state-dependent rates (hazards).

Chemical reactions, predators and prey, epidemics, queues: reaction r happens at rate ``a_r(x)`` and takes x to
``x + change_r``.  Paths are simulated event by event (Gillespie 1977), exactly and without a time step, for many
particles at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.lin import Lin
from retrodict.core.noise import Cells, Noise
from retrodict.inference.models import StateSpace
from retrodict.kernels import Gaussian, Kernel
from retrodict.kernels.jump import pick_by_weight

_MOST_EVENTS = 1_000_000


class ReactionNetwork(StateSpace):
    """A Markov jump process on counts.

    Args:
        changes: ``(R, d)`` integers, what each of R reactions adds to each of d species.
        hazards: ``x (..., d) -> (..., R)`` rates of the reactions, at least zero, zero where one would make a count
            negative; states are float64 whole numbers.  See `mass_action` for the usual law.
        prior: the known counts at ``t0`` ``(d,)``, or a torch.distributions object over counts ``(d,)``.
        observation: as of a `StateSpace`; by default the data bring their operator and noise.
        t0: where time starts.
    """

    def __init__(
        self,
        changes: Any,
        hazards: Callable[[Tensor], Tensor],
        prior: Any,
        observation: Any = None,
        t0: float | None = 0.0,
    ) -> None:
        self.changes = torch.as_tensor(changes, dtype=torch.float64)
        require(self.changes.ndim == 2, f"changes are (reactions, species), got {tuple(self.changes.shape)}")
        require(bool((self.changes == self.changes.round()).all()), "changes are whole numbers")
        self._hazards = hazards
        if not isinstance(prior, torch.distributions.Distribution | Gaussian):
            start = torch.as_tensor(prior, dtype=torch.float64)
            require(bool(((start >= 0) & (start == start.round())).all()), f"counts are 0, 1, 2, ...; got {prior}")
            prior = Gaussian(start.reshape(1, -1), Lin.scalar(torch.zeros((), dtype=torch.float64)))
        super().__init__(prior, self.kernel, observation, t0)
        if self.size != self.changes.shape[1]:
            raise InputError(f"the prior is of {self.size} species and changes of {self.changes.shape[1]}")
        if isinstance(self.prior, Gaussian) and bool((self.prior.cov.value != 0).any()):
            raise InputError(
                "counts have no Gaussian law; give the known counts, or a torch.distributions law of counts"
            )
        self.hazards(self.probe)

    @staticmethod
    def mass_action(
        consumed: Any, produced: Any, rates: Any, prior: Any, observation: Any = None, t0: float | None = 0.0
    ) -> ReactionNetwork:
        """Reactions that happen in proportion to the number of ways to choose what they consume.

        Args:
            consumed, produced: ``(R, d)`` counts of each species on the two sides; rates: ``(R,)``, or a function
                without arguments that returns them.
        """
        consumed = torch.as_tensor(consumed, dtype=torch.float64)
        produced = torch.as_tensor(produced, dtype=torch.float64)
        require(consumed.shape == produced.shape, f"consumed {consumed.shape} and produced {produced.shape} differ")

        def hazards(x: Tensor) -> Tensor:
            c = torch.as_tensor(rates() if callable(rates) else rates, dtype=torch.float64)
            n = x.unsqueeze(-2)
            ways = torch.ones(n.shape[:-2] + consumed.shape, dtype=torch.float64)
            for taken in range(int(consumed.max())):  # falling factorial over taken!
                ways = torch.where(consumed > taken, ways * (n - taken).clamp_min(0) / (taken + 1), ways)
            return c * ways.prod(-1)

        return ReactionNetwork(produced - consumed, hazards, prior, observation, t0)

    def hazards(self, x: Tensor) -> Tensor:
        """Rates ``(..., R)`` at states ``x (..., d)``, checked."""
        a = self._hazards(x)
        if a.shape != (*x.shape[:-1], len(self.changes)):
            raise InputError(
                f"hazards(x) returned shape {tuple(a.shape)} at states {tuple(x.shape)}; one rate for each of"
                f" {len(self.changes)} reactions is accepted: {(*x.shape[:-1], len(self.changes))}"
            )
        if not bool((a >= 0).all()):
            worst = x.reshape(-1, x.shape[-1])[int(a.reshape(-1, a.shape[-1]).amin(-1).argmin())]
            raise InputError(f"hazards are at least zero; got {float(a.min()):g} at the state {worst.tolist()}")
        return a.double()

    def kernel(self, s: Any, t: Any) -> Kernel:
        """The transition from time s to time t: simulation, without a density."""
        return Simulated(self, float(t) - float(s))

    def simulate(self, x: Tensor, tau: Tensor, cells: Cells) -> Tensor:
        """The states after times ``tau (...)`` from ``x (..., d)``; every state is a cell."""
        return run_events(self, x, tau, cells)[0]

    def __repr__(self) -> str:
        law = "no" if self.emission is None else type(self.emission).__name__.removesuffix("Emission")
        return f"ReactionNetwork({self.size} species, {len(self.changes)} reactions, {law} observation)"


@dataclass(frozen=True)
class Simulated(Kernel):
    """The kernel of a network over a time: it can be drawn from, and nothing more; innovations are keys of cells."""

    network: ReactionNetwork
    dt: float

    def draw(self, noise: Noise, shape: Any) -> Tensor:
        return noise.uniform(())

    def step(self, x: Tensor, z: Tensor) -> Tensor:
        cells = Cells(z, x.shape[:-1].numel() // len(z))
        return self.network.simulate(x, torch.full(x.shape[:-1], self.dt, dtype=torch.float64), cells)


Proposal = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def run_events(
    network: ReactionNetwork,
    x: Tensor,
    tau: Tensor,
    cells: Cells,
    propose: Proposal | None = None,
    refresh: int = 0,
) -> tuple[Tensor, Tensor]:
    """Run every particle through a time, by events at proposed rates that are constant until the next event.

    Args:
        x: ``(..., d)``; tau: ``(...)``, how long each runs; cells: the source of the draws of each.
        propose: ``(row, x, time left, hazards) -> rates``, for the particles that still run: ``(n,)`` their places in
            the first axis of x, ``(n, d)``, ``(n,)``, ``(n, R)``.  The rates are above zero where the hazards are, and
            are held until the particle's next event, or for a share ``1 / refresh`` of tau.

    Returns:
        the states, and the log of the ratio of the true law of each path to the proposed one ``(...)``.
    """
    shape, rows = x.shape, torch.arange(x.shape[0]).repeat_interleave(max(1, x[0, ..., 0].numel()))
    x, whole = x.reshape(-1, shape[-1]).clone(), tau.expand(shape[:-1]).reshape(-1)
    left, log_ratio = whole.clone(), torch.zeros_like(whole)
    for e in range(_MOST_EVENTS):
        run = (left > 0).nonzero()[:, 0]  # those that still run: fewer and fewer
        if not len(run):
            return x.reshape(shape), log_ratio.reshape(shape[:-1])
        here, rest = x[run], left[run]
        a = network.hazards(here)
        b = a if propose is None else propose(rows[run], here, rest, a)
        wait = -torch.log1p(-cells.uniform(2 * e, run)) / b.sum(-1)  # infinite where nothing can be
        until = torch.minimum(rest, whole[run] / refresh) if refresh else rest
        event = wait < until
        passed = torch.where(event, wait, until)
        which = pick_by_weight(b, cells.uniform(2 * e + 1, run))
        x[run] = here + event.unsqueeze(-1) * network.changes[which]
        left[run] = (rest - passed).clamp_min(0)
        if propose is not None:
            at = which.unsqueeze(-1)
            gain = torch.where(event, (a.gather(-1, at) / b.gather(-1, at)).log().squeeze(-1), 0.0)
            log_ratio[run] += gain - (a - b).sum(-1) * passed
    raise InputError(
        f"a path had more than {_MOST_EVENTS:,} events between two times; the hazards may explode, or the unit of time"
        " is too long"
    )
