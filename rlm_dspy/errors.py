"""Defines the exceptions of this package, and says who should handle each.

RLMError                     base class of this package's errors
├── LimitExceeded            the model (inside the REPL): use what it has, or SUBMIT
│   ├── UnknownPrice         the caller: the cost is limited, but not known
│   ├── RunEnded             nobody: the run is over, so nobody waits for this call
│   └── LedgerLost           the operator: the server that counts the budget of a batch failed (`batch`)
├── ToolRefused              the model (inside the REPL): `on_tool` refused the call; do without it
├── Unanswered               the model (inside the REPL): a sub-call returned no answer; ask about less
├── ReplyCut                 the model: its reply was cut off; `partial` is the received part
│   └── ReplyWithheld        the model: its reply was withheld, or is a refusal; `partial` holds its words
├── Pause                    the caller: a hook waits for a decision; go on when there is one (`approval`)
├── HookFailed               the caller: `on_submit`, `on_code` or `on_tool` raised (`approval`)
├── InvalidInputs            the caller: an input is missing, unknown or invalid
├── UnreadableDocument       the caller: a file is neither text nor a document that can be read
├── UnreachableAddress       the caller: a page of the web is not allowed, or cannot be fetched
├── UnreadableTable          the caller: a table is damaged, too large or of an unknown kind (`inputs`)
├── CannotResume             the caller: a log has no run that can go on with this module and these inputs
├── ToolInterrupted          the model (inside the REPL): a tool's result was lost when the process was gone
├── EventLoopBlocked         the caller: an async tool waits for the event loop that the call blocks
├── UnknownModel             the caller: there is no such model, or none to fall back on
│   └── ModelNotPulled       the operator: the model must be downloaded first (`models`)
├── WorkersLost              the operator: workers of a batch died (`batch`)
├── PullFailed               the operator: a model could not be downloaded or stored (`embedded`)
├── ModelUnreachable         the operator: the model's server does not respond correctly (`models`)
├── MCPServerFailed          the operator: an MCP server cannot be started; the model: it gave no result (`mcp`)
└── UsageError               the caller of the command line (`cli`)

From DSPy, with DSPy's meaning:

SyntaxError                  the model: its code does not parse
dspy.CodeExecutionError      the model: its code raised
dspy.CodeInterpreterError    the run: the interpreter is gone; a caller sees it only if none can be started
dspy.LMError                 the caller: no answer from the model after its retries

An error that leaves a run has the partial prediction as `error.prediction` (see `report.representation.carry`).
"""

from __future__ import annotations

import contextlib
import traceback
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_HIDDEN = ("IPython", "contextlib", "dataclasses", "dspy", "rlm_dspy")
"""Packages and modules whose frames a notebook does not show."""


class RLMError(Exception):
    """Base class of this package's errors. A notebook shows the caller's part of the traceback alone."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows in the place of its own traceback."""
        return _in_short(self)


@contextlib.contextmanager
def briefly_shown() -> Iterator[None]:
    """Decorate a constructor: if an argument is wrong, a notebook shows only the caller's frames of the traceback.

    The error keeps its type, its message and its whole traceback.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        vars(error)["_render_traceback_"] = partial(_in_short, error)
        raise


def _in_short(error: BaseException) -> list[str]:
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [(frame, line) for frame, line in frames if _package(frame) not in _HIDDEN]
    left_out = len(frames) - len(own)
    return [
        f"Traceback ({left_out} inner frames left out; all: `traceback.print_exception(sys.last_value)`):",
        *map(str.rstrip, traceback.StackSummary.extract(own).format()),
        *map(str.rstrip, traceback.format_exception_only(error)),
    ]


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


class LimitExceeded(RLMError, RuntimeError):  # noqa: N818 (the field's term; it names what went wrong)
    """A limit of the run does not allow this call; nothing was spent on it.

    Attributes:
        limit: The field of `Limits`; empty if the run itself was stopped.
    """

    def __init__(self, message: str, limit: str = "") -> None:
        super().__init__(message)
        self.limit = limit


class UnknownPrice(LimitExceeded, ValueError):  # noqa: N818
    """`Limits.max_cost` is set, but a model's price is not known; give it in `Limits.prices`."""


class RunEnded(LimitExceeded):
    """The run was interrupted or a hook ended it, so this call is not made or not waited for any more."""


class LedgerLost(LimitExceeded):
    """The server that counts what a batch may still use failed, or has lost its data: nothing more is spent."""


class ToolRefused(RLMError, PermissionError):  # noqa: N818 (what happened)
    """`on_tool` refused this call of a tool; the message is its reason."""


class Pause(RLMError):  # noqa: N818 (what a hook asks for)
    """Raised by a hook that cannot decide yet: the run ends as `paused`, and can be resumed.

    Its message tells the person who will decide what the decision is about.
    """


class HookFailed(RLMError, RuntimeError):  # noqa: N818 (what happened)
    """A hook raised, or returned something that is not a decision; the run is over. The cause is its exception."""


class Unanswered(RLMError):  # noqa: N818 (the word that `Prediction.stop` has for it)
    """A sub-call ended without a value for each of its outputs; the values it has are not returned."""


class ReplyCut(RLMError):  # noqa: N818
    """A reply was truncated: it reached `max_tokens`, or the provider stopped it.

    Attributes:
        why: What happened to the reply, e.g. "was cut off after 512 tokens".
        partial: The received part of the reply, without the thinking before it.
        too_long: Whether a shorter reply would not have been cut.
    """

    def __init__(self, why: str, partial: str, *, too_long: bool = True) -> None:
        super().__init__(f"The reply {why}.")
        self.why = why
        self.partial = partial
        self.too_long = too_long


class ReplyWithheld(ReplyCut):
    """A reply was withheld because of its content, or the model refused; a shorter one would end the same way."""


class InvalidInputs(RLMError, ValueError):  # noqa: N818
    """The inputs of a call do not fit the signature."""


class UnreadableDocument(RLMError, ValueError):  # noqa: N818 (it names what is wrong)
    """A file is neither text nor a document that can be read; the message names the reason and the fix."""


class UnreachableAddress(RLMError, OSError):  # noqa: N818
    """A page of the web is not allowed or cannot be fetched; the message names the reason."""


class UnknownModel(RLMError, ValueError):  # noqa: N818
    """No model has this name, or there is none to fall back on; name another."""


class UnreadableTable(RLMError, ValueError):  # noqa: N818 (what it is)
    """A table cannot be read; the message says why and what to pass instead."""


class WorkersLost(RLMError, RuntimeError):  # noqa: N818 (what happened)
    """Workers of a batch died: of one example again and again, or of an executor that cannot be made again."""


class CannotResume(RLMError, ValueError):  # noqa: N818 (what it says)
    """An event log has no run that can go on with this module and these inputs; the message names the reason."""


class ToolInterrupted(RLMError, RuntimeError):  # noqa: N818 (what happened)
    """The result of a tool call was lost when the process of its run was gone; the code decides what to do."""


class EventLoopBlocked(RLMError, RuntimeError):  # noqa: N818
    """An async tool waits for an event loop that the run blocks; await the run instead: `await rlm.acall(...)`."""


class MCPServerFailed(RLMError, RuntimeError):  # noqa: N818 (what happened)
    """An MCP server cannot be started or reached, or it gave no result; the message names the server and why."""


class UsageError(RLMError, ValueError):
    """The command line is invalid; the message says how to write it."""
