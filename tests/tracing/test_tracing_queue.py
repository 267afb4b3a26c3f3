"""What is exported, and when: no server, slow or away, costs a run time, and none loses a trace."""

from __future__ import annotations

import contextlib
import http.server
import logging
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import dspy
import mlflow
import pytest

from rlm_dspy import RLM, tracing
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.tracing import export_queue
from rlm_dspy.tracing._mlflow_compat import Task
from rlm_dspy.tracing.export_queue import ExportQueue, installed_queue
from tests.interrupting import interrupted_everywhere
from tests.playing import block
from tests.tracing.stores import Store, call

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIGNATURE = "context, question -> answer: list[str]"


@pytest.fixture
def hanging() -> Iterator[str]:
    """Give the address of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_hangs_holds_nothing_up_and_is_told_of_once(
    store: Store, hanging: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Runs end and their answers are there; nothing waits for their traces."""
    mlflow.set_tracking_uri(hanging)
    module = RLM(SIGNATURE)
    began = time.monotonic()
    for _ in range(3):
        lm = ScriptedLM([block("SUBMIT(answer=[question])")])
        assert call(module, lm, "blocking", context="c", question="Which?").answer == ["Which?"]
    assert time.monotonic() - began < 40  # MLflow's own limit for one request is two minutes
    assert not tracing.flush(20)
    queue = installed_queue()
    assert queue is not None
    assert not queue.open
    assert [record.message for record in caplog.records if "does not answer" in record.message] == [
        f"{hanging} does not answer. Runs go on; their traces wait until it does."
    ]
    mlflow.set_tracking_uri(store.uri)


class Healthy(http.server.BaseHTTPRequestHandler):
    """Answers whatever it is asked."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (as http.server names it)
        """Say nothing."""


@contextlib.contextmanager
def answering(port: int) -> Iterator[None]:
    """Run a server that answers in this scope."""
    with http.server.HTTPServer(("127.0.0.1", port), Healthy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> int:
    """Give the port of a server that is away; a queue asks for it often."""
    monkeypatch.setattr(export_queue, "_AGAIN_AFTER_SECONDS", 0.1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _said(caplog: pytest.LogCaptureFixture, port: int) -> list[str]:
    return [record.message.partition(f"{port} ")[2] for record in caplog.records if str(port) in record.message]


def test_traces_wait_for_a_server_that_is_away(caplog: pytest.LogCaptureFixture, away: int) -> None:
    """Those of runs that begin meanwhile too; none is lost."""
    done: list[str] = []
    box = export_queue.ExportQueue(f"http://127.0.0.1:{away}")
    box.put(Task(done.append, ("before",)))
    assert not box.flush(seconds=30)
    assert not box.open
    assert box.accepts
    box.put(Task(done.append, ("meanwhile",)))
    assert (box.waiting, done) == (2, [])
    with answering(away):
        until = time.monotonic() + 30
        while box.waiting and time.monotonic() < until:
            time.sleep(0.01)
        assert box.flush(seconds=30)
    assert done == ["before", "meanwhile"]
    assert _said(caplog, away) == [
        "does not answer. Runs go on; their traces wait until it does.",
        "answers again. Lost parts of traces: 0.",
    ]


class Failing(Healthy):
    """Is healthy, and fails at every request."""

    requests = 0

    def do_POST(self) -> None:
        type(self).requests += 1
        self.send_response(503)
        self.end_headers()


def test_a_request_of_mlflow_in_the_thread_of_its_caller_is_repeated_once(store: Store) -> None:
    """MLflow repeats it for four minutes, and makes twenty for one evaluation."""
    with http.server.HTTPServer(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(mlflow.MlflowException, match="503"):
            mlflow.MlflowClient(f"http://127.0.0.1:{server.server_port}").log_metric("run", "score", 1.0)
        server.shutdown()
    assert Failing.requests == 2


def test_an_evaluation_whose_server_goes_away_gives_its_score_and_leaves_no_run_open(
    store: Store, away: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Else what is logged later goes into the run of this evaluation."""
    example = dspy.Example(context="c", question="Which?").with_inputs("context", "question")

    def right(_example: dspy.Example, _prediction: dspy.Prediction, _trace: Any = None) -> bool:
        mlflow.set_tracking_uri(f"http://127.0.0.1:{away}")
        return True

    evaluate = dspy.Evaluate(devset=[example], metric=right, num_threads=1, display_progress=False)
    with dspy.context(
        lm=ScriptedLM([block("SUBMIT(answer=[question])")]), interpreter_factory=LocalPythonInterpreter
    ):
        assert evaluate(RLM(SIGNATURE)).score == 100.0
    assert mlflow.active_run() is None
    mlflow.set_tracking_uri(store.uri)


def test_no_trace_is_begun_before_its_experiment_is_chosen(caplog: pytest.LogCaptureFixture, away: int) -> None:
    """It is chosen as soon as the server answers, also if no run asks for it; else traces go to another one."""
    done: list[str] = []
    box = export_queue.ExportQueue(f"http://127.0.0.1:{away}")
    box.close(then=lambda: done.append("chosen"))
    box.put(Task(done.append, ("not taken",)))
    assert not box.flush(seconds=1)
    assert not box.accepts
    with answering(away):
        until = time.monotonic() + 30
        while not box.accepts and time.monotonic() < until:
            time.sleep(0.01)
        box.put(Task(done.append, ("stored",)))
        assert box.flush(seconds=30)
    assert done == ["chosen", "stored"]
    assert _said(caplog, away) == [
        "does not answer. Runs go on; they are not traced until it does.",
        "answers again. Lost parts of traces: 1.",
    ]


@pytest.mark.parametrize("failures", [1, 9])
def test_spans_that_were_not_stored_are_stored_again(failures: int, caplog: pytest.LogCaptureFixture) -> None:
    """MLflow says in a debug message alone that a database was locked; if it stays so, it is told and counted."""
    tries: list[str] = []

    def store_spans() -> None:
        tries.append("spans")
        if len(tries) <= failures:
            log = logging.getLogger("mlflow.tracing.export.mlflow_v3")
            log.debug("Failed to log span to MLflow backend: %s", "database is locked")

    box = export_queue._made("sqlite:///locked.db")
    box.put(Task(store_spans, ()))
    box.put(Task(tries.append, ("the end",)))
    stored = box.flush(seconds=30)
    told = [record.message for record in caplog.records if "not stored whole" in record.message]
    if failures == 1:
        assert (stored, box.lost, tries, told) == (True, 0, ["spans", "spans", "the end"], [])
    else:
        assert (stored, box.lost, tries) == (False, 1, ["spans", "spans", "spans", "the end"])
        assert told == ["A trace was not stored whole: Failed to log span to MLflow backend: database is locked"]


class OneByOne(export_queue.ExportQueue):
    """Stores one task while it is waited for, as a store does on a busy machine."""

    def flush(self, terminate: bool = False, seconds: float = 0.0) -> bool:
        if self._tasks:
            self._tasks.popleft().handle()
        return not self._tasks


def test_the_end_of_a_process_waits_as_long_as_something_is_stored() -> None:
    done: list[int] = []
    box = OneByOne("sqlite:///slow.db")
    box._tasks.extend(Task(done.append, (number,)) for number in range(5))
    export_queue._at_exit(box)
    assert done == [0, 1, 2, 3, 4]


def test_a_process_that_ends_right_after_a_run_has_stored_its_trace(store: Store, tmp_path: Path) -> None:
    program = f"""
import dspy
from rlm_dspy import RLM, tracing
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM

tracing.autolog(store="{store.uri}", experiment="short")
lm = ScriptedLM(["```python\\nSUBMIT(answer='ok')\\n```"])
with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
    RLM("question -> answer")(question="?")
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_EXPERIMENT")}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment, timeout=300)
    with contextlib.closing(sqlite3.connect(store.folder / "mlflow.db")) as database:
        traces = "select request_id from trace_info join experiments using (experiment_id) where name = 'short'"
        ((trace,),) = database.execute(traces).fetchall()
        assert database.execute("select count(*) from spans where trace_id = ?", (trace,)).fetchone()[0] > 3


def test_an_interrupt_while_a_task_is_queued_leaves_the_queue_to_others() -> None:
    """Ctrl-C comes in the thread of the run, which queues parts of its trace."""

    def stores(queue: ExportQueue) -> None:
        queue.put(Task(int, (), "not stored"))
        assert queue.flush(seconds=10)

    def made() -> ExportQueue:
        queue = ExportQueue("a file")
        stores(queue)  # its thread runs
        return queue

    def puts(queue: ExportQueue) -> None:
        queue.put(Task(int, (), "not stored"))

    assert interrupted_everywhere(made, puts, stores, export_queue) > 3
