"""``edit``: classes change, goals add up, masks hold to the bit, and bad words are told before any evaluation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError, NonFiniteError
from retrodict.data import Scale
from retrodict.denoisers import Denoiser
from retrodict.exact import GaussianMixture
from retrodict.processes import VP, Interpolant
from retrodict.steering import Measurement

LAW = GaussianMixture(
    [0.25, 0.25, 0.25, 0.25],
    [[-2.0, -1.0], [-2.0, 1.5], [2.0, 1.0], [2.0, -1.5]],
    [[0.1, 0.2], [0.2, 0.1], [0.2, 0.1], [0.1, 0.1]],
    labels=[0, 0, 1, 1],
)


@pytest.fixture
def denoiser():
    return LAW.denoiser(VP("cosine"))


def seen(x):
    """The class of the likeliest component."""
    return LAW.labels[LAW.component_log_prob(x).argmax(1)]


def data(n=60):
    x = LAW.sample(n, seed=2)
    return x, seen(x)


@pytest.mark.parametrize("method", ["auto", "turbo", "h-edit", "h-edit-explicit", "flow"])
def test_classes_change_and_the_rest_stays(denoiser, method):
    """All are recognised, and nearer to where they came from than fresh samples of the class are (but for a pull of
    1.5, which carries over)."""
    x, label = data()
    made = rd.edit(denoiser, x, source=label, target=1 - label, steps=20, method=method, progress=False)
    fresh = rd.sample(denoiser, len(x), label=1 - label, progress=False).x
    assert float((seen(made.x) == 1 - label).double().mean()) >= 0.95
    assert method == "turbo" or float(made.distance.square().mean()) < float((fresh - x).square().mean())
    assert torch.equal(made.x, x + made.delta) and made.correction == "none"
    assert method in repr(made) or method == "auto"


def test_evaluations_are_counted(denoiser):
    calls = []
    denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    x, label = data(6)
    for words, each in [({}, 2), ({"strength": 2.0}, 3), ({"method": "flow"}, 2), ({"method": "turbo"}, 3)]:
        calls.clear()
        made = rd.edit(denoiser, x, label, 1 - label, steps=5, batch_size=3, progress=False, **words)
        assert made.nfe == 5 * each and made.passes == 5 * each and len(calls) == 2 * made.nfe
    made = rd.edit(denoiser, x, label, 1 - label, steps=5, method="h-edit", inner=2, progress=False)
    assert made.nfe == 2 + 3 * 6 + 2  # the first level has no signal, and the last no noise to go to
    made = rd.edit(denoiser, x, label, 1 - label, steps=5, guidance=(1.0, 2.0), progress=False)
    assert (made.nfe, made.passes) == (10, 15)
    made = rd.edit(denoiser, x, label, 1 - label, steps=5, guidance=(1.0, 2.0, 1.5), progress=False)
    assert made.nfe == 20


def test_a_sample_is_the_same_in_every_batch(denoiser):
    x, label = data(7)
    words = {"source": label, "target": (1 - label).tolist(), "steps": 6, "seed": 4, "progress": False}
    whole = rd.edit(denoiser, x, **words)
    parts = rd.edit(denoiser, x, batch_size=2, **words)
    assert float((whole.x - parts.x).abs().max()) < 1e-12
    other = rd.edit(denoiser, x, **(words | {"seed": 5}))
    assert float((whole.x - other.x).abs().max()) > 1e-3


def test_source_and_target_alike(denoiser):
    x, label = data(5)
    assert torch.equal(rd.edit(denoiser, x, label, {"label": label}, steps=4, progress=False).x, x)
    # no claim about the source: the unconditional denoiser
    unclaimed = rd.edit(denoiser, x, target={}, steps=4, progress=False)
    assert torch.equal(unclaimed.x, x)


def test_masks_hold_to_the_bit(denoiser):
    x, label = data(20)
    first = torch.tensor([True, False])
    made = rd.edit(denoiser, x, label, 1 - label, mask=first, steps=8, progress=False)
    assert torch.equal(made.x[:, 1], x[:, 1]) and float(made.distance.min()) > 0.5
    mine = torch.zeros(20, 2)
    mine[3] = 1
    made = rd.edit(denoiser, x, label, 1 - label, mask=mine, steps=8, progress=False)
    assert torch.equal(made.x[:3], x[:3]) and torch.equal(made.x[4:], x[4:]) and float(made.distance[3]) > 0.5
    half = rd.edit(denoiser, x, label, 1 - label, mask=torch.tensor([0.5, 0.5]), steps=8, progress=False)
    assert not bool((half.delta == 0).any())


def test_a_share_finds_the_region_that_tells_the_classes_apart(denoiser):
    """The classes lie on the two sides of the first axis."""
    x, label = data(40)
    made = rd.edit(denoiser, x, label, 1 - label, mask=0.5, steps=8, batch_size=16, progress=False)
    assert made.mask is not None and made.mask.shape == x.shape
    assert torch.equal(made.mask.sum(1), torch.ones(40, dtype=x.dtype))
    assert float(made.mask[:, 0].mean()) > 0.9
    assert bool((made.delta[made.mask == 0] == 0).all())


def test_terms_add_up(denoiser):
    """A class and a measurement together: both are met, which neither does alone, and the datum is nearer than a fresh
    sample of the class."""
    x = LAW.sample(400, seed=9)
    x = x[seen(x) == 0]
    goal = Measurement([1.2], torch.tensor([[0.0, 1.0]]).double(), noise=0.3)
    edit = lambda target, goals: rd.edit(denoiser, x, 0, target, goals=goals, steps=60, progress=False).x  # noqa: E731
    both, alone, measured = edit(1, goal), edit(1, ()), edit(None, goal)
    miss = lambda v: float((v[:, 1] - 1.2).abs().mean())  # noqa: E731
    recognised = lambda v: float((seen(v) == 1).double().mean())  # noqa: E731
    assert recognised(both) > 0.95 and recognised(measured) < 0.05
    assert miss(both) < 0.5 * miss(alone)
    fresh = rd.sample(denoiser, len(x), label=1, progress=False).x
    assert float((measured - x).square().mean()) < float((fresh - x).square().mean())


def test_user_units(denoiser):
    """A scale is passed through: the same edit in other units."""
    x, label = data(5)
    plain = rd.edit(denoiser, x, label, 1 - label, steps=5, progress=False)
    denoiser.scale = Scale([3.0, -1.0], [2.0, 0.5])
    scaled = rd.edit(denoiser, denoiser.scale.inverse(x), label, 1 - label, steps=5, progress=False)
    assert float((denoiser.scale(scaled.x) - plain.x).abs().max()) < 1e-10


def test_one_datum_and_times(denoiser):
    x, label = data(1)
    made = rd.edit(denoiser, x[0], int(label), 1 - int(label), grid=[0.9, 0.6, 0.3, 0.0], progress=False)
    assert made.x.shape == (1, 2) and len(made) == 1 and made.nfe == 6
    early, late = (rd.edit(denoiser, x, label, 1 - label, start=s, progress=False).distance for s in (1.0, 0.15))
    assert float(late) < 0.7 * float(early)


def test_bad_input(denoiser):
    x, _ = data(4)
    evaluated = []
    denoiser.register_forward_pre_hook(lambda *_: evaluated.append(1))
    bad = [
        ((x, 0), {}, "nothing to change"),
        ((x, 0, 7), {}, "out of range"),
        ((x, [0, 1], 1), {}, "2 values of 'label' for 4 data"),
        ((x, {"lable": 0}, 1), {}, "Did you mean 'label'"),
        ((x[:, :1], 0, 1), {}, r"data of this denoiser are \(n, 2\)"),
        ((x * math.nan, 0, 1), {}, "NaN"),
        ((x, 0, 1), {"method": "turboo"}, "Did you mean 'turbo'"),
        ((x, 0, 1), {"steps": 0}, "at least 1"),
        ((x, 0, 1), {"start": 0.0}, "start is a time"),
        ((x, 0, 1), {"grid": [0.5, 0.1]}, "end at 0"),
        ((x, 0, 1), {"guidance": (1.0,)}, "pair"),
        ((x, 0, 1), {"guidance": math.inf}, "finite"),
        ((x, 0, 1), {"mask": 1.5}, "between 0 and 1"),
        ((x, 0, 1), {"mask": torch.ones(3)}, "does not fit"),
        ((x, 0, 1), {"mask": torch.tensor([2.0, 0.0])}, "between 0, keep"),
        ((x, 0, 1), {"batch_size": 0}, "batch_size"),
        ((x, 0, 1), {"stepz": 3}, "unknown option 'stepz'"),
        ((x, 0, None), {"goals": Measurement([1.0, 2.0, 3.0], torch.ones(1, 2), noise=0.1)}, "measurements of shape"),
    ]
    for arguments, words, message in bad:
        with pytest.raises(InputError, match=message):
            rd.edit(denoiser, *arguments, progress=False, **words)
    with pytest.raises(InputTypeError, match="tensor"):
        rd.edit(denoiser, [1.0, 2.0], 0, 1)  # type: ignore[arg-type]
    two_ended = LAW.denoiser(Interpolant(), x1=LAW)
    with pytest.raises(InputError, match="one clean end"):
        rd.edit(two_ended, x, 0, 1)
    assert not evaluated


def test_an_edit_that_overflows_says_so():
    class Bad(nn.Module):
        def forward(self, x, t, label=None):
            return x * math.inf

    broken = Denoiser.wrap(Bad(), VP(), "data", shape=(2,), conditions={"label": 2})
    with pytest.raises(NonFiniteError, match="t = 1 is not finite"):
        rd.edit(broken, torch.ones(2, 2), 0, 1, progress=False)
