"""Clients of Modal, Daytona and Prime, as far as we use them, whose sandboxes are processes of this machine.

They note every call, so that a test can compare it with the real client.
"""

from __future__ import annotations

import asyncio
import codecs
import functools
import importlib.machinery
import itertools
import os
import random
import shlex
import signal
import subprocess
import sys
import time
import types
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import pytest

Call = tuple[str, int, tuple[str, ...]]
"""What of a client was called, with how many arguments by position, `self` included, and which by name."""


class Account:
    """What a service would keep of one user.

    Args:
        latency: Seconds that each request takes.
        cuts: Whether output arrives cut at random places.
    """

    def __init__(self, latency: float = 0.0, *, cuts: bool = True) -> None:
        self.latency = latency
        self.cuts = cuts
        self.calls: set[Call] = set()
        self.living: dict[str, Process] = {}
        self.made: list[dict[str, Any]] = []
        self.refuses = 0
        """How many of the next attempts to delete a sandbox fail."""
        self._numbers = itertools.count()

    def makes(self, given: dict[str, Any]) -> Process:
        """Make a sandbox."""
        self.made.append(given)
        name = f"sandbox-{next(self._numbers)}"
        self.living[name] = made = Process(self, name)
        return made

    def kill(self) -> None:
        """Kill the commands of all sandboxes."""
        for made in self.living.values():
            assert made.popen is not None
            os.killpg(made.popen.pid, signal.SIGKILL)

    def noted(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Note the calls of a function, which the real client has as `module:Class.method`."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def noting(*args: Any, **kwargs: Any) -> Any:
                self.calls.add((name, len(args), tuple(sorted(kwargs))))
                return function(*args, **kwargs)

            return noting

        return decorate

    def has(self, *names: str) -> None:
        """Note attributes that the real client has."""
        self.calls |= {(name, -1, ()) for name in names}


class Process:
    """A sandbox, and the one command in it."""

    def __init__(self, account: Account, name: str) -> None:
        self.account = account
        self.id = name
        self.popen: subprocess.Popen[bytes] | None = None
        self._cuts = random.Random(name)

    def run(self, words: list[str]) -> None:
        """Run the command."""
        self.popen = subprocess.Popen(words, stdin=-1, stdout=-1, stderr=-1, start_new_session=True)

    def write(self, data: bytes) -> None:
        """Write to its stdin."""
        time.sleep(self.account.latency)
        assert self.popen is not None
        assert self.popen.stdin is not None
        self.popen.stdin.write(data)
        self.popen.stdin.flush()

    def output(self) -> Iterator[bytes]:
        """Yield what comes from its stdout."""
        assert self.popen is not None
        assert self.popen.stdout is not None
        with self.popen.stdout as stdout:
            while data := os.read(stdout.fileno(), 65536):
                while data:
                    size = self._cuts.randint(1, len(data)) if self.account.cuts else len(data)
                    yield data[:size]
                    data = data[size:]

    def errors(self) -> bytes:
        """Return what came from its stderr, when it has ended."""
        assert self.popen is not None
        assert self.popen.stderr is not None
        with self.popen.stderr as stderr:
            return stderr.read()

    def delete(self) -> None:
        """Delete the sandbox."""
        if self.account.refuses:
            self.account.refuses -= 1
            raise RuntimeError("the service is busy")
        del self.account.living[self.id]
        if self.popen is not None:
            assert self.popen.stdin is not None
            with suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGTERM)
            self.popen.wait()
            with suppress(BrokenPipeError):
                self.popen.stdin.close()


def installed(monkeypatch: pytest.MonkeyPatch, module: types.ModuleType) -> None:
    """Let code import a client."""
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    monkeypatch.setitem(sys.modules, module.__name__, module)


def modal(account: Account) -> types.ModuleType:
    """Return a client like Modal's."""
    noted = account.noted
    account.has(*(f"modal.container_process:ContainerProcess.{name}" for name in ("stdin", "stdout", "stderr")))
    account.has("modal.io_streams:StreamReader.__iter__")

    class Stdin:
        def __init__(self, process: Process) -> None:
            self._process, self._held = process, b""

        @noted("modal.io_streams:StreamWriter.write")
        def write(self, data: bytes) -> None:
            self._held += data

        @noted("modal.io_streams:StreamWriter.drain")
        def drain(self) -> None:
            data, self._held = self._held, b""
            self._process.write(data)

    class Stderr:
        def __init__(self, process: Process) -> None:
            self._process = process

        @noted("modal.io_streams:StreamReader.read")
        def read(self) -> bytes:
            return self._process.errors()

    class Sandbox:
        def __init__(self, given: dict[str, Any]) -> None:
            self._process = account.makes(given)

        @staticmethod
        @noted("modal:Sandbox.create")
        def create(**given: Any) -> Sandbox:
            return Sandbox(given)

        @noted("modal:Sandbox.exec")
        def exec(self, *words: str, text: bool) -> Any:
            assert not text
            self._process.run(list(words))
            process = self._process
            return types.SimpleNamespace(stdin=Stdin(process), stdout=process.output(), stderr=Stderr(process))

        @noted("modal:Sandbox.terminate")
        def terminate(self) -> None:
            self._process.delete()

    class App:
        lookup = staticmethod(noted("modal:App.lookup")(lambda name, create_if_missing: name))

    class Image:
        debian_slim = staticmethod(noted("modal:Image.debian_slim")(lambda version: f"debian with {version}"))

    module: Any = types.ModuleType("modal")
    module.App, module.Image, module.Sandbox = App, Image, Sandbox
    return module  # type: ignore[no-any-return]


def daytona(account: Account) -> types.ModuleType:
    """Return a client like Daytona's: text only, with an echo of what is written."""
    noted = account.noted
    of_process = "daytona._sync.process:Process."
    account.has("daytona._sync.sandbox:Sandbox.process", "daytona:SessionExecuteResponse.cmd_id")

    class FarProcess:
        def __init__(self, process: Process) -> None:
            self._process = process

        @noted(f"{of_process}create_session")
        def create_session(self, name: str) -> None:
            assert name

        @noted(f"{of_process}execute_session_command")
        def execute_session_command(self, name: str, request: Any) -> Any:
            self._process.run(shlex.split(request.command))
            return types.SimpleNamespace(cmd_id="command")

        @noted(f"{of_process}send_session_command_input")
        def send_session_command_input(self, name: str, command: str, data: str) -> None:
            self._process.write(data.encode())

        @noted(f"{of_process}get_session_command_logs_async")
        async def get_session_command_logs_async(self, name: str, command: str, out: Any, err: Any) -> None:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            out("welcome\r\n>an echo")
            out(" of what was written\r\n")
            for data in self._process.output():
                out(decoder.decode(data).replace("\n", "\r\n"))
            err(self._process.errors().decode())

    class Sandbox:
        def __init__(self, given: dict[str, Any]) -> None:
            self._process = account.makes(given)
            self.process = FarProcess(self._process)

        @noted("daytona:Sandbox.delete")
        def delete(self) -> None:
            self._process.delete()

    class Daytona:
        @noted("daytona:Daytona.create")
        def create(self, given: dict[str, Any]) -> Sandbox:
            return Sandbox(given)

    module: Any = types.ModuleType("daytona")
    module.Daytona = noted("daytona:Daytona")(Daytona)
    module.CreateSandboxFromImageParams = noted("daytona:CreateSandboxFromImageParams")(dict)
    module.SessionExecuteRequest = noted("daytona:SessionExecuteRequest")(types.SimpleNamespace)
    return module  # type: ignore[no-any-return]


def prime(account: Account) -> types.ModuleType:
    """Return a client like Prime's: one for sandboxes, and an async one for a process."""
    noted = account.noted
    account.has("prime_sandboxes:Sandbox.id")
    account.has(*(f"prime_sandboxes:AsyncSandboxProcess.{name}" for name in ("stdout", "stderr")))

    class SandboxClient:
        def __init__(self, api: Any) -> None:
            assert api == "api"

        @noted("prime_sandboxes:SandboxClient.create")
        def create(self, given: dict[str, Any]) -> Process:
            return account.makes(given)

        @noted("prime_sandboxes:SandboxClient.wait_for_creation")
        def wait_for_creation(self, name: str) -> None:
            assert name in account.living

        @noted("prime_sandboxes:SandboxClient.delete")
        def delete(self, name: str) -> None:
            account.living[name].delete()

    class Running:
        def __init__(self, process: Process) -> None:
            self._process = process
            self.stdout, self.stderr = self._output(), self._errors()

        async def _output(self) -> AsyncIterator[bytes]:
            output = self._process.output()
            while data := await asyncio.to_thread(next, output, b""):
                yield data

        async def _errors(self) -> AsyncIterator[bytes]:
            yield self._process.errors()

        @noted("prime_sandboxes:AsyncSandboxProcess.write_stdin")
        async def write_stdin(self, data: bytes) -> None:
            self._process.write(data)

    class AsyncSandboxClient:
        @noted("prime_sandboxes:AsyncSandboxClient.open_process")
        async def open_process(self, name: str, command: str) -> Running:
            account.living[name].run(shlex.split(command))
            return Running(account.living[name])

    module: Any = types.ModuleType("prime_sandboxes")
    module.SandboxClient = noted("prime_sandboxes:SandboxClient")(SandboxClient)
    module.AsyncSandboxClient = noted("prime_sandboxes:AsyncSandboxClient")(AsyncSandboxClient)
    module.APIClient = noted("prime_sandboxes:APIClient")(lambda: "api")
    module.CreateSandboxRequest = noted("prime_sandboxes:CreateSandboxRequest")(dict)
    return module  # type: ignore[no-any-return]
