"""Laws as programs: the same numbers as the law itself, and no program where one would be wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

import retrodict as rd
from retrodict.inference.particle_programs import program
from retrodict.inference.particle_steps import log_normal, normal_at

A = torch.tensor([[0.9, 0.1], [-0.2, 0.7]], dtype=torch.float64)
LAWS: dict[str, Callable[[Tensor], object]] = {
    "linear": lambda x: Normal(-1 + 0.9 * (x + 1), 0.3),
    "volatility": lambda x: Normal(0.0, (x / 2).exp()),
    "elementary": lambda x: Normal(torch.sin(x) - x.tanh() + x**3 / (1 + x**2), 0.1 + x.square().sqrt()),
    "reflected": lambda x: Normal(2 - x, 1 / (1 + torch.exp(-x))),
    "matrix": lambda x: Normal(x @ A.T, torch.tensor([0.3, 0.2], dtype=torch.float64)),
    "parts": lambda x: Normal(torch.stack([x[..., 0] * x[..., 1], x[..., 1] - 1], -1), 0.5),
    "independent": lambda x: Independent(Normal(0.5 * x, (0.1 * x).exp()), 1),
    "power": lambda x: Normal(x, (x**2 + 1) ** 0.5),
}


@pytest.mark.parametrize("name", LAWS)
@torch.no_grad()
def test_programs_replay_the_law(name: str) -> None:
    law, made = LAWS[name], torch.Generator().manual_seed(0)

    def draw() -> tuple[Tensor, Tensor]:
        states = torch.randn(3, 5, 2, generator=made, dtype=torch.float64)
        return states, torch.randn(3, 1, 2, generator=made, dtype=torch.float64)

    def log_g(x: Tensor, y: Tensor) -> Tensor:
        found = normal_at(law, x)
        assert found is not None
        return log_normal(y - found[0], found[1])

    replay = program(log_g, *draw())
    assert replay is not None and replay.shape == (3, 5)
    kept = []
    for _ in range(3):  # other numbers than those it was made with; answers keep their memory
        x, y = draw()
        direct = law(x)
        base = direct.base_dist if isinstance(direct, Independent) else direct
        kept.append((replay(x, y), base.log_prob(y).sum(-1)))  # type: ignore[attr-defined]
    for ours, exact in kept:
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x if float(x.mean()) > 0 else -x,
        lambda x: torch.where(x > 0, x, 2 * x),
        lambda x: x + 1 if bool((x > 0).all()) else x - 1,
        lambda x: torch.nn.functional.softplus(x),
        lambda x: x.clone().add_(1),
        lambda x: torch.from_numpy(x.numpy() + 1),
        lambda x: torch.tensor(x.tolist()),
        lambda x: torch.exp(input=x),
    ],
)
@torch.no_grad()
def test_what_a_program_cannot_hold_is_left_alone(f: Callable[[Tensor], Tensor]) -> None:
    assert program(f, torch.ones(1, 4, 1, dtype=torch.float64)) is None


@torch.no_grad()
def test_identity_and_constants_are_no_programs() -> None:
    x = torch.ones(1, 4, 1, dtype=torch.float64)
    assert program(lambda x: x, x) is None
    assert program(lambda x: torch.ones(1, 4, 1), x) is None
    assert program(lambda x: x + 1, x.float()) is None


def test_a_filter_by_programs_is_the_filter_by_laws() -> None:
    """The comparison makes the second model opaque; equal laws, equal noise, equal answers."""
    y = torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prior = Normal(torch.zeros(1, dtype=torch.float64), 1.0)

    def opaque(x: Tensor) -> Tensor:
        return torch.where(x == math.inf, x, x)

    plain = rd.StateSpace(prior, lambda x: Normal(0.9 * x, 0.3), lambda x: Normal(0.0, (x / 2).exp()))
    walled = rd.StateSpace(prior, lambda x: Normal(0.9 * opaque(x), 0.3), lambda x: Normal(0.0, (opaque(x) / 2).exp()))
    runs = [rd.condition(m, rd.Observed(y), method="bootstrap", particles=64, seed=3) for m in (plain, walled)]
    assert runs[0].fk._program is not None and runs[0].fk.steps._program is not None
    assert runs[1].fk._program is None and runs[1].fk.steps._program is None
    torch.testing.assert_close(runs[0].log_evidence, runs[1].log_evidence, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(runs[0].filter().mean, runs[1].filter().mean, rtol=1e-8, atol=1e-8)


def test_parameters_are_read_anew_at_every_run() -> None:
    scale = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    prior = Normal(torch.zeros(1, dtype=torch.float64), 1.0)
    model = rd.StateSpace(prior, lambda x: Normal(0.9 * x, 0.3), lambda x: Normal(x, scale.exp()))
    y = torch.linspace(-1, 1, 20, dtype=torch.float64)

    def evidence() -> float:
        return float(rd.condition(model, rd.Observed(y), method="bootstrap", particles=4000, seed=0).log_evidence)

    before = evidence()
    with torch.no_grad():
        scale.fill_(-0.5)
    after = evidence()

    def exact(deviation: float) -> float:
        """The Gaussian chain's own evidence."""
        chain = rd.StateSpace(
            rd.kernels.Gaussian(torch.zeros(1).double(), torch.eye(1).double()),
            rd.kernels.LinearGaussian(
                0.9 * torch.eye(1).double(), torch.zeros(1).double(), 0.09 * torch.eye(1).double()
            ),
            None,
        )
        told = rd.Observed(y, noise=deviation)
        return float(rd.condition(chain, told, method="exact").log_evidence)

    # 4,000 particles: standard errors below 0.05, so that 0.25 is five of them (false alarms below 1e-6)
    assert abs(before - exact(math.exp(0.5))) < 0.25
    assert abs(after - exact(math.exp(-0.5))) < 0.25
