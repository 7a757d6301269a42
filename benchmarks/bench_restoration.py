"""Restoration of held-out digits by the demonstration's network: error, spread, coverage, time, by method.

Tasks    half hidden, 2x and 4x downsampling (8 x 8 digits), blur, each with noise of .1 of black to white; magnitudes
         of the Fourier transform without phases (4 tries, the one that fits best; up to rotation by 180 degrees); a
         blur whose kernel is unknown, with a prior over kernels.  And one task on a prior that is exact, the training
         digits blurred, with truths drawn from it: there 90% intervals have to cover 90%.
Methods  "auto" and "weights" (potential as weight alone, without derivatives) are 8 pooled populations of weighted
         particles; the others have no weights and are 32 independent draws.
Numbers  error and spread in shares of black to white, coverage of 90% intervals over pixels that vary in the training
         data, seconds and network passes an image.

    python benchmarks/bench_restoration.py [--quick]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import digits_model
from studies import BLUR, digits_law, finish, parse
from torch import Tensor
from torch.nn import functional

import retrodict as rd
from retrodict.app.restore import Restored, restore
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers.joint import Joint

RANGE, NOISE, LEVEL = 16.0, 0.1, 0.9
IMAGES, ATOMS = 3, 400
TASKS = {
    "half hidden": rd.operators.half("bottom"),
    "downsampled 2x": rd.operators.downsample(2),
    "downsampled 4x": rd.operators.downsample(4),
    "blurred": rd.operators.gaussian_blur(5, 1.0),
}
#: What each method is, and how it is run.
METHODS: dict[str, dict[str, Any]] = {
    "auto": {"populations": 8, "particles": 16, "steps": 30},
    "weights": {"method": "pigdm", "gradient": False, "populations": 8, "particles": 32, "steps": 30},
    "dps": {"method": "dps", "official": True, "zeta": 0.5, "populations": 1, "particles": 32, "steps": 40},
    "diffpir": {"method": "diffpir", "populations": 1, "particles": 32, "steps": 40},
    "daps": {"method": "daps", "populations": 1, "particles": 32, "steps": 12},
}
#: Of 16 numbers or fewer "auto" forms C from derivatives, a backward pass for each at every step.
COSTLY = {("auto", "downsampled 2x"), ("auto", "downsampled 4x")}


class Counted(rd.Denoiser):
    """A denoiser that counts the states that it is asked about."""

    def __init__(self, denoiser: rd.Denoiser) -> None:
        super().__init__(denoiser.process, denoiser.shape, denoiser.conditions)
        self.denoiser, self.scale, self.asked = denoiser, denoiser.scale, 0

    def belief(self, x: Tensor, t: float | Tensor, **condition: Any) -> Any:
        self.asked += len(x)
        return self.denoiser.belief(x, t, **condition)


def measured(operator: Any, truth: Tensor, seed: int, noise: float = NOISE) -> Tensor:
    seen = operator(truth)
    z = KeyedNoise(seed, len(seen)).stream("measurement").normal(tuple(seen.shape[1:]))
    return seen + noise * RANGE * z.to(seen)


def rms(x: Tensor) -> float:
    return float(x.double().pow(2).mean().sqrt())


def row(
    task: str, method: str, found: list[Restored], truths: Tensor, varying: Tensor, cost: float, asked: int
) -> dict:
    """Means over images."""
    errors = torch.tensor([rms(f.mean - x) / RANGE for f, x in zip(found, truths)])
    covered = torch.tensor([float(f.covers(x, LEVEL)[varying].double().mean()) for f, x in zip(found, truths)])
    n = len(found)
    return {
        "task": task, "method": method, "images": n, "correction": found[0].correction,
        "error": float(errors.mean()), "psnr": float((-20 * errors.log10()).mean()),
        "spread": sum(rms(f.spread) for f in found) / n / RANGE,
        "coverage": float(covered.mean()), "coverage_se": float(covered.std() / math.sqrt(n)) if n > 1 else 0.0,
        "ess": sum(sum(f.ess) / len(f.ess) for f in found) / n, "seconds": cost / n, "evaluations": asked // n,
    }  # fmt: skip


def linear(denoiser: rd.Denoiser, truths: Tensor, varying: Tensor, pictures: dict[str, list[Tensor]]) -> list[dict]:
    """Every linear task by every method."""
    rows, counted = [], Counted(denoiser)
    for task, operator in TASKS.items():
        y = measured(operator, truths, 1)
        pictures[task] = [truths[0], shown(operator, y[:1])[0]]
        for method, words in METHODS.items():
            if (method, task) in COSTLY:
                continue
            counted.asked, begun = 0, time.perf_counter()
            found = [restore(counted, y[i], operator, NOISE * RANGE, seed=i, **words) for i in range(len(y))]
            rows.append(row(task, method, found, truths, varying, time.perf_counter() - begun, counted.asked))
            print(task, method, f"{rows[-1]['seconds']:.1f} s", flush=True)
            if method in ("weights", "daps"):
                pictures[task] += [*found[0].draws(3), found[0].mean, 2 * found[0].spread]
    return rows


def shown(operator: Any, y: Tensor) -> Tensor:
    """A measurement in the size of the digits; what is hidden is grey."""
    if y.ndim == 2:
        return operator.place(y, (1, 8, 8), RANGE / 2)
    return functional.interpolate(y, size=(8, 8), mode="nearest")


def exact(images: int) -> dict:
    """Half of a state from a law that is known: the model is right, and what misses 90% is the sampler's."""
    means = digits_law().means[:ATOMS]
    law = rd.exact.GaussianMixture(torch.ones(ATOMS), means, torch.full((ATOMS,), BLUR**2))
    x = law.sample(images, seed=3)
    operator = rd.operators.reshape(1, 8, 8) | rd.operators.half("bottom")
    seen = operator(x)
    y = seen + 0.2 * KeyedNoise(1, images, dtype=torch.float64).stream("measurement").normal(tuple(seen.shape[1:]))
    counted, begun = Counted(law.denoiser(rd.VP("cosine"))), time.perf_counter()
    words = METHODS["weights"]
    found = [restore(counted, y[i], operator, 0.2, seed=i, **words) for i in range(images)]
    cost, everywhere = time.perf_counter() - begun, torch.ones(64, dtype=torch.bool)
    out = row("half hidden, exact prior", "weights", found, x, everywhere, cost, counted.asked)
    known = [law.posterior(operator.matrix((64,)), y[i], 0.2).mean for i in range(images)]
    gap = sum(rms(f.mean - m) for f, m in zip(found, known)) / images / 2
    scales = {"error": out["error"] * RANGE / 2, "spread": out["spread"] * RANGE / 2, "mean_to_exact": gap}
    return out | scales | {"psnr": -20 * math.log10(scales["error"])}


def phases(denoiser: rd.Denoiser, truths: Tensor, tries: int = 4) -> list[dict]:
    """Lost phases: of several tries the one whose magnitudes fit best; a digit and its rotation are the same to it."""
    operator = rd.operators.affine(1 / RANGE) | rd.operators.phase_retrieval(4.0)
    counted, rows = Counted(denoiser), []
    seen = operator(truths)
    y = seen + 0.02 * KeyedNoise(2, len(seen)).stream("measurement").normal(tuple(seen.shape[1:])).to(seen)
    for method, words in {
        "daps": {"method": "daps", "steps": 25, "moves": 60},
        "dps": {"method": "dps", "official": True, "zeta": 0.5, "steps": 100},
    }.items():
        counted.asked, begun, errors = 0, time.perf_counter(), []
        for i in range(len(y)):
            found = restore(counted, y[i], operator, 0.02, populations=1, particles=tries, seed=i, **words)
            best = found.x[(operator(found.x) - y[i]).flatten(1).norm(dim=1).argmin()]
            errors.append(min(rms(best - truths[i]), rms(best.flip(-1, -2) - truths[i])) / RANGE)
        rows.append({
            "task": "phases lost", "method": method, "images": len(y), "correction": found.correction,
            "error": sum(errors) / len(errors), "success": sum(e < 0.1 for e in errors) / len(errors),
            "seconds": (time.perf_counter() - begun) / len(y), "evaluations": counted.asked // len(y),
        })  # fmt: skip
    return rows


def kernels() -> Tensor:
    """The family of kernels of the blind task ``(K, 25)``: round ones of several widths, and straight ones."""
    round_ones = [rd.operators.gaussian_blur(5, s).kernel for s in (0.5, 0.8, 1.2, 1.8)]
    return torch.stack([*round_ones, *(rd.operators.motion_blur(5, a).kernel for a in (0, 45, 90, 135))]).flatten(1)


def blurred(v: Tensor) -> Tensor:
    """Joint states ``(batch, 64 + 25)`` of an image and a kernel: the image blurred by it ``(batch, 8, 8)``."""
    x, k = v[:, :64].reshape(1, -1, 8, 8), v[:, 64:].reshape(-1, 1, 5, 5).flip(-1, -2)
    return functional.conv2d(functional.pad(x, (2, 2, 2, 2), mode="circular"), k, groups=len(v))[0]


def blind(denoiser: rd.Denoiser, truths: Tensor, varying: Tensor) -> list[dict]:
    """A blur by a kernel of which a prior is known: image and kernel are restored together."""
    family = kernels()
    prior = rd.exact.GaussianMixture(torch.ones(len(family)), family, torch.full((len(family),), 0.01**2))
    joint = Joint([denoiser, prior.denoiser(denoiser.process)])
    counted, rows = Counted(joint), []
    which = [(3 * i + 2) % len(family) for i in range(len(truths))]
    noisy = [
        measured(rd.operators.convolve(family[k].reshape(5, 5)), x[None], 4 + k, 0.05) for k, x in zip(which, truths)
    ]
    for method, words in {
        "weights": {"method": "pigdm", "gradient": False, "populations": 8, "particles": 48, "steps": 30},
        "blind-dps": {"method": "blind-dps", "populations": 1, "particles": 32, "steps": 60},
    }.items():
        counted.asked, begun = 0, time.perf_counter()
        found = [restore(counted, y[0, 0], blurred, 0.05 * RANGE, seed=i, **words) for i, y in enumerate(noisy)]
        cost, images, named = time.perf_counter() - begun, [], 0
        for f, k in zip(found, which):
            named += int((family.to(f.mean) - f.mean[64:]).norm(dim=1).argmin() == k)
            images.append(
                Restored(f.x[:, :64].reshape(-1, 1, 8, 8), f.weights, f.ess, f.populations, None, f.correction, "")
            )
        out = row("kernel unknown", method, images, truths, varying, cost, counted.asked)
        rows.append(out | {"kernel_found": named / len(found)})
    return rows


def bars(rows: list[dict]) -> dict[str, tuple[float, float]]:
    """Coverage of pooled populations within .80 and .97; weighted ones no worse than the best without weights."""
    judged: dict[str, tuple[float, float]] = {}
    for r in rows:
        if r["correction"] == "weighted" and "coverage" in r:
            judged[f"{r['task']}, {r['method']}: distance of coverage from .885"] = (abs(r["coverage"] - 0.885), 0.085)
    for task in TASKS:
        errors = {r["method"]: r["error"] for r in rows if r["task"] == task}
        rivals = [errors[m] for m in ("dps", "diffpir", "daps")]
        judged[f"{task}: error with weights over the best without"] = (errors["weights"] / min(rivals), 1.05)
    solved = {r["method"]: r["success"] for r in rows if r["task"] == "phases lost"}
    judged["phases lost: share not solved by daps in 4 tries"] = (1 - solved["daps"], 0.5)
    return judged


def figure(pictures: dict[str, list[Tensor]], path: Path) -> None:
    """A row a task: truth, seen, three draws, mean and spread with weights; the same of daps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    part = ["draw", "draw", "draw", "mean", "2 x spread"]
    columns = ["truth", "seen", *part, *part]
    shape = (len(pictures), len(columns))
    chart, axes = plt.subplots(*shape, figsize=(0.85 * shape[1], 0.8 * shape[0] + 0.4), squeeze=False)
    for i, (task, images) in enumerate(pictures.items()):
        for axis, name, image in zip(axes[i], columns, images):
            axis.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=RANGE)
            axis.set(xticks=[], yticks=[])
            if i == 0:
                axis.set_title(name, fontsize=7)
        axes[i, 0].set_ylabel(task.replace(" ", "\n"), fontsize=7)
    chart.text(0.42, 0.96, "weighted populations", ha="center", fontsize=8)
    chart.text(0.76, 0.96, "DAPS, without weights", ha="center", fontsize=8)
    chart.subplots_adjust(hspace=0.05, wspace=0.1)
    chart.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(chart)


def study(images: int) -> tuple[list[dict], dict[str, list[Tensor]]]:
    data = rd.load_data("digits")
    assert data.heldout is not None
    truths, varying = data.heldout.x[:images].float(), data.x.float().std(0) > 0.03 * RANGE
    denoiser, pictures = digits_model(), {}
    parts: list[Callable[[], list[dict]]] = [
        lambda: linear(denoiser, truths, varying, pictures),
        lambda: [exact(images)],
        lambda: phases(denoiser, truths),
        lambda: blind(denoiser, truths[: max(2, images // 2)], varying),
    ]
    return [r for part in parts for r in part()], pictures


def main(argv: list[str] | None = None) -> None:
    given: argparse.Namespace = parse(__doc__, argv)
    rows, pictures = study(1 if given.quick else IMAGES)
    if not given.quick:
        given.results.mkdir(parents=True, exist_ok=True)
        figure(pictures, given.results / "restoration.png")
    what = f"Held-out digits restored by the demonstration's network, noise {NOISE} of black to white; see the script"
    finish("restoration", what, rows, {} if given.quick else bars(rows), given)


if __name__ == "__main__":
    main()
