"""The hub's commits, refs and merges. Called by the hub; no working tree is touched.

Refs are files that only this module writes, under a lock that the kernel frees: a git killed in the middle would leave a
`.lock` file that stops every later change.
"""

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import Path

from claudecluster.model.errors import Conflict, NotFound, Refused, Unavailable
from claudecluster.model.ids import head_ref
from claudecluster.model.tree import Merged
from claudecluster.workspaces import disk, objects
from claudecluster.workspaces.disk import Shelf
from claudecluster.workspaces.git import Git, failed
from claudecluster.workspaces.signing import Signer

REF = re.compile(r"refs(/[A-Za-z0-9_][A-Za-z0-9._@+-]*)+")

HEAD = re.compile(head_ref("([^/]+)"))


@dataclass(frozen=True)
class History:
    """Reads and writes one hub."""

    shelf: Shelf
    git: Git
    signer: Signer
    _trees: dict[str, str] = field(default_factory=dict)

    async def kind(self, oid: str) -> str:
        """Return `commit`, `tree` or `blob`. Raises NotFound."""
        _known_form(oid)
        found = objects.loose(self.shelf, oid)
        if found:
            return found[0]
        done = await self.git.ours(self.shelf.hub, "cat-file", "-t", oid)
        if done.code:
            raise NotFound(f"no object {oid} in the hub")
        return done.out.decode().strip()

    async def raw(self, commit: str) -> bytes:
        """Return a commit's bytes. Raises NotFound."""
        _known_form(commit)
        found = objects.loose(self.shelf, commit)
        if found and found[0] == "commit":
            return found[1]
        done = await self.git.ours(self.shelf.hub, "cat-file", "commit", commit)
        if done.code:
            raise NotFound(f"no commit {commit} in the hub")
        return done.out

    async def tree(self, oid: str) -> str:
        """Return the tree of a commit, or the tree itself. Raises NotFound."""
        if oid not in self._trees:
            self._trees[oid] = oid if await self.kind(oid) == "tree" else objects.parse(await self.raw(oid)).tree
        return self._trees[oid]

    async def merge(self, base: str, ours: str, theirs: str) -> Merged:
        """Merge three commits or trees. The base is the one given, not the one their history suggests: a revert depends on it."""
        old, mine, other = [await self.tree(oid) for oid in (base, ours, theirs)]
        if mine in {old, other}:
            return Merged(other)
        if other == old:
            return Merged(mine)
        root = self._bare(old, "")
        sides = (self._bare(mine, root), self._bare(other, root))
        done = await self.git.ours(self.shelf.hub, "merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", *sides)
        if done.code not in {0, 1}:
            raise failed("merge-tree", done)
        tree, *paths = done.out.decode(errors="backslashreplace").rstrip("\0").split("\0")
        return Merged(tree.strip(), tuple(dict.fromkeys(paths)) if done.code else ())

    async def commit(self, tree: str, parent: str, message: str, at: float) -> str:
        """Write a signed commit. The same arguments give the same commit."""
        oid = self._write(tree, parent, message, at, sign=True)
        self._trees[oid] = tree
        return oid

    def _bare(self, tree: str, parent: str) -> str:
        return self._write(tree, parent, "side of a merge\n", 0, sign=False)

    def _write(self, tree: str, parent: str, message: str, at: float, *, sign: bool) -> str:
        person = f"{self.signer.name} <{self.signer.email}> {int(at)} +0000"
        lines = [f"tree {tree}", *([f"parent {parent}"] if parent else []), f"author {person}", f"committer {person}"]
        head = ("\n".join(lines) + "\n").encode()
        text = (message.replace("\0", "").strip() + "\n").encode(errors="replace")
        body = head + b"\n" + text
        if sign:
            body = objects.sealed(head, text, self.signer.sign(body, "git"), tree)
        with disk.room("write to the hub"):
            return objects.put(self.shelf, "commit", body, tree)

    def head(self, ref: str) -> str:
        """Return what a ref points at; empty if there is none."""
        try:
            return (self.shelf.hub / _checked(ref)).read_text().strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return ""

    async def advance(self, ref: str, new: str, old: str) -> None:
        """Compare and swap. Raises Conflict."""
        async with self.shelf.locked("refs"):
            current = self.head(ref)
            if current == new:
                return
            if current != old:
                raise Conflict(f"{ref} is at {current[:12] or 'nothing'}, not at {old[:12] or 'nothing'}", hint="read it again")
            await self._point(ref, new)
        if head := HEAD.fullmatch(ref):
            target = disk.folder(self.shelf.landed(head[1]), None)
            await self.lend("commit", new, target)

    async def lend(self, kind: str, oid: str, target: Path, known: Path | None = None) -> None:
        """Put an object and its parts, as far as only the hub has them, into another object folder: see `objects.lend`."""
        with disk.room("hand out objects"):
            missing = await asyncio.to_thread(objects.lend, self.shelf, kind, oid, target, known)
        if missing:  # files so large that git keeps them in packs
            disk.folder(target / "pack", None)
            wanted = "".join(f"{large}\n" for large in missing).encode()
            await self.git.must(self.shelf.hub, "pack-objects", "--quiet", "--window=0", str(target / "pack/pack"), stdin=wanted)

    async def point(self, ref: str, new: str) -> None:
        """Set a ref. What it pointed at before stays reachable from a ref of its own."""
        async with self.shelf.locked("refs"):
            current = self.head(ref)
            if current and current != new:
                self._store(f"refs/kept/{current}", current)
            await self._point(ref, new)

    async def _point(self, ref: str, new: str) -> None:
        if await self.kind(new) != "commit":
            raise Refused(f"{new} is not a commit")
        self._store(_checked(ref), new)

    def _store(self, ref: str, oid: str) -> None:
        path = self.shelf.hub / ref
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            disk.write(path, f"{oid}\n".encode(), self.shelf.scratch())
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise Conflict(f"{ref} cannot stand beside another ref of the hub", hint="choose another name") from error
        except OSError as error:
            raise Unavailable(f"cannot write {ref}: {error}") from error

    async def contains(self, ref: str, commit: str) -> bool:
        """Tell whether a commit is in the history of a ref."""
        head = self.head(ref)
        return head == commit or (
            bool(head) and (await self.git.ours(self.shelf.hub, "merge-base", "--is-ancestor", commit, head)).code == 0
        )

    async def diff(self, base: str, commit: str) -> str:
        """Return the unified diff between two commits or trees."""
        plain = ("--no-color", "--no-ext-diff", "--no-textconv", "-p", "--full-index")
        out = await self.git.must(self.shelf.hub, "diff-tree", *plain, base, commit)
        return out.decode(errors="replace")


def _checked(ref: str) -> str:
    if not REF.fullmatch(ref) or ".." in ref or ref.endswith((".lock", ".")) or ".lock/" in ref:
        raise Refused(f"{ref!r} is not a name for a ref")
    return ref


def _known_form(oid: str) -> None:
    if not isinstance(oid, str) or not objects.HEX.fullmatch(oid):
        raise NotFound(f"{oid!r} is not an object's id")
