"""Interpreters in sandboxes of services.

E2B's real client against its own server class; Modal, Daytona and Prime through fake clients, whose calls are
compared with the real ones.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlm_dspy.interpreters import remote
from rlm_dspy.interpreters.host import servers
from rlm_dspy.interpreters.remote import armor, sandbox
from tests.interpreter_contract import ExecutionContract
from tests.interpreters import fake_clients
from tests.interpreters.fake_clients import Account
from tests.interpreters.losing import run_through_a_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")

ROOT = Path(__file__).parents[2]
HERE = {"python": sys.executable, "packages": ()}
"""Options of a box in a sandbox that is a process of this machine."""


class Served(NamedTuple):
    """A service, and what there is in it."""

    name: str
    make: Callable[..., remote.Box]
    living: dict[str, Any]
    kill: Callable[[], None]
    """Kills the commands that run in sandboxes."""


@contextmanager
def fake(name: str, monkeypatch: pytest.MonkeyPatch, account: Account) -> Iterator[Served]:
    """Give a service whose client is one of ours."""
    client = getattr(fake_clients, name)(account)
    fake_clients.installed(monkeypatch, client)

    yield Served(name.capitalize(), getattr(remote, name), account.living, account.kill)


@contextmanager
def e2b(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Give E2B's real client and a server of its processes."""
    from tests.interpreters.e2b_server import serving  # noqa: PLC0415 (skips where the client is not)

    with serving(monkeypatch) as server:
        yield Served("E2B", remote.e2b, server.living, server.kill)


@pytest.fixture(params=["e2b", "modal", "daytona", "prime"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Each service in turn."""
    with (
        e2b(monkeypatch) if request.param == "e2b" else fake(request.param, monkeypatch, Account()) as service,
    ):
        yield service
        servers.close_all()
        assert service.living == {}


class TestSandboxes:
    """What all services have in common."""

    def test_one_sandbox_carries_all_sessions_and_is_deleted_at_the_end(self, served: Served) -> None:
        """Values and calls of tools cross."""
        box = served.make(**HERE)
        text = "ä" * 500_000
        with box({"ask": lambda x: x * 2}) as one, served.make(**HERE)() as two:
            assert one.execute("ask(21)") == 42
            assert two.execute("bytes(range(256)).hex(), len(t)", {"t": text}) == [
                bytes(range(256)).hex(),
                len(text),
            ]
            assert len(served.living) == 1
        box.close()
        assert served.living == {}

    @pytest.mark.long
    def test_a_run_that_loses_its_sandbox_goes_on_in_another(self, served: Served) -> None:
        """The model is told which connection was lost; the dead sandbox is deleted at once."""
        run_through_a_loss(served.make(**HERE), served.kill)
        assert len(served.living) == 1

    def test_a_sandbox_in_which_nothing_starts_is_deleted(self, served: Served, tmp_path: Path) -> None:
        """What was printed there is told."""
        python = tmp_path / "python3"
        python.write_text("#!/bin/sh\necho the disk is full >&2\nexit 1\n")
        python.chmod(0o755)
        with pytest.raises(dspy.CodeInterpreterError, match=rf"(?s){served.name}.*the disk is full"):
            served.make(python=str(python), packages=())().start()
        assert served.living == {}

    @pytest.mark.long
    def test_the_doctor_deletes_its_sandbox(self, served: Served) -> None:
        """What holds there is found out there."""
        told = served.make(**HERE, trusts={"no_network"}).doctor()
        assert told.system["system"].startswith("Linux")
        assert served.living == {}


class TestFailures:
    """What goes wrong at the service."""

    def test_a_sandbox_is_deleted_when_no_command_can_be_run_in_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The client's error is told."""
        account = Account()
        with fake("modal", monkeypatch, account) as service:
            monkeypatch.setattr(fake_clients.Process, "run", _fails("no such runtime"))
            with pytest.raises(
                dspy.CodeInterpreterError, match=r"Modal has started no sandbox: .*no such runtime"
            ):
                service.make(**HERE)().start()
        assert (account.living, len(account.made)) == ({}, 1)

    def test_a_deletion_is_tried_again(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If nothing helps, a warning says when the sandbox ends by itself."""
        monkeypatch.setattr(sandbox, "_DELETE_PAUSES", (0, 0, 0))
        account = Account()
        with fake("daytona", monkeypatch, account) as service:
            box = service.make(**HERE)
            box().start()
            account.refuses = 2
            box.close()
            assert account.living == {}
            box().start()
            account.refuses = 3
            with caplog.at_level(logging.WARNING, "dspy.rlm_dspy"):
                box.close()
        assert "A sandbox of Daytona could not be deleted: the service is busy" in caplog.text
        assert "3600 seconds" in caplog.text
        account.living["sandbox-1"].delete()

    def test_a_missing_key_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With what the service said."""
        with e2b(monkeypatch) as service:
            monkeypatch.setenv("E2B_API_KEY", "e2b_" + "1" * 40)
            with pytest.raises(
                dspy.CodeInterpreterError, match=r"Invalid API key.*takes the key from E2B_API_KEY"
            ):
                service.make(**HERE)().start()
            monkeypatch.delenv("E2B_API_KEY")
            with pytest.raises(dspy.CodeInterpreterError, match="takes the key from E2B_API_KEY"):
                service.make(**HERE)().start()

    @pytest.mark.parametrize("extra", ["e2b", "modal", "daytona", "prime"])
    def test_a_missing_client_is_named(self, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before anything starts."""
        module: Any = None
        monkeypatch.setitem(sys.modules, {"prime": "prime_sandboxes"}.get(extra, extra), module)
        with pytest.raises(
            ImportError, match=rf"needs the extra `{extra}`: pip install 'dspy-recursive-lm\[{extra}\]'"
        ):
            getattr(remote, extra)()

    def test_a_sandbox_must_end_by_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And a guarantee must be one."""
        with fake("modal", monkeypatch, Account()) as service:
            with pytest.raises(ValueError, match="timeout is 0"):
                service.make(timeout=0)
            with pytest.raises(ValueError, match="no_internet"):
                service.make(trusts={"no_internet"})

    @pytest.mark.long
    def test_a_process_that_ends_deletes_its_sandbox(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a call of `close`, and after an error; a forked child leaves it alone."""
        script = (
            "import os, sys\n"
            "from rlm_dspy.interpreters import remote\n"
            "repl = remote.e2b(python=sys.executable, packages=())()\n"
            "print(repl.execute('6 * 7'), flush=True)\n"
            "if os.fork() == 0:\n    sys.exit()\n"
            "os.wait()\n"
            "print(repl.execute('6 * 7'), flush=True)\n"
            "raise SystemExit(3)\n"
        )
        with e2b(monkeypatch) as service:
            done = subprocess.run(
                [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
            )
            assert (done.returncode, done.stdout, done.stderr) == (3, "42\n42\n", "")
            assert service.living == {}


def _fails(message: str) -> Callable[..., Any]:
    def fails(*_: object) -> None:
        raise RuntimeError(message)

    return fails


class TestDefaults:
    """What a sandbox is made with."""

    @pytest.mark.parametrize(
        ("name", "options", "made"),
        [
            ("modal", {"app": "mine"}, {"app": "mine", "block_network": True, "timeout": 90, "cpu": 2}),
            (
                "daytona",
                {"image": "mine"},
                {"image": "mine", "network_block_all": True, "ttl_minutes": 2, "cpu": 2},
            ),
            ("prime", {"image": "mine"}, {"docker_image": "mine", "timeout_minutes": 2, "cpu": 2}),
        ],
    )
    def test_it_has_no_network_and_ends_by_itself(
        self, name: str, options: dict[str, str], made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the user names besides goes to the client."""
        account = Account()
        with fake(name, monkeypatch, account) as service:
            box = service.make(**options, **HERE, timeout=90, create={"cpu": 2})
            box().start()
            box.close()
        assert made.items() <= account.made[0].items()

    def test_e2b_blocks_the_internet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """And ends a sandbox after the timeout."""
        with e2b(monkeypatch) as service:
            box = service.make("mine", **HERE, timeout=90)
            box().start()
            (made,) = service.living.values()
            box.close()
        assert (made["templateID"], made["timeout"], made["allow_internet_access"]) == ("mine", 90, False)


class TestArmor:
    """Bytes over streams that take text."""

    @given(st.lists(st.binary(max_size=200)), st.lists(st.integers(0, 300)))
    def test_pieces_come_out_as_they_went_in(self, pieces: list[bytes], cuts: list[int]) -> None:
        """Wherever the text is cut, and whatever lies between the lines."""
        text = b"welcome\r\n" + b"<an echo\n".join(armor.line_of(piece, armor.NEAR) for piece in pieces)
        lines = armor.Lines(armor.NEAR)
        ends = [*sorted(min(cut, len(text)) for cut in cuts), len(text)]
        parts = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        assert [piece for part in parts for piece in lines.pieces(part)] == pieces

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            (b">not base64\n", "broken line"),
            (b">AAAA\n", "broken line"),
            (armor.line_of(bytes(200), armor.NEAR)[:-9] + b"\n", "broken line|not whole"),
            (armor.line_of(bytes(armor.PIECE + 1), armor.NEAR), "too large"),
            (b"x" * (3 * armor.PIECE), "too long"),
        ],
    )
    def test_what_no_honest_side_sends_is_refused(self, text: bytes, told: str) -> None:
        """And fills no memory."""
        with pytest.raises(ValueError, match=told):
            list(armor.Lines(armor.NEAR).pieces(text))


@pytest.mark.long
class TestTextOnly(ExecutionContract):
    """A sandbox with text streams, cut anywhere, and a delay of each request, with no case of its own."""

    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def _service() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch, fake("daytona", patch, Account(latency=0.002)):
            yield
            servers.close_all()

    @staticmethod
    def make(**options: Any) -> Any:
        """Connect at the first use."""
        return remote.daytona(python=sys.executable)(**options)


@pytest.mark.long
class TestE2B(ExecutionContract):
    """E2B's client and server class, with no case of its own."""

    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def _service() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch, e2b(patch):
            yield
            servers.close_all()

    @staticmethod
    def make(**options: Any) -> Any:
        """Connect at the first use."""
        return remote.e2b(python=sys.executable)(**options)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "client"), [("modal", "modal"), ("daytona", "daytona"), ("prime", "prime-sandboxes")]
)
def test_the_real_client_has_all_that_is_called(name: str, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in an environment of its own: they do not go together."""
    account = Account()
    with fake(name, monkeypatch, account) as service:
        box = service.make(**HERE)
        box().start()
        box.close()
    (pinned,) = (
        line for line in (ROOT / ".ci" / "constraints.txt").read_text().split() if line.startswith(f"{client}==")
    )
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv")
    python = [uv, "run", "--quiet", "--no-project", "--isolated", "--with", pinned, "python", "-I"]
    if subprocess.run([*python, "-c", ""], check=False, cwd="/").returncode:
        pytest.skip(f"{pinned} cannot be installed")
    script = Path(__file__).with_name("check_client.py")
    calls = json.dumps(sorted(account.calls))
    done = subprocess.run([*python, script], input=calls, capture_output=True, text=True, check=False, cwd="/")
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
    assert len(account.calls) > 8
