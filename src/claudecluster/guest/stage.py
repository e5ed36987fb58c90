"""Builds the tree a sandbox sees, out of binds and overlays, on a root of our own. Called by `launch` and `isolated`.

The launcher's private root is a small tmpfs: the host's whole tree is at /host, ready-made read-only parts at /parts, and the tree of
one sandbox at /stage. All of it lives in a mount namespace that ends with the launcher; nothing is ever mounted on the host's.
"""

import contextlib
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from claudecluster.guest import linux
from claudecluster.guest.wire import Trouble

HOST = "/host"
STAGE = "/stage"
PARTS = "/parts"
ETC = "/etc-inside"
_OPTIONS_LIMIT = 4000  # mount(2) takes one page of options


def enter_private_root() -> None:
    """Move to the launcher's own root. The caller is alone in a fresh mount namespace."""
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_SLAVE)  # slave, so that what the host unmounts goes away here too
    linux.mount("tmpfs", "/tmp", "tmpfs", options="mode=755")  # noqa: S108 - any folder that exists everywhere would do
    os.chdir("/tmp")  # noqa: S108 - the same
    for folder in ("host", "stage", "parts", "tmp", "proc"):
        os.mkdir(folder)
    linux.pivot_root(".", "host")
    os.chdir("/")
    os.mkdir(ETC)
    for entry in os.listdir(HOST):
        if not os.path.lexists(f"/{entry}"):
            os.symlink(f"host/{entry}", f"/{entry}")
    linux.mount("proc", "/proc", "proc")


def prepare_parts(parts: Sequence[Mapping[str, Any]]) -> None:
    """Bind the read-only parts all sandboxes share to /parts/<number>, once. A source that has gone is left out."""
    for number, part in enumerate(parts):
        source, target = HOST + part["source"], f"{PARTS}/{number}"
        if not os.path.exists(source):
            continue
        _mountpoint(target, folder=os.path.isdir(source))
        linux.mount(source, target, flags=linux.MS_BIND | linux.MS_REC)
        linux.harden(target, readonly=True)


def build(parts: Sequence[Mapping[str, Any]], order: Mapping[str, Any], owner: tuple[int, int], *, overlay_options: str) -> None:
    """Put one sandbox's tree together at /stage. Raises Trouble for what cannot be mounted."""
    linux.mount("tmpfs", STAGE, "tmpfs", options="mode=755,size=1m,nr_inodes=8k")
    for folder in order["folders"]:
        os.close(_spot(folder, folder=True, owner=owner))
    for name, target in order["links"].items():
        os.symlink(target, STAGE + name)
    # before anything is shown below them: a workspace or a home may well lie under /tmp
    for folder in order["temporary"]:
        linux.mount("tmpfs", STAGE + folder, "tmpfs", options=f"mode=1777,size={order['tmp_size']},uid={owner[0]},gid={owner[1]}")
        linux.harden(STAGE + folder, readonly=False)
    pieces: list[tuple[str, str, Mapping[str, Any]]] = [("/etc", ETC, {})]
    pieces += [
        (parts[number]["at"], f"{PARTS}/{number}", parts[number]) for number in order["parts"] if os.path.exists(f"{PARTS}/{number}")
    ]
    pieces += [(layer["at"], "", layer) for layer in order["layers"]]
    pieces += [(bind["at"], HOST + bind["source"], bind) for bind in order["binds"]]
    for at, source, piece in sorted(pieces, key=lambda piece: piece[0].rstrip("/").count("/")):  # parents before what lies in them
        if "upper" in piece:
            _overlay(at, piece, owner, overlay_options)
        else:
            _bind(at, source, piece, owner)
    linux.harden(STAGE, readonly=True, recursive=False)


def _bind(at: str, source: str, piece: Mapping[str, Any], owner: tuple[int, int]) -> None:
    try:
        folder = stat.S_ISDIR(os.stat(source).st_mode)
    except OSError as error:
        raise Trouble(f"cannot show {piece['source']} in the sandbox: {error.strerror}") from error
    spot = _spot(at, folder=folder, owner=owner)
    try:
        linux.mount(source, f"/proc/self/fd/{spot}", flags=linux.MS_BIND | linux.MS_REC)
    finally:
        os.close(spot)
    if source.startswith(HOST):  # parts are hardened already
        # the mount covers its spot, so that the path must be walked again to reach it
        top = _spot(at, folder=folder, owner=owner)
        linux.harden(f"/proc/self/fd/{top}", readonly=not piece.get("writable", False))
        os.close(top)


def _overlay(at: str, layer: Mapping[str, Any], owner: tuple[int, int], extra: str) -> None:
    lower = ":".join(_escaped(HOST + folder) for folder in layer["lower"])
    options = f"lowerdir={lower},upperdir={_escaped(HOST + layer['upper'])},workdir={_escaped(HOST + layer['work'])}{extra}"
    if len(options) > _OPTIONS_LIMIT:
        raise Trouble(f"the folders under {at} have names too long to be layered", "refused")
    spot = _spot(at, folder=True, owner=owner)
    try:
        _forget_volatile(HOST + layer["work"])
        linux.mount("overlay", f"/proc/self/fd/{spot}", "overlay", options=options)
        os.chmod(f"{HOST}{layer['work']}/work", 0o700)  # the kernel makes it 000, which an ordinary user could not remove again
    except OSError as error:
        raise Trouble(f"cannot layer {layer['upper']} over {', '.join(layer['lower'])}: {error.strerror}") from error
    finally:
        os.close(spot)
    top = _spot(at, folder=True, owner=owner)
    linux.harden(f"/proc/self/fd/{top}", readonly=False)
    os.close(top)


def _forget_volatile(work: str) -> None:
    """Take away the mark of a mount that ended without a sync: processes ended, the machine did not (kernel: overlayfs.rst, "Volatile mount")."""
    marker = f"{work}/work/incompat/volatile"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{marker}/dirty")
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(marker)


def _escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _mountpoint(path: str, *, folder: bool) -> None:
    if folder:
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def _spot(at: str, *, folder: bool, owner: tuple[int, int]) -> int:
    """Open the place to mount on, made if need be. No symlink is followed: earlier layers hold what a hostile guest wrote."""
    here = os.open(STAGE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    names = [name for name in at.split("/") if name]
    try:
        for name in names[:-1]:
            here = _step(here, name, folder=True, owner=owner)
        return _step(here, names[-1], folder=folder, owner=owner)
    except OSError as error:
        raise Trouble(f"cannot mount on {at} in the sandbox: {error.strerror}") from error


def _step(here: int, name: str, *, folder: bool, owner: tuple[int, int]) -> int:
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_DIRECTORY if folder else 0)
    try:
        try:
            return _opened(name, flags, here, folder=folder)
        except FileNotFoundError:
            inside_layer = os.fstat(here).st_dev != os.stat(STAGE).st_dev
            if folder:
                os.mkdir(name, 0o755, dir_fd=here)
            else:
                os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=here))
            if inside_layer:  # what is made in a guest's own folder belongs to the guest
                os.chown(name, *owner, dir_fd=here, follow_symlinks=False)
            return _opened(name, flags, here, folder=folder)
    finally:
        os.close(here)


def _opened(name: str, flags: int, here: int, *, folder: bool) -> int:
    fd = os.open(name, flags, dir_fd=here)
    if not folder and not stat.S_ISREG(os.fstat(fd).st_mode) and not stat.S_ISSOCK(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "there is something else in its place")
    return fd
