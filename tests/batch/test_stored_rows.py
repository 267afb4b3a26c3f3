"""What a batch stores of each example, and what a later batch reads of it."""

from __future__ import annotations

import datetime as dt
import json
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from pydantic import BaseModel

from rlm_dspy import RLM, RLMError, batch
from rlm_dspy.testing import ScriptedLM
from tests.batch.counting import ANSWER, CountingLM, Fails, examples, program

if TYPE_CHECKING:
    from pathlib import Path


def test_a_second_batch_pays_only_for_what_is_new(lm: CountingLM, tmp_path: Path) -> None:
    """Rows come back with their types; equal examples are runs of their own."""
    with dspy.context(lm=lm):
        first = list(batch.run(program(), examples(2), store=tmp_path))
        again = list(batch.run(program(), [*examples(3), *examples(1)], store=tmp_path))
    assert (len(first), lm.requests) == (2, 4)
    assert sorted((row.index, row.stored, row.prediction.words) for row in again) == [
        (0, True, 20_000),
        (1, True, 20_001),
        (2, False, 20_002),
        (3, False, 20_000),
    ]
    stored = next(row for row in again if row.index == 0)
    before = next(row for row in first if row.index == 0)
    assert stored.prediction.trajectory[0]["code"] == before.prediction.trajectory[0]["code"]
    assert (stored.usage, stored.attempts) == (before.usage, 1)


class Company(BaseModel):
    """A class that a pickle names."""

    name: str


COMPANIES = "```python\nSUBMIT(day='2020-01-02', companies=[{'name': 'Acme'}])\n```"


class Composed(dspy.Module):
    """Has no signature, and returns what its RLM found."""

    def __init__(self, company: type[BaseModel] = Company) -> None:
        super().__init__()
        signature = dspy.Signature("text -> day").with_updated_fields("day", type_=dt.date)
        self.find = RLM(signature.append("companies", dspy.OutputField(), type_=list[company]))  # type: ignore[valid-type]

    def forward(self, text: str) -> dspy.Prediction:
        found = self.find(text=text)
        return dspy.Prediction(day=found.day, companies=found.companies, found=found)


@pytest.mark.parametrize("executor", [None, lambda: ProcessPoolExecutor(1)], ids=["threads", "processes"])
def test_a_stored_row_of_a_composed_program_has_the_types_and_the_report_of_the_first_run(
    executor: Any, tmp_path: Path
) -> None:
    """A program without a signature may return anything."""
    (tmp_path / "requests").mkdir()
    texts = [dspy.Example(text="Acme").with_inputs("text")]
    with dspy.context(lm=CountingLM(tmp_path / "requests", reply=COMPANIES)):
        for stored in (False, True):
            (row,) = batch.run(Composed(), texts, executor, tmp_path / "runs")
            assert row.stored is stored
            assert row.prediction.companies == [Company(name="Acme")]
            assert row.prediction.day == row.prediction.found.day == dt.date(2020, 1, 2)
            row.prediction.found.report(tmp_path / f"{stored}.html")
            assert "Acme" in (tmp_path / f"{stored}.html").read_text()


def test_a_prediction_whose_pickle_is_missing_changed_or_impossible_is_read_from_its_line(tmp_path: Path) -> None:
    """A pickle is read only if it is the one that the line names."""

    class Local(BaseModel):
        name: str

    texts = [dspy.Example(text="Acme").with_inputs("text")]
    with dspy.context(lm=ScriptedLM(lambda messages: COMPANIES)):
        list(batch.run(Composed(), texts, store=tmp_path / "a"))
        (path,) = (tmp_path / "a").rglob("*.pickle")
        for change in (lambda: path.write_bytes(path.read_bytes() + b"."), path.unlink):
            change()
            (row,) = batch.run(Composed(), texts, store=tmp_path / "a")
            assert (row.stored, row.prediction.day, row.prediction.companies) == (
                True,
                "2020-01-02",
                [{"name": "Acme"}],
            )
        for _ in range(2):
            (row,) = batch.run(Composed(Local).find, texts, store=tmp_path / "b")
            assert row.prediction.companies == [Local(name="Acme")]
    assert row.stored
    assert not list((tmp_path / "b").rglob("*.pickle"))


def test_a_row_of_another_version_is_named(tmp_path: Path) -> None:
    """It is neither paid for again without a word, nor an error of Python's."""
    with dspy.context(lm=ScriptedLM(lambda messages: ANSWER)):
        list(batch.run(program(), examples(1), store=tmp_path))
        (path,) = tmp_path.glob("*.jsonl")
        key = json.loads(path.read_text())["key"]
        path.write_text(json.dumps({"key": key, "answer": 1}) + "\n")
        with pytest.raises(RLMError, match=f"example 0 in .* was not written by this version .*{key}"):
            list(batch.run(program(), examples(1), store=tmp_path))


def test_another_program_has_other_rows(lm: CountingLM, tmp_path: Path) -> None:
    """The state of the program is part of the key."""
    with dspy.context(lm=lm):
        list(batch.run(program(), examples(1), store=tmp_path))
        changed = program()
        changed.act.demos = [dspy.Example(code="SUBMIT(words=1)", reasoning="", environment="", trajectory={})]
        list(batch.run(changed, examples(1), store=tmp_path))
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    assert lm.requests == 2


def test_rows_are_lines_of_json(lm: CountingLM, tmp_path: Path) -> None:
    """They can be read without this library, and a torn line of a killed batch is run again."""
    with dspy.context(lm=lm):
        list(batch.run(program(), examples(2), store=tmp_path))
        (path,) = tmp_path.glob("*.jsonl")
        lines = path.read_text().splitlines()
        assert {json.loads(line)["prediction"]["fields"]["words"] for line in lines} == {20_000, 20_001}
        path.write_text(lines[0] + "\n" + lines[1][:100])
        rows = list(batch.run(program(), examples(2), store=tmp_path))
    assert sorted(row.stored for row in rows) == [False, True]
    assert lm.requests == 3


def test_files_that_code_wrote_are_kept(tmp_path: Path) -> None:
    """They come back from the store."""
    code = "import pathlib\npathlib.Path('output').mkdir(exist_ok=True)\n"
    code += "pathlib.Path('output/a.txt').write_text('found')\nSUBMIT(words=1)"
    with dspy.context(lm=ScriptedLM(lambda messages: f"```python\n{code}\n```")):
        for _ in range(2):
            (row,) = batch.run(program(), examples(1), store=tmp_path)
            assert row.prediction.artifacts["a.txt"].data == b"found"
    assert row.stored


def test_no_key_and_no_password_of_a_model_is_stored(tmp_path: Path) -> None:
    """A provider quotes the key in its error, a client the address."""
    key, password = "mine-abcdefghijklmnop", "user:secret-of-the-server"
    failing = Fails(
        [ValueError(f"Incorrect key: {key}"), ValueError(f"cannot connect to http://{password}@localhost")]
    )
    numbers = [dspy.Example(number=n).with_inputs("number") for n in range(2)]
    with dspy.context(lm=dspy.LM("openai/x", api_key=key)):
        rows = list(batch.run(failing, numbers, store=tmp_path))
    assert sorted(row.error for row in rows) == [
        "ValueError: Incorrect key: ***",
        "ValueError: cannot connect to http://***@localhost",
    ]
    stored = "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    assert key not in stored
    assert password not in stored


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "folder"])
def test_a_path_whose_file_has_changed_is_another_example(name: str, lm: CountingLM, tmp_path: Path) -> None:
    """As a `Text` of it is."""
    path = tmp_path / name
    file = path / "a.txt" if name == "folder" else path
    file.parent.mkdir(exist_ok=True)
    lm = CountingLM(lm.made_with[0], reply="```python\nSUBMIT(words=number)\n```")
    with dspy.context(lm=lm):
        for text in ("a,b\n1,2\n", "", "a,b\n1,2\n3,4\n"):
            if text:
                file.write_text(text)
            given = dspy.Example(context=path, number=1).with_inputs("context", "number")
            list(batch.run(RLM("context, number: int -> words: int"), [given], store=tmp_path / "runs"))
    assert lm.requests == 2
