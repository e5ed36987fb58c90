"""Trees that agents work on: the values workspaces and merges are described with. The promises are in `ports/workspace.py`."""

from dataclasses import dataclass

from claudecluster.model.place import Bind, Layer


@dataclass(frozen=True, slots=True)
class Workspace:
    """A named tree, ready to be shown in a sandbox: put `layers` and `binds` into a SandboxSpec."""

    name: str
    base: str
    work: str
    home: str
    layers: tuple[Layer, ...] = ()
    binds: tuple[Bind, ...] = ()


@dataclass(frozen=True, slots=True)
class Merged:
    """A merge made in memory. With `conflicts` (paths), `tree` holds the conflict markers."""

    tree: str
    conflicts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which workspace: the tree of `at` (a commit or tree), on `base`; `share` and `layer` lie under it.

    `work` keeps the folder's path the same for all of a task's attempts. With `keep`, an existing one is returned as it is
    (a retry in place); else it is made anew. `home` names whose home folder it uses: attempts of one task share it.
    """

    name: str
    base: str
    at: str = ""
    home: str = ""
    share: tuple[str, ...] = ()
    layer: str = ""
    keep: bool = False
