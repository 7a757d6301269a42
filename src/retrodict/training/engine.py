"""One training run: its state, and what is done with it (update, report, save, resume).

An `Engine` is made by `retrodict.training.train`, which documents what it does.  Reading order:
`Engine.loop`, then `Engine._update`, which is the inner loop, then what happens between steps.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from retrodict.core.errors import InputError, InputTypeError, NonFiniteError
from retrodict.training.batches import Split, make_source
from retrodict.training.checkpoint import Checkpoint, Checkpoints, CheckpointWarning
from retrodict.training.curves import RateCurve
from retrodict.training.devices import Ranks
from retrodict.training.ema import EMA
from retrodict.training.folder import RunFolder, differences
from retrodict.training.keys import StepKeys, StepNoise
from retrodict.training.metrics import Metrics
from retrodict.training.optimizers import make_optimizer
from retrodict.training.results import SaveError, TrainingInterrupted, TrainResult
from retrodict.training.settings import Batch, Loss, OptimizerLike, Settings
from retrodict.training.signals import StopFlag
from retrodict.training.weights import fit_tensors

logger = logging.getLogger(__name__)

_NOTHING = contextlib.nullcontext()
_AGREE_EVERY = 10  # steps between two votes on a signal, where several processes train together


class _Objective(nn.Module):
    """Module and loss as one module, so that data parallelism and mixed precision wrap all of it."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, batch: Batch, generator: torch.Generator) -> Mapping[str, Tensor]:
        value = self.loss(self.module, batch, generator)
        terms = {"loss": value} if isinstance(value, Tensor) else value
        if not isinstance(terms, Mapping) or not _is_scalar(terms.get("loss")):
            raise InputTypeError(
                f"the loss returned {_describe(value)}; accepted: a scalar tensor, or a mapping with a "
                "scalar tensor under 'loss'; take the mean over the batch"
            )
        return terms


class Engine:
    """One run of `train`: its state, and the four things done with it (update, report, save, resume)."""

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        data: Mapping[str, Tensor] | Dataset,
        settings: Settings,
        curve: RateCurve,
        accelerator: Accelerator,
        optimizer: OptimizerLike,
        workers: int,
    ) -> None:
        self.settings, self.curve, self.accelerator = settings, curve, accelerator
        self.ranks = Ranks(accelerator)
        self.split = Split(settings.batch_size, self.ranks.count, self.ranks.rank, settings.accumulate)
        device = accelerator.device
        self.source = make_source(data, self.split, settings.seed, device, workers)
        self.module, self.loss = module.to(device), loss
        objective = _Objective(module, loss).to(device).train()
        self.optimizer = make_optimizer(
            optimizer, objective, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.ema = EMA(module, settings.ema) if settings.ema is not None else None
        self.objective = accelerator.prepare(objective)
        self.compute = self.objective if self.ranks.count > 1 else self.objective.forward  # DDP needs its hooks
        self.scaler = accelerator.scaler
        self.noise = StepNoise(StepKeys(settings.seed, "noise", self.ranks.rank), device)
        self.checkpoints: Checkpoints | None = None
        self.start, self.wall, self.saved = 0, 0.0, None
        self.terms: dict[str, list[Any]] = {}  # of the steps since the last record, not yet read
        self.norms: list[Tensor] = []
        self.window_start = 0

    # -- opening a run ---------------------------------------------------------------------------------------

    def open(self, folder: RunFolder, keep: int, resume: str | bool, config: Mapping[str, Any] | None) -> None:
        """Check the folder, and take up its newest checkpoint where that is wanted."""
        checkpoints = self.checkpoints = Checkpoints(folder.checkpoints, keep)
        asked = config if config is not None else {"training": self.settings.describe()}

        def choose() -> int | None:
            if resume is False:
                folder.restart(asked)
                checkpoints.clear()
            elif config is not None or not folder.config_file.exists():
                folder.check(asked)
            checkpoints.tidy()
            found = checkpoints.latest()
            return found.step if found else None

        step = self.ranks.first_decides(choose)
        if step is not None:
            self._restore(self.checkpoints.load(step))
        elif resume is True:
            raise InputError(f"resume=True, but {folder.checkpoints} has no checkpoint; use resume='auto'")

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.parts["loop"]
        lines = differences(state["settings"], self._settings())
        lines += differences(state["data"], self.source.describe(), "data.")
        if lines:
            raise InputError(
                f"checkpoint {checkpoint.path} belongs to another run: {'; '.join(lines)}; resume with the "
                "same, give another folder, or start over with resume=False"
            )
        if state["processes"] != self.ranks.count:
            warnings.warn(
                f"the run had {state['processes']} processes and has {self.ranks.count} now: it goes on, "
                "but not with the same noise",
                stacklevel=2,
            )
        fit_tensors(self.module, checkpoint.parts["module"], f"checkpoint {checkpoint.path}")
        if self.ema:
            fit_tensors(self.ema.module, checkpoint.parts["ema"], f"checkpoint {checkpoint.path}")
        try:
            self.optimizer.load_state_dict(checkpoint.parts["optimizer"])
        except ValueError as error:
            raise InputError(
                f"checkpoint {checkpoint.path} was written by an optimiser of other parameters ({error}); "
                "use the same optimiser, or start over with resume=False"
            ) from error
        losses, load = checkpoint.parts["loss"], getattr(self.loss, "load_state_dict", None)
        if losses[0] is not None and load is not None:
            load(losses[min(self.ranks.rank, len(losses) - 1)])
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.start, self.wall = checkpoint.step, state["wall"]
        self.saved = self.window_start = checkpoint.step
        logger.info("resumed from %s", checkpoint.path)

    def log(self, folder: Path | None, log_every: int, progress: bool, tensorboard: bool) -> None:
        """Open the metrics and the progress bar."""
        first = self.ranks.first
        self.metrics = Metrics(folder, self.start, tensorboard=tensorboard, write=first)
        self.log_every = log_every
        self.bar = tqdm(
            total=self.settings.steps,
            initial=self.start,
            unit="step",
            disable=None if progress and first else True,  # None: only where a person watches
            leave=False,
        )

    @contextlib.contextmanager
    def compiled(self, how: bool | str) -> Any:
        """Compile the module's forward for the length of the run."""
        if not how:
            yield
            return
        self.module.compile(**({"backend": how} if isinstance(how, str) else {}))
        try:
            yield
        finally:
            self.module._compiled_call_impl = None  # what nn.Module.compile sets

    def close(self) -> None:
        self.metrics.close()
        self.bar.close()

    # -- the loop --------------------------------------------------------------------------------------------

    def loop(
        self, flag: StopFlag, saves: int, validate: Callable[[nn.Module], Any] | None, validations: int
    ) -> TrainResult:
        steps, together = self.settings.steps, self.ranks.count > 1
        batches = iter(self.source.batches(self.start, steps))
        self.mark = time.perf_counter()
        stopped, done = False, self.start
        while done < steps and not stopped:
            self._update(done, batches)
            done += 1
            self.bar.update()
            if done % self.log_every == 0 or done == steps:
                self._report(done)
            if validate and done % validations == 0:
                self._validate(done, validate)
            if self.checkpoints and done % saves == 0 and done < steps:
                self._save_or_warn(done)
            if not together or done % _AGREE_EVERY == 0 or done == steps:
                stopped = self.ranks.any(flag.signum is not None)
        result = self._finish(done, interrupted=done < steps)
        if stopped:
            where = (
                f"a checkpoint is in {self.checkpoints.folder}" if self.checkpoints else "nothing was saved: out=None"
            )
            raise TrainingInterrupted(f"stopped after step {done} of {steps}; {where}", result, flag.signum or 2)
        return result

    def _update(self, step: int, batches: Any) -> None:
        """One update of the weights and of their average."""
        factor = self.curve(step)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor
        self.noise.start(step)
        for part in reversed(range(self.settings.accumulate)):
            batch = next(batches)
            with self.accelerator.no_sync(self.objective) if part else _NOTHING:
                self._collect(self._backward(self.compute(batch, self.noise.generator)))
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.settings.clip is not None:
            self.norms.append(nn.utils.clip_grad_norm_(self.parameters, self.settings.clip))
        else:
            self.norms.append(nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(step)

    def _backward(self, terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        value = terms["loss"]
        if self.settings.accumulate > 1:
            value = value / self.settings.accumulate
        (value if self.scaler is None else self.scaler.scale(value)).backward()
        return terms

    def _collect(self, terms: Mapping[str, Tensor]) -> None:
        """Keep the scalars of this step, unread, for the next record."""
        for name, term in terms.items():
            values = self.terms.get(name)
            if values is None:
                values = self.terms[name] = []
            values.append(term.detach() if isinstance(term, Tensor) else term)

    # -- reading the device ----------------------------------------------------------------------------------

    def _report(self, done: int) -> None:
        """Read the losses since the last record, stop if one is not finite, and write a record."""
        if done == self.window_start:
            return
        device = self.accelerator.device
        terms = {name: self.ranks.mean(_stack(values, device)).tolist() for name, values in self.terms.items()}
        norms = _stack(self.norms, device).tolist()
        self._require_finite(terms["loss"], norms)
        now = time.perf_counter()
        self.wall += now - self.mark
        samples = (done - self.window_start) * self.settings.batch_size
        record = {
            **{name: _mean(values) for name, values in terms.items()},
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": _mean(norms),
            "samples_per_second": samples / (now - self.mark),
            "wall": self.wall,
        }
        self.metrics.add(done, record)
        self.bar.set_postfix(loss=f"{record['loss']:.4g}", rate=f"{record['samples_per_second']:.3g}/s", refresh=False)
        self.terms, self.norms, self.window_start, self.mark = {}, [], done, now

    def _require_finite(self, parts: list[float], norms: list[float]) -> None:
        each = self.settings.accumulate
        losses = [sum(parts[i : i + each]) / each for i in range(0, len(parts), each)]
        for offset, (loss, norm) in enumerate(zip(losses, norms)):
            # with a loss scaler an infinite gradient is skipped and the scale lowered, which is how it works
            if math.isfinite(loss) and (math.isfinite(norm) or self.scaler is not None):
                continue
            step = self.window_start + offset
            before = losses[offset - 1] if offset else (self.metrics.records or [{}])[-1].get("loss")
            what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm} (loss {loss:.4g})"
            raise NonFiniteError(
                f"the {what} at step {step}; the last finite loss was {before}; "
                f"{self._last_saved('is intact')}; lower lr, clip the gradient, look for outliers in the "
                "data, or use precision='fp32'"
            )

    def _validate(self, done: int, validate: Callable[[nn.Module], Any]) -> None:
        self._report(done)
        with torch.no_grad():
            found = validate(self._averaged())
        self.module.train()
        values = found if isinstance(found, Mapping) else {"loss": found}
        self.metrics.add(done, {f"validation_{name}": float(value) for name, value in values.items()})
        self.mark = time.perf_counter()

    def _averaged(self) -> nn.Module:
        return self.ema.ready() if self.ema else self.module.eval()

    # -- saving ----------------------------------------------------------------------------------------------

    def _save(self, done: int) -> OSError | None:
        """Write a checkpoint; what went wrong is returned, and the checkpoint before stays."""
        self._report(done)
        describe = getattr(self.loss, "state_dict", None)
        losses = self.ranks.gather(describe() if describe is not None else None)
        failure = None
        if self.ranks.first and self.checkpoints is not None:
            try:
                self.checkpoints.save(done, self._state(losses))
            except OSError as error:
                failure = error
        failed = self.ranks.any(failure is not None)
        self.mark = time.perf_counter()
        if failed:
            return failure or OSError("the first process could not write it")
        self.saved = done
        return None

    def _save_or_warn(self, done: int) -> None:
        """A full disk in the middle of a run costs a checkpoint, not the run."""
        failure = self._save(done)
        if failure and self.ranks.first:
            warnings.warn(
                f"the checkpoint of step {done} could not be written ({failure}); {self._last_saved('stays')}",
                CheckpointWarning,
                stacklevel=2,
            )

    def _last_saved(self, does: str) -> str:
        if self.saved is None:
            return "no checkpoint was written before"
        return f"the checkpoint of step {self.saved} {does}"

    def _state(self, losses: list[Any]) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            **({"ema": self.ema.module.state_dict()} if self.ema else {}),
            "optimizer": self.optimizer.state_dict(),
            "loss": losses,
            "loop": {
                "settings": self._settings(),
                "data": self.source.describe(),
                "processes": self.ranks.count,
                "scaler": self.scaler.state_dict() if self.scaler is not None else {},
                "wall": self.wall,
            },
        }

    def _settings(self) -> dict[str, Any]:
        """The settings with the precision that "auto" stands for on this machine."""
        precision = self.accelerator.mixed_precision
        return {**self.settings.describe(), "precision": "fp32" if precision == "no" else precision}

    def _finish(self, done: int, interrupted: bool) -> TrainResult:
        """Write the last checkpoint and hand over the modules."""
        self._report(done)
        failure = self._save(done) if self.checkpoints and self.saved != done else None
        self.module.eval()
        result = TrainResult(self._averaged(), self.module, done, self.metrics.records, interrupted)
        if failure:
            raise SaveError(
                f"training reached step {done}, but its checkpoint could not be written ({failure}); free "
                "some space and run the same command again, or save .result.module of this error with "
                "save_weights",
                result,
            ) from failure
        return result


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1


def _stack(values: list[Any], device: torch.device) -> Tensor:
    """Scalars collected over several steps as one vector, still on the device."""
    if isinstance(values[0], Tensor):
        return torch.stack(values).float().reshape(-1)
    return torch.tensor(values, dtype=torch.float32, device=device)


def _mean(values: list[float]) -> float | None:
    """The mean of the finite values; JSON has no infinity."""
    finite = [v for v in values if math.isfinite(v)]
    return math.fsum(finite) / len(finite) if finite else None


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a mapping with keys {sorted(map(str, value))}" if isinstance(value, Mapping) else type(value).__name__
