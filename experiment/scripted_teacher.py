"""A teacher that is no model: it writes code for a question over a text, reads what that prints, and answers.

It knows the question and what its code printed, as a model would; never the answer. So a run of it is right only
if code can find the answer, and wrong ones are left out by the metric. It speaks to our RLM and to `dspy.RLM`.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from rlm_dspy.testing import Messages

SEARCH = """\
import re
words = set(re.findall(r"[\\w'-]{4,}", question.lower()))
sentences = re.split(r"(?<=[.!?])\\s+", context)
text = context.lower()
weight = {w: 1 / (1 + text.count(w)) for w in words}
score = [sum(weight[w] for w in words if w in s.lower()) for s in sentences]
best = score.index(max(score))
print(*sentences[best:best + 2])
print('Question:', question)"""
FIRST_WORDS = "I rank the sentences by the rare words of the question."
LAST_WORDS = "The text answers it."
NAME = r"[A-Z][\w'-]+"
KINDS = [
    (r"\b(when|date)\b", r"\b\d{1,2} [A-Z][a-z]+ \d{4}\b"),
    (r"\b(how many|code|number)\b", r"\b\d[\d,]*\b"),
    (r"\b(who|whom)\b", rf"\b{NAME} {NAME}\b"),
    (r".", rf"\b{NAME}\b"),
]
"""What a question asks for, and what an answer to it looks like; the first that fits."""


def scripted_teacher() -> ScriptedLM:
    """Return the teacher, as an LM."""
    return ScriptedLM(reply)


def reply(messages: Messages) -> str:
    """Write the next turn of the run at the end of a chat."""
    upstream = "[[ ## code ## ]]" in messages[0]["content"]
    printed = _printed(messages[-1]["content"])
    if printed is None:
        return _written(FIRST_WORDS, SEARCH, upstream=upstream)
    return _written(LAST_WORDS, f"SUBMIT(answer={json.dumps(answer_in(*printed))})", upstream=upstream)


def _printed(content: str) -> tuple[str, str] | None:
    """Return the sentences and the question that the search printed; None before it has run."""
    found = re.findall(r"^(.*)\nQuestion: (.*)$", content, flags=re.MULTILINE)
    return found[-1] if found else None


def answer_in(sentences: str, question: str) -> str:
    """Return what looks like the answer: of the asked kind, and not among the question's own words."""
    pattern = next(looks for asks, looks in KINDS if re.search(asks, question.lower()))
    asked = set(re.findall(r"[\w'-]+", question))
    candidates = [found for found in re.findall(pattern, sentences) if not set(found.split()) & asked]
    not_first = [found for found in candidates if not sentences.startswith(found)]
    return str((not_first or candidates or [sentences])[0])


def _written(words: str, code: str, *, upstream: bool) -> str:
    if upstream:
        return (
            f"[[ ## reasoning ## ]]\n{words}\n\n[[ ## code ## ]]\n```python\n{code}\n```\n\n[[ ## completed ## ]]"
        )
    return f"{words}\n```python\n{code}\n```"
