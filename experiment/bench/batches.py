"""A batch over one long context through each kind of executor: time, memory, what is sent, and a kill with -9.

Each engine runs twice, in its own process: undisturbed, and with a kill when a quarter of the rows has arrived: of
the worker that makes the next request, or, for threads, of the whole process, started again on its store.
The scripted model notes each request in a file, so it is known what was paid for twice. Each measurement is a line
of `experiment/bench/results/batches.jsonl`; what has a line there is not measured again.

    python experiment/bench/batches.py --engine threads processes loky dask ray
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import dspy
from concurrency import below

from rlm_dspy import RLM, batch
from rlm_dspy.batch.on_ray import RayExecutor
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPLY = "```python\nSUBMIT(words=context.count(' ') + number)\n```"
RESULTS = Path(__file__).with_name("results") / "batches.jsonl"
_LOOK_SECONDS = 1.0
_MEBI = 1024


class NotingLM(ScriptedLM):
    """Replies after a time; each request is a file named by the process that made it.

    Args:
        folder: Where the files are.
        seconds: How long a reply takes.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.made_with = folder, seconds
        super().__init__(self._reply, seconds=seconds)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.made_with

    def _reply(self, messages: list[dict[str, str]]) -> str:
        (self.made_with[0] / f"{time.time_ns()}-{os.getpid()}").touch()
        return REPLY


def dask_executor(workers: int) -> Executor:
    """Return the executor of a cluster on this machine, which ends with this process."""
    import distributed

    cluster = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    executor: Executor = distributed.Client(cluster).get_executor(pure=False)
    return executor


def loky_executor(workers: int) -> Executor:
    """Return an executor of loky, as joblib brings it."""
    from joblib.externals.loky import ProcessPoolExecutor as Loky

    executor: Executor = Loky(workers)
    return executor


def ray_executor(workers: int) -> Executor:
    """Return an executor of Ray on this machine."""
    import ray

    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        object_store_memory=200 * _MEBI**2,
        _node_ip_address="127.0.0.1",
        logging_level="warning",
    )
    return RayExecutor()


ENGINES: dict[str, Callable[[int], Executor]] = {
    "threads": ThreadPoolExecutor,
    "processes": ProcessPoolExecutor,
    "loky": loky_executor,
    "dask": dask_executor,
    "ray": ray_executor,
}


@dataclass(frozen=True)
class Setting:
    """What a batch runs on."""

    engine: str
    examples: int
    mb: int
    workers: int
    reply_seconds: float


def run(setting: Setting, folder: Path) -> None:
    """Run the batch in this process; print a line for each row, then what was sent to the executor."""
    sent, began = [0], time.monotonic()

    def made() -> Executor:
        executor = ENGINES[setting.engine](setting.workers)
        submit = executor.submit

        def counted(fn: Any, /, *args: Any, **options: Any) -> Any:
            sent[0] += len(fn.args[0]) if isinstance(fn.args[0], bytes) else 0
            return submit(fn, *args, **options)

        executor.submit = counted  # type: ignore[method-assign]
        return executor

    context, words = "word " * (setting.mb * 200_000), setting.mb * 200_000
    given = [
        dspy.Example(context=context, number=n).with_inputs("context", "number") for n in range(setting.examples)
    ]
    with dspy.context(lm=NotingLM(folder / "requests", setting.reply_seconds)):
        program = RLM("context: str, number: int -> words: int")
        for row in batch.run(program, given, made, folder / "runs", progress=False):
            is_right = not row.error and row.prediction.words == words + row.index
            if row.error:
                print(row.index, row.error, file=sys.stderr)
            print(json.dumps({"index": row.index, "right": is_right}), flush=True)
    print(json.dumps({"sent": sent[0], "seconds": time.monotonic() - began}), flush=True)


@contextlib.contextmanager
def peak_memory(pid: int) -> Iterator[list[int]]:
    """Yield a list with the largest memory of a process and all below it, in kB; shared pages count once."""
    peak, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_SECONDS):
            total = 0
            for each in (pid, *below(pid)):
                with contextlib.suppress(OSError, ValueError):
                    lines = Path(f"/proc/{each}/smaps_rollup").read_text(encoding="utf-8").splitlines()
                    total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def kill_the_next_asking(requests: Path, ended: int) -> None:
    """Kill the process that makes a request beyond those of the rows that have ended."""
    while len(list(requests.iterdir())) <= ended:
        time.sleep(0.001)
    last = max(requests.iterdir())
    os.kill(int(last.name.rpartition("-")[2]), signal.SIGKILL)


def measure(setting: Setting, folder: Path, *, kill: bool) -> dict[str, float | str | bool]:
    """Return what a batch took, as a line of the results."""
    requests, right, in_flight, peak_kb = folder / "requests", set(), 0, 0
    requests.mkdir()
    command = [sys.executable, __file__, "--run", json.dumps(vars(setting)), str(folder)]
    began, cpu, load = time.monotonic(), _cpu_seconds(), os.getloadavg()[0]
    ended: dict[str, float] = {}
    while not ended:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            with peak_memory(process.pid) as peak:
                for told in _lines(process.stdout):
                    if "sent" in told:
                        ended = told
                    elif told["right"]:
                        right.add(told["index"])
                    if kill and len(right) == max(1, setting.examples // 4):
                        kill_the_next_asking(requests, len(right))
                        kill, in_flight = False, len(list(requests.iterdir())) - len(right)
            peak_kb = max(peak_kb, peak[0])
        if not ended and process.returncode != -signal.SIGKILL:
            raise SystemExit(f"{setting.engine} ended with {process.returncode}")
    return {
        "seconds": round(time.monotonic() - began, 1),
        "batch_seconds": round(ended["seconds"], 1),
        "cpu_seconds": round(_cpu_seconds() - cpu, 1),
        "peak_mb": round(peak_kb / _MEBI),
        "bytes_sent_a_run": round(ended["sent"] / setting.examples),
        "lost": setting.examples - len(right),
        "paid_twice": len(list(requests.iterdir())) - setting.examples,
        "in_flight_at_kill": in_flight,
        "load": f"{load:.1f} to {os.getloadavg()[0]:.1f}",
    }


def _lines(output: IO[str]) -> Iterator[dict[str, Any]]:
    for line in output:
        with contextlib.suppress(ValueError):  # what a library prints
            yield json.loads(line)


def _cpu_seconds() -> float:
    """Return the CPU time of all ended processes below this one, as far as they were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--mb", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--reply-seconds", type=float, default=0.05, help="how long a reply takes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(Setting(**json.loads(options.run[0])), Path(options.run[1]))
        return
    there = options.results.read_text(encoding="utf-8").splitlines() if options.results.exists() else []
    known = [json.loads(line) for line in there]
    for engine in options.engine:
        setting = Setting(engine, options.examples, options.mb, options.workers, options.reply_seconds)
        for kill in (False, True):
            what = {**vars(setting), "kill": kill}
            if any(what.items() <= line.items() for line in known):
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = what | measure(setting, Path(folder), kill=kill)
            with options.results.open("a", encoding="utf-8") as file:
                print(json.dumps(found), file=file)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
