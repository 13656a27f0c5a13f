"""Giving up rights, for good: identity, Landlock, seccomp, resource limits. Linux only, through ctypes."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import resource
import struct
from typing import Any

from .syscalls import ALLOWED, ARCHITECTURES

__all__ = [
    "die_with_parent",
    "drop_identity",
    "fork",
    "landlock",
    "landlock_abi",
    "limit_resources",
    "prepare",
    "seccomp",
    "seccomp_program",
]

_libc = ctypes.CDLL(None, use_errno=True)
# The C library's fork, with the interpreter's lock held: a process of one thread needs none of what the interpreter
# does after a fork, and a run none of what modules registered for it.
_fork = ctypes.PyDLL(None, use_errno=True).fork
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every machine
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
NOBODY = 65534
_SOME_PID = 0x7FFFFFF1  # beyond any process id; stands for the run's own in the prepared filter


def _check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def _prctl(option: int, *values: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    _check(_libc.prctl(option, *padded), f"prctl {option}")


def fork() -> int:
    """0 in the new process, its id in the old one."""
    return _check(_fork(), "fork")


_DEATH = ctypes.c_int(_PR_SET_PDEATHSIG), ctypes.c_ulong(9)


def die_with_parent(parent: int) -> None:
    """The calling process is killed when `parent` dies."""
    if _libc.prctl(*_DEATH) < 0 or os.getppid() != parent:
        os._exit(1)


def drop_identity(paths: list[str]) -> str:
    """Root becomes nobody where nobody can reach `paths`, and loses every capability in any case; says which."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if os.geteuid() != 0:
        return f"uid {os.geteuid()}"
    try:
        for capability in range(41):
            ctypes.set_errno(0)
            _libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
        if all(map(_open_to_all, paths)):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            return f"uid {NOBODY}"
    except OSError:
        pass  # a namespace without that identity; the capabilities go below
    header = struct.pack("Ii", 0x20080522, 0)
    _check(_libc.capset(header, bytes(24)), "capset")
    return "uid 0 without capabilities"


def _open_to_all(path: str) -> bool:
    parts = os.path.realpath(path).split("/")
    ancestors = ["/".join(parts[:n]) or "/" for n in range(1, len(parts) + 1)]
    return all(os.stat(place).st_mode & 0o001 for place in ancestors[:-1]) and bool(os.stat(path).st_mode & 0o004)


def landlock_abi() -> int:
    """Version of the kernel's Landlock; 0 where there is none."""
    return max(0, _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))


def landlock(files: list[str], listings: list[str]) -> int:
    """From here on this process and its children may read `files` (files, or folders with all below) and list the
    folders `listings`, and nothing else of the file system; no TCP, and from ABI 6 no signal and no abstract socket
    to the outside.

    Returns the ABI; raises OSError where the kernel has no Landlock.
    """
    abi = landlock_abi()
    if abi == 0:
        raise OSError(38, "the kernel has no Landlock")
    rights = 13 + (abi >= 2) + (abi >= 3) + (abi >= 5)
    fields = ((1 << rights) - 1, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    attributes = struct.pack("QQQ", *fields)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = _check(
        _libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)), "landlock"
    )
    for path, access in [(path, _READ_FILE) for path in files] + [(path, _READ_DIR) for path in listings]:
        if not os.path.exists(path):  # a link that leads out of the namespace
            continue
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if access == _READ_FILE and os.path.isdir(path):
            access |= _READ_DIR
        rule = struct.pack("=Qi", access, handle)
        _check(_libc.syscall(_LANDLOCK_ADD_RULE, ruleset, 1, rule, ctypes.c_uint32(0)), f"landlock {path}")
        os.close(handle)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _check(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, ctypes.c_uint32(0)), "landlock")
    os.close(ruleset)
    return abi


_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _EACCES, _ENOTTY, _ENOSYS = 1, 13, 25, 38
_CLONE_THREAD = 0x10000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_FCNTL = (0, 1, 2, 3, 1030)  # duplicate, flags; no owner, no signal, no lease: those reach other processes


def seccomp_program(machine: str, pid: int) -> list[tuple[int, int, int, int]]:
    """The filter as (code, jump if true, jump if false, operand): an allow-list of system calls, the rest gets EPERM; a
    call of another architecture kills. Raises KeyError for a machine that has no table."""
    arch, number = ARCHITECTURES[machine]
    blocks = {number[name]: [_answer(_ALLOW)] for name in ALLOWED if name in number}
    blocks |= {number[name]: block for name, block in _conditional(pid).items() if name in number}
    start = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), _answer(_KILL), (_LOAD, 0, 0, 0)]
    start += [(_AT_LEAST, 0, 1, 0x40000000), _answer(_KILL)]  # x32 shares the architecture's number
    return start + _search(sorted(blocks.items()))


def _answer(value: int) -> tuple[int, int, int, int]:
    return _RETURN, 0, 0, value


def _argument(index: int, high: bool = False) -> tuple[int, int, int, int]:
    return _LOAD, 0, 0, 16 + 8 * index + 4 * high  # struct seccomp_data.args, little-endian


def _conditional(pid: int) -> dict[str, list[tuple[int, int, int, int]]]:
    """What the calls of `CONDITIONAL` answer, by their arguments."""
    allow, refuse = _answer(_ALLOW), _answer(_ERRNO | _EPERM)
    reading = [(_ANY_BIT, 0, 1, _WRITING), _answer(_ERRNO | _EACCES), allow]
    commands = [(_EQUAL, len(_FCNTL) - n, 0, command) for n, command in enumerate(_FCNTL)]
    return {
        "clone": [_argument(0), (_ANY_BIT, 0, 1, _CLONE_THREAD), allow, refuse],
        "clone3": [_answer(_ERRNO | _ENOSYS)],  # its flags lie in memory; libc falls back to clone
        "fcntl": [_argument(1), *commands, refuse, allow],
        "ioctl": [_answer(_ERRNO | _ENOTTY)],
        "open": [_argument(1), *reading],
        "openat": [_argument(2), *reading],
        "prlimit64": [  # only to ask: no new limit
            *(_argument(2), (_EQUAL, 0, 3, 0), _argument(2, high=True), (_EQUAL, 0, 1, 0)),
            *(allow, refuse),
        ],
        "tgkill": [_argument(0), (_EQUAL, 0, 1, pid), allow, refuse],
    }


def _search(blocks: list[tuple[int, list]]) -> list[tuple[int, int, int, int]]:
    """A binary search over the numbers. The kernel tries every call at installation: a plain list is slower."""
    if len(blocks) <= 3:
        leaf = [step for number, block in blocks for step in [(_EQUAL, 0, len(block), number), *block]]
        return [*leaf, _answer(_ERRNO | _EPERM)]
    middle = len(blocks) // 2
    low, high = _search(blocks[:middle]), _search(blocks[middle:])
    if len(low) > 255:
        raise ValueError("a jump of the filter is too long")
    return [(_AT_LEAST, len(low), 0, blocks[middle][0]), *low, *high]


def prepare(confined: bool) -> None:
    """What holds for all runs or is the same for each, done once in the process that will fork: it cannot be traced or
    dumped by its equals, leaves no core and locks no memory, and has the filter ready."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE):
        resource.setrlimit(kind, (0, 0))
    _hard.update({kind: resource.getrlimit(kind)[1] for kind in _LIMITED})
    if confined:
        _filter(platform.machine())


@functools.cache
def _filter(machine: str) -> tuple[ctypes.Array, list[int], tuple[Any, ...]]:
    """The filter's bytes, the places of the run's own process id in them, and the arguments of the installing call."""
    data = b"".join(struct.pack("HBBI", *step) for step in seccomp_program(machine, _SOME_PID))
    code = ctypes.create_string_buffer(data, len(data))
    places = [at for at in range(4, len(data), 8) if data[at : at + 4] == struct.pack("I", _SOME_PID)]
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(data) // 8, ctypes.addressof(code)))
    header.code = code  # lives as long
    return code, places, (ctypes.c_int(_PR_SET_SECCOMP), ctypes.c_ulong(2), header)


def seccomp() -> None:
    """Install the allow-list on the calling thread and all it starts. Cannot be undone."""
    code, places, arguments = _filter(platform.machine())
    for place in places:
        code[place : place + 4] = struct.pack("I", os.getpid())
    _check(_libc.prctl(*arguments), "seccomp")


_LIMITED = (
    resource.RLIMIT_AS,
    resource.RLIMIT_DATA,
    resource.RLIMIT_CPU,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_STACK,
)
_hard: dict[int, int] = {}


def limit_resources(cpu_seconds: int, memory_bytes: int) -> None:
    """Hard limits of one run: address space, processor seconds (a backstop), no new file content, 32 files."""
    values = (memory_bytes, memory_bytes, cpu_seconds, 0, 32, min(64 << 20, memory_bytes // 4))
    for kind, value in zip(_LIMITED, values):
        hard = _hard[kind]
        value = value if hard < 0 or value < hard else hard
        resource.setrlimit(kind, (value, value))
