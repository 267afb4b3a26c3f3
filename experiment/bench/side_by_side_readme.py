"""The short form of the side-by-side tables, which stands in the documentation between two marks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from side_by_side_report import number

sys.path.insert(0, str(Path(__file__).parents[1]))
import marked  # scripts of that folder are run, not installed

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "side by side"
HEAD = (
    "engine",
    "a turn over 100 MB, ms",
    "30 turns, characters sent",
    "200 sub-calls at once, s",
    "bad cells survived",
)
ENGINES = ("ours", "ours, local", "dspy.RLM", "rlms", "predict-rlm", "recursive-llm", "minrlm")


def short_form(tables: Mapping[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Return the table of what an engine did in four measures; empty where it was not measured or failed."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for engine in ENGINES:
        values = (
            _value(tables, engine, "overhead", "100 MB", "turn_ms"),
            _value(tables, engine, "long run", "", "chars"),
            _value(tables, engine, "sub-calls", "200 at once", "seconds"),
        )
        lines.append(f"| {engine} | {' | '.join(values)} | {_survived(tables, engine)} |")
    return "\n".join(lines) + "\n"


def write_short_form(tables: Mapping[tuple[str, str], list[dict[str, Any]]]) -> None:
    """Put the short form into the documentation, between its marks."""
    marked.put(NAME, short_form(tables))


def _value(tables: Any, engine: str, measure: str, setting: str, name: str) -> str:
    found = [row for row in tables[measure, setting] if row["engine"] == engine and not row.get("failed")]
    return number(found[0].get(name)) if found else ""


def _survived(tables: Any, engine: str) -> str:
    """Return how many of the bad cells a run survived with neither process, files nor secrets harmed."""
    rows = [row for (measure, _), of in tables.items() if measure == "bad cells" for row in of]
    mine = [row for row in rows if row["engine"] == engine]
    good = sum(row["became"] == "went on" and not row["host"] for row in mine)
    return f"{good} of {len(mine)}" if mine else ""
