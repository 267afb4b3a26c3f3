"""Defines `AnswerFile`: the SQLite file in which processes share answers and see what others compute."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator
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
"""Seconds to wait for another process that writes."""
_REST_SECONDS = 30.0
"""Seconds before a failed file is tried again."""
POLL_SECONDS = 0.02
_NEEDS_TO_WRITE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


class NotACacheError(ValueError):
    """The file was not made by a `SubCallCache`."""


_FAILURES = (sqlite3.Error, OSError, NotACacheError)


@dataclass(eq=False)
class AnswerFile:
    """Holds answers as text by key, records which keys are being computed, and which process waits for which.

    If the file fails (full disk, read-only, locked or corrupt), `open` raises; the other methods log one warning
    and treat the file as empty.

    Args:
        path: The file; None for a database in memory.
    """

    path: Path | None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _connection: sqlite3.Connection | None = None
    _locks: int | None = None
    _warned: bool = False
    _rests_until: float = 0.0

    def open(self) -> None:
        """Open the file now instead of at its first use.

        Raises:
            NotACacheError: If it is another kind of file. It is not changed.
        """
        try:
            with self._lock:
                self._connected()
        except _FAILURES as error:
            if isinstance(error, NotACacheError):
                raise
            self._warn(error)

    def find(self, key: str) -> str | None:
        """Return the answer, or None if there is none."""
        rows = self._rows("SELECT answer FROM answers WHERE key = ?", key)
        return rows[0][0] if rows else None

    def __len__(self) -> int:
        rows = self._rows("SELECT count(*) FROM answers")
        return rows[0][0] if rows else 0

    def take(self, answers: dict[str, str], *, at_once: bool = False) -> None:
        """Move answers to the file, unless it failed recently.

        Args:
            answers: The answers by key; stored ones are removed from it.
            at_once: Whether to try even if the file failed recently.
        """
        if answers and (at_once or time.monotonic() >= self._rests_until):
            with self._tolerant():
                self._connected().executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", answers.items())
                answers.clear()
                return
            self._rests_until = time.monotonic() + _REST_SECONDS

    def close(self, *, with_locks: bool) -> None:
        """Close the file; the next use opens it again.

        Args:
            with_locks: Whether to close the lock file too, if this process computes nothing.
        """
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.close()
                self._connection = None
            if self._locks is not None and with_locks:
                os.close(self._locks)
                self._locks = None

    def forked(self) -> None:
        """Start anew in a forked process: locks and connections stay with its parent."""
        _of_the_parent.append(self._connection)  # SQLite forbids even closing it here
        self._connection, self._lock = None, threading.Lock()

    # Keys being computed

    def lock(self, key: str) -> bool:
        """Lock a key across processes; return False if another process holds it. Without locks, no process waits.

        These are POSIX locks: forked processes do not inherit them, and all systems but Windows have them. They
        also end when this process closes any descriptor of the lock file, so it opens only one.
        """
        if self.path is None or fcntl is None:
            return True
        with self._tolerant():
            if self._locks is None:
                locks = self.path.with_name(f"{self.path.name}.locks")
                self._locks = os.open(locks, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _offset(key))
            except (BlockingIOError, PermissionError):
                return False
        # An earlier waiter may have been killed.
        if self._rows("SELECT 1 FROM waits WHERE asking = ? LIMIT 1", key):
            self._rows("DELETE FROM waits WHERE asking = ?", key)
        return True

    def unlock(self, key: str) -> None:
        """Let other processes lock a key."""
        if self._locks is not None:
            with contextlib.suppress(OSError):
                fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _offset(key))

    def note_wait(self, key: str, held: list[str]) -> str:
        """Record that the process that computes `held` waits for a key.

        Returns:
            The name of the record; empty if waiting would be a deadlock, which is not recorded.
        """
        waiter = uuid.uuid4().hex
        with self._tolerant(), self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            if not {row[0] for row in connection.execute(_REACHED, (key,))}.isdisjoint(held):
                return ""
            rows = [(each, key, waiter) for each in held]
            connection.executemany("INSERT INTO waits VALUES (?, ?, ?)", rows)
            return waiter
        return ""

    def forget_wait(self, note: str) -> None:
        """Delete the record of a wait that has ended."""
        self._rows("DELETE FROM waits WHERE waiter = ?", note)

    # The connection

    def _rows(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        with self._tolerant():
            return self._connected().execute(statement, values).fetchall()
        return []

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Let one thread use the file in this scope; if the file fails, leave the scope with one warning."""
        try:
            with self._lock:
                yield
        except _FAILURES as error:
            self._warn(error)

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

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning(
                "SubCallCache(%r): %s. Answers that are not stored in the file stay in memory.",
                str(self.path),
                error,
            )


_of_the_parent: list[sqlite3.Connection | None] = []


def _connect(path: Path | None) -> sqlite3.Connection:
    """Return a connection to a file; create the file if it does not exist.

    Raises:
        NotACacheError: If it is another kind of file.
        sqlite3.Error: If SQLite cannot use it.
        OSError: If it cannot be created.
    """
    if path is None:
        return _prepared(":memory:", path)
    if path.is_dir():
        raise NotACacheError(f"SubCallCache({str(path)!r}): the path is a directory; name a file in it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # not opened: closing it would release SQLite's own locks
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return _prepared(path.as_uri(), path)
        except sqlite3.OperationalError as error:
            if _kind(error) in _NEEDS_TO_WRITE and not os.access(path.parent, os.W_OK):
                return _prepared(f"{path.as_uri()}?immutable=1", path)  # a WAL needs files beside it
            # SQLite itself does not wait while another process switches the file to WAL
            if _kind(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(POLL_SECONDS)


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
    """Return the application id of a file; None if it is empty.

    The tables are counted first: another process may create them and set the id in between.
    """
    try:
        ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
        ((number,),) = connection.execute("PRAGMA application_id")
    except sqlite3.DatabaseError as error:
        if _kind(error) != sqlite3.SQLITE_NOTADB:
            raise
        return 0
    return number if number or tables else None


def _kind(error: sqlite3.Error) -> int:
    return (error.sqlite_errorcode or 0) & 0xFF


def _offset(key: str) -> int:
    """Return the offset in the lock file that represents a key. The file is empty and need not be longer."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7])
