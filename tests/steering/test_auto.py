"""``method="auto"``: what it chooses, and that the choice is right where the posterior is known."""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.denoisers import Denoiser
from retrodict.kernels import Belief
from retrodict.steering import Measurement

#: Nine components on a grid, of which the measurement of the first coordinate leaves three.
LAW = rd.exact.GaussianMixture(
    torch.arange(1.0, 10.0), [(4.0 * i, 4.0 * j) for i in (-1, 0, 1) for j in (-1, 0, 1)], torch.full((9,), 0.6)
)
A, Y, NOISE = torch.tensor([[1.0, 0.3]], dtype=torch.float64), torch.tensor([-3.0], dtype=torch.float64), 0.3
POSTERIOR = LAW.posterior(A, Y, NOISE)
PROCESS = rd.VE(sigma_min=0.01, sigma_max=40.0)


class Network(Denoiser):
    """Stands for a network: it knows its mean alone, in single precision, and has parameters."""

    def __init__(self, law: rd.exact.GaussianMixture, process: rd.GaussianPath) -> None:
        super().__init__(process, (law.dim,))
        self.inner = law.denoiser(process)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def belief(self, x: torch.Tensor, t: float | torch.Tensor, **condition: object) -> Belief:
        return Belief(self.weight * self.inner.belief(x, t).mean)


def total_variation(out: rd.Samples) -> float:
    found = out.weights @ torch.softmax(POSTERIOR.component_log_prob(out.x), -1)
    return float((found - POSTERIOR.weights).abs().sum() / 2)


@pytest.mark.parametrize("denoiser", [LAW.denoiser(PROCESS), Network(LAW, PROCESS)], ids=["oracle", "network"])
def test_auto_finds_the_posterior(denoiser: Denoiser) -> None:
    """Weights of the modes, the mean and the evidence, 800 particles; without weights the modes are wrong."""
    cond = rd.condition(denoiser, Measurement(Y, A, noise=NOISE))
    runs = [rd.sample(cond, 800, steps=80, grid="karras", progress=False, seed=seed) for seed in range(3)]
    assert sum(total_variation(out) for out in runs) / 3 < 0.04
    spread = POSTERIOR.covariance.diagonal().sqrt()
    mean = sum(out.mean().double() for out in runs) / 3
    assert float(((mean - POSTERIOR.mean) / spread).abs().max()) < 0.1
    S = (A @ LAW.covariances @ A.T).flatten() + NOISE**2
    per = torch.distributions.Normal((LAW.means @ A.T).flatten(), S.sqrt()).log_prob(Y)
    known = float(torch.logsumexp(LAW.weights.log() + per, 0))
    evidence = torch.stack([out.log_evidence for out in runs]).exp().mean().log()  # type: ignore[misc]
    assert abs(float(evidence) - known) < 0.1
    alone = rd.sample(cond, 800, steps=80, grid="karras", population=False, progress=False)
    assert total_variation(alone) > 0.08


def test_evaluations_where_none_are_asked_for() -> None:
    """Three times those of plain generation: at as few the modes' weights err by twice as much."""
    cond = rd.condition(LAW.denoiser(PROCESS), Measurement(Y, A, noise=NOISE))
    assert rd.sample(LAW.denoiser(PROCESS), 2, progress=False).nfe == 20
    usual = [rd.sample(cond, 800, progress=False, seed=seed) for seed in range(6)]
    fewer = [rd.sample(cond, 800, nfe=20, progress=False, seed=seed) for seed in range(6)]
    assert all(out.nfe == 60 for out in usual)
    assert 2 * sum(total_variation(out) for out in usual) < sum(total_variation(out) for out in fewer)


def test_what_is_chosen() -> None:
    """The exact covariance where a belief has one or few numbers were measured; else the isotropic one."""
    wide = rd.exact.GaussianMixture([1.0], torch.zeros(1, 20), [1.0])
    seen = torch.eye(20)
    for denoiser, m, words in (
        (wide.denoiser(PROCESS), 20, "exact"),
        (Network(wide, PROCESS), 16, "exact"),
        (Network(wide, PROCESS), 17, "isotropic"),
    ):
        cond = rd.condition(denoiser, Measurement(torch.zeros(m), seen[:m], noise=1.0))
        assert cond.method == f"auto: {words} covariance, as drift and weight"
        out = rd.sample(cond, 4, steps=4, progress=False)
        assert out.correction == "weighted" and out.method == cond.method and out.log_evidence is not None
    reward = rd.condition(LAW.denoiser(PROCESS), rd.Reward(lambda x: x[:, 0], strength=1.0))
    assert reward.method == "auto"


def test_the_variance_of_the_data_is_known() -> None:
    """From an oracle's law, from what a network was preconditioned with, else 1 in the model's units."""
    y = Measurement(torch.zeros(1), torch.ones(1, 2), noise=0.5)
    wrapped = rd.Denoiser.wrap(torch.nn.Identity(), PROCESS, predicts="edm", data_std=0.5, shape=(2,))
    atoms = rd.exact.Atoms(torch.tensor([[0.0, 0.0], [2.0, 4.0]])).denoiser(PROCESS)
    oracle = LAW.denoiser(PROCESS)
    known = float(LAW.covariance.diagonal().mean())
    for denoiser, v in ((oracle, known), (wrapped, 0.25), (Network(LAW, PROCESS), 1.0), (atoms, 2.5)):
        goal = rd.condition(denoiser, y, method="pigdm").potentials[0]
        assert goal.spread.variance == pytest.approx(v)
    x = torch.ones(1, 2, dtype=torch.float64)
    given, same = (rd.condition(oracle, y, method="pigdm", variance=v)(x, 0.5) for v in (4.0, known))
    assert torch.allclose(same, rd.condition(oracle, y, method="pigdm")(x, 0.5)) and not torch.allclose(same, given)


def test_a_trained_network_is_steered_in_the_units_of_its_data() -> None:
    """Single precision, a scale, a measurement of more numbers than are decomposed by derivatives: samples meet it."""
    torch.manual_seed(0)
    x = torch.randn(256, 24) @ torch.randn(24, 24) * 3 + 10
    denoiser = rd.fit(rd.VP(), x, steps=60, seed=0, progress=False)
    goal = Measurement(x[0, :18] + 0.0, torch.eye(24)[:18], noise=1.0)
    out = rd.sample(rd.condition(denoiser, goal), 32, steps=40, progress=False)
    assert out.x.dtype == torch.float32 and "isotropic" in out.method
    residual = float((out.mean()[:18] - x[0, :18]).square().mean().sqrt())
    prior = float((x[:, :18] - x[0, :18]).square().mean().sqrt())
    assert residual < 0.25 * prior


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"y has shape \(2,\)"):
        rd.condition(LAW.denoiser(PROCESS), Measurement(torch.zeros(2), A, noise=1.0))
    with pytest.raises(InputError, match="unknown option 'clip' of method 'auto'; known: none"):
        rd.condition(LAW.denoiser(PROCESS), Measurement(Y, A, noise=1.0), clip=1.0)
