"""Where and in which precision a run computes, and what the processes of a run agree on (Accelerate).

Accelerate keeps process-wide state that can be set up once; `acceleration` gives each run its own and puts
back what was there, so that two runs of different precision, or a run inside a program that uses Accelerate
itself, do not disturb one another.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType

from retrodict.core.errors import InputError
from retrodict.core.registry import Registry

_T = TypeVar("_T")

PRECISIONS: Registry[str | None] = Registry("precision")
PRECISIONS.add("auto", value=None)
PRECISIONS.add("fp32", value="no")
PRECISIONS.add("bf16", value="bf16")
PRECISIONS.add("fp16", value="fp16")

_PLAIN = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
)


@contextlib.contextmanager
def acceleration(precision: str, device: str | torch.device) -> Iterator[Accelerator]:
    """An Accelerator of the wanted precision on the wanted device, alive inside the context.

    Args:
        precision: "auto" follows ``accelerate launch``, else takes bf16 on a CUDA device that has it and fp32
            anywhere else; "fp32", "bf16" or "fp16" (mixed precision: the weights stay in fp32).
        device: "auto" is the accelerator of the machine, or the CPU.

    Raises:
        InputError: an unknown precision, a device that is not there, or fp16 on the CPU.
    """
    wanted = PRECISIONS[precision]
    target = _device(device)
    # said outright, because Accelerate does not join processes launched on a machine without accelerator
    on_cpu = target.type == "cpu" if target is not None else not torch.accelerator.is_available()
    if wanted == "fp16" and (on_cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())):
        raise InputError("precision='fp16' needs a GPU; on a CPU take 'fp32' or 'bf16'")
    if wanted is None and "ACCELERATE_MIXED_PRECISION" not in os.environ:
        bf16 = not on_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        wanted = "bf16" if bf16 else "no"
    with _own_state(), _current(target):
        yield _checked(Accelerator(mixed_precision=wanted, cpu=on_cpu), target)


def _device(device: str | torch.device) -> torch.device | None:
    if isinstance(device, str) and device == "auto":
        return None
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device={device!r}; accepted: 'auto', 'cpu', 'cuda', 'cuda:1', 'mps'") from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={device!r}, but this machine has {torch.cuda.device_count()} CUDA devices")
    return target


def _checked(accelerator: Accelerator, target: torch.device | None) -> Accelerator:
    if target is not None and accelerator.device.type != target.type:
        raise InputError(f"device={str(target)!r} was asked for, but Accelerate chose {accelerator.device}; use 'auto'")
    if accelerator.distributed_type not in _PLAIN:
        raise InputError(
            f"training was launched as {accelerator.distributed_type.value}; accepted: one process, or "
            "data-parallel processes (DDP); launch with `accelerate launch --multi_gpu` or with torchrun"
        )
    return accelerator


@contextlib.contextmanager
def _own_state() -> Iterator[None]:
    """Set Accelerate's shared state aside; the process group, which lives as long as the process, is kept."""
    plain = PartialState._shared_state.get("distributed_type") in (None, DistributedType.NO)
    saved: list[tuple[Any, dict[str, Any]]] = [
        (cls, dict(cls._shared_state)) for cls in (AcceleratorState, GradientState)
    ]
    if plain:  # one process may move between devices from one run to the next
        saved.append((PartialState, dict(PartialState._shared_state)))
    for cls, _ in saved:
        cls._shared_state.clear()
    try:
        yield
    finally:
        for cls, content in saved:
            if cls is PartialState and torch.distributed.is_initialized():
                continue
            cls._shared_state.clear()
            cls._shared_state.update(content)


def _current(target: torch.device | None) -> contextlib.AbstractContextManager[object]:
    """Make ``cuda:1`` the current device, which is the one that a single process computes on."""
    if target is not None and target.type == "cuda" and target.index is not None:
        return torch.cuda.device(target)
    return contextlib.nullcontext()


class Ranks:
    """What the processes of a run tell one another."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.count, self.rank = accelerator.num_processes, accelerator.process_index

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process; every process must ask."""
        if self.count == 1:
            return flag
        value = torch.tensor(float(flag), device=self.accelerator.device)
        return float(self._reduce(value, "sum")) > 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over processes."""
        return values if self.count == 1 else self._reduce(values, "mean")

    def _reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        return cast(torch.Tensor, self.accelerator.reduce(values, reduction=how))

    def gather(self, value: object) -> list:
        """One object of every process, in order of rank."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def first_decides(self, choose: Callable[[], _T]) -> _T:
        """What ``choose()`` says on the first process, told to all; so is an `InputError`, which all then raise."""
        answer: Any = None
        failure: InputError | None = None
        if self.first:
            try:
                answer = choose()
            except InputError as error:
                failure = error
        answer, failure = self.gather((answer, failure))[0]
        if failure is not None:
            raise failure
        return answer
