"""A person at a terminal decides."""

from __future__ import annotations

import os
import pty
import select
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from rlm_dspy.approval import Pause, RunInstead, ask_at_terminal, terminal
from rlm_dspy.errors import RLMError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECONDS = 60


class Person:
    """Reads the screen and types.

    Attributes:
        screen: What was shown so far.
    """

    def __init__(self, ours: int) -> None:
        self._ours = ours
        self.screen = ""

    def types(self, text: str, after: str = "") -> None:
        """Type; first wait until the screen has shown something once more, if that is given."""
        seen = self.screen.count(after)
        while after and self.screen.count(after) == seen:
            assert select.select([self._ours], [], [], SECONDS)[0], self.screen
            self.screen += os.read(self._ours, 65_536).decode()
        os.write(self._ours, text.encode())


@contextmanager
def asked(monkeypatch: pytest.MonkeyPatch, *given: Any) -> Iterator[tuple[Person, Callable[[], Any]]]:
    """Ask at a terminal of our own, in a thread; yield the person and what waits for the verdict."""
    ours, theirs = pty.openpty()
    monkeypatch.setattr(terminal, "_INPUT", os.ttyname(theirs))
    monkeypatch.setattr(terminal, "_OUTPUT", os.ttyname(theirs))
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    verdicts: list[Any] = []

    def ask() -> None:
        try:
            verdicts.append(ask_at_terminal(*given))
        except Pause as pause:
            verdicts.append(pause)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()

    def verdict() -> Any:
        thread.join(SECONDS)
        return verdicts[0]

    yield Person(ours), verdict
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize(
    ("typed", "verdict"),
    [("y", None), ("yes", None), ("n", "A person refused it."), ("Print less.", "Print less.")],
)
def test_letters_and_words_decide(typed: str, verdict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with asked(monkeypatch, "print(1)\nprint(2)") as (person, decided):
        person.types(f"{typed}\n", after="instead: ")
        assert decided() == verdict
    assert "print" in person.screen
    assert "code to run" in person.screen


def test_a_slip_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty line and another letter are no decision."""
    with asked(monkeypatch, "print(1)") as (person, decided):
        for typed in ("\n", "x\n", "y\n"):
            person.types(typed, after="instead: ")
        assert decided() is None


@pytest.mark.parametrize("typed", ["p\n", "pause\n", "\x04"])
def test_a_person_may_decide_later(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by Ctrl-D."""
    with asked(monkeypatch, "print(1)") as (person, decided):
        person.types(typed, after="instead: ")
        assert isinstance(decided(), Pause)
        assert str(decided()) == "Run it? print(1)"


def test_a_call_is_shown_with_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    with asked(monkeypatch, "send", {"to": "Bob", "text": "x" * 9_000}) as (person, decided):
        person.types("e\n", after="why not: ")  # only code can be edited
        person.types("Not Bob.\n", after="why not: ")
        assert decided() == "Not Bob."
    assert "to=" in person.screen
    assert "characters" in person.screen


def test_an_answer_is_shown_by_its_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    with asked(monkeypatch, {"names": ["Ann"], "count": 1}) as (person, decided):
        person.types("y\n", after="what is wrong: ")
        assert decided() is None
    assert "names" in person.screen
    assert "count" in person.screen


def test_edited_code_runs_instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An editor that fails, and one that saves nothing, change nothing."""
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho "print(3)" > "$1"\nsleep 0.01; touch -d "+1 hour" "$1"\n', encoding="utf-8")
    editor.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "false")
    with asked(monkeypatch, "print(1)") as (person, decided):
        person.types("e\n", after="instead: ")
        person.types("", after="instead: ")
        assert "Set EDITOR to another one." in person.screen
        monkeypatch.setenv("EDITOR", "true")
        person.types("e\n")
        person.types("", after="instead: ")
        monkeypatch.setenv("EDITOR", str(editor))
        person.types("e\n")
        assert decided() == RunInstead("print(3)\n")


def test_what_is_shown_cannot_control_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code may hold what erases lines, or what turns the direction of text."""
    with asked(monkeypatch, "steal()\x1b[2K\rprint(1)\u202e") as (person, decided):
        person.types("n\n", after="instead: ")
        decided()
    assert "\x1b[2K" not in person.screen
    assert "\u202e" not in person.screen
    assert "steal" in person.screen


def test_without_a_terminal_the_error_names_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(terminal, "_INPUT", str(tmp_path / "none"))
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    with pytest.raises(RLMError, match=r"this process has no terminal\. Run it in a terminal, or pass a hook"):
        ask_at_terminal("print(1)")


def test_a_notebook_is_not_asked_at_its_servers_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    with pytest.raises(RLMError, match="from a notebook"):
        ask_at_terminal("print(1)")
