"""What happened in a run: one `Step` a turn with its `SubCall`s, and the `Trajectory` that the model is shown."""

from __future__ import annotations

import operator
from typing import Any, Literal

from dspy.adapters.types.base_type import CUSTOM_TYPE_START_IDENTIFIER as _MARK
from pydantic import BaseModel, ConfigDict, Field

StepKind = Literal["output", "error", "submitted", "refused", "no_code", "interpreter_lost", "folded", "killed"]
"""How a turn ended.

- `output`: the code ran.
- `error`: the code raised, or did not parse.
- `submitted`: SUBMIT was called and its values fit the signature.
- `refused`: SUBMIT was called and its values do not fit.
- `no_code`: the reply held no code, or no reply could be read.
- `interpreter_lost`: the interpreter died; a fresh one took its place.
- `killed`: the process was gone before the turn had ended. Only a run that was read from a log has such a step.
- `folded`: no turn, but the account that took the place of those before it in what the model is shown.
"""


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
    batch: int = 1
    """Calls of one turn that were asked together have the same number; the first is 1."""
    inputs: dict[str, str] = Field(default_factory=dict)
    output: str = ""
    """Empty if it failed, but for what there is of a reply that was cut."""
    answer: str = ""
    """The whole answer as JSON, as code got it, if `output` does not tell it exactly; empty if it is very long."""
    error: str = ""
    """Why it failed; empty if it did not."""
    cached: bool = False
    """Whether an earlier sub-call had answered the same: nothing was asked."""
    attempts: int = 1
    """How often a model was asked until its answer fitted the types."""
    started: float = 0.0
    """Seconds since the root run began."""
    seconds: float = 0.0
    spent: dict[str, Any] = Field(default_factory=dict)
    """What it used: the fields of `Spent`."""
    sent: tuple[Span, ...] = ()
    """The parts of the run's inputs that it was handed; empty unless coverage is watched."""
    stop: str = ""
    """Why a child ended."""
    steps: tuple[Step, ...] = ()
    """What a child did."""


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
    notice: str = ""
    """What the run told the model along with the output: turns left, the last turn."""
    seconds: float = 0.0
    """Wall-clock time of the turn: the model's call, the code, its sub-calls."""
    spent: dict[str, Any] = Field(default_factory=dict)
    """What the turn's model calls used, sub-calls included: the fields of `Spent`."""
    started: float = 0.0
    """Seconds since the root run began."""
    calls: tuple[SubCall, ...] = ()
    """The sub-calls that the code made, in the order they were asked for."""
    read: tuple[Span, ...] = ()
    """The parts of the inputs that the code read, as far as it tells; empty unless coverage is watched."""
    shown: tuple[Span, ...] = ()
    """The parts of the inputs that the output shows; empty unless coverage is watched."""
    answer: dict[str, Any] | None = Field(default=None, exclude=True, repr=False)
    """The typed values of an accepted SUBMIT; they stand on the prediction, so no dump holds them again."""

    @property
    def observation(self) -> str:
        """The user message that answers this step: the output, then the notice."""
        return f"{self.output}\n\n{self.notice}" if self.notice else self.output


SubCall.model_rebuild()
_STR_CHARS = 600
_NOTE_CHARS = 60  # room for the note that `clip` puts between head and tail


class Trajectory(BaseModel):
    """The steps of a run so far, as `act` is given them. It does not change; `add` returns a longer one."""

    model_config = ConfigDict(frozen=True)

    steps: tuple[Step, ...] = ()

    def add(self, step: Step) -> Trajectory:
        """Return this trajectory with `step` behind it, without what the model is not shown of it."""
        lean = step.model_copy(update={"thinking": "", "calls": (), "read": (), "shown": ()})
        return Trajectory.model_construct(steps=(*self.steps, lean))

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


def sendable(text: str) -> str:
    """Return the text with `?` for halves of surrogate pairs, which no provider or file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
    return text


def without_media_marks(value: Any) -> Any:
    """Return a text, or lists and dicts of texts, in which nothing stands for an image, a sound or a file.

    DSPy writes media into a prompt as marked JSON and reads every mark that it finds there: in a document, one
    would have the model's server fetch an address of the document's choice. The same object if there is no mark.
    """
    if isinstance(value, str):
        return value.replace(_MARK, f"< {_MARK[1:]}") if _MARK in value else value
    if isinstance(value, dict):
        parts = [*dict.keys(value), *dict.values(value)]
        new = without_media_marks(parts)
        return value if new is parts else dict(zip(new[: len(value)], new[len(value) :], strict=True))
    if isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
        items = [without_media_marks(item) for item in parts]
        if all(new is old for new, old in zip(items, parts, strict=True)):
            return value
        return next(kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind))(items)
    return value


def mended(value: Any) -> Any:
    """Return JSON-like data with every text in it `sendable`; the value itself if there is nothing to mend."""
    if isinstance(value, str):
        return sendable(value)
    if isinstance(value, dict):
        parts = {mended(key): mended(item) for key, item in value.items()}
        same = all(a is b and x is y for (a, x), (b, y) in zip(parts.items(), value.items(), strict=False))
        return value if same and len(parts) == len(value) else parts
    if type(value) in (list, tuple, set, frozenset):
        items = [mended(item) for item in value]
        return value if all(map(operator.is_, items, value)) else type(value)(items)
    return value


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


def fitted(texts: list[str], chars: int) -> list[str]:
    """Return the texts, the longest of them cut so that all together have about as many characters as they may."""
    left = chars
    for rank, length in enumerate(sorted(map(len, texts))):
        share = max(0, left // (len(texts) - rank))
        if length > share:
            return [cut(text, share) for text in texts]
        left -= length
    return texts


def cut(text: str, chars: int) -> str:
    """Return `text` within `chars` characters, the note of what was left out included."""
    return text if len(text) <= chars else clip(text, max(0, chars - _NOTE_CHARS))
