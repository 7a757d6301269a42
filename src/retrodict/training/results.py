"""What training returns, and the two ways in which it ends early without losing anything."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from retrodict.core.errors import RetrodictError


@dataclass
class TrainResult:
    """A trained module.

    Attributes:
        module: the one to use: averaged weights (the last ones where there is no average), in evaluation
            mode.
        raw: the module that was given, with the last weights.
        steps: number of finished steps.
        metrics: the records of ``metrics.jsonl`` (see `retrodict.training.metrics`).
        interrupted: whether the run was stopped by a signal before its last step.
    """

    module: nn.Module = field(repr=False)
    raw: nn.Module = field(repr=False)
    steps: int
    metrics: list[dict[str, Any]] = field(default_factory=list, repr=False)
    interrupted: bool = False


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the step was finished and a checkpoint written; ``.result`` holds what there is.

    ``.exit_code`` is what a shell expects: 128 + the number of the signal, 130 for Ctrl-C.
    """

    def __init__(self, message: str, result: TrainResult, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.result, self.signum, self.exit_code = result, signum, 128 + signum


class SaveError(RetrodictError, OSError):
    """The last checkpoint could not be written; ``.result`` holds the trained module."""

    def __init__(self, message: str, result: TrainResult) -> None:
        super().__init__(message)
        self.result = result
