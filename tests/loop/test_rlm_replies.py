"""What a model may reply, and what becomes of it. Each fact holds blocking and awaiting."""

from __future__ import annotations

import textwrap
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from rlm_dspy.testing import Messages
    from tests.playing import Play

DONE = block("SUBMIT(answer='done')")
ASK = "question -> answer"


NO_CODE: dict[str, tuple[str | None, str]] = {
    "prose": ("I think the answer is forty-two.", "Your reply contains no code"),
    "empty": ("", "Your reply was empty"),
    "none": (None, "Your reply was empty"),
    "white space": (" \n\t\n", "Your reply contains no code|Your reply was empty"),
    "another language": ("```bash\nls -la\n```", "'bash'"),
    "an empty block": ("Done.\n```python\n```", "Your reply contains no code"),
    "json without code": ('{"thought": "hm"}', "Your reply contains no code"),
    "deep json": ('{"a":' + "[" * 50_000, "Your reply contains no code"),
    "a null character": ("\0", "Your reply contains no code"),
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
    assert "Your reply contains only thinking" in first["output"]


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


DRAFT = "```python\nSUBMIT(answer='draft')\n```"
THOUGHT: dict[str, str] = {
    "with tags": f"<think>\nMaybe\n{DRAFT}\n</think>\n{DONE}",
    "without its first tag": f"Maybe\n{DRAFT}\n</think>\n\n{DONE}",
    "with a tag of its own": f"<reasoning>\n{DRAFT}\n</reasoning>{DONE}",
    "with tokens": f"<|START_THINKING|>{DRAFT}\n<|END_THINKING|><|START_RESPONSE|>{DONE}<|END_RESPONSE|>",
}


@pytest.mark.parametrize("case", THOUGHT)
def test_code_that_was_drafted_in_thinking_is_not_run(play: Play, case: str) -> None:
    """The thinking is kept in the step; no model is shown it again."""
    look = THOUGHT[case].replace("SUBMIT(answer='done')", "print(1)")
    played = play(RLM(ASK), [look, THOUGHT[case]], question="?")
    assert (played.prediction.answer, played.kinds) == ("done", ["output", "submitted"])
    assert DRAFT in played.prediction.trajectory[0]["thinking"]
    assert "draft" not in str(played.calls)
    assert "draft" not in str(played.prediction.trajectory[0]["reasoning"])
    assert played.calls[1][-2]["content"] == "Next.\n```python\nprint(1)\n```"


def test_thinking_that_never_ends_is_told_as_such(play: Play) -> None:
    """Nothing of it is run, and the step says why."""
    played = play(RLM(ASK), [f"<think>\nMaybe\n{DRAFT}\nor", DONE], question="?")
    assert played.kinds == ["no_code", "submitted"]
    assert "contains only thinking" in played.outputs[0]
    assert played.prediction.trajectory[0]["thinking"] == f"Maybe\n{DRAFT}\nor"
    assert "draft" not in str(played.calls)


def test_long_thinking_is_kept_in_part(play: Play) -> None:
    played = play(RLM(ASK), [f"<think>{'x' * 100_000}</think>{DONE}"], question="?")
    assert 3_900 < len(played.prediction.trajectory[0]["thinking"]) < 4_100


def test_an_answer_of_a_sub_call_comes_without_the_thinking_before_it(play: Play) -> None:
    """Of `llm_query`, of a batch, of a sub with types, and of a module that is written in the REPL."""
    code = """
        answers = [llm_query('one'), *llm_query_batched(['two', 'three']), gist(text='four')]
        SUBMIT(answer=answers + [dspy.Predict('text -> gist: int')(text='5').gist])
    """
    draft = fields(gist="13")

    def thought(answer: str) -> Callable[[Messages], str]:
        return lambda _: f"<think>\nFirst I thought\n{draft}\n</think>\n\n{answer}"

    lm = ScriptedLM(act=[block(textwrap.dedent(code))], query=thought("4"), subs=thought(fields(gist="4")))
    rlm = RLM("question -> answer: list", subs={"gist": "text -> gist: int"})
    assert play(rlm, lm, question="?").prediction.answer == ["4", "4", "4", 4, 4]


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()])
def test_no_adapter_takes_a_value_that_was_drafted_in_thinking(play: Play, adapter: Any) -> None:
    """The extraction's answer is the one behind the thinking, in the form of each adapter."""
    form = {
        "ChatAdapter": "[[ ## answer ## ]]\n{}",
        "JSONAdapter": '{{"answer": "{}"}}',
        "XMLAdapter": "<answer>{}</answer>",
    }
    text = form[type(adapter).__name__]
    with dspy.context(adapter=adapter):
        played = play(
            RLM(ASK, max_iters=1),
            [block("1"), f"<think>\n{text.format('draft')}\n</think>\n{text.format('b')}"],
            question="?",
        )
    assert (played.prediction.answer, played.prediction.stop) == ("b", "extracted")


def test_a_field_that_has_the_name_of_a_tag_is_read(play: Play) -> None:
    """`dspy.XMLAdapter` writes fields as tags, also one that is named as thinking is."""
    code = block("SUBMIT(answer=str(dspy.Predict('text -> thought, gist: int')(text='a').thought))")
    with dspy.context(adapter=dspy.XMLAdapter()):
        played = play(RLM(ASK), [code, "<thought>deep</thought>\n<gist>4</gist>"], question="?")
    assert played.prediction.answer == "deep"


def test_a_fallback_to_json_reads_no_thinking_either(play: Play) -> None:
    """DSPy's ChatAdapter asks again for JSON when it cannot read a reply."""
    code = block("SUBMIT(answer=str(dspy.Predict('text -> gist: int')(text='a').gist))")
    played = play(RLM(ASK), [code, "no fields", '<think>{"gist": 13}</think>{"gist": 4}'], question="?")
    assert played.prediction.answer == "4"


def test_the_summary_of_folded_turns_holds_no_thinking(play: Play) -> None:
    summary = f"<think>\n{fields(summary='draft')}\n</think>\n{fields(summary='It printed a lot.')}"
    turns = [*(block(f"print('line {number} ' * 200)") for number in range(12)), DONE]
    lm = ScriptedLM(act=turns, fold=lambda _: summary)
    played = play(RLM(ASK, limits=Limits(max_context_tokens=3_000)), lm, question="?")
    assert "folded" in played.kinds
    assert "It printed a lot." in str(played.calls[-1])
    assert "draft" not in str(played.calls)


def test_the_draft_of_a_child_is_not_run(play: Play) -> None:
    draft = THOUGHT["with tags"].replace("answer=", "response=")
    lm = ScriptedLM(act=[block("SUBMIT(answer=rlm_query('Say hello'))")], child=[draft])
    assert play(RLM(ASK, limits=Limits(max_depth=1)), lm, question="?").prediction.answer == "done"


def test_what_the_lm_replied_is_kept_whole_in_its_history(play: Play) -> None:
    """Whoever listens to the LM, or looks at its history, sees the thinking."""
    played = play(RLM(ASK), [THOUGHT["with tags"]], question="?")
    assert "draft" in str(played.lm.history[-1]["outputs"])


class Custom(dspy.BaseLM):
    """An LM that is not `dspy.LM`."""

    def __init__(self) -> None:
        super().__init__(model="custom")

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        """Return a reply as OpenAI's client does."""
        choice = SimpleNamespace(
            message=SimpleNamespace(content=f"<think>{DRAFT}</think>{DONE}"), finish_reason="stop"
        )
        return SimpleNamespace(choices=[choice], usage={}, model="custom")


@pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning")
def test_thinking_is_dropped_whatever_the_kind_of_lm() -> None:
    with dspy.context(lm=Custom(), interpreter_factory=LocalPythonInterpreter):
        assert RLM(ASK)(question="?").answer == "done"


@pytest.mark.parametrize(("given", "third"), [(0.0, 0.7), (0.3, None), (None, None)])
@pytest.mark.parametrize("lost", ["```python\nprint(1)\n```", "The answer is a."], ids=["repeated", "no code"])
def test_the_reply_after_a_lost_turn_is_sampled_if_decoding_is_greedy(
    given: float | None, third: float | None, lost: str
) -> None:
    """Greedy decoding loses the next one too. An LM that was given no temperature may refuse one."""
    lm = ScriptedLM([block("print(1)"), lost, block("print(2)"), block("SUBMIT(answer='a')")])
    lm.kwargs = {name: value for name, value in lm.kwargs.items() if name != "temperature"}
    if given is not None:
        lm.kwargs["temperature"] = given
    with dspy.context(lm=lm):
        RLM("question -> answer", policy=None)(question="?")
    assert [call["kwargs"].get("temperature") for call in lm.history] == [None, None, third, None]


LONG = "The ferry to Sund left at nine, with a cow on board. " * 3 + "It rained. " * 500


def test_code_that_types_an_input_in_again_reads_the_input(play: Play) -> None:
    """The model is told that its copy was left out; the code after it sees the whole text."""
    copied = f"context = {LONG[:150]!r}\nquestion = 'How long?'\nprint(len(context))"
    played = play(RLM("context, question -> answer"), [block(copied), DONE], context=LONG, question="How long?")
    assert played.kinds == ["output", "submitted"]
    assert played.outputs[0].splitlines()[0] == str(len(LONG))
    assert "(context, question: set already, so your copy was left out. Use the variable.)" in played.outputs[0]
    assert played.prediction.trajectory[0]["code"] == "print(len(context))"


def test_a_block_that_only_types_an_input_in_again_is_no_code(play: Play) -> None:
    """What the model wrote is kept as its words."""
    copied = f"context = {LONG[:150]!r}\n# Now I read it."
    turns = [block(copied), block("SUBMIT(answer=str(len(context)))")]
    played = play(RLM("context, question -> answer"), turns, context=LONG, question="How long?")
    assert played.kinds == ["no_code", "submitted"]
    assert "context: set already" in played.outputs[0]
    assert copied in played.prediction.trajectory[0]["reasoning"]


def test_a_block_of_comments_alone_is_no_code(play: Play) -> None:
    """It would run without an output; the comments are kept as the model's words."""
    played = play(RLM(ASK), [block("# The answer is 11.\n# I am sure."), DONE], question="?")
    assert played.kinds == ["no_code", "submitted"]
    assert "Your reply contains no code" in played.outputs[0]
    assert "# I am sure." in played.prediction.trajectory[0]["reasoning"]
