"""Gives an RLM `resume`: a run whose process was gone goes on from its event log."""

from __future__ import annotations

import contextlib
import logging
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.errors import CannotResume
from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.report.record import asked
from rlm_dspy.resume.journal import read_roots
from rlm_dspy.text import counted, one_line

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from rlm_dspy.events import RunEvent
    from rlm_dspy.resume.journal import RecordedRun

_SHOWN_CHARS = 60
LEFT_SESSION = (
    "The run was a question of a session. It goes on alone: without the variables and turns of the earlier "
    "questions, and the session does not learn its answer. If the session is saved, open it and ask again instead."
)
_logger = logging.getLogger("dspy.rlm_dspy")
_next_root: ContextVar[list[RecordedRun]] = ContextVar("next_root")
"""The run that the next root run of this context goes on with; taken once."""


class Resumable:
    """Gives a module that runs `RunEvent`s the methods that go on with one."""

    def resume(self, log: str | os.PathLike[str], /, *, run: str | None = None, **inputs: Any) -> dspy.Prediction:
        """Go on with a run whose process was killed, or that failed or was interrupted; call it like the module.

        What the run was answered before is not asked again: replies of models, results of tools. The variables of
        the REPL are made again by running the code of its turns with these answers; the model is told what came
        out otherwise. A tool that was running is not called again: the code gets an error that says so. The events
        are appended to the same log, so that the run can be resumed again.

        Args:
            log: The file of the `RunLog` that recorded the run. Its process must be gone.
            run: The id of the run, or its first characters; None for the only unfinished one in the log.
            **inputs: The inputs of the run, again.

        Returns:
            As from a call. The usage and the limits include what was paid before.

        Raises:
            CannotResume: If the log has no such run, several and none was chosen, a finished one, or one of
                another signature or other inputs. The message names them.
            OSError: If the log cannot be read.
        """
        with _resuming(log, run):
            return self(**inputs)  # type: ignore[operator]  # a dspy.Module

    async def aresume(
        self, log: str | os.PathLike[str], /, *, run: str | None = None, **inputs: Any
    ) -> dspy.Prediction:
        """Go on like `resume`, on the running event loop."""
        with _resuming(log, run):
            return await self.acall(**inputs)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _resuming(log: str | os.PathLike[str], run: str | None) -> Iterator[None]:
    """Let the next run of this scope go on with a run of a log, and append its events there."""
    token = _next_root.set([choose_run(log, run)])
    path, callbacks = Path(log).absolute(), dspy.settings.callbacks
    is_written = any(isinstance(each, RunLog) and each.path == path for each in callbacks)
    try:
        with contextlib.nullcontext() if is_written else RunLog(path):
            yield
    finally:
        _next_root.reset(token)


@dataclass(frozen=True)
class Wording:
    """How an error names what its reader uses: in Python by default, else on the command line."""

    option: str = "run=ID"
    """Chooses a run."""
    writer: str = "RunLog"
    """Writes a log."""


def choose_run(log: str | os.PathLike[str], run: str | None, wording: Wording = Wording()) -> RecordedRun:
    """Return the run of a log that is to go on.

    Args:
        log: The file.
        run: The id of the run, or its first characters; None for the only one that has not finished.
        wording: How errors name the option and the writer of a log.

    Raises:
        CannotResume: If there is no such run, or there are several.
        OSError: If the file cannot be read.
    """
    roots = read_roots(log)
    if not roots:
        raise CannotResume(
            f"{log} contains no run that this version can read. Give a file that {wording.writer} wrote."
        )
    open_runs = [root for root in roots if not root.is_finished]
    unfinished = _listed(open_runs, wording)
    if run is not None:
        found = [root for root in roots if root.id.startswith(run)]
        if not found:
            raise CannotResume(f"{log} contains no run {run!r}. {unfinished}")
        if len(found) > 1:
            several = _listed(found, wording)
            raise CannotResume(f"{log} contains several runs whose ids begin with {run!r}. {several}")
        if found[0].is_finished:
            raise CannotResume(f"The run {run!r} in {log} is finished. {unfinished}")
        return found[0]
    if not open_runs:
        raise CannotResume(f"{log} contains no unfinished run: {counted(len(roots), 'run')}, all finished.")
    if len(open_runs) > 1:
        raise CannotResume(f"{log} contains several unfinished runs. {unfinished}")
    return open_runs[0]


def _listed(runs: list[RecordedRun], wording: Wording) -> str:
    if not runs:
        return "No run in it is unfinished."
    return "\n".join([f"Choose one with {wording.option}:", *(f"  {describe(run)}" for run in runs)])


def describe(run: RecordedRun) -> str:
    """Return a run in one line: its id, start, turns and shortest input."""
    shortest = min(run.started.get("inputs", {}).values(), key=len, default="")
    turns = counted(sum(each.step.kind != "folded" for each in run.steps), "turn")
    return f"{run.id}  {run.started.get('at', '')}  {turns}  {one_line(shortest, _SHOWN_CHARS)!r}"


def recorded_run(event: RunEvent, parent: RecordedRun | None, *, is_root: bool) -> RecordedRun | None:
    """Return what is recorded of the run that starts now; None if it is new.

    Args:
        event: The event of its start.
        parent: What is recorded of the run that makes it.
        is_root: Whether no run makes it.

    Raises:
        CannotResume: If it is to go on with a run of another signature or other inputs.
    """
    if not is_root:
        return parent.child(asked(event)) if parent is not None and parent.children else None
    waiting = _next_root.get([])
    if not waiting:
        return None
    found = waiting.pop()
    _check(found.started, asked(event))
    if found.started.get("session") and not event.session:
        _logger.warning("RLM: %s", LEFT_SESSION)
    return found


def _check(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a run has the signature and the inputs that it had."""
    if then.get("signature") != now["signature"]:
        raise CannotResume(
            f"The run in the log is of another program: its signature is {then.get('signature')!r}, not "
            f"{now['signature']!r}. Resume it with the module that started it."
        )
    if then.get("instructions") != now["instructions"]:
        raise CannotResume(
            "The run in the log is of another program: the instructions of its signature begin with "
            f"{one_line(str(then.get('instructions')), _SHOWN_CHARS)!r}, not with "
            f"{one_line(now['instructions'], _SHOWN_CHARS)!r}. Resume it with the module that started it."
        )
    digests = then.get("digests", {})
    other = [name for name, digest in now["digests"].items() if digests.get(name) != digest.model_dump()]
    other += [name for name in digests if name not in now["digests"]]
    if other:
        raise CannotResume(
            f"Not the inputs that the run had: {', '.join(other)}. Pass the same ones, or start a new run."
        )
