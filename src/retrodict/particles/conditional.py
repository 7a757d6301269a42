"""Conditional SMC and particle Gibbs: Markov kernels on paths that leave the smoothing law invariant, for any N >= 2.

One sweep runs N-1 free particles beside a frozen path in the last slot (Andrieu, Doucet and Holenstein 2010) and
draws the next path from what it has seen, in one of four ways:

==============  ===================================================================================================
``trace``       the genealogy of a final particle; collapses to the old path far from the end
``ancestor``    the same, with the frozen path's parents redrawn on the way (Lindsten, Jordan and Schon 2014)
``backward``    backward sampling through the stored particles (Whiteley 2010)
``parisian``    the path along PaRIS' first parents; tau comes with it, so that all N particles estimate additive
                functionals: the Parisian particle Gibbs sampler (Cardoso, Janati, Le Corff, Moulines, Olsson 2023)
==============  ===================================================================================================

What makes it right at N = 2: the frozen particle stays in the pool that the others resample from; it descends from
itself, also for its weight; children are independent (multinomial); weights are cumulative over steps without
resampling, also in the backward law.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.particles.ancestry import Genealogy, History
from retrodict.particles.backward import sample_paths
from retrodict.particles.engine import Run, smc
from retrodict.particles.model import FeynmanKac
from retrodict.particles.paris import Additive
from retrodict.particles.resampling import pick

_WAYS = ("trace", "ancestor", "backward", "parisian")

Term = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sweep:
    """One sweep: the next ``path (S, n+1, ...)``, the ``estimate (S, p)`` if asked for, and the run."""

    path: Tensor
    estimate: Tensor | None
    run: Run


def sweep(
    model: FeynmanKac,
    particles: int,
    noise: Noise,
    frozen: Tensor | None,
    *,
    select: str = "backward",
    threshold: float = 0.5,
    term: Term | None = None,
    start: Callable[[Tensor], Tensor] | None = None,
    draws: int = 2,
) -> Sweep:
    """One step of the Markov kernel from the path ``frozen (S, n+1, ...)``; None starts a chain without one.

    ``term`` and ``start`` define an additive functional as in `Additive`; its estimate is that of "parisian" sweeps,
    and otherwise the genealogy's.
    """
    if select not in _WAYS:
        raise InputError(f"select is one of {', '.join(_WAYS)}; got {select!r}")
    draw = noise.stream("backward")
    functional = _functional(model, select, term, start, draws, draw)
    memory = {"backward": History, "parisian": lambda: None}.get(select, Genealogy)()
    observers = [o for o in (memory, functional) if o is not None]
    run = smc(
        model,
        particles,
        noise,
        resample="multinomial",
        threshold=threshold,
        observers=observers,
        frozen=frozen,
        ancestor_sampling=select == "ancestor" and frozen is not None,
    )
    if isinstance(memory, History):
        path = sample_paths(model, memory, 1, draw)
    else:
        last = pick(run.log_w.exp(), draw.stream("last").uniform((1,)).to(run.x.device))
        path = memory.trace(last) if memory is not None else functional.path(last)  # type: ignore[union-attr]
    return Sweep(path.squeeze(1), None if term is None else functional.estimate, run)  # type: ignore[union-attr]


def _functional(
    model: FeynmanKac,
    select: str,
    term: Term | None,
    start: Callable[[Tensor], Tensor] | None,
    draws: int,
    noise: Noise,
) -> Additive | None:
    if select == "parisian":
        return Additive(model, term, start, noise=noise, draws=draws, links=True)
    return None if term is None else Additive(model, term, start, backward="tree")


@dataclass(frozen=True)
class Chain:
    """A particle Gibbs chain.

    Attributes:
        paths: ``(sweeps, S, n+1, ...)``, burn-in left out.
        estimates: ``(sweeps, S, p)`` of the functional, or None.
        log_evidence: of each sweep's run ``(sweeps, S)`` (that of a conditional run is not unbiased).
        moved: share of sweeps in which the state at each node changed, ``(S, n+1)``.
    """

    paths: Tensor
    estimates: Tensor | None
    log_evidence: Tensor
    moved: Tensor

    @property
    def estimate(self) -> Tensor:
        """The roll-out estimate ``(S, p)``: the mean over the sweeps after burn-in."""
        if self.estimates is None:
            raise InputError("the chain was run without an additive functional; give term=")
        return self.estimates.mean(0)


def particle_gibbs(
    model: FeynmanKac,
    particles: int,
    sweeps: int,
    noise: Noise,
    *,
    burn_in: int = 0,
    select: str = "backward",
    frozen: Tensor | None = None,
    threshold: float = 0.5,
    term: Term | None = None,
    start: Callable[[Tensor], Tensor] | None = None,
    draws: int = 2,
) -> Chain:
    """``sweeps`` sweeps after ``burn_in``; without a path to start from, an unconditional run gives one.

    With select="parisian" this is PPG: bias decays geometrically in the burn-in, at a rate of order n / N.
    """
    if sweeps < 1 or burn_in < 0:
        raise InputError(f"sweeps is at least 1 and burn_in at least 0, got {sweeps} and {burn_in}")
    options = {"select": select, "threshold": threshold, "term": term, "start": start, "draws": draws}
    if frozen is None:
        frozen = sweep(model, particles, noise, None, **options).path  # type: ignore[arg-type]
    paths, estimates, evidence, moved = [], [], [], []
    for i in range(burn_in + sweeps):
        one = sweep(model, particles, noise, frozen, **options)  # type: ignore[arg-type]
        if i >= burn_in:
            paths.append(one.path)
            evidence.append(one.run.log_evidence)
            moved.append((one.path != frozen).flatten(2).any(-1) if one.path.ndim > 2 else one.path != frozen)
            if one.estimate is not None:
                estimates.append(one.estimate)
        frozen = one.path
    return Chain(
        torch.stack(paths),
        torch.stack(estimates) if estimates else None,
        torch.stack(evidence),
        torch.stack(moved).double().mean(0),
    )
