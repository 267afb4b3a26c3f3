"""The command `rlm-dspy chat FILE...`: questions one after the other, in one session."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from rlm_dspy.cli.ask import EXIT_CODES, RunOptions, make_rlm
from rlm_dspy.cli.chat.prompt import HELP, questions, save
from rlm_dspy.cli.errors import (
    ANSWERED,
    FAILED,
    INTERRUPTED,
    check_outputs,
    done,
    errors_as_lines,
    quiet_dspy,
    say,
    tell,
)
from rlm_dspy.cli.mcp.extensions import mcp_tools
from rlm_dspy.cli.options import Files, command, traced
from rlm_dspy.cli.signals import ended_at_once
from rlm_dspy.cli.task import STDIN, Task, paths_of, read_task
from rlm_dspy.cli.user.answer import about_of, answer_of, summary_of
from rlm_dspy.cli.user.history import keep_in_history, runs_to_keep
from rlm_dspy.errors import UsageError
from rlm_dspy.text import counted

if TYPE_CHECKING:
    import rlm_dspy
    from rlm_dspy.sessions import Session

_ANY = "?"
"""A placeholder for the question when the task is read."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions(RunOptions):
    """The arguments and options of `rlm-dspy chat`."""

    files: Files = None
    session: Annotated[
        Path | None,
        Option(help="Save the session to this file after each answer; go on with one that is there."),
    ] = None
    budget: Annotated[float | None, Option(help="Maximum cost of all questions together in US dollars.")] = None


@command
def chat(options: ChatOptions) -> None:
    """Ask about texts, folders and tables, question after question.

    Each question is a run as that of `ask`, in one session: its code finds the variables of the runs before, and
    the model reads what was said. Questions come from a prompt with history and completion, or as lines from
    standard input. Answers are printed to standard output, the steps to standard error.

    \b
    For example:
      rlm-dspy chat articles.md
      rlm-dspy chat contracts/ --session contracts.json
      printf '%s\\n' "Who wrote about drift?" "When?" | rlm-dspy chat articles.md

    \b
    At the prompt:
      /save FILE   writes the session to a file
      /help        lists the commands
      Ctrl-C       stops a run: the session goes on; Ctrl-D, or /exit, ends the chat

    The exit code is that of the last question, as `rlm-dspy ask --help` lists them; 143 after SIGTERM, and 129
    after the terminal was closed.
    """  # noqa: D301 (\b keeps the line breaks)
    with errors_as_lines(debug=options.debug), quiet_dspy(), ended_at_once():
        import dspy

        from rlm_dspy.cli.user.configuration import load_configuration

        configuration = load_configuration()
        kept_runs = 0 if options.no_history else runs_to_keep(configuration.history)
        task, asked = _task(options)
        lm, rlm = make_rlm(options, configuration, task.signature)
        tracing = traced("chat") if options.trace else contextlib.nullcontext()
        code = ANSWERED
        tools = mcp_tools(rlm, options.mcp, configuration)
        with tracing, dspy.context(lm=lm), tools, _opened(options, rlm, task, asked) as session:
            options.note(f"({about_of(rlm, task, lm.model)}) {HELP}")
            for line in questions(session, keep=kept_runs > 0, read=paths_of(options.files)):
                if not sys.stdin.isatty():
                    options.note(f"\n> {line}")
                with keep_in_history(line, options.files or [], kept_runs):
                    code = _answer(rlm, session, {asked: line}, options)
                if options.session is not None:
                    save(session, options.session)
                if code == INTERRUPTED and not sys.stdin.isatty():
                    break
    raise typer.Exit(code)


def _task(options: ChatOptions) -> tuple[Task, str]:
    """Return the task, and the input field that takes each question."""
    files = options.files or []
    if STDIN in files:
        raise UsageError("chat reads the questions from standard input. Write the text to a file and name that.")
    task = read_task(_ANY, files, options.signature, None, allow_local=options.allow_local)
    asked = [name for name, value in task.inputs.items() if value is _ANY]
    if not asked:
        raise UsageError(f"The signature has no input for the question, only {', '.join(task.inputs)}. Add one.")
    return task, asked[0]


def _opened(options: ChatOptions, rlm: rlm_dspy.RLM, task: Task, asked: str) -> Session:
    """Return the session in the named file, else a new one."""
    path, budget = options.session, options.budget
    check_outputs({"--session": path, "--log": options.log}, paths_of(options.files))
    inputs = {name: value for name, value in task.inputs.items() if name != asked}
    if path is None or not path.exists():
        return rlm.session(budget=budget, **inputs)
    session = rlm.open_session(path, budget=budget, **inputs)
    options.note(f"{path}: {counted(len(session.messages), 'question')} so far.")
    return session


def _answer(rlm: rlm_dspy.RLM, session: Session, inputs: dict[str, str], options: ChatOptions) -> int:
    """Ask one question, show its run and print the answer; return the exit code of `ask` for it."""
    import dspy

    from rlm_dspy.observe.console import Lines, Reporter, view_on
    from rlm_dspy.observe.event_log import RunLog
    from rlm_dspy.report.record import recorded

    view = Lines(io.StringIO()) if options.quiet else view_on(sys.stderr)
    reporter = Reporter(view, rlm.limits.max_iters)
    with (
        RunLog(options.log) if options.log else contextlib.nullcontext(),
        dspy.context(callbacks=[*dspy.settings.callbacks, reporter]),
        contextlib.closing(view),
    ):
        record, error = recorded(session, inputs)
        if record.trajectory:
            view.end(summary_of(record), answered=record.answered)
    if error is not None:
        tell("Interrupted. The session goes on." if record.stop == "interrupted" else f"Error: {record.error}")
    printed = not record.answered or done(lambda: say(answer_of(record.outputs)))
    return EXIT_CODES[record.stop] if printed else FAILED
