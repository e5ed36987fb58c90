"""Finds or makes the hub of a repository: the room's front door. Called by the assembly; the engine sees only the ports."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.evidence import Changes
from claudecluster.model.tree import Merged, Wanted, Workspace
from claudecluster.ports.sandbox import SandboxProvider
from claudecluster.workspaces import disk
from claudecluster.workspaces.disk import Owner, Shelf
from claudecluster.workspaces.frozen import Frozen
from claudecluster.workspaces.git import Git
from claudecluster.workspaces.harvest import Harvest
from claudecluster.workspaces.history import History
from claudecluster.workspaces.quick.reader import Reader
from claudecluster.workspaces.signing import Signer
from claudecluster.workspaces.source import Origin, locate
from claudecluster.workspaces.trees import Trees


@dataclass(frozen=True)
class LocalHub:
    """A hub in our state folder: hands each request to the part that does it. `ports.workspace.Hub` has the promises."""

    origin: Origin
    history: History
    layers: Frozen
    trees: Trees
    gatherer: Harvest
    clock: Clock

    @property
    def source(self) -> str:
        """The user's repository."""
        return self.origin.source.place

    async def resolve(self, revision: str) -> str:
        """Return the full commit id. Raises Refused, Unavailable."""
        return await self.origin.resolve(revision)

    async def dirty(self) -> bool:
        """Tell whether the user's working copy has uncommitted changes."""
        return await self.origin.dirty()

    async def check_branch(self, branch: str, base: str) -> None:
        """Raise Refused if publishing cannot work."""
        await self.origin.check_branch(branch, base)

    async def workspace(self, wanted: Wanted) -> Workspace:
        """Make or return a workspace."""
        return await self.trees.make(wanted)

    async def discard(self, name: str) -> None:
        """Remove a workspace."""
        self.trees.discard(name)

    async def discard_home(self, name: str) -> None:
        """Remove a task's home."""
        self.trees.discard_home(name)

    async def workspaces(self, prefix: str) -> list[str]:
        """Return the names of existing workspaces."""
        return self.trees.names(prefix)

    async def harvest(self, workspace: Workspace, ref: str, message: str) -> Changes:
        """Commit everything in the tree and point `ref` at it."""
        return await self.gatherer.harvest(workspace, ref, message, self.clock.now())

    async def frozen(self, key: str) -> bool:
        """Tell whether a set-up layer exists."""
        return self.layers.layer(key).is_dir()

    async def freeze(self, workspace: Workspace, key: str) -> None:
        """Make a set-up layer of a workspace, which is used up by it. Raises NotFound, Unavailable."""
        if await self.frozen(key):
            return
        made = self.trees.made(workspace.name)
        loose = await self.gatherer.loose(made)
        tracked = await self.layers.thaw(workspace.base)
        await self.layers.freeze(key, self.trees.folders(made), loose, tracked)

    async def layer_key(self, base: str, commands: tuple[str, ...]) -> str:
        """Return the key of a set-up layer."""
        return await self.layers.key(base, (self.layers.provider.kind, *commands))

    async def merge(self, base: str, ours: str, theirs: str) -> Merged:
        """Merge in memory."""
        return await self.history.merge(base, ours, theirs)

    async def commit(self, tree: str, parent: str, message: str, *, at: float) -> str:
        """Write a signed commit."""
        return await self.history.commit(tree, parent, message, at)

    async def head(self, ref: str) -> str:
        """Return the commit a ref points at."""
        return self.history.head(ref)

    async def advance(self, ref: str, new: str, old: str) -> None:
        """Compare-and-swap a ref. Raises Conflict."""
        await self.history.advance(ref, new, old)

    async def contains(self, ref: str, commit: str) -> bool:
        """Tell whether a commit is in the history of a ref."""
        return await self.history.contains(ref, commit)

    async def tree(self, commit: str) -> str:
        """Return a commit's tree. Raises NotFound."""
        return await self.history.tree(commit)

    async def raw(self, commit: str) -> bytes:
        """Return a commit's bytes, signature included. Raises NotFound."""
        return await self.history.raw(commit)

    async def diff(self, base: str, commit: str) -> str:
        """Return the unified diff."""
        return await self.history.diff(base, commit)

    async def publish(self, ref: str, branch: str) -> None:
        """Push to the user's branch. Raises Conflict, Unavailable."""
        await self.origin.publish(ref, branch)


class GitRepositories:
    """Hubs under one state folder.

    `owner` is the user and group that the provider runs processes as where that is not us; `env` is this process's
    environment, for the user's own git settings and credentials.
    """

    def __init__(
        self,
        root: Path,
        provider: SandboxProvider,
        signer: Signer,
        *,
        env: Mapping[str, str],
        owner: Owner = None,
        clock: Clock | None = None,
    ) -> None:
        self._root = root
        self._provider = provider
        self._signer = signer
        self._git = Git(env)
        self._owner = owner
        self._clock = clock or SystemClock()

    async def open(self, source: str) -> LocalHub:
        """Return the hub of a path or URL, making it on first use. Raises Refused, Unavailable."""
        found = await locate(self._git, source)
        shelf = Shelf(self._root.absolute() / "repositories" / found.id, self._owner)
        with disk.room("use the state folder"):
            shelf.prepare()
        origin = Origin(found, shelf, self._git)
        await origin.prepare()
        history = History(shelf, self._git, self._signer)
        frozen = Frozen(shelf, self._git, self._provider, found.work)
        user = None if found.remote or found.bare else Path(found.place)
        reader = Reader(shelf, self._git)
        trees = Trees(shelf, self._git, history, frozen, reader, user)
        return LocalHub(origin, history, frozen, trees, Harvest(shelf, self._git, history, trees, reader), self._clock)
