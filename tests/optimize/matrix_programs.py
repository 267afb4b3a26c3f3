"""The programs that every optimizer is tried on, their data, and a scripted model that plays every part."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy import RLM, Limits, Text
from rlm_dspy.budget.metered_lm import role
from rlm_dspy.optimize import compact
from rlm_dspy.testing import ScriptedLM
from tests.playing import begins, block, fields, told

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.testing import Messages

ADVICE = "Look first, then answer."
"""What the scripted model proposes as an instruction, wherever it is asked for one."""
SIGNATURE = "context, question -> answer"
LIMITS = Limits(max_iters=4, max_llm_calls=8)


class LastWord(dspy.Signature):
    """Give the last word of a text."""

    text: str = dspy.InputField()
    word: str = dspy.OutputField()


class Two(dspy.Module):
    """Two RLMs whose `act` predictors are alike, and an ordinary predictor behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.find = RLM("context, question -> fact", limits=LIMITS)
        self.read = RLM("fact, question -> answer", limits=LIMITS)
        self.polish = dspy.Predict("draft -> answer")

    def forward(self, context: Any, question: str) -> Any:
        """Find the fact, read the answer from it, and have it polished."""
        fact = self.find(context=context, question=question).fact
        return self.polish(draft=self.read(fact=fact, question=question).answer)


PROGRAMS: dict[str, Callable[[], dspy.Module]] = {
    "root": lambda: RLM(SIGNATURE, limits=Limits(max_iters=4, max_llm_calls=0)),
    "root and query": lambda: RLM(SIGNATURE, limits=LIMITS),
    "root and sub": lambda: RLM(SIGNATURE, limits=LIMITS, subs=[LastWord]),
    "root and child": lambda: RLM(SIGNATURE, limits=LIMITS, subs={"reader": RLM("fact -> word", limits=LIMITS)}),
    "root and rlm_query": lambda: RLM(dspy.Signature(SIGNATURE, "Answer with a child's help."), limits=LIMITS),
    "two RLMs": Two,
}


def examples(count: int, *, chars: int = 2_000, as_text: bool = False, first: int = 0) -> list[dspy.Example]:
    """Return examples over one text: each asks for the value of another key.

    Args:
        count: How many.
        chars: How long the text is.
        as_text: Whether it is a `Text`; else a plain `str`, wrapped with the whole dataset.
        first: The number of the first key.
    """
    facts = "".join(f"The key k{n} is v{n}. " for n in range(100))
    filler = "Nothing is said here. " * (max(0, chars - len(facts)) // 22)
    text: Any = Text(filler + facts) if as_text else filler + facts
    return compact(
        dspy.Example(context=text, question=f"key k{n}", answer=f"v{n}").with_inputs("context", "question")
        for n in range(first, first + count)
    )


def exact(example: Any, prediction: Any, trace: Any = None) -> bool:
    """Whether the answer is the label."""
    return bool(prediction is not None and example.answer == prediction.get("answer"))


class ScriptedActor(ScriptedLM):
    """A scripted model that knows its part by what it is asked: a turn, a sub-call, or an optimizer's question.

    A run over a long text goes wrong every other time (of odd keys the first, of even ones the second) unless the
    prompt holds what an optimizer learned: its advice, a worked conversation, or labeled examples. Every third
    run starts with an error that it then mends.
    """

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        super().__init__(self._reply)

    def _reply(self, messages: Messages) -> str:
        if role().endswith("act"):
            return self._turn(messages)
        if role().endswith("query"):
            return messages[-1]["content"].split()[-1].strip(".")
        return _filled_in(messages)

    def _turn(self, messages: Messages) -> str:
        starts = [at for at, message in enumerate(messages) if begins(message)]
        environment, turns = told(messages), (len(messages) - starts[-1] - 1) // 2
        run = messages[starts[-1]]["content"]
        system = messages[0]["content"]
        optimized = len(starts) > 1 or ADVICE in system or re.search(r"answer: v\d", system)  # a labeled example
        if not turns:
            self.runs[run] += 1
            keys = re.findall(r"key k(\d+)", environment)
            if (
                "- question: str" in environment
                and "- context: str" in environment
                and not optimized
                and (self.runs[run] + int(keys[-1])) % 2 == 0
            ):
                return block(f"SUBMIT({_output(environment)}='unknown' + context[:0])", "I guess.")
            if self.runs[run] % 3 == 0:
                return block("1 / 0", "Try.")
        return block(_code(environment, done=any("is v" in m["content"] for m in messages[starts[-1] + 1 :])))


def _output(environment: str) -> str:
    return str(re.findall(r"SUBMIT\((\w+)=", environment)[0])


def _code(environment: str, *, done: bool) -> str:
    name = _output(environment)
    small = {"word": "fact.split()[-1]", "response": "context.split()[-1]"}  # what a child is asked
    if name in small:
        return f"SUBMIT({name}={small[name]})"
    if "- fact: str" in environment and name == "answer":  # the second of two
        return "SUBMIT(answer=llm_query('The last word of: ' + fact))"
    if not done:
        return "at = context.find(question + ' ')\nfound = context[at : at + 30].split('. ')[0]\nprint(found)"
    return "SUBMIT(fact=found)" if name == "fact" else f"SUBMIT(answer={_last_word(environment)})"


def _last_word(environment: str) -> str:
    """Return the expression that gets the last word of `found`, by the means of a program."""
    means = {
        "- last_word(": "last_word(text=found)",
        "- reader(": "reader(fact=found)",
        "child's help": "rlm_query('Give the last word.', found)",
        "- llm_query(": "llm_query('The last word of: ' + found)",
    }
    return next((code for told, code in means.items() if told in environment), "found.split()[-1]")


def _filled_in(messages: Messages) -> str:
    """Answer a prompt of DSPy's adapters: advice in every output field, the draft where one is polished."""
    asked, system = messages[-1]["content"], messages[0]["content"]
    if "1. `draft` (str)" in system:
        return fields(answer=asked.split("[[ ## draft ## ]]")[1].split("\n")[1].strip())
    if "1. `text` (str)" in system:
        return fields(word=asked.split("[[ ## text ## ]]")[1].split("\n")[1].split()[-1])
    demanded = asked.rsplit("Respond with", maxsplit=1)[-1]
    names = re.findall(r"\[\[ ## (\w+) ## \]\]", demanded) or re.findall(r"`(\w+)`", demanded)
    values: dict[str, Any] = {name: ADVICE for name in names if name != "completed"}
    if "module_advice" in values:
        modules = asked.split("[[ ## module_names ## ]]")[1].split("]")[0] + "]"
        values["module_advice"] = json.dumps(dict.fromkeys(json.loads(modules.strip().replace("'", '"')), ADVICE))
    return json.dumps(values) if "JSON" in demanded else fields(**values)
