"""Runs with everything that goes wrong: how each ended, and what it left behind.

    python experiment/bench/chaos.py --runs 500 --seed 1

Each run goes over HTTP through a real `dspy.LM` to a server that fails (429, 500, resets, garbage, ...), in a real
interpreter whose worker crashes, hangs or lies, with tools that fail, full disks, Ctrl-C. It must end with an
answer, or with a documented error that carries `trajectory`, and leave no process, thread, descriptor or file.
Faults come one after the other, each run with others at random beside it; `chaos_faults.plan` is all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos_faults import FAULTS, plan
from chaos_server import ChaosServer

if TYPE_CHECKING:
    from collections.abc import Iterator

_WATCHDOG_SECONDS = 75.0
_FULL_BYTES = "64k"
_SUBREAPER = 36
_OWN_SHM = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh")
"""Runs a command with a /dev/shm of its own."""


@dataclass
class Row:
    """What became of the runs of one fault."""

    runs: int = 0
    answered: int = 0
    typed: int = 0
    untyped: int = 0
    hung: int = 0
    left: int = 0
    seconds: float = 0.0


@dataclass
class Report:
    """What became of all runs.

    Attributes:
        rows: A row a fault.
        problems: What was wrong, in words.
    """

    rows: dict[str, Row] = field(default_factory=lambda: {fault: Row() for fault in FAULTS})
    problems: list[str] = field(default_factory=list)

    def add(self, outcome: dict[str, Any]) -> None:
        """Add a run."""
        row = self.rows[outcome["fault"]]
        row.runs += 1
        row.left += bool(outcome["left"])
        row.seconds = max(row.seconds, outcome["seconds"])
        setattr(row, outcome["ended"], getattr(row, outcome["ended"]) + 1)
        if outcome["ended"] in ("untyped", "hung") or outcome["left"]:
            told = (outcome[name] for name in ("ended", "why", "where", "left"))
            self.problems.append(f"{outcome['number']} ({outcome['fault']}): {' | '.join(map(str, told))}")

    def text(self) -> str:
        """Return the table, and the problems below it."""
        names = list(vars(Row()))
        total = Row()
        lines = ["| fault | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for fault, row in self.rows.items():
            for name in names:
                merged = max if name == "seconds" else lambda *both: sum(both)
                setattr(total, name, merged(getattr(total, name), getattr(row, name)))
            if row.runs:
                lines.append(_line(fault, row))
        return "\n".join([*lines, _line("**all**", total), "", *self.problems])


def _line(fault: str, row: Row) -> str:
    values = [f"{value:.1f}" if isinstance(value, float) else str(value) for value in vars(row).values()]
    return f"| {fault} | " + " | ".join(values) + " |"


@functools.cache
def _may_mount() -> bool:
    tools = all(map(shutil.which, ("mount", "umount", "unshare")))
    return tools and subprocess.run([*_OWN_SHM, "true"], check=False, capture_output=True).returncode == 0


@contextlib.contextmanager
def full_disk() -> Iterator[str]:
    """Yield the path of a small full file system; nothing if it cannot be made."""
    with tempfile.TemporaryDirectory(prefix="chaos-full-") as folder:
        if not _may_mount():
            yield ""
            return
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_FULL_BYTES}", "chaos", folder]
        subprocess.run(mount, check=True)
        try:
            with contextlib.suppress(OSError), Path(folder, "filler").open("wb") as file:
                while True:
                    file.write(b"x" * 1024)
                    file.flush()
            yield folder
        finally:
            subprocess.run(["umount", folder], check=True)


class Worker:
    """A process that does the runs `first`, `first + step`, ..., and is replaced when one of them hangs."""

    def __init__(self, url: str, full: str, seed: int, first: int, last: int, step: int) -> None:
        self._arguments = (url, full, str(seed))
        self._seed = seed
        self._next, self._last, self._step = first, last, step
        self._lines: queue.Queue[str] = queue.Queue()

    def outcomes(self) -> Iterator[dict[str, Any]]:
        """Do the runs; yield how each ended."""
        while self._next < self._last:
            with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
                yield from self._life(Path(folder))

    def _life(self, folder: Path) -> Iterator[dict[str, Any]]:
        temporary, said = folder / "tmp", folder / "stderr"
        temporary.mkdir()
        environment = {**os.environ, "TMPDIR": str(temporary), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        command = [sys.executable, str(Path(__file__).parent / "chaos_worker.py"), *self._arguments]
        if _may_mount():  # else /dev/shm is shared with whatever else runs here, and not looked at
            command = [*_OWN_SHM, *command]
            environment["CHAOS_OWN_SHM"] = "1"
        numbers = [str(number) for number in (self._next, self._last, self._step)]
        with said.open("w") as stderr:
            process = subprocess.Popen(
                [*command, *numbers], stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
            )
            threading.Thread(target=self._read, args=(process,), daemon=True).start()
            try:
                yield from self._until_it_ends(said)
            finally:
                process.kill()
                process.wait()
                process.stdout.close()  # type: ignore[union-attr]

    def _until_it_ends(self, said: Path) -> Iterator[dict[str, Any]]:
        running: int | None = None
        while True:
            try:
                line = self._lines.get(timeout=_WATCHDOG_SECONDS)
            except queue.Empty:
                line = ""
            if not line:
                if running is not None or self._next < self._last:
                    yield self._lost(running, said.read_text(errors="replace"))
                return
            outcome = json.loads(line)
            running = outcome["number"] if "begins" in outcome else None
            if running is None:
                self._next = outcome["number"] + self._step
                yield outcome

    def _lost(self, running: int | None, said: str) -> dict[str, Any]:
        number = self._next if running is None else running
        self._next = number + self._step
        fault = plan(self._seed, number).fault
        return {
            "number": number,
            "fault": fault,
            "ended": "hung",
            "why": said[-3_000:],
            "where": "",
            "left": [],
            "seconds": _WATCHDOG_SECONDS,
        }

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError):
            for line in process.stdout:
                self._lines.put(line)
        self._lines.put("")


def orphans() -> list[int]:
    """Return processes that outlive the workers; they come to this process."""
    until = time.monotonic() + 10
    while True:
        listed = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
        found = [int(pid) for pids in listed for pid in pids]
        for pid in found:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.1)


def chaos(runs: int, seed: int, workers: int, first: int = 0) -> Report:
    """Do the runs; return what became of them."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    report, lock = Report(), threading.Lock()

    def work(worker: Worker) -> None:
        for outcome in worker.outcomes():
            with lock:
                report.add(outcome)

    with ChaosServer() as server, full_disk() as full:
        numbers = [(first + at, first + runs, workers) for at in range(workers)]
        made = [Worker(server.url, full, seed, *those) for those in numbers]
        threads = [threading.Thread(target=work, args=(worker,)) for worker in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if alive := orphans():
        report.problems.append(f"processes that outlive the workers: {alive}")
    return report


def main() -> None:
    """Read the arguments, do the runs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    begun = time.monotonic()
    report = chaos(given.runs, given.seed, given.workers, given.first)
    print(report.text())
    print(f"\n{given.runs} runs, seed {given.seed}, {time.monotonic() - begun:.0f} s")
    sys.exit(bool(report.problems))


if __name__ == "__main__":
    main()
