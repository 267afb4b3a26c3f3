"""What MLflow has of runs that were cut, and what `ask --trace` gives before it waits for MLflow."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.report.record import Record, recorded
from rlm_dspy.testing import ScriptedEngine, ScriptedLM
from tests.commands import LOOK, NEVER, SUBMIT_42, environment, read_until, running, scripted
from tests.playing import block
from tests.tracing.stores import call, span

if TYPE_CHECKING:
    from tests.tracing.stores import Store

ASKED = {"question": "How much?", "context": "The answer is 42. " * 100}


@pytest.mark.parametrize(
    ("error", "stop", "told"),
    [
        (KeyboardInterrupt(), "interrupted", "interrupted after 1 turn"),
        (dspy.LMServerError("down"), "failed", "down"),
    ],
)
def test_a_run_that_is_cut_has_its_question_its_turns_and_why_it_ended(
    store: Store, error: BaseException, stop: str, told: str
) -> None:
    """In its trace, whose files are those of any run."""
    lm = ScriptedLM([LOOK, error])
    with pytest.raises(type(error)):
        call(RLM("question, context -> answer", policy=None), lm, "blocking", **ASKED)
    trace = store.trace()
    assert (trace.info.state.value, trace.info.request_preview) == ("ERROR", "How much?")
    assert told in trace.info.response_preview
    root = span(trace, "RLM")
    assert (root.get_attribute("rlm.stop"), root.get_attribute("rlm.turns")) == (stop, 1)
    assert root.outputs["how it ended"].startswith(f"{stop} after 1 turn; 2 model calls")
    assert span(trace, "turn 1").status.status_code.value == "OK"
    last = span(trace, f"turn 2: {stop}")
    assert last.status.status_code.value == "ERROR"
    assert last.events[0].attributes["exception.message"] == (str(error) or stop)
    assert ("exception.stacktrace" in last.events[0].attributes) == (stop == "failed")
    assert told in root.events[0].attributes["exception.message"]
    assert len(store.files(trace)) == 2


async def test_a_sub_call_that_nobody_waits_for_keeps_no_trace_back(store: Store) -> None:
    """The run is cancelled while a model that cannot be stopped answers a sub-call."""
    begun, end = threading.Event(), threading.Event()

    def reply(messages: list[dict[str, str]]) -> str:
        if messages[-1]["content"] != "X":
            return block("llm_query('X')")
        begun.set()
        end.wait(60)
        return "x"

    slow = dspy.LM("scripted/slow", engine=ScriptedEngine(reply), cache=False, num_retries=0)  # has no async form
    with dspy.context(lm=ScriptedLM(reply), interpreter_factory=LocalPythonInterpreter):
        run = asyncio.create_task(RLM("question, context -> answer", sub_lm=slow, policy=None).acall(**ASKED))
        await asyncio.to_thread(begun.wait, 60)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    trace = store.trace()
    end.set()
    assert trace.info.state.value == "ERROR"
    assert trace.info.response_preview.startswith("interrupted after 1 turn")


def test_a_trace_is_there_while_its_run_goes_on(store: Store) -> None:
    """With its question: should its process be killed, it is not empty."""
    seen = []

    def reply(messages: list[dict[str, str]]) -> str:
        (trace,) = store.traces()
        root = trace.data.spans[0]
        lasts = root.end_time_ns is not None and root.end_time_ns >= root.start_time_ns
        seen.append((trace.info.state.value, trace.info.request_preview, root.name, lasts))
        return SUBMIT_42

    rlm = RLM("question, context -> answer", policy=None, refuse_blind_submit=False)
    call(rlm, ScriptedLM(reply), "blocking", **ASKED)
    assert seen == [("IN_PROGRESS", "How much?", "RLM", True)]  # without an end, MLflow shows a negative duration
    assert store.trace().info.state.value == "OK"


def test_a_second_interrupt_loses_no_step() -> None:
    """It comes while the interpreter is closed."""

    class Stubborn(LocalPythonInterpreter):
        def shutdown(self) -> None:
            super().shutdown()
            raise KeyboardInterrupt

    lm, rlm = ScriptedLM([LOOK, KeyboardInterrupt()]), RLM("question, context -> answer", policy=None)
    with dspy.context(lm=lm, interpreter_factory=Stubborn):
        record, error = recorded(rlm, ASKED)
    assert isinstance(error, KeyboardInterrupt)
    assert [step.output for step in record.trajectory] == ["1800"]


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with one text."""
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("The answer is 42.\n", encoding="utf-8")
    return tmp_path


def ended(command: list[str], stdout: Any = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment(), check=False
    )


def test_an_answer_that_cannot_be_printed_is_kept(in_folder: Path) -> None:
    """Standard output is full, closed, or its reader is gone."""
    command = scripted("ask", "How much?", "notes.txt", replies=[SUBMIT_42])
    pipe = os.pipe()
    os.close(pipe[0])
    for stdout in (Path("/dev/full").open("wb"), os.fdopen(pipe[1], "wb")):  # noqa: SIM115
        with stdout:
            done = ended(command, stdout)
        assert done.returncode == 3, done.stderr
        assert "could not be printed" in done.stderr
        assert done.stderr.endswith("The run is in unprinted.rlm.json.\n")
        assert Record.load("unprinted.rlm.json").outputs == {"answer": "42"}
        Path("unprinted.rlm.json").unlink()
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command, "--save", "run.json"]
    done = ended(closed)
    assert (done.returncode, Record.load("run.json").outputs) == (3, {"answer": "42"})
    assert not Path("unprinted.rlm.json").exists()


def test_nobody_reads_standard_error_and_the_answer_is_printed(in_folder: Path) -> None:
    """After the reader of the steps is gone."""
    command = scripted("ask", "How much?", "notes.txt", replies=[LOOK, SUBMIT_42], seconds=0.5)
    with running(command) as process:
        read_until(process, "--- turn 1")
        assert process.stderr is not None
        process.stderr.close()
        assert process.stdout is not None
        assert process.stdout.read() == "42\n"
        assert process.wait(60) == 0


@pytest.fixture
def database(mlflow_folder: Path, store: Store) -> Path:
    """Return the database of the store of the tests, which is made."""
    return mlflow_folder / "mlflow.db"


def logging(command: list[str], store: Store) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    """Run a command that logs to a store."""
    return running(command, MLFLOW_TRACKING_URI=store.uri, MLFLOW_EXPERIMENT_NAME=store.experiment)


def test_ask_gives_the_answer_before_it_waits_for_mlflow(in_folder: Path, database: Path, store: Store) -> None:
    """And tells the truth when the wait is interrupted: MLflow's database is locked meanwhile."""
    command = scripted("ask", "How much?", "notes.txt", "--trace", "--save", "a.json", replies=[LOOK, SUBMIT_42])
    with (
        logging(command, store) as process,
        contextlib.closing(sqlite3.connect(database, isolation_level=None)) as lock,
    ):
        read_until(process, "How much?")
        lock.execute("PRAGMA busy_timeout = 60000")
        lock.execute("BEGIN IMMEDIATE")
        read_until(process, "Storing the trace in sqlite:///")
        assert process.stdout is not None
        assert process.stdout.readline() == "42\n"
        assert Record.load("a.json").outputs == {"answer": "42"}
        process.send_signal(signal.SIGINT)
        read_until(process, "Interrupted. Ending the trace")
        lock.execute("COMMIT")
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "before the first turn" not in err
    assert err.startswith("The trace in MLflow may be incomplete.")


@pytest.mark.long
def test_a_run_that_is_terminated_is_killed_in_mlflow(in_folder: Path, database: Path, store: Store) -> None:
    """Its trace says interrupted."""
    command = scripted("ask", "How much?", "notes.txt", "--trace", replies=[LOOK, NEVER])
    with logging(command, store) as process:
        read_until(process, "--- turn 1")
        time.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "The run is in interrupted.rlm.json." in err
    info = store.trace().info
    assert info.state.value == "ERROR"
    assert info.response_preview.startswith("interrupted after 1 turn")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT status FROM runs WHERE name = 'How much?' ORDER BY start_time")
        assert rows.fetchall()[-1] == ("KILLED",)


@pytest.mark.long
def test_a_run_whose_process_is_killed_leaves_its_question_and_turns(
    in_folder: Path, database: Path, store: Store
) -> None:
    """In a trace that is in progress, as nobody was there to end it."""
    command = scripted("ask", "Killed?", "notes.txt", "--trace", replies=[LOOK, "slow"], seconds=20.0)
    with logging(command, store) as process:
        read_until(process, "--- turn 1")
        until = time.monotonic() + 60
        while not _has_span(database, "turn 1") and time.monotonic() < until and process.poll() is None:
            time.sleep(0.1)
        process.kill()
    trace = store.trace()
    assert (trace.info.state.value, trace.info.request_preview) == ("IN_PROGRESS", "Killed?")
    assert {"RLM", "turn 1", "act", "code"} <= {each.name for each in trace.data.spans}


def _has_span(database: Path, name: str) -> bool:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        query = (
            "SELECT 1 FROM spans JOIN trace_info ON trace_id = request_id WHERE request_preview = ? AND name = ?"
        )
        return connection.execute(query, ("Killed?", name)).fetchone() is not None
