"""Chooses the LM: the one that is named, else LM Studio's, else a small one in this process."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dspy

from rlm_dspy._dspy_compat import select_backend
from rlm_dspy.budget.lm_info import context_window
from rlm_dspy.embedded.engine import embedded_lm
from rlm_dspy.embedded.hub_address import named_model
from rlm_dspy.embedded.llama_server import EXTRA
from rlm_dspy.embedded.model_cache import best_cached, cached_file, how_to_pull, lm_name
from rlm_dspy.embedded.model_catalog import DEFAULT
from rlm_dspy.embedded.pull import pull_model
from rlm_dspy.errors import RLMError, UnknownModel
from rlm_dspy.limits import Limits
from rlm_dspy.text import print_to_stderr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rlm_dspy.embedded.hub_address import HubAddress
    from rlm_dspy.embedded.model_catalog import CatalogueModel

__all__ = [
    "EMBEDDED",
    "ModelNotPulled",
    "ModelUnreachable",
    "UnknownModel",
    "choose_model",
    "limits_for",
]

EMBEDDED = "embedded"
_LM_STUDIO = "lm_studio/"
_LM_STUDIO_BASE = "http://localhost:1234/v1"
_OLLAMA = ("ollama_chat/", "ollama/")
_OLLAMA_BASE = "http://localhost:11434"
_OLLAMA_WINDOW = 16_384
"""The window to ask Ollama for: its default is 4,096 tokens, and it drops what does not fit without an error."""
_REQUEST_SECONDS = 5
_NOT_FOUND = 404
_WINDOW_KEYS = ("loaded_context_length", "context_length", "max_model_len", "max_context_length")
"""The names of a model's window in `GET /models`: LM Studio, OpenRouter, vLLM, LM Studio again."""

_EMBEDDED_REPLY_TOKENS = 450
"""Enough for a code block; a small model that repeats itself writes up to the limit."""
_CHARS_PER_TOKEN = 3
_TOKENS_PER_TURN = 2_048
_NO_KEY = "none"
"""The key for a local server: OpenAI's protocol requires one, most local servers do not."""

_PROVIDERS = (
    *("anthropic", "azure", "bedrock", "deepseek", "gemini", "groq", "hosted_vllm", "lm_studio", "mistral"),
    *("ollama", "ollama_chat", "openai", "openrouter", "together_ai", "vertex_ai", "xai"),
)
_SPELLINGS = {name.replace("_", ""): name for name in _PROVIDERS}
"""How a provider is spelled, by its letters."""
_ALSO_MODELS = ("deepseek", "gemini", "mistral")
"""Before a colon these may be models of Ollama."""
_HOTTEST = 2


class _Settings(NamedTuple):
    """The arguments of `choose_model` that configure a model."""

    api_base: str | None
    api_key: str | None
    context_window: int | None
    max_reply_tokens: int | None
    temperature: float | None


class ModelUnreachable(RLMError, ConnectionError):  # noqa: N818
    """The model's server does not respond correctly; the operator starts or repairs it."""


class ModelNotPulled(UnknownModel):
    """A model of the catalogue or of an address is not downloaded; pull it, or call with `pull=True`.

    Attributes:
        entry: The model.
    """

    def __init__(self, entry: CatalogueModel | HubAddress) -> None:
        super().__init__(
            f"{how_to_pull(entry)} Or name another model: --model openai/gpt-5-mini, or RLM_DSPY_MODEL, or "
            "LM_STUDIO_API_BASE."
        )
        self.entry = entry


def choose_model(
    model: str | None = None,
    *,
    pull: bool = False,
    announce: Callable[[str], None] = print_to_stderr,
    api_base: str | None = None,
    api_key: str | None = None,
    context_window: int | None = None,
    max_reply_tokens: int | None = None,
    temperature: float | None = None,
) -> dspy.LM:
    """Return the LM to use.

    That is `model`; else the one that DSPy is configured with; else the one that `RLM_DSPY_MODEL` names; else LM
    Studio's, if `api_base` or `LM_STUDIO_API_BASE` is set (with `LM_STUDIO_API_KEY`, and
    `LM_STUDIO_MODEL` to choose among its models); else the best downloaded model, run in this process. Nothing
    global is changed: hand the LM to `dspy.configure` or `dspy.context`.

    Args:
        model: `"provider/name"` as `dspy.LM` takes it; `"lm_studio/name"`, or `"lm_studio"` for the model that it
            lists first (or `LM_STUDIO_MODEL`); `"ollama/name"`; or, to run it in this
            process, a name that `rlm-dspy models` lists, the address of a model on the hub
            (`"hf:owner/repository:Q4_K_M"`), the path of a GGUF file, or `"embedded"` for the best downloaded one.
        pull: Download a model of the catalogue or of an address that was not downloaded yet. Where none is named
            and none was downloaded, that is Qwen2.5-Coder 1.5B (1.1 GB).
        announce: Called with one line when a default model is chosen, and with each step of a download.
        api_base: The address of the model's server; default: as its provider's variables say.
        api_key: The key for it; default: as its provider's variables say.
        context_window: Tokens of prompt and reply together; default: as known of the model. An embedded model, or
            one of Ollama, is given such a window.
        max_reply_tokens: Maximum tokens of one reply; default: the provider's.
        temperature: Of sampling, 0 to 2; default: the server's, 0 for an embedded model. Servers such as LM Studio
            sample at about 0.8 by default, at which small models follow the protocol less well than at 0. A model
            that reasons may refuse another than its own.

    Raises:
        TypeError: If `model` is not a str.
        ValueError: If `temperature` is not a number from 0 to 2.
        UnknownModel: If there is no such model; the message names the fix. A `ModelNotPulled` if it can be
            downloaded.
        PullFailed: If the download failed.
        ModelUnreachable: If LM Studio or Ollama does not respond.
    """
    if model is None and dspy.settings.lm is not None:
        configured: dspy.LM = dspy.settings.lm
        return configured
    if temperature is not None and not (isinstance(temperature, int | float) and 0 <= temperature <= _HOTTEST):
        raise ValueError(f"temperature must be a number from 0 to {_HOTTEST}, not {temperature!r}.")
    settings = _Settings(api_base, api_key, context_window, max_reply_tokens, temperature)
    named = model or os.environ.get("RLM_DSPY_MODEL")
    if named:
        if not isinstance(named, str):
            raise TypeError(f"A model is named by a str such as 'openai/gpt-5-mini', not {named!r}.")
        return _named(named, pull, announce, settings)
    if api_base or os.environ.get("LM_STUDIO_API_BASE"):
        return _lm_studio("", announce, settings)
    lm = _downloaded(None, pull, announce, settings)
    announce(
        f"No model was named, so {lm.model} runs in this process: small, free, and often wrong. "
        "Name one with --model or RLM_DSPY_MODEL, e.g. openai/gpt-5-mini."
    )
    return lm


def limits_for(lm: dspy.BaseLM, **given: float | Mapping[str, tuple[float, float]] | None) -> Limits:
    """Return limits that suit an LM's context window; the defaults if it is large or unknown.

    In a small window the outputs of all turns together may fill half of it.

    Args:
        lm: Any DSPy LM.
        given: Fields of `Limits` that are already set; None leaves one open.

    Raises:
        TypeError: If `lm` is a str.
    """
    if isinstance(lm, str):
        raise TypeError(f"limits_for takes an LM, not a str; call limits_for(choose_model({lm!r})).")
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    usual, window = Limits(), context_window(lm)
    name = str(getattr(lm, "model", ""))
    if name.startswith(f"{EMBEDDED}/") and "max_cost" in chosen:
        chosen["prices"] = {name: (0.0, 0.0), **chosen.get("prices", {})}  # it runs here
    if window is None:
        return replace(usual, **chosen)
    turns = chosen.get("max_iters") or max(4, min(usual.max_iters, window // _TOKENS_PER_TURN))
    chars = max(300, min(usual.max_output_chars, window * _CHARS_PER_TOKEN // 2 // turns))
    return replace(usual, **{"max_iters": turns, "max_output_chars": chars, **chosen})


def _named(model: str, pull: bool, announce: Callable[[str], None], settings: _Settings) -> dspy.LM:
    if model == EMBEDDED or named_model(model):
        return _downloaded(named_model(model), pull, announce, settings)
    if model.lower().endswith(".gguf") or Path(model).expanduser().is_file():
        return _embedded(Path(model), settings)
    _check_spelling(model)
    if f"{model}/".startswith(_LM_STUDIO):
        return _lm_studio(model.partition("/")[2], announce, settings)
    if model.startswith(_OLLAMA):
        return _ollama(model.partition("/")[2], settings)
    return _of_a_provider(model, settings)


def _check_spelling(model: str) -> None:
    """Refuse a misspelt provider, as in `lmstudio/x` or `ollama:x`: LiteLLM would take long to do so.

    Raises:
        UnknownModel: If it is misspelt; the message has the right spelling.
    """
    provider, sign, name = re.split(r"([/:]|$)", model, maxsplit=1)
    right = _SPELLINGS.get(re.sub(r"[\W_]", "", provider).lower())
    is_right = model == "lm_studio" or (provider == right and sign == "/")
    if right is None or is_right or (sign == ":" and right in _ALSO_MODELS):
        return
    written = f"{right}/{name or 'NAME'}" if sign or right != "lm_studio" else right
    raise UnknownModel(f"Invalid model {model!r}: write {written}.")


def _lm(model: str, settings: _Settings, **kwargs: Any) -> dspy.LM:
    """Return the LM of a server."""
    known = {
        "api_base": settings.api_base,
        "api_key": settings.api_key,
        "max_tokens": settings.max_reply_tokens,
        "temperature": settings.temperature,
    }
    lm = dspy.LM(model, **{name: value for name, value in (known | kwargs).items() if value is not None})
    if settings.context_window:
        lm.context_window = settings.context_window
    return lm


def _of_a_provider(model: str, settings: _Settings) -> dspy.LM:
    needs_none = settings.api_base and not settings.api_key and model.startswith("openai/")
    key = {"api_key": _NO_KEY} if needs_none and not os.environ.get("OPENAI_API_KEY") else {}
    try:
        lm = _lm(model, settings, **key)
    except ValueError as error:
        raise UnknownModel(f"{str(error).rstrip('.')}.") from error
    if not select_backend(lm).native:
        import litellm  # noqa: PLC0415 (takes seconds, and most models do without it)

        # Otherwise it prints an advertisement.
        talks, litellm.suppress_debug_info = litellm.suppress_debug_info, True
        try:
            litellm.get_llm_provider(model)
        except litellm.BadRequestError as error:
            raise UnknownModel(
                f"Invalid model {model!r}: its provider is not known. Write provider/name, e.g. "
                "openai/gpt-5-mini, anthropic/claude-sonnet-4-5 or lm_studio/qwen3-8b; a name that "
                "`rlm-dspy models` lists; hf:owner/repository; or the path of a .gguf file."
            ) from error
        finally:
            litellm.suppress_debug_info = talks
    return lm


def _downloaded(
    entry: CatalogueModel | HubAddress | None,
    pull: bool,
    announce: Callable[[str], None],
    settings: _Settings,
) -> dspy.LM:
    """Return the LM of a catalogue model or an address; None is the best downloaded one."""
    entry = entry or best_cached() or DEFAULT
    if cached_file(entry) is None and find_spec("xllamacpp") is not None:
        if not pull:
            raise ModelNotPulled(entry)
        pull_model(entry, announce=announce)
    return _embedded(entry.name, settings)


def _embedded(model: str | Path, settings: _Settings) -> dspy.LM:
    if settings.api_base or settings.api_key:
        raise UnknownModel(
            f"{model} runs in this process and has no api_base or api_key. Name a model of the server, e.g. "
            "openai/NAME."
        )
    window = {"n_ctx": settings.context_window // 256 * 256} if settings.context_window else {}
    tokens, temperature = settings.max_reply_tokens or _EMBEDDED_REPLY_TOKENS, settings.temperature or 0.0
    try:
        return embedded_lm(model, max_tokens=tokens, temperature=temperature, **window)
    except FileNotFoundError as error:
        raise UnknownModel(str(error)) from error
    except ImportError as error:
        raise UnknownModel(
            f"To run a model in this process, install {EXTRA}. Or name another model: --model openai/gpt-5-mini, "
            "or RLM_DSPY_MODEL, or LM_STUDIO_API_BASE."
        ) from error


def _lm_studio(name: str, announce: Callable[[str], None], settings: _Settings) -> dspy.LM:
    """Return the LM of an OpenAI-compatible server; fail now if it does not respond, not after retries.

    Args:
        name: The model; if empty, the one that `LM_STUDIO_MODEL` names, else the first that the server lists.
        announce: Called with the model if none is named.
        settings: What the caller says of it.
    """
    base = (settings.api_base or os.environ.get("LM_STUDIO_API_BASE") or _LM_STUDIO_BASE).rstrip("/")
    key = settings.api_key or os.environ.get("LM_STUDIO_API_KEY") or "lm-studio"  # required only if configured
    models = {entry["id"]: entry for entry in _models_at(base, key, settings)}
    chat = [model for model in models if "embed" not in model.lower()]
    chosen = name or os.environ.get("LM_STUDIO_MODEL") or next(iter(chat), None)
    if chosen is None:
        raise ModelUnreachable(f"LM Studio at {base} has no model. Download or load one there: lms load NAME.")
    if chosen not in models and (entry := named_model(chosen)):
        chosen = lm_name(entry)  # as `python -m rlm_dspy.embedded` names it
    if models and chosen not in models:
        raise UnknownModel(f"LM Studio at {base} has no model {name or chosen!r}; it has: {', '.join(chat)}.")
    if not name:
        others = ", ".join(model for model in chat if model != chosen)
        announce(f"Using {chosen} of LM Studio at {base}{f'; it also has {others}' if others else ''}.")
    lm = _lm(f"openai/{chosen}", settings, api_base=base, api_key=key)
    lm.context_window = settings.context_window or _window(models.get(chosen, {}))
    return lm


def _ollama(name: str, settings: _Settings) -> dspy.LM:
    """Return the LM of a model of Ollama, with a known window, which each request asks for.

    That works by Ollama's own API only, which LiteLLM speaks: the OpenAI-compatible one takes no window.
    """
    base = settings.api_base or os.environ.get("OLLAMA_API_BASE") or os.environ.get("OLLAMA_HOST") or _OLLAMA_BASE
    base = (base if "://" in base else f"http://{base}").rstrip("/").removesuffix("/v1")
    shown = _ollama_model(base, name)
    largest = [size for key, size in shown.get("model_info", {}).items() if key.endswith(".context_length")]
    of_model = re.search(r"^num_ctx\s+(\d+)", shown.get("parameters", ""), re.MULTILINE)
    usual = of_model[1] if of_model else os.environ.get("OLLAMA_CONTEXT_LENGTH") or _OLLAMA_WINDOW
    window = min([settings.context_window or int(usual), *largest])
    key = settings.api_key or os.environ.get("OLLAMA_API_KEY")
    lm = _lm(f"ollama_chat/{name}", settings, api_base=base, engine="litellm", num_ctx=window, api_key=key)
    lm.context_window = window
    return lm


def _ollama_model(base: str, name: str) -> dict[str, Any]:
    """Return what Ollama shows of a model."""
    body = json.dumps({"model": name}).encode()
    request = urllib.request.Request(f"{base}/api/show", body, {"Content-Type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_REQUEST_SECONDS) as response:  # noqa: S310 (the user's address)
            shown: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        if error.code == _NOT_FOUND:
            raise UnknownModel(
                f"Ollama at {base} has no model {name!r}. Download it: ollama pull {name}."
            ) from error
        raise ModelUnreachable(f"Ollama at {base} refused POST /api/show: HTTP {error.code}.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ModelUnreachable(
            f"Ollama does not answer at {base} ({reason}). Start it (ollama serve), correct OLLAMA_API_BASE, or "
            "name another model."
        ) from error
    return shown


def _models_at(base: str, key: str, settings: _Settings) -> list[dict[str, Any]]:
    """Return what `GET {base}/models` lists."""
    address = "api_base" if settings.api_base else "LM_STUDIO_API_BASE"
    if not base.startswith(("http://", "https://")):
        raise UnknownModel(f"{address} must be an address like {_LM_STUDIO_BASE}, not {base!r}.")
    request = urllib.request.Request(f"{base}/models", headers={"Authorization": f"Bearer {key}"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_REQUEST_SECONDS) as response:  # noqa: S310 (checked above)
            listed: list[dict[str, Any]] = json.load(response)["data"]
    except urllib.error.HTTPError as error:
        hint = (
            f"Set {'api_key' if settings.api_key else 'LM_STUDIO_API_KEY'} to a key it accepts."
            if error.code in (401, 403)
            else f"{address} usually ends in /v1."
        )
        raise ModelUnreachable(f"LM Studio at {base} refused GET /models: HTTP {error.code}. {hint}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ModelUnreachable(
            f"LM Studio does not answer at {base} ({reason}). Start its server (lms server start), correct "
            f"{address}, or unset it and name another model."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelUnreachable(
            f"The server at {base} is not OpenAI-compatible. {address} usually ends in /v1."
        ) from error
    return listed


def _window(entry: Mapping[str, Any]) -> int | None:
    """Return the window that a server's list of models names, if any."""
    told = [entry.get(key) for key in _WINDOW_KEYS] + [(entry.get("meta") or {}).get("n_ctx_train")]
    return next((value for value in told if isinstance(value, int) and value > 0), None)
