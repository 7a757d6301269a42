"""Networks as denoisers: parameterisations, clocks, conditions, two ends, tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import retrodict as rd
from processes.paths import NAMED
from retrodict.core.errors import InputError
from retrodict.core.noise import KeyedNoise
from retrodict.denoisers import Denoiser, TokenDenoiser, TwoEnded, Wrapped
from retrodict.denoisers.wrapped import PREDICTS, coefficients
from retrodict.exact import GaussianMixture
from retrodict.processes import Interpolant, Masked, TokenBridge, conversions

LAW = GaussianMixture([0.4, 0.6], [[-1.0, 0.0], [0.8, 0.5]], [0.2, 0.1])
OTHER = GaussianMixture([0.5, 0.5], [[2.0, 1.0], [0.0, -1.0]], [0.3, 0.1])


class Says(nn.Module):
    """A network that returns ``answer(x, t, **conditions)`` and remembers what it was asked."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
        self.x, self.t, self.conditions = x, t, conditions
        return self.answer(x, t, **conditions)


def targets(path, predicts, x0, z, t):
    """What each parameterisation estimates, written out from its definition."""
    a, s = path.alpha(t)[:, None], path.sigma(t)[:, None]
    v = a**2 * 0.49 + s**2
    return {
        "data": x0,
        "noise": z,
        "velocity": a * z - s * x0,
        "flow": z - x0,
        "score": -z / s,
        "edm": (x0 - a * 0.49 / v * (a * x0 + s * z)) / (s * 0.7 / v**0.5),
    }[predicts]


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("name", NAMED)
def test_the_right_estimate_gives_back_the_datum(name, predicts):
    path = NAMED[name]
    noise = KeyedNoise(0, 6, dtype=torch.float64)
    x0, z = noise.normals(2, (2,))
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    net = Says(lambda x, t: targets(path, predicts, x0, z, t))
    denoiser = Wrapped(net, path, predicts, data_std=0.7, time=lambda t: t)
    scale = 1 + float((path.sigma(t) / path.alpha(t)).max())
    assert torch.allclose(denoiser(path.corrupt(x0, t, z), t), x0, atol=1e-11 * scale)


def test_edm_preconditioning_is_the_published_one():
    """Karras et al. (2022), table 1, with sigma_data = 0.5 on a path with alpha = 1."""
    sigma = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64)
    c_in, c_skip, c_out = coefficients("edm", torch.ones_like(sigma), sigma, 0.5)
    assert torch.allclose(c_skip, 0.25 / (sigma**2 + 0.25))
    assert torch.allclose(c_out, sigma * 0.5 / (0.25 + sigma**2).sqrt())
    assert torch.allclose(c_in, 1 / (sigma**2 + 0.25).sqrt())


def test_edm_networks_see_states_of_unit_variance():
    path, n = rd.EDM(), 4000
    net = Says(lambda x, t: x)
    denoiser = Wrapped(net, path, "edm", data_std=0.5)
    x0, z = KeyedNoise(0, n, dtype=torch.float64).normals(2, (1,))
    for t in (0.1, 0.5, 0.9):
        denoiser(path.corrupt(0.5 * x0, t, z), t)
        assert abs(float(net.x.std()) - 1) < 4 / (2 * n) ** 0.5  # false alarm 6e-5
        plain = Says(lambda x, t: x)
        x = torch.randn(3, 1)
        Wrapped(plain, path, "noise")(x, t)
        assert plain.x.equal(x)


def test_a_number_is_a_time_for_the_whole_batch():
    path, net = rd.VP(), Says(lambda x, t: x * t[:, None])
    denoiser, x = Wrapped(net, path, "velocity"), torch.randn(3, 2)
    one = denoiser(x, 0.3)
    assert net.t.shape == (3,) and net.t.dtype == x.dtype
    assert torch.allclose(net.t, path.network_time(torch.tensor(0.3, dtype=torch.float64)).float())
    assert one.equal(denoiser(x, torch.full((3,), 0.3, dtype=torch.float64)))
    own = Wrapped(net, path, time=lambda t: 1000 * t)
    own(x, 0.25)
    assert net.t.equal(torch.full((3,), 250.0))


def test_belief_and_call_agree():
    denoiser, x = Wrapped(Says(lambda x, t: 0.5 * x), rd.VP()), torch.randn(3, 2)
    assert denoiser.belief(x, 0.4).mean.equal(denoiser(x, 0.4))


def test_missing_conditions_take_their_null_value():
    net = Says(lambda x, t, **c: x)
    row = torch.tensor([1.0, 2.0])
    denoiser = Wrapped(net, rd.VP(), conditions={"label": 10, "text": row, "must": None})
    x = torch.randn(3, 2)
    denoiser(x, 0.5)
    assert net.conditions["label"].tolist() == [10] * 3 and "must" not in net.conditions
    assert net.conditions["text"].equal(row.expand(3, 2))
    denoiser(x, 0.5, label=4)
    assert net.conditions["label"].tolist() == [4] * 3
    denoiser(x, 0.5, label=torch.tensor([1, 2, 3]), must=torch.ones(3, 5))
    assert net.conditions["label"].tolist() == [1, 2, 3] and net.conditions["must"].shape == (3, 5)
    with pytest.raises(InputError, match=r"unknown condition or option 'labell'.*Did you mean 'label'"):
        denoiser(x, 0.5, labell=1)


def test_denoisers_follow_their_parameters():
    net = nn.Linear(2, 2).double()
    assert Wrapped(net, rd.VP()).dtype == torch.float64
    assert Wrapped(net, rd.VP()).device == torch.device("cpu")
    assert Wrapped(Says(None), rd.VP()).dtype == torch.get_default_dtype()
    named = Denoiser.wrap(net, rd.VP(), "velocity", shape=(2,))
    assert isinstance(named, Wrapped) and named.predicts == "velocity" and named.shape == (2,)


def test_temperature_scales_the_prior():
    denoiser = Wrapped(Says(None), rd.VP())
    plain = denoiser.prior((2,), KeyedNoise(0, 3))
    denoiser.temperature = 0.25
    assert torch.allclose(denoiser.prior((2,), KeyedNoise(0, 3)), plain / 2)


@pytest.mark.parametrize("heads", TwoEnded.HEADS)
@pytest.mark.parametrize("kind", ["linear", "trigonometric"])
def test_two_heads_give_both_ends(kind, heads):
    path = Interpolant(kind)
    oracle = LAW.denoiser(path, x1=OTHER)

    def answer(x, t):
        belief = oracle.belief(x, t)
        if heads == "ends":
            return torch.cat([belief.mean, belief.x1], -1)
        drift = conversions.drift(path, x, t, belief.mean, belief.x1)
        return torch.cat([drift, conversions.noise(path, x, t, belief.mean, belief.x1)], -1)

    denoiser = TwoEnded(Says(answer), path, heads=heads, time=lambda t: t)
    x, t = LAW.sample(12), torch.linspace(0.1, 0.9, 12, dtype=torch.float64)
    belief, exact = denoiser.belief(x, t), oracle.belief(x, t)
    assert torch.allclose(belief.mean, exact.mean, atol=1e-9) and torch.allclose(belief.x1, exact.x1, atol=1e-9)
    assert denoiser(x, t).equal(belief.mean)
    known = torch.zeros_like(x)
    assert denoiser.belief(x, t, x1=known).x1 is known


def test_ends_of_images_are_split_by_channel():
    net = Says(lambda x, t: torch.cat([x + 1, x + 2], 1))
    x = torch.randn(2, 3, 4, 4)
    belief = TwoEnded(net, Interpolant()).belief(x, 0.5)
    assert belief.mean.equal(x + 1) and belief.x1.equal(x + 2)


@pytest.mark.parametrize("process", [Masked(4), TokenBridge(4)], ids=repr)
def test_shown_tokens_are_certain_and_hidden_ones_asked_for(process):
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    denoiser = TokenDenoiser(Says(lambda x, t: logits), process)
    x1 = None if isinstance(process, Masked) else torch.tensor([[2, 0, 1], [0, 0, 0]])
    hidden = torch.tensor([[True, False, True], [False, True, True]])
    other = torch.full((2, 3), 4) if x1 is None else x1
    x = torch.where(hidden, other, torch.full((2, 3), 3))
    belief = denoiser.belief(x, 0.5, **({} if x1 is None else {"x1": x1}))
    p = belief.law.log_p.exp()
    assert torch.allclose(p[hidden], torch.softmax(logits.double(), -1)[hidden])
    assert torch.allclose(p[~hidden], torch.tensor([0.0, 0, 0, 1], dtype=torch.float64))
    assert torch.allclose(belief.mean, p) and p.dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Wrapped(Says(None), rd.VP(), "noisy"), "Did you mean 'noise'"),
        (lambda: Wrapped(Says(None), Masked(4)), "wrapped on a scalar Gaussian path, got Masked"),
        (lambda: Wrapped(Says(lambda x, t: x[:, :1]), rd.VP())(torch.zeros(2, 3), 0.5), r"returned shape \(2, 1\)"),
        (lambda: TwoEnded(Says(None), rd.VP()), "VP has one"),
        (lambda: TwoEnded(Says(None), Interpolant(), heads="end"), "Did you mean 'ends'"),
        (lambda: TwoEnded(Says(lambda x, t: x), Interpolant())(torch.zeros(2, 3), 0.5), "needs doubled channels"),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
