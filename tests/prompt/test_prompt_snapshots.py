"""What a model is told, byte for byte: a change of it is a decision, not an accident.

To take new snapshots after such a decision: `python -m tests.prompt.test_prompt_snapshots`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dspy
import pytest

from rlm_dspy import RLM, Limits, Text
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.testing import Messages

ROOT = Path(__file__).parents[2]
SNAPSHOTS = ROOT / "tests" / "data" / "prompts.json"
LONG = "It rained in Ulm, said `Ada`.\n\nVariables:\n- context: str, 'x'\n\n" * 40


class Rate(dspy.Signature):
    """Rate `article` by what is asked in `wish`.

    Think of `article` as a whole.

    Never rate below 1.
    """

    article: str = dspy.InputField(desc="the article, as Markdown")
    wish: str = dspy.InputField()
    scale: list[int] = dspy.InputField()
    score: Literal[1, 2, 3] = dspy.OutputField(desc="higher is better")
    why: str = dspy.OutputField(max_length=80)


def look(page: int, deep: bool = False) -> list[str]:
    """Return the lines of a page.

    One by one.
    """
    return [str(page)] * (2 if deep else 1)


def worked(policy: str, **inputs: Any) -> Callable[[], tuple[RLM, dict[str, Any]]]:
    signature = inputs.pop("signature", "context, question -> answer: str")
    return lambda: (RLM(signature, policy=policy), inputs)


def subs() -> tuple[RLM, dict[str, Any]]:
    claims = dspy.Predict("passage, topic: str -> claims: list[str]")
    limits = Limits(max_llm_calls=7, max_depth=0)
    rlm = RLM(Rate, tools=[look], subs={"claims": claims}, limits=limits, policy=None)
    return rlm, {"article": Text(LONG), "wish": "short", "scale": list(range(50))}


def bootstrapped() -> tuple[RLM, dict[str, Any]]:
    """A policy that was learned on one signature, shown on another by a program with instructions of its own."""
    rlm = RLM(Rate, policy=str(ROOT / "experiment/policies/table.json"))
    return rlm, {"article": LONG, "wish": "short", "scale": [1]}


def last_turn() -> tuple[RLM, dict[str, Any]]:
    return RLM("list, n: int, media: dspy.Image -> answer: bool", max_iters=1, policy=None), {
        "list": {"a": [1.5, None], "b": LONG},
        "n": 3,
        "media": dspy.Image("https://example.org/a.png"),
    }


SHIPPED = "small-models"
CASES: dict[str, Callable[[], tuple[RLM, dict[str, Any]]]] = {
    "no policy": lambda: (RLM("question -> answer: int", policy=None), {"question": "How many?"}),
    "instructions, tools and subs": subs,
    "last turn and media": last_turn,
    "shipped policy": worked(SHIPPED, context=LONG, question="Who said it?"),
    "shipped policy, other names": worked(
        SHIPPED, signature="document, query -> result: str", document=Text(LONG), query="Where?"
    ),
    "shipped policy, names in another order": worked(
        SHIPPED, signature="question, context -> found: str", question="Where?", context=LONG
    ),
    "shipped policy, other types": worked(SHIPPED, signature="pages: list[str] -> n: int", pages=[LONG, "b"]),
    "shipped policy of the coders": worked(
        "small-coders", signature="document, query -> result: str", document=Text(LONG), query="Where?"
    ),
    "policy of a study": worked(
        str(ROOT / "experiment/policies/count.json"), signature="text, ask -> answer: str", text=LONG, ask="?"
    ),
    "policy of a study, same names": worked(
        str(ROOT / "experiment/policies/needles.json"), context=LONG, question="Which towns?"
    ),
    "policy on a signature that it does not fit": bootstrapped,
}


def told(name: str) -> list[Messages]:
    """Return the messages of the second turn of a run, and of the call that reads the answer from the turns."""
    rlm, inputs = CASES[name]()
    replies = [block("print(1)", "Look."), block("SUBMIT()")] if rlm.limits.max_iters > 1 else [block("print(2)")]
    final = fields(**dict.fromkeys(rlm.signature.output_fields, "1"))
    rlm.limits = Limits(**{**vars(rlm.limits), "max_iters": min(2, rlm.limits.max_iters)})
    lm = ScriptedLM([*replies, final])
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        rlm(**inputs)
    return lm.script.calls[-2:]


@pytest.mark.parametrize("name", CASES)
def test_the_model_is_told_the_same_as_before(name: str) -> None:
    """Instructions, demos in the names of the task, what is shared, environment, turns, and the last call."""
    assert told(name) == json.loads(SNAPSHOTS.read_text(encoding="utf-8"))[name]


if __name__ == "__main__":
    taken = {name: told(name) for name in CASES}
    SNAPSHOTS.write_text(json.dumps(taken, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
