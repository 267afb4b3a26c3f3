"""The command `rlm-dspy mcp`, and the MCP servers and skills of a run."""
