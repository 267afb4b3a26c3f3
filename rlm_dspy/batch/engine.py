"""Submits runs to an executor, and makes the executor again when the death of a worker has broken it."""

from __future__ import annotations

import contextvars
import itertools
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import cloudpickle
import dspy

from rlm_dspy.batch.on_ray import RayExecutor
from rlm_dspy.batch.shipping import SharedFolder
from rlm_dspy.batch.task import ENDED, Outcome, RemoteRun, attempt, perform
from rlm_dspy.errors import WorkersLost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlm_dspy.batch.shared_budget import SharedBudget

Workers: TypeAlias = Executor | Callable[[], Executor] | Literal["ray"] | None
_MOST_BROKEN = 3
"""How many executors in a row may break without a finished run."""


@dataclass(eq=False)
class Job:
    """One run of a program.

    Attributes:
        program: The program; its settings are those of `context`.
        inputs: Its inputs.
        context: The context of the caller.
        budget: The budget that it is a part of.
        traced: Whether the trace of its predictors is returned from another process.
        losses: The workers that have died while they ran it.
    """

    program: dspy.Module
    inputs: Mapping[str, Any]
    context: contextvars.Context = field(default_factory=contextvars.copy_context, repr=False)
    budget: SharedBudget | None = None
    traced: bool = False
    losses: int = 0
    mark: Path | None = None


class Engine:
    """An executor, and the folder from which its workers read programs and long inputs.

    Args:
        workers: An executor; or a function that makes one, which is called again when a worker's death has broken
            it; `"ray"` for the cluster that Ray is connected to; None for `dspy.settings.num_threads` threads.
        folder: Where to make the folder; None for the system's folder for temporary files.
        retries: How many workers may die of a run before it counts as failed.

    Raises:
        TypeError: If the function makes something else.
    """

    def __init__(self, workers: Workers, folder: Path | None = None, retries: int = 2) -> None:
        self._workers, self._folder = workers, folder
        self._make: Callable[[], Executor] | None = None
        if isinstance(workers, Executor):
            self._executor = workers
        else:
            threads = partial(ThreadPoolExecutor, dspy.settings.num_threads, "rlm-batch")
            self._make = RayExecutor if workers == "ray" else workers or threads
            self._executor = _made(self._make)
        self._retries, self._broken, self._numbers = retries, 0, itertools.count()
        self._is_closed = False
        self._lock = threading.Lock()
        self._shared_folder: SharedFolder | None = None
        if not isinstance(self._executor, ThreadPoolExecutor):
            shared = Path(tempfile.mkdtemp(prefix=SHARED, dir=folder)).absolute()
            self._shared_folder = SharedFolder(shared)
            self._remove = weakref.finalize(self, _remove, shared, os.getpid())

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """Return the same object: copies of a program share their workers."""
        return self

    def __reduce__(self) -> tuple[type[Engine], tuple[Workers, Path | None, int]]:
        """Return how it is made again where it is loaded, with workers of its own.

        Raises:
            TypeError: If the executor was made elsewhere.
        """
        if self._make is None:
            name = type(self._executor).__name__
            raise TypeError(
                f"The {name} of this module cannot be saved. Save the program itself, module.program, or pass a "
                f"function that makes the executor: batch.on(program, executor=lambda: {name}(...))."
            )
        return Engine, (self._workers, self._folder, self._retries)

    def submit(self, job: Job) -> Future[Any]:
        """Begin a run; `outcome` reads what the future returns, also that its inputs cannot be sent.

        Raises:
            TypeError: If the program cannot be sent to other processes.
            RuntimeError: If the engine is closed.
            WorkersLost: If the executor is broken and cannot be made again.
        """
        if self._is_closed:
            raise RuntimeError("engine.close() has ended these workers. Make new ones: batch.on(program, ...).")
        context = job.context.copy()
        task: Callable[[], Outcome | bytes] = partial(context.run, attempt, job.program, job.inputs, job.budget)
        # A worker forked while another thread pickles would inherit cloudpickle's lock, locked for ever.
        with self._lock:
            if self._shared_folder is not None:
                job.mark = self._shared_folder.folder / f"{next(self._numbers)}.began"
                run = context.run(self._remote_run, self._shared_folder, job)
                try:
                    task = partial(perform, bytes(cloudpickle.dumps(run)))
                except Exception as error:  # noqa: BLE001 (values of user code may raise anything)
                    return _failed(error)
            try:
                return self._executor.submit(task)
            except BrokenExecutor as error:
                self._broken += 1
                if self._make is None or self._broken > _MOST_BROKEN:
                    raise self._lost() from error
                self._executor = _made(self._make)
                return self._executor.submit(task)

    def _remote_run(self, folder: SharedFolder, job: Job) -> RemoteRun:
        program, inputs = folder.publish_program(job.program), folder.publish(dict(job.inputs))
        return RemoteRun(program, inputs, job.budget, job.mark, job.traced)

    def outcome(self, job: Job, future: Future[Any]) -> Outcome | None:
        """Return what came of a run when its future has ended; None if its worker died and it may be tried again.

        Raises:
            WorkersLost: If the executor cannot be made again.
        """
        try:
            found = _returned(job, future)
            outcome: Outcome = found if isinstance(found, Outcome) else cloudpickle.loads(found)
        except BrokenExecutor as error:
            if self._make is None:
                raise self._lost() from error
            job.losses += job.mark is not None and job.mark.exists()
            lost = WorkersLost(f"{job.losses} workers died while they ran this example: the last one of {error}")
            return Outcome(error=lost) if job.losses > self._retries else None
        except Exception as error:  # noqa: BLE001 (what an executor raises, or an outcome that cannot be unpickled)
            outcome = Outcome(error=error)
        self._broken = 0
        _forget(job)
        return outcome

    def _lost(self) -> WorkersLost:
        name = type(self._executor).__name__
        if self._make is None:
            return WorkersLost(
                f"A worker of the {name} died, which breaks it. Pass a function that makes the executor, such as "
                f"executor=lambda: {name}(...), and it is made again."
            )
        return WorkersLost(f"{self._broken} {name}s in a row broke before a run had ended.")

    def close(self) -> None:
        """Shut the executor down, if it was made here, when its runs have ended; remove the folder."""
        self._is_closed = True
        if self._make is not None:
            self._executor.shutdown(wait=True)
        if self._shared_folder is not None:
            self._remove()


def _returned(job: Job, future: Future[Any]) -> Any:
    """Return what a run returned, also if its executor has broken before that arrived.

    Raises:
        Exception: What the run or the executor raised.
    """
    try:
        return future.result()
    except BrokenExecutor:
        if job.mark is None or not (ended := job.mark.with_suffix(ENDED)).exists():
            raise
        return ended.read_bytes()


def _forget(job: Job) -> None:
    """Remove the files of a run that has ended."""
    if job.mark is not None:
        job.mark.unlink(missing_ok=True)
        job.mark.with_suffix(ENDED).unlink(missing_ok=True)


SHARED = ".shared-"
"""How the names of the folders begin from which workers read."""


def check(program: dspy.Module, workers: Workers) -> None:
    """Check what a user gives as `program` and `executor`.

    Raises:
        TypeError: If the program is not a module, or the executor is neither an executor nor a function.
    """
    if not isinstance(program, dspy.Module):
        raise TypeError(f"program must be a dspy.Module, not {program!r}.")
    if not (workers is None or workers == "ray" or isinstance(workers, Executor) or callable(workers)):
        raise TypeError(f"executor must be {_WANTED}, not {workers!r}.")


_WANTED = "a concurrent.futures.Executor, 'ray', or a function such as lambda: ProcessPoolExecutor(4)"


def _failed(error: Exception) -> Future[Any]:
    """Return the future of a run that cannot begin; other inputs of its batch may well be sent."""
    future: Future[Any] = Future()
    message = f"These inputs cannot be sent to other processes: {error}. Pass plain data, or use threads."
    future.set_exception(TypeError(message))
    return future


def _made(make: Callable[[], Executor]) -> Executor:
    executor = make()
    if not isinstance(executor, Executor):
        raise TypeError(f"executor must be {_WANTED}, but it made {executor!r}.")
    return executor


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked worker
        shutil.rmtree(folder, ignore_errors=True)
