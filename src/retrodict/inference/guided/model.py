"""The guided process as a map of its innovations, and as a Feynman-Kac model for the particle engine.

Nodes of the engine are the observation times; between two of them lies a stretch of fine steps.  `GuidedModel`
remembers the stretches of a run when it is asked to, so that the engine carries nothing but current states.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise, Noise
from retrodict.inference.guided.auxiliary import Guidance, prepare
from retrodict.inference.guided.evidence import Evidence
from retrodict.inference.guided.guides import Continuous, Doob, Free, Guide, Path
from retrodict.inference.guided.messages import Messages
from retrodict.inference.guided.steps import EulerGrid, Steps
from retrodict.kernels.scans.gaussian.algebra import guided_root, mv
from retrodict.particles import FeynmanKac, Node, ParticlesDied, smc
from retrodict.particles.resampling import resamplers

_CACHED = 4096  # particles whose stretch is run together; four times as many where a step is one loop
WEIGHTS: dict[str, type[Guide]] = {"doob": Doob, "path": Path, "continuous": Continuous, "none": Free}


class Parents:
    """An observer that keeps who descends from whom."""

    def __init__(self) -> None:
        self.ancestors: list[Tensor] = []

    def __call__(self, node: Node) -> None:
        if node.ancestors is not None:
            self.ancestors.append(node.ancestors)


def along(values: Tensor, line: Tensor) -> Tensor:
    """``values (m, S, N, d)`` of the particles ``line (S, N)``."""
    return values.gather(2, line[None, :, :, None].expand(values.shape[0], -1, -1, values.shape[-1]))


@dataclass
class Innovations:
    """What drives guided paths: standard normals of the start ``(S, N, d)`` and of the steps ``(n, S, N, r)``."""

    start: Tensor
    steps: Tensor

    def blend(self, other: Innovations, rho: Tensor) -> Innovations:
        """``rho z + sqrt(1 - rho^2) other``: standard normal again; rho ``(n + 1)``, of the start and of each step."""
        share = (1 - rho**2).clamp_min(0).sqrt()
        head = rho[0] * self.start + share[0] * other.start
        rows = (-1, 1, 1, 1)
        return Innovations(head, rho[1:].reshape(rows) * self.steps + share[1:].reshape(rows) * other.steps)

    def where(self, which: Tensor, other: Innovations) -> Innovations:
        """These for the particles ``which (S, N)``, the other ones elsewhere."""
        which = which.unsqueeze(-1)
        return Innovations(torch.where(which, self.start, other.start), torch.where(which, self.steps, other.steps))


@dataclass
class GuidedModel(FeynmanKac):
    """A guided chain between observations.

    Args:
        steps, evidence: the law and what was seen; start: mean ``(S, d)`` and covariance of node 0.
        weight: a key of `WEIGHTS`; auxiliary, rounds: see `auxiliary.prepare`.
        stretches_only: whether messages look no further than the next observation (what a filter needs).
        keep: whether a run remembers the fine paths and their innovations.
        ends: the last node of each series, beyond which nothing is redrawn; None: the last of all.
        tilt: log-density of the true start against the Gaussian one, where the prior is not Gaussian.
    """

    steps: Steps
    evidence: Evidence
    law0: tuple[Tensor, Tensor]
    weight: str = "doob"
    auxiliary: Any = "auto"
    rounds: int | None = None
    tilt: Any = None
    stretches_only: bool = False
    keep: bool = False
    ends: list[int] | None = None
    stretches: list[Tensor] = field(default_factory=list)
    used: list[Tensor] = field(default_factory=list)
    _pilots: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS:
            raise InputError(f"weight is one of {', '.join(WEIGHTS)}; got {self.weight!r}")
        if self.weight == "continuous" and not isinstance(self.steps, EulerGrid):
            raise InputError("weight='continuous' is of diffusions; a chain in discrete time has 'doob' and 'path'")
        self.series = self.steps.series
        if isinstance(self.auxiliary, str) and self.auxiliary == "learned":
            self.auxiliary = learned(replace(self, auxiliary="auto"))
        self.bounds = sorted({0, *self.evidence.nodes, self.steps.n})
        self.guidance = self._free() if self.weight == "none" else self._prepare()
        self.n = len(self.bounds) - 1
        if self.ends is not None and len(set(self.ends)) > 1:
            self.lengths = [self.bounds.index(node) for node in self.ends]
        self.root0 = guided_root(self.law0[1], self.guidance.messages.fused[0][:, 0])

    def fresh(self, keep: bool) -> GuidedModel:
        """This model, prepared as it is, for another run."""
        other = copy(self)
        other.keep, other.stretches, other.used = keep, [], []
        return other

    def _prepare(self) -> Guidance:
        return prepare(
            self.steps, self.evidence.potentials, self.law0, self.auxiliary, WEIGHTS[self.weight], self.rounds,
            self.weight == "continuous", self._pilot, self._unguided,
            self.bounds if self.stretches_only else None, self.evidence.linear,
        )  # fmt: skip

    def _free(self) -> Guidance:
        """The constant message: nothing is known of the future."""
        if self.evidence.pins:
            raise InputError("an exact observation has probability zero for an unguided path; use method='guided'")
        S, n, d = self.series, self.steps.n, self.steps.d
        zero = torch.zeros(S, n + 1, d, dtype=torch.float64)
        flat = (torch.diag_embed(zero), zero, zero[..., 0])
        messages = Messages(flat, tuple(part[:, :n] for part in flat), {})  # type: ignore[arg-type]
        guide = Free(self.steps, flat, messages)
        return Guidance(flat, messages, guide, self.law0, zero[:, 0, 0])

    def _pilot(self, guidance: Guidance, particles: int) -> tuple[Tensor, Tensor]:
        """Guided paths ``(n+1, S, P, d)`` and their log-weights; a single one is the path without noise."""
        S, n, d, r = self.series, self.steps.n, self.steps.d, self.steps.r
        x = guidance.start[0].unsqueeze(1).expand(S, particles, d)
        z = torch.zeros(n, S, 1, r, dtype=x.dtype)
        if particles > 1:
            if self._pilots is None:  # the same ones for every auxiliary
                noise = KeyedNoise(0, S, name="pilot")
                begin = noise.normal((particles, d)).double()
                self._pilots = begin, noise.normal((n, particles, r)).movedim(1, 0)  # last: a longer batch draws more
            root = guided_root(self.law0[1], guidance.messages.fused[0][:, 0])
            x, z = x + mv(root.unsqueeze(1), self._pilots[0]), self._pilots[1]
        if not n:
            return x.unsqueeze(0), torch.zeros_like(x[..., 0])
        path, log_w = guidance.guide.run(0, x, z)
        return torch.cat((x.unsqueeze(0), path)), log_w

    def _unguided(self, particles: int) -> Tensor | None:
        """States at all nodes ``(n+1, S, P, d)`` of an unguided filter; None where it dies or an end is exact.

        Each stretch is that of the particles which the observation at its end kept.
        """
        if self.evidence.pins:
            return None
        free, parents = replace(self, weight="none", keep=True), Parents()
        try:
            noise = KeyedNoise(0, self.series, name="unguided")
            run = smc(free, particles, noise, threshold=1.0, observers=[parents])
        except ParticlesDied:
            return None
        kept = resamplers["systematic"](run.log_w.exp(), torch.full((self.series, 1), 0.5).double(), particles)
        lines = [*parents.ancestors, kept]
        return torch.cat([along(part, line) for part, line in zip(free.stretches, lines)])

    @property
    def auxiliary_steps(self) -> tuple[Tensor, Tensor, Tensor]:
        """The auxiliary that was chosen, ``(A, b, Q)``."""
        return self.guidance.auxiliary

    # -- the whole path as a map of innovations --------------------------------------------------------------

    def innovations(self, particles: int, noise: Noise) -> Innovations:
        """Fresh standard normals."""
        return Innovations(
            noise.normal((particles, self.steps.d)).double(), self._steps_noise(self.steps.n, particles, noise).double()
        )

    def path(self, z: Innovations) -> tuple[Tensor, Tensor]:
        """States ``(n + 1, S, N, d)`` and log-weights ``(S, N)``; their mean weight is unbiased for the evidence."""
        x, log_w = self._begin(z.start)
        if not self.steps.n:
            return x.unsqueeze(0), log_w
        states, gain = self.guidance.guide.run(0, x, z.steps)
        path = torch.cat((x.unsqueeze(0), states))
        log_w = log_w + gain
        for j, node in enumerate(self.evidence.nodes):
            log_w = self._correct(j, path[node], log_w) if node else log_w
        return path, log_w

    # -- the engine's questions ------------------------------------------------------------------------------

    def start(self, particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        z = noise.normal((particles, self.steps.d)).double()
        x, log_w = self._begin(z)
        self.stretches, self.used = [x.unsqueeze(0)], [z]
        return x, log_w

    def draw(self, moves: int, particles: int, noise: Noise) -> Any:
        """Innovations of each move, drawn when it is made: a stretch is a block by itself."""
        longest = max(b - a for a, b in pairwise(self.bounds))
        return (self._steps_noise(longest, particles, noise) for _ in range(moves))

    def move(self, k: int, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self.bounds[k - 1], self.bounds[k]
        z = z[: last - first]
        if self.keep:
            states, log_w = self.guidance.guide.run(first, x, z.double())
            self.stretches.append(states)
            self.used.append(z.double())
            x = states[-1]
        else:
            x, log_w = self._advance(first, x, z)
        for j, node in enumerate(self.evidence.nodes):
            log_w = self._correct(j, x, log_w) if node == last else log_w
        return x, log_w

    def _advance(self, first: int, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The last states of a stretch and its weights, a share of the particles at a time: what fits into cache."""
        runs = []
        block = _CACHED if self.guidance.guide.coefficients is None else 4 * _CACHED
        for i in range(0, x.shape[1], block):
            span = slice(i, i + block)
            states, log_w = self.guidance.guide.run(first, x[:, span], z[:, :, span], False)
            runs.append((states[-1], log_w))
        ends, weights = zip(*runs)
        return torch.cat(ends, 1), torch.cat(weights, 1)

    # -- helpers ---------------------------------------------------------------------------------------------

    def _begin(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = self.guidance.start[0].unsqueeze(1) + mv(self.root0.unsqueeze(1), z)
        log_w = self.guidance.log_norm.unsqueeze(1) + torch.zeros_like(x[..., 0])
        for j, node in enumerate(self.evidence.nodes):
            log_w = self._correct(j, x, log_w) if node == 0 else log_w
        return x, log_w if self.tilt is None else log_w + self.tilt(x)

    def _correct(self, j: int, x: Tensor, log_w: Tensor) -> Tensor:
        if self.weight == "none":
            return log_w + self.evidence.log_prob(j, x)
        correction = self.evidence.correction(j, x)
        return log_w if correction is None else log_w + correction

    def _steps_noise(self, steps: int, particles: int, noise: Noise) -> Tensor:
        return noise.normal((steps, particles, self.steps.r)).movedim(1, 0)


def learned(
    model: GuidedModel, rounds: int = 60, particles: int = 64, rate: float = 0.05, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Auxiliary steps ``(A, b, Q)`` that maximise the expected log-weight, from those of ``model`` on.

    The bound is ``E[log-weight] <= log evidence``, with equality for the h-transform itself; its gradient passes
    through guided paths, messages and innovations.  A, b and the scale of Q move, each step by itself.

    Args:
        rounds: of Adam with step size ``rate`` (in units of a whole path); particles: fresh paths a round.
    """
    A, b, Q = (part.detach() for part in model.auxiliary_steps)
    S, n, d = b.shape
    moves = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((S, n, d, d), (S, n, d), (S, n))]
    optimiser = torch.optim.Adam(moves, lr=rate)
    noise = KeyedNoise(seed, S, name="learn")
    length = 1 / n

    def steps() -> tuple[Tensor, Tensor, Tensor]:
        return A + moves[0] * length, b + moves[1] * length, Q * moves[2].exp()[..., None, None]

    chosen = steps()
    for _ in range(rounds):
        guided = replace(model, auxiliary=chosen)
        _, log_w = guided.path(guided.innovations(particles, noise))
        if not bool(torch.isfinite(log_w).all()):
            break
        optimiser.zero_grad()
        (-log_w.mean(1).sum()).backward()
        optimiser.step()
        chosen = steps()
    A, b, Q = (part.detach() for part in chosen)
    return A, b, Q
