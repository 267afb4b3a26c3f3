"""What is particular to remote interpreters: one stream, a place that can be lost, what it is trusted to hold."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
import pytest

from rlm_dspy.interpreters import CannotConfine, CellError, ConfinementPolicy, WorkerLimits, remote, render
from rlm_dspy.interpreters.host import servers
from rlm_dspy.interpreters.remote import command as command_of
from rlm_dspy.interpreters.remote import relay
from rlm_dspy.interpreters.remote.far_end import Values
from rlm_dspy.interpreters.remote.link import Link
from rlm_dspy.interpreters.remote.relay import Kind, Relay, Stream
from rlm_dspy.interpreters.worker import wire
from tests.interpreter_contract import SECONDS
from tests.interpreters.losing import run_through_a_loss
from tests.interpreters.places import PYTHON, needs_sshd, ssh_command
from tests.interpreters.waiting import comes_true, lives

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")


def transport(box: remote.Box) -> Any:
    """Return the command that carries the connection of a box."""
    server: Any = servers.server_for(box.place)
    return server._link._transport._process


def far_processes(folder: Path) -> list[str]:
    """Return the numbers of the fork server and the workers of a far end."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{folder}/worker/".encode() in (path / "cmdline").read_bytes():
                found.append(path.name)
    return found


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files of the far end alone, which other users can pass through."""
    with tempfile.TemporaryDirectory(prefix="rlm-far-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
def box() -> Iterator[remote.Box]:
    made = remote.argv(packages=())
    yield made
    made.close()


class TestPlaces:
    """What a box is, and what is told of one that does not work."""

    def test_boxes_that_are_equal_share_one_connection(self, box: remote.Box) -> None:
        """A copy and a pickle too: optimizers copy the modules that hold them."""
        with box() as one, copy.deepcopy(box)() as two, pickle.loads(pickle.dumps(box))() as three:
            served: list[Any] = [repl._session for repl in (one, two, three)]
            assert len({id(session.group.server) for session in served}) == 1

    @pytest.mark.parametrize(
        ("command", "told"),
        [
            (("no-such-command-here",), "No such file"),
            (("sh", "-c", "echo denied >&2; exit 1"), "denied"),
            (("env", "PATH=/nowhere"), "python3"),
            (("false",), "false does not run: it ended at once"),
            (("ssh lab",), r"arguments of their own: remote.argv\('ssh', 'lab'"),
        ],
    )
    def test_a_command_that_does_not_work_says_why(self, command: tuple[str, ...], told: str) -> None:
        """In its own words."""
        with pytest.raises(dspy.CodeInterpreterError, match=told):
            remote.argv(*command)().start()
        with pytest.raises(OSError, match=told):
            remote.argv(*command).doctor()

    @pytest.mark.parametrize("says", ["sleep 1000", "exec yes", "cat >/dev/null"])
    def test_a_command_that_starts_no_python_and_does_not_end_is_given_up(
        self, says: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may read nothing and print without end; what it has started goes too."""
        for name, seconds in {"_GREETING_SECONDS": 1, "_BEAT_SECONDS": 0.2}.items():
            monkeypatch.setattr(relay, name, seconds)
        monkeypatch.setattr(command_of, "_END_SECONDS", 0.2)
        box = remote.argv("sh", "-c", f"echo $$ >&2; {says}; true")
        with pytest.raises(
            dspy.CodeInterpreterError, match=r"does not run: nothing came for 1 seconds \d+$"
        ) as told:
            box().start()
        group = int(str(told.value).split()[-1])
        assert comes_true(lambda: not lives(group))

    def test_what_a_place_prints_before_it_runs_may_be_long(self) -> None:
        """Longer than a pipe holds, while the modules wait to be read."""
        box = remote.argv(
            "sh", "-c", 'head -c 1000000 /dev/zero; exec "$@"', "sh", python=sys.executable, packages=()
        )
        with box() as repl:
            assert repl.execute("6 * 7") == 42
        box.close()

    def test_a_shell_may_read_the_command_and_print_before_it_runs(self, tmp_path: Path) -> None:
        """As the one of ssh does; that `shell=True` is missing is found out."""
        ssh = tmp_path / "ssh"
        ssh.write_text('#!/bin/sh\necho welcome\nexec sh -c "$*"\n')
        ssh.chmod(0o755)
        box = remote.argv(str(ssh), shell=True, python=sys.executable, packages=())
        with box() as repl:
            assert repl.execute("6 * 7") == 42
        box.close()
        with pytest.raises(dspy.CodeInterpreterError, match="pass shell=True"):
            remote.argv(str(ssh), python=sys.executable)().start()

    def test_a_python_that_is_too_old_is_named(self, tmp_path: Path) -> None:
        """What is needed and what is there."""
        old = tmp_path / "python3"
        as_old = 'import sys\nsys.version_info, sys.version = (3, 9), "3.9.1"\nexec(sys.argv[1])'
        old.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{as_old}' \"$2\"\n")
        old.chmod(0o755)
        with pytest.raises(
            dspy.CodeInterpreterError, match=r"Python 3\.11 or later is needed there, and this is 3\.9\.1"
        ):
            remote.argv(python=str(old))().start()

    def test_what_is_no_word_or_no_guarantee_is_refused(self) -> None:
        """Before anything starts."""
        wrong: Any = ["ssh", "lab"]
        with pytest.raises(TypeError, match="arguments of their own"):
            remote.argv(wrong)
        with pytest.raises(ValueError, match=r"\['no_internet'\].*no_network"):
            remote.argv(trusts={"no_internet"})
        with pytest.raises(ValueError, match=r"trusts=\['no_network'\]"):
            remote.argv(trusts="no_network")
        with pytest.raises(ValueError, match=r"packages=\['numpy'\]"):
            remote.argv(packages="numpy")
        with pytest.raises(ValueError, match="shell=True is for a command"):
            remote.argv(shell=True)

    def test_a_package_that_is_not_there_is_named(self) -> None:
        """With the place."""
        with pytest.raises(dspy.CodeInterpreterError, match="not_a_package"):
            remote.argv(packages=["not_a_package"])().start()


class TestTrust:
    """What the place is trusted to hold."""

    def test_without_layers_nothing_runs_unless_everything_is_trusted(self) -> None:
        """As in a sandbox whose kernel has none of them."""
        bare = ConfinementPolicy(layers=frozenset())
        with pytest.raises(CannotConfine, match="no_network"):
            remote.argv(packages=(), confinement=bare)().start()
        trusted = remote.argv(packages=(), confinement=bare, trusts=set(bare.required()) - {"clean_environment"})
        with trusted() as repl:
            assert repl.execute("6 * 7") == 42
            assert repl.layers == []
        trusted.close()

    def test_the_doctor_says_what_holds_there_and_what_is_trusted(self) -> None:
        """A guarantee that a layer holds is not trusted."""
        told = remote.argv(
            packages=(), confinement=ConfinementPolicy(layers=frozenset()), trusts={"no_network"}
        ).doctor()
        assert told.system["system"].startswith("Linux")
        assert told.rungs[0].holds["no_network"] == "trusted"
        assert told.chosen == ""
        assert "holds no network (trusted)" in render(dataclasses.replace(told, chosen="chosen"))


class TestStream:
    """Many sessions on one stream."""

    def test_a_session_that_is_not_read_holds_up_no_other(self) -> None:
        """Its window is full; packets of the other pass, in order and whole."""
        ends = [Relay(*made) for made in _streams()]
        for end in ends:
            threading.Thread(target=_run, args=(end,), daemon=True).start()
        stuck, keeps = _joined(1, ends)
        free, other = _joined(2, ends)

        def send_much() -> None:
            with suppress(OSError):  # at the end of the test
                for _ in range(100):
                    wire.send(stuck, b"x" * 100_000)

        blocked = threading.Thread(target=send_much, daemon=True)
        blocked.start()
        for number in range(200):
            wire.send(free, b"%d" % number * 1000)
            assert wire.receive_packet(other)[5:] == b"%d" % number * 1000
        assert blocked.is_alive()
        for end in ends:
            end._stream.close()
            end.close()
        blocked.join(SECONDS)
        for sock in (stuck, keeps, free, other):
            sock.close()

    def test_an_input_goes_once_per_content(self, box: remote.Box, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not again for a later cell, another session, or an equal text."""
        sent = []
        send = Link._send_value

        def spied(self: Link, digest: bytes, fd: int, deadline: Any) -> None:
            sent.append(digest)
            send(self, digest, fd, deadline)

        monkeypatch.setattr(Link, "_send_value", spied)
        text = "some words " * 300_000
        with box() as one, box() as two:
            for repl in (one, one, two):
                assert repl.execute("len(t)", {"t": text}) == len(text)
            assert two.execute("len(u)", {"u": "".join(["some words ", text[11:]])}) == len(text)
        with box() as three:
            assert three.execute("t[:4], t.count('words')", {"t": text}) == ["some", 300_000]
        assert len(sent) == 1

    def test_sessions_may_read_one_value_at_once(self) -> None:
        """As all do that begin together: each from its beginning, wherever another has come to."""
        values, digest = Values(), b"d" * 20
        values.add(0, digest, memoryview(b"functions"))
        values.add(1, digest, memoryview(b""))
        first, second = (os.fdopen(values.descriptor(digest), "rb") for _ in range(2))
        with first, second:
            first.seek(0)
            second.seek(0)
            assert (first.read(5), second.read(), first.read()) == (b"funct", b"functions", b"ions")

    def test_code_larger_than_a_window_arrives(self, box: remote.Box) -> None:
        """And so does what it prints."""
        with box(max_output_chars=5_000_000) as repl:
            assert repl.execute(f"x = {'y' * 4_000_000!r}\nprint(x)") == "y" * 4_000_000


class TestMemory:
    """The far end looks at the memory of the processes there."""

    def test_processes_that_take_too_much_together_are_killed_there(self) -> None:
        """The model is told so, and the session goes on."""
        small = dataclasses.replace(remote.argv(packages=()), worker_limits=WorkerLimits(memory_bytes=64 << 20))
        code = (
            "import os, time\n"
            "for _ in range(4):\n"
            "    if os.fork() == 0:\n"
            "        kept = bytearray(os.urandom(1)) * (40 << 20)\n        time.sleep(60)\n"
            "time.sleep(60)"
        )
        with small() as repl:
            repl.execute("x = 1")
            with pytest.raises(CellError, match="MB together"):
                repl.execute(code)
            assert repl.execute("x") == 1
        small.close()


class TestLoss:
    """The connection ends."""

    def test_the_model_is_told_which_connection_was_lost_and_the_run_goes_on(self, box: remote.Box) -> None:
        """In the middle of a cell; a fresh session has the inputs again."""
        run_through_a_loss(box, lambda: transport(box).kill())

    def test_a_connection_lost_while_an_input_is_sent_is_named(
        self, box: remote.Box, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The next session of the box has a connection again."""
        send = Stream.send

        def cut(self: Stream, kind: Kind, number: int = 0, *parts: bytes) -> None:
            if kind == Kind.PIECE and number == 3:
                transport(box).kill()
            send(self, kind, number, *parts)

        repl = box()
        repl.start()
        monkeypatch.setattr(Stream, "send", cut)
        with pytest.raises(dspy.CodeInterpreterError, match=r"The connection to .* was lost"):
            repl.execute("len(t)", {"t": "z" * 40_000_000})
        monkeypatch.undo()
        assert box().execute("1") == 1

    @pytest.mark.parametrize("cut", [False, True])
    def test_nothing_is_left_there(self, temporary: Path, cut: bool) -> None:
        """Whether the connection is closed or the far end is killed; with a session that computes."""
        box = remote.argv("env", f"TMPDIR={temporary}", python=sys.executable, packages=())
        folder = computing(box, temporary)
        os.killpg(transport(box).pid, signal.SIGKILL) if cut else box.close()
        assert comes_true(lambda: not far_processes(folder))
        box().start()  # clears what a kill has left
        assert comes_true(lambda: not folder.exists())
        box.close()
        assert list(temporary.iterdir()) == []

    @pytest.mark.long
    @needs_sshd
    def test_an_ssh_that_is_killed_leaves_nothing_over_there(self, temporary: Path) -> None:
        """Neither a process nor a folder; and a run that loses it goes on."""
        box = remote.argv(*ssh_command(), "env", f"TMPDIR={temporary}", shell=True, python=PYTHON)
        folder = computing(box, temporary)
        run_through_a_loss(box, lambda: transport(box).kill())
        assert comes_true(lambda: not far_processes(folder) and not folder.exists())
        box.close()

    def test_a_forked_child_has_a_connection_of_its_own(self) -> None:
        """And disturbs that of its parent in nothing."""
        script = (
            "import os\n"
            "from rlm_dspy.interpreters import remote\n"
            "box = remote.argv(packages=())\n"
            "repl = box()\n"
            "repl.execute('x = 1')\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    with box() as own:\n        print(own.execute('2'), flush=True)\n"
            "    repl.shutdown()\n"
            "    os._exit(0)\n"
            "os.waitpid(child, 0)\n"
            "print(repl.execute('x'))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "2\n1\n", "")


def computing(box: remote.Box, temporary: Path) -> Path:
    """Start a session that computes; return the folder of the far end's modules."""
    box().execute(
        "import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()"
    )
    (folder,) = (path for path in temporary.glob("rlm-repl-*") if (path / "remote").exists())
    assert far_processes(folder)
    return folder


def _streams() -> list[tuple[Stream, None]]:
    there, back = os.pipe(), os.pipe()
    return [(Stream(back[0], there[1]), None), (Stream(there[0], back[1]), None)]


def _joined(number: int, ends: list[Relay]) -> tuple[socket.socket, socket.socket]:
    """Return the outer ends of a channel."""
    outer = []
    for end in ends:
        inner, out = wire.pair()
        end.add(number, inner)
        outer.append(out)
    return outer[0], outer[1]


def _run(end: Relay) -> None:
    stream = end._stream

    def move() -> None:
        with suppress(OSError):  # at the end of the test
            end.run()

    threading.Thread(target=move, daemon=True).start()
    while True:
        try:
            kind, number, body = stream.receive()
        except EOFError:
            return
        if kind == Kind.PACKET:
            end.deliver(number, body[1:])
        elif kind == Kind.CREDIT:
            end.credit(number, int.from_bytes(body, "little"))
