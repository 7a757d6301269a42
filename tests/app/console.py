"""The command line as the tests call it."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from retrodict.app import cli


def run(*arguments: str | Path) -> tuple[int, str]:
    """The exit status and the output on one line; any exception but an exit is the test's."""
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())
