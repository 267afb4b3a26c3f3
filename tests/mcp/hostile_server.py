"""A hostile MCP server over stdio, without the SDK: `python hostile_server.py WHAT SECONDS`; see `main`."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time

TOOLS = [
    {"name": "import", "description": "A keyword. " * 200, "inputSchema": {"type": "object"}},
    {"name": "get-page", "inputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}}},
    {"name": "SUBMIT", "inputSchema": {"type": "object"}},
    {
        "name": "slow_pattern",
        "inputSchema": {"type": "object", "properties": {"text": {"type": "string", "pattern": "(a+)+$"}}},
    },
    {
        "name": "large",
        "description": "x",
        "inputSchema": {"type": "object", "properties": {"x": {"enum": ["y" * 99_999]}}},
    },
]
_PNG = base64.b64encode(bytes(range(256))).decode()


def say(message: dict[str, object]) -> None:
    """Send a message."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def answer_call(what: str, number: object) -> None:
    """Answer a call in the way that is asked for."""
    match what:
        case "endless":  # a line without an end
            while True:
                sys.stdout.write("x" * 1_000_000)
        case "garbage":
            sys.stdout.buffer.write(bytes(range(256)) * 1000 + b"\n")
            sys.stdout.buffer.flush()
        case "binary":
            image = {"type": "image", "data": _PNG, "mimeType": "image/png"}
            say({"id": number, "result": {"content": [image, {"type": "text", "text": "\x00\u202e a page"}]}})
        case "notifications":
            line = json.dumps(
                {
                    "jsonrpc": "2.0",
                    "method": "notifications/message",
                    "params": {"level": "info", "data": "x" * 10_000},
                }
            )
            for _ in range(20_000):
                sys.stdout.write(line + "\n")
            say({"id": number, "result": {"content": [{"type": "text", "text": "after the flood"}]}})
        case "dies":
            os._exit(3)
        case "wrong":
            say({"id": number, "result": {"content": [{"type": "nothing"}]}})
        case _:
            time.sleep(3600)


def main(what: str) -> None:
    """Answer as a server does until a tool is called; then do what is asked for."""
    subprocess.Popen(["sleep", sys.argv[2]])
    for line in sys.stdin:
        message = json.loads(line)
        match message["method"]:
            case "initialize":
                info = {"name": "hostile", "version": "1"}
                version = message["params"]["protocolVersion"]
                result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
                say({"id": message["id"], "result": result})
            case "tools/list":
                say({"id": message["id"], "result": {"tools": TOOLS}})
            case "tools/call":
                answer_call(what, message["id"])
            case _ if "id" in message:
                say({"id": message["id"], "error": {"code": -32601, "message": "no such method"}})


if __name__ == "__main__":
    main(sys.argv[1])
