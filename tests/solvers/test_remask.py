"""Remasking: which schedules keep the marginals, and what they do to good and to over-confident networks."""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.denoisers import Denoiser, Sharpened
from retrodict.exact import Atoms
from retrodict.kernels import Belief, Categorical
from retrodict.processes import Blackout, Masked, TokenBridge
from retrodict.processes.discrete import one_hot_law
from retrodict.solvers import Plan, Remask
from retrodict.solvers.plan import Call
from solvers.discrete_laws import law_of, on_states, start_of, tv

KEEPING = {
    "none": None,
    "cap": Remask("cap", 0.2),
    "rescale": Remask("rescale", 0.6),
    "switch": Remask("switch", 0.3, on=0.6),
    "switch-rescale": Remask("switch", 0.3, on=0.6, inner="rescale"),
    "loop": Remask("loop", 0.3, on=0.7, off=0.2, level=0.8),
    "forward-backward": Remask("forward-backward"),
}
PAIRS = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
STEPS = (4, 16, 64, 256)


@pytest.mark.parametrize("steps", [3, 16, 40])
@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize(
    "process",
    [Masked(3), Masked(3, "cosine"), TokenBridge(3), Blackout(4, rate=5.0)],
    ids=["mask", "cos", "pair", "count"],
)
def test_marginals_are_kept_at_every_step(process, name, steps):
    """Row by row of the plan, given the clean value: what arrives at s is kappa_s, targets equal to the source too."""
    plan = rd.plan("step", process, steps=steps, remask=KEEPING[name], grid="uniform")
    rows = [c for c in plan.code if isinstance(c, Call)]
    states = torch.arange(process.classes)[:, None]
    for source in range(3) if process.ends == ("x0", "x1") else [None]:
        x1 = None if source is None else torch.full_like(states, source)
        for v in range(process.vocabulary):
            clean = torch.full_like(states, v)
            law = process.log_likelihood(states, 1.0, x1)[:, 0, v].exp()
            for row in rows:
                moved = process.bridge(states, row.t, row.s, row.options["eta"], x1).push(
                    one_hot_law(clean, process.vocabulary)
                )
                moved = moved.log_p.exp()[:, 0]
                law = law[law > 0] @ moved[law > 0]
                assert torch.allclose(law, process.log_likelihood(states, row.s, x1)[:, 0, v].exp(), atol=2e-15)
    if name not in ("none",) and steps == 16:
        assert sum(row.options["eta"] for row in rows) > 0.05  # and something was forgotten


def test_loop_stays_where_it_was_told():
    plan = rd.plan("step", Masked(2), steps=20, remask=KEEPING["loop"])
    rows = [c for c in plan.code if isinstance(c, Call)]
    still = [c for c in rows if c.t == c.s]
    assert len(still) == 10 and all(abs(c.t - 0.2) < 1e-12 for c in still)
    assert all(abs(c.options["eta"] * min(1, 0.2 / 0.8) - 0.25) < 1e-12 for c in still)  # at most sigma_max = .25
    assert rows[0].t == 1 and rows[-1].s == 0 and all(c.options["eta"] == 0 for c in rows if c.t != c.s)


#: TV to the data of two binary tokens, by enumeration; 4, 16, 64, 256 steps, alpha = 1 - t.
TABLE = {
    ("exact", None): (0.0380, 0.0095, 0.0024, 0.0006),
    ("exact", "cap"): (0.0388, 0.0130, 0.0073, 0.0044),
    ("exact", "rescale"): (0.0406, 0.0142, 0.0057, 0.0026),
    ("over-confident", None): (0.104, 0.082, 0.077, 0.076),
    ("over-confident", "cap"): (0.103, 0.073, 0.058, 0.0514),
    ("over-confident", "rescale"): (0.102, 0.073, 0.059, 0.0524),
}


def distances(weights: torch.Tensor, which: str, schedule: str | None) -> list[float]:
    process, law = Masked(2), Atoms(PAIRS, weights)
    denoiser: Denoiser = law.denoiser(process)
    if which == "over-confident":
        denoiser = Sharpened(denoiser, temperature=1 / 1.5)
    remask = None if schedule is None else Remask(schedule, {"cap": 0.1, "rescale": 0.3}[schedule])
    target, start = on_states(PAIRS, weights, 3), start_of(process, 2)
    return [tv(law_of(rd.plan("step", process, steps=K, remask=remask), denoiser, start), target) for K in STEPS]


@pytest.mark.parametrize(("which", "schedule"), TABLE)
def test_an_exact_network_wants_none_and_an_overconfident_one_gains(which, schedule):
    """The table for P = [[.40, .29], [.29, .02]]; published by another implementation to the digits shown."""
    weights = torch.tensor([0.40, 0.29, 0.29, 0.02], dtype=torch.float64)
    for ours, theirs in zip(distances(weights, which, schedule), TABLE[which, schedule]):
        digits = len(str(theirs)) - 2 if which == "over-confident" and theirs > 0.053 else 4
        assert abs(ours - theirs) < 0.6 * 10**-digits


def test_the_gain_is_a_third_and_more_steps_alone_do_not_help():
    weights = torch.tensor([0.40, 0.29, 0.29, 0.02], dtype=torch.float64)
    base, cap, rescale = (distances(weights, "over-confident", s) for s in (None, "cap", "rescale"))
    assert cap[3] <= 0.7 * base[3] and rescale[3] <= 0.7 * base[3] and base[3] > 0.9 * base[1]


def test_remasking_does_not_repair_overconfidence_in_general():
    """[[.55, .05], [.15, .25]] at 256 steps: .106 without, .115 with the cap."""
    weights = torch.tensor([0.55, 0.05, 0.15, 0.25], dtype=torch.float64)
    base, cap = (distances(weights, "over-confident", s)[-1] for s in (None, "cap"))
    assert abs(base - 0.106) < 6e-4 and abs(cap - 0.115) < 6e-4


def test_confidence_remasking_loses_marginals():
    """Two tokens, an over-confident network, 16 steps: the shown share falls short of keep(s) by more than .2 on the
    way (standard error .01), and the result is complete all the same."""
    weights = torch.tensor([0.40, 0.29, 0.29, 0.02], dtype=torch.float64)
    denoiser = Sharpened(Atoms(PAIRS, weights).denoiser(Masked(2)), 1 / 1.5)
    runs = {}
    for name in ("conf", "cap"):
        run = rd.sample(
            denoiser, 1500, steps=16, options={"remask": Remask(name)}, trajectory=True, progress=False, seed=0
        )
        shown = [(float((x != 2).double().mean()), 1 - t) for t, x in zip(run.trajectory.times, run.trajectory.x)]
        runs[name] = max(keep - share for share, keep in shown)
        assert int(run.x.max()) < 2
    assert 0.2 < runs["conf"] < 0.5 and abs(runs["cap"]) < 0.05


class Confident(Denoiser):
    """Surer of the first position than of the second."""

    def __init__(self) -> None:
        super().__init__(Masked(2), (2,))

    def belief(self, x, t, **condition):
        p = torch.tensor([[0.99, 0.01], [0.6, 0.4]], dtype=torch.float64).expand(len(x), 2, 2)
        shown = torch.nn.functional.one_hot(x.clamp(max=1), 2).double()
        p = torch.where((x == 2).unsqueeze(-1), p, shown)
        return Belief(p, law=Categorical(p.log()))


def test_confidence_forgets_what_was_least_sure():
    """Of pairs that are both shown, the second position is remasked more often, in the ratio of the softmax."""
    run = rd.sample(Confident(), 3000, steps=8, options={"remask": "conf"}, trajectory=True, progress=False)
    lost = torch.zeros(2)
    for before, after in zip(run.trajectory.x, run.trajectory.x[1:]):
        both = (before != 2).all(1) & (before[:, :] == 0).all(1)  # revealed as 0: confidences .99 and .6
        lost += ((after == 2) & both[:, None]).sum(0)
    ratio = float(lost[1] / lost[0])
    assert abs(ratio / float(torch.exp(torch.tensor(0.39))) - 1) < 0.2  # standard error .05
    assert int(run.x.max()) < 2


def test_plans_are_data():
    """A schedule is saved with its plan, by plain values."""
    for schedule in ("cap", "loop", "conf"):
        plan = rd.plan("step", Masked(3), steps=5, remask=Remask(schedule))
        again = Plan.from_dict(plan.to_dict())
        assert again == plan and again.meta == plan.meta
        assert plan == rd.plan("step", Masked(3), steps=5, remask=schedule)
        assert plan == rd.plan("step", Masked(3), steps=5, remask=Remask(schedule).config())
    assert rd.plan("step", Masked(3), steps=6, remask="cap").between(0.5).times[0] == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Remask("capp"), "Did you mean 'cap'"),
        (lambda: Remask("cap", 1.5), r"amount of remasking is in \[0, 1\]"),
        (lambda: Remask("loop", on=0.1, off=0.2), "0 < off < on < 1"),
        (lambda: Remask("loop", level=1.0), "level is a share"),
        (lambda: Remask("switch", inner="conf"), "inner is 'cap' or 'rescale'"),
        (lambda: rd.plan("step", rd.VP(), steps=3, remask="cap"), "needs masks or a token bridge"),
        (lambda: rd.plan("step", rd.Uniform(3), steps=3, remask="cap"), "eta= is the share of fresh noise"),
        (lambda: rd.plan("step", Blackout(3), steps=3, remask="conf"), "needs masks or a token bridge"),
        (lambda: rd.plan("step", Masked(3), steps=3, remask="cap", eta=0.3), "leave out eta=0.3"),
    ],
)
def test_wrong_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_schedule_is_a_schedule():
    with pytest.raises(InputTypeError, match="remask is a Remask, a name or None, got float"):
        rd.plan("step", Masked(3), steps=3, remask=0.3)
