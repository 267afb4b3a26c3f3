"""Defines the content of a span, and the text formats for MLflow's UI."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dspy
from mlflow.entities import SpanType

from rlm_dspy.text import sendable
from rlm_dspy.tracing._mlflow_compat import Attachment, TraceMetadataKey

if TYPE_CHECKING:
    from collections.abc import Iterator


TEXT_CHARS = 12_000
"""Characters of a text that only this span shows: code and output of a turn, an answer."""
REPEATED_CHARS = 2_000
"""The same for a text that another span shows too."""
MESSAGE_CHARS = 6_000
"""The same for a message to a model."""
_PREVIEW_CHARS = 1_000
_SHORT_CHARS = 400
"""A longer text appears in the list of traces only if there is no other."""
HOW_IT_ENDED = "how it ended"
"""The fields besides the output fields and files in the outputs of a run's span."""
_REPORT = {HOW_IT_ENDED, "stop", "usage", "trajectory", "final_reasoning", "artifacts"}


@dataclass(frozen=True)
class SpanContent:
    """The content of a span at its start or its end.

    Attributes:
        failed: Why it failed; empty if it did not.
    """

    name: str = ""
    span_type: str = SpanType.UNKNOWN
    inputs: Any = None
    outputs: Any = None
    attributes: dict[str, Any] = field(default_factory=dict)
    events: tuple[tuple[str, dict[str, Any]], ...] = ()
    failed: str = ""


def storable(text: str) -> str:
    """Return a text that every database accepts: PostgreSQL rejects NUL, and with it the whole trace."""
    return sendable(text).replace("\0", "\ufffd")


class Preview(str):
    """The short form of a longer text in a span: type, size and ends."""

    __slots__ = ()


def preview(values: Any) -> str | None:
    """Return the preview of inputs or outputs for the list of traces: their short texts."""
    if not isinstance(values, dict):
        return None if values is None else str(values)[:_PREVIEW_CHARS]
    # A program may return a run's fields.
    hidden = _REPORT if {"usage", "trajectory"} <= values.keys() else {HOW_IT_ENDED}
    values = {
        name: value for name, value in values.items() if name not in hidden and not isinstance(value, Attachment)
    }
    shown = {name: value for name, value in values.items() if not _is_long(value)} or values
    if len(shown) == 1:
        return str(next(iter(shown.values())))[:_PREVIEW_CHARS]
    return "\n".join(f"{name}: {value}" for name, value in shown.items())[:_PREVIEW_CHARS]


def _is_long(value: Any) -> bool:
    return isinstance(value, Preview) or (isinstance(value, str) and len(value) > _SHORT_CHARS)


def fenced(text: str, language: str = "python") -> str:
    """Return text as a Markdown block; without the fence MLflow's UI shows it in one line."""
    longest = max((len(ticks) for ticks in re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}" if text.strip() else text


def failure(what: str, message: str, **more: str) -> tuple[str, dict[str, Any]]:
    """Return the event that makes MLflow's UI mark a span red; it requires this event name."""
    return "exception", {"exception.type": what, "exception.message": message, **more}


_SETTING = "rlm_dspy_trace_tags"


_METADATA = {"session": TraceMetadataKey.TRACE_SESSION, "user": TraceMetadataKey.TRACE_USER}


@contextlib.contextmanager
def tags(*, session: str | None = None, user: str | None = None, **others: Any) -> Iterator[None]:
    """Tag every trace that starts in this scope; like `dspy.context`, also in DSPy's threads.

    Args:
        session: Traces of one session are shown together, e.g. the turns of a chat.
        user: The user.
        **others: Custom tags; values are converted to text. None removes a tag of an outer scope.
    """
    given = {name: value for name, value in (("session", session), ("user", user)) if value is not None}
    with dspy.context(**{_SETTING: {**_in_force(), **given, **others}}):
        yield


def trace_tags(session: str = "") -> dict[str, dict[str, str]]:
    """Return the active `tags`, and session and user as `metadata` under MLflow's names.

    Args:
        session: The session of the run, if `tags` name none.
    """
    in_force = ({"session": session} if session else {}) | _in_force()
    given = {name: storable(str(value)) for name, value in in_force.items() if value is not None}
    metadata = {key: given.pop(name) for name, key in _METADATA.items() if name in given}
    return {"tags": given, "metadata": metadata}


def _in_force() -> dict[str, Any]:
    found: dict[str, Any] = dspy.settings.get(_SETTING) or {}
    return found
