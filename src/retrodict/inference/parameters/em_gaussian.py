"""EM of linear-Gaussian chains: regressions on smoothed moments (Shumway and Stoffer 1982; Ghahramani and Hinton 1996).

    x_0 ~ N(m0, P0)       x_k = A x_{k-1} + b + N(0, Q)       y_k = C x_k + c + N(0, R)

Transition and observation are the same problem: a target u, a regressor v, and the smoothed moments of both,

    [A b] = E[u (v, 1)'] E[(v, 1)(v, 1)']^-1,        Q = E[(u - A v - b)(u - A v - b)'] / count.

A coordinate of y that is missing while others are seen is a hidden variable like the state: given x and what is seen
it is Gaussian, ``y = G x + h + N(0, D)``, so that the regression is over all of y and the likelihood still never falls.
Times at which nothing is seen leave the regression of y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.inference.emissions import LinearEmission
from retrodict.inference.gaussian import GaussianPosterior, linear_posterior
from retrodict.inference.models import StateSpace
from retrodict.inference.observed import Observed
from retrodict.kernels import Gaussian, LinearGaussian
from retrodict.kernels.scans import gaussian


@dataclass(frozen=True)
class Moments:
    """Sums of smoothed second moments of a target u and a regressor v, and how many were summed."""

    uu: Tensor
    uv: Tensor
    vv: Tensor
    u: Tensor
    v: Tensor
    count: Tensor

    def regress(self, A: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
        """The maximising map and offset, given those that are fixed."""
        if A is not None and b is not None:
            return A, b
        if A is not None:
            return A, (self.u - A @ self.v) / self.count
        if b is not None:
            return _solve(self.uv - torch.outer(b, self.v), self.vv), b
        gram = torch.cat([torch.cat([self.vv, self.v[:, None]], 1), torch.cat([self.v, self.count[None]])[None]])
        both = _solve(torch.cat([self.uv, self.u[:, None]], 1), gram)
        return both[:, :-1], both[:, -1]

    def residual(self, A: Tensor, b: Tensor) -> Tensor:
        """Mean second moment of ``u - A v - b``."""
        Av, Avb = A @ self.uv.T, torch.outer(A @ self.v, b)
        cross = Av + torch.outer(b, self.u)
        total = self.uu - cross - cross.T + A @ self.vv @ A.T + Avb + Avb.T + self.count * torch.outer(b, b)
        return 0.5 * (total + total.T) / self.count


class GaussianBlocks:
    """The blocks of a linear-Gaussian model with one transition and one law of observation for all times.

    Attributes:
        values: name -> block, of A, b, Q, C, c, R, m0, P0; model: made of them.
    """

    def __init__(self, model: StateSpace, data: Observed) -> None:
        self.model, self.data = model, data
        self.post: GaussianPosterior = linear_posterior(model, data)
        problem = self.post.problem
        emission = problem.emission
        assert isinstance(emission, LinearEmission)
        steps, law = self.post.steps, problem.prior
        if any(v.shape[:2] != (1, 1) for v in steps):
            raise InputError(
                "method='em' re-estimates one transition kernel that serves every step, and this one varies with the "
                "time or the series; method='gradient' fits what it is made of"
            )
        if emission.varies or model.given[2] is None:
            raise InputError(
                "method='em' takes a law of observation that is part of the model, StateSpace(..., observation="
                "LinearGaussian(C, c, R)), and the same at all times"
            )
        if law.mean.shape[0] > 1 or law.cov.value.shape[0] > 1:
            raise InputError("method='em' takes one prior for all series")
        A, b, Q = (v[0, 0] for v in steps)
        named = {"A": A, "b": b, "Q": Q, "C": emission.L, "c": emission.b, "R": emission.R}
        named |= {"m0": law.mean[0].double(), "P0": law.cov.value[0].double()}
        self.values: dict[str, Tensor] = {name: value.detach() for name, value in named.items()}
        if problem.n == 0:  # one time a series: there is no step
            self.values = {name: v for name, v in self.values.items() if name not in ("A", "b", "Q")}

    def step(self, free: list[str]) -> tuple[float, GaussianBlocks]:
        """The log likelihood here, and the blocks after one iteration."""
        found = gaussian.smooth(self.post.chain, cross=True)
        self.found, self.second = found, found.cov + _outer(found.mean, found.mean)
        new = dict(self.values)
        if "A" in new:
            new |= self._regressed(self._transition(found.cross), ("A", "b", "Q"), free)
        new |= self._regressed(self._observation(), ("C", "c", "R"), free)
        mean, cov = found.mean[:, 0], found.cov[:, 0]
        new["m0"] = mean.mean(0) if "m0" in free else new["m0"]
        if "P0" in free:
            apart = mean - new["m0"]
            new["P0"] = (cov + _outer(apart, apart)).mean(0)
        return float(found.log_evidence.sum()), self._with(new)

    def _regressed(self, moments: Moments, names: tuple[str, str, str], free: list[str]) -> dict[str, Tensor]:
        map, offset, noise = names
        A, b = moments.regress(*(None if n in free else self.values[n] for n in (map, offset)))
        return {map: A, offset: b, noise: moments.residual(A, b) if noise in free else self.values[noise]}

    def _transition(self, cross: Any) -> Moments:
        """u = x_k and v = x_{k-1}, over the real steps of all series."""
        mean, second = self.found.mean, self.second
        w = self.post.problem.real[:, 1:].double()
        pair = cross + _outer(mean[:, 1:], mean[:, :-1])
        add = lambda values: torch.einsum("sn,sn...->...", w, values)  # noqa: E731
        return Moments(add(second[:, 1:]), add(pair), add(second[:, :-1]), add(mean[:, 1:]), add(mean[:, :-1]), w.sum())

    def _observation(self) -> Moments:
        """u = y and v = x, over the times at which something was seen."""
        problem = self.post.problem
        mean, cov = (problem.at_observations(v).nan_to_num() for v in (self.found.mean, self.found.cov))
        seen = problem.data.seen
        G, h, D = self._hidden_coordinates(seen, torch.where(seen, problem.data.y, 0.0))
        w = seen.any(-1).double()
        add = lambda values: torch.einsum("sn,sn...->...", w, values)  # noqa: E731
        u = (G @ mean.unsqueeze(-1)).squeeze(-1) + h
        spread = G @ cov
        return Moments(
            add(spread @ G.mT + D + _outer(u, u)),
            add(spread + _outer(u, mean)),
            add(cov + _outer(mean, mean)),
            add(u),
            add(mean),
            w.sum(),
        )

    def _hidden_coordinates(self, seen: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``y = G x + h + N(0, D)`` given the state and the coordinates that were seen."""
        C, c, R = (self.values[name] for name in ("C", "c", "R"))
        keep = torch.diag_embed(seen.double())
        if bool((seen.all(-1) | ~seen.any(-1)).all()):  # rows are whole or left out
            return torch.zeros_like(keep @ C), y, torch.zeros_like(keep)
        eye = torch.eye(len(c), dtype=C.dtype)
        hide = eye - keep
        gain = hide @ R @ keep @ torch.linalg.pinv(keep @ R @ keep + hide, hermitian=True) @ keep
        shift = (hide @ c.unsqueeze(-1) + gain @ (y - c).unsqueeze(-1)).squeeze(-1)
        return (hide - gain) @ C, torch.where(seen, y, shift), hide @ R @ hide - gain @ R @ hide

    def _with(self, values: dict[str, Tensor]) -> GaussianBlocks:
        v, (_, transition, _) = values, self.model.given
        if "A" in v:
            transition = LinearGaussian(Lin.dense(v["A"]), v["b"], Lin.dense(v["Q"]))
        observation = LinearGaussian(Lin.dense(v["C"]), v["c"], Lin.dense(v["R"]))
        prior = Gaussian(v["m0"][None], Lin.dense(v["P0"][None]))
        return GaussianBlocks(StateSpace(prior, transition, observation, self.model.t0), self.data)


def _outer(u: Tensor, v: Tensor) -> Tensor:
    return u.unsqueeze(-1) * v.unsqueeze(-2)


def _solve(right: Tensor, gram: Tensor) -> Tensor:
    """``right gram^-1``; the least one where the gram matrix is singular (directions that never vary)."""
    return right @ torch.linalg.pinv(gram, hermitian=True)
