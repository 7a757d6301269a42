"""diffusers' scheduler interface on a plan.

A pipeline owns the loop and the network; a scheduler is told the network's output and answers with the next state to
show it.  So one call of ``step`` turns the output into the posterior mean D_k, by the parameterisation of the network,

    D = c_skip x + c_out F,

and lets the plan move to its next evaluation.  A step of the grid that makes K evaluations is K timesteps.  All
progress lives in a `Run`, which ``set_timesteps`` makes anew.

The state is the path's own, ``x_t = alpha x0 + sigma z``, whatever the pipeline's scheduler carried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, near
from retrodict.denoisers import Denoiser
from retrodict.denoisers.diffusers.convention import (
    ORIGIN,
    PREDICTS,
    Convention,
    Flow,
    Table,
    read,
    read_process,
    recall,
)
from retrodict.denoisers.diffusers.models import mean_channels
from retrodict.denoisers.wrapped import coefficients
from retrodict.processes import GaussianPath
from retrodict.solvers.build import regrid
from retrodict.solvers.plan import Eval, Plan
from retrodict.solvers.to_diffusers import times as wanted
from retrodict.solvers.to_diffusers.run import PipelineNoise, Run

GRIDS = ("plan", "like")

# Options that pipelines hand to every scheduler; None, False and eta = 0 ask for nothing.
_PIPELINE_OPTIONS = ("eta", "use_clipped_model_output")


class PlanStepper:
    """What a scheduler does, without diffusers' base classes; arguments as in `Plan.to_diffusers`.

    Attributes:
        plan: the plan as it was given; a run may be on another grid.
        timesteps: what the network is told, one entry an evaluation.
        sigmas: noise levels of those, with the end: sigma on flow paths, sigma/alpha elsewhere.
        init_noise_sigma: standard deviation of the start, as the pipeline's own scheduler has it.
        order: evaluations of a step of the grid (of its first, where they differ).
    """

    config_name = "scheduler_config.json"

    def __init__(
        self,
        plan: Plan | dict[str, Any],
        like: Any = None,
        prediction_type: str | None = None,
        grid: str = "plan",
        shift_by_mu: bool | None = None,
        clip: bool | None = None,
        seed: int = 0,
    ) -> None:
        plan = Plan.from_dict(plan) if isinstance(plan, dict) else plan
        self.path = _checked_path(plan, grid)
        self.plan, self.grid, self.seed = plan, grid, int(seed)
        self.convention = _convention(plan, self.path, like, prediction_type)
        config = self.convention.config
        if shift_by_mu is None:  # a bare prediction type says nothing of shifts: then mu counts wherever it is passed
            known = like is not None or recall(self.path) is not None
            self.shift_by_mu = bool(config.get("use_dynamic_shifting")) or not known
        else:
            self.shift_by_mu = shift_by_mu
        self._clip = self.convention.thresholded(_Given(self.path), clip)
        self._generator: torch.Generator | None = None
        origin = {
            "plan": plan.to_dict(),
            "like": {"_class_name": self.convention.name, **config},
            "grid": grid,
            "shift_by_mu": shift_by_mu,
            "clip": clip,
            "seed": self.seed,
        }
        self.register_to_config(**config, **{ORIGIN: origin})  # type: ignore[attr-defined] - of ConfigMixin
        self._start(plan, None)

    @classmethod
    def from_config(cls, config: dict[str, Any], return_unused_kwargs: bool = False, **options: Any) -> Any:
        """Rebuild from a saved configuration."""
        if ORIGIN not in config:
            raise InputError("this configuration has no plan; make the object with plan.to_diffusers(pipe.scheduler)")
        made = cls(**{**config[ORIGIN], **options})
        return (made, {}) if return_unused_kwargs else made

    def __repr__(self) -> str:
        plan, told = self._current, f"like {self.convention.name}, which predicts {self.convention.predicts}"
        return f"PlanScheduler({plan.meta.get('solver', 'plan')}: {plan.steps} steps, {plan.nfe} evaluations; {told})"

    # -- the grid -------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Begin a run.

        Args:
            num_inference_steps: steps of the grid; another number than the plan's generates the plan anew.
            timesteps, sigmas: a grid, in the network's clock or as noise levels; the end is the plan's.  The sigmas
                that flow pipelines pass by default, ``linspace(1, 1/n, n)``, leave the grid to the plan.
            mu: shift of the log-SNR of flow models, lambda' = lambda - mu.

        Raises:
            InputError: a plan of free coefficients, or on times of its own, at another length or on another grid.
        """
        times = self._times(num_inference_steps, timesteps, sigmas, mu)
        self._start(self.plan if times == self.plan.times else regrid(self.plan, times), device)

    def _times(self, n: int | None, timesteps: Any, sigmas: Any, mu: float | None) -> tuple[float, ...]:
        if timesteps is not None and sigmas is not None:
            raise InputError("give timesteps or sigmas, one of the two")
        if n is None and timesteps is None and sigmas is None:
            raise InputError("give num_inference_steps, timesteps or sigmas")
        mu = mu if self.shift_by_mu else None
        if self.grid == "like":
            words = {"timesteps": timesteps, "sigmas": sigmas, "mu": mu}
            return self.convention.times(n, **{k: v for k, v in words.items() if v is not None})
        if timesteps is not None:
            times = wanted.times_of_timesteps(self.plan, self.convention, timesteps)
        elif sigmas is not None and not wanted.is_default(self.convention, sigmas):
            times = wanted.times_of_sigmas(self.plan, self.convention, sigmas)
        else:
            times = wanted.own_times(self.plan, len(sigmas) if sigmas is not None else int(n or 0))
        return times if mu is None else wanted.shifted(self.path, times, wanted.lambda_shift(self.convention, mu))

    def _start(self, plan: Plan, device: torch.device | str | None) -> None:
        """A run of ``plan`` from its beginning."""
        nodes = _nodes(plan)
        if not plan.code or not isinstance(plan.code[0], Eval):
            raise InputError("a pipeline evaluates first, and this plan moves before its first evaluation")
        if any(c.alpha == 0 for c in nodes) and self.convention.predicts in ("noise", "score"):
            raise InputError(
                "the plan evaluates at alpha = 0, where a network that predicts noise says nothing about the data; "
                "start the plan at a smaller time"
            )
        self._current, self._run = plan, Run(plan, 0)
        self._begin_index: int | None = None
        self.num_inference_steps = plan.steps
        self.timesteps = self._told(nodes).to(device=device)
        self.sigmas = self._levels(plan, nodes)
        # the start's own level: a tuned plan may tell the network an earlier one
        begin = plan.times[0]
        self.init_noise_sigma = self.convention.start_std(float(self.path.alpha(begin)), float(self.path.sigma(begin)))
        self.order = wanted.evaluations_of_first_step(plan)

    def _told(self, nodes: Sequence[Eval]) -> Tensor:
        """The timesteps of evaluations: whole numbers where all of them are levels of a table."""
        told = self.convention.clock(torch.tensor([c.t for c in nodes], dtype=torch.float64))
        whole = isinstance(self.convention, Table) and bool(((told - told.round()).abs() < 1e-6).all())
        return told.round().long() if whole else told.float()

    def _levels(self, plan: Plan, nodes: Sequence[Eval]) -> Tensor:
        end = plan.times[-1]
        last = (
            (1.0, 0.0) if plan.meta.get("end") is None else (float(self.path.alpha(end)), float(self.path.sigma(end)))
        )
        pairs = [*((c.alpha, c.sigma) for c in nodes), last]
        flow = isinstance(self.convention, Flow)
        return torch.tensor([s if flow else s / max(a, 1e-30) for a, s in pairs], dtype=torch.float32)

    # -- a start in the middle ------------------------------------------------------------------------------

    @property
    def begin_index(self) -> int | None:
        """Where in ``timesteps`` the run begins, if it was told."""
        return self._begin_index

    @property
    def step_index(self) -> int:
        """Where in ``timesteps`` the run is."""
        return self._run.first + self._run.done

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at ``timesteps[begin_index]``: the plan from there, whose first steps have no history.

        Raises:
            InputError: the run is under way, or the plan from there evaluates elsewhere.
        """
        if self._run.done:
            raise InputError("the run has begun; call set_timesteps before set_begin_index")
        plan, told = self._current, self.timesteps[begin_index:]
        if begin_index:
            plan = plan.between(_nodes(plan)[begin_index].t, plan.meta.get("end"))
            again = self._told(_nodes(plan)).to(told.device)
            if len(told) != len(again) or not torch.allclose(told.float(), again.float(), atol=1e-3):
                raise InputError(
                    f"a run from timestep {float(told[0]):g} (index {begin_index}) does not evaluate where this plan "
                    f"does, whose steps make up to {self.order} evaluations; begin at a multiple of {self.order}, or "
                    "use a multistep solver"
                )
        self._begin_index, self._run = begin_index, Run(plan, begin_index)

    def _enter(self, timestep: Any) -> None:
        """Check that ``timestep`` is the next one; at first it may be any, and the run begins there."""
        index = self.step_index
        if index >= len(self.timesteps):
            raise InputError("the run is over; call set_timesteps to begin another")
        if isinstance(timestep, Tensor) and timestep.data_ptr() == self.timesteps[index].data_ptr():
            return  # an entry of our own list: nothing is read from the device
        asked = float(timestep)
        distance = (self.timesteps.double().cpu() - asked).abs()
        close = (distance <= 1e-4 + 1e-5 * abs(asked)).nonzero().flatten().tolist()
        if index in close:
            return
        if self._run.done == 0 and self._begin_index is None and close:
            self.set_begin_index(close[0])
            return
        raise InputError(
            f"a step at timestep {asked:g} was asked for, and {float(self.timesteps[index]):g} is next: either two "
            "pipelines step through this object at the same time (give each its own plan.to_diffusers(), or run one "
            "after the other), or a step was left out or repeated"
        )

    # -- stepping -------------------------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The network's input for a state: the state itself, but for preconditioned networks."""
        return sample * self._coefficients(self._run.node)[0] if self.convention.predicts == "edm" else sample

    @torch.no_grad()
    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        **pipeline: Any,
    ) -> Any:
        """The next state to show to the network.

        Args:
            model_output: the network's output, guidance included; learned variances on axis 1 are dropped.
            timestep: the entry of ``timesteps`` that it was computed at.
            sample: the state that it was computed from; a changed one (by a mask, or a callback) replaces ours.
            generator: a `torch.Generator`, or one a sample, for the plan's noise; None draws from the seed's own.
            pipeline: what pipelines hand on regardless (``eta``: the plan's holds).

        Returns:
            An object with ``prev_sample`` and ``pred_original_sample``, or these as a tuple.
        """
        self._check_options(pipeline)
        output = mean_channels(model_output, sample.shape[1]) if sample.ndim > 1 else model_output
        if output.shape != sample.shape:
            raise InputError(f"the network returned {tuple(output.shape)} for a state of {tuple(sample.shape)}")
        self._enter(timestep)
        node, x = self._run.node, self._run.enter(sample)
        _, c_skip, c_out = self._coefficients(node)
        mean = self._clip(torch.mul(output.to(x.dtype), c_out).add_(x, alpha=c_skip), node.t)
        noise = PipelineNoise(self._source(generator), sample, model_output.dtype)
        previous = self._run.advance(mean, self._clip, noise, sample.dtype)
        mean = mean.to(sample.dtype)
        return _output(previous, mean) if return_dict else (previous, mean)

    def _coefficients(self, node: Eval) -> tuple[float, float, float]:
        """``(c_in, c_skip, c_out)`` of the network's parameterisation at an evaluation."""
        alpha, sigma = (torch.tensor(v, dtype=torch.float64) for v in (node.alpha, node.sigma))
        values = coefficients(self.convention.predicts, alpha, sigma, self.convention.data_std)
        c_in, c_skip, c_out = (float(c) for c in values)
        return c_in, c_skip, c_out

    def _source(self, generator: Any) -> Any:
        """The pipeline's generator, or ours, which runs on from one run to the next: they would else share noise."""
        if generator is not None:
            return generator
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.seed)
        return self._generator

    def _check_options(self, given: dict[str, Any]) -> None:
        for name, value in given.items():
            if name not in _PIPELINE_OPTIONS:
                raise InputTypeError(
                    f"step does not take {name!r}: the plan fixes the solver.{near(name, _PIPELINE_OPTIONS)}"
                )
            own = self.plan.meta.get("eta", 0.0)
            if name == "eta" and value and value != own:
                raise InputError(
                    f"the pipeline was asked for eta={value} and the plan has {own}; make the plan with eta={value}"
                )

    # -- noising --------------------------------------------------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``alpha x0 + sigma z`` at timesteps, one number or one a sample."""
        t = self.convention.time_of(torch.as_tensor(timesteps).cpu().flatten()).clamp(0, 1)
        shape = (-1, *(1,) * (original_samples.ndim - 1))
        # first the precision, then the device: some devices have no float64
        alpha, sigma = (
            c(t).to(original_samples.dtype).to(original_samples.device).reshape(shape)
            for c in (self.path.alpha, self.path.sigma)
        )
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` in the order of arguments that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return self.convention.levels


class _Given(Denoiser):
    """The identity: the mean is known already, and only clipping is left to do."""

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        return x


def _nodes(plan: Plan) -> list[Eval]:
    return [c for c in plan.code if isinstance(c, Eval)]


def _output(previous: Tensor, mean: Tensor) -> Any:
    from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

    return DDIMSchedulerOutput(prev_sample=previous, pred_original_sample=mean)


def _checked_path(plan: Any, grid: str) -> GaussianPath:
    if not isinstance(plan, Plan):
        raise InputTypeError(f"a Plan is needed, got {type(plan).__name__}")
    path = plan.process
    if not isinstance(path, GaussianPath) or not path.scalar or len(path.ends) != 1:
        raise InputError(
            f"pipelines of diffusers run on scalar Gaussian paths with one end; this plan is on {type(path).__name__}"
        )
    if grid not in GRIDS:
        raise InputError(f"grid is 'plan' (its own) or 'like' (the pipeline's), got {grid!r}.{near(grid, GRIDS)}")
    return path


def _convention(plan: Plan, path: GaussianPath, like: Any, prediction_type: str | None) -> Convention:
    """What the pipeline's network means: from its scheduler, from the plan's process, or from a prediction type."""
    known = read(getattr(like, "scheduler", like)) if like is not None else recall(path)
    if known is None and prediction_type is None:
        raise InputError(
            "what the pipeline's network predicts is not known: pass like=pipe.scheduler, or prediction_type= (one of "
            f"{', '.join(PREDICTS)}), or make the plan with the process of from_diffusers(...)"
        )
    if known is None:
        return read_process(path, prediction_type or "")
    known.check_process(path, [t for t in plan.times if t > 0])
    return known if prediction_type is None else known.predicting(prediction_type)
