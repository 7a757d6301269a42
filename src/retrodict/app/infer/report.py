"""The report of `retrodict infer`: paths with bands, residuals, effective sample size, parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from retrodict.app.infer.fitting import Summary, summaries
from retrodict.app.infer.results import LEVEL, Results
from retrodict.app.info import versions
from retrodict.app.report import Block, Card, Code, LineChart, Report, Section, Series, Table, Text, write_report
from retrodict.inference import Marginals

MOST_PATHS = 8  # draws shown in one chart
MOST_ROWS = 12  # of the table of laws
LAGS = 20
MOST_CARDS = 4  # one row
BINS = 24


def write_infer_report(
    out: Path, title: str, config: Mapping[str, Any], values: Any, results: Results, fit: Any
) -> Path:
    """Write ``report.html`` in the folder."""
    post = results.post
    sections = [Section("Hidden paths", _paths(values, results), lead=_lead(results))]
    if fit is not None:
        sections.append(Section("Parameters", _parameters(fit), lead=_fit_lead(fit)))
    sections.append(Section("Residuals", _residuals(values, results), lead=_residual_lead(results)))
    if post.ess is not None:
        sections.append(Section("Effective sample size", _ess(results), lead=f"{post.route}."))
    sections.append(Section("Numbers", [_table(results)], lead="All rows are in smoothed.csv, paths in draws.npz."))
    sections.append(Section("Configuration", [Code(_yaml(config), caption="config.json has the same, and runs again")]))
    report = Report(
        title=title,
        subtitle=_subtitle(config["model"]),
        summary=f"{len(values)} times, {', '.join(values.columns)} seen; {post.method}: {post.route}.",
        cards=_cards(values, results, fit),
        sections=sections,
        environment=versions(),
    )
    return write_report(out / "report.html", report)


def _cards(values: Any, results: Results, fit: Any) -> list[Card]:
    numbers = results.metrics
    se = numbers["log_evidence_se"]
    cards = [
        Card(
            "Log evidence",
            f"{numbers['log_evidence']:.2f}",
            "" if se is None else f"± {1.96 * se:.2f}",
            "exact" if numbers["exact"] else "an estimate, with its 95% interval" if se is not None else "approximate",
        ),
        Card("Observations", f"{int(values.notna().to_numpy().sum())}", hint=_missing(values)),
    ]
    if numbers["ess"] is not None:
        size = getattr(results.post, "particles", None)
        hint = "independent paths that the weighted ones are worth" + (f", of {size:,}" if size else "")
        cards.append(Card("Effective sample size", f"{numbers['ess']:.0f}", hint=hint))
    if "residuals" in numbers:
        spread = numbers["residuals"]["std"]
        wanted = "1 if the model is right" if numbers["residuals"]["kind"] == "one step ahead" else "below 1"
        cards.append(Card("Residuals", f"{spread:.2f}", hint=f"their standard deviation; {wanted}"))
    for one in summaries(fit)[:2] if fit is not None else []:
        known = "" if math.isnan(one.spread) else f"{one.low:.3g} to {one.high:.3g}"
        hint = "fitted, with its 90% interval" if known else "fitted"
        cards.insert(1, Card(one.name, f"{one.value:.3g}", known, hint))
    return cards[:MOST_CARDS]


def _yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, default_flow_style=None, allow_unicode=True, width=88)


def _subtitle(model: Mapping[str, Any]) -> str:
    """The words of a model's section, without its numbers."""
    drift = model.get("drift")
    drift = drift.get("family") if isinstance(drift, Mapping) else drift
    return " · ".join(str(word) for word in (model["kind"], drift) if word)


def _missing(values: Any) -> str:
    gaps = int(values.isna().to_numpy().sum())
    return "none missing" if not gaps else f"{gaps} missing"


def _lead(results: Results) -> str:
    what = "Probabilities of the states" if results.built.finite else f"Means with {LEVEL:.0%} bands"
    more = len(results.table) - results.seen
    return f"{what}, given all data" + (f"; the last {more} times are a forecast." if more else ".")


def days(index: Any) -> tuple[list[float], bool]:
    """An index as numbers, and whether they are days since 1970."""
    array = np.asarray(index)
    if array.dtype.kind == "M":
        return (array.astype("datetime64[us]").astype(np.int64) / 86_400e6).tolist(), True
    return array.astype(float).tolist(), False


def _axis(laws: Marginals) -> tuple[list[float], bool]:
    return days(laws.axis.labels(laws.times[0].numpy()))


def _paths(values: Any, results: Results) -> list[Block]:
    x, dates = _axis(results.fine)
    name = str(values.index.name or "time")
    words: dict[str, Any] = {"dates": dates, "wide": True}
    if results.built.finite:
        assert results.laws.probabilities is not None
        p = results.laws.probabilities[0].detach().numpy()
        lines = [Series(state, x, p[:, k].tolist()) for k, state in enumerate(results.built.names)]
        return [LineChart("", name, "probability", lines, **words), *_seen_chart(values, name, words)]
    low, high = results.fine.interval(LEVEL)
    assert results.fine.mean is not None
    charts: list[Block] = []
    for j, state in enumerate(results.built.names):
        mean, a, b = (v[0, :, j].detach().tolist() for v in (results.fine.mean, low, high))
        lines = [Series("smoothed", x, mean, a, b)]
        column = _column_of(results, j)
        if column is not None:
            t, _ = days(values.index)
            lines.append(Series(f"observed {values.columns[column]}", t, values.iloc[:, column].tolist(), points=True))
        charts.append(LineChart(state, name, state, lines, **words))
    return [*charts, _draws(results, name, words)]


def _column_of(results: Results, j: int) -> int | None:
    """The observed column that is coordinate j plus noise, or None."""
    law = results.built.emission.law
    operator = getattr(law, "A", None)
    if operator is None:
        return None
    L = operator.value.reshape(operator.value.shape[-2:]).detach()
    unit = torch.eye(L.shape[1], dtype=L.dtype)[j]
    rows = [i for i in range(len(L)) if torch.equal(L[i], unit)]
    return rows[0] if rows else None


def _draws(results: Results, name: str, words: Mapping[str, Any]) -> LineChart:
    draws = results.draws.resample(0)
    x, _ = days(draws.axis.labels(draws.times[0].numpy()))
    lines = [Series("", x, draws.x[i, 0, :, 0].tolist()) for i in range(min(MOST_PATHS, len(draws)))]
    state = results.built.names[0]
    caption = f"{len(lines)} of {len(draws)} paths drawn given all data"
    return LineChart(f"Paths of {state}", name, state, lines, caption=caption, **words)


def _seen_chart(values: Any, name: str, words: Mapping[str, Any]) -> list[LineChart]:
    t, _ = days(values.index)
    lines = [Series(str(column), t, values[column].tolist(), points=True) for column in values.columns]
    return [LineChart("Observed", name, "observed", lines, **words)]


def _residual_lead(results: Results) -> str:
    if results.residuals is None:
        return "Categories have no residuals."
    if results.residual_kind == "one step ahead":
        return "One step ahead, in standard deviations: independent standard normals if the model is right."
    return (
        "What the smoothed path leaves of each observation, in standard deviations of the noise. They are smaller than "
        "one, since the path has seen the data; a pattern in time tells that the model misses something."
    )


def _residuals(values: Any, results: Results) -> list[Block]:
    if results.residuals is None:
        return []
    t, dates = days(values.index)
    charts: list[Block] = []
    for i, column in enumerate(values.columns):
        r = results.residuals[:, i]
        points = [Series("", t, r.tolist(), points=True)]
        name = str(values.index.name or "time")
        charts.append(LineChart(f"{column} over time", name, "residual", points, references={"": 0.0}, dates=dates))
        charts.append(_correlations(str(column), r))
    return charts


def _correlations(column: str, r: np.ndarray) -> LineChart:
    """Autocorrelations over the pairs where both are seen, and the band of independent errors."""
    lags = list(range(1, min(LAGS, max(2, len(r) // 3)) + 1))
    z = (r - np.nanmean(r)) / max(float(np.nanstd(r)), 1e-300)
    found = []
    for lag in lags:
        pairs = z[lag:] * z[:-lag]
        found.append(float(np.nanmean(pairs)) if np.isfinite(pairs).any() else float("nan"))
    bound = 1.96 / np.sqrt(max(1, int(np.isfinite(r).sum())))
    return LineChart(
        f"{column}: autocorrelation",
        "lag",
        "correlation",
        [Series("", lags, found, points=True)],
        references={"": bound, " ": -bound},
        caption="dotted: where 95% of independent errors would lie",
    )


def _ess(results: Results) -> list[Block]:
    post = results.post
    assert post.ess is not None
    text = Text(
        f"The weighted paths are worth {float(post.ess[0]):.0f} independent ones. Below about 100, bands and evidence "
        "are rough: take more particles, or another method."
    )
    if results.ess is None:
        return [text]
    nodes, sizes = results.ess
    lines = [Series("", nodes.tolist(), sizes.tolist())]
    size = getattr(post, "particles", None)
    references = {"particles": float(size)} if size else {}
    return [text, LineChart("Along the run", "node", "effective sample size", lines, references=references)]


def _table(results: Results) -> Table:
    table = results.table.reset_index()
    picks = np.unique(np.linspace(0, len(table) - 1, min(MOST_ROWS, len(table))).round().astype(int))
    rows = [[v if isinstance(v, str) else _plain(v) for v in table.iloc[i].tolist()] for i in picks]
    return Table([str(c) for c in table.columns], rows, caption=f"{len(rows)} of {len(table)} times")


def _plain(value: Any) -> str | float:
    return float(value) if isinstance(value, int | float | np.number) else str(value)


def _fit_lead(fit: Any) -> str:
    end = f"Fitted by {fit.method}; {fit.message}." if fit.message else f"Fitted by {fit.method}."
    at = "The paths above are those at the posterior mean." if fit.draws is not None else ""
    return f"{end} {at}".strip()


def _parameters(fit: Any) -> list[Block]:
    """A table of estimates; histograms and traces of draws, or the likelihood on the way."""
    found = summaries(fit)
    columns = ["parameter", "value", "spread", "90% interval"]
    rows: list[list[str | float]] = [[one.name, one.value, one.spread, _interval(one)] for one in found]
    if fit.draws is not None:
        columns += ["R-hat", "effective draws"]
        rows = [[*row, one.r_hat, round(one.ess)] for row, one in zip(rows, found)]  # type: ignore[list-item, arg-type]
        return [Table(columns, rows), *_posteriors(fit)]
    way = [float(v) for v in fit.history.get("log_likelihood", [])]
    likelihood = Series("", list(range(len(way))), way)
    return [
        Table(columns, rows),
        *([LineChart("On the way", "iteration", "log likelihood", [likelihood])] if way else []),
    ]


def _interval(one: Summary) -> str:
    return "" if math.isnan(one.spread) else f"{one.low:.4g} to {one.high:.4g}"


def _posteriors(fit: Any) -> list[Block]:
    charts: list[Block] = []
    for name, values in fit.draws.items():
        for i, draws in enumerate(values.flatten(2).unbind(-1) if values.ndim > 2 else [values]):
            label = name if values.ndim == 2 else f"{name}[{i}]"
            density, edges = np.histogram(draws.flatten().numpy(), bins=BINS, density=True)
            steps = Series("", np.repeat(edges, 2)[1:-1].tolist(), np.repeat(density, 2).tolist())
            charts.append(LineChart(f"Posterior of {label}", label, "density", [steps]))
            chains = [Series(f"chain {c}", list(range(len(v))), v.tolist()) for c, v in enumerate(draws)]
            charts.append(LineChart(f"Draws of {label}", "draw", label, chains))
    return charts
