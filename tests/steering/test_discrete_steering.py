"""Products, powers and guidance of discrete denoisers: their weights by enumeration, and runs against exact laws.

``gamma_t = prod q_{i,t}^w_i`` (with what is said about masks in `retrodict.denoisers.discrete_weights`) has to be
carried by steps and weights: ``sum_x gamma_t(x) K(y | x) W(x, y) = gamma_s(y)``.
"""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.denoisers import Step
from retrodict.exact import Atoms
from retrodict.solvers import general
from retrodict.solvers.plan import Call, Eval
from solvers.discrete_laws import all_states, law_of, start_of, transition, tv

QUIET = {"progress": False}
WORDS27 = all_states(3, 3)
P27 = torch.softmax(1.2 * torch.randn(27, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), 0)


def carried(plan, denoiser):
    """Steps and weights of a plan of reverse steps, every pair of states: the measure that the run carries."""
    process = denoiser.process
    states = all_states(process.classes, denoiser.shape[0])
    n = len(states)
    pairs = (states.repeat_interleave(n, 0), states.repeat(n, 1))
    measure = start_of(process, denoiser.shape[0])
    codes = list(plan.code)
    for i, code in enumerate(codes):
        if isinstance(code, Eval):
            belief = denoiser.belief(states, code.t)
            if i == 0:
                measure = measure * denoiser.start_weight(belief).exp()
            continue
        assert isinstance(code, Call)
        density = general.densities["reverse-step"](denoiser, pairs[0], code, pairs[1], {})
        prev, last = denoiser.belief(pairs[0], code.t), i == len(codes) - 1
        now = None if last else denoiser.belief(pairs[1], code.s)
        none = torch.zeros(n * n, dtype=torch.float64)
        step = Step(prev, now, code.t, code.s, 0.0, 0.0, none, True, pairs[1], pairs[0], density)
        log_w = denoiser.final(step) if last else denoiser.increment(step)
        K = transition(denoiser, states, code.t, code, None)
        measure = measure @ torch.where(K > 0, K * log_w.view(n, n).exp(), 0.0)
    return measure


def clean(measure, process, length):
    """A measure over states as one over clean states."""
    return measure[(all_states(process.classes, length) < process.vocabulary).all(1)]


def normal(measure):
    return measure / measure.sum()


def at_time(law, process, t):
    """Marginal at t of data of one coordinate."""
    x = torch.arange(process.classes)[:, None]
    table = process.log_likelihood(x, t).exp()[:, 0]
    return table @ law


Q7 = torch.rand(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
Q7 = Q7 - torch.diag(Q7.sum(1))


@pytest.mark.parametrize("process", [rd.Uniform(7), rd.FiniteJump(Q7)], ids=["uniform", "any generator"])
@pytest.mark.parametrize("weights", [[1.7, -0.4], [2.5], [0.5, 0.5]], ids=str)
def test_one_coordinate_is_carried_exactly_at_any_step(process, weights):
    """Seven states: after each of three steps the measure is prod q_i,s^w_i q_0,s^(1 - W), to 1e-9."""
    laws = [
        torch.softmax(torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(s)), 0)
        for s in (1, 2)
    ]
    experts = [Atoms(torch.arange(7)[:, None], law).denoiser(process) for law in laws[: len(weights)]]
    product = rd.Product(experts, weights)
    for end in (0.6, 0.2, 0.0):
        plan = rd.plan("step", process, grid=[1.0, 0.8, end])
        measure = carried(plan, product)
        target = torch.ones(7, dtype=torch.float64)
        for w, law in zip(weights, laws):
            target = target * at_time(law, process, end) ** w
        target = target * at_time(torch.ones(7, dtype=torch.float64), process, end) ** (1 - sum(weights))
        if isinstance(process, rd.FiniteJump) and sum(weights) != 1:  # its prior is not flat: a constant is left
            target = target * measure.sum() / target.sum()
        assert torch.allclose(measure, target, rtol=1e-9, atol=1e-12)


def test_the_rate_of_weight_of_a_small_step():
    """``sum_y K W = 1 + dt c`` with the rate c of the continuous theory, written out for 7 states and V = a reward."""
    process = rd.Uniform(7)
    laws = [
        torch.softmax(torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(s)), 0)
        for s in (1, 2)
    ]
    w, t, dt = (1.7, -0.4), 0.5, 1e-6
    product = rd.Product([Atoms(torch.arange(7)[:, None], law).denoiser(process) for law in laws], w)
    x = torch.arange(7)[:, None]
    code = next(c for c in rd.plan("step", process, grid=[t, t - dt]).code if isinstance(c, Call))
    pairs = (x.repeat_interleave(7, 0), x.repeat(7, 1))
    density = general.densities["reverse-step"](product, pairs[0], code, pairs[1], {})
    belief = product.belief(pairs[0], t)
    step = Step(belief, belief, t, t - dt, 0.0, 0.0, torch.zeros(49), True, pairs[1], pairs[0], density)
    K = transition(product, x, t, code, None)
    found = ((K * product.increment(step).view(7, 7).exp()).sum(1) - 1) / dt
    q = [at_time(law, process, t) for law in laws]
    flow = float(process.hazard(t)) * (
        torch.full((7, 7), 1 / 7, dtype=torch.float64) - torch.eye(7, dtype=torch.float64)
    )
    expected = torch.zeros(7, dtype=torch.float64)
    for i in range(7):
        for j in range(7):
            r = [qi[j] / qi[i] for qi in q]
            if i != j:
                expected[i] += flow[j, i] * (r[0] ** w[0] * r[1] ** w[1] - w[0] * r[0] - w[1] * r[1])
        expected[i] += (1 - sum(w)) * flow[i, i]
    # the reference measure of the flat expert takes the rate of its own, (1 - W)(sum_y Q(y, x)) = 0 here
    assert torch.allclose(found, expected, atol=2e-4 * float(expected.abs().max())), (found, expected)


MILD = torch.softmax(P27.log() / 3, 0)


def annealed27(process, beta=2.5, law=P27):
    return rd.Anneal(Atoms(WORDS27, law).denoiser(process), beta)


@pytest.mark.parametrize("process, law", [(rd.Masked(3), P27), (rd.Uniform(3), MILD)], ids=["masks", "uniform"])
def test_several_coordinates_are_right_up_to_the_step(process, law):
    """27 sequences to the power 2.5: the bias of the weighted steps falls by half or more as steps double, far below
    that of the unweighted ones, which stays.

    Jump rates of a power are ratios of probabilities to that power: the spikier law would need 100,000 steps with
    uniform noise, where masks need none of that.
    """
    product, target = annealed27(process, law=law), normal(law**2.5)
    laws = {}
    for steps in (8, 16, 32):
        plan = rd.plan("step", process, steps=steps, grid="uniform")
        measure = clean(carried(plan, product), process, 3)
        laws[steps] = tv(normal(measure), target), float(measure.sum() / (law**2.5).sum())
        plain = tv(clean(law_of(plan, product, start_of(process, 3)), process, 3), target)
        assert plain > 0.05 and laws[steps][0] < plain
    assert laws[16][0] < 0.65 * laws[8][0] and laws[32][0] < 0.65 * laws[16][0] and laws[32][0] < 0.3 * plain, laws
    assert abs(laws[32][1] - 1) < 0.1 and abs(laws[32][1] - 1) < abs(laws[8][1] - 1)


def test_remasking_is_carried_too():
    """With remasking the weighted measure tends to the same target; without dividing at a mask it would not."""
    process, target = rd.Masked(3), normal(P27**2.5)
    far = []
    for steps in (8, 16, 32):
        plan = rd.plan("step", process, steps=steps, grid="uniform", eta=0.8 / steps)
        far.append(tv(normal(clean(carried(plan, annealed27(process)), process, 3)), target))
    assert far[1] < 0.65 * far[0] and far[2] < 0.65 * far[1] and far[2] < 0.02, far


def test_a_remasking_corrector_adds_no_weight_on_average():
    """At a fixed time: ``sum_y K(y|x) W(x, y)`` over a small corrector step leaves gamma_t to second order."""
    process, t = rd.Masked(3), 0.4
    product = annealed27(process)
    states = all_states(4, 3)
    n = len(states)
    shown = states < 3
    gamma = torch.zeros(n, dtype=torch.float64)
    for i, (s, see) in enumerate(zip(states, shown)):
        partial = sum(float(p) for word, p in zip(WORDS27, P27) if bool((word[see] == s[see]).all()))
        gamma[i] = partial**2.5 * (1 - t) ** int(see.sum()) * t ** int((~see).sum())
    moved = []
    for share in (0.02, 0.01):
        plan = rd.plan("step", process, grid=[t, 0.2], corrections=1, correction=share)
        code = [c for c in plan.code if isinstance(c, Call)][1]
        code = Call(code.name, code.dst, code.x, code.k, t, t, code.options, code.more)
        pairs = (states.repeat_interleave(n, 0), states.repeat(n, 1))
        prev, now = product.belief(pairs[0], t), product.belief(pairs[1], t)
        step = Step(prev, now, t, t, 0.0, 0.0, torch.zeros(n * n), True, pairs[1], pairs[0], None)
        K = transition(product, states, t, code, None)
        after = gamma @ torch.where(K > 0, K * product.increment(step).view(n, n).exp(), 0.0)
        moved.append(float((after - gamma).abs().sum() / gamma.sum()))
    assert moved[1] < 0.3 * moved[0] and moved[0] < 3e-3, moved


def shares(run, classes, length):
    place = run.x @ torch.tensor([classes ** (length - 1 - l) for l in range(length)])
    w = (
        torch.softmax(run.log_weights, 0)
        if run.log_weights.numel()
        else torch.full((len(run.x),), 1 / len(run.x)).double()
    )
    return torch.zeros(classes**length, dtype=torch.float64).index_add_(0, place, w)


def test_one_mask_at_a_time_is_exact():
    """27 sequences, beta = 2.5, first-hitting: 4 runs of 2,000 at the floor, the heuristic is off by .08.

    The floor of 8,000 draws is .018 for equal weights; the bound allows for the spread of the weights.
    """
    product, target = annealed27(rd.Masked(3)), normal(P27**2.5)
    words = {"solver": "events", "steps": 4, **QUIET}
    runs = [rd.sample(product, 2000, seed=s, **words) for s in range(4)]
    assert runs[0].correction == "weighted"
    weighted = sum(shares(r, 3, 3) for r in runs) / 4
    plain = shares(rd.sample(product, 8000, seed=9, population=False, **words), 3, 3)
    assert tv(weighted, target) < 0.03 and tv(plain, target) > 0.06
    log_z = float((P27**2.5).sum().log())
    assert sum(float(r.log_evidence) for r in runs) / 4 == pytest.approx(log_z, abs=0.05)


@pytest.mark.parametrize(
    "process, steps, ratio", [(rd.Masked(3), 128, 0.2), (rd.Uniform(3), 32, 0.8)], ids=["masks", "uniform"]
)
def test_guidance_of_labels_with_weights(process, steps, ratio):
    """w = 2: the enumerated law of the weighted run against q(x)^-1 q(x|c)^2 and against plain guidance."""
    half = torch.rand(27, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    labels = [0] * 27 + [1] * 27
    data = Atoms(torch.cat([WORDS27, WORDS27]), torch.cat([P27 * half, P27 * (1 - half)]), labels=labels)
    pair = rd.Product([data.denoiser(process), _Labelled(data.denoiser(process), 0)], [-1.0, 2.0])
    target = normal((P27 * half) ** 2 / P27)
    plan = rd.plan("step", process, steps=steps, grid="uniform")
    plain = tv(clean(law_of(plan, pair, start_of(process, 3)), process, 3), target)
    weighted = tv(normal(clean(carried(plan, pair), process, 3)), target)
    assert weighted < ratio * plain and plain > 0.02, (weighted, plain)
    guided = rd.condition(data.denoiser(process), rd.Guidance(2.0))
    run = rd.sample(guided, 2000, steps=32, label=0, **QUIET)
    assert run.correction == "weighted"
    assert tv(shares(run, 3, 3), target) < 0.09  # floor .04; classes are far apart
    assert tv(normal(P27 * (1 - half)), target) > 0.2


class _Labelled(rd.Denoiser):
    """One class of a labelled denoiser."""

    def __init__(self, denoiser, label):
        super().__init__(denoiser.process, denoiser.shape)
        self.denoiser, self.label = denoiser, label

    def belief(self, x, t, **condition):
        return self.denoiser.belief(x, t, label=self.label)


@pytest.mark.parametrize("process", [rd.Masked(2), rd.Uniform(2)], ids=repr)
def test_two_spins_cooled_and_rewarded(process):
    """Two coupled spins at inverse temperature 2 under a field as a black-box reward: 4 runs of 2,000, TV < .03.

    Without the weights of the power it is more than twice as far, and without the reward farther still.
    """
    spins = all_states(2, 2)
    s = 2 * spins.double() - 1
    p = normal((0.5 * s[:, 0] * s[:, 1] + 0.4 * s[:, 0] + 0.1 * s[:, 1]).exp())
    field = lambda x: 0.7 * (1 - 2 * x[:, 1].double())  # noqa: E731
    target = normal(p**2 * field(spins).exp())
    goal = rd.condition(rd.Anneal(Atoms(spins, p).denoiser(process), 2.0), rd.Reward(field))
    words = {"steps": 48, "grid": "uniform", **QUIET}
    weighted = sum(shares(rd.sample(goal, 2000, seed=i, **words), 2, 2) for i in range(4)) / 4
    assert tv(weighted, target) < 0.03
    base = rd.Anneal(Atoms(spins, p).denoiser(process), 2.0)
    plain = clean(law_of(rd.plan("step", process, steps=48, grid="uniform"), base, start_of(process, 2)), process, 2)
    heuristic = normal(plain * field(spins).exp())
    assert tv(heuristic, target) > 2 * tv(weighted, target) and tv(plain, target) > 0.1


@pytest.mark.parametrize(
    "words", [{"eta": 0.3}, {"options": {"corrections": 1, "correction": 0.2}}], ids=["eta", "corrections"]
)
def test_remasking_inside_a_rewarded_population_needs_no_weight(words):
    """The potential's ratio alone: what the remasking plan samples, times exp l; 4 runs of 1,000 (floor .03)."""
    base = Atoms(WORDS27, P27).denoiser(rd.Masked(3))
    reward = lambda x: 1.5 * (x[:, 0] == 1).double() - (x[:, 1] == x[:, 2]).double()  # noqa: E731
    options = words.get("options", {})
    plan = rd.plan("step", base.process, steps=10, grid="uniform", eta=words.get("eta"), **options)
    law = clean(law_of(plan, base, start_of(base.process, 3)), base.process, 3)
    target = normal(law * reward(WORDS27).exp())
    goal = rd.condition(base, rd.Reward(reward))
    found = sum(shares(rd.sample(goal, 1000, plan=plan, seed=s, **QUIET), 3, 3) for s in range(4)) / 4
    assert tv(found, target) < 0.05 and tv(law, target) > 0.2


def test_moves_without_a_density_are_refused():
    product = annealed27(rd.Uniform(3))
    with pytest.raises(InputError, match="eta=0"):
        rd.sample(product, 10, steps=4, eta=0.5, **QUIET)
    with pytest.raises(InputError, match="population=False"):
        rd.sample(product, 10, solver="events", steps=4, start=0.9, init=torch.zeros(10, 3).long(), **QUIET)
    assert rd.sample(product, 10, steps=4, eta=0.5, population=False, **QUIET).correction == "none"


def test_leaps_have_a_density_too():
    """One coordinate of three values, squared, by tau-leaping: 4 runs of 1,500 within .03 (floor .01)."""
    law = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    square = rd.Anneal(Atoms(torch.arange(3)[:, None], law).denoiser(rd.Uniform(3)), 2.0)
    words = {"solver": "tau-leaping", "steps": 64, **QUIET}
    found = sum(shares(rd.sample(square, 1500, seed=s, **words), 3, 1) for s in range(4)) / 4
    assert tv(found, normal(law**2)) < 0.03
    free = rd.sample(square, 3000, seed=5, population=False, **words)
    assert tv(torch.bincount(free.x[:, 0], minlength=3) / 3000, normal(law**2)) > 0.06
