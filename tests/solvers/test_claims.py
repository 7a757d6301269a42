"""Every registered solver on every process keeps what it claims, and gives up what it does not claim."""

from __future__ import annotations

from typing import Any

import pytest

import retrodict as rd
from retrodict.diagnostics import certificate
from retrodict.processes import GaussianPath, Process, processes
from retrodict.solvers import solvers
from retrodict.solvers.registry import CLAIMS
from solvers.solver_cases import M8, ONE_ENDED, case_id, cases, interpolant, starts

CASES = cases()
ENTRIES = {entry.name: entry for _, entry in solvers.items()}


def _make(case: tuple[str, dict[str, Any]], process: Process, **words: Any) -> rd.Plan:
    name, options = case
    options = {k: v for k, v in options.items() if k != "lacks"}
    return rd.plan(name, process, **words, **options)


def _claims(case: tuple[str, dict[str, Any]]) -> set[str]:
    return set(ENTRIES[case[0]].claims) - set(case[1].get("lacks", ()))


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda e: e.name)
def test_declarations_are_complete(entry):
    assert set(entry.claims) <= set(CLAIMS)
    assert entry.doc and not entry.doc.startswith("TODO")
    stochastic = entry.eta != "none" or entry.name == "edm"
    opaque = "bridge" in entry.claims
    expected = {"bridge"} if opaque else {"constant", "order"} | ({"variance"} if stochastic else set())
    for claim in expected - set(entry.claims):
        assert len(entry.without.get(claim, "")) > 20, f"{entry.name} gives no reason for not claiming {claim}"


@pytest.mark.parametrize("process", ONE_ENDED)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_identities_hold_where_claimed(case, process):
    """A constant denoiser is integrated exactly, on the solver's own grid, to the clean end and to an earlier one."""
    if "bridge" in _claims(case):
        return
    for words in ({"steps": 7}, {"steps": 6, "end": 0.02}, {"steps": 5, "grid": "uniform", "end": 0.1}):
        plan = _make(case, ONE_ENDED[process], **words)
        if "constant" in _claims(case):
            finding = certificate.constant_identity(plan, tol=1e-9)
            assert finding, finding
        if "variance" in _claims(case) and words.get("end") and plan.noises:
            finding = certificate.variance_identity(plan, tol=1e-9)
            assert finding, finding


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_what_is_not_claimed_fails(case):
    """On VP with linear betas the identities that a solver gives up are off by far more than rounding."""
    claims = _claims(case)
    if "bridge" in claims:
        return
    plan = _make(case, ONE_ENDED["vp-linear"], steps=6, end=0.02)
    if "constant" not in claims:
        assert certificate.constant_identity(plan).value > 1e-3
    if "variance" not in claims and plan.noises:
        assert certificate.variance_identity(plan).value > 1e-4


@pytest.mark.parametrize("name", ["ddim", "flow-euler", "flow-heun", "flow-ab", "flow-sde", "euler-ancestral"])
def test_constant_ends_on_an_interpolant(name):
    for words in ({"steps": 7}, {"steps": 6, "start": 0.9, "end": 0.1}):
        finding = certificate.constant_identity(rd.plan(name, interpolant(), **words))
        assert finding, finding


def _examples() -> dict[str, Process]:
    """An instance of every registered process."""
    made: dict[str, Process] = {"token-bridge": rd.TokenBridge(4), "masked": rd.Masked(4)}
    for name, cls in processes.items():
        if name not in made:
            made[name] = cls()
    return made | ONE_ENDED | {"interpolant-from-code": interpolant()}


@pytest.mark.parametrize("name", _examples())
def test_bridges_map_one_time_laws_to_each_other(name):
    """What `step` claims, of every registered process and every eta: the bridge steps between its own laws."""
    finding = certificate.bridge_consistency(_examples()[name])
    assert finding, finding


@pytest.mark.parametrize("name", _examples())
def test_every_process_has_a_plan(name):
    process = _examples()[name]
    assert rd.plan("step", process, steps=3).nfe == 3
    if isinstance(process, GaussianPath) and process.scalar:
        assert rd.plan("ddim", process, steps=3).nfe == 3


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_evaluations_unrolling_and_repetition(case):
    """The plan makes the evaluations it says, its normal form is its run, and a sample does not depend on its batch."""
    process = ONE_ENDED["vp-cosine"]
    denoiser = M8.denoiser(process)
    plan = _make(case, process, steps=6)
    x = starts("vp-cosine")[:6]
    for finding in [
        certificate.evaluations(plan, denoiser, x),
        certificate.reproducibility(plan, denoiser, (2,), n=3),
        *([] if plan.opaque else [certificate.unroll(plan, denoiser, x)]),
    ]:
        assert finding, finding
