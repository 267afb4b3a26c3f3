"""Runs that are killed with -9 at random moments and resumed each time, over HTTP to a scripted model.

    python experiment/bench/kills.py --runs 20 --kills 1 --seed 1
    python experiment/bench/kills.py --runs 1 --kills 20 --seed 1

A run has eight turns: batches of `llm_query`, a tool, and two child RLMs at once. The process that runs it is
killed, and another one goes on from its event log (`RLM.resume`), until one comes to the end. Each must give the
answer, the steps and the usage of an undisturbed run. A process is killed at a random moment after a random
number of events, so that kills are spread over the run however slow the machine is. If a run ends before its last
kill, it is run again with other moments, so that each run of the table has all its kills. The server counts the
requests: those beyond the distinct ones must not be more than those that were under way at the kills, which are
started and not ended in the log.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTEXT = " ".join(f"Sentence {number} is about topic {number % 7}." for number in range(60))
QUESTION = "How many topics are there?"
TURNS = [
    "print(len(context))",
    (
        "parts = [context[at:at + 150] for at in range(0, 1500, 150)]\n"
        "gists = llm_query_batched([f'Give the gist of: {part}' for part in parts])\nprint(len(gists))"
    ),
    (
        "try:\n    seen = note('the third turn')\n"
        "except Exception:  # it was running when the process was gone\n"
        "    seen = 'noted the third turn'\nprint(seen)"
    ),
    (
        "found = rlm_query_batched([('Count the first part.', context[:700]), ('Count the second part.', "
        "context[700:1400])])\nprint(found)"
    ),
    "total = sum(len(gist) for gist in gists)\nprint(total)",
    "more = llm_query_batched([f'Check: {gist}' for gist in gists[:6]])\nprint(more[0])",
    "print(len(found), len(more), total)",
    "SUBMIT(answer=f'{total} {list(found)} {more[-1]} {seen}')",
]
CHILD_TURNS = [
    "counted = llm_query('How many sentences are in: ' + context[:80])\nprint(counted)",
    "checked = llm_query_batched([f'{counted} {number}' for number in range(3)])\nprint(checked[2])",
    "SUBMIT(response=f'{checked[0]} of {len(context)}')",
]
_PATIENCE_SECONDS = 300.0
_POLL_SECONDS = 0.01


def reply(messages: list[dict[str, Any]]) -> str:
    """Return what the model says: the next block of a run, or an answer that is made of the prompt."""
    asks = str(messages[-1]["content"])
    task = next(str(message["content"]) for message in messages if message["role"] == "user")
    if "SUBMIT(" not in task:
        return f"answer {hashlib.sha256(asks.encode()).hexdigest()[:8]}"
    turns = CHILD_TURNS if "Count the" in task else TURNS
    number = sum(message["role"] == "assistant" for message in messages)
    return f"Turn {number + 1}.\n```python\n{turns[number]}\n```"


@dataclass
class Server:
    """A scripted OpenAI-compatible server.

    Attributes:
        seconds: How long each reply takes.
        requests: How often each request came, by the digest of its messages.
        base: Its address.
    """

    seconds: float
    requests: Counter[str] = field(default_factory=Counter)
    base: str = ""

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Count a request and return the body of its reply."""
        messages = body["messages"]
        self.requests[hashlib.sha256(json.dumps(messages).encode()).hexdigest()] += 1
        time.sleep(self.seconds)
        text = reply(messages)
        read, written = sum(len(str(message["content"])) for message in messages) // 4, len(text) // 4
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return {"id": "1", "object": "chat.completion", "model": "scripted", "choices": choices, "usage": usage}


@contextlib.contextmanager
def serving(seconds: float) -> Iterator[Server]:
    """Serve the scripted model in this scope."""
    played = Server(seconds)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            data = json.dumps(played.answer(body)).encode()
            with contextlib.suppress(OSError):  # the client was killed
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    played.base = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield played
    finally:
        server.shutdown()
        server.server_close()


def play(log: Path, base: str, notes: Path) -> None:
    """Run the program, or go on with it if its log has it; print what came of it as JSON."""
    import dspy

    from rlm_dspy import RLM, Limits
    from rlm_dspy.observe import RunLog

    def note(text: str) -> str:
        """Write a note."""
        with notes.open("a") as file:
            file.write(text + "\n")
        return f"noted {text}"

    dspy.configure(lm=dspy.LM("openai/scripted", api_base=base, api_key="none", cache=False))
    limits = Limits(max_llm_calls=1000)  # requests under way at a kill count too
    rlm = RLM("context, question -> answer: str", tools=[note], limits=limits)
    inputs = {"context": CONTEXT, "question": QUESTION}
    if log.exists() and log.stat().st_size:
        prediction = rlm.resume(log, **inputs)
    else:
        with RunLog(log):
            prediction = rlm(**inputs)
    steps = [{name: step[name] for name in ("code", "output", "kind")} for step in prediction.trajectory]
    usage = {name: prediction.usage[name] for name in ("calls", "failures", "input_tokens", "output_tokens")}
    print(json.dumps({"answer": prediction.answer, "stop": prediction.stop, "steps": steps, "usage": usage}))


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        told: What its last process printed.
        turns: The turn of each kill; None before the first.
        under_way: The requests that were under way at the kills.
        requests: The requests that came.
        distinct: The distinct ones of them.
        notes: How often the tool was called.
        events: The number of its events.
    """

    told: dict[str, Any]
    turns: list[int | None]
    under_way: int
    requests: int
    distinct: int
    notes: int
    events: int


class Moment(NamedTuple):
    """When a process is killed.

    Attributes:
        events: After so many events of its own,
        seconds: and so many seconds.
    """

    events: int
    seconds: float


def run(seconds: float, moments: list[Moment]) -> Outcome | None:
    """Run the program; kill its process at each of these moments.

    Returns:
        What came of it; None if it ended before the last kill.
    """
    with tempfile.TemporaryDirectory() as folder, serving(seconds) as server:
        log, notes, turns = Path(folder, "run.jsonl"), Path(folder, "notes"), list[int | None]()
        for moment in [*moments, Moment(1, _PATIENCE_SECONDS)]:
            before = lines_of(log)
            command = [sys.executable, __file__, "--play", str(log), server.base, str(notes)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                while process.poll() is None and lines_of(log) < before + moment.events:
                    time.sleep(_POLL_SECONDS)
                try:
                    printed, errors = process.communicate(timeout=moment.seconds)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    printed = errors = ""
            if printed or errors:
                break
            if any(event["event"] == "run_ended" and "parent" not in event for event in events_of(log)):
                return None
            turns.append(last_turn(log))
        if process.returncode:
            raise RuntimeError(f"The program failed:\n{errors}")
        if len(turns) < len(moments):
            return None
        count, distinct = server.requests.total(), len(server.requests)
        noted = len(notes.read_text().splitlines()) if notes.exists() else 0
        return Outcome(json.loads(printed), turns, lost_requests(log), count, distinct, noted, lines_of(log))


def lines_of(log: Path) -> int:
    """Return the number of lines of a log; 0 if there is none yet."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def events_of(log: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a log."""
    for line in log.read_text().splitlines():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def last_turn(log: Path) -> int | None:
    """Return the turn of the root run that a log ends in."""
    turns = [
        event["turn"] for event in events_of(log) if event["event"] == "turn_started" and "parent" not in event
    ]
    return turns[-1] if turns else None


def lost_requests(log: Path) -> int:
    """Return the number of requests that are started and not ended in a log."""
    count = Counter(event["event"] for event in events_of(log))
    return count["lm_started"] - count["lm_ended"]


def check(outcome: Outcome, undisturbed: Outcome) -> list[str]:
    """Return what differs from an undisturbed run, or was asked too often."""
    problems = [name for name in ("answer", "stop", "steps") if outcome.told[name] != undisturbed.told[name]]
    usage = dict(outcome.told["usage"])
    for name in ("calls", "failures"):
        usage[name] -= outcome.under_way
    problems += ["usage"] if usage != undisturbed.told["usage"] else []
    problems += ["questions"] if outcome.distinct != undisturbed.distinct else []
    asked_again = outcome.requests - outcome.distinct - (undisturbed.requests - undisturbed.distinct)
    return problems + (["asked again"] if asked_again > outcome.under_way else [])


def main() -> None:
    """Play the runs and print a table; exit with 1 if one went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=1, help="of each run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.2, help="that a reply takes")
    parser.add_argument("--play", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.play:
        log, base, notes = given.play
        play(Path(log), base, Path(notes))
        return
    chance, wrong = random.Random(given.seed), 0
    undisturbed = run(given.seconds, [])
    assert undisturbed is not None, "it has no kill"
    most, again = 2 * undisturbed.events // (given.kills + 1), 0
    print(f"Undisturbed: {undisturbed.requests} requests, {undisturbed.events} events.\n")

    def moment() -> Moment:
        return Moment(chance.randint(1, most), chance.uniform(0, given.seconds))

    print("| run | killed in turn | requests | distinct | asked again | under way at the kills | tool calls | |")
    print("|---|---|---|---|---|---|---|---|")
    for number in range(1, given.runs + 1):
        while (outcome := run(given.seconds, [moment() for _ in range(given.kills)])) is None:
            again += 1
        problems = check(outcome, undisturbed)
        wrong += bool(problems)
        turns = ", ".join("start" if turn is None else str(turn) for turn in outcome.turns)
        counts = [outcome.requests, outcome.distinct, outcome.requests - outcome.distinct, outcome.under_way]
        told = ", ".join(problems) or "the same"
        print(f"| {number} | {turns} | {' | '.join(map(str, counts))} | {outcome.notes} | {told} |", flush=True)
    print(f"\n{given.runs - wrong} of {given.runs} the same. Drawn again, as the run had ended: {again}.")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
