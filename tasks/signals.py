"""SIGTERM while a long stage runs: it gets time to write a checkpoint, but not for ever."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 20.0
"""Whoever sent SIGTERM usually sends SIGKILL after 30 s; ending takes some of that."""


@contextmanager
def deferred_sigterm(grace: float = GRACE_SECONDS) -> Iterator[Callable[[], bool]]:
    """Inside the block a SIGTERM is only noted; it takes effect when the block ends, or after `grace` seconds.

    Yields a function that says whether one has come. A second SIGTERM takes effect at once. Outside the main thread,
    where Python delivers no signals, nothing is deferred.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGTERM)
    impatience = threading.Timer(grace, os.kill, (os.getpid(), signal.SIGTERM))
    impatience.daemon = True
    told = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if told:
            signal.signal(signal.SIGTERM, before)
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            told = True
            impatience.start()

    signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: told
    finally:
        impatience.cancel()
        signal.signal(signal.SIGTERM, before)
        if told:
            os.kill(os.getpid(), signal.SIGTERM)
