"""What `retrodict.training.train` costs beside the same loop written by hand.

Both train the same network with the same loss on one in-memory tensor: batch 256, fused AdamW, gradient
clipping, EMA by one fused call, fp32, no logging to disk.  The hand-written loop is the least that does this;
ours also keys batches and noise by the step (so that it can resume exactly) and collects losses to report.
Short runs alternate; the throughput is the median over pairs of neighbours, which a busy machine slows alike.

    python benchmarks/bench_training.py [--runs 15] [--threads 1]

Prints a table and writes ``benchmarks/results/training.json``.  The bar is a ratio of at least 0.95.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from retrodict.training import train

BATCH, RATE, DECAY, CLIP, BAR = 256, 1e-3, 0.999, 1.0, 0.95
RESULTS = Path(__file__).parent / "results" / "training.json"


def mlp() -> tuple[nn.Module, Tensor]:
    """A small network for points of the plane: the case where overhead weighs most."""
    sizes = [2, 128, 128, 128, 2]
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*layers[:-1]), torch.randn(10_000, 2)


def conv() -> tuple[nn.Module, Tensor]:
    """A small convolutional network on 8x8 images of one channel."""
    blocks: list[nn.Module] = [nn.Conv2d(1, 32, 3, padding=1)]
    for _ in range(4):
        blocks += [nn.GroupNorm(8, 32), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1)]
    return nn.Sequential(*blocks, nn.Conv2d(32, 1, 3, padding=1)), torch.randn(1_500, 1, 8, 8)


def denoising(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
    """A denoising loss: predict the noise that was added at a random level."""
    x = batch["x"]
    noise = torch.randn(x.shape, generator=generator)
    level = torch.rand((len(x),) + (1,) * (x.ndim - 1), generator=generator)
    return (module((1 - level) * x + level * noise) - noise).square().mean()


def by_hand(module: nn.Module, data: Tensor, steps: int) -> float:
    """Seconds that the bare loop takes."""
    shadow = [p.detach() for p in copy.deepcopy(module).parameters()]
    parameters = list(module.parameters())
    weights = [p.detach() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(0)
    start = time.perf_counter()
    for _ in range(steps):
        index = torch.randint(len(data), (BATCH,), generator=generator)
        loss = denoising(module, {"x": data.index_select(0, index)}, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(shadow, weights, 1 - DECAY)
    return time.perf_counter() - start


def ours(module: nn.Module, data: Tensor, steps: int) -> float:
    """Seconds that `train` spends in its loop, by its own clock (setting up is not counted for either)."""
    result = train(
        module, denoising, {"x": data}, steps=steps, batch_size=BATCH, lr=RATE, ema=DECAY, clip=CLIP,
        precision="fp32", device="cpu", progress=False, log_every=steps,
    )  # fmt: skip
    return result.metrics[-1]["wall"]


def measure(make: Callable[[], tuple[nn.Module, Tensor]], runs: int, steps: int) -> dict[str, object]:
    """Alternate the two loops and compare the medians, in microseconds for a step."""
    torch.manual_seed(0)
    module, data = make()
    times: dict[str, list[float]] = {"by_hand": [], "ours": []}
    for run in range(-1, runs):  # run -1 warms up
        pair = [("by_hand", by_hand), ("ours", ours)]
        for name, loop in pair if run % 2 else reversed(pair):
            fresh = copy.deepcopy(module)
            gc.collect()
            gc.freeze()  # so that a collection within a run does not walk what earlier runs left
            seconds = loop(fresh, data, steps)
            if run >= 0:
                times[name].append(1e6 * seconds / steps)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "pairs": runs,
        "steps": steps,
        "by_hand_us": medians["by_hand"],
        "ours_us": medians["ours"],
        "throughput_ratio": statistics.median(a / b for a, b in zip(times["by_hand"], times["ours"])),
        "samples_per_second": 1e6 * BATCH / medians["ours"],
        "times_us": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = {
        "mlp": measure(mlp, 4 * given.runs, 150),
        "conv": measure(conv, given.runs, 10),
    }
    print(f"{'network':8} {'parameters':>10} {'by hand':>12} {'ours':>12} {'throughput':>11}   bar {BAR}")
    for name, row in rows.items():
        print(
            f"{name:8} {row['parameters']:>10} {row['by_hand_us']:>9.0f} us {row['ours_us']:>9.0f} us "
            f"{row['throughput_ratio']:>10.3f}x"
        )
    content = {
        "format": 1,
        "what": "time of one training step, medians of alternated runs; throughput_ratio = median of by_hand / ours",
        "torch": torch.__version__,
        "threads": given.threads,
        "batch_size": BATCH,
        "bar": BAR,
        "rows": rows,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {RESULTS}")
    if min(row["throughput_ratio"] for row in rows.values()) < BAR:
        sys.exit("some bars do not hold")


if __name__ == "__main__":
    main()
