"""The user's own repository: look at it, borrow its objects, and publish to it once. Called by the hub.

It is read with the user's settings, so `safe.directory`, credentials and URL rewrites work as in their shell. Nothing is
written to it but the published branch.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from claudecluster.model.errors import Conflict, Refused, Unavailable
from claudecluster.workspaces import disk
from claudecluster.workspaces.disk import Shelf
from claudecluster.workspaces.git import Git, failed, reason

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[^/:]+@[^/:]+:")
PASSWORD = re.compile(r"(?<=://)[^/@]*@")
FOREIGN = "/workspace"  # where the tree of a URL or a bare repository appears
VERSION = (2, 38)  # `git merge-tree --write-tree`


@dataclass(frozen=True, slots=True)
class Source:
    """A repository found: `place` is its top folder, its bare folder or its URL; `work` is where its tree appears in a sandbox."""

    place: str
    work: str
    remote: bool = False
    bare: bool = False

    @property
    def id(self) -> str:
        """A name for its folder in our state: readable, and different for every place."""
        plain = PASSWORD.sub("", self.place)
        label = re.sub(r"[^A-Za-z0-9-]+", "-", plain.rstrip("/").rpartition("/")[2].removesuffix(".git")).strip("-")[:32]
        return f"{label or 'repository'}-{hashlib.sha256(plain.encode()).hexdigest()[:12]}"

    @property
    def folder(self) -> Path:
        """Where git is run for it."""
        return Path("/") if self.remote else Path(self.place)


async def locate(git: Git, given: str) -> Source:
    """Find the repository at a path (also one inside it) or URL. Raises Refused, Unavailable."""
    await _check_version(git)
    if URL.match(given) and not Path(given).exists():
        return Source(given, FOREIGN, remote=True)
    path = Path(given).expanduser().absolute()
    if not path.exists():
        raise Refused(f"{given} does not exist", hint="give the path or URL of a git repository")
    start = path if path.is_dir() else path.parent
    questions = ("--is-bare-repository", "--is-inside-work-tree", "--absolute-git-dir")
    done = await git.theirs(start, "rev-parse", *questions)
    if done.code:
        if b"dubious ownership" in done.err:
            raise Refused(
                f"{given} belongs to another user, so git will not read it", hint=f"git config --global --add safe.directory {start}"
            )
        raise Refused(f"{given} is not a git repository", hint="run `git init` there and make a first commit, or name another --repo")
    bare, inside, folder = done.out.decode(errors="surrogateescape").split("\n", 2)
    if bare == "true":
        return Source(str(Path(folder.rstrip("\n")).resolve()), FOREIGN, bare=True)
    if inside != "true":
        raise Refused(f"{given} is inside a .git folder", hint="name the repository's own folder")
    done = await git.theirs(start, "rev-parse", "--show-toplevel")
    top = str(Path(done.out.decode(errors="surrogateescape").rstrip("\n")).resolve())
    return Source(top, top)


async def _check_version(git: Git) -> None:
    done = await git.ours(Path("/nonexistent"), "version")
    found = re.search(rb"(\d+)\.(\d+)", done.out)
    if found and (int(found[1]), int(found[2])) < VERSION:
        raise Unavailable(f"git {found[0].decode()} is too old", hint="install git 2.38 or newer")


@dataclass(frozen=True)
class Origin:
    """Moves objects between the user's repository and its bare copy on our shelf."""

    source: Source
    shelf: Shelf
    git: Git

    async def prepare(self) -> None:
        """Make `source.git` and `hub.git` if they are not there. Raises Refused, Unavailable."""
        if self.shelf.hub.is_dir():
            return
        if not self.source.remote:
            await self._check_commits()
        async with self.shelf.locked("prepare"):
            if not self.shelf.source.is_dir():
                await self._clone()
            if not self.shelf.hub.is_dir():
                await self._make_hub()

    async def _check_commits(self) -> None:
        done = await self.git.theirs(self.source.folder, "rev-list", "--max-count=1", "--all", "HEAD")
        if done.code or not done.out.strip():
            done = await self.git.theirs(self.source.folder, "rev-list", "--max-count=1", "--all")
        if not done.out.strip():
            raise Refused(f"{self.source.place} has no commit yet", hint="commit something first; work starts from a commit")
        done = await self.git.theirs(self.source.folder, "config", "--get", "extensions.partialClone")
        if done.out.strip():
            raise Refused(
                f"{self.source.place} is a partial clone, which lacks objects",
                hint="run `git fetch --refetch --filter=tree:9999999`, or clone it anew in full",
            )

    async def _clone(self) -> None:
        target = self.shelf.scratch()
        clone = ("-c", "core.sharedRepository=0644", "clone", "--bare", "--quiet", "--dissociate", "--config", "gc.auto=0")
        done = await self.git.theirs(Path("/"), *clone, "--", self.source.place, str(target))
        if done.code == 0 and self.shelf.owner and _hidden(target / "objects"):
            disk.remove(target)  # files only their owner may read: link none of them, so that the copies' modes may be changed
            done = await self.git.theirs(Path("/"), *clone, "--no-local", "--", self.source.place, str(target))
        if done.code and not self.source.remote:
            disk.remove(target)
            done = await self.git.theirs(Path("/"), *clone, "--no-local", "--", self.source.place, str(target))
        if done.code:
            disk.remove(target)
            raise self._unreachable(done.err, reason(done))
        with disk.room("keep a copy of the repository"):
            for hook in (target / "hooks").glob("*"):
                hook.unlink()
            _open(target)
            target.rename(self.shelf.source)

    def _unreachable(self, output: bytes, reason: str) -> Refused | Unavailable:
        place = PASSWORD.sub("", self.source.place)
        if b"No space left" in output or b"Disk quota" in output:
            return Unavailable(f"the disk is full: no room for a copy of {place}", hint="free some space in the state folder and try again")
        if not self.source.remote:
            return Unavailable(f"cannot read {place}: {reason}")
        gone = (
            b"not found",
            b"does not exist",
            b"does not appear to be a git repository",
            b"Authentication failed",
            b"could not read Username",
        )
        if any(word in output for word in gone):
            return Refused(f"cannot clone {place}: {reason}", hint="check the URL and your access to it: git ls-remote")
        return Unavailable(f"cannot clone {place}: {reason}", hint="check the network and try again")

    async def _make_hub(self) -> None:
        target = self.shelf.scratch()
        form = (await self.git.must(self.shelf.source, "rev-parse", "--show-object-format")).decode().strip()
        await self.git.must(target, "init", "--bare", "--quiet", f"--object-format={form}", "--template=", str(target))
        (target / "objects/info").mkdir(exist_ok=True)
        (target / "objects/info/alternates").write_text(f"{disk.quoted(self.shelf.objects[0])}\n")
        if (self.shelf.source / "shallow").exists():
            (target / "shallow").write_bytes((self.shelf.source / "shallow").read_bytes())
        _open(target)
        target.rename(self.shelf.hub)

    async def resolve(self, revision: str) -> str:
        """Return the full commit id, with its objects on the shelf. Raises Refused, Unavailable."""
        name = revision or "HEAD"
        if self.source.remote:
            return await self._resolve_remote(name)
        question = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        done = await self.git.theirs(self.source.folder, *question)
        oid = done.out.decode().strip()
        if done.code or not oid:
            oid = await self._known(name)  # the user may have rewritten history since
            if not oid:
                raise self._unknown(name)
        elif not await self._known(oid):
            await self._fetch(oid)
        return oid

    async def _resolve_remote(self, name: str) -> str:
        done = await self.git.theirs(Path("/"), "ls-remote", "--quiet", "--", self.source.place)
        if done.code:
            known = await self._known(name)
            if known:
                return known
            raise self._unreachable(done.err, reason(done))
        refs = _refs(done.out)
        for ref in (
            name,
            f"refs/tags/{name}^{{}}",
            f"refs/tags/{name}",
            f"refs/heads/{name}",
            f"refs/remotes/{name}",
            name.removeprefix("origin/"),
        ):
            if ref in refs:
                if not await self._known(refs[ref]):
                    await self._fetch(refs[ref])
                return await self._known(refs[ref])
        known = await self._known(name)
        if known:
            return known
        raise self._unknown(name)

    def _unknown(self, name: str) -> Refused:
        place = PASSWORD.sub("", self.source.place)
        if name == "HEAD":
            return Refused(f"{place} has no commit yet", hint="commit something first; work starts from a commit")
        return Refused(f"{place} has no commit {name!r}", hint="name a branch, tag or commit with --base")

    async def _known(self, name: str) -> str:
        done = await self.git.ours(self.shelf.hub, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
        return done.out.decode().strip()

    async def _fetch(self, oid: str) -> None:
        async with self.shelf.locked("prepare"):
            if await self._known(oid):
                return
            await self.bring(self.source.place, oid)

    async def bring(self, place: str, oid: str) -> None:
        """Fetch a commit into `source.git`, where every workspace may read it. Raises Unavailable."""
        to = ("-c", "core.sharedRepository=0644", "-c", "gc.auto=0", "-c", "protocol.version=2", f"--git-dir={self.shelf.source}")
        fetch = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--", place, f"{oid}:refs/kept/{oid}")
        done = await self.git.theirs(Path("/"), *to, *fetch)
        if done.code:
            raise failed("fetch", done)
        _open(self.shelf.source)

    async def dirty(self) -> bool:
        """Tell whether there is a working copy with uncommitted changes."""
        if self.source.remote or self.source.bare:
            return False
        done = await self.git.theirs(self.source.folder, "status", "--porcelain", "--ignore-submodules=dirty")
        return bool(done.out)

    async def check_branch(self, branch: str, base: str) -> None:
        """Raise Refused if publishing `branch` from `base` cannot work."""
        done = await self.git.theirs(Path("/"), "check-ref-format", f"refs/heads/{branch}")
        if done.code or branch.startswith("-") or branch in {"HEAD", "@"}:
            raise Refused(f"{branch!r} is not a valid branch name", hint="see `git help check-ref-format`")
        if branch.startswith("refs/"):
            raise Refused(f"{branch!r} is a full ref, not a branch", hint=f"--branch {branch.removeprefix('refs/heads/')}")
        if branch in await self._checked_out():
            raise Refused(f"branch {branch} is checked out in {self.source.place}", hint="name another one with --branch")
        branches = await self._branches()
        for other in branches:
            if other.startswith(branch + "/") or branch.startswith(other + "/"):
                raise Refused(f"branch {branch} cannot stand beside the branch {other}", hint="name another one with --branch")
        tip = branches.get(branch, "")
        if tip and tip != base and not await self._ancestor(tip, base):
            raise Refused(f"branch {branch} exists and has commits that {base[:12]} has not", hint="name another one with --branch")

    async def _ancestor(self, old: str, new: str) -> bool:
        done = await self.git.ours(self.shelf.hub, "merge-base", "--is-ancestor", old, new)
        return done.code == 0

    async def _branches(self) -> dict[str, str]:
        if self.source.remote:
            done = await self.git.theirs(Path("/"), "ls-remote", "--quiet", "--heads", "--", self.source.place)
        else:
            done = await self.git.theirs(self.source.folder, "for-each-ref", "--format=%(objectname)\t%(refname)", "refs/heads")
        if done.code:
            raise self._unreachable(done.err, reason(done))
        return {ref.removeprefix("refs/heads/"): oid for ref, oid in _refs(done.out).items()}

    async def _checked_out(self) -> set[str]:
        if self.source.remote:
            return set()
        done = await self.git.theirs(self.source.folder, "worktree", "list", "--porcelain")
        lines = done.out.decode(errors="replace").splitlines()
        return {line.removeprefix("branch refs/heads/") for line in lines if line.startswith("branch ")}

    async def publish(self, ref: str, branch: str) -> None:
        """Push a hub ref, fast-forward only. Raises Conflict, Unavailable."""
        if branch in await self._checked_out():
            raise Conflict(
                f"branch {branch} is checked out in {self.source.place}", hint="check out another branch there, then publish again"
            )
        hub = ("-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*", f"--git-dir={self.shelf.hub}")
        push = (
            "push",
            "--quiet",
            "--no-verify",
            "--no-signed",
            "--recurse-submodules=no",
            "--",
            self.source.place,
            f"{ref}:refs/heads/{branch}",
        )
        done = await self.git.theirs(Path("/"), *hub, *push)
        if done.code == 0:
            return
        text = done.err.decode(errors="replace")
        if "rejected" in text and any(word in text for word in ("non-fast-forward", "fetch first", "stale info")):
            raise Conflict(
                f"branch {branch} has moved on and is not part of this run's history", hint="publish under another name with --branch"
            )
        if "rejected" in text:
            raise Conflict(
                f"{PASSWORD.sub('', self.source.place)} does not take branch {branch}: {_rejection(text)}",
                hint="see what its hooks and settings ask for",
            )
        raise Unavailable(f"cannot publish to {PASSWORD.sub('', self.source.place)}: {reason(done)}")


def _refs(listing: bytes) -> dict[str, str]:
    lines = (line.partition("\t") for line in listing.decode(errors="replace").splitlines())
    return {ref: oid for oid, _, ref in lines}


def _rejection(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if "rejected" in line or line.startswith("remote:")]
    return "; ".join(lines) or text.strip()


def _hidden(top: Path) -> bool:
    return any(not found.st_mode & 0o004 for _, found in disk.walk(top) if not _is_folder(found.st_mode))


def _is_folder(mode: int) -> bool:
    return mode & 0o170000 == 0o040000


def _open(top: Path) -> None:
    """Let everybody read the objects, whatever the umask is. Linked files are the user's own, so only folders and unlinked files change."""
    top.chmod(0o755)
    for path, found in disk.walk(top):
        wanted = 0o755 if _is_folder(found.st_mode) else 0o444 if path.startswith("objects/") else 0o644
        if found.st_mode & 0o777 != wanted and (_is_folder(found.st_mode) or found.st_nlink == 1):
            (top / path).chmod(wanted)
