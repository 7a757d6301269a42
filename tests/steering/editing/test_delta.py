"""The delta form against the published algorithms, each written out as published: stored noises, noise estimates,
velocities.  The denoiser is that of a mixture, as non-linear as they come."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.exact import GaussianMixture
from retrodict.processes import VP, RectifiedFlow
from retrodict.solvers.grids import make_levels
from retrodict.steering.editing import Rule, Terms, edit_delta, methods, rule

LAW = GaussianMixture(
    [0.3, 0.2, 0.3, 0.2],
    [[-1.5, 0.0], [-1.0, 1.5], [1.0, 1.2], [1.5, -1.0]],
    [[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.3]], [[0.2, -0.1], [-0.1, 0.2]], [[0.15, 0.0], [0.0, 0.15]]],
    labels=[0, 0, 1, 1],
)
X0 = LAW.sample(16, seed=3)
STEPS = 7


class Case:
    """A path, its levels, the noises that a run draws, and the noise estimates of both classes."""

    def __init__(self, process, start=1.0):
        self.denoiser = LAW.denoiser(process)
        self.levels = make_levels("uniform", process, STEPS, start)
        self.t, self.a, self.s = (np.asarray(v) for v in (self.levels.t, self.levels.alpha, self.levels.sigma))
        noise = KeyedNoise(5, len(X0), dtype=torch.float64)
        self.z = [noise.normal((2,)) for _ in range(STEPS)]
        self.z.append(torch.zeros_like(X0))

    def mean(self, label, scale=1.0):
        def mean(x, t):
            conditional = self.denoiser(x, t, label=label)
            return conditional if scale == 1 else torch.lerp(self.denoiser(x, t), conditional, scale)

        return mean

    def eps(self, x, i, label, scale=1.0):
        return (x - self.a[i] * self.mean(label, scale)(x, float(self.t[i]))) / self.s[i]

    def run(self, setting, scales=(1.0, 1.0, 1.0)):
        source = self.mean(0, scales[0])
        reference = source if scales[2] == scales[0] else self.mean(0, scales[2])
        terms = Terms(source, self.mean(1, scales[1]), reference)
        noise = KeyedNoise(5, len(X0), dtype=torch.float64)
        return X0 + edit_delta(X0, terms, self.levels, noise, setting)

    def posterior_mean(self, x, i, label, scale=1.0):
        """The mean of q(x_r | x_t, x0 = D), from the forward chain's own coefficients (Ho et al. 2020, eq. (7))."""
        ratio = self.a[i] / self.a[i + 1]
        variance = self.s[i] ** 2 - ratio**2 * self.s[i + 1] ** 2
        D = self.mean(label, scale)(x, float(self.t[i]))
        return (ratio * self.s[i + 1] ** 2 * x + self.a[i + 1] * variance * D) / self.s[i] ** 2

    def noised(self, i):
        return self.a[i] * X0 + self.s[i] * self.z[i]


CASE = Case(VP())


def close(a, b, tol=1e-12):
    return float((a - b).abs().max()) < tol * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.5, 3.0)])
def test_edit_friendly_inversion_with_stored_noises(scales):
    case = CASE
    stored = [case.noised(i + 1) - case.posterior_mean(case.noised(i), i, 0, scales[0]) for i in range(STEPS)]
    again = x = case.noised(0)
    for i, u in enumerate(stored):
        again = case.posterior_mean(again, i, 0, scales[0]) + u
        x = case.posterior_mean(x, i, 1, scales[1]) + u
    assert close(again, X0)
    assert not close(x, X0, 0.1)
    assert close(case.run(methods["edit-friendly"], (*scales, scales[0])), x)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_pseudo_guidance(shift, clip):
    """Three branches as published: carried over from the source, pulled between the prompts, the last noise bounded."""
    case, w = CASE, 1.5
    state = lambda i: case.a[min(i + shift, STEPS)] * X0 + case.s[min(i + shift, STEPS)] * case.z[i]  # noqa: E731
    xh = state(0)
    for i in range(STEPS):
        x, after = state(i), X0 if i + 1 == STEPS else state(i + 1)
        own = case.posterior_mean(x, i, 0)
        u = after - own
        if i + 1 == STEPS and clip is not None:
            u = u * (clip * math.sqrt(2) / u.norm(dim=1, keepdim=True)).clamp_max(1)
        carried = case.posterior_mean(xh, i, 0)
        xh = carried + u + w * (case.posterior_mean(xh, i, 1) - carried)
    assert close(case.run(rule("turbo", {"strength": w, "shift": shift, "clip": clip})), xh)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("method", "inner"), [("h-edit-explicit", 1), ("h-edit", 1), ("h-edit", 3)])
def test_h_transform_in_noise_estimates(method, inner, eta):
    """``x_r = base + c (eps(target) - eps(source'))`` with the guidance scales of its authors; c = d mean/d eps."""
    case, (w_source, w_target, w_hat), anchor = CASE, (1.0, 2.0, 1.3), 0.1 if inner > 1 else 0.0
    a, s = case.a, case.s

    def ddim_mean(x, i, label, scale):
        q = a[i] * s[i + 1] / (a[i + 1] * s[i])
        fresh = eta**2 * s[i + 1] ** 2 * (1 - q**2)
        e = case.eps(x, i, label, scale)
        return a[i + 1] * (x - s[i] * e) / a[i] + math.sqrt(s[i + 1] ** 2 - fresh) * e, fresh

    xh = case.noised(0)
    for i in range(STEPS):
        mean, fresh = ddim_mean(case.noised(i), i, 0, w_source)
        base = ddim_mean(xh, i, 0, w_source)[0] + case.noised(i + 1) - mean
        c = math.sqrt(s[i + 1] ** 2 - fresh) - s[i] * a[i + 1] / a[i]
        if method == "h-edit-explicit" or i + 1 == STEPS:
            xh = base + c * (case.eps(xh, i, 1, w_target) - case.eps(xh, i, 0, w_hat))
            continue
        xh = base
        for k in range(inner):
            move = c / inner * (case.eps(xh, i + 1, 1, w_target) - case.eps(xh, i + 1, 0, w_hat))
            away = torch.sign(xh - base)
            size = anchor * move.square().mean(1, keepdim=True).sqrt() / away.square().mean(1, keepdim=True).sqrt()
            xh = xh + move - (size * away if k else 0)
    options = {"eta": eta} | ({"inner": inner, "anchor": anchor} if inner > 1 else {})
    assert close(case.run(rule(method, options), (w_source, w_target, w_hat)), xh, 1e-11)


def test_flow_edit_in_velocities():
    """``z <- z + (r - t) (v(z + x_t - x0 | target) - v(x_t | source))`` from z = x0 (Kulikov et al. 2024, alg. 1)."""
    case = Case(RectifiedFlow(), start=0.8)
    velocity = lambda x, i, label: (x - case.mean(label)(x, float(case.t[i]))) / case.t[i]  # noqa: E731
    z = X0
    for i in range(STEPS):
        x = case.noised(i)
        z = z + (case.t[i + 1] - case.t[i]) * (velocity(z + x - X0, i, 1) - velocity(x, i, 0))
    assert close(case.run(methods["flow"]), z)
    assert not close(case.run(methods["edit-friendly"]), z, 1e-2)


@pytest.mark.parametrize("steps", [1, 4, 40])
@pytest.mark.parametrize("start", [1.0, 0.5])
@pytest.mark.parametrize("strength", [1.0, 1.5])
def test_equal_gaussians_are_translated(steps, start, strength):
    """Classes N(m_A, L) and N(m_B, L): every datum moves by w (I - kappa)(m_B - m_A), with kappa = alpha^2 L
    (alpha^2 L + sigma^2)^-1 at the start, whatever the number of steps and the noise."""
    L = torch.tensor([[0.3, 0.18], [0.18, 0.24]], dtype=torch.float64)
    means = torch.tensor([[-1.5, 0.0], [1.0, 1.2]], dtype=torch.float64)
    law = GaussianMixture([0.5, 0.5], means, torch.stack([L, L]), labels=[0, 1])
    path = VP("cosine")
    d = law.denoiser(path)
    terms = [lambda x, t, k=k: d(x, t, label=k) for k in (0, 1)]
    x0 = law.sample(6, seed=1)
    levels = make_levels("uniform", path, steps, start)
    rule_ = Rule(strength=strength)
    delta = edit_delta(x0, Terms(terms[0], terms[1], terms[0]), levels, KeyedNoise(0, 6, dtype=torch.float64), rule_)
    a2, s2 = float(path.alpha(start)) ** 2, float(path.sigma(start)) ** 2
    kappa = a2 * L @ torch.linalg.inv(a2 * L + s2 * torch.eye(2, dtype=torch.float64))
    want = strength * (means[1] - means[0]) @ (torch.eye(2, dtype=torch.float64) - kappa).T
    assert float((delta - want).abs().max()) < 1e-12
    if start < 1:
        assert float((want - strength * (means[1] - means[0])).abs().max()) > 0.05  # kappa is in play


def test_the_implicit_pull_tends_to_the_explicit_one():
    """Of equal Gaussians: the miss of 2.5 falls as steps are added, and K inner steps share one pull, since there the
    pull is the same wherever it is taken."""
    law = GaussianMixture([0.5, 0.5], [[-1.5], [1.0]], [0.3, 0.3], labels=[0, 1])
    path = VP("cosine")
    d = law.denoiser(path)
    terms = [lambda x, t, k=k: d(x, t, label=k) for k in (0, 1)]
    x0 = torch.tensor([[-1.4]], dtype=torch.float64)

    def moved(steps, inner=1):
        noise = KeyedNoise(0, 1, dtype=torch.float64)
        setting = Rule(implicit=True, inner=inner)
        levels = make_levels("uniform", path, steps)
        return float(edit_delta(x0, Terms(terms[0], terms[1], terms[0]), levels, noise, setting))

    misses = [abs(moved(n) - 2.5) for n in (40, 160, 640)]
    assert misses[0] > 2 * misses[1] > 4 * misses[2] and misses[2] < 0.01
    assert all(abs(moved(10, k) - moved(10)) < 1e-12 for k in (2, 3))


@pytest.mark.parametrize("method", list(methods))
def test_the_source_as_target_changes_nothing(method):
    case, setting = CASE, rule(method, {"clip": None})
    source = case.mean(0)
    noise = KeyedNoise(5, len(X0), dtype=torch.float64)
    delta = edit_delta(X0, Terms(source, source, source), case.levels, noise, setting)
    assert bool((delta == 0).all())


def test_settings_are_checked():
    for options, message in [
        ({"strength": math.inf}, "finite weight"),
        ({"eta": 1.2}, "between 0 and 1"),
        ({"shift": -1}, "at least 0"),
        ({"inner": 2}, "only 'h-edit'"),
        ({"anchor": 0.1}, "inner steps after the first"),
        ({"clip": 0.0}, "positive"),
        ({"strenght": 1.0}, "Did you mean 'strength'"),
    ]:
        with pytest.raises(InputError, match=message):
            rule("turbo", options)
    with pytest.raises(InputError, match="Did you mean 'turbo'"):
        rule("turboo", {})
