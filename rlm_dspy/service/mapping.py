"""Maps the messages of a request to the input fields of a program's signature.

- Values under `inputs` go to the fields that they name.
- The text of the last user message goes to `question`, else to the last text field that is free.
- Earlier messages go to the field of type `dspy.History`; system messages to a field named `system`.
- Files go to the free field for a text, a `Files`, a `Table` or a `dspy.File`; images and sounds to theirs.

Nothing is left out in silence: what has no field is refused.
"""

from __future__ import annotations

import io
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import dspy
from pydantic import BaseModel

from rlm_dspy.errors import InvalidInputs
from rlm_dspy.inputs import MEDIA, Files, Table, Text
from rlm_dspy.repl.coercion import read_value, type_of
from rlm_dspy.repl.type_names import bare

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pydantic import JsonValue
    from pydantic.fields import FieldInfo

    from rlm_dspy.service.requests import Ask, Attachment, Message

_TEXTS = (str, Text)
_LONG = (*_TEXTS, Files, Table, dspy.File)
"""Types of fields that files are for."""
_BY_KIND: dict[str, type] = {"image": dspy.Image, "audio": dspy.Audio}


def read_inputs(
    signature: type[dspy.Signature], ask: Ask, folder: Path, kept: Collection[str] = ()
) -> dict[str, Any]:
    """Return the inputs of a program by name. It may read documents, in processes of their own.

    Args:
        signature: The program's.
        ask: The request.
        folder: An empty folder for files that become a `Files` or a `Table`; the run needs it until its end.
        kept: The inputs that the conversation has; the request need not give them.

    Raises:
        InvalidInputs: If a part of the request has no field, or a field gets nothing; the message names the fix.
    """
    fields = signature.input_fields
    values = {name: _typed(name, value, fields) for name, value in ask.inputs.items()}
    kinds = {name: _kind(field.annotation) for name, field in fields.items()}
    free = {name: kind for name, kind in kinds.items() if name not in values}
    question, earlier = _take_messages(ask, free, values)
    attached = [part for message in ask.messages for part in message.attachments]
    for kind, of in _BY_KIND.items():
        _take_media(kind, of, [part for part in attached if part.kind == kind], free, values)
    files = [part for part in attached if part.kind == "file"]
    asked = _take_question(question, has_files=bool(files), free=free, values=values)
    if files:
        name = _field_for_files(free)
        values[name] = _long_input(free.pop(name), files, folder)
    if earlier and ask.conversation:
        raise InvalidInputs("In a conversation send the last message alone: the server keeps the earlier ones.")
    if earlier:
        _take_history(earlier, asked, signature, free, values)
    if missing := [name for name in free if fields[name].is_required() and name not in kept]:
        raise InvalidInputs(
            f"The program also takes {_listed(missing)}. Attach a file, or send inputs={{{missing[0]!r}: ...}} "
            "(in the client of OpenAI: extra_body)."
        )
    return values


def _typed(name: str, value: JsonValue, fields: dict[str, FieldInfo]) -> Any:
    if name not in fields:
        raise InvalidInputs(f"inputs: the program has no input {name!r}; it takes {_listed(fields)}.")
    annotation = fields[name].annotation
    if _mentions(annotation, (*MEDIA, Files, Table, Path), set()):
        raise InvalidInputs(f"inputs: {name!r} takes files, images or sounds: attach them to the message.")
    try:
        return read_value(value, type_of(fields[name]))
    except ValueError as error:
        raise InvalidInputs(f"inputs: {name}: {error}") from error


def _take_messages(ask: Ask, free: dict[str, Any], values: dict[str, Any]) -> tuple[str, list[Message]]:
    """Put the instructions into their field; return the text of the last message, and the earlier ones."""
    instructions = "\n\n".join(each.text for each in ask.messages if each.role == "instructions")
    *earlier, last = [each for each in ask.messages if each.role != "instructions"] or ask.messages
    if instructions:
        if free.pop("system", None) not in _TEXTS:
            raise InvalidInputs(
                "The program has its own instructions. Leave out system and developer messages, or add an input "
                "`system: str` to its signature."
            )
        values["system"] = instructions
    if last.role != "user":
        raise InvalidInputs("The last message must be of the role user: it is the question.")
    return last.text, earlier


def _take_media(
    kind: str, of: type, parts: Sequence[Attachment], free: dict[str, Any], values: dict[str, Any]
) -> None:
    """Put images or sounds into the field for one, or for a list of them."""
    if not parts:
        return
    made = [_media(part) for part in parts]
    for name, wanted in free.items():
        if wanted is of and len(made) == 1:
            values[name] = made[0]
        elif wanted == list[of]:  # type: ignore[valid-type]
            values[name] = made
        if name in values:
            del free[name]
            return
    wanted = f"dspy.{of.__name__}" if len(made) == 1 else f"list[dspy.{of.__name__}]"
    raise InvalidInputs(f"The program has no input for {len(made)} {kind} part(s): it would be of type {wanted}.")


def _media(part: Attachment) -> dspy.Image | dspy.Audio:
    if part.kind == "audio":
        return dspy.Audio(data=part.data, audio_format=part.media_type)
    return dspy.Image(f"data:{part.media_type};base64,{part.data}")


def _take_question(text: str, *, has_files: bool, free: dict[str, Any], values: dict[str, Any]) -> str:
    """Put the text of the last message into its field; return the field's name, empty if there is no text."""
    texts = [name for name, kind in free.items() if kind in _TEXTS]
    for_files = sum(kind in _LONG for kind in free.values()) - len(texts)
    if has_files and not for_files and "question" not in texts:
        texts = texts[1:]  # the first is for the files
    if not text:
        return ""
    if not texts:
        raise InvalidInputs(
            "The program has no input for the text of the message. Send an empty text beside the file, or add an "
            "input `question: str` to its signature."
            if has_files
            else "The program has no free input for the text of the message: leave out what `inputs` gives it."
        )
    name = "question" if "question" in texts else texts[-1]
    del free[name]
    values[name] = text
    return name


def _field_for_files(free: dict[str, Any]) -> str:
    names = [name for name, kind in free.items() if kind in _LONG]
    if len(names) != 1:
        which = f"could go to any of {_listed(names)}" if names else "have no input"
        raise InvalidInputs(f"The attached files {which}. Send texts by name: inputs={{name: text}}.")
    return names[0]


def _long_input(kind: Any, files: list[Attachment], folder: Path) -> Any:
    """Return what a field for files is given."""
    if kind in (Table, dspy.File) and len(files) > 1:
        raise InvalidInputs(f"The program takes one file, not {len(files)}.")
    if kind is dspy.File:
        media_type = files[0].media_type or "application/octet-stream"
        return dspy.File(file_data=f"data:{media_type};base64,{files[0].data}", filename=files[0].name)
    if kind in _TEXTS:
        return _joined(files)
    paths = [_written(each, folder) for each in files]
    try:
        return Table.open(paths[0]) if kind is Table else Files.open(folder, hidden=True)
    except (ValueError, OSError) as error:
        raise InvalidInputs(str(error).replace(str(folder), "the folder of the files")) from error


def _joined(files: list[Attachment]) -> Text:
    """Return one text of files and documents; several are told apart by a line with the name before each."""
    texts = []
    for each in files:
        try:
            text = Text.open(io.BytesIO(each.content()))
        except ValueError as error:  # not a document, not UTF-8, or the extra `documents` is missing
            raise InvalidInputs(f"The file {each.name!r} cannot be read as text: {error}") from error
        text.name = each.name
        texts.append(text)
    if len(texts) == 1:
        return texts[0]
    return Text("\n\n".join(f"=== {text.name} ===\n{text}" for text in texts))


def _written(file: Attachment, folder: Path) -> Path:
    path = folder / file.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target:
            target.write(file.content())
    except (FileExistsError, NotADirectoryError):
        raise InvalidInputs(f"Two files have the name {file.name!r}, or one is a folder of another.") from None
    return path


def _take_history(
    earlier: list[Message],
    question: str,
    signature: type[dspy.Signature],
    free: dict[str, Any],
    values: dict[str, Any],
) -> None:
    """Put the earlier messages into the field for a history, by pairs of question and answer."""
    name = next((name for name, kind in free.items() if kind is dspy.History), None)
    if name is None:
        raise InvalidInputs(
            "The program does not take earlier messages. Send the last message alone, or add an input "
            "`history: dspy.History` to its signature."
        )
    answer = next(iter(signature.output_fields))
    turns: list[dict[str, str]] = []
    for message in earlier:
        if message.role == "user":
            turns.append({question or "question": message.text})
        elif turns and answer not in turns[-1]:
            turns[-1][answer] = message.text
        else:
            raise InvalidInputs("Earlier messages must be of the roles user and assistant by turns.")
    values[name] = dspy.History(messages=turns)
    del free[name]


def _kind(annotation: Any) -> Any:
    """Return the type of a field without constraints, and without None."""
    kind = bare(annotation)
    if get_origin(kind) in (Union, types.UnionType):
        parts = [part for part in get_args(kind) if part is not types.NoneType]
        return parts[0] if len(parts) == 1 else kind
    return kind


def _mentions(annotation: Any, kinds: tuple[type, ...], seen: set[int]) -> bool:
    """Return whether values of a type may hold one of these kinds, which may stand for a file or an address."""
    if id(annotation) in seen:
        return False
    seen.add(id(annotation))
    if isinstance(annotation, type) and not get_args(annotation):
        if issubclass(annotation, kinds):
            return True
        fields = annotation.model_fields.values() if issubclass(annotation, BaseModel) else ()
        return any(_mentions(field.annotation, kinds, seen) for field in fields)
    return any(_mentions(part, kinds, seen) for part in get_args(annotation))


def _listed(names: Any) -> str:
    return ", ".join(map(repr, names))
