"""Models by their address on the hub: the file that it means; downloads that break off, hang or are refused."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from rlm_dspy.cli.app import app
from rlm_dspy.embedded.engine import embedded_lm
from rlm_dspy.embedded.hub_address import HubFile, choose_files, named_model, quantization_of, read_address
from rlm_dspy.embedded.llama_server import ModelUnavailable, Settings
from rlm_dspy.embedded.model_cache import record_file
from rlm_dspy.embedded.model_catalog import CATALOGUE
from rlm_dspy.embedded.pull import PullFailed, pull_model
from rlm_dspy.errors import UnknownModel
from rlm_dspy.models import ModelNotPulled, choose_model
from tests.embedded.hub import COMMIT, REPOSITORY, Hub, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
BYTES = b"GGUF" + b"weights " * 400_000
FILES = {
    "Tiny-Q4_K_M.gguf": BYTES,
    "Tiny-Q8_0.gguf": BYTES[::2],
    "split/Tiny-F16-00001-of-00002.gguf": b"GGUF one",
    "split/Tiny-F16-00002-of-00002.gguf": b"GGUF two",
    "mmproj-Tiny-Q4_K_M.gguf": b"GGUF eyes",
    "README.md": b"# Tiny",
}
ADDRESS = f"hf:{REPOSITORY}"
PROGRAM = f"from rlm_dspy.embedded.pull import pull_model; pull_model('{ADDRESS}')"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a hub to a user with an empty folder of models."""
    with serving(dict(FILES)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("RLM_DSPY_MODELS", str(tmp_path / "models"))
        yield hub


def listed(*names: str, size: int = 1) -> list[HubFile]:
    """Return files as the hub lists them; each is larger than the one before."""
    return [HubFile(name=name, size=size + at, sha256=f"{at:064}") for at, name in enumerate(names)]


def chosen(address: str, *names: str) -> list[str]:
    """Return the names of the files that an address means."""
    return [file.name for file in choose_files(read_address(address), listed(*names))]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf:o/r", ("o/r", "", "", "")),
        ("hf:o/r:Q8_0", ("o/r", "", "Q8_0", "")),
        ("hf:o/r.x-GGUF/a/b.gguf", ("o/r.x-GGUF", "a/b.gguf", "", "")),
        ("hf:o/r@v1.0", ("o/r", "", "", "v1.0")),
        ("hf:o/r:UD-Q4_K_XL@refs/pr/1", ("o/r", "", "UD-Q4_K_XL", "refs/pr/1")),
        ("hf:o/r/b.gguf@" + COMMIT, ("o/r", "b.gguf", "", COMMIT)),
    ],
)
def test_an_address_has_a_repository_a_file_or_quantization_and_a_revision(
    text: str, parts: tuple[str, ...]
) -> None:
    address = read_address(text)
    assert (address.repository, address.file, address.quantization, address.revision) == parts
    assert address.name == text


@pytest.mark.parametrize(
    "text",
    ["hf:", "hf:owner", "hf:o/r/file.bin", "hf:o/r:", "hf:o/../r", "hf://o/r", "hf:../r", "hf:o/r/../../m.gguf"],
)
def test_what_is_no_address_is_told_the_forms(text: str) -> None:
    with pytest.raises(UnknownModel, match=r"Invalid address .* Write hf:owner/repository; then /file\.gguf or"):
        choose_model(text)


@pytest.mark.parametrize(
    ("file", "quantization"),
    [
        ("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Llama-3.2-3B-Instruct-UD-IQ2_XXS.gguf", "IQ2_XXS"),
        ("BF16/model-BF16-00001-of-00002.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model.Q8_0.gguf", "Q8_0"),
        ("model.gguf", ""),
    ],
)
def test_the_quantization_stands_in_the_name_of_the_file(file: str, quantization: str) -> None:
    assert quantization_of(file) == quantization


def test_without_a_quantization_the_best_is_chosen() -> None:
    """Q4_K_M; else the smallest of four bits or more; else the largest. Never what is no language model."""
    assert chosen("hf:o/r", "a-Q2_K.gguf", "a-Q4_0.gguf", "a-q4_k_m.gguf", "a-Q8_0.gguf") == ["a-q4_k_m.gguf"]
    assert chosen("hf:o/r", "a-Q2_K.gguf", "a-Q5_0.gguf", "a-F16.gguf", "mmproj-Q4_0.gguf") == ["a-Q5_0.gguf"]
    assert chosen("hf:o/r", "a-IQ1_S.gguf", "a-Q2_K.gguf", "a-Q3_K_M.gguf") == ["a-Q3_K_M.gguf"]
    assert chosen("hf:o/r", "only.gguf") == ["only.gguf"]


def test_a_split_model_is_all_its_parts_whichever_is_named() -> None:
    parts = [f"a-Q8_0-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert chosen("hf:o/r:q8_0", *reversed(parts)) == chosen(f"hf:o/r/{parts[1]}", *parts) == parts
    with pytest.raises(UnknownModel, match=r"is incomplete: the repository has no a-Q8_0-00002-of-00003\.gguf"):
        chosen("hf:o/r", parts[0], parts[2])


def test_what_means_no_file_or_several_lists_them() -> None:
    with pytest.raises(UnknownModel, match=r"hf:o/r:Q4_0 has no such GGUF file. Name one: a-Q8_0\.gguf"):
        chosen("hf:o/r:Q4_0", "a-Q8_0.gguf")
    with pytest.raises(UnknownModel, match=r"means several files. Name one: a-Q8_0\.gguf, b-Q8_0\.gguf\."):
        chosen("hf:o/r:Q8_0", "a-Q8_0.gguf", "b-Q8_0.gguf")
    with pytest.raises(UnknownModel, match="It has no GGUF file at all"):
        chosen("hf:o/r")


def test_the_address_of_a_model_of_the_catalogue_is_that_model() -> None:
    """So other sources than the hub are asked too."""
    qwen, smol = CATALOGUE[-1], CATALOGUE[0]
    assert named_model(f"hf:{qwen.hub.source}") is qwen
    assert named_model(f"hf:{qwen.hub.source}:q4_k_m") is qwen
    assert named_model(f"hf:{qwen.hub.source}/{qwen.hub.path}") is qwen
    for other in (f"hf:{qwen.hub.source}:Q8_0", f"hf:{qwen.hub.source}@main", f"hf:{smol.hub.source}"):
        assert named_model(other) == read_address(other)


def test_a_pulled_address_runs_by_its_name_also_without_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    path = pull_model(ADDRESS, announce=lines.append)
    assert path.read_bytes() == BYTES
    assert lines == [
        f"Looking for {ADDRESS} on the hub.",
        "Downloading Tiny-Q4_K_M.gguf (3 MB) from the hub.",
        f"{ADDRESS} is in {path}.",
    ]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pull_model(ADDRESS, announce=lines.append) == path
    assert lines[-2] == (
        "The hub is passed over (HF_HUB_OFFLINE is set). The file that was downloaded before is used."
    )
    assert choose_model(ADDRESS).model == embedded_lm(ADDRESS).model == f"embedded/Tiny-Q4_K_M-{path.parent.name}"
    assert CliRunner().invoke(app, ["models", "path", ADDRESS]).stdout == f"{path}\n"
    assert f"Also here: {ADDRESS}\n" in CliRunner().invoke(app, ["models"]).stdout
    assert CliRunner().invoke(app, ["models", "remove", ADDRESS]).stdout == f"{ADDRESS} was removed.\n"
    with pytest.raises(
        ModelNotPulled, match=f"{ADDRESS} is not on this machine. .*: rlm-dspy models pull {ADDRESS}"
    ):
        choose_model(ADDRESS)


def test_all_parts_are_downloaded_and_the_first_is_loaded(hub: Hub) -> None:
    path = pull_model(f"{ADDRESS}:F16@v1")
    assert path.name == "Tiny-F16-00001-of-00002.gguf"
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "Tiny-F16-00001-of-00002.gguf",
        "Tiny-F16-00002-of-00002.gguf",
    ]
    second = path.with_name("Tiny-F16-00002-of-00002.gguf")
    assert Settings(str(second)).file() == path
    path.unlink()
    with pytest.raises(ModelUnavailable, match=r"is incomplete: put Tiny-F16-00001-of-00002\.gguf beside it"):
        Settings(str(second)).file()
    with pytest.raises(ModelUnavailable, match="is not on this machine"):
        Settings(f"{ADDRESS}:F16@v1").file()


def test_a_download_that_breaks_off_goes_on_from_there(hub: Hub) -> None:
    hub.dies_at = 2_500_000
    assert pull_model(ADDRESS).read_bytes() == BYTES
    assert [first > 1_000_000 for _, first in hub.ranges] == [False, True]


def test_after_a_kill_the_next_pull_goes_on_and_the_part_is_never_used(hub: Hub, tmp_path: Path) -> None:
    hub.hangs_at = 2_500_000
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert hub.hung.wait(60)
        while not any(part.stat().st_size for part in (tmp_path / "models").rglob(".partial/*.gguf")):
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    hub.hangs_at = None
    with pytest.raises(ModelNotPulled):
        choose_model(ADDRESS)
    lines: list[str] = []
    path = pull_model(ADDRESS, announce=lines.append)
    assert path.read_bytes() == BYTES
    assert lines[1].endswith(f"from the hub, after {hub.ranges[1][1]:,} bytes that are here.")
    assert hub.ranges[1][1] >= 1 << 20
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_bytes_with_another_checksum_than_the_listed_one_are_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.sums["Tiny-Q4_K_M.gguf"] = "0" * 64
    with pytest.raises(PullFailed, match=f"its file has the SHA-256 .*, not {'0' * 64} as the hub lists. Pull it"):
        pull_model(ADDRESS)
    assert not list((tmp_path / "models").rglob("*.gguf"))


@pytest.mark.parametrize(
    ("piece", "answer", "said"),
    [
        ("/api/", (404, "RepoNotFound"), "the hub has no somebody/Tiny-GGUF, or it is private; check the name"),
        ("/api/", (404, "RevisionNotFound"), "has no revision v9; leave @v9 out"),
        (
            "/api/",
            (403, "GatedRepo"),
            r"is gated; accept its terms at http.*/somebody/Tiny-GGUF, then set HF_TOKEN",
        ),
        ("/api/", (500, ""), "500 .*HF_ENDPOINT names a mirror"),
        ("/resolve/", (403, "GatedRepo"), "is gated; accept its terms .* What has arrived is kept"),
    ],
)
def test_a_refusal_says_what_to_do(piece: str, answer: tuple[int, str], said: str, hub: Hub) -> None:
    hub.errors[piece] = answer
    with pytest.raises(PullFailed, match=said):
        pull_model(f"{ADDRESS}@v9")


@pytest.mark.parametrize("checksum", ["", "../../../../x", "A" * 64])
def test_a_listed_checksum_that_is_none_names_no_folder(checksum: str, hub: Hub, tmp_path: Path) -> None:
    hub.sums = dict.fromkeys(FILES, checksum)
    with pytest.raises(PullFailed, match="its list of the files cannot be read"):
        pull_model(ADDRESS)
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.parametrize("name", ["../../../x-Q4_K_M.gguf", "/x-Q4_K_M.gguf", "a\\..\\..\\x-Q4_K_M.gguf"])
def test_a_listed_name_leads_out_of_no_folder(name: str, hub: Hub, tmp_path: Path) -> None:
    hub.files = {name: BYTES}
    with pytest.raises(PullFailed, match="is not the path of a file in a repository"):
        pull_model(ADDRESS)
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.parametrize(
    "record",
    [
        "{",
        '{"address": "hf:../x", "commit": "c", "files": []}',
        '{"address": "hf:somebody/Tiny-GGUF", "commit": "c", "files": []}',
        '{"address": "hf:../x", "commit": "c", "files": [{"name": "a", "size": 1, "sha256": "%s"}]}' % ("0" * 64),
        '{"address": "hf:o/r", "commit": "c", "files": [{"name": "a", "size": 1, "sha256": "../x"}]}',
    ],
)
def test_a_damaged_record_is_that_of_no_download(record: str, hub: Hub) -> None:
    """The list of models, `path` and `remove` say what they say without it."""
    record_file(read_address(ADDRESS)).parent.mkdir(parents=True)
    record_file(read_address(ADDRESS)).write_text(record)
    for command, said in {"list": "Folder:", "path": "models pull", "remove": "was not on this machine"}.items():
        done = CliRunner().invoke(app, ["models"] if command == "list" else ["models", command, ADDRESS])
        assert said in done.output, done.output
        assert "Also here" not in done.output


def test_offline_and_unreachable_hubs_are_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PullFailed, match=r"ConnectError: .*Connect to the hub \(HF_ENDPOINT names a mirror"):
        pull_model(ADDRESS)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PullFailed, match=r"HF_HUB_OFFLINE is set\. .*HF_HUB_OFFLINE must not be set"):
        pull_model(ADDRESS)


def test_a_full_disk_is_seen_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(PullFailed, match=r"needs 3 MB more of disk space, .* set RLM_DSPY_MODELS"):
        pull_model(ADDRESS)
    assert hub.ranges == []


@pytest.mark.long
def test_a_silent_hub_is_passed_over(hub: Hub) -> None:
    path = pull_model(ADDRESS)
    hub.silent = True
    lines: list[str] = []
    assert pull_model(ADDRESS, announce=lines.append) == path
    assert lines[1].startswith("The hub is passed over (no answer within 10 seconds).")
    with pytest.raises(PullFailed, match="no answer within 10 seconds"):
        pull_model(f"{ADDRESS}:Q8_0")


@pytest.mark.long
def test_a_hub_that_hangs_in_a_file_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    hub.hangs_at = 0
    with pytest.raises(PullFailed, match=r"ReadTimeout: .* What has arrived is kept"):
        pull_model(ADDRESS)


def test_a_gguf_file_needs_no_ending(tmp_path: Path) -> None:
    """As in the stores of other programs."""
    (tmp_path / "sha256-abc").write_bytes(b"GGUF")
    assert choose_model(str(tmp_path / "sha256-abc")).model.startswith("embedded/sha256-abc-")
