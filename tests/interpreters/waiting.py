"""How tests of the confined interpreter wait and look: neither a busy machine nor other tests fail any."""

from __future__ import annotations

import dataclasses
import gc
import os
import select
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlm_dspy.interpreters import PythonInterpreter

PATIENCE = 60.0
"""Seconds that nothing takes, however busy the machine is."""


def comes_true(condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds; return whether it does."""
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def nothing_executes() -> bool:
    """Return whether no thread runs a cell of an awaited run."""
    return all(thread.name != "rlm-execution" for thread in threading.enumerate())


def lives(group: int) -> bool:
    """Return whether a process of a group is there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def sends(repl: PythonInterpreter) -> bool:
    """Wait until the worker has sent what the host has not read."""
    session: Any = repl._session
    return bool(select.select([session._process], [], [], PATIENCE)[0])


def computes(repl: PythonInterpreter) -> bool:
    """Wait until the worker has used 0.1 s of a processor, between cells."""
    session: Any = repl._session
    used = session._process.cpu_seconds()
    return comes_true(lambda: session._process.cpu_seconds() > used + 0.1)


def descriptors() -> Counter[str]:
    """Return what the descriptors of this process are open on, but for the garbage of earlier tests.

    Files in /proc are left out: threads that watch the memory of workers open one for a moment.
    """
    gc.collect()
    links: Counter[str] = Counter()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = str(path.readlink())
            links[target] += not target.startswith("/proc/")
    return links


@contextmanager
def unhurried(repl: PythonInterpreter) -> Iterator[None]:
    """Lift the deadlines of the session: for cells that set something up, or look at what is left."""
    repl.start()
    session: Any = repl._session
    before = session._settings
    limits = dataclasses.replace(before.limits, seconds=None, busy_seconds=None)
    session._settings = dataclasses.replace(before, limits=limits)
    try:
        yield
    finally:
        session._settings = before
