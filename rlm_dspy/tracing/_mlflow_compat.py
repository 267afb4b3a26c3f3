"""Collects the inner modules and private attributes of MLflow that tracing needs (mlflow 3.17).

No other module imports from inside MLflow or touches a private attribute of its objects. If a release moves or
renames one of them, adapt it here; if a release makes one public, remove it from here.

| name | why the public API does not suffice |
|---|---|
| `MlflowCallback`, `revert_patches`, `logs_traces` | MLflow's logging of DSPy, which this package replaces |
| `start_span_no_context`, `set_span_in_context`, `detach_span_from_context` | spans across callbacks |
| `SpanAttributeKey`, `TraceMetadataKey`, `Attachment` | read by MLflow's UI |
| `open_trace`, `rename` | a trace and a span before they are stored |
| `Task`, `TracingClient`, `export_queue`, `client`, `force_flush`, ... | the export queue |
| `replaced` | MLflow writes whole contexts and headers, loses scores, and has no hook |
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any, TypeVar, cast

import mlflow.dspy.callback
import mlflow.dspy.util
from mlflow.dspy.callback import MlflowCallback
from mlflow.tracing import provider
from mlflow.tracing.attachments import Attachment
from mlflow.tracing.client import TracingClient
from mlflow.tracing.constant import SpanAttributeKey, TraceMetadataKey
from mlflow.tracing.export.async_export_queue import AsyncTraceExportQueue, Task
from mlflow.tracing.fluent import start_span_no_context
from mlflow.tracing.provider import detach_span_from_context, set_span_in_context
from mlflow.tracing.trace_manager import InMemoryTraceManager
from mlflow.utils.autologging_utils import get_autologging_config, revert_patches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from mlflow.entities import LiveSpan

__all__ = [
    "Attachment",
    "MlflowCallback",
    "SpanAttributeKey",
    "Task",
    "TraceMetadataKey",
    "TracingClient",
    "client",
    "detach_span_from_context",
    "ends_a_trace",
    "export_queue",
    "force_flush",
    "logs_traces",
    "open_trace",
    "rename",
    "replaced",
    "revert_patches",
    "set_span_in_context",
    "start_span_no_context",
]

_LOGGING = (mlflow.dspy.util, mlflow.dspy.callback, importlib.import_module("mlflow.dspy.autolog"))
"""The modules that log DSPy; a function hides the name of the last one."""
Q = TypeVar("Q")


def logs_traces() -> bool:
    """Return whether MLflow currently traces calls of DSPy."""
    return bool(get_autologging_config("dspy", "log_traces"))


def open_trace(trace_id: str) -> AbstractContextManager[Any]:
    """Return a scope that yields an open trace; None if it has ended."""
    found: AbstractContextManager[Any] = InMemoryTraceManager.get_instance().get_trace(trace_id)
    return found


def rename(span: LiveSpan, name: str) -> None:
    """Rename an open span."""
    span._span.update_name(name)  # noqa: SLF001  # the OpenTelemetry span, which MLflow hides


def export_queue(make: Callable[[str], Q]) -> Q | None:
    """Return the export queue that `make` builds for a tracking URI; None if there is none."""
    exporter = _exporter()
    queue = getattr(exporter, "_async_queue", None)
    if isinstance(queue, AsyncTraceExportQueue):
        queue = exporter._async_queue = make(exporter._client.tracking_uri)  # noqa: SLF001
    return cast("Q | None", queue)


def client() -> Any:
    """Return the client that stores traces; None if there is none."""
    return getattr(_exporter(), "_client", None)


def _exporter() -> Any:
    provider._get_tracer(__name__)  # noqa: SLF001  # created if missing
    return provider._get_trace_exporter()  # noqa: SLF001


def ends_a_trace(task: Task) -> bool:
    """Return whether an export task stores the end of a trace."""
    return getattr(task.handler, "__name__", "") == "_log_trace"


def force_flush(seconds: float) -> None:
    """Make MLflow queue its collected spans."""
    processor: Any = provider._get_span_processor()  # noqa: SLF001
    if processor is not None:
        processor.force_flush(int(seconds * 1000))


@contextlib.contextmanager
def replaced(name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Replace a function by which MLflow logs DSPy, in every module that refers to it.

    On exit the original is restored, unless it was replaced again.
    """
    modules = [module for module in _LOGGING if hasattr(module, name)]
    before = [getattr(module, name) for module in modules]
    for module in modules:
        setattr(module, name, function)
    try:
        yield
    finally:
        for module, its_own in zip(modules, before, strict=True):
            if getattr(module, name) is function:
                setattr(module, name, its_own)
