"""The Linux system calls Python 3.11 does not offer. Called by the rest of `guest`; decides nothing.

Numbers above 423 are the same on every architecture (kernel's `syscall.tbl`). Everything raises OSError with the kernel's errno.
"""

import ctypes
import errno
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

MS_BIND = 4096
MS_REC = 16384
MS_SLAVE = 1 << 19
MNT_DETACH = 2

_SYS_MOUNT_SETATTR = 442
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_AT_RECURSIVE = 0x8000
_AT_FDCWD = -100
_MOUNT_ATTR_RDONLY = 1
_MOUNT_ATTR_NOSUID = 2
_MOUNT_ATTR_NODEV = 4
_MS_RDONLY = 1
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_REMOUNT = 32
_MS_FLAGS_KEPT = 0x2 | 0x4 | 0x8 | 0x400 | 0x800  # nosuid, nodev, noexec, noatime, nodiratime: statvfs uses the same bits
_MS_RELATIME = 1 << 21
_ST_RELATIME = 4096

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones."""
    _checked(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace behind an open /proc/<pid>/ns file."""
    _checked(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount, bind or change propagation."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), os.fsencode(options) or None
    )
    _checked(result, f"mount {source} on {target}")


def unmount(target: str) -> None:
    """Take a mount away, lazily."""
    _checked(_libc.umount2(os.fsencode(target), MNT_DETACH), f"unmount {target}")


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root of this mount namespace and show the old one at `old`."""
    number = _SYS_PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "pivot_root")
    _checked(_libc.syscall(ctypes.c_long(number), os.fsencode(new), os.fsencode(old)), "pivot_root")


def harden(target: str, *, readonly: bool, recursive: bool = True) -> None:
    """Take set-uid and devices away from a mount, and writing if asked. Kernels before 5.12 do it for the top mount only."""
    attr = _MountAttr(attr_set=_MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | (_MOUNT_ATTR_RDONLY if readonly else 0))
    flags = _AT_RECURSIVE if recursive else 0
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(flags),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )
    if result < 0 and ctypes.get_errno() == errno.ENOSYS:
        found = os.statvfs(target).f_flag
        kept = found & _MS_FLAGS_KEPT | (_MS_RELATIME if found & _ST_RELATIME else 0)
        wanted = kept | _MS_REMOUNT | MS_BIND | _MS_NOSUID | _MS_NODEV | (_MS_RDONLY if readonly else 0)
        mount("none", target, flags=wanted)
        return
    _checked(result, f"restrict {target}")


def die_with_parent(signal: int) -> None:
    """Be sent `signal` when the thread that made this process ends. A change of credentials undoes it."""
    if hasattr(_libc, "prctl"):
        _checked(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal), 0, 0, 0), "prctl")


def adopt_orphans() -> bool:
    """Become the parent of every descendant whose own parent ends; false where the system has no such thing."""
    if not hasattr(_libc, "prctl"):
        return False
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0), "prctl")
    return True
