"""Maximum likelihood, or maximum a posteriori, by exact gradients.

    maximise  log p(y | theta) [+ log p(theta)]         over the free numbers of theta, by L-BFGS or Adam;
    covariance of the estimate = J (-Hessian)^-1 J'     J: derivative of theta in the free numbers.

Closed forms differentiate through their scans.  Guided paths with fixed normals stand in elsewhere (see `likelihood`):
the estimate is then that of the simulated likelihood, whose bias falls with the number of particles, and its standard
errors are those of the data alone.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, near
from retrodict.inference.parameters.likelihood import derivatives, hessian
from retrodict.inference.parameters.result import Fit
from retrodict.inference.parameters.space import Space
from retrodict.inference.parameters.task import Task

log = logging.getLogger(__name__)

_MOST_ERRORS = 200  # free numbers for which a Hessian is made without being asked for
_FLAT = 1e-10  # curvature below this share of the largest: the data say nothing in that direction


def gradient(
    task: Task,
    steps: int = 500,
    particles: int = 200,
    optimiser: str = "lbfgs",
    rate: float = 0.05,
    tolerance: float = 1e-7,
    standard_errors: bool | None = None,
) -> Fit:
    """Fit by gradients.

    Args:
        steps: at most so many iterations; particles: of a simulated likelihood.
        optimiser: "lbfgs", or "adam" with step ``rate``.
        tolerance: largest entry of the gradient at which L-BFGS ends, for free numbers.
        standard_errors: whether to make the Hessian; by default up to 200 free numbers.
    """
    if optimiser not in ("lbfgs", "adam"):
        raise InputError(f"optimiser is 'lbfgs' or 'adam', got {optimiser!r}.{near(optimiser, ['lbfgs', 'adam'])}")
    space, likelihood = task.space(), task.likelihood_of(particles)
    objective = _Objective(space, lambda model: likelihood.smooth(model, task.seed), task)
    free, converged, message = (objective.lbfgs if optimiser == "lbfgs" else objective.adam)(steps, rate, tolerance)
    wanted = space.size <= _MOST_ERRORS if standard_errors is None else standard_errors
    errors = objective.standard_errors(free) if wanted else None
    model = space.model(free)
    return Fit(
        method="gradient",
        parameters=space.plain(free),
        log_likelihood=float(likelihood.smooth(model, task.seed).detach()),
        model=model,
        likelihood=likelihood,
        exact=likelihood.condition(model, task.seed).exact,
        standard_errors=errors,
        history={"log_likelihood": torch.tensor(objective.trace), "free": torch.stack(objective.path)},
        converged=converged,
        message=message,
        seed=task.seed,
    )


class _Objective:
    """The log posterior (log likelihood without priors) of the free numbers, and what was seen of it."""

    def __init__(self, space: Space, f: Any, task: Task) -> None:
        self.space, self.f, self.task = space, f, task
        self.trace: list[float] = []
        self.path: list[Tensor] = []
        self.last = (0.0, torch.zeros(0))

    def __call__(self, free: Tensor, second: bool = False) -> tuple[Tensor, ...]:
        """Value, gradient and with ``second`` Hessian."""
        try:
            found = derivatives(self.space, self.f, free, second)
        except (InputError, RuntimeError) as error:
            if not self.path:
                raise
            raise InputError(
                f"the likelihood cannot be computed at {self.space.plain(free)}, where the optimiser went: {error}; "
                "keep parameters in their range with supports={'name': 'positive' | (low, high) | ...} or priors="
            ) from error
        prior = free.detach().requires_grad_()
        value = self.space.log_prior(prior, jacobian=False)
        if not value.requires_grad:
            return found
        (slope,) = torch.autograd.grad(value, prior, create_graph=second)
        total = (found[0] + value.detach(), found[1] + slope.detach())
        if not second:
            return total
        return (*total, found[2] + hessian(slope, [prior]))

    def lbfgs(self, steps: int, rate: float, tolerance: float) -> tuple[Tensor, bool, str]:
        """Limited-memory BFGS with a line search."""
        from scipy.optimize import minimize

        bar = self.task.bar(steps, "gradient")

        def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = self(torch.from_numpy(free))
            if not bool(torch.isfinite(value)):
                return float("inf"), np.zeros_like(free)
            self.last = (float(value), torch.from_numpy(free.copy()))
            if not self.path:
                self.note()
            return -float(value), -slope.numpy()

        def each(_: Any) -> None:
            self.note()
            bar.update()

        options = {"maxiter": steps, "gtol": tolerance, "ftol": 1e-13, "maxfun": 20 * steps, "maxcor": 20}
        found = minimize(loss, self.space.start.numpy(), jac=True, method="L-BFGS-B", callback=each, options=options)
        bar.close()
        free = torch.from_numpy(found.x)
        how = "converged" if found.success else "did not converge"
        if not found.success:
            log.warning("L-BFGS ended without convergence: %s", found.message)
        return free, bool(found.success), f"L-BFGS {how} after {found.nit} iterations, {found.nfev} evaluations"

    def adam(self, steps: int, rate: float, tolerance: float) -> tuple[Tensor, None, str]:
        """Adam with a rate that falls to zero along a cosine."""
        free = self.space.start.clone().requires_grad_()
        rule = torch.optim.Adam([free], lr=rate)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(rule, steps)
        bar = self.task.bar(steps, "gradient")
        for _ in range(steps):
            value, slope = self(free)
            self.last = (float(value), free.detach().clone())
            self.note()
            free.grad = -slope
            rule.step()
            fall.step()
            bar.update()
        bar.close()
        return free.detach(), None, f"Adam, {steps} steps"

    def note(self) -> None:
        self.trace.append(self.last[0])
        self.path.append(self.last[1])

    def standard_errors(self, free: Tensor) -> dict[str, Any]:
        """From the observed information; NaN for what the data leave open."""
        information = -self(free, True)[2]
        covariance = inverse_information(information, self.space, free)
        return self.space.split(covariance.diagonal().sqrt())


def inverse_information(information: Tensor, space: Space, free: Tensor) -> Tensor:
    """Covariance of the parameters ``(q, q)`` from the information of the free numbers, by the delta method.

    NaN for parameters that lie along directions without curvature, and all NaN where the point is not a maximum.
    """
    J = torch.autograd.functional.jacobian(
        lambda u: torch.cat([v.reshape(-1) for v in space.values(u).values()]), free.detach()
    )
    curvature, directions = torch.linalg.eigh(information)
    flat = curvature <= _FLAT * curvature.abs().max()
    if bool(flat.any()):
        touched = ((J @ directions[:, flat]).abs() > 1e-6).any(1)
        names = [n for n, hit in space.split(touched.double()).items() if bool(torch.as_tensor(hit).any())]
        log.warning(
            "the data do not determine %s: the log likelihood has no curvature in %d direction(s); standard errors of "
            "those are NaN",
            ", ".join(names),
            int(flat.sum()),
        )
        inverse = torch.where(flat, 0.0, 1 / torch.where(flat, 1.0, curvature))
        covariance = J @ (directions * inverse) @ directions.T @ J.T
        covariance[touched] = torch.nan
        covariance[:, touched] = torch.nan
        return covariance
    return J @ torch.linalg.inv(information) @ J.T
