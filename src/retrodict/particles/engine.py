"""Sequential Monte Carlo on a Feynman-Kac model, batched over series.

With cumulative weights W (normalised) and incremental weights w of one step,

    log Z += log sum_i W_i w_i,        W <- W w / sum,        and W is reset to 1/N only after resampling,

which happens when the effective sample size 1 / sum W^2 falls below a share of N.  (Taking the mean of w at every
step, whether or not the last one resampled, is a common mistake and estimates another number.)  exp(log Z) is
unbiased for the evidence.  With first-stage weights eta (Pitt and Shephard 1999) particles are redrawn in proportion
to W eta, and pay 1/eta.

The loop keeps to a handful of operations a step beside the model's: log-weights are carried unnormalised (recentred
when their sum leaves the safe range), innovations and uniforms come in blocks, only the series that need it are
resampled, and the sums that the evidence is made of are put together after the loop.  One series on the CPU is weighed
by NumPy, which takes a third of torch's time to start an operation.  Anything else that a user wants of the run
(moments, ancestry, smoothed functionals) is an observer, called with a `Node`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, NonFiniteError
from retrodict.core.noise import Noise
from retrodict.particles.model import FeynmanKac
from retrodict.particles.resampling import Uniforms, block_size, pick, resamplers


class ParticlesDied(NonFiniteError):
    """All particles of a series have weight zero, or a weight is NaN.

    Attributes:
        node, series: where and for whom.
    """

    def __init__(self, message: str, node: int, series: int) -> None:
        super().__init__(message)
        self.node, self.series = node, series


@dataclass
class Node:
    """The particles at one node, before any resampling there.

    Attributes:
        k: the node.
        x: states ``(S, N, ...)``.
        log_w: cumulative log-weights ``(S, N)``, not normalised.
        w: their exponential.
        ancestors: index ``(S, N)`` of each particle's parent at node k-1; None at node 0.
        before: the previous node (its own ``before`` is None).
        running: which series have this node; None for all.
    """

    k: int
    x: Tensor
    log_w: Tensor
    w: Tensor
    ancestors: Tensor | None
    before: Node | None
    running: Tensor | None

    @property
    def weights(self) -> Tensor:
        """Normalised weights ``(S, N)`` in float64."""
        w = self.w.double()
        return w / w.sum(-1, keepdim=True)


Observer = Callable[[Node], Any]


@dataclass
class Run:
    """What a run leaves behind.

    Attributes:
        x, log_w: the particles at the last node ``(S, N, ...)`` and their normalised log-weights ``(S, N)``.
        log_evidence: ``(S,)``, float64; its exponential is unbiased.
        ess: effective sample size at every node before resampling, ``(S, n+1)``.
        resampled: whether particles were redrawn after each node but the last, ``(S, n)``.
        log_evidence_path: the running estimate ``(S, n+1)``.
    """

    x: Tensor
    log_w: Tensor
    log_evidence: Tensor
    ess: Tensor
    resampled: Tensor
    log_evidence_path: Tensor


@torch.no_grad()
def smc(
    model: FeynmanKac,
    particles: int,
    noise: Noise,
    *,
    resample: str = "systematic",
    threshold: float = 0.5,
    observers: Sequence[Observer] = (),
    frozen: Tensor | None = None,
    ancestor_sampling: bool = False,
) -> Run:
    """Run ``particles`` particles through every node.

    Args:
        model: what to run.
        particles: N >= 1 (at least 2 with a frozen path).
        noise: one slot a series; the draws of a series do not depend on the others.
        resample: "systematic", "stratified", "residual", "ssp" or "multinomial".
        threshold: resample where the effective sample size is below this share of N (0: never, 1: always).
        observers: called with the `Node` of every step.
        frozen: a path ``(S, n+1, ...)`` that the last particle follows: conditional SMC (Andrieu, Doucet and
            Holenstein 2010).  Its parent is itself, also for its weight; resampling must be multinomial.
        ancestor_sampling: redraw the frozen particle's parent (Lindsten, Jordan and Schon 2014).

    Raises:
        ParticlesDied: all weights of a series are zero.
    """
    _check(particles, noise, model, resample, threshold, frozen)
    with np.errstate(over="ignore", invalid="ignore"):  # such weights are recentred
        return _Machine(model, particles, noise, resample, threshold, observers, frozen, ancestor_sampling).run()


def _check(N: int, noise: Noise, model: FeynmanKac, resample: str, threshold: float, frozen: Tensor | None) -> None:
    least = 1 if frozen is None else 2
    if N < least:
        raise InputError(f"particles is at least {least}{' beside a frozen path' if least == 2 else ''}, got {N}")
    if not 0 <= threshold <= 1:
        raise InputError(f"threshold is a share between 0 (never resample) and 1 (always), got {threshold}")
    if noise.batch != model.series:
        raise InputError(f"noise has {noise.batch} slots and the model {model.series} series; give one slot a series")
    scheme = resamplers[resample]
    if frozen is None:
        return
    if not scheme.independent:
        raise InputError(
            f"conditional SMC leaves its target invariant with independent children only, got resample={resample!r}; "
            "use resample='multinomial'"
        )
    if frozen.shape[:2] != (model.series, model.n + 1):
        raise InputError(
            f"a frozen path is (series, nodes, ...) = ({model.series}, {model.n + 1}, ...), got {tuple(frozen.shape)}"
        )


@dataclass
class _Machine:
    model: FeynmanKac
    N: int
    noise: Noise
    resample: str
    threshold: float
    observers: Sequence[Observer]
    frozen: Tensor | None
    ancestor_sampling: bool
    highest: dict[int, Tensor] = field(default_factory=dict)  # what was taken off the log-weights, (S,)
    total: list[list[float]] = field(default_factory=list)  # sum of the weights, S numbers a node
    norm: list[list[float]] = field(default_factory=list)  # their Euclidean norm
    redrawn: list[list[int]] = field(default_factory=list)  # series resampled after each node
    stage: dict[int, Tensor] = field(default_factory=dict)  # log sum_i W_i eta_i where first-stage weights were used
    poor: list[int] = field(default_factory=list)  # series to be resampled before the next move
    everyone: Tensor | None = None  # each particle its own parent, where someone asks for parents

    def __post_init__(self) -> None:
        self.scheme = resamplers[self.resample]
        self.children = self.N if self.frozen is None else self.N - 1
        # the norm at which the effective sample size (total / norm)^2 is the threshold; at 1 every step resamples
        self.root = math.inf if self.threshold == 1 else math.sqrt(self.threshold * self.N)
        self.low, self.high = 1e-8 * self.N, 1e8 * self.N  # where sums of weights are safe in single precision

    def run(self) -> Run:
        model, moves = self.model, self.noise.stream("moves")
        width = self.scheme.width(self.N, self.children) + int(self.ancestor_sampling)
        uniforms = Uniforms(self.noise.stream("resample"), (width,), 1024)
        innovations = self._innovations(moves)
        x, log_w = model.start(self.N, moves.stream("start"))
        self.plain = model.series == 1 and log_w.device.type == "cpu"
        self.weigh = _Flat(self.N) if self.plain else _weigh
        increment = log_w
        before, ancestors, node = x, None, None
        if self.frozen is not None:
            increment = self._freeze(0, x, x, log_w)
        log_w = None
        if self.observers:
            self.everyone = torch.arange(self.N, device=x.device).expand(model.series, -1)
        ahead = type(model).look_ahead is not FeynmanKac.look_ahead
        for k in range(model.n + 1):
            if k:
                before, ancestors = x, self.everyone
                if k == 1 or k % uniforms.size == 0:
                    uniforms.hold(k)
                if log_w is not None and (ahead or self.poor):
                    x, log_w, ancestors = self._select(k, x, log_w, uniforms(k))
                parent = x
                x, increment = model.move(k, parent, next(innovations))
                if self.frozen is not None:
                    increment = self._freeze(k, parent, x, increment)
            log_w = self._weigh(k, log_w, increment, before)
            if self.observers:
                if node is not None:
                    node.before = None
                node = Node(k, x, log_w, self.w, ancestors, node, model.running(k))
                for observe in self.observers:
                    observe(node)
        assert log_w is not None  # there is a node 0
        return self._finish(x, log_w)

    def _innovations(self, noise: Noise) -> Iterator[Any]:
        # whole blocks, keyed by their number, as in `Uniforms`
        size = block_size(self.N)
        for block in itertools.count():
            yield from self.model.draw(size, self.N, noise.stream(str(block)))

    def _weigh(self, k: int, log_w: Tensor | None, increment: Tensor, before: Tensor) -> Tensor:
        """Sums of the weights, and who is to be resampled; log-weights leave float range only to be recentred."""
        log_w, w, sums, norms = self.weigh(log_w, increment)
        for a in sums:
            if not self.low < a < self.high:  # a NaN fails too
                highest = log_w.amax(-1, keepdim=True)
                self.highest[k] = highest.squeeze(-1)
                log_w, w, sums, norms = self.weigh(-highest, log_w)
                self._alive(k, sums, before)
                break
        root, lengths = self.root, self.model.lengths
        poor = [s for s, (a, b) in enumerate(zip(sums, norms)) if not a >= root * b]
        if poor and lengths is not None:
            poor = [s for s in poor if k < lengths[s]]
        self.w, self.poor = w, poor
        self.total.append(sums)
        self.norm.append(norms)
        self.redrawn.append(poor)
        return log_w

    def _alive(self, k: int, sums: list[float], before: Tensor) -> None:
        for s, a in enumerate(sums):
            if not 0 < a < math.inf:
                raise ParticlesDied(_obituary(k, s, self.N, before[s]), k, s)

    # -- resampling -----------------------------------------------------------------------------------------

    def _select(self, k: int, x: Tensor, log_w: Tensor, u: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Parents of the particles of node k: states, log-weights (None: zeros), and indices where someone asks."""
        eta = self.model.look_ahead(k - 1, x)
        poor, w = self.poor, self.w
        if eta is not None:
            poor, w = self._first_stage(k - 1, log_w, eta)
        if not poor:
            return x, log_w, self.everyone
        S, N = log_w.shape
        if self.plain and eta is None:
            chosen = self._choose(k, x, log_w, w, u, None)
            return torch.from_numpy(x.numpy().take(chosen.numpy()[0], 1)), None, chosen
        rows = None if len(poor) == S else torch.tensor(poor, device=x.device)
        if rows is not None:
            w, u = w[rows], u[rows]
        chosen = self._choose(k, x, log_w, w, u, rows)
        offset = rows if rows is not None else torch.arange(S, device=x.device)
        flat = (chosen + N * offset.unsqueeze(1)).view(-1) if S > 1 else chosen.view(-1)
        drawn = x.flatten(0, 1).index_select(0, flat).view(len(poor), N, *x.shape[2:])
        if rows is None and eta is None:
            return drawn, None, chosen
        fresh = log_w.new_zeros(len(poor), N) if eta is None else -eta.flatten().index_select(0, flat).view(-1, N)
        if rows is None:
            return drawn, fresh, chosen
        ancestors = None if self.everyone is None else self.everyone.index_copy(0, rows, chosen)
        return x.index_copy(0, rows, drawn), log_w.index_copy(0, rows, fresh), ancestors

    def _first_stage(self, k: int, log_w: Tensor, eta: Tensor) -> tuple[list[int], Tensor]:
        """Who resamples by the weights W eta, and these weights; their sum goes into the evidence."""
        log_v = log_w + eta
        log_sum = torch.logsumexp(log_v, -1, keepdim=True)
        v = (log_v - log_sum).exp()
        effective = 1 / (v * v).sum(-1)
        ended = self.model.running(k + 1)
        poor = ~(effective >= self.threshold * self.N) if self.threshold < 1 else torch.ones_like(effective) > 0
        poor = poor if ended is None else poor & ended
        rows = poor.nonzero().squeeze(1).tolist()
        self.redrawn[-1] = self.poor = rows
        self.stage[k] = log_sum.squeeze(-1) - torch.tensor(self.total[k], dtype=torch.float64).log().to(log_sum)
        return rows, v

    def _choose(self, k: int, x: Tensor, log_w: Tensor, w: Tensor, u: Tensor, rows: Tensor | None) -> Tensor:
        chosen = self.scheme(w, u, self.children)
        if self.frozen is None:
            return chosen
        own = torch.full_like(chosen[:, :1], self.N - 1)
        if self.ancestor_sampling:
            # by the weights of the filter: first-stage weights are no part of the target
            log_v = log_w.double() + self.model.log_transition(k, x, self.frozen[:, k].unsqueeze(1))
            log_v = log_v if rows is None else log_v[rows]
            own = pick((log_v - log_v.amax(-1, keepdim=True)).exp(), u[:, -1:])
        return torch.cat([chosen, own], 1)

    def _freeze(self, k: int, parent: Tensor, x: Tensor, log_w: Tensor) -> Tensor:
        """Put the frozen path into the last slot, in place, and weigh it there."""
        assert self.frozen is not None
        x[:, -1] = self.frozen[:, k]
        own = self.model.log_move(k, parent[:, -1], self.frozen[:, k]) if k else self.model.log_start(self.frozen[:, 0])
        return torch.cat([log_w[:, :-1], own.unsqueeze(1).to(log_w)], 1)

    # -- the end --------------------------------------------------------------------------------------------

    def _finish(self, x: Tensor, log_w: Tensor) -> Run:
        total, norm = (torch.from_numpy(np.array(v).T).to(x.device) for v in (self.total, self.norm))
        where = [(s, k) for k, rows in enumerate(self.redrawn) for s in rows]
        resampled = torch.zeros(total.shape, dtype=torch.bool, device=total.device)
        if where:
            resampled[tuple(torch.tensor(where).T)] = True
        resampled = resampled[:, :-1]
        highest = torch.zeros_like(total)
        for k, taken in self.highest.items():
            highest[:, k] = taken
        # a step begins from weights that sum to N after resampling, to the last step's total otherwise
        sums = torch.log(total)
        fresh = torch.full_like(sums[:, :-1], math.log(self.N))
        for k, log_eta in self.stage.items():
            fresh[:, k] -= log_eta.double()
        begin = torch.cat(
            [torch.full_like(sums[:, :1], math.log(self.N)), torch.where(resampled, fresh, sums[:, :-1])], 1
        )
        path = (highest + sums - begin).cumsum(1)
        final = log_w.double() - torch.log(torch.exp(log_w.double()).sum(-1, keepdim=True))
        return Run(x, final, path[:, -1], (total / norm) ** 2, resampled, path)


def _weigh(log_w: Tensor | None, increment: Tensor) -> tuple[Tensor, Tensor, list[float], list[float]]:
    """New log-weights ``(S, N)``, weights, their sums and their Euclidean norms, a number a series."""
    log_w = increment if log_w is None else log_w + increment
    w = log_w.exp()
    return log_w, w, w.sum(-1).tolist(), torch.linalg.vector_norm(w, dim=-1).tolist()


class _Flat:
    """`_weigh` for one series on the CPU, in NumPy."""

    def __init__(self, N: int) -> None:
        self.ones = {np.dtype(t): np.ones(N, t) for t in (np.float32, np.float64)}

    def __call__(self, log_w: Tensor | None, increment: Tensor) -> tuple[Tensor, Tensor, list[float], list[float]]:
        added = increment.numpy()
        if log_w is not None:
            added = log_w.numpy() + added
            increment = torch.from_numpy(added)
        w = np.exp(added)
        row = w[0]
        return increment, torch.from_numpy(w), [float(row.dot(self.ones[w.dtype]))], [math.sqrt(row.dot(row))]


def _obituary(k: int, series: int, N: int, before: Tensor) -> str:
    states = before.double().reshape(N, -1)
    low, high = states.amin(0).tolist(), states.amax(0).tolist()
    where = ", ".join(f"[{a:.4g}, {b:.4g}]" for a, b in zip(low[:4], high[:4])) + (" ..." if len(low) > 4 else "")
    return (
        f"all {N} particles of series {series} have weight zero (or a weight is NaN) at node {k}; the last states of "
        f"finite weight lay in {where}. Use more particles, a proposal that looks at the observation (guided), an "
        "observation law with wider tails, or check this observation"
    )
