"""Read the arguments of `ask` as a signature and its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import rlm_dspy
from rlm_dspy.errors import UnreachableAddress, UnreadableDocument, UsageError
from rlm_dspy.text import counted, expanded

STDIN = "-"
WITH_TEXT = "context, question -> answer: str"
WITHOUT_TEXT = "question -> answer: str"
_TEXT_AND_QUESTION = 2
_JOINED_BYTES = 10_000_000
"""Several files up to this total size become one text with a heading for each; larger ones become a `Files`."""


@dataclass(frozen=True)
class Task:
    """A question about a text.

    Attributes:
        question: The question.
        signature: The DSPy signature.
        inputs: The values by input field.
        source: The names of the text's files, for display; empty without a text.
        size: The size of the text, or the number of files or rows; empty without a text.
    """

    question: str
    signature: Any
    inputs: dict[str, Any]
    source: str = ""
    size: str = ""


@dataclass(frozen=True)
class Unfinished:
    """An unfinished run in a log, to resume.

    Attributes:
        log: The file.
        run: Its id.
        task: Its task.
        limits: Its limits.
    """

    log: Path
    run: str
    task: Task
    limits: rlm_dspy.Limits


def paths_of(files: list[str] | None) -> list[Path]:
    """Return the paths that FILE arguments name, without standard input.

    Raises:
        UsageError: If a name is empty: it would stand for the working directory.
    """
    for number, name in enumerate(files or [], 1):
        if _is_blank(name):
            raise UsageError(
                f"FILE {number} is empty: is a variable of your shell not set? Name a file; a dot is this folder."
            )
    return [expanded(name) for name in files or [] if name != STDIN]


def read_task(
    question: str,
    files: list[str],
    signature: str | None,
    stdin: BinaryIO | None,
    *,
    allow_local: bool = False,
) -> Task:
    """Return the task of a command line.

    The text goes to the input field that is not `question`. A signature with a single input takes the text, and
    the question becomes its instructions; without a text it takes the question.

    Args:
        question: The question.
        files: Paths of UTF-8 files, documents, folders and tables, addresses, or `-` for standard input. Without
            any, piped standard input is the text.
        signature: A DSPy signature; default `WITH_TEXT`. It is required if there is no text.
        stdin: Standard input if it is piped or named, else None.
        allow_local: Whether addresses may lead to this machine or its network.

    Raises:
        UsageError: If a file cannot be read, the signature does not fit, or there is neither.
    """
    if _is_blank(question):
        raise UsageError('The question is empty. Example: rlm-dspy ask "Who wrote about drift?" articles.md.')
    text: rlm_dspy.Text | rlm_dspy.Files | rlm_dspy.Table | None = _folder_or_table(files)
    if text is None:  # a table without rows is falsy
        text = _read(files, stdin, allow_local=allow_local)
    if text is None and signature is None:
        raise UsageError(
            "There is nothing to read: no file is named, and standard input is empty. Name a file, a folder or an "
            f"address, pipe a text in, or ask the model without a text: --signature '{WITHOUT_TEXT}'."
        )
    from rlm_dspy.repl.signature_reader import check_signature  # it imports DSPy

    parsed = check_signature(signature or WITH_TEXT)
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
    return Task(question, parsed, inputs, ", ".join(map(_title, files or [STDIN])), _size(text))


def _folder_or_table(files: list[str]) -> rlm_dspy.Files | rlm_dspy.Table | None:
    """Return the table of a single file, or the `Files` of folders or of many files; else None."""
    from rlm_dspy.inputs.tables import KINDS

    paths = paths_of(files)
    try:
        if len(files) == 1 and paths and paths[0].suffix.lower() in KINDS and paths[0].is_file():
            return rlm_dspy.Table.open(paths[0])
        sizes = [path.stat().st_size for path in paths if path.is_file()]
        many = len(sizes) == len(files) > 1 and sum(sizes) > _JOINED_BYTES
        if not many and not any(path.is_dir() for path in paths):
            return None
        if STDIN in files:
            raise UsageError("Standard input cannot be joined with folders or large files. Write it to a file.")
        if any("://" in name for name in files):
            raise UsageError("Addresses cannot be joined with folders. Save the page to a file in the folder.")
        return rlm_dspy.Files.open(paths[0] if len(paths) == 1 else paths)
    except FileNotFoundError as error:
        raise UsageError(f"File not found: {error}") from error
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error


def _size(source: rlm_dspy.Text | rlm_dspy.Files | rlm_dspy.Table) -> str:
    kinds = {rlm_dspy.Files: "file", rlm_dspy.Table: "row"}
    return counted(len(source), kinds.get(type(source), "character"))


def _read(files: list[str], stdin: BinaryIO | None, *, allow_local: bool) -> rlm_dspy.Text | None:
    """Return the text of files, or of standard input if none is named; None if that has none."""
    texts = [_read_one(name, stdin, allow_local=allow_local) for name in files or [STDIN]]
    for name, text in zip(files or [STDIN], texts, strict=True):
        if _is_blank(str(text)):
            if not files:
                return None
            raise UsageError(f"{_title(name, 'Standard input')} is empty.")
    if len(texts) == 1:
        return texts[0]
    parts = (f"=== {_title(name)} ===\n{text}" for name, text in zip(files, texts, strict=True))
    return rlm_dspy.Text("\n\n".join(parts))


def _title(name: str, of_stdin: str = "standard input") -> str:
    return of_stdin if name == STDIN else name


def _read_one(name: str, stdin: BinaryIO | None, *, allow_local: bool) -> rlm_dspy.Text:
    path = expanded(name)
    try:
        if name == STDIN:
            return rlm_dspy.Text("") if stdin is None else rlm_dspy.Text.open(stdin)
        is_pipe = path.exists() and not path.is_file()
        if is_pipe:
            with path.open("rb") as pipe:
                return rlm_dspy.Text.open(pipe)
        text = rlm_dspy.Text.open(name, allow_local=allow_local)
        str(text)  # decodes it
    except FileNotFoundError as error:
        raise UsageError(f"File not found: {name}.") from error
    except (UnreadableDocument, UnreachableAddress) as error:
        raise UsageError(str(error)) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{_title(name, 'Standard input')} is not UTF-8 text (byte 0x{error.object[error.start]:02x} at "
            f"{error.start:,}). Convert it first, e.g. with iconv."
        ) from error
    except OSError as error:
        raise UsageError(f"Cannot read {name}: {error.strerror or error}.") from error
    return text


def _is_blank(text: str) -> bool:
    return not text or text.isspace()
