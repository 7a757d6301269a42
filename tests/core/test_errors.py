"""What errors say."""

from __future__ import annotations

import pytest

from retrodict.core.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("\n no route\nto the host"), "no route"),
        (OSError(28, "No space left"), "[Errno 28] No space left"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_error_in_one_line(error, line):
    assert first_line(error) == line
