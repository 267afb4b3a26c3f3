"""What must hold of an optimizer on a program with an RLM inside: one function a check, each says what it saw."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy

from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.optimize import upstream
from rlm_dspy.prompt.adapter import Act
from tests.optimize.matrix_optimizers import OPTIMIZERS, Compiling
from tests.optimize.matrix_programs import PROGRAMS, ScriptedActor, examples
from tests.playing import ASKS_FOR_THE_FIRST_BLOCK, begins, told

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rlm_dspy.testing import Messages

MAX_PROMPT_CHARS = 40_000
"""The longest prompt of any call during a compile: of the program's own, and of the optimizer's."""
LONG = 10_000_000


@dataclass
class Compiled:
    """A program that an optimizer returned.

    Attributes:
        program: The program.
        job: What it was made from, and the calls that were made for it.
        optimizer: The optimizer's name.
    """

    program: dspy.Module
    job: Compiling
    optimizer: str

    @property
    def calls(self) -> list[Messages]:
        """The messages of every model call of the compile."""
        return self.job.lm.script.calls


def compiled(optimizer: str, program: str, *, chars: int = 2_000, as_text: bool = True) -> Compiled:
    """Compile a program with an optimizer, with scripted replies and code in this process."""
    data: dict[str, Any] = {"chars": chars, "as_text": as_text}
    job = Compiling(PROGRAMS[program], examples(4, **data), 2 * examples(2, first=10, **data), ScriptedActor())
    with dspy.context(lm=job.lm, interpreter_factory=LocalPythonInterpreter, callbacks=[]):
        result = OPTIMIZERS[optimizer](job)
    job.offer(result)
    return Compiled(result, job, optimizer)


def asked(program: dspy.Module) -> tuple[Any, list[Messages]]:
    """Run a program on an example it has not seen; return the prediction and the messages of each call."""
    (example,) = examples(1, first=51, as_text=True)
    lm = ScriptedActor()
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        program = program.deepcopy()
        program.set_lm(None)
        return program(**example.inputs()), lm.script.calls


def turns(calls: list[Messages]) -> list[Messages]:
    """Return the calls that are turns of an RLM."""
    return [messages for messages in calls if any(map(begins, messages))]


def it_answers(it: Compiled) -> str:
    """The compiled program gives a right answer."""
    prediction, calls = asked(it.program)
    assert prediction.answer == "v51", prediction
    return f"answers after {len(calls)} calls"


def the_protocol_survives(it: Compiled) -> str:
    """Every turn, also of a child, is told of SUBMIT, the variables and the functions of its own run."""
    _, calls = asked(it.program)
    assert any("- question: str" in messages[-1]["content"] for messages in turns(calls))
    for messages in turns(calls):
        environment = told(messages)
        for needed in ("SUBMIT(", ": str, ", "SHOW_VARS()", ASKS_FOR_THE_FIRST_BLOCK):
            assert needed in environment, (needed, messages)
    return f"in all of {len(turns(calls))} turns"


def every_predictor_got_a_chance(it: Compiled) -> str:
    """The optimizer proposed something for each predictor that the program calls."""
    names = {name.split("].")[-1] for name in it.job.offered} | proposed_for(it) | shown_demos(it)
    called = called_predictors(it.job.make())
    assert called <= names, called - names
    return f"{len(called)} of {len(called)}"


def shown_demos(it: Compiled) -> set[str]:
    """Return the predictors whose calls hold demos, of a program that compiles itself at each call."""
    if it.optimizer != "KNNFewShot":
        return set()
    predictors = dict(it.job.make().named_predictors())
    _, calls = asked(it.program)
    return {
        name
        for name, predictor in predictors.items()
        for call in calls
        if predictor.signature.instructions.strip() in call[0]["content"]
        and sum(message["role"] == "assistant" for message in call) > 0
    }


def proposed_for(it: Compiled) -> set[str]:
    """Return the predictors whose instructions an optimizer showed to a model to be rewritten."""
    predictors = dict(it.job.make().named_predictors())
    alike: dict[str, list[str]] = {p.signature.instructions: [] for p in predictors.values()}
    for name, predictor in predictors.items():
        alike[predictor.signature.instructions].append(name)
    of_turns = {id(messages) for messages in turns(it.calls)}
    found = set()
    for instructions, names in alike.items():
        first = instructions.strip().splitlines()[0]
        proposals = [c for c in it.calls if id(c) not in of_turns and first in c[-1]["content"]]
        if len(proposals) >= len(names):
            found |= set(names)
    return found


def called_predictors(program: dspy.Module) -> set[str]:
    """Return the names of the predictors that a run of a program calls."""
    (example,) = examples(1, first=51, as_text=True)
    with dspy.context(lm=ScriptedActor(), interpreter_factory=LocalPythonInterpreter, trace=[]):
        for _ in range(2):  # the first time it goes wrong
            program(**example.inputs())
        called = {id(predictor) for predictor, _, _ in dspy.settings.trace}
    return {name for name, predictor in program.named_predictors() if id(predictor) in called}


def it_is_saved_and_loaded(it: Compiled, folder: Path) -> str:
    """A new program that loads its state sends the same messages."""
    path = folder / f"{it.optimizer}.json"
    it.program.set_lm(None)
    it.program.save(str(path))
    fresh = it.job.make()
    if it.optimizer == "Ensemble":
        fresh = upstream.Ensemble(reduce_fn=dspy.majority).compile([it.job.make(), it.job.make()])
    fresh.load(str(path))
    assert asked(fresh)[1] == asked(it.program)[1]
    return f"{path.stat().st_size:,} bytes"


def what_was_learned_is_in_the_prompt(it: Compiled) -> str:
    """The instructions of each `act` are sent, and each of its demos: its code, or its label."""
    _, calls = asked(it.program)
    sent = "\n".join(message["content"] for messages in calls for message in messages)
    shown = 0
    for name, predictor in it.program.named_predictors():
        if isinstance(predictor, Act):
            assert predictor.signature.instructions.strip() in sent, name
            for demo in predictor.demos:
                assert str(demo.get("code") or demo.get("answer")) in sent, (name, demo)
                shown += 1
    if it.optimizer == "KNNFewShot":
        shown = sum(map(begins, turns(calls)[-1])) - 1
    advised = sum("Look first" in messages[0]["content"] for messages in turns(calls))
    assert shown or advised, "nothing was learned"
    return f"{shown} demos, {advised} turns with new instructions"


def prompts_stay_small(optimizer: str, program: str, *, as_text: bool) -> str:
    """With contexts of 10 MB no call of the compile is long, and neither is the saved state."""
    it = compiled(optimizer, program, chars=LONG, as_text=as_text)
    (example,) = examples(1, first=51, chars=LONG, as_text=as_text)
    with dspy.context(lm=it.job.lm, interpreter_factory=LocalPythonInterpreter):
        it.program(**example.inputs())
    longest = max(sum(len(message["content"]) for message in messages) for messages in it.calls)
    assert longest < MAX_PROMPT_CHARS, longest
    it.program.set_lm(None)
    state = len(json.dumps(it.program.dump_state()))
    assert state < MAX_PROMPT_CHARS, state
    return f"longest {longest:,} characters of {len(it.calls)} calls; state {state:,}"


CHECKS: dict[str, Callable[[Compiled], str]] = {
    "it answers": it_answers,
    "the protocol survives": the_protocol_survives,
    "every predictor got a chance": every_predictor_got_a_chance,
    "what was learned is in the prompt": what_was_learned_is_in_the_prompt,
}
