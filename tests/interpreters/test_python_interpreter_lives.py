"""The confined interpreter: lives and deaths of its processes, and what it refuses to run on."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import dspy
import pytest

from rlm_dspy.interpreters import CannotConfine
from rlm_dspy.interpreters.confinement_policy import ConfinementPolicy
from rlm_dspy.interpreters.host import fork_server_client, servers
from tests.interpreters.confined import light
from tests.interpreters.waiting import descriptors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")


def run(script: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        **options,
    )


def gone(pid: int) -> bool:
    """Wait until a process has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    ended = bool(poll.poll(60_000))
    os.close(handle)
    return ended


HOST = """
import json, os, sys
from rlm_dspy.interpreters.python import PythonInterpreter
from rlm_dspy.interpreters.host import fork_server_client, servers
repl = PythonInterpreter(packages=(), checkpoint="always")
repl.execute("x = 1")
server = next(iter(servers._servers.values()))
pids = [server._process.pid, repl._session._process.handle.host_pid()]
"""


class TestLives:
    def test_nothing_is_left_when_the_host_is_killed(self) -> None:
        """Not the fork server, not a worker that is busy."""
        script = HOST + (
            "import threading\nrunning = threading.Event()\nrepl.tools['running'] = running.set\n"
            "threading.Thread(target=repl.execute, args=('running()\\nwhile True: pass',), daemon=True).start()\n"
            "running.wait()\nprint(json.dumps([pids, server._folder]), flush=True)\nos.kill(os.getpid(), 9)\n"
        )
        done = run(script)
        assert done.returncode == -signal.SIGKILL, done.stderr
        pids, folder = json.loads(done.stdout)
        assert all(gone(pid) for pid in pids)
        assert not Path(folder).exists()

    def test_nothing_is_left_when_the_host_ends(self) -> None:
        """Though it closed nothing; and it says nothing of it."""
        done = run(HOST + "print(json.dumps([pids, server._folder]))")
        assert (done.returncode, done.stderr) == (0, "")
        pids, folder = json.loads(done.stdout)
        assert all(gone(pid) for pid in pids)
        assert not Path(folder).exists()

    def test_folders_of_a_killed_host_go_with_the_next_fork_server(self) -> None:
        """Where workers have no scratch of their own they are real folders."""
        stale = Path(tempfile.mkdtemp(prefix=f"rlm-repl-{2**22 + 1}-"))
        (stale / "scratch").mkdir()
        fork_server_client.ForkServer(fork_server_client.Recipe((), (), ConfinementPolicy()), frozenset()).close()
        assert not stale.exists()

    def test_a_forked_host_has_its_own(self) -> None:
        """The child starts its own fork server, and leaves the parent's alone."""
        script = HOST + (
            "pid = os.fork()\n"
            "if pid == 0:\n"
            "    import dspy\n"
            "    try: repl.execute('x')\n"
            "    except dspy.CodeInterpreterError as e: assert 'forked' in str(e), e\n"
            "    repl.shutdown()\n"
            "    with PythonInterpreter(packages=()) as own: assert own.execute('1 + 1') == 2\n"
            "    servers.close_all()\n"
            "    os._exit(7)\n"
            "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7\n"
            "print(repl.execute('x'))\n"
        )
        done = run(script)
        assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")

    def test_a_fork_server_that_dies_is_started_again(self) -> None:
        """Its sessions are lost, and say so; the next has a new one."""
        repl = light(paths=[os.path.dirname(__file__)])
        repl.execute("x = 1")
        server: Any = servers.server_for(repl._recipe)
        worker: Any = repl._session
        server._process.kill()
        assert gone(worker._process.handle.host_pid())
        with pytest.raises(dspy.CodeInterpreterError):
            repl.execute("x")
        repl.shutdown()
        with light(paths=[os.path.dirname(__file__)]) as again:
            assert again.execute("1 + 1") == 2

    def test_shutting_down_leaves_nothing_open(self) -> None:
        """Descriptors, processes, shared memory, scratch."""
        with light() as repl:
            repl.execute("1")
        before = descriptors()
        for _ in range(5):
            repl = light({"ask": lambda: "x" * 100_000}, checkpoint="always")
            repl.execute(
                "import os\nopen('f', 'w').write('x')\npid = os.fork()\nif pid == 0:\n    while True: pass\nask()",
                {"t": "y" * 100_000},
            )
            session: Any = repl._session
            pid = session._process.handle.host_pid()
            repl.shutdown()
            assert gone(pid)
        assert not descriptors() - before

    def test_an_interpreter_that_is_dropped_is_shut_down(self) -> None:
        """When it is collected."""
        repl: Any = light()
        repl.execute("1")
        pid = repl._session._process.handle.host_pid()
        del repl
        assert gone(pid)

    def test_many_run_at_once(self) -> None:
        """Each in a thread of its own."""
        answers: list[str] = []

        def one(number: int) -> None:
            with light({"twice": lambda n: 2 * n}) as repl:
                answers.append(repl.execute(f"twice({number})"))

        threads = [threading.Thread(target=one, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(int, answers)) == [2 * number for number in range(12)]


class TestPolicy:
    def test_what_cannot_be_held_is_refused_with_reason_and_choices(self) -> None:
        """Nothing runs, and nothing degrades."""
        with pytest.raises(CannotConfine) as caught:
            light(confinement=ConfinementPolicy(layers=frozenset({"limits"}))).start()
        assert "no_network" in str(caught.value)
        assert "dspy.PythonInterpreter" in str(caught.value)
        assert "LocalPythonInterpreter" in str(caught.value)

    def test_a_guarantee_that_only_a_better_rung_holds_is_refused_on_another(self) -> None:
        """Landlock does not hide the names of files."""
        rung = frozenset({"landlock", "seccomp", "limits"})
        with pytest.raises(CannotConfine, match="hidden_paths"):
            light(confinement=ConfinementPolicy(hidden_paths=True, layers=rung)).start()

    def test_other_systems_get_the_choices(self) -> None:
        """The package can be imported there, without what only Unix has."""
        script = (
            "import sys, dspy, pydantic, asyncio\n"
            "for name in ('fcntl', 'resource', 'pwd', 'grp'): sys.modules[name] = None\n"
            "import os\nfor name in ('memfd_create', 'eventfd', 'pidfd_open', 'register_at_fork'): delattr(os, name)\n"
            "sys.platform = sys.argv[1] if len(sys.argv) > 1 else 'win32'\n"
            "import rlm_dspy.interpreters\n"
            "from rlm_dspy.interpreters.python import PythonInterpreter\n"
            "try: PythonInterpreter().start()\n"
            "except dspy.CodeInterpreterError as error: print(error)\n"
        )
        done = run(script)
        assert "this is win32" in done.stdout, done.stderr
        assert "dspy.PythonInterpreter" in done.stdout
