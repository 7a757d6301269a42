"""Descent on the distance between a plan's ends and the teacher's, from a plan that is good already.

The loss is the mean squared distance.  Weights and times differ a thousandfold in what a unit of them does, and outputs
of one run are nearly collinear, so plain descent crawls.  The remedy is to descend in the coordinates of Gauss and
Newton: with J the derivative of a run's end and H = E[J J'] = L L', parameters are ``p = p0 + L^{-T} v``, and a unit of
any v moves samples by one unit, independently of the others.  J comes from finite differences on a few trajectories:
one run a parameter, no backward pass.

Two ways lead down.  `by_gradient`: Adam in v on minibatches, with a cosine-shaped step size and a ridge that pulls to
the start; the gradient goes back through the evaluations.  `by_differences`: damped Gauss-Newton steps
(Levenberg-Marquardt) on many trajectories at once, which need no gradient, and on smooth problems get to the bottom.

What is kept is what does best on trajectories that it has not seen, and the start is among the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from retrodict.denoisers import Denoiser
from retrodict.solvers.tuning.free import Free, run
from retrodict.solvers.tuning.trajectories import Trajectories, rms

#: Trajectories for the metric, how far outliers may count in it, and the curvature added to every direction, as a share
#: of the mean one: where little is known, little is moved.
_METRIC, _OUTLIER, _FLOOR = 64, 5.0, 0.1
#: Steps of differences in float32 and float64; trajectories in a chunk of them; trials of a damped step.
_DIFFERENCE, _CHUNK, _TRIALS = (1e-3, 1e-6), 512, 8


@dataclass(frozen=True)
class Effort:
    """How long to tune.

    Attributes:
        steps: minibatches; batch: trajectories in each.
        pilots: starts that are tried by a few small minibatches each, before the best of them goes on;
            up to 8 evaluations.
        polish: damped Gauss-Newton steps; polish_batch: trajectories that they see.
        rate: first step size, as a share of the error that there is to remove.
        ridge: weight of the squared distance to the start, in units of sample displacement.
        check: minibatches between two looks at the held-out error; patience: looks without gain before it stops.
        candidates: plans that the search may try in all.
    """

    steps: int = 96
    batch: int = 128
    pilots: int = 4
    polish: int = 0
    polish_batch: int = 1024
    rate: float = 0.25
    ridge: float = 1e-3
    check: int = 12
    patience: int = 4
    candidates: int = 160


@dataclass(frozen=True)
class Found:
    """Parameters with their errors on the trajectories they were tuned on and on those held out."""

    p: Tensor
    train: float
    valid: float


class Task:
    """Ends as a function of parameters, with trajectories to learn from and trajectories to judge by.

    Args:
        ends: ``(parameters, trajectories) -> ends``.
        origin: parameters of the start.
    """

    def __init__(
        self,
        ends: Callable[[Tensor, Trajectories], Tensor],
        origin: Tensor,
        train: Trajectories,
        valid: Trajectories,
    ) -> None:
        self.ends, self.origin, self.train, self.valid = ends, origin, train, valid

    def loss(self, p: Tensor, some: Trajectories) -> Tensor:
        """Mean squared distance, float64."""
        return (self.ends(p, some) - some.end).flatten(1).double().square().sum(1).mean()

    @torch.no_grad()
    def error(self, p: Tensor, some: Trajectories) -> float:
        """Root mean square distance; infinite where it is not finite."""
        ends = torch.cat([self.ends(p, part) for part in some.batches(256)])
        value = float(rms(some.errors(ends)))
        return value if math.isfinite(value) else math.inf

    def judged(self, p: Tensor) -> Found:
        """Parameters with their errors; of the training set as many trajectories as there are held out."""
        return Found(p, self.error(p, self.train.take(slice(0, len(self.valid)))), self.error(p, self.valid))

    @torch.no_grad()
    def jacobian(self, p: Tensor, some: Trajectories) -> tuple[Tensor, Tensor]:
        """``(residuals (n, elements), J (n, parameters, elements))`` by differences, float64."""
        base = self.ends(p, some)
        h = _DIFFERENCE[base.dtype == torch.float64]
        columns = []
        for i in range(len(p)):
            moved = p.clone()
            moved[i] -= h
            columns.append(((base - self.ends(moved, some)).double() / h).flatten(1))
        return (base - some.end).double().flatten(1), torch.stack(columns, 1)

    def normal_equations(self, p: Tensor, some: Trajectories) -> tuple[Tensor, Tensor]:
        """``(E[J r], E[J J'])`` over all of ``some``."""
        gradient, H = torch.zeros(len(p)).double(), torch.zeros(len(p), len(p)).double()
        for part in some.batches(_CHUNK):
            r, J = self.jacobian(p, part)
            gradient += torch.einsum("npd,nd->p", J, r).cpu() / len(some)
            H += torch.einsum("npd,nqd->pq", J, J).cpu() / len(some)
        return gradient, H

    def metric(self, p: Tensor) -> Tensor:
        """L^{-T} of the Gauss-Newton matrix at p, with no trajectory counting too much."""
        J = self.jacobian(p, self.train.take(slice(0, _METRIC)))[1]
        size = J.flatten(1).norm(dim=1)
        J *= (_OUTLIER * size.median() / size.clamp_min(1e-30)).clamp(max=1)[:, None, None]
        H = (torch.einsum("npd,nqd->pq", J, J) / len(J)).cpu()
        scale = H.diagonal().clamp_min(1e-12 * float(H.diagonal().max())).rsqrt()
        H = H * scale[:, None] * scale[None, :]
        L = torch.linalg.cholesky(H + _FLOOR * torch.eye(len(H), dtype=H.dtype))
        return scale[:, None] * torch.linalg.inv(L).mT


def refine(
    free: Free,
    denoiser: Denoiser,
    train: Trajectories,
    valid: Trajectories,
    effort: Effort,
    *,
    origin: Tensor | None = None,
    seed: int = 0,
    save_memory: bool = False,
    on_step: Callable[[], None] | None = None,
) -> tuple[Found, Found]:
    """``(the start, the best parameters found)`` of free coefficients; the start twice if nothing did better.

    Args:
        origin: parameters to descend from, instead of the plan's own.
        save_memory: see `free.run`.
        on_step: called after every minibatch and every damped step.
    """

    def ends(p: Tensor, some: Trajectories) -> Tensor:
        return run(some.mean(denoiser), free.coefficients(p), some.start, save_memory=save_memory)

    task = Task(ends, free.nudged() if origin is None else origin, train, valid)
    start = best = task.judged(free.zero())
    if origin is not None:
        best = min(best, task.judged(origin), key=lambda found: found.valid)
    if effort.steps:
        best = by_gradient(task, best, effort, seed, on_step)
    if effort.polish:
        if best is not start:
            task.origin = best.p
        best = by_differences(task, best, effort.polish, effort.polish_batch, on_step)
    return start, best


def by_gradient(
    task: Task, best: Found, effort: Effort, seed: int = 0, on_step: Callable[[], None] | None = None
) -> Found:
    """Adam from the task's origin in the metric there; ``best`` is what has to be beaten."""
    transform, waited = task.metric(task.origin), 0
    v = torch.zeros(transform.shape[1], dtype=torch.float64, requires_grad=True)
    rate = effort.rate * best.valid / math.sqrt(max(1, len(v)))
    optimizer = torch.optim.Adam([v], lr=rate, betas=(0.9, 0.98), eps=1e-300)
    pick, order = torch.Generator().manual_seed(seed), torch.zeros(0, dtype=torch.long)
    for step in range(1, effort.steps + 1):
        while len(order) < effort.batch:
            order = torch.cat([order, torch.randperm(len(task.train), generator=pick)])
        chosen, order = order[: effort.batch], order[effort.batch :]
        optimizer.param_groups[0]["lr"] = rate * (0.51 + 0.49 * math.cos(math.pi * step / effort.steps))
        optimizer.zero_grad()
        loss = task.loss(task.origin + transform @ v, task.train.take(chosen.to(task.train.start.device)))
        (loss + effort.ridge * v.square().sum()).backward()
        if v.grad is not None and bool(torch.isfinite(v.grad).all()):
            optimizer.step()
        if on_step is not None:
            on_step()
        if step % effort.check == 0 or step == effort.steps:
            found = task.judged((task.origin + transform @ v).detach())
            best, waited = (found, 0) if found.valid < best.valid else (best, waited + 1)
            if waited >= effort.patience:
                break
    return best


def by_differences(
    task: Task,
    best: Found,
    steps: int,
    batch: int,
    on_step: Callable[[], None] | None = None,
    ridge: float = 0.0,
) -> Found:
    """Damped Gauss-Newton from the task's origin; accepted steps lower the loss on ``batch`` trajectories.

    Args:
        ridge: weight of the squared distance to the origin, as a share of the loss there.
    """
    some, p, damping = task.train.take(slice(0, batch)), task.origin, 1e-2
    pull = ridge * task.error(p, some) ** 2
    loss_at = lambda q: task.error(q, some) ** 2 + pull * float((q - task.origin).square().sum())  # noqa: E731
    loss = loss_at(p)
    for _ in range(steps):
        gradient, H = task.normal_equations(p, some)
        gradient, H = gradient + pull * (p - task.origin), H + pull * torch.eye(len(p), dtype=H.dtype)
        scale = torch.diag(H.diagonal().clamp_min(1e-14 * float(H.diagonal().max())))
        for _ in range(_TRIALS):
            step = torch.linalg.solve(H + damping * scale, gradient)
            tried = loss_at(p - step)
            if tried < loss:
                break
            damping *= 5
        else:
            break
        gain, p, loss, damping = loss / max(tried, 1e-300) - 1, p - step, tried, max(damping / 5, 1e-9)
        found = task.judged(p)
        best = found if found.valid < best.valid else best
        if on_step is not None:
            on_step()
        if gain < 1e-4:
            break
    return best


def scaled(effort: Effort, denoiser: Denoiser) -> Effort:
    """Networks by gradient; closed-form denoisers, whose evaluations cost next to nothing, by differences alone."""
    if effort.polish or any(True for _ in denoiser.parameters()):
        return effort
    return replace(effort, steps=0, polish=40, polish_batch=4096)
