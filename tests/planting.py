"""Plants secrets on the host, writes signatures that reach for them, and looks for them in what comes back.

The code of a run can name a type in a signature: text that the host reads. Every signature here goes in by one of
the doors of the REPL. Whatever comes back (answers, errors, prompts, the trajectory) must hold nothing that was
planted, and no module or function of the host may run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import secrets
import sys
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dspy
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from rlm_dspy import RLM, Limits
from rlm_dspy.interpreters import PythonInterpreter
from rlm_dspy.testing import ScriptedLM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULE = "planted_module"
FUNCTIONS = "planted_functions"
MARK = "planted-secret-"
REPLY = "\n\n".join(
    f"[[ ## {name} ## ]]\n{value}" for name, value in (("reasoning", "r"), ("x", "1"), ("completed", ""))
)


@dataclass
class Planted:
    """What was planted, and what became of it.

    Attributes:
        secrets: Where each was planted.
        folder: Holds the module on the path, and the file that it writes when it is run.
        called: How often a planted function was called.
    """

    folder: Path
    secrets: dict[str, str] = field(default_factory=dict)
    called: int = 0

    def found_in(self, text: str) -> set[str]:
        """Return where the secrets were planted that a text holds."""
        return {place for place, secret in self.secrets.items() if secret in text}

    @property
    def executed(self) -> int:
        """How often the module on the path was run."""
        log = self.folder / "executed"
        return len(log.read_text().splitlines()) if log.exists() else 0


@contextlib.contextmanager
def planted(folder: Path, lm: ScriptedLM) -> Iterator[Planted]:
    """Plant secrets in the environment, in `__main__`, in a module on the path, in `dspy.settings`, in an LM."""
    plants = Planted(folder)
    for place in ("environment", "main", "module", "settings", "lm"):
        plants.secrets[place] = f"{MARK}{place}-{secrets.token_hex(8)}"
    (folder / f"{MODULE}.py").write_text(
        f"from pathlib import Path\nwith Path(__file__).with_name('executed').open('a') as log:\n"
        f"    log.write('run\\n')\nSECRET = {plants.secrets['module']!r}\n"
    )
    functions = types.ModuleType(FUNCTIONS)

    def touch(*_: Any) -> str:
        plants.called += 1
        return plants.secrets["module"]

    functions.touch = touch  # type: ignore[attr-defined]
    main: Any = sys.modules["__main__"]
    os.environ["PLANTED_API_KEY"] = plants.secrets["environment"]
    main.PLANTED = plants.secrets["main"]
    lm.kwargs["api_key"] = plants.secrets["lm"]
    sys.modules[FUNCTIONS] = functions
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        with dspy.context(lm=lm, planted=plants.secrets["settings"]):
            yield plants
    finally:
        sys.path.remove(str(folder))
        for name in (MODULE, FUNCTIONS):
            sys.modules.pop(name, None)
        del os.environ["PLANTED_API_KEY"], main.PLANTED, lm.kwargs["api_key"]


# What Hypothesis writes

HOST_NAMES = [
    *("os", "os.environ", "os.environ.copy", "os.getcwd", "os.abort", "sys.modules", "sys.path", "builtins.open"),
    *("__main__", "__main__.PLANTED", MODULE, f"{MODULE}.SECRET", f"{FUNCTIONS}.touch"),
    *(
        "dspy.settings",
        "dspy.settings.lm",
        "dspy.settings.lm.kwargs",
        "dspy.settings.planted",
        "dspy.settings.config",
    ),
    *("typing.sys.modules", "typing.sys.modules.os", "dspy.os.environ", "str.__subclasses__", "int.__class__"),
    *("object.__init__.__globals__", "RLM", "rlm_dspy.redaction.os.environ", "logging.root", "self", "frame"),
    *(
        "\uff4f\uff53.environ",
        "os.\uff45nviron",
        "__import__",
        "globals",
        "PLANTED",
        "plants",
        "lm",
        "signature",
        "names",
    ),
]
REACHING = [
    "os.environ",
    "__main__.PLANTED",
    f"{MODULE}.SECRET",
    "dspy.settings.lm.kwargs",
    "dspy.settings.planted",
]
TYPES = [
    *(
        "str",
        "int",
        "float",
        "bool",
        "bytes",
        "list",
        "dict",
        "tuple",
        "set",
        "frozenset",
        "object",
        "Any",
        "None",
    ),
    *("date", "datetime", "time", "timedelta", "Decimal", "dspy.Image", "dspy.Audio", "dspy.File", "Fact", "Kind"),
]
NAMES = st.sampled_from([*HOST_NAMES, *REACHING * 3])


def _grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return types made of others, right ones and wrong ones."""
    shapes = [
        *("list[{0}]", "dict[str, {0}]", "dict[{0}, {1}]", "tuple[{0}, ...]", "set[{0}]", "Optional[{0}]"),
        *(
            "Union[{0}, {1}]",
            "{0} | {1}",
            "{0} | None",
            "Literal[{0}]",
            "Literal['{0}', 1]",
            "'{0}'",
            "list['{0}']",
        ),
        *("Annotated[{0}, Field(ge=1)]", "Annotated[str, {0}]", "Annotated[str, Field(pattern='(a+)+$')]"),
        *(
            "{0}()",
            "{0}[0]",
            "{0}['PLANTED_API_KEY']",
            "({0})",
            "[{0}]",
            "{{{0}}}",
            "{0}.__class__",
            "{0}.__dict__",
        ),
        *("lambda: {0}", "f'{{{0}}}'", "{0} if {1} else {0}", "*{0}", "not {0}", "-{0}", "{0}:={1}", "{0}@{1}"),
    ]
    return st.builds(str.format, st.sampled_from(shapes), inner, inner)


FIELD_OPTIONS = [
    *("default_factory", "default", "description", "title", "examples", "alias", "validation_alias"),
    *("json_schema_extra", "discriminator", "pattern", "ge"),
]
FIELDS = st.builds(
    "Annotated[str, Field({}={})]".format,
    st.sampled_from(FIELD_OPTIONS),
    st.sampled_from([*REACHING, f"{FUNCTIONS}.touch"]),
)


ANNOTATIONS = st.one_of(
    NAMES,
    FIELDS,
    st.recursive(st.one_of(NAMES, st.sampled_from(TYPES)), _grown, max_leaves=6),
    st.recursive(st.sampled_from(TYPES), _grown, max_leaves=4),
    st.builds(lambda name, deep: "list[" * deep + name + "]" * deep, NAMES, st.integers(1, 40)),
    st.text(max_size=12),
)
"""Types as text: a name of the host, a right type, what is made of both, or anything."""
MODULES = ["Predict", "ChainOfThought", "ReAct", "RLM"]
DOORS = [
    *("inline", "input", "left_out", "signature", "class", "map", "frame", "class_frame", "model_frame"),
    *("setting", "config"),
]


@dataclass(frozen=True)
class Attempt:
    """A signature on its way to the host.

    Attributes:
        door: How it goes in.
        module: Which of DSPy's modules is to have it.
        annotation: The type that it names.
    """

    door: str
    module: str
    annotation: str


ATTEMPTS = st.builds(Attempt, st.sampled_from(DOORS), st.sampled_from(MODULES), ANNOTATIONS)

# What runs in the REPL. Frames are also sent past the functions that are there, as code may do.
SOURCE = r'''
import json
from enum import Enum
from dataclasses import dataclass

class Kind(Enum):
    A = "a"

@dataclass
class Fact:
    text: str

def frame(module, signature, items, config=(), **more):
    to = {"kind": "ad_hoc", "module": module, "signature": signature, "config": dict(config), "tools": []}
    return _rlm_call(call={"to": to, "items": items, "same": [{}, {}], "many": False, **more})

def told(signature):
    """Send what the old host and the new one take a class for."""
    return [{**signature, **more} for more in ({"types": {}}, {"classes": {}})]

def attempt(spec):
    door, module, annotation = spec
    kind = getattr(dspy, module)
    item = [[{"text": "a"}, {}]]
    inline = "text -> x: " + annotation
    if door == "inline":
        return kind(inline)(text="a")
    if door == "input":
        return kind("text: " + annotation + " -> x")(text="a")
    if door == "left_out":
        return kind("text -> x, left_out: " + annotation)(text="a")
    if door == "signature":
        return kind(dspy.Signature(inline, "Say {os.environ} %(x)s ${x}."))(text="a")
    if door == "class":
        made = type(dspy.Signature)("Said", (dspy.Signature,), {
            "__annotations__": {"text": "str", "x": annotation},
            "text": dspy.InputField(), "x": dspy.OutputField(desc="{os.environ}"),
        })
        return kind(made)(text="a")
    if door == "map":
        return kind(inline).map(["a", "b"])
    if door == "frame":
        return [refused(frame, module, each, item) for each in told({"text": inline, "instructions": annotation})]
    if door == "class_frame":
        field = {"way": "in", "name": "text", "type": "str", "desc": annotation}
        out = {"way": "out", "name": "x", "type": annotation, "desc": None}
        plain = {"name": annotation, "instructions": None, "fields": [field, {**out, "desc": "d"}]}
        return [refused(frame, module, each, item) for each in [*told(plain), *told({**plain, "name": "Said"})]]
    if door == "model_frame":
        said = {"type": "str", "required": False, "desc": ""}
        found = []
        for name in ("__base__", "model_config", "__validators__", "__cls_kwargs__", "value"):
            model = {"model": "Fact", "doc": "", "fields": {name: {**said, "type": annotation}}}
            new = {"kind": "model", "fields": {name: {**said, "type": annotation, "default": annotation}}}
            said_as = {"text": "text -> x: Fact", "instructions": None}
            for more in ({"types": {"Fact": model}}, {"classes": {"Fact": new}}):
                found.append(refused(frame, module, {**said_as, **more}, item))
        return found
    if door == "setting":
        for name in ("signature", "config", "lm", "demos", "new_signature", "_trace", "max_iters"):
            value = {"api_base": annotation} if name == "config" else inline if "signature" in name else annotation
            yielded = refused(kind("text, %s: Any -> x" % name), text="a", **{name: value})
            if name == "lm":
                found = [yielded]
        return [refused(kind("text, signature -> x"), text="a", signature=inline), *found]
    config = {"api_base": annotation, "lm": annotation, "rationale_field": annotation, "max_iters": annotation}
    return [refused(frame, module, {"text": "text -> x", "instructions": None, "types": {}}, item, {name: value})
            for name, value in config.items()]

def refused(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        return error
'''
CELL = """{source}
found = [repr(refused(attempt, spec)) for spec in {specs!r}]
SUBMIT(found=found)
"""


@dataclass
class Search:
    """What was found after some attempts.

    Attributes:
        attempts: How many were made.
        found: Those after which a secret came back, each with where that was planted.
        answers: What came back of each.
    """

    attempts: int = 0
    found: list[tuple[Attempt, set[str]]] = field(default_factory=list)
    answers: list[tuple[Attempt, str]] = field(default_factory=list)


def scripted() -> ScriptedLM:
    """Return an LM that runs the code it finds in the question of a root, and answers any other."""
    return ScriptedLM(
        lambda _: REPLY,
        act=lambda _: "```python\nexec(code_to_run)\n```",
        child=lambda _: "```python\nSUBMIT(x=1)\n```",
    )


def search(attempts: list[Attempt], plants: Planted, lm: ScriptedLM, factory: Any = PythonInterpreter) -> Search:
    """Make attempts in one run, and look for the secrets in what came back of each."""
    specs = [[attempt.door, attempt.module, attempt.annotation] for attempt in attempts]
    code = CELL.format(source=SOURCE, specs=specs)
    limits = Limits(max_iters=1, max_llm_calls=100_000, max_output_chars=10_000_000)
    rlm = RLM("code_to_run -> found: list[str]", limits=limits, cache=False)
    lm.script.calls.clear()
    with dspy.context(interpreter_factory=factory):
        prediction = rlm(code_to_run=code)
    done = Search(len(attempts))
    assert prediction.found is not None, prediction.trajectory[-1]["output"][-2000:]
    for attempt, came in zip(attempts, prediction.found, strict=True):
        done.answers.append((attempt, came))
        if places := plants.found_in(came):
            done.found.append((attempt, places))
    rest = json.dumps([prediction.trajectory, lm.script.calls], default=str)
    if not done.found and (places := plants.found_in(rest)):
        done.found.append((attempts[0], places))
    return done


def written(count: int, start: int = 0) -> list[Attempt]:
    """Return different attempts that Hypothesis writes: the same for the same start."""
    kept: dict[Attempt, None] = {}

    @seed(start)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(ATTEMPTS)
    def keep(attempt: Attempt) -> None:
        kept[attempt] = None

    while len(kept) < count:
        keep()
        start += 1
        keep = seed(start)(keep)
    return list(kept)[:count]
