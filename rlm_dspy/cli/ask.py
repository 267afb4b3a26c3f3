"""The command `rlm-dspy ask "question" FILE...`."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

import rlm_dspy
from rlm_dspy.cli.errors import (
    ANSWERED,
    FAILED,
    INTERRUPTED,
    UNANSWERED,
    check_distinct,
    check_writable,
    done,
    errors_as_lines,
    quiet_dspy,
    say,
    tell,
)
from rlm_dspy.cli.options import InterpreterName, Traced, factory_of, traced
from rlm_dspy.cli.task import STDIN, Task, read_task
from rlm_dspy.embedded.model_catalog import megabytes
from rlm_dspy.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    import dspy
    from pydantic import JsonValue

    from rlm_dspy.observe.console import View
    from rlm_dspy.observe.record import Record, Stop

_EXIT_CODES: dict[Stop, int] = {
    "submitted": ANSWERED,
    "extracted": ANSWERED,
    "unanswered": UNANSWERED,
    "failed": FAILED,
    "interrupted": INTERRUPTED,
}
_INTERRUPTED_FILE = "interrupted.rlm.json"
_UNPRINTED_FILE = "unprinted.rlm.json"


def ask(
    question: Annotated[str, typer.Argument(help="The question.", show_default=False)],
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="UTF-8 text files; - is standard input.", show_default=False),
    ] = None,
    signature: Annotated[
        str | None, typer.Option(help='The fields; default "context, question -> answer: str".')
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="provider/name, lm_studio/name, a name that `rlm-dspy models` lists, or the path of a .gguf "
            "file. By default RLM_DSPY_MODEL, else LM Studio if LM_STUDIO_API_BASE is set, else the best "
            "downloaded model."
        ),
    ] = None,
    sub_model: Annotated[str | None, typer.Option(help="Model for sub-calls; default: the same model.")] = None,
    pull: Annotated[
        bool, typer.Option("--pull", help="Download the model if it is one of `rlm-dspy models`; do not ask.")
    ] = False,
    policy: Annotated[
        str, typer.Option(help="Name or path of a policy, none, or auto: the one shipped for the model.")
    ] = "auto",
    max_iters: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of turns; default: as the window allows, up to 20."),
    ] = None,
    max_llm_calls: Annotated[
        int | None, typer.Option(min=0, help="Maximum number of sub-calls; default 50.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Maximum cost of all model calls in US dollars; default: no limit.")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Time limit in seconds; default: no limit.")] = None,
    interpreter: Annotated[
        InterpreterName | None,
        typer.Option(
            help="Where code runs: python (confined worker; the default), deno (WASM), process (a separate one), "
            "local (this process). `process` and `local` do not protect your files from the model's code.",
        ),
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Log the run to MLflow.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write the run to this file as JSON.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the run to this file as an HTML page.")] = None,
    log: Annotated[
        Path | None, typer.Option(help="Append events to this file during the run, one JSON object per line.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Answer a question about texts of any length.

    The answer is printed to standard output, the steps to standard error during the run.

    \b
    For example:
      rlm-dspy ask "Who wrote about drift?" articles.md
      rlm-dspy ask "Who wrote it, and when?" *.md --signature "context, question -> author: str, year: int"
      git log | rlm-dspy ask "Which month had the most fixes?"

    \b
    Exit codes:
      0    answered
      1    the run ended without an answer
      2    invalid usage or input: missing file, not UTF-8, invalid signature, unknown model
      3    the model or the interpreter failed, or the answer, --save or --report could not be written
      130  interrupted; the steps are saved to --save, else to interrupted.rlm.json. An interrupt after the answer
           was printed loses at most a file or the end of the trace
      143  terminated by SIGTERM; otherwise as 130
    """  # noqa: D301 (\b keeps the line breaks)
    interrupted = ["Interrupted before the first turn."]
    with errors_as_lines(debug=debug, interrupted=lambda: interrupted[-1]), quiet_dspy():
        import dspy

        from rlm_dspy.coverage import watched
        from rlm_dspy.models import limits_for
        from rlm_dspy.observe.console import Lines, view_on
        from rlm_dspy.observe.event_log import RunLog

        written = {"--save": save, "--report": report, "--log": log}
        for option, path in written.items():
            check_writable(path, option)
        check_distinct(written, [Path(name).expanduser() for name in files or [] if name != STDIN])
        task = read_task(question, files or [], signature, _stdin(files or []))
        lm = _chosen(model, pull=pull)
        with dspy.context(lm=lm):  # policy="auto" looks at it
            rlm = rlm_dspy.RLM(
                task.signature,
                limits=limits_for(
                    lm,
                    max_iters=max_iters,
                    max_llm_calls=max_llm_calls,
                    max_cost=max_cost,
                    max_seconds=max_seconds,
                ),
                sub_lm=_chosen(sub_model, pull=pull) if sub_model else None,
                interpreter_factory=factory_of(interpreter) if interpreter else None,
                policy=None if policy == "none" else policy,
            )
        view = Lines(io.StringIO()) if as_json else view_on(sys.stderr)
        with traced(question) if trace else contextlib.nullcontext(Traced()) as logged, dspy.context(lm=lm):
            with (
                RunLog(log) if log else contextlib.nullcontext(),
                watched() if save or report or log or as_json or trace else contextlib.nullcontext(),
            ):
                record, error = _run(rlm, task, view)
            logged.stop = record.stop
            interrupted.append("Interrupted after the run ended, before all output was written.")
            if error is not None and debug:
                tell("".join(traceback.format_exception(error)))
            kept = _give(record, save, report, as_json=as_json)  # before the wait for MLflow
    raise typer.Exit(_EXIT_CODES[record.stop] or (ANSWERED if kept else FAILED))


def _chosen(model: str | None, *, pull: bool) -> dspy.LM:
    """Return the LM to use. One that has to be downloaded is, if `pull` says so or a person at a terminal does."""
    from rlm_dspy.models import ModelNotPulled, choose_model

    try:
        return choose_model(model, pull=pull, announce=tell)
    except ModelNotPulled as missing:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        size = megabytes(missing.entry.size)
        if not typer.confirm(f"{missing.entry.name} is not on this machine. Download it ({size})?", err=True):
            raise
    return choose_model(model, pull=True, announce=tell)


def _stdin(files: list[str]) -> IO[bytes] | None:
    """Return standard input if it is named, or if it is piped and no file is named."""
    wanted = STDIN in files or (not files and not sys.stdin.isatty())
    return sys.stdin.buffer if wanted else None


def _run(rlm: rlm_dspy.RLM, task: Task, view: View) -> tuple[Record, BaseException | None]:
    """Run the task and show its progress; return the record, and the error that ended the run, if any."""
    import dspy

    from rlm_dspy.observe.console import Progress
    from rlm_dspy.observe.record import recorded

    view.head(" ".join(task.question.split()), _about(rlm, task, dspy.settings.lm.model))
    with dspy.context(callbacks=[*dspy.settings.callbacks, Progress(view, rlm.limits.max_iters)]):
        record, error = recorded(rlm, task.inputs)
    with contextlib.suppress(OSError):  # the reader of the view is gone
        if record.trajectory or record.stop not in ("failed", "interrupted"):
            view.end(_summary(record), answered=record.answered)
        view.close()
    return record, error


def _about(rlm: rlm_dspy.RLM, task: Task, model: str) -> str:
    sub_model = f", sub-calls {rlm.sub_lm.model}" if rlm.sub_lm is not None else ""
    text = f"{task.characters:,} characters of {task.source}, " if task.source else ""
    return f"{text}{model}{sub_model}, up to {counted(rlm.limits.max_iters, 'turn')}"


def _summary(record: Record) -> str:
    """Return one line: why the run ended and what it used."""
    from rlm_dspy.observe.formatting import used
    from rlm_dspy.observe.record import describe_stop

    usage = record.usage
    calls = counted(usage.calls, "model call")
    cached = f" ({usage.cached_calls} from DSPy's cache)" if usage.cached_calls else ""
    limit = f", ended by {usage.limit}" if usage.limit else ""
    return f"{describe_stop(record)}: {used(usage, usage.seconds)}, {calls}{cached}{limit}"


def _give(record: Record, save: Path | None, report: Path | None, *, as_json: bool) -> bool:
    """Print the answer; save the record and the report.

    Without --save, the record is saved only if it would be lost: after an interrupt, or if printing failed.

    Returns:
        Whether everything was written. Each failure is reported on standard error.
    """
    from rlm_dspy.observe.report.page import write_report

    if record.error:
        tell(f"Error: {record.error}")
    printed = _print(record, as_json=as_json)
    lost = _INTERRUPTED_FILE if record.stop == "interrupted" else "" if printed else _UNPRINTED_FILE
    path = save or (Path(lost) if lost else None)
    interrupted = "Interrupted. " if record.stop == "interrupted" else ""
    saved = path is None or done(lambda: record.save(path), f"{interrupted}The run is in {path}.")
    reported = report is None or done(lambda: write_report(record, report), f"The report is in {report}.")
    return printed and saved and reported


def _print(record: Record, *, as_json: bool) -> bool:
    """Print the record or its answer, if it has one. Report a failure and return False."""
    if not (as_json or record.answered):
        return True
    try:
        say(record.as_json() if as_json else _answer(record.outputs))
    except OSError as error:
        from rlm_dspy.observe.record import in_one_line

        tell(f"Error: the answer could not be printed: {in_one_line(error)}")
        return False
    return True


def _answer(outputs: Mapping[str, JsonValue]) -> str:
    """Return the value of a single output field, or one line per field."""
    told = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in outputs.items()
    }
    if len(told) == 1:
        return next(iter(told.values()))
    return "\n".join(f"{name}: {value}" for name, value in told.items())
