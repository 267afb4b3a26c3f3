"""Formats the answer of a run, and how it ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rlm_dspy.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    import rlm_dspy
    from rlm_dspy.cli.task import Task
    from rlm_dspy.report.record import Record


def summary_of(record: Record) -> str:
    """Return one line: why the run ended and what it used."""
    from rlm_dspy.report.formatting import used
    from rlm_dspy.report.record import describe_stop

    usage = record.usage
    calls = counted(usage.calls, "model call")
    cached = f" ({usage.cached_calls} from DSPy's cache)" if usage.cached_calls else ""
    limit = f", ended by {usage.limit}" if usage.limit else ""
    return f"{describe_stop(record)}: {used(usage, usage.seconds)}, {calls}{cached}{limit}"


def answer_of(outputs: Mapping[str, JsonValue]) -> str:
    """Return the value of a single output field, or one line per field."""
    told = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in outputs.items()
    }
    return "\n".join(told.values() if len(told) == 1 else [f"{name}: {value}" for name, value in told.items()])


def about_of(rlm: rlm_dspy.RLM, task: Task, model: str) -> str:
    """Return what is asked about, by which models, in at most how many turns."""
    sub_model = f", sub-calls {rlm.sub_lm.model}" if rlm.sub_lm is not None else ""
    text = f"{task.size} of {task.source}, " if task.source else ""
    return f"{text}{model}{sub_model}, up to {counted(rlm.limits.max_iters, 'turn')}"
