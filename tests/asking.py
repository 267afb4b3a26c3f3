"""Threads and processes that ask through one cache, and a server that counts what it is asked."""

from __future__ import annotations

import contextlib
import http.server
import json
import multiprocessing
import os
import random
import sqlite3
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from rlm_dspy.cache.sub_call_cache import SubCallCache

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import ForkServerProcess
    from pathlib import Path

QUESTIONS = [f"question {number}" for number in range(200)]
THREADS = 8
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.asking"])


@dataclass
class Counting:
    """A server of answers that counts its requests.

    Attributes:
        requests: How often each question was asked.
        url: Where it listens.
    """

    requests: Counter[str] = field(default_factory=Counter)
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        counting = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with counting._lock:
                    counting.requests[question_of(body)] += 1
                time.sleep(random.uniform(0.01, 0.05))
                answer = json.dumps(reply_to(body)).encode()
                try:
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                except OSError:  # whoever asked was killed
                    self.close_connection = True

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Say nothing of clients that were killed."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def question_of(body: dict[str, Any]) -> str:
    """Return what a request asks: the last message of a chat."""
    return str(body["messages"][-1]["content"])


def reply_to(body: dict[str, Any]) -> dict[str, Any]:
    """Return a reply as OpenAI gives it: to a turn of an RLM code that asks all questions, else an answer."""
    text = f"answer to {question_of(body)}"
    if body.get("user") == "act":
        text = (
            "```python\nfound = llm_query_batched([f'question {n}' for n in order])\n"
            "SUBMIT(right=sum(str(a) == f'answer to question {n}' for n, a in zip(order, found)))\n```"
        )
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def note(log: Path, line: str) -> None:
    """Append a line to a file in one write, which a kill leaves whole."""
    with log.open("ab", buffering=0) as file:
        file.write(f"{line}\n".encode())


def ask_all(cache: Path, url: str, log: Path, questions: list[str]) -> None:
    """Ask all questions in an order of its own, and note each one that is asked, and each that is answered."""
    questions = random.Random(os.getpid()).sample(questions, len(questions))
    answers = SubCallCache(cache)

    def ask(question: str) -> Any:
        note(log, f"asks {os.getpid()} {question}")
        body = json.dumps({"messages": [{"role": "user", "content": question}]}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)["choices"][0]["message"]["content"]

    def answer(question: str) -> None:
        found, cached = answers.once(question, lambda: ask(question))
        assert found == f"answer to {question}"
        if not cached:
            note(log, f"has {os.getpid()} {question}")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(answer, questions))
    answers.close()


def run_all(cache: Path, url: str, log: Path, questions: list[str], key: str = "k") -> None:
    """Ask all questions by an RLM whose code asks them in one batch; `log` stays empty."""
    import dspy  # noqa: PLC0415

    from rlm_dspy import RLM, Limits  # noqa: PLC0415
    from rlm_dspy.interpreters import LocalPythonInterpreter  # noqa: PLC0415
    from tests.role_lm import RoleLM  # noqa: PLC0415

    order = random.Random(os.getpid()).sample(range(len(questions)), len(questions))
    secrets = {"api_key": key}
    lm = RoleLM("openai/m", api_base=url, **secrets, cache=False, num_retries=0)
    limits = Limits(max_llm_calls=len(questions), max_concurrency=THREADS)
    rlm = RLM("order: list[int] -> right: int", limits=limits, cache=SubCallCache(cache), policy=None)
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        assert rlm(order=order).right == len(questions)


def start(work: Any, *args: Any) -> ForkServerProcess:
    """Start a process that imports nothing, as the server it is forked from has."""
    process = PROCESSES.Process(target=work, args=args, daemon=True)
    process.start()
    return process


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
