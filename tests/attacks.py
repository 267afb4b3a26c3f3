"""Attempts to leave the confinement, each a function that runs inside a cell and returns whether it did harm.

Their sources are sent to a worker with the tools above them; `T` holds the targets that the attacked side set up.
Each is harmless where it succeeds: it touches nothing but those targets.
"""

from __future__ import annotations

import ctypes
import errno
import inspect
import os
import platform
import signal
import socket
import struct
import sys
from typing import Any

T: dict[str, Any] = {}

# fmt: off
NUMBERS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "kcmp": (312, 272), "perf_event_open": (298, 241),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "clone": (56, 220), "clone3": (435, 435), "io_uring_setup": (425, 425), "bpf": (321, 280),
    "userfaultfd": (323, 282), "add_key": (248, 217), "keyctl": (250, 219), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "init_module": (175, 105), "finit_module": (313, 273),
    "kexec_load": (246, 104), "syslog": (103, 116), "personality": (135, 92), "quotactl": (179, 60),
    "sethostname": (170, 161), "acct": (163, 89), "swapon": (167, 224), "memfd_create": (319, 279),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27), "fanotify_init": (300, 262), "mknodat": (259, 33), "execveat": (322, 281),
    "setsid": (112, 157), "setpgid": (109, 154), "mlock": (149, 228), "open_tree": (428, 428), "fsopen": (430, 430),
    "ioprio_set": (251, 30), "process_madvise": (440, 440), "openat2": (437, 437), "clock_settime": (227, 112),
    "tkill": (200, 130), "getsid": (124, 156), "get_robust_list": (274, 100), "sched_getattr": (315, 275),
    "sched_setscheduler": (144, 119), "listmount": (458, 458), "statmount": (457, 457), "move_mount": (429, 429),
    "memfd_secret": (447, 447), "vmsplice": (278, 75), "set_mempolicy": (238, 237), "move_pages": (279, 239),
    "setfsuid": (122, 151), "setgroups": (116, 159), "mincore": (27, 232), "preadv2": (327, 286),
    "quotactl_fd": (443, 443), "cachestat": (451, 451), "mmap": (9, 222),
    "setuid": (105, 146), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "getpid": (39, 172),
}
# fmt: on
REFUSED = (errno.EPERM, errno.EACCES, errno.ENOSYS)


def call(name: str, *arguments: Any) -> int:
    """Make a system call; what it returns, or minus errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    number = NUMBERS[name][0 if platform.machine() == "x86_64" else 1]
    native = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    result = libc.syscall(ctypes.c_long(number), *native)
    return -ctypes.get_errno() if result < 0 else int(result)


def reached(name: str, *arguments: Any) -> bool:
    """Whether the kernel acted on the call: it did not say that it is not allowed."""
    return -call(name, *arguments) not in REFUSED


def in_child(act: Any) -> bool:
    """Run `act` in a child, which it may end; whether it returned true."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(42 if act() else 0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def text_of(path: str) -> str:
    """What is in a file."""
    with open(path, errors="replace") as file:
        return file.read()


# --- network


def network_tcp_connect() -> bool:
    socket.create_connection(("127.0.0.1", T["tcp"]), 2)
    return True


def network_tcp_connect_by_name() -> bool:
    socket.create_connection(("localhost", T["tcp"]), 2)
    return True


def network_tcp_listen() -> bool:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return True


def network_tcp_ipv6() -> bool:
    socket.socket(socket.AF_INET6).bind(("::1", 0))
    return True


def network_udp_send() -> bool:
    return socket.socket(type=socket.SOCK_DGRAM).sendto(b"out", ("127.0.0.1", T["udp"])) == 3


def network_udp_bind() -> bool:
    socket.socket(type=socket.SOCK_DGRAM).bind(("0.0.0.0", 0))
    return True


def network_raw() -> bool:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    return True


def network_packet() -> bool:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    return True


def network_netlink() -> bool:
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    link.bind((0, 0))
    return True


def network_vsock() -> bool:
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    return True


def network_unix_path() -> bool:
    socket.socket(socket.AF_UNIX).connect(T["unix"])
    return True


def network_unix_path_datagram() -> bool:
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"out", T["unix_datagram"])
    return True


def network_unix_datagram_from_a_pair() -> bool:
    first, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return first.sendto(b"out", T["unix_datagram"]) == 3


def network_abstract() -> bool:
    socket.socket(socket.AF_UNIX).connect(T["abstract"])
    return True


def network_unix_listen() -> bool:
    socket.socket(socket.AF_UNIX).bind(f"{T['folder']}/own.sock")
    return True


# --- reading files


def read_secret() -> bool:
    return T["canary"] in text_of(T["secret"])


def read_etc_passwd() -> bool:
    return "root:" in text_of("/etc/passwd")


def read_etc_hosts() -> bool:
    return bool(text_of("/etc/hosts"))


def read_folder() -> bool:
    return bool(os.listdir(T["folder"]))


def read_root_folder() -> bool:
    return "passwd" in os.listdir("/etc") or "root" in os.listdir("/home")


def read_through_link() -> bool:
    os.symlink(T["secret"], "link_to_secret")
    return T["canary"] in text_of("link_to_secret")


def read_through_hard_link() -> bool:
    os.link(T["secret"], "hard_link_to_secret")
    return T["canary"] in text_of("hard_link_to_secret")


def read_through_dots() -> bool:
    return T["canary"] in text_of("../" * 40 + T["secret"].lstrip("/"))


def read_through_own_root() -> bool:
    return T["canary"] in text_of(f"/proc/self/root{T['secret']}")


def read_through_host_root() -> bool:
    return T["canary"] in text_of(f"/proc/{T['host']}/root{T['secret']}")


def read_through_openat2() -> bool:
    path = ctypes.c_char_p(T["secret"].encode())
    fd = call("openat2", -100, path, ctypes.c_char_p(bytes(24)), 24)
    return fd >= 0 and T["canary"].encode() in os.read(fd, 1000)


def read_folder_of_tests() -> bool:
    return bool(text_of(T["source"]))


def read_shared_memory_file() -> bool:
    return T["canary"] in text_of(T["dev_shm"])


def read_processes() -> bool:
    return any(name.isdigit() for name in os.listdir("/proc"))


def read_host_command_line() -> bool:
    return bool(text_of(f"/proc/{T['host']}/cmdline"))


def read_host_environment() -> bool:
    return T["canary"] in text_of(f"/proc/{T['host']}/environ")


def read_host_maps() -> bool:
    return bool(text_of(f"/proc/{T['host']}/maps"))


def read_host_memory() -> bool:
    with open(f"/proc/{T['host']}/mem", "rb", buffering=0) as memory:
        memory.seek(T["host_address"])
        return bool(memory.read(8) == T["canary"].encode()[:8])


def read_host_folder() -> bool:
    return bool(os.readlink(f"/proc/{T['host']}/cwd"))


def read_own_maps() -> bool:
    return bool(text_of("/proc/self/maps"))


def read_sys() -> bool:
    return bool(os.listdir("/sys"))


def read_devices() -> bool:
    return "pts" in os.listdir("/dev")


def read_open_by_handle() -> bool:
    return reached("open_by_handle_at", -1, 0, 0)


def read_name_to_handle() -> bool:
    return reached("name_to_handle_at", -100, ctypes.c_char_p(T["secret"].encode()), 0, 0, 0)


def read_watch() -> bool:
    fd = call("inotify_init1", 0)
    return fd >= 0 and call("inotify_add_watch", fd, ctypes.c_char_p(T["folder"].encode()), 0xFFF) >= 0


def read_fanotify() -> bool:
    return reached("fanotify_init", 0, 0)


def read_installed_package() -> bool:
    return bool(text_of(T["package"]))


# --- seeing that files exist


def see_size() -> bool:
    return os.stat(T["secret"]).st_size > 0


def see_whether_it_exists() -> bool:
    return os.access(T["secret"], os.F_OK)


def see_home() -> bool:
    return os.path.isdir(T["folder"])


# --- writing files


def write_secret() -> bool:
    with open(T["writable"], "a") as file:
        file.write("changed")
    return True


def write_new_file() -> bool:
    with open(f"{T['folder']}/new", "w") as file:
        file.write("made")
    return True


def write_truncate() -> bool:
    os.truncate(T["writable"], 0)
    return True


def write_truncate_by_reading() -> bool:
    os.close(os.open(T["writable"], os.O_RDONLY | os.O_TRUNC))
    return True


def write_truncate_python() -> bool:
    os.close(os.open(T["own_library_file"], os.O_RDONLY | os.O_TRUNC))
    return True


def write_python() -> bool:
    with open(T["own_library_file"], "a") as file:
        file.write("#")
    return True


def write_unlink() -> bool:
    os.unlink(T["doomed"])
    return True


def write_rename() -> bool:
    os.rename(T["writable"], f"{T['folder']}/renamed")
    os.rename(f"{T['folder']}/renamed", T["writable"])
    return True


def write_folder() -> bool:
    os.mkdir(f"{T['folder']}/made")
    return True


def write_link() -> bool:
    os.symlink("/", f"{T['folder']}/link")
    return True


def write_hard_link() -> bool:
    os.link(T["writable"], f"{T['folder']}/hard")
    return True


def write_mode() -> bool:
    os.chmod(T["writable"], 0o666)
    return True


def write_owner() -> bool:
    os.chown(T["writable"], os.getuid(), os.getgid())
    return True


def write_times() -> bool:
    os.utime(T["writable"], (0, 0))
    return True


def write_attribute() -> bool:
    os.setxattr(T["writable"], "user.mark", b"changed")
    return True


def write_pipe() -> bool:
    os.mkfifo(f"{T['folder']}/pipe")
    return True


def write_device() -> bool:
    return call("mknodat", -100, ctypes.c_char_p(f"{T['folder']}/device".encode()), 0o20666, 0x103) == 0


def write_oom_score() -> bool:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("0")
    return True


def write_executable_memory_file() -> bool:
    return call("memfd_create", ctypes.c_char_p(b"x"), 0) >= 0


# --- processes of others


def others_signal() -> bool:
    os.kill(T["victim"], signal.SIGUSR1)
    return True


def others_exist() -> bool:
    os.kill(T["victim"], 0)
    return True


def others_signal_thread() -> bool:
    return call("tgkill", T["victim"], T["victim"], 0) == 0


def others_queue_signal() -> bool:
    return call("rt_sigqueueinfo", T["victim"], 0, ctypes.c_char_p(struct.pack("iii", 0, 0, -1) + bytes(116))) == 0


def others_handle() -> bool:
    return call("pidfd_open", T["victim"], 0) >= 0


def others_signal_by_handle() -> bool:
    return reached("pidfd_send_signal", -1, 0, 0, 0)


def others_descriptor() -> bool:
    return reached("pidfd_getfd", -1, 0, 0)


def others_trace() -> bool:
    return call("ptrace", 0x4206, T["victim"], 0, 0) == 0


def others_memory() -> bool:
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("QQ", ctypes.addressof(buffer), 8)
    remote = struct.pack("QQ", T["host_address"], 8)
    call("process_vm_readv", T["host"], ctypes.c_char_p(local), 1, ctypes.c_char_p(remote), 1, 0)
    return bool(buffer.raw == T["canary"].encode()[:8])


def others_memory_write() -> bool:
    return reached("process_vm_writev", T["victim"], 0, 0, 0, 0, 0)


def others_priority() -> bool:
    os.setpriority(os.PRIO_PROCESS, T["victim"], 5)
    return True


def others_processors() -> bool:
    os.sched_setaffinity(T["victim"], {0})
    return True


def others_limits() -> bool:
    import resource

    resource.prlimit(T["victim"], resource.RLIMIT_CORE)
    return True


def others_group() -> bool:
    return os.getpgid(T["victim"]) >= 0  # 0: its leader lives outside of this PID namespace, as in containers


def others_io_priority() -> bool:
    return call("ioprio_set", 1, T["victim"], (2 << 13) | 4) == 0


def others_signal_by_descriptor() -> bool:
    import fcntl

    first, _ = socket.socketpair()
    fcntl.fcntl(first, 8, T["victim"])
    return True


def others_compare() -> bool:
    return call("kcmp", T["victim"], T["victim"], 0, 0, 0) >= 0


def others_parent() -> bool:
    os.kill(os.getppid(), 0)
    return True


def others_leave_the_session() -> bool:
    return in_child(lambda: call("setsid") > 0)


def others_leave_the_group() -> bool:
    return in_child(lambda: call("setpgid", 0, 0) == 0)


# --- starting programs


def start_by_exec() -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            os.execv("/bin/sh", ["sh", "-c", "exit 42"])
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def start_by_subprocess() -> bool:
    import subprocess

    return subprocess.run(["/bin/sh", "-c", "exit 42"], check=False).returncode == 42


def start_by_system() -> bool:
    return os.waitstatus_to_exitcode(os.system("exit 42")) == 42


def start_by_spawn() -> bool:
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 42"], {})
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def start_from_memory() -> bool:
    with open("/bin/true", "rb") as file:
        program = file.read()
    fd = call("memfd_create", ctypes.c_char_p(b"x"), 0)
    os.write(fd, program)
    return in_child(lambda: os.execv(f"/proc/self/fd/{fd}", ["true"])) or fd >= 0


def start_python() -> bool:
    import subprocess

    return subprocess.run([T["python"], "-c", "raise SystemExit(42)"], check=False).returncode == 42


# --- the kernel


def kernel_user_namespace() -> bool:
    return in_child(lambda: call("unshare", 0x10000000) == 0)


def kernel_network_namespace() -> bool:
    return in_child(lambda: call("unshare", 0x50000000) == 0)


def kernel_clone_into_namespace() -> bool:
    pid = call("clone", 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return pid > 0 and os.waitpid(pid, 0)[0] == pid


def kernel_clone3() -> bool:
    pid = call("clone3", ctypes.c_char_p(struct.pack("8Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)), 64)
    if pid == 0:
        os._exit(0)
    return pid > 0 and os.waitpid(pid, 0)[0] == pid


def kernel_setns() -> bool:
    return reached("setns", -1, 0)


def kernel_mount() -> bool:
    target = ctypes.c_char_p(T["folder"].encode() + b"/mount")
    return in_child(
        lambda: call("mount", ctypes.c_char_p(b"x"), target, ctypes.c_char_p(b"none"), 0, 0) != -errno.EPERM
    )


def kernel_bind_mount_tree() -> bool:
    return reached("open_tree", -100, ctypes.c_char_p(b"/"), 1)


def kernel_new_filesystem() -> bool:
    return reached("fsopen", ctypes.c_char_p(b"tmpfs"), 0)


def kernel_pivot_root() -> bool:
    return reached("pivot_root", ctypes.c_char_p(b"/nowhere"), ctypes.c_char_p(b"/nowhere"))


def kernel_chroot() -> bool:
    return in_child(lambda: call("chroot", ctypes.c_char_p(b"/")) == 0)


def kernel_io_uring() -> bool:
    return reached("io_uring_setup", 1, ctypes.c_char_p(bytes(120)))


def kernel_bpf() -> bool:
    return reached("bpf", 5, 0, 0)


def kernel_userfaultfd() -> bool:
    return reached("userfaultfd", 1)


def kernel_perf() -> bool:
    return reached("perf_event_open", 0, 0, -1, -1, 0)


def kernel_add_key() -> bool:
    return reached("add_key", ctypes.c_char_p(b"user"), ctypes.c_char_p(b"rlm"), ctypes.c_char_p(b"x"), 1, -2)


def kernel_keyctl() -> bool:
    return reached("keyctl", 0, -3, 0)


def kernel_shared_memory() -> bool:
    return reached("shmget", 0, 0, 0)


def kernel_message_queue() -> bool:
    return reached("msgget", 0x7A7A, 0)


def kernel_semaphores() -> bool:
    return reached("semget", 0x7A7A, 0, 0)


def kernel_posix_queue() -> bool:
    return reached("mq_open", ctypes.c_char_p(b"rlm-none"), 0)


def kernel_log() -> bool:
    return reached("syslog", 10, 0, 0)


def kernel_personality() -> bool:
    return call("personality", 0xFFFFFFFF) >= 0


def kernel_quota() -> bool:
    return reached("quotactl", 0xFFFFFF, 0, 0, 0)


def kernel_host_name() -> bool:
    return reached("sethostname", 0, 1 << 20)


def kernel_accounting() -> bool:
    return reached("acct", ctypes.c_char_p(b"/nowhere/at/all"))


def kernel_swap() -> bool:
    return reached("swapon", ctypes.c_char_p(b"/nowhere/at/all"), 0)


def kernel_clock() -> bool:
    return reached("clock_settime", 99, 0)


def kernel_advise_others() -> bool:
    return reached("process_madvise", -1, 0, 0, 0, 0)


def kernel_become_root() -> bool:
    return in_child(lambda: call("setuid", 0) == 0)


def kernel_terminal_input() -> bool:
    import fcntl

    first, _ = socket.socketpair()
    try:
        fcntl.ioctl(first, 0x8901, struct.pack("i", os.getpid()))  # FIOSETOWN
    except OSError:
        return False
    return True


def kernel_32_bit_calls() -> bool:
    import mmap

    code = {"x86_64": b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"}[platform.machine()]  # getpid by int 0x80

    def act() -> bool:
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        return bool(ctypes.CFUNCTYPE(ctypes.c_int)(address)() > 0)

    return in_child(act)


def kernel_x32_calls() -> bool:
    def act() -> bool:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall(ctypes.c_long(0x40000000 | 39))
        return True

    return in_child(act)


# --- limits


def limits_raise() -> bool:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return True


def limits_processes() -> bool:
    pids = []
    try:
        for _ in range(T["processes"]):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            pids.append(pid)
    except OSError:
        return False
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL) if T["signals"] else None
    return True


def limits_threads() -> bool:
    import threading

    stop = threading.Event()
    try:
        for _ in range(T["processes"]):
            threading.Thread(target=stop.wait, daemon=True).start()
    except RuntimeError:
        return False
    finally:
        stop.set()
    return True


def limits_memory() -> bool:
    return len(bytearray(T["memory"])) > 0


def limits_shared_memory() -> bool:
    import mmap

    chunks = [mmap.mmap(-1, 256 << 20) for _ in range(T["address_space"] >> 28)]
    return bool(chunks)


def limits_file_size() -> bool:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with open("big", "wb") as file:
        file.truncate(T["scratch"])
        file.seek(T["scratch"] - 1)
        file.write(b"x")
    os.unlink("big")
    return True


def limits_open_files() -> bool:
    held = [os.pipe() for _ in range(T["open_files"])]
    for pair in held:
        for fd in pair:
            os.close(fd)
    return True


def limits_locked_memory() -> bool:
    buffer = ctypes.create_string_buffer(1 << 16)
    return call("mlock", ctypes.addressof(buffer), 1 << 16) == 0


def limits_nicer() -> bool:
    os.nice(1)
    return True


# --- secrets of the host, which only a worker that was forked or started by it could hold


def secrets_environment() -> bool:
    return T["canary"] in "\n".join(os.environ.values())


def secrets_c_environment() -> bool:
    environment = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    found, place = [], 0
    while environment[place]:
        found.append(environment[place])
        place += 1
    return any(T["canary"].encode() in item for item in found)


def secrets_objects() -> bool:
    import gc

    dicts = [item for item in gc.get_objects() if isinstance(item, dict) and "canary" not in item]
    return any(isinstance(value, str) and value == T["canary"] for item in dicts for value in list(item.values()))


def secrets_descriptors() -> bool:
    for fd in range(3, 256):
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            if T["canary"].encode() in os.read(fd, 1000):
                return True
        except OSError:
            continue
    return False


def secrets_modules() -> bool:
    return any(name.partition(".")[0] in ("dspy", "litellm", "pytest", "rlm_dspy") for name in sys.modules)


TOOLS = (call, reached, in_child, text_of)
NAMES = ("network", "read", "see", "write", "others", "start", "kernel", "limits", "secrets")
ATTACKS = {
    name: function
    for name, function in list(globals().items())
    if inspect.isfunction(function) and name.partition("_")[0] in NAMES and function not in TOOLS
}


def source(name: str) -> str:
    """What a cell runs to make one attempt; it shows True if that did harm."""
    with open(__file__) as file:
        tools = file.read().partition("\n# --- network")[0].replace("from __future__ import annotations", "")
    from tests.further_attacks import FURTHER

    return f"{tools}\nT = targets\n{inspect.getsource((ATTACKS | FURTHER)[name])}\n{name}()"
