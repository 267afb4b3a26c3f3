"""Rebuilds a run that is resumed: its REPL, its conversation, and what it may still do."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from rlm_dspy.events import silent
from rlm_dspy.loop.compaction import keep_history
from rlm_dspy.loop.turn import replaced
from rlm_dspy.resume.resumable import recorded_run
from rlm_dspy.text import counted, one_line, sendable
from rlm_dspy.trajectory import Trajectory

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.events import RunEvent
    from rlm_dspy.loop.run_state import Run
    from rlm_dspy.resume.journal import RecordedRun, RecordedStep
    from rlm_dspy.trajectory import Step

_LINE_CHARS = 120
_TOLD_TURNS = 5
_SURE_PART = 3
"""The first 1/_SURE_PART of a clipped output is unchanged."""
_LEAST_CLIPPED_CHARS = 500
"""A clipped output has at least this many characters, if the limits allow it."""
_NOT_RUN: frozenset[str] = frozenset({"denied"})
"""Kinds of steps whose code did not run."""
_DIFFERS = (
    "(The process of this session ended. A new one ran the code of the turns so far again, with the recorded "
    "answers of models and tools. What differs:\n{}\nThe outputs above are the recorded ones. Check your "
    "variables before you rely on them.)"
)


def resumed(event: RunEvent, parent: Run | None) -> tuple[RunEvent, RecordedRun | None]:
    """Return the event of a run that starts now, and what is recorded of it; None if it is new.

    Raises:
        CannotResume: If the run in the log has another signature or other inputs.
    """
    found = recorded_run(event, parent.recorded if parent else None, is_root=parent is None)
    if found is None:
        return event, None
    began, numbers = time.monotonic() - found.journal.seconds, itertools.count(found.lm_calls + 1)
    return replace(event, id=found.id, began=began, lm_calls=numbers, resumed=True), found


def rebuild(run: Run, recorded: RecordedRun, execute: Callable[[str, str], Step]) -> None:
    """Restore the ended turns of a run from its log, and run their code again, so that the REPL has its variables.

    No model is called and no event is emitted. The notice of the last turn tells the model which results differ.

    Args:
        run: The run; its REPL is open.
        recorded: What the log holds of it.
        execute: Runs the code of a turn.
    """
    differences: list[str] = []
    with silent():
        run.answers.rebuilding = True
        for each in recorded.steps:
            if each.step.kind == "folded":
                _fold(run, each)
            else:
                differences += _take(run, each, execute)
        run.answers.rebuilding = False
    if run.watch:
        run.watch.opened()
    run.subcalls.begin_at(recorded.sub_calls)
    if differences:
        more = (
            [f"- {counted(len(differences) - _TOLD_TURNS, 'further turn')}"]
            if len(differences) > _TOLD_TURNS
            else []
        )
        _add_notice(run, _DIFFERS.format("\n".join([*differences[:_TOLD_TURNS], *more])))


def _fold(run: Run, recorded: RecordedStep) -> None:
    """Replace the turns before a summary by it."""
    keep_history(run)
    shown = run.conversation.trajectory.steps
    run.fold(recorded.step, shown[len(shown) - recorded.kept :])


def _take(run: Run, recorded: RecordedStep, execute: Callable[[str, str], Step]) -> list[str]:
    """Take an ended turn; return what came out otherwise, if anything did."""
    step, differences = recorded.step, list[str]()
    if step.code and step.kind not in _NOT_RUN:
        with run.in_time():
            now = execute(step.reasoning, step.code)
        if step.proposed:
            now = replaced(now, step.proposed)
        is_refused = now.answer is not None  # by a hook, which is not asked again
        output = sendable(now.printed if is_refused else now.output)
        shown = step.printed if is_refused else step.output
        missing, run.answers.missing = run.answers.missing, []
        if missing:
            names = ", ".join(sorted(set(missing)))
            differences.append(f"{counted(len(missing), 'call')} of {names} had no recorded answer, and failed")
        elif not _is_shown_as(output, shown, min(_LEAST_CLIPPED_CHARS, run.limits.max_output_chars)):
            differences.append(f"it gave {_first_difference(output, shown)}")
    run.conversation.reported = (recorded.read, len(run.conversation.trajectory))
    run.turns_are_over = run.budget.limit is not None
    run.budget.ended(step)
    run.keep(step)
    return [f"- turn {run.budget.turns}: {why}" for why in differences]


def _is_shown_as(output: str, shown: str, least: int) -> bool:
    """Whether `shown` is this output: whole, perhaps with a note after it, or clipped in the middle.

    Args:
        output: The output.
        shown: What the model was shown.
        least: The length of the shortest clipped output.
    """
    part = len(shown) // _SURE_PART
    is_clipped = len(output) > len(shown) >= least
    return shown.startswith(output) or (is_clipped and output[:part] == shown[:part])


def _first_difference(now: str, then: str) -> str:
    """Return the first line that differs, now and then."""
    new, old = now.splitlines(), then.splitlines()
    at = next((n for n, (a, b) in enumerate(zip(new, old, strict=False)) if a != b), min(len(new), len(old)))
    new_line, old_line = (one_line(lines[at], _LINE_CHARS) if at < len(lines) else "" for lines in (new, old))
    return f"{new_line!r} instead of {old_line!r}"


def _add_notice(run: Run, text: str) -> None:
    """Add a note to the notice of the last turn."""
    shown = run.conversation.trajectory.steps
    last = run.steps[-1]
    noted = last.model_copy(update={"notice": "\n".join(filter(None, [last.notice, text]))})
    run.steps[-1] = noted
    if shown:
        run.conversation.trajectory = Trajectory(steps=shown[:-1]).add(noted)
