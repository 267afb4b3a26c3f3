"""Defines `Step`, `SubCall`, `ToolCall` and `Trajectory`: the history of a run."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_serializer

from rlm_dspy.text import clip
from rlm_dspy.usage import Usage

StepKind = Literal[
    "output", "error", "submitted", "refused", "no_code", "interpreter_lost", "folded", "killed", "unknown"
]
"""How a turn ended.

- `output`: the code ran.
- `error`: the code raised, or did not parse.
- `submitted`: SUBMIT was called and its values fit the signature.
- `refused`: SUBMIT was called and its values do not fit.
- `no_code`: the reply held no code, or no reply could be read.
- `interpreter_lost`: the interpreter died; a fresh one took its place.
- `killed`: the process died during the turn. Only a run that was read from a log has such a step.
- `unknown`: nothing tells what came of the turn. Only the last turn of a run that was read from a trace has it.
- `folded`: no turn, but the account that took the place of those before it in what the model is shown.
"""

Tone = Literal["", "good", "warn", "bad"]
"""How something is coloured, wherever it is shown."""


class Mark(NamedTuple):
    """How to show a kind of step, or an end of a run.

    Attributes:
        label: A word or two.
        tone: Its colour.
        failed: Whether the next turn has something to mend.
    """

    label: str
    tone: Tone = ""
    failed: bool = False


KINDS: dict[StepKind, Mark] = {
    "output": Mark("output"),
    "error": Mark("error", "bad", failed=True),
    "submitted": Mark("SUBMIT", "good"),
    "refused": Mark("SUBMIT refused", "warn", failed=True),
    "no_code": Mark("no code", "warn", failed=True),
    "interpreter_lost": Mark("interpreter lost", "bad", failed=True),
    "killed": Mark("killed", "bad"),
    "unknown": Mark("unknown"),
    "folded": Mark("folded"),
}
"""How each kind of step is shown."""

Span = tuple[str, int, int]
"""A part of an input: its name, where it begins and where it ends, in characters."""

CallKind = Literal["query", "sub", "ad_hoc", "child"]
"""What was called: `llm_query`, a declared sub, a module written in the REPL, or a child RLM."""


class SubCall(BaseModel):
    """One sub-call that the code of a turn made, with what it was given and what it answered, in short forms."""

    model_config = ConfigDict(frozen=True)

    name: str
    """`query`, the name of a sub, `rlm`, or of an ad-hoc call its class and signature."""
    kind: CallKind
    number: int = 0
    """Its number in the run, in the order that sub-calls were asked for; the first is 1."""
    batch: int = 1
    """Calls of one turn that were asked together have the same number; the first is 1."""
    inputs: dict[str, str] = Field(default_factory=dict)
    output: str = ""
    """Empty if it failed, but for what there is of a reply that was cut."""
    answer: str = ""
    """The whole answer as JSON, as code got it, if `output` does not tell it exactly; empty if it is very long."""
    truncated: bool = False
    """Whether `output` is a short form and the whole answer, too long to be kept, is not in `answer`."""
    error: str = ""
    """Why it failed; empty if it did not."""
    error_type: str = ""
    """The class of the error; empty if it did not fail."""
    refused: bool = False
    """Whether the call that it belongs to was refused as a whole: code got an exception in place of answers."""
    cached: bool = False
    """Whether an earlier sub-call had answered the same: nothing was asked."""
    attempts: int = 1
    """How often a model was asked until its answer fitted the types."""
    started: float = 0.0
    """Seconds since the root run began."""
    seconds: float = 0.0
    spent: Usage = Usage()
    """What it used."""
    sent: tuple[Span, ...] = ()
    """The parts of the run's inputs that it was handed; empty unless coverage is watched."""
    stop: str = ""
    """Why a child ended."""
    steps: tuple[Step, ...] = ()
    """What a child did."""


class ToolCall(BaseModel):
    """One call of a tool that the code of a turn made, in short form."""

    model_config = ConfigDict(frozen=True)

    name: str
    arguments: str = ""
    """As code would write them, cut."""
    result: str = ""
    """What the tool returned, cut; empty if it raised."""
    error_type: str = ""
    """The class of what it raised; empty if it returned."""
    started: float = 0.0
    """Seconds since the root run began."""
    seconds: float = 0.0


class Step(BaseModel):
    """One turn: what the model wrote and what the REPL answered."""

    model_config = ConfigDict(frozen=True)

    reasoning: str = ""
    """The model's words around its code."""
    thinking: str = ""
    """What the model thought before it replied, if that is known, cut; no model is shown it."""
    code: str = ""
    """The Python that was run; empty if the reply held none."""
    output: str = ""
    """What the model is shown, cut to `Limits.max_output_chars`."""
    kind: StepKind = "output"
    printed: str = ""
    """What the code printed before it called SUBMIT; empty if it did not, as `output` is what it printed then."""
    refusals: tuple[str, ...] = ()
    """Why SUBMIT was refused, field by field."""
    repeats: int = 0
    """The number of the earlier turn, from 1, that ran the same code with the same outcome; 0 if none did."""
    notice: str = ""
    """What the run told the model along with the output: turns left, the last turn."""
    seconds: float = 0.0
    """Wall-clock time of the turn: the model's call, the code, its sub-calls."""
    spent: Usage = Usage()
    """What the turn's model calls used, sub-calls included."""
    started: float = 0.0
    """Seconds since the root run began."""
    calls: tuple[SubCall, ...] = ()
    """The sub-calls that the code made, in the order they were asked for."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls of tools that the code made, in the order of their ends; the first 100."""
    tool_calls_left_out: int = 0
    """How many more there were."""
    read: tuple[Span, ...] = ()
    """The parts of the inputs that the code read, as far as it tells; empty unless coverage is watched."""
    shown: tuple[Span, ...] = ()
    """The parts of the inputs that the output shows; empty unless coverage is watched."""
    answer: dict[str, Any] | None = Field(default=None, exclude=True, repr=False)
    """The typed values of an accepted SUBMIT; they stand on the prediction, so no dump holds them again."""

    @property
    def failed(self) -> bool:
        """Whether the next turn has something to mend."""
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
_SHOWN = ("reasoning", "code", "output", "kind", "refusals", "notice")


class Trajectory(BaseModel):
    """The steps of a run so far, as `act` is given them. It does not change; `add` returns a longer one."""

    model_config = ConfigDict(frozen=True)

    steps: tuple[Step, ...] = ()

    @field_serializer("steps")
    def _without_defaults(self, steps: tuple[Step, ...]) -> list[dict[str, Any]]:
        return [step.model_dump(mode="json", exclude_defaults=True) for step in steps]

    def add(self, step: Step) -> Trajectory:
        """Return this trajectory with `step` behind it, without what the model is not shown of it."""
        shown = Step.model_construct(**{name: getattr(step, name) for name in _SHOWN})
        return Trajectory.model_construct(steps=(*self.steps, shown))

    def __len__(self) -> int:
        return len(self.steps)

    def __str__(self) -> str:
        """Return the turns as text, each output cut: what optimizers paste into the prompts of their models."""
        turns = (
            f"[turn {number}] {step.reasoning}\n```python\n{step.code}\n```\n{clip(step.observation, _STR_CHARS)}"
            for number, step in enumerate(self.steps, start=1)
        )
        return "\n".join(turns) or "(no turn yet)"

    __repr__ = __str__
