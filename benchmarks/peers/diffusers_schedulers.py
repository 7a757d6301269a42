"""diffusers' schedulers with the grids and flags that they offer, driven through ``step`` in float64.

How a scheduler's state is read is told in `retrodict.diagnostics.certificate.diffusers_samplers`.

diffusers keeps noise levels in float32, and some schedulers cast the state to it inside ``step``: its results carry an
error near 1e-6, far below those compared here.
"""

from __future__ import annotations

import logging
import math
import warnings
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from peers.problem import Peer, Problem
from retrodict.diagnostics.certificate.diffusers_samplers import VP_FAMILY, drive

FLOW_SHIFTS = (1.0, 3.0)  # what shipped pipelines use
TUNED_SHIFT = 0.5  # offered by no pipeline; reported apart

_SPACINGS: list[dict[str, Any]] = [{"timestep_spacing": s} for s in ("linspace", "leading", "trailing")]
_SIGMAS: list[dict[str, Any]] = [{f"use_{s}_sigmas": True} for s in ("karras", "exponential", "beta")]
_FLOW: list[dict[str, Any]] = [{"use_flow_sigmas": True, "flow_shift": s} for s in (*FLOW_SHIFTS, TUNED_SHIFT)]


def diffusers_peers(problem: Problem) -> list[Peer]:
    """Every deterministic scheduler with its grids and flags.

    Raises:
        ImportError: diffusers is not installed.
    """
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    betas = _betas(problem)
    return [
        Peer("diffusers", name, flags, partial(_run, name, flags, betas), flags.get("flow_shift") == TUNED_SHIFT)
        for name, flags in _configurations()
    ]


def _betas(problem: Problem) -> dict[str, Any]:
    """The discrete table that belongs to the process: its own, or diffusers' cosine one."""
    table = getattr(problem.path, "levels", None)
    if table:
        return {"trained_betas": list(problem.path.schedule_name)}  # type: ignore[attr-defined]
    return {"beta_schedule": "squaredcos_cap_v2"}


def _configurations() -> list[tuple[str, dict[str, Any]]]:
    """``(scheduler, flags)`` of every deterministic sampler."""
    ends = [{"final_sigmas_type": e} for e in ("zero", "sigma_min")]
    spaced, flowing = _SPACINGS + _SIGMAS, _SPACINGS + _SIGMAS + _FLOW
    families: list[tuple[str, list[list[dict[str, Any]]]]] = [
        ("DDIM", [_SPACINGS]),
        ("PNDM", [[{"skip_prk_steps": True}, {"skip_prk_steps": False}], _SPACINGS]),
        ("IPNDM", []),
        ("EulerDiscrete", [spaced, ends]),
        ("HeunDiscrete", [spaced]),
        ("KDPM2Discrete", [spaced]),
        ("LMSDiscrete", [spaced]),
        ("DPMSolverMultistep", [_dpm_orders(), [*flowing, {"use_lu_lambdas": True}], ends]),
        ("DPMSolverMultistep", [_dpm_orders(), flowing, [{"euler_at_final": True}]]),
        ("DPMSolverSinglestep", [_dpm_orders(), [{}, *_SIGMAS, *_FLOW], [{"lower_order_final": True}]]),
        ("DEISMultistep", [[{"solver_order": p} for p in (2, 3)], flowing]),
        ("UniPCMultistep", [_unipc(), flowing, ends]),
        ("SASolver", [[{"predictor_order": p, "corrector_order": c} for p, c in ((2, 0), (2, 2), (3, 3))], flowing]),
        ("EDMEuler", [_edm()]),
        ("EDMDPMSolverMultistep", [_edm(), [{"solver_order": p} for p in (2, 3)], [{}, {"euler_at_final": True}]]),
        ("FlowMatchEulerDiscrete", [[{"shift": s} for s in FLOW_SHIFTS], [{}, *_SIGMAS]]),
        ("FlowMatchHeunDiscrete", [[{"shift": s} for s in FLOW_SHIFTS]]),
    ]
    merged = []
    for name, parts in families:
        for combination in product(*parts):
            merged.append((name, {k: v for part in combination for k, v in part.items()}))
    return merged


def _dpm_orders() -> list[dict[str, Any]]:
    kinds = [{"solver_order": 2}, {"solver_order": 2, "solver_type": "heun"}, {"solver_order": 3}]
    return [{"algorithm_type": a, **kind} for a in ("dpmsolver++", "dpmsolver") for kind in kinds]


def _unipc() -> list[dict[str, Any]]:
    return [
        {"solver_order": p, "solver_type": b, "predict_x0": x}
        for p in (2, 3)
        for b in ("bh1", "bh2")
        for x in (True, False)
    ]


def _edm() -> list[dict[str, Any]]:
    return [{"sigma_schedule": s, "sigma_min": low} for s in ("karras", "exponential") for low in (0.002, 0.0292)]


# -- driving --------------------------------------------------------------------------------------------------------


def _run(name: str, flags: dict[str, Any], betas: dict[str, Any], problem: Problem, passes: int) -> Tensor | None:
    for steps in range(passes, 0, -1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "dpmsolver" is on its way out, and still offered
            scheduler = _make(name, flags, betas, problem)
        try:
            scheduler.set_timesteps(steps)
        except (ValueError, IndexError):  # some need more steps than there are
            return None
        if len(scheduler.timesteps) <= passes:
            return drive(name, scheduler, problem.mean, problem.noise)
    return None


def _make(name: str, flags: dict[str, Any], betas: dict[str, Any], problem: Problem) -> Any:
    """The scheduler, its noise table in float64."""
    import diffusers

    words = dict(flags)
    if name in ("EDMEuler", "EDMDPMSolverMultistep"):
        words["sigma_max"] = problem.rho_max if math.isfinite(problem.rho_max) else 80.0
    elif name not in ("IPNDM", "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"):
        words |= betas
    if name == "DDIM":
        words["clip_sample"] = False
    if name == "SASolver":
        words["tau_func"] = _no_noise
    if name in VP_FAMILY:
        flow = words.get("use_flow_sigmas", False)
        words["prediction_type"] = "flow_prediction" if flow else "epsilon"
    scheduler = getattr(diffusers, f"{name}Scheduler")(**words)
    if hasattr(scheduler, "alphas_cumprod"):
        scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    return scheduler


def _no_noise(t: Any) -> int:
    return 0
