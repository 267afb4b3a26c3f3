"""Arguments and options shared by several commands, and commands whose options are a dataclass."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer
from typer import Argument, Option

from rlm_dspy.cli.errors import INTERRUPTED, tell
from rlm_dspy.cli.user.completion import check_model, complete_model
from rlm_dspy.cli.user.last_store import remember_store
from rlm_dspy.errors import RLMError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import dspy

Group = TypeVar("Group")
_RUN_NAME_CHARS = 80
_HURRY_SECONDS = 5
STORE_FILE = "mlflow.db"
_STATUS = {"interrupted": "KILLED", "paused": "KILLED", "failed": "FAILED"}
"""The status of an MLflow run, by `Record.stop`."""


class InterpreterName(StrEnum):
    """The interpreters that `--interpreter` accepts."""

    python = "python"
    local = "local"
    process = "process"
    deno = "deno"


Files = Annotated[
    list[str] | None,
    Argument(
        metavar="FILE",
        help="Texts, PDF, DOCX, PPTX, XLSX, EPUB, HTML, http(s) addresses, folders, a CSV or Parquet table, ...; "
        "- is standard input.",
        show_default=False,
    ),
]


def _folder(written: str) -> Path:
    """Return the folder of an option; an empty name would stand for the working directory."""
    if not written.strip():
        raise typer.BadParameter("the name is empty; a dot is this folder.")
    return Path(written)


def _run_file(path: Path) -> Path:
    """Return the path of a run, given as a path or as its number in the history."""
    if path == Path():
        raise typer.BadParameter("the name is empty, or this folder; name a file.")
    number = str(path).removeprefix("@")
    if number == str(path) or not number.isdecimal() or path.exists():
        return path
    from rlm_dspy.cli.user.history import kept_run

    try:
        return kept_run(int(number))
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


Run = Annotated[
    Path,
    Argument(
        metavar="RUN",
        help="A file written by ask --save or --log, or @1 for the last run of `rlm-dspy history`, @2, ...",
        callback=_run_file,
        show_default=False,
    ),
]
RunNumber = Annotated[int | None, Option(min=1, help="Number of the run in a file with several; the first is 1.")]
Model = Annotated[
    str | None,
    Option(
        help="provider/name, lm_studio/name, a name that `rlm-dspy models` lists, hf:owner/repository:Q4_K_M, or "
        "the path of a GGUF file. By default RLM_DSPY_MODEL, else LM Studio if LM_STUDIO_API_BASE is set, else "
        "that of the configuration file, else the best downloaded model.",
        autocompletion=complete_model,
        callback=check_model,
    ),
]
Interpreter = Annotated[
    InterpreterName | None,
    Option(
        help="Where code runs: python (confined worker; the default), deno (WASM), process (a separate one), "
        "local (this process). `process` and `local` do not protect your files from the model's code."
    ),
]
Skills = Annotated[
    list[Path] | None,
    Option(
        help="A folder of skills, which the model may load; again for more.",
        show_default=False,
        parser=_folder,
        metavar="PATH",
    ),
]
Mcp = Annotated[
    list[Path] | None,
    Option(
        help='A JSON file with MCP servers, {"mcpServers": {...}}, whose tools code may call.', show_default=False
    ),
]
Trace = Annotated[bool, Option("--trace", help="Log to MLflow.")]
Approve = Annotated[bool, Option("--approve", help="Ask at the terminal before code runs.")]
ApproveAnswer = Annotated[
    bool, Option("--approve-answer", help="Ask at the terminal whether the answer is accepted.")
]
Debug = Annotated[bool, Option("--debug", help="Show tracebacks of errors.")]


def asks_at_terminal(*, wanted: bool) -> Any:
    """Return the hook that asks a person, after a check that it can; None if the option is not set.

    Raises:
        UsageError: If there is no terminal.
    """
    from rlm_dspy.approval.terminal import ask_at_terminal, terminal

    if wanted:
        try:
            with terminal():
                pass
        except RLMError as error:
            raise UsageError(f"--approve: {error}") from error
    return ask_at_terminal


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where the answer and the run are written."""

    answer_json: Annotated[
        bool,
        Option("--answer-json", help="Print the answer as one JSON object: all output fields, with their types."),
    ] = False
    as_json: Annotated[bool, Option("--json", help="Print the whole run as one JSON object, and no steps.")] = (
        False
    )
    save: Annotated[Path | None, Option(help="Write the run to this file as JSON.")] = None
    report: Annotated[Path | None, Option(help="Write the run to this file as an HTML page.")] = None
    output_dir: Annotated[
        Path | None,
        Option(
            help="Write the files that code makes below output/ to this directory.",
            parser=_folder,
            metavar="PATH",
        ),
    ] = None


def command(run: Callable[[Group], None]) -> Callable[..., None]:
    """Return a Typer command whose arguments and options are the fields of the dataclass that a function takes."""
    group, _ = get_type_hints(run).values()
    hints = get_type_hints(group, include_extras=True)

    @functools.wraps(run)
    def call(**given: object) -> None:
        run(group(**given))

    fields = inspect.signature(group).parameters.values()
    signature = inspect.Signature([field.replace(annotation=hints[field.name]) for field in fields])
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def factory_of(
    name: InterpreterName | None, packages: Sequence[str] = ()
) -> Callable[[], dspy.CodeInterpreter] | None:
    """Return the factory of an interpreter by name; None for the default.

    Args:
        name: The name.
        packages: The packages that code may import in the confined interpreter beside the default ones.
    """
    import dspy

    from rlm_dspy import interpreters
    from rlm_dspy.interpreters.host.fork_server_client import default_packages

    python: Callable[[], dspy.CodeInterpreter] = interpreters.PythonInterpreter
    if packages:
        python = functools.partial(interpreters.PythonInterpreter, packages=[*default_packages(), *packages])
    if name is None:
        return python if packages else None
    factories: dict[InterpreterName, Callable[[], dspy.CodeInterpreter]] = {
        InterpreterName.python: python,
        InterpreterName.local: interpreters.LocalPythonInterpreter,
        InterpreterName.process: dspy.LocalInterpreter,
        InterpreterName.deno: dspy.PythonInterpreter,
    }
    return factories[name]


@dataclass
class Traced:
    """The traced run.

    Attributes:
        stop: Why it ended, as in `Record.stop`; empty for a normal end.
    """

    stop: str = ""


@contextlib.contextmanager
def traced(name: str) -> Iterator[Traced]:
    """Log DSPy's calls to MLflow at `MLFLOW_TRACKING_URI`, else to a file in the working directory.

    The end of the scope waits for the store: print and save results inside it.

    Args:
        name: The name of the MLflow run.

    Raises:
        typer.Exit: If the wait for the store was interrupted.
    """
    tell(f"Opening MLflow at {tracking_store()} ...")
    from rlm_dspy import tracing

    tracing.autolog(store=tracking_store(), experiment="rlm-dspy")
    remember_store(tracking_store())
    what = Traced()
    with tracing.logged_run(name[:_RUN_NAME_CHARS], lambda: _STATUS.get(what.stop, "FINISHED")):
        try:
            yield what
        finally:
            stored = _stored()
    if not stored:
        raise typer.Exit(INTERRUPTED)


def tracking_store() -> str:
    """Return the store that runs are logged to: `MLFLOW_TRACKING_URI`, else a file in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE_FILE}"


def _stored() -> bool:
    """Wait until the traces are stored and report it; return False after an interrupt."""
    from rlm_dspy import tracing

    look = f"View it: {tracking_store() if tracking_store().startswith('http') else 'rlm-dspy ui'}"
    try:
        tell(f"Storing the trace in {tracking_store()} ...")
        if tracing.flush():
            tell(f"Logged to MLflow. {look}")
            return True
    except KeyboardInterrupt:
        tell(
            f"Interrupted. Ending the trace takes at most {_HURRY_SECONDS} seconds; press Ctrl-C again to skip it."
        )
        with contextlib.suppress(KeyboardInterrupt):
            tracing.hurry(_HURRY_SECONDS)
        tell(f"The trace in MLflow may be incomplete. {look}")
        return False
    tell(f"{tracking_store()} did not store the whole trace. {look}")
    return True
