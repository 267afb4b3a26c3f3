"""The module inside DSPy: saved, copied, optimized, evaluated, traced."""

from __future__ import annotations

import copy
import json
import pickle
from typing import TYPE_CHECKING, Any

import cloudpickle
import dspy
import pytest

from rlm_dspy import RLM, Limits, signatures
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.prompt.adapter import Act
from rlm_dspy.prompt.query import Query
from rlm_dspy.testing import ScriptedLM
from tests.playing import begins, block, fields

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ASK = "question -> answer"
ANSWER = block("SUBMIT(answer='a')")


def shout(word: str) -> str:
    """Return the word in capitals."""
    return word.upper()


@pytest.fixture(autouse=True)
def code_runs_in_this_process() -> Iterator[None]:
    """Run all code of these tests in this process."""
    with dspy.context(interpreter_factory=LocalPythonInterpreter):
        yield


def learned() -> RLM:
    """Return a module with what an optimizer leaves: instructions and demos of both predictors."""
    rlm = RLM(ASK, tools=[shout], limits=Limits(max_iters=3))
    rlm.act.signature = rlm.act.signature.with_instructions("Learned to act.")
    rlm.act.demos = [dspy.Example(environment="Task: e.", trajectory=[], reasoning="r", code="demo()")]
    rlm.act.demos[0]["trajectory"] = run(RLM(ASK), "talk", ANSWER).act_trajectory
    rlm.query.signature = rlm.query.signature.with_instructions("Learned to answer.")
    rlm.query.demos = [dspy.Example(prompt="p", response="r")]
    return rlm


class Ran:
    """A run with what it left in the trace."""

    def __init__(self, rlm: Any, replies: Any) -> None:
        self.lm = ScriptedLM(replies)
        with dspy.context(lm=self.lm, trace=[]):
            self.prediction = rlm(question="?")
            self.trace = list(dspy.settings.trace)
        self.act_trajectory = self.trace[-1][1].get("trajectory")


def run(rlm: Any, *replies: Any) -> Ran:
    """Call a module on scripted replies."""
    return Ran(rlm, replies)


def prompt_of(rlm: Any) -> list[dict[str, str]]:
    """Return the messages of a first turn and of a sub-call."""
    calls = run(rlm, block("SUBMIT(answer=llm_query('x') + shout('y'))"), "z").lm.script.calls
    return [message for messages in calls for message in messages]


def test_the_named_predictors_are_exactly_act_and_query() -> None:
    """What an optimizer owns; the extraction, seldom called, is none of it."""
    rlm = RLM(ASK, tools=[shout], sub_lm=ScriptedLM([]))
    assert [(name, type(predictor)) for name, predictor in rlm.named_predictors()] == [
        ("act", Act),
        ("query", Query),
    ]
    assert list(dict(rlm.named_parameters())) == ["act", "query"]


def test_the_signature_of_act_does_not_depend_on_the_task() -> None:
    """So what is learned on one task serves another."""
    one, other = RLM(ASK), RLM("pages: list[int], topic -> rows: list[str]", tools=[shout], max_iters=3)
    assert one.act.signature.dump_state() == other.act.signature.dump_state()
    assert list(one.act.signature.fields) == ["environment", "trajectory", "reasoning", "code"]


def test_a_saved_module_loads_with_what_it_learned(tmp_path: Path) -> None:
    """Instructions and demos of both predictors come back from JSON, and prompt the same."""
    path, expected = str(tmp_path / "program.json"), prompt_of(learned())
    learned().save(path)
    loaded = RLM(ASK, tools=[shout], limits=Limits(max_iters=3))
    assert prompt_of(loaded) != expected
    loaded.load(path)
    assert prompt_of(loaded) == expected
    assert (
        json.loads((tmp_path / "program.json").read_text())["act"]["signature"]["instructions"]
        == "Learned to act."
    )


def test_a_dumped_state_loads_into_a_module_of_another_task() -> None:
    """A policy is the state of `act`."""
    other = RLM("pages -> topic")
    other.load_state(learned().dump_state())
    assert other.act.signature.instructions == "Learned to act."
    assert other.query.signature.instructions == "Learned to answer."
    assert len(other.act.demos) == 1


def test_a_whole_program_is_saved_and_loaded(tmp_path: Path) -> None:
    """`save(save_program=True)` keeps the tools and the limits too."""
    learned().save(str(tmp_path / "program"), save_program=True)
    loaded = dspy.load(str(tmp_path / "program"), allow_pickle=True)
    assert prompt_of(loaded) == prompt_of(learned())


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, RLM.deepcopy, RLM.reset_copy, lambda rlm: cloudpickle.loads(cloudpickle.dumps(rlm))],
    ids=["copy.deepcopy", "deepcopy", "reset_copy", "cloudpickle"],
)
def test_a_copy_works_and_shares_nothing_that_is_learned(copied: Any) -> None:
    """Optimizers copy a module many times and change the copies."""
    rlm = learned()
    other = copied(rlm)
    other.act.signature = other.act.signature.with_instructions("Changed.")
    other.act.demos.append(dspy.Example(environment="x", trajectory=None, reasoning="", code="y"))
    assert rlm.act.signature.instructions == "Learned to act."
    assert len(rlm.act.demos) == 1
    messages = prompt_of(other)
    assert messages[0]["content"].split("\n\n")[0] == "Changed."


class Ask(dspy.Signature):
    """Answer."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def test_a_module_over_a_signature_class_is_pickled() -> None:
    """Nothing on the module stands in the way; a signature from a string has no importable class, DSPy says."""
    loaded = pickle.loads(pickle.dumps(RLM(Ask, tools=[shout], limits=Limits(max_iters=3), max_llm_calls=2)))
    assert loaded.limits == Limits(max_iters=3, max_llm_calls=2)
    assert run(loaded, block("SUBMIT(answer=shout('a'))")).prediction.answer == "A"


def test_a_module_that_ran_is_pickled_and_copied_as_before() -> None:
    """A run leaves nothing on the module."""
    rlm = RLM(Ask)
    before = pickle.dumps(rlm)
    run(rlm, block("1"), block("SUBMIT(answer=llm_query('x'))"), "y")
    assert pickle.dumps(rlm) == before


def test_a_copy_binds_the_tools_of_the_copy() -> None:
    """Tools are bound at the call from the module that is called: an optimizer may rewrite their texts."""
    rlm = RLM(ASK, tools=[shout])
    other = rlm.deepcopy()
    other.tools["shout"].desc = "Rewritten."
    assert "Rewritten." in str(run(other, ANSWER).lm.script.calls)
    assert "Rewritten." not in str(run(rlm, ANSWER).lm.script.calls)


def test_set_lm_and_get_lm_reach_both_predictors() -> None:
    """The LM that was set is the one that is called, for turns and for sub-calls."""
    rlm, lm = RLM(ASK), ScriptedLM([block("SUBMIT(answer=llm_query('x'))"), "mine"])
    rlm.set_lm(lm)
    assert rlm.get_lm() is lm
    with dspy.context(lm=ScriptedLM([])):
        assert rlm(question="?").answer == "mine"


def test_the_trace_holds_every_act_and_query_in_order() -> None:
    """With the predictor of the module, its inputs and its outputs: what optimizers learn from."""
    rlm = RLM(ASK)
    ran = run(rlm, block("a = llm_query('p')"), "r", block("SUBMIT(answer=a)"))
    assert [predictor for predictor, _, _ in ran.trace] == [rlm.act, rlm.query, rlm.act]
    assert ran.trace[1][1] == {"prompt": "p"}
    assert ran.trace[1][2].response == "r"
    assert ran.trace[2][1].keys() == {"environment", "trajectory"}
    assert len(ran.trace[2][1]["trajectory"]) == 1
    assert ran.trace[2][2].code == "SUBMIT(answer=a)"


def test_the_calls_of_a_batch_are_all_in_the_trace() -> None:
    """Threads of a batch write to the trace of the run."""
    replies = [block("llm_query_batched(['1', '2', '3'])"), "a", "b", "c", ANSWER]
    ran = run(RLM(ASK), *replies)
    assert sorted(inputs["prompt"] for _, inputs, _ in ran.trace if "prompt" in inputs) == ["1", "2", "3"]


def test_the_extraction_is_in_no_trace() -> None:
    """It belongs to no predictor that an optimizer could find."""
    rlm = RLM(ASK, max_iters=1)
    ran = run(rlm, block("1"), fields(answer="a"))
    assert ran.prediction.stop == "extracted"
    assert [predictor for predictor, _, _ in ran.trace] == [rlm.act]


def questions(count: int) -> list[dspy.Example]:
    """Return examples whose answer is the question."""
    return [dspy.Example(question=f"q{n}", answer=f"q{n}").with_inputs("question") for n in range(count)]


def exact(example: Any, prediction: Any, trace: Any = None) -> bool:
    """Score an answer."""
    return bool(example.answer == prediction.answer)


ECHO = block("print(question)\nSUBMIT(answer=question)")


def test_evaluate_scores_it_in_threads() -> None:
    """`dspy.Evaluate` over several threads."""
    evaluate = dspy.Evaluate(devset=questions(6), metric=exact, num_threads=3, display_progress=False)
    with dspy.context(lm=ScriptedLM(lambda _: ECHO)):
        assert evaluate(RLM(ASK)).score == 100


def test_parallel_runs_it() -> None:
    """`dspy.Parallel` over one module and over copies."""
    rlm = RLM(ASK)
    with dspy.context(lm=ScriptedLM(lambda _: ECHO)):
        pairs = [(rlm if n % 2 else rlm.deepcopy(), example) for n, example in enumerate(questions(6))]
        predictions = dspy.Parallel(num_threads=3, disable_progress_bar=True)(pairs)
    assert [prediction.answer for prediction in predictions] == [f"q{n}" for n in range(6)]


def length(arguments: Any, prediction: Any) -> float:
    """Reward a long answer."""
    return float(len(prediction.answer))


def test_best_of_n_takes_the_best_run() -> None:
    """It copies the module, sets an LM on the copy, and compares predictions."""
    lm = ScriptedLM([block(f"SUBMIT(answer={answer!r})") for answer in ("a", "ccc", "bb")])
    with dspy.context(lm=lm):
        best = dspy.BestOfN(RLM(ASK), N=3, reward_fn=length, threshold=9)(question="?")
    assert (best.answer, best.stop) == ("ccc", "submitted")


def test_refine_tries_again(capsys: pytest.CaptureFixture[str]) -> None:
    """It reads the trajectory of a failed try, asks for advice, and runs the module again."""
    advice = fields(discussion="Too short.", advice='{"act": "write more", "query": "N/A"}')
    replies = [block("SUBMIT(answer='a')"), advice, block("1"), block("SUBMIT(answer='long enough')")]
    with dspy.context(lm=ScriptedLM(replies), trace=[]):
        best = dspy.Refine(RLM(ASK), N=2, reward_fn=length, threshold=5)(question="?")
    assert best.answer == "long enough"
    assert capsys.readouterr().out == ""


def test_the_advice_of_refine_reaches_the_predictor_it_is_meant_for() -> None:
    """The second attempt reads it at the end of its environment, though `act` has an adapter of its own."""
    advice = fields(discussion="Too short.", advice='{"act": "write more words", "query": "N/A"}')
    replies = [block("SUBMIT(answer='a')"), advice, block("SUBMIT(answer='long enough')")]
    lm = ScriptedLM(replies)
    with dspy.context(lm=lm):
        dspy.Refine(RLM(ASK), N=2, reward_fn=length, threshold=5)(question="?")
    first, _, second = lm.script.calls
    assert "write more words" not in first[-1]["content"]
    assert second[-1]["content"].endswith("Hint from an earlier attempt: write more words")


class InTurn(dspy.Module):
    """Two RLMs, whose `act` and whose `query` are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = RLM("question -> draft"), RLM("draft -> answer")

    def forward(self, question: str) -> Any:
        """Answer, and answer better."""
        return self.b(draft=self.a(question=question).draft)


def test_the_advice_of_refine_reaches_each_rlm_and_each_query_of_a_program() -> None:
    """They share one signature, by which Refine itself could not tell them."""
    names = ["a.act", "a.query", "b.act", "b.query"]
    advice = fields(discussion="Short.", advice=json.dumps({name: f"advice to {name}" for name in names}))
    asks = block("SUBMIT(llm_query('?'))")
    lm = ScriptedLM([asks, "a", asks, "a", advice, asks, "long", asks, "long enough"])
    with dspy.context(lm=lm):
        dspy.Refine(InTurn(), N=2, reward_fn=length, threshold=5)(question="?")
    for name, messages in zip(names, lm.script.calls[5:], strict=True):
        said = messages[-1 if name.endswith("act") else 0]["content"]
        assert said.endswith(f"Hint from an earlier attempt: advice to {name}")
    assert "advice to" not in str(lm.script.calls[:4])


def test_refine_works_when_a_run_has_to_extract(capsys: pytest.CaptureFixture[str]) -> None:
    """The adapter that Refine puts in place meets a predictor that the module does not name."""
    advice = fields(discussion="Too short.", advice='{"act": "write more", "query": "N/A"}')
    replies = [block("SUBMIT(answer='a')"), advice, block("1"), fields(answer="long enough")]
    with dspy.context(lm=ScriptedLM(replies), trace=[]):
        best = dspy.Refine(RLM(ASK, max_iters=1), N=2, reward_fn=length, threshold=5)(question="?")
    assert (best.answer, best.stop) == ("long enough", "extracted")
    assert capsys.readouterr().out == ""


def test_bootstrapped_demos_are_conversations_in_the_prompt() -> None:
    """Each is a whole run: its environment, then what was written and what came out, to the SUBMIT."""
    seen = block("print(question)", "Look.")
    submits = block("SUBMIT(answer=question)", "Sure.")
    lm = ScriptedLM(act=lambda said: seen if begins(said[-1]) else submits)
    optimizer = dspy.BootstrapFewShot(metric=exact, max_bootstrapped_demos=2, max_labeled_demos=2)
    with dspy.context(lm=lm):
        compiled = optimizer.compile(RLM(ASK), trainset=questions(3))
    assert compiled.act.demos
    messages = run(compiled, ANSWER).lm.script.calls[0]
    first = [message for message in messages if message["role"] == "assistant"]
    assert {message["content"] for message in first} <= {seen, submits}
    assert [message["role"] for message in messages[1:]] == ["user", "assistant"] * (len(messages) // 2 - 1) + [
        "user"
    ]
    assert "q0" in messages[1]["content"]
    assert ["Task:" in message["content"] for message in messages] == [True] + [False] * (len(messages) - 1)
    assert "'?'" in messages[-1]["content"]


def test_copro_rewrites_act_and_the_protocol_stays() -> None:
    """An optimizer owns the instructions; the environment is not among them."""
    proposal = fields(proposed_instruction="New words.", proposed_prefix_for_output_field="Code:")
    optimizer = dspy.COPRO(metric=exact, breadth=2, depth=1)
    with dspy.context(lm=ScriptedLM(lambda _: proposal, act=lambda _: ECHO)):
        compiled = optimizer.compile(RLM(ASK), trainset=questions(2), eval_kwargs={"num_threads": 1})
    sent = run(compiled, ANSWER).lm.script.calls[0]
    assert "SUBMIT(answer=...)" in sent[1]["content"]


def test_a_shipped_policy_is_listed_and_loads() -> None:
    """`policy=` takes each of them by name."""
    for name in signatures.shipped_policies():
        assert RLM(ASK, policy=name).act.signature.instructions


def test_a_policy_file_sets_act(tmp_path: Path) -> None:
    """By path: version, and the state of `act`."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"version": 1, "act": learned().act.dump_state()}))
    assert RLM(ASK, policy=path).act.signature.instructions == "Learned to act."
    assert RLM(ASK, policy=None).act.signature.instructions == signatures.Act.instructions


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{}", "Invalid policy .*mine.json"),
        ("[", "Invalid policy .*mine.json"),
        ('{"version": 9, "act": {}}', "it is of version 9, and this release reads 1; install a newer one"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(tmp_path: Path, content: str, told: str) -> None:
    """The message names the file and what this release reads."""
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=told):
        RLM(ASK, policy=path)


def test_usage_of_an_enclosing_program_is_tracked() -> None:
    """`track_usage` on the outermost module counts the calls of the run inside it."""

    class Program(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rlm = RLM(ASK)

        def forward(self, question: str) -> Any:
            return self.rlm(question=question)

    with dspy.context(track_usage=True):
        prediction = run(Program(), block("SUBMIT(answer=llm_query('x'))"), "y").prediction
    assert prediction.get_lm_usage()["scripted/lm"]["prompt_tokens"] == prediction.usage["input_tokens"]


async def test_asyncify_leaves_it_working() -> None:
    """DSPy's wrapper takes it like any module."""
    with dspy.context(lm=ScriptedLM([ANSWER])):
        assert (await dspy.asyncify(RLM(ASK))(question="?")).answer == "a"
