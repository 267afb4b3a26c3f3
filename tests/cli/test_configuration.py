"""Models, prices and limits of the command line: options, environment, configuration file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from rlm_dspy.cli.app import app
from rlm_dspy.cli.user.configuration import ModelSettings, load_configuration
from rlm_dspy.report.record import Record
from tests.cli.model_server import ModelServer, serving
from tests.commands import ask, record_of

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "abcd-not-a-real-key-1234567"
QWEN = ("--model", "openai/qwen")


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the configuration file, which is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    for name in ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "RLM_DSPY_MODEL", "LM_STUDIO_API_BASE"):
        monkeypatch.delenv(name, raising=False)
    unlike_others = f"The answer to {tmp_path.name} is 42.\n"  # no reply is of DSPy's cache
    Path("notes.txt").write_text(unlike_others, encoding="utf-8")
    path = tmp_path / "config.toml"
    path.touch(mode=0o600)
    monkeypatch.setenv("RLM_DSPY_CONFIG", str(path))
    return path


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with serving(ModelServer()) as server:
        yield server


# Options


def test_an_address_alone_means_the_first_model_of_its_server(server: ModelServer) -> None:
    result = ask("How much?", "notes.txt", "--api-base", server.base, lm=None)
    assert (result.exit_code, result.stdout) == (0, "42\n")
    assert "notes.txt, openai/listed, up to 8 turns)" in result.stderr  # 8 fit in the window that it lists
    assert server.bodies[0]["model"] == "listed"


def test_a_price_makes_a_cost_limit_work(server: ModelServer) -> None:
    """A million tokens read and half a million written."""
    given = (*QWEN, "--api-base", server.base, "--max-cost", "100", "--price", "0.25/2")
    result = ask("How much?", "notes.txt", "--json", *given, lm=None)
    assert record_of(result).usage.cost == pytest.approx(1.25)


def test_a_cost_limit_without_a_price_names_the_option(server: ModelServer) -> None:
    result = ask("How much?", "notes.txt", *QWEN, "--api-base", server.base, "--max-cost", "1", lm=None)
    assert (result.exit_code, server.bodies) == (2, [])
    assert "price of openai/qwen, which is not known" in result.stderr
    assert "--price 0.25/2" in result.stderr


def test_a_given_price_of_a_model_with_a_known_one_is_told(server: ModelServer) -> None:
    model = ("--model", "openai/gpt-4o-mini", "--api-base", server.base)
    told = "The price of openai/gpt-4o-mini is known; the given one is not used."
    assert told in ask("How much?", "notes.txt", *model, "--price", "1/1", lm=None).stderr


def test_window_and_reply_are_limited_for_the_model(server: ModelServer) -> None:
    limits = ("--context-window", "9000", "--max-reply-tokens", "700", "--max-output-tokens", "5000")
    result = ask("How much?", "notes.txt", "--json", *QWEN, "--api-base", server.base, *limits, lm=None)
    assert record_of(result).limits["max_output_tokens"] == 5_000
    assert record_of(result).limits["max_iters"] == 9_000 // 2_048
    assert next(value for name, value in server.bodies[0].items() if name.startswith("max_")) == 700


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--price", "1"], "--price 1: write US dollars per million tokens read and written"),
        (["--price", "-1/2", "--model", "openai/qwen"], "prices must give USD per million tokens"),
        (["--sub-price", "1/1"], "--sub-price is for --sub-model"),
        (["--api-base", "localhost:1"], "--api-base localhost:1: write an address"),
        (["--api-base", "http://localhost:1/v1", "--model", "embedded"], "runs in this process"),
        (["--json", "--answer-json"], "choose one"),
    ],
)
def test_bad_options_name_the_fix(arguments: list[str], problem: str, smollm2: Path) -> None:
    result = ask("?", "notes.txt", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert problem in result.stderr


def test_the_answer_as_json_has_all_output_fields_with_their_types() -> None:
    reply = "```python\nSUBMIT(days={'2025-03-14': 1.5}, names=['Bö'], sure=True)\n```"
    fields = "context, question -> days: dict[str, float], names: list[str], sure: bool"
    result = ask("When?", "notes.txt", "--answer-json", "--signature", fields, replies=[reply])
    assert json.loads(result.stdout) == {"days": {"2025-03-14": 1.5}, "names": ["Bö"], "sure": True}
    assert list(json.loads(result.stdout)) == ["days", "names", "sure"]


def test_without_an_answer_there_is_no_json() -> None:
    result = ask("?", "notes.txt", "--answer-json", "--max-iters", "1", replies=lambda messages: "<think>Hm")
    assert (result.exit_code, result.stdout) == (1, "")


def test_quiet_prints_the_answer_and_nothing_else() -> None:
    result = ask("How much?", "notes.txt", "--quiet", "--save", "run.json", "--report", "run.html")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "42\n", "")
    assert (Path("run.json").exists(), Path("run.html").exists()) == (True, True)
    assert "File not found" in ask("How much?", "gone.txt", "--quiet").stderr


def test_quiet_says_that_there_is_no_answer() -> None:
    result = ask("?", "notes.txt", "-q", "--max-iters", "1", replies=lambda messages: "<think>Hm")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("No answer: No SUBMIT")


@pytest.mark.parametrize("option", ["--model", "--sub-model"])
def test_an_empty_name_of_a_model_is_refused(option: str) -> None:
    """A shell gives one for a variable that is not set; the default model would run instead."""
    result = ask("How much?", "notes.txt", option, "", lm=None)
    assert result.exit_code == 2
    assert "the name is empty" in result.stderr


# The file


def test_the_file_gives_model_address_key_and_limits(configuration: Path, server: ModelServer) -> None:
    configuration.write_text(
        f'model = "openai/qwen"\n[limits]\nmax_iters = 3\n[providers.openai]\napi_base = "{server.base}"\n'
        f'api_key = "file:key.txt"\ncontext_window = 8192\nmax_reply_tokens = 600\n',
        encoding="utf-8",
    )
    configuration.with_name("key.txt").write_text(f"{KEY}\n", encoding="utf-8")
    result = ask("How much?", "notes.txt", lm=None)
    assert (result.stdout, server.keys) == ("42\n", [KEY])
    assert "openai/qwen, up to 3 turns)" in result.stderr
    assert KEY not in result.output


def test_a_temperature_is_sent_only_if_one_is_given(configuration: Path, server: ModelServer) -> None:
    """By the option, else by the file; a server samples as it likes otherwise."""
    configuration.write_text(f'model = "openai/qwen"\n[providers.openai]\napi_base = "{server.base}"\n')
    ask("How much?", "notes.txt", lm=None)
    ask("How much?", "notes.txt", "--temperature", "0", lm=None)
    with configuration.open("a") as file:
        file.write("temperature = 0.3\n")
    ask("How much?", "notes.txt", lm=None)
    ask("How much?", "notes.txt", "--temperature", "0.1", lm=None)
    assert [body.get("temperature") for body in server.bodies] == [None, 0, 0.3, 0.1]
    refused = ask("How much?", "notes.txt", "--temperature", "3", lm=None)
    assert refused.exit_code == 2
    assert "--temperature" in refused.stderr


def test_the_address_of_lm_studio_in_the_file_is_enough(configuration: Path, server: ModelServer) -> None:
    configuration.write_text(f'[providers.lm_studio]\napi_base = "{server.base}"\n', encoding="utf-8")
    result = ask("How much?", "notes.txt", lm=None)
    assert (result.exit_code, result.stdout) == (0, "42\n")
    assert result.stderr.startswith(f"Using listed of LM Studio at {server.base}.\n")


def test_an_address_of_the_file_that_does_not_answer_is_told_with_the_file(configuration: Path) -> None:
    configuration.write_text('[providers.lm_studio]\napi_base = "http://127.0.0.1:9/v1"\n', encoding="utf-8")
    result = ask("How much?", "notes.txt", lm=None)
    assert result.exit_code == 3
    assert "LM Studio does not answer at http://127.0.0.1:9/v1" in result.stderr
    assert f"api_base is set in {configuration}." in result.stderr
    assert "LM_STUDIO_API_BASE" not in result.stderr


def test_an_option_comes_before_the_environment_and_that_before_the_file(
    configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration.write_text('model = "openai/file"\n[providers.openai]\napi_key = "of the file"\n')
    assert load_configuration().named(None) == "openai/file"
    monkeypatch.setenv("RLM_DSPY_MODEL", "openai/environment")
    assert load_configuration().named(None) == "openai/environment"
    assert load_configuration().named("openai/option") == "openai/option"
    assert load_configuration().settings("openai/x", ModelSettings()).api_key == "of the file"
    monkeypatch.setenv("OPENAI_API_KEY", "of the environment")
    assert load_configuration().settings("openai/x", ModelSettings()).api_key is None  # the client reads it


def test_a_key_of_the_file_stays_with_the_address_of_the_file(
    configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a server of one's own would get the key of the provider whose protocol it speaks."""
    monkeypatch.setenv("OPENAI_API_KEY", "of the real provider")
    configuration.write_text('[providers.openai]\napi_base = "http://mine"\napi_key = "mine"\n')
    found = load_configuration().settings("openai/x", ModelSettings())
    assert (found.api_base, found.api_key) == ("http://mine", "mine")
    monkeypatch.setenv("OPENAI_API_BASE", "http://environment")
    found = load_configuration().settings("openai/x", ModelSettings())
    assert (found.api_base, found.api_key) == (None, None)


def test_the_models_of_the_file_belong_together(configuration: Path, server: ModelServer) -> None:
    """The sub-calls of a model that an option names do not go to another one of the file."""
    configuration.write_text(
        f'model = "openai/qwen"\nsub_model = "openai/small"\nproviders.openai.api_base = "{server.base}"\n'
    )
    assert "openai/qwen, sub-calls openai/small, " in ask("How much?", "notes.txt", lm=None).stderr
    assert "sub-calls" not in ask("How much?", "notes.txt", "--model", "openai/other", lm=None).stderr


def test_the_key_stands_in_nothing_that_is_written(
    configuration: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if the server quotes it."""
    server.text = ""
    monkeypatch.setenv("XDG_STATE_HOME", str(configuration.parent / "state"))
    monkeypatch.setenv("RLM_DSPY_HISTORY", "5")
    monkeypatch.setenv("MY_NAME_FOR_IT", KEY)
    configuration.write_text(
        f'model = "openai/qwen"\n[providers.openai]\napi_base = "{server.base}"\napi_key = "env:MY_NAME_FOR_IT"\n'
    )
    written = ("--save", "run.json", "--report", "run.html", "--log", "run.jsonl", "--debug")
    result = ask("How much?", "notes.txt", *written, lm=None)
    assert (result.exit_code, KEY in server.keys) == (3, True)
    assert "Incorrect API key: ***" in Record.load("run.json").error  # type: ignore[operator]
    texts = [path.read_text(encoding="utf-8") for path in configuration.parent.rglob("*") if path.is_file()]
    assert len(texts) >= 6
    assert not any(KEY in text for text in [*texts, result.output, CliRunner().invoke(app, ["doctor"]).output])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('modle = "x"', "unknown key 'modle'. The keys here are: model, sub_model, history, limits, providers, "),
        ("model = x", 'is not valid TOML: Invalid value (at line 1, column 9). Texts have quotes: model = "'),
        ("model = 3", 'model: Input should be a valid string. Write e.g. model = "openai/gpt-5-mini".'),
        ("history = -1", "history: Input should be greater than or equal to 0. Write e.g. history = 50."),
        ("limits.max_iters = 0", "limits: max_iters must be a whole number of at least 1, not 0."),
        ("limits.max_iter = 3", "limits: Limits has no argument 'max_iter'; did you mean 'max_iters'?"),
        ('providers.openai.key = "sk-12345"', "unknown key 'providers.openai.key'. The keys here are: api_base, "),
        ('providers.openai.api_base = "x"', 'Write e.g. api_base = "http://localhost:8000/v1".'),
        ('providers.openai.api_key = ["sk-12345"]', "providers.openai.api_key: Input should be a valid string."),
        ('model = "openai/x"\nproviders.openai.api_key = "env:GONE"', "set the environment variable GONE"),
        ('model = "openai/x"\nproviders.openai.api_key = "file:gone"', "gone cannot be read: No such file"),
        ('model = "openai/x"\nproviders.openai.api_key = "keyring:a/b"', "pip install keyring"),
    ],
)
def test_an_error_names_the_file_the_key_and_the_fix(text: str, told: str, configuration: Path) -> None:
    configuration.write_text(text, encoding="utf-8")
    result = ask("?", "notes.txt", "--debug", lm=None)
    assert (result.exit_code, result.stdout) == (2, "")
    assert str(configuration) in result.stderr
    assert told in result.stderr
    assert "sk-12345" not in result.stderr


def test_a_file_that_is_named_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_DSPY_CONFIG", "/gone/config.toml")
    assert "RLM_DSPY_CONFIG names /gone/config.toml, which does not exist" in ask("?", "notes.txt").stderr


def test_a_key_of_a_keyring_is_found(configuration: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("keyring.py").write_text("def get_password(service, user):\n    return f'{user} at {service}'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    configuration.write_text('providers.openai.api_key = "keyring:models/me"')
    assert load_configuration().settings("openai/x", ModelSettings()).api_key == "me at models"


def test_a_key_that_others_can_read_is_warned_of(configuration: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configuration.write_text(f'providers.openai.api_key = "{KEY}"')
    load_configuration()
    assert capsys.readouterr().err == ""
    configuration.chmod(0o644)
    load_configuration()
    told = capsys.readouterr().err
    assert f"chmod 600 {configuration}" in told
    assert KEY not in told


def test_doctor_and_models_show_what_is_configured(configuration: Path) -> None:
    configuration.write_text(
        f'model = "smollm2-135m"\n[providers.openai]\napi_base = "http://mine"\napi_key = "{KEY}"\n'
    )
    told = CliRunner().invoke(app, ["doctor"]).output
    assert (
        f"Configuration: {configuration}\nModel: smollm2-135m\nProvider openai: api_base http://mine, a key"
        in told
    )
    assert KEY not in told
    assert "configuration file: smollm2-135m" in CliRunner().invoke(app, ["models"]).output
