"""Facts that hold for every interpreter; a class of tests joins by naming how one is made.

    class TestMine(ExecutionContract):
        make = MyInterpreter

`make(**options)` takes `tools`, `output_fields`, `callbacks` and, for `ExecutionContract`, `max_output_chars`.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from dspy.utils.dummies import DummyLM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm_dspy.interpreters import CellError, Submission

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS = 30
"""How long a test waits for what must happen at once."""

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)

EXAMPLES = settings(
    max_examples=30,
    deadline=None,
    # The same test runs for several interpreters: that is what a contract is.
    suppress_health_check=[HealthCheck.differing_executors],
)


class Cell(NamedTuple):
    """A cell, and what an interpreter that runs nothing plays back for it."""

    code: str
    played: Any


PRINTS = Cell("print('hello')", "hello")
SILENT = Cell("x = 1", None)
SUBMITS = Cell("SUBMIT(answer='42')", Submission({"answer": "42"}))
RAISES = Cell("raise ValueError('wrong')", CellError("ValueError: wrong"))
INVALID = Cell("x = (", SyntaxError("'(' was never closed"))
ASKS = Cell("print(ask('a'))", lambda _code, _variables, tools: str(tools["ask"]("a")))
ASKS_BY_NAME = Cell("print(ask(text='b'))", lambda _code, _variables, tools: str(tools["ask"](text="b")))
ANSWER = [{"name": "answer", "type": "str"}]

mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="unset")


class Recorder(BaseCallback):
    """Notes every interpreter event by name."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.inputs: dict[str, Any] = {}
        self.errors: list[BaseException | None] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_interpreter_"):
            return lambda **details: self.note(name.removeprefix("on_interpreter_"), details)
        return super().__getattribute__(name)

    def note(self, event: str, details: dict[str, Any]) -> None:
        self.events.append(event)
        if event.endswith("_start"):
            self.inputs[event] = details["inputs"]
        else:
            self.errors.append(details["exception"])


class LifecycleContract:
    """What every interpreter does, one that only plays back too."""

    make: ClassVar[Callable[..., Any]]

    @pytest.fixture(autouse=True)
    def closed_afterwards(self) -> Iterator[None]:
        self.opened: list[Any] = []
        yield
        for repl in self.opened:
            repl.shutdown()

    def prepare(self, _cells: tuple[Cell, ...], options: dict[str, Any]) -> Any:
        return type(self).make(**options)

    def open(self, *cells: Cell, **options: Any) -> Any:
        """Return an interpreter on which `cells` will be executed, in this order."""
        repl = self.prepare(cells, options)
        self.opened.append(repl)
        return repl

    def test_it_implements_the_protocol_of_dspy(self) -> None:
        """RLM, CodeAct and ProgramOfThought accept it; it says how its code runs."""
        repl = self.open()
        assert isinstance(repl, dspy.CodeInterpreter)
        assert isinstance(type(repl).execution_instructions, str)
        assert repl.tools == {}
        assert repl.output_fields is None
        assert repl.callbacks == []

    def test_what_it_was_given_is_copied(self) -> None:
        """Changing the dict of tools afterwards changes nothing; its own dict can be changed."""
        tools = {"ask": str}
        repl = self.open(tools=tools, output_fields=ANSWER)
        tools.clear()
        assert list(repl.tools) == ["ask"]
        assert repl.output_fields == ANSWER

    def test_starting_twice_is_starting_once(self) -> None:
        """`start` is idempotent, also after a cell ran."""
        repl = self.open(PRINTS)
        repl.start()
        repl.start()
        assert repl.execute(PRINTS.code) == "hello"
        repl.start()

    def test_the_first_cell_starts_it(self) -> None:
        """`start` need not be called."""
        recorder = Recorder()
        self.open(PRINTS, callbacks=[recorder]).execute(PRINTS.code)
        assert recorder.events == ["execute_start", "startup_start", "startup_end", "execute_end"]

    def test_shutting_down_twice_is_shutting_down_once(self) -> None:
        """`shutdown` is idempotent, also if nothing was started."""
        repl = self.open()
        repl.shutdown()
        repl.shutdown()

    def test_after_shutdown_nothing_runs(self) -> None:
        """A closed session is not silently replaced by a fresh one."""
        repl = self.open(PRINTS)
        repl.start()
        repl.shutdown()
        with pytest.raises(dspy.CodeInterpreterError, match="shut down") as caught:
            repl.execute(PRINTS.code)
        assert not isinstance(caught.value, dspy.CodeExecutionError)
        with pytest.raises(dspy.CodeInterpreterError, match="shut down"):
            repl.start()

    def test_it_is_a_context_manager(self) -> None:
        """`with` starts it and shuts it down."""
        with self.open(PRINTS) as repl:
            assert repl.execute(PRINTS.code) == "hello"
        with pytest.raises(dspy.CodeInterpreterError):
            repl.execute(PRINTS.code)

    def test_calling_it_executes(self) -> None:
        """`repl(code)` is `repl.execute(code)`."""
        assert self.open(PRINTS)(PRINTS.code) == "hello"

    def test_printed_output_is_a_str(self) -> None:
        """Without the newline at its end."""
        assert self.open(PRINTS).execute(PRINTS.code) == "hello"

    def test_a_silent_cell_gives_none(self) -> None:
        """Nothing printed, nothing shown."""
        assert self.open(SILENT).execute(SILENT.code) is None

    def test_a_submission_is_final(self) -> None:
        """It has the values by field, and is DSPy's FinalOutput."""
        result = self.open(SUBMITS, output_fields=ANSWER).execute(SUBMITS.code)
        assert isinstance(result, Submission)
        assert result == dspy.FinalOutput({"answer": "42"})

    def test_an_error_of_the_code_is_recoverable(self) -> None:
        """It says what was raised, and the session goes on."""
        repl = self.open(RAISES, PRINTS)
        with pytest.raises(CellError, match="ValueError: wrong"):
            repl.execute(RAISES.code)
        assert repl.execute(PRINTS.code) == "hello"

    def test_code_that_does_not_parse_is_a_syntax_error(self) -> None:
        """And the session goes on."""
        repl = self.open(INVALID, PRINTS)
        with pytest.raises(SyntaxError, match="was never closed"):
            repl.execute(INVALID.code)
        assert repl.execute(PRINTS.code) == "hello"

    def test_code_that_is_no_text_is_refused(self) -> None:
        """It is the host's mistake, so no CodeExecutionError."""
        with pytest.raises(dspy.CodeInterpreterError, match="str"):
            self.open(PRINTS).execute(b"print()")

    @pytest.mark.parametrize("name", ["1x", "a-b", "class", "SUBMIT", "__builtins__", "", 3])
    def test_a_tool_needs_a_name_that_code_can_call(self, name: Any) -> None:
        """Identifiers only, and none of the interpreter's own."""
        with pytest.raises(ValueError, match="tool name"):
            self.open(tools={name: str})

    @pytest.mark.parametrize("name", ["1x", "class", "SUBMIT", "__builtins__", "ask", 3])
    def test_a_variable_needs_a_name_of_its_own(self, name: Any) -> None:
        """Identifiers only, and none of the interpreter's own or a tool's."""
        with pytest.raises(dspy.CodeInterpreterError, match="variable name"):
            self.open(PRINTS, tools={"ask": str}).execute(PRINTS.code, {name: 1})

    @pytest.mark.parametrize("names", [["1x"], ["class"], ["a", "a"], [None]])
    def test_output_fields_need_names_that_code_can_give(self, names: list[Any]) -> None:
        """Identifiers, each once."""
        with pytest.raises(ValueError, match="output field"):
            self.open(output_fields=[{"name": name} for name in names])

    def test_a_bad_name_put_in_later_is_found_at_execute(self) -> None:
        """Tools may be changed between cells, and are checked again."""
        repl = self.open(PRINTS)
        repl.tools["not a name"] = str
        with pytest.raises(dspy.CodeInterpreterError, match="tool name"):
            repl.execute(PRINTS.code)

    def test_tools_are_called_by_position_and_by_name(self) -> None:
        """And what they return comes back."""
        repl = self.open(ASKS, ASKS_BY_NAME, tools={"ask": lambda text: text.upper()})
        assert repl.execute(ASKS.code) == "A"
        assert repl.execute(ASKS_BY_NAME.code) == "B"

    def test_a_dspy_tool_is_called_by_position_and_by_name(self) -> None:
        """A `dspy.Tool` itself takes names only, and code calls what its signature shows."""
        repl = self.open(ASKS, ASKS_BY_NAME, tools={"ask": dspy.Tool(lambda text: text.upper(), name="ask")})
        assert [repl.execute(ASKS.code), repl.execute(ASKS_BY_NAME.code)] == ["A", "B"]

    @pytest.mark.parametrize(
        ("args", "kwargs", "said"),
        [(["a", "b"], {}, "takes at most 1 arguments by position"), (["a"], {"text": "b"}, "multiple values")],
    )
    def test_a_dspy_tool_called_wrongly_says_so(self, args: list[Any], kwargs: dict[str, Any], said: str) -> None:
        """As Python does for a function."""
        repl = self.open(tools={"ask": dspy.Tool(lambda text: text, name="ask")})
        with pytest.raises(TypeError, match=said):
            repl.invoke_tool("ask", args, kwargs)

    def test_a_tool_changed_between_cells_takes_effect(self) -> None:
        """dspy.RLM puts its own tools into `tools` after the interpreter was made."""
        repl = self.open(ASKS, ASKS)
        repl.tools["ask"] = lambda _: "first"
        assert repl.execute(ASKS.code) == "first"
        repl.tools["ask"] = lambda _: "second"
        assert repl.execute(ASKS.code) == "second"

    def test_a_tool_may_be_async(self) -> None:
        """A plain call waits for its result."""

        async def ask(text: str) -> str:
            await asyncio.sleep(0)
            return text * 2

        assert self.open(ASKS, tools={"ask": ask}).execute(ASKS.code) == "aa"

    async def test_a_tool_may_be_async_inside_a_running_loop(self) -> None:
        """Also when `execute` itself is called on an event loop, as `dspy.RLM.acall` does."""

        async def ask(text: str) -> str:
            await asyncio.sleep(0)
            return text * 2

        assert self.open(ASKS, tools={"ask": ask}).execute(ASKS.code) == "aa"

    def test_a_tool_runs_in_the_context_of_its_execute(self) -> None:
        """`dspy.context`, traces and span parents survive; what the tool sets stays with the call."""
        seen = []

        def ask(_text: str) -> str:
            seen.append(mark.get())
            mark.set("set by the tool")
            return "ok"

        repl = self.open(ASKS, ASKS, tools={"ask": ask})
        for value in ("first", "second"):
            token = mark.set(value)
            repl.execute(ASKS.code)
            assert mark.get() == value
            mark.reset(token)
        assert seen == ["first", "second"]

    def test_a_callback_sees_start_execute_tool_and_shutdown(self) -> None:
        """Under the names that DSPy gives them, nested as they happened."""
        recorder = Recorder()
        repl = self.open(ASKS, tools={"ask": lambda text: text}, callbacks=[recorder])
        repl.start()
        repl.execute(ASKS.code, {"n": 1})
        repl.shutdown()
        assert recorder.events == [
            *("startup_start", "startup_end", "execute_start", "tool_call_start"),
            *("tool_call_end", "execute_end", "shutdown_start", "shutdown_end"),
        ]
        assert recorder.inputs["execute_start"] == {"code": ASKS.code, "variables": {"n": 1}}
        assert recorder.inputs["tool_call_start"] == {"tool_name": "ask", "args": ["a"], "kwargs": {}}

    def test_a_callback_of_the_settings_sees_it_too(self) -> None:
        """As tracing registers itself."""
        recorder = Recorder()
        with dspy.context(callbacks=[recorder]):
            self.open(PRINTS).execute(PRINTS.code)
        assert "execute_end" in recorder.events

    def test_a_callback_sees_the_error_of_a_cell(self) -> None:
        """The event ends with what was raised."""
        recorder = Recorder()
        with pytest.raises(CellError):
            self.open(RAISES, callbacks=[recorder]).execute(RAISES.code)
        assert isinstance(recorder.errors[-1], CellError)

    def test_two_cells_at_once_are_refused(self) -> None:
        """One session runs one cell at a time; the running one is not disturbed."""
        refused: list[BaseException] = []

        def ask(_text: str) -> str:
            try:
                repl.execute("1")
            except dspy.CodeInterpreterError as error:
                refused.append(error)
            return "went on"

        repl = self.open(ASKS, PRINTS, tools={"ask": ask})
        assert repl.execute(ASKS.code) == "went on"
        assert [type(error) for error in refused] == [dspy.CodeInterpreterError]
        assert repl.execute(PRINTS.code) == "hello"

    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt, asyncio.CancelledError, SystemExit])
    def test_an_interrupt_of_a_tool_reaches_the_caller(self, interrupt: type[BaseException]) -> None:
        """Ctrl-C and cancellation on the host are no errors of the cell."""

        def ask(_text: str) -> str:
            raise interrupt

        with pytest.raises(interrupt):
            self.open(ASKS, tools={"ask": ask}).execute(ASKS.code)

    def test_an_unknown_tool_is_refused(self) -> None:
        """`invoke_tool` knows what `tools` holds, no more."""
        with pytest.raises(dspy.CodeInterpreterError, match="Unknown tool"):
            self.open().invoke_tool("nothing", [], {})

    def test_unmodified_dspy_rlm_runs_on_it(self) -> None:
        """A turn that prints and a turn that submits."""
        repl = self.open(PRINTS, SUBMITS)
        prediction = run_dspy_rlm(repl, PRINTS.code, SUBMITS.code)
        assert prediction.answer == "42"
        assert [step["output"] for step in prediction.trajectory] == ["hello", "FINAL: {'answer': '42'}"]

    def test_unmodified_dspy_rlm_reads_its_errors(self) -> None:
        """Both kinds of error become output that the model sees, and the run goes on."""
        repl = self.open(RAISES, INVALID, SUBMITS)
        prediction = run_dspy_rlm(repl, RAISES.code, INVALID.code, SUBMITS.code)
        assert "ValueError: wrong" in prediction.trajectory[0]["output"]
        assert "was never closed" in prediction.trajectory[1]["output"]
        assert prediction.answer == "42"


def run_dspy_rlm(repl: Any, *turns: str, **options: Any) -> Any:
    """Run DSPy's own RLM on `repl` with a scripted model that writes `turns`."""
    lm = DummyLM([{"reasoning": "next", "code": f"```python\n{turn}\n```"} for turn in turns])
    rlm = dspy.RLM("question -> answer", interpreter_factory=lambda: repl, **options)
    with dspy.context(lm=lm):
        return rlm(question="what?")


class PlaybackContract(LifecycleContract):
    """For interpreters that run nothing: `make(results, **options)`."""

    def prepare(self, cells: tuple[Cell, ...], options: dict[str, Any]) -> Any:
        return type(self).make([cell.played for cell in cells], **options)


class ExecutionContract(LifecycleContract):
    """What every interpreter does that runs code. Values here are such as JSON can carry."""

    def test_state_persists(self) -> None:
        """Variables, functions, classes and imports."""
        repl = self.open()
        repl.execute("import math\nxs = [1]\ndef f(x): return math.floor(x)\nclass C:\n    n = 2")
        assert repl.execute("xs.append(C.n); print(xs, f(3.7))") == "[1, 2] 3"

    def test_two_sessions_share_nothing(self) -> None:
        """A name of one is no name of the other."""
        first, second = self.open(), self.open()
        first.execute("x = 1")
        with pytest.raises(CellError, match="NameError"):
            second.execute("x")

    @pytest.mark.parametrize(
        ("code", "value", "shown"),
        [
            ("40 + 2", 42, "42"),
            ("'text'", "text", "'text'"),
            ("print('a')\n0", 0, "a\n0"),
            ("print('a', end='')\n'b'", "b", "a\n'b'"),
            ("None", None, ""),
            ("x = 5", None, ""),
            ("print('a'); None", "a", "a"),
            ("", None, ""),
            ("# only a comment", None, ""),
            ("'''a docstring'''", "a docstring", "'a docstring'"),
            ("for i in range(2):\n    i", None, ""),
            ("1; 2", 2, "2"),
            ("print('é', '漢', '\\U0001f600')", "é 漢 \U0001f600", "é 漢 \U0001f600"),
            ("[true, false, null]", [True, False, None], "[True, False, None]"),
            ("true = 7\ntrue", 7, "7"),
            ("print('a\\n\\n')", "a", "a"),
            ("f'{1 + 1}'", "2", "'2'"),
            ("''", "", "''"),
            ("(1, {'a': (2.5, None)})", [1, {"a": [2.5, None]}], "(1, {'a': (2.5, None)})"),
            ("{1: 'x'}", {"1": "x"}, "{1: 'x'}"),
        ],
    )
    def test_a_cell_gives_its_last_value_else_what_it_printed(self, code: str, value: Any, shown: str) -> None:
        """As DSPy's interpreters do; `shown` has both, as in a notebook. JSON's constants are known."""
        repl = self.open()
        result = repl.execute(code)
        assert (result, type(result)) == (value, type(value))
        assert repl.shown == shown

    @pytest.mark.parametrize(
        "code",
        [
            "{3}",
            "object",
            "float('nan')",
            "[float('inf')]",
            "b'bytes'",
            "1j",
            "lambda: 1",
            "x = []\nx.append(x)\nx",
            "__import__('datetime').date(2025, 1, 2)",
            "x = []\nfor _ in range(60): x = [x]\nx",
            "[0] * 600_000",
            "'long ' * 300_000",
            "class C(dict):\n    __repr__ = lambda self: 'short'\nC(a='x' * 2_000_000)",
        ],
    )
    def test_a_value_that_json_does_not_carry_is_shown(self, code: str) -> None:
        """Or is too much of it: the text, with what was printed before, and the session goes on."""
        repl = self.open()
        result = repl.execute(f"print('printed')\n{code}")
        assert isinstance(result, str)
        assert result == repl.shown
        assert result.startswith("printed\n")
        assert repl.execute("1") == 1

    @EXAMPLES
    @given(value=JSON_VALUES)
    def test_a_last_value_comes_back_as_it_is(self, value: Any) -> None:
        """Whatever JSON knows."""
        with type(self).make() as repl:
            assert repl.execute("value", {"value": value}) == value

    def test_what_is_shown_is_of_the_last_cell(self) -> None:
        """Nothing is left of the one before, also if the cell raised."""
        repl = self.open()
        repl.execute("print('first')")
        with pytest.raises(CellError):
            repl.execute("print('second')\n1 / 0")
        assert repl.shown == ""
        repl.execute("SUBMIT(print('third'))")
        assert repl.shown == "third"

    @pytest.mark.parametrize(
        "hook", ["sys.setprofile", "sys.settrace", "threading.setprofile", "threading.settrace"]
    )
    def test_it_runs_in_a_process_that_is_profiled_or_traced(self, hook: str) -> None:
        """As by cProfile, coverage and debuggers; a cell can be interrupted there too."""
        module, name = hook.split(".")
        setter = getattr({"sys": sys, "threading": threading}[module], name)
        before = getattr(sys, name.replace("set", "get"))() if module == "sys" else None
        outcome: list[Any] = []

        def watch(*_: object) -> Any:
            return watch

        def run() -> None:
            if module == "sys":
                setter(watch)
            repl = self.open()
            repl.tools["running"] = lambda: threading.Timer(0.2, repl.interrupt).start()
            outcome.extend(repl.execute(code) for code in ("x = [n for n in range(100)]\nlen(x)", "x[-1] + 1"))
            try:
                repl.execute("def f(): pass\nrunning()\nwhile True: f()")
            except CellError:
                outcome.append("stopped")
            outcome.append(repl.execute("len(x)"))

        if module == "threading":
            setter(watch)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        setter(before)
        thread.join(SECONDS)
        assert outcome == [100, 100, "stopped", 100]

    def test_an_interrupt_of_code_that_awaits_says_where(self) -> None:
        """The interrupt itself comes from the event loop, which is not the model's."""
        repl = self.open()
        repl.tools["running"] = lambda: threading.Timer(0.2, repl.interrupt).start()
        repl.execute("import asyncio\nasync def work():\n    await asyncio.sleep(50)")
        with pytest.raises(CellError) as caught:
            repl.execute("running()\nawait work()")
        told = caught.value.traceback
        assert told.index("await work()") < told.index("await asyncio.sleep(50)")

    def test_a_cell_can_be_profiled_and_traced(self) -> None:
        """By the model's own code."""
        repl = self.open()
        repl.execute("import cProfile, io, pstats, sys\ndef f(n): return sum(range(n))")
        assert "f" in repl.execute(
            "p = cProfile.Profile()\np.runcall(f, 10)\n"
            "s = io.StringIO(); pstats.Stats(p, stream=s).print_stats(); print(s.getvalue())"
        )
        traced = repl.execute(
            "seen = []\nsys.settrace(lambda frame, *_: seen.append(frame.f_code.co_name))\nf(3)\n"
            "sys.settrace(None)\nprint(seen)"
        )
        assert "'f'" in traced

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_unmodified_flex_runs_on_it(self) -> None:
        """It reads the value of a last expression as JSON, also if the code printed before."""
        flex = dspy.Flex("question -> answer", interpreter_factory=self.open)
        with dspy.context(lm=DummyLM([{"answer": 'it\'s "42"'}])):
            assert flex(question="?").answer == 'it\'s "42"'

    def test_the_streams_are_captured_in_order(self) -> None:
        """stdout, stderr, and logging to it."""
        output = self.open().execute(
            "import sys, logging\n"
            "print('out')\n"
            "print('err', file=sys.stderr)\n"
            "sys.stdout.write('raw\\n')\n"
            "log = logging.Logger('own')\n"
            "log.addHandler(logging.StreamHandler())\n"
            "log.warning('logged')\n"
        )
        assert output.splitlines() == ["out", "err", "raw", "logged"]

    def test_a_stream_that_code_keeps_is_captured_in_later_cells(self) -> None:
        """A handler of logging keeps the stream of its first cell, a default argument too."""
        repl = self.open()
        repl.execute(
            "import sys, logging\n"
            "log = logging.Logger('own')\n"
            "log.addHandler(logging.StreamHandler())\n"
            "def say(text, file=sys.stdout): print(text, file=file)\n"
            "log.warning('one'); say('a')"
        )
        assert repl.execute("log.warning('two'); say('b'); print('c', file=sys.stderr)") == "two\nb\nc"

    def test_bytes_written_to_stdout_are_captured_as_utf_8(self) -> None:
        """`sys.stdout.buffer` is there, and a character may come in two pieces."""
        code = "import sys\nfor piece in (b'a\\xc3', b'\\xa9b'): _ = sys.stdout.buffer.write(piece)"
        assert self.open().execute(code) == "a\u00e9b"

    def test_help_prints(self) -> None:
        """As in a console, and it waits for nobody."""
        assert "Return the number of items" in self.open().execute("help(len)")

    def test_a_submit_in_a_thread_counts_and_prints_nothing(self) -> None:
        """It ends the thread by an exception, which is no error."""
        repl = self.open()
        submission = repl.execute(
            "import threading\nt = threading.Thread(target=SUBMIT, args=(3,)); t.start(); t.join()"
        )
        assert (submission.output, submission.printed) == ({"output": 3}, "")

    def test_output_is_captured_from_threads_of_the_cell(self) -> None:
        """Also from those of an executor."""
        output = self.open().execute(
            "import threading\n"
            "from concurrent.futures import ThreadPoolExecutor\n"
            "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n"
            "with ThreadPoolExecutor(2) as pool: list(pool.map(print, ['pool', 'pool']))\n"
        )
        assert output == "thread\npool\npool"

    def test_code_that_asks_for_utf_8_or_closes_stdout_goes_on(self) -> None:
        """Both are common in code written for scripts."""
        code = "import sys\nsys.stdout.reconfigure(encoding='utf-8')\nsys.stdout.flush()\nprint('é')"
        assert self.open().execute(code) == "é"

    def test_output_printed_before_an_error_is_kept(self) -> None:
        """In the error and, first, in its text."""
        repl = self.open()
        with pytest.raises(CellError) as caught:
            repl.execute("print('before')\n1 / 0")
        assert caught.value.output.strip() == "before"
        assert str(caught.value).startswith("before\nTraceback")
        assert str(caught.value).endswith("ZeroDivisionError: division by zero")

    def test_a_traceback_shows_the_lines_of_the_model_only(self) -> None:
        """Also those of earlier cells, none of the interpreter's or a library's."""
        repl = self.open()
        repl.execute("import json\ndef load(text):\n    return json.loads(text)  # here")
        with pytest.raises(CellError) as caught:
            repl.execute("\nload('{')  # there")
        lines = [line for line in caught.value.traceback.splitlines() if not set(line) <= set(" ~^")]
        assert lines[:-1] == [
            "Traceback (most recent call last):",
            '  File "<cell 2>", line 2, in <module>',
            "    load('{')  # there",
            '  File "<cell 1>", line 3, in load',
            "    return json.loads(text)  # here",
        ]
        assert lines[-1].startswith("json.decoder.JSONDecodeError: ")
        assert "raw_decode" not in caught.value.traceback

    def test_a_traceback_shows_causes(self) -> None:
        """`raise ... from ...` and errors inside `except`."""
        with pytest.raises(CellError) as caught:
            self.open().execute("try:\n    {}['k']\nexcept KeyError as e:\n    raise ValueError('v') from e")
        assert "KeyError: 'k'" in caught.value.traceback
        assert "direct cause" in caught.value.traceback

    def test_endless_recursion_is_an_error_of_reasonable_length(self) -> None:
        """And the session goes on."""
        repl = self.open()
        with pytest.raises(CellError, match="RecursionError") as caught:
            repl.execute("def f(n): return f(n + 1)\nf(0)")
        assert len(str(caught.value)) < 3_000
        assert repl.execute("1") == 1

    @pytest.mark.parametrize(
        ("code", "line"),
        [
            ("a = 1\nb = (", "b = ("),
            ("a = 1\nreturn a", "return a"),
            ("if True:\npass", "pass"),
            ("for x in range(3)\n    pass", "for x in range(3)"),
        ],
    )
    def test_a_syntax_error_shows_the_line(self, code: str, line: str) -> None:
        """With its number, and the number of the cell."""
        with pytest.raises(SyntaxError) as caught:
            self.open().execute(code)
        assert line in str(caught.value)
        assert '"<cell 1>", line ' in str(caught.value)
        assert "Error: " in str(caught.value)

    @pytest.mark.parametrize(
        "code", ["a\0b", "'\ud800'", "(" * 500 + ")" * 500, "x = " + "-" * 200_000 + "1", "1" * 10_000]
    )
    def test_source_that_the_compiler_refuses_is_a_syntax_error(self, code: str) -> None:
        """Whatever the compiler itself calls it; nothing ran, and the session goes on."""
        repl = self.open()
        with pytest.raises(SyntaxError):
            repl.execute("print('ran')\n" + code)
        assert repl.execute("1") == 1

    @pytest.mark.parametrize(
        "code", ["import sys; sys.exit()", "exit()", "quit(1)", "raise SystemExit('x')", "import sys; sys.exit(0)"]
    )
    def test_leaving_ends_nothing(self, code: str) -> None:
        """The model learns that the session goes on, and it does."""
        repl = self.open()
        repl.execute("x = 1")
        with pytest.raises(CellError, match="session and its variables are kept"):
            repl.execute(code)
        assert repl.execute("x") == 1

    @pytest.mark.parametrize("code", ["input()", "input('name? ')", "breakpoint()"])
    def test_waiting_for_a_person_is_an_error(self, code: str) -> None:
        """It would hang."""
        with pytest.raises(CellError, match="no user to answer"):
            self.open().execute(code)

    @pytest.mark.parametrize(
        "error", ["GeneratorExit", "BaseException('b')", "ExceptionGroup('g', [KeyError(1)])"]
    )
    def test_whatever_the_code_raises_is_its_error(self, error: str) -> None:
        """Base exceptions and groups too."""
        with pytest.raises(CellError, match=error.partition("(")[0]):
            self.open().execute(f"raise {error}")

    def test_an_error_that_cannot_be_printed_is_still_an_error(self) -> None:
        """Its methods are the model's code."""
        code = "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E"
        with pytest.raises(CellError, match="E"):
            self.open().execute(code)

    def test_a_long_error_is_cut(self) -> None:
        """A message of 10 MB is not what a model should read."""
        with pytest.raises(CellError, match="characters left out") as caught:
            self.open().execute("raise ValueError('x' * 10_000_000)")
        assert len(str(caught.value)) < 20_000

    def test_a_flood_keeps_its_head_and_tail(self) -> None:
        """100 MB of output come back within the cap, with the number of characters left out."""
        repl = self.open(max_output_chars=1_000)
        output = repl.execute("print('first')\nfor _ in range(10_000): print('x' * 10_000)\nprint('last')")
        assert output.startswith("first\n")
        assert output.endswith("\nlast")
        assert "... [100009011 characters left out] ..." in output
        assert len(output) < 1_100

    def test_a_flood_of_short_lines_is_no_slower(self) -> None:
        """A million writes; only their ends are kept."""
        output = self.open(max_output_chars=1_000).execute("for i in range(1_000_000): print(i)")
        assert output.startswith("0\n1\n")
        assert output.endswith("\n999999")

    def test_a_huge_last_value_is_cut(self) -> None:
        """A model that names its context sees the ends of it."""
        output = self.open(max_output_chars=1_000).execute("'a' * 10_000_000 + 'z'")
        assert output.startswith("'aaa")
        assert output.endswith("z'")
        assert len(output) < 1_100

    def test_variables_are_bound(self) -> None:
        """By name, before the cell."""
        assert self.open().execute("print(a, b['k'])", {"a": 1, "b": {"k": "é"}}) == "1 é"

    @EXAMPLES
    @given(value=JSON_VALUES)
    def test_variables_arrive_as_they_are(self, value: Any) -> None:
        """Checked by their repr."""
        with type(self).make() as repl:
            assert repl.execute("print(repr(value).encode('unicode_escape').decode())", {"value": value}) == (
                repr(value).encode("unicode_escape").decode()
            )

    def test_what_code_changed_stays_when_the_same_object_is_passed_again(self) -> None:
        """dspy.RLM passes the inputs at every turn."""
        items, text = [1], "long text"
        repl = self.open()
        repl.execute("items.append(2)\ntext = text.upper()", {"items": items, "text": text})
        assert repl.execute("print(items, text)", {"items": items, "text": text}) == "[1, 2] LONG TEXT"

    def test_another_object_under_the_same_name_is_bound(self) -> None:
        """Only the identical object is skipped."""
        repl = self.open()
        repl.execute("n = 0", {"n": [1]})
        assert repl.execute("n", {"n": [1]}) == [1]

    def test_a_name_that_is_passed_no_more_stays(self) -> None:
        """Variables are state."""
        repl = self.open()
        repl.execute("", {"n": 7})
        assert repl.execute("n") == 7

    def test_tools_and_submit_come_back_after_they_were_overwritten(self) -> None:
        """A model that calls its variable `ask` has lost it for one cell only."""
        repl = self.open(tools={"ask": lambda _: "answer"}, output_fields=ANSWER)
        repl.execute("ask = 1; SUBMIT = 2")
        assert repl.execute("print(ask('a'))") == "answer"
        assert repl.execute("SUBMIT('x')").output == {"answer": "x"}

    def test_a_tool_that_was_taken_away_is_gone(self) -> None:
        """With the next cell."""
        repl = self.open(tools={"ask": str})
        repl.execute("ask")
        del repl.tools["ask"]
        with pytest.raises(CellError, match="NameError"):
            repl.execute("ask")

    @EXAMPLES
    @given(value=JSON_VALUES)
    def test_values_cross_to_a_tool_and_back(self, value: Any) -> None:
        """As they are."""
        seen = []

        def ask(item: Any) -> Any:
            seen.append(item)
            return item

        with type(self).make(tools={"ask": ask}) as repl:
            assert repl.execute("ask(value) == value", {"value": value}) is True
        assert seen == [value]

    @pytest.mark.parametrize("digits", [20, 4_300, 5_000])
    def test_an_int_of_any_length_enters(self, digits: int) -> None:
        """Python writes none of more than 4,300 digits as text."""
        with type(self).make(tools={"ask": lambda: [10**digits, -(10**digits)]}) as repl:
            assert repl.execute("[n, -n] == ask()", {"n": 10**digits}) is True
        with type(self).make(tools={"ask": lambda: 10**digits}) as repl:
            assert repl.execute("ask() == 10 ** digits", {"digits": digits}) is True

    def test_a_tool_that_raises_raises_in_the_cell(self) -> None:
        """The code can catch it by its builtin type."""

        def ask(_text: str) -> str:
            raise LookupError("no such article")

        repl = self.open(tools={"ask": ask})
        output = repl.execute("try:\n    ask('a')\nexcept LookupError as e:\n    print('caught', e)")
        assert output == "caught no such article"

    def test_a_tool_that_raises_an_error_of_its_own_says_so(self) -> None:
        """Uncaught it is an error of the cell that names the tool's error."""

        class Refused(Exception):  # noqa: N818 (a name that no builtin has)
            pass

        def ask(_text: str) -> str:
            raise Refused("over budget")

        repl = self.open(tools={"ask": ask})
        assert repl.execute("try:\n    ask('a')\nexcept Exception as e:\n    print('caught')") == "caught"
        with pytest.raises(CellError, match=r"Refused: over budget") as caught:
            repl.execute("ask('a')")
        assert "ask('a')" in caught.value.traceback

    def test_a_tool_called_wrongly_is_an_error_of_the_cell(self) -> None:
        """A missing argument is for the model to repair."""
        with pytest.raises(CellError, match="TypeError"):
            self.open(tools={"ask": lambda text: text}).execute("ask()")

    def test_tools_called_from_threads_run_at_once(self) -> None:
        """Each in a copy of the execution's context."""
        together = threading.Barrier(4)
        seen = []

        def ask(text: str) -> str:
            together.wait(SECONDS)
            seen.append(mark.get())
            return text.upper()

        repl = self.open(tools={"ask": ask})
        token = mark.set("outer")
        output = repl.execute(
            "from concurrent.futures import ThreadPoolExecutor\n"
            "with ThreadPoolExecutor(4) as pool: print(list(pool.map(ask, 'abcd')))"
        )
        mark.reset(token)
        assert output == "['A', 'B', 'C', 'D']"
        assert seen == ["outer"] * 4

    def test_an_interrupt_of_a_tool_cannot_be_caught_by_the_code(self) -> None:
        """Ctrl-C on the host is the caller's, whatever the cell's `except:` says."""

        def ask(_text: str) -> str:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.open(tools={"ask": ask}).execute("try:\n    ask('a')\nexcept BaseException:\n    pass")

    def test_await_works_at_the_top_level(self) -> None:
        """Also for tasks that the last expression waits for."""
        repl = self.open()
        code = "import asyncio\nt = asyncio.create_task(asyncio.sleep(0, 'slept'))\nprint('first')\nawait t"
        assert repl.execute(code) == "slept"
        assert repl.shown == "first\n'slept'"
        assert repl.execute("async def f(): return 1\nprint(sum([await f(), await f()]))") == "2"

    async def test_await_works_at_the_top_level_inside_a_running_loop(self) -> None:
        """Also when `execute` itself is called on an event loop; `asyncio.run` in a cell too."""
        repl = self.open()
        assert repl.execute("import asyncio\nawait asyncio.sleep(0, 'slept')") == "slept"
        assert repl.execute("asyncio.run(asyncio.sleep(0, 'ran'))") == "ran"

    def test_an_error_behind_await_shows_the_lines_of_the_model_only(self) -> None:
        """None of asyncio's."""
        with pytest.raises(CellError) as caught:
            self.open().execute("async def f():\n    1 / 0\nawait f()")
        assert '"<cell 1>", line 2, in f' in caught.value.traceback
        assert "asyncio" not in caught.value.traceback

    def test_async_tools_can_be_awaited_and_gathered(self) -> None:
        """In an async cell they run at once."""
        together = threading.Barrier(3)

        async def ask(text: str) -> str:
            await asyncio.to_thread(together.wait, SECONDS)
            return text.upper()

        code = "import asyncio\nawait asyncio.gather(ask('a'), ask('b'), ask('c'))"
        assert self.open(tools={"ask": ask}).execute(code) == ["A", "B", "C"]

    @pytest.mark.parametrize(
        ("keeps", "code"),
        [
            ("done = SUBMIT", "done(answer='x')"),
            ("import functools\ndone = functools.partial(SUBMIT, answer='x')", "done()"),
            ("ends = {'by': SUBMIT}", "ends['by'](answer='x')"),
            ("class Ends:\n    by = SUBMIT", "Ends.by(answer='x')"),
            ("def done(answer, by=SUBMIT):\n    by(answer=answer)", "done('x')"),
        ],
    )
    def test_submit_works_under_another_name_in_a_later_cell(self, keeps: str, code: str) -> None:
        """Code keeps functions in variables, and calls them when it is ready."""
        repl = self.open(output_fields=ANSWER)
        repl.execute(keeps)
        assert repl.execute(code).output == {"answer": "x"}

    def test_a_submission_keeps_what_was_printed(self) -> None:
        """Before it."""
        result = self.open(output_fields=ANSWER).execute("print('looked')\nSUBMIT(answer='x')")
        assert result.printed.strip() == "looked"

    @pytest.mark.parametrize(
        ("fields", "call", "values"),
        [
            (None, "SUBMIT(1)", {"output": 1}),
            (None, "SUBMIT({'a': 1})", {"output": {"a": 1}}),
            (["answer"], "SUBMIT(1)", {"answer": 1}),
            (["answer"], "SUBMIT({'answer': 1})", {"answer": 1}),
            (["answer"], "SUBMIT({'other': 1})", {"answer": {"other": 1}}),
            (["answer"], "SUBMIT([1, null])", {"answer": [1, None]}),
            (["a", "b"], "SUBMIT(1, 2)", {"a": 1, "b": 2}),
            (["a", "b"], "SUBMIT(b=2, a=1)", {"a": 1, "b": 2}),
            (["a", "b"], "SUBMIT(1, b=2)", {"a": 1, "b": 2}),
            (["a", "b"], "SUBMIT({'b': 2, 'a': 1})", {"a": 1, "b": 2}),
        ],
    )
    def test_submit_takes(self, fields: list[str] | None, call: str, values: dict[str, Any]) -> None:
        """Positions in the order of the fields, names, or one dict of them all."""
        repl = self.open(output_fields=fields and [{"name": name} for name in fields])
        assert repl.execute(call) == dspy.FinalOutput(values)

    @pytest.mark.parametrize(
        ("call", "problem"),
        [
            ("SUBMIT()", "missing a required argument: 'a'"),
            ("SUBMIT(1)", "missing a required argument: 'b'"),
            ("SUBMIT(1, 2, 3)", "too many positional arguments"),
            ("SUBMIT(1, a=1)", "multiple values for argument 'a'"),
            ("SUBMIT(a=1, b=2, c=3)", "unexpected keyword argument 'c'"),
            ("SUBMIT({'a': 1})", "missing a required argument: 'b'"),
        ],
    )
    def test_a_wrong_submit_says_how_to_call_it(self, call: str, problem: str) -> None:
        """So that the model can repair it; the session goes on."""
        repl = self.open(output_fields=[{"name": "a"}, {"name": "b"}])
        with pytest.raises(CellError, match=problem) as caught:
            repl.execute(call)
        assert "SUBMIT(a=..., b=...)" in str(caught.value)
        assert repl.execute("SUBMIT(1, 2)").output == {"a": 1, "b": 2}

    @pytest.mark.parametrize(
        "code",
        [
            "try:\n    SUBMIT('x')\nexcept Exception:\n    SUBMIT('caught')",
            "try:\n    SUBMIT('x')\nexcept:\n    SUBMIT('caught')",
            "try:\n    SUBMIT('x')\nexcept BaseException:\n    pass\n1 / 0",
            "import concurrent.futures as f\nwith f.ThreadPoolExecutor(1) as pool: pool.submit(SUBMIT, 'x')",
            "async def f(): SUBMIT('x')\nawait f()",
            "def f(): SUBMIT('x')\n[f() for _ in range(3)]",
        ],
    )
    def test_the_first_submit_counts_wherever_it_is_called(self, code: str) -> None:
        """A bare `except:` around it, a thread or a coroutine do not lose it."""
        assert self.open(output_fields=ANSWER).execute(code) == dspy.FinalOutput({"answer": "x"})

    def test_output_fields_changed_between_cells_take_effect(self) -> None:
        """dspy.RLM sets them after the interpreter was made."""
        repl = self.open()
        repl.output_fields = [{"name": "total", "type": "int"}]
        assert repl.execute("SUBMIT(3)").output == {"total": 3}

    def test_help_tells_how_to_submit_and_what_a_tool_does(self) -> None:
        """The docstrings of tools are at hand in the REPL."""

        def search(query: str) -> str:
            """Find articles."""
            return query

        repl = self.open(tools={"search": search}, output_fields=ANSWER)
        output = repl.execute("print(search.__name__, search.__doc__, SUBMIT.__doc__)")
        assert output.startswith("search Find articles.")
        assert "SUBMIT(answer=...)" in output

    def test_what_cells_define_can_be_used_as_in_a_module(self) -> None:
        """Dataclasses with later names, pickle, type hints, generators, `__name__`, `global`."""
        repl = self.open()
        repl.execute("from __future__ import annotations")
        repl.execute(
            "import dataclasses, pickle, typing\n"
            "@dataclasses.dataclass\n"
            "class Node:\n    value: int\n    next: Node | None = None\n    kind: typing.ClassVar[str] = 'n'\n"
            "def count():\n    global calls\n    calls = 1\n    yield from range(3)\n"
        )
        assert repl.execute("pickle.loads(pickle.dumps(Node(1, Node(2))))") == (
            "Node(value=1, next=Node(value=2, next=None))"
        )
        assert repl.execute("sorted(typing.get_type_hints(Node))") == ["kind", "next", "value"]
        assert repl.execute("print(list(count()), calls)") == "[0, 1, 2] 1"
        assert repl.execute("if __name__ == '__main__': print('main')") == "main"

    def test_source_of_what_cells_define_can_be_read(self) -> None:
        """`inspect.getsource` finds it."""
        repl = self.open()
        repl.execute("def f():\n    return 'mine'")
        assert "return 'mine'" in repl.execute("import inspect\nprint(inspect.getsource(f))")

    @pytest.mark.filterwarnings("ignore:Passing OpenAI-style message:DeprecationWarning")
    def test_dspy_sub_agents_run_on_the_host(self) -> None:
        """dspy.RLM's stand-in for `dspy` works in it, and the host's `dspy` stays in place."""
        lm = DummyLM(
            [
                {"reasoning": "ask", "code": "import dspy\nr = dspy.Predict('q -> a')(q='x')\nprint(r.a)"},
                {"a": "from the sub-model"},
                {"reasoning": "done", "code": "SUBMIT(r.a)"},
            ]
        )
        before = dspy.Predict
        with dspy.context(lm=lm):
            rlm = dspy.RLM("question -> answer", interpreter_factory=self.open)
            prediction = rlm(question="?")
        assert prediction.answer == "from the sub-model"
        assert prediction.trajectory[0]["output"] == "from the sub-model"
        assert dspy.Predict is before

    def test_unmodified_dspy_rlm_offers_tools_and_llm_query(self) -> None:
        """Both are called from the cell and run on the host."""

        def search(query: str) -> str:
            return f"found {query}"

        code = "SUBMIT(search(query='x') + ', ' + ', '.join(llm_query_batched(['p', 'q'])))"
        prediction = run_dspy_rlm(self.open(), code, tools=[search], sub_lm=lambda prompt: [f"answer to {prompt}"])
        assert prediction.answer == "found x, answer to p, answer to q"

    async def test_unmodified_dspy_rlm_runs_on_it_async(self) -> None:
        """`acall` executes on its event loop."""
        lm = DummyLM([{"reasoning": "", "code": "import asyncio\nSUBMIT(await asyncio.sleep(0, question))"}])
        with dspy.context(lm=lm):
            rlm = dspy.RLM("question -> answer", interpreter_factory=self.open)
            assert (await rlm.acall(question="what?")).answer == "what?"

    def test_unmodified_program_of_thought_reads_a_last_value(self) -> None:
        """It appends the name that the last line assigns, and reads its value."""
        lm = DummyLM(
            [
                {"reasoning": "compute", "generated_code": "```python\nprint('on it')\nanswer = 6 * 7\n```"},
                {"reasoning": "read", "answer": "42"},
            ]
        )
        with pytest.warns(DeprecationWarning, match="ProgramOfThought"):
            program = dspy.ProgramOfThought("question -> answer", interpreter_factory=self.open)
        with dspy.context(lm=lm):
            program(question="6 * 7?")
        assert "[[ ## code_output ## ]]\n42\n" in lm.history[-1]["messages"][-1]["content"]

    def test_unmodified_program_of_thought_runs_on_it(self) -> None:
        """It gives no output fields and reads a submission or what was printed."""
        lm = DummyLM(
            [
                {"reasoning": "compute", "generated_code": "```python\nSUBMIT({'answer': 6 * 7})\n```"},
                {"reasoning": "read", "answer": "42"},
            ]
        )
        with pytest.warns(DeprecationWarning, match="ProgramOfThought"):
            program = dspy.ProgramOfThought("question -> answer", interpreter_factory=self.open)
        with dspy.context(lm=lm):
            assert program(question="6 * 7?").answer == "42"

    def test_unmodified_code_act_runs_on_it(self) -> None:
        """It defines its tools by their source."""
        lm = DummyLM(
            [
                {"generated_code": "```python\nprint(doubled(21))\n```", "finished": True},
                {"reasoning": "read", "answer": "42"},
            ]
        )
        with pytest.warns(DeprecationWarning, match="CodeAct"):
            act = dspy.CodeAct("question -> answer", tools=[doubled], interpreter_factory=self.open)
        with dspy.context(lm=lm):
            prediction = act(question="2 * 21?")
        assert prediction.answer == "42"
        assert prediction.trajectory["code_output_0"] == '"42"'  # it printed


def doubled(number: int) -> int:
    """Return twice the number."""
    return 2 * number
