"""The names in a REPL: functions are there in every cell, lost inputs are told of, and most names are free."""

from __future__ import annotations

import ast
import builtins
import keyword
from collections import Counter
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.repl.bootstrap import SOURCE
from rlm_dspy.repl.tools import RESERVED
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from tests.playing import Play

FACTORIES = [PythonInterpreter, LocalPythonInterpreter, dspy.LocalInterpreter]
every_interpreter = pytest.mark.parametrize("factory", FACTORIES)


def search(text: str) -> list[str]:
    """Find something."""
    return [f"found {text}"]


def outputs(factory: Any, *blocks: str, signature: str = "context -> answer: list", **inputs: Any) -> list[str]:
    """Return what came out of each turn; the last must submit."""
    lm = ScriptedLM(act=map(block, blocks), query=lambda _: "an answer", subs=lambda _: fields(gist="a gist"))
    rlm = RLM(signature, interpreter_factory=factory, tools=[search], subs={"gist": "text -> gist"})
    with dspy.context(lm=lm):
        prediction = rlm(**(inputs or {"context": "the text"}))
    assert prediction.stop == "submitted"
    return [step["output"] for step in prediction.trajectory]


USES = {
    "llm_query": ("llm_query('?')", "an answer"),
    "llm_query_batched": ("llm_query_batched(['?', '!'])", "['an answer', 'an answer']"),
    "search": ("search('x')", "found x"),
    "gist": ("gist('x')", "a gist"),
    "dspy": ("dspy.Predict('text -> gist')(text='x').gist", "a gist"),
    "SHOW_VARS": ("str(SHOW_VARS())", "context: str"),
    "INPUTS": ("INPUTS['context']", "the text"),
    "SUBMIT": ("1", "[1]"),
    "SubCallError": ("SubCallError.__name__", "SubCallError"),
}


@every_interpreter
@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("harm", ["{} = 'x'", "globals().pop('{}')", "def {}(*_): pass", "for {} in [1, 2]: pass"])
def test_a_function_that_code_overwrites_is_there_in_the_next_cell(factory: Any, name: str, harm: str) -> None:
    """Its own name is not lost, whatever a cell binds to it."""
    use, expected = USES[name]
    assert expected in outputs(factory, harm.format(name), f"SUBMIT(answer=[{use}])")[-1]


@every_interpreter
def test_a_print_that_is_no_function_any_more_prints_again(factory: Any) -> None:
    """A function of the code's own stays."""
    told, printed, _ = outputs(factory, "print = 5", "print('printed', print_)", "SUBMIT(answer=[])")
    assert "print is a function" in told
    assert "printed 5" in printed


@every_interpreter
def test_what_code_bound_to_the_name_of_a_function_is_kept_under_another(factory: Any) -> None:
    """It may be the answers of paid calls; the same turn says where they are."""
    told, answer = outputs(factory, "gist = gist.map(['a', 'b'])", "SUBMIT(answer=[gist_, gist('c')])")
    assert "gist is a function of this REPL and was restored" in told
    assert "gist_" in told
    assert "[['a gist', 'a gist'], 'a gist']" in answer


@pytest.mark.parametrize("factory", FACTORIES[:2])
def test_what_code_bound_to_the_name_of_a_tool_is_kept_under_another(factory: Any) -> None:
    """Where the interpreter is ours; DSPy's own binds tools anew before anybody can look."""
    told, answer = outputs(factory, "search = search('a')", "SUBMIT(answer=[search_, search('b')])")
    assert "search_" in told
    assert "[['found a'], ['found b']]" in answer


@every_interpreter
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("for context in ['a', 'b']: pass", "context is now str"),
        ("context = len(context)", "context is now int"),
        ("del context", "context was deleted"),
        ("context = context.upper()\n1 / 0", "context is now str"),
    ],
)
def test_an_input_that_loses_its_name_is_told_of_once_and_can_be_had_again(
    factory: Any, harm: str, said: str
) -> None:
    """In the turn that did it; the program may have meant it, so the name is left alone."""
    told, silent, answer = outputs(factory, harm, "x = 1", "SUBMIT(answer=[INPUTS['context']])")
    assert f"{said}; INPUTS['context'] holds the input." in told
    assert "INPUTS" not in silent
    assert "['the text']" in answer


@every_interpreter
def test_an_input_that_is_given_its_name_back_is_told_of_again(factory: Any) -> None:
    """Every loss is a new one."""
    turns = ["context = 1", "context = INPUTS['context']", "del context", "SUBMIT(answer=[INPUTS['context']])"]
    lost, found, again, _ = outputs(factory, *turns)
    assert ["INPUTS" in output for output in (lost, found, again)] == [True, False, True]


@every_interpreter
def test_the_inputs_can_only_be_read(factory: Any) -> None:
    """And the name itself is bound again."""
    told, answer = outputs(
        factory,
        "try:\n    INPUTS['context'] = 1\nexcept TypeError as error:\n    print(error)\nINPUTS = {}",
        "SUBMIT(answer=[*INPUTS.items()])",
    )
    assert "does not support item assignment" in told
    assert "the text" in answer


def test_an_input_is_the_same_object_in_inputs() -> None:
    """Nothing is copied."""
    (answer,) = outputs(PythonInterpreter, "SUBMIT(answer=[INPUTS['context'] is context])", context="x" * 100_000)
    assert "[True]" in answer


def test_the_environment_says_where_inputs_are_kept(play: Play) -> None:
    """Once, before the first turn."""
    played = play(RLM("context -> answer"), [block("SUBMIT(answer=context)")], context="x")
    assert played.calls[0][-1]["content"].count("INPUTS") == 1


ORDINARY = sorted(
    name
    for name in vars(builtins)
    if name.isidentifier() and not name.startswith("_") and name not in RESERVED and not keyword.iskeyword(name)
)


@pytest.mark.filterwarnings("ignore:Field name:UserWarning")
@every_interpreter
def test_inputs_may_have_the_names_of_all_builtins(factory: Any) -> None:
    """`type`, `list`, `str`, `exec`: the functions of the REPL do not go by these names."""
    inputs = {name: f"the {name}" for name in ORDINARY}
    code = (
        "answers = llm_query_batched(['a', 'b'])\n"
        "found = [gist('x'), dspy.Predict('text -> gist')(text='x').gist]\n"
        "SHOW_VARS()\nSUBMIT(answer=[answers, found, type, list, INPUTS['str']])"
    )
    written = {name: (str, dspy.InputField()) for name in ORDINARY}
    signature: Any = dspy.Signature({**written, "answer": (list, dspy.OutputField())})
    (answer,) = outputs(factory, code, signature=signature, **inputs)
    assert "[['an answer', 'an answer'], ['a gist', 'a gist'], 'the type', 'the list', 'the str']" in answer


@every_interpreter
def test_code_may_shadow_and_delete_what_it_likes(factory: Any) -> None:
    """The functions of the REPL still work."""
    shadow = "\n".join(f"{name} = 1" for name in ORDINARY if not name[0].isupper())
    _, _, answer = outputs(
        factory,
        shadow,
        "class Found:\n    text = 'x'\nx = [gist.map([{'text': 'a'}, 'b']), llm_query('?')]",
        "SUBMIT(answer=[x, dspy.Predict('text -> gist')(text='x').gist])",
    )
    assert "[[['a gist', 'a gist'], 'an answer'], 'a gist']" in answer


def test_builtins_that_code_changes_do_not_reach_the_functions_of_the_repl() -> None:
    """In `PythonInterpreter`, where they are those of the cells alone."""
    change = "import builtins\nreal = len, sorted\nbuiltins.len = builtins.sorted = None"
    use = "x = find_passages('Kera is a well.', 'Kera')\nbuiltins.len, builtins.sorted = real"
    _, _, shown, answer = outputs(PythonInterpreter, change, use, "SHOW_VARS()", "SUBMIT(answer=x)")
    assert "input" not in shown
    assert "Kera is a well." in answer


def test_an_input_that_hides_a_builtin_is_told_so(play: Play) -> None:
    """The model may want the builtin."""
    played = play(RLM("list -> answer"), [block("import builtins\nSUBMIT(answer=builtins.str(list))")], list="x")
    assert "use builtins.list" in played.calls[0][-1]["content"]


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_name_of_the_repl_is_refused_before_anything_runs(name: str) -> None:
    """As an input, a tool and a sub, by an error that names it."""
    with pytest.raises(ValueError, match=name):
        RLM(f"{name} -> answer")
    with pytest.raises(ValueError, match=name):
        RLM("context -> answer", tools=[dspy.Tool(search, name=name)])
    with pytest.raises(ValueError, match=name):
        RLM("context -> answer", subs={name: "text -> gist"})


def test_inputs_is_a_name_of_the_repl() -> None:
    """It holds the inputs."""
    assert "INPUTS" in RESERVED


def test_no_source_of_the_repl_defines_what_another_defines() -> None:
    """They run in one namespace: the last definition would serve all."""
    defined = []
    for node in ast.parse(SOURCE).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.append(node.name)
        elif isinstance(node, ast.Assign):
            defined += [target.id for target in node.targets if isinstance(target, ast.Name)]
    assert [name for name, count in Counter(defined).items() if count > 1] == []
