"""Runs an MCP server and passes on the lines that it writes: `relay.py COMMAND ARGUMENT...`.

MCP's client keeps a line in memory until it ends, so a server could fill the memory with one line. The server
reads standard input directly. The relay holds back its standard error, and writes the end of it when the server
has ended. The relay runs as a script and imports the standard library only.
"""

import os
import signal
import subprocess
import sys
import threading

MAX_LINE_BYTES = 8_000_000
_TAIL_BYTES = 2_000
_END_SECONDS = 0.3


def main(command: list[str]) -> None:
    """Run a command until it ends or writes too long a line; end every process that it started."""
    try:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # noqa: S603 (the user's)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")
    tail = bytearray()
    threads = [threading.Thread(target=each, args=(server, tail), daemon=True) for each in (_pass_on, _keep_tail)]
    for thread in threads:
        thread.start()
    server.wait()
    for thread in threads:
        thread.join(_END_SECONDS)  # a process that the server has left behind may hold its pipes open
    sys.stderr.buffer.write(bytes(tail[-_TAIL_BYTES:]))
    sys.stderr.buffer.flush()
    if os.name == "posix":
        os.killpg(0, signal.SIGKILL)  # the client starts this process in a group of its own


def _pass_on(server: subprocess.Popen[bytes], tail: bytearray) -> None:
    assert server.stdout is not None
    while line := server.stdout.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            tail.extend(b"\nIt wrote a message of over %d bytes." % MAX_LINE_BYTES)
            server.kill()
            return
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def _keep_tail(server: subprocess.Popen[bytes], tail: bytearray) -> None:
    assert server.stderr is not None
    while data := os.read(server.stderr.fileno(), 65_536):
        tail.extend(data)
        del tail[:-_TAIL_BYTES]


if __name__ == "__main__":
    main(sys.argv[1:])
