"""What happened in a run: one `Step` a turn, in a `Trajectory` that only grows."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

StepKind = Literal["output", "error", "submitted", "refused", "no_code", "interpreter_lost"]
"""How a turn ended.

- `output`: the code ran.
- `error`: the code raised, or did not parse.
- `submitted`: SUBMIT was called and its values fit the signature.
- `refused`: SUBMIT was called and its values do not fit.
- `no_code`: the reply held no code, or no reply could be read.
- `interpreter_lost`: the interpreter died; a fresh one took its place.
"""


class Step(BaseModel):
    """One turn: what the model wrote and what the REPL answered."""

    model_config = ConfigDict(frozen=True)

    reasoning: str = ""
    """The model's words around its code."""
    code: str = ""
    """The Python that was run; empty if the reply held none."""
    output: str = ""
    """What the model is shown, cut to `Limits.max_output_chars`."""
    kind: StepKind = "output"
    notice: str = ""
    """What the run told the model along with the output: turns left, the last turn."""
    seconds: float = 0.0
    """Wall-clock time of the turn: the model's call, the code, its sub-calls."""
    spent: dict[str, Any] = Field(default_factory=dict)
    """What the turn's model calls used, sub-calls included: the fields of `Spent`."""
    answer: dict[str, Any] | None = Field(default=None, exclude=True, repr=False)
    """The typed values of an accepted SUBMIT; they stand on the prediction, so no dump holds them again."""

    @property
    def observation(self) -> str:
        """The user message that answers this step: the output, then the notice."""
        return f"{self.output}\n\n{self.notice}" if self.notice else self.output


class Trajectory(BaseModel):
    """The steps of a run so far. It does not change; `add` returns a longer one."""

    model_config = ConfigDict(frozen=True)

    steps: tuple[Step, ...] = ()

    def add(self, step: Step) -> Trajectory:
        """Return this trajectory with `step` behind it."""
        return Trajectory.model_construct(steps=(*self.steps, step))

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return one dict a step, as `Prediction.trajectory` holds them."""
        return [step.model_dump() for step in self.steps]

    def __len__(self) -> int:
        return len(self.steps)


def clip(text: str, max_chars: int) -> str:
    """Return `text`, or its head and tail with a note of what was left out between them.

    Args:
        text: Any text.
        max_chars: How many characters of `text` to keep; the note comes on top.
    """
    if len(text) <= max_chars:
        return text
    head = max_chars - max_chars // 3
    tail = max_chars - head
    left_out = len(text) - head - tail
    return f"{text[:head]}\n... [{left_out:,} characters left out] ...\n{text[len(text) - tail :]}"
