"""`rlm-dspy history`: what is kept of runs, for how long, and who may read it."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rlm_dspy.cli.app import app
from rlm_dspy.cli.user import history
from rlm_dspy.cli.user.history import history_folder, kept_runs
from tests.commands import LOOK, NEVER, SUBMIT_42, ask, record_of, running, scripted, wait_for_event


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("RLM_DSPY_HISTORY", "3")
    Path("notes.txt").write_text("The answer is 42.\n", encoding="utf-8")


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin)


def test_runs_are_listed_the_newest_first() -> None:
    ask("First?", "notes.txt")
    ask("Second?", "notes.txt", "--max-iters", "1", replies=lambda messages: "<think>Hm")
    lines = run("history").stdout.splitlines()
    assert lines[0].split() == ["#", "WHEN", "END", "MODEL", "QUESTION"]
    assert [(line.split()[0], *line.split()[3:]) for line in lines[1:3]] == [
        ("1", "unanswered", "scripted/lm", "Second?"),
        ("2", "submitted", "scripted/lm", "First?"),
    ]


def test_a_run_is_shown_with_its_steps_and_its_answer() -> None:
    asked = ask("How much?", "notes.txt").stderr
    shown = run("history", "show").stdout
    assert shown.splitlines()[:2] == ["How much?", "(notes.txt, scripted/lm)"]
    assert shown.endswith("\n\n42\n")
    assert asked.partition("--- turn 1")[2].splitlines()[1:4] == shown.partition("--- turn 1")[2].splitlines()[1:4]
    assert record_of(run("history", "show", "1", "--json")).outputs == {"answer": "42"}
    assert run("history", "show", "@1").stdout == shown
    assert "Write the number of a run" in run("history", "show", "last").stderr


def test_report_diff_and_replay_take_a_run_of_the_history() -> None:
    ask("How much?", "notes.txt")
    ask("How much?", "notes.txt", replies=["```python\nSUBMIT(answer=context[14:16])\n```"])
    reported = run("report", "@2")
    assert (reported.exit_code, Path(reported.stdout.strip()).parent) == (0, Path())
    assert "How much?" in Path(reported.stdout.strip()).read_text(encoding="utf-8")
    assert run("diff", "@1", "@2").exit_code == 0
    assert "2 of 2 steps did the same." in run("replay", "@2", "notes.txt", "--interpreter", "local").stdout
    piped = run("replay", "@2", "-", "--interpreter", "local", stdin=Path("notes.txt").read_text("utf-8"))
    assert "2 of 2 steps did the same." in piped.stdout
    assert "in `rlm-dspy history` is @1." in run("report", "1").stderr
    assert "No run 3: the history has 2 runs. See rlm-dspy history." in run("report", "@3").stderr


def test_the_oldest_runs_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        ask(f"Question {number}?", "notes.txt", replies=[SUBMIT_42])
    questions = [history.beginning_of(path).question for path in kept_runs()]
    assert questions == ["Question 4?", "Question 3?", "Question 2?"]
    monkeypatch.setattr(history, "_MAX_BYTES", kept_runs()[0].stat().st_size + 10)
    ask("Question 5?", "notes.txt", replies=[SUBMIT_42])
    assert [history.beginning_of(path).question for path in kept_runs()] == ["Question 5?"]


def test_the_history_is_for_its_user_alone() -> None:
    ask("How much?", "notes.txt")
    assert stat.S_IMODE(history_folder().stat().st_mode) == 0o700


@pytest.mark.parametrize("way", ["option", "environment", "file"])
def test_the_history_can_be_turned_off(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way != "option":
        monkeypatch.setenv("RLM_DSPY_HISTORY", "0" if way == "environment" else "")
    Path("config.toml").write_text(f"history = {0 if way == 'file' else 3}")
    monkeypatch.setenv("RLM_DSPY_CONFIG", "config.toml")
    ask("How much?", "notes.txt", *["--no-history"] * (way == "option"))
    assert not history_folder().exists()
    assert f"No runs in {history_folder()}." in run("history").stdout


def test_a_run_that_is_killed_is_kept() -> None:
    with running(
        scripted("ask", "How much?", "notes.txt", "--log", "run.jsonl", replies=[LOOK, NEVER])
    ) as process:
        wait_for_event(Path("run.jsonl"), "lm_started", 2)
        time.sleep(0.2)
        process.kill()
        process.communicate(timeout=60)
    assert " no end " in run("history").stdout
    assert "killed" in run("history", "show").stdout


def test_a_run_that_did_not_start_is_not_kept() -> None:
    ask("How much?", "gone.txt")
    ask("How much?", "notes.txt", "--signature", "context, question -> trajectory")
    assert kept_runs() == []


def test_a_folder_that_cannot_be_written_loses_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("state").write_text("no folder", encoding="utf-8")
    result = ask("How much?", "notes.txt")
    assert (result.exit_code, result.stdout) == (0, "42\n")
    assert "Not kept in the history: " in result.stderr
    assert "--no-history" in result.stderr


def test_a_damaged_log_is_listed_and_the_others_too() -> None:
    ask("How much?", "notes.txt")
    (history_folder() / "99991231T000000.000000-1.jsonl").write_bytes(b'{"v": 1, "event": "ask\xff')
    listed = run("history")
    assert (listed.exit_code, "How much?" in listed.stdout) == (0, True)
    shown = run("history", "show", "1")
    assert (shown.exit_code, "contains no run that this version can read" in shown.stderr) == (2, True)


def test_addresses_with_a_password_are_kept_without_it() -> None:
    ask("See https://me:hidden-word@example.org/?", "notes.txt")
    texts = [path.read_text(encoding="utf-8") for path in kept_runs()]
    assert [json.loads(text.splitlines()[0])["question"] for text in texts] == ["See https://***@example.org/?"]


def test_the_history_is_deleted_on_demand() -> None:
    ask("How much?", "notes.txt")
    assert run("history", "clear").stdout == f"1 run deleted from {history_folder()}.\n"
    assert kept_runs() == []


def test_a_number_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_DSPY_HISTORY", "many")
    assert "RLM_DSPY_HISTORY must be a number of runs to keep" in ask("How much?", "notes.txt").stderr
