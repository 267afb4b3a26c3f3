"""Shows predictions and modules as HTML for notebooks, and as text for terminals."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import dspy
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rlm_dspy.limits import Limits
from rlm_dspy.report.formatting import used
from rlm_dspy.report.record import STOPS, describe_stop
from rlm_dspy.report.rendering import template, to_json
from rlm_dspy.report.write_report import report_html
from rlm_dspy.subcalls.ad_hoc import written
from rlm_dspy.text import clip, counted, one_line, printable, write_whole
from rlm_dspy.trajectory import KINDS

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from rich.console import RenderableType

    from rlm_dspy.report.record import Record
    from rlm_dspy.subcalls.interface import Program
    from rlm_dspy.trajectory import Tone

_VALUE_CHARS = 2_000
_LINE_CHARS = 70
_TEXT_WIDTH = 100
_STYLES: dict[Tone, str] = {"": "dim", "good": "green", "warn": "yellow", "bad": "red"}
_ALWAYS_SHOWN = ("max_iters", "max_llm_calls")


@dataclass(frozen=True)
class ReportPage:
    """The report of a run as an HTML page. A notebook shows it inline.

    Attributes:
        html: The page: no script, nothing fetched.
        path: The file that holds it; None if it was not written.
    """

    html: str = field(repr=False)
    path: Path | None = None

    @classmethod
    def of(cls, record: Record, path: str | os.PathLike[str] | None) -> ReportPage:
        """Return the report of a record; write it to a file if there is a path."""
        page = cls(report_html(record), None if path is None else Path(path))
        if page.path:
            write_whole(page.html, page.path)
        return page

    def _repr_html_(self) -> str:
        """Return a frame, so that the page and the notebook keep their own styles."""
        return (
            f'<iframe srcdoc="{escape(self.html)}" sandbox width="100%" height="640" '
            'style="border: 1px solid #8888; resize: vertical"></iframe>'
        )


def prediction_html(record: Record) -> str:
    """Return the answer of a run, its pictures and its turns, folded shut, as a part of an HTML page."""
    return template("prediction.html").render(record=record)


def prediction_text(record: Record) -> RenderableType:
    """Return the answer of a run with a line for its end, each turn and each file."""
    table = _table((name, clip(to_json(value), _VALUE_CHARS)) for name, value in record.outputs.items())
    ended = f"{describe_stop(record)} ({used(record.usage, record.usage.seconds)})"
    end = Text(f"{ended}: {record.error}" if record.error else ended, _STYLES[STOPS[record.stop].tone])
    turns = [
        Text.assemble(
            f"{number}. ",
            (f"{KINDS[step.kind].label}: ", _STYLES[KINDS[step.kind].tone]),
            printable(one_line(step.code or step.reasoning, _LINE_CHARS)),
        )
        for number, step in enumerate(record.trajectory, 1)
    ]
    files = [
        Text(printable(f"{name}: {file.left_out or file.media_type}")) for name, file in record.artifacts.items()
    ]
    return Group(table, end, *turns, *files)


def module_html(rlm: Program) -> str:
    """Return what an RLM is made of as a part of an HTML page."""
    return template("module.html").render(name=type(rlm).__name__, facts=_facts(rlm))


def module_text(rlm: Program) -> RenderableType:
    """Return what an RLM is made of."""
    return Group(Text(type(rlm).__name__, "bold"), _table(_facts(rlm).items()))


def as_text(shown: RenderableType) -> str:
    """Return what rich shows, without colours."""
    file = StringIO()
    Console(file=file, width=_TEXT_WIDTH, force_terminal=False, force_jupyter=False).print(shown)
    return "\n".join(map(str.rstrip, file.getvalue().splitlines()))


def _table(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(printable(value)))
    return table


def _facts(rlm: Program) -> dict[str, str]:
    """Return what an RLM is made of, by what it is; nothing that is as it is by default."""
    lm, sub_lm = (getattr(lm, "model", "") for lm in (rlm.act.lm or dspy.settings.lm, rlm.sub_lm))
    by_default = asdict(Limits())
    limits = {
        name: value
        for name, value in asdict(rlm.limits).items()
        if name in _ALWAYS_SHOWN or value != by_default[name]
    }
    tools = [f"{name}: {one_line(tool.desc or '', _LINE_CHARS)}" for name, tool in rlm.tools.items()]
    facts = {
        "signature": written(rlm.signature),
        "instructions": clip(rlm.signature.instructions, _VALUE_CHARS),
        "model": lm or "none: dspy.configure(lm=...)",
        "model of sub-calls": sub_lm,
        "limits": ", ".join(f"{name}={value}" for name, value in limits.items()),
        "tools": "\n".join(tools),
        "subs": ", ".join(rlm.subs.names()),
        "demos": counted(len(rlm.act.demos), "demo") if rlm.act.demos else "",
    }
    return {name: fact for name, fact in facts.items() if fact}
