"""The command line: every help shows an example and is quick to start; errors are one line and a status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retrodict.app import cli, info
from retrodict.core.errors import InputError, RetrodictError

COMMANDS = ["demo", "train", "sample", "bench", "certify", "infer", "restore", "tune", "report", "info"]


def plain(text: str) -> str:
    """Help text without colours, boxes and line breaks."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, plain(result.output)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def test_every_command_is_listed() -> None:
    status, text = invoke("--help")
    assert status == 0
    assert all(f" {name} " in text for name in COMMANDS)
    assert sorted(COMMANDS) == sorted(command.callback.__name__ for command in cli.app.registered_commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example(name: str) -> None:
    status, text = invoke(name, "--help")
    assert status == 0
    assert f"Example: retrodict {name}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_example_parses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that the help shows is one that the parser accepts: every option in it exists."""
    called = []
    for command in cli.app.registered_commands:
        if command.callback.__name__ == name:
            monkeypatch.setattr(command, "callback", _record(command.callback, called))
            example = command.epilog.removeprefix("Example:").split()
    status, text = invoke(*example[1:])
    assert (status, called) == (0, [name]), text


def _record(function, called: list[str]):
    import functools

    @functools.wraps(function)
    def recorded(**_: object) -> None:
        called.append(function.__name__)

    return recorded


def test_start_needs_no_torch() -> None:
    """Help and usage errors answer before torch, NumPy or matplotlib are loaded."""
    result = python(
        """
        import sys
        from retrodict.app.cli import app
        try:
            app(["sample", "--help"])
        except SystemExit as exit:
            assert exit.code == 0
        heavy = {"torch", "numpy", "matplotlib", "sklearn", "scipy"} & sys.modules.keys()
        print("HEAVY", sorted(heavy))
        """
    )
    assert "HEAVY []" in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("steps is 0; give at least 1"), 2),
        (RetrodictError("no such thing"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_status(error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(info, "print_installation", fail)
    monkeypatch.delenv("RETRODICT_DEBUG", raising=False)
    assert invoke("info") == (status, f"error: {error}" if status == 2 else "interrupted")


def test_debug_shows_the_traceback() -> None:
    result = python("from retrodict.app.cli import main; main()", "--debug", "info", "/no/such/folder")
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "InputError" in result.stderr
    result = python("from retrodict.app.cli import main; main()", "info", "/no/such/folder")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr and result.stderr.startswith("error: /no/such/folder is not a folder")


def test_bug_shows_its_traceback() -> None:
    """Only errors raised on purpose are shortened."""
    result = python(
        """
        from retrodict.app import cli, info
        info.print_installation = lambda: 1 / 0
        cli.main()
        """,
        "info",
    )
    assert result.returncode == 1 and "ZeroDivisionError" in result.stderr


def test_ctrl_c_exits_130() -> None:
    """A real SIGINT while a command works."""
    code = """
    import signal, time
    from retrodict.app import cli, info
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background hands down "ignore"
    def work():
        print("working", flush=True)
        time.sleep(60)
    info.print_installation = work
    cli.main()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), "info"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "interrupted\n"


def test_unknown_option_is_a_usage_error() -> None:
    status, text = invoke("sample", "runs/x", "--stepps", "5")
    assert status == 2 and "--stepps" in text


# --- info --------------------------------------------------------------------------------------------------


def test_info_names_versions_and_registries() -> None:
    status, text = invoke("info")
    assert status == 0
    import torch

    assert f"torch {torch.__version__}" in text and "Devices: cpu" in text
    for kind, names in info.registries().items():
        assert f"{kind}: {', '.join(names)[:40]}"[:30] in text


def test_info_prints_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "process": {"name": "vp", "schedule": "cosine"}}))
    (tmp_path / "metrics.json").write_text(json.dumps({"mmd": 0.0125}))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "000100.safetensors").write_bytes(bytes(2500))
    status, text = invoke("info", str(tmp_path))
    assert status == 0
    assert "process.schedule cosine" in text and "mmd 0.0125" in text
    assert "checkpoints/000100.safetensors 2.5 kB" in text


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff"])
def test_info_on_a_broken_folder(tmp_path: Path, content: str) -> None:
    assert invoke("info", str(tmp_path))[0] == 2
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    status, text = invoke("info", str(tmp_path))
    assert status == 2 and "config.json" in text
