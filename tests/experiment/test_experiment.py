"""The example scripts: each runs as a program, from any directory, and shows what it says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORPUS = [
    "```python\nread = byline.map([p[:300] for p in context.split('\\n# ')[1:3]])\nprint(read)\n```",
    *['{"author": "A. Writer", "year": 2023}'] * 2,
    "```python\nSUBMIT(authors=sorted({line.author for line in read if line.year == year}))\n```",
]
SCRIPTS = (
    "dspy_rlm_simple.py",
    "dspy_rlm.py",
    "corpus.py",
    "custom_interpreter.py",
    "rlm_read_big_article.py",
    "compare.py",
)
FIND = """```python
import re
print(re.findall(r"In its first month Polly held [0-9,]+ conversations", context))
```"""
SUBMIT = "```python\nSUBMIT(answer='38,200')\n```"
WITH_SCRIPT = """
import json, os, runpy, sys
import dspy
from rlm_dspy.testing import ScriptedLM
script, replies = json.loads(sys.argv.pop(1))
dspy.configure(lm=ScriptedLM(replies))
sys.argv[0] = script
sys.path.insert(0, os.path.dirname(script))  # as for a script that is run by its path
runpy.run_path(script, run_name="__main__")
"""
WITH_EMBEDDED = """
import runpy, sys
import dspy
from rlm_dspy.embedded.engine import embedded_lm
script = sys.argv.pop(1)
lm = embedded_lm(cache=False)
dspy.configure(lm=lm)
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""


def run(program: str, *arguments: str, directory: Path) -> str:
    """Run a program in a directory that is not the checkout; return what it printed. It must succeed."""
    unwanted = ("MLFLOW", "LM_STUDIO", "RLM_DSPY")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    kept["RLM_DSPY_MODELS"] = os.environ["RLM_DSPY_MODELS"]  # SmolLM2 alone
    search = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=directory,
        env={**kept, "PYTHONPATH": search},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def script(name: str) -> str:
    return str(ROOT / "experiment" / name)


def with_script(name: str, *arguments: str, replies: list[str], directory: Path) -> str:
    return run(WITH_SCRIPT, json.dumps([script(name), replies]), *arguments, directory=directory)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_in_the_readme(name: str) -> None:
    assert f"`{name}`" in (ROOT / "experiment" / "README.md").read_text(encoding="utf-8")


def test_the_simple_script_prints_the_answer(tmp_path: Path) -> None:
    printed = with_script("dspy_rlm_simple.py", replies=[FIND, SUBMIT], directory=tmp_path)
    assert printed == "38,200\n(submitted after 2 turns)\n"


@pytest.mark.by_hand
@pytest.mark.usefixtures("smollm2")
def test_the_simple_script_runs_with_the_embedded_model(tmp_path: Path) -> None:
    printed = run(WITH_EMBEDDED, script("dspy_rlm_simple.py"), directory=tmp_path)
    assert re.search(r"\(submitted after \d turns\)$", printed.rstrip())


@pytest.mark.long
def test_the_full_script_shows_every_step_and_logs_them(tmp_path: Path) -> None:
    printed = with_script("dspy_rlm.py", replies=[FIND, SUBMIT], directory=tmp_path)
    assert "--- turn 1: output, " in printed
    assert "['In its first month Polly held 38,200 conversations']" in printed
    summary = dict(line.split(maxsplit=1) for line in printed.partition("=== summary\n")[2].splitlines()[:4])
    assert summary == {
        "answer": "38,200",
        "stop": "submitted",
        "turns": "2, of which 0 failed",
        "sub-calls": "0, of which 0 failed",
    }
    articles = (ROOT / "experiment" / "articles.md").read_text(encoding="utf-8").splitlines()
    (line,) = [number for number, text in enumerate(articles, start=1) if "38,200" in text]
    assert f"\nin text    line {line}\n" in printed
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        spans = [name for (name,) in store.execute("select name from spans")]
    assert {"turn 1", "turn 2: SUBMIT"} <= set(spans)


def test_the_corpus_script_shows_what_each_sub_call_answered(tmp_path: Path) -> None:
    printed = with_script("corpus.py", replies=CORPUS, directory=tmp_path)
    assert printed.count("    byline [sub]: Prediction(author='A. Writer', year=2023)\n") == 2
    assert (
        "\n0 of 2 sub-calls agree with the headers\nanswer: ['A. Writer']\nright:  ['Desmond Achterberg', "
        in printed
    )


@pytest.mark.long
@pytest.mark.usefixtures("smollm2")
def test_the_embedded_model_answers_a_typed_sub_call_for_each_article(tmp_path: Path) -> None:
    """The code is played back; what the sub-calls answer, and that it fits the types, is the model's own."""
    printed = run(
        "import runpy, sys\nrunpy.run_path(sys.argv.pop(1), run_name='__main__')",
        *embedded_corpus(),
        directory=tmp_path,
    )
    assert "3 of 3 were read" in printed
    assert "[child, 1 turn(s) inside]" in printed


def embedded_corpus() -> tuple[str, ...]:
    return (script("corpus.py"), "--model", "embedded", "--most", "3")


def test_both_custom_interpreters_serve_both_modules_and_a_model_is_reported_as_it_was(tmp_path: Path) -> None:
    ignorant = ["I do not know."] * 9  # dspy.RLM cannot read that; ours tells the model what is missing
    printed = with_script("custom_interpreter.py", "--turns", "1", replies=ignorant, directory=tmp_path)
    mechanics, _, model = printed.partition("=== scripted/lm (the answer is 21)\n")
    assert mechanics.count("rlm_dspy.RLM: answer 21, submitted after 3 turns") == 2
    assert mechanics.count(" dspy.RLM: answer 21, ended after 3 turns") == 2
    assert "refused, it imports subprocess; ran 2 lines; ran 1 lines" in mechanics
    ours, upstream, right = model.splitlines()[1:]
    assert ours == "  rlm_dspy.RLM: answer None, unanswered after 1 turns"
    assert upstream.startswith("  dspy.RLM: the model could not do it (AdapterParseError: ")
    assert right == "0 of 2 right"
