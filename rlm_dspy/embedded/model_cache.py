"""Finds and removes downloaded models in the cache folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rlm_dspy.embedded.model_catalog import CATALOGUE, megabytes

if TYPE_CHECKING:
    from rlm_dspy.embedded.model_catalog import CatalogueModel

FOLDER_VARIABLE = "RLM_DSPY_MODELS"


def models_folder() -> Path:
    """Return the folder of the models: `RLM_DSPY_MODELS`, else `rlm-dspy/models` in the user's cache folder."""
    if chosen := os.environ.get(FOLDER_VARIABLE):
        return Path(chosen).expanduser().absolute()
    variable, usual = (
        ("LOCALAPPDATA", "AppData/Local") if sys.platform == "win32" else ("XDG_CACHE_HOME", ".cache")
    )
    base = Path(os.environ.get(variable) or "")
    return (base if base.is_absolute() else Path.home() / usual) / "rlm-dspy" / "models"


def cached_file(model: CatalogueModel) -> Path | None:
    """Return the file of a model if it was downloaded, else None. The download verified its checksum."""
    path = models_folder() / model.file
    return path if path.is_file() and path.stat().st_size == model.size else None


def best_cached() -> CatalogueModel | None:
    """Return the best downloaded model, by the order of the catalogue; None if there is none."""
    return next((model for model in reversed(CATALOGUE) if cached_file(model)), None)


def how_to_pull(model: CatalogueModel) -> str:
    """Return the message for a user whose program needs a model that was not downloaded."""
    size = megabytes(model.size)
    return f"{model.name} is not on this machine. To download it ({size}): rlm-dspy models pull {model.name}."


def remove(model: CatalogueModel) -> bool:
    """Delete the file of a model; return whether there was one."""
    path = models_folder() / model.file
    was_there = path.is_file()
    path.unlink(missing_ok=True)
    return was_there
