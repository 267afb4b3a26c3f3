"""Defines the types of the frames that the host, the fork server and workers send each other.

What the host and the fork server send is trusted. What a worker sends may be anything: the host reads it as a
`wire.Frame` and checks what it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

if TYPE_CHECKING:
    from .wire import JSON


class Value(TypedDict, total=False):
    """A value: in the frame, or in the shared memory of its next descriptor. It has one of these parts."""

    json: JSON
    pickle: str
    """A pickle in base64."""
    layout: tuple[str, int, int, bool]
    """A `memory.Layout`: a `str` or `bytes` in shared memory."""
    spans: list[tuple[int, int]]
    """The places of a pickle and its buffers in shared memory."""
    file: bool
    """A pickle in the memory of the descriptor, which is read and not mapped."""


class Tool(TypedDict):
    """The description of a tool for a worker."""

    name: str
    doc: str
    is_async: bool


class Order(TypedDict):
    """An order of the host: run a cell, bind values between cells, or make a sleeping copy for each descriptor."""

    t: Literal["cell", "bind", "copy"]
    id: int
    values: NotRequired[dict[str, Value]]
    """The values to bind first."""
    tools: NotRequired[list[Tool]]
    """The tools, if they have changed."""
    code: NotRequired[str]
    fields: NotRequired[list[dict[str, JSON]] | None]


class Answer(TypedDict):
    """The result of a worker's call: a value, or an error's type and message."""

    id: int
    value: NotRequired[Value]
    type: NotRequired[str]
    error: NotRequired[str]


class Config(TypedDict):
    """The settings of a fork server."""

    host: int
    """The number of the process that starts it."""
    packages: list[str]
    """The modules that were asked for."""
    preload: list[str]
    """The modules to load at once; the others are imported when code asks for them."""
    paths: list[str]
    """Folders and wheels with further modules."""
    search: list[str]
    """The folders where modules are looked for."""
    modules: dict[str, str]
    """The file of each module that can be imported, by dotted name."""
    metadata: dict[str, str]
    """The `METADATA` of each distribution that they come with, by `importing.normalized` name."""
    standard: list[str]
    """The folders of the standard library."""
    confinement: dict[str, Any]
    """The arguments of `confine.Confinement`."""


class FromForkServer(TypedDict):
    """A message of the fork server: `ready` once, then an answer to each order."""

    t: Literal["ready", "failed", "done"]
    id: NotRequired[int]
    error: NotRequired[str]
    pid: NotRequired[int]
    missing: NotRequired[dict[str, str]]
    importable: NotRequired[list[str]]
    packages: NotRequired[list[str]]
    readable: NotRequired[list[str]]
    zero_copy: NotRequired[bool]
