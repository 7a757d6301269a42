"""What a run reports: one JSON line a record in ``metrics.jsonl``, and TensorBoard on request.

A record holds ``step`` (finished steps), ``loss`` (mean since the previous record), ``lr``, ``grad_norm``
(mean, before clipping), ``samples_per_second``, ``wall`` (seconds of training, over all resumptions), and the
extra scalars of the loss; a validation adds ``validation_<name>``.  On resume the lines past the checkpoint
are cut off, so that no step is reported twice.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrodict.core.errors import optional_import
from retrodict.training.files import write_bytes

logger = logging.getLogger(__name__)


class Metrics:
    """The records of a run, in memory and, when a folder is given, on disk.

    Args:
        folder: the run folder, or None for memory only.
        step: records past this step are dropped: the step of the checkpoint that the run resumes from.
        tensorboard: also write ``<folder>/tensorboard``.
        write: False on every process but the first.
    """

    def __init__(self, folder: Path | None, step: int = 0, *, tensorboard: bool = False, write: bool = True) -> None:
        self.path = folder / "metrics.jsonl" if folder else None
        self.records = [r for r in read_metrics(self.path) if r["step"] <= step] if self.path else []
        self._file, self._board = None, None
        if folder and self.path and write:
            write_bytes(self.path, "".join(json.dumps(record) + "\n" for record in self.records).encode())
            self._file = open(self.path, "ab", buffering=0)
            if tensorboard:
                board: Any = optional_import("torch.utils.tensorboard", "tensorboard")
                self._board = board.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        """Append a record; a full disk loses the line on disk, never the run."""
        record = {"step": step, **values}
        self.records.append(record)
        if self._file:
            try:
                self._file.write((json.dumps(record) + "\n").encode())
            except OSError as error:
                logger.warning("the metrics of step %d are not on disk: %s", step, error)
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        return record

    def close(self) -> None:
        """Close the files."""
        for output in (self._file, self._board):
            if output:
                output.close()
        self._file = self._board = None


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a line cut short by a killed process or a full disk is left out."""
    path = Path(path)
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records
