"""The command `rlm-dspy resume LOG FILE...`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

import rlm_dspy
from rlm_dspy.cli.ask import AskOptions, answer
from rlm_dspy.cli.errors import BAD_USAGE, errors_as_lines, quiet_dspy, tell
from rlm_dspy.cli.options import (
    Approve,
    ApproveAnswer,
    Debug,
    Files,
    Interpreter,
    Mcp,
    Model,
    OutputOptions,
    Skills,
    command,
)
from rlm_dspy.cli.replay import recorded_task
from rlm_dspy.cli.task import Unfinished
from rlm_dspy.cli.user.completion import check_model, complete_model
from rlm_dspy.errors import CannotResume, UsageError

if TYPE_CHECKING:
    from rlm_dspy.resume.journal import RecordedRun


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(OutputOptions):
    """The arguments and options of `rlm-dspy resume`."""

    log: Annotated[Path, Argument(metavar="LOG", help="The file that ask --log wrote.", show_default=False)]
    files: Files = None
    run: Annotated[
        str | None, Option(help="Id of the run, or how it begins, if the log has several unfinished ones.")
    ] = None
    model: Model = None
    sub_model: Annotated[
        str | None,
        Option(
            help="Model for sub-calls; default: as before.", autocompletion=complete_model, callback=check_model
        ),
    ] = None
    api_base: Annotated[
        str | None, Option(help="Address of the model's server, e.g. http://localhost:8000/v1.")
    ] = None
    skills: Skills = None
    mcp: Mcp = None
    interpreter: Interpreter = None
    approve: Approve = False
    approve_answer: ApproveAnswer = False
    quiet: Annotated[bool, Option("--quiet", "-q", help="Print the answer and errors, nothing else.")] = False
    debug: Debug = False


@command
def resume(options: ResumeOptions) -> None:
    """Go on with a run of `ask --log` whose process was killed, or that failed, or was paused or interrupted.

    What it was answered before is not asked again, and its limits count what was paid. Name the same files again,
    and --approve and --approve-answer if it had them: a person is asked only about what they had not decided.

    \b
    For example:
      rlm-dspy ask "Who wrote about drift?" articles.md --log run.jsonl
      rlm-dspy resume run.jsonl articles.md

    Exit codes are those of `ask`; 2 also if the log has no such run, or the files are others.
    """  # noqa: D301 (\b keeps the line breaks)
    with errors_as_lines(debug=options.debug), quiet_dspy():
        unfinished, model, sub_model = _read(options)
    asking = ("api_base", "skills", "mcp", "interpreter", "approve", "approve_answer")
    shared = (*asking, "quiet", *OutputOptions.__dataclass_fields__)
    asked = AskOptions(
        question=unfinished.task.question,
        files=options.files,
        model=options.model or model,
        sub_model=options.sub_model or sub_model,
        debug=options.debug,
        **{name: getattr(options, name) for name in shared},
    )
    answer(asked, unfinished)


def _read(options: ResumeOptions) -> tuple[Unfinished, str, str | None]:
    """Return the run to resume, and the names of its models.

    Raises:
        UsageError: If the log cannot be read or has no such run, if its inputs are not given, or if the run asked
            a person and this command would not.
    """
    from rlm_dspy.report.record import Record
    from rlm_dspy.resume.resumable import LEFT_SESSION

    run = _chosen(options)
    for hook, option, is_given in (
        ("on_code", "--approve", options.approve),
        ("on_submit", "--approve-answer", options.approve_answer),
    ):
        if hook in run.hooks and not is_given:
            raise UsageError(f"The run in {options.log} asked for approval ({hook}). Add {option}.")
    record = Record.model_validate({**run.started, "stop": "killed"})
    if record.session:
        tell(LEFT_SESSION)
    prices = {name: tuple(price) for name, price in record.limits.get("prices", {}).items()}
    limits = rlm_dspy.Limits(**{**record.limits, "prices": prices})
    task = recorded_task(record, options.files or [])
    return Unfinished(options.log, run.id, task, limits), record.model, record.sub_model


def _chosen(options: ResumeOptions) -> RecordedRun:
    """Return the run of the log to resume.

    Raises:
        UsageError: If the log cannot be read.
        typer.Exit: If it has no such run. Its runs are then printed, one per line.
    """
    from rlm_dspy.resume.resumable import Wording, choose_run

    try:
        return choose_run(options.log, options.run, Wording("--run ID", "`rlm-dspy ask --log`"))
    except CannotResume as error:
        tell(f"Error: {error}")
        raise typer.Exit(BAD_USAGE) from None
    except FileNotFoundError as error:
        raise UsageError(f"File not found: {options.log}.") from error
    except OSError as error:
        raise UsageError(f"{options.log} cannot be read: {error.strerror or error}.") from error
