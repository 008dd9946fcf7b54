"""SIGTERM and SIGINT. As a rule they end a command at once; while it trains they wait for the end
of the step. A second one never waits.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from winnow.errors import Stopped
from winnow.system.launch import leads

CAUGHT = (signal.SIGTERM, signal.SIGINT)

_waits = False  # whether the first signal waits
_asked = 0  # the signal that waits
_seen = False  # whether one came already


@contextmanager
def caught() -> Iterator[None]:
    """Within it a signal raises Stopped, or waits inside `patient`. Only the main thread can catch
    signals; elsewhere nothing changes.
    """
    global _asked, _seen
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in CAUGHT}
    try:
        yield
    finally:
        _asked, _seen = 0, False
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def patient() -> Iterator[None]:
    """Within it the first signal waits until somebody looks at `asked`."""
    global _waits
    with caught():
        _waits = True
        try:
            yield
        finally:
            _waits = False
        if _asked:  # after the last look
            raise Stopped(_asked)


def asked() -> int:
    """The signal that waits to be obeyed; 0: none."""
    return _asked


def _handle(number: int, frame: FrameType | None) -> None:
    global _asked, _seen
    again, _seen = _seen, True
    if again:  # leave at once, by the signal itself
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    if not _waits:
        raise Stopped(number)
    _asked = number
    if leads():
        os.write(2, b"\nstopping at the end of this step; the same signal again leaves at once\n")
