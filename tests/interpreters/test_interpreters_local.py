import asyncio
import contextvars
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.dummies import DummyLM
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy.concurrency.timeouts import in_thread
from rlm_dspy.interpreters import CellError, LocalPythonInterpreter, ScriptedInterpreter, local
from tests.interpreter_contract import SECONDS, ExecutionContract


class TestLocalPythonInterpreter(ExecutionContract):
    make = LocalPythonInterpreter


@pytest.fixture(autouse=True)
def process_as_found(capsys: pytest.CaptureFixture[str]) -> Any:
    """After each test no stand-in is in place, and no cell printed past its output."""
    before = [sys.modules["__main__"], threading.Thread.start, Path.cwd()]
    yield
    assert [sys.modules["__main__"], threading.Thread.start, Path.cwd()] == before
    assert not isinstance(sys.stdout, local._StandIn)
    assert not isinstance(sys.stderr, local._StandIn)
    assert capsys.readouterr().out == ""


def pair(**tools: Callable[..., Any]) -> list[LocalPythonInterpreter]:
    return [LocalPythonInterpreter(tools), LocalPythonInterpreter(tools)]


@given(st.sampled_from([object(), [1], {"k": {1, 2}}, b"bytes", io.StringIO(), len, 1.5, float("nan"), "text"]))
def test_objects_pass_as_themselves(value: object) -> None:
    """Into the cell, through a tool and back, and out of SUBMIT."""
    seen = []

    def ask(item: object) -> object:
        seen.append(item)
        return item

    repl = LocalPythonInterpreter({"ask": ask}, [{"name": "answer"}])
    assert repl.execute("SUBMIT(ask(value))", {"value": value}).output["answer"] is value
    assert seen[0] is value


def test_an_error_of_a_tool_passes_as_itself() -> None:
    """Code can catch it by its own class, and the host finds it as the cause."""

    class Refused(Exception):  # noqa: N818 (a name that no builtin has)
        pass

    def ask() -> None:
        raise Refused

    repl = LocalPythonInterpreter({"ask": ask})
    assert repl.execute("try:\n    ask()\nexcept Refused:\n    print('caught')", {"Refused": Refused}) == "caught"
    with pytest.raises(CellError) as caught:
        repl.execute("ask()")
    assert isinstance(caught.value.__cause__, Refused)


def test_cells_run_in_the_calling_thread() -> None:
    """As a debugger, a GUI or a connection to a database expects."""
    assert LocalPythonInterpreter().execute("import threading\nthreading.get_ident()") == threading.get_ident()


def test_what_a_cell_sets_in_its_context_stays_in_it() -> None:
    """The host's context is copied."""
    variable = contextvars.ContextVar("variable", default="host")
    LocalPythonInterpreter().execute("variable.set('cell')", {"variable": variable})
    assert variable.get() == "host"


def test_output_of_cells_that_run_at_once_is_kept_apart() -> None:
    """Also of the threads they start, and what their tools print is the host's."""
    together = threading.Barrier(8)
    code = (
        "import sys, threading\n"
        "for turn in range(20):\n"
        "    meet()\n"
        "    print(me, turn)\n"
        "    t = threading.Thread(target=lambda: print(me, turn, file=sys.stderr)); t.start(); t.join()\n"
    )

    def run(me: int) -> Any:
        with LocalPythonInterpreter({"meet": lambda: together.wait(SECONDS)}) as repl:
            return repl.execute(code, {"me": me})

    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(run, range(8)))
    assert outputs == ["\n".join(f"{me} {turn}\n{me} {turn}" for turn in range(20)) for me in range(8)]


def test_what_the_host_prints_while_a_cell_runs_is_the_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    """From a tool and from another thread; also through the attributes of its stream."""

    def tool() -> None:
        sys.stdout.write("tool\n")
        threads = [threading.Thread(target=print, args=("thread",))]
        threads[0].start()
        threads[0].join()
        sys.stderr.writelines(["lines"])
        assert sys.stdout.encoding == before.encoding

    before = sys.stdout
    assert LocalPythonInterpreter({"tool": tool}).execute("print('cell')\ntool()") == "cell"
    assert capsys.readouterr() == ("tool\nthread\n", "lines")


def test_an_error_in_a_thread_of_the_cell_is_in_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python prints it."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    output = LocalPythonInterpreter().execute(
        "import threading\nt = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()"
    )
    assert output.endswith("ZeroDivisionError: division by zero")


def test_a_thread_that_outlives_its_cell_prints_into_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between cells it prints where the process prints."""
    repl = LocalPythonInterpreter({"tick": lambda: ticks.wait(SECONDS)})
    ticks = threading.Event()
    repl.execute("import threading\nt = threading.Thread(target=lambda: (tick(), print('late'))); t.start()")
    assert repl.execute("go()\nt.join()", {"go": ticks.set}) == "late"


@pytest.mark.parametrize(
    "code",
    [
        "import sys, io\nsys.stdout = io.StringIO()",
        "import sys\nsys.stdout = sys.stderr = None",
        "import sys\nsys.stdout = sys.__stdout__; sys.stderr = sys.__stderr__",
        "import sys\nsys.stdout, sys.stderr = sys.stderr, sys.stdout",
        "import contextlib, io\nredirect = contextlib.redirect_stdout(io.StringIO())\nredirect.__enter__()",
        "import sys\nsys.stdout = open('/dev/null', 'w')\nsys.stdout.close()",
        "import sys\ndel sys.stdout",
    ],
)
def test_a_stream_that_a_cell_replaces_is_put_back(code: str) -> None:
    """At its end at the latest, and the next cell's output is captured."""
    repl, before = LocalPythonInterpreter(), (sys.stdout, sys.stderr)
    repl.execute(code)
    assert (sys.stdout, sys.stderr) == before
    assert repl.execute("print('captured')") == "captured"
    assert (sys.stdout, sys.stderr) == before


def test_redirects_of_cells_that_cross_leave_nothing_behind() -> None:
    """The one ends while the other is still inside."""
    together = threading.Barrier(2)
    code = (
        "import contextlib, io\n"
        "for _ in range(me): meet()\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    meet(); meet()\n"
        "for _ in range(1 - me): meet()\n"
    )
    repls, before = pair(meet=lambda: together.wait(SECONDS)), sys.stdout
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda me: repls[me].execute(code, {"me": me}), range(2)))
    assert sys.stdout is before
    assert repls[0].execute("print('captured')") == "captured"


def test_a_redirect_in_a_cell_works() -> None:
    """Code that captures its own output gets it."""
    code = "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as f: print('a')\nf.getvalue()"
    assert LocalPythonInterpreter().execute(code) == "a\n"


def test_a_handler_made_in_a_cell_writes_where_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    """In a later cell to that cell's output, on the host to the host's stream."""
    repl = LocalPythonInterpreter()
    repl.execute("import logging\nlog = logging.Logger('own')\nlog.addHandler(logging.StreamHandler())")
    assert repl.execute("log.warning('in a cell')") == "in a cell"
    repl._session.cells.namespace["log"].warning("on the host")
    assert capsys.readouterr().err == "on the host\n"


def test_a_directory_that_a_cell_changes_is_its_sessions(tmp_path: Path) -> None:
    """The process is back where it was after the cell, the session where it was in the next."""
    first, second = pair()
    before = Path.cwd()
    with pytest.raises(CellError):
        first.execute(f"import os\nos.chdir({str(tmp_path)!r})\n1 / 0")
    assert Path.cwd() == before
    assert first.execute("print(os.getcwd())") == str(tmp_path)
    assert second.execute("import os; print(os.getcwd())") == str(before)
    first.execute(f"os.chdir({str(before)!r})")
    assert first.execute("print(os.getcwd())") == str(before)


def test_a_directory_that_is_deleted_under_the_process_is_no_trouble(tmp_path: Path) -> None:
    """The cell's is given up, the host's is back."""
    repl = LocalPythonInterpreter()
    (tmp_path / "gone").mkdir()
    repl.execute(f"import os\nos.chdir({str(tmp_path / 'gone')!r})\nos.rmdir(os.getcwd())")
    assert repl.execute("print(os.getcwd())") == os.getcwd()  # noqa: PTH109 (the same text)


def test_cells_that_change_the_directory_at_once_leave_it_as_it_was(tmp_path: Path) -> None:
    """In whatever order they end."""
    together = threading.Barrier(2)
    before = Path.cwd()
    code = "import os\nfor _ in range(me): meet()\nos.chdir(path)\nmeet()\nfor _ in range(1 - me): meet()"
    repls = pair(meet=lambda: together.wait(SECONDS))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda me: repls[me].execute(code, {"me": me, "path": str(tmp_path)}), range(2)))
    assert Path.cwd() == before


def test_main_is_each_sessions_own_and_the_hosts() -> None:
    """Classes of cells pickle in their own session; the host's `__main__` is not touched."""
    host = sys.modules["__main__"]
    define = "class C:\n    def __eq__(self, other): return type(other) is C\n    __hash__ = None\n"
    first, second = pair(name=lambda: sys.modules["__main__"].__spec__)
    first.execute(define)
    second.execute(define)
    code = "import pickle, __main__\npickle.loads(pickle.dumps(C())) == C(), __main__.C is C"
    assert [repl.execute(code) for repl in (first, second)] == [[True, True]] * 2
    first.execute("__main__.extra = 1")
    assert first.execute("extra, 'C' in dir(__main__)") == [1, True]
    assert not hasattr(host, "extra")
    assert first.execute("name()") == repr(host.__spec__) or host.__spec__ is None


def test_a_value_of_a_cells_class_lives_on_after_the_session() -> None:
    """It is an object like any other."""
    with LocalPythonInterpreter(output_fields=[{"name": "output"}]) as repl:
        code = "import math\nclass C:\n    def area(self): return math.floor(3.9)\nSUBMIT(C())"
        value = repl.execute(code).output["output"]
    assert value.area() == 3
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(value)


def test_ctrl_c_reaches_the_caller() -> None:
    """It is the person's; the session goes on."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    repl = LocalPythonInterpreter({"press": lambda: None})
    code = "x = 1\nimport signal\nsignal.raise_signal(signal.SIGINT)\nwhile True: pass"
    try:
        with pytest.raises(KeyboardInterrupt):
            repl.execute(code)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert repl.execute("x") == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_cell_that_starts_threads_is_stopped() -> None:
    """The interrupt ends the cell, not the new thread in its place, for which the cell would wait.

    Python ignores an interrupt that meets the callback of a weak reference to an ended thread; the next counts.
    """
    code = "import threading\nwhile True:\n    (thread := threading.Thread(target=int)).start()\n    thread.join()"
    for _ in range(5):
        repl = LocalPythonInterpreter()
        ended = in_thread(repl.execute, code, name="cell")
        until = time.monotonic() + SECONDS
        while not ended.done() and time.monotonic() < until:
            time.sleep(0.02)
            repl.interrupt()
        with pytest.raises(CellError, match="CellStopped"):
            ended.result(0)


def test_a_tool_returns_before_an_interrupt_stops_the_code() -> None:
    """Half of what it does would be left behind."""
    done: list[str] = []

    def work() -> None:
        repl.interrupt()
        done.extend(str(number) for number in range(1_000))

    repl = LocalPythonInterpreter({"work": work})
    for _ in range(5):
        done.clear()
        with pytest.raises(CellError, match="CellStopped"):
            repl.execute("x = 1\nwhile True:\n    try: work()\n    except Exception: pass")
        assert len(done) == 1_000
        assert repl.execute("x") == 1


def test_a_tool_that_goes_on_is_stopped_by_the_second_interrupt() -> None:
    def work() -> None:
        repl.interrupt()
        repl.interrupt()
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            pass
        late.append(True)

    late: list[bool] = []
    repl = LocalPythonInterpreter({"work": work})
    with pytest.raises(CellError, match="CellStopped"):
        repl.execute("work()")
    assert not late


def press_ctrl_c() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


async def test_ctrl_c_stops_a_cell_inside_a_running_loop() -> None:
    """As in Jupyter: the cell has a thread of its own there. The caller has the interrupt; the session goes on."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    repl = LocalPythonInterpreter({"press": press_ctrl_c})
    repl.execute("def step(): pass")
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            repl.execute("press()\nwhile True: step()")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert time.monotonic() - started < 20
    assert repl.execute("1") == 1


async def test_ctrl_c_twice_leaves_a_cell_that_waits_in_the_system() -> None:
    """Nothing can stop it, inside a running loop: the caller goes on without it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    started, held = time.monotonic(), threading.Lock()
    held.acquire()
    repl = LocalPythonInterpreter({"hold": lambda: held.acquire(timeout=30)})
    timers = [threading.Timer(seconds, press_ctrl_c) for seconds in (0.3, 0.8)]
    try:
        for timer in timers:
            timer.start()
        with pytest.raises(KeyboardInterrupt):
            repl.execute("hold()")
        assert time.monotonic() - started < 20
    finally:
        for timer in timers:
            timer.join()
        signal.signal(signal.SIGINT, handler)
        held.release()
        while isinstance(sys.stdout, local._StandIn) and time.monotonic() - started < 20:  # noqa: ASYNC110 (until the cell has ended: nobody tells)
            await asyncio.sleep(0.01)


def test_cells_run_inside_cells() -> None:
    """As when a tool runs a child RLM: outputs, directories and names are kept apart."""

    def child() -> Any:
        with LocalPythonInterpreter() as inner:
            return inner.execute("print('inner')\nimport os; name = os.getcwd()")

    outer = LocalPythonInterpreter({"child": child})
    code = (
        "import os\nos.chdir('/')\nprint('before')\nanswer = child()\n"
        "print('after', answer, os.getcwd())\n'name' in dir()"
    )
    assert outer.execute(code) is False
    assert outer.shown == "before\nafter inner /\nFalse"


def test_the_settings_of_dspy_reach_code_and_its_threads() -> None:
    """A predictor that code calls itself has the caller's model, trace and callbacks."""
    lm = DummyLM([{"a": "one"}, {"a": "two"}])
    code = (
        "import dspy, threading\nask = dspy.Predict('q -> a')\nprint(ask(q='1').a)\n"
        "t = threading.Thread(target=lambda: print(ask(q='2').a)); t.start(); t.join()"
    )
    with dspy.context(lm=lm, trace=[]):
        assert LocalPythonInterpreter().execute(code) == "one\ntwo"
        assert len(dspy.settings.trace) == 2


def test_tasks_of_one_cell_end_with_it() -> None:
    """There is no loop between cells."""
    repl = LocalPythonInterpreter()
    repl.execute("import asyncio\nt = asyncio.create_task(asyncio.sleep(3600))\nawait asyncio.sleep(0)")
    assert repl.execute("t.cancelled()") is True


async def test_cells_on_one_loop_run_at_once_in_threads() -> None:
    """As our RLM runs them."""
    together = threading.Barrier(3)
    repls = [LocalPythonInterpreter({"meet": lambda: together.wait(SECONDS)}) for _ in range(3)]
    code = "meet(); print(me)"
    cells = [asyncio.to_thread(repl.execute, code, {"me": me}) for me, repl in enumerate(repls)]
    assert await asyncio.gather(*cells) == ["0", "1", "2"]


def test_sources_leave_with_the_session() -> None:
    """A host that makes many sessions keeps none of their code."""
    script = (
        "import linecache\nfrom rlm_dspy.interpreters import LocalPythonInterpreter\n"
        "with LocalPythonInterpreter() as repl: repl.execute('1')\n"
        "print([name for name in linecache.cache if name.startswith('<cell')])"
    )
    assert in_a_process(script) == "[]\n"


def test_warnings_of_a_cell_are_in_its_output() -> None:
    """With the line of the cell. (In a process of its own: pytest records warnings.)"""
    script = (
        "from rlm_dspy.interpreters import LocalPythonInterpreter\n"
        "print(repr(LocalPythonInterpreter().execute('import warnings\\nwarnings.warn(\"careful\")')))"
    )
    assert in_a_process(script) == repr('<cell 1>:2: UserWarning: careful\n  warnings.warn("careful")') + "\n"


def in_a_process(script: str) -> str:
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_the_smallest_output_has_two_ends() -> None:
    """A cap that cannot hold is refused at once."""
    with pytest.raises(ValueError, match="at least 2"):
        LocalPythonInterpreter(max_output_chars=1)


def test_scripted_and_local_take_their_place_by_factory() -> None:
    """`dspy.configure(interpreter_factory=...)` accepts the class."""
    lm = DummyLM([{"reasoning": "", "code": "SUBMIT(question.upper())"}])
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        assert dspy.RLM("question -> answer")(question="a").answer == "A"
    script = ScriptedInterpreter([dspy.FinalOutput({"answer": "B"})])
    lm = DummyLM([{"reasoning": "", "code": "SUBMIT(1)"}])
    with dspy.context(lm=lm, interpreter_factory=lambda: script):
        assert dspy.RLM("question -> answer")(question="a").answer == "B"


def test_a_cell_that_begins_during_anothers_redirect_is_captured() -> None:
    """And the stream of the host is back in the end."""
    second, before = LocalPythonInterpreter(), sys.stdout
    first = LocalPythonInterpreter({"run": lambda: second.execute("print('second')")})
    code = "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()): answer = run()\nprint(answer)"
    assert first.execute(code) == "second"
    assert sys.stdout is before


FORKS = """
import asyncio, os, dspy
from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM

code = "import os", "print('code', os.fork() >= 0)", "SUBMIT(answer='a')"
lm = ScriptedLM(["```python\\n" + cell + "\\n```" for cell in ("\\n".join(code[:2]), code[2])])
with dspy.context(lm=lm):
    rlm = RLM("question -> answer", interpreter_factory=LocalPythonInterpreter)
    prediction = {}
print(prediction.answer, [step["output"] for step in prediction.trajectory][0])
"""


@pytest.mark.parametrize("run", ["rlm(question='?')", "asyncio.run(rlm.acall(question='?'))"])
def test_a_process_that_a_cell_forks_does_not_go_on_with_the_run(run: str) -> None:
    script = FORKS.replace("{}", run)
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.splitlines() == ["a code True"]
