"""``solver="auto"``: what the table says, and that it earns its place on a problem that is written down."""

from __future__ import annotations

import math

import pytest
import torch

import retrodict as rd
from retrodict.core.lin import Lin
from retrodict.core.noise import KeyedNoise
from retrodict.data import toys
from retrodict.denoisers import Denoiser, Product
from retrodict.diagnostics.certificate import execute
from retrodict.processes import GaussianPath
from retrodict.solvers.auto import TABLE, choose
from solvers.solver_cases import FRONTIER, M8, Blurred, interpolant


def _plan(process, nfe: int, **words) -> rd.Plan:
    choice = choose(process, nfe, **words)
    return rd.plan(choice.solver, process, nfe=nfe, grid=choice.grid, eta=choice.eta, **choice.options)


def _flow_end(denoiser: Denoiser, x: torch.Tensor, rows: int) -> torch.Tensor:
    """Classical Runge-Kutta steps uniform in log sigma/alpha down to .001, then one denoiser call."""
    path: GaussianPath = denoiser.process  # type: ignore[assignment]
    first, last = float(path.log_snr(1.0)), -math.log(0.001)
    h, y = (last - first) / rows, x / float(path.alpha(1.0))

    def slope(lam: float, y: torch.Tensor) -> torch.Tensor:
        t = float(path.time_at(lam))
        return denoiser(y * float(path.alpha(t)), t) - y

    for i in range(rows):
        lam = first + i * h
        k1 = slope(lam, y)
        k2 = slope(lam + h / 2, y + h / 2 * k1)
        k3 = slope(lam + h / 2, y + h / 2 * k2)
        k4 = slope(lam + h, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    t = float(path.time_at(last))
    return denoiser(y * float(path.alpha(t)), t)


@pytest.fixture(scope="module")
def frontier():
    """The DDPM chain on five components: 256 starts and where the probability flow takes them."""
    process = rd.DDPM()
    denoiser = FRONTIER.denoiser(process)
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * float(process.sigma(1.0))
    return denoiser, x, _flow_end(denoiser, x, 300)


def _error(denoiser: Denoiser, x: torch.Tensor, end: torch.Tensor, plan: rd.Plan) -> float:
    out = execute(plan, denoiser, x, KeyedNoise(0, len(x), dtype=x.dtype))
    return float((out - end).square().sum(1).mean().sqrt())


@pytest.mark.parametrize(("nfe", "bar"), [(5, 0.085), (10, 0.025), (20, 0.006)])
def test_auto_reaches_its_bars_on_the_frontier(frontier, nfe, bar):
    denoiser, x, end = frontier
    plan = _plan(denoiser.process, nfe)
    assert plan.nfe == nfe
    error = _error(denoiser, x, end, plan)
    assert error < bar
    for name in ("ddim", "dpm++2m", "unipc"):  # and the usual ones do not
        assert _error(denoiser, x, end, rd.plan(name, denoiser.process, nfe=nfe)) > 2 * error


def test_auto_leaves_ddim_behind_on_other_paths():
    for process in (rd.VP("cosine"), rd.RectifiedFlow(), rd.EDM(), rd.SubVP()):
        denoiser = M8.denoiser(process)
        x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * float(
            process.sigma(1.0)
        )
        end = execute(
            rd.plan("adams", process, steps=300, grid="flow", kind="flow", order=3), denoiser, x, KeyedNoise(0, 64)
        )
        ddim = min(
            _error(denoiser, x, end, rd.plan("ddim", process, nfe=8, grid=g)) for g in ("logsnr", "uniform", "flow")
        )
        assert _error(denoiser, x, end, _plan(process, 8)) < 0.15 * ddim


def test_strong_guidance_leaves_the_corrector_out():
    """At scale 12 and 8 evaluations the corrector overshoots tenfold; with 20 it is the better again."""
    process = rd.VP("cosine")
    weights = (M8.weights, [0.9362, 0.0466, 0.0171])  # two mixtures with one set of components
    laws = [rd.exact.GaussianMixture(w, M8.means, M8._values[:, 0] * 0.39) for w in weights]
    denoiser = Product([law.denoiser(process) for law in laws], [1 - 12.0, 12.0])
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    end = execute(rd.plan("dpm-solver++", process, steps=400, order=3), denoiser, x, KeyedNoise(0, 64))
    errors = {(n, w): _error(denoiser, x, end, _plan(process, n, guidance=w)) for n in (8, 20) for w in (1.0, 12.0)}
    assert errors[8, 12.0] < 0.2 and errors[8, 1.0] > 3 * errors[8, 12.0]
    assert errors[20, 12.0] < 0.05


def test_the_table():
    vp = rd.VP()
    assert choose(rd.Masked(4), 64).solver == "step" and choose(rd.TokenBridge(4), 64).solver == "step"
    matrix = GaussianPath(lambda t: Lin.diagonal(torch.ones(2) * (1 - t)), lambda t: Lin.diagonal(torch.ones(2) * t))
    assert choose(matrix, 10).solver == "step"
    assert choose(interpolant(), 10).solver == "flow-ab"
    for process in (vp, interpolant()):
        crowd = _plan(process, 10, population=True)
        assert crowd.has_density and crowd.meta["eta"] == 1
    assert choose(vp, 10, guidance=7.5).options.get("corrector") is None
    plain, guided = ([choice for _, choice in TABLE[-7:]][part] for part in (slice(0, 4), slice(4, 7)))
    assert [choose(vp, n) for n in (5, 9, 10, 15)] == plain
    assert [choose(vp, n, guidance=1.5) for n in (8, 9, 15)] == guided
    assert choose(vp, None) == plain[-1] and choose(vp, 20, guidance=7.5) == guided[-1]
    assert all(choice.options["kind"] == "flow" for choice in (*plain, *guided))


class _Pictures(Blurred):
    """Shapes of 32 by 32, all or those of one class, each blurred by .15, as pictures ``(3, 32, 32)``."""

    def __init__(self, process, kind: int | None = None) -> None:
        drawn = toys.shapes(200, torch.Generator().manual_seed(0), 32)
        x = drawn.x.double().flatten(1) / 127.5 - 1
        super().__init__(x if kind is None else x[drawn.conditions["label"] == kind], process)
        self.shape = (3, 32, 32)

    def forward(self, x, t, **condition):
        return super().forward(x.flatten(1).double(), t).view_as(x).to(x)


def test_pictures_of_more_pixels_are_decided_at_higher_noise():
    """An exact law on 32 by 32: at 5, 10 and 20 evaluations the shift for its pixels has at most half of the error of
    the shift for 8 by 8; .42, .21 and .01 were seen."""
    denoiser = _Pictures(rd.VP("cosine"))
    x = torch.randn(48, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    fine = rd.plan("adams", denoiser.process, nfe=80, grid={"name": "flow", "shift": 2.0}, kind="flow", corrector=True)
    end = execute(fine, denoiser, x, KeyedNoise(0, 48))

    def error(nfe: int, shape) -> float:
        out = execute(_plan(denoiser.process, nfe, shape=shape), denoiser, x, KeyedNoise(0, 48))
        return float((out - end).square().mean().sqrt())

    for nfe in (5, 10, 20):
        assert error(nfe, denoiser.shape) < 0.5 * error(nfe, None)
    plan = rd.sample(denoiser, 1, nfe=5, progress=False).plan
    assert plan.times == _plan(denoiser.process, 5, shape=denoiser.shape).times


def test_large_pictures_do_not_overshoot_under_strong_guidance():
    """The same law led to one class, 5 evaluations: at most .92 of the error of steps in the angle at scale 3 and .55
    at 7.5; .88 and .45 were seen, and on pictures of 8 by 8 the angle stays."""
    x = torch.randn(48, 3, 32, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noise, experts = KeyedNoise(0, 48), [_Pictures(rd.VP("cosine"), kind) for kind in (None, 0)]
    for scale, bar in ((3.0, 0.92), (7.5, 0.55)):
        denoiser = Product(experts, [1 - scale, scale])
        end = execute(rd.plan("dpm++2m", denoiser.process, nfe=160, grid="flow"), denoiser, x, noise)
        angle = {"kind": "velocity", "order": 2, "tau": "angle"}
        plans = [
            _plan(denoiser.process, 5, guidance=scale, shape=denoiser.shape),
            rd.plan("adams", denoiser.process, nfe=5, grid={"name": "flow", "shift": 0.7 * 4}, **angle),
        ]
        ours, theirs = (float((execute(p, denoiser, x, noise) - end).square().mean()) ** 0.5 for p in plans)
        assert ours < bar * theirs
    orders = [choose(rd.VP(), n, guidance=7.5, shape=(3, 32, 32)).options["order"] for n in (5, 11, 12, 14)]
    assert orders == [1, 1, 2, 2]
    assert choose(rd.VP(), 5, guidance=7.5, shape=(3, 32, 32)).grid["shift"] == 4
    assert choose(rd.VP(), 5, guidance=7.5, shape=(1, 8, 8)) == choose(rd.VP(), 5, guidance=7.5)
    assert choose(rd.VP(), 8, guidance=3.0, shape=(3, 32, 32)).options["kind"] == "velocity"


def test_shifts_by_shape():
    shift = lambda shape: choose(rd.VP(), 20, shape=shape).grid["shift"]  # noqa: E731
    shapes = [None, (2,), (64, 2), (1, 8, 8), (3, 32, 32), (3, 64, 64), (3, 256, 256), (4, 64, 64), (16, 128, 128)]
    assert [shift(s) for s in shapes] == pytest.approx([0.4, 0.4, 0.4, 0.4, 1.6, 3.2, 3.2, 1.6, 3.2])


@pytest.mark.parametrize("nfe", [1, 2, 3, 5, 10])
def test_every_choice_makes_a_plan(nfe):
    for process in (rd.VP(), rd.EDM(), rd.RectifiedFlow(), interpolant(), rd.Masked(3)):
        for words in ({}, {"population": True}, {"guidance": 8.0}):
            assert _plan(process, nfe, **words).nfe == nfe
