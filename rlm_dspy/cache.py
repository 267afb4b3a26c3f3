"""Answers of sub-calls, kept so that the same is not asked twice."""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlm_dspy.inputs import Text

if TYPE_CHECKING:
    import os
    from collections.abc import Callable


class SubCallCache:
    """Keeps the answers of sub-calls that succeeded; failures are never kept.

    Each run has one for itself and its children. `RLM(..., cache=SubCallCache())` serves all runs of a module,
    with its copies: retries, optimizer rollouts, other threads. With a path it outlives the process.

    An answer is found again by the state of the predictor (signature, instructions, demos), the model with its
    options (temperature and `rollout_id` among them), and the inputs. The Python code of a module of yours is not
    looked at: delete the file when it changes. `RLM(..., cache=False)` asks anew every time, also for equal items
    of one batch.

    Args:
        path: A file of JSON lines that is read at first use and appended to; None to keep answers in memory.

    Raises:
        OSError: At first use, if the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else None
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[str, Any] | None = None
        self._under_way: dict[str, Future[None]] = {}

    def get(self, key: str) -> tuple[bool, Any]:
        """Return whether there is an answer, and the answer."""
        with self._lock:
            answers = self._loaded()
            return key in answers, answers.get(key)

    def once(self, key: str, ask: Callable[[], Any]) -> tuple[Any, bool]:
        """Return the answer, asking for it if nobody has and nobody is; and whether it was there already.

        Raises:
            Exception: What `ask` raises. Nothing is kept then, and whoever waited for it asks itself.
        """
        while True:
            with self._lock:
                answers = self._loaded()
                if key in answers:
                    return answers[key], True
                waiting = self._under_way.get(key)
                if waiting is None:
                    mine = self._under_way[key] = Future[None]()
            if waiting is None:
                break
            waiting.result()
        try:
            answer = ask()
            with self._lock:
                self._keep(key, answer)
            return answer, False
        finally:
            with self._lock:
                del self._under_way[key]
            mine.set_result(None)

    def __len__(self) -> int:
        with self._lock:
            return len(self._loaded())

    def _loaded(self) -> dict[str, Any]:
        if self._answers is None:
            self._answers = {}
            if self.path is not None and self.path.exists():
                for line in self.path.read_text(encoding="utf-8").splitlines():
                    try:
                        entry = json.loads(line)
                        self._answers[entry["key"]] = entry["answer"]
                    except (ValueError, KeyError, TypeError):  # cut off when a process was killed
                        continue
        return self._answers

    def _keep(self, key: str, answer: Any) -> None:
        self._loaded()[key] = answer
        if self.path is not None:
            line = json.dumps({"key": key, "answer": answer}) + "\n"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)

    def __deepcopy__(self, memo: dict[int, Any]) -> SubCallCache:
        """Stay the same object: optimizers copy modules, and the copies share what was paid for."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._reset()


def _written(value: Any) -> str:
    return str(value) if isinstance(value, Text) else repr(value)


def digest(*parts: Any) -> str:
    """Return the key of what these parts ask."""
    text = json.dumps(parts, sort_keys=True, default=_written, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
