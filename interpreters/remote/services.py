"""Far ends in the sandboxes of services: E2B, Modal, Daytona and Prime, by the clients that these publish.

A sandbox is made when the first interpreter starts, and runs all of them. It is deleted when the connection ends,
for whatever reason. If this process is killed, the service ends the sandbox after `timeout` seconds.
"""

from __future__ import annotations

import asyncio
import shlex
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from rlm_dspy.concurrency.event_loops import background_loop
from rlm_dspy.interpreters.remote.box import Box, box_of
from rlm_dspy.interpreters.remote.sandbox import Service, Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
    from contextlib import ExitStack

    from rlm_dspy.interpreters.confinement.limits import WorkerLimits
    from rlm_dspy.interpreters.confinement_policy import ConfinementPolicy
    from rlm_dspy.interpreters.host.checkpoints import Mode
    from rlm_dspy.interpreters.host.deadlines import CellLimits

_IMAGE = "python:3.12-slim"


class BoxOptions(TypedDict, total=False):
    """The options of all boxes; see `argv`."""

    packages: Sequence[str] | None
    confinement: ConfinementPolicy | None
    trusts: Collection[str]
    worker_limits: WorkerLimits | None
    cell_limits: CellLimits | None
    checkpoint: Mode


class E2B(Service):
    """Sandboxes of E2B. Its client decodes stdout as text, so the streams are armored."""

    name, client, keys, armored = "E2B", "e2b", "E2B_API_KEY", True

    def start(self, words: Sequence[str], undo: ExitStack) -> Streams:
        """See `Service.start`."""
        from e2b import Sandbox

        sandbox = Sandbox.create(timeout=self.timeout, **{"allow_internet_access": False, **self.create})
        self.deletes(undo, sandbox.kill)
        commands = sandbox.commands
        running = commands.run(shlex.join(words), background=True, stdin=True, timeout=0, retain_output=False)
        return Streams(
            partial(commands.send_stdin, running.pid),
            lambda on_output, on_error: running.wait(
                on_stdout=lambda text: on_output(text.encode()), on_stderr=on_error
            ),
        )


class Modal(Service):
    """Sandboxes of Modal."""

    name, client, keys = "Modal", "modal", "MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, or ~/.modal.toml"

    def start(self, words: Sequence[str], undo: ExitStack) -> Streams:
        """See `Service.start`."""
        import modal

        given = {"block_network": True, **self.create}
        given.setdefault("image", modal.Image.debian_slim("3.12"))
        app = modal.App.lookup(given.pop("app"), create_if_missing=True)
        sandbox = modal.Sandbox.create(app=app, timeout=self.timeout, **given)
        self.deletes(undo, sandbox.terminate)
        running = sandbox.exec(*words, text=False)

        def send(piece: bytes) -> None:
            running.stdin.write(piece)
            running.stdin.drain()

        def listen(on_output: Callable[[bytes], None], on_error: Callable[[str], None]) -> None:
            for piece in running.stdout:
                on_output(piece)
            on_error(running.stderr.read().decode("utf-8", "replace"))

        return Streams(send, listen)


class Daytona(Service):
    """Sandboxes of Daytona. Its client sends and receives text only."""

    name, client, keys, armored = "Daytona", "daytona", "DAYTONA_API_KEY", True

    def start(self, words: Sequence[str], undo: ExitStack) -> Streams:
        """See `Service.start`."""
        from daytona import CreateSandboxFromImageParams, Daytona, SessionExecuteRequest

        given = {"network_block_all": True, **self.create}
        sandbox = Daytona().create(CreateSandboxFromImageParams(ephemeral=True, ttl_minutes=self.minutes, **given))
        self.deletes(undo, sandbox.delete)
        process, session = sandbox.process, "rlm-dspy"
        process.create_session(session)
        request = SessionExecuteRequest(command=shlex.join(words), run_async=True, suppress_input_echo=True)
        command = process.execute_session_command(session, request).cmd_id

        def listen(on_output: Callable[[bytes], None], on_error: Callable[[str], None]) -> None:
            asyncio.run(
                process.get_session_command_logs_async(
                    session, command, lambda text: on_output(text.encode()), on_error
                )
            )

        return Streams(
            lambda line: process.send_session_command_input(session, command, line.decode()),
            listen,
        )


class Prime(Service):
    """Sandboxes of Prime Intellect."""

    name, client, keys = "Prime", "prime_sandboxes", "PRIME_API_KEY, or ~/.prime/config.json"

    def start(self, words: Sequence[str], undo: ExitStack) -> Streams:
        """See `Service.start`."""
        from prime_sandboxes import APIClient, AsyncSandboxClient, CreateSandboxRequest, SandboxClient

        sandboxes = SandboxClient(APIClient())
        request = CreateSandboxRequest(name="rlm-dspy", timeout_minutes=self.minutes, **self.create)
        made = sandboxes.create(request)
        self.deletes(undo, partial(sandboxes.delete, made.id))
        sandboxes.wait_for_creation(made.id)

        async def started() -> Any:
            return await AsyncSandboxClient().open_process(made.id, shlex.join(words))

        running = _awaited(started())

        async def listened(on_output: Callable[[bytes], None], on_error: Callable[[str], None]) -> None:
            async for piece in running.stdout:
                on_output(piece)
            async for piece in running.stderr:
                on_error(piece.decode("utf-8", "replace"))

        return Streams(
            lambda piece: _awaited(running.write_stdin(piece)),
            lambda on_output, on_error: _awaited(listened(on_output, on_error)),
        )


def _awaited(call: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(call, background_loop("rlm-sandbox")).result()


def e2b(
    template: str | None = None,
    *,
    timeout: int = 3600,
    python: str = "python3",
    create: Mapping[str, Any] | None = None,
    **options: Unpack[BoxOptions],
) -> Box:
    """Return a factory of interpreters in a sandbox of E2B, without internet access.

    Extra `e2b`; its client takes the key from `E2B_API_KEY`.

    Args:
        template: The template of the sandbox; None for the client's default.
        timeout: Seconds after which the service ends the sandbox, in case this process could not delete it.
        python: The Python there, 3.11 or later.
        create: More arguments of the client's `Sandbox.create`.
        options: See `argv`.

    Raises:
        ImportError: If the client is not installed.
        ValueError: If an option is wrong.
    """
    given = {"template": template, **(create or {})}
    return box_of(E2B(python=python, timeout=timeout, create=given), **options)


def modal(
    app: str = "rlm-dspy",
    *,
    timeout: int = 3600,
    python: str = "python3",
    create: Mapping[str, Any] | None = None,
    **options: Unpack[BoxOptions],
) -> Box:
    """Return a factory of interpreters in a sandbox of Modal, without network.

    Extra `modal`; its client takes the key from `MODAL_TOKEN_ID` and `MODAL_TOKEN_SECRET`, or `~/.modal.toml`.

    Args:
        app: The app that the sandbox belongs to; made if there is none.
        timeout: Seconds after which the service ends the sandbox, in case this process could not delete it.
        python: The Python there, 3.11 or later.
        create: More arguments of the client's `Sandbox.create`, such as `image`.
        options: See `argv`.

    Raises:
        ImportError: If the client is not installed.
        ValueError: If an option is wrong.
    """
    given = {"app": app, **(create or {})}
    return box_of(Modal(python=python, timeout=timeout, create=given), **options)


def daytona(
    image: str = _IMAGE,
    *,
    timeout: int = 3600,
    python: str = "python3",
    create: Mapping[str, Any] | None = None,
    **options: Unpack[BoxOptions],
) -> Box:
    """Return a factory of interpreters in a sandbox of Daytona, without network.

    Extra `daytona`; its client takes the key from `DAYTONA_API_KEY`.

    Args:
        image: The image of the sandbox.
        timeout: Seconds, rounded up to minutes, after which the service ends the sandbox, in case this process
            could not delete it.
        python: The Python there, 3.11 or later.
        create: More arguments of the client's `CreateSandboxFromImageParams`.
        options: See `argv`.

    Raises:
        ImportError: If the client is not installed.
        ValueError: If an option is wrong.
    """
    given = {"image": image, **(create or {})}
    return box_of(Daytona(python=python, timeout=timeout, create=given), **options)


def prime(
    image: str = _IMAGE,
    *,
    timeout: int = 3600,
    python: str = "python3",
    create: Mapping[str, Any] | None = None,
    **options: Unpack[BoxOptions],
) -> Box:
    """Return a factory of interpreters in a sandbox of Prime Intellect.

    Extra `prime`; its client takes the key from `PRIME_API_KEY`, or `~/.prime/config.json`.

    Args:
        image: The image of the sandbox.
        timeout: Seconds, rounded up to minutes, after which the service ends the sandbox, in case this process
            could not delete it.
        python: The Python there, 3.11 or later.
        create: More arguments of the client's `CreateSandboxRequest`.
        options: See `argv`.

    Raises:
        ImportError: If the client is not installed.
        ValueError: If an option is wrong.
    """
    given = {"docker_image": image, **(create or {})}
    return box_of(Prime(python=python, timeout=timeout, create=given), **options)
