"""A request that is too long for the model's window is one kind of error, however a server words it over HTTP.

`data/window_errors.json` holds what servers answer and where it was read; `{window}` and `{read}` are its numbers.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy import RLM
from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.metered_lm import metered
from rlm_dspy.budget.window_errors import is_too_long
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.limits import Limits
from tests.playing import begins, block, fields
from tests.window_server import Request, WindowServer, serving

if TYPE_CHECKING:
    from rlm_dspy.testing import Messages

WINDOW = 1_500


@dataclass(frozen=True)
class Refusal:
    """What a server answers.

    Attributes:
        server: Whose words these are.
        status: Of HTTP.
        body: JSON, or text.
        source: Where it was read.
        tells_window: Whether it tells the window, in words that DSPy keeps.
    """

    server: str
    status: int
    body: Any
    source: str
    tells_window: bool = True

    def written(self, window: int, read: int) -> str:
        """Return the body with its numbers."""
        text = self.body if isinstance(self.body, str) else json.dumps(self.body)
        return text.replace("{window}", str(window)).replace("{read}", str(read))


_ROWS = json.loads((Path(__file__).parents[1] / "data" / "window_errors.json").read_text(encoding="utf-8"))
REFUSALS = [Refusal(**row) for row in _ROWS["too long"]]
OTHERS = [Refusal(**row) for row in _ROWS["something else"]]


def server_of(refusal: Refusal, reply: Any = None, **options: Any) -> WindowServer:
    """Return a server that words its refusals so."""

    def refuse(request: Request, window: int) -> tuple[int, str]:
        return refusal.status, refusal.written(window, request.read)

    return WindowServer(reply or (lambda messages: "ok"), options.pop("window", WINDOW), refuse, **options)


def ask(lm: dspy.LM, text: str, ledger: Ledger | None = None, *, awaiting: bool = False) -> None:
    """Ask an LM as runs do."""
    predict = dspy.Predict("text -> answer")
    with metered(ledger or Ledger(Limits()), "act"), dspy.context(lm=lm):
        if awaiting:
            asyncio.run(predict.acall(text=text))
        else:
            predict(text=text)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.server)
def test_a_request_that_is_too_long_is_told_from_all_others(refusal: Refusal) -> None:
    """As DSPy's `ContextWindowExceededError`, if the server gives a reason; it is not repeated."""
    with serving(server_of(refusal)) as server, pytest.raises(dspy.LMError) as caught:
        ask(server.lm(num_retries=2), "word " * 2_000)
    assert is_too_long(caught.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("awaiting", [False, True])
@pytest.mark.parametrize("refusal", [r for r in REFUSALS if r.tells_window], ids=lambda refusal: refusal.server)
def test_the_window_that_a_refusal_tells_is_known_from_then_on(refusal: Refusal, awaiting: bool) -> None:
    """By the name of the model, in the ledger of the run."""
    ledger = Ledger(Limits())
    with serving(server_of(refusal)) as server, pytest.raises(dspy.ContextWindowExceededError):
        ask(server.lm(), "word " * 2_000, ledger, awaiting=awaiting)
    assert ledger.windows == {"openai/m": WINDOW}


@pytest.mark.parametrize("refusal", OTHERS, ids=lambda refusal: refusal.server)
def test_what_another_cure_helps_is_no_window_error(refusal: Refusal) -> None:
    """Rate limits, replies that are too long, keys."""
    with serving(server_of(refusal)) as server, pytest.raises(dspy.LMError) as caught:
        ask(server.lm(num_retries=0), "word " * 2_000)
    assert not is_too_long(caught.value)


def misjudged(engine: str) -> list[str]:
    """Return the servers whose answers are misjudged through one of DSPy's engines."""
    wrong = []
    for refusal, right in [*((each, True) for each in REFUSALS), *((each, False) for each in OTHERS)]:
        with serving(server_of(refusal)) as server:
            try:
                ask(server.lm(engine=engine, num_retries=0), "word " * 2_000)
            except dspy.LMError as error:
                if is_too_long(error) is right:
                    continue
        wrong.append(refusal.server)
    return wrong


@pytest.mark.long
def test_through_litellm_they_are_judged_alike() -> None:
    """In a process of its own: LiteLLM leaves loops and sockets open."""
    code = "from tests.budget.test_window_errors import misjudged; print(misjudged('litellm'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stderr[-2_000:]


class Printing:
    """A model that prints a lot in each of some turns, then submits."""

    def __init__(self, turns: int, chars: int) -> None:
        self.turns, self.chars, self.turn = turns, chars, 0

    def __call__(self, messages: Messages) -> str:
        if not any(map(begins, messages)):
            return fields(summary="Found: 7.", answer="extracted")
        self.turn += 1
        return block(f"print('x' * {self.chars})" if self.turn <= self.turns else "SUBMIT(answer='found')")


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.server)
def test_a_run_goes_on_whatever_the_words(refusal: Refusal) -> None:
    """Four turns print more than the window holds, and the answer is submitted."""
    with serving(server_of(refusal, Printing(4, 4_000))) as server:
        lm = server.lm()
        with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
            prediction = RLM("q -> answer", policy=None)(q="?")
    assert (prediction.answer, prediction.stop) == ("found", "submitted")
    assert any(request.refused for request in server.requests)
