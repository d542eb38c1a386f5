"""`python -m benchmarks.mutation`: does a test fail whenever a function of `maths` says something else?

Every function is changed in one place at a time, and the tests that reach it run until one fails. A change that no test
notices is a survivor, and a survivor is a missing test. Changes that say the same in other words are listed in
equivalent.json, each with the reason; one that a test notices after all is an error too. A full run writes
survivors.json.

The tests are collected once. Each change is made in a fork, by giving the function the changed code: whoever has
imported it runs that, and no file is touched.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import hypothesis
import psutil
import pytest
import torch

from benchmarks.mutation.mutants import Mutant, mutants

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
MATHS = ROOT / "src/inverse_alignment/maths"
TESTS = [str(ROOT / "tests/unit/maths"), str(ROOT / "tests/properties/test_maths_properties.py")]
PYTEST = ["-p", "no:terminal", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:timeout", "-o", "addopts="]
TIMES, BYTES = 3, 2**30
"""What one change may take: processor time, in times what its tests take, and memory beside what is there already."""
NOTICED, IMPOSSIBLE = 1, 2
"""How a fork ends where a test failed, and where the change could not be made; 0 where nothing was noticed."""


def listed() -> list[Mutant]:
    """Every change of every module, in a fixed order."""
    return [mutant for path in sorted(MATHS.glob("*.py")) for mutant in mutants(path.read_bytes(), path.stem)]


def function(mutant: Mutant, names: dict[str, Any]) -> FunctionType:
    """What a change is made in, looked up in the names of a module."""
    owner, _, method = mutant.function.partition(".")
    found = vars(names[owner])[method].fget if method else names[owner]
    assert isinstance(found, FunctionType)
    return found


def _module(mutant: Mutant) -> ModuleType:
    return importlib.import_module(f"inverse_alignment.maths.{mutant.module}")


def change(mutant: Mutant) -> None:
    """Give the function of a change the changed code, in this process."""
    module = _module(mutant)
    changed = {"__name__": module.__name__}
    exec(compile(mutant.source, mutant.name, "exec"), changed)
    now, new = function(mutant, vars(module)), function(mutant, changed)
    now.__code__, now.__defaults__, now.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__


class Reach(NamedTuple):
    """A test as it is.

    Attributes:
        item: the test.
        codes: identities of all code that it runs.
        seconds: processor time.
    """

    item: pytest.Item
    codes: set[int]
    seconds: float


class Survival:
    """A pytest plugin that runs the collected tests once per change instead of once.

    Attributes:
        alive: names of the changes that no test noticed.
        stopped: names of those that ran into a limit; they count as noticed.
        problem: why nothing can be said about changes; empty if something can.
    """

    def __init__(self, chosen: list[Mutant], processes: int) -> None:
        self.chosen, self.processes = chosen, processes
        self.alive: list[str] = []
        self.stopped: list[str] = []
        self.problem = "pytest did not run the tests"

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Called by pytest after the collection."""
        if session.testsfailed or not session.items:
            self.problem = "the tests cannot be collected"
            return True
        # Here, so that all have what the tests import and compile; and in a fork, as every change is: where that
        # control fails, every change would count as noticed.
        reached = [_reach(item, session) for item in session.items]
        if session.testsfailed or os.waitpid(_fork(session, None, reached), 0)[1]:
            self.problem = "the tests fail as it is"
            return True
        self.problem = ""
        gc.freeze()
        left, running = list(reversed(self.chosen)), dict[int, Mutant]()
        while left or running:
            while left and len(running) < self.processes:
                mutant = left.pop()
                code = id(function(mutant, vars(_module(mutant))).__code__)
                running[_fork(session, mutant, [test for test in reached if code in test.codes])] = mutant
            child, status = os.wait()
            self._ended(running.pop(child), status)
        return True

    def _ended(self, mutant: Mutant, status: int) -> None:
        if status == 0:
            self.alive.append(mutant.name)
            print(f"not noticed: {mutant.name}", flush=True)
        elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            self.problem = f"a process was killed from outside, testing {mutant.name}"
        elif os.WIFSIGNALED(status):
            self.stopped.append(mutant.name)
            print(f"stopped by signal {os.WTERMSIG(status)}: {mutant.name}", flush=True)
        elif os.WEXITSTATUS(status) == IMPOSSIBLE:
            self.problem = f"a change that cannot be made: {mutant.name}"


def _fork(session: pytest.Session, mutant: Mutant | None, reached: list[Reach]) -> int:
    """Run tests on a change in a new process, the short ones first; it exits with 0 if they all pass."""
    child = os.fork()
    if child:
        return child
    status = IMPOSSIBLE
    try:
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        seconds = math.ceil(1 + TIMES * sum(test.seconds for test in reached))
        size = psutil.Process().memory_info().vms + BYTES
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 2))  # SIGXCPU; SIGKILL comes from others
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        signal.alarm(10 * seconds)  # one that waits for ever takes no processor time
        if mutant:
            change(mutant)
        status = NOTICED
        status = NOTICED if any(_fails(test.item, session) for test in sorted(reached, key=_seconds)) else 0
    finally:
        os._exit(status)


def _reach(item: pytest.Item, session: pytest.Session) -> Reach:
    """Run a test and see where it goes."""
    codes = set[int]()
    begun = time.process_time()
    sys.setprofile(lambda frame, event, argument: codes.add(id(frame.f_code)))
    try:
        _fails(item, session)
    finally:
        sys.setprofile(None)
    return Reach(item, codes, time.process_time() - begun)


def _seconds(test: Reach) -> float:
    return test.seconds


def _fails(item: pytest.Item, session: pytest.Session) -> bool:
    """Run a test."""
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    return bool(session.testsfailed)


def survival(chosen: list[Mutant], tests: list[str], processes: int) -> Survival:
    """What tests make of changes. Exits where they cannot tell: they fail as it is, or a change cannot be made."""
    torch.set_num_threads(1)
    hypothesis.settings.register_profile(
        "mutation", database=None, deadline=None, derandomize=True, phases=[hypothesis.Phase.generate]
    )
    hypothesis.settings.load_profile("mutation")
    plugin = Survival(chosen, processes)
    ended = pytest.main([*PYTEST, f"--rootdir={ROOT}", *tests], plugins=[plugin])
    if plugin.problem or ended != pytest.ExitCode.OK:
        sys.exit(f"nothing can be said about changes: {plugin.problem or 'pytest stopped'}")
    return plugin


def main() -> None:
    """Parse the command line, test the changes, and exit with 1 if one survived or a list is stale."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation", description=__doc__.partition("\n")[0])
    parser.add_argument("--module", help="only this module of maths")
    parser.add_argument("--processes", type=int, default=2, help="how many changes are tested at a time (2)")
    options = parser.parse_args()
    equivalent: dict[str, str] = json.loads((HERE / "equivalent.json").read_text())
    known = listed()
    if stale := set(equivalent) - {mutant.name for mutant in known}:
        sys.exit("in equivalent.json, but no change of maths now:\n" + "\n".join(sorted(stale)))
    chosen = [mutant for mutant in known if options.module in (None, mutant.module)]
    if not chosen:
        sys.exit(f"no function of maths is in {options.module}")
    begun = time.monotonic()
    found = survival(chosen, TESTS, options.processes)
    alive = set(found.alive)
    same = {mutant.name for mutant in chosen} & set(equivalent)
    noticed, unnoticed = sorted(same - alive), sorted(alive - same)
    print(f"{len(chosen)} changes: {len(chosen) - len(alive)} noticed ({len(found.stopped)} by a limit)", end=", ")
    print(f"{len(same)} equivalent, {len(unnoticed)} survived; {time.monotonic() - begun:.0f} s")
    if options.module is None:
        (HERE / "survivors.json").write_text(json.dumps(unnoticed, indent=2, ensure_ascii=False) + "\n")
    if noticed:
        print("in equivalent.json, but a test notices:\n" + "\n".join(noticed))
    sys.exit(bool(unnoticed or noticed))


if __name__ == "__main__":
    main()
