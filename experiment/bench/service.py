"""Many clients of a served program at once, for a while: what they get, how long it takes, what memory it costs.

    uv run --extra serve --group dev python experiment/bench/service.py --clients 50 --seconds 60

The server is a process of its own with a scripted model; the clients are the official one of OpenAI. Of four
requests one is streamed, one hangs up after its first event, one is a response, and one a plain chat completion.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import httpx
import openai

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = """
import time
from collections import deque

import dspy

from rlm_dspy import RLM
from rlm_dspy.testing import ScriptedLM


def reply(messages):
    code = "SUBMIT(answer=context[:5])" if len(messages) > 2 else "print(len(context))"
    return f"I look.\\n```python\\n{code}\\n```"


lm = ScriptedLM(reply, seconds=0.2)
lm.script.calls, lm.script.roles = deque(maxlen=1), deque(maxlen=1)  # which it would keep for ever
dspy.configure(lm=lm)
program = RLM("context, question -> answer")
"""
CONTEXT = ("Kadri founded Ovid Systems. " * 4_000).encode()
EVERY_SECONDS = 5.0


@contextlib.contextmanager
def server(clients: int) -> Iterator[tuple[str, int]]:
    """Serve the program in a process; yield its URL and the id of the process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(PROGRAM, encoding="utf-8")
        runs = str(2 * clients)  # those of clients that hung up end beside those that follow
        command = [sys.executable, "-m", "rlm_dspy", "serve", str(path), "--port", "0", "--max-runs", runs]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            line = next((line for line in process.stderr if "http://" in line), "")
            found = re.search(r"http://\S+/v1", line)
            assert found, "the server did not start"
            try:
                yield found[0], process.pid
            finally:
                process.terminate()
                process.wait(60)


def memory(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def open_files(pid: int) -> int:
    """Return how many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def one(client: openai.AsyncOpenAI, what: str) -> str:
    """Make one request; return what became of it."""
    data = base64.b64encode(CONTEXT).decode()
    file = {"filename": "a.txt", "file_data": data}
    if what == "response":
        parts = [{"type": "input_file", **file}, {"type": "input_text", "text": "Who?"}]
        response = await client.responses.create(model="program", input=[{"role": "user", "content": parts}])  # type: ignore[list-item,misc]
        return "answered" if response.output_text == "Kadri" else "wrong"
    chat: list[Any] = [
        {"role": "user", "content": [{"type": "file", "file": file}, {"type": "text", "text": "Who?"}]}
    ]
    if what == "plain":
        whole = await client.chat.completions.create(model="program", messages=chat)
        return "answered" if whole.choices[0].message.content == "Kadri" else "wrong"
    told = ""
    async with await client.chat.completions.create(model="program", messages=chat, stream=True) as stream:
        async for chunk in stream:
            if what == "hang up":
                return "hung up"
            told += chunk.choices[0].delta.content or ""
    return "answered" if told == "Kadri" else "wrong"


async def ask(url: str, until: float, found: Counter[str], seconds: list[float], seed: int) -> None:
    """Make one request after the other until a time."""
    chosen = random.Random(seed)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=300) as client:
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                end = await one(client, chosen.choice(["plain", "stream", "hang up", "response"]))
            except openai.OpenAIError as error:
                end = f"{type(error).__name__}: {error}"[:100]
            found[end] += 1
            if end == "answered":
                seconds.append(time.monotonic() - began)


async def measure(url: str, pid: int, clients: int, length: float) -> dict[str, Any]:
    """Let clients ask for a while; return what was found."""
    found: Counter[str] = Counter()
    seconds: list[float] = []
    began = time.monotonic()
    asking = [ask(url, began + length, found, seconds, seed) for seed in range(clients)]
    tasks = asyncio.gather(*asking)
    megabytes = []
    while not tasks.done():
        await asyncio.wait([tasks], timeout=EVERY_SECONDS)
        megabytes.append((round(time.monotonic() - began), round(memory(pid), 1)))
    await tasks
    async with httpx.AsyncClient() as client:
        for _ in range(600):
            text = (await client.get(url.removesuffix("/v1") + "/metrics")).text
            if "rlm_runs_in_progress 0.0" in text:
                break
            await asyncio.sleep(0.1)
    return {
        "clients": clients,
        "seconds": length,
        "requests": dict(found),
        "median": round(quantiles(seconds, n=100)[49], 2),
        "p95": round(quantiles(seconds, n=100)[94], 2),
        "memory": megabytes,
        "left": re.findall(r"^rlm_runs_in_progress (\S+)", text, re.MULTILINE)[0],
        "runs": dict(re.findall(r'^rlm_runs_total\{stop="(\w+)"\} (\S+)', text, re.MULTILINE)),
        "files": open_files(pid),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with server(options.clients) as (url, pid):
        print(json.dumps(asyncio.run(measure(url, pid, options.clients, options.seconds)), indent=1))


if __name__ == "__main__":
    main()
