"""Reads or writes one file as the guest would see it. Called by `isolated` in a process that is already shut into the sandbox's tree."""

import errno
import os
import stat
from collections.abc import Sequence

from claudecluster.guest.wire import Trouble

_CHUNK = 1 << 20
_STRANGE = {errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG, errno.EINVAL}


def copy_out(path: str, roots: Sequence[str], into: int) -> None:
    """Copy a regular file under one of `roots` to an open file. Raises Trouble."""
    try:
        fd = os.open(_confined(path, roots), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _translated(path, error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise Trouble(f"{path} is not a file", "refused")
    while data := os.read(fd, _CHUNK):
        _write_all(into, data)


def copy_in(path: str, roots: Sequence[str], source: int) -> None:
    """Create or replace a file under one of `roots`, with its folders, in one step. Raises Trouble."""
    real = _confined(path, roots)
    draft = f"{os.path.dirname(real)}/.{os.path.basename(real)[:200]}.{os.getpid()}.part"
    try:
        os.makedirs(os.path.dirname(real), exist_ok=True)
        if os.path.isdir(real):
            raise Trouble(f"{path} is a folder", "refused")
        mode = stat.S_IMODE(os.stat(real).st_mode) if os.path.exists(real) else 0o644
        fd = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            while data := os.read(source, _CHUNK):
                _write_all(fd, data)
            os.fchmod(fd, mode)
            os.replace(draft, real)
        except OSError:
            os.unlink(draft)
            raise
    except OSError as error:
        raise _translated(path, error) from error


def _confined(path: str, roots: Sequence[str]) -> str:
    real = os.path.realpath(path)
    for root in roots:
        if real.startswith(os.path.realpath(root).rstrip("/") + "/"):
            return real
    raise Trouble(f"{path} leads out of the sandbox's folders", "refused")


def _translated(path: str, error: OSError) -> Trouble:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Trouble(f"{path}: {error.strerror}", "not_found")
    if isinstance(error, PermissionError | IsADirectoryError | FileExistsError) or error.errno in _STRANGE:
        return Trouble(f"{path}: {error.strerror}", "refused")
    return Trouble(f"{path}: {error.strerror}")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
