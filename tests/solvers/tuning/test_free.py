"""Free coefficients: the zero vector is the plan, every vector keeps a constant denoiser exact, gradients are right."""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.denoisers.diffusers.convention import read
from retrodict.diagnostics import certificate
from retrodict.solvers.plan import Eval
from retrodict.solvers.runtime import compiled
from retrodict.solvers.tuning import Free
from retrodict.solvers.tuning.free import run
from solvers.solver_cases import M8, ONE_ENDED, interpolant

START = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _random(free: Free, seed: int = 1, size: float = 0.05) -> torch.Tensor:
    return size * torch.randn(free.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("process", ONE_ENDED)
@pytest.mark.parametrize("words", [{"nfe": 5}, {"nfe": 4, "end": 0.02}], ids=["clean", "early"])
def test_the_zero_vector_is_the_plan(process, words):
    plan = rd.plan("unipc", ONE_ENDED[process], grid="karras", **words)
    free = Free(plan)
    assert free.to_plan(free.zero(), {}).equivalent(plan, 1e-12)
    assert len(free.names) == free.size == len(free.zero())


@pytest.mark.parametrize("process", ["vp-cosine", "edm", "rectified-flow", "ddpm-table"])
def test_the_differentiable_run_is_the_plan(process):
    path = ONE_ENDED[process]
    denoiser = M8.denoiser(path)
    free = Free(rd.plan("unipc", path, nfe=5))
    p = _random(free)
    ours = run(lambda x, t: denoiser(x, t), free.coefficients(p), START)
    theirs = compiled(free.to_plan(p, {}))(lambda x, t: denoiser(x, t), START, {})
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("process", ONE_ENDED)
@pytest.mark.parametrize("end", [None, 0.05])
def test_a_constant_denoiser_is_exact_whatever_the_parameters(process, end):
    free = Free(rd.plan("adams", ONE_ENDED[process], nfe=6, end=end, kind="velocity"))  # which is not, itself
    for seed in range(3):
        plan = free.to_plan(_random(free, seed, 0.3), {})
        finding = certificate.constant_identity(plan, tol=1e-9)
        assert finding, finding
        falls = torch.tensor(plan.times, dtype=torch.float64).diff() < 0
        assert falls[:-1].all() and (falls[-1] or plan.times[-2] == 0)  # where sigma(0) > 0 the end is t = 0 twice


def test_times_stay_in_order_and_may_only_fall_at_the_start():
    free = Free(rd.plan("ddim", rd.VP("cosine"), nfe=6, grid="angle"))
    for seed in range(5):
        times = free.coefficients(_random(free, seed, 3.0)).times
        assert (times[1:].diff() < 0).all() and times[0] <= 1.0 and times[-1] > 0


@pytest.mark.parametrize("process", ["vp-linear", "edm", "rectified-flow"])
@pytest.mark.parametrize("save_memory", [False, True])
def test_gradients_agree_with_differences(process, save_memory):
    """Of a run's end in every direction of the parameters, times among them; central differences in float64."""
    path = ONE_ENDED[process]
    denoiser = M8.denoiser(path)
    free = Free(rd.plan("unipc", path, nfe=4, start=0.95))
    p = (_random(free, 2, 0.02) - 0.01 * torch.tensor([n == "time" for n in free.names])).requires_grad_()

    def end(q: torch.Tensor) -> torch.Tensor:
        return run(lambda x, t: denoiser(x, t), free.coefficients(q), START, save_memory=save_memory).square().sum()

    (gradient,) = torch.autograd.grad(end(p), p)
    for i in range(free.size):
        step = torch.zeros_like(p).index_fill(0, torch.tensor([i]), 1e-5)
        with torch.no_grad():
            difference = (end(p + step) - end(p - step)) / 2e-5
        assert abs(float(difference - gradient[i])) <= 1e-5 * max(1.0, float(gradient.abs().max())), free.names[i]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda: rd.plan("ddim", rd.VP(), nfe=5, eta=1.0), "draws no noise"),
        (lambda: rd.plan("rho-rk", rd.VP(), nfe=9), "falling times"),
        (lambda: rd.plan("flow-ab", interpolant(), nfe=5), "one end"),
        (lambda: rd.plan("step", rd.Masked(4), steps=3), "Gaussian path"),
    ],
)
def test_plans_that_cannot_be_freed_are_refused(plan, message):
    with pytest.raises(InputError, match=message):
        Free(plan())


@pytest.mark.parametrize("kind", ["epsilon", "flow_prediction", "edm"])
def test_free_plans_run_in_pipelines(kind):
    """Stepped from outside, with outputs of the network's own kind, from a start of the size that it asks for."""
    diffusers = pytest.importorskip("diffusers")
    like = diffusers.EDMEulerScheduler() if kind == "edm" else None
    path = {"epsilon": rd.DDPM(), "flow_prediction": rd.RectifiedFlow()}[kind] if like is None else read(like).process
    denoiser = M8.denoiser(path)
    free = Free(rd.plan("unipc", path, nfe=5))
    plan = free.to_plan(_random(free) - 0.05 * torch.tensor([n == "time" for n in free.names]), {"solver": "tuned"})
    first = plan.code[0]
    assert isinstance(first, Eval) and first.t < plan.times[0] == 1.0  # what is told there is not the start's time
    stepper = plan.to_diffusers(like, prediction_type=None if like is not None else kind)
    stepper.set_timesteps(5)
    size = 1.0 if kind == "flow_prediction" else float((path.alpha(1.0) ** 2 + path.sigma(1.0) ** 2).sqrt())
    assert stepper.init_noise_sigma == pytest.approx(size)
    x = START * stepper.init_noise_sigma
    wanted = compiled(plan)(lambda x, t: denoiser(x, t), x, {})
    for node, t in zip(plan.code[::2], stepper.timesteps):
        assert isinstance(node, Eval)
        _, c_skip, c_out = stepper._coefficients(node)
        x = stepper.step((denoiser(x, node.t) - c_skip * x) / c_out, t, x).prev_sample
    torch.testing.assert_close(x, wanted, rtol=1e-9, atol=1e-9)
    with pytest.raises(InputError, match="one length"):
        stepper.set_timesteps(6)
