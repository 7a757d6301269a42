"""What comes back: pictures inverted and generated again by the digits model, and what carrying less costs.

Held-out digits are run to the noise and back.  "carried" regenerates from everything that `retrodict.invert` returned,
"other batches" the same in batches of another size (a network rounds differently there), "float32 file" from states
rounded to float32, "start alone" from the noise tensor without the second state, "DDIM" by DDIM up and down the same
times.  Errors are relative L2, root mean square over the digits.  Bars: BDIA (gamma 1) of 20 steps below 1e-5 in
float32 and 1e-12 in float64.

    python benchmarks/bench_inversion.py [--quick]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from models import digits_model
from studies import finish, parse
from torch import Tensor

import retrodict as rd
from retrodict.solvers.inversion import relative

WHAT = "Digits inverted and generated again: relative L2 error, by what is carried"
BOUND = {torch.float32: 1e-5, torch.float64: 1e-12}
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("bdia", 10, {}),
    ("bdia", 20, {}),
    ("bdia", 50, {}),
    ("bdia", 20, {"gamma": 0.9}),
    ("bdia", 20, {"gamma": 0.5}),
    ("dpm-solver++", 20, {}),
]


def regenerated(denoiser: rd.Denoiser, found: rd.Inversion, x: Tensor, label: Tensor, batch: int | None) -> float:
    """Error of the pictures that `sample` makes of an inversion."""
    again = rd.sample(denoiser, len(x), init=found, label=label, batch_size=batch, progress=False).x
    units: Any = denoiser.scale
    miss = relative(units(again.double()) - units(x.double()), units(x.double()))
    return float(miss.square().mean().sqrt())


def row(denoiser: rd.Denoiser, x: Tensor, label: Tensor, case: tuple[str, int, dict[str, Any]]) -> dict[str, Any]:
    solver, steps, options = case
    found = rd.invert(denoiser, x, solver=solver, steps=steps, options=options, label=label, iterations=12)
    rounded = rd.Inversion(found.states.float().to(found.states.dtype), found.plan)
    return {
        "solver": solver + "".join(f", {k} {v:g}" for k, v in options.items()),
        "steps": steps,
        "dtype": str(denoiser.dtype).removeprefix("torch."),
        "carried": regenerated(denoiser, found, x, label, None),
        "other batches": regenerated(denoiser, found, x, label, 7),
        "float32 file": regenerated(denoiser, rounded, x, label, None),
        "start alone": found.errors.get("start alone"),
        "DDIM": found.errors["ddim"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    given = parse(__doc__, argv)
    denoiser, data = digits_model(), rd.load_data("digits").heldout
    assert data is not None
    x, label = data.x[: 8 if given.quick else 32], data.conditions["label"][: 8 if given.quick else 32]
    cases = CASES[1:2] if given.quick else CASES
    rows = [row(denoiser.to(dtype), x.to(dtype), label, case) for dtype in BOUND for case in cases]
    twenty = [r for r in rows if r["solver"] == "bdia" and r["steps"] == 20]
    bars = {f"BDIA, 20 steps, {r['dtype']}, carried": (r["carried"], bound) for r, bound in zip(twenty, BOUND.values())}
    single = twenty[0]
    bars["BDIA, 20 steps, carried, relative to DDIM's encoding"] = (single["carried"] / single["DDIM"], 1e-4)
    finish("inversion", WHAT, rows, bars, given)


if __name__ == "__main__":
    main()
