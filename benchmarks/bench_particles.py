"""The bootstrap particle filter beside the package particles, and what it costs as series and populations grow.

Stochastic volatility, x' = -1 + .9 (x + 1) + .3 e, y ~ N(0, exp x), 1,000 steps; systematic resampling below one
half.  Ours runs in three ways: the model as a `FeynmanKac` object in single precision, as one would write it for
speed (particles is given its model as a class too); a batch of 64 series of it; and the model as a `StateSpace` of
two lambdas that return torch laws, in double precision.  Runs of ours and of the peer alternate, each with a seed of
its own; the table has the fastest of each, which a busy machine disturbs least.  The mean of estimated over exact
evidence (a filter on a grid knows it) is one for an unbiased filter: beside it stands its standard error.

    make bench-peers
    python benchmarks/bench_particles.py [--runs 9] [--small]

Writes ``benchmarks/results/particles.json`` (and ``.png``, cost against steps and particles).  Bars: 4 times as fast as
particles with 1,000 and with 10,000 particles, 10 times a series in the batch.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from retrodict.core.noise import KeyedNoise, Noise
from retrodict.inference import Observed, Problem, StateSpace
from retrodict.inference.particle import Bootstrap
from retrodict.particles import FeynmanKac, Run, smc

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".venv-peers" / "bin" / "python"
SCRIPT = HERE / "peers_inference" / "particles_volatility.py"
RESULTS = HERE / "results"
MU, RHO, SIGMA = -1.0, 0.9, 0.3
BARS = {"1 x 1000": 4.0, "1 x 10000": 4.0, "64 x 1000": 10.0}


class Volatility(FeynmanKac):
    """The model written for speed: single precision, innovations scaled in blocks, three operations a weight."""

    def __init__(self, y: np.ndarray, series: int = 1) -> None:
        self.n, self.series = len(y) - 1, series
        self.half = (-0.5 * y**2).tolist()
        self.zero = torch.zeros(())

    def log_g(self, k: int, x: Tensor) -> Tensor:
        """log N(y; 0, exp x) but for the constant: -x/2 - (y exp(-x/2))^2 / 2."""
        u = torch.sub(self.zero, x, alpha=0.5)
        e = torch.exp(u)
        return torch.addcmul(u, e, e, value=self.half[k])

    def start(self, particles: int, noise: Noise) -> tuple[Tensor, Tensor]:
        x = MU + SIGMA / math.sqrt(1 - RHO**2) * noise.normal((particles,))
        return x, self.log_g(0, x)

    def draw(self, moves: int, particles: int, noise: Noise) -> Iterable[Tensor]:
        return noise.normal((moves, particles)).mul_(SIGMA).add_(MU * (1 - RHO)).unbind(1)

    def move(self, k: int, x: Tensor, z: Any) -> tuple[Tensor, Tensor]:
        y = torch.add(z, x, alpha=RHO)
        return y, self.log_g(k, y)


def simulate(steps: int) -> np.ndarray:
    """Data of the model."""
    rng = np.random.default_rng(0)
    x, y = MU + SIGMA / math.sqrt(1 - RHO**2) * rng.normal(), []
    for _ in range(steps):
        y.append(math.exp(x / 2) * rng.normal())
        x = MU + RHO * (x - MU) + SIGMA * rng.normal()
    return np.array(y)


def laws(y: np.ndarray) -> Bootstrap:
    """The model as a user writes it."""
    prior = Normal(torch.full((1,), MU), SIGMA / math.sqrt(1 - RHO**2))
    model = StateSpace(prior, lambda x: Normal(MU + RHO * (x - MU), SIGMA), lambda x: Normal(0.0, (x / 2).exp()))
    return Bootstrap(Problem(model, Observed(y)))


def clock(model: FeynmanKac, particles: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[float, Run]:
    """Seconds of one run, and what it returned."""
    begin = time.perf_counter()
    answer = smc(model, particles, KeyedNoise(seed, model.series, dtype=dtype))
    return time.perf_counter() - begin, answer


def peer(data: str, particles: int, runs: int, seed: int) -> tuple[list[float], list[float]]:
    """Seconds and log evidences of the package particles; empty where it is not installed."""
    if not PEERS.exists():
        return [], []
    command = [str(PEERS), "-W", "ignore", str(SCRIPT), data, str(particles), str(runs), str(seed)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(found.stdout.splitlines()[-1])
    return answer["seconds"], answer["log_evidence"]


def exact(y: np.ndarray, points: int = 1201, width: float = 7) -> float:
    """The log evidence by a filter on a grid; it moves by 1e-9 when the grid is refined."""
    deviation = SIGMA / math.sqrt(1 - RHO**2)
    x = np.linspace(MU - width * deviation, MU + width * deviation, points)
    dx = x[1] - x[0]

    def density(v: Any, mean: Any, sd: Any) -> np.ndarray:
        return np.exp(-0.5 * ((v - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))

    kernel = density(x, MU + RHO * (x[:, None] - MU), SIGMA) * dx
    p, total = density(x, MU, deviation) * dx, 0.0
    for value in y:
        p = p * density(value, 0, np.exp(x / 2))
        total += math.log(p.sum())
        p = (p / p.sum()) @ kernel
    return total


def against(truth: float, log_evidence: list[float]) -> tuple[float, float] | None:
    """Mean of estimate over evidence, which is one for an unbiased estimate, and its standard error."""
    if not log_evidence:
        return None
    ratio = np.exp(np.array(log_evidence) - truth)
    return float(ratio.mean()), float(ratio.std(ddof=1) / math.sqrt(len(ratio)))


def compare(y: np.ndarray, particles: int, runs: int) -> list[dict[str, Any]]:
    """Ours in three ways and the peer, alternating; the evidences of both against the grid."""
    constant = 0.5 * len(y) * math.log(2 * math.pi)
    one, many, user = Volatility(y), Volatility(y, 64), laws(y)
    seconds: dict[str, list[float]] = {"one": [], "many": [], "user": [], "peer": []}
    found: dict[str, list[float]] = {"one": [], "many": [], "user": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "y.npy")
        np.save(data, y)
        for i in range(runs):
            for j in range(3):
                taken, run = clock(one, particles, 3 * i + j)
                seconds["one"].append(taken)
                found["one"].append(float(run.log_evidence) - constant)
            if particles <= 1000:
                taken, run = clock(many, particles, 1000 + i)
                seconds["many"].append(taken / 64)
                found["many"].extend((run.log_evidence - constant).tolist())
            taken, run = clock(user, particles, i, torch.float64)
            seconds["user"].append(taken)
            found["user"].append(float(run.log_evidence))
            theirs = peer(data, particles, 3, i)
            seconds["peer"].extend(theirs[0])
            found["peer"].extend(theirs[1])
    truth = exact(y)
    rows = []
    for way, label in (("one", "1"), ("many", "64"), ("user", "1, torch laws"), ("peer", "1, particles")):
        if not seconds[way]:
            continue
        best = min(seconds[way])
        rows.append(
            {
                "series x particles": f"{label} x {particles}",
                "steps": len(y),
                "ms a series": 1e3 * best,
                "particles, ms": 1e3 * min(seconds["peer"]) if seconds["peer"] else None,
                "times as fast": min(seconds["peer"]) / best if seconds["peer"] else None,
                "evidence over exact, s.e.": against(truth, found[way]),
                "exact log evidence": truth,
            }
        )
    return rows


def scaling(small: bool) -> tuple[dict[str, float], dict[str, list[tuple[int, float]]]]:
    """Fitted slopes of log seconds against log steps and log particles, and the points."""
    points: dict[str, list[tuple[int, float]]] = {"steps": [], "particles": []}
    for steps in (100, 300, 1000) if small else (100, 300, 1000, 3000, 10_000):
        model = Volatility(simulate(steps))
        points["steps"].append((steps, min(clock(model, 1000)[0] for _ in range(3))))
    for particles in (1000, 10_000) if small else (1000, 3000, 10_000, 30_000, 100_000):
        model = Volatility(simulate(300))
        taken = min(clock(model, particles)[0] for _ in range(3))
        points["particles"].append((particles, taken))
    slopes = {}
    for axis, values in points.items():
        size, cost = np.log(np.array(values)).T
        slopes[axis] = float(np.polyfit(size, cost, 1)[0])
    return slopes, points


def draw(points: dict[str, list[tuple[int, float]]], slopes: dict[str, float], path: Path) -> None:
    """Cost against steps and particles on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for ax, (axis, values) in zip(axes, points.items()):
        ax.loglog(*zip(*values), "o-")
        ax.set(xlabel=axis, ylabel="seconds", title=f"slope {slopes[axis]:.2f}")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, write, and fail where a bar is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="fewer runs and sizes; nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = 2 if arguments.small else arguments.runs
    rows = [row for particles in (1000, 10_000) for row in compare(simulate(1000), particles, runs)]
    slopes, points = scaling(arguments.small)
    for row in rows:
        print(row)
    print("slopes", slopes)
    missed = [
        f"{row['series x particles']}: {row['times as fast']:.1f}, bar {BARS[row['series x particles']]:g}"
        for row in rows
        if row["times as fast"] is not None and row["times as fast"] < BARS.get(row["series x particles"], 0)
    ]
    missed += [
        f"{row['series x particles']}: evidence {(ratio - 1) / error:.1f} s.e. from the grid's"
        for row in rows
        for ratio, error in [row["evidence over exact, s.e."]]
        if not arguments.small and "particles" not in row["series x particles"] and abs(ratio - 1) > 4 * error
    ]
    if not arguments.small:
        what = "Bootstrap particle filter on stochastic volatility, one thread; the peer is the package particles."
        facts = {"machine": platform.machine(), "torch": torch.__version__, "threads": 1}
        grown = [{"grows": axis, "slope": slope} for axis, slope in slopes.items()]
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "particles.json").write_text(json.dumps({"what": what, **facts, "rows": rows + grown}, indent=1))
        draw(points, slopes, RESULTS / "particles.png")
    if missed:
        sys.exit("bars missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
