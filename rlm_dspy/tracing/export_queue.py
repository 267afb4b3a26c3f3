"""Hands traces to MLflow's store in a thread of its own: a store that is slow or down costs a run nothing."""

from __future__ import annotations

import atexit
import contextlib
import copy
import logging
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.tracing import provider
from mlflow.tracing.export.async_export_queue import Task
from mlflow.tracing.trace_manager import InMemoryTraceManager

from rlm_dspy.text import logger

if TYPE_CHECKING:
    from collections.abc import Callable

_logger = logger("dspy.rlm_dspy.tracing")
_THREAD = "rlm-dspy-outbox"
_MOST_TASKS = 2_000
_PROBE_SECONDS = 3.0
_PROBE_AFTER_SECONDS = 5.0
_AGAIN_AFTER_SECONDS = 30.0
_AT_EXIT_SECONDS = 60.0
"""How long the end of a process waits for a store that takes what it is given."""
_LOUD = ("mlflow.tracing.export.mlflow_v3", "mlflow.tracing.export.async_export_queue", "urllib3.connectionpool")


class Outbox:
    """Takes the place of the queue of MLflow's exporter: one daemon thread, in order, never waited for.

    A server is asked for a sign of life before it is given anything, if the last one is some seconds old. Without
    one, what is queued is dropped, which is said once, and nothing is taken until it answers again.

    Args:
        uri: The tracking URI. Only servers (http, https) are probed.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.lost = 0
        """Tasks that were dropped since the server was last seen."""
        self.hurried = False
        """Whether somebody waits for the end of the process."""
        self._tasks: deque[Task | None] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._down = False
        self._probed = 0.0
        self._complaint = ""
        self._then: Callable[[], Any] | None = None
        self._said: set[str] = set()
        self._thread: threading.Thread | None = None
        _listeners.append(self)

    @property
    def open(self) -> bool:
        """Whether traces are taken. While they are not, asking has the server probed now and then."""
        if self._down and time.monotonic() - self._probed > _AGAIN_AFTER_SECONDS:
            self._probed = time.monotonic()
            self._put(None)
        return not self._down

    def close(self, then: Callable[[], Any]) -> None:
        """Take nothing until the server is seen to answer; call `then` when it does, before anything else."""
        self._down, self._probed, self._then = True, time.monotonic(), then
        self._drop(None)

    # What MLflow's exporter calls

    def put(self, task: Task) -> None:
        """Queue a task; it is dropped if the store does not keep up."""
        if self._down or len(self._tasks) >= _MOST_TASKS:
            self.lost += 1
            if not self._down:
                self._say(f"{self.uri} does not keep up with the traces; some are lost.")
            return
        self._put(task)

    @property
    def waiting(self) -> int:
        """How many parts of traces are neither stored nor dropped."""
        return len(self._tasks) + self._busy

    def flush(self, terminate: bool = False, seconds: float = 60.0) -> None:
        """Wait until what is queued is stored or dropped, or for so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._tasks and not self._busy, timeout=seconds)

    def hurry(self, seconds: float) -> None:
        """Store what ends traces first, and what else is queued for so many seconds; later, nothing is waited for.

        It is not stored behind what is under way, which may take long.
        """
        self.hurried = True
        with self._changed:
            tasks = [task for task in self._tasks if task is not None]
            self._tasks.clear()
            self._changed.notify_all()

        def store() -> None:
            ends = [task for task in tasks if _ends_a_trace(task)]
            with _beginning:  # a beginning that is under way must not be stored over the end
                for task in ends:
                    task.handle()
            for task in tasks:
                if task not in ends:
                    task.handle()

        storing = threading.Thread(target=store, name=_THREAD, daemon=True)
        storing.start()
        storing.join(seconds)

    # The thread

    def _put(self, task: Task | None) -> None:
        with self._changed:
            self._tasks.append(task)
            self._changed.notify_all()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name=_THREAD, daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._tasks)
                task, self._busy = self._tasks.popleft(), True
            if not self._answers():
                self._drop(task)
            elif task is not None:
                self._handle(task)

    def _handle(self, task: Task) -> None:
        began, self._complaint = time.monotonic(), ""
        task.handle()
        if self._complaint:
            self._probed = 0.0
            self._say(f"A trace was not stored whole: {self._complaint[:300]}")
        elif time.monotonic() - began < _PROBE_AFTER_SECONDS:
            self._probed = time.monotonic()

    def _answers(self) -> bool:
        if not self.uri.startswith("http") or (
            not self._down and time.monotonic() - self._probed < _PROBE_AFTER_SECONDS
        ):
            return True
        alive = answers(self.uri)
        self._probed = time.monotonic()
        if alive and self._down:
            _logger.warning("%s answers again; %d parts of traces were lost.", self.uri, self.lost)
            self.lost = 0
            self._said.clear()
            then, self._then = self._then, None
            if then is not None:
                then()
        self._down = not alive
        return alive

    def _drop(self, task: Task | None) -> None:
        with self._changed:
            self.lost += len(self._tasks) + (task is not None)
            self._tasks.clear()
        self._say(f"{self.uri} does not answer. Runs go on; they are not traced until it does.")

    def _say(self, message: str) -> None:
        if not self._said:
            self._said.add(message)
            _logger.warning("%s", message)

    def complained(self, message: str) -> None:
        """Remember what MLflow said while it stored."""
        self._complaint = self._complaint or message


class _Quiet(logging.Filter):
    """Keeps what MLflow and its HTTP client say in the outbox's thread; the outbox says it once."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.threadName != _THREAD:
            return True
        if record.levelno >= logging.WARNING:
            for outbox in _listeners:
                if outbox._thread is threading.current_thread():  # noqa: SLF001
                    outbox.complained(record.getMessage())
        return False


_beginning = threading.Lock()
_listeners: list[Outbox] = []
_quiet = _Quiet()


def answers(uri: str, seconds: float = _PROBE_SECONDS) -> bool:
    """Return whether a server gives any answer in this time."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=seconds):  # noqa: S310 (a tracking URI)
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def later(function: Callable[..., Any], *args: Any) -> None:
    """Call a function behind what is queued; where MLflow stores at once, now."""
    task, queue = Task(function, args, "Not logged to MLflow."), outbox()
    if queue is None:
        task.handle()
    else:
        queue.put(task)


def outbox() -> Outbox | None:
    """Return the outbox of MLflow's exporter, put in place if it is not there; None if MLflow stores at once."""
    provider._get_tracer(__name__)  # noqa: SLF001  # makes the exporter
    exporter: Any = provider._get_trace_exporter()  # noqa: SLF001
    queue = getattr(exporter, "_async_queue", None)
    if queue is None:
        return None
    if not isinstance(queue, Outbox):
        queue = exporter._async_queue = Outbox(exporter._client.tracking_uri)  # noqa: SLF001
        for name in _LOUD:
            logging.getLogger(name).addFilter(_quiet)
        atexit.register(_at_exit, queue)
    return queue


def flush(seconds: float = 60.0) -> None:
    """Wait until the traces so far are stored, at most for so many seconds."""
    queue = outbox()
    _hand_over(seconds)
    if queue is not None:
        queue.flush(seconds=seconds)
    else:
        mlflow.flush_trace_async_logging()


def announce(trace_id: str) -> None:
    """Store that a trace has begun, with its spans so far: it is found also if this process is killed."""
    exporter: Any = provider._get_trace_exporter()  # noqa: SLF001
    with InMemoryTraceManager.get_instance().get_trace(trace_id) as trace:
        if trace is None or not hasattr(exporter, "_client"):
            return
        info, spans = copy.copy(trace.info), list(trace.span_dict.values())
        info.tags, info.trace_metadata = dict(info.tags), dict(info.trace_metadata)
    later(_store_beginning, exporter._client, info, spans)  # noqa: SLF001


def _store_beginning(client: Any, info: Any, spans: list[Any]) -> None:
    with _beginning:
        if has_ended(info.trace_id):
            return
        with contextlib.suppress(NotImplementedError):  # a store that takes spans only as a file, in the end
            client.log_spans(info.experiment_id, spans)
        client.start_trace(info)  # last, as a span without an end would pass for one that is all right


def has_ended(trace_id: str) -> bool:
    """Return whether a trace has ended."""
    with InMemoryTraceManager.get_instance().get_trace(trace_id) as trace:
        return trace is None


def _ends_a_trace(task: Task) -> bool:
    return getattr(task.handler, "__name__", "") == "_log_trace"


def hurry(seconds: float) -> None:
    """Store the ends of traces first, in so many seconds at most, and wait for nothing when the process ends."""
    queue = outbox()
    _hand_over(seconds)
    if queue is not None:
        queue.hurry(seconds)


def _hand_over(seconds: float) -> None:
    """Have MLflow queue the spans that it has gathered; in a thread, as an interrupt would lose what it holds."""
    processor: Any = provider._get_span_processor()  # noqa: SLF001
    if processor is not None:
        flushing = threading.Thread(target=processor.force_flush, args=(int(seconds * 1000),), daemon=True)
        flushing.start()
        flushing.join(seconds)


def _at_exit(queue: Outbox) -> None:
    if queue.hurried:
        return
    flush(_AT_EXIT_SECONDS)
    if lost := queue.lost + queue.waiting:
        _logger.warning("%d parts of traces were not stored at %s.", lost, queue.uri)
