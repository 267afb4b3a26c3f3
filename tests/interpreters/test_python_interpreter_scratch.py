"""The folders that workers write to: private, and cleaned without following links."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rlm_dspy.interpreters.confinement_policy import RUNGS, ConfinementPolicy
from rlm_dspy.interpreters.host import scratch
from rlm_dspy.interpreters.host.fork_server_client import ForkServer, Recipe
from tests.attacked import ORDINARY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")

SWAP = """
import os, sys
from rlm_dspy.interpreters.host import fork_server_client as forkserver
remove_stale = getattr(forkserver, "_remove_stale", None) or forkserver.scratch.remove_stale
folder, victim, event, times = sys.argv[1:]
left = int(times)

def swap(name, args):
    global left
    if name != event:
        return
    left -= 1
    if not left:
        os.rename(folder, folder + ".aside")
        os.symlink(victim, folder)

sys.addaudithook(swap)
remove_stale()
"""


def of_nobody(folder: Path) -> Path:
    """Make the folder of a process that has ended."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    stale = folder / f"rlm-repl-{ended.pid}-x"
    (stale / "scratch" / "1").mkdir(parents=True)
    (stale / "scratch" / "1" / "file").touch()
    return stale


@pytest.mark.parametrize(("event", "times"), [("os.chmod", 1), ("os.scandir", 2), ("os.rename", 1)])
def test_a_folder_that_is_swapped_for_a_link_while_it_is_cleaned_leads_nowhere(
    tmp_path: Path, event: str, times: int
) -> None:
    """At whichever call another process gets in between."""
    victim, temporary = tmp_path / "victim", tmp_path / "temporary"
    (victim / "scratch" / "1").mkdir(parents=True)
    files = [victim / "thesis", victim / "scratch" / "thesis", victim / "scratch" / "1" / "file"]
    for file in files:
        file.touch()
    victim.chmod(0o755)
    temporary.mkdir()
    stale = of_nobody(temporary)
    command = [sys.executable, "-c", SWAP, str(stale), str(victim), event, str(times)]
    subprocess.run(command, env={**os.environ, "TMPDIR": str(temporary)}, check=True)
    assert all(file.exists() for file in files)
    assert victim.stat().st_mode & 0o777 == 0o755


def test_stale_folders_are_removed_and_those_of_others_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor those of processes that live, nor links."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    stale, other = of_nobody(tmp_path), of_nobody(tmp_path)
    living = tmp_path / f"rlm-repl-{os.getpid()}-x"
    living.mkdir()
    link = of_nobody(tmp_path)
    link.rename(tmp_path / "aside")
    link.symlink_to(tmp_path / "aside")
    if os.getuid() == 0:
        os.chown(other, ORDINARY, ORDINARY)
    scratch.remove_stale()
    assert not stale.exists()
    assert living.exists()
    assert (tmp_path / "aside" / "scratch" / "1" / "file").exists()
    assert (other / "scratch" / "1" / "file").exists() == (os.getuid() == 0)


def test_a_folder_in_use_is_not_stale_though_its_process_cannot_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers may share the folder for temporary files, and do not see each other's processes."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    folder = scratch.Folder(None)
    path = Path(folder.path).rename(of_nobody(tmp_path).with_suffix(".used"))
    scratch.remove_stale()
    assert [left.name for left in tmp_path.iterdir()] == [path.name]
    folder.close()
    scratch.remove_stale()
    assert list(tmp_path.iterdir()) == []


def test_closed_folders_are_removed_by_their_owner(tmp_path: Path) -> None:
    """Also deep ones, by a user whom permissions bind."""
    root = folder = tmp_path / "root"
    for _ in range(300):
        folder.mkdir()
        (folder / "file").touch()
        folder = folder / "deeper"
    code = (
        "import os, sys; from pathlib import Path; from rlm_dspy.interpreters.host import scratch; "
        "(os.setresgid(54321, 54321, 54321), os.setresuid(54321, 54321, 54321)) if os.getuid() == 0 else None; "
        "[path.chmod(0) for path in reversed([Path('root'), *Path('root').rglob('deeper')])]; "
        "scratch.remove_tree(Path('root'))"
    )
    if os.getuid() == 0:
        for path in (tmp_path, root, *root.rglob("*")):
            os.chown(path, ORDINARY, ORDINARY)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert not root.exists()


def test_folders_of_workers_can_be_entered_by_nobody_else() -> None:
    """Not listed or written to by any user but the one who made them; their names cannot be guessed."""
    server = ForkServer(Recipe((), (), ConfinementPolicy()), RUNGS["landlock"])
    try:
        own = Path(server.new_scratch())
        for folder in (own, own.parent, own.parent.parent):
            assert folder.stat().st_uid == (server.uid if folder == own and server.uid else os.geteuid())
            assert folder.stat().st_mode & 0o066 == 0
        assert len(own.parent.parent.name.rpartition("-")[2]) >= 8
    finally:
        server.close()
