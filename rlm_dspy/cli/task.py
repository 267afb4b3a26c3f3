"""Read the arguments of `ask` as a signature and its inputs."""

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
        question: The question.
        signature: The DSPy signature.
        inputs: The values by input field.
        source: The names of the text's files, for display; empty without a text.
        characters: The length of the text.
    """

    question: str
    signature: Any
    inputs: dict[str, Any]
    source: str = ""
    characters: int = 0


def read_task(question: str, files: list[str], signature: str | None, stdin: IO[bytes] | None) -> Task:
    """Return the task of a command line.

    The text goes to the input field that is not `question`. A signature with a single input takes the text, and
    the question becomes its instructions; without a text it takes the question.

    Args:
        question: The question.
        files: Paths of UTF-8 files, or `-` for standard input. Without any, piped standard input is the text.
        signature: A DSPy signature; default `WITH_TEXT`, or `WITHOUT_TEXT` without a text.
        stdin: Standard input if it is piped or named, else None.

    Raises:
        UsageError: If a file cannot be read or the signature does not fit.
    """
    if _is_blank(question):
        raise UsageError('The question is empty. Example: rlm-dspy ask "Who wrote about drift?" articles.md.')
    text = _read(files, stdin)
    parsed = _parse(signature or (WITHOUT_TEXT if text is None else WITH_TEXT))
    names = list(parsed.input_fields)
    inputs: dict[str, Any]
    if text is None:
        if len(names) != 1:
            raise UsageError(
                f"The signature takes {names}, but there is no text. Name files, or - for standard input."
            )
        return Task(question, parsed, {names[0]: question})
    if len(names) == 1:
        parsed, inputs = parsed.with_instructions(question), {names[0]: text}
    elif len(names) == _TEXT_AND_QUESTION:
        asked = "question" if "question" in names else names[1]
        inputs = {name: question if name == asked else text for name in names}
    else:
        raise UsageError(
            f"The command line fills a text and a question, not {names}. Call RLM from Python for more inputs."
        )
    return Task(question, parsed, inputs, ", ".join(map(_title, files or [STDIN])), len(text))


def _parse(signature: str) -> Any:
    import dspy

    try:
        return dspy.Signature(signature)
    except Exception as error:  # DSPy evaluates annotations, which may raise anything
        raise UsageError(
            f"Invalid signature {signature!r}: {' '.join(str(error).split()).rstrip('.')}. "
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
        raise UsageError(f"{name} is a directory. Name files in it, e.g. {name.rstrip('/')}/*.md.")
    try:
        text = (
            rlm_dspy.Text.open(path)
            if path.is_file() or not path.exists()
            else rlm_dspy.Text(path.read_text(encoding="utf-8"))
        )
        if _is_blank(str(text)):
            raise UsageError(f"{name} is empty.")
    except FileNotFoundError as error:
        raise UsageError(f"File not found: {name}.") from error
    except UnicodeDecodeError as error:
        raise _not_utf8(name, error) from error
    except OSError as error:
        raise UsageError(f"Cannot read {name}: {error.strerror or error}.") from error
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
