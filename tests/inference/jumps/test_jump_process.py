"""Jump processes given data: enumeration by matrix exponentials, derivatives, and laws of whole paths."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from torch import Tensor
from torch.distributions import Normal

from retrodict.core.errors import InputError
from retrodict.inference import Observed, condition_model
from retrodict.inference.jumps import JumpPosterior, JumpProcess
from retrodict.kernels import Finite, rates_of

K = 3
TIMES = [0.3, 0.35, 1.6, 4.0]
MEANS = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)


def rates(seed: int = 0) -> Tensor:
    return rates_of(torch.rand(K, K, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def seen(x: Tensor) -> Normal:
    return Normal(MEANS[x], 0.7)


PRIOR = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
Y = [0.2, float("nan"), 2.0, 1.1]


def process(Q: Tensor | None = None, **options) -> JumpProcess:
    return JumpProcess(rates() if Q is None else Q, PRIOR, seen, **options)


def forward(Q: np.ndarray, y=Y, times=TIMES, at: float | None = None) -> tuple[np.ndarray, float]:
    """Weights of the states at the time ``at`` (by default the last) by exponentials, and the evidence."""
    marks = sorted({*times, *([] if at is None else [at])})
    p, now, kept = np.diag(PRIOR.numpy()), 0.0, None  # rows: the state that the wanted weights are about
    paths = PRIOR.numpy()
    for t in marks:
        E = linalg.expm(Q * (t - now))
        paths = paths @ E
        p = p @ E if kept is not None else p
        now = t
        if at is not None and t == at:
            p, kept = np.diag(paths), True
            paths = paths.copy()
        if t in times and not math.isnan(y[times.index(t)]):
            g = stats.norm(MEANS.numpy(), 0.7).pdf(y[times.index(t)])
            paths, p = paths * g, p * g
    return (p.sum(1) if at is not None else paths), float(paths.sum())


def test_evidence_and_laws_by_exponentials():
    """At observations, between them, and at one that was missing."""
    post = condition_model(process(), Observed(Y, TIMES))
    assert isinstance(post, JumpPosterior) and post.exact and post.method == "exact"
    Q = rates().numpy()
    assert abs(float(post.log_evidence) - math.log(forward(Q)[1])) < 1e-12
    smoothed = post.smooth().probabilities[0]
    between = [0.0, 0.1, 0.35, 1.6, 3.1]
    anywhere = post.smooth(between).probabilities[0]
    for found, t in [*zip(smoothed, TIMES), *zip(anywhere, between)]:
        weights, evidence = forward(Q, at=t)
        assert np.abs(found.numpy() - weights / evidence).max() < 1e-12
    with pytest.raises(InputError, match="times between 0 and 4"):
        post.smooth([5.0])


def test_series_side_by_side_equal_the_series_alone():
    model = process()
    ys, times = [Y, Y[:2], [1.0]], [TIMES, [0.5, 0.9], [2.0]]
    together = condition_model(model, Observed([np.array(y) for y in ys], times))
    whole = together.expected()
    wanted = [0.0, 0.25]
    for s in range(3):
        alone = condition_model(model, Observed(ys[s], times[s]))
        assert torch.allclose(alone.log_evidence[0], together.log_evidence[s], atol=1e-12)
        one = alone.expected()
        for name in ("jumps", "dwell", "start"):
            assert torch.allclose(getattr(one, name)[0], getattr(whole, name)[s], atol=1e-10)
        a, b = alone.smooth(wanted).probabilities[0], together.smooth(wanted).probabilities[s]
        assert torch.allclose(a, b, atol=1e-12)


def test_rates_that_change_in_time():
    """Two pieces: the chain of exponentials, with a break between observations and one at an observation."""
    Q = [rates(1).numpy(), rates(2).numpy(), rates(3).numpy()]
    breaks = [1.0, 1.6]
    model = process(torch.stack([torch.from_numpy(q) for q in Q]), breaks=breaks)
    post = condition_model(model, Observed(Y, TIMES))
    p = PRIOR.numpy()
    edges = [(0.0, 0.3, 0), (0.3, 0.35, 0), (0.35, 1.0, 0), (1.0, 1.6, 1), (1.6, 4.0, 2)]
    for a, b, piece in edges:
        p = p @ linalg.expm(Q[piece] * (b - a))
        if b in TIMES and not math.isnan(Y[TIMES.index(b)]):
            p = p * stats.norm(MEANS.numpy(), 0.7).pdf(Y[TIMES.index(b)])
    assert abs(float(post.log_evidence) - math.log(p.sum())) < 1e-12
    dwell = post.expected().dwell[0].sum(-1)
    assert torch.allclose(dwell, torch.tensor([1.0, 0.6, 2.4]).double(), atol=1e-10)
    jumps = post.trajectories(3000, seed=1).jumps(K)[:, 0]
    gap = (jumps.mean(0) - post.expected().jumps[0].sum(0)).abs()
    assert bool((gap <= 4.5 * jumps.std(0) / 3000**0.5).all())


def test_exact_observations_and_tables():
    """The default law sees the state itself; an emission table; a known start."""
    Q = rates().numpy()
    post = condition_model(JumpProcess(rates(), PRIOR), Observed([2, -1, 0], [0.5, 1.0, 2.0]))
    E = linalg.expm
    expected = (PRIOR.numpy() @ E(Q * 0.5))[2] * E(Q * 1.5)[2, 0]
    assert abs(float(post.log_evidence) - math.log(expected)) < 1e-12
    table = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
    model = JumpProcess(rates(), PRIOR, Finite.of(table))
    post = condition_model(model, Observed([1, 0], [0.5, 2.0]), "exact", {"start": 1})
    g = table.numpy()
    expected = ((E(Q * 0.5)[1] * g[:, 1]) @ E(Q * 1.5) * g[:, 0]).sum()
    assert abs(float(post.log_evidence) - math.log(expected)) < 1e-12
    with pytest.raises(InputError, match="probability zero"):
        stuck = JumpProcess(torch.zeros(2, 2), [0.5, 0.5])
        _ = condition_model(stuck, Observed([0, 1], [0.5, 2.0])).log_evidence


def test_expected_jumps_and_dwell_times_by_van_loan():
    """Each interval by one exponential of [[Q', a h'], [0, Q']]: another computation than the derivative."""
    Q = rates().numpy()
    post = condition_model(process(), Observed(Y, TIMES))
    found = post.expected()
    g = [np.ones(K) if math.isnan(y) else stats.norm(MEANS.numpy(), 0.7).pdf(y) for y in Y]
    edges = [0.0, *TIMES]
    a, forwards = PRIOR.numpy(), []
    for i in range(4):
        forwards.append(a)
        a = (a @ linalg.expm(Q * (edges[i + 1] - edges[i]))) * g[i]
    h, total = np.ones(K), np.zeros((K, K))
    for i in range(3, -1, -1):
        h = g[i] * h
        D = edges[i + 1] - edges[i]
        block = np.block([[Q.T, np.outer(forwards[i], h)], [np.zeros((K, K)), Q.T]])
        total += linalg.expm(block * D)[:K, K:]
        h = linalg.expm(Q * D) @ h
    total /= a.sum()
    off = Q * total
    np.fill_diagonal(off, 0.0)
    assert np.abs(found.jumps[0, 0].numpy() - off).max() < 1e-11
    assert np.abs(found.dwell[0, 0].numpy() - np.diag(total)).max() < 1e-11
    assert abs(float(found.dwell.sum()) - 4.0) < 1e-11
    assert torch.allclose(found.start[0], torch.from_numpy(PRIOR.numpy() * h / (PRIOR.numpy() * h).sum()))


def test_expectation_maximisation_climbs_to_a_stationary_point():
    """Every step raises the likelihood; at the limit its gradient along every rate vanishes."""
    truth = JumpProcess([[-1.0, 1.0], [0.5, -0.5]], [0.5, 0.5], Finite.of(torch.tensor([[0.9, 0.1], [0.1, 0.9]])))
    g = torch.Generator().manual_seed(4)
    times, x = torch.arange(1, 61) * 0.5, torch.randint(0, 2, (4,), generator=g)
    steps, table, y = truth.kernel(0.0, 0.5).log_p.exp(), truth.given[2].log_p.exp(), []
    for _ in times:
        x = torch.multinomial(steps[x], 1, generator=g)[:, 0]
        y.append(torch.multinomial(table[x], 1, generator=g)[:, 0])
    data = Observed(torch.stack(y, 1), times)
    model, before = truth.with_rates([[-3.0, 3.0], [3.0, -3.0]]), -math.inf
    for _ in range(150):
        found = JumpPosterior(model, data).expected()
        now = float(found.log_evidence.sum())
        assert now > before - 1e-9
        before, model = now, model.with_rates(found.rates())
    log_rates = model.rates[0].clone().fill_diagonal_(1.0).log().requires_grad_()
    moved = model.with_rates(lambda: rates_of(log_rates.exp()))
    JumpPosterior(moved, data).log_evidence.sum().backward()
    assert log_rates.grad is not None and float(log_rates.grad.abs().max()) < 1e-3
    assert float((model.rates[0] - truth.rates[0]).abs().max()) < 0.5


def test_gradients_of_the_evidence():
    def run(log_rates):
        post = condition_model(process(lambda: rates_of(log_rates.exp())), Observed(Y, TIMES))
        return post.log_evidence

    start = torch.randn(K, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(run, start.requires_grad_())


@pytest.mark.parametrize("noisy", [True, False])
def test_paths_in_continuous_time_follow_the_posterior(noisy):
    """Marginals, jumps and dwell times of 4000 exact paths: every z-score below 4.5 (false-alarm rate about 2e-4)."""
    if noisy:
        post = condition_model(process(), Observed(Y, TIMES))
    else:  # hard observations: the guided rates blow up at each
        post = condition_model(JumpProcess(3 * rates(), PRIOR), Observed([2, 0, 1], [0.5, 2.0, 2.2]))
    n, found = 4000, post.expected()
    paths = post.trajectories(n, seed=3)
    assert bool((paths.log_weights == 0).all()) and len(paths) == n

    def z(values: Tensor, exact: Tensor) -> float:
        return float(((values.mean(0) - exact).abs() / (values.std(0) / n**0.5 + 1e-9)).max())

    assert z(paths.jumps(K)[:, 0], found.jumps[0, 0]) < 4.5
    assert z(paths.dwell(K)[:, 0], found.dwell[0, 0]) < 4.5
    times = torch.tensor([0.0, 0.2, 0.5, 1.1, 2.2], dtype=torch.float64)
    marginals = post.smooth(times).probabilities[0]
    one_hot = torch.nn.functional.one_hot(paths.at(times)[:, 0], K).double()
    assert z(one_hot, marginals) < 4.5
    assert torch.allclose(paths.dwell(K).sum(-1), torch.full((n, 1), float(paths.end)).double())
    if not noisy:
        assert bool(
            (paths.at(torch.tensor([0.5, 2.0, 2.2], dtype=torch.float64))[:, 0] == torch.tensor([2, 0, 1])).all()
        )


def test_many_events_between_observations():
    """Rates of 100 over a time of 2 run in blocks: the number of jumps against its expectation."""
    Q = 100 * rates(2)
    post = condition_model(JumpProcess(Q, PRIOR), Observed([1], [2.0]))
    paths = post.trajectories(200, seed=0)
    counts = paths.counts[:, 0].double()
    assert abs(float(counts.mean()) - float(post.expected().jumps.sum())) < 4.5 * float(counts.std()) / 200**0.5
    assert bool((paths.at(2.0) == 1).all()) and bool((paths.times.diff(dim=-1).nan_to_num(1.0) >= 0).all())


@pytest.mark.parametrize("pieces", [1, 2])
def test_paths_of_another_process_are_weighted_right(pieces):
    """An auxiliary with wrong rates: evidence and laws within 4 standard errors of the exact ones."""
    Q = rates() if pieces == 1 else torch.stack([rates(), 2 * rates(3)])
    model = process(Q, **({} if pieces == 1 else {"breaks": [1.0]}))
    data = Observed(Y, TIMES)
    exact = condition_model(model, data)
    auxiliary = rates_of(torch.full((K, K), 0.6, dtype=torch.float64))
    post = condition_model(model, data, "guided", {"auxiliary": auxiliary, "particles": 4000})
    gap = float((post.log_evidence - exact.log_evidence).abs())
    assert gap < 4 * float(post.log_evidence_se) and not post.exact
    assert 400 < float(post.ess) < 3900
    assert float((post.smooth().probabilities - exact.smooth().probabilities).abs().max()) < 0.06
    paths = post.sample(500, seed=1)
    assert paths.x.shape == (500, 1, 4) and abs(float(paths.weights.sum()) - 1) < 1e-12
    same = condition_model(model, data, "guided", {"auxiliary": Q, "particles": 50})
    assert torch.allclose(same.log_evidence, exact.log_evidence, atol=1e-10)
    with pytest.raises(InputError, match="from state 0 to state 1, which the process can"):
        closed = auxiliary.clone()
        closed[0, 1] = 0.0
        condition_model(model, data, "guided", {"auxiliary": rates_of(closed)})
    with pytest.raises(InputError, match="takes auxiliary="):
        condition_model(model, data, "guided")


def test_forecasts_and_other_methods_of_a_state_space():
    Q = rates().numpy()
    post = condition_model(process(), Observed(Y, TIMES))
    ahead = post.forecast([5.0]).probabilities[0, 0].numpy()
    p, evidence = forward(Q)
    assert np.abs(ahead - p / evidence @ linalg.expm(Q)).max() < 1e-12
    assert post.viterbi().x.shape == (1, 1, 4) and post.sample(5).x.shape == (5, 1, 4)
    assert "JumpProcess" in repr(post)


def test_rates_in_single_precision_are_rates():
    """Rows that sum to zero within single precision are accepted, and then do so in double."""
    Q = rates().float()
    for given in (Q, lambda: Q):
        found = JumpProcess(given, PRIOR).rates
        assert found.dtype == torch.float64 and float(found.sum(-1).abs().max()) < 1e-15


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="negative entry -1 off the diagonal"):
        JumpProcess([[1.0, -1.0], [0.0, 0.0]])
    with pytest.raises(InputError, match="one break fewer"):
        JumpProcess(torch.stack([rates(), rates()]))
    with pytest.raises(InputError, match="increasing"):
        JumpProcess(torch.stack([rates()] * 3), breaks=[2.0, 1.0])
    with pytest.raises(InputError, match="prior is of 2 states and the rates of 3"):
        JumpProcess(rates(), [0.5, 0.5])
    with pytest.raises(InputError, match=r"an integer 0..2 \(one a series\), got 3"):
        process().started(3)
    with pytest.raises(InputError, match="times go back"):
        condition_model(process(), Observed(Y, TIMES[::-1]))
    with pytest.raises(InputError, match="lies after the first observation"):
        condition_model(process(t0=1.0), Observed(Y, TIMES))
