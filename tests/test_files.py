"""Files are written whole, and where they were meant to be."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from rlm_dspy.json_values import JsonLines, json_objects
from rlm_dspy.signatures.policy import write_policy
from rlm_dspy.text import write_whole

if TYPE_CHECKING:
    from pathlib import Path


def test_a_link_that_lies_beside_a_file_is_not_written_through(tmp_path: Path) -> None:
    """Another user may have put it there, in a folder that both write to."""
    victim, target = tmp_path / "victim", tmp_path / "run.json"
    victim.write_text("precious")
    target.with_name(f"{target.name}.{os.getpid()}.part").symlink_to(victim)
    write_whole("new", target)
    assert (victim.read_text(), target.read_text()) == ("precious", "new")


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="root only can give files away")
def test_a_link_of_another_user_in_a_folder_for_everybody_is_not_followed(tmp_path: Path) -> None:
    """One's own is, as is one in a folder of one's own."""
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("precious")
    link.symlink_to(victim)
    write_whole("by me", link)
    os.lchown(link, 54_321, 54_321)
    write_whole("by a link in my folder", link)
    assert victim.read_text() == "by a link in my folder"
    tmp_path.chmod(0o1777)
    with pytest.raises(PermissionError, match="another user"):
        write_whole("new", link)
    assert victim.read_text() == "by a link in my folder"


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_a_file_that_is_closed_to_others_stays_closed(tmp_path: Path) -> None:
    """Runs and policies may hold what only their owner is to read."""
    target = tmp_path / "run.json"
    target.touch(0o600)
    write_whole("new", target)
    assert target.stat().st_mode & 0o777 == 0o600
    write_policy(target, {}, name="newer", model="m", provenance={})
    assert target.stat().st_mode & 0o777 == 0o600
    assert "newer" in target.read_text()


def test_a_line_that_a_kill_left_unfinished_is_ended_before_the_next_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\nno JSON\n[2]\n{"b": ')
    lines = JsonLines(path)
    lines.append('{"c": "\udcff"}')
    lines.append('{"d": 4}')
    assert path.read_bytes().endswith(b'\n{"b": \n{"c": "?"}\n{"d": 4}\n')
    assert list(json_objects(path)) == [{"a": 1}, {"c": "?"}, {"d": 4}]


def test_lines_that_threads_append_at_once_stay_whole(tmp_path: Path) -> None:
    """Through one object and through several on the same file."""
    path = tmp_path / "lines.jsonl"
    files = [JsonLines(path), JsonLines(path)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: files[n % 2].append(json.dumps({"n": n, "text": "x" * 5_000})), range(400)))
    assert sorted(found["n"] for found in json_objects(path)) == list(range(400))


def test_a_file_of_lines_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        JsonLines(tmp_path / "missing" / "lines.jsonl")
