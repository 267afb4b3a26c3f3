"""Changes messages that the provider refused: summarizes older turns, shortens others, hides a blocked output."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import dspy

from rlm_dspy.budget.provider_errors import is_blocked
from rlm_dspy.budget.window_errors import is_too_long, sizes_of
from rlm_dspy.errors import LimitExceeded, ReplyCut
from rlm_dspy.loop.context_window import PART, as_session, chars_of
from rlm_dspy.repl.coercion import TOO_DEEP
from rlm_dspy.repl.value_codec import without_media_marks
from rlm_dspy.text import clip, cut, logger, one_line, shorten_to_fit
from rlm_dspy.trajectory import Step, Trajectory

if TYPE_CHECKING:
    from rlm_dspy.concurrency.port import Port
    from rlm_dspy.loop.run_state import Run

KEPT_TURNS = 2
"""Number of newest turns that are not summarized."""
SUMMARY_CHARS = 4_000
HISTORY = "history"
"""The variable that holds the turns after a summary."""
_SESSION_CHARS = 24_000
_SESSION_TRIES = 3
"""Number of attempts; a session that is too long for the model is halved between them."""
_INSTRUCTIONS = """Summarize these turns of a Python REPL session for whoever continues it.

State the findings with their numbers and names, what each variable holds, what failed, and what is left to do.
Leave out how it was done."""
_logger = logger()
_BASE_SHARE = 0.5
"""Maximum share of the room for everything but turns: instructions, demos, environment."""
_AFTER = 0.6
"""Share of the room that turns should fill after a summary: more turns will follow."""
_LEAST_KEPT_CHARS = 600
"""A newest turn that would be shorter is summarized too."""
_BLOCKED = "(The provider's content filter blocks this output: it is not shown. Print other or fewer parts.)"
_BLOCKS_THE_TASK = "The provider's content filter blocks the task: change its inputs, or use another model."
_LEAST_TURNS_CHARS = 1_000
"""Shorter turns are not shortened further: they would say too little."""


async def fold(port: Port, run: Run, keep: int = KEPT_TURNS, summary_chars: int = SUMMARY_CHARS) -> bool:
    """Replace the older turns by a summary; the turns stay in the REPL as `history`.

    The model writes the summary. If it does not, or the limits do not allow the call, the summary is the
    shortened output of the turns.

    Args:
        port: The port to the model.
        run: The run.
        keep: The number of newest turns to keep unchanged.
        summary_chars: The maximum length of the summary.

    Returns:
        Whether any turns were summarized.
    """
    shown = run.conversation.trajectory.steps
    old, new = shown[: len(shown) - keep], shown[len(shown) - keep :]
    if all(step.kind == "folded" for step in old):
        return False
    started, before = time.monotonic(), run.ledger.totals()
    name = await port.run(keep_history, run)
    summary = clip(await _summary(port, run, old), summary_chars)
    folded = len(turns_of(run)) - len(new)
    text = (
        f"Summary of the first {folded} turns (the list `{name}` has them in full, as dicts "
        f"with turn, reasoning, code, output):\n{summary}"
    )
    step = Step(
        output=text,
        kind="folded",
        seconds=time.monotonic() - started,
        started=started - run.ledger.started,
        spent=run.ledger.totals() - before,
    )
    run.fold(step, new)
    return True


def turns_of(run: Run) -> list[Step]:
    """Return the turns so far; in a session with those of the calls before."""
    return [step for step in (*run.past, *run.steps) if step.kind != "folded"]


def keep_history(run: Run) -> str:
    """Put the turns so far into the REPL as a list of dicts; return the name of the variable."""
    entries = [
        {"turn": number, "reasoning": step.reasoning, "code": step.code, "output": step.output}
        for number, step in enumerate(turns_of(run), 1)
    ]
    return run.repl.keep(HISTORY, entries)


async def _summary(port: Port, run: Run, steps: tuple[Step, ...]) -> str:
    """Return the model's summary of these turns, else their output."""
    texts = [step.output if step.kind == "folded" else as_session(step) for step in steps]
    room = int(min(_SESSION_CHARS, run.conversation.most_chars / 2))
    for _ in range(_SESSION_TRIES):
        session = "\n\n".join(shorten_to_fit(texts, room))
        try:
            return await _ask(port, run, session) or session
        except (dspy.AdapterParseError, dspy.LMError, LimitExceeded, ReplyCut, *TOO_DEEP) as error:
            _logger.warning("RLM: the model did not summarize its turns: %s", one_line(str(error), 200))
            if not isinstance(error, dspy.LMError) or not is_too_long(error):
                return session
        room //= 2
    return session


async def _ask(port: Port, run: Run, session: str) -> str:
    summarize = dspy.Predict(dspy.Signature("task: str, session: str -> summary: str", _INSTRUCTIONS))
    summarize.lm = run.lm
    task = cut(run.signature.instructions, len(session) or 1)
    with run.metered("fold") as meter, dspy.context(trace=None), run.budget.in_time(meter):
        inputs = without_media_marks({"task": task, "session": session})
        found = await port.predict(summarize, run.budget.seconds_for_reply(), **inputs)
    return str(found.summary or "").strip()


async def accommodate(port: Port, run: Run, error: dspy.LMError) -> bool:
    """Change the messages of the next turn after the provider refused them; return whether they can be sent again.

    Args:
        port: The port to the model.
        run: The run.
        error: The refusal. If it is for the content of the task, it gets a note with the fix.
    """
    if is_blocked(error):
        return _hide_output(run, error)
    if not is_too_long(error):
        return False
    run.conversation.refused(sizes_of(error).read)
    return await make_room(port, run)


def _hide_output(run: Run, error: dspy.LMError) -> bool:
    """Show the model a notice in place of the newest output, which a content filter blocks."""
    *before, last = run.conversation.trajectory.steps or (None,)
    if last is None or last.output == _BLOCKED:
        error.message += f" {_BLOCKS_THE_TASK}"
        error.args = (f"{error} {_BLOCKS_THE_TASK}",)
        return False
    run.show([*before, last.model_copy(update={"output": _BLOCKED})])
    return True


async def make_room(port: Port, run: Run) -> bool:
    """Shorten the messages of the next turn to fit the window, or by one step if the window is not known.

    First older turns are summarized (see `fold`), then more of them; then the newest outputs are shortened; then
    the rest is, as `Conversation.shorten_base` says.

    Args:
        port: The port to the model.
        run: The run.

    Returns:
        Whether anything was folded or shortened.
    """
    shown = run.conversation
    before = shown.chars()
    if shown.window is None:
        for keep in (KEPT_TURNS, 1, 0):
            if await fold(port, run, keep):
                return True
        room = int(shown.most_chars)
        _shorten_turns(run, room - shown.chars(Trajectory()))
        shown.shorten_base(room - chars_of(shown.trajectory.steps))
    else:
        shown.shorten_base(int(_BASE_SHARE * shown.most_chars))
        if await _fit_turns(port, run, int(shown.most_chars) - shown.chars(Trajectory())):
            return True
    return shown.chars() < before


async def _fit_turns(port: Port, run: Run, room: int) -> bool:
    """Make the turns fit into `room` characters; return whether any were summarized."""
    steps = run.conversation.trajectory.steps
    if chars_of(steps) <= room:
        return False
    summary_chars = min(SUMMARY_CHARS, max(room, 0) // PART)
    for keep in (KEPT_TURNS, 1):
        if summary_chars + chars_of(steps[-keep:]) <= _AFTER * room and await fold(port, run, keep, summary_chars):
            return True
    folded = await fold(port, run, 1 if room - summary_chars >= _LEAST_KEPT_CHARS else 0, summary_chars)
    _shorten_turns(run, room)
    return folded


def _shorten_turns(run: Run, room: int) -> None:
    """Shorten the longest texts, code blocks and outputs of the turns."""
    steps = run.conversation.trajectory.steps
    if chars_of(steps) <= (room := max(room, _LEAST_TURNS_CHARS)):
        return
    texts = ("reasoning", "code", "output")
    notices = sum(len(step.notice) for step in steps)
    shorter = iter(shorten_to_fit([getattr(step, name) for step in steps for name in texts], room - notices))
    run.show([step.model_copy(update={name: next(shorter) for name in texts}) for step in steps])
