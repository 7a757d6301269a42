"""`retrodict infer` end to end: every kind of model against the library itself, bad files, the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

import retrodict as rd
from retrodict.app import cli
from retrodict.app.infer.models import build, kinds
from retrodict.app.infer.run import parse_config
from retrodict.core.errors import InputError
from retrodict.kernels import Finite, Gaussian, LinearGaussian, LinearSDE

Y = [0.3, 0.9, None, 2.1, 1.6, 3.2, 2.8, None, 3.9, 4.4]
SMALL = {"particles": 40, "steps": 3, "draws": 5, "seed": 3}


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["--quiet", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def folder(
    path: Path, model: dict[str, Any], y: list[Any] = Y, column: str = "y", **sections: Any
) -> tuple[Path, Path, Path]:
    """A configuration and a CSV in a folder, and where results go."""
    config = {"model": model, "data": {"observed": column, "time": "t"}} | sections
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    frame = pd.DataFrame({"t": [0.5 * k for k in range(len(y))], column: y})
    frame.to_csv(path / "data.csv", index=False)
    return path / "config.yaml", path / "data.csv", path / "out"


def t(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


OBSERVED = rd.Observed([math.nan if v is None else v for v in Y], times=[0.5 * k for k in range(len(Y))])
WHOLE = rd.Observed([math.nan if v is None else v for v in Y])
CATEGORIES = [0, 0, None, 1, 1, 0, 2, 2, None, 0]


def level() -> tuple[dict[str, Any], float]:
    model = {"kind": "local-level", "level": 0.7, "noise": 0.4, "start": {"mean": 0, "std": 2}}
    step = lambda s, u: LinearGaussian(1.0, 0.0, 0.49 * (u - s))  # noqa: E731
    space = rd.StateSpace(Gaussian(0.0, 4.0), step, LinearGaussian(1.0, 0.0, 0.16))
    return model, float(rd.condition(space, OBSERVED).log_evidence)


def matrices() -> tuple[dict[str, Any], float]:
    A = [[0.0, 1.0], [-0.4, -0.3]]
    model = {
        "kind": "sde",
        "drift": {"family": "linear", "matrix": A},
        "diffusion": [0.2, 0.5],
        "start": [0.1, 1.0],
        "observation": {"operator": [1.0, 0.5], "noise": 0.4},
    }
    prior = Gaussian(t(0.1, 1.0)[None], torch.zeros(1, 2, 2, dtype=torch.float64))
    law = LinearGaussian(t([1.0, 0.5]), t(0.0), t([0.16]))
    space = rd.StateSpace(prior, LinearSDE(t(*A), 0.0, t(0.2, 0.5)), law)
    return model, float(rd.condition(space, OBSERVED).log_evidence)


def wells() -> tuple[dict[str, Any], float]:
    model = {
        "kind": "sde",
        "drift": {"family": "double-well", "rate": 2.0, "well": 1.5},
        "diffusion": 0.8,
        "start": {"mean": 0.5, "std": 0.3},
        "noise": 0.6,
    }
    law = LinearGaussian(1.0, 0.0, 0.36)
    sde = rd.SDE(lambda x, u: 2 * x * (1 - (x / 1.5) ** 2), 0.8, Gaussian(0.5, 0.09), observation=law)
    words = {"particles": 40, "steps": 3, "rounds": 4, "seed": 3}
    return model, float(rd.condition(sde, OBSERVED, **words).log_evidence)


def markov() -> tuple[dict[str, Any], float]:
    P = [[0.9, 0.1], [0.2, 0.8]]
    model = {
        "kind": "hmm",
        "transition": P,
        "observation": {"mean": [0, 3], "std": [1, 2]},
        "initial": [0.5, 0.5],
        "names": ["<calm>", "wild & free"],
    }
    law = lambda x: torch.distributions.Normal(t(0, 3)[x], t(1, 2)[x])  # noqa: E731
    space = rd.StateSpace(torch.distributions.Categorical(t(0.5, 0.5)), Finite.of(t(*P)), law)
    return model, float(rd.condition(space, WHOLE).log_evidence)


def jumps() -> tuple[dict[str, Any], float]:
    rates = [[0, 1, 0.5], [0.3, 0, 0.3], [1, 1, 0]]
    model = {"kind": "jump", "rates": rates}
    Q = t(*rates)
    process = rd.JumpProcess(Q - torch.diag(Q.sum(1)))
    y = [-1 if v is None else v for v in CATEGORIES]
    return model, float(rd.condition(process, rd.Observed(y, times=OBSERVED.times[0])).log_evidence)


@pytest.mark.parametrize("make", [level, matrices, wells, markov, jumps])
def test_the_command_gives_the_evidence_of_the_library(make: Any, tmp_path: Path) -> None:
    model, evidence = make()
    y = CATEGORIES if make is jumps else Y
    words = SMALL if make is wells else {k: v for k, v in SMALL.items() if k != "steps"}
    config, csv, out = folder(tmp_path, model, y, infer=words)
    if make is markov:
        csv.write_text(csv.read_text().replace("t,y", "z,y"))
        config.write_text(config.read_text().replace("  time: t\n", ""))
    assert run("infer", config, csv, "--out", out) == (0, "")
    found = json.loads((out / "metrics.json").read_text())
    assert found["log_evidence"] == pytest.approx(evidence, abs=1e-9)
    assert found["exact"] == (make is not wells)
    table = pd.read_csv(out / "smoothed.csv", index_col=0)
    assert len(table) == len(y) and not table["forecast"].any()
    draws = np.load(out / "draws.npz")
    assert draws["x"].shape[0] == 5 and np.isfinite(draws["x"]).all()
    page = (out / "report.html").read_text()
    assert f"{evidence:.2f}" in page
    titles = ["Hidden paths", "Residuals", "Numbers", "Configuration"]
    assert all(f"<h2>{title}</h2>" in page for title in titles)
    assert ("<h2>Effective sample size</h2>" in page) == (make is wells)


def test_an_autoregression_starts_in_its_stationary_law(tmp_path: Path) -> None:
    """Against the dense Gaussian law of a whole AR(2) series, from its autocovariances."""
    phi, sigma, noise = (0.5, 0.3), 0.8, 0.4
    spec = {"kind": "ar", "coefficients": list(phi), "innovation": sigma, "mean": 1.5, "noise": noise}
    built, _ = build(spec, 1, 0.0)
    data = rd.Observed([math.nan if v is None else v for v in Y])
    n = len(Y)
    rho = [1.0, phi[0] / (1 - phi[1])]
    for k in range(2, n):
        rho.append(phi[0] * rho[k - 1] + phi[1] * rho[k - 2])
    variance = sigma**2 / (1 - phi[0] * rho[1] - phi[1] * rho[2])
    cov = variance * t(*[[rho[abs(i - j)] for j in range(n)] for i in range(n)]) + noise**2 * torch.eye(n).double()
    keep = [k for k, v in enumerate(Y) if v is not None]
    dense = torch.distributions.MultivariateNormal(torch.full((len(keep),), 1.5).double(), cov[keep][:, keep])
    expected = dense.log_prob(t(*[Y[k] for k in keep]))
    assert float(rd.condition(built.model, data).log_evidence) == pytest.approx(float(expected), abs=1e-9)


def test_a_trend_goes_on_and_the_forecast_is_what_the_library_forecasts(tmp_path: Path) -> None:
    model = {"kind": "local-trend", "level": 0.3, "slope": 0.1, "noise": 0.4, "start": {"mean": [0, 0], "std": 2}}
    config, csv, out = folder(tmp_path, model, infer={"forecast": 3, "draws": 4})
    text = csv.read_text().splitlines()
    dates = pd.date_range("2020-01-31", periods=len(Y), freq="ME")
    rows = [f"{d:%Y-%m-%d},{line.partition(',')[2]}" for d, line in zip(dates, text[1:])]
    csv.write_text("\n".join([text[0], *rows]))
    assert run("infer", config, csv, "--out", out)[0] == 0
    table = pd.read_csv(out / "smoothed.csv", index_col=0, parse_dates=True)
    later = table[table["forecast"] == 1]
    assert list(later.index) == list(pd.date_range(dates[-1], periods=4, freq="ME")[1:])
    post = rd.condition(build(model, 1, 0.0)[0].model, WHOLE)
    ahead = post.forecast(3)
    assert np.allclose(later["mean level"], ahead.mean[0, :, 0]) and np.allclose(later["std slope"], ahead.std[0, :, 1])
    page = (out / "report.html").read_text()
    assert "the last 3 times are a forecast" in page and "2020-" in page


def test_other_laws_of_observation(tmp_path: Path) -> None:
    """Counts, categories and volatilities run, and their laws are those that their names say."""
    state = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
    level_of = {"kind": "local-level", "level": 0.2, "start": {"std": 0.5}}
    counts = build(level_of | {"observation": {"law": "poisson", "offset": [0.5]}}, 1, 0.0)[0].emission
    y = torch.full((4, 1), 2.0, dtype=torch.float64)
    mean = (state[:, 0] + 0.5).exp()
    assert torch.allclose(counts.law(state).log_prob(y), 2 * mean.log() - mean - math.log(2))
    swings = build(level_of | {"observation": "volatility"}, 1, 0.0)[0].emission
    expected = torch.distributions.Normal(0, state[:, 0].exp().sqrt()).log_prob(y[:, 0])
    assert torch.allclose(swings.law(state).log_prob(y), expected)
    P, rows = [[0.9, 0.1], [0.3, 0.7]], [[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]]
    table = {"kind": "hmm", "transition": P, "observation": {"law": "table", "rows": rows}}
    config, csv, out = folder(tmp_path, table, CATEGORIES)
    config.write_text(config.read_text().replace("  time: t\n", ""))
    assert run("infer", config, csv, "-o", out)[0] == 0
    assert "Categories have no residuals" in (out / "report.html").read_text()
    rates = build({"kind": "hmm", "transition": P, "observation": {"law": "poisson", "rate": [1, 5]}}, 1, 0.0)[0]
    assert torch.allclose(rates.emission.law(torch.arange(2)).mean[:, 0], t(1, 5))


def test_drifts_are_what_their_names_say() -> None:
    """Against each equation, written out at one state."""
    x = t(0.4, -0.7)

    def drift(family: str, d: int, **parameters: float) -> torch.Tensor:
        spec = {"kind": "sde", "drift": {"family": family} | parameters, "diffusion": 1, "start": [0] * d, "noise": 1}
        return build(spec, 1, 0.0)[0].model.drift(x[:d], t(0))

    assert torch.allclose(drift("double-well", 1, rate=3, well=2), t(3 * 0.4 * (1 - 0.04)))
    prey, predators = math.exp(0.4), math.exp(-0.7)
    assert torch.allclose(
        drift("lotka-volterra", 2, growth=2, cost=3, gain=4, death=5), t(2 - 3 * predators, 4 * prey - 5)
    )
    fast = (0.4 - 0.4**3 / 3 + 0.7 + 0.1) / 0.2
    slow = 0.2 * (0.4 + 0.6 + 0.5 * 0.7)
    assert torch.allclose(drift("fitzhugh-nagumo", 2, current=0.1, scale=0.2, a=0.6, b=0.5), t(fast, slow))
    ou = {"kind": "sde", "drift": {"family": "ou", "rate": 2, "mean": 3}, "diffusion": 0.5, "start": 1, "noise": 1}
    law = build(ou, 1, 0.0)[0].model.transition.kernel(1, t(0.0), t(0.25))
    decay = math.exp(-0.5)
    assert float(law.A.value.squeeze()) == pytest.approx(decay)
    assert float(law.b.squeeze()) == pytest.approx(3 * (1 - decay))
    assert float(law.Q.value.squeeze()) == pytest.approx(0.25 * (1 - decay**2) / 4)


def test_what_was_written_runs_again_and_nothing_else_is_overwritten(tmp_path: Path) -> None:
    config, csv, out = folder(tmp_path, level()[0], infer={"draws": 3})
    assert run("infer", config, csv, "-o", out)[0] == 0
    copy = json.loads((out / "config.json").read_text())
    assert (copy["format"], copy["version"]) == ("retrodict.infer", 1)
    first = (out / "metrics.json").read_text()
    assert run("infer", out / "config.json", csv, "-o", out)[0] == 0
    again = json.loads((out / "metrics.json").read_text())
    assert again | {"seconds": 0} == json.loads(first) | {"seconds": 0}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    status, text = run("infer", config, csv, "-o", tmp_path / "other")
    assert status == 2 and "holds something else" in text
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_names_cannot_become_html(tmp_path: Path) -> None:
    nasty = '<script>alert("x")</script>'
    model = level()[0]
    config, csv, out = folder(tmp_path, model, column=nasty, title=nasty, infer={"draws": 2})
    assert run("infer", config, csv, "-o", out)[0] == 0
    page = (out / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    named = markov()[0] | {"names": ["<img src=x onerror=alert(1)>", "&amp;"]}
    config, csv, out = folder(tmp_path, named, infer={"draws": 2})
    config.write_text(config.read_text().replace("  time: t\n", ""))
    assert run("infer", config, csv, "-o", tmp_path / "second")[0] == 0
    page = (tmp_path / "second" / "report.html").read_text()
    assert "<img src=x" not in page and "&lt;img src=x" in page and "&amp;amp;" in page


GOOD = {"model": level()[0], "data": {"observed": "y", "time": "t"}}


def change(where: str, value: Any) -> dict[str, Any]:
    """`GOOD` with one place changed; None removes it."""
    config: dict[str, Any] = json.loads(json.dumps(GOOD))
    *way, last = where.split(".")
    inner = config
    for name in way:
        inner = inner.setdefault(name, {})
    inner[last] = value
    if value is None:
        del inner[last]
    return config


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        ("modle", {}, "no 'modle'; it has: format, version, title, model, data, infer, fit. Did you mean 'model'?"),
        ("model.kind", "local-levle", "unknown model kind 'local-levle'; known: ar, .* Did you mean 'local-level'"),
        ("model.levl", 1, "model has no 'levl'; it has: .* Did you mean 'level'?"),
        ("model.level", None, "model needs 'level'"),
        ("model.level", -1, "model.level is -1; it is positive"),
        ("model.level", "much", "model.level is 'much'; give a number, or {guess: a number}"),
        ("model.level", True, "model.level is True; give a number"),
        ("model.level", [1, 2], "give a number"),
        ("model.level", float("inf"), "give a finite number"),
        ("model.level", {"guess": 1, "pior": {}}, "model.level has no 'pior'; .* Did you mean 'prior'"),
        ("model.level", {"guess": 1, "prior": {"log-normal": [0, 1]}}, "unknown prior 'log-normal'.*'lognormal'"),
        ("model.level", {"guess": 1, "prior": {"gamma": [2]}}, "the numbers of gamma are: concentration, rate"),
        ("model.level", {"guess": 1, "prior": {"gamma": [2, -1]}}, "the numbers of gamma are"),
        ("model.level", {"guess": 1, "prior": {"normal": [0, 1]}}, "positive, and its prior Normal is not"),
        ("model.level", {"guess": 9, "prior": {"uniform": [0, 1]}}, "guess is 9, where the prior has no probability"),
        ("model.level", {"guess": 1, "prior": "gamma"}, "write it as {name: numbers}"),
        ("model.start", {"mean": [0, 0], "std": 1}, "a mean of 2 numbers; the state has 1 coordinates"),
        ("model.start", None, "model needs 'start'"),
        ("model", "hmm", "model is 'hmm'; it is a section"),
        ("data.observed", "x", "no column 'x'; they have: t, y"),
        ("data.observed", None, "data needs 'observed'"),
        ("data.observed", [], "give the name of a column"),
        ("data.time", "time", "no column 'time'"),
        ("data.log", "yes", "give true or false"),
        ("infer.particels", 10, "infer has no 'particels'; it has: .* Did you mean 'particles'"),
        ("infer.method", "pariss", "unknown method 'pariss'; .* Did you mean 'paris'"),
        ("infer.steps", 10, "counts Euler steps of a diffusion"),
        ("infer.particles", 0, "a whole number of at least 1"),
        ("infer.seed", 1.5, "a whole number of at least 0"),
        ("infer.forecast", -2, "give a number of steps"),
        ("infer.forecast", [1.0], "lie after the last one"),
        ("fit.method", "gradient", "the model has no open parameter"),
        ("format", "other", "is of the format 'other'"),
        ("version", 2, "of version 2; this retrodict reads versions up to 1"),
    ],
)
def test_a_configuration_that_cannot_be_used(where: str, value: Any, words: str, tmp_path: Path) -> None:
    import re

    config, csv, out = folder(tmp_path, level()[0])
    config.write_text(yaml.safe_dump(change(where, value)))
    status, text = run("infer", config, csv, "-o", out)
    assert status == 2 and re.search(re.escape(words).replace(r"\.\*", ".*"), text), text
    assert not out.exists(), "results were begun"


MODELS = {
    "hmm": {"kind": "hmm", "transition": [[0.9, 0.1], [0.2, 0.8]], "observation": {"mean": [0, 1], "std": [1, 1]}},
    "sde": {"kind": "sde", "drift": "ou", "diffusion": 1, "start": 0, "noise": 1},
    "jump": {"kind": "jump", "rates": [[0, 1], [1, 0]]},
    "ar": {"kind": "ar", "coefficients": [0.5], "innovation": 1, "noise": 1},
    "linear-gaussian": {"kind": "linear-gaussian", "matrix": [[1]], "covariance": 1, "start": [0], "noise": 1},
}


@pytest.mark.parametrize(
    ("kind", "field", "value", "words"),
    [
        ("hmm", "transition", [[0.9, 0.2], [0.2, 0.8]], "sum to 1; off by 1.00e-01 (row 0)"),
        ("hmm", "transition", [[0.9, 0.1]], "square"),
        ("hmm", "initial", [0.5, 0.6], "2 probabilities that sum to one"),
        ("hmm", "observation", {"mean": [0, 1, 2], "std": [1, 1]}, "2 states and 1 columns"),
        ("hmm", "names", ["a", "a"], "2 different names"),
        ("hmm", "noise", 1, "model has no 'noise'"),
        ("hmm", "observation", None, "model needs 'observation'"),
        ("sde", "drift", "o-u", "unknown drift 'o-u'.*Did you mean 'ou'"),
        ("sde", "drift", {"family": "ou", "speed": 1}, "model.drift has no 'speed'"),
        ("sde", "diffusion", [1, 2], "diffusion has 2 rows"),
        ("sde", "observation", {"noise": 1, "operator": [[1, 0]]}, "operator is of shape (1, 2)"),
        ("sde", "observation", {"law": "gauss", "noise": 1}, "unknown observation law of real states 'gauss'"),
        ("jump", "rates", [[0, -1], [1, 0]], "negative"),
        ("jump", "rates", [[0, 1, 1], [1, 0, 1]], "square"),
        ("ar", "coefficients", [1.2], "do not settle"),
        ("linear-gaussian", "matrix", [[1, 0]], "accepted: (1, 1)"),
        ("linear-gaussian", "covariance", [[-1]], "positive semi-definite"),
        ("linear-gaussian", "matrix", [[1, 0], [1]], "lists of numbers of one length"),
    ],
)
def test_a_model_that_cannot_be_used(kind: str, field: str, value: Any, words: str) -> None:
    import re

    with pytest.raises(InputError, match=re.escape(words).replace(r"\.\*", ".*")):
        build(MODELS[kind] | {field: value}, 1, 0.0)  # None stands for a field that is not there


def test_every_kind_has_a_test() -> None:
    assert {"local-level", "local-trend", *MODELS} == set(kinds)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("t,y\n0,1\n1,high\n", "column 'y' holds 'high' in row 2; give numbers, or nothing"),
        ("t,y\n0,1\n,2\n", "column 't' has no time in row 2"),
        ("t,y\n0,1\nsoon,2\n", "neither numbers nor dates as in 2024-01-31"),
        ("t,y\n1,1\n0,2\n", "times go back in series 0"),
        ("t,y\n", "has no rows below its first line"),
        ("", "cannot be read as a CSV"),
    ],
)
def test_data_that_cannot_be_used(rows: str, words: str, tmp_path: Path) -> None:
    config, csv, out = folder(tmp_path, level()[0])
    csv.write_text(rows)
    status, text = run("infer", config, csv, "-o", out)
    assert status == 2 and words in text, text


def test_files_that_are_not_there(tmp_path: Path) -> None:
    config, csv, out = folder(tmp_path, level()[0])
    assert "is not a file; `retrodict infer --example" in run("infer", tmp_path / "c.yaml", csv)[1]
    assert "is not a file; give a CSV" in run("infer", config, tmp_path / "d.csv", "-o", out)[1]
    assert "give a configuration and a CSV" in run("infer", config)[1]
    config.write_text("model: [")
    assert "cannot be read as YAML" in run("infer", config, csv)[1]
    config.write_text("!!python/object/apply:os.system ['echo no']")
    status, text = run("infer", config, csv)
    assert status == 2 and "cannot be read as YAML" in text, "a tag of Python was run"


def test_logarithms_and_categories_are_checked(tmp_path: Path) -> None:
    config, csv, out = folder(tmp_path, level()[0], [None if v is None else math.exp(v) for v in Y])
    config.write_text(config.read_text().replace("  observed: y\n", "  observed: y\n  log: true\n"))
    assert run("infer", config, csv, "-o", out)[0] == 0
    assert json.loads((out / "metrics.json").read_text())["log_evidence"] == pytest.approx(level()[1], abs=1e-9)
    config, csv, out = folder(tmp_path, level()[0], [1.0, 0.0, 2.0])
    config.write_text(config.read_text().replace("  observed: y\n", "  observed: y\n  log: true\n"))
    assert "holds 0 in row 2; data.log needs positive numbers" in run("infer", config, csv, "-o", out)[1]
    config, csv, out = folder(tmp_path, MODELS["jump"], [0, 0.5, 1])
    assert "holds 0.5; categories are whole numbers" in run("infer", config, csv, "-o", out)[1]


def test_the_example_runs(tmp_path: Path) -> None:
    assert run("infer", "--example", tmp_path / "example")[0] == 0
    config, csv = tmp_path / "example" / "config.yaml", tmp_path / "example" / "data.csv"
    text = config.read_text()
    assert "particles: 1000" in text
    config.write_text(text.replace("particles: 1000", "particles: 60").replace("steps: 10", "steps: 3"))
    assert run("infer", config, csv, "-o", tmp_path / "out")[0] == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["ess"] > 20 and metrics["times"] == 48
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Predators that nobody saw" in page and "log predators" in page
    assert "exists; give a new folder" in run("infer", "--example", tmp_path / "example")[1]


def test_a_parameter_is_noted_where_it_stands() -> None:
    mean = {"guess": "1e-1", "prior": {"normal": [0, 1]}}  # YAML takes 1e-1 for text
    spec = GOOD["model"] | {"level": {"guess": 0.5}, "start": {"mean": [mean], "std": 1}}
    built, free = build(spec, 1, 0.0, {"level": torch.tensor(2.0, dtype=torch.float64)})
    assert {name: p.guess for name, p in free.items()} == {"level": 0.5, "start.mean[0]": 0.1}
    assert free["level"].positive and free["level"].prior is None and not free["start.mean[0]"].positive
    assert float(built.model.transition.kernel(1, t(0.0), t(1.0)).Q.value.squeeze()) == 4.0
    assert float(built.model.prior.mean) == 0.1


def grid_posterior(values: torch.Tensor) -> torch.Tensor:
    """The posterior of the level's deviation under LogNormal(-0.5, 0.7), on a grid, by the library's evidence."""
    logs = []
    for level in values:
        step = lambda s, u, q=level**2: LinearGaussian(1.0, 0.0, q * (u - s))  # noqa: E731
        space = rd.StateSpace(Gaussian(0.0, 4.0), step, LinearGaussian(1.0, 0.0, 0.16))
        logs.append(rd.condition(space, OBSERVED).log_evidence[0])
    return torch.softmax(torch.stack(logs) + torch.distributions.LogNormal(t(-0.5), t(0.7)).log_prob(values), 0)


def test_parameters_are_fitted(tmp_path: Path) -> None:
    """The largest likelihood on a fine grid; posterior draws within four standard errors of that grid's mean."""
    model = level()[0] | {"level": {"guess": 0.5}}
    config, csv, out = folder(tmp_path, model, infer={"draws": 3})
    assert run("infer", config, csv, "-o", out)[0] == 0
    found = json.loads((out / "metrics.json").read_text())["parameters"]["level"]
    spec = lambda v: level()[0] | {"level": v}  # noqa: E731
    at = [float(rd.condition(build(spec(v), 1, 0.0)[0].model, OBSERVED).log_evidence) for v in
          (found["value"] * 0.99, found["value"], found["value"] * 1.01)]  # fmt: skip
    assert at[1] > max(at[0], at[2]), "a neighbour has a larger likelihood"
    assert found["low"] < found["value"] < found["high"]
    assert "Fitted by gradient" in (out / "report.html").read_text()

    model["level"] = {"guess": 0.5, "prior": {"lognormal": [-0.5, 0.7]}}
    config, csv, out = folder(tmp_path, model, infer={"draws": 3, "seed": 2}, fit={"steps": 150, "chains": 2})
    assert run("infer", config, csv, "-o", out)[0] == 0
    found = json.loads((out / "metrics.json").read_text())["parameters"]["level"]
    grid = torch.linspace(0.02, 4, 200, dtype=torch.float64)
    expected = float((grid * grid_posterior(grid)).sum())
    assert abs(found["value"] - expected) < 4 * found["spread"] / math.sqrt(found["ess"])
    assert np.load(out / "draws.npz")["parameter level"].shape == (2, 150)
    page = (out / "report.html").read_text()
    assert "Posterior of level" in page and "R-hat" in page and f"{found['value']:.3g}" in page


def test_expectation_maximisation_fits_the_laws_of_a_chain(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    states = np.repeat([0, 1, 0, 1], 15)
    y = (4.0 * states + generator.normal(size=60)).tolist()
    model = {"kind": "hmm", "transition": [[0.8, 0.2], [0.3, 0.7]], "observation": {"mean": [1, 2], "std": [2, 2]}}
    config, csv, out = folder(tmp_path, model, y, fit={"method": "em", "steps": 50}, infer={"draws": 3})
    config.write_text(config.read_text().replace("  time: t\n", ""))
    status, text = run("infer", config, csv, "-o", out)
    assert status == 0, text
    table = pd.read_csv(out / "smoothed.csv", index_col=0)
    assert (table["mode"] == np.where(states == 1, "state 1", "state 0")).mean() > 0.95
    metrics = json.loads((out / "metrics.json").read_text())
    before = rd.condition(build(model, 1, 0.0)[0].model, rd.Observed(y)).log_evidence
    assert metrics["log_evidence"] > float(before) + 20 and abs(metrics["residuals"]["std"] - 1) < 0.15


@pytest.mark.parametrize(
    ("fit", "words"),
    [
        ({"method": "gradeint"}, "Did you mean 'gradient'"),
        ({"method": "gradient", "stesp": 3}, "takes no 'stesp'"),
        ({"start": {"level": 1}}, "fit has no 'start'; guesses and priors stand in the model"),
        ({"method": "em"}, "write numbers for level"),
        ("pmmh", "fit is 'pmmh'; it is a section"),
    ],
)
def test_a_fit_that_cannot_be_used(fit: Any, words: str, tmp_path: Path) -> None:
    config, csv, out = folder(tmp_path, level()[0] | {"level": {"guess": 0.5}}, fit=fit)
    status, text = run("infer", config, csv, "-o", out)
    assert status == 2 and words in text, text


def test_a_plan_needs_no_defaults() -> None:
    plan = parse_config(GOOD)
    assert (plan.method, plan.draws, plan.forecast, plan.fit) == ("auto", 200, None, {})
