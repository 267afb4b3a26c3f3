"""Make a run with all that a report can show, without a model: a scripted LM plays one that errs and recovers.

    uv run python experiment/sample_run.py sample.json sample.html

The code that it plays is run for real, over `articles.md`: outputs, sub-calls, times and coverage are what came of
it. What the models say is scripted.
"""

from __future__ import annotations

import sys
from pathlib import Path

import dspy

from rlm_dspy import RLM, Limits, Text
from rlm_dspy.coverage.tracker import watched
from rlm_dspy.report.record import Record, recorded
from rlm_dspy.report.write_report import write_report
from rlm_dspy.testing import Messages, ScriptedLM

ARTICLES = Path(__file__).parent / "articles.md"
QUESTION = "Which trend do the articles of 2025 agree on, and on what evidence?"
TURNS = [
    """I look at the size and the shape of the text first.
```python
print(len(context), "characters")
print(context[:1800])
```""",
    """Each article opens with a title, an author and a date. I cut the text there.
```python
import re

articles = []
for part in context.split("\\n# ")[1:]:
    date = re.search(r"Date: (\\d{4}-\\d\\d-\\d\\d)", part)["date"]
    articles.append((date, part.splitlines()[0], part))
print(len(articles), "articles")
```""",
    """The group has a number, not a name. Then I keep those of 2025.
```python
articles = []
for part in context.split("\\n# ")[1:]:
    date = re.search(r"Date: (\\d{4}-\\d\\d-\\d\\d)", part)[1]
    articles.append((date, part.splitlines()[0], part))
of_2025 = [article for article in articles if article[0].startswith("2025")]
for date, title, text in of_2025:
    print(date, title, len(text))
```""",
    """Eleven articles. I ask a model about all of them at once.
```python
prompts = ["Which trend does this article describe? One sentence.\\n\\n" + text for _, _, text in of_2025]
trends = llm_query_batched(prompts)
for (date, title, _), trend in zip(of_2025, trends):
    print(date, title, "->", trend)
```""",
    """One call failed; the others point to small models. I ask about that article again, and have a child run look
into the article on small models.
```python
failed = [prompt for prompt, trend in zip(prompts, trends) if not trend]
print([llm_query(prompt) for prompt in failed])
spring = next(text for _, title, text in of_2025 if "Small Model" in title)
print(rlm_query("Quote the sentence on what a cascade depends on.", spring))
```""",
    """I know enough.
```python
SUBMIT(answer="Small models take over routine work.", evidence="Gantry-7")
```""",
    """The evidence is a list.
```python
quote = "a cascade is only as good as the step in which the small model recognises that it is out of its depth"
SUBMIT(answer="Small models take over routine work.", evidence=["Gantry-7", "Ovid Systems", quote])
```""",
]
TRENDS = {
    "AI trends": "Routine work moves to small models on machines of one's own.",
    "agentic AI": "Agents are given less to decide, and people who check them.",
    "data science": "Questions with known answers are written before anything is built.",
}
PRICES = {"scripted/lm": (0.25, 2.0)}
CHILD_TURNS = [
    """I search for it.
```python
for paragraph in context.split("\\n"):
    if "cascade" in paragraph:
        print(paragraph)
```""",
    """It stands there.
```python
SUBMIT("a cascade is only as good as the step in which the small model recognises that it is out of its depth")
```""",
]


class Trends:
    """Names the trend of each article; at one of them it fails once."""

    def __init__(self) -> None:
        self.failed = False

    def __call__(self, messages: Messages) -> str:
        """Return the reply to `llm_query`."""
        asked = messages[-1]["content"]
        if "Dmitri Halvorsen" in asked and not self.failed:
            self.failed = True
            raise dspy.LMRateLimitError("429 Too Many Requests")
        return next(trend for topic, trend in TRENDS.items() if f"Topic: {topic}" in asked)


def play() -> Record:
    """Run, and return the record."""
    lm = ScriptedLM(act=TURNS, child=CHILD_TURNS, query=Trends(), seconds=0.4)
    rlm = RLM("context, question -> answer: str, evidence: list[str]", limits=Limits(max_iters=8, prices=PRICES))
    with dspy.context(lm=lm), watched():
        record, error = recorded(rlm, {"context": Text.open(ARTICLES), "question": QUESTION})
    if error is not None:
        raise error
    return record


def main(record_path: str, report_path: str) -> None:
    """Run, and write the record and its report."""
    record = play()
    record.save(record_path)
    write_report(record, report_path)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["sample.json", "sample.html"]))
