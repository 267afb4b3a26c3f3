"""Tags of the traces made in a scope."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import dspy
from mlflow.tracing.constant import TraceMetadataKey

from rlm_dspy.trajectory import sendable

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def scope_tags() -> dict[str, str]:
    """Return the tags in force."""
    return {
        name: sendable(str(value))
        for name, value in _in_force().items()
        if name not in _METADATA and value is not None
    }


def scope_metadata() -> dict[str, str]:
    """Return session and user, by the names under which MLflow keeps them."""
    return {key: sendable(str(_in_force()[name])) for name, key in _METADATA.items() if name in _in_force()}


def _in_force() -> dict[str, Any]:
    found: dict[str, Any] = dspy.settings.get(_SETTING) or {}
    return found
