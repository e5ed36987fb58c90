"""Reads objects and compares trees without a process per question. Called by the harvest and the workspaces.

What the attempts made is loose in the hub and read from its files; what the user's repository has may be packed and comes from one
`git cat-file --batch` that lives as long as the hub is open, or until this process ends. Formats: git-cat-file(1), gitformat-pack(5).
"""

import subprocess
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import IO

from claudecluster.model.errors import NotFound, Unavailable
from claudecluster.workspaces import objects
from claudecluster.workspaces.disk import Shelf
from claudecluster.workspaces.git import OURS, Git

FOLDER = b"40000"
NONE = "000000"
KEPT = 4096  # trees whose entries are kept in memory

Entry = tuple[bytes, str]  # mode as trees have it (`40000`, `100644`), object id
Difference = tuple[str, str, bytes]  # old and new mode as six digits, `000000` for none; path


class Reader:
    """One hub's objects. Its methods block; several threads may call them."""

    def __init__(self, shelf: Shelf, git: Git) -> None:
        self._shelf = shelf
        self._git = git
        self._batch: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._trees: dict[str, Mapping[bytes, Entry]] = {}

    def tree(self, oid: str) -> Mapping[bytes, Entry]:
        """Return a tree's entries by name; of a commit, those of its tree. Raises NotFound, Unavailable."""
        found = self._trees.get(oid)
        if found is None:
            kind, body = objects.loose(self._shelf, oid) or self._ask(oid)
            found = self.tree(objects.parse(body).tree) if kind == "commit" else dict(_entries(body, len(oid) // 2))
            if len(self._trees) >= KEPT:
                self._trees.clear()
            self._trees[oid] = found
        return found

    def differences(self, old: str, new: str, *, folders: bool = False) -> Iterator[Difference]:
        """Yield what differs between two trees or commits, as `git diff-tree -r` does; with `folders` those too, before what they hold."""
        return self._compare(b"", self.tree(old), self.tree(new), folders=folders)

    def _compare(self, prefix: bytes, old: Mapping[bytes, Entry], new: Mapping[bytes, Entry], *, folders: bool) -> Iterator[Difference]:
        for name in sorted({*old, *new}):
            before, after = old.get(name), new.get(name)
            if before == after:
                continue
            was, now = _mode(before, folder=folders), _mode(after, folder=folders)
            if before and after and (before[0] == FOLDER) != (after[0] == FOLDER) and NONE not in {was, now}:
                yield was, NONE, prefix + name  # a file where a folder was, or the other way round
                yield NONE, now, prefix + name
            elif {was, now} != {NONE}:
                yield was, now, prefix + name
            inside = [self.tree(entry[1]) if entry and entry[0] == FOLDER else {} for entry in (before, after)]
            if any(inside):
                yield from self._compare(prefix + name + b"/", inside[0], inside[1], folders=folders)

    def _ask(self, oid: str) -> tuple[str, bytes]:
        with self._lock:
            try:
                return self._answered(oid)
            except (OSError, ValueError) as error:
                self._batch = None
                raise Unavailable(f"git cat-file failed: {error}") from error

    def _answered(self, oid: str) -> tuple[str, bytes]:
        if self._batch is None or self._batch.poll() is not None:
            self._batch = self._started()
        to, out = _ends(self._batch)
        to.write(oid.encode() + b"\n")
        to.flush()
        words = out.readline().split()
        if len(words) == 2 and words[1] == b"missing":
            raise NotFound(f"no object {oid} in the hub")
        kind, size = words[1].decode(), int(words[2])
        body = out.read(size + 1)[:-1]
        if len(body) != size:
            raise ValueError("its answer was cut short")
        return kind, body

    def _started(self) -> subprocess.Popen[bytes]:
        env = {"PATH": self._git.env.get("PATH", "/usr/local/bin:/usr/bin:/bin"), **OURS, "GIT_DIR": str(self._shelf.hub)}
        pipe = subprocess.PIPE
        batch = subprocess.Popen(
            ("git", "cat-file", "--batch"), env=env, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True
        )
        weakref.finalize(self, _end, batch)
        return batch


def _ends(batch: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    if batch.stdin is None or batch.stdout is None:
        raise ValueError("it has no pipes")
    return batch.stdin, batch.stdout


def _end(batch: subprocess.Popen[bytes]) -> None:
    for end in (batch.stdin, batch.stdout):
        if end is not None:
            end.close()
    batch.kill()
    batch.wait()


def _entries(body: bytes, size: int) -> Iterator[tuple[bytes, Entry]]:
    place = 0
    while place < len(body):
        end = body.index(b"\0", place)
        mode, _, name = body[place:end].partition(b" ")
        place = end + 1 + size
        yield name, (mode, body[end + 1 : place].hex())


def _mode(entry: Entry | None, *, folder: bool) -> str:
    if entry is None or (entry[0] == FOLDER and not folder):
        return NONE
    return entry[0].decode().zfill(6)
