"""Serves a program as an ASGI application with OpenAI's chat completions and responses."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import dspy
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from rlm_dspy.errors import InvalidInputs, UsageError
from rlm_dspy.service.answers import error_body
from rlm_dspy.service.chat import ChatWriter
from rlm_dspy.service.conversations import ConversationBody, Conversations
from rlm_dspy.service.gate import OPEN, Bodies, Gate, names_of
from rlm_dspy.service.metrics import Metrics
from rlm_dspy.service.requests import ChatBody, ResponseBody
from rlm_dspy.service.responses import ResponseWriter
from rlm_dspy.service.runs import ClientGone, Finished, Runs, while_connected
from rlm_dspy.sessions.kept import ConversationBusy, ConversationGone

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping

    from pydantic import BaseModel
    from starlette.datastructures import Headers
    from starlette.types import Message, Receive, Scope, Send

    from rlm_dspy.service.answers import Writer
    from rlm_dspy.service.requests import Ask

_SEND_SECONDS = 60.0
"""Seconds that a client may take to read a piece of a stream."""
_STATUS: dict[type[Exception], int] = {InvalidInputs: 400, ConversationGone: 404, ConversationBusy: 409}
_LIMIT_HEADER = "x-rlm-max-"
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # else nginx holds events back
]


def create_app(
    program: dspy.Module,
    *,
    name: str = "program",
    keys: Iterable[str] = (),
    host: str = "127.0.0.1",
    other_hosts: Iterable[str] = (),
    max_runs: int = 8,
    max_conversations: int = 16,
    idle_seconds: float = 1_800.0,
) -> Starlette:
    """Return an ASGI application that serves a program; its LM is the one that is configured at this call.

    Args:
        program: An `RLM`, or a module with `aforward` and an attribute `signature`.
        name: The name of the model in requests.
        keys: The keys of clients; without any, everybody who reaches the server may use it.
        host: The address that it is served on: requests must name it in their header Host.
        other_hosts: Further names for it.
        max_runs: How many runs may go on at once; more requests are refused with status 429.
        max_conversations: How many conversations are kept, each with a REPL; the one that was not used for longest
            is closed for another.
        idle_seconds: How long a conversation is kept after its last use.

    Raises:
        UsageError: If the program cannot be served.
        ImportError: If the extra `serve` is not installed.
    """
    _check(program)
    metrics, bodies = Metrics(), Bodies()
    runs = Runs(program, max_runs, metrics)
    conversations = Conversations(program, max_conversations, idle_seconds)

    async def begin(request: Request) -> Response:
        return _json(conversations.begin(request.scope["owner"], await bodies.read(request, ConversationBody)))

    async def conversation(request: Request) -> Response:
        do = conversations.delete if request.method == "DELETE" else conversations.get
        return _json(do(request.scope["owner"], request.path_params["conversation"]))

    @contextlib.asynccontextmanager
    async def closing(_app: Starlette) -> AsyncIterator[None]:
        yield
        await conversations.close()

    async def models(_request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(name)]})

    async def model(request: Request) -> Response:
        _check_model(request.path_params["model"], name)
        return JSONResponse(_model(name))

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def measured(_request: Request) -> Response:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    chat = _Endpoint(runs, conversations, bodies, name, ChatBody, ChatWriter)
    response = _Endpoint(runs, conversations, bodies, name, ResponseBody, ResponseWriter)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/responses", response, methods=["POST"]),
            Route("/v1/conversations", begin, methods=["POST"]),
            Route("/v1/conversations/{conversation}", conversation, methods=["GET", "DELETE"]),
            Route("/v1/models", models),
            Route("/v1/models/{model}", model),
            Route(OPEN, health),
            Route("/metrics", measured),
        ],
        middleware=[Middleware(Gate, names_of(host, other_hosts), list(keys), metrics)],
        exception_handlers=dict.fromkeys((HTTPException, *_STATUS), _refuse),
        lifespan=closing,
    )


def _check(program: dspy.Module) -> None:
    signature = getattr(program, "signature", None)
    if not (isinstance(signature, type) and issubclass(signature, dspy.Signature)):
        raise UsageError(
            "A program to serve needs a signature, which says what requests may send: give the module an "
            "attribute `signature = dspy.Signature('context, question -> answer')`."
        )
    if not hasattr(program, "aforward"):
        raise UsageError(
            f"{type(program).__name__} has no aforward. A server awaits its programs, so that a run can be "
            "cancelled: write `async def aforward(self, ...)`, which awaits `self.rlm.acall(...)`."
        )


@dataclass(frozen=True)
class _Endpoint:
    """Answers requests to run the program in one of the two APIs."""

    runs: Runs
    conversations: Conversations
    bodies: Bodies
    name: str
    body: type[ChatBody | ResponseBody]
    writer: type[ChatWriter | ResponseWriter]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or stop when its client has gone."""
        request = Request(scope, receive)
        with contextlib.suppress(ClientGone, ClientDisconnect):
            body = await self.bodies.read(request, self.body)
            _check_model(body.model, self.name)
            ask = body.read()
            ask = replace(ask, limits=_lowest(ask.limits, _limits_in(request.headers)))
            pieces = self._pieces(ask, scope["owner"])
            await while_connected(receive, self._answer(ask, pieces, scope, receive, send))

    async def _pieces(self, ask: Ask, owner: bytes) -> AsyncGenerator[str | Finished]:
        """Run the program, and yield the result when the run is no longer counted and its conversation is free.

        A client that has read its answer can ask again at once.
        """
        finished: Finished | None = None
        with self.runs.slot(), self.conversations.using(owner, ask.conversation) as used:
            async with contextlib.aclosing(self.runs.pieces(ask, used)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Finished):
                        finished = piece
                    else:
                        yield piece
        if finished:
            yield finished

    async def _answer(
        self, ask: Ask, run: AsyncGenerator[str | Finished], scope: Scope, receive: Receive, send: Send
    ) -> None:
        writer = self.writer(self.name, ask)
        async with contextlib.aclosing(run) as pieces:
            if ask.stream:
                await _stream(_events(writer, pieces), send)
                return
            reasoning = ""
            async for piece in pieces:
                if isinstance(piece, Finished):
                    content = writer.whole(reasoning, piece).model_dump_json(exclude_none=True)
                else:
                    reasoning += piece
        await Response(content, media_type="application/json")(scope, receive, send)


async def _events(writer: Writer, pieces: AsyncIterator[str | Finished]) -> AsyncIterator[str]:
    """Yield the events of a stream.

    Raises:
        HTTPException: If the run fails before there is any; later it becomes an event.
    """
    begun = False
    try:
        async for piece in pieces:
            for event in () if begun else writer.begin():
                yield event
            begun = True
            if isinstance(piece, Finished):
                told = writer.end(piece)
            else:
                told = writer.reason(piece) if piece else iter([": the run goes on\n\n"])
            for event in told:
                yield event
    except HTTPException as error:
        if not begun:
            raise
        for event in writer.fail(error):
            yield event


async def _stream(events: AsyncIterator[str], send: Send) -> None:
    """Send events as they come.

    Raises:
        ClientGone: If the client does not read them.
    """
    start: Message = {"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS}
    try:
        async for event in events:
            if start:
                await send(start)
                start = {}
            async with asyncio.timeout(_SEND_SECONDS):
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except TimeoutError:
        raise ClientGone from None


def _limits_in(headers: Headers) -> dict[str, int | float]:
    """Return the limits in headers: `X-RLM-Max-Cost: 0.5` is the limit `max_cost`."""
    return {
        name.removeprefix("x-rlm-").replace("-", "_"): _number(name, value)
        for name, value in headers.items()
        if name.startswith(_LIMIT_HEADER)
    }


def _number(name: str, value: str) -> int | float:
    try:
        return float(value) if set(value) & set(".eE") else int(value)
    except ValueError:
        raise InvalidInputs(f"The header {name} must be a number, not {value[:40]!r}.") from None


def _lowest(one: Mapping[str, int | float], other: Mapping[str, int | float]) -> dict[str, int | float]:
    return {name: min(limits[name] for limits in (one, other) if name in limits) for name in {**one, **other}}


def _check_model(wanted: str, name: str) -> None:
    if wanted != name:
        raise HTTPException(404, f"There is no model {wanted[:100]!r}; this server has {name!r}.")


def _json(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")


def _model(name: str) -> dict[str, str | int]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "rlm-dspy"}


def _refuse(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        error = HTTPException(_STATUS[type(error)], str(error))
    return JSONResponse(error_body(error), error.status_code, error.headers)
