"""Keeps a long conversation within the model's window: older turns give way to a short account of them."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import dspy

from rlm_dspy.errors import LimitExceeded
from rlm_dspy.fitting import fitting
from rlm_dspy.lms import context_window
from rlm_dspy.metering import metered
from rlm_dspy.trajectory import Step, clip

if TYPE_CHECKING:
    from rlm_dspy.port import Port
    from rlm_dspy.run import Run

KEPT_TURNS = 2
"""The newest turns stay as they are."""
_FULL = 0.8
"""The part of the window from which on a conversation is folded; the reply needs room too."""
_CHARS_PER_TOKEN = 3
_ACCOUNT_CHARS = 4_000
_SESSION_CHARS = 24_000
_LEAST_CHARS = 200
_INSTRUCTIONS = """Give a short account of these turns of a session in a Python REPL, for whoever goes on with it.

Say what was found out, with the numbers and names that matter, which variables hold what, what was tried in vain,
and what is left to do. Leave out how it was done."""
_logger = logging.getLogger("dspy.rlm_dspy")


async def fold_if_long(port: Port, run: Run) -> None:
    """Fold the conversation if it nears the window of the model, as far as that is known.

    Args:
        port: How the model is reached.
        run: The run.
    """
    window = window_of(run)
    if window is not None and run.context_tokens() > _FULL * window:
        await fold(port, run)


async def fold(port: Port, run: Run, keep: int = KEPT_TURNS) -> bool:
    """Put an account of the older turns in their place; the turns are in the REPL's `history` then.

    The account is the model's own. If it gives none, or the limits allow no call for it, it is what the turns
    printed, shortened.

    Args:
        port: How the model is reached.
        run: The run.
        keep: How many of the newest turns stay as they are.

    Returns:
        Whether there was anything to fold.
    """
    shown = run.trajectory.steps
    old, new = shown[: len(shown) - keep], shown[len(shown) - keep :]
    if all(step.kind == "folded" for step in old):
        return False
    started, before = time.monotonic(), run.ledger.totals()
    name = await port.run(run.keep_history)
    account = await _account(port, run, old)
    text = (
        f"The first {run.budget.turns - len(new)} turns, in short (in full in the list `{name}`, of dicts with "
        f"turn, reasoning, code, output):\n{account}"
    )
    step = Step(
        output=text,
        kind="folded",
        seconds=time.monotonic() - started,
        started=started - run.ledger.started,
        spent=run.ledger.since(before),
    )
    run.fold(step, new)
    return True


async def _account(port: Port, run: Run, steps: tuple[Step, ...]) -> str:
    window = window_of(run)
    room = _SESSION_CHARS if window is None else min(_SESSION_CHARS, window * _CHARS_PER_TOKEN // 2)
    share = max(_LEAST_CHARS, room // len(steps))
    session = "\n\n".join(clip(_told(step), share) for step in steps)
    short = min(_ACCOUNT_CHARS, room // 4)
    signature = dspy.Signature("task: str, session: str -> account: str", _INSTRUCTIONS)
    tell = dspy.Predict(signature)
    metering = metered(run.ledger, run.role("fold"), ticket=run.ticket())
    try:
        with metering, fitting(module=tell), dspy.context(trace=None), run.budget.in_time():
            found = await port.predict(
                tell,
                run.budget.seconds_for_reply(),
                task=run.signature.instructions,
                session=session,
            )
        account = str(found.account or "").strip()
    except (dspy.AdapterParseError, dspy.LMError, LimitExceeded) as error:
        _logger.warning("RLM: the model gave no account of its turns: %s", str(error)[:200])
        account = ""
    return clip(account or session, short)


def window_of(run: Run) -> int | None:
    """Return how many tokens a turn's messages may have; None if that is not known."""
    given: int | None = run.limits.max_context_tokens
    return given if given is not None else context_window(run.lm)


def _told(step: Step) -> str:
    return step.output if step.kind == "folded" else f"{step.reasoning}\n>>> {step.code}\n{step.output}"
