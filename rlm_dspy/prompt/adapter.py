"""Formats a turn as chat messages: each turn appends two messages to those of the turn before."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import dspy
from pydantic import BaseModel, ValidationError

from rlm_dspy import signatures
from rlm_dspy._dspy_compat import CUSTOM_TYPE_END, CUSTOM_TYPE_MARK
from rlm_dspy.inputs import Text
from rlm_dspy.json_values import jsonable
from rlm_dspy.prompt.demo_renaming import renamed, under
from rlm_dspy.prompt.refine_advice import hint, speaking
from rlm_dspy.replies.repetitive_text import is_repetitive
from rlm_dspy.replies.reply_parser import read_reply
from rlm_dspy.signatures import Environment
from rlm_dspy.streaming.turn_stream import split_replies
from rlm_dspy.text import clip, cut
from rlm_dspy.trajectory import Step, Trajectory

Message = dict[str, str]
_DEMO_OUTPUT_CHARS = 600
"""Maximum characters of each output in a demo."""
_DEMO_ENVIRONMENT_CHARS = 800
_LABEL_CHARS = 160
"""Maximum characters of each field in a labeled example."""
_ASKED_CHARS = 400
"""Maximum characters of an input that is shown again after each output."""
_PASSAGES = 5
"""How many passages a block prints that is shown as an example; the default of `find_passages`."""
_MEDIA = re.compile(f"{re.escape(CUSTOM_TYPE_MARK)}.*?{re.escape(CUSTOM_TYPE_END)}", re.DOTALL)
"""How DSPy writes an image, a sound or a file into a text."""
_NO_FIELDS = frozenset({"augmented", "dspy_uuid", "dspy_split"})  # keys that DSPy adds to an example's fields


class ReplAdapter(dspy.Adapter):
    """Formats turns as a conversation with a REPL, and parses any reply.

    System: the instructions, and the parts that the environments of run and demos share. Then each demo as a
    short worked conversation. Then the run: the environment (user), and for each step what the model wrote
    (assistant) and its output (user). Sent messages never change later, so a provider's prompt cache hits. Of a
    turn that repeats an earlier one, or whose reply repeated itself until it was cut, only what the model is told
    of it is shown, after the last output: a model repeats what it sees repeated. A demo of a task with other field
    names is renamed to this task's (`renamed`). A demo that is a labeled example (inputs and correct outputs
    of the task, no turns) is a line after the instructions.
    """

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: Mapping[str, Any]
    ) -> list[Message]:
        """Return the chat messages of one turn."""
        here = Environment.of(inputs["environment"])
        shown = [renamed(demo, here) for demo in longest_of_each_run(demos)]
        environments = [under(Environment.of(demo["environment"]), here).parts for demo in shown]
        *before, ask = here.parts
        said_once = [part for part in before if environments and all(part in other for other in environments)]
        system = [signature.instructions.strip(), *said_once, self._labeled(demos)]
        messages = [{"role": "system", "content": "\n\n".join(part for part in system if part)}]
        for demo, parts in zip(shown, environments, strict=True):
            messages += self._conversation(_without(said_once, parts), demo["trajectory"])
            messages.append(_assistant(demo.get("reasoning") or "", demo.get("code") or ""))
        steps = _steps(inputs["trajectory"])
        if not shown and here.turns > 1 and any(variable.long for variable in here.variables):
            ask = f"{ask} {_first_block(here)}"
            steps = _guided(steps, here)
        environment = _without(said_once, [*before, ask])
        return messages + _conversation("\n\n".join(filter(None, (environment, hint()))), steps)

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """Return `reasoning` and `code`; `code` is empty if the reply contains none."""
        reply = read_reply(completion)
        return {"reasoning": reply.reasoning, "code": reply.code}

    def _labeled(self, demos: list[dict[str, Any]]) -> str:
        """Return the labeled examples among the demos, one line each; empty if there are none."""
        lines = []
        for demo in demos:
            if is_labeled(demo):
                fields = ((name, value) for name, value in dict(demo).items() if name not in _NO_FIELDS)
                lines.append("- " + ", ".join(f"{name}: {label(value)}" for name, value in fields))
        return "\n".join(["Inputs and correct outputs of other runs:", *lines]) if lines else ""

    def _conversation(self, environment: str, trajectory: Trajectory | Mapping[str, Any]) -> list[Message]:
        steps = [
            step.model_copy(update={"output": clip(step.output, _DEMO_OUTPUT_CHARS)})
            for step in _steps(trajectory)
        ]
        return _conversation(clip(environment, _DEMO_ENVIRONMENT_CHARS), steps)


def longest_of_each_run(demos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the demos that are conversations, without those that a longer one of the same run already shows."""
    complete = [
        demo
        for demo in demos
        if not is_labeled(demo)
        and demo["environment"]
        and demo["code"]
        # An optimizer (SIMBA) may have truncated a long trajectory to text.
        and not isinstance(demo["trajectory"], str)
    ]
    written = [(Environment.of(demo["environment"]), _written(demo)) for demo in complete]
    return [
        demo
        for demo, (environment, codes) in zip(complete, written, strict=True)
        if not any(
            environment == other and len(longer) > len(codes) and longer[: len(codes)] == codes
            for other, longer in written
        )
    ]


class Act(dspy.Predict):
    """The predictor of a turn, with its own adapter; the other predictors of a program keep the user's."""

    _demos_per_run: int | None = None

    @property
    def demos_per_run(self) -> int | None:
        """The maximum number of demos that a run shows, the nearest to its task; None for all. Saved if set."""
        return self._demos_per_run

    @demos_per_run.setter
    def demos_per_run(self, value: int | None) -> None:
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"demos_per_run must be at least 1, or None to show all demos, not {value!r}.")
        self._demos_per_run = value

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Predict `reasoning` and `code` of the next block."""
        with speaking(self, _ADAPTER), split_replies(awaited=False):
            return super().forward(**inputs)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Predict `reasoning` and `code` of the next block."""
        with speaking(self, _ADAPTER), split_replies(awaited=True):
            return await super().aforward(**inputs)

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the state; labeled examples only as far as they are shown, without long texts."""
        state: dict[str, Any] = super().dump_state(json_mode)
        state["demos"] = [labels(demo) if is_labeled(demo) else demo for demo in state["demos"]]
        return state if self.demos_per_run is None else {**state, "demos_per_run": self.demos_per_run}


def labels(demo: Mapping[str, Any]) -> dict[str, Any]:
    """Return a labeled example as it is saved: what is shown of its fields."""
    fields = dict(demo).items()
    return {name: value if isinstance(value, int | None) else label(value) for name, value in fields}


def label(value: Any) -> str:
    """Return what is shown of a field of a labeled example: the same before it was saved and after."""
    if isinstance(value, Text):
        text = repr(value)
    else:
        text = _MEDIA.sub(
            "(an image, a sound or a file)", str(value if isinstance(value, str) else jsonable(value))
        )
    return cut(text, _LABEL_CHARS).replace("\n", " ")


def messages_of(
    signature: type[dspy.Signature], environment: Environment, trajectory: Trajectory, demos: list[dict[str, Any]]
) -> list[Message]:
    """Return the messages of a turn.

    A predictor that replaces `Act` may format them differently, in about the same length.
    """
    return _ADAPTER.format(signature, demos, {"environment": environment, "trajectory": trajectory})


_ADAPTER = ReplAdapter()


def _first_block(here: Environment) -> str:
    """Return how a run without demos over long inputs begins.

    Small models copy the form of what they read last: after prose, a model of 1.5B parameters replied in prose.
    """
    search = search_block(here)
    if not search:
        return "Begin with a block that prints a small sample of the inputs."
    return f"Begin with a block such as:\n\n{search}"


def search_block(here: Environment, skip: int = 0) -> str:
    """Return a block that prints the best passages of the first long input after `skip` better ones.

    It is empty if that input is neither a text nor a folder.
    """
    long = next(variable for variable in here.variables if variable.long)
    if long.type not in {"str", "Files"}:
        return ""
    short = [each for each in here.variables if each.type == "str" and not each.long]
    # The one with the most words: a question, not an id before it.
    wordiest = max(short, key=lambda each: len(each.value.split()), default=None)
    words = wordiest.name if wordiest else '"words of the task"'
    chosen = f", count={skip + _PASSAGES})[{skip}:]" if skip else ")"
    return f"```python\nfor part in find_passages({long.name}, {words}{chosen}:\n    print(part)\n```"


def _guided(steps: list[Step], here: Environment) -> list[Step]:
    """Return the steps with what a small model needs after each: the task again, a block that goes on, how to end.

    A model of 1.5B parameters otherwise wrote its first block again and again, or asked in prose for the next part
    of the text.
    """
    short = [
        str(variable) for variable in here.variables if not variable.long and len(str(variable)) < _ASKED_CHARS
    ]
    submit = f"```python\nSUBMIT({', '.join(f'{output.name}=...' for output in here.outputs)})\n```"
    guided, printed = list[Step](), 0
    for step in steps:
        notices, is_lost = [step.notice], bool(step.repeats) or step.kind == "no_code"
        if step.kind != "folded" and is_lost and (search := search_block(here, printed)):
            notices.append(f"For example:\n\n{search}")
        elif step.kind != "folded" and not step.notice:
            go_on = "If the output above does not hold the answer, write a block that goes further. If it does:"
            notices = [*short, f"{go_on}\n\n{submit}"]
        printed += _PASSAGES if not is_lost and "find_passages(" in step.code else 0
        guided.append(step.model_copy(update={"notice": "\n".join(filter(None, notices))}))
    return guided


def _conversation(environment: str, steps: list[Step]) -> list[Message]:
    messages = [{"role": "user", "content": environment}]
    for step in steps:
        if step.kind == "folded":  # its summary covers the turns before it
            messages = [{"role": "user", "content": f"{environment}\n\n{step.observation}"}]
            continue
        loops = step.kind == "no_code" and is_repetitive(step.reasoning)
        if (step.repeats or loops) and steps[0].kind != "folded":
            note = step.notice if step.repeats else step.observation
            messages[-1] = {"role": "user", "content": f"{messages[-1]['content']}\n\n{note}"}
            continue
        messages.append(_assistant(step.reasoning, step.code))
        messages.append({"role": "user", "content": step.observation})
    return messages


def _assistant(reasoning: str, code: str) -> Message:
    return {"role": "assistant", "content": written_reply(reasoning, code)}


def written_reply(reasoning: str, code: str) -> str:
    """Format a turn like a reply of the model: its text, then one fenced block."""
    block = f"```python\n{code}\n```" if code else ""
    return "\n".join(part for part in (reasoning, block) if part) or "(nothing)"


def _steps(trajectory: Trajectory | Mapping[str, Any]) -> list[Step]:
    """Return the steps of a trajectory or of its plain data from a saved program."""
    if not isinstance(trajectory, Trajectory):
        trajectory = Trajectory.model_validate(trajectory or {})
    return list(trajectory.steps)


def _without(said_once: list[str], parts: list[str]) -> str:
    """Return the parts of an environment that are not shown elsewhere, as text."""
    return "\n\n".join(part for part in parts if part not in said_once)


def is_labeled(demo: Mapping[str, Any]) -> bool:
    """Whether a demo is an example of the task, not of a turn, whose field names a task may share."""
    fields = set(dict(demo)) - _NO_FIELDS
    if not {"environment", "trajectory", "code"} <= fields <= signatures.Act.fields.keys():
        return True
    environment, trajectory = demo["environment"], demo["trajectory"]
    of_turns = isinstance(trajectory, str) or _is_one(Trajectory, trajectory or {})
    return not (of_turns and _is_one(Environment, environment))


def _is_one(kind: type[BaseModel], value: Any) -> bool:
    """Whether a value is a model of this kind, or its plain data."""
    if isinstance(value, Mapping) and not value.keys() <= kind.model_fields.keys():
        return False
    try:
        kind.model_validate(value)
    except ValidationError:
        return False
    return True


def _written(demo: Mapping[str, Any]) -> list[str]:
    return [*(step.code for step in _steps(demo["trajectory"])), demo["code"]]
