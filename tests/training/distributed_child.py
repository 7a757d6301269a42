"""One of several gloo processes that train together; the first prints what it found as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from retrodict.core.errors import InputError
from retrodict.training import Checkpoints, TrainingInterrupted, train

STEPS = 40


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 2)).double()


def points() -> torch.Tensor:
    return torch.randn(50, 2, generator=torch.Generator().manual_seed(1)).double()


def plain(module, batch, generator):
    """A loss without noise, so that its gradient is that of one process."""
    return (module(batch["x"]) - 2 * batch["x"]).square().mean()


class Noisy:
    """A loss with noise, and with a state that differs from process to process."""

    def __init__(self, die_at: int | None = None, number: int | None = None) -> None:
        self.scale, self.calls = torch.ones((), dtype=torch.float64), 0
        self.die_at, self.number = die_at, number

    def state_dict(self):
        return {"scale": self.scale, "calls": self.calls}

    def load_state_dict(self, state):
        self.scale, self.calls = state["scale"].clone(), state["calls"]

    def __call__(self, module, batch, generator):
        if self.calls == self.die_at:
            if self.number is None:
                raise RuntimeError("the power is gone")
            os.kill(os.getpid(), self.number)
        self.calls += 1
        x = batch["x"]
        noise = self.scale * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        loss = (module(x + noise) - x).square().mean()
        self.scale = 0.9 * self.scale + 0.1 * loss.detach()
        return loss


def digest(result) -> str:
    state = [*result.raw.state_dict().values(), *result.module.state_dict().values()]
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in state)).hexdigest()


def fit(loss, out=None, **more):
    given = {"steps": STEPS, "batch_size": 16, "checkpoint_every": 10, "log_every": 10, "progress": False}
    return train(network(), loss, {"x": points()}, out=out, **{**given, **more})


def main(folder: Path) -> dict:
    rank = int(os.environ["RANK"])
    found = {}
    exact = fit(plain)
    found["plain"] = {k: v.tolist() for k, v in exact.raw.state_dict().items()}
    found["plain_loss"] = exact.metrics[-1]["loss"]
    found["parts"] = {k: v.tolist() for k, v in fit(plain, accumulate=2).raw.state_dict().items()}

    found["whole"] = digest(fit(Noisy(), folder / "whole"))
    try:
        fit(Noisy(die_at=25), folder / "resumed")
    except RuntimeError:
        found["died"] = Checkpoints(folder / "resumed" / "checkpoints").steps()
    loss = Noisy()
    found["resumed"] = digest(fit(loss, folder / "resumed"))
    found["scale"] = loss.scale.item()

    try:  # Ctrl-C reaches one process only
        fit(Noisy(25, signal.SIGINT) if rank == 1 else Noisy(), folder / "stopped")
    except TrainingInterrupted as stop:
        found["stopped"] = stop.result.steps
        found["stopped_at"] = Checkpoints(folder / "stopped" / "checkpoints").steps()[0]
    found["refused"] = []
    for words in ({"out": folder / "whole", "config": {"another": "run"}}, {"out": folder, "resume": False}):
        try:  # the first process finds it out, and tells the other
            fit(plain, **words)
        except InputError as error:
            found["refused"].append(str(error))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    answer = main(Path(sys.argv[1]))
    Path(sys.argv[1], f"answer-{os.environ['RANK']}.json").write_text(json.dumps(answer))
    torch.distributed.destroy_process_group()
