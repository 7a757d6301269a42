"""Error control: the tolerance is kept against an independent solution, and the recorded plan replays the run."""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.diagnostics.certificate import execute, flow_map
from retrodict.solvers import adaptive
from retrodict.solvers.plan import Plan
from solvers.solver_cases import FRONTIER, M8, ONE_ENDED, interpolant, starts


@pytest.mark.parametrize("kind", ["velocity", "flow", "noise"])
def test_errors_follow_the_tolerance(kind):
    process = ONE_ENDED["vp-linear"]
    denoiser, x = FRONTIER.denoiser(process), starts("vp-linear")
    exact = flow_map(denoiser, x, 1.0, 1e-3)
    errors = []
    for tol in (1e-2, 1e-3, 1e-4):
        run = adaptive(process, denoiser, x, rtol=tol, atol=tol, kind=kind, end=1e-3)
        errors.append(float((run.x - exact).flatten(1).norm(dim=1).mean()))
        assert errors[-1] < 5 * tol
        assert run.evaluations >= run.plan.nfe and run.plan.order == 3
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


@pytest.mark.parametrize("process", ONE_ENDED)
def test_the_recorded_plan_replays_the_run(process, tmp_path):
    """From pure noise to sigma = 0 on every path; also after a file, and cut in the middle."""
    path = ONE_ENDED[process]
    denoiser, x = M8.denoiser(path), starts(process)
    run = adaptive(path, denoiser, x, rtol=1e-2, atol=1e-2)
    replayed = execute(run.plan, denoiser, x, KeyedNoise(0, len(x), dtype=x.dtype))
    assert float((replayed - run.x).abs().max()) < 1e-12
    run.plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == run.plan
    assert run.plan.between(0.4).times[1:] == tuple(t for t in run.plan.times if t < 0.4)


def test_rejected_steps_are_not_recorded():
    process = ONE_ENDED["vp-linear"]
    run = adaptive(process, FRONTIER.denoiser(process), starts("vp-linear"), rtol=1e-3, atol=1e-3, kind="noise")
    assert run.rejected > 0 and run.evaluations > run.plan.nfe
    assert run.plan.meta["tolerance"] == {"rtol": 1e-3, "atol": 1e-3}


def test_the_worst_sample_sets_the_step():
    """One easy and one hard start: the tolerance holds for both, and the easy one alone is cheaper."""
    process = ONE_ENDED["vp-linear"]
    denoiser = FRONTIER.denoiser(process)
    easy = torch.tensor([[4.0, 0.0]], dtype=torch.float64)
    both = torch.cat([easy, starts("vp-linear")])
    alone = adaptive(process, denoiser, easy, end=1e-3).plan.nfe
    assert adaptive(process, denoiser, both, end=1e-3).plan.nfe > alone


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"rtol": 0.0}, "tolerances are positive"),
        ({"tableau": "rk4"}, "no embedded error"),
        ({"kind": "data"}, "kind is"),
        ({"max_evaluations": 5, "rtol": 1e-6, "atol": 1e-6}, "more than 5 evaluations"),
    ],
)
def test_bad_input(words, message):
    process = ONE_ENDED["vp-linear"]
    with pytest.raises(InputError, match=message):
        adaptive(process, M8.denoiser(process), starts("vp-linear"), **words)


def test_paths_that_it_cannot_take():
    flow = ONE_ENDED["rectified-flow"]
    with pytest.raises(InputError, match="infinite where alpha = 0"):
        adaptive(flow, M8.denoiser(flow), starts("vp-linear"), kind="noise")
    with pytest.raises(InputTypeError, match="noise grows"):
        adaptive(interpolant(), None, starts("vp-linear"))
    with pytest.raises(InputTypeError, match="Gaussian path"):
        adaptive(rd.Masked(3), None, starts("vp-linear"))
