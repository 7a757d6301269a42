"""Plans as data: files, cuts, budgets, printing, and errors that say what to do."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.diagnostics.certificate import execute
from retrodict.solvers.plan import Plan, Row
from solvers.solver_cases import M8, ONE_ENDED, case_id, cases, interpolant, starts

VP = ONE_ENDED["vp-linear"]
CASES = cases()


def _plan(case, **words) -> Plan:
    name, options = case
    return rd.plan(name, VP, **words, **{k: v for k, v in options.items() if k != "lacks"})


def _run(plan: Plan, x: torch.Tensor) -> torch.Tensor:
    return execute(plan, M8.denoiser(VP), x, KeyedNoise(0, len(x), dtype=torch.float64))


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_json_round_trip(case, tmp_path):
    """A plan read back is equal, runs to the same bits, and can still be cut."""
    plan = _plan(case, steps=5)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan and again.nfe == plan.nfe and again.order == plan.order
    x = starts("vp-linear")[:4]
    assert torch.equal(_run(again, x), _run(plan, x))
    assert (
        again.between(0.6).equivalent(plan.between(0.6)) if not plan.opaque else again.between(0.6) == plan.between(0.6)
    )
    json.dumps(plan.to_dict(), allow_nan=False)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_between_starts_in_the_middle(case):
    """A cut plan visits the same times, and runs from a state that was noised to its start."""
    plan = _plan(case, steps=8)
    cut = plan.between(0.55)
    assert cut.start_time == 0.55 and cut.times[-1] == 0 and set(cut.times[1:]) <= set(plan.times)
    x = VP.corrupt(M8.sample(16, seed=1), 0.55, KeyedNoise(2, 16, dtype=torch.float64))
    out = _run(cut, x)
    assert bool(torch.isfinite(out).all()) and float(out.abs().max()) < 20
    open_end = plan.between(0.9, 0.3)
    assert open_end.times[0] == 0.9 and open_end.times[-1] == 0.3 and open_end.meta["end"] == 0.3


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm-solver++-2s", "rk4", "flow-heun"])
def test_plans_without_history_compose(name):
    """First half, then second half, is the whole: at a time of the grid a method without history does not notice."""
    plan = rd.plan(name, VP, steps=6)
    middle = plan.times[3]
    x = starts("vp-linear")[:8]
    halves = _run(plan.between(middle), _run(plan.between(1.0, middle), x))
    assert float((halves - _run(plan, x)).abs().max()) < 1e-10


def test_free_coefficients_do_not_regenerate():
    plan = rd.plan("ddim", VP, steps=3)
    free = Plan(plan.code, plan.out, plan.times, plan.process, {"solver": "mine"})
    with pytest.raises(InputError, match="free coefficients"):
        free.between(0.5)
    with pytest.raises(InputError, match="free coefficients"):
        rd.solvers.regrid(free, "karras", 4)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_printing(case):
    plan = _plan(case, steps=3)
    text = plan.table()
    assert text.count("denoiser(") == plan.nfe and text.splitlines()[-1] == f"      result: X{plan.out}"
    assert len(repr(plan)) < 400 and f"{plan.nfe} evaluations" in repr(plan) and plan.meta["solver"] in repr(plan)


@pytest.mark.parametrize("case", CASES, ids=case_id)
@pytest.mark.parametrize("nfe", [5, 8, 10, 13])
def test_budgets_are_met_or_the_neighbours_are_named(case, nfe):
    try:
        plan = _plan(case, nfe=nfe)
    except InputError as error:
        numbers = [
            int(word.strip(",.")) for word in str(error).split("nearest are")[1].split() if word.strip(",.").isdigit()
        ]
        assert numbers and nfe not in numbers
        for count in numbers:
            assert _plan(case, nfe=count).nfe == count
        if len(numbers) == 2:
            assert numbers[0] < nfe < numbers[1]
        return
    assert plan.nfe == nfe


def test_official_orders_of_singlestep_blocks():
    for nfe, orders in [(9, [3, 3, 2, 1]), (10, [3, 3, 3, 1]), (11, [3, 3, 3, 1, 1])]:
        plan = rd.plan("dpm-solver++-3s", VP, nfe=nfe)
        assert list(plan.meta["options"]["orders"]) == orders and plan.nfe == nfe
    open_end = rd.plan("dpm-solver++-3s", VP, nfe=11, end=1e-3)
    assert list(open_end.meta["options"]["orders"]) == [3, 3, 3, 2] and open_end.nfe == 11
    assert rd.plan("dpm-solver++-2s", VP, nfe=9).steps == 5


def test_functions_of_time_become_data(tmp_path):
    plan = rd.plan("flow-sde", interpolant(), steps=4, epsilon=lambda t: 1 + t)
    table = plan.meta["options"]["epsilon"]
    assert len(table) == 257 and table[0] == 1.0 and table[-1] == 2.0
    same = rd.plan("flow-sde", interpolant(), steps=4, epsilon=list(table))
    assert plan == same
    plan.save(tmp_path / "p.json")
    with pytest.raises(InputError, match="pass process="):
        Plan.load(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json", interpolant()) == plan


def test_a_preset_name_fixes_its_options():
    assert rd.plan("dpm++2m", VP, steps=4).meta["solver"] == "dpm-solver++"
    assert rd.plan("dpm++2m", VP, steps=4, order=2).meta["options"]["order"] == 2
    with pytest.raises(InputError, match="this name fixes order=2"):
        rd.plan("dpm++2m", VP, steps=4, order=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solver": "unpic", "steps": 3}, "unknown solver 'unpic'.*Did you mean 'unipc'"),
        ({"solver": "unipc", "steps": 3, "ordre": 2}, "unknown option 'ordre'.*Did you mean 'order'"),
        ({"solver": "ddim", "steps": 0}, "steps is an integer of at least 1, got 0"),
        ({"solver": "ddim", "steps": 2.5}, "steps is an integer"),
        ({"solver": "ddim", "nfe": 0}, "nfe is an integer of at least 1"),
        ({"solver": "ddim"}, "give steps .* or nfe"),
        ({"solver": "ddim", "steps": 3, "nfe": 3}, "one of the two"),
        ({"solver": "ddim", "steps": 3, "eta": 1.5}, "eta is the share"),
        ({"solver": "unipc", "steps": 3, "eta": 0.5}, "deterministic: eta must be 0"),
        ({"solver": "ddpm", "steps": 3, "eta": 0.0}, "stochastic by nature"),
        ({"solver": "heun", "nfe": 6}, "no number of steps of 'heun' makes 6 evaluations; the nearest are 5 or 7"),
        ({"solver": "ddim", "steps": 3, "start": 0.0}, "0 <= end < start <= 1"),
        ({"solver": "ddim", "steps": 3, "end": 1.0}, "0 <= end < start <= 1"),
        ({"solver": "ddim", "grid": [1.0, 0.5, 0.0], "steps": 3}, "gives 3 times, so 2 steps"),
        ({"solver": "adams", "steps": 3, "order": 9}, "order is an integer from 1 to 6"),
        ({"solver": "adams", "steps": 3, "kind": "nosie", "order": 1}, "Did you mean 'noise'"),
        ({"solver": "adams", "steps": 3, "corrector": True, "eta": 0.5}, "a corrector needs eta = 0"),
        ({"solver": "adams", "steps": 3, "kind": "flow", "eta": 0.5}, "eta > 0 needs kind"),
        ({"solver": "adams", "steps": 3, "tau": "lamda", "order": 2}, "Did you mean 'lambda'"),
        ({"solver": "adams", "steps": 3, "final": "yes"}, "final is True"),
        ({"solver": "unipc", "steps": 3, "variant": "bh3"}, "variant is one of"),
        ({"solver": "unipc", "steps": 3, "kind": "flow"}, "kind is 'data' or 'noise'"),
        ({"solver": "dpm-solver++", "steps": 3, "weights": "midpiont"}, "Did you mean 'midpoint'"),
        ({"solver": "deis", "steps": 3, "variant": "tba"}, "Did you mean 'tab'"),
        ({"solver": "plms", "steps": 3, "warmup": "huen"}, "Did you mean 'heun'"),
        ({"solver": "rho-rk", "steps": 3, "tableau": "rk45"}, "Did you mean 'rk4'"),
        ({"solver": "edm", "steps": 3, "s_churn": -1.0}, "s_churn >= 0"),
        ({"solver": "pc", "steps": 3, "snr": 0.0}, "snr is positive"),
        ({"solver": "pc", "steps": 3, "predictor": "ancestor"}, "Did you mean 'ancestral'"),
        ({"solver": "dpm-solver++-3s", "steps": 3, "orders": [3, 3]}, "one number a step"),
        ({"solver": "dpm-solver++-3s", "nfe": 6, "orders": [3, 3]}, "with nfe they are derived"),
        ({"solver": "flow-sde", "steps": 3, "epsilon": -1.0}, "epsilon is a noise level"),
    ],
    ids=lambda v: str(v) if isinstance(v, str) else None,
)
def test_bad_input_says_what_to_do(arguments, message):
    with pytest.raises(InputError, match=message):
        rd.plan(arguments.pop("solver"), VP, **arguments)


def test_cuts_outside_the_plan_are_refused():
    plan = rd.plan("ddim", VP, steps=4, start=0.8)
    with pytest.raises(InputError, match=r"runs from 0\.8 to 0"):
        plan.between(0.9)


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "a").write_text("not json")
    (tmp_path / "b").write_text("[1]")
    (tmp_path / "c").write_text('{"format": 99, "code": []}')
    bad = rd.plan("ddim", VP, steps=2).to_dict()
    bad["code"][0]["kind"] = "jump"
    (tmp_path / "d").write_text(json.dumps(bad))
    for name, message in [
        ("a", "not a plan file"),
        ("b", "not a plan"),
        ("c", "format 1"),
        ("d", "unknown instruction"),
    ]:
        with pytest.raises(InputError, match=message):
            Plan.load(tmp_path / name)


def test_normal_form_of_a_plan_by_hand():
    """Two DDIM steps, multiplied out."""
    plan = rd.plan("ddim", VP, grid=[0.9, 0.5, 0.2])
    alpha, sigma, _ = VP.schedule(np.array(plan.times))
    a1, a2 = sigma[1] / sigma[0], sigma[2] / sigma[1]
    form = plan.normal_form()
    assert np.isclose(form.start_weight, a1 * a2)
    assert np.allclose(form.data_weights, [a2 * (alpha[1] - a1 * alpha[0]), alpha[2] - a2 * alpha[1]])


def test_density_is_declared_only_where_every_move_has_noise():
    assert rd.plan("ddim", VP, steps=4, eta=1.0).has_density and rd.plan("sde-dpm-solver++", VP, steps=4).has_density
    assert not rd.plan("ddim", VP, steps=4).has_density and not rd.plan("edm", VP, steps=8).has_density
    assert (
        rd.plan("step", rd.Masked(3), steps=4).has_density and not rd.plan("pc", VP, steps=4, step="norm").has_density
    )


def test_registers_are_written_before_they_are_read():
    for case in CASES:
        plan = _plan(case, steps=5)
        known = {"x0"}
        for c in plan.code:
            assert set(c.reads()) <= known
            known.add(c.writes())
        assert f"x{plan.out}" in known and all(isinstance(c, Row) or c for c in plan.code)
