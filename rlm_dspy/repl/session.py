"""Manages the interpreter of a run: starts it, binds inputs and functions, replaces it when it dies."""

from __future__ import annotations

import base64
import contextlib
import threading
from dataclasses import dataclass, field, replace
from types import CodeType
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.artifacts import MAX_FILE_BYTES
from rlm_dspy.inputs import Text, plain
from rlm_dspy.interpreters import PythonInterpreter
from rlm_dspy.interpreters.base import Interpreter, TakesObjects, shown
from rlm_dspy.interpreters.host.input_transfer import Copied
from rlm_dspy.interpreters.worker.cell import SETUP
from rlm_dspy.repl import bootstrap
from rlm_dspy.repl.stand_ins import described
from rlm_dspy.repl.value_codec import across, sent, taken

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rlm_dspy.repl.value_codec import Media
    from rlm_dspy.trajectory import StepKind

MAKE = "_rlm_made"
"""The function of the REPL that makes the stand-in of a host object; see `in_repl/value_codec.py`."""
_SIMPLE_TYPES = (str, int, float, bool, list, dict)


@dataclass(frozen=True)
class Outcome:
    """The result of a code block.

    Attributes:
        kind: `output`, `error`, `submitted` (values not converted yet) or `interpreter_lost`.
        output: The printed and shown output, or the error.
        submitted: The values of SUBMIT, if it was called.
    """

    kind: StepKind
    output: str
    submitted: Any = None


@dataclass
class Repl:
    """The interpreter of one run.

    Attributes:
        factory: Returns a new interpreter; called again if one dies.
        tools: Host functions by their names in code.
        inputs: The run's inputs by name; they are bound once, so changes by the code persist.
        signature: The user's signature, for the fields of SUBMIT.
        known: The facts for the functions of the REPL; see `_rlm_given` in `in_repl/functions.py`.
        media: The images, sounds and files that the REPL refers to by name.
        keep_file: Takes a file that code wrote: `name`, `size`, `data` in base64 or None, and `removed` if it is
            gone. Returns why it is not kept.
        give_back: Takes the interpreter at the end in place of shutting it down, unless code still runs.
        interpreter: The current interpreter; None before `open` and after `close`.
        printed: What the last cell printed, also one that an exception of the host ended.
    """

    factory: Callable[[], dspy.CodeInterpreter]
    tools: dict[str, Callable[..., Any]]
    inputs: Mapping[str, Any]
    signature: type[dspy.Signature]
    known: Mapping[str, Any]
    media: Media
    keep_file: Callable[..., str]
    give_back: Callable[[dspy.CodeInterpreter], None] | None = None
    interpreter: dspy.CodeInterpreter | None = None
    printed: str = ""
    _closed: bool = False
    _running: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _kept: dict[str, Any] = field(default_factory=dict)

    def open(self, *, again: bool = True) -> None:
        """Start an interpreter and bind inputs and functions; a concurrent `close` shuts it down again.

        Args:
            again: Whether to start another interpreter, once, if this one dies while they are bound.

        Raises:
            dspy.CodeInterpreterError: If it cannot be started, or is lost again.
            TypeError: If the factory returns something else, or an input cannot cross into this interpreter.
        """
        interpreter = self.factory()
        if not isinstance(interpreter, dspy.CodeInterpreter):
            raise TypeError(
                f"interpreter_factory returned a {type(interpreter).__name__}; it must return a new "
                "dspy.CodeInterpreter: an object with tools, start, execute and shutdown."
            )
        self.interpreter = interpreter
        interpreter.tools.update(self._across(interpreter))
        if isinstance(interpreter, PythonInterpreter):
            interpreter.stand_in = self._stand_in
        if hasattr(interpreter, "output_fields"):  # optional in DSPy's protocol; `dspy.RLM` checks it too
            interpreter.output_fields = output_fields(self.signature)
        try:
            interpreter.start()
            try:
                for code, variables in self._furnishing(interpreter):
                    interpreter.execute(code, variables=variables)
            except (dspy.CodeExecutionError, TypeError):  # an input cannot be bound
                raise
            except dspy.CodeInterpreterError:
                if self._closed or not again:
                    raise
                self._shut_down()
                self.open(again=False)
        finally:
            if self._closed:  # a cancelled run may close it while another thread opens it
                interpreter.shutdown()

    def _stand_in(self, value: Any) -> tuple[Any, ...] | None:
        """Return how the REPL builds the stand-in for an object of the host's classes."""
        if isinstance(value, Text | dspy.Reasoning):
            return ("_rlm_restore", str(value))
        found = described(value, self.media.key)
        return found and (MAKE, *found)

    def _across(self, interpreter: dspy.CodeInterpreter) -> dict[str, Callable[..., Any]]:
        """Wrap the tools for this interpreter."""
        if getattr(interpreter, "in_host", False):
            return {**self.tools, bootstrap.KEEP_TOOL: self.keep_file}
        plain = not isinstance(interpreter, TakesObjects)
        own = {name: tool for name, tool in self.tools.items() if not name.startswith("_")}
        read = {bootstrap.READ_TOOL: self._read if isinstance(interpreter, PythonInterpreter) else self.media.read}
        kept = {} if plain else {bootstrap.KEEP_TOOL: self.keep_file}
        made = {name: across(tool, self.media, plain=plain) for name, tool in own.items()}
        return {**self.tools, **read, **kept, **made}

    def _read(self, **asked: Any) -> Any:
        """Return what code asks of a folder, in the form that a worker keeps only as long as code does."""
        found = self.media.read(**asked)
        return Copied(found) if isinstance(found, list) else found

    def _furnishing(self, interpreter: dspy.CodeInterpreter) -> list[tuple[str, dict[str, Any]]]:
        """Return the code that runs before the first turn: functions, DSPy's input types, other inputs.

        It is one step, so a worker is copied once, unless an input may need a function to be rebuilt.
        """
        takes_objects = isinstance(interpreter, TakesObjects)
        serialized, variables = [], dict(self._kept)
        for name, value in self.inputs.items():
            if isinstance(value, dspy.SandboxSerializable):
                serialized.append(_sandbox_code(name, value))
            else:
                variables[name] = self._bound(name, value, interpreter)
        known = {**self.known, "marked": not takes_objects, "most_file_bytes": MAX_FILE_BYTES}
        functions = {"_rlm_functions": _functions(interpreter), "_rlm_given": known}
        steps = [*serialized, (bootstrap.RUN + bootstrap.BEGIN, variables | functions)]
        if isinstance(interpreter, PythonInterpreter) and not all(map(_is_sent_as_it_is, variables.values())):
            steps = [(bootstrap.RUN, functions), *serialized, (bootstrap.BEGIN, variables)]
        return [(SETUP + code, values) for code, values in steps]

    def _bound(self, name: str, value: Any, interpreter: dspy.CodeInterpreter) -> Any:
        """Convert an input for the interpreter; for foreign ones to JSON-like data with marks.

        Raises:
            TypeError: If that is not possible. Raised before any paid model call.
        """
        if isinstance(interpreter, TakesObjects):
            return value if isinstance(value, Text) and value.path and interpreter.takes_text else plain(value)
        try:
            return sent(plain(value), self.media, strict=True)
        except (TypeError, RecursionError) as error:
            raise TypeError(
                f"Input {name!r} is a {type(value).__name__}, which {type(interpreter).__name__} cannot take: "
                f"{error}. Pass a str, numbers, lists, dicts or a pydantic model, or use an interpreter of "
                "rlm_dspy.interpreters."
            ) from error

    @property
    def _started(self) -> dspy.CodeInterpreter:
        assert self.interpreter is not None, "open() comes first"
        return self.interpreter

    def interrupt(self) -> None:
        """Stop the running cell, from any thread; it ends with an error. Do nothing without a cell.

        An interpreter that cannot stop a cell is shut down and replaced.
        """
        if not self._running:
            return
        stop = getattr(self.interpreter, "interrupt", None)  # not in DSPy's protocol
        if callable(stop):
            stop()
        else:
            with contextlib.suppress(Exception):  # its other thread may be writing to the worker
                self._shut_down()

    def keep(self, name: str, value: Any) -> str:
        """Bind a variable now and in every replacement of this interpreter; return its name.

        The name differs if an input or a function already has it.
        """
        while name in self.inputs or name in self.tools:
            name += "_"
        self._kept[name] = value
        self._started.execute(f"{SETUP}pass", variables={name: value})
        return name

    def give_up(self) -> None:
        """Do not replace the interpreter if it dies."""
        self._closed = True

    def close(self) -> None:
        """Shut the interpreter down for good, without a replacement, or give it back."""
        self._closed = True
        if self.give_back is None or self._running:
            self._shut_down()
        elif (interpreter := self._taken()) is not None:
            self.give_back(interpreter)

    def _shut_down(self) -> None:
        if (interpreter := self._taken()) is not None:
            interpreter.shutdown()

    def _taken(self) -> dspy.CodeInterpreter | None:
        with self._lock:
            interpreter, self.interpreter = self.interpreter, None
        return interpreter

    def execute(self, code: str) -> Outcome:
        """Run a block of the model's code.

        An error that the model can fix is an outcome, not an exception. The death of the interpreter is an outcome
        too, and the interpreter is replaced.

        Raises:
            dspy.CodeInterpreterError: If the interpreter died and cannot be replaced.
        """
        outcome = self._execute(code)
        if outcome.kind == "interpreter_lost" or getattr(self.interpreter, "calls_hook", False):
            return outcome
        notes = self._notes()
        return replace(outcome, output=f"{outcome.output.rstrip()}\n{notes}".lstrip()) if notes else outcome

    def collect_files(self) -> None:
        """Collect the files of a cell that was ended before it could hand them over."""
        if bootstrap.KEEP_TOOL in getattr(self.interpreter, "tools", ()):
            self._notes()

    def _notes(self) -> str:
        """Rebind the functions of the REPL; return notes on names that the cell changed."""
        with contextlib.suppress(dspy.CodeInterpreterError):  # it may have died; the next cell will report it
            if self.interpreter is not None:
                return str(self.interpreter.execute(SETUP + bootstrap.SHOW_NOTES, variables={}) or "")
        return ""

    def _execute(self, code: str) -> Outcome:
        interpreter, printed = self._started, ""
        self._running = True
        try:
            result = interpreter.execute(code, variables={})
        except SyntaxError as error:
            ours = isinstance(interpreter, Interpreter)  # its message is the whole traceback
            return Outcome("error", str(error) if ours else f"SyntaxError: {error}")
        except dspy.CodeExecutionError as error:
            printed = getattr(error, "output", "")  # set by our interpreters
            return Outcome("error", str(error))
        except dspy.CodeInterpreterError as error:
            self._running = False  # `interrupt` must not stop the new one
            return self._replace(error)
        finally:
            self._running = False
            self.printed = (printed or getattr(interpreter, "shown", "")).rstrip()  # not in DSPy's protocol
        text = interpreter.shown if isinstance(interpreter, Interpreter) else shown(result)
        if isinstance(result, dspy.FinalOutput):
            return self._submitted(text, result.output)
        return Outcome("output", text)

    def _submitted(self, printed: str, values: Mapping[str, Any]) -> Outcome:
        if getattr(self.interpreter, "in_host", False):
            return Outcome("submitted", printed, values)
        try:
            return Outcome("submitted", printed, taken(values, self.media))
        except ValueError as error:
            return Outcome("error", f"{printed}SUBMIT was given {error}.")

    def _replace(self, error: dspy.CodeInterpreterError) -> Outcome:
        if self._closed:
            raise error
        self._shut_down()
        self.open()
        return Outcome(
            "interpreter_lost",
            f"The interpreter died: {error}\nA new one was started, with the inputs and functions. Your own "
            "variables, imports and functions are lost.",
        )


def _is_sent_as_it_is(value: Any) -> bool:
    """Whether the REPL's functions have to rebuild no part of a value."""
    return type(value) in (str, bytes, int, float, bool, type(None), Text)


def _functions(interpreter: dspy.CodeInterpreter) -> list[object] | Copied:
    """Return the functions of the REPL in the form that is cheapest for this interpreter."""
    if getattr(interpreter, "in_host", False):
        return list(bootstrap.functions(CodeType))
    if isinstance(interpreter, PythonInterpreter):
        return Copied(bootstrap.functions(bytes))
    return list(bootstrap.functions())


def output_fields(signature: type[dspy.Signature]) -> list[dict[str, str]]:
    """Return the output fields in the form that interpreters accept: names, and simple types."""
    kinds = {name: of.annotation for name, of in signature.output_fields.items()}
    return [{"name": name} | ({"type": of.__name__} if of in _SIMPLE_TYPES else {}) for name, of in kinds.items()]


def _sandbox_code(name: str, value: dspy.SandboxSerializable) -> tuple[str, dict[str, Any]]:
    """Return the code and variables that rebuild one of DSPy's `dspy.SandboxSerializable` inputs."""
    payload = value.to_sandbox()
    raw = f"_raw_{name}"
    lines = [value.sandbox_setup(), value.sandbox_assignment(name, raw)]
    if isinstance(payload, bytes):
        try:
            payload = payload.decode("utf-8")
        except UnicodeDecodeError:
            payload = base64.b64encode(payload).decode("ascii")
            lines.insert(0, f"import base64\n{raw} = base64.b64decode({raw})")
    return "\n".join(line for line in lines if line), {raw: str(payload)}
