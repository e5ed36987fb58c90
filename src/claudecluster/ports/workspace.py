"""The tree an agent works on, and the hub its work is kept in.

A hub is a bare repository of ours beside the user's. Raises throughout: Refused for what the user must fix, Unavailable for a full disk or a git that cannot run.
"""

from typing import Protocol

from claudecluster.model.evidence import Changes
from claudecluster.model.tree import Merged, Wanted, Workspace


class Hub(Protocol):
    """One repository's bare hub. Refs only grow; every object named here survives any crash."""

    @property
    def source(self) -> str:
        """The user's repository: an absolute path or a URL."""
        ...

    async def resolve(self, revision: str) -> str:
        """Return the full commit id, fetching it from the user's repository. Raises Refused for an unknown one."""
        ...

    async def dirty(self) -> bool:
        """Tell whether the user's working copy has uncommitted changes (never for a URL)."""
        ...

    async def check_branch(self, branch: str, base: str) -> None:
        """Raise Refused if publishing `branch` from `base` cannot work: bad name, checked out, or has other commits."""
        ...

    async def workspace(self, wanted: Wanted) -> Workspace:
        """Make or return a workspace; idempotent after a crash at any point."""
        ...

    async def discard(self, name: str) -> None:
        """Remove a workspace and its changes. Unknown names are fine."""
        ...

    async def discard_home(self, name: str) -> None:
        """Remove a task's home folder. Unknown names are fine."""
        ...

    async def workspaces(self, prefix: str) -> list[str]:
        """Return the names of existing workspaces."""
        ...

    async def harvest(self, workspace: Workspace, ref: str, message: str) -> Changes:
        """Commit everything in the tree (ignored files apart) onto its base and point `ref` at it. Safe on hostile trees; idempotent."""
        ...

    async def frozen(self, key: str) -> bool:
        """Tell whether the layer `key` exists."""
        ...

    async def freeze(self, workspace: Workspace, key: str) -> None:
        """Turn what was made in the workspace and its home (ignored files too) into the read-only layer `key`."""
        ...

    async def layer_key(self, base: str, commands: tuple[str, ...]) -> str:
        """Return the key of a set-up layer: its commands and the lock files of `base` (the base itself where it has none)."""
        ...

    async def merge(self, base: str, ours: str, theirs: str) -> Merged:
        """Merge two commits in memory; no working tree is touched."""
        ...

    async def commit(self, tree: str, parent: str, message: str, *, at: float) -> str:
        """Write a signed commit and return its id. The same arguments give the same commit."""
        ...

    async def head(self, ref: str) -> str:
        """Return the commit a hub ref points at; empty if there is none."""
        ...

    async def advance(self, ref: str, new: str, old: str) -> None:
        """Compare-and-swap a hub ref; empty `old` means it must not exist. Raises Conflict. Already at `new` is fine."""
        ...

    async def contains(self, ref: str, commit: str) -> bool:
        """Tell whether `commit` is in the history of a hub ref."""
        ...

    async def tree(self, commit: str) -> str:
        """Return a commit's tree id. Raises NotFound."""
        ...

    async def diff(self, base: str, commit: str) -> str:
        """Return the unified diff between two commits or trees."""
        ...

    async def publish(self, ref: str, branch: str) -> None:
        """Push a hub ref to the user's branch: fast-forward only. Raises Conflict (diverged, checked out) or Unavailable."""
        ...


class Repositories(Protocol):
    """Finds or makes the hub of a repository."""

    async def open(self, source: str) -> Hub:
        """Return the hub of a path or URL. Raises Refused: missing, not a repository, without a commit."""
        ...
