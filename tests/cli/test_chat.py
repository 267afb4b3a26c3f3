"""`rlm-dspy chat`: a session from the command line."""

from __future__ import annotations

import errno
import io
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from typer.testing import CliRunner

from rlm_dspy import RLM
from rlm_dspy.cli.app import app
from rlm_dspy.cli.chat.prompt import questions, words_of
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.observe.event_reader import read_log
from rlm_dspy.testing import ScriptedLM
from tests.commands import NEVER, running, scripted, wait_for_event
from tests.playing import block

if TYPE_CHECKING:
    from typer.testing import Result

FIRST = block("n = len(context)\nSUBMIT(answer=str(n))")
SECOND = block("SUBMIT(answer=str(2 * n))")


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    Path("notes.txt").write_text("banana", encoding="utf-8")


def chat(*arguments: str, stdin: str = "", replies: Any = (FIRST, SECOND)) -> Result:
    with dspy.context(lm=ScriptedLM(list(replies)), interpreter_factory=LocalPythonInterpreter):
        return CliRunner().invoke(app, ["chat", *arguments], input=stdin)


def test_each_line_is_a_question_of_one_session() -> None:
    done = chat("notes.txt", "--log", "runs.jsonl", stdin="How long is it?\n\nAnd twice?\n")
    assert (done.stdout, done.exit_code) == ("6\n12\n", 0), done.stderr
    assert "--- turn 1" in done.stderr
    runs = list(read_log("runs.jsonl"))
    assert [run.inputs["question"] for run in runs] == ["How long is it?", "And twice?"]
    assert len({run.session for run in runs}) == 1


def test_quiet_prints_answers_alone() -> None:
    done = chat("notes.txt", "--quiet", stdin="How long is it?\n")
    assert (done.stdout, done.stderr) == ("6\n", "")


def test_a_session_goes_on_the_next_time() -> None:
    assert chat("notes.txt", "--session", "it.json", stdin="How long is it?\n").stdout == "6\n"
    done = chat("notes.txt", "--session", "it.json", stdin="And twice?\n", replies=[SECOND])
    assert done.stdout == "12\n"
    assert "it.json: 1 question so far." in done.stderr


def test_commands_are_carried_out_between_questions() -> None:
    done = chat("notes.txt", stdin="/help\nHow long is it?\n/save it.json\n/exit\nNever asked\n")
    assert (done.stdout, done.exit_code) == ("6\n", 0)
    assert "/save FILE writes the session" in done.stderr
    assert "The session is in it.json." in done.stderr
    assert Path("it.json").is_file()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/save notes.txt", "Error: /save notes.txt: this is an input file; name another file to write."),
        ("/save other.txt", "Error: /save other.txt: this is not a saved session; name another file to write."),
        ("/save none/it.json", "Error: /save none/it.json: directory none does not exist."),
        ("/save", "Name a file: /save FILE. /save FILE writes"),
        ("/save ''", "Name a file: /save FILE. /save FILE writes"),
        ("/frob it", "Unknown command /frob. /save FILE writes"),
    ],
)
def test_a_command_that_cannot_be_carried_out_is_told_and_replaces_nothing(line: str, told: str) -> None:
    Path("other.txt").write_text("mine", encoding="utf-8")
    done = chat("notes.txt", stdin=f"{line}\nHow long is it?\n")
    assert done.stdout == "6\n"
    assert told in done.stderr
    assert [Path(name).read_text(encoding="utf-8") for name in ("notes.txt", "other.txt")] == ["banana", "mine"]


def test_a_session_is_saved_again_where_a_person_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With quotation marks and `~` as in a shell; an older session is replaced."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("home").mkdir()
    lines = ["How long is it?", '/save "my file.json"', "And twice?", "/save 'my file.json'", "/save ~/it.json"]
    done = chat("notes.txt", stdin="\n".join(lines))
    assert "Error" not in done.stderr
    saved = [Path(name).read_text(encoding="utf-8") for name in ("my file.json", "home/it.json")]
    assert [len(json.loads(each)["messages"]) for each in saved] == [2, 2]


def test_an_input_file_below_the_users_folder_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = chat("~/notes.txt", "--session", str(tmp_path / "notes.txt"), stdin="?\n")
    assert (done.exit_code, "this is an input file" in done.stderr) == (2, True)


class Full(io.StringIO):
    """Standard error on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, f"No space left for {len(text)} characters")


def test_answers_are_printed_if_standard_error_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    monkeypatch.setattr(sys, "stdin", io.StringIO("How long is it?\nAnd twice?\n"))
    with dspy.context(lm=ScriptedLM([FIRST, SECOND, FIRST]), interpreter_factory=LocalPythonInterpreter):
        for arguments in (["chat", "notes.txt"], ["ask", "How long is it?", "notes.txt"]):
            assert app(arguments, standalone_mode=False) == 0
    assert capsys.readouterr().out == "6\n12\n6\n"


def test_a_run_that_fails_does_not_end_the_chat() -> None:
    lines = "How long is it?\nFails?\nAnd twice?\n"
    done = chat("notes.txt", stdin=lines, replies=[FIRST, dspy.LMError("down"), SECOND])
    assert (done.stdout, done.exit_code) == ("6\n12\n", 0)
    assert "Error: " in done.stderr
    assert "down" in done.stderr


def test_the_exit_code_is_that_of_the_last_question() -> None:
    assert chat("notes.txt", stdin="Fails?\n", replies=[dspy.LMError("down")]).exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["-"], "chat reads the questions from standard input"),
        (["missing.txt"], "File not found: missing.txt"),
        (["notes.txt", "--signature", "text -> title"], "has no input for the question"),
        (["notes.txt", "--session", "notes.txt"], "this is an input file"),
        (["notes.txt", "--session", "broken.json"], "broken.json is not a saved session"),
        (["notes.txt", "--budget", "0"], "max_cost must be a number above 0"),
    ],
)
def test_what_is_wrong_is_told_before_the_first_question(arguments: list[str], why: str) -> None:
    Path("broken.json").write_text("{}", encoding="utf-8")
    done = chat(*arguments, stdin="?\n")
    assert done.exit_code == 2
    assert why in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_piped_chat_and_the_session_is_kept(number: signal.Signals, code: int) -> None:
    options = ["notes.txt", "--session", "it.json", "--log", "log"]
    Path("lines").write_text("How long is it?\nFor ever?\n", encoding="utf-8")
    command = scripted("chat", *options, replies=[FIRST, NEVER])
    with Path("lines").open(encoding="utf-8") as lines, running(command, stdin=lines) as process:
        wait_for_event(Path("log"), "lm_started", 2)
        process.send_signal(number)
        assert process.wait(60) == code
    assert len(json.loads(Path("it.json").read_text(encoding="utf-8"))["messages"]) == 1


def typed(keys: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the questions of a person who presses these keys."""
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    session = RLM("context, question -> answer").session(context="")
    with create_pipe_input() as keyboard, create_app_session(input=keyboard):
        keyboard.send_text(keys)
        return list(questions(session, keep=True))


CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


def test_the_prompt_has_history_and_a_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ctrl-C clears the line."""
    asked = typed(f"Who is Vaheste?\rdropped{CTRL_C}{CTRL_D}", monkeypatch)
    assert asked == ["Who is Vaheste?"]
    assert typed(f"{UP}\r/exit\r", monkeypatch) == asked
    assert "Who is Vaheste" in (tmp_path / "state" / "rlm-dspy" / "questions").read_text(encoding="utf-8")


def test_the_prompt_completes_words_of_the_conversation() -> None:
    said = dspy.History(messages=[{"question": "Who wrote it?", "answer": "Kadri Vaheste"}])
    with RLM("context, question -> answer").session(context="", history=said) as session:
        assert words_of(session) == ["Kadri", "Vaheste", "wrote"]
