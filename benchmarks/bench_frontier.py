"""Error against network evaluations: ours beside diffusers, azula and the k-diffusion samplers.

Two problems, each solved by every sampler from the same starts with equal network passes:

- a mixture of five Gaussians in the plane under DDPM's linear betas, with its exact denoiser in float64, against
  1,000 Runge-Kutta steps uniform in log(sigma/alpha) and a last denoising;
- the digits model that the demonstration trains, with its labels, at guidance 1 and 1.5, against 500 steps.

The error is the root mean square, over 512 starts, of the Euclidean distance to where the probability flow takes the
same start.

    python benchmarks/bench_frontier.py [runs/demo] [--only mixture|digits] [--starts 512] [--threads N]

Prints tables and writes ``benchmarks/results/frontier.json`` (every peer with its grid and flags) and figures in
``docs/assets``.  The model is trained first if its folder does not exist.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from models import digits_model
from peers import Peer, Problem, all_peers
from peers.figures import frontier_figure
from peers.ours import GRIDS, GRIDS_FOR_NETWORKS, Ours, auto, named
from peers.race import Finish, firsts, race, ratio_interval, run
from peers.writing import content, write
from safetensors.torch import load_file, save_file
from torch import Tensor

import retrodict as rd
from retrodict.denoisers import Denoiser, Guided

HERE = Path(__file__).parent
MIXTURE_BUDGETS, DIGITS_BUDGETS = (5, 6, 8, 10, 15, 20), (5, 8, 10, 20)
MIXTURE_BARS = {5: 0.085, 10: 0.025, 20: 0.006}
WORST_RATIO, WITHIN_OURS = 1.05, 1.2
GUIDANCES = (1.0, 1.5)
REFERENCE_STEPS = 500
HEATS = ((16, 60), (48, 4))  # (starts, survivors) before the final, on the digits
MEANS = [(1.2, 0.0), (-0.8, 0.9), (-0.8, -0.9), (0.3, 1.6), (0.4, -1.5)]
STDS, WEIGHTS = [0.25, 0.35, 0.30, 0.20, 0.40], [0.30, 0.20, 0.20, 0.15, 0.15]

Row = dict[str, Any]


# -- the mixture ----------------------------------------------------------------------------------------------------


def mixture(starts: int) -> tuple[Problem, Denoiser]:
    """The plane's problem with its reference."""
    law = rd.exact.GaussianMixture(WEIGHTS, MEANS, [s**2 for s in STDS])
    denoiser = law.denoiser(rd.DDPM())
    noise = torch.randn(starts, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    problem = Problem(rd.DDPM(), denoiser, noise)
    problem.reference = runge_kutta(problem, 1000)
    return problem, denoiser


def runge_kutta(problem: Problem, steps: int, lowest: float = 1e-4) -> Tensor:
    """The probability flow ``dy/dlog(rho) = y - D`` of ``y = x/alpha`` by the classical method, then a denoising."""
    path = problem.path
    y = problem.noise * float(path.sigma(1.0) / path.alpha(1.0))

    def slope(y: Tensor, log_rho: float) -> Tensor:
        return y - problem.mean(y, 1.0, math.exp(log_rho))

    levels = torch.linspace(math.log(problem.rho_max), math.log(lowest), steps + 1, dtype=torch.float64).tolist()
    for a, b in pairwise(levels):
        h = b - a
        k1 = slope(y, a)
        k2 = slope(y + h / 2 * k1, a + h / 2)
        k3 = slope(y + h / 2 * k2, a + h / 2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, b))
    return problem.mean(y, 1.0, lowest)


def study_mixture(starts: int) -> tuple[list[Row], dict[str, Any]]:
    problem, denoiser = mixture(starts)
    peers, missing = all_peers(problem)
    rows, record = [], {"starts": starts, "missing": missing, "peers": {}, "ours": {}}
    for nfe in MIXTURE_BUDGETS:
        row, ours, theirs = compare(problem, auto(denoiser), named(GRIDS), peers, nfe, ())
        bar = MIXTURE_BARS.get(nfe)
        row |= {"problem": "mixture", "bar": bar, "holds": None if bar is None else row["auto"] <= bar}
        rows.append(row)
        remember(record, peers, ours, theirs, nfe)
        report(row)
    return rows, record


# -- the digits -----------------------------------------------------------------------------------------------------


def digits(denoiser: Denoiser, guidance: float, starts: int) -> Problem:
    """The trained network as a problem: float64 states, the network's own precision inside."""
    model = denoiser if guidance == 1.0 else Guided(denoiser, guidance)
    model.eval()
    dtype = next(denoiser.parameters()).dtype
    noise = torch.randn(starts, *denoiser.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def denoise(x: Tensor, t: float) -> Tensor:
        label = torch.arange(len(x)) % 10
        parts = zip(x.to(dtype).split(128), label.split(128))
        return torch.cat([model(part, t, label=asked) for part, asked in parts]).double()

    return Problem(denoiser.process, denoise, noise)


def long_run(problem: Problem, folder: Path, guidance: float) -> Tensor:
    """The reference of a trained model, kept beside it: 500 steps of second order."""
    weights = hashlib.blake2b((folder / "model.safetensors").read_bytes(), digest_size=6).hexdigest()
    path = folder / f"reference-{weights}-{guidance:g}-{len(problem.noise)}x{REFERENCE_STEPS}.safetensors"
    if not path.is_file():
        save_file({"x": problem.run_plan(reference_plan(problem, REFERENCE_STEPS))}, path)
    return load_file(path)["x"]


def reference_plan(problem: Problem, steps: int) -> rd.Plan:
    return rd.plan("adams", problem.path, steps=steps, grid="angle", kind="velocity", order=1, corrector=True)


def own_error(problem: Problem, starts: int = 32) -> float:
    """How far the reference is from another solver of as many steps, on a few starts."""
    some = problem.first(starts)
    other = rd.plan("unipc", problem.path, steps=REFERENCE_STEPS, grid="logsnr")
    return float(some.errors(some.run_plan(other)).square().mean().sqrt())


def study_digits(folder: Path, starts: int) -> tuple[list[Row], dict[str, Any]]:
    denoiser = digits_model(folder)
    rows, record = [], {"starts": starts, "heats": HEATS, "guidance": {}}
    survivors: dict[int, set[str]] = {}
    for guidance in GUIDANCES:
        problem = digits(denoiser, guidance, starts)
        problem.reference = long_run(problem, folder, guidance)
        peers, missing = all_peers(problem)
        part = {"reference_error": own_error(problem), "missing": missing, "peers": {}, "ours": {}}
        record["guidance"][f"{guidance:g}"] = part
        plans = named(GRIDS_FOR_NETWORKS)
        for nfe in DIGITS_BUDGETS:
            first = nfe not in survivors  # who lost the first heat without guidance does not run with it
            heats = HEATS if first else HEATS[1:]
            left = [[r for r in group if first or r.name in survivors[nfe]] for group in (plans, peers)]
            row, ours, theirs = compare(problem, auto(denoiser, guidance), *left, nfe, heats)
            if first:
                survivors[nfe] = {
                    n for group in (ours, theirs) for n in sorted(group, key=group.__getitem__)[: HEATS[0][1]]
                }
            row |= {"problem": f"digits, guidance {guidance:g}", "bar": WORST_RATIO}
            row["holds"] = row["ratio_high"] <= WORST_RATIO and row["auto"] <= WITHIN_OURS * row["ours"]
            rows.append(row)
            remember(part, peers, ours, theirs, nfe)
            report(row)
    return rows, record


# -- comparing ------------------------------------------------------------------------------------------------------


def compare(
    problem: Problem, choice: Ours, plans: list[Ours], peers: list[Peer], nfe: int, heats: Any
) -> tuple[Row, dict[str, float], dict[str, float]]:
    """``(a row, errors of ours, errors of theirs)`` at one budget; only untuned peers count as theirs."""
    chosen = run(choice, problem, nfe)
    assert chosen is not None, "auto gave no finite result"
    own, all_own = race(plans, problem, nfe, heats)
    fair, all_fair = race([p for p in peers if not p.tuned], problem, nfe, heats)
    tuned, all_tuned = race([p for p in peers if p.tuned], problem, nfe, heats)
    best_own: Finish = min([chosen, *own], key=lambda f: f.rms)
    low, high = ratio_interval(chosen, fair)
    row = {
        "nfe": nfe,
        "auto": chosen.rms,
        "ours": best_own.rms,
        "ours_name": best_own.runner.name,
        "theirs": fair[0].rms,
        "theirs_name": fair[0].runner.name,
        "tuned": tuned[0].rms if tuned else None,
        "tuned_name": tuned[0].runner.name if tuned else None,
        "ratio": chosen.rms / fair[0].rms,
        "ratio_low": low,
        "ratio_high": high,
        "best_of_libraries": {f.runner.library: {"error": f.rms, "name": f.runner.name} for f in firsts(fair)},
    }
    return row, all_own | {"auto": chosen.rms}, all_fair | all_tuned


def remember(
    record: dict[str, Any], peers: list[Peer], ours: dict[str, float], theirs: dict[str, float], nfe: int
) -> None:
    """Add a budget to the full list of results; on the digits an error is that of a sampler's last heat."""
    for peer in peers:
        facts = {"library": peer.library, "sampler": peer.sampler, "tuned": peer.tuned, **peer.flags}
        record["peers"].setdefault(peer.name, facts | {"errors": {}})["errors"][nfe] = rounded(theirs.get(peer.name))
    for name, error in ours.items():
        record["ours"].setdefault(name, {"name": name, "errors": {}})["errors"][nfe] = rounded(error)


def one_a_line(study: dict[str, Any]) -> str:
    """JSON with each sampler of the records on a line of its own."""
    parts = [study["records"]["mixture"]] if "mixture" in study["records"] else []
    parts += study["records"].get("digits", {}).get("guidance", {}).values()
    for part in parts:
        part |= {key: list(part[key].values()) for key in ("peers", "ours")}
    text = json.dumps(study, indent=1)
    return re.sub(r"\{\s+\"(?:library|name)\": [^{}]*\{[^{}]*\}\s*\}", lambda m: " ".join(m[0].split()), text) + "\n"


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def report(row: Row) -> None:
    verdict = {None: "", True: "  holds", False: "  DOES NOT HOLD"}[row["holds"]]
    print(
        f"{row['problem']:22} nfe {row['nfe']:2}  auto {row['auto']:.4f}  "
        f"best of ours {row['ours']:.4f} ({row['ours_name']})\n"
        f"{'':22} best of theirs {row['theirs']:.4f} ({row['theirs_name']}), auto/theirs {row['ratio']:.3f} "
        f"[{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]{verdict}",
        flush=True,
    )


# -- the whole ------------------------------------------------------------------------------------------------------

COLUMNS = ["problem", "nfe", "auto", "best of ours", "best of theirs", "auto / theirs (95%)", "bar", "holds"]


def table(rows: list[Row]) -> list[list[str]]:
    """The rows as text, bars beside their results."""
    lines = []
    for r in rows:
        bar = (
            "" if r["bar"] is None else f"error {r['bar']:g}" if r["problem"] == "mixture" else "ratio 1.05, 1.2 x ours"
        )
        lines.append(
            [
                r["problem"],
                str(r["nfe"]),
                f"{r['auto']:.4f}",
                f"{r['ours']:.4f} {r['ours_name']}",
                f"{r['theirs']:.4f} {r['theirs_name']}",
                f"{r['ratio']:.3f} ({r['ratio_low']:.3f} to {r['ratio_high']:.3f})",
                bar,
                {None: "", True: "yes", False: "NO"}[r["holds"]],
            ]
        )
    return lines


WHAT = "Error against network evaluations, ours beside diffusers, azula and the k-diffusion samplers."
NOTES = [
    "Error: rms Euclidean distance, over shared starts, to the probability-flow end point of the same start.",
    "Equal network passes; peers are told the exact noise level of their state, never a rounded timestep.",
    "Peers run on their own grids and flags. A flow shift of 0.5, which no pipeline ships, is recorded as tuned and "
    "does not count as theirs.",
    "On the digits all samplers run heats on few starts, and the best four of each side meet on all of them; the "
    "interval of the ratio resamples starts and picks the best of theirs anew each time.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="runs/demo", type=Path)
    parser.add_argument("--only", choices=("mixture", "digits"))
    parser.add_argument("--starts", type=int, default=512)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--assets", type=Path, default=HERE.parent / "docs" / "assets")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    begun = time.perf_counter()
    rows, records = [], {}
    if given.only != "digits":
        rows, records["mixture"] = study_mixture(given.starts)
    if given.only != "mixture":
        more, records["digits"] = study_digits(given.folder, given.starts)
        rows += more
    study = content("frontier", WHAT, COLUMNS, table(rows), NOTES)
    study |= {"seconds": round(time.perf_counter() - begun), "results": rows, "records": records}
    write(study, one_a_line(study), given.results, "frontier.svg", "Error against network evaluations")
    for line in [COLUMNS, *table(rows)]:
        print("  ".join(line))
    given.assets.mkdir(parents=True, exist_ok=True)
    frontier_figure(rows, given.assets / "frontier.svg")
    if not all(r["holds"] in (None, True) for r in rows):
        sys.exit("some bars do not hold")


if __name__ == "__main__":
    main()
