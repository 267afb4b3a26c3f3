"""Reads the configuration file of the command line.

    model = "openai/gpt-5-mini"
    sub_model = "openai/gpt-5-nano"
    history = 50                                     # runs that are kept; 0 keeps none
    skills = ["~/skills"]                            # folders of skills

    [limits]                                         # fields of rlm_dspy.Limits
    max_cost = 0.5
    prices = { "openai/my-model" = [0.25, 2.0] }     # US dollars per million tokens, read and written

    [mcp_servers.files]                              # tools of MCP servers; `url` and `headers` for one over HTTP
    command = "npx"
    args = ["-y", "some-server"]
    env = { KEY = "${FILES_KEY}" }                   # an environment variable

    [providers.openai]                               # of models named openai/...; "embedded" is this process
    api_base = "http://localhost:8000/v1"
    api_key = "env:MY_KEY"                           # or file:PATH, or keyring:SERVICE/USER
    context_window = 32768
    max_reply_tokens = 2000
    temperature = 0.0

An option takes precedence over the environment, and the environment over this file.
"""

from __future__ import annotations

import os
import stat
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rlm_dspy.cli.errors import tell
from rlm_dspy.cli.user.keys import key_of, names_key
from rlm_dspy.embedded.hub_address import named_model
from rlm_dspy.errors import UsageError
from rlm_dspy.limits import Limits
from rlm_dspy.mcp.servers import MCPServer

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

FILE_VARIABLE = "RLM_DSPY_CONFIG"
_EMBEDDED, _LM_STUDIO = "embedded", "lm_studio"


class ModelSettings(BaseModel):
    """How to reach a model, and its limits for input and output: arguments of `choose_model`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    api_base: str | None = Field(
        default=None, pattern="^https?://", examples=['api_base = "http://localhost:8000/v1"']
    )
    api_key: str | None = Field(default=None, min_length=1, repr=False, examples=['api_key = "env:MY_KEY"'])
    context_window: int | None = Field(default=None, ge=1_000, examples=["context_window = 32768"])
    max_reply_tokens: int | None = Field(default=None, ge=1, examples=["max_reply_tokens = 2000"])
    temperature: float | None = Field(default=None, ge=0, le=2, examples=["temperature = 0.0"])


class Configuration(BaseModel):
    """The content of the file; every key is optional."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model: str | None = Field(default=None, min_length=1, examples=['model = "openai/gpt-5-mini"'])
    sub_model: str | None = Field(default=None, min_length=1, examples=['sub_model = "openai/gpt-5-nano"'])
    history: int = Field(default=100, ge=0, examples=["history = 50"])
    """How many runs `rlm-dspy history` keeps; 0 keeps none."""
    limits: dict[str, Any] = {}
    """Some fields of `Limits`."""
    providers: dict[str, ModelSettings] = Field(default={}, examples=['providers.openai.api_key = "env:MY_KEY"'])
    """How to reach models, by the provider in their names."""
    skills: list[str] = Field(default=[], examples=['skills = ["~/skills"]'])
    """Folders of skills."""
    mcp_servers: dict[str, MCPServer] = Field(default={}, examples=['mcp_servers.files.command = "npx"'])
    """MCP servers, whose tools code may call."""

    @field_validator("limits")
    @classmethod
    def _are_limits(cls, limits: dict[str, Any]) -> dict[str, Any]:
        try:
            Limits(**limits)
        except TypeError as error:
            raise ValueError(str(error)) from error
        return limits

    def named(self, model: str | None) -> str | None:
        """Return the model to use: the given one, else of the environment, else of the file; None without any."""
        if chosen := model or os.environ.get("RLM_DSPY_MODEL"):
            return chosen
        return None if _has(_LM_STUDIO, "API_BASE") else self.model

    def settings(self, model: str | None, given: ModelSettings) -> ModelSettings:
        """Return the settings of a model: as given by options, else by the environment, else by the file.

        The provider's client reads the environment, which takes precedence over the file. A key of the file is
        used only with the file's address.

        Raises:
            UsageError: If the file refers to a key that does not exist.
        """
        of_lm_studio = self.providers.get(_LM_STUDIO, ModelSettings()).api_base
        served = given.api_base or _has(_LM_STUDIO, "API_BASE") or of_lm_studio
        provider = provider_of(model) if model else _LM_STUDIO if served else _EMBEDDED
        found = self.providers.get(provider, ModelSettings()).model_dump()
        if _has(provider, "API_BASE", "BASE_URL"):
            found["api_base"] = None
        if found["api_base"] is None and _has(provider, "API_KEY"):
            found["api_key"] = None
        if found["api_key"] is not None:
            found["api_key"] = key_of(found["api_key"], configuration_file(), f"providers.{provider}.api_key")
        return ModelSettings(**found | given.model_dump(exclude_none=True))


def provider_of(model: str) -> str:
    """Return the provider in the name of a model; `embedded` for one that runs in this process."""
    if named_model(model) or model.lower().endswith(".gguf"):
        return _EMBEDDED
    return model.partition("/")[0].removesuffix("_chat")  # ollama_chat/NAME


def _has(provider: str, *settings: str) -> bool:
    return any(os.environ.get(f"{provider.upper()}_{setting}") for setting in settings)


def configuration_file() -> Path:
    """Return the path: `RLM_DSPY_CONFIG`, else `config.toml` in the user's folder for settings of `rlm-dspy`."""
    chosen = os.environ.get(FILE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(typer.get_app_dir("rlm-dspy")) / "config.toml"


def load_configuration() -> Configuration:
    """Return the configuration; an empty one if there is no file.

    Warns on standard error if others can read a key that is in the file itself.

    Raises:
        UsageError: If the file cannot be read, or something in it is not valid.
    """
    path = configuration_file()
    try:
        found = Configuration.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if os.environ.get(FILE_VARIABLE):
            raise UsageError(
                f"{FILE_VARIABLE} names {path}, which does not exist. Make it, or unset it."
            ) from None
        return Configuration()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}. Correct it, or set {FILE_VARIABLE}.") from None
    except ValidationError as error:
        raise UsageError(f"{path}: {' '.join(map(_error_text, error.errors(include_input=False)))}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(
            f'{path} is not valid TOML: {error}. Texts have quotes: model = "openai/gpt-5-mini".'
        ) from None
    in_clear = any(each.api_key and not names_key(each.api_key) for each in found.providers.values())
    if in_clear and sys.platform != "win32" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        tell(f"Warning: {path} contains a key, and other users can read it. Protect it: chmod 600 {path}")
    return found


def _error_text(error: ErrorDetails) -> str:
    """Return one error of the file: the key, what is wrong, and the fix."""
    where = error["loc"]
    inner: dict[str, type[BaseModel]] = {"providers": ModelSettings, "mcp_servers": MCPServer}
    of = inner[str(where[0])] if len(where) > 2 else Configuration  # noqa: PLR2004 (providers.NAME.KEY)
    fields = of.model_fields
    key = ".".join(map(str, where))
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}. The keys here are: {', '.join(fields)}."
    field = fields.get(str(where[2] if len(where) > 2 else where[0]))  # noqa: PLR2004
    example = f" Write e.g. {field.examples[0]}." if field and field.examples else ""
    return f"{key}: {error['msg'].removeprefix('Value error, ').rstrip('.')}.{example}"
