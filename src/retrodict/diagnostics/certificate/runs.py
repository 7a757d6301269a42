"""Measurements that run a plan: what it evaluates, what it repeats, and whether its normal form says the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from retrodict.core.noise import KeyedNoise, Noise
from retrodict.denoisers import Denoiser
from retrodict.diagnostics.certificate.finding import Finding, deviation
from retrodict.kernels import Belief
from retrodict.solvers import general, runtime
from retrodict.solvers.plan import Plan


class Recorder(Denoiser):
    """A denoiser that counts its evaluations and keeps their beliefs."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner.process, inner.shape, inner.conditions)
        self.inner, self.temperature = inner, inner.temperature
        self.beliefs: list[Belief] = []

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Belief:
        self.beliefs.append(self.inner.belief(x, t, **condition))
        return self.beliefs[-1]


class _Listening(Noise):
    """A noise source that keeps the normals it gave."""

    def __init__(self, inner: Noise, heard: list[Tensor]) -> None:
        self.inner, self.heard = inner, heard
        self.batch, self.dtype, self.device = inner.batch, inner.dtype, inner.device

    def normals(self, rows: int, shape: Any) -> list[Tensor]:
        self.heard += self.inner.normals(rows, shape)
        return self.heard[len(self.heard) - rows :]

    def uniform(self, shape: Any = ()) -> Tensor:
        return self.inner.uniform(shape)

    def stream(self, name: str) -> Noise:
        return _Listening(self.inner.stream(name), self.heard)


def execute(plan: Plan, denoiser: Denoiser, x: Tensor, noise: Noise, fast: bool = True, **condition: Any) -> Tensor:
    """Run a plan from x, on the fast runtime where it can."""
    if fast and runtime.is_fast(plan):
        return runtime.run(plan, denoiser, x, noise, condition)
    return general.run(plan, denoiser, x, noise, condition).x


def start(
    plan: Plan, denoiser: Denoiser, slots: Any, shape: tuple[int, ...], seed: int = 0, x1: Tensor | None = None
) -> tuple[Tensor, Noise]:
    """Float64 states at the plan's start that depend on the slots only, and the noise that goes on from them."""
    noise = KeyedNoise(seed, slots, dtype=torch.float64)
    return denoiser.prior(shape, noise.stream("prior"), x1), noise


def unroll(plan: Plan, denoiser: Denoiser, x: Tensor, seed: int = 0, tol: float = 1e-9, **condition: Any) -> Finding:
    """Whether the normal form, fed with the evaluations and noises of a run, gives the run's output."""
    recorder, heard = Recorder(denoiser), []
    noise = _Listening(KeyedNoise(seed, len(x), dtype=x.dtype), heard)
    out = execute(plan, recorder, x, noise, fast=False, **condition)
    form = plan.normal_form()
    values = [x, *(b.mean for b in recorder.beliefs)]
    values += [b.x1 if b.x1 is not None else torch.zeros_like(x) for b in recorder.beliefs] + heard[: plan.noises]
    unrolled = sum(float(w) * v for w, v in zip(form.output, values))
    error = float((unrolled - out).abs().max() / out.abs().max().clamp_min(1.0))
    return deviation("unrolled", error, tol, "normal form against the run")


def evaluations(plan: Plan, denoiser: Denoiser, x: Tensor, seed: int = 0, **condition: Any) -> Finding:
    """Denoiser calls that a run makes, against the plan's nfe."""
    recorder = Recorder(denoiser)
    execute(plan, recorder, x, KeyedNoise(seed, len(x), dtype=x.dtype), fast=False, **condition)
    count = len(recorder.beliefs)
    return Finding("evaluations", count, plan.nfe, count == plan.nfe, f"{count} calls, {plan.nfe} declared")


def reproducibility(
    plan: Plan,
    denoiser: Denoiser,
    shape: tuple[int, ...],
    n: int = 8,
    seed: int = 0,
    tol: float = 0.0,
    x1: Tensor | None = None,
) -> Finding:
    """Largest difference of samples 0..n-1 between one batch and single slots; zero for element-wise denoisers."""

    def run(slots: list[int]) -> Tensor:
        other = None if x1 is None else x1[slots]
        x, noise = start(plan, denoiser, slots, shape, seed, other)
        known: dict[str, Any] = {} if other is None or "x1" not in denoiser.conditions else {"x1": other}
        return execute(plan, denoiser, x, noise, **known)

    together = run(list(range(n)))
    alone = torch.cat([run([i]) for i in range(n)])
    return deviation("reproducibility", float((together - alone).abs().max()), tol, "one batch against single slots")
