"""An MCP server over stdio for the tests: `python -m tests.mcp_server`."""

from __future__ import annotations

import asyncio

from mcp.server.mcpserver import MCPServer

server = MCPServer("pages")


@server.tool()
async def fetch(page: int, chapter: str = "one") -> str:
    """Return a page."""
    await asyncio.sleep(0)
    return f"page {page} of chapter {chapter}"


@server.tool()
def fail(reason: str) -> str:
    """Fail."""
    raise ValueError(reason)


@server.tool()
async def wait(seconds: float) -> str:
    """Answer late."""
    await asyncio.sleep(seconds)
    return "late"


if __name__ == "__main__":
    server.run()
