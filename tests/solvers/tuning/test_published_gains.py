"""What searching and compensating gain on the problems that their figures were taken on, on trajectories without a say.

Three components of standard deviation about .8, or a guided pair of mixtures; an independent implementation of the
published methods measured .39 for the search at 6 evaluations, and mean squares of .94, .90 and .72 for compensation at
5, 6 and 8.
"""

from __future__ import annotations

from functools import cache

import pytest

import retrodict as rd
from retrodict.denoisers import Product
from retrodict.exact import GaussianMixture
from retrodict.solvers.tuning import (
    Cascade,
    Trajectories,
    candidates,
    compensate,
    compensated,
    race,
    search,
    teach,
    teacher,
)
from solvers.solver_cases import M8, PAIR

PATH = rd.VP("linear")


def _sets(model: rd.Denoiser, *sizes: int) -> list[Trajectories]:
    plan = teacher(model, 160)
    return [teach(model, n, plan, shape=(2,), seed=seed) for seed, n in enumerate(sizes)]


def test_a_search_from_published_solvers_cuts_the_best_of_them():
    """DPM-Solver++, UniPC and Adams plans of data and noise prediction on three grids, 6 evaluations, 160 decisions
    tried: on 512 held-out starts at most .7 of the best one's error (measured: .41 to .44 at five seeds)."""
    model = M8.denoiser(PATH)
    train, valid, test = _sets(model, 128, 128, 512)
    known = [
        entry
        for entry in candidates(PATH, 6)
        if entry.name.split()[0] in ("data", "noise", "dpm++2m", "unipc")
        and entry.name.endswith(("uniform", "quadratic", "logsnr"))
    ]
    assert len(known) > 40
    finalists = race(known, model, valid)
    found = search(finalists, model, train, valid, candidates=160, seed=0)
    assert found is not None and found.plan.nfe == 6
    assert test.error(model, found.plan) <= 0.7 * min(test.error(model, entry.plan) for entry in finalists)


def _compensable(nfe: int) -> rd.Plan:
    return rd.plan("dc-solver", PATH, nfe=nfe, grid="uniform", variants=("bh2",), final=True)


@pytest.mark.parametrize("nfe", [5, 6, 8])
def test_compensation_under_guidance(nfe):
    """Guidance 4, even times, order lowered at the end: mean squares over UniPC's of at most .94, .90 and .72 (measured
    .58, .70 and .70; over three seeds up to .80, .90 and .74).  DDIM, better than UniPC here from 6 evaluations on,
    is left behind at 5 and 6, and at 8 at one seed of three."""
    model = Product([law.denoiser(PATH) for law in PAIR], [-3.0, 4.0])
    train, valid, test = _sets(model, 64, 64, 256)
    plan = _compensable(nfe)
    plain, better = (test.error(model, p) for p in (plan, compensated(plan, compensate(plan, model, train, valid)[0])))
    assert (better / plain) ** 2 <= {5: 0.94, 6: 0.90, 8: 0.72}[nfe]
    assert nfe == 8 or better < test.error(model, rd.plan("ddim", PATH, nfe=nfe, grid="uniform"))


@cache
def _guided(guidance: float) -> tuple[rd.Denoiser, list[Trajectories]]:
    """The wide components, extrapolated from all of them to mostly the first."""
    laws = [M8, GaussianMixture(PAIR[1].weights, M8.means, M8.covariances)]
    model = Product([law.denoiser(PATH) for law in laws], [1 - guidance, guidance])
    return model, _sets(model, 96, 96, 256)


@pytest.mark.slow
def test_ratios_of_unseen_budgets_and_guidance():
    """Fitted at 5, 6 and 8 evaluations under guidance 1, 2 and 3; at 7 under 1.5, 2 and 2.5 the cascade keeps at least
    .8 of what fitting there gains, the mean of the three (measured at three seeds: .90, .90, .93; one by one .78 to
    1.03).  It does not where the field is rugged: of the narrow pair under guidance 2 to 6 it kept between .25 and .97,
    since fitted ratios there jump from budget to budget."""
    fitted, kept = {}, []
    for guidance in (1.0, 2.0, 3.0):
        model, (train, valid, _) = _guided(guidance)
        for nfe in (5, 6, 8):
            plan = _compensable(nfe)
            fitted[nfe, guidance] = compensate(plan, model, train, valid, trajectories=96)[0]
    cascade, plan = Cascade.fit(fitted), _compensable(7)
    for guidance in (1.5, 2.0, 2.5):
        model, (train, valid, test) = _guided(guidance)
        own = compensate(plan, model, train, valid, trajectories=96)[0]
        plain, best, foretold = (
            test.error(model, p) for p in (plan, compensated(plan, own), compensated(plan, cascade.at(guidance)))
        )
        assert best < plain
        kept.append((plain - foretold) / (plain - best))
    assert sum(kept) / 3 >= 0.8 and min(kept) > 0.65
