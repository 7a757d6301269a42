"""Results come back as pandas, xarray and ArviZ objects with the labels that went in."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import retrodict as rd
from retrodict.core.errors import InputError, MissingExtraError
from retrodict.inference import Conditioned, io
from retrodict.kernels import Categorical, Finite, Gaussian, LinearGaussian

WALK = rd.StateSpace(Gaussian(torch.zeros(2), 1.0), LinearGaussian(1.0, 0.0, 0.5), LinearGaussian(1.0, 0.0, 1.0))
MONTHS = pd.date_range("2020-01-01", periods=4, freq="MS", name="month")
FRAME = pd.DataFrame({"a": [1.0, np.nan, 3.0, 4.0], "b": [0.0, 1.0, 0.5, 2.0]}, index=MONTHS)
CHAIN = rd.StateSpace(
    Categorical.of(torch.tensor([0.5, 0.5])), Finite.of(torch.tensor([[0.9, 0.1], [0.2, 0.8]])), Finite.of(torch.eye(2))
)


def posterior(data: object) -> Conditioned:
    return rd.condition(WALK, rd.Observed(data))


def test_pandas_in_pandas_out() -> None:
    post = posterior(FRAME)
    table = post.smooth().to_pandas()
    assert table.index.equals(MONTHS) and table.index.name == "month"
    assert list(table.columns) == ["mean_0", "mean_1", "std_0", "std_1"]
    assert table["mean_1"].to_numpy() == pytest.approx(post.smooth().mean[0, :, 1].numpy(), abs=0)
    assert table["std_0"].to_numpy() == pytest.approx(post.smooth().std[0, :, 0].numpy(), abs=0)
    ahead = post.forecast(pd.DatetimeIndex(["2020-06-01", "2020-09-01"])).to_pandas()
    assert list(ahead.index) == list(pd.DatetimeIndex(["2020-06-01", "2020-09-01"]))
    assert post.forecast(1).to_pandas().index[0] == pd.Timestamp("2020-05-01")
    periods = posterior(FRAME.to_period("M")).smooth().to_pandas()
    assert periods.index.equals(FRAME.to_period("M").index) and periods.to_numpy() == pytest.approx(table.to_numpy())


def test_a_batch_has_an_index_of_series_and_time_without_padding() -> None:
    post = posterior([FRAME, FRAME.iloc[:2]])
    table = post.filter().to_pandas()
    assert table.index.names == ["series", "month"] and len(table) == 6
    assert list(table.loc[1].index) == list(MONTHS[:2])
    assert table.loc[1, "mean_0"].to_numpy() == pytest.approx(table.loc[0, "mean_0"].to_numpy()[:2])


def test_finite_states() -> None:
    laws = rd.smooth(CHAIN, np.array([0, -1, 1]))
    table = laws.to_pandas()
    assert list(table.columns) == ["p_0", "p_1"] and table.to_numpy().sum(1) == pytest.approx(1.0)
    assert laws.to_xarray()["probability"].dims == ("time", "state")
    assert laws.mode.tolist() == [[0, 0, 1]]
    with pytest.raises(InputError, match="no standard deviation"):
        _ = laws.std


def test_xarray_in_xarray_out() -> None:
    array = xr.DataArray(np.ones((2, 4, 2)), dims=("series", "time", "channel"), coords={"time": MONTHS.rename("time")})
    data = posterior(array).smooth().to_xarray()
    assert data["mean"].dims == ("series", "time", "coordinate") and data.sizes["series"] == 2
    assert (data["time"].to_numpy() == MONTHS.to_numpy()).all()
    assert np.allclose(np.diagonal(data["covariance"], axis1=-2, axis2=-1) ** 0.5, data["std"])
    single = posterior(FRAME).smooth().to_xarray()
    assert single["mean"].dims == ("time", "coordinate") and float(single["log_evidence"]) < 0
    ragged = posterior([FRAME, FRAME.iloc[:2]]).smooth().to_xarray()
    assert ragged["mean"].dims == ("series", "step", "coordinate") and ragged["time"].dims == ("series", "step")
    paths = posterior(FRAME).sample(5).to_xarray()
    assert paths["x"].dims == ("draw", "time", "coordinate") and paths["log_weight"].shape == (5,)


def test_draws_to_arviz() -> None:
    import arviz

    paths = posterior(FRAME).sample(6)
    found = paths.to_arviz()
    assert found.posterior["x"].dims == ("chain", "draw", "time", "coordinate")
    assert (found.posterior["x"].to_numpy()[0] == paths.x[:, 0].numpy()).all()
    assert (found.posterior["time"].to_numpy() == MONTHS.to_numpy()).all()
    draws = {"sigma": torch.rand(2, 3), "A": torch.rand(2, 3, 2, 2)}
    both = io.to_arviz(draws, states=paths, observed={"y": FRAME.to_numpy()}, sample_stats={"lp": torch.rand(2, 3)})
    assert both.posterior["x"].shape == (2, 3, 4, 2) and both.posterior["A"].shape == (2, 3, 2, 2)
    assert set(both.groups()) == {"posterior", "observed_data", "sample_stats"}
    assert (both.posterior["x"].to_numpy()[1, 0] == paths.x[3, 0].numpy()).all()
    assert arviz.summary(both, var_names=["sigma"]).shape[0] == 1
    with pytest.raises(InputError, match="equal first axes"):
        io.to_arviz({"a": torch.rand(2, 3), "b": torch.rand(3, 2)})
    with pytest.raises(InputError, match="6 paths do not divide into 4 chains"):
        io.to_arviz({"a": torch.rand(4, 3)}, states=paths)


def test_weighted_draws_are_resampled_for_arviz() -> None:
    from dataclasses import replace

    paths = posterior(FRAME).sample(4)
    one = replace(paths, log_weights=torch.tensor([[0.0], [-torch.inf], [-torch.inf], [-torch.inf]]).double())
    x = one.to_arviz().posterior["x"].to_numpy()[0]
    assert (x == paths.x[0, 0].numpy()).all()


def test_a_missing_extra_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    laws = posterior(torch.ones(3, 2)).smooth()
    for module, use in (("pandas", laws.to_pandas), ("xarray", laws.to_xarray)):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=r"pip install 'retrodict\[inference\]'"):
            use()
