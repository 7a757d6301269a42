"""Ctrl-C and SIGTERM during training: finish the step, write a checkpoint, then stop.

The handler only sets a flag; the loop looks at it between steps.  A second Ctrl-C stops at once.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopFlag:
    """A context in which SIGINT and SIGTERM set ``.signum`` instead of ending the process.

    Python delivers signals to the main thread only; in another thread the context does nothing.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signum = number
        self._restore()  # the next one is handled as if we were not here

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}
