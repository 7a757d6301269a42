"""The figures of the guide, each from a few lines of the library.

Run ``python examples/gallery.py docs/assets`` to renew them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import retrodict as rd

INK, TEAL, ORANGE, GREY = "#333333", "#0b7285", "#d9480f", "#adb5bd"


def backward(path: Path) -> None:
    """Trajectories of one law backward: the ODE and the SDE end on the same law."""
    law = rd.exact.GaussianMixture([0.3, 0.4, 0.3], [[-2.0], [0.5], [2.5]], [0.05, 0.1, 0.05])
    denoiser = law.denoiser(rd.VP("cosine"))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    for axis, eta in zip(axes, (0.0, 1.0)):
        run = rd.sample(denoiser, 60, solver="ddim", eta=eta, steps=80, trajectory=True, progress=False)
        axis.plot(run.trajectory.times, run.trajectory.x[:, :, 0], color=TEAL, alpha=0.35, lw=0.8)
        axis.set(xlabel="time t (data at 0, noise at 1)", title=f"eta = {eta:g}", xlim=(1, 0))
    axes[0].set_ylabel("state")
    _save(figure, path / "backward.png")


def transport(path: Path) -> None:
    """An interpolant between two laws, run at three noise levels chosen after training (here: exact ends)."""
    left = rd.exact.GaussianMixture([0.5, 0.5], [[-1.0, 1.5], [-1.0, -1.5]], [0.06, 0.06])
    right = rd.exact.GaussianMixture([1.0] * 3, [[2.0, 2.0], [2.6, 0.0], [2.0, -2.0]], [0.05] * 3)
    denoiser = left.denoiser(rd.Interpolant("linear"), x1=right)
    start = right.sample(300, seed=1)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharex=True, sharey=True)
    for axis, eta in zip(axes, (0.0, 0.5, 1.0)):
        words = {"solver": "ddim", "steps": 60, "eta": eta, "trajectory": True, "progress": False}
        run = rd.sample(denoiser, 300, init=start, **words)
        axis.plot(*run.trajectory.x[:, :30].permute(2, 0, 1), color=GREY, lw=0.6)
        axis.scatter(*start.T, s=4, color=ORANGE)
        axis.scatter(*run.x.T, s=4, color=TEAL)
        axis.set(title=f"eta = {eta:g}", aspect="equal")
    _save(figure, path / "transport.png")


def weights(path: Path, n: int = 4000) -> None:
    """Classifier-free guidance: the heuristic, the weighted population, and the law that both aim at."""
    law = rd.exact.GaussianMixture([0.25, 0.25, 0.5], [[-2.0], [1.0], [3.0]], [0.3, 0.3, 1.0], labels=[0, 0, 1])
    conditional = rd.exact.GaussianMixture([0.5, 0.5], [[-2.0], [1.0]], [0.3, 0.3])
    denoiser = law.denoiser(rd.VP())
    words = {"solver": "ddim", "eta": 1.0, "steps": 100, "grid": "logsnr", "label": 0, "progress": False}
    plain = rd.sample(denoiser, n, guidance=2.0, **words)
    right = rd.sample(rd.condition(denoiser, rd.Guidance(2.0)), n, **words)
    grid = torch.linspace(-5, 4, 400, dtype=torch.float64)[:, None]
    log_target = 2 * conditional.log_prob(grid) - law.log_prob(grid)
    target = torch.exp(log_target - torch.logsumexp(log_target, 0)) / float(grid[1] - grid[0])
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
    for axis, run, colour in zip(axes, (plain, right), (ORANGE, TEAL)):
        axis.hist(run.x[:, 0], bins=80, range=(-5, 4), weights=run.weights * 80 / 9, color=colour, alpha=0.7)
        axis.plot(grid[:, 0], target, color=INK, lw=1.2, label="the law aimed at")
        axis.set(title=f'correction = "{run.correction}"', xlabel="x")
    axes[0].legend(frameon=False)
    _save(figure, path / "weights.png")


def smoothing(path: Path) -> None:
    """A hidden position smoothed exactly by the kernel class that noises images."""
    from retrodict.core.lin import Lin
    from retrodict.kernels import Chain, Factor, Gaussian, LinearGaussian, Quadratic

    generator = torch.Generator().manual_seed(3)
    n, step, spread = 60, 0.3, 0.8
    truth = (step * torch.randn(n, 1, generator=generator, dtype=torch.float64)).cumsum(0)
    y = truth + spread * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    y[20:32] = float("nan")  # nothing was observed there
    one = Lin.scalar(torch.tensor(1.0, dtype=torch.float64))
    move = LinearGaussian(one, 0.0, Lin.scalar(torch.tensor(step**2, dtype=torch.float64)))
    noise = Lin.scalar(torch.tensor(spread**2, dtype=torch.float64))
    chain = Chain(*(k for v in y for k in (move, Factor(Quadratic.observe(v[None], one, noise)))))
    guided, message = chain.pull()
    start, _ = Gaussian(torch.zeros(1, 1, dtype=torch.float64), one).fuse(message)
    laws = guided.laws(start)[::2]
    mean = torch.cat([law.mean for law in laws])[:, 0]
    band = 1.645 * torch.stack([law.cov.value.reshape(()) for law in laws]).sqrt()
    figure, axis = plt.subplots(figsize=(9, 3))
    axis.fill_between(range(n), mean - band, mean + band, color=TEAL, alpha=0.2, lw=0, label="90% band")
    axis.plot(mean, color=TEAL, label="smoothed")
    axis.plot(truth[:, 0], color=INK, lw=0.8, ls="--", label="truth")
    axis.scatter(range(n), y[:, 0], s=9, color=ORANGE, label="observed")
    axis.legend(frameon=False, ncol=4)
    axis.set(xlabel="time", ylabel="state")
    _save(figure, path / "smoothing.png")


FIGURES = (backward, transport, weights, smoothing)


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
