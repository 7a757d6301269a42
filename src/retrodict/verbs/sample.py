"""``sample``: run a denoiser backward along a plan.

The noise of sample i is a function of (seed, i) alone: bitwise the same for every batch size, for any number of
processes and in any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor
from tqdm.auto import tqdm

from retrodict.core.errors import InputError, InputTypeError, NonFiniteError
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser, Guided
from retrodict.particles import Population
from retrodict.processes import Discrete, GaussianPath, Process
from retrodict.solvers import Plan, auto, general, runtime, solvers
from retrodict.solvers import plan as make_plan
from retrodict.solvers.inversion import Inversion
from retrodict.solvers.parallel import Parallel, ParallelRun
from retrodict.solvers.parallel import run as run_parallel
from retrodict.solvers.plan import as_plan
from retrodict.steering import Steered
from retrodict.steering.plans import EVALUATIONS
from retrodict.verbs.samples import Samples, Trajectory


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    n: int,
    *,
    solver: str = "auto",
    steps: int | None = None,
    nfe: int | None = None,
    plan: Plan | str | Path | None = None,
    grid: Any = None,
    eta: float | None = None,
    start: float = 1.0,
    end: float | None = None,
    options: dict[str, Any] | None = None,
    guidance: float = 1.0,
    population: str | bool | Population = "auto",
    init: Tensor | Inversion | None = None,
    x1: Tensor | None = None,
    shape: tuple[int, ...] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    trajectory: bool = False,
    parallel: bool | Parallel = False,
    progress: bool = True,
    noise_device: str | None = None,
    **condition: Any,
) -> Samples:
    """Draw samples.

    Args:
        denoiser: what to run backward.
        n: number of samples.
        solver, steps, nfe, grid, eta, start, end, options: what `retrodict.plan` takes; ``options`` go to the solver.
            By default ``solver="auto"`` with nfe 20, of a conditioned denoiser 60 (64 steps for tokens).
        plan: a `Plan` or a file of one, instead of those; of several that `tune` wrote ``nfe`` picks one.
        guidance: classifier-free guidance scale w, (1 - w) null + w conditional; 1 is plainly conditional.
        population: "auto" (True if the denoiser carries weights and n >= 2), False, True (all samples are one
            population) or a `Population`, which makes ``n`` populations and returns one draw of each.
        init: the state at the plan's start, in the model's units; needed when it is not t = 1.  Or what `invert`
            returned, which brings its plan.
        x1: the known other end, on a path with two ends.
        shape: event shape, where the denoiser does not know it.
        seed: keys all noise; batch_size: how many samples run at once.
        trajectory: keep every evaluated state.
        parallel: make the evaluations of a sample in a few large batches, corrected until they agree with those in
            sequence: less latency for more evaluations.  True or a `Parallel`.
        noise_device: "cpu" makes the noise equal on every device.
        condition: conditions that the denoiser declares; tensors of length n are per sample, others shared.

    Returns:
        `Samples`.
    """
    check_denoiser(denoiser, n)
    denoiser.check_condition(condition)
    if guidance != 1.0:
        denoiser, population = _guided(denoiser, guidance, population)
    preferred = denoiser.preferred if isinstance(denoiser, Steered) and solver == "auto" and plan is None else None
    if preferred is not None and not preferred.weighted:  # its moves have no weights: they are for populations no plan
        preferred, population = (None, population) if population not in ("auto", False) else (preferred, False)
    crowd = _population(denoiser, n, population)
    how = _parallel(parallel, crowd, trajectory)
    words = {"steps": steps, "nfe": nfe, "grid": grid, "eta": eta, "start": start, "end": end}
    if isinstance(init, Inversion):
        if plan is not None:
            raise InputError("an inversion brings its own plan: leave out plan=")
        plan, init = init.plan, init.init
    plan = _plan(denoiser, plan, solver, words, options or {}, guidance, crowd, preferred)
    _check_start(plan, init)
    _check_density(plan, denoiser, crowd)
    _check_ends(plan, x1)
    _check_values(denoiser.process, init, x1)
    shape = _shape(denoiser, shape, init if init is None or not plan.paired else init[:, 0], x1)
    particles = n * crowd.size if crowd is not None and crowd.size is not None else n
    copies = particles // n
    inputs = _Inputs(denoiser, n, copies, init, x1, condition, shape, crowd)
    with evaluating(denoiser):
        chunks = list(_chunks(n, particles, batch_size, crowd))
        with tqdm(
            total=plan.nfe * len(chunks), disable=None if progress else True, desc="sampling", unit="eval"
        ) as bar:
            parts = [
                _run(plan, denoiser, inputs, seed, chunk, crowd, trajectory, bar, noise_device, how) for chunk in chunks
            ]
    run = _join(parts, plan)
    samples = _samples(run, plan, denoiser, crowd, seed, copies)
    samples.rounds = max((p.rounds for p in parts if isinstance(p, ParallelRun)), default=samples.rounds)
    return samples


# -- checks ---------------------------------------------------------------------------------------------------


def check_denoiser(denoiser: Denoiser, n: int) -> None:
    if not isinstance(denoiser, Denoiser):
        raise InputTypeError(
            f"sample takes a Denoiser, got {type(denoiser).__name__}; "
            "wrap a network with Denoiser.wrap(network, process, predicts=...)"
        )
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(f"n is the number of samples, an integer of at least 1; got {n!r}")


def _guided(denoiser: Denoiser, guidance: float, population: Any) -> tuple[Denoiser, Any]:
    if not math.isfinite(guidance):
        raise InputError(f"guidance is a finite scale, got {guidance}")
    # the everyday use of guidance mixes labels in a batch and wants no weights; ask for a population to have them
    return Guided(denoiser, guidance), False if population == "auto" else population


def _population(denoiser: Denoiser, n: int, population: Any) -> Population | None:
    if population == "auto":
        population = denoiser.weighted and n >= 2
    if population is False:
        return None
    crowd = Population() if population is True else population
    if not isinstance(crowd, Population):
        raise InputError(f"population is 'auto', True, False or a Population, got {population!r}")
    if crowd.size is None and n < 2:
        raise InputError("a population of one carries no weights: ask for n >= 2, or Population(size=K)")
    return crowd


def _parallel(parallel: bool | Parallel, crowd: Population | None, trajectory: bool) -> Parallel | None:
    if not isinstance(parallel, (bool, Parallel)):
        raise InputTypeError(f"parallel is True, False or a Parallel, got {type(parallel).__name__}")
    if parallel is False:
        return None
    if crowd is not None:
        raise InputError("parallel=True carries no weights: pass population=False, or leave parallel= out")
    if trajectory:
        raise InputError(
            "parallel=True keeps no trajectory, its states are guesses till the end: leave one of them out"
        )
    return Parallel() if parallel is True else parallel


def _plan(
    denoiser: Denoiser,
    plan: Any,
    solver: str,
    words: dict[str, Any],
    options: dict[str, Any],
    guidance: float,
    crowd: Population | None,
    preferred: auto.Choice | None = None,
) -> Plan:
    """The given plan, or one made from the words."""
    process = denoiser.process
    if plan is not None:
        return as_plan(plan, process, words | {"solver": solver, "options": options}, solver="auto", start=1.0)
    if words["steps"] is None and words["nfe"] is None and not _is_times(words["grid"]):
        if process.state != "real":
            words["steps"] = 64
        else:
            words["nfe"] = EVALUATIONS if isinstance(denoiser, Steered) else 20
    if solver == "auto":
        budget = words["nfe"] or words["steps"]
        choice = preferred or auto.choose(
            process, budget, guidance=guidance, population=crowd is not None, shape=denoiser.shape
        )
        words = words | {
            "grid": choice.grid if words["grid"] is None else words["grid"],
            "eta": choice.eta if words["eta"] is None else words["eta"],
        }
        solver, options = choice.solver, choice.options | options
    return make_plan(solver, process, **words, **options)


def _check_density(plan: Plan, denoiser: Denoiser, crowd: Population | None) -> None:
    """Weights of moves that potentials bend are ratios of densities; potentials that only weigh need a population."""
    if crowd is None and isinstance(denoiser, Steered) and not denoiser.acts_in(plan):
        raise InputError(
            "the potentials only weigh, they do not move the samples: without a population they would be ignored; "
            "ask for n >= 2, Population(size=K), or a method with a gradient such as 'mmps'"
        )
    if crowd is not None and isinstance(denoiser, Steered) and denoiser.needs_density and not plan.has_density:
        eta = plan.meta.get("eta")
        raise InputError(
            f"the plan {plan.meta.get('solver', '')!r} (eta={eta}) moves without fresh noise, and weights of a steered "
            "population need densities: use solver='ddim' with eta=1 (or any eta above 0), or population=False"
        )


def _is_times(grid: Any) -> bool:
    return grid is not None and not isinstance(grid, (str, dict)) and hasattr(grid, "__len__")


def _check_start(plan: Plan, init: Tensor | None) -> None:
    if plan.start_time < 1 and init is None and not _is_noise(plan.process, plan.start_time):
        raise InputError(
            f"the plan starts at t = {plan.start_time:g}: pass init, the state there "
            "(process.corrupt(x0, t, noise) makes one from a datum)"
        )


def _check_ends(plan: Plan, x1: Tensor | None) -> None:
    """A solver of one unknown end drops the terms of a second one that is unknown too."""
    name: Any = plan.meta.get("solver")
    if len(plan.process.ends) == 2 and x1 is None and name in solvers and solvers[name].ends == 1:
        able = ", ".join(sorted({entry.name for _, entry in solvers.items() if entry.ends == 2}))
        raise InputError(f"solver {name!r} knows one unknown end, and this path has two: pass x1=, or use {able}")


def _check_values(process: Process, init: Tensor | None, x1: Tensor | None) -> None:
    """States of a discrete process are its values."""
    if isinstance(process, Discrete):
        for value, name in ((init, "init"), (x1, "x1")):
            if value is not None:
                process.check(value, name, noisy=name == "init")


def _is_noise(process: Process, t: float) -> bool:
    """Whether the state at t is noise but for 5% of signal, so that the prior will do as its law."""
    if not isinstance(process, GaussianPath) or not process.scalar or len(process.ends) == 2:
        return False
    return float(process.alpha(t)) < 0.05 * float(process.sigma(t)) * float(process.alpha(0.0))


def _shape(denoiser: Denoiser, shape: Any, init: Tensor | None, x1: Tensor | None) -> tuple[int, ...]:
    known = denoiser.shape
    for given, name in ((init, "init"), (x1, "x1")):
        if given is not None and known is not None and tuple(given.shape[1:]) != tuple(known):
            raise InputError(
                f"{name} has shape {tuple(given.shape)}; samples of this denoiser are (n, {_commas(known)})"
            )
        if given is not None and known is None:
            known = tuple(given.shape[1:])
    if shape is not None and known is not None and tuple(shape) != tuple(known):
        raise InputError(f"shape={tuple(shape)} does not meet the denoiser's shape {tuple(known)}")
    known = tuple(shape) if shape is not None else known
    if known is None:
        raise InputError("this denoiser does not know the shape of a sample; pass shape=(...), without the batch axis")
    return tuple(known)


def _commas(shape: tuple[int, ...]) -> str:
    return ", ".join(str(s) for s in shape)


class _Inputs:
    """Starts, other ends and conditions, cut to the samples of a chunk."""

    def __init__(
        self,
        denoiser: Denoiser,
        n: int,
        copies: int,
        init: Tensor | None,
        x1: Tensor | None,
        condition: dict[str, Any],
        shape: tuple[int, ...],
        crowd: Population | None,
    ) -> None:
        self.n, self.copies, self.shape = n, copies, shape
        self.per_sample: dict[str, Tensor] = {}
        self.shared: dict[str, Any] = {}
        for name, value in condition.items():
            self._add(denoiser, name, value)
        self.init, self.x1 = (self._full(v, name, denoiser) for v, name in ((init, "init"), (x1, "x1")))
        if crowd is not None and crowd.size is None:
            for name, value in self.per_sample.items():
                if len(torch.unique(value, dim=0)) > 1:
                    raise InputError(
                        f"samples of one population share their conditions, {name!r} varies; use "
                        "Population(size=K), which gives every sample a population of its own"
                    )

    def _add(self, denoiser: Denoiser, name: str, value: Any) -> None:
        if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.ndim == 0):
            value = torch.full((self.n,), value) if not isinstance(value, Tensor) else value.expand(self.n)
        if isinstance(value, (list, tuple)):
            value = torch.as_tensor(value)
        if isinstance(value, Tensor) and len(value) == self.n:
            self.per_sample[name] = check_labels(denoiser, name, value.to(denoiser.device))
        elif isinstance(value, Tensor) and len(value) not in (1, self.n) and name == "label":
            raise InputError(f"condition {name!r} has length {len(value)} for n={self.n} samples")
        else:
            self.shared[name] = value.to(denoiser.device) if isinstance(value, Tensor) else value

    def _full(self, value: Tensor | None, name: str, denoiser: Denoiser) -> Tensor | None:
        if value is None:
            return None
        if len(value) not in (1, self.n):
            raise InputError(f"{name} has length {len(value)}; pass one state, or n={self.n}")
        return value.expand(self.n, *value.shape[1:]).to(denoiser.device)

    def condition(self, index: Tensor) -> dict[str, Any]:
        index = index // self.copies
        condition = {k: v[index] for k, v in self.per_sample.items()} | self.shared
        return condition if self.x1 is None else condition | {"x1": self.x1[index]}


def check_labels(denoiser: Denoiser, name: str, value: Tensor) -> Tensor:
    """Class labels lie in 0..K-1, or K for none."""
    null = denoiser.conditions.get(name)
    if isinstance(null, int) and not value.is_floating_point() and bool(((value < 0) | (value > null)).any()):
        bad = int(value[(value < 0) | (value > null)][0])
        raise InputError(f"{name} {bad} is out of range: classes are 0..{null - 1}, and {null} means none")
    return value


# -- running --------------------------------------------------------------------------------------------------


def _chunks(n: int, particles: int, batch_size: int | None, crowd: Population | None) -> Iterator[Tensor]:
    """Slots that run together on this process: whole populations, at most ``batch_size`` of them."""
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is at least 1, got {batch_size}")
    size = 1 if crowd is None else (crowd.size or particles)
    groups = particles // size
    state = PartialState() if torch.distributed.is_initialized() else None
    first, last = _share(groups, state)
    per_chunk = max(1, (batch_size or particles) // size)
    for low in range(first, last, per_chunk):
        yield torch.arange(low * size, min(low + per_chunk, last) * size)


def _share(groups: int, state: PartialState | None) -> tuple[int, int]:
    if state is None or state.num_processes == 1:
        return 0, groups
    if groups < state.num_processes:
        raise InputError(f"{groups} samples do not split over {state.num_processes} processes; ask for more samples")
    each, rest = divmod(groups, state.num_processes)
    first = state.process_index * each + min(state.process_index, rest)
    return first, first + each + (state.process_index < rest)


def _run(
    plan: Plan,
    denoiser: Denoiser,
    inputs: _Inputs,
    seed: int,
    index: Tensor,
    crowd: Population | None,
    trajectory: bool,
    bar: Any,
    noise_device: str | None,
    how: Parallel | None,
) -> general.Run:
    dtype = denoiser.dtype if denoiser.process.state == "real" else torch.float32
    noise = KeyedNoise(seed, index.numpy(), dtype=dtype, device=denoiser.device, source=noise_device)
    where = index.to(denoiser.device)
    condition = inputs.condition(where)
    x = _start(plan, denoiser, inputs, noise, where, condition)
    if crowd is None and not trajectory and (how is not None or runtime.is_fast(plan)):
        if how is not None:
            each = {*inputs.per_sample, "x1"}
            run = run_parallel(plan, denoiser, x, noise, condition, how, per_sample=each, on_round=bar.update)
        else:
            run = general.Run(runtime.run(plan, denoiser, x, noise, condition, bar.update))
        if run.x.is_floating_point() and not bool(torch.isfinite(run.x).all()):
            _locate(plan, denoiser, inputs, seed, index, noise_device)
        return run
    return general.run(plan, denoiser, x, noise, condition, population=crowd, trajectory=trajectory, on_eval=bar.update)


def _start(
    plan: Plan, denoiser: Denoiser, inputs: _Inputs, noise: KeyedNoise, where: Tensor, condition: dict[str, Any]
) -> Tensor:
    if inputs.init is not None:
        x = inputs.init[where // inputs.copies]
        return x.to(noise.dtype) if x.is_floating_point() and not plan.paired else x
    return denoiser.prior(inputs.shape, noise.stream("prior"), condition.get("x1"))


def _locate(
    plan: Plan, denoiser: Denoiser, inputs: _Inputs, seed: int, index: Tensor, noise_device: str | None
) -> None:
    """The result is not finite: run again with the same noise and a check at every instruction."""
    noise = KeyedNoise(seed, index.numpy(), dtype=denoiser.dtype, device=denoiser.device, source=noise_device)
    where = index.to(denoiser.device)
    condition = inputs.condition(where)
    general.run(plan, denoiser, _start(plan, denoiser, inputs, noise, where, condition), noise, condition, check=True)
    raise NonFiniteError("the samples are not finite")


@contextmanager
def evaluating(denoiser: Denoiser) -> Iterator[None]:
    training = [m for m in denoiser.modules() if m.training]
    denoiser.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


# -- results --------------------------------------------------------------------------------------------------


def _join(parts: list[general.Run], plan: Plan) -> general.Run:
    """One run out of the chunks of this process and of the others."""
    cat: Any = lambda values: None if values[0] is None else _gather(torch.cat(values))  # noqa: E731
    run = general.Run(cat([p.x for p in parts]), calls=max(p.calls for p in parts))
    run.log_weights = cat([p.log_weights for p in parts])
    run.log_evidence = cat([p.log_evidence for p in parts])
    if parts[0].ess:
        run.ess = list(cat([torch.stack(p.ess, 1) for p in parts]).T)
    if parts[0].trajectory:
        joined = [
            [torch.cat(v) for v in zip(*(entry[1:] for entry in entries))]
            for entries in zip(*(p.trajectory for p in parts))
        ]
        times = [entry[0] for entry in parts[0].trajectory]
        run.trajectory = [(t, _gather(x), _gather(mean)) for t, (x, mean) in zip(times, joined)]
    return run


def _gather(value: Tensor) -> Tensor:
    """Concatenate over processes; shares may differ in length by one group."""
    if not torch.distributed.is_initialized() or PartialState().num_processes == 1:
        return value
    lengths: Any = gather(torch.tensor([len(value)], device=value.device))
    longest = int(lengths.max())
    padded = torch.cat([value, value.new_zeros(longest - len(value), *value.shape[1:])])
    everyone: Any = gather(padded)
    everyone = everyone.view(len(lengths), longest, *value.shape[1:])
    return torch.cat([piece[: int(length)] for piece, length in zip(everyone, lengths)])


def _samples(
    run: general.Run, plan: Plan, denoiser: Denoiser, crowd: Population | None, seed: int, copies: int
) -> Samples:
    x, log_w, evidence = run.x, run.log_weights, run.log_evidence
    effective = run.ess[-1] if run.ess else None
    if copies > 1 and log_w is not None:  # one draw of each population
        x, log_w, effective = _one_each(x, log_w.view(-1, copies), seed), None, None
    units = (lambda v: v) if denoiser.scale is None else denoiser.scale.inverse
    passes = (run.calls or plan.nfe) * (2 if isinstance(denoiser, Guided) else 1)  # kept answers are no passes
    plain = "none" if denoiser.heuristic else "exact"
    correction = plain if not denoiser.weighted else ("weighted" if crowd is not None else "none")
    path = None
    if run.trajectory:
        means = [m if m.ndim == s.ndim else m.argmax(-1) for _, s, m in run.trajectory]
        states = torch.stack([s for _, s, _ in run.trajectory])
        path = Trajectory([t for t, _, _ in run.trajectory], states, torch.stack([units(m) for m in means]))
    return Samples(
        units(x),
        plan,
        plan.nfe,
        passes,
        correction,
        log_w if log_w is not None else torch.zeros(0),
        evidence,
        effective,
        torch.stack(run.ess) if run.ess else None,
        path,
        method=getattr(denoiser, "method", ""),
    )


def _one_each(x: Tensor, log_w: Tensor, seed: int) -> Tensor:
    noise = KeyedNoise(seed, len(log_w), device=x.device).stream("draw")
    pick = noise.categorical(log_w)
    return x.view(len(log_w), -1, *x.shape[1:])[torch.arange(len(log_w), device=x.device), pick]
