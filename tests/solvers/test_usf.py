"""Choices at every step reproduce the solvers that they are made of; compensation is what its equation says."""

from __future__ import annotations

import numpy as np
import pytest

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.diagnostics import certificate
from retrodict.solvers.cascade import Cascade
from solvers.solver_cases import ONE_ENDED

PAIRS = [
    ({"orders": (1,), "correctors": (False,)}, "ddim", {}),
    ({"correctors": (False,), "variants": ("bh2",)}, "dpm++2m", {}),
    ({"variants": ("bh1",)}, "unipc", {"variant": "bh1"}),
    ({"variants": ("bh2",)}, "unipc", {}),
    ({"orders": (3,), "kinds": ("noise",)}, "unipc", {"order": 3, "kind": "noise", "variant": "exact"}),
    ({"orders": (3,), "kinds": ("flow",)}, "adams", {"order": 3, "kind": "flow", "corrector": True}),
    ({"orders": (2,), "kinds": ("velocity",), "correctors": (False,)}, "velocity-ab", {"grid": "logsnr"}),
    (
        {"orders": (3,), "kinds": ("flow",), "taus": ("angle",)},
        "adams",
        {"order": 3, "kind": "flow", "tau": "angle", "corrector": True},
    ),
    ({"ratios": (1.0, 1.0, 1.0)}, "unipc", {"variant": "exact"}),
]


@pytest.mark.parametrize("process", ONE_ENDED)
@pytest.mark.parametrize(("choices", "name", "options"), PAIRS, ids=[f"{i}-{p[1]}" for i, p in enumerate(PAIRS)])
def test_equal_choices_are_the_solver_itself(process, choices, name, options):
    for words in ({"steps": 7, "grid": "logsnr"}, {"steps": 6, "grid": "uniform", "end": 0.02}):
        own = rd.plan("usf", ONE_ENDED[process], **words, **choices)
        assert own.equivalent(rd.plan(name, ONE_ENDED[process], **{**words, **options, "grid": words["grid"]}), 1e-10)


def test_steps_may_differ():
    """A plan that changes its mind is neither of the two, and starts as the first of them."""
    words = {"steps": 6, "correctors": (False,), "final": False, "end": 0.02}
    mixed = rd.plan("usf", rd.VP(), kinds=("data", "data", "noise"), **words).normal_form()
    data, noise = (rd.plan("usf", rd.VP(), kinds=(kind,), **words).normal_form() for kind in ("data", "noise"))
    np.testing.assert_allclose(mixed.inputs[:3], data.inputs[:3], atol=1e-13)
    assert np.abs(mixed.inputs[3] - data.inputs[3]).max() > 1e-3
    assert np.abs(mixed.output - noise.output).max() > 1e-4


def test_compensation_reads_outputs_at_a_shifted_time():
    """The last row of an uncorrected first-order plan is the interpolated output; the numbers are worked out by hand.

    At times .9, .6, .3 and ratio r the output of the third evaluation is read at s = .3 r + .6 (1 - r), on the
    quadratic through the three: (s - .9)(s - .6)/.18, -(s - .9)(s - .3)/.09, (s - .6)(s - .3)/.18 from the last back.
    """
    words = {"grid": [0.9, 0.6, 0.3, 0.0], "orders": (1,), "correctors": (False,), "start": 0.9}
    ratio = 1.4
    plan = rd.plan("dc-solver", rd.VP(), ratios=(ratio,), **words)
    s = 0.3 * ratio + 0.6 * (1 - ratio)
    by_hand = [(s - 0.6) * (s - 0.3) / 0.18, -(s - 0.9) * (s - 0.3) / 0.09, (s - 0.9) * (s - 0.6) / 0.18]
    np.testing.assert_allclose(plan.normal_form().data_weights, by_hand, atol=1e-12)


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
def test_a_constant_denoiser_stays_exact_under_compensation(kind):
    plan = rd.plan("usf", rd.VP("cosine"), steps=7, end=0.01, kinds=(kind,), orders=(3,), ratios=(1.3, 0.7, 1.1, 0.9))
    finding = certificate.constant_identity(plan, tol=1e-9)
    assert finding, finding


def test_later_outputs_are_compensated_from_compensated_ones():
    """With ratio 1 at the fourth evaluation, changing the third's still changes what the last step holds."""
    words = {"steps": 5, "orders": (3,), "end": 0.05}
    a = rd.plan("dc-solver", rd.VP(), ratios=(1.2, 1.0), **words).normal_form()
    b = rd.plan("dc-solver", rd.VP(), **words).normal_form()
    np.testing.assert_allclose(a.inputs[:3], b.inputs[:3], atol=1e-13)  # the third evaluation is made as before
    assert np.abs(a.inputs[4] - b.inputs[4]).max() > 1e-4


def test_a_cascade_finds_the_polynomial_that_made_the_ratios():
    """Ratios of a cascade written down come back at budgets and scales that the fit has not seen."""
    rng = np.random.default_rng(3)
    truth = Cascade(rng.normal(size=(4, 3, 3)))
    seen = {(n, w): truth.at(w).ratios(n) for n in (5, 8, 12, 20, 30) for w in (1.0, 3.0, 5.0, 7.5)}
    found = Cascade.fit(seen, decay=1e-14)
    np.testing.assert_allclose(found.at(4.0).ratios(10), truth.at(4.0).ratios(10), rtol=1e-4)


def test_a_cascade_is_an_option_of_the_plan(tmp_path):
    cascade = Cascade.fit({(5, 1.0): [1.1, 1.2, 0.9], (7, 3.0): [1.0, 1.1, 1.2, 1.3, 0.8]})
    np.testing.assert_allclose(cascade.at(1.0).ratios(5), [1.1, 1.2, 0.9], atol=0.02)
    plan = rd.plan("dc-solver", rd.VP(), nfe=6, ratios=cascade.at(3.0))
    assert plan == rd.plan("dc-solver", rd.VP(), nfe=6, ratios=cascade.at(3.0).ratios(6))
    plan.save(tmp_path / "plan.json")
    again = rd.Plan.load(tmp_path / "plan.json")
    assert again == plan and again.between(0.5) == plan.between(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orders": (0,)}, "orders are integers from 1 to 6"),
        ({"orders": ()}, "at least one entry"),
        ({"kinds": ("nose",)}, "noise"),
        ({"variants": ("bh3",)}, "bh"),
        ({"taus": ("lambada",)}, "lambda"),
        ({"ratios": 1.2}, "list of numbers or a Cascade"),
        ({"ratios": {"coefficients": [1.0]}}, "shape"),
    ],
)
def test_wrong_choices_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        rd.plan("usf", rd.VP(), steps=5, **options)


def test_a_cascade_refuses_lists_of_the_wrong_length():
    with pytest.raises(InputError, match="3 ratios"):
        Cascade.fit({(5, 1.0): [1.0]})
    with pytest.raises(InputError, match="no ratios"):
        Cascade.fit({})
