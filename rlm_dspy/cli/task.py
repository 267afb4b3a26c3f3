"""What a command line asks, as a signature and its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import rlm_dspy
from rlm_dspy.errors import UsageError

STDIN = "-"
WITH_TEXT = "context, question -> answer: str"
WITHOUT_TEXT = "question -> answer: str"
_TEXT_AND_QUESTION = 2


@dataclass(frozen=True)
class Task:
    """A question about a text.

    Attributes:
        question: What is asked.
        signature: What goes in and what comes out.
        inputs: The values by input field.
        source: Where the text comes from, for people; empty if there is none.
        characters: How long the text is.
    """

    question: str
    signature: Any
    inputs: dict[str, Any]
    source: str = ""
    characters: int = 0


def read_task(question: str, files: list[str], signature: str | None, stdin: IO[bytes] | None) -> Task:
    """Return the task that a command line describes.

    The text goes to the input field that is not `question`. A signature with one input takes the text if there
    is one, and the question becomes its instructions.

    Args:
        question: What is asked.
        files: Paths of UTF-8 files, `-` for standard input. None of them: standard input if it is piped.
        signature: As DSPy writes them; by default `WITH_TEXT`, or `WITHOUT_TEXT` if there is no text.
        stdin: Standard input if it is piped or asked for, else None.

    Raises:
        UsageError: If a file cannot be read or the signature does not fit.
    """
    if _is_blank(question):
        raise UsageError(
            'The question is empty. Ask something: rlm-dspy ask "Who wrote about drift?" articles.md.'
        )
    text = _read(files, stdin)
    parsed = _parse(signature or (WITHOUT_TEXT if text is None else WITH_TEXT))
    names = list(parsed.input_fields)
    inputs: dict[str, Any]
    if text is None:
        if len(names) != 1:
            raise UsageError(
                f"The signature takes {names}, and there is no text. Give files, or - for standard input."
            )
        return Task(question, parsed, {names[0]: question})
    if len(names) == 1:
        parsed, inputs = parsed.with_instructions(question), {names[0]: text}
    elif len(names) == _TEXT_AND_QUESTION:
        asked = "question" if "question" in names else names[1]
        inputs = {name: question if name == asked else text for name in names}
    else:
        raise UsageError(f"A signature for the command line takes a text and a question, not {names}. Use Python.")
    return Task(question, parsed, inputs, ", ".join(map(_title, files or [STDIN])), len(text))


def _parse(signature: str) -> Any:
    import dspy

    try:
        return dspy.Signature(signature)
    except Exception as error:  # DSPy evaluates it and raises whatever Python does
        raise UsageError(
            f"{signature!r} is no signature ({' '.join(str(error).split()).rstrip('.')}). "
            f"Write it as DSPy does, e.g. '{WITH_TEXT}' or 'context, question -> names: list[str], count: int'."
        ) from error


def _read(files: list[str], stdin: IO[bytes] | None) -> rlm_dspy.Text | None:
    if not files:
        piped = _piped(stdin)
        return None if _is_blank(piped) else rlm_dspy.Text(piped)
    if len(files) == 1:
        return _read_one(files[0], stdin)
    return rlm_dspy.Text("\n\n".join(f"=== {_title(name)} ===\n{_read_one(name, stdin)}" for name in files))


def _title(name: str) -> str:
    return "standard input" if name == STDIN else name


def _read_one(name: str, stdin: IO[bytes] | None) -> rlm_dspy.Text:
    if name != STDIN:
        return _open(name)
    piped = _piped(stdin)
    if _is_blank(piped):
        raise UsageError("Standard input is empty.")
    return rlm_dspy.Text(piped)


def _open(name: str) -> rlm_dspy.Text:
    path = Path(name).expanduser()
    if path.is_dir():
        raise UsageError(f"{name} is a directory. Name the files in it, e.g. {name.rstrip('/')}/*.md.")
    try:
        text = (
            rlm_dspy.Text.open(path)
            if path.is_file() or not path.exists()
            else rlm_dspy.Text(path.read_text(encoding="utf-8"))
        )
        if _is_blank(str(text)):
            raise UsageError(f"{name} is empty.")
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {name}.") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(name, error) from error
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror or error}.") from error
    return text


def _piped(stdin: IO[bytes] | None) -> str:
    try:
        return stdin.read().decode("utf-8") if stdin is not None else ""
    except UnicodeDecodeError as error:
        raise _not_utf8("Standard input", error) from error


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def _not_utf8(name: str, error: UnicodeDecodeError) -> UsageError:
    byte = error.object[error.start]
    return UsageError(
        f"{name} is not UTF-8 text (byte 0x{byte:02x} at {error.start:,}). Convert it first, e.g. with iconv."
    )
