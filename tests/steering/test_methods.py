"""Published methods as rows: each is what its paper says, and says what it is not."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.data.scaling import Scale
from retrodict.denoisers import Denoiser, Joint
from retrodict.kernels import Belief
from retrodict.solvers.plan import Call
from retrodict.steering import Measurement, Steered, plans
from retrodict.steering.calls import ddrm
from retrodict.steering.methods import methods

PROCESS = rd.VE(sigma_min=0.01, sigma_max=40.0)
#: Five components around the origin, of which the measurement of the first coordinate leaves three.
LAW = rd.exact.GaussianMixture(
    [0.3, 0.2, 0.2, 0.15, 0.15],
    [[-3.0, -3.0], [-3.0, 0.5], [-2.5, 3.0], [3.0, -2.0], [3.0, 2.0]],
    torch.diag_embed(torch.tensor([[0.4, 0.3], [0.5, 0.6], [0.3, 0.5], [0.5, 0.4], [0.4, 0.3]])),
)
A, Y, NOISE = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([-2.8], dtype=torch.float64), 0.3
POSTERIOR = LAW.posterior(A, Y, NOISE)
GOAL = Measurement(Y, A, noise=NOISE)
UNWEIGHTED = {"stsl", "diffpir", "ddnm", "ddrm", "replacement", "repaint", "daps", "blind-dps"}


def total_variation(out: rd.Samples) -> float:
    """Of the weights of the posterior's components."""
    found = out.weights @ torch.softmax(POSTERIOR.component_log_prob(out.x), -1)
    return float((found - POSTERIOR.weights).abs().sum() / 2)


def run(method: str, n: int = 200, steps: int = 40, **words: Any) -> rd.Samples:
    options = words.pop("options", {})
    cond = rd.condition(LAW.denoiser(PROCESS), GOAL, method=method, **options)
    return rd.sample(cond, n, steps=steps, grid="karras", progress=False, **words)


@pytest.mark.parametrize("name", sorted(methods))
def test_every_method_meets_the_measurement(name: str) -> None:
    """Without weights the residual is of the order of the noise, as that of the prior is not (10 of them); what
    has no weights says so, and in a population falls back on moves that have."""
    alone = run(name, population=False)
    residual = (alone.x @ A.T - Y) / NOISE
    assert float(residual.square().mean().sqrt()) < 4
    assert alone.correction == "none" and name in alone.method
    usual = run(name, n=20, steps=10)
    assert usual.correction == ("none" if name in UNWEIGHTED else "weighted")
    crowd = run(name, n=20, steps=10, population=True)
    assert crowd.correction == "weighted" and crowd.plan.has_density


def test_draws_of_the_posterior_need_no_mixing() -> None:
    """Renoised draws of the exact x0 given x_t and y have the exact law on any grid, five levels included.  Of 4,000
    samples the error of three weights is below .03 but once in 1e3 runs."""
    plan = rd.plan(plans.DAPS, PROCESS, steps=5)
    out = rd.sample(POSTERIOR.denoiser(PROCESS), 4000, plan=plan, progress=False)
    assert total_variation(out) < 0.03
    z = (out.x.mean(0) - POSTERIOR.mean) / (POSTERIOR.covariance.diagonal() / 4000).sqrt()
    assert float(z.abs().max()) < 4


def test_renoised_draws_have_the_law_of_their_level() -> None:
    """Halfway the state is alpha x0 + sigma z with x0 from the posterior: variances within 4.5 standard errors."""
    s, n = 0.6, 4000
    plan = rd.plan(plans.DAPS, PROCESS, grid=[1.0, s], end=s)
    x = rd.sample(POSTERIOR.denoiser(PROCESS), n, plan=plan, progress=False).x
    known = POSTERIOR.covariance.diagonal() + float(PROCESS.sigma(s)) ** 2
    assert float(((x.var(0) / known - 1) / (2 / n) ** 0.5).abs().max()) < 4.5


def test_daps_depends_on_its_covariance() -> None:
    """The denoiser's own covariance is closer to the posterior than the isotropic one of the paper."""
    errors = [
        total_variation(run("daps", n=1500, steps=60, options={"covariance": c, "ode": 1}))
        for c in ("exact", "isotropic")
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("move", ["langevin", "hmc", "metropolis"])
def test_chains_of_daps_draw_what_the_exact_draw_draws(move: str) -> None:
    """Means of two coordinates after one level within 4.5 standard errors; the Langevin chain is biased by its step."""
    cond = rd.condition(LAW.denoiser(PROCESS), GOAL, method="daps", ode=1)
    x0 = LAW.sample(1, seed=5)
    init = (x0 + 1.5 * torch.ones(1, 2)).expand(3000, 2)
    out = []
    for how, moves, rate in (("exact", 1, 1.0), (move, 400, 0.1 if move == "langevin" else 0.5)):
        t = float(PROCESS.time_at(-torch.tensor(1.5).log()))  # sigma = 1.5
        plan = rd.plan(plans.DAPS, PROCESS, steps=1, start=t, move=how, moves=moves, rate=rate)
        out.append(rd.sample(cond, 3000, plan=plan, init=init, population=False, progress=False, seed=1 + moves).x)
    z = (out[0].mean(0) - out[1].mean(0)) / ((out[0].var(0) + out[1].var(0)) / 3000).sqrt()
    assert float(z.abs().max()) < 4.5
    assert torch.allclose(out[0].std(0), out[1].std(0), rtol=0.12)


def test_hard_constraints_are_met() -> None:
    """DDNM and replacement end on y exactly; DDRM does where the measurement has no noise."""
    hard = Measurement(Y, A)
    for name, goal in (("ddnm", GOAL), ("replacement", hard), ("repaint", hard), ("ddrm", hard), ("ddnm", hard)):
        cond = rd.condition(LAW.denoiser(PROCESS), goal, method=name)
        x = rd.sample(cond, 20, steps=10, progress=False).x
        assert torch.allclose(x @ A.T, Y.expand(20, 1), rtol=0, atol=1e-6)


def test_diffpir_tends_to_ddnm() -> None:
    """Their conditional means differ by O(noise^2)."""
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gaps = []
    for noise in (1e-2, 1e-3, 1e-4):
        goal = Measurement(Y, A, noise=noise)
        a, b = (rd.condition(LAW.denoiser(PROCESS), goal, method=name)(x, 0.5) for name in ("diffpir", "ddnm"))
        gaps.append(float((a - b).norm()))
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.01) and gaps[1] / gaps[2] == pytest.approx(100, rel=0.05)


class Known(Denoiser):
    """Knows the clean state."""

    def __init__(self, x0: torch.Tensor) -> None:
        super().__init__(PROCESS, tuple(x0.shape))
        self.register_buffer("x0", x0)

    def belief(self, x: torch.Tensor, t: float | torch.Tensor, **condition: object) -> Belief:
        return Belief(self.x0.expand_as(x))


@pytest.mark.parametrize("s", [0.9, 0.5, 0.2])
def test_ddrm_keeps_the_marginals(s: float) -> None:
    """If the denoiser knows x0 and y varies, x_s has mean x0 and variance sigma^2 in every singular direction, whether
    the noise of the measurement is above or below the level: within 4.5 standard errors of 20,000 samples."""
    n, x0 = 20_000, torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64)
    seen = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.05, 0.0]], dtype=torch.float64)
    cond = rd.condition(Known(x0), Measurement(seen @ x0, seen, noise=0.1), method="ddrm")
    goal, noise = cond.potentials[0], KeyedNoise(3, n, dtype=torch.float64)
    c = goal.coordinates
    varied = c.inwards(x0[None]) + c.std * noise.stream("y").normal((len(c.std),))
    goal.__dict__["coordinates"] = replace(c, y=varied)
    t = s + 0.05
    alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
    x = alpha * x0 + sigma * noise.stream("x").normal((3,))
    # where y is used at the level left, the state there holds the same y
    hold = (sigma**2 - (alpha * c.std) ** 2).clamp_min(0).sqrt()
    kept = torch.where(
        sigma > alpha * c.std, alpha * varied + hold * noise.stream("h").normal((len(c.std),)), c.inwards(x)
    )
    x = x + c.outwards(kept - c.inwards(x))
    call = Call(1, "ddrm", 0, 0, t, s, {"eta": 0.85, "eta_b": 1.0, "end": False})
    out = ddrm(cond, x, cond.belief(x, t), call, noise, {}) / float(PROCESS.alpha(s))
    b = float(PROCESS.sigma(s)) / float(PROCESS.alpha(s))
    z = (out.mean(0) - x0) / (b / n**0.5)
    spread = (out.var(0) / b**2 - 1) / (2 / n) ** 0.5
    assert float(z.abs().max()) < 4.5 and float(spread.abs().max()) < 4.5


def test_the_published_step_of_dps() -> None:
    """One step against ``ancestral - zeta grad_x |y - A D|`` by automatic differentiation."""
    denoiser = LAW.denoiser(PROCESS)
    cond = rd.condition(denoiser, GOAL, method="dps", official=True, zeta=0.7)
    t, s = 0.6, 0.5
    plan = rd.plan(plans.DPS, PROCESS, grid=[t, s], start=t, end=s, zeta=0.7)
    plain = rd.plan("ddim", PROCESS, grid=[t, s], start=t, end=s, eta=1.0)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    words: Any = {"init": x, "population": False, "progress": False}
    out, step = rd.sample(cond, 8, plan=plan, **words).x, rd.sample(denoiser, 8, plan=plain, **words).x
    at = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad((Y - denoiser(at, t) @ A.T).norm(dim=1).sum(), at)
    assert torch.allclose(out, step - 0.7 * slope, rtol=0, atol=1e-9)


def test_an_unknown_factor_has_a_prior_of_its_own() -> None:
    """``y = k x`` with both unknown: BlindDPS runs and is biased; the weighted population finds the posterior of the
    grid."""
    law_x = rd.exact.GaussianMixture([0.5, 0.5], [[1.0], [2.5]], [0.04, 0.09])
    law_k = rd.exact.GaussianMixture([0.6, 0.4], [[0.6], [1.4]], [0.02, 0.02])
    y, sd = 1.45, 0.1
    process = rd.VE(sigma_min=0.01, sigma_max=8.0)
    g = torch.linspace(-0.5, 4.5, 1501, dtype=torch.float64)
    log_p = law_x.log_prob(g[:, None])[:, None] + law_k.log_prob(g[:, None]) - 0.5 * ((y - g[:, None] * g) / sd) ** 2
    p = torch.softmax(log_p.flatten(), 0).reshape(len(g), len(g))
    known = torch.stack([(p.sum(1) * g).sum(), (p.sum(0) * g).sum()])
    joint = Joint([law_x.denoiser(process), law_k.denoiser(process)])
    goal = Measurement([y], lambda v: v[:, :1] * v[:, 1:], noise=sd)
    out = rd.sample(rd.condition(joint, goal), 1500, steps=100, grid="karras", progress=False, seed=2)
    assert torch.allclose(out.mean(), known, rtol=0, atol=0.06)
    blind = rd.sample(rd.condition(joint, goal, method="blind-dps"), 500, steps=100, grid="karras", progress=False)
    assert blind.correction == "none"
    assert float((blind.mean() - known).abs().max()) > 0.2
    zetas = rd.condition(joint, goal, method="blind-dps", zeta=[0.3, 0.0], schedule="alpha")
    assert rd.sample(zetas, 4, steps=5, progress=False).x.shape == (4, 2)


@pytest.mark.parametrize("gradient", [True, False])
def test_an_unknown_kernel_and_what_it_blurred(gradient: bool) -> None:
    """Eight numbers around three shapes, blurred by one of three narrow kernels, by the potential that networks have.

    Exact: given shape and kernel all is Gaussian but for the product of their widths, of which the variance is kept.
    The kernels' probabilities (.05, .34, .61) of four pooled populations of 150: errors of three groups of seeds were
    .005 to .023 with drift and .04 to .11 without, of the evidence .13 to .23.
    """
    d, taps, noise, width, wide = 8, 3, 0.5, 0.02, 0.3
    family = torch.tensor([[0.1, 0.8, 0.1], [0.3, 0.4, 0.3], [0.0, 0.5, 0.5]], dtype=torch.float64)
    shapes = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0, 0, 1.0]]).double() * 2

    def blurred(v: torch.Tensor) -> torch.Tensor:
        return sum(v[:, d + j : d + j + 1] * v[:, :d].roll(j - 1, 1) for j in range(taps))  # type: ignore[return-value]

    g = torch.Generator().manual_seed(6)
    normal = lambda *n: torch.randn(*n, generator=g, dtype=torch.float64)  # noqa: E731
    truth = torch.cat([shapes[1] + wide * normal(d), family[1] + width * normal(taps)])
    y = (blurred(truth[None]) + noise * normal(1, d))[0]
    logs = torch.zeros(3, 3, dtype=torch.float64)
    for a, k in itertools.product(range(3), range(3)):
        J = torch.func.jacrev(lambda v: blurred(v[None])[0])(torch.cat([shapes[a], family[k]]))
        M = wide**2 * J[:, :d] @ J[:, :d].T + width**2 * J[:, d:] @ J[:, d:].T
        M += (noise**2 + taps * (wide * width) ** 2) * torch.eye(d, dtype=torch.float64)
        seen = blurred(torch.cat([shapes[a], family[k]])[None])[0]
        logs[k, a] = torch.distributions.MultivariateNormal(seen, M).log_prob(y) - math.log(9)
    known, evidence = torch.softmax(logs.flatten(), 0).reshape(3, 3).sum(1), float(logs.logsumexp((0, 1)))
    process = rd.VP()
    unit = float((family - family.mean(0)).square().mean().sqrt())
    kernel = rd.exact.GaussianMixture(torch.ones(3), (family - family.mean(0)) / unit, [(width / unit) ** 2] * 3)
    variables = [
        rd.exact.GaussianMixture(torch.ones(3), shapes, [wide**2] * 3).denoiser(process),
        kernel.denoiser(process),
    ]
    variables[1].scale = Scale(family.mean(0), unit)
    cond = rd.condition(Joint(variables), Measurement(y, blurred, noise=noise), method="pigdm", gradient=gradient)
    runs = [rd.sample(cond, 150, steps=50, progress=False, seed=seed) for seed in range(4)]
    found = torch.zeros(3, dtype=torch.float64)
    for out in runs:
        found.index_add_(0, torch.cdist(out.x[:, d:].double(), family).argmin(1), out.weights.double() / 4)
    assert float((found - known).abs().max()) < (0.08 if gradient else 0.16)
    log_z = torch.stack([out.log_evidence for out in runs]).exp().mean().log()  # type: ignore[misc]
    assert abs(float(log_z) - evidence) < 0.5


def test_goals_that_are_no_measurements_are_left_alone() -> None:
    reward = rd.Reward(lambda x: x[:, 0], strength=1.0)
    cond = rd.condition(LAW.denoiser(PROCESS), [GOAL, reward], method="pigdm")
    assert len(cond.potentials) == 2 and "isotropic" in cond.method
    with pytest.raises(InputError, match="for measurements"):
        rd.condition(LAW.denoiser(PROCESS), reward, method="pigdm")


def test_bad_input() -> None:
    denoiser = LAW.denoiser(PROCESS)
    with pytest.raises(InputError, match=r"unknown method 'pigmd'.*Did you mean 'pigdm'"):
        rd.condition(denoiser, GOAL, method="pigmd")
    with pytest.raises(InputError, match=r"unknown option 'varience' of method 'pigdm'.*Did you mean 'variance'"):
        rd.condition(denoiser, GOAL, method="pigdm", varience=1.0)
    with pytest.raises(InputTypeError, match="evidence about a denoiser is a Potential"):
        rd.condition(denoiser, [GOAL, 3])
    with pytest.raises(InputError, match="no goals"):
        rd.condition(denoiser, [])
    with pytest.raises(InputError, match="steps= is for models"):
        rd.condition(denoiser, GOAL, steps=5)
    for name, options, text in (
        ("daps", {"covariance": "scalded"}, "'scaled'"),
        ("daps", {"move": "hcm"}, "'hmc'"),
        ("diffpir", {"zeta": 1.5}, "between 0 and 1"),
        ("diffpir", {"strength": 0.0}, "positive"),
        ("repaint", {"rounds": 0}, "at least 1"),
        ("dps", {"official": True, "zeta": -1.0}, "at least 0"),
        ("blind-dps", {"schedule": "alhpa"}, "'alpha'"),
        ("stsl", {"inner": -1}, "at least 0"),
        ("ddrm", {"eta": 2.0}, "between 0 and 1"),
    ):
        with pytest.raises(InputError, match=text):
            rd.sample(rd.condition(denoiser, GOAL, method=name, **options), 4, steps=3, progress=False)
    curved = Measurement([1.0], lambda x: x[:, :1] ** 2, noise=0.1)
    for name in ("ddrm", "replacement"):
        with pytest.raises(InputError, match="linear operator"):
            rd.sample(rd.condition(denoiser, curved, method=name), 4, steps=3, progress=False)
    with pytest.raises(InputError, match="linear operator"):
        rd.sample(rd.condition(denoiser, curved, method="daps", move="exact"), 4, steps=3, progress=False)
    assert isinstance(rd.condition(denoiser, curved, method="daps"), Steered)
