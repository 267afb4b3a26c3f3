"""What a model may reply, and what becomes of it. Each fact holds blocking and awaiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter
from tests.playing import block, fields

if TYPE_CHECKING:
    from tests.playing import Play

DONE = block("SUBMIT(answer='done')")
ASK = "question -> answer"


NO_CODE: dict[str, tuple[str | None, str]] = {
    "prose": ("I think the answer is forty-two.", "No code was found"),
    "empty": ("", "Your reply was empty"),
    "none": (None, "Your reply was empty"),
    "white space": (" \n\t\n", "No code was found in your reply|Your reply was empty"),
    "another language": ("```bash\nls -la\n```", "'bash'"),
    "an empty block": ("Done.\n```python\n```", "No code was found"),
    "json without code": ('{"thought": "hm"}', "No code was found"),
    "deep json": ('{"a":' + "[" * 50_000, "No code was found"),
    "a null character": ("\0", "No code was found"),
}


@pytest.mark.parametrize("case", NO_CODE)
def test_a_reply_without_code_becomes_an_observation_that_says_what_to_do(play: Play, case: str) -> None:
    """The run goes on, and the model reads how to answer."""
    reply, told = NO_CODE[case]
    played = play(RLM(ASK), [reply, DONE], question="?")
    assert played.kinds == ["no_code", "submitted"]
    assert any(part in played.outputs[0] for part in told.split("|"))
    assert "```python" in played.outputs[0]
    assert "SUBMIT(answer=...)" in played.outputs[0]
    assert played.prediction.trajectory[0]["code"] == ""
    assert played.outputs[0] in played.calls[1][-1]["content"]


def test_halves_of_surrogate_pairs_reach_no_provider(play: Play) -> None:
    """Neither in a reply nor in an output: a provider would refuse the next call."""
    played = play(RLM(ASK), ["talk \ud800", block("print('out \\udc9f')"), DONE], question="?")
    assert played.kinds == ["no_code", "output", "submitted"]
    assert played.outputs[1] == "out ?"


class Thinks:
    """An engine whose first reply holds thoughts and no text, as reasoning models give it."""

    def __init__(self) -> None:
        self.parts: list[Any] = [dspy.lm15.ThinkingPart("Let me see."), dspy.lm15.TextPart(DONE)]

    def complete(self, request: Any) -> Any:
        message = dspy.lm15.Message.assistant([self.parts.pop(0)])
        usage = dspy.lm15.Usage(input_tokens=1, output_tokens=1, total_tokens=2)
        return dspy.lm15.Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)


def test_a_reply_of_thoughts_alone_is_an_empty_reply() -> None:
    """What the provider gave beside the text is no part of the conversation."""
    lm = dspy.LM("scripted/thinks", engine=Thinks(), cache=False, num_retries=0)
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        first, last = RLM(ASK)(question="?").trajectory
    assert (first["reasoning"], first["kind"], last["kind"]) == ("", "no_code", "submitted")
    assert "Your reply was empty" in first["output"]


CODE = {
    "two blocks run as one": "First\n```python\nx = 20\n```\nthen\n```python\nSUBMIT(answer=str(x + 1))\n```",
    "a repl fence": "```repl\nSUBMIT(answer='21')\n```",
    "an unmarked fence": "```\nSUBMIT(answer='21')\n```",
    "an unclosed fence": "So:\n```python\nSUBMIT(answer='21')",
    "tildes": "~~~python\nSUBMIT(answer='21')\n~~~",
    "no fence": "The answer is known.\nSUBMIT(answer='21')",
    "dspy's fields": fields(reasoning="Known.", code="```python\nSUBMIT(answer='21')\n```"),
    "dspy's fields without a fence": fields(reasoning="Known", code="SUBMIT(answer='21')"),
    "dspy's json": '{"reasoning": "Known.", "code": "SUBMIT(answer=\'21\')"}',
    "other blocks beside": "```bash\npip install x\n```\n```python\nSUBMIT(answer='21')\n```",
}


@pytest.mark.parametrize("case", CODE)
def test_code_is_found_in_any_shape_of_reply(play: Play, case: str) -> None:
    """What the model meant to run is run."""
    assert play(RLM(ASK), [CODE[case]], question="?").prediction.answer == "21"


def test_an_adapter_that_cannot_parse_gives_an_observation(play: Play) -> None:
    """If `act` was exchanged and its adapter fails, the reply is kept as a step."""

    class Strict(dspy.Predict):
        def forward(self, **inputs: Any) -> Any:
            return self._strict(super().forward(**inputs))

        async def aforward(self, **inputs: Any) -> Any:
            return self._strict(await super().aforward(**inputs))

        def _strict(self, prediction: Any) -> Any:
            if not prediction.code:
                raise dspy.AdapterParseError("Strict", self.signature, prediction.reasoning)
            return prediction

    rlm = RLM(ASK)
    rlm.act = Strict(rlm.act.signature)
    replies = [fields(reasoning="Only talk.", code=""), fields(reasoning="r", code="SUBMIT(answer='ok')")]
    played = play(rlm, replies, question="?")
    assert played.kinds == ["no_code", "submitted"]
    assert played.prediction.trajectory[0]["reasoning"] == "Only talk."


def test_act_works_under_a_predictor_with_the_programs_own_adapter(play: Play) -> None:
    """A plain predictor in place of `act` gives fenced code in a field; the fence is no part of the code."""
    rlm = RLM(ASK)
    rlm.act = dspy.Predict(rlm.act.signature)
    reply = fields(reasoning="r", code="```python\nSUBMIT(answer='ok')\n```")
    assert play(rlm, [reply], question="?").prediction.answer == "ok"
