"""Makes and removes workspaces: an overlay on a frozen base, or a plain folder where overlays are not to be had.

Called by the hub. The record beside a workspace's folders is what we believe of it; its own `.git` belongs to the agent
and is never read again.
"""

import asyncio
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from claudecluster.model.errors import NotFound, Refused, Unavailable
from claudecluster.model.place import Bind, Layer
from claudecluster.model.tree import Wanted, Workspace
from claudecluster.workspaces import disk
from claudecluster.workspaces.disk import Shelf
from claudecluster.workspaces.frozen import BRANCH, HOME, LANDED, OBJECTS, Frozen, Used
from claudecluster.workspaces.git import Git, failed
from claudecluster.workspaces.history import History
from claudecluster.workspaces.quick.reader import NONE, Difference, Reader

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
WHITEOUT = stat.S_IFCHR  # overlayfs: a character device 0/0 says that the path is gone; every user may make one since Linux 5.8


@dataclass(frozen=True, slots=True)
class Made:
    """A workspace and what a harvest must know of it.

    `at` is the tree or commit it began with, `shares` maps names to their upper folders. `young`: its base was made in the
    same second, so that a file changed at once may have the very times it had before.
    """

    workspace: Workspace
    at: str
    layer: str = ""
    shares: Mapping[str, str] | None = None
    young: bool = False

    def dump(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), default=str)


def read(text: str) -> Made:
    """Return what `dump` wrote."""
    data: dict[str, Any] = json.loads(text)
    inner = data.pop("workspace")
    layers = tuple(
        Layer(tuple(map(Path, layer["lower"])), Path(layer["upper"]), Path(layer["work"]), layer["at"]) for layer in inner.pop("layers")
    )
    binds = tuple(Bind(Path(bind["source"]), bind["at"], bind["writable"]) for bind in inner.pop("binds"))
    return Made(Workspace(**inner, layers=layers, binds=binds), **data)


@dataclass(frozen=True)
class Trees:
    """One repository's workspaces. `user` is the working copy whose folders may be shared."""

    shelf: Shelf
    git: Git
    history: History
    frozen: Frozen
    reader: Reader
    user: Path | None

    def place(self, name: str) -> Path:
        """Return a workspace's folder. Raises Refused for a name that is no file name."""
        return self.shelf.folder / "workspaces" / _checked(name)

    def home(self, wanted: Wanted) -> Path:
        """Return the folder that holds a workspace's home."""
        return self.shelf.folder / "homes" / _checked(wanted.home) if wanted.home else self.place(wanted.name) / "home"

    def made(self, name: str) -> Made:
        """Return the record of a workspace. Raises NotFound."""
        try:
            return read((self.place(name) / "made.json").read_text())
        except FileNotFoundError as error:
            raise NotFound(f"no workspace {name}") from error

    async def make(self, wanted: Wanted) -> Workspace:
        """Make a workspace, or return the existing one where it is to be kept."""
        place = self.place(wanted.name)
        if wanted.keep and (place / "made.json").exists():
            return self.made(wanted.name).workspace
        if wanted.layer and not self.frozen.layer(wanted.layer).is_dir():
            raise NotFound(f"no set-up layer {wanted.layer}")
        base = await self.frozen.thaw(wanted.base) if self.frozen.overlays else None
        draft = self.shelf.scratch()
        try:
            with disk.room("make a workspace"):
                made = await (self._overlay(wanted, base, draft) if base else self._plain(wanted, draft))
                (draft / "made.json").write_text(made.dump())
                self.shelf.bury(place)
                draft.rename(place)
        finally:
            self.shelf.bury(draft)
        return made.workspace

    async def _overlay(self, wanted: Wanted, base: Path, draft: Path) -> Made:
        shelf, place, home = self.shelf, self.place(wanted.name), self.home(wanted)
        disk.folder(draft, None)
        upper = disk.folder(draft / "upper", shelf.owner)
        disk.folder(draft / "work", shelf.owner)
        commit = await self._fill(wanted, base, draft)
        layer = self.frozen.layer(wanted.layer) if wanted.layer else None
        lower = (base, layer / "tree") if layer else (base,)
        layers = [Layer(lower, place / "upper", place / "work", self.frozen.work)]
        for part in ("upper", "work"):
            disk.folder((home if wanted.home else draft / "home") / part, shelf.owner)
        binds = [Bind(shelf.objects[0], OBJECTS), Bind(self._landed(wanted), LANDED)]
        if layer:
            layers.append(Layer((layer / "home",), home / "upper", home / "work", HOME))
        else:
            binds.append(Bind(home / "upper", HOME, writable=True))
        shares: dict[str, Path] = {}
        for name, folders in self._shared(wanted, base, upper).items():
            shares[name] = place / f"share-{len(shares)}" / "upper"
            for part in ("upper", "work"):
                disk.folder(draft / f"share-{len(shares) - 1}" / part, shelf.owner)
            disk.folder(upper / name, shelf.owner)
            layers.append(Layer(folders, shares[name], shares[name].with_name("work"), f"{self.frozen.work}/{name}"))
        workspace = Workspace(wanted.name, commit, self.frozen.work, HOME, tuple(layers), tuple(binds))
        index = base / ".git/index"
        young = index.exists() and int(index.stat().st_mtime) >= int(upper.stat().st_mtime)
        return Made(workspace, wanted.at or wanted.base, wanted.layer, {name: str(path) for name, path in shares.items()}, young)

    def _landed(self, wanted: Wanted) -> Path:
        """Return the objects that the workspace's run has landed. Its name begins with the run: `ids.attempt_name`."""
        return disk.folder(self.shelf.landed(wanted.name.partition(".")[0]), None)

    def _shared(self, wanted: Wanted, base: Path, upper: Path) -> dict[str, tuple[Path, ...]]:
        """Return the untracked folders of the user's copy that are to be seen, each with what set-up made of it on top."""
        changed = self.frozen.shares(wanted.layer) if wanted.layer else {}
        found: dict[str, tuple[Path, ...]] = {}
        for name in dict.fromkeys((*wanted.share, *changed)):
            plain = os.path.normpath(name)
            if plain.startswith(("/", "..", ".git")) or plain == ".":
                raise Refused(f"cannot share {name!r}", hint="name a folder inside the repository")
            folder = (self.user / plain).resolve() if self.user else None
            tracked = os.path.lexists(base / plain) or os.path.lexists(upper / plain)
            shown = [*([changed[plain]] if plain in changed else []), *([folder] if folder and folder.is_dir() else [])]
            if shown and not tracked:
                found[plain] = tuple(shown)
        return found

    async def _fill(self, wanted: Wanted, base: Path, draft: Path) -> str:
        """Put into the upper folder what differs between the base and the wanted tree, and return the commit that HEAD shows."""
        at = wanted.at or wanted.base
        if at == wanted.base:
            return wanted.base
        upper, index = draft / "upper", draft / "index"
        kind = await self.history.kind(at)
        commit = at if kind == "commit" else wanted.base
        if (base / ".git/index").exists():
            shutil.copy2(base / ".git/index", index)  # with its time, by which git knows which files it may trust
        disk.folder(upper / ".git/objects", None)
        env = {"GIT_WORK_TREE": str(upper), "GIT_INDEX_FILE": str(index)}
        hub = self.shelf.hub
        diff, done, _ = await asyncio.gather(
            asyncio.to_thread(lambda: list(self.reader.differences(wanted.base, at, folders=True))),
            self.git.ours(hub, "read-tree", "-m", "-u", wanted.base, at, env=env),
            self.history.lend(kind, at, upper / ".git/objects", self._landed(wanted)),
        )
        if done.code:
            raise failed("read-tree", done)
        _whiteouts(upper, diff)
        if index.exists():
            shutil.copy2(index, upper / ".git/index")
        if commit != wanted.base:
            disk.folder((upper / ".git" / BRANCH).parent, None)
            (upper / ".git" / BRANCH).write_text(f"{commit}\n")
        disk.give(upper, self.shelf.owner)
        return commit

    async def _plain(self, wanted: Wanted, draft: Path) -> Made:
        shelf, place, home = self.shelf, self.place(wanted.name), self.home(wanted)
        at = wanted.at or wanted.base
        kind = await self.history.kind(at)
        commit = at if kind == "commit" else wanted.base
        tree = disk.folder(draft / "tree", None)
        landed = self._landed(wanted)
        self.frozen.skeleton(tree / ".git", commit, landed)
        if at != wanted.base:
            await self.history.lend(kind, at, tree / ".git/objects", landed)
        async with shelf.locked("checkout"):
            await self.frozen.fill(tree, at)
        if (tree / ".git/index").exists():
            shutil.copy2(tree / ".git/index", draft / "index")
        own = disk.folder((home if wanted.home else draft / "home") / "upper", shelf.owner)
        if wanted.layer and not any(own.iterdir()):
            await _copy(self.frozen.layer(wanted.layer) / "home", own)
        shares = {}
        for name, folders in self._shared(wanted, tree, tree).items():
            for folder in reversed(folders):
                await _copy(folder, disk.folder(tree / name, None))
            shares[name] = str(place / "tree" / name)
        if wanted.layer:
            await _copy(self.frozen.layer(wanted.layer) / "tree", tree, keep=True)
        disk.give(tree, shelf.owner)
        work = str(place / "tree")
        binds = (Bind(place / "tree", work, writable=True), Bind(home / "upper", str(home / "upper"), writable=True))
        return Made(Workspace(wanted.name, commit, work, str(home / "upper"), (), binds), at, wanted.layer, shares)

    def folders(self, made: Made) -> Used:
        """Return the folders that hold what was made in a workspace."""
        space = made.workspace
        shares = {name: Path(path) for name, path in (made.shares or {}).items()}
        if not space.layers:
            return Used(Path(space.work), Path(space.home), {})
        home = next((layer.upper for layer in space.layers if layer.at == space.home), None)
        return Used(space.layers[0].upper, home or next(bind.source for bind in space.binds if bind.at == space.home), shares)

    def discard(self, name: str) -> None:
        """Remove a workspace. An unknown one is fine."""
        self.shelf.bury(self.place(name))

    def discard_home(self, name: str) -> None:
        """Remove a shared home. An unknown one is fine."""
        self.shelf.bury(self.shelf.folder / "homes" / _checked(name))

    def names(self, prefix: str) -> list[str]:
        """Return the names of existing workspaces."""
        return sorted(path.name for path in (self.shelf.folder / "workspaces").iterdir() if path.name.startswith(prefix))


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise Refused(f"{name!r} cannot be the name of a workspace")
    return name


def _whiteouts(upper: Path, diff: Iterable[Difference]) -> None:
    """Hide what is gone. A folder comes before what it held, and hides it."""
    top = os.fsencode(upper) + b"/"
    gone: set[bytes] = set()
    for _, new, path in diff:
        if new != NONE:
            continue
        parents = path.split(b"/")[:-1]
        if any(b"/".join(parents[: depth + 1]) in gone for depth in range(len(parents))):
            continue
        gone.add(path)
        if not os.path.lexists(top + path):
            os.makedirs(os.path.dirname(top + path), exist_ok=True)  # noqa: PTH103, PTH120 - names may be any bytes
            os.mknod(top + path, WHITEOUT)


async def _copy(source: Path, target: Path, *, keep: bool = False) -> None:
    """Copy what a folder holds, sharing its blocks where the disk can. With `keep`, files that are there already stay."""
    flags = ("-a", "--reflink=auto", *(("--no-clobber",) if keep else ()))
    argv = ("cp", *flags, "--", f"{source}/.", str(target))
    done = await asyncio.to_thread(subprocess.run, argv, check=False, capture_output=True)
    if done.returncode:
        raise Unavailable(f"cannot copy {source}: {done.stderr.decode(errors='replace').strip()[:200]}")
