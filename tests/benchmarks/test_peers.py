"""The benchmarks' peers are driven rightly: each equals the plan of ours that claims the same solver and grid.

The problem is a mixture with its exact denoiser, so agreement is down to rounding (diffusers keeps levels in float32).
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import retrodict as rd

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from peers.azula_samplers import azula_peers
from peers.diffusers_schedulers import diffusers_peers
from peers.problem import Peer, Problem
from peers.race import Finish, race, ratio_interval, run
from peers.sigma_samplers import sigma_peers

STEPS = 8
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers with NumPy


def make_problem() -> Problem:
    law = rd.exact.GaussianMixture([0.3, 0.7], [(1.0, 0.2), (-0.7, -0.4)], [0.1, 0.3])
    path = rd.DDPM()
    noise = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Problem(path, law.denoiser(path), noise)


def pick(peers: list[Peer], sampler: str, **flags: Any) -> Peer:
    found = [p for p in peers if p.sampler == sampler and p.flags == flags]
    assert len(found) == 1, f"{len(found)} peers are {sampler} with {flags}"
    return found[0]


def compare(peer: Peer, problem: Problem, passes: int, tolerance: float, solver: str, **words: Any) -> None:
    problem.passes = 0
    theirs = peer.run(problem, passes)
    assert problem.passes == passes
    plan = rd.plan(solver, problem.path, **words)
    assert plan.nfe == passes
    end = plan.times[-1] if words.get("end") is not None else 0.0
    ours = problem.run_plan(plan) / float(problem.path.alpha(end))
    assert theirs is not None
    assert float((theirs - ours).abs().max()) < tolerance


@pytest.mark.parametrize(
    ("sampler", "grid", "solver", "options"),
    [
        ("euler", "karras", "ddim", {}),
        ("heun", "karras", "heun", {}),
        ("dpm_2", "exponential", "dpm-solver-2s", {"weights": "midpoint"}),
        ("lms", "karras", "lms", {"order": 4}),
        ("ipndm", "exponential", "plms", {"order": 4}),
        ("dpmpp_2s", "exponential", "dpm-solver++-2s", {"weights": "midpoint"}),
        ("dpmpp_2m", "karras", "dpm++2m", {}),
    ],
)
def test_sigma_samplers(sampler: str, grid: str, solver: str, options: dict[str, Any]) -> None:
    problem = make_problem()
    peer = pick(sigma_peers(problem), sampler, grid=grid, sigma_min="path", sigma_max="path")
    passes = 2 * STEPS - 1 if sampler in ("heun", "dpm_2", "dpmpp_2s") else STEPS
    ours = {"exponential": "logsnr"}.get(grid, grid)
    compare(peer, problem, passes, 1e-9, solver, steps=STEPS, grid=ours, **options)


@pytest.mark.parametrize(
    ("scheduler", "flags", "solver", "options"),
    [
        ("DDIM", {"timestep_spacing": "trailing"}, "ddim", {"grid": "trailing"}),
        ("DDIM", {"timestep_spacing": "leading"}, "ddim", {"grid": "leading"}),
        ("EulerDiscrete", {"use_karras_sigmas": True, "final_sigmas_type": "zero"}, "ddim", {"grid": "karras"}),
        ("HeunDiscrete", {"timestep_spacing": "trailing"}, "heun", {"grid": "trailing"}),
        ("LMSDiscrete", {"use_karras_sigmas": True}, "lms", {"grid": "karras"}),
        ("KDPM2Discrete", {"use_exponential_sigmas": True}, "dpm-solver-2s", {"grid": "logsnr", "weights": "midpoint"}),
        (
            "DPMSolverMultistep",
            {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_exponential_sigmas": True}
            | {"final_sigmas_type": "zero"},
            "dpm++2m",
            {"grid": "logsnr"},
        ),
        (
            "UniPCMultistep",
            {"solver_order": 2, "solver_type": "bh2", "predict_x0": True, "timestep_spacing": "trailing"}
            | {"final_sigmas_type": "zero"},
            "unipc",
            {"grid": "trailing"},
        ),
        (
            "EDMDPMSolverMultistep",
            {"sigma_schedule": "karras", "sigma_min": 0.002, "solver_order": 2},
            "dpm++2m",
            {"grid": "karras of EDM"},
        ),
    ],
)
def test_diffusers(scheduler: str, flags: dict[str, Any], solver: str, options: dict[str, Any]) -> None:
    pytest.importorskip("diffusers")
    problem = make_problem()
    words = {"steps": STEPS} | options
    if options["grid"] == "karras of EDM":  # levels from the starts' down to .002, which is below the table's first
        levels = torch.linspace(problem.rho_max ** (1 / 7), 0.002 ** (1 / 7), STEPS, dtype=torch.float64) ** 7
        times = problem.path.time_at(-levels.log()).tolist()
        words = {"grid": [1.0, *times[1:], 0.0]}
    passes = 2 * STEPS - 1 if scheduler in ("HeunDiscrete", "KDPM2Discrete") else STEPS
    peer = pick(diffusers_peers(problem), scheduler, **flags)
    if scheduler in ("DDIM", "DPMSolverMultistep", "UniPCMultistep", "EDMDPMSolverMultistep"):  # from z, not sigma z
        peer = replace(peer, run=starting_at_sigma(peer.run))
    compare(peer, problem, passes, 1e-5, solver, **words)


def starting_at_sigma(run: Any) -> Any:
    def scaled(problem: Problem, passes: int) -> Any:
        noise = problem.noise
        problem.noise = noise * float(problem.path.sigma(1.0))
        try:
            return run(problem, passes)
        finally:
            problem.noise = noise

    return scaled


@pytest.mark.parametrize(
    ("sampler", "options", "solver", "words"),
    [
        ("EulerSampler", {}, "ddim", {}),
        ("HeunSampler", {}, "heun", {}),
        ("zABSampler", {"order": 3}, "lms", {"order": 3, "final": False}),
        ("vABSampler", {"order": 3}, "adams", {"kind": "flow", "order": 3, "final": False}),
        ("zEABSampler", {"order": 3}, "adams", {"kind": "noise", "order": 3, "final": False}),
        ("xEABSampler", {"order": 3}, "adams", {"kind": "data", "order": 3, "final": False}),
    ],
)
def test_azula(sampler: str, options: dict[str, Any], solver: str, words: dict[str, Any]) -> None:
    pytest.importorskip("azula")
    problem = make_problem()
    peer = pick(azula_peers(problem), sampler, schedule="process", **options)
    passes = 2 * STEPS if sampler == "HeunSampler" else STEPS
    compare(peer, problem, passes, 1e-8, solver, steps=STEPS, grid="uniform", end=1e-3, **words)


def test_flow_schedulers_reach_the_flow() -> None:
    """With flow flags there is no plan of ours to equal: many steps come to the end of the flow, of second order."""
    pytest.importorskip("diffusers")
    problem = make_problem()
    flags = {"solver_order": 2, "solver_type": "bh2", "predict_x0": True, "final_sigmas_type": "zero"}
    peer = pick(diffusers_peers(problem), "UniPCMultistep", use_flow_sigmas=True, flow_shift=1.0, **flags)
    exact = problem.run_plan(rd.plan("unipc", problem.path, steps=400))
    errors = [float((peer.run(problem, n) - exact).norm(dim=1).mean()) for n in (10, 40)]  # type: ignore[operator]
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 4


def test_the_interval_of_a_ratio() -> None:
    """Errors of equal law have a ratio near one; the best of two is chosen anew in every resample."""
    g = torch.Generator().manual_seed(0)
    a, b, c = (torch.rand(400, dtype=torch.float64, generator=g) for _ in range(3))
    finish = [Finish(None, e, 8) for e in (a, b, c)]  # type: ignore[arg-type]
    low, high = ratio_interval(finish[0], finish[1:2])
    assert low < 1 < high
    assert ratio_interval(finish[0], finish[1:])[0] > low
    assert ratio_interval(finish[0], finish[:1]) == (1.0, 1.0)


def test_a_race_keeps_the_best_and_the_first_of_every_library() -> None:
    """Samplers that miss the end point by a known distance: heats drop by that distance, never a whole library."""
    problem = make_problem()
    problem.reference = torch.zeros_like(problem.noise)
    offset = {"a1": 1.0, "a2": 2.0, "a3": 3.0, "b1": 9.0, "b2": 10.0}

    def miss(name: str) -> Any:
        return lambda p, passes: p.noise * 0 + offset[name] / 2**0.5

    peers = [Peer(name[0], name, {}, miss(name)) for name in offset]
    final, errors = race(peers, problem, 5, [(4, 2)])
    assert [f.runner.sampler for f in final] == ["a1", "a2", "b1"]  # type: ignore[attr-defined]
    assert errors == pytest.approx({p.name: offset[p.sampler] for p in peers})


def test_more_passes_than_were_given_are_an_error() -> None:
    def greedy(p: Problem, passes: int) -> Any:
        return [p.at(p.noise, 0.5) for _ in range(passes + 1)][-1]

    problem = make_problem()
    problem.reference = torch.zeros_like(problem.noise)
    with pytest.raises(AssertionError, match="made 6 network passes of 5"):
        run(Peer("a", "greedy", {}, greedy), problem, 5)
