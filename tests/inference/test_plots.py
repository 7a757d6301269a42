"""Plots draw what the results say: the artists' data are read back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import retrodict as rd
from retrodict.core.errors import InputError
from retrodict.inference import plots
from retrodict.kernels import Categorical, Finite, Gaussian, LinearGaussian

WALK = rd.StateSpace(Gaussian(torch.zeros(2), 1.0), LinearGaussian(1.0, 0.0, 0.5), LinearGaussian(1.0, 0.0, 1.0))


def test_bands_hold_the_interval() -> None:
    post = rd.condition(WALK, rd.Observed([torch.randn(3, 2), torch.randn(5, 2)], times=[[0, 1, 4], [0, 1, 2, 3, 5]]))
    laws = post.smooth()
    ax = laws.plot(series=1, level=0.5, observed=np.ones((5, 2)))
    lines = [line for line in ax.lines if len(line.get_xdata()) == 5]
    assert len(lines) == 4 and lines[0].get_xdata().tolist() == [0, 1, 2, 3, 5]
    assert lines[2].get_ydata() == pytest.approx(laws.mean[1, :, 1].numpy())
    corners = ax.collections[1].get_paths()[0].vertices
    low, high = laws.interval(0.5)
    assert corners[:, 1].min() == pytest.approx(float(low[1, :, 1].min()))
    assert corners[:, 1].max() == pytest.approx(float(high[1, :, 1].max()))
    assert len(plots.marginals(laws, coordinates=[0]).lines) == 1
    assert float((high - low)[1, 0, 0]) == pytest.approx(2 * 0.6744897501960817 * float(laws.std[1, 0, 0]))
    with pytest.raises(InputError, match="level is a probability"):
        laws.interval(90)


def test_probabilities_are_stacked_on_labelled_times() -> None:
    chain = rd.StateSpace(
        Categorical.of(torch.tensor([0.5, 0.5])),
        Finite.of(torch.full((2, 2), 0.5)),
        lambda x: torch.distributions.Normal(x.double(), 1.0),
    )
    y = pd.Series([0.1, 0.9, 0.4], index=pd.period_range("2020", periods=3, freq="Y"))
    post = rd.condition(chain, rd.Observed(y))
    ax = post.smooth().plot()
    assert len(ax.collections) == 2 and ax.get_ylim() == (0, 1)
    edge = ax.collections[0].get_paths()[0].vertices[:, 1].max()
    assert edge == pytest.approx(float(post.smooth().probabilities[0, :, 0].max()))
    assert ax.get_xlim()[0] == pytest.approx((pd.Timestamp("2020-01-01") - pd.Timestamp("1970-01-01")).days, abs=40)
    steps = post.sample(7).plot()
    assert len(steps.lines) == 7 and steps.lines[0].get_drawstyle() == "steps-post"


def test_heavier_paths_are_darker() -> None:
    from dataclasses import replace

    draws = rd.condition(WALK, rd.Observed(torch.randn(4, 2))).sample(3)
    draws = replace(draws, log_weights=torch.tensor([[0.0], [-1.0], [-9.0]]).double())
    ax = draws.plot(coordinate=1)
    assert ax.lines[1].get_ydata() == pytest.approx(draws.x[1, 0, :, 1].numpy())
    shades = [line.get_alpha() for line in ax.lines]
    assert shades[0] > shades[1] > shades[2]


def test_effective_sample_sizes() -> None:
    values = torch.rand(6, 2) * 100
    ax = plots.ess(values, particles=100)
    assert ax.lines[1].get_ydata() == pytest.approx(values[:, 1].numpy()) and len(ax.lines) == 3
    assert len(plots.ess(values[:, 0]).lines) == 1


def test_ancestry_tells_living_lines_from_dead_ones() -> None:
    ancestors = [torch.tensor([[0, 0, 2]]), torch.tensor([[1, 1, 1]])]
    ax = plots.ancestry(ancestors)
    dead, living = (
        sorted((int(s[0][0]), int(s[0][1]), int(s[1][1])) for s in c.get_segments()) for c in ax.collections
    )
    assert living == [(0, 0, 1), (1, 1, 0), (1, 1, 1), (1, 1, 2)]
    assert dead == [(0, 0, 0), (0, 2, 2)]
    x = [torch.arange(3.0)[None, :, None] + k for k in range(3)]
    heights = plots.ancestry(ancestors, x).collections[1].get_segments()
    assert {tuple(s[:, 1]) for s in heights} == {(0.0, 2.0), (2.0, 2.0), (2.0, 3.0), (2.0, 4.0)}
    with pytest.raises(InputError, match="2 steps have 3 layers"):
        plots.ancestry(ancestors, x[:2])


def test_trees_are_laid_out_without_crossings() -> None:
    edges = [("a", "b", 1), ("a", "c", 2), ("b", "d"), ("b", "e", 3), ("c", "f", 0.5)]
    ax = plots.tree(edges, values=dict.fromkeys("abcdef", 1.0))
    names = [a.get_text() for a in ax.texts]
    place = dict(zip(names, ax.collections[0].get_offsets().tolist()))
    assert {v: x for v, (x, _) in place.items()} == {"a": 0, "b": 1, "c": 2, "d": 2, "e": 4, "f": 2.5}
    assert place["b"][1] == pytest.approx((place["d"][1] + place["e"][1]) / 2)
    assert [place[v][1] for v in "def"] == [0, 1, 2] and place["c"][1] == place["f"][1]
    assert not plots.tree([(0, 1), (0, 2)], labels=False).texts
    for bad in ([(0, 1), (2, 3)], [(0, 2), (1, 2)]):
        with pytest.raises(InputError, match="do not make one rooted tree"):
            plots.tree(bad)
    with pytest.raises(InputError, match=r"no number for the vertices \['f'\]"):
        plots.tree(edges, values=dict.fromkeys("abcde", 1.0))
