"""`batch.run`: each result is kept when it arrives, whatever runs it and whoever is killed."""

from __future__ import annotations

import builtins
import errno
import subprocess
import sys
import threading
import warnings
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import InvalidInputs, RLMError, Text, batch
from rlm_dspy.batch import bar
from rlm_dspy.errors import WorkersLost
from rlm_dspy.json_values import JsonLines
from rlm_dspy.testing import ScriptedLM
from tests.batch.counting import ANSWER, CONTEXT, CountingLM, Fails, examples, program
from tests.interpreters.waiting import comes_true, lives

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def spawned() -> Executor:
    """Make processes that share nothing with this one."""
    return ProcessPoolExecutor(1, get_context("spawn"))


@pytest.mark.parametrize(
    "executor",
    [None, ThreadPoolExecutor, lambda: ProcessPoolExecutor(2), spawned],
    ids=["default", "threads", "processes", "spawned"],
)
def test_every_example_has_its_row(executor: Any, lm: CountingLM, tmp_path: Path) -> None:
    """In threads and in processes, which read a long context from a file."""
    given = [*examples(2), *examples(4, Text(CONTEXT))[2:]]
    with dspy.context(lm=lm):
        rows = list(batch.run(program(), given, executor, tmp_path / "runs"))
    assert sorted((row.index, row.prediction.words) for row in rows) == [(n, 20_000 + n) for n in range(4)]
    assert {row.prediction.stop for row in rows} == {"submitted"}
    assert all(row.usage.calls == 1 and row.seconds > 0 and not row.stored for row in rows)
    assert lm.requests == 4
    assert not list((tmp_path / "runs").glob(".shared-*"))


def test_what_is_sent_of_a_run_is_small(lm: CountingLM, tmp_path: Path) -> None:
    """A long text is sent once for all runs, and the program too."""
    sizes: list[int] = []

    class Measured(ProcessPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
            sizes.append(len(fn.args[0]))  # type: ignore[attr-defined]
            return super().submit(fn, *args, **options)

    with dspy.context(lm=lm):
        list(batch.run(program(), examples(3), lambda: Measured(2), tmp_path / "runs"))
    assert max(sizes) < 2_000


def test_an_input_that_cannot_be_sent_fails_alone(lm: CountingLM, tmp_path: Path) -> None:
    """In processes as in threads."""
    given = [*examples(2), dspy.Example(context=threading.Lock(), number=2).with_inputs("context", "number")]
    with dspy.context(lm=lm):
        rows = list(batch.run(program(), given, lambda: ProcessPoolExecutor(1), tmp_path))
    errors = {row.index: row.error for row in rows}
    assert (errors[0], errors[1]) == ("", "")
    assert errors[2].startswith("TypeError: These inputs cannot be sent to other processes: cannot pickle")


def test_a_notebook_without_ipywidgets_has_no_bar_and_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library that draws it would warn, for each batch."""
    monkeypatch.setattr(builtins, "get_ipython", type("ZMQInteractiveShell", (), {}), raising=False)
    monkeypatch.setattr(bar, "find_spec", lambda name: None)
    texts = [dspy.Example(text="a").with_inputs("text")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(batch.run(Leaves(), texts, store=tmp_path))) == 1


def test_a_transient_error_is_tried_again_and_another_is_a_row(tmp_path: Path) -> None:
    """A failed example is run again by the next batch."""
    numbers = [dspy.Example(number=1).with_inputs("number")]
    busy = dspy.LMRateLimitError("busy")
    failing = Fails([busy, busy])
    (row,) = batch.run(failing, numbers, store=tmp_path / "a")
    assert (row.prediction.number, row.attempts, failing.calls) == (1, 3, 3)
    failing = Fails([busy, busy, busy])
    (row,) = batch.run(failing, numbers, store=tmp_path / "b")
    assert (row.prediction, row.attempts) == (None, 3)
    assert row.error.startswith("LMRateLimitError: ")
    failing = Fails([ValueError("no such number")])
    (row,) = batch.run(failing, numbers, store=tmp_path / "c")
    assert (row.error, failing.calls) == ("ValueError: no such number", 1)
    (row,) = batch.run(failing, numbers, store=tmp_path / "c")
    assert (row.error, row.prediction.number, row.stored) == ("", 1, False)


def test_an_error_in_a_worker_comes_home_with_the_trajectory(lm: CountingLM, tmp_path: Path) -> None:
    """Nothing that was paid for is lost."""
    broken = CountingLM(lm.made_with[0], reply="```python\nprint(1)\n```", fails_from=2)
    with dspy.context(lm=broken):
        (row,) = batch.run(program(), examples(1), lambda: ProcessPoolExecutor(1), tmp_path / "runs", retries=0)
    assert row.error.startswith("LMInvalidRequestError")
    assert [step["code"] for step in row.trajectory] == ["print(1)"]
    assert row.usage.calls == 2


def test_a_killed_worker_loses_no_result(tmp_path: Path) -> None:
    """At most what ran at the kill is paid again; the processes are made again."""
    (tmp_path / "requests").mkdir()
    (tmp_path / "bullet").touch()
    lm = CountingLM(tmp_path / "requests", seconds=0.05, kill="number: int, 5")
    with dspy.context(lm=lm):
        rows = list(batch.run(program(), examples(12), lambda: ProcessPoolExecutor(2), tmp_path / "runs"))
    assert sorted((row.index, row.prediction.words) for row in rows) == [(n, 20_000 + n) for n in range(12)]
    assert 12 < lm.requests <= 12 + 2


class DropsResults(Executor):
    """Runs what it is given, and breaks before it has returned the result."""

    def submit(self, task: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        task(*arguments, **options)
        future: Future[Any] = Future()
        future.set_exception(BrokenExecutor("a worker died"))
        return future


def test_a_result_on_its_way_from_an_executor_that_breaks_is_not_paid_again(tmp_path: Path) -> None:
    """A pool drops the results that it has not read when one of its workers dies."""
    (tmp_path / "requests").mkdir()
    lm = CountingLM(tmp_path / "requests")
    with dspy.context(lm=lm):
        rows = list(batch.run(program(), examples(5), DropsResults, tmp_path / "runs"))
    assert sorted(row.prediction.words for row in rows) == [20_000 + n for n in range(5)]
    assert lm.requests == 5


def test_an_example_that_kills_its_workers_fails_alone(tmp_path: Path) -> None:
    """All others have their results."""
    (tmp_path / "requests").mkdir()
    for number in range(9):
        (tmp_path / f"bullet{number}").touch()
    lm = CountingLM(tmp_path / "requests", seconds=0.02, kill="number: int, 2")
    with dspy.context(lm=lm):
        rows = list(batch.run(program(), examples(6), lambda: ProcessPoolExecutor(2), tmp_path / "runs"))
    assert sorted(row.index for row in rows if not row.error) == [0, 1, 3, 4, 5]
    (failed,) = [row for row in rows if row.error]
    assert failed.index == 2
    assert "3 workers died" in failed.error


def test_an_executor_that_cannot_be_made_again_says_so(tmp_path: Path) -> None:
    """The results that had arrived are in the store."""
    (tmp_path / "requests").mkdir()
    (tmp_path / "bullet").touch()
    lm = CountingLM(tmp_path / "requests", seconds=0.05, kill="number: int, 3")
    with dspy.context(lm=lm), ProcessPoolExecutor(1) as executor:
        with pytest.raises(WorkersLost, match=r"executor=lambda: ProcessPoolExecutor\(\.\.\.\)"):
            list(batch.run(program(), examples(6), executor, tmp_path / "runs"))
        rows = list(batch.run(program(), examples(6), store=tmp_path / "runs"))
    assert sorted(row.index for row in rows if row.stored) == [0, 1, 2]
    assert lm.requests == 7


SCRIPT = """
import sys, dspy
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from rlm_dspy import batch
from tests.batch.counting import CountingLM
from tests.batch.counting import examples, program
folder = Path(sys.argv[1])
dspy.configure(lm=CountingLM(folder / "requests", seconds=0.05))
executor = (lambda: ProcessPoolExecutor(2)) if sys.argv[2] == "processes" else None
for row in batch.run(program(), examples(12), executor, folder / "runs", progress=False):
    print(row.index, flush=True)
"""


@pytest.mark.parametrize("executor", [pytest.param("threads", marks=pytest.mark.long), "processes"])
def test_a_killed_batch_goes_on_where_it_was(executor: str, tmp_path: Path) -> None:
    """What had arrived is not paid for again; nothing is left over, nor do workers go on without it."""
    requests = tmp_path / "requests"
    requests.mkdir()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), executor]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        process.kill()
        process.wait()
        at_death = len(list(requests.iterdir()))
        assert comes_true(lambda: not lives(process.pid))
    paid = len(list(requests.iterdir()))
    workers_alive = 0 if executor == "threads" else 2
    assert paid <= at_death + workers_alive  # each worker may have begun its request before the death
    with dspy.context(lm=CountingLM(requests)):
        rows = list(batch.run(program(), examples(12), store=tmp_path / "runs"))
    assert sorted(row.index for row in rows) == list(range(12))
    stored = sum(row.stored for row in rows)
    assert stored >= 4
    assert len(list(requests.iterdir())) == paid + 12 - stored
    assert not list((tmp_path / "runs").glob(".shared-*"))


class Leaves(dspy.Module):
    """Calls `sys.exit`, as a library may."""

    def forward(self, text: str) -> str:
        if text == "leave":
            sys.exit(3)
        return text


@pytest.mark.parametrize("executor", [None, lambda: ProcessPoolExecutor(1)], ids=["threads", "processes"])
def test_a_program_that_calls_exit_has_a_row_with_its_error(executor: Any, tmp_path: Path) -> None:
    """No thread or process ends by it, for which the batch would wait for ever."""
    texts = [dspy.Example(text=text).with_inputs("text") for text in ("a", "leave", "b")]
    rows = sorted(batch.run(Leaves(), texts, executor, tmp_path), key=lambda row: row.index)
    assert [(row.prediction, row.error[:10]) for row in rows] == [("a", ""), (None, "SystemExit"), ("b", "")]


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (None, r"Example 2 is a NoneType; pass dspy\.Example"),
        (dspy.Example(text="c"), r"Example 2: Inputs have not been set"),
        (OSError("the disk is gone"), "the disk is gone"),
    ],
)
def test_examples_that_cannot_be_read_end_a_batch_after_the_rows_of_those_before(
    last: Any, told: str, tmp_path: Path
) -> None:
    """What has begun is paid for, and so it is yielded."""
    scripted = ScriptedLM(lambda messages: ANSWER)

    def given() -> Iterator[Any]:
        yield from examples(2)
        assert comes_true(lambda: len(scripted.script.calls) == 2)
        if isinstance(last, Exception):
            raise last
        yield last

    rows: list[int] = []
    with dspy.context(lm=scripted), pytest.raises(Exception, match=told):
        rows.extend(row.index for row in batch.run(program(), given(), store=tmp_path))
    assert sorted(rows) == [0, 1]


def test_a_batch_that_is_left_keeps_what_was_under_way(lm: CountingLM, tmp_path: Path) -> None:
    """No further example is begun."""
    slow = CountingLM(lm.made_with[0], seconds=0.2)
    with dspy.context(lm=slow, num_threads=2):
        for _ in batch.run(program(), examples(20), store=tmp_path / "runs"):
            break
        paid = lm.requests
        assert paid <= 6
        rows = list(batch.run(program(), examples(paid), store=tmp_path / "runs"))
    assert sum(row.stored for row in rows) == paid


def test_a_store_that_is_full_loses_no_result(
    lm: CountingLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is paid for is yielded; no further run begins; the next batch runs what is not stored."""
    rows: list[batch.Row] = []
    append = JsonLines.append

    def full(self: JsonLines, line: str) -> None:
        if len(rows) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, line)

    with dspy.context(lm=lm, num_threads=2):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space") as error:  # noqa: PT012
            patch.setattr(JsonLines, "append", full)
            for row in batch.run(program(), examples(30), store=tmp_path / "runs"):
                rows.append(row)  # noqa: PERF402 (those before the error count)
        assert {row.error for row in rows} == {""}
        assert len(rows) == lm.requests < 30
        again = list(batch.run(program(), examples(30), store=tmp_path / "runs"))
    assert "could not be stored" in error.value.__notes__[0]
    assert [row.error for row in again] == [""] * 30


def test_examples_are_read_as_they_are_needed(tmp_path: Path) -> None:
    """A generator may be without end."""

    def endless() -> Any:
        number = 0
        while True:
            yield dspy.Example(number=number).with_inputs("number")
            number += 1

    rows = batch.run(Fails([]), endless(), store=tmp_path)
    assert {next(rows).prediction.number for _ in range(3)} <= set(range(1_100))
    rows.close()  # type: ignore[attr-defined]


def test_one_batch_at_a_time_uses_a_store(tmp_path: Path) -> None:
    """A second one would pay for the same."""
    numbers = [dspy.Example(number=1).with_inputs("number")] * 2
    rows = batch.run(Fails([]), numbers, store=tmp_path)
    next(rows)
    with pytest.raises(RLMError, match="Another batch uses the store"):
        next(batch.run(Fails([]), numbers, store=tmp_path))
    assert len(list(rows)) == 1


def test_wrong_arguments_are_refused_with_the_fix(lm: CountingLM, tmp_path: Path) -> None:
    """Before anything is paid for."""
    with pytest.raises(TypeError, match=r"program must be a dspy\.Module"):
        batch.run("context -> words", examples(1), store=tmp_path)
    with pytest.raises(ValueError, match="retries must be 0 or more, not -1"):
        batch.run(program(), examples(1), store=tmp_path, retries=-1)
    with pytest.raises(TypeError, match=r"lambda: ProcessPoolExecutor\(4\), not 'threads'"):
        batch.run(program(), examples(1), "threads", store=tmp_path)  # type: ignore[arg-type]
    with dspy.context(lm=ScriptedLM([])), pytest.raises(TypeError, match="cannot be sent to other processes"):
        list(batch.run(program(), examples(1), lambda: ProcessPoolExecutor(1), tmp_path))
    with pytest.raises(ValueError, match="with_inputs"):
        list(batch.run(program(), [dspy.Example(context="", number=1)], store=tmp_path))
    assert lm.requests == 0


def test_an_input_that_does_not_fit_is_a_failed_row(tmp_path: Path) -> None:
    """The others go on."""
    with dspy.context(lm=ScriptedLM(lambda messages: ANSWER)):
        wrong = dspy.Example(contxt="a").with_inputs("contxt")
        rows = list(batch.run(program(), [wrong, *examples(1)], store=tmp_path))
    assert {row.index: row.error.split(":")[0] for row in rows} == {0: InvalidInputs.__name__, 1: ""}


def test_an_example_of_another_type_is_refused_with_the_type_to_pass(lm: CountingLM, tmp_path: Path) -> None:
    wrong: Any = [{"context": "to be", "number": 1}]
    with dspy.context(lm=lm), pytest.raises(TypeError, match=r"Example 0 is a dict; pass dspy\.Example"):
        list(batch.run(program(), wrong, store=tmp_path / "runs"))
