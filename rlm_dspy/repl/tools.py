"""Validates tools, and wraps each as a host function that code in the REPL can call; records the calls."""

from __future__ import annotations

import contextlib
import functools
import inspect
import keyword
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import dspy

from rlm_dspy.concurrency.async_forms import is_async
from rlm_dspy.concurrency.event_loops import LoopCall
from rlm_dspy.errors import EventLoopBlocked, ToolRefused
from rlm_dspy.events import ToolEvent, unit
from rlm_dspy.json_values import MAX_DEPTH
from rlm_dspy.redaction import HIDDEN, safe_error, safe_message
from rlm_dspy.repl.coercion import read_value
from rlm_dspy.repl.type_names import bare, shown_default, shown_signature
from rlm_dspy.repl.value_codec import short, without_media_marks
from rlm_dspy.text import clip
from rlm_dspy.trajectory import ToolCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pydantic import JsonValue


SUB_CALLS = frozenset({"llm_query", "llm_query_batched", "query_passages", "rlm_query", "rlm_query_batched"})
"""The functions of the REPL that call models, beside `dspy` and the user's subs."""
RESERVED = SUB_CALLS | {
    *("SUBMIT", "SHOW_VARS", "find_passages", "find_records"),
    *("SubCallError", "FailedCall", "print", "dspy", "INPUTS"),
}
"""Reserved names in the REPL, for inputs and tools."""


SETTINGS = frozenset(
    {
        *("signature", "new_signature", "demos", "config", "lm", "prediction"),
        *("max_iters", "interpreter_factory", "self", "instance"),
    }
)
"""Keyword settings of modules besides inputs. No input may have such a name, as code gives only inputs."""

T = TypeVar("T")
_MOST_CALLS = 100
"""The maximum number of calls recorded in a turn; further ones are only counted."""
_ARGUMENT_CHARS = 300
_RESULT_CHARS = 600
_JSON_SCALARS = (str, int, float, bool, type(None))
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


_GENERIC = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


_UNNAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)


def normalize_tools(tools: Sequence[Callable[..., Any]] | Mapping[str, dspy.Tool] | None) -> dict[str, dspy.Tool]:
    """Validate the tools and return them by name.

    Args:
        tools: A list, or a result of this function.

    Raises:
        TypeError: If it is another dict, or contains something that is not callable.
        ValueError: If a name is duplicate, not an identifier, or reserved.
    """
    if isinstance(tools, dict):
        if all(isinstance(tool, dspy.Tool) and tool.name == name for name, tool in tools.items()):
            return normalize_tools(list(tools.values()))
        raise TypeError(
            "tools must be a list, not a dict: tools=[function], or [dspy.Tool(function, name='other_name')]."
        )
    if tools is not None and not isinstance(tools, list | tuple):
        raise TypeError(f"tools must be a list of functions, tools=[function], not {type(tools).__name__}.")
    named: dict[str, dspy.Tool] = {}
    for given in tools or []:
        if not callable(given):
            raise TypeError(f"Tool {given!r} must be callable, not {type(given).__name__}.")
        tool = _tool(given)
        if not is_usable(tool.name):
            raise ValueError(
                f"Invalid tool name {tool.name!r}: it must be a Python identifier that is not reserved. "
                "Rename it: dspy.Tool(function, name='other_name')."
            )
        if tool.name in named:
            raise ValueError(f"Duplicate tool name {tool.name!r}; pass dspy.Tool(function, name='other_name').")
        named[tool.name] = tool
    return named


def _tool(given: Callable[..., Any]) -> dspy.Tool:
    """Return a tool.

    Raises:
        ValueError: If its signature cannot be inspected, as of some built-in functions.
    """
    try:
        tool = given if isinstance(given, dspy.Tool) else dspy.Tool(given)
        return _with_named_arguments(tool)
    except ValueError as error:
        raise ValueError(
            f"Invalid tool {given!r}: its signature cannot be inspected. Wrap it in a function with named "
            "parameters, e.g. def longest(words: list[str]) -> str: ..."
        ) from error


def _with_named_arguments(tool: dspy.Tool) -> dspy.Tool:
    """Return the tool; a function without named parameters (as of MCP tools) gets those of `tool.args`."""
    own = inspect.signature(tool.func)
    names_some = {parameter.kind for parameter in own.parameters.values()} - _GENERIC
    described = tool.has_kwargs and not own.parameters.keys() & tool.args.keys()
    if names_some or not described or not all(map(_is_name, tool.args)):
        return tool

    async def call_async(**kwargs: Any) -> Any:
        return await tool.func(**kwargs)

    def call(**kwargs: Any) -> Any:
        return tool.func(**kwargs)

    function: Callable[..., Any] = call_async if is_async(tool.func) else call
    functools.update_wrapper(function, tool.func)
    function.__signature__ = inspect.Signature(_parameters(tool))  # type: ignore[attr-defined]  # inspect reads it
    return tool.model_copy(update={"func": function})


def _parameters(tool: dspy.Tool) -> list[inspect.Parameter]:
    """Return the parameters in `tool.args`; after an optional one, all are keyword-only."""
    optional, parameters = False, []
    for name, schema in tool.args.items():
        kind = inspect.Parameter.KEYWORD_ONLY if optional else inspect.Parameter.POSITIONAL_OR_KEYWORD
        default = schema.get("default", inspect.Parameter.empty)
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=tool.arg_types.get(name, Any)))
        optional = optional or "default" in schema
    return parameters


@dataclass
class AsyncTools:
    """Lets code call the async tools of a tree of runs like sync ones.

    Attributes:
        error: Set if a tool waited for an event loop that the run blocks. Code may have caught this error, but
            only the caller can fix it.
    """

    error: EventLoopBlocked | None = None

    def blocking(self, tool: dspy.Tool) -> dspy.Tool:
        """Return a tool that blocks until its awaitable result is available."""

        def call(*args: Any, **kwargs: Any) -> Any:
            returned = tool.func(*args, **kwargs)
            try:
                return LoopCall(returned, tool.name).result() if inspect.isawaitable(returned) else returned
            except EventLoopBlocked as error:
                self.error = error
                raise

        functools.update_wrapper(call, tool.func)
        return tool.model_copy(update={"func": call})


@dataclass
class ToolCalls:
    """The tool calls of a run's turns.

    Attributes:
        began: The start of the root run, as `time.monotonic` gives it.
        calls: The calls of the turn so far.
        left_out: The number of further tool calls.
        recorded: Given the name and arguments of a call, returns its recorded replacement in a resumed run, or
            None to make the call.
    """

    began: float
    calls: list[ToolCall] = field(default_factory=list)
    left_out: int = 0
    recorded: Callable[[str, Mapping[str, Any]], Callable[[], Any] | None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self) -> None:
        """Begin a turn with empty `calls`."""
        with self._lock:
            self.calls, self.left_out = [], 0

    def record(
        self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], function: Callable[[], T]
    ) -> T | None:
        """Make a call and record its arguments and its result or error.

        Args:
            name: The tool.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            function: Makes the call.
        """
        result, started, error_type, refused = None, time.monotonic(), "", ""
        given = {**({"args": list(args)} if args else {}), **kwargs}
        with unit(ToolEvent(name=name, arguments=given)) as running:
            try:
                result = ((self.recorded and self.recorded(name, given)) or function)()
            except BaseException as error:
                error_type = type(error).__name__
                refused = str(error) if isinstance(error, ToolRefused) else ""
                raise
            finally:
                call = ToolCall(
                    name=name,
                    arguments=_written(args, kwargs),
                    result="" if error_type else short(result, _RESULT_CHARS),
                    error_type=error_type,
                    refused=refused,
                    started=started - self.began,
                    seconds=time.monotonic() - started,
                )
                self._add(call)
                running.end(result=result, call=call)
        return result

    def _add(self, call: ToolCall) -> None:
        with self._lock:
            if len(self.calls) < _MOST_CALLS:
                self.calls.append(call)
            else:
                self.left_out += 1


def _written(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Format arguments as in code, truncated."""
    parts = [*map(_argument, args), *(f"{name}={_argument(value)}" for name, value in kwargs.items())]
    return clip(", ".join(parts), 2 * _ARGUMENT_CHARS)


def _argument(value: Any) -> str:
    text = short(value, _ARGUMENT_CHARS)
    return repr(text) if isinstance(value, str) else text


def host_function(
    tool: dspy.Tool, callable_form: Callable[[dspy.Tool], dspy.Tool], calls: ToolCalls
) -> Callable[..., Any]:
    """Return a function that code calls with the tool's parameters, and that calls `dspy.Tool`.

    Args:
        tool: The tool.
        callable_form: Returns the tool in the form in which code may call it.
        calls: Records its calls.
    """
    own = inspect.signature(tool.func)
    names = [parameter.name for parameter in own.parameters.values() if parameter.kind in _POSITIONAL]
    by_position = any(parameter.kind in _UNNAMED for parameter in own.parameters.values())
    blocking = callable_form(tool)

    def by_name(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) > len(names):
            usage = f"{tool.name}{shown_signature(own)}"
            raise TypeError(f"{usage} takes {len(names)} positional arguments, not {len(args)}.")
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def invoke(*args: Any, **kwargs: Any) -> Any:
        def call() -> Any:
            with _errors_redacted(tool.name):
                if by_position:  # dspy.Tool passes arguments by name only
                    return blocking.func(*args, **kwargs)
                fitting, given = _fitted(blocking, by_name(args, kwargs))
                return fitting(**given)

        return calls.record(tool.name, args, kwargs, call)

    functools.update_wrapper(invoke, tool.func)
    invoke.__signature__ = own  # type: ignore[attr-defined]  # inspect.signature reads it
    invoke.stands_for_async = is_async(tool.func)  # type: ignore[attr-defined]  # code may await it
    return invoke


def _fitted(tool: dspy.Tool, given: Mapping[str, Any]) -> tuple[dspy.Tool, dict[str, Any]]:
    """Return a tool and its arguments, so that DSPy takes each argument that fits the type of its parameter.

    DSPy ignores the constraints of an `Annotated[int, Field(ge=1)]`, so they are applied here. It checks arguments
    against a JSON schema before it converts them. That schema refuses a date, a tuple or a member of an enum, so
    they are checked here, and the returned tool has no schema for them.

    Raises:
        ValueError: If one does not fit; the message names it and the constraint.
    """
    kinds, fitted = _constrained_kinds(tool), dict(given)
    python: dict[str, Any] = {}
    for name, value in given.items():
        kind = kinds.get(name, tool.arg_types.get(name, Any))
        if kind is Any or (name not in kinds and _is_json(value)):
            continue
        try:
            fitted[name] = read_value(value, kind)
        except ValueError as error:
            raise ValueError(f"{tool.name}: {name}: {error}") from None
        python.update({} if _is_json(fitted[name]) else {name: {}})
    return tool.model_copy(update={"args": {**tool.args, **python}}) if python else tool, fitted


def _constrained_kinds(tool: dspy.Tool) -> dict[str, Any]:
    """Return the types of the parameters that are `Annotated`."""
    try:
        parameters = inspect.signature(tool.func, eval_str=True).parameters
    except Exception:  # noqa: BLE001 (an annotation in quotes may name, or do, anything)
        return {}
    kinds = {name: part.annotation for name, part in parameters.items()}
    return {name: kind for name, kind in kinds.items() if bare(kind) != kind}


def _is_json(value: Any) -> bool:
    """Return whether a value is what JSON can express, and of no other class; True if it is nested too deeply."""
    level = [value]
    for _ in range(MAX_DEPTH):
        containers = {id(part): part for part in level if type(part) not in _JSON_SCALARS}.values()
        if any(type(part) not in (dict, list) for part in containers):
            return False
        level = [
            inner for part in containers for inner in ([*part, *part.values()] if type(part) is dict else part)
        ]
        if not level:
            break
    return True


@contextlib.contextmanager
def _errors_redacted(name: str) -> Iterator[None]:
    """Redact the host's secrets in an exception that a tool raises."""
    try:
        yield
    except SystemExit as error:  # a command-line tool raises it; it must not end the caller's program
        raise RuntimeError(f"{name} exited with {error.code!r}") from error
    except Exception as error:
        if (safe := safe_error(error, dspy.settings.lm)) is error:
            raise
        raise safe from None


class GuardedTool(dspy.Tool):
    """A tool for ReAct: it returns an error as type and message, without traceback and secrets."""

    @classmethod
    def of(cls, tool: dspy.Tool) -> GuardedTool:
        """Return the guarded tool; its defaults are shown without secrets."""
        args = {name: _shown_schema(schema) for name, schema in (tool.args or {}).items()}
        return cls(tool.func, tool.name, tool.desc, args, tool.arg_types, tool.arg_desc)

    def __call__(self, **kwargs: Any) -> Any:
        """Call it."""
        try:
            fitting, given = _fitted(self, kwargs)
            return without_media_marks(dspy.Tool.__call__(fitting, **given))
        except (Exception, SystemExit) as error:  # noqa: BLE001 (ReAct would show the traceback)
            return self._error_text(error)

    async def acall(self, **kwargs: Any) -> Any:
        """Await it."""
        try:
            fitting, given = _fitted(self, kwargs)
            return without_media_marks(await dspy.Tool.acall(fitting, **given))
        except (Exception, SystemExit) as error:  # noqa: BLE001 (as above)
            return self._error_text(error)

    def _error_text(self, error: BaseException) -> str:
        return f"Execution error in {self.name}: {type(error).__name__}: {safe_message(error, dspy.settings.lm)}"


def _shown_schema(schema: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the JSON schema of an argument without a secret default."""
    shown = shown_default(schema.get("default"))
    return {**schema, "default": "..."} if shown == "..." or HIDDEN in shown else dict(schema)


def is_usable(name: str) -> bool:
    """Return whether a tool may have this name."""
    return _is_name(name) and not _is_reserved(name)


def _is_name(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


def _is_reserved(name: str) -> bool:
    return name in RESERVED or name.startswith(("_rlm", "_dspy", "__"))
