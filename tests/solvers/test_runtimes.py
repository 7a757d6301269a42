"""The two runtimes run one program: straight-line and general agree, trace whole, and read nothing back."""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError, NonFiniteError
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser
from retrodict.diagnostics.certificate import execute
from retrodict.exact import GaussianMixture
from retrodict.solvers import general, runtime
from retrodict.solvers.passes import eliminate, last_uses
from retrodict.solvers.plan import Eval, Row
from solvers.solver_cases import M8, ONE_ENDED, case_id, cases, interpolant, starts

LINEAR = [case for case in cases() if not (case[0] == "step" or case[1].get("step") == "norm")]
VP = ONE_ENDED["vp-linear"]


def _plan(case, process=VP, **words):
    return rd.plan(case[0], process, **words, **{k: v for k, v in case[1].items() if k != "lacks"})


@pytest.mark.parametrize("process", ["vp-linear", "edm", "rectified-flow"])
@pytest.mark.parametrize("case", LINEAR, ids=case_id)
def test_fast_and_general_agree(case, process):
    """The fast runtime eliminates states that are never evaluated; float64 rounding is all that may remain of it."""
    path = ONE_ENDED[process]
    denoiser, x = M8.denoiser(path), starts(process)[:8]
    plan = _plan(case, path, steps=7)
    fast, slow = (execute(plan, denoiser, x, KeyedNoise(1, 8, dtype=torch.float64), fast=f) for f in (True, False))
    assert float((fast - slow).abs().max()) <= 1e-9 * max(1.0, float(slow.abs().max()))


@pytest.mark.parametrize("case", LINEAR, ids=case_id)
def test_elimination_keeps_the_normal_form(case):
    plan = _plan(case, steps=7)
    short = eliminate(plan)
    assert short.equivalent(plan, 1e-9)
    terms = [sum(c.terms for c in p.code if isinstance(c, Row)) for p in (short, plan)]
    assert terms[0] <= terms[1]
    evaluated = {c.x for c in short.code if isinstance(c, Eval)} | {short.out}
    if short is not plan and not plan.noises:
        assert {c.dst for c in short.code if isinstance(c, Row)} <= evaluated


@pytest.mark.parametrize("name", ["ddim", "flow-heun", "flow-ab", "flow-sde"])
def test_fast_and_general_agree_with_two_ends(name):
    path = interpolant()
    denoiser = M8.denoiser(path, x1=GaussianMixture([1.0], [[2.0, -1.0]], [0.4]))
    x = GaussianMixture([1.0], [[2.0, -1.0]], [0.4]).sample(8, seed=0)
    plan = rd.plan(name, path, steps=6)
    fast, slow = (execute(plan, denoiser, x, KeyedNoise(1, 8, dtype=torch.float64), fast=f) for f in (True, False))
    assert plan.two_ended and float((fast - slow).abs().max()) < 1e-12


@pytest.mark.parametrize("case", LINEAR, ids=case_id)
def test_the_loop_traces_whole(case):
    """No data-dependent Python and no read from the device: the program is one graph."""
    torch.compiler.reset()  # one code object per case: do not let the cache of graphs fill up
    plan = _plan(case, steps=3)
    function = runtime.compiled(plan)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    z = torch.randn(max(plan.noises, 1), 4, 2, generator=torch.Generator().manual_seed(1))
    free = lambda state, t: torch.tanh(state) * (1 - 0.5 * t)  # noqa: E731
    traced = torch.compile(lambda x, z: function(free, x, z), fullgraph=True, backend="eager")
    assert torch.equal(traced(x, z), function(free, x, z))


@pytest.mark.slow
def test_the_loop_compiles():
    """With a real compiler where there is one."""
    plan = rd.plan("unipc", VP, steps=4, order=3)
    function = runtime.compiled(plan)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    free = lambda state, t: torch.tanh(state) * (1 - 0.5 * t)  # noqa: E731
    try:
        out = torch.compile(lambda x: function(free, x, []), fullgraph=True)(x)
    except Exception as error:  # a machine without a working compiler toolchain
        pytest.skip(f"no compiler: {type(error).__name__}")
    assert float((out - function(free, x, [])).abs().max()) < 1e-5


def test_float32_rows_keep_float32_accuracy():
    """Coefficients are moderate: rows in float32 differ from float64 by a few units in its last place."""
    denoiser, x = M8.denoiser(VP), starts("vp-linear")
    for name in ("ddim", "unipc", "adams", "deis", "heun", "flow-ab"):
        plan = rd.plan(name, VP, steps=10, grid="logsnr")
        single, double = (
            execute(plan, denoiser, x.to(d), KeyedNoise(0, 64, dtype=d)) for d in (torch.float32, torch.float64)
        )
        assert single.dtype == torch.float32 and float((single - double).abs().max()) < 5e-5, name


def test_values_are_dropped_after_their_last_use():
    plan = rd.plan("dpm++2m", VP, steps=20)
    alive, most = 0, 0
    for c, dead in zip(plan.code, last_uses(plan.code, plan.out)):
        alive += 1
        most = max(most, alive)
        alive -= len(dead)
        assert c.writes() not in dead or c.writes() != f"x{plan.out}"
    assert most <= 4  # the state, its successor, and two denoiser outputs


def test_opaque_plans_have_no_straight_line():
    plan = rd.plan("pc", VP, steps=3, step="norm")
    assert not runtime.is_fast(plan)
    with pytest.raises(InputError, match="general runtime"):
        runtime.compiled(plan)
    with pytest.raises(InputError, match="no normal form"):
        plan.normal_form()


def test_a_run_looks_at_its_plan_once():
    """What is asked of the plan does not grow with the number of steps, and its program is kept: it is lowered once."""
    asked = []

    class Watched(rd.Plan):
        @property
        def two_ended(self):
            asked.append("two_ended")
            return False

    counts = []
    for steps in (4, 40):
        made = rd.plan("unipc", VP, steps=steps)
        plan = Watched(made.code, made.out, made.times, made.process, made.meta)
        first = runtime.compiled(plan)
        asked.clear()
        execute(plan, M8.denoiser(VP), starts("vp-linear")[:2], KeyedNoise(0, 2, dtype=torch.float64))
        counts.append(len(asked))
        assert runtime.compiled(plan) is first
    assert counts[0] == counts[1]


def test_slots_are_shared():
    """A long plan needs no more places than values that live at once."""
    for name, most in (("ddim", 2), ("dpm++2m", 3), ("unipc", 5)):
        assert runtime.lower(rd.plan(name, VP, steps=40))[1] <= most


def test_noise_rows_are_consumed_in_order():
    rows = runtime.NoiseRows(KeyedNoise(0, 2), 3, (4,))
    first = rows[0]
    assert first.shape == (2, 4)
    with pytest.raises(InputError, match="row 1 is next, row 2"):
        rows[2]


@pytest.mark.parametrize("shape", [(5,), (1, 8, 8)])
def test_block_size_of_noise_changes_nothing(shape, monkeypatch):
    """Rows drawn one at a time, a few at a time or all at once are bitwise the same."""
    drawn = []
    for limit in (1, 2000, 1 << 26):
        monkeypatch.setattr(runtime, "_BLOCK_BYTES", limit)
        rows = runtime.NoiseRows(KeyedNoise(3, 3), 7, shape)
        drawn.append(torch.stack([rows[m] for m in range(7)]))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


class _Broken(Denoiser):
    """NaN for one sample below a time."""

    def forward(self, x, t, **condition):
        out = torch.zeros_like(x)
        if t < 0.5:
            out[1] = float("nan")
        return out


def test_a_non_finite_value_is_named():
    with pytest.raises(
        NonFiniteError, match=r"denoiser's output at evaluation 2, t = 0\.\d+, is not finite \(first in sample 1\)"
    ):
        general.run(
            rd.plan("ddim", VP, grid=[1.0, 0.6, 0.4, 0.0]), _Broken(VP, (2,)), torch.zeros(3, 2), KeyedNoise(0, 3), {}
        )


def test_langevin_with_measured_norms():
    """Sizes follow the norms of noise and score, sample by sample; with "batch" they are shared."""
    process, d = ONE_ENDED["ve"], 48  # in a few dimensions the norms, and with them the steps, have no mean
    law = GaussianMixture([0.5, 0.5], torch.stack([torch.full((d,), 0.5), torch.full((d,), -0.5)]), [0.3, 0.3])
    denoiser = law.denoiser(process)
    x = denoiser.prior((d,), KeyedNoise(0, 64, dtype=torch.float64).stream("prior"))
    spread = float(torch.trace(law.covariance) / d) ** 0.5
    for average in ("sample", "batch"):
        plan = rd.plan("pc", process, steps=30, step="norm", average=average)
        out = execute(plan, denoiser, x, KeyedNoise(0, 64, dtype=torch.float64))
        assert float((out.mean(0)).abs().max()) < 0.5 and abs(float(out.std()) / spread - 1) < 0.15
        alone = execute(plan, denoiser, x[:1], KeyedNoise(0, 1, dtype=torch.float64))
        assert torch.equal(alone[0], out[0]) == (average == "sample")
