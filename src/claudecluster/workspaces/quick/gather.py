"""Harvests a simple change from an overlay's upper folder, with no sandbox and hardly any git. Called by the harvest.

Whatever could mean more than its bytes (attributes, repositories inside, special files, strange names, much or large content) is left
to git: then there is no answer. The agent's processes are gone when this runs. Formats: gitformat-pack(5); kernel's overlayfs.rst
(a character device 0/0 hides what is below, a folder marked opaque hides all that is below it).
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from claudecluster.workspaces import objects
from claudecluster.workspaces.disk import Shelf
from claudecluster.workspaces.quick.reader import FOLDER, Entry, Reader

MOST = 2000  # files and folders
LARGEST = 1 << 20  # bytes of one file
ALL = 32 << 20  # bytes together
DEEPEST = 64
IGNORE = b".gitignore"
LINK, PLAIN, RUNNABLE, REPOSITORY = b"120000", b"100644", b"100755", b"160000"
# git refuses some names, on all systems or on one: it shall say which
STRANGE = re.compile(rb"\.git(?!ignore\Z|keep\Z|hub\Z)|git~|.*[\x80-\xff\\:]|.*[ .]\Z", re.IGNORECASE | re.DOTALL)
HARMLESS = frozenset(["trusted.overlay.origin", "trusted.overlay.impure", "user.overlay.origin", "user.overlay.impure"])


class NotSimpleError(Exception):
    """Git has to look at it."""


@dataclass(frozen=True, slots=True)
class Upper:
    """Where an overlay's changes lie: in `top`, over the folder `lower` with the commit `base`. The agent began with the tree of `at`.

    `skipped` are names at the top that are not the repository's.
    """

    top: Path
    lower: Path
    base: str
    at: str
    skipped: frozenset[bytes]


@dataclass(slots=True)
class Folder:
    """A folder of the upper one: what it holds, and whether it hides what was below."""

    opaque: bool
    held: dict[bytes, "Folder | os.DirEntry[bytes] | None"] = field(default_factory=dict)  # None: it is gone


@dataclass(frozen=True, slots=True)
class Found:
    """A simple change. `new` are paths that the tree of `at` has not, `ignores` the .gitignore files that may speak of them, by their paths."""

    upper: Upper
    root: Folder
    new: tuple[bytes, ...]
    ignores: Mapping[bytes, Path]


class Gatherer:
    """Harvests one hub's simple changes. Its methods block."""

    def __init__(self, shelf: Shelf, reader: Reader) -> None:
        self._shelf = shelf
        self._reader = reader

    def look(self, upper: Upper) -> Found | None:
        """Return what was changed, or None where git has to look at it. Raises Unavailable."""
        try:
            index = upper.lower / ".git/index"
            if index.exists() and b".gitattributes\0" in index.read_bytes():
                return None
            root = _Walk(upper.skipped).folder(os.fsencode(upper.top), 0)
            new: list[bytes] = []
            ignores: dict[bytes, Path] = {}
            for path, own in self._compare(upper, root, b"", upper.lower, self._reader.tree(upper.at)):
                if own is None:
                    new.append(path)
                else:
                    ignores[path] = own
            return Found(upper, root, tuple(new), ignores)
        except (NotSimpleError, OSError):
            return None

    def _compare(
        self, upper: Upper, folder: Folder, prefix: bytes, lower: Path | None, at: Mapping[bytes, Entry]
    ) -> Iterator[tuple[bytes, Path | None]]:
        """Yield (path, None) of new files, and (path, where it can be read) of each .gitignore on the way."""
        if IGNORE in folder.held or (lower and (lower / ".gitignore").is_file()):
            own = folder.held.get(IGNORE, lower and Path(lower / ".gitignore"))
            if isinstance(own, os.DirEntry) and not own.is_symlink():
                yield prefix + IGNORE, Path(os.fsdecode(own.path))
            elif isinstance(own, Path) and not own.is_symlink():
                yield prefix + IGNORE, own
            elif own is not None:
                raise NotSimpleError
        for name, held in folder.held.items():
            known = at.get(name)
            if isinstance(held, Folder):
                below = None if held.opaque or lower is None else lower / os.fsdecode(name)
                inside = self._reader.tree(known[1]) if known and known[0] == FOLDER else {}
                yield from self._compare(upper, held, prefix + name + b"/", below, inside)
            elif held is not None and (known is None or known[0] == FOLDER):
                yield prefix + name, None

    def write(self, found: Found, ignored: AbstractSet[bytes]) -> str | None:
        """Write the tree into the hub, without new paths that are `ignored`, and return its id; None where git has to. Raises Unavailable."""
        like = found.upper.base
        try:
            return self._tree(found.root, b"", self._reader.tree(like), ignored, like) or objects.put(self._shelf, "tree", b"", like)
        except (NotSimpleError, OSError):
            return None

    def _tree(self, folder: Folder, prefix: bytes, base: Mapping[bytes, Entry], ignored: AbstractSet[bytes], like: str) -> str:
        """Return the id of a folder's tree; empty if it holds nothing."""
        entries = {} if folder.opaque else dict(base)
        for name, held in folder.held.items():
            entry = entries.pop(name, None)
            if entry and entry[0] == REPOSITORY:
                raise NotSimpleError
            if isinstance(held, Folder):
                inside = self._reader.tree(entry[1]) if entry and entry[0] == FOLDER else {}
                oid = self._tree(held, prefix + name + b"/", inside, ignored, like)
                if oid:
                    entries[name] = (FOLDER, oid)
            elif held is not None and prefix + name not in ignored:
                mode, body = _content(held)
                entries[name] = (mode, objects.put(self._shelf, "blob", body, like))
        if not entries:
            return ""
        order = sorted(entries.items(), key=lambda item: item[0] + b"/" if item[1][0] == FOLDER else item[0])
        body = b"".join(mode + b" " + name + b"\0" + bytes.fromhex(oid) for name, (mode, oid) in order)
        return objects.put(self._shelf, "tree", body, like)


class _Walk:
    """One walk over an upper folder, with what it has seen so far."""

    def __init__(self, skipped: frozenset[bytes]) -> None:
        self._skipped = skipped
        self._entries = 0
        self._size = 0

    def folder(self, path: bytes, depth: int) -> Folder:
        found = Folder(depth > 0 and _opaque(path))  # the top's own marks are about the mount
        with os.scandir(path) as entries:
            for entry in entries:
                if depth == 0 and entry.name in self._skipped:
                    continue
                found.held[entry.name] = self._held(entry, depth)
        return found

    def _held(self, entry: os.DirEntry[bytes], depth: int) -> "Folder | os.DirEntry[bytes] | None":
        state = entry.stat(follow_symlinks=False)
        self._entries += 1
        if STRANGE.match(entry.name) or depth > DEEPEST or self._entries > MOST:
            raise NotSimpleError
        if stat.S_ISDIR(state.st_mode):
            return self.folder(entry.path, depth + 1)
        if stat.S_ISCHR(state.st_mode) and state.st_rdev == 0:
            return None
        self._size += state.st_size
        if not (stat.S_ISREG(state.st_mode) or stat.S_ISLNK(state.st_mode)) or state.st_size > LARGEST or self._size > ALL:
            raise NotSimpleError
        if stat.S_ISREG(state.st_mode) and _opaque(entry.path):
            raise NotSimpleError
        return entry


def _opaque(path: bytes) -> bool:
    """Tell whether overlayfs marked it. Raises NotSimpleError for marks whose meaning is another."""
    marks = [name for name in os.listxattr(path, follow_symlinks=False) if ".overlay." in name and name not in HARMLESS]
    for mark in marks:
        if not mark.endswith(".opaque") or os.getxattr(path, mark, follow_symlinks=False) != b"y":
            raise NotSimpleError
    return bool(marks)


def _content(entry: os.DirEntry[bytes]) -> tuple[bytes, bytes]:
    """Return the mode and the bytes that a tree has for a file or a link."""
    state = entry.stat(follow_symlinks=False)
    if stat.S_ISLNK(state.st_mode):
        return LINK, os.readlink(entry.path)  # noqa: PTH115 - a name may be any bytes
    handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        body = file.read(LARGEST + 1)
    if len(body) != state.st_size:
        raise NotSimpleError
    return (RUNNABLE if state.st_mode & stat.S_IXUSR else PLAIN), body
