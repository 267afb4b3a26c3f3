"""A served program answers the official client of OpenAI, and ends a run when its client has gone."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from typing import TYPE_CHECKING, Any

import dspy
import httpx
import openai
import pytest
from pydantic import BaseModel

from rlm_dspy import RLM, Limits
from rlm_dspy.errors import UsageError
from rlm_dspy.interpreters import LocalPythonInterpreter
from rlm_dspy.service import create_app
from rlm_dspy.testing import ScriptedLM
from tests.service.serving import KEY, client_of, code, served, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA = "data:text/plain;base64," + base64.b64encode(b"Kadri founded Ovid.").decode()
CHAT: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "file", "file": {"filename": "a.txt", "file_data": DATA}},
            {"type": "text", "text": "Who?"},
        ],
    }
]
ITEMS: list[Any] = [
    {
        "role": "user",
        "content": [
            {"type": "input_file", "filename": "a.txt", "file_data": DATA},
            {"type": "input_text", "text": "Who?"},
        ],
    }
]
ASKED: list[Any] = [{"role": "user", "content": "Who?"}]
FIRST = "print(context, question)"
LAST = "print('Found.')\nSUBMIT(answer=context.split()[0])"
TRAJECTORY = f"""I look.

```python
{FIRST}
```

```text
Kadri founded Ovid. Who?
```
"""


class Person(BaseModel):
    """A typed output."""

    name: str
    year: int


def rlm(signature: str = "context, question -> answer", **options: Any) -> RLM:
    """Return a module whose code runs in this process."""
    return RLM(signature, interpreter_factory=LocalPythonInterpreter, **options)


def two_turns(messages: list[dict[str, str]]) -> str:
    """Reply as a model that looks and then answers; any number of runs at once."""
    return code(LAST if messages[-1]["content"].startswith("Kadri founded Ovid. Who?") else FIRST)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve one program for the tests that need nothing else."""
    with served(rlm(), ScriptedLM(two_turns)) as url:
        yield url


def metric(url: str, line: str) -> bool:
    """Return whether the metrics have a line."""
    return line in httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text.splitlines()


def test_a_chat_completion_has_the_answer_the_trajectory_and_the_usage(url: str) -> None:
    """What the run says of itself is in `rlm`."""
    found = client_of(url).chat.completions.create(model="program", messages=CHAT)
    (choice,) = found.choices
    assert (choice.message.content, choice.finish_reason) == ("Kadri", "stop")
    assert TRAJECTORY.strip() in choice.message.reasoning_content  # type: ignore[attr-defined]
    assert found.usage
    assert found.usage.total_tokens > found.usage.completion_tokens > 0
    facts = found.rlm  # type: ignore[attr-defined]
    assert (facts["stop"], facts["outputs"], facts["calls"]) == ("submitted", {"answer": "Kadri"}, 2)


def test_a_streamed_completion_tells_the_trajectory_as_reasoning_and_then_the_answer(url: str) -> None:
    """Joined, the pieces are what an answer that is not streamed has."""
    stream = client_of(url).chat.completions.create(
        model="program", messages=CHAT, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last, usage = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    reasoning = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert TRAJECTORY.strip() in reasoning
    assert [delta.content for delta in deltas if delta.content] == ["Kadri"]
    assert not [delta for delta in deltas[:-1] if delta.content]
    assert last.choices[0].finish_reason == "stop"
    assert usage.usage
    assert usage.usage.completion_tokens > 0


def test_a_response_has_reasoning_and_message(url: str) -> None:
    """Streamed or not; the client puts the events together."""
    client = client_of(url)
    found = client.responses.create(model="program", input=ITEMS)
    assert (found.output_text, found.status) == ("Kadri", "completed")
    assert TRAJECTORY.strip() in found.output[0].content[0].text  # type: ignore[union-attr,index]
    with client.responses.stream(model="program", input=ITEMS) as stream:
        told = [event.delta for event in stream if event.type == "response.reasoning_text.delta"]
        streamed = stream.get_final_response()
    assert streamed.output_text == "Kadri"
    assert TRAJECTORY.strip() in "".join(told)
    assert streamed.usage == found.usage


def test_typed_answers_are_json() -> None:
    """One output alone, several or `json_object` as an object."""
    reply = code("SUBMIT(answer={'name': 'Ann', 'year': 2019})")
    signature = dspy.Signature("question -> answer: Person", custom_types={"Person": Person})
    with served(rlm(signature), ScriptedLM([reply, reply])) as url:
        create = client_of(url).chat.completions.create
        person = {"name": "Ann", "year": 2019}
        assert json.loads(create(model="program", messages=ASKED).choices[0].message.content or "") == person
        found = create(model="program", messages=ASKED, response_format={"type": "json_object"})
        assert json.loads(found.choices[0].message.content or "") == {"answer": person}
    with served(rlm("question -> who, year: int"), ScriptedLM([code("SUBMIT(who='Ann', year=2019)")])) as url:
        found = client_of(url).chat.completions.create(model="program", messages=ASKED)
        assert json.loads(found.choices[0].message.content or "") == {"who": "Ann", "year": 2019}


def test_a_run_without_an_answer_is_told_as_cut() -> None:
    """`length`, as of a reply that reached its limit; what was found stays in the reasoning."""
    lm = ScriptedLM(act=[code("print(1)")], extract=lambda _: "")
    with served(rlm("question -> answer: int", max_iters=1), lm) as url:
        found = client_of(url).chat.completions.create(model="program", messages=ASKED)
    assert (found.choices[0].finish_reason, found.choices[0].message.content) == ("length", "")
    assert found.rlm["stop"] == "unanswered"  # type: ignore[attr-defined]


def test_files_that_code_wrote_come_with_the_answer() -> None:
    """In base64."""
    write = "import os\nos.makedirs('output', exist_ok=True)\nopen('output/a.csv', 'w').write('a,b')"
    reply = code(f"{write}\nSUBMIT(answer='See a.csv')")
    with served(RLM("question -> answer"), ScriptedLM([reply])) as url:
        found = client_of(url).chat.completions.create(model="program", messages=ASKED)
    (file,) = found.rlm["files"]  # type: ignore[attr-defined]
    assert (file["name"], base64.b64decode(file["data"])) == ("a.csv", b"a,b")


def test_a_module_with_a_signature_is_served() -> None:
    """The turns of all of its RLMs are told, and their usage is counted."""

    class Twice(dspy.Module):
        signature = dspy.Signature("question -> answer: str")

        def __init__(self) -> None:
            super().__init__()
            self.rlm = rlm("question -> answer: str")

        async def aforward(self, question: str) -> Any:
            first = await self.rlm.acall(question=question)
            return await self.rlm.acall(question=first.answer)

    replies = [code("SUBMIT(answer=question + '?')"), code("SUBMIT(answer=question + '!')")]
    with served(Twice(), ScriptedLM(replies)) as url:
        found = client_of(url).chat.completions.create(model="program", messages=ASKED)
    assert found.choices[0].message.content == "Who??!"
    assert found.rlm["calls"] == 2  # type: ignore[attr-defined]


def test_what_cannot_be_served_is_refused_when_the_server_starts() -> None:
    """Not at the first request."""

    class Plain(dspy.Module):
        def forward(self) -> None: ...

    with pytest.raises(UsageError, match="attribute `signature"):
        create_app(Plain())
    plain = Plain()
    plain.signature = dspy.Signature("question -> answer")
    with pytest.raises(UsageError, match="write `async def aforward"):
        create_app(plain)


def test_limits_of_a_request_hold_for_its_run_alone() -> None:
    """By field, by header, and by the client's own bound; never above those of the program."""
    extracted = "[[ ## answer ## ]]\nread\n[[ ## completed ## ]]"
    lm = ScriptedLM(act=lambda _: code("print(1)"), extract=lambda _: extracted)
    program = rlm("question -> answer", limits=Limits(max_iters=3, max_repetitions=None))
    with served(program, lm) as url:
        create = client_of(url).chat.completions.create

        def turns(**fields: Any) -> int:
            before = len(lm.script.calls)
            create(model="program", messages=ASKED, **fields)
            return len(lm.script.calls) - before - 1

        assert turns() == 3
        assert turns(extra_body={"limits": {"max_iters": 2}}) == 2
        assert turns(extra_headers={"X-RLM-Max-Iters": "1"}, extra_body={"limits": {"max_iters": 2}}) == 1
        assert turns(extra_body={"limits": {"max_iters": 100}}) == 3
        assert turns() == 3
        assert turns(max_completion_tokens=1) < 3
        with pytest.raises(openai.BadRequestError, match="must be a number"):
            turns(extra_headers={"X-RLM-Max-Iters": "many"})
        with pytest.raises(openai.BadRequestError, match="max_itres"):
            turns(extra_body={"limits": {"max_itres": 1}})


def test_errors_are_those_of_the_client_and_hold_no_key() -> None:
    """Of the request, of the model, of the program."""
    secret = "sk-" + "abcdefgh" * 4
    lm = ScriptedLM([dspy.LMError(f"401: the key {secret} is wrong"), RuntimeError(f"broken near {secret}")])
    with served(rlm("question -> answer"), lm) as url:
        create = client_of(url).chat.completions.create
        with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-9'; this server has 'program'"):
            create(model="gpt-9", messages=ASKED)
        with pytest.raises(openai.BadRequestError, match="Extra inputs"):
            create(model="program", messages=ASKED, extra_body={"unheard_of": 1})
        for kind in (openai.InternalServerError, openai.InternalServerError):
            with pytest.raises(kind) as failed:
                create(model="program", messages=ASKED)
            assert secret not in str(failed.value)


@pytest.mark.parametrize("error", [dspy.LMServerError("gone", model="m", status=500), RuntimeError("gone")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_run_that_failed_is_not_made_and_paid_again_by_its_client(stream: bool, error: Exception) -> None:
    """OpenAI's client repeats other requests that are answered with 500 and above."""
    asked = list[str]()

    def fail(messages: Any) -> str:
        asked.append(str(messages))
        raise error

    with served(rlm("question -> answer"), ScriptedLM(fail)) as url:
        create = client_of(url, max_retries=2).chat.completions.create
        with pytest.raises(openai.InternalServerError, match="failed"):
            create(model="program", messages=ASKED, stream=stream)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content: Input should be a valid string"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text.text: Field"),
        ({"limits": {"max_iters": "a"}}, "limits.max_iters: Input should be a valid integer"),
    ],
)
def test_a_wrong_request_is_told_by_its_own_names(wrong: dict[str, Any], told: str) -> None:
    """Without the classes that read it."""
    with served(rlm("question -> answer")) as url:
        body = {"model": "program", "messages": ASKED, **wrong}
        said = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()["error"]["message"]
    assert told in said
    assert "Part" not in said


def test_an_error_in_a_stream_reaches_the_client() -> None:
    """After its first turn; in a response as `response.failed`."""
    lm = ScriptedLM([code("print(1)"), dspy.LMError("gone"), code("print(1)"), dspy.LMError("gone")])
    with served(rlm("question -> answer"), lm) as url:
        client = client_of(url)
        stream = client.chat.completions.create(model="program", messages=ASKED, stream=True)
        with pytest.raises(openai.APIError, match="The model of the program failed: LMError: gone"):
            list(stream)
        events = list(client.responses.create(model="program", input="Who?", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error
    assert "gone" in events[-1].response.error.message


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("waits_for", ["the model", "code"])
def test_a_run_ends_when_its_client_hangs_up(stream: bool, waits_for: str) -> None:
    """Whether the model or code is at work, and whether the answer is streamed."""
    lm = ScriptedLM(seconds=60) if waits_for == "the model" else ScriptedLM([code("while True: pass")])
    with served(RLM("question -> answer"), lm) as url:

        async def hang_up() -> None:
            client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
            create: Callable[..., Any] = client.chat.completions.create
            task = asyncio.ensure_future(create(model="program", messages=ASKED, stream=stream))
            await asyncio.to_thread(wait_for, lambda: lm.script.calls)
            assert metric(url, "rlm_runs_in_progress 1.0")
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():  # the stream had begun
                await task.result().close()
            await client.close()

        asyncio.run(hang_up())
        wait_for(lambda: metric(url, "rlm_runs_in_progress 0.0"))
        assert metric(url, 'rlm_runs_total{stop="cancelled"} 1.0')
        assert len(lm.script.calls) == 1


@pytest.mark.parametrize("waits_for", ["the model", "code"])
def test_a_run_ends_when_its_client_hangs_up_in_the_middle_of_the_stream(waits_for: str) -> None:
    """After events of the first turn."""

    over = threading.Event()

    def reply(_messages: Any) -> str:
        if len(lm.script.calls) == 1:
            return code("print(1)")
        if waits_for == "the model":
            over.wait(60)
        return code("while True: pass")

    lm = ScriptedLM(reply)
    with served(RLM("question -> answer"), lm) as url:
        with client_of(url).chat.completions.create(model="program", messages=ASKED, stream=True) as stream:
            next(event for event in stream if "print(1)" in str(event))
            wait_for(lambda: len(lm.script.calls) == 2)
        wait_for(lambda: metric(url, "rlm_runs_in_progress 0.0"))
        over.set()
        assert metric(url, 'rlm_runs_total{stop="cancelled"} 1.0')


def test_more_runs_than_allowed_are_refused_until_one_ends() -> None:
    """With status 429, which the client retries."""
    go_on = threading.Event()

    def reply(_messages: Any) -> str:
        go_on.wait(60)
        return code("SUBMIT(answer='yes')")

    with served(rlm("question -> answer"), ScriptedLM(reply), max_runs=1) as url:
        answers: list[Any] = []
        create: Callable[..., Any] = client_of(url).chat.completions.create
        first = threading.Thread(target=lambda: answers.append(create(model="program", messages=ASKED)))
        first.start()
        wait_for(lambda: metric(url, "rlm_runs_in_progress 1.0"))
        with pytest.raises(openai.RateLimitError, match="runs 1 requests at once") as refused:
            create(model="program", messages=ASKED)
        assert refused.value.response.headers["retry-after"] == "1"
        go_on.set()
        first.join()
        wait_for(lambda: metric(url, "rlm_runs_in_progress 0.0"))
        assert create(model="program", messages=ASKED).choices[0].message.content == "yes"
        assert answers[0].choices[0].message.content == "yes"


def test_a_run_leaves_nothing_in_the_trace_of_the_server() -> None:
    """DSPy's own would hold the inputs and messages of ten thousand predictions."""
    trace: list[Any] = []
    with dspy.context(trace=trace), served(rlm(), ScriptedLM(two_turns)) as url:
        client_of(url).chat.completions.create(model="program", messages=CHAT)
    assert trace == []


def test_a_key_is_needed_but_for_the_health_check() -> None:
    """Any of the keys; the metrics need one too."""
    with served(rlm(), ScriptedLM(two_turns), keys=["another key of the tests", KEY]) as url:
        assert client_of(url).models.list().data[0].id == "program"
        for wrong in ("x", KEY[:-1], KEY.upper()):
            with pytest.raises(openai.AuthenticationError, match="Send a key of this server"):
                client_of(url, api_key=wrong).chat.completions.create(model="program", messages=CHAT)
        for wrong in (f"Basic {KEY}", KEY, "Bearer", "Bearer \xff"):
            headers = {"Authorization": wrong.encode("latin-1")}
            assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401  # type: ignore[arg-type]
        assert httpx.get(f"{url}/metrics").status_code == 401
        assert httpx.get(f"{url}/v1/nowhere").status_code == 401
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}


def test_the_metrics_count_requests_runs_and_tokens(url: str) -> None:
    """In Prometheus's format; unknown paths are one."""
    client_of(url).chat.completions.create(model="program", messages=CHAT)
    httpx.get(f"{url}/nowhere/1")
    httpx.get(f"{url}/nowhere/2")
    text = httpx.get(f"{url}/metrics").text
    assert 'rlm_requests_total{path="/v1/chat/completions",status="200"}' in text
    assert 'rlm_requests_total{path="other",status="404"}' in text
    assert "nowhere" not in text
    assert 'rlm_runs_total{stop="submitted"}' in text
    assert 'rlm_tokens_total{kind="output"}' in text
