"""Keeps the result of each example as a line of JSON, so that a batch goes on where it was killed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dspy
from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from rlm_dspy.artifacts import Artifact, Artifacts
from rlm_dspy.errors import RLMError
from rlm_dspy.json_values import JsonLines, jsonable
from rlm_dspy.redaction import in_strings, lms_of, without_credentials
from rlm_dspy.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Row:
    """The result of one example.

    Attributes:
        index: Its number in `examples`, from 0.
        example: The example.
        prediction: What the program returned; None if it failed. A stored one is read from a pickle beside the
            line of JSON, with its types and its `report()`. If there is no pickle, because a class is not at the
            top of a module, or if it is another user's, then it has no `report()`, only the output fields of the
            program's own signature have their types, and other values are plain data.
        error: Why it failed, with the type of the error; empty if it did not. It is run again by the next
            `batch.run`.
        trajectory: The steps of a failed run, if it had begun.
        usage: What all its attempts used.
        seconds: How long they took.
        attempts: How often it was run.
        stored: Whether it is from the store: nothing was paid for it now.
    """

    index: int
    example: dspy.Example
    prediction: Any = None
    error: str = ""
    trajectory: list[dict[str, Any]] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    attempts: int = 1
    stored: bool = False


class Store:
    """A file with a line for each finished example of one program; of several lines the last one counts.

    Args:
        path: The file; made with its folder if it is missing.
        program: Whose predictions it keeps.
    """

    def __init__(self, path: Path, program: dspy.Module) -> None:
        self._lines, self._files = JsonLines(path), path.with_suffix("")
        self._signature = getattr(program, "signature", None)
        self._lms = lms_of(program)
        self._places: dict[str, tuple[int, int]] = {}
        at = 0
        with path.open("rb") as file:
            for line in file:
                if key := _key_of(line):
                    self._places[key] = at, len(line)
                at += len(line)

    def find(self, key: str, index: int, example: dspy.Example) -> Row | None:
        """Return the stored row of an example; None if there is none, or it failed.

        Raises:
            RLMError: If it is not of this version.
        """
        if key not in self._places:
            return None
        at, size = self._places[key]
        with self._lines.path.open("rb") as file:
            file.seek(at)
            found = json.loads(file.read(size))
        try:
            return self._row(found, index, example)
        except (KeyError, TypeError, ValueError) as error:
            raise RLMError(
                f"The row of example {index} in {str(self._lines.path)!r} was not written by this version "
                f"({type(error).__name__}: {error}). Pass another store; or remove lines with the key {key!r}, "
                "to pay for that example again."
            ) from None

    def _row(self, found: Mapping[str, Any], index: int, example: dspy.Example) -> Row:
        key = found["key"]
        prediction = self._unpickled(key, found.get("pickle"))
        if prediction is None:
            prediction = self._typed(found["prediction"], key)
        return Row(
            index=index,
            example=example,
            prediction=prediction,
            usage=Usage.model_validate(found["usage"]),
            seconds=found["seconds"],
            attempts=found["attempts"],
            stored=True,
        )

    def keep(self, key: str, row: Row) -> None:
        """Store a row.

        Raises:
            OSError: If it cannot be written.
        """
        found = row.prediction
        is_prediction = isinstance(found, dspy.Prediction)
        written = {"fields": dict(found.items())} if is_prediction else {"value": found}
        files = found.get("artifacts") if is_prediction else None
        if isinstance(files, Artifacts) and files:
            files.save(self._files / key)
        data = {
            "key": key,
            "index": row.index,
            "prediction": None if row.error else jsonable(written),
            "pickle": None if row.error else self._pickled(key, found),
            "error": row.error,
            "trajectory": in_strings(jsonable(row.trajectory), self.without_secrets),
            "usage": row.usage,
            "seconds": round(row.seconds, 3),
            "attempts": row.attempts,
        }
        self._lines.append(json.dumps(jsonable(data), ensure_ascii=False))

    def without_secrets(self, text: str) -> str:
        """Redact the keys of the program's LMs, which a provider's error may quote."""
        return without_credentials(text, *self._lms)

    def _pickled(self, key: str, prediction: Any) -> str | None:
        """Write what a program returned; return the SHA-256 of its pickle, or None if it has none."""
        try:
            content = pickle.dumps(prediction)
        except Exception:  # noqa: BLE001 (values of user code may raise anything)
            return None
        self._files.mkdir(exist_ok=True)
        (self._files / f"{key}.pickle").write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    def _unpickled(self, key: str, digest: str | None) -> Any:
        """Return what a program returned; None if its pickle is not this user's, or cannot be read."""
        try:
            with (self._files / f"{key}.pickle").open("rb") as file:
                own = not hasattr(os, "geteuid") or os.fstat(file.fileno()).st_uid == os.geteuid()
                content = file.read() if own else b""
            return pickle.loads(content) if hashlib.sha256(content).hexdigest() == digest else None  # noqa: S301
        except Exception:  # noqa: BLE001 (no file, or classes that are gone or have changed)
            return None

    def _typed(self, written: Mapping[str, Any], key: str) -> Any:
        """Return a prediction read from its line, with the types of the signature."""
        if "fields" not in written:
            return written["value"]
        fields = dict(written["fields"])
        outputs = self._signature.output_fields if self._signature is not None else {}
        for name, of in outputs.items():
            if fields.get(name) is not None:
                with suppress(ValueError, PydanticUserError):  # a type that JSON does not keep stays plain data
                    fields[name] = TypeAdapter(of.annotation).validate_python(fields[name])
        if "artifacts" in fields and "artifacts" not in outputs:
            fields["artifacts"] = _files_in(self._files / key)
        return dspy.Prediction(fields)


def _files_in(folder: Path) -> Artifacts:
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    return Artifacts({name: Artifact(name=name, data=(folder / name).read_bytes()) for name in names})


def _key_of(line: bytes) -> str:
    """Return the key of a whole line whose run did not fail; else an empty text."""
    try:
        found = json.loads(line)
    except ValueError:
        return ""
    return str(found["key"]) if isinstance(found, dict) and found.get("key") and not found.get("error") else ""
