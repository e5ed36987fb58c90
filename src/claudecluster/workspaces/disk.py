"""A repository's folder in our state: where things lie, and how to change it so that a kill -9 harms nothing.

Called by the other modules of this room. The rule: make it under `scratch`, then rename it to its place. What a dead
process left in `scratch` is removed by the next one.
"""

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import subprocess
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from claudecluster.kit.processes import born
from claudecluster.model.errors import Unavailable

HOST = os.uname().nodename
FOLDERS = ("bases", "layers", "workspaces", "homes", "locks", "scratch", "landed")
Owner = tuple[int, int] | None


@dataclass(frozen=True)
class Shelf:
    """One repository's folder. `owner` is the user and group that sandboxed processes run as, None if that is us."""

    folder: Path
    owner: Owner = None

    @property
    def source(self) -> Path:
        """The bare copy of the user's repository, whose objects every workspace may read."""
        return self.folder / "source.git"

    @property
    def hub(self) -> Path:
        """The bare repository of what the attempts made; it borrows from `source`."""
        return self.folder / "hub.git"

    @property
    def objects(self) -> tuple[Path, Path]:
        """The two object folders, the user's first."""
        return self.source / "objects", self.hub / "objects"

    @property
    def borrow(self) -> dict[str, str]:
        """Return the variable with which git reads both object folders."""
        return {"GIT_ALTERNATE_OBJECT_DIRECTORIES": ":".join(quoted(path) for path in self.objects)}

    def landed(self, run: str) -> Path:
        """Return the object folder of what a run has landed, which its later workspaces may read. It only grows."""
        return self.folder / "landed" / run

    def prepare(self) -> None:
        """Make the folders and remove what dead processes left."""
        for name in FOLDERS:
            (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o755)
        for path in (self.folder / "scratch").iterdir():
            host, _, rest = path.name.partition("~")
            pid, _, start = rest.partition("~")[0].partition("-")
            if host == HOST and pid.isdigit() and born(int(pid)) != start:
                _later(path)

    def scratch(self, label: str = "") -> Path:
        """Return a path nobody else uses; it vanishes some time after this process has ended."""
        return self.folder / "scratch" / f"{HOST}~{os.getpid()}-{BORN()}~{secrets.token_hex(6)}{label}"

    def bury(self, path: Path) -> None:
        """Remove a file or folder: gone from its place at once, from the disk a little later. A missing one is fine."""
        grave = self.scratch()
        with contextlib.suppress(FileNotFoundError):
            path.rename(grave)
            _later(grave)

    @asynccontextmanager
    async def locked(self, name: str) -> AsyncIterator[None]:
        """Hold a lock among all processes and threads on this host. The kernel frees it when we die."""
        handle = os.open(self.folder / "locks" / name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            pause = 0.002
            while not _try(handle):
                await asyncio.sleep(pause)  # polling, since a blocked thread per waiter would starve the thread pool
                pause = min(pause * 2, 0.05)
            yield
        finally:
            os.close(handle)


def _try(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Born:
    """Our own start time, read once per process (also after a fork)."""

    def __init__(self) -> None:
        self._known: tuple[int, str] = (0, "")

    def __call__(self) -> str:
        if self._known[0] != os.getpid():
            self._known = (os.getpid(), born(os.getpid()))
        return self._known[1]


BORN = _Born()


def quoted(path: Path) -> str:
    """Return a path as git wants it in a list of object folders."""
    text = str(path)
    if not set(text) & set(':"\\\n'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def write(path: Path, data: bytes, scratch: Path, mode: int = 0o644) -> None:
    """Create or replace a file in one step, by way of `scratch` on the same disk."""
    with os.fdopen(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
        file.write(data)
    scratch.rename(path)


def give(path: Path, owner: Owner) -> None:
    """Make a folder and all it holds belong to `owner`. Links are not followed."""
    if owner is None:
        return
    os.chown(path, *owner, follow_symlinks=False)
    for folder, names, files in os.walk(path):
        for name in (*names, *files):
            os.chown(os.path.join(folder, name), *owner, follow_symlinks=False)  # noqa: PTH118 - 50,000 Path objects cost more than the work


def folder(path: Path, owner: Owner, mode: int = 0o755) -> Path:
    """Make a folder with its parents, all of them `owner`'s, readable whatever the umask is. An existing one is fine."""
    missing = path
    made = []
    while not missing.is_dir():
        made.append(missing)
        missing = missing.parent
    for part in reversed(made):
        part.mkdir(exist_ok=True)
        part.chmod(mode)
        if owner is not None:
            os.chown(part, *owner)
    return path


def walk(top: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (path relative to `top`, lstat) of everything under it, folders before what they hold."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        try:
            with os.scandir(top / prefix if prefix else top) as found:
                entries = list(found)
        except OSError:
            continue  # unreadable: whoever needs it finds out
        for entry in entries:
            path = f"{prefix}{entry.name}"
            state = entry.stat(follow_symlinks=False)
            yield path, state
            if stat.S_ISDIR(state.st_mode):
                pending.append(path + "/")


def remove(path: Path) -> None:
    """Remove a file or folder for good, whatever modes or depth a hostile process gave it."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except (OSError, RecursionError):
        script = 'chmod -R u+rwX -- "$1"; rm -rf -- "$1"'
        subprocess.run(("sh", "-c", script, "sh", str(path)), check=False, capture_output=True)


class _Remover:
    """Removes one path after the other in a thread that ends when there is nothing left. A process that ends by itself waits for it."""

    def __init__(self) -> None:
        self._paths: deque[Path] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __call__(self, path: Path) -> None:
        with self._lock:
            self._paths.append(path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="remove")
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._paths:
                    self._thread = None
                    return
                path = self._paths.popleft()
            remove(path)


_later = _Remover()


@contextlib.contextmanager
def room(what: str) -> Iterator[None]:
    """Translate a disk that cannot be written into Unavailable."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"cannot {what}: {error}", hint="check free space and permissions of the state folder") from error
