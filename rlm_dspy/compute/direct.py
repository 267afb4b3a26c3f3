"""Answers a short task by one plain call of the model, without a REPL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import dspy

from rlm_dspy.errors import LimitExceeded, ReplyCut
from rlm_dspy.inputs import plain
from rlm_dspy.prompt.free_form_outputs import read_fields
from rlm_dspy.repl.coercion import TOO_DEEP
from rlm_dspy.repl.value_codec import without_media_marks
from rlm_dspy.text import logger

if TYPE_CHECKING:
    import contextlib

    from rlm_dspy.budget.last_turn_reserve import Budget
    from rlm_dspy.budget.ledger import Meter
    from rlm_dspy.concurrency.port import Port

_CHARS_PER_TOKEN = 3
_logger = logger()


class DirectRun(Protocol):
    """What a plain call needs of a run that has not begun."""

    signature: type[dspy.Signature]
    inputs: dict[str, Any]
    lm: dspy.BaseLM
    budget: Budget

    def metered(self, role: str) -> contextlib.AbstractContextManager[Meter]:
        """Return a scope that records its model calls in the ledger of the run."""


async def answer_directly(port: Port, run: DirectRun, below: int) -> dict[str, Any] | None:
    """Return the values of the output fields from one plain call; None if a run is needed.

    Args:
        port: Calls the model.
        run: The run.
        below: The maximum number of tokens of the inputs.
    """
    inputs = {name: plain(value) for name, value in run.inputs.items()}
    if not all(_is_plain(value) for value in inputs.values()):
        return None
    if sum(len(str(value)) for value in inputs.values()) > below * _CHARS_PER_TOKEN:
        return None
    reader = dspy.Predict(run.signature)
    reader.lm = run.lm
    try:
        with run.metered("direct") as meter, dspy.context(trace=None), run.budget.in_time(meter):
            found = await port.predict(reader, run.budget.seconds_left(), **without_media_marks(inputs))
        values, problems = read_fields(run.signature, dict(found.items()), meter.outputs)
    except (dspy.AdapterParseError, dspy.LMError, LimitExceeded, ReplyCut, *TOO_DEEP) as error:
        problems = [type(error).__name__]
    if problems:
        _logger.info("RLM: the plain call gave no answer (%s); the run goes on with a REPL.", problems[0])
        return None
    answer: dict[str, Any] = without_media_marks(values)
    return answer


def _is_plain(value: object) -> bool:
    """Whether a value is shown to a model whole, as text."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)
