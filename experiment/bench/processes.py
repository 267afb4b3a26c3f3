"""The processes of the bench: the scripted server, and one worker per engine in an environment of its own."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dialects import Script

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("RLM_BENCH_CACHE") or Path.home() / ".cache" / "rlm-bench")
"""Where environments of engines are made."""
SECRET = "a word that only the host knows"
_READ_MODULE = "https://deno.land/std@0.186.0/io/mod.ts"
_READ_LINES = """export async function* readLines(reader) {
  const decoder = new TextDecoder();
  const buffer = new Uint8Array(1 << 16);
  let text = "";
  for (;;) {
    const read = await reader.read(buffer);
    if (read === null) break;
    text += decoder.decode(buffer.subarray(0, read), {stream: true});
    const lines = text.split("\\n");
    text = lines.pop();
    yield* lines;
  }
  if (text) yield text;
}
"""


@dataclass(frozen=True)
class Engine:
    """One library in one setting.

    Attributes:
        name: As it stands in the tables.
        module: The module in `engines/` that drives it.
        dialect: How its model's replies are written; see `dialects`.
        package: What is installed into an environment of its own; empty for what this environment has.
        deno: Whether it needs Deno, which is installed as a package.
        where: Where its code runs, for the tables.
        only: The measures that it is for; all if empty.
    """

    name: str
    module: str
    dialect: str
    package: str = ""
    deno: bool = False
    where: str = ""
    only: tuple[str, ...] = ()


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("ours", "with_ours", "ours", where="a confined process"),
        Engine("ours, local", "with_ours_local", "ours", where="the caller's process"),
        Engine("ours, folding", "with_ours_folding", "ours", where="a confined process", only=("long run",)),
        Engine("dspy.RLM", "with_dspy", "dspy", where="a plain process"),
        Engine("dspy.RLM, Deno", "with_dspy_deno", "dspy", deno=True, where="WASM"),
        Engine("rlms", "with_rlms", "rlms", where="the caller's process"),
        Engine("predict-rlm", "with_predict_rlm", "predict-rlm", "predict-rlm", where="a plain process"),
        Engine(
            "predict-rlm, Deno", "with_predict_rlm_deno", "predict-rlm", "predict-rlm", deno=True, where="WASM"
        ),
        Engine("recursive-llm", "with_recursive_llm", "recursive-llm", "recursive-llm", where="RestrictedPython"),
        Engine("minrlm", "with_minrlm", "minrlm", "minrlm", where="the caller's process"),
        Engine("fast-rlm", "with_fast_rlm", "fast-rlm", "fast-rlm", deno=True, where="WASM"),
        Engine("direct", "with_direct", "direct", where="no code"),
    )
}


class EngineDied(RuntimeError):  # noqa: N818 (it names what happened)
    """The worker of an engine ended, hung beyond its time, or took more memory than it may."""


def python_of(engine: Engine) -> Path:
    """Return the Python that has the engine's library, made on first use with `uv venv`."""
    if not engine.package:
        return Path(sys.executable)
    folder = CACHE / engine.package
    python, whole = folder / "bin" / "python", folder / "installed"
    if not whole.exists():
        shutil.rmtree(folder, ignore_errors=True)  # of an installation that was cut short
        uv = shutil.which("uv") or "uv"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        subprocess.run([uv, "venv", "-q", "--python", version, str(folder)], check=True)
        packages = [engine.package, *(["deno"] if engine.deno else [])]
        subprocess.run([uv, "pip", "install", "-q", "-p", str(python), *packages], check=True)
        whole.touch()
    return python


def deno_folder() -> Path:
    """Return a folder with a `deno` that reads an import map before it runs anything.

    The map puts a file in the place of the one module that runners load from deno.land. Deno itself is the one on
    the path, else one installed as a package.
    """
    deno = shutil.which("deno")
    if deno is None:
        folder = CACHE / "deno"
        if not (folder / "bin" / "deno").exists():
            uv = shutil.which("uv") or "uv"
            subprocess.run([uv, "venv", "-q", str(folder)], check=True)
            subprocess.run([uv, "pip", "install", "-q", "-p", str(folder / "bin" / "python"), "deno"], check=True)
        deno = str(folder / "bin" / "deno")
    wrapped = CACHE / "deno-with-imports"
    wrapped.mkdir(parents=True, exist_ok=True)
    (wrapped / "read_lines.js").write_text(_READ_LINES, encoding="utf-8")
    imports = wrapped / "imports.json"
    imports.write_text(json.dumps({"imports": {_READ_MODULE: "./read_lines.js"}}), encoding="utf-8")
    script = wrapped / "deno"
    script.write_text(
        f'#!/bin/sh\nif [ "$1" = run ]; then shift; exec {deno} run --import-map={imports} "$@"; fi\n'
        f'exec {deno} "$@"\n',
        encoding="utf-8",
    )
    script.chmod(0o755)
    return wrapped


def environment_of(engine: Engine) -> dict[str, str]:
    """Return the environment that a worker starts in."""
    unwanted = ("MLFLOW", "LM_STUDIO", "RLM_DSPY", "OPENAI", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    more = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",
        "NO_COLOR": "1",
    }
    if engine.deno:
        more["PATH"] = f"{deno_folder()}{os.pathsep}{os.environ['PATH']}"
    return {**kept, **more}


class Worker:
    """One engine in a process group of its own, watched.

    Args:
        engine: Which.
        most_bytes: Memory of the process and all its children, shared pages counted once, beyond which it is
            killed.

    Raises:
        EngineDied: If it cannot start; the message says why.
    """

    def __init__(self, engine: Engine, *, most_bytes: int = 8 << 30) -> None:
        self.engine = engine
        self.peak_bytes = 0
        self._most = most_bytes
        self._killed = ""
        self._home = tempfile.mkdtemp(prefix="rlm-bench-")
        self.canary = Path(self._home) / "canary.txt"
        self.canary.write_text(f"{SECRET}\n", encoding="utf-8")
        self.spawned = time.monotonic()
        python = python_of(engine)
        environment = environment_of(engine)
        self.spawned = time.monotonic()
        self._log = (Path(self._home) / "stderr.txt").open("wb+")
        self._process = subprocess.Popen(
            [str(python), str(HERE / "engines" / "worker.py"), engine.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            cwd=self._home,
            start_new_session=True,
            encoding="utf-8",
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        threading.Thread(target=self._watch, daemon=True).start()
        first = self._next(120)
        if "error" in first:
            self.close()
            raise EngineDied(first["error"])
        self.ready = first["ready"]

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request; return its answer.

        Raises:
            EngineDied: If there is none within so many seconds; the process is dead then.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise EngineDied(self._words("the process has ended")) from error
        return self._next(seconds)

    def close(self) -> None:
        """End the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with contextlib.suppress(OSError):
            self._process.stdin.close() if self._process.stdin else None
        self._listener.join(10)
        self._log.close()
        shutil.rmtree(self._home, ignore_errors=True)

    def tree(self) -> list[int]:
        """Return the processes of the group that live."""
        return processes_of(self._process.pid)

    def cpu_seconds(self) -> float:
        """Return the CPU time of the group's processes, and of their children that have ended."""
        return sum(cpu_of(pid) for pid in self.tree())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise EngineDied(f"no answer within {seconds:.0f} s") from None
        if not line:
            raise EngineDied(self._words("the process died"))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")

    def _watch(self) -> None:
        while self._process.poll() is None:
            used = sum(memory_of(pid) for pid in self.tree())
            self.peak_bytes = max(self.peak_bytes, used)
            if used > self._most:
                self._killed = f"it took more than {self._most >> 20:,} MiB"
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            time.sleep(0.25)

    def _words(self, what: str) -> str:
        code = self._process.wait()
        if self._killed:
            return self._killed
        self._log.seek(0)
        last = self._log.read().decode("utf-8", "replace").strip().splitlines()[-1:] or [""]
        return f"{what} (exit code {code}) {last[0][:200]}".strip()


def processes_of(session: int) -> list[int]:
    """Return the processes of a session, and their descendants that left it."""
    parents: dict[int, int] = {}
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            if int(fields[3]) == session:
                found.add(int(entry.name))
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return sorted(found)


def memory_of(pid: int) -> int:
    """Return the bytes of a process, pages that it shares with others divided among them; 0 if it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process and of its children that it has waited for; 0 if it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return 0.0


class ScriptedServer:
    """The scripted server in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, str(HERE / "scripted_server.py"), "--port", "0"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        assert self._process.stdout is not None
        self.address = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        self._number = 0

    def begin(self, script: Script) -> str:
        """Give a new run its script; return its name."""
        self._number += 1
        name = f"{script.dialect}-{self._number}"
        self._ask("PUT", f"/run/{name}", asdict(script))
        return name

    def base_url(self, name: str) -> str:
        """Return the address that a run's engine is given."""
        return f"{self.address}/run/{name}/v1"

    @property
    def shared_url(self) -> str:
        """The address of runs that name themselves."""
        return f"{self.address}/v1"

    def end(self, name: str) -> dict[str, Any]:
        """Return what was counted of a run, and forget it."""
        counted = self._ask("GET", f"/run/{name}")
        self._ask("DELETE", f"/run/{name}")
        return counted

    def most_at_once(self) -> int:
        """Return the most requests that were under way together since this was last asked."""
        return int(self._ask("GET", "/most_at_once")["most_at_once"])

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: dict[str, Any] = json.load(response)
        return answer


@contextlib.contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """Run the server for the length of a block."""
    server = ScriptedServer()
    try:
        yield server
    finally:
        server.close()
