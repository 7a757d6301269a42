"""Both ends of time: from pure noise to sigma = 0 at every step count, on every path, nothing is infinite or absurd."""

from __future__ import annotations

import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.diagnostics.certificate import execute
from retrodict.exact import GaussianMixture
from retrodict.solvers import solvers
from solvers.solver_cases import FRONTIER, ONE_ENDED, case_id, cases, interpolant

#: Solvers that stay near the data at any number of steps: bounded combinations of denoiser outputs.
#: The others overshoot at two or three steps by nature: explicit methods in time or in sigma/alpha amplify the prior's
#: scale, and so do the noise forms with more than one node.
ROBUST = {
    "ddim", "ddpm", "dpm-solver++", "dpm-solver++-2s", "dpm-solver++-3s", "euler-ancestral", "flow-ab", "flow-euler",
    "flow-heun", "flow-sde", "sde-dpm-solver++", "step", "unipc", "velocity-ab",
}  # fmt: skip
OVERSHOOT = ({"variance": "large"}, {"kind": "noise"}, {"variant": "bh1"})


def _robust(name: str, options: dict) -> bool:
    return name in ROBUST and not any(options.items() >= over.items() for over in OVERSHOOT)


@pytest.mark.parametrize("process", ONE_ENDED)
@pytest.mark.parametrize("case", cases(), ids=case_id)
def test_samples_are_finite_and_sane(case, process):
    name, options = case
    path = ONE_ENDED[process]
    denoiser = FRONTIER.denoiser(path)
    scale = max(float(path.sigma(1.0)), 1.0)
    for steps in (1, 2, 3, 5, 10):
        plan = rd.plan(name, path, steps=steps, **{k: v for k, v in options.items() if k != "lacks"})
        noise = KeyedNoise(0, 16, dtype=torch.float64)
        x = execute(plan, denoiser, denoiser.prior((2,), noise.stream("prior")), noise)
        assert bool(torch.isfinite(x).all()), f"{steps} steps"
        bound = 8.0 if _robust(name, options) else 1e3 * scale  # data lie within 4 of the origin
        assert float(x.abs().max()) < bound, f"{steps} steps: {float(x.abs().max()):.1f}"


@pytest.mark.parametrize("name", sorted({e.name for _, e in solvers.items() if e.ends == 2 and not e.discrete}))
def test_interpolants_start_and_end_without_noise(name):
    path = interpolant()
    other = GaussianMixture([1.0], [[3.0, 3.0]], [0.2])
    denoiser = FRONTIER.denoiser(path, x1=other)
    for steps in (1, 2, 3, 10):
        for eta in (None, 0.5) if solvers[name].eta != "none" else (None,):
            plan = rd.plan(name, path, steps=steps, eta=eta)
            x = execute(plan, denoiser, other.sample(16, seed=0), KeyedNoise(0, 16, dtype=torch.float64))
            assert bool(torch.isfinite(x).all()) and float(x.abs().max()) < 8


def test_one_step_is_the_denoiser():
    """The step to sigma = 0 is alpha_0 D for every solver that claims a constant denoiser."""
    for entry in {e.name: e for _, e in solvers.items()}.values():
        if "constant" in entry.claims and entry.name != "pc":
            form = rd.plan(entry.name, ONE_ENDED["vp-cosine"], steps=1).normal_form()
            assert form.data_weights.tolist() == [1.0] and form.start_weight == 0 and not form.noise_weights.any(), (
                entry.name
            )


def test_solvers_that_need_growing_noise_refuse_interpolants():
    with pytest.raises(InputError, match=r"without noise at t = 1 use .*ddim"):
        rd.plan("unipc", interpolant(), steps=3)
    with pytest.raises(InputError, match="use 'arcsine'"):
        rd.plan("ddim", interpolant(), steps=3, grid="logsnr")
    with pytest.raises(InputError, match="use 'step'"):
        rd.plan("ddim", rd.Masked(4), steps=3)
    with pytest.raises(InputError, match="use 'uniform'"):
        rd.plan("step", rd.Masked(4), steps=3, grid="karras")
