"""The parts of the confinement that can be shown without a worker."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

import pytest

from rlm_dspy.interpreters.confinement import seccomp, syscalls
from rlm_dspy.interpreters.confinement.limits import WorkerLimits
from rlm_dspy.interpreters.host.scratch import remove_tree

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
RENAMED = {"fstatat": "newfstatat"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is of Linux")


@pytest.mark.parametrize("machine", HEADERS)
def test_numbers_of_system_calls_are_those_of_the_kernel(machine: str) -> None:
    """Compared with its headers, where they are installed."""
    if not HEADERS[machine].exists():
        pytest.skip("no kernel headers")
    defined = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", HEADERS[machine].read_text(), re.MULTILINE)
    numbers = {RENAMED.get(name, name): int(number) for name, number in defined}
    known = syscalls.allowed(machine) | syscalls.checked(machine) | syscalls.own(machine)
    assert {name: numbers.get(name) for name in known} == known


@pytest.mark.parametrize("machine", syscalls.AUDIT_ARCH)
def test_no_call_is_both_allowed_and_checked(machine: str) -> None:
    """Or its arguments would not matter."""
    assert not set(syscalls.allowed(machine).values()) & set(syscalls.checked(machine).values())
    assert not set(syscalls.own(machine).values()) & set(syscalls.allowed(machine).values())


def ran(code: bytes, arch: int, number: int, *arguments: int) -> int:
    """Interpret a filter as the kernel would; what it answers."""
    data = struct.pack("<iIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    at, accumulator = 0, 0
    while True:
        kind, true, false, constant = struct.unpack_from("<HBBI", code, 8 * at)
        at += 1
        if kind == 0x06:
            return int(constant)
        if kind == 0x20:
            accumulator = struct.unpack_from("<I", data, constant)[0]
        elif kind == 0x54:
            accumulator &= constant
        else:
            tests = {
                0x15: accumulator == constant,
                0x35: accumulator >= constant,
                0x45: bool(accumulator & constant),
            }
            at += true if tests[kind] else false


ALLOW, EPERM, ENOSYS, ENOTTY, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x50019, 0x80000000


@pytest.mark.parametrize("machine", syscalls.AUDIT_ARCH)
@pytest.mark.parametrize(
    ("call", "arguments", "answer"),
    [
        ("read", (0,), ALLOW),
        ("getrandom", (), ALLOW),
        ("uname", (), ALLOW),
        ("clone", (0x11,), ALLOW),
        ("clone", (0x10000 | 0x100,), ALLOW),
        ("clone", (0x10000000 | 0x11,), EPERM),
        ("clone", (0x40000000 | 0x10000,), EPERM),
        ("clone3", (), ENOSYS),
        ("socketpair", (1, 1), ALLOW),
        ("socketpair", (1, 1 | 0o2004000), ALLOW),
        ("socketpair", (1, 2), EPERM),
        ("socketpair", (2, 1), EPERM),
        ("prlimit64", (0, 7, 0, 4096), ALLOW),
        ("prlimit64", (0, 7, 4096, 0), EPERM),
        ("prlimit64", (0, 7, 1 << 40, 0), EPERM),
        ("prlimit64", (77, 7, 0, 4096), EPERM),
        ("openat", (0, 0, 0o1101), ALLOW),
        ("openat", (0, 0, 0o1000), EPERM),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), ENOTTY),
        ("fcntl", (0, 3), ALLOW),
        ("fcntl", (0, 8), EPERM),
        ("prctl", (15,), ALLOW),
        ("prctl", (1,), EPERM),
        ("kill", (0,), ALLOW),
        ("kill", (5,), EPERM),
    ],
)
def test_a_filter_answers_by_call_and_arguments(
    machine: str, call: str, arguments: tuple[int, ...], answer: int
) -> None:
    """On both machines; checked by interpreting it."""
    code = seccomp.program(machine, signals=False)
    numbers = syscalls.allowed(machine) | syscalls.checked(machine)
    assert ran(code, syscalls.AUDIT_ARCH[machine], numbers[call], *arguments) == answer


@pytest.mark.parametrize("machine", syscalls.AUDIT_ARCH)
def test_a_filter_refuses_what_it_does_not_name(machine: str) -> None:
    """Every other number; another machine's calls end the process."""
    code = seccomp.program(machine, signals=True)
    named = set((syscalls.allowed(machine) | syscalls.checked(machine)).values())
    arch = syscalls.AUDIT_ARCH[machine]
    assert all(ran(code, arch, number) == EPERM for number in range(600) if number not in named)
    assert ran(code, 0x40000003, 1) == KILL
    clone = syscalls.checked(machine)["clone"]
    assert ran(code, arch, clone, 0x10000000) == EPERM
    if machine == "x86_64":
        assert ran(code, arch, 0x40000001) == KILL


def test_an_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers would be guesses."""
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(OSError, match="riscv64"):
        syscalls.machine()


def test_a_deep_tree_is_removed_and_links_are_not_followed(tmp_path: Path) -> None:
    """Whatever its permissions."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    root = folder = tmp_path / "root"
    for _ in range(300):
        folder.mkdir()
        (folder / "link").symlink_to(kept)
        (folder / "file").touch()
        folder = folder / "deeper"
    (root / "deeper").chmod(0)
    remove_tree(root)
    assert not root.exists()
    assert (kept / "file").exists()


@pytest.mark.parametrize("name", ["memory_bytes", "max_processes", "scratch_bytes", "max_open_files"])
def test_limits_that_no_worker_could_live_with_are_refused(name: str) -> None:
    """At once, and by name."""
    with pytest.raises(ValueError, match=name):
        WorkerLimits(**{name: 1})
