"""What is kept of a run that a person started: enough to read it again later, without the text it was about."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dspy
from dspy.adapters.utils import get_annotation_name
from pydantic import BaseModel, ConfigDict
from pydantic_core import to_jsonable_python

from rlm_dspy.coverage import Occurrence, occurrences, watch_over
from rlm_dspy.errors import RLMError
from rlm_dspy.spans import merged
from rlm_dspy.trajectory import Step

if TYPE_CHECKING:
    import os

    from rlm_dspy.limits import Ledger
    from rlm_dspy.rlm import RLM
    from rlm_dspy.trajectory import Span

_MAX_ERROR_CHARS = 600
Stop = Literal["submitted", "extracted", "unanswered", "interrupted", "failed"]
"""As in `Prediction.stop`; also `interrupted` (Ctrl-C) and `failed` (the model or the interpreter)."""


class Record(BaseModel):
    """A run: what was asked, what came of it, and every step."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    signature: str
    instructions: str = ""
    inputs: dict[str, str]
    """The inputs by name; long texts in their short form."""
    model: str
    sub_model: str | None = None
    """The LM of sub-calls if it is another."""
    outputs: dict[str, Any] = {}
    """The output fields as JSON; empty if the run did not end."""
    stop: Stop
    error: str | None = None
    """What went wrong, in one line."""
    usage: dict[str, Any] = {}
    trajectory: list[Step] = []
    final_reasoning: str = ""
    started_at: datetime | None = None
    """When the run began, in UTC."""
    input_chars: dict[str, int] = {}
    """The characters of each input whose coverage was watched; empty if none was."""
    left_out: dict[str, str] = {}
    """Why the coverage of other inputs was not watched."""
    occurrences: dict[str, list[Occurrence]] = {}
    """Where the inputs say what the outputs say, by output field; empty unless coverage was watched."""

    @property
    def answered(self) -> bool:
        """Whether the run ended with an answer."""
        return self.stop in ("submitted", "extracted")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record to a file, whole or not at all."""
        target = Path(path)
        beside = target.with_name(f"{target.name}.part")
        beside.write_text(self.as_json() + "\n", encoding="utf-8")
        beside.replace(target)

    def as_json(self) -> str:
        """Return the record as JSON."""
        return self.model_dump_json(indent=2)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read a record that `save` wrote.

        Raises:
            ValueError: If the file holds none, or one of another version.
        """
        return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))


def recorded(rlm: RLM, inputs: dict[str, Any], ledger: Ledger) -> tuple[Record, BaseException | None]:
    """Run a module with the LM of `dspy.settings`, and keep what came of it however it ended.

    Args:
        rlm: The module.
        inputs: Its inputs.
        ledger: Where the calls of the run are entered; it tells what a run spent that was cut short.

    Returns:
        The record, and the error that ended the run, `KeyboardInterrupt` included; None if it ended by itself.
    """
    started_at = datetime.now(UTC)
    try:
        prediction = rlm(**inputs)
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 (what was paid for is kept)
        return record_of_error(rlm, inputs, error, usage=ledger.usage(), started_at=started_at), error
    return record_of(rlm, inputs, prediction, started_at=started_at), None


def record_of(
    rlm: RLM, inputs: dict[str, Any], prediction: dspy.Prediction, *, started_at: datetime | None = None
) -> Record:
    """Return the record of a run that ended by itself.

    Inside `coverage.watched()` it also tells where the inputs say what the answer says.

    Args:
        rlm: The module that ran, with the LM of `dspy.settings`.
        inputs: Its inputs.
        prediction: What it returned.
        started_at: When the run began.
    """
    values = {name: prediction[name] for name in rlm.signature.output_fields}
    outputs = to_jsonable_python(values, fallback=repr, inf_nan_mode="strings")
    task = _task(rlm, inputs)
    watched = {name: value for name, value in inputs.items() if name in task["input_chars"]}
    return Record(
        **task,
        outputs=outputs,
        stop=prediction.stop,
        usage=prediction.usage,
        trajectory=prediction.trajectory,
        final_reasoning=prediction.final_reasoning,
        started_at=started_at,
        occurrences=occurrences(outputs, watched) if watched else {},
    )


def record_of_error(
    rlm: RLM,
    inputs: dict[str, Any],
    error: BaseException,
    *,
    usage: dict[str, Any],
    started_at: datetime | None = None,
) -> Record:
    """Return the record of a run that an error ended.

    Args:
        rlm: The module that ran, with the LM of `dspy.settings`.
        inputs: Its inputs.
        error: What it raised; the steps so far are taken from it.
        usage: What the run had spent.
        started_at: When the run began.
    """
    stop: Stop = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    return Record(
        **_task(rlm, inputs),
        stop=stop,
        error=in_one_line(error) if stop == "failed" else None,
        usage=usage,
        trajectory=getattr(error, "trajectory", []),
        started_at=started_at,
    )


def _task(rlm: RLM, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record that are known before the run."""
    watch = watch_over(inputs)
    return {
        "signature": written(rlm.signature),
        "instructions": rlm.signature.instructions,
        "inputs": {name: value if isinstance(value, str) else repr(value) for name, value in inputs.items()},
        "model": dspy.settings.lm.model,
        "sub_model": rlm.sub_lm.model if rlm.sub_lm is not None else None,
        "input_chars": watch.sizes,
        "left_out": watch.left_out,
    }


def coverage_of(record: Record) -> dict[str, dict[str, float]]:
    """Return which share of each input was `read` by code, `shown` to the model, and `sent` to sub-models.

    Returns:
        Three shares from 0 to 1 by input; no input if coverage was not watched. What a child run did with the
        text it was handed counts as `sent` alone.
    """
    parts = covered(record).items()
    return {
        name: {use: sum(end - start for of, start, end in spans if of == name) / chars for use, spans in parts}
        for name, chars in record.input_chars.items()
        if chars
    }


def covered(record: Record) -> dict[str, list[Span]]:
    """Return the parts of the inputs that were `read`, `shown` and `sent` in the whole run, each merged."""
    steps = record.trajectory
    return {
        "read": merged((span for step in steps for span in step.read), most=None),
        "shown": merged((span for step in steps for span in step.shown), most=None),
        "sent": merged((span for step in steps for call in step.calls for span in call.sent), most=None),
    }


def written(signature: Any) -> str:
    """Return a signature as DSPy reads it from a string, with its types."""

    def fields(of: dict[str, Any]) -> str:
        return ", ".join(f"{name}: {get_annotation_name(field.annotation)}" for name, field in of.items())

    return f"{fields(signature.input_fields)} -> {fields(signature.output_fields)}"


def in_one_line(error: BaseException) -> str:
    """Return the first paragraph of what an error says; of an unexpected one also its type."""
    said = " ".join(str(error).strip().split("\n\n")[0].split())[:_MAX_ERROR_CHARS]
    expected = isinstance(error, (RLMError, dspy.DSPyError, ValueError, OSError)) and said
    return said if expected else f"{type(error).__name__}: {said}"
