"""The Gaussian data potential: identities in closed form, units, noise of any covariance, and bad input."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.data.scaling import Scale
from retrodict.denoisers import Denoiser, Joint
from retrodict.kernels import Belief
from retrodict.steering import Measurement, Node, Steered

covariances = importlib.import_module("retrodict.steering.covariances")
krylov = importlib.import_module("retrodict.steering.krylov")

GENERATOR = torch.Generator().manual_seed(0)
L = torch.randn(4, 4, generator=GENERATOR, dtype=torch.float64)
PRIOR = rd.exact.GaussianMixture([1.0], torch.tensor([[0.3, -1.0, 0.5, 2.0]]), (L @ L.T + 0.2 * torch.eye(4))[None])
A = torch.randn(2, 4, generator=GENERATOR, dtype=torch.float64)
Y = torch.tensor([0.7, -1.3], dtype=torch.float64)
X = torch.randn(5, 4, generator=GENERATOR, dtype=torch.float64) * 2
TIMES = (0.15, 0.5, 0.9)


class Plain(Denoiser):
    """A denoiser that keeps its covariance to itself, as networks do."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser.process, denoiser.shape)
        self.inner = denoiser

    def belief(self, x: torch.Tensor, t: float | torch.Tensor, **condition: object) -> Belief:
        return Belief(self.inner.belief(x, t).mean)


def mixture(seed: int, components: int = 4, d: int = 4) -> rd.exact.GaussianMixture:
    g = torch.Generator().manual_seed(seed)
    roots = torch.randn(components, d, d, generator=g, dtype=torch.float64) * 0.5
    means = 2 * torch.randn(components, d, generator=g, dtype=torch.float64)
    return rd.exact.GaussianMixture(torch.ones(components), means, roots @ roots.mT + 0.1 * torch.eye(d))


def steered(law: rd.exact.GaussianMixture, goal: Measurement, process: rd.GaussianPath) -> Steered:
    return Steered(law.denoiser(process), [goal])


def exact_log_h(law: rd.exact.GaussianMixture, process: rd.GaussianPath, x: torch.Tensor, t: float, sd: float) -> float:
    """log p(y | x_t) of a mixture: x_0 given x_t is one as well."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    given = law.posterior(alpha * torch.eye(4, dtype=torch.float64), x, sigma)
    S = A @ given.covariances @ A.T + sd**2 * torch.eye(2, dtype=torch.float64)
    y = torch.distributions.MultivariateNormal(given.means @ A.T, S).log_prob(Y)
    return float(torch.logsumexp(given.weights.log() + y, 0))


@pytest.mark.parametrize("process", [rd.VP(), rd.VE(sigma_max=20.0), rd.RectifiedFlow()])
@pytest.mark.parametrize("plain", [False, True])
def test_exact_covariance_is_the_exact_conditional_denoiser_on_a_gaussian_prior(
    process: rd.GaussianPath, plain: bool
) -> None:
    denoiser = PRIOR.denoiser(process)
    cond = Steered(Plain(denoiser) if plain else denoiser, [Measurement(Y, A, noise=0.4)])
    known = PRIOR.posterior(A, Y, 0.4).denoiser(process)
    for t in TIMES:
        belief = cond.belief(X, t)
        assert torch.allclose(belief.mean, known(X, t), rtol=0, atol=1e-9)
        log_h = [exact_log_h(PRIOR, process, x, t, 0.4) for x in X]
        assert torch.allclose(belief.log_h, torch.tensor(log_h, dtype=torch.float64), rtol=0, atol=1e-8)


def test_noise_as_numbers_and_as_a_matrix() -> None:
    process, sd = rd.VP(), torch.tensor([0.2, 0.9], dtype=torch.float64)
    R = torch.tensor([[0.3, 0.1], [0.1, 0.5]], dtype=torch.float64)
    for words, root in (({"noise": sd}, torch.diag(sd)), ({"covariance": R}, torch.linalg.cholesky(R))):
        white = torch.linalg.inv(root)
        goal = Measurement(Y, A, **words)  # type: ignore[arg-type]
        known = PRIOR.posterior(white @ A, white @ Y, 1.0).denoiser(process)
        assert torch.allclose(steered(PRIOR, goal, process)(X, 0.4), known(X, 0.4), rtol=0, atol=1e-9)
        law = torch.distributions.MultivariateNormal(X @ A.T, root @ root.T)
        assert torch.allclose(goal.likelihood(X), law.log_prob(Y), rtol=0, atol=1e-9)


def test_two_measurements_are_one_stacked() -> None:
    process = rd.VP()
    stacked = steered(PRIOR, Measurement(Y, A, noise=0.4), process)
    apart = Steered(
        PRIOR.denoiser(process), [Measurement(Y[:1], A[:1], noise=0.4), Measurement(Y[1:], A[1:], noise=0.4)]
    )
    again = Steered(
        steered(PRIOR, Measurement(Y[:1], A[:1], noise=0.4), process), [Measurement(Y[1:], A[1:], noise=0.4)]
    )
    for other in (apart, again):
        a, b = stacked.belief(X, 0.5), other.belief(X, 0.5)
        assert torch.allclose(a.mean, b.mean, rtol=0, atol=1e-9)
        assert torch.allclose(a.log_h, b.log_h, rtol=0, atol=1e-9)  # type: ignore[arg-type]
        assert torch.allclose(stacked.likelihood(X), other.likelihood(X), rtol=0, atol=1e-9)


def test_isotropic_is_exact_on_an_isotropic_prior() -> None:
    process = rd.VE(sigma_max=20.0)
    law = rd.exact.GaussianMixture([1.0], torch.ones(1, 4), [2.5])
    for gain in ("posterior", "same"):
        iso = steered(law, Measurement(Y, A, noise=0.4).using("isotropic", gain=gain), process)
        full = steered(law, Measurement(Y, A, noise=0.4), process)
        for t in TIMES:
            a, b = iso.belief(X, t), full.belief(X, t)
            assert torch.allclose(a.mean, b.mean, rtol=0, atol=1e-10)
            assert torch.allclose(a.log_h, b.log_h, rtol=0, atol=1e-10)  # type: ignore[arg-type]


def test_row_sums_are_exact_for_one_number() -> None:
    law, process, one = mixture(1), rd.VP(), Measurement(Y[:1], A[:1], noise=0.3)
    a, b = (steered(law, one.using(name), process).belief(X, 0.5) for name in ("row-sums", "exact"))
    assert torch.allclose(a.mean, b.mean, rtol=0, atol=1e-10)


def test_jensen_is_a_lower_bound_that_closes_with_the_noise() -> None:
    """Always below log p(y | x_t); on a Gaussian prior its trace is constant, so it moves as DPS does."""
    process = rd.VE(sigma_max=20.0)
    for seed in range(4):
        law = mixture(seed)
        cond = steered(law, Measurement(Y, A, noise=0.3).using("jensen"), process)
        gaps = []
        for t in (0.01, 0.3, 0.6):
            known = torch.tensor([exact_log_h(law, process, x, t, 0.3) for x in X], dtype=torch.float64)
            log_h = cond.belief(X, t).log_h
            assert log_h is not None and bool((log_h <= known + 1e-9).all())
            gaps.append((known - log_h).max())
        assert gaps[0] < 0.1 * gaps[1]
    for t in TIMES:
        a, b = (
            Steered(PRIOR.denoiser(process), [Measurement(Y, A, noise=0.4).using(name)]).belief(X, t)
            for name in ("jensen", "none")
        )
        assert torch.allclose(a.mean, b.mean, rtol=1e-10, atol=1e-10)


def test_jensen_differentiates_the_trace() -> None:
    """Its drift is the gradient of its own log h, by differences; so is that of DPS."""
    law, process, t, h = mixture(2), rd.VP(), 0.4, 1e-5
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    for name, inner in (("jensen", True), ("jensen", False), ("none", False)):
        denoiser = law.denoiser(process) if inner else Plain(law.denoiser(process))
        cond = Steered(denoiser, [Measurement(Y, A, noise=0.5).using(name)])
        belief = cond.belief(X, t)
        for i in range(4):
            step = h * torch.eye(4, dtype=torch.float64)[i]
            up, down = cond.belief(X + step, t).log_h, cond.belief(X - step, t).log_h
            slope = (up - down) / (2 * h) * sigma**2 / alpha  # type: ignore[operator]
            shift = (belief.mean - belief.unsteered)[:, i]
            assert torch.allclose(shift, slope, rtol=1e-5, atol=1e-5)


def test_clip_bounds_the_shift() -> None:
    process = rd.VE(sigma_max=20.0)
    cond = steered(PRIOR, Measurement(Y, A, noise=0.01).using("none", clip=0.5), process)
    belief = cond.belief(X, 0.9)
    limit = 0.5 * float(PRIOR.covariance.diagonal().mean() * 4) ** 0.5
    assert torch.allclose((belief.mean - belief.unsteered).norm(dim=1), torch.full((5,), limit, dtype=torch.float64))


@pytest.mark.parametrize("name", ["exact", "isotropic"])
def test_systems_solved_by_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """GMRES finds what the decomposition finds; the log determinant alone is left out."""
    law, process, goal = mixture(3), rd.VP(), Measurement(Y, A, noise=0.3).using(name)
    dense = steered(law, goal, process).belief(X, 0.5)
    monkeypatch.setattr(covariances, "DENSE", 0)
    monkeypatch.setattr(importlib.import_module("retrodict.steering.measurement"), "DECOMPOSED", 0)
    products = steered(law, goal, process).belief(X, 0.5)
    assert torch.allclose(dense.mean, products.mean, rtol=0, atol=1e-9)
    assert not torch.allclose(dense.log_h, products.log_h)  # type: ignore[arg-type]


def test_gmres_on_matrices_that_are_not_symmetric() -> None:
    g = torch.Generator().manual_seed(3)
    M = torch.eye(6, dtype=torch.float64) + 0.3 * torch.randn(3, 6, 6, generator=g, dtype=torch.float64)
    b = torch.randn(3, 6, generator=g, dtype=torch.float64)
    product = lambda v: (M @ v.unsqueeze(2)).squeeze(2)  # noqa: E731
    x = krylov.gmres(product, b, 6)
    assert torch.allclose(product(x), b, rtol=0, atol=1e-9)
    residuals = [float((product(krylov.gmres(product, b, k)) - b).norm()) for k in (1, 2, 4)]
    assert residuals[0] > residuals[1] > residuals[2] > 1e-9


def test_a_diagonal_gram_is_a_shortcut() -> None:
    """Block means say that A A^T is diagonal; the same operator as a matrix is decomposed."""
    means = rd.operators.downsample(2)
    law = rd.exact.GaussianMixture(
        torch.ones(3), torch.randn(3, 16, generator=torch.Generator().manual_seed(1)), [0.5, 1, 2]
    )

    class Image(Denoiser):
        def __init__(self) -> None:
            super().__init__(rd.VP(), (1, 4, 4))
            self.inner = law.denoiser(self.process)

        def belief(self, x: torch.Tensor, t: float | torch.Tensor, **condition: object) -> Belief:
            return Belief(self.inner.belief(x.flatten(1), t).mean.reshape(x.shape))

    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = torch.tensor([0.1, 0.5, -0.2, 1.0], dtype=torch.float64)
    short = Steered(Image(), [Measurement(y.reshape(1, 2, 2), means, noise=0.2).using("isotropic")])
    goal = short.potentials[0]
    assert isinstance(goal, Measurement) and goal.spectrum is not None and goal.spectrum[1] is None
    full = Steered(Image(), [Measurement(y, means.matrix((1, 4, 4)), noise=0.2).using("isotropic")])
    a, b = short.belief(x, 0.5), full.belief(x, 0.5)
    assert torch.allclose(a.mean, b.mean, rtol=0, atol=1e-9)
    assert torch.allclose(a.log_h, b.log_h, rtol=0, atol=1e-9)  # type: ignore[arg-type]


def test_variables_side_by_side_have_a_variance_each() -> None:
    """Two isotropic Gaussians of different width: the isotropic C is then exact, of linear and of other operators."""
    process, means, v = rd.VP(), torch.tensor([[0.3, -1.0, 0.5, 2.0]], dtype=torch.float64), (2.0, 0.15)
    laws = [rd.exact.GaussianMixture([1.0], m, [w]) for m, w in zip(means.split(2, 1), v)]
    joint = Joint([law.denoiser(process) for law in laws])
    C = torch.diag(torch.tensor([v[0], v[0], v[1], v[1]], dtype=torch.float64))
    law = rd.exact.GaussianMixture([1.0], means, C[None])
    for operator in (A, lambda x: x @ A.T):
        cond = Steered(joint, [Measurement(Y, operator, noise=0.4).using("isotropic")])
        for t in TIMES:
            belief = cond.belief(X, t)
            known = torch.tensor([exact_log_h(law, process, x, t, 0.4) for x in X], dtype=torch.float64)
            assert torch.allclose(belief.mean, law.posterior(A, Y, 0.4).denoiser(process)(X, t), rtol=0, atol=1e-9)
            assert belief.log_h is not None and torch.allclose(belief.log_h, known, rtol=0, atol=1e-9)


def test_variables_decided_at_different_levels_are_told(caplog: pytest.LogCaptureFixture) -> None:
    narrow, wide = (rd.exact.GaussianMixture([1.0], [[0.0]], [v]).denoiser(rd.VP()) for v in (1e-4, 1.0))
    product = Measurement([1.0], lambda v: v[:, :1] * v[:, 1:], noise=0.1)
    Steered(Joint([wide, wide]), [product])
    assert not caplog.records
    Steered(Joint([wide, narrow]), [product])
    assert "variances 1, 0.0001" in caplog.text


def test_derivatives_taken_together_and_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """C from one batched backward pass, in parts, and through a function that does not allow it."""

    class Alone(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            seen.append(grads[0].shape)
            return grads[0] * float(grads[0].isfinite().all())  # asks for a value, which a batch of vectors has not

    class Opaque(Plain):
        def belief(self, x: torch.Tensor, t: float | torch.Tensor, **condition: object) -> Belief:
            return Belief(Alone.apply(super().belief(x, t).mean))  # type: ignore[arg-type]

    seen: list[torch.Size] = []
    denoiser, goal = mixture(5).denoiser(rd.VP()), Measurement(Y, A, noise=0.3)
    known = Steered(denoiser, [goal]).belief(X, 0.5)
    for plain, together in ((Plain(denoiser), 16), (Plain(denoiser), 1), (Opaque(denoiser), 16)):
        monkeypatch.setattr(importlib.import_module("retrodict.steering.potential"), "TOGETHER", together)
        belief = Steered(plain, [goal]).belief(X, 0.5)
        assert torch.allclose(belief.mean, known.mean, rtol=0, atol=1e-9)
        assert torch.allclose(belief.log_h, known.log_h, rtol=0, atol=1e-9)  # type: ignore[arg-type]
    assert len(seen) >= 3  # the two rows of A one by one, and the shift


@pytest.mark.parametrize("scale", [Scale(3.0, 2.0), Scale([0.5, -1.0, 2.0, 0.0], [2.0, 0.5, 1.5, 3.0])])
def test_units(scale: Scale) -> None:
    """A denoiser with a scale, asked in the user's units, is the model's asked in its own."""
    process = rd.VP()
    model = PRIOR.denoiser(process)
    inner = Steered(model, [Measurement(Y, A, noise=0.4)]).belief(X, 0.5)
    scaled = PRIOR.denoiser(process)
    scaled.scale = scale
    # y = A z + n and z = (u - shift)/scale: in the user's units the operator is A/scale and y moves by the shift
    s, shift = scale.scale.double().expand(4), scale.shift.double().expand(4)
    B = A / s
    goal = Measurement(Y + B @ shift, B, noise=0.4)
    outer = Steered(scaled, [goal]).belief(X, 0.5)
    assert torch.allclose(inner.mean, outer.mean, rtol=0, atol=1e-9)
    assert torch.allclose(inner.log_h, outer.log_h, rtol=0, atol=1e-9)  # type: ignore[arg-type]
    iso = [
        Steered(d, [m.using("isotropic", gain=gain)]).belief(X, 0.5).mean
        for gain in ("posterior", "same")
        for d, m in ((model, Measurement(Y, A, noise=0.4)), (scaled, goal))
    ]
    assert torch.allclose(iso[0], iso[1], rtol=0, atol=1e-9)
    assert torch.allclose(iso[2], iso[3], rtol=0, atol=1e-9)


def test_draws_given_the_measurement() -> None:
    """N(D, C) given y has the exact conditional's mean and covariance; every entry within 4.5 standard errors (a false
    alarm of about 1e-4)."""
    process, t, n = rd.VP(), 0.5, 10_000
    known = PRIOR.posterior(A, Y, 0.4).denoiser(process).belief(X[:1], t)
    cond = Steered(PRIOR.denoiser(process), [Measurement(Y, A, noise=0.4)])
    goal = cond.potentials[0]
    assert isinstance(goal, Measurement)
    x = X[:1].expand(n, -1)
    node = Node(x, t, PRIOR.denoiser(process).belief(x, t), process, None)
    draws = goal.draw(node, KeyedNoise(1, n, dtype=torch.float64))
    C = known.covariance().value[0]
    z = (draws.mean(0) - known.mean[0]) / (C.diagonal() / n).sqrt()
    spread = (C.diagonal()[:, None] * C.diagonal() + C**2) / n
    assert float(z.abs().max()) < 4.5
    assert float(((torch.cov(draws.T) - C) / spread.sqrt()).abs().max()) < 4.5


def test_non_linear_operators_are_linearised() -> None:
    """An affine function given as a black box has the same potential as its matrix."""
    process = rd.VP()
    function = Measurement(Y, lambda x: x @ A.T + 1.0, noise=0.4)
    matrix = Measurement(Y - 1.0, A, noise=0.4)
    for name in ("exact", "isotropic", "none"):
        a, b = (steered(mixture(1), goal.using(name), process).belief(X, 0.5) for goal in (function, matrix))
        assert torch.allclose(a.mean, b.mean, rtol=0, atol=1e-9)
        assert torch.allclose(a.log_h, b.log_h, rtol=0, atol=1e-9)  # type: ignore[arg-type]


def test_noise_zero() -> None:
    """A hard measurement is met by the pseudo-inverse, and as a likelihood has the documented floor."""
    denoiser = PRIOR.denoiser(rd.VP())
    hard = Steered(denoiser, [Measurement(Y, A).using("isotropic", gain="same", hard=True)])
    assert torch.allclose(hard(X, 0.5) @ A.T, Y.expand(5, 2), rtol=0, atol=1e-9)
    residual = Y - X @ A.T
    for floor, used in ((None, 0.02), (0.5, 0.5)):
        goal = Steered(denoiser, [Measurement(Y, A, floor=floor)]).potentials[0]
        known = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), used).log_prob(residual).sum(1)
        assert torch.allclose(goal.likelihood(X), known, rtol=1e-9)


def test_bad_input() -> None:
    denoiser = PRIOR.denoiser(rd.VP())
    with pytest.raises(InputError, match=r"\(2,\).*y has shape \(3,\)"):
        rd.condition(denoiser, Measurement(torch.zeros(3), A, noise=1.0))
    with pytest.raises(InputError, match=r"\(2, 5\).*\(4,\)"):
        rd.condition(denoiser, Measurement(torch.zeros(2), torch.zeros(2, 5), noise=1.0))
    for noise in (-1.0, math.nan, [0.1, 0.0], [0.1, 0.2, 0.3]):
        with pytest.raises(InputError, match="noise"):
            Measurement(Y, A, noise=noise)
    with pytest.raises(InputError, match="one of the two"):
        Measurement(Y, A, noise=1.0, covariance=torch.eye(2))
    for R in (torch.eye(3), -torch.eye(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])):
        with pytest.raises(InputError, match="covariance"):
            Measurement(Y, A, covariance=R)
    with pytest.raises(InputError, match="not finite"):
        Measurement(torch.tensor([math.nan, 0.0]), A, noise=1.0)
    with pytest.raises(InputError, match=r"unknown covariance 'isotrpic'.*'isotropic'"):
        Measurement(Y, A, noise=1.0).using("isotrpic")
    with pytest.raises(InputError, match="scalar Gaussian path"):
        Measurement(Y, A, noise=1.0).check((4,), rd.Masked(5))


def test_no_state_has_this_y() -> None:
    """Noise 0 and a y outside the range of the operator: rank-deficient, or a coordinate that is never seen."""
    denoiser = PRIOR.denoiser(rd.VP())
    twice = torch.cat([A[:1], 2 * A[:1]])
    rd.condition(denoiser, Measurement(torch.tensor([0.5, 1.0]), twice))
    with pytest.raises(InputError, match="noise 0, and no state has this y"):
        rd.condition(denoiser, Measurement(torch.tensor([0.5, 1.2]), twice))
    rd.condition(denoiser, Measurement(torch.tensor([0.5, 1.2]), twice, noise=0.1))
    nothing = torch.zeros(2, 4)
    nothing[0, 0] = 1
    with pytest.raises(InputError, match="no state has this y"):
        rd.condition(denoiser, Measurement(torch.tensor([0.5, 1.2]), nothing))
