"""Writes the HTML report of a run: one self-contained file without scripts, from `templates/`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlm_dspy.report.rendering import template
from rlm_dspy.text import write_whole

if TYPE_CHECKING:
    import os

    from rlm_dspy.report.record import Record


def write_report(record: Record, path: str | os.PathLike[str]) -> None:
    """Write a run as an HTML file, atomically.

    Args:
        record: The run.
        path: The file; an existing one is replaced.
    """
    write_whole(report_html(record), path)


def report_html(record: Record) -> str:
    """Return a run as a self-contained HTML page: no script, nothing fetched, all content escaped."""
    return template("report.html").render(record=record)
