"""A diffusion or a non-linear Gaussian chain conditioned on data: the methods "guided" and "bootstrap" of an `SDE`.

One backward sweep prepares the guide (`auxiliary`), the particle engine runs it with resampling at observation
times, and what is asked for is read off the weighted paths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.inference.deaths import dated
from retrodict.inference.emissions import law_seen
from retrodict.inference.forecasts import blanks, by_particles, read_off
from retrodict.inference.guided.evidence import Evidence
from retrodict.inference.guided.model import GuidedModel, Innovations, Parents, along
from retrodict.inference.guided.steps import EulerGrid
from retrodict.inference.models import as_prior
from retrodict.inference.observed import Observed
from retrodict.inference.particle import Bootstrap
from retrodict.inference.posterior import Conditioned, register
from retrodict.inference.results import Marginals, Paths
from retrodict.inference.sde import SDE, euler_nodes
from retrodict.kernels.euler import mv
from retrodict.kernels.laws import Gaussian
from retrodict.particles import Run, smc
from retrodict.particles.ancestry import Moments, effective_families

DEFAULT_STEPS = 50


class GuidedPosterior(Conditioned):
    """Weighted paths of a process given data, and what follows from them.

    Attributes:
        log_evidence, log_evidence_se: ``(S,)``; the exponential of the first is unbiased for the Euler chain
            (not with ``weight="continuous"``).
        ess: effective number of independent paths, ``(S,)``: one over the sum of squares of the weights of families,
            a family being the paths that share a start; without resampling it is the usual effective sample size.

    Args:
        model, data: what is conditioned on what.
        make: builds the `GuidedModel`, with the options ``keep`` and ``stretches_only``.
        times: ``(S, n+1)`` of all nodes; at: node of each observation time.
        particles, seed, resample, threshold: of the engine.
    """

    def __init__(
        self,
        model: Any,
        data: Observed,
        make: Callable[..., GuidedModel],
        times: Tensor,
        at: list[int],
        particles: int,
        seed: int,
        resample: str,
        threshold: float,
    ) -> None:
        super().__init__(model, data)
        self.make, self.times, self.at = make, times, at
        self.particles, self.seed, self.resample, self.threshold = particles, seed, resample, threshold
        self.guided = make(keep=True)
        gaps = {b - a for a, b in pairwise(self.guided.bounds)} or {0}
        counts = f"{min(gaps)}" if len(gaps) == 1 else f"{min(gaps)} to {max(gaps)}"
        told = "unguided" if self.guided.weight == "none" else f"weight={self.guided.weight!r}"
        self.route = f"{particles} particles, {counts} steps between observations, {told}"

    # -- one run ---------------------------------------------------------------------------------------------

    @cached_property
    def _cloud(self) -> Cloud:
        return self._traced(self.particles, self.seed)

    def _traced(self, particles: int, seed: int) -> Cloud:
        lines, guided = Parents(), self.guided.fresh(keep=True)
        run = self._smc(guided, particles, seed, "guided", lines)
        return Cloud(run, lines.ancestors, guided.stretches, guided.used)

    def weigh(self, particles: int | None = None, seed: int | None = None) -> Run:
        """A run that keeps no paths: particles at the last observation, their log-weights, the log evidence.

        What the evidence and filtering weights cost alone.

        Args:
            particles, seed: those of the posterior by default.
        """
        particles, seed = self.particles if particles is None else particles, self.seed if seed is None else seed
        return self._smc(self.guided.fresh(keep=False), particles, seed, "guided")

    def _smc(self, guided: GuidedModel, particles: int, seed: int, name: str, *observers: Any) -> Run:
        noise = KeyedNoise(seed, guided.series, name=name)
        with dated(self.times[:, guided.bounds]):
            return smc(guided, particles, noise, resample=self.resample, threshold=self.threshold, observers=observers)

    @property
    def log_evidence(self) -> Tensor:
        return self._cloud.run.log_evidence

    @property
    def log_evidence_se(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride] -- made when asked
        """Standard error of the log evidence by the weights of families (Chan and Lai 2013), ``(S,)``."""
        return (1 / self._cloud.families() - 1 / self.particles).clamp_min(0).sqrt()

    @property
    def ess(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride] -- made when asked
        return self._cloud.families()

    # -- laws and paths --------------------------------------------------------------------------------------

    def smooth(self, grid: bool = False) -> Marginals:
        """Means and covariances given all data, at the observation times; with ``grid`` at all nodes."""
        path = self._cloud.path().movedim(1, 0)  # (S, nodes, N, d)
        w = torch.softmax(self._cloud.run.log_w, -1)
        mean = torch.einsum("sn,sknd->skd", w, path)
        centred = path - mean.unsqueeze(2)
        cov = torch.einsum("sn,sknd,skne->skde", w, centred, centred)
        return self._marginals(mean, cov, grid)

    def filter(self) -> Marginals:
        """Means and covariances given what was seen so far, at the observation times.

        The particles of the smoother have looked into the future; a filter is a run of its own, guided no further
        than the next observation.
        """
        guided = self.make(keep=False, stretches_only=True)
        moments = Moments()
        self._smc(guided, self.particles, self.seed, "filter", moments)
        index = torch.tensor([guided.bounds.index(k) for k in self.at])
        return self._marginals(moments.mean[:, index], moments.cov[:, index], False, picked=True)

    def forecast(self, times: Any, of: str = "state") -> Marginals:
        noise, ends = KeyedNoise(self.seed, self.guided.series, name="forecast"), self.guided.ends
        path, series = self._cloud.path(), torch.arange(self.guided.series)
        last = path[-1] if ends is None else path[torch.tensor(ends), series]
        cloud = last, self._cloud.run.log_w
        if not isinstance(self.model, SDE):
            return by_particles(self.model, self.data, Bootstrap, cloud, times, of, noise)
        later = blanks(self.data, times)
        emission = law_seen(self.model.observation, last[:1, 0].detach(), self.data)[0]
        return read_off(later, emission, self._euler(later, last, noise), cloud[1], of)

    def _euler(self, later: Observed, x: Tensor, noise: KeyedNoise) -> Iterator[Tensor]:
        """States at the times of ``later``, from x at the first one, with as many steps between as in the data."""
        steps = max((b - a for a, b in pairwise(self.guided.bounds)), default=DEFAULT_STEPS)
        nodes = euler_nodes(later.times[:, :1], later.times[:, 1:], steps)
        grid = EulerGrid(self.model.drift, self.model.diffusion, nodes, x.shape[-1], len(x))
        yield x
        for k in range(grid.n):
            x = grid.mean(k, x) + mv(grid.root(k, x), noise.normal((x.shape[1], grid.r)).double())
            if (k + 1) % steps == 0:
                yield x

    def sample(self, n: int, seed: int = 0) -> Paths:
        """``n`` weighted paths at all nodes of the grid, with the innovations that drove them.

        The log of the mean weight of the paths estimates the log evidence.
        """
        if n < 1:
            raise InputError(f"n is at least 1, got {n}")
        cloud = self._traced(n, seed)
        log_w = (cloud.run.log_w + cloud.run.log_evidence[:, None] + math.log(n)).T
        return self._paths(cloud.path(), log_w, cloud.innovations())

    def follow(self, innovations: Innovations) -> Paths:
        """The paths that given innovations drive, and their log-weights: a deterministic map."""
        return self._paths(*self.guided.path(innovations), innovations)

    def _paths(self, path: Tensor, log_w: Tensor, innovations: Innovations) -> Paths:
        log_w = log_w if log_w.shape[-1] == path.shape[1] else log_w.T
        x = path.permute(2, 1, 0, 3)
        return Paths(x, log_w, self.times, innovations, axis=self.data.axis, single=self.data.single)

    def _marginals(self, mean: Tensor, cov: Tensor, grid: bool, picked: bool = False) -> Marginals:
        times = self.times
        if not grid:
            index = torch.tensor(self.at)
            times = self.data.times
            mean, cov = (mean, cov) if picked else (mean[:, index], cov[:, index])
            gone = ~self.data.real
            mean, cov = (
                mean.masked_fill(gone[..., None], float("nan")),
                cov.masked_fill(gone[..., None, None], float("nan")),
            )
        return Marginals(
            times, mean, cov, log_evidence=self.log_evidence, exact=False, axis=self.data.axis, single=self.data.single
        )


class Cloud:
    """The weighted paths that a run leaves: fine stretches, traced through the genealogy."""

    def __init__(self, run: Run, ancestors: list[Tensor], stretches: list[Tensor], used: list[Tensor]) -> None:
        self.run, self.stretches, self.used = run, stretches, used
        S, N = run.log_w.shape
        line = torch.arange(N).expand(S, N)
        self.lines = [line]
        for parents in reversed(ancestors):
            line = parents.gather(1, line)
            self.lines.insert(0, line)

    def families(self) -> Tensor:
        """Effective number of families, ``(S,)``."""
        return effective_families(self.lines[0], self.run.log_w)

    def path(self) -> Tensor:
        """States ``(nodes, S, N, d)`` of the paths that are alive at the end."""
        return torch.cat([along(part, line) for part, line in zip(self.stretches, self.lines)])

    def innovations(self) -> Innovations:
        """What drove them."""
        start = along(self.used[0].unsqueeze(0), self.lines[0])[0]
        parts = [along(part, line) for part, line in zip(self.used[1:], self.lines[1:])]
        S, N, d = start.shape
        return Innovations(start, torch.cat(parts) if parts else torch.zeros(0, S, N, d, dtype=start.dtype))


# --- an SDE on data ---------------------------------------------------------------------------------------------


def conditioned_sde(
    model: SDE,
    data: Observed,
    start: Any = None,
    steps: int = DEFAULT_STEPS,
    particles: int = 1000,
    seed: int = 0,
    weight: str = "doob",
    auxiliary: Any = "auto",
    rounds: int | None = None,
    grid: str = "auto",
    resample: str = "systematic",
    threshold: float = 0.5,
) -> GuidedPosterior:
    """An SDE conditioned on observations.

    Args:
        start: the state at ``t0``, ``(d,)`` or ``(S, d)``, or a law of it; by default the model's prior.
        steps: Euler steps between consecutive times.
        particles, seed: of the runs; resample, threshold: at observation times.
        weight: "doob", "path" or "continuous" (see `guides`).
        auxiliary, rounds: see `auxiliary`.
        grid: "uniform", or "tau": nodes at ``s (2 - s/T)``, denser toward each observation; "auto" takes "tau" for
            ``weight="continuous"``.
    """
    if grid not in ("auto", "uniform", "tau"):
        raise InputError(f"grid is 'auto', 'uniform' or 'tau', got {grid!r}")
    if steps < 1 or particles < 1:
        raise InputError(f"steps and particles are at least 1, got steps={steps}, particles={particles}")
    law, d, tilt = start_law(model.prior if start is None else start, len(data))
    t, at = _grid(data, model.t0, int(steps), grid == "tau" or (grid == "auto" and weight == "continuous"))
    fine = EulerGrid(model.drift, model.diffusion, t, d, len(data))
    probe = torch.zeros(1, d, dtype=torch.float64)
    emission, data = law_seen(model.observation, probe, data)
    y, seen = data.filled
    ends = [at[int(n) - 1] for n in data.lengths]

    def make(keep: bool = True, stretches_only: bool = False) -> GuidedModel:
        """The guided model, prepared."""
        evidence = Evidence(at, fine.n + 1, d, emission, y, seen)
        return GuidedModel(
            fine, evidence, law, weight, auxiliary, rounds, tilt, stretches_only=stretches_only, keep=keep, ends=ends
        )

    times = t.expand(len(data), -1)
    return GuidedPosterior(model, data, make, times, at, particles, seed, resample, threshold)


@register("guided", SDE, auto=0)
def guided(
    model: SDE,
    data: Observed,
    start: Any = None,
    steps: int = DEFAULT_STEPS,
    particles: int = 1000,
    seed: int = 0,
    weight: str = "doob",
    auxiliary: Any = "auto",
    rounds: int | None = None,
    grid: str = "auto",
    resample: str = "systematic",
    threshold: float = 0.5,
) -> GuidedPosterior:
    """Backward filtering forward guiding; see `conditioned_sde` for the options."""
    return conditioned_sde(
        model, data, start, steps, particles, seed, weight, auxiliary, rounds, grid, resample, threshold
    )  # fmt: skip


@register("bootstrap", SDE)
def bootstrap(
    model: SDE,
    data: Observed,
    start: Any = None,
    steps: int = DEFAULT_STEPS,
    particles: int = 1000,
    seed: int = 0,
    resample: str = "systematic",
    threshold: float = 0.5,
) -> GuidedPosterior:
    """The same engine with h = 1: paths that know nothing of the future."""
    return conditioned_sde(
        model, data, start, steps, particles, seed, "none", resample=resample, threshold=threshold
    )  # fmt: skip


def start_law(start: Any, series: int) -> tuple[tuple[Tensor, Tensor], int, Callable[[Tensor], Tensor] | None]:
    """Mean ``(S, d)`` and covariance of node 0; d; the log-ratio of the true law to that Gaussian, or None."""
    if start is None:
        raise InputError("the state at t0 is not known: give start=x0, or SDE(..., prior=law)")
    start = start() if callable(start) else start
    if isinstance(start, Gaussian) or isinstance(start, torch.distributions.Distribution):
        law, kind, d = as_prior(start)
        if kind != "real":
            raise InputTypeError("the state of an SDE is real; its prior is a law of vectors")
        if isinstance(law, Gaussian):
            return (law.mean.expand(series, d), law.cov.value.expand(series, d, d)), d, None
        mean, variance = (v.double().reshape(-1).expand(d) for v in (law.mean, law.variance))
        if not bool(torch.isfinite(variance).all()):
            raise InputError(f"the prior {type(law).__name__} has no finite variance; give start=, or a lighter prior")
        near = torch.distributions.Normal(mean, variance.sqrt())

        def tilt(x: Tensor) -> Tensor:
            value = x if law.event_shape or law.batch_shape else x[..., 0]
            inside = law.support.check(value)  # type: ignore[union-attr]
            safe = torch.where(inside.unsqueeze(-1) if inside.ndim < value.ndim else inside, value, law.mean)
            log_p = torch.where(inside, law.log_prob(safe), -torch.inf)
            log_p = log_p.sum(-1) if log_p.ndim == x.ndim else log_p
            return log_p - near.log_prob(x).sum(-1)

        return (mean.expand(series, d), torch.diag(variance).expand(series, d, d)), d, tilt
    x0 = torch.as_tensor(start, dtype=torch.float64)
    x0 = x0.reshape(1, -1) if x0.ndim < 2 else x0
    if x0.ndim != 2 or x0.shape[0] not in (1, series) or not bool(torch.isfinite(x0).all()):
        raise InputError(f"start is one finite state (d,) or one a series ({series}, d), got shape {tuple(x0.shape)}")
    d = x0.shape[1]
    return (x0.expand(series, d), torch.zeros(series, d, d, dtype=torch.float64)), d, None


def _grid(data: Observed, t0: float, steps: int, dense: bool) -> tuple[Tensor, list[int]]:
    """Nodes ``(S|1, n+1)`` and the node of each observation time."""
    times = data.times
    last = torch.nan_to_num(times, nan=-torch.inf).amax(1, keepdim=True)
    times = torch.where(torch.isnan(times), last, times)
    if bool((times[:, 0] < t0).any()):
        s = int((times[:, 0] < t0).nonzero()[0])
        raise InputError(f"t0 = {t0:g} lies after the first observation of series {s}, at {float(times[s, 0]):g}")
    if bool((times == times[:1]).all()):
        times = times[:1]
    begins = bool((times[:, 0] == t0).all())  # the state is seen at its start: no interval before
    ends = times[:, 1:] if begins else times
    nodes = euler_nodes(t0, ends, steps) if ends.shape[1] else times[:, :1]
    if dense and nodes.shape[1] > 1:
        share = torch.arange(steps, dtype=torch.float64) / steps
        first = torch.cat((torch.full_like(ends[:, :1], t0), ends[:, :-1]), 1)
        inner = first[..., None] + (ends - first)[..., None] * (share * (2 - share))
        nodes = torch.cat((inner.flatten(1), ends[:, -1:]), 1)
    at = [(j if begins else j + 1) * steps for j in range(times.shape[1])]
    return nodes, at
