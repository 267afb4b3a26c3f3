"""Parses and runs one cell, and formats its errors for the model.

The standard library only: the host uses this module in its own process, and a confined worker uses it where
nothing else of this package can be imported.
"""

from __future__ import annotations
import __future__

import ast
import asyncio
import builtins
import contextlib
import inspect
import io
import json
import linecache
import sys
import traceback
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from .streams import Capped

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

    from .wire import JSON

_MAX_TRACEBACK_CHARS = 10_000
SETUP = "# Set-up of the REPL, no step of the run.\n"
"""The first line of a module's set-up code, which is not counted as a cell of the model."""
HOOK = "__after_cell__"
"""A function that a cell leaves under this name is removed from the names, and called after each further cell with
the functions that were bound for that cell, by name. Its result is appended to the cell's output. If it has a
method
`packed`, submitted values and the arguments of tools pass through that method when they leave the session."""
_MAX_VALUE_CHARS, _MAX_VALUE_DEPTH = 1_000_000, 50
_ERRORS_OF_THE_SOURCE = (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError)


class Submit(BaseException):
    """Ends the cell that called `SUBMIT`, with the values by output field; no `except Exception` stops it."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values


def submitted(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a `SUBMIT(*args, **kwargs)` by output field.

    Positional values are taken in the order of `names`; a single dict with exactly these keys is unpacked.

    Raises:
        TypeError: If a field is missing, unknown or given twice; the message says how to call SUBMIT.
    """
    if len(args) == 1 and not kwargs and isinstance(args[0], dict) and args[0].keys() == set(names):
        return {name: args[0][name] for name in names}
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    try:
        return dict(inspect.Signature(parameters).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise TypeError(f"SUBMIT: {error}. Call it as {_usage(names)}") from None


def _usage(names: Sequence[str]) -> str:
    return f"SUBMIT({', '.join(f'{name}=...' for name in names)})"


Kind = Literal["done", "submitted", "raised", "invalid"]


@dataclass(frozen=True)
class Outcome:
    """How a cell ended. Its output is in the `Capped` that it was given."""

    kind: Kind
    """`invalid` means that the source does not compile, and did not run."""
    values: dict[str, Any] = field(default_factory=dict)
    """The submitted values by output field."""
    value: JSON = None
    """The value of the last expression, from `carried`."""
    error: str = ""
    """The error as text for the model: its own lines, then `Type: message`."""
    missing: str = ""
    """The module that could not be imported, if that was the error."""
    exception: BaseException | None = None
    """The exception. It holds the frames of the cell: release it soon."""


_PARSES = 10


def _as_it_is(value: Any) -> Any:
    return value


def _nobody(*_: object, **__: object) -> NoReturn:
    raise EOFError("There is no user to answer input() here. Use the variables and functions of this REPL.")


def _help(*names: object) -> None:
    """Print the documentation of an object or of a topic."""
    import pydoc  # noqa: PLC0415 (few cells need it)

    pydoc.Helper(io.StringIO(), sys.stdout)(*names)


def _cell_builtins() -> dict[str, Any]:
    """Return Python's builtins and JSON's constants, with replacements for those that wait for a user."""
    ours = {"input": _nobody, "breakpoint": _nobody, "exit": sys.exit, "quit": sys.exit, "help": _help}
    return vars(builtins) | {"true": True, "false": False, "null": None} | ours


class Cells:
    """The cells of one session: one namespace, and the sources that tracebacks quote.

    It captures no stream: the caller redirects `sys.stdout` to the `Capped` that it passes to `run`. `module` is
    a fresh `__main__`, which pickle and type hints look for in `sys.modules`; `namespace` are its globals.
    """

    def __init__(self) -> None:
        self.module = types.ModuleType("__main__")
        self.namespace: dict[str, Any] = vars(self.module)
        self.builtins = types.ModuleType("builtins")
        """The builtins of the cells alone: what a cell changes there leaves other modules as they are."""
        vars(self.builtins).update(_cell_builtins())
        self.namespace["__builtins__"] = vars(self.builtins)
        self._functions: dict[str, Callable[..., Any]] = {}
        self._hook: Callable[[Mapping[str, Any]], str] | None = None
        self.packed: Callable[[Any], Any] = _as_it_is
        """Returns the form in which a value leaves the session."""
        self._sources: dict[str, tuple[int, None, list[str], str]] = {}
        self._submissions: list[Submit] = []
        """The submissions in the running cell, also by the `SUBMIT` of an earlier cell that code kept."""

    def run(
        self,
        code: str,
        output: Capped,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        output_fields: Sequence[Mapping[str, Any]] | None = None,
    ) -> Outcome:
        """Run one cell and return its outcome, even if it raises.

        Args:
            code: Its source. `await` is allowed at the top level; tasks left over end with the cell.
            output: Receives the value of a last expression, on a line of its own.
            functions: Bound by name before the cell. Functions that only the last cell was given are unbound.
            output_fields: The `name`s that `SUBMIT` takes; if there are none, one called `output`.

        Returns:
            The outcome. The first `SUBMIT` counts, also if the code catches its signal or a thread calls it.
        """
        submissions = self._submissions
        submissions.clear()
        names = [str(item["name"]) for item in output_fields] if output_fields else ["output"]
        self._bind({**(functions or {}), "SUBMIT": _submit(names, submissions, self.packed)})
        filename = self._register(code)
        try:
            parts = self._compile(code, filename)
        except _ERRORS_OF_THE_SOURCE as error:
            return Outcome("invalid", error=self.in_words(error), exception=error)
        try:
            value = self._evaluate(parts)
            _show(value, output)
            outcome = Outcome("done", value=carried(value))
        except BaseException as error:  # noqa: BLE001 (the model, or the caller, answers whatever code raises)
            missing = str(error.name or "") if isinstance(error, ModuleNotFoundError) else ""
            outcome = Outcome("raised", error=self.in_words(error), missing=missing, exception=error)
        self._call_hook(output)
        return Outcome("submitted", submissions[0].values) if submissions else outcome

    def close(self) -> None:
        """Remove this session's sources from `linecache`."""
        for filename, entry in self._sources.items():
            if linecache.cache.get(filename) is entry:  # not the source of another session under the same name
                linecache.cache.pop(filename, None)  # a thread that ends another session may have removed it

    def _call_hook(self, output: Capped) -> None:
        """Call the hook that an earlier cell left, or take the one that this cell left."""
        if HOOK in self.namespace:
            self._hook = self.namespace.pop(HOOK)
            self.packed = getattr(self._hook, "packed", _as_it_is)
            return
        with contextlib.suppress(BaseException):  # an interrupt of the cell may arrive late
            if self._hook is not None and (note := self._hook(self._functions)):
                output.end_line()
                output.write(note + "\n")

    def _bind(self, functions: dict[str, Callable[..., Any]]) -> None:
        for name, function in self._functions.items():
            if self.namespace.get(name) is function:
                del self.namespace[name]
        self.namespace.update(functions)
        self._functions = functions

    def _register(self, code: str) -> str:
        kind = "set-up" if code.startswith(SETUP) else "cell"
        filename = f"<{kind} {sum(name.startswith(f'<{kind} ') for name in self._sources) + 1}>"
        lines = io.StringIO(code + "\n", newline=None).readlines()
        self._sources[filename] = (len(code), None, lines, filename)
        linecache.cache.update(self._sources)  # all of them: sessions in one process share names
        return filename

    def _compile(self, code: str, filename: str) -> list[types.CodeType]:
        """Compile the statements, and the last expression separately."""
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        for name in __future__.all_feature_names:
            feature = getattr(__future__, name)
            if name in self.namespace and self.namespace[name] is feature:  # an earlier cell imported it
                flags |= feature.compiler_flag
        tree = _parsed(code, filename, flags)
        last = tree.body[-1] if tree.body else None
        if not isinstance(last, ast.Expr):
            return [compile(tree, filename, "exec", flags, dont_inherit=True)]
        del tree.body[-1]
        value = ast.Expression(last.value)
        return [
            compile(part, filename, mode, flags, dont_inherit=True)
            for part, mode in ((tree, "exec"), (value, "eval"))
        ]

    def _evaluate(self, parts: list[types.CodeType]) -> Any:
        """Run the parts in order, in one event loop if any of them awaits; return the value of the last."""
        if any(part.co_flags & inspect.CO_COROUTINE for part in parts):
            return self._run_async(self._evaluate_async(parts))
        value = None
        for part in parts:
            value = eval(part, self.namespace)  # noqa: S307 (running the model's code is what this module is for)
        return value

    def _run_async(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run to the end; an error from outside, such as an interrupt, gets the place where the code waited."""
        with asyncio.Runner() as runner:
            try:
                return runner.run(coroutine)
            except BaseException as error:
                if waiting := [
                    self._quoted(each) for each in _suspended(coroutine) if each.filename in self._sources
                ]:
                    places = traceback.StackSummary.from_list(waiting).format()
                    error.add_note("The code waited here:\n" + "".join(places).rstrip("\n"))
                raise

    async def _evaluate_async(self, parts: list[types.CodeType]) -> Any:
        value = None
        for part in parts:
            value = eval(part, self.namespace)  # noqa: S307 (as above)
            if part.co_flags & inspect.CO_COROUTINE:
                value = await value
        return value

    def in_words(self, error: BaseException) -> str:
        """Return the traceback of `error` with the lines of cells only."""
        try:
            if isinstance(error, SyntaxError) and error.text is None:
                error.text = self._line(error.filename or "", error.lineno or 0) or None
            if isinstance(error, (SystemExit, KeyboardInterrupt)):
                error.add_note("The session and its variables are kept. SUBMIT(...) ends the run.")
            formatted = traceback.TracebackException.from_exception(error, lookup_lines=False, compact=True)
            self._keep_cells(formatted)
            capped = Capped(_MAX_TRACEBACK_CHARS)
            capped.write("".join(formatted.format() if formatted.stack else formatted.format_exception_only()))
            return capped.text().rstrip("\n")
        except BaseException:  # noqa: BLE001 (the error's own methods are model code; memory may be short)
            return f"{type(error).__name__}: (no traceback available)"

    def _keep_cells(self, formatted: traceback.TracebackException) -> None:
        frames = [self._quoted(frame) for frame in formatted.stack if frame.filename in self._sources]
        formatted.stack = traceback.StackSummary.from_list(frames)
        for linked in (formatted.__cause__, formatted.__context__, *(formatted.exceptions or ())):
            if linked is not None:
                self._keep_cells(linked)

    def _quoted(self, frame: traceback.FrameSummary) -> traceback.FrameSummary:
        line = self._line(frame.filename, frame.lineno or 0)
        ends = {name: getattr(frame, name) for name in ("end_lineno", "colno", "end_colno")}
        return traceback.FrameSummary(frame.filename, frame.lineno, frame.name, line=line, **ends)

    def _line(self, filename: str, number: int) -> str:
        lines = self._sources[filename][2] if filename in self._sources else []
        return lines[number - 1] if 0 < number <= len(lines) else ""


def _suspended(awaited: Any) -> Iterator[traceback.FrameSummary]:
    """Yield where a coroutine waits, and the coroutines that it waits for; nothing if it has ended."""
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        yield traceback.FrameSummary(
            frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name, lookup_line=False
        )
        awaited = awaited.cr_await


def _parsed(code: str, filename: str, flags: int) -> ast.Module:
    flags |= ast.PyCF_ONLY_AST
    for _ in range(_PARSES):
        with contextlib.suppress(SystemError):
            tree: ast.Module = compile(code, filename, "exec", flags, dont_inherit=True)
            return tree
    raise SystemError("Python could not parse this code.")


def _submit(names: list[str], submissions: list[Submit], packed: Callable[[Any], Any]) -> Callable[..., NoReturn]:
    def SUBMIT(*args: Any, **kwargs: Any) -> NoReturn:  # noqa: N802 (the name that models know)
        values = submitted(names, args, kwargs)
        submissions.append(Submit({name: packed(value) for name, value in values.items()}))
        raise submissions[-1]

    SUBMIT.__doc__ = f"Submit the answer and end the run: {_usage(names)}."
    return SUBMIT


def cannot_leave(error: Exception) -> str:
    """Return an error for the model: what it submitted has no form in which it can leave the session."""
    return f"{type(error).__name__}: SUBMIT got a value that cannot leave the REPL: {error}"


def carried(value: Any) -> JSON:
    """Return `value` in JSON form: lists for tuples, keys as text.

    None if impossible, or above 1,000,000 characters of JSON or 50 levels.
    """
    if value is None or type(value) is bool:
        return value
    if type(value) in (str, bytes) and len(value) > _MAX_VALUE_CHARS:
        return None
    try:
        text = json.dumps(value, allow_nan=False)
        data: JSON = json.loads(text) if len(text) <= _MAX_VALUE_CHARS else None
    except (TypeError, ValueError, RecursionError, MemoryError):
        return None
    deep = text.count("[") + text.count("{") > _MAX_VALUE_DEPTH
    return None if deep and _deeper(data, _MAX_VALUE_DEPTH) else data


def _deeper(data: JSON, levels: int) -> bool:
    if not isinstance(data, list | dict):
        return False
    inner = data.values() if isinstance(data, dict) else data
    return levels == 0 or any(_deeper(item, levels - 1) for item in inner)


def _show(value: Any, output: Capped, max_chars: int = 100_000) -> None:
    """Write the repr of `value` unless it is None; of a long text, which may be 1 GB, only its two ends."""
    if value is None:
        return
    if type(value) in (str, bytes) and len(value) > max_chars:
        ends = value[: max_chars // 2], value[-max_chars // 2 :]
        shown = f"{ends[0]!r}\n... [{len(value) - max_chars} left out] ...\n{ends[1]!r}"
    else:
        shown = repr(value)
    output.end_line()
    output.write(shown + "\n")
