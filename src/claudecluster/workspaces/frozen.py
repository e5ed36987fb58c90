"""Folders that never change once they are in place: the checked-out base of a commit, and what set-up made on top of it.

Called by the workspaces. They are the lower layers of every overlay, so nobody may write to them after the rename.
"""

import asyncio
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from claudecluster.model.errors import Refused
from claudecluster.model.place import Bind, Command, SandboxSpec, Stream
from claudecluster.ports.sandbox import SandboxProvider
from claudecluster.workspaces import disk
from claudecluster.workspaces.disk import Shelf
from claudecluster.workspaces.git import Git, failed, reason

HOME = "/home/agent"  # the agent's home as an isolated sandbox shows it
OBJECTS = "/run/claudecluster-objects"  # where an isolated sandbox sees the user's objects
LANDED = "/run/claudecluster-landed"  # and where those that its run has landed
BRANCH = "refs/heads/work"
AGE = 10  # seconds by which a base's files are older than its index, so that git trusts their times
CONFIG = """[core]
\trepositoryformatversion = {version}
\tfilemode = true
\tbare = false
\tlogallrefupdates = true
[gc]
\tauto = 0
[user]
\tname = Agent
\temail = agent@localhost
"""
SHA256 = "[extensions]\n\tobjectformat = sha256\n"
LOCKS = frozenset(
    [
        "uv.lock",
        "poetry.lock",
        "Pipfile.lock",
        "pyproject.toml",
        "setup.py",
        "setup.cfg",
        "package-lock.json",
        "pnpm-lock.yaml",
        "yarn.lock",
        "Cargo.lock",
        "go.sum",
        "Gemfile.lock",
        "composer.lock",
    ]
)


@dataclass(frozen=True, slots=True)
class Used:
    """The folders of a workspace that set-up ran in; `shares` by name."""

    tree: Path
    home: Path
    shares: Mapping[str, Path]


@dataclass(frozen=True)
class Frozen:
    """One repository's bases and set-up layers."""

    shelf: Shelf
    git: Git
    provider: SandboxProvider
    work: str

    @property
    def overlays(self) -> bool:
        """Whether workspaces are overlays; else they are plain folders."""
        return self.provider.overlays

    def base(self, commit: str) -> Path:
        """Return where a commit's base is, or will be. Its files belong to whom sandboxes run as: another back end has its own."""
        owner = self.shelf.owner
        return self.shelf.folder / "bases" / (f"{commit}.{owner[0]}" if owner else commit)

    def layer(self, key: str) -> Path:
        """Return where a set-up layer is, or will be: folders `tree`, `home`, `shares` and a list `loose`."""
        return self.shelf.folder / "layers" / key

    async def thaw(self, commit: str) -> Path:
        """Return a commit's base, checking it out if this is the first time. Raises Refused, Unavailable."""
        base = self.base(commit)
        if base.is_dir():
            return base
        async with self.shelf.locked(f"base-{commit}"):
            if not base.is_dir():
                await self._lend(commit)
                draft = self.shelf.scratch()
                try:
                    await self._check_out(draft, commit)
                    draft.rename(base)
                finally:
                    self.shelf.bury(draft)
        return base

    async def _lend(self, commit: str) -> None:
        """Bring a commit that only the hub has to where every workspace may read it."""
        if (await self.git.ours(self.shelf.source, "cat-file", "-e", commit)).code:
            fetch = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", str(self.shelf.hub), f"{commit}:refs/kept/{commit}")
            async with self.shelf.locked("prepare"):
                await self.git.must(self.shelf.source, *fetch)

    async def _check_out(self, draft: Path, commit: str) -> None:
        with disk.room("make a base"):
            disk.folder(draft, None)
            self.skeleton(draft / ".git", commit)
        await self.fill(draft, commit)
        with disk.room("make a base"):
            await asyncio.to_thread(disk.give, draft, self.shelf.owner)
            await asyncio.to_thread(settle, draft, await self._seen(draft, commit), len(commit) // 2)

    async def _seen(self, tree: Path, commit: str) -> disk.Owner:
        """Return the user and group that own the tree's files as a sandbox sees them: it may give its user another number."""
        # always the same name: whoever makes this base after a crash takes away what the crash left
        spec = SandboxSpec(f"look.{self.shelf.folder.name}.{commit[:12]}", self.work, HOME, binds=(Bind(tree, self.work),))
        out, _ = await output(self.provider, spec, Command(("stat", "-c", "%u %g", "."), timeout=60))
        uid, _, gid = out.partition(" ")
        return (int(uid), int(gid)) if uid.isdigit() and gid.isdigit() else None

    async def fill(self, tree: Path, treeish: str) -> None:
        """Check a commit or tree out into a new folder that has its `.git`. Raises Refused, Unavailable."""
        env = {"GIT_WORK_TREE": str(tree), **self.shelf.borrow}
        done = await self.git.ours(tree / ".git", "read-tree", "--reset", "-u", treeish, env=env)
        if done.code and b"No space" not in done.err:
            raise Refused(
                f"commit {treeish[:12]} cannot be checked out: {reason(done)}", hint="try `git fsck` and a clean clone of the repository"
            )
        if done.code:
            raise failed("checkout", done)

    def skeleton(self, folder: Path, commit: str, landed: Path | None = None) -> None:
        """Make a repository without objects of its own: it borrows the user's and what landed, has no remote, no hooks, none of the user's settings."""
        borrowed = [OBJECTS, LANDED] if self.overlays else [disk.quoted(path) for path in (self.shelf.objects[0], landed) if path]
        long = len(commit) == 64
        files = {
            "HEAD": f"ref: {BRANCH}\n",
            BRANCH: f"{commit}\n",
            "config": CONFIG.format(version=1 if long else 0) + (SHA256 if long else ""),
            "info/exclude": "",
            "objects/info/alternates": "".join(f"{path}\n" for path in borrowed),
            "packed-refs": self._tags(),
        }
        shallow = self.shelf.source / "shallow"
        if shallow.exists():
            files["shallow"] = shallow.read_text()
        for name, text in files.items():
            disk.folder((folder / name).parent, None)
            (folder / name).write_text(text)
            (folder / name).chmod(0o644)
        disk.folder(folder / "objects/pack", None)
        disk.folder(folder / "refs/tags", None)

    def _tags(self) -> str:
        """Return the user's tags: version numbers are computed from them."""
        packed = self.shelf.source / "packed-refs"
        kept: list[str] = []
        tag = False
        for line in packed.read_text(errors="surrogateescape").splitlines() if packed.exists() else ():
            tag = " refs/tags/" in line or (tag and line.startswith("^"))
            kept += [line] if tag else []
        return "".join(f"{line}\n" for line in ["# pack-refs with: peeled fully-peeled sorted", *kept])

    async def key(self, base: str, commands: tuple[str, ...]) -> str:
        """Return the key of a set-up layer."""
        listing = await self.git.must(self.shelf.hub, "ls-tree", "-r", "-z", "--full-tree", base)
        locks = [entry for entry in listing.split(b"\0") if _is_lock(entry.rpartition(b"/")[2].rpartition(b"\t")[2])]
        digest = hashlib.sha256("\0".join(commands).encode())
        digest.update(b"\0\0" + (b"\0".join(locks) or base.encode()))
        return digest.hexdigest()[:32]

    async def freeze(self, key: str, used: Used, loose: bytes, base: Path) -> None:
        """Make the layer of what set-up left in these folders, tracked files apart. One that is there already stays."""
        draft = self.shelf.scratch()
        with disk.room("keep the set-up"):
            disk.folder(draft / "shares", self.shelf.owner)
            for place, (name, upper) in enumerate(used.shares.items()):
                (draft / f"share-{place}").write_text(name)
                upper.rename(draft / "shares" / str(place))
            used.tree.rename(draft / "tree")
            used.home.rename(draft / "home")
            (draft / "loose").write_bytes(loose)
            await asyncio.to_thread(_strip, draft / "tree", base)
            try:
                draft.rename(self.layer(key))
            except OSError:
                if not self.layer(key).is_dir():
                    raise
                self.shelf.bury(draft)

    def shares(self, key: str) -> dict[str, Path]:
        """Return what set-up changed in shared folders, by their names."""
        layer = self.layer(key)
        return {path.read_text(): layer / "shares" / path.name.removeprefix("share-") for path in layer.glob("share-*")}


def _is_lock(name: bytes) -> bool:
    text = name.decode(errors="replace")
    return text in LOCKS or (text.startswith("requirements") and text.endswith(".txt"))


def _strip(tree: Path, base: Path) -> None:
    """Leave only what the base has not: the base lies on top of the layer, so a tracked file would be hidden anyway."""
    disk.remove(tree / ".git")
    for path, found in list(disk.walk(tree)):
        known = (base / path).is_symlink() or (base / path).exists()
        whiteout = stat.S_ISCHR(found.st_mode)
        if whiteout or (known and not stat.S_ISDIR(found.st_mode)):
            disk.remove(tree / path)
        elif stat.S_ISDIR(found.st_mode):
            for name in ("trusted.overlay.opaque", "user.overlay.opaque"):
                _drop(tree / path, name)


def _drop(path: Path, attribute: str) -> None:
    try:
        os.removexattr(path, attribute, follow_symlinks=False)
    except OSError:
        return  # it had none


async def output(provider: SandboxProvider, spec: SandboxSpec, command: Command) -> tuple[str, str]:
    """Run one command in a fresh sandbox; return its last line, or nothing and why if it failed. Raises Unavailable, Refused."""
    last = {Stream.OUT: b"", Stream.ERR: b""}
    sandbox = await provider.create(spec)
    try:
        async with sandbox.start(command) as process:
            async for line in process.lines():
                last[line.stream] = line.data or last[line.stream]
            ended = await process.wait()
    finally:
        await provider.destroy(spec.name)
    out, error = (last[stream].decode(errors="replace").strip() for stream in (Stream.OUT, Stream.ERR))
    return ("", error or f"exit {ended.code}") if ended.code else (out, "")


def settle(tree: Path, seen: disk.Owner, size: int) -> None:
    """Make the files of a fresh checkout a little older than its index, and write their times and their owner as `seen` into it.

    Without this git would read all files again in every workspace: their owner changed after the checkout, and files as new
    as the index cannot be trusted.
    """
    path = tree / ".git/index"
    if not path.exists():
        return  # an empty tree
    when = path.stat().st_mtime_ns - AGE * 10**9
    top = os.fsencode(tree) + b"/"

    def age(index: bytearray, place: int, name: bytes) -> None:
        try:
            os.utime(top + name, ns=(when, when), follow_symlinks=False)
            found = os.lstat(top + name)
        except FileNotFoundError:
            return  # a submodule's folder may be missing
        if stat.S_ISDIR(found.st_mode):
            return
        times = (*divmod(found.st_ctime_ns, 10**9), *divmod(found.st_mtime_ns, 10**9), found.st_dev & 0xFFFFFFFF, found.st_ino & 0xFFFFFFFF)
        struct.pack_into(">6I", index, place, *times)
        struct.pack_into(">3I", index, place + 28, *(seen or (found.st_uid, found.st_gid)), found.st_size & 0xFFFFFFFF)

    _edit(path, size, age)


def blur(path: Path, names: AbstractSet[bytes], size: int) -> None:
    """Make git read these files again, whatever their times say. `size` is that of an object id in bytes."""
    index = bytearray(path.read_bytes())
    for name in names:
        start = index.find(name + b"\0")
        while start >= 0:  # quicker than a walk over 50,000 entries; the two conditions tell an entry's name from the end of another
            (flags,) = struct.unpack_from(">H", index, start - 2)
            place = start - 42 - size
            if flags & 0xFFF == min(len(name), 0xFFF) and place >= 12 and place % 8 == 4:
                struct.pack_into(">4I", index, place, 0, 0, 0, 0)
                break
            start = index.find(name + b"\0", start + 1)
    _seal(path, index, size)


def _edit(path: Path, size: int, change: Callable[[bytearray, int, bytes], None]) -> None:
    """Call `change(data, place of the entry, its path)` for each entry of an index. Format: gitformat-index(5), version 2, as we tell git to write."""
    index = bytearray(path.read_bytes())
    (count,) = struct.unpack_from(">I", index, 8)
    place = 12
    for _ in range(count):
        start = place + 42 + size
        end = index.index(0, start)
        change(index, place, bytes(index[start:end]))
        place += (end - place + 8) & ~7
    _seal(path, index, size)


def _seal(path: Path, index: bytearray, size: int) -> None:
    index[-size:] = hashlib.new("sha256" if size == 32 else "sha1", index[:-size]).digest()
    path.write_bytes(index)
