"""Certificates of the samplers of diffusers, azula and the k-diffusion family, with ours beside them.

Every sampler is put through `retrodict.certify`, on a grid uniform in log-SNR wherever its library offers one: order
of convergence, exactness, moments and errors at budgets, ends, reproducibility.  What does not hold is listed with two
lines that show it again.

    python benchmarks/bench_certificates.py [--only diffusers|azula|k-diffusion|retrodict]

Writes ``benchmarks/results/certificates.json`` and ``docs/certificates.md``; a few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peers.sigma_samplers import SAMPLERS

import retrodict as rd
from retrodict.app.info import versions
from retrodict.diagnostics.certificate import Certificate, FunctionSampler

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "certificates.json", HERE.parent / "docs" / "certificates.md"
Case = tuple[str, str, Callable[[], Certificate]]  # (library, how to make it again, what makes it)

OURS: list[tuple[str, dict[str, Any]]] = [
    ("ddim", {}),
    ("ddim", {"eta": 1.0}),
    ("euler-ancestral", {}),
    ("heun", {}),
    ("dpm-solver++", {"order": 2}),
    ("dpm-solver++", {"order": 3}),
    ("dpm-solver", {"order": 3}),
    ("sde-dpm-solver++", {"order": 2}),
    ("sde-dpm-solver++", {"order": 3}),
    ("unipc", {"order": 2}),
    ("unipc", {"order": 3}),
    ("deis", {"degree": 3}),
    ("lms", {}),
    ("plms", {}),
    ("dpm-solver++-2s", {}),
    ("dpm-solver++-3s", {}),
    ("rk4", {}),
]

_LOG: dict[str, Any] = {"use_exponential_sigmas": True}
_STOP: dict[str, Any] = {"final_sigmas_type": "sigma_min"}
_MULTI, _SINGLE, _UNIPC = "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep"
DIFFUSERS: list[tuple[str, dict[str, Any]]] = [
    ("DDIM", {}),
    ("DDPM", {}),
    ("PNDM", {}),
    ("PNDM", {"skip_prk_steps": True}),
    ("IPNDM", {}),
    ("EulerDiscrete", _LOG),
    ("EulerAncestralDiscrete", {}),
    ("HeunDiscrete", _LOG),
    ("KDPM2Discrete", _LOG),
    ("LMSDiscrete", _LOG),
    *[(_MULTI, {"solver_order": p, **_LOG}) for p in (1, 2, 3)],
    (_MULTI, {"solver_order": 2, "solver_type": "heun", **_LOG}),
    *[(_MULTI, {"solver_order": p, "algorithm_type": "dpmsolver", **_LOG, **_STOP}) for p in (2, 3)],
    (_MULTI, {"solver_order": 3, "algorithm_type": "dpmsolver", "use_karras_sigmas": True, **_STOP}),
    *[(_MULTI, {"solver_order": p, "algorithm_type": "sde-dpmsolver++", **_LOG}) for p in (1, 2, 3)],
    (_MULTI, {"solver_order": 2, "algorithm_type": "sde-dpmsolver", **_LOG, **_STOP}),
    *[(_SINGLE, {"solver_order": p, "lower_order_final": True, **_LOG}) for p in (2, 3)],
    *[(_SINGLE, {"solver_order": p, "lower_order_final": False, **_LOG, **_STOP}) for p in (2, 3)],
    *[("DEISMultistep", {"solver_order": p, **_LOG}) for p in (2, 3)],
    *[(_UNIPC, {"solver_order": p, **_LOG}) for p in (1, 2, 3)],
    (_UNIPC, {"solver_order": 2, "solver_type": "bh1", **_LOG}),
    (_UNIPC, {"solver_order": 2, "predict_x0": False, **_LOG, **_STOP}),
    *[("SASolver", {"predictor_order": p, "corrector_order": p, **_LOG}) for p in (2, 3)],
    ("EDMEuler", {"sigma_schedule": "exponential"}),
    *[("EDMDPMSolverMultistep", {"solver_order": p, "sigma_schedule": "exponential"}) for p in (2, 3)],
    ("FlowMatchEulerDiscrete", {}),
    ("FlowMatchHeunDiscrete", {}),
]

AZULA: list[tuple[str, dict[str, Any]]] = [
    ("EulerSampler", {"declared": 1}),
    ("HeunSampler", {"declared": 2}),
    ("DDIMSampler", {"declared": 1}),
    ("DDPMSampler", {"declared": 1}),
    ("ItoSampler", {}),
    ("PCSampler", {}),
    *[
        (name, {"order": p})
        for name in ("zABSampler", "vABSampler", "zEABSampler", "xEABSampler", "REABSampler")
        for p in (2, 3, 4)
    ],
]

#: name -> order that the literature gives
SIGMA_ORDERS = {"euler": 1, "heun": 2, "dpm_2": 2, "lms": 4, "ipndm": 2, "dpmpp_2s": 2, "dpmpp_2m": 2}


def cases() -> Iterator[Case]:
    """Every sampler that is certified; libraries that are not installed are left out."""
    for name, options in OURS:
        call = f"rd.certify({', '.join([repr(name), *(f'{k}={v!r}' for k, v in options.items())])})"
        yield "retrodict", f"import retrodict as rd\nprint({call})", lambda n=name, o=options: rd.certify(n, **o)
    for name, order in SIGMA_ORDERS.items():
        yield "k-diffusion family", "", lambda n=name, p=order: rd.certify(sigma_sampler(n, p))
    try:
        import azula.sample
    except ImportError:
        pass
    else:
        for name, options in AZULA:
            words = "".join(f", {k}={v!r}" for k, v in options.items())
            lines = f"import azula.sample, retrodict as rd\nprint(rd.certify(azula.sample.{name}{words}))"
            yield "azula", lines, lambda n=name, o=options: rd.certify(getattr(azula.sample, n), **o)
    try:
        import diffusers
    except ImportError:
        return
    for name, flags in DIFFUSERS:
        words = ", ".join(f"{k}={v!r}" for k, v in flags.items())
        lines = f"import diffusers, retrodict as rd\nprint(rd.certify(diffusers.{name}Scheduler({words})))"
        yield "diffusers", lines, lambda n=name, f=flags: rd.certify(getattr(diffusers, f"{n}Scheduler")(**f))


def sigma_sampler(name: str, order: float) -> FunctionSampler:
    """A sampler of the peers, written from the published update, in k-diffusion's signature."""
    function, _ = SAMPLERS[name]

    def run(model: Callable[..., Any], x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        return function(lambda y, s: model(y, torch.full((len(y),), float(s), dtype=torch.float64)), x, sigmas.numpy())

    sampler = FunctionSampler(run, order, name)
    sampler.library, sampler.version = "k-diffusion family", ""
    return sampler


def row(library: str, lines: str, found: Certificate, seconds: float) -> dict[str, Any]:
    """One sampler's line of the table, and what does not hold."""
    at = lambda name: {int(f.details[0]): f.value for f in found.find(name) if f.details}  # noqa: E731
    polynomials = found.find("polynomials")
    return {
        "library": library,
        "version": found.version,
        "sampler": found.name,
        "stochastic": found.stochastic,
        "declared": found.declared,
        "order": _number(found.order),
        "polynomials": [int(v) for v in polynomials[0].details] if polynomials and polynomials[0].details else None,
        "variance_error": {n: _number(v) for n, v in at("Gaussian moments").items()},
        "wasserstein": {n: _number(v) for n, v in at("mixture").items()},
        "faults": [f"{f.name}: {f.text}" for f in found.findings if not f],
        "reproduce": lines,
        "seconds": round(seconds, 1),
    }


def _number(value: float) -> float | None:
    return float(f"{value:.3g}") if math.isfinite(value) else None


# -- the page -------------------------------------------------------------------------------------------------------

HEAD = """\
# Certificates

Written by `benchmarks/bench_certificates.py`; [certifying](guide/certify.md) explains the measurements. Every sampler
was shown denoisers whose answer is known in closed form, on a grid uniform in log-SNR wherever its library offers one,
and nothing else of it was used. Measured with {versions}.

*Order*: pathwise for a deterministic sampler, of the output variance on Gaussian data for a stochastic one, over 40 to
160 steps; what the sampler declares is in brackets. *Exact to degree*: predictions of the data that are polynomials in
log-SNR, and of the noise in sigma/alpha, that are integrated exactly; - is not even constants. *Variance*: relative
error on Gaussian data. *W1*: Wasserstein-1 distance to a mixture of four narrow components. The last two are at the
largest number of evaluations up to ten; they belong to these two problems and this grid, which suits no sampler at so
few steps. Schedulers run with clipping off, since that belongs to the denoiser. Samplers of the k-diffusion family are
written here from their published updates.
"""


def page(rows: list[dict[str, Any]], facts: str) -> str:
    """The table and the list of faults as Markdown."""
    parts = [HEAD.format(versions=facts)]
    columns = ["sampler", "order", "exact to degree", "variance", "W1", "holds"]
    for library in dict.fromkeys(r["library"] for r in rows):
        lines = [columns, ["---"] * len(columns)]
        lines += [_line(r) for r in rows if r["library"] == library]
        parts.append(f"## {library}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n")
    faults = [r for r in rows if r["faults"]]
    parts.append(f"## What does not hold\n\n{summary(rows)}\n")
    parts += [_fault(r) for r in faults]
    return "\n".join(parts)


def summary(rows: list[dict[str, Any]]) -> str:
    """How many do not hold, in a sentence."""
    return f"{sum(bool(r['faults']) for r in rows)} of {len(rows)} samplers have a finding that does not hold."


def _line(r: dict[str, Any]) -> list[str]:
    order = "" if r["order"] is None else f"{r['order']:.2f}"
    declared = "" if r["declared"] is None else f" ({r['declared']:g})"
    exact = ", ".join("-" if q < 0 else str(q) for q in r["polynomials"]) if r["polynomials"] else ""
    return [
        f"`{r['sampler']}`",
        order + declared + (" weak" if r["stochastic"] else ""),
        exact,
        _up_to_ten(r["variance_error"], "{:.0%}"),
        _up_to_ten(r["wasserstein"], "{:.3f}"),
        "yes" if not r["faults"] else "**no**",
    ]


def _up_to_ten(values: dict[int, float | None], form: str) -> str:
    within = [n for n in values if int(n) <= 10]
    value = values[max(within)] if within else None
    return "" if value is None else form.format(value)


def _fault(r: dict[str, Any]) -> str:
    faults = "\n".join(f"- {fault}" for fault in r["faults"])
    lines = f"\n```text\n{r['reproduce']}\n```\n" if r["reproduce"] else ""
    return f"### {r['library']}: {r['sampler']}\n\n{faults}\n{lines}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="print the certificates of one library and write nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)
    rows, begun = [], time.perf_counter()
    for library, lines, make in cases():
        if given.only and not library.startswith(given.only):
            continue
        start = time.perf_counter()
        try:
            found = make()
        except (ValueError, TypeError) as error:  # an option that this version of a library does not have
            print(f"{library}: {lines.splitlines()[-1]}: {error}", flush=True)
            continue
        rows.append(row(library, lines, found, time.perf_counter() - start))
        print(f"{rows[-1]['seconds']:5.1f} s  {library} {found.name}: {found.order:.2f} ({found.declared})", flush=True)
        for fault in rows[-1]["faults"]:
            print(f"         {fault}", flush=True)
    if given.only:
        return
    used = {r["library"]: r["version"] for r in rows if r["version"]} | {"torch": versions()["torch"]}
    study = {"name": "certificates", "seconds": round(time.perf_counter() - begun), "versions": versions() | used}
    study |= {"what": "Certificates of the samplers of four libraries", "certificates": rows}
    RESULTS.with_suffix(".md").write_text(f"{summary(rows)} See [certificates](certificates.md).\n", encoding="utf-8")
    RESULTS.write_text(json.dumps(study, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(rows, ", ".join(f"{k} {v}" for k, v in used.items())), encoding="utf-8")


if __name__ == "__main__":
    main()
