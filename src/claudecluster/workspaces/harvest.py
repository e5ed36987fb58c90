"""Brings what an agent made into the hub. Its tree is hostile: its `.git`, filters, hooks and file names are its own.

Called by the hub. Git runs with a repository, an index and an object folder of ours outside the tree, and where overlays
are in use inside a fresh sandbox; then every new object is checked before the hub takes it.
"""

import asyncio
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from claudecluster.kit.processes import run
from claudecluster.model.errors import Unavailable
from claudecluster.model.evidence import Changes
from claudecluster.model.place import Bind, Command, Limits, SandboxSpec
from claudecluster.model.tree import Workspace
from claudecluster.workspaces import disk, objects
from claudecluster.workspaces.disk import Shelf
from claudecluster.workspaces.frozen import CONFIG, OBJECTS, SHA256, blur, output
from claudecluster.workspaces.git import OURS, Git, reason
from claudecluster.workspaces.history import History
from claudecluster.workspaces.quick.gather import Found, Gatherer, Upper
from claudecluster.workspaces.quick.reader import NONE, Reader
from claudecluster.workspaces.trees import Made, Trees

HUB_OBJECTS = "/run/claudecluster-hub"  # our own git's view of the hub; no agent runs in a harvest's sandbox
GITLINK = "160000"
QUICK = "git add -A && exec git write-tree --missing-ok"
# Unreadable files, encodings that do not fit, repositories inside the tree: nothing of it may cost the agent's work.
THOROUGH = """
git update-index -z --index-info < "$GIT_DIR/inside" || exit 1
find . -path ./.git -prune -o \\( -type f ! -perm -u=r -o -type d ! -perm -u=rwx \\) -exec chmod u+rwX {} + 2>/dev/null
git add -A --ignore-errors || {
  printf '* -text !working-tree-encoding !filter !ident\\n' > "$GIT_DIR/info/attributes"
  git add -A --ignore-errors || test $? -eq 1 || exit 1
}
exec git write-tree --missing-ok
"""


@dataclass(frozen=True)
class Harvest:
    """Harvests one repository's workspaces."""

    shelf: Shelf
    git: Git
    history: History
    trees: Trees
    reader: Reader

    async def tree(self, made: Made) -> tuple[str, tuple[str, ...]]:
        """Write everything in the workspace into the hub as a tree; return it with the paths that differ from its base commit."""
        base = made.workspace.base
        start = await self.history.tree(made.at)
        tree = start if self._untouched(made) else await self._simple(made) or (await self._written(made, QUICK))[0]
        found = await self._changes(base, tree)
        if not tree or any(new == GITLINK != old for old, new, _ in found):
            tree, why = await self._written(made, THOROUGH)
            found = await self._changes(base, tree)
            if not tree:
                raise Unavailable(f"cannot harvest workspace {made.workspace.name}: {why}", hint="check free space in the state folder")
        return tree, tuple(path.decode(errors="backslashreplace") for _, _, path in found)

    async def _changes(self, base: str, tree: str) -> list[tuple[str, str, bytes]]:
        if not tree or tree == await self.history.tree(base):
            return []
        return await asyncio.to_thread(lambda: list(self.reader.differences(base, tree)))

    async def _simple(self, made: Made) -> str:
        """Harvest a simple change of an overlay; empty where git has to do it. Raises Unavailable."""
        gatherer = Gatherer(self.shelf, self.reader)
        with disk.room("harvest"):
            found = await asyncio.to_thread(gatherer.look, _upper(made)) if made.workspace.layers else None
            ignored = await self._ignored(found) if found else None
            if found is None or ignored is None:
                return ""
            return await asyncio.to_thread(gatherer.write, found, ignored) or ""

    async def _ignored(self, found: Found) -> frozenset[bytes] | None:
        """Return which new paths the repository ignores; None if git cannot tell."""
        if not found.new or not found.ignores:
            return frozenset()
        folder = self.shelf.scratch()
        try:
            for path, source in found.ignores.items():
                target = folder / os.fsdecode(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target, follow_symlinks=False)
            question = ("-C", str(folder), "check-ignore", "--no-index", "--stdin", "-z")
            stdin = b"".join(path + b"\0" for path in found.new)
            done = await self.git.ours(self.shelf.hub, *question, stdin=stdin, env={"GIT_WORK_TREE": str(folder)})
        finally:
            self.shelf.bury(folder)
        return frozenset(done.out.split(b"\0")) if done.code in {0, 1} else None

    def _untouched(self, made: Made) -> bool:
        """Tell whether an overlay certainly holds nothing new: its upper folder is as it was made."""
        if not made.workspace.layers or made.at != made.workspace.base or (self.trees.place(made.workspace.name) / "index").exists():
            return False
        known = {".git", *(name.partition("/")[0] for name in made.shares or {} if "/" not in name)}
        return {entry.name for entry in os.scandir(made.workspace.layers[0].upper)} <= known

    async def _written(self, made: Made, script: str) -> tuple[str, str]:
        """Run git over the tree; return the new tree's id, or nothing and why if that failed. Raises Unavailable, Refused."""
        private = self.shelf.scratch()
        try:
            with disk.room("harvest"):
                await asyncio.to_thread(self._prepare, made, private, thorough=script is THOROUGH)
            out, why = await (self._inside if made.workspace.layers else self._outside)(made.workspace, private, script)
            if not objects.HEX.fullmatch(out):
                return "", why or f"git answered {out[:80]!r}"
            with disk.room("harvest"):
                await asyncio.to_thread(objects.adopt, self.shelf, private / "objects")
            await self._adopt_packs(private / "objects/pack")
            return out, ""
        finally:
            self.shelf.bury(private)

    def _prepare(self, made: Made, private: Path, *, thorough: bool) -> None:
        long = len(made.at) == 64
        disk.folder(private / "objects/pack", None)
        disk.folder(private / "refs", None)
        disk.folder(private / "info", None)
        (private / "HEAD").write_text(f"{made.workspace.base}\n")
        (private / "config").write_text(CONFIG.format(version=1 if long else 0) + (SHA256 if long else ""))
        (private / "info/exclude").write_bytes(b"".join(self._excluded(made)))
        place = self.trees.place(made.workspace.name)
        lower = [layer.lower[0] / ".git" for layer in made.workspace.layers]
        index = next((path / "index" for path in (place, *lower) if (path / "index").exists()), None)
        if index:
            shutil.copy2(index, private / "index")
            if made.young:
                blur(private / "index", {os.fsencode(path) for path, _ in disk.walk(made.workspace.layers[0].upper)}, len(made.at) // 2)
        if thorough:
            empty = objects.put(self.shelf, "blob", b"", made.at)
            top = Path(made.workspace.layers[0].upper if made.workspace.layers else made.workspace.work)
            entries = (f"100644 {empty}\t".encode() + path + b"/.claudecluster\0" for path in _inner(top))
            (private / "inside").write_bytes(b"".join(entries))
        disk.give(private, self.shelf.owner)

    def _excluded(self, made: Made) -> Iterator[bytes]:
        """Yield patterns for what set-up and the user's own folders show in the tree, unless the agent changed it."""
        for name in made.shares or {}:
            yield b"/" + _escaped(os.fsencode(name)) + b"\n"
        listing = self.trees.frozen.layer(made.layer) / "loose" if made.layer else None
        for path in listing.read_bytes().split(b"\0") if listing and listing.exists() else ():
            changed = made.workspace.layers and os.path.lexists(os.fsencode(made.workspace.layers[0].upper) + b"/" + path)
            if path and not changed:
                yield b"/" + _escaped(path) + b"\n"

    async def _inside(self, workspace: Workspace, private: Path, script: str) -> tuple[str, str]:
        home = [layer for layer in workspace.layers if layer.at != workspace.home]
        binds = (*(Bind(path, at) for path, at in zip(self.shelf.objects, (OBJECTS, HUB_OBJECTS), strict=True)),)
        spec = SandboxSpec(
            name=f"{workspace.name}.{private.name[-12:]}",
            work=workspace.work,
            home=workspace.home,
            layers=tuple(home),
            binds=(*binds, Bind(private, workspace.home, writable=True)),
            limits=Limits(processes=None, file_size=None, each=True),  # it runs our git and nothing of the agent's
        )
        env = {**_environment(workspace.work, workspace.home), "GIT_ALTERNATE_OBJECT_DIRECTORIES": f"{OBJECTS}:{HUB_OBJECTS}"}
        return await output(self.trees.frozen.provider, spec, Command(("sh", "-c", script), env=env, timeout=600))

    async def _outside(self, workspace: Workspace, private: Path, script: str) -> tuple[str, str]:
        env = {"PATH": self.git.env.get("PATH", "/usr/bin:/bin"), **_environment(workspace.work, str(private)), **self.shelf.borrow}
        done = await run(("sh", "-c", script), cwd=Path(workspace.work), env=env)
        return ("", reason(done)) if done.code else (done.out.decode(errors="replace").strip(), "")

    async def _adopt_packs(self, folder: Path) -> None:
        """Take files too large for a loose object, which git puts into a pack of their own."""
        for pack in folder.glob("pack-*.pack"):
            script = 'exec git index-pack --stdin --strict < "$1"'
            env = {"PATH": self.git.env.get("PATH", "/usr/bin:/bin"), **OURS, "GIT_DIR": str(self.shelf.hub)}
            done = await run(("sh", "-c", script, "sh", str(pack)), env=env)
            if done.code:
                raise Unavailable("cannot take a large file into the hub", hint="check free space in the state folder")

    async def harvest(self, workspace: Workspace, ref: str, message: str, at: float) -> Changes:
        """Commit the tree onto its base and point `ref` at it. A commit that says the same already stays."""
        made = self.trees.made(workspace.name)
        tree, files = await self.tree(made)
        base = made.workspace.base
        known = self.history.head(ref)
        if known:
            old = objects.parse(await self.history.raw(known))
            if (old.tree, old.parents, old.message.strip()) == (tree, (base,), message.strip()):
                return Changes(base, known, tree, files)
        commit = await self.history.commit(tree, base, message, at)
        await self.history.point(ref, commit)
        return Changes(base, commit, tree, files)

    async def loose(self, made: Made) -> bytes:
        """Return the paths (NUL after each) that a harvest would add to its base: what set-up left unignored."""
        tree, _ = await self.tree(made)
        if tree == await self.history.tree(made.at):
            return b""
        return b"".join(path + b"\0" for old, _, path in await self._changes(made.at, tree) if old == NONE)


def _upper(made: Made) -> Upper:
    layer = made.workspace.layers[0]
    shared = (os.fsencode(name) for name in made.shares or {} if "/" not in name)
    return Upper(layer.upper, layer.lower[0], layer.lower[0].name.partition(".")[0], made.at, frozenset([b".git", *shared]))


def _environment(work: str, folder: str) -> dict[str, str]:
    return {
        **OURS,
        "GIT_DIR": folder,
        "GIT_WORK_TREE": work,
        "GIT_INDEX_FILE": f"{folder}/index",
        "GIT_OBJECT_DIRECTORY": f"{folder}/objects",
    }


def _escaped(path: bytes) -> bytes:
    """Return a path as a pattern that matches only itself."""
    return b"".join(b"\\" + bytes([byte]) if byte in b"\\*?[ #!" else bytes([byte]) for byte in path)


def _inner(top: Path) -> list[bytes]:
    """Return the folders inside a tree that are repositories themselves."""
    found = [path for path, kind in disk.walk(top) if path.endswith("/.git") and not stat.S_ISLNK(kind.st_mode)]
    return [os.fsencode(path.removesuffix("/.git")) for path in found if not path.startswith(".git/")]
