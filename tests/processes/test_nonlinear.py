"""Restoring and degrading: DDIM where it must be, Euler's method of the flow, and the rule that does not converge."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.exact import GaussianMixture
from retrodict.processes import GaussianPath
from retrodict.processes.nonlinear import Nonlinear

LAW = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.04, 0.04])
PATH = GaussianPath(lambda t: torch.ones_like(t), torch.sqrt)  # sigma^2 = t: f = 0, g = 1
START = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)[:, None]


class Score(Denoiser):
    def __init__(self, process: Nonlinear) -> None:
        super().__init__(process, (1,))
        self.register_buffer("_anchor", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, t: Any, **condition: Any) -> Tensor:
        return (LAW.denoiser(PATH)(x, t) - x) / float(t)


def _out(length: Any, n: int) -> Tensor:
    process = Nonlinear(lambda x, t: 0 * x, lambda t: 1.0, length=length)
    plan = rd.plan("step", process, grid=torch.linspace(1.0, 0.1, n + 1).double().tolist(), end=0.1)
    return rd.sample(Score(process), len(START), plan=plan, init=START, progress=False).x


def _exact() -> Tensor:
    """The flow keeps quantiles: by 4,000 Heun steps in the log-SNR, an independent rule."""
    from retrodict.diagnostics import certificate

    return certificate.flow_map(LAW.denoiser(PATH), START, 1.0, 0.1)


def test_whole_restoration_is_ddim():
    grid = torch.linspace(1.0, 0.1, 10).double().tolist()
    ddim = rd.plan("ddim", PATH, grid=grid, end=0.1)
    expected = rd.sample(LAW.denoiser(PATH), len(START), plan=ddim, init=START, progress=False).x
    assert float((_out("whole", 9) - expected).abs().max()) < 1e-10


def test_the_corrected_rule_is_eulers():
    x, grid = START, torch.linspace(1.0, 0.1, 10).double().tolist()
    score = Score(Nonlinear(lambda x, t: 0 * x, lambda t: 1.0))
    for t, s in pairwise(grid):
        x = x + 0.5 * (t - s) * score(x, t)
    assert float((_out(None, 9) - x).abs().max()) < 1e-10


def test_orders():
    """Errors halve where steps double, for l = t and for the corrected rule; with l = 4 h they stall."""
    exact = _exact()
    error = {
        length: [float((_out(length, n) - exact).abs().max()) for n in (18, 36, 72)] for length in ("whole", None, 4.0)
    }
    for length in ("whole", None):
        a, b, c = error[length]
        assert 1.6 < a / b < 2.3 and 1.6 < b / c < 2.3
    assert error[4.0][2] > 0.9 * error[4.0][1] and error[4.0][2] > 2 * error[None][2]


def test_a_linear_drift_runs_to_its_data():
    """Ornstein-Uhlenbeck: the flow from the exact law at T = 1 comes back to the variance of the data."""
    v, n = 0.3, 400

    class Exact(Score):
        def forward(self, x: Tensor, t: Any, **condition: Any) -> Tensor:
            return -x / (math.exp(-2 * float(t)) * v + 1 - math.exp(-2 * float(t)))

    process = Nonlinear(lambda x, t: -x, lambda t: math.sqrt(2.0))
    z = KeyedNoise(0, n, dtype=torch.float64).normal((1,))
    x = z * (math.exp(-2) * v + 1 - math.exp(-2)) ** 0.5
    out = rd.sample(Exact(process), n, solver="step", steps=400, init=x, progress=False).x
    assert torch.allclose(out, z * v**0.5, rtol=0.01, atol=1e-6)
    noised = process.corrupt(out, 1.0, KeyedNoise(1, n, dtype=torch.float64))
    assert float(noised.var()) == pytest.approx(float(math.exp(-2) * v + 1 - math.exp(-2)), abs=0.22)


class Well(Denoiser):
    """The score of a double well's diffusion ``dx = (x - x^3) dt + dW`` from two narrow modes, by a Fokker-Planck grid
    (explicit, conservative), kept at 200 times of [0, 1]."""

    x = np.linspace(-3.0, 3.0, 501)

    def __init__(self, process: Nonlinear) -> None:
        super().__init__(process, (1,))
        self.register_buffer("_anchor", torch.zeros((), dtype=torch.float64))
        dx, (steps, kept) = self.x[1] - self.x[0], (16_000, 200)
        p = np.exp(-0.5 * ((self.x[:, None] - [-0.9, 1.1]) / 0.25) ** 2) @ [0.4, 0.6]
        p, self.laws = p / p.sum() / dx, []
        middle = (self.x[1:] + self.x[:-1]) / 2
        for i in range(steps + 1):
            if i % (steps // kept) == 0:
                self.laws.append(p)
            flux = (middle - middle**3) * (p[1:] + p[:-1]) / 2 - 0.5 * np.diff(p) / dx
            p = p - np.diff(flux, prepend=0.0, append=0.0) / dx / steps

    def quantiles(self, t: float, n: int = 2000) -> Tensor:
        p = self.laws[round(t * 200)]
        cumulative = np.cumsum(p) * (self.x[1] - self.x[0])
        return torch.from_numpy(np.interp((np.arange(n) + 0.5) / n, cumulative, self.x))[:, None]

    def forward(self, x: Tensor, t: Any, **condition: Any) -> Tensor:
        log_p = np.log(np.maximum(self.laws[round(float(t) * 200)], 1e-300))
        return torch.from_numpy(np.interp(x.numpy(), self.x, np.gradient(log_p, self.x)))


def test_a_double_well_runs_back_to_its_modes():
    """Wasserstein-1 distance of 2,000 quantiles, run from t = 1, to those of the data: the corrected rule's halves as
    steps double, of the published rule with l = 4 h something is left however many they are."""
    drift = lambda x, t: x - x**3  # noqa: E731
    left = {}
    for length in (None, 4.0):
        denoiser = Well(Nonlinear(drift, lambda t: 1.0, length=length))
        start, data = denoiser.quantiles(1.0), denoiser.quantiles(0.0)
        for steps in (25, 50, 100):
            out = rd.sample(denoiser, 2000, solver="step", steps=steps, init=start, progress=False).x
            left[length, steps] = float((out.sort(0).values - data).abs().mean())
    assert left[None, 25] > 1.6 * left[None, 50] and left[None, 50] > 1.6 * left[None, 100]
    assert left[None, 100] < 0.02 and left[4.0, 100] > 2.5 * left[None, 100]
    assert left[4.0, 50] < 1.4 * left[4.0, 100]


def test_bad_words():
    with pytest.raises(InputError, match="length"):
        Nonlinear(lambda x, t: x, lambda t: 1.0, length=0.5)
    with pytest.raises(InputError, match="init="):
        rd.sample(Score(Nonlinear(lambda x, t: x, lambda t: 1.0)), 2, solver="step", steps=2, progress=False)
