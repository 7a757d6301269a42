"""Results as pandas, xarray and ArviZ objects; the labels of the user's times come back.

Columns and coordinates: a law of real states has ``mean`` and ``std`` of each coordinate, a law of finite states the
probability ``p`` of each state.  A batch of series has the index (series, time); padding is left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrodict.core.errors import InputError, optional_import
from retrodict.inference.results import Marginals, Paths


def marginals_to_pandas(laws: Marginals) -> Any:
    """A DataFrame: index time, or (series, time) for a batch; columns ``mean``, ``std`` (``mean_0``, ... in several
    dimensions), or ``p_0``, ``p_1``, ... of finite states."""
    pandas: Any = optional_import("pandas", "inference")
    real = ~torch.isnan(laws.times)
    blocks = []
    for s in range(len(real)):
        keep = real[s]
        blocks.append({name: _array(value[s, keep]) for name, value in _columns(laws).items()})
    name = laws.axis.name or "time"
    frames = [
        pandas.DataFrame(block, index=pandas.Index(laws.axis.labels(_array(laws.times[s, real[s]]))).rename(name))
        for s, block in enumerate(blocks)
    ]
    if laws.single:
        return frames[0]
    return pandas.concat(frames, keys=range(len(frames)), names=["series", name])


def _columns(laws: Marginals) -> dict[str, Tensor]:
    """Name -> ``(S, N)``."""
    if laws.probabilities is not None:
        return {f"p_{j}": laws.probabilities[..., j] for j in range(laws.probabilities.shape[-1])}
    assert laws.mean is not None
    d = laws.mean.shape[-1]
    tail = [""] if d == 1 else [f"_{j}" for j in range(d)]
    means = {f"mean{t}": laws.mean[..., j] for j, t in enumerate(tail)}
    return means | {f"std{t}": laws.std[..., j] for j, t in enumerate(tail)}


def _time(results: Marginals | Paths) -> tuple[dict[str, Any], str]:
    """Coordinates of time, and the name of its dimension: "time" where all series share it, else "step"."""
    times = results.times
    shared = bool(torch.isfinite(times).all()) and bool((times == times[:1]).all())
    if shared:
        labels = results.axis.labels(_array(times[0]))
        return {"time": labels.rename("time") if hasattr(labels, "rename") else labels}, "time"
    return {"time": (("series", "step"), _array(times))}, "step"


def marginals_to_xarray(laws: Marginals) -> Any:
    """A Dataset: ``mean (series, time, coordinate)``, ``covariance`` with a second coordinate axis, or
    ``probability (series, time, state)``; series of times of their own have the dimension "step" and ``time`` as a
    coordinate over (series, step).  The dimension series is dropped where there is no batch."""
    xarray: Any = optional_import("xarray", "inference")
    coords, name = _time(laws)
    lead = ("series", name)
    values: dict[str, Any] = {}
    if laws.probabilities is not None:
        values["probability"] = ((*lead, "state"), _array(laws.probabilities))
    else:
        assert laws.mean is not None and laws.covariance is not None
        values["mean"] = ((*lead, "coordinate"), _array(laws.mean))
        values["std"] = ((*lead, "coordinate"), _array(laws.std))
        values["covariance"] = ((*lead, "coordinate", "coordinate_"), _array(laws.covariance))
    if laws.log_evidence is not None:
        values["log_evidence"] = (("series",), _array(laws.log_evidence))
    dataset = xarray.Dataset(values, coords=coords, attrs={"of": laws.what, "exact": int(laws.exact)})
    return dataset.isel(series=0) if laws.single else dataset


def paths_to_xarray(paths: Paths) -> Any:
    """A Dataset: ``x (draw, series, time[, coordinate])`` and ``log_weight (draw, series)``."""
    xarray: Any = optional_import("xarray", "inference")
    coords, name = _time(paths)
    tail = ("coordinate",) if paths.x.ndim == 4 else ()
    values = {
        "x": (("draw", "series", name, *tail), _array(paths.x)),
        "log_weight": (("draw", "series"), _array(paths.log_weights)),
    }
    dataset = xarray.Dataset(values, coords=coords)
    return dataset.isel(series=0) if paths.single else dataset


def to_arviz(
    draws: Paths | Mapping[str, Tensor | np.ndarray],
    *,
    states: Paths | None = None,
    observed: Mapping[str, Any] | None = None,
    sample_stats: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Any:
    """ArviZ InferenceData.

    Args:
        draws: hidden paths (the variable ``x``, one chain), or parameters by name, each ``(chain, draw, *shape)``.
        states: paths beside parameters: as many as chains times draws.
        observed: the group ``observed_data``; sample_stats: by name, ``(chain, draw)``.
        seed: weighted paths are first resampled to equal weights with it.
    """
    arviz = _arviz()
    if isinstance(draws, Paths):
        states, draws, chains = draws, {}, 1
    else:
        draws = {name: _array(value) for name, value in draws.items()}
        leads = {value.shape[:2] for value in draws.values()}
        if len(leads) != 1:
            raise InputError(f"parameters are (chain, draw, ...) with equal first axes, got {sorted(leads)}")
        chains = next(iter(leads))[0]
    posterior, dims, coords = dict(draws), {}, {}
    if states is not None:
        if states.x.shape[0] % chains:
            raise InputError(f"{states.x.shape[0]} paths do not divide into {chains} chains")
        even = bool((states.log_weights == states.log_weights[:1]).all())
        x = _array((states if even else states.resample(seed)).x)
        posterior["x"] = x.reshape(chains, -1, *x.shape[1:])
        dims["x"] = ["series", "time", *(["coordinate"] if x.ndim == 4 else [])]
        times, name = _time(states)
        if name == "time":
            coords["time"] = times["time"]
        if states.single:
            posterior["x"], dims["x"] = posterior["x"][:, :, 0], dims["x"][1:]
    groups: dict[str, Any] = {"posterior": posterior}
    if observed:
        groups["observed_data"] = {key: _array(value) for key, value in observed.items()}
    if sample_stats:
        groups["sample_stats"] = {key: _array(value) for key, value in sample_stats.items()}
    return arviz.from_dict(**groups, dims=dims, coords=coords)


def _arviz() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next major version at every import
        return optional_import("arviz", "inference")


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
