"""Runs a GGUF model in this process with llama.cpp, as a `dspy.LM`: one from the catalogue, or any file.

    lm = embedded_lm("smollm2-135m")                    # a dspy.LM; the model is loaded at the first call
    python -m rlm_dspy.embedded --port 8080             # the best downloaded model, as an OpenAI-compatible server
    with serve() as base_url: ...                       # that server for the length of a block

It needs no key, but the extra `embedded` and a model: `rlm-dspy models pull smollm2-135m` downloads one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import json
import queue
import secrets
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import dspy
import typer
from dspy import lm15

from rlm_dspy._dspy_compat import SSEEvent, acoalesce_stream, coalesce_stream
from rlm_dspy.concurrency.wait_scope import abandoned, if_cancelled
from rlm_dspy.embedded.hub_address import named_model
from rlm_dspy.embedded.llama_server import (
    EXTRA,
    EmbeddedServer,
    ModelUnavailable,
    Settings,
    default_threads,
    loaded,
    start,
)
from rlm_dspy.embedded.model_cache import best_cached
from rlm_dspy.embedded.model_catalog import DEFAULT
from rlm_dspy.embedded.request_filter import Gate

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Iterator, Mapping

    from rlm_dspy.embedded.saved_prompts import Chat

__all__ = ["AsyncEmbeddedEngine", "EmbeddedEngine", "ModelUnavailable", "embedded_lm", "serve"]

_SETTINGS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty")
_MOST_TEMPERATURE = 2
_REFUSED = ("reasoning", "service_tier", "user_id", "store", "probabilities")
_EXTENSIONS = frozenset({"ignore_eos", "logit_bias", "min_p", "repeat_last_n", "repeat_penalty", "typical_p"})
_WIRE = lm15.OpenAIChatLM(
    api_key="none", compat=lm15.OpenAIChatCompat(max_tokens_field="max_tokens", cache_control="none")
)
"""Writes requests in the dialect of llama.cpp's server."""


def embedded_lm(
    model: str | os.PathLike[str] | None = None,
    *,
    n_ctx: int = 8_192,
    threads: int | None = None,
    slots: int = 4,
    max_tokens: int = 512,
    temperature: float = 0.0,
    **kwargs: Any,
) -> dspy.LM:
    """Return an LM that runs in this process. The first call loads it; all LMs of the process share it.

    At temperature 0 decoding is greedy and reproducible. Usage counts cached prompt tokens: a
    conversation that only grows is read once, also if several alternate. What its first request has before
    the last message (instructions, demos) is kept on disk for other processes, in at most 500 MB beside the
    models; `RLM_DSPY_SAVED_PROMPTS` sets the megabytes, and 0 keeps nothing.

    Args:
        model: A name of the catalogue (`rlm-dspy models` lists them), an address that was downloaded
            (`hf:owner/repository:Q4_K_M`), or a GGUF file with a chat template; None is the best downloaded model.
            A file that was changed in place still has its old answers in DSPy's cache: give it another name, or
            `cache=False`.
        n_ctx: Tokens of prompt and reply together, for each slot; a multiple of 256.
        threads: Threads that compute; None is `RLM_DSPY_THREADS`, else half the cores, but two of two or three.
        slots: Replies decoded together. Each needs memory for one window: 180 MB with SmolLM2-135M.
        max_tokens: Maximum tokens of a reply; a truncated reply has finish_reason "length".
        temperature: 0 to 2.
        kwargs: As for `dspy.LM`: `cache`, `num_retries`, `callbacks`, `stop`, `seed`, `top_p`, `top_k`,
            `response_format`, ... A setting that llama.cpp does not support fails the call.

    Raises:
        ImportError: If the extra `embedded` is not installed.
        ModelUnavailable: If the model was not downloaded, or is not a GGUF file (a FileNotFoundError).
        ValueError: If a number is out of its range.
    """
    if not isinstance(max_tokens, int) or max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens!r}.")
    if not isinstance(temperature, int | float) or not 0 <= temperature <= _MOST_TEMPERATURE:
        raise ValueError(f"temperature must be 0 to {_MOST_TEMPERATURE}, not {temperature!r}.")
    settings = Settings(_name_or_path(model), n_ctx, threads, slots)
    if named_model(settings.model) is None:
        settings.file()  # a wrong path is told before the missing extra
    if importlib.util.find_spec("xllamacpp") is None:
        raise ImportError(f"The embedded model needs the package xllamacpp; install {EXTRA}.")
    settings.file()
    if threads is None:
        default_threads()  # a wrong variable is told now
    lm = dspy.LM(
        f"embedded/{settings.name}",
        engine=EmbeddedEngine(settings),
        async_engine=AsyncEmbeddedEngine(settings),
        max_tokens=max_tokens,
        temperature=temperature,
        **kwargs,
    )
    lm.context_window = n_ctx
    return lm


def _name_or_path(model: str | os.PathLike[str] | None) -> str:
    """Return what `Settings.model` takes: a name of the catalogue, an address, or a full path."""
    if model is None:
        return (best_cached() or DEFAULT).name
    if isinstance(model, str) and (entry := named_model(model)):
        return entry.name
    return str(Path(model).expanduser().resolve())


class _Engine:
    """Base of both engines: picklable settings of a model that the process shares."""

    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = True
    supported_params = frozenset({*_SETTINGS, "stop", "response_format", "logprobs", "top_logprobs", "logit_bias"})

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def context_window(self) -> int:
        """Tokens of prompt and reply together."""
        return self.settings.n_ctx

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text; a chat template adds about five per message."""
        return loaded.get(self.settings).count_tokens(text)

    def dump_state(self) -> dict[str, Any]:
        """Return the state that DSPy saves with a program, for `load_state`."""
        return dataclasses.asdict(self.settings)

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> _Engine:
        """Return the saved engine; a missing model file raises at the first call."""
        return cls(Settings(**state))


class EmbeddedEngine(_Engine):
    """The engine of an embedded LM, for `dspy.LM(engine=...)`."""

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Return the reply to one request; other threads can run meanwhile.

        Raises:
            lm15.ContextLengthError: If the prompt does not fit the window.
            lm15.UnsupportedFeatureError: If the request contains more than text, or an unknown setting.
            ModelUnavailable: If the model cannot be loaded.
        """
        _check_waited_for()  # DSPy retries after an error, even one that is raised here
        call = loaded.get(self.settings).begin(_body(request))
        try:
            with if_cancelled(lambda _: call.abandon()):
                reply = call.reply.result()
            _check_waited_for()
            return _response(reply, request)
        finally:
            call.abandon()

    def stream(self, request: lm15.Request) -> Iterator[lm15.StreamEvent]:
        """Yield the events of a reply while the model writes it; raises as `complete` does."""
        events: Iterator[lm15.StreamEvent] = coalesce_stream(self._events(request), model=request.model)
        return events

    def _events(self, request: lm15.Request) -> Iterator[lm15.StreamEvent]:
        _check_waited_for()
        chunks: queue.SimpleQueue[Chat | None] = queue.SimpleQueue()
        call = loaded.get(self.settings).begin(_body(request, stream=True), chunks.put)
        call.reply.add_done_callback(lambda _: chunks.put(None))
        try:
            with if_cancelled(lambda _: call.abandon()):
                while (chunk := chunks.get()) is not None:
                    yield from _events_of(chunk, request)
            _check_waited_for()
            _check(call.reply.result(), request)
        finally:
            call.abandon()

    def close(self) -> None:
        """Release the model for all users; the next call loads it again."""
        loaded.release(self.settings)


class AsyncEmbeddedEngine(_Engine):
    """The same engine for `async_engine`; it blocks the event loop only while the model loads."""

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """Return the reply to one request, as `EmbeddedEngine.complete` does; cancelling stops the generation."""
        call = (await self._server()).begin(_body(request))
        try:
            return _response(await asyncio.wrap_future(call.reply), request)
        finally:
            call.abandon()

    def stream(self, request: lm15.Request) -> AsyncIterator[lm15.StreamEvent]:
        """Yield the events of a reply while the model writes it; closing the stream stops the generation."""
        events: AsyncIterator[lm15.StreamEvent] = acoalesce_stream(self._events(request), model=request.model)
        return events

    async def _events(self, request: lm15.Request) -> AsyncIterator[lm15.StreamEvent]:
        chunks: asyncio.Queue[Chat | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(chunk: Chat | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)

        call = (await self._server()).begin(_body(request, stream=True), put)
        call.reply.add_done_callback(lambda _: put(None))
        try:
            while (chunk := await chunks.get()) is not None:
                for event in _events_of(chunk, request):
                    yield event
            _check(call.reply.result(), request)
        finally:
            call.abandon()

    async def aclose(self) -> None:
        """Release the model for all users; the next call loads it again."""
        loaded.release(self.settings)

    async def _server(self) -> EmbeddedServer:
        server = loaded.peek(self.settings)
        return server if server is not None else await asyncio.to_thread(loaded.get, self.settings)


def _check_waited_for() -> None:
    if abandoned():
        raise lm15.TimeoutError("Nobody waits for the reply any more.")


def _body(request: lm15.Request, *, stream: bool = False) -> Chat:
    """Convert a request to the body that llama.cpp's server expects."""
    config = request.config
    refused = ["tools"] if request.tools else []
    refused += [f"config.{name}" for name in _REFUSED if getattr(config, name) is not None]
    refused += [f"config.extensions[{name!r}]" for name in config.extensions or {} if name not in _EXTENSIONS]
    system = () if request.system is None or isinstance(request.system, str) else request.system
    parts = [*system, *(part for message in request.messages for part in message.parts)]
    refused += [part.type for part in parts if part.type != "text"]
    if refused:
        settings = ", ".join(sorted(_Engine.supported_params))
        raise lm15.UnsupportedFeatureError(
            f"The embedded model does not take {refused[0]}. It takes text and the settings {settings}.",
            feature=refused[0],
        )
    body: Chat = json.loads(_WIRE.build_request(request, stream=stream).body)
    if config.top_k is not None:  # OpenAI has none
        body["top_k"] = config.top_k
    return {"temperature": 0.0, **body}


def _response(reply: Chat, request: lm15.Request) -> lm15.Response:
    """Convert a chat completion to DSPy's response; raises as `_check` does."""
    _check(reply, request)
    reply = {**reply, "model": request.model}
    return lm15.response_from_openai_chat(reply, response_format=request.config.response_format)


def _events_of(chunk: Chat, request: lm15.Request) -> Iterator[lm15.StreamEvent]:
    """Yield the events of a chunk of a streamed reply; raises as `_check` does."""
    _check(chunk, request)
    yield from _WIRE.parse_stream_events(request, SSEEvent(None, json.dumps(chunk)))


def _check(reply: Chat, request: lm15.Request) -> None:
    """Check that llama.cpp's reply is not an error.

    Raises:
        lm15.ContextLengthError: If the prompt does not fit the window.
        lm15.InvalidRequestError: If llama.cpp rejected the request.
        lm15.ServerError: If llama.cpp failed.
    """
    if error := reply.get("error"):
        if error.get("type") == "exceed_context_size_error":
            tokens, window = error["n_prompt_tokens"], error["n_ctx"]
            raise lm15.ContextLengthError(
                f"The prompt is {tokens} tokens; the window of {request.model} is {window}."
            )
        kind = lm15.InvalidRequestError if error.get("code") == 400 else lm15.ServerError  # noqa: PLR2004 (HTTP's)
        raise kind(f"llama.cpp: {error.get('message')}")


@contextlib.contextmanager
def serve(
    model: str | os.PathLike[str] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    n_ctx: int = 8_192,
    threads: int | None = None,
    slots: int = 4,
) -> Iterator[str]:
    """Serve a model over HTTP from this process, and yield the base URL, which ends in `/v1`.

    `dspy.LM("openai/smollm2-135m-instruct", api_base=url, api_key="none")` uses it; so does any OpenAI client.
    Any program that can reach the port may use it, but no web page.

    Args:
        model: A name of the catalogue, or a GGUF file; None is the best downloaded model.
        host: The address to listen on.
        port: 0 picks a free one.
        n_ctx: Tokens of prompt and reply together, for each slot.
        threads: Threads that compute; None is as for `embedded_lm`.
        slots: Replies decoded together.

    Raises:
        RuntimeError: If the server does not start.
    """
    key = secrets.token_urlsafe()
    try:
        gate = Gate(host, port)
    except OSError as error:
        raise RuntimeError(f"Cannot listen on {host}:{port}: {error.strerror}.") from error
    with gate:
        try:
            server = start(Settings(_name_or_path(model), n_ctx, threads, slots), key)
        except (ImportError, ModelUnavailable, ValueError) as error:
            raise RuntimeError(str(error)) from error
        gate.open(server.listening_address, key)
        try:
            yield f"{gate.address}/v1"
        finally:
            gate.shutdown()


def main(
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on. There is no password.")] = "127.0.0.1",
    model: Annotated[
        str | None,
        typer.Option(
            help="A name that `rlm-dspy models` lists, or a GGUF file; by default the best downloaded one."
        ),
    ] = None,
    n_ctx: Annotated[int, typer.Option(help="Tokens of prompt and reply together.")] = 8_192,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads that compute; by default RLM_DSPY_THREADS, else half the cores, but two of two or three."
        ),
    ] = None,
    slots: Annotated[int, typer.Option(help="Replies decoded together.")] = 4,
) -> None:
    """Serve a small model on this machine, as OpenAI's API does: POST /v1/chat/completions and the rest.

    Prints its address when it is ready, and runs until it is interrupted or terminated.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with serve(model, host=host, port=port, n_ctx=n_ctx, threads=threads, slots=slots) as url:
            typer.echo(url.removesuffix("/v1"))
            while not stop.wait(1):  # an endless wait cannot be interrupted on Windows
                pass
    except RuntimeError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from error
