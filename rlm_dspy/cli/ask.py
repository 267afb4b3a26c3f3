"""The command `rlm-dspy ask "question" FILE...`."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from typer import Argument, Option

import rlm_dspy
from rlm_dspy.cli.errors import (
    ANSWERED,
    FAILED,
    INTERRUPTED,
    UNANSWERED,
    check_outputs,
    done,
    errors_as_lines,
    quiet_dspy,
    say,
    tell,
)
from rlm_dspy.cli.options import Debug, Files, Interpreter, Model, Trace, Traced, command, factory_of, traced
from rlm_dspy.cli.task import STDIN, Task, read_task
from rlm_dspy.embedded.model_catalog import CatalogueModel, megabytes
from rlm_dspy.errors import UsageError
from rlm_dspy.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    import dspy
    from pydantic import JsonValue

    from rlm_dspy.artifacts import Artifacts
    from rlm_dspy.observe.console import View
    from rlm_dspy.report.record import Record, Stop

_EXIT_CODES: dict[Stop, int] = {
    "submitted": ANSWERED,
    "extracted": ANSWERED,
    "unanswered": UNANSWERED,
    "failed": FAILED,
    "interrupted": INTERRUPTED,
}
_INTERRUPTED_FILE = "interrupted.rlm.json"
_SHOWN_FILES = 10
_UNPRINTED_FILE = "unprinted.rlm.json"


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """What `rlm-dspy ask` is given."""

    question: Annotated[str, Argument(help="The question.", show_default=False)]
    files: Files = None
    allow_local: Annotated[
        bool, Option("--allow-local", help="Fetch addresses of this machine and its network too.")
    ] = False
    signature: Annotated[str | None, Option(help='The fields; default "context, question -> answer: str".')] = None
    model: Model = None
    sub_model: Annotated[str | None, Option(help="Model for sub-calls; default: the same model.")] = None
    pull: Annotated[bool, Option("--pull", help="Download a model of `rlm-dspy models` without asking.")] = False
    policy: Annotated[str, Option(help="Name or path of a policy, none, or auto: the one of the model.")] = "auto"
    max_iters: Annotated[
        int | None, Option(min=1, help="Maximum turns; default: up to 20, as the window allows.")
    ] = None
    max_llm_calls: Annotated[int | None, Option(min=0, help="Maximum number of sub-calls; default 50.")] = None
    max_cost: Annotated[float | None, Option(help="Maximum cost of all model calls in US dollars.")] = None
    max_seconds: Annotated[float | None, Option(help="Time limit in seconds.")] = None
    interpreter: Interpreter = None
    trace: Trace = False
    as_json: Annotated[bool, Option("--json", help="Print one JSON object and nothing else.")] = False
    save: Annotated[Path | None, Option(help="Write the run to this file as JSON.")] = None
    report: Annotated[Path | None, Option(help="Write the run to this file as an HTML page.")] = None
    output_dir: Annotated[
        Path | None, Option(help="Write the files that code makes below output/ to this directory.")
    ] = None
    log: Annotated[Path | None, Option(help="Append events to this file during the run, as JSON Lines.")] = None
    debug: Debug = False


@command
def ask(options: AskOptions) -> None:
    """Answer a question about texts, folders and tables of any size.

    The answer is printed to standard output, the steps to standard error during the run.

    \b
    For example:
      rlm-dspy ask "Who wrote about drift?" articles.md
      rlm-dspy ask "What is the main result?" paper.pdf https://example.org/reply.html
      rlm-dspy ask "Which contract ends first?" contracts/
      rlm-dspy ask "Which city sold most?" sales.csv
      rlm-dspy ask "Who wrote it, and when?" *.md --signature "context, question -> author: str, year: int"
      git log | rlm-dspy ask "Which month had the most fixes?"

    \b
    Exit codes:
      0    answered
      1    the run ended without an answer
      2    invalid usage or input: missing file, neither UTF-8 nor a document, invalid signature, unknown model
      3    the model or the interpreter failed, or the answer, --save or --report could not be written
      130  interrupted; the steps are saved to --save, else to interrupted.rlm.json. An interrupt after the answer
           was printed loses at most a file or the end of the trace
      143  terminated by SIGTERM; otherwise as 130
    """  # noqa: D301 (\b keeps the line breaks)
    interrupted = ["Interrupted before the first turn."]
    with errors_as_lines(debug=options.debug, interrupted=lambda: interrupted[-1]), quiet_dspy():
        import dspy

        from rlm_dspy.observe.console import Lines, view_on

        task, lm, rlm = _prepared(options)
        view = Lines(io.StringIO()) if options.as_json else view_on(sys.stderr)
        tracing = traced(options.question) if options.trace else contextlib.nullcontext(Traced())
        with tracing as logged, dspy.context(lm=lm):
            record, error, artifacts = _run(rlm, task, view, options)
            logged.stop = record.stop
            interrupted.append("Interrupted after the run ended, before all output was written.")
            if error is not None and options.debug:
                tell("".join(traceback.format_exception(error)))
            kept = _give(record, artifacts, options)  # before the wait for MLflow
    raise typer.Exit(_EXIT_CODES[record.stop] or (ANSWERED if kept else FAILED))


def _prepared(options: AskOptions) -> tuple[Task, dspy.LM, rlm_dspy.RLM]:
    """Check all options; return the task, the LM and the module."""
    import dspy

    from rlm_dspy.models import limits_for

    files = options.files or []
    if options.output_dir and options.output_dir.exists() and not options.output_dir.is_dir():
        raise UsageError(f"--output-dir {options.output_dir}: this is a file; name a directory.")
    written = {"--save": options.save, "--report": options.report, "--log": options.log}
    check_outputs(written, [Path(name).expanduser() for name in files if name != STDIN])
    task = read_task(options.question, files, options.signature, _stdin(files), allow_local=options.allow_local)
    lm = _chosen(options.model, pull=options.pull)
    given = {name: getattr(options, name) for name in ("max_iters", "max_llm_calls", "max_cost", "max_seconds")}
    with dspy.context(lm=lm):  # policy="auto" looks at it
        rlm = rlm_dspy.RLM(
            task.signature,
            limits=limits_for(lm, **given),
            sub_lm=_chosen(options.sub_model, pull=options.pull) if options.sub_model else None,
            interpreter_factory=factory_of(options.interpreter) if options.interpreter else None,
            policy=None if options.policy == "none" else options.policy,
        )
    return task, lm, rlm


def _chosen(model: str | None, *, pull: bool) -> dspy.LM:
    """Return the LM to use. One that has to be downloaded is, if `pull` says so or a person at a terminal does."""
    from rlm_dspy.models import ModelNotPulled, choose_model

    try:
        return choose_model(model, pull=pull, announce=tell)
    except ModelNotPulled as missing:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        size = f" ({megabytes(missing.entry.size)})" if isinstance(missing.entry, CatalogueModel) else ""
        if not typer.confirm(f"{missing.entry.name} is not on this machine. Download it{size}?", err=True):
            raise
    return choose_model(model, pull=True, announce=tell)


def _stdin(files: list[str]) -> BinaryIO | None:
    """Return standard input if it is named, or if it is piped and no file is named."""
    wanted = STDIN in files or (not files and not sys.stdin.isatty())
    return sys.stdin.buffer if wanted else None


def _run(
    rlm: rlm_dspy.RLM, task: Task, view: View, options: AskOptions
) -> tuple[Record, BaseException | None, Artifacts]:
    """Run the task and show its progress; return the record, the error that ended it, if any, and its files."""
    import dspy

    from rlm_dspy.coverage import watched
    from rlm_dspy.observe.console import Reporter
    from rlm_dspy.observe.event_log import RunLog
    from rlm_dspy.report.record import FilesKept, recorded

    files = FilesKept()
    view.head(" ".join(task.question.split()), _about(rlm, task, dspy.settings.lm.model))
    kept = options.save or options.report or options.log or options.as_json or options.trace
    with (
        RunLog(options.log) if options.log else contextlib.nullcontext(),
        watched() if kept else contextlib.nullcontext(),
        dspy.context(callbacks=[*dspy.settings.callbacks, files, Reporter(view, rlm.limits.max_iters)]),
    ):
        record, error = recorded(rlm, task.inputs)
    with contextlib.suppress(OSError):  # the reader of the view is gone
        if record.trajectory or record.stop not in ("failed", "interrupted"):
            view.end(_summary(record), answered=record.answered)
        view.close()
    return record, error, files.artifacts


def _about(rlm: rlm_dspy.RLM, task: Task, model: str) -> str:
    sub_model = f", sub-calls {rlm.sub_lm.model}" if rlm.sub_lm is not None else ""
    text = f"{task.size} of {task.source}, " if task.source else ""
    return f"{text}{model}{sub_model}, up to {counted(rlm.limits.max_iters, 'turn')}"


def _summary(record: Record) -> str:
    """Return one line: why the run ended and what it used."""
    from rlm_dspy.report.formatting import used
    from rlm_dspy.report.record import describe_stop

    usage = record.usage
    calls = counted(usage.calls, "model call")
    cached = f" ({usage.cached_calls} from DSPy's cache)" if usage.cached_calls else ""
    limit = f", ended by {usage.limit}" if usage.limit else ""
    return f"{describe_stop(record)}: {used(usage, usage.seconds)}, {calls}{cached}{limit}"


def _give(record: Record, artifacts: Artifacts, options: AskOptions) -> bool:
    """Print the answer; save the record, the report and the files.

    Without --save, the record is saved only if it would be lost: after an interrupt, or if printing failed.

    Returns:
        Whether everything was written. Each failure is reported on standard error.
    """
    from rlm_dspy.report.write_report import write_report

    if record.error:
        tell(f"Error: {record.error}")
    text = record.as_json() if options.as_json else _answer(record.outputs) if record.answered else None
    printed = text is None or done(lambda: say(text), problem="the answer could not be printed: ")
    lost = _INTERRUPTED_FILE if record.stop == "interrupted" else "" if printed else _UNPRINTED_FILE
    path, report = options.save or (Path(lost) if lost else None), options.report
    interrupted = "Interrupted. " if record.stop == "interrupted" else ""
    saved = path is None or done(lambda: record.save(path), f"{interrupted}The run is in {path}.")
    reported = report is None or done(lambda: write_report(record, report), f"The report is in {report}.")
    return printed and saved and reported and _give_files(artifacts, options.output_dir)


def _give_files(artifacts: Artifacts, folder: Path | None) -> bool:
    """Write the files of the run, or say how to get them; return whether everything was written."""
    for name, why in artifacts.left_out.items():
        tell(f"output/{name} was not kept: {why}.")
    if not artifacts:
        return True
    what = f"{counted(len(artifacts), 'file')} of the run ({', '.join(list(artifacts)[:_SHOWN_FILES])})"
    if folder is None:
        tell(f"Not saved: {what}. --output-dir DIRECTORY writes such files.")
        return True
    return done(lambda: artifacts.save(folder), f"In {folder}: {what}.")


def _answer(outputs: Mapping[str, JsonValue]) -> str:
    """Return the value of a single output field, or one line per field."""
    told = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in outputs.items()
    }
    return "\n".join(told.values() if len(told) == 1 else [f"{name}: {value}" for name, value in told.items()])
