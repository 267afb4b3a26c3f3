"""Stores cached answers in memory or SQLite, and makes callers of the same key wait for the first one."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
import time
import uuid
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeAlias

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_logger = logging.getLogger("dspy.rlm_dspy")

_APPLICATION_ID = 0x524C4D43
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS waits (asking TEXT NOT NULL, wanted TEXT NOT NULL, waiter TEXT NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
COMMIT;
"""
_REACHED = """
WITH RECURSIVE reached (key) AS (VALUES (?) UNION SELECT wanted FROM waits JOIN reached ON asking = reached.key)
SELECT key FROM reached
"""
_BUSY_SECONDS = 5.0
"""How long to wait for another process that writes."""
_REST_SECONDS = 30.0
"""How long a file that failed is left alone before it is tried again."""
_POLL_SECONDS = 0.02
_NEEDS_TO_WRITE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


class NotACacheError(ValueError):
    """The file was not made by a `SubCallCache`."""


_FAILURES = (sqlite3.Error, OSError, NotACacheError)


class AnswerStore:
    """Stores answers as text by key, in memory or in an SQLite file that processes share.

    What the file does not take (the disk is full, it is read-only, locked, or corrupt) stays in memory, with one
    warning, and is written as soon as the file takes it. Nothing here raises because of the file.

    Args:
        path: The file; None for memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._answers: dict[str, str] = {}
        """The answers that are not in the file."""
        self._asked: dict[str, threading.Event] = {}
        """The keys that this process asks for, or waits to ask for; set when it no longer does."""
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._locks: int | None = None
        self._warned = False
        self._rests_until = 0.0
        _stores.add(self)

    def open(self) -> None:
        """Open the file now rather than at its first use.

        Raises:
            NotACacheError: If it is something else. It was not changed.
        """
        with self._lock:
            try:
                self._connected()
            except NotACacheError:
                raise
            except _FAILURES as error:
                self._warn(error)

    def find(self, key: str) -> str | None:
        """Return the answer, or None if there is none."""
        with self._lock:
            if key in self._answers or self.path is None:
                return self._answers.get(key)
            rows = self._rows("SELECT answer FROM answers WHERE key = ?", key)
            return rows[0][0] if rows else None

    def keep(self, key: str, answer: str) -> None:
        """Store an answer."""
        with self._lock:
            self._answers[key] = answer
            if self.path is not None and time.monotonic() >= self._rests_until:
                self._write()

    def __len__(self) -> int:
        with self._lock:
            rows = self._rows("SELECT count(*) FROM answers") if self.path is not None else []
            return len(self._answers) + (rows[0][0] if rows else 0)

    def take(self, key: str, held: Held) -> bool:
        """Wait until nobody computes a key, then claim it until `release`.

        Threads of this process wait for an event, processes for a lock of the kernel, which ends with its process.

        Args:
            key: What to ask for.
            held: What the caller has taken already, and asks for just now.

        Returns:
            False if the wait would never end: whoever asks for the key waits for one of `held`, or may do so in
            another store. Nothing is taken then.
        """
        with self._waiting(key, held) as may_wait:
            while (other := self._claim(key)) is not None:
                if not may_wait():
                    return False
                other.wait()
            with contextlib.ExitStack() as undo:
                undo.callback(self._unclaim, key)
                while not self._lock_key(key):
                    if not may_wait():
                        return False
                    time.sleep(_POLL_SECONDS)
                undo.pop_all()
        self._forget_waits_of(key)
        return True

    def release(self, key: str) -> None:
        """Let others claim a key."""
        if self._locks is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _offset(key))
        self._unclaim(key)

    def close(self) -> None:
        """Write what is still in memory, and close the file; the next use opens it again."""
        with self._lock:
            if self._answers and self.path is not None:
                self._write()
            if self._connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.close()
                self._connection = None
            if self._locks is not None and not self._asked:
                os.close(self._locks)
                self._locks = None

    def __del__(self) -> None:
        self.close()

    def forked(self) -> None:
        """Start anew in a forked process: threads, locks and connections stay with its parent."""
        _of_the_parent.append(self._connection)  # SQLite forbids even to close it here
        self._connection, self._lock, self._asked = None, threading.Lock(), {}

    # Keys that are asked for

    def _claim(self, key: str) -> threading.Event | None:
        """Return what is set when this process no longer asks for a key; None if it did not: now it does."""
        with self._lock:
            if (other := self._asked.get(key)) is None:
                self._asked[key] = threading.Event()
            return other

    def _unclaim(self, key: str) -> None:
        with self._lock:
            claim = self._asked.pop(key, None)
        if claim is not None:
            claim.set()

    def _lock_key(self, key: str) -> bool:
        """Lock a key among processes; return False if another has it. Where that cannot be done, none waits.

        These are POSIX locks: forked processes do not inherit them, and all systems but Windows have them. They
        also end when this process closes any descriptor of the lock file, so it opens only one.
        """
        if self.path is None or fcntl is None:
            return True
        with self._tolerant():
            with self._lock:
                if self._locks is None:
                    locks = self.path.with_name(f"{self.path.name}.locks")
                    self._locks = os.open(locks, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(key))
            except (BlockingIOError, PermissionError):
                return False
        return True

    # Who waits for whom

    @contextlib.contextmanager
    def _waiting(self, key: str, held: Held) -> Iterator[Callable[[], bool]]:
        """Yield what notes, the first time it is called, that `held` waits for a key, and says whether it may."""
        noted: list[str] = []

        def may_wait() -> bool:
            if not noted:
                noted.append(self._note_wait(key, [each for _, each in held]))
            return bool(noted[0])

        if not held:
            yield lambda: True
        elif any(store is not self for store, _ in held):
            yield lambda: False
        else:
            try:
                yield may_wait
            finally:
                if any(noted):
                    with self._lock:
                        self._rows("DELETE FROM waits WHERE waiter = ?", noted[0])

    def _note_wait(self, key: str, held: list[str]) -> str:
        """Note that `held` waits for a key; return the name of the note, or nothing if it would wait for ever."""
        waiter = uuid.uuid4().hex
        with self._lock, self._tolerant(), self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            if not {row[0] for row in connection.execute(_REACHED, (key,))}.isdisjoint(held):
                return ""
            rows = [(each, key, waiter) for each in held]
            connection.executemany("INSERT INTO waits VALUES (?, ?, ?)", rows)
            return waiter
        return ""

    def _forget_waits_of(self, key: str) -> None:
        """Forget for whom an earlier asker of a key waited, that was killed meanwhile."""
        if self.path is None:
            return
        with self._lock:
            if self._rows("SELECT 1 FROM waits WHERE asking = ? LIMIT 1", key):
                self._rows("DELETE FROM waits WHERE asking = ?", key)

    # The file

    def _rows(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        with self._tolerant():
            return self._connected().execute(statement, values).fetchall()
        return []

    def _write(self) -> None:
        """Move what is in memory to the file."""
        with self._tolerant():
            self._connected().executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", self._answers.items())
            self._answers.clear()
            return
        self._rests_until = time.monotonic() + _REST_SECONDS

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            if time.monotonic() < self._rests_until:
                raise sqlite3.OperationalError("it could not be opened")
            try:
                self._connection = _connect(self.path)
            except _FAILURES:
                self._rests_until = time.monotonic() + _REST_SECONDS
                raise
        return self._connection

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Go on behind this scope when the file fails, with one warning."""
        try:
            yield
        except _FAILURES as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning(
                "SubCallCache(%r): %s. Answers that the file does not take stay in memory.", str(self.path), error
            )


Held: TypeAlias = tuple[tuple[AnswerStore, str], ...]
"""What is asked for, from the outermost inwards: an RLM inside a sub-call asks while its sub-call is asked for."""
held: ContextVar[Held] = ContextVar("held", default=())
"""What is asked for in this context."""

_stores: weakref.WeakSet[AnswerStore] = weakref.WeakSet()
_shared: weakref.WeakValueDictionary[str, AnswerStore] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()
_of_the_parent: list[sqlite3.Connection | None] = []


def store_at(path: Path | None) -> AnswerStore:
    """Return the store of a file, one per process; for None a new store in memory."""
    if path is None:
        return AnswerStore(None)
    with _shared_lock:
        name = os.path.realpath(path)
        if (store := _shared.get(name)) is None:
            store = _shared[name] = AnswerStore(path)
        return store


def _connect(path: Path | None) -> sqlite3.Connection:
    """Return a connection to a file, which is made if it is not there.

    Raises:
        NotACacheError: If it is something else.
        sqlite3.Error: If SQLite cannot use it.
        OSError: If it cannot be made.
    """
    if path is None:
        return _prepared(":memory:", path)
    if path.is_dir():
        raise NotACacheError(f"SubCallCache({str(path)!r}): the path is a directory; name a file in it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # not opened then: closing it would end SQLite's own locks
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return _prepared(path.as_uri(), path)
        except sqlite3.OperationalError as error:
            if _kind(error) in _NEEDS_TO_WRITE and not os.access(path.parent, os.W_OK):
                return _prepared(f"{path.as_uri()}?immutable=1", path)  # a WAL needs files beside it
            # SQLite does not wait by itself while another process makes the file a WAL
            if _kind(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(_POLL_SECONDS)


def _prepared(uri: str, path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path | None) -> None:
    made_by = _made_by(connection)
    if made_by not in (_APPLICATION_ID, None):
        raise NotACacheError(
            f"SubCallCache({str(path)!r}): this file was not made by SubCallCache, which keeps answers in an "
            "SQLite file (JSON lines no longer). Give another path, or move the file away; it was not changed."
        )
    if made_by is None:
        connection.executescript(_SCHEMA)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


def _made_by(connection: sqlite3.Connection) -> int | None:
    """Return the number of the application that made a file; None if it is empty."""
    try:
        ((number,),) = connection.execute("PRAGMA application_id")
        ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.DatabaseError as error:
        if _kind(error) != sqlite3.SQLITE_NOTADB:
            raise
        return 0
    return number if number or tables else None


def _kind(error: sqlite3.Error) -> int:
    return (error.sqlite_errorcode or 0) & 0xFF


def _offset(key: str) -> int:
    """Return the byte of the lock file that stands for a key. The file has no bytes, nor needs any."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7])


def _close_all() -> None:
    for store in list(_stores):
        store.close()


def _forked() -> None:
    global _shared_lock  # noqa: PLW0603  # another thread of the parent may have held it
    _shared_lock = threading.Lock()
    for store in list(_stores):
        store.forked()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
