"""Runs llama.cpp's server in this process, and shares one instance for each model and its settings.

ModelUnavailable     the operator: not downloaded, no such GGUF, not a GGUF, or llama.cpp cannot run it as asked
"""

from __future__ import annotations

import atexit
import ctypes
import http.client
import json
import os
import secrets
import socket
import sys
import threading
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dspy import lm15

from rlm_dspy.embedded.hub_address import missing_parts, named_model, parts_of
from rlm_dspy.embedded.model_cache import cached_file, how_to_pull, lm_name
from rlm_dspy.embedded.model_catalog import CatalogueModel
from rlm_dspy.embedded.saved_prompts import Beginnings, Chat, files_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXTRA = (
    "the extra `embedded`: pip install 'dspy-recursive-lm[embedded]' (in the checkout: uv sync --extra embedded)"
)

_PAD_TOKENS = 256
_BATCH_TOKENS = 256
_REPEATED_TOKENS = 8
"""If the last so many tokens stand further above as well, the model may be repeating what follows there."""
_GUESSED_TOKENS = 32
_SAVED_PROMPTS_MIB = 1_024
_WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
THREADS_VARIABLE = "RLM_DSPY_THREADS"
_STREAM = "text/event-stream"
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


class ModelUnavailable(lm15.ConfigurationError, FileNotFoundError):  # noqa: N818 (it names what went wrong)
    """The model file is missing, is not a GGUF file, or cannot be run with these settings."""


@dataclass(frozen=True)
class Settings:
    """Which model to run and how; equal settings share one loaded model.

    Raises:
        ValueError: If a number is out of its range.
    """

    model: str
    """A model of the catalogue, an address on the hub, or the path of a GGUF file."""
    n_ctx: int = 8_192
    """Tokens of prompt and reply together, for each slot; a multiple of 256, at most the model's own window."""
    threads: int | None = None
    """Threads that compute; None is `RLM_DSPY_THREADS`, else half the cores but two of two or three.

    A thread that waits for another sleeps, so a core that is also used by other processes costs little.
    """
    slots: int = 4
    """Replies decoded together; each needs memory for one window. More conversations than slots stay cached."""

    def __post_init__(self) -> None:
        if not isinstance(self.n_ctx, int) or self.n_ctx < _PAD_TOKENS or self.n_ctx % _PAD_TOKENS:
            raise ValueError(f"n_ctx must be a multiple of {_PAD_TOKENS}, not {self.n_ctx!r}.")
        for name, value in {"threads": self.threads, "slots": self.slots}.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be at least 1, not {value!r}.")

    @property
    def name(self) -> str:
        """The model's name in DSPy's response cache; two paths never share one."""
        if entry := named_model(self.model):
            return lm_name(entry)
        return f"{Path(self.model).stem}-{zlib.crc32(self.model.encode()):08x}"

    def file_version(self) -> str:
        """Return what tells the GGUF file from all others: its checksum, or its path, size and time."""
        entry = named_model(self.model)
        if isinstance(entry, CatalogueModel):
            return entry.sha256
        path = self.file()
        status = path.stat()
        return f"{path} {status.st_size} {status.st_mtime_ns}"

    def file(self) -> Path:
        """Return the path of the GGUF file.

        Raises:
            ModelUnavailable: If the model was not downloaded, or the file does not exist or is not GGUF.
        """
        entry = named_model(self.model)
        path = cached_file(entry) if entry else _first_part(Path(self.model))
        if path is None:
            assert entry is not None
            raise ModelUnavailable(how_to_pull(entry))
        try:
            with path.open("rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise ModelUnavailable(f"The model file {path} cannot be read: {error.strerror}.") from error
        if magic != b"GGUF":
            raise ModelUnavailable(f"{path} is not a GGUF file.")
        return path


def _first_part(path: Path) -> Path:
    """Return the file to load: of a split model the first part.

    Raises:
        ModelUnavailable: If some of its parts are there and others are not.
    """
    there = [name for name in parts_of(path.name) if path.with_name(name).is_file()]
    if there and (missing := missing_parts(there)):
        raise ModelUnavailable(f"{path} is incomplete: put {', '.join(missing)} beside it.")
    return path.with_name(parts_of(path.name)[0])


def start(settings: Settings, key: str, prompts: Path | None = None) -> Any:
    """Start llama.cpp's server with its HTTP endpoint and without logs; it stops when it is garbage-collected.

    Loading holds the GIL: no other thread runs for about half a second.

    Args:
        settings: What to load.
        key: The bearer token of HTTP clients; any process on this machine can reach the port.
        prompts: Folder that a slot may be saved to and restored from; None allows neither.

    Raises:
        ImportError: If the runtime is not installed, or a system library is missing (Linux: libgomp).
        ModelUnavailable: If the model cannot be loaded.
        ValueError: If `RLM_DSPY_THREADS` is not a number of threads.
    """
    path, threads = settings.file(), settings.threads or default_threads()
    try:
        with _sleeping_threads():
            import xllamacpp  # noqa: PLC0415 (a library of 100 MB, needed only to run a model)
    except ImportError as error:
        raise ImportError(f"The embedded model needs the package xllamacpp ({error}): install {EXTRA}.") from error
    params = xllamacpp.CommonParams()
    params.verbosity = 0
    params.model.path = str(path)
    params.model_alias = {settings.name}
    params.hostnames, params.port, params.ui, params.cors_origins = ["127.0.0.1"], 0, False, ""
    params.api_keys = [key]
    params.cpuparams.n_threads = threads
    params.prefill_assistant = False  # as OpenAI does: an assistant message at the end is answered, not continued
    params.n_parallel = settings.slots
    params.n_ctx = settings.n_ctx * settings.slots  # divided among the slots, so that each has the whole window
    params.kv_unified = False
    params.ctx_shift = False  # a reply ends at the end of the window; nothing is dropped from the prompt
    params.n_batch = params.n_ubatch = _BATCH_TOKENS  # calls are cancelled between two batches
    params.slot_save_path = f"{prompts}{os.sep}" if prompts else ""
    params.cache_ram_mib = _SAVED_PROMPTS_MIB  # conversations that lost their slot are restored from here
    # What repeats the prompt, as the code of a demo, is guessed and checked in one batch: the same reply, sooner.
    params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
    guess = params.speculative.ngram_simple
    guess.size_n, guess.size_m = _REPEATED_TOKENS, _GUESSED_TOKENS
    try:
        # In its own thread: an interrupt inside the constructor would leave its threads waiting for ever.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(xllamacpp.Server, params).result()
    except (RuntimeError, ValueError) as error:
        size = f"{path.stat().st_size / 1e6:,.0f} MB"
        raise ModelUnavailable(
            f"llama.cpp cannot run {path} ({size}): the file is incomplete or damaged, or made for a newer "
            f"llama.cpp; download it again. llama.cpp says: {error}"
        ) from error


@contextmanager
def _sleeping_threads() -> Iterator[None]:
    """Have the OpenMP runtime that is loaded in this block let a thread that waits sleep, unless the user chose.

    llama.cpp's threads wait for the slowest one hundreds of times per token. If they spin meanwhile, and one core
    is needed by another process, decoding gets ten times slower.
    """
    if any(name in os.environ for name in _WAIT_VARIABLES):
        yield
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"
    try:
        yield
    finally:
        del os.environ["OMP_WAIT_POLICY"]


def default_threads() -> int:
    """Return `RLM_DSPY_THREADS`, else half the cores that this process may use, but two of two or three.

    Raises:
        ValueError: If the variable is not a number of threads.
    """
    if chosen := os.environ.get(THREADS_VARIABLE, "").strip():
        if not chosen.isdecimal() or not int(chosen):
            raise ValueError(f"{THREADS_VARIABLE} must be a number of threads, at least 1; not {chosen!r}.")
        return int(chosen)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no control group, or one without a limit
        quota, period = map(int, _CPU_QUOTA.read_text(encoding="ascii").split())
        cores = min(cores, max(1, quota // period))
    return max(min(2, cores), cores // 2)


@dataclass
class Call:
    """A running chat completion."""

    reply: Future[Chat]
    """The completion; of a stream an error, or nothing."""
    connection: http.client.HTTPConnection
    abandoned: threading.Event

    def abandon(self) -> None:
        """Let nobody wait for it any more: it is not begun, or its generation ends within a second."""
        self.abandoned.set()
        if (sock := self.connection.sock) is not None:
            with suppress(OSError):  # it has ended
                sock.shutdown(socket.SHUT_RDWR)


class EmbeddedServer:
    """One loaded model. Any thread may call it; llama.cpp decodes the slots together.

    Raises:
        ImportError: If the extra is not installed.
        ModelUnavailable: If the model cannot be loaded, or its window is smaller than `n_ctx`.
    """

    def __init__(self, settings: Settings) -> None:
        self._key = secrets.token_urlsafe()
        files = files_of(settings.name)
        self._server = start(settings, self._key, files.folder if files else None)
        self._prepared = Beginnings(files, settings.file_version()).prepared if files else _unprepared
        self._pool = ThreadPoolExecutor(settings.slots, thread_name_prefix="embedded-lm")
        # Its main thread answers this: a server that is released before that thread runs would never end.
        slots: Any = self._ask(self._connection(), "/slots")
        window = slots[0]["n_ctx"]
        if window < settings.n_ctx:
            raise ModelUnavailable(
                f"{settings.file()} has a context window of {window} tokens, less than n_ctx={settings.n_ctx}."
            )

    def begin(self, body: Chat, heard: Callable[[Chat], object] | None = None) -> Call:
        """Queue a chat completion (the body of an OpenAI request) and return at once.

        Args:
            body: The request.
            heard: Receives each chunk of it, in a thread of the server, if it is requested as a stream.
        """
        connection, abandoned = self._connection(), threading.Event()
        return Call(self._pool.submit(self._complete, body, connection, abandoned, heard), connection, abandoned)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text, without those that a chat template adds per message."""
        return len(self._ask(self._connection(), "/tokenize", {"content": text})["tokens"])

    def keep_forever(self) -> None:
        """Never release it: after a fork its threads are gone, and a release would wait for them."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._server))

    def _complete(
        self,
        body: Chat,
        connection: http.client.HTTPConnection,
        abandoned: threading.Event,
        heard: Callable[[Chat], object] | None,
    ) -> Chat:
        def ask(path: str, body: Chat, heard: Callable[[Chat], object] | None = None) -> Chat:
            connection.connect()  # not before: the server waits a few seconds for a request
            if abandoned.is_set():
                raise ConnectionAbortedError("nobody waits for the reply")
            return self._ask(connection, path, body, heard)

        try:
            with self._prepared(body["messages"], ask, abandoned) as read:
                tell = None if heard is None else lambda chunk: heard(_counting(read, chunk))
                return _counting(read, ask("/v1/chat/completions", body, tell))
        except (OSError, http.client.HTTPException, ValueError) as error:  # also if it was shut meanwhile
            return {"error": {"message": repr(error)}}

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self._server.listening_address).netloc)

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        body: Chat | None = None,
        heard: Callable[[Chat], object] | None = None,
    ) -> Chat:
        with closing(connection):
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            if heard is None or response.headers.get_content_type() != _STREAM:  # an error is not a stream
                reply: Chat = json.load(response)
                return reply
            for line in response:
                kind, _, data = line.strip().partition(b": ")
                if kind == b"data" and data != b"[DONE]":
                    heard(json.loads(data))
            return {}


def _unprepared(*_: object) -> nullcontext[int]:
    return nullcontext(0)


def _counting(read: int, reply: Chat) -> Chat:
    """Count the tokens that were read for a reply before it was asked for as read, not as cached."""
    if read and (usage := reply.get("usage")):
        details = usage["prompt_tokens_details"]
        details["cached_tokens"] = max(0, details["cached_tokens"] - read)
    return reply


class _Registry:
    """The models loaded in this process."""

    def __init__(self) -> None:
        self._servers: dict[Settings, EmbeddedServer] = {}
        self._lock = threading.Lock()
        atexit.register(self._servers.clear)  # later the interpreter is gone, and its threads cannot end
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._abandon)

    def get(self, settings: Settings) -> EmbeddedServer:
        with self._lock:
            if settings not in self._servers:
                self._servers[settings] = EmbeddedServer(settings)
            return self._servers[settings]

    def peek(self, settings: Settings) -> EmbeddedServer | None:
        return self._servers.get(settings)

    def release(self, settings: Settings) -> None:
        with self._lock:
            self._servers.pop(settings, None)

    def _abandon(self) -> None:
        for server in self._servers.values():
            server.keep_forever()
        self._servers.clear()
        self._lock = threading.Lock()


loaded = _Registry()
