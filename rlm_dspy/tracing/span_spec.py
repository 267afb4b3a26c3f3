"""Defines `Told`, the description of a span, and the text forms that MLflow's UI shows."""

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
"""Characters of a text that a span shows where it is told once: code and output of a turn, an answer."""
REPEATED_CHARS = 2_000
"""The same where another span shows it too."""
MESSAGE_CHARS = 6_000
"""The same of a message to a model."""
_PREVIEW_CHARS = 1_000
_SHORT_CHARS = 400
"""A longer text is shown in the list of traces only where there is no other."""
HOW_IT_ENDED = "how it ended"
"""What stands beside the output fields in the outputs of a run's span, beside its files."""
_REPORT = {HOW_IT_ENDED, "stop", "usage", "trajectory", "final_reasoning"}


@dataclass(frozen=True)
class Told:
    """The contents of a span at its start or its end.

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


class Preview(str):
    """A span's short form of a longer text: its type, its size, its ends."""

    __slots__ = ()


def preview(values: Any) -> str | None:
    """Return what the list of traces shows of inputs or outputs: the short texts among them."""
    if not isinstance(values, dict):
        return None if values is None else str(values)[:_PREVIEW_CHARS]
    hidden = _REPORT if {"usage", "trajectory"} <= values.keys() else {HOW_IT_ENDED}  # a program passes on a run's
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
    """Return text as a block of Markdown; without the fence MLflow's page shows it in one line."""
    longest = max((len(ticks) for ticks in re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}" if text.strip() else text


def failure(what: str, message: str, **more: str) -> tuple[str, dict[str, Any]]:
    """Return an event by which MLflow's page marks a span red; it does so for events of this name alone."""
    return "exception", {"exception.type": what, "exception.message": message, **more}


_SETTING = "rlm_dspy_trace_tags"


_METADATA = {"session": TraceMetadataKey.TRACE_SESSION, "user": TraceMetadataKey.TRACE_USER}


@contextlib.contextmanager
def tags(*, session: str | None = None, user: str | None = None, **others: Any) -> Iterator[None]:
    """Tag every trace that begins in this scope, as `dspy.context` sets settings: in the threads of DSPy too.

    Args:
        session: Traces of one session are shown together, e.g. the turns of a chat.
        user: Who asked.
        **others: Tags of your own; values are written as text. None takes an outer scope's tag away.
    """
    given = {name: value for name, value in (("session", session), ("user", user)) if value is not None}
    with dspy.context(**{_SETTING: {**_in_force(), **given, **others}}):
        yield


def told_of_trace() -> dict[str, dict[str, str]]:
    """Return the `tags` in force, and as `metadata` session and user by the names that MLflow has for them."""
    given = {name: sendable(str(value)) for name, value in _in_force().items() if value is not None}
    metadata = {key: given.pop(name) for name, key in _METADATA.items() if name in given}
    return {"tags": given, "metadata": metadata}


def _in_force() -> dict[str, Any]:
    found: dict[str, Any] = dspy.settings.get(_SETTING) or {}
    return found
