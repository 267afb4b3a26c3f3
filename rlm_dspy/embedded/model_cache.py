"""Finds and removes downloaded models, and what was computed with them, in the cache folder."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from rlm_dspy.embedded.hub_address import HubAddress, HubFiles, read_address
from rlm_dspy.embedded.model_catalog import CATALOGUE, CatalogueModel, megabytes

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


def prompts_folder(model: str) -> Path:
    """Return the folder of the prompts that were computed with the model of this name (of its LM)."""
    return models_folder() / ".prompts" / model


def cached_file(model: CatalogueModel | HubAddress) -> Path | None:
    """Return the file of a model, or its first part, if it was downloaded. The download verified the checksum."""
    if isinstance(model, CatalogueModel):
        files = [(models_folder() / model.file, model.size)]
    elif record := _read_record(record_file(model)):
        files = [(path, file.size) for path, file in zip(files_of(model, record), record.files, strict=True)]
    else:
        return None
    whole = all(path.is_file() and path.stat().st_size == size for path, size in files)
    return files[0][0] if whole else None


def hub_folder(address: HubAddress) -> Path:
    """Return the folder of a repository's models."""
    return models_folder() / "hf" / address.repository


def record_file(address: HubAddress) -> Path:
    """Return the file that says which files an address meant when it was downloaded."""
    return hub_folder(address) / f"{quote(address.within, safe='') or 'best'}.json"


def files_of(address: HubAddress, chosen: HubFiles) -> list[Path]:
    """Return where the files of an address are kept: other contents are in another folder."""
    folder = hub_folder(address) / chosen.files[0].sha256[:12]
    return [folder / PurePosixPath(file.name).name for file in chosen.files]


def downloaded_addresses() -> list[HubAddress]:
    """Return the addresses that were downloaded, by name."""
    records = map(_read_record, models_folder().glob("hf/*/*/*.json"))
    found = [read_address(record.address) for record in records if record]
    return sorted(filter(cached_file, found), key=lambda address: address.name)


def _read_record(path: Path) -> HubFiles | None:
    try:
        record = HubFiles.from_json(path.read_bytes())
        read_address(record.address)
    except (OSError, ValueError):  # it was not downloaded, or the file is damaged
        return None
    return record if record.files else None


def lm_name(model: CatalogueModel | HubAddress) -> str:
    """Return the name of a model's LM after `embedded/`. Other contents have another name."""
    if isinstance(model, CatalogueModel):
        return model.lm_name
    path = cached_file(model)
    return f"{path.stem}-{path.parent.name}" if path else model.name


def best_cached() -> CatalogueModel | None:
    """Return the best downloaded model, by the order of the catalogue; None if there is none."""
    return next((model for model in reversed(CATALOGUE) if cached_file(model)), None)


def how_to_pull(model: CatalogueModel | HubAddress) -> str:
    """Return the message for a user whose program needs a model that was not downloaded."""
    size = f" ({megabytes(model.size)})" if isinstance(model, CatalogueModel) else ""
    return f"{model.name} is not on this machine. To download it{size}: rlm-dspy models pull {model.name}."


def remove(model: CatalogueModel | HubAddress) -> bool:
    """Delete the files of a model and the prompts computed with it; return whether there were files."""
    shutil.rmtree(prompts_folder(lm_name(model)), ignore_errors=True)
    if isinstance(model, CatalogueModel):
        path = models_folder() / model.file
        was_there = path.is_file()
        path.unlink(missing_ok=True)
        return was_there
    record = _read_record(record_file(model))
    if record:
        shutil.rmtree(files_of(model, record)[0].parent, ignore_errors=True)
        record_file(model).unlink()
    return record is not None
