"""The table of methods: what a word chooses, what it refuses and with which advice; `Marginals` and `Paths`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Cauchy, Normal

import retrodict as rd
from retrodict.core.errors import InputError, InputTypeError
from retrodict.inference import Conditioned, Observed, Paths, StateSpace, methods
from retrodict.inference.posterior import condition_model, register
from retrodict.kernels import Categorical, Finite, Gaussian, LinearGaussian

WALK = StateSpace(Gaussian(torch.zeros(1), 1.0), LinearGaussian(1.0, 0.0, 0.5), LinearGaussian(1.0, 0.0, 1.0))
BENT = StateSpace(Gaussian(torch.zeros(1), 1.0), lambda x: Normal(torch.sin(x), 0.5), lambda x: Normal(x, 1.0))
CHAIN = StateSpace(
    Categorical.of(torch.tensor([0.5, 0.5])), Finite.of(torch.tensor([[0.9, 0.1], [0.2, 0.8]])), Finite.of(torch.eye(2))
)
Y = Observed([0.3, float("nan"), 1.1])


def test_auto_is_exact_where_there_is_a_closed_form() -> None:
    for model, data in ((WALK, Y), (CHAIN, Observed(np.array([0, -1, 1])))):
        post = rd.condition(model, data, particles=10, seed=3)  # nothing is random or weighted in the exact route
        assert post.exact and post.method == "exact" and post.log_evidence_se is None and post.ess is None
        assert "exact" in repr(post) and "StateSpace" in repr(post)
    post.smooth()
    assert "smooth" in repr(post)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rd.condition(WALK, Y, "exakt"), r"unknown method 'exakt'; for StateSpace .*Did you mean 'exact'"),
        (
            lambda: rd.condition(BENT, Y, "exact"),
            r"'exact' does not apply: the transition is not known .*do: .*extended",
        ),
        (lambda: rd.condition(CHAIN, Observed(np.array([0, 1])), "extended"), r"the states are finite.*do: .*exact"),
        (lambda: rd.condition(WALK, Y, rotue="scan"), r"takes no 'rotue'; it takes: route. Did you mean 'route'"),
        (lambda: rd.condition(WALK, Y, "exact", particles=10), "takes no 'particles'"),
        (lambda: rd.condition(WALK, Y, start=[0.0]), "takes no 'start'"),
        (lambda: rd.condition(WALK, Y).forecast(2, of="states"), "forecast of is 'state' or 'observation'"),
        (lambda: rd.condition(WALK, Y).forecast(0), "give 1 or more"),
    ],
)
def test_errors_say_what_to_do(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator]


def test_wrong_kinds_are_named() -> None:
    with pytest.raises(InputTypeError, match=r"a Denoiser or a model \(.*StateSpace.*\), got int"):
        rd.condition(3, Y)
    with pytest.raises(InputTypeError, match=r"conditioned on Observed\(y, times=...\), got list"):
        rd.condition(WALK, [1.0])
    with pytest.raises(InputError, match="the prior is Cauchy, not Gaussian"):
        rd.condition(StateSpace(Cauchy(torch.zeros(1), 1.0), WALK.given[1], WALK.given[2]), Y, "exact")


def test_models_of_any_kind_register_their_methods() -> None:
    """A new type of model needs no edit elsewhere: auto takes the first method that applies."""

    class Model: ...

    class Child(Model): ...

    class Post(Conditioned):
        def __init__(self, model: object, data: Observed, scale: float = 1.0) -> None:
            super().__init__(model, data)
            self.scale = scale

    try:
        register("exact", Model, why_not=lambda m, d: "never does", auto=0)(lambda m, d: Post(m, d))
        register("rough", Model, auto=5)(lambda m, d, scale=2.0: Post(m, d, scale))
        post = condition_model(Child(), Y)
        assert post.method == "rough" and post.scale == 2.0
        assert condition_model(Child(), Y, options={"scale": 7.0, "steps": None}).scale == 7.0
        with pytest.raises(InputError, match=r"'exact' does not apply: never does. Those that do: rough"):
            condition_model(Model(), Y, "exact")
        with pytest.raises(InputError, match=r"method='rough' is for Model; for StateSpace there are: auto, .*exact"):
            condition_model(WALK, Y, "rough")
        with pytest.raises(InputError, match=r"'rough' on Child does not give 'smooth'"):
            post.smooth()
        with pytest.raises(InputError, match="registered already for Model"):
            register("rough", Model)(lambda m, d: Post(m, d))
    finally:
        methods["exact"].pop(Model, None)
        methods._table.pop("rough", None)


def test_the_shorthands_are_condition_and_a_verb() -> None:
    data = Observed([0.3, float("nan"), 1.1], times=[0, 2, 3], noise=0.7)
    bare = StateSpace(WALK.given[0], WALK.given[1])
    post = rd.condition(bare, data)
    for verb in ("filter", "smooth"):
        laws = getattr(rd, verb)(bare, [0.3, float("nan"), 1.1], times=[0, 2, 3], noise=0.7)
        assert torch.equal(laws.mean, getattr(post, verb)().mean) and laws.exact
        assert torch.allclose(laws.log_evidence, post.log_evidence, atol=1e-12, rtol=0)
    assert torch.equal(rd.smooth(bare, data).mean, post.smooth().mean)
    assert not rd.smooth(BENT, data.y[0], method="extended").exact


def test_paths_weigh_and_resample() -> None:
    x = torch.tensor([[[[1.0]], [[5.0]]], [[[3.0]], [[7.0]]]])  # two draws of two series of one time
    paths = Paths(x, torch.tensor([[0.0, 0.0], [np.log(3.0), -np.inf]]), torch.zeros(2, 1))
    assert paths.mean().flatten().tolist() == pytest.approx([2.5, 5.0])
    assert paths.mean(lambda x: x[..., 0, 0] ** 2).tolist() == pytest.approx([7.0, 25.0])
    assert paths.ess.tolist() == pytest.approx([1 / (1 / 16 + 9 / 16), 1.0])
    again = paths.resample(seed=1)
    assert again.x[:, 1].flatten().tolist() == [5.0, 5.0] and again.log_weights.tolist() == [[0.0, 0.0]] * 2
    counts = sum(int((paths.resample(seed=s).x[:, 0] == 3.0).sum()) for s in range(400))
    assert abs(counts - 600) < 5 * (400 * 0.25) ** 0.5  # systematic: 1 or 2 of 2 with equal chances; five deviations


def test_condition_still_guides_denoisers() -> None:
    from retrodict.exact import Atoms
    from retrodict.processes import VP

    denoiser = Atoms(torch.randn(5, 2)).denoiser(VP())
    with pytest.raises(TypeError, match=r"evidence about a denoiser is a Potential .*; got Observed"):
        rd.condition(denoiser, Y)
    with pytest.raises(InputError, match="guidance is one method"):
        rd.condition(denoiser, rd.Guidance(2.0), "exact")
    with pytest.raises(InputError, match="guidance needs a denoiser with a condition"):
        rd.condition(denoiser, rd.Guidance(1.0))  # reached: this one has none
