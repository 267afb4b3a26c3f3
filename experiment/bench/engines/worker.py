"""One engine in a process of its own, spoken to in JSON lines. It needs nothing but the engine's library.

    python experiment/bench/engines/worker.py with_rlms

A line on stdin is one request, a line on stdout its answer:

    {"op": "run", "mode": "threads", "base_urls": [...], "context": {"chars": 1000}, "questions": [...]}
    {"op": "health"}

An engine is a module here with `VERSION`, `NOTES` (its settings that are not the library's defaults) and
`run(task) -> answer`; `arun` too if the library can share an event loop.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LINE = "entry {number:>9}: the quick brown fox jumps over the lazy dog and runs on\n"


@dataclass(frozen=True)
class Limits:
    """What a run may use, the same for every engine, as far as its library has a limit of the kind."""

    turns: int = 20
    calls: int = 1_000
    output_chars: int = 10_000
    concurrency: int | None = None
    cell_seconds: float | None = None


@dataclass(frozen=True)
class Task:
    """One run: whom to ask, about what, and with which limits."""

    base_url: str
    context: str = field(repr=False)
    question: str
    model: str = (
        "gpt-4o-mini"  # the scripted one goes by a name that price tables have: for others they are searched
    )
    sub_model: str = ""
    api_key: str = "none"
    policy: str = ""
    limits: Limits = Limits()


def text_of(chars: int) -> str:
    """Return a text of so many characters, no two lines of which are the same."""
    length = len(_LINE.format(number=0))
    whole = min(chars // length + 1, 20_000)
    block = "".join(_LINE.format(number=number) for number in range(whole))
    return (block * (chars // len(block) + 1))[:chars]


class Worker:
    """Runs what it is asked to with one engine."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._texts: dict[str, str] = {}
        self._found = {"cwd": Path.cwd(), "stdout": sys.stdout}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request."""
        if request["op"] == "health":
            return self.health()
        if request["op"] == "about":
            return {"version": self._engine.VERSION, "notes": self._engine.NOTES, "modes": self._modes()}
        pairs = zip(request["base_urls"], request["questions"], strict=True)
        tasks = [self._task(request, url, question) for url, question in pairs]
        started = time.monotonic()
        outcomes = asyncio.run(self._all(tasks)) if request["mode"] == "async" else self._in_threads(tasks)
        return {"started": started, "ended": time.monotonic(), "outcomes": outcomes}

    def health(self) -> dict[str, Any]:
        """Return whether the process is as it was before."""
        try:
            here = Path.cwd() == self._found["cwd"]
        except OSError:
            here = False
        return {"cwd": here, "stdout": sys.stdout is self._found["stdout"], "threads": threading.active_count()}

    def _modes(self) -> list[str]:
        return ["threads", *(["async"] if hasattr(self._engine, "arun") else [])]

    def _task(self, request: dict[str, Any], base_url: str, question: str) -> Task:
        limits = Limits(**request.get("limits", {}))
        names = ("model", "sub_model", "api_key", "policy")
        given = {name: request[name] for name in names if name in request}
        return Task(base_url, self._text(request["context"]), question, **given, limits=limits)

    def _text(self, context: dict[str, Any]) -> str:
        key = json.dumps(context)
        if key not in self._texts:
            made = text_of(context["chars"]) if "chars" in context else Path(context["file"]).read_text("utf-8")
            self._texts = {key: made}
        return self._texts[key]

    def _in_threads(self, tasks: list[Task]) -> list[dict[str, Any]]:
        if len(tasks) == 1:
            return [self._one(tasks[0])]
        with ThreadPoolExecutor(len(tasks)) as pool:
            return list(pool.map(self._one, tasks))

    def _one(self, task: Task) -> dict[str, Any]:
        started = time.monotonic()
        try:
            return outcome(started, self._engine.run(task))
        except BaseException as error:  # noqa: BLE001  # a run that dies is a result
            return outcome(started, None, error)

    async def _all(self, tasks: list[Task]) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*map(self._aone, tasks)))

    async def _aone(self, task: Task) -> dict[str, Any]:
        started = time.monotonic()
        try:
            return outcome(started, await self._engine.arun(task))
        except BaseException as error:  # noqa: BLE001
            return outcome(started, None, error)


def outcome(started: float, answer: Any, error: BaseException | None = None) -> dict[str, Any]:
    """Return what became of a run: its answer or its error, and when it began and ended."""
    words = None if error is None else f"{type(error).__name__}: {error}"[:300]
    where = None if error is None else "".join(traceback.format_exception(error))[-1_500:]
    found = None if answer is None else str(answer)[:500]
    return {"answer": found, "error": words, "traceback": where, "started": started, "ended": time.monotonic()}


def main() -> None:
    """Serve requests until stdin ends. What engines print goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    try:
        worker = Worker(importlib.import_module(sys.argv[1]))
    except Exception as error:  # noqa: BLE001  # it says why it cannot run
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}), file=out, flush=True)
        return
    print(json.dumps({"ready": time.monotonic()}), file=out, flush=True)
    for line in requests:
        print(json.dumps(worker.answer(json.loads(line))), file=out, flush=True)


if __name__ == "__main__":
    main()
