"""Oracles against closed forms reached by other routes: autograd of densities, dense Gaussians, enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import retrodict as rd
from processes.paths import INTERPOLANTS, NAMED, structured
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.exact import Atoms, GaussianMixture
from retrodict.processes import Interpolant, Masked, TokenBridge

WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
MEANS = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [0.2, -1.0]], dtype=torch.float64)
DENSE = torch.tensor(
    [[[0.2, 0.05], [0.05, 0.1]], [[0.1, -0.02], [-0.02, 0.3]], [[0.3, 0.0], [0.0, 0.05]]], dtype=torch.float64
)
FORMS = {"dense": DENSE, "diagonal": DENSE.diagonal(dim1=-2, dim2=-1), "isotropic": DENSE[:, 0, 0]}
MIXTURES = {form: GaussianMixture(WEIGHTS, MEANS, cov) for form, cov in FORMS.items()}
LAW = MIXTURES["dense"]
POINTS = LAW.sample(12, seed=4) * 1.5


def reference(law: GaussianMixture) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(law.weights), MultivariateNormal(law.means, law.covariances))


@pytest.mark.parametrize("form", MIXTURES)
def test_density_and_moments_of_a_mixture(form):
    law = MIXTURES[form]
    assert torch.allclose(law.log_prob(POINTS), reference(law).log_prob(POINTS), atol=1e-12)
    assert torch.allclose(law.mean, reference(law).mean, atol=1e-12)
    assert torch.allclose(law.covariance.diagonal(), reference(law).variance, atol=1e-12)
    n = 20_000
    x, k = law.sample(n, seed=1, return_components=True)
    assert stats.chisquare(torch.bincount(k).numpy(), (n * law.weights).numpy()).pvalue > 1e-4
    for j in range(3):  # the squared distance in each component is a chi-square (false alarm 1e-4 each)
        centred = x[k == j] - law.means[j]
        distance = (centred * torch.linalg.solve(law.covariances[j], centred.T).T).sum(1)
        assert stats.kstest(distance.numpy(), stats.chi2(2).cdf).pvalue > 1e-4
    assert law.sample(5, seed=1).equal(x[:5])  # draw i is draw i of every larger sample


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("form", MIXTURES)
def test_the_posterior_mean_and_covariance_are_derivatives_of_the_density(form, name):
    """Tweedie: D = (x + sigma^2 grad)/alpha and Cov = sigma^2/alpha^2 (I + sigma^2 Hessian) of log p_t."""
    law, path, t = MIXTURES[form], NAMED[name], 0.37
    alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
    eye = torch.eye(2, dtype=torch.float64)
    noised = MixtureSameFamily(
        Categorical(law.weights), MultivariateNormal(alpha * law.means, alpha**2 * law.covariances + sigma**2 * eye)
    )
    x = (
        alpha * POINTS + sigma * torch.randn(12, 2, generator=torch.Generator().manual_seed(0)).double()
    ).requires_grad_()
    (gradient,) = torch.autograd.grad(noised.log_prob(x).sum(), x, create_graph=True)
    hessian = torch.stack([torch.autograd.grad(gradient[:, i].sum(), x, retain_graph=True)[0] for i in (0, 1)], 1)
    belief = law.denoiser(path).belief(x.detach(), t)
    scale = sigma / alpha
    assert torch.allclose(belief.mean, ((x + sigma**2 * gradient) / alpha).detach(), atol=1e-9 * (1 + scale))
    expected = scale**2 * (eye + sigma**2 * hessian)
    assert torch.allclose(belief.covariance().value, expected, atol=1e-8 * (1 + scale**2))
    assert torch.allclose(law.marginal(path, t).log_prob(x), noised.log_prob(x), atol=1e-11)
    assert law.denoiser(path)(x.detach(), t).equal(belief.mean)


@pytest.mark.parametrize("form", MIXTURES)
def test_draws_follow_the_posterior(form):
    """Mean and covariance of joint draws at one state, within four standard errors; the mixture is bimodal there."""
    law, path, n = MIXTURES[form], rd.VP(), 8000
    x = torch.tensor([[0.2, 0.1]], dtype=torch.float64).expand(n, 2)
    belief = law.denoiser(path).belief(x, 0.3)
    draws = belief.draw(KeyedNoise(0, n, dtype=torch.float64))
    cov = belief.covariance().value[0]
    z = (draws - belief.mean[0]) @ torch.linalg.inv(torch.linalg.cholesky(cov)).T
    assert bool((z.mean(0).abs() < 4 / n**0.5).all())
    products = torch.stack([z[:, 0] ** 2 - 1, z[:, 1] ** 2 - 1, z[:, 0] * z[:, 1]])
    assert bool((products.mean(1).abs() < 4 * products.std(1) / n**0.5).all())


def test_a_posterior_sample_reproduces_the_joint_law():
    """x0 drawn given x_t has the law of x0 again: a two-sample test per coordinate (false alarm 1e-4)."""
    path, n = rd.RectifiedFlow(), 4000
    noise = KeyedNoise(1, n, dtype=torch.float64)
    x_t = path.corrupt(LAW.sample(n, seed=2), 0.6, noise)
    again = LAW.denoiser(path).belief(x_t, 0.6).draw(noise)
    fresh = LAW.sample(n, seed=3)
    for i in range(2):
        assert stats.ks_2samp(again[:, i].numpy(), fresh[:, i].numpy()).pvalue > 1e-4


@pytest.mark.parametrize("kind", ["linear", "trigonometric", "encoding-decoding"])
def test_both_ends_of_a_gaussian_pair(kind):
    """Against the conditional mean of the joint Gaussian of (x0, x1, x_t)."""
    path, t = INTERPOLANTS[kind], 0.4
    a, b, s = (float(c(t)) for c in (path.alpha, path.beta, path.sigma))
    left, right = GaussianMixture([1.0], MEANS[:1], DENSE[:1]), GaussianMixture([1.0], MEANS[1:2], DENSE[1:2])
    belief = left.denoiser(path, x1=right).belief(POINTS, t)
    total = a**2 * DENSE[0] + b**2 * DENSE[1] + s**2 * torch.eye(2, dtype=torch.float64)
    residual = torch.linalg.solve(total, (POINTS - a * MEANS[0] - b * MEANS[1]).T)
    assert torch.allclose(belief.mean, MEANS[0] + a * (DENSE[0] @ residual).T, atol=1e-12)
    assert torch.allclose(belief.x1, MEANS[1] + b * (DENSE[1] @ residual).T, atol=1e-12)


def test_mixtures_at_both_ends_average_over_pairs_of_components():
    """Against self-normalised sums over a fine grid of (x0, x1), in one dimension."""
    path, t = Interpolant("linear"), 0.45
    a, b, s = (float(c(t)) for c in (path.alpha, path.beta, path.sigma))
    left = GaussianMixture([0.3, 0.7], [[-1.0], [1.0]], [0.1, 0.2])
    right = GaussianMixture([0.6, 0.4], [[0.5], [-2.0]], [0.3, 0.1])
    grid = torch.linspace(-5, 5, 801, dtype=torch.float64)
    prior = left.log_prob(grid[:, None])[:, None] + right.log_prob(grid[:, None])[None]
    for x in (-1.0, 0.1, 0.9):
        w = torch.exp(prior - (x - a * grid[:, None] - b * grid[None]) ** 2 / (2 * s**2))
        belief = left.denoiser(path, x1=right).belief(torch.tensor([[x]], dtype=torch.float64), t)
        assert abs(float(belief.mean) - float((w.sum(1) * grid).sum() / w.sum())) < 1e-9
        assert abs(float(belief.x1) - float((w.sum(0) * grid).sum() / w.sum())) < 1e-9


def test_labels_restrict_the_mixture():
    law = GaussianMixture(WEIGHTS, MEANS, DENSE, labels=[0, 1, 0])
    path, denoiser = rd.VP(), law.denoiser(rd.VP())
    assert denoiser.conditions == {"label": 2}
    part = GaussianMixture(WEIGHTS[[0, 2]], MEANS[[0, 2]], DENSE[[0, 2]])
    assert torch.allclose(denoiser(POINTS, 0.4, label=0), part.denoiser(path)(POINTS, 0.4), atol=1e-12)
    assert torch.allclose(denoiser(POINTS, 0.4, label=2), LAW.denoiser(path)(POINTS, 0.4), atol=1e-12)
    mixed = denoiser(POINTS, 0.4, label=torch.arange(12) % 3)
    for label in range(3):
        assert torch.allclose(mixed[label::3], denoiser(POINTS[label::3], 0.4, label=label), atol=1e-12)
    with pytest.raises(InputError, match=r"labels are 0..1, or 2 for none; got 3..3"):
        denoiser(POINTS, 0.4, label=3)


def test_the_posterior_under_a_linear_observation_is_a_mixture():
    """Against Bayes' rule on densities: log p(x) + log N(y; A x, noise^2) - log p(x | y) is constant."""
    A, y = torch.tensor([[1.0, 0.5]], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    posterior = LAW.posterior(A, y, 0.4)
    likelihood = -0.5 * ((POINTS @ A.T - y) / 0.4).square().sum(1)
    gap = LAW.log_prob(POINTS) + likelihood - posterior.log_prob(POINTS)
    assert float(gap.std()) < 1e-10


@pytest.mark.parametrize("name", NAMED)
def test_oracles_are_total(name):
    """Finite far off the support and at both ends of time."""
    far = torch.tensor([[1e4, -1e4], [0.0, 0.0], [1e-9, 1e4]], dtype=torch.float64)
    atoms = Atoms(MEANS, WEIGHTS)
    for denoiser, t in itertools.product((LAW.denoiser(NAMED[name]), atoms.denoiser(NAMED[name])), (1e-6, 0.5, 1.0)):
        assert bool(denoiser(far, t).isfinite().all())
    assert torch.allclose(LAW.denoiser(NAMED[name])(POINTS, 0.0), POINTS, atol=1e-2)


def test_single_precision_states_get_single_precision_means():
    assert LAW.denoiser(rd.VP())(POINTS.float(), 0.5).dtype == torch.float32
    assert Atoms(MEANS).denoiser(rd.VP())(POINTS.float(), 0.5).dtype == torch.float32


@pytest.mark.parametrize("size", [1, 5])
def test_a_state_has_the_same_answer_in_every_batch(size):
    denoiser = LAW.denoiser(rd.VP())
    assert denoiser(POINTS[:size], 0.4).equal(denoiser(POINTS, 0.4)[:size])


# -- atoms ----------------------------------------------------------------------------------------------------

DATA = torch.tensor([[-1.0, 0.3, 0.0, 0.5], [0.4, 0.4, 1.0, -1.0], [1.5, -0.2, 0.0, 0.1]], dtype=torch.float64)


@pytest.mark.parametrize("name", ["vp-linear", "ve", "diagonal", "spectral", "dense", "interpolant"])
def test_atoms_under_every_gaussian_path(name):
    """Posterior weights from a dense density written out; the paths may have matrix coefficients and a known x1."""
    g = torch.Generator().manual_seed(0)
    path = INTERPOLANTS["linear"] if name == "interpolant" else NAMED[name] if name in NAMED else structured(name)
    x1 = torch.randn(3, 4, generator=g, dtype=torch.float64) if name == "interpolant" else None
    law = Atoms(DATA, WEIGHTS, x1=x1)
    x, t = torch.randn(5, 4, generator=g, dtype=torch.float64), 0.4
    log_p = torch.stack(
        [
            MultivariateNormal(*_moments(path, t, DATA[i : i + 1], None if x1 is None else x1[i : i + 1])).log_prob(x)
            for i in range(3)
        ],
        1,
    )
    p = torch.softmax(log_p + WEIGHTS.log(), 1)
    belief = law.denoiser(path).belief(x, t)
    assert torch.allclose(belief.mean, p @ DATA, atol=1e-10)
    second = torch.einsum("bn,ni,nj->bij", p, DATA, DATA) - belief.mean[:, :, None] * belief.mean[:, None]
    assert torch.allclose(belief.covariance().value, second, atol=1e-10)
    if x1 is not None:
        assert torch.allclose(belief.x1, p @ x1, atol=1e-10)
    draws = belief.draw(KeyedNoise(0, 5))
    assert all(bool((d == DATA).all(1).any()) for d in draws)


def _moments(path, t, x0, x1):
    kernel = path.kernel(0.0, t, x1)
    covariance = torch.stack([kernel.Q.mv(e[None])[0] for e in torch.eye(4, dtype=torch.float64)], -1)
    return kernel.mean(x0)[0], (covariance + covariance.T) / 2


def test_atoms_of_independent_ends_with_the_other_one_known():
    """x1 is a condition, one a state: the same as moving the state by B x1."""
    path, law = INTERPOLANTS["linear"], Atoms(DATA, WEIGHTS)
    g = torch.Generator().manual_seed(2)
    x, x1 = torch.randn(2, 5, 4, generator=g, dtype=torch.float64)
    belief = law.denoiser(path).belief(x, 0.4, x1=x1)
    moved = law.denoiser(path).belief(x - 0.4 * x1, 0.4, x1=torch.zeros_like(x1))
    assert torch.allclose(belief.mean, moved.mean, atol=1e-12) and belief.x1 is x1
    distance = ((x - 0.4 * x1)[:, None] - 0.6 * DATA).square().sum(-1) / (2 * 0.24)
    p = torch.softmax(WEIGHTS.log() - distance, 1)
    assert torch.allclose(belief.mean, p @ DATA, atol=1e-12)


def test_atoms_of_any_shape_with_times_of_their_own():
    images = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path, law = rd.VP(), Atoms(images)
    x, t = images + 0.3, torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=torch.float64)
    together = law.denoiser(path)(x, t)
    for i in range(4):
        alone = law.denoiser(path)(x[i : i + 1], float(t[i]))
        assert torch.allclose(together[i], alone[0], atol=1e-12)
    with pytest.raises(InputError, match="offers no posterior covariance"):
        law.denoiser(path).belief(x, t).covariance()


def test_atoms_with_labels():
    law = Atoms(DATA, WEIGHTS, labels=[0, 1, 1])
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    denoiser = law.denoiser(rd.VP())
    part = Atoms(DATA[1:], WEIGHTS[1:]).denoiser(rd.VP())
    assert torch.allclose(denoiser(x, 0.5, label=1), part(x, 0.5), atol=1e-12)
    assert torch.allclose(denoiser(x, 0.5, label=0), DATA[:1].expand(4, 4), atol=1e-12)
    assert torch.allclose(denoiser(x, 0.5, label=2), Atoms(DATA, WEIGHTS).denoiser(rd.VP())(x, 0.5), atol=1e-12)
    with pytest.raises(InputError, match=r"labels are 0..1, or 2 for none"):
        denoiser(x, 0.5, label=torch.tensor([0, 1, 2, 3]))


@pytest.mark.parametrize("kind", [Masked, TokenBridge])
def test_token_posteriors_by_enumeration(kind):
    sequences = torch.tensor([[0, 1], [0, 2], [1, 1], [2, 2]])
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    process, t = kind(3), 0.6
    sources = None if kind is Masked else torch.tensor([[0, 1], [2, 1], [0, 0], [2, 1]])
    law = Atoms(sequences, weights, x1=sources)
    keep = float(process.keep(t))
    for x in itertools.product(range(process.classes), repeat=2):
        state = torch.tensor([x])
        likelihood = torch.ones(4, dtype=torch.float64)
        for n, l in itertools.product(range(4), range(2)):
            other = 3 if sources is None else int(sources[n, l])
            likelihood[n] *= keep * (x[l] == int(sequences[n, l])) + (1 - keep) * (x[l] == other)
        if float(likelihood.sum()) == 0:
            continue  # off the support: see the next test
        p = weights * likelihood / (weights * likelihood).sum()
        belief = law.denoiser(process).belief(state, t)  # of a bridge: when its source is not known
        expected = torch.zeros(2, 3, dtype=torch.float64)
        for n in range(4):
            expected[torch.arange(2), sequences[n]] += p[n]
        assert torch.allclose(belief.mean[0], expected, atol=1e-12)
        for source in () if sources is None else sources.unique(dim=0):
            given = p * (sources == source).all(1)
            if float(given.sum()) == 0:
                continue
            expected = torch.zeros(2, 3, dtype=torch.float64)
            for n in range(4):
                expected[torch.arange(2), sequences[n]] += given[n] / given.sum()
            belief = law.denoiser(process).belief(state, t, x1=source.unsqueeze(0))
            assert torch.allclose(belief.mean[0], expected, atol=1e-12)


def test_a_state_off_the_support_is_explained_by_the_nearest_atoms():
    law = Atoms(torch.tensor([[0, 0, 0], [1, 1, 1]]))
    belief = law.denoiser(Masked(2)).belief(torch.tensor([[0, 0, 1]]), 0.5)
    assert bool(belief.mean.isfinite().all())
    assert torch.allclose(belief.mean[0, :, 0], torch.ones(3, dtype=torch.float64), atol=1e-9)


def test_entropy_and_draws_of_atoms():
    law = Atoms(DATA, WEIGHTS)
    assert abs(law.entropy() - float(stats.entropy(WEIGHTS.numpy()))) < 1e-12
    n = 6000
    x = law.sample(n, seed=1)
    counts = torch.stack([(x == d).all(1).sum() for d in DATA])
    assert stats.chisquare(counts.numpy(), (n * WEIGHTS).numpy()).pvalue > 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GaussianMixture([0.5], MEANS, DENSE), "3 means need as many weights"),
        (lambda: GaussianMixture([0.5, -0.1, 0.6], MEANS, DENSE), "weights of a mixture are positive"),
        (lambda: GaussianMixture(WEIGHTS, MEANS, torch.ones(2, 2)), "covariances have shape"),
        (lambda: GaussianMixture(WEIGHTS, MEANS, torch.tensor([0.1, -0.2, 0.3])), "positive semi-definite"),
        (lambda: GaussianMixture(WEIGHTS, MEANS, DENSE, labels=[0]), "as many labels"),
        (lambda: GaussianMixture(WEIGHTS, MEANS[None], DENSE), "means have shape"),
        (lambda: LAW.denoiser(rd.VP(), x1=LAW), "exactly for a path with two ends"),
        (lambda: LAW.denoiser(Interpolant()), "exactly for a path with two ends"),
        (lambda: LAW.denoiser(Masked(3)), "needs a scalar Gaussian path"),
        (
            lambda: LAW.denoiser(Interpolant(), x1=GaussianMixture([1.0], [[0.0]], [1.0])),
            "both ends have one dimension",
        ),
        (lambda: LAW.posterior([[1.0]], [0.0], 0.1), r"A has shape \(m, 2\)"),
        (lambda: LAW.posterior([[1.0, 0.0]], [0.0, 1.0], 0.1), r"y has shape \(1,\)"),
        (lambda: Atoms([1.0, 2.0]), "data have shape"),
        (lambda: Atoms(DATA, [0.5, 0.5]), "3 atoms need as many weights"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
