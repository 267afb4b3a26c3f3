"""Files are written whole, and where they were meant to be."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

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
