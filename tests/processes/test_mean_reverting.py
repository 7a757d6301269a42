"""The mean-reverting path: its SDE, the shift that every plan sees, prediction types, and its samplers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser, Reverting
from retrodict.diagnostics import certificate
from retrodict.exact import GaussianMixture
from retrodict.kernels import Belief
from retrodict.processes import GaussianPath, MeanReverting, from_config

LAW = GaussianMixture([0.4, 0.6], [[-0.3, 0.1], [0.2, -0.2]], [0.01, 0.04])
MU = torch.randn(12, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("rate", ["constant", "linear", "cosine"])
class TestPath:
    def test_coefficients_solve_the_equation(self, rate):
        """alpha' = -theta alpha and (sigma^2)' = 2 theta (s^2 - sigma^2), from 1 and 0 to the given ends."""
        path = MeanReverting(std=0.3, signal=0.01, rate=rate)
        t = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
        da, db, ds = path.rates(t)
        theta = -da / path.alpha(t)
        assert torch.allclose(2 * path.sigma(t) * ds, 2 * theta * (0.09 - path.sigma(t) ** 2), rtol=1e-9)
        assert torch.allclose(db, -da, rtol=1e-12) and bool((theta > 0).all())
        assert float(path.alpha(1.0)) == pytest.approx(0.01) and float(path.alpha(0.0)) == 1.0
        assert float(path.sigma(0.0)) == 0.0 and float(path.sigma(1.0)) == pytest.approx(0.3 * math.sqrt(1 - 1e-4))

    def test_clock_and_files(self, rate):
        path = MeanReverting(mu=[0.1, 0.2], rate=rate)
        t = torch.linspace(0.02, 0.98, 9, dtype=torch.float64)
        assert torch.allclose(path.time_at(path.log_snr(t)), t, rtol=1e-8)
        assert from_config(path.config()).config() == path.config()

    def test_transitions_compose(self, rate):
        """x_0 -> x_s -> x_t is x_0 -> x_t."""
        path = MeanReverting(mu=0.4, rate=rate)
        law = path.kernel(0.0, 0.3), path.kernel(0.3, 0.8), path.kernel(0.0, 0.8)
        gain = [float(k.A.value) for k in law]
        noise = [float(k.Q.value) for k in law]
        assert gain[0] * gain[1] == pytest.approx(gain[2], rel=1e-12)
        assert gain[1] ** 2 * noise[0] + noise[1] == pytest.approx(noise[2], rel=1e-12)


def test_cosine_rate_is_the_integral():
    """The closed form of int theta against a fine midpoint rule."""
    path = MeanReverting(signal=0.005)
    o = 0.008
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    theta = 1 - (torch.cos((u + o) / (1 + o) * math.pi / 2) / math.cos(o / (1 + o) * math.pi / 2)) ** 2
    spent = (theta.cumsum(0) / theta.sum())[[19_999, 99_999, 179_999]]
    found = path.log_alpha(torch.tensor([0.1, 0.5, 0.9]).double()) / math.log(0.005)
    assert torch.allclose(found, spent, rtol=1e-4)


class Shifted(Denoiser):
    """Exact where x0 - mu has the law of a mixture."""

    def __init__(self, process: MeanReverting) -> None:
        super().__init__(process, (2,), {"x1": None})
        self.inner = LAW.denoiser(plain(process))

    def belief(self, x: Tensor, t: Any, **condition: Any) -> Belief:
        return Belief(condition["x1"] + self.inner(x - condition["x1"], t), x1=condition["x1"])

    def forward(self, x: Tensor, t: Any, **condition: Any) -> Tensor:
        return self.belief(x, t, **condition).mean


def plain(process: MeanReverting) -> GaussianPath:
    """The path of x - mu."""
    return GaussianPath(process.alpha, process.sigma)


SOLVERS: list[tuple[str, dict[str, Any]]] = [
    ("ddim", {}),
    ("ddpm", {}),
    ("dpm-solver++", {"order": 2}),
    ("dpm-solver++", {"order": 3, "weights": "official"}),
    ("dpm-solver", {"order": 2}),
    ("sde-dpm-solver++", {"weights": "midpoint"}),
    ("dpm-solver-sde", {}),
    ("unipc", {"order": 3}),
    ("heun", {}),
    ("hb", {}),
    ("ghvb", {"weights": "exact"}),
    ("bdia", {}),
    ("restart", {"intervals": ((0.05, 0.2, 2, 3),)}),
]


@pytest.mark.parametrize(("name", "options"), SOLVERS, ids=str)
def test_every_solver_is_the_shift_of_itself(name, options):
    """Run about mu with x1 = mu, it is mu plus the run of x - mu on the path with one end."""
    process = MeanReverting()
    words: dict[str, Any] = {"steps": 7, "grid": "logsnr", "end": 0.05}
    one, two = rd.plan(name, plain(process), **words, **options), rd.plan(name, process, **words, **options)
    x = 0.2 * torch.randn(12, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    denoiser = Shifted(process)
    with torch.no_grad():
        shifted = certificate.execute(two, denoiser, MU + x, KeyedNoise(1, 12, dtype=torch.float64), x1=MU)
        straight = certificate.execute(one, denoiser.inner, x, KeyedNoise(1, 12, dtype=torch.float64))
    assert float((shifted - MU - straight).abs().max()) < 1e-12


def test_published_coefficients_of_mu():
    """ODE and SDE, data prediction, first order: what multiplies mu."""
    process = MeanReverting()
    t, s = 0.8, 0.4
    (a_s, a_t), (s_s, s_t) = ([float(c(v)) for v in (t, s)] for c in (process.alpha, process.sigma))
    h = float(process.log_snr(s) - process.log_snr(t))
    ode = rd.plan("ddim", process, grid=[t, s], start=t, end=s).normal_form().output[2]
    assert ode == pytest.approx(1 - s_t / s_s + s_t / s_s * a_s - a_t, rel=1e-12)
    sde = rd.plan("ddpm", process, grid=[t, s], start=t, end=s).normal_form().output[2]
    keep = s_t / s_s * math.exp(-h)  # of x at s; the published coefficient of mu is one less A and D's
    assert sde == pytest.approx(1 - keep - a_t * (1 - math.exp(-2 * h)), rel=1e-12)


def test_restoring_end_to_end():
    """Samples about each mu have the law that was shifted; four standard errors, seed fixed."""
    process = MeanReverting(std=0.5)
    mu = torch.tensor([[1.0, -2.0]]).double().expand(2000, 2)
    out = rd.sample(Shifted(process), 2000, solver="unipc", steps=16, x1=mu, progress=False).x.double() - mu
    assert float((out.mean(0) - LAW.mean).abs().max()) < 4 * float(LAW.covariance.diagonal().max() / 2000) ** 0.5
    assert torch.allclose(torch.cov(out.T), LAW.covariance, atol=0.008)


def test_second_order_sde_beats_the_first_on_gaussian_data():
    """Relative error of the variance at ten steps, exact moments: at most .3 of posterior sampling's."""
    process = MeanReverting(std=1.0, signal=0.005)
    error = {
        name: certificate.moments(
            rd.plan(name, process, steps=10, grid="logsnr", end=1e-2, **options), 0.7, 0.25, 0.0, 0.0
        ).variance_error
        for name, options in [("ddpm", {}), ("sde-dpm-solver++", {"weights": "midpoint"})]
    }
    assert error["sde-dpm-solver++"] <= 0.3 * error["ddpm"]


def test_ten_times_fewer_evaluations_than_euler():
    """Pathwise, on narrow data about mu: 20 evaluations of UniPC are nearer to the solution than 200 of Euler's method
    in t, from the same starts (median error .0004 and .0007 of data a hundred times as wide)."""
    process = MeanReverting(std=50 / 255, signal=0.005)
    path = plain(process)
    law = GaussianMixture([0.4, 0.3, 0.3], [[-0.3, 0.1], [0.2, -0.2], [0.1, 0.3]], [0.02**2] * 3)
    x = float(process.sigma(1.0)) * torch.randn(256, 2, generator=torch.Generator().manual_seed(0)).double()

    def out(name: str, grid: str, steps: int, **options: Any) -> Tensor:
        plan = rd.plan(name, path, steps=steps, grid=grid, end=1e-2, **options)
        with torch.no_grad():
            return certificate.execute(plan, law.denoiser(path), x, KeyedNoise(0, 256, dtype=torch.float64))

    fine = out("unipc", "logsnr", 400, order=3)
    error = {
        (name, steps): float((out(name, grid, steps) - fine).norm(dim=1).median())
        for name, grid, steps in [("unipc", "logsnr", 20), ("euler", "uniform", 200)]
    }
    assert error["unipc", 20] < error["euler", 200]


class Ideal(nn.Module):
    """What a network would say if it knew x0."""

    def __init__(self, x0: Tensor, kind: str, process: MeanReverting) -> None:
        super().__init__()
        self.x0, self.kind, self.process = x0, kind, process

    def forward(self, x: Tensor, time: Tensor, mu: Tensor) -> Tensor:
        alpha, sigma = float(self.process.alpha(0.4)), float(self.process.sigma(0.4))
        z = (x - mu - alpha * (self.x0 - mu)) / sigma
        return {
            "noise": z,
            "data": self.x0 - mu,
            "velocity": alpha * z - sigma * (self.x0 - mu),
            "score": -z / sigma,
            "flow": z - (self.x0 - mu),
        }[self.kind]


@pytest.mark.parametrize("kind", ["noise", "data", "velocity", "score", "flow"])
def test_prediction_types(kind):
    process = MeanReverting()
    x0 = LAW.sample(12, seed=3)
    denoiser = Reverting(Ideal(x0, kind, process), process, kind, shape=(2,))
    x = process.corrupt(x0, 0.4, KeyedNoise(2, 12, dtype=torch.float64), MU)
    belief = denoiser.belief(x, 0.4, x1=MU)
    assert torch.allclose(belief.mean, x0, atol=1e-10) and belief.x1 is not None and torch.equal(belief.x1, MU)


def test_bad_words():
    for words, match in [({"std": 0.0}, "std"), ({"signal": 1.0}, "signal"), ({"rate": "cosin"}, "cosine")]:
        with pytest.raises(InputError, match=match):
            MeanReverting(**words)
    with pytest.raises(InputError, match="x1="):
        MeanReverting().corrupt(MU, 0.5, KeyedNoise(0, 12))
