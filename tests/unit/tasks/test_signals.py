"""SIGTERM against real processes: a checkpoint first, the end within the grace period, at once if asked twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

from tasks.signals import deferred_sigterm

BODY = """
import sys, time
from tasks.signals import deferred_sigterm
with deferred_sigterm(grace={grace}) as stopping:
    print("ready", flush=True)
    while not ({listens} and stopping()):
        time.sleep(0.01)
    print("checkpoint", flush=True)
print("never", flush=True)
"""


def started(grace: float, listens: bool) -> subprocess.Popen[str]:
    code = BODY.format(grace=grace, listens=listens)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_stage_that_listens_writes_its_checkpoint_and_then_the_signal_takes_effect():
    process = started(30, listens=True)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=10)
    assert out == "checkpoint\n" and process.returncode == -signal.SIGTERM


def test_a_stage_that_does_not_listen_is_ended_when_the_grace_is_over():
    process = started(0.5, listens=False)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=10)
    assert out == "" and process.returncode == -signal.SIGTERM and 0.4 < time.monotonic() - began < 5


def test_a_second_signal_ends_it_at_once():
    process = started(30, listens=False)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    out, _ = process.communicate(timeout=10)
    assert out == "" and process.returncode == -signal.SIGTERM


def test_the_handler_before_is_back_and_hears_the_signal():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with deferred_sigterm() as stopping:
            assert not stopping()
            signal.raise_signal(signal.SIGTERM)
            assert stopping() and not heard
        assert heard == [signal.SIGTERM]
        with deferred_sigterm() as stopping:
            pass
        assert heard == [signal.SIGTERM] and not stopping()  # nobody asked: nothing happens
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_nothing_is_deferred():
    found = []

    def look():
        with deferred_sigterm() as stopping:
            found.append(stopping())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [False]
