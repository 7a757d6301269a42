"""Parallel iteration reaches the sequential result: for every solver, with noise or without, in fewer rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.core.noise import KeyedNoise
from retrodict.solvers import Statistics, general, parallel, runtime, statistics, time_shifted
from retrodict.solvers.parallel import METHODS, Parallel
from retrodict.solvers.parallel_steps import recursion
from solvers.solver_cases import FRONTIER, M8, ONE_ENDED, case_id, cases, interpolant

VP: Any = ONE_ENDED["vp-linear"]
FIVE = ("ddim", "dpm-solver++", "unipc", "heun", "plms")


def _start(n: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)


def _both(plan: rd.Plan, denoiser: rd.Denoiser, x: torch.Tensor, how: Parallel, **condition):
    """``(the sequential result, the parallel run)`` under the same noise."""
    noise = lambda: KeyedNoise(3, len(x), dtype=x.dtype)  # noqa: E731
    with torch.no_grad():
        sequential = runtime.run(plan, denoiser, x, noise(), condition)
        return sequential, parallel.run(plan, denoiser, x, noise(), condition, how, per_sample=condition)


LINEAR = [c for c in cases() if c[0] != "step"]


@pytest.mark.parametrize("case", LINEAR, ids=case_id)
def test_every_solver_gives_the_sequential_result(case):
    """Run on until nothing changes: at most one sweep an evaluation, and float64's last digits are the sequential
    ones'."""
    name, options = case
    options = {k: v for k, v in options.items() if k != "lacks"}
    plan = rd.plan(name, VP, steps=6, **options)
    if not runtime.is_fast(plan):  # rows that depend on data, pairs of states: refused
        with pytest.raises(InputError, match="only plans of linear rows"):
            recursion(plan)
        return
    sequential, run = _both(plan, M8.denoiser(VP), _start(4), Parallel(tolerance=0.0))
    assert float((run.x - sequential).abs().max()) < 1e-11 * float(sequential.abs().max().clamp_min(1))
    assert len(run.corrections) <= plan.nfe and run.rounds <= plan.nfe + 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_sequential_result(method):
    for solver, eta in (("dpm-solver++", None), ("ddim", 1.0)):
        plan = rd.plan(solver, VP, steps=12, eta=eta)
        sequential, run = _both(plan, FRONTIER.denoiser(VP), _start(8), Parallel(method, tolerance=0.0))
        assert float((run.x - sequential).abs().max()) < 1e-12
        assert len(run.corrections) <= plan.nfe


@pytest.mark.parametrize("method", METHODS)
def test_after_k_sweeps_the_first_k_states_are_the_sequential_ones(method):
    """Bitwise: a window of one evaluation is the sequential computation by the same arithmetic."""
    plan = rd.plan("unipc", VP, steps=8)
    _, wide = _both(plan, M8.denoiser(VP), _start(8), Parallel(method, tolerance=0.0))
    _, narrow = _both(plan, M8.denoiser(VP), _start(8), Parallel(method, tolerance=0.0, window=1))
    assert narrow.rounds == plan.nfe + 1 and narrow.calls == plan.nfe + 1
    assert torch.equal(wide.x, narrow.x)


@pytest.mark.parametrize("law", [M8, FRONTIER], ids=["M8", "frontier"])
@pytest.mark.parametrize("solver", FIVE)
def test_a_third_of_the_rounds_on_mixtures(solver, law):
    """50 evaluations; the sequential answer to 1e-4 in the largest of 64 samples."""
    nfe = 49 if solver == "heun" else 50
    plan = rd.plan(solver, VP, nfe=nfe)
    sequential, run = _both(plan, law.denoiser(VP), _start(64), Parallel())
    assert float((run.x - sequential).abs().max()) < 1e-4
    assert 3 * run.rounds <= plan.nfe, run.rounds


def test_a_third_of_the_rounds_with_noise():
    plan = rd.plan("ddim", VP, steps=50, eta=1.0)
    sequential, run = _both(plan, FRONTIER.denoiser(VP), _start(64), Parallel())
    assert float((run.x - sequential).abs().max()) < 1e-4 and 3 * run.rounds <= plan.nfe


@pytest.mark.parametrize("corrector", [True, False, "pseudo"])
def test_rows_with_constants(corrector):
    """DPM-Solver-v3 with the statistics of a model, whose rows have constants: the sequential result, in a third of
    the rounds.  Coefficients for each element are refused."""
    law, n = FRONTIER, 30
    known = statistics(law.denoiser(VP), law.sample(256, seed=0), levels=n)
    words = {"steps": 50, "order": 3, "corrector": corrector}
    plan = rd.plan("dpm-solver-v3", VP, statistics=known, **words)
    assert plan.opaque
    x = _start(16)
    with torch.no_grad():
        sequential = general.run(plan, law.denoiser(VP), x, KeyedNoise(3, 16, dtype=x.dtype), {}).x
        for how, bound in ((Parallel(tolerance=0.0), 1e-10), (Parallel(), 1e-4)):
            run = parallel.run(plan, law.denoiser(VP), x, KeyedNoise(3, 16, dtype=x.dtype), {}, how)
            assert float((run.x - sequential).abs().max()) < bound
    assert 3 * run.rounds <= plan.nfe
    wide = Statistics(known.lam, *(v[:, None].repeat(2, 1) for v in (known.l, known.s, known.b)))
    with pytest.raises(InputError, match="for each element"):
        recursion(rd.plan("dpm-solver-v3", VP, statistics=wide, **words))


def test_a_window_bounds_the_batch_and_saves_evaluations():
    plan, seen = rd.plan("ddim", VP, steps=50), []
    inner = FRONTIER.denoiser(VP)

    class Watching(rd.Denoiser):
        def forward(self, x, t, **condition):
            seen.append(len(x))
            return inner(x, t)

    sequential, run = _both(plan, Watching(VP, (2,)), _start(4), Parallel(window=16))
    assert max(seen[50:]) == 4 * 16 and sum(seen[50:]) == 4 * run.calls
    _, unbounded = _both(plan, inner, _start(4), Parallel())
    assert run.calls < unbounded.calls
    assert float((run.x - sequential).abs().max()) < 1e-4


def test_picard_needs_rounds_that_do_not_grow_with_the_steps_and_jacobi_as_many_as_steps():
    """Rounds of Picard at 128 steps are at most 1.5 times those at 32; Jacobi's grow with the steps."""
    rounds = {}
    for method in ("picard", "jacobi"):
        for steps in (32, 128):
            plan = rd.plan("ddim", VP, steps=steps)
            rounds[method, steps] = _both(plan, M8.denoiser(VP), _start(16), Parallel(method, tolerance=1e-3))[1].rounds
    assert rounds["picard", 128] <= 1.5 * rounds["picard", 32]
    assert rounds["jacobi", 128] >= 3 * rounds["jacobi", 32]


def test_methods_solve_their_own_linear_problems_in_one_sweep():
    """A constant denoiser leaves nothing to correct; a constant noise prediction is what Picard keeps; a denoiser that
    is linear in each element is what the secants find from two sweeps."""

    class Constant(rd.Denoiser):
        def forward(self, x, t, **condition):
            return torch.full_like(x, 0.3)

    class SameNoise(rd.Denoiser):
        def forward(self, x, t, **condition):
            alpha, sigma = (c(torch.as_tensor(t, dtype=torch.float64)).reshape(-1, 1) for c in (VP.alpha, VP.sigma))
            return (x - 0.7 * sigma) / alpha

    plan = rd.plan("dpm-solver++", VP, steps=20)
    for denoiser, method, sweeps in (
        (Constant(VP, (2,)), "exponential-picard", 1),
        (SameNoise(VP, (2,)), "picard", 2),
        (rd.exact.GaussianMixture([1.0], [[0.5, -0.5]], [0.3]).denoiser(VP), "quasi-newton", 4),
    ):
        sequential, run = _both(plan, denoiser, _start(4), Parallel(method, tolerance=1e-8))
        assert len(run.corrections) <= sweeps, (method, run.corrections)
        assert float((run.x - sequential).abs().max()) < 1e-8


def test_paths_with_two_ends():
    path, other = interpolant(), rd.exact.GaussianMixture([1.0], [[0.5, -0.5]], [0.4])
    denoiser = M8.denoiser(path, x1=other)
    plan = rd.plan("flow-ab", path, steps=24, start=0.95)
    sequential, run = _both(plan, denoiser, _start(8), Parallel(tolerance=1e-6))
    assert plan.two_ended and float((run.x - sequential).abs().max()) < 1e-6 and run.rounds < 20


def test_a_guess_thrown_out_of_bounds_recovers():
    """A denoiser that overflows on the guesses, and not on the trajectory: the exact prefix still grows to the end."""
    inner = M8.denoiser(VP)
    plan = rd.plan("ddim", VP, steps=10)
    calls = []

    class Fragile(rd.Denoiser):
        def forward(self, x, t, **condition):
            calls.append(len(x))
            out = inner(x, t)
            return out if len(calls) != 2 else torch.where(torch.arange(len(x)).unsqueeze(1) < 4, out, torch.inf)

    x = _start(4)
    sequential = runtime.run(plan, inner, x, KeyedNoise(3, 4, dtype=x.dtype), {})
    run = parallel.run(plan, Fragile(VP, (2,)), x, KeyedNoise(3, 4, dtype=x.dtype), {}, Parallel(tolerance=1e-9))
    assert float((run.x - sequential).abs().max()) < 1e-8


class TestSample:
    def test_labels_and_guidance_and_a_small_network(self):
        """A small network learned for 150 steps, with labels that differ in a batch: float32, 50 evaluations."""
        torch.manual_seed(0)
        x = FRONTIER.sample(2000, seed=1).float()
        data = {"x": x, "label": (x[:, 0] > 0).long()}
        denoiser = rd.fit(rd.VP(), data, steps=150, batch_size=128, seed=0, progress=False)
        words = {"solver": "dpm-solver++", "nfe": 50, "label": torch.arange(16) % 2, "guidance": 2.0, "progress": False}
        one, many = rd.sample(denoiser, 16, **words), rd.sample(denoiser, 16, parallel=True, **words)
        assert float((one.x - many.x).abs().max()) < 1e-4
        assert 3 * many.rounds <= one.rounds == 50 and many.passes > one.passes == 100
        chunked = rd.sample(denoiser, 16, parallel=True, batch_size=5, **words)
        assert float((one.x - chunked.x).abs().max()) < 1e-4

    def test_what_it_refuses(self):
        denoiser = M8.denoiser(VP)
        with pytest.raises(InputTypeError, match="True, False or a Parallel"):
            rd.sample(denoiser, 4, parallel="picard", shape=(2,))  # type: ignore[arg-type]
        with pytest.raises(InputError, match="keeps no trajectory"):
            rd.sample(denoiser, 4, parallel=True, trajectory=True)
        with pytest.raises(InputError, match="no weights: pass population=False"):
            rd.sample(denoiser, 4, parallel=True, population=True)
        refused: list[tuple[dict[str, Any], str]] = [
            ({"solver": "step", "steps": 4}, r"\('reverse-step'\) depend on the data: take a solver of linear rows"),
            ({"solver": "pc", "steps": 4, "options": {"step": "norm"}}, r"\('langevin'\) depend on the data"),
            ({"plan": time_shifted(rd.plan("ddim", VP, steps=4), 0.1)}, "times that depend on the data"),
            ({"init": rd.invert(denoiser, M8.sample(4), steps=4)}, "a pair of states"),
        ]
        for words, match in refused:
            with pytest.raises(
                InputError, match=f"only plans of linear rows from one start run in parallel, .*{match}"
            ):
                rd.sample(denoiser, 4, parallel=True, progress=False, **words)
        tokens = rd.exact.Atoms(torch.randint(0, 3, (5, 4))).denoiser(rd.Masked(3))
        with pytest.raises(InputError, match=r"depend on the data: leave parallel= out$"):
            rd.sample(tokens, 4, parallel=True, progress=False)
        with pytest.raises(InputError, match=r"quasi-newton.*Did you mean|known: jacobi"):
            Parallel("quasi-newtn")
        with pytest.raises(InputError, match="tolerance"):
            Parallel(tolerance=-1)
        with pytest.raises(InputError, match="window"):
            Parallel(window=0)


def test_the_recursion_is_the_plan():
    """State sizes: one for a one-step method, the history for a multistep one; the noise of its rows."""
    assert recursion(rd.plan("ddim", VP, steps=5)).size == 1
    assert recursion(rd.plan("dpm-solver++", VP, steps=5, order=2)).size == 2
    steps = recursion(rd.plan("ddim", VP, steps=5, eta=1.0))
    assert sum(len(row) for row in steps.noise) == rd.plan("ddim", VP, steps=5, eta=1.0).noises


class Stepping(rd.Denoiser):
    """The denoiser with which a one-step plan is the iteration ``x <- step(x)``: any recursion at all is a plan's."""

    def __init__(self, plan: rd.Plan, step: Callable[[torch.Tensor], torch.Tensor], d: int) -> None:
        super().__init__(plan.process, (d,))
        rows = recursion(plan)
        self.step, self.times = step, torch.from_numpy(rows.times)
        self.kept, self.taken = torch.from_numpy(rows.A[:, 0, 0]), torch.from_numpy(rows.outputs[:, 0, 0])

    def forward(self, x, t, **condition):
        k = (self.times - torch.as_tensor(t).double().reshape(-1, 1)).abs().argmin(1).unsqueeze(1)
        return (self.step(x) - self.kept[k] * x) / self.taken[k]


def _rounds(step: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, steps: int, method: str) -> int:
    """Rounds to 1e-6, of a result that is the iteration's to 1e-5."""
    plan = rd.plan("ddim", ONE_ENDED["edm"], steps=steps, grid="karras", start=0.9, end=0.5)
    found = _both(plan, Stepping(plan, step, x.shape[1]), x, Parallel(method, tolerance=1e-6))[1]
    for _ in range(steps):
        x = step(x)
    assert float((found.x - x).abs().max()) < 1e-5
    return found.rounds


def test_rounds_of_jacobi_are_told_by_the_lyapunov_exponent():
    """x <- a sin x.  Where the exponent L is negative an error of the guess is e^(L k) after k sweeps, so that rounds
    are log(1e-6)/L however long the recursion is; where it is positive, they are the length of it."""
    x = torch.linspace(0.2, 0.8, 8, dtype=torch.float64).unsqueeze(1)
    for a in (0.5, 0.7):
        exponent, step = math.log(a), lambda x, a=a: a * x.sin()
        found = [_rounds(step, x, steps, "jacobi") for steps in (64, 128)]
        assert found[0] == found[1] == pytest.approx(math.log(1e-6) / exponent, rel=0.15)
    chaotic = lambda x: 3.1 * x.sin()  # noqa: E731
    orbit, slopes = x, []
    for _ in range(2000):
        slopes.append((3.1 * orbit.cos()).abs().log().mean())
        orbit = chaotic(orbit)
    assert float(torch.stack(slopes).mean()) > 0.4
    for method in ("jacobi", "picard", "quasi-newton"):
        assert [_rounds(chaotic, x, steps, method) for steps in (16, 32)] == [17, 33]


def test_rounds_grow_with_the_span_of_a_chaotic_flow():
    """Lorenz' equations (exponent .9) in 128 steps of Runge-Kutta over spans of .1, .4 and 1.6: rounds 15, 24 and 109
    by quasi-Newton.  Picard and its kin pay for the Lipschitz constant over the span, which the exponent only bounds
    from below: the same equations where they decay, and are stiff (r = .5), need as many."""

    def flow(r: float, h: float) -> Callable[[torch.Tensor], torch.Tensor]:
        def f(v: torch.Tensor) -> torch.Tensor:
            x, y, z = v.T
            return torch.stack([10 * (y - x), x * (r - z) - y, x * y - 8 / 3 * z], 1)

        def step(v: torch.Tensor) -> torch.Tensor:
            a = f(v)
            b = f(v + h / 2 * a)
            c = f(v + h / 2 * b)
            return v + h / 6 * (a + 2 * b + 2 * c + f(v + h * c))

        return step

    v = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = v + torch.tensor([1.0, 1.0, 20.0], dtype=torch.float64)
    for _ in range(1000):
        v = flow(28.0, 0.01)(v)
    for method in ("picard", "quasi-newton"):
        short, middle, long = (_rounds(flow(28.0, span / 128), v, 128, method) for span in (0.1, 0.4, 1.6))
        assert short < 20 < middle < 50 < long <= 129
        assert short < 0.8 * middle and middle < 0.5 * long
    assert _rounds(flow(0.5, 1.6 / 128), v, 128, "quasi-newton") > 0.9 * long
