"""Population options: a window of times, and redrawing a part; no mass is lost or made, and the answer stays right."""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.noise import Noise
from retrodict.exact import GaussianMixture

LAW = GaussianMixture([0.4, 0.6], [[-1.5], [1.0]], [0.3, 0.5])
LOG_W = torch.tensor([[0.3, -2.0, 1.1, 0.0, -0.4, 0.9], [0.0, 0.1, 0.2, -5.0, 2.0, 0.3]], dtype=torch.float64)


class Fixed(Noise):
    """One uniform for every slot."""

    def __init__(self, u: float, batch: int) -> None:
        self.u, self.batch = u, batch

    def uniform(self, shape=()):
        return torch.full((self.batch, *shape), self.u, dtype=torch.float64)


@pytest.mark.parametrize("partial", [1.0, 0.67, 0.34])
def test_redrawing_keeps_the_expected_mass_of_every_particle(partial):
    """Averaged over 2,000 even positions of the one uniform of systematic resampling."""
    crowd = rd.Population(partial=partial)
    mass, n = torch.zeros_like(LOG_W), 2000
    for i in range(n):
        picks, log_w, taken = crowd.redraw(LOG_W, Fixed((i + 0.5) / n, 2))
        mass = mass.scatter_add(1, picks, (log_w + taken[:, None]).exp() / n)
        assert torch.allclose((log_w.exp().mean(1).log() + taken).exp(), LOG_W.exp().mean(1), rtol=1e-12)
    assert torch.allclose(mass, LOG_W.exp(), atol=1.5e-3)


def test_a_part_is_the_heaviest_and_the_lightest():
    picks, log_w, taken = rd.Population(partial=0.67).redraw(LOG_W, Fixed(0.5, 2))
    kept = torch.tensor([[0, 3], [1, 2]])  # the two of six whose weights are in the middle
    assert torch.equal(picks.gather(1, kept), kept) and torch.equal(log_w.gather(1, kept), LOG_W.gather(1, kept))
    assert bool((taken == 0).all())
    touched = [sorted(set(range(6)) - set(row.tolist())) for row in kept]
    for g, rows in enumerate(touched):
        assert torch.allclose(log_w[g, rows], LOG_W[g, rows].exp().mean().log())


def test_one_population_may_be_poor_and_another_not():
    crowd = rd.Population(threshold=0.7)
    effective = torch.tensor([3.0, 5.0])
    assert crowd.poor(LOG_W, effective, 0.4).tolist() == [True, False]
    window = rd.Population(threshold=0.7, active=(0.2, 0.5))
    assert window.poor(LOG_W, effective, 0.6).tolist() == [False, False]
    assert window.poor(LOG_W, effective, 0.5).tolist() == [True, False]


def goal():
    return rd.condition(LAW.denoiser(rd.VP()), rd.Reward(lambda x: 1.3 * x[:, 0]))


WORDS = {"solver": "ddim", "eta": 1.0, "grid": "logsnr", "steps": 40, "progress": False}


@pytest.fixture(scope="module")
def base():
    """P(x > 0) under exp(1.3 x), and its evidence, of what the base plan really samples: 8,000 draws, weighted."""
    x = rd.sample(LAW.denoiser(rd.VP()), 8_000, seed=99, **WORDS).x[:, 0]
    w = (1.3 * x).exp()
    share = float(w[x > 0].sum() / w.sum())
    error = float((w * ((x > 0).double() - share)).std() / w.mean()) / len(x) ** 0.5
    return share, error, float(w.mean()), float(w.std()) / len(x) ** 0.5


@pytest.mark.parametrize(
    "crowd",
    [rd.Population(active=(0.1, 0.6)), rd.Population(partial=0.5), rd.Population(size=300, partial=0.3, threshold=0.8)],
    ids=["window", "half", "groups"],
)
def test_the_answer_does_not_depend_on_the_options(crowd, base):
    """6 runs of 1,000 particles, or 40 populations of 300: shares and evidence within 4.5 errors of both estimates."""
    share, share_error, z, z_error = base
    if crowd.size is None:
        runs = [rd.sample(goal(), 1000, seed=s, population=crowd, **WORDS) for s in range(6)]
        shares = torch.stack([r.mean(lambda x: (x[:, 0] > 0).double()) for r in runs]).double()
        evidence = torch.cat([r.log_evidence.reshape(-1) for r in runs]).exp()
    else:
        run = rd.sample(goal(), 40, seed=0, population=crowd, **WORDS)
        shares, evidence = (run.x[:, 0] > 0).double(), run.log_evidence.exp()
    for found, truth, error in ((shares, share, share_error), (evidence, z, z_error)):
        one = (truth * (1 - truth)) ** 0.5 if truth < 1 and crowd.size is not None else float(found.std())
        spread = one / len(found) ** 0.5
        assert abs(float(found.mean()) - truth) < 4.5 * (spread**2 + error**2) ** 0.5


def test_outside_the_window_nothing_is_redrawn():
    """A window that no evaluation falls into is the run without resampling, bitwise."""
    never = rd.sample(goal(), 200, population=rd.Population(threshold=0.0), **WORDS)
    window = rd.sample(goal(), 200, population=rd.Population(threshold=1.0, active=(0.9999, 0.99991)), **WORDS)
    always = rd.sample(goal(), 200, population=rd.Population(threshold=1.0), **WORDS)
    assert torch.equal(never.x, window.x) and torch.equal(never.log_weights, window.log_weights)
    assert not torch.equal(never.x, always.x)


@pytest.mark.parametrize(
    "words, message",
    [
        ({"active": (0.5, 0.2)}, "window"),
        ({"active": (0.5,)}, "window"),
        ({"partial": 0.0}, "above 0"),
        ({"candidates": 4, "partial": 0.5}, "leave out the other"),
    ],
)
def test_bad_options_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        rd.Population(**words)
