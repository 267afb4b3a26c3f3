r"""The event log: what runs do, written down as they do it, one JSON object a line.

The process may die at any moment; what it had done by then can be read (`rlm_dspy.event_reader.read_log`). One
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
| `run_started` | `signature`, `instructions`, `inputs` (long ones in short form), `model`, `sub_model`, `limits` |
| `turn_started` | |
| `lm_started` | `call` (its number in the run), `model`, `role` (as in `usage["by_role"]`, if it has one) |
| `lm_ended` | the same, and `input_tokens`, `cached_input_tokens`, `output_tokens`, `cost`, `cached`, `error` |
| `cell_started` | `reasoning`, `code`: what the model wrote and is now run |
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

import itertools
import json
import logging
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from pydantic_core import to_json

from rlm_dspy.budget import metering
from rlm_dspy.coverage.watch import looked_into
from rlm_dspy.json_values import jsonable
from rlm_dspy.loop.rlm import RLM
from rlm_dspy.loop.turn import Turn
from rlm_dspy.observe.record import asked, cut_short, ended, in_one_line
from rlm_dspy.prompt.adapter import Act
from rlm_dspy.redaction import hidden, in_strings, secrets_of, secrets_of_environment
from rlm_dspy.subcalls.listener import SubCallListener
from rlm_dspy.trajectory import Step, SubCall

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Self

VERSION = 1
_logger = logging.getLogger("dspy.rlm_dspy")
_runs: ContextVar[tuple[str, ...]] = ContextVar("_runs", default=())
"""The ids of the run that goes on here and of those that it is a child of, the root first."""


_inside: ContextVar[tuple[tuple[float, str], ...]] = ContextVar("_inside", default=())
"""The child runs that have ended here: when each began, in seconds since the root began, and its id."""


@dataclass
class _Open:
    """A run that has not ended.

    Attributes:
        run: Its id, which is the id of DSPy's call.
        rlm: The module that was called.
        inputs: Its inputs by name.
        parent: The run that made it, if this log knows it.
        began: When the root run began, by `time.monotonic`.
        at: When it began itself, in seconds since the root run did.
        beside: What `_inside` was then.
        turn: The turn that goes on.
        calls: Ids of DSPy's calls that are waited for: of the turn, of `act`.
        numbers: Numbers for the run's model calls.
        subcalls: Numbers for its sub-calls.
        steps: How many steps are written.
        told: The numbers of the turn's sub-calls that are written, by what was written.
    """

    run: str
    rlm: RLM
    inputs: dict[str, Any]
    parent: str | None
    began: float
    at: float
    beside: tuple[tuple[float, str], ...]
    turn: int | None = None
    calls: set[str] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    subcalls: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    steps: int = 0
    told: dict[bytes, list[int]] = field(default_factory=dict)


class RunLog(SubCallListener):
    r"""Appends the events of every run to a file, as they happen. The format is in this module's docstring.

    It listens to DSPy: give it to `dspy.configure(callbacks=[...])` or `dspy.context(callbacks=[...])`, or use it
    as a context manager, which adds it to the callbacks in force there: in the threads of DSPy and of a run, not
    in those that you start, which know only what was configured. Any number of runs, threads and processes may
    write to one file.

    A line that cannot be written is dropped: the first time, an error on the logger `dspy.rlm_dspy` says so.
    Nothing is held open between lines.

    Args:
        path: The file. It is made if it is not there.

    Raises:
        OSError: If the file cannot be made or appended to.

    Example:
        >>> import tempfile
        >>> from rlm_dspy.observe.event_reader import read_log
        >>> from rlm_dspy.testing import ScriptedLM
        >>> path = Path(tempfile.mkdtemp()) / "runs.jsonl"
        >>> with RunLog(path), dspy.context(lm=ScriptedLM(["```python\nSUBMIT(answer=6 * 7)\n```"])):
        ...     prediction = RLM("question -> answer: int")(question="?")
        >>> [(record.stop, record.outputs) for record in read_log(path)]
        [('submitted', {'answer': 42})]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._open: dict[str, _Open] = {}
        self._lms: dict[str, dict[str, Any]] = {}
        self._secrets = secrets_of_environment()
        self._said = False
        self._lock = threading.Lock()
        self._scope: Any = None
        with self.path.open("a+b") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - 1))
            self._torn = file.read(1) not in (b"", b"\n")

    def __enter__(self) -> Self:
        self._scope = dspy.context(callbacks=[*dspy.settings.callbacks, self])
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, traceback)

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note that a run or a turn begins."""
        given = inputs.get("kwargs", {})
        if isinstance(instance, RLM):
            self._begin(call_id, instance, given)
        elif run := self._here():
            if isinstance(instance, Turn):
                self._add_steps(run, instance.steps_before)
                run.turn, run.told = given.get("number"), {}
                self._write(run, "turn_started")
            if isinstance(instance, Turn | Act):
                run.calls.add(call_id)

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Note that the model has written code, or that a turn or a run has ended."""
        run = self._open.get(call_id) or self._here()
        if run is None:
            return
        if call_id == run.run:
            self._end(run, outputs, exception)
        elif call_id in run.calls:
            run.calls.remove(call_id)
            if isinstance(outputs, dspy.Prediction) and outputs.get("code"):
                self._write(run, "cell_started", reasoning=outputs.get("reasoning") or "", code=outputs.code)
            elif isinstance(outputs, Step):
                self._write_step(run, "turn_ended", outputs)
            elif exception is not None and not run.calls:
                self._write(run, "turn_ended", error=in_one_line(exception))
            if not run.calls:
                run.turn = None

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Note that a model is asked."""
        run = self._here()
        if run is None:
            return
        self._secrets = self._secrets | secrets_of(instance)  # anew: other threads go through the old ones
        role = metering.role()
        known = {"call": next(run.numbers), "model": instance.model, **({"role": role} if role else {})}
        self._lms[call_id] = known
        self._write(run, "lm_started", **known)

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Note what the model's reply cost."""
        run = self._here()
        known = self._lms.pop(call_id, {})
        if run is not None and known:
            error = None if exception is None else in_one_line(exception)
            self._write(run, "lm_ended", **known, **metering.reported(outputs), error=error)

    def on_subcall_end(self, call: SubCall) -> None:
        """Note a sub-call that has ended, and which runs were inside it."""
        if run := self._here():
            self._write_subcall(run, call)

    def _write_subcall(self, run: _Open, call: SubCall) -> int:
        """Write a sub-call and return its number. Its steps are in the events of the runs inside it."""
        number = next(run.subcalls)
        inside = [child for began, child in _inside.get() if call.seconds and began >= call.started]
        known = {"children": inside} if inside else {}
        plain = call.model_dump(mode="json", exclude={"steps"})
        run.told.setdefault(_key(call), []).append(number)
        self._write(run, "subcall_ended", number=number, subcall=plain, **known)
        return number

    def _add_steps(self, run: _Open, steps: Sequence[Step]) -> None:
        """Write the steps of a run that no turn gave."""
        for step in steps[run.steps :]:
            self._write_step(run, "step_added", step)

    def _write_step(self, run: _Open, event: str, step: Step) -> None:
        """Write a step. Its sub-calls were written as they ended; those that have not are written now."""
        numbers = [
            known.pop(0) if (known := run.told.get(_key(call))) else self._write_subcall(run, call)
            for call in step.calls
        ]
        plain = step.model_dump(mode="json", exclude={"calls"})
        self._write(run, event, step=plain, calls=numbers)
        run.steps += 1

    def _here(self) -> _Open | None:
        """Return the run that this thread or task works on."""
        chain = _runs.get()
        return self._open.get(chain[-1]) if chain else None

    def _begin(self, run_id: str, rlm: RLM, given: dict[str, Any]) -> None:
        chain = _runs.get()
        if chain[-1:] != (run_id,):  # else another log has put it there
            chain = (*chain, run_id)
            _runs.set(chain)
        parent = self._open.get(chain[-2]) if len(chain) > 1 else None
        began = parent.began if parent else time.monotonic()
        at, beside = time.monotonic() - began, _inside.get()
        inputs = {name: value for name, value in given.items() if name in rlm.signature.input_fields}
        run = self._open[run_id] = _Open(run_id, rlm, inputs, parent.run if parent else None, began, at, beside)
        lms = (dspy.settings.lm, rlm.sub_lm, rlm.act.lm)
        self._secrets = self._secrets.union(*map(secrets_of, lms))
        self._write(run, "run_started", **asked(rlm, inputs))

    def _end(self, run: _Open, outputs: Any, exception: BaseException | None) -> None:
        del self._open[run.run]
        chain = _runs.get()
        if chain[-1:] == (run.run,):
            _runs.set(chain[:-1])
            _inside.set((*run.beside, (run.at, run.run)) if len(chain) > 1 else ())
        if "trajectory" not in run.rlm.signature.output_fields:
            steps = getattr(outputs if exception is None else exception, "trajectory", [])
            self._add_steps(run, [Step.model_validate(step) for step in steps])
        if exception is None:
            told = ended(run.rlm, outputs)
        else:
            told = {**cut_short(exception), "usage": getattr(exception, "usage", {})}
        seen = {} if run.parent else looked_into(run.inputs, told.get("outputs", {}))
        self._write(run, "run_ended", **told, **seen)

    def _write(self, run: _Open, event: str, **own: Any) -> None:
        line = {
            "v": VERSION,
            "event": event,
            "run": run.run,
            **({"parent": run.parent} if run.parent else {}),
            **({"turn": run.turn} if run.turn is not None else {}),
            "t": round(time.monotonic() - run.began, 6),
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            **own,
        }
        try:
            self._append(self._encoded(line))
        except Exception as error:  # noqa: BLE001 (a log never breaks a run)
            if not self._said:
                self._said = True
                why = in_one_line(error)
                _logger.error("An event of a run could not be logged to %s: %s", self.path, why)  # noqa: TRY400 (a line)

    def _encoded(self, line: dict[str, Any]) -> bytes:
        """Return the line as UTF-8, without secrets; halves of surrogate pairs are replaced."""
        plain = jsonable(line)
        if self._secrets:
            plain = in_strings(plain, lambda text: hidden(text, self._secrets))
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "replace") + b"\n"

    def _append(self, line: bytes) -> None:
        """Append a line in one write, so that lines of other threads and processes stay whole."""
        with self._lock, self.path.open("ab", buffering=0) as file:
            whole = b"\n" + line if self._torn else line
            written = file.write(whole)
            self._torn = written != len(whole)
        if self._torn:
            raise OSError(f"only {written} of {len(whole)} bytes were written")


def _key(call: SubCall) -> bytes:
    """Return what tells a sub-call from the others of its turn."""
    return to_json(call, exclude={"steps"}, fallback=repr)
