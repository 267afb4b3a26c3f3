"""Answers the sub-calls and tool calls of a resumed run from its log."""

from __future__ import annotations

import builtins
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlm_dspy import errors
from rlm_dspy.cache import digest
from rlm_dspy.errors import ToolInterrupted
from rlm_dspy.repl.value_codec import taken
from rlm_dspy.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rlm_dspy.repl.value_codec import Media
    from rlm_dspy.resume.journal import RecordedRun
    from rlm_dspy.subcalls.item import SubCallItem

_NOT_RECORDED = "NotRecorded"


@dataclass
class RecordedAnswers:
    """Answers the calls of one run's code.

    Attributes:
        recorded: What the log holds of the run.
        media: The images, sounds and files that its REPL has by name.
        rebuilding: Whether the code of ended turns is run again: what is not recorded fails then.
        missing: The calls that failed so.
    """

    recorded: RecordedRun
    media: Media
    rebuilding: bool = False
    missing: list[str] = field(default_factory=list)

    def paid_in_turn(self) -> Usage:
        """Return, once, what was spent in this turn before the run was resumed: the ledger has it already."""
        paid, self.recorded.in_turn = self.recorded.in_turn, Usage()
        return paid

    def answer(self, name: str, items: Sequence[SubCallItem]) -> None:
        """Answer the items that were answered before the run was resumed."""
        for item in items:
            found = self.recorded.calls.take(item.asked)
            if found is not None:
                item.recorded, item.answer, item.cached = found, found.answer, found.call.cached
            elif self.rebuilding and not item.answer:
                self.missing.append(name)
                why = f"{name} was not asked this before the run was resumed: ask again."
                item.answer = {"error": f"{_NOT_RECORDED}: {why}", "kind": _NOT_RECORDED}

    def tool(self, name: str, arguments: Mapping[str, Any]) -> Callable[[], Any] | None:
        """Return what to do in place of a tool call; None to call it."""
        found = self.recorded.tools.take(digest(name, dict(arguments)))
        if not self.rebuilding and (found is None or found.not_made):
            return None
        if found is None:
            why = "was not called like this before the run was resumed: call it again"
        elif found.ended is None:
            why = "was running when the process was gone; whether it did its work is not known"
        elif "value" in found.ended:
            value = found.ended["value"]
            return lambda: taken(value, self.media)
        elif "message" in found.ended:
            error = _error(str(found.ended["tool"]["error_type"]), str(found.ended["message"]))
            return lambda: _raise(error)
        else:
            why = "returned a value that a log cannot hold, before the run was resumed: call it again"
        if self.rebuilding:
            self.missing.append(name)
        return lambda: _raise(ToolInterrupted(f"{name} {why}."))


def _error(kind: str, message: str) -> Exception:
    """Return the recorded error of a tool; one of Python's own, or of ours, has its class."""
    own = getattr(builtins, kind, None) or getattr(errors, kind, None)
    if isinstance(own, type) and issubclass(own, Exception):
        with contextlib.suppress(TypeError):  # it takes more than a message
            return own(message)
    return RuntimeError(f"{kind}: {message}")


def _raise(error: Exception) -> None:
    raise error
