"""The command `rlm-dspy ask "question" FILE...`."""

from __future__ import annotations

import contextlib
import functools
import io
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
    PAUSED,
    UNANSWERED,
    check_outputs,
    errors_as_lines,
    quiet_dspy,
    tell,
)
from rlm_dspy.cli.mcp.extensions import mcp_tools, skills_of
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
    Trace,
    Traced,
    asks_at_terminal,
    command,
    factory_of,
    traced,
)
from rlm_dspy.cli.signals import ignore_interrupts, interrupts_restored
from rlm_dspy.cli.task import STDIN, paths_of, read_task
from rlm_dspy.cli.user.answer import about_of, give_answer, summary_of
from rlm_dspy.cli.user.completion import check_model, complete_model
from rlm_dspy.cli.user.forecast import approve_forecast
from rlm_dspy.cli.user.history import keep_in_history, runs_to_keep
from rlm_dspy.cli.user.prices import limits_with_prices, read_price
from rlm_dspy.embedded.model_catalog import CatalogueModel, megabytes
from rlm_dspy.errors import UsageError
from rlm_dspy.redaction import without_credentials

if TYPE_CHECKING:
    import dspy

    from rlm_dspy.artifacts import Artifacts
    from rlm_dspy.cli.task import Task, Unfinished
    from rlm_dspy.cli.user.configuration import Configuration, ModelSettings
    from rlm_dspy.observe.console import View
    from rlm_dspy.report.record import Record, Stop

EXIT_CODES: dict[Stop, int] = {
    "submitted": ANSWERED,
    "direct": ANSWERED,
    "extracted": ANSWERED,
    "unanswered": UNANSWERED,
    "failed": FAILED,
    "paused": PAUSED,
    "interrupted": INTERRUPTED,
}
_LIMITS = ("max_iters", "max_llm_calls", "max_cost", "max_seconds", "max_input_tokens", "max_output_tokens")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options that `ask` and `chat` share."""

    allow_local: Annotated[
        bool, Option("--allow-local", help="Fetch addresses of this machine and its network too.")
    ] = False
    signature: Annotated[str | None, Option(help='The fields; default "context, question -> answer: str".')] = None
    model: Model = None
    sub_model: Annotated[
        str | None,
        Option(
            help="Model for sub-calls; default: the same model.",
            autocompletion=complete_model,
            callback=check_model,
        ),
    ] = None
    api_base: Annotated[
        str | None,
        Option(help="Address of the model's server, e.g. http://localhost:8000/v1; alone: its first model."),
    ] = None
    context_window: Annotated[
        int | None, Option(min=1_000, help="Tokens that the model can read; default: as known of it.")
    ] = None
    max_reply_tokens: Annotated[int | None, Option(min=1, help="Maximum tokens of one reply of the model.")] = None
    temperature: Annotated[
        float | None,
        Option(min=0, max=2, help="Of sampling; default: the server's. Small models do best at 0."),
    ] = None
    pull: Annotated[bool, Option("--pull", help="Download a model of `rlm-dspy models` without asking.")] = False
    policy: Annotated[str, Option(help="Name or path of a policy, none, or auto: the one of the model.")] = "auto"
    max_iters: Annotated[
        int | None, Option(min=1, help="Maximum turns; default: up to 20, as the window allows.")
    ] = None
    max_llm_calls: Annotated[int | None, Option(min=0, help="Maximum number of sub-calls; default 50.")] = None
    max_input_tokens: Annotated[int | None, Option(min=1, help="Maximum input tokens of all calls.")] = None
    max_output_tokens: Annotated[int | None, Option(min=1, help="Maximum output tokens of all calls.")] = None
    max_cost: Annotated[float | None, Option(help="Maximum cost of all model calls in US dollars.")] = None
    price: Annotated[
        str | None,
        Option(
            metavar="IN/OUT",
            help="Price of a model without a known one, in US dollars per million tokens: 0.25/2.",
        ),
    ] = None
    sub_price: Annotated[str | None, Option(metavar="IN/OUT", help="The same for --sub-model.")] = None
    max_seconds: Annotated[float | None, Option(help="Time limit in seconds.")] = None
    interpreter: Interpreter = None
    skills: Skills = None
    mcp: Mcp = None
    approve: Approve = False
    approve_answer: ApproveAnswer = False
    trace: Trace = False
    quiet: Annotated[bool, Option("--quiet", "-q", help="Print the answer and errors, nothing else.")] = False
    log: Annotated[Path | None, Option(help="Append events to this file during the run, as JSON Lines.")] = None
    no_history: Annotated[bool, Option("--no-history", help="Do not keep this run for `rlm-dspy history`.")] = (
        False
    )
    debug: Debug = False

    def note(self, line: str) -> None:
        """Print a line that is not an error."""
        if not self.quiet:
            tell(line)


@dataclass(frozen=True, kw_only=True)
class AskOptions(OutputOptions, RunOptions):
    """The arguments and options of `rlm-dspy ask`."""

    question: Annotated[str, Argument(help="The question.", show_default=False)]
    files: Files = None
    forecast: Annotated[
        bool, Option("--forecast", help="Say what past runs in the history used, and ask before this one runs.")
    ] = False


@command
def ask(options: AskOptions) -> None:
    """Answer a question about texts, folders and tables of any size.

    The answer is printed to standard output, the steps to standard error during the run.

    Defaults for models, addresses, keys and limits can be set in a configuration file, config.toml in the folder
    that `rlm-dspy doctor` names, or the file that RLM_DSPY_CONFIG names.

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
      4    paused by the person who was asked (--approve); the steps are saved as after an interrupt
      130  interrupted; the steps are saved to --save, else to interrupted.rlm.json. An interrupt after the answer
           was printed loses at most a file or the end of the trace
      129  the terminal or the connection was closed (SIGHUP); otherwise as 130
      143  terminated by SIGTERM; otherwise as 130
    """  # noqa: D301 (\b keeps the line breaks)
    answer(options)


def answer(options: AskOptions, unfinished: Unfinished | None = None) -> None:
    """Run a task, or resume one, and print the answer.

    Raises:
        typer.Exit: With the exit code.
    """
    interrupted = ["Interrupted before the first turn."]
    with errors_as_lines(debug=options.debug, interrupted=lambda: interrupted[-1]), quiet_dspy():
        import dspy

        from rlm_dspy.cli.user.configuration import load_configuration
        from rlm_dspy.observe.console import Lines, view_on

        configuration = load_configuration()
        task, lm, rlm, kept_runs = _prepared(options, configuration, unfinished)
        if options.forecast:
            approve_forecast(task, rlm, lm.model)
        view = Lines(io.StringIO()) if options.as_json or options.quiet else view_on(sys.stderr)
        tracing = traced(options.question) if options.trace else contextlib.nullcontext(Traced())
        history = keep_in_history(task.question, options.files or [], kept_runs)
        mcp = mcp_tools(rlm, options.mcp, configuration)
        with tracing as logged, dspy.context(lm=lm), history, mcp, interrupts_restored():
            record, error, artifacts = _run(rlm, task, view, options, unfinished)
            logged.stop = record.stop
            interrupted.append("Interrupted after the run ended, before all output was written.")
            if error is not None and options.debug:
                tell(without_credentials("".join(traceback.format_exception(error)), lm, rlm.sub_lm))
            # Before waiting for MLflow.
            kept = give_answer(record, artifacts, options, quiet=options.quiet, log=options.log)
    raise typer.Exit(EXIT_CODES[record.stop] or (ANSWERED if kept else FAILED))


def _prepared(
    options: AskOptions, configuration: Configuration, unfinished: Unfinished | None
) -> tuple[Task, dspy.LM, rlm_dspy.RLM, int]:
    """Check all options; return the task, the LM, the module, and how many runs the history keeps."""
    files = options.files or []
    if options.output_dir and options.output_dir.exists() and not options.output_dir.is_dir():
        raise UsageError(f"--output-dir {options.output_dir}: this is a file; name a directory.")
    if options.as_json and options.answer_json:
        raise UsageError("--json and --answer-json both print JSON: choose one.")
    written = {"--save": options.save, "--report": options.report, "--log": options.log}
    check_outputs(written, paths_of(files))
    kept_runs = 0 if options.no_history else runs_to_keep(configuration.history)
    if unfinished:
        task = unfinished.task
    else:
        stdin, is_local = _stdin(files), options.allow_local
        task = read_task(options.question, files, options.signature, stdin, allow_local=is_local)
    lm, rlm = make_rlm(options, configuration, task.signature)
    if unfinished:
        rlm.limits = unfinished.limits
    return task, lm, rlm, kept_runs


def make_rlm(
    options: RunOptions, configuration: Configuration, signature: str | type[dspy.Signature]
) -> tuple[dspy.LM, rlm_dspy.RLM]:
    """Return the LM and the RLM of some options.

    Raises:
        UsageError: If an option is not valid.
    """
    import dspy

    prices = read_price("--price", options.price), read_price("--sub-price", options.sub_price)
    lm, sub_lm = _models(options, configuration)
    if options.sub_price and sub_lm is None:
        raise UsageError("--sub-price is for --sub-model, which is not given; --price is for --model.")
    named = {name: value for name in _LIMITS if (value := getattr(options, name)) is not None}
    priced = dict(zip(filter(None, (lm, sub_lm)), prices, strict=False))
    limits = limits_with_prices({**configuration.limits, **named}, priced, options.note)
    skills = skills_of([*configuration.skills, *map(str, options.skills or [])])
    asks = asks_at_terminal(wanted=options.approve or options.approve_answer)
    with dspy.context(lm=lm):  # policy="auto" looks at it
        rlm = rlm_dspy.RLM(
            signature,
            limits=limits,
            sub_lm=sub_lm,
            interpreter_factory=factory_of(
                options.interpreter, [name for each in skills for name in each.packages]
            ),
            policy=None if options.policy == "none" else options.policy,
            tools=list(skills),
            on_code=asks if options.approve else None,
            on_submit=asks if options.approve_answer else None,
        )
    return lm, rlm


def _models(options: RunOptions, configuration: Configuration) -> tuple[dspy.LM, dspy.LM | None]:
    """Return the LM, and the LM of sub-calls if it is a different one."""
    import dspy

    from rlm_dspy.cli.user.configuration import ModelSettings, provider_of

    if options.api_base and not options.api_base.startswith(("http://", "https://")):
        raise UsageError(f"--api-base {options.api_base}: write an address, e.g. http://localhost:8000/v1.")
    given = ModelSettings(
        api_base=options.api_base,
        context_window=options.context_window,
        max_reply_tokens=options.max_reply_tokens,
        temperature=options.temperature,
    )
    name = options.model or (None if dspy.settings.lm else configuration.named(None))
    lm = _chosen(name, configuration.settings(name, given), options)
    # The file's model for sub-calls is used only with the file's model: else texts could go to a third party.
    sub_name = options.sub_model or (configuration.sub_model if name == configuration.model else None)
    if sub_name is None:
        return lm, None
    shared = given if provider_of(sub_name) == provider_of(name or "") else ModelSettings()
    return lm, _chosen(sub_name, configuration.settings(sub_name, shared), options)


def _chosen(model: str | None, settings: ModelSettings, options: RunOptions) -> dspy.LM:
    """Return the LM to use. Download it if necessary, and if --pull or a person at a terminal allows that."""
    from rlm_dspy.cli.user.configuration import configuration_file
    from rlm_dspy.models import ModelNotPulled, ModelUnreachable, choose_model

    try:
        return choose_model(model, pull=options.pull, announce=options.note, **settings.model_dump())
    except ModelUnreachable as error:
        if not settings.api_base or options.api_base:
            raise
        raise ModelUnreachable(f"{error} api_base is set in {configuration_file()}.") from error
    except ModelNotPulled as missing:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        size = f" ({megabytes(missing.entry.size)})" if isinstance(missing.entry, CatalogueModel) else ""
        if not typer.confirm(f"{missing.entry.name} is not on this machine. Download it{size}?", err=True):
            raise
    return choose_model(model, pull=True, announce=options.note, **settings.model_dump())


def _stdin(files: list[str]) -> BinaryIO | None:
    """Return standard input if it is named, or if it is piped and no file is named."""
    wanted = STDIN in files or (not files and not sys.stdin.isatty())
    return sys.stdin.buffer if wanted else None


def _run(
    rlm: rlm_dspy.RLM, task: Task, view: View, options: AskOptions, unfinished: Unfinished | None
) -> tuple[Record, BaseException | None, Artifacts]:
    """Run the task and show its progress; return the record, the error that ended it, if any, and its files."""
    import dspy

    from rlm_dspy.coverage import watched
    from rlm_dspy.observe.console import Reporter
    from rlm_dspy.observe.event_log import RunLog
    from rlm_dspy.report.record import FilesKept, recorded

    files = FilesKept()
    view.head(" ".join(task.question.split()), about_of(rlm, task, dspy.settings.lm.model))
    kept = options.save or options.report or options.log or options.as_json or options.trace
    with (
        RunLog(options.log) if options.log else contextlib.nullcontext(),
        watched() if kept else contextlib.nullcontext(),
        dspy.context(callbacks=[*dspy.settings.callbacks, files, Reporter(view, rlm.limits.max_iters)]),
    ):
        call = functools.partial(rlm.resume, unfinished.log, run=unfinished.run) if unfinished else rlm
        record, error = recorded(call, task.inputs)
        if record.stop == "interrupted":
            ignore_interrupts()  # kept until it is saved
    if record.trajectory or record.stop not in ("failed", "interrupted", "paused"):
        view.end(summary_of(record), answered=record.answered)
    view.close()
    return record, error, files.artifacts
