"""Asks the hooks of a run about its code, its tool calls and its answer."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from rlm_dspy.cache import digest
from rlm_dspy.concurrency.event_loops import LoopCall
from rlm_dspy.concurrency.wait_scope import Cancellation, cancelled_by
from rlm_dspy.errors import HookFailed, Pause, RunEnded, ToolRefused
from rlm_dspy.events import ReviewEvent, unit
from rlm_dspy.json_values import jsonable
from rlm_dspy.redaction import in_strings
from rlm_dspy.text import clip

if TYPE_CHECKING:
    import dspy
    from pydantic import JsonValue

    from rlm_dspy.budget.ledger import Ledger
    from rlm_dspy.concurrency.port import Port


@dataclass(frozen=True)
class RunInstead:
    """What `on_code` returns to have other code run than the model wrote.

    Args:
        code: The Python to run.

    Raises:
        ValueError: If it is not a str, or is empty.
    """

    code: str

    def __post_init__(self) -> None:
        if not isinstance(self.code, str) or not self.code.strip():
            raise ValueError(f"RunInstead takes Python code as a str, not {self.code!r}.")


Verdict: TypeAlias = str | RunInstead | None
OnCode: TypeAlias = Callable[[str], Verdict | Awaitable[Verdict]]
"""Called with the code of a turn. None lets it run, a str refuses it, a `RunInstead` replaces it."""
OnTool: TypeAlias = Callable[[str, dict[str, Any]], str | Awaitable[str | None] | None]
"""Called with the name of a tool and its arguments by name. None allows the call, a str refuses it."""
OnSubmit: TypeAlias = Callable[[dict[str, Any]], str | Awaitable[str | None] | None]
"""Called with the output fields of an answer. None accepts it, a str is the complaint that the model reads."""

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_LOGGED_CHARS = 20_000
_UNTOLD = "No reason was given."


class Hooks(Protocol):
    """Interface of a module with hooks; `RLM` implements it."""

    on_code: OnCode | None
    on_tool: OnTool | None
    on_submit: OnSubmit | None


@dataclass
class Reviewer:
    """Asks the hooks of one run. The clock of the run is paused meanwhile.

    A hook that raises ends the whole tree of runs: code that runs is stopped, and further requests are refused.

    Attributes:
        hooks: The hooks.
        ledger: The ledger of the tree.
        above: The reviewer of the run above; None for a root.
        recorded: Returns, once, what the log of a resumed run holds of a decision by its `review_key`: the fields
            of its `ReviewEvent`; None if there is none.
        ended: Told when a hook has ended the tree.
    """

    hooks: Hooks
    ledger: Ledger
    above: Reviewer | None = None
    recorded: Callable[[str], ReviewEvent | None] | None = None
    ended: Cancellation[Exception] = field(default_factory=Cancellation)

    def __post_init__(self) -> None:
        if self.above is not None:
            self.ended = self.above.ended

    async def code(self, port: Port, stop: Callable[[], object], code: str) -> Verdict:
        """Return the verdict of `on_code`; None allows it.

        Args:
            port: Runs the hook.
            stop: Stops the run; see `Port.run`.
            code: The code.
        """
        if (hook := self.hooks.on_code) is None:
            return None
        ask = functools.partial(hook, code)
        return await port.run(self._ask, "on_code", {"code": code}, ask, stop=stop)

    async def answer(self, port: Port, stop: Callable[[], object], fields: Mapping[str, Any]) -> str | None:
        """Return why `on_submit` refuses an answer; None if it does not. The arguments are as those of `code`."""
        if (hook := self.hooks.on_submit) is None:
            return None
        ask = functools.partial(hook, dict(fields))
        return await port.run(self._words, "on_submit", dict(fields), ask, stop=stop)

    def reviewed(self, tool: dspy.Tool) -> dspy.Tool:
        """Return a tool whose calls `on_tool` must allow.

        Its calls raise `ToolRefused` if they are refused.
        """
        if (hook := self.hooks.on_tool) is None:
            return tool
        function: Callable[..., Any] = tool.func
        parameters = inspect.signature(function).parameters.values()
        names = [each.name for each in parameters if each.kind in _BY_POSITION]

        def call(*args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if more := args[len(names) :]:
                given["args"] = more
            asked = {"tool": tool.name, "arguments": given}
            if (why := self._words("on_tool", asked, functools.partial(hook, tool.name, dict(given)))) is not None:
                raise ToolRefused(f"{tool.name} was refused: {why}")
            return function(*args, **kwargs)

        functools.update_wrapper(call, function)
        return tool.model_copy(update={"func": call})

    def check(self) -> None:
        """Raise what a hook of the tree raised, if one did: code may have caught it.

        Raises:
            Pause: If a hook paused the run.
            HookFailed: If a hook failed.
            RunEnded: If the run was interrupted.
        """
        if (why := self.ended.why) is None:
            if isinstance(self.ledger.closed, RunEnded):
                self.ledger.check_open()
            return
        if self.above is None:
            raise why
        # A child raises another: what there is of a run is attached to the root's.
        raise Pause(str(why)) if isinstance(why, Pause) else HookFailed(str(why))

    def _words(self, hook: str, asked: Mapping[str, Any], ask: Callable[[], Any]) -> str | None:
        verdict = self._ask(hook, asked, ask)
        assert not isinstance(verdict, RunInstead)  # `_ask` refuses it
        return verdict

    def _ask(self, hook: str, asked: Mapping[str, Any], ask: Callable[[], Any]) -> Verdict:
        self.check()
        try:
            with unit(ReviewEvent(hook=hook, asked=asked)) as told:
                taken = self.recorded and self.recorded(review_key(hook, asked))
                verdict = _verdict_of(taken) if taken else self._verdict(hook, ask)
                if isinstance(verdict, RunInstead):
                    told.end(run_instead=verdict.code)
                else:
                    told.end(refused=verdict or "")
                return verdict
        except (Pause, HookFailed) as error:  # after its event: this thread may be stopped at once
            if self.ended.why is None:
                self.ended.cancel(error)
            self.ledger.close(RunEnded(f"{hook} has ended the run."))
            self.check()
            raise

    def _verdict(self, hook: str, ask: Callable[[], Any]) -> Verdict:
        """Ask a hook.

        Raises:
            Pause: If it pauses the run.
            HookFailed: If it raises anything else, or returns no verdict.
        """
        try:
            with self.ledger.clock.stopped(), self._cancelled_with_the_run():
                verdict = ask()
                if inspect.isawaitable(verdict):
                    verdict = LoopCall(verdict, hook).result()
        except Pause:
            raise
        except Exception as error:
            raise HookFailed(f"{hook} raised {type(error).__name__}: {error}") from error
        return _checked(hook, verdict)

    def _cancelled_with_the_run(self) -> contextlib.AbstractContextManager[None]:
        """Return a scope whose awaitables end with the run, unless it already converges to its end."""
        closed = self.ledger.closed is not None
        return contextlib.nullcontext() if closed else cancelled_by(self.ledger.cancellation)


def review_key(hook: str, asked: Mapping[str, Any]) -> str:
    """Return the key of a question to a hook, for the log."""
    return digest(hook, dict(asked))


def _verdict_of(decided: ReviewEvent) -> Verdict:
    return RunInstead(decided.run_instead) if decided.run_instead else decided.refused or None


def asked_in_log(asked: Mapping[str, Any]) -> JsonValue:
    """Return what a hook is asked about as JSON, with long texts truncated."""
    plain: JsonValue = in_strings(jsonable(asked), lambda text: clip(text, _LOGGED_CHARS))
    return plain


def _checked(hook: str, verdict: Verdict) -> Verdict:
    """Return a verdict; a refusal without a reason gets words.

    Raises:
        HookFailed: If it is not a verdict.
    """
    kinds = (str, RunInstead) if hook == "on_code" else (str,)
    if verdict is None or isinstance(verdict, kinds):
        return _UNTOLD if isinstance(verdict, str) and not verdict.strip() else verdict
    also = ", a RunInstead(code) to replace it" if hook == "on_code" else ""
    raise HookFailed(
        f"{hook} returned {verdict!r}. It must return None to allow, a str that says why not{also}; or raise."
    )
