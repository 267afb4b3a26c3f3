"""What a server said reaches the user and the loop, wherever a client keeps it."""

from __future__ import annotations

import json
import ssl

import dspy
import pytest
from dspy.lm15 import OpenAIChatLM

from rlm_dspy.budget.provider_errors import add_words, asked_pause, keep_rejected_replies, may_pass


class BodyError(Exception):
    """An error of a client that keeps the server's words beside its message, as OpenAI's SDK from version 3 on."""

    def __init__(self, body: object) -> None:
        super().__init__("Error code: 400")
        self.body = body


LISTED = {"detail": [{"loc": ["body", "n"], "msg": "Channel Error"}]}


@pytest.mark.parametrize("body", ["Channel Error", {"message": "Channel Error"}, {"detail": "Channel\nError"}])
def test_what_a_server_said_stands_in_the_message_of_the_error(body: object) -> None:
    error = dspy.LMInvalidRequestError("Error code: 400", model="m")
    error.__cause__ = ValueError("litellm")
    error.__cause__.__cause__ = BodyError(body)
    add_words(error)
    add_words(error)
    assert (error.message, str(error)) == ("Error code: 400: Channel Error", "[m] Error code: 400: Channel Error")


def test_the_fields_that_a_server_refuses_stand_in_the_message_of_the_error() -> None:
    """As FastAPI lists them."""
    error = dspy.LMInvalidRequestError("", model="m")
    error.__cause__ = BodyError(LISTED)
    add_words(error)
    assert "body.n: Channel Error" in str(error)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            dspy.LMInvalidRequestError("<html><head>\n<title>404 Not Found</title></head></html>", status=404),
            "404 Not Found (api_base: http://a:1/v1)",
        ),
        (
            dspy.LMServerError("OpenAIException - Connection error."),
            "OpenAIException - Connection error. (api_base: http://a:1/v1)",
        ),
        (dspy.LMServerError("Connection error: http://a:1/v1"), "Connection error: http://a:1/v1"),
        (dspy.LMServerError("overloaded", status=503), "overloaded"),
        (
            dspy.LMInvalidRequestError("no model\n\n  To fix:\n    - name one", status=404),
            "no model (api_base: http://a:1/v1)\n\n  To fix:\n    - name one",
        ),
    ],
    ids=["no such path", "nobody there", "told already", "another error", "with advice"],
)
def test_an_error_of_a_wrong_address_names_it(error: dspy.LMError, told: str) -> None:
    add_words(error, dspy.LM("openai/m", api_base="http://a:1/v1?key=secret"))
    assert error.message == told


@pytest.mark.parametrize("error", ["TLS handshake failed: [SSL: WRONG_VERSION_NUMBER]", "Connection error."])
def test_https_for_a_server_of_http_is_not_tried_again_and_the_error_names_the_address(error: str) -> None:
    """LiteLLM keeps the cause to itself."""
    told = dspy.LMTransportError(error)
    told.__cause__ = ssl.SSLError("[SSL: WRONG_VERSION_NUMBER] wrong version number")
    assert not may_pass(told, is_stream=False)
    assert may_pass(dspy.LMTransportError("Connection error."), is_stream=False)
    add_words(told, dspy.LM("openai/m", api_base="https://a:1/v1"))
    assert told.message == f"{error} (api_base: https://a:1/v1; the server seems to speak http, not https)"


def test_the_password_of_an_address_is_not_in_the_error_which_says_where_to_put_it() -> None:
    """DSPy's client takes it for a part of the host's name."""
    error = dspy.LMTransportError("failed to connect to me:pw@a:1: Name or service not known", model="m")
    add_words(error, dspy.LM("openai/m", api_base="http://me:pw@a:1/v1"))
    assert "me:pw" not in str(error)
    assert "(api_base: http://a:1/v1; not every client reads the user and password in it: send" in str(error)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (dspy.LMRateLimitError("Quota exceeded. Please retry in 39.5s.", retry_after=7), 7),
        (dspy.LMRateLimitError("Quota exceeded. Please retry in 39.5s."), 39.5),  # Gemini
        (dspy.LMRateLimitError('{"error": {"details": [{"retryDelay": "39s"}]}}'), 39),  # Gemini by LiteLLM
        (dspy.LMRateLimitError("Limit 3, Used 3. Please try again in 20s. Visit"), 20),  # OpenAI
        (dspy.LMRateLimitError("Please try again in 350ms."), 0.35),
        (dspy.LMRateLimitError("Please try again in 1h7m12.5s."), 4_032.5),  # Groq
        (dspy.LMRateLimitError("Please try again in 6m0s."), 360),
        (dspy.LMRateLimitError("Please retry after 59 seconds."), 59),  # Azure
        (dspy.LMRateLimitError("Please retry after 2 minutes."), 120),
        (dspy.LMRateLimitError("Please try again in a moment."), None),
        (dspy.LMRateLimitError("Overloaded", retry_after=float("nan")), None),
    ],
    ids=str,
)
def test_a_pause_that_a_provider_asks_for_in_words_is_known(error: dspy.LMError, seconds: float | None) -> None:
    """Gemini sends no header, and asks for more than the usual repeats wait together."""
    assert asked_pause(error) == seconds


def test_a_traceback_that_litellm_puts_into_a_message_is_not_told() -> None:
    said = "litellm.APIConnectionError: no project"
    error = dspy.LMTransportError(f'{said}\nTraceback (most recent call last):\n  File "/home/me/x.py"', model="m")
    add_words(error, dspy.LM("openai/m"))
    assert str(error) == f"[m] {said}"


def test_an_error_of_a_slow_server_names_the_option_of_the_lm() -> None:
    """Not the class of a library inside DSPy."""
    error = dspy.LMTransportError("read timed out: raise it with Timeouts(read=...) if the model needs longer")
    add_words(error, dspy.LM("openai/m"))
    assert error.message == (
        "read timed out: raise it with dspy.LM(..., timeout=SECONDS) if the model needs longer"
    )


def test_an_error_whose_client_says_nothing_stays_as_it_is() -> None:
    error = dspy.LMInvalidRequestError("no", model="m")
    error.__cause__ = BodyError(None)
    add_words(error)
    assert str(error) == "[m] no"


def test_an_error_in_a_list_is_told_with_its_words() -> None:
    """As Gemini's endpoint for OpenAI's clients sends it."""
    keep_rejected_replies()
    body = json.dumps([{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}])
    assert "API key not valid." in OpenAIChatLM(api_key="k").normalize_error(400, body).message


def test_words_beside_the_error_of_a_body_are_its_message() -> None:
    """As older versions of vLLM send them."""
    keep_rejected_replies()
    body = json.dumps(
        {"object": "error", "message": "This model's maximum context length is 300 tokens.", "code": 400}
    )
    client = OpenAIChatLM(api_key="k")
    assert client.normalize_error(400, body).message == "This model's maximum context length is 300 tokens."
