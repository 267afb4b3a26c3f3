"""The examples that people copy run, and print what their code found, with replies that are scripted here."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import dspy
import pytest

from rlm_dspy import models
from rlm_dspy.testing import ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rlm_dspy.testing import Messages

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "experiment" / "examples"
DATA = EXAMPLES / "data"

INVOICES = """read = dict(zip(folder, read_invoice.map([folder[name] for name in folder])))
SUBMIT(rows={name: invoice for name, invoice in read.items() if invoice})"""
REPOSITORY = [
    "hits = repo.grep('def read_value', '**/*.py')\nprint(hits)",
    "file, line, code = hits[0]\nSUBMIT(answer='In read_value.', places=[dict(file=file, line=line, code=code)])",
]
POLICIES = """read = list_rules.map([dict(file=name, policy=policies[name]) for name in policies])
found = [rule for each in read for rule in each]
lost = [rule for rule in found if rule.topic == "lost laptop"]
SUBMIT(pairs=[(lost[0], lost[1], "an hour or the end of the trip")])"""
LOGS = """import re
from datetime import datetime
bad = [line for line in log.splitlines() if re.search("WARN|ERROR", line)]
groups = [[line for line in bad if line[11:13] == hour] for hour in ("08", "09")]
found = zip(groups, find_cause.map(["\\n".join(lines) for lines in groups]), ("outage", "low"))
SUBMIT(incidents=[dict(began=lines[0][:19], severity=how, cause=cause) for lines, cause, how in found])"""
PAPERS = """found = dict(zip(papers, read_paper.map([dict(paper=papers[n], question=question) for n in papers])))
assert all(each.quote in papers[name] for name, each in found.items())
SUBMIT(findings=found, review="; ".join(
    f"{name} {each.stance}" for name, each in found.items()))"""


def reads_invoice(messages: Messages) -> str:
    """Read the total as the model should: a reminder is no invoice."""
    text = messages[-1]["content"]
    if "Reminder" in text:
        return fields(invoice="null")
    number, seller, total = ("A-1042", "Aster", "231.00") if "A-1042" in text else ("2026/77", "Kite", "396.00")
    invoice = f'{{"number": "{number}", "seller": "{seller}", "issued": "2026-03-03", "total": "{total}"}}'
    return fields(invoice=invoice)


def lists_rules(messages: Messages) -> str:
    """List the rule on lost devices, if the policy has one."""
    text = messages[-1]["content"]
    line = next((line for line in text.splitlines() if line.startswith("A lost")), "")
    file = "travel.md" if "trip" in line else "security.md"
    rule = f'[{{"file": "{file}", "topic": "lost laptop", "quote": "{line}"}}]'
    return fields(rules=rule if line else "[]")


def finds_cause(messages: Messages) -> str:
    """Name the first line as the cause."""
    return fields(
        cause="the pool of connections" if "pool exhausted" in messages[-1]["content"] else "a full disk"
    )


def reads_paper(messages: Messages) -> str:
    """Judge by words of the paper."""
    text = messages[-1]["content"]
    stance = next(stance for word, stance in STANCES.items() if word in text)
    quote = next(line for line in text.splitlines() if line.startswith(("After a nap", "Recall did", "Attention")))
    return fields(finding=f'{{"stance": "{stance}", "quote": "{quote}"}}')


STANCES = {"After a nap": "supports", "did not differ": "opposes", "caffeine": "silent"}
RUNS: dict[str, tuple[list[str], list[str], Callable[[Messages], str], list[str]]] = {
    "invoices": ([str(DATA / "invoices")], [INVOICES], reads_invoice, ["aster.pdf", "Decimal('396.00')"]),
    "repository": ([str(ROOT / "rlm_dspy"), "Where?"], REPOSITORY, str, ["repl/coercion.py:", "def read_value"]),
    "contradictions": (
        [str(DATA / "policies")],
        [POLICIES],
        lists_rules,
        ["security.md: A lost", "travel.md: A lost"],
    ),
    "logs": (
        [str(DATA / "service.log")],
        [LOGS],
        finds_cause,
        ["'outage' cause='the pool", "'low' cause='a full"],
    ),
    "literature": (
        [str(DATA / "papers"), "Naps?"],
        [PAPERS],
        reads_paper,
        ["okoro_2023.md opposes", "sato_2022.md silent"],
    ),
}
"""Of each example: its arguments, the code that the model writes, the replies to sub-calls, and what it prints."""


@pytest.fixture
def _default_settings() -> Iterator[None]:
    """Take back what an example configures."""
    lm = dspy.settings.lm
    yield
    dspy.configure(lm=lm)


@pytest.mark.usefixtures("_default_settings")
@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs_and_prints_what_it_found(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a script, with its own arguments; only the model is not its own."""
    arguments, code, subs, printed = RUNS[name]
    lm = ScriptedLM(act=[block(each) for each in code], subs=subs)

    monkeypatch.setattr(models, "choose_model", lambda: lm)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert [part for part in printed if part not in shown] == []


def test_every_example_is_run_and_has_fewer_than_40_lines() -> None:
    """A new one needs its replies above."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(RUNS)
    lengths = {path.stem: len(path.read_text("utf-8").splitlines()) for path in EXAMPLES.glob("*.py")}
    assert {name: count for name, count in lengths.items() if count >= 40} == {}
