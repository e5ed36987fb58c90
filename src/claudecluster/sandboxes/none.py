"""Plain processes with no isolation at all, chosen by name only. Made by `assembly` as `none`.

A command sees and may do whatever we may. What is kept is that its whole process tree ends with it, or with us (`guest/plain.py`). It shows no layers: callers
give plain folders as binds, and the work folder is the bind's source.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from uuid import uuid4

from claudecluster.kit.clock import Clock, SystemClock
from claudecluster.model.errors import NotFound, Refused, SandboxLost, Unavailable
from claudecluster.model.place import Command, SandboxSpec
from claudecluster.ports.sandbox import Process
from claudecluster.sandboxes.local import orders
from claudecluster.sandboxes.local.launcher import Launcher
from claudecluster.sandboxes.local.paths import inside
from claudecluster.sandboxes.local.records import Record, Records
from claudecluster.sandboxes.local.spawn import spawned


class NoSandboxes:
    """Makes places that isolate nothing. `state` is a folder of our own, `path` the PATH commands are given."""

    kind = "none"
    overlays = False
    owner: tuple[int, int] | None = None

    def __init__(self, state: Path, path: str, *, clock: Clock | None = None) -> None:
        self.records = Records(state.absolute() / "none")
        self.launcher = Launcher(lambda: {"mode": "plain"})
        self.clock = clock or SystemClock()
        self.path = path

    async def check(self) -> None:
        """Nothing can be missing."""

    async def create(self, spec: SandboxSpec) -> "PlainPlace":
        """Make it, or return it if it already exists; a description that differs replaces the old one. Raises Unavailable, Refused."""
        if spec.layers:
            raise Refused("sandboxes of kind none cannot show layers: give plain folders as binds")
        for source in orders.sources(spec):
            if not source.exists():
                raise Unavailable(f"{source} is to be shown in sandbox {spec.name}, but does not exist")
        if not Path(_source(spec, spec.work)).is_dir():
            raise Refused(f"the work folder {spec.work} of sandbox {spec.name} is no folder here, and no bind shows one there")
        if self.records.read(spec.name) != Record(spec):
            self.records.write(Record(spec))
        return PlainPlace(self, spec)

    async def attach(self, name: str) -> "PlainPlace":
        """Return one made before, by this process or another. Raises SandboxLost."""
        record = self.records.read(name)
        if record is None:
            raise SandboxLost(f"there is no sandbox {name}", hint="make a new attempt")
        return PlainPlace(self, record.spec)

    async def destroy(self, name: str) -> None:
        """Remove it and all it holds, processes first; workspace folders stay. Unknown names are fine. Raises Unavailable."""
        await asyncio.to_thread(self.records.end_runs, name, signal.SIGTERM)  # its supervisor then kills the tree
        self.records.remove(name)

    async def names(self, prefix: str) -> list[str]:
        """Return the names of what exists, also what a dead process of ours left behind."""
        return self.records.names(prefix)

    def close(self) -> None:
        """End every command started here, and the launcher."""
        self.launcher.close()


class PlainPlace:
    """A work folder and a home, and nothing between them and the rest of the machine."""

    def __init__(self, provider: NoSandboxes, spec: SandboxSpec) -> None:
        self._provider = provider
        self._spec = spec
        self._work = _source(spec, spec.work)
        self._home = _source(spec, spec.home)

    @property
    def name(self) -> str:
        """The handle."""
        return self._spec.name

    @property
    def work(self) -> str:
        """The work folder: the source of the bind that stands for it."""
        return self._work

    @property
    def socket(self) -> str:
        """The socket's path on this machine; empty without one."""
        return str(self._spec.socket) if self._spec.socket else ""

    def start(self, command: Command) -> AbstractAsyncContextManager[Process]:
        """Start a command. Entering raises Unavailable if it cannot be started at all; a missing program is Exit 127."""
        return self._running(command)

    @asynccontextmanager
    async def _running(self, command: Command) -> AsyncIterator[Process]:
        orders.refuse_nonsense_command(self._spec, command)
        order = {"argv": command.argv, "cwd": inside(command.cwd, self._work, self._home), "env": self._environment(command)}
        async with spawned(self._provider.launcher, self.name, order, command, self._provider.clock) as process:
            with self._provider.records.running(self.name, process.pid):
                yield process

    async def read(self, path: str) -> bytes:
        """Return a file's bytes; absolute paths may name what is in the home. Raises NotFound, Refused."""
        real = self._confined(path)
        try:
            return await asyncio.to_thread(real.read_bytes)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"{path}: {error.strerror}") from error
        except OSError as error:
            raise Refused(f"{path}: {error.strerror}") from error

    async def write(self, path: str, data: bytes) -> None:
        """Create or replace a file, with its folders. Raises Refused."""
        await asyncio.to_thread(_replace, path, self._confined(path), data)

    def _confined(self, path: str) -> Path:
        try:
            real = Path(inside(path, self._work, self._home)).resolve()
        except RuntimeError as error:
            raise Refused(f"{path!r} is a link to itself") from error
        if not any(real.is_relative_to(Path(root).resolve()) for root in (self._work, self._home)):
            raise Refused(f"{path!r} leads out of the sandbox's folders")
        if real.exists() and not real.is_file():
            raise Refused(f"{path!r} is not a file")
        return real

    def _environment(self, command: Command) -> dict[str, str]:
        own = {**self._spec.env, **command.env}
        first = [folder for name in (".venv/bin", "node_modules/.bin") if Path(folder := f"{self._work}/{name}").is_dir()]
        env = {
            "PATH": ":".join([*first, f"{self._home}/.local/bin", self._provider.path]),
            "HOME": self._home,
            "USER": "agent",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
        }
        if f"{self._work}/.venv/bin" in first:
            env["VIRTUAL_ENV"] = f"{self._work}/.venv"
        return env | own


def _source(spec: SandboxSpec, at: str) -> str:
    """Return where on this machine a place in the description is."""
    binds = sorted(spec.binds, key=lambda bind: len(bind.at), reverse=True)
    for bind in binds:
        if Path(at).is_relative_to(bind.at):
            return str(bind.source.absolute() / Path(at).relative_to(bind.at))
    return at


def _replace(path: str, real: Path, data: bytes) -> None:
    draft = real.with_name(f".{uuid4().hex}.part")
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(data)
        if real.exists():
            draft.chmod(real.stat().st_mode & 0o7777)
        draft.replace(real)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise Refused(f"{path}: {error.strerror}") from error
