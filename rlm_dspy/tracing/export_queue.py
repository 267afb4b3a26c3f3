"""Exports traces to MLflow in a background thread, so that a slow or failing store never delays a run."""

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
from mlflow.entities import Span

from rlm_dspy.text import logger
from rlm_dspy.tracing import _mlflow_compat

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow.entities import TraceInfo

    from rlm_dspy.tracing._mlflow_compat import TracingClient

_logger = logger("dspy.rlm_dspy.tracing")
_THREAD = "rlm-dspy-export"
_MAX_TASKS = 2_000
_PROBE_SECONDS = 3.0
_PROBE_AFTER_SECONDS = 5.0
_AGAIN_AFTER_SECONDS = 5.0
_MAX_ATTEMPTS = 3
_SCORED_AFTER_SECONDS = 10.0
"""Seconds that a score waits for MLflow to queue the spans of its trace."""
_AT_EXIT_SECONDS = 60.0
"""Seconds that the end of a process waits for the next task to be stored."""
_UNHEARD = "mlflow.tracing.export.mlflow_v3"
"""Logs spans that it could not store, e.g. in a locked database, as debug messages."""
_LOUD = (_UNHEARD, "mlflow.tracing.export.async_export_queue", "urllib3.connectionpool")


class ExportQueue:
    """Replaces the queue of MLflow's exporter: one daemon thread stores traces in order.

    A server is probed before an export, unless it responded a few seconds ago. If it does not respond, one warning
    is logged, tasks wait, and the server is probed every few seconds. A task that failed in part is stored again;
    MLflow replaces the part that it has.

    Args:
        uri: The tracking URI. Only servers (http, https) are probed.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.lost = 0
        """Tasks dropped since the last response of the server."""
        self.hurried = False
        """Whether `hurry` was called: the end of the process does not wait again."""
        self.open = True
        """Whether the store responds, as far as is known."""
        self._tasks: deque[_mlflow_compat.Task] = deque()
        self._lock = threading.RLock()
        """Entered itself: Ctrl-C in the method by which a Condition enters its lock would leave that held."""
        self._changed = threading.Condition(self._lock)
        self._busy = False
        self._attempts = 0
        """The number of failed attempts to store the first task."""
        self._unanswered = 0
        """The number of probes without a response."""
        self._alive_until = 0.0
        self._then: Callable[[], object] | None = None
        self._said = False
        self._thread: threading.Thread | None = None

    @property
    def accepts(self) -> bool:
        """Whether there is room for a new trace, and `close` does not hold the queue."""
        return self._then is None and len(self._tasks) < _MAX_TASKS

    @property
    def waiting(self) -> int:
        """The number of pending export tasks."""
        return len(self._tasks) + self._busy

    def close(self, then: Callable[[], object]) -> None:
        """Accept no task until the server responds; call `then` when it does."""
        self._say(f"{self.uri} does not answer. Runs go on; they are not traced until it does.")
        with self._lock:
            self._then = then
            self._wake()
            self.open = False

    def put(self, task: _mlflow_compat.Task) -> None:
        """Queue a task for MLflow's exporter; drop it if there is no room."""
        if not self.accepts:
            self.lost += 1
            if self.open:
                self._say(f"{self.uri} does not keep up with the traces; some are lost.")
            return
        with self._lock:
            self._tasks.append(task)
            self._wake()

    def flush(self, terminate: bool = False, seconds: float = 60.0) -> bool:
        """Wait until all tasks are stored, the server does not respond, or the time is over.

        Returns:
            Whether all tasks are stored.
        """
        with self._lock:
            before = self._unanswered
            self._changed.notify_all()  # a thread that waits for the server probes it now
            self._changed.wait_for(lambda: not self.waiting or self._unanswered > before, timeout=seconds)
        return self.open and not self.waiting and not self.lost

    def hurry(self, seconds: float) -> None:
        """Store the ends of traces first, then the rest, and wait no longer than this."""
        self.hurried = True
        with self._lock:
            self._tasks = deque(sorted(self._tasks, key=lambda task: not _mlflow_compat.ends_a_trace(task)))
        self.flush(seconds=seconds)

    def _wake(self) -> None:
        if self.open:  # else each task would probe the server
            self._changed.notify_all()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name=_THREAD, daemon=True)
            self._thread.start()

    # The thread

    def _work(self) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._tasks or self._then)
            if self._answers():
                self._store_first()
                continue
            self._say(f"{self.uri} does not answer. Runs go on; their traces wait until it does.")
            with self._lock:
                self.open = False
                self._unanswered += 1
                self._changed.notify_all()
                self._changed.wait(_AGAIN_AFTER_SECONDS)

    def _store_first(self) -> None:
        with self._lock:
            if not self._tasks:
                return
            task, self._busy = self._tasks.popleft(), True
        began = time.monotonic()
        task.handle()
        with self._lock:
            self._attempts = self._attempts + 1 if _heard else 0
            if 0 < self._attempts < _MAX_ATTEMPTS:
                self._tasks.appendleft(task)
            self._busy = False
            self._changed.notify_all()
        if self._attempts >= _MAX_ATTEMPTS:
            self.lost, self._attempts = self.lost + 1, 0
            self._say(f"A trace was not stored whole: {_heard[0][:300]}")
        failed, _heard[:] = bool(_heard), []
        if failed:
            self._alive_until = 0.0
        elif time.monotonic() - began < _PROBE_AFTER_SECONDS:
            self._alive_until = time.monotonic() + _PROBE_AFTER_SECONDS

    def _answers(self) -> bool:
        if self.uri.startswith("http") and time.monotonic() >= self._alive_until:
            if not answers(self.uri):
                return False
            self._alive_until = time.monotonic() + _PROBE_AFTER_SECONDS
        if not self.open:
            self._open_again()
        return True

    def _open_again(self) -> None:
        if self._then is not None:
            _mlflow_compat.Task(self._then, (), "Not done at MLflow.").handle()
        _logger.warning("%s answers again. Lost parts of traces: %d.", self.uri, self.lost)
        self.lost, self._said, self._then, self.open = 0, False, None, True

    def _say(self, message: str) -> None:
        if not self._said:
            self._said = True
            _logger.warning("%s", message)


_heard: list[str] = []
"""Messages of MLflow and its HTTP client in the export thread about what a task could not store."""


def _quiet(record: logging.LogRecord) -> bool:
    """Filter log records: collect those of the export thread, and show the others."""
    if record.threadName != _THREAD:
        return record.levelno > logging.DEBUG or record.name != _UNHEARD
    if record.levelno >= logging.WARNING or record.getMessage().startswith("Failed to log span"):
        _heard.append(record.getMessage())
    return False


def answers(uri: str, seconds: float = _PROBE_SECONDS) -> bool:
    """Return whether a server responds in time."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=seconds):  # noqa: S310 (a tracking URI)
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def later(function: Callable[..., Any], *args: Any) -> None:
    """Call a function after the queued tasks; at once if MLflow exports synchronously."""
    task, queue = _mlflow_compat.Task(function, args, "Not logged to MLflow."), installed_queue()
    if queue is None:
        task.handle()
    else:
        queue.put(task)


def keep_score(log: Callable[[], object]) -> None:
    """Store a score after its trace: MLflow accepts no score for a trace that is not stored.

    Args:
        log: Sends the score to MLflow; raises `MlflowException` if the trace is not stored yet.
    """
    _hand_over(_SCORED_AFTER_SECONDS)
    later(_store_score, log)


def _store_score(log: Callable[[], object]) -> None:
    try:
        log()
    except mlflow.MlflowException:  # on a busy machine the end of the trace arrives only now
        _mlflow_compat.force_flush(_SCORED_AFTER_SECONDS)
        later(log)


def installed_queue() -> ExportQueue | None:
    """Return the queue of MLflow's exporter, installed if necessary; None if MLflow exports synchronously."""
    return _mlflow_compat.export_queue(_made)


def _made(uri: str) -> ExportQueue:
    queue = ExportQueue(uri)
    for name in _LOUD:
        logging.getLogger(name).addFilter(_quiet)
    logging.getLogger(_UNHEARD).setLevel(logging.DEBUG)
    atexit.register(_at_exit, queue)
    return queue


def flush(seconds: float = 60.0) -> bool:
    """Wait until the traces so far are stored.

    Args:
        seconds: The longest time to wait.

    Returns:
        False if the time ran out, the store does not respond, or parts of traces were lost.
    """
    queue = installed_queue()
    _hand_over(seconds)
    if queue is not None:
        return queue.flush(seconds=seconds)
    mlflow.flush_trace_async_logging()
    return True


def announce(trace_id: str) -> None:
    """Store an open trace with its spans so far, so that it exists even if this process is killed."""
    stores = _mlflow_compat.client()
    with _mlflow_compat.open_trace(trace_id) as trace:
        if trace is None or stores is None:
            return
        info, spans = copy.copy(trace.info), list(trace.span_dict.values())
        info.tags, info.trace_metadata = dict(info.tags), dict(info.trace_metadata)
    later(_store_beginning, stores, info, spans)


def _store_beginning(stores: TracingClient, info: TraceInfo, spans: list[Any]) -> None:
    if has_ended(info.trace_id):
        return
    with contextlib.suppress(NotImplementedError):  # a store that accepts spans only as a file at the end
        stores.log_spans(info.experiment_id, [_with_an_end(span) for span in spans])
    stores.start_trace(info)  # last, because an open span would look successful


def _with_an_end(span: Any) -> Any:
    """Return an open span as one that ends now: MLflow shows a negative duration for a span without an end."""
    if span.end_time_ns is not None:
        return span
    return Span.from_dict({**span.to_dict(), "end_time_unix_nano": time.time_ns()})


def has_ended(trace_id: str) -> bool:
    """Return whether a trace has ended."""
    with _mlflow_compat.open_trace(trace_id) as trace:
        return trace is None


def hurry(seconds: float) -> None:
    """Store the ends of traces first, and do not wait at the end of the process.

    Args:
        seconds: The longest time to wait for the rest.
    """
    queue = installed_queue()
    _hand_over(seconds)
    if queue is not None:
        queue.hurry(seconds)


def _hand_over(seconds: float) -> None:
    """Make MLflow queue its collected spans, in a thread, because an interrupt here would lose them."""
    flushing = threading.Thread(target=_mlflow_compat.force_flush, args=(seconds,), daemon=True)
    flushing.start()
    flushing.join(seconds)


def _at_exit(queue: ExportQueue) -> None:
    if queue.hurried:
        return
    flush(_AT_EXIT_SECONDS)
    left = queue.waiting + 1
    while queue.open and queue.waiting < left:
        left = queue.waiting
        queue.flush(seconds=_AT_EXIT_SECONDS)
    if lost := queue.lost + queue.waiting:
        _logger.warning("Parts of traces that were not stored at %s: %d.", queue.uri, lost)
