"""Requests of a conversation share a REPL, one at a time, for the clients of one key."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import dspy
import httpx
import openai
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.service import create_app
from rlm_dspy.testing import ScriptedLM
from tests.service.serving import KEY, client_of, code, served, wait_for
from tests.service.test_service import ASKED, CHAT, ITEMS

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OTHER = "another key of the tests, long"


class Repl(LocalPythonInterpreter):
    """Remembers itself, and that it was shut down."""

    opened: list[Repl] = []  # noqa: RUF012 (of the class)
    ended = False

    def __init__(self) -> None:
        super().__init__()
        self.opened.append(self)

    def shutdown(self) -> None:
        """Shut it down."""
        self.ended = True
        super().shutdown()


@pytest.fixture(autouse=True)
def _no_repls() -> None:
    Repl.opened.clear()


def rlm(signature: str = "context, question -> answer", **options: Any) -> RLM:
    """Return a module whose REPLs are counted."""
    return RLM(signature, interpreter_factory=Repl, **options)


def scripted(*codes: str) -> ScriptedLM:
    """Return a model that replies with code."""
    return ScriptedLM([code(each) for each in codes])


COUNT = "n = len(context)\nSUBMIT(answer=str(n))"
AGAIN = "SUBMIT(answer=f'{n}, {question}, {context[:5]}')"


@pytest.mark.parametrize("factory", [PythonInterpreter, LocalPythonInterpreter])
def test_a_conversation_keeps_variables_and_files_in_both_apis(factory: Any) -> None:
    """A file that was sent once is there in the next request, which only asks; a new one takes its place."""
    lm = scripted(COUNT, AGAIN, "SUBMIT(answer=f'{n}, {context}')")
    with (
        served(RLM("context, question -> answer", interpreter_factory=factory), lm) as url,
        client_of(url) as client,
    ):
        name = client.conversations.create(metadata={"of": "tests"}).id
        assert client.conversations.retrieve(name).metadata == {"of": "tests"}
        first = client.responses.create(model="program", input=ITEMS, conversation=name)
        again = client.chat.completions.create(model="program", messages=ASKED, extra_body={"conversation": name})
        file = {"filename": "b.txt", "file_data": "TmV3"}
        parts: list[Any] = [
            {"role": "user", "content": [{"type": "input_file", **file}, {"type": "input_text", "text": "?"}]}
        ]
        new = client.responses.create(model="program", input=parts, conversation={"id": name}, stream=False)
    assert (first.output_text, again.choices[0].message.content) == ("19", "19, Who?, Kadri")
    assert new.output_text == "19, New"


@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_has_read_an_answer_can_ask_again_at_once(stream: bool) -> None:
    """The second request is answered before the server has returned from sending the last bytes of the first."""
    with dspy.context(lm=scripted(COUNT, AGAIN)):
        app = create_app(rlm(), max_runs=1)
    answers: list[httpx.Response] = []

    async def ask(app: ASGIApp, messages: list[Any], name: str) -> None:
        body = {"model": "program", "messages": messages, "conversation": name, "stream": stream}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            answers.append(await client.post("/v1/chat/completions", json=body))

    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client,
    ):
        name = (await client.post("/v1/conversations", json={})).json()["id"]

        async def asked_at_the_end(scope: Scope, receive: Receive, send: Send) -> None:
            async def sending(message: Message) -> None:
                if b"finish_reason" in message.get("body", b""):
                    await ask(app, ASKED, name)
                await send(message)

            await app(scope, receive, sending)

        await ask(asked_at_the_end, CHAT, name)
    second, first = answers
    assert (first.status_code, second.status_code) == (200, 200), second.text
    assert "19, Who?" in second.text


def test_files_of_a_folder_are_there_in_the_next_request() -> None:
    """They are read from a folder that lives as long as the conversation."""
    lm = scripted("SUBMIT(answer=str(list(context)))", "SUBMIT(answer=context['a.txt'])")
    with served(rlm("context: Files, question -> answer"), lm) as url, client_of(url) as client:
        asked = {"model": "program", "extra_body": {"conversation": client.conversations.create().id}}
        create: Callable[..., Any] = client.chat.completions.create
        assert create(messages=CHAT, **asked).choices[0].message.content == "['a.txt']"
        assert create(messages=ASKED, **asked).choices[0].message.content == "Kadri founded Ovid."


def test_a_key_does_not_reach_the_conversations_of_another() -> None:
    """Neither to ask, to look nor to delete: to it there is none."""
    program, lm = rlm(), scripted(COUNT, AGAIN)
    with (
        served(program, lm, keys=[KEY, OTHER]) as url,
        client_of(url) as own,
        client_of(url, api_key=OTHER) as other,
    ):
        name = own.conversations.create().id
        own.responses.create(model="program", input=ITEMS, conversation=name)
        for call in (
            lambda: other.responses.create(model="program", input=ASKED, conversation=name),
            lambda: other.conversations.retrieve(name),
            lambda: other.conversations.delete(name),
        ):
            with pytest.raises(openai.NotFoundError, match="There is no such conversation"):
                call()
        assert httpx.post(f"{url}/v1/conversations", json={}).status_code == 401
        assert own.responses.create(model="program", input="Who?", conversation=name).output_text.startswith("19")


def test_one_request_of_a_conversation_at_a_time() -> None:
    """A second is refused with 409, which the client tries again; other conversations go on."""
    go_on, asked = threading.Event(), threading.Event()

    def reply(_messages: Any) -> str:
        asked.set()
        go_on.wait(60)
        return code("SUBMIT(answer='yes')")

    answers: list[str] = []
    with served(rlm("question -> answer"), ScriptedLM(reply)) as url, client_of(url) as client:
        name = client.conversations.create().id

        def ask(conversation: str = name) -> None:
            found = client.responses.create(model="program", input="Who?", conversation=conversation)
            answers.append(found.output_text)

        threads = [
            threading.Thread(target=ask),
            threading.Thread(target=ask, args=[client.conversations.create().id]),
        ]
        threads[0].start()
        assert asked.wait(60)
        with pytest.raises(openai.ConflictError, match="Ask again when it has ended"):
            ask()
        with pytest.raises(openai.ConflictError):
            client.conversations.delete(name)
        threads[1].start()
        go_on.set()
        for thread in threads:
            thread.join(60)
        ask()
        assert answers == ["yes"] * 3


def test_conversations_are_bounded_and_closed_when_idle_deleted_or_at_the_end() -> None:
    """Nothing of them is left."""
    lm = ScriptedLM(lambda _: code("SUBMIT(answer='yes')"))
    with served(rlm("question -> answer"), lm, max_conversations=2) as url, client_of(url) as client:
        names = [client.conversations.create().id for _ in range(2)]
        for name in names:
            client.responses.create(model="program", input="Who?", conversation=name)
        client.conversations.create()
        wait_for(lambda: [each.ended for each in Repl.opened] == [True, False])
        with pytest.raises(openai.NotFoundError, match="Begin another"):
            client.responses.create(model="program", input="Who?", conversation=names[0])
        third = client.conversations.create().id  # closes the second
        client.responses.create(model="program", input="Who?", conversation=third)
        assert client.conversations.delete(third).deleted
        last = client.conversations.create().id
        client.responses.create(model="program", input="Who?", conversation=last)
        assert not Repl.opened[-1].ended
    assert [each.ended for each in Repl.opened] == [True] * 4
    with served(rlm("question -> answer"), lm, idle_seconds=0.2) as url, client_of(url) as client:
        name = client.conversations.create().id
        client.responses.create(model="program", input="Who?", conversation=name)
        wait_for(lambda: Repl.opened[-1].ended)


def test_a_request_that_fails_or_is_cut_leaves_the_conversation_usable() -> None:
    """Its limits were its own."""
    lm = ScriptedLM(act=[code("n = 7\nprint(n)"), code("SUBMIT(answer=str(n))")], extract=lambda _: "")
    with served(rlm("question -> answer: int", limits=Limits(max_iters=5)), lm) as url, client_of(url) as client:
        asked = {"model": "program", "messages": ASKED}
        name = client.conversations.create().id
        create: Callable[..., Any] = client.chat.completions.create
        cut = create(**asked, extra_body={"conversation": name, "limits": {"max_iters": 1}})
        assert cut.choices[0].finish_reason == "length"
        with pytest.raises(openai.BadRequestError, match="send the last message alone"):
            create(
                model="program",
                messages=[*ASKED, {"role": "assistant", "content": "I"}, *ASKED],
                extra_body={"conversation": name},
            )
        assert create(**asked, extra_body={"conversation": name}).choices[0].message.content == "7"


def test_the_history_of_a_program_is_that_of_the_conversation() -> None:
    """An input of type `dspy.History` need not be sent."""
    lm = scripted("SUBMIT(answer='Ann')", "SUBMIT(answer=str(history.messages))")
    with served(rlm("history: dspy.History, question -> answer"), lm) as url, client_of(url) as client:
        name = client.conversations.create().id
        client.responses.create(model="program", input="Who?", conversation=name)
        found = client.responses.create(model="program", input="And?", conversation=name).output_text
    assert found == "[{'question': 'Who?', 'answer': 'Ann'}]"


@pytest.mark.parametrize("path", ["responses", "chat/completions"])
@pytest.mark.parametrize("name", [{}, "", {"id": ""}, []], ids=str)
def test_a_conversation_without_its_id_is_refused(path: str, name: object) -> None:
    """It would be answered outside of any, in silence; null is none."""
    asked = {"model": "program", "input" if path == "responses" else "messages": ASKED}
    with served(rlm("question -> answer"), scripted("SUBMIT(answer='a')")) as url:
        headers = {"Authorization": f"Bearer {KEY}"}
        for conversation, status in ((name, 400), (None, 200)):
            body = {**asked, "conversation": conversation}
            sent = httpx.post(f"{url}/v1/{path}", json=body, headers=headers, timeout=60)
            assert sent.status_code == status, sent.text


def test_a_program_that_is_no_rlm_keeps_none() -> None:
    """It is told when one is begun; items and unknown names are refused."""

    class Plain(dspy.Module):
        signature = dspy.Signature("question -> answer")

        async def aforward(self, question: str) -> Any:
            return dspy.Prediction(answer=question)

    refused = pytest.raises(openai.BadRequestError, match="it must be an RLM")
    with served(Plain()) as url, client_of(url) as client, refused:
        client.conversations.create()
    with served(rlm()) as url, client_of(url) as client:
        with pytest.raises(openai.BadRequestError, match="items"):
            client.conversations.create(items=ASKED)
        for name in ("conv_1", "../x", "x" * 10_000):
            with pytest.raises(openai.NotFoundError, match="There is no such conversation"):
                client.responses.create(model="program", input="Who?", conversation=name)
