"""Gradients through a run: what three ways of taking them cost, and how right they are.

The digits model that the demonstration trains runs a BDIA plan from noise to t = 0.01; the loss is the squared distance
to held-out digits, and its gradient is taken in the starting noise and in all weights, in float32,

    autograd      through every operation of the run,
    reversible    states computed again by running the plan backward,
    recompute     from the states that the network saw,
    continuous    the adjoint of the flow itself, by Euler and by the midpoint rule.

Error is the relative L2 distance, once to autograd's gradient through the same plan, once to that of the flow (400
evaluations by Heun's method in float64).  Memory is the largest sum of tensors that graphs held at one time, forward
and backward, the weights left out.  The bars:

    reversible and recompute within 1e-5 of autograd at any number of steps;
    memory of reversible and continuous the same at every number of steps, to 1%.

    python benchmarks/bench_adjoint.py [runs/demo] [--threads N]

Prints a table and writes ``benchmarks/results/adjoint.json`` and ``docs/assets/adjoint.png``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
from models import digits_model
from peers.writing import content, write
from torch import Tensor

import retrodict as rd
from retrodict.core.noise import KeyedNoise
from retrodict.solvers import runtime

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
STEPS, SAMPLES, END, GRID, BAR, REFERENCE = (10, 20, 40, 80), 4, 0.01, "uniform", 1e-5, 200
WAYS: dict[str, dict[str, Any]] = {
    "autograd": {},
    "reversible": {"mode": "reversible"},
    "recompute": {"mode": "recompute"},
    "continuous, Euler": {"mode": "continuous", "integrator": "euler"},
    "continuous, midpoint": {"mode": "continuous", "integrator": "midpoint"},
}
EXACT, FLAT = ("reversible", "recompute"), ("reversible", "continuous, Euler", "continuous, midpoint")
WHAT = "Gradients through a run: error, memory and time of exact and continuous adjoints beside autograd"
CAPTION = "Memory against steps, and the error against the gradient of the flow"
COLUMNS = [
    "way",
    "steps",
    "noise, to autograd",
    "weights, to autograd",
    "noise, to the flow",
    "weights, to the flow",
    "MiB",
    "seconds",
]


class Live:
    """Tensors that autograd's graphs hold, and the most that they ever held."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._held: dict[int, int] = {}

    def pack(self, value: Tensor) -> Any:
        """Take a tensor in; what is held twice counts once, and parameters do not count."""
        # detached: a graph that holds its own output through a hook would never be freed
        return value if isinstance(value, torch.nn.Parameter) else _Held(self, value.detach())

    @staticmethod
    def unpack(value: Any) -> Tensor:
        return value.tensor if isinstance(value, _Held) else value

    def change(self, tensor: Tensor, by: int) -> None:
        key = tensor.untyped_storage().data_ptr()
        before = self._held.get(key, 0)
        self._held[key] = before + by
        if not before or not self._held[key]:
            self.now += by * tensor.untyped_storage().nbytes()
            self.most = max(self.most, self.now)


class _Held:
    def __init__(self, live: Live, tensor: Tensor) -> None:
        self.live, self.tensor = live, tensor
        live.change(tensor, 1)

    def __del__(self) -> None:
        self.live.change(self.tensor, -1)


class Problem:
    """A start, a loss and a model."""

    def __init__(self, denoiser: rd.Denoiser) -> None:
        held: Any = rd.load_data("digits").heldout
        self.denoiser, self.target = denoiser, held.x[:SAMPLES]
        self.label = held.conditions["label"][:SAMPLES]
        self.start = torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def plan(self, steps: int, solver: str = "bdia", grid: str = GRID) -> rd.Plan:
        return rd.plan(solver, self.denoiser.process, steps=steps, grid=grid, end=END)

    def run(self, plan: rd.Plan, words: dict[str, Any]) -> Callable[[Tensor], Tensor]:
        """Start to samples, in the user's units."""
        if words:
            return lambda x: rd.backprop(self.denoiser, x, plan=plan, label=self.label, **words)
        noise = KeyedNoise(0, SAMPLES)
        scale: Any = self.denoiser.scale
        condition = {"label": self.label}
        return lambda x: scale.inverse(runtime.run(plan, self.denoiser.eval(), x, noise, condition))

    def gradient(self, run: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        """The gradient in the start and in the weights, the memory and the time."""
        self.denoiser.to(dtype)
        x = self.start.to(dtype).requires_grad_()
        weights = list(self.denoiser.parameters())
        live, begun = Live(), time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(live.pack, live.unpack):
            loss = (run(x) - self.target.to(dtype)).square().sum() / 256
            in_x, *in_weights = torch.autograd.grad(loss, [x, *weights], allow_unused=True)
        seconds = time.perf_counter() - begun
        flat = torch.cat([g.double().flatten() for g in in_weights if g is not None])
        return {"noise": in_x.double(), "weights": flat, "bytes": live.most, "seconds": seconds}


def gap(a: dict[str, Any], b: dict[str, Any]) -> list[float]:
    """Relative L2 distances of two gradients, in the noise and in the weights."""
    return [float((a[part] - b[part]).norm() / b[part].norm()) for part in ("noise", "weights")]


def study(problem: Problem) -> dict[str, dict[int, dict[str, Any]]]:
    """Every way at every number of steps."""
    truth = problem.gradient(problem.run(problem.plan(REFERENCE, "heun"), {"mode": "recompute"}), torch.float64)
    cells: dict[str, dict[int, dict[str, Any]]] = {way: {} for way in WAYS}
    for steps in STEPS:
        taped = None
        for way, words in WAYS.items():
            # sigma/alpha, the clock of the flow, is without bound on a grid that is even in time
            plan = problem.plan(steps, grid="logsnr" if way.startswith("continuous") else GRID)
            found = problem.gradient(problem.run(plan, words))
            taped = taped or found
            cells[way][steps] = {
                "to autograd": gap(found, taped),
                "to the flow": gap(found, truth),
                "MiB": found["bytes"] / 2**20,
                "seconds": found["seconds"],
            }
            print(way, steps, cells[way][steps], flush=True)
    return cells


def verdicts(cells: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    """What does not hold."""
    missed = []
    for way in EXACT:
        worst = max(max(cell["to autograd"]) for cell in cells[way].values())
        if worst > BAR:
            missed.append(f"{way}: {worst:.1e} from autograd, above {BAR:.0e}")
    for way in FLAT:
        sizes = [cell["MiB"] for cell in cells[way].values()]
        if max(sizes) > 1.01 * min(sizes):
            missed.append(f"{way}: memory grows from {min(sizes):.2f} to {max(sizes):.2f} MiB")
    return missed


def picture(cells: dict[str, dict[int, dict[str, Any]]], path: Path) -> None:
    """Memory, and error to the flow, against steps."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for way, row in cells.items():
        left.plot(STEPS, [row[n]["MiB"] for n in STEPS], "o-", label=way)
        if way in ("autograd", *FLAT[1:]):
            label = "exact (BDIA)" if way == "autograd" else way
            right.plot(STEPS, [row[n]["to the flow"][0] for n in STEPS], "o-", label=label)
    for axis, text in ((left, "MiB held at most"), (right, "error to the gradient of the flow")):
        axis.set(xscale="log", yscale="log", xlabel="steps", ylabel=text)
        axis.set_xticks(STEPS, [str(n) for n in STEPS])
        axis.minorticks_off()
        axis.legend(fontsize=7)
    fig.tight_layout()
    fig.savefig(path, dpi=160, metadata={"Software": None})
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="runs/demo", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--assets", type=Path, default=HERE.parent / "docs" / "assets")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    denoiser = digits_model(given.folder)
    cells = study(Problem(denoiser))
    missed = verdicts(cells)
    table = []
    for way, row in cells.items():
        for steps, cell in row.items():
            same = ["", ""] if way == "autograd" else [f"{v:.1e}" for v in cell["to autograd"]]
            other = [f"{v:.1e}" for v in cell["to the flow"]]
            table.append([way, str(steps), *same, *other, f"{cell['MiB']:.2f}", f"{cell['seconds']:.2f}"])
    notes = [
        f"{SAMPLES} digits, {sum(p.numel() for p in denoiser.parameters()):,} weights, BDIA with gamma = 1 on the "
        f"{GRID} grid to t = {END}, the continuous ways on the log-SNR grid, where the clock of the flow is bounded; "
        "float32.",
        "MiB is the most that graphs held at one time beside the weights: for all but autograd that is the graph of "
        "one evaluation, and the states that are kept.",
        "The continuous ways are of the flow, not of the plan, so that their distance to autograd through the plan is "
        "the error of both.",
        f"The bar is {BAR:.0e} to autograd for the exact ways, and memory that does not grow for the reversible one: "
        + ("it holds." if not missed else "MISSED: " + "; ".join(missed)),
    ]
    result = content("adjoint", WHAT, COLUMNS, table, notes)
    result |= {"holds": not missed, "measured": cells}
    given.assets.mkdir(parents=True, exist_ok=True)
    write(result, json.dumps(result, indent=1) + "\n", given.results, "adjoint.png", CAPTION)
    picture(cells, given.assets / "adjoint.png")
    sys.exit("; ".join(missed) if missed else 0)


if __name__ == "__main__":
    main()
