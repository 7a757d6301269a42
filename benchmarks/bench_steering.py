"""Steering with weights: Feynman-Kac correctors on mixtures, discrete laws by enumeration, rewards on digits.

Experts: 1-D mixtures with known scores; P(right) of annealing, products, geometric means and guidance: exact by
quadrature, by the heuristic (scores added, noise as it was), by weighted populations (mean of runs, standard error),
and for annealing by the score form with the noise level z^2 = c g^2.  Discrete: total variation to the exact law.
Digits: a black-box reward (mirror symmetry) by private candidates against best-of-n at equal passes of the network.

    python benchmarks/bench_steering.py [--quick]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import studies
import torch
from models import digits_model
from torch import Tensor

import retrodict as rd
from retrodict.exact import Atoms, GaussianMixture

QUIET: dict[str, Any] = {"progress": False}
GRID = torch.linspace(-12, 12, 24_001, dtype=torch.float64)[:, None]

Q = GaussianMixture([0.3, 0.7], [[-3.0], [2.0]], [0.25, 1.0])
Q1 = GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], [0.5, 0.5])
Q2 = GaussianMixture([0.2, 0.8], [[-1.0], [3.0]], [1.0, 0.6])
QU = GaussianMixture([0.25, 0.25, 0.5], [[-2.0], [1.0], [3.0]], [0.3, 0.3, 1.0], labels=[0, 0, 1])
QC = GaussianMixture([0.5, 0.5], [[-2.0], [1.0]], [0.3, 0.3])


class Added(rd.Denoiser):
    """The heuristic: the scores of a product's experts added up, with the noise as it was."""

    def __init__(self, product: Any) -> None:
        super().__init__(product.process, product.shape, product.conditions)
        self.product = product

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        start = x / float(self.process.alpha(float(t)))  # type: ignore[attr-defined]
        return start + self.product.total * (self.product(x, t, **condition) - start)


def share(log_p: Tensor, cut: float) -> float:
    p = (log_p - log_p.max()).exp()
    return float(p[GRID[:, 0] > cut].sum() / p.sum())


CASES: dict[str, tuple[Callable[[], Any], Tensor, float, dict[str, Any]]] = {
    "q^3": (lambda: rd.Anneal(Q.denoiser(rd.VP()), 3.0), 3 * Q.log_prob(GRID), -0.5, {}),
    "q1 q2": (
        lambda: rd.Product([Q1.denoiser(rd.VP()), Q2.denoiser(rd.VP())]),
        Q1.log_prob(GRID) + Q2.log_prob(GRID), 0.0, {},
    ),
    "(q1 q2)^(1/2)": (
        lambda: rd.Product([Q1.denoiser(rd.VP()), Q2.denoiser(rd.VP())], [0.5, 0.5]),
        (Q1.log_prob(GRID) + Q2.log_prob(GRID)) / 2, 0.0, {},
    ),
    "guidance w=2": (
        lambda: rd.Guided(QU.denoiser(rd.VP()), 2.0), 2 * QC.log_prob(GRID) - QU.log_prob(GRID), -0.5, {"label": 0}
    ),
    "guidance w=4": (
        lambda: rd.Guided(QU.denoiser(rd.VP()), 4.0), 4 * QC.log_prob(GRID) - 3 * QU.log_prob(GRID), -0.5, {"label": 0}
    ),
}  # fmt: skip


def experts(runs: int, particles: int, steps: int) -> list[dict[str, Any]]:
    """P(right) of each case."""
    rows = []
    words: dict[str, Any] = {"solver": "ddim", "eta": 1.0, "grid": "logsnr", "steps": steps, **QUIET}
    for name, (make, log_p, cut, condition) in CASES.items():
        product, exact = make(), share(log_p, cut)
        right = lambda x: (x[:, 0] > cut).double()  # noqa: B023, E731
        found = torch.tensor(
            [float(rd.sample(product, particles, seed=s, **words, **condition).mean(right)) for s in range(runs)]
        )
        z = torch.randn(4 * particles, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        begin = {"start": 0.995, "init": z / product.total**0.5}
        plain = rd.sample(Added(product), 4 * particles, **words, **begin, **condition).x
        row = {"study": "experts", "law": name, "exact": exact, "heuristic": float(right(plain).mean())}
        row |= {"weighted": float(found.mean()), "standard_error": float(found.std() / runs**0.5)}
        rows.append(row | {"spread": float(found.std()), "runs": runs, "particles": particles, "steps": steps})
    for c in (1.0, 4.0):
        found = torch.tensor([score_form(3.0, c, particles, steps, s) for s in range(runs)])
        row = {"study": "experts", "law": f"q^3, score form, z^2 = {c:g} g^2", "exact": share(CASES["q^3"][1], -0.5)}
        row |= {"weighted": float(found.mean()), "standard_error": float(found.std() / runs**0.5)}
        rows.append(row | {"spread": float(found.std()), "runs": runs, "particles": particles, "steps": steps})
    return rows


def score_form(b: float, c: float, particles: int, steps: int, seed: int) -> float:
    """P(right) of q^b by Euler-Maruyama on the score form: drift -f + (1 + c) g^2/2 b s, weight g^2/2 b (b-1) s^2."""
    g = torch.Generator().manual_seed(seed)
    path = rd.VP()
    denoiser = Q.denoiser(path)
    times = rd.plan("ddim", path, steps=steps, grid="logsnr", start=0.995).times
    x = torch.randn(particles, 1, generator=g, dtype=torch.float64) / b**0.5
    log_w = torch.zeros(particles, dtype=torch.float64)
    for t, s in itertools.pairwise(times):
        if s == 0:
            break
        at = torch.tensor(t, dtype=torch.float64)
        (alpha, sigma), (da, _) = (
            (path.alpha(at), path.sigma(at)),
            torch.autograd.functional.jacobian(lambda v: (path.alpha(v), path.sigma(v)), at),
        )
        f, dt = float(da / alpha), t - s
        g2 = -2 * f  # of a path that preserves variance
        score = (float(alpha) * denoiser(x, t) - x) / float(sigma) ** 2
        log_w += dt * g2 / 2 * b * (b - 1) * (score**2).sum(1)
        z = torch.randn(particles, 1, generator=g, dtype=torch.float64)
        x = x + dt * (-f * x + (1 + c) * g2 / 2 * b * score) + (c * g2 * dt) ** 0.5 * z
        w = torch.softmax(log_w, 0)
        if float(1 / (w**2).sum()) < 0.5 * particles:
            u = (torch.arange(particles) + torch.rand(1, generator=g)) / particles
            x = x[torch.searchsorted(w.cumsum(0), u.double()).clamp(max=particles - 1)]
            log_w = torch.zeros_like(log_w)
    return float((torch.softmax(log_w, 0) * (x[:, 0] > -0.5)).sum())


WORDS27 = torch.cartesian_prod(*[torch.arange(3)] * 3)


def _tv(run: Any, target: Tensor) -> float:
    place = run.x @ torch.tensor([9, 3, 1])
    w = (
        torch.softmax(run.log_weights, 0)
        if run.log_weights.numel()
        else torch.full((len(place),), 1 / len(place)).double()
    )
    return float((torch.zeros(27, dtype=torch.float64).index_add_(0, place, w) - target).abs().sum() / 2)


def discrete(particles: int) -> list[dict[str, Any]]:
    """Total variation to the exact law over 27 sequences, of one run each."""
    p = torch.softmax(1.2 * torch.randn(27, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), 0)
    reward = lambda x: 1.5 * (x[:, 0] == 1).double() - 0.8 * (x[:, 1] == x[:, 2]).double()  # noqa: E731
    normal = lambda v: v / v.sum()  # noqa: E731
    pick = torch.multinomial(p, particles, replacement=True, generator=torch.Generator().manual_seed(1))
    floor = float((torch.bincount(pick, minlength=27) / particles - p).abs().sum() / 2)
    rows = [{"study": "discrete", "law": "exact draws", "weighted": floor}]
    masked, uniform = (Atoms(WORDS27, p).denoiser(d) for d in (rd.Masked(3), rd.Uniform(3)))
    one_by_one: dict[str, Any] = {"solver": "events", "steps": 4, **QUIET}
    power = rd.Anneal(masked, 2.5)
    rows.append(
        {
            "study": "discrete",
            "law": "masks, q^2.5",
            "heuristic": _tv(rd.sample(power, particles, population=False, **one_by_one), normal(p**2.5)),
            "weighted": _tv(rd.sample(power, particles, **one_by_one), normal(p**2.5)),
        }
    )
    target = normal(p * (1.5 * reward(WORDS27)).exp())
    for name, denoiser, words in (
        ("masks", masked, one_by_one),
        ("uniform", uniform, {"steps": 64, **QUIET}),
    ):
        row: dict[str, Any] = {"study": "discrete", "law": f"{name}, black-box reward"}
        row["unsteered"] = _tv(rd.sample(denoiser, particles, **words), target)
        for value in ("mean", "draws"):
            goal = rd.condition(denoiser, rd.Reward(reward, 1.5, value=value))
            row["weighted" if value == "draws" else "weighted_mean"] = _tv(rd.sample(goal, particles, **words), target)
            for k in (2, 8):
                crowd = rd.Population(candidates=k)
                key = f"candidates_{k}_{value}"
                row[key] = _tv(rd.sample(goal, particles // 2, population=crowd, **words), target)
        rows.append(row)
    return rows


def mirrored(x: Tensor) -> Tensor:
    """How symmetric an image is: minus the mean square of its difference from its mirror image, in grey levels."""
    return -(x - x.flip(-1)).square().flatten(1).mean(1) / 16


def digits(n: int, steps: int) -> list[dict[str, Any]]:
    """Mean reward of n digits at K network passes a step each: private candidates, and the best of K."""
    denoiser = digits_model()
    words: dict[str, Any] = {"solver": "ddim", "eta": 1.0, "steps": steps, **QUIET}
    rows = []
    for k in (4, 8):
        goal = rd.condition(denoiser, rd.Reward(mirrored, 40.0))
        ours = mirrored(rd.sample(goal, n, seed=1, population=rd.Population(candidates=k), **words).x)
        draws = mirrored(rd.sample(denoiser, n * k, seed=1, **words).x)
        best = draws.view(n, k).max(1).values
        error = float((ours.var() / n + best.var() / n) ** 0.5)
        rows.append(
            {
                "study": "digits",
                "law": f"mirror symmetry, {k} passes a step",
                "candidates": float(ours.mean()),
                "best_of_n": float(best.mean()),
                "unsteered": float(draws.mean()),
                "standard_error": error,
            }
        )
    return rows


def main() -> None:
    """Measure, judge, write."""
    given = studies.parse(__doc__)
    runs, particles, steps = (2, 500, 60) if given.quick else (8, 2000, 200)
    rows = experts(runs, particles, steps)
    rows += discrete(1000 if given.quick else 4000)
    rows += digits(8 if given.quick else 48, 8 if given.quick else 20)
    by_law = {row["law"]: row for row in rows}
    gap = lambda law, key: abs(by_law[law][key] - by_law[law]["exact"])  # noqa: E731
    bars = {
        "guidance w=2, distance from .440": (gap("guidance w=2", "weighted"), 0.02),
        "q1 q2, distance from the exact share": (gap("q1 q2", "weighted"), 0.02),
        "q^3, distance from .761": (gap("q^3", "weighted"), 0.03),
        "guidance w=2: minus the heuristic's error": (-gap("guidance w=2", "heuristic"), -0.1),
        "q^3: minus the heuristic's error": (-gap("q^3", "heuristic"), -0.1),
        "masks, q^2.5: total variation": (by_law["masks, q^2.5"]["weighted"], 0.05),
        "masks, reward: total variation": (by_law["masks, black-box reward"]["weighted"], 0.06),
        "uniform, reward: total variation": (by_law["uniform, black-box reward"]["weighted"], 0.06),
        "digits: best of 8 over candidates of 8": (
            by_law["mirror symmetry, 8 passes a step"]["best_of_n"],
            by_law["mirror symmetry, 8 passes a step"]["candidates"],
        ),
    }
    what = "P(right) on 1-D mixtures, total variation on 27 sequences, and mean reward on digits; see the script"
    studies.finish("steering", what, rows, bars, given)


if __name__ == "__main__":
    main()
