"""`retrodict certify`: one of three kinds of sampler, a page, and an exit status."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from retrodict.app import cli


def _run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["certify", *arguments])
    return result.exit_code, result.output + (result.stderr if result.stderr_bytes else "")


def test_a_solver_with_options_and_files(tmp_path):
    status, text = _run("--solver", "adams:order=1,kind=noise", "--out", str(tmp_path / "c"))
    assert status == 0 and "adams(order=1, kind=noise)" in text and "order: 1.0" in text
    assert json.loads((tmp_path / "c" / "certificate.json").read_text())["ok"] is True


def test_a_scheduler_of_a_pipeline_folder_that_does_not_hold(tmp_path):
    """The published third order of DPM-Solver++ is of second order."""
    config = {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "use_exponential_sigmas": True}
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    status, text = _run("--diffusers", str(tmp_path))
    assert status == 1 and "FAIL  order: 2." in text


def test_a_function():
    status, text = _run("--python", "diagnostics.test_certify:euler")
    assert status == 0 and text.startswith("euler")


def test_what_it_refuses(tmp_path):
    assert _run()[0] == 2
    assert _run("--solver", "ddim", "--python", "a:b")[0] == 2
    assert _run("--solver", "ddim:order")[0] == 2
    (tmp_path / "scheduler_config.json").write_text("{}")
    status, text = _run("--diffusers", str(tmp_path))
    assert status == 2 and "_class_name" in text
