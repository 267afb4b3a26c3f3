"""What code knows of pictures, sounds and files, and what a model gets of those that code passes or makes."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import dspy
import pytest

from rlm_dspy import RLM, Limits
from rlm_dspy.errors import InvalidInputs
from rlm_dspy.inputs.media import MAX_MEDIA_BYTES, media_facts
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.repl.value_codec import Media
from rlm_dspy.testing import ScriptedLM
from tests.crossing import run
from tests.playing import block, fields
from tests.provider_server import PROVIDERS, ProviderServer, Said, serving

PNG = b"\x89PNG\r\n\x1a\n" + bytes(4) + b"IHDR" + struct.pack(">II", 640, 480) + bytes(20)
JPEG = (
    b"\xff\xd8\xff\xe0"
    + struct.pack(">H", 300)
    + bytes(298)
    + b"\xff\xff\xc2"
    + struct.pack(">HBHH", 17, 8, 48, 64)
    + bytes(9)
)
HEADS = {
    "png": (PNG, (640, 480)),
    "jpeg": (JPEG, (64, 48)),
    "gif": (b"GIF89a" + struct.pack("<HH", 3, 4), (3, 4)),
    "bmp": (b"BM" + bytes(16) + struct.pack("<ii", 5, -6), (5, 6)),
    "webp": (b"RIFF" + bytes(4) + b"WEBPVP8X" + bytes(8) + b"\x06\0\0\x07\0\0", (7, 8)),
    "webp-lossless": (b"RIFF" + bytes(4) + b"WEBPVP8L" + bytes(5) + (8 | 9 << 14).to_bytes(4, "little"), (9, 10)),
    "webp-lossy": (b"RIFF" + bytes(4) + b"WEBPVP8 " + bytes(10) + struct.pack("<HH", 11, 12), (11, 12)),
}


def image(data: bytes, kind: str = "png") -> dspy.Image:
    return dspy.Image(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


@pytest.mark.parametrize("kind", HEADS)
def test_the_pixels_of_a_picture_are_read_from_its_beginning(kind: str) -> None:
    """Without a library; what is cut off says nothing, and raises nothing."""
    data, pixels = HEADS[kind]
    facts = media_facts(image(data, kind))
    assert (facts["width"], facts["height"], facts["size"]) == (*pixels, len(data))
    for length in range(len(data)):
        assert media_facts(image(data[:length] or b"x", kind))["width"] in (None, pixels[0])


@pytest.mark.parametrize("factory", [PythonInterpreter, dspy.LocalInterpreter])
def test_code_can_look_at_what_it_was_given(factory: Any) -> None:
    """Also inside lists and dicts; of an address nothing is known."""
    sound, page = (
        dspy.Audio(data="UklGRg==", audio_format="wav"),
        dspy.File.from_bytes(b"%PDF-1.4", mime_type="a/b"),
    )
    inputs = {"held": {"in": [image(PNG), sound, page, dspy.Image("https://example.org/a.png")]}}
    code = "SUBMIT(answer=[[m.type, m.media_type, m.size, m.width, m.height] for m in held['in']])"
    assert run(factory, code, inputs, answer=list[list[Any]]).answer == [
        ["Image", "image/png", len(PNG), 640, 480],
        ["Audio", "audio/wav", 4, None, None],
        ["File", "a/b", 8, None, None],
        ["Image", None, None, None, None],
    ]


def test_a_picture_that_is_too_large_is_refused_before_a_model_is_asked() -> None:
    """The error names the input and what to do; nested ones are refused when they cross."""
    large = dspy.Image.model_construct(url="data:image/png;base64," + "A" * (MAX_MEDIA_BYTES * 4 // 3 + 8))
    lm = ScriptedLM([])
    with dspy.context(lm=lm), pytest.raises(InvalidInputs, match=r"Input 'x': the Image has .* Make it smaller"):
        RLM("x -> answer")(x=[large])
    with pytest.raises(ValueError, match="Make it smaller, or pass its address"):
        Media().key(large)
    assert lm.script.calls == []


MAKE = (
    "import pathlib\npathlib.Path('output').mkdir(exist_ok=True)\npathlib.Path('output/a.png').write_bytes(data)\n"
)
MADE = {
    "bytes": "llm_query('what?', dspy.Image(data))",
    "a file": "llm_query('what?', images=[dspy.Image('output/a.png')])",
    "a sub-call": "see(picture=dspy.Image('output/a.png'))",
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("factory", [PythonInterpreter, LocalPythonInterpreter])
def test_a_picture_that_code_made_reaches_the_model(
    factory: Any, made: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a plot does that is handed to a sub-model."""
    monkeypatch.chdir(tmp_path)
    signature = dspy.Signature("picture: dspy.Image -> label", custom_types={"dspy": dspy})
    lm = ScriptedLM(act=[block(f"{MAKE}SUBMIT(answer={MADE[made]})")], query=["red"], subs=fields_of_label)
    with dspy.context(lm=lm, interpreter_factory=factory):
        assert RLM("data -> answer", subs={"see": signature})(data=PNG).answer == "red"
    assert json.dumps(image(PNG).url)[1:-1] in json.dumps(lm.history[-1]["messages"])


def fields_of_label(_: Any) -> str:
    return fields(label="red")


def test_code_cannot_have_a_picture_fetched_by_llm_query() -> None:
    lm = ScriptedLM(
        act=[block("llm_query('what?', dspy.Image('http://127.0.0.1:9/?a'))"), block("SUBMIT(answer='o')")]
    )
    with dspy.context(lm=lm):
        prediction = RLM("q -> answer")(q="?")
    assert prediction.usage["calls"] == 2
    assert "a prompt consists of texts, images" in prediction.trajectory[0]["output"]


def test_a_vision_model_over_http_gets_the_picture_itself() -> None:
    """From a declared sub, from `llm_query` and from a child's `llm_query`; the answer may be the picture."""
    code = "SUBMIT(answer=[see(picture=x), llm_query('what?', x), dspy.RLM('x -> label')(x=x).label], back=x)"

    def say(texts: list[str]) -> Said:
        said = "\n".join(texts)
        if "back" in said:
            return Said(block(code))
        if "SUBMIT" in said:
            return Said(block("SUBMIT(label=llm_query('and this?', x))"))
        return Said(fields(label="a cat") if "label" in said else "a cat")

    write = PROVIDERS["OpenAI"].write
    signature = dspy.Signature("picture: dspy.Image -> label", custom_types={"dspy": dspy})
    outer = dspy.Signature("x: dspy.Image -> answer: list[str], back: dspy.Image", custom_types={"dspy": dspy})
    rlm = RLM(outer, subs={"see": signature}, limits=Limits(max_depth=1))
    server = ProviderServer(say, lambda said, body: (200, write(said, body)))
    with serving(server), dspy.context(lm=PROVIDERS["OpenAI"].lm(server.base)):
        prediction = rlm(x=image(PNG))
    assert prediction.answer == ["a cat"] * 3
    assert prediction.back == image(PNG)
    seen = [image(PNG).url in json.dumps(body) for _, body in server.requests]
    assert seen == [False, True, True, False, True]
