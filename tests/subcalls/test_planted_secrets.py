"""Nothing that a cell writes into a signature or a frame brings back what the host keeps to itself."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import LocalPythonInterpreter, PythonInterpreter
from rlm_dspy.loop.run_state import Run
from rlm_dspy.observe.event_log import RunLog
from rlm_dspy.repl.bootstrap import HOST_TOOL
from rlm_dspy.subcalls.frames import CallFrame
from rlm_dspy.subcalls.target import Callees
from rlm_dspy.testing import ScriptedLM
from tests.planting import ATTEMPTS, DOORS, FUNCTIONS, MARK, MODULE, MODULES, Attempt, planted, scripted, search
from tests.playing import block, fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.planting import Planted
    from tests.tracing.stores import Store

INTERPRETERS = pytest.mark.parametrize("factory", [PythonInterpreter, LocalPythonInterpreter])
FROM_THE_FAULTS = [
    "os.environ",
    "dspy.settings.lm.kwargs",
    MODULE,
    f"{MODULE}.SECRET",
    "__main__.PLANTED",
    f"Annotated[str, Field(default_factory={FUNCTIONS}.touch)]",
    "Annotated[str, Field(default_factory=os.getcwd)]",
    "Annotated[str, Field(description=dspy.settings.planted)]",
]


@pytest.fixture
def plants(tmp_path: Path) -> Iterator[tuple[Planted, ScriptedLM]]:
    lm = scripted()
    with planted(tmp_path, lm) as plants:
        yield plants, lm


def check(attempts: list[Attempt], plants: Planted, lm: ScriptedLM, factory: Any) -> None:
    done = search(attempts, plants, lm, factory)
    assert (done.found, plants.executed, plants.called) == ([], 0, 0)
    for attempt, came in done.answers:
        assert str(Path.cwd()) not in came, attempt
        if "f'" not in attempt.annotation:  # a cell itself makes a text of its own objects
            assert " object at 0x" not in came, attempt


@INTERPRETERS
@pytest.mark.parametrize("annotation", FROM_THE_FAULTS)
def test_a_signature_of_the_repl_names_nothing_of_the_host(
    plants: tuple[Planted, ScriptedLM], annotation: str, factory: Any
) -> None:
    """Through every door and into every module."""
    check([Attempt(door, module, annotation) for door in DOORS for module in MODULES], *plants, factory)


@settings(
    max_examples=40, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None
)
@given(attempt=ATTEMPTS)
def test_no_signature_that_hypothesis_writes_brings_back_a_secret(
    plants: tuple[Planted, ScriptedLM], attempt: Attempt
) -> None:
    """`experiment/bench/planted_secrets.py` does the same with thousands."""
    check([attempt], *plants, LocalPythonInterpreter)


def test_the_event_log_of_a_run_holds_no_secret(plants: tuple[Planted, ScriptedLM], tmp_path: Path) -> None:
    """Nor does what the run returns, nor what it sends to a model."""
    seen, lm = plants
    with dspy.context(callbacks=[RunLog(tmp_path / "runs.jsonl")]):
        done = search([Attempt("inline", "Predict", each) for each in FROM_THE_FAULTS], seen, lm)
    assert done.found == []
    log = (tmp_path / "runs.jsonl").read_text()
    assert "Invalid signature" in log
    assert seen.found_in(log) == set()


def test_the_traces_of_a_run_hold_no_secret(store: Store, plants: tuple[Planted, ScriptedLM]) -> None:
    """No byte of the store does."""
    seen, lm = plants
    search([Attempt("map", "ChainOfThought", each) for each in FROM_THE_FAULTS], seen, lm, LocalPythonInterpreter)
    content = store.content().decode(errors="replace")
    assert "Invalid signature" in content
    assert seen.found_in(content) == set()


# Frames that no function of the REPL sends

TO = {"kind": "ad_hoc", "module": "Predict", "signature": {"text": "text -> x"}, "config": {}, "tools": []}
ITEM = [[{"text": "a"}, {}]]


def call(**more: Any) -> dict[str, Any]:
    return {"to": TO, "items": ITEM, "same": [{}, {}], "many": False, **more}


def to(**more: Any) -> dict[str, Any]:
    return call(to={**TO, **more})


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (None, "Invalid call"),
        ({}, "to: Field required"),
        (call(items=5), "items: Input should be a valid list"),
        (call(items=[[1]]), "items.0"),
        (call(items=[[{"text": "a"}, {"x": "nothing"}]]), "Unknown argument x"),
        (call(items=[[{}, {"text": "nothing"}]]), "Unknown input nothing; the inputs are: q"),
        (call(items=[[{"text": "a", "lm": "other"}, {}]]), "Unknown argument lm"),
        (call(items=[[{"text": "a", "config": {"api_base": "x"}}, {}]]), "Unknown argument config"),
        (call(many="yes"), "many"),
        (call(more=1), "more: Extra inputs are not permitted"),
        (call(to={"kind": "tool", "name": "x"}), "to: Input tag 'tool'"),
        (call(to={"kind": "sub", "name": "_rlm_call"}), "Unknown sub-call '_rlm_call'"),
        (call(to={"kind": "sub", "name": ["query"]}), "to.sub.name"),
        (call(to={"kind": "query", "name": "x"}), "Extra inputs"),
        (to(module="ProgramOfThought"), "to.ad_hoc.module"),
        (to(module="__class__"), "to.ad_hoc.module"),
        (to(tools=["open"]), "takes no tools"),
        (to(module="ReAct", tools=["open"]), "Unknown tool open"),
        (to(module="ReAct", tools=[HOST_TOOL]), f"Unknown tool {HOST_TOOL}"),
        (to(config={"api_base": "http://localhost"}), "not api_base"),
        (to(config={"lm": "other"}), "not lm"),
        (to(config={"temperature": "hot"}), "temperature"),
        (to(config={"temperature": 100.0}), "temperature"),
        (to(config={"max_tokens": -1}), "max_tokens"),
        (to(config={"stop": {"a": 1}}), "stop"),
        (to(config={"seed": 2**80}), "seed"),
        (to(module="RLM", config={"max_iters": 0}), "max_iters"),
        (to(module="RLM", config={"max_iters": "9"}), "max_iters"),
        (to(module="RLM", config={"max_iters": True}), "max_iters"),
        (to(module="ReAct", config={"max_iters": 10**9}), "max_iters"),
        (to(module="ChainOfThought", config={"rationale_field": "x"}), "not rationale_field"),
        (to(signature={"text": "text -> x", "fields": []}), "either text or fields"),
        (to(signature={}), "either text or fields"),
        (to(signature={"text": "text -> x", "types": {"os": "str"}}), "types: Extra inputs"),
        (to(signature={"text": "text -> x: M", "classes": {"M": {"kind": "module", "name": "os"}}}), "classes.M"),
        (
            to(signature={"text": "text -> x: os", "classes": {"os": {"kind": "alias", "type": "os.environ"}}}),
            "unknown type",
        ),
        (to(signature={"text": "text -> x", "instructions": ["a"]}), "instructions"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_with_the_part_that_is_wrong(frame: Any, told: str) -> None:
    """A cell may call the host's one function itself; no model is asked, and the run goes on."""
    lm = ScriptedLM([block(f"print({HOST_TOOL}(call={frame!r}))\nSUBMIT(a='end')")])
    with dspy.context(lm=lm, interpreter_factory=LocalPythonInterpreter):
        (step,) = RLM("q -> a")(q="?").trajectory
    assert told in step["output"]
    assert "'refused'" in step["output"]
    assert len(lm.script.calls) == 1


def search_for(text: str) -> str:
    """Search."""
    return text


CLASSES = {
    "M": {"kind": "model", "fields": {"f": {"type": "E", "required": False, "default": "a"}}},
    "E": {"kind": "enum", "members": {"A": "a", "B": 2}},
}
FIELDS = [{"name": "text", "way": "in", "type": "str"}, {"name": "x", "way": "out", "type": "list[M]"}]
FRAMES = [
    to(signature={"text": "text -> x: M", "classes": CLASSES}, config={"temperature": 0.5, "stop": ["a"]}),
    to(module="ReAct", signature={"name": "S", "fields": FIELDS, "classes": CLASSES}, tools=["search_for"]),
    call(to={"kind": "sub", "name": "claims"}, many=True),
    call(to={"kind": "query"}, items=[[{}, {"prompt": "q"}]]),
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(
        ["", "text -> x", "M", "__class__", "model_config", "os.environ", "Annotated[int, Field(ge=1)]"]
    ),
    st.text(max_size=5),
    st.sampled_from([{}, [], [{}, {}], {"kind": "query"}, {"kind": "alias", "type": "A"}, *CLASSES.values()]),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where the parts of a frame stand."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in parts for place in places(part, (*at, key)))]


@st.composite
def changed_frames(draw: st.DrawFn) -> Any:
    """Return a frame with some of its parts replaced, added or taken away."""
    whole = {"frame": copy.deepcopy(draw(st.sampled_from(FRAMES)))}
    for _ in range(draw(st.integers(1, 3))):
        *before, last = draw(st.sampled_from(places(whole)[1:]))
        holder: Any = functools.reduce(lambda part, key: part[key], before, whole)
        key = draw(st.text(max_size=8)) if isinstance(holder, dict) and draw(st.booleans()) else last
        holder[key] = copy.deepcopy(draw(LEAVES))
        if before and key == last and draw(st.booleans()):
            del holder[key]
    return whole["frame"]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(frame=changed_frames())
def test_any_frame_is_answered_or_refused(plants: tuple[Planted, ScriptedLM], frame: Any) -> None:
    """The host raises nothing and shows no object of its own, whatever comes."""
    rlm = RLM("q -> a", tools=[search_for], subs={"claims": "text -> x: int"}, limits=Limits(max_iters=1))
    run = Run(rlm, {"q": "?"}, LocalPythonInterpreter)
    answer = run.subcalls.answer(frame)
    assert answer.keys() & {"answers", "refused"}
    assert not plants[0].found_in(str(answer))
    assert " at 0x" not in str(answer)


def test_a_frame_nested_without_end_is_refused() -> None:
    code = (
        "deep = []\nfor _ in range(100_000):\n    deep = [deep]\n"
        f"to = {{'kind': 'ad_hoc', 'module': 'Predict', 'signature': {{'text': 'a -> b', 'classes': deep}}}}\n"
        f"print({HOST_TOOL}(call={{'to': to, 'items': []}}))\nSUBMIT(a='end')"
    )
    with dspy.context(lm=ScriptedLM([block(code)]), interpreter_factory=LocalPythonInterpreter):
        (step,) = RLM("q -> a")(q="?").trajectory
    assert "Invalid call" in step["output"]


def test_modules_written_in_the_repl_are_not_kept_without_end() -> None:
    """A cell that writes a new signature again and again, which costs nothing, does not fill the host."""
    rlm = RLM("q -> a")
    callees = Callees(rlm, 0, RLM)
    for number in range(300):
        callees.find(CallFrame.model_validate(to(signature={"text": f"text -> x{number}"})).to)
    assert len(callees._written) == 64


# What still works


@INTERPRETERS
def test_classes_constraints_defaults_and_aliases_of_the_repl_reach_the_module(factory: Any) -> None:
    code = '''
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Literal, Optional, TypedDict
from pydantic import BaseModel, Field
class Kind(str, Enum):
    NEWS = "news"
    OLD = "old"
class Where(TypedDict, total=False):
    page: int
@dataclass
class Source:
    title: str
    years: "list[int]" = field(default_factory=list)
class _Fact(BaseModel):
    """A fact."""
    text: Annotated[str, Field(min_length=2)]
    year: int = Field(ge=1900, description="when")
    kind: Kind = Kind.NEWS
    source: "Source | None" = None
Score = Literal[1, 2]
Fact = _Fact
found = dspy.Predict("text -> facts: list[Fact], score: Score, by: dict[str, Source], where: Where")(text="t")
class Find(dspy.Signature):
    """Find."""
    text: str = dspy.InputField()
    most: int = dspy.InputField(default=3)
    best: "Optional[Fact]" = dspy.OutputField(desc="the best")
best = dspy.Predict(Find)(text="t").best
SUBMIT(texts=[f.text for f in found.facts], kind=found.facts[0].kind, title=found.by["a"].title, year=best.year)
'''
    fact = '{"text": "ab", "year": 1950, "source": {"title": "T", "years": [1]}}'

    def answer(said: list[dict[str, str]]) -> str:
        assert "1900" in said[0]["content"]
        return fields(facts=f"[{fact}]", score="2", by='{"a": {"title": "S"}}', best=fact, where="{}")

    with dspy.context(lm=ScriptedLM(answer, act=[block(code)]), interpreter_factory=factory):
        found = RLM("q -> texts: list[str], kind, title, year: int", max_iters=1)(q="?")
    assert (found.texts, found.kind, found.title, found.year) == (["ab"], "news", "S", 1950), found.trajectory[0][
        "output"
    ]


@INTERPRETERS
def test_media_are_types_in_classes_and_inline(factory: Any) -> None:
    """Made from what code has in hand; a path of the host is no image."""
    code = """
class Look(dspy.Signature):
    image: dspy.Image = dspy.InputField()
    sounds: list[dspy.Audio] = dspy.InputField()
    x: str = dspy.OutputField()
image = dspy.Image("data:image/png;base64,AAAA")
sound = dspy.Audio(data="AAAA", audio_format="wav")
first = dspy.Predict(Look)(image=image, sounds=[sound, dspy.Audio("data:audio/mp3;base64,AAAA")]).x
try:
    path = dspy.Image("/etc/passwd")
except ValueError:  # where code can read the file: it is no picture
    path = "/etc/passwd"
paths = [path, "/etc/passwd", {"url": "file:///etc/passwd"}]
failed = dspy.Predict("image: dspy.Image -> x").map(paths)
files = [dspy.File("data:text/plain;base64,AAAA"), dspy.File("/etc/passwd")]
file = dspy.Predict("file: dspy.File -> x").map(files)
SUBMIT(a=str([first, [bool(each) for each in failed], [bool(each) for each in file]]))
"""
    lm = ScriptedLM(lambda _: fields(x="seen"), act=[block(code)])
    with dspy.context(lm=lm, interpreter_factory=factory):
        found = RLM("q -> a", max_iters=1)(q="?")
    assert found.a == "['seen', [False, False, False], [True, False]]", found.trajectory[0]["output"]


@INTERPRETERS
@pytest.mark.parametrize(
    ("code", "told"),
    [
        (
            """
from typing import Annotated
from pydantic import AfterValidator, BaseModel
class M(BaseModel):
    x: Annotated[int, AfterValidator(abs)]
dspy.Predict('a -> m: M')(a='x')
""",
            "a validator written in the REPL does not run on the host",
        ),
        (
            """
from typing import Optional
from pydantic import BaseModel
class Node(BaseModel):
    next: Optional['Node'] = None
dspy.Predict('a -> n: Node')(a='x')
""",
            "contains itself",
        ),
        ("import decimal\nclass C: pass\ndspy.Predict('a -> c: C')(a='x')", "cannot have the type C"),
        (
            """
def make():
    class C:
        x: int
    return C
A, B = make(), make()
dspy.Predict('a -> b: A, c: B')(a='x')
""",
            "two types in one signature are named C",
        ),
        ("F = lambda: 1\ndspy.Predict('a -> c: F')(a='x')", "unknown type 'F'"),
    ],
)
def test_a_type_that_cannot_cross_is_told(code: str, told: str, factory: Any) -> None:
    with dspy.context(lm=ScriptedLM([block(code), block("SUBMIT(a='')")]), interpreter_factory=factory):
        first, _ = RLM("q -> a")(q="?").trajectory
    assert told in first["output"]
    assert MARK not in json.dumps(first, default=str)
