"""Couplings: transport plans against SciPy's assignment, classes kept, marginals kept."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.denoisers import Wrapped
from retrodict.objectives import Regression, couplings
from retrodict.processes import Interpolant


def points(seed, n=24, shape=(2,)):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cost(a, b):
    return float(((a - b) ** 2).sum())


@pytest.mark.parametrize("shape", [(2,), (1, 3, 3)])
def test_optimal_transport_is_the_best_pairing(shape):
    x0, z = points(0, shape=shape), points(1, shape=shape)
    paired = couplings["optimal-transport"]()(x0, z, None, torch.Generator())
    distances = torch.cdist(x0.flatten(1), z.flatten(1)) ** 2
    rows, columns = linear_sum_assignment(distances.numpy())
    assert abs(cost(x0, paired) - float(distances[rows, columns].sum())) < 1e-9
    assert cost(x0, paired) < 0.7 * cost(x0, z)
    order = lambda v: v.flatten(1)[v.flatten(1)[:, 0].argsort()]  # noqa: E731
    assert order(paired).equal(order(z))  # a permutation


def test_class_conditional_transport_stays_within_the_class():
    x0, z, labels = points(0), points(1), torch.arange(24) % 3
    paired = couplings["class-optimal-transport"]()(x0, z, labels, torch.Generator())
    for label in range(3):
        rows = labels == label
        distances = torch.cdist(x0[rows], z[rows]) ** 2
        i, j = linear_sum_assignment(distances.numpy())
        assert abs(cost(x0[rows], paired[rows]) - float(distances[i, j].sum())) < 1e-9
    with pytest.raises(InputError, match="needs the condition 'label'"):
        couplings["class-ot"]()(x0, z, None, torch.Generator())


def test_entropic_plans_lie_between_the_best_pairing_and_none():
    """Weak regularisation approaches the assignment; strong regularisation forgets the cost."""
    x0, z = points(0), points(1)

    def draw(entropy):
        plans = [couplings["ot"](entropy=entropy)(x0, z, None, torch.Generator().manual_seed(s)) for s in range(4)]
        return sum(cost(x0, plan) for plan in plans) / 4

    best = cost(x0, couplings["ot"]()(x0, z, None, torch.Generator()))
    independent = float((torch.cdist(x0, z) ** 2).mean() * len(x0))
    assert 0.999 * best < draw(0.05) < 1.3 * best
    assert draw(0.05) < draw(0.3) < draw(100.0)
    assert abs(draw(100.0) / independent - 1) < 0.2


def test_independent_partners_stay_as_they_are():
    x0, x1 = points(0), points(1)
    assert couplings["independent"]()(x0, x1, None, torch.Generator()) is x1
    with pytest.raises(InputError, match="entropy of a transport plan is at least 0"):
        couplings["ot"](entropy=-1.0)


def test_transport_lowers_the_irreducible_flow_loss():
    """Straight paths that do not cross leave nothing to average: the loss of the nearest-pair flow falls.

    For one-dimensional data the monotone map is the limit: z and x0 of equal rank.
    """
    path = rd.RectifiedFlow()
    x = points(2, 512, (1,)) * 0.2 + torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(256)[:, None]

    class Zero(torch.nn.Module):
        def forward(self, x, t):
            return torch.zeros_like(x)

    losses = {
        name: float(
            Regression(path, coupling=name)(Wrapped(Zero(), path, "flow"), {"x": x}, torch.Generator().manual_seed(0))[
                "loss"
            ]
        )
        for name in ("independent", "ot")
    }
    # a network that says zero has the loss E (z - x0)^2: the squared length of the pairing
    z = torch.randn(512, 1, generator=_after_times(512), dtype=torch.float64)
    assert abs(losses["independent"] - float(((z - x) ** 2).mean())) < 1e-9
    assert abs(losses["ot"] - float(((z.sort(0).values - x.sort(0).values) ** 2).mean())) < 1e-9


def _after_times(n):
    """The generator as the objective leaves it when the times are drawn."""
    generator = torch.Generator().manual_seed(0)
    torch.rand(n, generator=generator, dtype=torch.float64)
    torch.randperm(n, generator=generator)
    return generator


def test_both_ends_can_be_coupled():
    path, seen = Interpolant("linear", "zero"), {}

    class Look(torch.nn.Module):
        def forward(self, x, t):
            seen["x"], seen["t"] = x, t
            return torch.cat([x, x], -1)

    x0, x1 = points(0), points(1)
    denoiser = rd.denoisers.TwoEnded(Look(), path, time=lambda t: t)
    Regression(path, coupling="ot")(denoiser, {"x0": x0, "x1": x1}, torch.Generator().manual_seed(0))
    t = seen["t"][:, None]
    partner = (seen["x"] - (1 - t) * x0) / t
    expected = couplings["ot"]()(x0, x1, None, torch.Generator())
    assert torch.allclose(partner[t[:, 0] > 0.1], expected[t[:, 0] > 0.1], atol=1e-9)
