"""Sends input values from the host to a worker; workers share one copy of a long text.

A long `str` or `bytes` and a text file are written once to sealed memory and attached; everything else is pickled,
with the buffers of arrays beside the pickle. Pickles travel from the host to the worker only.
"""

from __future__ import annotations

import base64
import codecs
import dataclasses
import enum
import importlib
import io
import operator
import os
import pickle
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from operator import methodcaller
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import dspy
from pydantic import BaseModel

from rlm_dspy.interpreters.worker import memory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from rlm_dspy.interpreters.worker.frames import Value

T = TypeVar("T")

_SHARED_FROM = 32 << 10
"""Characters or bytes from which a value gets shared memory of its own; shorter ones ride in the frame."""
_LONG_INT = 1 << 64
"""Python writes no int of more than 4,300 digits as text, so JSON cannot hold it; a pickle can."""
_ALIGNMENT = 64
_CHUNK = 4 << 20


class CannotCross(dspy.CodeInterpreterError, TypeError):  # noqa: N818 (a reason, as DSPy words its own)
    """A value cannot be sent to a worker; the message says what to pass instead."""


@runtime_checkable
class FileText(Protocol):
    """A text that stands for a UTF-8 file, as `rlm_dspy.Text` does; with no path it is what `str` gives."""

    path: Path | None
    encoding: str

    def reader(self) -> BinaryIO:
        """Open the file."""


class Copied(NamedTuple):
    """A value that a worker keeps in memory of its own, which code can free; others are mapped until it ends."""

    value: Any


Key = int | tuple[str, int, int, int, int]
"""The `id` of a value, or a file as it is now: path, device, number, size, time."""


class Shared:
    """One value in sealed memory, used by any number of sessions."""

    def __init__(self, key: Key, value: str | bytes | None) -> None:
        self.key = key
        self.value = value
        self.users = 0
        self.writing = threading.Lock()
        self.fd = -1
        self.layout = memory.Layout("bytes", 0)

    def release(self) -> None:
        """Give it back; the memory goes with the last user."""
        with _lock:
            self.users -= 1
            if self.users == 0:
                del _all[self.key]
                if self.fd >= 0:
                    os.close(self.fd)


_all: dict[Key, Shared] = {}
_lock = threading.Lock()


def _forget_all() -> None:
    """In a forked child of the host: what the parent shares is not the child's."""
    global _lock  # noqa: PLW0603 (another thread may have held it at the fork)
    _lock = threading.Lock()
    for shared in _all.values():
        with suppress(OSError):
            os.close(shared.fd)
    _all.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_all)


def _share(key: Key, value: str | bytes | None, publish: Callable[[], tuple[int, memory.Layout]]) -> Shared:
    with _lock:
        shared = _all.setdefault(key, Shared(key, value))
        shared.users += 1
    try:
        with shared.writing:
            if shared.fd < 0:
                shared.fd, shared.layout = publish()
    except BaseException:
        shared.release()
        raise
    return shared


StandIn = Callable[[Any], "tuple[Any, ...] | None"]
"""Returns, for a value of the host's own classes, a function of the REPL and the arguments that make its stand-in
there; None to leave the value unchanged."""


class Forms:
    """Values in the form in which they cross to a worker. Close it when they are sent.

    Args:
        modules: Names of the packages, beside the standard library, that the worker can import.
        stand_in: What to make of values whose package the worker does not have.

    Attributes:
        frames: What the worker reads, by name.
        fds: Its descriptors, in order.
        mapped: Bytes the worker maps.
        private: Those of them that it may change, in copies of its own.
        shared: The shared memory in use that nobody has taken over yet.
    """

    def __init__(self, modules: frozenset[str], stand_in: StandIn | None = None) -> None:
        self.frames: dict[str, Value] = {}
        self.fds: list[int] = []
        self.mapped = self.private = 0
        self.shared: list[Shared] = []
        self.modules, self.stand_in = modules, stand_in
        self._own: list[int] = []

    def add(self, name: str, value: Any) -> None:
        """Take a value in.

        Raises:
            CannotCross: If the worker could not have it.
            OSError: If its file cannot be read, or memory is full.
        """
        self.frames[name] = self._form(value)

    def close(self) -> None:
        """Close the descriptors that are of these values alone, and give back what nobody has taken over."""
        while self._own:
            os.close(self._own.pop())
        while self.shared:
            self.shared.pop().release()

    def _form(self, value: Any) -> Value:
        if value is None or type(value) in (bool, float) or (type(value) is int and abs(value) < _LONG_INT):
            return {"json": value}
        if isinstance(value, FileText) and not isinstance(value, type):
            return self._form(str(value)) if value.path is None else self._in_shared(_of_file(value))
        if isinstance(value, Copied):
            return self._copied(value.value)
        if isinstance(value, str) and not isinstance(value, enum.Enum):
            value = str.__str__(value)
            if len(value) < _SHARED_FROM:
                return {"json": value}
        elif type(value) is not bytes or len(value) < _SHARED_FROM:
            return self._pickled(value)
        return self._in_shared(_share(id(value), value, lambda: memory.published(value)))

    def _in_shared(self, shared: Shared) -> Value:
        self.shared.append(shared)
        self.fds.append(shared.fd)
        self.mapped += shared.layout.size
        return {"layout": shared.layout}

    def _pickled(self, value: Any) -> Value:
        stream, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
        try:
            _Pickler(stream, buffers, self).dump(value)
        except CannotCross:
            raise
        except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise CannotCross(
                f"a {type(value).__name__} cannot enter the worker: {error}; pass plain data, such as a list, a "
                "text or bytes, that is not nested too deeply"
            ) from error
        if not buffers and stream.tell() < _SHARED_FROM:
            return {"pickle": base64.b64encode(stream.getvalue()).decode()}
        return self._in_memory([stream.getbuffer(), *(buffer.raw() for buffer in buffers)])

    def _copied(self, value: Any) -> Value:
        stream = io.BytesIO()
        _Pickler(stream, None, self).dump(value)
        with memory.created() as fd:
            memory.write(fd, [stream.getbuffer()])
        self.fds.append(fd)
        self._own.append(fd)
        return {"file": True}

    def _in_memory(self, parts: list[memoryview]) -> Value:
        """Write a pickle and its buffers one after the other, each where an array may begin."""
        spans, at = [], 0
        with memory.created() as fd:
            for part in parts:
                padding = bytes(-part.nbytes % _ALIGNMENT)
                memory.write(fd, [part, padding])
                spans.append((at, at + part.nbytes))
                at += part.nbytes + len(padding)
        self.fds.append(fd)
        self._own.append(fd)
        self.mapped += at
        self.private += at
        return {"spans": spans}


def _of_file(text: FileText) -> Shared:
    with text.reader() as file:
        status = os.fstat(file.fileno())
        key = (str(text.path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return _share(key, None, lambda: published_file(file))


def published_file(file: BinaryIO) -> tuple[int, memory.Layout]:
    """Write the text of a UTF-8 file to sealed memory, without a byte order mark, a few megabytes at a time.

    Raises:
        UnicodeDecodeError: If the file is not UTF-8.
        OSError: If it cannot be read.
    """
    kind, ascii_ = _width(file)
    length = 0
    with memory.created() as fd:
        for text in _texts(file):
            length += len(text)
            memory.write(fd, [text.encode(memory.ENCODINGS[kind])])
        memory.write(fd, [bytes(kind)])
    return fd, memory.Layout("str", length, kind, ascii_)


def _texts(file: BinaryIO) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    file.seek(0)
    while chunk := file.read(_CHUNK):
        yield decode(chunk)
    decode(b"", final=True)


def _width(file: BinaryIO) -> tuple[int, bool]:
    """Return how many bytes the widest character of the file takes in a str, and whether all are ASCII."""
    kind, ascii_ = 1, True
    for text in _texts(file):
        ascii_ = ascii_ and text.isascii()
        kind = max(kind, 1 if text.isascii() else memory.narrowest(text))
        if kind == 4:  # noqa: PLR2004 (the widest there is)
            break
    return kind, ascii_


class _Pickler(pickle.Pickler):
    """Pickles what the worker can rebuild.

    Models and dataclasses of the host's own become dicts. Other objects become what their class extends: a list of
    the host's own class becomes a list.
    """

    def __init__(self, file: io.BytesIO, buffers: list[pickle.PickleBuffer] | None, forms: Forms) -> None:
        super().__init__(file, protocol=5, buffer_callback=None if buffers is None else buffers.append)
        self._modules, self._stand_in = forms.modules, forms.stand_in

    def reducer_override(self, value: Any) -> Any:
        made = None if self._stand_in is None or self._is_known(type(value)) else self._stand_in(value)
        if made is not None or value is _MAIN:
            return (importlib.import_module, ("__main__",)) if made is None else (methodcaller(*made), (_MAIN,))
        if isinstance(value, BaseModel):
            return _replaced_by(value.model_dump())
        if isinstance(value, dspy.Prediction | dspy.Example):
            return dict, (dict(value.items()),)
        kind = value if isinstance(value, type) or callable(value) else type(value)
        return NotImplemented if self._is_known(kind) else _in_plain_form(value, kind)

    def _is_known(self, kind: Callable[..., Any]) -> bool:
        """Whether the worker has the package of a class or a function."""
        package = _package(kind)
        return package in self._modules or (package in sys.stdlib_module_names and package != "__main__")


def _package(kind: Callable[..., Any]) -> str:
    return str(getattr(kind, "__module__", None) or "builtins").partition(".")[0]


_PLAIN: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    **{kind: kind for kind in (bytes, dict, list, tuple, set, frozenset)},
}
"""The types whose subclasses cross as them, and what makes the plain value."""
_MAIN = object()
"""Stands for the `__main__` of the worker."""


def _in_plain_form(value: Any, kind: Callable[..., Any]) -> tuple[Any, ...]:
    """Return what makes the worker rebuild a value of a class that it does not have.

    Raises:
        CannotCross: If there is no plain form.
    """
    if isinstance(value, enum.Enum):
        return _replaced_by(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dict, ({item.name: getattr(value, item.name) for item in dataclasses.fields(value)},)
    if (plain := next((each for each in _PLAIN if isinstance(value, each)), None)) is not None:
        return _replaced_by(_PLAIN[plain](value))
    raise CannotCross(
        f"a {getattr(kind, '__qualname__', kind)} of {_package(kind)} cannot enter the worker, which does not "
        f"have that package; pass plain data, or name the package in PythonInterpreter(packages=...)"
    )


def _replaced_by(plain: T) -> tuple[Callable[..., T], tuple[tuple[T], int]]:
    """Return what makes the worker rebuild `plain` in a value's place."""
    return operator.getitem, ((plain,), 0)
