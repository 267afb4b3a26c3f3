"""Make a run in a window of 4,096 tokens with a model of half a billion parameters, long enough to be folded.

    uv run --extra embedded python experiment/bench/small_window.py

The model reads `articles.md` page after page through a tool, until one of them answers the question. The pages are
more than its window holds, so older turns are summarized, by the model itself. Two demos show it how to work: runs
over a few made-up pages. Everything that it wrote and read goes to `results/small_window.txt`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy
import typer

from rlm_dspy import RLM
from rlm_dspy.embedded.engine import embedded_lm
from rlm_dspy.models import limits_for
from rlm_dspy.optimize import demos
from rlm_dspy.optimize.traced_runs import traced_runs
from rlm_dspy.testing import ScriptedLM

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import running  # noqa: E402  # scripts of this folder are run, not installed

if TYPE_CHECKING:
    from collections.abc import Callable

RECORD = HERE / "results" / "small_window.txt"
QUESTION = "Up to how many euros may Marlow pay by itself since 1 June 2025?"
GOLD = "4,000"
PAGE_CHARS = 700
PAGES = 28
NEXT_PAGE = "print(next_page(), question)"
END = "There are no more pages."
EXAMPLES = (
    (
        "Who paid for the new roof of the mill?",
        "Karl Voss",
        {
            "The mill in Aldo was built in 1901. Its first owner sold flour to three towns.": "who built it",
            "A storm took the roof of the mill in 1911. The bridge was closed for two years.": "a storm",
            "In 1913 the new roof of the mill was paid for by Karl Voss, a brewer.": "",
        },
    ),
    (
        "How much does a boat cost a day?",
        "40 euros",
        {
            "Rain fell on the lake for a week, and the ferry did not leave.": "the weather",
            "The hotel has twelve rooms. Boats cost 40 euros a day, oars included.": "",
        },
    ),
)
"""Questions, answers, and pages with what they are about; the last one has the answer."""


class Read(dspy.Signature):
    """Read page after page, one a turn, until a page answers the question. Answer in the words of that page."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def reader(pages: list[str]) -> Callable[[], str]:
    """Return the tool that hands out these pages in order."""
    left = iter(pages)

    def next_page() -> str:
        """Return the next page of the text."""
        return next(left, END)

    return next_page


def demo_of_a_run(question: str, answer: str, pages: dict[str, str]) -> dspy.Example:
    """Return a demo from a run whose replies are scripted."""
    *others, _ = pages.values()
    said = ["I read the first page.", *(f"This page is about {topic}. I read the next page." for topic in others)]
    reads = [f"{text}\n```python\n{NEXT_PAGE}\n```" for text in said]
    submits = f"This page answers the question: {answer}.\n```python\nSUBMIT(answer={answer!r})\n```"
    with dspy.context(lm=ScriptedLM([*reads, submits]), trace=[]):
        RLM(Read, tools=[reader(list(pages))], max_llm_calls=0, policy=None)(question=question)
        return demos.from_run(traced_runs(dspy.settings.trace)[0], 1.0).example


def main(
    model: Annotated[str, typer.Option(help="As for rlm-dspy ask --model; downloaded.")] = "qwen2.5-coder-0.5b",
    window: Annotated[int, typer.Option(help="Its context window in tokens.")] = 4_096,
    threads: Annotated[int | None, typer.Option(help="Threads that compute; by default half the cores.")] = None,
) -> None:
    """Make the run and write its record."""
    text = (HERE.parent / "articles.md").read_text("utf-8")
    pages = [text[start : start + PAGE_CHARS] for start in range(0, PAGES * PAGE_CHARS, PAGE_CHARS)]
    lm = embedded_lm(model, n_ctx=window, threads=threads, cache=False, max_tokens=300)
    rlm = RLM(
        Read,
        tools=[reader(pages)],
        limits=limits_for(lm, max_iters=PAGES + 2, max_llm_calls=0, max_output_chars=1_400),
        policy=None,
    )
    rlm.act.demos = [demo_of_a_run(*example) for example in EXAMPLES]
    with dspy.context(lm=lm):
        prediction = rlm(question=QUESTION)
    lines = [
        f"model: {model}, window: {window:,} tokens; pages: {PAGES} of {PAGE_CHARS:,} characters",
        f"question: {QUESTION}",
        f"answer: {prediction.answer} ({prediction.stop}); the text says {GOLD}",
        f"requests, tokens read + written: {', '.join(map(tokens, lm.history))}",
    ]
    number = 0
    for step in prediction.trajectory:
        folded = step["kind"] == "folded"
        number += not folded
        title = "folded" if folded else f"turn {number}: {step['kind']}"
        shown = [step["reasoning"], step["code"], step["output"], step["notice"]]
        lines += [f"\n===== {title}", *filter(None, shown)]
    RECORD.write_text("\n".join(lines) + "\n", encoding="utf-8")
    typer.echo("\n".join(lines[:4]))


def tokens(call: dict[str, object]) -> str:
    """Return what a request used."""
    usage = call["usage"]
    assert isinstance(usage, dict)
    return f"{usage['prompt_tokens']} + {usage['completion_tokens']}"


if __name__ == "__main__":
    running.run(main)
