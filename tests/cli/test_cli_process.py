"""The command line as a process: pipes, terminals, signals."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from rlm_dspy.cli.app import app
from rlm_dspy.observe.console import Lines, Terminal, view_on
from rlm_dspy.report.record import Record
from tests.commands import (
    EMBEDDED_PROGRAM,
    LOOK,
    NEVER,
    SUBMIT_42,
    environment,
    read_until,
    running,
    scripted,
    wait_for_event,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # as `main` does
    Path("notes.txt").write_text("The answer is 42.\n", encoding="utf-8")


def test_piped_output_has_no_colours_and_no_boxes() -> None:
    command = scripted("ask", "How much?", "notes.txt", replies=[LOOK, SUBMIT_42])
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), stdin=subprocess.DEVNULL, check=False
    )
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert not re.search(r"[\x1b\u2500-\u257f]", done.stderr)


@pytest.mark.parametrize(
    ("then", "event"),
    [(NEVER, "lm_started"), ("```python\nimport time\nprint('begun')\ntime.sleep(600)\n```", "cell_started")],
    ids=["model", "code"],
)
def test_ctrl_c_ends_a_run_and_saves_its_steps(then: Any, event: str) -> None:
    command = scripted("ask", "How much?", "notes.txt", "--log", "run.jsonl", replies=[LOOK, then])
    with running(command) as process:
        wait_for_event(Path("run.jsonl"), event, 2)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert err.endswith(
        "Interrupted. The run is in interrupted.rlm.json. Go on with it: rlm-dspy resume run.jsonl FILE...\n"
    )
    assert "Traceback" not in err
    record = Record.load("interrupted.rlm.json")
    assert (record.stop, record.trajectory[0].output) == ("interrupted", "18")
    assert record.usage.output_tokens > 0


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)],
    ids=["TERM", "HUP", "INT"],
)
def test_a_signal_that_comes_twice_ends_a_run_once_and_loses_nothing(sent: signal.Signals, code: int) -> None:
    """`timeout` sends SIGTERM to the process and to its group; `uv run` passes on the terminal's SIGINT."""
    written = ["--save", "kept.json", "--log", "run.jsonl", "--report", "run.html"]
    command = scripted("ask", "How much?", "notes.txt", *written, replies=[LOOK, NEVER])
    with running(command) as process:
        wait_for_event(Path("run.jsonl"), "lm_started", 2)
        time.sleep(0.2)
        for _ in range(3):
            process.send_signal(sent)
            time.sleep(0.05)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out, "Traceback" in err) == (code, "", False), err
    assert Record.load("kept.json").stop == "interrupted"
    assert "run_ended" in Path("run.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert "interrupted" in Path("run.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("smollm2")
def test_ctrl_c_ends_the_embedded_model_while_it_writes() -> None:
    arguments = ["ask", "Tell a long story.", "notes.txt", "--policy", "none", "--save", "kept.json"]
    with running([sys.executable, "-c", EMBEDDED_PROGRAM, *arguments]) as process:
        read_until(process, "--- turn 1")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.endswith("Interrupted. The run is in kept.json.\n")
    record = Record.load("kept.json")
    assert record.stop == "interrupted"
    assert len(record.trajectory) >= 1


@contextlib.contextmanager
def on_a_terminal(command: list[str]) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a command on a pseudo-terminal of 100 columns; yield our end of it."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 100, 0, 0))
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment()) as process:
        os.close(theirs)
        try:
            yield ours, process
        finally:
            process.kill()
            os.close(ours)


def read_terminal(ours: int, until: str) -> str:
    """Return what a terminal shows, colours included, until it has shown this."""
    shown = b""
    while until.encode() not in shown:
        assert select.select([ours], [], [], 120)[0], f"no {until!r} in {shown!r}"
        shown += os.read(ours, 65_536)
    return shown.decode(errors="replace")  # it may end within a character


def test_on_a_terminal_the_steps_appear_as_they_happen() -> None:
    command = scripted("ask", "How much?", "notes.txt", replies=[LOOK, SUBMIT_42], seconds=0.8)
    with on_a_terminal(command) as (ours, process):
        assert "How much?" in read_terminal(ours, "turn 1 of 20: the model writes")
        first = read_terminal(ours, "turn 2 of 20: the model writes")
        assert process.poll() is None
        rest = read_terminal(ours, "42\r\n")
        assert process.wait(timeout=120) == 0
    assert "I look first." in first
    assert re.search(r"\x1b\[\d+m", first)
    assert "submitted after 2 turns" in rest


def test_a_person_approves_code_and_answer_at_the_terminal() -> None:
    """Refuses once in own words; the live line is not drawn over the question."""
    approved = ["--approve", "--approve-answer", "--save", "run.json"]
    command = scripted("ask", "How much?", "notes.txt", *approved, replies=[LOOK, SUBMIT_42])
    with on_a_terminal(["setsid", "--ctty", "--wait", *command]) as (ours, process):
        first = read_terminal(ours, "what to do instead: ")
        os.write(ours, b"Submit at once.\n")
        read_terminal(ours, "what to do instead: ")
        os.write(ours, b"y\n")
        read_terminal(ours, "what is wrong: ")
        os.write(ours, b"y\n")
        rest = read_terminal(ours, "\r\n42\r\n")
        assert process.wait(timeout=120) == 0
    assert "print(len(context))" in re.sub(r"\x1b\[[\d;]*m", "", first)
    assert "submitted after 2 turns" in rest
    steps = Record.load("run.json").trajectory
    assert [(step.kind, step.refusals) for step in steps] == [("denied", ("Submit at once.",)), ("submitted", ())]


def test_a_person_pauses_the_run() -> None:
    command = scripted("ask", "How much?", "notes.txt", "--approve", replies=[LOOK, SUBMIT_42])
    with on_a_terminal(["setsid", "--ctty", "--wait", *command]) as (ours, process):
        read_terminal(ours, "what to do instead: ")
        os.write(ours, b"p\n")
        read_terminal(ours, "Paused. The run is in interrupted.rlm.json.")
        assert process.wait(timeout=120) == 4
    assert Record.load("interrupted.rlm.json").stop == "paused"


def test_a_paused_run_goes_on_when_the_person_has_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only with `--approve`: else its code would run unseen. The model is not asked again."""
    command = scripted("ask", "How much?", "notes.txt", "--approve", "--log", "run.jsonl", replies=[SUBMIT_42])
    with on_a_terminal(["setsid", "--ctty", "--wait", *command]) as (ours, process):
        read_terminal(ours, "what to do instead: ")
        os.write(ours, b"p\n")
        read_terminal(ours, "rlm-dspy resume run.jsonl FILE...")
        assert process.wait(timeout=120) == 4
    command = scripted("resume", "run.jsonl", "notes.txt", replies=[])
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, "asked for approval (on_code). Add --approve." in done.stderr) == (2, True)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    command = scripted("resume", "run.jsonl", "notes.txt", "--approve", "--model", "openai/x", replies=[])
    with on_a_terminal(["setsid", "--ctty", "--wait", *command]) as (ours, process):
        assert "SUBMIT" in re.sub(r"\x1b\[[\d;]*m", "", read_terminal(ours, "what to do instead: "))
        os.write(ours, b"y\n")
        read_terminal(ours, "\r\n42\r\n")
        assert process.wait(timeout=120) == 0


def test_approval_without_a_terminal_is_refused_before_the_run() -> None:
    command = scripted("ask", "How much?", "notes.txt", "--approve", replies=[])
    done = subprocess.run(
        ["setsid", "--wait", *command], capture_output=True, text=True, env=environment(), check=False, input=""
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: --approve: Nobody can be asked: this process has no terminal. Run it in")


HEAVY = """
import sys
{}
found = {{name.split(".")[0] for name in sys.modules}} & {{"dspy", "litellm", "mlflow"}}
sys.exit(f"loaded: {{sorted(found)}}" if found else 0)
"""
COMMAND = """
from rlm_dspy.cli import main
sys.argv[:] = {!r}
try:
    main()
except SystemExit as end:
    assert not end.code
"""


@pytest.mark.parametrize(
    "arguments", [["--version"], ["--help"], *([name, "--help"] for name in ("ask", "replay", "optimize"))]
)
def test_the_version_and_the_help_are_printed_without_dspy(arguments: list[str]) -> None:
    """DSPy and MLflow take seconds to import."""
    program = HEAVY.format(COMMAND.format(["rlm-dspy", *arguments]))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rlm-dspy" in done.stdout


def test_the_package_is_imported_without_dspy() -> None:
    done = subprocess.run([sys.executable, "-c", HEAVY.format("import rlm_dspy, rlm_dspy.limits")], check=False)
    assert done.returncode == 0


def test_the_help_of_a_terminal_and_of_a_pipe_say_the_same_codes() -> None:
    command = [sys.executable, "-m", "rlm_dspy", "ask", "--help"]
    with on_a_terminal(command) as (ours, process):
        shown = read_terminal(ours, "Show tracebacks")
        process.wait(timeout=120)
    assert "130  interrupted" in shown
    assert "\N{BOX DRAWINGS LIGHT HORIZONTAL}" in shown


def test_a_terminal_that_cannot_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setenv("TERM", "xterm")
        assert isinstance(view_on(stream), Terminal)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(view_on(stream), Lines)
    os.close(ours)


@pytest.mark.long
def test_trace_logs_the_run_to_mlflow_and_says_how_to_look_at_it() -> None:
    command = scripted("ask", "How much?", "notes.txt", "--trace", replies=[LOOK, SUBMIT_42])
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), stdin=subprocess.DEVNULL, check=False
    )
    opening, question, *_, storing, hint = done.stderr.splitlines()
    assert (opening, question) == ("Opening MLflow at sqlite:///mlflow.db ...", "How much?")
    assert storing == "Storing the trace in sqlite:///mlflow.db ..."
    assert hint == "Logged to MLflow. View it: rlm-dspy ui"
    assert (done.returncode, done.stdout) == (0, "42\n")
    assert logged_spans(Path("mlflow.db")).count("act") == 2


def logged_spans(store: Path) -> list[str]:
    """Return the names of the spans in a store of MLflow's."""
    with contextlib.closing(sqlite3.connect(store)) as connection:
        return [name for (name,) in connection.execute("select name from spans")]


def test_doctor_prints_what_holds_here() -> None:
    """Each guarantee in a line, and success as its exit code where the default policy can be held."""
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0
    assert "no network" in done.output
    assert "clean environment" in done.output
