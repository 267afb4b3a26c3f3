"""What a run of ten turns sends, ours beside `dspy.RLM`, and what share of it the embedded model has cached.

    uv run python experiment/bench/messages.py

Both engines play the same script: ten blocks of code that print about 2,000 characters each. Then the messages of
our run are sent to the embedded model, turn by turn, to see what share of each prompt it had already read.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import dspy

from rlm_dspy import RLM, Limits
from rlm_dspy.embedded.engine import embedded_lm
from rlm_dspy.testing import Messages, ScriptedLM

REPORT = Path(__file__).parent / "MESSAGES.md"
TURNS = 10
CONTEXT = "".join(f"line {number}: the quick brown fox jumps over the lazy dog\n" for number in range(20_000))
SIGNATURE = "context, question -> answer: str"


def reply(turn: int) -> str:
    """Return what the model writes on a turn, in a form that both engines read."""
    code = "SUBMIT(answer='fox')" if turn == TURNS else f"print(context[{turn} * 2000:][:2000])"
    return f"[[ ## reasoning ## ]]\nI look at part {turn}.\n\n[[ ## code ## ]]\n```python\n{code}\n```\n"


def calls_of(engine: type[dspy.Module], **given: Any) -> list[Messages]:
    """Play the script; return the messages of each call."""
    lm = ScriptedLM([reply(turn) for turn in range(1, TURNS + 1)])
    with dspy.context(lm=lm):
        engine(SIGNATURE, max_iters=TURNS, **given)(context=CONTEXT, question="Which animal jumps?")
    calls: list[Messages] = lm.script.calls
    return calls


def characters(messages: Messages) -> int:
    """Return the characters of all messages."""
    return sum(len(message["content"]) for message in messages)


def shared(before: Messages, after: Messages) -> int:
    """Return how many characters at the beginning of `after` were sent the same in `before`."""
    old, new = ("\0".join(f"{m['role']}\1{m['content']}" for m in messages) for messages in (before, after))
    return next((at for at, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


def row(name: str, calls: list[Messages]) -> str:
    """Return a line of the table."""
    sent = sum(map(characters, calls))
    again = sum(min(shared(before, after), characters(after)) for before, after in pairwise(calls))
    return f"| {name} | {len(calls)} | {sent:,} | {again / sent:.0%} | {sent - again:,} |"


def cached_shares(calls: list[Messages]) -> list[float]:
    """Send the turns to the embedded model; return which share of each prompt it took from its cache."""
    lm = embedded_lm("smollm2-135m", cache=False, max_tokens=1)
    shares = []
    for messages in calls:
        request = [dict(message) for message in messages]
        lm(messages=request)
        usage = lm.history[-1]["usage"]
        shares.append((usage["prompt_tokens_details"]["cached_tokens"] or 0) / usage["prompt_tokens"])
    return shares


def main() -> None:
    """Measure and write the report."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    ours = calls_of(RLM, policy=None, limits=Limits(max_output_chars=10_000))
    upstream = calls_of(dspy.RLM, interpreter_factory=dspy.LocalInterpreter)
    shares = cached_shares(ours)
    lines = [
        "# What a run of ten turns sends",
        "",
        "Made by `experiment/bench/messages.py`: the same script through both, 2,000 characters printed a turn.",
        "",
        "| engine | calls | characters sent | of them a repeated beginning | new characters |",
        "|---|---|---|---|---|",
        row("ours", ours),
        row("dspy.RLM", upstream),
        "",
        "A repeated beginning is what a provider's prompt cache can serve. Share of each prompt that the embedded",
        f"model had cached, turn by turn: {', '.join(f'{share:.0%}' for share in shares)}.",
    ]
    REPORT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(REPORT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
