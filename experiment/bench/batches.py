"""A batch over one long context through each kind of executor: time, memory, what is sent, and a worker killed.

The scripted model notes every request in a file, so it is known what was paid for twice. One worker process is
killed with -9 when a quarter of the rows has arrived (threads have none).

    python experiment/bench/batches.py --examples 200 --mb 50 --engine threads processes loky dask ray
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from concurrency import below, resident_kb

from rlm_dspy import RLM, batch
from rlm_dspy.batch.on_ray import RayExecutor
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPLY = "```python\nSUBMIT(words=context.count(' ') + number)\n```"


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

    ray.init(num_cpus=workers, include_dashboard=False, _node_ip_address="127.0.0.1", logging_level="warning")
    return RayExecutor()


ENGINES: dict[str, Callable[[int], Executor]] = {
    "threads": ThreadPoolExecutor,
    "processes": ProcessPoolExecutor,
    "loky": loky_executor,
    "dask": dask_executor,
    "ray": ray_executor,
}


@contextlib.contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Yield a list with the largest private memory of this process and all below it, in kB, sampled."""
    peak, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(0.2):
            total = 0
            for pid in (os.getpid(), *below(os.getpid())):
                with contextlib.suppress(OSError, KeyError):
                    total += resident_kb(pid)
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def kill_a_worker(requests: Path) -> int:
    """Kill the process, other than this one, that made the last request; return the number of those killed."""
    for path in sorted(requests.iterdir(), reverse=True):
        pid = int(path.name.rpartition("-")[2])
        if pid != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return 1
    return 0


def measure(engine: str, examples: int, megabytes: int, workers: int, seconds: float) -> dict[str, float | str]:
    """Return what a batch took."""
    sent = [0]

    def made() -> Executor:
        executor = ENGINES[engine](workers)
        submit = executor.submit

        def counted(fn: Any, /, *args: Any, **options: Any) -> Any:
            sent[0] += len(fn.args[0]) if isinstance(fn.args[0], bytes) else 0
            return submit(fn, *args, **options)

        executor.submit = counted  # type: ignore[method-assign]
        return executor

    context = "word " * (megabytes * 200_000)
    rows, killed = [], 0
    given = [dspy.Example(context=context, number=n).with_inputs("context", "number") for n in range(examples)]
    with tempfile.TemporaryDirectory() as folder, peak_memory() as peak:
        requests = Path(folder, "requests")
        requests.mkdir()
        began = time.monotonic()
        with dspy.context(lm=NotingLM(requests, seconds)):
            program = RLM("context: str, number: int -> words: int")
            for row in batch.run(program, given, made, Path(folder, "runs"), progress=False):
                rows.append(row)
                if len(rows) == max(1, examples // 4):
                    killed = kill_a_worker(requests)
        took = time.monotonic() - began
        paid = len(list(requests.iterdir()))
    right = sum(not row.error and row.prediction.words == megabytes * 200_000 + row.index for row in rows)
    return {
        "engine": engine,
        "seconds": round(took, 1),
        "peak_mb": round(peak[0] / 1024),
        "bytes_sent_a_run": round(sent[0] / examples),
        "killed": killed,
        "lost": examples - right,
        "paid_twice": paid - examples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=["threads", "processes", "loky"])
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--mb", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.05, help="how long a reply takes")
    options = parser.parse_args()
    for engine in options.engine:
        found = measure(engine, options.examples, options.mb, options.workers, options.seconds)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
