"""Defines the base class of the interpreters, which extends DSPy's `CodeInterpreter` protocol."""

from __future__ import annotations

import contextvars
import functools
import inspect
import keyword
import threading
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar, cast

import dspy
from dspy.utils.callback import with_callbacks

from rlm_dspy.concurrency.async_forms import is_async
from rlm_dspy.concurrency.event_loops import LoopCall
from rlm_dspy.concurrency.thread_pool import run_in_pool
from rlm_dspy.concurrency.turn import Turn
from rlm_dspy.concurrency.wait_scope import Cancellation, blocking, cancelled_by, running_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Self, SupportsIndex

    from rlm_dspy.interpreters.worker.cell import Outcome

T = TypeVar("T")
Method = TypeVar("Method", bound="Callable[..., Any]")

_LOOK_SECONDS, _STOP_AGAIN_SECONDS = 0.5, 0.1
_RESERVED = {"SUBMIT", "__builtins__"}


class CellError(dspy.CodeExecutionError):
    """The model's code raised an error; the session continues.

    `str(error)` is the text for the model: the output before the error, then a traceback of the model's own
    lines. Modules that know only DSPy's protocol show just that.

    Attributes:
        output: The output of the cell before the error; may be empty.
        traceback: The traceback, the model's own lines only, ending in `Type: message`.
    """

    def __init__(self, traceback: str, output: str = "") -> None:
        self.output = output
        self.traceback = traceback
        super().__init__(f"{output.rstrip()}\n{traceback}" if output.strip() else traceback)


class CellUndone(CellError):  # noqa: N818 (it says what became of the cell)
    """A checkpoint replaced the cell's process; `str(error)` says what was undone."""


class Submission(dspy.FinalOutput):
    """The values of a `SUBMIT(...)`, with what the cell printed before it.

    Attributes:
        output: The submitted values by field name.
        printed: The output of the cell before `SUBMIT`; may be empty.
    """

    def __init__(self, output: dict[str, Any], printed: str = "") -> None:
        super().__init__(output)
        self.printed = printed


class TakesObjects:
    """Mix-in of an interpreter that binds Python objects as variables, not only JSON-like data.

    Attributes:
        takes_text: Whether it accepts an `rlm_dspy.Text` unchanged (and binds a `str`), so that the host need not
            read a file.
        in_host: Whether code and host share their objects.
        calls_hook: Whether it calls the function that a cell bound as `worker.cell.HOOK` after each further cell.
    """

    takes_text = False
    calls_hook = False
    in_host = False


def shown(result: Any) -> str:
    """Return the result of `execute` as text for the model."""
    if isinstance(result, dspy.FinalOutput):
        return result.printed if isinstance(result, Submission) else ""
    return "\n".join(map(str, result)) if isinstance(result, list) else "" if result is None else str(result)


def observed(method: Method) -> Method:
    """Report a call of `start`, `execute`, `invoke_tool` or `shutdown` to DSPy's callbacks."""
    return cast("Method", with_callbacks(method))


def outside_loop(function: Callable[[], T], stop: Callable[[], object] = lambda: None) -> T:
    """Call `function` in a copy of the context without a running event loop: here, else in another thread.

    Ctrl-C ends it by `stop`.
    """
    context = contextvars.copy_context()
    if running_loop() is None:
        return context.run(function)
    done = Future[T]()
    try:
        run_in_pool(lambda: context.run(function), done)
        while not done.done():
            wait([done], _LOOK_SECONDS)  # Ctrl-C just before a wait without an end would not end it
    except KeyboardInterrupt:
        while not (done.cancel() or done.done()):  # a second Ctrl-C abandons code that waits in a system call
            stop()
            wait([done], _STOP_AGAIN_SECONDS)
        raise
    return done.result()


class Interpreter:
    """Base class for DSPy's `CodeInterpreter` protocol; a subclass implements `_execute`.

    Args:
        tools: Host functions, sync or async, by their name in code.
        output_fields: The fields of `SUBMIT`, each with a `name`.
        callbacks: Callbacks of this instance, in addition to those of `dspy.settings`.

    Attributes:
        tools: May be changed between cells.
        output_fields: Likewise.
        callbacks: Likewise.
        shown: The output of the last cell, then the `repr` of its last expression; empty if its code raised, and
            what it had printed if an exception of the host ended it.

    Raises:
        ValueError: If a name is not an identifier or is reserved.
    """

    execution_instructions: str = ""
    """The description of this interpreter for the model."""
    supports_await: ClassVar[bool] = False
    """Whether code may use `await` at the top level; if so, the prompt says that functions are awaitable."""
    _stop_signal: ClassVar[type[BaseException] | tuple[()]] = ()
    """The exceptions that end a running cell from outside; the caller does not see them."""

    def __init__(
        self,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        output_fields: Sequence[Mapping[str, Any]] | None = None,
        *,
        callbacks: Sequence[Any] | None = None,
    ) -> None:
        self.tools: dict[str, Callable[..., Any]] = dict(tools or {})
        self.output_fields = None if output_fields is None else [dict(item) for item in output_fields]
        self.callbacks = list(callbacks or [])
        self.shown = ""
        self._running = Turn()
        self._starting = threading.Lock()
        self._started = False
        self._ended = False
        self._interrupt: BaseException | None = None
        self._cell = Cancellation[Exception]()
        """Ends the async calls of the running cell."""
        self._check_names()

    @observed
    def start(self) -> None:
        """Start the session, unless it is running.

        Raises:
            dspy.CodeInterpreterError: If it was shut down.
        """
        with self._starting:
            self._check_open()
            if not self._started:
                self._start()
                self._started = True

    @observed
    def execute(self, code: str, variables: dict[str, Any] | None = None) -> Any:
        """Run one cell.

        Args:
            code: Python source.
            variables: Bound before the cell. An object passed last time is not bound again, so changes by the code
                persist.

        Returns:
            A `Submission` if the code called SUBMIT; the value of a last expression, if JSON can carry it, as
            DSPy's interpreters do; else what the cell printed and the `repr` of that value, as a `str`; None if
            there is neither. What a model should read, printed output and value, is in `shown`.

        Raises:
            SyntaxError: If the code does not parse.
            CellError: If it raised; the session continues.
            dspy.CodeInterpreterError: If the session was shut down, another cell runs, or a name is invalid.
        """
        with self._alone():
            try:
                self.shown = ""
                self._check_cell(code, variables or {})
                if not self._started:
                    self.start()
                self._cell = Cancellation[Exception]()
                with blocking(), cancelled_by(self._cell):
                    result = self._execute(code, dict(variables or {}))
            except BaseException as error:
                if isinstance(error, CellError):  # which holds what was printed, if it gets out
                    self.shown = "" if self._interrupt is None else error.output.rstrip("\n")
                self._cancel_tools()
                raise
            else:
                self.shown = self.shown or shown(result)
                return result
            finally:
                interrupt, self._interrupt = self._interrupt, None
                if interrupt is not None:
                    raise interrupt

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Take the turn of a running cell; raise instead of waiting."""
        with self._running.tried() as is_free:
            if not is_free:
                raise dspy.CodeInterpreterError(
                    f"This {type(self).__name__} is running a cell; wait until it ends, or interrupt it."
                )
            yield

    @observed
    def invoke_tool(self, tool_name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call a tool, and wait if it is async; it runs on the event loop that waits for this call, if any.

        Raises:
            dspy.CodeInterpreterError: If the tool is unknown, or the session was shut down.
        """
        self._check_open()
        if tool_name not in self.tools:
            raise dspy.CodeInterpreterError(f"Unknown tool: {tool_name}")
        tool = self.tools[tool_name]
        function = tool.acall if isinstance(tool, dspy.Tool) and is_async(tool) else tool
        if args and _takes_names_only(tool):
            args, kwargs = [], _by_name(tool_name, tool, args, kwargs)
        result = function(*args, **kwargs)
        return LoopCall(result, tool_name).result() if inspect.isawaitable(result) else result

    def _cancel_tools(self) -> None:
        """Cancel the awaited calls of the cell."""
        self._cell.cancel(CancelledError("The cell has ended."))

    @observed
    def shutdown(self) -> None:
        """End the session; further calls do nothing."""
        with self._starting:
            if not self._ended:
                self._ended = True
                self._shutdown()

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds a session, so it cannot be copied or pickled; pass its class, or a "
            "function that makes one, as interpreter_factory"
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def __call__(self, code: str, variables: dict[str, Any] | None = None) -> Any:
        """Execute `code`."""
        return self.execute(code, variables)

    def _start(self) -> None:
        """Acquire the resources of the session."""

    def _execute(self, code: str, variables: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def _shutdown(self) -> None:
        """Release them."""

    def _given(self, outcome: Outcome, printed: str) -> Any:
        """Return the result of `execute` for the outcome of a cell.

        Raises:
            SyntaxError: If the source was invalid.
            CellError: If the code raised.
        """
        if outcome.kind == "invalid":
            raise SyntaxError(outcome.error) from outcome.exception
        if outcome.kind == "raised":
            hint = f"\n{self._import_hint(outcome.missing)}" if outcome.missing else ""
            raise CellError(outcome.error + hint, printed) from outcome.exception
        self.shown = printed.rstrip("\n")
        if outcome.kind == "submitted":
            return Submission(outcome.values, printed)
        return (self.shown or None) if outcome.value is None else outcome.value

    def _import_hint(self, module: str) -> str:
        """Return a hint for the model about a module that its code could not import."""
        del module
        return "It is not installed here. Use the standard library."

    def _functions(self) -> dict[str, Callable[..., Any]]:
        """Wrap the tools for code: they run on the host, each call in its own copy of the current context."""
        context = contextvars.copy_context()
        return {name: self._function(name, tool, context) for name, tool in self.tools.items()}

    def _function(self, name: str, tool: Callable[..., Any], context: contextvars.Context) -> Callable[..., Any]:
        source = tool.func if isinstance(tool, dspy.Tool) else tool

        invoke, awaitable = functools.partial(self._invoke, context, name), is_async(tool)

        def call(*args: Any, **kwargs: Any) -> Any:
            if awaitable and (loop := running_loop()) is not None:
                return loop.run_in_executor(None, lambda: invoke(*args, **kwargs))
            return invoke(*args, **kwargs)

        functools.update_wrapper(call, source, updated=())
        call.__name__ = call.__qualname__ = name
        return call

    def _invoke(self, context: contextvars.Context, name: str, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return context.copy().run(self.invoke_tool, name, list(args), kwargs)
        except Exception:
            raise
        except self._stop_signal:
            raise
        except BaseException as interrupt:
            self._interrupt = interrupt  # for the caller of `execute`, even if the code catches it
            raise

    def _check_open(self) -> None:
        if self._ended:
            raise dspy.CodeInterpreterError(f"This {type(self).__name__} was shut down; make a new one.")

    def _check_cell(self, code: str, variables: Mapping[str, Any]) -> None:
        self._check_open()
        if not isinstance(code, str):
            raise dspy.CodeInterpreterError(f"code must be a str, not {type(code).__name__}")
        try:
            self._check_names()
            _check("variable", variables, _RESERVED | self.tools.keys())
        except ValueError as error:
            raise dspy.CodeInterpreterError(str(error)) from error

    def _check_names(self) -> None:
        _check("tool", self.tools, _RESERVED)
        names = [item.get("name") for item in self.output_fields or []]
        _check("output field", names, set())
        if len(names) != len(set(names)):
            raise ValueError(f"Invalid output fields {names}: two have the same name.")


def _takes_names_only(tool: Callable[..., Any]) -> bool:
    """Return whether a tool takes arguments by name alone, whatever signature it shows.

    A `dspy.Tool` does, and the function that `dspy.RLM` makes of one.
    """
    if isinstance(tool, dspy.Tool):
        return True
    code = getattr(tool, "__code__", None)
    if code is None or not hasattr(tool, "__signature__"):
        return False
    return not (code.co_argcount or code.co_flags & inspect.CO_VARARGS)


def _by_name(
    name: str, tool: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call by the names of the tool's parameters.

    Raises:
        TypeError: If there are too many, or one is given twice.
    """
    parameters = inspect.signature(tool.func if isinstance(tool, dspy.Tool) else tool).parameters.values()
    names = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    if len(args) > len(names):
        raise TypeError(f"{name}() takes at most {len(names)} arguments by position, and {len(args)} were given")
    positional = dict(zip(names, args, strict=False))
    if twice := sorted(positional.keys() & kwargs.keys()):
        raise TypeError(f"{name}() got multiple values for argument {twice[0]!r}")
    return positional | dict(kwargs)


def _check(what: str, names: Iterable[Any], taken: set[str]) -> None:
    bad = [
        name
        for name in names
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name in taken
    ]
    if bad:
        raise ValueError(f"Invalid {what} names {bad}: names must be Python identifiers that are not reserved.")
