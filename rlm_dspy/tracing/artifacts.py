"""The whole of a run as files on its trace, where spans show only what is new in each turn."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.tracing.attachments import Attachment

from rlm_dspy.coverage.watch import looked_into
from rlm_dspy.observe.record import Record, asked, cut_short, ended
from rlm_dspy.observe.report.page import report_html
from rlm_dspy.redaction import in_strings

if TYPE_CHECKING:
    from collections.abc import Callable

    import dspy

    from rlm_dspy.loop.rlm import RLM
    from rlm_dspy.tracing.payloads import Payloads


def record_of(rlm: RLM, inputs: dict[str, Any], prediction: dspy.Prediction) -> Record:
    """Return the record of a run that has just ended by itself, here."""
    told = ended(rlm, prediction)
    steps = [] if "trajectory" in rlm.signature.output_fields else prediction.trajectory
    return Record(**asked(rlm, inputs), **told, trajectory=steps, **looked_into(inputs, told["outputs"]))


def record_cut_short(rlm: RLM, inputs: dict[str, Any], error: BaseException) -> Record:
    """Return the record of a run that an error has just ended, here."""
    done: dict[str, Any] = {"usage": getattr(error, "usage", {}), "trajectory": getattr(error, "trajectory", [])}
    return Record(**asked(rlm, inputs), **cut_short(error), **done, **looked_into(inputs, {}))


def attachments(payloads: Payloads, record: Record) -> dict[str, Any]:
    """Return the files of a run by their names: its record as JSON, and the report on it as a page."""
    return {
        "trajectory.json": Made("application/json", lambda: _hidden(payloads, record).as_json()),
        "report.html": Made("text/html", lambda: report_html(_hidden(payloads, record))),
    }


def _hidden(payloads: Payloads, record: Record) -> Record:
    """Return a record without secrets: looked for in its strings, before JSON or HTML write them otherwise."""
    return Record.model_validate(in_strings(json.loads(record.as_json()), payloads.hidden))


def keep_in_run(run_id: str, trace_id: str, outputs: Any) -> None:
    """Keep the files among a run's outputs as artifacts of a run of MLflow, whose page shows them."""
    for name, file in outputs.items():
        if isinstance(file, Made):
            text = file.content_bytes.decode("utf-8")
            mlflow.MlflowClient().log_text(run_id, text, f"{trace_id}/{name}")


class Made(Attachment):
    """A file of a trace that is made when it is stored, so not in the run's own time.

    Args:
        content_type: Its media type.
        make: Makes its text.
    """

    def __init__(self, content_type: str, make: Callable[[], str]) -> None:
        super().__init__(content_type=content_type, content_bytes=b"")
        self._make = make

    @cached_property
    def content_bytes(self) -> bytes:
        """The text, in UTF-8."""
        return self._make().encode("utf-8", "replace")
