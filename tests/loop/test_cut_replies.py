"""Replies that end before the model had ended them: half a statement is not run, half an answer is no answer."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.budget.ledger import Ledger
from rlm_dspy.budget.metered_lm import metered
from rlm_dspy.errors import ReplyCut
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.testing import CutReply, ScriptedLM
from tests.playing import block, fields

if TYPE_CHECKING:
    from tests.playing import Play

DONE = block("SUBMIT(answer='done')")
ASK = "question -> answer"

HALF = {
    "a block of one statement": "Look.\n```python\nSUBMIT(answer='half",
    "a statement that would run": "Look.\n```python\nSUBMIT(answer='half')",
    "a block of another language": "Look.\n```json\n{}\n{",
    "code without a fence": "Look.\nSUBMIT(answer='half')",
    "words": "I will now count all of the",
    "a field": "[[ ## reasoning ## ]]\nLook.\n\n[[ ## code ## ]]\nSUBMIT(answer='half')",
}


@pytest.mark.parametrize("case", HALF)
def test_half_a_reply_is_not_run_and_the_model_is_told_why(play: Play, case: str) -> None:
    """Not as an error in its code: it learns how long its reply was, and what to do."""
    text = HALF[case]
    played = play(RLM(ASK), [CutReply(text), DONE], question="?")
    assert (played.kinds, played.prediction.answer) == (["no_code", "submitted"], "done")
    assert f"Your reply was cut off after {len(text.split())} tokens" in played.outputs[0]
    assert "nothing was run" in played.outputs[0]
    assert "SyntaxError" not in played.outputs[0]
    assert played.outputs[0] in played.calls[1][-1]["content"]
    assert text.split()[-1].strip("`") in played.calls[1][-2]["content"], "the model must see what it wrote"


def test_whole_blocks_before_the_cut_are_run(play: Play) -> None:
    first = "```python\nx = 20\nprint('ran')\n```\nThen\n```python\nSUBMIT(answer=str(x"
    played = play(RLM(ASK), [CutReply(first), block("SUBMIT(answer=str(x + 1))")], question="?")
    assert (played.kinds, played.prediction.answer) == (["output", "submitted"], "21")
    assert played.outputs[0].startswith("ran\n")
    assert "Only its complete statements were run" in played.outputs[0]
    assert played.prediction.trajectory[0]["code"] == "x = 20\nprint('ran')"


CUT = {
    "x = 20\nprint(x)\nSUBMIT(answer=str(x": "20",
    "x = 20\nprint(x)\nSUBMIT(answer=str(x))": "20",
    "x = 20\nprint(x)\nfor i in range(9):\n    print(i)\n    x += 1": "20",
    "x = 20\nprint(x)\nif x > 3:\n    print('more')\nelse:\n    print('le": "20",
    "x = 20\nprint(x)\nif x < 3:\n    x = 1\nel": "20",
    "x = 20\nprint(x)\ntry:\n    x += 1\nexcept KeyError:\n    x = 0\nfinal": "20",
    "x = 20\nprint(x)\nfor i in range(9):\n    x += 1\n\\\nelse:\n    x": "20",
    "x = 20\nprint(x)\ny = [\n    1,\n    2": "20",
    "x = 20\nprint(x)\ntext = '''one\nx = 1\nthr": "20",
    "x = 20\nprint(x)  # a note\n# and mo": "(no output",
    "x = 20\nprint(x)\n``": "20",
}


@pytest.mark.parametrize("code", CUT)
def test_complete_statements_of_a_block_that_was_cut_are_run(play: Play, code: str) -> None:
    """Models repeat a cut reply if nothing came of it. The last statement may go on, so it is not run."""
    done = block("SUBMIT(answer=str(x + 1))")
    played = play(RLM(ASK), [CutReply(f"Look.\n```python\n{code}"), done], question="?")
    assert (played.kinds, played.prediction.answer) == (["output", "submitted"], "21")
    assert played.outputs[0].startswith(f"{CUT[code]}\n") or CUT[code] in played.outputs[0]
    assert "Only its complete statements were run" in played.outputs[0]
    assert "was cut off after" in played.calls[1][-1]["content"]


def test_thinking_that_was_cut_is_told_as_cut(play: Play) -> None:
    draft = "<think>\nMaybe\n```python\nSUBMIT(answer='draft')\n```\nor"
    played = play(RLM(ASK), [CutReply(draft), CutReply(""), DONE], question="?")
    assert (played.kinds, played.prediction.answer) == (["no_code", "no_code", "submitted"], "done")
    assert all("Your reply was cut off" in output for output in played.outputs[:2])
    assert "draft" in played.prediction.trajectory[0]["thinking"]


SUBS = """
from contextlib import suppress
shown = []
try:
    llm_query('one')
except SubCallError as error:
    shown.append((str(error), error.partial))
failed, whole = llm_query_batched(['two', 'whole'])
shown.append((failed.error, failed.partial, bool(failed), whole))
try:
    gist(text='three')
except SubCallError as error:
    shown.append((str(error), error.partial))
try:
    dspy.Predict('text -> gists: list[str]')(text='four')
except SubCallError as error:
    shown.append((str(error), error.partial))
SUBMIT(answer=shown)
"""


def test_a_cut_answer_of_a_sub_call_is_a_failure_that_keeps_the_text(play: Play) -> None:
    """Of `llm_query`, of one item of a batch, of a sub with types, and of a module written in the REPL."""
    small = fields(gist="small an").removesuffix("\n\n[[ ## completed ## ]]")
    lm = ScriptedLM(
        act=[block(SUBS)],
        query=lambda said: "whole" if said[-1]["content"] == "whole" else CutReply("the answer be"),
        subs={"gist": [CutReply(small)], "ad_hoc": [CutReply('[[ ## gists ## ]]\n["a", "b')]},
    )
    played = play(RLM("question -> answer: list", subs={"gist": "text -> gist"}), lm, question="?")
    one, batch, three, four = played.prediction.answer
    assert "ReplyCut: The reply was cut off after 3 tokens." in one[0]
    assert one[1] == "the answer be"
    assert (batch[1], batch[2], batch[3]) == ("the answer be", False, "whole")
    assert three[1].endswith("small an")
    assert four[1].endswith('["a", "b')
    assert all("was cut off after" in told[0] for told in (one, batch, three, four))
    calls = played.prediction.trajectory[0]["calls"]
    assert [bool(call["error"]) for call in calls] == [True, True, False, True, True]
    assert calls[0]["output"] == "the answer be"
    assert all(call["attempts"] == 1 for call in calls), "asking again would be cut again"


def test_a_cut_answer_is_not_kept_for_the_next_who_asks(play: Play) -> None:
    code = "for _ in range(2):\n    try: print(llm_query('same'))\n    except SubCallError: print('cut')"
    played = play(RLM(ASK), [block(code), CutReply("half"), "whole", DONE], question="?")
    assert played.outputs[0].split() == ["cut", "whole"]


def test_a_summary_of_turns_that_was_cut_is_not_used(play: Play) -> None:
    lm = ScriptedLM(
        act=[*(block(f"print('line {number} ' * 200)") for number in range(12)), DONE],
        fold=lambda _: CutReply("[[ ## summary ## ]]\nIt is seven, unl"),
    )
    played = play(RLM(ASK, limits=Limits(max_context_tokens=3_000)), lm, question="?")
    assert "folded" in played.kinds
    assert "It is seven, unl" not in str(played.calls)


@pytest.mark.parametrize("history", [True, False])
def test_a_cut_is_seen_whether_or_not_dspy_keeps_a_history(play: Play, history: bool) -> None:
    with dspy.context(disable_history=not history):
        played = play(RLM(ASK), [CutReply("Look.\n```python\nSUBMIT(answer='half')"), DONE], question="?")
    assert played.prediction.answer == "done"
    assert len(played.lm.history) == (2 if history else 0)


class Server:
    """An OpenAI-compatible server that answers with one body."""

    def __init__(self, body: dict[str, Any]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def lm(self, **options: Any) -> dspy.LM:
        """Return an LM of this server."""
        base = f"http://127.0.0.1:{self._server.server_port}/v1"
        return dspy.LM("openai/m", api_base=base, api_key="none", cache=False, max_tokens=7, **options)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def completion(reason: str) -> dict[str, Any]:
    """Return a body of the chat completions API."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "half"}, "finish_reason": reason}
    usage = {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8}
    return {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}


def asked(lm: Any) -> str:
    """Return the answer to a prompt as sub-calls ask it."""
    with dspy.context(lm=lm), metered(Ledger(Limits()), "query"):
        return str(dspy.settings.lm("one")[0])


@pytest.mark.parametrize("engine", ["lm15", "litellm"])
@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "model_length", "content_filter"])
def test_providers_name_a_cut_in_different_words(engine: str, reason: str) -> None:
    with Server(completion(reason)) as server, pytest.raises(ReplyCut) as caught:
        asked(server.lm(engine=engine))
    assert caught.value.partial == "half"
    told = "by the provider's content filter" if reason == "content_filter" else "after 7 tokens"
    assert caught.value.why == f"was cut off {told}"


@pytest.mark.parametrize("engine", ["lm15", "litellm"])
@pytest.mark.parametrize("reason", ["stop", "eos", "end_turn", "STOP", None])
def test_a_whole_reply_is_no_cut_one(engine: str, reason: Any) -> None:
    with Server(completion(reason)) as server:
        assert asked(server.lm(engine=engine)) == "half"


def test_an_incomplete_response_of_the_responses_api_is_cut() -> None:
    part = {"type": "output_text", "text": "half", "annotations": []}
    message = {"type": "message", "id": "m", "role": "assistant", "status": "incomplete", "content": [part]}
    body = {
        "id": "r",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "output": [message],
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "usage": {"input_tokens": 1, "output_tokens": 7, "total_tokens": 8},
    }
    with Server(body) as server, pytest.raises(ReplyCut, match="after 7 tokens") as caught:
        asked(server.lm(model_type="responses"))
    assert caught.value.partial == "half"


class Custom(dspy.BaseLM):
    """An LM that is not `dspy.LM`."""

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        """Return a reply as OpenAI's client does."""
        choice = SimpleNamespace(message=SimpleNamespace(content="half"), finish_reason="length")
        return SimpleNamespace(choices=[choice], usage={}, model="custom")


@pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning")
def test_the_cut_reply_of_an_lm_of_ones_own_is_seen() -> None:
    """Without a count of tokens its limit is named."""
    with pytest.raises(ReplyCut, match="The reply was cut off after 9 tokens"):
        asked(Custom(model="custom", max_tokens=9))


def test_a_cut_reply_that_dspy_has_in_its_cache_is_cut_still() -> None:
    with Server(completion("length")) as server:
        lm = server.lm(engine="lm15", temperature=0.25)
        lm.cache = True
        for _ in range(2):
            with pytest.raises(ReplyCut):
                asked(lm)


def test_a_scripted_lm_can_play_a_cut_reply() -> None:
    with dspy.context(
        lm=ScriptedLM([CutReply("Look.\n```python\n1"), DONE]), interpreter_factory=LocalPythonInterpreter
    ):
        assert RLM(ASK)(question="?").answer == "done"


def test_a_reply_that_says_the_same_until_it_is_cut_is_told_so(play: Play) -> None:
    going_round = "SUBMIT(answer='" + "Ulm, Bern, " * 60
    played = play(RLM(ASK), [CutReply(f"```python\n{going_round}"), DONE], question="?")
    assert (
        "It said the same again and again. Print or compute a long value with code instead." in played.outputs[0]
    )


def test_a_reply_that_says_the_same_until_it_is_cut_is_not_shown_again(play: Play) -> None:
    """The model would go on with it."""
    going_round = "SUBMIT(answer='" + "Ulm, Bern, " * 60
    played = play(RLM(ASK), [block("print(1)"), CutReply(f"```python\n{going_round}"), DONE], question="?")
    assert [step["kind"] for step in played.prediction.trajectory] == ["output", "no_code", "submitted"]
    assert going_round.strip() in played.prediction.trajectory[1]["reasoning"]
    last = played.calls[-1]
    assert [message["role"] for message in last] == ["system", "user", "assistant", "user"]
    assert "It said the same again and again." in last[-1]["content"]
    assert "Ulm" not in str(last)
