"""Numbers of the system calls that the confinement names: those it allows, checks, or makes itself.

Taken from the kernel's tables, `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h`.
"""

from __future__ import annotations

import platform

_Numbers = dict[str, tuple[int | None, int | None]]
"""Name to (x86_64, aarch64); None where a machine does not have the call."""

# fmt: off
_ALLOWED: _Numbers = {
    # hot paths first: a filter tests one after the other
    "read": (0, 63), "write": (1, 64), "futex": (202, 98), "recvmsg": (47, 212), "sendmsg": (46, 211),
    "recvfrom": (45, 207), "sendto": (44, 206), "ppoll": (271, 73), "poll": (7, None), "close": (3, 57),
    "fstat": (5, 80), "lseek": (8, 62), "munmap": (11, 215),
    # memory
    "mprotect": (10, 226), "brk": (12, 214), "madvise": (28, 233), "mremap": (25, 216), "msync": (26, 227),
    # signals to itself
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    # files that are open
    "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "preadv": (295, 69),
    "pwritev": (296, 70), "copy_file_range": (326, 285),
    "fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46), "fallocate": (285, 47),
    "close_range": (436, 436), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "getdents": (78, None), "getdents64": (217, 61),
    "fstatfs": (138, 44), "fchdir": (81, 50),
    # paths
    "newfstatat": (262, 79), "stat": (4, None), "lstat": (6, None), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49), "statfs": (137, 43),
    "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None),
    "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "symlink": (88, None), "symlinkat": (266, 36), "creat": (85, None), "umask": (95, 166),
    # pipes, events, the socket it was given
    "pipe": (22, None), "pipe2": (293, 59), "select": (23, None), "pselect6": (270, 72),
    "shutdown": (48, 210), "getsockname": (51, 204), "getpeername": (52, 205), "getsockopt": (55, 209),
    "epoll_create": (213, None), "epoll_create1": (291, 20), "epoll_ctl": (233, 21),
    "epoll_wait": (232, None), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441), "eventfd": (284, None),
    "eventfd2": (290, 19), "timerfd_create": (283, 85), "timerfd_settime": (286, 86),
    "timerfd_gettime": (287, 87),
    # time
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    "getitimer": (36, 102), "setitimer": (38, 103), "alarm": (37, None), "pause": (34, None),
    "timer_create": (222, 107), "timer_settime": (223, 110), "timer_gettime": (224, 108),
    "timer_getoverrun": (225, 109), "timer_delete": (226, 111),
    # threads and children
    "exit": (60, 93), "exit_group": (231, 94), "wait4": (61, 260), "waitid": (247, 95), "fork": (57, None),
    "vfork": (58, None),
    "set_tid_address": (218, 96), "set_robust_list": (273, 99),
    "futex_waitv": (449, 449), "rseq": (334, 293), "membarrier": (324, 283), "sched_yield": (24, 124),
    "getcpu": (309, 168), "arch_prctl": (158, None),
    "restart_syscall": (219, 128),
    # who and where it is
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getpgrp": (111, None),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150), "getrlimit": (97, 163),
    "getrusage": (98, 165), "getrandom": (318, 278), "sysinfo": (99, 179), "uname": (63, 160),
}
_CHECKED: _Numbers = {
    "mmap": (9, 222), "sched_getaffinity": (204, 123), "clone": (56, 220), "clone3": (435, 435), "ioctl": (16, 29),
    "fcntl": (72, 25), "prctl": (157, 167), "prlimit64": (302, 261), "socketpair": (53, 199),
    "kill": (62, 129), "tgkill": (234, 131), "openat": (257, 56), "open": (2, None),
}
_OWN: _Numbers = {
    "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446), "seccomp": (317, 277), "pivot_root": (155, 41),
    "mount_setattr": (442, 442), "capset": (126, 91),
}
# fmt: on

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""The machine as a seccomp filter sees it; only these are known here."""


def machine() -> str:
    """Return this machine's name.

    Raises:
        OSError: If its system call numbers are not known here.
    """
    name = platform.machine()
    if name not in AUDIT_ARCH:
        raise OSError(f"the system call numbers of {name or 'this machine'} are not known")
    return name


def _column(table: _Numbers, name: str) -> dict[str, int]:
    column = list(AUDIT_ARCH).index(name)
    return {call: number for call, numbers in table.items() if (number := numbers[column]) is not None}


def allowed(name: str) -> dict[str, int]:
    """Return the calls that a worker on machine `name` may make with any arguments."""
    return _column(_ALLOWED, name)


def checked(name: str) -> dict[str, int]:
    """Return the calls whose arguments decide."""
    return _column(_CHECKED, name)


def own(name: str) -> dict[str, int]:
    """Return the calls that the confinement itself makes by number."""
    return _column(_OWN, name)
