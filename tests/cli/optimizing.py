"""A folder with a program and its data, and `rlm-dspy optimize` in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from typer.testing import CliRunner

from rlm_dspy.cli.app import app
from rlm_dspy.interpreters import LocalPythonInterpreter
from tests.optimize.matrix_programs import ScriptedActor, examples

if TYPE_CHECKING:
    from typer.testing import Result

PROGRAM = """
from rlm_dspy import RLM, Limits

program = RLM("context, question -> answer", limits=Limits(max_iters=4, max_llm_calls=8), policy=None)
"""


@pytest.fixture
def program_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with a program and its data."""
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)
    Path("text.txt").write_text(str(examples(1)[0].context))
    for name, count, first in [("train", 4, 0), ("dev", 2, 10), ("test", 30, 20)]:
        lines = [
            {"context": {"file": "text.txt"}, "question": f"key k{n}", "answer": f"v{n}"}
            for n in range(first, first + count)
        ]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def optimize(*arguments: str, lm: Any = None) -> Result:
    """Run `rlm-dspy optimize` in this process, with a scripted LM and code in this process."""
    given = ["optimize", "program.py", "--train", "train.jsonl", "--out", "mine.json", *arguments]
    with dspy.context(lm=lm or ScriptedActor(), interpreter_factory=LocalPythonInterpreter):
        return CliRunner().invoke(app, given)
