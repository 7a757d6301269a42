"""Schedulers of diffusers, driven as a pipeline does: ``set_timesteps`` and then ``step`` for every timestep.

The level that the denoiser is told is read from the scheduler itself.  A scheduler keeps its state in one of these
conventions:

=========  =============================  ==========================================================
vp         alpha^2 + sigma^2 = 1          the DPM-Solver family: ``sigmas`` holds sigma/alpha (or flow's sigma)
ve         alpha = 1                      Euler, Heun, LMS, KDPM2, EDM
table      alphas_cumprod                 DDIM, DDPM, PNDM
flow       alpha = 1 - sigma              flow matching
iPNDM      its own alphas and betas
=========  =============================  ==========================================================

Tables are raised to float64.  Some schedulers cast the state to float32 inside ``step``: their results carry an error
near 1e-6.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, near, optional_import
from retrodict.diagnostics.certificate.samplers import Mean, Sampler

VP_FAMILY = ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep", "SASolver")
_TABLE = ("DDIM", "DDPM", "PNDM")
_FLOWING = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")
_EDM = ("EDMEuler", "EDMDPMSolverMultistep")
_VE = ("EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete")
KNOWN = (*VP_FAMILY, *_TABLE, *_FLOWING, *_EDM, *_VE, "IPNDM")

# Orders that the classes state; those of the others are in their configuration.
# Liu et al. (2022) prove the second order of their Adams weights of equal steps, and no more.
_ORDERS = {"HeunDiscrete": 2, "FlowMatchHeunDiscrete": 2, "KDPM2Discrete": 2, "LMSDiscrete": 4, "PNDM": 2, "IPNDM": 2}
_SHIFTED = ("UniPCMultistep",)  # the corrector adds one to solver_order (Zhao et al. 2023)


class DiffusersSampler(Sampler):
    """A scheduler by object or configuration, clipping and thresholding switched off: those belong to the denoiser.

    Raises:
        InputError: a scheduler whose state this does not know how to read.
    """

    library = "diffusers"
    precision = 2e-6

    def __init__(self, scheduler: Any, **changes: Any) -> None:
        diffusers = optional_import("diffusers", "diffusers")
        logging.getLogger("diffusers").setLevel(logging.ERROR)
        config = dict(scheduler if isinstance(scheduler, dict) else scheduler.config)
        named = config.get("_class_name", "") if isinstance(scheduler, dict) else type(scheduler).__name__
        self.kind = named.removesuffix("Scheduler")
        if self.kind not in KNOWN:
            raise InputError(
                f"certify cannot read the noise level of {named!r}; known schedulers: {', '.join(KNOWN)}."
                f"{near(self.kind, KNOWN)}"
            )
        self.made = getattr(diffusers, f"{self.kind}Scheduler")
        accepted = inspect.signature(self.made.__init__).parameters
        off = {k: False for k in ("clip_sample", "thresholding") if k in accepted}
        self.config = {k: v for k, v in (config | changes).items() if k in accepted} | off
        tau: Any = self.config.pop("tau_func", None)
        self.tau: Callable[..., Any] | None = tau
        self.version = version("diffusers")
        self.name = self.kind + _shown(self.config, accepted)
        self.order = self._declared()
        self.stochastic = self._has_noise()
        self.pristine = self._make()

    def _declared(self) -> float | None:
        given = self.config.get("solver_order", self.config.get("predictor_order"))
        if given is None:
            return float(_ORDERS.get(self.kind, 1))
        shown = inspect.signature(self.made.__init__).parameters
        default = (shown.get("solver_order") or shown["predictor_order"]).default
        order = float(given if given is not None else default) + (self.kind in _SHIFTED)
        return min(order, 2.0) if "sde" in str(self.config.get("algorithm_type", "")) else order

    def _has_noise(self) -> bool:
        sde = "sde" in str(self.config.get("algorithm_type", ""))
        return sde or self.kind in ("DDPM", "EulerAncestralDiscrete") or self.tau is not None

    def _make(self) -> Any:
        """A new scheduler, its noise table in float64."""
        words = dict(self.config)
        if self.kind == "SASolver":
            words["tau_func"] = self.tau or (lambda t: 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            scheduler = self.made(**words)
        if hasattr(scheduler, "alphas_cumprod"):
            scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
        return scheduler

    def run(self, mean: Mean, z: Tensor, n: int, seed: int = 0) -> Tensor:
        scheduler = copy.deepcopy(self.pristine)  # it counts its own steps, and some are slow to make
        scheduler.set_timesteps(n)
        return drive(self.kind, scheduler, mean, z, seed)

    def alone(self, mean: Mean, z: Tensor, n: int, seed: int, slot: int) -> Tensor:
        return self.run(mean, z, n, seed + slot)


def _shown(config: dict[str, Any], accepted: Any) -> str:
    """The settings that are not the class's defaults."""
    own = {k: v for k, v in config.items() if k in accepted and v != accepted[k].default}
    words = [f"{k}={v}" for k, v in own.items() if not isinstance(v, (list, dict)) and k not in ("clip_sample",)]
    return f"({', '.join(words)})" if words else ""


def drive(kind: str, scheduler: Any, mean: Mean, z: Tensor, seed: int = 0) -> Tensor:
    """A pipeline's loop over a scheduler whose timesteps are set; returns ``y = x/alpha``."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    for table in ("sigmas", "sigmas_interpol", "alphas", "betas"):
        if isinstance(getattr(scheduler, table, None), Tensor):
            setattr(scheduler, table, getattr(scheduler, table).double())
    words: dict[str, Any] = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        words["generator"] = [torch.Generator().manual_seed(seed + i) for i in range(len(z))]
    x = z * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else None
        alpha, sigma = level(kind, scheduler, i, int(t))
        output = prediction(kind, scheduler, x, mean(x, alpha, sigma), alpha, sigma)
        x = scheduler.step(output, t, x, **words).prev_sample
    return x / final_alpha(kind, scheduler)


def level(kind: str, scheduler: Any, i: int, t: int) -> tuple[float, float]:
    """(alpha, sigma) of the state at call i."""
    if kind in _TABLE:
        square = float(scheduler.alphas_cumprod[t])
        return math.sqrt(square), math.sqrt(1 - square)
    if kind == "IPNDM":
        return float(scheduler.alphas[i]), float(scheduler.betas[i])
    middle = kind == "KDPM2Discrete" and not scheduler.state_in_first_order
    sigma = float((scheduler.sigmas_interpol if middle else scheduler.sigmas)[i])
    return _convention(kind, scheduler, sigma)


def _flows(kind: str, scheduler: Any) -> bool:
    return kind in _FLOWING or bool(getattr(scheduler.config, "use_flow_sigmas", False))


def _convention(kind: str, scheduler: Any, sigma: float) -> tuple[float, float]:
    if _flows(kind, scheduler):
        return 1 - sigma, sigma
    if kind in VP_FAMILY:
        return 1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)
    return 1.0, sigma


def prediction(kind: str, scheduler: Any, x: Tensor, D: Tensor, alpha: float, sigma: float) -> Tensor:
    """What the network would have put out for the posterior mean D."""
    noise = (x - alpha * D) / sigma
    if kind in _EDM:
        data = scheduler.config.sigma_data
        total = sigma**2 + data**2
        return (D - data**2 / total * x) / (sigma * data / math.sqrt(total))
    if kind == "IPNDM":
        return alpha * noise - sigma * D
    told = "flow_prediction" if kind in _FLOWING else scheduler.config.get("prediction_type", "epsilon")
    if told == "flow_prediction":
        return noise - D
    if told == "v_prediction":
        size = math.hypot(alpha, sigma)
        return (alpha * noise - sigma * D) / size
    return D if told == "sample" else noise


def final_alpha(kind: str, scheduler: Any) -> float:
    """alpha of the state that the last step leaves."""
    if kind in _TABLE or kind == "IPNDM":
        return 1.0
    return _convention(kind, scheduler, float(scheduler.sigmas[-1]))[0]
