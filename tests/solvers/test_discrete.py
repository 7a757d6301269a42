"""Samplers of discrete processes against enumeration: reverse steps, tau-leaping, events, first-hitting, correctors."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from scipy import stats

import retrodict as rd
from processes.discrete_cases import CASES, law, states, transition
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser, Sharpened, TokenDenoiser
from retrodict.exact import Atoms
from retrodict.kernels import Belief
from retrodict.kernels.laws import Point
from retrodict.processes import VP, Blackout, Masked, TokenBridge, Uniform
from retrodict.processes.discrete import Discrete
from retrodict.solvers.general import calls
from retrodict.solvers.plan import Call
from solvers.discrete_laws import all_states, law_of, on_states, start_of, tv

QUIET = {"progress": False}
PAIRS = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [2, 2]])
WEIGHTS = torch.tensor([0.35, 0.1, 0.1, 0.15, 0.3], dtype=torch.float64)


def one(process: Discrete) -> Atoms:
    """A law of one coordinate, every value an atom."""
    return Atoms(torch.arange(process.vocabulary)[:, None], law(process))


def frequencies(x: torch.Tensor, classes: int) -> torch.Tensor:
    place = (x * classes ** torch.arange(x.shape[1] - 1, -1, -1)).sum(1)
    return torch.bincount(place, minlength=classes ** x.shape[1]).double()


def fits(x: torch.Tensor, p: torch.Tensor, classes: int) -> bool:
    """A chi-squared test of samples against a law over `all_states`; false alarm 1e-4."""
    counts, seen = frequencies(x, classes), p > 0
    assert float(counts[~seen].sum()) == 0
    return int(seen.sum()) == 1 or stats.chisquare(counts[seen], len(x) * p[seen] / p[seen].sum()).pvalue > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_one_coordinate_is_exact_at_any_number_of_steps(name):
    """The bridge is linear in the law of x0: plugged-in probabilities are the exact reversal, at any eta."""
    process = CASES[name]
    denoiser = one(process).denoiser(process)
    start = law(process) @ transition(process, 1.0)
    for words in ({"steps": 1}, {"steps": 7}, {"steps": 7, "eta": 0.6}):
        result = law_of(rd.plan("step", process, grid="uniform", **words), denoiser, start)
        assert torch.allclose(result[: process.vocabulary], law(process), atol=1e-9)


@pytest.mark.parametrize(
    "process", [Masked(3), Uniform(3), CASES["birth-death"], Blackout(3, schedule="linear")], ids=repr
)
def test_parallel_decoding_costs_one_over_the_steps(process):
    """Two dependent coordinates decoded at once: the error falls with the first power of the number of steps."""
    denoiser = Atoms(PAIRS, WEIGHTS).denoiser(process)
    target, start = on_states(PAIRS, WEIGHTS, process.classes), start_of(process, 2)
    errors = [
        tv(law_of(rd.plan("step", process, steps=K, grid="uniform"), denoiser, start), target) for K in (8, 16, 32, 64)
    ]
    assert errors[0] > 0.02
    for coarse, fine in pairwise(errors):
        assert 1.6 < coarse / fine < 3.0


@pytest.mark.parametrize("process", [Masked(3), Uniform(3)], ids=repr)
def test_correctors_keep_the_law_and_mend_the_steps(process):
    """A corrector at a fixed time leaves the exact law where it is, and shrinks what parallel decoding left."""
    denoiser = Atoms(PAIRS, WEIGHTS).denoiser(process)
    target, start = on_states(PAIRS, WEIGHTS, process.classes), start_of(process, 2)
    with_, without = (
        tv(law_of(rd.plan("step", process, steps=8, corrections=c, correction=0.2), denoiser, start), target)
        for c in (2, 0)
    )
    assert with_ < 0.85 * without
    plan = rd.plan("step", process, steps=8, corrections=2)
    assert plan.nfe == 8 + 7 * 2


@pytest.mark.parametrize("name", ["masked", "uniform", "birth-death", "blackout"])
def test_a_drawn_end_is_exact_where_the_marginals_are_not(name):
    """belief_as="sample" draws the joint posterior: two coordinates, three steps, within a chi-squared test."""
    process = {"masked": Masked(3), "uniform": Uniform(3), "blackout": Blackout(3)}.get(name, CASES[name])
    data = Atoms(PAIRS, WEIGHTS)
    run = rd.sample(data.denoiser(process), 3000, steps=3, options={"belief_as": "sample"}, seed=1, **QUIET)
    assert fits(run.x, on_states(PAIRS, WEIGHTS, process.vocabulary), process.vocabulary)
    run = rd.sample(data.denoiser(process), 3000, steps=3, seed=1, **QUIET)
    assert not fits_loosely(run.x, process)


def fits_loosely(x: torch.Tensor, process: Discrete) -> bool:
    p = on_states(PAIRS, WEIGHTS, process.vocabulary)
    return tv(frequencies(x, process.vocabulary) / len(x), p) < 0.03


def leap(process: Discrete, t: float, s: float) -> torch.Tensor:
    """The law of one leap in one coordinate as a matrix: Poisson births, or one jump with probability 1 - e^(-rate)."""
    belief = one(process).denoiser(process).belief(states(process), t)
    jumps = process.jumps(belief.law, states(process), t)
    K = process.classes
    if isinstance(process, Blackout):
        births = torch.arange(K, dtype=torch.float64)
        mean = jumps.rate[:, 0] * (t - s)
        p = torch.exp(torch.xlogy(births, mean) - mean - torch.lgamma(births + 1))
        moved = torch.zeros(K, K, dtype=torch.float64)
        for n in range(K):
            moved[n, n:] = p[n, : K - n]
            moved[n, -1] += 1 - moved[n].sum()
        return moved
    rate = torch.zeros(K, K, dtype=torch.float64).scatter_add_(1, jumps.to[:, 0], jumps.rate[:, 0])
    total = rate.sum(1, keepdim=True)
    share = torch.where(total > 0, rate / total.clamp_min(1e-300), 0.0)
    return share * -torch.expm1(-total * (t - s)) + torch.diag(torch.exp(-total[:, 0] * (t - s)))


@pytest.mark.parametrize("name", ["uniform-exponential", "blackout", "any-generator", "masked"])
def test_a_leap_draws_from_its_law(name):
    process, t, s, n = CASES[name], 0.5, 0.35, 4000
    denoiser = one(process).denoiser(process)
    for value in range(process.classes):
        x = torch.full((n, 1), value)
        row = Call(1, "tau-leap", 0, 0, t, s)
        moved = calls["tau-leap"](denoiser, x, denoiser.belief(x, t), row, KeyedNoise(0, n), {})
        assert fits(moved, leap(process, t, s)[value], process.classes)


@pytest.mark.parametrize("name", ["uniform-exponential", "blackout", "any-generator", "blackout-linear"])
def test_tau_leaping_is_of_first_order(name):
    """Rates that are frozen over a step: halving the steps halves the error, by matrices of the plan's own rows."""
    process, errors = CASES[name], []
    for K in (32, 64, 128):
        result, t = law(process) @ transition(process, 1.0), 1.0
        for code in rd.plan("tau-leaping", process, steps=K).code:
            if not isinstance(code, Call):
                t = code.t
            elif code.name == "tau-leap":
                result = result @ leap(process, code.t, code.s)
            else:
                belief = one(process).denoiser(process).belief(states(process), t)
                result = (
                    result @ process.bridge(states(process), code.t, code.s, 0.0).push(belief.law).log_p[:, 0].exp()
                )
        errors.append(tv(result[: process.vocabulary], law(process)))
    assert errors[0] > 2e-3
    assert all(1.4 < a / b < 2.9 for a, b in pairwise(errors)), errors


@pytest.mark.parametrize("process", [Uniform(3, "exponential", 6.0), CASES["blackout"], Masked(3)], ids=repr)
def test_events_of_one_coordinate_are_exact(process):
    """No time step, no error: a chi-squared test of 2000 draws, from the law that the start really has."""
    data = one(process)
    init = process.corrupt(data.sample(2000, seed=4), 1.0, KeyedNoise(5, 2000))
    run = rd.sample(data.denoiser(process), 2000, solver="events", steps=16, seed=3, init=init, **QUIET)
    assert fits(run.x, law(process), process.vocabulary)


def test_first_hitting_reveals_one_by_one_and_is_exact():
    """Two dependent tokens, two evaluations; and the last mask falls at hide = max of two uniforms."""
    process, data = Masked(3), Atoms(PAIRS, WEIGHTS)
    run = rd.sample(data.denoiser(process), 4000, solver="first-hitting", steps=2, seed=0, **QUIET)
    assert run.plan.nfe == 2 and fits(run.x, on_states(PAIRS, WEIGHTS, 3), 3)
    long = rd.sample(data.denoiser(process), 4000, solver="first-hitting", steps=5, seed=0, **QUIET)
    assert fits(long.x, on_states(PAIRS, WEIGHTS, 3), 3)


class Clocked(Denoiser):
    """Uniform over values, and it keeps the times that it was told."""

    def __init__(self, process, length):
        super().__init__(process, (length,))
        self.times: list[torch.Tensor] = []
        self.shown: list[torch.Tensor] = []

    def belief(self, x, t, **condition):
        self.times.append(torch.as_tensor(t).expand(len(x)).clone())
        self.shown.append((x != self.process.mask).sum(1))
        net = TokenDenoiser(lambda *a: torch.zeros(len(x), x.shape[1], self.process.vocabulary), self.process)
        net.network.has_time = False
        return net.belief(x, t)


def test_first_hitting_times_have_the_law_of_order_statistics():
    """With three masks the k-th reveal is at the k-th largest of three uniforms of hide: U^(1/3), then U^(1/2)."""
    denoiser = Clocked(Masked(2, "cosine"), 3)
    rd.sample(denoiser, 2000, solver="first-hitting", steps=3, **QUIET)
    assert [int(s.min()) for s in denoiser.shown] == [0, 1, 2] == [int(s.max()) for s in denoiser.shown]
    hide = denoiser.process.hide(torch.stack(denoiser.times))
    assert stats.kstest(hide[1].numpy() ** 3, "uniform").pvalue > 1e-4
    assert stats.kstest((hide[2] / hide[1]).numpy() ** 2, "uniform").pvalue > 1e-4


def test_a_shorter_horizon_mends_events_of_several_coordinates():
    process = Uniform(2, "exponential", 6.0)
    data = Atoms(torch.tensor([[0, 0], [1, 1]]), [0.5, 0.5])
    p = on_states(data.data, data.weights, 2)
    wide, short = (
        rd.sample(data.denoiser(process), 1000, solver="events", steps=n, options=o, seed=0, **QUIET)
        for n, o in ((20, {}), (40, {"horizon": 1.0}))
    )
    errors = [tv(frequencies(run.x, 2) / 1000, p) for run in (wide, short)]
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.08


class MeanOnly(Denoiser):
    """What a count network says: the posterior mean, and no law."""

    def __init__(self, denoiser):
        super().__init__(denoiser.process, denoiser.shape)
        self.denoiser = denoiser

    def belief(self, x, t, **condition):
        values = torch.arange(self.process.levels, dtype=torch.float64)
        return Belief(self.denoiser.belief(x, t).law.log_p.exp() @ values)


def from_black(process: Blackout, times, denoiser: Denoiser) -> torch.Tensor:
    """The law of one count that starts at 0 and takes the steps of ``times``, by matrices."""
    x = states(process)
    law = (x[:, 0] == 0).double()
    for t, s in pairwise(times):
        belief = denoiser.belief(x, t)
        known = Point(belief.mean) if belief.law is None else belief.law
        law = law @ process.bridge(x, t, s, 0.0).push(known).log_p[:, 0].exp()
    return law


#: TV of the law of samples to p0(n) ~ exp(-(n-3)^2/2.88) + .8 exp(-(n-9)^2/4.5), n = 0..12, at 5, 20, 100, 500 steps.
COUNTS = {
    "poisson": (0.181, 0.058, 0.012, 0.0023),
    "binomial": (0.349, 0.089, 0.017, 0.0032),
    "law": (0.0005,) * 4,
}


@pytest.mark.parametrize("births", COUNTS)
def test_births_from_a_mean_and_from_a_law(births):
    """By enumeration, survival e^(-8 t), start at 0: published by another implementation to the digits shown."""
    n = torch.arange(13, dtype=torch.float64)
    p = torch.exp(-((n - 3) ** 2) / 2.88) + 0.8 * torch.exp(-((n - 9) ** 2) / 4.5)
    p = p / p.sum()
    process = Blackout(13, births="poisson" if births == "law" else births, rate=8.0)
    exact = Atoms(torch.arange(13)[:, None], p).denoiser(process)
    for K, theirs in zip((5, 20, 100, 500), COUNTS[births]):
        plan = rd.plan("step", process, steps=K, grid={"name": "log-odds", "span": 8.0})
        error = tv(from_black(process, plan.times, exact if births == "law" else MeanOnly(exact)), p)
        assert abs(error - theirs) < max(0.06 * theirs, 6e-5), (K, error)


@pytest.mark.parametrize("births", ["poisson", "binomial"])
def test_even_angles_need_half_the_steps_of_even_log_odds(births):
    """The law of `COUNTS` again: at 20 and 100 steps of the default grid no more error than at twice the steps of
    the published one, whose span of 15 is worse still."""
    n = torch.arange(13, dtype=torch.float64)
    p = torch.exp(-((n - 3) ** 2) / 2.88) + 0.8 * torch.exp(-((n - 9) ** 2) / 4.5)
    p = p / p.sum()
    process = Blackout(13, births=births)
    mean = MeanOnly(Atoms(torch.arange(13)[:, None], p).denoiser(process))

    def error(steps, **words):
        return tv(from_black(process, rd.plan("step", process, steps=steps, **words).times, mean), p)

    for steps in (20, 100):
        ours = error(steps)
        assert 1e-3 < ours < error(2 * steps, grid={"name": "log-odds", "span": 8.0})
        assert ours < 0.5 * error(steps, grid="log-odds")


@pytest.mark.parametrize("process", [Blackout(5), Uniform(3), Masked(3)], ids=repr)
def test_even_angles_are_even_distances_of_survival(process):
    """Neighbouring laws of "survived or not" all have one Bhattacharyya coefficient, cos(a/steps) for the angle a."""
    times = torch.tensor(
        rd.plan("step", process, steps=7, grid="survival", start=0.9, end=0.1).times, dtype=torch.float64
    )
    keep, hide = process.keep(times), process.hide(times)
    overlap = (keep[1:] * keep[:-1]).sqrt() + (hide[1:] * hide[:-1]).sqrt()
    whole = torch.acos((keep[0] * keep[-1]).sqrt() + (hide[0] * hide[-1]).sqrt())
    assert torch.allclose(overlap, torch.cos(whole / 7).expand(7), atol=1e-12)
    assert float(times[0]) == 0.9 and float(times[-1]) == 0.1


def test_a_bridge_between_pairs_reproduces_the_coupling():
    """Source y, target x: with y told, the law of x given y is exact in one coordinate."""
    x0 = torch.tensor([[0], [1], [2], [1], [2]])
    x1 = torch.tensor([[0], [0], [0], [2], [2]])
    data = Atoms(x0, [0.2, 0.1, 0.2, 0.3, 0.2], x1=x1)
    process = TokenBridge(3)
    denoiser = data.denoiser(process)
    for source, p in ((0, [0.4, 0.2, 0.4]), (2, [0.0, 0.6, 0.4])):
        told = torch.tensor([[source]])
        for words in ({"steps": 1}, {"steps": 10}, {"steps": 10, "eta": 0.5}, {"steps": 10, "remask": "rescale"}):
            result = law_of(rd.plan("step", process, **words), denoiser, start_of(process, 1, told), told)
            assert torch.allclose(result, torch.tensor(p, dtype=torch.float64), atol=1e-9)
    many = rd.sample(denoiser, 600, x1=torch.tensor([[0], [2]]).repeat(300, 1), steps=4, **QUIET).x
    assert int((many[1::2] == 0).sum()) == 0 and int((many[::2] == 0).sum()) > 80


def test_edits_that_depend_on_each_other():
    """(keep, keep) .36, (A, B) .22, (A, C) .21, (A, D) .21: site by site A and keep are likeliest, a pair that never
    occurs; the chain finds the joint mode with 8 steps and more.  Shares of the two commonest pairs, by enumeration."""
    keep, A, B, C, D = 0, 1, 2, 3, 4
    data = Atoms(
        torch.tensor([[keep, keep], [A, B], [A, C], [A, D]]), [0.36, 0.22, 0.21, 0.21], x1=torch.zeros(4, 2).long()
    )
    process, source = TokenBridge(5), torch.zeros(1, 2).long()
    denoiser = data.denoiser(process)
    shares = {}
    for K in (1, 4, 8, 16):
        law = law_of(rd.plan("step", process, steps=K), denoiser, start_of(process, 2, source), source)
        ranked = Counter({tuple(s.tolist()): float(p) for s, p in zip(all_states(5, 2), law)}).most_common(2)
        shares[K] = (float(law[0]), ranked[0][0])
    expected = {1: 0.13, 4: 0.28, 8: 0.32, 16: 0.34}
    assert all(abs(shares[K][0] - expected[K]) < 0.006 for K in shares)
    assert shares[8][1] == shares[16][1] == (0, 0) and shares[1][1] != (0, 0)


def test_embeddings_want_a_drawn_end():
    """Units at -1, .2, 1.3 on the cosine path, eta = 0: drawn ends are exact at any number of steps, means are not."""
    table, p = torch.tensor([[-1.0], [0.2], [1.3]]), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    data = Atoms(table, p)
    denoiser = data.denoiser(VP("cosine"))
    published = {"mean": (0.80, 0.29, 0.091, 0.022), "sample": (0.0,) * 4}
    for how, values in published.items():
        for K, theirs in zip((1, 2, 5, 20), values):
            run = rd.sample(
                denoiser, 4000, solver="step", steps=K, options={"belief_as": how}, grid="uniform", seed=K, **QUIET
            )
            nearest = (run.x.unsqueeze(-1) - table[:, 0]).abs().argmin(-1)
            assert abs(tv(frequencies(nearest, 3) / 4000, p) - theirs) < 0.025  # standard error about .008


# -- options, caching ----------------------------------------------------------------------------------------


class Counting(torch.nn.Module):
    """A small token network that counts its calls."""

    def __init__(self, vocabulary: int, has_time: bool) -> None:
        super().__init__()
        self.has_time, self.calls = has_time, 0
        generator = torch.Generator().manual_seed(0)
        self.embed = torch.nn.Parameter(torch.randn(vocabulary + 1, 8, generator=generator))
        self.mix = torch.nn.Parameter(torch.randn(8, vocabulary, generator=generator))

    def forward(self, x, t):
        self.calls += 1
        h = self.embed[x]
        return (h + h.mean(1, keepdim=True)) @ self.mix


class Forgetful(TokenDenoiser):
    """The same denoiser, asked every time."""

    timeless = False


@pytest.mark.parametrize("options", [{}, {"remask": "cap"}, {"remask": "conf"}, {"corrections": 1}], ids=str)
def test_kept_beliefs_give_bitwise_the_same_samples_in_fewer_calls(options):
    """One sample of 4 tokens in 64 steps changes in a few of them: no network call where nothing changed."""
    kept, asked = Counting(5, False), Counting(5, False)
    words = {"steps": 64, "seed": 3, "options": options, **QUIET}
    a = rd.sample(TokenDenoiser(kept, Masked(5), shape=(4,)), 2, **words)
    b = rd.sample(Forgetful(asked, Masked(5), shape=(4,)), 2, **words)
    assert torch.equal(a.x, b.x)
    assert asked.calls == a.plan.nfe and kept.calls < 0.5 * asked.calls
    timed = Counting(5, True)
    rd.sample(TokenDenoiser(timed, Masked(5), shape=(4,)), 2, **words)
    assert timed.calls == a.plan.nfe


def test_nothing_changed_means_no_call():
    """All tokens given: one call for 32 steps."""
    net = Counting(5, False)
    x = torch.tensor([[0, 1, 2, 3]])
    run = rd.sample(TokenDenoiser(net, Masked(5), shape=(4,)), 1, init=x, steps=32, **QUIET)
    assert net.calls == 1 and run.x.equal(x)


def test_sharpening_by_option_and_by_denoiser_agree():
    denoiser = Atoms(PAIRS, WEIGHTS).denoiser(Masked(3))
    words = {"steps": 6, "seed": 1, **QUIET}
    for option in ({"top_p": 0.6}, {"temperature": 0.5}, {"top_p": 0.8, "temperature": 0.7}):
        a = rd.sample(denoiser, 200, options=option, **words).x
        assert torch.equal(a, rd.sample(Sharpened(denoiser, **option), 200, **words).x)
        assert not torch.equal(a, rd.sample(denoiser, 200, **words).x)
    greedy = rd.sample(denoiser, 50, options={"top_p": 1e-9}, **words).x
    assert len(greedy.unique(dim=0)) == 1 or bool((greedy == greedy[0]).float().mean() > 0.4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rd.plan("tau-leaping", rd.VP(), steps=3), "is for discrete processes, got VP"),
        (lambda: rd.plan("events", rd.VP(), steps=3), "is for discrete processes"),
        (lambda: rd.plan("events", Uniform(3), steps=3), "use schedule='exponential'"),
        (lambda: rd.plan("events", Masked(3), steps=3, horizon=0.0), "horizon is a positive change"),
        (lambda: rd.plan("step", rd.VP(), steps=3, corrections=1), "for discrete processes"),
        (lambda: rd.plan("step", Masked(3), steps=3, corrections=-1), "corrections is an integer"),
        (lambda: rd.plan("step", Masked(3), steps=3, correction=1.5), "correction is a share"),
        (lambda: rd.plan("step", Masked(3), steps=3, top_p=0.0), "top_p is a probability"),
        (lambda: rd.plan("step", Masked(3), steps=3, temperature=-1.0), "temperature is positive"),
        (lambda: rd.plan("step", rd.VP(), steps=3, grid="log-odds"), "for discrete processes"),
        (lambda: rd.plan("step", rd.VP(), steps=3, grid="survival"), "'survival' is for discrete processes"),
        (
            lambda: rd.sample(MeanOnly(one(Blackout(3)).denoiser(Blackout(3))), 2, solver="events", **QUIET),
            "mean alone",
        ),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("solver", ["step", "tau-leaping", "events"])
def test_plans_are_data(solver):
    plan = rd.plan(solver, Blackout(5), steps=4)
    again = rd.Plan.from_dict(plan.to_dict())
    assert again == plan and again.table() == plan.table() and plan.nfe == 4
    assert plan.has_density
