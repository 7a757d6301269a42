"""The named paths: their schedules at both ends of time, their clocks, and what they refuse."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

import retrodict as rd
from processes.paths import NAMED
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.processes import from_config

SCALAR = {k: v for k, v in NAMED.items() if k != "by-functions"}
TIMES = [0.0, 1e-12, 1e-8, 1e-4, 0.1, 0.37, 0.5, 0.9, 1 - 1e-4, 1 - 1e-8, 1.0]


def reference(name: str, t: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """alpha and sigma in 50 digits, from the published formulas."""
    mpmath.mp.dps = 50
    t = mpmath.mpf(t)
    b0, b1 = mpmath.mpf("0.1"), mpmath.mpf(20)
    if name in ("vp-linear", "sub-vp"):
        alpha = mpmath.exp(-(t * b0 + t**2 * (b1 - b0) / 2) / 2)
    elif name == "vp-scaled-linear":
        root = lambda u: (mpmath.sqrt(b0) + u * (mpmath.sqrt(b1) - mpmath.sqrt(b0))) ** 2  # noqa: E731
        alpha = mpmath.exp(-mpmath.quad(root, [0, t]) / 2)
    elif name == "vp-cosine":
        f = lambda u: mpmath.cos((u + mpmath.mpf("0.008")) / mpmath.mpf("1.008") * mpmath.pi / 2)  # noqa: E731
        alpha = f(t) / f(mpmath.mpf(0))
    elif name == "ve":
        return mpmath.mpf(1), mpmath.mpf("0.01") * 5000**t
    elif name == "edm":
        low, high = mpmath.mpf("0.002") ** (mpmath.mpf(1) / 7), mpmath.mpf(80) ** (mpmath.mpf(1) / 7)
        return mpmath.mpf(1), (low + t * (high - low)) ** 7
    else:
        return 1 - t, t
    return alpha, 1 - alpha**2 if name == "sub-vp" else mpmath.sqrt(1 - alpha**2)


@pytest.mark.parametrize("name", [n for n in SCALAR if n != "ddpm"])
def test_schedules_are_accurate_at_both_ends(name):
    path = SCALAR[name]
    for t in TIMES:
        alpha, sigma = reference(name, t)
        if float(alpha) > 1e-12:
            assert abs(float(path.alpha(t)) / float(alpha) - 1) < 2e-13
        else:
            assert abs(float(path.alpha(t))) < 1e-12
        if t == 0 and name not in ("ve", "edm"):
            assert float(path.sigma(t)) == 0
        else:
            assert abs(float(path.sigma(t)) / float(sigma) - 1) < 2e-13
        if 0 < t < 1:
            assert abs(float(path.log_snr(t)) - float(mpmath.log(alpha / sigma))) < 1e-12 * (
                1 + abs(float(path.log_snr(t)))
            )


@pytest.mark.parametrize("name", SCALAR)
def test_time_at_inverts_the_log_snr(name):
    path = SCALAR[name]
    t = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
    assert float((path.time_at(path.log_snr(t)) - t).abs().max()) < 1e-10
    lam = torch.linspace(
        float(path.log_snr(0.999)), float(path.log_snr(1e-3 if name != "ddpm" else 0.02)), 50, dtype=torch.float64
    )
    assert float((path.log_snr(path.time_at(lam)) - lam).abs().max()) < 1e-9
    assert float(path.time_at(-1e4)) == 1.0 and float(path.time_at(1e4)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", ["vp-cosine", "rectified-flow"])
def test_time_at_is_accurate_where_nothing_is_left_of_the_data(name):
    """The distance of t from 1, to 6 digits, at log-SNRs where it is 1e-4 to 1e-8."""
    path = SCALAR[name]
    for left in (1e-4, 1e-6, 1e-8):
        t = torch.tensor(1 - left, dtype=torch.float64)
        assert abs(float(1 - path.time_at(path.log_snr(t))) / left - 1) < 1e-6


@pytest.mark.parametrize("name", NAMED)
def test_log_snr_falls_with_time(name):
    lam = NAMED[name].log_snr(torch.linspace(1e-6, 1 - 1e-6, 400, dtype=torch.float64))
    assert bool((lam.diff() < 0).all())


def test_drift_and_dispersion_of_the_published_equations():
    """dx = f x dt + g dW of Song et al. (2021), table 1, and of the straight path."""
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    beta = 0.1 + 19.9 * t
    close = lambda a, b: torch.allclose(a, b, rtol=1e-9)  # noqa: E731
    assert close(rd.VP().drift(t), -beta / 2) and close(rd.VP().dispersion2(t), beta)
    assert close(rd.SubVP().drift(t), -beta / 2)
    assert close(rd.SubVP().dispersion2(t), beta * (1 - rd.VP().alpha(t) ** 4))
    assert close(rd.VE().dispersion2(t), 2 * math.log(5000) * rd.VE().sigma(t) ** 2) and not rd.VE().drift(t).any()
    assert close(rd.RectifiedFlow().drift(t), -1 / (1 - t)) and close(
        rd.RectifiedFlow().dispersion2(t), 2 * t / (1 - t)
    )


@pytest.mark.parametrize("name", NAMED)
def test_rates_are_derivatives(name):
    path = NAMED[name]
    t = torch.tensor([0.113, 0.431, 0.777], dtype=torch.float64)
    h = 1e-6
    for rate, value in zip(path.rates(t), (path.alpha, path.beta, path.sigma)):
        assert torch.allclose(rate, (value(t + h) - value(t - h)) / (2 * h), rtol=1e-7, atol=1e-8)
    assert torch.allclose(path.noise_rate(t), path.sigma(t) * path.rates(t)[2], rtol=1e-9)


def test_the_table_of_ddpm_sits_at_its_levels():
    path = rd.DDPM(1000)
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert np.abs(path.alpha(t).numpy() ** 2 / bar - 1).max() < 1e-11
    assert path.levels == 1000 and rd.VP().levels is None
    cosine = rd.DDPM(10, "cosine")
    f = np.cos((np.arange(11) / 10 + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    assert np.abs(cosine.alpha(torch.arange(1, 11) / 10).numpy() ** 2 / np.cumprod(1 - betas) - 1).max() < 1e-6


@pytest.mark.parametrize("name", NAMED)
def test_corruption_and_targets_agree(name):
    """Every target, with the noise known and solved for, and x_t rebuilt from each."""
    path = NAMED[name]
    noise = KeyedNoise(0, 5, dtype=torch.float64)
    x0, z = noise.normals(2, (3,))
    t = torch.tensor([0.2, 0.4, 0.5, 0.7, 0.9], dtype=torch.float64)
    a, s = path.alpha(t)[:, None], path.sigma(t)[:, None]
    x_t = path.corrupt(x0, t, z)
    assert torch.allclose(x_t, a * x0 + s * z)
    for known in ({}, {"z": z}):
        target = lambda kind: path.target(kind, x0, x_t, t, **known)  # noqa: E731, B023
        assert torch.allclose(target("noise"), z, rtol=1e-9, atol=1e-9)
        assert target("data").equal(x0)
        v = target("velocity")
        assert torch.allclose((a * x_t - s * v) / (a**2 + s**2), x0, atol=1e-9)
        assert torch.allclose(target("score"), -(x_t - a * x0) / s**2, rtol=1e-8)
        da, _, ds = path.rates(t)
        assert torch.allclose(target("flow"), da[:, None] * x0 + ds[:, None] * z, rtol=1e-8, atol=1e-8)
    assert path.corrupt(x0, t, KeyedNoise(4, 5)).shape == x0.shape


@pytest.mark.parametrize("name", SCALAR)
def test_a_configuration_rebuilds_the_path(name):
    path = SCALAR[name]
    again = from_config(path.config())
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert again.alpha(t).equal(path.alpha(t)) and again.sigma(t).equal(path.sigma(t))
    assert repr(again) == repr(path) and path.can_save


def test_a_path_made_from_code_says_that_it_cannot_be_saved():
    path = NAMED["by-functions"]
    assert not path.can_save and repr(path) == "GaussianPath()"
    with pytest.raises(InputError, match="cannot be written to a file"):
        path.config()


@pytest.mark.parametrize("name", ["vp-cosine", "sub-vp", "ve", "edm", "rectified-flow"])
def test_the_prior_is_the_law_at_the_end_of_time(name):
    path, n = NAMED[name], 20_000
    x = path.prior((1,), KeyedNoise(5, n))
    sigma = float(path.sigma(1.0))
    assert abs(float(x.std()) / sigma - 1) < 4 / (2 * n) ** 0.5  # four standard errors: false alarm 6e-5
    assert abs(float(x.mean())) < 4 * sigma / n**0.5


def test_network_time_is_finite_everywhere():
    t = torch.tensor([0.0, 1e-9, 0.5, 1.0], dtype=torch.float64)
    for path in NAMED.values():
        clock = path.network_time(t)
        assert bool(clock.isfinite().all()) and float(clock.abs().max()) <= 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: rd.VP("linar"),
            r"unknown schedule 'linar'; known: linear, scaled-linear, cosine. Did you mean 'linear'\?",
        ),
        (lambda: rd.VP(beta_min=0.0), "0 < beta_min <= beta_max"),
        (lambda: rd.VP([0.5, 1.5]), r"numbers in \(0, 1\)"),
        (lambda: rd.VP([0.5]), "two or more numbers"),
        (lambda: rd.DDPM(1), "at least 2 levels"),
        (lambda: rd.DDPM(10, "cosin"), "Did you mean 'cosine'"),
        (lambda: rd.VE(1.0, 0.5), "0 < sigma_min < sigma_max"),
        (lambda: rd.EDM(sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: from_config({"name": "vpp"}), "Did you mean 'vp'"),
        (lambda: from_config({}), "a process configuration has a 'name'"),
        (lambda: rd.VP().target("nois", *[torch.zeros(1, 1)] * 2, 0.5), "Did you mean 'noise'"),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
