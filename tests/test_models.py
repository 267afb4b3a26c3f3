"""Which LM is chosen, and which limits suit it."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy import Limits
from rlm_dspy.budget.lm_info import context_window
from rlm_dspy.embedded import CATALOGUE
from rlm_dspy.embedded.engine import embedded_lm, serve
from rlm_dspy.models import ModelNotPulled, ModelUnreachable, UnknownModel, choose_model, limits_for
from rlm_dspy.testing import ScriptedLM
from tests.provider_server import Body, ProviderServer, Said, ollama, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("smollm2")
VARIABLES = (
    *("RLM_DSPY_MODEL", "LM_STUDIO_API_BASE", "LM_STUDIO_API_KEY", "LM_STUDIO_MODEL"),
    *("OLLAMA_API_BASE", "OLLAMA_HOST", "OLLAMA_API_KEY", "OLLAMA_CONTEXT_LENGTH"),
)
EMBEDDED_MODEL = "embedded/smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def _no_model_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """Serve the embedded model over HTTP, as LM Studio serves its own."""
    with serve(n_ctx=1_024, slots=1) as base_url:
        yield base_url


@pytest.fixture
def answering() -> Iterator[dict[str, object]]:
    """Run an HTTP server that answers every GET as the dict that is yielded says; `base` is its address."""
    answer: dict[str, object] = {"status": 200, "body": ""}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer["key"] = self.headers["Authorization"]
            self.send_response(int(str(answer["status"])))
            self.end_headers()
            self.wfile.write(str(answer["body"]).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    answer["base"] = f"http://127.0.0.1:{server.server_port}/v1"
    yield answer
    server.shutdown()
    thread.join()
    server.server_close()


def nothing_said(line: str) -> None:
    pytest.fail(f"announced: {line}")


def test_a_named_model_is_taken_without_a_word() -> None:
    assert choose_model("openai/gpt-5-mini", announce=nothing_said).model == "openai/gpt-5-mini"


def test_a_named_model_goes_before_the_configured_one_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_DSPY_MODEL", "openai/of-the-environment")
    with dspy.context(lm=ScriptedLM([])):
        assert choose_model("openai/named").model == "openai/named"


def test_the_configured_lm_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_DSPY_MODEL", "openai/of-the-environment")
    configured = ScriptedLM([])
    with dspy.context(lm=configured):
        assert choose_model(announce=nothing_said) is configured


def test_the_environment_names_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_DSPY_MODEL", "anthropic/some-model")
    monkeypatch.setenv("LM_STUDIO_API_BASE", "http://127.0.0.1:9/v1")
    assert choose_model(announce=nothing_said).model == "anthropic/some-model"


def test_without_any_setting_the_embedded_model_is_taken_and_announced() -> None:
    lines: list[str] = []
    lm = choose_model(announce=lines.append)
    assert lm.model == EMBEDDED_MODEL
    assert len(lines) == 1
    assert "--model or RLM_DSPY_MODEL" in lines[0]


def test_what_is_announced_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    choose_model()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert EMBEDDED_MODEL in captured.err


@pytest.mark.parametrize("name", ["embedded", "smollm2-135m"])
def test_a_model_of_this_process_that_is_named_is_not_announced(name: str) -> None:
    assert choose_model(name, announce=nothing_said).model == EMBEDDED_MODEL


@pytest.fixture
def _with_the_best_model(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have two models downloaded; of the better one only the length and the first bytes are right."""
    monkeypatch.setenv("RLM_DSPY_MODELS", str(tmp_path))
    (tmp_path / smollm2.name).symlink_to(smollm2)
    with (tmp_path / CATALOGUE[-1].file).open("wb") as file:
        file.write(b"GGUF")
        file.truncate(CATALOGUE[-1].size)


@pytest.mark.usefixtures("_with_the_best_model")
def test_of_the_downloaded_models_the_best_is_taken_and_announced() -> None:
    lines: list[str] = []
    assert choose_model(announce=lines.append).model == "embedded/qwen2.5-coder-1.5b-instruct"
    assert "embedded/qwen2.5-coder-1.5b-instruct" in lines[0]


@pytest.mark.usefixtures("_with_the_best_model")
def test_a_model_that_reads_well_may_be_asked_in_sub_calls() -> None:
    assert limits_for(choose_model("qwen2.5-coder-1.5b")).max_llm_calls == Limits().max_llm_calls


def test_a_model_that_was_not_downloaded_names_the_command() -> None:
    with pytest.raises(
        ModelNotPulled, match=r"rlm-dspy models pull qwen2\.5-coder-1\.5b.*--model openai/gpt-5-mini"
    ):
        choose_model("qwen2.5-coder-1.5b")


def test_without_a_downloaded_model_the_best_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_DSPY_MODELS", str(tmp_path))
    with pytest.raises(ModelNotPulled) as caught:
        choose_model()
    assert caught.value.entry is CATALOGUE[-1]


@pytest.mark.parametrize("model", ["no-such-model", "nobody/model", "openai/"])
def test_a_name_without_a_known_provider_is_refused(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownModel):
        choose_model(model)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("model", "right"),
    [
        ("lmstudio/qwen3-8b", "lm_studio/qwen3-8b"),
        ("LM-Studio", "lm_studio"),
        ("ollama:qwen3:8b", "ollama/qwen3:8b"),
        ("Ollama", "ollama/NAME"),
        ("OpenAI/gpt-5-mini", "openai/gpt-5-mini"),
    ],
)
def test_a_misspelt_provider_is_refused_with_its_right_spelling(
    model: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: without LiteLLM, which takes long."""
    monkeypatch.setitem(sys.modules, "litellm", None)
    with pytest.raises(UnknownModel, match=f"write {right}[.]$"):
        choose_model(model)


def test_the_refusal_of_a_name_shows_how_names_look() -> None:
    with pytest.raises(UnknownModel, match=r"provider/name, e\.g\. openai/gpt-5-mini"):
        choose_model("no-such-model")


def test_without_the_extra_the_error_says_what_to_install_or_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(UnknownModel, match=r"uv sync --extra embedded.*--model openai/gpt-5-mini"):
        choose_model()


def test_a_gguf_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"gone\.gguf"):
        choose_model(str(tmp_path / "gone.gguf"))


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("not a model", encoding="utf-8")
    with pytest.raises(UnknownModel, match="is not a GGUF file"):
        choose_model(str(path))


def test_lm_studio_is_asked_for_its_model_and_answers(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_STUDIO_API_BASE", served)
    monkeypatch.setenv("LM_STUDIO_API_KEY", "any")
    lines: list[str] = []
    lm = choose_model(announce=lines.append)
    assert lines == [f"Using smollm2-135m-instruct of LM Studio at {served}."]
    (reply,) = lm("Say yes.", max_tokens=2, cache=False)
    assert reply


@pytest.mark.parametrize("name", ["lm_studio", "lm_studio/"])
def test_lm_studio_without_a_name_is_its_first_model_which_is_announced(
    name: str, answering: dict[str, object]
) -> None:
    answering["body"] = json.dumps({"data": [{"id": "text-embedder"}, {"id": "qwen3-8b"}, {"id": "gemma"}]})
    lines: list[str] = []
    assert choose_model(name, api_base=str(answering["base"]), announce=lines.append).model == "openai/qwen3-8b"
    assert lines == [f"Using qwen3-8b of LM Studio at {answering['base']}; it also has gemma."]


def test_a_served_model_has_the_name_of_the_catalogue_too(answering: dict[str, object]) -> None:
    answering["body"] = json.dumps({"data": [{"id": "smollm2-135m-instruct"}]})
    lm = choose_model("lm_studio/smollm2-135m", api_base=str(answering["base"]), announce=nothing_said)
    assert lm.model == "openai/smollm2-135m-instruct"


def test_lm_studio_by_name_uses_the_address_of_the_environment(
    served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM_STUDIO_API_BASE", f"{served}/")
    lm = choose_model("lm_studio/smollm2-135m-instruct", announce=nothing_said)
    assert lm.kwargs["api_base"] == served


def test_a_model_that_lm_studio_has_not_is_refused_with_those_it_has(
    served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LM_STUDIO_API_BASE", served)
    monkeypatch.setenv("LM_STUDIO_MODEL", "another")
    with pytest.raises(UnknownModel, match="it has: smollm2-135m-instruct"):
        choose_model()


def test_lm_studio_that_does_not_answer_is_told_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_STUDIO_API_BASE", "http://127.0.0.1:9/v1")
    with pytest.raises(ModelUnreachable, match=r"does not answer at http://127\.0\.0\.1:9/v1 .*lms server start"):
        choose_model()


def test_an_address_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_STUDIO_API_BASE", "file:///etc/hosts")
    with pytest.raises(UnknownModel, match="LM_STUDIO_API_BASE must be an address"):
        choose_model()


@pytest.mark.parametrize(
    ("status", "body", "hint"),
    [
        (401, "", "LM_STUDIO_API_KEY"),
        (404, "", "usually ends in /v1"),
        (200, "<html>", "is not OpenAI-compatible"),
        (200, '{"models": []}', "is not OpenAI-compatible"),
        (200, '{"data": []}', "lms load"),
        (200, '{"data": [{"id": "text-embedding-small"}]}', "lms load"),
    ],
)
def test_a_server_that_is_not_as_it_should_be_is_told_with_the_fix(
    answering: dict[str, object], monkeypatch: pytest.MonkeyPatch, status: int, body: str, hint: str
) -> None:
    answering.update(status=status, body=body)
    monkeypatch.setenv("LM_STUDIO_API_BASE", str(answering["base"]))
    with pytest.raises(ModelUnreachable, match=hint):
        choose_model()


@pytest.mark.parametrize(
    ("entry", "window"),
    [
        ({"loaded_context_length": 4_096, "max_context_length": 32_768}, 4_096),
        ({"max_model_len": 16_384}, 16_384),
        ({"meta": {"n_ctx_train": 8_192}}, 8_192),
        ({}, None),
    ],
)
def test_the_window_that_a_server_tells_is_known(
    answering: dict[str, object], monkeypatch: pytest.MonkeyPatch, entry: dict[str, object], window: int | None
) -> None:
    answering["body"] = json.dumps({"data": [{"id": "text-embedding-small"}, {"id": "chat", **entry}]})
    monkeypatch.setenv("LM_STUDIO_API_BASE", str(answering["base"]))
    monkeypatch.setenv("LM_STUDIO_API_KEY", "secret")
    lm = choose_model(announce=lambda line: None)
    assert (lm.model, context_window(lm)) == ("openai/chat", window)
    assert answering["key"] == "Bearer secret"


def test_the_window_of_a_known_model_comes_from_the_price_table() -> None:
    window = context_window(dspy.LM("openai/gpt-5-mini"))
    assert window is not None
    assert window > 100_000


@pytest.mark.parametrize("lm", [None, ScriptedLM([])], ids=["none", "unknown"])
def test_an_lm_of_unknown_window_gets_the_usual_limits(lm: object) -> None:
    assert limits_for(lm) == Limits()


def test_a_large_window_gets_the_usual_limits() -> None:
    assert limits_for(dspy.LM("openai/gpt-5-mini")) == Limits()


def test_the_embedded_model_gets_limits_of_its_window() -> None:
    assert limits_for(embedded_lm()) == Limits(max_iters=4, max_output_chars=3_072)


def test_what_runs_in_this_process_costs_nothing_so_its_cost_can_be_limited() -> None:
    lm = embedded_lm()
    assert limits_for(lm, max_cost=1.0).prices == {lm.model: (0.0, 0.0)}
    assert limits_for(lm).prices == {}


def test_what_is_given_is_kept() -> None:
    limits = limits_for(embedded_lm(), max_iters=2, max_llm_calls=0, max_output_chars=None)
    assert limits == Limits(max_iters=2, max_llm_calls=0, max_output_chars=6_144)


def test_an_embedded_model_is_given_its_window_and_the_length_of_its_replies(smollm2: Path) -> None:
    given: dict[str, Any] = {"context_window": 4_100, "max_reply_tokens": 99, "temperature": 0.3}
    lm = choose_model("embedded", announce=nothing_said, **given)
    assert (context_window(lm), lm.kwargs["max_tokens"]) == (4_096, 99)  # llama.cpp wants a multiple of 256
    assert lm.kwargs["temperature"] == 0.3
    with pytest.raises(UnknownModel, match="has no api_base or api_key"):
        choose_model("embedded", api_key="k", announce=nothing_said)


def test_ollama_is_given_the_window_of_the_caller() -> None:
    with ollama_server({"model_info": {"qwen2.context_length": 131_072}}) as server:
        lm = choose_model("ollama/qwen3:8b", api_base=server.base, context_window=40_000)
    assert (lm.kwargs["num_ctx"], context_window(lm)) == (40_000, 40_000)


@given(st.integers(min_value=2_048, max_value=2_000_000))
def test_the_outputs_of_all_turns_fit_in_half_of_any_window(window: int) -> None:
    lm = ScriptedLM([])
    lm.context_window = window
    limits = limits_for(lm)
    assert limits.max_iters * limits.max_output_chars <= window // 2 * 3 + 3
    assert limits.max_iters >= 4


@contextlib.contextmanager
def ollama_server(shown: dict[str, Any], status: int = 200) -> Iterator[ProviderServer]:
    """Serve as Ollama does: what it shows of a model, and chats with it."""

    def answer(said: Said, body: Body) -> tuple[int, Body]:
        return (200, ollama(said, body)) if "messages" in body else (status, shown)

    with serving(ProviderServer(lambda _: Said("fox"), answer)) as server:
        yield server


@pytest.mark.parametrize(
    ("shown", "variables", "window"),
    [
        ({}, {}, 16_384),
        ({"model_info": {"general.architecture": "qwen2", "qwen2.context_length": 8_192}}, {}, 8_192),
        ({"parameters": 'stop "<|im_end|>"\nnum_ctx                  32768'}, {}, 32_768),
        ({"model_info": {"qwen2.context_length": 131_072}}, {"OLLAMA_CONTEXT_LENGTH": "64000"}, 64_000),
    ],
)
@pytest.mark.parametrize("address", ["OLLAMA_API_BASE", "OLLAMA_HOST"])
def test_each_request_asks_ollama_for_the_window_that_the_run_knows(
    shown: dict[str, Any],
    variables: dict[str, str],
    window: int,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ollama cuts off what is longer than its default window, without an error."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with ollama_server(shown) as server:
        monkeypatch.setenv(address, f"{server.base}/v1" if address == "OLLAMA_API_BASE" else server.base[7:])
        lm = choose_model("ollama/qwen3:8b", announce=nothing_said)
        assert lm("Which animal?", cache=False) == ["fox"]
        (body,) = (body for path, body in server.requests if path == "/api/chat")
    assert (body["model"], body["options"]["num_ctx"]) == ("qwen3:8b", window)
    assert context_window(lm) == window


def test_a_model_that_ollama_has_not_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with ollama_server({"error": "model 'qwen3:8b' not found"}, 404) as server:
        monkeypatch.setenv("OLLAMA_API_BASE", server.base)
        with pytest.raises(UnknownModel, match="ollama pull qwen3:8b"):
            choose_model("ollama_chat/qwen3:8b")


def test_ollama_that_does_not_answer_is_told_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    with pytest.raises(ModelUnreachable, match=r"Ollama does not answer at http://127.0.0.1:9 .*ollama serve"):
        choose_model("ollama/qwen3:8b")


def test_a_model_that_is_no_str_and_limits_for_a_name_are_refused() -> None:
    wrong: Any = 3
    with pytest.raises(TypeError, match="A model is named by a str such as 'openai/gpt-5-mini', not 3"):
        choose_model(wrong)
    for temperature in ("0.3", -1, float("nan"), 3):
        wrong = temperature
        with pytest.raises(ValueError, match="temperature must be a number from 0 to 2, not"):
            choose_model("openai/gpt-5-mini", temperature=wrong)
    name: Any = "openai/gpt-5-mini"
    with pytest.raises(TypeError, match=r"call limits_for\(choose_model\('openai/gpt-5-mini'\)\)"):
        limits_for(name)


def test_a_missing_model_file_is_told_before_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(UnknownModel, match=r"The model file .*missing.gguf cannot be read: No such file"):
        choose_model("missing.gguf")
