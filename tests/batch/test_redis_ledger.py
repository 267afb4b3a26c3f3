"""The budget of a batch in a Redis server: batches share it, and never overspend it, also if the server dies."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import dspy
import pytest
import redis

from rlm_dspy import Limits, batch
from rlm_dspy.batch.shared_budget import SharedBudget
from rlm_dspy.batch.taken import TakenOnServer
from rlm_dspy.cache.redis_client import redis_client
from rlm_dspy.errors import LedgerLost
from tests.batch.counting import CountingLM, examples, program
from tests.batch.test_shared_budget import lease, run_until_spent, spent
from tests.cache.test_cache_server import free_port, redis_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRICES = {"scripted/lm": (1.0, 0.0)}
"""USD for a million tokens."""

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Run a Redis server for one test."""
    with redis_server(tmp_path, free_port()) as url:
        yield url


@pytest.fixture
def lm(tmp_path: Path) -> CountingLM:
    """Return an LM that counts its requests across processes."""
    (tmp_path / "requests").mkdir()
    return CountingLM(tmp_path / "requests", seconds=0.02)


def test_no_two_processes_overspend_a_budget_together(server: str, tmp_path: Path) -> None:
    """What is left is what was not used, to the cent."""
    taken = TakenOnServer(server, "count")
    taken.begin(tmp_path / "note")
    budget = SharedBudget(taken, Limits(max_cost=1.0))
    with ProcessPoolExecutor(2) as processes:
        used = sum(run.result() for run in [processes.submit(lease, budget, seed) for seed in range(4)])
    assert 0.8 < used <= 1.0
    assert budget.left().cost == pytest.approx(1.0 - used)
    assert budget.left().input_tokens == float("inf")


def test_batches_with_stores_of_their_own_share_a_budget(server: str, lm: CountingLM, tmp_path: Path) -> None:
    """Two at once, in processes: together they stay within it, and what each had paid for is kept."""
    budget = Limits(max_cost=0.01, prices=PRICES)
    found: list[tuple[list[batch.Row], str]] = []
    workers = [ProcessPoolExecutor(1) for _ in range(2)]
    for each in workers:
        each.submit(int).result()  # it forks now: filelock forbids that while another thread takes a lock

    def shard(number: int) -> None:
        given = examples(40)[number::2]
        with dspy.context(lm=lm), workers[number] as executor:
            store = tmp_path / f"runs{number}"
            found.append(run_until_spent(program(), given, executor, store, budget=budget, ledger=server))

    threads = [threading.Thread(target=shard, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [row for rows, _ in found for row in rows]
    assert all("Run it again with a larger budget" in why for _, why in found)
    assert 0.005 < spent(rows) <= 0.01
    assert lm.requests == len(rows)
    assert {row.prediction.stop for row in rows} == {"submitted"}


@pytest.mark.long
def test_a_batch_whose_server_is_killed_ends_and_goes_on_with_it(lm: CountingLM, tmp_path: Path) -> None:
    """What had arrived is not paid for again, and the count goes on where it was."""
    port, rows = free_port(), []
    url, budget = f"redis://:secret@127.0.0.1:{port}/0", Limits(max_cost=1.0, prices=PRICES)

    def run(folder: Path) -> Iterator[batch.Row]:
        workers = lambda: ProcessPoolExecutor(2)  # noqa: E731
        return batch.run(program(), examples(30), workers, folder, budget=budget, ledger=url)

    def started() -> subprocess.Popen[bytes]:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
        durable = ["--appendonly", "yes", "--appendfsync", "always", "--requirepass", "secret"]
        process = subprocess.Popen([*command, *durable], stdout=subprocess.DEVNULL)
        while process.poll() is None:
            with contextlib.suppress(redis.exceptions.RedisError):
                redis.Redis.from_url(url).ping()
                return process
            time.sleep(0.05)
        raise AssertionError("redis-server does not start")

    server = started()
    with dspy.context(lm=lm), pytest.raises(LedgerLost) as error:  # noqa: PT012 (rows come before it)
        for row in run(tmp_path / "runs"):
            rows.append(row)
            if len(rows) == 3:
                server.kill()
                server.wait()
    assert re.search(r"redis://.*127\.0\.0\.1.*Run the batch again when it responds", str(error.value))
    assert "secret" not in str(error.value)
    paid = lm.requests
    assert len(rows) <= paid < 30
    server = started()
    try:
        with dspy.context(lm=lm):
            again = list(run(tmp_path / "runs"))
        left = SharedBudget(TakenOnServer(url, _name(url)), budget).left()
    finally:
        server.kill()
        server.wait()
    assert sorted((row.index, row.error) for row in again) == [(n, "") for n in range(30)]
    assert lm.requests == 30
    assert left.cost <= 1.0 - spent(again)


def _name(url: str) -> str:
    (name,) = redis_client(url).keys("rlm_dspy:budget:*")
    return str(name)


def test_a_server_that_has_lost_its_data_ends_a_batch(server: str, lm: CountingLM, tmp_path: Path) -> None:
    """It would else be spent again; nothing is asked before the error, which names the way out."""
    options: dict[str, Any] = {"budget": Limits(max_cost=1.0, prices=PRICES), "ledger": server}
    with dspy.context(lm=lm):
        list(batch.run(program(), examples(2), store=tmp_path / "runs", **options))
        redis_client(server).flushall()
        with pytest.raises(LedgerLost, match=r"has lost .* remove \*\.ledger from the store"):
            list(batch.run(program(), examples(4), store=tmp_path / "runs", **options))
        assert lm.requests == 2
        (tmp_path / "runs").glob("*.ledger").__next__().unlink()
        assert len(list(batch.run(program(), examples(4), store=tmp_path / "runs", **options))) == 4


def test_a_ledger_without_a_budget_is_refused(lm: CountingLM, tmp_path: Path) -> None:
    """And one that is no address, before anything is paid for."""
    with pytest.raises(ValueError, match="pass budget="):
        batch.run(program(), examples(1), store=tmp_path / "runs", ledger="redis://127.0.0.1/0")
    with dspy.context(lm=lm), pytest.raises(ValueError, match="redis://"):
        list(batch.run(program(), examples(1), store=tmp_path / "runs", budget=1.0, ledger="127.0.0.1"))
