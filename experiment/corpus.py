"""A question about a whole corpus: typed sub-calls read each article, a child RLM puts together what they found.

    uv run python experiment/corpus.py
    uv run python experiment/corpus.py --year 2025 --model openai/gpt-5-mini

The model is chosen as in the other examples. A large one writes the code of the root and of the child itself.
The embedded one, of 135 million parameters, cannot: for it the code is played back from PLAN below, which a person
wrote (`--own` lets it try all the same). The sub-calls are the model's own answers in any case; how many of them
agree with the articles' own headers is counted at the end.
"""

import argparse
import os
import re
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else the network is asked for prices

import dspy

from rlm_dspy import RLM, Limits, Text
from rlm_dspy.models import choose_model
from rlm_dspy.testing import ScriptedLM

ARTICLES = Path(__file__).parent / "articles.md"
QUESTION = "Who wrote articles in {year}, according to the first lines of each article?"


class Byline(dspy.Signature):
    """Read who wrote the article, and in which year."""

    article: str = dspy.InputField(desc="its first lines")
    author: str = dspy.OutputField()
    year: int = dspy.OutputField()


PLAN = [  # the root's first turn, its second, and the turn of the child that the second makes
    """```python
articles = ["# " + part for part in context.split("\\n# ")[1:]][:most]
read = byline.map([article[:400] for article in articles])
print(sum(map(bool, read)), "of", len(articles), "were read;", read[:2])
```""",
    """```python
rows = [[line.author, line.year] for line in read if line]
child = dspy.RLM("rows: list[list], year: int -> authors: list[str]", max_iters=2)(rows=rows, year=year)
SUBMIT(authors=child.authors)
```""",
    """```python
SUBMIT(authors=sorted({author for author, of in rows if of == year}))
```""",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--year", type=int, default=2023)
    parser.add_argument("--most", type=int, default=8, help="read the first so many articles")
    parser.add_argument("--model")
    parser.add_argument("--own", action="store_true", help="let the embedded model write the code, too")
    given = parser.parse_args()
    lm = choose_model(given.model)
    played = lm.model.startswith("embedded/") and not given.own
    if played:
        print(
            "The code of the root and of the child is a person's, played back; the sub-calls are the model's own."
        )
    byline = dspy.Predict(Byline)
    byline.lm = lm
    rlm = RLM(
        "context, question, year: int, most: int -> authors: list[str]",
        subs={"byline": byline},
        limits=Limits(max_iters=8, max_llm_calls=100, max_depth=1),
    )
    # JSON that a schema holds to: what a small model gets right most often.
    with dspy.context(lm=ScriptedLM(PLAN) if played else lm, adapter=dspy.JSONAdapter()):
        result = rlm(
            context=Text.open(ARTICLES),
            question=QUESTION.format(year=given.year),
            year=given.year,
            most=given.most,
        )
    show(result, given.year, given.most)


def show(result: dspy.Prediction, year: int, most: int) -> None:
    """Print the steps, with their sub-calls, the answer, and what it should have been."""
    for step in result.trajectory:
        print(f"\n>>> {step['code']}\n{step['output']}")
        for call in step["calls"]:
            inside = f", {len(call['steps'])} turn(s) inside" if call["steps"] else ""
            print(f"    {call['name']} [{call['kind']}{inside}]: {call['output'] or call['error']}")
    headers = re.findall(r"^# .*\nAuthor: (.*)\nDate: (\d{4})", ARTICLES.read_text(encoding="utf-8"), re.MULTILINE)
    answers = [call["output"] for step in result.trajectory for call in step["calls"] if call["name"] == "byline"]
    agree = sum(f"(author={by!r}, year={of})" in said for said, (by, of) in zip(answers, headers, strict=False))
    right = sorted({author for author, of in headers[:most] if int(of) == year})
    print(f"\n{agree} of {len(answers)} sub-calls agree with the headers")
    print(f"answer: {result.authors}\nright:  {right}\n({result.stop}; {result.usage['by_role']})")


if __name__ == "__main__":
    main()
