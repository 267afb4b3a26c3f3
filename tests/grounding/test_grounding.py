"""Where the values of an answer come from, and the refusal of an answer that read little."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, Literal

import dspy
import pytest

from rlm_dspy import RLM, Text
from rlm_dspy.grounding import Grounding
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from pathlib import Path

    from rlm_dspy.report.representation import RunPrediction

FILLER = "".join(f"{n}: nothing of interest happened on this day.\n" for n in range(400))
FACT = "Ovid Systems was founded in 2019 by Kadri Vaheste of Tartu.\n"
OTHER = "In May, Kadri Vaheste sailed to Hiiumaa with a crew of seven.\n"
ONCE = FILLER + FACT + FILLER
TWICE = FILLER + OTHER + FILLER + FACT + FILLER
NAME = "Kadri Vaheste"
AT = TWICE.index(NAME, TWICE.index(FACT))
COPIED = [("code", "founded", True)]
REGEX = "import re\nname = re.search(r'by (\\w+ \\w+) of', context).group(1)\n"
PIECES = "pieces = [context[i:i + 2000] for i in range(0, len(context), 2000)]\n"


def run(
    context: Any, *codes: str, signature: str = "context, question -> answer: str", **more: Any
) -> RunPrediction:
    """Run these turns; `query` and `subs` are the replies of the sub-calls."""
    replies = {name: more.pop(name) for name in ("query", "subs_replies") if name in more}
    lm = ScriptedLM(
        act=[f"```python\n{code}\n```" for code in codes],
        query=replies.get("query", []),
        subs=replies.get("subs_replies", []),
    )
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        return RLM(signature, refuse_blind_submit=False, **more)(context=context, question="Who founded it?")


def places(prediction: RunPrediction) -> list[tuple[str, str, bool]]:
    """Return how each place was read, whether it is that of the fact, and whether it is exact."""
    found = prediction.sources.get("answer", [])
    return [(place.via, "founded" if "founded" in place.text else "other", place.exact) for place in found]


FIND = "import re\nprint(re.findall('.*founded.*', context))"
TYPED = f"SUBMIT(answer={NAME!r})"
COUNTED = "SUBMIT(answer=str(context.count('day')))"


@pytest.mark.parametrize(
    ("context", "codes", "found"),
    [
        (ONCE, [FIND, TYPED], [("printed", "founded", True)]),
        (TWICE, [FIND, TYPED], [("printed", "founded", True)]),
        (TWICE, [FIND, "import re\nprint(re.findall('.*sailed.*', context))", TYPED], []),
        (ONCE, [REGEX + "print(name)", TYPED], [("printed", "founded", True)]),
        (TWICE, [REGEX + "print(name)", TYPED], []),
        (ONCE, [REGEX + "SUBMIT(answer=name)"], COPIED),
        (TWICE, [REGEX + "SUBMIT(answer=name)"], COPIED),
        (
            TWICE,
            [f"print(context[{len(FILLER)}:][:100])", REGEX + "SUBMIT(answer=name)"],
            COPIED,
        ),
        (
            TWICE,
            [f"part = context[{AT - 9}:{AT + 30}]\nSUBMIT(answer=part[9:22].strip())"],
            COPIED,
        ),
        (
            TWICE,
            ["import re\nSUBMIT(answer=[m.group(1) for m in re.finditer(r'by (\\w+ \\w+) of', context)][0])"],
            COPIED,
        ),
        (TWICE, ["name = context.split('by ')[1][:13]\nSUBMIT(answer=name)"], []),
        (TWICE, ["import re\nSUBMIT(answer=max(re.findall('Kadri Vaheste', context)))"], []),
        (ONCE, [TYPED], []),
        (ONCE, [f"print({NAME!r})", TYPED], []),
        (ONCE, [f"print({NAME!r} in context)", TYPED], []),
        (ONCE, [REGEX + "SUBMIT(answer=name[:3] + name[3:])"], []),
        (f"{ONCE}There are 800 seats.", ["print(context[-20:])", COUNTED], []),
        (f"{ONCE}Yes, there are.", ["print(context[-60:])", "SUBMIT(answer='Yes')"], []),
        (ONCE, [FIND, "SUBMIT(answer='Tartu')"], [("printed", "founded", True)]),
        (ONCE, [FIND, "SUBMIT(answer='founded')"], []),
        (ONCE, [FIND, "SUBMIT(answer='2019')"], [("printed", "founded", True)]),
        ({"a": FILLER, "b": FACT}, ["print(context['b'])", TYPED], [("printed", "founded", True)]),
    ],
)
def test_a_value_has_the_one_place_that_it_can_have_come_from(
    context: Any, codes: list[str], found: list[tuple[str, str, bool]]
) -> None:
    assert places(run(context, *codes)) == found


def answer(messages: list[dict[str, str]]) -> str:
    """Play a sub-model that finds the founder."""
    return NAME if f"by {NAME}" in messages[-1]["content"] else "none"


@pytest.mark.parametrize(
    ("code", "reply", "found"),
    [
        ("SUBMIT(answer=[r for r in llm_query_batched(pieces) if r != 'none'][0])", answer, [("founded", True)]),
        ("SUBMIT(answer=llm_query('Who?\\n' + fact))", lambda _: "Mrs Vaheste, Kadri", [("founded", False)]),
        ("SUBMIT(answer=llm_query('Who?\\n' + fact))", lambda _: "Tartu", [("founded", False)]),
        ("SUBMIT(answer=llm_query(pieces[0] + fact))", answer, [("founded", True)]),
        ("SUBMIT(answer=llm_query(pieces[0] + fact))", lambda _: "Mrs Vaheste, Kadri", []),
        ("SUBMIT(answer=llm_query('Who founded Ovid Systems?'))", lambda _: NAME, []),
        ("SUBMIT(answer='by ' + llm_query(fact))", answer, []),
    ],
)
def test_a_sub_calls_answer_comes_from_what_it_received(
    code: str, reply: Any, found: list[tuple[str, bool]]
) -> None:
    fact = f"fact = context[{TWICE.index(FACT) - 50}:{TWICE.index(FACT) + 300}]\n"
    prediction = run(TWICE, PIECES + fact + code, query=reply)
    assert places(prediction) == [("sub_call", *place) for place in found]


def test_offsets_are_those_of_the_text_or_of_its_item() -> None:
    (place,) = run({"b": FILLER + FACT}, "print(context['b'][-90:])", TYPED).sources["answer"]
    assert (place.input, place.item, place.start) == ("context", "b", (FILLER + FACT).index(NAME))
    assert (place.end - place.start, place.value) == (len(NAME), NAME)


def test_each_value_of_a_list_has_its_own_place() -> None:
    text = FILLER + "".join(f"Owner: {name} Tamm.\n" for name in ("Aino", "Berta", "Cecil"))
    code = "import re\nSUBMIT(answer=re.findall(r'Owner: (\\w+ \\w+)', context))"
    found = run(text, code, signature="context, question -> answer: list[str]").sources["answer"]
    assert [text[place.start : place.end] for place in found] == ["Aino Tamm", "Berta Tamm", "Cecil Tamm"]


def test_a_label_has_no_place() -> None:
    text = FILLER + "The mood at home was Positive all day.\n"
    codes = "print(context[-60:])", "SUBMIT(answer='Positive')"
    signature = dspy.Signature("context, question -> answer: str").with_updated_fields(
        "answer", type_=Literal["Positive", "Negative"]
    )
    assert run(text, *codes).sources["answer"]
    assert run(text, *codes, signature=signature).sources == {}


def test_a_large_file_is_searched_in_pieces(tmp_path: Path) -> None:
    """The place stands across the end of a piece of 4 million characters."""
    path = tmp_path / "large.txt"
    text = "x" * (4_000_000 - 40) + "\n" + FACT + "y" * 13_000_000
    path.write_text(text, encoding="utf-8")
    (place,) = run(Text.open(path), "print(context[3_999_960:4_000_060])", TYPED).sources["answer"]
    assert text[place.start : place.end] == NAME


def test_places_are_in_the_report_and_survive_a_copy() -> None:
    prediction = run(ONCE, FIND, TYPED)
    copied = pickle.loads(pickle.dumps(prediction))
    assert copied.sources == prediction.sources != {}
    assert "Where the answer comes from" in prediction.report().html
    assert "Where the answer comes from" not in run(ONCE, TYPED).report().html


def test_an_output_named_sources_takes_precedence() -> None:
    prediction = run(ONCE, "SUBMIT(sources='mine')", signature="context, question -> sources: str")
    assert prediction["sources"] == getattr(prediction, "sources") == "mine"  # noqa: B009 (its type is that of the places)


def test_places_can_be_left_out() -> None:
    assert run(ONCE, FIND, TYPED, grounding=Grounding(sources=False)).sources == {}


def test_a_submit_that_read_little_is_refused_once() -> None:
    prediction = run(ONCE, "print(context[:80])\n" + TYPED, TYPED, grounding=Grounding(warn_below=0.1))
    first, second = prediction.trajectory
    (why,) = first["refusals"]
    assert "of context" in why
    assert "read, printed or sent" in why
    assert second["kind"] == "submitted"


@pytest.mark.parametrize("code", [FIND, "print(context[:9_000])", "llm_query(context[4_000:])"])
def test_reading_enough_is_not_refused(code: str) -> None:
    prediction = run(ONCE, code, TYPED, grounding=Grounding(warn_below=0.1), query=["?"])
    assert [step["kind"] for step in prediction.trajectory] == ["output", "submitted"]


def test_the_last_turn_is_not_refused() -> None:
    prediction = run(ONCE, TYPED, grounding=Grounding(warn_below=0.5), max_iters=1)
    assert prediction.stop == "submitted"


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"warn_below": 2}, ValueError, "a share above 0 and up to 1, or None, not 2"),
        ({"warn_below": True}, ValueError, "not True"),
        ({"warn_belov": 0.1}, TypeError, "warn_below"),
    ],
)
def test_wrong_options_are_told_with_the_fix(options: dict[str, Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        Grounding(**options)


def test_grounding_is_a_group_of_options() -> None:
    with pytest.raises(TypeError, match=r"must be a Grounding, e\.g\. Grounding\(warn_below=0\.1\), not 0\.1"):
        RLM("context -> answer", grounding=0.1)  # type: ignore[arg-type]
