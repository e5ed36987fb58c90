"""The default back end: bubblewrap as an unprivileged user, with no network but one socket. Made by `assembly` as `process`.

Each owner has one launcher (`guest/launch.py`), which holds every mount and every process of its sandboxes in namespaces that end with it. This module decides
what a guest sees and may use; the launcher carries it out. Several commands may run in one sandbox, at once or one after another: those that run at the same
time share one tree, files stay in the layers, processes and /tmp end with their command.
"""

import asyncio
import os
import pwd
import re
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.errors import SandboxLost, Unavailable
from claudecluster.model.place import SOCKET, Bind, Command, SandboxSpec
from claudecluster.ports.sandbox import Process
from claudecluster.sandboxes.local import orders, seccomp, system, toolchains
from claudecluster.sandboxes.local.cgroups import ControlGroups, discover, empty_out
from claudecluster.sandboxes.local.launcher import Launcher
from claudecluster.sandboxes.local.paths import inside
from claudecluster.sandboxes.local.records import Record, Records
from claudecluster.sandboxes.local.spawn import file_order, spawned

_INSTALL = "apt-get install bubblewrap (or your system's package of that name), or use --sandbox none, which isolates nothing"
# what switches user namespaces off, the value that does, and how to switch them on
_SWITCHES = (
    ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
    ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
)
_VOLATILE_SINCE = (5, 10)


@dataclass(frozen=True, slots=True)
class Account:
    """The user guests run as on the host when we are root: nothing else should run as it."""

    uid: int = 64000
    gid: int = 64000


class ProcessSandboxes:
    """Makes bubblewrap sandboxes. `state` is a folder of our own, `path` the PATH whose programs guests may use, `readonly` more folders to show them.

    `owner` is the user and group that workspaces and homes must belong to; None when they simply belong to us.
    """

    kind = "process"
    overlays = True

    def __init__(
        self,
        state: Path,
        path: str,
        *,
        readonly: Sequence[Path] = (),
        bubblewrap: str = "bwrap",
        account: Account | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.records = Records(state.absolute() / "process")
        self.clock = clock or SystemClock()
        self.launcher = Launcher(self._settings)
        account = account or Account()
        self.owner = (account.uid, account.gid) if os.getuid() == 0 else None
        self._path = path
        self._bubblewrap = bubblewrap
        self._readonly = tuple(readonly)
        self._home = _home()
        self._view: _View | None = None
        self._works = False

    async def check(self) -> None:
        """Raise Unavailable, with the way to mend it as hint, if sandboxes cannot be made here."""
        if self._works:
            return
        trial = SandboxSpec("", "/run", "/run")
        try:
            order = self.order(trial, {**orders.command(trial, Command(("true",)), self.view().tools)}, ())
            async with spawned(self.launcher, "", {**order, "cgroups": {}}, Command(("true",), timeout=60), self.clock) as process:
                code = (await process.wait()).code
        except Unavailable as error:
            raise Unavailable(f"bubblewrap sandboxes cannot be made here: {error.message}", hint=error.hint or _hint()) from error
        if code:
            raise Unavailable(f"bubblewrap starts, but `true` in it ended with code {code}", hint=_hint())
        self._works = True

    async def create(self, spec: SandboxSpec) -> "ProcessSandbox":
        """Make it, or return it if it already exists; a description that differs replaces the old one. Raises Unavailable, Refused."""
        orders.refuse_nonsense(spec)
        for source in orders.sources(spec):
            if not source.exists():
                raise Unavailable(f"{source} is to be shown in sandbox {spec.name}, but does not exist")
        await self.check()
        wanted = Record(spec, self._groups(spec))
        if self.records.read(spec.name) != wanted:
            self.records.write(wanted)
        return ProcessSandbox(self, spec)

    async def attach(self, name: str) -> "ProcessSandbox":
        """Return a sandbox made before, by this process or another. Raises SandboxLost."""
        record = self.records.read(name)
        if record is None:
            raise SandboxLost(f"there is no sandbox {name}", hint="make a new attempt")
        await self.check()
        return ProcessSandbox(self, record.spec)

    async def destroy(self, name: str) -> None:
        """Remove it and all it holds, processes first; workspace folders stay. Unknown names are fine. Raises Unavailable."""
        record = self.records.read(name)
        await asyncio.to_thread(self.records.end_runs, name)
        if record:
            await asyncio.to_thread(empty_out, record.groups)
        self.records.remove(name)

    async def names(self, prefix: str) -> list[str]:
        """Return the names of what exists, also what a dead process of ours left behind."""
        return self.records.names(prefix)

    def close(self) -> None:
        """End every command of these sandboxes, and the launcher."""
        self.launcher.close()

    def order(self, spec: SandboxSpec, what: Mapping[str, Any], extra: Sequence[Bind]) -> dict[str, Any]:
        """Complete an order to the launcher with the sandbox's tree and limits. Raises Unavailable."""
        view = self.view()
        groups = view.groups.wanted(spec.name, spec.limits) if self._groups(spec) else {}
        limits = orders.rlimits(
            spec.limits,
            memory_held=bool(groups) and view.groups.holds("memory"),
            processes_held=bool(groups) and view.groups.holds("pids"),
            uid=self.owner[0] if self.owner else os.getuid(),
        )
        return {**orders.tree(spec, view.parts, extra), **what, "cgroups": groups, "rlimits": limits}

    def _groups(self, spec: SandboxSpec) -> tuple[Path, ...]:
        return () if spec.limits.each else self.view().groups.folders(spec.name)

    def view(self) -> "_View":
        """Return what all these sandboxes share, worked out once. Raises Unavailable."""
        if self._view is None:
            tools = toolchains.find(self._path, self._home, self._readonly)
            found = discover(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
            groups = ControlGroups(found, str(self.records.state))
            groups.sweep()
            self._view = _View((*system.parts(), *tools.parts), tools, groups)
        return self._view

    def interpreters(self, spec: SandboxSpec) -> tuple[Bind, ...]:
        """Return the Python installations that the workspace's own environment needs and the PATH does not bring."""
        shown = [part.at for part in self.view().parts]
        needed = orders.venv_interpreters(spec, self._home)
        return tuple(Bind(part.source, part.at) for part in needed if not any(Path(part.at).is_relative_to(at) for at in shown))

    def _settings(self) -> dict[str, Any]:
        bwrap = shutil.which(self._bubblewrap, path=f"{self._path}:/usr/bin:/usr/local/bin")
        if bwrap is None:
            raise Unavailable("bubblewrap is not installed", hint=_INSTALL)
        release = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
        uid, gid = self.owner or (os.getuid(), os.getgid())
        return {
            "mode": "isolated",
            "drop": self.owner is not None,
            "uid": uid,
            "gid": gid,
            "bwrap": str(Path(bwrap).resolve()),
            "seccomp": seccomp.program(os.uname().machine).hex(),
            "parts": [asdict(part) | {"source": str(part.source)} for part in self.view().parts],
            "etc": system.etc(),
            "spares": self.view().groups.spares(),
            "overlay_options": ("" if self.owner else ",userxattr") + (",volatile" if release >= _VOLATILE_SINCE else ""),
        }


@dataclass(frozen=True, slots=True)
class _View:
    parts: tuple[system.Part, ...]
    tools: toolchains.Toolchains
    groups: ControlGroups


class ProcessSandbox:
    """One bubblewrap sandbox."""

    def __init__(self, provider: ProcessSandboxes, spec: SandboxSpec) -> None:
        self._provider = provider
        self._spec = spec
        self._extra: tuple[Bind, ...] | None = None

    @property
    def name(self) -> str:
        """The handle."""
        return self._spec.name

    @property
    def work(self) -> str:
        """The work folder's absolute path as processes inside see it."""
        return self._spec.work

    @property
    def socket(self) -> str:
        """The socket's path as processes inside see it; empty without one."""
        return SOCKET if self._spec.socket else ""

    def start(self, command: Command) -> AbstractAsyncContextManager[Process]:
        """Start a command. Entering raises Unavailable if it cannot be started at all; a missing program is Exit 127."""
        return self._running(command)

    @asynccontextmanager
    async def _running(self, command: Command) -> AsyncIterator[Process]:
        what = orders.command(self._spec, command, self._provider.view().tools)
        order = self._provider.order(self._spec, what, self._binds())
        async with spawned(self._provider.launcher, self.name, order, command, self._provider.clock) as process:
            with self._provider.records.running(self.name, process.pid):
                yield process

    async def read(self, path: str) -> bytes:
        """Return a file's bytes; absolute paths may name what is in the home. Raises NotFound, Refused."""
        return await self._touch(path, None)

    async def write(self, path: str, data: bytes) -> None:
        """Create or replace a file, with its folders. Raises Refused."""
        await self._touch(path, data)

    async def _touch(self, path: str, data: bytes | None) -> bytes:
        roots = (self._spec.work, self._spec.home)
        order = self._provider.order(self._spec, {"path": inside(path, *roots), "roots": roots}, self._binds())
        return await file_order(self._provider.launcher, self.name, order, data)

    def _binds(self) -> tuple[Bind, ...]:
        """Return what is shown besides the description's own: the user list, a home where none is given, the interpreters of a .venv."""
        if self._extra is None:
            folder, owner = self._provider.records.folder(self.name), self._provider.owner
            try:
                (folder / "passwd").write_text(system.passwd(self._spec.home))
                (folder / "passwd").chmod(0o644)
                extra = [Bind(folder / "passwd", "/etc/passwd")]
                if not orders.covered(self._spec, self._spec.home):
                    (folder / "home").mkdir(exist_ok=True)
                    extra.append(Bind(folder / "home", self._spec.home, writable=True))
                    if owner:
                        os.chown(folder / "home", *owner)
                if self._spec.socket and owner:
                    os.chown(self._spec.socket, *owner)  # a guest must be able to write to its one way out
            except OSError as error:
                raise SandboxLost(f"sandbox {self.name} is gone: {error.strerror}", hint="make a new attempt") from error
            self._extra = (*extra, *self._provider.interpreters(self._spec))
        return self._extra


def _home() -> Path:
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # containers run as users that nobody has listed
        return Path("/nonexistent")


def _hint() -> str:
    for name, off, mend in _SWITCHES:
        try:
            if Path("/proc/sys", name).read_text().strip() == off:
                return f"user namespaces are switched off: {mend}"
        except OSError:
            continue
    return f"bubblewrap must be allowed to make namespaces here; if it is missing: {_INSTALL}"
