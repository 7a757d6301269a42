"""Guided against bootstrap particles on bridges of a double well; simulation against torchsde where it is installed.

The problem: dX = (X - X^3) dt + 0.8 dW, 50 Euler steps over one unit of time, an observation 1 at the end.  A case is
the start and the standard deviation of the observation.  Effective samples a second count everything: choosing the
auxiliary and filtering backward for the guided run, drawing normals, weighing; both run on the same engine.  The
evidence is compared with quadrature, in standard errors.  Peers that are not installed are left out.

Bars: in the cases (i) and (ii) 20 times the effective samples a second of a bootstrap filter, ours and that of the
package particles, and the evidence within 3 standard errors.  Both filters of ours run the same loops, so that in case
(i), where a bootstrap filter keeps one particle of 28, the bar asks for a guided particle at 1.2 times the cost of an
unguided one, preparation included: it can hold where there are enough particles to pay for that, and is read at the
largest number.  The smallest number of particles from which on it holds is printed and written.

    python benchmarks/bench_guided.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from retrodict.inference import SDE, Observed
from retrodict.inference.guided.posterior import conditioned_sde
from retrodict.particles import ess

HERE = Path(__file__).resolve().parent
CASES = {"(i)": (-0.5, 0.1), "(ii)": (-0.5, 0.03), "(iii)": (0.0, 0.1)}
STEPS = 50
RATIOS = ("ratio_to_bootstrap", "ratio_to_particles")
PEER = HERE / "peers_inference" / "particles_bridge.py"


def truth(x0: float, sd: float) -> float:
    """The evidence of the Euler chain by quadrature."""
    x = torch.linspace(-4, 4, 1601, dtype=torch.float64)
    dx, dt = float(x[1] - x[0]), 1 / STEPS
    law = lambda m: torch.distributions.Normal(m + (m - m**3) * dt, 0.8 * dt**0.5)  # noqa: E731
    p = law(torch.tensor(x0, dtype=torch.float64)).log_prob(x).exp()
    kernel = law(x[:, None]).log_prob(x).exp() * dx
    for _ in range(STEPS - 1):
        p = p @ kernel
    return float(
        (p * torch.distributions.Normal(x, sd).log_prob(torch.tensor(1.0, dtype=torch.float64)).exp()).sum() * dx
    )


def run(method: str, x0: float, sd: float, particles: int, seed: int) -> tuple[float, float, float]:
    """``(seconds, effective sample size, log evidence)`` of one run from nothing."""
    model = SDE(lambda x, t: x - x**3, 0.8)
    data = Observed([1.0], times=[1.0], noise=sd)
    begin = time.perf_counter()
    options = {"weight": "none"} if method == "bootstrap" else {"auxiliary": method}
    found = conditioned_sde(model, data, start=[x0], steps=STEPS, **options).weigh(particles, seed)
    effective = float(ess(found.log_w))
    return time.perf_counter() - begin, effective, float(found.log_evidence)


def study(particles: int, repeats: int) -> list[dict[str, object]]:
    rows = []
    for case, (x0, sd) in CASES.items():
        known, rates = truth(x0, sd), {}
        for method in ("bootstrap", "brownian", "auto"):
            run(method, x0, sd, particles, 0)
            runs = [run(method, x0, sd, particles, seed) for seed in range(1, repeats + 1)]
            seconds = statistics.median(r[0] for r in runs)
            effective = statistics.mean(r[1] for r in runs)
            values = torch.tensor([r[2] for r in runs]).double().exp()
            rates[method] = effective / seconds
            rows.append(
                {
                    "case": case, "method": method, "particles": particles, "milliseconds": 1e3 * seconds,
                    "effective_share": effective / particles, "effective_per_second": rates[method],
                    "ratio_to_bootstrap": rates[method] / rates["bootstrap"], "evidence": float(values.mean()),
                    "quadrature": known,
                    "standard_errors": float((values.mean() - known) / (values.std() / math.sqrt(repeats))),
                }
            )  # fmt: skip
        peer = peers(x0, sd, particles)
        if peer is not None:
            rows.append({"case": case, "method": "particles, bootstrap", "particles": particles, **peer,
                         "ratio_to_bootstrap": peer["effective_per_second"] / rates["bootstrap"]})  # fmt: skip
            rows[-2]["ratio_to_particles"] = rates["auto"] / peer["effective_per_second"]
    return rows


def holding(rows: list[dict[str, object]], case: str, key: str) -> int | None:
    """The least number of particles from which on `auto` keeps a bar; None: not even at the largest."""
    least = None
    for row in rows:
        if row["case"] == case and row["method"] == "auto" and key in row:
            reached = float(row[key]) >= 20  # type: ignore[arg-type]
            least = (least or int(row["particles"])) if reached else None  # type: ignore[call-overload]
    return least


def peers(x0: float, sd: float, particles: int) -> dict[str, float] | None:
    """The bootstrap filter of the package particles on the same problem, in its own environment."""
    python = HERE.parent / ".venv-peers" / "bin" / "python"
    if not python.exists() or not PEER.exists():
        return None
    command = [str(python), str(PEER), str(x0), str(sd), str(particles), str(STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def simulation(repeats: int) -> list[dict[str, object]]:
    """A two-dimensional diffusion, 1,000 steps by 1,000 paths."""
    B = torch.tensor([[-1.0, 1.0], [-1.0, -1.0]])
    times = torch.linspace(0.001, 1, 1000, dtype=torch.float64)

    def ours() -> object:
        return SDE(lambda x, t: x @ B.T, torch.tensor([0.5, 0.4])).sample(
            1000, times, steps=1, start=[1.0, 0.0], dtype=torch.float32
        )

    rows: list[dict[str, object]] = [{"simulator": "retrodict", "milliseconds": 1e3 * median_time(ours, repeats)}]
    try:
        import torchsde
    except ImportError:
        return rows

    class Peer(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return y @ B.T

        def g(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.tensor([0.5, 0.4]).expand_as(y)

    def theirs() -> object:
        with torch.no_grad():
            start = torch.tensor([1.0, 0.0]).expand(1000, 2)
            return torchsde.sdeint(Peer(), start, torch.linspace(0, 1, 1001), dt=1e-3, method="euler")

    rows.append({"simulator": "torchsde", "milliseconds": 1e3 * median_time(theirs, max(2, repeats // 3))})
    rows[0]["ratio"] = rows[1]["milliseconds"] / rows[0]["milliseconds"]  # type: ignore[operator]
    return rows


def median_time(f: Callable[[], object], repeats: int) -> float:
    f()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        f()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, nothing written")
    quick = parser.parse_args(arguments).quick
    torch.set_num_threads(1)
    sizes = (10_000,) if quick else (1000, 10_000, 100_000)
    rows = [row for n in sizes for row in study(n, 5 if quick else 40 if n < 100_000 else 12)]
    simulated = simulation(3 if quick else 15)
    known = [key for key in RATIOS if any(key in row for row in rows)]
    holds = {f"{case} {key}": holding(rows, case, key) for case in ("(i)", "(ii)") for key in known}
    for row in (*rows, *simulated):
        print(json.dumps(row))
    print("bars hold from this many particles on:", json.dumps(holds))
    if quick:
        return
    facts = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
    results = HERE / "results"
    guided = {"what": "Bridges of a double well, guided and bootstrap particles on one engine; see the script", **facts}
    (results / "guided.json").write_text(json.dumps({**guided, "bars_hold_from": holds, "rows": rows}, indent=1) + "\n")
    simulator = {"what": "Simulation of a two-dimensional diffusion, 1,000 steps by 1,000 paths, float32", **facts}
    (results / "simulation.json").write_text(json.dumps({**simulator, "rows": simulated}, indent=1) + "\n")

    missed = [f"{bar}: missed" for bar, least in holds.items() if least is None]
    far = [row for row in rows if abs(float(row.get("standard_errors", 0.0))) > 3]  # type: ignore[arg-type]
    missed += [
        f"{row['case']} {row['method']} x {row['particles']}: evidence {row['standard_errors']} s.e. off" for row in far
    ]
    if missed:
        sys.exit("; ".join(missed))


if __name__ == "__main__":
    main(sys.argv[1:])
