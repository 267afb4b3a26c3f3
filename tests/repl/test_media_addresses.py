"""Code names no address that a host or a provider would fetch: it would be a way out of a REPL without network."""

from __future__ import annotations

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields

ADDRESS = "http://127.0.0.1:9/?said=secret"
URL = {"url": ADDRESS}
MADE = {
    "object": f"dspy.Predict('t: dspy.Image -> x')(t=dspy.Image({ADDRESS!r}))",
    "fields": f"dspy.Predict('t: dspy.Image -> x')(t={URL})",
    "list": f"dspy.ChainOfThought('t: list[dspy.Image] -> x')(t=[{{'url': 'data:image/png;base64,AAAA'}}, {URL}])",
    "optional": f"dspy.Predict('t: Optional[dspy.Image] -> x')(t={URL})",
    "by name": f"dspy.Predict('t: dict[str, list[dspy.Image]] -> x')(t={{'a': [{URL}]}})",
    "file": f"dspy.Predict('t: dspy.File -> x')(t={{'file_id': {ADDRESS!r}}})",
    "class": f"""import dataclasses
@dataclasses.dataclass
class Page:
    picture: dspy.Image
dspy.Predict('page: list[Page] -> x')(page=[{{'picture': {URL}}}])""",
    "declared": f"see(image={URL})",
    "batch": f"print(see.map([{URL}])[0].error)",
}


class See(dspy.Signature):
    """See."""

    image: dspy.Image = dspy.InputField()
    label: str = dspy.OutputField()


@pytest.mark.parametrize("kind", MADE)
def test_code_names_no_address(kind: str) -> None:
    """It is told so, and no model is asked."""
    lm = ScriptedLM([block(MADE[kind]), block("SUBMIT(answer='over')")])
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        prediction = RLM("q -> answer", subs=[See])(q="?")
    assert prediction.answer == "over"
    assert prediction.usage["calls"] == 2
    assert "code may not pass a URL" in prediction.trajectory[0]["output"]


def test_an_image_of_the_caller_may_have_an_address_and_code_may_make_one_of_data() -> None:
    """What the caller passes is the caller's."""
    made = "dspy.Predict('t: dspy.Image -> x')(t={'url': 'data:image/png;base64,AAAA'}).x"
    lm = ScriptedLM([block(f"SUBMIT(answer=see(image=x) + {made})"), fields(label="a"), fields(x="b")])
    signature = dspy.Signature("x: dspy.Image -> answer: str", custom_types={"dspy": dspy})
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        assert RLM(signature, subs=[See])(x=dspy.Image(ADDRESS)).answer == "ab"
