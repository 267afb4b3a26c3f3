"""A run from its call to its prediction, and its REPL. Each fact holds blocking and awaiting."""

from __future__ import annotations

import logging
import re
import textwrap
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM, InvalidInputs, Limits, Text
from rlm_dspy.interpreters import ScriptedInterpreter, Submission
from rlm_dspy.testing import ScriptedLM
from rlm_dspy.trajectory import Step
from tests.playing import block

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


@pytest.mark.parametrize(
    ("make", "name", "fix"),
    [
        (
            partial(RLM, "q -> a"),
            "max_iterations",
            "RLM has no argument 'max_iterations'; did you mean 'max_iters'?",
        ),
        (partial(RLM, "q -> a"), "max_cost", "RLM has no argument 'max_cost'; pass limits=Limits(max_cost=...)."),
        (partial(RLM, "q -> a"), "lm", "RLM has no argument 'lm'; call rlm.set_lm(lm) or dspy.configure(lm=lm)."),
        (partial(RLM, "q -> a"), "colour", "RLM has no argument 'colour'; it has signature, max_iters, "),
        (Limits, "max_iter", "Limits has no argument 'max_iter'; did you mean 'max_iters'?"),
        (Limits, "colour", "Limits has no argument 'colour'; it has max_iters, "),
    ],
)
def test_an_argument_that_there_is_not_is_told_with_the_right_one(make: Any, name: str, fix: str) -> None:
    with pytest.raises(TypeError, match=re.escape(fix)):
        make(**{name: 3})


def test_an_output_that_hides_the_runs_own_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """It takes precedence, as signatures of `dspy.RLM` expect."""
    logging.getLogger("dspy").addHandler(caplog.handler)  # DSPy's logger does not propagate
    try:
        for _ in range(2):
            rlm = RLM("question -> stop: int, artifacts: str")
    finally:
        logging.getLogger("dspy").removeHandler(caplog.handler)
    (told,) = caplog.messages
    assert told.startswith("prediction.artifacts, prediction.stop: the output field, not the run's own.")
    with dspy.context(lm=ScriptedLM(["```python\nSUBMIT(stop=7, artifacts='a')\n```"])):
        assert dict(rlm(question="?"))["stop"] == 7


def test_the_three_short_limits_are_fields_of_limits() -> None:
    """They override the same fields of `limits=` and leave the others."""
    rlm = RLM(ASK, 7, 8, 900, limits=Limits(max_iters=1, max_concurrency=3))
    assert rlm.limits == replace(Limits(), max_iters=7, max_llm_calls=8, max_output_chars=900, max_concurrency=3)
    assert RLM(ASK, max_llm_calls=0).limits.max_llm_calls == 0


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "tools as a dict": ({"tools": {"a": print}}, TypeError, "must be a list"),
    "a tool that is none": ({"tools": ["search"]}, TypeError, "callable"),
    "two tools of one name": ({"tools": [dspy.Tool(len, name="a"), dspy.Tool(abs, name="a")]}, ValueError, "Dupl"),
    "a tool named SUBMIT": ({"tools": [dspy.Tool(len, name="SUBMIT")]}, ValueError, "Invalid tool name 'SUBMIT'"),
    "a tool named by a keyword": (
        {"tools": [dspy.Tool(len, name="class")]},
        ValueError,
        "Invalid tool name 'class'",
    ),
    "a tool named as an input": ({"tools": [dspy.Tool(len, name="question")]}, ValueError, "conflict with tools"),
    "an interpreter for a factory": ({"interpreter_factory": ScriptedInterpreter([])}, TypeError, "instance"),
    "no factory": ({"interpreter_factory": 3}, TypeError, "callable"),
    "a name for an LM": ({"sub_lm": "openai/gpt-5-mini"}, TypeError, "dspy.LM"),
    "no turns": ({"max_iters": 0}, ValueError, "max_iters"),
    "no such policy": ({"policy": "nobody's"}, ValueError, 'Invalid policy "nobody\'s"'),
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
        "instance -> answer",
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
        ({"signature": 5}, TypeError, "Invalid signature 5: it must be a string like"),
        ({"signature": "class -> a"}, ValueError, "'class -> a': .* with Python identifiers as names"),
        ({"signature": "question ->"}, ValueError, "no output field"),
        ({"tools": len}, TypeError, "must be a list"),
        ({"tools": [max]}, ValueError, "its signature cannot be inspected"),
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
