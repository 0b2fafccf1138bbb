"""What runs in the process of a confined call: it locks itself in, then runs the foreign source.

A script of its own that imports nothing but the standard library: `confined.run_confined` starts
it with an isolated interpreter. Three walls of the Linux kernel, all of which hold without rights:

- Landlock: files are read below the interpreter's library and the system's libraries only, and
  plain files written in one private folder.
- seccomp: a list of the system calls that computing and those files need; every other one, so
  sockets, new processes and threads, signals to others, mounts and keys, fails with EACCES.
- limits on memory, processor time, the size of a file and open files.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import struct
import sys
import types
from pathlib import Path
from typing import Any

UNCONFINED = 77
"""Exit status when a wall cannot be put up; the reason is the last line of stderr."""

_LANDLOCK = 3
"""The first version that holds back truncation too (Linux 6.2)."""
_WRITE, _READ, _LIST, _REMOVE, _MAKE, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8, 1 << 14
_EVERY_RIGHT = (1 << 15) - 1

# The numbers of: read write close lseek mmap mprotect munmap brk madvise mremap msync, rt_sig*,
# sigaltstack, p/read/write/v, dup*, pipe*, select and poll, f/stat*, f/access*, open*,
# getdents*, getcwd, rename*, unlink*, ftruncate, f/data/sync, clocks, sleeps and timers, futex,
# robust_list, rseq, tid_address, get*id, uname, sysinfo, times, rusage, getrandom, affinity, exit*.
_X86_64 = (
    *range(16),
    *(17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 28, 32, 33, 34, 35, 36, 37, 38, 39, 60, 63, 74, 75),
    *(77, 78, 79, 82, 87, 96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 115, 131, 186, 201),
    *(202, 204, 217, 218, 219, 228, 229, 230, 231, 257, 262, 263, 264, 269, 270, 271, 273),
    *(292, 293, 316, 318, 332, 334, 439),
)
_AARCH64 = (
    *(17, 23, 24, 35, 38, 46, 48, 56, 57, 59, 61, 62, 63, 64, 65, 66, 67, 68, 72, 73, 79, 80),
    *(82, 83, 93, 94, 96, 98, 99, 101, 102, 103, 113, 114, 115, 123, 124, 128, 132, 134, 135, 139),
    *(153, 158, 160, 163, 165, 169, 172, 173, 174, 175, 176, 177, 178, 179, 214, 215, 216, 222),
    *(226, 227, 233, 276, 278, 291, 293, 439),
)
_MACHINES = {
    "x86_64": (0xC000003E, _X86_64, 72, 302),
    "aarch64": (0xC00000B7, _AARCH64, 25, 261),
}
"""The kernel's mark of a machine, the calls that pass, and those of fcntl and prlimit64."""

_LOAD, _EQUAL, _GREATER, _RETURN = 0x20, 0x15, 0x25, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | 13
_FCNTL_DUPFD_CLOEXEC = 1030


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def _filter(mark: int, passing: tuple[int, ...], fcntl: int, prlimit: int) -> bytes:
    """The seccomp program.

    fcntl passes with the commands up to F_SETLKW, which leave out F_SETOWN and F_SETSIG (they send
    signals to other processes), prlimit64 only without a new limit.
    """
    number, argument_1, argument_2 = 0, 24, 32
    code = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, mark),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, number),
    ]
    for call in passing:
        code += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, _ALLOW)]
    code += [
        (_EQUAL, 0, 5, fcntl),
        (_LOAD, 0, 0, argument_1),
        (_EQUAL, 1, 0, _FCNTL_DUPFD_CLOEXEC),
        (_GREATER, 1, 0, 7),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
        (_EQUAL, 0, 5, prlimit),
        (_LOAD, 0, 0, argument_2),
        (_EQUAL, 0, 3, 0),
        (_LOAD, 0, 0, argument_2 + 4),
        (_EQUAL, 0, 1, 0),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("<HBBI", *line) for line in code)


def _stop(reason: str) -> None:
    sys.stderr.write(reason)
    sys.stderr.flush()
    os._exit(UNCONFINED)


def _asked(libc: Any, *arguments: Any) -> int:
    """A system call by its number; arguments as wide as a register."""
    wide = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    return libc.syscall(*wide)


def _restrict_files(libc: Any, readable: list[str], folder: str) -> None:
    version = _asked(libc, 444, None, 0, 1)
    if version < _LANDLOCK:
        _stop(f"Landlock is at version {max(version, 0)}, which needs to be {_LANDLOCK} at least")
    rules = _asked(libc, 444, ctypes.byref(ctypes.c_uint64(_EVERY_RIGHT)), 8, 0)
    rights = dict.fromkeys(readable, _READ | _LIST)
    rights[folder] = _WRITE | _READ | _LIST | _REMOVE | _MAKE | _TRUNCATE
    for path, granted in rights.items():
        if Path(path).is_dir():
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = ctypes.create_string_buffer(struct.pack("=Qi", granted, place), 12)
            if _asked(libc, 445, rules, 1, ctypes.byref(rule), 0):
                _stop(f"Landlock takes no rule for {path}")
            os.close(place)
    if _asked(libc, 446, rules, 0):
        _stop("Landlock does not take the rules")
    os.close(rules)


def confine(readable: list[str], folder: str, limits: dict[str, int]) -> None:
    """Lock this process in for good, or end it with `UNCONFINED`."""
    if platform.machine() not in _MACHINES:
        _stop(f"the processor is {platform.machine()!r}, which needs to be x86_64 or aarch64")
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    # Empty user, network and IPC namespaces where the machine grants them: a second wall, and the
    # one that takes root's rights. The others hold without it.
    libc.unshare(0x10000000 | 0x40000000 | 0x08000000)
    libc.prctl(1, *map(ctypes.c_ulong, (9, 0, 0, 0)))
    libc.prctl(38, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    _restrict_files(libc, readable, folder)
    code = _filter(*_MACHINES[platform.machine()])
    lines = ctypes.create_string_buffer(code, len(code))
    program = _Filter(len(code) // 8, ctypes.addressof(lines))
    if libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(program)):
        _stop("the kernel takes no seccomp filter")


def main() -> None:
    """Read the job from stdin, run it confined, and write its result to the descriptor named."""
    job = json.load(sys.stdin.buffer)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    confine(job["readable"], job["folder"], job["limits"])
    module = types.ModuleType("grader")
    sys.modules["grader"] = module
    exec(compile(job["source"], "grader.py", "exec", dont_inherit=True), module.__dict__)
    function = getattr(module, job["call"], None)
    if function is None:
        sys.exit(f"the source defines no function {job['call']}")
    value = function(*job["arguments"])
    with open(int(sys.argv[1]), "w", encoding="utf-8") as result:  # noqa: PTH123
        json.dump(value, result)


if __name__ == "__main__":
    main()
