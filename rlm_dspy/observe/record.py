"""What is kept of a run that a person started: enough to read it again later, without the text it was about."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dspy
from pydantic import BaseModel, ConfigDict

from rlm_dspy.coverage.watch import Occurrence, looked_into
from rlm_dspy.errors import RLMError
from rlm_dspy.json_values import jsonable
from rlm_dspy.subcalls.ad_hoc import written
from rlm_dspy.text import clip, counted, one_line, sendable, write_whole
from rlm_dspy.trajectory import Mark, Step
from rlm_dspy.usage import RunUsage

if TYPE_CHECKING:
    import os

    from rlm_dspy.budget.ledger import Ledger
    from rlm_dspy.loop.rlm import RLM

_MAX_ERROR_CHARS = 600
Stop = Literal["submitted", "extracted", "unanswered", "interrupted", "failed", "killed"]
"""As in `Prediction.stop`; also `interrupted` (Ctrl-C, a cancelled task), `failed` (the model or the interpreter)
and `killed` (the run's log has no end)."""


STOPS: dict[Stop, Mark] = {
    "submitted": Mark("submitted", "good"),
    "extracted": Mark("read from the trajectory", "warn"),
    "unanswered": Mark("no answer", "bad"),
    "interrupted": Mark("interrupted", "bad"),
    "failed": Mark("failed", "bad"),
    "killed": Mark("killed", "bad"),
}
"""How each end of a run is shown."""


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
    limits: dict[str, Any] = {}
    """What the run might spend: the fields of `Limits`."""
    outputs: dict[str, Any] = {}
    """The output fields as JSON; empty if the run did not end."""
    stop: Stop
    error: str | None = None
    """What went wrong, in one line."""
    usage: RunUsage = RunUsage()
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
        write_whole(self.as_json() + "\n", path)

    def as_json(self) -> str:
        """Return the record as JSON, with `?` for halves of surrogate pairs: UTF-8 has none."""
        return json.dumps(jsonable(self), ensure_ascii=False, indent=2)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read a record that `save` wrote.

        Raises:
            ValueError: If the file holds none, or one of another version.
        """
        return cls.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))


def describe_stop(record: Record) -> str:
    """Return why a run ended, in a phrase: `submitted after 3 turns`."""
    number = sum(step.kind != "folded" for step in record.trajectory)
    turns = counted(number, "turn")
    return {
        "submitted": f"submitted after {turns}",
        "extracted": f"no SUBMIT in {turns}, read from the trajectory",
        "unanswered": f"no SUBMIT in {turns}, and no answer in the trajectory",
        "interrupted": f"interrupted after {turns}",
        "failed": f"failed after {turns}",
        "killed": f"killed in turn {number}",
    }[record.stop]


def recorded(rlm: RLM, inputs: dict[str, Any], ledger: Ledger) -> tuple[Record, BaseException | None]:
    """Run a module with the LM of `dspy.settings`, and keep what came of it however it ended.

    Args:
        rlm: The module.
        inputs: Its inputs.
        ledger: Where the calls of the run are entered; it tells what a run spent that was cut short.

    Returns:
        The record, and the error that ended the run, `KeyboardInterrupt` included; None if it ended by itself.
    """
    task = {**asked(rlm, inputs), "started_at": datetime.now(UTC)}
    try:
        prediction = rlm(**inputs)
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 (what was paid for is kept)
        trajectory = _carried(error)
        seen = looked_into(inputs, {})
        return Record(**task, **cut_short(error), usage=ledger.usage(), trajectory=trajectory, **seen), error
    steps = [] if "trajectory" in rlm.signature.output_fields else prediction.trajectory
    told = ended(rlm, prediction)
    return Record(**task, **told, trajectory=steps, **looked_into(inputs, told["outputs"])), None


def _carried(error: BaseException) -> list[Any]:
    """Return the steps of a run that an error ended; of a second Ctrl-C, those that the first one carries."""
    found: BaseException | None = error
    while found is not None and not hasattr(found, "trajectory"):
        found = found.__cause__ or found.__context__
    return getattr(found, "trajectory", [])


def asked(rlm: RLM, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what a record says of a run that is about to begin, with the LM of `dspy.settings`."""
    lm = rlm.act.lm or dspy.settings.lm
    return {
        "signature": sendable(written(rlm.signature)),
        "instructions": sendable(rlm.signature.instructions),
        "inputs": {name: in_short(value, rlm.limits.max_output_chars) for name, value in inputs.items()},
        "model": str(getattr(lm, "model", "")),
        "sub_model": rlm.sub_lm.model if rlm.sub_lm is not None else None,
        "limits": asdict(rlm.limits),
    }


def ended(rlm: RLM, prediction: dspy.Prediction) -> dict[str, Any]:
    """Return what a record says of a run's end, apart from its steps.

    An output field of the user's that has the name of one of ours took its place on the prediction.
    """
    outputs = {name: prediction[name] for name in rlm.signature.output_fields}
    report = {"stop": "submitted", "usage": {}, "final_reasoning": ""}
    report |= {name: prediction[name] for name in report if name not in outputs}
    return {"outputs": jsonable(outputs), **report}


def cut_short(error: BaseException) -> dict[str, Any]:
    """Return what a record says of the end of a run that an error ended."""
    stopped = isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit))
    return {"stop": "interrupted", "error": None} if stopped else {"stop": "failed", "error": in_one_line(error)}


def in_short(value: Any, max_chars: int) -> str:
    """Return an input as a record has it.

    Args:
        value: The input.
        max_chars: `Limits.max_output_chars` of the run.
    """
    return sendable(clip(value if isinstance(value, str) else repr(value), max_chars))


def in_one_line(error: BaseException) -> str:
    """Return the first paragraph of what an error says; of an unexpected one also its type."""
    said = one_line(str(error).strip().split("\n\n")[0], _MAX_ERROR_CHARS)
    expected = isinstance(error, (RLMError, dspy.DSPyError, ValueError, OSError)) and said
    return said if expected else f"{type(error).__name__}: {said}"
