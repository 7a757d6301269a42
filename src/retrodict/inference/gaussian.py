"""Linear-Gaussian models as one `GaussianChain`: Kalman filtering, RTS smoothing, evidence, draws, forecasts.

An observation ``y = L x + c + N(0, R)`` is a quadratic potential at its node.  Where R is singular (exact
observations) there is no such potential; the observation at node k then moves into the step that reaches it, and no
inverse of R is needed: with ``S = L Q L' + R``, ``K = Q L' S^-1`` and ``J = I - K L``,

    N(y; L x_k + c, R) N(x_k; A x + b, Q)  =  N(y; L (A x + b) + c, S)  N(x_k; J (A x + b) + K (y - c), J Q),

a potential at node k-1 and a linear-Gaussian step that knows y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError
from retrodict.core.lin import Lin
from retrodict.core.noise import KeyedNoise
from retrodict.inference.emissions import LinearEmission
from retrodict.inference.forecasts import forecast_data
from retrodict.inference.models import StateSpace
from retrodict.inference.posterior import Conditioned
from retrodict.inference.problem import Problem
from retrodict.inference.results import Marginals, Paths
from retrodict.kernels import Gaussian
from retrodict.kernels.scans import GaussianChain, gaussian

_SINGULAR = 1e-13  # a smallest eigenvalue below this share of the largest: treat as exact


@dataclass(frozen=True)
class Rows:
    """What is seen at the nodes: ``y = L x + c + N(0, R)``, rows of several observations at a node stacked.

    Attributes:
        y: ``(S, n+1, M)``, zero where not seen; seen: the same shape.
        L: ``(S|1, n+1|1, M, d)``, rows not seen zero; c: ``(S|1, n+1|1, M)``; R: ``(S|1, n+1|1, M, M)``, rows not
            seen unit.
    """

    y: Tensor
    seen: Tensor
    L: Tensor
    c: Tensor
    R: Tensor


def rows_of(problem: Problem, emission: LinearEmission) -> Rows:
    """The observations of a problem at its nodes, under linear emissions ``(m, d)`` or ``(S|1, N|1, m, d)``."""
    y, seen = problem.data.y, problem.data.seen
    m = emission.L.shape[-2]
    for name, value, own in (("L", emission.L, 2), ("b", emission.b, 1), ("R", emission.R, 2)):
        lead = value.shape[: value.ndim - own]
        if lead and bool(seen.any()) and (lead[0] not in (1, y.shape[0]) or lead[-1] not in (1, y.shape[1])):
            raise InputError(
                f"the observation law's {name} varies over {tuple(lead)} (series, observations) and y over "
                f"{tuple(y.shape[:2])}; each axis is 1 or agrees"
            )
    if problem.layout.plain and bool(seen.all()) and not emission.varies:  # nothing to lay out
        return Rows(y, seen, emission.L[None, None], emission.b[None, None], emission.R[None, None])
    slots = problem.slots  # (S, n+1, r)
    S, nodes, r = slots.shape
    series, slot = torch.arange(S)[:, None, None], slots.clamp_min(0)
    here = seen[series, slot] & (slots >= 0).unsqueeze(-1)
    values = torch.where(here, y[series, slot], 0.0).reshape(S, nodes, r * m)
    here = here.reshape(S, nodes, r * m)
    L, c, R = _at_slots(emission, series, slot)  # (S|1, n+1|1, r|1, ...)
    lead = L.shape[:2]
    L = L.expand(*L.shape[:2], r, *L.shape[3:]).reshape(*lead, r * m, -1)
    c = c.expand(*c.shape[:2], r, m).reshape(*c.shape[:2], r * m)
    R = R if r == 1 else _blocks(R.expand(*R.shape[:2], r, m, m))
    R = R[:, :, 0] if r == 1 else R
    if not bool(here.all()):
        keep = here.to(torch.float64)
        L = L * keep.unsqueeze(-1)
        R = R * keep.unsqueeze(-1) * keep.unsqueeze(-2) + torch.diag_embed(1 - keep)
        c = c * keep
    return Rows(values, here, L, c, R)


def _at_slots(emission: LinearEmission, series: Tensor, slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The emission's L, c, R with axes ``(S|1, n+1|1, r|1)`` in front."""

    def place(value: Tensor, own: int) -> Tensor:
        if value.ndim == own:
            return value[None, None, None]
        if value.shape[1] == 1:
            return value[:, :, None]
        # data without observations (a forecast) may be longer than what varies: its rows count for nothing
        return value[series if value.shape[0] > 1 else torch.zeros_like(series), slot.clamp_max(value.shape[1] - 1)]

    return place(emission.L, 2), place(emission.b, 1), place(emission.R, 2)


def _blocks(R: Tensor) -> Tensor:
    """``(..., r, m, m)`` as block-diagonal ``(..., r m, r m)``."""
    r, m = R.shape[-3], R.shape[-1]
    eye = torch.eye(r, dtype=R.dtype)
    return torch.einsum("...imn,ij->...imjn", R, eye).reshape(*R.shape[:-3], r * m, r * m)


def build_chain(problem: Problem, steps: tuple[Tensor, Tensor, Tensor], rows: Rows) -> tuple[GaussianChain, bool]:
    """The chain of a problem, and whether observations moved into the steps (singular noise)."""
    law: Gaussian = problem.prior
    m0, P0 = law.mean.double(), law.cov.value.double()
    spectrum = torch.linalg.eigvalsh(rows.R.detach())
    if bool((spectrum[..., 0] <= _SINGULAR * spectrum[..., -1]).any()):
        return _moved(problem, m0, P0, steps, rows), True
    return GaussianChain(m0, P0, *steps, *gaussian.observe(rows.y - rows.c, rows.L, rows.R, rows.seen)), False


def _moved(problem: Problem, m0: Tensor, P0: Tensor, steps: tuple[Tensor, Tensor, Tensor], rows: Rows) -> GaussianChain:
    """The chain with every observation moved into the step that reaches it."""
    A, b, Q = (v.expand(-1, problem.n, *v.shape[2:]) for v in steps)
    nodes = problem.n + 1
    L, c, R = (v.expand(-1, nodes, *v.shape[2:]) for v in (rows.L, rows.c, rows.R))
    # node 0 is reached from nowhere: its "step" is the prior
    b, Q = _before(m0, b), _before(P0, Q)
    innovation = L @ Q @ L.mT + R
    root = _root(problem, innovation)
    u = rows.y - c - (L @ b.unsqueeze(-1)).squeeze(-1)
    K = torch.cholesky_solve(L @ Q, root).mT
    rest = torch.eye(problem.size, dtype=torch.float64) - K @ L
    b = b + (K @ u.unsqueeze(-1)).squeeze(-1)
    Q = rest @ Q @ rest.mT + K @ R @ K.mT
    H, F, c = gaussian.observe(u[:, 1:], L[:, 1:] @ A, innovation[:, 1:], rows.seen[:, 1:])
    first = gaussian.observe(u[:, :1], torch.zeros_like(L[:, :1]), innovation[:, :1], rows.seen[:, :1])[2]
    S, d = problem.S, problem.size
    H = torch.cat([H, H.new_zeros(H.shape[0], 1, d, d)], 1)
    F = torch.cat([F.expand(S, -1, -1), F.new_zeros(S, 1, d)], 1)
    c = torch.cat([c.expand(S, -1), c.new_zeros(S, 1)], 1)
    c = c + torch.nn.functional.pad(first, (0, nodes - 1))
    return GaussianChain(b[:, 0], Q[:, 0], rest[:, 1:] @ A, b[:, 1:], Q[:, 1:], H, F, c)


def _before(first: Tensor, rest: Tensor) -> Tensor:
    """``(S|1, 1 + n, ...)`` from ``(S|1, ...)`` and ``(S|1, n, ...)``."""
    lead = max(len(first), len(rest))
    return torch.cat([first[:, None].expand(lead, 1, *first.shape[1:]), rest.expand(lead, *rest.shape[1:])], 1)


def _root(problem: Problem, innovation: Tensor) -> Tensor:
    """Cholesky factors ``(S|1, n+1, M, M)`` of the innovations' covariances."""
    root, info = torch.linalg.cholesky_ex(innovation)
    least = root.detach().diagonal(dim1=-2, dim2=-1).square().amin(-1)
    scale = innovation.detach().diagonal(dim1=-2, dim2=-1).amax(-1)
    bad = (info != 0) | (least <= _SINGULAR * scale)
    if bool(bad.any()):
        s, k = (int(i) for i in bad.nonzero()[0])
        raise InputError(
            f"the observation at time {float(problem.times[s, k]):g} of series {s} has no noise of its own and the "
            "step that reaches it adds none in that direction, so that its density is not finite; give the "
            "observation or the transition some noise there"
        )
    return root


class GaussianPosterior(Conditioned):
    """A linear-Gaussian chain conditioned on data: everything in closed form.

    Args:
        steps: ``(A, b, Q)`` with leading axes ``(S|1, n|1)``.
        seen: the linear emission of the observations, or the whole chain where they entered as potentials.
        rebuild: the builder, for forecasts: ``(model, data) -> GaussianPosterior``.
        route: of the chain: "auto", "loop", "scan", ...
    """

    exact = True

    def __init__(
        self,
        problem: Problem,
        steps: tuple[Tensor, Tensor, Tensor],
        seen: LinearEmission | GaussianChain,
        rebuild: Callable[[StateSpace, Any], GaussianPosterior],
        route: str = "auto",
        words: str = "Kalman filter and smoother",
    ) -> None:
        super().__init__(problem.model, problem.data)
        self.problem, self.steps, self.rebuild = problem, steps, rebuild
        if isinstance(seen, GaussianChain):
            self.emission, self.chain, self.moved = None, seen, False
        else:
            self.emission = seen
            self.chain, self.moved = build_chain(problem, steps, rows_of(problem, seen))
        self._route, self.route = route, words
        if route != "auto":
            gaussian.ROUTES[route]  # raises on an unknown name

    @cached_property
    def log_evidence(self) -> Tensor:  # type: ignore[override]
        return gaussian.evidence(self.chain, self._route)

    @cached_property
    def _filtered(self) -> tuple[Tensor, Tensor]:
        """Filtered means and covariances at nodes."""
        found = gaussian.filter(self.chain, self._route)
        self._ran("filter", found.route)
        self._know(found.log_evidence, self.chain.tensors)
        if not self.moved:
            return found.mean, found.cov
        # each node's potential belongs to the next observation: step from the node before instead
        mean, cov = _push(self.chain, found.mean, found.cov)
        S, d = mean.shape[0], mean.shape[-1]
        first = self.chain.m0.expand(S, d)[:, None], self.chain.P0.expand(S, d, d)[:, None]
        return torch.cat([first[0], mean], 1), torch.cat([first[1], cov], 1)

    @cached_property
    def _predicted(self) -> tuple[Tensor, Tensor]:
        """Laws at nodes before what is seen there, of the state."""
        mean, cov = self._filtered
        law: Gaussian = self.problem.prior
        A, b, Q = self.steps
        ahead = (A @ mean[:, :-1].unsqueeze(-1)).squeeze(-1) + b, A @ cov[:, :-1] @ A.mT + Q
        if self.problem.n == 0:
            ahead = ahead[0][:, :0], ahead[1][:, :0]
        S, d = mean.shape[0], mean.shape[-1]
        first = law.mean.double().expand(S, d)[:, None], law.cov.value.double().expand(S, d, d)[:, None]
        return torch.cat([first[0], ahead[0]], 1), torch.cat([first[1], ahead[1]], 1)

    def filter(self) -> Marginals:
        """Kalman filter; observations at one time count together."""
        return self._marginals(*self._filtered)

    def smooth(self) -> Marginals:
        """Rauch-Tung-Striebel smoother."""
        return self._marginals(*self.smoothed_nodes())

    def smoothed_nodes(self) -> tuple[Tensor, Tensor]:
        """Smoothed means ``(S, n+1, d)`` and covariances at all nodes, those between observations too."""
        found = gaussian.smooth(self.chain, self._route)
        self._ran("smooth", found.route)
        self._know(found.log_evidence, self.chain.tensors)
        return found.mean, found.cov

    def sample(self, n: int, seed: int = 0) -> Paths:
        """Independent draws of the whole path; ``innovations (n, S, n_nodes, d)`` are the normals that drove them."""
        noise = KeyedNoise(seed, n, dtype=torch.float64, name="paths")
        z = noise.normal((self.problem.S, self.problem.n + 1, self.problem.size))
        x = gaussian.draw(self.chain, n, z, self._route)
        x = self.problem.at_observations(x.transpose(0, 1).transpose(1, 2)).permute(2, 0, 1, 3)
        return Paths(x, x.new_zeros(n, self.problem.S), self.data.times, z, self.data.axis, self.data.single)

    def forecast(self, times: Any, of: str = "state") -> Marginals:
        """Laws at later times; of="observation" needs an observation law that does not vary with time."""
        if of not in ("state", "observation"):
            raise InputError(f"forecast of is 'state' or 'observation', got {of!r}")
        own = self.problem.emission
        if of == "observation" and isinstance(own, LinearEmission) and own.varies:
            raise InputError("the observation law varies with time and is not known ahead; forecast of='state'")
        mean, cov = self._filtered
        last = self.problem.real.sum(1) - 1
        series = torch.arange(self.problem.S)
        law = Gaussian(mean[series, last], Lin.dense(cov[series, last]))
        model, data = forecast_data(self.model, self.data, law, times)
        return self.rebuild(model, data)._forecast(of, self.exact)

    def _forecast(self, of: str, exact: bool) -> Marginals:
        mean, cov = (self.problem.at_observations(v) for v in self._filtered)
        if of == "observation":
            law = self._observation_law("forecast of='observation'")
            mean, cov = (law.L @ mean.unsqueeze(-1)).squeeze(-1) + law.b, law.L @ cov @ law.L.mT + law.R
        return Marginals(
            self.data.times[:, 1:],
            mean[:, 1:],
            cov[:, 1:],
            exact=exact,
            axis=self.data.axis,
            single=self.data.single,
            what=of,
        )

    def residuals(self) -> Tensor:
        """One-step errors ``(S, N, m)``, whitened by their covariance (coordinates that are missing are NaN)."""
        mean, cov = (self.problem.at_observations(v).nan_to_num() for v in self._predicted)
        y, seen = self.data.y, self.data.seen
        index = torch.arange(self.problem.S)[:, None], torch.arange(y.shape[1])[None]
        own = self._observation_law("residuals").at(tuple(torch.broadcast_tensors(*index)))
        centre, R = own.moments(mean)
        spread = own.L @ cov @ own.L.mT + R
        keep = seen.to(torch.float64)
        spread = spread * keep.unsqueeze(-1) * keep.unsqueeze(-2) + torch.diag_embed(1 - keep)
        error = torch.where(seen, y - centre, 0.0)
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(spread), error.unsqueeze(-1), upper=False)
        return torch.where(seen, white.squeeze(-1), float("nan"))

    def _observation_law(self, verb: str) -> LinearEmission:
        if self.emission is None:
            raise InputError(f"the law of observation is not Gaussian given the state, and {verb} needs one that is")
        return self.emission

    def _marginals(self, mean: Tensor, cov: Tensor) -> Marginals:
        mean, cov = (self.problem.at_observations(v) for v in (mean, cov))
        return Marginals(
            self.data.times,
            mean,
            cov,
            log_evidence=self.log_evidence,
            exact=self.exact,
            axis=self.data.axis,
            single=self.data.single,
        )


def _push(chain: GaussianChain, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """The laws at nodes 0..n-1 one step on."""
    A, b, Q = chain.steps()
    return (A @ mean[:, :-1].unsqueeze(-1)).squeeze(-1) + b, A @ cov[:, :-1] @ A.mT + Q


def linear_posterior(model: StateSpace, data: Any, route: str = "auto") -> GaussianPosterior:
    """The exact posterior of a linear-Gaussian model."""
    problem = Problem(model, data)
    emission = problem.emission
    assert isinstance(emission, LinearEmission)  # the method's `why_not` said so
    A, b, Q = problem.arrays()
    return GaussianPosterior(problem, (A, b, Q), emission, lambda m, d: linear_posterior(m, d, route), route)
