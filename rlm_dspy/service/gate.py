"""Lets requests in: those of this machine's programs or with a key, with a body of bounded size and time."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from rlm_dspy.embedded.request_filter import refusal
from rlm_dspy.service.answers import error_body

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from rlm_dspy.service.metrics import Metrics

B = TypeVar("B", bound=BaseModel)
OPEN = "/health"
"""The path that needs no key."""
_BODY_SECONDS = 60.0
_ALL_BODIES_BYTES = 256 << 20
"""Bytes of the bodies that are read at once."""
_SHOWN_ERRORS = 3
_TYPES = ("str", "int", "float")


def is_local(host: str) -> bool:
    """Return whether a server on this address can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_of(host: str, others: Iterable[str] = ()) -> frozenset[str]:
    """Return the names that requests may give in their header Host, for `refusal`.

    Args:
        host: The address that the server listens on.
        others: Further names.
    """
    every = {"0.0.0.0"} if host == "::" else set()  # noqa: S104 (means all addresses, of both kinds)
    local = {"localhost"} if is_local(host) or host in ("0.0.0.0", "::") else set()  # noqa: S104
    return frozenset({host.lower(), *every, *local, *(name.lower() for name in others)})


class Gate:
    """Refuses requests of web pages and those without a key, and counts all.

    Args:
        app: Gets the others.
        names: As `names_of` returns them.
        keys: The keys, of which a request needs one; none are needed if it is empty.
        metrics: Counts the requests.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str], keys: Iterable[str], metrics: Metrics) -> None:
        self._app, self._names, self._metrics = app, names, metrics
        self._keys = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                self._metrics.answered(route.path if route else "other", message["status"])
            await send(message)

        headers = Headers(scope=scope)
        if refused := refusal(scope["method"], headers, self._names):
            error = HTTPException(*refused)
        elif (owner := self._owner(headers.get("authorization", ""))) is None and scope["path"] != OPEN:
            error = HTTPException(401, "Send a key of this server: Authorization: Bearer KEY.")
        else:
            scope["owner"] = owner  # the route, which is counted, is set in the same scope
            await self._app(scope, receive, counted)
            return
        await JSONResponse(error_body(error), error.status_code, {"Connection": "close"})(scope, receive, counted)

    def _owner(self, authorization: str) -> bytes | None:
        """Return what identifies the clients of one key; None if the server does not have the key."""
        if not self._keys:
            return b""
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        known = [hmac.compare_digest(given, each) for each in self._keys]  # all of them, in constant time
        return given if scheme.lower() == "bearer" and any(known) else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class Bodies:
    """Reads the bodies of requests: each within a minute, all that are read at once within a bound of memory."""

    def __init__(self) -> None:
        self._held = 0

    async def read(self, request: Request, kind: type[B]) -> B:
        """Return the body of a request. Its size is bounded by `refusal`.

        Raises:
            HTTPException: If it is invalid, comes too slowly, or too many bodies are read at once.
        """
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for part in request.stream():
                    self._held += len(part)
                    body += part
                    if self._held > _ALL_BODIES_BYTES:
                        raise HTTPException(503, "The server reads too much at once. Try again later.")
            return kind.model_validate_json(bytes(body))
        except TimeoutError:
            raise HTTPException(408, "The body took too long.", {"Connection": "close"}) from None
        except ValidationError as error:
            raise HTTPException(400, _error_text(error)) from None
        finally:
            self._held -= len(body)


def _error_text(error: ValidationError) -> str:
    """Return what is wrong with a body, without quoting it."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    parts = [f"{_place(part['loc']) or 'the body'}: {part['msg']}" for part in found[:_SHOWN_ERRORS]]
    more = f"; and {len(found) - _SHOWN_ERRORS} more" if len(found) > _SHOWN_ERRORS else ""
    return f"Invalid request: {'; '.join(parts)}{more}."


def _place(found: tuple[str | int, ...]) -> str:
    """Return a place in a body, without the types that pydantic tried there."""
    return ".".join(str(part) for part in found if part not in _TYPES and "[" not in str(part))
