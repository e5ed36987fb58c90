"""Control groups for memory and number of processes, version 1 or 2, wherever this process may make some. Called by `process`.

They are made below the group we run in (version 1) or the nearest group above it that hands the controllers on (version 2), so that limits on us hold for guests too.
Where none may be made, `ControlGroups.found` is empty and callers fall back to rlimits.
"""

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from claudecluster.guest.wire import SPARE
from claudecluster.model.errors import Unavailable
from claudecluster.model.place import Limits

_PATIENCE = 2.0  # seconds a killed process may take to leave its group


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A writable group to make ours in. `controllers` are those whose limit files our groups will have."""

    version: int
    base: Path
    controllers: frozenset[str]


def discover(mountinfo: str, membership: str) -> tuple[Hierarchy, ...]:
    """Find where groups can be made, from the texts of /proc/self/mountinfo and /proc/self/cgroup."""
    groups: dict[str, str] = {}
    for line in membership.splitlines():
        _number, names, path = line.split(":", 2)
        groups.update(dict.fromkeys(names.split(","), path))
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        root, mounted = left.split()[3:5]
        kind, _source, options = [*right.split(), "", "", ""][:3]
        if kind == "cgroup":
            for name in {"memory", "pids"} & set(options.split(",")) & groups.keys():
                base = Path(mounted) / os.path.relpath(groups[name], root)
                if os.access(base, os.W_OK):
                    found[name] = Hierarchy(1, base, frozenset({name}))
        elif kind == "cgroup2" and "" in groups:
            second = _unified(Path(mounted), os.path.relpath(groups[""], root))
            if second:
                found["unified"] = second
    ones = tuple(found[name] for name in ("memory", "pids") if name in found)
    second = found.get("unified")
    return (second,) if second and {"memory", "pids"} <= second.controllers else ones


def _unified(mounted: Path, own: str) -> Hierarchy | None:
    here = mounted / own
    for base in (here, *here.parents):
        with contextlib.suppress(OSError):
            controllers = frozenset((base / "cgroup.subtree_control").read_text().split()) & {"memory", "pids"}
            if controllers == {"memory", "pids"} and os.access(base, os.W_OK):
                return Hierarchy(2, base, controllers)
        if base == mounted:
            return None
    return None


class ControlGroups:
    """The groups of one owner's sandboxes. `scope` keeps owners with different state folders apart."""

    def __init__(self, hierarchies: Sequence[Hierarchy], scope: str) -> None:
        self.found = tuple(hierarchies)
        self._scope = scope

    def holds(self, controller: str) -> bool:
        """Tell whether a limit of this controller can be set."""
        return any(controller in hierarchy.controllers for hierarchy in self.found)

    def folders(self, name: str) -> tuple[Path, ...]:
        """Return where a sandbox's groups are."""
        digest = hashlib.sha256(f"{self._scope}\0{name}".encode()).hexdigest()[:20]
        return tuple(hierarchy.base / f"claudecluster-{digest}" for hierarchy in self.found)

    def wanted(self, name: str, limits: Limits) -> dict[str, dict[str, int]]:
        """Return a sandbox's groups, which the launcher makes, each with the files to write numbers into."""
        return {str(folder): _settings(hierarchy, limits) for hierarchy, folder in zip(self.found, self.folders(name), strict=True)}

    def spares(self) -> list[str]:
        """Return where the launcher may keep groups ready that are given their names later: only version 1 lets groups be renamed."""
        return [str(hierarchy.base) for hierarchy in self.found if hierarchy.version == 1]

    def sweep(self) -> None:
        """Remove spare groups that a launcher which was killed left behind. One that is in use cannot be removed."""
        for base in self.spares():
            for folder in Path(base).glob(f"{SPARE}*"):
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _settings(hierarchy: Hierarchy, limits: Limits) -> dict[str, int]:
    wanted: dict[str, int] = {}
    if "memory" in hierarchy.controllers and limits.memory is not None:
        wanted["memory.max" if hierarchy.version == 2 else "memory.limit_in_bytes"] = limits.memory
    if "pids" in hierarchy.controllers and limits.processes is not None:
        wanted["pids.max"] = limits.processes
    return wanted


def empty_out(folders: Sequence[Path]) -> None:
    """Kill whatever is in these groups and remove them. Missing ones are fine. Blocks for up to two seconds. Raises Unavailable if they cannot be emptied."""
    deadline = time.monotonic() + _PATIENCE
    for folder in folders:
        while folder.exists():
            _kill_all(folder)
            try:
                folder.rmdir()
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Unavailable(f"cannot remove the control group {folder}: {error.strerror}") from error
                time.sleep(0.002)


def _kill_all(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / "cgroup.kill").open("r+") as kill:  # version 2 since Linux 5.14
        kill.write("1")
    with contextlib.suppress(OSError):
        for pid in (folder / "cgroup.procs").read_text().split():
            if pid != "0":  # so the kernel names a process that we cannot see, and kill(2) our whole process group
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
