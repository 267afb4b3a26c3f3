"""Review papers (PDF: extra `documents`): `python literature.py data/papers "Do naps improve recall?"`."""

import sys
from typing import Literal

import dspy
from pydantic import BaseModel

from rlm_dspy import RLM, Files, Limits
from rlm_dspy.models import choose_model


class Finding(BaseModel):
    stance: Literal["supports", "opposes", "silent"]
    quote: str


class ReadPaper(dspy.Signature):
    """Say what the paper found about the question; copy the sentence that shows it."""

    paper: str = dspy.InputField()
    question: str = dspy.InputField()
    finding: Finding = dspy.OutputField()


class Review(dspy.Signature):
    """Read every paper with `read_paper`, check with code that its quote stands in it, then write the review."""

    papers: Files = dspy.InputField()
    question: str = dspy.InputField()
    findings: dict[str, Finding] = dspy.OutputField(desc="by file name")
    review: str = dspy.OutputField(desc="two paragraphs that name the files and weigh the disagreements")


if __name__ == "__main__":
    dspy.configure(lm=choose_model())
    review = RLM(Review, subs=[ReadPaper], limits=Limits(max_llm_calls=300, max_seconds=1800))
    print(review(papers=Files.open(sys.argv[1]), question=sys.argv[2]).review)
