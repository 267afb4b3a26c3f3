"""What goes wrong in a run of `chaos.py`: in its cells, its model, its tools, and around it; from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

SECONDS = 2.0
"""How long a request may take, and a cell; what hangs, hangs for longer."""
CELLS = {
    "exit": "import os\nos._exit(3)",
    "segfault": "import ctypes\nctypes.string_at(0)",
    "abort": "import os\nos.abort()",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "hang, busy": "while True: pass",
    "hang, asleep": "import time\ntime.sleep(1000)",
    "hang, deaf": "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: time.sleep(1)",
    "protocol garbage": (
        "import os\nfor fd in range(3, 40):\n    try: os.write(fd, b'\\x00garbage' * 50)\n    except OSError: pass"
    ),
    "forged answer": (
        "import os, json\nline = json.dumps({'t': 'done', 'id': 1, 'kind': 'submitted', 'values': {}}).encode()\n"
        "for fd in range(3, 40):\n    try: os.write(fd, len(line).to_bytes(4, 'little') + line)\n"
        "    except OSError: pass"
    ),
    "memory bomb": "kept = []\nwhile True: kept.append(bytearray(1 << 24))",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": "import threading\nwhile True: threading.Thread(target=threading.Event().wait).start()",
    "flood of output": "for _ in range(200_000): print('x' * 500)",
    "flood of calls": (
        "import threading\ndef flood():\n    while True: echo('x')\n"
        "for _ in range(8): threading.Thread(target=flood).start()\nflood()"
    ),
    "scratch full": "with open('big', 'wb') as file:\n    while True: file.write(b'x' * 1_000_000)",
    "recursion": "def down(n): return down(n + 1)\ndown(0)",
    "closed channel": "import os\nos.closerange(3, 64)",
}
"""Code that harms its worker."""
LOCAL_CELLS = {"error": "1 / 0", "exit, asked": "raise SystemExit(3)", "no code": "", "syntax": "def ("}
"""Code that harms nobody; it may run in this process."""
REPLIES = (
    *("garbage", "429", "500", "503", "timeout", "reset", "empty", "null", "window", "cut", "no block", "latin"),
    *("wrong type", "401", "half"),
)
"""What the model's server does instead of answering."""
TOOLS = ("tool error", "tool exit", "tool slow", "async error", "async hang", "async block", "tool value")
AROUND = (
    *("interrupt", "start fails", "restart fails", "cancelled", "max_seconds", "few descriptors"),
    *("cache disk full", "log disk full", "callback error"),
)
KINDS = {"cell": tuple(CELLS), "model": REPLIES, "tool": TOOLS, "around": AROUND}
FAULTS = [f"{kind}: {name}" for kind, names in KINDS.items() for name in names]
_TOOL_CELLS = {
    "tool error": "fail('x')",
    "tool exit": "leave()",
    "tool slow": "slow()",
    "async error": "afail('x')",
    "async hang": "ahang()",
    "async block": "ablock()",
    "tool value": "print(odd())",
}


WARM = -1
"""The number of a run in which nothing goes wrong: what it leaves is kept for the next."""


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        number: Names it.
        fault: The fault that it is about, `kind: name`.
        cells: The code of its turns; then it submits.
        model: What goes wrong with a request, by its number in the run.
        awaited: Whether the run is awaited.
        local: Whether its code runs in this process.
        around: What goes wrong around it.
        after: When an interrupt comes, in seconds.
    """

    number: int
    fault: str
    cells: tuple[str, ...]
    model: dict[int, str]
    awaited: bool
    local: bool
    around: str
    after: float = 0.0


def plan(seed: int, number: int) -> Plan:
    """Return run `number`: one fault after the other, each with others at random beside it."""
    if number == WARM:
        return Plan(WARM, "", ("print(llm_query('a'))\nafail('x')",), {}, awaited=False, local=False, around="")
    chance = random.Random(f"{seed} {number}")
    fault = FAULTS[number * 7 % len(FAULTS)]
    kind, name = fault.split(": ", 1)
    local = kind != "cell" and chance.random() < 0.25
    others = LOCAL_CELLS if local else {**LOCAL_CELLS, **CELLS}
    cells = [chance.choice([*others.values(), "print(len(context))"]) for _ in range(chance.randint(0, 2))]
    if kind in ("cell", "tool"):
        cells.insert(chance.randint(0, len(cells)), CELLS[name] if kind == "cell" else _TOOL_CELLS[name])
    if name in ("interrupt", "cancelled") and chance.random() < 0.5:
        cells.insert(0, "import time\ntime.sleep(1.5)")
    if name == "restart fails":
        cells.insert(0, "pass" if local else CELLS["exit"])
    asks = "for answer in llm_query_batched(['a', 'b']) + [llm_query('c')]: print(answer)"
    cells.append(chance.choice([asks, "print(claim(text='d'))", "print(dspy.RLM('q -> a')(q='e').a)", "pass"]))
    model = {at: chance.choice(REPLIES) for at in range(12) if chance.random() < 0.1}
    if kind == "model":
        first = chance.randint(0, 1)
        model |= dict.fromkeys(range(first, first + chance.choice([1, 1, 3, 40])), name)
    awaited, after = chance.random() < 0.4, chance.uniform(0, 1)
    return Plan(number, fault, tuple(cells), model, awaited, local, name if kind == "around" else "", after)
