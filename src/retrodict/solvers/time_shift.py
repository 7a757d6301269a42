"""Time shift: tell the denoiser the noise level that a state really has (Li et al. 2024).

A sampler's states drift off the levels that its plan names.  `time_shifted` lets any plan measure each sample's level
before an evaluation, and ask the denoiser there; the rows stay as they are.  The measure is the variance v of the
elements of a state, and the level is the time near the plan's whose expected variance is closest,

    t_s = argmin over [t - w/2, t + w/2] of |v - (sigma^2 + alpha^2 v0)|        (rule "corrected")

with v0 the variance of the data.  The published rule leaves out v0: it is biased wherever the signal has variance.  v
says nothing where the expected variance is flat, as at unit-variance data on a variance-preserving path, and then the
time stays (`spread` measures that).  Experimental: with an exact denoiser there is little to gain, with a network of
digits at ten steps there was, for the corrected rule alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from retrodict.core.errors import InputError, InputTypeError, near, require
from retrodict.core.noise import Noise
from retrodict.denoisers import Denoiser
from retrodict.kernels import Belief
from retrodict.processes import GaussianPath
from retrodict.solvers.general import calls
from retrodict.solvers.plan import Call, Eval, Instruction, Plan, Row

RULES = ("corrected", "paper")
_POINTS = 257


def time_shifted(
    plan: Plan, window: float = 0.1, cutoff: float = 0.3, rule: str = "corrected", data_variance: float = 1.0
) -> Plan:
    """A plan whose evaluations at times above ``cutoff`` are made at each sample's own noise level.

    Args:
        plan: any plan on a scalar Gaussian path with one end.
        window: width w of the times searched; 0 returns the plan itself.
        cutoff: evaluations at or below this time keep theirs, and so does the first, which is at the prior.
        rule: "corrected", or "paper", which takes sigma^2 as the expected variance.
        data_variance: v0, the variance of the elements of a datum, in the model's units.

    The three released variants differ from each other; this is the one that changes the denoiser's time alone.
    """
    if not isinstance(plan, Plan):
        raise InputTypeError(f"time_shifted takes a Plan, got {type(plan).__name__}; rd.plan(...) makes one")
    require(window >= 0 and 0 <= cutoff <= 1, f"window >= 0 and a cutoff in [0, 1] are needed: {window}, {cutoff}")
    require(data_variance >= 0, f"data_variance is not negative, got {data_variance}")
    if rule not in RULES:
        raise InputError(f"rule is one of {', '.join(RULES)}; got {rule!r}.{near(rule, RULES)}")
    path = plan.process
    if not isinstance(path, GaussianPath) or not path.scalar or len(path.ends) == 2:
        raise InputError("noise levels are measured on scalar Gaussian paths with one end")
    if window == 0:
        return plan
    free = 1 + max([0, *(c.dst for c in plan.code if isinstance(c, (Row, Call)))])
    code: list[Instruction] = []
    options = {"window": window, "rule": rule, "data_variance": data_variance}
    for c in plan.code:
        if isinstance(c, Eval) and c.k > 0 and c.t > cutoff and c.clock is None:
            code.append(Call(free, "noise-level", c.x, c.k - 1, c.t, c.t, options))
            c, free = replace(c, clock=free), free + 1
        code.append(c)
    return replace(plan, code=tuple(code), meta={**plan.meta, "generated": False, "time_shift": options})


def level_of(
    path: GaussianPath, x: Tensor, t: float, window: float, rule: str = "corrected", data_variance: float = 1.0
) -> Tensor:
    """The time of each state ``(batch,)`` float64, near t."""
    times, expected = _expected(path, t, window, rule, data_variance)
    v = x.double().flatten(1).var(dim=1)
    near_t = (times - t).abs() * 1e-12  # where the expected variance is flat, the plan's time
    return times.to(x.device)[((v[:, None] - expected.to(v)).abs() + near_t.to(v)).argmin(1)]


def spread(path: GaussianPath, t: float, elements: int, data_variance: float = 1.0) -> float:
    """Standard deviation of the time that the corrected rule finds for states of that many elements, by the delta
    method; infinite where the variance does not change with time.  Above t/4 or so a level is not identifiable."""
    times, expected = _expected(path, t, 2e-4 * max(t, 1e-3), "corrected", data_variance)
    slope = float((expected[-1] - expected[0]) / (times[-1] - times[0]))
    here = float(expected[len(expected) // 2])
    return float("inf") if abs(slope) < 1e-9 else here * (2 / elements) ** 0.5 / abs(slope)


def _expected(path: GaussianPath, t: float, window: float, rule: str, data_variance: float) -> tuple[Tensor, Tensor]:
    """Times around t and the variance that is expected there."""
    low, high = max(t - window / 2, path.t_min), min(t + window / 2, 1.0)
    times = torch.linspace(low, high, _POINTS, dtype=torch.float64)
    signal = data_variance * path.alpha(times) ** 2 if rule == "corrected" else 0.0
    return times, path.sigma(times) ** 2 + signal


@calls.register("noise-level")
def _noise_level(
    denoiser: Denoiser, x: Tensor, belief: Belief, call: Call, noise: Noise, condition: Mapping[str, Any]
) -> Tensor:
    """The clock of the next evaluation."""
    return level_of(denoiser.process, x, call.t, **call.options)  # type: ignore[arg-type]
