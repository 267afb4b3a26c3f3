"""`SubCallCache`: shared by threads and processes, one asker per question, nothing paid is lost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import logging
import os
import random
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import numpy as np
import pytest

from rlm_dspy import RLM, Limits, SubCallCache
from rlm_dspy.cache import digest
from rlm_dspy.callee import _lm_state
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.asking import PROCESSES, THREADS, Counting, ask_all, run_all, start
from tests.playing import block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUESTIONS = [f"question {number}" for number in range(200)]


def never() -> Any:
    """Be asked by nobody."""
    raise AssertionError("asked again")


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """Call functions at once; return what they gave."""
    given: list[Any] = [None] * len(functions)

    def work(number: int) -> None:
        given[number] = functions[number]()

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return given


def whole(path: Path) -> int:
    """Check that a file is whole; return how many answers it has."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        answers = connection.execute("SELECT answer FROM answers").fetchall()
    for (answer,) in answers:
        json.loads(answer)
    return len(answers)


@dataclass
class Killed:
    """What two processes did of which one was killed again and again.

    Attributes:
        requests: How often the server was asked.
        under_way: How many requests were under way at the kills, at most.
        log: What the processes noted: what was done, by which process, and the question.
    """

    requests: int
    under_way: int
    log: list[list[str]]


def killed(work: Any, tmp_path: Path, seconds: tuple[float, float]) -> Killed:
    """Let two processes ask the same, and kill one of them ten times, after a time between these."""
    path, log = tmp_path / "answers.db", tmp_path / "log"
    log.touch()
    with Counting() as server:
        arguments = path, server.url, log, QUESTIONS
        steady, victim = start(work, *arguments), start(work, *arguments)
        kills = 0
        for _ in range(10):
            time.sleep(random.uniform(*seconds))
            if victim.is_alive():
                victim.kill()
                kills += 1
            victim.join()
            victim = start(work, *arguments)
        for process in (steady, victim):
            process.join(100)
            assert process.exitcode == 0
        asked = [server.requests[question] for question in QUESTIONS]
    assert min(asked) == 1
    assert whole(path) == len(QUESTIONS)
    return Killed(sum(asked), kills * THREADS, [line.split(" ", 2) for line in log.read_text().splitlines()])


def test_no_answer_that_arrived_is_asked_again_when_processes_are_killed(tmp_path: Path) -> None:
    """Two processes with 200 questions in common, one of them killed ten times."""
    done = killed(ask_all, tmp_path, (0.0, 0.3))
    answered: set[str] = set()
    for what, _, question in done.log:
        assert what == "has" or question not in answered
        answered |= {question} if what == "has" else set()
    asked, answers = (Counter((by, q) for what, by, q in done.log if what == which) for which in ("asks", "has"))
    under_way = (asked - answers).total()
    assert done.requests - len(QUESTIONS) <= under_way <= done.under_way


@pytest.mark.long
def test_no_answer_that_arrived_is_asked_again_when_runs_are_killed(tmp_path: Path) -> None:
    """The same of two RLMs, each with all questions in one batch."""
    done = killed(run_all, tmp_path, (0.5, 2.0))
    assert done.requests - len(QUESTIONS) <= done.under_way


def test_processes_see_each_others_answers_at_once(tmp_path: Path) -> None:
    """While both are alive, and have both read the file before."""
    path = tmp_path / "answers.db"
    cache = SubCallCache(path)
    assert cache.get("a") == (False, None)
    there, here = PROCESSES.Pipe()

    process = start(_answers_one, path, here)
    there.recv()
    assert cache.once("a", never) == ("from there", True)
    cache.once("b", lambda: "from here")
    there.send(None)
    assert there.recv() == ["from here", True]
    process.join()


def _answers_one(path: Path, pipe: Any) -> None:
    cache = SubCallCache(path)
    assert cache.get("b") == (False, None)
    cache.once("a", lambda: "from there")
    pipe.send(None)
    pipe.recv()
    pipe.send(list(cache.once("b", never)))


def _asks_for_ever(path: Path, key: str, begun: Any) -> None:
    def ask() -> Any:
        begun.set()
        time.sleep(600)

    SubCallCache(path).once(key, ask)


def test_whoever_waits_for_a_process_that_is_killed_asks_at_once(tmp_path: Path) -> None:
    """The lock ends with the process, and not after some time."""
    path, begun = tmp_path / "answers.db", PROCESSES.Event()
    process = start(_asks_for_ever, path, "a", begun)
    assert begun.wait(60)
    cache = SubCallCache(path)
    assert cache.once("another", lambda: 1) == (1, False)
    asked = threading.Event()
    waiting = threading.Thread(target=lambda: cache.once("a", asked.set), daemon=True)
    waiting.start()
    assert not asked.wait(0.5)
    process.kill()
    assert asked.wait(5)
    waiting.join(60)


def _fails(path: Path, begun: Any, end: Any) -> None:
    def ask() -> Any:
        begun.set()
        end.wait()
        raise OSError("no answer")

    with contextlib.suppress(OSError):
        SubCallCache(path).once("a", ask)


def test_whoever_waits_for_one_that_fails_asks_itself(tmp_path: Path) -> None:
    """A failure of another is not kept, nor told."""
    path, begun, end = tmp_path / "answers.db", PROCESSES.Event(), PROCESSES.Event()
    process = start(_fails, path, begun, end)
    assert begun.wait(60)
    cache, asked = SubCallCache(path), []

    def ask() -> str:
        asked.append(1)
        return "here"

    threading.Timer(0.2, end.set).start()
    assert sorted(in_threads(*[lambda: cache.once("a", ask)] * 4)) == [("here", False), *[("here", True)] * 3]
    assert asked == [1]
    process.join()


@pytest.mark.parametrize("caches", [1, 2])
def test_threads_ask_once(tmp_path: Path, caches: int) -> None:
    """Also by several caches of one file, named differently."""
    (tmp_path / "link").symlink_to(tmp_path)
    made = [SubCallCache(tmp_path / "a.db"), SubCallCache(tmp_path / "link" / "a.db")][:caches]
    asked = []

    def ask() -> str:
        asked.append(1)
        time.sleep(0.1)
        return "x"

    given = in_threads(*[lambda n=n: made[n % caches].once("a", ask) for n in range(32)])
    assert sorted(cached for _, cached in given) == [False, *[True] * 31]
    assert asked == [1]


@pytest.mark.parametrize("path", [None, "answers.db"])
def test_what_is_asked_inside_of_one_another_does_not_wait_for_ever(tmp_path: Path, path: str | None) -> None:
    """A waits for B, which waits for A; and A for itself."""
    cache = SubCallCache(tmp_path / path if path else None)
    both = threading.Barrier(2)

    def nested(outer: str, inner: str) -> Any:
        def ask() -> Any:
            both.wait(60)
            return [outer, cache.once(inner, lambda: [inner])[0]]

        return cache.once(outer, ask)[0]

    given = in_threads(lambda: nested("a", "b"), lambda: nested("b", "a"))
    assert given[0][0] == "a"
    assert given[1][0] == "b"
    assert cache.once("self", lambda: [cache.once("self", lambda: 1)[0]])[1] is False


def _nested(path: Path, outer: str, inner: str, both: Any) -> None:
    cache = SubCallCache(path)

    def ask() -> Any:
        both.wait(60)
        return [outer, cache.once(inner, lambda: [inner])[0]]

    assert cache.once(outer, ask)[0][0] == outer


def test_processes_that_ask_inside_of_one_another_do_not_wait_for_ever(tmp_path: Path) -> None:
    """One holds A and wants B, the other holds B and wants A."""
    path, both = tmp_path / "answers.db", PROCESSES.Barrier(2)
    processes = [start(_nested, path, "a", "b", both), start(_nested, path, "b", "a", both)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert whole(path) == 2


def test_what_is_asked_inside_of_another_waits_where_it_can(tmp_path: Path) -> None:
    """It is not paid for twice."""
    cache = SubCallCache(tmp_path / "answers.db")
    begun, asked = threading.Event(), []

    def slow() -> str:
        asked.append(1)
        begun.set()
        time.sleep(0.3)
        return "b"

    def outer() -> Any:
        begun.wait(60)
        return cache.once("b", slow)

    assert in_threads(lambda: cache.once("b", slow), lambda: cache.once("a", outer)[0]) == [
        ("b", False),
        ("b", True),
    ]
    assert asked == [1]


def test_a_sub_call_in_a_slot_may_wait_for_one_that_has_none() -> None:
    """With one slot, what is asked inside of a sub-call is the same as what the code asks beside it."""

    class Deep(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = RLM("text -> out", policy=None)

        def forward(self, text: str) -> dspy.Prediction:
            return self.inner(text=text)

    code = (
        "import threading\n"
        "found = {}\n"
        "one = threading.Thread(target=lambda: found.update(deep=deep(text='t')))\n"
        "one.start()\n"
        "import time; time.sleep(0.3)\n"
        "found['query'] = llm_query('X')\n"
        "one.join()\n"
        "SUBMIT(answer=str(sorted(found)))"
    )

    def reply(messages: list[dict[str, str]]) -> str:
        last = messages[-1]["content"]
        if last == "X":
            return "x"
        if "answer" in last and "deep(" in last:
            return block(code)
        time.sleep(1.0)
        return block("SUBMIT(out=llm_query('X'))")

    sub = Deep()
    rlm = RLM(
        "question -> answer", subs={"deep": sub}, limits=Limits(max_concurrency=1, max_seconds=30), policy=None
    )
    lm = ScriptedLM(reply)
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        prediction = rlm(question="?")
    assert prediction.answer == "['deep', 'query']"
    assert [messages[-1]["content"] for messages in lm.script.calls].count("X") == 1
    assert prediction.usage["seconds"] < 15


async def test_a_run_that_waits_for_another_does_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    """Two awaited runs ask the same; one asks, the loop goes on."""
    cache, ticks, asked = SubCallCache(tmp_path / "answers.db"), [], []

    def reply(messages: list[dict[str, str]]) -> str:
        if messages[-1]["content"] != "X":
            return block("SUBMIT(answer=llm_query('X'))")
        asked.append(1)
        time.sleep(1.0)
        return "x"

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    rlm = RLM("q -> answer", cache=cache, policy=None)
    with dspy.context(lm=ScriptedLM(reply), interpreter_factory=LocalPythonInterpreter):
        both = await asyncio.gather(rlm.acall(q="1"), rlm.acall(q="2"))
    ticking.cancel()
    assert [each.answer for each in both] == ["x", "x"]
    assert asked == [1]
    assert max(after - before for before, after in itertools.pairwise(ticks)) < 0.8


async def test_whoever_waits_for_a_run_that_is_cancelled_asks_itself() -> None:
    """The asker is cancelled; the other has its answer."""
    begun, asked = asyncio.Event(), []
    loop = asyncio.get_running_loop()

    def reply(messages: list[dict[str, str]]) -> str:
        if messages[-1]["content"] != "X":
            return block("SUBMIT(answer=llm_query('X'))")
        asked.append(1)
        loop.call_soon_threadsafe(begun.set)
        time.sleep(1.0 if len(asked) == 1 else 0.0)
        return "x"

    rlm = RLM("q -> answer", cache=SubCallCache(), policy=None)
    with dspy.context(lm=ScriptedLM(reply), interpreter_factory=LocalPythonInterpreter):
        first = asyncio.create_task(rlm.acall(q="1"))
        await begun.wait()
        second = asyncio.create_task(rlm.acall(q="2"))
        await asyncio.sleep(0.2)
        first.cancel()
        assert (await second).answer == "x"
        with pytest.raises(asyncio.CancelledError):
            await first
    assert asked == [1, 1]


def test_a_forked_process_shares_the_file_and_leaves_its_parent_alone(tmp_path: Path) -> None:
    """Neither a connection nor a lock crosses a fork."""
    path = tmp_path / "answers.db"
    cache, memory, begun, end = SubCallCache(path), SubCallCache(), threading.Event(), threading.Event()
    cache.once("a", lambda: "parent")
    memory.once("m", lambda: "kept")

    def slow() -> str:
        begun.set()
        end.wait(60)
        return "slow"

    asking = threading.Thread(target=lambda: cache.once("slow", slow), daemon=True)
    asking.start()
    begun.wait(60)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            assert cache.once("a", never) == ("parent", True)
            assert memory.once("m", never) == ("kept", True)
            cache.once("b", lambda: "child")
            cache.close()
            os.write(write, b"child")
            assert cache.once("slow", never) == ("slow", True)
            os.write(write, b" waited")
        os._exit(0)
    assert os.read(read, 100) == b"child"
    assert cache.once("b", never) == ("child", True)
    end.set()
    asking.join(60)
    assert cache.once("slow", never) == ("slow", True)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b" waited"
    os.close(read)
    os.close(write)
    assert whole(path) == 3


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
    for parent in (folder, *folder.parents[:3]):
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
    with pytest.raises(ValueError, match=r"move the file away|Name a file in it"):
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


def test_what_is_not_json_goes_to_who_asked(tmp_path: Path) -> None:
    """It is paid for; it is not kept."""
    cache = SubCallCache(tmp_path / "answers.db")
    odd = object()
    assert cache.once("a", lambda: odd) == (odd, False)
    assert cache.once("a", lambda: 1) == (1, False)


def test_a_changed_answer_does_not_change_what_is_kept() -> None:
    """Each has a copy of its own."""
    cache = SubCallCache()
    answer, _ = cache.once("a", lambda: [1])
    answer.append(2)
    again, _ = cache.once("a", never)
    again.append(3)
    assert cache.once("a", never) == ([1], True)


def test_a_key_that_was_changed_finds_the_answers_of_the_old_one(tmp_path: Path) -> None:
    """An answer does not depend on who pays for it."""
    path, keys = tmp_path / "answers.db", ("sk-old-0123456789", "sk-new-0123456789")
    with Counting() as server:
        for key in keys:
            run_all(path, server.url, tmp_path / "log", QUESTIONS[:3], key)
        assert [server.requests[question] for question in QUESTIONS[:3]] == [1, 1, 1]
    assert b"sk-" not in path.read_bytes()


def test_keys_and_headers_of_a_model_are_no_part_of_what_is_asked() -> None:
    """Its options are."""
    one, other, warm = (
        dspy.LM("openai/m", extra_headers={"Authorization": name}, temperature=temperature)
        for name, temperature in (("a", 0.0), ("b", 0.0), ("a", 1.0))
    )
    assert _lm_state(one) == _lm_state(other) != _lm_state(warm)


def test_equal_inputs_have_equal_keys() -> None:
    """Whatever order they were made in."""
    assert digest({0, 8}) == digest({8, 0})
    assert digest({1: 2, "a": 3, None: 4}) == digest({None: 4, "a": 3, 1: 2})


class _Point:
    def __init__(self, x: int) -> None:
        self.x = x

    def __repr__(self) -> str:
        return "a point"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({1: "a"}, {"1": "a"}),
        (np.arange(10_000), np.where(np.arange(10_000) == 5_000, 0, np.arange(10_000))),
        (_Point(1), _Point(2)),
        (b"a", "b'a'"),
        ({"a"}, ["a"]),
        (dspy.Image(url="http://a/1.png"), dspy.Image(url="http://a/2.png")),
        (True, 1),
    ],
)
def test_unlike_inputs_have_unlike_keys(one: Any, other: Any) -> None:
    """Also where their reprs are equal: an answer about one is none about the other."""
    assert digest(one) != digest(other)
    assert digest(one) == digest(one)


def test_inputs_of_any_depth_have_a_key() -> None:
    """A depth that nothing can compare."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert digest(deep)
