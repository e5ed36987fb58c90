"""The system call filter, run on a small interpreter of its own language, and its numbers against the kernel's headers."""

import errno
import re
import struct
from pathlib import Path

import pytest

from claudecluster.model.errors import Unavailable
from claudecluster.sandboxes.local import seccomp

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED, KILLED = "allowed", "killed"


def verdict(machine: str, number: int, *arguments: int, arch: int | None = None) -> str | int:
    """Run the filter as the kernel does (Documentation/networking/filter.rst) and say what becomes of this call."""
    data = struct.pack("=iIQ6Q", number, AUDIT[machine] if arch is None else arch, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("=HBBI", seccomp.program(machine)))
    at = accumulator = 0
    while True:
        kind, if_true, if_false, value = program[at]
        at += 1
        match kind:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x45:
                at += if_true if accumulator & value else if_false
            case 0x06:
                return {0x7FFF0000: ALLOWED, 0x80000000: KILLED}.get(value, value & 0xFFFF)
            case _:
                pytest.fail(f"unknown instruction {kind:#x}")


NUMBERS = {
    "x86_64": {"clone": 56, "ioctl": 16, "socket": 41, "socketpair": 53},
    "aarch64": {"clone": 220, "ioctl": 29, "socket": 198, "socketpair": 199},
}
COLUMN = {"x86_64": 0, "aarch64": 1}


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_forbidden_call_is_denied(machine: str) -> None:
    numbers = [row[COLUMN[machine]] for row in seccomp._FORBIDDEN.values()]
    assert {verdict(machine, number) for number in numbers if number is not None} == {errno.EPERM}
    assert {verdict(machine, row[COLUMN[machine]]) for row in seccomp._ABSENT.values()} == {errno.ENOSYS}


def test_everything_else_is_allowed(machine: str) -> None:
    named = {row[COLUMN[machine]] for table in (seccomp._FORBIDDEN, seccomp._ABSENT) for row in table.values()} | set(
        NUMBERS[machine].values()
    )
    assert {verdict(machine, number) for number in range(500) if number not in named} == {ALLOWED}


def test_a_clone_is_allowed_unless_it_makes_namespaces(machine: str) -> None:
    clone = NUMBERS[machine]["clone"]
    assert verdict(machine, clone, 0x01200011) == ALLOWED  # fork
    assert verdict(machine, clone, 0x003D0F00) == ALLOWED  # a thread
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(machine, clone, flag | 17) == errno.EPERM


def test_typing_into_a_terminal_is_denied_however_it_is_disguised(machine: str) -> None:
    ioctl = NUMBERS[machine]["ioctl"]
    assert verdict(machine, ioctl, 0, 0x5413) == ALLOWED
    for request in (0x5412, 0x541C, 0xFFFFFFFF00005412):  # the kernel looks at the low half only
        assert verdict(machine, ioctl, 0, request) == errno.EPERM


def test_only_sockets_that_a_network_namespace_holds_are_allowed(machine: str) -> None:
    for call in ("socket", "socketpair"):
        number = NUMBERS[machine][call]
        found = {family: verdict(machine, number, family) for family in range(46)}
        assert {family for family, said in found.items() if said == ALLOWED} == {1, 2, 10, 16}
        assert set(found.values()) == {ALLOWED, errno.EAFNOSUPPORT}


def test_other_instruction_sets_are_no_way_round() -> None:
    assert verdict("x86_64", 165, arch=0x40000003) == KILLED  # 32-bit calls
    assert verdict("x86_64", 0x40000000 | 165) == errno.ENOSYS  # x32
    assert verdict("aarch64", 40, arch=AUDIT["x86_64"]) == KILLED


def test_an_unknown_machine_is_told_so() -> None:
    with pytest.raises(Unavailable, match="riscv64"):
        seccomp.program("riscv64")


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_are_the_kernels(machine: str, header: str) -> None:
    if not Path(header).exists():
        pytest.skip("the kernel's headers are not installed")
    found = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())}
    tables = {**seccomp._FORBIDDEN, **seccomp._ABSENT}
    wrong = {name: row for name, row in tables.items() if name in found and found[name] != row[COLUMN[machine]]}
    assert wrong == {}
    missing = {name for name, row in tables.items() if row[COLUMN[machine]] is not None and name not in found}
    assert missing <= {"open_tree_attr", "quotactl_fd", "mount_setattr"}  # newer than the headers of some systems
