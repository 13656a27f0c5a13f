"""The system-call filter, interpreted: what each machine's table allows, at every number and argument that matters."""

from __future__ import annotations

import pytest

from trueline.sandbox.inside.confine import seccomp_program
from trueline.sandbox.inside.syscalls import ALLOWED, ARCHITECTURES, CONDITIONAL

PID = 4242
ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSED = {name: 0x50000 | code for name, code in {"EPERM": 1, "EACCES": 13, "ENOTTY": 25, "ENOSYS": 38}.items()}


def answer(machine: str, number: int, arguments: tuple[int, ...] = (), arch: int | None = None) -> int:
    """Runs the program as the kernel would: classic BPF over struct seccomp_data."""
    data = number.to_bytes(4, "little") + (arch or ARCHITECTURES[machine][0]).to_bytes(4, "little") + bytes(8)
    data += b"".join(value.to_bytes(8, "little") for value in (*arguments, 0, 0, 0, 0, 0, 0)[:6])
    program, at, register = seccomp_program(machine, PID), 0, 0
    assert all(max(true, false) <= 255 for _, true, false, _ in program)
    while True:
        code, true, false, operand = program[at]
        at += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            register = int.from_bytes(data[operand : operand + 4], "little")
            continue
        taken = {0x15: register == operand, 0x45: bool(register & operand), 0x35: register >= operand}[code]
        at += true if taken else false


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_every_number_is_answered_as_the_table_says(machine) -> None:
    table = ARCHITECTURES[machine][1]
    free = {table[name] for name in ALLOWED if name in table}
    conditional = {table[name] for name in CONDITIONAL if name in table}
    assert len(free) > 50 and not free & conditional
    for number in range(600):
        if number not in conditional:
            assert answer(machine, number) == (ALLOW if number in free else REFUSED["EPERM"]), number


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_numbers_are_distinct_and_known(machine) -> None:
    table = ARCHITECTURES[machine][1]
    assert len(set(table.values())) == len(table)
    assert set(table) <= set(ALLOWED) | set(CONDITIONAL)


# From the kernel's tables: what must never be allowed, as (x86-64, arm64).
FORBIDDEN = {
    "socket": (41, 198), "connect": (42, 203), "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "unshare": (272, 97), "mount": (165, 40), "bpf": (321, 280),
    "io_uring_setup": (425, 425), "keyctl": (250, 219), "setuid": (105, 146),
    "memfd_create": (319, 279), "unlinkat": (263, 35),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "setrlimit": (160, 164),
    "mkdirat": (258, 34), "pipe2": (293, 59),
    "truncate": (76, 45), "ftruncate": (77, 46), "perf_event_open": (298, 241),
    "tkill": (200, 130), "openat2": (437, 437),
}  # fmt: skip


@pytest.mark.parametrize(("position", "machine"), list(enumerate(ARCHITECTURES)))
def test_the_dangerous_calls_are_refused(position, machine) -> None:
    for name, numbers in FORBIDDEN.items():
        assert answer(machine, numbers[position], (0,)) == REFUSED["EPERM"], name


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_arguments_decide(machine) -> None:
    table = ARCHITECTURES[machine][1]
    rows = [
        ("clone", (0x3D0F00,), ALLOW),  # what pthread_create asks: CLONE_THREAD is 0x10000
        ("clone", (17,), REFUSED["EPERM"]),  # fork: SIGCHLD
        ("clone", (0x4111,), REFUSED["EPERM"]),  # vfork
        ("clone3", (0,), REFUSED["ENOSYS"]),
        ("openat", (0, 0, 0o2000000), ALLOW),  # read only, close on exec
        ("openat", (0, 0, 0o1), REFUSED["EACCES"]),
        ("openat", (0, 0, 0o2), REFUSED["EACCES"]),
        ("openat", (0, 0, 0o100), REFUSED["EACCES"]),  # create
        ("openat", (0, 0, 0o20200000 | 2), REFUSED["EACCES"]),  # a nameless file
        ("tgkill", (PID, 1, 6), ALLOW),
        ("tgkill", (PID + 1, 1, 6), REFUSED["EPERM"]),
        ("prlimit64", (0, 7, 0, 1), ALLOW),
        ("prlimit64", (0, 7, 1, 0), REFUSED["EPERM"]),
        ("prlimit64", (0, 7, 1 << 40, 0), REFUSED["EPERM"]),  # a pointer whose low half is zero
        *(("fcntl", (1, command), ALLOW) for command in (0, 1, 2, 3, 1030)),
        *(("fcntl", (1, command), REFUSED["EPERM"]) for command in (4, 6, 8, 10, 15, 1024, 1026, 1031, 1033)),
        ("ioctl", (0, 0x5412), REFUSED["ENOTTY"]),
    ]
    for name, arguments, wanted in rows:
        assert answer(machine, table[name], arguments) == wanted, (name, arguments)


def test_other_tables_of_the_same_processor_kill() -> None:
    assert answer("x86_64", 20, arch=0x40000003) == KILL  # the 32-bit table
    assert answer("x86_64", 0x40000000 + 39) == KILL  # the x32 table
    assert answer("aarch64", 20, arch=0x40000028) == KILL
