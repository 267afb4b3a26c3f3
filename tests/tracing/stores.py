"""What the tests of tracing share: a store of their own, and the span tree as text."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy
import mlflow

from rlm_dspy import tracing
from rlm_dspy.interpreters import LocalPythonInterpreter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rlm_dspy.testing import ScriptedLM


@dataclass
class Store:
    """A store of MLflow in a folder.

    Attributes:
        folder: Where its database and its artifacts are.
        experiment: The experiment in use.
    """

    folder: Path
    experiment: str = ""

    @property
    def artifacts(self) -> Path:
        """Where the artifacts of the experiment are."""
        return self.folder / self.experiment

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def traces(self) -> list[Any]:
        """Return the traces of the experiment in use, the oldest first."""
        tracing.flush()
        found: list[Any] = mlflow.search_traces(return_type="list", order_by=["timestamp_ms ASC"], max_results=500)
        return found

    def trace(self) -> Any:
        """Return the one trace there is."""
        (trace,) = self.traces()
        return trace

    def files(self, trace: Any) -> list[Path]:
        """Return the files that are attached to a trace."""
        return [
            path for path in self.artifacts.rglob(f"*{trace.info.trace_id}/**/attachments/*") if path.is_file()
        ]

    def content(self) -> bytes:
        """Return every byte of the store."""
        tracing.flush()
        return b"\0".join(path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file())


@contextlib.contextmanager
def logging_to(folder: Path, experiment: str) -> Iterator[Store]:
    """Log to an experiment of a store, and stop at the end."""
    store, settings = Store(folder, experiment), dict(dspy.settings.config)
    tracing.autolog(store=store.uri)
    location = store.artifacts.as_uri()
    mlflow.set_experiment(experiment_id=mlflow.create_experiment(experiment, location))
    try:
        yield store
    finally:
        tracing.flush()
        tracing.autolog(disable=True)
        dspy.configure(track_usage=settings["track_usage"], callbacks=settings["callbacks"])


def call(module: dspy.Module, lm: ScriptedLM, how: str, **inputs: Any) -> dspy.Prediction:
    """Call a module, or await it."""
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        return module(**inputs) if how == "blocking" else asyncio.run(module.acall(**inputs))


def tree(trace: Any, line: Callable[[Any], str] = lambda span: span.name) -> str:
    """Return the spans of a trace as indented lines, in the order in which they began."""
    children: dict[str | None, list[Any]] = {}
    for span in sorted(trace.data.spans, key=lambda span: span.start_time_ns):
        children.setdefault(span.parent_id, []).append(span)

    def lines(parent: str | None, depth: int) -> list[str]:
        found = []
        for span in children.get(parent, []):
            found += [f"{'  ' * depth}{line(span)}", *lines(span.span_id, depth + 1)]
        return found

    written = lines(None, 0)
    assert len(written) == len(trace.data.spans), "spans without a parent in their trace"
    return "\n".join(written)


def span(trace: Any, name: str, nth: int = 0) -> Any:
    """Return a span by its name."""
    named = [span for span in sorted(trace.data.spans, key=lambda s: s.start_time_ns) if span.name == name]
    return named[nth]
