"""Posterior samplers where the posterior is known: two mixtures and a kernel density of digits, and peers beside them.

Every method of `retrodict.condition` runs on P1 and P2 (benchmarks/posterior/problems.py) at 200 and 120 steps, without
weights as published, and the weighted population that is the default; each row is a mean over seeds.  TV is the error
of the modes' weights, SW2 the sliced 2-Wasserstein distance to exact samples beside its floor (the same distance
between two exact sets of that size), residual the root mean square of (A x - y)/noise, which says nothing of the
posterior.  Passes are network evaluations a sample, forward and backward.

    python benchmarks/bench_posterior.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from posterior.measures import floor, measured
from posterior.problems import Problem, kde, p1, p2

import retrodict as rd

HERE = Path(__file__).resolve().parent
PEER = HERE / "peers_images" / "deepinv_posterior.py"
PYTHON = HERE.parent / ".venv-peers-images" / "bin" / "python"
SEEDS = 5


@dataclass(frozen=True)
class Case:
    """A method as it is run: its options, with or without weights."""

    name: str
    method: str
    weighted: bool = False
    seeds: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    words: dict[str, Any] = field(default_factory=dict)


def cases(seeds: int) -> list[Case]:
    """What runs on the mixtures."""
    return [
        Case("auto (weighted)", "auto", True, seeds),
        Case("pigdm, no gradient (weighted)", "pigdm", True, seeds, {"gradient": False}),
        Case("pigdm (weighted)", "pigdm", True, 1),
        Case("dps (weighted)", "dps", True, 1),
        Case("mmps", "mmps", False, seeds),
        Case("pigdm", "pigdm", False, seeds),
        Case("tmpd", "tmpd"),
        Case("dps, likelihood", "dps"),
        Case("dps, zeta .3", "dps", options={"official": True, "zeta": 0.3}),
        Case("dps, zeta 1", "dps", options={"official": True, "zeta": 1.0}),
        Case("stsl", "stsl", options={"inner": 2}),
        Case("diffpir, zeta .3", "diffpir"),
        Case("diffpir, zeta 1", "diffpir", options={"zeta": 1.0}),
        Case("ddnm", "ddnm", options={"eta": 1.0}),
        Case("ddrm", "ddrm"),
        Case("replacement", "replacement"),
        Case("repaint, 3 rounds", "repaint", options={"rounds": 3}),
        Case("daps, isotropic", "daps", options={"covariance": "isotropic", "ode": 3}),
        Case("daps, scaled", "daps", options={"covariance": "scaled", "ode": 3}),
        Case("daps, exact C", "daps", options={"covariance": "exact"}),
    ]


def run(problem: Problem, case: Case, n: int, seed: int) -> dict[str, float]:
    """One run, measured."""
    goal = rd.Measurement(problem.y, problem.A, noise=problem.noise)
    cond = rd.condition(problem.denoiser, goal, method=case.method, **case.options)
    begin = time.perf_counter()
    population = True if case.weighted else False
    out = rd.sample(cond, n, seed=seed, population=population, progress=False, **problem.plan, **case.words)
    seconds = time.perf_counter() - begin
    found = measured(problem, out.x, out.weights, seed)
    share = float(out.ess) / n if out.ess is not None else 1.0
    return {**found, "ess_share": share, "evaluations": out.nfe, "seconds": seconds}


def row(problem: Problem, case: Case, n: int, base: float) -> dict[str, Any]:
    """Means over seeds."""
    runs = [run(problem, case, n, seed) for seed in range(case.seeds)]
    mean = {key: statistics.mean(r[key] for r in runs) for key in runs[0]}
    out = {"problem": problem.name, "method": case.name, "n": n, "seeds": case.seeds, **mean, "floor": base}
    out["ratio"] = mean["sw2"] / base
    print(json.dumps(out), flush=True)
    return out


def mixtures(seeds: int, large: bool) -> list[dict[str, Any]]:
    """P1 and P2 at the sizes of the table, and the default at 4,000 particles."""
    rows = []
    for problem in (p1(), p2()):
        base = floor(problem, problem.n)
        rows += [row(problem, case, problem.n, base) for case in cases(seeds)]
        if large:
            rows.append(row(problem, Case("auto (weighted)", "auto", True, seeds), 4000, floor(problem, 4000)))
        rows += peers(problem, base)
    return rows


def digits(seeds: int, which: str, n: int) -> list[dict[str, Any]]:
    """The kernel density of digits, one held-out image a seed."""
    methods = [
        Case("auto (weighted)", "auto", True),
        Case("pigdm (weighted)", "pigdm", True),
        Case("pigdm, no gradient (weighted)", "pigdm", True, options={"gradient": False}),
        Case("pigdm", "pigdm"),
        Case("mmps", "mmps"),
        Case("dps, zeta .3", "dps", options={"official": True, "zeta": 0.3}),
        Case("diffpir, zeta .3", "diffpir"),
        Case("daps, scaled", "daps", options={"covariance": "scaled", "ode": 1}),
    ]
    problems = [kde(which, index) for index in range(seeds)]
    rows = []
    for case in methods:
        if which == "half" and case.method == "mmps":
            continue  # 32 derivatives an evaluation
        runs = [run(p, case, n, seed) for seed, p in enumerate(problems)]
        mean = {key: statistics.mean(r[key] for r in runs) for key in runs[0]}
        rows.append({"problem": problems[0].name, "method": case.name, "n": n, "seeds": seeds, **mean})
        print(json.dumps(rows[-1]), flush=True)
    exact = [(p, p.exact(n, 7 + i)) for i, p in enumerate(problems)]
    found = [measured(p, x, torch.full((n,), 1.0 / n), i) for i, (p, x) in enumerate(exact)]
    mean = {key: statistics.mean(f[key] for f in found) for key in found[0]}
    rows.append({"problem": problems[0].name, "method": "exact samples", "n": n, "seeds": seeds, **mean})
    return rows


def peers(problem: Problem, base: float) -> list[dict[str, Any]]:
    """deepinv's samplers on the same prior, in their own environment; left out where it is not installed."""
    if not PYTHON.exists():
        return []
    law = problem.denoiser.law
    sent = {
        "weights": law.weights.tolist(), "means": law.means.tolist(), "covariances": law.covariances.tolist(),
        "A": problem.A.tolist(), "y": problem.y.tolist(), "noise": problem.noise, "n": problem.n,
        "steps": problem.plan["steps"], "variance": float(law.covariance.diagonal().mean()),
    }  # fmt: skip
    done = subprocess.run([str(PYTHON), str(PEER)], input=json.dumps(sent), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stderr[-2000:], file=sys.stderr)
        return []
    rows = []
    for name, found in json.loads(done.stdout.splitlines()[-1]).items():
        x = torch.tensor(found["x"], dtype=torch.float64)
        finite = bool(torch.isfinite(x).all())
        facts = measured(problem, x, torch.full((len(x),), 1 / len(x)), 0) if finite else {}
        out = {"problem": problem.name, "method": f"deepinv: {name}", "n": problem.n, "seeds": 1, **facts}
        out |= {"evaluations": found["evaluations"], "seconds": found["seconds"], "floor": base}
        out |= {"ratio": facts["sw2"] / base} if finite else {}
        rows.append(out)
        print(json.dumps(out), flush=True)
    return rows


def bars(rows: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """What has to hold."""
    found = {(r["problem"], r["method"], r["n"]): r for r in rows}
    out = []
    for name, n, most in (("P1", 1500, 0.03), ("P2", 700, 0.07)):
        auto = found[(name, "auto (weighted)", n)]
        out.append((f"{name}: auto, TV {auto['tv']:.3f} at most {most}", auto["tv"] <= most))
        out.append((f"{name}: auto, SW2 {auto['ratio']:.2f} floors at most 1.5", auto["ratio"] <= 1.5))
        if (name, "auto (weighted)", 4000) in found:
            large = found[(name, "auto (weighted)", 4000)]
            out.append(
                (f"{name}: auto, 4,000 particles, SW2 {large['ratio']:.2f} floors at most 2", large["ratio"] <= 2)
            )
    for method in ("pigdm", "mmps"):
        plain = found[("P1", method, 1500)]
        out.append((f"P1: {method} without weights, TV {plain['tv']:.3f} in .08 to .14", 0.08 <= plain["tv"] <= 0.14))
        out.append(
            (f"P1: {method} without weights, SW2 {plain['ratio']:.2f} floors at least 2.5", plain["ratio"] >= 2.5)
        )
    return out


def page(rows: list[dict[str, Any]], checks: list[tuple[str, bool]]) -> str:
    """The tables as Markdown."""
    lines = []
    for problem in dict.fromkeys(r["problem"] for r in rows):
        columns = ["method", "n", "seeds", "TV", "SW2", "floors", "residual", "mean error", "std", "evaluations", "s"]
        keys = ["method", "n", "seeds", "tv", "sw2", "ratio", "residual", "mean", "std", "evaluations", "seconds"]
        lines += [f"**{problem}**", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        for r in (r for r in rows if r["problem"] == problem):
            cells = [r.get(k, "") for k in keys]
            lines.append("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
        lines.append("")
    lines += [f"- {'holds' if good else 'does not hold'}: {what}" for what, good in checks]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, no large populations, nothing written")
    quick = parser.parse_args(arguments).quick
    torch.set_num_threads(1)
    seeds = 1 if quick else SEEDS
    rows = mixtures(seeds, large=not quick)
    rows += digits(seeds, "blocks", 64) + digits(seeds, "half", 64)
    checks = bars(rows)
    for what, good in checks:
        print("ok  " if good else "MISS", what)
    if not quick:
        facts = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
        what = "Posterior samplers on problems with a known posterior; see the script"
        study = {"what": what, **facts, "rows": rows, "bars": [{"what": w, "holds": g} for w, g in checks]}
        (HERE / "results" / "posterior.json").write_text(json.dumps(study, indent=1) + "\n")
        (HERE / "results" / "posterior.md").write_text(page(rows, checks))
    return 0 if all(good for _, good in checks) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
