"""Caches the answers to sub-calls, so that an identical call is made only once."""

from __future__ import annotations

import atexit
import hashlib
import inspect
import json
import os
import pickle
import sys
import threading
import time
import uuid
import weakref
from contextvars import ContextVar
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import dspy
from pydantic import BaseModel

from rlm_dspy.cache.answer_file import POLL_SECONDS, AnswerFile
from rlm_dspy.cache.answer_server import SCHEMES, AnswerServer
from rlm_dspy.inputs import HostInput, Text
from rlm_dspy.json_values import fields_of_model

if TYPE_CHECKING:
    from collections.abc import Callable


class SubCallCache:
    """Caches the answers of successful sub-calls; failures are never cached.

    By default each run has its own cache, which its children share. `RLM(..., cache=SubCallCache())` serves all
    runs of a module and its copies: retries, optimizer rollouts, other threads. With a path the cache outlives the
    process, and running processes share it: an answer of one is available to the others at once.

    Of concurrent identical calls, one is made and the others wait for its answer. If it fails or its process is
    killed, the next caller makes the call. On Windows, and on file systems without locks, processes do not wait
    for each other; threads always do.

    The key consists of the state of the predictor (signature, instructions, demos), the model with its
    options (including temperature and `rollout_id`, but not keys and headers), and the inputs. The Python code of
    your own modules is not part of it: delete the file when the code changes. `RLM(..., cache=False)` makes every
    call, also for equal items of one batch.

    Args:
        path: An SQLite file. It is created with its folder if it does not exist, and only its owner can read it;
            `<path>.locks` is created beside it. None keeps answers in memory. While the file cannot be used (the
            disk is full, it is read-only, locked, or corrupt), answers stay in memory, and one warning is logged.
            Or the address of a Redis server, `redis://host:6379/0`, for processes on several machines (extra
            `redis`): a call that a killed process made is made again after 30 seconds at most.

    Raises:
        ValueError: If the file is not such a cache (it is not changed), or the address is not valid.
        ImportError: If the extra `redis` is needed and not installed.

    Examples:
        >>> with SubCallCache() as cache:
        ...     cache.once("key", lambda: "paid"), cache.once("key", lambda: "again")
        (('paid', False), ('paid', True))
    """

    path: Path | str | None

    def __new__(cls, path: str | os.PathLike[str] | None = None) -> Self:
        """Return the cache of a file: one per process, so that its users wait for one another."""
        with _shared_lock:
            server = str(path) if str(path).startswith(SCHEMES) else ""
            if not server and "://" in str(path):
                raise ValueError(
                    f"SubCallCache takes a file, or a server's address with {', '.join(SCHEMES)}; not {path!r}."
                )
            name = server or ("" if path is None else os.path.realpath(path))
            if (known := _shared.get(name)) is not None:
                return known  # type: ignore[return-value]
            cache = super().__new__(cls)
            file = None if path is None else Path(path).absolute()
            cache.path = server or file
            cache._file = AnswerServer(server) if server else AnswerFile(file)
            cache._answers = {}
            cache._asked = {}
            cache._lock = threading.Lock()
            _caches.add(cache)
            if name:
                _shared[name] = cache
            return cache

    _file: AnswerFile | AnswerServer
    _answers: dict[str, str]
    """The answers that are not stored in the file."""
    _asked: dict[str, threading.Event]
    """The keys that this process computes or waits for, each with an event that is set at the end."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        if path is not None:
            self._file.open()

    def get(self, key: str) -> tuple[bool, Any]:
        """Return whether there is a cached answer, and the answer.

        Args:
            key: The key of the call, from `digest`.
        """
        known = self._find(key)
        return (False, None) if known is None else (True, json.loads(known))

    def once(self, key: str, ask: Callable[[], Any]) -> tuple[Any, bool]:
        """Return the answer and whether it was cached; compute it unless another caller already does.

        It blocks while another caller computes. A call inside `ask` never waits for a call that waits for it, but
        is made a second time.

        Args:
            key: The key of the call, from `digest`.
            ask: Returns the answer as JSON-like data; other values are returned but not cached.

        Raises:
            Exception: What `ask` raises. Nothing is cached, and a waiting caller computes it itself.
        """
        outer = _held.get()
        known = self._find(key)
        if known is None and not self._take(key, outer):
            return self._kept(key, ask()), False
        if known is not None:
            return json.loads(known), True
        token = _held.set((*outer, (self, key)))
        try:
            known = self._find(key)  # an earlier caller may have stored it
            return (json.loads(known), True) if known is not None else (self._kept(key, ask()), False)
        finally:
            _held.reset(token)
            if self.path is not None:
                self._file.unlock(key)
            self._unclaim(key)

    def __len__(self) -> int:
        with self._lock:
            return len(self._answers) + (len(self._file) if self.path is not None else 0)

    def close(self) -> None:
        """Close the file; a cache in memory is emptied. The next use opens it again."""
        with self._lock:
            if self.path is not None:
                self._file.take(self._answers, at_once=True)
            else:
                self._answers.clear()
            self._file.close(with_locks=not self._asked)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not sys.is_finalizing():  # it was closed at exit
            self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> SubCallCache:
        """Return the same object, so that the copies of a module that optimizers make share paid answers."""
        return self

    def __getnewargs__(self) -> tuple[Path | str | None]:
        """Pickle the path of the file or the address; the unpickled cache opens it at its first use."""
        return (self.path,)

    def __getstate__(self) -> None:
        """Pickle no other state."""

    def _find(self, key: str) -> str | None:
        with self._lock:
            if key in self._answers or self.path is None:
                return self._answers.get(key)
        return self._file.find(key)

    def _kept(self, key: str, answer: Any) -> Any:
        try:
            written = json.dumps(answer)
        except (TypeError, ValueError, RecursionError):  # the caller gets the paid answer anyway
            return answer
        with self._lock:
            self._answers[key] = written
            if self.path is not None:
                self._file.take(self._answers)
        return answer

    def _take(self, key: str, held: Held) -> bool:
        """Wait until no other caller computes a key, then claim it.

        Threads of this process wait for an event, processes for a kernel lock, which ends with its process.

        Args:
            key: The key to claim.
            held: The keys that the caller computes now.

        Returns:
            False if it would be a deadlock: the holder of the key waits for one of `held`, or may do so in
            another cache. Nothing is claimed then.
        """
        note, claimed = "", False
        try:
            while True:
                with self._lock:
                    if (other := None if claimed else self._asked.get(key)) is None:
                        self._asked.setdefault(key, threading.Event())
                        claimed = True
                if other is None and (self.path is None or self._file.lock(key)):
                    claimed = False  # owned by the caller from now on
                    return True
                if held and not note:
                    own = all(cache is self for cache, _ in held)
                    note = self._file.note_wait(key, [each for _, each in held]) if own else ""
                    if not note:
                        return False
                if other is None:
                    time.sleep(POLL_SECONDS)
                else:
                    other.wait()
        finally:
            if claimed:
                self._unclaim(key)
            if note:
                self._file.forget_wait(note)

    def _unclaim(self, key: str) -> None:
        with self._lock:
            claim = self._asked.pop(key, None)
        if claim is not None:
            claim.set()

    def forked(self) -> None:
        """Start anew in a forked process: threads and locks stay with its parent."""
        self._lock, self._asked = threading.Lock(), {}
        self._file.forked()


Held: TypeAlias = tuple[tuple[SubCallCache, str], ...]
_held: ContextVar[Held] = ContextVar("held", default=())
"""The keys computed in this context, outermost first: an RLM makes calls inside a sub-call."""
_caches: weakref.WeakSet[SubCallCache] = weakref.WeakSet()
_shared: weakref.WeakValueDictionary[str, SubCallCache] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


def _close_all() -> None:
    for cache in list(_caches):
        cache.close()


def _forked() -> None:
    global _shared_lock  # noqa: PLW0603  # another thread of the parent may have held the old one
    _shared_lock = threading.Lock()
    for cache in list(_caches):
        cache.forked()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def digest(*parts: Any) -> str:
    """Return the cache key of these parts: equal parts have the same key in every process."""
    try:
        text = json.dumps(_content_of(parts), ensure_ascii=False)
    except RecursionError:  # nested too deeply to compare: never found again
        text = uuid.uuid4().hex
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _content_of(value: Any) -> Any:
    """Return the content of a value as JSON, in an order that is the same in every process."""
    content: Any
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Text):
        return str(value)
    if isinstance(value, HostInput):
        return value.digest()[1]
    if isinstance(value, list | tuple):
        return [_content_of(item) for item in value]
    if isinstance(value, dict | dspy.Example):
        items = ([json.dumps(_content_of(name)), _content_of(item)] for name, item in value.items())
        content = sorted(items, key=itemgetter(0))
    elif isinstance(value, set | frozenset):
        content = sorted(json.dumps(_content_of(item)) for item in value)
    elif isinstance(value, BaseModel):
        content = {name: _content_of(item) for name, item in fields_of_model(value).items()}
    elif isinstance(value, type) or inspect.isroutine(value):
        content = [value.__module__, value.__qualname__]
    else:
        try:
            content = hashlib.sha256(pickle.dumps(value)).hexdigest()
        except Exception:  # noqa: BLE001  # an object that cannot be pickled may raise anything
            content = repr(value)
    return [type(value).__module__, type(value).__qualname__, content]
