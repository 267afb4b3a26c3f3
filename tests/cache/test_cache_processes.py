"""`SubCallCache` among processes: they share one file, and nothing paid is lost when one is killed."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from rlm_dspy import SubCallCache
from tests.asking import PROCESSES, QUESTIONS, THREADS, Counting, ask_all, in_threads, never, run_all, start, whole

if TYPE_CHECKING:
    from pathlib import Path


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
    assert asked.wait(20)
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
