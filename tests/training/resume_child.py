"""Runs training in child processes that are killed, and tells what came of it.

It is started once, imports once, and forks a child for each scenario read from the command line as JSON:
``{"out": folder, "kill": null | ["step", k] | ["write", k] | ["time", seconds], "signal": number,
"truncate": null | file to cut to 100 bytes first}``.
"step" kills in the middle of a step; "write" kills at the k-th call that touches a checkpoint's files (before
and after each write, sync and rename); "time" lets the parent kill whenever.  For each scenario it prints the
exit status and, where training ended, a digest of everything that was learnt.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import warnings

import torch
import torch._dynamo  # optimisers import it on first use, which would cost each child two seconds
from torch import nn

from retrodict.training import TrainingInterrupted, checkpoint, files, train

STEPS, EVERY = 60, 7


class BinnedLoss:
    """Draws the noise level from a histogram that it learns from its own losses: a loss with a state."""

    def __init__(self, die_at: int | None, number: int) -> None:
        self.sums, self.calls = torch.ones(4), 0
        self.die_at, self.number = die_at, number

    def state_dict(self):
        return {"sums": self.sums, "calls": self.calls}

    def load_state_dict(self, state):
        self.sums, self.calls = state["sums"].clone(), state["calls"]

    def __call__(self, module, batch, generator):
        if self.calls == self.die_at:
            os.kill(os.getpid(), self.number)
        self.calls += 1
        x = batch["x"]
        level = torch.multinomial(self.sums, len(x), replacement=True, generator=generator)
        noise = torch.randn(x.shape, generator=generator) * (level[:, None] + 1) / 4
        errors = (module(x + noise) - x).square().mean(1)
        self.sums = 0.9 * self.sums + torch.zeros(4).index_add(0, level, errors.detach()) / len(x)
        return errors.mean()


def run(out: str, die_at: int | None, number: int) -> str:
    torch.manual_seed(7)
    module = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    torch.manual_seed(time.time_ns())  # nothing may depend on the program's own generator
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    loss = BinnedLoss(die_at, number)
    result = train(
        module, loss, {"x": x}, steps=STEPS, batch_size=16, checkpoint_every=EVERY, log_every=5, seed=11,
        ema=0.9, out=out, progress=False, device="cpu", precision="fp32",
    )  # fmt: skip
    digest = hashlib.sha256()
    for tensor in [*result.raw.state_dict().values(), *result.module.state_dict().values(), loss.sums]:
        digest.update(tensor.numpy().tobytes())
    last = checkpoint.Checkpoints(os.path.join(out, "checkpoints")).latest()
    state = checkpoint.flatten(last.parts["optimizer"], tensors := {}, "")
    digest.update(json.dumps(state, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def die_at_write(count: int) -> None:
    """Kill this process at the ``count``-th of the calls that a checkpoint is written by."""
    seen = [0]

    def deadly(function):
        def call(*args, **kwargs):
            for when in ("before", "after"):
                seen[0] += 1
                if seen[0] == count:
                    os.kill(os.getpid(), signal.SIGKILL)
                if when == "before":
                    value = function(*args, **kwargs)
            return value

        return call

    checkpoint.write_tensors = deadly(checkpoint.write_tensors)
    checkpoint._write_now = deadly(checkpoint._write_now)
    checkpoint.sync_folder = deadly(checkpoint.sync_folder)
    os.replace = deadly(os.replace)
    checkpoint.shutil.rmtree = deadly(checkpoint.shutil.rmtree)
    files.os.fsync = deadly(os.fsync)


def scenario(out: str, kill: list | None, number: int) -> dict:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            how, when = kill or (None, None)
            if how == "write":
                die_at_write(when)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                answer = {"digest": run(out, when if how == "step" else None, number)}
            answer["warned"] = " ".join(str(w.message) for w in caught)
        except TrainingInterrupted as stop:
            answer = {
                "interrupted": stop.result.interrupted,
                "step": stop.result.steps,
                "code": stop.exit_code,
            }
        except BaseException as error:
            answer = {"error": repr(error)}
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    if kill and kill[0] == "time":
        time.sleep(kill[1])
        os.kill(child, number)
    text = b"".join(iter(lambda: os.read(read, 65536), b""))
    _, status = os.waitpid(child, 0)
    return {"killed": os.WIFSIGNALED(status) and os.WTERMSIG(status), **json.loads(text or b"{}")}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in json.loads(sys.argv[1]):
        if line.get("truncate"):
            os.truncate(line["truncate"], 100)
        print(
            json.dumps(scenario(line["out"], line.get("kill"), line.get("signal", signal.SIGKILL))),
            flush=True,
        )
