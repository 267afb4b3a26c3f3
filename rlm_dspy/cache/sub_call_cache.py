"""Caches the answers to sub-calls, so that an identical call is made only once."""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
import uuid
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import dspy
from pydantic import BaseModel

from rlm_dspy.cache.answer_store import AnswerStore, held, store_at
from rlm_dspy.inputs import Text

if TYPE_CHECKING:
    import os
    from collections.abc import Callable


class SubCallCache:
    """Keeps the answers of sub-calls that succeeded; failures are never kept.

    Each run has one for itself and its children. `RLM(..., cache=SubCallCache())` serves all runs of a module,
    with its copies: retries, optimizer rollouts, other threads. With a path it outlives the process, and processes
    share it while they run: an answer that one has is there for the others at once.

    Of those who ask the same at the same time one asks, and the others wait for its answer. If it fails or is
    killed, the next one asks. On Windows, and where the file system has no locks, processes do not wait for each
    other; threads always do.

    An answer is found again by the state of the predictor (signature, instructions, demos), the model with its
    options (temperature and `rollout_id` among them, but not keys and headers), and the inputs. The Python code of
    a module of yours is not looked at: delete the file when it changes. `RLM(..., cache=False)` asks anew every
    time, also for equal items of one batch.

    Args:
        path: An SQLite file, made with its folder if it is not there, and readable by its owner only;
            `<path>.locks` is made beside it. None keeps answers in memory. While the file cannot be used (the disk
            is full, it is read-only, locked, or corrupt), answers stay in memory, which one warning tells.

    Raises:
        ValueError: If there is a file that is no such cache. It is not changed.

    Example:
        >>> with SubCallCache() as cache:
        ...     cache.once("key", lambda: "paid"), cache.once("key", lambda: "again")
        (('paid', False), ('paid', True))
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path).absolute() if path is not None else None
        self._store: AnswerStore | None = store_at(self.path)
        if self.path is not None:
            self._store.open()

    def get(self, key: str) -> tuple[bool, Any]:
        """Return whether there is a cached answer, and the answer."""
        known = self._opened().find(key)
        return (False, None) if known is None else (True, json.loads(known))

    def once(self, key: str, ask: Callable[[], Any]) -> tuple[Any, bool]:
        """Return the answer and whether it was cached; compute it unless another caller already does.

        It blocks while another asks. What is asked inside of `ask` never waits for something that waits for it: it
        is asked a second time instead.

        Args:
            key: What is asked, as `digest` gives it.
            ask: Returns the answer, as JSON has it; anything else is returned, but not kept.

        Raises:
            Exception: What `ask` raises. Nothing is kept then, and whoever waited for it asks itself.
        """
        store, outer = self._opened(), held.get()
        known = store.find(key)
        if known is None and not store.take(key, outer):
            return _ask(store, key, ask), False
        if known is not None:
            return json.loads(known), True
        token = held.set((*outer, (store, key)))
        try:
            known = store.find(key)  # who asked before may have kept it
            return (json.loads(known), True) if known is not None else (_ask(store, key, ask), False)
        finally:
            held.reset(token)
            store.release(key)

    def __len__(self) -> int:
        return len(self._opened())

    def close(self) -> None:
        """Close the file; a cache in memory is emptied. The next use opens it again."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> SubCallCache:
        """Stay the same object: optimizers copy modules, and the copies share what was paid for."""
        return self

    def __getstate__(self) -> dict[str, Path | None]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Path | None]) -> None:
        self.path = state["path"]
        self._store = None

    def _opened(self) -> AnswerStore:
        store = self._store
        if store is None:
            store = self._store = store_at(self.path)
        return store


def _ask(store: AnswerStore, key: str, ask: Callable[[], Any]) -> Any:
    answer = ask()
    try:
        written = json.dumps(answer)
    except (TypeError, ValueError, RecursionError):  # it is paid for, and goes to who asked all the same
        return answer
    store.keep(key, written)
    return answer


def digest(*parts: Any) -> str:
    """Return the cache key of these parts: equal parts have the same key in every process."""
    try:
        text = json.dumps(_told(parts), ensure_ascii=False)
    except RecursionError:  # nested too deeply to be compared: it is found by nobody
        text = uuid.uuid4().hex
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _told(value: Any) -> Any:
    """Return all that a value holds, as JSON, in an order that does not depend on the process."""
    told: Any
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Text):
        return str(value)
    if isinstance(value, list | tuple):
        return [_told(item) for item in value]
    if isinstance(value, dict | dspy.Example):
        told = sorted(([json.dumps(_told(name)), _told(item)] for name, item in value.items()), key=itemgetter(0))
    elif isinstance(value, set | frozenset):
        told = sorted(json.dumps(_told(item)) for item in value)
    elif isinstance(value, BaseModel):
        told = {name: _told(getattr(value, name)) for name in type(value).model_fields}
    elif isinstance(value, type) or inspect.isroutine(value):
        told = [value.__module__, value.__qualname__]
    else:
        try:
            told = hashlib.sha256(pickle.dumps(value)).hexdigest()
        except Exception:  # noqa: BLE001  # an object that cannot be pickled may raise anything
            told = repr(value)
    return [type(value).__module__, type(value).__qualname__, told]
