"""The weights of a steered population: right for any potential and any drift, and what a run says of itself."""

from __future__ import annotations

import math

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError, NonFiniteError
from retrodict.data.scaling import Scale
from retrodict.solvers.plan import Eval, Plan, Row
from retrodict.steering import Measurement, Node, Potential, Steered, Tilt

MEAN, VARIANCE = 0.8, 1.7
PRIOR = rd.exact.GaussianMixture([1.0], [[MEAN]], [VARIANCE])
PROCESS = rd.VP()


class Odd(Potential):
    """The likelihood of ``y = x0 + N(0, sd^2)``, and on the way an h and a shift that have nothing to do with it."""

    def __init__(self, y: float, sd: float, strength: float, push: float) -> None:
        self.y, self.sd, self.strength, self.push = y, sd, strength, push

    def likelihood(self, x0: torch.Tensor) -> torch.Tensor:
        return -0.5 * ((x0 - self.y) / self.sd).flatten(1).double().square().sum(1)

    def at(self, node: Node) -> Tilt:
        log_h = self.strength * torch.sin(3 * node.mean).sum(1).double()
        small = min(1.0, node.sigma / node.alpha)  # of the order of what is left open at this level
        return Tilt(log_h, self.push * small * torch.cos(2 * node.mean))


def base_law(plan: Plan) -> tuple[float, float]:
    """Mean and variance of what the plan makes of the Gaussian prior without steering: the denoiser is linear."""
    path: rd.GaussianPath = plan.process  # type: ignore[assignment]
    alpha, sigma = float(path.alpha(1.0)), float(path.sigma(1.0))
    assert alpha < 0.01
    state = {0: (0.0, 0.0, [1.0 * sigma])}  # constant, unused, coefficients of independent normals
    known: dict[int, tuple[float, float, list[float]]] = dict(state)
    outputs: dict[int, tuple[float, list[float]]] = {}
    for c in plan.code:
        if isinstance(c, Eval):
            constant, _, z = known[c.x]
            gain = c.alpha * VARIANCE / (c.alpha**2 * VARIANCE + c.sigma**2)
            outputs[c.k] = (MEAN + gain * (constant - c.alpha * MEAN), [gain * v for v in z])
        elif isinstance(c, Row):
            terms = [(known[r][0], known[r][2], a) for r, a in c.x.items()]
            terms += [(*outputs[k], b) for k, b in c.d.items()]
            width = max(len(z) for _, z, _ in terms)
            total = [sum(a * (z[i] if i < len(z) else 0.0) for _, z, a in terms) for i in range(width)]
            known[c.dst] = (sum(a * v for v, _, a in terms), 0.0, total + list(c.z.values()))
    constant, _, z = known[plan.out]
    return constant, sum(v * v for v in z)


@pytest.mark.parametrize(("strength", "push"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.4), (0.7, 0.4)])
def test_evidence_is_unbiased_for_any_potential_and_any_shift(strength: float, push: float) -> None:
    """E Z_hat = Z, Z the mean of exp l under the base chain, in closed form; 1,500 populations of 8, resampled when
    half degenerate.  Within 4 standard errors: a false alarm of 6e-5 a case."""
    y, sd, steps = 1.5, 0.6, 12
    plan = rd.plan("ddim", PROCESS, steps=steps, eta=1.0)
    mean, variance = base_law(plan)
    total = variance + sd**2
    known = math.log(sd / math.sqrt(total)) - 0.5 * (y - mean) ** 2 / total
    cond = Steered(PRIOR.denoiser(PROCESS), [Odd(y, sd, strength, push)])
    out = rd.sample(cond, 1500, plan=plan, population=rd.Population(size=8), progress=False, seed=4)
    ratio = (out.log_evidence - known).exp()  # type: ignore[operator]
    error = float(ratio.std() / len(ratio) ** 0.5)
    assert error < 0.05
    assert abs(float(ratio.mean()) - 1) < 4 * error


def test_posterior_of_a_gaussian_prior() -> None:
    """Weighted means and covariances in four dimensions, exact in the limit of steps and particles."""
    g = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=g, dtype=torch.float64)
    law = rd.exact.GaussianMixture([1.0], [[0.3, -1.0, 0.5, 2.0]], (root @ root.T + 0.2 * torch.eye(4))[None])
    A, y = torch.randn(2, 4, generator=g, dtype=torch.float64), torch.tensor([0.7, -1.3], dtype=torch.float64)
    post = law.posterior(A, y, 0.5)
    cond = rd.condition(law.denoiser(rd.VE(sigma_min=0.01, sigma_max=40.0)), Measurement(y, A, noise=0.5))
    out = rd.sample(cond, 2000, steps=120, grid="karras", progress=False)
    scale = post.covariance.diagonal().sqrt()
    assert float(((out.mean() - post.mean) / scale).abs().max()) < 0.12
    centred = out.x - out.mean()
    cov = torch.einsum("n,ni,nj->ij", out.weights, centred, centred)
    assert float((cov - post.covariance).norm() / post.covariance.norm()) < 0.12
    evidence = torch.distributions.MultivariateNormal(A @ law.mean, A @ law.covariance @ A.T + 0.25 * torch.eye(2))
    assert out.log_evidence is not None
    assert abs(float(out.log_evidence) - float(evidence.log_prob(y))) < 0.1
    assert out.correction == "weighted" and float(out.ess) > 1200  # type: ignore[arg-type]


def test_exact_potential_leaves_no_variance_in_the_weights() -> None:
    """With the exact h as drift and weight all that is left is the step size: the variance falls as their number."""
    spread = []
    for steps in (40, 160):
        cond = Steered(PRIOR.denoiser(PROCESS), [Measurement([1.5], noise=0.6)])
        crowd = rd.Population(threshold=0.0)
        out = rd.sample(cond, 1000, steps=steps, population=crowd, progress=False, solver="ddim", eta=1.0)
        spread.append(float(out.log_weights.var()))
    assert spread[1] < 0.35 * spread[0] and spread[1] < 0.05
    worse = Steered(PRIOR.denoiser(PROCESS), [Measurement([1.5], noise=0.6).using("isotropic", variance=20.0)])
    out = rd.sample(worse, 1000, steps=160, population=rd.Population(threshold=0.0), progress=False)
    assert float(out.log_weights.var()) > 5 * spread[1]


def test_the_same_posterior_in_any_units() -> None:
    """A run in the user's units is the model's run, stretched."""
    plain, scaled = PRIOR.denoiser(PROCESS), PRIOR.denoiser(PROCESS)
    scaled.scale = Scale(3.0, 4.0)
    a = rd.sample(rd.condition(plain, Measurement([1.5], noise=0.6)), 200, steps=30, progress=False)
    b = rd.sample(rd.condition(scaled, Measurement([1.5 * 4 + 3], noise=0.6 * 4)), 200, steps=30, progress=False)
    assert torch.allclose(b.x, 4 * a.x + 3, rtol=1e-5, atol=1e-5)
    assert torch.allclose(a.log_weights, b.log_weights + math.log(4), rtol=0, atol=1e-5)
    assert a.log_evidence is not None and b.log_evidence is not None
    assert float(b.log_evidence) == pytest.approx(float(a.log_evidence) - math.log(4), abs=1e-5)


def test_potentials_of_several_kinds_add_up() -> None:
    """An odd potential beside a measurement: values, drifts and likelihoods are sums."""
    one, two = Measurement([1.5], noise=0.6), Odd(0.3, 1.0, 0.5, 0.2)
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    first, second, both = (Steered(PRIOR.denoiser(PROCESS), goals) for goals in ([one], [two], [one, two]))
    a, b, c = (s.belief(x, 0.5) for s in (first, second, both))
    assert torch.allclose(a.log_h + b.log_h, c.log_h)  # type: ignore[operator]
    assert torch.allclose(a.mean + b.mean - a.unsteered, c.mean)
    assert torch.allclose(first.likelihood(x) + second.likelihood(x), both.likelihood(x))
    again = Steered(first, [two])
    assert torch.equal(again.belief(x, 0.5).mean, c.mean) and len(again.potentials) == 2


def test_without_a_goal_nothing_changes() -> None:
    """A = 0 says nothing: the samples are the unconditional ones, to the last bit, and the weights are equal."""
    denoiser = PRIOR.denoiser(PROCESS)
    words = {"steps": 20, "solver": "ddim", "eta": 1.0, "progress": False, "seed": 3}
    plain = rd.sample(denoiser, 50, **words)
    cond = rd.condition(denoiser, Measurement([0.0], [[0.0]], noise=1.0), method="dps")
    out = rd.sample(cond, 50, **words)
    assert torch.equal(plain.x, out.x)
    assert float(out.log_weights.std()) < 1e-12


def test_what_a_run_says_of_itself() -> None:
    cond = rd.condition(PRIOR.denoiser(PROCESS), Measurement([1.5], noise=0.6))
    weighted = rd.sample(cond, 20, steps=10, progress=False)
    assert weighted.correction == "weighted" and weighted.ess is not None and weighted.log_evidence is not None
    assert "exact covariance" in weighted.method and "correction='weighted'" in repr(weighted)
    alone = rd.sample(cond, 20, steps=10, population=False, progress=False)
    assert alone.correction == "none" and alone.log_evidence is None
    assert rd.sample(cond, 1, steps=10, progress=False).correction == "none"
    each = rd.sample(cond, 3, steps=10, population=rd.Population(size=8), progress=False)
    assert each.correction == "weighted" and each.log_evidence is not None and each.log_evidence.shape == (3,)


def test_bad_input() -> None:
    cond = rd.condition(PRIOR.denoiser(PROCESS), Measurement([1.5], noise=0.6))
    with pytest.raises(InputError, match="population of one"):
        rd.sample(cond, 1, steps=10, population=True)
    with pytest.raises(InputError, match=r"without fresh noise.*eta=1.*population=False"):
        rd.sample(cond, 20, solver="ddim", eta=0.0, steps=10)
    with pytest.raises(InputError, match="without fresh noise"):
        rd.sample(cond, 20, solver="dpm++", nfe=10)
    assert rd.sample(cond, 20, solver="ddim", eta=0.0, steps=10, population=False, progress=False).correction == "none"
    weighs = rd.condition(PRIOR.denoiser(PROCESS), Measurement([1.5], noise=0.6), method="pigdm", gradient=False)
    with pytest.raises(InputError, match="only weigh"):
        rd.sample(weighs, 20, steps=10, population=False)
    # potentials that only weigh have nothing to price, so that a deterministic plan will do
    rd.sample(weighs, 20, solver="ddim", eta=0.0, steps=10, progress=False)


def test_a_potential_that_is_nan_stops_the_run() -> None:
    broken = Odd(0.0, 1.0, math.nan, 0.0)
    with pytest.raises(NonFiniteError, match="potential is NaN at t = 1"):
        rd.sample(Steered(PRIOR.denoiser(PROCESS), [broken]), 4, steps=5, progress=False)
