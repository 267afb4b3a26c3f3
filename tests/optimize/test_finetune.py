"""Data for fine-tuning: what was sent and written, by predictor, of runs that went well."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import dspy
import pytest
from pydantic import Field

from rlm_dspy import RLM
from rlm_dspy.compute import Compute
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.optimize import export_chats, upstream
from rlm_dspy.testing import ScriptedLM
from tests.optimize.matrix_programs import ScriptedActor, Two, exact, examples
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ASK = "question -> answer"


@pytest.fixture(autouse=True)
def code_runs_in_this_process() -> Iterator[None]:
    """Run all code of these tests in this process."""
    with dspy.context(interpreter_factory=LocalPythonInterpreter):
        yield


def questions(*answers: str) -> list[dspy.Example]:
    """Return examples with these answers."""
    return [dspy.Example(question="?", answer=answer).with_inputs("question") for answer in answers]


def exported(path: Path, replies: list[Any], program: Any = None, **options: Any) -> tuple[list[Any], ScriptedLM]:
    """Export the chats of a program on scripted replies; return them and the LM."""
    lm = ScriptedLM(replies)
    with dspy.context(lm=lm):
        count = export_chats(program or RLM(ASK), questions("a"), path, metric=exact, **options)
    chats = [json.loads(line)["messages"] for line in path.read_text().splitlines()]
    assert len(chats) == count
    return chats, lm


def test_a_chat_is_what_was_sent_and_what_was_written(tmp_path: Path) -> None:
    """To the letter, a line a call: also what stands around the code in a reply."""
    replies = ["Well, look:\n\n```python\nprint(1)\n```\nSo.", block("SUBMIT(answer='a')")]
    chats, lm = exported(tmp_path / "c.jsonl", list(replies))
    assert [chat[:-1] for chat in chats] == lm.script.calls
    assert [chat[-1] for chat in chats] == [{"role": "assistant", "content": reply} for reply in replies]


def test_the_calls_of_one_predictor_are_taken(tmp_path: Path) -> None:
    """By its name."""
    replies = [block("SUBMIT(answer=llm_query('p'))"), "a"]
    ((_, user, reply),), _ = exported(tmp_path / "c.jsonl", replies, predictor="query")
    assert (user["content"], reply["content"]) == ("p", "a")
    with pytest.raises(ValueError, match=r"'nobody'; choose one of \['act', 'query'\]"):
        exported(tmp_path / "c.jsonl", [], predictor="nobody")


def test_two_rlms_are_told_apart(tmp_path: Path) -> None:
    """Though their signatures are alike."""
    with dspy.context(lm=ScriptedActor()):
        count = export_chats(Two(), examples(4), tmp_path / "c.jsonl", metric=exact, predictor="read.act")
    chats = [json.loads(line)["messages"] for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert count == len(chats) > 0
    assert all("- fact: str" in chat[1]["content"] for chat in chats)


def test_a_run_that_scored_too_little_is_left_out(tmp_path: Path) -> None:
    """Only what went well is imitated."""
    assert exported(tmp_path / "c.jsonl", [block("SUBMIT(answer='b')")])[0] == []
    assert len(exported(tmp_path / "c.jsonl", [block("SUBMIT(answer='b')")], min_score=0.0)[0]) == 1


def test_a_run_may_be_one_line(tmp_path: Path) -> None:
    """Its last call holds the turns before it."""
    replies = [block("print(1)"), block("print(2)"), block("SUBMIT(answer='a')")]
    (chat,), _ = exported(tmp_path / "c.jsonl", replies, each="run")
    assert [message["role"] for message in chat] == ["system", "user"] + ["assistant", "user"] * 2 + ["assistant"]


def test_a_run_that_lost_a_vote_is_not_taught(tmp_path: Path) -> None:
    """The one whose answer was given is, though its predictor was a copy."""
    replies = [block("SUBMIT(answer='b')"), block("SUBMIT(answer='a')"), block("SUBMIT(answer='a')")]
    (chat,), _ = exported(tmp_path / "c.jsonl", replies, RLM(ASK, compute=Compute(votes=3)))
    assert "SUBMIT(answer='a')" in chat[-1]["content"]


def test_an_answer_that_was_asked_for_again_is_not_taught(tmp_path: Path) -> None:
    """Of a sub whose constraint it broke."""
    signature = dspy.Signature("text -> score: int").with_updated_fields(
        "score", type_=Annotated[int, Field(le=5)]
    )
    replies = [block("SUBMIT(answer='a' if rate(text='t') == 3 else 'b')"), fields(score="9"), fields(score="3")]
    program = RLM(ASK, subs={"rate": signature})
    (chat,), _ = exported(tmp_path / "c.jsonl", replies, program, predictor="subs.rate")
    assert chat[-1]["content"] == fields(score="3")


class FinetunedLM(ScriptedActor):
    """A scripted model that can be fine-tuned: it keeps the data that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[list[dict[str, Any]]] = []

    def finetune(self, train_data: Any, train_data_format: Any, train_kwargs: Any = None) -> Any:
        """Keep the data; the job is done at once."""
        self.jobs.append(train_data)
        return self

    def result(self) -> Any:
        """Return the model as it was."""
        return self

    @property
    def thread(self) -> Any:
        """What is waited for."""
        return self

    def join(self) -> None:
        """End at once."""


def finetuned(program: Any, **options: Any) -> tuple[FinetunedLM, Any]:
    """Fine-tune a program with scripted jobs."""
    lm = FinetunedLM()
    program.set_lm(lm)
    optimizer = upstream.BootstrapFinetune(metric=exact, num_threads=8, **options)
    with dspy.context(lm=lm):
        optimizer.compile(program, trainset=examples(4))
    return lm, program


@pytest.mark.parametrize("make", [lambda: RLM("context, question -> answer"), Two], ids=["root", "two RLMs"])
def test_bootstrap_finetune_trains_on_what_each_predictor_sends(make: Any) -> None:
    """One job for all: each chat begins with messages that the model was sent."""
    lm, _ = finetuned(make())
    (job,) = lm.jobs
    sent = lm.script.calls
    assert job
    assert all(chat["messages"][:-1] in sent for chat in job)


def test_bootstrap_finetune_gives_each_predictor_its_own_calls() -> None:
    """With `multitask=False`: a job a predictor, whatever the order of the calls."""
    lm, program = finetuned(Two(), multitask=False)
    names = [name for name, _ in program.named_predictors()]
    jobs = dict(zip(names, lm.jobs, strict=True))
    assert {name for name, job in jobs.items() if job} == {"find.act", "read.act", "read.query", "polish"}
    assert all("- context: str" in chat["messages"][1]["content"] for chat in jobs["find.act"])
    assert all("- fact: str" in chat["messages"][1]["content"] for chat in jobs["read.act"])
    assert all("The last word of" in chat["messages"][1]["content"] for chat in jobs["read.query"])


def test_replies_that_were_of_no_use_are_not_taught(tmp_path: Path) -> None:
    """A turn without code, and a reply of a sub that could not be read and was asked for again."""
    chats, _ = exported(tmp_path / "c.jsonl", ["I wonder.", block("SUBMIT(answer='a')")])
    assert [chat[-1]["content"] for chat in chats] == [block("SUBMIT(answer='a')")]
    program = RLM(ASK, subs={"count": "text -> n: int"})
    replies = [block("n = count('x')\nSUBMIT(answer='a')"), "no number", "none", fields(n="1")]
    chats, lm = exported(tmp_path / "c.jsonl", replies, program, predictor="subs.count")
    assert len(lm.script.calls) >= 3
    assert [chat[-1]["content"] for chat in chats] == [fields(n="1")]


def test_an_example_that_raises_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If all do, the last error is raised."""
    path = tmp_path / "c.jsonl"
    lm = ScriptedLM([block("SUBMIT(answer='a')"), dspy.LMError("down"), block("SUBMIT(answer='a')")])
    with dspy.context(lm=lm):
        assert export_chats(RLM(ASK), questions("a", "a", "a"), path, metric=exact) == 2
    with dspy.context(lm=ScriptedLM([dspy.LMError("down")])), pytest.raises(dspy.LMError):
        export_chats(RLM(ASK), questions("a"), path, metric=exact)


def test_a_failed_export_leaves_the_one_before(tmp_path: Path) -> None:
    path, lm = tmp_path / "c.jsonl", ScriptedLM(lambda _: block("SUBMIT(answer='a')"))
    with dspy.context(lm=lm):
        export_chats(RLM(ASK), questions("a"), path, metric=exact)
        with pytest.raises(ZeroDivisionError):
            export_chats(RLM(ASK), questions("a"), path, metric=lambda *_: 1 / 0)
        calls = len(lm.script.calls)
        with pytest.raises(FileNotFoundError, match=r"none/c\.jsonl"):
            export_chats(RLM(ASK), questions("a"), tmp_path / "none" / "c.jsonl", metric=exact)
    assert len(path.read_text().splitlines()) == 1
    assert len(lm.script.calls) == calls


def test_an_interrupt_leaves_what_there_is(tmp_path: Path) -> None:
    """It is paid for."""
    path = tmp_path / "c.jsonl"
    lm = ScriptedLM([block("SUBMIT(answer='a')"), KeyboardInterrupt()])
    with dspy.context(lm=lm), pytest.raises(KeyboardInterrupt):
        export_chats(RLM(ASK), questions("a", "a"), path, metric=exact)
    assert len(path.read_text().splitlines()) == 1


def test_a_wrong_kind_of_line_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    """The message says which there are."""
    with pytest.raises(ValueError, match="'call', 'run'"):
        exported(tmp_path / "c.jsonl", [], each="turn")
