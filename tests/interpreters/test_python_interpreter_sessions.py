"""The confined interpreter beyond the common contract: values, branches, deadlines."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

import dspy
import numpy as np
import pandas as pd
import pytest
from dspy.utils.dummies import DummyLM
from pydantic import BaseModel, RootModel

from rlm_dspy.interpreters.base import CellError
from rlm_dspy.interpreters.confinement.limits import WorkerLimits
from rlm_dspy.interpreters.host.deadlines import CellLimits
from rlm_dspy.interpreters.host.input_transfer import CannotCross
from rlm_dspy.interpreters.python import PythonInterpreter
from tests.interpreters.confined import light

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")


@dataclasses.dataclass
class Point:
    x: int
    tags: list[str]


class Article(BaseModel):
    title: str
    year: int


@dataclasses.dataclass
class File:
    """A text that stands for a file."""

    path: Path | None
    encoding: str = "utf-8"

    def reader(self) -> BinaryIO:
        """Open the file."""
        assert self.path is not None
        return self.path.open("rb")


TEXTS = [
    "plain " * 9_000,
    "caf\xe9 " * 9_000,
    "\u6f22\u5b57 " * 9_000,
    "\U0001f600 " * 9_000,
    "\ud800" * 40_000,
]


class TestValues:
    @pytest.mark.parametrize("text", TEXTS, ids=["ascii", "latin", "wide", "astral", "surrogates"])
    def test_a_long_str_is_the_str_it_was(self, text: str) -> None:
        """In each width that Python stores characters in."""
        with light() as repl:
            facts = repl.execute(
                "import zlib\nprint(len(t), zlib.crc32(t.encode('utf-8', 'surrogatepass')), type(t))",
                {"t": text},
            )
            assert repl.execute("{t: 1}[t + ''], hash(t) == hash(t[:-1] + t[-1]), (t + 'z')[-1]") == [1, True, "z"]
        import zlib

        assert facts == f"{len(text)} {zlib.crc32(text.encode('utf-8', 'surrogatepass'))} <class 'str'>"

    def test_long_bytes_are_bytes(self) -> None:
        """Shared too."""
        with light() as repl:
            assert repl.execute(
                "b[:3], len(b), b == bytes(range(256)) * 1000", {"b": bytes(range(256)) * 1000}
            ) == ("(b'\\x00\\x01\\x02', 256000, True)")

    @pytest.mark.parametrize(
        "text", ["plain\n" * 100_000, "caf\xe9\n" * 9_000, "a" * 5_000_000 + "\u6f22", "\U0001f600", ""]
    )
    def test_a_text_file_is_its_text(self, tmp_path: Path, text: str) -> None:
        """Whatever its characters, also across the pieces it is read in."""
        path = tmp_path / "text"
        path.write_text(text, encoding="utf-8", newline="")
        with light() as repl:
            assert (
                repl.execute("same = t == u\nsame, type(t)", {"t": File(path), "u": text})
                == "(True, <class 'str'>)"
            )

    def test_a_file_that_is_not_utf_8_is_refused(self, tmp_path: Path) -> None:
        """With the error that reading it would give."""
        path = tmp_path / "text"
        path.write_bytes(b"\xff\xfe")
        with light() as repl, pytest.raises(UnicodeDecodeError):
            repl.execute("t", {"t": File(path)})

    def test_arrays_and_frames_keep_their_types_and_can_be_changed(self) -> None:
        """The host's own stay as they are."""
        array = np.arange(1_000_000)
        frame = pd.DataFrame({"n": range(1_000), "s": ["x"] * 1_000})
        with PythonInterpreter() as repl:
            assert repl.execute(
                "a[0] = 7; f.loc[0, 'n'] = 9\na[0], len(f), type(f).__name__", {"a": array, "f": frame}
            ) == ("(np.int64(7), 1000, 'DataFrame')")
        assert (array[0], frame.loc[0, "n"]) == (0, 0)

    def test_models_and_dataclasses_of_the_host_become_dicts(self) -> None:
        """The worker has not their classes."""
        with light() as repl:
            values = {"a": Article(title="t", year=2025), "p": [Point(1, ["x"])], "e": dspy.Example(q="?")}
            assert repl.execute("a, p, e", values) == (
                [{"title": "t", "year": 2025}, [{"x": 1, "tags": ["x"]}], {"q": "?"}]
            )

    @pytest.mark.parametrize("value", [threading.Lock(), lambda: 1, DummyLM([]), [open(os.devnull)]])
    def test_what_cannot_cross_is_named(self, value: Any) -> None:
        """And the session goes on."""
        with light() as repl:
            with pytest.raises(CannotCross, match="Variable 'v'"):
                repl.execute("v", {"v": value})
            assert repl.execute("1") == 1

    def test_a_tool_gives_and_takes_large_values(self) -> None:
        """As they are."""
        text = "\xe9" * 3_000_000
        taken: list[str] = []
        tools = {"give": lambda: text, "take": taken.append}
        with light(tools) as repl:
            assert repl.execute("g = give()\ntake(g + 'z')\nlen(g), g[0]") == [3000000, "é"]
        assert taken == [text + "z"]

    def test_what_leaves_has_a_plain_form(self) -> None:
        """Sets, dates, arrays, frames, dataclasses, NaN."""
        code = (
            "import datetime, decimal, dataclasses, numpy as np, pandas as pd, collections\n"
            "@dataclasses.dataclass\nclass D:\n    n: int\n"
            "SUBMIT([{3, 1}, datetime.date(2025, 1, 2), np.arange(3), np.float64(1.5), D(4), float('inf'), "
            "pd.DataFrame({'a': [1]}), (1, 2), {1: 'x'}, collections.deque([1]), decimal.Decimal('1.10')])"
        )
        with PythonInterpreter() as repl:
            assert repl.execute(code).output["output"] == [
                [1, 3], "2025-01-02", [0, 1, 2], 1.5, {"n": 4}, float("inf"), [{"a": 1}], [1, 2], {"1": "x"}, [1], "1.10",
            ]  # fmt: skip

    def test_what_has_none_is_an_error_of_the_cell(self) -> None:
        """That names the type."""
        with light() as repl, pytest.raises(CellError, match="type object cannot leave"):
            repl.execute("SUBMIT(object())")

    def test_unchanged_variables_cost_nothing_again(self) -> None:
        """Neither memory nor time."""
        text = "x" * 1_000_000
        with light() as repl:
            repl.execute("len(t)", {"t": text})
            session: Any = repl._session
            before = session.group._mapped
            assert repl.execute("len(t)", {"t": text}) == 1_000_000
            assert session.group._mapped == before

    def test_a_text_is_written_once_for_many_workers(self) -> None:
        """And given back with the last."""
        from rlm_dspy.interpreters.host import input_transfer

        text = "x" * 1_000_000
        repls = [light() for _ in range(4)]
        for repl in repls:
            assert repl.execute("len(t)", {"t": text}) == 1_000_000
        assert input_transfer._all[id(text)].users == 4
        for repl in repls:
            repl.shutdown()
        assert id(text) not in input_transfer._all

    def test_put_binds_at_once(self) -> None:
        """Without a cell."""
        with light() as repl:
            repl.put(n=[1], t="x" * 100_000)
            assert repl.execute("n, len(t)") == [[1], 100000]

    def test_a_value_larger_than_the_memory_limit_fits(self) -> None:
        """What is shared is not counted."""
        text = "x" * (150 << 20)
        with light(worker_limits=WorkerLimits(memory_bytes=128 << 20)) as repl:
            assert repl.execute("len(t)", {"t": text}) == 150 << 20
            with pytest.raises(CellError, match="MemoryError"):
                repl.execute("u = t + 'x'")


class TestState:
    def test_rollback_undoes_the_last_cell(self) -> None:
        """Once; the variables that the host passed are known again."""
        items = [1]
        with light(checkpoint="always") as repl:
            repl.execute("xs.append(2)", {"xs": items})
            repl.execute("xs.append(3); y = 1")
            assert repl.rollback() == 2
            assert repl.execute("xs, 'y' in globals()", {"xs": items}) == [[1, 2], False]

    def test_without_a_checkpoint_there_is_no_rollback(self) -> None:
        """It says so, and the session goes on."""
        with light(checkpoint="off") as repl:
            repl.execute("x = 1")
            with pytest.raises(dspy.CodeInterpreterError, match="no checkpoint"):
                repl.rollback()
            assert repl.execute("x") == 1

    def test_branches_go_on_from_one_state_apart(self) -> None:
        """Each with its own; the one they came from may end first."""
        repl = light({"ask": lambda x: x})
        repl.execute("xs = [1]", {"t": "x" * 100_000})
        first, second = repl.fork(2)
        first.execute("xs.append('first')")
        assert repl.execute("xs") == [1]
        repl.shutdown()
        assert first.execute("xs, ask(len(t))") == [[1, "first"], 100000]
        with second:
            assert second.execute("xs") == [1]
            with pytest.raises(CellError, match="undone"):
                second.execute("import os; os._exit(1)")
        first.shutdown()


class TestStopping:
    def test_a_cell_can_be_interrupted_from_another_thread(self) -> None:
        """It ends with an error that says so; state is kept."""
        running = threading.Event()
        with light({"started": running.set}) as repl:
            repl.execute("x = 1")

            def stop() -> None:
                running.wait(60)
                repl.interrupt()

            stopper = threading.Thread(target=stop)
            stopper.start()
            with pytest.raises(CellError, match="stopped by the host"):
                repl.execute("started()\nwhile True: pass")
            stopper.join()
            assert repl.execute("x") == 1
            repl.interrupt()
            assert repl.execute("x") == 1

    async def test_aexecute_leaves_the_event_loop_free(self) -> None:
        """And gives what execute gives."""
        with light() as repl:
            cell = asyncio.create_task(repl.aexecute("import time; time.sleep(0.2)\nn + 1", {"n": 1}))
            await asyncio.sleep(0)
            assert not cell.done()
            assert await cell == 2

    async def test_cancelling_aexecute_stops_the_cell(self) -> None:
        """The session goes on."""
        started = asyncio.Event()
        loop = asyncio.get_running_loop()
        with light({"started": lambda: loop.call_soon_threadsafe(started.set) and None}) as repl:
            cell = asyncio.create_task(repl.aexecute("started()\nwhile True: pass"))
            await started.wait()
            cell.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cell
            assert repl.execute("'alive'") == "alive"

    def test_time_in_tools_is_not_busy(self) -> None:
        """`busy_seconds` counts what the cell computes itself."""
        with light(
            {"nap": lambda: threading.Event().wait(0.6)},
            cell_limits=CellLimits(busy_seconds=0.4, grace_seconds=0.4),
        ) as repl:
            assert repl.execute("nap()") is False
            with pytest.raises(CellError, match=r"computed for longer than 0\.4 s"):
                repl.execute("while True: pass")

    @pytest.mark.parametrize("bad", [{"seconds": 0}, {"busy_seconds": -1}, {"grace_seconds": 0}])
    def test_cell_limits_that_make_no_sense_are_refused(self, bad: dict[str, float]) -> None:
        """The error names the field."""
        with pytest.raises(ValueError, match=f"^{next(iter(bad))} must be positive"):
            CellLimits(**bad)

    def test_an_unknown_checkpoint_mode_is_refused(self) -> None:
        """Before a worker is started."""
        with pytest.raises(ValueError, match="checkpoint"):
            PythonInterpreter(checkpoint="never")  # type: ignore[arg-type]


class Colour(enum.Enum):
    RED = "red"


class Painted(BaseModel):
    colour: Colour


class Numbers(RootModel[list[int]]):
    pass


@dataclasses.dataclass
class Place:
    x: int


@pytest.mark.parametrize("home", [__name__, "__main__"])
@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (Colour.RED, "'red'"),
        (Painted(colour=Colour.RED), "{'colour': 'red'}"),
        (Numbers([1, 2]), "[1, 2]"),
        (Place(3), "{'x': 3}"),
        (dspy.Image("data:image/png;base64,AAAA"), "CUSTOM-TYPE-START"),
    ],
)
def test_objects_of_the_callers_own_classes_arrive_as_plain_data(value: Any, seen: str, home: str) -> None:
    """Enums by their value, models and dataclasses by their fields; also of classes that a script defines."""
    kind, module = type(value), type(value).__module__
    if not isinstance(value, dspy.Image):
        kind.__module__ = home
    try:
        with PythonInterpreter() as repl:
            repl.execute("value", {"value": value})
            assert seen in repl.shown
    finally:
        kind.__module__ = module


def test_a_deleted_working_directory_is_left_for_the_folder_of_the_session() -> None:
    """Else no later cell could open a file by its name."""
    with light() as repl:
        here = repl.execute("import os\nos.getcwd()")
        repl.execute("os.mkdir('inner'); os.chdir('inner')")
        assert repl.execute("os.getcwd()") == f"{here}/inner"
        repl.execute("os.rmdir('../inner')")
        assert repl.execute("open('f.txt', 'w').close(); os.getcwd()") == here


def test_a_tool_whose_error_has_no_message_is_answered() -> None:
    """Without an answer the cell would wait for ever."""

    class Mute(Exception):  # noqa: N818
        def __str__(self) -> str:
            raise RuntimeError

    def tool() -> None:
        raise Mute

    with light({"tool": tool}, cell_limits=CellLimits(seconds=20)) as repl, pytest.raises(CellError, match="Mute"):
        repl.execute("tool()")
