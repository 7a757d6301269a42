"""Choosing the auxiliary process: the linear one whose messages guide the true one.

Every choice gives unbiased estimates; a good one gives even weights.

* "auto": "regress", or "brownian" where that gives pilot paths clearly more even weights, series by series; again
  while the weights are uneven, and from the clouds of an unguided filter where they have collapsed.
* "regress": mean and covariance of each step regressed on weighted pilot paths, the first ones under Brownian
  guidance, and again on the paths that this gives (iterated statistical linearisation).
* "linearise": Jacobians along a nominal path, the guided path without noise, and again along the path that this gives
  (an iterated extended smoother with the true drift).
* "brownian": no drift; covariances along the nominal path.
* `LinearSDE`: the user's own ``dX = (B X + beta) dt + sigma dW``.
* "learned": from "auto" on, by maximising the expected log-weight (`model.learned`).
* arrays ``(A, b, Q)`` with leading axes ``(S, n)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, near
from retrodict.inference.guided.guides import Doob, Guide
from retrodict.inference.guided.messages import Messages, sweep, sweep_stretches
from retrodict.inference.guided.steps import EulerGrid, Steps
from retrodict.kernels.euler import Pin
from retrodict.kernels.linear_sde import LinearSDE
from retrodict.kernels.scans.gaussian.algebra import Message, Step, bayes
from retrodict.particles import ess

_KNOWN = ("auto", "regress", "linearise", "brownian")
_DOUBT = 1.5  # few pilots flatter an auxiliary without drift, whose weights have heavy tails
_PILOTS = 128  # paths for a regression
_ROUNDS = 8  # at most, where the evenness of the pilots decides
_EVEN, _COLLAPSED = 0.5, 0.05  # effective shares of the pilots: enough, and next to nothing
Potentials = Callable[[Tensor], tuple[Message, dict[int, Pin]]]  # of a nominal path (S, n+1, d)


@dataclass(frozen=True)
class Guidance:
    """What guiding runs on: auxiliary steps, their messages, the guide, and the law of node 0 bent by its message."""

    auxiliary: Step
    messages: Messages
    guide: Guide
    start: tuple[Tensor, Tensor]  # mean (S, d), covariance (S, d, d)
    log_norm: Tensor  # (S,)


def prepare(
    steps: Steps,
    potentials: Potentials,
    start: tuple[Tensor, Tensor],
    auxiliary: Any,
    guide: type[Guide],
    rounds: int | None,
    exact: bool,
    pilot: Callable[[Guidance, int], tuple[Tensor, Tensor]],
    unguided: Callable[[int], Tensor | None],
    stretches: list[int] | None = None,
    fixed: bool = False,
) -> Guidance:
    """Choose the auxiliary, filter backward, and make the guide.

    Args:
        potentials: surrogates of the observations about a nominal path; start: mean and covariance of node 0.
        auxiliary: see the module; rounds: of re-linearisation; None: as many as the pilots' weights ask
            for ("auto"), or one.
        exact: messages from the exact transitions of the auxiliary diffusion, not its Euler steps.
        pilot: guided paths ``(n+1, S, P, d)`` and log-weights ``(S, P)``; one path is the one without noise.
        unguided: states at all nodes ``(n+1, S, P, d)`` of an unguided filter, or None where there is none.
        fixed: the potentials do not depend on the path.
        stretches: nodes beyond which the final messages do not look ahead; None: they see everything.
    """

    path = start[0].unsqueeze(1).expand(-1, steps.n + 1, -1)
    once = potentials(path) if fixed else None

    def settle(auxiliary: Step, path: Tensor, kind: type[Guide], last: bool = False) -> Guidance:
        used = _exact(auxiliary, steps) if exact and last else auxiliary
        seen = once or potentials(path)
        messages = sweep_stretches(used, *seen, stretches) if stretches and last else sweep(used, *seen)
        m, P, log_norm = bayes(*start, tuple(part[:, 0] for part in messages.fused))  # type: ignore[arg-type]
        return Guidance(auxiliary, messages, kind(steps, auxiliary, messages), (m, P), log_norm)

    def nominal(auxiliary: Step, path: Tensor) -> Tensor:
        still = pilot(settle(auxiliary, path, Doob), 1)[0][:, :, 0].movedim(0, 1)
        return torch.where(torch.isfinite(still).all(-1).all(-1)[:, None, None], still, path)

    if not isinstance(auxiliary, str):
        chosen = _given(auxiliary, steps)
        return settle(chosen, path if fixed else nominal(chosen, path), guide, last=True)
    if auxiliary not in _KNOWN:
        raise InputError(
            f"unknown auxiliary {auxiliary!r}; known: {', '.join(_KNOWN)}, learned, a LinearSDE, arrays (A, b, Q)."
            f"{near(auxiliary, _KNOWN)}"
        )
    if not (fixed and steps.shared_root is not None and auxiliary != "linearise"):  # else the path is of no use
        path = nominal(brownian(steps, path), path)
    chosen = brownian(steps, path)
    if auxiliary == "linearise":
        for _ in range(rounds or 1):
            path = nominal(steps.affine(path), path)
        chosen = steps.affine(path)
    elif auxiliary != "brownian":

        def tries(auxiliary: Step, path: Tensor) -> tuple[Guidance, Tensor, Tensor]:
            made = settle(auxiliary, path, Doob)
            return made, *pilot(made, max(_PILOTS, 10 * steps.d))

        search = _Search(steps, tries, careful=auxiliary == "auto")
        search.begin(chosen, path)
        search.improve(rounds)
        if search.careful and rounds is None and search.collapsed:
            cloud = unguided(_PILOTS)
            if cloud is not None:
                search.restart(cloud)
        chosen, path, made = search.best, search.centre, search.kept
        if made is not None and fixed and guide is Doob and not stretches:
            return made  # the very sweep that the pilots ran on
    return settle(chosen, path, guide, last=True)


class _Search:
    """Regression on pilots, and again; ``careful`` keeps, series by series, the auxiliary of the most even weights.

    Attributes:
        best, centre: that auxiliary and its nominal path; kept: what its pilots ran on, if there were any.
    """

    def __init__(
        self, steps: Steps, pilot: Callable[[Step, Tensor], tuple[Guidance, Tensor, Tensor]], careful: bool
    ) -> None:
        self.steps, self.pilot, self.careful = steps, pilot, careful

    def begin(self, chosen: Step, path: Tensor) -> None:
        """Pilots of a first auxiliary."""
        self.kept: Guidance | None
        self.best, self.centre = chosen, path
        self.kept, self.paths, self.log_w = self.pilot(chosen, path)
        self.evenness = ess(self.log_w)

    @property
    def share(self) -> Tensor:
        """Effective share of the pilots of the best auxiliary, ``(S,)``."""
        return self.evenness / self.log_w.shape[-1]

    @property
    def collapsed(self) -> bool:
        """Whether next to none of the pilots of some series count."""
        return bool((self.share < _COLLAPSED).any())

    def improve(self, rounds: int | None) -> None:
        """So many rounds; None: until the weights are even, at most `_ROUNDS`, or one where nobody looks."""
        last = rounds if rounds is not None else _ROUNDS if self.careful else 1
        for done in range(1, last + 1):
            new = self.steps.regressed(self.paths, _tempered(self.log_w))
            chosen = _where(_finite(new), new, self.best)
            path = (torch.softmax(self.log_w, -1)[..., None] * self.paths).sum(2).movedim(0, 1)
            if not self.careful:
                self.best, self.centre, self.kept = chosen, path, None
                if done < last:
                    _, self.paths, self.log_w = self.pilot(chosen, path)
                continue
            self._try(chosen, path)
            if rounds is None and bool((self.share >= _EVEN).all()):
                return

    def restart(self, cloud: Tensor) -> None:
        """Where no round helped: from clouds of states ``(n+1, S, P, d)`` that have met every observation."""
        flat = torch.zeros(cloud.shape[1:3], dtype=cloud.dtype)
        new = self.steps.regressed(cloud, flat)
        self._try(_where(_finite(new), new, self.best), cloud.mean(2).movedim(0, 1))
        self.improve(None)

    def _try(self, chosen: Step, path: Tensor) -> None:
        made, self.paths, self.log_w = self.pilot(chosen, path)
        found = ess(self.log_w)
        better = found > self.evenness / _DOUBT
        self.best, self.evenness = _where(better, chosen, self.best), torch.maximum(self.evenness, found)
        self.centre = torch.where(better[:, None, None], path, self.centre)
        self.kept = made if bool(better.all()) else self.kept if not bool(better.any()) else None


def _tempered(log_w: Tensor) -> Tensor:
    """Log-weights raised to the largest of a few powers that leaves a quarter of the pilots in effect."""
    out = torch.zeros_like(log_w)
    for power in (0.1, 0.3, 1.0):
        bent = power * log_w
        out = torch.where((ess(bent) > log_w.shape[-1] / 4)[:, None], bent, out)
    return out


def brownian(steps: Steps, path: Tensor) -> Step:
    """Steps without drift; the covariance of a step is the one at the path's state after it."""
    eye = torch.eye(steps.d, dtype=path.dtype).expand(path.shape[0], steps.n, -1, -1)
    if steps.shared_root is not None:
        S = steps.shared_root[:, :, 0].movedim(0, 1).expand(path.shape[0], steps.n, -1, -1)
        return eye, torch.zeros_like(path[:, 1:]), S @ S.mT
    shifted = torch.cat((path[:, 1:], path[:, -1:]), 1)
    return eye, torch.zeros_like(path[:, 1:]), steps.along(shifted)[2]


def _finite(steps: Step) -> Tensor:
    """For which series all coefficients are finite, ``(S,)``."""
    return torch.stack([torch.isfinite(part).flatten(1).all(1) for part in steps]).all(0)


def _where(which: Tensor, new: Step, old: Step) -> Step:
    """The new steps for the series ``which (S,)``, the old ones for the others."""
    A, b, Q = (torch.where(which.reshape(-1, *(1,) * (x.ndim - 1)), x, y) for x, y in zip(new, old))
    return A, b, Q


def _exact(auxiliary: Step, steps: Steps) -> Step:
    """Exact transitions of the diffusion of which ``(A, b, Q)`` are the Euler steps."""
    assert isinstance(steps, EulerGrid)
    A, b, Q = auxiliary
    dt = steps.dt.expand(A.shape[0], -1)
    safe = torch.where(dt > 0, dt, torch.ones_like(dt))
    eye = torch.eye(steps.d, dtype=A.dtype)
    return exact_steps(((A - eye) / safe[..., None, None], b / safe[..., None], Q / safe[..., None, None]), dt)


def exact_steps(coefficients: Step, dt: Tensor) -> Step:
    """Transitions over short times ``dt (...)`` of diffusions ``(B, beta, a) (..., )``, each step with its own.

    Van Loan 1978: of ``exp([[-B, a], [0, B']] dt)`` the lower right block is A', and A times the upper right one is Q.
    """
    B, beta, a = coefficients
    d = B.shape[-1]
    dt = dt[..., None, None]
    zero = torch.zeros_like(B)
    block = torch.cat((torch.cat((-B, a), -1), torch.cat((zero, B.mT), -1)), -2)
    E = torch.linalg.matrix_exp(block * dt)
    A = E[..., d:, d:].mT
    lifted = torch.zeros(*B.shape[:-2], d + 1, d + 1, dtype=B.dtype)
    lifted[..., :d, :d], lifted[..., :d, d] = B, beta
    b = torch.linalg.matrix_exp(lifted * dt)[..., :d, d]
    Q = A @ E[..., :d, d:]
    return A, b, (Q + Q.mT) / 2


def _given(auxiliary: Any, steps: Steps) -> Step:
    """A user's auxiliary as Euler steps."""
    if isinstance(auxiliary, LinearSDE):
        if not isinstance(steps, EulerGrid):
            raise InputTypeError("a LinearSDE is an auxiliary of an SDE; give arrays (A, b, Q) for a chain")
        t = steps.t.expand(steps.series, -1)
        kernel = auxiliary.kernel(t[:, :-1].flatten(), t[:, 1:].flatten(), euler=True)
        if kernel.A.value.shape[-1] != steps.d:
            raise InputError(f"the auxiliary has {kernel.A.value.shape[-1]} coordinates and the state {steps.d}")
        offset = torch.as_tensor(kernel.b, dtype=torch.float64)
        A, b, Q = (v.double().unflatten(0, (steps.series, steps.n)) for v in (kernel.A.value, offset, kernel.Q.value))
        return A, b, Q
    if isinstance(auxiliary, tuple) and len(auxiliary) == 3:
        S, n, d = steps.series, steps.n, steps.d
        A, b, Q = (torch.as_tensor(part, dtype=torch.float64) for part in auxiliary)
        return A.expand(S, n, d, d), b.expand(S, n, d), Q.expand(S, n, d, d)
    raise InputTypeError(
        f"auxiliary is 'linearise', 'brownian', a LinearSDE or arrays (A, b, Q), got {type(auxiliary).__name__}"
    )
