"""`SubCallCache` in a Redis server: processes share answers, and one pays for each."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
import redis

from rlm_dspy import SubCallCache
from rlm_dspy.cache import answer_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest import LogCaptureFixture, MonkeyPatch  # noqa: PT013 (types)


@contextlib.contextmanager
def redis_server(folder: Path, port: int) -> Iterator[str]:
    """Run a Redis server that keeps nothing on disk; yield its address."""
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Run a Redis server for one test."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed; Debian has it as redis-server")
    with redis_server(tmp_path, free_port()) as url:
        yield url


ASKS = """
import os, sys, time
from pathlib import Path
from rlm_dspy import SubCallCache
url, folder, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])

def ask(key):
    (folder / f"{key}-{os.getpid()}").touch()
    time.sleep(seconds)
    return f"answer to {key}"

with SubCallCache(url) as cache:
    print([cache.once(f"key {n}", lambda: ask(f"key {n}"))[0] for n in range(6)])
"""


def asking(url: str, folder: Path, seconds: float = 0.2) -> subprocess.Popen[str]:
    """Start a process that asks six questions."""
    command = [sys.executable, "-c", ASKS, url, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_pay_once_for_each_answer(server: str, tmp_path: Path) -> None:
    """Of two that ask the same at once, one waits for the other."""
    (tmp_path / "asked").mkdir()
    process = asking(server, tmp_path / "asked", 0.5)
    while not list((tmp_path / "asked").iterdir()):
        time.sleep(0.02)

    def ask(key: str) -> str:
        (tmp_path / "asked" / f"{key}-here").touch()
        return f"answer to {key}"

    with SubCallCache(server) as cache:
        assert cache.once("key 0", lambda: ask("key 0")) == ("answer to key 0", True)
        assert cache.once("key 5", lambda: ask("key 5")) == ("answer to key 5", False)
        assert process.communicate()[0] == str([f"answer to key {n}" for n in range(6)]) + "\n"
        assert cache.get("key 3") == (True, "answer to key 3")
        assert len(cache) == 6
    asked = {path.name.partition("-")[0]: path.name for path in (tmp_path / "asked").iterdir()}
    assert len(asked) == len(list((tmp_path / "asked").iterdir())) == 6
    assert asked["key 5"] == "key 5-here"


def test_what_a_killed_process_asked_is_asked_again(server: str, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """Its lease ends by itself; one that lives is renewed for as long as its call takes."""
    (tmp_path / "asked").mkdir()
    killed = asking(server, tmp_path / "asked", 600)
    while not list((tmp_path / "asked").iterdir()):
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    client, lease = redis.Redis.from_url(server), "rlm_dspy:lease:key 0"
    assert 0 < client.ttl(lease) <= 30
    client.expire(lease, 1)
    monkeypatch.setattr(answer_server, "_LEASE_SECONDS", 1.0)

    def ask() -> bool:
        time.sleep(2)
        return bool(client.exists(lease))

    with SubCallCache(server) as cache:
        assert cache.once("key 0", ask) == (True, False)
    assert not client.exists(lease)
    client.close()


def test_threads_of_a_process_wait_for_one_another(server: str) -> None:
    """As with a file; a copy by pickle is the same cache."""
    cache, paid, found = SubCallCache(server), [], []

    def ask() -> str:
        paid.append(1)
        time.sleep(0.1)
        return "yes"

    threads = [threading.Thread(target=lambda: found.append(cache.once("k", ask)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (paid, found) == ([1], ["yes"] * 4)
    assert pickle.loads(pickle.dumps(cache)) is cache
    cache.close()


def test_a_call_inside_a_call_never_waits_for_it(server: str) -> None:
    """It is made a second time instead."""
    with SubCallCache(server) as cache:
        assert cache.once("a", lambda: cache.once("a", lambda: "inner")[0]) == ("inner", False)


@pytest.mark.parametrize("foreign", [b"no JSON", b"\xff\xfe"])
def test_what_is_no_answer_is_asked_anew_and_replaced(server: str, foreign: bytes) -> None:
    """Whoever has written it there."""
    with redis.Redis.from_url(server) as client, SubCallCache(server) as cache:
        client.set("rlm_dspy:answer:k", foreign)
        assert cache.once("k", lambda: "paid") == ("paid", False)
        assert cache.once("k", lambda: "again") == ("paid", True)
        assert client.get("rlm_dspy:answer:k") == b'"paid"'


def test_a_server_that_is_gone_costs_one_warning(tmp_path: Path, caplog: LogCaptureFixture) -> None:
    """Answers stay in memory; the password of the address is not told."""
    with SubCallCache(f"redis://me:secret@127.0.0.1:{free_port()}/0") as cache:
        assert cache.once("k", lambda: "paid") == ("paid", False)
        assert cache.once("k", lambda: "again") == ("paid", True)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "Answers that it does not store stay in memory" in warning
    assert "secret" not in warning


def test_a_lease_that_cannot_be_renewed_costs_no_warning(
    tmp_path: Path, monkeypatch: MonkeyPatch, caplog: LogCaptureFixture
) -> None:
    """The warning is that of the answer which is not stored."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed; Debian has it as redis-server")
    monkeypatch.setattr(answer_server, "_LEASE_SECONDS", 0.3)
    with contextlib.ExitStack() as running:
        url = running.enter_context(redis_server(tmp_path, free_port()))

        def ask() -> list[str]:
            running.close()
            time.sleep(3)
            return [record.getMessage() for record in caplog.records if url in record.getMessage()]

        with SubCallCache(url) as cache:
            assert cache.once("k", ask) == ([], False)
    assert [url in record.getMessage() for record in caplog.records].count(True) == 1


def test_answers_kept_in_memory_go_to_a_server_that_is_back(tmp_path: Path) -> None:
    """When the cache is closed, or the process ends: they are paid for. An end without a server is silent."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed; Debian has it as redis-server")
    port = free_port()
    with SubCallCache(f"redis://127.0.0.1:{port}/0") as cache:
        assert cache.once("k", lambda: "paid") == ("paid", False)
        with redis_server(tmp_path, port) as url, redis.Redis.from_url(url) as client:
            cache.close()
            assert client.get("rlm_dspy:answer:k") == b'"paid"'
    script = f"from rlm_dspy import SubCallCache\nc = SubCallCache({url!r})\nc.once('k', lambda: 'paid')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr


def test_an_address_that_is_none_is_refused() -> None:
    """At once."""
    with pytest.raises(ValueError, match="Port"):
        SubCallCache("redis://127.0.0.1:port/0")
    with pytest.raises(ValueError, match="redis://, rediss://, unix://; not 'http://host'"):
        SubCallCache("http://host")
