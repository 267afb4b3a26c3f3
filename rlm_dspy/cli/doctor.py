"""The command `rlm-dspy doctor`."""

from __future__ import annotations

import typer

from rlm_dspy.cli.errors import errors_as_lines
from rlm_dspy.text import printable


def doctor() -> None:
    """Print which confinement layers this system supports, what they guarantee, and what is configured.

    Exit codes: 0 if PythonInterpreter runs here with its default confinement, 1 if it refuses, 2 if the
    configuration file is not valid.
    """
    from rlm_dspy import interpreters

    diagnosis = interpreters.doctor()
    typer.echo(printable(interpreters.render(diagnosis)))
    with errors_as_lines(debug=False):
        typer.echo(printable(_configured()))
    raise typer.Exit(0 if diagnosis.chosen else 1)


def _configured() -> str:
    """Return the content of the configuration file as text, without keys."""
    from rlm_dspy.cli.user.configuration import ModelSettings, configuration_file, load_configuration
    from rlm_dspy.cli.user.history import history_folder, runs_to_keep

    configuration, path = load_configuration(), configuration_file()
    lines = [f"Configuration: {path}{'' if path.exists() else ' (there is none)'}"]
    lines.append(f"Model: {configuration.named(None) or 'none is named'}")
    for provider in configuration.providers:
        settings = configuration.settings(f"{provider}/", ModelSettings())
        known = settings.model_dump(exclude={"api_key"}, exclude_none=True)
        parts = [f"{name} {value}" for name, value in known.items()] + ["a key"] * bool(settings.api_key)
        lines.append(f"Provider {provider}: {', '.join(parts)}")
    lines.append(f"History: the last {runs_to_keep(configuration.history)} runs, in {history_folder()}")
    return "\n".join(lines)
