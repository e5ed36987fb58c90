"""The system calls a guest may not make, as a classic BPF program for `bwrap --seccomp`. Called by `process`; pure.

The list follows the spirit of Docker's default profile (moby, profiles/seccomp/default.json) for a process without capabilities. `ptrace` stays: debuggers and
leak checkers need it, and a guest's own pid namespace shows it nobody else. Layout of `struct seccomp_data`: linux/seccomp.h; numbers: the kernel's syscall tables.
"""

import errno
import struct

from claudecluster.model.errors import Unavailable

_LOAD, _EQUAL, _GREATER_OR_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets; arguments are 8 bytes each, low half first on little-endian machines
_X32 = 0x40000000

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# every clone flag that makes a namespace: time, mount, cgroup, uts, ipc, user, pid, net
_NAMESPACES = 0x80 | 0x20000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing into somebody's terminal
_FAMILIES = (1, 2, 10, 16)  # unix, inet, inet6, netlink; vsock and others are not held by a network namespace

# name: (x86_64, aarch64); None where the architecture has no such call
_FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, None),
    "init_module": (175, 105),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "name_to_handle_at": (303, 264),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "sysfs": (139, None),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
    "_sysctl": (156, None),
}
# programs try these and fall back when they are told that there is no such call
_ABSENT: dict[str, tuple[int, int]] = {
    "clone3": (435, 435),  # its flags lie in memory, where a filter cannot look; the C library then uses clone
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
_CLONE, _IOCTL, _SOCKET, _SOCKETPAIR = (56, 220), (16, 29), (41, 198), (53, 199)


def program(machine: str) -> bytes:
    """Return the filter for `machine` (as `uname -m` says), an array of `struct sock_filter`. Raises Unavailable for others than x86_64 and aarch64."""
    if machine not in _AUDIT:
        raise Unavailable(f"no system call filter is known for {machine} machines", hint="use --sandbox docker, or --sandbox none by name")
    column = 0 if machine == "x86_64" else 1
    code = _load(_ARCHITECTURE) + _jump(_EQUAL, _AUDIT[machine], 1, 0) + _return(_KILL) + _load(_NUMBER)
    if machine == "x86_64":
        code += _jump(_GREATER_OR_EQUAL, _X32, 0, 1) + _return(_ERRNO | errno.ENOSYS)
    for number in _numbers(_FORBIDDEN, column):
        code += _jump(_EQUAL, number, 0, 1) + _return(_ERRNO | errno.EPERM)
    for number in _numbers(_ABSENT, column):
        code += _jump(_EQUAL, number, 0, 1) + _return(_ERRNO | errno.ENOSYS)
    code += _when(_CLONE[column], 0, _jump(_ANY_BIT, _NAMESPACES, 0, 1) + _return(_ERRNO | errno.EPERM))
    typing = b"".join(_jump(_EQUAL, request, 0, 1) + _return(_ERRNO | errno.EPERM) for request in _TERMINAL_INPUT)
    code += _when(_IOCTL[column], 1, typing)
    families = b"".join(_jump(_EQUAL, family, 0, 1) + _return(_ALLOW) for family in _FAMILIES) + _return(_ERRNO | errno.EAFNOSUPPORT)
    code += _when(_SOCKET[column], 0, families)
    code += _when(_SOCKETPAIR[column], 0, families)
    return code + _return(_ALLOW)


def _numbers(table: dict[str, tuple[int | None, int | None]] | dict[str, tuple[int, int]], column: int) -> list[int]:
    return [number for row in table.values() if (number := row[column]) is not None]


def _when(number: int, argument: int, body: bytes) -> bytes:
    """Run `body` on the low half of an argument of call `number`; what the body lets through is allowed."""
    body = _load(_ARGUMENT + 8 * argument) + body + _return(_ALLOW)
    return _jump(_EQUAL, number, 0, len(body) // 8) + body


def _load(offset: int) -> bytes:
    return struct.pack("=HBBI", _LOAD, 0, 0, offset)


def _jump(kind: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("=HBBI", kind, if_true, if_false, value)


def _return(verdict: int) -> bytes:
    return struct.pack("=HBBI", _RETURN, 0, 0, verdict)
