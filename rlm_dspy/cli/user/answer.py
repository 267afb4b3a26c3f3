"""Formats the answer of a run and how it ended, and writes both to the places that the options name."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rlm_dspy.cli.errors import done, say, tell
from rlm_dspy.text import check_writable, counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    import rlm_dspy
    from rlm_dspy.artifacts import Artifacts
    from rlm_dspy.cli.options import OutputOptions
    from rlm_dspy.cli.task import Task
    from rlm_dspy.report.record import Record

_INTERRUPTED_FILE = "interrupted.rlm.json"
_UNPRINTED_FILE = "unprinted.rlm.json"
_SHOWN_FILES = 10


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
    fields = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in outputs.items()
    }
    return "\n".join(
        fields.values() if len(fields) == 1 else [f"{name}: {value}" for name, value in fields.items()]
    )


def about_of(rlm: rlm_dspy.RLM, task: Task, model: str) -> str:
    """Return one line: the source, the models, and the maximum number of turns."""
    sub_model = f", sub-calls {rlm.sub_lm.model}" if rlm.sub_lm is not None else ""
    text = f"{task.size} of {task.source}, " if task.source else ""
    return f"{text}{model}{sub_model}, up to {counted(rlm.limits.max_iters, 'turn')}"


def give_answer(
    record: Record, artifacts: Artifacts, options: OutputOptions, *, quiet: bool, log: Path | None
) -> bool:
    """Print the answer; save the record, the report and the files.

    Without --save, the record is saved only if it would be lost: after an interrupt, or if printing failed.

    Returns:
        Whether everything was written. Each failure is reported on standard error.
    """
    from rlm_dspy.report.write_report import write_report

    cut_short = {"paused": "Paused. ", "interrupted": "Interrupted. "}.get(record.stop, "")
    if record.error and not cut_short:
        tell(f"Error: {record.error}")
    elif not record.answered and not cut_short and not options.as_json:
        tell(f"No answer: {' '.join(record.final_reasoning.split()) or record.stop}")
    text = _printed(record, options)
    printed = text is None or done(lambda: say(text), problem="the answer could not be printed: ")
    lost = _INTERRUPTED_FILE if cut_short else "" if printed else _UNPRINTED_FILE
    path, report = options.save or (_writable(lost) if lost else None), options.report
    message = "" if quiet and not lost else f"{cut_short}The run is in {path}."
    if log and cut_short:
        message += f" Go on with it: rlm-dspy resume {log} FILE..."
    saved = path is None or done(lambda: record.save(path), message)
    message = "" if quiet else f"The report is in {report}."
    reported = report is None or done(lambda: write_report(record, report), message)
    return printed and saved and reported and _give_files(artifacts, options.output_dir, quiet=quiet)


def _writable(name: str) -> Path:
    """Return the path of a new file: in the working directory, or if that is read-only in a temporary one."""
    path = Path(name)
    try:
        check_writable(path)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="rlm-dspy-")) / name
    return path


def _printed(record: Record, options: OutputOptions) -> str | None:
    """Return the text for standard output; None for no output."""
    if options.as_json:
        return record.as_json()
    if not record.answered:
        return None
    as_json = options.answer_json
    return json.dumps(record.outputs, ensure_ascii=False, indent=2) if as_json else answer_of(record.outputs)


def _give_files(artifacts: Artifacts, folder: Path | None, *, quiet: bool) -> bool:
    """Write the files of the run, or print how to get them; return whether all were written."""
    for name, why in artifacts.left_out.items():
        tell(f"output/{name} was not kept: {why}.")
    if not artifacts:
        return True
    what = f"{counted(len(artifacts), 'file')} of the run ({', '.join(list(artifacts)[:_SHOWN_FILES])})"
    if folder is None:
        if not quiet:
            tell(f"Not saved: {what}. --output-dir DIRECTORY writes such files.")
        return True
    return done(lambda: artifacts.save(folder), "" if quiet else f"In {folder}: {what}.")
