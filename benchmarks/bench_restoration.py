"""Restoration of held-out digits by the demonstration's network: error, spread, coverage, time, by method.

Tasks    half hidden, 2x and 4x downsampling (8 x 8 digits), blur, each with noise of .1 of black to white; magnitudes
         of the Fourier transform without phases (4 tries, the one that fits best; up to rotation by 180 degrees); a
         blur whose kernel is unknown, with a prior over kernels.  And two tasks on a prior that is exact, the training
         digits blurred, with truths drawn from it: half hidden, where 90% intervals have to cover 90%, and the unknown
         kernel with so much noise that several remain, of which the posterior is a sum over kernels and digits.
Methods  "auto", "pigdm" (drift and weight; what "auto" is on these networks) and "weights" (potential as weight alone,
         without derivatives) are pooled populations of weighted particles; the others have no weights and are 32
         independent draws.
Numbers  error and spread in shares of black to white, coverage of 90% intervals over pixels that vary in the training
         data, seconds and network passes an image; of unknown kernels the share that is named, the mean probability
         that the truth is given, and the total variation between what is found and the exact law over kernels.

    python benchmarks/bench_restoration.py [--quick]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from models import digits_model
from studies import BLUR, digits_law, finish, parse
from torch import Tensor
from torch.nn import functional

import retrodict as rd
from retrodict.app.restore import Restored, restore
from retrodict.core.noise import KeyedNoise
from retrodict.data.scaling import Scale
from retrodict.denoisers.joint import Joint

RANGE, NOISE, LEVEL = 16.0, 0.1, 0.9
IMAGES, ATOMS = 8, 400
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
#: The unknown kernel: how each method is run, the width of each kernel of the family, and the noise.
BLIND: dict[str, dict[str, Any]] = {
    "pigdm": {"method": "pigdm", "populations": 12, "particles": 32, "steps": 40},
    "weights": {"method": "pigdm", "gradient": False, "populations": 8, "particles": 48, "steps": 40},
    "blind-dps": {"method": "blind-dps", "populations": 1, "particles": 32, "steps": 60},
}
WIDTH, BLIND_NOISE, BLIND_EXACT_NOISE = 0.01, 0.05, 0.3
#: Of 16 numbers or fewer "auto" forms C from derivatives, a backward pass for each at every step.
COSTLY = {("auto", "downsampled 2x")}


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
    return out | in_units(out, 2.0) | {"mean_to_exact": gap}


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
    straight = (rd.operators.motion_blur(5, a).kernel for a in (0, 45, 90, 135))
    return torch.stack([*round_ones, *straight]).flatten(1).double()


def kernel_prior(process: rd.Process, family: Tensor) -> rd.Denoiser:
    """The denoiser of a kernel close to one of the family, scaled to unit variance: under one process with the image
    it is then decided at the same noise levels."""
    centre = family.mean(0)
    unit = float(((family - centre).square().mean() + WIDTH**2).sqrt())
    law = rd.exact.GaussianMixture(
        torch.ones(len(family)), (family - centre) / unit, torch.full((len(family),), (WIDTH / unit) ** 2)
    )
    denoiser = law.denoiser(process)
    denoiser.scale = Scale(centre, unit)
    return denoiser


def blurred(v: Tensor) -> Tensor:
    """Joint states ``(batch, 64 + 25)`` of an image and a kernel: the image blurred by it ``(batch, 8, 8)``."""
    x, k = v[:, :64].reshape(1, -1, 8, 8), v[:, 64:].reshape(-1, 1, 5, 5).flip(-1, -2)
    return functional.conv2d(functional.pad(x, (2, 2, 2, 2), mode="circular"), k, groups=len(v))[0]


def named(found: Restored, family: Tensor) -> Tensor:
    """The law over kernels that particles have ``(K,)``: each is the kernel that it is closest to."""
    closest = torch.cdist(found.x[:, 64:].double(), family).argmin(1)
    return torch.zeros(len(family), dtype=torch.float64).index_add_(0, closest, found.weights)


def image_of(found: Restored) -> Restored:
    return replace(found, x=found.x[:, :64].reshape(-1, 1, 8, 8))


def blind(denoiser: rd.Denoiser, truths: Tensor, varying: Tensor) -> list[dict]:
    """A blur by a kernel of which a prior is known: image and kernel are restored together."""
    family = kernels()
    counted, rows = Counted(Joint([denoiser, kernel_prior(denoiser.process, family)])), []
    which = torch.tensor([(3 * i + 2) % len(family) for i in range(len(truths))])
    pairs = torch.cat([truths.flatten(1), family[which].to(truths)], 1)
    noise = KeyedNoise(4, len(pairs)).stream("measurement").normal((8, 8))
    y = blurred(pairs) + BLIND_NOISE * RANGE * noise
    for method, words in BLIND.items():
        counted.asked, begun = 0, time.perf_counter()
        found = [restore(counted, y[i], blurred, BLIND_NOISE * RANGE, seed=i, **words) for i in range(len(y))]
        cost, images = time.perf_counter() - begun, [image_of(f) for f in found]
        laws = torch.stack([named(f, family) for f in found])
        out = row("kernel unknown", method, images, truths, varying, cost, counted.asked)
        rows.append(out | kernel_numbers(laws, which))
        print("kernel unknown", method, f"{rows[-1]['seconds']:.1f} s", flush=True)
    return rows


def kernel_numbers(laws: Tensor, which: Tensor) -> dict[str, float]:
    return {
        "kernel_named": float((laws.argmax(1) == which).double().mean()),
        "kernel_probability": float(laws.gather(1, which[:, None]).mean()),
    }


def blind_exact(images: int) -> list[dict]:
    """The same on a prior that is exact, where the posterior is a sum over kernels and digits."""
    family, noise = kernels(), KeyedNoise(5, images, dtype=torch.float64)
    means = digits_law().means[:ATOMS]
    law = rd.exact.GaussianMixture(torch.ones(ATOMS), means, torch.full((ATOMS,), BLUR**2))
    truths, which = law.sample(images, seed=3), noise.stream("kernel").categorical(torch.zeros(images, len(family)))
    pairs = torch.cat([truths, family[which] + WIDTH * noise.stream("width").normal((25,))], 1)
    y = blurred(pairs) + BLIND_EXACT_NOISE * noise.stream("measurement").normal((8, 8))
    known = [blind_posterior(means, family, v, BLIND_EXACT_NOISE) for v in y]
    process, everywhere, rows = rd.VP("cosine"), torch.ones(1, 8, 8, dtype=torch.bool), []
    counted = Counted(Joint([law.denoiser(process), kernel_prior(process, family)]))
    for method in ("pigdm", "weights"):
        counted.asked, begun = 0, time.perf_counter()
        found = [restore(counted, y[i], blurred, BLIND_EXACT_NOISE, seed=i, **BLIND[method]) for i in range(images)]
        cost, restored = time.perf_counter() - begun, [image_of(f) for f in found]
        laws = torch.stack([named(f, family) for f in found])
        shaped = truths.reshape(-1, 1, 8, 8)
        out = row("kernel unknown, exact prior", method, restored, shaped, everywhere, cost, counted.asked)
        gap = sum(rms(f.mean.flatten() - k.mean) for f, k in zip(restored, known)) / images / 2
        apart = sum(float((found - k.kernels).abs().sum()) / 2 for found, k in zip(laws, known)) / images
        out |= in_units(out, 2.0) | {"mean_to_exact": gap} | kernel_numbers(laws, which) | {"kernel_distance": apart}
        rows.append(out)
        print(out["task"], method, f"{out['seconds']:.1f} s", flush=True)
    return rows


def in_units(out: dict, black_to_white: float) -> dict[str, float]:
    """Error and spread of a row whose data have another range than the digits'."""
    error, spread = (out[name] * RANGE / black_to_white for name in ("error", "spread"))
    return {"error": error, "spread": spread, "psnr": -20 * math.log10(error)}


class Blind(NamedTuple):
    """An exact posterior: the image's mean ``(64,)``, and the law over kernels ``(K,)``."""

    mean: Tensor
    kernels: Tensor


def blind_posterior(means: Tensor, family: Tensor, y: Tensor, noise: float) -> Blind:
    """Given digit and kernel all is Gaussian, but for the product of the two widths, of which the variance is kept."""
    ones = torch.eye(89, dtype=torch.float64)
    X = torch.stack([blurred(torch.cat([means, k.expand(len(means), 25)], 1)).flatten(1) for k in ones[64:, 64:]], 2)
    eye, logs, found = ones[:64, :64], [], []
    for kernel in family:
        T = blurred(torch.cat([eye, kernel.expand(64, 25)], 1)).flatten(1).T
        M = BLUR**2 * T @ T.T + WIDTH**2 * X @ X.mT + (noise**2 + 25 * (BLUR * WIDTH) ** 2) * eye
        e = y.flatten() - X @ kernel
        solved = torch.linalg.solve(M, e)
        logs.append(-0.5 * ((e * solved).sum(1) + torch.linalg.slogdet(M).logabsdet))
        found.append(means + BLUR**2 * solved @ T)
    p = torch.softmax(torch.stack(logs).flatten(), 0).reshape(len(family), -1)
    return Blind(torch.einsum("ka,kad->d", p, torch.stack(found)), p.sum(1))


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
    blind = {(r["task"], r["method"]): r for r in rows if "kernel_named" in r}
    judged["kernel unknown, pigdm: share of kernels not named"] = (
        1 - blind["kernel unknown", "pigdm"]["kernel_named"], 0.25
    )  # fmt: skip
    # eight draws of kernel and image, one for each population, would be .15 to .2 and .04 away by chance
    weighed = blind["kernel unknown, exact prior", "weights"]
    judged["kernel unknown, exact prior, weights: total variation to the exact law"] = (weighed["kernel_distance"], 0.3)
    judged["kernel unknown, exact prior, weights: mean to the exact one"] = (weighed["mean_to_exact"], 0.08)
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
        lambda: blind(denoiser, truths, varying),
        lambda: blind_exact(max(1, images // 2)),
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
