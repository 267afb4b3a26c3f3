"""Further attempts to leave the confinement, of the kind of `attacks.py`, whose tools and targets they use."""

from __future__ import annotations

import ctypes
import inspect
import os
import struct
import sys
from typing import Any

from tests.attacks import NAMES, T, call, reached, text_of

# --- files


def read_after_moving_into_scratch() -> bool:
    os.rename(T["secret"], "moved")
    return T["canary"] in text_of("moved")


def read_by_exchanging_names() -> bool:
    open("own", "w").close()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, b"own", -100, T["secret"].encode(), 2) != 0:
        return False
    found = T["canary"] in text_of("own")
    libc.renameat2(-100, b"own", -100, T["secret"].encode(), 2)
    return found


def read_from_the_folder_itself() -> bool:
    os.chdir(T["folder"])
    return T["canary"] in text_of("secret")


def read_zip_archive_of_the_host() -> bool:
    import zipimport

    return "inside_a_zip" in str(zipimport.zipimporter(T["zip"]).get_source("zipped"))


def write_out_of_scratch() -> bool:
    open("mine", "w").close()
    os.rename("mine", f"{T['folder']}/new")
    return True


def write_through_own_link() -> bool:
    os.symlink(T["writable"], "way_out")
    with open("way_out", "a") as file:
        file.write("changed")
    return True


def write_by_a_shared_map() -> bool:
    import mmap

    with open(T["writable"], "r+b") as file, mmap.mmap(file.fileno(), 4) as shared:
        shared[0] = 67
    return True


def see_link() -> bool:
    return bool(os.readlink(T["a_link"]))


def see_filesystem() -> bool:
    return os.statvfs(T["folder"]).f_blocks > 0


def see_by_going_there() -> bool:
    os.chdir(T["folder"])
    return bool(os.getcwd() == T["folder"])


def see_host_name() -> bool:
    return bool(os.uname().nodename == T["host_name"])


# --- others


def others_lock() -> bool:
    import fcntl

    with open(os.__file__) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def others_lock_shared() -> bool:
    import fcntl

    with open(os.__file__) as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return True


def others_ask_for_locks() -> bool:
    import fcntl

    with open(os.__file__) as file:
        fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("hhqqi4x", 1, 0, 0, 0, 0))
    return True


def others_ask_for_locks_of_descriptions() -> bool:
    import fcntl

    with open(os.__file__) as file:
        fcntl.fcntl(file, 36, struct.pack("hhqqi4x", 1, 0, 0, 0, 0))
    return True


def others_lease() -> bool:
    import fcntl

    with open(os.__file__) as file:
        fcntl.fcntl(file, 1024, fcntl.F_RDLCK)
        fcntl.fcntl(file, 1024, fcntl.F_UNLCK)
    return True


def others_notify() -> bool:
    import fcntl

    folder = os.open(os.path.dirname(os.__file__) + "/json", os.O_RDONLY)
    fcntl.fcntl(folder, 1026, 1)
    return True


def others_page_cache() -> bool:
    import mmap

    with open(os.__file__, "rb") as file:
        shared = mmap.mmap(file.fileno(), 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(shared))
    return call("mincore", address, 4096, ctypes.create_string_buffer(1)) == 0


def others_page_cache_by_reading() -> bool:
    with open(os.__file__, "rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(16)], 0, os.RWF_NOWAIT) >= 0
        except BlockingIOError:  # it is not in the cache
            return True


def others_page_cache_counted() -> bool:
    return reached("cachestat", 0, 0, 0, 0)


def others_evict_from_the_cache() -> bool:
    with open(os.__file__, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def others_signal_by_thread() -> bool:
    return call("tkill", T["victim"], 0) == 0


def others_session() -> bool:
    return call("getsid", T["victim"]) >= 0  # 0: its leader lives outside of this PID namespace, as in containers


def others_see_priority() -> bool:
    os.getpriority(os.PRIO_PROCESS, T["victim"])
    return True


def others_see_processors() -> bool:
    return bool(os.sched_getaffinity(T["victim"]))


def others_see_scheduling() -> bool:
    return call("sched_getattr", T["victim"], ctypes.create_string_buffer(64), 64, 0) == 0


def others_robust_list() -> bool:
    head, size = ctypes.c_void_p(), ctypes.c_size_t()
    return call("get_robust_list", T["host"], ctypes.byref(head), ctypes.byref(size)) == 0


# --- the kernel


def kernel_list_mounts() -> bool:
    return reached("listmount", 0, 0, 0, 0)


def kernel_facts_of_a_mount() -> bool:
    return reached("statmount", 0, 0, 0, 0)


def kernel_move_mount() -> bool:
    return reached("move_mount", -1, 0, -1, 0, 0)


def kernel_secret_memory() -> bool:
    return reached("memfd_secret", 1 << 30)


def kernel_splice_memory() -> bool:
    return reached("vmsplice", -1, 0, 0, 0)


def kernel_memory_policy() -> bool:
    return reached("set_mempolicy", 0, 0, 0)


def kernel_move_pages() -> bool:
    return reached("move_pages", 0, 0, 0, 0, 0, 0)


def kernel_quota_by_descriptor() -> bool:
    return reached("quotactl_fd", -1, 0, 0, 0)


def kernel_groups() -> bool:
    return reached("setgroups", 0, 0)


def kernel_file_system_user() -> bool:
    return reached("setfsuid", os.getuid())


def kernel_scheduling() -> bool:
    return call("sched_setscheduler", 0, 3, ctypes.create_string_buffer(8)) == 0


# --- limits


def limits_shared_memory_that_is_used() -> bool:
    import mmap

    taken = mmap.mmap(-1, T["memory"])
    for at in range(0, len(taken), 4096):
        taken[at] = 1
    return True


def limits_map_of_zeros() -> bool:
    import mmap

    taken = mmap.mmap(os.open("/dev/zero", os.O_RDWR), T["memory"])
    for at in range(0, len(taken), 4096):
        taken[at] = 1
    return True


def limits_memory_that_grows_as_a_stack() -> bool:
    import mmap

    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100
    taken = mmap.mmap(-1, T["memory"], flags=flags)
    for at in range(0, len(taken), 4096):
        taken[at] = 1
    return True


def limits_memory_of_orphans() -> bool:
    import time

    read, write = os.pipe()
    for _ in range(12):
        if os.fork() == 0:
            if os.fork() == 0:
                taken = bytearray(T["memory"] // 8)
                taken[::4096] = bytes(len(taken[::4096]))
                time.sleep(30)  # the host looks twice a second
                os.write(write, b"x")
            os._exit(0)
        os.wait()
    os.close(write)
    return len(os.read(read, 1)) == 1


def limits_files() -> bool:
    for number in range(T["files"]):
        os.close(os.open(f"file{number}", os.O_CREAT))
    return True


def limits_pipe_memory() -> bool:
    import fcntl

    _, write = os.pipe()
    return fcntl.fcntl(write, 1031, 1 << 20) > 0


# --- what tells of the host


def secrets_arguments() -> bool:
    return any("/" in word for word in [*sys.argv, *sys.orig_argv, sys.executable, sys.prefix] if word != "/usr")


def secrets_search_path() -> bool:
    import gc

    places = [*sys.path, *sys.path_importer_cache]
    frame: Any = sys._getframe()
    while frame is not None:
        places += [str(value) for value in frame.f_locals.values() if isinstance(value, (dict, list, tuple))]
        frame = frame.f_back
    lists = [item for item in gc.get_objects() if isinstance(item, list) and len(item) < 100]
    places += [word for item in lists for word in item if isinstance(word, str)]
    return any(T["search"] in place for place in places if T["canary"] not in place)


FURTHER = {
    name: function
    for name, function in list(globals().items())
    if inspect.isfunction(function) and name.partition("_")[0] in NAMES
}
