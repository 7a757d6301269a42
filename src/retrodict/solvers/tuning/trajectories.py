"""Trajectories to tune on: starts, and where an accurate run takes them.

The teacher is a plan of many evaluations.  Its own error is told by a plan of half as many from the same starts; it
has to be small beside the errors of the plans that are tuned.  Noise is keyed by (seed, i), so that more trajectories
of one seed begin with the same ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from retrodict.core.errors import InputError, require
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.solvers import auto
from retrodict.solvers.build import plan as make_plan
from retrodict.solvers.plan import Plan
from retrodict.solvers.runtime import compiled


@dataclass(frozen=True)
class Trajectories:
    """Starts and ends of runs.

    Attributes:
        start: states at t = 1 ``(n, *shape)``, in the model's units; end: where the teacher took them.
        condition: conditions by name, each ``(n, ...)``.
        shared: conditions that all of them have in common.
    """

    start: Tensor
    end: Tensor
    condition: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.start)

    def take(self, pick: slice | Tensor) -> Trajectories:
        """Some of them."""
        condition = {name: value[pick] for name, value in self.condition.items()}
        return Trajectories(self.start[pick], self.end[pick], condition, self.shared)

    def batches(self, size: int) -> list[Trajectories]:
        """All of them in order, ``size`` at a time."""
        return [self.take(slice(low, low + size)) for low in range(0, len(self), size)]

    def mean(self, denoiser: Denoiser) -> Callable[[Tensor, Any], Tensor]:
        """The denoiser with these trajectories' conditions."""
        words = {**self.condition, **self.shared}
        return lambda x, t: denoiser(x, t, **words)

    @torch.no_grad()
    def run(self, denoiser: Denoiser, plan: Plan, batch: int = 256) -> Tensor:
        """Where a deterministic plan takes the starts."""
        walk = compiled(plan)
        return torch.cat([walk(part.mean(denoiser), part.start, {}) for part in self.batches(batch)])

    def errors(self, end: Tensor) -> Tensor:
        """Euclidean distances of results to the teacher's ``(n,)``, float64, in the model's units."""
        return (end.double() - self.end.double()).flatten(1).norm(dim=1)

    def error(self, denoiser: Denoiser, plan: Plan, batch: int = 256) -> float:
        """Root mean square of `errors` for a plan; infinite if it is not finite."""
        value = float(rms(self.errors(self.run(denoiser, plan, batch))))
        return value if value == value else float("inf")


def rms(errors: Tensor) -> Tensor:
    """Root mean square."""
    return errors.square().mean().sqrt()


def teacher(denoiser: Denoiser, nfe: int, guidance: float = 1.0) -> Plan:
    """The plan of many evaluations: the everyday choice of ``solver="auto"`` at that budget."""
    choice = auto.choose(denoiser.process, nfe, guidance=guidance, shape=denoiser.shape)
    return make_plan(choice.solver, denoiser.process, nfe=nfe, grid=choice.grid, eta=choice.eta, **choice.options)


@torch.no_grad()
def teach(
    denoiser: Denoiser,
    n: int,
    plan: Plan,
    *,
    shape: tuple[int, ...],
    seed: int = 0,
    condition: Mapping[str, Any] | None = None,
    batch: int = 256,
    on_batch: Callable[[int], None] | None = None,
) -> Trajectories:
    """Run a teacher.

    Args:
        n: how many trajectories; shape: of one state.
        condition: tensors are repeated in turn over the trajectories, other values are shared by all.
        on_batch: called with the number of trajectories that are ready.
    """
    noise = KeyedNoise(seed, n, dtype=denoiser.dtype, device=denoiser.device)
    start = denoiser.prior(shape, noise.stream("prior"))
    each, shared = {}, {}
    for name, value in (condition or {}).items():
        if isinstance(value, Tensor) and value.ndim:
            each[name] = value.to(denoiser.device)[torch.arange(n) % len(value)]
        else:
            shared[name] = value
    blank = Trajectories(start, torch.zeros_like(start), each, shared)
    walk, ends = compiled(plan), []
    for part in blank.batches(batch):
        ends.append(walk(part.mean(denoiser), part.start, {}))
        if on_batch is not None:
            on_batch(len(part))
    made = Trajectories(start, torch.cat(ends), each, shared)
    require(bool(torch.isfinite(made.end).all()), "the teacher's runs are not finite; lower the guidance")
    return made


# -- files ----------------------------------------------------------------------------------------------------


def fingerprint(denoiser: Denoiser, **facts: Any) -> str:
    """Twelve hexadecimal digits that change with the model's weights, its process, or any fact."""
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=_plain).encode(), digest_size=6)
    process = denoiser.process
    digest.update(json.dumps(process.config() if process.can_save else repr(process), default=_plain).encode())
    for name, tensor in (*denoiser.named_parameters(), *denoiser.named_buffers()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else repr(value)


def save(trajectories: Trajectories, path: Path) -> None:
    """Write starts, ends and conditions as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"start": trajectories.start, "end": trajectories.end}
    tensors |= {f"condition.{name}": value for name, value in trajectories.condition.items()}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def load(path: Path, device: torch.device, shared: Mapping[str, Any]) -> Trajectories:
    """Read a file of `save`."""
    try:
        tensors = load_file(path, device=str(device))
        condition = {k.removeprefix("condition."): v for k, v in tensors.items() if k.startswith("condition.")}
        return Trajectories(tensors["start"], tensors["end"], condition, dict(shared))
    except (OSError, KeyError, SafetensorError) as error:
        raise InputError(f"{path} holds no trajectories: {error}; remove it to have them made again") from error
