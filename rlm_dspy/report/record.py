"""Defines `Record`, the saved form of a run: everything but its long inputs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dspy
from pydantic import BaseModel, ConfigDict

from rlm_dspy.artifacts import Artifacts
from rlm_dspy.coverage.tracker import Occurrence, looked_into
from rlm_dspy.errors import Pause, RLMError, RunEnded, UnreadableTable
from rlm_dspy.events import Event, Listener, RunEvent
from rlm_dspy.inputs import HostInput, Table, Text, describe
from rlm_dspy.inputs.description import is_frame
from rlm_dspy.json_values import jsonable
from rlm_dspy.redaction import without_credentials
from rlm_dspy.subcalls.ad_hoc import types_of, written
from rlm_dspy.text import clip, counted, one_line, sendable, write_whole
from rlm_dspy.trajectory import Mark, Place, Step
from rlm_dspy.usage import RunUsage

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping


_MAX_ERROR_CHARS = 600
_PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_MAX_PICTURES_BYTES = 2_000_000
"""Bytes of the pictures that a record, and so a report, holds whole."""
Stop = Literal["submitted", "direct", "extracted", "unanswered", "paused", "interrupted", "failed", "killed"]
"""As in `Prediction.stop`; also `paused` (a hook waits for a decision), `interrupted` (Ctrl-C, a cancelled task),
`failed` (the model, the interpreter or a hook) and `killed` (the run's log has no end)."""


STOPS: dict[Stop, Mark] = {
    "submitted": Mark("submitted", "good"),
    "direct": Mark("one plain call", "good"),
    "extracted": Mark("read from the trajectory", "warn"),
    "unanswered": Mark("no answer", "bad"),
    "paused": Mark("paused", "warn"),
    "interrupted": Mark("interrupted", "bad"),
    "failed": Mark("failed", "bad"),
    "killed": Mark("killed", "bad"),
}
"""How each stop reason is shown."""


class Digest(BaseModel):
    """Identifies an input without its content."""

    model_config = ConfigDict(frozen=True)

    size: int
    """Bytes of the text in UTF-8, or of the repr of another value."""
    sha256: str
    """SHA-256 of these bytes in hexadecimal."""
    whole: bool
    """Whether the record's `inputs` contains the whole input."""


class RecordedFile(BaseModel):
    """A file that code wrote below `output/`, without its content unless it is a small picture."""

    model_config = ConfigDict(frozen=True)

    media_type: str = ""
    size: int = 0
    left_out: str = ""
    """Why it was not kept; empty if it was."""
    picture: str = ""
    """The content as a data URI, of a picture that a browser shows."""


class Record(BaseModel):
    """A saved run: the task, the result, and every step."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    signature: str
    instructions: str = ""
    inputs: dict[str, str]
    """The inputs by name; long texts in their short form."""
    digests: dict[str, Digest] = {}
    """The digests of the inputs, by name."""
    output_types: dict[str, str] = {}
    """The types of the output fields by name, as in the signature."""
    model: str
    sub_model: str | None = None
    """The LM of sub-calls, if it is another."""
    limits: dict[str, Any] = {}
    """The limits of the run: the fields of `Limits`."""
    session: str = ""
    """The id of the session of which it is a call; empty for none."""
    outputs: dict[str, Any] = {}
    """The output fields as JSON; empty if the run did not end."""
    stop: Stop
    error: str | None = None
    """The error in one line."""
    usage: RunUsage = RunUsage()
    trajectory: list[Step] = []
    final_reasoning: str = ""
    started_at: datetime | None = None
    """When the run began, in UTC."""
    input_chars: dict[str, int] = {}
    """The number of characters of each watched input; empty without coverage."""
    left_out: dict[str, str] = {}
    """The reasons why other inputs were not watched."""
    occurrences: dict[str, list[Occurrence]] = {}
    """Where parts of the outputs occur in the inputs, by output field; empty without coverage."""
    artifacts: dict[str, RecordedFile] = {}
    """The files that code wrote below `output/`, by name."""
    sources: dict[str, list[Place]] = {}
    """The places in the inputs that the outputs came from, by output field; only what is certain."""

    @property
    def answered(self) -> bool:
        """Whether the run ended with an answer."""
        return self.stop in ("submitted", "direct", "extracted")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record to a file atomically."""
        write_whole(self.as_json() + "\n", path)

    def as_json(self) -> str:
        """Return the record as JSON, with `?` for lone surrogates, which UTF-8 cannot encode."""
        return json.dumps(jsonable(self), ensure_ascii=False, indent=2)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read a record that `save` wrote.

        Raises:
            ValueError: If the file is not a record of this version.
        """
        return cls.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))


def describe_stop(record: Record) -> str:
    """Return why a run ended, in a phrase: `submitted after 3 turns`."""
    number = sum(step.kind != "folded" for step in record.trajectory)
    turns = counted(number, "turn")
    return {
        "submitted": f"submitted after {turns}",
        "direct": "answered by one plain call",
        "extracted": f"no SUBMIT in {turns}, read from the trajectory",
        "unanswered": f"no SUBMIT in {turns}, and no answer in the trajectory",
        "paused": f"paused in turn {number}",
        "interrupted": f"interrupted after {turns}",
        "failed": f"failed after {turns}",
        "killed": f"killed in turn {number}",
    }[record.stop]


class FilesKept(Listener):
    """Keeps the files that the runs in its scope wrote below `output/`, those of children with their root's.

    Attributes:
        artifacts: The files of the last run that has ended.
    """

    def __init__(self) -> None:
        self.artifacts = Artifacts()

    def on_event(self, event: Event) -> None:
        """Take the files of a root run that ends."""
        if isinstance(event, RunEvent) and event.phase != "started" and event.parent_run is None:
            self.artifacts = event.outcome.artifacts


class Recorder(Listener):
    """Keeps the record of the first run that starts in its scope.

    Attributes:
        record: The record; None until that run has ended.
    """

    def __init__(self) -> None:
        self.record: Record | None = None
        self._run = ""

    def on_event(self, event: Event) -> None:
        """Remember the run, and make its record when it ends."""
        if isinstance(event, RunEvent):
            self._run = self._run or event.run
            if event.run == self._run and event.phase != "started":
                self.record = record_of(event)


def recorded(rlm: Callable[..., Any], inputs: Mapping[str, Any]) -> tuple[Record, BaseException | None]:
    """Run a module with the LM of `dspy.settings`, and return its record, also after an error.

    Args:
        rlm: The module, or what calls it.
        inputs: Its inputs.

    Returns:
        The record, and the error that ended the run, `KeyboardInterrupt` included; None if it ended by itself.
    """
    recorder, ended = Recorder(), None
    try:
        with dspy.context(callbacks=[*dspy.settings.callbacks, recorder]):
            rlm(**inputs)
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 (keep what was paid for)
        ended = error
    if recorder.record is None:
        raise ended or RuntimeError(f"{rlm!r} started no run.")
    return recorder.record, ended


def record_of(run: RunEvent, *, digests: bool = True) -> Record:
    """Return the record of a run that has just ended in this context.

    Args:
        run: The event of its end.
        digests: As in `asked`.
    """
    steps = [step.model_copy(update={"answer": None}) for step in run.outcome.steps]  # it is an output field
    return Record(**asked(run, digests=digests), **ended(run), trajectory=steps, started_at=run.started_at)


def asked(run: RunEvent, *, digests: bool = True) -> dict[str, Any]:
    """Return the fields of a record that are known when a run starts.

    Args:
        run: The event of its start.
        digests: Whether to read the inputs whole for their digests; else only texts are shown as they are, and
            other inputs described, which is quick for inputs of any size.
    """
    names = run.signature.input_fields
    inputs = {name: value for name, value in run.inputs.items() if name in names}
    most = run.limits.max_output_chars
    shown = {name: _as_text(value) if digests else _described(value) for name, value in inputs.items()}
    return {
        "signature": sendable(written(run.signature)),
        "instructions": sendable(run.signature.instructions),
        "inputs": {name: sendable(clip(text, most)) for name, text in shown.items()},
        "digests": {name: digest_of(value, most) for name, value in inputs.items()} if digests else {},
        "output_types": types_of(run.signature.output_fields),
        "model": str(getattr(run.lm, "model", "")),
        "sub_model": getattr(run.sub_lm, "model", None),
        "limits": asdict(run.limits),
        **({"session": run.session} if run.session else {}),
    }


def ended(run: RunEvent, *, coverage: bool = True) -> dict[str, Any]:
    """Return the fields of a record that describe a run's end, except its steps.

    Args:
        run: The event of the end.
        coverage: Whether to include coverage, if watched.
    """
    outcome, error = run.outcome, run.error
    outputs = {} if error is not None else jsonable(dict(outcome.outputs))
    looked_at = looked_into(dict(run.inputs), outputs) if coverage else {}
    known = {"outputs": outputs, "usage": outcome.usage, **looked_at}
    if files := files_of(outcome.artifacts):
        known["artifacts"] = files
    if any(outcome.sources.values()):
        known["sources"] = outcome.sources
    if error is not None:
        ending = cut_short(error)
        text = ending["error"] and without_credentials(ending["error"], run.lm, run.sub_lm)
        return {**known, **ending, "error": text}
    return {**known, "stop": outcome.stop, "final_reasoning": outcome.final_reasoning}


def files_of(artifacts: Artifacts) -> dict[str, RecordedFile]:
    """Return what a record says of the files of a run; the first pictures are in it whole."""
    files, room = {}, _MAX_PICTURES_BYTES
    for name, artifact in artifacts.items():
        is_shown = artifact.media_type in _PICTURES and artifact.size <= room
        room -= artifact.size if is_shown else 0
        encoded = base64.b64encode(artifact.data).decode() if is_shown else ""
        picture = f"data:{artifact.media_type};base64,{encoded}" if is_shown else ""
        files[name] = RecordedFile(media_type=artifact.media_type, size=artifact.size, picture=picture)
    return files | {name: RecordedFile(left_out=why) for name, why in artifacts.left_out.items()}


def cut_short(error: BaseException) -> dict[str, Any]:
    """Return the fields of a record that describe the end of a run by an error."""
    if was_stopped(error):
        return {"stop": "interrupted", "error": None}
    if isinstance(error, Pause):
        return {"stop": "paused", "error": in_one_line(error)}
    return {"stop": "failed", "error": in_one_line(error)}


def was_stopped(error: BaseException) -> bool:
    """Return whether an error that ended a run is a stop from outside: Ctrl-C, a cancelled task."""
    return isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit, RunEnded))


def digest_of(value: Any, max_chars: int) -> Digest:
    """Return the digest of an input; a large file is read in pieces, those of a folder are not read.

    Args:
        value: The input.
        max_chars: `Limits.max_output_chars` of the run.
    """
    if is_frame(value):
        with contextlib.suppress(UnreadableTable):  # of values that Arrow does not have
            value = Table.open(value)
    if isinstance(value, Text | HostInput):
        size, sha256 = value.digest()
        return Digest(size=size, sha256=sha256, whole=False)
    text = _as_text(value)
    content = text.encode("utf-8", "surrogatepass")
    sha256 = hashlib.sha256(content).hexdigest()
    return Digest(size=len(content), sha256=sha256, whole=len(text) <= max_chars and not is_frame(value))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _described(value: Any) -> str:
    return value if isinstance(value, str) else describe("", value).value


def in_one_line(error: BaseException) -> str:
    """Return the first paragraph of an error's message without credentials, with the type of an unexpected one."""
    said = one_line(without_credentials(str(error)).strip().split("\n\n")[0], _MAX_ERROR_CHARS)
    expected = isinstance(error, (RLMError, dspy.DSPyError, ValueError, OSError)) and said
    return said if expected else f"{type(error).__name__}: {said or 'no reason given'}"
