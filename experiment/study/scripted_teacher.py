"""A teacher that is no model: it writes a program for a question over a text, and submits what that finds.

A person wrote the programs, from the training and development splits of `families.py`. The teacher knows the
question, as a model would, and never the answer: a run of it is right only if code can find the answer, and the
metric leaves out the others. It speaks to our RLM and to `dspy.RLM`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from rlm_dspy.testing import Messages


@dataclass(frozen=True)
class Program:
    """What the teacher does with one kind of question.

    Attributes:
        asked: A pattern of the questions that it is for.
        words: What it says before the block.
        code: The first block, which prints what it found.
        answer: The expression that the second block submits.
    """

    asked: str
    words: str
    code: str
    answer: str


COUNT = Program(
    r"^How many .* filed|^Count the",
    "I count the lines that have the name and the mark of the question.",
    r"""import re
cells = lambda line: re.findall(r"\w+", line)
lines = context.split("\n")
marks = {m.strip() for line in lines[:99] for m in re.split(r"[^\w\s]", line)}
wanted = [w for w in cells(question)[1:] if w in marks] + re.findall(r"(?<=[a-z,] )[A-Z]\w+", question)
found = [line for line in lines if all(w in cells(line) for w in wanted)]
print(question, wanted, found[:2], len(found))""",
    "str(len(found))",
)
TABLE = Program(
    r"\b(list|table)\b.*\bwhat is the\b",
    "I look for the row of the name, and the column of the question.",
    r"""import re
cells = lambda line: re.findall(r"\w+", line)
lines = context.split("\n")
head = cells(lines[0])
key = re.findall(r"(?<=[a-z,] )[A-Z]\w+", question)[-1]
row = next(cells(line) for line in lines if key in cells(line))
found = [value for name, value in zip(head, row) if name in cells(question)]
print(question, head, row, found)""",
    "found[-1]",
)
LIST = Program(
    r"\btowns\b.*\bnames\b",
    "I take the names in all sentences that tell of the one in the question.",
    r"""import re
words = re.findall(r"\w+", context)
name = min(re.findall(r"(?<=[a-z,] )[A-Z]\w+", question), key=words.count)
lines = [s for s in re.split(r"(?<=[.!?])\s+|\n", context) if name in re.findall(r"\w+", s)]
found = [w for s in lines for w in re.findall(r"(?:in|In|of|from|to|near) ([A-Z]\w+)", s) if w != name]
print(question, lines[:3], found)""",
    '", ".join(found)',
)
FACT = Program(
    "",
    "I rank the sentences by the rare words of the question, and take what has the form of an answer.",
    r"""import re
rare = {w: (9 if w[0].isupper() else 1) / (1 + context.count(w)) for w in re.findall(r"\w{4,}", question)}
lines = re.split(r"(?<=[.!?])\s+|\n", context)
lines.sort(key=lambda line: sum(rare[w] for w in rare if w in line))
best = " ".join(lines[:-4:-1])
asks = question.lower()
form = r"(?<=[a-z,] )[A-Z][\w'-]+|\d[\d,.]*\d"
if "date" in asks or "when" in asks:
    form = r"\d+ [A-Z]\w+ \d{4}"
elif "many" in asks or "number" in asks or "digit" in asks:
    form = r"\d[\d,.]*\d"
elif "town" in asks or "where" in asks:
    form = r"(?<=[a-z,] )[A-Z][\w'-]+"
elif "who" in asks:
    form = r"[A-Z]\w+ [A-Z]\w+"
found = [x for x in re.findall(form, best) if x not in question]
print(question, best[:300], found[:5])""",
    "found[0]",
)
PROGRAMS = (COUNT, TABLE, LIST, FACT)
"""The first whose questions match is used."""


def scripted_teacher() -> ScriptedLM:
    """Return the teacher, as an LM."""
    return ScriptedLM(reply)


def reply(messages: Messages) -> str:
    """Write the next turn of the run at the end of a chat."""
    upstream = "[[ ## code ## ]]" in messages[0]["content"]
    last = messages[-1]["content"]
    ran = next(
        (program for program in PROGRAMS if program.code in (last if upstream else _before(messages))), None
    )
    if ran is not None:
        return _written("That is it.", f"SUBMIT(answer={ran.answer})", upstream=upstream)
    question = _question(last)
    program = next(program for program in PROGRAMS if re.search(program.asked, question))
    return _written(program.words, program.code, upstream=upstream)


def _before(messages: Messages) -> str:
    """Return the turn that the last message answers; empty if that message begins a run: it shows the question."""
    return "" if _question(messages[-1]["content"]) or len(messages) < 2 else messages[-2]["content"]


def _question(text: str) -> str:
    """Return the question as the description of the variables shows it; ours, then DSPy's."""
    ours = re.search(r"^- question: str, (['\"])(.*)\1$", text, flags=re.MULTILINE)
    upstream = re.search(r"Variable: `question`.*?Preview:\s+```\s+(.*?)\s+```", text, flags=re.DOTALL)
    return ours[2] if ours else upstream[1] if upstream else ""


def _written(words: str, code: str, *, upstream: bool) -> str:
    if upstream:
        return (
            f"[[ ## reasoning ## ]]\n{words}\n\n[[ ## code ## ]]\n```python\n{code}\n```\n\n[[ ## completed ## ]]"
        )
    return f"{words}\n```python\n{code}\n```"
