"""Parity with the schedulers of diffusers, driven through ``step()`` in float64 with a mixture's exact denoiser.

Their ``step`` works in float32 in places, so that agreement is to 5e-6.  Where diffusers is wrong, the tests say how,
and what we do: the sign of the third-order SDE solver, NaN from UniPC "bh1" at sigma = 0, and half of the second
difference in third-order DPM-Solver.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import retrodict as rd
from retrodict.core.noise import GeneratorNoise
from retrodict.diagnostics import certificate
from retrodict.solvers.plan import Plan, Row
from solvers.solver_cases import M8

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

PROCESS = rd.DDPM()
DENOISER = M8.denoiser(PROCESS)
START = torch.randn(48, 2, generator=torch.Generator().manual_seed(11), dtype=torch.float64)
TOLERANCE = 5e-6


def _predict_noise(x: torch.Tensor, timestep: Any) -> torch.Tensor:
    """What their network would answer at one of its integer timesteps."""
    t = (float(timestep) + 1) / 1000
    alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
    return (x - alpha * DENOISER(x, t)) / sigma


def _theirs(scheduler: Any, n: int, seed: int = 0, in_sigma: bool = False, **step: Any) -> torch.Tensor:
    """Their sampler; ``in_sigma`` for schedulers whose state is x/alpha."""
    scheduler.set_timesteps(n)
    _sharpen(scheduler)
    # the same START stands for the state at their first timestep, in either scaling
    x = START if not in_sigma else START * float((scheduler.sigmas[0] ** 2 + 1) ** 0.5)
    generator = torch.Generator().manual_seed(seed)
    extra = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
    with torch.no_grad():
        for t in scheduler.timesteps:
            model_input = scheduler.scale_model_input(x, t)
            x = scheduler.step(_predict_noise(model_input.double(), t), t, x, **extra, **step).prev_sample
    return x


def _sharpen(scheduler: Any) -> None:
    """Their sigma/alpha in float64, not float32: the noise forms amplify the rounding of the first, near t = 1."""
    if hasattr(scheduler, "sigmas"):
        times = (np.asarray(scheduler.timesteps, dtype=np.float64) + 1) / 1000
        alpha, sigma, _ = PROCESS.schedule(times)
        last = float(scheduler.sigmas[-1])
        smallest = float(PROCESS.sigma(0.001) / PROCESS.alpha(0.001))
        scheduler.sigmas = torch.from_numpy(np.append(sigma / alpha, smallest if last > 0 else 0.0))


def _times(scheduler: Any, end: float = 0.0) -> list[float]:
    """Their timesteps (each once) as times, and the end."""
    steps = list(dict.fromkeys(float(t) for t in scheduler.timesteps))
    return [(t + 1) / 1000 for t in steps] + [end]


def _ours(plan: Plan, seed: int = 0, noise_in: torch.dtype = torch.float64) -> torch.Tensor:
    noise = GeneratorNoise(torch.Generator().manual_seed(seed), len(START), dtype=noise_in)
    with torch.no_grad():
        return certificate.execute(plan, DENOISER, START, noise)


def _gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta, spacing):
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    theirs = _theirs(scheduler, 10, eta=eta)
    assert _gap(_ours(rd.plan("ddim", PROCESS, grid=_times(scheduler), eta=eta)), theirs) < TOLERANCE


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(variance):
    scheduler = diffusers.DDPMScheduler(clip_sample=False, variance_type=f"fixed_{variance}")
    theirs = _theirs(scheduler, 20)
    assert _gap(_ours(rd.plan("ddpm", PROCESS, grid=_times(scheduler), variance=variance)), theirs) < TOLERANCE


NAMES = {
    "dpmsolver++": "dpm-solver++",
    "dpmsolver": "dpm-solver",
    "sde-dpmsolver++": "sde-dpm-solver++",
    "sde-dpmsolver": "dpm-solver-sde",
}


@pytest.mark.parametrize("n", [8, 20])
@pytest.mark.parametrize(("order", "kind"), [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint")])
@pytest.mark.parametrize("algorithm", NAMES)
def test_dpm_solver_multistep(algorithm, order, kind, n):
    if order == 3 and algorithm.startswith("sde"):
        pytest.skip("theirs is wrong (and for the noise form does not exist): see the tests of faults")
    clean = algorithm.endswith("++")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=kind,
        timestep_spacing="trailing",
        final_sigmas_type="zero" if clean else "sigma_min",
    )
    theirs = _theirs(scheduler, n)
    times = _times(scheduler, 0.0 if clean else 0.001)
    weights = "official" if order == 3 else kind
    plan = rd.plan(NAMES[algorithm], PROCESS, grid=times, order=order, weights=weights, final=n < 15)
    noise_in = torch.float32 if algorithm.startswith("sde") else torch.float64  # as their step() draws it
    assert _gap(_ours(plan, noise_in=noise_in), theirs) < TOLERANCE


@pytest.mark.parametrize("n", [7, 8, 9])
@pytest.mark.parametrize(("order", "kind"), [(2, "midpoint"), (2, "heun"), (3, "midpoint")])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_dpm_solver_singlestep(algorithm, order, kind, n):
    """Theirs takes the grid's own levels as inner nodes."""
    clean = algorithm == "dpmsolver++"
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        algorithm_type=algorithm,
        solver_order=order,
        solver_type=kind,
        lower_order_final=True,
        final_sigmas_type="zero" if clean else "sigma_min",
    )
    theirs = _theirs(scheduler, n)
    numbers = list(scheduler.order_list)  # 1, 2, 3, 1, 2, 3, ...: the place of each evaluation in its block
    blocks = [a for a, b in zip(numbers, [*numbers[1:], 1]) if b == 1]
    name = f"{'dpm-solver++' if clean else 'dpm-solver'}-{order}s"
    times = _times(scheduler, 0.0 if clean else 0.001)
    weights = "exact" if kind == "heun" else "midpoint"
    plan = rd.plan(name, PROCESS, grid=times, nodes="grid", orders=blocks, weights=weights)
    assert _gap(_ours(plan), theirs) < TOLERANCE


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order):
    scheduler = diffusers.DEISMultistepScheduler(solver_order=order, timestep_spacing="trailing")
    scheduler.config.final_sigmas_type = "sigma_min"
    theirs = _theirs(scheduler, 10)
    end = float(scheduler.sigmas[-1])
    times = _times(scheduler, 0.0 if end == 0 else 0.001)
    plan = rd.plan("deis", PROCESS, grid=times, variant="logrho", degree=order - 1, final=True)
    assert _gap(_ours(plan), theirs) < TOLERANCE


@pytest.mark.parametrize("n", [6, 10])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("kind", ["data", "noise"])
def test_unipc(kind, variant, order, n):
    """With corrector and lower_order_final, to their smallest sigma and (where theirs can) to zero."""
    ends = ["sigma_min", "zero"] if (kind, variant) == ("data", "bh2") else ["sigma_min"]
    for end in ends:
        scheduler = diffusers.UniPCMultistepScheduler(
            solver_order=order,
            solver_type=variant,
            predict_x0=kind == "data",
            timestep_spacing="trailing",
            final_sigmas_type=end,
            disable_corrector=[1] if n == 10 else [],
        )
        theirs = _theirs(scheduler, n)
        times = _times(scheduler, 0.0 if end == "zero" else 0.001)
        options = {"order": order, "variant": variant, "kind": kind, "final": True}
        plan = rd.plan("unipc", PROCESS, grid=times, disable_corrector=[1] if n == 10 else (), **options)
        assert _gap(_ours(plan), theirs) < TOLERANCE


@pytest.mark.parametrize(
    ("scheduler", "name", "options"),
    [
        ("EulerDiscreteScheduler", "ddim", {}),
        ("EulerAncestralDiscreteScheduler", "euler-ancestral", {}),
        ("HeunDiscreteScheduler", "heun", {}),
        ("LMSDiscreteScheduler", "lms", {"order": 4}),
    ],
)
def test_schedulers_in_sigma(scheduler, name, options):
    theirs = getattr(diffusers, scheduler)(beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing")
    out = _theirs(theirs, 10, in_sigma=True)
    plan = rd.plan(name, PROCESS, grid=_times(theirs), **options)
    assert _gap(_ours(plan), out) < TOLERANCE


@pytest.mark.parametrize(("skip", "warmup"), [(True, "heun"), (False, "runge-kutta")])
def test_pndm(skip, warmup):
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=skip, set_alpha_to_one=True, timestep_spacing="leading")
    theirs = _theirs(scheduler, 10)
    times = [0.901 - i / 10 for i in range(10)] + [0.0]
    plan = rd.plan("plms", PROCESS, grid=times, warmup=warmup)
    assert _gap(_ours(plan), theirs) < TOLERANCE


class TestTheirFaults:
    """Where the reference is wrong, and what we do."""

    def test_third_order_sde_has_the_wrong_sign(self):
        """Their coefficient of the second difference is (..)/(2h)^2 - 1/2 where it must be + 1/2: our plan with that
        one sign put wrong is theirs, and as it stands it is of second weak order where theirs is of first."""
        scheduler = diffusers.DPMSolverMultistepScheduler(
            algorithm_type="sde-dpmsolver++", solver_order=3, timestep_spacing="trailing", final_sigmas_type="zero"
        )
        theirs = _theirs(scheduler, 8)
        times = _times(scheduler)
        ours = rd.plan("sde-dpm-solver++", PROCESS, grid=times, order=3, weights="official", final=True)
        assert _gap(_ours(ours, noise_in=torch.float32), theirs) > 0.05
        assert _gap(_ours(_with_their_sign(ours), noise_in=torch.float32), theirs) < TOLERANCE
        make = lambda n: rd.plan(  # noqa: E731
            "sde-dpm-solver++", PROCESS, steps=n, grid="logsnr", end=0.01, order=3, weights="official", final=False
        )
        assert certificate.weak_order(make, expected=2.0, tol=0.2)
        assert certificate.weak_order(lambda n: _with_their_sign(make(n))).value < 1.3

    def test_bh1_at_the_clean_end(self):
        """Theirs is NaN at sigma = 0, since B(h) = -h is infinite there; our last step is of first order."""
        scheduler = diffusers.UniPCMultistepScheduler(
            solver_type="bh1", timestep_spacing="trailing", final_sigmas_type="zero", lower_order_final=False
        )
        assert not bool(torch.isfinite(_theirs(scheduler, 8)).all())
        plan = rd.plan("unipc", PROCESS, grid=_times(scheduler), variant="bh1", final=False)
        assert bool(torch.isfinite(_ours(plan)).all())

    def test_third_order_has_half_of_its_second_difference(self):
        """The published weights are second order, exact ones third: from the same start, at 160 steps, twentyfold."""
        exact = certificate.flow_map(M8.denoiser(rd.VP()), START, 1.0, 1e-3)
        errors = {}
        for weights in ("official", "exact"):
            found = certificate.convergence_order(
                lambda n, w=weights: rd.plan("dpm-solver++", rd.VP(), steps=n, end=1e-3, order=3, weights=w),
                exact,
                steps=(40, 80, 160),
                denoiser=M8.denoiser(rd.VP()),
                x=START,
            )
            errors[weights] = found
        assert abs(errors["official"].value - 2) < 0.2 and abs(errors["exact"].value - 3) < 0.2
        assert errors["official"].details[-1] > 10 * errors["exact"].details[-1]
        assert rd.plan("dpm-solver++", rd.VP(), steps=9, order=3).meta["options"].get("weights", "exact") == "exact"


def _with_their_sign(plan: Plan) -> Plan:
    """Rows of three nodes with one unit of the second difference subtracted: alpha_t D2, D2 = h^2 D[0, -1, -2]."""
    times = np.array(plan.times)
    alpha, _, lam = PROCESS.schedule(times)
    code, step = [], 0
    for c in plan.code:
        if isinstance(c, Row):
            step += 1
            if len(c.d) == 3:
                ks = sorted(c.d, reverse=True)
                nodes = lam[[step - 1, step - 2, step - 3]]
                gaps = nodes[:, None] - nodes[None, :] + np.eye(3)
                second = (lam[step] - lam[step - 1]) ** 2 / gaps.prod(1)
                d = {k: c.d[k] - alpha[step] * second[j] for j, k in enumerate(ks)}
                c = Row(c.dst, c.x, d, c.d1, c.z, c.t)
        code.append(c)
    return plan.with_code(code)
