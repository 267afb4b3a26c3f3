"""Defines what clients send: the bodies of chat completions and of responses, read as one `Ask`."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StrictFloat,
    StrictInt,
    model_validator,
)

from rlm_dspy.errors import InvalidInputs

Kind = Literal["file", "image", "audio"]
_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(;[\w.+-]+=[^;,]*)*;base64,", re.ASCII)
_MAX_NAME_CHARS = 200


@dataclass(frozen=True)
class Attachment:
    """A file, an image or a sound of a message.

    Attributes:
        kind: What it is.
        name: Its relative file name, checked by `_file_name`; empty for images and sounds.
        media_type: Of an image or a file, as the client says; the format of a sound.
        data: Its content in base64.
    """

    kind: Kind
    name: str
    media_type: str
    data: str

    def content(self) -> bytes:
        """Return its content."""
        return base64.b64decode(self.data)


@dataclass(frozen=True)
class Message:
    """A message of the conversation; its text parts are joined."""

    role: Literal["user", "assistant", "instructions"]
    text: str
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True)
class Ask:
    """What a request asks for, in whichever API.

    Attributes:
        messages: The conversation, oldest first.
        inputs: Values of input fields by name.
        limits: Limits of this request by name, the client's own bound on output tokens among them.
        as_object: Whether the answer is always one JSON object.
        stream: Whether the answer is streamed.
        include_usage: Whether the usage follows a stream of chat completions.
        conversation: The id of the conversation that it is part of; empty for none.
    """

    messages: tuple[Message, ...]
    inputs: dict[str, JsonValue]
    limits: dict[str, int | float]
    as_object: bool = False
    stream: bool = False
    include_usage: bool = False
    conversation: str = ""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _TextPart(_Part):
    model_config = ConfigDict(extra="ignore")  # annotations and the like, of an answer that is sent back
    type: Literal["text", "input_text", "output_text"]
    text: str

    def read(self) -> str:
        return self.text


class _ImageURL(_Part):
    url: str
    detail: str | None = None


class _ImagePart(_Part):
    type: Literal["image_url"]
    image_url: _ImageURL

    def read(self) -> Attachment:
        return _image(self.image_url.url)


class _InputImagePart(_Part):
    type: Literal["input_image"]
    image_url: str
    detail: str | None = None

    def read(self) -> Attachment:
        return _image(self.image_url)


class _Sound(_Part):
    data: str
    format: Literal["wav", "mp3"]


class _AudioPart(_Part):
    type: Literal["input_audio"]
    input_audio: _Sound

    def read(self) -> Attachment:
        return Attachment("audio", "", self.input_audio.format, _base64(self.input_audio.data, "the sound"))


class _FileContent(_Part):
    file_data: str
    filename: str = "file"

    def read(self) -> Attachment:
        """Return the file; its content is a data URL, or base64 alone."""
        name = _file_name(self.filename)
        head = _DATA.match(self.file_data)
        encoded = self.file_data[head.end() :] if head else self.file_data
        return Attachment("file", name, (head and head[1]) or "", _base64(encoded, f"the file {name!r}"))


class _FilePart(_Part):
    type: Literal["file"]
    file: _FileContent

    def read(self) -> Attachment:
        return self.file.read()


class _InputFilePart(_FileContent):
    type: Literal["input_file"]
    detail: str | None = None


_AnyPart = Annotated[
    _TextPart | _ImagePart | _InputImagePart | _AudioPart | _FilePart | _InputFilePart, Field(discriminator="type")
]
_ROLES: dict[str, Literal["user", "assistant", "instructions"]] = {
    "user": "user",
    "assistant": "assistant",
    "system": "instructions",
    "developer": "instructions",
}


class _ClientMessage(BaseModel):
    """A message of either API. What answers carry besides their text is ignored when it is sent back."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[_AnyPart]

    def read(self) -> Message:
        parts = [self.content] if isinstance(self.content, str) else [part.read() for part in self.content]
        texts = [part for part in parts if isinstance(part, str)]
        attachments = tuple(part for part in parts if isinstance(part, Attachment))
        return Message(_ROLES[self.role], "\n".join(texts), attachments)


def _as_items(value: JsonValue) -> JsonValue:
    """Return the input of a response as a list of items, without the reasoning of earlier answers."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        return value
    return [item for item in value if not (isinstance(item, dict) and item.get("type") == "reasoning")]


class _Format(_Part):
    type: Literal["text", "json_object"] = "text"


class _StreamOptions(_Part):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Text(_Part):
    format: _Format = _Format()
    verbosity: str | None = None


class _Named(_Part):
    id: str = Field(min_length=1)


class Body(BaseModel):
    """What requests of both APIs have in common.

    A field that is not declared is refused; null, an empty list and an empty object count as left out, except a
    conversation without its id. The fields from `temperature` on are about a model: the program decides, and they
    are ignored.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    inputs: dict[str, JsonValue] = {}
    """Values of input fields by name; an addition to OpenAI's API."""
    limits: dict[str, StrictInt | StrictFloat] = {}
    """Fields of `Limits`, to lower those of the program; an addition to OpenAI's API."""
    conversation: _Named | Annotated[str, Field(min_length=1)] | None = None
    """A conversation of `POST /v1/conversations`; in chat completions an addition to OpenAI's API."""
    temperature: JsonValue = None
    top_p: JsonValue = None
    user: JsonValue = None
    metadata: JsonValue = None
    store: JsonValue = None
    service_tier: JsonValue = None
    safety_identifier: JsonValue = None
    prompt_cache_key: JsonValue = None
    prompt_cache_retention: JsonValue = None
    parallel_tool_calls: JsonValue = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, given: JsonValue) -> JsonValue:
        if not isinstance(given, dict):
            return given
        empty = {name for name, value in given.items() if value is None or value in ([], {})}
        return {name: value for name, value in given.items() if name not in empty - {"conversation"}}

    def _limits(self, most_tokens: int | None) -> dict[str, int | float]:
        """Return the limits, with the client's own bound on output tokens."""
        bound = {} if most_tokens is None else {"max_output_tokens": most_tokens}
        return {**bound, **self.limits}

    def _conversation(self) -> str:
        return self.conversation.id if isinstance(self.conversation, _Named) else self.conversation or ""


class ChatBody(Body):
    """The body of `POST /v1/chat/completions`."""

    messages: list[_ClientMessage] = Field(min_length=1)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    response_format: _Format = _Format()
    n: Literal[1] = 1
    presence_penalty: JsonValue = None
    frequency_penalty: JsonValue = None
    seed: JsonValue = None
    reasoning_effort: JsonValue = None
    verbosity: JsonValue = None

    def read(self) -> Ask:
        """Return what it asks for.

        Raises:
            InvalidInputs: If an attachment is not base64, or its name is not a relative file name.
        """
        return Ask(
            tuple(message.read() for message in self.messages),
            self.inputs,
            self._limits(self.max_completion_tokens or self.max_tokens),
            self.response_format.type == "json_object",
            self.stream,
            self.stream_options.include_usage,
            self._conversation(),
        )


class ResponseBody(Body):
    """The body of `POST /v1/responses`."""

    input: Annotated[list[_ClientMessage], BeforeValidator(_as_items), Field(min_length=1)]
    instructions: str = ""
    max_output_tokens: int | None = None
    text: _Text = _Text()
    reasoning: JsonValue = None
    include: JsonValue = None
    truncation: JsonValue = None

    def read(self) -> Ask:
        """Return what it asks for.

        Raises:
            InvalidInputs: If an attachment is not base64, or its name is not a relative file name.
        """
        instructions = [Message("instructions", self.instructions)] if self.instructions else []
        return Ask(
            (*instructions, *(message.read() for message in self.input)),
            self.inputs,
            self._limits(self.max_output_tokens),
            self.text.format.type == "json_object",
            self.stream,
            conversation=self._conversation(),
        )


def _image(url: str) -> Attachment:
    head = _DATA.match(url)
    if not head or not head[1]:
        raise InvalidInputs("Send an image as a data URL, data:image/png;base64,...; addresses are not fetched.")
    return Attachment("image", "", head[1], _base64(url[head.end() :], "the image"))


def _base64(encoded: str, what: str) -> str:
    try:
        binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError as error:  # binascii.Error, or letters beyond ASCII
        raise InvalidInputs(f"The content of {what} is not base64 ({error}). Addresses are not fetched.") from None
    return encoded


def _file_name(name: str) -> str:
    """Return a file name, with `/` between folders.

    Raises:
        InvalidInputs: If it is not relative, leads out of its folder, or cannot be a file's name everywhere.
    """
    path = PurePosixPath(name)
    parts = name.split("/")
    if (
        not path.parts
        or len(name) > _MAX_NAME_CHARS
        or not name.isprintable()
        or "\\" in name
        or ":" in name
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise InvalidInputs(f"Invalid file name {name[:_MAX_NAME_CHARS]!r}: send one such as report.pdf.")
    return name
