"""Defines what both APIs tell of a run: the answer as text, its facts, errors; and what writes an answer."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, JsonValue

from rlm_dspy.artifacts import Artifacts
from rlm_dspy.json_values import jsonable
from rlm_dspy.text import clip

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.exceptions import HTTPException

    from rlm_dspy.service.runs import Finished

_ERROR_CHARS = 1_000
"""An error may quote what its client sent."""


class Writer(Protocol):
    """Writes the answer to one request in the form of its API."""

    def whole(self, reasoning: str, run: Finished) -> BaseModel:
        """Return the answer as one object."""

    def begin(self) -> Iterator[str]:
        """Yield the first events of a stream."""

    def reason(self, text: str) -> Iterator[str]:
        """Yield the events for a piece of the trajectory."""

    def end(self, run: Finished) -> Iterator[str]:
        """Yield the events for the answer and the end."""

    def fail(self, error: HTTPException) -> Iterator[str]:
        """Yield the events for an error after the begin."""


class File(BaseModel):
    """A file that the run's code wrote, its content in base64."""

    name: str
    media_type: str
    data: str


class RunFacts(BaseModel):
    """What a run says of itself, an addition to OpenAI's API.

    Attributes:
        stop: `submitted`, `extracted`, `unanswered` or `direct`, as `prediction.stop`.
        outputs: The output fields by name.
        calls: Model calls.
        cost: In USD; null if unknown.
        files: The files that its code wrote.
    """

    stop: str
    outputs: dict[str, JsonValue]
    calls: int
    cost: float | None
    files: list[File]


def facts_of(run: Finished) -> RunFacts:
    """Return what a run says of itself."""
    kept = run.prediction.get("artifacts")
    files = kept.values() if isinstance(kept, Artifacts) else ()
    return RunFacts(
        stop=run.stop,
        outputs=jsonable(run.outputs),
        calls=run.usage.calls,
        cost=run.usage.cost,
        files=[
            File(name=each.name, media_type=each.media_type, data=base64.b64encode(each.data).decode())
            for each in files
        ],
    )


def content_of(run: Finished, *, as_object: bool) -> str:
    """Return the answer as text: that of a single output field alone, a str as it is, else as JSON."""
    values = list(run.outputs.values())
    if as_object or len(values) != 1:
        return json.dumps(jsonable(run.outputs), ensure_ascii=False)
    (value,) = values
    if value is None:
        return ""
    return str(jsonable(value)) if isinstance(value, str) else json.dumps(jsonable(value), ensure_ascii=False)


def error_body(error: HTTPException) -> dict[str, dict[str, str | int]]:
    """Return an error in OpenAI's form."""
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"  # noqa: PLR2004
    return {"error": {"message": clip(error.detail, _ERROR_CHARS), "type": kind, "code": error.status_code}}
