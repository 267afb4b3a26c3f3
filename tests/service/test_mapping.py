"""Messages become the inputs of a signature, and what has no input is refused."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from pydantic import BaseModel, ValidationError

from rlm_dspy import Files, InvalidInputs, Limits, Table, Text
from rlm_dspy.service.mapping import read_inputs
from rlm_dspy.service.requests import ChatBody, ResponseBody
from rlm_dspy.service.runs import lowered

if TYPE_CHECKING:
    from pathlib import Path

PNG = "data:image/png;base64,iVBORw0KGgo="


class Invoice(BaseModel):
    """What the typed input holds."""

    number: int


class Album(BaseModel):
    """A picture inside of a model."""

    pictures: list[dspy.Image | None]


def part(name: str, content: bytes | str = b"text", media_type: str = "text/plain") -> dict[str, Any]:
    """Return a file as clients attach it."""
    data = content.encode() if isinstance(content, str) else content
    url = f"data:{media_type};base64,{base64.b64encode(data).decode()}"
    return {"type": "file", "file": {"filename": name, "file_data": url}}


def text(words: str) -> dict[str, Any]:
    """Return a text part."""
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    """Return a message of the user."""
    return {"role": "user", "content": list(parts) if parts else ""}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Return the inputs for messages."""

    def read(signature: str, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
        body = ChatBody.model_validate({"model": "m", "messages": list(messages), **fields})
        types = {"Files": Files, "Table": Table, "Text": Text, "Invoice": Invoice, "Album": Album}
        return read_inputs(dspy.Signature(signature, custom_types=types), body.read(), tmp_path)

    return read


def test_the_question_and_the_files_find_their_fields(read: Any) -> None:
    """As on the command line: the text goes to the field that is not the question."""
    values = read("context, question -> answer", user(part("a.md", "alpha"), text("Who?")))
    assert (str(values["context"]), values["context"].name, values["question"]) == ("alpha", "a.md", "Who?")
    values = read("document: Text, asked -> answer", user(part("a.md", "alpha"), text("Who?")))
    assert (str(values["document"]), values["asked"]) == ("alpha", "Who?")


def test_several_files_become_one_text_with_their_names(read: Any) -> None:
    """Of all messages of the user, not of the last alone."""
    signature = "context, question, history: dspy.History -> answer"
    values = read(
        signature,
        user(part("a.md", "alpha"), text("Who?")),
        {"role": "assistant", "content": "Ann"},
        user(part("b.md", "beta"), text("And when?")),
    )
    assert str(values["context"]) == "=== a.md ===\nalpha\n\n=== b.md ===\nbeta"
    assert values["question"] == "And when?"
    assert values["history"].messages == [{"question": "Who?", "answer": "Ann"}]


def test_files_become_a_folder_or_a_table(read: Any) -> None:
    """By the type of the field."""
    values = read("files: Files, question -> n: int", user(part("docs/a.md", "alpha"), part("b.md"), text("n?")))
    assert sorted(values["files"]) == ["b.md", "docs/a.md"]
    values = read("data: Table, question -> n: int", user(part("a.csv", "city,n\nGent,3\n"), text("n?")))
    assert values["data"].columns == ["city", "n"]


def test_images_and_sounds_go_to_the_fields_of_their_types(read: Any) -> None:
    """One, or a list."""
    image = {"type": "image_url", "image_url": {"url": PNG}}
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    values = read("picture: dspy.Image, sound: dspy.Audio, question -> a", user(image, sound, text("?")))
    assert (values["picture"].url, values["sound"].audio_format) == (PNG, "wav")
    values = read("pictures: list[dspy.Image], question -> a", user(image, image, text("?")))
    assert [each.url for each in values["pictures"]] == [PNG, PNG]


def test_inputs_are_read_by_their_types(read: Any) -> None:
    """The message may be empty then."""
    given = {"context": "c", "invoice": {"number": "7"}, "n": 3}
    values = read("context, invoice: Invoice, n: int -> a", user(), inputs=given)
    assert values == {"context": "c", "invoice": Invoice(number=7), "n": 3}


def test_system_messages_go_to_a_field_of_that_name(read: Any) -> None:
    """Those of the role developer too."""
    values = read("system, question -> a", {"role": "developer", "content": "Be brief."}, user(text("Who?")))
    assert values == {"system": "Be brief.", "question": "Who?"}


def test_responses_are_read_as_chat_completions_are(tmp_path: Path) -> None:
    """A text alone, or items, among them those of earlier answers."""
    file = {"type": "input_file", "filename": "a.md", "file_data": base64.b64encode(b"alpha").decode()}
    items = [
        {"role": "user", "content": "Who?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "..."}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Ann", "annotations": []}],
        },
        {"role": "user", "content": [file, {"type": "input_text", "text": "When?"}]},
    ]
    body = ResponseBody.model_validate({"model": "m", "input": items, "max_output_tokens": 9})
    signature = dspy.Signature("context, question, history: dspy.History -> answer")
    values = read_inputs(signature, body.read(), tmp_path)
    assert (str(values["context"]), values["question"]) == ("alpha", "When?")
    assert values["history"].messages == [{"question": "Who?", "answer": "Ann"}]
    assert body.read().limits == {"max_output_tokens": 9}
    assert ResponseBody.model_validate({"model": "m", "input": "Who?"}).read().messages[0].text == "Who?"


@pytest.mark.parametrize(
    ("signature", "messages", "fields", "why"),
    [
        ("context, question -> a", [user(text("Who?"))], {}, "also takes 'context'. Attach a file, or send"),
        ("question -> a", [user(part("a.md"), text("Who?"))], {}, "attached files have no input"),
        ("document -> a", [user(part("a.md"), text("Who?"))], {}, "no input for the text of the message"),
        ("question -> a", [user(text("1")), user(text("2"))], {}, "add an input `history: dspy.History`"),
        ("question -> a", [{"role": "system", "content": "Be brief."}, user(text("?"))], {}, "an input `system"),
        ("question -> a", [{"role": "assistant", "content": "Yes"}], {}, "last message must be of the role user"),
        ("question -> a", [user(text("?"))], {"inputs": {"answer": 1}}, "no input 'answer'; it takes 'question'"),
        ("n: int, question -> a", [user(text("?"))], {"inputs": {"n": "many"}}, "inputs: n: expected int"),
        ("a, b, c -> d", [user(part("x"), text("?"))], {}, "could go to any of 'a', 'b'"),
        ("data: Table, question -> a", [user(part("a.csv"), part("b.csv"), text("?"))], {}, "one file, not 2"),
        ("files: Files, question -> a", [user(part("a"), part("a"), text("?"))], {}, "have the name 'a'"),
        ("files: Files, question -> a", [user(part("a"), part("a/b"), text("?"))], {}, "is a folder of another"),
        ("context, question -> a", [user(part("a.bin", b"\xff\x00\xff"), text("?"))], {}, "'a.bin' cannot be"),
        ("question -> a", [user({"type": "image_url", "image_url": {"url": PNG}}, text("?"))], {}, "dspy.Image"),
    ],
)
def test_what_has_no_place_is_refused_with_the_fix(
    read: Any, signature: str, messages: list[Any], fields: dict[str, Any], why: str
) -> None:
    """Nothing is left out in silence."""
    with pytest.raises(InvalidInputs) as refused:
        read(signature, *messages, **fields)
    assert why in str(refused.value)


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "a/../../b", "a\\b", "C:evil", "a\0b", "", ".", "a//b", "a\nb", "x" * 300]
)
def test_a_file_name_cannot_lead_elsewhere(read: Any, name: str) -> None:
    """It is checked whether or not the file is written anywhere."""
    with pytest.raises(InvalidInputs, match="Invalid file name"):
        read("files: Files, question -> a", user(part(name), text("?")))


@pytest.mark.parametrize(
    "url", ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1/a.png", "data:text/plain,x"]
)
def test_no_address_and_no_path_is_opened(read: Any, url: str) -> None:
    """Content comes with the request or not at all."""
    with pytest.raises(InvalidInputs, match=r"not fetched"):
        read("picture: dspy.Image -> a", user({"type": "image_url", "image_url": {"url": url}}))
    with pytest.raises(InvalidInputs, match=r"not base64"):
        read("context, question -> a", user({"type": "file", "file": {"file_data": url}}, text("?")))


@pytest.mark.parametrize(
    ("signature", "value"),
    [
        ("x: dspy.Image, question -> a", "http://127.0.0.1/a.png"),
        ("x: Album, question -> a", {"pictures": [{"url": "http://127.0.0.1/a.png"}]}),
        ("x: list[dspy.File], question -> a", [{"file_id": "x"}]),
        ("x: Files, question -> a", "/etc"),
        ("x: Table | None, question -> a", "/etc/hosts"),
    ],
)
def test_inputs_by_name_cannot_name_files_or_addresses(read: Any, signature: str, value: Any) -> None:
    """Wherever in the type they would stand."""
    with pytest.raises(InvalidInputs, match="attach them to the message"):
        read(signature, user(text("?")), inputs={"x": value})


def test_a_text_that_names_a_path_stays_a_text(read: Any) -> None:
    """`Text.open` is for the caller alone."""
    values = read("context: Text, question -> a", user(text("?")), inputs={"context": "/etc/passwd"})
    assert str(values["context"]) == "/etc/passwd"


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]},
        {"n": 2},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"stop": ["x"]},
        {"unheard_of": 1},
        {"limits": {"max_cost": "much"}},
        {"limits": {"max_cost": True}},
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}]},
    ],
)
def test_fields_that_cannot_be_honoured_are_refused(fields: dict[str, Any]) -> None:
    """And those that are unknown."""
    with pytest.raises(ValidationError):
        ChatBody.model_validate({"model": "m", "messages": [user(text("?"))], **fields})


def test_settings_of_a_model_are_ignored_and_empty_fields_count_as_left_out() -> None:
    """Programs for chats send them whether or not they are set."""
    given = {"temperature": 0.2, "top_p": 1, "tools": [], "stop": None, "seed": 3, "user": "me", "n": 1}
    plain = {"model": "m", "messages": [user(text("?"))]}
    assert ChatBody.model_validate({**plain, **given}).read() == ChatBody.model_validate(plain).read()


def test_a_request_can_only_lower_limits() -> None:
    """Its bound on output tokens is one of them."""
    body = ChatBody.model_validate({"model": "m", "messages": [user(text("?"))], "max_completion_tokens": 50})
    assert body.read().limits == {"max_output_tokens": 50}
    limits = lowered(Limits(max_iters=5, max_cost=0.5), {"max_iters": 9, "max_cost": 0.1, "max_seconds": 7})
    assert (limits.max_iters, limits.max_cost, limits.max_seconds) == (5, 0.1, 7)
    assert lowered(Limits(max_depth=0, max_llm_calls=0), {"max_depth": 3, "max_llm_calls": 9}).max_llm_calls == 0


@pytest.mark.parametrize("wanted", [{"max_iters": 0}, {"max_cost": float("inf")}, {"max_itres": 1}, {"prices": 1}])
def test_invalid_limits_are_refused(wanted: dict[str, Any]) -> None:
    """With the message of `Limits`."""
    with pytest.raises(InvalidInputs, match="limits: "):
        lowered(Limits(), wanted)
