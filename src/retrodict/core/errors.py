"""Errors that say what was given, what is accepted, and what to do.

Every public function checks its input before any work starts.  The classes below derive from the built-in
ones, so ``except ValueError`` keeps working; the message is always ``given; accepted; fix``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RetrodictError(Exception):
    """Base of every error that retrodict raises on purpose."""


class InputError(RetrodictError, ValueError):
    """A value that cannot be used: what was given, what is accepted, and the likely fix."""


class InputTypeError(RetrodictError, TypeError):
    """An object of the wrong kind."""


class NonFiniteError(RetrodictError, FloatingPointError):
    """A computation met NaN or infinity; the message names the step, the time and the tensor."""


class MissingExtraError(RetrodictError, ImportError):
    """An optional dependency is not installed; the message has the install line."""


def near(name: str, known: Iterable[str]) -> str:
    """A sentence fragment `` Did you mean 'x'?`` for the nearest of ``known``, or the empty string."""
    spelled = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(name).lower(), list(spelled), n=1, cutoff=0.5)
    return f" Did you mean {spelled[close[0]]!r}?" if close else ""


def require(condition: bool, message: str) -> None:
    """Raise `InputError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)


def first_line(error: BaseException) -> str:
    """What an error says, in one line: of a message its first, and the error's kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def optional_import(module: str, extra: str) -> object:
    """Import an optional dependency or raise with the line that installs it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module!r} is needed here and is not installed; install it with: pip install 'retrodict[{extra}]'"
        ) from error
