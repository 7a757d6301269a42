"""Descent reaches what theory says can be reached, keeps its start where it cannot, and repeats itself."""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.denoisers import Denoiser
from retrodict.solvers.tuning import Effort, Free, Trajectories, refine, teach, teacher
from retrodict.solvers.tuning.descent import Task, by_gradient
from solvers.solver_cases import M8

PATH = rd.VP("cosine")


def _gaussian(variances: list[float], means: list[float]) -> tuple[Denoiser, Trajectories, Trajectories, Trajectories]:
    """Axis-aligned Gaussian data, whose probability flow is linear: x0 = m + sqrt(c) (x1 - alpha1 m)/sd1 by axis."""
    law = rd.exact.GaussianMixture([1.0], [means], [variances])
    m, c = torch.tensor(means, dtype=torch.float64), torch.tensor(variances, dtype=torch.float64)
    alpha, sigma = float(PATH.alpha(1.0)), float(PATH.sigma(1.0))
    sets = []
    for seed, n in ((1, 64), (2, 64), (3, 256)):
        start = torch.randn(n, len(means), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        sets.append(Trajectories(start, m + c.sqrt() * (start - alpha * m) / (alpha**2 * c + sigma**2).sqrt()))
    return law.denoiser(PATH), *sets


@pytest.mark.parametrize(("variances", "nfe"), [([0.25], 2), ([0.25, 1.7], 3), ([0.04, 0.3, 2.0], 4)])
def test_on_a_gaussian_few_evaluations_become_exact(variances, nfe):
    """A linear flow with as many rates as there are coefficients to meet them: the error of the best DDIM-like start
    falls below 1e-6, on starts that it was not tuned on."""
    model, train, valid, test = _gaussian(variances, [0.3, -1.0, 0.6][: len(variances)])
    plan = rd.plan("adams", PATH, nfe=nfe, grid="angle", kind="flow", order=1)
    free = Free(plan)
    assert test.error(model, plan) > 1e-2
    _, found = refine(free, model, train, valid, Effort(steps=0, polish=60))
    assert test.error(model, free.to_plan(found.p, {})) < 1e-6


def test_one_evaluation_has_the_closed_form_time():
    """At K = 1 the result is D(x1, t) alone: on centred data of variance c it is exact at the one time where
    alpha c/(alpha^2 c + sigma^2) = sqrt(c)/sd1, and descent finds that time."""
    c = 0.25
    model, train, valid, test = _gaussian([c], [0.0])
    free = Free(rd.plan("ddim", PATH, steps=1))
    _, found = refine(free, model, train, valid, Effort(steps=0, polish=60))
    t = free.coefficients(found.p).times
    alpha, sigma = PATH.alpha(t), PATH.sigma(t)
    assert float(alpha * c / (alpha**2 * c + sigma**2)) == pytest.approx(c**0.5, rel=1e-6)
    assert test.error(model, free.to_plan(found.p, {})) < 1e-6


@pytest.fixture(scope="module")
def mixture():
    model = M8.denoiser(PATH)
    plan = teacher(model, 160)
    return model, *(teach(model, n, plan, shape=(2,), seed=seed) for seed, n in ((1, 256), (2, 128), (3, 256)))


def test_both_ways_down_cut_the_error_of_a_good_start(mixture):
    model, train, valid, test = mixture
    plan = rd.plan("adams", PATH, nfe=5, grid={"name": "flow", "shift": 0.7}, kind="flow", corrector=True)
    free, before = Free(plan), test.error(model, plan)
    for effort, share in ((Effort(steps=0, polish=8), 0.5), (Effort(steps=60, batch=48), 0.75)):
        start, found = refine(free, model, train, valid, effort)
        assert found.valid < start.valid == pytest.approx(valid.error(model, plan))
        assert test.error(model, free.to_plan(found.p, {})) <= share * before


def test_equal_seeds_give_equal_parameters(mixture):
    model, train, valid, _ = mixture
    free = Free(rd.plan("adams", PATH, nfe=4, grid="angle"))
    effort = Effort(steps=36, batch=32)
    first, again, other = (refine(free, model, train, valid, effort, seed=s)[1].p for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_start_is_kept_where_nothing_beats_it(mixture):
    """Learning from ends that are wrong: whatever is learned is worse on the trajectories that judge."""
    model, train, valid, _ = mixture
    wrong = Trajectories(train.start, -train.end)
    free = Free(rd.plan("unipc", PATH, nfe=6))
    for effort in (Effort(steps=24, batch=32), Effort(steps=0, polish=4)):
        start, found = refine(free, model, wrong, valid, effort)
        assert found is start and torch.equal(found.p, free.zero())


def test_the_metric_makes_directions_alike(mixture):
    """In the coordinates of the metric the Gauss-Newton matrix is near the identity where it knows anything."""
    model, train, valid, _ = mixture
    free = Free(rd.plan("unipc", PATH, nfe=5))
    from retrodict.solvers.tuning.free import run

    task = Task(lambda p, s: run(s.mean(model), free.coefficients(p), s.start), free.nudged(), train, valid)
    J = task.jacobian(free.nudged(), train.take(slice(0, 64)))[1]
    task.train = train.take(slice(0, 64))
    moved = torch.einsum("pq,npd->nqd", task.metric(free.nudged()), J)
    H = torch.einsum("npd,nqd->pq", moved, moved) / 64
    values = torch.linalg.eigvalsh(H)
    before = torch.linalg.eigvalsh(torch.einsum("npd,nqd->pq", J, J) / 64)
    assert values[-1] < 1.5 and float(before[-1] / before[-3].clamp_min(1e-30)) > 3
    assert (values > 0.2).sum() > (before > 0.2 * before[-1]).sum()


def test_a_loss_that_is_not_finite_moves_nothing(mixture):
    _, train, valid, _ = mixture
    task = Task(lambda p, s: s.start * float("nan") + p.sum(), torch.zeros(3).double(), train, valid)
    task.metric = lambda p: torch.eye(3).double()  # type: ignore[method-assign]
    best = task.judged(task.origin)
    assert by_gradient(task, best, Effort(steps=2, batch=8)) is best
