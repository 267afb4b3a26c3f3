"""One behaviour in the format of each engine: what a scripted model writes on each turn.

A `Script` says what the model does; a `Dialect` says how the engine wants that written. So every engine is given
the same model, which speaks its language.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

LOST = "lost"
"""What a run submits whose state is gone."""
KEPT = "42"
"""What a run submits that still knows what it computed before a bad cell."""

CELLS = {
    "raise": "raise ValueError('a mistake')",
    "loop": "while True:\n    pass",
    "exit": "import sys\nsys.exit(3)",
    "kill": "import os\nos._exit(3)",
    "crash": "import ctypes\nctypes.string_at(0)",
    "flood": "for _ in range(400):\n    print('x' * 500_000)",
    "memory": "hoard = [bytearray(100_000_000) for _ in range(80)]\nprint(len(hoard))",
    "chdir": "import os, tempfile\nos.chdir(tempfile.mkdtemp())\nos.rmdir(os.getcwd())",
    "stdout": "import sys\nsys.stdout = None",
    "delete": "import os\nos.remove({canary!r})",
    "read": "print(open({canary!r}).read())",
}
"""What a model may write by mistake or with bad intent, by name; `{canary}` is a file of the host."""


@dataclass(frozen=True)
class Script:
    """What the scripted model does in one run.

    Attributes:
        dialect: Whose format it writes.
        turns: Turns in all; on the last one it submits.
        print_chars: Characters of the input that it prints on each turn before the last.
        subs: Sub-model calls, all in one batch, on the first turn; it submits how many answers were right.
        cell: A name of `CELLS`: run on the second turn, after a value was computed that is submitted later.
        canary: A file of the host that `delete` and `read` go for.
        secret: What stands in it.
        latency: Seconds that every reply takes.
        fault: What goes wrong: `429`, `500`, `hang`, `garbage`, `cut`, or nothing.
        fault_every: One in so many requests has the fault.
        fault_first: The first request, counted from 0, that has it.
        fault_kind: Which requests count: `root`, `sub`, or `all`.
        hang_seconds: How long a request hangs before the connection is closed.
    """

    dialect: str
    turns: int = 2
    print_chars: int = 0
    subs: int = 0
    cell: str = ""
    canary: str = ""
    secret: str = ""
    latency: float = 0.0
    fault: str = ""
    fault_every: int = 10
    fault_first: int = 3
    fault_kind: str = "all"
    hang_seconds: float = 10.0

    @classmethod
    def read(cls, values: dict[str, Any]) -> Script:
        """Return the script that JSON describes."""
        return cls(**values)

    def code(self, turn: int) -> str:
        """Return the code of a turn (the first is 0), without what the dialect adds."""
        dialect = DIALECTS[self.dialect]
        if turn >= self.turns - 1:
            return dialect.submit(self._result())
        if self.subs and turn == 0:
            return dialect.ask_all(self.subs)
        if self.cell:
            cell = CELLS[self.cell].format(canary=self.canary) if "{" in CELLS[self.cell] else CELLS[self.cell]
            return [f"kept = {int(KEPT) - 1}\nprint(kept)", cell][turn] if turn < 2 else "print(7)"
        name = dialect.input_name
        return f"at = {turn * self.print_chars} % len({name})\nprint({name}[at:at + {self.print_chars}])"

    def _result(self) -> str:
        """Return the Python expression that is submitted."""
        if self.subs:
            return "good"
        return "kept + 1" if self.cell else f"len({DIALECTS[self.dialect].input_name})"


@dataclass(frozen=True)
class Dialect:
    """How one engine wants a reply.

    Attributes:
        reply: A whole reply, with `{code}` in it.
        end: The code that ends a run, with `{value}` for the string that is submitted.
        batch: The code that asks `{n}` sub-models at once, leaving `answers`.
        answer: The expression for the text of one element `a` of `answers`.
        sub_reply: A sub-model's reply, with `{text}` in it.
        final_reply: If given, the reply that ends a run, one turn after its last code.
        input_name: The variable that holds the input.
    """

    reply: str
    end: str
    batch: str = "answers = llm_query_batched([f'[[sub {{i}}]] Name the number.' for i in range({n})])"
    answer: str = "str(a)"
    sub_reply: str = "{text}"
    final_reply: str = ""
    input_name: str = "context"

    def submit(self, value: str) -> str:
        """Return the code that submits an expression, or that its state is lost."""
        guarded = f"try:\n    found = str({value})\nexcept NameError:\n    found = '{LOST}'"
        return f"{guarded}\n{self.end}".rstrip()

    def ask_all(self, count: int) -> str:
        """Return the code that asks `count` sub-models and counts the right answers."""
        ask = self.batch.format(n=count)
        compare = f"good = len([1 for i, a in enumerate(answers) if {self.answer}.strip() == 'answer ' + str(i)])"
        return f"{ask}\n{compare}\nprint(good)"


_FIELDS = "[[ ## reasoning ## ]]\nNext step.\n\n[[ ## code ## ]]\n```python\n{code}\n```\n\n[[ ## completed ## ]]"
_DSPY = Dialect(_FIELDS, "SUBMIT(answer=found)")
_PREDICT = (
    "import asyncio\nanswers = await asyncio.gather(*[predict('question: str -> answer: str', "
    "question=f'[[sub {{i}}]] Name the number.') for i in range({n})], return_exceptions=True)"
)
_DICT = "str(a['answer'] if isinstance(a, dict) else getattr(a, 'answer', a))"

DIALECTS = {
    "ours": Dialect("Next step.\n\n```python\n{code}\n```", "SUBMIT(answer=found)"),
    "dspy": _DSPY,
    "rlms": Dialect("Next step.\n\n```repl\n{code}\n```", 'answer["content"] = found\nanswer["ready"] = True'),
    "direct": Dialect("{code}", ""),
    "predict-rlm": replace(
        _DSPY,
        reply=_FIELDS.replace("reasoning", "plan"),
        batch=_PREDICT,
        answer=_DICT,
        sub_reply="[[ ## answer ## ]]\n{text}\n\n[[ ## completed ## ]]",
    ),
    "recursive-llm": Dialect("{code}", "found", final_reply="FINAL_VAR(found)"),
    "minrlm": Dialect(
        "```python\n{code}\n```",
        "seen = input_0[:1]\nFINAL(found)",
        batch="answers = sub_llm_batch([(f'[[sub {{i}}]] Name the number.', '') for i in range({n})])",
        input_name="input_0",
    ),
    "fast-rlm": Dialect(
        "```repl\n{code}\n```",
        "FINAL(found)",
        batch=(
            "import asyncio\nanswers = await asyncio.gather(*[llm_query(f'[[sub {{i}}]] Name the number.') "
            "for i in range({n})], return_exceptions=True)"
        ),
    ),
}


def reply(script: Script, turn: int) -> str:
    """Return what the scripted model writes on a turn; the first is 0."""
    dialect = DIALECTS[script.dialect]
    if script.dialect == "direct":
        return "done"
    if dialect.final_reply and turn >= script.turns:
        return dialect.final_reply
    written = dialect.reply.format(code=script.code(turn))
    over = turn >= script.turns  # asked once more than the script is long, e.g. to read an answer
    return f"{written}\n\n[[ ## answer ## ]]\nunscripted\n\n[[ ## completed ## ]]" if over else written


def sub_reply(script: Script, number: int) -> str:
    """Return what the scripted sub-model answers to prompt `number`."""
    return DIALECTS[script.dialect].sub_reply.format(text=f"answer {number}")
