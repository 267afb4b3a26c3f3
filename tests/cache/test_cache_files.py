"""The file of a `SubCallCache`: what it leaves behind, and where it cannot be used answers stay in memory."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import resource
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, SubCallCache
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.asking import PROCESSES, never, start, whole
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def few_bytes(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Allow this process files of a few bytes only, as a full disk does; -1 allows them again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size < 0 else size, before[1]))

    yield limit
    limit(-1)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of caches."""
    return [each.getMessage() for each in caplog.records if "SubCallCache" in each.getMessage()]


def test_on_a_full_disk_answers_stay_in_memory(
    tmp_path: Path, few_bytes: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    """No paid answer is lost, one warning tells, and the file has them once there is room."""
    path, answers = tmp_path / "answers.db", {f"k{n}": str(n) * 2_000 for n in range(50)}
    cache = SubCallCache(path)
    cache.once("before", lambda: 0)
    few_bytes(40_000)
    with caplog.at_level(logging.WARNING, "dspy.rlm_dspy"):
        for key, answer in answers.items():
            assert cache.once(key, functools.partial(str, answer)) == (answer, False)
        for key, answer in answers.items():
            assert cache.once(key, never) == (answer, True)
    assert cache.once("before", never) == (0, True)
    assert len(cache) == 51
    assert len(warnings_of(caplog)) == 1
    few_bytes(-1)
    cache.close()
    assert whole(path) == 51


def test_a_run_on_a_full_disk_goes_on(tmp_path: Path, few_bytes: Callable[[int], None]) -> None:
    """Of a paid sub-call nothing fails."""
    cache = SubCallCache(tmp_path / "answers.db")

    def reply(messages: list[dict[str, str]]) -> str:
        code = "SUBMIT(n=len([a for a in llm_query_batched(list('abcdefghij')) if a]))"
        return "x" * 2_000 if len(messages[-1]["content"]) == 1 else block(code)

    few_bytes(10_000)
    with dspy.context(lm=ScriptedLM(reply), interpreter_factory=LocalPythonInterpreter):
        assert RLM("q -> n: int", cache=cache, policy=None)(q="?").n == 10


def unwritable(tmp_path: Path, why: str) -> Path:
    """Return a path at which no file can be used."""
    path = tmp_path / "answers.db"
    if why == "under a file":
        path.write_text("")
        return path / "answers.db"
    if why == "no such folder can be made":
        return Path("/proc/none/answers.db")
    with SubCallCache(path) as cache:
        for number in range(200):
            cache.once(f"before {number}", lambda: "x" * 500)
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("why", ["under a file", "no such folder can be made", "corrupt"])
def test_where_no_file_can_be_used_answers_stay_in_memory(
    tmp_path: Path, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning says why."""
    path = unwritable(tmp_path, why)
    with caplog.at_level(logging.WARNING, "dspy.rlm_dspy"):
        cache = SubCallCache(path)
        for number in range(5):
            assert cache.once(f"before {number}", functools.partial(int, number)) == (number, False)
            assert cache.once(f"before {number}", never) == (number, True)
        cache.close()
    (warning,) = warnings_of(caplog)
    assert str(path) in warning


def test_a_file_that_another_holds_is_waited_for_and_then_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What could not be written is written at the end."""
    path = tmp_path / "answers.db"
    cache = SubCallCache(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        for number in range(10):
            assert cache.once(str(number), lambda: "x") == ("x", False)
        assert time.monotonic() - begun < 20
        other.execute("COMMIT")
    assert len(warnings_of(caplog)) == 1
    cache.close()
    assert whole(path) == 10


def _read_only(path: Path, result: Any) -> None:
    path.parent.chmod(0o555)
    os.setuid(65534)
    cache = SubCallCache(path)
    known = cache.once("a", lambda: "again")
    result.send([known, cache.once("b", lambda: "new"), cache.once("b", lambda: "again")])


@pytest.mark.skipif(os.getuid() != 0, reason="root becomes an ordinary user here")
@pytest.mark.parametrize("mode", [0o444, 0o644])
def test_a_file_that_is_only_read_is_read(tmp_path: Path, mode: int) -> None:
    """What it holds is not paid for again."""
    folder = tmp_path / "folder"
    path = folder / "answers.db"
    with SubCallCache(path) as cache:
        cache.once("a", lambda: "known")
    path.chmod(mode)
    for parent in (folder, *(each for each in folder.parents if "pytest-" in str(each))):
        parent.chmod(0o755)
    here, there = PROCESSES.Pipe()
    process = start(_read_only, path, there)
    assert here.poll(60)
    assert here.recv() == [("known", True), ("new", False), ("new", True)]
    process.join()


@pytest.mark.parametrize(
    "content", [b'{"key": "a", "answer": 1}\n', b"SQLite format 4\0" * 100, "database", "directory"]
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: Any) -> None:
    """The error names the fix."""
    path = tmp_path / "answers.jsonl"
    if content == "directory":
        path.mkdir()
    elif content == "database":
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE mine (x)")
            other.commit()
    else:
        path.write_bytes(content)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(ValueError, match=r"move the file away|name a file in it"):
        SubCallCache(path)
    assert (path.read_bytes() if path.is_file() else b"") == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_closed_cache_is_one_file_that_its_owner_reads(tmp_path: Path) -> None:
    """It can be copied, and is opened again when it is used."""
    path = tmp_path / "folder" / "answers.db"
    with SubCallCache(path) as cache:
        cache.once("a", lambda: {"x": [1, None, "\ud800"]})
    assert sorted(each.name for each in path.parent.iterdir()) == ["answers.db", "answers.db.locks"]
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}
    assert cache.once("a", never) == ({"x": [1, None, "\ud800"]}, True)


def test_a_process_that_ends_leaves_one_file(tmp_path: Path) -> None:
    """Also if nobody closes the cache."""
    path = tmp_path / "answers.db"
    code = f"from rlm_dspy import SubCallCache\nSubCallCache({str(path)!r}).once('a', lambda: 1)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["answers.db", "answers.db.locks"]
    assert whole(path) == 1


def test_a_file_that_another_process_makes_while_it_is_opened_is_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, path, connect, statements = tmp_path / "made.db", tmp_path / "answers.db", sqlite3.connect, list[str]()
    with SubCallCache(made) as other:
        other.once("a", lambda: 1)

    def make_at_the_second(statement: str) -> None:
        statements.append(statement)
        if len(statements) == 2:
            path.write_bytes(made.read_bytes())

    def traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **kwargs)
        connection.set_trace_callback(make_at_the_second)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    SubCallCache(path).close()
    assert len(statements) > 2
    assert whole(path) == 1
