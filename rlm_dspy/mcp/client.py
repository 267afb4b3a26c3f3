"""Connects MCP servers, and gives their tools to runs; the connections live on an event loop of their own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import anyio
import dspy
import httpx2
from anyio.from_thread import start_blocking_portal
from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import (
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    EmbeddedResource,
    TextContent,
    TextResourceContents,
)
from pydantic import ValidationError

from rlm_dspy.errors import MCPServerFailed
from rlm_dspy.mcp.relay import MAX_LINE_BYTES
from rlm_dspy.mcp.servers import read_servers
from rlm_dspy.repl.tools import is_usable
from rlm_dspy.text import clip, logger, one_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from anyio.from_thread import BlockingPortal
    from mcp import ClientSession
    from mcp.client import Transport
    from mcp.types import ContentBlock, Tool
    from pydantic import JsonValue

    from rlm_dspy.mcp.servers import Given, MCPServer

T = TypeVar("T")
_RELAY = Path(__file__).with_name("relay.py")
_MOST_TOOLS = 100
"""The limit for one server."""
_MOST_PAGES = 20
_MOST_SCHEMA_CHARS = 20_000
_ERROR_CHARS = 500
_SPARE_SECONDS = 5.0
"""Extra time in which the client itself ends a call that timed out."""
_EVENT_STREAM = "text/event-stream"
_logger = logger()


@contextlib.contextmanager
def tools(servers: Given, *, seconds: float = 60.0) -> Iterator[list[dspy.Tool]]:
    """Connect MCP servers in this scope, and yield their tools for `RLM(tools=...)`.

    Runs may be sync or async, and concurrent. A tool keeps its name, with `_` in place of characters that Python
    names cannot have. If several servers or the REPL have a tool of that name, it is named `server_tool`. Code
    gets the text of a result, and a note in place of an image or other binary content. If a server dies or does
    not answer, the tool raises an error that code can catch, and the run goes on. At the end of the scope every
    server that was started is stopped.

    Args:
        servers: Servers by name: `{"name": {"command": "npx", "args": [...], "env": {...}}}`, or `{"url": ...,
            "headers": {...}}` for Streamable HTTP. Or this dict below the key `mcpServers`, or a JSON file's path.
        seconds: How long a server may take to answer a call, or a step of its start.

    Raises:
        InvalidInputs: If the description of a server has another form.
        MCPServerFailed: If a server cannot be started or reached; the message holds its error output.
    """
    described = {name: server.filled() for name, server in read_servers(servers).items()}
    listed: list[tuple[_Connection, Tool]] = []
    connections = contextlib.ExitStack()
    with _quiet_sdk(), start_blocking_portal(name="rlm-mcp") as portal:
        try:
            for name, server in described.items():
                client = _connected(connections, portal, name, server, seconds)
                connection = _Connection(name, client.session, portal, seconds)
                listed += [(connection, tool) for tool in portal.call(_listed, name, client)]
            yield _named(listed)
        finally:  # outside an error of the caller, which the SDK would put into a group
            with contextlib.suppress(Exception):  # a server may have broken its connection
                connections.close()


def _connected(
    stack: contextlib.ExitStack, portal: BlockingPortal, name: str, server: MCPServer, seconds: float
) -> Client:
    """Connect a server until the end of the scope."""
    temporary = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (the stack's)
    errors = stack.enter_context(temporary)
    client = Client(_transport(server, errors), read_timeout_seconds=seconds)
    try:
        return stack.enter_context(portal.wrap_async_context_manager(client))
    except Exception as error:  # noqa: BLE001 (the SDK raises groups, and errors of several libraries)
        errors.seek(0)
        said = one_line(errors.read(), _ERROR_CHARS) or one_line(str(_first(error)), _ERROR_CHARS)
        where = "started" if server.command else "reached"
        raise MCPServerFailed(
            f"The MCP server {name!r} could not be {where}: {said or type(error).__name__}. "
            f"Correct {'its command and args' if server.command else 'its url and headers'}."
        ) from None


def _transport(server: MCPServer, errors: IO[str]) -> Transport:
    if server.command is None:
        return _over_http(str(server.url), server.headers)
    args = ["-I", str(_RELAY), server.command, *server.args]
    command = StdioServerParameters(
        command=sys.executable, args=args, env=server.env, cwd=server.cwd, encoding_error_handler="replace"
    )
    return stdio_client(command, errlog=errors)


@contextlib.asynccontextmanager
async def _over_http(url: str, headers: Mapping[str, str]) -> AsyncIterator[tuple[object, object]]:
    client = httpx2.AsyncClient(headers=headers, transport=_Bounded(), timeout=httpx2.Timeout(30, read=300))
    async with client, streamable_http_client(url, http_client=client) as streams:
        yield streams


class _Bounded(httpx2.AsyncHTTPTransport):
    """Rejects responses that take too much memory; the SDK itself bounds the events of a stream."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers["Accept-Encoding"] = "identity"
        response = await super().handle_async_request(request)
        if "content-encoding" in response.headers:
            await response.aclose()
            raise httpx2.RequestError("the response is compressed, which was not asked for", request=request)
        if not response.headers.get("content-type", "").startswith(_EVENT_STREAM):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _BoundedStream(response.stream)
        return response


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = MAX_LINE_BYTES
        async for part in self._stream:
            left -= len(part)
            if left < 0:
                raise httpx2.RequestError(f"the response has more than {MAX_LINE_BYTES:,} bytes")
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _listed(name: str, client: Client) -> list[Tool]:
    """Return the tools of a server that a prompt can show."""
    found: list[Tool] = []
    cursor: str | None = None
    try:
        for _ in range(_MOST_PAGES):
            page = await client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if cursor is None or len(found) > _MOST_TOOLS:
                break
    except (MCPError, ValidationError) as error:
        why = one_line(str(error), _ERROR_CHARS)
        raise MCPServerFailed(f"The MCP server {name!r} could not list its tools: {why}") from None
    usable = [tool for tool in found if len(str(tool.input_schema)) <= _MOST_SCHEMA_CHARS][:_MOST_TOOLS]
    if len(usable) < len(found):
        _logger.warning("The MCP server %r has %d tools; %d of them are used.", name, len(found), len(usable))
    return usable


def _named(listed: list[tuple[_Connection, Tool]]) -> list[dspy.Tool]:
    """Return the tools, each with a unique name that code can write."""
    plain = [re.sub(r"\W", "_", tool.name, flags=re.ASCII) for _, tool in listed]
    times = Counter(plain)
    made: dict[str, dspy.Tool] = {}
    for (connection, tool), name in zip(listed, plain, strict=True):
        own = name if times[name] == 1 and is_usable(name) else f"{connection.name}_{name}"
        own = re.sub(r"\W|^(?=\d)", "_", own, flags=re.ASCII)
        while own in made:
            own += "_"
        schema = _without_patterns(tool.input_schema)
        converted = dspy.Tool.from_mcp_tool(connection, tool.model_copy(update={"input_schema": schema}))
        made[own] = converted.model_copy(update={"name": own})
    return list(made.values())


def _without_patterns(schema: JsonValue) -> JsonValue:
    """Return a schema without regular expressions: matching may never end, and the server checks them itself."""
    if isinstance(schema, list):
        return [_without_patterns(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: part for key, part in schema.items() if key != "patternProperties"}
    return {
        key: _without_patterns(part)
        for key, part in kept.items()
        if key != "pattern" or isinstance(part, dict)  # a property of that name
    }


@dataclass(frozen=True)
class _Connection:
    """Calls the tools of one server from any event loop; `dspy.Tool.from_mcp_tool` takes it as a session."""

    name: str
    session: ClientSession
    portal: BlockingPortal
    seconds: float

    async def call_tool(self, name: str, arguments: dict[str, JsonValue] | None = None) -> CallToolResult:
        """Call a tool, and return its result with every part as text.

        Raises:
            MCPServerFailed: If the server has ended, does not answer in time, or sends an invalid answer.
        """
        request = CallToolRequest(params=CallToolRequestParams(name=name, arguments=arguments))
        try:
            async with asyncio.timeout(self.seconds + _SPARE_SECONDS):
                # not `call_tool`, which checks unused structured content with the server's patterns
                result = await self._there(self.session.send_request, request, CallToolResult)
        except (MCPError, ValidationError, TimeoutError, OSError, anyio.ClosedResourceError) as error:
            why = one_line(str(error), _ERROR_CHARS) or type(error).__name__
            raise MCPServerFailed(f"{name}: the MCP server {self.name!r} gave no result: {why}") from None
        texts = [TextContent(type="text", text=_text_of(content)) for content in result.content]
        return result.model_copy(update={"content": texts})

    async def _there(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Await a call on the event loop of the connection; cancel it there if it is cancelled here."""
        try:
            future = self.portal.start_task_soon(function, *args)
        except RuntimeError:
            raise MCPServerFailed(
                f"The connection to the MCP server {self.name!r} is closed: run the RLM inside "
                "`with rlm_dspy.mcp.tools(...) as tools:`."
            ) from None
        return await asyncio.wrap_future(future)


def _text_of(content: ContentBlock) -> str:
    """Return a part of a result as text, or a note for one that is not text."""
    if isinstance(content, TextContent):
        return str(content.text)
    if isinstance(content, EmbeddedResource) and isinstance(content.resource, TextResourceContents):
        return str(content.resource.text)
    described = content.resource if isinstance(content, EmbeddedResource) else content
    kind = getattr(described, "mime_type", None) or "unknown type"
    uri = getattr(described, "uri", "")
    return clip(f"[{content.type}, {kind}, not shown{f': {uri}' if uri else ''}]", _ERROR_CHARS)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextlib.contextmanager
def _quiet_sdk() -> Iterator[None]:
    """Log only errors of the connection itself in this scope: the SDK logs every line that is not a message."""
    loggers = [logging.getLogger(name) for name in ("mcp", "client")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)
