"""Ask about the code of a repository: `python repository.py ../../rlm_dspy "Where is SUBMIT checked?"`."""

import sys

import dspy
from pydantic import BaseModel

from rlm_dspy import RLM, Files, Limits
from rlm_dspy.models import choose_model


class Place(BaseModel):
    file: str
    line: int
    code: str


class AskRepository(dspy.Signature):
    """Answer from the code alone, not from what projects usually do.

    Search with `repo.grep` first, read only what matters, and ask `llm_query` about files that are long.
    """

    repo: Files = dspy.InputField()
    question: str = dspy.InputField()
    answer: str = dspy.OutputField()
    places: list[Place] = dspy.OutputField(desc="copied from the files; at least one for each claim")


if __name__ == "__main__":
    dspy.configure(lm=choose_model())
    ask = RLM(AskRepository, limits=Limits(max_iters=15, max_llm_calls=30, max_seconds=600))
    reply = ask(repo=Files.open(sys.argv[1], "**/*.py"), question=sys.argv[2])
    print(reply.answer, *(f"{place.file}:{place.line}: {place.code}" for place in reply.places), sep="\n")
