"""Git objects as bytes: write a commit, read a loose one, take over what a sandbox made after checking every byte.

Called by the history and the harvest. It starts no process. Formats: gitformat-pack(5), `git help hash-object`.
"""

import contextlib
import hashlib
import os
import re
import shutil
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claudecluster.model.errors import Refused, Unavailable
from claudecluster.workspaces import disk
from claudecluster.workspaces.disk import Shelf

HEX = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
MODES = frozenset({b"40000", b"100644", b"100755", b"120000", b"160000"})
PIECE = 1 << 16
SMALL = 1 << 20
LARGEST_TREE = 256 << 20


def algorithm(oid: str) -> str:
    """Return the hash function a repository with such ids uses."""
    return "sha256" if len(oid) == 64 else "sha1"


def name(kind: str, body: bytes, like: str) -> str:
    """Return the id of an object in the same hash as `like`."""
    return hashlib.new(algorithm(like), f"{kind} {len(body)}\0".encode() + body).hexdigest()


def put(shelf: Shelf, kind: str, body: bytes, like: str) -> str:
    """Write an object into the hub and return its id. One that is there already is left alone."""
    oid = name(kind, body, like)
    if not _path(shelf, oid).exists():
        _settle(shelf, _written(shelf, zlib.compress(f"{kind} {len(body)}\0".encode() + body, 1)), oid)
    return oid


def loose(shelf: Shelf, oid: str) -> tuple[str, bytes] | None:
    """Return (kind, body) of a loose object in the hub, None if it is not there."""
    try:
        raw = zlib.decompress(_path(shelf, oid).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, zlib.error) as error:
        raise Unavailable(f"cannot read object {oid} of {shelf.hub}: {error}") from error
    head, _, body = raw.partition(b"\0")
    return head.split()[0].decode(), body


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit's parts. `signature` is the armored text, `signed` the bytes it is over."""

    tree: str
    parents: tuple[str, ...]
    message: str
    signature: str
    signed: bytes


def parse(raw: bytes) -> Commit:
    """Read a commit's bytes. A signature is a header `gpgsig` (or `gpgsig-sha256`) whose further lines start with a space."""
    head, _, message = raw.partition(b"\n\n")
    kept: list[bytes] = []
    signature: list[bytes] = []
    inside = False
    for line in head.split(b"\n"):
        inside = line.startswith((b"gpgsig ", b"gpgsig-sha256 ")) or (inside and line.startswith(b" "))
        (signature if inside else kept).append(line)
    fields = [line.partition(b" ")[::2] for line in kept]
    return Commit(
        tree=next((value.decode() for key, value in fields if key == b"tree"), ""),
        parents=tuple(value.decode() for key, value in fields if key == b"parent"),
        message=message.decode(errors="replace"),
        signature="\n".join(line.partition(b" ")[2].decode(errors="replace") for line in signature),
        signed=b"\n".join(kept) + b"\n\n" + message,
    )


def sealed(head: bytes, message: bytes, signature: str, like: str) -> bytes:
    """Return a commit's bytes with the signature among its headers."""
    header = b"gpgsig-sha256" if algorithm(like) == "sha256" else b"gpgsig"
    return head + header + b" " + b"\n ".join(signature.strip().encode().split(b"\n")) + b"\n\n" + message


def adopt(shelf: Shelf, quarantine: Path) -> None:
    """Move what a sandbox wrote into the hub: only whole, honest objects, and never over one that is there. Raises Refused."""
    for folder in _folders(quarantine):
        for file in _entries(folder):
            oid = folder.name + file.name
            if not HEX.fullmatch(oid):
                continue  # left by a git that was killed
            if not stat.S_ISREG(file.stat(follow_symlinks=False).st_mode):
                raise Refused(f"object {oid} is not a file")
            if not _path(shelf, oid).exists():
                _take(shelf, Path(file.path), oid)


def lend(shelf: Shelf, kind: str, oid: str, target: Path, known: Path | None = None) -> list[str]:
    """Put an object of the hub, with all it is made of that the user's repository has not, into another object folder.

    What is loose in the hub is the hub's own; what is not is the user's, except for the blobs returned: those lie in the hub's
    packs. What stands in `known` is left out. With `known`, the target will be an agent's and gets copies; else it is ours and
    gets links. An object comes after all it is made of, so that whatever stands in a folder is complete there after a crash.
    """
    hub, to, have = str(shelf.objects[1]), str(target), str(known or target)
    packed = _packed(shelf)
    pending, seen, missing = [(kind, oid, False)], set(), []
    while pending:
        kind, oid, ready = pending.pop()
        place = f"{oid[:2]}/{oid[2:]}"
        if ready:
            os.makedirs(f"{to}/{oid[:2]}", exist_ok=True)  # noqa: PTH103 - thousands of Path objects cost more than the work
            with contextlib.suppress(FileExistsError):
                (shutil.copyfile if known else os.link)(f"{hub}/{place}", f"{to}/{place}")
        elif oid not in seen:
            seen.add(oid)
            if oid in packed:
                missing.append(oid)
            elif os.path.exists(f"{hub}/{place}") and not os.path.exists(f"{have}/{place}"):  # noqa: PTH110 - as above
                pending.append((kind, oid, True))
                pending += _parts(shelf, kind, oid)
    return missing


def _parts(shelf: Shelf, kind: str, oid: str) -> list[tuple[str, str, bool]]:
    """Return what an object names, as entries for `lend`."""
    found = loose(shelf, oid) if kind != "blob" else None
    if found is None:
        return []
    body = found[1]
    if kind == "commit":
        commit = parse(body)
        return [("tree", commit.tree, False), *(("commit", parent, False) for parent in commit.parents)]
    parts = []
    size = len(oid) // 2
    place = 0
    while place < len(body):
        end = body.index(b"\0", place) + 1
        if not body.startswith(b"160000", place):
            parts.append(("tree" if body.startswith(b"40000", place) else "blob", body[end : end + size].hex(), False))
        place = end + size
    return parts


def _packed(shelf: Shelf) -> frozenset[str]:
    """Return the ids in the hub's packs: each holds a large file. Format of their indexes: gitformat-pack(5), version 2."""
    found: set[str] = set()
    for index in (shelf.objects[1] / "pack").glob("*.idx"):
        raw = index.read_bytes()
        count = int.from_bytes(raw[1028:1032], "big")
        size = 32 if len(raw) - 1032 - 48 - 40 * count > 0 else 20
        found |= {raw[start : start + size].hex() for start in range(1032, 1032 + count * size, size)}
    return frozenset(found)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return list(found)


def _folders(quarantine: Path) -> Iterator[Path]:
    for entry in _entries(quarantine):
        if len(entry.name) == 2 and entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)


def _take(shelf: Shelf, source: Path, oid: str) -> None:
    """Copy one object, hashing what it unpacks to. A copy, since whoever wrote the original may still hold it open."""
    handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        packed = os.read(handle, PIECE)
        unpack = zlib.decompressobj()
        plain = unpack.decompress(packed, SMALL)
        if len(packed) < PIECE and unpack.eof:
            _check(oid, hashlib.new(algorithm(oid), plain).hexdigest(), unpack, plain)
            _settle(shelf, _written(shelf, packed), oid)
        else:
            os.lseek(handle, 0, os.SEEK_SET)
            _take_large(shelf, handle, oid)
    except zlib.error as error:
        raise Refused(f"object {oid} is damaged") from error
    finally:
        os.close(handle)


def _take_large(shelf: Shelf, handle: int, oid: str) -> None:
    """Do the same piece by piece."""
    scratch = shelf.scratch()
    digest = hashlib.new(algorithm(oid))
    unpack = zlib.decompressobj()
    head = bytearray()
    try:
        with scratch.open("xb") as copy:
            while piece := os.read(handle, PIECE):
                copy.write(piece)
                while piece:
                    plain = unpack.decompress(piece, PIECE)
                    digest.update(plain)
                    if len(head) < 8 or (head.startswith(b"tree ") and len(head) < LARGEST_TREE):
                        head += plain
                    piece = unpack.unconsumed_tail
        _check(oid, digest.hexdigest(), unpack, bytes(head))
        _settle(shelf, str(scratch), oid)
    finally:
        scratch.unlink(missing_ok=True)


def _check(oid: str, digest: str, unpack: Any, plain: bytes) -> None:
    if digest != oid or not unpack.eof or unpack.unused_data:
        raise Refused(f"object {oid} is damaged")
    if plain.startswith(b"tree "):
        _check_tree(oid, plain)


def _check_tree(oid: str, raw: bytes) -> None:
    """Refuse entries that would lead a checkout out of its folder or into a `.git`."""
    size = len(oid) // 2
    place = raw.index(b"\0") + 1
    while place < len(raw):
        end = raw.index(b"\0", place)
        mode, _, entry = raw[place:end].partition(b" ")
        if mode not in MODES or entry.lower() in {b"", b".", b"..", b".git"} or b"/" in entry:
            raise Refused(f"tree {oid} has a forbidden entry {entry!r}")
        place = end + 1 + size


def _path(shelf: Shelf, oid: str) -> Path:
    return shelf.objects[1] / oid[:2] / oid[2:]


def _written(shelf: Shelf, packed: bytes) -> str:
    scratch = str(shelf.scratch())
    handle = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444)
    with os.fdopen(handle, "wb", buffering=0) as file:
        file.write(packed)
    return scratch


def _settle(shelf: Shelf, scratch: str, oid: str) -> None:
    """Put a written object in its place. Whoever the sandbox runs as must be able to read it, whatever the umask is."""
    os.chmod(scratch, 0o444)  # noqa: PTH101 - one of many small files: a Path costs more than the call
    folder = f"{shelf.objects[1]}/{oid[:2]}"
    try:
        os.rename(scratch, f"{folder}/{oid[2:]}")  # noqa: PTH104 - the same
    except FileNotFoundError:
        disk.folder(Path(folder), None)
        os.rename(scratch, f"{folder}/{oid[2:]}")  # noqa: PTH104 - the same
