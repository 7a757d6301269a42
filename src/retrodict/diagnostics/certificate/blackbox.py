"""Measurements that know nothing of a sampler but what it does to a `Probe`.

They ask of anybody's sampler what `identities`, `orders` and `runs` read off a plan's rows; a test holds the two to
each other.
"""

from __future__ import annotations

import math
import traceback
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retrodict.diagnostics.certificate.finding import Finding, deviation
from retrodict.diagnostics.certificate.probes import (
    MEAN,
    MODES,
    SMOOTH,
    VARIANCE,
    Basis,
    Flow,
    Law,
    Probe,
    constant,
    gaussian,
    mixture,
)
from retrodict.diagnostics.certificate.samplers import Sampler

STEPS = (20, 40, 80, 160)
BUDGETS = (5, 10, 20)
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20)
COORDINATES = 400  # of a linear run: the mean, the start, and one for each draw of noise


@dataclass(frozen=True)
class Begin:
    """Where a run begins: the level, and the state there of ``z = 1``; of a run without signal there, z itself."""

    rho: float
    size: float
    calls: int
    last: float

    def z(self, y: Tensor) -> Tensor:
        """The normals that begin at y."""
        return y / self.size


def begin(sampler: Sampler, n: int) -> Begin:
    """Run once on a denoiser that says zero; kept with the sampler."""
    known = _begun.setdefault(sampler, {})
    if n not in known:
        probe = Probe(constant(0.0))
        with Basis(None):
            sampler.run(probe, torch.ones(1, 2, dtype=torch.float64), n)
        known[n] = Begin(probe.rho[0], float(probe.y[0][0, 0]), len(probe.rho), probe.rho[-1])
    return known[n]


_begun: weakref.WeakKeyDictionary[Sampler, dict[int, Begin]] = weakref.WeakKeyDictionary()


def _lengths(sampler: Sampler, lengths: Sequence[int]) -> list[int]:
    return [sampler.fixed] if sampler.fixed else list(lengths)


def order(sampler: Sampler, steps: Sequence[int] = STEPS, tol: float = 0.3) -> Finding:
    """Pathwise order of a deterministic sampler, from the state of its last evaluation against the exact flow.

    A sampler of higher order than it declares is not held against it.
    """
    law, eps = mixture(SMOOTH), torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = [_path_error(sampler, law, eps, n) for n in steps]
    return _against(sampler, "order", errors, steps, tol)


def _path_error(sampler: Sampler, law: Law, eps: Tensor, n: int) -> float:
    probe = Probe(law)
    start = begin(sampler, n)
    at = min(start.rho, 1e6)
    sampler.run(probe, start.z(eps * at) if math.isfinite(start.rho) else eps, n)
    # a run that begins without signal is followed from its second state on
    k = next(i for i, rho in enumerate(probe.rho) if math.isfinite(rho))
    flow = Flow(law, probe.y[k], probe.rho[k], probe.rho[-1])
    return float((probe.y[-1] - flow(probe.rho[-1])).norm(dim=1).mean())


def _against(sampler: Sampler, name: str, errors: Sequence[float], steps: Sequence[int], tol: float) -> Finding:
    """The slope over the last two doublings with errors above the sampler's arithmetic.

    The verdict goes by the better of the two: the start-up of high orders and grids of whole timesteps bend a slope.
    """
    last = max((i for i, e in enumerate(errors) if e > 10 * sampler.precision), default=1)
    last = max(last, min(2, len(errors) - 1))
    pairs = [(last - 1, last)] if last == 1 else [(last - 1, last), (last - 2, last - 1)]
    slopes = [math.log(errors[i] / errors[j]) / math.log(steps[j] / steps[i]) for i, j in pairs]
    value = sum(slopes) / len(slopes)
    shown = ", ".join(f"{e:.1e}" for e in errors)
    declared = sampler.order
    ok = math.isfinite(value) if declared is None else max(slopes) >= declared - tol
    said = "" if declared is None else f" (declared {declared:g})"
    text = f"{value:.2f}{said}; errors {shown} at {', '.join(map(str, steps))} steps"
    return Finding(name, value, math.nan if declared is None else declared, ok, text, tuple(errors))


@dataclass(frozen=True)
class Law1:
    """Mean and variance of the state at the last evaluation, and what they should be."""

    mean: float
    variance: float
    exact_variance: float

    @property
    def mean_error(self) -> float:
        return abs(self.mean - MEAN)

    @property
    def variance_error(self) -> float:
        return abs(self.variance / self.exact_variance - 1)


def gaussian_moments(sampler: Sampler, n: int) -> Law1:
    """Moments of a run on N(`MEAN`, `VARIANCE`), exactly: one coordinate is the mean, one the start's deviation, the
    others the draws of noise."""
    start = begin(sampler, n)
    y = torch.zeros(1, COORDINATES, dtype=torch.float64)
    at = start.rho if math.isfinite(start.rho) else 1.0
    y[0, 0], y[0, 1] = (MEAN, math.sqrt(VARIANCE + at**2)) if math.isfinite(start.rho) else (0.0, 1.0)
    probe = Probe(gaussian)
    with Basis(2):
        sampler.run(probe, start.z(y) if math.isfinite(start.rho) else y, n)
    out = probe.y[-1][0]
    return Law1(float(out[0]), float((out[1:] ** 2).sum()), VARIANCE + probe.rho[-1] ** 2)


def weak_order(sampler: Sampler, steps: Sequence[int] = STEPS, tol: float = 0.3) -> Finding:
    """Order of the variance on Gaussian data, by exact moments."""
    errors = [gaussian_moments(sampler, n).variance_error for n in steps]
    return _against(sampler, "weak order", errors, steps, tol)


def moments(sampler: Sampler, budgets: Sequence[int] = BUDGETS) -> list[Finding]:
    """Mean and relative variance error on Gaussian data at budgets of evaluations."""
    found = []
    for n, calls in within(sampler, budgets):
        law = gaussian_moments(sampler, n)
        text = f"mean off by {law.mean_error:.1e}, variance by {law.variance_error:.1%} at {calls} evaluations"
        finite = math.isfinite(law.variance_error)
        found.append(Finding("Gaussian moments", law.variance_error, 0.0, finite, text, (calls, law.mean_error)))
    return found


def within(sampler: Sampler, budgets: Sequence[int]) -> list[tuple[int, int]]:
    """``(steps, evaluations)`` of the longest run within each budget; runs that fail are left out."""
    found = []
    for budget in [10**6] if sampler.fixed else budgets:
        for n in _lengths(sampler, range(budget, 0, -1)):
            try:
                calls = begin(sampler, n).calls
            except Exception:
                continue
            if calls <= budget:
                found.append((n, calls))
                break
    return found


def evaluations(sampler: Sampler, steps: int = 10) -> Finding:
    """The denoiser calls that a run of so many steps really makes."""
    n = sampler.fixed or steps
    calls = begin(sampler, n).calls
    return Finding("evaluations", calls, math.nan, True, f"{calls} in {n} steps")


def constant_identity(sampler: Sampler, steps: Sequence[int] = (5, 20), tol: float | None = None) -> Finding:
    """Whether a constant denoiser is integrated exactly (of a stochastic sampler: in the mean)."""
    worst = 0.0
    for n in _lengths(sampler, steps):
        start = begin(sampler, n)
        probe, c = Probe(constant(MEAN)), MEAN
        y = torch.tensor([[2.0, -1.0]], dtype=torch.float64) * (
            min(start.rho, 100.0) if math.isfinite(start.rho) else 1.0
        )
        with Basis(None):
            sampler.run(probe, start.z(y), n)
        k = next(i for i, rho in enumerate(probe.rho) if math.isfinite(rho))
        share = probe.rho[-1] / probe.rho[k]
        exact = c + share * (probe.y[k] - c)
        gap = (probe.y[-1] - exact) if not sampler.stochastic else _mean_gap(sampler, n, start)
        worst = max(worst, float(gap.abs().max()))
    return deviation("constant denoiser", worst, tol or 10 * sampler.precision, "the last state evaluated")


def _mean_gap(sampler: Sampler, n: int, start: Begin) -> Tensor:
    """The mean of a stochastic run that begins at a mean of c is c."""
    probe = Probe(constant(MEAN))
    with Basis(None):
        sampler.run(probe, start.z(torch.full((1, 2), MEAN, dtype=torch.float64)), n)
    return probe.y[-1] - MEAN if math.isfinite(start.rho) else torch.zeros(1)


def polynomial_degree(sampler: Sampler, kind: str, n: int = 18, highest: int = 4) -> int:
    """The highest degree q such that predictions that are polynomials of the time alone are integrated exactly.

    ``kind`` is "data" (D a polynomial in lambda) or "noise" ((y - D)/rho a polynomial in rho).  Either the whole run is
    exact, or, for methods that must start up, every step after the fourth is; -1 if not even constants are.
    """
    for degree in range(highest + 1):
        if not _integrates(sampler, kind, degree, sampler.fixed or n):
            return degree - 1
    return highest


def polynomials(sampler: Sampler) -> Finding:
    """`polynomial_degree` of both kinds in a line."""
    data, noise = (polynomial_degree(sampler, kind) for kind in ("data", "noise"))
    said = [
        f"{kind} prediction up to degree {q} in {tau}" if q >= 0 else f"no {kind} prediction"
        for kind, q, tau in (("data", data, "lambda"), ("noise", noise, "rho"))
    ]
    return Finding("polynomials", max(data, noise), math.nan, True, f"exact on {', '.join(said)}", (data, noise))


def _integrates(sampler: Sampler, kind: str, degree: int, n: int) -> bool:
    start = begin(sampler, n)
    low = math.log(start.last)
    high = math.log(start.rho) if math.isfinite(start.rho) else low + 8
    u = (
        (lambda rho: 2 * (math.log(rho) - low) / (high - low) - 1)
        if kind == "data"
        else (lambda rho: rho / math.exp(high))
    )
    p = lambda rho: u(min(rho, 1e9)) ** degree  # noqa: E731

    def law(y: Tensor, rho: float) -> Tensor:
        value = p(rho)
        return torch.full_like(y, value) if kind == "data" else y - rho * value

    probe = Probe(law)
    y = torch.ones(1, 2, dtype=torch.float64) * min(start.rho, 1e3)
    with Basis(None):
        sampler.run(probe, start.z(y), n)
    rho, state = probe.rho, [float(v[0, 0]) for v in probe.y]

    def carried(a: float, b: float) -> tuple[float, float]:
        """``y_b = factor y_a + integral`` exactly, by Gauss-Legendre."""
        x, w = np.polynomial.legendre.leggauss(40)
        if kind == "noise":
            r = a + (b - a) * (x + 1) / 2
            return 1.0, float(((b - a) / 2 * w * [p(v) for v in r]).sum())
        lam = -math.log(a) + (math.log(a) - math.log(b)) * (x + 1) / 2
        weight = np.exp(lam + math.log(b)) * (math.log(a) - math.log(b)) / 2
        return b / a, float((weight * w * [p(math.exp(-v)) for v in lam]).sum())

    first = next(i for i, r in enumerate(rho) if math.isfinite(r))

    def off(i: int, j: int) -> float:
        factor, integral = carried(rho[i], rho[j])
        return abs(state[j] - factor * state[i] - integral) / max(1.0, abs(state[j]))

    tol = max(1e-8, 5 * sampler.precision)
    whole = off(first, len(rho) - 1) <= tol
    late = [off(i, i + 1) for i in range(first + 4, len(rho) - 5) if rho[i + 1] < rho[i]]
    return whole or (bool(late) and max(late) <= tol)


def marginal_error(sampler: Sampler, budgets: Sequence[int] = BUDGETS, count: int = 2048) -> list[Finding]:
    """Wasserstein-1 distance between results and a mixture of four narrow components on the line, at budgets.

    Starts are quantiles of the exact law, so that a deterministic sampler has no sampling error; a stochastic one has
    about 1/sqrt(count), near 0.02.
    """
    law, found = mixture(MODES), []
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    exact = quantiles(u, 0.0)
    for n, calls in within(sampler, budgets):
        start = begin(sampler, n)
        y = quantiles(u, start.rho) if math.isfinite(start.rho) else torch.special.ndtri(u)
        shuffled = y[torch.randperm(count, generator=torch.Generator().manual_seed(1))].unsqueeze(1)
        out = sampler.run(Probe(law), start.z(shuffled), n)
        error = float((out.flatten().sort().values - exact).abs().mean())
        text = f"Wasserstein-1 {error:.3f} at {calls} evaluations"
        found.append(Finding("mixture", error, 0.0, math.isfinite(error), text, (calls,)))
    return found


def quantiles(u: Tensor, rho: float) -> Tensor:
    """Quantiles of the mixture `MODES` with noise of standard deviation rho, by bisection."""
    std = (MODES.covariances[:, 0, 0] + rho**2).sqrt()
    low, high = (torch.full_like(u, float(v)) for v in (-4 - 9 * std.max(), 4 + 9 * std.max()))
    for _ in range(80):
        mid = (low + high) / 2
        below = (torch.special.ndtr((mid[:, None] - MODES.means[:, 0]) / std) @ MODES.weights) < u
        low, high = torch.where(below, mid, low), torch.where(below, high, mid)
    return (low + high) / 2


def ends(sampler: Sampler, lengths: Sequence[int] = LENGTHS) -> Finding:
    """Runs of few and many steps end finite and without an error; the noise that is left is named.

    A ValueError that is raised in so many words is a refusal, which is a sampler's right, and is named; any other error
    does not hold.
    """
    outcomes: dict[str, list[int]] = {}
    left, refused = 0.0, set()
    for n in _lengths(sampler, lengths):
        try:
            start = begin(sampler, n)
            with Basis(None):
                out = sampler.run(Probe(constant(MEAN)), torch.tensor([[1.0, -1.0]], dtype=torch.float64), n)
        except Exception as error:  # whatever another library raises is what is reported
            what = f"{type(error).__name__} ({str(error)[:80]})"
            raised = (traceback.extract_tb(error.__traceback__)[-1].line or "").startswith("raise")
            refused |= {what} if isinstance(error, ValueError) and raised else set()
        else:
            what = "finite" if bool(torch.isfinite(out).all()) else "not finite"
            left = float((out[0, 0] - out[0, 1]).abs()) / 2 / abs(start.size) * min(start.rho, 1e6)
        outcomes.setdefault(what, []).append(n)
    broken = sum(len(ns) for what, ns in outcomes.items() if what != "finite" and what not in refused)
    text = "; ".join(f"{what} at {', '.join(map(str, ns))} steps" for what, ns in outcomes.items())
    if "finite" in outcomes:
        text += f"; sigma/alpha of {left:.1e} is left at the end"
    return Finding("ends", broken, 0.0, not broken, text, (left,))


def reproducibility(sampler: Sampler, n: int = 6, batch: int = 4) -> Finding:
    """Largest difference of a batch from its samples run alone, with the same seed."""
    n, law = sampler.fixed or n, mixture(SMOOTH)
    z = torch.randn(batch, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    together = sampler.run(Probe(law), z, n, seed=7)
    alone = torch.cat([sampler.alone(Probe(law), z[i : i + 1], n, 7, i) for i in range(batch)])
    return deviation(
        "reproducibility", float((together - alone).abs().max()), sampler.precision, "batch against single"
    )
