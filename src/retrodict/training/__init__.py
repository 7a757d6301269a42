"""The training room: minimise any loss over any module, exactly resumable, under Accelerate.

It knows no process, denoiser or objective: `train` takes a module, a loss and data.
"""

from __future__ import annotations

from retrodict.training.batches import IndexStream
from retrodict.training.checkpoint import Checkpoint, Checkpoints, CheckpointWarning
from retrodict.training.curves import DECAYS, RateCurve
from retrodict.training.ema import EMA
from retrodict.training.folder import RunFolder, differences
from retrodict.training.loop import train
from retrodict.training.metrics import Metrics, read_metrics
from retrodict.training.optimizers import OPTIMIZERS
from retrodict.training.results import SaveError, TrainingInterrupted, TrainResult
from retrodict.training.settings import Loss
from retrodict.training.weights import load_weights, read_weights, save_weights

__all__ = [
    "DECAYS",
    "EMA",
    "OPTIMIZERS",
    "Checkpoint",
    "CheckpointWarning",
    "Checkpoints",
    "IndexStream",
    "Loss",
    "Metrics",
    "RateCurve",
    "RunFolder",
    "SaveError",
    "TrainResult",
    "TrainingInterrupted",
    "differences",
    "load_weights",
    "read_metrics",
    "read_weights",
    "save_weights",
    "train",
]
