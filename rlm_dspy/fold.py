"""Keeps a long conversation within the model's window: older turns give way to a short account of them."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import dspy

from rlm_dspy.answers import TOO_DEEP
from rlm_dspy.errors import LimitExceeded, ReplyCut
from rlm_dspy.fitting import fitting
from rlm_dspy.metering import metered
from rlm_dspy.refusals import is_too_long
from rlm_dspy.trajectory import Step, clip, cut, fitted, without_media_marks

if TYPE_CHECKING:
    from rlm_dspy.port import Port
    from rlm_dspy.run import Run

KEPT_TURNS = 2
"""The newest turns stay as they are."""
ACCOUNT_CHARS = 4_000
_SESSION_CHARS = 24_000
_SESSION_TRIES = 3
"""A session that is too long for the model is halved so often, less one."""
_INSTRUCTIONS = """Give a short account of these turns of a session in a Python REPL, for whoever goes on with it.

Say what was found out, with the numbers and names that matter, which variables hold what, what was tried in vain,
and what is left to do. Leave out how it was done."""
_logger = logging.getLogger("dspy.rlm_dspy")


async def fold(port: Port, run: Run, keep: int = KEPT_TURNS, account_chars: int = ACCOUNT_CHARS) -> bool:
    """Put an account of the older turns in their place; the turns are in the REPL's `history` then.

    The account is the model's own. If it gives none, or the limits allow no call for it, it is what the turns
    printed, shortened.

    Args:
        port: How the model is reached.
        run: The run.
        keep: How many of the newest turns stay as they are.
        account_chars: The most characters of the account.

    Returns:
        Whether there was anything to fold.
    """
    shown = run.trajectory.steps
    old, new = shown[: len(shown) - keep], shown[len(shown) - keep :]
    if all(step.kind == "folded" for step in old):
        return False
    started, before = time.monotonic(), run.ledger.totals()
    name = await port.run(run.keep_history)
    account = clip(await _account(port, run, old), account_chars)
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
    """Return the model's account of these turns; what they printed, if it gives none."""
    told = [_told(step) for step in steps]
    room = int(min(_SESSION_CHARS, run.room.chars / 2))
    for _ in range(_SESSION_TRIES):
        session = "\n\n".join(fitted(told, room))
        try:
            return await _ask(port, run, session) or session
        except (dspy.AdapterParseError, dspy.LMError, LimitExceeded, ReplyCut, *TOO_DEEP) as error:
            _logger.warning("RLM: the model gave no account of its turns: %s", str(error)[:200])
            if not isinstance(error, dspy.LMError) or not is_too_long(error):
                return session
        room //= 2
    return session


async def _ask(port: Port, run: Run, session: str) -> str:
    tell = dspy.Predict(dspy.Signature("task: str, session: str -> account: str", _INSTRUCTIONS))
    tell.lm = run.lm
    metering = metered(run.ledger, run.role("fold"), ticket=run.ticket())
    task = cut(run.signature.instructions, len(session) or 1)
    with metering, fitting(module=tell), dspy.context(trace=None), run.budget.in_time():
        told = without_media_marks({"task": task, "session": session})
        found = await port.predict(tell, run.budget.seconds_for_reply(), **told)
    return str(found.account or "").strip()


def _told(step: Step) -> str:
    return step.output if step.kind == "folded" else f"{step.reasoning}\n>>> {step.code}\n{step.output}"
