"""A scripted OpenAI-compatible server on 127.0.0.1: it plays a model and counts what an engine sends.

    python experiment/bench/scripted_server.py --port 0        # prints the port

Every run has an address of its own, `http://127.0.0.1:PORT/run/NAME/v1`, and is told before what to play:
`PUT /run/NAME` with a `Script` as JSON. `GET /run/NAME` returns what was counted. Runs that share one address,
`http://127.0.0.1:PORT/v1`, are told apart by `[[run NAME]]` in their messages. A request is the sub-model's if its
last message holds `[[sub NUMBER]]`; it folds a conversation if that asks for DSPy's field `account`; else it is
the root model's. A turn is over when its reply has been sent whole.

Tokens are characters divided by four. The cached prefix is the longest beginning that a request shares with an
earlier one of the same run; providers cache no more than that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from dialects import Script, reply, sub_reply

_SUB = re.compile(r"\[\[sub (\d+)\]\]")
_RUN = re.compile(r"\[\[run ([\w, .-]+)\]\]")
ACCOUNT = "[[ ## account ## ]]"
_MOST_BYTES = 4 << 30
_REMEMBERED = 3
_CHARS_PER_TOKEN = 4


@dataclass
class Played:
    """What was counted of one run.

    Attributes:
        requests: Requests that came, by `root`, `sub` and `account`.
        faults: Requests that were answered with the fault, by `root` and `sub`.
        paid: Replies that a provider would bill: sent whole, sent as garbage, or cut, by `root` and `sub`.
        delivered: How often each sub-model's answer was sent whole, by its number.
        body_bytes: Bytes of all requests' bodies.
        chars: Characters of all messages.
        prefix_chars: Of them, characters at the beginning that an earlier request had as well.
        waits: Seconds between a root reply and the next root request.
        first_at: When the first request came, in the machine's monotonic seconds.
        last_at: When the last root reply that arrived began to be sent.
        most_at_once: The largest number of requests under way together.
        leaked: Whether the secret of the script was sent to the model.
    """

    script: Script
    requests: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    paid: Counter[str] = field(default_factory=Counter)
    delivered: Counter[int] = field(default_factory=Counter)
    body_bytes: int = 0
    chars: int = 0
    prefix_chars: int = 0
    waits: list[float] = field(default_factory=list)
    first_at: float | None = None
    last_at: float | None = None
    most_at_once: int = 0
    leaked: bool = False
    turn: int = 0
    under_way: int = 0
    earlier: list[str] = field(default_factory=list, repr=False)

    def enter(self, kind: str, body_bytes: int, sent: str) -> int:
        """Count a request; return its number among those of its kind."""
        now = time.monotonic()
        self.first_at = self.first_at or now
        if kind == "root":
            if self.last_at is not None:
                self.waits.append(now - self.last_at)
            self.prefix_chars += max((shared_prefix(other, sent) for other in self.earlier), default=0)
            self.earlier = [*self.earlier, sent][-_REMEMBERED:]
        self.leaked |= bool(self.script.secret) and self.script.secret in sent
        self.body_bytes += body_bytes
        self.chars += len(sent)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        counted = self.script.fault_kind
        number = sum(self.requests.values()) if counted == "all" else self.requests[counted]
        self.requests[kind] += 1
        return number

    def fault(self, kind: str, number: int) -> str:
        """Return what goes wrong with request `number`; empty if nothing."""
        script = self.script
        if script.fault_kind not in ("all", kind) or number % script.fault_every != script.fault_first:
            return ""
        return script.fault

    def counted(self) -> dict[str, Any]:
        """Return the counts as JSON has them."""
        kept = {name: value for name, value in vars(self).items() if name not in ("earlier", "script")}
        return {**kept, "delivered": {str(number): times for number, times in self.delivered.items()}}


def shared_prefix(one: str, other: str) -> int:
    """Return how many characters two strings begin with alike."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def text_of(message: dict[str, Any]) -> str:
    """Return the text of a chat message."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)


class Server:
    """The server. One per process."""

    def __init__(self) -> None:
        self.runs: dict[str, Played] = {}
        self.under_way = 0
        self.most_at_once = 0

    def application(self) -> web.Application:
        """Return the application with its addresses."""
        application = web.Application(client_max_size=_MOST_BYTES)
        application.add_routes(
            [
                web.put("/run/{name}", self.begin),
                web.get("/run/{name}", self.counts),
                web.delete("/run/{name}", self.forget),
                web.get("/most_at_once", self.most),
                web.post("/run/{name}/v1/chat/completions", self.complete),
                web.get("/run/{name}/v1/models", self.models),
                web.post("/v1/chat/completions", self.complete),
                web.get("/v1/models", self.models),
            ]
        )
        return application

    async def begin(self, request: web.Request) -> web.Response:
        """Take the script of a run."""
        self.runs[request.match_info["name"]] = Played(Script.read(await request.json()))
        return web.json_response({})

    async def counts(self, request: web.Request) -> web.Response:
        """Return what was counted of a run."""
        return web.json_response(self.runs[request.match_info["name"]].counted())

    async def forget(self, request: web.Request) -> web.Response:
        """Forget a run."""
        self.runs.pop(request.match_info["name"], None)
        return web.json_response({})

    async def most(self, _: web.Request) -> web.Response:
        """Return the most requests that were under way together since this was last asked."""
        found, self.most_at_once = self.most_at_once, self.under_way
        return web.json_response({"most_at_once": found})

    async def models(self, _: web.Request) -> web.Response:
        """List the one model."""
        return web.json_response({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat completion, or do what the script says goes wrong."""
        raw = await request.read()
        body = json.loads(raw)
        messages = body["messages"]
        sent = "\0".join(f"{message['role']}\1{text_of(message)}" for message in messages)
        named = request.match_info.get("name")
        run = self.runs[named or _RUN.findall(sent)[0]]
        found = _SUB.search(text_of(messages[-1]))
        is_account = not found and ACCOUNT in text_of(messages[-1])
        kind = "sub" if found else "account" if is_account else "root"
        number = run.enter(kind, len(raw), sent)
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            await asyncio.sleep(run.script.latency)
            if fault := run.fault(kind, number):
                return await self._fail(request, run, kind, fault)
            if found:
                text = sub_reply(run.script, int(found[1]))
            else:
                text = reply(run.script, run.turn) if kind == "root" else f"{ACCOUNT}\nParts were printed."
            sent_at = time.monotonic()  # before it is sent: the engine may be on with it before we are
            response = await self._send(request, completion(body["model"], text, sent), stream=body.get("stream"))
            run.paid[kind] += 1
            if found:
                run.delivered[int(found[1])] += 1
            elif kind == "root":
                run.turn += 1
                run.last_at = sent_at
            return response
        finally:
            run.under_way -= 1
            self.under_way -= 1

    async def _send(self, request: web.Request, answer: dict[str, Any], *, stream: Any) -> web.StreamResponse:
        if not stream:
            response: web.StreamResponse = web.json_response(answer)
            await response.prepare(request)
            await response.write_eof()
            return response
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for chunk in chunks(answer):
            await response.write(f"data: {chunk}\n\n".encode())
        await response.write_eof()
        return response

    async def _fail(self, request: web.Request, run: Played, kind: str, fault: str) -> web.StreamResponse:
        run.faults[kind] += 1
        if fault in ("429", "500"):
            words = {"429": "Rate limit reached.", "500": "The server had an error."}[fault]
            error = {"error": {"message": words, "type": "server_error", "code": fault}}
            return web.json_response(error, status=int(fault))
        run.paid[kind] += 1  # the model has worked: what follows goes wrong on the way
        if fault == "garbage":
            return web.Response(text='{"id": "x", "choices": [{"mess', content_type="application/json")
        if fault == "hang":
            await asyncio.sleep(run.script.hang_seconds)
        else:
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "900"})
            await response.prepare(request)
            await response.write(b'{"id": "x", "choices": [')
        if request.transport is not None:
            request.transport.abort()
        return web.Response()


def completion(model: str, text: str, sent: str) -> dict[str, Any]:
    """Return a chat completion as OpenAI's API has it."""
    tokens_in, tokens_out = len(sent) // _CHARS_PER_TOKEN, len(text) // _CHARS_PER_TOKEN + 1
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
        },
    }


def chunks(answer: dict[str, Any]) -> list[str]:
    """Return the lines of a stream that amount to a completion."""
    text = answer["choices"][0]["message"]["content"]
    head = {"id": answer["id"], "object": "chat.completion.chunk", "created": 0, "model": answer["model"]}
    part = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    return [
        json.dumps({**head, "choices": [part]}),
        json.dumps({**head, "choices": [last]}),
        json.dumps({**head, "choices": [], "usage": answer["usage"]}),
        "[DONE]",
    ]


async def serve(port: int) -> None:
    """Print the port and serve until stdin ends."""
    runner = web.AppRunner(Server().application(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=4_096)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)  # ends with whoever started it


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description="A scripted OpenAI-compatible server.")
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
