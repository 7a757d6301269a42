"""What a diffusers scheduler says about a model: its path, what it predicts, how it tells time, where it steps.

A network trained in diffusers is told a *timestep*, and the configuration of its scheduler is all that says what
that number means.  Four families cover the accepted classes; each is a map between timesteps and our t in [0, 1]:

========  =========================  ==================================  ==============================
family    process                    timestep                            state of the network's input
========  =========================  ==================================  ==============================
table     `VP` of the betas          n = N t - 1 (level n at (n+1)/N)    x = alpha x0 + sigma z
flow      `RectifiedFlow`            N t, t = sigma                      x = (1 - t) x0 + t z
edm       `EDM` or `VE`              log(sigma) / 4                      x / sqrt(sigma^2 + sigma_data^2)
ve        `VE`                       sigma                               x = x0 + sigma z
========  =========================  ==================================  ==============================

Schedulers that carry their state as x / alpha (the Euler family) were trained on the same networks as those that
do not; only the table's state is used here.  The betas are summed in float64, where diffusers uses float32.
"""

from __future__ import annotations

import copy
import inspect
import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, near, optional_import
from retrodict.denoisers.combined import Thresholded
from retrodict.denoisers.denoiser import Denoiser
from retrodict.processes import EDM, VE, VP, GaussianPath, RectifiedFlow

#: diffusers' names of prediction types, and ours.
PREDICTS = {"epsilon": "noise", "sample": "data", "v_prediction": "velocity", "flow_prediction": "flow"}

_TABLE = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
_EDM = ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")
_VE = ("ScoreSdeVeScheduler",)

#: Names of the scheduler classes that are understood.
ACCEPTED = tuple(sorted(_TABLE + _FLOW + _EDM + _VE))

# These put a stage of their own between two points of the grid.
_INTERLEAVED = ("DPMSolverSDEScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler")
# These carry x / alpha, and with some spacings start at pure noise instead of at data of unit variance with noise.
_CARRY_RATIO = (
    *_INTERLEAVED,
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
)
_END_AT_FIRST_LEVEL = ("DEISMultistepScheduler", "SASolverScheduler")
_BY_SIGMA = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
# The smallest alpha^2 of a table whose last beta is one (zero terminal SNR): what diffusers itself uses.
_SMALLEST_ALPHA2 = 2.0**-24

# The entry of a configuration in which a plan's scheduler keeps what it was made like.
ORIGIN = "_retrodict"

_conventions: weakref.WeakKeyDictionary[GaussianPath, Convention] = weakref.WeakKeyDictionary()


class Convention:
    """The reading of one scheduler; made by `read`.

    Attributes:
        name: class name of the scheduler.
        config: its configuration as plain values.
        process: the path that the network was trained on.
        predicts: what the network estimates, in the words of `Denoiser.wrap`.
        data_std: standard deviation of the data, for the "edm" parameterisation.
    """

    predicts: str
    process: GaussianPath
    data_std: float = 1.0

    def __init__(self, scheduler: Any, name: str) -> None:
        self._scheduler, self.name = copy.deepcopy(scheduler), name
        self.config = {k: v for k, v in dict(scheduler.config).items() if not k.startswith("_")}
        self.levels = int(self.config.get("num_train_timesteps", 1000))

    def clock(self, t: Tensor) -> Tensor:
        """The timestep that the network is told at times t, float64."""
        raise NotImplementedError

    def time_of(self, timestep: Tensor) -> Tensor:
        """The inverse of `clock`."""
        raise NotImplementedError

    @property
    def grid(self) -> Any:
        """The named grid nearest to the scheduler's own spacing, as `retrodict.plan` takes it."""
        return "karras"

    def times(self, steps: int | None = None, **custom: Any) -> tuple[float, ...]:
        """The decreasing times of the scheduler's own steps, its end included.

        Args:
            steps: number of inference steps; custom: what else its ``set_timesteps`` takes (``timesteps``,
                ``sigmas``, ``mu``).
        """
        scheduler = copy.deepcopy(self._scheduler)
        if steps is not None:
            custom = {"num_inference_steps": steps} | custom
        scheduler.set_timesteps(**custom)
        return tuple(self._visited(scheduler))

    @property
    def end(self) -> float | None:
        """Where the scheduler's steps end, as `retrodict.plan` takes it: None for the clean end."""
        return 0.0 if self.config.get("final_sigmas_type") == "sigma_min" else None

    def start_std(self, alpha: float, sigma: float) -> float:
        """Standard deviation of the state from which the scheduler starts at a noise level."""
        return math.hypot(alpha, sigma)

    def _visited(self, scheduler: Any) -> Sequence[float]:
        return self._from_sigmas(scheduler.sigmas)

    def _from_sigmas(self, sigmas: Tensor) -> Sequence[float]:
        """Times at which sigma/alpha takes given values; zero is the clean end."""
        sigmas = torch.unique_consecutive(torch.as_tensor(sigmas).double().cpu())
        # clamped into [0, 1]: a path whose sigma(0) is positive visits t = 0 twice, once with noise and once clean
        return torch.where(sigmas == 0, 0.0, self.process.time_at(-sigmas.clamp_min(1e-300).log())).tolist()

    def thresholded(self, denoiser: Denoiser, clip: bool | None = None) -> Denoiser:
        """``denoiser``, with its mean clipped if the configuration asks for it.

        Args:
            clip: None does as configured, False never clips, True clips even where nothing asks for it.
        """
        low = float(self.config.get("clip_sample_range") or 1.0)
        if clip is False:
            return denoiser
        if self._honours("thresholding"):
            top = float(self.config.get("sample_max_value", 1.0))
            if top <= 1:  # a quantile held between 1 and 1 is a clip at 1, which is diffusers' default
                return Thresholded(denoiser, -1.0, 1.0)
            quantile = float(self.config["dynamic_thresholding_ratio"])
            return Thresholded(Thresholded(denoiser, -top, top), quantile=quantile)
        return Thresholded(denoiser, -low, low) if clip or self._honours("clip_sample") else denoiser

    def _honours(self, option: str) -> bool:
        """Whether a flag is set and belongs to this class: converted schedulers carry each other's entries along."""
        return bool(self.config.get(option)) and option in inspect.signature(type(self._scheduler).__init__).parameters

    def predicting(self, prediction_type: str) -> Convention:
        """The same convention for a network that predicts something else than its scheduler says."""
        other = copy.copy(self)
        other.predicts = _prediction(prediction_type, self.name)
        other.config = self.config | {"prediction_type": prediction_type}
        return other

    def check_process(self, process: GaussianPath, times: Sequence[float]) -> None:
        """Raise unless ``process`` has this model's noise levels at given times."""
        t = torch.tensor(times, dtype=torch.float64)
        for name in ("alpha", "sigma"):
            ours, theirs = getattr(process, name)(t), getattr(self.process, name)(t)
            if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5):
                worst = int((ours - theirs).abs().argmax())
                raise InputError(
                    f"the plan was made for a {type(process).__name__} with {name} = {float(ours[worst]):.4g} at "
                    f"t = {times[worst]:g}, and the model of {self.name} was trained with {float(theirs[worst]):.4g} "
                    "there; make the plan with the model's process: from_diffusers(pipe).process"
                )


class Table(Convention):
    """A discrete chain of betas."""

    def __init__(self, scheduler: Any, name: str) -> None:
        super().__init__(scheduler, name)
        self.process = VP(_positive_snr(torch.as_tensor(scheduler.betas).double()))
        self.levels = self.process.levels or self.levels
        self.predicts = _prediction(self.config.get("prediction_type", "epsilon"), name)

    def clock(self, t: Tensor) -> Tensor:
        return (t * self.levels - 1).clamp_min(0)

    def time_of(self, timestep: Tensor) -> Tensor:
        return (timestep.double() + 1) / self.levels

    @property
    def grid(self) -> Any:
        if any(self.config.get(flag) for flag in _BY_SIGMA):
            return "karras" if self.config.get("use_karras_sigmas") else "logsnr"
        spacing = self.config.get("timestep_spacing", "linspace")
        grid = {"name": spacing, "levels": self.levels}
        return grid | {"offset": int(self.config.get("steps_offset", 0))} if spacing == "leading" else grid

    def _visited(self, scheduler: Any) -> Sequence[float]:
        if any(self.config.get(flag) for flag in _BY_SIGMA):
            return self._from_sigmas(scheduler.sigmas)
        timesteps = torch.as_tensor(scheduler.timesteps).double().cpu()
        timesteps = timesteps[::2] if self.name in _INTERLEAVED else timesteps
        times = self.time_of(torch.unique_consecutive(timesteps)).tolist()
        end = self.end or 0.0
        return [*(t for t in times if t > end), end]

    @property
    def end(self) -> float | None:
        stays = self.config.get("set_alpha_to_one") is False or self.config.get("final_sigmas_type") == "sigma_min"
        return 1 / self.levels if stays or self.name in _END_AT_FIRST_LEVEL else None

    def start_std(self, alpha: float, sigma: float) -> float:
        alone = self.name in _CARRY_RATIO and self.config.get("timestep_spacing") in ("linspace", "trailing")
        return sigma if alone else super().start_std(alpha, sigma)


class Flow(Convention):
    """The straight path, with a timestep of N sigma."""

    def __init__(self, scheduler: Any, name: str) -> None:
        super().__init__(scheduler, name)
        if self.config.get("invert_sigmas"):
            raise InputError("a flow-matching scheduler with invert_sigmas runs its path backward; it is not supported")
        self.process = RectifiedFlow()
        self.predicts = _prediction(self.config.get("prediction_type", "flow_prediction"), name)

    def clock(self, t: Tensor) -> Tensor:
        return t * self.levels

    def time_of(self, timestep: Tensor) -> Tensor:
        return timestep.double() / self.levels

    def start_std(self, alpha: float, sigma: float) -> float:
        return 1.0

    @property
    def shift(self) -> float:
        """The static resolution shift of the grid."""
        dynamic = self.config.get("use_dynamic_shifting", False)
        return 1.0 if dynamic else float(self.config.get("shift", self.config.get("flow_shift", 1.0)))

    @property
    def grid(self) -> Any:
        return {"name": "flow", "shift": self.shift} if self.shift != 1 else "flow"

    def _from_sigmas(self, sigmas: Tensor) -> Sequence[float]:
        return torch.unique_consecutive(torch.as_tensor(sigmas).double().cpu()).tolist()


class Preconditioned(Convention):
    """Karras et al. (2022): the network sees x / sqrt(sigma^2 + sigma_data^2) and log(sigma) / 4."""

    predicts = "edm"

    def __init__(self, scheduler: Any, name: str) -> None:
        super().__init__(scheduler, name)
        if self.config.get("prediction_type", "epsilon") != "epsilon":
            raise InputError(f"{name} is read with prediction_type='epsilon', got {self.config['prediction_type']!r}")
        low, high = float(self.config["sigma_min"]), float(self.config["sigma_max"])
        karras = self.config.get("sigma_schedule", "karras") == "karras"
        self.process = EDM(low, high, float(self.config.get("rho", 7.0))) if karras else VE(low, high)
        self.data_std = float(self.config["sigma_data"])

    def clock(self, t: Tensor) -> Tensor:
        return self.process.log_sigma(t) / 4

    def time_of(self, timestep: Tensor) -> Tensor:
        return self.process.time_at(-4 * timestep.double())

    @property
    def grid(self) -> Any:
        return "karras" if isinstance(self.process, EDM) else "logsnr"


class Exploding(Convention):
    """Song et al. (2021): the network is told sigma and estimates the score."""

    predicts = "score"

    def __init__(self, scheduler: Any, name: str) -> None:
        super().__init__(scheduler, name)
        self.process = VE(float(self.config["sigma_min"]), float(self.config["sigma_max"]))

    def clock(self, t: Tensor) -> Tensor:
        return self.process.sigma(t)

    def time_of(self, timestep: Tensor) -> Tensor:
        return self.process.time_at(-timestep.double().log())

    @property
    def grid(self) -> Any:
        return "logsnr"

    def _visited(self, scheduler: Any) -> Sequence[float]:
        scheduler.set_sigmas(len(scheduler.timesteps))
        return [*self._from_sigmas(scheduler.sigmas), 0.0]


def read(scheduler: Any) -> Convention:
    """Read a scheduler object, or a configuration with ``_class_name``.

    Raises:
        InputError: a class that is not understood (the accepted ones are named), or an option of one.
    """
    config = scheduler if isinstance(scheduler, dict) else getattr(scheduler, "config", {})
    named = config.get("_class_name") if isinstance(scheduler, dict) else type(scheduler).__name__
    if ORIGIN in config and named not in ACCEPTED:  # a plan's own scheduler: what it was made like
        scheduler = config[ORIGIN]["like"]
    if isinstance(scheduler, dict):
        scheduler = _from_config(scheduler)
    if not hasattr(scheduler, "config"):
        raise InputError(f"a diffusers scheduler or its configuration is needed, got {type(scheduler).__name__}")
    name = next((c.__name__ for c in type(scheduler).__mro__ if c.__name__ in ACCEPTED), "")
    if not name:
        raise _unknown(type(scheduler).__name__)
    config = scheduler.config
    if config.get("timestep_type", "discrete") == "continuous":
        raise InputError(f"{name} with timestep_type='continuous' is not supported; 'discrete' is")
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if name in _FLOW or (name in _TABLE and flow):
        return Flow(scheduler, name)
    families = {_TABLE: Table, _EDM: Preconditioned, _VE: Exploding}
    return next(family for names, family in families.items() if name in names)(scheduler, name)


def read_process(process: GaussianPath, prediction_type: str) -> Convention:
    """The convention of a model on ``process`` that predicts ``prediction_type`` and clips nothing.

    Raises:
        InputError: a process without a timestep of its own in diffusers.
    """
    if isinstance(process, VP) and process.levels is not None:
        config = {"num_train_timesteps": process.levels, "trained_betas": process.schedule_name, "clip_sample": False}
        return read({"_class_name": "DDPMScheduler", "prediction_type": prediction_type, **config})
    if isinstance(process, RectifiedFlow):
        return read({"_class_name": "FlowMatchEulerDiscreteScheduler"}).predicting(prediction_type)
    raise InputError(
        f"{type(process).__name__} does not say which timestep a diffusers model is told; pass like=pipe.scheduler "
        "(a VP table of betas and RectifiedFlow need only prediction_type=)"
    )


def remember(convention: Convention) -> None:
    """Let a process answer, for as long as it lives, which model it was read from."""
    _conventions[convention.process] = convention


def recall(process: GaussianPath) -> Convention | None:
    """The convention from which a process was read, if any."""
    return _conventions.get(process)


def _from_config(config: dict[str, Any]) -> Any:
    name = config.get("_class_name", "")
    if name not in ACCEPTED:
        raise _unknown(name)
    return getattr(optional_import("diffusers", "diffusers"), name).from_config(config)


def _unknown(name: str) -> InputError:
    return InputError(f"unknown diffusers scheduler {name!r}; accepted: {', '.join(ACCEPTED)}.{near(name, ACCEPTED)}")


def _prediction(name: str, where: str) -> str:
    if name not in PREDICTS:
        known = ", ".join(PREDICTS)
        raise InputError(f"unknown prediction_type {name!r} of {where}; known: {known}.{near(name, PREDICTS)}")
    return PREDICTS[name]


def _positive_snr(betas: Tensor) -> Tensor:
    """Betas below one: a last beta of one is lowered until alpha^2 at the end is 2^-24."""
    if float(betas[-1]) < 1:
        return betas
    before = math.exp(float(torch.log1p(-betas[:-1]).sum()))
    return torch.cat([betas[:-1], torch.tensor([1 - _SMALLEST_ALPHA2 / before], dtype=torch.float64)])
