"""The beginnings of conversations on disk: who finds them, what is never used, and what is deleted."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from dspy import lm15

from rlm_dspy.embedded.engine import embedded_lm
from rlm_dspy.embedded.model_cache import prompts_folder, remove
from rlm_dspy.embedded.model_catalog import CATALOGUE
from rlm_dspy.embedded.saved_prompts import Beginnings, PromptFiles, files_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import dspy

SYSTEM = "You are a librarian. You answer in one short sentence and never invent a book. " * 16
PROGRAM = f"""
import logging; logging.disable()
from dspy import lm15
from rlm_dspy.embedded.engine import embedded_lm
lm = embedded_lm(slots=1, cache=False)
for day in (1, 2):
    asked = (lm15.Message.user(f"A book for day {{day}}?"),)
    config = lm15.Config(max_tokens=4)
    reply = lm(lm15.Request(model=lm.model, system={SYSTEM!r}, messages=asked, config=config))
    print(reply.usage.cache_read_tokens > 200, repr(reply.text))
"""


@pytest.fixture
def models(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of models, without saved prompts."""
    monkeypatch.setenv("RLM_DSPY_MODELS", str(tmp_path))
    (tmp_path / smollm2.name).symlink_to(smollm2)
    return tmp_path


def run() -> list[str]:
    """Ask two questions in another process; return whether their beginnings were cached, and the replies."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def saved(models: Path) -> list[Path]:
    return [path for path in models.glob(".prompts/*/*") if path.is_file()]


def ask(lm: dspy.LM, question: str, *before: lm15.Message, system: str = SYSTEM) -> lm15.Response:
    messages = (*before, lm15.Message.user(question))
    config = lm15.Config(max_tokens=4)
    return lm(lm15.Request(model=lm.model, system=system, messages=messages, config=config))


@pytest.fixture
def lm(models: Path) -> Iterator[dspy.LM]:
    """Hold a model that is loaded anew for each test."""
    lm = embedded_lm("smollm2-135m", n_ctx=1_024, slots=3, cache=False)
    yield lm
    lm.engine.close()


def test_the_next_process_does_not_read_the_beginning_again(models: Path) -> None:
    first, second = run()
    assert (first.split()[0], second.split()[0]) == ("False", "True")
    (file,) = saved(models)
    assert run() == [first.replace("False", "True", 1), second]
    assert saved(models) == [file]


def test_a_torn_file_is_deleted_and_the_beginning_read_and_saved_again(models: Path, lm: dspy.LM) -> None:
    reply = ask(lm, "Which book?")
    lm.engine.close()
    (file,) = saved(models)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    again = ask(lm, "Which book?")
    assert (again.text, again.usage.cache_read_tokens) == (reply.text, 0)
    assert [path.stat().st_size for path in saved(models)] == [len(content)]


def test_they_can_be_turned_off(models: Path, lm: dspy.LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_DSPY_SAVED_PROMPTS", "0")
    ask(lm, "Which book?")
    assert ask(lm, "And on day 2?").usage.cache_read_tokens > 200
    assert not (models / ".prompts").exists()


def test_a_size_that_is_no_number_is_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_DSPY_SAVED_PROMPTS", "1 GB")
    with pytest.raises(ValueError, match=r"RLM_DSPY_SAVED_PROMPTS must be a number of megabytes.*'1 GB'"):
        files_of("a-model")


def test_a_folder_that_cannot_be_written_turns_them_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLM_DSPY_MODELS", str(tmp_path / "file"))
    assert files_of("a-model") is None


def test_conversations_that_begin_alike_at_once_read_the_beginning_once(lm: dspy.LM) -> None:
    def tokens_read(name: str) -> int:
        usage = ask(lm, f"A book for {name}?").usage
        return int(usage.input_tokens - usage.cache_read_tokens)

    with ThreadPoolExecutor(3) as pool:
        few, few_too, all_of_it = sorted(pool.map(tokens_read, ("Ann", "Bob", "Cy")))
    assert few <= few_too < 50
    assert all_of_it > 200


def test_only_what_all_runs_share_is_saved(models: Path, lm: dspy.LM) -> None:
    """The file has the state after the demos, and not the document behind them."""
    demo = (lm15.Message.user("Who?"), lm15.Message.assistant("Ann."))
    reply = ask(lm, "A long document. " * 75, *demo)
    (file,) = saved(models)
    _, _, tokens = struct.unpack_from("<III", file.read_bytes())
    assert 200 < tokens < reply.usage.input_tokens - 300


def test_later_turns_and_short_beginnings_are_not_saved(models: Path, lm: dspy.LM) -> None:
    said: list[lm15.Message] = []
    for question in ("Tell me. " * 120, "And then?"):
        reply = ask(lm, question, *said, system="Be brief.")
        said += [lm15.Message.user(question), lm15.Message.assistant(reply.text)]
    assert saved(models) == []


def files(tmp_path: Path, most_bytes: int = 1_000) -> PromptFiles:
    return PromptFiles(tmp_path / "prompts" / "a-model", most_bytes)


def write(kept: PromptFiles, key: str, size: int = 300) -> str:
    """Write a file as llama.cpp does, and keep it; return its name."""
    (kept.folder / "new.part").write_bytes(key.encode() * size)
    kept.keep(key, "new.part")
    return kept.find(key) or ""


def test_a_kept_file_is_found_by_its_key_alone(tmp_path: Path) -> None:
    kept = files(tmp_path)
    name = write(kept, "a")
    assert (kept.find("a"), kept.find("b")) == (name, None)
    assert files(tmp_path).find("a") == name
    assert [path.name for path in kept.folder.iterdir()] == [name]


def test_a_server_that_refuses_still_gets_the_request(tmp_path: Path) -> None:
    """To restore a file, and to read the beginning anew."""
    pytest.importorskip("xllamacpp")  # its version is in the keys
    kept = files(tmp_path, 100_000)
    beginnings = Beginnings(kept, "model")
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "?"}]
    key, _ = beginnings._digests(messages)
    write(kept, key)
    asked = []

    def refuse(path: str, body: dict[str, object]) -> dict[str, object]:
        asked.append(path)
        return {"error": {"message": "busy"}}

    with beginnings.prepared(messages, refuse, threading.Event()) as read:
        assert (read, asked) == (0, ["/completion", "/apply-template"])


def test_a_file_that_is_not_what_its_name_says_is_deleted(tmp_path: Path) -> None:
    kept = files(tmp_path)
    name = write(kept, "a")
    (kept.folder / name).write_bytes(b"a foreign file")
    assert kept.find("a") is None
    assert list(kept.folder.iterdir()) == []


def test_the_least_recently_used_files_go_first(tmp_path: Path) -> None:
    kept = files(tmp_path)
    for age, key in enumerate("abc"):
        os.utime(kept.folder / write(kept, key), (age, age))
    assert kept.find("a")  # used now
    write(kept, "d")
    assert [key for key in "abcd" if kept.find(key)] == ["a", "c", "d"]


def test_files_of_other_models_and_half_written_ones_count(tmp_path: Path) -> None:
    other = PromptFiles(tmp_path / "prompts" / "another", 1_000)
    for path in (other.folder / "left.part", other.folder / "foreign"):
        path.write_bytes(b"x" * 500)
        os.utime(path, (1, 1))
    assert write(files(tmp_path), "a")
    assert len(list(other.folder.iterdir())) == 1


def test_a_file_over_the_largest_size_is_not_kept(tmp_path: Path) -> None:
    assert write(files(tmp_path), "a", size=2_000) == ""


def test_another_process_may_delete_a_file_at_any_time(tmp_path: Path) -> None:
    kept = files(tmp_path)
    kept.keep("a", "never-written.part")
    assert kept.find("a") is None


def test_a_removed_model_takes_its_prompts_along(models: Path) -> None:
    folder = prompts_folder(CATALOGUE[0].lm_name)
    write(PromptFiles(folder, 1_000), "a")
    assert remove(CATALOGUE[0])
    assert not folder.exists()
