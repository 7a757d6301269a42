"""Laws of training times: their draws follow their densities, and importance sampling is unbiased."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.objectives import Importance, time_laws
from retrodict.objectives.times import LogitNormal, NoiseLogNormal, TimeLaw, UniformLogSNR
from retrodict.processes import Interpolant, Masked

LAWS = {
    "uniform": TimeLaw(),
    "interval": TimeLaw(0.2, 0.7),
    "logit-normal": LogitNormal(-0.5, 0.8),
    "edm": NoiseLogNormal(),
    "log-snr": UniformLogSNR(),
    "importance": Importance(bins=4),
}
LAWS["importance"].update(torch.linspace(0.01, 0.99, 400, dtype=torch.float64), torch.linspace(0, 3, 400))


def draw(law, n, path, seed=0, stratified=True):
    law.stratified = stratified
    return law.sample(n, path, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("path", [rd.VP(), rd.RectifiedFlow(), rd.EDM()], ids=repr)
@pytest.mark.parametrize("name", LAWS)
def test_draws_follow_the_density(name, path):
    """The density integrates to one, and its integral is the distribution of the draws (false alarm 1e-4)."""
    law = LAWS[name]
    grid = torch.sigmoid(torch.linspace(-24, 24, 40_001, dtype=torch.float64))  # finest at both ends
    density = law.density(grid, path).numpy()
    if name == "interval":
        density = density * ((grid > 0.2) & (grid < 0.7)).numpy()
    if name == "log-snr":
        low, high = law.range(path)
        density = density * ((path.log_snr(grid) > low) & (path.log_snr(grid) < high)).numpy()
    steps = grid.diff().numpy()
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * steps)])
    assert abs(cumulative[-1] - 1) < 0.003
    t = draw(law, 4000, path, stratified=False).numpy()
    assert t.min() >= 0 and t.max() <= 1
    assert stats.kstest(t, lambda v: np.interp(v, grid.numpy(), cumulative / cumulative[-1])).pvalue > 1e-4


@pytest.mark.parametrize("name", LAWS)
def test_stratified_batches_have_one_time_in_each_stratum(name):
    law, path, n = LAWS[name], rd.VP(), 64
    edges = law.quantile(torch.linspace(1e-9, 1 - 1e-9, n + 1, dtype=torch.float64), path)
    t = draw(law, n, path).sort(descending=bool(edges[0] > edges[-1])).values
    low, high = torch.minimum(edges[1:], edges[:-1]), torch.maximum(edges[1:], edges[:-1])
    assert bool(((t >= low - 1e-12) & (t <= high + 1e-12)).all())
    assert not draw(law, n, path).equal(draw(law, n, path, seed=1))


def test_stratified_times_are_not_ordered_like_the_batch():
    order = torch.stack([draw(TimeLaw(), 32, rd.VP(), seed=s) for s in range(50)]).mean(0)
    assert float(order.min()) > 0.25 and float(order.max()) < 0.75


def test_edm_times_are_log_normal_in_the_noise():
    path = rd.EDM()
    t = draw(NoiseLogNormal(), 4000, path, stratified=False)
    assert stats.kstest(path.sigma(t).log().numpy(), stats.norm(-1.2, 1.2).cdf).pvalue > 1e-4


def test_importance_sampling_is_unbiased_and_lowers_the_variance():
    path, loss = rd.VP(), lambda t: torch.exp(-30 * (t - 0.3) ** 2) + 0.01
    law = Importance(bins=32, stratified=False)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        t = law.sample(256, path, generator)
        law.update(t, loss(t))
    means, plain = [], []
    for _ in range(200):
        t = law.sample(256, path, generator)
        means.append((loss(t) * law.correction(t)).mean())
        plain.append(loss(torch.rand(256, generator=generator, dtype=torch.float64)).mean())
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    means, plain, exact = torch.stack(means), torch.stack(plain), loss(grid).mean()
    assert abs(float(means.mean() - exact)) < 4 * float(means.std()) / 200**0.5  # false alarm 6e-5
    assert float(means.var()) < 0.2 * float(plain.var())
    # the profile is the root mean square of the losses of each bin
    centres = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    expected = 0.1 / 32 + 0.9 * loss(centres) / loss(centres).sum()
    assert float((law.probabilities / expected - 1).abs().max()) < 0.1


def test_importance_learns_a_root_mean_square_and_not_a_mean():
    """A rare large loss counts by its square."""
    law = Importance(bins=2, share=1e-6, decay=0.0)
    t = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9], dtype=torch.float64)
    law.update(t, torch.tensor([0.0, 0.0, 0.0, 4.0, 1.0, 1.0, 1.0, 1.0]))
    assert torch.allclose(law.probabilities, torch.tensor([2 / 3, 1 / 3], dtype=torch.float64), atol=1e-5)


def test_the_profile_is_saved_with_a_checkpoint():
    path, a, b = rd.VP(), Importance(), Importance()
    t = draw(a, 512, path)
    a.update(t, t**2)
    objective = rd.objectives.Regression(path, times=a)
    again = rd.objectives.Regression(path, times=b)
    assert not draw(a, 64, path).equal(draw(b, 64, path))
    again.load_state_dict(objective.state_dict())
    assert draw(a, 64, path).equal(draw(b, 64, path))
    with pytest.raises(InputError, match="the profile has 32 bins; this law has 8"):
        Importance(bins=8).load_state_dict(a.state_dict())
    assert rd.objectives.Regression(path).state_dict() == {"times": {}}


def test_before_anything_is_learned_importance_is_uniform():
    law = Importance(bins=8)
    assert torch.allclose(law.probabilities, torch.full((8,), 1 / 8, dtype=torch.float64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeLaw(0.5, 0.2), "training times lie in"),
        (lambda: time_laws["logit-normal"](std=0.0), "std of a logit-normal law is positive"),
        (lambda: time_laws["edm"](std=-1.0), "std of a log-normal law is positive"),
        (lambda: time_laws["log-snr"](span=0.0), "span of the log-SNR is positive"),
        (lambda: time_laws["importance"](bins=0), "at least 1"),
        (lambda: time_laws["importance"](share=0.0), r"share in \(0, 1\]"),
        (lambda: UniformLogSNR().sample(2, Masked(4), torch.Generator()), "use times='stratified'"),
        (lambda: UniformLogSNR().sample(2, Interpolant(), torch.Generator()), "use times='stratified'"),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
