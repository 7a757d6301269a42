"""What every registered solver claims, and the orders that are measured: writes ``docs/solver-claims.md``.

The matrix is read off the registry, whose tests hold every entry to it.  Orders are measured on a problem that is
written down: a mixture of three components of standard deviation about .8, VP with linear betas, uniform log-SNR from
t = 1 to 1e-3, 64 starts, against scipy's DOP853; stochastic plans by the exact variance of their output on Gaussian
data.

    python benchmarks/bench_solvers.py

Also writes ``benchmarks/results/solvers.json`` and draws ``docs/assets/orders.png``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import retrodict as rd
from retrodict.diagnostics import certificate
from retrodict.exact import GaussianMixture
from retrodict.solvers import solvers
from retrodict.solvers.registry import CLAIMS, Solver

HERE = Path(__file__).resolve().parent
PAGE, RESULTS = HERE.parent / "docs" / "solver-claims.md", HERE / "results" / "solvers.json"
PICTURE = HERE.parent / "docs" / "assets" / "orders.png"
STEPS = (10, 20, 40, 80, 160, 320)
LAW = GaussianMixture(
    [0.2861, 0.4715, 0.2424],
    [[0.5884, -0.3353], [-0.4793, -1.8076], [1.5667, -0.9498]],
    [0.4963**2, 0.6136**2, 0.9542**2],
)
PATHWISE: list[tuple[str, str, dict[str, Any]]] = [
    ("DDIM", "ddim", {}),
    ("DPM-Solver++ 2M, midpoint (as published)", "dpm++2m", {}),
    ("DPM-Solver++ 2M, exact weights", "dpm-solver++", {}),
    ("DPM-Solver++ 3M, as published", "dpm-solver++", {"order": 3, "weights": "official"}),
    ("DPM-Solver++ 3M, exact weights", "dpm-solver++", {"order": 3}),
    ("exponential Adams 4, data", "adams", {"order": 4}),
    ("DPM-Solver 3, as published", "dpm-solver", {"order": 3, "weights": "official"}),
    ("DPM-Solver 3, exact weights", "dpm-solver", {"order": 3}),
    ("DEIS tAB, degree 2", "deis", {}),
    ("DEIS rhoAB, degree 2", "deis", {"variant": "rhoab"}),
    ("LMS 4", "lms", {}),
    ("PLMS / iPNDM 4", "plms", {}),
    ("UniPC 2, bh1", "unipc", {"variant": "bh1"}),
    ("UniPC 2, bh2", "unipc", {}),
    ("UniPC 2, exact weights", "unipc", {"variant": "exact"}),
    ("UniPC 3", "unipc", {"order": 3}),
    ("flow Adams-Bashforth 2", "flow-ab", {}),
    ("velocity Adams-Bashforth 2", "velocity-ab", {}),
    ("velocity 2 with corrector (auto)", "adams", {"kind": "velocity", "corrector": True}),
    ("DPM-Solver++ 2S", "dpm-solver++-2s", {}),
    ("DPM-Solver++ 3S", "dpm-solver++-3s", {}),
    ("Heun (EDM)", "heun", {}),
    ("midpoint in sigma", "rho-rk", {"tableau": "midpoint"}),
    ("Kutta 3 in sigma", "rho-rk", {"tableau": "kutta3"}),
    ("Runge-Kutta 4 in sigma", "rk4", {}),
    ("Euler in t", "euler", {}),
]
WEAK: list[tuple[str, str, dict[str, Any]]] = [
    ("DDPM", "ddpm", {}),
    ("Euler-Maruyama in t", "euler-maruyama", {}),
    ("SDE-DPM-Solver++ 2M, midpoint", "dpm++2m-sde", {}),
    ("SDE-DPM-Solver++ 2M, exact weights", "sde-dpm-solver++", {}),
    ("SDE-DPM-Solver++ 3M, exact weights", "sde-dpm-solver++", {"order": 3}),
    ("SDE-DPM-Solver (noise form)", "dpm-solver-sde", {}),
]


def entries() -> list[tuple[Solver, list[str]]]:
    """Each of the library's solvers once, with its other names."""
    named: dict[str, list[str]] = {}
    first: dict[str, Solver] = {}
    ours = [
        (name, entry) for name, entry in solvers.items() if (entry.generate.__module__ or "").startswith("retrodict.")
    ]
    for name, entry in sorted(ours, key=lambda item: item[0]):
        first.setdefault(entry.name, solvers[entry.name])
        named.setdefault(entry.name, [])
        if name != entry.name:
            named[entry.name].append(name)
    return [(first[name], named[name]) for name in sorted(first)]


def matrix() -> str:
    """The claims of every solver with its defaults, as a table and the reasons for what is missing."""
    lines = ["| solver | other names | order | stochasticity | default grid | " + " | ".join(CLAIMS) + " |"]
    lines += ["|" + "---|" * (5 + len(CLAIMS))]
    reasons = []
    for entry, names in entries():
        order = entry.declared_order({}, entry.default_eta)
        eta = {"none": "none", "share": f"eta 0 to 1 ({entry.default_eta:g})", "always": "always"}[entry.eta]
        marks = [mark(entry, claim) for claim in CLAIMS]
        cells = [
            f"`{entry.name}`",
            ", ".join(f"`{n}`" for n in names),
            "" if order is None else f"{order:g}",
            eta,
            entry.grid,
        ]
        lines.append("| " + " | ".join([*cells, *marks]) + " |")
        reasons += [f"- `{entry.name}`, {claim}: {text}." for claim, text in entry.without.items()]
    return "\n".join([*lines, "", "Claims that are absent, or that some options give up:", "", *reasons])


def mark(entry: Solver, claim: str) -> str:
    """Held, absent with a reason, or without meaning for the entry."""
    if claim in entry.claims:
        return "yes*" if claim in entry.without else "yes"
    return "no" if claim in entry.without else ""


def measure() -> dict[str, list[dict[str, Any]]]:
    """Errors and orders."""
    process = rd.VP()
    denoiser = LAW.denoiser(process)
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = z * float(process.sigma(1.0))
    exact = certificate.flow_map(denoiser, x, 1.0, 1e-3)
    rows: dict[str, list[dict[str, Any]]] = {"pathwise": [], "weak": []}
    for label, solver, options in PATHWISE:
        make = _maker(solver, process, options)
        rows["pathwise"].append(
            _row(label, make, certificate.convergence_order(make, exact, steps=STEPS, denoiser=denoiser, x=x))
        )
    for label, solver, options in WEAK:
        make = _maker(solver, process, options)
        rows["weak"].append(_row(label, make, certificate.weak_order(make, steps=STEPS)))
    return rows


def _maker(solver: str, process: rd.VP, options: dict[str, Any]) -> Any:
    return lambda n: rd.plan(solver, process, steps=n, grid="logsnr", end=1e-3, **options)


def _row(label: str, make: Any, found: certificate.Finding) -> dict[str, Any]:
    errors = {f"error at {n}": e for n, e in zip(STEPS, found.details)}
    return {"plan": label, "declared": make(4).order, "measured": found.value, **errors}


def orders(rows: list[dict[str, Any]]) -> str:
    """The table of one kind of order."""
    shown = (10, 20, 40, 320)
    lines = [
        "| plan | declared | measured | " + " | ".join(f"{n} steps" for n in shown) + " |",
        "|---|---|---|" + "---|" * len(shown),
    ]
    for r in rows:
        errors = " | ".join(f"{r[f'error at {n}']:.1e}" for n in shown)
        lines.append(f"| {r['plan']} | {r['declared']:g} | {r['measured']:.2f} | {errors} |")
    return "\n".join(lines)


PAGE_TEXT = """\
# Solvers: claims and measured orders

This page is written by `benchmarks/bench_solvers.py`; [solvers](guide/solvers.md) explains them. Claims are held by the
tests, on every process, and what is absent is checked to be really absent.

| claim | what holds |
|---|---|
| constant | a constant denoiser is integrated exactly; of a stochastic plan, the mean is |
| variance | the noise of a stochastic plan keeps the marginal variance under a constant denoiser |
| order | errors fall with the declared power of the number of steps |
| bridge | rows that depend on data are the process' bridge, which maps its one-time laws to each other |
| reversal | with an exact posterior the law of the samples tends to the data's; discrete processes only |

`yes*` holds for the defaults, and not for every option.

## Claims

{matrix}

## Measured orders, deterministic

Mean Euclidean error of the end point against an independent solution, on a mixture of three components, VP with linear
betas, steps uniform in log-SNR from t = 1 to 0.001, 64 starts. The order is the slope from 80 to 320 steps. The third
order of DPM-Solver and DPM-Solver++ as published, and as every library ships it, has half of the weight that its second
difference needs, and is of second order; exact weights are the default here.

{pathwise}

## Measured orders, stochastic

Relative error of the output variance on Gaussian data of variance .25, propagated exactly through the plan: nothing is
sampled. A third-order interpolant cannot beat weak order two, since the denoiser's output is rough along a noisy path.

{weak}
"""


def write(rows: dict[str, list[dict[str, Any]]]) -> None:
    """The page from measured rows."""
    text = PAGE_TEXT.format(matrix=matrix(), pathwise=orders(rows["pathwise"]), weak=orders(rows["weak"]))
    PAGE.write_text(text, encoding="utf-8")


DRAWN = (
    ("DDIM", "DDIM"),
    ("DPM-Solver++ 2M, midpoint (as published)", "DPM-Solver++ 2M"),
    ("DPM-Solver++ 3M, as published", "DPM-Solver++ 3M, published weights"),
    ("DPM-Solver++ 3M, exact weights", "DPM-Solver++ 3M, exact weights"),
    ("velocity 2 with corrector (auto)", "velocity on the angle, corrector"),
)


def draw(rows: list[dict[str, Any]]) -> None:
    """Errors against steps, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    by_name = {r["plan"]: r for r in rows}
    for name, label in DRAWN:
        axes.loglog(STEPS, [by_name[name][f"error at {n}"] for n in STEPS], marker="o", markersize=3.5, label=label)
    axes.set(xlabel="evaluations", ylabel="mean error of the end point")
    axes.set_xticks(STEPS, [str(n) for n in STEPS])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=160)


def main() -> None:
    torch.set_num_threads(1)
    rows = measure()
    content = {
        "format": 1,
        "what": "measured orders of convergence; the claims of every solver are on the page solver-claims",
        "torch": torch.__version__,
        "rows": rows["pathwise"] + rows["weak"],
        "kinds": rows,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write(rows)
    draw(rows["pathwise"])
    print(orders(rows["pathwise"]), orders(rows["weak"]), f"written: {PAGE}, {RESULTS}", sep="\n\n")


if __name__ == "__main__":
    main()
