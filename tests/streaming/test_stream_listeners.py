"""What `StreamListener`s on an RLM hear under `dspy.streamify`."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, cast

import dspy
import pytest

from rlm_dspy import Limits
from rlm_dspy.streaming.run_stream import RunStream
from rlm_dspy.testing import CutReply, ScriptedLM
from tests.budget.test_malformed_bodies import serving as always_answering
from tests.playing import block, fields
from tests.provider_quirks import SERVER_ERROR
from tests.provider_server import PROVIDERS, ProviderServer, Said, serving
from tests.streaming.speaking import (
    LOOK,
    LOOK_CODE,
    SUBMIT,
    SUBMIT_CODE,
    Program,
    Response,
    Speaks,
    listen,
    replies,
    rlm,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.provider_streams import Events


def written(said: Said, body: dict[str, Any]) -> tuple[int, Any]:
    return 200, PROVIDERS["llama.cpp"].write(said, body)


@pytest.fixture
def lm() -> Iterator[dspy.LM]:
    """An LM over HTTP whose server streams."""
    said = {False: Said(LOOK, "Let me think."), True: Said(SUBMIT)}

    def say(texts: list[str]) -> Said:
        return said[any("print(len(context))" in text for text in texts)]

    with serving(ProviderServer(say, written)) as server:
        yield PROVIDERS["llama.cpp"].lm(server.base)
        assert all(body["stream"] for _, body in server.requests)


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "inside a module"])
async def test_code_reasoning_and_answer_come_as_chunks_over_http(
    speak: Speaks, lm: dspy.LM, inside: bool
) -> None:
    program = Program() if inside else rlm()
    items = await speak(program, [listen("code"), listen("reasoning"), listen("answer")], lm)
    assert replies(items, "code") == [LOOK_CODE, SUBMIT_CODE]
    assert replies(items, "reasoning") == ["Let me think.I look at it.\nThen I count.", "That is it."]
    assert replies(items, "answer") == ["3"]
    assert items[-1].answer == "3"
    assert sum(isinstance(item, Response) for item in items) > 20
    names = {item.predict_name for item in items if isinstance(item, Response)}
    assert names == ({"rlm.act", "rlm"} if inside else {"act", "self"})
    assert (items[-1].usage["input_tokens"], items[-1].usage["output_tokens"]) == (200, 40)


@pytest.mark.long
async def test_litellm_streams_too(lm: dspy.LM) -> None:
    old = dspy.LM(lm.model, **lm.kwargs, engine="litellm", cache=False)
    items = await Speaks(awaited=True, sync=False)(rlm(), [listen("code"), listen("answer")], old)
    assert replies(items, "code") == [LOOK_CODE, SUBMIT_CODE]
    assert replies(items, "answer") == ["3"]
    assert (items[-1].usage["input_tokens"], items[-1].usage["output_tokens"]) == (200, 40)


async def test_code_arrives_while_the_model_still_writes() -> None:
    """The server waits in the middle of its reply until the client has read the beginning."""
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait() -> None:
        asyncio.run_coroutine_threadsafe(heard.wait(), loop).result(30)

    def slowly(events: Events, _number: int) -> Iterator[bytes]:
        for event in events:
            if b"answer" in event:
                wait()
            yield event

    text = "```python\nanimal = 'fox'\nSUBMIT(answer=str(1))\n```"
    with serving(ProviderServer(lambda _: Said(text), written, cast("Any", slowly))) as server:
        streamed = dspy.streamify(rlm(), stream_listeners=[listen("code")], is_async_program=True)
        code = ""
        with dspy.context(lm=PROVIDERS["llama.cpp"].lm(server.base)):
            async for item in streamed(context="x"):
                if isinstance(item, Response):
                    code += item.chunk
                    heard.set()
    assert code == "animal = 'fox'\nSUBMIT(answer=str(1))"


async def test_only_the_answer_may_be_listened_to(speak: Speaks) -> None:
    """The turns are not streamed then; a typed value is JSON."""
    lm = ScriptedLM([block("SUBMIT(names=['a', 'é'])")])
    items = await speak(rlm("context -> names: list[str]"), [listen("names")], lm)
    assert [item for item in items if isinstance(item, Response)] == [Response("self", "names", '["a","é"]', True)]


async def test_an_answer_read_from_the_trajectory_is_heard_as_it_is_written(speak: Speaks) -> None:
    lm = ScriptedLM([block("print(1)")], extract=[fields(answer="three or four words")])
    items = await speak(rlm(max_iters=1), [listen("answer")], lm)
    assert items[-1].stop == "extracted"
    assert replies(items, "answer") == ["three or four words"]
    assert sum(isinstance(item, Response) for item in items) > 2


async def test_each_of_several_outputs_read_from_the_trajectory_is_heard_once(speak: Speaks) -> None:
    lm = ScriptedLM([block("print(1)")], extract=[fields(answer="three or four words", why="five or six")])
    program = rlm("context -> answer, why", max_iters=1)
    items = await speak(program, [listen("answer"), listen("why")], lm)
    assert items[-1].stop == "extracted"
    assert (replies(items, "answer"), replies(items, "why")) == (["three or four words"], ["five or six"])


async def test_an_output_is_asked_for_as_json_again_whether_or_not_it_is_heard(speak: Speaks) -> None:
    """DSPy asks again only if nobody heard the first reply."""
    replied = [block("print(1)"), block("print(context)"), '{"answer": "Rome"}']
    for name in ("code", "answer"):
        lm = ScriptedLM(replied)
        items = await speak(rlm("context -> answer", max_iters=1), [listen(name)], lm)
        assert (items[-1].answer, len(lm.script.calls)) == ("Rome", 3)
    assert replies(items, "answer")[-1] == "Rome"


async def test_an_output_without_a_value_ends_empty(speak: Speaks) -> None:
    lm = ScriptedLM([block("print(1)")], extract=["", ""])
    items = await speak(rlm("context -> n: int", max_iters=1), [listen("n")], lm)
    assert items[-1].stop == "unanswered"
    assert replies(items, "n") == [""]


async def test_code_that_is_repaired_follows_in_a_chunk_of_its_own(speak: Speaks) -> None:
    lm = ScriptedLM(["```python\n>>> SUBMIT(answer='a')\n```"])
    items = await speak(rlm(), [listen("code")], lm)
    assert replies(items, "code") == [">>> SUBMIT(answer='a')", "SUBMIT(answer='a')"]


async def test_code_known_only_at_the_end_comes_whole(speak: Speaks) -> None:
    lm = ScriptedLM(["SUBMIT(answer='a')"])
    items = await speak(rlm(), [listen("code")], lm)
    assert replies(items, "code") == ["SUBMIT(answer='a')"]


async def test_a_cut_reply_ends_what_was_begun(speak: Speaks) -> None:
    lm = ScriptedLM([CutReply("```python\nSUBMIT(answer='a"), block("SUBMIT(answer='b')")])
    items = await speak(rlm(), [listen("code")], lm)
    assert replies(items, "code") == ["SUBMIT(answer='a", "SUBMIT(answer='b')"]
    assert items[-1].answer == "b"


async def test_an_error_of_the_model_reaches_the_reader(speak: Speaks) -> None:
    lm = ScriptedLM([block("print(1)"), dspy.LMServerError("down")])
    with pytest.raises(dspy.LMError, match="down"):
        await speak(rlm(), [listen("code")], lm)


async def test_a_stream_that_breaks_off_ends_what_was_begun(speak: Speaks) -> None:
    def broken(events: Events, number: int) -> Events:
        return list(events)[:6] if number == 0 else events

    with serving(
        ProviderServer(lambda _: Said(block("SUBMIT(answer='a')", "It is here.")), written, broken)
    ) as server:
        items = await speak(rlm(), [listen("reasoning"), listen("code")], PROVIDERS["llama.cpp"].lm(server.base))
    assert items[-1].answer == "a"
    first, *others = replies(items, "reasoning")
    assert others == ["It is here."]
    assert "It is here.".startswith(first)


async def test_a_reply_that_is_requested_again_is_heard_as_a_reply_of_its_own(speak: Speaks) -> None:
    """Its stream broke while the model was thinking: what was heard of it ends, and does not run into the next."""

    def broken(events: Events, number: int) -> Events:
        return [*list(events)[:3], SERVER_ERROR] if number == 0 else events

    said = Said(block("SUBMIT(answer='a')", "It is here."), "Let me think.")
    with serving(ProviderServer(lambda _: said, written, broken)) as server:
        lm = PROVIDERS["llama.cpp"].lm(server.base, num_retries=1)
        items = await speak(rlm(), [listen("reasoning"), listen("code")], lm)
    first, second = replies(items, "reasoning")
    assert second == "Let me think.It is here."
    assert first
    assert second.startswith(first)
    assert replies(items, "code") == ["SUBMIT(answer='a')"]


class Marked(dspy.streaming.StreamListener):
    """A listener with a constructor of its own."""

    def __init__(self, mark: str, **options: Any) -> None:
        super().__init__(**options)
        self.mark = mark

    def receive(self, chunk: Any) -> Any:
        response = super().receive(chunk)
        return response and dataclasses.replace(response, chunk=response.chunk and self.mark + response.chunk)


async def test_a_subclass_of_a_listener_hears_subs_and_extracted_outputs(speak: Speaks) -> None:
    lm = ScriptedLM(
        act=[block("print(gist(text='a'))")],
        subs={"gist": lambda messages: fields(gist="words")},
        extract=[fields(answer="four")],
    )
    listeners = [Marked("*", signature_field_name=name) for name in ("gist", "answer")]
    items = await speak(rlm(subs={"gist": "text -> gist"}, max_iters=1), listeners, lm)
    assert (items[-1].stop, items[-1].answer) == ("extracted", "four")
    assert replies(items, "gist") == ["*words"]
    assert replies(items, "answer") == ["*four"]


async def test_a_listener_to_llm_query_hears_its_replies(speak: Speaks) -> None:
    lm = ScriptedLM(act=[block("SUBMIT(answer=llm_query('one') + llm_query('two'))")], query=lambda _: "a b")
    items = await speak(rlm(), [listen("response", allow_reuse=True)], lm)
    assert (items[-1].stop, items[-1].answer) == ("submitted", "a ba b")
    assert replies(items, "response", "query") == ["a b", "a b"]


class Whole(dspy.ChatAdapter):
    """An adapter that DSPy's listeners do not know."""


async def test_a_listener_to_a_sub_with_another_adapter_breaks_no_call(speak: Speaks) -> None:
    lm = ScriptedLM(
        act=[block("SUBMIT(answer=gist(text='a'))")], subs={"gist": lambda messages: fields(gist="words")}
    )
    with dspy.context(adapter=Whole()):
        items = await speak(rlm(subs={"gist": "text -> gist"}), [listen("gist")], lm)
    assert (items[-1].stop, items[-1].answer) == ("submitted", "words")
    assert replies(items, "gist") == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("inside_a_loop", [False, True])
def test_what_is_said_to_a_closed_loop_is_dropped(inside_a_loop: bool) -> None:
    async def stream() -> RunStream:
        return RunStream(None, asyncio.get_running_loop())

    closed = asyncio.run(stream())

    async def say() -> None:
        closed.put("a")

    asyncio.run(say()) if inside_a_loop else closed.put("a")


async def test_children_written_at_once_are_heard_one_after_the_other(speak: Speaks) -> None:
    lm = ScriptedLM(
        act=[block("SUBMIT(answer=' '.join(rlm_query_batched(['1', '2', '3'])))")],
        child=lambda _: block("SUBMIT(response='a child')"),
    )
    items = await speak(rlm(limits=Limits(max_depth=1)), [listen("code")], lm)
    assert items[-1].stop == "submitted", items[-1].trajectory
    assert replies(items, "code", "child.act") == ["SUBMIT(response='a child')"] * 3
    assert len(replies(items, "code", "act")) == 1


@pytest.mark.parametrize("reused", [False, True])
async def test_a_sub_is_heard_like_any_predictor(speak: Speaks, reused: bool) -> None:
    lm = ScriptedLM(
        act=[block("SUBMIT(answer=' '.join(str(item) for item in gist.map(['a', 'b', 'c'])))")],
        subs={"gist": lambda messages: fields(gist="of some words")},
    )
    items = await speak(rlm(subs={"gist": "text -> gist"}), [listen("gist", allow_reuse=reused)], lm)
    assert items[-1].answer == "of some words of some words of some words"
    assert replies(items, "gist", "subs.gist") == ["of some words"] * (3 if reused else 1)


async def test_the_prediction_can_be_left_out() -> None:
    items = await Speaks(awaited=True, sync=False)(
        rlm(),
        [listen("code")],
        ScriptedLM([block("SUBMIT(answer='a')")]),
        include_final_prediction_in_output_stream=False,
    )
    assert {type(item) for item in items} == {Response, dspy.streaming.StatusMessage}


async def test_a_reader_that_stops_ends_the_run() -> None:
    lm = ScriptedLM(lambda _: block("print(1)"), seconds=0.01)
    streamed = dspy.streamify(rlm(max_iters=1_000), stream_listeners=[listen("code")], is_async_program=True)
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in streamed(context="x"):
            begun.set()

    with dspy.context(lm=lm):
        reading = asyncio.create_task(read())
        await begun.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    asked = len(lm.script.calls)
    await asyncio.sleep(0.05)
    assert len(lm.script.calls) == asked


async def test_a_slow_reader_loses_nothing(speak: Speaks) -> None:
    lm = ScriptedLM([block("\n".join(f"x{n} = {n}" for n in range(200)) + "\nSUBMIT(answer='a')")])
    streamed = dspy.streamify(
        rlm(), stream_listeners=[listen("code")], is_async_program=speak.awaited, async_streaming=True
    )
    items = []
    with dspy.context(lm=lm):
        async for item in streamed(context="x"):
            items.append(item)
            await asyncio.sleep(0)
    (code,) = replies(items, "code")
    assert code == items[-1].trajectory[0]["code"]


def test_a_program_loaded_in_another_way_has_its_outputs() -> None:
    """Copies, and what is unpickled, are made without the constructor."""
    listener = listen("answer")
    dspy.streamify(rlm().deepcopy(), stream_listeners=[listener])
    assert listener.predict_name == "self"


def test_an_output_that_two_modules_have_must_be_named() -> None:
    program = Program()
    program.other = rlm()
    with pytest.raises(ValueError, match=r"'answer' is an output field of 2 modules .* predict=program"):
        dspy.streamify(program, stream_listeners=[listen("answer")])
    listener = listen("answer", predict=program.other, predict_name="other")
    dspy.streamify(program, stream_listeners=[listener])


@pytest.mark.parametrize("field", ["code", "reasoning", "answer"])
@pytest.mark.parametrize("named", [lambda rlm: rlm, lambda rlm: rlm.act], ids=["the module", "its predictor"])
def test_a_listener_may_name_an_rlm_or_its_act(named: Any, field: str) -> None:
    """Either may be named for each field, and neither needs a `predict_name`."""
    program = Program()
    program.other = rlm()
    listener = listen(field, predict=named(program.other))
    dspy.streamify(program, stream_listeners=[listener])
    assert listener.predict is (program.other if field == "answer" else program.other.act)
    assert listener.predict_name == ("other" if field == "answer" else "other.act")
    with pytest.raises(ValueError, match=r"no output field 'anwser'. Name one of \['answer'\], or code or"):
        dspy.streamify(program, stream_listeners=[listen("anwser", predict=named(program.other))])


def test_the_turns_of_an_rlm_that_is_named_alone_are_heard() -> None:
    program = rlm()
    with dspy.context(lm=ScriptedLM(act=[block("SUBMIT(answer=str(len(context)))")])):
        stream = dspy.streamify(program, stream_listeners=[listen("code", predict=program)], async_streaming=False)
        heard = [item for item in stream(context="a b") if isinstance(item, Response)]
    assert {item.predict_name for item in heard} == {"act"}
    assert "".join(item.chunk for item in heard) == "SUBMIT(answer=str(len(context)))"


def test_an_output_of_an_rlm_comes_before_those_of_its_subs() -> None:
    program = rlm(subs={"ask": "question -> answer"})
    listener = listen("answer")
    dspy.streamify(program, stream_listeners=[listener])
    assert listener.predict is program


def test_a_field_that_nobody_has_is_named() -> None:
    with pytest.raises(ValueError, match="no predictor and no RLM of the program has an output field 'anwser'"):
        dspy.streamify(Program(), stream_listeners=[listen("anwser")])


def test_a_server_that_sends_no_stream_is_asked_for_whole_replies() -> None:
    """For the rest of the run, which pays one request more; DSPy's own client raises."""
    choice = {"message": {"role": "assistant", "content": block("len(context)")}, "finish_reason": "stop"}
    program = rlm()
    listener = dspy.streaming.StreamListener("code", predict=program.act, predict_name="act")
    with always_answering({"id": "1", "choices": [choice]}) as base:
        lm = dspy.LM("openai/m", api_base=base, api_key="none", cache=False, num_retries=1)
        with dspy.context(lm=lm):
            *_, last = dspy.streamify(program, stream_listeners=[listener], async_streaming=False)(context="a b")
    assert [step["output"] for step in last.trajectory] == ["3"] * 3
    assert last.usage["failures"] == 1
