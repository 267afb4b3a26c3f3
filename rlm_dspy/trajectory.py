"""Defines `Step`, `SubCall`, `ToolCall` and `Trajectory`: the history of a run."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_serializer

from rlm_dspy.text import clip
from rlm_dspy.usage import Usage

StepKind = Literal[
    "output",
    "error",
    "submitted",
    "refused",
    "denied",
    "no_code",
    "interpreter_lost",
    "folded",
    "paused",
    "killed",
    "unknown",
]
"""How a turn ended.

- `output`: the code ran.
- `error`: the code raised, or did not parse.
- `submitted`: SUBMIT was called and its values fit the signature.
- `refused`: SUBMIT was called and its values do not fit, or `on_submit` refused them.
- `denied`: `on_code` refused the code, which was not run.
- `no_code`: the reply contained no code, or could not be parsed.
- `interpreter_lost`: the interpreter died; a new one replaced it.
- `paused`: a hook ended the run in this turn with a `Pause`.
- `killed`: the process died during the turn. Only runs read from a log have such a step.
- `unknown`: the result of the turn is not known. Only the last turn of a run read from a trace has it.
- `folded`: not a turn, but the summary that replaces the turns before it in the prompt.
"""

Tone = Literal["", "good", "warn", "bad"]
"""The colour in which something is shown."""


class Mark(NamedTuple):
    """How a kind of step, or the end of a run, is shown.

    Attributes:
        label: A word or two.
        tone: Its colour.
        failed: Whether the next turn must fix something.
    """

    label: str
    tone: Tone = ""
    failed: bool = False


KINDS: dict[StepKind, Mark] = {
    "output": Mark("output"),
    "error": Mark("error", "bad", failed=True),
    "submitted": Mark("SUBMIT", "good"),
    "refused": Mark("SUBMIT refused", "warn", failed=True),
    "denied": Mark("code refused", "warn", failed=True),
    "no_code": Mark("no code", "warn", failed=True),
    "interpreter_lost": Mark("interpreter lost", "bad", failed=True),
    "paused": Mark("paused", "warn"),
    "killed": Mark("killed", "bad"),
    "unknown": Mark("unknown"),
    "folded": Mark("folded"),
}
"""How each kind of step is shown."""

Span = tuple[str, int, int]
"""A part of an input: the input's name, start and end offset in characters; in a `Files`, in bytes."""


Via = Literal["printed", "sub_call", "code"]
"""How a place was read: the model was shown it, a sub-model was, or only code read it."""


class Place(BaseModel):
    """A place in an input that a value of the answer came from."""

    model_config = ConfigDict(frozen=True)

    value: str
    """The value, as text."""
    input: str
    """The name of the input."""
    item: str | int | None = None
    """The key of the text in a list, dict or folder; None if the input is a text."""
    start: int
    """Offset in the text, in characters: `text[start:end]`."""
    end: int
    exact: bool = True
    """Whether the value is there word for word; else a sub-call read it from this passage."""
    via: Via
    text: str = ""
    """The text there, with up to 64 characters on each side; for a passage, its beginning."""


CallKind = Literal["query", "sub", "ad_hoc", "child"]
"""What was called: `llm_query`, a declared sub, a module written in the REPL, or a child RLM."""


class SubCall(BaseModel):
    """One sub-call of a turn's code, with its inputs and its answer in short form."""

    model_config = ConfigDict(frozen=True)

    name: str
    """`query`, the name of a sub, `rlm`, or the class and signature of an ad-hoc call."""
    kind: CallKind
    number: int = 0
    """Its number in the run, in the order of the calls; the first is 1."""
    batch: int = 1
    """The number of its batch in the turn; the first is 1."""
    inputs: dict[str, str] = Field(default_factory=dict)
    output: str = ""
    """Empty if it failed; of a truncated reply, the received part."""
    answer: str = ""
    """The whole answer as JSON, if `output` is not exact; empty if it is very long."""
    truncated: bool = False
    """Whether `output` is a short form and `answer` does not hold the whole, because it is too long."""
    error: str = ""
    """Why it failed; empty if it did not."""
    error_type: str = ""
    """The class of the error; empty if it did not fail."""
    refused: bool = False
    """Whether its whole batch was refused: code got an exception instead of answers."""
    cached: bool = False
    """Whether the answer came from an earlier identical sub-call."""
    attempts: int = 1
    """How many requests it took until the answer fit the types."""
    started: float = 0.0
    """Seconds since the root run began."""
    seconds: float = 0.0
    spent: Usage = Usage()
    """What it used."""
    sent: tuple[Span, ...] = ()
    """The parts of the run's inputs that it received; empty unless coverage is watched."""
    stop: str = ""
    """Why a child ended."""
    steps: tuple[Step, ...] = ()
    """What a child did."""


class ToolCall(BaseModel):
    """One tool call of a turn's code, in short form."""

    model_config = ConfigDict(frozen=True)

    name: str
    arguments: str = ""
    """As written in code, truncated."""
    result: str = ""
    """What the tool returned, truncated; empty if it raised."""
    error_type: str = ""
    """The class of its exception; empty if it returned."""
    refused: str = ""
    """Why `on_tool` refused it; empty if it did not."""
    started: float = 0.0
    """Seconds since the root run began."""
    seconds: float = 0.0
    """Seconds that the call took, those of `on_tool` included."""


class Step(BaseModel):
    """One turn: what the model wrote and what the REPL answered."""

    model_config = ConfigDict(frozen=True)

    reasoning: str = ""
    """The model's words around its code."""
    thinking: str = ""
    """What the model thought before the reply, if known, truncated; not shown to any model."""
    code: str = ""
    """The Python that was run; empty if the reply contained none. For a denied turn, the code that was not run."""
    proposed: str = ""
    """What the model wrote, if `on_code` had other code run instead."""
    output: str = ""
    """What the model is shown, truncated to `Limits.max_output_chars`."""
    kind: StepKind = "output"
    printed: str = ""
    """What the code printed before SUBMIT; empty without SUBMIT, because `output` holds it then."""
    refusals: tuple[str, ...] = ()
    """Why SUBMIT was refused, one reason per field, or by `on_submit`; or why `on_code` refused the code."""
    repeats: int = 0
    """The number of the earlier turn, from 1, that ran the same code with the same outcome; 0 if none did."""
    notice: str = ""
    """The notice that follows the output: turns left, the last turn."""
    seconds: float = 0.0
    """Wall-clock time of the turn: the model's call, the code, its sub-calls."""
    spent: Usage = Usage()
    """What the turn's model calls used, sub-calls included."""
    started: float = 0.0
    """Seconds since the root run began."""
    calls: tuple[SubCall, ...] = ()
    """The sub-calls of the code, in call order."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The tool calls of the code, in the order in which they ended; the first 100."""
    tool_calls_left_out: int = 0
    """How many further tool calls there were."""
    read: tuple[Span, ...] = ()
    """The parts of the inputs that the code read, as far as known; empty unless coverage is watched."""
    shown: tuple[Span, ...] = ()
    """The parts of the inputs that the output shows; empty unless coverage is watched."""
    answer: dict[str, Any] | None = Field(default=None, exclude=True, repr=False)
    """The typed values of an accepted SUBMIT; not dumped, because the prediction holds them."""

    @property
    def failed(self) -> bool:
        """Whether the next turn must fix something."""
        return KINDS[self.kind].failed

    @property
    def problem(self) -> str:
        """What went wrong in a turn that failed: why SUBMIT was refused, else the last line of the output."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return "; ".join(self.refusals) or (lines[-1] if lines else "")

    @property
    def observation(self) -> str:
        """The user message that answers this step: the output, then the notice."""
        return f"{self.output}\n\n{self.notice}" if self.notice else self.output


SubCall.model_rebuild()
_STR_CHARS = 600
_SHOWN = ("reasoning", "code", "output", "kind", "refusals", "repeats", "notice")


class Trajectory(BaseModel):
    """The steps of a run so far: an input of `act`. Immutable; `add` returns a longer one."""

    model_config = ConfigDict(frozen=True)

    steps: tuple[Step, ...] = ()

    @field_serializer("steps")
    def _without_defaults(self, steps: tuple[Step, ...]) -> list[dict[str, Any]]:
        return [step.model_dump(mode="json", exclude_defaults=True) for step in steps]

    def add(self, step: Step) -> Trajectory:
        """Return this trajectory with `step` appended, reduced to what the model is shown."""
        shown = Step.model_construct(**{name: getattr(step, name) for name in _SHOWN})
        return Trajectory.model_construct(steps=(*self.steps, shown))

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        """Return the turns as text with short outputs, for the prompts of optimizers."""
        turns = (
            f"[turn {number}] {step.reasoning}\n```python\n{step.code}\n```\n{clip(step.observation, _STR_CHARS)}"
            for number, step in enumerate(self.steps, start=1)
        )
        return "\n".join(turns) or "(no turn yet)"

    __repr__ = __str__
