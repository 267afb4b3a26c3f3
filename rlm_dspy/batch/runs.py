"""Defines `run`, which runs a program on many examples and keeps each result as it arrives."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import shutil
from collections import ChainMap, Counter, deque
from collections.abc import Sized
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import dspy
from filelock import FileLock, Timeout

from rlm_dspy.batch.bar import Bar
from rlm_dspy.batch.engine import SHARED, Engine, Job, check
from rlm_dspy.batch.shared_budget import SharedBudget
from rlm_dspy.batch.shipping import identity
from rlm_dspy.batch.store import Row, Store
from rlm_dspy.batch.taken import TakenInFile, TakenOnServer
from rlm_dspy.budget.ledger import NOTHING_USED
from rlm_dspy.budget.provider_errors import may_pass
from rlm_dspy.cache import digest
from rlm_dspy.errors import LedgerLost, LimitExceeded, RLMError, UnknownPrice
from rlm_dspy.limits import Limited, limits_of_budget
from rlm_dspy.optimize.rollouts import key_of
from rlm_dspy.report.record import in_one_line
from rlm_dspy.usage import CAPS

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

    from rlm_dspy.batch.engine import Workers
    from rlm_dspy.batch.task import Outcome
    from rlm_dspy.limits import Limits
    from rlm_dspy.usage import Usage

_MOST_SUBMITTED = 1_000
"""Maximum number of submitted runs, waiting or running."""
_FIRST_SUBMITTED = 16
"""The same with a budget, until the first run has ended: its usage is not known before."""
_SPENT = (
    "The budget of the batch does not allow the runs of the examples that have no row yet. Run it again with a "
    "larger budget: stored results are not paid for again."
)
_logger = logging.getLogger("dspy.rlm_dspy")


def run(
    program: dspy.Module,
    examples: Iterable[dspy.Example],
    executor: Workers = None,
    store: str | os.PathLike[str] = "runs/",
    retries: int = 2,
    *,
    budget: Limits | float | None = None,
    ledger: str | None = None,
    progress: bool = True,
) -> Iterator[Row]:
    r"""Run a program on examples, and yield each result as it ends; it runs while it is iterated.

    Each result is written to the store when it arrives: a line in `<store>/<program>.jsonl`, keyed by the state of
    the program (signatures, instructions, demos, limits, tools, the model's name) and the inputs of the example.
    A later call with the same store yields what is there, and runs the rest: also after a kill. Files that code
    wrote are in a folder beside it, and so is a pickle of each prediction, from which a later call reads it. A
    pickle can run code: do not pass a store that you do not trust.

    In other processes a program runs with the settings of DSPy of the caller, without callbacks. It is sent once,
    and so is each text of 50,000 characters or more: as a file in the store, which all workers must see.

    Args:
        program: Any module. It and its LM must be picklable for other processes.
        examples: Examples with their inputs set; they are read as they are needed.
        executor: A `concurrent.futures.Executor`: of threads, of processes, of loky, of Dask. Or a function that
            makes one, such as `lambda: ProcessPoolExecutor(4)`: it is made again when a worker is killed, and what
            ran on it is run again. Or `"ray"`, for the cluster that Ray is connected to, else one on this machine.
            Default: `dspy.settings.num_threads` threads.
        store: A folder; one batch at a time may use it.
        retries: How often an example is run again after a transient error of its model, or after the death of its
            worker.
        budget: What all runs may use together, earlier ones of this program in the store included: USD, or a
            `Limits` of `max_cost`, `max_input_tokens` and `max_output_tokens` (and `prices`, beside those of the
            program's RLMs). It is never overspent: what a
            killed process could have used counts as used.
        ledger: The address of a Redis server, such as `"redis://host:6379/0"` (extra `redis`), that counts what is
            used of the budget: for workers on other machines, and for batches with stores of their own that share
            the budget of one program. Default: an SQLite file in the store.
        progress: Whether to show a bar with rate, cost and time left: on a terminal and, if ipywidgets is
            installed, in a notebook.

    Yields:
        A `Row` for each example, in the order in which they end. A run that failed has `error`.

    Raises:
        TypeError: If `executor` is something else, or the program cannot be sent to other processes.
        Exception: What reading the examples raises, and `TypeError` or `ValueError` for one that is no
            `dspy.Example` with inputs: after the rows of the runs that had begun.
        WorkersLost: If a worker died and the executor cannot be made again.
        LimitExceeded: After the last row, if the budget does not allow to run the other examples.
        LedgerLost: After the last row, if the server of `ledger` fails or has lost its data.
        ValueError: If `budget` or `retries` are out of their range, or there is a `ledger` without a budget.
        RLMError: If another batch uses the store.
        OSError: If the store cannot be written: after the rows of the runs that had begun.

    Examples:
        >>> import tempfile
        >>> from rlm_dspy import RLM, batch
        >>> from rlm_dspy.testing import ScriptedLM
        >>> examples = [dspy.Example(text=text).with_inputs("text") for text in ("to be", "or not to be")]
        >>> lm = ScriptedLM(lambda messages: "```python\nSUBMIT(words=len(text.split()))\n```")
        >>> with tempfile.TemporaryDirectory() as store, dspy.context(lm=lm):
        ...     rows = list(batch.run(RLM("text -> words: int"), examples, store=store))
        >>> sorted((row.index, row.prediction.words) for row in rows)
        [(0, 2), (1, 4)]
    """
    if retries < 0:
        raise ValueError(f"retries must be 0 or more, not {retries}.")
    check(program, executor)
    bar = Bar(len(examples) if isinstance(examples, Sized) else None, shown=progress)
    limits = None if budget is None else limits_of_budget(budget, CAPS, "run")
    if limits is not None:
        known = [module.limits.prices for _, module in program.named_sub_modules(Limited)]
        limits = replace(limits, prices=dict(ChainMap(dict(limits.prices), *map(dict, known))))
    elif ledger is not None:
        raise ValueError("ledger counts what is used of a budget: pass budget=... too.")
    return _Batch(program, examples, executor, Path(store), retries, limits, ledger).rows(bar)


def _error_line(error: BaseException) -> str:
    name = type(error).__name__
    return f"{name}: {in_one_line(error).removeprefix(f'{name}: ')}"


@dataclass(eq=False)
class _Task:
    """An example that is to be run.

    Attributes:
        attempts: How often it was run.
        usage: What these attempts used.
        seconds: How long they took.
        refused: Whether the budget did not allow to begin it, the last time.
    """

    index: int
    example: dspy.Example
    key: str
    job: Job
    attempts: int = 0
    usage: Usage = NOTHING_USED
    seconds: float = 0.0
    refused: bool = False


class _Batch:
    """The state of one call of `run`, whose arguments it takes."""

    def __init__(
        self,
        program: dspy.Module,
        examples: Iterable[dspy.Example],
        workers: Workers,
        folder: Path,
        retries: int,
        limits: Limits | None,
        ledger: str | None,
    ) -> None:
        self._program, self._workers, self._folder, self._retries = program, workers, folder, retries
        self._context = contextvars.copy_context()
        self._key = key_of(program, dspy.settings.lm)
        self._examples = enumerate(examples)
        self._equal: Counter[str] = Counter()
        self._again: deque[_Task] = deque()
        self._suspects: deque[_Task] = deque()
        """Examples that fail at the next loss of a worker. Each runs alone, to find the one that kills workers."""
        self._running: set[Future[Any]] = set()
        self._name = self._key[:16]
        in_file = TakenInFile(folder / f"{self._name}.budget")
        self._taken = in_file if ledger is None else TakenOnServer(ledger, f"rlm_dspy:budget:{self._name}")
        self._budget = None if limits is None else SharedBudget(self._taken, limits)
        self._most = _MOST_SUBMITTED if limits is None else _FIRST_SUBMITTED
        self._used, self._rows, self._is_spent = NOTHING_USED, 0, False
        self._failure: Exception | None = None
        """Why no further run begins: the store is full, or the examples cannot be read."""
        self._arrived: SimpleQueue[tuple[Future[Any], Row | _Task | BaseException]] = SimpleQueue()

    def rows(self, bar: Bar) -> Iterator[Row]:
        """Yield the rows; see `run`."""
        with self._locked(), bar:
            if isinstance(self._taken, TakenOnServer):
                self._taken.begin(self._folder / f"{self._name}.ledger")
            self._store = Store(self._folder / f"{self._name}.jsonl", self._program)
            self._engine = Engine(self._workers, self._folder, self._retries)
            try:
                for row in self._ended():
                    bar.add(row)
                    yield row
            finally:
                self._finish()

    def _ended(self) -> Iterator[Row]:
        while True:
            while self._has_room() and (upcoming := self._next()) is not None:
                if isinstance(upcoming, Row):
                    yield upcoming
                elif self._affords_another():
                    future = self._engine.submit(upcoming.job)
                    self._running.add(future)
                    future.add_done_callback(partial(self._take, upcoming))
                else:
                    self._again.appendleft(upcoming)
                    break
            if not self._running:
                if self._failure is not None:
                    raise self._failure
                if self._again:
                    yield from self._stored_ones()
                    raise LimitExceeded(_SPENT)
                return
            future, found = self._arrived.get()
            self._running.remove(future)
            if isinstance(found, BaseException):
                raise found
            if isinstance(found, Row):
                self._most, self._rows, self._used = _MOST_SUBMITTED, self._rows + 1, self._used + found.usage
                yield found
            else:
                self._put_back(found)

    def _has_room(self) -> bool:
        """Return whether another run may begin; after a failure, cancel those that have not begun."""
        if self._failure is not None:
            for future in self._running:
                future.cancel()
        return self._failure is None and len(self._running) < self._most

    def _put_back(self, task: _Task) -> None:
        """Let a run begin again later."""
        if task.refused:  # what runs now may give back enough for it; if it ran alone, nothing does
            self._is_spent, self._most = self._most == 1 and not self._running, 1
        is_suspect = task.job.losses and task.job.losses >= self._retries
        (self._suspects if is_suspect else self._again).append(task)

    def _affords_another(self) -> bool:
        if self._budget is None or self._is_spent:
            return not self._is_spent
        return self._budget.affords(len(self._running) + 1, self._used, self._rows)

    def _next(self) -> Row | _Task | None:
        """Return the next example, or its stored row; None if there is none for now."""
        if self._again:
            return self._again.popleft()
        try:
            if (upcoming := next(self._examples, None)) is not None:
                return self._stored_or_new(*upcoming)
        except Exception as error:  # noqa: BLE001 (of the caller's examples; raised when what has begun has ended)
            self._failure = error
            return None
        return self._suspects.popleft() if self._suspects and not self._running else None

    def _stored_ones(self) -> Iterator[Row]:
        """Yield the rows of examples that were not read yet: they cost nothing."""
        for index, example in self._examples:
            if isinstance(found := self._stored_or_new(index, example), Row):
                yield found

    def _stored_or_new(self, index: int, example: dspy.Example) -> Row | _Task:
        if not isinstance(example, dspy.Example):
            wanted = 'dspy.Example(text="...").with_inputs("text")'
            raise TypeError(f"Example {index} is a {type(example).__name__}; pass {wanted}.")
        try:
            inputs = dict(example.inputs().items())
        except ValueError as error:
            raise ValueError(f"Example {index}: {error}") from None
        key = digest(self._key, identity(inputs))
        self._equal[key] += 1
        key = digest(key, self._equal[key])  # equal examples are different runs
        job = Job(self._program, inputs, self._context, self._budget)
        return self._store.find(key, index, example) or _Task(index, example, key, job)

    def _take(self, task: _Task, future: Future[Any]) -> None:
        """Keep a result as soon as it arrives, in any thread, also if nobody waits for it any more."""
        found: Row | _Task | BaseException
        try:
            outcome = None if future.cancelled() else self._engine.outcome(task.job, future)
            found = task if outcome is None else self._kept(task, outcome)
        except BaseException as error:  # noqa: BLE001 (raised where rows are yielded)
            found = error
        self._arrived.put((future, found))

    def _kept(self, task: _Task, outcome: Outcome) -> Row | _Task:
        """Store the row of an outcome and return it; return the task if it is to be run again."""
        error = outcome.error
        if (refusal := outcome.refusal) is not None:
            task.refused = not outcome.usage.calls and not isinstance(refusal, UnknownPrice)
            if task.refused and isinstance(refusal, LedgerLost):
                raise refusal
            if task.refused:
                return task
            if getattr(outcome.prediction, "stop", "unanswered") == "unanswered":
                error = error or refusal
        task.attempts += 1
        task.usage += outcome.usage
        task.seconds += outcome.usage.seconds
        if error is not None and may_pass(error, is_stream=False) and task.attempts <= self._retries:
            return task
        row = Row(
            index=task.index,
            example=task.example,
            prediction=outcome.prediction if error is None else None,
            error="" if error is None else self._store.without_secrets(_error_line(error)),
            trajectory=getattr(error, "trajectory", None) or getattr(outcome.prediction, "trajectory", []),
            usage=task.usage,
            seconds=task.seconds,
            attempts=task.attempts,
        )
        try:
            self._store.keep(task.key, row)
        except OSError as full:  # the row is paid for, so it is yielded; no further run begins
            full.add_note(
                f"A result could not be stored in {str(self._folder)!r}; earlier results are in the store."
            )
            self._failure = full
        return row

    def _finish(self) -> None:
        """Start no more runs, and store the results of the running ones."""
        waiting = [future for future in self._running if not future.cancel()]
        if any(not future.done() for future in waiting):
            _logger.warning("Waiting for %d runs that are under way, to keep their results.", len(waiting))
        wait_for(waiting)
        self._engine.close()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the store, and remove what a killed batch left in it.

        Raises:
            RLMError: If another batch holds it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self._folder / ".lock", timeout=0):
                for left in self._folder.glob(f"{SHARED}*"):
                    shutil.rmtree(left, ignore_errors=True)
                yield
        except Timeout:
            message = f"Another batch uses the store {str(self._folder)!r}. Wait for it, or pass another store."
            raise RLMError(message) from None
