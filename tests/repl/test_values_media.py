"""Images, sounds and files cross as handles, and a model that is asked about one gets it."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from rlm_dspy import RLM, SubCallCache
from rlm_dspy.cache.sub_call_cache import digest
from rlm_dspy.interpreters import PythonInterpreter
from rlm_dspy.repl.value_codec import Media, taken
from rlm_dspy.testing import ScriptedLM
from tests.crossing import every_interpreter, run, signature
from tests.playing import block

PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)
MEDIA = [
    dspy.Image(PNG),
    dspy.Audio(data="UklGRg==", audio_format="wav"),
    dspy.File.from_bytes(b"%PDF-1.4", mime_type="application/pdf"),
]
ASKING = [
    "llm_query('what is this?', media)",
    "llm_query(['what is this?', media])",
    "llm_query_batched([['what is this?', media]])[0]",
    "llm_query('what is this?', held['in'][0])",
]


@every_interpreter
@pytest.mark.parametrize("media", MEDIA, ids=lambda media: type(media).__name__)
@pytest.mark.parametrize("asking", ASKING)
def test_a_model_that_is_asked_about_an_image_gets_the_image(factory: Any, media: Any, asking: str) -> None:
    """By `llm_query`, alone or in a batch, and if it lies inside another input."""
    lm = ScriptedLM([block(f"SUBMIT(answer={asking})"), "it is small"])
    inputs = {"media": media, "held": {"in": [media]}}
    assert run(factory, "", inputs, lm=lm).answer == "it is small"
    parts = lm.history[-1]["messages"][-1]["content"]
    assert isinstance(parts, list)
    assert parts[0]["text"] == "what is this?"
    assert parts[1] == media.format()[0]


@pytest.mark.parametrize("factory", [PythonInterpreter, dspy.LocalInterpreter])
def test_an_image_in_an_f_string_is_seen_too(factory: Any) -> None:
    """Models write it so."""
    lm = ScriptedLM([block("SUBMIT(answer=llm_query(f'Look: {media} What is it?'))"), "small"])
    run(factory, "", {"media": MEDIA[0]}, lm=lm)
    texts = [part.get("text", "image") for part in lm.history[-1]["messages"][-1]["content"]]
    assert texts == ["Look: ", "image", " What is it?"]


@every_interpreter
def test_typed_sub_calls_and_submit_take_images(factory: Any) -> None:
    """As inputs of subs, declared or not, and as an answer."""
    code = "made = dspy.Predict('image: dspy.Image -> label')\n"
    code += "SUBMIT(answer=[see(image=x), *see.map([x, x]), made(image=x).label], back=x)"
    prediction = run(factory, code, {"x": MEDIA[0]}, answer=list[str], back=dspy.Image)
    assert prediction.answer == ["a label"] * 4
    assert prediction.back == MEDIA[0]


def test_code_cannot_make_an_image_that_it_was_not_given() -> None:
    """A name that nobody has told is refused, and says nothing."""
    with pytest.raises(ValueError, match="not given such an image"):
        taken({"__record__": "Image", "kind": "media", "fields": {"key": "0" * 12}}, Media())


def test_two_images_of_one_size_are_two_questions() -> None:
    """An answer about one is none about the other, also for the cache."""
    one, other = (dspy.Image(f"data:image/png;base64,{letter * 8}") for letter in "AB")
    assert repr(one) == repr(other)
    assert digest(one) != digest(other)
    lm = ScriptedLM(act=lambda _: block("SUBMIT(answer=llm_query('?', x))"), query=["first", "second"])
    rlm = RLM(signature({"x": 1}), interpreter_factory=PythonInterpreter, cache=SubCallCache())
    with dspy.context(lm=lm):
        assert [rlm(x=image).answer for image in (one, other, one)] == ["first", "second", "first"]
