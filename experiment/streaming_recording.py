"""Record `rlm-dspy ask` on a terminal while a model writes, and write what the terminal shows as text.

    uv run --group bench python experiment/streaming_recording.py

writes `streaming_recording.md`. The command line runs in a pseudo-terminal, as a process of its own. The model
is played by a server in this script, which streams its replies over HTTP as OpenAI's does, a few characters at a
time.
With `--model` the real model of that name is recorded instead, e.g. `--model embedded`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import re
import struct
import sys
import termios
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyte

HERE = Path(__file__).parent
COLUMNS, ROWS = 100, 44
CHARS_PER_EVENT, SECONDS_PER_EVENT = 6, 0.15
FRAME_SECONDS = 1.0
QUESTION = "How many of the articles are of 2025?"
THINKING = "The text may be long. I should look at its beginning before I count anything, and see how dates look."
WAITING = re.compile(r"^\S turn|\d+:\d+:\d+", re.MULTILINE)
"""What alone changes while nothing is written."""
TURNS = [
    """I look at how an article begins.
```python
print(len(context), "characters")
print(context[:160])
```""",
    """Each article has a line with its date. I count those of 2025.
```python
import re

dates = re.findall(r"Date: (\\d{4})-\\d\\d-\\d\\d", context)
print(len(dates), "articles")
SUBMIT(answer=str(dates.count("2025")))
```""",
]


class Model(BaseHTTPRequestHandler):
    """Plays a model: streams the reply of the next turn."""

    def do_POST(self) -> None:
        """Answer a chat completion with events."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        turn = sum(message["role"] == "assistant" for message in body["messages"])
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if turn == 0:
            self._say("reasoning_content", THINKING)
        self._say("content", TURNS[turn])
        self._send({"delta": {}, "finish_reason": "stop"})
        self.wfile.write(b"data: [DONE]\n\n")

    def _say(self, name: str, text: str) -> None:
        for at in range(0, len(text), CHARS_PER_EVENT):
            time.sleep(SECONDS_PER_EVENT)
            self._send({"delta": {name: text[at : at + CHARS_PER_EVENT]}, "finish_reason": None})

    def _send(self, choice: dict[str, object]) -> None:
        head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "played"}
        self.wfile.write(f"data: {json.dumps({**head, 'choices': [{'index': 0, **choice}]})}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def recorded(command: list[str], environment: dict[str, str]) -> list[tuple[float, bytes]]:
    """Run a command on a terminal; return what it writes, and when, in seconds after the first of it."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(environment)
        os.chdir(HERE)
        os.execv(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    written: list[tuple[float, bytes]] = []
    started = 0.0
    while True:
        try:
            part = os.read(terminal, 65_536)
        except OSError:  # Linux's way to say that the other side is closed
            part = b""
        if not part:
            break
        started = started or time.monotonic()
        written.append((time.monotonic() - started, part))
    _, status = os.waitpid(child, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"The command failed with {code}: {b''.join(part for _, part in written)!r}")
    return written


def frames(written: list[tuple[float, bytes]]) -> list[tuple[float, str]]:
    """Return what the screen shows from time to time, and at the end."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    shown: list[tuple[float, str]] = []
    for at, part in written:
        if at - (shown[-1][0] if shown else 0.0) >= FRAME_SECONDS:
            text = text_of(screen)
            if not shown or WAITING.sub("", text) != WAITING.sub("", shown[-1][1]):
                shown.append((at, text))
        stream.feed(part)
    return [*shown, (written[-1][0], text_of(screen))]


def text_of(screen: pyte.Screen) -> str:
    return "\n".join(line.rstrip() for line in screen.display).strip("\n")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", help="a real model, instead of the one that is played")
    model = options.parse_args().model
    command = [sys.executable, "-m", "rlm_dspy", "ask", QUESTION, "articles.md"]
    environment = {"TERM": "xterm-256color", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    if model is None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment |= {"OPENAI_API_BASE": f"http://127.0.0.1:{server.server_port}/v1", "OPENAI_API_KEY": "none"}
        who = "a server that plays a model and streams its replies over HTTP"
    else:
        who = f"the model {model}"
    about = (
        f"Made by `experiment/streaming_recording.py` with {who}.\n"
        f"What a terminal of {COLUMNS} columns shows "
        "about once a second, if it has changed. The line at the bottom is live: the line of code that is being\n"
        "written, or the end of what the model thinks.\n"
    )
    parts = ["# `rlm-dspy ask` on a terminal\n", about]
    for at, text in frames(recorded([*command, "--model", model or "openai/played"], environment)):
        parts.append(f"## After {at:.1f} seconds\n\n```text\n{text}\n```\n")
    (HERE / "streaming_recording.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
