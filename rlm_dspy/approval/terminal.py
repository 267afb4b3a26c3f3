"""Asks a person at the terminal about code, a tool call or an answer."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, overload

from rlm_dspy.approval.reviewer import RunInstead, Verdict
from rlm_dspy.errors import Pause, RLMError
from rlm_dspy.text import clip, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import Console

_INPUT, _OUTPUT = ("CONIN$", "CONOUT$") if os.name == "nt" else ("/dev/tty", "/dev/tty")
_VALUE_CHARS = 4_000
_REFUSED = "A person refused it."
_one_at_a_time = threading.Lock()


class _Question(NamedTuple):
    title: str
    question: str
    words: str
    """What may be typed besides the letters."""


_CODE = _Question("code to run", "Run it?", "what to do instead")
_TOOL = _Question("call of a tool", "Allow it?", "why not")
_ANSWER = _Question("answer", "Accept it?", "what is wrong")


@overload
def ask_at_terminal(asked: str) -> Verdict: ...
@overload
def ask_at_terminal(asked: Mapping[str, Any]) -> str | None: ...
@overload
def ask_at_terminal(asked: str, arguments: Mapping[str, Any]) -> str | None: ...
def ask_at_terminal(asked: str | Mapping[str, Any], arguments: Mapping[str, Any] | None = None) -> Verdict:
    """Ask a person at the terminal of this process: for `on_code`, `on_tool` and `on_submit`.

    `y` agrees; `n` refuses; other words refuse and are what the model reads. `e` opens code in the editor that
    `VISUAL` or `EDITOR` names; what is saved is run. `p`, or Ctrl-D, pauses the run. Standard input and output may
    be pipes. Concurrent runs ask one after the other.

    Args:
        asked: The code, the name of a tool, or the fields of an answer.
        arguments: Those of a tool.

    Raises:
        Pause: If the person wants to decide later.
        RLMError: If this process has no terminal.

    Examples:
        >>> from rlm_dspy import RLM
        >>> rlm = RLM("question -> answer", on_code=ask_at_terminal, on_submit=ask_at_terminal)
    """
    with _one_at_a_time, terminal() as (console, keyboard):
        if arguments is not None:
            return _ask(console, keyboard, _TOOL, _call(str(asked), arguments))
        if isinstance(asked, str):
            return _ask(console, keyboard, _CODE, asked, is_code=True)
        return _ask(console, keyboard, _ANSWER, _fields(asked))


@contextlib.contextmanager
def terminal() -> Iterator[tuple[Console, TextIO]]:
    """Open the terminal of this process to write to and to read from.

    Raises:
        RLMError: If there is none.
    """
    from rich.console import Console  # noqa: PLC0415  # slow to import, and needed only now

    instead = "Run it in a terminal, or pass a hook of your own, which may raise rlm_dspy.approval.Pause."
    if "ipykernel" in sys.modules:  # its terminal, if it has one, is not the notebook
        raise RLMError(f"Nobody can be asked at a terminal from a notebook. {instead}")
    with contextlib.ExitStack() as stack:
        try:
            keyboard = stack.enter_context(open(_INPUT, encoding="utf-8", errors="replace"))  # noqa: PTH123 (a device)
            screen = stack.enter_context(open(_OUTPUT, "w", encoding="utf-8", errors="replace"))  # noqa: PTH123
        except OSError as error:
            raise RLMError(f"Nobody can be asked: this process has no terminal. {instead}") from error
        with contextlib.suppress(ImportError):  # Windows has none
            import termios  # noqa: PLC0415

            termios.tcflush(keyboard, termios.TCIFLUSH)  # what was typed before the question does not answer it
        yield Console(file=screen, highlight=False, emoji=False, markup=False), keyboard


def _ask(console: Console, keyboard: TextIO, what: _Question, shown: str, *, is_code: bool = False) -> Verdict:
    from rich.syntax import Syntax  # noqa: PLC0415

    text = printable(shown)
    console.rule(what.title, align="left", characters="─")
    console.print(Syntax(text, "python", theme="ansi_dark", background_color="default", word_wrap=True))
    letters = "y = yes, n = no, e = edit, p = pause" if is_code else "y = yes, n = no, p = pause"
    while True:
        line = console.input(f"{what.question} {letters}, or type {what.words}: ", stream=keyboard)
        match line.strip():
            case "y" | "yes":
                return None
            case "n" | "no":
                return _REFUSED
            case "e" | "edit" if is_code:
                if edited := _edited(console, shown):
                    return RunInstead(edited)
            case "p" | "pause" | "" if not line.endswith("\n") or line.strip():
                raise Pause(f"{what.question} {clip(text, _VALUE_CHARS)}")
            case words if len(words) > 1:  # another letter is a slip, and so is an empty line
                return words


def _edited(console: Console, code: str) -> str | None:
    """Return the code as the person saved it; None if it was not saved, or no editor could be opened."""
    import click  # noqa: PLC0415

    try:
        return click.edit(code, extension=".py")
    except click.ClickException as error:
        console.print(f"{error.format_message()}. Set EDITOR to another one.")
        return None


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    given = ",\n".join(f"    {each}={clip(repr(value), _VALUE_CHARS)}" for each, value in arguments.items())
    return f"{name}(\n{given},\n)" if given else f"{name}()"


def _fields(answer: Mapping[str, Any]) -> str:
    return "\n".join(f"{name} = {clip(repr(value), _VALUE_CHARS)}" for name, value in answer.items())
