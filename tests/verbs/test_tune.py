"""`tune`: never worse than its start, repeatable, and its plans are plans like any other."""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.solvers.tuning import Effort, candidates
from solvers.solver_cases import M8, interpolant

MODEL = M8.denoiser(rd.VP("cosine"))
QUICK = {"trajectories": 64, "effort": Effort(steps=0, polish=6, candidates=24), "progress": False}


@pytest.fixture(scope="module", autouse=True)
def _short_race():
    """Every sixth candidate: the whole field costs most of the time, and is run in the tests of the race."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrodict.solvers.tuning.tune.candidates", lambda *words: candidates(*words)[::6])
        yield


@pytest.fixture(scope="module")
def tuned():
    return rd.tune(MODEL, [3, 4], **QUICK)


def test_tuning_wins_on_trajectories_that_had_no_say(tuned):
    """Of a smooth mixture at 3 and 4 evaluations at least a third of the error goes (measured: three quarters)."""
    for row in tuned.table:
        assert row["after"] <= 0.67 * row["before"] and row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    for nfe, plan in tuned.plans.items():
        assert plan.nfe == nfe and plan.meta["tuned"]["evaluations"] == nfe


def test_no_method_is_worse_than_the_race_where_it_is_chosen(tuned):
    for budget in tuned.budgets.values():
        best = min(budget.tried.values())
        assert budget.tried[budget.method] == best <= budget.tried["race"]
        assert budget.tried["compensate"] <= budget.tried["search"]


def test_equal_seeds_give_equal_plans(tuned):
    again = rd.tune(MODEL, [3], **QUICK)
    assert again.plans[3] == tuned.plans[3]
    assert rd.tune(MODEL, 3, seed=1, **QUICK).plans[3] != tuned.plans[3]


def test_the_files_give_bitwise_the_same_samples(tuned, tmp_path):
    files = tuned.save(tmp_path / "plan.json")
    assert [f.name for f in files] == ["plan.json", "plan-3.json", "plan-4.json"]
    for name, nfe in (("plan.json", 4), ("plan-3.json", 3)):
        kept = rd.sample(MODEL, 8, plan=tmp_path / name, seed=5, progress=False)
        assert torch.equal(kept.x, rd.sample(MODEL, 8, plan=tuned.plans[nfe], seed=5, progress=False).x)
        picked = rd.sample(MODEL, 8, plan=tmp_path / "plan.json", nfe=nfe, seed=5, progress=False)
        assert kept.nfe == picked.nfe == nfe and torch.equal(kept.x, picked.x)
    with pytest.raises(InputError, match=r"not of 5; beside it: 3 \(plan-3.json\), 4 \(plan-4.json\)"):
        rd.sample(MODEL, 8, plan=tmp_path / "plan.json", nfe=5)
    with pytest.raises(InputError, match="free coefficients"):
        tuned.plans[4].between(0.5)
    with pytest.raises(InputError, match="json"):
        tuned.save(tmp_path / "plan.txt")


def test_the_error_told_is_that_of_the_samples(tuned):
    """`after` is the distance to an accurate run from the starts of the third seed."""
    start = rd.sample(MODEL, 32, plan=rd.plan("ddim", MODEL.process, nfe=2), seed=2, progress=False)
    assert start.nfe == 2
    fine = rd.plan("adams", MODEL.process, nfe=320, kind="flow", order=3, corrector=True, grid="angle")
    ours, truth = (rd.sample(MODEL, 32, plan=p, seed=2, progress=False).x for p in (tuned.plans[4], fine))
    error = float((ours - truth).norm(dim=1).square().mean().sqrt())
    assert error == pytest.approx(tuned.budgets[4].after, rel=2e-3)


def test_conditions_go_in_turn_under_guidance_and_trajectories_are_kept(tmp_path):
    law = rd.exact.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [0.2, 0.1], labels=[0, 1])
    model = law.denoiser(rd.VP("cosine"))
    words = {**QUICK, "guidance": 2.0, "label": torch.arange(2), "cache": tmp_path, "methods": ["free"]}
    first = rd.tune(model, 3, **words)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert len(files) == 3 and first.table[0]["ratio"] < 1
    assert rd.tune(model, 3, **words).plans[3] == first.plans[3]
    assert sorted(p.name for p in tmp_path.iterdir()) == files
    rd.tune(model, 3, **{**words, "guidance": 1.5})
    assert len(list(tmp_path.iterdir())) == 6, "trajectories of another guidance scale were taken for these"


def test_a_network_is_tuned_by_gradient_and_left_as_it_was():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x, t):
            return self.inner(x)

    model = rd.Denoiser.wrap(Net(), rd.VP("cosine"), predicts="data", shape=(2,))
    model.train()
    before = [p.clone() for p in model.parameters()]
    words = {**QUICK, "effort": Effort(steps=24, batch=32, candidates=16), "methods": ["free"]}
    found = rd.tune(model, 3, **words)
    assert found.budgets[3].method in ("free", "race") and found.table[0]["after"] <= found.table[0]["before"] * 1.05
    assert all(torch.equal(a, b) and b.requires_grad and b.grad is None for a, b in zip(before, model.parameters()))
    assert model.training


def test_a_network_descends_from_the_start_whose_valley_is_deepest():
    """Of two finalists the better start is in the worse valley (measured: .15 to .05, and .24 to .006)."""
    from retrodict.solvers.tuning import Entry, Sets, teach, teacher, tune_budget

    model = M8.denoiser(rd.VP("cosine"))
    model.register_parameter("unused", torch.nn.Parameter(torch.zeros(())))  # so that it is tuned as networks are
    plan = teacher(model, 160)
    sets = Sets(*(teach(model, n, plan, shape=(2,), seed=s) for s, n in ((1, 256), (2, 128), (3, 128))))
    trap = rd.plan("unipc", model.process, nfe=4, grid="karras", order=2)
    deep = rd.plan("deis", model.process, nfe=4, grid={"name": "flow", "shift": 0.5}, degree=3)
    entries = [Entry(name, p, sets.valid.error(model, p)) for name, p in (("trap", trap), ("deep", deep))]
    assert entries[0].error < 0.8 * entries[1].error
    words = {"methods": ["free"], "finalists": entries}
    one, both = (tune_budget(model, 4, sets, effort=Effort(batch=64, pilots=n), **words) for n in (1, 4))
    assert both.after < 0.25 * one.after and both.start_name == "trap"


def test_few_trajectories_ask_for_more():
    """Eight trajectories and twenty-seven coefficients: what is learned does not hold elsewhere, and it says so."""
    from retrodict.solvers.tuning import Sets, teach, teacher, tune_budget

    plan = teacher(MODEL, 160)
    few, valid, test = (teach(MODEL, n, plan, shape=(2,), seed=s) for s, n in ((7, 8), (8, 64), (9, 64)))
    budget = tune_budget(MODEL, 6, Sets(few, valid, test), methods=["free"], effort=Effort(steps=0, polish=12))
    assert budget.wants_more and budget.row()["more_trajectories"]


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"evaluations": 1}, InputError, "at least 2"),
        ({"evaluations": []}, InputError, "at least 2"),
        ({"evaluations": [4.5]}, InputError, "integers"),
        ({"methods": ["serch"]}, InputError, "search"),
        ({"methods": "free"}, InputTypeError, "list of names"),
        ({"trajectories": 4}, InputError, "at least 32"),
        ({"guidance": float("inf")}, InputError, "finite"),
        ({"guidance": 2.0}, InputError, "null value"),
        ({"label": 3}, InputError, "unknown condition"),
        ({"teacher_evaluations": 6}, InputError, "at least twice"),
    ],
)
def test_wrong_words_are_refused(words, error, message):
    with pytest.raises(error, match=message):
        rd.tune(MODEL, **{"evaluations": 5, **QUICK, **words})


def test_processes_without_rows_are_refused():
    with pytest.raises(InputError, match="one end"):
        rd.tune(M8.denoiser(interpolant(), x1=M8), 4, progress=False)
