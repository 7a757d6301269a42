"""diffusers' schedulers with the grids and flags that they offer, driven through ``step`` in float64.

The levels are read from the scheduler itself.  A scheduler keeps its state in one of these conventions:

=========  =============================  ==========================================================
vp         alpha^2 + sigma^2 = 1          the DPM-Solver family: ``sigmas`` holds sigma/alpha (or flow's sigma)
ve         alpha = 1                      Euler, Heun, LMS, KDPM2, EDM
table      alphas_cumprod                 DDIM, PNDM
flow       alpha = 1 - sigma              flow matching
iPNDM      its own alphas and betas
=========  =============================  ==========================================================

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
            return _drive(name, scheduler, problem)
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
    if name in _VP:
        flow = words.get("use_flow_sigmas", False)
        words["prediction_type"] = "flow_prediction" if flow else "epsilon"
    scheduler = getattr(diffusers, f"{name}Scheduler")(**words)
    if hasattr(scheduler, "alphas_cumprod"):
        scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    return scheduler


def _no_noise(t: Any) -> int:
    return 0


def _drive(name: str, scheduler: Any, problem: Problem) -> Tensor:
    """A pipeline's loop."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    for table in ("sigmas", "sigmas_interpol", "alphas", "betas"):
        if isinstance(getattr(scheduler, table, None), Tensor):
            setattr(scheduler, table, getattr(scheduler, table).double())
    x = problem.noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else None
        alpha, sigma = _level(name, scheduler, i, int(t))
        output = _output(name, scheduler, x, problem.mean(x, alpha, sigma), alpha, sigma)
        x = scheduler.step(output, t, x).prev_sample
    return x / _final_alpha(name, scheduler)


_VP = ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "SASolver")
_TABLE = ("DDIM", "PNDM")
_FLOWING = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")


def _level(name: str, scheduler: Any, i: int, t: int) -> tuple[float, float]:
    """(alpha, sigma) of the state at call i."""
    if name in _TABLE:
        square = float(scheduler.alphas_cumprod[t])
        return math.sqrt(square), math.sqrt(1 - square)
    if name == "IPNDM":
        return float(scheduler.alphas[i]), float(scheduler.betas[i])
    middle = name == "KDPM2Discrete" and not scheduler.state_in_first_order
    sigma = float((scheduler.sigmas_interpol if middle else scheduler.sigmas)[i])
    return _convention(name, scheduler, sigma)


def _convention(name: str, scheduler: Any, sigma: float) -> tuple[float, float]:
    if name in _FLOWING or getattr(scheduler.config, "use_flow_sigmas", False):
        return 1 - sigma, sigma
    if name in _VP:
        return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)
    return 1.0, sigma


def _output(name: str, scheduler: Any, x: Tensor, D: Tensor, alpha: float, sigma: float) -> Tensor:
    """What the network would have put out for the posterior mean D."""
    noise = (x - alpha * D) / sigma
    if name in _FLOWING or getattr(scheduler.config, "use_flow_sigmas", False):
        return noise - D
    if name.startswith("EDM"):
        data = scheduler.config.sigma_data
        total = sigma**2 + data**2
        return (D - data**2 / total * x) / (sigma * data / math.sqrt(total))
    if name == "IPNDM":
        return alpha * noise - sigma * D
    return noise


def _final_alpha(name: str, scheduler: Any) -> float:
    """alpha of the state that the last step leaves."""
    if name in _TABLE or name == "IPNDM":
        return 1.0
    return _convention(name, scheduler, float(scheduler.sigmas[-1]))[0]
