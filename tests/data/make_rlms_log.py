"""Makes `rlms.jsonl`: `rlms` (the extra of that name) is run for real, against a server that plays a script.

python tests/data/make_rlms_log.py
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rlm import RLM
from rlm.logger import RLMLogger

HERE = Path(__file__).resolve().parent
ASKED = "The root asks: which colour?"
TURNS = [
    "I think before I look.",
    "Two blocks.\n```repl\nprint(len(context))\nword = context.split()[0]\n```\nand\n```repl\n1 / 0\n```",
    "I ask.\n```repl\nprint(llm_query_batched(['SAY blue', 'FAIL']))\nprint(rlm_query('CHILD counts'))\n```",
    "Done.\n```repl\nanswer['content'] = 'blue'\nanswer['ready'] = True\n```",
    *["I only think."] * 4,
    "A guess at the end.",
]
CHILD_TURNS = [
    "Child looks.\n```repl\nprint(context)\n```",
    "Child ends.\n```repl\nanswer['content'] = '7'\nanswer['ready'] = True\n```",
]


class ScriptedServer(BaseHTTPRequestHandler):
    """Answers chat completions: sub-calls by what they ask, turns of the root and of the child in order."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = body["messages"][-1]["content"]
        if said == "FAIL":
            self._send(400, {"error": {"message": "no such thing", "type": "invalid_request_error"}})
            return
        is_root = any(ASKED in str(message["content"]) for message in body["messages"])
        script = TURNS if is_root else CHILD_TURNS
        reply = "blue" if said == "SAY blue" else script.pop(0)
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        message = {"role": "assistant", "content": reply}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        told = {"id": "1", "object": "chat.completion", "created": 0, "model": "scripted"}
        self._send(200, {**told, "choices": [choice], "usage": usage})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name upstream gives it)
        """Say nothing."""


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), ScriptedServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = tempfile.mkdtemp()
    logger = RLMLogger(log_dir=folder)
    rlm = RLM(
        backend="openai",
        backend_kwargs={
            "model_name": "scripted",
            "api_key": "sk-not-a-real-key",
            "base_url": f"http://127.0.0.1:{server.server_port}/v1",
            "max_retries": 0,
        },
        environment="local",
        max_depth=2,
        max_iterations=4,
        logger=logger,
        orchestrator=False,
        custom_system_prompt="You write Python in ```repl blocks.",
    )
    for context in ("blue is a colour", "nothing is here"):
        rlm.completion(context, root_prompt=ASKED)
    server.shutdown()
    (found,) = Path(folder).glob("*.jsonl")
    text = found.read_text(encoding="utf-8").replace(f"127.0.0.1:{server.server_port}", "127.0.0.1:8000")
    text = re.sub(r"[^' ]*/repl_env_[^/]+/", "repl_env/", text)  # where this machine keeps its temporary files
    (HERE / "rlms.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
