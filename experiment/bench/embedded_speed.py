"""How fast the embedded model reads, writes and begins: as it is, and without what makes it fast.

    uv run python experiment/bench/embedded_speed.py smollm2-135m --demos 4
    uv run python experiment/bench/embedded_speed.py qwen2.5-coder-1.5b --demos 8 --repetitions 1

Each measurement is a process of its own; those of a repetition come one after the other, and the medians are told.
CPU seconds are those of the process, which other programs hardly change; seconds are what a user waits.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import dspy
import typer
from dspy import lm15

from rlm_dspy.embedded.engine import embedded_lm
from rlm_dspy.embedded.model_cache import FOLDER_VARIABLE, models_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
ARTICLES = HERE.parent / "articles.md"
WRITTEN_TOKENS = 32
Row = dict[str, float]
BEFORE = {"RLM_DSPY_SAVED_PROMPTS": "0", "GOMP_SPINCOUNT": "300000"}  # what libgomp does by itself: it spins first
KINDS = {"before": BEFORE, "cold": {}, "saved prompt": {}}
"""Environment of each kind of process, in the order in which they run: the second saves what the third finds."""


class Clock:
    """Seconds and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._started, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return both."""
        return time.monotonic() - self._started, time.process_time() - self._cpu


def conversation(demos: int) -> tuple[lm15.Message, ...]:
    """Return demos of about 250 tokens each: a passage, and code that looks for its longest words."""
    text = ARTICLES.read_text(encoding="utf-8")
    code = "```python\nwords = sorted(set(context.split()), key=len)\nprint(words[-5:])\n```"
    said: list[lm15.Message] = []
    for number in range(demos):
        said.append(lm15.Message.user(text[number * 1_000 : (number + 1) * 1_000]))
        said.append(lm15.Message.assistant(f"I look at the longest words of part {number}.\n{code}"))
    return tuple(said)


def ask(
    lm: dspy.LM, demos: int, question: str, max_tokens: int = WRITTEN_TOKENS, then: Sequence[lm15.Message] = ()
) -> lm15.Response:
    """Ask the first question of a conversation, or go on with it."""
    system = "You answer questions about a text with short Python code. The text is in `context`. " * (
        4 if demos else 1
    )
    messages = (*conversation(demos), lm15.Message.user(question), *then)
    config = lm15.Config(max_tokens=max_tokens)
    return lm(lm15.Request(model=lm.model, system=system, messages=messages, config=config))


def measure(model: str, demos: int, threads: int | None) -> Row:
    """Measure the first turn, that of a second conversation, and tokens a second, in this process."""
    lm = embedded_lm(model, cache=False, threads=threads)
    clock = Clock()
    lm.engine.count_tokens("loaded")
    load, _ = clock.read()
    clock = Clock()
    first = ask(lm, demos, "Which word is the longest?", 1)
    seconds, cpu = clock.read()
    clock = Clock()
    ask(lm, demos, "How many towns are named?", 1)
    warm, warm_cpu = clock.read()
    clock = Clock()
    written = ask(lm, demos, "How many towns are named?").usage.output_tokens
    wrote, wrote_cpu = clock.read()
    ask(lm, 0, "Which of these is a town? Ovid, Arles, Tea. " * 10, 1)  # as a sub-call does between two turns
    said = [lm15.Message.assistant("I count them."), lm15.Message.user("Output: 7")]
    after = ask(lm, demos, "How many towns are named?", 1, said).usage
    return {
        "load": load,
        "prompt tokens": first.usage.input_tokens,
        "tokens read": first.usage.input_tokens - first.usage.cache_read_tokens,
        "first turn": seconds,
        "first turn, CPU": cpu,
        "second conversation": warm,
        "second conversation, CPU": warm_cpu,
        "tokens read by a turn after a sub-call": after.input_tokens - after.cache_read_tokens,
        "written per second": written / wrote,
        "written per CPU second": written / wrote_cpu,
    }


def report(model: str, rows: dict[str, list[Row]], command: str) -> str:
    """Return a table: a column for each kind of process."""
    lines = [f"\n## {model}\n", f"`{command}`\n", f"| median of {len(rows['before'])} | {' | '.join(rows)} |"]
    lines.append("|---|" + "---|" * len(rows))
    for name in rows["before"][0]:
        cells = [f"{statistics.median(row[name] for row in kind):,.1f}" for kind in rows.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(
    model: Annotated[str, typer.Argument(help="A model that was downloaded, or a GGUF file.")],
    demos: Annotated[int, typer.Option(help="Demos before the question, of about 250 tokens each.")] = 4,
    repetitions: Annotated[int, typer.Option(help="How often each kind of process is run.")] = 3,
    threads: Annotated[int | None, typer.Option(help="Threads that compute.")] = None,
    alone: Annotated[bool, typer.Option(hidden=True, help="Measure in this process, and print JSON.")] = False,
) -> None:
    """Print a table of seconds and tokens a second."""
    if alone:
        print(json.dumps(measure(model, demos, threads)))
        return
    rows: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as folder:
            for file in models_folder().glob("*.gguf"):
                (Path(folder) / file.name).symlink_to(file)
            for kind, variables in KINDS.items():
                done = subprocess.run(
                    [sys.executable, __file__, *sys.argv[1:], "--alone"],
                    env={**os.environ, FOLDER_VARIABLE: folder, **variables},
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                rows[kind].append(json.loads(done.stdout))
                print(kind, rows[kind][-1], file=sys.stderr)
    print(report(model, rows, f"python experiment/bench/embedded_speed.py {' '.join(sys.argv[1:])}"))


if __name__ == "__main__":
    typer.run(main)
