"""The bench of libraries side by side: its scripted model, the bridge to any LM, its tables and its forecast."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy.testing import ScriptedLM

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = ROOT / "experiment"
sys.path[:0] = [str(EXPERIMENT), str(EXPERIMENT / "bench"), str(EXPERIMENT / "study")]

import accuracy_report  # noqa: E402  # scripts of these folders are run, not installed
import dialects  # noqa: E402
import marked  # noqa: E402
import measures  # noqa: E402
import processes  # noqa: E402
import row_file  # noqa: E402
import scripted_server  # noqa: E402
import side_by_side  # noqa: E402
import side_by_side_readme  # noqa: E402
import side_by_side_report  # noqa: E402
from bridge import Bridge  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

ASYNC = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


@pytest.fixture(scope="module")
def server() -> Iterator[processes.ScriptedServer]:
    with processes.scripted_server() as running:
        yield running


def ask(base_url: str, *texts: str, key: str = "none", **settings: Any) -> str:
    """Send a chat of user messages; return the reply's text."""
    messages = [{"role": "user", "content": text} for text in texts]
    request = urllib.request.Request(
        f"{base_url}/chat/completions",
        data=json.dumps({"model": "m", "messages": messages, **settings}).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def test_a_request_that_begins_as_an_earlier_one_did_counts_as_prefix(server: processes.ScriptedServer) -> None:
    run = server.begin(dialects.Script("ours", turns=3, print_chars=7))
    first = ask(server.base_url(run), "look")
    ask(server.base_url(run), "look", first)
    counts = server.end(run)
    assert (counts["requests"], counts["turn"]) == ({"root": 2}, 2)
    before, after = len("user\1look"), len("user\1look") + len("\0user\1") + len(first)
    assert (counts["chars"], counts["prefix_chars"]) == (before + after, before)


def test_a_prompt_with_a_number_is_the_sub_models_and_no_turn(server: processes.ScriptedServer) -> None:
    run = server.begin(dialects.Script("ours", turns=2, subs=3))
    assert ask(server.base_url(run), "[[sub 2]] Name the number.") == "answer 2"
    counts = server.end(run)
    assert (counts["turn"], counts["delivered"]) == (0, {"2": 1})


@pytest.mark.parametrize(("fault", "paid"), [("429", 1), ("500", 1), ("garbage", 2), ("cut", 2), ("hang", 2)])
def test_a_fault_hits_the_request_it_is_set_for_and_a_retry_gets_the_same_turn(
    server: processes.ScriptedServer, fault: str, paid: int
) -> None:
    script = dialects.Script("ours", turns=3, fault=fault, fault_first=0, fault_every=3, hang_seconds=0.1)
    run = server.begin(script)
    with pytest.raises((OSError, ValueError, HTTPException)):
        ask(server.base_url(run), "look")
    assert ask(server.base_url(run), "look") == dialects.reply(script, 0)
    counts = server.end(run)
    assert (counts["faults"], counts["paid"], counts["turn"]) == ({"root": 1}, {"root": paid}, 1)


@given(st.text("ab", max_size=30), st.text("ab", max_size=30))
def test_the_shared_prefix_is_the_longest(one: str, other: str) -> None:
    found = scripted_server.shared_prefix(one, other)
    assert one[:found] == other[:found]
    assert one[: found + 1] != other[: found + 1] or found == len(one) == len(other)


@pytest.mark.parametrize("name", [name for name in dialects.DIALECTS if name != "direct"])
def test_every_dialect_writes_code_that_compiles_on_every_turn(name: str) -> None:
    scripts = [
        dialects.Script(name, turns=3, print_chars=10),
        dialects.Script(name, subs=5),
        *(dialects.Script(name, turns=4, cell=cell, canary="/x") for cell in dialects.CELLS),
    ]
    for script in scripts:
        for turn in range(script.turns):
            compile(script.code(turn), "cell", "exec", flags=ASYNC)
            assert script.code(turn) in dialects.reply(script, turn)


@pytest.mark.parametrize("name", ["ours", "ours, local", "dspy.RLM"])
def test_an_engine_plays_the_script_to_its_end(server: processes.ScriptedServer, name: str) -> None:
    engine = processes.ENGINES[name]
    bench = measures.Bench(server)
    with processes.Worker(engine) as worker:
        ended = bench.play(worker, [dialects.Script(engine.dialect, turns=3, print_chars=50)], 5_000)
        assert ended.outcomes[0]["answer"] == "5000"
        assert ended.counts[0]["requests"] == {"root": 3}
        ended = bench.play(worker, [dialects.Script(engine.dialect, subs=4)], 1_000)
        assert ended.outcomes[0]["answer"] == "4"
        assert worker.ask({"op": "health"}, 20)["cwd"]


def test_a_worker_that_takes_too_much_memory_is_ended_and_says_so(server: processes.ScriptedServer) -> None:
    engine = processes.ENGINES["ours, local"]
    with processes.Worker(engine, most_bytes=300 << 20) as worker:
        script = dialects.Script(engine.dialect, turns=2, print_chars=10)
        with pytest.raises(processes.EngineDied, match="more than 300 MiB"):
            measures.Bench(server).play(worker, [script] * 40, 400_000_000)
        assert worker.tree() == []


def test_a_bridge_counts_the_calls_of_each_run_apart() -> None:
    lm = ScriptedLM(["one two", "three", "four"])
    with Bridge(lm) as bridge:
        assert ask(bridge.base_url("a"), "x", key=bridge.key) == "one two"
        assert ask(bridge.base_url("a"), "x", key=bridge.key) == "three"
        assert ask(bridge.base_url("b"), "x", key=bridge.key) == "four"
        spent = bridge.usage("a")
    assert (spent["calls"], spent["output_tokens"], bridge.usage("b")["calls"]) == (2, 3, 1)


def test_a_bridge_asks_with_the_settings_of_the_lm_and_of_the_request() -> None:
    """DSPy adds an LM's own to no request that comes whole: replies without an end would have none."""
    lm = ScriptedLM(["yes", "yes"]).copy(max_tokens=77, temperature=0.5)
    with Bridge(lm) as bridge:
        ask(bridge.base_url(), "x", key=bridge.key)
        shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
        ask(bridge.base_url(), "x", key=bridge.key, max_tokens=5, response_format=shape)
    asked = [call["request"].config for call in lm.history]
    assert [(config.max_tokens, config.temperature) for config in asked] == [(77, 0.5), (5, 0.5)]
    assert asked[1].response_format == {"type": "json_schema", "name": "n", "schema": {"type": "object"}}


def test_a_bridge_gives_a_request_to_the_lm_that_it_names() -> None:
    with Bridge(ScriptedLM(["root"]), others={"m": ScriptedLM(["sub"])}) as bridge:
        assert ask(bridge.base_url(), "x", key=bridge.key) == "sub"


@pytest.mark.parametrize(
    ("reply", "status"),
    [(dspy.ContextWindowExceededError(message="too long"), 400), (ValueError("broken"), 500)],
)
def test_an_error_of_the_lm_reaches_the_client_and_the_bridge_goes_on(reply: Any, status: int) -> None:
    with Bridge(ScriptedLM([reply, "fine"])) as bridge:
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(bridge.base_url(), "x", key=bridge.key)
        assert caught.value.code == status
        told = caught.value.read().decode()
        assert "too long" in told or "broken" in told
        assert ask(bridge.base_url(), "x", key=bridge.key) == "fine"


def test_a_bridge_refuses_whoever_does_not_know_its_key() -> None:
    with Bridge(ScriptedLM(["secret"])) as bridge, pytest.raises(urllib.error.HTTPError, match="401"):
        ask(bridge.base_url(), "x", key="guess")


def row(engine: str, **values: Any) -> dict[str, Any]:
    return {"engine": engine, "measure": "long run", "setting": "", **values}


def test_targets_compare_with_the_best_peer_that_did_not_fail() -> None:
    rows = [
        row("ours", chars=100),
        row("a", chars=1_000),
        row("b", chars=500),
        row("c", chars=1, failed="it died"),
        row("direct", chars=2),
    ]
    lines = side_by_side_report.target_lines(side_by_side_report.grouped(rows))
    (line,) = [line for line in lines if "at most 1/5" in line and "characters" in line]
    assert "| 100 | 500 (b) | 0.2 | yes |" in line


def test_an_engine_that_failed_has_its_reason_in_the_table() -> None:
    lines = side_by_side_report.table_lines("long run", "", [row("a", failed="no | way")])
    assert lines[-1].startswith("| a | no / way |")


def accuracy_row(**values: Any) -> dict[str, Any]:
    settings = {"model": "m", "sub_model": "", "turns": 5, "calls": 9, "output_chars": 99, "policy": ""}
    made = {"engine": "ours", "family": "count", "chars": 10, "split": "dev", "right": True, "error": None}
    return {**settings, **made, "input_tokens": 90, "output_tokens": 10, "cost": 0.5, "seconds": 2.0, **values}


def test_a_forecast_multiplies_the_mean_of_the_pilot_by_the_runs_left() -> None:
    rows = [accuracy_row(), accuracy_row(cost=1.5, seconds=4.0), accuracy_row(model="other", cost=99.0)]
    settings = {name: rows[0][name] for name in ("model", "sub_model", "turns", "calls", "output_chars", "policy")}
    told = accuracy_report.forecast(rows, [{"engine": "ours", "family": "count", "chars": 10}] * 30, settings)
    assert "In all about 3,000 tokens, $30.00, 1.5 minutes." in told


def test_a_forecast_without_a_price_says_that_it_knows_none() -> None:
    rows = [accuracy_row(cost=None)]
    settings = {name: rows[0][name] for name in ("model", "sub_model", "turns", "calls", "output_chars", "policy")}
    left = [{"engine": "ours", "family": "count", "chars": 10}, {"engine": "rlms", "family": "count", "chars": 10}]
    told = accuracy_report.forecast(rows, left, settings)
    assert "and what has no known price" in told
    assert "no run to judge by" in told


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, "right"),
        ({"right": False, "answer": "x"}, "wrong"),
        ({"right": False, "answer": ""}, "no answer"),
        ({"right": False, "error": "dead: no answer within 5 s"}, "dead"),
        ({"right": False, "error": "LMError: 500"}, "LMError"),
    ],
)
def test_what_became_of_a_run_is_named_by_its_kind(values: dict[str, Any], kind: str) -> None:
    assert accuracy_report.outcome_of(accuracy_row(**values)) == kind


def test_the_native_example_without_its_library_names_the_extra(tmp_path: Path) -> None:
    program = (
        "import runpy, sys; sys.modules['rlm'] = None; sys.argv = ['x', '--model', 'openai/m']; "
        f"runpy.run_path({str(EXPERIMENT / 'rlm_read_big_article.py')!r}, run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(EXPERIMENT)])}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "uv sync --extra embedded --extra rlms" in done.stderr


NATIVE = """
import runpy, sys
import dspy
from rlm_dspy.testing import ScriptedLM
find = "```repl\\nprint(context.count('Polly'))\\nprint(llm_query_batched(['a', 'b']))\\n```"
submit = '```repl\\nanswer["content"] = "38,200"\\nanswer["ready"] = True\\n```'
dspy.configure(lm=ScriptedLM([find, "yes", "yes", "```repl\\n1 / 0\\n```", submit]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_native_example_prints_the_summary_that_the_other_prints(tmp_path: Path) -> None:
    pytest.importorskip("rlm", reason="needs the extra rlms")
    done = subprocess.run(
        [sys.executable, "-c", NATIVE, str(EXPERIMENT / "rlm_read_big_article.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(EXPERIMENT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.partition("=== summary\n")[2]
    summary = dict(line.split(maxsplit=1) for line in printed.splitlines()[:4])
    assert summary == {
        "answer": "38,200",
        "stop": "submitted",
        "turns": "3, of which 1 failed",
        "sub-calls": "2, of which 0 failed",
    }
    assert list(tmp_path.glob("logs/*.jsonl"))


def test_the_short_form_in_the_documentation_is_what_the_rows_say() -> None:
    """It is made by the bench, and by nobody else."""
    written = side_by_side_readme.short_form(side_by_side_report.grouped(row_file.read(side_by_side.RESULTS)))
    assert marked.between_marks(side_by_side_readme.NAME, written) in marked.PAGE.read_text(encoding="utf-8")


def side_by_side_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the bench as a stranger does."""
    command = [sys.executable, str(EXPERIMENT / "bench" / "side_by_side.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.by_hand
def test_a_stranger_repeats_a_table_of_an_engine_apart_from_those_of_the_repository(tmp_path: Path) -> None:
    """The old row stands until the new one is there; a row that a kill cut short is left out."""
    ours = ["--engine", "ours, local", "--only", "long run", "--into", "mine"]
    kept = row_file.read(side_by_side.RESULTS)
    done = side_by_side_in(tmp_path, *ours)
    assert done.returncode == 0, done.stderr
    assert "The tables are in mine/RESULTS.md." in done.stdout
    rows = row_file.read(tmp_path / "mine" / "side_by_side.jsonl")
    assert [row["measure"] for row in rows] == ["about", "long run"]
    assert "ours, local" in (tmp_path / "mine" / "RESULTS.md").read_text()
    with (tmp_path / "mine" / "side_by_side.jsonl").open("a") as file:
        file.write('{"engine": "ours, lo')
    again = side_by_side_in(tmp_path, *ours)
    assert "1 rows were there already: --again measures them anew" in again.stdout
    assert "cut short" in again.stderr
    assert row_file.read(side_by_side.RESULTS) == kept


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--engine", "magic"], "There are: ours;"), (["--only", "magic"], "bad cells raise")],
)
def test_a_name_that_the_bench_does_not_know_is_answered_with_those_it_does(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = side_by_side_in(tmp_path, *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_a_file_of_rows_with_a_broken_line_is_told_by_name_and_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a":\n{"a": 3}\n')
    with pytest.raises(SystemExit, match=r"rows\.jsonl, line 2"):
        row_file.read(path)


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3), max_size=6), st.booleans())
def test_rows_are_read_as_they_were_appended_also_behind_one_cut_short(
    tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]], torn: bool
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    for row in written:
        row_file.append(path, row)
    assert row_file.read(path) == written
    if torn:
        with path.open("a") as file:
            file.write('{"a": ')
        assert row_file.read(path) == written
        row_file.append(path, {"next": 1})
        assert row_file.read(path) == [*written, {"next": 1}]
