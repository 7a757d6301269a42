"""One thin slice through every mechanism: the same interfaces carry masks, Kalman smoothing and corrected products."""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.core.lin import Lin
from retrodict.core.noise import KeyedNoise
from retrodict.kernels import Factor, Gaussian, LinearGaussian, Quadratic


def _dense_smoother(
    A: torch.Tensor, Q: torch.Tensor, H: torch.Tensor, R: torch.Tensor, P0: torch.Tensor, y: torch.Tensor
):
    """Condition the joint Gaussian of a whole chain on its observations, by one dense solve."""
    n, d = len(y), len(A)
    mean_map = torch.zeros(n * d, n * d + d, dtype=torch.float64)  # states from (x0, w1..): unrolled by hand
    state = torch.zeros(d, n * d + d, dtype=torch.float64)
    state[:, :d] = torch.eye(d)
    for k in range(n):
        state = A @ state
        state[:, d + k * d : d + (k + 1) * d] += torch.eye(d)
        mean_map[k * d : (k + 1) * d] = state
    prior = torch.block_diag(P0, *[Q] * n)
    joint = mean_map @ prior @ mean_map.T
    observe = torch.block_diag(*[H] * n)
    total = observe @ joint @ observe.T + torch.block_diag(*[R] * n)
    gain = joint @ observe.T @ torch.linalg.inv(total)
    flat = y.flatten()
    post = joint - gain @ observe @ joint
    evidence = torch.distributions.MultivariateNormal(torch.zeros(len(flat), dtype=torch.float64), total).log_prob(flat)
    return (
        (gain @ flat).view(n, d),
        torch.stack([post[i * d : (i + 1) * d, i * d : (i + 1) * d] for i in range(n)]),
        evidence,
    )


def test_the_kernel_that_noises_images_also_smooths_a_chain():
    """push, pull and guide of the class that VP().kernel(s, t) returns give the Kalman smoother and evidence."""
    assert type(rd.VP().kernel(0.2, 0.7)) is LinearGaussian
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(3, 3, dtype=torch.float64, generator=generator) * 0.5
    root = torch.randn(3, 1, dtype=torch.float64, generator=generator)
    Q = root @ root.T  # singular: noise in one direction only
    H = torch.randn(2, 3, dtype=torch.float64, generator=generator)
    R, P0 = torch.diag(torch.tensor([0.3, 0.1], dtype=torch.float64)), torch.eye(3, dtype=torch.float64)
    y = torch.randn(7, 2, dtype=torch.float64, generator=generator)
    links = [
        link
        for value in y
        for link in (
            LinearGaussian(Lin.dense(A), torch.zeros(1, 3, dtype=torch.float64), Lin.dense(Q)),
            Factor(Quadratic.observe(value[None], Lin.dense(H), Lin.dense(R))),
        )
    ]
    chain = links[0]
    for link in links[1:]:
        chain = chain >> link
    guided, message = chain.pull()
    start, evidence = Gaussian(torch.zeros(1, 3, dtype=torch.float64), Lin.dense(P0)).fuse(message)
    laws = guided.laws(start)[::2]
    mean, cov, log_evidence = _dense_smoother(A, Q, H, R, P0, y)
    assert torch.allclose(torch.cat([law.mean for law in laws]), mean, atol=1e-10)
    assert torch.allclose(torch.stack([law.cov.value.reshape(3, 3) for law in laws]), cov, atol=1e-10)
    assert abs(float(evidence) - float(log_evidence)) < 1e-10
    x = start.sample(KeyedNoise(0, 1, dtype=torch.float64))
    _, weight = chain.guide(guided, x, guided.draw(KeyedNoise(1, 1, dtype=torch.float64), (3,)))
    assert float(weight.abs().max()) == 0  # exact guidance has no weight variance


def _right(x: torch.Tensor, edge: float) -> torch.Tensor:
    return (x[:, 0] > edge).double()


QU = rd.exact.GaussianMixture([0.25, 0.25, 0.5], [[-2.0], [1.0], [3.0]], [0.3, 0.3, 1.0], labels=[0, 0, 1])
Q1 = rd.exact.GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], [0.5, 0.5])
Q2 = rd.exact.GaussianMixture([0.2, 0.8], [[-1.0], [3.0]], [1.0, 0.6])


def _exact_share(log_density, edge: float) -> float:
    """Mass to the right of ``edge`` under an unnormalised density, by quadrature."""
    x = torch.linspace(-12, 12, 100_001, dtype=torch.float64)[:, None]
    weight = torch.softmax(log_density(x), 0)
    return float(weight[x[:, 0] > edge].sum())


def test_a_population_corrects_classifier_free_guidance():
    """Guidance at w = 2: the weighted population has the right mode weight, the plain heuristic has not.

    Eight runs of 2,000 particles have a standard error of about .006 on the mean: .02 is more than three of them
    (false alarm below .2%).
    """
    denoiser = QU.denoiser(rd.VP())
    conditional = rd.exact.GaussianMixture([0.5, 0.5], [[-2.0], [1.0]], [0.3, 0.3])
    exact = _exact_share(lambda x: 2 * conditional.log_prob(x) - QU.log_prob(x), -0.5)
    guided = rd.condition(denoiser, rd.Guidance(2.0))
    words = dict(solver="adams", options={"order": 1}, eta=1.0, grid="logsnr", steps=80, label=0, progress=False)
    runs = [rd.sample(guided, 2000, seed=s, **words) for s in range(8)]
    share = sum(float(r.mean(lambda x: _right(x, -0.5))) for r in runs) / len(runs)
    plain = rd.sample(denoiser, 8000, guidance=2.0, **words)
    assert runs[0].correction == "weighted" and plain.correction == "none"
    assert abs(exact - 0.440) < 1e-3
    assert abs(share - exact) < 0.02
    assert abs(float(_right(plain.x, -0.5).mean()) - exact) > 0.1


def test_a_population_corrects_a_product_of_two_experts():
    """q1 q2 with total weight 2: by (D1 + D2)/2, half the noise variance, and the covariance weight."""
    exact = _exact_share(lambda x: Q1.log_prob(x) + Q2.log_prob(x), 0.0)
    product = rd.Product([Q1.denoiser(rd.VP()), Q2.denoiser(rd.VP())])
    words = dict(solver="adams", options={"order": 2}, grid="logsnr", steps=60, progress=False)
    runs = [rd.sample(product, 2000, seed=s, eta=1.0, **words) for s in range(8)]
    share = sum(float(r.mean(lambda x: _right(x, 0.0))) for r in runs) / len(runs)
    plain = rd.sample(product, 8000, population=False, eta=0.0, **words)
    assert abs(share - exact) < 0.02
    assert abs(float(_right(plain.x, 0.0).mean()) - exact) > 0.02


@pytest.fixture(scope="module")
def masked_digits():
    """A masked process on binarised digits, with the same fit as everything else."""
    process = rd.Masked(2)
    small = {"hidden": 48, "depth": 2}
    return rd.fit(process, "binary-digits", network_options=small, steps=250, batch_size=64, lr=4e-3, progress=False)


def test_masked_digits_train_and_sample_through_the_same_verbs(masked_digits):
    """The samples carry the digits' pixel means far better than chance, and never a mask."""
    data = rd.load_data("binary-digits")
    samples = rd.sample(masked_digits, 256, steps=16, seed=0, progress=False)
    assert samples.x.shape == (256, 64) and int(samples.x.max()) <= 1
    gap = (samples.x.float().mean(0) - data.x.float().mean(0)).abs().mean()
    assert float(gap) < 0.08  # a fair coin at each pixel is off by .37
