"""Yields the questions of a chat: from a prompt with history and completion, else the lines of standard input."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rlm_dspy.cli.errors import check_outputs, done, tell
from rlm_dspy.cli.user.history import history_folder
from rlm_dspy.errors import UsageError
from rlm_dspy.text import expanded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rlm_dspy.sessions import Session

HELP = "/save FILE writes the session to a file; Ctrl-C stops a run; /exit or Ctrl-D ends."
_COMMANDS = ["/save", "/help", "/exit"]
_WORD = re.compile(r"\w{4,}")
_EXTRA = (
    "The prompt of chat needs the extra `chat`: pip install 'dspy-recursive-lm[chat]' (in the checkout: --extra "
    "chat). Questions from a pipe need no prompt."
)


def questions(session: Session, *, keep: bool, read: Sequence[Path] = ()) -> Iterator[str]:
    """Yield each question; carry out the commands in between.

    Args:
        session: The session, for completion and `/save`.
        keep: Whether the prompt's history is kept for the next chat.
        read: The input files, which `/save` must not replace.
    """
    for line in _typed(session, keep=keep) if sys.stdin.isatty() else sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "/exit":
            return
        if word == "/save":
            _save_as(session, rest.strip(), read)
        elif word.startswith("/") and "/" not in word[1:]:
            tell(HELP if word == "/help" else f"Unknown command {word}. {HELP}")
        elif word:
            yield line.strip()


def _save_as(session: Session, written: str, read: Sequence[Path]) -> None:
    """Save a session to the file that a line names, unless that would replace a file that is not a session."""
    if not (name := _unquoted(written)):
        tell(f"Name a file: /save FILE. {HELP}")
        return
    path = expanded(name)
    try:
        check_outputs({"/save": path}, read)
        _check_replaceable(path)
    except UsageError as error:
        tell(f"Error: {error}")
        return
    if save(session, path):
        tell(f"The session is in {path}.")


def _check_replaceable(path: Path) -> None:
    from rlm_dspy.sessions.saved import SavedSession

    try:
        if path.is_file():
            SavedSession.load(path)
    except (OSError, ValueError):
        raise UsageError(f"/save {path}: this is not a saved session; name another file to write.") from None


def _unquoted(written: str) -> str:
    """Return a file name without surrounding quotation marks, as a shell would read it."""
    try:
        words = shlex.split(written)
    except ValueError:  # a single quotation mark, as in a name
        return written
    is_quoted = len(words) == 1 and written[0] in "'\""
    return words[0].strip() if is_quoted else written


def save(session: Session, path: Path) -> bool:
    """Save a session, and print what is not in the file; return whether it was saved."""
    lost: dict[str, str] = {}
    saved = done(lambda: lost.update(session.save(path)), problem="the session is not saved: ")
    for name, why in lost.items():
        tell(f"Not kept in {path}: {name} ({why.rstrip('.')}).")
    return saved


def _typed(session: Session, *, keep: bool) -> Iterator[str]:
    """Yield the lines that a person types, until Ctrl-D."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.output import create_output
    except ImportError as error:
        raise UsageError(_EXTRA) from error
    folder = history_folder().parent
    if keep:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    prompt: PromptSession[str] = PromptSession(
        history=FileHistory(folder / "questions") if keep else InMemoryHistory(),
        auto_suggest=AutoSuggestFromHistory(),
        completer=WordCompleter(lambda: [*_COMMANDS, *words_of(session)], WORD=True),
        complete_while_typing=False,
        output=create_output(stdout=sys.stderr),
    )
    while True:
        try:
            line = prompt.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        yield line


def words_of(session: Session) -> list[str]:
    """Return the words that the prompt completes: those of the conversation."""
    said = " ".join(str(value) for message in session.messages for value in message.values())
    return sorted(set(_WORD.findall(said)))
