"""Builds the HTML report of a run: one self-contained file without scripts, from `templates/`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlm_dspy.observe.formatting import all_calls
from rlm_dspy.observe.record import STOPS, describe_stop
from rlm_dspy.observe.report.charts import plots, timeline
from rlm_dspy.observe.report.coverage_section import coverage, lineage
from rlm_dspy.observe.report.rendering import template
from rlm_dspy.observe.report.turns_section import turns
from rlm_dspy.text import price, seconds, share, write_whole

if TYPE_CHECKING:
    import os

    from rlm_dspy.observe.record import Record
    from rlm_dspy.observe.report.charts import Plot, Timeline
    from rlm_dspy.observe.report.coverage_section import InputView, ValueView
    from rlm_dspy.observe.report.turns_section import TurnView
    from rlm_dspy.trajectory import Mark


@dataclass(frozen=True)
class AnswerView:
    """The result of a run: its output fields with their types, and why it ended."""

    fields: tuple[tuple[str, str], ...]
    mark: Mark
    why: str


@dataclass(frozen=True)
class Tile:
    """A figure of a run, with a note below it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class ReportView:
    """All data that the page of a run shows."""

    record: Record
    headline: str
    answer: AnswerView
    tiles: tuple[Tile, ...]
    timeline: Timeline
    plots: tuple[Plot, ...]
    coverage: tuple[InputView, ...]
    lineage: tuple[ValueView, ...]
    turns: tuple[TurnView, ...]


def write_report(record: Record, path: str | os.PathLike[str]) -> None:
    """Write a run as an HTML file, atomically.

    Args:
        record: The run.
        path: The file; an existing one is replaced.
    """
    write_whole(report_html(record), path)


def report_html(record: Record) -> str:
    """Return a run as a self-contained HTML page: no script, nothing fetched, all content escaped."""
    view = ReportView(
        record=record,
        headline=_headline(record),
        answer=answer(record),
        tiles=_tiles(record),
        timeline=timeline(record),
        plots=plots(record.trajectory),
        coverage=coverage(record),
        lineage=lineage(record),
        turns=turns(record.trajectory, record.input_chars),
    )
    return template("report.html").render(view=view)


def answer(record: Record) -> AnswerView:
    """Return the view of a run's result."""
    types = record.output_types
    fields = (
        (f"{name}: {types[name]}" if name in types else name, _written(value))
        for name, value in record.outputs.items()
    )
    return AnswerView(tuple(fields), STOPS[record.stop], why(record))


def why(record: Record) -> str:
    """Return in a sentence why a run ended."""
    ended = describe_stop(record)
    error = f": {record.error}" if record.error else "."
    sentence = f"{ended[0].upper()}{ended[1:]}{error}"
    limit = record.usage.limit
    return f"{sentence} The limit {limit} was reached and ended it early." if limit else sentence


def _headline(record: Record) -> str:
    """Return the input `question` or `query`, else the instructions, else the signature."""
    return record.inputs.get("question") or record.inputs.get("query") or record.instructions or record.signature


def _tiles(record: Record) -> tuple[Tile, ...]:
    usage, calls = record.usage, list(all_calls(record.trajectory))
    failed, cached = sum(bool(call.error) for call in calls), sum(call.cached for call in calls)
    of_calls = ", ".join(f"{n:,} {what}" for n, what in ((failed, "failed"), (cached, "reused")) if n)
    errors = sum(step.failed for step in record.trajectory)
    hits = usage.cached_input_tokens / usage.input_tokens if usage.input_tokens else 0
    return (
        Tile("turns", f"{len(record.trajectory):,}", f"{errors:,} failed" if errors else ""),
        Tile("sub-calls", f"{len(calls):,}", of_calls),
        Tile("tokens in", f"{usage.input_tokens:,}", f"{share(hits)} cached by the provider" if hits else ""),
        Tile("tokens out", f"{usage.output_tokens:,}"),
        Tile("cost", price(usage.cost), f"{usage.calls:,} model calls"),
        Tile("time", seconds(usage.seconds)),
        *([Tile("limit reached", usage.limit)] if usage.limit else []),
    )


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
