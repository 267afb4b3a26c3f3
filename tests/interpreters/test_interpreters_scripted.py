import dspy
import pytest
from dspy.primitives.facade import HOST_TOKEN_VAR

from rlm_dspy.interpreters import CellError, ScriptedInterpreter, Submission
from rlm_dspy.interpreters.scripted import Call
from rlm_dspy.interpreters.worker.cell import SETUP
from tests.interpreter_contract import PlaybackContract, run_dspy_rlm


class TestScriptedInterpreter(PlaybackContract):
    make = ScriptedInterpreter


def test_results_come_in_order_and_as_they_are() -> None:
    """Text, nothing, lines, a submission; the very objects."""
    final = Submission({"answer": "42"}, printed="looked")
    results = ["3 lines", None, ["a", "b"], final]
    with ScriptedInterpreter(results) as repl:
        assert [repl.execute("anything") for _ in results] == results


def test_an_exception_is_raised() -> None:
    """Recoverable or not, as the test wants it."""
    repl = ScriptedInterpreter([CellError("ValueError: v", "printed"), dspy.CodeInterpreterError("died")])
    with pytest.raises(CellError, match="printed\nValueError: v"):
        repl.execute("1")
    with pytest.raises(dspy.CodeInterpreterError, match="died"):
        repl.execute("2")


def test_a_function_computes_its_result() -> None:
    """From the code, the variables, and the tools as code would call them."""

    def result(code: str, variables: dict[str, int], tools: dict[str, object]) -> str:
        return f"{code} {variables} {sorted(tools)}"

    repl = ScriptedInterpreter([result], tools={"ask": str})
    assert repl.execute("code", {"n": 1}) == "code {'n': 1} ['ask']"


def test_it_keeps_what_it_was_asked() -> None:
    """The code and the variables of each call; whether it was started and shut down."""
    repl = ScriptedInterpreter(["a", CellError("e")])
    assert (repl.started, repl.closed, repl.calls) == (False, False, [])
    variables = {"n": [1]}
    repl.execute("first", variables)
    with pytest.raises(CellError):
        repl.execute("second")
    repl.shutdown()
    assert repl.calls == [Call("first", {"n": [1]}), Call("second", {})]
    assert repl.calls[0].variables["n"] is variables["n"]
    assert (repl.started, repl.closed) == (True, True)


def test_a_script_that_is_used_up_says_how_long_it_was() -> None:
    """It is the test's mistake, so nothing a model could repair."""
    repl = ScriptedInterpreter(["only one"])
    repl.execute("1")
    with pytest.raises(dspy.CodeInterpreterError, match=r"All 1 scripted results.*\nprint\(2\)") as caught:
        repl.execute("print(2)")
    assert not isinstance(caught.value, dspy.CodeExecutionError)
    assert len(repl.calls) == 1


@pytest.mark.parametrize(("code", "variables"), [("shim", {HOST_TOKEN_VAR: "token"}), (SETUP + "code", {})])
def test_setting_up_uses_up_no_result(code: str, variables: dict[str, str]) -> None:
    """Neither dspy.RLM's stand-in for `dspy` nor the functions of ours."""
    repl = ScriptedInterpreter(["first"])
    assert repl.execute(code, variables) is None
    assert repl.calls == []
    assert repl.execute("step") == "first"


def test_a_run_of_dspy_rlm_can_be_read_from_it() -> None:
    """What the model wrote, with the inputs, turn by turn."""
    repl = ScriptedInterpreter(["3 lines", dspy.FinalOutput({"answer": "42"})])
    assert run_dspy_rlm(repl, "print(1)", "SUBMIT(42)").answer == "42"
    assert repl.calls == [Call("print(1)", {"question": "what?"}), Call("SUBMIT(42)", {"question": "what?"})]
    assert repl.closed
