"""The figures of the guide's pages on inference, each from a few lines of the library.

Run ``python examples/inference.py docs/assets`` to renew them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import retrodict as rd
from retrodict.core.noise import KeyedNoise
from retrodict.inference import plots
from retrodict.kernels import Gaussian, LinearGaussian
from retrodict.particles import History, smc

INK, TEAL, ORANGE, GREY = "#333333", "#0b7285", "#d9480f", "#adb5bd"


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predators() -> tuple[rd.SDE, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predators and prey in logarithms; ``(model, times, truth, y)``, y being the prey seen with noise."""

    def drift(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        prey, hunters = x.exp().unbind(-1)
        return torch.stack((1 - hunters, prey - 1), -1)

    seen = LinearGaussian(torch.tensor([[1.0, 0.0]], dtype=torch.float64), 0.0, 0.04)
    model = rd.SDE(drift, [0.2, 0.2], Gaussian(torch.tensor([[0.0, 0.5]], dtype=torch.float64), 0.09), observation=seen)
    times = 0.25 * torch.arange(1, 61, dtype=torch.float64)
    truth = model.sample(1, times, steps=10, seed=4).x[0, 0]
    y = truth[:, :1] + 0.2 * noise(60, 1, seed=1)
    y[22:30] = float("nan")
    return model, times, truth, y


def hidden(path: Path) -> None:
    """Prey are seen with noise and a gap; predators are not seen at all."""
    model, times, truth, y = predators()
    post = rd.condition(model, rd.Observed(y, times=times), steps=10, particles=1000, rounds=3)
    laws = post.smooth(grid=True)
    low, high = laws.interval(0.9)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.1), sharex=True)
    for j, (axis, name) in enumerate(zip(axes, ("log prey, seen with noise", "log predators, never seen"))):
        axis.fill_between(laws.times[0], low[0, :, j], high[0, :, j], color=TEAL, alpha=0.2, lw=0, label="90% band")
        axis.plot(laws.times[0], laws.mean[0, :, j], color=TEAL, label="smoothed")
        axis.plot(times, truth[:, j], color=INK, lw=0.9, ls="--", label="truth")
        axis.set(xlabel="time", title=name)
    axes[0].scatter(times, y[:, 0], s=9, color=ORANGE, zorder=3, label="observed")
    axes[0].legend(frameon=False, ncol=2, fontsize=8)
    _save(figure, path / "hidden.png")


def bridges(path: Path) -> None:
    """A double well from one side to the other: guided paths all arrive, free ones are thrown away."""
    model = rd.SDE(lambda x, t: x - x**3, 0.8)
    seen = rd.Observed([1.0], times=[1.0], noise=0.03)
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.1), sharey=True)
    for axis, method, colour in zip(axes, ("guided", "bootstrap"), (TEAL, ORANGE)):
        draws = rd.condition(model, seen, method, start=[-0.5], steps=100, threshold=0.0).sample(64, seed=2)
        share = draws.weights[:, 0] / draws.weights.max()
        for x, weight in zip(draws.x[:, 0, :, 0], share.tolist()):
            axis.plot(draws.times[0], x, color=colour, lw=0.8, alpha=0.08 + 0.6 * weight)
        axis.scatter([0, 1], [-0.5, 1], s=26, color=INK, zorder=3)
        axis.set(xlabel="time", title=f'"{method}": 64 paths, worth {float(draws.ess):.0f}')
    axes[0].set_ylabel("state")
    _save(figure, path / "bridges.png")


def regimes(path: Path) -> None:
    """A process that jumps between three states, seen at irregular times through a noisy gauge."""
    rates = torch.tensor([[-0.5, 0.5, 0.0], [0.3, -0.6, 0.3], [0.0, 0.5, -0.5]], dtype=torch.float64)
    means = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    process = rd.JumpProcess(rates, observation=lambda x: torch.distributions.Normal(means[x], 0.5))
    grid = torch.linspace(0, 20, 201, dtype=torch.float64)
    blank = rd.Observed(torch.full((1,), torch.nan), times=[20.0])
    truth = rd.condition(process, blank).trajectories(1, seed=8)
    chosen = torch.rand(201, generator=torch.Generator().manual_seed(1)) < 0.2
    times = torch.cat((grid[:-1][chosen[:-1]], grid[-1:]))
    y = means[truth.at(times)[0, 0]] + 0.5 * noise(len(times), seed=2)
    laws = rd.condition(process, rd.Observed(y, times=times)).smooth(grid)
    figure, axes = plt.subplots(2, 1, figsize=(10, 4), sharex=True, height_ratios=(1, 1.2))
    axes[0].step(grid, means[truth.at(grid)[0, 0]], where="post", color=INK, lw=0.9, ls="--", label="truth")
    axes[0].scatter(times, y, s=9, color=ORANGE, label="observed")
    axes[0].legend(frameon=False, ncol=2, fontsize=8)
    axes[1].stackplot(grid, laws.probabilities[0].T, colors=(TEAL, GREY, ORANGE), alpha=0.8, lw=0)
    axes[0].set(ylabel="state")
    axes[1].set(xlabel="time", ylabel="probability", ylim=(0, 1), xlim=(0, 20))
    _save(figure, path / "regimes.png")


def genealogy(path: Path) -> None:
    """Who descends from whom: guided particles keep their ancestors apart for longer."""
    model = rd.StateSpace(Gaussian(0.0, 1.0), LinearGaussian(0.95, 0.0, 0.2), LinearGaussian(1.0, 0.0, 0.05))
    y = rd.condition(model, rd.Observed(torch.full((40,), torch.nan))).sample(1, seed=3).x[0, 0]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.1), sharey=True)
    for axis, method in zip(axes, ("bootstrap", "guided")):
        post = rd.condition(model, rd.Observed(y), method, particles=40, seed=1)
        history = History()
        smc(post.fk, 40, KeyedNoise(1, 1, dtype=torch.float64), observers=[history])
        plots.ancestry(history.ancestors, history.x, ax=axis)
        axis.set(title=f'"{method}": worst effective size {float(post.ess):.0f} of 40', xlabel="time", ylabel="state")
    _save(figure, path / "genealogy.png")


def branches(path: Path) -> None:
    """A trait that evolves along a tree: seen at the leaves, inferred at the branchings."""
    edges = [("root", "u", 1.0), ("root", "v", 0.6), ("u", "a", 0.8), ("u", "b", 1.1), ("v", "c", 1.2), ("v", "w", 0.5)]
    edges += [("w", "d", 0.9), ("w", "e", 0.7)]
    tree = rd.Tree(edges, rd.SDE(lambda x, t: torch.sin(2 * x), 0.5), prior=Gaussian(0.0, 1.0))
    seen = dict(zip(tree.leaves, (1.9, 1.4, -1.2, -1.6, -2.0)))
    laws = rd.condition(tree, rd.Observed(list(seen.values()), noise=0.1), particles=2000).smooth()
    away, mean = tree.distances(), laws.mean[0, :, 0]
    spread = 1.645 * laws.std[0, :, 0]
    figure, axis = plt.subplots(figsize=(7, 3.4))
    for parent, child, _ in edges:
        i, j = tree.number[parent], tree.number[child]
        axis.plot(away[[i, j]], mean[[i, j]], color=GREY, lw=1, zorder=1)
    axis.errorbar(away, mean, spread, fmt="o", ms=4, color=TEAL, lw=1.2, capsize=2, label="smoothed, 90% interval")
    leaves = [tree.number[name] for name in seen]
    axis.scatter(away[leaves], list(seen.values()), marker="x", s=36, color=ORANGE, zorder=3, label="observed")
    for name, i in tree.number.items():
        axis.annotate(name, (away[i], mean[i]), xytext=(6, 4), textcoords="offset points", fontsize=8, color=INK)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    axis.set(xlabel="distance from the root", ylabel="trait")
    _save(figure, path / "branches.png")


FIGURES = (hidden, bridges, regimes, genealogy, branches)


def _save(figure: plt.Figure, path: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/assets")
    folder.mkdir(parents=True, exist_ok=True)
    for draw in FIGURES:
        draw(folder)
        print(folder / f"{draw.__name__}.png")
