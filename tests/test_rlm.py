"""A run from its call to its prediction. Each fact holds blocking and awaiting."""

from __future__ import annotations

import logging
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, InvalidInputs, Limits, Text
from rlm_dspy.interpreters import LocalPythonInterpreter, ScriptedInterpreter, Submission
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.trajectory import Step
from tests.playing import block, fields

if TYPE_CHECKING:
    from pathlib import Path

    from tests.playing import Play

DONE = block("SUBMIT(answer='done')")
ASK = "question -> answer"


# The prediction


def test_a_submitted_answer_has_the_type_of_the_signature(play: Play) -> None:
    """SUBMIT ends the run, and its value is read into the output's type."""
    played = play(RLM("question -> answer: int"), [block("SUBMIT(answer='42')")], question="?")
    assert played.prediction.answer == 42
    assert isinstance(played.prediction.answer, int)
    assert played.prediction.stop == "submitted"


def test_the_trajectory_gives_reasoning_code_and_output_by_key(play: Play) -> None:
    """Each step is a plain dict, as in `dspy.RLM`, with what we add to it."""
    replies = [block("print(6 * 7)", "First I compute."), block("SUBMIT(answer='42')", "Now I know.")]
    steps = play(RLM(ASK), replies, question="?").prediction.trajectory
    assert [type(step) for step in steps] == [dict, dict]
    assert steps[0]["reasoning"] == "First I compute."
    assert steps[0]["code"] == "print(6 * 7)"
    assert steps[0]["output"] == "42"
    assert steps[0].keys() == steps[1].keys() == Step.model_fields.keys() - {"answer"}
    assert steps[1]["kind"] == "submitted"
    assert "42" in steps[1]["output"]
    assert all(step["seconds"] >= 0 for step in steps)


def test_the_final_reasoning_is_that_of_the_submitting_turn(play: Play) -> None:
    """`final_reasoning` holds the model's last words."""
    replies = [block("1", "Look."), block("SUBMIT(answer='x')", "The second section says x.")]
    assert play(RLM(ASK), replies, question="?").prediction.final_reasoning == "The second section says x."


def test_usage_counts_every_model_call_of_the_run(play: Play) -> None:
    """`usage` has totals, and the same by role and by model."""
    code = "answers = llm_query_batched(['one two', 'three'])\nSUBMIT(answer=', '.join(answers))"
    usage = play(RLM(ASK), [block(code), "a", "b"], question="?").prediction.usage
    assert usage["calls"] == 3
    assert usage["by_role"]["act"]["calls"] == 1
    assert usage["by_role"]["query"]["calls"] == 2
    assert usage["by_role"]["query"]["output_tokens"] == 2
    assert usage["by_model"]["scripted/lm"]["calls"] == 3
    assert usage["input_tokens"] == sum(role["input_tokens"] for role in usage["by_role"].values()) > 0
    assert usage["seconds"] > 0


@pytest.mark.parametrize("name", ["stop", "usage", "environment", "code", "reasoning"])
def test_an_output_may_have_a_name_that_the_run_uses(play: Play, name: str) -> None:
    """The user's field wins over what we add to the prediction."""
    played = play(RLM(f"question -> {name}"), [block(f"SUBMIT({name}='mine')")], question="?")
    assert played.prediction[name] == "mine"


@pytest.mark.parametrize(
    "name",
    ["port", "lm", "demos", "config", "prompt", "environment", "trajectory", "code", "run", "number", "sub"],
)
def test_an_input_may_have_any_name_that_is_not_reserved(play: Play, name: str) -> None:
    """No parameter of our own functions takes an input's name away."""
    played = play(RLM(f"{name} -> answer"), [block(f"SUBMIT(answer={name})")], **{name: "value"})
    assert played.prediction.answer == "value"


def test_several_outputs_are_submitted_by_name(play: Play) -> None:
    """Each output is read into its own type."""
    rlm = RLM("question -> title: str, years: list[int], score: float | None")
    pred = play(rlm, [block("SUBMIT(title='T', years=['2024', 2025], score=None)")], question="?").prediction
    assert (pred.title, pred.years, pred.score) == ("T", [2024, 2025], None)


def test_a_single_output_may_be_submitted_by_position(play: Play) -> None:
    """`SUBMIT(value)` is enough where there is one output."""
    assert play(RLM("q -> n: int"), [block("SUBMIT(7)")], q="?").prediction.n == 7


def test_a_submit_inside_try_except_ends_the_run(play: Play) -> None:
    """`except Exception` around SUBMIT does not swallow it."""
    code = "try:\n    SUBMIT(answer='kept')\nexcept Exception:\n    SUBMIT(answer='swallowed')"
    assert play(RLM(ASK), [block(code)], question="?").prediction.answer == "kept"


def test_what_was_printed_before_submit_is_in_the_last_step(play: Play) -> None:
    """Printing and submitting in one block loses neither."""
    played = play(RLM(ASK), [block("print('seen')\nSUBMIT(answer='a')")], question="?")
    assert played.outputs[0].startswith("seen\n")


# The REPL


def test_variables_that_the_code_changes_stay_changed(play: Play) -> None:
    """Inputs are bound once: neither a new value nor a mutation is undone on the next turn."""
    replies = [
        block("items.append(3)\nquestion = question.upper()\nmade = 'here'"),
        block("SUBMIT(answer=f'{items} {question} {made}')"),
    ]
    played = play(RLM("items: list[int], question -> answer"), replies, items=[1, 2], question="why")
    assert played.prediction.answer == "[1, 2, 3] WHY here"


def test_variables_stay_changed_in_an_interpreter_of_dspy(play: Play) -> None:
    """The same holds where variables cross as JSON."""
    rlm = RLM("items: list[int] -> answer: int", interpreter_factory=dspy.LocalInterpreter)
    replies = [block("items.append(3)"), block("SUBMIT(answer=sum(items))")]
    assert play(rlm, replies, items=[1, 2]).prediction.answer == 6


def test_output_printed_before_an_exception_is_kept_and_shown(play: Play) -> None:
    """The error follows with its type, its message and the model's own line."""
    code = "print('found 12 sections')\nsections = {}\nsections['intro'].strip()"
    played = play(RLM(ASK), [block(code), DONE], question="?")
    assert played.kinds == ["error", "submitted"]
    assert played.outputs[0].startswith("found 12 sections\n")
    assert "KeyError: 'intro'" in played.outputs[0]
    assert "sections['intro'].strip()" in played.outputs[0]
    assert played.calls[1][-1]["content"].startswith("found 12 sections\n")


def test_a_traceback_names_no_file_of_this_package(play: Play) -> None:
    """Only the model's own frames are of use to it."""
    output = play(RLM(ASK), [block("def f():\n    return 1 / 0\nf()"), DONE], question="?").outputs[0]
    assert "ZeroDivisionError" in output
    assert "return 1 / 0" in output
    assert "site-packages" not in output
    assert "interpreters" not in output


def test_output_printed_before_a_last_expression_is_kept(play: Play) -> None:
    """Both what was printed and the value of the last line are shown."""
    assert play(RLM(ASK), [block("print('x')\n0"), DONE], question="?").outputs[0] == "x\n0"


@pytest.mark.parametrize(("value", "shown"), [("0", "0"), ("False", "False"), ("{}", "{}"), ("0.0", "0.0")])
def test_a_false_last_value_is_shown(play: Play, value: str, shown: str) -> None:
    """An interpreter that returns values, as DSPy's does, may return one that is false."""
    repl = ScriptedInterpreter([eval(value), Submission({"answer": "x"})])
    played = play(RLM(ASK, interpreter_factory=lambda: repl), [block(value), DONE], question="?")
    assert played.outputs[0] == shown


def test_a_block_that_shows_nothing_is_told_to_print(play: Play) -> None:
    """Silence is no empty message."""
    assert "print" in play(RLM(ASK), [block("x = 1"), DONE], question="?").outputs[0]


def test_code_that_does_not_parse_is_told_and_the_run_goes_on(play: Play) -> None:
    """A syntax error is an observation."""
    played = play(RLM(ASK), [block("x = (1,\ny = 2"), DONE], question="?")
    assert played.kinds == ["error", "submitted"]
    assert "SyntaxError" in played.outputs[0]


def test_a_long_output_is_cut_at_the_limit_with_both_ends_kept(play: Play) -> None:
    """The model and the trajectory see the head, the tail, and how much was left out."""
    code = "print('HEAD' + 'x' * 50_000 + 'TAIL')"
    output = play(RLM(ASK, max_output_chars=1_000), [block(code), DONE], question="?").outputs[0]
    assert output.startswith("HEADx")
    assert output.endswith("xTAIL")
    assert "49,008 characters left out" in output
    assert len(output) < 1_100


def test_show_vars_lists_the_variables_and_hides_our_own(play: Play) -> None:
    """`SHOW_VARS()` names what is there: inputs and what the code made."""
    code = "import re\nimport numpy\nlone = numpy.array(5)\npages = [1, 2]\ndef helper(): pass\nSHOW_VARS()"
    output = play(RLM(ASK), [block(code), DONE], question="why").outputs[0]
    assert output.splitlines() == ["lone: ndarray", "pages: list, 2 long", "question: str, 3 long"]


def test_inputs_are_the_plain_values_in_the_repl(play: Play, tmp_path: Path) -> None:
    """A `Text` is a `str` there, from a string or from a file."""
    path = tmp_path / "articles.md"
    path.write_text("über alles\n" * 3, encoding="utf-8")
    code = "SUBMIT(answer=[type(a).__name__, type(b).__name__, a[:4], str(len(b))])"
    outputs = {"answer": (list[str], dspy.OutputField())}
    signature = dspy.Signature({"a": (Text, dspy.InputField()), "b": (str, dspy.InputField()), **outputs})
    played = play(RLM(signature), [block(code)], a=Text("abcdef"), b=Text.open(path))
    assert played.prediction.answer == ["str", "str", "abcd", str(len("über alles\n") * 3)]


def test_an_input_is_in_no_prompt_beyond_its_description(play: Play) -> None:
    """A long input is described by its size, beginning and end; it is never sent."""
    text = "".join(f"line {number}\n" for number in range(10_000))
    played = play(RLM("text -> answer"), [block("print(len(text))"), DONE], text=text)
    assert "line 5000\n" not in str(played.calls)
    assert f"{len(text):,} characters" in played.calls[0][-1]["content"]
    assert played.outputs[0] == str(len(text))


def test_variables_are_described_in_the_order_of_the_signature(play: Play) -> None:
    """However the call orders them, the first message is the same: providers' caches hit."""
    rlm = RLM("context, question -> answer")
    one = play(rlm, [DONE], context="c", question="q").calls
    assert one == play(rlm, [DONE], question="q", context="c").calls
    assert one[0][-1]["content"].index("- context") < one[0][-1]["content"].index("- question")


def test_a_default_value_fills_a_missing_input(play: Play) -> None:
    """Inputs with defaults may be left out."""

    class Ask(dspy.Signature):
        """Ask."""

        question: str = dspy.InputField()
        language: str = dspy.InputField(default="English")
        answer: str = dspy.OutputField()

    assert play(RLM(Ask), [block("SUBMIT(answer=language)")], question="?").prediction.answer == "English"


# Replies that are no code

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


# Ends of a run


def test_the_last_turns_are_counted_down(play: Play) -> None:
    """Three and two turns before the end the model reads how many are left; on the last, that it is the last."""
    played = play(RLM(ASK, max_iters=5), [block("1")] * 4 + [DONE], question="?")
    last_messages = [messages[-1]["content"] for messages in played.calls]
    assert "turns are left" not in last_messages[1]
    assert "3 turns are left" in last_messages[2]
    assert "2 turns are left" in last_messages[3]
    assert "This is the last turn" in last_messages[4]
    assert "SUBMIT now" in last_messages[4]


def test_a_run_of_one_turn_is_told_that_it_is_the_last(play: Play) -> None:
    """With `max_iters=1` there is no turn before it, so the first message says it."""
    played = play(RLM(ASK, max_iters=1), [DONE], question="?")
    assert "the last turn" in played.calls[0][-1]["content"]


def test_a_run_out_of_turns_reads_the_answer_from_the_trajectory(play: Play) -> None:
    """`stop` says that it was extracted; the value is typed; every step is kept."""
    replies = [block("print('population 1200')"), block("1"), fields(answer="1200")]
    played = play(RLM("question -> answer: int", max_iters=2), replies, question="?")
    assert (played.prediction.answer, played.prediction.stop) == (1200, "extracted")
    assert played.kinds == ["output", "output"]
    assert "population 1200" in str(played.calls[2])
    assert played.prediction.usage["by_role"]["extract"]["calls"] == 1


def test_an_output_named_session_is_extracted_from_the_session(play: Play) -> None:
    """No name of an output hides the transcript from the extraction."""
    played = play(
        RLM("question -> session", max_iters=1), [block("print('seen')"), fields(session="s")], question="?"
    )
    assert played.prediction.session == "s"
    assert "seen" in str(played.calls[1])


def test_an_answer_that_cannot_be_extracted_leaves_the_trajectory(play: Play) -> None:
    """`stop` is "unanswered", the outputs are None, and nothing is raised."""
    replies = [block("print('half the work')"), *["no fields at all"] * 3]
    played = play(RLM("question -> answer: int, why: str", max_iters=1), replies, question="?")
    assert played.prediction.stop == "unanswered"
    assert (played.prediction.answer, played.prediction.why) == (None, None)
    assert played.outputs == ["half the work"]


def test_a_full_context_window_ends_in_extraction(play: Play) -> None:
    """A limit of the model never throws a trajectory away."""
    replies = [block("print('seen')"), dspy.lm15.ContextLengthError("too long"), fields(answer="seen")]
    played = play(RLM(ASK), replies, question="?")
    assert (played.prediction.answer, played.prediction.stop) == ("seen", "extracted")


def test_a_context_window_that_the_first_message_fills_reaches_the_caller(play: Play) -> None:
    """With no step taken there is nothing to extract from."""
    with pytest.raises(dspy.ContextWindowExceededError):
        play(RLM(ASK), [dspy.lm15.ContextLengthError("too long")], question="?")


def test_an_error_of_the_lm_carries_the_trajectory(play: Play) -> None:
    """What reaches the caller has the steps that were taken, and a note that says so."""
    with pytest.raises(dspy.LMError) as caught:
        play(RLM(ASK), [block("print('paid for')"), dspy.LMRateLimitError("slow down")], question="?")
    assert [step["output"] for step in steps_of(caught)] == ["paid for"]
    assert "1 step(s)" in caught.value.__notes__[0]


def test_an_interrupt_carries_the_trajectory_and_closes_the_interpreter(play: Play) -> None:
    """Ctrl-C loses neither the steps, the one that it cut short included, nor the interpreter."""
    repl = ScriptedInterpreter(["kept", KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt) as caught:
        play(RLM(ASK, interpreter_factory=lambda: repl), [block("1"), block("2")], question="?")
    assert [step["code"] for step in steps_of(caught)] == ["1", "2"]
    assert "cut short" in steps_of(caught)[1]["output"]
    assert repl.closed


def steps_of(caught: pytest.ExceptionInfo[Any]) -> list[dict[str, Any]]:
    """Return the trajectory that an error carries."""
    steps: list[dict[str, Any]] = caught.value.trajectory
    return steps


# The interpreter


def test_the_interpreter_is_closed_when_the_run_ends(play: Play) -> None:
    """Also when all goes well."""
    repl = ScriptedInterpreter([Submission({"answer": "x"})])
    play(RLM(ASK, interpreter_factory=lambda: repl), [DONE], question="?")
    assert repl.started
    assert repl.closed


def test_an_interpreter_that_dies_is_replaced_and_the_model_is_told(play: Play) -> None:
    """The inputs are there again; what the code made is lost; the run goes on."""
    dying = ScriptedInterpreter(["before", dspy.CodeInterpreterError("worker gone")])
    spare = [dying, LocalPythonInterpreter()]
    rlm = RLM(ASK, interpreter_factory=lambda: spare.pop(0))
    played = play(rlm, [block("1"), block("2"), block("SUBMIT(answer=question)")], question="still here")
    assert played.kinds == ["output", "interpreter_lost", "submitted"]
    assert "worker gone" in played.outputs[1]
    assert "lost" in played.outputs[1]
    assert played.prediction.answer == "still here"
    assert dying.closed


def test_an_interpreter_that_cannot_be_replaced_reaches_the_caller_with_the_trajectory(play: Play) -> None:
    """Only when no other can be started does the caller see the error."""
    spare = [ScriptedInterpreter(["kept", dspy.CodeInterpreterError("worker gone")])]

    def factory() -> Any:
        if not spare:
            raise dspy.CodeInterpreterError("no more workers")
        return spare.pop()

    with pytest.raises(dspy.CodeInterpreterError, match="no more workers") as caught:
        play(RLM(ASK, interpreter_factory=factory), [block("1"), block("2")], question="?")
    assert [step["code"] for step in steps_of(caught)] == ["1", "2"]


def test_an_interpreter_that_does_not_start_is_closed_and_costs_no_model_call(play: Play) -> None:
    """It fails before anything was paid."""

    class Broken(ScriptedInterpreter):
        def _start(self) -> None:
            raise dspy.CodeInterpreterError("no memory")

    repl, lm = Broken([]), ScriptedLM([DONE])
    with pytest.raises(dspy.CodeInterpreterError, match="no memory") as caught:
        play(RLM(ASK, interpreter_factory=lambda: repl), lm, question="?")
    assert steps_of(caught) == []
    assert repl.closed
    assert lm.script.calls == []


def test_an_input_that_cannot_cross_is_refused_before_a_model_call(play: Play) -> None:
    """An interpreter that takes JSON only says so, naming the input."""
    lm = ScriptedLM([DONE])
    rlm = RLM("data -> answer", interpreter_factory=dspy.LocalInterpreter)
    for value in (object(), b"\xff\xfe", [object()]):
        with pytest.raises(TypeError, match="'data'"):
            play(rlm, lm, data=value)
    assert lm.script.calls == []


def test_a_factory_that_returns_no_interpreter_is_told_so(play: Play) -> None:
    """The message says what a factory returns."""
    with pytest.raises(TypeError, match="CodeInterpreter"):
        play(RLM(ASK, interpreter_factory=dict), [DONE], question="?")


def test_the_factory_of_the_call_wins_over_that_of_the_module(play: Play) -> None:
    """`interpreter_factory=` at the call is for this call alone."""
    mine, call = ScriptedInterpreter([Submission({"answer": "module"})]), Submission({"answer": "call"})
    rlm = RLM(ASK, interpreter_factory=lambda: mine)
    played = play(rlm, [DONE], question="?", interpreter_factory=lambda: ScriptedInterpreter([call]))
    assert played.prediction.answer == "call"
    assert play(rlm, [DONE], question="?").prediction.answer == "module"


def test_the_environment_says_what_the_interpreter_says_of_itself(play: Play) -> None:
    """A factory's `execution_instructions` reach the model, for the factory of this call."""
    played = play(RLM(ASK), [DONE], question="?")
    assert LocalPythonInterpreter.execution_instructions in played.calls[0][-1]["content"]


# Calls and constructors


def test_a_missing_or_unknown_input_is_refused_before_anything_starts(play: Play) -> None:
    """The error is a ValueError that names the inputs."""
    repl = ScriptedInterpreter([])
    rlm = RLM("context, question -> answer", interpreter_factory=lambda: repl)
    with pytest.raises(InvalidInputs, match=r"missing: \['context'\]"):
        play(rlm, [DONE], question="?")
    with pytest.raises(ValueError, match=r"unknown: \['topic'\]"):
        play(rlm, [DONE], question="?", context="c", topic="t")
    assert not repl.started


def test_the_three_short_limits_are_fields_of_limits() -> None:
    """They override the same fields of `limits=` and leave the others."""
    rlm = RLM(ASK, 7, 8, 900, limits=Limits(max_iters=1, max_concurrency=3))
    assert rlm.limits == replace(Limits(), max_iters=7, max_llm_calls=8, max_output_chars=900, max_concurrency=3)
    assert RLM(ASK, max_llm_calls=0).limits.max_llm_calls == 0


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "tools as a dict": ({"tools": {"a": print}}, TypeError, "must be a list"),
    "a tool that is none": ({"tools": ["search"]}, TypeError, "callable"),
    "two tools of one name": ({"tools": [dspy.Tool(len, name="a"), dspy.Tool(abs, name="a")]}, ValueError, "Dupl"),
    "a tool named SUBMIT": ({"tools": [dspy.Tool(len, name="SUBMIT")]}, ValueError, "no free Python name"),
    "a tool named by a keyword": ({"tools": [dspy.Tool(len, name="class")]}, ValueError, "no free Python name"),
    "a tool named as an input": ({"tools": [dspy.Tool(len, name="question")]}, ValueError, "conflict with tools"),
    "an interpreter for a factory": ({"interpreter_factory": ScriptedInterpreter([])}, TypeError, "instance"),
    "no factory": ({"interpreter_factory": 3}, TypeError, "callable"),
    "a name for an LM": ({"sub_lm": "openai/gpt-5-mini"}, TypeError, "dspy.LM"),
    "no turns": ({"max_iters": 0}, ValueError, "max_iters"),
    "no such policy": ({"policy": "nobody's"}, ValueError, "no policy file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_argument_is_refused_by_name(case: str) -> None:
    """Each refusal says what to pass instead."""
    options, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        RLM(ASK, **options)


@pytest.mark.parametrize(
    "signature",
    [
        "SUBMIT -> answer",
        "llm_query -> answer",
        "dspy -> answer",
        "FailedCall -> answer",
        "question -> trajectory",
    ],
)
def test_a_signature_that_takes_a_name_of_the_repl_or_the_result_is_refused(signature: str) -> None:
    """The clash is found when the module is made."""
    with pytest.raises(ValueError, match="conflict"):
        RLM(signature)


def test_verbose_logs_each_step_and_quiet_logs_none(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """`verbose=True` shows reasoning, code and output at INFO."""
    with caplog.at_level(logging.INFO, logger="dspy.rlm_dspy"):
        play(RLM(ASK), [block("print('quiet')"), DONE], question="?")
        assert caplog.messages == []
        play(RLM(ASK, verbose=True), [block("print(6 * 7)", "Compute."), DONE], question="?")
    assert len(caplog.messages) == 2
    for part in ("Compute.", "print(6 * 7)", "42"):
        assert part in caplog.messages[0]


def test_the_task_and_the_outputs_stand_in_the_first_message_and_not_in_the_instructions(play: Play) -> None:
    """What varies per run is the environment; an optimizer that rewrites the instructions loses none of it."""

    class Ask(dspy.Signature):
        """Name the harbour that the logbook mentions last."""

        logbook: str = dspy.InputField(desc="one entry a day")
        harbour: str = dspy.OutputField(desc="in capitals")

    def soundings(day: int, unit: str = "fathom") -> list[float]:
        """Return the depths measured on a day."""
        return [float(day)]

    played = play(RLM(Ask, tools=[soundings]), [block("SUBMIT(harbour='X')")], logbook="Monday: rain.")
    system, user = played.calls[0]
    assert system["role"] == "system"
    for part in ("harbour", "logbook", "SUBMIT(", "llm_query("):
        assert part not in system["content"]
    for part in (
        *("Name the harbour that the logbook mentions last.", "one entry a day", "in capitals", "Monday: rain."),
        *("SUBMIT(harbour=...)", "llm_query(", "soundings(day: int", "Return the depths measured", "20 turns"),
    ):
        assert part in user["content"]


def test_a_doctest_of_the_scripted_interpreter_in_the_style_guide_holds() -> None:
    """The shipped fakes are enough to test a program without code and without a model."""
    repl = ScriptedInterpreter(["3 lines", dspy.FinalOutput({"answer": "42"})])
    with dspy.context(lm=ScriptedLM([block("a"), block("b")])):
        pred = RLM("question -> answer: int", interpreter_factory=lambda: repl)(question="?")
    assert (pred.answer, pred.stop) == (42, "submitted")
    assert [textwrap.dedent(call.code) for call in repl.calls] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"signature": 5}, TypeError, "must be a string like"),
        ({"signature": "class -> a"}, ValueError, "cannot be read"),
        ({"signature": "question ->"}, ValueError, "no output field"),
        ({"tools": len}, TypeError, "must be a list"),
        ({"tools": [max]}, ValueError, "does not say what arguments"),
        ({"limits": {"max_iters": 3}}, TypeError, r"must be rlm_dspy.Limits\("),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_with_what_to_pass(
    arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    """When the module is made, before anything is paid."""
    with pytest.raises(error, match=said):
        RLM(**{"signature": "question -> answer", **arguments})


def test_a_tool_that_exits_is_an_error_in_the_code_and_not_the_end_of_the_program() -> None:
    """As tools made from command lines do."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    replies = ["```python\nleave(3)\n```", "```python\nSUBMIT(answer='still here')\n```"]
    with dspy.context(lm=ScriptedLM(replies)):
        prediction = RLM("question -> answer", tools=[leave], policy=None)(question="?")
    assert prediction.answer == "still here"
    assert "leave exited with 3" in prediction.trajectory[0]["output"]


def test_tools_whose_arguments_have_no_names_are_called_by_position() -> None:
    """A built-in function, one with `/`, and one with `*`."""

    def half(number: int, /) -> float:
        return number / 2

    def joined(*words: str) -> str:
        return "-".join(words)

    code = "```python\nSUBMIT(answer=f\"{sum([1, 2])} {half(3)} {joined('a', 'b')}\")\n```"
    with dspy.context(lm=ScriptedLM([code])):
        prediction = RLM("question -> answer", tools=[sum, half, joined], policy=None)(question="?")
    assert prediction.answer == "3 1.5 a-b"
