"""The scripts of `experiment/bench` that measure this package: its shape, the journeys of a run, the start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "experiment" / "bench"
HOUSE = {
    "pyproject.toml": """
        [tool.setuptools.package-dir]
        "rlm_dspy" = "rlm_dspy"
        "rlm_dspy.interpreters" = "interpreters"
    """,
    "rlm_dspy/__init__.py": "from rlm_dspy.loop import Loop",
    "rlm_dspy/errors.py": '''
        """Two lines
        of text."""

        # a comment
        class Wrong(Exception):
            """A docstring."""


        LIMIT = (
            1,
        )
        """Another."""
    ''',
    "rlm_dspy/loop/__init__.py": "from rlm_dspy.loop.run import Loop",
    "rlm_dspy/loop/run.py": '''
        from typing import TYPE_CHECKING, Any
        from rlm_dspy.errors import Wrong
        if TYPE_CHECKING:
            from rlm_dspy.loop.turn import Turn
            from rlm_dspy.interpreters.host.process import Process

        class Loop:
            def run(self, turn: "Turn", given: dict[str, Any], other: object, *, more: Any) -> None:
                """Run."""
                raise Wrong
    ''',
    "rlm_dspy/loop/turn.py": """
        class Turn:
            def take(self, process: int):
                from rlm_dspy.loop.run import Loop
                return Loop
    """,
    "interpreters/__init__.py": "from rlm_dspy.interpreters.host.process import Process",
    "interpreters/host/__init__.py": "",
    "interpreters/host/process.py": "from . import wire\nfrom ..base import Base\nProcess = wire, Base",
    "interpreters/host/wire.py": "",
    "interpreters/base.py": "Base = int",
}
"""A checkout in small."""


def run(script: str, *arguments: str) -> str:
    """Run a script of the bench; return what it printed. It must succeed."""
    command = [sys.executable, str(BENCH / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def small_house(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What is printed of it."""
    folder = tmp_path_factory.mktemp("house")
    for name, text in HOUSE.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip(), encoding="utf-8")
    return run("shape.py", str(folder))


def test_parts_stand_above_what_they_import(small_house: str) -> None:
    floors = ["floor  2  __init__", "floor  1  loop/ (3)", "floor  0  errors, interpreters/ (5)"]
    assert "\n".join(floors) in small_house
    assert "\nloop -> errors 1, interpreters 0+1\n" in small_house
    assert "\ninterpreters -> " not in small_house


def test_a_circle_that_only_type_checkers_see_is_one(small_house: str) -> None:
    assert "\nbetween parts: none\nof modules: 1\n  2: loop.run, loop.turn\n" in small_house
    assert "\nof modules at run time, `__init__` included: none\n" in small_house


def test_code_is_counted_without_comments_and_strings_that_stand_alone(small_house: str) -> None:
    assert "\n| rlm_dspy | 2 | 13 | 5 | 0 |\n" in small_house
    assert "\n| loop.run.Loop.run | 3 | 2 |\n" in small_house


def test_object_and_dicts_of_any_are_as_loose_as_any(small_house: str) -> None:
    assert (
        "\n## 5 annotated parameters\n\nloose: 3 (60.0%), of them Any 1, object 1, dict[str, Any] 1\n"
        in small_house
    )


def test_the_shape_of_this_checkout_has_no_circle(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "rlm_dspy", "interpreters", "signatures"):  # without the tests, which take long
        (tmp_path / name).symlink_to(ROOT / name)
    printed = run("shape.py", str(tmp_path))
    assert "\nbetween parts: none\nof modules: none\n" in printed


def test_the_journeys_of_a_run_are_counted_from_its_begin_to_its_end() -> None:
    """The lists begin and end where the journeys do, so a pause was found in its place."""
    printed = run("journeys.py", "--interpreter", "LocalPythonInterpreter", "--runs", "1", "--verbose")
    lists = dict(each.split(":\n") for each in printed.strip().split("\n\n")[1:])
    ways = {title.removeprefix("LocalPythonInterpreter, "): way.split(" > ") for title, way in lists.items()}
    assert {"context", "llm_query", "SUBMIT", "llm_query, with max_cost"} < ways.keys()
    assert (ways["llm_query"][0], ways["llm_query"][-1]) == ("in_repl", "in_repl")
    assert ways["llm_query"].count("in_repl") == 2
    for title, way in ways.items():
        assert f"| {title} | {len(set(way))} | {len(way) - 1} |" in printed


def test_the_start_of_a_process_is_timed() -> None:
    printed = run("start.py", "--runs", "1", "--only", "rlm-dspy --help")
    assert "| `rlm-dspy --help` | " in printed
