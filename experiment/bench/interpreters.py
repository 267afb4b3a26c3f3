"""Measure the interpreters: each row of the targets against baselines of the same run, and against DSPy's own.

python experiment/bench/interpreters.py            # writes INTERPRETERS.md and interpreters.svg beside it
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import socket
import statistics
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from processes import cpu_of

from rlm_dspy.interpreters.confinement_policy import ConfinementPolicy
from rlm_dspy.interpreters.host import fork_server_client, servers
from rlm_dspy.interpreters.python import PythonInterpreter
from rlm_dspy.interpreters.worker import memory

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
GIB = 1 << 30
SIZES = [10**3, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9]
THINKING_SECONDS = 0.02
"""What a fast model takes to write the next cell; the worker is copied meanwhile."""
HOME_SECONDS = 20.0
"""What a peer may take for one turn before larger inputs are left out."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    measured: str
    target: str
    met: bool | None
    beside: str = ""


def timed(function: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    function()
    return (time.perf_counter() - started) * 1e3


def quantiles(function: Callable[[], Any], times: int) -> tuple[float, float]:
    """Median and 99th percentile of many calls, in milliseconds: of the quietest of five batches."""
    batches = [sorted(timed(function) for _ in range(times // 5)) for _ in range(5)]
    quietest = min(batches, key=statistics.median)
    return statistics.median(quietest), quietest[int(len(quietest) * 0.99)]


def light(**options: Any) -> PythonInterpreter:
    """Return an interpreter with the standard library only."""
    return PythonInterpreter(packages=(), **options)


# --- baselines


def bare_fork() -> float:
    """Fork this process and wait for the child; median in milliseconds."""

    def once() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)

    return quantiles(once, 100)[0]


def socket_echo() -> tuple[float, float]:
    """One message to another process and back."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        with suppress(OSError):
            while data := theirs.recv(100):
                theirs.send(data)
        os._exit(0)
    theirs.close()

    def once() -> None:
        ours.send(b"x" * 80)
        ours.recv(100)

    result = quantiles(once, 2_000)
    ours.close()
    os.wait()
    return result


def memfd_write(data: str) -> float:
    """Write the bytes of `data` to fresh shared memory, as one would without this package; best of three."""
    raw = data.encode()

    def once() -> None:
        fd = memory.create()
        memory.write(fd, [raw])
        os.close(fd)

    return min(timed(once) for _ in range(3))


# --- rows


def server_starts() -> list[Row]:
    rows = []
    for name, packages, target in (
        ("standard library", (), 150),
        ("numpy and pandas allowed", ("numpy", "pandas"), 500),
    ):
        samples = []
        for _ in range(3):
            servers.close_all()
            recipe = fork_server_client.Recipe(packages, (), ConfinementPolicy())
            samples.append(timed(functools.partial(servers.server_for, recipe)))
        rows.append(below(f"fork server start, {name}", min(samples), target))
    return rows


def starts() -> list[Row]:
    fork = bare_fork()
    rows = []
    for name, make, target in (("standard library", light, 5), ("the default packages", PythonInterpreter, 10)):
        make().start()
        samples = []
        for _ in range(30):
            repl = make()
            samples.append(timed(repl.start))
            repl.shutdown()
        rows.append(
            below(
                f"warm confined start, p50, {name}",
                statistics.median(samples),
                target,
                f"bare fork {fork:.2f}",
            )
        )
    return rows


def round_trips() -> list[Row]:
    echo, echo_99 = socket_echo()
    measure = (
        "import time\nbatches = []\nfor _ in range(5):\n    batch = []\n    for _ in range(600):\n"
        "        t = time.perf_counter(); f(1); batch.append(time.perf_counter() - t)\n"
        "    batches.append(sorted(batch))\n"
        "quietest = min(batches, key=lambda b: b[300]); print(quietest[300] * 1e3, quietest[594] * 1e3)"
    )
    with light(tools={"f": lambda x: x}, checkpoint="off") as repl:
        execute, _ = quantiles(lambda: repl.execute("1"), 300)
        call, call_99 = map(float, repl.execute(measure).split())
    with light(checkpoint="always") as repl:
        copied, _ = quantiles(lambda: repl.execute("1"), 200)
    beside = f"socket echo {echo:.3f} / {echo_99:.3f}"
    return [
        below("execute, p50", execute, 0.1, beside),
        below("call to a tool, p50", call, 0.08, beside),
        below("call to a tool, p99", call_99, 0.3, beside),
        below("checkpoint a cell, p50", copied - execute, 3, f"bare fork {bare_fork():.2f}"),
    ]


def shared_values() -> list[Row]:
    text = "x" * GIB
    write = memfd_write(text)
    with light(checkpoint="off") as repl:
        repl.execute("1")
        publish = timed(lambda: repl.execute("len(t)", {"t": text}))
        unchanged, _ = quantiles(lambda: repl.execute("len(t)", {"t": text}), 100)
        attach = []
        small = "x" * 10_000_000
        holder = light(checkpoint="off")
        holder.execute("1", {"t": small})
        for value in (small, text):
            samples = []
            for _ in range(5):
                with light(checkpoint="off") as other:
                    other.execute("1")
                    plain = timed(lambda: other.execute("1"))
                    samples.append(timed(lambda: other.execute("1", {"t": value})) - plain)  # noqa: B023
            attach.append(statistics.median(samples))
        holder.shutdown()
        many = many_workers(text)
    return [
        below("publish 1 GiB and attach it, once", publish / write, 1.2, f"memfd write {write:.0f} ms = 1", " x"),
        below("attach 1 GiB that is published", attach[1], 1, f"10 MB: {attach[0]:.2f}"),
        below("execute with an unchanged 1 GiB, p50 (0 bytes sent)", unchanged, 0.15),
        *many,
    ]


def private_megabytes(pid: int) -> float:
    """Memory that this process alone has."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def private_of(repl: PythonInterpreter) -> float:
    session: Any = repl._session
    return private_megabytes(session._process.handle.host_pid())


def many_workers(text: str) -> list[Row]:
    repls = [light(checkpoint="off") for _ in range(200)]
    opened = iter(repls)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                repl = next(opened, None)
            if repl is None:
                return
            repl.execute("len(t)", {"t": text})

    def start_all() -> None:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    seconds = timed(start_all) / 1e3
    private = [private_of(repl) for repl in repls]
    with light() as new:
        fresh = private_of(new)
    total = (sum(private) + 1024) / 1024
    for repl in repls:
        repl.shutdown()
    return [
        below("200 workers on one 1 GiB: all started", seconds, 2.5, unit=" s"),
        below("200 workers on one 1 GiB: memory in all", total, 1.8, unit=" GB"),
        below("private memory of a new worker", fresh, 3, f"after a cell {statistics.median(private):.2f}", " MB"),
    ]


def copies() -> Row:
    """CPU time of a worker and its copies a cell, in bare forks of such a worker, each with its child.

    Those are made one a cell too: in a loop of their own they find all of the page tables in the caches.
    """
    fork = "if (pid := os.fork()) == 0: os._exit(0)\n_ = os.waitpid(pid, 0)"

    def used(repl: PythonInterpreter, code: str) -> float:
        session: Any = repl._session
        pid = session._process.handle.host_pid()
        began = cpu_of(pid)
        for _ in range(200):
            repl.execute(code)
        return cpu_of(pid) - began

    with light(checkpoint="always") as copied, light(checkpoint="off") as bare:
        for repl in (copied, bare):
            repl.execute("import os")
        ratios = [used(copied, "1") / (used(bare, fork) - used(bare, "1")) for _ in range(5)]
    return below("CPU of a cell and its copy in the worker", statistics.median(ratios), 1.5, "bare fork = 1", " x")


def below(what: str, value: float, target: float, beside: str = "", unit: str = " ms") -> Row:
    return Row(what, f"{value:.3g}{unit}", f"<= {target:g}{unit}", value <= target, beside)


# --- peers, and cost against size


def peers() -> tuple[list[str], dict[str, list[tuple[int, float]]]]:
    """Lines of a table, and milliseconds a turn by size of the input."""
    makers: dict[str, Callable[[], Any]] = {
        "PythonInterpreter": lambda: light(tools={"f": lambda x: x}),
        "dspy.LocalInterpreter": lambda: dspy.LocalInterpreter(tools={"f": lambda x: x}),
        "dspy.PythonInterpreter": lambda: dspy.PythonInterpreter(tools={"f": lambda x: x}),
    }
    lines, curves = [], {}
    for name, make in makers.items():
        try:
            make().shutdown()
            started = statistics.median(timed(lambda: closed_after_start(make)) for _ in range(20))  # noqa: B023
        except (dspy.CodeInterpreterError, OSError) as error:
            lines.append(f"| {name} | does not start here: {str(error).splitlines()[0][:90]} | | | |")
            continue
        with make() as repl:
            execute, _ = quantiles(lambda: repl.execute("1"), 100)
            thinking = after_thinking(repl)
            call = (timed(lambda: repl.execute("for _ in range(200): f(x=1)")) - execute) / 200
        lines.append(f"| {name} | {started:.1f} | {thinking:.3f} | {execute:.3f} | {call:.3f} |")
        curves[name] = list(cost_by_size(make))
    return lines, curves


def after_thinking(repl: Any) -> float:
    """Milliseconds that a cell takes whose code was written meanwhile; median."""
    samples = []
    for _ in range(100):
        time.sleep(THINKING_SECONDS)
        samples.append(timed(lambda: repl.execute("1")))
    return statistics.median(samples)


def closed_after_start(make: Callable[[], Any]) -> None:
    repl = make()
    repl.start()
    repl.shutdown()


def cost_by_size(make: Callable[[], Any]) -> Any:
    """Yield the size of an input and the milliseconds of a turn that passes it again, as dspy.RLM does."""
    for size in SIZES:
        text = "x" * size
        with make() as repl:
            first = timed(lambda: repl.execute("len(t)", {"t": text}))  # noqa: B023
            turns = [timed(lambda: repl.execute("len(t)", {"t": text})) for _ in range(3 if first > 1e3 else 20)]  # noqa: B023
        yield size, statistics.median(turns)
        if first > HOME_SECONDS * 1e3 / 10:
            return


def plot(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Draw cost a turn against the size of the input, both logarithmic."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, points in curves.items():
        axes.loglog([size for size, _ in points], [cost for _, cost in points], marker="o", label=name)
    axes.set_xlabel("size of the input, characters")
    axes.set_ylabel("milliseconds a turn")
    axes.set_title("Cost of a turn that passes the same input again")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def write(rows: list[Row], lines: list[str], curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Write the table."""
    marks = {True: "met", False: "not met", None: ""}
    load = os.getloadavg()[0]
    parts = [
        "# The interpreters, measured",
        "",
        (
            f"`python experiment/bench/interpreters.py` on {os.cpu_count()} processors ({platform.machine()}, "
            f"Linux {platform.release().split('-')[0]}), CPython {platform.python_version()}, load {load:.1f}. "
            "Milliseconds unless it says otherwise; medians are of the quietest of five batches, "
            "baselines of the same run."
        ),
        "",
        "| what | measured | target | | beside |",
        "|---|---|---|---|---|",
        *(f"| {r.what} | {r.measured} | {r.target} | {marks[r.met]} | {r.beside} |" for r in rows),
        "",
        (
            f"*Thinking*: the cell comes {THINKING_SECONDS * 1e3:.0f} ms after the answer to the last, as those "
            "of a model do; *at once*: without a pause, so it waits for the copy of the worker."
        ),
        "",
        "| interpreter | start and shutdown | execute, thinking, p50 | execute, at once, p50 | call to a tool |",
        "|---|---|---|---|---|",
        *lines,
        "",
        "Milliseconds a turn that passes the same input again, by its size in characters:",
        "",
        "| interpreter | " + " | ".join(f"{size:.0e}" for size in SIZES) + " |",
        "|---|" + "---|" * len(SIZES),
    ]
    for name, points in curves.items():
        known = dict(points)
        parts.append(f"| {name} | " + " | ".join(f"{known[s]:.2f}" if s in known else "-" for s in SIZES) + " |")
    parts += ["", "![Cost of a turn against the size of its input](interpreters.svg)", ""]
    path.write_text("\n".join(parts))


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    out = parser.parse_args().out
    subprocess.run(["true"], check=True)
    rows = [*server_starts(), *starts(), *round_trips(), copies(), *shared_values()]
    for row in rows:
        print(f"{row.what:60} {row.measured:>12} {row.target:>12} {row.met} {row.beside}", flush=True)
    lines, curves = peers()
    plot(curves, out / "interpreters.svg")
    write(rows, lines, curves, out / "INTERPRETERS.md")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
