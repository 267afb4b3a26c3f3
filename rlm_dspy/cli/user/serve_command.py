"""The command `rlm-dspy serve program.py`."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from rlm_dspy.cli.errors import errors_as_lines, tell
from rlm_dspy.cli.options import Debug, command
from rlm_dspy.cli.program import load_program, program_file
from rlm_dspy.cli.signals import hangup_as_sigterm
from rlm_dspy.cli.user.completion import check_model, complete_model
from rlm_dspy.errors import UsageError

if TYPE_CHECKING:
    import dspy

_KEY = "RLM_DSPY_SERVE_KEY"
_LEAST_KEY_CHARS = 16


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What `rlm-dspy serve` is given."""

    program: Annotated[
        str,
        Argument(
            metavar="FILE.py[:NAME]",
            help="A Python file with a dspy.Module named `program`, or NAME, that has an RLM in it.",
            show_default=False,
        ),
    ]
    port: Annotated[int, Option(min=0, max=65535, help="The port; 0 for a free one.")] = 8000
    host: Annotated[str, Option(help="The address to listen on; one that others can reach needs a key.")] = (
        "127.0.0.1"
    )
    other_host: Annotated[
        list[str] | None,
        Option(metavar="NAME", help="A further name in the address of the server, e.g. that of its proxy."),
    ] = None
    keys: Annotated[
        Path | None, Option(help=f"A file with the keys of clients, one on a line; or set {_KEY} to one key.")
    ] = None
    name: Annotated[str | None, Option(help="The name of the model; default: that of the file.")] = None
    model: Annotated[
        str | None,
        Option(
            help="As for `ask`; default: the one that FILE.py configures.",
            autocompletion=complete_model,
            callback=check_model,
        ),
    ] = None
    max_runs: Annotated[int, Option(min=1, help="Runs at once; further requests are refused.")] = 8
    grace: Annotated[
        int, Option(min=0, metavar="SECONDS", help="How long runs may go on after Ctrl-C or SIGTERM.")
    ] = 30
    debug: Debug = False


@command
def serve(options: ServeOptions) -> None:
    """Serve a program over HTTP, with OpenAI's chat completions and responses, until Ctrl-C, SIGTERM or SIGHUP.

    Any client of OpenAI's API can ask it: the base URL is http://127.0.0.1:8000/v1. A client that hangs up ends
    its run. /health and /metrics (for Prometheus) are beside it.

    \b
    For example:
      rlm-dspy serve program.py --port 8000
      RLM_DSPY_SERVE_KEY=$(openssl rand -hex 32) rlm-dspy serve program.py --host 0.0.0.0

    Exit codes: 0 after Ctrl-C, SIGTERM or SIGHUP, 2 invalid usage, 3 if the server could not be started.
    """  # noqa: D301 (\b keeps the line breaks)
    with errors_as_lines(debug=options.debug):
        import dspy

        from rlm_dspy import service

        keys = _keys(options.keys)
        _, program = load_program(options.program)
        lm = _lm(options)
        with dspy.context(lm=lm), contextlib.suppress(KeyboardInterrupt), hangup_as_sigterm():
            service.serve(
                program,
                port=options.port,
                name=options.name or program_file(options.program).stem,
                host=options.host,
                keys=keys,
                other_hosts=options.other_host or (),
                max_runs=options.max_runs,
                grace_seconds=options.grace,
                announce=lambda url: tell(f"Serving {options.program} with {lm.model} at {url}. Ctrl-C stops it."),
            )


def _lm(options: ServeOptions) -> dspy.LM:
    """Return the LM: the option's, else the one that the program's file configured, else the default."""
    import dspy

    from rlm_dspy.cli.user.configuration import ModelSettings, load_configuration
    from rlm_dspy.models import choose_model

    configuration = load_configuration()
    name = options.model or (None if dspy.settings.lm else configuration.named(None))
    return choose_model(name, **configuration.settings(name, ModelSettings()).model_dump())


def _keys(path: Path | None) -> list[str]:
    """Return the keys of a file, or of the environment.

    Raises:
        UsageError: If the file cannot be read, or a key is so short that it can be guessed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path else [os.environ.get(_KEY, "")]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--keys {path}: it cannot be read ({error}).") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if path and not keys:
        raise UsageError(f"--keys {path}: it has no key. Write one on each line.")
    if any(len(key) < _LEAST_KEY_CHARS for key in keys):
        raise UsageError(f"A key is shorter than {_LEAST_KEY_CHARS} characters. Make one: openssl rand -hex 32.")
    return keys
