"""Defines `Compute`: how much a call of an RLM computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import dspy

from rlm_dspy.errors import briefly_shown
from rlm_dspy.limits import OptionGroup

VoteIf = Literal["always", "doubtful"]


@dataclass(frozen=True, kw_only=True)
class Compute(OptionGroup):
    """How much a call of an RLM computes. Everything is off by default.

    Raises:
        TypeError: If there is no option of a name, or a value is of the wrong kind; the message names the fix.
        ValueError: If a number is out of its range.
    """

    direct_below: int | None = None
    """Tokens up to which inputs are answered by one plain call, without a REPL; None never tries.

    Only without tools and subs. Three characters count as a token. If the reply does not fit the signature, the
    run goes on as usual.
    """
    votes: int = 1
    """The maximum number of runs, each blind to the others; the answer is the one that most of them give.

    No further run starts once more than half agree. The limits hold for all of them together.
    """
    vote_if: VoteIf = "always"
    """When to run again: `always`, or if the first run is `doubtful`.

    Doubtful is a run that did not SUBMIT, whose SUBMIT was refused, or whose answer has no place in the inputs
    (`prediction.sources`).
    """
    cheap_lm: dspy.BaseLM | None = None
    """An LM that `llm_query`, subs and predictors written in the REPL ask first.

    An item is asked again of the usual LM if the reply does not fit the types, is cut, or the call fails. A
    predictor with its own LM keeps it.
    """

    @briefly_shown()
    def __post_init__(self) -> None:
        if self.direct_below is not None:
            _check_whole("direct_below", self.direct_below)
        _check_whole("votes", self.votes)
        if self.vote_if not in get_args(VoteIf):
            raise ValueError(f"vote_if must be 'always' or 'doubtful', not {self.vote_if!r}.")
        if self.cheap_lm is not None and not isinstance(self.cheap_lm, dspy.BaseLM):
            raise TypeError(
                f"cheap_lm must be a dspy.LM, e.g. dspy.LM('openai/gpt-5-nano'), not {self.cheap_lm!r}."
            )


def _check_whole(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}.")
