"""Reads descriptions of MCP servers, in the form that most programs use: `{"mcpServers": {"name": {...}}}`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from rlm_dspy.errors import InvalidInputs

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_EXAMPLE = '{"mcpServers": {"files": {"command": "npx", "args": ["-y", "some-server"]}}}'


class MCPServer(BaseModel):
    """How to reach one MCP server: a command that serves standard input and output, or an address.

    `${NAME}` in a value is replaced by that environment variable. A server that is started gets only `env`,
    `PATH`, `HOME` and the like.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    command: str | None = None
    args: list[str] = []
    env: dict[str, str] = {}
    cwd: str | None = None
    """The working directory; default: the one of this process."""
    url: str | None = None
    """The address of a server that speaks Streamable HTTP."""
    headers: dict[str, str] = {}
    type: Literal["stdio", "http", "streamable-http"] | None = None
    """Ignored: other programs write it, but `command` or `url` already determines it."""

    @model_validator(mode="after")
    def _has_one_way(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("give it either a command (with args, env, cwd) or a url (with headers)")
        return self

    def filled(self) -> MCPServer:
        """Return this server with `${NAME}` replaced by environment variables.

        Raises:
            InvalidInputs: If a variable is not set.
        """

        def value_of(found: re.Match[str]) -> str:
            if found[1] not in os.environ:
                raise InvalidInputs(f"An MCP server needs the environment variable {found[1]}, which is not set.")
            return os.environ[found[1]]

        def fill(text: str) -> str:
            return _VARIABLE.sub(value_of, text)

        return self.model_copy(
            update={
                "args": [fill(arg) for arg in self.args],
                "env": {name: fill(value) for name, value in self.env.items()},
                "url": self.url and fill(self.url),
                "headers": {name: fill(value) for name, value in self.headers.items()},
            }
        )


_SERVERS = TypeAdapter(dict[str, MCPServer])
Given = Mapping[str, MCPServer | Mapping[str, object]] | str | os.PathLike[str]


def read_servers(given: Given) -> dict[str, MCPServer]:
    """Return MCP servers by name.

    Args:
        given: Servers by name, the same below the key `mcpServers`, or the path of a JSON file with either.

    Raises:
        InvalidInputs: If the file cannot be read, or a server is not valid.
    """
    where = ""
    found: object = given
    if isinstance(given, str | os.PathLike):
        where = f"{given}: "
        try:
            found = json.loads(Path(given).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidInputs(f"{where}{error.strerror}. Name a JSON file such as {_EXAMPLE}.") from None
        except ValueError as error:
            raise InvalidInputs(f"{where}no valid JSON: {error}. Write e.g. {_EXAMPLE}.") from None
    if isinstance(found, Mapping) and found.keys() == {"mcpServers"}:
        found = found["mcpServers"]
    try:
        return _SERVERS.validate_python(found)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        what = f"MCP server {'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        why = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise InvalidInputs(f"{where}{what}{why}. Write e.g. {_EXAMPLE}.") from None
