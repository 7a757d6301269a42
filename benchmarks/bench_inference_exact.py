"""Exact inference in Gaussian and finite chains, beside dynamax after its compilation.

Linear-Gaussian series of four states and hidden Markov models of 8 and 64 states: log evidence, smoothed means,
marginal covariances, a path draw, the gradient of the evidence.  Ours starts from the observations (the potentials are
made inside the clock), with the extra ``fast`` and as if it were not installed.  Each library runs in a process of
its own, held to the same cores; the first call (dynamax: compilation; ours: reading compiled loops from disk, or
making them where they are not there yet) is told apart from the median of the later ones.

    make bench-peers
    python benchmarks/bench_inference_exact.py [--runs 9] [--small]

Writes ``benchmarks/results/inference_exact.json``, ``.md`` and ``.png`` (cost against steps, with fitted slopes).
"means, evidence, draw" asks one chain for the three; dynamax's smoother and sampler together do that.

Bars, against dynamax: one Gaussian series, evidence, means and draws at least 10 times as fast; gradients at 10,000
steps at least as fast; covariances and hidden Markov models at least as fast with the extra (batches on two cores),
and at most 4 times slower without.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.kernels.scans import FiniteChain, GaussianChain, finite, gaussian, native

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".venv-peers" / "bin" / "python"
RESULTS = HERE / "results" / "inference_exact.json"
Problem = dict[str, np.ndarray]
TOGETHER = "means, evidence, draw"
LENGTHS = (1000, 3000, 10_000, 30_000, 100_000)


# -- problems: name -> arrays --------------------------------------------------------------------------------------


def gaussian_problem(steps: int, series: int) -> Problem:
    """Two damped oscillators in noise, their positions observed with correlated errors."""
    rng = np.random.default_rng(0)
    turn = np.array([[1.0, 0.1], [-0.1, 0.95]]) * 0.98
    A, L = np.kron(np.eye(2), turn), np.zeros((2, 4))
    L[0, 0] = L[1, 2] = 1.0
    mix = rng.normal(size=(4, 4))
    Q, R = 0.1 * np.eye(4) + 0.0125 * mix @ mix.T, np.array([[0.3, 0.1], [0.1, 0.4]])
    x, y = rng.normal(size=(series, 4)), np.zeros((series, steps, 2))
    for t in range(steps):
        if t:
            x = x @ A.T + rng.multivariate_normal(np.zeros(4), Q, size=series)
        y[:, t] = x @ L.T + rng.multivariate_normal(np.zeros(2), R, size=series)
    return {"m0": np.zeros(4), "P0": np.eye(4), "A": A, "b": np.zeros(4), "Q": Q, "L": L, "R": R, "y": y}


def markov_problem(states: int, steps: int, series: int) -> Problem:
    """Sticky states with levels between -3 and 3, observed in noise of standard deviation one."""
    rng = np.random.default_rng(states)
    P = 0.2 * rng.dirichlet(np.ones(states), size=states) + 0.8 * np.eye(states)
    levels, cumulative = np.linspace(-3, 3, states), P.cumsum(1)
    state, y = rng.integers(states, size=series), np.zeros((series, steps))
    for t in range(steps):
        if t:
            state = (rng.random((series, 1)) > cumulative[state, :-1]).sum(1)
        y[:, t] = levels[state] + rng.normal(size=series)
    log_g = -0.5 * (y[..., None] - levels) ** 2 - 0.5 * math.log(2 * math.pi)
    return {"p0": np.full(states, 1 / states), "P": P, "log_g": log_g}


def problems(small: bool) -> dict[str, Problem]:
    """All of them; ``small`` for a quick look."""
    short, long, batch = (100, 500, 4) if small else (1000, 10000, 64)
    return {
        f"Gaussian d=4, {short:,} steps": gaussian_problem(short, 1),
        f"Gaussian d=4, {long:,} steps": gaussian_problem(long, 1),
        f"Gaussian d=4, {batch} series of {short:,}": gaussian_problem(short, batch),
        f"Markov K=8, {long:,} steps": markov_problem(8, long, 1),
        f"Markov K=64, {long:,} steps": markov_problem(64, long, 1),
        f"Markov K=8, {batch} series of {short:,}": markov_problem(8, short, batch),
    }


def bar(problem: str, task: str, extra: bool) -> float | None:
    """The least ratio (theirs over ours) that is asked for, or None where nothing is."""
    if task == "gradient":
        return 1.0 if "10,000" in problem and extra else None
    if "series" not in problem and problem.startswith("Gaussian") and task in ("evidence", "means", "draw", TOGETHER):
        return 10.0
    return 1.0 if extra else 0.25


# -- ours, in a process of its own ---------------------------------------------------------------------------------


def observed(data: dict[str, Tensor], A: Tensor, Q: Tensor, R: Tensor) -> GaussianChain:
    """The chain of a linear-Gaussian problem, from its observations."""
    seen = gaussian.observe(data["y"], data["L"][None, None], R[None, None])
    steps = A[None, None], data["b"][None, None], Q[None, None]
    return GaussianChain(data["m0"][None], data["P0"][None], *steps, *seen)


def gaussian_tasks(data: dict[str, Tensor]) -> dict[str, Callable[[], Any]]:
    """What is timed on a linear-Gaussian problem."""
    parameters = [data[name] for name in ("A", "Q", "R")]

    def gradient() -> Tensor:
        leaves = [x.clone().requires_grad_() for x in parameters]
        total = gaussian.evidence(observed(data, *leaves)).sum()
        total.backward()
        return total.detach()

    def together() -> tuple[Tensor, ...]:
        chain = observed(data, *parameters)
        draw = gaussian.draw(chain, 1, torch.Generator().manual_seed(0))
        return *gaussian.means(chain), draw

    return {
        TOGETHER: together,
        "evidence": lambda: gaussian.evidence(observed(data, *parameters)).sum(),
        "means": lambda: gaussian.means(observed(data, *parameters))[0],
        "covariances": lambda: gaussian.smooth(observed(data, *parameters)).cov,
        "draw": lambda: gaussian.draw(observed(data, *parameters), 1, torch.Generator().manual_seed(0)),
        "gradient": gradient,
    }


def markov_tasks(data: dict[str, Tensor]) -> dict[str, Callable[[], Any]]:
    """What is timed on a hidden Markov model."""
    leading = data["p0"][None], data["P"][None, None], data["log_g"]
    chain = FiniteChain(*leading)

    def gradient() -> Tensor:
        total = finite.evidence(FiniteChain(*(x.clone().requires_grad_() for x in leading))).sum()
        total.backward()
        return total.detach()

    return {
        "evidence": lambda: finite.evidence(chain).sum(),
        "smooth": lambda: finite.smooth(chain).probabilities,
        "viterbi": lambda: finite.viterbi(chain)[0],
        "gradient": gradient,
    }


def route_of(data: dict[str, Tensor], task: str) -> str:
    """The route that "auto" takes for a task."""
    if "log_g" in data:
        chain = FiniteChain(data["p0"][None], data["P"][None, None], data["log_g"])
        return finite.choose(chain, "evidence" if task == "gradient" else task).name
    chain = observed(data, data["A"], data["Q"], data["R"])
    verb = {"covariances": "smooth", "gradient": "evidence", TOGETHER: "draw"}.get(task, task)
    return gaussian.candidates(chain, verb)[0].name


def timed(call: Callable[[], Any], runs: int) -> dict[str, float]:
    """Seconds of the first call, and the median of ``runs`` later ones."""
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "seconds": statistics.median(seconds[1:])}


def work(path: str, runs: int, threads: int, extra: bool) -> dict[str, Any]:
    """All problems of a file, on this process."""
    torch.set_num_threads(threads)
    if not extra:
        native.installed = lambda: False  # type: ignore[assignment]
    arrays = np.load(path)
    found: dict[str, Any] = {}
    for name in dict.fromkeys(key.split("/")[0] for key in arrays):
        data = {key.split("/")[1]: torch.from_numpy(arrays[key]) for key in arrays if key.startswith(f"{name}/")}
        tasks = markov_tasks(data) if "log_g" in data else gaussian_tasks(data)
        found[name] = {task: timed(call, runs) | {"route": route_of(data, task)} for task, call in tasks.items()}
        found[name]["log_evidence"] = float(tasks["evidence"]())
    return found


# -- both sides --------------------------------------------------------------------------------------------------


def run(command: list[str], threads: int) -> dict[str, Any]:
    """The JSON that a command prints, held to the first ``threads`` of the cores that we may use."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        ["taskset", "--cpu-list", ",".join(map(str, cores)), *command],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(threads: int, runs: int, path: str) -> list[dict[str, Any]]:
    """A row for each problem and task."""
    theirs = run([str(PEERS), str(HERE / "peers_inference" / "dynamax_chains.py"), path, "--runs", str(runs)], threads)
    mine = [sys.executable, __file__, "--worker", path, "--runs", str(runs), "--threads", str(threads)]
    fast, plain = run(mine, threads), run([*mine, "--plain"], threads)
    rows = []
    for problem, tasks in theirs.items():
        gap = abs(fast[problem]["log_evidence"] / tasks["log_evidence"] - 1)
        assert gap < 1e-8, f"{problem}: log evidences differ by {gap:.1e} of their size"
        if problem.startswith("Gaussian"):
            tasks[TOGETHER] = {key: tasks["means"][key] + tasks["draw"][key] for key in ("seconds", "first")}
        for task, their in tasks.items():
            if task == "log_evidence":
                continue
            row: dict[str, Any] = {"problem": problem, "task": task, "threads": threads}
            row |= {"dynamax_ms": 1e3 * their["seconds"], "dynamax_first_s": their["first"]}
            for side, kind in ((fast, "fast"), (plain, "plain")):
                our = side[problem][task]
                row |= {f"{kind}_ms": 1e3 * our["seconds"], f"{kind}_route": our["route"]}
                row |= {f"{kind}_first_s": our["first"], f"{kind}_ratio": their["seconds"] / our["seconds"]}
                asked = bar(problem, task, kind == "fast") if threads == (2 if "series" in problem else 1) else None
                row[f"{kind}_ok"] = None if asked is None else bool(row[f"{kind}_ratio"] >= asked)
            rows.append(row)
    return rows


def growth() -> list[dict[str, Any]]:
    """Seconds of smoothing against steps, one series on one thread, and the slope of log on log."""
    torch.set_num_threads(1)
    there, found = native.installed, []
    for extra in (True, False):
        native.installed = there if extra else lambda: False  # type: ignore[assignment]
        for name in ("Gaussian d=4", "Markov K=8"):
            seconds = []
            for steps in LENGTHS:
                arrays = gaussian_problem(steps, 1) if name.startswith("Gaussian") else markov_problem(8, steps, 1)
                data = {key: torch.from_numpy(value) for key, value in arrays.items()}
                call = gaussian_tasks(data)["means"] if "y" in data else markov_tasks(data)["smooth"]
                seconds.append(timed(call, 5)["seconds"])
            slope = float(np.polyfit(np.log(LENGTHS), np.log(seconds), 1)[0])
            label = f"{name}, {'with' if extra else 'without'} the extra"
            found.append({"label": label, "steps": list(LENGTHS), "seconds": seconds, "slope": slope})
    native.installed = there
    return found


def figure(curves: list[dict[str, Any]], path: Path) -> None:
    """Cost against steps on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for curve in curves:
        ax.loglog(curve["steps"], curve["seconds"], "o-", label=f"{curve['label']}: slope {curve['slope']:.2f}")
    ax.set(xlabel="steps", ylabel="seconds", title="Smoothing one series")
    ax.legend()
    shown.savefig(path, dpi=120)


def page(rows: list[dict[str, Any]]) -> str:
    """The table, as Markdown that also reads well in a terminal."""
    lines = [
        "| problem | task | threads | dynamax ms (first s) | with `fast` ms (first s) | ratio | without ms | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        over = {kind: " (below its bar)" if r[f"{kind}_ok"] is False else "" for kind in ("fast", "plain")}
        lines.append(
            f"| {r['problem']} | {r['task']} | {r['threads']} | {r['dynamax_ms']:.2f} ({r['dynamax_first_s']:.1f}) "
            f"| {r['fast_ms']:.2f} {r['fast_route']} ({r['fast_first_s']:.2f}) | {r['fast_ratio']:.1f}{over['fast']} "
            f"| {r['plain_ms']:.2f} {r['plain_route']} | {r['plain_ratio']:.1f}{over['plain']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="short chains and no file written: a quick look")
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(work(given.worker, given.runs, given.threads, not given.plain)))
        return
    if not PEERS.exists():
        sys.exit("the peers are not installed; run: make bench-peers")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "problems.npz")
        chains = problems(given.small)
        np.savez(path, **{f"{name}/{key}": value for name, data in chains.items() for key, value in data.items()})
        rows = [row for threads in (1, 2) for row in compare(threads, given.runs, path)]
    text = page(rows)
    print(text)
    if given.small:
        return
    curves = growth()
    figure(curves, RESULTS.with_suffix(".png"))
    text += "\n\n" + "\n".join(f"Cost grows as steps to the power {c['slope']:.2f}: {c['label']}." for c in curves)
    ok = all(row[f"{kind}_ok"] is not False for row in rows for kind in ("fast", "plain"))
    content = {
        "format": 1,
        "what": "exact inference in whole chains beside dynamax after its compilation, medians",
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "runs": given.runs,
        "ok": ok,
        "rows": rows,
        "growth": curves,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(f"written: {RESULTS}")
    sys.exit(0 if ok else "some bars do not hold")


if __name__ == "__main__":
    main()
