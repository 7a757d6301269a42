"""The training loop: any module, any loss, any data; exact to resume and as fast as one written by hand.

    for step k:  batch = data[stream[kB : (k+1)B]],   g = grad loss(module, batch, generator(seed, rank, k))
                 weights <- optimiser(weights, clip(g), rate(k)),   average <- EMA(weights)

Step k depends on the state after step k-1 and on k alone: the batch, the noise and the dropout of a step are
keyed by its number.  So a run that was killed and taken up from a checkpoint ends with the same weights, on a
CPU bit for bit, as one that never stopped.  Nothing in the loop waits for the device: losses are collected as
device scalars and read when a record is due.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from retrodict.core.errors import InputError
from retrodict.training.curves import RateCurve
from retrodict.training.devices import acceleration
from retrodict.training.engine import Engine
from retrodict.training.folder import RunFolder
from retrodict.training.results import TrainResult
from retrodict.training.settings import Loss, OptimizerLike, Settings, every, optimizer_name
from retrodict.training.signals import StopFlag


def train(
    module: nn.Module,
    loss: Loss,
    data: Mapping[str, Tensor] | Dataset,
    *,
    steps: int,
    batch_size: int = 256,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
    optimizer: OptimizerLike = "adamw",
    warmup: int | None = None,
    decay: str = "cosine",
    ema: float | None = 0.999,
    clip: float | None = 1.0,
    precision: str = "auto",
    accumulate: int = 1,
    compile: bool | str = False,
    seed: int = 0,
    out: str | Path | None = None,
    resume: str | bool = "auto",
    checkpoint_every: int | None = None,
    keep: int = 2,
    log_every: int = 50,
    validate: Callable[[nn.Module], float | Mapping[str, float]] | None = None,
    validate_every: int | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    device: str | torch.device = "auto",
    workers: int = 0,
    config: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Minimise ``loss`` over the parameters of ``module``.

    Under ``accelerate launch`` or torchrun the same call trains on all processes; the first one writes.

    Args:
        module: what is trained, in place; moved to ``device``.
        loss: ``loss(module, batch, generator)`` returns a scalar, or a mapping with ``"loss"`` and further
            scalars to report.  ``generator`` lives on the device of the batch and is keyed by (seed, rank,
            step).  If the loss has ``state_dict``/``load_state_dict``, its state is part of the checkpoint;
            if it is a module, its parameters are trained too.
        data: named tensors with the samples first (indexed directly), or a map-style data set of mappings.
        steps: number of updates of the weights.
        batch_size: samples of one update, over all processes and accumulated parts.
        lr, weight_decay, betas: of the optimiser; weight decay acts on matrices only.
        optimizer: "adamw", "sgd", or a callable from the list of parameters to an optimiser (which then
            ignores lr, betas and weight_decay; the curve of the rate still multiplies its own).
        warmup: steps of linear warm-up; None takes a twentieth of the run, at most 500.
        decay: "cosine", "linear" (both to zero) or "constant".
        ema: decay of the moving average of the weights, in [0, 1), or None for none.
        clip: largest norm of the gradient, or None.
        precision: "auto", "fp32", "bf16" or "fp16"; "auto" is bf16 where a CUDA device has it, else fp32.
        accumulate: parts in which a batch is computed, to save memory.
        compile: compile the module's forward with `torch.compile`; a string names the backend.
        seed: of batches, noise and dropout.
        out: run folder for checkpoints and metrics; None keeps everything in memory.
        resume: "auto" continues from the newest checkpoint in ``out`` if there is one, True insists on one,
            False removes the checkpoints there and starts over.
        checkpoint_every: steps between checkpoints; by default a tenth of the run, at most 1,000.
        keep: number of checkpoints to keep.
        log_every: steps between records.
        validate: called with the averaged module in evaluation mode, returns a number or a mapping of
            numbers.
        validate_every: steps between validations; by default ``checkpoint_every``.
        progress: show a progress bar.
        tensorboard: also write TensorBoard files under ``out``.
        device: "auto", or a device such as "cpu" or "cuda:1".
        workers: processes that read a data set; tensors need none.
        config: what the run was asked to do; checked against, or written to, ``out/config.json``.

    Returns:
        A `TrainResult`; ``.module`` has the averaged weights, ``.raw`` is ``module`` with the last ones.

    Raises:
        InputError: a setting that cannot be used, a run folder of another configuration, or a checkpoint that
            is damaged or belongs to another module, other data or other settings.
        NonFiniteError: the loss or the gradient is not finite; the last checkpoint stays as it was.
        TrainingInterrupted: Ctrl-C or SIGTERM, after a checkpoint was written (a KeyboardInterrupt).
        SaveError: the last checkpoint could not be written; it carries the result.
    """
    if len(betas) != 2:
        raise InputError(f"betas={betas}; accepted: two numbers in [0, 1)")
    settings = Settings(
        steps, batch_size, lr, weight_decay, (betas[0], betas[1]), optimizer_name(optimizer), warmup, decay, ema,
        clip, precision, accumulate, seed,
    )  # fmt: skip
    curve = RateCurve(steps, warmup, decay)
    saves = every("checkpoint_every", checkpoint_every, min(1000, steps // 10))
    validations = every("validate_every", validate_every, saves)
    every("log_every", log_every, 1)
    if resume not in ("auto", True, False):
        raise InputError(f"resume={resume!r}; accepted: 'auto', True, False")
    if out is None and (resume is True or tensorboard or config is not None):
        raise InputError("resume=True, tensorboard and config need a run folder; give out=")

    with acceleration(precision, device) as accelerator, _forked_rng(accelerator.device):
        engine = Engine(module, loss, data, settings, curve, accelerator, optimizer, workers)
        if out is not None:
            engine.open(RunFolder(out), keep, resume, config)
        engine.log(Path(out) if out is not None else None, log_every, progress, tensorboard)
        with StopFlag() as flag, engine.compiled(compile):
            try:
                return engine.loop(flag, saves, validate, validations)
            finally:
                engine.close()


@contextlib.contextmanager
def _forked_rng(device: torch.device) -> Iterator[None]:
    """Keep the program's own random state out of the run, and the run's out of the program."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
