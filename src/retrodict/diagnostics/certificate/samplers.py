"""Samplers as black boxes: plans, functions in k-diffusion's style and azula's samplers under one call.

    run(mean, z, n) -> y        from standard normals z to the result, in n steps of the sampler's own grid

``mean(x, alpha, sigma)`` is the posterior mean of a state in whatever convention the sampler keeps.  Those of
diffusers are in `diffusers_samplers`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise, Noise
from retrodict.denoisers import Denoiser
from retrodict.denoisers.denoiser import batch_time
from retrodict.diagnostics.certificate.probes import Basis, Probe, constant
from retrodict.processes import VP, GaussianPath
from retrodict.solvers import Plan, regrid, runtime, solvers
from retrodict.solvers import plan as make_plan

Mean = Callable[[Tensor, float, float], Tensor]
HIGHEST, LOWEST = 80.0, 0.02  # rho of the grids that are made here


class Sampler:
    """One sampler.

    Attributes:
        name, library: for people; version: of the library.
        order: the order that it declares, pathwise or (of a stochastic one) weak; None if it declares none.
        stochastic: whether it draws noise.
        precision: below this its errors are those of its arithmetic.
        fixed: the only number of steps that it has, if so.
    """

    name: str
    library: str
    version: str = ""
    order: float | None = None
    stochastic: bool = False
    precision: float = 1e-11
    fixed: int | None = None

    def run(self, mean: Mean, z: Tensor, n: int, seed: int = 0) -> Tensor:
        """The result ``y`` of n steps, from ``z (batch, d)`` standard normal in float64."""
        raise NotImplementedError

    def alone(self, mean: Mean, z: Tensor, n: int, seed: int, slot: int) -> Tensor:
        """The same for the one sample that a batch had in a slot, with that slot's seed where slots have seeds."""
        return self.run(mean, z, n, seed)


class PlanSampler(Sampler):
    """A plan of ours, made anew for each number of steps.

    Args:
        make: ``number of steps -> plan``.
    """

    library = "retrodict"

    def __init__(self, name: str, make: Callable[[int], Plan], fixed: int | None = None) -> None:
        self.name, self.make, self.fixed = name, make, fixed
        first = make(fixed or 8)
        if not isinstance(first.process, GaussianPath) or len(first.process.ends) != 1:
            raise InputError(f"certificates need a Gaussian path with one end, got {type(first.process).__name__}")
        if not runtime.is_fast(first):
            raise InputError("certificates need a plan of linear rows: rows of this one depend on data")
        self.version = version("retrodict")
        self.order, self.stochastic = first.order, first.noises > 0

    def run(self, mean: Mean, z: Tensor, n: int, seed: int = 0) -> Tensor:
        return self._run(mean, z, n, seed, range(len(z)))

    def alone(self, mean: Mean, z: Tensor, n: int, seed: int, slot: int) -> Tensor:
        return self._run(mean, z, n, seed, [slot])

    def _run(self, mean: Mean, z: Tensor, n: int, seed: int, slots: Sequence[int]) -> Tensor:
        plan = self.make(n)
        x = z * float(plan.process.sigma(plan.times[0]))  # type: ignore[attr-defined]
        out = runtime.run(plan, _Shown(plan.process, mean), x, _Ordinary(seed, slots), {})
        end = plan.meta.get("end")
        return out / float(plan.process.alpha(plan.times[-1] if end is not None else 0.0))  # type: ignore[attr-defined]


class _Shown(Denoiser):
    """A posterior mean as a denoiser of a path."""

    def __init__(self, path: Any, mean: Mean) -> None:
        super().__init__(path)
        self.path, self.mean = path, mean

    def forward(self, x: Tensor, t: float | Tensor, **condition: Any) -> Tensor:
        at = float(batch_time(t, x)[0])
        return self.mean(x, float(self.path.alpha(at)), float(self.path.sigma(at)))


class _Ordinary(Noise):
    """Keyed noise, or the units of an active `Basis`."""

    def __init__(self, seed: int, slots: Sequence[int]) -> None:
        self.keyed = KeyedNoise(seed, list(slots), dtype=torch.float64)
        self.batch, self.dtype, self.device = len(slots), self.keyed.dtype, self.keyed.device

    def normals(self, rows: int, shape: Any) -> list[Tensor]:
        if Basis.active is None:
            return self.keyed.normals(rows, shape)
        return [Basis.active.unit(torch.empty(self.batch, *shape, dtype=self.dtype)) for _ in range(rows)]

    def stream(self, name: str) -> Noise:
        return self


class FunctionSampler(Sampler):
    """A function ``f(model, x, sigmas) -> x`` in k-diffusion's convention.

    ``model(x, sigma)`` returns the denoised x, with x = x0 + sigma z of shape ``(batch, d)`` and sigma ``(batch,)``;
    ``sigmas (n + 1,)`` fall and end in 0.  The grid is uniform in log sigma.

    Args:
        order: what the function declares; read from its attribute ``order`` if it has one.
    """

    def __init__(self, function: Callable[..., Any], order: float | None = None, name: str = "") -> None:
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)
        module = (getattr(function, "__module__", "") or "").split(".")[0]
        self.library, self.version = module or "python", _version(module)
        self.order = order if order is not None else getattr(function, "order", None)
        self.stochastic = _draws(self)

    def run(self, mean: Mean, z: Tensor, n: int, seed: int = 0) -> Tensor:
        sigmas = torch.from_numpy(np.append(np.geomspace(HIGHEST, LOWEST, n) if n > 1 else [HIGHEST], 0.0))

        def model(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            return mean(x, 1.0, float(torch.as_tensor(sigma).flatten()[0]))

        with _seeded(seed), torch.no_grad():
            return self.function(model, z * sigmas[0], sigmas)


class AzulaSampler(Sampler):
    """A sampler class of azula, on a schedule of its protocol whose time is uniform in log sigma.

    Args:
        kind: the class; options: what it takes besides the denoiser and the grid.
        declared: the order that it declares; that of the options if they have one.
    """

    library = "azula"
    precision = 1e-9  # its weights come from Vandermonde systems

    def __init__(self, kind: Any, declared: float | None = None, **options: Any) -> None:
        self.kind, self.options = kind, options
        self.order = options.get("order") if declared is None else declared
        shown = ", ".join(f"{k}={v}" for k, v in options.items())
        self.name = f"{kind.__name__}({shown})" if shown else kind.__name__
        self.version = _version("azula")
        self.stochastic = _draws(self)

    def run(self, mean: Mean, z: Tensor, n: int, seed: int = 0) -> Tensor:
        from azula.denoise import Denoiser as AzulaDenoiser
        from azula.denoise import DiracPosterior

        class Shown(AzulaDenoiser):
            def __init__(self) -> None:
                super().__init__()
                self.schedule: Any = _geometric

            def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
                return DiracPosterior(mean(x_t, 1.0, float(_geometric(t)[1])))

        made = self.kind(Shown(), start=1.0, stop=0.0, steps=n, silent=True, dtype=torch.float64, **self.options)
        with _seeded(seed):
            return made(z * HIGHEST)


def _geometric(t: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) at time t."""
    return torch.ones_like(t), LOWEST * (HIGHEST / LOWEST) ** t


def _draws(sampler: Sampler) -> bool:
    """Whether a sampler's result depends on the seed, or it asks for noise at all."""
    with Basis(None) as noise:
        sampler.run(Probe(constant(0.0)), torch.ones(1, 2, dtype=torch.float64), 4)
    return noise.draws > 0


class _seeded:
    """Global generators of torch at a seed, and as they were afterwards: other libraries draw from them."""

    def __init__(self, seed: int) -> None:
        self.seed, self.fork = seed, torch.random.fork_rng(devices=[])

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)


def _version(package: str) -> str:
    try:
        return version(package)
    except (PackageNotFoundError, ValueError):
        return ""


def as_sampler(thing: Any, **options: Any) -> Sampler:
    """Anything that can be certified, as a `Sampler`.

    Args:
        thing: a `Sampler`; a `Plan` or the name of a solver (``options`` go to it); a
            scheduler of diffusers or its configuration; a sampler class of azula (``options`` go to it); a function
            ``f(model, x, sigmas)`` in k-diffusion's convention, or its name ``module:function``.

    Raises:
        InputError: nothing of these.
    """
    if isinstance(thing, Sampler):
        return thing
    if isinstance(thing, Plan):
        return _of_plan(thing)
    if isinstance(thing, str) and ":" in thing:
        return FunctionSampler(_find(thing), **options)
    if isinstance(thing, str):
        return _of_solver(thing, options)
    if isinstance(thing, dict) or hasattr(thing, "set_timesteps"):
        from retrodict.diagnostics.certificate.diffusers_samplers import DiffusersSampler

        return DiffusersSampler(thing)
    if inspect.isclass(thing) and thing.__module__.startswith("azula"):
        return AzulaSampler(thing, **options)
    if callable(thing):
        return FunctionSampler(thing, **options)
    raise InputError(
        "certify takes a Plan, the name of a solver, a diffusers scheduler or its configuration, a sampler class of "
        f"azula, or a function f(model, x, sigmas); got {type(thing).__name__}"
    )


def _of_solver(name: str, options: dict[str, Any]) -> Sampler:
    """A registered solver on the VP path of linear betas, uniform in log-SNR."""
    entry = solvers[name]
    if entry.discrete:
        raise InputError(f"solver {name!r} is for discrete states; certificates are of Gaussian paths")
    shown = ", ".join(f"{k}={v}" for k, v in options.items())
    words = {"grid": "logsnr", **options}
    return PlanSampler(f"{name}({shown})" if shown else name, lambda n: make_plan(name, VP(), steps=n, **words))


def _of_plan(plan: Plan) -> Sampler:
    title = str(plan.meta.get("solver", "plan"))
    grid = plan.meta.get("grid")
    if plan.meta.get("generated") and not (isinstance(grid, dict) and grid["name"] == "times"):
        return PlanSampler(title, lambda n: plan if n == plan.steps else regrid(plan, grid, n))
    return PlanSampler(title, lambda n: plan, fixed=plan.steps)


def _find(where: str) -> Callable[..., Any]:
    module, _, name = where.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{where!r} names no function: {error}; it is written module:function") from error
    if not callable(found):
        raise InputError(f"{where!r} is not a function")
    return found
