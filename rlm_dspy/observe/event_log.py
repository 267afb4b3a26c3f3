r"""Writes the events of runs to a JSON Lines file as they happen.

The process may die at any moment; its events up to then can be read (`observe.event_reader.read_log`). One
file may hold many runs, consecutive or concurrent; lines of concurrent runs are interleaved.

Format, version 1. UTF-8, lines end in `\n`. A reader ignores unknown events and fields, and
lines that are not JSON, such as the last one of a killed process. Fields without a value are omitted.

Every event has

| field | |
|---|---|
| `v` | the version of the format: 1 |
| `event` | what happened; see below |
| `run` | the id of its run, globally unique |
| `parent` | the parent run; only of children |
| `turn` | the number of its turn, from 1; only inside turns |
| `t` | seconds since the root run began, as in `Step.started` |
| `at` | the time of day: UTC, ISO 8601, milliseconds |

and by `event`

| event | its own fields |
|---|---|
| `run_started` | `signature`, `instructions`, `inputs` (long ones in short form), `digests`, `output_types`, |
| | `model`, `sub_model`, `limits`, `session` (of a call of one): as in a `Record` |
| `run_resumed` | the run goes on after its process was gone; of a turn that had not ended, the events come again |
| `turn_started` | |
| `lm_started` | `call` (its number in the run), `model`, `role` (as in `usage["by_role"]`, if it has one) |
| `lm_ended` | the same, and `input_tokens`, `cached_input_tokens`, `output_tokens`, `cost`, `cached`, `error`; |
| | without an error also the `outputs`, `finish`: the reason why the provider ended them, |
| | `request`: a digest of the messages, and `subcall`: the id of the sub-call around it, if any |
| `review_started` | `hook` is asked about `asked`: `code`, `tool` and `arguments`, or the fields of an answer; |
| | `digest`: of both, whole; `tool_call`: the `id` of the tool call around it, if any |
| `review_ended` | the same, and `refused`, `run_instead` or `error`; none of them if the hook agreed |
| `tool_started` | `id`, and `asked`: a digest of its name and arguments |
| `cell_started` | `reasoning`, `code`: the model's reply, whose code runs now |
| `tool_ended` | the same, `tool`: a `ToolCall`, and `value`, as sent to the REPL, or `message`, of its exception |
| `subcall_ended` | `number` (in the run), `subcall`: a `SubCall` without steps, `children`: the runs inside, |
| | `id`, `asked`: a digest of callee and inputs, `answer`: the whole one if it is too long for `subcall` |
| `turn_ended` | `step`: a `Step`, and `calls`: the numbers of its sub-calls; or `error`, if the turn raised |
| `step_added` | the same for a step that no turn produced: a summary, or an interrupted turn; `kept`: the number |
| | of turns that are shown after a summary |
| `run_ended` | `stop`, `outputs`, `usage`, `artifacts`, `final_reasoning`, `error`: as in a `Record` |

`run_ended` of a root run also has the `input_chars`, `left_out` and `occurrences` of a `Record` if
coverage was watched (`rlm_dspy.coverage.watched`), and its `sources`, if there are any.

`cost` is in USD; `cost`, `sub_model` and `error` may be null. An LM is identified only by its model:
its other settings, which may contain keys, are never written, and a secret of an LM inside another
text, such as an error, is replaced by `***`.
"""

from __future__ import annotations

import contextlib
import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.approval.reviewer import asked_in_log, review_key
from rlm_dspy.cache import digest
from rlm_dspy.events import (
    CellEvent,
    Event,
    Listener,
    LMEvent,
    ReviewEvent,
    RunEvent,
    StepEvent,
    SubCallEvent,
    ToolEvent,
    TurnEvent,
)
from rlm_dspy.json_values import JsonLines, jsonable
from rlm_dspy.redaction import hidden, in_strings, secrets_of, secrets_of_environment
from rlm_dspy.repl.value_codec import sent
from rlm_dspy.report.record import asked, ended, in_one_line
from rlm_dspy.subcalls.item import answer_of
from rlm_dspy.trajectory import Step, SubCall

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from pydantic import JsonValue

VERSION = 1
_logger = logging.getLogger("dspy.rlm_dspy")


class RunLog(Listener):
    r"""Appends the events of every run to a file as they happen. The docstring of this module defines the format.

    It is a DSPy callback: pass it to `dspy.configure(callbacks=[...])` or `dspy.context(callbacks=[...])`, or use
    it as a context manager, which adds it to the active callbacks: in threads of DSPy and of runs, but not
    in threads that you start, which see only `dspy.configure`. Any number of runs, threads and processes may
    write to one file.

    A line that cannot be written is dropped; the first time, this is logged on `dspy.rlm_dspy`.
    The file is not kept open between lines.

    Args:
        path: The file; it is created if it is missing.

    Raises:
        OSError: If the file cannot be written.

    Examples:
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
        """For each running run: the ended runs inside its sub-calls, by sub-call."""
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
            self._write(event, "run_resumed" if event.resumed else "run_started", **asked(event))
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
                kept = {"kept": event.kept} if event.kept else {}
                self._write(event, "step_added", **_plain(event.step), **kept)
            case CellEvent() if begins:
                self._write(event, "cell_started", reasoning=event.reasoning, code=event.code)
            case ReviewEvent() | ToolEvent():
                what, details = _of_part(event)
                self._write(event, f"{what}_started" if begins else f"{what}_ended", **details)
            case SubCallEvent(call=SubCall() as call):
                plain = call.model_dump(mode="json", exclude={"steps", "number"})
                children = inside.pop(event.id, []) or list(event.children)
                known: dict[str, Any] = {"children": children} if children else {}
                if answer_of(call) is None:
                    known["answer"] = dict(event.answer)
                known |= {"id": event.id, "asked": event.asked}
                self._write(event, "subcall_ended", number=call.number, subcall=plain, **known)
            case LMEvent():
                if begins:
                    self._learn(event.lm)
                self._write(event, "lm_started" if begins else "lm_ended", **_of_call(event))

    def _learn(self, *lms: dspy.BaseLM | None) -> None:
        """Redact the secrets in the settings of LMs from now on."""
        # A new set: other threads iterate over the old one.
        self._secrets = self._secrets.union(*map(secrets_of, lms))

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
        except Exception as error:  # noqa: BLE001 (a log must not break a run)
            if not self._said:
                self._said = True
                why = in_one_line(error)
                _logger.error("An event of a run could not be logged to %s: %s", self.path, why)  # noqa: TRY400 (one line without a traceback)

    def _written(self, line: Mapping[str, Any]) -> str:
        """Return the line as JSON, without secrets."""
        plain = jsonable(line)
        if self._secrets:
            plain = in_strings(plain, lambda text: hidden(text, self._secrets))
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def _plain(step: Step) -> dict[str, Any]:
    """Return a step as in its event: with the numbers of its sub-calls, which have their own events."""
    plain = step.model_dump(mode="json", exclude={"calls"})
    return {"step": plain, "calls": [call.number for call in step.calls]}


def _of_part(event: ReviewEvent | ToolEvent) -> tuple[str, dict[str, Any]]:
    """Return what the event of a hook or of a tool call is called, and its fields."""
    return ("tool", _of_tool(event)) if isinstance(event, ToolEvent) else ("review", _of_review(event))


def _of_review(event: ReviewEvent) -> dict[str, Any]:
    """Return the fields of the event of a hook."""
    error = "" if event.error is None else in_one_line(event.error)
    verdict = {"refused": event.refused, "run_instead": event.run_instead, "error": error}
    details = {name: text for name, text in verdict.items() if text}
    known = {"digest": review_key(event.hook, event.asked), "tool_call": event.parent}
    return {"hook": event.hook, "asked": asked_in_log(event.asked), **details, **known}


def _of_call(event: LMEvent) -> dict[str, Any]:
    """Return the fields of a model call's event."""
    role = {"role": event.role} if event.role else {}
    known = {"call": event.number, "model": event.lm.model, **role}
    if event.phase == "started":
        return known
    error = None if event.error is None else in_one_line(event.error)
    used = event.usage.model_dump(include={"input_tokens", "cached_input_tokens", "output_tokens", "cost"})
    known |= {**used, "cached": event.cached, "error": error}
    if isinstance(event.outputs, list) and error is None:
        inside = {} if event.subcall is None else {"subcall": event.subcall}
        request = request_key(event.lm.model, event.prompt, event.messages)
        known |= {"outputs": event.outputs, "finish": next(iter(event.finish), ""), "request": request, **inside}
    return known


def request_key(model: str, prompt: JsonValue, messages: Sequence[Mapping[str, Any]] | None) -> str:
    """Return what identifies a request to a model in a log."""
    return digest(model, prompt, list(messages or ()))


def _of_tool(event: ToolEvent) -> dict[str, Any]:
    """Return the fields of a tool call's event."""
    known: dict[str, Any] = {"id": event.id, "asked": digest(event.name, dict(event.arguments))}
    if event.call is None:
        return known
    known["tool"] = event.call.model_dump(mode="json")
    if event.error is not None:
        return {**known, "message": str(event.error)}
    with contextlib.suppress(TypeError, ValueError, RecursionError):  # what cannot cross is not kept
        known["value"] = sent(event.result, strict=True)
    return known
