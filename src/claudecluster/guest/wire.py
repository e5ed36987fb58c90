"""How the launcher and the process that owns it talk: the names both sides use. Decides nothing.

One SOCK_SEQPACKET pair carries the orders: each message is one JSON head with file descriptors `[payload, stdin, stdout, stderr, control]`,
where the payload (JSON, any size) is an anonymous file. Each order has a SOCK_STREAM pair of its own, `control`: lines of JSON
come back (`started`, `error`, at last `exit`), and end of file from the owner, also by its death, kills what the order started.
"""

import array
import json
import os
import socket
from typing import Any

_HEAD_LIMIT = 65536
_INTS = array.array("i")
FDS = 5  # payload, stdin, stdout, stderr, control
FAILED = 71  # exit code of a child that could not start what it was asked to
SPARE = "claudecluster-spare-"  # how the names of control groups begin that no sandbox has yet
STARTED = '{"started":true}'


class Trouble(Exception):
    """A start that failed for a reason the owner should be told. `kind` is `unavailable`, `refused` or `not_found`."""

    def __init__(self, message: str, kind: str = "unavailable") -> None:
        super().__init__(message)
        self.kind = kind


def anonymous(data: bytes) -> int:
    """Return a file descriptor of a nameless file that holds `data`, at its start."""
    fd = os.memfd_create("payload", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def contents(fd: int) -> bytes:
    """Return all of an anonymous file."""
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        return file.read()


def receive(orders: socket.socket) -> tuple[bytes, list[int]]:
    """Take one order: its head and descriptors, closed on exec (`socket.recv_fds` forgets its flags, which would hand them to the guest)."""
    head, extra, _flags, _address = orders.recvmsg(_HEAD_LIMIT, socket.CMSG_SPACE(FDS * _INTS.itemsize), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for _level, _kind, data in extra:
        fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return head, list(fds)


def tell(control: socket.socket, **message: Any) -> None:
    """Send one line to the owner; one that has gone is no error."""
    try:
        control.send(json.dumps(message).encode() + b"\n", socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
    except OSError:
        return
