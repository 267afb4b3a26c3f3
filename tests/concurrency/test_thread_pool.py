"""Threads of the pool are used again, end when they are idle, and hold nothing of what they ran."""

from __future__ import annotations

import contextvars
import functools
import gc
import threading
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING

from rlm_dspy.concurrency import thread_pool
from rlm_dspy.concurrency.thread_pool import ThreadPool, run_in_pool
from tests.interpreters.waiting import comes_true
from tests.interrupting import interrupted_everywhere

if TYPE_CHECKING:
    import pytest

variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable")


class Large:
    """What a run holds."""


def thread_of_job(pool: ThreadPool) -> threading.Thread:
    done: Future[threading.Thread] = Future()
    pool.run(lambda: done.set_result(threading.current_thread()))
    return done.result(60)


def test_a_thread_is_used_again_and_a_busy_one_keeps_no_job_waiting() -> None:
    pool, go_on, before = ThreadPool(), threading.Event(), set(threading.enumerate())
    thread_of_job(pool)
    assert comes_true(lambda: pool._idle.qsize() == 1)
    pool.run(go_on.wait)
    thread_of_job(pool)
    assert len(set(threading.enumerate()) - before) == 2
    go_on.set()
    assert comes_true(lambda: pool._idle.qsize() == 2)
    thread_of_job(pool)
    assert len(set(threading.enumerate()) - before) == 2


def test_an_idle_thread_ends_and_the_next_job_gets_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_pool, "_IDLE_SECONDS", 0.05)
    pool = ThreadPool()
    first = thread_of_job(pool)
    first.join(60)
    assert not first.is_alive()
    assert thread_of_job(pool) is not first


def test_an_idle_thread_holds_nothing_of_the_job_before() -> None:
    pool, held = ThreadPool(), Large()
    gone = weakref.ref(held)
    context = contextvars.copy_context()
    context.run(variable.set, held)
    context.run(pool.run, functools.partial(id, held))
    del held, context
    assert comes_true(lambda: pool._idle.qsize() == 1)
    gc.collect()
    assert gone() is None


def test_a_future_that_waits_can_be_cancelled_and_one_that_is_said_to_run_cannot() -> None:
    cancelled: Future[int] = Future()
    cancelled.cancel()
    run_in_pool(lambda: 1, cancelled)
    running: Future[int] = Future()
    running.set_running_or_notify_cancel()
    assert not running.cancel()
    run_in_pool(lambda: 1, running)
    assert running.result(60) == 1
    assert cancelled.cancelled()


def test_a_thread_has_the_name_of_its_job_until_the_result_is_there() -> None:
    names: Future[str] = Future()
    run_in_pool(lambda: threading.current_thread().name, names, "rlm-test")
    assert names.result(60) == "rlm-test"
    assert not any(thread.name == "rlm-test" for thread in threading.enumerate())


def test_an_interrupt_while_a_job_is_given_to_an_idle_thread_leaves_the_pool_to_others() -> None:
    def made() -> ThreadPool:
        pool = ThreadPool()
        thread_of_job(pool)
        assert comes_true(lambda: pool._idle.qsize() == 1)
        return pool

    assert interrupted_everywhere(made, lambda pool: pool.run(lambda: None), thread_of_job, thread_pool) > 1
