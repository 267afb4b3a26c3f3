r"""Writes the events of runs to a JSON Lines file as they happen.

The process may die at any moment; what it had done by then can be read (`observe.event_reader.read_log`). One
file may hold many runs, one after another or at the same time; the lines of different runs then stand mixed.

Format, version 1. UTF-8, lines end in `\n`. A reader leaves out events and fields that it does not know, and
lines that are no JSON: the last one of a process that was killed. Fields that an event does not have are left out.

Every event has

| field | |
|---|---|
| `v` | the version of the format: 1 |
| `event` | what happened; see below |
| `run` | the run it belongs to: an id, unique in the file and beyond |
| `parent` | the run that made this one; only of child runs |
| `turn` | the number of the turn it belongs to, from 1; of what belongs to one |
| `t` | seconds since the root run began, as `Step.started` counts them |
| `at` | the time of day: UTC, ISO 8601, milliseconds |

and by `event`

| event | its own fields |
|---|---|
| `run_started` | `signature`, `instructions`, `inputs` (long ones in short form), `digests`, `output_types`, |
| | `model`, `sub_model`, `limits`: as in a `Record` |
| `turn_started` | |
| `lm_started` | `call` (its number in the run), `model`, `role` (as in `usage["by_role"]`, if it has one) |
| `lm_ended` | the same, and `input_tokens`, `cached_input_tokens`, `output_tokens`, `cost`, `cached`, `error` |
| `cell_started` | `reasoning`, `code`: what the model wrote and is now run |
| `tool_ended` | `tool`: a `ToolCall` |
| `subcall_ended` | `number` (in the run), `subcall`: a `SubCall` without steps, `children`: the runs inside it |
| `turn_ended` | `step`: a `Step`, and `calls`: the numbers of its sub-calls; or `error`, if one left the turn |
| `step_added` | the same, of a step that no turn gave: an account of turns, what is left of one cut short |
| `run_ended` | `stop`, `outputs`, `usage`, `final_reasoning`, `error`: as in a `Record` |

`run_ended` of a run without parent also has the `input_chars`, `left_out` and `occurrences` of a `Record` if
coverage was watched (`rlm_dspy.coverage.watched`).

`cost` is in USD; it and `sub_model` and `error` are null where there is none. An LM is named by its model and by
nothing else: its other settings, where keys are, are never written, and where one of its secrets stands in another
text (an error, say), `***` stands in its place.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.events import (
    CellEvent,
    Event,
    Listener,
    LMEvent,
    RunEvent,
    StepEvent,
    SubCallEvent,
    ToolEvent,
    TurnEvent,
)
from rlm_dspy.json_values import JsonLines, jsonable
from rlm_dspy.observe.record import asked, ended, in_one_line
from rlm_dspy.redaction import hidden, in_strings, secrets_of, secrets_of_environment
from rlm_dspy.trajectory import Step, SubCall, ToolCall

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

VERSION = 1
_logger = logging.getLogger("dspy.rlm_dspy")


class RunLog(Listener):
    r"""Appends the events of every run to a file, as they happen. This module's docstring has the format.

    It listens to DSPy: give it to `dspy.configure(callbacks=[...])` or `dspy.context(callbacks=[...])`, or use it
    as a context manager, which adds it to the callbacks in force there: in the threads of DSPy and of a run, not
    in those that you start, which know only what was configured. Any number of runs, threads and processes may
    write to one file.

    A line that cannot be written is dropped: the first time, an error on the logger `dspy.rlm_dspy` says so.
    Nothing is held open between lines.

    Args:
        path: The file; it is created if it is missing.

    Raises:
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from rlm_dspy import RLM
        >>> from rlm_dspy.observe.event_reader import read_log
        >>> from rlm_dspy.testing import ScriptedLM
        >>> path = Path(tempfile.mkdtemp()) / "runs.jsonl"
        >>> with RunLog(path), dspy.context(lm=ScriptedLM(["```python\nSUBMIT(answer=6 * 7)\n```"])):
        ...     prediction = RLM("question -> answer: int")(question="?")
        >>> [(record.stop, record.outputs) for record in read_log(path)]
        [('submitted', {'answer': 42})]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = JsonLines(path)
        self.path = self._file.path
        self._open: dict[str, dict[str, list[str]]] = {}
        """By each run that has not ended: the runs that have ended inside of its sub-calls, by the sub-call."""
        self._secrets = secrets_of_environment()
        self._said = False
        self._scope: Any = None

    def __enter__(self) -> Self:
        self._scope = dspy.context(callbacks=[*dspy.settings.callbacks, self])
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, traceback)

    def on_event(self, event: Event) -> None:
        """Write an event of a run to the log."""
        if isinstance(event, RunEvent):
            self._write_run(event)
        elif event.run in self._open:
            self._write_part(event, self._open[event.run])

    def _write_run(self, event: RunEvent) -> None:
        if event.phase == "started":
            self._open[event.run] = {}
            self._learn(event.lm, event.sub_lm, dspy.settings.lm)
            self._write(event, "run_started", **asked(event))
        elif self._open.pop(event.run, None) is not None:
            outer = self._open.get(event.parent_run or "")
            if event.subcall and outer is not None:
                outer.setdefault(event.subcall, []).append(event.run)
            self._write(event, "run_ended", **ended(event, coverage=outer is None))

    def _write_part(self, event: Event, inside: dict[str, list[str]]) -> None:
        begins = event.phase == "started"
        match event:
            case TurnEvent(step=None):
                error = {} if begins else {"error": in_one_line(event.error or RuntimeError())}
                self._write(event, "turn_started" if begins else "turn_ended", **error)
            case TurnEvent(step=Step() as step):
                self._write(event, "turn_ended", **_plain(step))
            case StepEvent():
                self._write(event, "step_added", **_plain(event.step))
            case CellEvent() if begins:
                self._write(event, "cell_started", reasoning=event.reasoning, code=event.code)
            case ToolEvent(call=ToolCall() as tool):
                self._write(event, "tool_ended", tool=tool.model_dump(mode="json"))
            case SubCallEvent(call=SubCall() as call):
                plain = call.model_dump(mode="json", exclude={"steps", "number"})
                children = inside.pop(event.id, [])
                known = {"children": children} if children else {}
                self._write(event, "subcall_ended", number=call.number, subcall=plain, **known)
            case LMEvent():
                if begins:
                    self._learn(event.lm)
                self._write(event, "lm_started" if begins else "lm_ended", **_of_call(event))

    def _learn(self, *lms: dspy.BaseLM | None) -> None:
        """Hide what is secret in the settings of LMs from now on."""
        self._secrets = self._secrets.union(*map(secrets_of, lms))  # anew: other threads go through the old ones

    def _write(self, event: Event, name: str, **own: Any) -> None:
        known_parent = event.parent_run in self._open
        line = {
            "v": VERSION,
            "event": name,
            "run": event.run,
            **({"parent": event.parent_run} if known_parent else {}),
            **({"turn": event.turn} if event.turn is not None else {}),
            "t": round(event.seconds, 6),
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **own,
        }
        try:
            self._file.append(self._written(line))
        except Exception as error:  # noqa: BLE001 (a log never breaks a run)
            if not self._said:
                self._said = True
                why = in_one_line(error)
                _logger.error("An event of a run could not be logged to %s: %s", self.path, why)  # noqa: TRY400 (a line)

    def _written(self, line: Mapping[str, Any]) -> str:
        """Return the line as JSON, without secrets."""
        plain = jsonable(line)
        if self._secrets:
            plain = in_strings(plain, lambda text: hidden(text, self._secrets))
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def _plain(step: Step) -> dict[str, Any]:
    """Return a step as its event has it: of its sub-calls, which have events of their own, the numbers."""
    plain = step.model_dump(mode="json", exclude={"calls"})
    return {"step": plain, "calls": [call.number for call in step.calls]}


def _of_call(event: LMEvent) -> dict[str, Any]:
    """Return what an event says of a model call."""
    role = {"role": event.role} if event.role else {}
    known = {"call": event.number, "model": event.lm.model, **role}
    if event.phase == "started":
        return known
    error = None if event.error is None else in_one_line(event.error)
    used = event.usage.model_dump(include={"input_tokens", "cached_input_tokens", "output_tokens", "cost"})
    return {**known, **used, "cached": event.cached, "error": error}
