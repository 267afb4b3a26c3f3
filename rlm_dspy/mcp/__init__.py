"""The Model Context Protocol: tools of MCP servers in a run.

with rlm_dspy.mcp.tools({"files": {"command": "npx", "args": ["-y", "some-server"]}}) as tools:
    RLM("question -> answer", tools=tools)(question="...")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_dspy.mcp.servers import MCPServer

if TYPE_CHECKING:
    from rlm_dspy.mcp.client import tools

__all__ = ["MCPServer", "tools"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import the SDK on first use: it is an extra."""
        if name != "tools":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            from rlm_dspy.mcp import client  # noqa: PLC0415 (an extra)
        except ImportError as error:
            raise ImportError(
                "MCP servers need the extra `mcp`: pip install 'dspy-recursive-lm[mcp]' "
                "(in the checkout: --extra mcp)."
            ) from error
        return client.tools
