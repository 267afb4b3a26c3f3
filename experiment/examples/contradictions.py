"""Find the rules in which policies contradict each other: `python contradictions.py data/policies`."""

import sys

import dspy
from pydantic import BaseModel

from rlm_dspy import RLM, Files, Limits
from rlm_dspy.models import choose_model


class Rule(BaseModel):
    file: str
    topic: str
    quote: str


class ListRules(dspy.Signature):
    """List every rule of the policy, with the sentence that states it."""

    file: str = dspy.InputField()
    policy: str = dspy.InputField()
    rules: list[Rule] = dspy.OutputField()


class FindContradictions(dspy.Signature):
    """List the rules of all policies with `list_rules`, then compare those on the same topic across files."""

    policies: Files = dspy.InputField()
    pairs: list[tuple[Rule, Rule, str]] = dspy.OutputField(desc="nobody can follow both rules; and why")


if __name__ == "__main__":
    dspy.configure(lm=choose_model())
    find = RLM(FindContradictions, subs=[ListRules], limits=Limits(max_llm_calls=200))
    for first, second, why in find(policies=Files.open(sys.argv[1])).pairs:
        print(f"{why}\n  {first.file}: {first.quote}\n  {second.file}: {second.quote}")
