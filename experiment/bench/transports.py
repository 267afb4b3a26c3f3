"""Measure what carries a remote interpreter, beside the local one: what a session costs, and what a loss does.

    uv run --group dev python experiment/bench/transports.py     # writes TRANSPORTS.md beside it

ssh reaches this machine and E2B's client a server on it, so that no row holds the delay of a network.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlm_dspy.interpreters import CellLimits, PythonInterpreter, remote
from rlm_dspy.interpreters.host import servers
from tests.interpreters import fake_clients
from tests.interpreters.e2b_server import serving
from tests.interpreters.places import BWRAP, NSJAIL, SSHD, jailed, sandboxed, through_ssh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

HERE = Path(__file__).parent
TEXT = "".join(
    f"line {number}: the quick brown fox jumps over {number * 7919 % 100_003}\n" for number in range(2_100_000)
)
COLUMNS = {
    "first session": "connect, start the fork server there and the first session",
    "session": "start another, median of 8",
    "exec": "`1`, without checkpoints, median of 200",
    "exec, copied": "`x = 1` with a checkpoint, median of 50",
    "callback": "a call to a tool, median of 300",
    "p99": "its 99th percentile",
    "100 MB": "a text of 100 MB, for the first time",
    "again": "in a second cell",
    "other session": "the same text in another session",
    "interrupt": "from the deadline of an endless loop to its error",
    "loss": "from the kill of the connection in a cell to its error",
    "fresh": "to a fresh session with the text after that",
}


def timed(function: Callable[[], object]) -> float:
    """Return the milliseconds of one call."""
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) * 1e3


def median(function: Callable[[], object], times: int) -> float:
    """Return the median of the milliseconds of many calls."""
    return statistics.median(timed(function) for _ in range(times))


def measured(make: Callable[..., Any], kill: Callable[[], object] | None) -> Iterator[float]:
    """Yield the milliseconds of each column; `kill` ends the connection."""
    tools = {"echo": lambda value: value}
    first, plain = make(tools), make(tools, checkpoint="off")
    bounded = make(cell_limits=CellLimits(seconds=0.5))
    yield timed(first.start)
    yield statistics.median(timed(make().start) for _ in range(8))
    plain.start()
    yield median(lambda: plain.execute("1"), 200)
    yield median(lambda: first.execute("x = 1"), 50)
    took = plain.execute(
        "import time\ntook = []\nfor number in range(300):\n    started = time.perf_counter()\n    echo(number)\n"
        "    took.append((time.perf_counter() - started) * 1e3)\nsorted(took)"
    )
    yield took[150]
    yield took[297]
    given = {"text": TEXT}
    yield timed(lambda: first.execute("len(text)", given))
    yield median(lambda: first.execute("text[5]", given), 10)
    yield timed(lambda: plain.execute("len(text)", given))
    bounded.start()
    yield timed(lambda: fails(bounded, "while True: pass")) - 500
    if kill is not None:
        killed: list[float] = []

        def cut() -> None:
            killed.append(time.perf_counter())
            kill()
            time.sleep(30)

        lost = make({"cut": cut})
        lost.start()
        fails(lost, "cut()")
        yield (time.perf_counter() - killed[0]) * 1e3
        yield timed(lambda: make().execute("len(text)", given))


def fails(repl: Any, code: str) -> None:
    """Run a cell that must fail."""
    try:
        repl.execute(code)
    except (dspy.CodeInterpreterError, dspy.CodeExecutionError):
        return
    raise AssertionError(f"{code!r} has not failed")


def local(tools: Any = None, **settings: Any) -> PythonInterpreter:
    """Return a local interpreter with the standard library only."""
    return PythonInterpreter(tools, packages=(), **settings)


@contextmanager
def simulated(latency: float) -> Iterator[tuple[remote.Box, Callable[[], object]]]:
    """Give a sandbox that takes text only, with a delay of each request, and what kills it."""
    account = fake_clients.Account(latency)
    with pytest.MonkeyPatch.context() as patch:
        fake_clients.installed(patch, fake_clients.daytona(account))
        yield remote.daytona(python=sys.executable, packages=()), account.kill


@contextmanager
def e2b() -> Iterator[tuple[remote.Box, Callable[[], object]]]:
    """Give E2B's client and a server of its processes here, and what kills them."""
    with pytest.MonkeyPatch.context() as patch, serving(patch) as server:
        yield remote.e2b(python=sys.executable, packages=()), server.kill


@contextmanager
def command(box: remote.Box) -> Iterator[tuple[remote.Box, Callable[[], object]]]:
    """Give a box that a command carries, without packages, and what kills the command."""
    box = dataclasses.replace(box, place=dataclasses.replace(box.place, packages=()))

    def kill() -> None:
        server: Any = servers.server_for(box.place)
        server._link._transport._process.kill()

    yield box, kill


def rows() -> Iterator[tuple[str, list[float]]]:
    """Yield each transport that there is, and its milliseconds."""
    yield "`PythonInterpreter`", list(measured(local, None))
    places: dict[str, Callable[[], AbstractContextManager[tuple[remote.Box, Callable[[], object]]]]] = {
        "`remote.argv()`": lambda: command(remote.argv()),
        **({"ssh to 127.0.0.1": lambda: command(through_ssh())} if SSHD else {}),
        **({"bwrap": lambda: command(sandboxed())} if BWRAP else {}),
        **({"nsjail": lambda: command(jailed())} if NSJAIL else {}),
        "E2B's client, a server here": e2b,
        "text only, no delay": lambda: simulated(0),
        "text only, 50 ms a request": lambda: simulated(0.05),
    }
    for name, opened in places.items():
        with opened() as (box, kill):

            def make(tools: Any = None, box: remote.Box = box, **settings: Any) -> Any:
                return dataclasses.replace(box, **settings)(tools)

            yield name, list(measured(make, kill))
            servers.close_all()


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "TRANSPORTS.md")
    out = parser.parse_args().out
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in rows():
        shown = [f"{took:.2f}" if took < 10 else f"{took:.0f}" for took in row]
        lines.append(f"| {name} | " + " | ".join(shown + ["-"] * (len(COLUMNS) - len(row))) + " |")
        print(lines[-1], flush=True)
    about = (
        f"`experiment/bench/transports.py`, one run on {os.cpu_count()} processors, "
        f"Linux {platform.release().partition('-')[0]}, CPython {platform.python_version()}, load "
        f"{os.getloadavg()[0]:.0f} at its end. Milliseconds. All is on this machine, so that "
        "no row but the last holds the delay of a network."
    )
    told = [f"- {name}: {what}." for name, what in COLUMNS.items()]
    out.write_text("\n".join(["# What carries a remote interpreter", "", about, "", *lines, "", *told, ""]))


if __name__ == "__main__":
    main()
